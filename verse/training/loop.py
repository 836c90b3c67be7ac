"""Train a LoRA adapter: the loss on completions only, the same result however it is split.

Every optimizer step takes `batch_size` poems. Each process takes its share of them and cuts it
into passes that fit the memory; the summed loss of each pass is divided by the tokens of the
whole batch, and the gradients add up, so the split changes nothing but speed. The random
numbers of a step depend on the seed and the step alone: a training that resumes needs no
generator's state.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from verse.errors import UserError
from verse.model import distributed
from verse.model.encoding import Example
from verse.params import Train
from verse.training.checkpoint import Checkpoints, trained
from verse.training.graphs import Graph
from verse.training.loss import summed_loss
from verse.training.packing import Batch, lay_out, shape_of
from verse.training.plan import Plan


@dataclass(frozen=True)
class Task:
    """What to learn, and how."""

    examples: list[Example]
    validation: list[Example]
    settings: Train
    seed: int

    @property
    def steps(self) -> int:
        return math.ceil(len(self.examples) / self.settings.batch_size) * self.settings.epochs

    def batches(self) -> Iterator[list[Example]]:
        """The poems of each step, reshuffled every epoch; an epoch's last may be fewer."""
        for epoch in range(self.settings.epochs):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.examples), generator=generator).tolist()
            for start in range(0, len(order), self.settings.batch_size):
                yield [self.examples[i] for i in order[start : start + self.settings.batch_size]]


@dataclass
class Curves:
    """The loss of each step, and the validation's before, now and then, and after.

    Rows of {"step", "loss"}; validation rows also {"loss_per_character"}. Nats, the mean over
    the completions' tokens or characters, the end counted as one of either.
    """

    train: list[dict[str, float]]
    validation: list[dict[str, float]]


def train(model: PreTrainedModel, task: Task, plan: Plan, checkpoints: Checkpoints) -> Curves:
    """Train the adapter in place and return its curves; resumes from `checkpoints`.

    Under `verse.model.distributed` every process calls this with the same arguments and returns
    with the same adapter; only process 0 has the validation's curve. Raises UserError if the loss
    leaves the finite numbers, OutOfMemoryError in all processes if memory runs out in any; the
    steps before that are in a checkpoint then.
    """
    settings, device = task.settings, next(model.parameters()).device
    chief = distributed.rank() == 0
    weights = list(trained(model).values())
    optimizer = torch.optim.AdamW(
        weights,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
    scaler = torch.amp.GradScaler(device.type, enabled=plan.dtype == torch.float16)
    if plan.recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    curves = Curves([], [])
    start = checkpoints.restore(model, optimizer, scaler, curves)

    def validate(step: int) -> None:
        known = curves.validation and curves.validation[-1]["step"] == step
        if chief and not known:
            loss = evaluate(model, task.validation, plan)
            check_finite(loss["loss"], step, plan.dtype)
            curves.validation.append({"step": step, **loss})

    graph = record(model, task, plan)
    progress = tqdm(total=task.steps, initial=start, unit="step", disable=None if chief else True)
    for step, batch in enumerate(task.batches()):
        if step < start:
            continue
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, task.steps, settings.warmup)
        torch.manual_seed(task.seed * 1_000_003 + step + distributed.rank() * 2**48)
        short = False
        try:
            if step % settings.eval_every == 0:
                validate(step)
            mean_loss = add_gradients(model, batch, plan, graph, scaler)
        except torch.OutOfMemoryError:
            short = True
        if distributed.in_any(short):
            if chief:
                checkpoints.save(step, model, optimizer, scaler, curves)
            distributed.wait_for_all()
            raise torch.OutOfMemoryError
        distributed.add_up([*gradients(weights), mean_loss])
        loss = mean_loss.item()
        check_finite(loss, step + 1, plan.dtype)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=graph is None)
        curves.train.append({"step": step + 1, "loss": round(loss, 4)})
        progress.set_postfix(loss=f"{loss:.3f}")
        progress.update()
        if chief and checkpoints.due(step + 1) and step + 1 < task.steps:
            checkpoints.save(step + 1, model, optimizer, scaler, curves)
    progress.close()
    validate(task.steps)
    return curves


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


def record(model: PreTrainedModel, task: Task, plan: Plan) -> Graph | None:
    """A pass over this process's share of any step as a CUDA graph.

    None on a CPU, if a step takes several passes, or if the model or the memory does not allow it.
    """
    device = next(model.parameters()).device
    shares = [share for step in task.batches() if (share := own_share(step))]
    several = not shares or max(map(len, shares)) > plan.poems_per_pass
    if device.type == "cpu" or plan.recomputed or several:
        return None
    shapes = [shape_of(share, plan.prefix, plan.poems_per_row) for share in shares]
    height, width = (max(sizes) for sizes in zip(*shapes, strict=True))
    gradients(list(trained(model).values()))

    def compute(batch: Batch, factor: torch.Tensor) -> torch.Tensor:
        loss = summed_loss(model, batch, plan.dtype, width - len(plan.prefix))
        (loss * factor).backward()
        return loss.detach()

    model.train()
    batch = lay_out(shares[0], plan.prefix, plan.poems_per_row, (height, width)).to(device)
    try:
        return Graph(compute, batch, torch.zeros((), device=device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"without a CUDA graph, which would be faster: {str(error).splitlines()[0]}")
        return None
    finally:
        model.zero_grad(set_to_none=False)


def own_share(batch: list[Example]) -> list[Example]:
    """The poems of a step that this process computes."""
    return batch[distributed.rank() :: distributed.size()]


def gradients(weights: list[nn.Parameter]) -> list[torch.Tensor]:
    """The weights' gradients; zeros where there is none yet."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    return [weight.grad for weight in weights if weight.grad is not None]


def add_gradients(
    model: PreTrainedModel,
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
            shape = graph.batch.input_ids.shape
            laid_out = lay_out(part, plan.prefix, plan.poems_per_row, (shape[0], shape[1]))
            total += graph(laid_out, scaler.scale(mean)) * mean
        else:
            laid_out = lay_out(part, plan.prefix, plan.poems_per_row)
            loss = summed_loss(model, laid_out, plan.dtype) * mean
            scaler.scale(loss).backward()
            total += loss.detach()
    return total


@torch.no_grad()
def evaluate(model: PreTrainedModel, examples: list[Example], plan: Plan) -> dict[str, float]:
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
