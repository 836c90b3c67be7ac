"""A pass through a model as a CUDA graph.

The forward and backward pass of a 7B model is over ten thousand small kernels, and Python
launches them slower than a GPU runs them. Recorded once and replayed, they are one launch, and
the numbers are the same. How: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable, Sequence

import torch

Compute = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def warm_up(compute: Compute, inputs: Sequence[torch.Tensor]) -> None:
    """Call `compute` once: in the first call libraries set themselves up and layers compile."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


class Graph:
    """`compute(inputs)`, recorded on tensors of the GPU and replayed on others of their shapes.

    compute: returns a scalar and may add to the gradients of the weights; it must neither wait for
    the GPU nor let a shape depend on a value, and has been warmed up. inputs: overwritten by every
    replay. beside: a graph that never runs at the same time, so that both take one memory.
    Recording leaves sums of gradients to be cleared. Raises RuntimeError for a model that cannot
    be recorded.
    """

    def __init__(
        self, compute: Compute, inputs: Sequence[torch.Tensor], beside: "Graph | None" = None
    ):
        self.inputs = inputs
        self.graph = torch.cuda.CUDAGraph()
        pool = beside.graph.pool() if beside else None
        # NCCL's own thread may look at its events meanwhile.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.result = compute(inputs)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        for recorded, values in zip(self.inputs, inputs, strict=True):
            recorded.copy_(values, non_blocking=True)
        self.graph.replay()
        return self.result.clone()
