"""The loss of a pass: cross entropy on completions, behind a prefix that all poems share."""

from contextlib import AbstractContextManager

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from verse.model.attention import attention, no_mask
from verse.model.float32 import precision
from verse.training.attention import SHARED_PREFIX
from verse.training.packing import IGNORED, Batch, Shape


def summed_loss(
    model: PreTrainedModel, batch: Batch, shape: Shape, dtype: torch.dtype, *, shared: bool = True
) -> torch.Tensor:
    """Cross entropy summed over the labels, in float32. No shape depends on a value.

    shared: compute the prefix once, within `behind_prefix`. Else it goes with each poem, a
    poem a row, in the model's own attention: slower, and what any causal model can.
    """
    with precision(model, dtype):
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
