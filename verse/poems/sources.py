"""Where the poems come from: embedded, the homework, a file, a folder or a URL.

`fetch` turns any of them into training and test poems.
"""

import json
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verse.download import MIB, download, public
from verse.errors import UserError
from verse.files import (
    LARGEST,
    check_tree,
    digest,
    missing_hint,
    parse_value,
    read_text,
)
from verse.params import Data
from verse.poem import POEM, POEM_PUNCTUATION, SURROGATE, Poem
from verse.poems.lines import write_lines

INSTRUCTION = "以下是一首唐詩的第一句話，請用你的知識判斷並完成整首詩。"

# The homework's files and their sha256: a mirror serves the same bytes or is refused.
TRAINING, TESTING, REFERENCES = (
    "Tang_training_data.json",
    "Tang_testing_data.json",
    "Tang_testing_gt.txt",
)
HW5_SHA256 = {
    TRAINING: "b464f5acf5a0443f1cebb60604b4cc28dd4deb1d6e7edc1583283c1d9fc2783c",
    TESTING: "965444e9f846112546f42540e95428bcf38bffb89dc6de89ff2444a3dae8526b",
    REFERENCES: "bd4b3a5239ef19a00d7f0b729a05b0f2d5c6dbb41e6a64e3c5d5dd11515faf27",
}
HW5_LIMIT = 16 * MIB
WANTED = "a JSON list or one record a line is wanted"


@dataclass(frozen=True)
class Poems:
    """What a source holds; `test` may be empty.

    `origin` is the local file or folder they were read from, or, for a download, its public
    address and the sha256 of each file.
    """

    train: list[Poem]
    test: list[Poem]
    origin: Path | dict[str, Any]


def fetch(data: Data, *, embedded: str | Path, cache: str | Path) -> Poems:
    """Read the poems of `data.source`: "embedded", "hw5", a path or a URL.

    data.source: "embedded" is the folder `embedded`; "hw5" is the homework, downloaded from
        below `data.hw5_url` and checked against its pinned hashes. A path (relative to the
        working directory; ~ is the home folder) is a JSON list, a JSON Lines file, or a folder
        with train.json(l) and test.json(l) or with the homework's three files. A URL is one
        file, whose hash must be `data.sha256` if that is set. One file holds training poems
        alone. A record without an instruction gets the homework's.
    cache: folder that keeps downloads.

    Raises UserError naming the file, and the line or record and key, that is at fault.
    """
    source = data.source
    if data.sha256 and "://" not in source:
        raise UserError(
            "data.sha256: of a file behind a URL, which data.source is not: set it to null"
        )
    if source == "hw5":
        urls = {name: f"{data.hw5_url.rstrip('/')}/{name}" for name in HW5_SHA256}
        paths = {
            name: download(url, cache, sha256=HW5_SHA256[name], limit=HW5_LIMIT)
            for name, url in urls.items()
        }
        train, test = read_homework(paths)
        return Poems(train, test, {"source": "hw5", "sha256": HW5_SHA256})

    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        path, shown = download(source, cache, sha256=data.sha256, limit=LARGEST), public(source)
        try:
            return Poems(read_poems(path, shown), [], {"source": shown, "sha256": digest(path)})
        except UserError:
            path.unlink(missing_ok=True)  # what is no use is not kept
            raise

    path = Path(embedded) if source == "embedded" else local(source)
    check_tree(path)
    train, test = read_folder(path) if path.is_dir() else (read_poems(path), [])
    return Poems(train, test, path)


def local(source: str) -> Path:
    """The path that a source names. Raises UserError if no file or folder is there."""
    try:
        path = Path(source).expanduser()
        if source.strip() and (path.is_dir() or path.is_file()):
            return path
        there = source.strip() and path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user's home, a NUL
        there = False
    if there:
        raise UserError(f"data.source {source!r}: neither a file nor a folder: give one of them")
    hidden = missing_hint(source) if source.strip() else ""
    raise UserError(
        f"data.source {source!r}: no such file or folder"
        + (hidden or ": give embedded, hw5, a path from the repository's root or a URL")
    )


def read_folder(folder: Path) -> tuple[list[Poem], list[Poem]]:
    """Training and test poems of a folder: train.json(l) and test.json(l), or the homework's."""
    train, test = one_of(folder, "train"), one_of(folder, "test")
    if train:
        return read_poems(train), read_poems(test, may_be_empty=True) if test else []
    missing = [name for name in HW5_SHA256 if not (folder / name).is_file()]
    if not missing:
        return read_homework({name: folder / name for name in HW5_SHA256})
    if len(missing) < len(HW5_SHA256):
        raise UserError(f"{folder}: the homework's {' and '.join(missing)} is missing: add it")
    raise UserError(
        f"{folder}: holds no poems: put train.json or train.jsonl there, "
        "or the homework's three files"
    )


