"""Proof, before the first step, that what will run learns what plain Transformers with PEFT would.

A few poems go through the model each alone, in its own attention and in float32: that is what
every way of training is held against, gradient by gradient. First the layout (one prefix, poems
side by side) in float32 too, where nothing hides a mistake. Then the pass that will run, compiled
and recorded, in its own shape and precision, full and with rows to spare, as passes of one step:
against a bound that stands above what rounding does to a poem alone, and dropout's masks bit by
bit. What fails gives way to the next slower way.

The adapter starts without effect, so that half of its gradients would be zero: it is checked with
other values, and gets its own back.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from verse.errors import UserError, first_line, is_of_the_system
from verse.model import distributed
from verse.model.attention import own_attention
from verse.model.dropout import Masks, masks_of
from verse.model.encoding import Example
from verse.model.float32 import precision
from verse.model.graphs import warn_fallback
from verse.training.flat_params import FlatParams
from verse.training.loss import Objective, cross_entropy
from verse.training.micro_batches import (
    MicroBatches,
    Plan,
    accumulate_gradients,
    recompute,
    reduce_gradients,
    split_step,
)
from verse.training.packing import PLACES, Batch, Shape, lay_out, shape_of

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
BLIND = 0.3
"""Of its norm: a gradient that rounding moves so far is hardly checked, and hardly learnt from."""
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
    """What plain Transformers with PEFT gives for each of some poems, kept in main memory."""

    losses: list[float]
    gradients: list[torch.Tensor]
    """Of the summed loss, laid out as `FlatParams.flat`."""
    masks: list[torch.Tensor]
    """Dropout's, (tokens, columns) of truth values; none without dropout."""

    def weighed(self, times: Sequence[int]) -> tuple[float, torch.Tensor]:
        """The loss and the gradient with each poem counted so many times."""
        loss = sum(n * loss for n, loss in zip(times, self.losses, strict=True))
        total = torch.zeros(self.gradients[0].shape)
        for count, one in zip(times, self.gradients, strict=True):
            total.add_(one, alpha=count)
        return loss, total


@dataclass(frozen=True)
class Trial:
    """What goes through the model, and what it is to learn."""

    model: PreTrainedModel
    plan: Plan
    poems: list[Example]
    trained: FlatParams
    objective: Objective


@dataclass(frozen=True)
class Distance:
    """How far a gradient is from the one that is expected."""

    whole: float
    """Of the expected one's norm."""
    slope: float
    """Its projection on the expected one, less 1."""
    parts: torch.Tensor
    """Of each tensor's norm; 0 where next to nothing is expected."""

    @classmethod
    def none(cls, trained: FlatParams) -> "Distance":
        return cls(0.0, 0.0, torch.zeros(len(trained.names)))

    @classmethod
    def between(cls, trained: FlatParams, found: torch.Tensor, wanted: torch.Tensor) -> "Distance":
        """One tensor after another: several copies of the whole would be the most that is held."""
        sums, device = [], trained.flat.device
        for got, want in zip(trained.views(found), trained.views(wanted), strict=True):
            got, want = got.to(device).flatten(), want.to(device).flatten()
            sums.append(torch.stack([(got - want).norm(), want.norm(), got @ want]))
        apart, norms, along = torch.stack(sums).unbind(1)
        whole = norms.norm()
        least = 1e-3 * norms.square().mean().sqrt()
        return cls(
            whole=(apart.norm() / whole).item(),
            slope=(along.sum() / whole.square() - 1).item(),
            parts=torch.where(norms > least, apart / norms, 0.0).cpu(),
        )


