"""`verse show` lets DVC show what one decides by."""

import re

from verse.cli import show
from verse.poems.contestants import WATCHED
from verse.scoring.metrics import HEADLINES, METRICS


def dropped(column: str) -> bool:
    command = show.command()
    return bool(re.match(command[command.index("--drop") + 1], column))


def test_the_headlines_and_the_parameters_stay():
    kept = ["Experiment", "State", "after.loss", "seed", "decoding.top_p", "data.source"]
    assert not any(map(dropped, [*kept, *(f"{WATCHED}.{name}" for name in HEADLINES)]))


def test_all_else_goes():
    others = [f"{WATCHED}.{metric.name}" for metric in METRICS if not metric.headline]
    others += [f"base.{name}" for name in HEADLINES]
    others += ["Created", "steps", "after.loss_per_character", "machine.threads", "data/raw"]
    others += ["dependency-groups.results-models", "verse/model", "stages/train.py"]
    assert all(map(dropped, others))


def test_options_go_on_to_dvc():
    assert show.command("--sort-by", "tuned.rhyme")[-2:] == ["--sort-by", "tuned.rhyme"]
