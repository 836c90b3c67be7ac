"""recipes/machines/sweep.sh: clones that share nothing but git and a DVC remote part a sweep."""

import re

import pytest
from clones import clone, clone_again

SWEEP = "recipes/machines/sweep.sh"
LIST = "experiments.txt"
NAMES = [f"b{count}" for count in range(101, 107)]


@pytest.fixture
def shared(tmp_path):
    """A clone in which all has run, and the bare repository and DVC remote it has pushed to."""
    first = clone(tmp_path / "first")
    (first.path / LIST).write_text(
        "# bootstrap alone: of the stages, score runs\n\n"
        + "".join(f"{name} score.bootstrap={name[1:]}\n" for name in NAMES)
    )
    first.dvc("remote", "add", "--default", "shelf", tmp_path / "shelf")
    first.dvc("repro")
    first.commit()
    first.dvc("push", "--run-cache")
    first.run("git", "clone", "--quiet", "--bare", first.path, tmp_path / "shared.git")
    first.run("git", "remote", "add", "origin", tmp_path / "shared.git")
    return first


def machine(first, folder):
    copy = clone_again(first, folder)
    copy.run("git", "remote", "set-url", "origin", folder.parent / "shared.git")
    copy.run("git", "config", "user.name", "Du Fu")
    copy.run("git", "config", "user.email", "du.fu@example.org")
    return copy


def taken(output):
    return re.findall(r"^sweep: \S+ takes (\S+)$", output, re.MULTILINE)


def refs(copy):
    return copy.run("git", "ls-remote", "origin", "refs/sweep/*")


def test_machines_part_a_sweep_and_none_runs_twice(shared, tmp_path):
    copies = [machine(shared, tmp_path / name) for name in ("one", "two", "three")]
    running = [copy.start(SWEEP, LIST, f"machine-{n}") for n, copy in enumerate(copies)]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(outputs)
    assert sorted(name for output in outputs for name in taken(output)) == NAMES
    assert sum(map(bool, map(taken, outputs))) > 1
    looking = machine(shared, tmp_path / "four")
    listed = looking.dvc("exp", "list", "origin", "--name-only").split()
    assert sorted(set(NAMES) & set(listed)) == NAMES
    looking.dvc("exp", "pull", "origin", "b105")
    looking.dvc("exp", "apply", "b105")
    assert "bootstrap: 105" in (looking.path / "params.yaml").read_text("utf-8")
    assert (looking.path / "models/adapter/adapter_model.safetensors").is_file()
    assert (looking.path / "metrics/report.html").is_file()
