"""Questions through a server that fails: all answered, none twice, what came is kept."""

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from chat_server import FAULTS, HANG, KEY, REST, Server, completion

from verse.chat import client as chat
from verse.chat.answers import finish
from verse.chat.store import Store, key_of
from verse.errors import UserError
from verse.params import Contestant, parse
from verse.poem import Poem

ROOT = Path(__file__).parents[3]
MACHINE = parse(yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))).machine


def poems(count):
    digits = str.maketrans("0123456789", "甲乙丙丁戊己庚辛壬癸")
    names = [f"{number:03}".translate(digits) for number in range(count)]
    return [Poem(f"白日{name}，黃河入海流。", instruction="續詩。") for name in names]


def ask(server, store, count=20, name="kimi", machine=MACHINE, timeout=60.0, **options):
    values = {"base_url": server.base_url, "model": "m", "key_env": "TEST_KEY"} | options
    contestant = Contestant(name=name, **values)
    return finish(contestant, poems(count), store, machine.model_copy(update={"timeout": timeout}))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache" / "answers.sqlite")


def echo(body):
    """An answer that tells which question it answers."""
    return 200, completion(body["messages"][-1]["content"].split("\n")[1][:5] + "，" + REST)


# All goes well


def test_answers_in_the_order_of_the_poems(store):
    with Server(echo) as server:
        rows = ask(server, store)
    assert [row["input"] for row in rows] == [poem.couplet for poem in poems(20)]
    assert all(row["raw"] == row["input"][:5] + "，" + REST for row in rows)
    assert rows[0].keys() == {
        *("input", "answer", "raw", "trimmed", "finish_reason", "unanswered"),
    }
    assert {row["unanswered"] for row in rows} == {None}


def test_what_is_asked(store):
    with Server() as server:
        ask(server, store, count=1)
        options = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "system": "你是詩人。"}
        ask(server, store, count=1, **options)
    plain, full = server.asked
    user = {"role": "user", "content": "續詩。\n白日甲甲甲，黃河入海流。"}
    assert plain == {"model": "m", "messages": [user]}
    system = {"role": "system", "content": options.pop("system")}
    assert full == {"model": "m", "messages": [system, user], **options}
    assert [h["authorization"] for h in server.headers] == [f"Bearer {KEY}"] * 2


def test_nothing_is_asked_twice(store):
    with Server() as server:
        first = ask(server, store, count=5)
        assert ask(server, store, count=5) == first and len(server.asked) == 5
        ask(server, store, count=7)
        assert len(server.asked) == 7, "the new ones alone"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"model": "n"},
        {"temperature": 0.0},
        {"top_p": 0.5},
        {"max_tokens": 9},
        {"system": "詩"},
    ],
)
def test_what_decides_an_answer_asks_anew(store, change):
    with Server() as server:
        ask(server, store, count=2)
        ask(server, store, count=2, **change)
        assert len(server.asked) == 4


def test_another_key_asks_nobody(store, monkeypatch):
    with Server() as server:
        ask(server, store, count=2)
        monkeypatch.setenv("OTHER_KEY", "sk-other")
        ask(server, store, count=2, key_env="OTHER_KEY")
        assert len(server.asked) == 2


def test_no_more_at_once_than_asked_for(store):
    def slow(body):
        time.sleep(0.1)
        return echo(body)

    with Server(slow) as server:
        ask(server, store, machine=MACHINE.model_copy(update={"max_concurrent_requests": 3}))
    assert server.most_at_once == 3


def test_calls_and_tokens_are_told_before_the_first(store, capsys):
    seen = []

    def answer(body):
        seen.append(capsys.readouterr().out)
        return echo(body)

    with Server(answer) as server:
        ask(server, store, count=1, max_tokens=40)
    assert seen[0] == (
        "kimi: 1 questions to m; roughly 16 tokens to read (a token a character) and 40 to write, "
        "thoughts included\n"
    )
    assert capsys.readouterr().out == "kimi: 1 answered, 10 tokens read and 5 written\n"


# The server fails


