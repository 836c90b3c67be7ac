"""Attention of poems behind one prefix, as plain products over (prefix, own poem).

Registered with Transformers as `SHARED_PREFIX`, so that models keep their own code. A poem's tokens
see the prefix and their own poem, up to themselves. All poems meet the prefix's keys in one product
and each its own in another, with one softmax over both.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from verse.model.attention import Attention

SHARED_PREFIX = "verse_shared_prefix"


class Regroup(torch.autograd.Function):
    """Take places by an index whose inverse is known: the gradient is a gather, not a scatter."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, grid_from_flat: torch.Tensor, flat_from_grid: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(flat_from_grid)
        return states[:, grid_from_flat]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (flat_from_grid,) = ctx.saved_tensors
        return gradient[:, flat_from_grid], None, None


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    grid_from_flat: torch.Tensor,
    flat_from_grid: torch.Tensor,
    poems: int,
    prefix: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that Transformers calls: its output (1, T, heads, head) and no weights.

    query: (1, H, T, D). key: (1, K, T, D), value: (1, K, T, E), for groups of H / K heads.
    grid_from_flat, flat_from_grid, poems: of the pass, as `packing.Batch` and `Shape` have them.
    prefix: tokens of the prefix, which may have more places.
    """
    heads, tokens, size = query.shape[1:]
    groups = heads // key.shape[1]
    room, longest = tokens - len(flat_from_grid), len(grid_from_flat) // poems
    scale = size**-0.5 if scaling is None else scaling
    how = Attention(scale, sliding_window, softcap, s_aux)
    keys = key.shape[1]

    def own(states: torch.Tensor) -> torch.Tensor:  # (1, heads, T, D) -> (heads, N, S, D)
        states = Regroup.apply(states[0, :, room:], grid_from_flat, flat_from_grid)
        return states.view(-1, poems, longest, states.shape[-1])

    def weigh(scores: torch.Tensor) -> torch.Tensor:
        return how.cap(scores.float() * scale)

    q, k, v = own(query).view(keys, groups, poems, longest, size), own(key), own(value)
    to_prefix = q.reshape(keys, groups * poems * longest, size) @ key[0, :, :room].transpose(1, 2)
    to_prefix = weigh(to_prefix).view(keys, groups, poems, longest, room)
    rows = q.permute(0, 2, 1, 3, 4).reshape(keys * poems, groups * longest, size)
    to_own = rows @ k.reshape(keys * poems, longest, size).transpose(1, 2)
    to_own = weigh(to_own).view(keys, poems, groups, longest, longest).permute(0, 2, 1, 3, 4)

    # Of the columns: first the prefix's places, then the poem's own.
    columns = torch.arange(room + longest, device=query.device)
    positions = torch.where(columns < room, columns, columns - room + prefix)
    hidden = unseen(positions[room:], positions, sliding_window)
    hidden = hidden | (columns >= prefix) & (columns < room)
    scores = torch.cat([to_prefix, to_own], -1).masked_fill(hidden, -torch.inf)
    by_head = scores if s_aux is None else scores.view(heads, -1, room + longest)
    weights = how.shares(by_head).view(scores.shape).to(query.dtype)

    seen = weights[..., :room].reshape(keys, groups * poems * longest, room) @ value[0, :, :room]
    seen = seen.view(keys, groups, poems, longest, -1)
    rows = (
        weights[..., room:].permute(0, 2, 1, 3, 4).reshape(keys * poems, groups * longest, longest)
    )
    mine = (rows @ v.reshape(keys * poems, longest, -1)).view(keys, poems, groups, longest, -1)
    output = (seen + mine.permute(0, 2, 1, 3, 4)).reshape(heads, poems * longest, -1)
    output = Regroup.apply(output, flat_from_grid, grid_from_flat)
    if room:
        k = key[0, :, :room].repeat_interleave(groups, 0)
        v = value[0, :, :room].repeat_interleave(groups, 0)
        scores = weigh(query[0, :, :room] @ k.transpose(1, 2))
        hidden = unseen(columns[:room], columns[:room], sliding_window)
        weights = how.shares(scores.masked_fill(hidden, -torch.inf)).to(query.dtype)
        output = torch.cat([weights @ v, output], 1)
    return output.transpose(0, 1)[None].contiguous(), None


def unseen(
    positions: torch.Tensor, others: torch.Tensor, sliding_window: int | None
) -> torch.Tensor:
    """Which of the others a token at each position does not see: later ones, and far ones."""
    ahead = positions[:, None] - others
    hidden = ahead < 0
    return hidden if sliding_window is None else hidden | (ahead >= sliding_window)


AttentionInterface.register(SHARED_PREFIX, attend)
AttentionMaskInterface.register(SHARED_PREFIX, lambda *_, **__: None)
