"""Bad inputs of every kind: one line that says what, where and what to do; nothing is touched.

    make soak

Each case runs a stage in a folder with the outputs of an earlier run. Wrong models by the hundred
are in models.py, faults of the system in faults.py.
"""

import contextlib
import gzip
import itertools
import json
import os
import shutil
import socket
import sqlite3
import struct
import subprocess
import threading
import time
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
import yaml
from chat_server import Listener, Server, poem_or_mark
from clones import change, clone
from clones import outputs as outputs_of
from forked import STAGES, is_one_line, outputs
from safetensors.torch import load_file, save_file
from unit.test_params import VALUES

from verse.download import download
from verse.errors import KEPT, UserError

TOTALS = {"bad inputs": 0}
RECORD = {
    "instruction": "x",
    "input": "白日依山盡，黃河入海流。",
    "output": "欲窮千里目，更上一層樓。",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A clone in which the pipeline has run."""
    copy = clone(tmp_path_factory.mktemp("bad"))
    copy.dvc("repro")
    copy.commit()
    return copy


@pytest.fixture
def work(stages, whole, tmp_path):
    """A copy of it that a test may spoil."""
    shutil.copytree(whole, tmp_path / "work", symlinks=True)
    return SimpleNamespace(path=tmp_path / "work", stages=stages)


def refused(work, stage, *words, status=1, seconds=120, env=(), limits=()):
    """Run a stage that must end in one line with these words, and leave all as it was."""
    before = outputs(work.path)
    env = {"XDG_CACHE_HOME": str(work.path.parent)} | dict(env)
    ended = work.stages.run(stage, work.path, seconds=seconds, env=env, limits=limits)
    assert is_one_line(ended, *words), ended
    assert ended.status == status
    assert outputs(work.path) == before
    assert not list(work.path.rglob("*.partial"))
    TOTALS["bad inputs"] += 1
    return ended.err


# Parameters


@pytest.mark.parametrize("key", VALUES)
def test_a_parameter(work, key):
    values = yaml.safe_load((work.path / "params.yaml").read_text("utf-8"))
    for place, value in enumerate(VALUES[key][1]):
        (work.path / "params.yaml").write_text(yaml.safe_dump(values), "utf-8")
        change(work.path / "params.yaml", {key: value})
        refused(work, list(STAGES)[place % len(STAGES)], "params.yaml: ", key, status=2)


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("fetch", "data.source", "no/such.json"),
        ("prepare", "prepare.max_train", 0),
        ("train", "train.lora.r", -8),
        ("baseline", "decoding.top_p", 0),
        ("generate", "decoding.top_k", -1),
        ("score", "score.bootstrap", 1),
    ],
)
def test_what_dvc_removed_comes_back(repository, tmp_path, stage, key, value):
    """DVC removes a stage's outputs before it runs: the one line says how to have them again."""
    shutil.copytree(repository.path, tmp_path / "repository", symlinks=True)
    copy = type(repository)(tmp_path / "repository", repository.env)
    before = outputs_of(copy)
    change(copy.path / "params.yaml", {key: value})
    output = copy.dvc("repro", "--single-item", stage, status=255)
    name = "generate" if stage == "baseline" else stage  # the script's
    (line,) = (line for line in output.splitlines() if line.startswith(f"{name}: "))
    assert key in line and line.endswith(KEPT)
    assert (outputs_of(copy) == before) == (stage == "fetch")
    copy.dvc("checkout", "--force")
    copy.run("git", "checkout", "--", "metrics")
    assert outputs_of(copy) == before
    TOTALS["bad inputs"] += 1


@pytest.mark.parametrize("content", [b"", b"seed: [", b"\xff\xfe", b"seed: 2024-99-99", b"- 1\n"])
def test_a_parameter_file(work, content):
    (work.path / "params.yaml").write_bytes(content)
    refused(work, "fetch", "params.yaml", status=2)


# Data files


def as_bytes(*records):
    return json.dumps(records, ensure_ascii=False).encode()


DATA = {
    "empty": (b"", "empty"),
    "blank": (b" \n\n", "empty"),
    "truncated": (as_bytes(RECORD, RECORD)[:-21], "cut off"),
    "truncated in a character": (as_bytes(RECORD, RECORD)[:-20], "cut off"),
    "not JSON": (b"poems", "not JSON"),
    "a web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "not UTF-8": (json.dumps([RECORD], ensure_ascii=False).encode("big5", "replace"), "UTF-8"),
    "UTF-16": (json.dumps([RECORD]).encode("utf-16"), "UTF-8"),
    "no record": (b"[]", "no poems"),
    "a list of texts": (b'["x"]', "record 1"),
    "a number": (b"42", "record 1"),
    "no output": (as_bytes({"input": "x"}), "'output'"),
    "output a number": (as_bytes(RECORD, RECORD | {"output": 1}), "record 2"),
    "half a surrogate": (b'[{"input": "\\ud800", "output": "x"}]', "surrogate"),
    "too deep": (b"[" * 100_000, "nested too deeply"),
    "too long a number": (b"[" + b"9" * 5_000 + b"]", "number too long"),
}


@pytest.mark.parametrize("what", DATA)
def test_a_data_file(work, what):
    content, word = DATA[what]
    (work.path / "poems.json").write_bytes(content)
    change(work.path / "params.yaml", {"data.source": "poems.json"})
    refused(work, "fetch", "poems.json", word)


@pytest.mark.parametrize(
    "source", ["no/such.json", "/dev/null", "/dev/zero", "nosuchuser~", "~nosuchuser/x", "a" * 300]
)
def test_no_data_file(work, source):
    change(work.path / "params.yaml", {"data.source": source})
    refused(work, "fetch", f"data.source {source!r}")


def zipped(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("poems.json", as_bytes(RECORD))


def sparse(file):
    with file.open("wb") as stream:
        stream.truncate(2**40)


SPECIAL = {
    "a pipe": (os.mkfifo, "a pipe or a device"),
    "a device": (lambda file: file.symlink_to("/dev/zero"), "a pipe or a device"),
    "a socket": (lambda file: socket.socket(socket.AF_UNIX).bind(str(file)), "a pipe or a device"),
    "a link to nothing": (lambda file: file.symlink_to("nowhere"), "a link to nothing"),
    "a link to itself": (lambda file: file.symlink_to(file.name), "many levels"),
    "gzip": (lambda file: file.write_bytes(gzip.compress(as_bytes(RECORD))), "compressed (gzip)"),
    "zip": (zipped, "compressed (zip)"),
    "a terabyte of nothing": (sparse, "larger than"),
}


@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize("name", ["train.json", "test.json", "notes.txt", "below/notes.txt"])
def test_a_special_file(work, what, name):
    """As a source's file, or beside it, where DVC would find it."""
    if name.endswith("txt") and ("zip" in what or "terabyte" in what):
        pytest.skip("no harm in what is not read")
    make, words = SPECIAL[what]
    file = work.path / "mine" / name
    file.parent.mkdir(parents=True)
    if "train" not in name:
        (work.path / "mine/train.json").write_bytes(as_bytes(RECORD, RECORD))
    make(file)
    change(work.path / "params.yaml", {"data.source": "mine"})
    refused(work, "fetch", words, name, seconds=20)
    if "link" not in what and "below" not in name:
        change(work.path / "params.yaml", {"data.source": f"mine/{name}"})
        refused(work, "fetch", name, seconds=20)


def test_a_circle_of_folders(work):
    shutil.copytree(work.path / "poems", work.path / "mine")
    (work.path / "mine/again").symlink_to(".")
    change(work.path / "params.yaml", {"data.source": "mine"})
    refused(work, "fetch", "mine/again", "circle")


def test_a_file_name_that_is_no_text(work):
    shutil.copytree(work.path / "poems", work.path / "mine")
    (work.path / "mine" / os.fsdecode(b"\xa6\xb3.txt")).write_text("x")
    change(work.path / "params.yaml", {"data.source": "mine"})
    refused(work, "fetch", "not UTF-8")


def test_an_experiment_in_a_folder_of_its_own(work):
    """DVC copies what git tracks to .dvc/tmp/exps: an untracked source is missing there only."""
    place = work.path / ".dvc/tmp/exps/tmpabc"
    place.mkdir(parents=True)
    change(work.path / "params.yaml", {"data.source": "untracked", "model.name": "./untracked"})
    shutil.copy(work.path / "params.yaml", place)
    shutil.copytree(work.path / "data", place / "data", symlinks=True)
    inside = SimpleNamespace(path=place, stages=work.stages)
    refused(inside, "fetch", "this experiment's own folder", "git add")
    refused(inside, "train", "this experiment's own folder", "git add")


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("fetch", "params.yaml"),
        ("prepare", "data/raw/test.jsonl"),
        ("train", "data/prepared/validation.jsonl"),
        ("baseline", "data/prepared/test.jsonl"),
        ("generate", "data/prepared/test.jsonl"),
        ("score", "data/generated/tuned.jsonl"),
        ("score", "data/prepared/train.jsonl"),
    ],
)
@pytest.mark.parametrize("what", SPECIAL)
def test_a_special_file_for_a_later_stage(work, stage, file, what):
    make, words = SPECIAL[what]
    if what == "a socket":
        pytest.skip("its path would be too long")
    content = {path: data for path, data in outputs(work.path).items() if path != file}
    (work.path / file).unlink()
    make(work.path / file)
    env = {"XDG_CACHE_HOME": str(work.path.parent)}
    ended = work.stages.run(stage, work.path, seconds=20, env=env)
    assert is_one_line(ended, words, file), ended
    left = outputs(work.path) if what != "a terabyte of nothing" else content
    assert {path: data for path, data in left.items() if path != file} == content
    TOTALS["bad inputs"] += 1


