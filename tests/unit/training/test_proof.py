"""`verse.training.proof`: faults put in by hand are noticed, and what is right is let through."""

import pytest
import torch
from tiny_architectures import tiny_config
from tiny_models import build, byte_pairs, examples, training
from tiny_models import settings as named
from transformers import AutoModelForCausalLM

from verse.errors import UserError
from verse.model import adapters, dropout, encoding, loading
from verse.training import attention, micro_batches, packing, proof
from verse.training.evaluation import Evaluation
from verse.training.flat_params import FlatParams
from verse.training.micro_batches import MicroBatches, Plan
from verse.training.packing import shared_prefix

CPU, FLOAT, HALF = torch.device("cpu"), torch.float32, torch.bfloat16


@pytest.fixture(scope="module", params=["llama, tied, grouped queries", "gemma3, a short window"])
def settings(request, tmp_path_factory):
    return build(request.param, tmp_path_factory.mktemp("base"))


@pytest.fixture
def prove(settings, capsys):
    """Called, it proves a fresh adapter; the plan that is left, the proof and the lines said."""

    def call(dtype=HALF, **how):
        loading.deterministic(1, 1)
        poems = examples(encoding.load_tokenizer(settings))
        lora = training().lora.model_copy(update={"dropout": 0.1})
        model = loading.load_model(settings, CPU, dtype)
        model = adapters.add_adapter(model, lora, settings, seed=1)
        trained = FlatParams(model, dtype)
        before = trained.flat.detach().clone()
        plan = Plan(shared_prefix(poems), dtype, **{"micro_batch_size": 3} | how)
        found, result = proof.prove(model, plan, [poems[:5], poems[5:]], trained)
        assert torch.equal(trained.flat, before) and not trained.gradient.any()
        return found.plan, result, capsys.readouterr().out.splitlines()

    return call


@pytest.mark.parametrize("budget", [1.0, 0.0])
@pytest.mark.parametrize("poems", [1, 2, 5])
@pytest.mark.parametrize("dtype", [FLOAT, HALF, torch.float16])
def test_what_is_right_is_let_through(prove, dtype, poems, budget):
    plan, result, said = prove(dtype, micro_batch_size=poems, activation_budget=budget)
    assert plan.shared and said == []
    assert result.layout < 1e-5
    bounds = {FLOAT: 1e-5, torch.float16: 5e-3, HALF: 4e-2}
    assert result.gradient < bounds[dtype] and result.rounding < bounds[dtype]
    assert (result.rounding == 0) == (dtype == FLOAT)


def sees_one_ahead(monkeypatch):
    def unseen(positions, others, window):
        return positions[:, None] - others < -1

    monkeypatch.setattr(attention, "unseen", unseen)


def sees_a_neighbour(monkeypatch):
    """Behind each poem's first token stands the last of the poem before it."""
    lay_out = packing.lay_out

    def leaking(poems, prefix, shape, numbers=()):
        batch = lay_out(poems, prefix, shape, numbers)
        for row in range(1, len(poems)):
            batch.grid_from_flat[row * shape.longest] = (
                batch.grid_from_flat[row * shape.longest] - 1
            )
        return batch

    for module in (packing, micro_batches, proof):
        monkeypatch.setattr(module, "lay_out", leaking)


def positions_off_by_one(monkeypatch):
    lay_out = packing.lay_out

    def shifted(poems, prefix, shape, numbers=()):
        batch = lay_out(poems, prefix, shape, numbers)
        batch.position_ids[:, shape.prefix :] += 1
        return batch

    for module in (packing, micro_batches, proof):
        monkeypatch.setattr(module, "lay_out", shifted)


def a_layer_is_not_trained(monkeypatch):
    add = FlatParams.add

    def partly(self, gradients):
        idle = [("layers.1." in name) for name in self.names]
        add(self, [g * (not i) for g, i in zip(gradients, idle, strict=True)])

    monkeypatch.setattr(FlatParams, "add", partly)


def an_eighth_is_lost(monkeypatch):
    add = FlatParams.add
    monkeypatch.setattr(FlatParams, "add", lambda self, gs: add(self, [g * 7 / 8 for g in gs]))


