"""The loss on poems that are not trained on: forward passes, recorded where that is possible."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from verse.model import distributed
from verse.model.encoding import Example
from verse.model.graphs import Graph, warm_up, warn_fallback
from verse.model.loading import widest_float
from verse.training.loss import Objective, behind_prefix, cross_entropy, summed_loss
from verse.training.micro_batches import Plan, split_step, uncompiled
from verse.training.packing import Batch, lay_out


class Evaluation:
    """Called, it gives the loss of the examples in evaluation mode: a row of the curve.

    Each process computes its share. beside: a graph that never runs at the same time, in whose
    memory this one works too.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: list[Example],
        beside: Graph[torch.Tensor] | None = None,
        objective: Objective = cross_entropy,
    ):
        self.model, self.plan, self.examples = model, plan, examples
        self.objective = objective
        self.device = next(model.parameters()).device
        by_length = sorted(examples, key=lambda example: example.length)
        if plan.activation_budget < 1:  # memory is short, and passes of training hold most of it
            plan = replace(plan, micro_batch_size=max(1, plan.micro_batch_size // 2))
        passes = [[e for _, e in part] for part in split_step(by_length, plan)]
        self.shape = plan.shape([part for part in passes if part] or [by_length[:1]])
        self.batches = [lay_out(part, plan.prefix, self.shape).to(self.device) for part in passes]
        self.graph: Graph[torch.Tensor] | None = None
        if plan.recorded and passes:
            self.record(beside)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        self.model.eval()
        compute = self.graph or self.compute
        summed = torch.zeros((), dtype=widest_float(self.device), device=self.device)
        for batch in self.batches:
            summed += compute(list(vars(batch).values())).to(summed.dtype)
        distributed.all_reduce_sum([summed])
        total = summed.item()
        return {
            "loss": round(total / sum(len(e.completion) for e in self.examples), 4),
            "loss_per_character": round(total / sum(e.characters for e in self.examples), 4),
        }

    def compute(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        batch, shared = Batch(*tensors), self.plan.shared
        with uncompiled(self.model), behind_prefix(self.model) if shared else nullcontext():
            return summed_loss(
                self.model,
                batch,
                self.shape,
                self.plan.dtype,
                shared=shared,
                objective=self.objective,
            )

    @torch.no_grad()
    def record(self, beside: Graph[torch.Tensor] | None) -> None:
        self.model.eval()
        inputs = [tensor.clone() for tensor in vars(self.batches[0]).values()]
        expected = warm_up(self.compute, inputs)
        try:
            self.graph = Graph(self.compute, inputs, beside)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            warn_fallback("validation without a CUDA graph, which would be faster", error)
            return
        found = self.graph(inputs)
        if not torch.allclose(found, expected, rtol=1e-3):
            print("validation without a CUDA graph, which would be faster: its loss would be off")
            self.graph = None
