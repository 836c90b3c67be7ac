"""`verse.generation.candidates`: of several answers the one that is kept."""

import pytest
import torch

from verse.generation import answers
from verse.generation.candidates import best, stream, tries
from verse.model.encoding import encode_prompt
from verse.params import Decoding

COUPLET = "白日依山盡，黃河入海流。"
RHYMED = "欲窮千里目，更上一層樓。"
UNRHYMED = "感時花濺淚，恨別鳥驚心。"
AGAIN = "欲窮千里目，更上一層流。"  # the couplet's own rhyme word
LONG = RHYMED + "欲窮千里目"


@pytest.mark.parametrize(
    ("kept", "others"),
    [(RHYMED, [UNRHYMED, LONG, ""]), (RHYMED, [AGAIN]), (UNRHYMED, [LONG, ""])],
)
def test_form_comes_first_then_rhyme(kept, others):
    likely = [(other, -0.1) for other in others]
    assert best(COUPLET, [(kept, -9.0), *likely]) == best(COUPLET, [*likely, (kept, -9.0)]) == kept


def test_without_form_the_likeliest():
    assert best(COUPLET, [("", -3.0), (LONG, -2.0), ("山", -4.0)]) == LONG


def test_of_two_alike_the_likelier_and_of_equals_the_first():
    other = "欲窮千里目，更上一層秋。"
    assert best(COUPLET, [(RHYMED, -2.0), (other, -1.0)]) == other
    assert best(COUPLET, [(RHYMED, -1.0), (other, -1.0)]) == RHYMED


def test_the_likelihood_is_that_of_the_model(mini):
    """Against a pass over the whole answer, and the first candidate is what there is alone."""
    model, tokenizer = mini
    prompt = encode_prompt(tokenizer, COUPLET)
    decoding = Decoding(
        do_sample=True,
        temperature=0.9,
        top_p=0.95,
        top_k=0,
        max_new_tokens=8,
        num_beams=1,
        no_repeat_ngram_size=0,
        candidates=3,
        constrain=[],
    )
    found: dict[int, str] = {}
    likelihoods: dict[int, float] = {}
    written: dict[int, list[int]] = {n: [] for n in range(3)}
    answers.answer(
        model,
        tokenizer,
        dict.fromkeys(range(3), prompt),
        decoding,
        seed=lambda n: stream(7, n),
        batch_size=2,
        answers=found,
        likelihoods=likelihoods,
        on_token=lambda n, token: written[n].append(token),
    )
    assert len(set(found.values())) == 3
    for n, ids in written.items():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        chances = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])
        assert likelihoods[n] == pytest.approx(chances.mean().item(), abs=1e-4)
    assert tries(decoding) == 3
    for changes in ({"do_sample": False}, {"num_beams": 2}):
        assert tries(decoding.model_copy(update=changes)) == 1
    alone: dict[int, str] = {}
    answers.answer(model, tokenizer, {0: prompt}, decoding, seed=7, batch_size=1, answers=alone)
    assert alone[0] == found[0]
