from weakref import WeakKeyDictionary

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from verse.generation import answers
from verse.generation.gpu_engine import GPUEngine


@pytest.fixture(scope="module")
def mini():
    """The embedded model in float32, and its tokenizer."""
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained("models/mini", dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained("models/mini")


@pytest.fixture(autouse=True)
def unknown(monkeypatch):
    """No model has been looked at yet."""
    monkeypatch.setattr(answers, "UNSUPPORTED", WeakKeyDictionary())


@pytest.fixture
def in_slots(monkeypatch):
    """Called, it lets prompts be answered from then on in slots, as on a GPU."""

    return lambda: monkeypatch.setattr(answers, "new_engine", GPUEngine)


@pytest.fixture
def apart(monkeypatch):
    """Called, it lets prompts be answered from then on in Transformers' own way."""

    def refuse(*_):
        raise answers.UnsupportedModel("tried")

    return lambda: monkeypatch.setattr(answers, "new_engine", refuse)
