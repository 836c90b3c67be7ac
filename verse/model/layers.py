"""A model's layers, and the rounding of their weights to NF4.

Which layers QLoRA rounds is what Transformers with bitsandbytes takes, and the experts of a
mixture, whose weights are one tensor.
"""

import importlib
import os
import re
from contextlib import suppress
from inspect import getsource, isfunction
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from verse.errors import UserError
from verse.model.graphs import warn_fallback

LIBRARY = re.compile(r"builtins$|torch\.|transformers\.(?!models\.)")
"""Modules of classes that are no model's own."""


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of a model's layers: the largest one there is in what reads text.

    Raises UserError if it has none.
    """
    find: Any = getattr(model, "get_decoder", lambda: None)
    for part in (find() or model, model):
        lists = [m for m in part.modules() if isinstance(m, nn.ModuleList) and len(m)]
        if lists:
            return max(lists, key=lambda each: sum(w.numel() for w in each.parameters()))
    raise UserError("model.name: its config.json leaves it no layer: get the whole model anew")


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers that QLoRA quantizes: linear ones but the output layer.

    Transformers with bitsandbytes takes the same: Conv1D too, but no other class that is made from
    nn.Linear, such as a router.
    """
    output = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if (
            type(module) is nn.Linear or isinstance(module, Conv1D) or hasattr(module, "source_cls")
        )
        and module is not output
    }


def expert_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a mixture's experts that are one tensor, (experts, ., .), and no layer."""
    return {
        f"{name}.{own}": weight
        for name, module in model.named_modules()
        if "expert" in f"{name} {type(module).__name__}".lower()
        for own, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3
    }


def never_packed(model: nn.Module) -> list[str]:
    """The names of linear layers that bitsandbytes cannot hold in 4 bits: those whose weight is
    (inputs, outputs), as GPT-2's, and those whose weight the model's own code reads by itself, as
    Mamba's, some routers and DeepSeek's indexer do: it would find packed bytes."""
    modules = dict(model.named_modules())
    conv = [name for name, module in modules.items() if isinstance(module, Conv1D)]
    read = {kind: weights_read(kind) for kind in {type(module) for module in modules.values()}}
    return conv + [
        f"{name}.{own}"
        for name, module in modules.items()
        if getattr(module, "slow_but_exact", True)  # else Bloom's code does not come to it
        for own in sorted(read[type(module)])
        if isinstance(modules.get(f"{name}.{own}"), nn.Linear)
    ]


def weights_read(kind: type[nn.Module]) -> set[str]:
    """The names of layers in a kind of module whose `weight` its source reads."""
    models = [base for base in kind.__mro__ if not LIBRARY.match(base.__module__)]
    functions = [each for base in models for each in vars(base).values() if isfunction(each)]
    found: set[str] = set()
    for function in functions:
        with suppress(OSError):  # one that was written at run time has no source
            found |= set(re.findall(r"\bself\.(\w+)\.weight\b", getsource(function)))
    return found


def own_embeddings(model: PreTrainedModel) -> nn.Embedding | None:
    """The input embeddings, if the output layer does not compute with the same weight."""
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is None or output.weight is embeddings.weight
    return None if tied or not isinstance(embeddings, nn.Embedding) else embeddings


class Pinned:
    """A tensor of main memory as CUDA's array interface shows it to a GPU: as integers of its
    size, since that has no bfloat16."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor.cpu().pin_memory()
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": f"<i{tensor.itemsize}",
            "data": (self.tensor.data_ptr(), False),
            "version": 3,
        }


def to_main_memory(layer: nn.Module) -> None:
    """Keep a layer's weight in main memory, from where a GPU reads what it needs: of embeddings the
    few rows, of an output layer all of it in each pass.

    PyTorch takes the weight for one of the GPU: kernels, compiled and recorded ones too, read
    page-locked main memory at its own address (CUDA's unified addressing). Where the system gives
    too little of that a line says so, and it stays.
    """
    weight = cast(nn.Parameter, layer.weight)
    try:
        pinned = Pinned(weight.data)
    except RuntimeError as error:
        of_input = isinstance(layer, nn.Embedding)
        what = "the input embeddings stay" if of_input else "the output layer stays"
        warn_fallback(f"{what} in the GPU's memory", error)
        return
    weight.data = torch.as_tensor(pinned, device=weight.device).view(weight.dtype)


def in_four_bits(layer: nn.Module) -> bool:
    """Whether a layer holds its weight in bitsandbytes' 4 bits."""
    return hasattr(layer, "source_cls")  # what Transformers has put it in place of


def import_bitsandbytes() -> None:
    """Import bitsandbytes without PyTorch's compiler, whose own import takes a second.

    bitsandbytes gives it functions at once, of optimizers and of devices that are not used here.
    """
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # read where a function is given to the compiler
    try:
        importlib.import_module("bitsandbytes")
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


@torch.no_grad()
def round_to_nf4(weight: torch.Tensor) -> None:
    """Replace a weight by its NF4 value, in place, as plain numbers."""
    packed, state = to_nf4(weight)
    from bitsandbytes.functional import dequantize_4bit

    weight.copy_(dequantize_4bit(packed, state))


def outputs_first(layer: nn.Module) -> torch.Tensor:
    """A layer's weight, (outputs, inputs)."""
    weight = cast(torch.Tensor, layer.weight)
    return weight.t() if isinstance(layer, Conv1D) else weight


def to_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """A weight in NF4 with double quantization: packed, and bitsandbytes' QuantState."""
    import_bitsandbytes()
    from bitsandbytes.functional import quantize_4bit

    return quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
