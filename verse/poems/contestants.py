"""Who answers: a list, through which scores, report, plots and tables go."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from verse.errors import UserError
from verse.files import iter_rows
from verse.params import ContestantName
from verse.schema import Record, read_json

TEST = "data/prepared/test.jsonl"
"""The file of the test poems."""

ASKED = "data/answers/contestants.json"
"""The file that names the chat models that were asked."""


class AskedOne(Record):
    """A row of that file, as far as it is read again."""

    name: ContestantName


ASKED_ONES = TypeAdapter(list[AskedOne])


@dataclass(frozen=True)
class Contestant:
    label: str
    english: str
    answers: str | None = None
    """The file of the answers, rows of {"input", "answer"}; None where there is no file."""
    baseline: str = ""
    """The function of `baselines` that makes the answers of one; with neither this nor a file, they
    are the true poems."""
    stage: str = ""
    """Of dvc.yaml, in which a model of this workspace writes them."""
    adapter: str | None = None
    """The folder of what is put on the base model for that; None for the base model alone."""
    chat: bool = False
    """A chat model, whose rows also have `raw`: all that it wrote."""


CONTESTANTS = {
    "base": Contestant("未調", "base", "data/generated/base.jsonl", stage="baseline"),
    "tuned": Contestant(
        "已調", "tuned", "data/generated/tuned.jsonl", stage="generate", adapter="models/adapter"
    ),
    "random": Contestant("亂字", "random", baseline="random_characters"),
    "constant": Contestant("一律", "constant", baseline="constant"),
    "another": Contestant("他詩", "another's", baseline="another_rest"),
    "reference": Contestant("原作", "true"),
}
"""By the name that metrics/score.json has for them. Those that answer come first, then the
baselines, answers without sense that give the figures their scale; the true poems come last."""

MODELS = {name: one for name, one in CONTESTANTS.items() if one.stage}
"""Those that write in this workspace. Another is a line above, and a stage of dvc.yaml."""

GAIN_OVER = "base"
"""Against whose answers, poem by poem, the others' gain is told."""


def contestants(asked: str) -> dict[str, Contestant]:
    """All contestants: CONTESTANTS and, after the other models, those that were asked.

    asked: a file such as ASKED. Raises UserError if it is broken.
    """
    others = {
        one.name: Contestant("", one.name, f"data/answers/{one.name}/answers.jsonl", chat=True)
        for one in read_json(asked, ASKED_ONES)
    }
    models = {name: one for name, one in CONTESTANTS.items() if one.answers}
    return models | others | {n: one for n, one in CONTESTANTS.items() if n not in models}


def answers_to(couplets: Sequence[str], path: str) -> list[str]:
    """The answers of a contestant's file, in which half a surrogate pair becomes �.

    Raises UserError unless they are to these couplets, in this order.
    """
    rows = [
        (row["input"], row["answer"]) for row in iter_rows(path, "input", "answer", mended=True)
    ]
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


SCRAMBLED = "scrambled"
"""Among a judge's marks, the poems of right tones without sense; they are no contestant."""

WATCHED = "tuned"
"""Whose answers the report sorts and filters by."""
