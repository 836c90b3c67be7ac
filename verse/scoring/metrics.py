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
    """Told first and shown by DVC, and plotted if every contestant has it."""
    axis: Literal["", "x", "y"] = ""
    """Of the picture that compares experiments: diversity on x, a panel for each quality on y."""


METRICS = (
    Metric(
        "whole",
        "全篇",
        "all that a reader asks for at once, and as long as the true one",
        interval=True,
        headline=True,
        axis="y",
    ),
    Metric(
        "any_length",
        "不計句數",
        "in form, rhymed, in tone, its own, attested, fit, parallel, neither bland nor odd",
        interval=True,
        headline=True,
    ),
    Metric(
        "form",
        "合格",
        "whole answers in form: 2 or 6 further lines, or the true number, of the couplet's length",
        interval=True,
        headline=True,
        axis="y",
    ),
    Metric("lines", "句數", "answers with as many lines as the true poem", interval=True),
    Metric("clean", "潔淨", "answers of Chinese characters and poem punctuation alone"),
    Metric(
        "rhyme",
        "押韻",
        "even lines rhyme, the couplet's included, and no rhyme word stands twice",
        interval=True,
        headline=True,
        axis="y",
    ),
    Metric(
        "tone",
        "合律",
        "mean share of the regulated-verse tone rules kept after the couplet",
        interval=True,
        headline=True,
    ),
    Metric(
        "fit",
        "應題",
        "other couplets that explain the answer worse than its own does; chance is 0.5",
        interval=True,
        headline=True,
    ),
    Metric(
        "words",
        "成詞",
        "neighbouring characters attested in other Tang verse; better near the true poems",
        interval=True,
    ),
    Metric(
        "parallel",
        "對仗",
        "how far facing characters of middle couplets suit each other; better near the true poems",
        interval=True,
    ),
    Metric(
        "surprise",
        "出奇",
        "nats a character to the plain embedded model; better near the true poems",
        interval=True,
    ),
    Metric(
        "in_band",
        "得中",
        "answers neither more nor less surprising than nine in ten true poems",
        interval=True,
    ),
    Metric(
        "novel",
        "新句",
        "lines that no training poem has, up to a character",
    ),
    Metric(
        "near_copies",
        "近襲",
        "lines of training poems up to two characters, of other books up to one; lower is better",
        interval=True,
    ),
    Metric(
        "echo",
        "重句",
        "lines that repeat an earlier one, up to a character; lower is better",
    ),
    Metric(
        "shared",
        "雷同",
        "lines that another answer has too, up to a character; lower is better",
        interval=True,
    ),
    Metric(
        "repeats",
        "重字",
        "characters that stand in the answer already; better near the true poems",
        interval=True,
    ),
    Metric(
        "distinct2",
        "詞彙",
        "distinct character bigrams in the answers' first two lines",
        axis="x",
    ),
)
"""In the order of metrics/score.json."""

EXTRA = (
    Metric("raw", "原樣", "answers in form as they were written, before anything was trimmed"),
    Metric("trimmed", "刪贅", "answers from which something was trimmed that is no verse"),
    Metric("unanswered", "未答", "questions that brought no poem, scored as empty; of these:"),
    Metric("filtered", "攔下", "the server filters them"),
    Metric("cut_off", "截斷", "tokens ran out, on thoughts or within the poem"),
    Metric("empty", "空答", "nothing came"),
    Metric("malformed", "亂答", "what came is no chat completion"),
    Metric("refused", "拒答", "the server or the model refuses them"),
    Metric("failed", "失答", "the server broke at each attempt"),
    Metric("judge_prosody", "評律", "the judge's mark for prosody, 0 to 10", True, True),
    Metric("judge_prosody_best", "評律上", "the best of its three, as the homework has it", True),
    Metric("judge_fluency", "評意", "the judge's mark for sense, 0 to 10", True, True),
    Metric("judge_fluency_best", "評意上", "the best of its three, as the homework has it", True),
)
"""What only some contestants have: chat models, and those that a chat model has marked."""

INTERVALS = [metric.name for metric in METRICS if metric.interval]
HEADLINES = [metric.name for metric in METRICS if metric.headline]
KEYS = [
    "poems",
    *(key for m in METRICS for key in ([m.name, f"{m.name}_ci95"] if m.interval else [m.name])),
]
"""Of a contestant in what `summarise` finds; `poems` is how many were scored."""


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
