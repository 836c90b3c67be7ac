"""Who answers: a list, through which scores, report, plots and tables go."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Contestant:
    label: str
    english: str
    answers: str | None
    """The file of the answers, rows of {"input", "answer"}; None for the true poems."""


CONTESTANTS = {
    "base": Contestant("未調", "base", "data/generated/base.jsonl"),
    "tuned": Contestant("已調", "tuned", "data/generated/tuned.jsonl"),
    "reference": Contestant("原作", "true", None),
}
"""By the name that metrics/score.json has for them; the true poems come last."""

WATCHED = "tuned"
"""Whose answers the report sorts and filters by."""
