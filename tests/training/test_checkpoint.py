"""`verse.training.checkpoint`: found by its key alone, written whole, and few; test_loop.py
resumes from one."""

import errno
import os
import shutil
import subprocess
import sys
import threading
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


RACE = """
import random, sys, time
from pathlib import Path
from verse.training.checkpoint import Checkpoints

folder, number, log = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
chance = random.Random(number)
for _ in range(15):
    checkpoints = Checkpoints(folder, chance.choice(["a", "a", "b"]))
    checkpoints.take()
    with log.open("a") as file:
        file.write(f"{checkpoints.folder.name} begins {number}\\n")
    checkpoints.write({}, {})
    time.sleep(chance.uniform(0, 0.01))
    checkpoints.write({}, {})
    with log.open("a") as file:
        file.write(f"{checkpoints.folder.name} ends {number}\\n")
    checkpoints.clear()
    checkpoints.remove_old()
"""


def test_trainings_with_one_key_take_turns(tmp_path):
    """Four processes, sixty trainings: none runs within another, and nothing is left of them."""
    log = tmp_path / "log"
    command = [sys.executable, "-c", RACE, tmp_path / "cache"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    racers = [
        subprocess.Popen([*command, str(number), log], env=env, stderr=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    for racer in racers:
        _, said = racer.communicate()
        assert (racer.returncode, said) == (0, "")
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 120
    for key in "ab":
        turns = [(what, number) for name, what, number in lines if name == key]
        begins, ends = turns[::2], turns[1::2]
        assert {what for what, _ in begins} == {"begins"} and {what for what, _ in ends} == {"ends"}
        assert [number for _, number in begins] == [number for _, number in ends]
    assert not list((tmp_path / "cache").iterdir())


def test_who_waits_goes_on_from_the_last_checkpoint(tmp_path, capfd):
    first, second = Checkpoints(tmp_path, "key"), Checkpoints(tmp_path, "key")
    first.take()
    first.save(7, *state(3))
    waiting = threading.Thread(target=second.take)
    waiting.start()
    while "waiting for it to end" not in capfd.readouterr().out:
        time.sleep(0.01)
    first.wait()
    first.clear()
    waiting.join()
    assert second.restore(*state(5)) == 7
    second.clear()


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
