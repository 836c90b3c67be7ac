"""Choose between fast and low memory by what a model needs and what the GPU has free.

fast: the 4-bit weights are expanded once, every activation is kept for the backward pass, and
the poems of a step go through the model together. low: the weights stay 4-bit, activations
are computed twice, and a step is cut into small passes: slower, the same loss.
"""

from typing import Literal

import torch
from torch import nn

from verse.errors import UserError
from verse.model.loading import linear_layers, load_skeleton
from verse.params import Model

GIB = 2**30
Mode = Literal["fast", "low"]
Wanted = Literal["auto", "fast", "low"]
PASS_TOKENS = 1024  # of a pass that uses the GPU well; low memory takes no longer ones
GENERATED_TOKENS = 16 * 256  # that generation should have room for: 16 poems with their prompts
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: 4 bits and its share of the scales


def for_training(
    settings: Model,
    wanted: Wanted,
    device: torch.device,
    dtype: torch.dtype,
    *,
    poems: int,
    tokens: int,
) -> tuple[Mode, str]:
    """How to train, and why, in words. A process takes `poems` a step, of up to `tokens` each.

    fast is chosen where a pass of `PASS_TOKENS` fits; a step that needs several takes several.
    Raises UserError if the model does not fit the GPU in either way.
    """
    if device.type == "cpu":
        return on_cpu(wanted)
    model = load_skeleton(settings)
    tokens = max(tokens, min(poems * tokens, PASS_TOKENS))
    fast = weight_bytes(model, dtype, four_bit=False)
    fast += training_bytes(model, tokens, checkpointing=False)
    low = weight_bytes(model, dtype, four_bit=settings.quantization == "nf4")
    low += training_bytes(model, tokens, checkpointing=True)
    return choose(wanted, fast, low, free_bytes(device))


def for_generation(
    settings: Model, wanted: Wanted, device: torch.device, dtype: torch.dtype
) -> tuple[Mode, str]:
    """The same for generation, of at least a few answers at once."""
    if device.type == "cpu":
        return on_cpu(wanted)
    model = load_skeleton(settings)
    fast = weight_bytes(model, dtype, four_bit=False) + generation_bytes(model, GENERATED_TOKENS)
    low = weight_bytes(model, dtype, four_bit=settings.quantization == "nf4")
    low += generation_bytes(model, GENERATED_TOKENS)
    return choose(wanted, fast, low, free_bytes(device))


def on_cpu(wanted: Wanted) -> tuple[Mode, str]:
    if wanted == "low":
        return "low", "but 4-bit weights are expanded on a CPU"
    return "fast", "as always on a CPU" if wanted == "auto" else "as train.memory says"


def choose(wanted: Wanted, fast: float, low: float, free: float) -> tuple[Mode, str]:
    """fast where the bytes that it needs are free, low where it must be, and why, in words."""
    if wanted != "auto":
        return wanted, "as train.memory says"
    if fast <= free:
        return "fast", f"which needs about {gib(fast)} of the {gib(free)} GiB that are free"
    if low <= free:
        return "low", f"since fast needs about {gib(fast)} GiB and {gib(free)} are free"
    raise UserError(
        f"model.name: about {gib(low)} GiB of GPU memory are needed even with train.memory low, "
        f"and {gib(free)} are free: set model.quantization to nf4, or take a smaller model or a "
        "larger GPU (a model is never spread over several)"
    )


def free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def gib(count: float) -> str:
    return f"{count / GIB:.1f}"


def weight_bytes(model: nn.Module, dtype: torch.dtype, *, four_bit: bool) -> float:
    """Memory of the base model, which may be on the meta device, loading included."""
    linear = [layer.weight.numel() for layer in linear_layers(model).values()]
    everything = sum(weight.numel() for weight in model.parameters())
    if not four_bit:  # and one layer being rounded
        return everything * dtype.itemsize + 4 * max(linear, default=0)
    kept = (everything - sum(linear)) * dtype.itemsize
    return sum(linear) * NF4_BYTES + kept + 3 * dtype.itemsize * max(linear, default=0)


def training_bytes(model: nn.Module, tokens: int, *, checkpointing: bool) -> float:
    """Memory of a pass over so many tokens, of which half are predicted.

    An estimate from above, by a 7B Mistral with adapters on all linear layers: without
    checkpointing it took 22.8 GiB with 832 tokens and 38.8 with 3,300, weights included.
    """
    config = model.config.get_text_config()
    width, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * width
    inner = max(inner) if isinstance(inner, list) else inner
    layer = tokens * 2 * (13 * width + 5 * inner)
    outputs = tokens // 2 * config.vocab_size * 14  # logits in two precisions, and their gradients
    if checkpointing:
        return layer + layers * tokens * width * 4 + outputs + GIB
    return layers * layer + outputs + 3 * GIB


def generation_bytes(model: nn.Module, tokens: int) -> float:
    """Memory of the keys and values of so many tokens, and of what else generation needs."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * 2 * config.num_hidden_layers * heads * width * tokens + GIB
