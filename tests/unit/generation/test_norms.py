"""`verse.generation.norms`: the same numbers by fewer kernels, and only where they are the same."""

import pytest
import torch
from tiny_architectures import tiny_config
from tiny_models import build, byte_pairs
from transformers import AutoModelForCausalLM

from verse.generation.norms import fuse_norms

NORMS = {
    "llama": 5,
    "mistral, a short window": 5,
    "qwen3": 9,
    "phi3": 5,
}


@pytest.mark.parametrize(("name", "fused"), [("gemma3n_text", 20), ("falcon_mamba", 3)])
def test_norms_without_a_weight_stay(name, fused):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name, 300), dtype=torch.float32).eval()
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        assert fuse_norms(model) == fused
        found = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*NORMS, "gemma3, a short window"])
def test_norms_give_the_same_scores(shape, dtype, tmp_path):
    build(shape, tmp_path, byte_pairs())
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        assert fuse_norms(model) == NORMS.get(shape, 0)
        found = model(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5 if dtype == torch.float32 else 0.02)
    assert fuse_norms(model) == 0
