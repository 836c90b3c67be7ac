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
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save

from verse.files import remove, replacing
from verse.model import distributed

KEPT_SECONDS = 14 * 24 * 3600
KEPT_OTHERS = 8


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

        Who waits holds the lock of the waiting room, so that the one before can tell. Of processes
        that train together, process 0 takes the locks, and all wait for it.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        training, room = self.locks
        reported = False
        for lock in (room, training):
            while distributed.any_rank(distributed.rank() == 0 and not took(lock)):
                if distributed.rank() == 0 and not reported:
                    print("the same training is under way: waiting for it to end", flush=True)
                reported = True
        room.release()

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def save(
        self,
        step: int,
        weights: dict[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        curves: Any,
    ) -> None:
        """Replace the checkpoint by one after `step` steps, as the arguments are now.

        On a GPU they are copied there, and brought to the disk while the training goes on.
        """
        tensors = {f"adapter.{name}": weight for name, weight in weights.items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        rest = {"step": step, "scaler": scaler.state_dict(), "curves": vars(curves)}
        tensors["rest"] = torch.frombuffer(bytearray(json.dumps(rest).encode()), dtype=torch.uint8)
        self.wait()
        copies = {name: copy(value.detach()).contiguous() for name, value in tensors.items()}
        copied = None
        if any(value.is_cuda for value in copies.values()):
            copied = torch.cuda.Event()
            copied.record()
        self.written = self.writer.submit(self.write, copies, copied)

    def write(self, tensors: dict[str, torch.Tensor], copied: torch.cuda.Event | None) -> None:
        if copied:
            with torch.cuda.stream(torch.cuda.Stream()):  # beside the one that trains
                copied.wait()
                tensors = {name: value.cpu() for name, value in tensors.items()}
        with replacing(self.file) as partial:
            partial.write_bytes(save(tensors | {"seal": seal(tensors)}))

    def wait(self) -> None:
        """Until what was saved last is on the disk. Raises OSError if it is full."""
        if self.written:
            self.written.result()
            self.written = None

    def restore(
        self,
        weights: dict[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        curves: Any,
    ) -> int:
        """Load the checkpoint into the arguments; the steps it has done, 0 if there is none.

        A file that is broken, was changed or holds NaN counts as none, and is reported on stderr:
        the next checkpoint takes its place. Of processes that train together,
        process 0 reads the file for all.
        """
        self.wait()
        stored = self.read() if distributed.rank() == 0 else {}
        tensors = distributed.broadcast(stored)
        if not tensors:
            return 0
        rest = json.loads(bytes(tensors.pop("rest").tolist()))
        states: dict[int, dict[str, torch.Tensor]] = {}
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

    def read(self) -> dict[str, torch.Tensor]:
        if not self.file.is_file():
            return {}
        try:
            tensors = load(self.file.read_bytes())
            whole = tensors.pop("seal").equal(seal(tensors))
        except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError):
            whole = False
        if whole and all(value.isfinite().all() for value in tensors.values()):
            return tensors
        what = "holds NaN or infinity" if whole else "is broken"
        print(f"{self.file} {what}: the training starts anew", file=sys.stderr)
        return {}

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


def seal(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """A checksum of tensors and their names, as a tensor."""
    digest = hashlib.sha256(save(tensors)).digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


def copy(value: torch.Tensor) -> torch.Tensor:
    """A copy where the tensor is, on the CPU if there is no room."""
    try:
        return value.clone()
    except torch.OutOfMemoryError:
        return value.cpu()


def took(lock: FileLock, seconds: float = 1) -> bool:
    """Whether a lock could be taken within that time."""
    with suppress(Timeout):
        lock.acquire(timeout=seconds)
    return lock.is_locked


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
