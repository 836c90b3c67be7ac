"""A poem as one value: a couplet, which is given, and its rest, which a poet or a model wrote.

Rows of JSON Lines become poems here, and nowhere else; `split_lines` says how any text falls into
lines.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from verse.errors import UserError

POEM_PUNCTUATION = "，。？！；：、"
# Besides the poem's own marks, what stands for them in a text out of form.
LOOSE_MARKS = POEM_PUNCTUATION + ",.?!;:"
LINE_ENDS = LOOSE_MARKS + "\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029\u3000"
LINE = re.compile(f"([^{LINE_ENDS}]+)([{LINE_ENDS}]*)")

SURROGATE = re.compile("[\ud800-\udfff]")  # half a pair, which is no character

POEM = {"instruction": "instruction", "input": "couplet", "output": "rest"}
ANSWER = {"input": "couplet", "answer": "rest"}
CHAT_ANSWER = ANSWER | {"raw": "raw", "unanswered": "unanswered"}
"""Keys of a row -> fields of its poem: of the data, of a model's answers, of a chat model's."""


@dataclass(frozen=True, slots=True)
class Poem:
    couplet: str
    rest: str = ""
    instruction: str = ""
    """What a model is told to do with the couplet."""
    raw: str | None = None
    """All that a chat model wrote, where the rest is only what counts of it."""
    unanswered: str = ""
    """Why a chat model gave no answer, by the name of a metric, where it gave none."""

    @property
    def text(self) -> str:
        return self.couplet + self.rest

    @property
    def marked_lines(self) -> tuple[tuple[str, str], ...]:
        """All lines, each with the marks behind it, as `split_lines` has them."""
        return (*split_lines(self.couplet), *split_lines(self.rest))

    @property
    def lines(self) -> tuple[str, ...]:
        """All lines, without punctuation."""
        return self.couplet_lines + self.rest_lines

    @property
    def couplet_lines(self) -> tuple[str, ...]:
        return tuple([line for line, _ in split_lines(self.couplet)])

    @property
    def rest_lines(self) -> tuple[str, ...]:
        return tuple([line for line, _ in split_lines(self.rest)])

    def row(self) -> dict[str, str]:
        """As data/ holds it: {"instruction", "input", "output"}."""
        return {key: getattr(self, field) for key, field in POEM.items()}


@lru_cache(maxsize=1024)  # a text's lines are asked for several times in a row
def split_lines(text: str) -> tuple[tuple[str, str], ...]:
    """The lines of any text, such as an answer, each with the marks that follow it.

    A line ends at poem punctuation, its half-width likeness, a line break, a tab or an
    ideographic space, and never is empty. Nothing is normalised.

    >>> split_lines("白日依山盡，黃河入海流。")
    (('白日依山盡', '，'), ('黃河入海流', '。'))
    """
    pieces = [(line.strip(), marks) for line, marks in LINE.findall(text)]
    return tuple([(line, marks) for line, marks in pieces if line])


def poem_of(row: Any, keys: Mapping[str, str]) -> Poem | None:
    """The poem in a row of a file; None if it has no text under one of the keys.

    Half a surrogate pair is no text in the data; a chat model may write it, so that in answers it
    becomes �.
    """
    if not isinstance(row, dict):
        return None
    texts: dict[str, Any] = {key: row.get(key) for key in keys}
    if "unanswered" in texts:
        texts["unanswered"] = texts["unanswered"] or ""
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    if "answer" in keys:
        texts = {key: SURROGATE.sub("\ufffd", text) for key, text in texts.items()}
    elif any(map(SURROGATE.search, texts.values())):
        return None
    if "instruction" in texts:  # of most poems the same: kept once
        texts["instruction"] = sys.intern(texts["instruction"])
    return Poem(**{keys[key]: text for key, text in texts.items()})


def iter_poems(path: str | Path, keys: Mapping[str, str] = POEM) -> Iterator[Poem]:
    """The poems of a JSON Lines file of ours, one at a time.

    keys: POEM, ANSWER or CHAT_ANSWER. Raises UserError naming the row where one was changed by
    hand.
    """
    from verse.files import REPRO, iter_jsonl  # of packages that verse itself does without

    for number, row in enumerate(iter_jsonl(path), 1):
        poem = poem_of(row, keys)
        if poem is None:
            raise UserError(f"{path}, row {number}: no text under {' and '.join(keys)}: {REPRO}")
        yield poem


def read_poems(path: str | Path, keys: Mapping[str, str] = POEM) -> list[Poem]:
    """All poems of a file: see `iter_poems`. Raises UserError if there is none."""
    poems = list(iter_poems(path, keys))
    if not poems:
        raise UserError(f"{path}: holds no poems: run dvc repro again")
    return poems
