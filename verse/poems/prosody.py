"""Rhyme and tone of Chinese verse, by the Pingshui rhyme book (平水韻).

A character has one or more readings, each a tone and a rhyme group. The level tone (平) stands
against the other three, rising 上, departing 去 and entering 入, which are the oblique ones
(仄). Regulated verse (近體詩) of four or eight lines of five or seven characters follows four
rules (J. Zhao and H. J. Lee, "Automatic Generation and Evaluation of Chinese Classical Poetry
with Attention-Based Deep Neural Network", Appl. Sci. 2022, 12(13), 6497, section 1, where
adhesion is called the alike-rule):

- alternation: in a line, the 2nd and 4th characters differ in tone, and the 4th and 6th;
- opposition (對): in a couplet, the 2nd, 4th and 6th of the second line differ from the first's;
- adhesion (黏): the 2nd, 4th and 6th of a couplet's first line agree with the line before it;
- level_rhyme: even lines end on one rhyme group of level tone, odd lines on an oblique tone;
  the first line may end on the rhyme instead.

One licence is granted, since the poets use it as freely as what it stands for: an odd line that
ends 平平仄平仄 counts as 平平平仄仄 (特定的一種平仄格式 in Wang Li's 王力 詩詞格律).

A character with several readings keeps a rule if any of them does. One that the book does not
know has no reading, and keeps none.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from verse.poems.lines import FORMS, IDEOGRAPHS

RULES = ("alternation", "opposition", "adhesion", "level_rhyme")

REGULATED_TONE = 0.85
"""Least tone score of regulated verse. A poem that keeps three rules whole and none of the fourth
scores 0.75 and is old style; 詠懷古跡 (搖落深知宋玉悲…), where one couplet of the four fails to
adhere at two places, scores 0.94 and is regulated."""

LEVEL, OBLIQUE = 1, 2  # bits: a character with readings of both kinds has both


class Reading(NamedTuple):
    tone: str
    """平, 上, 去 or 入."""
    group: str
    """Name of the rhyme group, such as 一東: its number within its part of the book, its head."""


class Break(NamedTuple):
    """A place where a rule is broken: `lines[line][position]`, both counted from 0.

    Of the two characters that a rule compares it is the later one.
    """

    line: int
    position: int
    rule: str


@dataclass(frozen=True)
class Analysis:
    form: str | None
    """五絕, 七絕, 五律 or 七律; None for anything else."""
    regulated: bool
    """近體: in form, rhymed on a level tone, tone score of REGULATED_TONE or more. Else 古體."""
    rhyme: bool
    """What `rhymes` says of the lines."""
    rhyme_group: str | None
    """The group that most even lines end on, two at least; a level one before an oblique one."""
    rhyming: tuple[tuple[int, int], ...]
    """(line, position), from 0, of the characters that rhyme on that group."""
    shares: dict[str, float]
    """Rule -> share of the places it applies to where it is kept, 0..1; empty out of form."""
    tone: float
    """Mean of the four shares, 0..1; 0 out of form."""
    breaks: tuple[Break, ...]
    """Every place where a rule is broken, in reading order; empty out of form."""


def read_book(path: Path) -> dict[Reading, str]:
    """Reading -> the characters that have it.

    A line of the file is the part of the book, the rhyme group, its characters and their
    variants, set apart by tabs.
    """
    book = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            part, group, characters, variants = line.split("\t")
            tone = part[-1]  # 上平 and 下平 are two scrolls of one tone
            book[Reading(tone, group)] = characters + variants
    return book


def by_character(book: dict[Reading, str]) -> dict[str, frozenset[Reading]]:
    """Character -> its readings: the book, turned round."""
    index: dict[str, frozenset[Reading]] = {}
    for reading, characters in book.items():
        alone = frozenset({reading})
        for character in characters:
            index[character] = index[character] | alone if character in index else alone
    return index


BOOK = read_book(Path(__file__).with_name("pingshui.tsv"))
READINGS = by_character(BOOK)
LEVEL_GROUPS = frozenset(reading.group for reading in BOOK if reading.tone == "平")


def readings(character: str) -> frozenset[Reading]:
    """The readings of a character; none if the book does not know it, or if it is not one."""
    return READINGS.get(character, frozenset())


def rhymes(lines: Sequence[str]) -> bool:
    """Whether the even lines, two or more, end on characters that share one rhyme group.

    Takes any lines: an empty even line, or one that ends on no character of the book, does not
    rhyme.
    """
    finals = [final_groups(line) for line in lines[1::2]]
    return len(finals) > 1 and bool(frozenset.intersection(*finals))


def analyse(lines: Sequence[str]) -> Analysis:
    """Judge a poem, given as lines of 5 or 7 characters without punctuation.

    Takes any strings, however many and however long. Out of form (not 4 or 8 lines, lines of
    unequal length, or of other than 5 or 7 characters, or a character that is no ideograph)
    there is no tone to judge, only rhyme: the form is None, the tone 0, no breaks are told.
    """
    form = form_of(lines)
    group = rhyme_group(lines)
    rhyme = rhymes(lines)
    rhyming = tuple(
        (number, len(line) - 1)
        for number, line in enumerate(lines)
        if (number == 0 or number % 2) and group in final_groups(line)
    )
    if form is None:
        return Analysis(None, False, rhyme, group, rhyming, {}, 0.0, ())

    places = rule_places(lines, group if group in LEVEL_GROUPS else None)
    kept, applies = Counter[str](), Counter[str]()
    for place, holds in places:
        applies[place.rule] += 1
        kept[place.rule] += holds
    shares = {rule: kept[rule] / applies[rule] for rule in RULES}
    tone = sum(shares.values()) / len(RULES)
    regulated = rhyme and group in LEVEL_GROUPS and tone >= REGULATED_TONE
    breaks = tuple(sorted(place for place, holds in places if not holds))
    return Analysis(form, regulated, rhyme, group, rhyming, shares, tone, breaks)


def form_of(lines: Sequence[str]) -> str | None:
    if len({len(line) for line in lines}) != 1:
        return None
    form = FORMS.get((len(lines), len(lines[0])))
    return form if form and IDEOGRAPHS.fullmatch("".join(lines)) else None


def final_groups(line: str) -> frozenset[str]:
    """The rhyme groups of a line's last character."""
    return frozenset(r.group for r in readings(line[-1:]))


