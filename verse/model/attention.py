"""Which attention a model computes with, by its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Attention:
    """What a layer asks of its attention."""

    scale: float
    window: int | None = None
    """A token sees so many, itself among them."""
    softcap: float | None = None
    """Scores are kept within plus and minus this, by a tanh."""
    sinks: torch.Tensor | None = None
    """(H,), a score of each head that takes its share and gives nothing."""

    @property
    def plain(self) -> bool:
        return self.softcap is None and self.sinks is None

    def cap(self, scores: torch.Tensor) -> torch.Tensor:
        """Scaled scores, kept within bounds."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def shares(self, scores: torch.Tensor) -> torch.Tensor:
        """Softmax over the last dimension, of the keys and the sink, without the sink. scores:
        capped and masked, (.., H, queries, keys), in float32."""
        if self.sinks is None:
            return torch.softmax(scores, -1)
        sinks = self.sinks.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1]


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


def own_attention(model: PreTrainedModel) -> str:
    """Why no other attention can be given to a model whose code has its own; "" if one can."""
    if getattr(model, "_supports_attention_backend", True):
        return ""
    return (
        "its layers join tokens by code of their own in Transformers (a recurrence, or attention "
        "with a bias for each distance), which takes no other attention"
    )


def no_mask(device: torch.device) -> torch.Tensor:
    """A mask for an attention that makes its own: of four dimensions, Transformers adds none."""
    return torch.ones(1, 1, 1, 1, device=device)