# Texts longer than the model's positions


def positions(work, count):
    file = work.path / "base/config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(config | {"max_position_embeddings": count}), "utf-8")


@pytest.mark.parametrize("count", [1, 8, 40])
@pytest.mark.parametrize("stage", ["train", "baseline", "generate"])
def test_few_positions(work, stage, count):
    positions(work, count)
    refused(work, stage, f"{count} positions")


@pytest.mark.parametrize("stage", ["baseline", "generate"])
def test_too_many_new_tokens(work, stage):
    change(work.path / "params.yaml", {"decoding.max_new_tokens": 1024})
    refused(work, stage, "decoding.max_new_tokens", "set it to ")


@pytest.mark.parametrize(
    ("stage", "part"), [("train", "train"), ("train", "validation"), ("generate", "test")]
)
def test_an_endless_text(work, stage, part):
    endless = json.dumps(RECORD | {"instruction": "山" * 300_000}, ensure_ascii=False)
    with (work.path / f"data/prepared/{part}.jsonl").open("a", encoding="utf-8") as file:
        file.write(endless + "\n")
    refused(work, stage, "positions", "shorten")


def test_a_folder_without_poems(work):
    (work.path / "mine").mkdir()
    change(work.path / "params.yaml", {"data.source": "mine"})
    refused(work, "fetch", "mine: holds no poems")


