"""Several answers to a prompt, and the one of them to keep."""

from collections.abc import Sequence

from verse.params import Decoding
from verse.poems.lines import in_form, split_lines
from verse.poems.prosody import rhymes


def tries(decoding: Decoding) -> int:
    """How many answers to a prompt are written: one where no token is drawn freely."""
    return decoding.candidates if decoding.do_sample and decoding.num_beams == 1 else 1


def stream(seed: int, number: int) -> str:
    """What the random stream of a prompt's candidate of that number comes from, besides the prompt.

    The first is what there is without candidates.
    """
    return f"{seed}/{number}" if number else str(seed)


def best(couplet: str, answers: Sequence[tuple[str, float]]) -> str:
    """Of several answers and their likelihoods the likeliest that is in form and rhymes.

    Where none rhymes, or rhymes on different characters, the likeliest in form; where none is in
    form, the likeliest. Of equal ones the first.
    """

    def merits(answer: tuple[str, float]) -> tuple[bool, bool, float]:
        text, likelihood = answer
        lines = [line for line, _ in split_lines(couplet + text)]
        finals = [line[-1] for line in lines[1::2]]
        form = in_form(couplet, text)
        return form, form and rhymes(lines) and len(set(finals)) == len(finals), likelihood

    return max(answers, key=merits)[0]
