"""Score every contestant's answers and the true poems, all alike.

    python -m stages.score

Writes metrics/score.json, metrics/judge.json (what the marks say of who gave them),
metrics/poems.csv with a row per poem and contestant, the data of two plots below metrics/plots and
metrics/report.html; prints the metrics and three poems.
"""

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from verse import params
from verse.errors import UserError, run
from verse.files import read_jsonl, together, write_json, write_text

if TYPE_CHECKING:
    from verse.judging.scoring import Judged

TRAIN, TEST = "data/prepared/train.jsonl", "data/prepared/test.jsonl"
MARKS = "data/marks/marks.jsonl"
MANY_LINES = 9  # a plot's last bar counts the answers with as many lines or more
SHOWN = 3


def main() -> None:
    p = params.read()

    import pandas as pd

    from verse.judging import marks
    from verse.judging.contestants import ASKED, contestants
    from verse.judging.metrics import HEADLINES
    from verse.judging.report import render
    from verse.judging.scoring import COLUMNS, judge, summarise, tabulate
    from verse.judging.terminal import metrics_table, side_by_side
    from verse.poems.lines import lines_in

    test = columns(TEST, "input", "output")
    if not test:
        raise UserError(f"{TEST}: no poems to score: raise prepare.test_poems")
    couplets, truths = zip(*test, strict=True)
    everyone = contestants(ASKED)
    answers = {
        name: answers_to(couplets, one.answers) if one.answers else list(truths)
        for name, one in everyone.items()
    }
    training_lines = lines_in(a + b for a, b in columns(TRAIN, "input", "output"))

    judged = {
        name: [judge(*poem, training_lines) for poem in zip(couplets, texts, truths, strict=True)]
        for name, texts in answers.items()
    }
    tables = {name: tabulate(poems, truths) for name, poems in judged.items()}
    metrics = {
        name: summarise(poems, tables[name], seed=p.seed, resamples=p.score.bootstrap)
        for name, poems in judged.items()
    }

    for name, one in everyone.items():
        if one.chat and one.answers:
            raws = [raw for (raw,) in columns(one.answers, "raw")]
            judged[name] = [replace(a, raw=raw) for a, raw in zip(judged[name], raws, strict=True)]
            metrics[name] |= trimming(judged[name])
    marked = marks.table(read_jsonl(MARKS))
    for name, given in marks.summarise(marked, seed=p.seed, resamples=p.score.bootstrap).items():
        if name in metrics:
            metrics[name] |= given

    rows = [dict(zip(judged, row, strict=True)) for row in zip(*judged.values(), strict=True)]
    poems = pd.concat([table[COLUMNS].assign(contestant=name) for name, table in tables.items()])
    poems = poems[["contestant", *COLUMNS]].round({"tone": 4, "chrf": 4})
    with together():
        write_json("metrics/score.json", metrics)
        write_json("metrics/judge.json", marks.measure(marked, poems))
        write_text("metrics/poems.csv", poems.to_csv(index=False, lineterminator="\n"))
        write_text("metrics/plots/quality.csv", quality_plot(metrics, HEADLINES))
        for name, ones in judged.items():
            write_text(f"metrics/plots/lines/{name}.csv", lines_plot(ones))
        write_text("metrics/report.html", render(rows, metrics, everyone))

    print(metrics_table(metrics))
    for row in rows[:SHOWN]:
        texts = {everyone[name].english: one.answer for name, one in row.items()}
        print("\n" + side_by_side({"prompt": row["reference"].couplet, **texts}))


def columns(path: str, *keys: str) -> list[tuple[str, ...]]:
    """The texts under `keys` in each row of a JSON Lines file; half surrogate pairs become �."""
    rows = []
    for number, row in enumerate(read_jsonl(path), 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
            wanted = " and ".join(keys)
            raise UserError(f"{path}, row {number}: no text under {wanted}: run dvc repro again")
        rows.append(tuple(re.sub("[\ud800-\udfff]", "\ufffd", row[key]) for key in keys))
    return rows


def answers_to(couplets: tuple[str, ...], path: str) -> list[str]:
    """The answers of a file. Raises UserError unless they are to these couplets, in this order."""
    rows = columns(path, "input", "answer")
    if len(rows) != len(couplets):
        raise UserError(
            f"{path}: {len(rows)} answers for the {len(couplets)} poems of {TEST}: "
            "run dvc repro to generate them anew"
        )
    for number, (couplet, (asked, _)) in enumerate(zip(couplets, rows, strict=True), 1):
        if asked != couplet:
            raise UserError(
                f"{path}, row {number}: answers another couplet than row {number} of {TEST}: "
                "run dvc repro to generate them anew"
            )
    return [answer for _, answer in rows]


def trimming(poems: list["Judged"]) -> dict[str, float]:
    """The metrics of what a chat model wrote before it was trimmed."""
    from verse.judging.scoring import in_form

    raw = sum(in_form(one.couplet, one.raw or "") for one in poems)
    trimmed = sum("".join((one.raw or "").split()) != one.answer for one in poems)
    return {
        "raw": round(raw / len(poems), 4),
        "trimmed": round(trimmed / len(poems), 4),
    }


def quality_plot(metrics: dict[str, dict[str, Any]], keys: list[str]) -> str:
    """CSV, a bar a row: the shares under each key, side by side for the contestants."""
    rows = [f"{key}: {group},{values[key]}\n" for key in keys for group, values in metrics.items()]
    return "answers,share\n" + "".join(rows)


def lines_plot(poems: list["Judged"]) -> str:
    """CSV, a bar a row: for each number of lines, the share of the answers that have as many."""
    counts = Counter(min(len(one.written), MANY_LINES) for one in poems)
    labels = [*map(str, range(MANY_LINES)), f"{MANY_LINES}+"]
    rows = [f"{label},{counts[i] / len(poems):.4f}\n" for i, label in enumerate(labels)]
    return "lines,share\n" + "".join(rows)


if __name__ == "__main__":
    run(main)