def test_no_usable_poem(work):
    (work.path / "data/raw/train.jsonl").write_text('{"instruction":"","input":"x","output":"y"}\n')
    line = refused(work, "prepare", "no poem is left to train on", "none of 1 is usable (1 ")
    assert "test_poems" not in line


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("prepare", "data/raw/train.jsonl"),
        ("train", "data/prepared/train.jsonl"),
        ("train", "data/prepared/validation.jsonl"),
        ("generate", "data/prepared/test.jsonl"),
        ("generate", "models/adapter/adapter_config.json"),
        ("score", "data/generated/tuned.jsonl"),
    ],
)
def test_an_input_of_a_later_stage(work, stage, file):
    (work.path / file).unlink()
    refused(work, stage, "models/adapter" if "adapter" in file else file)


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("prepare", "data/raw/train.jsonl"),
        ("train", "data/prepared/train.jsonl"),
        ("score", "data/generated/tuned.jsonl"),
    ],
)
def test_a_truncated_input_of_a_later_stage(work, stage, file):
    content = (work.path / file).read_bytes()
    (work.path / file).write_bytes(content[:-20])
    refused(work, stage, file)


@pytest.mark.parametrize(
    "row", [{}, [], 1, None, "x", {"input": 1}, RECORD | {"input": "\ud800"}, ()]
)
@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("prepare", "data/raw/train.jsonl"),
        ("train", "data/prepared/train.jsonl"),
        ("train", "data/prepared/validation.jsonl"),
        ("baseline", "data/prepared/test.jsonl"),
    ],
)
def test_a_row_of_a_later_stage_that_was_changed_by_hand(work, stage, file, row):
    if row != ():
        with (work.path / file).open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")
    else:
        (work.path / file).write_text("")
    refused(work, stage, file)


