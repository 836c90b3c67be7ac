"""Proof, before the first step, that what will run learns what plain Transformers with PEFT would.

A few poems go through the model each alone, in its own attention and in float32: that is what
every way of training is held against, gradient by gradient. First the layout (one prefix, poems
side by side, several passes, dropout) in float32 too, where nothing hides a mistake. Then the pass
that will run, compiled and recorded, in its own shape and precision, against a bound that stands
above what rounding does to the poems alone. What fails gives way to the next slower way.

The adapter starts without effect, so that half of its gradients would be zero: it is checked with
other values, and gets its own back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from verse.errors import UserError, is_out_of_memory
from verse.model import distributed
from verse.model.dropout import masks_of
from verse.model.encoding import Example
from verse.model.float32 import precision
from verse.training.packing import PLACES, Batch, Shape, lay_out
from verse.training.passes import Passes, Plan, add_gradients, bring_together, recompute
from verse.training.trained import Trained

POEMS = 3  # the shortest, a middle one, the longest
STEP = 1  # what dropout hashes
SPREAD = 0.02  # standard deviation of what is added to the adapter's weights
EXACT = 2e-3
"""How far a gradient in float32 may be from plain PEFT's, as a share of its norm. Rounding is 1e-6,
what 20 architectures do whose tokens see others .01 to .9."""
ROUNDING = {torch.float32: EXACT, torch.float16: 0.05, torch.bfloat16: 0.1}
"""The same for one tensor in the precision of the training, where the poems alone round to less."""
WHOLE = {torch.float32: EXACT, torch.float16: 0.02, torch.bfloat16: 0.04}
"""The same for all tensors as one."""
SLOPE = {torch.float32: EXACT, torch.float16: 0.01, torch.bfloat16: 0.02}
"""How far the projection on plain PEFT's gradient may be from 1: rounding hardly moves it, a lost
part of the gradient does."""
T = TypeVar("T")
TIMES = 3  # as far as the poems alone, in the precision of the training, may be


@dataclass(frozen=True)
class Proof:
    """Distances of gradients from plain PEFT's in float32, as shares of its norm."""

    gradient: float
    """Of the pass that runs, in its shape and precision."""
    layout: float
    """Of the same layout in float32."""
    rounding: float
    """Of plain PEFT in the precision of the training."""

    def rounded(self) -> dict[str, float]:
        """To two digits."""
        return {name: float(f"{value:.1e}") for name, value in vars(self).items()}

    def __str__(self) -> str:
        how = f"; in float32 by {self.layout:.1g}" if self.rounding else ""
        return (
            "checked: gradients differ from plain PEFT's, each poem alone, by "
            f"{self.gradient:.1g} of their length{how}"
        )


@dataclass(frozen=True)
class Plain:
    """What plain Transformers with PEFT gives for each of some poems: on the CPU."""

    losses: list[float]
    gradients: list[torch.Tensor]
    """Of the summed loss, laid out as `Trained.whole`."""

    def weighed(self, times: Sequence[float]) -> tuple[float, torch.Tensor]:
        """The loss and the gradient with each poem counted so many times."""
        loss = sum(n * loss for n, loss in zip(times, self.losses, strict=True))
        return loss, torch.stack([n * g for n, g in zip(times, self.gradients, strict=True)]).sum(0)


def prove(
    model: PreTrainedModel, plan: Plan, steps: list[list[Example]], trained: Trained
) -> tuple[Passes, Proof]:
    """The fastest passes of a plan that learn what plain PEFT would, and how far they are from it.

    steps: the poems of every step. Raises UserError if none is right, OutOfMemoryError in all
    processes if memory runs out in any.
    """
    check_complete(model, trained)
    poems = choose(steps)
    once = [1.0] * len(poems)

    def together(work: Callable[[], T]) -> T:
        return distributed.all_or_none(work, alone=plan.sharded)

    with other_values(trained, plan.dtype):
        exact, rounded = together(lambda: plain(model, plan, poems, trained))
        say_unreached(model, exact, trained)
        for way in layouts(plan):
            layout, reason = try_layout(model, way, poems, trained, exact)
            if not reason:
                break
            say("each poem with its own prefix, which is slower", reason)
        else:
            raise UserError(
                f"model.name: cannot be trained on several poems at once: {reason}: take another"
            )
        for way in ways(way):  # noqa: B020
            passes = together(partial(Passes, model, way, steps, trained))
            error, reason = try_passes(passes, poems, exact, rounded)
            if not reason:
                rounding = apart(rounded.weighed(once)[1], exact.weighed(once)[1])
                return passes, Proof(error, layout, rounding)
            passes.close()
            say(given_up(way), reason)
    raise UserError(
        f"model.dtype: in this precision the model would learn something else: {reason}: "
        "set it to float32"
    )


