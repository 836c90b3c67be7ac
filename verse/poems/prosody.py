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

Two more faults lie within a line and count among alternation's places (Wang Li 王力, 詩詞格律,
chapter 2, sections 3 to 5, on whose account all that follows goes too): three level tones at the
end (三平尾, `level_tail`), and 仄平仄仄平, where the rhyme leaves one level tone alone (孤平,
`lone_level`).

What the poets themselves count as mended (拗救) is kept:
- an odd line that ends 平平仄平仄 counts as 平平平仄仄 (the special pattern 特定的一種平仄格式);
- 仄平平仄平 is no 孤平 (the line mends itself);
- an odd line whose last but one should be level and is not, as in 仄仄平仄仄 or 仄仄仄仄仄, if the
  third from the end of the next line is level in its place: 野火燒不盡，春風吹又生.
Three oblique tones at the end (三仄尾) are no fault.

A character with several readings keeps a rule if any of them does, but for those that regulated
verse reads in one tone in 19 of 20 places or more, or that the Guangyun (廣韻) reads in one
(tones.tsv): 不 is oblique, whatever the book says of 不 as 否. Some words are exceptions: 勞 is
level, and either in 慰勞. One that the book does not know has no reading, and keeps none. Two
groups of one class of NEIGHBOURS rhyme in old style (鄰韻, 通押), and may in the first line of a
regulated poem (孤雁入群), which is told apart from rhyme and from none.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from verse.poems.lines import FORMS, IDEOGRAPHS

RULES = ("alternation", "opposition", "adhesion", "level_rhyme")

LEVEL, OBLIQUE = 1, 2  # bits: a character with readings of both kinds has both


class Reading(NamedTuple):
    tone: str
    """平, 上, 去 or 入."""
    group: str
    """Name of the rhyme group, such as 一東: its number within its part of the book, its head."""


LEAST_TONE = 0.85
"""Least share of tone rules kept by a poem in tone; 87% of true poems have it."""

FAULTS = (*RULES, "level_tail", "lone_level")
"""What a Break may say; the last two are places of alternation."""

NEIGHBOURS = [
    frozenset(groups.split())
    for groups in (
        "一東 二冬",
        "三江 七陽",
        "四支 五微 八齊",
        "六魚 七虞",
        "九佳 十灰",
        "十一真 十二文 十三元",
        "十三元 十四寒 十五刪 一先",
        "二蕭 三肴 四豪",
        "八庚 九青 十蒸",
        "十三覃 十四鹽 十五咸",
        "一董 二腫",
        "四紙 五尾 八薺",
        "六語 七麌",
        "九蟹 十賄",
        "十一軫 十二吻 十三阮",
        "十三阮 十四旱 十五潸 十六銑",
        "十七篠 十八巧 十九皓",
        "二十三梗 二十四迥",
        "二十七感 二十八琰 二十九豏",
        "一送 二宋",
        "四寘 五未 八霽",
        "六御 七遇",
        "九泰 十卦 十一隊",
        "十二震 十三問 十四願",
        "十四願 十五翰 十六諫 十七霰",
        "十八嘯 十九效 二十號",
        "二十四敬 二十五徑",
        "二十八勘 二十九豔 三十陷",
        "一屋 二沃",
        "三覺 十藥",
        "四質 五物",
        "六月 七曷 八黠 九屑",
        "十一陌 十二錫 十三職",
        "十五合 十六葉 十七洽",
    )
]
"""Groups that rhyme with one another in old style: Wang Li, 漢語詩律學, section 5, whose class of
真文元寒刪先 is parted where 元 is; the other three tones go by the level one."""


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
    """五絕, 七絕, 五律, 七律; 五排 or 七排 of ten lines or more (排律), 五言 or 七言 of six lines;
    None for anything else."""
    regulated: bool
    """近體, else 古體: of four, eight, ten or more lines, rhymed on a level tone, with few
    faults, among which an even line on a neighbouring group is one: see `regular`."""
    rhyme: bool
    """What `rhymes` says of the lines."""
    near_rhyme: bool
    """The even lines end on groups that are neighbours, and share none."""
    rhyme_group: str | None
    """The group that most even lines end on, two at least; a level one before an oblique one. Where
    all end on neighbours, that of the first."""
    rhyming: tuple[tuple[int, int], ...]
    """(line, position), from 0, of the characters that rhyme on that group."""
    shares: dict[str, float]
    """Rule -> share of the places it applies to where it is kept, 0..1; empty out of form."""
    tone: float
    """Mean of the four shares, 0..1; 0 out of form."""
    rest_tone: float
    """The same of the places after the first couplet alone."""
    breaks: tuple[Break, ...]
    """Every place where a rule is broken, in reading order; empty out of form."""

    @property
    def in_tone(self) -> bool:
        """Regulated, or LEAST_TONE of the rules kept after the couplet."""
        return self.regulated or self.rest_tone >= LEAST_TONE


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


