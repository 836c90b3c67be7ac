"""The line grammar of Tang poems: forms, characters, pauses and stops.

A line is text before a mark. `split_lines` takes any answer, and passes over what is between marks
that stand side by side; `parse_lines` takes a data set's poem, where that is an empty line and so a
fault. `write_lines` is the one way in which this library writes verse.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

FORMS = {(4, 5): "五絕", (4, 7): "七絕", (8, 5): "五律", (8, 7): "七律"}  # (lines, characters)

# By number, since U+F900, the first compatibility ideograph, looks just like U+8C48.
IDEOGRAPHS = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")

PAUSES = "，；：？！"  # end the first line of a couplet
STOPS = "。；？！"  # end the second one
CLOSES = "。？！"  # end the poem
POEM_PUNCTUATION = "，。？！；：、"

# Besides the poem's own marks, what stands for them in an answer out of form.
BREAKS = POEM_PUNCTUATION + ",.?!;:\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029\u3000"
LINE = re.compile(f"([^{BREAKS}]+)([{BREAKS}]*)")


def split_lines(text: str) -> list[tuple[str, str]]:
    """The lines of a text, each with the marks that follow it.

    Takes any text. A line ends at poem punctuation, its half-width likeness, a line break, a
    tab or an ideographic space, and never is empty.

    >>> split_lines("白日依山盡，黃河入海流。")
    [('白日依山盡', '，'), ('黃河入海流', '。')]
    """
    pieces = ((line.strip(), marks) for line, marks in LINE.findall(text))
    return [(line, marks) for line, marks in pieces if line]


def lines_in(texts: Iterable[str]) -> set[str]:
    """All lines that stand in any of the texts."""
    return {line for text in texts for line, _ in split_lines(text)}


MARK = re.compile(r"\s*([，。、；：？！,.､｡．;:?!])\s*")
FULL_WIDTH = {"？": "？", "！": "！", "?": "？", "!": "！"}


def parse_lines(text: str) -> list[tuple[str, str]]:
    """Lines and the marks after them; "。" where the last line has none.

    A compatibility ideograph becomes the unified one (Unicode NFC), white space around lines goes.

    >>> parse_lines(" 夫子何爲者?栖栖一代中")
    [('夫子何爲者', '?'), ('栖栖一代中', '。')]
    """
    pieces = MARK.split(unicodedata.normalize("NFC", text).strip())
    pieces += ["。"] if pieces[-1] else []
    return list(zip(pieces[::2], pieces[1::2], strict=False))


def write_lines(lines: Sequence[tuple[str, str]]) -> str:
    """Lines with their marks made uniform: ， after the first of a couplet and 。 after the second.

    ？ and ！ stay.

    >>> write_lines([('夫子何爲者', '?'), ('栖栖一代中', '.')])
    '夫子何爲者？栖栖一代中。'
    """
    text = ""
    for place, (line, mark) in enumerate(lines):
        text += line + FULL_WIDTH.get(mark, "，。"[place % 2])
    return text