def an_eighth_of_each_is_lost(monkeypatch):
    add = FlatParams.add

    def partly(self, gradients):
        for gradient in gradients:
            gradient.view(-1)[: gradient.numel() // 8] = 0
        add(self, gradients)

    monkeypatch.setattr(FlatParams, "add", partly)


def a_poem_counts_twice(monkeypatch):
    call = MicroBatches.__call__

    def twice(self, batch, step, factor):
        labels = batch.labels.clone()
        first = labels == labels[0]
        batch.labels[~first] = batch.labels[~first]
        loss = call(self, batch, step, factor)
        only = packing.Batch(**vars(batch) | {"labels": labels.where(first, packing.IGNORED)})
        return loss + call(self, only, step, factor)

    monkeypatch.setattr(MicroBatches, "__call__", twice)


def masks_differ_between_passes(monkeypatch):
    draw, calls = dropout.Masks.draw, []

    def other(self, places, step):
        calls.append(1)
        draw(self, places, step + len(calls))

    monkeypatch.setattr(dropout.Masks, "draw", other)


FAULTS = [
    sees_one_ahead,
    sees_a_neighbour,
    positions_off_by_one,
    a_layer_is_not_trained,
    an_eighth_is_lost,
    an_eighth_of_each_is_lost,
    a_poem_counts_twice,
    masks_differ_between_passes,
]


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(prove, monkeypatch, fault, dtype):
    """What one prefix has to do with gives way to a prefix for each poem; what nothing helps ends
    in one line."""
    fault(monkeypatch)
    try:
        plan, result, said = prove(dtype)
    except UserError as error:
        said = ("its loss", "its gradient", "the gradient of", "dropout would depend")
        assert any(words in str(error) for words in said)
    else:
        assert not plan.shared and result.gradient < 0.04
        assert said[0].startswith("each poem with its own prefix, which is slower: ")


def the_scale_is_doubled(monkeypatch):
    from peft.tuners.lora import Linear

    forward = Linear.update_layer

    def doubled(self, *arguments, **named):
        forward(self, *arguments, **named)
        self.scaling["default"] *= 2

    monkeypatch.setattr(Linear, "update_layer", doubled)


def dropout_without_a_gradient(monkeypatch):
    forward = dropout.Dropout.forward
    monkeypatch.setattr(dropout.Dropout, "forward", lambda self, x: forward(self, x.detach()))


def dropout_that_drops_nothing(monkeypatch):
    monkeypatch.setattr(dropout.Dropout, "forward", lambda self, inputs: inputs)


def dropout_of_one_step(monkeypatch):
    draw = dropout.Masks.draw
    monkeypatch.setattr(
        dropout.Masks, "draw", lambda self, places, step: draw(self, places, step * 0)
    )


def a_poem_is_dealt_twice(monkeypatch):
    deal = micro_batches.split_step

    def twice(step, plan, rank=None):
        for part in deal(step, plan, rank):
            yield part + part[:1]

    for module in (micro_batches, proof):
        monkeypatch.setattr(module, "split_step", twice)


def stale_weights(monkeypatch):
    def refresh(self):
        if self.copy.dtype != self.flat.dtype:
            self.copy[100:].copy_(self.flat.detach()[100:])

    monkeypatch.setattr(FlatParams, "refresh", refresh)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (the_scale_is_doubled, r"train\.lora\.alpha: .* has the scale 4\.0, not alpha / r"),
        (
            dropout_without_a_gradient,
            "its masks are not what they should be",
        ),
        (dropout_that_drops_nothing, "its masks are not what they should be"),
        (dropout_of_one_step, "its masks are not what they should be"),
        (a_poem_is_dealt_twice, "step 0: not each of its poems goes through the model once"),
        (stale_weights, "the model computes with other weights than those that are trained"),
    ],
)
def test_what_both_sides_share_is_held_against_what_it_should_be(prove, monkeypatch, fault, said):
    fault(monkeypatch)
    with pytest.raises(UserError, match=said):
        prove()


@pytest.mark.parametrize("fault", [a_layer_is_not_trained, an_eighth_is_lost, a_poem_counts_twice])
def test_a_fault_of_the_way_that_runs_alone_is_noticed(prove, monkeypatch, fault):
    """As a compiled or recorded pass may have it, in a reduced precision."""
    compute = MicroBatches.compute
    patched = pytest.MonkeyPatch()
    fault(patched)
    add, call = FlatParams.add, MicroBatches.__call__
    patched.undo()
    right_add, right_call = FlatParams.add, MicroBatches.__call__

    def wrong_where_it_runs(self, inputs):
        FlatParams.add = add if self.plan.dtype == HALF and self.plan.shared else right_add
        try:
            return compute(self, inputs)
        finally:
            FlatParams.add = right_add

    def wrong_call(self, *rest):
        return (call if self.plan.dtype == HALF and self.plan.shared else right_call)(self, *rest)

    monkeypatch.setattr(MicroBatches, "compute", wrong_where_it_runs)
    if call is not right_call:
        monkeypatch.setattr(MicroBatches, "__call__", wrong_call)
    plan, result, said = prove()
    assert not plan.shared and result.gradient < 0.04 and len(said) == 1


def test_a_tensor_that_is_saved_and_not_trained_is_noticed(settings):
    poems = examples(encoding.load_tokenizer(settings))
    model = loading.load_model(settings, CPU, FLOAT)
    model = adapters.add_adapter(model, training().lora, settings, seed=1)
    name, weight = next((n, w) for n, w in model.named_parameters() if "lora_A" in n)
    weight.requires_grad = False
    with pytest.raises(UserError, match=r"would not be trained") as error:
        proof.prove(model, Plan(shared_prefix(poems), FLOAT, 3), [poems], FlatParams(model))
    assert name in str(error.value)


