"""Score the base model's answers, the tuned model's and the true poems, all alike.

    python -m stages.score

Writes metrics/score.json, the data of two plots below metrics/plots and metrics/report.html;
prints the metrics and three poems.
"""

import re
import sys
from collections import Counter
from itertools import islice

from verse.errors import UserError, run
from verse.files import read_jsonl, together, write_json, write_text
from verse.params import read

TRAIN, TEST = "data/prepared/train.jsonl", "data/prepared/test.jsonl"
ANSWERS = {"base": "data/generated/base.jsonl", "tuned": "data/generated/tuned.jsonl"}
MANY_LINES = 9  # a plot's last bar counts the answers with as many lines or more
SHOWN = 3


def main() -> None:
    p = read()

    from verse.judging.report import ReportRow, render
    from verse.judging.scoring import judge, metrics_table, side_by_side, summarise
    from verse.poems.lines import lines_in

    test = columns(TEST, "input", "output")
    if not test:
        raise UserError(f"{TEST}: no poems to score: raise prepare.test_poems")
    couplets, truths = zip(*test, strict=True)
    answers = {group: answers_to(couplets, path) for group, path in ANSWERS.items()}
    training_lines = lines_in(a + b for a, b in columns(TRAIN, "input", "output"))

    judged = {
        group: [judge(*poem, training_lines) for poem in zip(couplets, texts, truths, strict=True)]
        for group, texts in {**answers, "reference": truths}.items()
    }
    metrics = {
        group: summarise(poems, truths, seed=p.seed, resamples=p.score.bootstrap)
        for group, poems in judged.items()
    }

    rows = [ReportRow(*row) for row in zip(couplets, *judged.values(), strict=True)]
    with together():
        write_json("metrics/score.json", metrics)
        write_text("metrics/plots/quality.csv", quality_plot(metrics))
        for group, poems in judged.items():
            write_text(f"metrics/plots/lines/{group}.csv", lines_plot(poems))
        write_text("metrics/report.html", render(rows, metrics))

    sys.stdout.reconfigure(errors="replace")  # a terminal may not know every character
    print(metrics_table(metrics))
    shown = {"prompt": couplets, **answers, "true": truths}
    for texts in islice(zip(*shown.values(), strict=True), SHOWN):
        print("\n" + side_by_side(dict(zip(shown, texts, strict=True))))


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


def quality_plot(metrics: dict[str, dict]) -> str:
    """CSV, a bar a row: the shares in form, rhymed and in tone, side by side for the groups."""
    rows = [
        f"{key}: {group},{values[key]}\n"
        for key in ("form", "rhyme", "tone")
        for group, values in metrics.items()
    ]
    return "answers,share\n" + "".join(rows)


def lines_plot(poems: list) -> str:
    """CSV, a bar a row: for each number of lines, the share of the answers that have as many."""
    counts = Counter(min(len(one.lines), MANY_LINES) for one in poems)
    labels = [*map(str, range(MANY_LINES)), f"{MANY_LINES}+"]
    rows = [f"{label},{counts[i] / len(poems):.4f}\n" for i, label in enumerate(labels)]
    return "lines,share\n" + "".join(rows)


if __name__ == "__main__":
    run(main)
