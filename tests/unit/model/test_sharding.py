"""`verse.model.sharding`: a model spread over processes computes what it computes on its own."""

import json

import pytest
import torch
from grouped import STAGES, assert_alike, change, outcome, run
from tiny_architectures import tiny_config
from tiny_models import build, settings
from torch import distributed
from transformers import AutoModelForCausalLM

from verse.errors import UserError
from verse.model import loading, sharding
from verse.model.layers import round_to_nf4

CPU = torch.device("cpu")

SPREAD = """
import json, resource, sys
from pathlib import Path
import torch
from tiny_models import settings
from verse.model import distributed, loading, sharding

CPU = torch.device("cpu")
ids = torch.arange(12).view(2, 6)


def held(model):
    own = [w.to_local() if hasattr(w, "to_local") else w for w in model.parameters()]
    return sum(w.numel() * w.element_size() for w in own)


@torch.no_grad()
def work():
    found = {}
    for quantization, dequantized in (("none", True), ("nf4", True), ("nf4", False)):
        model = settings("base", quantization=quantization)
        plain = loading.load_model(model, CPU, torch.float32)
        spread = sharding.load_sharded(model, CPU, torch.float32, dequantized=dequantized)
        expected, logits = plain(input_ids=ids).logits, spread(input_ids=ids).logits
        found[f"{quantization} {dequantized}"] = {
            "apart": ((logits - expected).abs().max() / expected.std()).item(),
            "share": held(spread) / sum(w.numel() * 4 for w in plain.parameters()),
            "generation": spread.generation_config.to_diff_dict(),
        }
    Path(f"{distributed.rank()}.json").write_text(json.dumps(found))


distributed.work_in_group(work, "cpu")
"""


def torchrun(folder, processes, *command, forks):
    """A program in so many processes, all of which must end well."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launcher += ["--local-addr", "localhost"]  # the name of the machine may be in no file
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = run(folder, *launcher, *rendezvous, *command, forks=forks)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("shape", "processes"),
    [
        ("llama", 1),
        ("gemma3, a short window", 2),
        pytest.param("mistral, a short window", 2, marks=pytest.mark.soak),
        pytest.param("qwen3", 4, marks=pytest.mark.soak),
    ],
)
def test_a_spread_model_is_the_same_model(tmp_path, shape, processes, forks):
    build(shape, tmp_path / "base")
    own = {"eos_token_id": [1, 5], "pad_token_id": 2, "temperature": 0.1, "do_sample": True}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(own), "utf-8")
    (tmp_path / "work.py").write_text(SPREAD)
    torchrun(tmp_path, processes, "work.py", forks=forks)
    for rank in range(processes):
        for way, found in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            assert found["apart"] < 1e-4, (way, found)
            assert (
                found["generation"].items() >= {"eos_token_id": [1, 5], "pad_token_id": 2}.items()
            )
            assert "temperature" not in found["generation"]
            most = 1.1 / processes if "True" in way else 0.7 / processes
            assert found["share"] < most, (way, found)


def test_what_a_model_reads_by_itself_stays_plain(tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config("mamba", 300)).save_pretrained(tmp_path)
    base, ids = settings(str(tmp_path)), torch.arange(12).view(2, 6)
    expected = loading.load_model(base, CPU, torch.float32)(input_ids=ids).logits
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        spread = sharding.load_sharded(base, CPU, torch.float32, dequantized=False)
        found = spread(input_ids=ids).logits
    finally:
        distributed.destroy_process_group()
    assert isinstance(spread.get_submodule("backbone.layers.0.mixer.in_proj"), sharding.Nf4Linear)
    torch.testing.assert_close(found, expected)


def test_a_layer_in_4_bits_compiles_as_a_whole():
    """A layer that the compiler cuts keeps activations that the plan says are computed twice."""
    plain = torch.nn.Linear(128, 256).requires_grad_(False)
    packed = sharding.Nf4Linear(plain)
    round_to_nf4(plain.weight)
    compiled = torch.compile(packed.forward, fullgraph=True, backend="eager")
    inputs = torch.randn(3, 128, requires_grad=True)
    found, expected = compiled(inputs), plain(inputs)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(out.square().sum(), inputs)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_a_folder_that_lacks_a_layer_is_refused(tmp_path):
    build("llama", tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text("utf-8"))
    config["num_hidden_layers"] = 3
    (tmp_path / "base/config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UserError, match=r"cannot be spread .* since model\.layers\.2\..* 8 more"):
        sharding.load_sharded(
            settings(str(tmp_path / "base")), CPU, torch.float32, dequantized=True
        )


FORCED = """
import sys
from verse.model import memory

for name in ("plans_for_training", "plans_for_generation"):
    def spread(*sizes, ways=getattr(memory, name)):
        return [way for way in ways(*sizes) if way.sharded] or ways(*sizes)
    setattr(memory, name, spread)
from verse.errors import run
from stages import generate, train
run({"train": train.main, "generate": generate.main}[sys.argv.pop(1)])
"""


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_training_and_generation_of_a_spread_model(project, alone, processes, forks):
    """Seven poems, three a step: some processes have none, and compute along."""
    (project / "forced.py").write_text(FORCED)
    change(project, processes=processes)
    for arguments in STAGES:
        done = run(project, "forced.py", *arguments, forks=forks)
        assert done.returncode == 0, done.stderr
        assert "spread over" in done.stdout
    assert_alike(outcome(project), alone, within=2e-4)
