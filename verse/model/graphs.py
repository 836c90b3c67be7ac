"""A computation as a CUDA graph.

A pass through a 7B model is thousands of small kernels, and Python launches them slower than a GPU
runs them. Recorded once and replayed, they are one launch, and the numbers are the same. How: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import cycle
from typing import Any, Generic, TypeVar

import torch

from verse.errors import first_line
from verse.model import distributed

T = TypeVar("T")
Compute = Callable[[Sequence[torch.Tensor]], T]


@cache
def side_stream() -> torch.cuda.Stream:
    """The one that graphs are recorded on: cuBLAS takes 32 MiB for each stream that it meets."""
    return torch.cuda.Stream()


def warm_up(compute: Compute[T], inputs: Sequence[torch.Tensor]) -> T:
    """What `compute` returns: in the first call libraries set themselves up and layers compile."""
    stream = side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = compute(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return result


class Graph(Generic[T]):
    """`compute(inputs)`, recorded on tensors of the GPU and replayed on others of their shapes.

    compute: may change what it finds, such as gradients; it must neither wait for the GPU nor let a
    shape depend on a value, and has been warmed up. inputs: overwritten by every replay. beside: a
    graph that never runs at the same time, so that both take one memory. A replay's result is
    overwritten by the next. copies: recorded, to be replayed in turn: a graph of thousands of
    kernels is launched while another runs, but not while it runs itself. Recording leaves sums of
    gradients to be cleared. Raises RuntimeError for a model that cannot be recorded.
    """

    def __init__(
        self,
        compute: Compute[T],
        inputs: Sequence[torch.Tensor],
        beside: "Graph[T] | None" = None,
        copies: int = 1,
    ):
        self.inputs = inputs
        self.pool: Any = beside.pool if beside else torch.cuda.graph_pool_handle()
        self.recorded: list[tuple[torch.cuda.CUDAGraph, T]] = []
        for _ in range(copies):
            graph = torch.cuda.CUDAGraph()
            # NCCL's own thread may look at its events meanwhile.
            with (
                left_as_found(self.pool),
                torch.cuda.graph(
                    graph,
                    pool=self.pool,
                    stream=side_stream(),
                    capture_error_mode="thread_local",
                ),
            ):
                result = compute(inputs)
            self.recorded.append((graph, result))
        self.turns = cycle(self.recorded)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> T:
        for recorded, values in zip(self.inputs, inputs, strict=True):
            recorded.copy_(values, non_blocking=True)
        graph, result = next(self.turns)
        graph.replay()
        return result


@contextmanager
def left_as_found(pool: Any) -> Iterator[None]:
    """Undo what a recording that fails leaves behind in PyTorch before 2.14.

    Its stream stays the current one, beside that of all other threads, so that a model would
    compute with weights which another thread is still loading; the allocator goes on serving its
    pool, and the generator counts for it: https://github.com/pytorch/pytorch/pull/190308.
    """
    stream = torch.cuda.current_stream()
    try:
        yield
    except Exception:
        torch.cuda.set_stream(stream)
        with suppress(RuntimeError):  # it has ended where only memory ran out
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        with torch.cuda.graph(torch.cuda.CUDAGraph()):  # the end of this one is the generator's too
            torch.zeros(1, device=stream.device)
        raise


def to_device_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on its way to a device: whoever sends it waits for nothing, and what is
    launched afterwards finds it there."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class AsyncHostCopy:
    """A tensor on its way from the GPU: whoever reads it waits for it, and not for what the GPU was
    given to do after it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor, self.arrived = tensor, None
        if tensor.is_cuda:
            self.tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self.tensor.copy_(tensor, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def value(self) -> torch.Tensor:
        if self.arrived:
            self.arrived.synchronize()
        return self.tensor


def warn_fallback(what: str, reason: str | Exception) -> None:
    """Say in a line, once for all processes, what is done without, and why."""
    distributed.say(f"{what}: {first_line(reason)}")
