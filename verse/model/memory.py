"""Ways to fit a model into memory: one ladder, best way first, for training and generation.

A GPU that has room holds plain weights and keeps every activation for the backward pass. With
less room the weights stay in 4 bits and the input embeddings in main memory, then activations are
computed twice, then fewer poems go through the model together: slower each time, the same result
but for the last bits. What no GPU
can hold is spread over those of all processes (`verse.model.sharding`). `run_with_oom_fallback`
starts on the first plan whose estimate fits, and goes on to the next where memory runs out.
"""

import ctypes
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from verse.errors import TooLargeError, UserError
from verse.model import distributed
from verse.model.layers import (
    decoder_layers,
    expert_weights,
    linear_layers,
    never_packed,
    outputs_first,
    own_embeddings,
)

GIB = 2**30
PASS_TOKENS = 1024  # of a pass that uses a GPU well; a way that has no room for them comes last
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: 4 bits and its share of the scales
OVERHEAD = 0.3 * GIB  # of kernels, of a layer's weight as plain numbers
IN_PIECES = 1.05  # times the activations that are held, for what is left between them
CUDA_CONTEXT, CUDA_LATER = 0.6 * GIB, 0.25 * GIB
"""What CUDA itself takes of a GPU: at the start, and for kernels and recordings that come later."""
TRAINED_BYTES = 18  # of a number in float32: with its gradient, AdamW's two and a copy in less
READING = 0.6 * GIB  # of prompts, a few thousand tokens at a time
HELD = {1.0: 1.0, 0.75: 0.59, 0.5: 0.44, 0.0: 0.0}
"""By PyTorch's activation memory budget, the share of a layer's activations that its partitioner
holds: counted on a compiled layer of Mistral with adapters. At 0.75 no matrix product of the
weights is computed twice, at 0.5 only small ones."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
T = TypeVar("T")


@dataclass(frozen=True)
class MemoryPlan:
    """How a model is held, and how many poems go through it together."""

    dequantized: bool = True
    """The weights' 4-bit values are held as plain numbers: faster, four times as large."""
    activation_budget: float = 1.0
    """Share of the activations that is kept for the backward pass; the rest is computed twice."""
    micro_batch_size: int = 1
    estimated_bytes: float = 0.0
    """Bytes, by an estimate from above."""
    sharded: bool = False
    """Each process holds a part of the weights."""
    output_apart: bool = False
    """The output layer is in main memory too, from where a GPU reads it in each pass."""

    def __str__(self) -> str:
        weights = "plain weights" if self.dequantized else "4-bit weights"
        activations = (
            ""
            if self.activation_budget == 1
            else f", {self.activation_budget:.0%} of the activations kept"
        )
        spread = f" spread over {distributed.size()} processes" if self.sharded else ""
        apart = ", the output layer in main memory" if self.output_apart else ""
        return f"{weights}{apart}{spread}{activations}, {self.micro_batch_size} at once"


@dataclass(frozen=True)
class Sizes:
    """What a model's memory is reckoned from."""

    plain: float
    """Bytes of the weights as plain numbers."""
    four_bit: float
    """The same with the linear layers and experts in 4 bits, and without the input embeddings,
    which stay in main memory then (`layers.to_main_memory`)."""
    loading: float
    """Bytes beside the weights while the largest one is rounded."""
    block: float
    """Bytes of a decoder layer's weights as plain numbers."""
    ends: float
    """The same of what belongs to no decoder layer, such as the embeddings."""
    layers: int
    width: int
    inner: int
    vocabulary: int
    cached: int
    """Bytes of one token's keys and values in all layers."""
    experts: float = 0.0
    """Bytes of a decoder layer's experts as plain numbers; PEFT makes a copy to adapt them."""
    output: float = 0.0
    """Bytes of the output layer, if it has a weight of its own."""
    ranks: int = 0
    """Numbers of the adapters of all linear layers and experts, for each rank."""


