"""Run an experiment by a recipe: `dvc exp run` with the parameters of recipes/<name>.yaml.

A recipe is a piece of params.yaml. What stands behind its name goes to `dvc exp run`:
`verse run breeze -S seed=7 --queue`. Without a name, lists the recipes.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from verse import params
from verse.errors import ParameterError, UserError
from verse.files import parse_yaml, read_text

RECIPES = Path("recipes")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="its name; without one, all are listed")
    parser.set_defaults(for_dvc=[])  # whatever else is on the command line


def main(options: argparse.Namespace) -> None:
    if options.recipe is None:
        if options.for_dvc:
            raise UserError(f"name a recipe before {options.for_dvc[0]}: {', '.join(names())}")
        for name in names():
            print(f"{name:<12}{read_text(RECIPES / f'{name}.yaml').splitlines()[0].lstrip('# ')}")
        return
    settings = overrides(options.recipe)
    words = ["exp", "run", *(word for one in settings for word in ("-S", one)), *options.for_dvc]
    print(f"dvc {shlex.join(words)}", flush=True)
    sys.exit(subprocess.run([sys.executable, "-m", "dvc", *words]).returncode)


def names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def overrides(recipe: str) -> list[str]:
    """A recipe as `key=value`, for `dvc exp run -S`.

    Raises UserError if there is no such recipe, ParameterError if params.yaml with the recipe in
    it does not fit the schema.
    """
    if recipe not in names():
        raise UserError(f"no recipe {recipe!r}; there are: {', '.join(names())}")
    path = RECIPES / f"{recipe}.yaml"
    try:
        values = parse_yaml(read_text(path), f"{path}: the recipe")
    except UserError as error:
        raise ParameterError(str(error)) from None
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: not a piece of params.yaml")
    merged = params.read().model_dump()
    _lay_over(merged, values)
    params.parse(merged, str(path))
    return [f"{key}={_written(value)}" for key, value in _leaves(values)]


def _lay_over(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = value


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _written(value: Any) -> str:
    """A value as Hydra reads it back: a plain word bare, all else as JSON."""
    bare = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII)
    if bare and yaml.safe_load(value) == value:
        return str(value)
    return json.dumps(value, ensure_ascii=False)
