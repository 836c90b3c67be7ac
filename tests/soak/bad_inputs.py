"""Bad inputs of every kind: one line that says what, where and what to do; nothing is touched.

    make soak

Each case runs a stage as DVC does, in a folder with the outputs of an earlier run. Parameters one
by one are in tests/test_params.py, broken downloads in depth in tests/test_download.py.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from clones import ROOT, change, clone
from safetensors.torch import load_file, save_file

from verse.errors import KEPT

STAGES = {
    "fetch": ["stages.fetch"],
    "prepare": ["stages.prepare"],
    "train": ["stages.train"],
    "baseline": ["stages.generate", "base"],
    "generate": ["stages.generate", "tuned"],
    "ask": ["stages.ask"],
    "judge": ["stages.judge"],
    "score": ["stages.score"],
}
TOTALS = {"bad inputs": 0}
RECORD = {
    "instruction": "x",
    "input": "白日依山盡，黃河入海流。",
    "output": "欲窮千里目，更上一層樓。",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A clone in which the pipeline has run."""
    copy = clone(tmp_path_factory.mktemp("bad"))
    copy.dvc("repro")
    copy.commit()
    yield copy
    print(f"\n{TOTALS['bad inputs']} bad inputs, each one line, its exit status, nothing touched")


@pytest.fixture
def work(whole, tmp_path):
    """A copy of it that a test may spoil."""
    ignored = shutil.ignore_patterns(".git", "cache", "tmp")
    shutil.copytree(whole.path, tmp_path / "repository", symlinks=True, ignore=ignored)
    return type(whole)(tmp_path / "repository", whole.env | {"XDG_CACHE_HOME": str(tmp_path)})


OUTPUTS = ("data/raw", "data/prepared", "data/generated", "models/adapter", "metrics")


def outputs(copy):
    files = (path for place in OUTPUTS for path in (copy.path / place).rglob("*"))
    return {str(p.relative_to(copy.path)): p.read_bytes() for p in files if p.is_file()}


def refused(copy, stage, *words, status=1, seconds=120, **options):
    """Run a stage that must end in one line with these words, and leave all as it was."""
    before = outputs(copy)
    process = subprocess.run(
        ["python", "-m", *STAGES[stage]],
        cwd=copy.path,
        env=copy.env | options.pop("env", {}),
        capture_output=True,
        text=True,
        timeout=seconds,
        **options,
    )
    name = STAGES[stage][0].removeprefix("stages.")
    line = process.stderr
    assert re.fullmatch(rf"{name}: [^\n]{{10,600}}\n", line), line
    assert process.returncode == status, line
    for word in words:
        assert word in line
    assert outputs(copy) == before
    TOTALS["bad inputs"] += 1
    return line


# Parameters

PARAMETERS = [
    ("seed", -1),
    ("seed", "x"),
    ("data.source", None),
    ("data.sha256", "abc"),
    ("model.template", "alpaca"),
    ("prepare.max_train", 0),
    ("model.name", ""),
    ("model.quantization", "int8"),
    ("model.dtype", "float8"),
    ("machine.device", "tpu"),
    ("machine.threads", 0),
    ("train.learning_rate", 0),
    ("train.batch_size", 0),
    ("train.lora.r", -8),
    ("train.lora.dropout", 1),
    ("train.lora.target_modules", "(q|v"),
    ("train.lora.typo", 1),
    ("decoding.temperature", 0),
    ("decoding.temperature", -1),
    ("decoding.top_p", 0),
    ("decoding.top_p", 1.5),
    ("decoding.top_k", -1),
    ("decoding.max_new_tokens", 1e3),
    ("machine.batch_size", True),
    ("score.bootstrap", 1),
]


@pytest.mark.parametrize(("key", "value"), PARAMETERS)
def test_a_parameter(work, key, value):
    change(work.path / "params.yaml", {key: value})
    stage = list(STAGES)[PARAMETERS.index((key, value)) % len(STAGES)]
    began = time.perf_counter()
    refused(work, stage, "params.yaml: ", key, status=2)
    assert time.perf_counter() - began < 2


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
def test_what_dvc_removed_comes_back(whole, tmp_path, stage, key, value):
    """DVC removes a stage's outputs before it runs: the one line says how to have them again."""
    shutil.copytree(whole.path, tmp_path / "repository", symlinks=True)
    copy = type(whole)(tmp_path / "repository", whole.env)
    before = outputs(copy)
    change(copy.path / "params.yaml", {key: value})
    output = copy.dvc("repro", "--single-item", stage, status=255)
    name = STAGES[stage][0].removeprefix("stages.")
    (line,) = (line for line in output.splitlines() if line.startswith(f"{name}: "))
    assert key in line and line.endswith(KEPT)
    assert (outputs(copy) == before) == (stage == "fetch")
    copy.dvc("checkout")
    copy.run("git", "checkout", "--", "metrics")
    assert outputs(copy) == before
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


@pytest.mark.parametrize("source", ["no/such.json", "/dev/null", "nosuchuser~", "~nosuchuser/x"])
def test_no_data_file(work, source):
    change(work.path / "params.yaml", {"data.source": source})
    refused(work, "fetch", f"data.source {source!r}")


def test_a_folder_without_poems(work):
    change(work.path / "params.yaml", {"data.source": "stages"})
    refused(work, "fetch", "stages: holds no poems")


def test_no_usable_poem(work):
    (work.path / "data/raw/train.jsonl").write_text('{"instruction":"","input":"x","output":"y"}\n')
    refused(work, "prepare", "no poem is left to train on")


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
    """A copy of the embedded model with some files changed; None takes one away."""
    folder = work.path / "models/spoilt"
    shutil.copytree(work.path / "models/mini", folder)
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
    "a corrupt config": ({"config__json": b'{"model_type": '}, "model.name"),
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
    weights[name] = weights[name][:2000].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 2000}))
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


@pytest.mark.parametrize("stage", ["train", "baseline", "generate"])
def test_out_of_memory(work, stage):
    """The answers' random numbers or the batch alone are more than there is."""
    change(work.path / "params.yaml", {"decoding.max_new_tokens": 2**31 - 1})
    endless = {"instruction": "續詩。", "input": "白日依山盡，", "output": "山" * 200_000}
    (work.path / "data/prepared/train.jsonl").write_text(json.dumps(endless) + "\n")

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))

    part = "train" if stage == "train" else "machine"
    refused(work, stage, "out of memory", f"{part}.batch_size", preexec_fn=limit)


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
    assert TOTALS["bad inputs"] >= 60
    assert ROOT.is_dir()
