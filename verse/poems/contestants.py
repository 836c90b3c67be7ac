"""Who answers: a list, through which scores, report, plots and tables go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from verse.errors import UserError
from verse.files import write_json, write_text
from verse.params import ContestantName
from verse.paths import ADAPTER, ANSWERS, BASE, TEST, TUNED
from verse.poem import ANSWER, CHAT_ANSWER, Poem, iter_poems
from verse.schema import Record, read_json


class AskedOne(Record):
    """A row of the file that names the chat models that were asked, as far as it is read again."""

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
    "base": Contestant("未調", "base", BASE, stage="baseline"),
    "tuned": Contestant("已調", "tuned", TUNED, stage="generate", adapter=ADAPTER),
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

    asked: the file that names those. Raises UserError if it is broken.
    """
    others = {
        one.name: Contestant("", one.name, f"{ANSWERS}/{one.name}/answers.jsonl", chat=True)
        for one in read_json(asked, ASKED_ONES)
    }
    models = {name: one for name, one in CONTESTANTS.items() if one.answers}
    return models | others | {n: one for n, one in CONTESTANTS.items() if n not in models}


def answers_to(poems: Sequence[Poem], path: str, *, chat: bool = False) -> list[Poem]:
    """The answers of a contestant's file; of a chat model's with all that it wrote.

    Raises UserError unless they are to the couplets of these poems, in this order.
    """
    answers = list(iter_poems(path, CHAT_ANSWER if chat else ANSWER))
    if len(answers) != len(poems):
        raise UserError(
            f"{path}: {len(answers)} answers for the {len(poems)} poems of {TEST}: "
            "run dvc repro to generate them anew"
        )
    for number, (poem, answer) in enumerate(zip(poems, answers, strict=True), 1):
        if answer.couplet != poem.couplet:
            raise UserError(
                f"{path}, row {number}: answers another couplet than row {number} of {TEST}: "
                "run dvc repro to generate them anew"
            )
    return answers


def write_hand_in(folder: Path, answers: Sequence[Poem]) -> None:
    """The homework's hand-in, results.txt, and results.json, which its grader reads."""
    lines = [f"{n}. {one.couplet}{''.join(one.rest.split())}\n" for n, one in enumerate(answers, 1)]
    write_text(folder / "results.txt", "".join(lines))
    predicted = [{"input": one.couplet, "predict": one.rest} for one in answers]
    write_json(folder / "results.json", predicted)


SCRAMBLED = "scrambled"
"""Among a judge's marks, the poems of right tones without sense; they are no contestant."""

WATCHED = "tuned"
"""Whose answers the report sorts and filters by."""
