"""A fault at every change of the file system of every stage, and trainings at the same time.

    make soak

Each stage has results of an earlier run and other parameters. A change fails there or kills the
process: the stage ends in one line, or well; the earlier results stand; and the same stage again
writes what an undisturbed one writes.
"""

import errno
import os
import random
import shutil
import subprocess
import sys

import pytest
from chat_server import Server, poem_or_mark
from clones import change
from forked import ROOT, STAGES, cache, is_one_line, outputs

ERRORS = [  # and whether all that takes room fails from then on
    (errno.EIO, False),
    (errno.ENOSPC, True),
    (errno.EACCES, False),
    (errno.EDQUOT, True),
    (errno.EFBIG, True),
]
MOST = {
    "train": 12,
    "baseline": 19,
    "generate": 19,
    "ask": 19,
    "judge": 19,
}  # of each kind, spread over the changes
pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc to build tests/faults.c")
TOTALS = {"kills": 0, "errors of the system": 0, "standard streams": 0, "runs at the same time": 0}


@pytest.fixture(scope="module")
def changes():
    """The parameters that give each stage something to do; chat models answer here."""

    with Server(poem_or_mark) as server:
        chat = {"base_url": server.base_url, "model": "m"}
        yield {
            "fetch": {"data.source": "others"},
            "prepare": {"seed": 7},
            "train": {"seed": 7},
            "baseline": {"seed": 7},
            "generate": {"seed": 7},
            # A question at a time, so that changes of the file system come in one order.
            "ask": {"contestants": [chat | {"name": "kimi"}], "machine.max_concurrent_requests": 1},
            "judge": {"judge": chat | {"poems": 2}, "machine.max_concurrent_requests": 1},
            "score": {},  # other answers, see `fresh`
        }


def fresh(whole, folder, changes):
    """A copy of it with other parameters; without any, the adapter's answers are another's."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(whole, folder / "work", symlinks=True)
    change(folder / "work" / "params.yaml", changes)
    if not changes:
        answers = folder / "work" / "data" / "generated"
        shutil.copy(answers / "base.jsonl", answers / "tuned.jsonl")
    return folder / "work"


def faulty(stages, stage, work, **fault):
    """Run a stage with a fault; how it ended, and its changes of the file system."""
    log = work.parent / "log"
    fault |= {"cache": str(work.parent / "cache"), "log": str(log)}
    ended = stages.run(stage, work, env=cache(work), fault=fault)
    return ended, log.read_text("utf-8").splitlines()


@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_at_every_change(stages, whole, changes, tmp_path, stage):
    work = fresh(whole, tmp_path / "intact", changes[stage])
    before = outputs(work)
    ended, all_changes = faulty(stages, stage, work)
    assert ended.status == 0, ended
    after = outputs(work)
    assert after != before
    moments = range(1, len(all_changes) + 1)
    moments = moments[:: -(-len(moments) // MOST.get(stage, 1000))]

    short = []
    for number, moment in enumerate(moments):
        for error, lasting in ((0, False), ERRORS[number % len(ERRORS)]):
            work = fresh(whole, tmp_path / "fault", changes[stage])
            ended, seen = faulty(stages, stage, work, at=moment, error=error, lasting=int(lasting))
            what = f"{errno.errorcode.get(error, 'kill')} at {moment}: {seen[moment - 1 :][:1]}"
            found = outputs(work)
            if error == 0:
                TOTALS["kills"] += 1
                good = ended.status == -9 and not torn(work, found, before, after)
            else:
                TOTALS["errors of the system"] += 1
                refused = is_one_line(ended) and not torn(work, found, before, after)
                good = refused or (ended.status == 0 and found == after)
            if not good:
                short.append(f"{what}: {ended}, {differing(found, before, after)}")
                continue
            again = stages.run(stage, work, env=cache(work))
            left = [str(p) for p in work.parent.rglob("*") if ".partial" in p.name]
            if again.status != 0 or outputs(work) != after or left:
                short.append(f"{what}: again {again}, {left}")
    assert not short, "\n".join(short)


def torn(work, found, before, after):
    """Files that are neither the earlier nor the new ones, nor set aside in full."""
    aside = {p.name for p in work.rglob(".*.old.partial")}
    return [
        name
        for name in before.keys() | after.keys()
        if found.get(name) not in (before.get(name), after.get(name))
        and not any(f".{part}.old.partial" in aside for part in name.split("/"))
    ]


def differing(found, before, after):
    return sorted(
        f"{name}: {'new' if found.get(name) == after.get(name) else 'neither'}"
        for name in before.keys() | found.keys()
        if found.get(name) != before.get(name)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_limit_of_file_sizes(stages, whole, changes, tmp_path, stage):
    """The system's own: libraries in C and Rust meet it where they write."""
    work = fresh(whole, tmp_path, changes[stage])
    before = outputs(work)
    ended = stages.run(stage, work, env=cache(work), limits={"RLIMIT_FSIZE": 300})
    asks = stage in ("ask", "judge")  # into a file of SQLite, which tells no more
    what = "disk I/O error" if asks else "file too large"
    assert is_one_line(ended, what, "ulimit -f"), ended
    assert outputs(work) == before
    assert stages.run(stage, work, env=cache(work)).status == 0
    TOTALS["errors of the system"] += 1


