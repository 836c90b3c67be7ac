"""Training, validation and test poems: clean them, then part them so that no line leaks.

Which part of a split a poem goes to is decided by a hash of the seed and the poem, so neither the
order of a file nor a poem's neighbours have a say in it.
"""

import re
import sys
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice

from verse.errors import UserError
from verse.params import Prepare
from verse.poem import Poem
from verse.poems.lines import FORMS, IDEOGRAPHS, is_simplified, lines_in, parse_lines, write_lines
from verse.poems.prosody import readings

# Why a record is left out, in the order in which it is looked at.
DROPPED = {
    "lacuna": "a mark for characters that are lost",
    "private_use": "a code point that has a meaning in one font only",
    "foreign": "a note, bracket, letter or space within a line",
    "couplet": "an input of other than two lines",
    "rest": "an output of other than two or six lines; for a test poem, of an odd number",
    "length": "lines of unequal length, or of other than 5 or 7 characters",
    "duplicate": "a poem that stands in the file already",
    "shared_line": "a training poem with a line of a test or validation poem",
    "over_max_train": "a training poem more than were asked for",
    "over_test_poems": "a test poem more than were asked for",
}

UNUSABLE = dict(islice(DROPPED.items(), 6))
"""Those of a poem in itself."""

# 〇 is the numeral zero elsewhere, but Tang verse has no use for it.
LACUNA = re.compile("[□■▢◻◼☐○●◯〇\ufffd]")
PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff]")

QUATRAIN_OR_OCTAVE = (2, 6)  # lines after the first couplet
COUPLETS = range(2, sys.maxsize, 2)


@dataclass(frozen=True)
class Split:
    train: list[Poem]
    validation: list[Poem]
    test: list[Poem]
    dropped: Counter[str]
    """Poems that went to no part, by reason: shared_line, over_max_train, over_test_poems."""


def clean(
    poems: Iterable[Poem], rests: Container[int] = QUATRAIN_OR_OCTAVE
) -> tuple[list[Poem], Counter[str]]:
    """The usable poems, in order, and how many were dropped for which reason.

    rests: how many lines may follow the first couplet. The homework's eighth test poem has
        eight, so COUPLETS, any even number, is right for test poems that are given.

    Normalised, since it changes no word: white space around lines goes; a compatibility
    ideograph becomes the unified one (Unicode NFC); every line ends on one full-width mark,
    ， after the first line of a couplet and 。 after the second, save that ？ and ！ stay.
    Rare ideographs stay as they are. The reasons for dropping a poem are DROPPED's keys up
    to "duplicate". Poems are the same if their lines are, whatever the punctuation; of two
    editions of one poem the first in code-point order is kept, at the place of the earlier.
    """
    kept: dict[str, Poem] = {}
    dropped = Counter[str]()
    for poem in poems:
        couplet, rest = parse_lines(poem.couplet), parse_lines(poem.rest)
        if reason := fault(couplet, rest, rests):
            dropped[reason] += 1
            continue
        poem = Poem(write_lines(couplet), write_lines(rest), poem.instruction)
        lines = " ".join(line for line, _ in couplet + rest)
        if lines in kept:
            dropped["duplicate"] += 1
            poem = min(poem, kept[lines], key=lambda one: (one.instruction, one.text))
        kept[lines] = poem
    return list(kept.values()), dropped


def fault(
    couplet: list[tuple[str, str]], rest: list[tuple[str, str]], rests: Container[int]
) -> str | None:
    """Why a poem of these lines and their marks is of no use; or None."""
    lines = [line for line, _ in couplet + rest]
    text = "".join(lines)
    if LACUNA.search(text):
        return "lacuna"
    if PRIVATE_USE.search(text):
        return "private_use"
    if text and not IDEOGRAPHS.fullmatch(text):
        return "foreign"
    if len(couplet) != 2:
        return "couplet"
    if len(rest) not in rests:
        return "rest"
    if len({len(line) for line in lines}) > 1 or len(lines[0]) not in (5, 7):
        return "length"
    return None


