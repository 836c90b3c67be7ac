"""`verse compare` on made-up experiments: what differs, what is beyond chance, what is written."""

import argparse
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from verse.cli import compare
from verse.cli.compare import Difference, Experiment
from verse.errors import UserError
from verse.scoring.metrics import Metric

METRICS = (
    Metric("good", "好", "a share of the poems", interval=True, headline=True, axis="y"),
    Metric("new", "新", "a share of the lines"),
    Metric("wide", "廣", "of all answers together", axis="x"),
)
POEMS = 300


@pytest.fixture(autouse=True)
def declared(monkeypatch):
    monkeypatch.setattr(compare, "METRICS", METRICS)


def experiment(name: str, good: np.ndarray, new: np.ndarray | None = None, **parameters):
    new = np.ones(len(good), int) if new is None else new
    poems = pd.DataFrame({"good": good, "new": new / 2})
    return Experiment(
        name=name,
        parameters={"seed": 42, "decoding.temperature": 0.1, **parameters},
        scores={
            "good": round(good.mean(), 4),
            "new": round(new.sum() / 2 / len(new), 4),
            "wide": 0.5,
        },
        halves={"good": 0.05},
        poems=poems,
        true={"good": 1.0, "new": 1.0, "wide": 0.9},
        test="the same",
    )


def drawn(seed: int, share: float = 0.6, poems: int = POEMS) -> np.ndarray:
    return (np.random.default_rng(seed).random(poems) < share).astype(int)


def test_an_experiment_does_not_differ_from_itself():
    one = experiment("one", drawn(1))
    assert compare.compare(one, one)["good"] == Difference(0.0, (0.0, 0.0))


def test_a_difference_of_few_poems_that_all_went_one_way_is_beyond_chance():
    """Paired, it is; the two scores' own intervals overlap by far."""
    before = drawn(1)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:12]] = 1
    difference = compare.compare(experiment("after", after), experiment("before", before))["good"]
    assert difference.value == pytest.approx(12 / POEMS, abs=1e-4)
    low, high = difference.interval
    assert 0 < low < difference.value < high
    error = np.sqrt(0.04 * 0.96 / POEMS)  # of a mean of twelve ones and 288 zeros
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    alone = 1.96 * np.sqrt(0.6 * 0.4 / POEMS)
    assert high - low < alone
    assert difference.sign == 1
    back = compare.compare(experiment("before", before), experiment("after", after))["good"]
    assert back.sign == -1


def test_poems_without_a_value_in_either_are_left_out():
    """As a quatrain has no couplets that could be parallel."""
    before, after = drawn(1).astype(float), drawn(1, share=0.9).astype(float)
    before[::2] = np.nan
    after[::3] = np.nan

    def scored(name, good):
        one = experiment(name, np.ones(POEMS))
        scores = one.scores | {"good": round(float(np.nanmean(good)), 4)}
        return replace(one, poems=one.poems.assign(good=good), scores=scores)

    difference = compare.compare(scored("after", after), scored("before", before))["good"]
    assert difference.value == pytest.approx(np.nanmean(after - before))
    assert 0 < difference.interval[0] < difference.value < difference.interval[1]


def test_false_alarms_are_one_in_twenty(monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 1000)
    pairs = [(drawn(2 * n, poems=100), drawn(2 * n + 1, poems=100)) for n in range(200)]
    alarms = [
        compare.compare(experiment("a", a), experiment("b", b))["good"].sign for a, b in pairs
    ]
    assert 3 <= sum(map(abs, alarms)) <= 20  # 10 expected; beyond that once in a thousand