def prove(
    model: PreTrainedModel,
    plan: Plan,
    steps: list[list[Example]],
    trained: FlatParams,
    objective: Objective = cross_entropy,
    validation: Sequence[Example] = (),
) -> tuple[MicroBatches, Proof]:
    """The fastest passes of a plan that learn what plain PEFT would, and how far they are from it.

    steps: the poems of every step. validation: poems that go through the same layout. Raises
    UserError if none is right, OutOfMemoryError in all processes if memory runs out in any.
    """
    check_adapter(model, trained)
    check_steps(plan, steps)
    poems = choose(steps)
    trial = Trial(model, plan, poems, trained, objective)
    laid_out, longest_of_all = trial, max((*poems, *validation), key=lambda poem: poem.length)
    if longest_of_all.length > poems[-1].length:
        laid_out = replace(trial, poems=[*poems[:-1], longest_of_all])

    def together(work: Callable[[], T]) -> T:
        return distributed.all_or_none(work, alone=plan.sharded)

    with other_values(trained, plan.dtype):
        numbers = range(len(poems))
        exact = of_layout = together(partial(plain, torch.float32, trial, numbers))
        if laid_out is not trial:
            of_layout = together(partial(plain, torch.float32, laid_out, numbers))
        longest = range(len(poems) - 1, len(poems))
        rounding = together(partial(rounding_of, trial, exact, longest))
        say_unreached(model, exact, trained)
        for way in layouts(plan):
            layout, reason = try_layout(replace(laid_out, plan=way), of_layout)
            if not reason:
                break
            if way.shared:
                warn_fallback("each poem with its own prefix, which is slower", reason)
        else:
            raise UserError(
                f"model.name: cannot be trained on several poems at once: {reason}: take another"
            )
        every = None
        for way in ways(way):  # noqa: B020
            for thorough in (False, True):
                passes = together(partial(MicroBatches, model, way, steps, trained, objective))
                rows = [fill(passes.shape, poems, len(plan.prefix))]
                rows += sparse(passes.shape, poems, len(plan.prefix))
                error, reason = check(passes, poems, rows, exact, rounding)
                if not reason:
                    if rounding.whole > BLIND:
                        precision_name = str(plan.dtype).removeprefix("torch.")
                        warn_fallback(
                            "set model.dtype to float32", f"{precision_name} hides what is learnt"
                        )
                    return passes, Proof(error, layout, rounding.whole)
                passes.close()
                if thorough or every or plan.dtype == torch.float32:
                    break
                # Another poem may round to more: where experts are chosen, by far.
                every = together(partial(rounding_of, trial, exact, range(len(poems))))
                rounding = every
            if way.compiled or way.recorded or way.shared:
                warn_fallback(given_up(way), reason)
    advice = "take another" if plan.dtype == torch.float32 else "set model.dtype to float32"
    raise UserError(f"model.name: would learn something else: {reason}: {advice}")


def given_up(way: Plan) -> str:
    """What is done without after a way has failed."""
    if way.compiled:
        return "layers are not compiled, which would be faster"
    if way.recorded:
        return "without a CUDA graph, which would be faster"
    return "each poem with its own prefix, which is slower"


def choose(steps: list[list[Example]]) -> list[Example]:
    """The shortest poem and the longest."""
    poems = sorted((poem for step in steps for poem in step), key=lambda poem: poem.length)
    return [poems[0], poems[-1]] if poems[1:] else poems


def check_adapter(model: PreTrainedModel, trained: FlatParams) -> None:
    """Raise UserError if the adapter is not what its config says, or has a tensor that would be
    saved and not trained."""
    config = model.peft_config["default"]
    own = config.rank_pattern or config.alpha_pattern  # PEFT's, for experts
    for name, module in model.named_modules():
        scales = getattr(module, "scaling", None)
        scale = scales.get("default") if isinstance(scales, dict) else None
        if scale is not None and not own and not math.isclose(scale, config.lora_alpha / config.r):
            raise UserError(f"train.lora.alpha: {name} has the scale {scale}, not alpha / r")
    if masks := masks_of(model):
        # PEFT is told 0 where it adapts experts, for which it has none.
        check_dropout(masks, config.lora_dropout or masks.rate)
    adapter = {name for name, _ in model.named_parameters() if "lora_" in name}
    if adapter != set(trained.names):
        stray = min(adapter ^ set(trained.names))
        raise UserError(f"train.lora: {stray} belongs to the adapter and would not be trained")


