"""`verse.model.loading`: loading, precision, NF4."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file
from tiny_models import SHAPES, build, byte_pairs
from tiny_models import settings as tiny_settings
from transformers import BertConfig, BertLMHeadModel

from verse.errors import UserError
from verse.model import loading

CPU, ROOT = torch.device("cpu"), Path(__file__).parents[3]


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


WRONG = {
    "a layer more": ("config", {"num_hidden_layers": 3}, "the weights lack model.layers.2."),
    "a layer less": ("config", {"num_hidden_layers": 1}, "the config has no place for model.lay"),
    "wider": ("config", {"intermediate_size": 256}, "the weights have another shape of model.lay"),
    "BART": ("config", {"model_type": "bart"}, "bart is no causal language model"),
    "of two kinds": ("config", {"model_type": "gemma"}, "config.json declares LlamaForCausalLM"),
    "quantized, it says": (
        "config",
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "quantized already",
    ),
    "cut": ("weights", lambda w: w[:1].clone(), "another shape of model.norm.weight"),
    "NaN": ("weights", lambda w: w * float("nan"), "model.norm.weight holds numbers that are none"),
    "endless": ("weights", lambda w: w * 1e38, "computes numbers that are none"),
    "of whole numbers": ("weights", lambda w: w.to(torch.int8), "model.norm.weight is of I8"),
}


@pytest.mark.parametrize("what", WRONG)
def test_config_and_weights_that_do_not_belong_together(tmp_path, what):
    settings = build("llama", tmp_path)
    part, change, words = WRONG[what]
    if part == "config":
        config = json.loads((tmp_path / "config.json").read_text("utf-8"))
        (tmp_path / "config.json").write_text(json.dumps(config | change), "utf-8")
    else:
        weights = load_file(tmp_path / "model.safetensors")
        weights["model.norm.weight"] = change(weights["model.norm.weight"])
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=re.escape(words)):
        loading.load_model(settings, CPU, torch.float32)


def test_a_model_that_sees_what_is_to_come(tmp_path):
    """Its config may declare what it likes."""
    BertLMHeadModel(BertConfig(vocab_size=400, hidden_size=36)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="sees tokens that are still to come"):
        loading.load_model(tiny_settings(str(tmp_path)), CPU, torch.float32)


def test_harmless_tensors_of_other_versions(tmp_path):
    settings = build("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    weights["mtp.layers.0.weight"] = torch.ones(8)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loading.load_model(settings, CPU, torch.float32)


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
