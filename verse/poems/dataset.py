"""Training, validation and test poems: clean them, then part them so that no line leaks.

A poem is a record {"instruction", "input", "output"}: what to do, the first couplet, the rest
of the poem. Which part of a split a poem goes to is decided by a hash of the seed and the
poem, so neither the order of a file nor a poem's neighbours have a say in it.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from verse.errors import UserError
from verse.poems.lines import FORMS, IDEOGRAPHS

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
}

# 〇 is the numeral zero elsewhere, but Tang verse has no use for it.
LACUNA = re.compile("[□■▢◻◼☐○●◯〇\ufffd]")
PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff]")
MARK = re.compile(r"\s*([，。、；：？！,.､｡．;:?!])\s*")
LINE_END = re.compile("[，。？！]")  # the marks that `clean` leaves
FULL_WIDTH = {"?": "？", "!": "！"}

QUATRAIN_OR_OCTAVE = (2, 6)  # lines after the first couplet
COUPLETS = range(2, sys.maxsize, 2)


@dataclass(frozen=True)
class Split:
    train: list[dict[str, str]]
    validation: list[dict[str, str]]
    test: list[dict[str, str]]
    dropped: Counter
    """Poems that went to no part, by reason: shared_line, over_max_train."""


def clean(
    records: Iterable[dict[str, str]], rests: Container[int] = QUATRAIN_OR_OCTAVE
) -> tuple[list[dict[str, str]], Counter]:
    """The usable poems, in order, and how many records were dropped for which reason.

    rests: how many lines may follow the first couplet. The homework's eighth test poem has
        eight, so COUPLETS, any even number, is right for test poems that are given.

    Normalised, since it changes no word: white space around lines goes; a compatibility
    ideograph becomes the unified one (Unicode NFC); every line ends on one full-width mark,
    ， after the first line of a couplet and 。 after the second, save that ？ and ！ stay.
    Rare ideographs stay as they are. The reasons for dropping a record are DROPPED's keys up
    to "duplicate". Poems are the same if their lines are, whatever the punctuation; of two
    records of one poem the first in code-point order is kept.
    """
    poems: dict[tuple[str, ...], dict[str, str]] = {}
    dropped = Counter()
    for record in records:
        couplet, rest = read(record["input"]), read(record["output"])
        lines = tuple(line for line, _ in couplet + rest)
        poem = record | {"input": write(couplet), "output": write(rest)}
        reason = fault(lines, len(couplet), rests)
        if reason is None and lines in poems:
            reason = "duplicate"
            poem = min(poem, poems[lines], key=text_of)
        if reason in (None, "duplicate"):
            poems[lines] = poem
        if reason:
            dropped[reason] += 1
    return list(poems.values()), dropped


def text_of(poem: dict[str, str]) -> tuple[str, str, str]:
    return poem["instruction"], poem["input"], poem["output"]


def read(text: str) -> list[tuple[str, str]]:
    """Lines and the marks after them; "。" where the last line has none.

    >>> read(" 夫子何爲者?栖栖一代中")
    [('夫子何爲者', '?'), ('栖栖一代中', '。')]
    """
    pieces = MARK.split(unicodedata.normalize("NFC", text).strip())
    pieces += ["。"] if pieces[-1] else []
    return list(zip(pieces[::2], pieces[1::2], strict=False))


def write(verses: Sequence[tuple[str, str]]) -> str:
    """Lines with their marks made uniform.

    >>> write([('夫子何爲者', '?'), ('栖栖一代中', '.')])
    '夫子何爲者？栖栖一代中。'
    """
    text = ""
    for place, (line, mark) in enumerate(verses):
        mark = FULL_WIDTH.get(mark, mark)
        text += line + (mark if mark in "？！" else "，。"[place % 2])
    return text


def fault(lines: Sequence[str], couplet: int, rests: Container[int]) -> str | None:
    """Why a poem of these lines, the first `couplet` of them given, is of no use; or None."""
    text = "".join(lines)
    if LACUNA.search(text):
        return "lacuna"
    if PRIVATE_USE.search(text):
        return "private_use"
    if text and not IDEOGRAPHS.fullmatch(text):
        return "foreign"
    if couplet != 2:
        return "couplet"
    if len(lines) - couplet not in rests:
        return "rest"
    if len({len(line) for line in lines}) > 1 or len(lines[0]) not in (5, 7):
        return "length"
    return None


def lines_of(poem: dict[str, str]) -> list[str]:
    """The lines of a poem that `clean` has passed, without punctuation."""
    return LINE_END.split(poem["input"] + poem["output"])[:-1]


def describe(poems: Sequence[dict[str, str]]) -> dict[str, int]:
    """How many poems, of each form and of another, and characters without punctuation."""
    counts = Counter()
    for poem in poems:
        lines = lines_of(poem)
        counts[FORMS.get((len(lines), len(lines[0])), "other")] += 1
        counts["characters"] += len("".join(lines))
    names = (*FORMS.values(), "other", "characters")
    return {"poems": len(poems), **{name: counts[name] for name in names}}


def split(
    train: Sequence[dict[str, str]],
    test: Sequence[dict[str, str]],
    *,
    seed: int,
    test_poems: int,
    validation_poems: int,
    max_train: int | None,
) -> Split:
    """Part clean poems into training, validation and test; no two parts share a line.

    The poems of `test` all stay, first and in their order. If they are fewer than
    `test_poems`, training poems make up the number; then `validation_poems` are held out.
    What shares a line with a poem of an earlier part is dropped. The rest, or `max_train` of
    it, is for training. Chosen poems come in an order that depends on nothing but them and
    the seed. A poem that is added moves at most one other across each of the three cuts, and
    poems that share a line with either.

    Lines are compared as they are written: 爲 and 為 differ. Time is linear in the poems, but
    for sorting. Raises UserError if no poem is left to train on, or none to test.
    """
    pool = ranked(apart(train, test), seed)
    extra = max(0, test_poems - len(test))
    tested = [*test, *pool[:extra]]
    pool = apart(pool[extra:], tested)
    validation = pool[:validation_poems]
    pool = apart(pool[validation_poems:], validation)
    trained = pool[:max_train]

    counts = Counter(over_max_train=len(pool) - len(trained))
    parted = len(tested) + len(validation) + len(pool)
    counts["shared_line"] = len(train) + len(test) - parted
    if not tested:
        raise UserError("there is no test poem: set prepare.test_poems to 1 or more")
    if not trained:
        raise UserError(
            f"no poem is left to train on: of {len(train)} usable ones "
            f"{len(tested) - len(test)} went to the test set, {len(validation)} to validation, "
            f"and {counts['shared_line']} share a line with those: give more poems, or lower "
            "prepare.test_poems and prepare.validation_poems"
        )
    return Split(trained, validation, tested, counts)


def apart(
    poems: Sequence[dict[str, str]], others: Sequence[dict[str, str]]
) -> list[dict[str, str]]:
    """The poems that share no line with any of the others, in their order."""
    taken = {line for other in others for line in lines_of(other)}
    return [poem for poem in poems if taken.isdisjoint(lines_of(poem))]


def ranked(poems: Sequence[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """The poems in the order of a hash of the seed and the text of each."""

    def rank(poem: dict[str, str]) -> bytes:
        return sha256(f"{seed} {poem['input']}{poem['output']}".encode()).digest()

    return sorted(poems, key=rank)
