"""Passes of poems through the model, forward and backward: laid out, compiled and recorded.

The fastest way that a machine allows is tried first, and a line says where it must give way:
decoder layers compiled, which keep the share of their activations that the plan says and compute
the others again in the backward pass (PyTorch's activation memory budget), recorded as a CUDA
graph. Without a compiler PyTorch's own checkpointing takes its place. All ways give the same
numbers but for rounding.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
from transformers import PreTrainedModel

from verse.files import cache_dir
from verse.model import distributed
from verse.model.dropout import masks_of
from verse.model.encoding import Example
from verse.model.graphs import Graph, told, warm_up
from verse.model.loading import decoder_layers, linear_layers
from verse.model.memory import Way
from verse.training.loss import as_rows, shares_prefix, summed_loss
from verse.training.packing import Batch, lay_out, shape_of, shared_prefix
from verse.training.trained import Trained

WORTH_COMPILING = 5e14  # weights times tokens of a training that repays the time to compile


@dataclass(frozen=True)
class Plan:
    """How poems go through the model; it changes speed and memory, not the result."""

    prefix: list[int]
    """Token ids that all prompts begin with, computed once a pass."""
    dtype: torch.dtype
    poems: int
    """In one pass of a process, at most."""
    kept: float = 1.0
    """Share of the activations that is kept for the backward pass."""
    compiled: bool = False
    shared: bool = True
    """The prefix is computed once a pass; else once a poem, for models that know no other way."""
    sharded: bool = False
    """Each process has a part of the model, so that all must make equally many passes."""


def choose_plan(
    way: Way, model: PreTrainedModel, dtype: torch.dtype, examples: list[Example], seen: int
) -> Plan:
    """The plan for a way to fit memory.

    examples: all that are trained or validated on. seen: how many poems this process trains on.
    """
    device = next(model.parameters()).device
    prefix = shared_prefix(examples)
    own = sum(e.length - len(prefix) for e in examples) / len(examples)
    weights = sum(layer.in_features * layer.out_features for layer in linear_layers(model).values())
    compiled = device.type == "cuda" and weights * seen * own > WORTH_COMPILING
    poems = examples[:2]
    shape = shape_of([poems], prefix)
    reason = shares_prefix(model, lay_out(poems, prefix, shape).to(device), shape, dtype)
    if reason:
        print(f"each poem with its own prefix, which is slower: {reason}", flush=True)
    return Plan(prefix, dtype, way.poems, way.kept, compiled, not reason, way.sharded)


def parts(step: Sequence[Example], plan: Plan) -> Iterator[list[tuple[int, Example]]]:
    """The passes of this process over its share of a step: at most `plan.poems` poems each, by
    their numbers in the step.

    The poems come sorted by length; dealt out in turn, they make shares and passes of about one
    length. A model that is spread over the processes wants equally many passes of each: where a
    share is short, the last ones are empty.
    """
    share = list(enumerate(step))[distributed.rank() :: distributed.size()]
    largest = -(-len(step) // distributed.size())
    count = -(-(largest if plan.sharded else len(share)) // plan.poems)
    for number in range(count):
        yield share[number::count]


class Passes:
    """All passes of a training, of one shape."""

    def __init__(
        self, model: PreTrainedModel, plan: Plan, steps: list[list[Example]], trained: Trained
    ):
        """steps: the poems of every step, those of other processes too. trained: the model's
        weights, which get the gradients."""
        self.model, self.plan, self.trained = model, plan, trained
        self.device = next(model.parameters()).device
        every = [[e for _, e in part] for step in steps for part in parts(step, plan)]
        filled = [part for part in every if part] or [step[:1] for step in steps[: len(every)]]
        self.shape = shape_of(filled, plan.prefix) if every else None
        self.masks = masks_of(model)
        self.graph: Graph[torch.Tensor] | None = None
        if self.shape is None:
            return
        if self.masks:
            self.masks.reserve(self.tokens, plan.dtype, self.device)
        if self.device.type == "cuda":
            self.record(next(step for step in steps if list(parts(step, plan))))
        elif plan.kept < 1:
            recompute(model)

    @property
    def tokens(self) -> int:
        """That go through the linear layers in a pass."""
        assert self.shape
        if self.plan.shared:
            return self.shape.prefix + self.shape.tokens
        return self.shape.poems * (self.shape.shared + self.shape.longest)

    def lay_out(self, step: list[Example]) -> list[Batch]:
        """The passes of a step, on the CPU."""
        return [
            lay_out([e for _, e in part], self.plan.prefix, self.shape, [n for n, _ in part])
            for part in parts(step, self.plan)
            if self.shape
        ]

    def __call__(self, batch: Batch, step: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Add the gradients of the summed loss times `factor`; return the summed loss.

        step: () int32, what dropout hashes.
        """
        inputs = [
            *(t.to(self.device, non_blocking=True) for t in vars(batch).values()),
            step,
            factor,
        ]
        return self.graph(inputs) if self.graph else self.compute(inputs)

    def compute(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        assert self.shape
        *tensors, step, factor = inputs
        batch = Batch(*tensors)
        if self.masks:
            places = batch.places
            if not self.plan.shared:
                places = as_rows(places, batch, self.shape).flatten()
            self.masks.draw(places, step)
        shared, dtype = self.plan.shared, self.plan.dtype
        loss = summed_loss(self.model, batch, self.shape, dtype, shared=shared)
        weights = self.trained.parameters
        gradients = torch.autograd.grad(
            loss * factor, weights, allow_unused=True, materialize_grads=True
        )
        self.trained.add(gradients)
        return loss.detach()

    def record(self, step: list[Example]) -> None:
        """Compile and record, as far as the machine and the model allow."""
        batch = self.lay_out(step)[0].to(self.device)
        zero = torch.zeros((), device=self.device)
        inputs = [*vars(batch).values(), zero.int(), zero]
        self.model.train()
        self.warm_up(inputs)
        try:
            if not self.plan.sharded:  # weights that come and go cannot be recorded
                self.graph = Graph(self.compute, inputs, copies=2)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            told("without a CUDA graph, which would be faster", error)
        self.trained.clear()

    def warm_up(self, inputs: Sequence[torch.Tensor]) -> None:
        if self.plan.compiled:
            # Where the next training finds the compiled code.
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
            torch._functorch.config.activation_memory_budget = self.plan.kept
            compile_layers(self.model)
            try:
                return warm_up(self.compute, inputs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a compiler may raise anything
                told("layers are not compiled, which would be faster", error)
                for layer in decoder_layers(self.model):
                    layer.__dict__.pop("forward")
                self.trained.clear()
        if self.plan.kept < 1:
            recompute(self.model)
        warm_up(self.compute, inputs)


def compile_layers(model: PreTrainedModel, backend: Any = "inductor") -> None:
    """Compile what the layers do, but not their hooks, by which a model that is spread over
    processes gathers their weights.

    One program does for all layers: the input of the first wants a gradient too, as that of the
    others. It is kept with its backward pass, in spite of the functions that have one of their own
    (of attention, of bitsandbytes), whose graphs are part of what it is found by.
    """
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    model.enable_input_require_grads()
    for layer in decoder_layers(model):
        layer.forward = torch.compile(layer.forward, dynamic=False, backend=backend)


def recompute(model: PreTrainedModel) -> None:
    """Compute activations twice by PyTorch's checkpointing; dropout needs no generator's state."""
    settings = {"use_reentrant": False, "preserve_rng_state": False}
    model.gradient_checkpointing_enable(settings)


@contextmanager
def uncompiled(model: PreTrainedModel) -> Iterator[None]:
    """Run the layers as they are: compiling them once more, for evaluation, takes too long."""
    layers = decoder_layers(model)
    compiled = [layer.__dict__.pop("forward", None) for layer in layers]
    try:
        yield
    finally:
        for layer, forward in zip(layers, compiled, strict=True):
            if forward:
                layer.forward = forward
