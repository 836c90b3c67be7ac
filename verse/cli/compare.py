"""Compare experiments: scores with intervals, paired differences to a baseline, a picture.

Takes all experiments made from the present commit, or those that are named. Writes table.md,
table.csv, tradeoff.svg and tradeoff.png into one folder, and prints what one decides by.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from verse import paths
from verse.cli.lock import UNFIT, dotted, outdated
from verse.cli.own_run import own_run
from verse.cli.plots import draw
from verse.cli.tradeoff import chart
from verse.errors import UserError
from verse.files import decoded, parse_yaml, write_text
from verse.poems.contestants import WATCHED
from verse.schema import SCORES, fit
from verse.scoring.metrics import METRICS, Metric

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 10_000
ALL = -1
FINISHED = ("Success", None)
MARKS = {1: " ▲", -1: " ▼", 0: ""}


@dataclass(frozen=True)
class Experiment:
    """What git keeps of an experiment, of the contestant that is watched."""

    name: str
    parameters: dict[str, Any]
    """By dotted name, without those of the machine."""
    scores: dict[str, float]
    halves: dict[str, float]
    """Half-widths of the scores' own 95% intervals."""
    poems: "pd.DataFrame"
    """A row a test poem, in their order."""
    true: dict[str, float]
    """The scores of the true poems."""
    test: str
    """A hash of the test poems."""


@dataclass(frozen=True)
class Difference:
    """By how much a score is higher than the baseline's, with its 95% interval if it has one."""

    value: float
    interval: tuple[float, float] | None = None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below zero, else 0."""
        low, high = self.interval or (0.0, 0.0)
        return (low > 0) - (high < 0)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiments", nargs="*", help="names or revisions; all without any")
    parser.add_argument("--baseline", help="what to compare with; the commit without it")
    parser.add_argument("--to", default="comparison", help="folder to write; %(default)s")


def main(options: argparse.Namespace) -> None:
    found = collect(options.experiments, options.baseline)
    baseline = found[0]
    differences = {one.name: compare(one, baseline) for one in found[1:]}
    table = tabulate(found, differences)
    folder = Path(options.to)
    write_text(folder / "table.csv", table.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "table.md", markdown(found, differences))
    draw(tradeoff(found), folder / "tradeoff")
    headlines = [metric for metric in METRICS if metric.headline]
    print(scores_table(found, differences, headlines))
    print(f"▲ ▼ higher or lower than {baseline.name} beyond chance, on the same test poems")
    print(unpaired(found), end="")
    print(f"{folder}: table.md table.csv tradeoff.svg tradeoff.png")


# What there is


def collect(names: Sequence[str], baseline: str | None) -> list[Experiment]:
    """The experiments to compare, the baseline first.

    Raises UserError for a name that is none, and where there is nothing to compare.
    """
    listed = experiments()
    if set(names) - listed.keys():  # names of the last commit's experiments may be others' too
        listed = experiments(commits=ALL) | listed
    first = baseline or next(iter(listed), "HEAD")
    wanted = [name for name in dict.fromkeys(names or listed) if name != first]
    if not wanted:
        raise UserError("there is no experiment to compare: try dvc exp run -S decoding.top_p=0.5")
    found = [read(name, listed.get(name, name)) for name in (first, *wanted)]
    by = varied(found)
    return [found[0], *sorted(found[1:], key=lambda one: [rank(one.parameters.get(n)) for n in by])]


def rank(value: Any) -> tuple[bool, float, str]:
    """What parameters of any type are sorted by: numbers first."""
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)


def experiments(commits: int = 1) -> dict[str, str]:
    """Revisions by name: the last commits, the newest first, and the experiments made from each."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        rows = dvc.api.exp_show(num=commits)
    except DvcException as error:
        raise UserError(f"dvc exp show: {error}") from None
    found: dict[str, str] = {}
    for row in rows:
        if row["rev"] != "workspace" and row.get("State") in FINISHED:
            found.setdefault(row["Experiment"] or row["rev"], row["rev"])
    return found