def one_of(folder: Path, stem: str) -> Path | None:
    """The .json or .jsonl file of that name. Raises UserError if there are both."""
    found = [path for suffix in ("json", "jsonl") if (path := folder / f"{stem}.{suffix}").exists()]
    if len(found) == 2:
        raise UserError(f"{folder}: holds both {stem}.json and {stem}.jsonl: remove one")
    return found[0] if found else None


def read_poems(path: Path, shown: str = "", *, may_be_empty: bool = False) -> list[Poem]:
    """The poems of a JSON list or JSON Lines file; errors call the file `shown`."""
    shown = shown or str(path)
    try:
        poems: list[Any] = parse_json(read_text(path), shown, may_be_empty)
    except UserError as error:  # under the name that the user knows, not the cache's
        raise UserError(str(error).replace(str(path), shown, 1)) from None
    for number, record in enumerate(poems, 1):  # each in the other's place, which is freed
        poems[number - 1] = checked(record, shown, number)
    if not poems and not may_be_empty:
        raise UserError(f"{shown}: holds no poems: give a file with at least one record")
    return poems


def parse_json(text: str, shown: str, may_be_empty: bool = False) -> list[Any]:
    """The values of a JSON list or of JSON Lines.

    Raises UserError naming the line that is not JSON.
    """
    start = text.lstrip()[:1]
    if not start:
        if may_be_empty:  # what JSON Lines with no record looks like
            return []
        raise UserError(f"{shown}: the file is empty: give a JSON list or JSON Lines of poems")
    if re.match(r"\s*<[!?a-zA-Z]", text):
        raise UserError(f"{shown}: a web page, not JSON: give the data file itself")
    if start == "[":
        records: list[Any] = parse_value(text, shown, WANTED)
        return records
    # Only a line feed ends a line: a poem may hold U+2028 or U+0085.
    lines = text.split("\n")
    with suppress(ValueError, RecursionError):
        _, end = json.JSONDecoder().raw_decode(text.lstrip())
        if "\n" in text.lstrip()[:end]:
            raise UserError(f"{shown}: a record spread over lines: {WANTED} (jq -c . writes it)")
    return [parse_value(one, shown, WANTED, n) for n, one in enumerate(lines, 1) if one.strip()]


def checked(
    record: object, shown: str, number: int, keys: tuple[str, ...] = ("input", "output")
) -> Poem:
    """The poem in a file's record, of its instruction, if it has one, and these keys.

    Raises UserError naming the record and the key that is missing or no string.
    """
    where = f"{shown}, record {number}"
    if not isinstance(record, dict):
        raise UserError(f"{where}: {json_type(record)}, not an object with input and output")
    row = {}
    for key in ("instruction", *keys):
        if key == "instruction" and key not in record:
            row[key] = INSTRUCTION
        elif key not in record:
            raise UserError(f"{where}: no {key!r}: each record needs {' and '.join(keys)}")
        elif not isinstance(record[key], str):
            raise UserError(f"{where}: {key!r} is {json_type(record[key])}, not a string")
        elif SURROGATE.search(record[key]):
            raise UserError(f"{where}: {key!r} holds half a surrogate pair: fix the escape")
        else:
            row[key] = record[key]
    row["instruction"] = sys.intern(row["instruction"])  # of most poems the same: kept once
    return Poem(**{POEM[key]: text for key, text in row.items()})


def json_type(value: object) -> str:
    """What JSON calls a value."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "a number")


def read_homework(paths: dict[str, Path]) -> tuple[list[Poem], list[Poem]]:
    """Training and test poems of the homework's three files.

    Its test file holds prompts alone; the rest of each poem stands in the references file.
    """
    testing, references = str(paths[TESTING]), str(paths[REFERENCES])
    prompts = [
        checked(record, testing, number, keys=("input",))
        for number, record in enumerate(parse_json(read_text(testing), testing), 1)
    ]
    lines = read_text(references).rstrip().split("\n")
    if len(lines) != len(prompts):
        raise UserError(
            f"{references}: {len(lines)} lines for the {len(prompts)} prompts of {TESTING}: "
            "each prompt needs one line, in the same order"
        )
    test = [
        replace(prompt, rest=punctuated(line, f"{references}, line {number}"))
        for number, (prompt, line) in enumerate(zip(prompts, lines, strict=True), 1)
    ]
    return read_poems(paths[TRAINING]), test


def punctuated(reference: str, where: str) -> str:
    """Verse lines between tabs as the training poems write them; errors say `where`.

    >>> punctuated("春風舉國裁宮錦\\t半作障泥半作帆", "line 9")
    '春風舉國裁宮錦，半作障泥半作帆。'
    """
    lines = [line.strip() for line in reference.strip().split("\t")]
    bare = re.compile(rf"[^\s{POEM_PUNCTUATION}]+")
    if len(lines) % 2 or not all(map(bare.fullmatch, lines)):
        raise UserError(
            f"{where}: an even number of unpunctuated verse lines between tabs is wanted"
        )
    return write_lines((line, "") for line in lines)
