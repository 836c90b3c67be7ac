"""Couplets that people type: read as the pipeline writes them, doubted in a line, looked up."""

import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import opencc

from verse.files import read_jsonl
from verse.paths import ASKED, TEST, TRAIN
from verse.poem import ANSWER, POEM, Poem, poem_of, split_lines
from verse.poems.contestants import CONTESTANTS, Contestant, contestants
from verse.poems.lines import IDEOGRAPHS, is_simplified, lines_in, parse_lines, write_lines
from verse.poems.sources import INSTRUCTION
from verse.scoring import report
from verse.scoring.scoring import score_answer

EXAMPLES = (
    "白日依山盡，黃河入海流。",
    "空山新雨後，天氣晚來秋。",
    "國破山河在，城春草木深。",
    "故人西辭黃鶴樓，煙花三月下揚州。",
    "春城無處不飛花，寒食東風御柳斜。",
)

TRADITIONAL = opencc.OpenCC("s2t")
BOTH = "荆却脚姹亘耻衮脉"
"""Simplified forms that the Complete Tang Poems has too, more often than the others."""


def written(text: str) -> str:
    """The couplet in a text as the pipeline writes it, or the text as it is if it holds none.

    >>> written("白日依山盡 黃河入海流")
    '白日依山盡，黃河入海流。'
    """
    found = split_lines(text.replace(" ", "\t"))
    lines = parse_lines("".join(line + (marks.strip()[:1] or ",") for line, marks in found))
    return write_lines(lines) if is_couplet([line for line, _ in lines]) else text.strip()


def is_couplet(lines: Sequence[str]) -> bool:
    return (
        len(lines) == 2
        and len(lines[0]) == len(lines[1])
        and len(lines[0]) in (5, 7)
        and bool(IDEOGRAPHS.fullmatch("".join(lines)))
    )


def doubts(couplet: str) -> list[tuple[str, str]]:
    """What speaks against a text as a couplet, each in Chinese and in English."""
    lines = Poem(couplet).lines
    found = []
    if not is_couplet(lines):
        lengths = "、".join(str(len(line)) for line in lines[:6]) or "0"
        found.append(
            (
                f"這不是一聯：要兩句，每句五字或七字；這裡各句字數是 {lengths}。",
                "This is no couplet: two lines of 5 or 7 Chinese characters are wanted, "
                f"here are {lengths.replace('、', ', ')}.",
            )
        )
    if other := traditional(couplet):
        found.append(
            (
                f"有簡體字；模型讀的是繁體：{other}",
                f"Simplified characters; what the model knows is traditional: {other}",
            )
        )
    return found


def traditional(text: str) -> str | None:
    """The text in traditional characters, if some of it is in simplified ones."""
    pairs = [*zip(text, TRADITIONAL.convert(text), strict=False)]
    changed = {a for a, b in pairs if a != b} - {*BOTH}
    if not any(map(is_simplified, changed)):
        return None
    return "".join(a if a in BOTH else b for a, b in pairs)


@dataclass(frozen=True)
class Library:
    """What this workspace knows about couplets: the test poems, and what contestants answered.

    Files that are not there yet, or that are not what the pipeline writes, count as empty.
    """

    own: frozenset[str] = frozenset()
    """Contestants that answer live, whose files are left alone."""
    folder: Path = field(default_factory=Path)

    @cached_property
    def test(self) -> Mapping[str, Poem]:
        """The test poems by their couplet."""
        return {poem.couplet: poem for poem in self.poems(TEST, POEM)}

    @cached_property
    def instruction(self) -> str:
        """What most test poems tell a model to do."""
        told = Counter(poem.instruction for poem in self.test.values())
        return max(told, key=told.__getitem__, default=INSTRUCTION)

    @cached_property
    def training_lines(self) -> set[str]:
        return lines_in(poem.text for poem in self.poems(TRAIN, POEM))

    @property
    def contestants(self) -> Mapping[str, Contestant]:
        asked = self.folder / ASKED
        return contestants(str(asked)) if asked.is_file() else CONTESTANTS

    @cached_property
    def others(self) -> Mapping[str, Mapping[str, str]]:
        """The answers of each contestant that answered in a file, by their couplet."""
        return {
            name: {poem.couplet: poem.rest for poem in self.poems(one.answers, ANSWER)}
            for name, one in self.contestants.items()
            if one.answers and name not in self.own
        }

    def poem(self, couplet: str) -> Poem:
        """What a prompt is written from: the test poem of that couplet, or the couplet with what
        most test poems tell a model to do."""
        return self.test.get(couplet, Poem(couplet, instruction=self.instruction))

    def set(self, answer: Poem) -> dict[str, Any]:
        """An answer as the report sets it: in lines with their marks, and what was found."""
        truth = self.test.get(answer.couplet, answer)
        return report.answer(score_answer(answer, truth, self.training_lines))

    def any_couplet(self) -> str:
        return random.choice([*self.test] or EXAMPLES)

    def poems(self, path: str, keys: Mapping[str, str]) -> list[Poem]:
        file = self.folder / path
        rows = read_jsonl(file) if file.is_file() else []
        found = [poem for row in rows if (poem := poem_of(row, keys))]
        if len(found) < len(rows):
            what = f"{len(rows) - len(found)} of {len(rows)} rows have no text under"
            print(f"{file}: {what} {' and '.join(keys)}: left out", file=sys.stderr)
        return found
