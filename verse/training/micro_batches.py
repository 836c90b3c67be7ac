"""Passes of poems through the model, forward and backward: laid out, compiled and recorded.

The fastest way that a machine allows is tried first, and a line says where it must give way:
decoder layers compiled, which keep the share of their activations that the plan says and compute
the others again in the backward pass (PyTorch's activation memory budget), recorded as a CUDA
graph. Without a compiler PyTorch's own checkpointing takes its place. All ways give the same
numbers but for rounding.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
import torch._inductor.config
from peft.tuners.lora import ParamWrapper
from torch import nn
from transformers import PreTrainedModel

from verse.files import cache_dir
from verse.model import distributed
from verse.model.dropout import masks_of
from verse.model.encoding import Example, positions
from verse.model.float32 import in_recomputation
from verse.model.graphs import Graph, warm_up, warn_fallback
from verse.model.layers import decoder_layers
from verse.model.memory import HELD, MemoryPlan
from verse.training.flat_params import FlatParams
from verse.training.loss import Objective, as_rows, behind_prefix, cross_entropy, summed_loss
from verse.training.packing import Batch, Shape, lay_out, shape_of, shared_prefix

WORTH_COMPILING = 5e14  # weights times tokens of a training that repays the time to compile
CACHED = 0.1  # of it, where the compiled code is found


@dataclass(frozen=True)
class Plan:
    """How poems go through the model; it changes speed and memory, not the result."""

    prefix: list[int]
    """Token ids that all prompts begin with, computed once a pass."""
    dtype: torch.dtype
    micro_batch_size: int
    """Poems in one pass of a process, at most."""
    activation_budget: float = 1.0
    """Share of the activations that is kept for the backward pass."""
    compiled: bool = False
    recorded: bool = False
    """As a CUDA graph."""
    shared: bool = True
    """The prefix is computed once a pass; else once a poem, for models that know no other way."""
    positions: int | None = None
    """Places that the model has for a text; None without a bound."""
    sharded: bool = False
    """Each process has a part of the model, so that all must make equally many passes."""

    def shape(self, passes: list[list[Example]]) -> Shape:
        """Of any of the passes; rows of padding have no more places than the model."""
        return shape_of(passes, self.prefix, places=None if self.shared else self.positions)


def choose_plan(
    way: MemoryPlan,
    model: PreTrainedModel,
    dtype: torch.dtype,
    examples: list[Example],
    steps: list[list[Example]],
) -> Plan:
    """The plan for a way to fit memory.

    examples: all that are trained or validated on. steps: the poems of every step.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    plan = Plan(
        shared_prefix(examples),
        dtype,
        way.micro_batch_size,
        way.activation_budget,
        positions=positions(model.config),
        recorded=on_gpu and not way.sharded,  # weights that come and go cannot be recorded
        sharded=way.sharded,
    )
    # PEFT adds the experts' adapters in Python, where no compiler computes them twice.
    kept = plan.activation_budget == 1 or not any(
        isinstance(m, ParamWrapper) for m in model.modules()
    )
    return replace(plan, compiled=on_gpu and kept and worth_compiling(model, plan, steps))


def worth_compiling(model: PreTrainedModel, plan: Plan, steps: list[list[Example]]) -> bool:
    """Whether a training is long enough to repay the compiler, or finds the code that it made for
    one before; the same for any number of processes."""
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    weights = sum(layer.in_features * layer.out_features for layer in linear)
    tokens = sum(poem.length - len(plan.prefix) for step in steps for poem in step)
    known = distributed.broadcast(made_before(model, plan, shape_of_steps(steps, plan)).exists())
    return weights * tokens > WORTH_COMPILING * (CACHED if known else 1)


def made_before(model: PreTrainedModel, plan: Plan, shape: Shape) -> Path:
    """A file that is there once layers have been compiled for such a pass."""
    config = model.config.get_text_config()
    facts = (config.to_json_string(), plan.dtype, plan.activation_budget, shape, torch.__version__)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    name = hashlib.sha256(repr((*facts, gpu)).encode()).hexdigest()
    return compiled_code() / name[:32]