def read_tones(path: Path) -> tuple[dict[str, int], frozenset[str]]:
    """Character -> the one tone that verse reads it in, LEVEL or OBLIQUE; and the words, of two
    characters, in which all readings count."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    rows = dict(line.split("\t") for line in lines)
    usual = {c: bit for name, bit in (("平", LEVEL), ("仄", OBLIQUE)) for c in rows[name]}
    return usual, frozenset(rows["詞"].split())


BOOK = read_book(Path(__file__).with_name("pingshui.tsv"))
USUAL, WORDS = read_tones(Path(__file__).with_name("tones.tsv"))
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


def near_rhymes(lines: Sequence[str]) -> bool:
    """Whether the even lines, two or more, end on groups of one class of NEIGHBOURS (鄰韻)."""
    finals = [final_groups(line) for line in lines[1::2]]
    return len(finals) > 1 and any(all(one & near for one in finals) for near in NEIGHBOURS)


def analyse(lines: Sequence[str]) -> Analysis:
    """Judge a poem, given as lines of 5 or 7 characters without punctuation.

    Takes any strings, however many and however long. Out of form (fewer than 4 lines or an odd
    number, lines of unequal length, or of other than 5 or 7 characters, or a character that is no
    ideograph) there is no tone to judge, only rhyme: the form is None, the tone 0, no breaks are
    told.
    """
    form = form_of(lines)
    rhyme = rhymes(lines)
    near = not rhyme and near_rhymes(lines)
    group = rhyme_group(lines) or (near_group(lines) if near else None)
    rhyming = tuple(
        (number, len(line) - 1)
        for number, line in enumerate(lines)
        if (number == 0 or number % 2) and group in final_groups(line)
    )
    if form is None:
        return Analysis(None, False, rhyme, near, group, rhyming, {}, 0.0, 0.0, ())

    tones, _ = counted_tones(lines)
    places = rule_places(lines, tones, group if group in LEVEL_GROUPS else None)
    shares = shares_kept(places)
    rest = shares_kept([one for one in places if one[0].line > 1])
    breaks = tuple(sorted(place for place, holds in places if not holds))
    on_level = (rhyme or near) and group in LEVEL_GROUPS
    return Analysis(
        form=form,
        regulated=on_level and len(lines) != 6 and regular(len(lines), breaks),
        rhyme=rhyme,
        near_rhyme=near,
        rhyme_group=group,
        rhyming=rhyming,
        shares=shares,
        tone=sum(shares.values()) / len(RULES),
        rest_tone=sum(rest.values()) / len(RULES),
        breaks=breaks,
    )


def regular(lines: int, breaks: Iterable[Break]) -> bool:
    """Whether a poem of so many lines with these breaks is regulated verse.

    Adhesion and opposition are seen by the second character, as experts do; a line is at fault
    once, however often it breaks alternation. One fault in four lines is borne, but in eight lines
    one alone that is no adhesion: failing to adhere (失黏, 折腰) is the poets' commonest licence.
    """
    faults = set()
    for line, position, rule in breaks:
        if rule == "level_rhyme" or (rule in ("opposition", "adhesion") and position == 1):
            faults.add((line, rule))
        elif rule not in ("opposition", "adhesion"):
            faults.add((line, "alternation"))
    others = sum(rule != "adhesion" for _, rule in faults)
    return len(faults) <= lines // 4 and others <= max(1, lines // 8)


def shares_kept(places: Sequence[tuple[Break, bool]]) -> dict[str, float]:
    """Of each rule the share of the places where it is kept."""
    kept, applies = Counter[str](), Counter[str]()
    for place, holds in places:
        rule = place.rule if place.rule in RULES else "alternation"
        applies[rule] += 1
        kept[rule] += holds
    return {rule: kept[rule] / applies[rule] for rule in RULES}


def form_of(lines: Sequence[str]) -> str | None:
    length = len(lines[0]) if lines else 0
    if length not in LENGTHS or len({len(line) for line in lines}) != 1:
        return None
    if len(lines) < 4 or len(lines) % 2 or not IDEOGRAPHS.fullmatch("".join(lines)):
        return None
    return FORMS.get((len(lines), length), LENGTHS[length] + ("言" if len(lines) == 6 else "排"))


LENGTHS = {5: "五", 7: "七"}


def final_groups(line: str) -> frozenset[str]:
    """The rhyme groups of a line's last character."""
    return frozenset(r.group for r in readings(line[-1:]))


