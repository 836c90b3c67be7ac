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

from verse.errors import UserError
from verse.model import distributed
from verse.model.memory import PASS_TOKENS, Mode
from verse.params import Train
from verse.training.checkpoint import Checkpoints
from verse.training.graphs import Graph
from verse.training.packing import IGNORED, Batch, Example, lay_out, shape_of, shared_prefix


@dataclass
class Curves:
    """The loss of each step, and the validation's before, now and then, and after.

    Rows of {"step", "loss"}; validation rows also {"loss_per_character"}. Nats, the mean over
    the completions' tokens or characters, the end counted as one of either.
    """

    train: list[dict]
    validation: list[dict]


@dataclass(frozen=True)
class Plan:
    """How poems go through the model; it changes the speed and the memory, not the result."""

    prefix: list[int]  # token ids that all prompts begin with, computed once a row
    dtype: torch.dtype
    poems_per_pass: int  # in one forward and backward pass of a process
    poems_per_row: int  # behind one prefix; more save tokens, but attention grows with the square
    checkpointing: bool = False  # keep one activation a layer, compute the others twice


def choose_plan(
    mode: Mode,
    device: torch.device,
    dtype: torch.dtype,
    settings: Train,
    examples: list[Example],
) -> Plan:
    """The whole batch in one pass if memory is used fast, else about `PASS_TOKENS` tokens.

    examples: all that are trained or validated on.
    """
    plan = Plan(
        shared_prefix(examples), dtype, settings.batch_size, 4 if device.type == "cpu" else 8
    )
    if mode == "fast":
        return plan
    longest = max(len(e.prompt) + len(e.completion) for e in examples)
    poems = max(1, min(settings.batch_size, PASS_TOKENS // longest))
    return replace(plan, poems_per_pass=poems, checkpointing=True)


def train(
    model: nn.Module,
    examples: list[Example],
    validation: list[Example],
    settings: Train,
    *,
    seed: int,
    plan: Plan,
    checkpoints: Checkpoints,
) -> Curves:
    """Train the adapter in place and return its curves; resumes from `checkpoints`.

    Under `verse.model.distributed` every process calls this with the same arguments and returns
    with the same adapter; only process 0 has the validation's curve. Raises UserError if the loss
    leaves the finite numbers or the memory is too small for a single poem.
    """
    device = next(model.parameters()).device
    chief = distributed.rank() == 0
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
    scaler = torch.amp.GradScaler(device.type, enabled=plan.dtype == torch.float16)
    if plan.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    steps = step_count(len(examples), settings)
    curves = Curves([], [])
    start = checkpoints.restore(model, optimizer, scaler, curves)

    def validate(step: int) -> None:
        if chief:
            loss = evaluate(model, validation, plan)
            check_finite(loss["loss"], step, plan.dtype)
            curves.validation.append({"step": step, **loss})

    graph = None
    if device.type == "cuda" and not plan.checkpointing:
        graph = record(model, list(batches(examples, settings, seed)), plan)
    progress = tqdm(total=steps, initial=start, unit="step", disable=None if chief else True)
    for step, batch in enumerate(batches(examples, settings, seed)):
        if step < start:
            continue
        if step % settings.eval_every == 0:
            validate(step)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, steps, settings.warmup)
        plan, loss = add_gradients(model, batch, plan, graph, scaler, seed, step)
        check_finite(loss, step + 1, plan.dtype)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=graph is None)
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


