"""The weights that training changes, all as one."""

from collections.abc import Sequence

import torch
from torch import nn

AT_ONCE = 64  # tensors whose gradients are copied to be added


class FlatParams:
    """The adapter's weights of a model, in float32.

    `flat` holds them all, and `flat.grad` their gradients. What is done to every weight after a
    pass (clipping, AdamW, adding up over processes) is a few kernels then and not a few for each of
    hundreds, which Python launches slower than they run. Where the model computes in another
    precision it has a copy of them, made anew by `refresh`: autocast would cast each of them in
    each pass, to the same numbers.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32):
        named = {name: w for name, w in model.named_parameters() if w.requires_grad}
        self.parameters, self.names = list(named.values()), list(named)
        self.shapes = [weight.shape for weight in self.parameters]
        self.flat = nn.Parameter(torch.cat([w.detach().flatten() for w in self.parameters]))
        self.flat.grad = torch.zeros_like(self.flat)
        self.copy = self.flat.detach().to(dtype)  # itself in float32
        self.bind(self.copy)

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Each weight's part of what is laid out like `flat`."""
        parts = flat.split([shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def named(self) -> dict[str, torch.Tensor]:
        """The weights by their names in the model."""
        return dict(zip(self.names, self.views(self.flat.detach()), strict=True))

    def bind(self, flat: torch.Tensor) -> None:
        """Let the model compute with these values."""
        for weight, value in zip(self.parameters, self.views(flat), strict=True):
            weight.data = value

    def refresh(self) -> None:
        """Let the model compute with what the weights are now."""
        if self.copy.dtype != self.flat.dtype:
            self.copy.copy_(self.flat.detach())

    @property
    def gradient(self) -> torch.Tensor:
        assert self.flat.grad is not None
        return self.flat.grad

    def clear(self) -> None:
        """Let the gradients be zero."""
        self.gradient.zero_()

    def add(self, gradients: Sequence[torch.Tensor]) -> None:
        """Add the gradients of all weights, a few at a time: a copy of all takes memory."""
        start = 0
        for first in range(0, len(gradients), AT_ONCE):
            part = torch.cat([one.flatten() for one in gradients[first : first + AT_ONCE]])
            self.gradient[start : start + len(part)] += part
            start += len(part)

    def restore_weights(self) -> None:
        """Let the model have its weights in float32, as they are now."""
        self.bind(self.flat.detach())