# What lies beside the main path


STORED = ["{", "[]", "5", b"\x00\xff", "null", '{"score": 99, "reason": ""}', '{"text": 5}', ""]


@pytest.mark.parametrize("value", STORED)
@pytest.mark.parametrize("stage", ["ask", "judge"])
def test_a_marred_store(work, stage, value):
    """What was stored so is asked for again, with a line."""

    with Server(poem_or_mark) as server:
        entry = {"base_url": server.base_url, "model": "m"}
        asked = {"contestants": [entry | {"name": "kimi"}], "judge": entry | {"poems": 2}}
        change(work.path / "params.yaml", asked | {"machine.max_concurrent_requests": 1})
        env = {"XDG_CACHE_HOME": str(work.path.parent)}
        ended = work.stages.run("ask", work.path, env=env)
        ended = work.stages.run(stage, work.path, env=env) if stage == "judge" else ended
        assert ended.status == 0, ended
        expected, count = outputs(work.path), len(server.asked)
        with sqlite3.connect(work.path.parent / "verse/answers.sqlite") as store:
            store.execute("UPDATE answers SET value = ? WHERE rowid % 2", (value,))
        again = work.stages.run(stage, work.path, env=env)
        assert again.status == 0 and outputs(work.path) == expected, again
        assert "marred answers are set aside and asked for again" in again.out
        assert len(server.asked) > count
    TOTALS["bad inputs"] += 1


ROWS = ["[[]]", "5", "null", "{}", "{", '{"contestant": 1}', "<<<<<<< HEAD"]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("score", "data/marks/marks.jsonl"),
        ("score", "data/generated/base.jsonl"),
        ("score", "data/prepared/train.jsonl"),
        ("score", "metrics/train.json"),
        ("score", "data/answers/contestants.json"),
        ("judge", "data/answers/contestants.json"),
        ("judge", "data/generated/tuned.jsonl"),
        ("judge", "data/prepared/test.jsonl"),
        ("ask", "data/prepared/test.jsonl"),
    ],
)
def test_a_file_of_ours_that_was_changed(work, stage, file, row):
    (work.path / file).write_text(row + "\n")
    refused(work, stage, file)


MARKS = {"contestant": "base", "poem": 1, "question": "prosody", "scores": [5, None], "reasons": []}


@pytest.mark.parametrize(
    "changed",
    [
        *({"scores": bad} for bad in (5, [99], ["5"], [-1], None, [True])),
        *({"poem": "1"}, {"poem": 1.5}, {"question": None}, {"contestant": 5}),
    ],
)
def test_a_row_of_marks(work, changed):
    (work.path / "data/marks/marks.jsonl").write_text(json.dumps(MARKS | changed) + "\n")
    refused(work, "score", "data/marks/marks.jsonl, row 1")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../outside.safetensors", "a/b.safetensors"])
@pytest.mark.parametrize("stage", ["train", "baseline"])
def test_an_index_that_leads_elsewhere(work, stage, name):
    folder = spoilt(work)
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(work, stage, "model.safetensors.index.json", "safetensors")


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin"])
def test_a_pickled_adapter(work, name):
    file = work.path / "models/adapter/adapter_model.safetensors"
    torch.save(load_file(file), file.with_name(name))
    file.unlink()
    line = refused(work, "generate", "adapter_model.safetensors")
    assert "weights_only" not in line


LOOPS = "{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2
TEMPLATES = {
    "no end": (LOOPS, "no end within"),
    "3 GB": ("{{ 'x' * 3000000000 }}", "GiB"),
    "no end on a poem": ("{% if '，' in messages[-1].content %}" + LOOPS + "{% endif %}", "no end"),
    "an error on a poem": ("{{ 1 // (messages[-1].content | length // 999) }}", "zero"),
}


@pytest.mark.parametrize("what", TEMPLATES)
@pytest.mark.parametrize("stage", ["train", "baseline", "generate"])
def test_a_template(work, stage, what):
    template, said = TEMPLATES[what]
    says = "{{ messages[0].content }}{{ messages[-1].content }}"
    file = work.path / "base/tokenizer_config.json"
    config = json.loads(file.read_text("utf-8"))
    (work.path / "base/chat_template.jinja").unlink(missing_ok=True)
    file.write_text(json.dumps(config | {"chat_template": says + template}), "utf-8")
    refused(work, stage, "chat template", said, seconds=60)