def rhyme_group(lines: Sequence[str]) -> str | None:
    """The group that most even lines end on, at least two; level before oblique, then the first."""
    counts = Counter(g for line in lines[1::2] for g in sorted(final_groups(line)))
    group = max(counts, key=lambda g: (counts[g], g in LEVEL_GROUPS), default="")
    return group if counts[group] > 1 else None


def near_group(lines: Sequence[str]) -> str:
    """Of lines that rhyme on neighbours, the first even one's group; level before oblique."""
    finals = [final_groups(line) for line in lines[1::2]]
    classes = [near for near in NEIGHBOURS if all(one & near for one in finals)]
    groups = sorted(group for near in classes for group in near & finals[0])
    return min(groups, key=lambda group: group not in LEVEL_GROUPS)


def rule_places(
    lines: Sequence[str], tones: Sequence[Sequence[int]], level_group: str | None
) -> list[tuple[Break, bool]]:
    """Every place where a rule applies to a poem in form, and whether it is kept there."""
    length = len(lines[0])
    beats = range(1, length - 1, 2)  # the 2nd, 4th and 6th characters
    places = []
    for number, bits in enumerate(tones):
        for earlier, later in pairwise(beats):
            holds = differ(bits[earlier], bits[later])
            places.append((Break(number, later, "alternation"), holds))
        level_tail = all(bit == LEVEL for bit in bits[-3:])
        places.append((Break(number, length - 3, "level_tail"), not level_tail))
        if bits[-1] & LEVEL and number % 2:
            alone = [bits[-5] == OBLIQUE, bits[-4] == LEVEL, *(b == OBLIQUE for b in bits[-3:-1])]
            places.append((Break(number, length - 5, "lone_level"), not all(alone)))
    for number, (above, below) in enumerate(pairwise(tones), 1):
        rule, agrees = ("opposition", differ) if number % 2 else ("adhesion", agree)
        for beat in beats:
            places.append((Break(number, beat, rule), agrees(above[beat], below[beat])))
    for number, line in enumerate(lines):
        on_rhyme = level_group in final_groups(line)
        oblique = bool(tones[number][-1] & OBLIQUE)
        if number == 0 and level_group:  # on the rhyme itself or on a neighbour (孤雁入群)
            near = [groups for groups in NEIGHBOURS if level_group in groups]
            on_rhyme |= any(final_groups(line) & groups for groups in near)
        holds = on_rhyme if number % 2 else oblique or (number == 0 and on_rhyme)
        places.append((Break(number, length - 1, "level_rhyme"), holds))
    return places


OPPOSITE = {LEVEL: OBLIQUE, OBLIQUE: LEVEL}
BOTH = LEVEL | OBLIQUE
ANY, KNOWN = frozenset({0, LEVEL, OBLIQUE, BOTH}), frozenset({LEVEL, OBLIQUE, BOTH})
CAN_BE_LEVEL, CAN_BE_OBLIQUE = frozenset({LEVEL, BOTH}), frozenset({OBLIQUE, BOTH})


