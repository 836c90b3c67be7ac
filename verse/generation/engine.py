"""Engines: what holds the keys and values of texts that are written together, a token at a time.

On a CPU it is `cpu_engine`, on a GPU `gpu_engine`; what neither can do Transformers' own generation
does (`answers`). Their attention is registered with Transformers as `ENGINE`, so that models keep
their own code, and are handed the engine through it.
"""

from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from verse.generation.sampling import Drawn
from verse.model.attention import Attention

ENGINE = "verse_engine"


class Engine(Protocol):
    """A model and the texts that it is writing, its rows, in the order in which they came."""

    watched: bool
    """Whether the next step shows its scores."""
    shown: torch.Tensor
    """The scores of some rows in a step that was watched: of `watched_rows`."""

    def prefill(self, prompts: list[list[int]], uniforms: torch.Tensor) -> None:
        """Read prompts, all but the last token of each; they become the last rows.

        uniforms: (N, max_new_tokens), by which their tokens are drawn.
        """
        ...

    def decode(self, allowed: torch.Tensor | None = None, *, prefetch: bool = False) -> Drawn:
        """Draw a token for each row, of those allowed, (R, vocabulary), and add it; on the CPU.

        prefetch: the next step may begin before this one is looked at, since most rows go on and
        none will be added before it, unless all have ended.
        """
        ...

    def evict(self, rows: list[int]) -> None:
        """Let go of all rows but these, which are in ascending order."""
        ...

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        how: Attention,
    ) -> torch.Tensor:
        """Add to what a layer holds, and look at it: the output (N, H, Q, D) for query
        (N, H, Q, D), key and value (N, K, Q, D)."""
        ...


def watched_rows(count: int) -> list[int]:
    """The first row, the last, and two in between."""
    return sorted({0, count // 3, 2 * count // 3, count - 1})


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    engine: Engine,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that Transformers calls: its output (N, Q, H, D) and no weights."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    how = Attention(scale, sliding_window, softcap, s_aux)
    size = value.shape[-1]
    if size != key.shape[-1]:  # as DeepSeek's: zeros add nothing, and an engine holds one size
        most = max(size, key.shape[-1])
        states = (query, key, value)
        query, key, value = (functional.pad(one, (0, most - one.shape[-1])) for one in states)
    output = engine.attend(module.layer_idx, query, key, value, how)[..., :size]
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ENGINE, attend)
AttentionMaskInterface.register(ENGINE, lambda *_, **__: None)