# Downloads


class Broken(BaseHTTPRequestHandler):
    """A server on which every path fails in a way of its own."""

    def do_GET(self):
        what = self.path.strip("/")
        if what == "drop":  # announces more than it sends
            self.reply(200, b"[", {"Content-Length": "1000"})
        elif what == "stall":
            self.reply(200, b"[", {"Content-Length": "1000"})
            time.sleep(300)
        elif what == "huge":
            self.reply(200, b"", {"Content-Length": str(2**40)})
        elif what == "loop":
            self.reply(302, b"", {"Location": "/loop"})
        elif what == "file":
            self.reply(302, b"", {"Location": "file:///etc/passwd"})
        elif what == "page":
            self.reply(200, b"<html>log in</html>")
        elif what == "gzip":
            self.reply(200, b"x", {"Content-Encoding": "gzip"})
        elif what == "cut.json":
            self.reply(200, as_bytes(RECORD)[:-9])
        elif what == "good.json":
            self.reply(200, as_bytes(RECORD))
        else:
            self.reply(int(what) if what.isdigit() else 404, b"no")

    def reply(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


class Hostile(Listener):
    """A server that says what a test gives it, byte by byte, and then does something."""

    def __init__(self):
        super().__init__()
        self.url = f"{self.address}/x"
        threading.Thread(target=self.serve, daemon=True).start()

    def answer(self, client):
        with suppress(OSError), contextlib.closing(client):
            client.recv(65536)
            client.sendall(self.words)
            if self.then == "silence":
                self.stop.wait(60)
            elif self.then == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            while self.then in ("drip", "noise", "endless") and not self.stop.is_set():
                client.sendall({"drip": b"x", "noise": os.urandom(999)}.get(self.then, b"9" * 9999))
                self.stop.wait(0.05 if self.then == "drip" else 0)


OK = b"HTTP/1.1 200 OK\r\n"
PHASES = {
    "before the status": b"",
    "in the status": b"HTTP/1.1 2",
    "in the headers": OK,
    "in a header": OK + b"Content-Type: te",
    "in the length": OK + b"Content-Length: 1",
    "before a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n",
    "in a chunk's size": OK + b"Transfer-Encoding: chunked\r\n\r\n1",
    "in a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n[",
    "before the body": OK + b"Content-Length: 99999\r\n\r\n",
    "in the body": OK + b"Content-Length: 99999\r\n\r\n[" + b" " * 5000,
    "in a redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1",
}
AFTER = ["silence", "drip", "close", "reset", "noise", "endless"]
ANSWERS = [
    *(
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + where + b"\r\n\r\n"
        for where in [
            *(b"", b"/x", b"//", b"http://", b"http://[", b"http://[::1", b"http://a:b/", b"a:b"),
            *(b"http://127.0.0.1:99999/", b"http://127.0.0.1:-1/", b"http:///x", b"\xff\xfe"),
            *(b"http://\xe8\xa9\xa9/", b"http://a b/", b"file:///etc/passwd", b"ftp://a/"),
            *(b"javascript:1", b"data:,[]", b"http://" + b"a" * 300 + b"/", b"h" * 60_000),
            *(b"http://user:word@127.0.0.1:1/", b"\\\\a\\b", b"http://127.0.0.1:0/", b"?" * 9000),
        ]
    ),
    *(
        OK + b"Content-Length: " + length + b"\r\n\r\n[" + rest
        for length, rest in [
            *((b"9" * digits, b"") for digits in (7, 12, 20, 400)),
            *((b"1, 2", b""), (b"268435457", b""), (b"1099511627776", b"")),
        ]
    ),
    OK + b"Content-Encoding: br\r\n\r\nxx",
    OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n[]\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n[",
    OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n",
    OK + b"X: y\r\n" * 20_000 + b"\r\n[]",
    OK + b"X: " + b"y" * 200_000 + b"\r\n\r\n[]",
    b"HTTP/1.1 99999 \r\n\r\n",
    b"HTTP/9.9 200 OK\r\n\r\n"[:7],
    b"HTTP/1.1 -1 OK\r\n\r\n",
    b"HTTP/1.1 304 \r\n\r\n",
    b"HTTP/1.1 206 \r\nContent-Range: bytes 5-9/10\r\n\r\n[]",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x00" * 999,
    b"[]",
]


@pytest.mark.parametrize(
    ("words", "then"),
    [
        *(
            (words, then)
            for words, then in itertools.product(PHASES.values(), AFTER)
            if b"99999" not in words or then not in ("noise", "endless")  # a whole body
        ),
        *((answer, "close") for answer in ANSWERS),
    ],
)
def test_a_hostile_server(tmp_path, monkeypatch, words, then):
    monkeypatch.setenv("no_proxy", "*")
    server = Hostile()
    server.words, server.then = words, then
    began = time.monotonic()
    try:
        with pytest.raises(UserError) as caught:
            quick = {"timeout": 0.5, "whole": 3.0, "pauses": (0.01,), "limit": 2**28}
            download(server.url, tmp_path / "cache", **quick)
    finally:
        server.stop.set()
        server.socket.close()
    line = str(caught.value)
    assert line.startswith(f"{server.url}: ") and line.count(": ") >= 2 and "\n" not in line
    assert time.monotonic() - began < 20, "no hang, however busy the machine"
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name[0] != "."] == []
    TOTALS["bad inputs"] += 1


def test_what_is_refused_does_not_stay(work, site):
    change(work.path / "params.yaml", {"data.source": f"{site}/cut.json"})
    refused(work, "fetch", "cut off")
    kept = (work.path.parent / "verse/downloads").iterdir()
    assert [path.name for path in kept if path.name[0] != "."] == []


@pytest.fixture(scope="module")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("404", "404"),
        ("403", "403"),
        ("503", "503"),
        ("drop", "dropped"),
        ("stall", "stalled"),
        ("huge", "larger than"),
        ("loop", "redirected more than"),
        ("file", "redirected to file:"),
        ("page", "a web page"),
        ("gzip", "compressed"),
        ("cut.json", "cut off"),
    ],
)
def test_a_download(work, site, path, word):
    change(work.path / "params.yaml", {"data.source": f"{site}/{path}"})
    refused(work, "fetch", f"{site}/{path}", word, seconds=300)


