"""The metrics: each declared once. score.json, tables, plots and report follow from this list."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    name: str
    label: str
    meaning: str
    interval: bool = False
    """Told with the half-width of its 95% confidence interval, `<name>_ci95`."""
    headline: bool = False
    """Told first, and plotted."""


METRICS = (
    Metric(
        "form",
        "合格",
        "whole answers in form: 2 or 6 further lines of the couplet's length, no more",
        interval=True,
        headline=True,
    ),
    Metric("lines", "句數", "answers with as many lines as the true poem", interval=True),
    Metric("clean", "潔淨", "answers of Chinese characters and poem punctuation alone"),
    Metric("echo", "重句", "lines that repeat an earlier line; lower is better"),
    Metric("novel", "新句", "lines that stand in no training poem"),
    Metric(
        "rhyme",
        "押韻",
        "poems whose even lines share one Pingshui rhyme group",
        interval=True,
        headline=True,
    ),
    Metric(
        "tone",
        "合律",
        "mean share of the regulated-verse tone rules kept",
        interval=True,
        headline=True,
    ),
    Metric("distinct2", "詞彙", "distinct character bigrams over all bigrams"),
    Metric("chrf", "相似", "character n-gram F-score against the true rest", interval=True),
)
"""In the order of metrics/score.json."""

EXTRA = (
    Metric("raw", "原樣", "answers in form as they were written, before anything was trimmed"),
    Metric("trimmed", "刪贅", "answers from which something was trimmed that is no verse"),
    Metric("judge_prosody", "評律", "the judge's mark for prosody, 0 to 10", interval=True),
    Metric("judge_prosody_best", "評律上", "the best of its three, as the homework has it", True),
    Metric("judge_fluency", "評意", "the judge's mark for sense, 0 to 10", interval=True),
    Metric("judge_fluency_best", "評意上", "the best of its three, as the homework has it", True),
)
"""What only some contestants have: chat models, and those that a chat model has marked."""

INTERVALS = [metric.name for metric in METRICS if metric.interval]
HEADLINES = [metric.name for metric in METRICS if metric.headline]
KEYS = [
    "poems",
    *(key for m in METRICS for key in ([m.name, f"{m.name}_ci95"] if m.interval else [m.name])),
]
"""Of a contestant in metrics/score.json; `poems` is how many were judged."""
