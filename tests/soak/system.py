"""What a system does to a program beside errors: kills in training, stops, signals, clocks, limits.

    make soak

A stage that is killed is run again, and must write the bytes of an undisturbed run; a training must
be seen to go on from its checkpoint.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from chat_server import Server, completion, poem_or_mark
from clones import change, clone
from forked import ROOT, STAGES, cache, is_one_line, outputs
from safetensors.torch import load

from verse.files import digest

KILLS = int(os.environ.get("KILLS", "30"))
EACH = 6  # kills of each stage but training
TOTALS = {"kills": 0, "trainings resumed": 0, "signals": 0, "stops": 0, "clocks": 0, "limits": 0}


def fresh(whole, folder, changes):
    shutil.copytree(whole, folder / "work", symlinks=True)
    change(folder / "work" / "params.yaml", changes)
    return folder / "work"


def steps(work):
    """The step of the training's checkpoint; 0 without one."""
    for file in (work.parent / "cache").rglob("checkpoint.safetensors"):
        with suppress(FileNotFoundError):
            return json.loads(bytes(load(file.read_bytes())["rest"].tolist()))["step"]
    return 0


TRAINING = {"seed": 11, "train.epochs": 2, "train.batch_size": 5, "machine.checkpoint_every": 1}
"""Thirty-two poems in batches of five: the last of each epoch is a smaller one."""


@pytest.fixture(scope="module")
def trained(stages, whole, tmp_path_factory):
    """What an undisturbed training writes, how long it takes, and after which time it saves."""
    work = fresh(whole, tmp_path_factory.mktemp("trained"), TRAINING)
    began, first = time.monotonic(), 0.0
    started = stages.start("train", work, env=cache(work))
    while not first and time.monotonic() - began < 60:
        first = (time.monotonic() - began) * bool(steps(work))
        time.sleep(0.002)
    assert stages.wait(started).status == 0 and first
    return outputs(work), time.monotonic() - began, first


@pytest.mark.parametrize("number", range(KILLS))
def test_a_kill_in_training(stages, whole, trained, tmp_path, number):
    """Again and again in one training, each at a random time, until it gets through."""
    expected, seconds, first = trained
    chance, work = random.Random(number), fresh(whole, tmp_path, TRAINING)
    reached = 0
    for _ in range(3):
        started = stages.start("train", work, env=cache(work))
        if number % 5:  # once there is more to lose than before
            late = time.monotonic() + 3 * seconds
            while steps(work) <= reached and time.monotonic() < late:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, (seconds - first) / 3))
        else:
            time.sleep(chance.uniform(0, seconds))
        with suppress(ProcessLookupError):
            os.kill(started[1], signal.SIGKILL)
        ended = stages.wait(started)
        assert ended.status in (-9, 0), ended
        if outputs(work) == expected:  # through before the kill: its checkpoint is gone
            reached = 0
            break
        TOTALS["kills"] += 1
        assert steps(work) >= reached, "no step is lost that was saved"
        reached = steps(work)
    seen, done = set(), threading.Event()

    def watch():
        while not done.wait(0.002):
            seen.add(steps(work))

    watcher = threading.Thread(target=watch)
    watcher.start()
    ended = stages.run("train", work, env=cache(work))
    done.set()
    watcher.join()
    assert ended.status == 0 and outputs(work) == expected, ended
    if reached:
        assert min(seen - {0}) >= reached, f"killed after step {reached}, went on from {seen}"
        TOTALS["trainings resumed"] += 1


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "train"])
def test_a_kill_in_another_stage(stages, whole, tmp_path, stage):
    """At random times, again and again in one folder: the old results or the new, never a mix."""
    chance, changes = random.Random(stage), {"seed": 11, "data.source": "others"}
    with Server(poem_or_mark) as server:
        chat = {"base_url": server.base_url, "model": "m"}
        changes |= {"contestants": [chat | {"name": "kimi"}], "judge": chat | {"poems": 2}}
        alone = fresh(whole, tmp_path / "alone", changes)
        before, began = outputs(alone), time.monotonic()
        assert stages.run(stage, alone, env=cache(alone)).status == 0
        seconds, after = time.monotonic() - began, outputs(alone)
        work = fresh(whole, tmp_path, changes)
        for _ in range(EACH):
            started = stages.start(stage, work, env=cache(work))
            time.sleep(chance.uniform(0, seconds))
            with suppress(ProcessLookupError):
                os.kill(started[1], signal.SIGKILL)
            ended, found = stages.wait(started), outputs(work)
            assert ended.status in (-9, 0), ended
            mixed = [n for n in found if found[n] not in (before.get(n), after.get(n))]
            assert not mixed, mixed
            TOTALS["kills"] += ended.status == -9
        assert stages.run(stage, work, env=cache(work)).status == 0
    assert outputs(work) == after and not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    "name", ["SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT", "SIGUSR1", "SIGPIPE", "SIGXCPU", "SIGALRM"]
)
@pytest.mark.parametrize("stage", ["train", "generate", "score"])
def test_a_signal(stages, whole, tmp_path, stage, name):
    """A stage ends by it, in a line or by the signal, or takes no notice; then it goes on."""
    expected = fresh(whole, tmp_path / "alone", TRAINING)
    assert stages.run(stage, expected, env=cache(expected)).status == 0
    work = fresh(whole, tmp_path, TRAINING)
    before = outputs(work)
    started = stages.start(stage, work, env=cache(work))
    time.sleep(random.Random(name + stage).uniform(0.02, 0.5))
    with suppress(ProcessLookupError):
        os.kill(started[1], getattr(signal, name))
    ended = stages.wait(started)
    assert "Traceback" not in ended.err, ended
    assert ended.status in (0, 130, -getattr(signal, name)), ended
    if ended.status:
        assert outputs(work) == before
        assert stages.run(stage, work, env=cache(work)).status == 0
    assert outputs(work) == outputs(expected)
    TOTALS["signals"] += 1


