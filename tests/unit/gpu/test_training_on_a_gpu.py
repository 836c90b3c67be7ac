"""Every way to train on a GPU learns what plain PEFT would, and what does not is noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_architectures import tiny_config
from tiny_models import settings, training
from transformers import AutoModelForCausalLM, FalconConfig, GPT2Config, MistralConfig

from verse.model import adapters, loading
from verse.model.graphs import Graph
from verse.model.layers import expert_weights, in_four_bits, to_main_memory
from verse.training import loop, micro_batches, packing, proof
from verse.training.checkpoint import Checkpoints
from verse.training.flat_params import FlatParams
from verse.training.micro_batches import Plan
from verse.training.packing import shared_prefix

ROOT = Path(__file__).parents[3]
HALF, FLOAT = torch.bfloat16, torch.float32
ODD = [1, 2, 3, 5, 7, 15, 17, 31, 33, 63, 65, 100, 127, 128, 130]


MIXTURES = [tiny_config(name, 512) for name in ("mixtral", "qwen3_moe", "gpt_oss")]


def close(result):
    """Whether the pass that runs is about as close as a poem alone in the same precision."""
    return result.gradient < max(0.04, 2 * result.rounding)


@pytest.fixture
def prove(adapted, plan, poems, capsys):
    """Called, it proves one step of so many poems; the plan that is left, the proof, the lines."""

    def call(together=7, count=14, dtype=HALF, dequantized=True, **how):
        model, trained = adapted(dtype, dequantized)
        steps = [poems[:count]]
        found, result = proof.prove(model, plan(together, dtype, **how), steps, trained)
        return found.plan, result, capsys.readouterr().out.splitlines()

    return call


@pytest.mark.parametrize("activation_budget", [1.0, 0.75, 0.5, 0.0])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dequantized", [True, False])
def test_every_way_of_the_ladder(prove, dequantized, compiled, activation_budget):
    plan, result, said = prove(
        dequantized=dequantized, compiled=compiled, activation_budget=activation_budget
    )
    assert said == [] and plan.shared and plan.compiled == compiled and plan.recorded
    assert result.layout < 1e-4 and close(result)


@pytest.mark.parametrize("dtype", [torch.float16, FLOAT])
@pytest.mark.parametrize("compiled", [True, False])
def test_other_precisions(prove, dtype, compiled):
    plan, result, said = prove(dtype=dtype, compiled=compiled)
    assert said == [] and plan.compiled == compiled and plan.recorded
    assert result.gradient < (1e-4 if dtype == FLOAT else 0.01)


@pytest.mark.parametrize("dtype", [HALF, torch.float16, FLOAT])
def test_embeddings_in_main_memory_are_the_same_numbers(base, dtype):
    cuda, ids = torch.device("cuda"), torch.arange(300, device="cuda")[None]
    plain, packed = (loading.load_model(base, cuda, dtype, dequantized=d) for d in (True, False))
    kept, moved = (model.get_input_embeddings() for model in (plain, packed))
    assert moved.weight.is_cuda and torch.equal(kept.weight, moved.weight)
    assert torch.equal(kept(ids), moved(ids))
    copy = torch.nn.Embedding.from_pretrained(kept.weight.clone())
    before = torch.cuda.memory_allocated()
    to_main_memory(copy)
    assert before - torch.cuda.memory_allocated() >= copy.weight.nbytes
    graph = Graph(lambda inputs: copy(inputs[0]), [ids.clone()])
    assert torch.equal(graph([ids + 7]), kept(ids + 7))


@pytest.mark.parametrize("dtype", [HALF, torch.float16, FLOAT])
def test_the_output_layer_in_main_memory(adapted, plan, poems, dtype, capsys):
    model, trained = adapted(dtype, dequantized=False)
    to_main_memory(model.get_output_embeddings())
    least = plan(7, dtype, activation_budget=0.0)
    found, result = proof.prove(model, least, [poems[:14]], trained)
    assert capsys.readouterr().out == "" and found.plan.recorded
    assert result.gradient < 1e-4 if dtype == FLOAT else close(result)


@pytest.mark.parametrize(
    ("name", "packed_one"),
    [
        ("mamba", "backbone.layers.0.mixer.in_proj"),
        ("longcat_flash", "model.layers.0.mlps.0.up_proj"),
        ("deepseek_v32", "model.layers.0.self_attn.o_proj"),
        ("gemma3n_text", "model.layers.0.mlp.up_proj"),
    ],
)
def test_weights_that_a_model_multiplies_by_itself_stay_plain(name, packed_one, tmp_path):
    """Mamba's dt_proj, LongCat's routers and others, which packed are no matrices."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(name, 512)).save_pretrained(tmp_path)
    base, cuda = settings(str(tmp_path)), torch.device("cuda")
    plain, packed = (loading.load_model(base, cuda, FLOAT, dequantized=d) for d in (True, False))
    ids = torch.arange(20, device="cuda")[None]
    assert in_four_bits(packed.get_submodule(packed_one))
    torch.testing.assert_close(packed(ids).logits, plain(ids).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("count", ODD)
def test_odd_numbers_of_poems(prove, count):
    """In one pass, in the shape in which they run."""
    plan, result, said = prove(together=count, count=count)
    assert said == [] and plan.compiled and close(result)


@pytest.mark.parametrize("count", [33, 127])
def test_the_race_of_padded_strides_is_noticed(prove, monkeypatch, count):
    """The cause that `compile_layers` takes away, put back."""
    compile_layers = micro_batches.compile_layers

    def padded(model):
        compile_layers(model)
        torch._inductor.config.comprehensive_padding = True

    monkeypatch.setattr(micro_batches, "compile_layers", padded)
    try:
        plan, result, said = prove(together=count, count=count)
    finally:
        torch._inductor.config.comprehensive_padding = False
    if said:  # a race is won at times
        assert said[0].startswith("layers are not compiled, which would be faster: ")
        assert not plan.compiled
    assert close(result)


def test_one_prefix_for_each_poem(prove):
    """The model's own attention looks at its mask, for which a graph cannot wait."""
    plan, result, said = prove(shared=False)
    assert said in ([], ["without a CUDA graph, which would be faster: its code waits for the GPU"])
    assert not plan.shared and plan.compiled and close(result)


def test_a_recording_that_fails_leaves_nothing_behind():
    """Its stream is not the current one, and the generator draws."""
    before, ones = torch.cuda.current_stream(), torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError):
        Graph(lambda inputs: inputs[0] * inputs[0].sum().item(), [ones])
    assert torch.cuda.current_stream() == before
    torch.manual_seed(1)
    drawn = torch.rand(2, device="cuda")
    twice = Graph(lambda inputs: inputs[0] * 2, [ones])
    assert twice([ones + 1]).tolist() == [4.0] * 4
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2, device="cuda"), drawn)


