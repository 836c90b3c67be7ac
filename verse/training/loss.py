"""The loss of a pass: cross entropy on completions, behind a prefix that all poems share."""

from contextlib import AbstractContextManager

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from verse.model.attention import attention, no_mask
from verse.training.attention import SHARED_PREFIX
from verse.training.packing import IGNORED, Batch, Shape

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def summed_loss(
    model: PreTrainedModel, batch: Batch, shape: Shape, dtype: torch.dtype, *, shared: bool = True
) -> torch.Tensor:
    """Cross entropy summed over the labels, in float32. No shape depends on a value.

    shared: compute the prefix once, within `behind_prefix`. Else it goes with each poem, a
    poem a row, in the model's own attention: slower, and what any causal model can.
    """
    device = batch.input_ids.device
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = one_row(model, batch, shape) if shared else rows(model, batch, shape)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits, batch.labels, ignore_index=IGNORED, reduction="sum")


def behind_prefix(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Let the model's attention be that of poems behind one prefix, in backward passes too."""
    return attention(model, SHARED_PREFIX)


def one_row(model: PreTrainedModel, batch: Batch, shape: Shape) -> torch.Tensor:
    """Logits of the places that predict, (L, vocabulary)."""
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=no_mask(batch.input_ids.device),
        use_cache=False,
        logits_to_keep=batch.predicting,
        there=batch.there,
        back=batch.back,
        poems=shape.poems,
        prefix=shape.shared,
    )
    return output.logits[0]


def rows(model: PreTrainedModel, batch: Batch, shape: Shape) -> torch.Tensor:
    """The same, of each poem with its own prefix; what fills up a row comes last, unseen."""
    ids = as_rows(batch.input_ids[0], batch, shape)
    logits = model(input_ids=ids, use_cache=False).logits[:, shape.shared :].flatten(0, 1)
    return logits[batch.back[batch.predicting - shape.prefix]]


def as_rows(tokens: torch.Tensor, batch: Batch, shape: Shape) -> torch.Tensor:
    """Values of the T tokens as rows of prefix and poem, (N, prefix + S)."""
    prefix = tokens[: shape.shared].expand(shape.poems, shape.shared)
    own = tokens[shape.prefix :][batch.there].view(shape.poems, shape.longest)
    return torch.cat([prefix, own], 1)


@torch.no_grad()
def shares_prefix(model: PreTrainedModel, batch: Batch, shape: Shape, dtype: torch.dtype) -> str:
    """Why the prefix cannot be shared by this model; nothing if it can, which is tried out."""
    model.eval()
    try:
        with behind_prefix(model):
            found = summed_loss(model, batch, shape, dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model that knows nothing of it may raise anything
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    expected = summed_loss(model, batch, shape, dtype, shared=False)
    far = (found - expected).abs() > TOLERANCE[dtype] * expected.abs()
    return f"the loss is {found.item():.3f}, not {expected.item():.3f}" if far.item() else ""
