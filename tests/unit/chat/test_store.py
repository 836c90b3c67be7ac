"""A store of answers that somebody, or a broken disk, has changed: nothing of it is believed."""

import json
import sqlite3

import pytest
from chat_server import REST, Server, completion, mark
from unit.chat.test_rounds import MACHINE, ask, echo

from verse.chat import llm_judge
from verse.chat.llm_judge import mark_poems
from verse.chat.store import Store
from verse.params import Judge

BAD = [
    *("{", "[]", "5", "null", '"text"', "", b"\x00\xff\xfe", b"blob", "[" * 99_999, "9" * 9_999),
    *('{"text": 5, "finish": "stop"}', '{"finish": "stop"}', '{"text": "x"}', "NaN", -1, 1.5),
]
MARKS = [
    *('{"score": 99, "reason": ""}', '{"score": -1, "reason": ""}', '{"score": NaN, "reason": ""}'),
    *('{"score": "7", "reason": ""}', '{"score": null, "reason": ""}', '{"score": 7, "reason": 7}'),
    *('{"score": true, "reason": ""}', '{"reason": ""}', '{"score": [7], "reason": ""}', "7", "{"),
]


def change(store, value, where="1"):
    with sqlite3.connect(store.file) as connection:
        connection.execute(f"UPDATE answers SET value = ? WHERE {where}", (value,))


def rows(store):
    with sqlite3.connect(store.file) as connection:
        return connection.execute("SELECT key, value FROM answers").fetchall()


@pytest.mark.parametrize("value", BAD)
def test_an_answer_that_is_none_is_set_aside_and_asked_again(store, capsys, value):
    with Server(echo) as server:
        expected = ask(server, store, count=3)
        change(store, value, "rowid = 2")
        assert ask(server, Store(store.file), count=3) == expected
        assert len(server.asked) == 4
        assert ask(server, Store(store.file), count=3) == expected and len(server.asked) == 4
    out = capsys.readouterr().out
    assert out.count(f"{store.file}: 1 marred answers are set aside and asked for again") == 1
    aside = [value for key, value in rows(store) if " marred " in key]
    assert len(rows(store)) == 4 and len(aside) == 1, "and nothing is lost"


@pytest.mark.parametrize(
    "changed",
    [
        lambda v: v.replace(REST, "床前明月光"),
        lambda v: v.replace("stop", "length"),
        lambda v: v[:-1],
        lambda v: v + "0",
        lambda v: v.replace("\n", "\n\n"),
        lambda v: v.replace('"', "'"),
        lambda v: " " + v,
        lambda v: v.upper(),
        lambda v: v.swapcase(),
        lambda v: v[: len(v) // 2],
    ],
)
def test_an_answer_that_was_changed_is_asked_again(store, changed):
    with Server(lambda body: (200, completion(REST))) as server:
        ask(server, store, count=1)
        [(_, value)] = rows(store)
        text = json.dumps(REST)[1:-1]
        change(store, changed(value.replace(text, REST)).replace(REST, text))
        assert ask(server, Store(store.file), count=1)[0]["answer"] == REST
        assert len(server.asked) == 2


def test_an_answer_of_another_question_is_none(store):
    with Server(echo) as server:
        ask(server, store, count=2)
        (_, first), (_, second) = rows(store)
        change(store, second, "rowid = 1")
        answers = ask(server, Store(store.file), count=2)
    assert [row["raw"][:5] for row in answers] == [row["input"][:5] for row in answers]
    assert first != second and len(server.asked) == 3


def test_what_an_earlier_version_stored_is_kept(store):
    with Server(echo) as server:
        ask(server, store, count=2)
        for key, value in rows(store):
            change(store, value.split("\n")[0], f"key = '{key}'")
        ask(server, Store(store.file), count=2)
        assert len(server.asked) == 2


@pytest.mark.parametrize("value", MARKS)
def test_a_mark_that_is_none_is_asked_for_again(store, value):
    with Server(lambda body: (200, mark())) as server:
        judge = Judge(base_url=server.base_url, model="m", key_env="TEST_KEY")
        for _ in range(2):
            marks = mark_poems(judge, ["白日依山盡，黃河入海流。"], Store(store.file), MACHINE)
            given = [
                one["score"] for of_one in marks.values() for two in of_one.values() for one in two
            ]
            assert given == [7] * 6
            change(store, value, "rowid = 3")
        assert len(server.asked) == 7


@pytest.mark.parametrize("said", ["٧", "७", "1_0", "score: 1_0", "Score: 7_5/10", "評分：٧分", "߇"])
def test_a_mark_is_written_in_digits_of_ascii(said):
    assert llm_judge.read(said) is None


@pytest.mark.parametrize(
    ("said", "score"), [("７", 7), ("⑦", 7), ("8分", 8), ("七", 7), ("6.5", 6.5)]
)
def test_digits_that_are_ones_in_width_or_name(said, score):
    assert llm_judge.read(said)[0] == score
