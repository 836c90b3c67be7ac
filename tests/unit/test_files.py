"""Files are written whole or not at all."""

import bz2
import errno
import gzip
import io
import lzma
import os
import re
import signal
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from verse import files
from verse.errors import UserError
from verse.files import (
    iter_lines,
    read_jsonl,
    read_text,
    replacing,
    write_json,
    write_jsonl,
    write_text,
)

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(folder, **texts):
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)


def test_a_file_takes_the_place_of_a_file(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "一\n")
    write_text(tmp_path / "new" / "a.txt", "二\r\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "二\r\n".encode()
    assert names(tmp_path / "new") == ["a.txt"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    fill(tmp_path / "raw", a="old", stray="old")
    with replacing(tmp_path / "raw") as partial:
        fill(partial, a="new")
        assert (tmp_path / "raw" / "a").read_text() == "old"
    assert names(tmp_path) == ["raw"] and names(tmp_path / "raw") == ["a"]
    assert (tmp_path / "raw" / "a").read_text() == "new"


def test_kinds_change_places(tmp_path):
    write_text(tmp_path / "x", "a file")
    with replacing(tmp_path / "x") as partial:
        fill(partial, a="a folder")
    write_text(tmp_path / "x", "a file")
    assert (tmp_path / "x").read_text() == "a file"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    write_text(tmp_path / "link", "no link")
    assert names(tmp_path) == ["elsewhere", "link", "x"] and names(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    fill(tmp_path / "raw", a="old")

    def fail():
        with replacing(tmp_path / "raw") as partial:
            fill(partial, a="new")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["raw"] and (tmp_path / "raw" / "a").read_text() == "old"


def test_a_rename_that_fails_loses_nothing(tmp_path, monkeypatch):
    fill(tmp_path / "raw", a="old")
    replace = os.replace

    def refuse(source, target):
        if source.name == ".raw.partial":
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError) as error, replacing(tmp_path / "raw") as partial:
        fill(partial, a="new")
    assert error.value.filename == str(tmp_path / "raw")
    kept = [path.read_text() for path in tmp_path.rglob("a")]
    assert "old" in kept


def test_a_full_disk_names_the_file(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError) as error, replacing(tmp_path / "a.txt") as partial:
        partial.symlink_to("/dev/full")
        partial.write_text("a")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "a.txt"))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (OSError(errno.EIO, "Input/output error"), errno.EIO),
        (RuntimeError("I/O error: File too large (os error 27)"), errno.EFBIG),  # safetensors' own
        (RuntimeError("another"), None),
        (OSError(errno.ENOENT, "No such file or directory", "elsewhere"), None),
    ],
)
def test_an_error_of_the_system_names_the_file(tmp_path, raised, number):
    with pytest.raises(type(raised) if number is None else OSError) as error:  # noqa: SIM117
        with replacing(tmp_path / "a.txt"):
            raise raised
    if number is None:
        assert error.value is raised
    else:
        assert (error.value.errno, error.value.filename) == (number, str(tmp_path / "a.txt"))


KILLED = """
import os, signal, sys
from pathlib import Path
from verse import files

moment, step = int(sys.argv[1]), 0

def counted(function):
    def wrapper(*args, **kwargs):
        global step
        step += 1
        if step == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper

for name in ("replace", "fsync"):
    setattr(files.os, name, counted(getattr(os, name)))
files.remove = counted(files.remove)
with files.replacing("raw") as partial:
    partial.mkdir()
    for name in "abc":
        counted((partial / name).write_text)("new")
"""


def test_killed_at_any_step(tmp_path):
    """At `raw` stands the old folder or the new, whole, or for a moment nothing; never a mix."""
    states, moment = [], 0
    while not states or states[-1][0] != 0:
        moment += 1
        files.remove(tmp_path / "raw")
        fill(tmp_path / "raw", a="old", b="old", c="old")
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(moment)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode in (0, -signal.SIGKILL)
        texts = tuple(path.read_text() for path in sorted((tmp_path / "raw").glob("*")))
        states.append((done.returncode, texts))
    old, new = ("old",) * 3, ("new",) * 3
    assert {texts for _, texts in states} <= {old, new, ()}
    assert sum(texts == () for _, texts in states) <= 1
    assert states[0][1] == old and states[-1] == (0, new) and len(states) > 10
    assert names(tmp_path) == ["raw"], "what killed attempts left is gone"


