"""A mixture's experts held in 4 bits, and adapted there.

The weights of all experts of a layer are one tensor, (experts, ., .), and no layer that
bitsandbytes could put one of its own in place of. Each is rounded while the model loads, so that it
is never whole on the GPU, and expanded where the layer computes: the same numbers as those of
`verse.model.layers.round_to_nf4`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from bitsandbytes.nn.parametrize import replace_parameter_4bit_prequantized
from peft.tuners.lora.layer import ParamWrapper, _LoraFactorsProxy
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList as Parts
from transformers import PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from verse.model.layers import expert_weights, to_nf4


class Quantizer(Bnb4BitHfQuantizer):
    """Transformers' own, which rounds linear layers while they load, and experts with them."""

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, *args: Any, **kw: Any
    ) -> None:
        self.experts = list(expert_weights(model))
        self.states: dict[str, Any] = {}
        super()._process_model_before_weight_loading(model, *args, **kw)

    def param_needs_quantization(self, model: PreTrainedModel, name: str, **kw: Any) -> bool:
        return name in self.experts or super().param_needs_quantization(model, name, **kw)

    def get_quantize_ops(self) -> Bnb4bitQuantize:
        return Quantize(self)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kw: Any) -> Any:
        for name in self.experts:  # in the order in which PEFT nests its adapters
            expand_where_used(model, name, self.states[name])
        return super()._process_model_after_weight_loading(model, **kw)


class Quantize(Bnb4bitQuantize):
    def convert(self, input_dict: dict[str, Any], **kw: Any) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, value in input_dict.items():
            if name in self.hf_quantizer.experts:
                weight = value[0] if isinstance(value, list) else value
                packed, self.hf_quantizer.states[name] = to_nf4(weight)
                found[name] = nn.Parameter(packed, requires_grad=False)
            else:
                found |= super().convert({name: value}, **kw)
        return found


def round_while_loading() -> None:
    """Let Transformers take `Quantizer` for what is to be held in 4 bits."""
    AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = Quantizer


def expand_where_used(model: nn.Module, name: str, state: Any) -> None:
    """Give the packed weight of that name its scales: who reads it gets plain numbers."""
    owner, _, leaf = name.rpartition(".")
    module, device = model.get_submodule(owner), state.absmax.device
    replace_parameter_4bit_prequantized(module, leaf, state.as_dict(packed=True), device)


@contextmanager
def adaptable(model: nn.Module) -> Iterator[None]:
    """Within it PEFT finds weights of the right shape in place of the packed ones, and adapts them.

    By itself it would name packed weights otherwise, expand them four times more in each pass, and
    never take away what it has added (PEFT 0.21: `_remove_parametrizations` knows another class).
    """
    packed = [
        (module, leaf, cast(Parts, parts))
        for module in list(model.modules())
        if parametrize.is_parametrized(module)
        for leaf, parts in cast(nn.ModuleDict, module.parametrizations).items()
    ]
    for module, leaf, parts in packed:
        parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
        setattr(module, leaf, nn.Parameter(stand_in(parts), requires_grad=False))
    yield
    for module, leaf, parts in packed:
        setattr(module, leaf, parts.original)
        parametrize.register_parametrization(module, leaf, parts[0], unsafe=True)
    for module in model.modules():
        if isinstance(module, ParamWrapper) and parametrize.is_parametrized(
            module.get_base_layer()
        ):
            parts = module.get_base_layer().parametrizations[module.parameter_name]
            vars(module)["get_param"] = partial(stand_in, parts)
            vars(module)["_activate_lora"] = partial(added, module, parts)


def stand_in(parts: Parts) -> torch.Tensor:
    """A tensor of a packed weight's shape and type that takes no memory."""
    state: Any = parts[0].quant_state
    return torch.empty((), dtype=state.dtype, device=parts.original.device).expand(state.shape)


@contextmanager
def added(wrapper: ParamWrapper, parts: Parts, adapters: list[str]) -> Iterator[None]:
    """`ParamWrapper._activate_lora`: within it the weight is read with its adapter."""
    parts.append(_LoraFactorsProxy(*wrapper.get_delta_factors(*adapters)))
    try:
        with parametrize.cached():
            yield
    finally:
        del parts[-1]
