"""Several answers to a prompt, and the one of them to keep."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from verse.generation.answers import Answer, answer
from verse.generation.slots import READ_AT_ONCE
from verse.model.opening import Opening
from verse.params import Decoding
from verse.poems.lines import in_form, split_lines
from verse.poems.prosody import rhymes

Key = tuple[int, int]
"""The number of a poem, and that of one of its candidates."""
ALIKE_AT_ONCE = 1024  # tokens in a pass on a CPU
Text = tuple[list[int], list[int]]
"""Token ids of a prompt and of an answer."""

OTHERS = {
    5: ("白日依山盡，黃河入海流。", "國破山河在，城春草木深。"),
    7: ("朝辭白帝彩雲間，千里江陵一日還。", "錦瑟無端五十弦，一弦一柱思華年。"),
}
"""By the length of its lines, couplets that are not the one in question: the second stands in for
the first where that is."""


def tries(decoding: Decoding) -> int:
    """How many answers to a prompt are written: one where no token is drawn freely."""
    return decoding.candidates if decoding.do_sample and decoding.num_beams == 1 else 1


def finish(
    model: PreTrainedModel,
    opening: Opening,
    poems: Sequence[dict[str, str]],
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    seed: int,
    batch_size: int,
    drawn: dict[Key, Answer],
    on_token: Callable[[Key, int], None] | None = None,
) -> list[Answer]:
    """Finish poems, rows of {"instruction", "input"}: the answer that is kept for each.

    prompts: their token ids. drawn: gets all candidates; what it holds already is not drawn again.
    batch_size, on_token: as `answer` has them.
    """
    numbers = range(tries(decoding))
    keys = [(poem, number) for poem in range(len(poems)) for number in numbers]
    answer(
        model,
        opening.tokenizer,
        {key: prompts[key[0]] for key in keys},
        decoding,
        seed=lambda key: stream(seed, key[1]),
        batch_size=batch_size,
        answers=drawn,
        couplets={key: poems[key[0]]["input"] for key in keys},
        on_token=on_token,
    )
    kept: list[Answer] = []
    open_cases: list[tuple[int, list[Answer]]] = []
    for number, poem in enumerate(poems):
        best = front(poem["input"], [drawn[number, n] for n in numbers])
        kept.append(max(best, key=lambda one: one.likelihood))
        if len(best) > 1 and in_form(poem["input"], best[0].text):
            open_cases.append((number, best))
    others = [{**poems[number], "input": other(poems[number]["input"])} for number, _ in open_cases]
    cases = [
        (prompts[number], instead, [one.tokens for one in best])
        for (number, best), instead in zip(open_cases, opening.encode_prompts(others), strict=True)
    ]
    for (number, best), merits in zip(open_cases, relevance(model, cases), strict=True):
        kept[number] = best[merits.index(max(merits))]
    return kept


def stream(seed: int, number: int) -> str:
    """What the random stream of a prompt's candidate of that number comes from, besides the prompt.

    The first is what there is without candidates.
    """
    return f"{seed}/{number}" if number else str(seed)


def front(couplet: str, answers: Sequence[Answer]) -> list[Answer]:
    """Those in form that rhyme, on different characters; where there are none, those in form; where
    there are none either, all."""

    def merits(one: Answer) -> tuple[bool, bool]:
        lines = [line for line, _ in split_lines(couplet + one.text)]
        finals = [line[-1] for line in lines[1::2]]
        form = in_form(couplet, one.text)
        return form, form and rhymes(lines) and len(set(finals)) == len(finals)

    found = [merits(one) for one in answers]
    most = max(found)
    return [one for one, merit in zip(answers, found, strict=True) if merit == most]


def other(couplet: str) -> str:
    """A couplet that is not this one, with lines of its length if there is one."""
    length = max((len(line) for line, _ in split_lines(couplet)), default=0)
    first, second = OTHERS[min(OTHERS, key=lambda known: abs(known - length))]
    return second if couplet == first else first


def relevance(
    model: PreTrainedModel, cases: Sequence[tuple[list[int], list[int], list[list[int]]]]
) -> list[list[float]]:
    """How much likelier each answer is after its own prompt than after another's, log p(answer |
    own) - log p(answer | other) in nats: what Li et al. 2016 (arXiv:1510.03055) rank answers by,
    against those that suit any prompt.

    cases: token ids of the own prompt, the other and answers. On a CPU the numbers depend on
    nothing but the case.
    """
    texts = [(prompt, tokens) for *both, answers in cases for prompt in both for tokens in answers]
    found = [0.0] * len(texts)
    for numbers in passes(texts, alike=model.device.type == "cpu"):
        nats = log_probabilities(model, [texts[number] for number in numbers])
        for number, value in zip(numbers, nats, strict=True):
            found[number] = value
    in_order = iter(found)
    differences = []
    for *_, answers in cases:
        own, instead = (list(islice(in_order, len(answers))) for _ in range(2))
        differences.append([a - b for a, b in zip(own, instead, strict=True)])
    return differences


def passes(texts: Sequence[Text], *, alike: bool) -> Iterator[list[int]]:
    """The numbers of the texts that go through a model together: if `alike` those of one length
    only, so that nothing is padded and none depends on its company, else as a GPU reads them well.
    """

    def size(number: int) -> int:
        prompt, tokens = texts[number]
        return len(prompt) + len(tokens)

    most = ALIKE_AT_ONCE if alike else READ_AT_ONCE
    order = sorted(range(len(texts)), key=size, reverse=True)
    for _, group in groupby(order, size if alike else lambda _: 0):
        numbers = list(group)
        at_once = max(1, most // size(numbers[0]))
        for start in range(0, len(numbers), at_once):
            yield numbers[start : start + at_once]


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, texts: Sequence[Text]) -> list[float]:
    """That of each answer after its prompt, in nats, by one pass."""
    shortest = min(len(prompt) for prompt, _ in texts)
    # What follows a text does not matter to it.
    ids = pad_sequence(
        [torch.tensor(prompt + tokens) for prompt, tokens in texts], batch_first=True
    )
    scores = model(
        input_ids=ids.to(model.device),
        use_cache=False,
        logits_to_keep=ids.shape[1] - shortest + 1,
    ).logits
    sums = []
    for row, (prompt, tokens) in zip(scores, texts, strict=True):
        start = len(prompt) - shortest
        wanted = torch.tensor(tokens, device=model.device)
        predicted = row[start : start + len(tokens)].float()
        sums.append(-functional.cross_entropy(predicted, wanted, reduction="sum"))
    found: list[float] = torch.stack(sums).tolist()
    return found
