"""`verse.speed`: the clock times of the stages, in one file."""

import json
from pathlib import Path

import pytest

from verse import speed


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()
    return Path("metrics/speed.json")


def test_each_stage_has_its_numbers(file):
    speed.store("train", {"seconds": 2.0, "poems_per_second": 1 / 3})
    speed.store("generate", {"seconds": 1.0})
    speed.store("train", {"seconds": 4.0})
    assert json.loads(file.read_text()) == {"generate": {"seconds": 1.0}, "train": {"seconds": 4.0}}


def test_poems_a_second():
    numbers = speed.Stopwatch().numbers(10)
    assert numbers["poems_per_second"] == pytest.approx(10 / numbers["seconds"])


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_broken_file_is_written_anew(file, content):
    file.write_bytes(content)
    speed.store("score", {"seconds": 1.0})
    assert json.loads(file.read_text()) == {"score": {"seconds": 1.0}}
