"""The line grammar of Tang poems: forms, characters, marks, and how a text falls into lines."""

import re
import unicodedata
from collections.abc import Collection, Iterable

from verse.poem import LOOSE_MARKS, split_lines

FURTHER_LINES = (2, 6)  # of a quatrain and of an eight-line poem, after the couplet
FORMS = {(4, 5): "五絕", (4, 7): "七絕", (8, 5): "五律", (8, 7): "七律"}  # (lines, characters)

# By number, since U+F900, the first compatibility ideograph, looks just like U+8C48.
IDEOGRAPHS = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")

PAUSES = "，；：？！"  # end the first line of a couplet
STOPS = "。；？！"  # end the second one
CLOSES = "。？！"  # end the poem
MARK = re.compile(rf"\s*([{LOOSE_MARKS}､｡．])\s*")

KEPT_MARKS = {"?": "？", "!": "！", "？": "？", "！": "！"}


def lines_in(texts: Iterable[str]) -> set[str]:
    """All lines that stand in any of the texts."""
    return {line for text in texts for line, _ in split_lines(text)}


def parse_lines(text: str) -> list[tuple[str, str]]:
    """The lines of a text that should be a poem, each with its one mark; 。 for a missing last.

    Stricter than `split_lines`: white space, a line break too, ends no line, and two marks in
    a row have an empty line between them. Unicode is normalised (NFC).

    >>> parse_lines(" 夫子何爲者?栖栖一代中")
    [('夫子何爲者', '?'), ('栖栖一代中', '。')]
    """
    pieces = MARK.split(unicodedata.normalize("NFC", text).strip())
    pieces += ["。"] if pieces[-1] else []
    return list(zip(pieces[::2], pieces[1::2], strict=False))


def write_lines(lines: Iterable[tuple[str, str]]) -> str:
    """Lines as a poem: ， after a couplet's first, 。 after its second, save that ？ and ！ stay.

    >>> write_lines([('夫子何爲者', '?'), ('栖栖一代中', '.')])
    '夫子何爲者？栖栖一代中。'
    """
    return "".join(
        line + KEPT_MARKS.get(mark, "，。"[place % 2]) for place, (line, mark) in enumerate(lines)
    )


def in_form(couplet: str, answer: str, further: Collection[int] = FURTHER_LINES) -> bool:
    """Whether further lines follow, each as long as the couplet's two, and nothing else.

    further: how many lines may follow. Lines are Chinese characters alone. A line that opens a
    couplet ends on one of PAUSES, one that closes it on one of STOPS, the poem's last on one of
    CLOSES. Nothing may stand before, between or after, be it a blank or a line break.
    """
    given, lines = split_lines(couplet), split_lines(answer)
    return (
        len(given) == 2
        and bool(lines)
        and len(lines) in further
        and len({len(line) for line, _ in (*given, *lines)}) == 1
        and all(IDEOGRAPHS.fullmatch(line) for line, _ in lines)
        and all(len(marks) == 1 for _, marks in lines)
        and all(marks in PAUSES for _, marks in lines[::2])
        and all(marks in STOPS for _, marks in lines[1::2])
        and lines[-1][1] in CLOSES
        and "".join(line + marks for line, marks in lines) == answer
    )


def outgrown(begun: str) -> bool:
    """Whether an answer that begins so is in no form of FURTHER_LINES however it goes on: it has a
    line break, or more lines."""
    return "\n" in begun or len(split_lines(begun)) > max(FURTHER_LINES)


def is_simplified(character: str) -> bool:
    """Whether the mainland's basic set has a character, and Taiwan's has not."""
    return bool(character.encode("gb2312", "ignore")) and not character.encode("big5", "ignore")
