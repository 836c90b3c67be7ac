"""A computation as a CUDA graph.

A pass through a 7B model is thousands of small kernels, and Python launches them slower than a GPU
runs them. Recorded once and replayed, they are one launch, and the numbers are the same. How: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
Compute = Callable[[Sequence[torch.Tensor]], T]


def warm_up(compute: Compute[T], inputs: Sequence[torch.Tensor]) -> None:
    """Call `compute` once: in the first call libraries set themselves up and layers compile."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


class Graph(Generic[T]):
    """`compute(inputs)`, recorded on tensors of the GPU and replayed on others of their shapes.

    compute: may change what it finds, such as gradients; it must neither wait for the GPU nor let a
    shape depend on a value, and has been warmed up. inputs: overwritten by every replay. beside: a
    graph that never runs at the same time, so that both take one memory. A replay's result is
    overwritten by the next. Recording leaves sums of gradients to be cleared. Raises RuntimeError
    for a model that cannot be recorded.
    """

    def __init__(
        self, compute: Compute[T], inputs: Sequence[torch.Tensor], beside: "Graph[T] | None" = None
    ):
        self.inputs = inputs
        self.graph = torch.cuda.CUDAGraph()
        pool = beside.graph.pool() if beside else None
        # NCCL's own thread may look at its events meanwhile.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.result = compute(inputs)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> T:
        for recorded, values in zip(self.inputs, inputs, strict=True):
            recorded.copy_(values, non_blocking=True)
        self.graph.replay()
        return self.result


def told(what: str, error: Exception) -> None:
    """Say in a line what is done without, and why."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    print(f"{what}: {reason}", flush=True)
