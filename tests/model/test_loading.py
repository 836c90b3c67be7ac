"""`verse.model.loading`: loading, precision, NF4."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from tiny_models import SHAPES, build, byte_pairs

from verse.errors import UserError
from verse.model import loading

CPU, ROOT = torch.device("cpu"), Path(__file__).parents[2]


def fault(settings):
    with pytest.raises(UserError) as error:
        loading.load_model(settings, CPU, torch.float32)
    message = str(error.value)
    assert message.startswith(f"model.name {settings.name!r}: ")
    return message


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_touches_the_linear_layers_but_the_output(shape, tmp_path):
    settings = build(shape, tmp_path)
    exact = loading.load_model(
        settings.model_copy(update={"quantization": "none"}), CPU, torch.float32
    )
    rounded = loading.load_model(settings, CPU, torch.float32)
    assert not rounded.training and not any(w.requires_grad for w in rounded.parameters())
    layers = {f"{name}.weight" for name in loading.linear_layers(exact)}
    assert layers and not any("lm_head" in name or "embed" in name for name in layers)
    for name, weight in exact.state_dict().items():
        found = rounded.state_dict()[name]
        if name in layers:
            packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
            assert torch.equal(found, dequantize_4bit(packed, state))
            assert not torch.equal(found, weight)
        else:
            assert torch.equal(found, weight), name
    tied = exact.config.tie_word_embeddings
    same = rounded.lm_head.weight is rounded.get_input_embeddings().weight
    assert same == tied


def test_folders_that_are_no_models(tmp_path):
    settings = build("llama", tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    assert "no such folder" in fault(settings.model_copy(update={"name": str(tmp_path / "none")}))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "its weights cannot be read" in fault(settings)
    config = (tmp_path / "base" / "config.json").read_text()
    (tmp_path / "base" / "config.json").write_text("{")
    assert "cannot be read" in fault(settings)
    (tmp_path / "base" / "config.json").unlink()
    assert "has no config.json" in fault(settings)
    (tmp_path / "base" / "config.json").write_text(config)
    weights.unlink()
    assert "has no weights" in fault(settings)
    (tmp_path / "base" / "pytorch_model.bin").touch()
    assert "pickled weights only" in fault(settings)


def test_a_tokenizer_of_another_model(tmp_path):
    settings = build("llama", tmp_path)
    model = loading.load_model(settings, CPU, torch.float32)
    tokenizer = byte_pairs()
    loading.check_tokens(model, tokenizer, [[3, len(tokenizer) - 1], []])
    with pytest.raises(UserError, match=f"has token {len(tokenizer)}, but the model knows"):
        loading.check_tokens(model, tokenizer, [[3, len(tokenizer)]])
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no end token"):
        loading.check_tokens(model, tokenizer, [])


def test_device_and_precision(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert loading.choose_device("auto") == loading.choose_device("cpu") == CPU
    with pytest.raises(UserError, match="sees no GPU"):
        loading.choose_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    gpu = loading.choose_device("auto")
    assert gpu == torch.device("cuda", 1)
    assert loading.choose_dtype("float32", gpu) == torch.float32
    for has_bf16, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda _=has_bf16, **__: _)
        assert loading.choose_dtype("auto", gpu) == dtype


def test_loading_says_nothing():
    script = (
        "import torch; from verse.model import adapters, loading; loading.deterministic(1, 1);"
        "from tiny_models import settings;"
        "loading.load_model(settings('models/mini'), torch.device('cpu'), torch.float32);"
        "import peft"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "", "HOME": "/"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