@pytest.mark.parametrize(
    "source",
    [
        "ftp://example.org/x",
        "http://",
        "http://[::1",
        "https://user:secret@example.org/x",
        "http://127.0.0.1:1/x",
        "http://nosuchhost.invalid/x",
    ],
)
def test_an_address(work, source):
    change(work.path / "params.yaml", {"data.source": source})
    direct = {"no_proxy": "*", "NO_PROXY": "*"}
    assert "secret" not in refused(work, "fetch", source.split(":")[0], env=direct)


def test_a_wrong_hash(work, site):
    values = {"data.source": f"{site}/good.json", "data.sha256": "0" * 64}
    change(work.path / "params.yaml", values)
    refused(work, "fetch", "expected sha256 000000")


def test_the_homework_from_a_wrong_mirror(work, site):
    change(work.path / "params.yaml", {"data.source": "hw5", "data.hw5_url": f"{site}/mirror"})
    refused(work, "fetch", "404")


# Models


def spoilt(work, **files):
    """A copy of the model with some files changed; None takes one away."""
    folder = work.path / "models/spoilt"
    shutil.copytree(work.path / "base", folder)
    for name, content in files.items():
        file = folder / name.replace("__", ".")
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content(file.read_bytes()) if callable(content) else content)
    change(work.path / "params.yaml", {"model.name": "models/spoilt"})
    return folder


@pytest.mark.parametrize("stage", ["train", "baseline"])
@pytest.mark.parametrize("name", ["models/none", "./none", "~nosuchuser/model", "no-such-model"])
def test_no_model(work, stage, name):
    change(work.path / "params.yaml", {"model.name": name})
    refused(work, stage, f"model.name {name!r}")


