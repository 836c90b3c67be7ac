"""`verse.model.float32`: a model held in less computes what a copy of it in float32 would."""

import copy

import pytest
import torch
from tiny_models import SHAPES, build
from torch.nn import functional

from verse.model import float32, loading
from verse.model.float32 import Float32, precision

CPU, IDS = torch.device("cpu"), torch.arange(3, 40)[None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_as_a_copy_in_float32_would(shape, dtype, tmp_path):
    model = loading.load_model(build(shape, tmp_path), CPU, dtype)
    held = {name: weight.clone() for name, weight in model.named_parameters()}
    expected = copy.deepcopy(model).float()(input_ids=IDS).logits
    rounded = model(input_ids=IDS).logits
    with precision(model, torch.float32):
        found = model(input_ids=IDS).logits
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(rounded.float(), expected, atol=1e-4)
    assert all(torch.equal(w, held[n]) and w.dtype == dtype for n, w in model.named_parameters())


def test_a_linear_layer_in_parts_has_the_gradient_of_the_whole(monkeypatch):
    monkeypatch.setattr(float32, "PART", 64)  # of 8 columns: 8 rows at a time
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(21, 8, generator=generator).bfloat16()
    bias = torch.randn(21, generator=generator).bfloat16()
    inputs = torch.randn(2, 5, 8, generator=generator).requires_grad_()
    assert len(float32.in_parts(weight)) == 3
    expected = functional.linear(inputs, weight.float(), bias.float())
    with Float32():
        found = functional.linear(inputs, weight, bias)
    torch.testing.assert_close(found, expected)
    up = torch.randn(expected.shape, generator=generator)
    (wanted,) = torch.autograd.grad((expected * up).sum(), inputs)
    (gradient,) = torch.autograd.grad((found * up).sum(), inputs)
    torch.testing.assert_close(gradient, wanted)


def test_nothing_is_narrowed_within_and_all_is_as_before_after():
    half = torch.ones(3, dtype=torch.bfloat16)
    with Float32():
        assert half.dtype == torch.float32
        assert torch.ones(3).to(torch.bfloat16).dtype == torch.float32
        assert torch.zeros(2, dtype=torch.float16).dtype == torch.float32
        half.add_(1)  # what is written to stays what it is
    assert half.dtype == torch.bfloat16 and half.tolist() == [2, 2, 2]
    assert (half + half).dtype == torch.bfloat16 and not Float32.within
