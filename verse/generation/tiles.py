"""Matrix products on a CPU whose rows come out the same in whatever company.

A product picks its kernel by the number of rows, and kernels differ in the last bits. Which sizes
agree bit for bit is found out by trying, once for each shape of a layer and each size that is
wanted, and only those are used.
"""

from functools import cached_property

import torch
from torch import nn

LARGEST = 256  # rows: larger products are no faster
WIDE = 16_384  # columns of a layer, from which on
LARGEST_WIDE = 64  # this is as fast, and quicker tried


def use_tiles(model: nn.Module) -> None:
    """Let every linear layer take its rows in tiles of sizes that agree."""
    found: dict[tuple[torch.Size, torch.dtype], Sizes] = {}
    for module in model.modules():
        if type(module) is nn.Linear and not isinstance(module.forward, Tiled):
            weight = module.weight
            sizes = found.setdefault((weight.shape, weight.dtype), Sizes(weight))
            module.forward = Tiled(module, sizes)  # type: ignore[method-assign,assignment]


class Sizes:
    """Powers of two up to LARGEST: so many rows, whose products with a weight may agree."""

    def __init__(self, weight: torch.Tensor):
        self.weight = weight
        self.largest = LARGEST if weight.shape[0] < WIDE else LARGEST_WIDE
        self.agreeing = {self.largest: True}
        self.parts: dict[int, list[int]] = {}

    @cached_property
    def rows(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(self.largest, self.weight.shape[1], generator=generator)
        return rows.to(self.weight.dtype)

    @cached_property
    def expected(self) -> torch.Tensor:
        return torch.mm(self.rows, self.weight.t())

    def agree(self, size: int) -> bool:
        """Whether the product of so many rows is equal, bit for bit, to that of the most."""
        if size not in self.agreeing:
            # The last rows of the tile, so that it lies in memory as tiles later do.
            found = torch.mm(self.rows[-size:], self.weight.t())
            self.agreeing[size] = torch.equal(found, self.expected[-size:])
        return self.agreeing[size]

    def tiles(self, rows: int) -> list[int]:
        """The sizes of the tiles for so many rows: the last is filled up where little is missing.

        No list has more than 1.5 times the rows, or 1 tile of the smallest size that agrees.
        """
        if rows not in self.parts:
            sizes = [self.largest >> n for n in range(self.largest.bit_length())]
            parts, left = [], rows
            while left > 0:
                fitting = next((size for size in sizes if size <= left and self.agree(size)), 0)
                larger = (size for size in reversed(sizes) if size >= left and self.agree(size))
                above = next(larger, 0)
                parts.append(above if above and (not fitting or above <= 1.5 * left) else fitting)
                left -= parts[-1]
            self.parts[rows] = parts
        return self.parts[rows]


class Tiled:
    """What a linear layer does in place of its own `forward`."""

    def __init__(self, layer: nn.Linear, sizes: Sizes):
        self.layer, self.sizes = layer, sizes

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        rows = inputs.reshape(-1, inputs.shape[-1])
        count = rows.shape[0]
        parts = self.sizes.tiles(count)
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
