"""What runs on a GPU, on a model small enough to compile in seconds: `make test-gpu`."""

import pytest
import torch
from tiny_models import byte_pairs, examples, settings, training
from transformers import AutoModelForCausalLM, MistralConfig

from verse.model import adapters, encoding, loading
from verse.training.flat_params import FlatParams
from verse.training.micro_batches import Plan
from verse.training.packing import shared_prefix

HALF = torch.bfloat16


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    loading.deterministic(1, 2)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The settings to load a Mistral with heads of the size of a 7B model's."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_pairs()
    config = MistralConfig(
        vocab_size=len(tokenizer) + -len(tokenizer) % 64,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=4096,
        sliding_window=None,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return settings(str(folder))


@pytest.fixture(scope="session")
def poems(base):
    """As many as a pass may have, of many lengths."""
    some = examples(encoding.load_tokenizer(base))
    return [
        encoding.Example(poem.prompt, [*poem.completion[: 9 + n % 37], 1], 9 + n % 37)
        for n, poem in ((n, some[n % len(some)]) for n in range(130))
    ]


@pytest.fixture
def adapted(base):
    """Called, it gives a fresh adapter on the base model and what trains it."""

    def call(dtype=HALF, dequantized=True, dropout=0.1):
        cuda = torch.device("cuda")
        lora = training().lora.model_copy(update={"dropout": dropout})
        model = loading.load_model(base, cuda, dtype, dequantized=dequantized)
        model = adapters.add_adapter(model, lora, base, seed=1)
        return model, FlatParams(model, dtype)

    return call


@pytest.fixture
def plan(poems):
    def call(together, dtype=HALF, **how):
        how = {"compiled": True, "recorded": True} | how
        return Plan(shared_prefix(poems), dtype, together, **how)

    return call
