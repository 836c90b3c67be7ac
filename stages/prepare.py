"""Clean the poems and part them into training, validation and test.

    python -m stages.prepare

Reads data/raw. Writes data/prepared/{train,validation,test}.jsonl, rows of {"instruction",
"input", "output"}, and metrics/data.json: what was read, dropped and kept.
"""

from collections.abc import Iterable
from typing import Any

from verse import params
from verse.errors import UserError, run
from verse.files import read_rows, replacing, together, write_json, write_jsonl
from verse.poems.lines import FORMS


def main() -> None:
    p = params.read()

    from verse.poems import dataset  # pandas is slow to import

    raw = {
        part: dataset.table(
            read_rows(f"data/raw/{part}.jsonl", *dataset.COLUMNS, may_be_empty=True)
        )
        for part in ("train", "test")
    }
    train, dropped = dataset.clean(raw["train"])
    test, dropped_test = dataset.clean(raw["test"], dataset.COUPLETS)
    if train.empty:
        why = [f"{dropped[key]} {what}" for key, what in dataset.DROPPED.items() if dropped[key]]
        raise UserError(
            f"data/raw/train.jsonl: no poem is left to train on: none of {len(raw['train'])} is "
            f"usable ({'; '.join(why)}): mend them or take another data.source"
        )
    split = dataset.split(train, test, p.prepare, p.seed)
    parts = {"train": split.train, "validation": split.validation, "test": split.test}

    dropped += dropped_test + split.dropped
    metrics = {
        "read": {part: len(poems) for part, poems in raw.items()},
        "dropped": {reason: dropped[reason] for reason in dataset.DROPPED},
        "kept": sum(map(len, parts.values())),
        **{part: dataset.describe(poems) for part, poems in parts.items()},
    }
    with together():
        with replacing("data/prepared") as folder:
            for part, poems in parts.items():
                write_jsonl(folder / f"{part}.jsonl", poems.to_dict("records"))
        write_json("metrics/data.json", metrics)
    show(metrics, parts)


def show(metrics: dict[str, Any], parts: Iterable[str]) -> None:
    forms = list(FORMS.values())
    print(" " * 10, *forms, "other  poems  characters")  # a Chinese character is two columns wide
    for part in parts:
        counts = metrics[part]
        numbers = "".join(f"{counts[form]:5}" for form in forms)
        print(f"{part:10}{numbers}{counts['other']:6}{counts['poems']:7}{counts['characters']:12}")
    reasons = [f"{count} {reason}" for reason, count in metrics["dropped"].items() if count]
    print("dropped:", ", ".join(reasons) or "none")


if __name__ == "__main__":
    run(main)
