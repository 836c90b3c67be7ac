"""`verse.training.checkpoint`: found by its key alone, written whole, and few; test_loop.py
resumes from one."""

import errno
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save
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


def stored(folder):
    """The tensors of a checkpoint after seven steps, and its file."""
    checkpoints = Checkpoints(folder, "key")
    checkpoints.save(7, *state(3))
    checkpoints.wait()
    return load(checkpoints.file.read_bytes()), checkpoints.file


def rest(**changes):
    values = {"step": 7, "scaler": {}, "curves": {"train": [], "validation": []}} | changes
    text = json.dumps({key: value for key, value in values.items() if value is not None})
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


MARRED = {
    "a weight less": lambda t: t.pop("adapter.weight"),
    "a weight more": lambda t: t.update({"adapter.other": torch.ones(2)}),
    "another shape": lambda t: t.update({"adapter.weight": torch.ones(3, 2)}),
    "another value": lambda t: t["adapter.weight"].mul_(2),
    "a moment less": lambda t: t.pop("optimizer.0.exp_avg"),
    "no optimizer": lambda t: [t.pop(name) for name in list(t) if name.startswith("optimizer")],
    "a step that is none": lambda t: t.update({"rest": rest(step=999)}),
    "no step": lambda t: t.update({"rest": rest(step=None)}),
    "no curves": lambda t: t.update({"rest": rest(curves=None)}),
    "no rest": lambda t: t.pop("rest"),
    "a rest of noise": lambda t: t.update({"rest": torch.full((9,), 255, dtype=torch.uint8)}),
    "no checksum": lambda t: t.pop("seal"),
    "half a checksum": lambda t: t.update({"seal": t["seal"][:16].clone()}),
    "a checksum of zeros": lambda t: t["seal"].zero_(),
    "NaN": lambda t: t["adapter.weight"].fill_(float("nan")),
}


@pytest.mark.parametrize("what", MARRED)
def test_a_marred_checkpoint_is_told_and_counts_as_none(tmp_path, capsys, what):
    tensors, file = stored(tmp_path)
    MARRED[what](tensors)
    file.write_bytes(save(tensors))
    fresh, untouched = state(5), state(5)
    assert Checkpoints(tmp_path, "key").restore(*fresh) == 0
    assert capsys.readouterr().err == f"{file} is broken: the training starts anew\n"
    assert torch.equal(fresh[0]["weight"], untouched[0]["weight"]) and fresh[3] == untouched[3]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_checkpoint_that_no_training_can_go_on_from(tmp_path, capsys, value):
    """Written whole, by a training whose numbers had left the finite ones."""
    checkpoints = Checkpoints(tmp_path, "key")
    saved = state(3)
    saved[0]["weight"].data[0, 0] = float(value)
    checkpoints.save(7, *saved)
    assert checkpoints.restore(*state(5)) == 0
    assert "holds NaN or infinity: the training starts anew" in capsys.readouterr().err


@pytest.mark.parametrize("at", [0, 3, 9, 100, -1, -40])
def test_a_bit_that_turned(tmp_path, capsys, at):
    _, file = stored(tmp_path)
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)
    assert Checkpoints(tmp_path, "key").restore(*state(5)) == 0
    assert "is broken: the training starts anew" in capsys.readouterr().err


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


def test_trainings_with_one_key_take_turns(tmp_path, forks):
    """Four processes, sixty trainings: none runs within another, and nothing is left of them."""
    log = tmp_path / "log"
    (tmp_path / "race.py").write_text(RACE)
    command = [forks.python, tmp_path / "race.py", tmp_path / "cache"]
    env = os.environ | forks.env | {"PYTHONPATH": str(ROOT)}
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
