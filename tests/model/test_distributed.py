"""Work shared by processes: the same curves and answers as one, and one line for a failure."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_models import INSTRUCTION, POEMS, build, byte_pairs, machine, training

from verse.errors import UserError
from verse.model import distributed

ROOT = Path(__file__).parents[2]
PATHS = f"{ROOT}:{ROOT / 'tests'}"


def run(folder, *command):
    """A stage or a script in `folder`, as a user runs it."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def project(tmp_path):
    """A folder with a tiny model, the poems and params.yaml, for the stages to run in."""
    settings = build("llama", tmp_path / "base", byte_pairs())
    rows = [
        {"instruction": INSTRUCTION, "input": couplet, "output": rest} for couplet, rest in POEMS
    ]
    for part in ("train", "validation", "test"):
        file = tmp_path / "data" / "prepared" / f"{part}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "metrics").mkdir()
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    params["model"] = settings.model_dump() | {"name": "base"}
    # Seven poems, three a step: the last step of an epoch has one, and process 1 has none.
    params["train"] = training(batch_size=3).model_dump()
    params["machine"] = machine().model_dump()
    params["decoding"]["max_new_tokens"] = 8
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return tmp_path


def change(project, **values):
    """Change keys of the `machine` section."""
    file = project / "params.yaml"
    params = yaml.safe_load(file.read_text("utf-8"))
    params["machine"] |= values
    file.write_text(yaml.safe_dump(params), encoding="utf-8")


def curve(project, part):
    lines = (project / "metrics" / "plots" / f"{part}_loss.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]


def test_two_processes_do_the_same_as_one(project):
    results = []
    for processes in (1, 2):
        change(project, processes=processes)
        done = run(project, "-m", "stages.train")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("validation perplexity") == 1  # process 0 alone
        results.append([curve(project, "train"), curve(project, "validation")])
    for one, two in zip(*results, strict=True):
        assert one == pytest.approx(two, abs=2e-4)
    assert results[0][0][-1] < results[0][0][0]

    texts = []
    for processes in (1, 2):
        change(project, processes=processes)
        done = run(project, "-m", "stages.generate", "tuned")
        assert done.returncode == 0, done.stderr
        texts.append((project / "data" / "generated" / "results.txt").read_bytes())
        (project / "data" / "generated" / "results.txt").unlink()
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) >= len(POEMS)


def test_a_fault_that_all_processes_have_is_told_once(project):
    change(project, processes=2)
    (project / "base" / "model.safetensors").unlink()
    done = run(project, "-m", "stages.train")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == "train: model.name 'base': has no weights (*.safetensors): add them"


SCRIPT = """
import os, signal, sys, time
from verse.model import distributed
from verse.errors import ParameterError, run
from tiny_models import machine

def work():
    if distributed.rank() == 1:
        FAIL
    time.sleep(600)  # the launcher ends it

run(lambda: distributed.run(work, machine(processes=3)))
"""


@pytest.mark.parametrize(
    ("fail", "status", "said"),
    [
        ("raise ParameterError('no such key')", 2, "no such key"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, "process 1 of 3 was killed by SIGKILL"),
        ("1 / 0", 1, "process 1 of 3 failed, see above"),
    ],
)
def test_the_failure_of_one_ends_all(tmp_path, fail, status, said):
    (tmp_path / "work.py").write_text(SCRIPT.replace("FAIL", fail))
    done = run(tmp_path, "work.py")
    assert done.returncode == status
    assert done.stderr.splitlines()[-1] == f"work: {said}"
    assert ("ZeroDivisionError" in done.stderr) == (fail == "1 / 0")
    assert len(done.stderr.splitlines()) == 1 or fail == "1 / 0"


def test_an_interrupt_ends_all(tmp_path):
    script = SCRIPT.replace("FAIL", "print('ready', flush=True)")
    (tmp_path / "work.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, "work.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PATHS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "stopped; run the same command again" in process.communicate(timeout=60)[1]
    assert process.returncode == 130


def test_process_count(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert distributed.process_count(machine(processes="auto", device="auto")) == 1
    assert distributed.process_count(machine(processes=2, device="auto")) == 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert distributed.process_count(machine(processes="auto", device="auto")) == 4
    assert distributed.process_count(machine(processes="auto")) == 1
    assert distributed.process_count(machine(processes=8)) == 8
    with pytest.raises(UserError, match="PyTorch sees 4 GPUs"):
        distributed.process_count(machine(processes=5, device="cuda"))
