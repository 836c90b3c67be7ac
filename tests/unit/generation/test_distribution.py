"""`verse.generation.distribution`: what is told of a place is what a token is drawn from."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import decoding, encode_prompt
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from verse.generation.answers import answer
from verse.generation.distribution import distribution, entropy, scores_along

DECODING = decoding(
    do_sample=True, temperature=0.7, top_p=0.8, top_k=12, max_new_tokens=3, no_repeat_ngram_size=2
)
POEMS = json.loads(Path("data/embedded/train.json").read_text("utf-8"))


def test_it_is_what_the_warpers_of_transformers_make_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    for k, p, t in ((12, 0.8, 0.7), (0, 0.5, 1.3), (5, 1.0, 0.1), (0, 1.0, 1.0)):
        scores = torch.randn(40, generator=generator) * 3
        before = [3, 7, 1, 3, 9, 3]
        warpers = [NoRepeatNGramLogitsProcessor(2), TemperatureLogitsWarper(t)]
        warpers += [TopKLogitsWarper(k)] if k else []
        warpers += [TopPLogitsWarper(p)] if p < 1 else []
        warpers += [MinPLogitsWarper(0.1)]
        warpers[:0] = [RepetitionPenaltyLogitsProcessor(1.5)]
        expected = LogitsProcessorList(warpers)(torch.tensor([before]), scores.clone()[None])
        changes = {"temperature": t, "top_k": k, "top_p": p}
        changes |= {"min_p": 0.1, "repetition_penalty": 1.5}
        found = distribution(scores, before, DECODING.model_copy(update=changes))
        assert torch.allclose(found.drawn.float(), torch.softmax(expected, -1)[0], atol=1e-6)
        assert torch.allclose(found.model.float(), torch.softmax(scores, -1), atol=1e-6)
        assert found.drawn[7] == found.drawn[9] == 0
        assert found.cut["no_repeat_ngram_size"].nonzero().flatten().tolist() == [7, 9]
        assert found.left == int((found.drawn > 0).sum())
        assert float(found.drawn.sum()) == pytest.approx(1)


def test_each_token_that_cannot_be_drawn_is_cut_by_a_parameter():
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    changes = {"temperature": 1.0, "top_k": 2, "top_p": 0.6, "no_repeat_ngram_size": 1}
    found = distribution(scores, [0], DECODING.model_copy(update=changes))
    cuts = [found.cut_by(token) for token in range(5)]
    assert cuts == ["no_repeat_ngram_size", "", "top_p", "top_k", "top_k"]


def test_what_ties_with_the_last_of_top_k_is_left_as_transformers_leaves_it():
    scores = torch.tensor([3.0, 2.0, 1.0, 2.0, 2.0])
    changes = {"temperature": 1.0, "top_k": 2, "top_p": 1.0, "no_repeat_ngram_size": 0}
    found = distribution(scores, [0], DECODING.model_copy(update=changes))
    expected = torch.softmax(TopKLogitsWarper(2)(None, scores[None]), -1)[0]
    assert found.left == 4 and torch.allclose(found.drawn.float(), expected)


def test_without_sampling_the_likeliest_is_certain():
    decoding = DECODING.model_copy(update={"do_sample": False, "no_repeat_ngram_size": 0})
    found = distribution(torch.tensor([1.0, 3.0, 2.0]), [0], decoding)
    assert found.drawn.tolist() == [0, 1, 0]
    assert entropy(found.drawn) == 0
    assert entropy(torch.full((8,), 1 / 8, dtype=torch.float64)) == pytest.approx(3)


def test_poems_are_drawn_from_it(mini):
    """Over 1,200 tokens of 400 answers, how often the nth likeliest was drawn is what it says."""
    model, tokenizer = mini
    prompts = {n: encode_prompt(tokenizer, poem["input"]) for n, poem in enumerate(POEMS[:400])}
    tokens = {n: [] for n in prompts}
    answer(
        model,
        tokenizer,
        prompts,
        DECODING,
        seed=5,
        batch_size=256,
        answers={},
        on_token=lambda n, token: tokens[n].append(token),
    )
    # Answering made the model compute in tiles, which single passes need not fill.
    model = AutoModelForCausalLM.from_pretrained("models/mini", dtype=torch.float32).eval()
    ranks = DECODING.top_k
    drawn, expected, variance = (torch.zeros(ranks, dtype=torch.float64) for _ in range(3))
    impossible = 0
    for n, prompt in prompts.items():
        scores = scores_along(model, prompt, tokens[n])
        for place, token in enumerate(tokens[n]):
            found = distribution(scores[place], prompt + tokens[n][:place], DECODING)
            shares, order = found.drawn.topk(ranks)
            drawn += order == token
            expected += shares
            variance += shares * (1 - shares)
            impossible += found.drawn[token] == 0
    assert impossible <= 1  # a token on the brink of top-p, by the last bits of one pass or many
    assert drawn.sum() >= 1150
    assert (expected > 5).sum() >= 8
    deviations = (drawn - expected).abs() / variance.sqrt().clamp(min=1)
    assert deviations.max() < 4, deviations


def test_each_token_is_told_as_it_is_chosen(mini):
    """For greedy search, sampling and beams: the answer's tokens, up to the end and no further."""
    model, tokenizer = mini
    prompts = {f"poem {n}": encode_prompt(tokenizer, POEMS[n]["input"]) for n in range(5)}
    for changes in ({}, {"do_sample": False}, {"do_sample": False, "num_beams": 2}):
        decoding = DECODING.model_copy(update={"max_new_tokens": 40} | changes)
        heard, found = {key: [] for key in prompts}, {}
        answer(
            model,
            tokenizer,
            prompts,
            decoding,
            seed=1,
            batch_size=8,
            answers=found,
            on_token=lambda key, token, heard=heard: heard[key].append(token),
        )
        for key, tokens in heard.items():
            assert tokenizer.decode(tokens, skip_special_tokens=True) == found[key].text
            assert tokens == found[key].tokens
            assert tokenizer.eos_token_id not in tokens[:-1]


def test_what_a_listener_raises_stops_the_answering(mini):
    model, tokenizer = mini
    heard = []

    def stop(key, token):
        heard.append(token)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        answer(
            model,
            tokenizer,
            {0: encode_prompt(tokenizer, POEMS[0]["input"])},
            DECODING,
            seed=1,
            batch_size=1,
            answers={},
            on_token=stop,
        )
    assert len(heard) == 1