def test_a_share_of_lines_is_compared_as_one():
    few = np.array([2, 0] * (POEMS // 2))
    difference = compare.compare(experiment("a", drawn(1)), experiment("b", drawn(1), few))["new"]
    assert difference.value == 0.0
    assert -0.1 < difference.interval[0] < 0 < difference.interval[1] < 0.1


def test_a_score_that_the_poems_do_not_make_up_has_no_interval():
    one = experiment("one", drawn(1))
    other = replace(one, scores=one.scores | {"wide": 0.7, "good": 0.9})
    differences = compare.compare(other, one)
    assert differences["wide"] == Difference(pytest.approx(0.2))
    assert differences["good"].interval is None and differences["good"].sign == 0


def test_other_test_poems_are_not_paired():
    one = experiment("one", drawn(1))
    other = replace(experiment("other", drawn(2)), test="others")
    assert all(d.interval is None for d in compare.compare(other, one).values())
    said = "No difference is paired, since test poems are others: other\n"
    assert compare.markdown([one, other], {"other": {}}).endswith(said)
    assert said not in compare.markdown([one, one], {"one": {}})


def test_of_experiments_of_one_name_the_newest_is_meant(monkeypatch):
    names = (None, "workspace"), (None, "new"), ("calm", "c2"), (None, "old"), ("calm", "c1")
    rows = [  # the newest commit first
        {"Experiment": name, "rev": rev, "State": "Success"}
        for name, rev in (*names, ("other", "o1"))
    ]
    monkeypatch.setattr("dvc.api.exp_show", lambda num: rows[:3] if num == 1 else rows)
    read = []
    made = experiment("any", drawn(1))
    monkeypatch.setattr(compare, "read", lambda *one: read.append(one) or replace(made, name="x"))
    compare.collect(["calm", "other"], None)
    assert read == [("new", "new"), ("calm", "c2"), ("other", "o1")]


def test_only_the_parameters_that_differ_are_told_by_their_shortest_name():
    one = experiment("one", drawn(1), **{"train.lora.dropout": 0.1, "x.dropout": 0, "a.b": None})
    other = experiment("two", drawn(1), **{"train.lora.dropout": 0.2, "x.dropout": 1, "a.b": "x"})
    assert compare.varied([one, other]) == {
        "train.lora.dropout": "train.lora.dropout",
        "x.dropout": "x.dropout",
        "a.b": "b",
    }


@pytest.fixture
def found(monkeypatch):
    """Two experiments and the commit they were made from, in place of those of a repository."""
    made = {
        "main": experiment("main", drawn(1)),
        "sharp": experiment("sharp", drawn(1, 0.2), **{"decoding.temperature": 0.7}),
        "calm": experiment("calm", drawn(3), **{"decoding.temperature": 0.4}),
    }
    monkeypatch.setattr(compare, "experiments", lambda commits=1: {name: name for name in made})
    monkeypatch.setattr(compare, "read", lambda name, revision: made[revision])
    return made


def written(folder: Path, **options) -> tuple[str, pd.DataFrame]:
    options = {"experiments": [], "baseline": None, "to": str(folder)} | options
    compare.main(argparse.Namespace(**options))
    return (folder / "table.md").read_text("utf-8"), pd.read_csv(folder / "table.csv")


def test_the_tables_tell_what_differs_from_the_baseline(found, tmp_path, capsys):
    markdown, table = written(tmp_path)
    assert list(table["experiment"]) == ["main", "calm", "sharp"]  # in order of the parameter
    assert list(table["decoding.temperature"]) == [0.1, 0.4, 0.7]
    assert np.isnan(table["good_difference"][0])
    assert table["good_high"][2] < 0
    assert table["wide_difference"][1] == 0 and "wide_low" not in table
    rows = [line.split("|") for line in markdown.splitlines() if line.startswith("| sharp")]
    assert rows[0][2].strip() == "0.7" and "▼" in rows[0][3] and "**-0." in rows[1][2]
    assert all(len(line) <= 120 for line in capsys.readouterr().out.splitlines())


def test_another_baseline(found, tmp_path):
    _, table = written(tmp_path, baseline="sharp", experiments=["main"])
    assert list(table["experiment"]) == ["sharp", "main"]
    assert table["good_low"][1] > 0


def test_nothing_to_compare(found, tmp_path):
    with pytest.raises(UserError, match="no experiment to compare"):
        written(tmp_path, experiments=["main"])


def test_the_picture_opens_anywhere(found, tmp_path):
    written(tmp_path)
    svg = (tmp_path / "tradeoff.svg").read_text("utf-8")
    texts = {node.text for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")}
    assert {"0.1", "0.4", "0.7", "true poems", "good", "wide"} <= texts
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")


def test_points_are_joined_along_one_parameter_and_coloured_by_another(found):
    more = experiment("b", drawn(5), **{"decoding.temperature": 0.7, "decoding.top_p": 0.9})
    chart = compare.tradeoff([found["main"], more])
    points = chart["hconcat"][0]["data"]["values"]
    assert [(point["label"], point["line"]) for point in points] == [
        ("0.1", "null"),
        ("0.7", "0.9"),
    ]
    many = replace(more, parameters=more.parameters | {"seed": 7})
    chart = compare.tradeoff([found["main"], many])
    assert [point["label"] for point in chart["hconcat"][0]["data"]["values"]] == ["main", "b"]
    assert json.dumps(chart, allow_nan=False)


def test_a_table_holds_its_shape_whatever_a_name_is():
    table = compare.aligned([["a|b", "x"], ["c\nd", "y"]])
    assert table == "| a\\|b | x |\n| ---- | - |\n| c d  | y |\n"
