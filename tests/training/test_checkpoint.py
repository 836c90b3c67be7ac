"""`verse.training.checkpoint`: found by its key alone, written whole, and few; test_loop.py
resumes from one."""

import errno
import os
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from verse.training.checkpoint import KEPT_OTHERS, Checkpoints, fingerprint


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

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError) as error:
        checkpoints.save(2, *state(4))
    assert error.value.errno == errno.ENOSPC
    assert checkpoints.restore(*state(5)) == 1
    assert [file.name for file in checkpoints.folder.iterdir()] == ["checkpoint.safetensors"]


def test_the_key_changes_with_every_value_and_every_byte(tmp_path):
    file = tmp_path / "train.jsonl"
    keys = set()
    for text in ("甲", "乙"):
        file.write_text(text)
        keys |= {fingerprint({"seed": 1}, [file]), fingerprint({"seed": 2}, [file])}
    assert len(keys) == 4
    assert fingerprint({"seed": 2}, [file]) in keys


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