def say(what: str, reason: str) -> None:
    if distributed.rank() == 0:
        print(f"{what}: {reason}", flush=True)


def given_up(way: Plan) -> str:
    """What is done without after a way has failed."""
    if way.compiled:
        return "layers are not compiled, which would be faster"
    if way.recorded:
        return "without a CUDA graph, which would be faster"
    return "each poem with its own prefix, which is slower"


def choose(steps: list[list[Example]]) -> list[Example]:
    """The shortest poem, one in the middle and the longest."""
    poems = sorted((poem for step in steps for poem in step), key=lambda poem: poem.length)
    return [poems[i] for i in sorted({0, len(poems) // 2, len(poems) - 1})]


def check_complete(model: PreTrainedModel, trained: Trained) -> None:
    """Raise UserError if the adapter has a tensor that would be saved and not trained."""
    adapter = {name for name, _ in model.named_parameters() if "lora_" in name}
    if adapter != set(trained.names):
        stray = min(adapter ^ set(trained.names))
        raise UserError(f"train.lora: {stray} belongs to the adapter and would not be trained")


def say_unreached(model: PreTrainedModel, exact: Plain, trained: Trained) -> None:
    """Say which layers' adapters learn nothing, and how many drop nothing."""
    reached = torch.stack(exact.gradients).abs().sum(0)
    idle = {
        name.rpartition(".lora_")[0].removeprefix("base_model.model.")
        for name, part in zip(trained.names, trained.views(reached), strict=True)
        if not part.any()
    }
    if idle:
        say(f"{len(idle)} adapted layers learn nothing from the poems tried", min(idle))
    masks = masks_of(model)
    if masks and masks.passed_by:
        count = len(masks.passed_by)
        say("without dropout", f"{count} adapted layers see something else than the tokens")


@contextmanager
def other_values(trained: Trained, dtype: torch.dtype) -> Iterator[None]:
    """Let the adapter have an effect, with values that the precision of the training can hold."""
    before = trained.whole.detach().clone()
    generator = torch.Generator(before.device).manual_seed(0)
    noise = torch.randn(before.shape, generator=generator, device=before.device)
    trained.whole.data.copy_((before + SPREAD * noise).to(dtype))
    trained.refresh()
    try:
        yield
    finally:
        trained.whole.data.copy_(before)
        trained.refresh()
        trained.clear()
        trained.put(trained.copy)


def plain(
    model: PreTrainedModel, plan: Plan, poems: list[Example], trained: Trained
) -> tuple[Plain, Plain]:
    """Each poem alone in the model's own attention: in float32 and in the plan's precision."""
    try:
        in_float32 = plain_in(torch.float32, model, plan, poems, trained)
        if plan.dtype == torch.float32:
            return in_float32, in_float32
        return in_float32, plain_in(plan.dtype, model, plan, poems, trained)
    except Exception as error:  # whatever a model's own code or PEFT's stumbles over
        if is_out_of_memory(error):
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model.name: Transformers with PEFT cannot train it ({line}): name its attention's "
            "layers in train.lora.target_modules, or take another model"
        ) from error


def plain_in(
    dtype: torch.dtype,
    model: PreTrainedModel,
    plan: Plan,
    poems: list[Example],
    trained: Trained,
) -> Plain:
    device = trained.whole.device
    masks = masks_of(model)
    losses, gradients = [], []
    model.train()
    trained.put(trained.whole.detach() if dtype == torch.float32 else trained.copy)
    if plan.kept < 1:
        recompute(model)
    for number, poem in enumerate(poems):
        ids = torch.tensor([poem.prompt + poem.completion], device=device)
        if masks:
            masks.reserve(ids.shape[1], dtype, device)
            own = (number + 1) * PLACES - len(plan.prefix)
            places = [p if p < len(plan.prefix) else own + p for p in range(ids.shape[1])]
            masks.draw(torch.tensor(places, device=device, dtype=torch.int32), step_of(device))
        with precision(model, dtype):
            logits = model(input_ids=ids, use_cache=False).logits[0, len(poem.prompt) - 1 : -1]
        labels = torch.tensor(poem.completion, device=device)
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        gradient = torch.autograd.grad(
            loss, trained.parameters, allow_unused=True, materialize_grads=True
        )
        losses.append(loss.item())
        gradients.append(torch.cat([part.flatten() for part in gradient]).float().cpu())
    if plan.kept < 1:
        model.gradient_checkpointing_disable()
    trained.put(trained.copy)
    return Plain(losses, gradients)


def layouts(plan: Plan) -> Iterator[Plan]:
    """One prefix for all poems, then each with its own."""
    yield plan
    if plan.shared:
        yield replace(plan, shared=False)


def ways(plan: Plan) -> Iterator[Plan]:
    """From the fastest way to the slowest."""
    yield plan
    if plan.compiled:
        yield (plan := replace(plan, compiled=False))
    if plan.recorded:
        yield (plan := replace(plan, recorded=False))
    if plan.shared:
        yield replace(plan, shared=False)


def try_layout(
    model: PreTrainedModel, plan: Plan, poems: list[Example], trained: Trained, exact: Plain
) -> tuple[float, str]:
    """How far the layout's gradient is from the exact one in float32, uncompiled, and why it cannot
    be used, if so. The poems make two passes, of which one has a row to spare."""
    small = replace(
        plan, dtype=torch.float32, compiled=False, recorded=False, poems=(len(poems) + 1) // 2
    )
    known = model.config.get_text_config().to_dict().get("max_position_embeddings")
    places = len(plan.prefix) + sum(poem.length - len(plan.prefix) for poem in poems) + 16
    if plan.shared and isinstance(known, int) and places > known:
        # A table of positions that is overrun ends a GPU's work for good.
        return 0.0, "its poems side by side are more tokens than it has positions"
    trained.put(trained.whole.detach())
    try:
        passes = Passes(model, small, [poems], trained)
        loss, found = gradient(passes, passes.lay_out(poems))
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception:  # a model that knows nothing of it may raise anything
        if not plan.shared:
            raise
        return 0.0, "its attention is of a kind that cannot be given one"
    finally:
        model.gradient_checkpointing_disable()
        trained.put(trained.copy)
    return judge(trained, (loss, found), exact.weighed([1.0] * len(poems)), None, torch.float32)


def gradient(passes: Passes, laid_out: list[Batch]) -> tuple[float, torch.Tensor]:
    """The summed loss and its gradient, of all processes, as an optimizer would find it: on the
    CPU."""
    trained = passes.trained
    trained.clear()
    tokens = sum(int((batch.labels >= 0).sum()) for batch in laid_out)
    half = passes.plan.dtype == torch.float16
    scaler = torch.amp.GradScaler(passes.device.type, init_scale=2.0**12, enabled=half)
    loss = add_gradients(passes, laid_out, max(tokens, 1), scaler, STEP)
    bring_together(passes, loss, scaler, torch.optim.SGD([trained.whole]))
    found = trained.gradient.cpu() * tokens
    trained.clear()
    return loss.item() * tokens, found


def try_passes(
    passes: Passes, poems: list[Example], exact: Plain, rounded: Plain
) -> tuple[float, str]:
    """The same of passes as they will run: one that is full, and one with rows to spare."""
    step = range(len(poems))
    rows = [fill(passes.shape, poems, len(passes.plan.prefix))]
    rows += sparse(passes.shape, poems, len(passes.plan.prefix))
    laid_out = [
        lay_out([poems[i] for i in row], passes.plan.prefix, passes.shape, row) for row in rows
    ]
    times = [float(sum(row.count(i) for row in rows)) * distributed.size() for i in step]
    noise = None if passes.plan.dtype == torch.float32 else rounded.weighed(times)[1]
    found = gradient(passes, laid_out)
    return judge(passes.trained, found, exact.weighed(times), noise, passes.plan.dtype)


def fill(shape: Shape, poems: list[Example], prefix: int) -> list[int]:
    """A poem for each row of a pass, as long as the shape has room for: places in `poems`, which
    come from short to long."""
    rows: list[int] = []
    tokens, labels = shape.tokens - 1, shape.labels
    shortest, least = poems[0].length - prefix, min(len(poem.completion) for poem in poems)
    for left in reversed(range(shape.poems)):
        # In turn, but what leaves no room for the shortest in the rows that are left.
        turn = [*range(len(rows) % len(poems), len(poems)), *range(len(poems))]
        for i in turn:
            own, predicted = poems[i].length - prefix, len(poems[i].completion)
            if tokens - own >= left * shortest and labels - predicted >= left * least:
                break
        else:
            break
        rows.append(i)
        tokens, labels = tokens - own, labels - predicted
    return rows


def sparse(shape: Shape, poems: list[Example], prefix: int) -> list[list[int]]:
    """Each poem once, in as few passes as have room for them in turn."""
    rows: list[list[int]] = [[]]
    tokens, labels = shape.tokens - 1, shape.labels
    for i, poem in enumerate(poems):
        tokens, labels = tokens - (poem.length - prefix), labels - len(poem.completion)
        if rows[-1] and (len(rows[-1]) == shape.poems or tokens < 0 or labels < 0):
            rows.append([])
            tokens = shape.tokens - 1 - (poem.length - prefix)
            labels = shape.labels - len(poem.completion)
        rows[-1].append(i)
    return rows


def judge(
    trained: Trained,
    found: tuple[float, torch.Tensor],
    expected: tuple[float, torch.Tensor],
    noise: torch.Tensor | None,
    dtype: torch.dtype,
) -> tuple[float, str]:
    """The distance of a gradient from what is expected, and what is wrong with it, if anything.

    found, expected: a loss and its gradient. noise: plain PEFT's gradient in the precision of the
    training.
    """
    off = found[0] / expected[0] - 1
    gradient, wanted = found[1], expected[1]
    error, slope = apart(gradient, wanted), slope_of(gradient, wanted)
    rounding = slope_noise = 0.0
    if noise is not None:
        rounding, slope_noise = apart(noise, wanted), abs(slope_of(noise, wanted) - 1)
    slack = max(SLOPE[dtype], TIMES * slope_noise)
    reason = ""
    if not abs(off) <= slack:
        reason = f"its loss would be off by {off:.2%}"
    elif not error <= max(WHOLE[dtype], TIMES * rounding):
        reason = f"its gradient would be off by {error:.2g} of its length"
    elif not abs(slope - 1) <= slack:
        reason = f"its gradient would be {slope:.3f} of what it should be"
    else:
        least = 1e-3 * wanted.norm() / len(trained.names) ** 0.5
        parts = [
            trained.views(all) for all in (gradient, wanted, wanted if noise is None else noise)
        ]
        for name, part, its, plainly in zip(trained.names, *parts, strict=True):
            bound = max(ROUNDING[dtype], TIMES * apart(plainly, its))
            if its.norm() > least and not apart(part, its) <= bound:
                short = name.replace("base_model.model.", "").replace(".default.weight", "")
                reason = f"the gradient of {short} would be off by {apart(part, its):.2g}"
                break
    if distributed.in_any(bool(reason)):
        reason = reason or "it is in another process"
    return error, reason


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def slope_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found.flatten() @ expected.flatten() / expected.square().sum()).item()


def step_of(device: torch.device) -> torch.Tensor:
    return torch.full((), STEP, dtype=torch.int32, device=device)