def test_other_layers_take_no_other_attention(prove, monkeypatch):
    """Which is said in words of its own."""

    def refuse(*_, **__):
        raise ValueError("too many values to unpack")

    monkeypatch.setattr(attention, "attend", refuse)
    monkeypatch.setattr(proof.MicroBatches, "compute", compute_as(refuse))
    plan, _, said = prove()
    assert not plan.shared
    assert said == [
        "each poem with its own prefix, which is slower: its attention is of a kind that cannot be "
        "given one"
    ]


def compute_as(refuse):
    compute = MicroBatches.compute

    def call(self, inputs):
        return refuse() if self.plan.shared else compute(self, inputs)

    return call


def test_a_pass_is_filled_as_far_as_its_shape_goes(settings):
    poems = sorted(examples(encoding.load_tokenizer(settings)), key=lambda poem: poem.length)
    prefix = shared_prefix(poems)
    some = [poems[0], poems[-1]]
    shape = packing.shape_of([poems, poems[:-1]], prefix)
    rows = proof.fill(shape, some, len(prefix))
    assert len(rows) == shape.poems and set(rows) == {0, 1}
    batch = packing.lay_out([some[row] for row in rows], prefix, shape, rows)
    assert batch.input_ids.shape == (1, shape.prefix + shape.tokens)


def adapted_of(name, folder, dtype=FLOAT, dropout=0.1, **changes):
    """A tiny model of another architecture with an adapter, its poems, and what trains it."""
    loading.deterministic(1, 1)
    tokenizer = byte_pairs()
    config = tiny_config(name, len(tokenizer))
    for key, value in changes.items():
        setattr(config, key, value)
    AutoModelForCausalLM.from_config(config, dtype=FLOAT).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base = named(str(folder), quantization="none")
    lora = training().lora.model_copy(update={"dropout": dropout})
    model = adapters.add_adapter(loading.load_model(base, CPU, dtype), lora, base, seed=1)
    return model, examples(tokenizer), FlatParams(model, dtype)


def test_a_validation_poem_that_is_longer_is_tried_too(tmp_path, capsys):
    """Where a model's attention changes beyond the length of all that are trained on."""
    poems = examples(byte_pairs())
    short, long = (
        [poem for poem in poems if (poem.length < 48) == first] for first in (True, False)
    )
    chunk = max(poem.length for poem in short)
    model, _, trained = adapted_of("llama4_text", tmp_path, attention_chunk_size=chunk)
    plan = Plan(shared_prefix(poems), FLOAT, 3)
    found, _ = proof.prove(model, plan, [short], trained)
    assert found.plan.shared and "prefix" not in capsys.readouterr().out
    found, _ = proof.prove(model, plan, [short], trained, validation=long)
    assert not found.plan.shared
    assert "each poem with its own prefix, which is slower: its" in capsys.readouterr().out


def test_a_poem_may_fill_all_positions(tmp_path):
    """Rows of prefix and poem are no longer than that, though their lengths are rounded up."""
    longest = max(poem.length for poem in examples(byte_pairs()))
    model, poems, trained = adapted_of("gpt_neo", tmp_path, max_position_embeddings=longest)
    plan = Plan(shared_prefix(poems), FLOAT, 3, shared=False, positions=longest)
    found, result = proof.prove(model, plan, [poems], trained)
    assert found.shape.shared + found.shape.longest == longest and result.gradient < 1e-5
    assert Evaluation(model, found.plan, poems)()["loss"] > 0


def test_a_model_that_cannot_compute_in_a_precision_says_which_can(settings, monkeypatch):
    plain_in = proof.plain_in

    def mixing(dtype, *rest):
        if dtype == HALF:
            raise RuntimeError("expected BFloat16 but found Float")
        return plain_in(dtype, *rest)

    monkeypatch.setattr(proof, "plain_in", mixing)
    poems = examples(encoding.load_tokenizer(settings))
    model = loading.load_model(settings, CPU, HALF)
    model = adapters.add_adapter(model, training().lora, settings, seed=1)
    plan = Plan(shared_prefix(poems), HALF, 3)
    with pytest.raises(UserError, match=r"but found Float\): set model\.dtype to float32, or"):
        proof.prove(model, plan, [poems], FlatParams(model, HALF))


@pytest.mark.parametrize("rate", [1e-6, 0.002, 0.5, 0.9999])
def test_any_share_of_dropout_is_proven(prove_at, rate, monkeypatch):
    prove_at(rate)
    if rate == 0.5:
        draw = dropout.Masks.draw
        monkeypatch.setattr(
            dropout.Masks, "draw", lambda self, ids, step: draw(self, ids, step * 0)
        )
        with pytest.raises(UserError, match="its masks are not what they should be"):
            prove_at(rate)


@pytest.fixture
def prove_at(tmp_path):
    def call(rate):
        model, _, trained = adapted_of("llama", tmp_path, dropout=rate)
        proof.check_adapter(model, trained)

    return call
