"""Models of different make: the same loss packed or alone, an adapter, plain PEFT, answers."""

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import clones
import pytest
import torch
from peft import PeftModel
from tiny_models import (
    SHAPES,
    build,
    byte_pairs,
    decoding,
    encode_prompt,
    examples,
    prompts,
    training,
)
from torch.nn import functional
from transformers import AutoModelForCausalLM

from stages import ask, fetch, generate, judge, prepare, score, train
from verse.generation.answers import answer
from verse.model import adapters, encoding, loading
from verse.speed import Stopwatch
from verse.training import loop
from verse.training.checkpoint import Checkpoints
from verse.training.loss import behind_prefix, summed_loss
from verse.training.micro_batches import Plan
from verse.training.packing import lay_out, shape_of, shared_prefix

ROOT = Path(__file__).parents[3]
CPU, FLOAT = torch.device("cpu"), torch.float32
GREEDY = decoding(max_new_tokens=12)


@pytest.fixture(params=SHAPES)
def base(request, tmp_path):
    """The parameters of a model and its tokenizer; the Llamas' has a chat template."""
    chat = request.param.startswith("llama")
    settings = build(request.param, tmp_path / "base", byte_pairs(chat=chat))
    return settings, encoding.load_tokenizer(settings)


def alone(model, example):
    """The summed loss of one poem, its tokens in one plain row, masked as the model likes."""
    ids = torch.tensor([example.prompt + example.completion])
    logits = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
    return functional.cross_entropy(logits, torch.tensor(example.completion), reduction="sum")


def gradient(model, loss):
    """The loss and the gradient of all adapter weights as one vector."""
    model.zero_grad()
    loss.backward()
    grads = [w.grad.flatten() for w in model.parameters() if w.requires_grad]
    return loss.item(), torch.cat(grads)


@pytest.mark.parametrize("own_prefix", [None, 0, 2])
def test_poems_behind_one_prefix_lose_as_much_as_each_alone(base, own_prefix):
    """And have the same gradient, also with room to spare, and with a prefix cut short."""
    settings, tokenizer = base
    model = loading.load_model(settings, CPU, FLOAT)
    model = adapters.add_adapter(model, training().lora, settings, seed=1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    poems = examples(tokenizer)
    prefix = shared_prefix(poems)
    assert len(prefix) >= 3
    prefix = prefix[:own_prefix]
    loss, expected = gradient(model, sum(alone(model, poem) for poem in poems))
    shape = shape_of([poems, [*poems, poems[0]]], prefix)
    batch = lay_out(poems, prefix, shape)
    for shared in (True, False):
        with behind_prefix(model) if shared else nullcontext():
            total, found = gradient(model, summed_loss(model, batch, shape, FLOAT, shared=shared))
        assert total == pytest.approx(loss, rel=1e-5)
        assert (found - expected).norm() < 1e-4 * expected.norm()


def test_an_adapter_trains_and_plain_peft_loads_it_and_answers(base, tmp_path):
    settings, tokenizer = base
    poems = examples(tokenizer)
    model = loading.load_model(settings, CPU, FLOAT)
    loading.check_tokens(model, tokenizer, (e.prompt + e.completion for e in poems))
    wanted = training()
    model = adapters.add_adapter(model, wanted.lora, settings, seed=1)
    curves, _ = loop.train(
        model,
        loop.Task(poems, poems, wanted, seed=1),
        Plan(shared_prefix(poems), FLOAT, 4),
        Checkpoints(tmp_path, "key"),
        Stopwatch(),
    )
    before, after = curves.validation[0]["loss"], curves.validation[-1]["loss"]
    assert after < before - 0.2
    adapters.save_adapter(model, tmp_path / "adapter", "card")

    plain = PeftModel.from_pretrained(
        loading.load_model(settings, CPU, FLOAT), tmp_path / "adapter"
    )
    with torch.no_grad():
        total = sum(alone(plain, poem) for poem in poems).item()
    assert total / sum(len(e.completion) for e in poems) == pytest.approx(after, abs=1e-3)

    merged = adapters.load_adapter(
        loading.load_model(settings, CPU, FLOAT), tmp_path / "adapter", merge=True
    )
    texts = prompts(tokenizer)
    encoded = {text: encode_prompt(tokenizer, text) for text in texts}
    finished = {}
    answer(merged, tokenizer, encoded, GREEDY, seed=1, batch_size=8, answers=finished)
    for text, found in finished.items():
        ids = torch.tensor([encoded[text]])
        output = plain.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
        assert found.text == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert finished.keys() == encoded.keys() and any(one.text for one in finished.values())


@pytest.mark.parametrize("shape", ["llama", "qwen3", "gemma3, a short window"])
def test_the_pipeline_from_fetch_to_score(shape, tmp_path, monkeypatch):
    """The stage scripts one after the other, in a folder of their own."""
    (tmp_path / "poems").mkdir()
    for part, count in (("train", 100), ("test", 6)):
        poems = json.loads((ROOT / f"data/embedded/{part}.json").read_text("utf-8"))[:count]
        (tmp_path / "poems" / f"{part}.json").write_text(json.dumps(poems), "utf-8")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    model = build(shape, tmp_path / "base", byte_pairs(chat=shape == "llama"))
    clones.change(
        tmp_path / "params.yaml",
        clones.SMALL
        | {f"model.{key}": value for key, value in model.model_dump().items()}
        | {"data.source": "poems", "model.name": "base", "train.learning_rate": 1e-2},
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fetch.main()
    prepare.main()
    train.main()
    for which in ("base", "tuned"):
        monkeypatch.setattr(sys, "argv", ["generate", which])
        generate.main()
    ask.main()
    judge.main()
    score.main()

    metrics = json.loads(Path("metrics/score.json").read_text("utf-8"))
    for group in ("base", "tuned", "reference"):
        assert metrics[group].pop("poems") == 6
        assert metrics[group].pop("surprise") >= 0  # nats
        assert -1 <= metrics[group].pop("parallel") <= 1  # a difference of likenesses
        assert all(0 <= value <= 1 for value in metrics[group].values())
    assert metrics["reference"]["form"] == 1
    answers = Path("data/generated/tuned.jsonl").read_text("utf-8").splitlines()
    assert any(json.loads(row)["answer"].strip() for row in answers)
    losses = json.loads(Path("metrics/train.json").read_text("utf-8"))
    assert losses["after"]["loss"] < losses["before"]["loss"]
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained("base"), "models/adapter"
    )
    weights = [weight for name, weight in plain.named_parameters() if "lora_B" in name]
    assert weights and all(weight.any() for weight in weights)