def test_one_call_in_ten_fails(store):
    """In each of the ways, and twice in a row now and then."""

    def fault(number):
        fails = number % 10 == 3 or number % 50 == 4
        return FAULTS[number // 10 % len(FAULTS)] if fails else None

    with Server(echo, fault) as server:
        rows = ask(server, store, count=300, timeout=5.0)
    assert len(rows) == 300 and all(row["raw"].startswith(row["input"][:5]) for row in rows)
    asked = [str(body) for body in server.answered]
    assert len(asked) == len(set(asked)) == 300, "none that was answered is asked again"
    assert len(server.asked) >= 330


def test_what_a_server_says_of_when_to_come_back_is_respected(store):
    began = time.monotonic()
    with Server(echo, lambda number: "busy" if number == 0 else None) as server:
        ask(server, store, count=1)
    assert time.monotonic() - began >= 0.2 and len(server.asked) == 2


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("busy", "too many questions, or no quota left (2 attempts)"),
        ("500", "the server answers 500 (2 attempts)"),
        ("hang", "no answer within 2 s (2 attempts)"),
        ("drip", "no answer within 2 s (2 attempts)"),
        ("cut", "the connection breaks (2 attempts)"),
        ("half", "the connection breaks (2 attempts)"),
        ("truncated", "what the server sends is no chat completion (2 attempts)"),
        ("page", "what the server sends is no chat completion (2 attempts)"),
        ("empty", "what the server sends is no chat completion (2 attempts)"),
    ],
)
def test_a_server_that_fails_from_some_point_on(store, monkeypatch, fault, told):
    monkeypatch.setattr(chat, "RETRIES", 1)
    with Server(echo, lambda number: None if number < 10 else fault) as server:
        with pytest.raises(UserError) as error:
            ask(server, store, count=60, timeout=2.0 if fault in ("hang", "drip") else 60.0)
        assert str(error.value).startswith(
            f"kimi ({server.base_url}): {told}: run the same command again later; "
            "what was answered is kept"
        )
        assert len(server.asked) <= 10 + 5 * MACHINE.max_concurrent_requests
        server.fault = lambda number: None
        assert len(ask(server, store, count=60)) == 60
        asked = [str(body) for body in server.answered]
        assert len(asked) == len(set(asked)) == 60


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "refuses what TEST_KEY holds (401): check the key"),
        (403, "refuses what TEST_KEY holds (403): check the key"),
        (404, "knows no model 'm' or is another address (404): fix base_url or model"),
        (400, "the server refuses the question: no, …: see its entry in params.yaml"),
        (302, "knows no model 'm' or is another address (302): fix base_url or model"),
    ],
)
def test_a_server_that_refuses(store, status, told):
    with Server(lambda body: (status, {"error": {"message": f"no, {KEY}"}})) as server:
        with pytest.raises(UserError) as error:
            ask(server, store)
        assert told in str(error.value) and KEY not in str(error.value)
        assert len(server.asked) <= MACHINE.max_concurrent_requests, "no second attempt"


def test_no_server(store, monkeypatch):
    monkeypatch.setattr(chat, "RETRIES", 1)
    with Server() as server:
        pass
    with pytest.raises(UserError, match=r"the server cannot be reached \(2 attempts\)"):
        ask(server, store)


def test_a_redirect_is_not_followed(store):
    """The key would go along."""
    with Server() as other:

        class Elsewhere(Server):
            pass

        with Elsewhere(lambda body: (307, {})) as server, pytest.raises(UserError):
            ask(server, store, count=1)
        assert other.asked == []


@pytest.mark.parametrize("kind", ["content_filter", "content_policy_violation"])
def test_a_question_that_a_server_filters_has_an_empty_answer(store, kind):
    """As Moonshot and OpenAI say it; the others are asked all the same."""

    def answer(body):
        if "乙" in body["messages"][-1]["content"]:
            return 400, {"error": {"message": "high risk", "type": kind, "code": None}}
        return echo(body)

    with Server(answer) as server:
        rows = ask(server, store, count=3)
        assert [bool(row["answer"]) for row in rows] == [True, False, True]
        assert [row["unanswered"] for row in rows] == [None, "filtered", None]
        ask(server, store, count=3)
        assert len(server.asked) == 4, "it is asked again"


@pytest.mark.parametrize(
    "text", [None, "", "\ud800", "\x00\x1b[2J", "a" * 10**6, f"my key is {KEY}", "{{ poems }}"]
)
def test_strange_answers(store, text):
    with Server(lambda body: (200, completion(text))) as server:
        (row,) = ask(server, store, count=1)
    row["raw"].encode()
    assert row["answer"] == "" and KEY not in row["raw"]


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": 1},
        {"tool_calls": [{}]},
        {"tool_calls": [{"function": "x"}], "function_call": "y"},
        {"tool_calls": [{"function": {"arguments": {"a": 1}}}]},
        {"tool_calls": [None], "content": None},
        {"refusal": "no"},
    ],
)
def test_messages_of_other_types(store, message):
    with Server(lambda body: (200, completion("", **message))) as server:
        (row,) = ask(server, store, count=1)
    assert row["answer"] == ""


