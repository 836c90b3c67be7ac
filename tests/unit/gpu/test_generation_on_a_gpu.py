"""Answers in slots are the model's own, in each precision, and what is wrong is noticed."""

import pytest
import torch
from tiny_models import decoding, encode_prompt, prompts

from verse.generation import answers, gpu_engine
from verse.generation.answers import answer
from verse.model import encoding, loading
from verse.model.layers import to_main_memory

GREEDY = decoding(max_new_tokens=20)


@pytest.fixture
def finish(base, capsys):
    """Called, it answers so many prompts; the tokens, those of plain `generate`, the lines said."""

    def call(dtype=torch.bfloat16, dequantized=True, batch_size=8, output_apart=False):
        tokenizer = encoding.load_tokenizer(base)
        model = loading.load_model(base, torch.device("cuda"), dtype, dequantized=dequantized)
        if output_apart:
            to_main_memory(model.get_output_embeddings())
        texts = [text * n for text in prompts(tokenizer) for n in (1, 2, 3)]
        encoded = {text: encode_prompt(tokenizer, text) for text in texts}
        found = {}
        plain = {}
        for text, ids in encoded.items():
            ids = torch.tensor([ids], device="cuda")
            output = model.generate(
                input_ids=ids, max_new_tokens=20, do_sample=False, eos_token_id=1, pad_token_id=1
            )
            plain[text] = output[0, ids.shape[1] :].tolist()
        answer(model, tokenizer, encoded, GREEDY, seed=1, batch_size=batch_size, answers=found)
        return {t: one.tokens for t, one in found.items()}, plain, capsys.readouterr().out

    return call


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("dequantized", [True, False])
def test_slots_write_what_the_model_does(finish, dequantized, batch_size):
    """In float32 token by token."""
    found, plain, said = finish(torch.float32, dequantized, batch_size)
    assert said == "" and found == plain


def test_the_output_layer_may_be_in_main_memory(finish):
    found, plain, said = finish(torch.float32, dequantized=False, output_apart=True)
    assert said == "" and found == plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dequantized", [True, False])
def test_reduced_precision_is_let_through(finish, dtype, dequantized):
    found, plain, said = finish(dtype, dequantized)
    assert said == ""
    same = sum(a == b for t in found for a, b in zip(found[t], plain[t], strict=False))
    assert same > 0.5 * sum(map(len, plain.values()))


def wrong_places(monkeypatch):
    """Positions off by one from the second token on."""
    forward = gpu_engine.GPUEngine.forward

    def off(self, ids, starts, *, predict):
        return forward(self, ids, starts + 1 if predict else starts, predict=predict)

    monkeypatch.setattr(gpu_engine.GPUEngine, "forward", off)


def one_key_too_many(monkeypatch):
    """A place behind the last is seen, too."""
    far = gpu_engine.far
    monkeypatch.setattr(gpu_engine, "far", lambda ahead, window: far(ahead + 1, window))


def wrong_when_recorded(monkeypatch):
    """Only the graph is wrong."""
    scores = gpu_engine.GPUEngine.scores

    def off(self):
        found = scores(self)
        return found.roll(1, -1) if torch.cuda.is_current_stream_capturing() else found

    monkeypatch.setattr(gpu_engine.GPUEngine, "scores", off)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", [wrong_places, one_key_too_many, wrong_when_recorded])
def test_a_fault_is_noticed(finish, monkeypatch, fault, dtype):
    fault(monkeypatch)
    found, plain, said = finish(dtype)
    assert said.startswith("prompts of one length at a time, which is slower: its scores would")
    if dtype == torch.float32:
        assert found == plain


def test_the_check_is_made_once_a_model(base, monkeypatch):
    tokenizer = encoding.load_tokenizer(base)
    model = loading.load_model(base, torch.device("cuda"), torch.bfloat16)
    calls, check = [], answers.reason_unsupported
    monkeypatch.setattr(
        answers, "reason_unsupported", lambda *arguments: calls.append(1) or check(*arguments)
    )
    for _ in range(2):
        encoded = {text: encode_prompt(tokenizer, text) for text in prompts(tokenizer)}
        answer(model, tokenizer, encoded, GREEDY, seed=1, batch_size=8, answers={})
    assert calls == [1]
