"""Several answers to a prompt, and the one of them to keep."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from verse.generation.answers import Answer, answer
from verse.model.encoding import decode
from verse.model.opening import Opening
from verse.params import Decoding
from verse.poem import Poem
from verse.poems.lines import in_form, outgrown
from verse.poems.prosody import analyse, rhymes

Key = tuple[int, int]
"""The number of a poem, and that of one of its candidates."""
SCORED_AT_ONCE = 2048  # tokens in a pass
LOOKED_AT = 4  # after so many tokens each, whether a candidate can still be kept

OTHERS = {
    5: ("白日依山盡，黃河入海流。", "國破山河在，城春草木深。"),
    7: ("朝辭白帝彩雲間，千里江陵一日還。", "錦瑟無端五十弦，一弦一柱思華年。"),
}
"""By the length of its lines, couplets that are not the one in question: the second stands in for
the first where that is."""


def finish(
    model: PreTrainedModel,
    opening: Opening,
    poems: Sequence[Poem],
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    seed: int,
    batch_size: int,
    drawn: dict[Key, Answer],
    on_token: Callable[[Key, int], None] | None = None,
) -> list[Answer]:
    """Finish poems: the answer that is kept for each.

    prompts: their token ids. drawn: gets all candidates; what it holds already is not drawn again.
    One that has outgrown every form ends there if another of its poem is in form, which would be
    kept before it. batch_size, on_token: as `answer` has them.
    """
    numbers = range(decoding.num_candidates)
    keys = [(poem, number) for poem in range(len(poems)) for number in numbers]

    @cache
    def ended_in_form(key: Key) -> bool:
        return in_form(poems[key[0]].couplet, drawn[key].text)

    def given_up(key: Key, tokens: list[int]) -> bool:
        if len(tokens) % LOOKED_AT:
            return False
        ended = ((key[0], number) for number in numbers if (key[0], number) in drawn)
        beaten = any(map(ended_in_form, ended))
        return beaten and outgrown(decode(opening.tokenizer, tokens))

    answer(
        model,
        opening.tokenizer,
        {key: prompts[key[0]] for key in keys},
        decoding,
        seed=lambda key: stream(seed, key[1]),
        batch_size=batch_size,
        answers=drawn,
        couplets={key: poems[key[0]].couplet for key in keys},
        on_token=on_token,
        given_up=given_up,
    )
    kept: list[Answer] = []
    open_cases: list[tuple[int, list[Answer]]] = []
    for number, poem in enumerate(poems):
        best = eligible(poem.couplet, [drawn[number, n] for n in numbers])
        kept.append(max(best, key=lambda one: one.likelihood))
        if len(best) > 1 and in_form(poem.couplet, best[0].text):
            open_cases.append((number, best))
    others = [
        replace(poems[number], couplet=decoy_couplet(poems[number])) for number, _ in open_cases
    ]
    asked = opening.encode_prompts(others, checked=False)  # no answer to them is kept
    cases = list(zip(asked, (best for _, best in open_cases), strict=True))
    for (number, best), merits in zip(open_cases, pmi(model, cases), strict=True):
        kept[number] = best[merits.index(max(merits))]
    return kept


def stream(seed: int, number: int) -> str:
    """What the random stream of a prompt's candidate of that number comes from, besides the prompt.

    The first is what there is without candidates.
    """
    return f"{seed}/{number}" if number else str(seed)


def eligible(couplet: str, answers: Sequence[Answer]) -> list[Answer]:
    """Those in form that rhyme, on different characters; where there are none, those in form; where
    there are none either, all. Of these, the ones that are in tone and have no character in two
    places, or one of both; 悠悠 is one place."""

    def merits(one: Answer) -> tuple[bool, bool, int]:
        lines = Poem(couplet, one.text).lines
        finals = [line[-1] for line in lines[1::2]]
        form = in_form(couplet, one.text)
        places = [c for c, _ in groupby("".join(lines[2:]))]
        fine = analyse(lines).in_tone + (len(set(places)) == len(places))
        return form, form and rhymes(lines) and len(set(finals)) == len(finals), form and fine

    found = [merits(one) for one in answers]
    most = max(found)
    return [one for one, merit in zip(answers, found, strict=True) if merit == most]


def decoy_couplet(poem: Poem) -> str:
    """A couplet that is not this poem's, with lines of its length if there is one."""
    length = max(map(len, poem.couplet_lines), default=0)
    first, second = OTHERS[min(OTHERS, key=lambda known: abs(known - length))]
    return second if poem.couplet == first else first


