"""Train a LoRA adapter: the loss on completions only, the same result however it is split.

Every optimizer step takes `batch_size` poems. Each process takes its share of them and cuts it
into passes that fit the memory; the summed loss of each pass is divided by the tokens of the
whole batch, and the gradients add up, so the split changes nothing but speed. The random
numbers of a step depend on the seed and the step alone: a training that resumes needs no
generator's state.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from verse import distributed
from verse.checkpoint import Checkpoints
from verse.errors import UserError
from verse.memory import PASS_TOKENS, Mode
from verse.packing import IGNORED, Batch, Example, lay_out, shared_prefix
from verse.params import Train


@dataclass
class Curves:
    """The loss of each step, and the validation's before, now and then, and after.

    Rows of {"step", "loss"}; validation rows also {"loss_per_character"}. Nats, the mean over
    the completions' tokens or characters, the end counted as one of either.
    """

    train: list[dict]
    validation: list[dict]


@dataclass(frozen=True)
class Split:
    """How the poems of a step are cut; it changes the speed and the memory, not the result."""

    poems_per_pass: int  # in one forward and backward pass of a process
    poems_per_row: int  # behind one shared prefix; attention's cost grows with a row's square
    checkpointing: bool = False  # keep one activation a layer, compute the others twice


def choose_split(
    mode: Mode, device: torch.device, settings: Train, examples: list[Example]
) -> Split:
    """The whole batch in one pass if memory is used fast, else about `PASS_TOKENS` tokens."""
    row = 4 if device.type == "cpu" else 16
    if mode == "fast":
        return Split(settings.batch_size, row)
    longest = max(len(e.prompt) + len(e.completion) for e in examples)
    return Split(max(1, min(settings.batch_size, PASS_TOKENS // longest)), row, True)


def train(
    model: nn.Module,
    examples: list[Example],
    validation: list[Example],
    settings: Train,
    *,
    seed: int,
    dtype: torch.dtype,
    split: Split,
    checkpoints: Checkpoints,
) -> Curves:
    """Train the adapter in place and return its curves; resumes from `checkpoints`.

    Under `verse.distributed` every process calls this with the same arguments and returns with
    the same adapter; only process 0 has the validation's curve. Raises UserError if the loss
    leaves the finite numbers or the memory is too small for a single poem.
    """
    device = next(model.parameters()).device
    chief = distributed.rank() == 0
    prefix = shared_prefix(examples + validation)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    if split.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    steps = step_count(len(examples), settings)
    curves = Curves([], [])
    start = checkpoints.restore(model, optimizer, scaler, curves)

    def validate(step: int) -> None:
        if chief:
            loss = evaluate(model, validation, prefix, dtype, split)
            check_finite(loss["loss"], step, dtype)
            curves.validation.append({"step": step, **loss})

    progress = tqdm(total=steps, initial=start, unit="step", disable=None if chief else True)
    for step, batch in enumerate(batches(examples, settings, seed)):
        if step < start:
            continue
        if step % settings.eval_every == 0:
            validate(step)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, steps, settings.warmup)
        split, loss = add_gradients(model, batch, prefix, dtype, split, scaler, seed, step)
        check_finite(loss, step + 1, dtype)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        curves.train.append({"step": step + 1, "loss": round(loss, 4)})
        progress.set_postfix(loss=f"{loss:.3f}")
        progress.update()
        if chief and (step + 1) % settings.checkpoint_every == 0 and step + 1 < steps:
            checkpoints.save(step + 1, model, optimizer, scaler, curves)
    progress.close()
    validate(steps)
    return curves


def step_count(poems: int, settings: Train) -> int:
    return math.ceil(poems / settings.batch_size) * settings.epochs


def batches(examples: list[Example], settings: Train, seed: int) -> Iterator[list[Example]]:
    """The poems of each step, reshuffled every epoch; an epoch's last batch may be smaller."""
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order), settings.batch_size):
            yield [examples[i] for i in order[start : start + settings.batch_size]]


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: up along a line, down to 0 along a cosine."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - rising) / (steps + 1 - rising)))