def say_unreached(model: PreTrainedModel, exact: Plain, trained: FlatParams) -> None:
    """Say which layers' adapters learn nothing, and how many drop nothing."""
    norms = sum(torch.stack(torch._foreach_norm(trained.views(g))) for g in exact.gradients)
    idle = {
        name.rpartition(".lora_")[0].removeprefix("base_model.model.")
        for name, norm in zip(trained.names, torch.as_tensor(norms).tolist(), strict=True)
        if norm == 0
    }
    if idle:
        warn_fallback(f"{len(idle)} adapted layers learn nothing from the poems tried", min(idle))
    masks = masks_of(model)
    if masks and masks.passed_by:
        count = len(masks.passed_by)
        warn_fallback(
            "without dropout", f"{count} adapted layers see something else than the tokens"
        )


def check_dropout(masks: Masks, rate: float) -> None:
    """Raise UserError unless dropout keeps a share of 1 - rate, scaled by its inverse, other ones
    for each token and step, in the gradient too."""
    layer, tokens, step = masks.layers[0], 64, torch.zeros((), dtype=torch.int32)
    device = next((t.device for t in [layer.kept] if t is not None), torch.device("cpu"))
    step = step.to(device)
    masks.reserve(tokens, torch.float32, device)
    masks.draw(torch.arange(tokens, dtype=torch.int32, device=device), step)
    kept = layer.kept.clone()
    inputs = torch.ones(1, tokens, layer.inputs, device=device, requires_grad=True)
    outputs = layer.train()(inputs)
    gradient = inputs.detach() * 0
    if outputs.requires_grad:
        (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
    masks.draw(torch.arange(tokens, dtype=torch.int32, device=device), step + 1)
    wanted, share = kept / (1 - rate), kept.mean().item()
    spread = math.sqrt(rate * (1 - rate) / kept.numel())
    told_apart = min(rate, 1 - rate) * kept.numel() > 20  # fewer may be dropped by none
    right = (
        torch.allclose(outputs[0], wanted)
        and torch.allclose(gradient[0], wanted)
        and abs(share - (1 - rate)) < 6 * spread
        and not (told_apart and torch.equal(kept, kept[:1].expand_as(kept)))
        and not (told_apart and torch.equal(kept, layer.kept))
    )
    if not right:
        raise UserError("train.lora.dropout: its masks are not what they should be: set it to 0")


def check_steps(plan: Plan, steps: list[list[Example]]) -> None:
    """Raise UserError unless each poem of a step is in one pass of one process."""
    for number, step in enumerate(steps):
        dealt = [
            n
            for rank in range(distributed.size())
            for part in split_step(step, plan, rank)
            for n, poem in part
            if poem is step[n]
        ]
        if sorted(dealt) != list(range(len(step))):
            raise UserError(f"step {number}: not each of its poems goes through the model once")


@contextmanager
def other_values(trained: FlatParams, dtype: torch.dtype) -> Iterator[None]:
    """Let the adapter have an effect, with values that the precision of the training can hold."""
    weights = trained.flat.detach()
    before = weights.cpu().clone()
    generator = torch.Generator(weights.device).manual_seed(0)
    weights.add_(torch.randn(weights.shape, generator=generator, device=weights.device) * SPREAD)
    weights.copy_(weights.to(dtype))
    trained.refresh()
    if not torch.equal(trained.copy, weights.to(trained.copy.dtype)):
        raise UserError("train: the model computes with other weights than those that are trained")
    try:
        yield
    finally:
        weights.copy_(before)
        trained.refresh()
        trained.clear()
        trained.bind(trained.copy)


def plain(dtype: torch.dtype, trial: Trial, numbers: range) -> Plain:
    """Some of the poems, each alone in the model's own attention.

    numbers: of those that are wanted; dropout hashes them too. Raises UserError if Transformers or
    PEFT cannot.
    """
    try:
        return plain_in(dtype, trial, numbers)
    except Exception as error:  # whatever a model's own code or PEFT's stumbles over
        if is_of_the_system(error):
            raise
        line, advice = first_line(error), "set model.dtype to float32"
        if dtype == torch.float32:
            advice = "name its attention's layers in train.lora.target_modules"
        raise UserError(
            f"model.name: Transformers with PEFT cannot train it ({line}): {advice}, or take "
            "another model"
        ) from error


def rounding_of(trial: Trial, exact: Plain, numbers: range) -> Distance:
    """How far some of the poems, each alone, are from the exact gradients in the plan's precision:
    the largest distances."""
    trained, dtype = trial.trained, trial.plan.dtype
    if dtype == torch.float32:
        return Distance.none(trained)
    rounded = plain(dtype, trial, numbers)
    found = [
        Distance.between(trained, rounded.gradients[i], exact.gradients[n])
        for i, n in enumerate(numbers)
    ]
    parts = torch.stack([one.parts for one in found]).amax(0)
    # Of its kind in all layers: where a token's expert turns is in one layer here, another there.
    kinds = [re.sub(r"\d+", "", name) for name in trained.names]
    most: dict[str, float] = defaultdict(float)
    for kind, part in zip(kinds, parts.tolist(), strict=True):
        most[kind] = max(most[kind], part)
    return Distance(
        max(one.whole for one in found),
        max(abs(one.slope) for one in found),
        torch.tensor([most[kind] for kind in kinds]),
    )


def plain_in(dtype: torch.dtype, trial: Trial, numbers: range) -> Plain:
    model, plan, trained = trial.model, trial.plan, trial.trained
    device, masks = trained.flat.device, masks_of(model)
    found = Plain([], [], [])
    model.train()
    trained.bind(trained.flat.detach() if dtype == torch.float32 else trained.copy)
    if plan.activation_budget < 1:
        recompute(model)
    for number in numbers:
        poem = trial.poems[number]
        ids = torch.tensor([poem.prompt + poem.completion], device=device)
        if masks:
            masks.reserve(ids.shape[1], dtype, device)
            own = (number + 1) * PLACES - len(plan.prefix)
            places = [p if p < len(plan.prefix) else own + p for p in range(ids.shape[1])]
            masks.draw(
                torch.tensor(places, device=device, dtype=torch.int32),
                torch.full((), STEP, dtype=torch.int32, device=device),
            )
            found.masks.append(masks.table.bool().cpu())
        with precision(model, dtype):
            logits = model(input_ids=ids, use_cache=False).logits[0]
        batch = lay_out([poem], [], shape_of([[poem]], [], multiple=1), [number]).to(device)
        loss = trial.objective(partial(predictions, logits), batch)
        gradient = torch.autograd.grad(
            loss, trained.parameters, allow_unused=True, materialize_grads=True
        )
        found.losses.append(loss.item())
        found.gradients.append(torch.cat([part.flatten() for part in gradient]).float().cpu())
    if plan.activation_budget < 1:
        model.gradient_checkpointing_disable()
    trained.bind(trained.copy)
    return found


def predictions(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Those of the T logits from which a batch's labels are predicted."""
    return logits[batch.predicting].float()


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


def try_layout(trial: Trial, exact: Plain) -> tuple[float, str]:
    """How far the layout's gradient is from the exact one in float32, uncompiled, and why it cannot
    be used, if so. The poems share a pass that has a row to spare."""
    model, plan, poems, trained = trial.model, trial.plan, trial.poems, trial.trained
    small = replace(plan, dtype=torch.float32, compiled=False, recorded=False, micro_batch_size=3)
    known = model.config.get_text_config().to_dict().get("max_position_embeddings")
    places = len(plan.prefix) + sum(poem.length - len(plan.prefix) for poem in poems) + 32
    if plan.shared and isinstance(known, int) and places > known:
        # A table of positions that is overrun ends a GPU's work for good.
        return 0.0, "its poems side by side are more tokens than it has positions"
    trained.bind(trained.flat.detach())
    try:
        step = [*poems, poems[0]] * distributed.size()  # each process has a row for one more
        passes = MicroBatches(model, small, [step], trained, trial.objective)
        rows = [list(range(len(poems)))]
        return check(passes, poems, rows, exact, Distance.none(trained))
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception:  # a model that knows nothing of it may raise anything
        if not plan.shared:
            raise
        return 0.0, own_attention(model) or "its attention is of a kind that cannot be given one"
    finally:
        model.gradient_checkpointing_disable()
        trained.bind(trained.copy)


def check(
    passes: MicroBatches,
    poems: list[Example],
    rows: list[list[int]],
    exact: Plain,
    rounding: Distance,
) -> tuple[float, str]:
    """How far the gradient of a step is from the exact one, and what is wrong with it, if anything.

    rows: for each pass, which poem is in each of its rows; every process makes the same passes.
    rounding: what the precision of the training does to a poem alone.
    """
    trained, dtype, prefix = passes.trained, passes.plan.dtype, passes.plan.prefix
    times = [sum(row.count(i) for row in rows) * distributed.size() for i in range(len(poems))]
    tokens = sum(n * len(poem.completion) for n, poem in zip(times, poems, strict=True))
    scaler = torch.amp.GradScaler(
        passes.device.type, init_scale=2.0**12, enabled=dtype == torch.float16
    )
    trained.clear()
    loss = torch.zeros((), device=passes.device)
    dropped = True
    for row in rows:
        batch = lay_out([poems[i] for i in row], prefix, passes.shape, row)
        loss += accumulate_gradients(passes, [batch], tokens, scaler, STEP)
        dropped = dropped and same_masks(passes, poems, row, exact)
    reduce_gradients(passes, loss, scaler, torch.optim.SGD([trained.flat]))
    expected, wanted = exact.weighed(times)
    found = Distance.between(trained, trained.gradient.mul_(tokens), wanted)
    trained.clear()
    off = loss.item() * tokens / expected - 1
    reason = judge(trained, found, off, rounding, dtype)
    if not reason and not dropped:
        reason = "dropout would depend on the pass that a poem is in"
    if distributed.any_rank(bool(reason)):
        reason = reason or "it is in another process"
    return found.whole, reason


def same_masks(passes: MicroBatches, poems: list[Example], row: list[int], exact: Plain) -> bool:
    """Whether each poem of the last pass has met the masks that it met alone."""
    if not passes.masks or not exact.masks:
        return True
    table, shape, shared = passes.masks.table.bool().cpu(), passes.shape, len(passes.plan.prefix)
    start = shape.prefix
    for place, i in enumerate(row):
        own = poems[i].length - shared
        if not passes.plan.shared:
            start = place * (shape.shared + shape.longest) + shape.shared
        alone = exact.masks[i]
        first = start - shape.shared if not passes.plan.shared else 0
        if not torch.equal(table[first : first + shared], alone[:shared]):
            return False
        if not torch.equal(table[start : start + own], alone[shared:]):
            return False
        start += own
    return True


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
    trained: FlatParams, found: Distance, off: float, rounding: Distance, dtype: torch.dtype
) -> str:
    """What is wrong with a gradient that is so far from the expected one, and with a loss that is
    off by such a share; nothing if it is what rounding does."""
    slack = bound(SLOPE[dtype], abs(rounding.slope))
    bounds = torch.tensor([bound(ROUNDING[dtype], part) for part in rounding.parts.tolist()])
    beyond = found.parts - bounds
    worst = int(beyond.nan_to_num(torch.inf).argmax())
    if not abs(off) <= slack:
        return f"its loss would be off by {off:.2%}"
    if not found.whole <= bound(WHOLE[dtype], rounding.whole):
        return f"its gradient would be off by {found.whole:.2g} of its length"
    if not abs(found.slope) <= slack:
        return f"its gradient would be {1 + found.slope:.3f} of what it should be"
    if not beyond[worst] <= 0:
        name = trained.names[worst].removeprefix("base_model.model.")
        return f"the gradient of {name} would be off by {found.parts[worst].item():.2g}"
    return ""


def bound(least: float, rounding: float) -> float:
    """How far a gradient may be: a few times what rounding does, up to half of its length."""
    return max(least, min(TIMES * rounding, 0.5), 1.5 * rounding)
