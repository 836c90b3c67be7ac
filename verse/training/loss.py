"""The loss of a pass, behind a prefix that all poems share: cross entropy on completions.

Another objective is another function beside `cross_entropy`, given to `loop.Task`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from verse.model.attention import attention, no_mask
from verse.model.float32 import precision
from verse.training.attention import SHARED_PREFIX
from verse.training.packing import IGNORED, Batch, Shape

Objective = Callable[[Callable[[Batch], torch.Tensor], Batch], torch.Tensor]
"""objective(model, batch): the loss, a scalar, summed over the batch's labels, each poem by itself.
model: gives the logits from which a batch's labels are predicted, (L, vocabulary), in float32. No
shape may depend on a value, and nothing may wait for the GPU."""


def cross_entropy(model: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
    """In nats, summed over the labels."""
    logits = model(batch)
    return functional.cross_entropy(logits, batch.labels, ignore_index=IGNORED, reduction="sum")


def summed_loss(
    model: PreTrainedModel,
    batch: Batch,
    shape: Shape,
    dtype: torch.dtype,
    *,
    shared: bool = True,
    objective: Objective = cross_entropy,
) -> torch.Tensor:
    """The objective of a batch that is laid out in a shape.

    shared: compute the prefix once, within `behind_prefix`. Else it goes with each poem, a
    poem a row, in the model's own attention: slower, and what any causal model can.
    """

    def logits_of(batch: Batch) -> torch.Tensor:
        with precision(model, dtype):
            logits = one_row(model, batch, shape) if shared else rows(model, batch, shape)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    return objective(logits_of, batch)


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
        grid_from_flat=batch.grid_from_flat,
        flat_from_grid=batch.flat_from_grid,
        poems=shape.poems,
        prefix=shape.shared,
    )
    return output.logits[0]


def rows(model: PreTrainedModel, batch: Batch, shape: Shape) -> torch.Tensor:
    """The same, of each poem with its own prefix; what fills up a row comes last, unseen."""
    ids = as_rows(batch.input_ids[0], batch, shape)
    logits = model(input_ids=ids, use_cache=False).logits[:, shape.shared :].flatten(0, 1)
    return logits[batch.flat_from_grid[batch.predicting - shape.prefix]]


def as_rows(tokens: torch.Tensor, batch: Batch, shape: Shape) -> torch.Tensor:
    """Values of the T tokens as rows of prefix and poem, (N, prefix + S)."""
    prefix = tokens[: shape.shared].expand(shape.poems, shape.shared)
    own = tokens[shape.prefix :][batch.grid_from_flat].view(shape.poems, shape.longest)
    return torch.cat([prefix, own], 1)