def check_finite(loss: float, step: int, dtype: torch.dtype) -> None:
    if not math.isfinite(loss):
        advice = " or set model.dtype to float32" if dtype == torch.float16 else ""
        raise UserError(f"the loss is {loss} at step {step}: lower train.learning_rate{advice}")


def add_gradients(
    model: nn.Module,
    batch: list[Example],
    prefix: list[int],
    dtype: torch.dtype,
    split: Split,
    scaler: torch.amp.GradScaler,
    seed: int,
    step: int,
) -> tuple[Split, float]:
    """Set the gradients of a batch, summed over the processes; its mean loss per token in nats.

    Where memory runs out, the passes are halved, once and for all, and the step done again.
    """
    while True:
        torch.manual_seed(seed * 1_000_003 + step + distributed.rank() * 2**48)
        try:
            loss = accumulate(model, batch, prefix, dtype, split, scaler)
            break
        except torch.OutOfMemoryError:
            if split.poems_per_pass == 1:
                raise UserError(
                    "out of GPU memory with one poem at a time: set train.memory to low, or "
                    "model.quantization to nf4, or lower train.lora.r"
                ) from None
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        split = replace(split, poems_per_pass=split.poems_per_pass // 2)
        print(f"out of GPU memory: {split.poems_per_pass} poems a pass from here on")
    weights = [p for p in model.parameters() if p.requires_grad]
    for weight in weights:
        if weight.grad is None:  # more processes than poems
            weight.grad = torch.zeros_like(weight)
    distributed.add_up([*(weight.grad for weight in weights), loss])
    return split, loss.item()


def accumulate(
    model: nn.Module,
    batch: list[Example],
    prefix: list[int],
    dtype: torch.dtype,
    split: Split,
    scaler: torch.amp.GradScaler,
) -> torch.Tensor:
    """Add the gradients of this process's share of a batch, pass by pass.

    Returns the share's part of the batch's mean loss per token in nats, a scalar.
    """
    model.train()
    tokens = sum(len(e.completion) for e in batch)
    total = torch.zeros((), device=next(model.parameters()).device)
    share = batch[distributed.rank() :: distributed.size()]
    for part in passes(share, split):
        loss = summed_loss(model, lay_out(part, prefix, split.poems_per_row), dtype) / tokens
        scaler.scale(loss).backward()
        total += loss.detach()
    return total


@torch.no_grad()
def evaluate(
    model: nn.Module,
    examples: list[Example],
    prefix: list[int],
    dtype: torch.dtype,
    split: Split,
) -> dict[str, float]:
    """The loss of the examples in evaluation mode, without dropout: a row of the curve."""
    model.eval()
    total = 0.0
    for part in passes(examples, split):
        total += summed_loss(model, lay_out(part, prefix, split.poems_per_row), dtype).item()
    return {
        "loss": round(total / sum(len(e.completion) for e in examples), 4),
        "loss_per_character": round(total / sum(e.characters for e in examples), 4),
    }


def passes(examples: list[Example], split: Split) -> Iterator[list[Example]]:
    for start in range(0, len(examples), split.poems_per_pass):
        yield examples[start : start + split.poems_per_pass]


def summed_loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """Cross entropy summed over the labels, in float32.

    Only places where some row predicts something go through the output layer, the widest.
    """
    places = (batch.labels != IGNORED).any(dim=0).nonzero()[:, 0]
    device = next(model.parameters()).device
    batch, places = batch.to(device), places.to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=attention_masks(model.config.get_text_config(), batch, dtype),
            use_cache=False,
            logits_to_keep=places,
        ).logits
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.labels[:, places].flatten(), reduction="sum"
    )


def attention_masks(
    config, batch: Batch, dtype: torch.dtype
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


def as_wanted(seen: torch.Tensor, config, dtype: torch.dtype) -> torch.Tensor:
    """True where a token may look; for models without a fused attention, what to add there."""
    if config._attn_implementation != "eager":
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
