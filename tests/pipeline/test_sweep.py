"""recipes/machines/sweep.sh: machines that share nothing but git and a DVC remote part a sweep.

The pipeline is one of a single stage, so that DVC's own commands are all that takes time.
"""

import os
import re
import shutil
import signal
import time

import pytest
from clones import ROOT, Clone, environment, sign

NAMES = ["n1", "n2", "n3"]
PIPELINE = """\
stages:
  double:
    cmd: python double.py
    deps: [double.py]
    params: [number]
    outs: [doubled.txt]
"""
DOUBLE = """\
import pathlib, yaml
number = yaml.safe_load(pathlib.Path("params.yaml").read_text())["number"]
while pathlib.Path({slow!r}).exists():
    pass
pathlib.Path("doubled.txt").write_text(str(int(number) * 2))
"""


@pytest.fixture
def shared(tmp_path):
    """A bare repository with the pipeline, the list and the sweep, and its DVC remote."""
    first = Clone(tmp_path / "first", environment(tmp_path))
    first.path.mkdir()
    for name, text in {
        "params.yaml": "number: 0\n",
        "dvc.yaml": PIPELINE,
        "double.py": DOUBLE.format(slow=str(tmp_path / "slow")),
        "list": "# all that is to be done\n\n" + "".join(f"{n} number={n[1:]}\n" for n in NAMES),
    }.items():
        (first.path / name).write_text(text)
    shutil.copy(ROOT / "recipes/machines/sweep.sh", first.path)
    first.run("git", "init", "--quiet", "--initial-branch=main")
    sign(first)
    first.dvc("init", "--quiet")
    first.dvc("remote", "add", "--default", "shelf", tmp_path / "shelf")
    first.commit()
    first.run("git", "clone", "--quiet", "--bare", first.path, tmp_path / "shared.git")
    return tmp_path / "shared.git"


def machine(shared, name):
    folder = shared.parent / name
    folder.mkdir()
    copy = Clone(folder / "repository", environment(folder))
    Clone(folder, copy.env).run("git", "clone", "--quiet", shared, copy.path)
    sign(copy)
    return copy


def sweep(copy, *words, **options):
    return copy.start("./sweep.sh", "list", copy.path.parent.name, *words, **options)


def taken(output):
    return re.findall(r"^sweep: \S+ takes (\S+)$", output, re.MULTILINE)


def results(copy):
    return sorted(set(copy.dvc("exp", "list", "origin", "--name-only").split()) & {*NAMES})


def test_machines_part_a_sweep_and_no_experiment_runs_twice(shared):
    running = [sweep(machine(shared, name)) for name in ("one", "two")]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)
    assert sorted(name for output in outputs for name in taken(output)) == NAMES
    looking = machine(shared, "looking")
    assert results(looking) == NAMES
    looking.dvc("exp", "pull", "origin", "n3")
    looking.dvc("exp", "apply", "n3")
    assert (looking.path / "doubled.txt").read_text() == "6"
    assert taken(sweep(looking).communicate()[0]) == [], "all is done"


def killed_within(copy):
    """Kill a machine within its first experiment; the ref that holds its claim."""
    slow = copy.path.parents[1] / "slow"
    slow.touch()
    process = sweep(copy, start_new_session=True)
    while "/n1" not in (claims := copy.run("git", "ls-remote", "origin", "refs/sweep/*")):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    slow.unlink()
    return claims.split()[1]


def test_what_a_killed_machine_had_is_taken_by_others_once_it_is_freed(shared):
    killed, other = machine(shared, "killed"), machine(shared, "other")
    claim = killed_within(killed)
    assert taken(sweep(other).communicate()[0]) == NAMES[1:] and results(other) == NAMES[1:]
    other.run("git", "push", "origin", "--delete", claim)
    assert taken(sweep(other).communicate()[0]) == ["n1"] and results(other) == NAMES
    assert taken(sweep(killed).communicate()[0]) == [], "another has done it"


def test_a_machine_that_starts_again_goes_on_with_what_it_had(shared):
    copy = machine(shared, "one")
    (copy.path / "list").write_text("n1 number=1\n")
    killed_within(copy)
    assert taken(sweep(copy).communicate()[0]) == ["n1"] and results(copy) == ["n1"]
    assert taken(sweep(copy).communicate()[0]) == []


def test_an_experiment_that_fails_holds_up_no_other(shared):
    copy = machine(shared, "one")
    (copy.path / "list").write_text("bad number=word\nn1 number=1\n")
    process = sweep(copy)
    output = process.communicate()[0]
    assert process.returncode == 1 and results(copy) == ["n1"]
    assert output.splitlines()[-1].endswith("when this machine runs this again: bad")


def test_without_dvc_nothing_is_claimed(shared):
    copy = machine(shared, "one")
    process = sweep(copy, env={"PATH": "/usr/bin:/bin"})
    assert "source .venv/bin/activate" in process.communicate()[0] and process.returncode == 1
    assert copy.run("git", "ls-remote", "origin", "refs/sweep/*") == ""


def test_a_remote_that_takes_no_claims_is_told(shared):
    copy = machine(shared, "one")
    shutil.rmtree(shared)
    process = sweep(copy)
    assert "sweep: origin does not take refs/sweep/" in process.communicate()[0]
    assert process.returncode == 1