def record(model: nn.Module, steps: list[list[Example]], plan: Plan) -> Graph | None:
    """A pass over this process's share of any step as a CUDA graph.

    None if a step takes several passes, or the model or the memory does not allow it.
    """
    shares = [share for step in steps if (share := own_share(step))]
    if not shares or max(map(len, shares)) > plan.poems_per_pass:
        return None
    shapes = [shape_of(share, plan.prefix, plan.poems_per_row) for share in shares]
    height, width = (max(sizes) for sizes in zip(*shapes, strict=True))
    device = next(model.parameters()).device
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)

    def compute(batch: Batch, factor: torch.Tensor) -> torch.Tensor:
        loss = summed_loss(model, batch, plan.dtype, width - len(plan.prefix))
        (loss * factor).backward()
        return loss.detach()

    model.train()
    batch = lay_out(shares[0], plan.prefix, plan.poems_per_row, (height, width)).to(device)
    try:
        return Graph(compute, batch, torch.zeros((), device=device))
    except RuntimeError as error:
        print(f"without a CUDA graph, which would be faster: {str(error).splitlines()[0]}")
        return None
    finally:
        model.zero_grad(set_to_none=False)


def own_share(batch: list[Example]) -> list[Example]:
    """The poems of a step that this process computes."""
    return batch[distributed.rank() :: distributed.size()]


def add_gradients(
    model: nn.Module,
    batch: list[Example],
    plan: Plan,
    graph: Graph | None,
    scaler: torch.amp.GradScaler,
    seed: int,
    step: int,
) -> tuple[Plan, float]:
    """Set the gradients of a batch, summed over the processes; its mean loss per token in nats.

    Where memory runs out, the passes are halved, once and for all, and the step done again.
    """
    while True:
        torch.manual_seed(seed * 1_000_003 + step + distributed.rank() * 2**48)
        try:
            loss = accumulate(model, batch, plan, graph, scaler)
            break
        except torch.OutOfMemoryError:
            if plan.poems_per_pass == 1:
                raise UserError(
                    "out of GPU memory with one poem at a time: set train.memory to low, or "
                    "model.quantization to nf4, or lower train.lora.r"
                ) from None
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        plan = replace(plan, poems_per_pass=plan.poems_per_pass // 2)
        print(f"out of GPU memory: {plan.poems_per_pass} poems a pass from here on")
    weights = [p for p in model.parameters() if p.requires_grad]
    for weight in weights:
        if weight.grad is None:  # more processes than poems
            weight.grad = torch.zeros_like(weight)
    distributed.add_up([*(weight.grad for weight in weights), loss])
    return plan, loss.item()


def accumulate(
    model: nn.Module,
    batch: list[Example],
    plan: Plan,
    graph: Graph | None,
    scaler: torch.amp.GradScaler,
) -> torch.Tensor:
    """Add the gradients of this process's share of a batch, pass by pass.

    Returns the share's part of the batch's mean loss per token in nats, a scalar.
    """
    model.train()
    device = next(model.parameters()).device
    mean = torch.tensor(1 / sum(len(e.completion) for e in batch), device=device)
    total = torch.zeros((), device=device)
    for part in passes(own_share(batch), plan):
        if graph:
            shape = tuple(graph.batch.input_ids.shape)
            laid_out = lay_out(part, plan.prefix, plan.poems_per_row, shape)
            total += graph(laid_out, scaler.scale(mean)) * mean
        else:
            laid_out = lay_out(part, plan.prefix, plan.poems_per_row)
            loss = summed_loss(model, laid_out, plan.dtype) * mean
            scaler.scale(loss).backward()
            total += loss.detach()
    return total


@torch.no_grad()
def evaluate(model: nn.Module, examples: list[Example], plan: Plan) -> dict[str, float]:
    """The loss of the examples in evaluation mode, without dropout: a row of the curve."""
    model.eval()
    total = 0.0
    for part in passes(examples, plan):
        laid_out = lay_out(part, plan.prefix, plan.poems_per_row)
        total += summed_loss(model, laid_out, plan.dtype).item()
    return {
        "loss": round(total / sum(len(e.completion) for e in examples), 4),
        "loss_per_character": round(total / sum(e.characters for e in examples), 4),
    }


def passes(examples: list[Example], plan: Plan) -> Iterator[list[Example]]:
    for start in range(0, len(examples), plan.poems_per_pass):
        yield examples[start : start + plan.poems_per_pass]


def summed_loss(
    model: nn.Module, batch: Batch, dtype: torch.dtype, last: int | None = None
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
