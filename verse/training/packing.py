"""Poems laid out for one pass: a prefix that all prompts share, then each poem's own tokens.

All prompts begin with the same instruction, which makes up over half of the tokens, so a pass
computes it once: `[prefix][poem][poem]...[padding]` in one row, positions restarting after the
prefix for every poem. The linear layers see that row as it is. Attention sees it as a rectangle, a
poem a row: `grid_from_flat` and `flat_from_grid` are the way between the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from verse.model.encoding import Example, common_prefix

IGNORED = -100  # the label that torch's cross entropy leaves out
PLACES = 1 << 12  # numbers of places that a poem has for itself: see Batch.dropout_ids


@dataclass(frozen=True)
class Shape:
    """The sizes of a pass, the same for all, so that it can be recorded."""

    shared: int
    """Tokens of the prefix."""
    prefix: int
    """P, places for them."""
    poems: int
    """N, the most poems."""
    longest: int
    """S, places for a poem's own tokens, one more at least than any poem has."""
    tokens: int
    """W, places for all poems' own tokens."""
    labels: int
    """L, places from which a token is predicted."""


@dataclass(frozen=True)
class Batch:
    """Tensors of one pass. T = P + W."""

    input_ids: torch.Tensor  # (1, T)
    position_ids: torch.Tensor  # (1, T)
    predicting: torch.Tensor  # (L,), the places of the T that predict a token
    labels: torch.Tensor  # (L,), the token that each predicts, or IGNORED
    grid_from_flat: torch.Tensor  # (N S,), for each place of the rectangle one of the W
    flat_from_grid: torch.Tensor  # (W,), for each of the W its place of the rectangle
    dropout_ids: torch.Tensor  # (T,) int32, of which poem of the step and which token, for dropout

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(t.to(device, non_blocking=True) for t in vars(self).values()))


def shared_prefix(examples: list[Example]) -> list[int]:
    """What all prompts begin with."""
    return common_prefix([example.prompt for example in examples])


def shape_of(
    passes: list[list[Example]], prefix: list[int], multiple: int = 8, places: int | None = None
) -> Shape:
    """The shape that holds any of the passes, in sizes of a multiple that kernels like.

    places: that a row of prefix and poem has at most; then a poem may fill its row.
    """

    def rounded(size: int) -> int:
        return size + -size % multiple

    own = [[e.length - len(prefix) for e in part] for part in passes]
    longest = max(max(lengths) for lengths in own) + 1
    tokens = max(sum(lengths) for lengths in own) + 1
    return Shape(
        shared=len(prefix),
        prefix=rounded(len(prefix)),
        poems=max(map(len, passes)),
        longest=min(rounded(longest), places - len(prefix)) if places else rounded(longest),
        tokens=rounded(tokens),
        labels=rounded(max(sum(len(e.completion) for e in part) for part in passes)),
    )


def tokens_of_a_pass(examples: list[Example]) -> Callable[[int], tuple[float, float]]:
    """About how many tokens a pass of so many poems has and predicts, padding included.

    Poems are dealt out by length (`loop.Task.batches`, `micro_batches.split_step`): two passes
    differ by at most as much as the longest poem and the shortest.
    """

    def bound(sizes: list[int]) -> Callable[[int], float]:
        mean, most, least = sum(sizes) / len(sizes), max(sizes), min(sizes)
        return lambda poems: min(most * poems, mean * poems + most - least)

    prefix = len(shared_prefix(examples))
    own = bound([example.length - prefix for example in examples])
    predicted = bound([len(example.completion) for example in examples])
    return lambda poems: (prefix + own(poems), predicted(poems))


def lay_out(
    examples: list[Example], prefix: list[int], shape: Shape, numbers: Sequence[int] = ()
) -> Batch:
    """The examples in one row. numbers: which poem of its step each is, for dropout.

    The last place of the rectangle and the last of the W belong to no poem: what is padding in one
    points there in the other, and no gradient comes from it.
    """
    pad_slot, outside = shape.tokens - 1, shape.poems * shape.longest - 1
    spare = shape.prefix - len(prefix)
    ids, dropout_ids = prefix + [0] * spare, list(range(shape.prefix))
    positions = [*range(len(prefix)), *[0] * spare]
    predicting: list[int] = []
    labels: list[int] = []
    grid_from_flat = [pad_slot] * (outside + 1)
    flat_from_grid: list[int] = []
    for row, (number, example) in enumerate(zip(numbers or count(), examples, strict=False)):
        own = example.prompt[len(prefix) :] + example.completion
        start = row * shape.longest
        grid_from_flat[start : start + len(own)] = range(
            len(flat_from_grid), len(flat_from_grid) + len(own)
        )
        flat_from_grid += range(start, start + len(own))
        ids += own
        positions += range(len(prefix), len(prefix) + len(own))
        place = (number + 1) * PLACES
        dropout_ids += range(place, place + len(own))
        # A place predicts the token after it: the last of the prompt the first of the completion,
        # and the end token nothing.
        predicting += range(len(ids) - len(example.completion) - 1, len(ids) - 1)
        labels += example.completion
    padding, unused = shape.tokens - len(flat_from_grid), shape.labels - len(labels)
    return Batch(
        torch.tensor([ids + [0] * padding]),
        torch.tensor([positions + [0] * padding]),
        torch.tensor(predicting + [shape.prefix + pad_slot] * unused),
        torch.tensor(labels + [IGNORED] * unused),
        torch.tensor(grid_from_flat),
        torch.tensor(flat_from_grid + [outside] * padding),
        torch.tensor(dropout_ids + [0] * padding, dtype=torch.int32),
    )
