"""A server that never comes to an end, or sends no end of it: a question has a deadline."""

import contextlib
import gzip
import json
import socket
import struct
import threading
import time
import tracemalloc
from contextlib import suppress
from types import SimpleNamespace

import pytest
from chat_server import REST, Handler, Listener, Server, completion
from unit.chat.test_rounds import ask, echo

from verse.chat import connection
from verse.chat.client import LONGEST
from verse.errors import UserError

TIMEOUT = 0.6


class Wire(Listener):
    """A server that says some bytes to each request, then more, again and again or after a pause.

    more: "" is silence, None hangs up, and bytes are sent every hundredth of a second.
    """

    def __init__(self, words, more):
        super().__init__()
        self.words, self.more, self.requests = words, more, 0
        self.base_url = f"{self.address}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.stop.set()
        self.socket.close()

    def answer(self, client):
        with suppress(OSError), contextlib.closing(client):
            client.recv(65536)
            self.requests += 1
            client.sendall(self.words)
            if self.more is None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            while not self.stop.wait(0.01):
                client.sendall(self.more)


OK = b"HTTP/1.1 200 OK\r\n"
BODY = OK + b"Content-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "silence": (b"", b""),
    "a status that drips": (b"", b"H"),
    "no end of the status": (b"HTTP/1.1 200 ", b"O"),
    "headers that drip": (OK, b"X-A: b\r\n"),
    "a header that drips": (OK + b"X-A: ", b"b"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 Early Hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "a body that drips": (BODY, b" "),
    "a body that stops": (BODY + b'{"choices":', b""),
    "chunks that drip": (CHUNKS, b"1\r\n \r\n"),
    "a chunk's size that drips": (CHUNKS, b"0"),
    "a body of an error that drips": (BODY.replace(b"200 OK", b"500 No"), b" "),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_question_takes_twice_the_timeout_at_most(store, what):
    began = time.monotonic()
    with Wire(*ENDLESS[what]) as server, pytest.raises(UserError) as caught:
        ask(server, store, count=1, timeout=TIMEOUT)
    seconds = time.monotonic() - began
    assert server.requests <= 2 and " attempt" in str(caught.value)
    assert seconds < 2 * TIMEOUT + 1.5, "the client's own import apart"


def test_faults_and_silence_by_turns_take_no_longer(store):
    with Server(echo, lambda n: "hang" if n % 2 else "500") as server:
        began = time.monotonic()
        with pytest.raises(UserError, match=r"no answer within 1 s \(\d attempts\)"):
            ask(server, store, count=1, timeout=1.0)
        assert time.monotonic() - began < 4


def big(body):
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


def zipped(body):
    packed = gzip.compress(body)
    return OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed


HUGE = json.dumps(completion("山" * 4_000_000)).encode()


@pytest.mark.parametrize("words", [big(HUGE), zipped(HUGE), zipped(b" " * 10**8)])
def test_an_answer_has_a_bound(store, words):
    tracemalloc.start()
    try:
        with Wire(words, b"") as server, pytest.raises(UserError, match="more than 8,388,608 byte"):
            ask(server, store, count=1, timeout=20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert server.requests == 1, "it is not put again: the next would be as large"
    assert peak < 200 * 2**20


def test_a_packed_answer_is_read(store):
    with Wire(zipped(json.dumps(completion(REST)).encode()), b"") as server:
        assert ask(server, store, count=1)[0]["answer"] == REST


def test_an_answer_that_is_packed_twice_is_not_unpacked(store):
    """Of 46 kB of such, that unpack to nothing, one came to no end."""
    twice = zipped(gzip.compress(b"{}")).replace(b"gzip\r", b"gzip, gzip\r")
    with Wire(twice, b"") as server, pytest.raises(UserError, match="answer within"):
        ask(server, store, count=1, timeout=TIMEOUT)


DIGITS = "9" * 5000
HOSTILE = [
    {"error": {"code": DIGITS}},
    {"error": {"status": DIGITS, "message": "no"}},
    {"detail": [{"error_code": "٤٠٤"}]},
    {"usage": {"prompt_tokens": -1, "completion_tokens": True}},
    f'{{"error": {DIGITS}}}'.encode(),
    *(b'{"error":' * deep + b'"x"' + b"}" * deep for deep in (900, 955, 965, 3000, 100_000)),
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_a_body_that_python_cannot_take_in_is_no_answer(store, body):
    with Server(lambda asked: (200, body)) as server, pytest.raises(UserError, match="kept"):
        ask(server, store, count=1, timeout=TIMEOUT)


def test_tokens_beyond_count_are_none(store, capsys):
    usage = {"prompt_tokens": 10**4299, "completion_tokens": 9 * 10**4299}
    with Server(lambda asked: (200, completion(REST) | {"usage": usage})) as server:
        assert ask(server, store, count=1)[0]["answer"] == REST
    assert "0 tokens read and 0 written" in capsys.readouterr().out


def test_an_answer_of_more_characters_than_a_model_writes_is_none(store):
    with Server(echo) as server:
        ask(server, store, count=1)
        server.answer = lambda asked: (200, completion("<rt" * 10**6))
        row = ask(server, store, count=2)[1]
    assert (row["unanswered"], len(row["raw"])) == ("malformed", LONGEST)


class Paused(Handler):
    def fail(self, fault, answer):
        self.send(429, b"{}", Retry_After="2")


def test_a_pause_that_the_server_asks_for_is_no_wait_for_it(store):
    with Server(echo, lambda n: None if n else "busy") as server:
        server.RequestHandlerClass = Paused
        assert ask(server, store, count=1, timeout=0.8)[0]["unanswered"] is None


@pytest.mark.parametrize("pause", ["10000", "1e9", "inf", "99999999999999999999"])
def test_a_pause_that_is_too_long_is_told(store, pause):
    head = f"HTTP/1.1 429 No\r\nRetry-After: {pause}\r\nContent-Length: 2\r\n\r\n{{}}"
    with Wire(head.encode(), b"") as server, pytest.raises(UserError) as caught:
        ask(server, store, count=1, timeout=1)
    if pause != "inf":
        assert server.requests == 1 and "(1 attempt), it wants a pause of" in str(caught.value)
        assert f"{float(pause):,.0f} s" in str(caught.value)


@pytest.mark.parametrize("pause", ["x", "-5", "nan", "", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_pause_that_is_none(pause):
    response = SimpleNamespace(headers={"retry-after": pause} if pause else {})
    assert not connection.pause(response) > 0


WORDS = [
    (400, "Insufficient Balance"),
    (402, ["Insufficient Balance"]),
    (403, [["Insufficient Balance"]]),
    (200, "Insufficient Balance"),
    (200, ["Insufficient Balance"]),
    (200, ["error", "Insufficient Balance"]),
    (200, [{"error": "Insufficient Balance"}]),
    (200, {"detail": ["Insufficient Balance"]}),
    (200, {"error": ["Insufficient Balance", 402]}),
    (422, {"errors": {"a": ["Insufficient Balance"]}}),
]


@pytest.mark.parametrize(("status", "body"), WORDS)
def test_a_servers_words_are_told_whatever_they_come_in(store, status, body):
    with Server(lambda asked: (status, body)) as server, pytest.raises(UserError) as caught:
        ask(server, store, count=5)
    assert "Insufficient Balance" in str(caught.value)


REFUSALS = [
    (402, {"error": {"message": "Insufficient Balance"}}),
    (400, {"error": {"message": "Payment needed"}}),
    (422, "out of credits, friend"),
    (413, {"message": "no more today"}),
    (200, {"error": {"message": "come back when you have paid"}}),
    (200, "nothing for you"),
    (200, ["nothing", "for", "you"]),
    (200, {"id": 1}),
    (406, {}),
    (418, "teapot"),
]


@pytest.mark.parametrize(("status", "body"), REFUSALS)
def test_refusals_in_a_row_are_no_property_of_the_questions(store, status, body):
    """Midway, in words that nobody foresaw: what was answered is kept, the others come back."""
    with Server() as server:
        server.answer = lambda asked: echo(asked) if len(server.asked) <= 9 else (status, body)
        with pytest.raises(UserError, match="what was answered is kept"):
            ask(server, store, count=90)
        assert len(server.asked) < 60
        server.answer = echo
        assert [row["unanswered"] for row in ask(server, store, count=90)] == [None] * 90
        answered = [str(asked) for asked in server.answered]
    assert len(set(answered)) == 90
