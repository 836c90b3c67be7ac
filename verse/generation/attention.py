"""Attention of rows that are generated together: each row sees its own prompt and answer.

Registered with Transformers as `ROWS`, so that models keep their own code. What a row has seen lies
in `Rows` (of `verse.generation.rows`, on a CPU) or `Slots` (of `verse.generation.slots`, on a GPU),
which the model hands through to here.
"""

from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface

ROWS = "verse_rows"


class Seen(Protocol):
    """Keys and values of all layers, which attention adds to and looks at."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """The output (N, H, Q, D) for query (N, H, Q, D), key and value (N, K, Q, D)."""
        ...


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    seen: Seen,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that Transformers calls: its output (N, Q, H, D) and no weights."""
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("capped attention scores or attention sinks")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = seen.attend(module.layer_idx, query, key, value, scale, sliding_window)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ROWS, attend)
AttentionMaskInterface.register(ROWS, lambda *_, **__: None)