def describe(poems: Sequence[Poem]) -> dict[str, int]:
    """How many poems, of each form and of another, and characters without punctuation."""
    shapes = Counter((len(lines), len(lines[0])) for lines in (poem.lines for poem in poems))
    forms = Counter[str]()
    for shape, count in shapes.items():
        forms[FORMS.get(shape, "other")] += count
    return {
        "poems": len(poems),
        **{form: forms[form] for form in (*FORMS.values(), "other")},
        "characters": sum(lines * length * count for (lines, length), count in shapes.items()),
    }


def check_usable(dropped: Mapping[str, int], read: int, wanted: Prepare, file: str) -> None:
    """Raise UserError if more poems of a file are of no use than `max_dropped` of those read.

    dropped: by `clean`. A poem that stands there twice is none of them.
    """
    counts = {what: dropped[key] for key, what in UNUSABLE.items() if dropped[key]}
    if sum(counts.values()) > wanted.max_dropped * read:
        why = "; ".join(f"{count} {what}" for what, count in counts.items())
        raise UserError(
            f"{file}: {sum(counts.values())} of {read} poems are of no use ({why}): fix them, take "
            "another data.source, or raise prepare.max_dropped"
        )


def strange(poems: Iterable[Poem]) -> dict[str, float]:
    """The shares of characters that the metrics know little of.

    simplified: in simplified script, where rhymes, tones and words are told from traditional
    characters. unrhymed: outside of the book of rhymes.
    """
    counts = Counter(chain.from_iterable("".join(poem.lines) for poem in poems))
    total = max(1, counts.total())
    return {
        "simplified": round(sum(n for c, n in counts.items() if is_simplified(c)) / total, 4),
        "unrhymed": round(sum(n for c, n in counts.items() if not readings(c)) / total, 4),
    }


def split(train: Sequence[Poem], test: Sequence[Poem], wanted: Prepare, seed: int) -> Split:
    """Part clean poems into training, validation and test; no two parts share a line.

    Of `test` as many as `test_poems` stay, first and in their order. If they are fewer, training
    poems make up the number; then `validation_poems` are held out.
    What shares a line with a poem of an earlier part is dropped. The rest, or `max_train` of
    it, is for training. Chosen poems come in an order that depends on nothing but them and
    the seed. A poem that is added moves at most one other across each of the three cuts, and
    poems that share a line with either.

    Lines are compared as they are written: 爲 and 為 differ. Time is linear in the poems, but
    for sorting. Raises UserError if no poem is left to train on.
    """
    given = len(test)
    chosen = set(ranked(test, seed)[: wanted.test_poems])
    test = [poem for poem in test if poem in chosen]
    pool = ranked(apart(train, test), seed)
    extra = wanted.test_poems - len(test)
    tested = test + pool[:extra]
    pool = apart(pool[extra:], tested)
    validation = pool[: wanted.validation_poems]
    pool = apart(pool[wanted.validation_poems :], validation)
    trained = pool[: wanted.max_train]

    shared = len(train) + len(test) - len(tested) - len(validation) - len(pool)
    if not trained:
        raise UserError(
            f"no poem is left to train on: of {len(train)} usable ones "
            f"{len(tested) - len(test)} went to the test set, {len(validation)} to validation, "
            f"and {shared} share a line with those: give more poems, or lower "
            "prepare.test_poems and prepare.validation_poems"
        )
    dropped = Counter(
        shared_line=shared,
        over_max_train=len(pool) - len(trained),
        over_test_poems=given - len(test),
    )
    return Split(trained, validation, tested, dropped)


def apart(poems: Iterable[Poem], others: Iterable[Poem]) -> list[Poem]:
    """The poems that share no line with any of the others, in their order."""
    taken = lines_in(poem.text for poem in others)
    return [poem for poem in poems if taken.isdisjoint(poem.lines)]


def ranked(poems: Iterable[Poem], seed: int) -> list[Poem]:
    """The poems in the order of a hash of the seed and the text of each."""
    return sorted(poems, key=lambda poem: sha256(f"{seed} {poem.text}".encode()).digest())
