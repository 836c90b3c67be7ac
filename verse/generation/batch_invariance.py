"""Layers on a CPU whose rows come out the same in whatever company.

A product picks its kernel by the number of rows, and kernels differ in the last bits. Which sizes
agree bit for bit is found out by trying, once for each shape of a layer and each size that is
wanted, and only those are used. Activation functions and mixtures take rows in ways of their own.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from verse.model.activations import make_activations_invariant
from verse.model.layers import expert_weights

LARGEST = 256  # rows: larger products are no faster
WIDE = 16_384  # columns of a layer, from which on
LARGEST_WIDE = 64  # this is as fast, and quicker tried


def make_batch_invariant(model: nn.Module) -> None:
    """Let every linear layer take its rows in tiles of sizes that agree, an activation function in
    whole vectors, and a mixture's experts and what chooses them one row at a time."""
    make_activations_invariant(model)
    owners = {name.rpartition(".")[0] for name in expert_weights(model)}
    by_row = owners | {block_of(owner) for owner in owners}
    found: dict[tuple[torch.Size, torch.dtype], Sizes] = {}
    for name, module in model.named_modules():
        if isinstance(module.forward, Tiled | RowByRow):
            continue
        kind = type(module)
        if kind is nn.Linear:
            weight = module.weight
            sizes = found.setdefault((weight.shape, weight.dtype), Sizes(weight.shape[0]))
            module.forward = Tiled(module, sizes)
        elif name in by_row or kind is Conv1D or chooses(module):
            module.forward = RowByRow(module.forward)


def block_of(experts: str) -> str:
    """The name of the block that a layer's experts are part of: theirs, if that is the layer."""
    block = experts.rpartition(".")[0]
    return experts if block.rpartition(".")[2].isdigit() else block


def chooses(module: nn.Module) -> bool:
    """Whether it is a mixture's router."""
    return bool(re.search("Router|Gate", type(module).__name__)) and hasattr(module, "weight")


class Sizes:
    """Powers of two up to LARGEST: so many rows, whose products with weights of a shape agree."""

    def __init__(self, columns: int):
        self.largest = LARGEST if columns < WIDE else LARGEST_WIDE
        self.agreeing: set[int] = set()
        self.parts: dict[int, list[int]] = {}

    def agree(self, size: int, weight: torch.Tensor) -> bool:
        """Whether products of so many rows are equal, bit for bit, to those of the most.

        Tried for all sizes at once, on numbers whose sums cancel, in an order drawn at random: what
        is left is rounding, another in each order of adding up. Of other numbers bfloat16 would
        show a difference once in tens of thousands.
        """
        if not self.agreeing:
            generator = torch.Generator().manual_seed(0)
            half = weight.shape[1] // 2
            places = torch.randperm(weight.shape[1], generator=generator)
            trial, rows = torch.zeros_like(weight), weight.new_zeros(self.largest, weight.shape[1])
            for values, sign in ((trial, -1), (rows, 1)):
                drawn = torch.randn(len(values), half, generator=generator).to(weight.dtype)
                values[:, places[:half]], values[:, places[half : 2 * half]] = drawn, sign * drawn
            expected = torch.mm(rows, trial.t())
            for smaller in (self.largest >> n for n in range(self.largest.bit_length())):
                found = [torch.mm(some, trial.t()) for some in rows.split(smaller)]
                if torch.equal(torch.cat(found), expected):
                    self.agreeing.add(smaller)
        return size in self.agreeing

    def tiles(self, rows: int, weight: torch.Tensor) -> list[int]:
        """The sizes of the tiles for so many rows: the last is filled up where little is missing.

        No list has more than 1.5 times the rows, or 1 tile of the smallest size that agrees.
        """
        if rows not in self.parts:
            sizes = [self.largest >> n for n in range(self.largest.bit_length())]
            parts, left = [], rows
            while left > 0:
                below = (size for size in sizes if size <= left and self.agree(size, weight))
                larger = (s for s in reversed(sizes) if s >= left and self.agree(s, weight))
                fitting, above = next(below, 0), next(larger, 0)
                parts.append(above if above and (not fitting or above <= 1.5 * left) else fitting)
                left -= parts[-1]
            self.parts[rows] = parts
        return self.parts[rows]


class RowByRow:
    """What such a module does in place of its own `forward`: the same for each row by itself, if
    it is the same, which the first call shows: some are given rows that are sorted by expert."""

    def __init__(self, forward: Callable[..., Any]):
        self.forward = forward
        self.same: bool | None = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if self.same is None and len(inputs[0]) > 1:
            expected = self.forward(*inputs, **named)
            try:
                found = self.by_row(*inputs, **named)
                whole = torch.is_tensor(expected)
                pairs = [(found, expected)] if whole else zip(found, expected, strict=True)
                self.same = all(alike(one, other) for one, other in pairs)
            except Exception:  # of another form
                self.same = False
        return (self.forward if self.same is False else self.by_row)(*inputs, **named)

    def by_row(self, *inputs: Any, **named: Any) -> Any:
        count = len(inputs[0])

        def of(row: int, given: Any) -> Any:
            rows = torch.is_tensor(given) and given.dim() > 0 and len(given) == count
            return given[row : row + 1] if rows else given

        found = [
            self.forward(
                *(of(row, one) for one in inputs), **{k: of(row, one) for k, one in named.items()}
            )
            for row in range(count)
        ]
        if torch.is_tensor(found[0]):
            return torch.cat(found)
        return type(found[0])(torch.cat(parts) for parts in zip(*found, strict=True))


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether one is the other but for rounding, which may choose another expert."""
    if found.shape != expected.shape or not expected.is_floating_point():
        return found.shape == expected.shape
    apart = (found - expected).float().norm(dim=-1).median()
    return bool(apart <= 0.05 * expected.float().norm(dim=-1).median())


class Tiled:
    """What a linear layer does in place of its own `forward`."""

    def __init__(self, layer: nn.Linear, sizes: Sizes):
        self.layer, self.sizes = layer, sizes

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        rows = inputs.reshape(-1, inputs.shape[-1])
        count = rows.shape[0]
        parts = self.sizes.tiles(count, weight)
        if parts == [count]:
            outputs = torch.mm(rows, weight.t())
        else:
            rows = nn.functional.pad(rows, (0, 0, 0, sum(parts) - count))
            outputs = rows.new_empty(rows.shape[0], weight.shape[0])
            for tile, output in zip(rows.split(parts), outputs.split(parts), strict=True):
                torch.mm(tile, weight.t(), out=output)
            outputs = outputs[:count]
        if bias is not None:
            outputs += bias
        return outputs.view(*inputs.shape[:-1], weight.shape[0])
