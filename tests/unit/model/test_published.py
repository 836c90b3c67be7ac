"""`verse.model.loading`: models that are published in MXFP4 or FP8 become plain numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_architectures import tiny_config
from tiny_models import byte_pairs, machine, training
from tiny_models import settings as tiny_settings
from transformers import AutoModelForCausalLM

from verse.errors import UserError
from verse.model import adapters, loading
from verse.model.opening import open_model

CPU = torch.device("cpu")
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""The numbers of FP4 E2M1 without their sign: OCP Microscaling Formats, 5.3.3."""


def made(folder, name, quantized, **sizes):
    """A tiny model's folder; `quantized` changes its tensors, in place, and returns the config's
    entry."""
    tokenizer = byte_pairs()
    config = tiny_config(name, len(tokenizer))
    for key, value in sizes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    entry = quantized(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    known = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(known | {"quantization_config": entry}), "utf-8")
    settings = tiny_settings(str(folder))
    return settings.model_copy(update={"quantization": "none"})


def in_mxfp4(expected):
    """Experts in blocks of 32 numbers of 4 bits that share a power of two."""

    def quantized(weights):
        for key in [key for key in weights if key.endswith(("gate_up_proj", "down_proj"))]:
            experts, inputs, outputs = weights.pop(key).shape
            generator = torch.Generator().manual_seed(len(key))
            codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32), generator=generator)
            scales = torch.randint(118, 124, (experts, outputs, inputs // 32), generator=generator)
            numbers = FP4[codes & 7] * torch.where(codes > 7, -1.0, 1.0)
            numbers *= torch.exp2(scales[..., None] - 127.0)
            expected[key] = numbers.flatten(2).transpose(1, 2)
            packed = codes[..., ::2] | codes[..., 1::2] << 4
            weights[f"{key}_blocks"] = packed.to(torch.uint8)
            weights[f"{key}_scales"] = scales.to(torch.uint8)
        return {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}

    return quantized


def in_fp8(expected):
    """Linear layers in blocks of 128 by 128 numbers of 8 bits that share a scale."""

    def quantized(weights):
        for key in [key for key in weights if "proj" in key]:
            rows, columns = weights[key].shape
            blocks = weights[key].reshape(rows // 128, 128, columns // 128, 128)
            scale = blocks.abs().amax((1, 3)) / 448
            small = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            again = small.float() * scale[:, None, :, None]
            expected[key] = again.reshape(rows, columns)
            weights[key] = small.reshape(rows, columns)
            weights[f"{key}_scale_inv"] = scale
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        }

    return quantized


WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
PUBLISHED = {
    "gpt_oss": (in_mxfp4, {"hidden_size": 64, "intermediate_size": 96}),
    "llama": (in_fp8, WIDE | {"num_key_value_heads": 4}),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_numbers_are_read_as_they_are(name, dtype, tmp_path):
    how, sizes = PUBLISHED[name]
    expected = {}
    settings = made(tmp_path, name, how(expected), **sizes)
    model = loading.load_model(settings, CPU, dtype)
    found = dict(model.named_parameters())
    assert expected and not hasattr(model.config, "quantization_config")
    for key, value in expected.items():
        torch.testing.assert_close(found[key].float(), value.to(dtype).float(), atol=0, rtol=8e-3)
    adapted = adapters.add_adapter(model, training().lora, settings, seed=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = adapted(input_ids=torch.arange(20)[None], use_cache=False).logits
    logits.float().square().mean().backward()
    model.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in (tmp_path / "again" / "config.json").read_text("utf-8")


def test_no_memory_plan_holds_them_in_4_bits(tmp_path):
    settings = made(tmp_path, "gpt_oss", in_mxfp4({}), **PUBLISHED["gpt_oss"][1])
    settings = settings.model_copy(update={"quantization": "nf4"})
    opening = open_model(settings, machine(), seed=1)
    seen = []
    opening.ways(lambda sizes: seen.append(sizes) or [])
    assert seen[0].four_bit == seen[0].plain


def test_another_method_is_refused_by_its_name(tmp_path):
    settings = made(tmp_path, "llama", lambda weights: {"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match="quantized already, by gptq: take the model that"):
        loading.load_model(settings, CPU, torch.float32)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    weights = load_file(tmp_path / "model.safetensors")
    key = next(key for key in weights if "proj" in key)
    save_file(weights | {key: weights[key].to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is of F8_E4M3, no plain number"):
        loading.load_model(settings, CPU, torch.float32)
