"""Answers without sense, which give every figure its scale: what can be had for nothing.

Each baseline takes the true poems and the training poems, and gives an answer to each couplet. None
of them is a model, and each comes out the same for the same poems and seed.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from verse.poem import Poem
from verse.poems.prosody import LEVEL, LEVEL_GROUPS, OBLIQUE, final_groups, tone_bits

PATTERNS = {  # of a line, by whether its second character is level and whether it rhymes
    (True, False): "平平仄仄平平仄",
    (True, True): "平平仄仄仄平平",
    (False, False): "仄仄平平平仄仄",
    (False, True): "仄仄平平仄仄平",
}
"""The four lines of regulated verse in seven characters; those in five are their ends."""


def random_characters(poems: Sequence[Poem], training: Sequence[Poem], seed: int) -> list[Poem]:
    """Characters of the training poems at random, where tone and rhyme allow them.

    The tones are those of regulated verse, on from the couplet's second line; even lines end on
    different characters of its rhyme group. As many lines as most training poems have.
    """
    lines = commonest_shape(training)[0]
    text = "".join(poem.text for poem in training)
    level, oblique = (
        text.translate({ord(c): None for c in set(text) if tone_bits(c) != bits})
        for bits in (LEVEL, OBLIQUE)
    )
    finals = {line[-1:] for poem in training for line in poem.rest_lines}
    rhymes: dict[str, list[str]] = {}
    for final in sorted(finals):
        for group in sorted(final_groups(final)):
            rhymes.setdefault(group, []).append(final)
    pools = {"平": level or "平", "仄": oblique or "仄"}
    return [
        toned(poem, lines, pools, rhymes, random.Random(f"{seed} {poem.couplet}")) for poem in poems
    ]


def toned(
    poem: Poem,
    lines: int,
    pools: Mapping[str, Sequence[str]],
    rhymes: Mapping[str, Sequence[str]],
    draw: random.Random,
) -> Poem:
    """So many lines at random, on from a poem's couplet.

    pools: 平 and 仄 -> characters of that tone. rhymes: rhyme group -> characters that end on it.
    """
    given = poem.couplet_lines or ("",)
    length, final = len(given[-1]), given[-1][-1:]
    second = tone_bits(given[-1][1:2]) != OBLIQUE  # of seven characters; in five, it is the fourth
    second = second if length > 5 else not second
    groups = sorted(final_groups(final) & LEVEL_GROUPS or final_groups(final))
    wanted = sorted({c for group in groups for c in rhymes.get(group, ())} - {final})
    draw.shuffle(wanted)
    answer = ""
    for number in range(lines):
        closes = bool(number % 2)
        second = second != closes
        pattern = PATTERNS[second, closes][-length:].rjust(length, "平")
        line = "".join(draw.choice(pools[tone]) for tone in pattern)
        if closes and wanted:
            line = line[:-1] + wanted.pop()
        answer += line + "，。"[closes]
    return replace(poem, rest=answer)


def constant(poems: Sequence[Poem], training: Sequence[Poem], seed: int) -> list[Poem]:
    """One answer for all: the rest of the first training poem of the commonest shape."""
    shape = commonest_shape(training)
    answer = next(poem.rest for poem in training if shape_of(poem) == shape)
    return [replace(poem, rest=answer) for poem in poems]


def another_rest(poems: Sequence[Poem], training: Sequence[Poem], seed: int) -> list[Poem]:
    """The true rest of another poem: of the next in the same shape, or of the next at all."""
    places: dict[tuple[int, int], list[int]] = {}
    for number, poem in enumerate(poems):
        places.setdefault(shape_of(poem), []).append(number)
    following = {
        number: same[(at + 1) % len(same)] if len(same) > 1 else (number + 1) % len(poems)
        for same in places.values()
        for at, number in enumerate(same)
    }
    return [replace(poem, rest=poems[following[n]].rest) for n, poem in enumerate(poems)]


def shape_of(poem: Poem) -> tuple[int, int]:
    """How many lines its rest has, and how many characters the first of them."""
    lines = poem.rest_lines
    return len(lines), len(lines[0]) if lines else 0


def commonest_shape(training: Sequence[Poem]) -> tuple[int, int]:
    """Of the rests: first how many lines most have, then the commonest length of those."""
    shapes = Counter(map(shape_of, training))
    numbers = Counter[int]()
    for (lines, _), count in shapes.items():
        numbers[lines] += count
    lines = max(numbers, key=lambda number: (numbers[number], -number))
    return max((s for s in shapes if s[0] == lines), key=lambda s: (shapes[s], -s[1]))
