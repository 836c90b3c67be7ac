"""`verse.reporting`: services hear of each row once, and no training waits or fails for them.

TensorBoard and Weights & Biases are not of the locked environment: pip install tensorboard wandb.
"""

import threading
import time
from contextlib import contextmanager
from importlib.machinery import ModuleSpec

import pytest
from chat_server import Server

from verse import reporting
from verse.errors import UserError
from verse.reporting import Reports, check

CURVES = {
    "train": [{"step": step, "loss": 4.0625 - step / 8} for step in range(1, 9)],
    "validation": [{"step": 0, "loss": 4.5, "loss_per_character": 5.0}, {"step": 8, "loss": 3.25}],
}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "INTERVAL", 0.01)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "DVC_STUDIO_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_EXP_NAME", "calm")
    return tmp_path


@pytest.fixture
def service(monkeypatch):
    """Puts a service `x` in place that hands what it is sent to a function."""

    def put(send):
        @contextmanager
        def service(settings):
            yield send

        monkeypatch.setitem(reporting.SERVICES, "x", service)
        monkeypatch.setattr(reporting, "missing", lambda name: "")

    return put


def tell(*names):
    """A training whose curves grow row by row."""
    curves = {"train": [], "validation": []}
    reports = Reports(names, {"seed": 1})
    for curve, rows in CURVES.items():
        for row in rows:
            curves[curve].append(row)
            reports(curves)
            time.sleep(0.02)
    reports.close()


def gather(told, new):
    for curve, rows in new.items():
        told.setdefault(curve, []).extend(rows)


def test_each_row_is_told_once_in_order(service):
    told, calls = {}, []
    service(lambda new: (calls.append(new), gather(told, new)))
    tell("x", "x")
    assert told == CURVES and len(calls) > 1


def test_a_service_that_fails_for_a_while_hears_all_and_is_reported_once(service, capsys):
    told, fails = {}, [True, True, False, True]

    def send(new):
        if fails and fails.pop():
            raise ConnectionError("no route\nto host")
        gather(told, new)

    service(send)
    tell("x")
    assert told == CURVES and not fails
    assert capsys.readouterr().err == "x: no route to host; no result depends on it\n"


def test_a_training_that_begins_anew_tells_nothing_twice(service, capsys):
    """With fewer rows than it had: out of memory, it goes on from its checkpoint."""
    told = {}
    service(lambda new: gather(told, new) if any(new.values()) else 1 / 0)
    reports = Reports(["x"], {})
    for rows in (CURVES["train"], CURVES["train"][:3], CURVES["train"]):
        reports({"train": rows})
        time.sleep(0.1)
    reports.close()
    assert told["train"] == CURVES["train"] and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "TimeoutError"),
        (SystemExit(), "SystemExit"),
        (SystemExit(3), "3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ValueError("\n \t"), "ValueError"),
        (ValueError("詩\ud800\x1b[2J\nno"), "詩\ufffd\ufffd[2J no"),
        (ValueError("x" * 10**7), "x" * 300),
    ],
)
def test_whatever_a_service_ends_by_is_one_line(service, capsys, error, words):
    def send(new):
        raise error

    service(send)
    tell("x")
    assert capsys.readouterr().err == f"x: {words}; no result depends on it\n"


@pytest.mark.parametrize("name", ["..", "../../data", "a/../..", ".", "/", "", "/etc"])
def test_a_name_leads_to_no_other_folder(monkeypatch, name):
    monkeypatch.setenv("DVC_EXP_NAME", name)
    assert reporting.run_name() not in ("", ".", "..") and "/" not in reporting.run_name()


def test_a_service_that_cannot_begin_is_reported_once(monkeypatch, capsys):
    def service(settings):
        raise OSError("no")

    monkeypatch.setitem(reporting.SERVICES, "studio", service)
    monkeypatch.setenv("DVC_STUDIO_TOKEN", "sesame")
    tell("studio")
    assert capsys.readouterr().err == "studio: no; no result depends on it\n"


