"""Show experiments in a table that fits a terminal: `dvc exp show` without the columns of hashes.

What stands behind the command goes to `dvc exp show`: `verse show --sort-by rhyme`.
"""

import argparse
import subprocess
import sys

DROPPED = r".*/|machine\.|dependency-groups\."
"""What no experiment is about: hashes of dependencies, versions, the machine."""
OPTIONS = ["--only-changed", "--hide-workspace", "--drop", DROPPED]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(for_dvc=[])  # whatever else is on the command line


def main(options: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "dvc", "exp", "show", *OPTIONS, *options.for_dvc]
    sys.exit(subprocess.run(command).returncode)
