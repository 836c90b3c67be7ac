"""What of a chat model's answer counts as the poem.

A chat model talks around a poem. The rule takes away what is not verse, and nothing because it is
bad verse: within the poem no line is dropped, and none is chosen over another. In this order:

- thought: all up to the last </think>, and all from a <think> on that nothing closes;
- markup: Markdown's marks; a line's number or bullet; quotation marks at either end of a line;
- around: what stands before and after the poem, which is the first run of verse. A line of verse
  holds Chinese characters and punctuation alone, no more than LONGEST characters between two marks,
  and ends on no colon. The first one, and one after an empty line, has a part as long as the
  couplet's lines (unless the whole answer has none). A title of that length that has no mark,
  where all else ends on marks, is no part of the poem. A label that ends on a colon goes from the
  poem's first line, and ends the poem before any other;
- couplet: the given couplet, where the poem begins with it;
- simplified: characters, where the poem has simplified ones and no traditional ones: OpenCC
  converts it;
- layout: line breaks and blanks.

What is left may be empty, too short or of unequal lines: it is judged as it is, and its punctuation
stays as the model wrote it.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from verse.poems.lines import IDEOGRAPHS, LOOSE_MARKS, split_lines

LONGEST = 9
"""Characters between two marks beyond which a line is prose: verse has 5 or 7, a slip some more."""

MARKDOWN = re.compile(r"[*_`#>~]|^[^\S\n]*(?:\d+[.)、]|[-•])", re.MULTILINE)
LABEL = re.compile(rf"([^{LOOSE_MARKS}\s]+)[：:]")
QUOTES = "「」『』“”‘’\"' \t\u3000"


@dataclass(frozen=True)
class Cleaned:
    poem: str
    trimmed: tuple[str, ...]
    """What was taken away, in the words of the rule, in its order."""


def clean(couplet: str, text: str) -> Cleaned:
    """The poem in a chat model's answer to a couplet, and what was trimmed to get there."""
    given = [line for line, _ in split_lines(couplet)]
    length = len(given[0]) if given else 0
    steps: dict[str, Callable[[str], str]] = {
        "thought": without_thought,
        "markup": without_markup,
        "around": lambda text: first_run(text, length) or first_run(text, None),
        "couplet": lambda text: without_couplet(text, given),
        "simplified": traditional,
    }
    poem, trimmed = unicodedata.normalize("NFC", text), []
    for kind, step in steps.items():
        after = step(poem)
        if joined(after) != joined(poem):
            trimmed.append(kind)
        poem = after
    if joined(poem) != poem.strip():
        trimmed.append("layout")
    return Cleaned(joined(poem), tuple(trimmed))


def joined(text: str) -> str:
    """The text without line breaks and blanks."""
    return "".join(text.split())


def without_thought(text: str) -> str:
    return text.rpartition("</think>")[2].partition("<think>")[0]


def without_markup(text: str) -> str:
    return "\n".join(line.strip(QUOTES) for line in MARKDOWN.sub("", text).splitlines())


def first_run(text: str, length: int | None) -> str:
    """The first run of verse, one of its lines a line; empty if there is none.

    length: what a part of the first line, and of one after an empty line, must have; None for any.
    """
    run: list[str] = []
    apart = True  # from a run that this line could go on
    for line in map(str.strip, text.splitlines()):
        label = LABEL.match(line)
        if label and len(label[1]) != length:  # one as long may be a line of the poem
            if run:
                break
            line = line[label.end() :].strip(QUOTES)
        if not line:
            apart = True
        elif is_verse(line) and not (apart and length and length not in parts(line)):
            run.append(line)
            apart = False
        elif run:
            break
    if len(run) > 1 and not marked(run[0]) and all(map(marked, run[1:])) and len(parts(run[1])) > 1:
        del run[0]
    return "\n".join(run)


def is_verse(line: str) -> bool:
    """Whether a line holds nothing but verse, whatever its length."""
    text = re.sub(rf"[{LOOSE_MARKS}\s]", "", line)
    characters = bool(IDEOGRAPHS.fullmatch(text))
    return characters and max(parts(line)) <= LONGEST and not line.endswith(("：", ":"))


def parts(line: str) -> list[int]:
    """The numbers of characters between the marks of a line."""
    return [len(joined(part)) for part, _ in split_lines(line)]


def marked(line: str) -> bool:
    return line[-1] in LOOSE_MARKS


def without_couplet(text: str, given: list[str]) -> str:
    lines = split_lines(text)
    first = [line for line, _ in lines[: len(given)]]
    if given and given in (first, [traditional(line) for line in first]):
        return "".join(line + marks for line, marks in lines[len(given) :])
    return text


def traditional(text: str) -> str:
    """The text in traditional characters, if it has simplified ones and no traditional ones."""
    to_traditional, to_simplified = converters()
    return to_traditional(text) if to_simplified(text) == text else text


@cache
def converters() -> tuple[Callable[[str], str], Callable[[str], str]]:
    import opencc

    return opencc.OpenCC("s2t").convert, opencc.OpenCC("t2s").convert
