"""Checkpoints of a training, kept where DVC does not delete them.

DVC removes a stage's outputs before it runs and a temporary experiment lives in a folder of
its own, so checkpoints are kept in the user's cache, in a folder named by a hash of everything
the training depends on, which dvc.yaml lists: a changed parameter, input or line of code never
finds a stale one, and nothing else discards one. Each is one safetensors file, written whole; the
newest replaces the one before. Those of other trainings are kept for two weeks, the newest few.

Working copies and temporary experiments share the cache, so a lock keeps trainings with one key
apart: the second waits, and goes on from the last checkpoint of the first.
"""

import hashlib
import json
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from verse.files import digest, remove, replacing
from verse.hub import find_folder
from verse.params import Params

ROOT = Path(__file__).parents[2]
KEPT_SECONDS = 14 * 24 * 3600
KEPT_OTHERS = 8


def fingerprint(stage: str, params: Params) -> str:
    """A hash of what a stage of dvc.yaml depends on, and of the packages that are installed.

    A model outside of this repository counts by its revision, or by the names, sizes and times
    of its files: reading 15 GB would take longer than many a training step.
    """
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"][stage]
    values = params.model_dump()
    parts: list[Any] = []
    for key in listed["params"]:
        if isinstance(key, str):
            parts.append([key, reduce(lambda section, name: section[name], key.split("."), values)])
        else:
            parts += [installed(file, groups) for file, groups in key.items()]
    parts += [[name, digest(file)] for dep in listed["deps"] for name, file in files(dep)]
    if (folder := find_folder(params.model.name)) and params.model.name not in listed["deps"]:
        stats = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
        parts += [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
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


class Checkpoints:
    """The checkpoint of one training, in `folder`/`key`, due after each `every` steps.

    Files are written by a thread while the training goes on: what fails there is raised by the
    next call.
    """

    def __init__(self, folder: Path, key: str, every: int = 1):
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.written: Future[None] | None = None
        self.folder = folder / key
        self.file = self.folder / "checkpoint.safetensors"
        self.every = every
        self.locks = locks_of(self.folder)

    def take(self) -> None:
        """Wait until no other process trains the same, and keep others waiting until this ends.

        Who waits holds the lock of the waiting room, so that the one before can tell.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        training, room = self.locks
        told = False
        for lock in (room, training):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if not told:
                    print("the same training is under way: waiting for it to end", flush=True)
                told = True
                lock.acquire()
        room.release()

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        curves: Any,
    ) -> None:
        """Replace the checkpoint by one after `step` steps, as the arguments are now."""
        tensors: dict[str, torch.Tensor] = {
            f"adapter.{name}": weight for name, weight in trained(model).items()
        }
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        rest = {"step": step, "scaler": scaler.state_dict(), "curves": vars(curves)}
        metadata = {"rest": json.dumps(rest)}
        tensors = {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in tensors.items()
        }
        self.wait()
        self.written = self.writer.submit(self.write, tensors, metadata)

    def write(self, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        with replacing(self.file) as partial:
            partial.write_bytes(save(tensors, metadata=metadata))

    def wait(self) -> None:
        """Until what was saved last is on the disk. Raises OSError if it is full."""
        if self.written:
            self.written.result()
            self.written = None

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        curves: Any,
    ) -> int:
        """Load the checkpoint into the arguments; the steps it has done, 0 if there is none.

        A broken file counts as none, and is told on stderr.
        """
        self.wait()
        if not self.file.is_file():
            return 0
        try:
            with safe_open(self.file, "pt") as stored:
                rest = json.loads(stored.metadata()["rest"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError):
            print(f"{self.file} is broken: the training starts anew", file=sys.stderr)
            return 0
        states: dict[int, dict[str, torch.Tensor]] = {}
        weights = trained(model)
        for name, value in tensors.items():
            kind, _, within = name.partition(".")
            if kind == "adapter":
                with torch.no_grad():
                    weights[within].copy_(value)
            else:
                index, _, field = within.partition(".")
                states.setdefault(int(index), {})[field] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
        if rest["scaler"]:
            scaler.load_state_dict(rest["scaler"])
        curves.train, curves.validation = rest["curves"]["train"], rest["curves"]["validation"]
        return rest["step"]

    def clear(self) -> None:
        """Remove this training's checkpoint, after its outputs are written.

        It stays for a process that waits to train the same.
        """
        discard(self.folder, self.locks[1:])
        for lock in self.locks:
            lock.release()

    def remove_old(self) -> None:
        """Remove what other trainings left: two weeks old, or not among the newest few."""
        times: dict[Path, float] = {}
        for path in self.folder.parent.glob("*"):
            with suppress(FileNotFoundError):  # another training has just ended
                folder = path.with_name(path.name.split(".")[0])
                times[folder] = max(times.get(folder, 0.0), path.stat().st_mtime)
        times.pop(self.folder, None)
        for number, folder in enumerate(sorted(times, key=times.__getitem__, reverse=True)):
            if number >= KEPT_OTHERS or time.time() - times[folder] > KEPT_SECONDS:
                discard(folder, locks_of(folder))


def locks_of(folder: Path) -> tuple[FileLock, FileLock]:
    """The locks of a training: the one who trains holds the first, the next to train the second.

    They lie beside its folder.
    """
    return FileLock(f"{folder}.training.lock"), FileLock(f"{folder}.waiting.lock")


def discard(folder: Path, locks: Iterable[FileLock]) -> None:
    """Remove a training's folder, and the files of its locks, if `locks` show that none needs it.

    What cannot be removed stays: no training fails for it.
    """
    with suppress(OSError, Timeout), ExitStack() as held:
        for lock in locks:
            held.enter_context(lock.acquire(timeout=0))
        remove(folder)
        for lock in locks_of(folder):
            Path(lock.lock_file).unlink(missing_ok=True)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that training changes: the adapter's."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
