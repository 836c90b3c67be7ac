"""One pass through a model as a CUDA graph.

The forward and backward pass of a 7B model is over ten thousand small kernels, and Python
launches them slower than a GPU runs them. Recorded once and replayed, they are one launch, and
the numbers are the same. How: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable

import torch

from verse.training.packing import Batch


class Graph:
    """`compute(batch, factor)`, recorded on one batch and replayed on others of its shape.

    compute: adds to the gradients of the weights and returns a scalar; it must neither wait for
    the GPU nor let a shape depend on a value. batch, factor: tensors on the GPU, overwritten by
    every replay. Recording computes twice, and leaves sums of gradients to be cleared. Raises
    RuntimeError for a model that cannot be recorded.
    """

    def __init__(
        self,
        compute: Callable[[Batch, torch.Tensor], torch.Tensor],
        batch: Batch,
        factor: torch.Tensor,
    ):
        self.batch, self.factor = batch, factor
        # Libraries set themselves up in the first call, which cannot be recorded.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute(batch, factor)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # NCCL's own thread may look at its events meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = compute(batch, factor)

    def __call__(self, batch: Batch, factor: torch.Tensor) -> torch.Tensor:
        for recorded, values in zip(vars(self.batch).values(), vars(batch).values(), strict=True):
            recorded.copy_(values, non_blocking=True)
        self.factor.copy_(factor)
        self.graph.replay()
        return self.result.clone()
