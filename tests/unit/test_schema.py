"""`verse.schema`: what others wrote, or changed by hand, is one line where it does not fit."""

import json
import os

import pytest
from pydantic import TypeAdapter

from verse.errors import UserError
from verse.files import parse_yaml
from verse.poems.contestants import contestants
from verse.schema import SCORES, iter_records, read_json

SCORE = {"tuned": {"poems": 300, "whole": 0.4}}
CONFLICT = '{\n<<<<<<< HEAD\n"a": {}\n=======\n"b": {}\n>>>>>>> other\n}'

JSON = {
    "git's conflict markers": (CONFLICT, "git's conflict markers"),
    "nothing": ("", "cut off"),
    "a list": ("[]", "valid dictionary"),
    "a text": ('"0.5"', "valid dictionary"),
    "null": ("null", "valid dictionary"),
    "a number in place of a group": ('{"tuned": 5}', "tuned: it should be a valid dictionary"),
    "NaN": ('{"tuned": {"whole": NaN}}', "tuned.whole: it should be a finite number"),
    "infinity": ('{"tuned": {"whole": -Infinity}}', "finite number"),
    "a text for a number": ('{"tuned": {"whole": "0.5"}}', "tuned.whole: it should be a valid num"),
    "a truth for a number": ('{"tuned": {"whole": true}}', "valid number"),
    "cut off": (json.dumps(SCORE)[:-2], "cut off"),
    "a page": ("<html>", "not JSON"),
    "brackets": ("[" * 100_000, "nested too deeply"),
    "digits": ('{"tuned": {"whole": ' + "9" * 5_000 + "}}", "too long"),
    "UTF-16": (json.dumps(SCORE).encode("utf-16"), "not UTF-8"),
    "packed": (b"\x1f\x8b\x08", "compressed (gzip)"),
    "a key without an end": (json.dumps({"k" * 9999: 1}), "k" * 60 + ": it should"),
}


@pytest.mark.parametrize("what", JSON)
def test_a_file_of_scores(tmp_path, what):
    content, said = JSON[what]
    file = tmp_path / "score.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_json(file, SCORES)
    line = str(caught.value)
    assert line.startswith(str(file)) and said in line and "\n" not in line
    assert line.count(": ") >= 2 and len(line) < 400


def test_what_fits_is_taken_as_it_is(tmp_path):
    (tmp_path / "score.json").write_text(json.dumps(SCORE))
    assert read_json(tmp_path / "score.json", SCORES) == SCORE


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda f: f.symlink_to("/dev/zero")])
def test_what_is_no_file(tmp_path, make):
    make(tmp_path / "score.json")
    with pytest.raises(UserError, match=r"score\.json"):
        read_json(tmp_path / "score.json", SCORES)


@pytest.mark.parametrize("row", ["[]", "5", "null", '{"a": 1}', '{"a": "x", "b": "y"'])
def test_a_row(tmp_path, row):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"a": "x"}}\n{row}\n')
    with pytest.raises(UserError, match=r"rows.jsonl, (row|line) 2"):
        list(iter_records(file, TypeAdapter(dict[str, str])))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a: [",
            "\t- 1",
            "a: !!int x",
            "a: 2024-99-99",
            "[" * 9999,
            "a: *b",
            "!!python/name:os.x",
        ),
        *("%", "a: 1\na\n", "? {a: 1}\n: 2\n", "---\na: 1\n---\nb: 2\n", "{a: 1}: 2"),
    ],
)
def test_yaml(text):
    with pytest.raises(UserError, match=r"card\.md(, line \d+)?: (not YAML|holds a value)"):
        parse_yaml(text, "card.md")


@pytest.mark.parametrize(
    "asked",
    [
        *('{"name": "kimi"}', "[5]", '[{"model": "m"}]', '[{"name": 5}]', '[{"name": "../../up"}]'),
        *('[{"name": ""}]', "[null]", "5", "[[]]", "", '[{"name": "a/b"}]'),
    ],
)
def test_who_was_asked(tmp_path, asked):
    (tmp_path / "contestants.json").write_text(asked)
    with pytest.raises(UserError, match=r"contestants\.json.*run dvc repro again"):
        contestants(str(tmp_path / "contestants.json"))
