"""A hash of all that a stage's result depends on."""

import hashlib
import json
import tomllib
from collections.abc import Iterator
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from verse.files import digest
from verse.hub import find_folder
from verse.params import Params
from verse.paths import MODEL

ROOT = Path(__file__).parents[1]


def fingerprint(stage: str, params: Params, *, times: bool = True) -> str:
    """A hash of what a stage of dvc.yaml depends on, and of the packages that are installed.

    A model outside of this repository counts by its revision, or by the names, sizes and times
    of its files: reading 15 GB would take longer than many a training step. Without times, which
    differ between copies, it is the same on all machines.
    """
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"][stage]
    values = params.model_dump()
    parts: list[Any] = []
    for key in listed["params"]:
        if isinstance(key, str):
            parts.append([key, reduce(lambda section, name: section[name], key.split("."), values)])
        else:
            parts += [installed(file, groups) for file, groups in key.items()]
    deps = [dep for dep in listed["deps"] if dep != MODEL]
    parts += [[name, digest(file)] for dep in deps for name, file in files(dep)]
    if (folder := find_folder(params.model.name)) and params.model.name not in listed["deps"]:
        stats = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
        parts += [[name, stat.st_size, stat.st_mtime_ns * times] for name, stat in stats]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def installed(file: str, groups: list[str]) -> list[str]:
    """The installed versions of the packages that groups such as dependency-groups.x name."""
    project = tomllib.loads((ROOT / file).read_text("utf-8"))
    pins = [pin for group in groups for pin in reduce(dict.__getitem__, group.split("."), project)]
    return [f"{name}=={version(name)}" for name in (pin.split("==")[0] for pin in pins)]


def files(dep: str) -> Iterator[tuple[str, Path]]:
    """The files of a dependency: here, or where the code lies."""
    path = Path(dep) if Path(dep).exists() else ROOT / dep
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and file.suffix != ".pyc":
            yield f"{dep}/{file.relative_to(path)}", file
