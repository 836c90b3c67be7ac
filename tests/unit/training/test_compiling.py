"""`verse.training.micro_batches`: what was compiled once is found again by the next training."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_architectures import tiny_config
from tiny_models import build, byte_pairs, examples
from transformers import AutoModelForCausalLM

from verse.model import encoding, loading
from verse.training import micro_batches
from verse.training.micro_batches import Plan, made_before, worth_compiling
from verse.training.packing import shared_prefix

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, sys, torch
from pathlib import Path
from tiny_models import build, examples, training
from verse.model import adapters, encoding, loading
from verse.training import attention
from verse.training.loss import behind_prefix
from verse.training.packing import shared_prefix
from verse.training.micro_batches import MicroBatches, Plan, compile_layers
from verse.training.flat_params import FlatParams

folder, compiled, factor = sys.argv[1:]
if factor != "1":
    def wrong(ctx, gradient):
        (back,) = ctx.saved_tensors
        return float(factor) * gradient[:, back], None, None
    attention.Regroup.backward = staticmethod(wrong)
settings = build("llama", Path(folder))
model = loading.load_model(settings, torch.device("cpu"), torch.float32)
model = adapters.add_adapter(model, training().lora, settings, seed=1).train()
poems = examples(encoding.load_tokenizer(settings))
if compiled == "compiled":
    compile_layers(model)
plan = Plan(shared_prefix(poems), torch.float32, len(poems))
passes = MicroBatches(model, plan, [poems], FlatParams(model))
(batch,) = passes.lay_out(poems)
with behind_prefix(model):
    passes(batch, torch.zeros((), dtype=torch.int32), torch.ones(()))
hits = torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"]
print(json.dumps([hits, passes.trained.flat.grad.norm().item()]))
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler, which compiling needs")
def test_compiled_layers_are_found_again_unless_a_gradient_is_another(tmp_path, forks):
    (tmp_path / "program.py").write_text(PROGRAM)

    def gradient(*arguments: str) -> tuple[int, float]:
        environment = (
            os.environ
            | forks.env
            | {
                "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"),
                "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            }
        )
        found = subprocess.run(
            [forks.python, tmp_path / "program.py", tmp_path / "base", *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stderr
        hits, norm = json.loads(found.stdout.splitlines()[-1])
        return hits, norm

    _, expected = gradient("as it is", "1")
    assert gradient("compiled", "1") == (0, pytest.approx(expected, rel=1e-4))
    assert gradient("compiled", "1") == (1, pytest.approx(expected, rel=1e-4))
    hits, other = gradient("compiled", "3")
    assert hits == 0 and other != pytest.approx(expected, rel=1e-2)


def test_a_short_training_compiles_where_the_code_is_found(monkeypatch, tmp_path):
    settings = build("llama", tmp_path / "base")
    poems = examples(encoding.load_tokenizer(settings))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(micro_batches, "WORTH_COMPILING", 1e9)
    model = loading.load_model(settings, torch.device("cpu"), torch.float32)
    how = Plan(shared_prefix(poems), torch.float32, len(poems))

    def worth(steps, how=how):
        return worth_compiling(model, how, [poems] * steps)

    long = next(n for n in range(1, 10_000) if worth(n))
    assert worth(long) and not worth(long - 1)
    made_before(model, how, micro_batches.shape_of_steps([poems], how)).touch()
    assert worth(long // 5) and not worth(long // 20)
    assert not worth(long // 5, replace(how, activation_budget=0.0))


def test_a_model_that_changes_its_embeddings_in_place_is_as_before_without_the_compiler(tmp_path):
    """What a compiled layer wants of them is undone with it."""
    tokenizer = byte_pairs()
    model = AutoModelForCausalLM.from_config(tiny_config("ctrl", len(tokenizer)))
    model.requires_grad_(False)
    micro_batches.compile_layers(model, backend="eager")
    ids = torch.arange(9)[None]
    with pytest.raises(RuntimeError, match="in-place operation"):
        model(input_ids=ids)
    micro_batches.uncompile(model)
    assert model(input_ids=ids).logits.isfinite().all()
