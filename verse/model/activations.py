"""Activation functions on a CPU whose rows come out the same in whatever company."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import activations

KINDS = (nn.ELU, nn.GELU, nn.Mish, nn.Sigmoid, nn.SiLU, nn.Softplus)
ONE_THREAD = 16_384  # numbers that PyTorch leaves to one thread; but for GELU, twice as many
VECTOR = 64  # numbers: a multiple of what a step of PyTorch's vectorized loops takes


def make_activations_invariant(model: nn.Module) -> None:
    """Let a row of an activation function hang on nothing but itself, on a CPU."""
    for module in model.modules():
        known = isinstance(module, KINDS) or type(module).__module__ == activations.__name__
        if known and not isinstance(module.forward, WholeVectors):
            module.forward = WholeVectors(module.forward)


class WholeVectors:
    """What an activation function does in place of its own `forward`.

    PyTorch computes most numbers in vectors, and those left at the end of a thread's share one by
    one, which differs in the last bits. Here every row is whole vectors within one thread's share.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor]):
        self.forward = forward

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        width = inputs.shape[-1]
        if width % VECTOR == 0 and inputs.numel() <= ONE_THREAD:
            return self.forward(inputs)
        rows = nn.functional.pad(inputs.reshape(-1, width), (0, -width % VECTOR))
        pieces = rows.split(max(1, ONE_THREAD // rows.shape[1]))
        outputs = torch.cat([self.forward(piece) for piece in pieces])
        return outputs[:, :width].reshape(inputs.shape)
