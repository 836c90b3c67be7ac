"""The line grammar of Tang poems: forms, characters, pauses and stops."""

import re
from collections.abc import Iterable

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
