"""Matrix products on a CPU whose rows come out the same in whatever company.

A product picks its kernel by the number of rows, and kernels differ in the last bits. Which sizes
agree bit for bit is found out by trying, once for each shape of a layer, and only those are used.
"""

from collections.abc import Callable

import torch
from torch import nn

LARGEST = 256  # rows: larger products are no faster
WIDE = 16_384  # columns of a layer, from which on
LARGEST_WIDE = 64  # this is as fast, and quicker tried


def use_tiles(model: nn.Module) -> None:
    """Let every linear layer take its rows in tiles of sizes that agree."""
    found: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = _tiled(module, found)  # type: ignore[method-assign,assignment]


def agreeing_sizes(weight: torch.Tensor) -> list[int]:
    """Numbers of rows, in descending order, whose products with a weight are equal bit for bit."""
    largest = LARGEST if weight.shape[0] < WIDE else LARGEST_WIDE
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(largest, weight.shape[1], generator=generator).to(weight.dtype)
    expected = torch.mm(rows, weight.t())
    sizes = [largest]
    while size := sizes[-1] // 2:
        # The last rows of the tile, so that it lies in memory as tiles later do.
        if not torch.equal(torch.mm(rows[-size:], weight.t()), expected[-size:]):
            break
        sizes.append(size)
    return sizes


def tiles(rows: int, sizes: list[int]) -> list[int]:
    """The sizes of the tiles for so many rows: the last is filled up where little is missing."""
    parts = []
    while rows > 0:
        fitting = next((size for size in sizes if size <= rows), 0)
        above = min((size for size in sizes if size >= rows), default=0)
        parts.append(above if above and (not fitting or above <= 1.5 * rows) else fitting)
        rows -= parts[-1]
    return parts


def _tiled(
    layer: nn.Linear, found: dict[tuple[torch.Size, torch.dtype], list[int]]
) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(inputs: torch.Tensor) -> torch.Tensor:
        key = layer.weight.shape, layer.weight.dtype
        if key not in found:
            found[key] = agreeing_sizes(layer.weight)
        rows = inputs.reshape(-1, inputs.shape[-1])
        count = len(rows)
        parts = tiles(count, found[key])
        if (missing := sum(parts) - count) > 0:
            rows = nn.functional.pad(rows, (0, 0, 0, missing))
        outputs = rows.new_empty(len(rows), layer.out_features)
        for tile, output in zip(rows.split(parts), outputs.split(parts), strict=True):
            torch.mm(tile, layer.weight.t(), out=output)
        if layer.bias is not None:
            outputs += layer.bias
        return outputs[:count].view(*inputs.shape[:-1], layer.out_features)

    return forward
