"""Train a LoRA adapter: the loss on completions only, the same result however it is split.

Every optimizer step takes `batch_size` poems. Each process takes its share of them and cuts it
into passes that fit the memory; the summed loss of each pass is divided by the tokens of the
whole batch, and the gradients add up, so the split changes nothing but speed. Dropout
is a hash of the seed, the step and the poem: a training that resumes needs no generator's state.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from verse.errors import UserError
from verse.model import distributed
from verse.model.encoding import Example
from verse.model.graphs import AsyncHostCopy
from verse.params import Train
from verse.speed import Stopwatch
from verse.training.checkpoint import Checkpoints
from verse.training.evaluation import Evaluation
from verse.training.flat_params import FlatParams
from verse.training.loss import Objective, cross_entropy
from verse.training.micro_batches import Plan, accumulate_gradients, reduce_gradients
from verse.training.proof import Proof, prove


@dataclass(frozen=True)
class Task:
    """What to learn, and how."""

    examples: list[Example]
    validation: list[Example]
    settings: Train
    seed: int
    objective: Objective = cross_entropy

    @property
    def steps(self) -> int:
        return math.ceil(len(self.examples) / self.settings.batch_size) * self.settings.epochs

    def batches(self) -> Iterator[list[Example]]:
        """The poems of each step, dealt anew every epoch, each step's from short to long.

        Shuffled, sorted by length and cut into bands of as many poems as there are steps; every
        step takes one of each band, so that all steps are about equally long and few places of a
        pass stay empty. Where the poems don't come out even, some steps have one fewer.
        """
        steps = self.steps // self.settings.epochs
        for epoch in range(self.settings.epochs):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)

            def shuffled(poems: list[Example], using: torch.Generator = generator) -> list[Example]:
                return [poems[i] for i in torch.randperm(len(poems), generator=using).tolist()]

            poems = sorted(shuffled(self.examples), key=lambda poem: poem.length)
            bands = [shuffled(poems[i : i + steps]) for i in range(0, len(poems), steps)]
            for step in range(steps):
                yield [band[step] for band in bands if step < len(band)]


@dataclass
class Curves:
    """The loss of each step, and the validation's before, now and then, and after.

    Rows of {"step", "loss"}; validation rows also {"loss_per_character"}. Nats, the mean over
    the completions' tokens or characters, the end counted as one of either.
    """

    train: list[dict[str, float]]
    validation: list[dict[str, float]]


def train(
    model: PreTrainedModel,
    task: Task,
    plan: Plan,
    checkpoints: Checkpoints,
    watch: Stopwatch,
    live: Callable[[Curves], None] = lambda curves: None,
) -> tuple[Curves, Proof]:
    """Train the adapter in place; its curves, and what was proven before the first step.

    Resumes from `checkpoints`. live: is given the curves whenever they have grown, in process 0.

    Under `verse.model.distributed` every process calls this with the same arguments and returns
    with the same adapter and curves. Raises UserError if the loss leaves the finite numbers,
    OutOfMemoryError in all processes if memory runs out in any; the steps before that are in a
    checkpoint then. Where the model is spread over the processes it is raised in that process only,
    since the others wait for its part.
    """
    try:
        return run(model, task, plan, checkpoints, watch, live)
    finally:
        checkpoints.wait()


def run(
    model: PreTrainedModel,
    task: Task,
    plan: Plan,
    checkpoints: Checkpoints,
    watch: Stopwatch,
    live: Callable[[Curves], None],
) -> tuple[Curves, Proof]:
    settings, device = task.settings, next(model.parameters()).device
    is_main_process = distributed.rank() == 0
    trained = FlatParams(model, plan.dtype)
    weights = trained.flat
    optimizer = torch.optim.AdamW(
        [weights],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
    scaler = torch.amp.GradScaler(device.type, enabled=plan.dtype == torch.float16)
    curves = Curves([], [])
    steps = list(task.batches())
    check_epochs(task, steps)
    # With the first weights, so that a training that resumes proves, and writes, the same.
    passes, proof = prove(model, plan, steps, trained, task.objective, task.validation)
    plan = passes.plan
    start = checkpoints.restore(trained.named(), optimizer, scaler, curves)
    trained.refresh()
    evaluation = distributed.all_or_none(
        lambda: Evaluation(model, plan, task.validation, passes.graph, task.objective),
        alone=plan.sharded,
    )
    if is_main_process:
        print(proof, flush=True)
    layouts = (passes.lay_out(step) for step in steps[start:])
    laid_out = next(layouts, None)
    distributed.all_reduce_sum([torch.zeros((), device=device)])  # the first sets itself up
    watch.restart()  # all is compiled and recorded
    quiet = None if is_main_process else True
    progress = tqdm(total=task.steps, initial=start, unit="step", disable=quiet)
    unread: list[tuple[int, AsyncHostCopy]] = []
    short = False

    def validate(step: int) -> None:
        known = curves.validation and curves.validation[-1]["step"] == step
        if not known:
            loss = evaluation()
            check_finite(loss["loss"], step, plan.dtype)
            curves.validation.append({"step": step, **loss})

    def read_losses() -> None:
        """Wait for the GPU, which is why the loss of a step is read when the next one runs."""
        while unread:
            step, reading = unread.pop(0)
            loss = reading.value().item()
            check_finite(loss, step, plan.dtype)
            curves.train.append({"step": step, "loss": round(loss, 4)})
            progress.set_postfix(loss=f"{loss:.3f}")
            progress.update()
        if is_main_process:
            live(curves)

    for step, batch in islice(enumerate(steps), start, None):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, task.steps, settings.warmup)
        tokens = sum(len(e.completion) for e in batch)
        try:
            if step % settings.eval_every == 0:
                validate(step)
            key = (task.seed * 1_000_003 + step) % 2**31
            mean_loss = accumulate_gradients(passes, laid_out or [], tokens, scaler, key)
        except torch.OutOfMemoryError:
            if plan.sharded:
                raise
            short = True
        if distributed.any_rank(short):
            read_losses()
            if is_main_process:
                checkpoints.save(step, trained.named(), optimizer, scaler, curves)
                checkpoints.wait()
            distributed.barrier()
            raise torch.OutOfMemoryError
        reduce_gradients(passes, mean_loss, scaler, optimizer)
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        trained.clear()
        trained.refresh()
        laid_out = next(layouts, None)
        read_losses()
        unread.append((step + 1, AsyncHostCopy(mean_loss)))
        if is_main_process and checkpoints.due(step + 1) and step + 1 < task.steps:
            read_losses()
            checkpoints.save(step + 1, trained.named(), optimizer, scaler, curves)
    read_losses()
    progress.close()
    validate(task.steps)
    trained.restore_weights()
    return curves, proof


def check_epochs(task: Task, steps: list[list[Example]]) -> None:
    """Raise UserError unless each epoch has every poem once."""
    length = len(steps) // task.settings.epochs
    for epoch in range(task.settings.epochs):
        seen = [id(poem) for step in steps[epoch * length : (epoch + 1) * length] for poem in step]
        if sorted(seen) != sorted(map(id, task.examples)):
            raise UserError(f"epoch {epoch}: it has not every poem once")


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
