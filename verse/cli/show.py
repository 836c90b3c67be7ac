"""Show experiments in a table that fits a terminal: `dvc exp show` with what one decides by.

Scores that come first, the loss after training and the parameters that changed. What stands
behind the command goes to `dvc exp show`: `verse show --sort-by tuned.rhyme --sort-order desc`.
"""

import argparse
import subprocess
import sys

from verse.params import Params
from verse.poems.contestants import WATCHED
from verse.scoring.metrics import HEADLINES

OPTIONS = ["--only-changed", "--hide-workspace", "--no-pager"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(for_dvc=[])  # whatever else is on the command line


def main(options: argparse.Namespace) -> None:
    sys.exit(subprocess.run(command(*options.for_dvc)).returncode)


def command(*options: str) -> list[str]:
    """The call of DVC. It drops each column but those that begin like one of `kept`."""
    sections = [name for name in Params.model_fields if name != "machine"]
    kept = ["Experiment$", "State$", "after\\.loss$", *(f"{WATCHED}\\.{m}$" for m in HEADLINES)]
    kept += [rf"{name}(\.|$)" for name in sections]
    drop = f"(?!{'|'.join(kept)})"
    return [sys.executable, "-m", "dvc", "exp", "show", *OPTIONS, "--drop", drop, *options]
