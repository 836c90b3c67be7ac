"""`verse.scoring.metrics` is the one list: what else names the metrics is held to it."""

import json
import re
from pathlib import Path

import pytest
import yaml

from verse.poems.contestants import CONTESTANTS, WATCHED
from verse.scoring.metrics import HEADLINES, INTERVALS, KEYS, METRICS, apart

ROOT = Path(__file__).parents[3]
NAMES = [metric.name for metric in METRICS]
COMMITTED = json.loads((ROOT / "metrics/headlines.json").read_text("utf-8"))
README = (ROOT / "README.md").read_text("utf-8")
FIGURES = (ROOT / "docs/figures.md").read_text("utf-8")


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of a page's first table from some words on."""
    lines = text[text.index(heading) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_each_metric_is_declared_once():
    assert len(set(NAMES)) == len(NAMES)
    assert all(metric.meaning and metric.label for metric in METRICS)
    assert set(HEADLINES) <= set(INTERVALS)
    axes = [metric.axis for metric in METRICS]
    assert axes.count("x") == 1 and axes.count("y") >= 1


def test_the_committed_headlines_have_these_keys():
    assert list(COMMITTED) == [*HEADLINES, "loss"]


def test_intervals_stand_apart_from_the_scores():
    scores, halves = apart({name: dict.fromkeys(KEYS, 0.5) for name in CONTESTANTS})
    assert {name: list(scores[name]) for name in scores} == {
        name: ["poems", *NAMES] for name in CONTESTANTS
    }
    assert [list(row) for row in halves] == [["contestant", *INTERVALS]] * len(CONTESTANTS)


def test_the_figures_page_says_what_each_metric_is():
    assert [row[0] for row in table(FIGURES, "# All figures")[1:]] == NAMES


@pytest.mark.parametrize(
    ("text", "heading", "metrics", "baselines"),
    [
        (FIGURES, "Measured with the embedded model", NAMES, True),
        (README, "# verse", HEADLINES, False),
    ],
    ids=["docs/figures.md", "README.md"],
)
def test_the_pages_have_the_figures_of_the_run(of_the_run, text, heading, metrics, baselines):
    scores = of_the_run("score.json")
    halves = {row["contestant"]: row for row in of_the_run("intervals.json")}
    head, *rows = table(text, heading)
    shown = {name: one for name, one in CONTESTANTS.items() if baselines or not one.baseline}
    assert head[1:] == [one.english for one in shown.values()]
    assert [row[0] for row in rows] == list(metrics)
    for name, *cells in rows:
        for cell, group in zip(cells, shown, strict=True):
            mean, half = re.fullmatch(r"([\d.]+)(?: ± ([\d.]+))?", cell).groups()
            assert float(mean) == float(f"{scores[group][name]:.3f}"), name
            if half:
                assert float(half) == float(f"{halves[group][name]:.3f}"), name


def test_the_pages_have_the_committed_headlines_and_each_others_figures():
    """What can be held to git alone: no run is needed."""
    own = {row[0]: row[1:] for row in table(README, "# verse")[1:]}
    all_figures = {row[0]: row[1:] for row in table(FIGURES, "Measured with the embedded model")}
    for name in HEADLINES:
        base, tuned, true = own[name]
        assert tuned.split()[0] == f"{COMMITTED[name]:.3f}"
        assert [base, tuned] == all_figures[name][:2] and true == all_figures[name][-1]


def test_the_figures_page_has_the_gain_of_the_run(of_the_run):
    rows = of_the_run("gains.json")
    (row,) = [row for row in rows if row["contestant"] == WATCHED]
    (line,) = re.findall("^Gain of tuned over base, poem by poem: (.*)\\.$", FIGURES, re.MULTILINE)
    told = re.findall(r"(\w+) ([+-][\d.]+) ± ([\d.]+)", line)
    assert [name for name, _, _ in told] == INTERVALS
    for name, value, half in told:
        assert value == f"{row[name]:+.3f}" and half == f"{row[f'{name}_ci95']:.3f}", name


def test_dvc_plots_a_file_for_each_contestant():
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["plots"]
    (lines,) = (plot["lines"] for plot in plots if "lines" in plot)
    assert list(lines["y"]) == [
        f"metrics/plots/lines/{name}.csv" for name, one in CONTESTANTS.items() if not one.baseline
    ]
