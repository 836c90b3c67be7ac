"""Poems, and the rows of JSON Lines that they are read from."""

import tracemalloc

import pytest

from verse.errors import UserError
from verse.files import write_jsonl
from verse.poem import ANSWER, CHAT_ANSWER, Poem, iter_poems, read_poems

POEM = Poem("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。", "續。")


def test_a_poem_has_its_lines():
    assert POEM.text == POEM.couplet + POEM.rest
    assert POEM.couplet_lines == ("白日依山盡", "黃河入海流")
    assert POEM.rest_lines == ("欲窮千里目", "更上一層樓")
    assert POEM.lines == POEM.couplet_lines + POEM.rest_lines
    assert POEM.marked_lines[1:3] == (("黃河入海流", "。"), ("欲窮千里目", "，"))
    assert Poem("山水，雲月", "風雨。").lines == ("山水", "雲月", "風雨"), "marked or not"
    assert Poem("").lines == ()


def test_a_poem_comes_back_from_its_row(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [POEM.row()] * 2)
    assert read_poems(tmp_path / "a.jsonl") == [POEM, POEM]


def test_answers_are_poems_too(tmp_path):
    answer = {"input": "山。", "answer": "水。", "raw": "好：水。", "unanswered": None}
    write_jsonl(tmp_path / "a.jsonl", [answer, answer | {"unanswered": "empty"}])
    assert read_poems(tmp_path / "a.jsonl", ANSWER) == [Poem("山。", "水。")] * 2
    first, second = read_poems(tmp_path / "a.jsonl", CHAT_ANSWER)
    assert first == Poem("山。", "水。", raw="好：水。")
    assert second.unanswered == "empty"


@pytest.mark.parametrize(
    "row",
    [
        "[]",
        "null",
        "{}",
        '{"input": 1, "answer": ""}',
        '{"input": "", "answer": null}',
        '{"instruction": "", "input": "\\ud800", "output": ""}',
    ],
)
@pytest.mark.parametrize("keys", [None, ANSWER, CHAT_ANSWER])
def test_a_row_that_was_changed_by_hand_is_named(tmp_path, row, keys):
    good = POEM.row() | {"answer": "", "raw": ""}
    write_jsonl(tmp_path / "a.jsonl", [good])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(f"{row}\n")
    with pytest.raises(UserError, match="row 2: no text under in"):
        read_poems(tmp_path / "a.jsonl", *filter(None, [keys]))


def test_a_file_without_poems_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    assert list(iter_poems(tmp_path / "a.jsonl")) == []
    with pytest.raises(UserError, match="holds no poems"):
        read_poems(tmp_path / "a.jsonl")


def test_half_a_surrogate_pair_is_mended_in_answers_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"input": "山\\ud800", "answer": "", "raw": ""}\n')
    assert read_poems(tmp_path / "a.jsonl", ANSWER)[0].couplet == "山\ufffd"
    assert read_poems(tmp_path / "a.jsonl", CHAT_ANSWER)[0].couplet == "山\ufffd"


def test_poems_pass_through_without_being_held(tmp_path):
    poem = {"instruction": "續。", "input": "山" * 100, "output": ""}
    write_jsonl(tmp_path / "a.jsonl", (poem for _ in range(10_000)))
    tracemalloc.start()
    try:
        write_jsonl(tmp_path / "b.jsonl", (one.row() for one in iter_poems(tmp_path / "a.jsonl")))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300_000
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