def test_json_is_chinese_and_ends_on_a_line_feed(tmp_path):
    write_json(tmp_path / "a.json", {"詩": [1]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "詩": [\n    1\n  ]\n}\n'
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_rows_come_back(tmp_path, rows):
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b"9" * 5_000, "line 1: not JSON"),
    ],
)
def test_broken_rows_are_named(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_jsonl(tmp_path / "a.jsonl")


def test_rows_that_fail_half_way_leave_what_was_there(tmp_path):
    def rows():
        yield {"a": 1}
        raise KeyboardInterrupt

    write_jsonl(tmp_path / "a.jsonl", [{"a": 0}])
    with pytest.raises(KeyboardInterrupt):
        write_jsonl(tmp_path / "a.jsonl", rows())
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 0}] and names(tmp_path) == ["a.jsonl"]


LINES = st.text().map(lambda text: text.encode()) | st.binary(max_size=8)


@given(st.lists(LINES, max_size=5))
@example([b"\xef\xbb\xbf", b"\x80"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_lines_are_those_of_the_whole_text(tmp_path, parts):
    """Or one error: where either way of reading finds one, so does the other."""
    (tmp_path / "a").write_bytes(b"\n".join(parts))

    def told(read):
        try:
            return read(tmp_path / "a")
        except UserError as error:
            return str(error)

    assert told(lambda path: "".join(iter_lines(path))) == told(read_text)


def test_rows_are_read_from_a_file_larger_than_the_memory_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 13)
    write_jsonl(tmp_path / "a.jsonl", [{"a": "山"}] * 3)
    with pytest.raises(UserError, match="larger than 13 bytes"):
        read_text(tmp_path / "a.jsonl")
    assert len(read_jsonl(tmp_path / "a.jsonl")) == 3
    write_jsonl(tmp_path / "a.jsonl", [{"a": "山水"}])
    with pytest.raises(UserError, match="a line larger than 13 bytes"):
        read_jsonl(tmp_path / "a.jsonl")


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_text(tmp_path / "none")
    with pytest.raises(UserError, match="is a folder"):
        read_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for special in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(UserError, match="a pipe or a device"):
            read_text(special)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="a link to nothing"):
        read_text(tmp_path / "link")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(files.LARGEST + 1)
    with pytest.raises(UserError, match="larger than 268,435,456 bytes"):
        read_text(tmp_path / "sparse")
    (tmp_path / "packed").write_bytes(gzip.compress(b"[]"))
    with pytest.raises(UserError, match=r"compressed \(gzip\): unpack"):
        read_text(tmp_path / "packed")
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfa")
    assert read_text(tmp_path / "bom") == "a"


def archive(*names):
    """A zip file, as office programs write their documents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "<xml/>")
    return buffer.getvalue()


def database():
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE poems (input TEXT)")
        return connection.serialize()


FORMATS = {
    "an Excel file": archive("[Content_Types].xml", "_rels/.rels", "xl/workbook.xml"),
    "a Word file": archive("[Content_Types].xml", "_rels/.rels", "word/document.xml"),
    "an OpenDocument file": archive("mimetype", "content.xml"),
    "compressed (zip): unpack": archive("poems.json"),
    "compressed (gzip): unpack": gzip.compress(b"[]"),
    "compressed (bzip2): unpack": bz2.compress(b"[]"),
    "compressed (xz): unpack": lzma.compress(b"[]"),
    "an SQLite database": database(),
    "a Parquet file": b"PAR1\x15\x04\x15\x1c",
    "an Arrow file": b"ARROW1\x00\x00",
    "an old Excel or Word file": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "a PDF": b"%PDF-1.7\n",
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 5\n",
}


@pytest.mark.parametrize("what", FORMATS)
def test_what_is_no_text_is_called_what_it_is(tmp_path, what):
    (tmp_path / "poems").write_bytes(FORMATS[what])
    for read in (read_text, read_jsonl):
        with pytest.raises(UserError, match=re.escape(what)):
            read(tmp_path / "poems")