def read(name: str, revision: str) -> Experiment:
    """An experiment from git and DVC, whose results may be those of a run here of the same.

    Raises UserError if it is unknown or has no results.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    try:
        files = DVCFileSystem(rev=revision)
        lock = load(files.open, "dvc.lock")
        values = load(files.open, "params.yaml")
        if changed := outdated(lock, values):
            raise UserError(
                f"{name}: its results are older than its {', '.join(changed)}: dvc exp run it"
            )
        deps = lock["stages"]["score"]["deps"]
        try:
            scores, intervals, poems = results(files.open)
        except (DvcException, OSError):
            own = own_run(lock, "score")
            scores, intervals, poems = results(lambda path: own[path].open("rb"))
            print(f"{name}: its results are not here: this machine's, of the same parameters")
        halves = {row.pop("contestant"): row for row in intervals}
        return Experiment(
            name=name,
            parameters={k: v for k, v in dotted(values) if not k.startswith("machine.")},
            scores=scores[WATCHED],
            halves=halves[WATCHED],
            poems=poems[poems["contestant"] == WATCHED].reset_index(drop=True),
            true=scores["reference"],
            test=next(dep["md5"] for dep in deps if dep["path"] == paths.TEST),
        )
    except RevError:
        raise UserError(f"{name}: no such experiment: see dvc exp list") from None
    except (DvcException, OSError, *UNFIT) as error:
        raise UserError(
            f"{name}: not all of its results are here ({error}): dvc pull, or dvc repro with its "
            "parameters"
        ) from None


def results(opened: Callable[[str], IO[Any]]) -> tuple[Any, Any, "pd.DataFrame"]:
    """The scores, their intervals and the table of poems. opened: opens a file by its path."""
    import pandas as pd

    with opened(paths.POEMS) as file:
        poems = pd.read_csv(file)
    scores = fit(SCORES, load(opened, paths.SCORE), paths.SCORE)
    return scores, load(opened, paths.INTERVALS), poems


def load(opened: Callable[[str], IO[Any]], path: str) -> Any:
    """What a YAML or JSON file holds."""
    with opened(path) as file:
        return parse_yaml(decoded(file.read(), path), path)


# Differences


def compare(one: Experiment, baseline: Experiment) -> dict[str, Difference]:
    """For each metric that both have, by how much `one` is higher.

    A difference is paired, poem by poem, of the poems for which both have a value; so is its
    interval: both are scored on the same resamples of the test poems, so what is hard or easy
    about a poem falls out. It is the 95% percentile interval of a bootstrap
    (B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). There is
    none where the test poems differ, and for a score that is no mean of what poems.csv has a row
    of, such as one of all answers together.
    """
    import numpy as np
    import pandas as pd

    from verse.scoring.scoring import bootstrap_means

    both = [m for m in METRICS if m.name in one.scores and m.name in baseline.scores]
    found = {m.name: Difference(one.scores[m.name] - baseline.scores[m.name]) for m in both}
    if one.test != baseline.test:
        return found
    paired = [m for m in both if all(is_mean(m, each) for each in (one, baseline))]
    if not paired:
        return found
    names = [metric.name for metric in paired]
    values = one.poems[names].to_numpy(float) - baseline.poems[names].to_numpy(float)
    apart = pd.DataFrame(values, columns=names).dropna(axis="columns", how="all")
    drawn = bootstrap_means(apart, seed=0, resamples=RESAMPLES)
    for name, low, high in zip(apart, *np.quantile(drawn, (0.025, 0.975), axis=0), strict=True):
        found[name] = Difference(float(apart[name].mean()), (float(low), float(high)))
    return found


def is_mean(metric: Metric, one: Experiment) -> bool:
    """Whether a score is the mean of its column of poems.csv, but for rounding."""
    if metric.name not in one.poems.columns:
        return False
    return bool(abs(one.poems[metric.name].mean() - one.scores[metric.name]) < 1.5e-4)


# Tables


def varied(found: Sequence[Experiment]) -> dict[str, str]:
    """The parameters that differ between experiments: short names by dotted ones."""
    names = dict.fromkeys(name for one in found for name in one.parameters)
    differ = [n for n in names if len({repr(one.parameters.get(n)) for one in found}) > 1]
    last = [name.rpartition(".")[2] for name in differ]
    return {n: s if last.count(s) == 1 else n for n, s in zip(differ, last, strict=True)}


def tabulate(
    found: Sequence[Experiment], differences: Mapping[str, Mapping[str, Difference]]
) -> "pd.DataFrame":
    """All figures, a row an experiment: what table.csv holds.

    Columns: `experiment`; each parameter that differs; for each metric its score, `_ci95` (half of
    its own interval), `_difference` to the baseline, `_low` and `_high` (the paired interval).
    """
    import pandas as pd

    rows = []
    for one in found:
        row = {"experiment": one.name} | {n: one.parameters.get(n) for n in varied(found)}
        for metric in METRICS:
            difference = differences.get(one.name, {}).get(metric.name)
            row[metric.name] = one.scores.get(metric.name)
            if metric.interval:
                row[f"{metric.name}_ci95"] = one.halves.get(metric.name)
            if difference:
                row[f"{metric.name}_difference"] = round(difference.value, 4)
            if difference and difference.interval:
                for end, value in zip(("low", "high"), difference.interval, strict=True):
                    row[f"{metric.name}_{end}"] = round(value, 4)
        rows.append(row)
    order = dict.fromkeys(key for row in reversed(rows) for key in row)
    return pd.DataFrame(rows, columns=list(order))


def markdown(
    found: Sequence[Experiment], differences: Mapping[str, Mapping[str, Difference]]
) -> str:
    baseline = found[0].name
    return (
        f"{scores_table(found, differences, METRICS)}\n"
        "± half of the score's own 95% interval. ▲ ▼ beyond chance higher or lower than "
        f"{baseline}: the paired interval below leaves zero out.\n\n"
        f"{differences_table(found, differences)}\n"
        f"By how much higher than {baseline}, with the 95% interval of the paired difference over "
        "the same test poems; none where a score is not made of one figure a poem.\n"
        f"{unpaired(found)}"
    )


def unpaired(found: Sequence[Experiment]) -> str:
    """A line that names the experiments of other test poems than the baseline's, if there are."""
    names = [one.name for one in found if one.test != found[0].test]
    return f"No difference is paired, since test poems are others: {', '.join(names)}\n" * bool(
        names
    )


