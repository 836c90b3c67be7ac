"""Results that are older than the parameters beside them are noticed."""

from copy import deepcopy
from pathlib import Path

import pytest

from verse.cli.lock import STAGES as ALL
from verse.cli.lock import outdated, outdated_here
from verse.errors import UserError
from verse.files import parse_yaml

STAGES = ["train", "generate"]
VALUES = {"seed": 42, "model": {"name": "a", "lora": {"r": 8}}, "judge": None, "machine": {}}


def stage(deps, outs, **params):
    found = {"deps": deps, "outs": outs}
    found = {k: [{"path": path, "md5": md5} for path, md5 in v.items()] for k, v in found.items()}
    return found | {"params": {"params.yaml": params, "pyproject.toml": {"x": ["torch==1"]}}}


LOCK = {
    "stages": {
        "generate": stage({"adapter": "1"}, {"answers": "2"}, **{"seed": 42, "model.name": "a"}),
        "train": stage({"poems": "0"}, {"adapter": "1"}, model=VALUES["model"], judge=None),
        "removed": stage({}, {}, gone=1),
    }
}


def test_results_of_the_present_parameters_are_not():
    assert outdated(LOCK, VALUES, [*STAGES, "score"]) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"name": "b", "lora": {"r": 8}}}, ["model.name"]),
        ({"model": {"name": "a", "lora": {"r": 4}}}, ["model.lora.r"]),
        ({"model": {"name": "a"}, "seed": 7}, ["model.lora.r", "seed"]),
        ({"judge": {"model": "x"}}, ["judge"]),
        ({"machine": {"threads": 4}}, []),
    ],
)
def test_parameters_that_have_changed_are_named(changes, named):
    values = {key: value for key, value in VALUES.items() if key not in changes} | changes
    assert outdated(LOCK, values, STAGES) == named


def test_the_stages_are_those_of_the_pipeline_that_have_results():
    """Each before those that read what it writes."""
    stages = parse_yaml(Path("dvc.yaml").read_text("utf-8"), "dvc.yaml")["stages"]
    assert {*ALL} == {*stages} - {"check", "locate"}
    outs = {
        name: [next(iter(o)) if isinstance(o, dict) else o for o in stages[name].get("outs", [])]
        for name in ALL
    }
    for number, name in enumerate(ALL):
        later = {out for after in ALL[number:] for out in outs[after]}
        assert later.isdisjoint(stages[name]["deps"])


def test_so_is_a_file_that_was_written_anew_since_it_was_read():
    lock = deepcopy(LOCK)
    lock["stages"]["train"]["outs"][0]["md5"] = "new"
    assert outdated(lock, VALUES, STAGES) == ["adapter"]
    assert outdated(lock, VALUES, ["train"]) == []


def test_a_folder_that_dvc_does_not_know_has_nothing_outdated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert outdated_here() == []
    Path("params.yaml").write_text("seed: 42", "utf-8")
    Path("dvc.lock").write_text("stages: {train: []}", "utf-8")
    with pytest.raises(UserError, match=r"dvc\.lock: not as DVC writes it"):
        outdated_here()