def keep_freed() -> None:
    """Let the C library keep main memory that tensors free, for the next ones.

    By itself glibc gives it back, and fresh pages take a twentieth of a small model's time on a
    CPU. Other C libraries are left as they are. mallopt(3): no blocks of their own for large
    tensors, and nothing trimmed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def sizes(
    model: PreTrainedModel, dtype: torch.dtype, quantization: Literal["nf4", "none"]
) -> Sizes:
    """The sizes of a model, which may be on the meta device."""
    linear = linear_layers(model)
    unpacked = never_packed(model) if quantization == "nf4" else []
    layers = [layer for layer in linear.values() if isinstance(layer, nn.Linear)]
    packed = [outputs_first(linear[name]).numel() for name in linear.keys() - unpacked]
    found = expert_weights(model)
    experts = [weight.numel() for weight in found.values()]
    everything = sum(weight.numel() for weight in model.parameters())
    largest = max(packed + experts, default=0)
    plain, rounded = everything * dtype.itemsize, sum(packed) + sum(experts)
    apart = own_embeddings(model)
    held = everything - rounded - (apart.weight.numel() if apart else 0)
    four_bit = held * dtype.itemsize + rounded * NF4_BYTES
    blocks, depth = decoder_layers(model), layers_run(model)
    config = model.config.get_text_config()
    vocabulary, narrowest = model.get_input_embeddings().weight.shape
    width = getattr(config, "hidden_size", None) or narrowest
    inner = getattr(config, "intermediate_size", None) or 4 * width
    in_blocks = sum(weight.numel() for weight in blocks.parameters())
    return Sizes(
        plain=plain,
        four_bit=four_bit if quantization == "nf4" else plain,
        loading=3 * largest * dtype.itemsize if quantization == "nf4" else 0.0,
        block=in_blocks / len(blocks) * dtype.itemsize,
        ends=(everything - in_blocks) * dtype.itemsize,
        layers=depth,
        width=width,
        inner=max(inner) if isinstance(inner, list) else inner,
        vocabulary=vocabulary,
        cached=2 * cached_numbers(model),
        experts=sum(experts) / len(blocks) * dtype.itemsize,
        output=apart.weight.numel() * dtype.itemsize if apart else 0.0,
        ranks=sum(layer.in_features + layer.out_features for layer in layers)
        + sum(
            # PEFT gives the two that are held as one twice the rank.
            weight.shape[0] * sum(weight.shape[1:]) * (2 if "gate_up" in name else 1)
            for name, weight in found.items()
        ),
    )


def layers_run(model: PreTrainedModel) -> int:
    """How many layers a token goes through: some models run theirs several times."""
    config = model.config.get_text_config()
    return max(len(decoder_layers(model)), getattr(config, "num_hidden_layers", 0))


def cached_numbers(model: PreTrainedModel) -> int:
    """How many one token's keys and values have in all layers."""
    layers = decoder_layers(model)
    named = ((name.rpartition(".")[2], module) for name, module in layers.named_modules())
    found = [m.out_features for n, m in named if n in ("k_proj", "v_proj") and hasattr(m, "weight")]
    if found:
        return sum(found) * layers_run(model) // len(layers)
    config = model.config.get_text_config()  # of a model that has them in a layer with others
    heads = getattr(config, "num_attention_heads", 0)  # none: a state takes their place
    keys = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    parts = (getattr(config, f"qk_{part}_head_dim", None) or 0 for part in ("nope", "rope"))
    head = max(head, sum(parts))  # DeepSeek's keys, in two parts
    return 2 * layers_run(model) * keys * head


def share_in_four_bits(model: PreTrainedModel) -> float:
    """Of the weights of a model's layers, those that rounding takes."""
    every = {id(weight): weight.numel() for weight in decoder_layers(model).parameters()}
    rounded = {id(layer.weight) for layer in linear_layers(model).values()}
    rounded |= set(map(id, expert_weights(model).values()))
    return sum(size for weight, size in every.items() if weight in rounded) / sum(every.values())


def plans_for_training(
    model: Sizes, poems: int, tokens: Callable[[int], tuple[float, float]], rank: int
) -> list[MemoryPlan]:
    """Ways to take a step of so many poems in one or more passes.

    tokens: about how many go through the layers with so many poems at once, and how many of them
    through the output layer. rank: of the adapters.
    """
    plain_only = model.four_bit == model.plain
    kinds = [(True, 1.0), *((plain_only, budget) for budget in HELD)]
    if model.experts:  # of which a layer keeps all or none
        kinds = [(True, 1.0), (True, 0.0), (plain_only, 0.0)]
    own = ladder(
        list(dict.fromkeys(kinds)),
        poems,
        lambda together: tokens(together)[0],
        lambda dequantized, budget, together: (
            (model.plain if dequantized else model.four_bit)
            + max(
                model.loading,
                training_bytes(model, *tokens(together), budget)
                + model.ranks * rank * TRAINED_BYTES,
            )
        ),
    )
    return own + with_output_apart(own, model) + spread(own, model)


def plans_for_generation(model: Sizes, prompts: int, tokens: int) -> list[MemoryPlan]:
    """Ways to answer up to so many prompts at once. tokens: of a prompt's own and its answer."""
    row = tokens * model.cached + model.vocabulary * 12  # scores in two precisions, and a copy
    own = ladder(
        ((True, 1.0), (False, 1.0)) if model.four_bit < model.plain else ((True, 1.0),),
        prompts,
        lambda together: together * tokens,
        lambda dequantized, _, together: (
            (model.plain if dequantized else model.four_bit + 2 * model.experts)
            + max(model.loading, together * row + OVERHEAD + READING)
        ),
    )
    return own + with_output_apart(own, model) + spread(own, model)


def with_output_apart(plans: list[MemoryPlan], model: Sizes) -> list[MemoryPlan]:
    """With the output layer in main memory, if it has its own weight, what needs less than `plans`.

    It goes there when the model has been loaded, until when the input embeddings take its bytes;
    of a weight that is rounded to stay in 4 bits there is one plain copy.
    """
    least, loading = plans[-1], model.four_bit + model.output + model.loading / 2
    apart = [
        replace(
            plan,
            output_apart=True,
            estimated_bytes=max(plan.estimated_bytes - model.output, loading),
        )
        for plan in plans
        if not plan.dequantized and plan.activation_budget == least.activation_budget
    ]
    return [plan for plan in apart if plan.estimated_bytes < least.estimated_bytes]


