"""`verse.generation.answers`: an answer depends on the seed and its own prompt only."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from verse.generation import answers, sampling
from verse.model.encoding import encode_prompt
from verse.params import Decoding

DECODING = Decoding(
    do_sample=True,
    temperature=0.9,
    top_p=0.9,
    top_k=50,
    max_new_tokens=12,
    num_beams=1,
    no_repeat_ngram_size=3,
)
COUPLETS = [
    "白日依山盡，黃河入海流。",
    "國破山河在，城春草木深。",
    "錦瑟無端五十弦，一弦一柱思華年。",
    "君問歸期未有期，巴山夜雨漲秋池。",
    "紅豆生南國，春來發幾枝。",
    "岐王宅裏尋常見，崔九堂前幾度聞。",
    "空山不見人，但聞人語響。",
    "秦時明月漢時關，萬里長征人未還。",
    "千山鳥飛絕，萬徑人蹤滅。",
]


@pytest.fixture(scope="module")
def mini():
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained("models/mini", dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained("models/mini")


def answer(mini, prompts=COUPLETS, batch_size=64, seed=42, **changes):
    model, tokenizer = mini
    decoding = DECODING.model_copy(update=changes)
    encoded = {key: encode_prompt(tokenizer, prompt) for key, prompt in enumerate(prompts)}
    found = {}
    answers.answer(
        model, tokenizer, encoded, decoding, seed=seed, batch_size=batch_size, answers=found
    )
    return [found[key] for key in encoded]


@pytest.mark.parametrize(("dtype", "tokens"), [(torch.float32, 12), (torch.bfloat16, 4)])
def test_the_batch_does_not_matter(mini, dtype, tokens):
    model = AutoModelForCausalLM.from_pretrained("models/mini", dtype=dtype).eval()
    alone, some, all_ = (
        answer((model, mini[1]), batch_size=n, max_new_tokens=tokens) for n in (1, 7, 64)
    )
    assert alone == some == all_


def test_neither_order_nor_neighbours_matter(mini):
    finished = dict(zip(COUPLETS, answer(mini), strict=True))
    backwards = COUPLETS[::-1]
    assert answer(mini, backwards) == [finished[couplet] for couplet in backwards]
    assert answer(mini, COUPLETS[3:5]) == [finished[couplet] for couplet in COUPLETS[3:5]]


def test_the_seed_matters_to_sampling_and_to_nothing_else(mini):
    assert answer(mini, seed=1) != answer(mini, seed=2)
    assert answer(mini, seed=1, do_sample=False) == answer(mini, seed=2, do_sample=False)


def test_sampling_with_beams_is_repeatable(mini):
    beams = {"num_beams": 2, "max_new_tokens": 6}
    assert answer(mini, COUPLETS[:2], **beams) == answer(mini, COUPLETS[1::-1], **beams)[::-1]


def test_greedy_answers_are_those_of_transformers(mini):
    model, tokenizer = mini
    ids = tokenizer(COUPLETS[0], return_tensors="pt").input_ids
    expected = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=12,
        no_repeat_ngram_size=3,
    )[0, ids.shape[1] :]
    greedy = answer(mini, COUPLETS[:1], do_sample=False)
    assert greedy == [tokenizer.decode(expected, skip_special_tokens=True)]


def test_no_repeat_is_that_of_transformers():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 5):
        ids = torch.randint(0, 4, (8, 20), generator=generator)
        scores = torch.randn(8, 4, generator=generator)
        expected = NoRepeatNGramLogitsProcessor(size)(ids, scores.clone())
        assert torch.equal(sampling.NoRepeat(size)(ids, scores), expected)
        assert torch.isinf(expected).any()


def test_sampled_tokens_follow_the_distribution_of_transformers():
    """The share of each token over many streams is its probability."""
    scores = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
    decoding = DECODING.model_copy(update={"temperature": 0.7, "top_k": 5, "top_p": 0.95})
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(0.7), TopKLogitsWarper(5), TopPLogitsWarper(0.95)]
    )
    expected = torch.softmax(warpers(None, scores.clone()), -1)[0]
    prompts = [[n] for n in range(20_000)]
    streams = sampling.OwnStreams(prompts, decoding, seed=0)
    drawn = streams(torch.zeros(len(prompts), 1), scores.expand(len(prompts), -1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=6) / len(prompts)
    assert torch.allclose(shares, expected, atol=0.015)
    assert (shares[expected == 0] == 0).all()


def test_an_answer_ends_with_the_end_token_and_leaves_it_out(mini):
    model, tokenizer = mini
    stop = tokenizer.encode("，", add_special_tokens=False)[0]
    config = model.generation_config
    before, config.eos_token_id = config.eos_token_id, [stop]
    try:
        assert set(answers.end_tokens(model, tokenizer)) == {stop, tokenizer.eos_token_id}
        texts = answer(mini, do_sample=False)
    finally:
        config.eos_token_id = before
    assert all(text.index("，") == len(text) - 1 for text in texts if "，" in text)
    assert any("，" in text for text in texts)
