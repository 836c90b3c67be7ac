"""Stages of a small project in several processes."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PATHS = f"{ROOT}:{ROOT / 'tests'}"


def run(folder, *command, forks=None):
    """A stage or a script in `folder`, as a user runs it, or as a fork: conftest.py."""
    python, env = (forks.python, forks.env) if forks else (sys.executable, {})
    return subprocess.run(
        [python, *command],
        cwd=folder,
        env=os.environ | env | {"PYTHONPATH": PATHS, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )


def change(project, **values):
    """Change keys of the `machine` section."""
    file = project / "params.yaml"
    params = yaml.safe_load(file.read_text("utf-8"))
    params["machine"] |= values
    file.write_text(yaml.safe_dump(params), encoding="utf-8")


STAGES = (["train"], ["generate", "tuned"])


@dataclass(frozen=True)
class Outcome:
    """What a training and the answers after it left in a folder."""

    train: list[float]
    validation: list[float]
    results: bytes
    adapter: int  # bytes


def outcome(folder):
    return Outcome(
        curve(folder, "train"),
        curve(folder, "validation"),
        (folder / "data/generated/results.txt").read_bytes(),
        (folder / "models/adapter/adapter_model.safetensors").stat().st_size,
    )


def assert_alike(one, other, within):
    """The losses up to so many nats, all else the same."""
    assert one.train == pytest.approx(other.train, abs=within)
    assert one.validation == pytest.approx(other.validation, abs=within)
    assert (one.results, one.adapter) == (other.results, other.adapter)


def curve(project, part):
    lines = (project / "metrics" / "plots" / f"{part}_loss.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]
