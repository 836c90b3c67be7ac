"""What people type as a couplet: read, doubted, looked up."""

import json

import pytest

from verse.cli.couplets import EXAMPLES, Library, doubts, traditional, written
from verse.poem import Poem
from verse.poems import contestants
from verse.poems.sources import INSTRUCTION

COUPLET = "白日依山盡，黃河入海流。"


@pytest.mark.parametrize(
    "typed",
    [
        COUPLET,
        "白日依山盡 黃河入海流",
        " 白日依山盡,黃河入海流.\n",
        "白日依山盡\n黃河入海流",
        "白日依山盡\u3000黃河入海流",
        "白日依山盡，，黃河入海流",
    ],
)
def test_a_couplet_is_written_as_the_pipeline_writes_it(typed):
    assert written(typed) == COUPLET
    assert doubts(written(typed)) == []


def test_marks_that_the_pipeline_keeps_are_kept():
    assert written("夫子何爲者?栖栖一代中！") == "夫子何爲者？栖栖一代中！"


@pytest.mark.parametrize(
    ("typed", "lengths"),
    [
        ("白日依山盡", "5"),
        ("白日依山盡，黃河入海。", "5, 4"),
        ("床前明月，疑是地上。", "4, 4"),
        ("白日依山盡，黃河入海流。欲窮千里目", "5, 5, 5"),
        ("hello, world", "5, 5"),
        ("<script>alert(1)</script>", "25"),
        ("。", "0"),
    ],
)
def test_what_is_no_couplet_stays_as_it_is_and_is_doubted(typed, lengths):
    assert written(typed) == typed
    [(chinese, english)] = doubts(typed)
    assert english.endswith(f"here are {lengths}.")
    assert "不是一聯" in chinese


def test_simplified_characters_are_offered_as_traditional():
    assert traditional("白日依山尽，黄河入海流。") == COUPLET
    assert traditional("荆門十二峰，却似白雲中。") is None
    assert traditional("却归山里去，脚下乱云生。") == "却歸山裏去，脚下亂雲生。"
    [(chinese, english)] = doubts("白日依山尽，黄河入海流。")
    assert COUPLET in chinese
    assert COUPLET in english


def test_no_example_is_doubted():
    assert [doubts(couplet) for couplet in EXAMPLES] == [[]] * len(EXAMPLES)


def test_the_test_poems_and_the_contestants_answers_are_looked_up(tmp_path, monkeypatch):
    rows = [{"instruction": "續。", "input": COUPLET, "output": "欲窮千里目，更上一層樓。"}]
    (tmp_path / "data/prepared").mkdir(parents=True)
    for name in ("test", "train"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"data/prepared/{name}.jsonl").write_text(text, "utf-8")
    (tmp_path / "kimi.jsonl").write_text(json.dumps({"input": COUPLET, "answer": "。"}) + "\n{}\n")
    kimi = contestants.Contestant("月之暗面", "Kimi", "kimi.jsonl")
    monkeypatch.setitem(contestants.CONTESTANTS, "kimi", kimi)

    library = Library(own=frozenset(("base", "tuned")), folder=tmp_path)
    assert (
        library.poem(COUPLET) == library.test[COUPLET] == Poem(COUPLET, rows[0]["output"], "續。")
    )
    assert library.poem("another").instruction == "續。"
    assert library.others["kimi"] == {COUPLET: "。"}
    assert library.any_couplet() == COUPLET
    copied = library.set(Poem(COUPLET, rows[0]["output"]))
    assert [line["seal"] for line in copied["lines"]] == ["襲", "襲"]

    empty = Library(folder=tmp_path / "none")
    assert empty.poem(COUPLET) == Poem(COUPLET, instruction=INSTRUCTION)
    assert empty.test == {}
    assert empty.any_couplet() in EXAMPLES


@pytest.mark.parametrize(
    "row", ["[]", "5", "null", '"x"', "{}", '{"input": 5, "answer": ""}', "[{}]"]
)
def test_a_row_that_is_none_is_left_out_and_told(tmp_path, capsys, row):
    file = tmp_path / "data/generated/tuned.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"input": COUPLET, "answer": "。"}) + f"\n{row}\n")
    assert Library(folder=tmp_path).others["tuned"] == {COUPLET: "。"}
    told = "1 of 2 rows have no text under input and answer: left out"
    assert capsys.readouterr().err == f"{file}: {told}\n"