@pytest.mark.parametrize("number", range(10))
def test_a_stop(stages, whole, trained, tmp_path, number):
    """SIGSTOP, as by Ctrl-Z or a laptop that sleeps, and SIGCONT, several times."""
    chance, work = random.Random(number), fresh(whole, tmp_path, TRAINING)
    started = stages.start("train", work, env=cache(work))
    for _ in range(3):
        time.sleep(chance.uniform(0, trained[1] / 3))
        with suppress(ProcessLookupError):
            os.kill(started[1], signal.SIGSTOP)
            time.sleep(chance.uniform(0.05, 0.5))
            os.kill(started[1], signal.SIGCONT)
    assert stages.wait(started).status == 0 and outputs(work) == trained[0]
    TOTALS["stops"] += 1


@pytest.mark.parametrize("number", range(5))
def test_a_stop_while_a_server_answers(stages, whole, tmp_path, number):
    """Longer than the timeout: what was on its way is asked again, and nothing is lost."""

    def answer(body):
        time.sleep(0.1)
        return 200, completion("欲窮千里目，更上一層樓。")

    with Server(answer) as server:
        entry = {"name": "kimi", "base_url": server.base_url, "model": "m"}
        asked = {"contestants": [entry], "machine.timeout": 1, "machine.max_concurrent_requests": 1}
        work = fresh(whole, tmp_path, asked)
        started = stages.start("ask", work, env=cache(work))
        while len(server.asked) < 1 + number:
            time.sleep(0.01)
        os.kill(started[1], signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(started[1], signal.SIGCONT)
        ended = stages.wait(started)
    rows = (work / "data/answers/kimi/answers.jsonl").read_text("utf-8").splitlines()
    assert ended.status == 0 and {json.loads(row)["unanswered"] for row in rows} == {None}, ended
    TOTALS["stops"] += 1


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) { const char *s = getenv("CLOCK"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, t);
    if (id == CLOCK_REALTIME) t->tv_sec += shift();
    return result;
}
time_t time(time_t *to) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (to) *to = t.tv_sec;
    return t.tv_sec;
}
int gettimeofday(struct timeval *to, void *zone) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    to->tv_sec = t.tv_sec;
    to->tv_usec = t.tv_nsec / 1000;
    return 0;
}
"""
YEAR = 365 * 24 * 3600


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc to build a false clock")
@pytest.mark.parametrize("years", [-56, -20, 13, 80])
def test_a_false_clock(stages, whole, trained, tmp_path, years):
    """1970, 2006, after 2038, another century: no result has a date in it."""
    (tmp_path / "clock.c").write_text(CLOCK)
    shim = tmp_path / "clock.so"
    build = ["gcc", "-shared", "-fPIC", "-o", shim, tmp_path / "clock.c", "-ldl"]
    subprocess.run(build, check=True)
    work = fresh(whole, tmp_path, TRAINING)
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **cache(work)}
    env |= {"LD_PRELOAD": str(shim), "CLOCK": str(years * YEAR)}
    said = subprocess.run(
        [sys.executable, "-c", "import datetime; print(datetime.date.today().year)"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert abs(int(said.stdout) - (2026 + years)) <= 1, "the clock is false"
    done = subprocess.run(
        [sys.executable, "-m", "stages.train"], cwd=work, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert outputs(work) == trained[0]
    TOTALS["clocks"] += 1


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("limit", "value"), [("RLIMIT_NOFILE", 12), ("RLIMIT_AS", 2**28), ("RLIMIT_CPU", 0)]
)
def test_a_limit(stages, whole, tmp_path, stage, limit, value):
    """Too few open files, too little address space, no time: a line, or the signal of the limit."""
    work = fresh(whole, tmp_path, {"seed": 5})
    before = outputs(work)
    ended = stages.run(stage, work, env=cache(work), limits={limit: value})
    if ended.status:
        by_signal = ended.status in (-signal.SIGXCPU, -signal.SIGKILL) and limit == "RLIMIT_CPU"
        assert by_signal or is_one_line(ended), ended
        assert outputs(work) == before
    assert "Traceback" not in ended.err, ended
    assert stages.run(stage, work, env=cache(work)).status == 0
    TOTALS["limits"] += 1


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs util-linux: setpriv and prlimit")
@pytest.mark.parametrize("most", [1, 3, 4, 8])
@pytest.mark.parametrize("stage", ["train", "baseline", "ask", "score"])
def test_few_processes(whole, tmp_path, stage, most):
    """RLIMIT_NPROC, which no administrator is held to: as one who is another user but for files."""
    with Server(poem_or_mark) as server:
        entry = {"name": "kimi", "base_url": server.base_url, "model": "m"}
        work = fresh(whole, tmp_path, TRAINING | {"contestants": [entry]})
        before = outputs(work)
        ended = held_to_processes(work, stage, most)
    if ended.returncode:
        assert outputs(work) == before
        *_, line = ended.stderr.splitlines()  # OpenBLAS, tqdm and what is of Rust speak first
        name = STAGES[stage][0].removeprefix("stages.")
        assert line.startswith(f"{name}: ") and "ulimit -u" in line, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    TOTALS["limits"] += 1


def held_to_processes(work, stage, most):
    """A stage that may have so many processes and threads, and how it ended."""
    held = ["setpriv", "--bounding-set=-sys_resource,-sys_admin"]
    held += ["--ruid", str(random.randrange(20_000, 60_000))] if os.geteuid() == 0 else []
    return subprocess.run(
        [*held, "prlimit", f"--nproc={most}", sys.executable, "-m", *STAGES[stage]],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RUST_BACKTRACE": "0"} | cache(work),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_commit_of_dvcs_that_is_killed(tmp_path):
    """`dvc commit` after an edit, killed at random times: the cache and the lock are whole."""
    copy, chance = clone(tmp_path), random.Random(0)
    copy.dvc("repro")
    copy.commit()
    lock, before = copy.lock(), digest(copy.path / "data/generated/tuned.jsonl")
    for _ in range(4):
        with (copy.path / "stages/score.py").open("a") as file:
            file.write("\n# a remark\n")
        process = copy.start("dvc", "commit", "--force", start_new_session=True)
        time.sleep(chance.uniform(0.5, 4))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        TOTALS["kills"] += 1
    locks = copy.path / ".dvc/tmp/rwlock"
    if locks.exists() and not locks.read_text("utf-8").endswith("}"):
        locks.unlink()  # docs/architecture.md says so
    copy.run("git", "checkout", "--", "stages/score.py", "dvc.lock")
    copy.dvc("repro")
    assert copy.lock() == lock and digest(copy.path / "data/generated/tuned.jsonl") == before


def test_these_are_many():
    """The last test: what has been tried is no less than was promised."""
    assert TOTALS["kills"] >= KILLS and TOTALS["trainings resumed"] >= KILLS // 2, TOTALS
    assert sum(TOTALS.values()) >= 100, TOTALS