def test_no_training_waits_for_a_service_that_hangs(service, capsys, monkeypatch):
    monkeypatch.setattr(reporting, "PATIENCE", 0.2)
    free = threading.Event()
    service(lambda new: free.wait(20))
    before = time.monotonic()
    tell("x")
    assert time.monotonic() - before < 5
    free.set()
    assert capsys.readouterr().err == "x: not reached in time; no result depends on it\n"


@pytest.mark.parametrize(
    ("name", "package", "env", "told"),
    [
        ("tensorboard", False, {}, "tensorboard is not installed: pip install tensorboard"),
        ("wandb", False, {}, "wandb is not installed: pip install wandb"),
        ("wandb", True, {}, "wandb wants a key"),
        ("wandb", True, {"WANDB_MODE": "online"}, "wandb wants a key"),
        ("wandb", True, {"WANDB_MODE": "offline"}, None),
        ("wandb", True, {"WANDB_API_KEY": "x"}, None),
        ("studio", True, {}, "studio wants a token"),
        ("studio", True, {"DVC_STUDIO_TOKEN": "x"}, None),
    ],
)
def test_what_a_service_lacks_is_one_line(name, package, env, told, monkeypatch):
    spec = ModuleSpec(name, None, origin="__init__.py" if package else None)  # or a folder's
    monkeypatch.setattr(reporting, "find_spec", lambda name: spec)
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    if told:
        with pytest.raises(UserError, match=f"^machine.report_to: {told}"):
            check([name])
    else:
        check([name])


def test_tensorboard_reads_the_curves(root):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    for _ in range(2):  # the second takes the place of the first
        tell("tensorboard")
    events = EventAccumulator(str(root / ".dvc/tmp/tensorboard/calm"))
    events.Reload()
    for curve, rows in CURVES.items():
        told = [(e.step, make_ndarray(e.tensor_proto)) for e in events.Tensors(f"loss/{curve}")]
        assert told == [(row["step"], row["loss"]) for row in rows]


def test_wandb_keeps_a_run_offline(root, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell("wandb")
    (file,) = root.glob(".dvc/tmp/wandb/offline-run-*/*.wandb")
    losses = [str(row["loss"]).encode() for rows in CURVES.values() for row in rows]
    words = [b"calm", b"loss/train", b"loss/validation", *losses]
    late = time.monotonic() + 20
    while missed := [word for word in words if word not in file.read_bytes()]:
        assert time.monotonic() < late, missed  # a process of its own writes it
        time.sleep(0.1)


@pytest.fixture
def studio(monkeypatch):
    """A server in Studio's place, which fails at first."""
    with Server(fault=lambda number: "500" if number == 0 else None) as server:
        monkeypatch.setenv("DVC_STUDIO_URL", server.base_url)
        monkeypatch.setenv("DVC_STUDIO_REPO_URL", "git@example.org:li/verse.git")
        monkeypatch.setenv("DVC_STUDIO_TOKEN", "sesame")
        monkeypatch.setenv("DVC_EXP_BASELINE_REV", "a" * 40)
        yield server


def test_studio_hears_of_an_experiment(studio, capsys):
    tell("studio")
    assert {sent["Authorization"] for sent in studio.headers} == {"token sesame"}
    told = {}
    for body in studio.asked[1:]:
        assert (body["type"], body["name"], body["baseline_sha"]) == ("data", "calm", "a" * 40)
        gather(told, {file: plot["data"] for file, plot in body.get("plots", {}).items()})
    assert told == {f"metrics/plots/{curve}_loss.csv": rows for curve, rows in CURVES.items()}
    assert "oops</h1>; no result depends on it" in capsys.readouterr().err


def test_studio_takes_experiments_alone(studio, capsys, monkeypatch):
    monkeypatch.delenv("DVC_EXP_NAME")
    tell("studio")
    assert studio.asked == [] and "dvc exp run" in capsys.readouterr().err
