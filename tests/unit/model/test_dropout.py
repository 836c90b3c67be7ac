"""`verse.model.dropout`: a hash that behaves as chance does, and the same one on every way."""

import pytest
import torch
import torch._functorch.config
from tiny_models import build, examples, training
from torch._dynamo.testing import CompileCounterWithBackend

from verse.model import adapters, encoding, loading
from verse.model.dropout import Masks, masks_of
from verse.model.layers import decoder_layers
from verse.training.flat_params import FlatParams
from verse.training.loss import behind_prefix, summed_loss
from verse.training.micro_batches import MicroBatches, Plan, compile_layers, recompute
from verse.training.packing import lay_out, shape_of, shared_prefix

CPU, FLOAT = torch.device("cpu"), torch.float32


def drawn(rate, step=1, rows=2048, columns=1024):
    masks = Masks(rate)
    masks.layer(columns)
    masks.reserve(rows, FLOAT, CPU)
    masks.draw(torch.arange(rows, dtype=torch.int32), torch.tensor(step, dtype=torch.int32))
    return masks.table


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5])
def test_masks_are_like_chance(rate):
    dropped = 1 - drawn(rate)
    noise = (rate * (1 - rate) / dropped.numel()) ** 0.5
    assert abs(dropped.mean() - rate) < 4 * noise
    for direction in (0, 1):  # no row and no column has more or fewer than chance gives it
        shares = dropped.mean(direction)
        expected = (rate * (1 - rate) / dropped.shape[direction]) ** 0.5
        assert shares.std() == pytest.approx(expected, rel=0.1)

    def related(a, b):
        return ((a - rate) * (b - rate)).mean() / (rate * (1 - rate)) * b.numel() ** 0.5

    for step in range(2, 6):  # z scores
        assert abs(related(dropped, 1 - drawn(rate, step))) < 4.5
    for shift in (1, 2, 8, 16):
        assert abs(related(dropped[:, shift:], dropped[:, :-shift])) < 4.5
        assert abs(related(dropped[shift:], dropped[:-shift])) < 4.5


def test_a_layer_scales_what_it_keeps_and_layers_differ():
    masks = Masks(0.25)
    first, second = masks.layer(96), masks.layer(64)
    masks.reserve(40, FLOAT, CPU)
    masks.draw(torch.arange(40, dtype=torch.int32), torch.tensor(3, dtype=torch.int32))
    inputs = torch.ones(1, 40, 64)
    outputs = second(inputs)
    assert outputs.unique().tolist() == pytest.approx([0, 1 / 0.75])
    wider = first(torch.ones(1, 40, 96))
    assert not torch.equal(outputs, wider[..., :64])
    assert torch.equal(outputs[..., :56], wider[..., 8:64]), "one table, from another column on"
    assert torch.equal(first.eval()(inputs), inputs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model whose adapter does something, with much dropout; its poems."""
    settings = build("llama, tied, grouped queries", tmp_path_factory.mktemp("base"))

    def fresh():
        lora = training().lora.model_copy(update={"dropout": 0.3})
        model = loading.load_model(settings, CPU, FLOAT)
        model = adapters.add_adapter(model, lora, settings, seed=1)
        generator = torch.Generator().manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2, generator=generator)
        return model.train()

    return fresh, examples(encoding.load_tokenizer(settings))


def weights(model):
    return [weight for weight in model.parameters() if weight.requires_grad]


def run(model, plan, poems, key=5):
    """The loss and the gradient of a step, pass by pass."""
    passes = MicroBatches(model, plan, [poems], FlatParams(model))
    one = torch.ones(())
    batches = passes.lay_out(poems)
    with behind_prefix(model):
        loss = sum(passes(batch, torch.tensor(key, dtype=torch.int32), one) for batch in batches)
    return loss.item(), passes.trained.flat.grad


@pytest.fixture(autouse=True)
def own_compiler():
    """Nothing compiled is left, and PyTorch's setting is what it was."""
    with torch._functorch.config.patch(activation_memory_budget=1.0):
        yield
    torch._dynamo.reset()


def compiled(model, kept):
    torch._functorch.config.activation_memory_budget = kept
    torch._dynamo.reset()
    compile_layers(model, backend="aot_eager_decomp_partition")
    return model


def test_every_way_has_the_same_loss_and_gradient(trained):
    """Kept or computed twice, compiled or not, in one pass or in several, one prefix or many."""
    fresh, poems = trained
    prefix = shared_prefix(poems)
    loss, gradient = run(fresh(), Plan(prefix, FLOAT, 7), poems)
    ways = {
        "three passes": (fresh(), Plan(prefix, FLOAT, 3)),
        "no prefix": (fresh(), Plan([], FLOAT, 7)),
        "computed twice": (fresh(), Plan(prefix, FLOAT, 4, activation_budget=0.0)),
        "compiled": (compiled(fresh(), 1.0), Plan(prefix, FLOAT, 7)),
        "compiled, half": (compiled(fresh(), 0.5), Plan(prefix, FLOAT, 7)),
        "compiled, none": (compiled(fresh(), 0.0), Plan(prefix, FLOAT, 7)),
    }
    for name, (model, plan) in ways.items():
        found, other = run(model, plan, poems)
        same = (other - gradient).norm() / gradient.norm()
        if name == "no prefix":  # whose dropout is each poem's own
            assert same > 1e-3
        else:
            assert found == pytest.approx(loss, rel=1e-5), name
            assert same < 1e-4, name
    assert run(fresh(), Plan(prefix, FLOAT, 7), poems, key=6)[0] != pytest.approx(loss, rel=1e-4)


def test_one_program_does_for_all_layers(trained):
    fresh, poems = trained
    model, programs = fresh(), CompileCounterWithBackend("aot_eager")
    assert len(decoder_layers(model)) > 1
    torch._dynamo.reset()
    compile_layers(model, backend=programs)
    run(model, Plan(shared_prefix(poems), FLOAT, 7), poems)
    assert programs.frame_count == 1


@pytest.mark.parametrize("way", ["kept", "computed twice", "compiled, none"])
def test_the_gradient_is_that_of_central_differences(trained, way):
    fresh, poems = trained
    model = fresh().double()
    if way == "computed twice":
        recompute(model)
    if way == "compiled, none":
        compiled(model, 0.0)
    prefix = shared_prefix(poems)
    shape = shape_of([poems], prefix)
    batch = lay_out(poems, prefix, shape)
    masks = masks_of(model)
    masks.reserve(shape.prefix + shape.tokens, torch.float64, CPU)
    masks.draw(batch.dropout_ids, torch.tensor(9, dtype=torch.int32))

    def loss():
        with behind_prefix(model):
            return summed_loss(model, batch, shape, FLOAT)

    with behind_prefix(model):
        loss().backward()
    generator = torch.Generator().manual_seed(2)
    ways = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights(model)]
    slope = sum((w.grad * way).sum() for w, way in zip(weights(model), ways, strict=True)).item()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, way_of in zip(weights(model), ways, strict=True):
                weight.add_(way_of, alpha=sign * 1e-4)
        ends.append(loss().item())
        with torch.no_grad():
            for weight, way_of in zip(weights(model), ways, strict=True):
                weight.sub_(way_of, alpha=sign * 1e-4)
    numeric = (ends[0] - ends[1]) / 2e-4
    assert slope == pytest.approx(numeric, rel=1e-3)
