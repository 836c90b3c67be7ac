"""`verse.training.loop`: the same result however it is split, killed or resumed."""

from dataclasses import replace
from itertools import chain, pairwise

import pytest
import torch
from tiny_models import NoFloat64, build, examples, training
from torch import nn
from torch.nn import functional

from verse.errors import UserError
from verse.model import adapters, encoding, loading
from verse.model.layers import linear_layers
from verse.model.memory import MemoryPlan, run_with_oom_fallback
from verse.params import Lora
from verse.speed import Stopwatch
from verse.training import evaluation, loop
from verse.training.checkpoint import Checkpoints
from verse.training.evaluation import Evaluation
from verse.training.flat_params import FlatParams
from verse.training.loss import behind_prefix, cross_entropy, summed_loss
from verse.training.micro_batches import MicroBatches, Plan, choose_plan, recompute
from verse.training.packing import IGNORED, lay_out, shape_of, shared_prefix, tokens_of_a_pass

CPU, FLOAT = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return build("llama, tied, grouped queries", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def poems(settings):
    return examples(encoding.load_tokenizer(settings))


def adapted(settings, lora, dtype=FLOAT):
    base = loading.load_model(settings, CPU, dtype)
    return adapters.add_adapter(base, lora, settings, seed=1)


def plan(poems, together, dtype=FLOAT, **rest):
    return Plan(shared_prefix(poems), dtype, together, **rest)


def run(settings, poems, wanted, folder, *, how=None, dtype=FLOAT, objective=cross_entropy):
    """Train a fresh adapter; the curves and the adapter's weights as bytes."""
    loading.deterministic(1, 1)
    model = adapted(settings, wanted.lora, dtype)
    task = loop.Task(poems, poems[:3], wanted, seed=1, objective=objective)
    kept = Checkpoints(folder, "key", every=2)
    curves, _ = loop.train(model, task, how or plan(poems, 4, dtype), kept, Stopwatch())
    return curves, weights(model)


def weights(model):
    return [w.detach().numpy().tobytes() for w in model.parameters() if w.requires_grad]


def losses(points):
    return [point["loss"] for point in points]


def test_little_memory_and_much_give_the_same_curves(settings, poems, tmp_path):
    wanted = training()
    fast, _ = run(settings, poems, wanted, tmp_path / "fast")
    sparing = plan(poems, 1, activation_budget=0.0)
    low, _ = run(settings, poems, wanted, tmp_path / "low", how=sparing)
    assert len(losses(fast.train)) == 8  # 7 poems, 4 a step, 4 epochs
    assert losses(low.train) == pytest.approx(losses(fast.train), abs=2e-4)
    assert losses(low.validation) == pytest.approx(losses(fast.validation), abs=2e-4)
    assert losses(fast.validation)[-1] < losses(fast.validation)[0] - 0.2


def test_half_precision_trains_with_a_scaled_loss(settings, poems, tmp_path):
    wanted = training()
    full, _ = run(settings, poems, wanted, tmp_path / "full")
    half, _ = run(settings, poems, wanted, tmp_path / "half", dtype=torch.float16)
    assert losses(half.train) == pytest.approx(losses(full.train), abs=0.02)
    assert losses(half.validation) == pytest.approx(losses(full.validation), abs=0.02)


def smoothed(model, batch):
    """Label smoothing, Szegedy et al. 2016: an objective of another kind."""
    return functional.cross_entropy(
        model(batch), batch.labels, ignore_index=IGNORED, reduction="sum", label_smoothing=0.1
    )


def test_a_training_does_without_float64_on_apples_gpu(settings, poems, tmp_path, monkeypatch):
    expected, trained = run(settings, poems, training(), tmp_path / "a")
    monkeypatch.setattr(evaluation, "widest_float", lambda _: torch.float32)
    with NoFloat64():
        curves, found = run(settings, poems, training(), tmp_path / "b")
    assert found == trained and curves.train == expected.train
    for one, other in zip(curves.validation, expected.validation, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_another_objective_is_a_function(settings, poems, tmp_path):
    """The proof holds it against each poem alone, and the curves are its own."""
    curves, _ = run(settings, poems, training(), tmp_path, objective=smoothed)
    plain, _ = run(settings, poems, training(), tmp_path / "plain")
    assert curves.train[-1]["loss"] < curves.train[0]["loss"]
    assert abs(losses(curves.train)[0] - losses(plain.train)[0]) > 0.005
    assert losses(curves.validation) != losses(plain.validation)


def test_an_objective_that_knows_its_company_is_refused(settings, poems, tmp_path):
    def mean(model, batch):
        return smoothed(model, batch) / batch.labels.numel()

    with pytest.raises(UserError, match="cannot be trained on several poems at once"):
        run(settings, poems, training(), tmp_path, objective=mean)


def test_the_curves_are_told_while_they_grow(settings, poems, tmp_path):
    told = []
    task = loop.Task(poems, poems[:3], training(), seed=1)
    kept = Checkpoints(tmp_path, "key")
    curves, _ = loop.train(
        adapted(settings, training().lora),
        task,
        plan(poems, 4),
        kept,
        Stopwatch(),
        lambda now: told.append((len(now.train), len(now.validation))),
    )
    steps = [train for train, _ in told]
    assert sorted({*steps}) == [*range(9)] and steps == sorted(steps)
    assert 0 < told[0][1] < len(curves.validation)


def test_little_memory_keeps_one_activation_a_layer(settings, poems):
    def kept(share):
        """Elements kept for the backward pass."""
        model = adapted(settings, training().lora).train()
        if share < 1:
            recompute(model, share)
        sizes = []

        def note(tensor):
            sizes.append(tensor.numel())
            return tensor

        prefix = shared_prefix(poems)
        shape = shape_of([poems], prefix)
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with behind_prefix(model), hooks:
            summed_loss(model, lay_out(poems, prefix, shape), shape, FLOAT)
        return sum(sizes)

    assert kept(0) < 0.5 * kept(1)
    assert kept(0) < 0.8 * kept(0.5) < 0.8 * kept(1)


def test_gradients_after_an_evaluation_are_those_of_a_plain_model(settings, poems):
    """4-bit layers of bitsandbytes on a CPU fail this: evaluation repacks them in place."""
    lora = training().lora
    how = plan(poems, 4, torch.bfloat16)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def gradients(model):
        for weight in model.parameters():
            if weight.requires_grad and not weight.any():  # B starts at 0, and hides A
                nn.init.constant_(weight, 0.01)
        passes = MicroBatches(model, how, [poems[:4]], FlatParams(model, how.dtype))
        loop.accumulate_gradients(passes, passes.lay_out(poems[:4]), 100, scaler, 7)
        return passes.trained.flat.grad

    evaluated = adapted(settings, lora, torch.bfloat16)
    Evaluation(evaluated, how, poems)()
    # The plain model: the weights' NF4 values, as bitsandbytes' own layer holds them.
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    plain = loading.load_model(
        settings.model_copy(update={"quantization": "none"}), CPU, torch.bfloat16
    )
    for layer in linear_layers(plain).values():
        stored = Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to("cpu")
        layer.weight.data = dequantize_4bit(stored.data, stored.quant_state)
    plain = adapters.add_adapter(plain, lora, settings, seed=1)
    expected, found = gradients(plain), gradients(evaluated)
    assert expected.norm() > 0.01
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("right", [True, False])
def test_a_recorded_validation_that_is_wrong_is_not_used(
    settings, poems, monkeypatch, capsys, right
):
    """Recording as it is on a GPU, with a graph of another loss."""

    def record(compute, inputs, beside):
        return lambda inputs: compute(inputs) * (1 if right else 1.01)

    monkeypatch.setattr(evaluation, "warm_up", lambda compute, inputs: compute(inputs))
    monkeypatch.setattr(evaluation, "Graph", record)
    model = adapted(settings, training().lora)
    found = Evaluation(model, plan(poems, 4, recorded=True), poems)
    assert bool(found.graph) == right
    assert found() == Evaluation(model, plan(poems, 4), poems)()
    assert ("its loss would be off" in capsys.readouterr().out) == (not right)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


@pytest.mark.parametrize("dtype", [FLOAT, torch.float16])
@pytest.mark.parametrize("last_step", [1, 2, 3, 7])
def test_a_killed_training_goes_on_to_the_same_bytes(
    settings, poems, tmp_path, monkeypatch, last_step, dtype
):
    wanted = training(lora=Lora(r=4, alpha=8, dropout=0.2, target_modules=["q_proj", "up_proj"]))
    expected = run(settings, poems, wanted, tmp_path / "whole", dtype=dtype)

    accumulate_gradients, calls = loop.accumulate_gradients, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) > last_step:
            raise Killed
        return accumulate_gradients(*arguments)

    monkeypatch.setattr(loop, "accumulate_gradients", killed)
    with pytest.raises(Killed):
        run(settings, poems, wanted, tmp_path / "parts", dtype=dtype)
    calls.clear()
    monkeypatch.setattr(
        loop, "accumulate_gradients", lambda *a: calls.append(a) or accumulate_gradients(*a)
    )
    assert run(settings, poems, wanted, tmp_path / "parts", dtype=dtype) == expected
    assert len(calls) == 8 - last_step // 2 * 2


def test_a_broken_checkpoint_is_told_and_ignored(settings, poems, tmp_path, capsys):
    wanted = training(epochs=1)
    expected = run(settings, poems, wanted, tmp_path / "whole")
    file = tmp_path / "broken" / "key" / "checkpoint.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    assert run(settings, poems, wanted, tmp_path / "broken") == expected
    assert f"{file} is broken: the training starts anew" in capsys.readouterr().err


def test_a_training_goes_on_in_the_next_way_where_memory_runs_out(
    settings, poems, tmp_path, monkeypatch, capsys
):
    """In the middle, at a step with a validation: no step is lost, none is done twice."""
    wanted = training(batch_size=7, epochs=5)
    lora = wanted.lora
    expected, _ = run(settings, poems, wanted, tmp_path / "one", how=plan(poems, 1))
    accumulate_gradients, steps = loop.accumulate_gradients, []

    def scarce(passes, *rest):
        if len(steps) == 3 and passes.plan.micro_batch_size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        steps.append(passes.plan.micro_batch_size)
        return accumulate_gradients(passes, *rest)

    monkeypatch.setattr(loop, "accumulate_gradients", scarce)
    task, kept = loop.Task(poems, poems[:3], wanted, 1), Checkpoints(tmp_path, "key", every=50)

    def work(way):
        loading.deterministic(1, 1)
        model = adapted(settings, lora)
        how = choose_plan(way, model, FLOAT, poems, [poems] * 5)
        return loop.train(model, task, how, kept, Stopwatch())[0]

    found = run_with_oom_fallback(
        [
            MemoryPlan(micro_batch_size=7),
            MemoryPlan(micro_batch_size=3),
            MemoryPlan(micro_batch_size=1),
        ],
        work,
        "",
    )
    assert steps == [7, 7, 7, 3, 3]
    assert losses(found.train) == pytest.approx(losses(expected.train), abs=2e-4)
    assert [point["step"] for point in found.validation] == [0, 3, 5]
    assert losses(found.validation) == pytest.approx(losses(expected.validation), abs=2e-4)
    reported = capsys.readouterr().out.splitlines()
    assert [line for line in reported if not line.startswith("checked: ")] == [
        "out of GPU memory: plain weights, 3 at once from here on"
    ]


def test_a_poem_too_large_for_the_memory():
    def none_left(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="out of GPU memory: lower train"):
        run_with_oom_fallback(
            [MemoryPlan(micro_batch_size=2), MemoryPlan(micro_batch_size=1)],
            none_left,
            "lower train.lora.r",
        )


def test_a_loss_that_is_no_number(settings, poems, tmp_path, monkeypatch):
    accumulate_gradients = loop.accumulate_gradients
    monkeypatch.setattr(
        loop, "accumulate_gradients", lambda *a: accumulate_gradients(*a) * torch.nan
    )
    with pytest.raises(UserError, match=r"the loss is nan at step 1: lower train\.learning_rate"):
        run(settings, poems, training(), tmp_path)


def test_unknown_target_modules(settings):
    lora = Lora(r=4, alpha=8, dropout=0.0, target_modules=["nose_proj"])
    with pytest.raises(UserError, match=r"train\.lora\.target_modules: .*nose_proj"):
        adapted(settings, lora)


def test_every_poem_once_an_epoch(poems):
    steps = list(loop.Task(poems, [], training(epochs=2, batch_size=3), seed=5).batches())
    assert [len(step) for step in steps] == [3, 2, 2, 3, 2, 2]
    epochs = [list(chain(*steps[:3])), list(chain(*steps[3:]))]
    for epoch in epochs:
        assert sorted(map(id, epoch)) == sorted(map(id, poems))
    assert epochs[0] != epochs[1]


def test_steps_are_about_equally_long(poems):
    many = [replace(poem, completion=poem.completion * n) for poem in poems for n in range(1, 41)]
    steps = list(loop.Task(many, [], training(epochs=1, batch_size=8), seed=5).batches())
    tokens = [sum(poem.length for poem in step) for step in steps]
    lengths = [poem.length for poem in many]
    assert max(tokens) - min(tokens) <= max(lengths) - min(lengths)
    bound, predicted = tokens_of_a_pass(many)(8)
    assert max(tokens) <= bound + 7 * len(shared_prefix(many))
    completions = [sum(len(poem.completion) for poem in step) for step in steps]
    assert max(completions) <= predicted < bound
    orders = [[poem.length for poem in step] for step in steps]
    assert all(order == sorted(order) for order in orders)


def test_schedule():
    shares = [loop.schedule(step, 100, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(a > b for a, b in pairwise(shares[9:]))
    assert 0 < shares[-1] < 0.01
    assert loop.schedule(0, 1, 0.0) == 1.0
