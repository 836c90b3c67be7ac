"""Show experiments in a table that fits a terminal: `dvc exp show` without the columns of hashes.

What stands behind the command goes to `dvc exp show`: `verse show --sort-by rhyme`.
"""

import argparse
import subprocess
import sys

DROPPED = r".*/|machine\.|dependency-groups\.|Created|form"
"""What no experiment is about: hashes of dependencies, versions, the machine; and the score that is
1 in nearly all."""
OPTIONS = ["--only-changed", "--hide-workspace", "--drop", DROPPED]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(for_dvc=[])  # whatever else is on the command line


def main(options: argparse.Namespace) -> None:
    experiments = [sys.executable, "-m", "dvc", "exp"]
    known = [*experiments, "list", "--all-commits", "--name-only"]
    found = subprocess.run(known, stdout=subprocess.PIPE)
    if found.returncode:  # DVC has said why
        sys.exit(found.returncode)
    if not found.stdout:  # DVC would print nothing
        print("no experiments yet: dvc exp run -S decoding.top_p=0.5 makes one")
        return
    sys.exit(subprocess.run([*experiments, "show", *OPTIONS, *options.for_dvc]).returncode)
