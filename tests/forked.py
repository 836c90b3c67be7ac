"""Stages run by the thousand: a process that has imported all forks for each of them.

A forked stage is what `python -m stages.x` runs, with a working directory, an environment and
standard streams of its own; only the imports, which take seconds, are done once. tests/faults.c
makes changes of the file system fail there.
"""

import ctypes
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
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


@dataclass(frozen=True)
class Ended:
    """How a stage ended; `status` is None if it had to be stopped, below 0 after a signal."""

    stage: str
    status: int | None
    out: str
    err: str


class Stages:
    """The process that forks; one for each module of tests."""

    def __init__(self, folder: Path):
        self.folder, env = folder, {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.shim = folder / "faults.so"
        if shutil.which("gcc"):
            source = ROOT / "tests/faults.c"
            command = ["gcc", "-shared", "-fPIC", "-o", self.shim, source, "-ldl"]
            subprocess.run(command, check=True)
            env["LD_PRELOAD"] = str(self.shim)
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=os.environ | env | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.number = 0

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request, default=str) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, stage: str, cwd: Path, *, env=(), limits=(), fault=None):
        """Start a stage. fault: keywords of `fault_arm`; limits: of resource, by their names."""
        self.number += 1
        streams = [self.folder / f"{self.number}.{name}" for name in ("out", "err")]
        request = {
            "command": STAGES[stage],
            "cwd": cwd,
            "env": dict(env),
            "limits": dict(limits),
            "fault": fault,
            "streams": streams,
        }
        return stage, self.ask(op="start", **request), streams

    def wait(self, started, seconds: float = 120) -> Ended:
        stage, pid, streams = started
        status = self.ask(op="wait", pid=pid, seconds=seconds)
        texts = [file.read_text("utf-8", "replace") for file in streams]
        for file in streams:
            file.unlink()
        return Ended(stage, status, *texts)

    def run(self, stage: str, cwd: Path, *, seconds: float = 120, **options) -> Ended:
        return self.wait(self.start(stage, cwd, **options), seconds)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


PLACES = ("data", "models/adapter", "metrics")


def workplace(folder: Path, stages: Stages, **params) -> Path:
    """A folder with small poems and a tiny model, in which all stages have run."""
    from clones import SMALL, change
    from tiny_models import build

    for name, first in (("poems", 0), ("others", 100)):
        (folder / name).mkdir(parents=True)
        for part, count in (("train", 100), ("test", 6)):
            poems = json.loads((ROOT / f"data/embedded/{part}.json").read_text("utf-8"))
            text = json.dumps(poems[first : first + count], ensure_ascii=False)
            (folder / name / f"{part}.json").write_text(text, "utf-8")
    shutil.copy(ROOT / "params.yaml", folder)
    build("llama, tied, grouped queries", folder / "base")
    tiny = {"model.name": "base", "model.dtype": "float32", "machine.threads": 1}
    change(folder / "params.yaml", SMALL | tiny | params)
    for stage in STAGES:
        ended = stages.run(stage, folder, env=cache(folder))
        assert ended.status == 0, ended
    return folder


def cache(folder: Path) -> dict[str, str]:
    """The environment of a stage whose cache lies beside its folder."""
    return {"XDG_CACHE_HOME": str(folder.parent / "cache")}


def outputs(folder: Path) -> dict[str, bytes]:
    """What stages have written, but for clock times: files and their bytes, links and targets."""
    found = {}
    for file in (file for place in PLACES for file in sorted((folder / place).rglob("*"))):
        if file.is_symlink():
            found[str(file.relative_to(folder))] = str(file.readlink()).encode()
        elif file.is_file() and file.name != "speed.json":
            found[str(file.relative_to(folder))] = file.read_bytes()
    return {name: content for name, content in found.items() if ".partial" not in name}


def is_one_line(ended: Ended, *words: str) -> bool:
    """Whether a stage ended in one line that names cause, place and remedy, and these words."""
    name = STAGES[ended.stage][0].removeprefix("stages.")
    line = ended.err
    return (
        ended.status in (1, 2)
        and re.fullmatch(rf"{name}: [^\n]{{10,700}}: [^\n]{{8,300}}\n", line) is not None
        and all(word in line for word in words)
    )


def serve():
    import pandas  # noqa: F401
    import peft  # noqa: F401

    import verse.chat.llm_judge
    import verse.generation.answers
    import verse.model.opening
    import verse.poems.sources
    import verse.scoring.report
    import verse.scoring.scoring
    import verse.training.loop

    _ = verse
    import bitsandbytes  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        reply = start(request) if request["op"] == "start" else wait(**request)
        print(json.dumps(reply), file=replies, flush=True)


def start(request) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            status = work(**request)
        except BaseException:
            traceback.print_exc()
            status = 1
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    return pid


def wait(op, pid, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def work(op, command, cwd, env, limits, fault, streams) -> int:
    os.setsid()
    os.chdir(cwd)
    os.environ.update(env)
    for number, file in enumerate(streams, 1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    module, *arguments = command
    sys.argv = [module, *arguments]
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if fault:
        ctypes.CDLL(None).fault_arm(
            str(cwd).encode(),
            fault["cache"].encode(),
            fault["log"].encode(),
            *(fault.get(name, 0) for name in ("at", "error", "lasting", "pause", "seed")),
        )
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code or 0
    return 0


if __name__ == "__main__":
    serve()