def rhyme_group(lines: Sequence[str]) -> str | None:
    """The group that most even lines end on, at least two; level before oblique, then the first."""
    counts = Counter(g for line in lines[1::2] for g in sorted(final_groups(line)))
    group = max(counts, key=lambda g: (counts[g], g in LEVEL_GROUPS), default="")
    return group if counts[group] > 1 else None


def rule_places(lines: Sequence[str], level_group: str | None) -> list[tuple[Break, bool]]:
    """Every place where a rule applies to a poem in form, and whether it is kept there."""
    tones = [line_tones(line, opens=number % 2 == 0) for number, line in enumerate(lines)]
    beats = range(1, len(lines[0]) - 1, 2)  # the 2nd, 4th and 6th characters
    places = []
    for number, bits in enumerate(tones):
        for earlier, later in pairwise(beats):
            holds = differ(bits[earlier], bits[later])
            places.append((Break(number, later, "alternation"), holds))
    for number, (above, below) in enumerate(pairwise(tones), 1):
        rule, agrees = ("opposition", differ) if number % 2 else ("adhesion", agree)
        for beat in beats:
            places.append((Break(number, beat, rule), agrees(above[beat], below[beat])))
    for number, line in enumerate(lines):
        on_rhyme = level_group in final_groups(line)
        oblique = bool(tones[number][-1] & OBLIQUE)
        holds = on_rhyme if number % 2 else oblique or (number == 0 and on_rhyme)
        places.append((Break(number, len(line) - 1, "level_rhyme"), holds))
    return places


def line_tones(line: str, opens: bool) -> list[int]:
    """The tone bits of each character, with the licence for lines that open a couplet."""
    tones = [tone_bits(character) for character in line]
    a, b, c, d, e = tones[-5:]
    if opens and a & LEVEL and b & LEVEL and c & OBLIQUE and d == LEVEL and e & OBLIQUE:
        tones[-2] = OBLIQUE
    return tones


@cache
def tone_bits(character: str) -> int:
    return sum({LEVEL if r.tone == "平" else OBLIQUE for r in readings(character)})


def differ(a: int, b: int) -> bool:
    """Whether two characters can be read in opposite tones."""
    return a > 0 and b > 0 and a | b == LEVEL | OBLIQUE


def agree(a: int, b: int) -> bool:
    """Whether two characters can be read both level or both oblique."""
    return a & b > 0
