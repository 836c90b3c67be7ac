"""`verse.generation.candidates`: of several answers the one that is kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import SHAPES, build, byte_pairs, decoding, encode_prompt
from transformers import AutoModelForCausalLM

from verse import params
from verse.generation import answers, candidates
from verse.generation.answers import Answer
from verse.generation.candidates import (
    OTHERS,
    decoy_couplet,
    eligible,
    finish,
    log_probabilities,
    passes,
    pmi,
    read,
    stream,
)
from verse.model import loading, memory
from verse.model.opening import open_model
from verse.poem import Poem
from verse.poems.lines import in_form

COUPLET = "白日依山盡，黃河入海流。"
RHYMED = "欲窮千里目，更上一層樓。"
UNRHYMED = "感時花濺淚，恨別鳥驚心。"
AGAIN = "欲窮千里目，更上一層流。"  # the couplet's own rhyme word
TWICE = "欲窮千里目，更上一里樓。"
OFF_TONE = "里目欲千窮，上更一層樓。"
OFF_TONE_TWICE = "里目欲千窮，上里一層樓。"
LONG = RHYMED + "欲窮千里目"


def written(*texts):
    return [Answer(text, [], -float(number)) for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("best", "others"),
    [
        (RHYMED, [UNRHYMED, LONG, ""]),
        (RHYMED, [AGAIN]),
        (UNRHYMED, [LONG, ""]),
        (RHYMED, [TWICE]),
        (RHYMED, [OFF_TONE]),
        (TWICE, [OFF_TONE_TWICE]),
        (TWICE, [UNRHYMED]),
    ],
)
def test_form_comes_first_then_rhyme_then_tone_and_no_character_twice(best, others):
    for texts in ([best, *others], [*others, best], [*others, best, best]):
        assert {one.text for one in eligible(COUPLET, written(*texts))} == {best}


def test_a_reduplicated_character_is_one_place():
    doubled = "悠悠千里目，更上一層樓。"
    assert len(eligible(COUPLET, written(RHYMED, doubled))) == 2


def test_without_form_all_are_left():
    assert len(eligible(COUPLET, written("", LONG, "山"))) == 3


def test_another_couplet_is_never_the_same_and_as_long_if_it_can_be():
    for length, known in OTHERS.items():
        for couplet in known:
            assert decoy_couplet(Poem(couplet)) in set(known) - {couplet}
        assert decoy_couplet(Poem("山" * length + "，" + "水" * length + "。")) in known
    for odd in ("", "山水，雲。", "山水雲雨山水雲雨，山水雲雨山水雲雨。"):
        assert any(decoy_couplet(Poem(odd)) in known for known in OTHERS.values())


@pytest.fixture(scope="module")
def opened():
    """The embedded model as `generate` opens it, twenty poems, and their prompts."""
    p = params.read()
    opening = open_model(p.model, p.machine.model_copy(update={"device": "cpu"}), seed=p.seed)
    instruction = "完成這首詩。"
    poems = [
        Poem(poem["input"], instruction=instruction)
        for poem in json.loads(Path("data/embedded/test.json").read_text("utf-8"))[:20]
    ]
    prompts = opening.encode_prompts(poems)
    return opening, opening.load(memory.MemoryPlan(), prompts), poems, prompts


DRAWING = decoding(
    do_sample=True,
    top_p=0.9,
    top_k=50,
    max_new_tokens=30,
    no_repeat_ngram_size=3,
    candidates=4,
    constrain=["form", "rhyme"],
)


@torch.no_grad()
def log_chances(model, prompt, tokens):
    """Of each token after a prompt and those before, by one plain pass, in nats."""
    logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0].float()
    logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return logprobs.gather(1, torch.tensor(tokens)[:, None])


def finished(opened, which, drawn):
    opening, model, poems, prompts = opened
    poems, prompts = [poems[n] for n in which], [prompts[n] for n in which]
    settings = {"seed": 3, "batch_size": 64, "drawn": drawn}
    return finish(model, opening, poems, prompts, DRAWING, **settings)


def test_kept_is_the_one_that_its_couplet_explains_best(opened):
    """Against plain passes over one text each, by another model object; alone as in company."""
    opening, _, poems, prompts = opened
    plain = loading.load_model(opening.settings, torch.device("cpu"), opening.dtype)

    def nats(prompt, tokens):
        return log_chances(plain, prompt, tokens).sum().item()

    drawn = {}
    kept = finished(opened, range(20), drawn)
    likeliest = 0
    for number, poem in enumerate(poems):
        best = eligible(poem.couplet, [drawn[number, n] for n in range(4)])
        [instead] = opening.encode_prompts([replace(poem, couplet=decoy_couplet(poem))])
        merits = [nats(prompts[number], one.tokens) - nats(instead, one.tokens) for one in best]
        assert merits[best.index(kept[number])] >= max(merits) - 0.5  # of bfloat16's last bits
        likeliest += kept[number] == max(best, key=lambda one: one.likelihood)
    assert likeliest < 15
    for number in (0, 7, 13):
        assert finished(opened, [number], {}) == [kept[number]]


def test_one_that_cannot_be_kept_any_more_is_not_written_to_its_end(opened, monkeypatch):
    opening, model, poems, prompts = opened
    free = DRAWING.model_copy(update={"constrain": [], "max_new_tokens": 60})

    def kept_of(drawn):
        return finish(model, opening, poems, prompts, free, seed=3, batch_size=64, drawn=drawn)

    drawn, whole = {}, {}
    kept = kept_of(drawn)
    monkeypatch.setattr(candidates, "outgrown", lambda _: False)
    assert kept_of(whole) == kept
    shorter = [key for key, one in drawn.items() if one != whole[key]]
    assert len(shorter) > 5
    for number, n in shorter:
        one = drawn[number, n]
        assert one.tokens == whole[number, n].tokens[: len(one.tokens)]
        assert not in_form(poems[number].couplet, whole[number, n].text)
        assert in_form(poems[number].couplet, kept[number].text)


def test_without_form_the_likeliest_is_kept_and_of_equals_the_first(opened):
    opening, model, [poem, *_], [prompt, *_] = opened

    def kept(*answers):
        drawn = {(0, number): one for number, one in enumerate(answers)}
        settings = {"seed": 3, "batch_size": 64, "drawn": drawn}
        [one] = finish(model, opening, [poem], [prompt], DRAWING, **settings)
        return one

    unlike = [Answer(text, [], likelihood) for text, likelihood in (("", -3.0), ("山", -4.0))]
    likely, twin = Answer("山水", [], -2.0), Answer("水山", [], -2.0)
    assert kept(*unlike, likely, twin) is likely
    assert kept(twin, *unlike, likely) is twin


@pytest.mark.parametrize("lent", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_many_answers_after_a_prompt_give_what_each_gives_alone(kind, lent, tmp_path, monkeypatch):
    """Against plain passes, of models of all makes."""
    tokenizer = byte_pairs()
    build(kind, tmp_path, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    if lent:
        assert read(model, [1, 2, 3])
    else:
        monkeypatch.setattr(candidates, "read", lambda *_: None)
    prompt = encode_prompt(tokenizer, COUPLET * 3)
    answers = [
        encode_prompt(tokenizer, answer)[-size:]
        for answer, size in ((RHYMED, 12), (LONG, 5), (UNRHYMED, 1), (LONG, 17), (AGAIN, 12))
    ]

    expected = [log_chances(model, prompt, tokens).sum().item() for tokens in answers]
    assert log_probabilities(model, prompt, answers) == pytest.approx(expected, abs=1e-3)
    assert log_probabilities(model, prompt[:1], answers[:1]) != pytest.approx(expected[:1], abs=0.1)
    backwards = log_probabilities(model, prompt, answers[::-1])
    assert backwards == pytest.approx(expected[::-1], abs=1e-3)


def test_answers_go_through_together_that_are_alike_or_of_about_a_size(monkeypatch):
    monkeypatch.setattr(candidates, "SCORED_AT_ONCE", 10)
    lengths = [2, 12, 5, 4, 5, 5]
    assert list(passes(lengths, alike=False)) == [[1], [2, 4], [5, 3], [0]]
    assert list(passes(lengths, alike=True)) == [[1], [2, 4], [5], [3], [0]]
    monkeypatch.setattr(candidates, "SCORED_AT_ONCE", 24)
    assert list(passes(lengths, alike=False)) == [[1, 2], [4, 5, 3, 0]]


def test_a_number_does_not_depend_on_its_company(opened):
    """To the last bit, on a CPU."""
    opening, model, poems, _ = opened
    drawn = {}
    finished(opened, range(20), drawn)
    [instead] = opening.encode_prompts([replace(poems[0], couplet=COUPLET)])
    cases = [(instead, [drawn[number, n] for n in range(4)]) for number in range(20)]
    together = pmi(model, cases)
    assert [pmi(model, [case])[0] for case in cases] == together
    assert pmi(model, cases[::-1]) == together[::-1]


def test_nothing_to_compare_is_no_work(opened):
    assert pmi(opened[1], []) == []


@pytest.mark.parametrize("together", [True, False])
def test_the_likelihood_is_that_of_the_model(mini, together, apart):
    """Against a pass over the whole answer, and the first candidate is what there is alone; also
    in Transformers' own way."""

    if not together:
        apart()
    model, tokenizer = mini
    prompt = encode_prompt(tokenizer, COUPLET)
    asked = decoding(do_sample=True, temperature=0.9, top_p=0.95, candidates=3)
    found: dict[int, Answer] = {}
    answers.answer(
        model,
        tokenizer,
        dict.fromkeys(range(3), prompt),
        asked,
        seed=lambda n: stream(7, n),
        batch_size=2,
        answers=found,
    )
    assert len({one.text for one in found.values()}) == 3
    for one in found.values():
        logprobs = log_chances(model, prompt, one.tokens)
        assert one.likelihood == pytest.approx(logprobs.mean().item(), abs=1e-4)
    assert asked.num_candidates == 3
    for changes in ({"do_sample": False}, {"num_beams": 2}):
        assert asked.model_copy(update=changes).num_candidates == 1
    alone: dict[int, Answer] = {}
    answers.answer(model, tokenizer, {0: prompt}, asked, seed=7, batch_size=1, answers=alone)
    assert alone[0].text == found[0].text


@torch.no_grad()
def test_what_was_read_is_lent_and_nothing_is_added_to_it(mini):
    model, tokenizer = mini
    *before, last = encode_prompt(tokenizer, COUPLET)
    seen = read(model, before)
    for count in (3, 1):
        ids = torch.full((count, 4), last)
        logits = model(input_ids=ids, past_key_values=seen, use_cache=True).logits
        alone = model(input_ids=torch.tensor([before + ids[0].tolist()])).logits[:, -4:]
        assert torch.allclose(logits, alone.expand_as(logits), atol=1e-3)
        assert seen.get_seq_length() == len(before)
        assert all(layer.keys.shape[::2] == (1, len(before)) for layer in seen.layers)
