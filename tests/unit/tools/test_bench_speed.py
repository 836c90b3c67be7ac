"""`tools.bench.speed`, end to end on a model of a few thousand parameters."""

import json

import pytest
from tiny_models import INSTRUCTION, POEMS, build

from tools.bench import speed
from tools.bench.peers import ENTRIES
from tools.bench.speed import cells, chosen, compete, least_seconds, start
from verse.errors import ParameterError

DEVICE = {
    "operations_per_second": 1000.0,
    "bytes_per_second": 100.0,
    "linear_weights": 50,
    "output_weights": 10,
    "weight_bytes": 120,
    "own_tokens": 30,
    "answer_tokens": 20,
    "prompt_tokens": 6,
}


def test_everyone_trains_and_answers_and_is_told(tmp_path, monkeypatch, capsys, forked_python):
    build("llama", tmp_path / "model")
    source, to = tmp_path / "poems", tmp_path / "results"
    source.mkdir()
    rows = [{"instruction": INSTRUCTION, "input": a, "output": b} for a, b in POEMS]
    (source / "train.json").write_text(json.dumps(rows[:5]), "utf-8")
    (source / "test.json").write_text(json.dumps(rows[5:]), "utf-8")
    options = {
        "model.name": tmp_path / "model",
        "data.source": source,
        "prepare.max_train": 3,
        "prepare.test_poems": 2,
        "decoding.max_new_tokens": 3,
        "machine.device": "cpu",
        "machine.threads": 1,
    }
    settings = [part for key, value in options.items() for part in ("-S", f"{key}={value}")]
    monkeypatch.setattr("sys.argv", ["tools.bench.speed", *settings, "--to", str(to)])
    # Whether the others' packages are installed here does not matter.
    monkeypatch.setattr(speed, "find_spec", lambda package: None)
    speed.main()
    numbers = json.loads((to / "numbers.json").read_text("utf-8"))
    told, table = capsys.readouterr().out, (to / "table.md").read_text("utf-8")
    assert (to / "chart.png").read_bytes().startswith(b"\x89PNG")
    for entry, result in zip(ENTRIES, numbers["results"], strict=True):
        row = " | ".join(cells(entry, result))
        assert row in told and row in table
        if entry.package:
            assert result["failed"] == f"not installed: pip install {entry.package}"
            continue
        assert "failed" not in result, result
        assert result["poems"] == (3 if entry.job == "train" else 2)
        assert result["seconds"] > 0 and result["peak_gib"] > 0 and result["of_limit"] > 0
        if entry.job == "generate":
            assert len(result["tokens"]) == 2 and all(1 <= n <= 3 for n in result["tokens"])


def test_what_is_not_installed_and_what_fails_is_a_row_that_says_so(tmp_path):
    entry = ENTRIES[0]
    missing = vars(entry) | {"package": "no_such_package"}
    told = compete(type(entry)(**missing), DEVICE, str(tmp_path))
    assert told == {"failed": "not installed: pip install no_such_package"}
    assert cells(entry, told)[2:] == [told["failed"], "", "", ""]
    failed = compete(entry, DEVICE, str(tmp_path))  # where there is no params.yaml
    assert "params.yaml" in failed["failed"]
    (tmp_path / "ends.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert start(["ends"], str(tmp_path)) == "killed by signal 9"


def test_the_limit_is_that_of_the_formula():
    assert least_seconds({"poems": 4}, DEVICE) == 4 * (50 * 30 + 10 * 20) / 1000
    few = {"poems": 2, "tokens": [3, 1]}  # bound by reading
    assert least_seconds(few, DEVICE) == 3 * 120 / 100
    many = {"poems": 100, "tokens": [3] * 100}  # bound by arithmetic
    assert least_seconds(many, DEVICE) == 2 * (50 * (6 + 300 - 100) + 10 * 300) / 1000


def test_any_parameter_follows_s():
    p = chosen(["train.lora.r=3", "seed=7"])
    assert (p.train.lora.r, p.seed, p.prepare.validation_poems) == (3, 7, 1)
    with pytest.raises(ParameterError, match=r"train\.lora\.q"):
        chosen(["train.lora.q=3"])
    with pytest.raises(ParameterError, match="key=value"):
        chosen(["seed"])
