"""Clean the poems and split them into training, validation and test.

    python -m stages.prepare

Reads data/raw. Writes data/prepared/{train,validation,test}.jsonl, rows of {"instruction",
"input", "output"}, and metrics/data.json: what was read, dropped and kept.
"""

import sys
from collections.abc import Iterable
from itertools import chain
from typing import Any

from verse import params, paths
from verse.errors import UserError, run
from verse.files import replacing, write_json, write_jsonl
from verse.poem import iter_poems
from verse.poems import dataset
from verse.poems.lines import FORMS

STRANGE = 0.01  # of the characters; Tang verse as Taiwan writes it has 0.003


def main() -> None:
    p = params.read()
    train, dropped = dataset.clean(iter_poems(paths.RAW_TRAIN))
    test, dropped_test = dataset.clean(iter_poems(paths.RAW_TEST), dataset.COUPLETS)
    read = {"train": len(train) + dropped.total(), "test": len(test) + dropped_test.total()}
    if not train:
        why = [f"{dropped[key]} {what}" for key, what in dataset.DROPPED.items() if dropped[key]]
        raise UserError(
            f"{paths.RAW_TRAIN}: no poem is left to train on: none of {read['train']} is "
            f"usable ({'; '.join(why)}): fix them or take another data.source"
        )
    dataset.check_usable(dropped, read["train"], p.prepare, paths.RAW_TRAIN)
    dataset.check_usable(dropped_test, read["test"], p.prepare, paths.RAW_TEST)
    split = dataset.split(train, test, p.prepare, p.seed)
    parts = {"train": split.train, "validation": split.validation, "test": split.test}

    dropped += dropped_test + split.dropped
    metrics = {
        "read": read,
        "dropped": {reason: dropped[reason] for reason in dataset.DROPPED},
        "kept": sum(map(len, parts.values())),
        "strange": (strange := dataset.strange(chain(*parts.values()))),
        **{part: dataset.describe(poems) for part, poems in parts.items()},
    }
    with replacing(paths.PREPARED) as folder:
        for part, poems in parts.items():
            write_jsonl(folder / f"{part}.jsonl", (poem.row() for poem in poems))
    write_json(paths.DATA_FIGURES, metrics)
    show(metrics, parts)
    if strange["simplified"] > STRANGE or strange["unrhymed"] > STRANGE:
        print(
            f"prepare: {strange['simplified']:.1%} of the characters are simplified and "
            f"{strange['unrhymed']:.1%} in no book of rhymes, of which the metrics know little: "
            "give poems in traditional characters (opencc -c s2t)",
            file=sys.stderr,
        )
    if len(test) != len(split.test):
        print(f"prepare.test_poems: {len(split.test)}, where the source has {len(test)}")


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
