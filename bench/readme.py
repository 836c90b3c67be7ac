"""Write what the last run measured into the README.

    python -m bench.readme

Replaces the poems at its top, the table of metrics, the lines of gains and of losses; a test holds
them to the committed metrics. Run it after `dvc repro` wherever results changed.
"""

import json
import re
from pathlib import Path
from typing import Any

from verse.files import read_jsonl, write_text
from verse.judging.contestants import CONTESTANTS, WATCHED
from verse.judging.metrics import METRICS
from verse.judging.terminal import side_by_side

README = "README.md"
SHOWN = (0, 1, 2)  # test poems


def main() -> None:
    scores = json.loads(Path("metrics/score.json").read_text("utf-8"))
    intervals = json.loads(Path("metrics/intervals.json").read_text("utf-8"))
    halves = {row["contestant"]: row for row in intervals}
    losses = json.loads(Path("metrics/train.json").read_text("utf-8"))
    gains = json.loads(Path("metrics/gains.json").read_text("utf-8"))
    text = Path(README).read_text("utf-8")
    for pattern, new in {
        r"(?<=```\n)prompt .*?\n(?=```)": poems(),
        r"\| \| base \| tuned .*?\n(?=\n)": table(scores, halves),
        r"Gain of tuned over base.*?\n": gain(gains),
        r"Loss on the validation poems: .*?\n": (
            f"Loss on the validation poems: {losses['before']['loss_per_character']:.4f} nats a "
            f"character before training, {losses['after']['loss_per_character']:.4f} after.\n"
        ),
    }.items():
        text, found = re.subn(pattern, lambda _, new=new: new, text, count=1, flags=re.DOTALL)
        assert found, f"{README}: nothing matches {pattern}"
    write_text(README, text)


def poems() -> str:
    """The first test poems, each contestant's lines in a column."""
    truths = read_jsonl("data/prepared/test.jsonl")
    shown = [one for one in CONTESTANTS.values() if not one.floor]
    answers = {one.english: one.answers and read_jsonl(one.answers) for one in shown}
    blocks = []
    for number in SHOWN:
        truth = truths[number]
        texts = {
            name: rows[number]["answer"] if rows else truth["output"]
            for name, rows in answers.items()
        }
        blocks.append(side_by_side({"prompt": truth["input"], **texts}) + "\n")
    return "\n".join(blocks)


def table(scores: dict[str, dict[str, float]], halves: dict[str, dict[str, float]]) -> str:
    """The metrics in Markdown: a row a metric, a column a contestant, ± as half an interval."""
    heads = [one.english for one in CONTESTANTS.values()]
    rows = [["", *heads], ["---"] * (len(heads) + 1)]
    for metric in METRICS:
        cells = [f"{values[metric.name]:.3f}" for values in scores.values()]
        if metric.interval:
            noise = [halves[name][metric.name] for name in scores]
            cells = [
                f"{cell} ± {half:.3f}" if half else cell
                for cell, half in zip(cells, noise, strict=True)
            ]
        rows.append([metric.name, *cells])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows).replace("|  |", "| |")


def gain(gains: list[dict[str, Any]]) -> str:
    """What training gained, in a line."""
    (row,) = [row for row in gains if row["contestant"] == WATCHED]
    told = [
        f"{name} {row[name]:+.3f} ± {row[f'{name}_ci95']:.3f}"
        for name in row
        if f"{name}_ci95" in row
    ]
    return f"Gain of tuned over base, poem by poem: {', '.join(told)}.\n"


if __name__ == "__main__":
    main()
