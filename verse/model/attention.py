"""Which attention a model computes with, by its name."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let the model's attention be another one, in backward passes too."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def no_mask(device: torch.device) -> torch.Tensor:
    """A mask for an attention that makes its own: of four dimensions, Transformers adds none."""
    return torch.ones(1, 1, 1, 1, device=device)
