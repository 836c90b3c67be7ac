"""Score every contestant's answers and the true poems, all alike.

    python -m stages.score

Writes metrics/score.json and, apart from it, metrics/intervals.json with the half-widths of the
scores' intervals; metrics/gains.json with what each contestant gains over the baseline;
metrics/judge.json with what the marks say of who gave them; metrics/poems.csv with a row per poem
and contestant, the data of two plots below metrics/plots and metrics/report.html; prints the
metrics and three poems.
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

    from verse.judging import floors, marks
    from verse.judging.contestants import ASKED, BASELINE, contestants
    from verse.judging.metrics import HEADLINES, apart
    from verse.judging.report import render
    from verse.judging.scoring import gain, judge, likenesses, summarise, tabulate
    from verse.judging.terminal import gains_table, metrics_table, side_by_side
    from verse.judging.usage import rivals
    from verse.poems.lines import lines_in, split_lines

    test = [(couplet, rest) for couplet, rest in columns(TEST, "input", "output")]
    if not test:
        raise UserError(f"{TEST}: no poems to score: raise prepare.test_poems")
    couplets, truths = zip(*test, strict=True)
    training = [(couplet, rest) for couplet, rest in columns(TRAIN, "input", "output")]
    everyone = contestants(ASKED)
    answers = {
        name: answers_to(couplets, one.answers)
        if one.answers
        else getattr(floors, one.floor)(test, training, p.seed)
        if one.floor
        else list(truths)
        for name, one in everyone.items()
    }
    training_lines = likenesses(lines_in(a + b for a, b in training))
    others = rivals([[line for line, _ in split_lines(couplet)] for couplet, _ in training])

    judged = {
        name: [judge(*poem, training_lines) for poem in zip(couplets, texts, truths, strict=True)]
        for name, texts in answers.items()
    }
    tables = {name: tabulate(poems, others) for name, poems in judged.items()}
    draws = {"seed": p.seed, "resamples": p.score.bootstrap}
    metrics = {
        name: summarise(poems, tables[name], truths, **draws) for name, poems in judged.items()
    }
    gains = {
        name: gain(tables[name], tables[BASELINE], **draws)
        for name, one in everyone.items()
        if one.answers and name != BASELINE
    }
    for name, one in everyone.items():
        if one.chat and one.answers:
            raws = [raw for (raw,) in columns(one.answers, "raw")]
            judged[name] = [replace(a, raw=raw) for a, raw in zip(judged[name], raws, strict=True)]
            metrics[name] |= trimming(judged[name])
    marked = marks.table(read_jsonl(MARKS))
    for name, given in marks.summarise(marked, **draws).items():
        if name in metrics:
            metrics[name] |= given

    shown = {name: poems for name, poems in judged.items() if not everyone[name].floor}
    rows = [dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True)]
    poems = pd.concat(tables, names=["contestant"]).reset_index("contestant").round(4)
    scores, intervals = apart(metrics)
    with together():
        write_json("metrics/score.json", scores)
        write_json("metrics/intervals.json", intervals)
        write_json("metrics/gains.json", [{"contestant": n, **one} for n, one in gains.items()])
        write_json("metrics/judge.json", marks.measure(marked, poems))
        write_text("metrics/poems.csv", poems.to_csv(index=False, lineterminator="\n"))
        write_text("metrics/plots/quality.csv", quality_plot(metrics, HEADLINES))
        for name, ones in shown.items():
            write_text(f"metrics/plots/lines/{name}.csv", lines_plot(ones))
        write_text("metrics/report.html", render(rows, metrics, everyone))

    print(metrics_table(metrics))
    print("\n" + gains_table(gains, BASELINE))
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
    from verse.poems.lines import in_form

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