def scores_table(
    found: Sequence[Experiment],
    differences: Mapping[str, Mapping[str, Difference]],
    metrics: Sequence[Metric],
) -> str:
    """Markdown: a row an experiment, with the parameters that differ and its scores."""

    def cell(one: Experiment, metric: Metric) -> str:
        if metric.name not in one.scores:
            return ""
        half = one.halves.get(metric.name)
        difference = differences.get(one.name, {}).get(metric.name)
        mark = MARKS[difference.sign] if difference else ""
        return f"{one.scores[metric.name]:.3f}" + (f" ± {half:.3f}" if half else "") + mark

    parameters = varied(found)
    head = ["experiment", *parameters.values(), *(metric.name for metric in metrics)]
    rows = [
        [
            one.name,
            *(shown(one.parameters.get(name)) for name in parameters),
            *(cell(one, metric) for metric in metrics),
        ]
        for one in found
    ]
    return aligned([head, *rows])


def differences_table(
    found: Sequence[Experiment], differences: Mapping[str, Mapping[str, Difference]]
) -> str:
    """Markdown: a row an experiment, a column a metric; bold where zero lies outside."""

    def cell(difference: Difference | None) -> str:
        if difference is None:
            return ""
        value = f"{difference.value:+.3f}"
        if not difference.interval:
            return value
        value = f"**{value}**" if difference.sign else value
        low, high = difference.interval
        return f"{value} ({low:+.3f} … {high:+.3f})"

    head = ["experiment", *(metric.name for metric in METRICS)]
    rows = [
        [one.name, *(cell(differences[one.name].get(metric.name)) for metric in METRICS)]
        for one in found[1:]
    ]
    return aligned([head, *rows])


def shown(value: Any) -> str:
    return "null" if value is None else str(value)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand below each other in a terminal too."""
    rows = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    lines = [" | ".join(map(str.ljust, row, widths)) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


# The picture


def tradeoff(found: Sequence[Experiment]) -> dict[str, Any]:
    """The chart of the experiments, and of the true poems.

    Where one or two parameters differ, points are labelled by the first and joined along it, in a
    colour for each value of the second; else labelled by the experiments' names.
    """
    parameters = varied(found)
    by = list(parameters) if 1 <= len(parameters) <= 2 else []
    (x,) = [metric.name for metric in METRICS if metric.axis == "x"]
    qualities = [metric.name for metric in METRICS if metric.axis == "y"]
    points = []
    for one in found:
        labels = [shown(one.parameters.get(name)) for name in by]
        points.append(
            {
                "label": labels[0] if labels else one.name,
                "line": labels[1] if len(labels) > 1 else "experiments",
                "order": one.parameters.get(by[0]) if by else None,
                "baseline": one is found[0],
                **figures(one.scores, one.halves, [x, *qualities]),
            }
        )
    truth = {"label": "true poems", **figures(found[0].true, {}, [x, *qualities])}
    labelled = parameters[by[0]] if by else "experiments"
    subtitle = f"labels: {labelled}; ring: {found[0].name}"
    legend = parameters[by[1]] if len(by) > 1 else None
    return chart(points, truth, x, qualities, subtitle, legend)


def figures(
    scores: Mapping[str, float], halves: Mapping[str, float], names: Sequence[str]
) -> dict[str, float]:
    """For each metric its value and the ends of its interval."""
    found: dict[str, float] = {}
    for name in (name for name in names if name in scores):
        value, half = scores[name], halves.get(name, 0)
        low, high = max(value - half, 0.0), min(value + half, 1.0)
        found |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return found
