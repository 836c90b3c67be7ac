import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def mini():
    """The embedded model in float32, and its tokenizer."""
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained("models/mini", dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained("models/mini")
