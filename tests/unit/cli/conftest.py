"""An adapter of the embedded model, made up in a second: the base model, and a little noise."""

import pytest
import torch
from tiny_models import settings

from verse.model import adapters, loading
from verse.params import Lora


@pytest.fixture(scope="session")
def adapter(tmp_path_factory):
    """Its folder."""
    base = settings("models/mini")
    model = loading.load_model(base, torch.device("cpu"), torch.float32)
    lora = Lora(r=2, alpha=4, dropout=0.0, target_modules=["q_proj", "down_proj"])
    model = adapters.add_adapter(model, lora, base, seed=1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    folder = tmp_path_factory.mktemp("adapter")
    adapters.save_adapter(model, folder, "made up")
    return folder
