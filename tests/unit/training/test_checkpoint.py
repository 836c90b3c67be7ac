"""`verse.training.checkpoint`: found by its key alone, written whole, and few; test_loop.py
resumes from one."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from verse.training.checkpoint import KEPT_OTHERS, Checkpoints

ROOT = Path(__file__).parents[3]


def state(value):
    """Weights, an optimizer after a step, a scaler and curves."""
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, value)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([model.weight], lr=0.1)
    model.weight.grad = torch.full_like(model.weight, value)
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**value)
    return (
        {"weight": model.weight},
        optimizer,
        scaler,
        SimpleNamespace(train=[{"step": value}], validation=[]),
    )


def test_what_is_saved_is_restored(tmp_path):
    saved, fresh = state(3), state(5)
    checkpoints = Checkpoints(tmp_path, "key")
    assert checkpoints.restore(*fresh) == 0
    checkpoints.save(7, *saved)
    assert Checkpoints(tmp_path, "other").restore(*fresh) == 0
    assert checkpoints.restore(*fresh) == 7
    assert torch.equal(fresh[0]["weight"], saved[0]["weight"])
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