def compiled_code() -> Path:
    """Where the next training finds what the compiler made."""
    default = str(cache_dir() / "compiled")
    return Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", default))


def shape_of_steps(steps: list[list[Example]], plan: Plan) -> Shape:
    """The shape of all passes of all processes, so that what one has tried holds for the others."""
    every = [
        [e for _, e in part]
        for step in steps
        for rank in range(distributed.size())
        for part in split_step(step, plan, rank)
    ]
    return plan.shape([part for part in every if part])


def split_step(
    step: Sequence[Example], plan: Plan, rank: int | None = None
) -> Iterator[list[tuple[int, Example]]]:
    """The passes of a process, this one by itself, over its share of a step: at most
    `plan.micro_batch_size` poems each, by their numbers in the step.

    The poems come sorted by length; dealt out in turn, they make shares and passes of about one
    length. A model that is spread over the processes wants equally many passes of each: where a
    share is short, the last ones are empty.
    """
    rank = distributed.rank() if rank is None else rank
    share = list(enumerate(step))[rank :: distributed.size()]
    largest = -(-len(step) // distributed.size())
    count = -(-(largest if plan.sharded else len(share)) // plan.micro_batch_size)
    for number in range(count):
        yield share[number::count]


class MicroBatches:
    """All passes of a training, of one shape."""

    def __init__(
        self,
        model: PreTrainedModel,
        plan: Plan,
        steps: list[list[Example]],
        trained: FlatParams,
        objective: Objective = cross_entropy,
    ):
        """steps: the poems of every step. trained: the model's weights, which get the
        gradients."""
        self.model, self.plan, self.trained, self.objective = model, plan, trained, objective
        self.device = next(model.parameters()).device
        self.shape = shape_of_steps(steps, plan)
        self.masks = masks_of(model)
        self.graph: Graph[torch.Tensor] | None = None
        if self.masks:
            self.masks.reserve(self.tokens, plan.dtype, self.device)
        if plan.compiled or plan.recorded:
            self.record(steps[0])
        elif plan.activation_budget < 1:
            recompute(model, HELD[plan.activation_budget])

    def close(self) -> None:
        """Let the model be as it was before."""
        self.graph = None
        uncompile(self.model)
        self.model.gradient_checkpointing_disable()

    @property
    def tokens(self) -> int:
        """That go through the linear layers in a pass."""
        if self.plan.shared:
            return self.shape.prefix + self.shape.tokens
        return self.shape.poems * (self.shape.shared + self.shape.longest)

    def lay_out(self, step: list[Example]) -> list[Batch]:
        """The passes of a step, on the CPU."""
        return [
            lay_out([e for _, e in part], self.plan.prefix, self.shape, [n for n, _ in part])
            for part in split_step(step, self.plan)
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
        *tensors, step, factor = inputs
        batch = Batch(*tensors)
        if self.masks:
            places = batch.dropout_ids
            if not self.plan.shared:
                places = as_rows(places, batch, self.shape).flatten()
            self.masks.draw(places, step)
        shared, dtype = self.plan.shared, self.plan.dtype
        with behind_prefix(self.model) if shared else nullcontext():
            loss = summed_loss(
                self.model, batch, self.shape, dtype, shared=shared, objective=self.objective
            )
            gradients = torch.autograd.grad(
                loss * factor, self.trained.parameters, allow_unused=True, materialize_grads=True
            )
        self.trained.add(gradients)
        return loss.detach()

    def record(self, step: list[Example]) -> None:
        """Compile and record, as far as the machine and the model allow."""
        rows = step[: self.shape.poems]
        batch = lay_out(rows, self.plan.prefix, self.shape).to(self.device)
        zero = torch.zeros((), device=self.device)
        inputs = [*vars(batch).values(), zero.int(), zero]
        self.model.train()
        if self.plan.recorded:
            torch._C._cuda_clearCublasWorkspaces()  # of other streams, 32 MiB each
        self.warm_up(inputs)
        try:
            if self.plan.recorded:
                self.graph = Graph(self.compute, inputs, copies=2)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # whatever waits for the GPU, or is told to
            print("without a CUDA graph, which would be faster: its code waits for the GPU")
            self.plan = replace(self.plan, recorded=False)
        self.trained.clear()

    def warm_up(self, inputs: Sequence[torch.Tensor]) -> None:
        if self.plan.compiled:
            compiled_code().mkdir(parents=True, exist_ok=True)
            torch._functorch.config.activation_memory_budget = self.plan.activation_budget
            compile_layers(self.model)
            try:
                warm_up(self.compute, inputs)
                made_before(self.model, self.plan, self.shape).touch()
                return
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a compiler may raise anything
                warn_fallback("layers are not compiled, which would be faster", error)
                uncompile(self.model)
                self.trained.clear()
        if self.plan.activation_budget < 1:
            recompute(self.model, HELD[self.plan.activation_budget])
        if self.plan.recorded:
            warm_up(self.compute, inputs)


def accumulate_gradients(
    passes: MicroBatches, laid_out: list[Batch], tokens: int, scaler: torch.amp.GradScaler, key: int
) -> torch.Tensor:
    """Add the gradients of this process's share of a step, pass by pass.

    tokens: that the whole step predicts. key: what dropout hashes, 31 bits. Returns the share's
    part of the step's mean loss per token in nats, a scalar.
    """
    passes.model.train()
    # Filled in, since a copy from the CPU would wait for the step before.
    mean = torch.full((), 1 / tokens, device=passes.device)
    step = torch.full((), key, dtype=torch.int32, device=passes.device)
    total = torch.zeros((), device=passes.device)
    for batch in laid_out:
        total += passes(batch, step, scaler.scale(mean)) * mean
    return total


def reduce_gradients(
    passes: MicroBatches,
    loss: torch.Tensor,
    scaler: torch.amp.GradScaler,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Add up what the processes have, so that the optimizer finds the gradient of the mean loss."""
    distributed.all_reduce_sum([passes.trained.gradient, loss])
    scaler.unscale_(optimizer)


def compile_layers(model: PreTrainedModel, backend: Any = "inductor") -> None:
    """Compile what the layers do, but not their hooks, by which a model that is spread over
    processes gathers their weights.

    One program does for all layers: the input of the first wants a gradient too, as that of the
    others. It is kept with its backward pass, in spite of the functions that have one of their own
    (of attention, of bitsandbytes), whose graphs are part of what it is found by.
    """
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    model.enable_input_require_grads()
    # With padded strides Inductor computes a softmax in a loop that reads back what other threads
    # have stored, and nothing makes them wait: docs/proof.md.
    torch._inductor.config.comprehensive_padding = False
    for layer in decoder_layers(model):
        layer.forward = torch.compile(layer.forward, dynamic=False, backend=backend)


def uncompile(model: PreTrainedModel) -> None:
    """Also let embeddings want no gradient any more: some models change them in place."""
    model.disable_input_require_grads()
    for layer in decoder_layers(model):
        layer.__dict__.pop("forward", None)


def recompute(model: PreTrainedModel, held: float = 0.0) -> None:
    """Compute activations twice by PyTorch's checkpointing; dropout needs no generator's state.

    held: share of the layers that keep theirs, the last ones, whose turn comes first.
    """
    settings = {"use_reentrant": False, "preserve_rng_state": False}
    model.gradient_checkpointing_enable(settings | {"context_fn": in_recomputation})
    layers = decoder_layers(model)
    for layer in list(layers)[len(layers) - int(held * len(layers)) :]:
        vars(layer)["gradient_checkpointing"] = False


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
