"""Kill every stage at random moments; the same command again ends as if nothing had happened.

    make soak

A kill hits the whole process group of `dvc repro`, as a power cut would, at a seeded random
moment of one stage. Then `dvc checkout --force` and git must bring the last good outputs back, and
`dvc repro` must write the dvc.lock of an uninterrupted run, whatever locks and half-written files
the killed one left; and a training must go on from its checkpoint.
"""

import json
import os
import random
import re
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from clones import clone, outputs, stages_run
from safetensors.torch import load

KILLS = int(os.environ.get("KILLS", "30"))
STAGES = "check locate fetch prepare train baseline generate ask judge score".split()
TOTALS = {"kills": 0, "in a training": 0, "trainings resumed": 0, "in DVC's own writing": 0}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A clone, the lock of its uninterrupted run, and how long each stage took (seconds)."""
    copy = clone(tmp_path_factory.mktemp("kills"))
    copy.set(train__batch_size=4, train__epochs=8, machine__checkpoint_every=1, train__eval_every=4)
    copy.commit()
    process, began, running = copy.start("dvc", "repro"), {}, ""
    for line in process.stdout:
        if found := re.match(r"Running stage '(\w+)':", line):
            began[running := found[1]] = time.monotonic()
    assert process.wait() == 0 and running == "score"
    times = [*began.values(), time.monotonic()]
    copy.commit()
    yield copy, copy.lock(), {s: times[n + 1] - times[n] for n, s in enumerate(STAGES)}
    print("\n" + ", ".join(f"{count} {what}" for what, count in TOTALS.items()))


def forget(copy, stage):
    """Make DVC run a stage anew: a dependency counts as changed, and the run cache is gone."""
    lock = yaml.safe_load(copy.lock())
    lock["stages"][stage]["deps"][0]["md5"] = "0" * 32
    (copy.path / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), "utf-8")
    shutil.rmtree(copy.path / ".dvc/cache/runs", ignore_errors=True)


def checkpoint(copy):
    """The step of the one checkpoint that lies in the cache; 0 if there is none."""
    for file in Path(copy.path.parent, "cache/verse/checkpoints").glob("*/checkpoint.safetensors"):
        # Read at once: safe_open would open it twice, and it may be replaced in between.
        with suppress(FileNotFoundError):
            return json.loads(bytes(load(file.read_bytes())["rest"].tolist()))["step"]
    return 0


def await_checkpoint(copy):
    """Return when a checkpoint lies in the cache, or after two minutes without one."""
    deadline = time.monotonic() + 120
    while not checkpoint(copy) and time.monotonic() < deadline:
        time.sleep(0.01)


def killed(copy, stage, moment):
    """Start `dvc repro` and kill all of it so many seconds into the stage, if it takes as long."""
    process = copy.start("dvc", "repro", start_new_session=True)
    for line in process.stdout:
        if line.startswith(f"Running stage '{stage}'"):
            break
    if stage == "train" and moment > 1:  # past the imports, so that there is something to lose
        await_checkpoint(copy)
        moment %= 3
    time.sleep(moment)
    kill(copy, process)


def kill(copy, process):
    """Kill a DVC and all that it started; whether it was still running."""
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    mend(copy)
    return running


def mend(copy):
    """What docs/architecture.md says to do after a kill that hit DVC in its own writing."""
    locks, lock = copy.path / ".dvc/tmp/rwlock", copy.path / "dvc.lock"
    if locks.exists() and not locks.read_text("utf-8").endswith("}"):
        locks.unlink()
        TOTALS["in DVC's own writing"] += 1
    if lock.exists() and not lock.read_text("utf-8").endswith("\n"):
        if copy.run("git", "ls-files", "dvc.lock"):
            copy.run("git", "checkout", "--", "dvc.lock")
        else:
            lock.unlink()
        TOTALS["in DVC's own writing"] += 1
    runs = copy.path / ".dvc/cache/runs"
    if runs.exists():
        command = ("find", str(runs), "-type", "d", "-empty")
        TOTALS["in DVC's own writing"] += bool(copy.run(*command).strip())
        copy.run(*command, "-delete")


def rerun(copy, *command):
    """Run a DVC command; what it printed, and the steps of the checkpoints seen meanwhile."""
    steps, done = set(), threading.Event()

    def watch():
        while not done.wait(0.005):
            steps.add(checkpoint(copy))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return copy.dvc(*command), steps - {0}
    finally:
        done.set()
        watcher.join()


@pytest.mark.parametrize("number", range(KILLS))
def test_a_kill(first, number):
    copy, lock, seconds = first
    chance = random.Random(number)
    stage = STAGES[number % len(STAGES)]
    before = outputs(copy)
    forget(copy, stage)
    killed(copy, stage, chance.uniform(0, seconds[stage]))
    reached = checkpoint(copy)
    copy.dvc("checkout", "--force")  # past the curves of the killed training
    copy.run("git", "checkout", "--", "metrics")
    whole = {name: file for name, file in outputs(copy).items() if ".partial" not in name}
    assert whole == before, f"killed in {stage}: what was there comes back"
    output, steps = rerun(copy, "repro")
    assert copy.lock() == lock, f"killed in {stage}"
    assert stages_run(output) in ([], [stage]), "the other stages had nothing to do"
    assert not list(copy.path.rglob("*.partial")), "what the killed run left is gone"
    TOTALS["kills"] += 1
    TOTALS["in a training"] += stage == "train"
    if reached:
        assert min(steps) >= reached, f"killed after step {reached}, went on from {min(steps)}"
        TOTALS["trainings resumed"] += 1


@pytest.mark.parametrize("options", [(), ("--temp",), ("--queue",)])
def test_a_killed_experiment(first, options):
    """Its training goes on from the checkpoint, though a temporary one gets another folder."""
    copy, lock, _ = first
    command = ("exp", "run", *options, "-S", f"seed={100 + len(''.join(options))}")
    if "--queue" in options:
        copy.dvc(*command)
        process = copy.start("dvc", "queue", "start", start_new_session=True)
    else:
        process = copy.start("dvc", *command, start_new_session=True)
    await_checkpoint(copy)
    for worker in workers(copy):  # those of the queue are sessions of their own
        os.kill(worker, signal.SIGKILL)
    process.communicate()
    mend(copy)
    reached = checkpoint(copy)
    assert reached, "the kill came while it trained"
    if "--queue" in options:
        copy.dvc("queue", "remove", "--all")
        copy.dvc(*command)
        _, steps = rerun(copy, "queue", "start")
        while workers(copy):
            steps.add(checkpoint(copy))
            time.sleep(0.05)
        steps -= {0}
        assert "Success" in copy.dvc("queue", "status")
    else:
        output, steps = rerun(copy, *command)
        assert "train" in stages_run(output)
    assert min(steps) >= reached
    assert not checkpoint(copy), "nothing is left of it"
    copy.run("git", "checkout", "--", ".")
    copy.dvc("checkout")
    assert copy.lock() == lock
    TOTALS["kills"] += 1
    TOTALS["in a training"] += 1
    TOTALS["trainings resumed"] += 1


def workers(copy):
    """The processes that work in the clone's folders of temporary experiments, or on its queue."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_text().replace("\0", " ")
            place = (process / "cwd").readlink()
            if place.is_relative_to(copy.path) and ("dvc" in command or "stages." in command):
                found.append(int(process.name))
    return found


def test_a_kill_before_the_first_lock(tmp_path):
    """In the midst of a first run, over and over until the pipeline has got through."""
    copy = clone(tmp_path)
    chance, kills = random.Random(0), 0
    for _ in range(4):
        process = copy.start("dvc", "repro", start_new_session=True)
        time.sleep(chance.uniform(1, 12))
        kills += kill(copy, process)
    assert kills, "it was through before any kill"
    copy.dvc("repro")
    again = clone(tmp_path / "whole")
    again.dvc("repro")
    assert copy.lock() == again.lock()
    TOTALS["kills"] += kills