@pytest.mark.parametrize("again", range(3))
def test_training_after_a_recording_that_failed(prove, base, again):
    """Weights that other threads load are there when the model computes with them."""
    ones = torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError):
        Graph(lambda inputs: inputs[0] * inputs[0].sum().item(), [ones])
    plan, result, said = prove(compiled=False)
    assert said == [] and plan.recorded and close(result)


def positions_off_by_one(monkeypatch):
    lay_out = packing.lay_out

    def shifted(poems, prefix, shape, numbers=()):
        batch = lay_out(poems, prefix, shape, numbers)
        batch.position_ids[:, shape.prefix :] += 1
        return batch

    for module in (packing, micro_batches, proof):
        monkeypatch.setattr(module, "lay_out", shifted)


def an_eighth_is_lost(monkeypatch):
    add = FlatParams.add
    monkeypatch.setattr(
        FlatParams,
        "add",
        lambda self, gs: add(self, [g * 7 / 8 for g in gs] if in_graph() else gs),
    )


def a_layer_is_not_trained(monkeypatch):
    add = FlatParams.add

    def partly(self, gradients):
        idle = ["layers.1." in name and in_graph() for name in self.names]
        add(self, [g * (not i) for g, i in zip(gradients, idle, strict=True)])

    monkeypatch.setattr(FlatParams, "add", partly)


def a_pass_counts_twice(monkeypatch):
    add = FlatParams.add
    monkeypatch.setattr(
        FlatParams, "add", lambda self, gs: [add(self, gs) for _ in range(1 + in_graph())]
    )


def in_graph():
    return torch.cuda.is_current_stream_capturing()


