"""Read the npm package `chinese-poetry`: poems as plain text, and their lines for comparison."""

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import opencc

LINE_ENDS = "，。？！；"
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WHOLE_POEM = re.compile(f"([{HAN}]+[{LINE_ENDS}])+")

# Every place of the package that holds Tang verse, whatever its schema.
TANG = re.compile(
    r"quantangshi/(poet\.tang\..*|唐诗.*)\.json|yudingquantangshi/|tangshisanbaishou|shuimotangshi"
)
SONG = re.compile(r"dist/quantangshi/poet\.song\.\d+\.json")
TANG_EDITION = re.compile(r"dist/quantangshi/poet\.tang\.\d+\.json")

_simplify = opencc.OpenCC("t2s")
_from_japanese = opencc.OpenCC("jp2t")
_from_simplified = opencc.OpenCC("s2t")


def files(package: Path, pattern: re.Pattern[str]) -> Iterator[Any]:
    """The parsed JSON files of the package whose path matches, ordered by path and number."""
    with tarfile.open(package) as archive:
        members = [m for m in archive.getmembers() if m.isfile() and pattern.search(m.name)]
        for member in sorted(members, key=lambda m: [s.zfill(9) for s in m.name.split(".")]):
            if member.name.endswith(".json"):
                file = archive.extractfile(member)
                assert file
                yield json.load(file)


def poems(package: Path, pattern: re.Pattern) -> list[dict]:
    """`{"author", "text"}` of each poem in files that are a list of poems."""
    return [
        {"author": poem["author"], "text": "".join(poem["paragraphs"])}
        for file in files(package, pattern)
        for poem in file
    ]


def texts(value: object) -> Iterator[str]:
    """Every string anywhere in a parsed JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def whole(text: str) -> bool:
    """True for a poem without lacunae, notes or anything but characters and line ends."""
    return WHOLE_POEM.fullmatch(text) is not None


def han_runs(text: str) -> list[str]:
    """The lines of a text, taken for runs of Han characters."""
    return [line for line in re.split(f"[^{HAN}]+", text) if line]


def line_keys(text: str) -> set[str]:
    """Its lines, alike for every way of writing the same character.

    Lines under four characters are left out: they are refrains and shared by chance.
    """
    key = _simplify.convert(_from_japanese.convert(text))
    return {line for line in han_runs(key) if len(line) >= 4}


def modern_form(character: str) -> str:
    """The traditional form of a simplified or Japanese character, itself for any other."""
    form = _from_japanese.convert(character)
    return form if form != character else _from_simplified.convert(character)
