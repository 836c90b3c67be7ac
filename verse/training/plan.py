"""How poems go through the model; it changes the speed and the memory, not the result."""

from dataclasses import dataclass

import torch

from verse.model.encoding import Example
from verse.model.memory import Way
from verse.training.packing import shared_prefix


@dataclass(frozen=True)
class Plan:
    prefix: list[int]
    """Token ids that all prompts begin with, computed once a row."""
    dtype: torch.dtype
    poems_per_pass: int
    """In one forward and backward pass of a process."""
    poems_per_row: int
    """Behind one prefix; more save tokens, but attention grows with the square."""
    recomputed: bool = False
    """Keep one activation a layer, compute the others twice."""


def choose_plan(
    way: Way, device: torch.device, dtype: torch.dtype, examples: list[Example]
) -> Plan:
    """The plan for a way to fit memory. examples: all that are trained or validated on."""
    return Plan(
        shared_prefix(examples),
        dtype,
        way.poems,
        4 if device.type == "cpu" else 8,
        recomputed=not way.kept,
    )