def spread(plans: list[MemoryPlan], model: Sizes) -> list[MemoryPlan]:
    """The ways that keep least, with each process holding a part of the weights.

    It also has whole what belongs to no layer, and of the layers one that it loads, or the two or
    three that compute or come next.
    """
    parts = distributed.size()
    if parts == 1:
        return []
    least = min(plan.activation_budget for plan in plans)

    def needed(plan: MemoryPlan) -> float:
        weights = model.plain if plan.dequantized else model.four_bit
        gathered = model.ends + (3 if plan.dequantized else 1.5) * model.block
        return plan.estimated_bytes - weights + weights / parts + gathered

    return [
        replace(plan, estimated_bytes=needed(plan), sharded=True)
        for plan in plans
        if plan.activation_budget == least
        and (plan.dequantized or not model.experts)  # which are spread as plain numbers
    ]


def ladder(
    kinds: Sequence[tuple[bool, float]],
    poems: int,
    tokens: Callable[[int], float],
    needed: Callable[[bool, float, int], float],
) -> list[MemoryPlan]:
    """Every kind with all poems at once, in two passes and so on, while a pass is long enough."""

    def at_once() -> Iterator[int]:
        passes = 1
        while passes < poems:
            yield -(-poems // passes)
            passes += -(-passes // 4)
        yield 1

    return [
        MemoryPlan(dequantized, budget, together, needed(dequantized, budget, together))
        for dequantized, budget in kinds
        for together in dict.fromkeys(at_once())
        if together == poems
        or tokens(together) >= PASS_TOKENS
        or (dequantized, budget) == kinds[-1]
    ]


def training_bytes(model: Sizes, tokens: float, predicted: float, budget: float) -> float:
    """Memory of a pass over so many tokens that predicts so many.

    By a 7B Mistral with adapters on all linear layers.
    """
    layer = tokens * 2 * (14 * model.width + 4.7 * model.inner)
    inputs = model.layers * tokens * 2 * model.width
    outputs = predicted * model.vocabulary * 12  # logits in two precisions, and their gradients
    # With their adapters added, in float32 in the proof, and the gradient of that.
    experts = (2 * HELD[budget] * model.layers + 3) * model.experts
    held = HELD[budget] * model.layers * IN_PIECES
    return (held + 1) * layer + experts + inputs + outputs + OVERHEAD


def available_bytes(device: torch.device, wanted: Literal["auto"] | float) -> float:
    """Bytes of memory to use: what is free, or the GiB that machine.memory says if fewer; of
    several processes, those of the one that has least.

    On a GPU the latter is a promise: PyTorch and CUDA itself will hold no more, as on a card of
    that size. On a CPU it must be a number.
    """
    free = math.inf if wanted == "auto" else wanted * GIB
    if device.type == "cuda":
        unused, total = torch.cuda.mem_get_info(device)
        free = max(0.0, min(free - CUDA_CONTEXT, unused) - CUDA_LATER)
        if wanted != "auto":
            torch.cuda.set_per_process_memory_fraction(min(1.0, free / total), device)
    if device.type == "mps":  # of the memory that the CPU has too
        total = torch.mps.recommended_max_memory()
        free = min(free, total - torch.mps.driver_allocated_memory())
        if wanted != "auto":
            torch.mps.set_per_process_memory_fraction(min(1.0, free / total))
    return min(distributed.gather([free]))


def fitting(plans: list[MemoryPlan], available: float) -> list[MemoryPlan]:
    """The ways from the first that should fit on. Raises TooLargeError if none does."""
    for number, plan in enumerate(plans):
        if plan.estimated_bytes <= available:
            return plans[number:]
    least = min(plans, key=lambda plan: plan.estimated_bytes)
    raise TooLargeError(
        f"model.name: about {gib(least.estimated_bytes)} GiB of memory are needed, and "
        f"{gib(available)} may be used: set model.quantization to nf4, or take a smaller model, a "
        "larger GPU or more GPUs, over which it is spread then"
    )


def run_with_oom_fallback(plans: list[MemoryPlan], work: Callable[[MemoryPlan], T], out: str) -> T:
    """`work` in the first way that memory allows; each starts anew where the one before ended.

    out: what to do if memory is short even in the last way, for the UserError that says so.
    """
    for plan, following in zip(plans, [*plans[1:], None], strict=True):
        try:
            return work(plan)
        except RuntimeError as error:  # on Apple's GPUs it is no OutOfMemoryError
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            if not (out_of_memory or str(error).startswith("MPS backend out of memory")):
                raise
            if following is None or plan.sharded:  # others wait for this process's part
                raise UserError(f"out of GPU memory: {out}") from None
            error.__traceback__ = None  # whose frames hold the model
        gc.collect()
        (torch.mps if torch.backends.mps.is_available() else torch.cuda).empty_cache()
        print(f"out of GPU memory: {following} from here on", flush=True)
    raise AssertionError("a ladder has a way")


def gib(count: float) -> str:
    return f"{count / GIB:.1f}"