@pytest.mark.parametrize(
    "fault",
    [positions_off_by_one, an_eighth_is_lost, a_layer_is_not_trained, a_pass_counts_twice],
)
def test_a_fault_is_noticed(prove, monkeypatch, fault):
    fault(monkeypatch)
    plan, result, said = prove()
    assert close(result) and said
    assert plan.shared is (fault is not positions_off_by_one)
    assert not (plan.shared and plan.recorded)


def test_a_graph_trains_as_python_does(base, plan, poems, tmp_path):
    """Several passes a step, an odd rest, validations."""

    def curves(name, **how):
        base_model = loading.load_model(base, torch.device("cuda"), HALF)
        lora = training().lora.model_copy(update={"dropout": 0.1})
        model = adapters.add_adapter(base_model, lora, base, seed=1)
        task = loop.Task(poems[:50], poems[:9], training(batch_size=14, epochs=2), seed=1)
        kept = Checkpoints(tmp_path / name, "key")
        return loop.train(model, task, plan(5, **how), kept, loop.Stopwatch())[0]

    replayed, again = curves("replayed"), curves("again")
    assert replayed == again
    launched = curves("launched", compiled=False, recorded=False)
    for one, other in (
        (replayed.train, launched.train),
        (replayed.validation, launched.validation),
    ):
        assert [p["loss"] for p in one] == pytest.approx([p["loss"] for p in other], abs=0.03)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=512, n_embd=128, n_layer=2, n_head=4),  # Conv1D
        FalconConfig(vocab_size=512, hidden_size=128, num_hidden_layers=2, num_attention_heads=4),
        MistralConfig(vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2),
        *MIXTURES,
    ],
    ids=lambda config: config.model_type,
)
def test_4_bits_are_the_same_numbers_kept_or_expanded(config, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=FLOAT).save_pretrained(tmp_path)
    ids, logits = torch.arange(40, device="cuda")[None], []
    for dequantized in (True, False):
        model = loading.load_model(
            settings(str(tmp_path)), torch.device("cuda"), FLOAT, dequantized=dequantized
        )
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    assert torch.allclose(*logits, atol=1e-4)


@pytest.mark.parametrize("config", MIXTURES, ids=lambda config: config.model_type)
def test_experts_in_4_bits_are_trained(config, poems, tmp_path, capsys):
    """As one pass after another, recorded, all activations computed twice."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=HALF).save_pretrained(tmp_path)
    base, lora = settings(str(tmp_path)), training().lora
    model = loading.load_model(base, torch.device("cuda"), HALF, dequantized=False)
    assert not expert_weights(model)
    model = adapters.add_adapter(model, lora, base, seed=1)
    trained = FlatParams(model, HALF)
    assert any("experts" in name for name in trained.names)
    capsys.readouterr()
    how = Plan(shared_prefix(poems), HALF, 7, activation_budget=0.0, recorded=True)
    _, result = proof.prove(model, how, [poems[:14]], trained)
    assert result.layout < 1e-4 and close(result), capsys.readouterr().out


@pytest.mark.parametrize("processes", [1, 2])
def test_the_stages_on_gpus(base, tmp_path, processes):
    """Train and generate as commands."""
    if torch.cuda.device_count() < processes:
        pytest.skip(f"{torch.cuda.device_count()} GPU")
    values = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    values["model"] |= {"name": base.name, "dtype": "auto"}
    values["machine"]["processes"] = processes
    values["decoding"]["max_new_tokens"] = 24
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), "utf-8")
    rows = json.loads((ROOT / "data/embedded/train.json").read_text("utf-8"))[:330]
    folder = tmp_path / "data/prepared"
    folder.mkdir(parents=True)
    for name, some in (("train", rows[:300]), ("validation", rows[300:]), ("test", rows[300:])):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in some]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for words in (["train"], ["generate", "base"], ["generate", "tuned"]):
        done = subprocess.run(
            [sys.executable, "-m", f"stages.{words[0]}", *words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        if words == ["train"]:
            assert "checked: gradients differ" in done.stdout
            assert "slower" not in done.stdout and "faster" not in done.stdout
    metrics = json.loads((tmp_path / "metrics/train.json").read_text("utf-8"))
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    proven = metrics["proof"]
    assert proven["layout"] < 1e-4 and proven["gradient"] < max(0.04, 2 * proven["rounding"])
