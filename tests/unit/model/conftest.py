import json
from contextlib import contextmanager

import pytest
import torch
import yaml
from grouped import ROOT, STAGES, outcome, run
from tiny_models import INSTRUCTION, POEMS, build, byte_pairs, machine, training


def make_project(tmp_path):
    """A folder with a tiny model, the poems and params.yaml, for the stages to run in."""
    settings = build("llama", tmp_path / "base", byte_pairs())
    rows = [
        {"instruction": INSTRUCTION, "input": couplet, "output": rest} for couplet, rest in POEMS
    ]
    for part in ("train", "validation", "test"):
        file = tmp_path / "data" / "prepared" / f"{part}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "metrics").mkdir()
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    params["model"] = settings.model_dump() | {"name": "base"}
    # Seven poems, three a step: the last step of an epoch has one, and process 1 has none.
    params["train"] = training(batch_size=3).model_dump()
    params["machine"] = machine().model_dump()
    params["decoding"]["max_new_tokens"] = 8
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return tmp_path


@pytest.fixture
def threads_of():
    """A context in which PyTorch computes with so many threads."""

    @contextmanager
    def within(count):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return within


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def alone(tmp_path_factory, forks):
    """What one process makes of it."""
    folder = make_project(tmp_path_factory.mktemp("alone"))
    for stage, *arguments in STAGES:
        done = run(folder, "-m", f"stages.{stage}", *arguments, forks=forks)
        assert done.returncode == 0, done.stderr
    found = outcome(folder)
    assert found.train[-1] < found.train[0] and len(found.results.splitlines()) >= len(POEMS)
    return found
