"""Who answers: a list, through which scores, report, plots and tables go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from verse.judging import floors


@dataclass(frozen=True)
class Contestant:
    label: str
    english: str
    answers: str | None = None
    """The file of the answers, rows of {"input", "answer"}; None where there is no file."""
    floor: Callable[[Sequence[floors.Poem], Sequence[floors.Poem], int], list[str]] | None = None
    """What makes the answers of a floor; with neither this nor a file, they are the true poems."""


CONTESTANTS = {
    "base": Contestant("未調", "base", "data/generated/base.jsonl"),
    "tuned": Contestant("已調", "tuned", "data/generated/tuned.jsonl"),
    "random": Contestant("亂字", "random", floor=floors.random_characters),
    "constant": Contestant("一律", "constant", floor=floors.constant),
    "another": Contestant("他詩", "another's", floor=floors.another_rest),
    "reference": Contestant("原作", "true"),
}
"""By the name that metrics/score.json has for them. Those that answer come first, then the floors,
answers without sense that give the figures their scale; the true poems come last."""

BASELINE = "base"
"""Against whose answers, poem by poem, the others' gain is told."""

WATCHED = "tuned"
"""Whose answers the report sorts and filters by."""
