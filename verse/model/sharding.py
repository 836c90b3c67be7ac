"""A model that is larger than a GPU: its weights spread over the processes (PyTorch's FSDP2).

Each process holds its part of every layer's frozen weights. A layer's are gathered just before it
computes, forward and backward, and let go of after. Loading goes layer by layer: no process ever
holds more than one of them whole. Adapters, a thousandth of the weights, are held by all. What it
computes is the same as without, and slower: the weights travel in every pass.

The processes must call the model equally often, since each has a part of what the others need.
How FSDP2 does it: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from verse.errors import UserError
from verse.hub import reading
from verse.model import distributed
from verse.model.float32 import paused
from verse.model.layers import (
    decoder_layers,
    expert_weights,
    linear_layers,
    never_packed,
    outputs_first,
    round_to_nf4,
    to_nf4,
)
from verse.model.loading import (
    HARMLESS,
    check_causal,
    check_numbers,
    found,
    keep_ends,
    read_config,
    weight_files,
)
from verse.params import Model

# Gathering and letting go of weights is no computation, which `verse.model.float32` would widen.
for _name in ("_pre_forward", "_post_forward"):
    setattr(FSDPState, _name, paused(getattr(FSDPState, _name)))


def load_sharded(
    settings: Model,
    device: torch.device,
    dtype: torch.dtype,
    *,
    dequantized: bool,
    cache_dir: str | None = None,
) -> PreTrainedModel:
    """What `verse.model.loading.load_model` returns, spread over the processes of the group.

    Raises UserError like it, and for a model whose files name tensors otherwise than it does.
    """
    config = read_config(settings, cache_dir)
    model = empty_model(config, settings, dtype, cache_dir)
    with reading("its weights", settings):
        stored = Stored(settings, cache_dir)
    stored.check(model)
    mesh = init_device_mesh(device.type, (distributed.size(),))
    # By name: a list of the layers would keep the plain weights that 4-bit ones take the place of.
    rounded = set(linear_layers(model)) if settings.quantization == "nf4" else set()
    unpacked = never_packed(model)
    names = {id(module): name for name, module in model.named_modules()}
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    own_head = embeddings[0].weight is not embeddings[1].weight
    # A layer is gathered as a whole; what belongs to none, such as the last norm, with the model.
    for part in [*decoder_layers(model), *(embeddings if own_head else [])]:
        place = names[id(part)]
        stored.fill(part, place, device, dtype)
        for name in [name for name, _ in part.named_modules() if f"{place}.{name}" in rounded]:
            layer = part.get_submodule(name)
            if dequantized or f"{place}.{name}" in unpacked:
                round_to_nf4(outputs_first(layer))
            else:
                owner, _, leaf = name.rpartition(".")
                setattr(part.get_submodule(owner), leaf, Nf4Linear(layer))
        for weight in expert_weights(part).values() if rounded else ():
            round_to_nf4(weight)
        fully_shard(part, mesh=mesh)
    stored.fill(model, "", device, dtype)
    if not own_head:
        model.tie_weights()
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    model.eval()
    check_causal(model, stored.where)
    return model


def empty_model(
    config: PretrainedConfig, settings: Model, dtype: torch.dtype, cache_dir: str | None
) -> PreTrainedModel:
    """The model with its buffers, and parameters that have a shape only."""
    from accelerate import init_empty_weights

    with reading("its config.json", settings), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=settings.trust_remote_code
        )
    model.tie_weights()
    model.requires_grad_(False)
    if file := found(settings, "generation_config.json", cache_dir):
        with reading("its generation_config.json", settings):
            model.generation_config = GenerationConfig.from_pretrained(file.parent)
    keep_ends(model)
    return model


class Stored:
    """The tensors of a model's files, by their names, read one at a time."""

    def __init__(self, settings: Model, cache_dir: str | None):
        self.where = f"model.name {settings.name!r}"
        names = weight_files(settings, cache_dir)
        files = [found(settings, name, cache_dir) for name in names]
        self.files: dict[str, Any] = {}
        for file in filter(None, files):
            opened = safe_open(file, "pt")
            self.files |= dict.fromkeys(opened.keys(), opened)

    def check(self, model: PreTrainedModel) -> None:
        """Raise UserError unless the model's tensors are these, of these shapes."""
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        missing = wanted.keys() - self.files.keys() - tied
        stray = {n for n in self.files.keys() - wanted.keys() - tied if not HARMLESS.search(n)}
        other = {
            name
            for name in wanted.keys() & self.files.keys()
            if tuple(self.files[name].get_slice(name).get_shape()) != tuple(wanted[name])
        }
        if wrong := sorted(missing | stray | other):
            raise UserError(
                f"{self.where}: cannot be spread over several GPUs, since {wrong[0]} and "
                f"{len(wrong) - 1} more tensors of its files or its config are not in the other: "
                "get the whole model anew, or take one that a GPU can hold"
            )

    def fill(self, part: nn.Module, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Give a part of the model its tensors: what has none yet is on the meta device."""
        for path, module in part.named_modules():
            prefix = ".".join(filter(None, [name, path]))
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                key = f"{prefix}.{leaf}"
                if parameter.is_meta and key in self.files:
                    value = self.files[key].get_tensor(key).to(device, dtype)
                    check_numbers(value, self.where, key)
                    setattr(module, leaf, nn.Parameter(value, requires_grad=False))
            for leaf, buffer in list(module.named_buffers(recurse=False)):
                key = f"{prefix}.{leaf}"
                value = self.files[key].get_tensor(key) if key in self.files else buffer
                module._buffers[leaf] = value.to(device)


class Nf4Linear(nn.Linear):
    """A frozen linear layer in 4 bits that FSDP can spread: its packed weights and their scales
    are one row of numbers, which `dtype` does not mean."""

    def __init__(self, layer: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        packed, self.state = to_nf4(layer.weight)
        self.packed, self.scales = packed.numel(), self.state.absmax.numel()
        row = torch.cat([packed.flatten(), self.state.absmax])
        row = nn.functional.pad(row, (0, -len(row) % layer.weight.itemsize))
        self.weight = nn.Parameter(row.view(layer.weight.dtype), requires_grad=False)
        self.bias, self.state.absmax = layer.bias, None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        from bitsandbytes import matmul_4bit
        from bitsandbytes.functional import QuantState

        row, state = self.weight.view(torch.uint8), self.state
        # Not copied: the compiler cannot look into that, and would cut a layer at each product.
        gathered = QuantState(
            absmax=row[self.packed : self.packed + self.scales],
            shape=state.shape,
            code=state.code,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
            dtype=state.dtype,
            offset=state.offset,
            state2=state.state2,
        )
        inputs = inputs.to(self.weight.dtype)
        return matmul_4bit(inputs, row[: self.packed].view(-1, 1), gathered, bias=self.bias)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def in_step(model: nn.Module) -> Iterator[None]:
    """Let the processes call their parts of a model as often as each needs.

    Who is done computes along with the others until all are.
    """
    whole = next((module for module in model.modules() if isinstance(module, FSDPModule)), None)
    if whole is None:
        yield
        return
    assert isinstance(whole, nn.Module)
    # Before the hook that gathers weights: who is done must come along by then.
    announcing = whole.register_forward_pre_hook(
        lambda *_: distributed.any_rank(True) and None, prepend=True
    )
    yield
    announcing.remove()
    some = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    while distributed.any_rank(False):
        with torch.no_grad():
            whole(input_ids=some, use_cache=False)
