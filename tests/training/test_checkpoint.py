"""`verse.training.checkpoint`: found by its key alone, written whole, and few; test_loop.py
resumes from one."""

import errno
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from verse.params import parse
from verse.training import checkpoint
from verse.training.checkpoint import KEPT_OTHERS, Checkpoints, fingerprint

ROOT = Path(__file__).parents[2]


def state(value):
    """A model, an optimizer after a step, a scaler and curves."""
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, value)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([model.weight], lr=0.1)
    model.weight.grad = torch.full_like(model.weight, value)
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**value)
    return model, optimizer, scaler, SimpleNamespace(train=[{"step": value}], validation=[])


def test_what_is_saved_is_restored(tmp_path):
    saved, fresh = state(3), state(5)
    checkpoints = Checkpoints(tmp_path, "key")
    assert checkpoints.restore(*fresh) == 0
    checkpoints.save(7, *saved)
    assert Checkpoints(tmp_path, "other").restore(*fresh) == 0
    assert checkpoints.restore(*fresh) == 7
    assert torch.equal(fresh[0].weight, saved[0].weight)
    (found,), (expected,) = (each[1].state_dict()["state"].values() for each in (fresh, saved))
    assert found.keys() == expected.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert fresh[2].state_dict() == saved[2].state_dict()
    assert fresh[3] == saved[3]
    checkpoints.clear()
    assert checkpoints.restore(*fresh) == 0
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(1, *state(3))
    checkpoints.wait()

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError) as error:
        checkpoints.save(2, *state(4))
        checkpoints.wait()
    assert error.value.errno == errno.ENOSPC
    assert Checkpoints(tmp_path, "key").restore(*state(5)) == 1
    assert [file.name for file in checkpoints.folder.iterdir()] == ["checkpoint.safetensors"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with what the train stage of dvc.yaml depends on, in small."""
    for name in ("dvc.yaml", "pyproject.toml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]["train"]["deps"]
    for dep in listed:
        file = tmp_path / dep if Path(dep).suffix else tmp_path / dep / "one.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "ROOT", tmp_path)
    return listed


def key(**changes):
    values = yaml.safe_load(Path("params.yaml").read_text("utf-8"))
    for section, change in changes.items():
        values[section] = values[section] | change if isinstance(change, dict) else change
    return fingerprint("train", parse(values))


def test_the_key_is_what_dvc_yaml_lists(project, monkeypatch):
    first = key()
    assert key(machine={"memory": 7}, decoding={"top_p": 0.1}, score={"bootstrap": 200}) == first
    assert len({first, key(seed=1), key(train={"epochs": 2}), key(model={"dtype": "float32"})}) == 4
    keys = [first]
    for dep in project:
        file = Path(dep) if Path(dep).suffix else Path(dep) / "one.py"
        file.write_text("2")
        keys.append(key())
    assert len(set(keys)) == len(project) + 1
    Path("verse/model/__pycache__").mkdir()
    Path("verse/model/__pycache__/one.pyc").write_text("compiled")
    assert key() == keys[-1]
    for package, same in (("torch", False), ("peft", False), ("requests", True), ("dvc", True)):
        with monkeypatch.context() as patch:
            other = lambda name, package=package: "0" if name == package else version(name)  # noqa: E731
            patch.setattr(checkpoint, "version", other)
            assert (key() == keys[-1]) == same


def test_a_model_elsewhere_counts_by_the_sizes_and_times_of_its_files(project, tmp_path):
    weights = tmp_path / "base" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_text("1")
    model = {"name": str(weights.parent)}
    first = key(model=model)
    assert key(model=model) == first
    os.utime(weights, (1, 1))
    second = key(model=model)
    weights.write_text("12")
    os.utime(weights, (1, 1))
    assert len({first, second, key(model=model)}) == 3
    assert key(model={"name": "author/model"}) != key(
        model={"name": "author/model", "revision": "a commit"}
    )


def test_what_other_trainings_left_goes(tmp_path):
    day = 24 * 3600
    for age in range(0, 30, 2):
        folder = tmp_path / f"{age} days"
        folder.mkdir()
        (folder / "checkpoint.safetensors").touch()
        os.utime(folder, (time.time() - age * day + 60,) * 2)
    mine = Checkpoints(tmp_path, "28 days")
    mine.remove_old()
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {f"{age} days" for age in (*range(0, 16, 2), 28)}
    for number in range(20):
        (tmp_path / f"new {number}").mkdir()
    mine.remove_old()
    assert len(list(tmp_path.iterdir())) == KEPT_OTHERS + 1
    assert mine.file.is_file()
