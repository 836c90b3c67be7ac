"""Poems without sense, which measure a judge: whoever gives them high marks cannot read."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from verse.poem import Poem, split_lines
from verse.poems.prosody import tone_bits


def scrambled(poems: Sequence[Poem]) -> list[Poem]:
    """Each poem with other characters of the same tones after the couplet, where nothing but
    prosody stays.

    A character gives way to one of the same tone from anywhere in the rests, chosen by a hash of
    its place; those that close a couplet stay, and with them the rhyme.
    """
    pool: dict[int, list[str]] = {}
    for character in sorted({c for poem in poems for line in poem.rest_lines for c in line}):
        pool.setdefault(tone_bits(character), []).append(character)
    rests = (
        "".join(
            "".join(
                character
                if number % 2 and place == len(line)
                else chosen(pool[tone_bits(character)], f"{poem.rest} {number} {place}")
                for place, character in enumerate(line, 1)
            )
            + marks
            for number, (line, marks) in enumerate(split_lines(poem.rest))
        )
        for poem in poems
    )
    return [replace(poem, rest=rest) for poem, rest in zip(poems, rests, strict=True)]


def chosen(characters: Sequence[str], place: str) -> str:
    return characters[int(sha256(place.encode()).hexdigest(), 16) % len(characters)]
