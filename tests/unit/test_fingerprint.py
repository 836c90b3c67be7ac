"""`verse.fingerprint`: another key for what can change a stage's result, and for nothing else."""

import os
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from verse.fingerprint import fingerprint
from verse.params import parse

ROOT = Path(__file__).parents[2]


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
    monkeypatch.setattr("verse.fingerprint.ROOT", tmp_path)
    return listed


def key(times=True, **changes):
    values = yaml.safe_load(Path("params.yaml").read_text("utf-8"))
    for section, change in changes.items():
        values[section] = values[section] | change if isinstance(change, dict) else change
    return fingerprint("train", parse(values), times=times)


def test_the_key_is_what_dvc_yaml_lists(project, monkeypatch):
    first = key()
    assert key(machine={"memory": 7}, decoding={"top_p": 0.1}, score={"bootstrap": 200}) == first
    assert len({first, key(seed=1), key(train={"epochs": 2}), key(model={"dtype": "float32"})}) == 4
    keys = [first]
    for dep in project:  # but for the link to the model, of which the next test is
        file = Path(dep) if Path(dep).suffix else Path(dep) / "one.py"
        file.write_text("2")
        keys.append(key())
    assert len(set(keys)) == len(project)
    Path("verse/model/__pycache__").mkdir()
    Path("verse/model/__pycache__/one.pyc").write_text("compiled")
    assert key() == keys[-1]
    for package, same in (("torch", False), ("peft", False), ("requests", True), ("dvc", True)):
        with monkeypatch.context() as patch:
            other = lambda name, package=package: "0" if name == package else version(name)  # noqa: E731
            patch.setattr("verse.fingerprint.version", other)
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
    copied = key(times=False, model=model)
    os.utime(weights, (2, 2))
    assert key(times=False, model=model) == copied, "on another machine"
    assert key(model={"name": "author/model"}) != key(
        model={"name": "author/model", "revision": "a commit"}
    )
