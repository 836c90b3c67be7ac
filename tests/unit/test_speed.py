"""`verse.speed`: the clock times of the stages, in one file."""

import json

import pytest

from verse import speed


def test_each_stage_has_its_numbers(tmp_path):
    file = tmp_path / "speed.json"
    speed.store(file, "train", {"seconds": 2.0, "poems_per_second": 1 / 3})
    speed.store(file, "generate", {"seconds": 1.0})
    speed.store(file, "train", {"seconds": 4.0})
    assert json.loads(file.read_text()) == {"generate": {"seconds": 1.0}, "train": {"seconds": 4.0}}


def test_poems_a_second():
    numbers = speed.Stopwatch().numbers(10)
    assert numbers["poems_per_second"] == pytest.approx(10 / numbers["seconds"])


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_broken_file_is_written_anew(tmp_path, content):
    file = tmp_path / "speed.json"
    file.write_bytes(content)
    speed.store(file, "score", {"seconds": 1.0})
    assert json.loads(file.read_text()) == {"score": {"seconds": 1.0}}
