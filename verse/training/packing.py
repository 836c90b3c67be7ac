"""Rows of poems that compute the prefix which their prompts share once.

All prompts begin with the same instruction, which makes up over half of the tokens. A row is
laid out as `[prefix][poem 1][poem 2]...`: positions restart after the prefix for every poem,
and a poem sees the prefix and itself, never its neighbours. The loss is the same as for the
poems one by one.
"""

import math
from dataclasses import dataclass

import torch

from verse.model.encoding import Example

IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass: R rows of T tokens."""

    input_ids: torch.Tensor  # (R, T)
    position_ids: torch.Tensor  # (R, T)
    owners: torch.Tensor  # (R, T), whose a token is: 0 the prefix's, 1, 2... a poem's, -1 nobody's
    labels: torch.Tensor  # (R, T), the token to predict at each place or IGNORED

    @property
    def attention(self) -> torch.Tensor:
        """(R, 1, T, T), true where a token may look: the prefix and its own poem, up to itself."""
        mine = self.owners[:, :, None] == self.owners[:, None, :]
        allowed = mine | (self.owners == 0)[:, None, :]
        return allowed.tril()[:, None]

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(t.to(device, non_blocking=True) for t in vars(self).values()))


def shared_prefix(examples: list[Example]) -> list[int]:
    """The longest common prefix of all prompts' ids, leaving each prompt a token of its own."""
    first, last = min(e.prompt for e in examples), max(e.prompt for e in examples)
    length = min(len(e.prompt) for e in examples) - 1
    for index in range(length):
        if first[index] != last[index]:
            length = index
            break
    return first[: max(length, 0)]


def lay_out(
    examples: list[Example],
    prefix: list[int],
    poems_per_row: int,
    shape: tuple[int, int] | None = None,
) -> Batch:
    """The examples in as few rows as hold them, as even as can be, each after the prefix.

    shape: R and T to fill up to, at least those of `shape_of`, which are taken without it.
    """
    rows = in_rows(examples, prefix, poems_per_row)
    height, width = shape or shape_of(examples, prefix, poems_per_row)
    rows += [[] for _ in range(height - len(rows))]

    columns = zip(*(_row(row, prefix, width) for row in rows), strict=True)
    return Batch(*(torch.tensor(column) for column in columns))


def in_rows(examples: list[Example], prefix: list[int], poems_per_row: int) -> list[list[Example]]:
    """The examples of each row: the longest first, each where there is the most room."""
    rows: list[list[Example]] = [[] for _ in range(math.ceil(len(examples) / poems_per_row))]
    lengths = [0] * len(rows)
    for example in sorted(examples, key=lambda e: e.length, reverse=True):
        shortest = lengths.index(min(lengths))
        rows[shortest].append(example)
        lengths[shortest] += example.length - len(prefix)
    return rows


def shape_of(
    examples: list[Example], prefix: list[int], poems_per_row: int, multiple: int = 8
) -> tuple[int, int]:
    """R and T of the batch: T is rounded up to a multiple that attention kernels like."""
    rows = in_rows(examples, prefix, poems_per_row)
    width = len(prefix) + max(sum(e.length - len(prefix) for e in row) for row in rows)
    return len(rows), width + -width % multiple


def _row(examples: list[Example], prefix: list[int], width: int) -> tuple[list[int], ...]:
    """Ids, positions, owners and labels of one row."""
    ids, positions, labels = list(prefix), list(range(len(prefix))), [IGNORED] * len(prefix)
    owners = [0] * len(prefix)
    for number, example in enumerate(examples, 1):
        own = example.prompt[len(prefix) :] + example.completion
        # The label of a place is the token after it: the last of the prompt predicts the
        # first of the completion, and the end token predicts nothing.
        quiet = len(own) - len(example.completion) - 1
        ids += own
        positions += range(len(prefix), len(prefix) + len(own))
        labels += [IGNORED] * quiet + example.completion + [IGNORED]
        owners += [number] * len(own)
    padding = width - len(ids)
    ids += [0] * padding
    positions += [0] * padding
    labels += [IGNORED] * padding
    owners += [-1] * padding  # padding sees padding, so that no softmax is over nothing
    return ids, positions, owners, labels