def test_usage_of_another_type(store):
    for usage in (None, 1, {"prompt_tokens": "many"}, []):
        with Server(lambda body, usage=usage: (200, completion(REST) | {"usage": usage})) as server:
            assert ask(server, store, count=1)[0]["answer"] == REST


# Keys


def test_a_missing_key_is_named(store, monkeypatch):
    for value in ("", "  "):
        monkeypatch.setenv("TEST_KEY", value)
        with Server() as server:
            with pytest.raises(UserError, match=r"kimi: .*environment variable TEST_KEY"):
                ask(server, store)
            assert server.asked == []
    monkeypatch.setenv("TEST_KEY", "sk-\n鍵")
    with Server() as server, pytest.raises(UserError, match="what TEST_KEY holds is no key"):
        ask(server, store)


def test_a_server_without_a_key_gets_none(store, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server() as server:
        ask(server, store, count=1, key_env=None)
    assert KEY not in str(server.headers)


def test_no_proxy_stands_between_this_machine_and_itself(store, monkeypatch):
    with Server() as proxy, Server() as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.base_url.removesuffix("/v1"))
        ask(server, store, count=1)
        assert proxy.asked == [] and len(server.asked) == 1


# Kills


RUN = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
from pathlib import Path
from types import SimpleNamespace
from unit.chat.test_rounds import ask
from verse.chat.store import Store
_, url, store, timeout = sys.argv
print(len(ask(SimpleNamespace(base_url=url), Store(Path(store)), 60, timeout=float(timeout))))
"""


def start(server, file, timeout):
    """A run of its own that asks 60 questions."""
    command = [sys.executable, "-c", RUN, server.base_url, str(file), str(timeout)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background would ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_a_run_that_is_killed_goes_on(tmp_path):
    """kill -9 again and again: what was answered before is not asked again."""

    def slow(body):
        time.sleep(0.05)
        return echo(body)

    def fault(number):
        return FAULTS[number // 10 % len(FAULTS)] if number % 10 == 3 else None

    file = tmp_path / "answers.sqlite"
    with Server(slow, fault) as server:
        kills = 0
        for _ in range(40):
            before, stored = len(server.asked), known(file)
            process = start(server, file, timeout=5)
            while process.poll() is None and len(server.asked) < before + 20:
                time.sleep(0.01)
            if process.poll() is None:
                process.kill()
                kills += 1
            output = process.communicate()[0]
            assert known(file) >= stored
            if process.returncode == 0:
                break
    assert output.splitlines()[-1] == "60" and kills >= 2
    # Asked twice are only those that were on their way as the process died.
    asked = [str(body) for body in server.answered]
    assert len(set(asked)) == 60 and len(asked) - 60 <= kills * MACHINE.max_concurrent_requests
    assert len(known(file)) == 60


def known(file):
    if not file.exists():
        return set()
    with sqlite3.connect(file) as connection:
        return {key for (key,) in connection.execute("SELECT key FROM answers")}


def test_a_stop_by_the_user_waits_for_no_server(tmp_path):
    file = tmp_path / "answers.sqlite"
    with Server(fault=lambda number: "hang") as server:
        process = start(server, file, timeout=600)
        while not server.asked:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=4 * HANG)[1]


# The store


def test_two_runs_at_once(store):
    again = Store(store.file)
    store.put("a", 1)
    again.put("a", 2)
    again.put("b", None)
    assert (store.get("a"), again.get("a"), store.get("c")) == (1, 1, None)


def test_a_file_that_is_no_store(tmp_path):
    file = tmp_path / "answers.sqlite"
    file.write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(UserError, match=r"answers\.sqlite: .*move it out of the way"):
        Store(file)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "answers.sqlite").mkdir()
    with pytest.raises(UserError, match=r"answers\.sqlite"):
        Store(tmp_path / "answers.sqlite")


def test_a_key_is_made_of_all_parts():
    assert key_of("a", 1) == key_of("a", 1) != key_of("a", "1") != key_of("a1")
    assert key_of({"x": 1, "y": 2}) == key_of({"y": 2, "x": 1})


def test_what_cannot_be_kept_is_a_fault(store):
    """And no question is put after it."""

    def put(key, value):
        raise UserError("the disk is full")

    store.put = put
    with Server() as server:
        with pytest.raises(UserError, match="the disk is full"):
            ask(server, store)
        assert len(server.asked) <= MACHINE.max_concurrent_requests