def pmi(
    model: PreTrainedModel, cases: Sequence[tuple[list[int], list[Answer]]]
) -> list[list[float]]:
    """How much likelier each answer is after its own prompt than after another's, log p(answer |
    own) - log p(answer | other) in nats: what Li et al. 2016 (arXiv:1510.03055) rank answers by,
    against those that suit any prompt.

    cases: token ids of the other prompt, and answers to the own. On a CPU the numbers depend on
    nothing but the case.
    """
    found = [[one.likelihood * len(one.tokens) for one in answers] for _, answers in cases]
    after: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number, (prompt, answers) in enumerate(cases):
        after.setdefault(tuple(prompt), []).extend((number, n) for n in range(len(answers)))
    for other_prompt, places in after.items():
        texts = [cases[number][1][n].tokens for number, n in places]
        nats = log_probabilities(model, other_prompt, texts)
        for (number, n), value in zip(places, nats, strict=True):
            found[number][n] -= value
    return found


@torch.no_grad()
def log_probabilities(
    model: PreTrainedModel, prompt: Sequence[int], answers: Sequence[list[int]]
) -> list[float]:
    """That of each answer after one prompt, in nats. The prompt is read once where what the model
    has seen of it can be lent to many texts, else with every answer."""
    *before, last = prompt
    seen = read(model, before)
    texts = [[*([] if seen else before), last, *tokens[:-1]] for tokens in answers]
    found = [0.0] * len(answers)
    for numbers in passes(list(map(len, texts)), alike=model.device.type == "cpu"):
        # What follows a text does not matter to it.
        ids = pad_sequence([torch.tensor(texts[number]) for number in numbers], batch_first=True)
        scores = model(
            input_ids=ids.to(model.device),
            past_key_values=seen,
            use_cache=bool(seen),
            logits_to_keep=max(len(answers[number]) for number in numbers),
        ).logits
        sums = []
        for row, number in zip(scores, numbers, strict=True):
            wanted = torch.tensor(answers[number], device=model.device)
            predicted = row[: len(wanted)].float()
            sums.append(-functional.cross_entropy(predicted, wanted, reduction="sum"))
        for number, nats in zip(numbers, torch.stack(sums).tolist(), strict=True):
            found[number] = nats
    return found


def read(model: PreTrainedModel, tokens: list[int]) -> DynamicCache | None:
    """What a model has seen after these tokens, to be lent to any number of texts that go on from
    there; None if it is not the keys and values of each token."""
    if not tokens:
        return None
    ids = torch.tensor([tokens], device=model.device)
    seen = model(input_ids=ids, logits_to_keep=1, use_cache=True).get("past_key_values")
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    if not isinstance(seen, DynamicCache) or any(type(one) not in kinds for one in seen.layers):
        return None
    for layer in seen.layers:
        share_cache(layer)
    return seen


def share_cache(layer: DynamicLayer) -> None:
    """Let texts go on from what a layer has seen, and add nothing to it: a copy for each text, in
    all layers at once, could be larger than the model."""
    held = copy.copy(layer)

    def update(
        keys: torch.Tensor, values: torch.Tensor, *rest: Any, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        lent = copy.copy(held)
        lent.keys = held.keys.expand(len(keys), -1, -1, -1)
        lent.values = held.values.expand(len(values), -1, -1, -1)
        return lent.update(keys, values, *rest, **more)

    layer.update = update


def passes(lengths: Sequence[int], *, alike: bool) -> Iterator[list[int]]:
    """The numbers of the texts that go through a model together: if `alike` those of one length
    only, so that nothing is padded and none depends on its company."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for _, group in groupby(order, lengths.__getitem__ if alike else lambda _: 0):
        numbers = list(group)
        while numbers:
            at_once = max(1, SCORED_AT_ONCE // lengths[numbers[0]])
            yield numbers[:at_once]
            numbers = numbers[at_once:]
