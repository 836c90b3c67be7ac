"""Compute in float32 with a model whose weights are held in less.

What is compared in a reduced precision differs by rounding, which may hide a mistake. In float32
the same mistake stands out. A copy of a large model in float32 would need twice the memory, of one
in 4 bits eight times; here a weight is widened where it is used and forgotten again.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

HALF = (torch.bfloat16, torch.float16)
PART = 2**26  # numbers of a weight that are widened at once: 256 MiB
DTYPE: Any = torch._C.TensorBase.__dict__["dtype"].__get__


class Linear(torch.autograd.Function):
    """A linear layer that keeps its frozen weight as it is for the backward pass, not widened, and
    widens a part of it at a time."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        parts = [inputs @ part.float().t() for part in in_parts(weight)]
        return torch.cat(parts, -1) if parts[1:] else parts[0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        parts = in_parts(weight)
        gradients = gradient.split([len(part) for part in parts], -1)
        total = gradients[0] @ parts[0].float()
        for some, part in zip(gradients[1:], parts[1:], strict=True):
            total += some @ part.float()
        return total, None


def in_parts(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A weight, (outputs, inputs), cut into parts that are small in float32."""
    return weight.split(max(1, PART // weight.shape[1]))


class Float32(TorchFunctionMode):
    """Within it every operation widens what it is given in bfloat16 or float16, and whatever asks
    for one of them gets float32. Values that 4 bits stand for stay as they are rounded."""

    within = 0

    def __enter__(self) -> "Float32":
        Float32.within += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        Float32.within -= 1
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == DTYPE:
            return torch.float32 if func(*args) in HALF else func(*args)
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__") or "bitsandbytes" in str(func):
            return func(*args, **kwargs)
        if func is functional.embedding:  # of which a few rows are wanted
            return widened(func(*args, **kwargs))
        if func is functional.linear and not args[1].requires_grad and args[1].dtype in HALF:
            inputs, weight, bias = (*args, None)[:3]
            outputs = Linear.apply(widened(inputs), weight)
            bias = kwargs.get("bias", bias)
            return outputs if bias is None else outputs + widened(bias)
        keeps = name.endswith("_") and not name.endswith("__")  # what it writes to
        first, rest = (args[:1], args[1:]) if keeps else ((), args)
        return func(*first, *widened(rest), **widened(kwargs))


def precision(model: nn.Module, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """In which a model computes in `dtype`, whatever its weights are held in."""
    if dtype != torch.float32:
        return torch.autocast(next(model.parameters()).device.type, dtype)
    return Float32() if any(w.dtype in HALF for w in model.parameters()) else nullcontext()


def paused(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that moves weights and computes nothing, whatever precision it is called in."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return call


def in_recomputation() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What PyTorch's checkpointing computes in, the first time and again: the same."""
    return nullcontext(), Float32() if Float32.within else nullcontext()


def widened(value: Any) -> Any:
    """The same with tensors and names of precisions in float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in HALF else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in HALF else value
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(widened, value))
    if isinstance(value, dict):
        return {key: widened(item) for key, item in value.items()}
    return value