MODELS = {
    "no config": ({"config__json": None}, "config.json"),
    "a corrupt config": ({"config__json": b'{"model_type": '}, "its config.json cannot be read"),
    "an unknown type": ({"config__json": b'{"model_type": "nonesuch"}'}, "nonesuch"),
    "a config that is a list": ({"config__json": b"[]"}, "model.name"),
    "no weights": ({"model__safetensors": None}, "no weights"),
    "truncated weights": ({"model__safetensors": lambda b: b[:-1000]}, "model.name"),
    "weights of nothing": ({"model__safetensors": b""}, "model.name"),
    "weights of noise": ({"model__safetensors": b"\x93" * 5_000}, "model.name"),
    "no tokenizer": ({"tokenizer__json": None, "tokenizer_config__json": None}, "tokenizer"),
    "a corrupt tokenizer": ({"tokenizer__json": b"{"}, "tokenizer"),
    "a truncated tokenizer": ({"tokenizer__json": lambda b: b[: len(b) // 2]}, "tokenizer"),
}


@pytest.mark.parametrize("what", MODELS)
@pytest.mark.parametrize("stage", ["train", "baseline"])
def test_a_model(work, stage, what):
    files, word = MODELS[what]
    spoilt(work, **files)
    refused(work, stage, word)


@pytest.mark.parametrize("stage", ["train", "baseline"])
def test_pickled_weights(work, stage):
    folder = spoilt(work, model__safetensors=None)
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    refused(work, stage, "pickle", "safetensors")


@pytest.mark.parametrize("stage", ["train", "baseline"])
def test_a_tokenizer_with_more_tokens_than_the_model(work, stage):
    folder = spoilt(work)
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if "embed_tokens" in name]
    weights[name] = weights[name][:100].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    refused(work, stage, "tokenizer")


@pytest.mark.parametrize("stage", ["train", "baseline"])
def test_no_gpu(work, stage):
    change(work.path / "params.yaml", {"machine.device": "cuda"})
    refused(work, stage, "machine.device", env={"CUDA_VISIBLE_DEVICES": ""})


def test_unknown_target_modules(work):
    change(work.path / "params.yaml", {"train.lora.target_modules": ["no_such_layer"]})
    refused(work, "train", "train.lora.target_modules")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", b"{"),
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", b'{"peft_type": "NONE"}'),
        ("adapter_model.safetensors", b""),
        ("adapter_model.safetensors", b"\x93" * 5_000),
        ("adapter_model.safetensors", None),
    ],
)
def test_a_broken_adapter(work, name, content):
    file = work.path / "models/adapter" / name
    file.unlink() if content is None else file.write_bytes(content)
    refused(work, "generate", "models/adapter")


def test_an_adapter_of_another_model(work):
    file = work.path / "models/adapter/adapter_model.safetensors"
    weights = {k: v[:, :-8].clone() if "lora_A" in k else v for k, v in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    refused(work, "generate", "models/adapter", "does not fit")


# The machine


@pytest.fixture
def full_disk(tmp_path):
    """A function that puts a folder of a clone on a file system of its own, with no room left."""
    mounted = []

    def put(copy, place):
        folder = copy.path / place
        aside = tmp_path / "aside"
        shutil.copytree(folder, aside, symlinks=True)
        pages = sum(1 + -(-p.lstat().st_size // 4096) for p in aside.rglob("*"))
        options = f"size={(pages + 4) * 4096}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True
        )
        if done.returncode:
            pytest.skip("needs leave to mount a tmpfs")
        mounted.append(folder)
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    yield put
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("stage", "place"),
    [
        ("fetch", "data"),
        ("prepare", "data"),
        ("train", "models"),
        ("train", "metrics"),
        ("baseline", "data"),
        ("generate", "data"),
        ("score", "metrics"),
    ],
)
def test_a_full_disk(work, full_disk, stage, place):
    full_disk(work, place)
    refused(work, stage, "the disk is full", place)


@pytest.mark.parametrize("stage", ["baseline", "generate"])
def test_out_of_memory(work, stage):
    """The answers' random numbers alone are more than there is; of training, errors are tested."""
    change(work.path / "params.yaml", {"decoding.max_new_tokens": 2**31 - 1})
    positions(work, 2**40)
    limits = {"RLIMIT_AS": 12 * 2**30}
    refused(work, stage, "out of memory", "machine.batch_size", limits=limits)


def test_a_file_in_the_place_of_a_folder(work):
    shutil.rmtree(work.path / "metrics/plots")
    (work.path / "metrics/plots").write_text("in the way")
    refused(work, "score", "metrics/plots", "move it out of the way")


def test_a_folder_that_may_not_be_written(work):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (work.path / "data").chmod(0o500)
    try:
        refused(work, "fetch", "permission denied")
    finally:
        (work.path / "data").chmod(0o700)


def test_these_are_many():
    """The last test: what has been tried is no less than was promised."""
    assert TOTALS["bad inputs"] >= 450, TOTALS
