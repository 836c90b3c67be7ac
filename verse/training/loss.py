"""The loss of a batch: cross entropy on completions, poems behind a prefix that they share."""

import torch
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from verse.training.packing import IGNORED, Batch


def summed_loss(
    model: PreTrainedModel, batch: Batch, dtype: torch.dtype, last: int | None = None
) -> torch.Tensor:
    """Cross entropy summed over the labels, in float32.

    Only places where some row predicts something go through the output layer, the widest; or,
    where no shape may depend on a value, the `last` ones of each row.
    """
    device = next(model.parameters()).device
    if last is None:
        places = (batch.labels != IGNORED).any(dim=0).nonzero()[:, 0].to(device)
    batch = batch.to(device)
    labels = batch.labels[:, places] if last is None else batch.labels[:, -last:]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=attention_masks(model.config.get_text_config(), batch, dtype),
            use_cache=False,
            logits_to_keep=places if last is None else last,
        ).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")


def attention_masks(
    config: PretrainedConfig, batch: Batch, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The batch's mask as the model wants it, narrowed where its layers see a window only.

    Models whose layers are of two kinds take a mask for each kind, by its name.
    """
    full = batch.attention
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if window is None or kinds == {"full_attention"}:
        return as_wanted(full, config, dtype)
    positions = batch.position_ids
    near = (positions[:, :, None] - positions[:, None, :] < window)[:, None]
    masks = {"full_attention": full, "sliding_attention": full & near}
    if kinds == {"sliding_attention"}:
        return as_wanted(masks["sliding_attention"], config, dtype)
    return {kind: as_wanted(masks[kind], config, dtype) for kind in kinds & set(masks)}


def as_wanted(seen: torch.Tensor, config: PretrainedConfig, dtype: torch.dtype) -> torch.Tensor:
    """True where a token may look; for models without a fused attention, what to add there."""
    if config._attn_implementation != "eager":
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
