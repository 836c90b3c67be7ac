"""Score every contestant's answers and the true poems, all alike.

    python -m stages.score

Writes metrics/score.json and, in metrics/headlines.json, the few figures that DVC shows;
metrics/intervals.json with the half-widths of the scores' intervals; metrics/gains.json with what
each contestant gains over the baseline; metrics/judge.json with what the marks say of who gave
them; metrics/poems.csv with a row per poem and contestant, the data of two plots below
metrics/plots and metrics/report.html; prints the metrics and three poems.
"""

from collections import Counter
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from verse import params, paths
from verse.errors import UserError, run
from verse.files import write_json, write_text
from verse.poem import Poem, iter_poems
from verse.schema import Record, read_json

if TYPE_CHECKING:
    from verse.poems.contestants import Contestant

MANY_LINES = 9  # a plot's last bar counts the answers with as many lines or more
SHOWN = 3
REPORTED = 1000  # poems on the page, at most; metrics/poems.csv has all


class Loss(Record):
    loss: float


class Losses(Record):
    """The losses of a training, as far as they are shown."""

    after: Loss


def main() -> None:
    p = params.read()

    import pandas as pd

    from verse.model.surprise import surprises
    from verse.poems.contestants import GAIN_OVER, answers_to, contestants
    from verse.scoring import baselines, marks
    from verse.scoring.cooccurrence import rivals
    from verse.scoring.metrics import HEADLINES, apart
    from verse.scoring.report import render
    from verse.scoring.scoring import gain, learnt, score_answer, summarise, tabulate
    from verse.scoring.terminal import gains_table, metrics_table, side_by_side

    test, training = (list(iter_poems(path)) for path in (paths.TEST, paths.TRAIN))
    if not test:
        raise UserError(f"{paths.TEST}: no poems to score: raise prepare.test_poems")
    everyone = contestants(paths.ASKED)
    answers = {
        name: answers_to(test, one.answers, chat=one.chat)
        if one.answers
        else getattr(baselines, one.baseline)(test, training, p.seed)
        if one.baseline
        else test
        for name, one in everyone.items()
    }
    known = learnt(chain(*answers.values()), training)
    others = rivals(poem.couplet_lines for poem in training)
    marked = marks.read(paths.MARKED)

    answered = {
        name: [score_answer(*both, known) for both in zip(given, test, strict=True)]
        for name, given in answers.items()
    }
    verses = [(one.poem.couplet_lines, one.verse) for one in chain(*answered.values())]
    nats = iter(surprises(verses, p.machine))  # of all at once: the model is read once

    tables, metrics, shown, plots, lost = {}, {}, {}, {}, {}
    draws = {"seed": p.seed, "resamples": p.score.bootstrap}
    for name, one in everyone.items():
        scored = answered[name]
        tables[name] = tabulate(scored, others, list(islice(nats, len(scored))))
        metrics[name] = summarise(scored, tables[name], test, **draws)
        if one.chat and one.answers:
            lost[name] = Counter(poem.unanswered for poem in answers[name] if poem.unanswered)
            shares = {"unanswered": lost[name].total()} | lost[name]
            metrics[name] |= trimming(answers[name])
            metrics[name] |= {kind: round(n / len(test), 4) for kind, n in shares.items()}
        if not one.baseline:
            plots[name] = lines_plot(answers[name])
            shown[name] = scored[:REPORTED]
    gains = {
        name: gain(tables[name], tables[GAIN_OVER], **draws)
        for name, one in everyone.items()
        if one.answers and name != GAIN_OVER
    }
    for name, given in marks.summarise(marked, **draws).items():
        if name in metrics:
            metrics[name] |= given

    rows = [dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True)]
    poems = pd.concat(tables, names=["contestant"]).reset_index("contestant").round(4)
    scores, intervals = apart(metrics)
    write_json(paths.SCORE, scores)
    write_json(paths.HEADLINES, headlines(scores, everyone))
    write_json(paths.INTERVALS, intervals)
    write_json(paths.GAINS, [{"contestant": n, **one} for n, one in gains.items()])
    write_json(paths.JUDGE, marks.measure(marked, poems[poems["written"] > 0]))
    write_text(paths.POEMS, poems.to_csv(index=False, lineterminator="\n"))
    write_text(paths.QUALITY, quality_plot(metrics, HEADLINES))
    for name, plot in plots.items():
        write_text(f"{paths.LINES}/{name}.csv", plot)
    write_text(paths.REPORT, render(rows, metrics, everyone, len(test), lost))

    print(metrics_table(metrics))
    print("\n" + gains_table(gains, GAIN_OVER))
    for row in rows[:SHOWN]:
        texts = {everyone[name].english: one.poem.rest for name, one in row.items()}
        print("\n" + side_by_side({"prompt": row["reference"].poem.couplet, **texts}))


def headlines(
    scores: dict[str, dict[str, Any]], everyone: dict[str, "Contestant"]
) -> dict[str, Any]:
    """What one decides by: the tuned model's first scores and its loss, the chat models' scores."""
    from verse.poems.contestants import WATCHED
    from verse.scoring.metrics import EXTRA, METRICS

    first = [metric.name for metric in (*METRICS, *EXTRA) if metric.headline]
    shown = {
        name: {key: scores[name][key] for key in first if key in scores[name]}
        for name, one in everyone.items()
        if name == WATCHED or one.chat
    }
    own = shown.pop(WATCHED) | {
        "loss": read_json(paths.TRAINING_FIGURES, TypeAdapter(Losses)).after.loss
    }
    return own | ({"chat": shown} if shown else {})


def trimming(poems: list[Poem]) -> dict[str, float]:
    """The metrics of what a chat model wrote before it was trimmed."""
    from verse.poems.lines import in_form

    raw = sum(in_form(one.couplet, one.raw or "") for one in poems)
    trimmed = sum("".join((one.raw or "").split()) != "".join(one.rest.split()) for one in poems)
    return {
        "raw": round(raw / len(poems), 4),
        "trimmed": round(trimmed / len(poems), 4),
    }


def quality_plot(metrics: dict[str, dict[str, Any]], keys: list[str]) -> str:
    """CSV, a bar a row: the shares under each key, side by side for the contestants."""
    rows = [f"{key}: {group},{values[key]}\n" for key in keys for group, values in metrics.items()]
    return "answers,share\n" + "".join(rows)


def lines_plot(poems: list[Poem]) -> str:
    """CSV, a bar a row: for each number of lines, the share of the answers that have as many."""
    counts = Counter(min(len(one.rest_lines), MANY_LINES) for one in poems)
    labels = [*map(str, range(MANY_LINES)), f"{MANY_LINES}+"]
    rows = [f"{label},{counts[i] / len(poems):.4f}\n" for i, label in enumerate(labels)]
    return "lines,share\n" + "".join(rows)


if __name__ == "__main__":
    run(main)
