"""Stages of a small project in several processes."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PATHS = f"{ROOT}:{ROOT / 'tests'}"


def run(folder, *command):
    """A stage or a script in `folder`, as a user runs it."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": PATHS, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )


def change(project, **values):
    """Change keys of the `machine` section."""
    file = project / "params.yaml"
    params = yaml.safe_load(file.read_text("utf-8"))
    params["machine"] |= values
    file.write_text(yaml.safe_dump(params), encoding="utf-8")


def curve(project, part):
    lines = (project / "metrics" / "plots" / f"{part}_loss.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]
