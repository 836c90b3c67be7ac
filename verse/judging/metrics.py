"""The metrics: each declared once. score.json, tables, plots and report follow from this list."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

CI95 = "_ci95"


@dataclass(frozen=True)
class Metric:
    name: str
    label: str
    meaning: str
    interval: bool = False
    """Told with the half-width of its 95% confidence interval."""
    headline: bool = False
    """Told first, and plotted."""
    per: str = ""
    """The column of poems.csv whose sum its own is a share of; the poems without one."""
    axis: Literal["", "x", "y"] = ""
    """Of the picture that compares experiments: diversity on x, a panel for each quality on y."""


METRICS = (
    Metric(
        "form",
        "合格",
        "whole answers in form: 2 or 6 further lines of the couplet's length, no more",
        interval=True,
        headline=True,
        axis="y",
    ),
    Metric("lines", "句數", "answers with as many lines as the true poem", interval=True),
    Metric("clean", "潔淨", "answers of Chinese characters and poem punctuation alone"),
    Metric("echo", "重句", "lines that repeat an earlier line; lower is better", per="written"),
    Metric("novel", "新句", "lines that stand in no training poem", per="written"),
    Metric(
        "rhyme",
        "押韻",
        "poems whose even lines share one Pingshui rhyme group",
        interval=True,
        headline=True,
        axis="y",
    ),
    Metric(
        "tone",
        "合律",
        "mean share of the regulated-verse tone rules kept",
        interval=True,
        headline=True,
    ),
    Metric("distinct2", "詞彙", "distinct character bigrams over all bigrams", axis="x"),
    Metric("chrf", "相似", "character n-gram F-score against the true rest", interval=True),
)
"""In the order of metrics/score.json."""

INTERVALS = [metric.name for metric in METRICS if metric.interval]
HEADLINES = [metric.name for metric in METRICS if metric.headline]
KEYS = [
    "poems",
    *(key for m in METRICS for key in ([m.name, f"{m.name}_ci95"] if m.interval else [m.name])),
]
"""Of a contestant in what `summarise` finds; `poems` is how many were judged."""


def apart(
    metrics: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The metrics of all contestants as scores by contestant, and as half-widths of intervals.

    The half-widths, without `_ci95`, are rows with a `contestant`: a list, since DVC would show
    what stands in a mapping among the scores.
    """
    scores, intervals = {}, []
    for name, values in metrics.items():
        halves = {key: half for key, half in values.items() if key.endswith(CI95)}
        scores[name] = {key: score for key, score in values.items() if key not in halves}
        row = {key.removesuffix(CI95): half for key, half in halves.items()}
        intervals.append({"contestant": name, **row})
    return scores, intervals
