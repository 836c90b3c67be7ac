"""Prompts together: batches of one length, a cache with room, products in tiles of one size."""

from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

TILE = 160  # rows of a tile when each prompt adds one token
PROMPT_TILE = 512  # and when each adds many, since larger tiles are faster
Key = TypeVar("Key", bound=Hashable)


def equal_length_batches(prompts: dict[Key, list[int]], batch_size: int) -> Iterator[list[Key]]:
    """Keys of up to `batch_size` prompts with equally many tokens."""
    order = sorted(prompts, key=lambda i: (len(prompts[i]), prompts[i]))
    start = 0
    while start < len(order):
        length = len(prompts[order[start]])
        batch = [i for i in order[start : start + batch_size] if len(prompts[i]) == length]
        yield batch
        start += len(batch)


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room to grow.

    Transformers' own layer copies all it holds for every token, which on a CPU takes as long as
    the attention itself.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = [key_states[..., :0, :], value_states[..., :0, :]]
        used = self.get_seq_length()
        total = used + key_states.shape[-2]
        for index, new in enumerate((key_states, value_states)):
            if total > self.rooms[index].shape[-2]:
                room = new.new_empty(*new.shape[:-2], 2 * total, new.shape[-1])
                room[..., :used, :] = self.rooms[index][..., :used, :]
                self.rooms[index] = room
            self.rooms[index][..., used:total, :] = new
        self.keys, self.values = (room[..., :total, :] for room in self.rooms)
        return self.keys, self.values


def roomy_cache(model: PreTrainedModel) -> Cache | None:
    """A cache of roomy layers for a model of plain attention layers, None for any other."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return Cache(layer_class_to_replicate=RoomyLayer) if kinds == {"full_attention"} else None


def use_tiles(model: nn.Module) -> None:
    """Make every linear layer compute `TILE` rows at a time, the last tile filled up."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = _tiled(module)  # type: ignore[method-assign,assignment]


def _tiled(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        count = len(rows)
        size = TILE if inputs.shape[-2] == 1 else PROMPT_TILE
        rows = functional.pad(rows, (0, 0, 0, -count % size))
        outputs = rows.new_empty(len(rows), layer.out_features)
        for tile, output in zip(rows.split(size), outputs.split(size), strict=True):
            torch.mm(tile, layer.weight.t(), out=output)
        if layer.bias is not None:
            outputs += layer.bias
        return outputs[:count].view(*inputs.shape[:-1], -1)

    return forward
