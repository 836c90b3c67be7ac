"""`verse.model.activations`: a row hangs on nothing but itself."""

import pytest
import torch
from transformers.activations import ACT2CLS, ACT2FN

from verse.model.activations import make_activations_invariant


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(ACT2CLS))
def test_a_row_hangs_on_nothing_but_itself(name, dtype, threads, threads_of):
    """Of odd widths, and of more numbers than PyTorch leaves to one thread."""
    torch.manual_seed(0)
    activation = ACT2FN[name].to(dtype)
    plain = activation.forward
    make_activations_invariant(activation)
    with threads_of(threads):
        for width in (896, 1000, 77):
            rows = (3 * torch.randn(90, width)).to(dtype)
            whole = activation(rows)
            assert torch.allclose(whole, plain(rows), rtol=1e-2, atol=1e-5)
            assert activation(rows[:0]).shape == (0, width)
            for count in (1, 2, 17, 40, 89):
                assert torch.equal(activation(rows[:count]), whole[:count])
                assert torch.equal(activation(rows[-count:][None])[0], whole[-count:])