def settled_tones(
    above: Sequence[int], begun: Sequence[int], opens: bool = False
) -> tuple[int, ...]:
    """The tones of a line as the rules of the 2nd, 4th and 6th characters have them.

    above: the same of the line before, of 5 or 7 characters. begun: the tone bits that this line
    begins with. opens: whether it opens a couplet. Of those three a character that can be both has
    the tone that the rules want there; one that is still to come has it too, or 0 where they want
    none. Where alternation and the line before want different tones, alternation has its way, so
    that the lines to come can keep both.
    """
    line = [*begun, *[0] * (len(above) - len(begun))]
    beats = range(1, len(above) - 1, 2)
    for beat in beats:
        if line[beat] not in OPPOSITE:
            before = OPPOSITE.get(line[beat - 2], 0) if beat > 1 else 0
            other = OPPOSITE.get(above[beat], 0)
            wanted = before or (OPPOSITE.get(other, 0) if opens else other)
            line[beat] = wanted or line[beat]
    for beat in beats[-2::-1]:
        if line[beat] not in OPPOSITE:
            line[beat] = OPPOSITE.get(line[beat + 2], line[beat])
    return tuple(line)


@cache
def allowed_tones(
    above: tuple[int, ...], begun: tuple[int, ...], opens: bool, level: bool
) -> tuple[frozenset[int], ...]:
    """For each place of the rest of a line, the tone bits with which a character keeps the rules.

    The arguments are those of `settled_tones`; level: whether the poem rhymes on a level tone. What
    is said of a later place holds if those before it have the tones that are wanted there.
    """
    line, done = settled_tones(above, begun, opens), len(begun)
    allowed = [ANY] * len(line)
    for beat in range(1, len(line) - 1, 2):
        allowed[beat] = frozenset({line[beat], BOTH}) if line[beat] in OPPOSITE else KNOWN
    a, b, _, d = line[-5:-1]
    if opens:
        allowed[-1] = CAN_BE_OBLIQUE
        if d == LEVEL and BOTH in begun[-4 + len(line) :][:1] and a != OBLIQUE:
            allowed[-3] = frozenset({LEVEL})  # or the line would count as one that is mended
    elif level:
        allowed[-1] = CAN_BE_LEVEL
        if d == LEVEL:  # no three level tones
            allowed[-3] = CAN_BE_OBLIQUE
        elif b == LEVEL and a in (OBLIQUE, 0):  # no lone one
            allowed[-3] = CAN_BE_LEVEL
    else:
        allowed[-1] = frozenset({OBLIQUE})
    return tuple(allowed[done:])


def counted_tones(lines: Sequence[str]) -> tuple[list[list[int]], tuple[int, ...]]:
    """For each line the tone bits that its characters count as, and the lines that are mended.

    Takes lines of any length.
    """
    tones = [line_tones(line) for line in lines]
    mended = []
    for number in range(0, len(tones), 2):
        line, below = tones[number], tones[number + 1 : number + 2]
        if len(line) < 5:
            continue
        a, b, c, d, e = line[-5:]
        if a & LEVEL and b & LEVEL and c & OBLIQUE and d == LEVEL and e & OBLIQUE:
            line[-2] = OBLIQUE
            mended.append(number)
        elif (
            b & OBLIQUE
            and d == OBLIQUE
            and e & OBLIQUE
            and below
            and len(below[0]) == len(line)
            and below[0][-3] & LEVEL
            and below[0][-4] & LEVEL
            and below[0][-2] & OBLIQUE
        ):
            line[-2] = LEVEL if b == OBLIQUE else BOTH  # or 調 must be read in one way
            mended.append(number)
    return tones, tuple(mended)


def line_tones(line: str) -> list[int]:
    """The tone bits of a line's characters, as the words have them that they stand in."""
    tones = [tone_bits(character) for character in line]
    for at in range(len(line) - 1):
        if line[at : at + 2] in WORDS:
            tones[at : at + 2] = map(book_bits, line[at : at + 2])
    return tones


@cache
def tone_bits(character: str) -> int:
    """LEVEL, OBLIQUE, both or, for a character that the book does not know, 0."""
    return USUAL.get(character) or book_bits(character)


def book_bits(character: str) -> int:
    """The same by the book alone."""
    return sum({LEVEL if r.tone == "平" else OBLIQUE for r in readings(character)})


def differ(a: int, b: int) -> bool:
    """Whether two characters can be read in opposite tones."""
    return a > 0 and b > 0 and a | b == LEVEL | OBLIQUE


def agree(a: int, b: int) -> bool:
    """Whether two characters can be read both level or both oblique."""
    return a & b > 0
