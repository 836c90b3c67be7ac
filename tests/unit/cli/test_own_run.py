"""Which run in DVC's run cache stands for a commit whose results are not here."""

from copy import deepcopy

from verse.cli.own_run import same_run

SAME = "source code and data that are the same on every machine"


def stage(cmd, deps, outs, **params):
    def entries(files):
        return [{"path": path, "md5": md5} for path, md5 in files.items()]

    found = {"cmd": cmd, "deps": entries(deps), "outs": entries(outs)}
    return found | {"params": {"params.yaml": params}}


LOCK = {  # in no order, as DVC writes it
    "score": stage("score", {"answers": "far a", "code": SAME}, {"score": "far s"}),
    "train": stage("train", {"poems": SAME}, {"adapter": "far m"}, seed=42),
    "generate": stage("write", {"adapter": "far m", "code": SAME}, {"answers": "far a"}, top_p=0.9),
}
HERE = [
    stage("train", {"poems": SAME}, {"adapter": "near m"}, seed=42),
    stage("write", {"adapter": "near m", "code": SAME}, {"answers": "near a"}, top_p=0.9),
    stage("score", {"answers": "near a", "code": SAME}, {"score": "near s"}),
]


def test_a_run_of_the_same_parameters_is_found_from_stage_to_stage():
    assert same_run(LOCK, HERE, "score") == {"score": "near s"}
    assert same_run(LOCK, HERE[::-1], "score") == {"score": "near s"}


def test_other_parameters_code_or_data_do_not_count():
    for number, key, value in (
        (0, "params", {"params.yaml": {"seed": 7}}),
        (1, "params", {"params.yaml": {"top_p": 0.5}}),
        (2, "cmd", "another"),
        (2, "deps", [{"path": "answers", "md5": "near a"}, {"path": "code", "md5": "edited"}]),
    ):
        runs = deepcopy(HERE)
        runs[number][key] = value
        assert same_run(LOCK, runs, "score") == {}


def test_of_two_runs_the_last_counts():
    again = stage("score", {"answers": "near a", "code": SAME}, {"score": "again"})
    assert same_run(LOCK, [*HERE, again], "score") == {"score": "again"}
