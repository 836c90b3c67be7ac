"""Checkpoints of a training, kept where DVC does not delete them.

DVC removes a stage's outputs before it runs and a temporary experiment lives in a folder of
its own, so checkpoints are kept in the user's cache, in a folder named by a hash of everything
the training depends on: a changed parameter, input or line of code never finds a stale one.
Each is one safetensors file, written whole; the newest replaces the one before. Those of
other trainings are kept for two weeks, the newest few of them.
"""

import hashlib
import json
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from verse.files import digest, remove, replacing

KEPT_SECONDS = 14 * 24 * 3600
KEPT_OTHERS = 8
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")  # that a training's numbers come from


def fingerprint(parts: dict, files: list[Path]) -> str:
    """A hash of JSON-able values, of the contents of files and of the packages' versions."""
    parts = {"packages": [version(name) for name in PACKAGES], **parts}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for file in sorted(files):
        key.update(f"{file.name} {digest(file)}".encode())
    return key.hexdigest()[:32]


def loaded_code() -> list[Path]:
    """The source files of this library that the running program has imported."""
    return [
        Path(module.__file__)
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "verse" and getattr(module, "__file__", None)
    ]


class Checkpoints:
    """The checkpoint of one training, in `folder`/`key`."""

    def __init__(self, folder: Path, key: str):
        self.folder = folder / key
        self.file = self.folder / "checkpoint.safetensors"

    def save(self, step: int, model: nn.Module, optimizer, scaler, curves) -> None:
        """Replace the checkpoint by one after `step` steps. Raises OSError on a full disk."""
        tensors = {f"adapter.{name}": weight for name, weight in trained(model).items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        rest = {"step": step, "scaler": scaler.state_dict(), "curves": vars(curves)}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with replacing(self.file) as partial:
            partial.write_bytes(save(tensors, metadata={"rest": json.dumps(rest)}))

    def restore(self, model: nn.Module, optimizer, scaler, curves) -> int:
        """Load the checkpoint into the arguments; the steps it has done, 0 if there is none.

        A broken file counts as none, and is told on stderr.
        """
        if not self.file.is_file():
            return 0
        try:
            with safe_open(self.file, "pt") as stored:
                rest = json.loads(stored.metadata()["rest"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError):
            print(f"{self.file} is broken: the training starts anew", file=sys.stderr)
            return 0
        states: dict[int, dict] = {}
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
        """Remove this training's checkpoint, after its outputs are written."""
        remove(self.folder)

    def remove_old(self) -> None:
        """Remove what other trainings left: two weeks old, or not among the newest few."""
        times = {}
        for folder in self.folder.parent.glob("*"):
            with suppress(FileNotFoundError):  # another training has just ended
                times[folder] = folder.stat().st_mtime
        times.pop(self.folder, None)
        for number, folder in enumerate(sorted(times, key=times.get, reverse=True)):
            if number >= KEPT_OTHERS or time.time() - times[folder] > KEPT_SECONDS:
                remove(folder)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that training changes: the adapter's."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
