"""Dropout whose masks are a hash, so that computing a layer twice meets the same mask twice.

Whether an element is dropped is decided by a hash of its place: the poem and the token that it
belongs to, its column, and the step. No generator is involved, so an activation that is computed
twice, a compiled layer and a recorded graph all see one mask, and it does not matter which poems go
through the model together. (PyTorch's own dropout draws another mask where a compiler recomputes
it: https://github.com/pytorch/pytorch/issues/190758.)

One table of masks serves all adapters of a pass; each reads it from a column of its own on.
"""

import torch
from torch import nn

STRIDE = 8  # columns between the first ones of two layers; kernels read eight at once


class Masks:
    """The masks of a pass: a table of 0 and 1 with a row a token, which `draw` fills anew."""

    def __init__(self, rate: float):
        self.rate = rate
        self.layers: list[Dropout] = []
        self.table = torch.empty(0, 0)
        self.passed_by: set[nn.Module] = set()
        """Layers that have met other rows than the tokens, and dropped nothing."""

    def layer(self, inputs: int) -> "Dropout":
        """The dropout of one more layer with so many inputs."""
        self.layers.append(Dropout(self, inputs))
        return self.layers[-1]

    def reserve(self, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make room for passes of so many tokens; the table stays where it is after that."""
        firsts = range(0, STRIDE * len(self.layers), STRIDE)
        ends = [f + layer.inputs for f, layer in zip(firsts, self.layers, strict=True)]
        columns = max(ends) + max(ends) % 2
        self.table = torch.ones(tokens, columns, dtype=dtype, device=device)
        for layer, first, end in zip(self.layers, firsts, ends, strict=True):
            layer.kept = self.table[:, first:end]

    @torch.no_grad()
    def draw(self, places: torch.Tensor, step: torch.Tensor) -> None:
        """Fill the table. places: (T,) numbers of the tokens, int32; step: () int32.

        Each hash decides for two columns, 16 bits each, so the rate is kept to 1/65536. Mixing:
        lowbias32 of C. Wellons, https://nullprogram.com/blog/2018/07/31/, in signed integers, whose
        products wrap and whose right shifts are masked.
        """
        pairs = torch.arange(self.table.shape[1] // 2, dtype=torch.int32, device=places.device)
        mixed = (places * -1640531535 + step * 668265263)[:, None] ^ (pairs * -2048144789)
        for shift, factor in ((16, 0x7FEB352D), (15, -2073254261), (16, 1)):
            mixed ^= (mixed >> shift).bitwise_and_((1 << 32 - shift) - 1)
            mixed *= factor
        self.table.copy_(mixed.view(torch.int16) >= round(self.rate * 2**16) - 2**15)


class Dropout(nn.Module):
    """The dropout of one adapter. Its part of the table is a buffer, so that all layers compile to
    one program."""

    kept: torch.Tensor

    def __init__(self, masks: Masks, inputs: int):
        super().__init__()
        self.masks, self.inputs = masks, inputs
        self.scale = 1 / (1 - masks.rate)
        self.register_buffer("kept", None, persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs: (..., columns), as many rows in all as the table has tokens.

        A layer that sees something else, such as one vector a poem, drops nothing.
        """
        if not self.training:
            return inputs
        if inputs.numel() != self.kept.numel():
            self.masks.passed_by.add(self)
            return inputs
        return inputs * self.kept.view(inputs.shape) * self.scale


def masks_of(model: nn.Module) -> Masks | None:
    """The masks that a model's adapters share; None if they drop nothing."""
    return next((m.masks for m in model.modules() if isinstance(m, Dropout)), None)