STREAMS = {
    "an ASCII terminal": {"env": {"PYTHONIOENCODING": "ascii"}},
    "a locale of ASCII": {
        "env": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    },
    "a closed stdout": {"redirection": ">&-"},
    "all closed": {"redirection": ">&- 2>&- <&-"},
    "a full stdout": {"redirection": ">/dev/full"},
    "a reader that left": {"redirection": "| true"},
}


@pytest.mark.parametrize("what", STREAMS)
def test_standard_streams_have_no_say(stages, whole, tmp_path, what):
    """Stages as they are started, from a folder and with files of Chinese names."""
    values = STREAMS[what]
    place = tmp_path / "詩"
    shutil.copytree(whole, place, symlinks=True)
    (place / "poems").rename(place / "唐詩")
    (place / "base").rename(place / "模型")
    changes = {"data.source": "唐詩", "model.name": "模型", "seed": 9}
    change(place / "params.yaml", changes)
    reference = fresh(place, tmp_path / "undisturbed", changes)
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **cache(reference)}
    for stage, command in STAGES.items():
        assert stages.run(stage, reference, env=cache(reference)).status == 0
        words = f"{sys.executable} -m {' '.join(command)} {values.get('redirection', '')}"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", words],
            cwd=place,
            env=env | values.get("env", {}),
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done
        TOTALS["standard streams"] += 1
    assert outputs(place) == outputs(reference)


@pytest.mark.parametrize("number", range(12))
def test_trainings_at_the_same_time(stages, whole, tmp_path, number):
    """Three with one cache, in random interleavings; in every third round one is killed."""
    chance = random.Random(number)
    changes = {"seed": 1000 + number, "machine.checkpoint_every": chance.choice([1, 2])}
    alone = fresh(whole, tmp_path / "alone", changes)
    assert stages.run("train", alone, env=cache(alone)).status == 0
    places = [fresh(whole, tmp_path / str(n), changes) for n in range(3)]
    fault = {"cache": str(tmp_path / "cache"), "log": str(tmp_path / "log"), "pause": 20_000}
    started = []
    for n, place in enumerate(places):
        moment = chance.randrange(1, 100) if n == 0 and number % 3 == 0 else 0
        own = {"seed": number * 10 + n, "at": moment}
        env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        started.append(stages.start("train", place, env=env, fault=fault | own))
    for n, (one, place) in enumerate(zip(started, places, strict=True)):
        ended = stages.wait(one, 300)
        if ended.status == -9 and n == 0 and number % 3 == 0:
            ended = stages.run("train", place, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
        assert (ended.status, ended.err) == (0, ""), ended
        assert outputs(place) == outputs(alone)
        TOTALS["runs at the same time"] += 1
    assert not list((tmp_path / "cache").rglob("*.safetensors")), "nothing is left of them"


def test_these_are_many():
    """The last test: what has been tried is no less than was promised."""
    assert sum(TOTALS.values()) >= 150, TOTALS
