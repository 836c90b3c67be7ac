"""Work shared by processes: the same curves and answers as one, and one line for a failure."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from grouped import PATHS, STAGES, assert_alike, change, curve, outcome, run
from tiny_models import machine

from verse.errors import TooLargeError, UserError
from verse.model import distributed


def test_two_processes_do_the_same_as_one(project, alone, forks):
    change(project, processes=2)
    for stage, *arguments in STAGES:
        done = run(project, "-m", f"stages.{stage}", *arguments, forks=forks)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("validation perplexity") == (stage == "train")  # of process 0
    assert_alike(outcome(project), alone, within=2e-4)


def test_a_fault_that_all_processes_have_is_told_once(project, forks):
    change(project, processes=2)
    (project / "base" / "model.safetensors").unlink()
    done = run(project, "-m", "stages.train", forks=forks)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == "train: model.name 'base': has no weights (*.safetensors): add them"


AGENT = (
    f"{sys.executable} -m torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d "
    "--local-addr localhost --rdzv-endpoint localhost:{port} --rdzv-id poems"
)


def launch(project, port=0, nodes=1):
    """Let the stages be started by torchrun, by one for each of so many machines."""
    agent = AGENT.format(port=port) + f' --nnodes {nodes} "$@"'
    script = f"{agent} &\n" * (nodes - 1) + f"{agent}\nstatus=$?\nwait\nexit $status\n"
    (project / "launch.sh").write_text(script)
    change(project, launch="sh launch.sh")


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.soak
def test_two_machines_of_two_processes_do_the_same_as_one(project, alone):
    launch(project, free_port(), nodes=2)
    for stage, *arguments in STAGES:
        done = run(project, "-m", f"stages.{stage}", *arguments)
        assert done.returncode == 0, done.stderr
    assert_alike(outcome(project), alone, within=1e-3)


KILLED = """
import os, signal, sys
from verse.training import loop

accumulate_gradients, calls = loop.accumulate_gradients, []

def killed(*arguments):
    calls.append(arguments)
    if len(calls) > 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return accumulate_gradients(*arguments)

if "RANK" in os.environ:
    loop.accumulate_gradients = killed
from verse.errors import run
from stages.train import main
run(main, "train")
"""


@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_killed_process_is_one_line_and_others_go_on(project, alone, launched, forks):
    (project / "killed.py").write_text(KILLED)
    change(project, processes=2)
    if launched:
        launch(project)
    done = run(project, "killed.py")
    assert done.returncode == 1
    said = done.stderr.splitlines()
    if launched:
        assert said[-1].startswith("train: machine.launch: sh ended with 1, see above")
    else:
        assert said == ["train: process 1 of 2 was killed by SIGKILL"]
    (checkpoint,) = (project / "cache").rglob("checkpoint.safetensors")
    change(project, processes=1, launch=None)
    done = run(project, "-m", "stages.train", forks=forks)
    assert done.returncode == 0, done.stderr
    assert not checkpoint.exists()
    assert curve(project, "train") == pytest.approx(alone.train, abs=2e-4)


@pytest.mark.soak
@pytest.mark.parametrize(("agent", "processes"), [(0, 4), (1, 2)])
def test_a_killed_agent_ends_its_processes_and_others_go_on(project, alone, agent, processes):
    doomed = f'os.environ["GROUP_RANK"] == "{agent}" and os.environ["LOCAL_RANK"] == "0"'
    script = KILLED.replace('os.environ["RANK"] == "1"', doomed).replace("getpid", "getppid")
    (project / "killed.py").write_text(script)
    launch(project, free_port(), nodes=2)
    done = run(project, "killed.py")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train: machine.launch: sh ended with ")
    assert left_over(project) == []
    (checkpoint,) = (project / "cache").rglob("checkpoint.safetensors")
    change(project, processes=processes, launch=None)
    done = run(project, "-m", "stages.train")
    assert done.returncode == 0, done.stderr
    assert not checkpoint.exists()
    assert curve(project, "train") == pytest.approx(alone.train, abs=1e-3)


def left_over(folder):
    """The processes that still work in a folder, a second later."""
    time.sleep(1)
    places = Path("/proc").glob("[0-9]*/cwd")
    return [place for place in places if os.path.realpath(place) == os.path.realpath(folder)]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("nosuchprogram --nnodes 2", "there is no program 'nosuchprogram'"),
        ("python", "starts no group of processes: let it end in torchrun"),
        ("false", "false ended with 1, see above"),
        ("true", "no process has done the stage's work in this folder: let it end in torchrun"),
        ("torchrun 'a", "No closing quotation: fix its quotes"),
        ("sh -c 'kill -9 $$'", "sh was killed by SIGKILL: run the same command again to go on"),
    ],
)
def test_a_command_that_starts_no_group(project, command, said, forks):
    change(project, launch=command)
    done = run(project, "-m", "stages.train", forks=forks)
    assert done.returncode == 1
    line = done.stderr.splitlines()[0]
    assert line.startswith("train: machine.launch") and said in line


def test_a_wrong_address(project, forks):
    (project / "lone.py").write_text(
        "from datetime import timedelta\n"
        "from verse.model import distributed\n"
        "distributed.TIMEOUT = timedelta(seconds=2)\n"
        "from verse.errors import run\nfrom stages.train import main\nrun(main, 'train')\n"
    )
    done = subprocess.run(
        [forks.python, "lone.py"],
        cwd=project,
        env=os.environ
        | forks.env
        | {"PYTHONPATH": PATHS, "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
        | {"MASTER_PORT": str(free_port())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("process 1: the other processes cannot be met at localhost:")


def test_other_poems_on_another_machine(project, forks):
    (project / "other.py").write_text(
        "import os\n"
        "from verse import fingerprint\n"
        "alike = fingerprint.fingerprint\n"
        "fingerprint.fingerprint = lambda *a, **k: alike(*a, **k) + os.environ.get('RANK', '')\n"
        "from verse.errors import run\nfrom stages.train import main\nrun(main, 'train')\n"
    )
    change(project, processes=2)
    done = run(project, "other.py", forks=forks)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("train: process 1 has other code, parameters or data than process 0")


SCRIPT = """
import os, signal, sys, time
from verse.model import distributed
from verse.errors import ParameterError, run
from tiny_models import machine

def work():
    distributed.barrier()  # while others join, Gloo says in words of its own who has left
    if distributed.rank() == 1:
        FAIL
    time.sleep(600)  # the launcher ends it

run(lambda: distributed.run(work, machine(processes=3), busy=1))
"""


@pytest.mark.parametrize(
    ("fail", "status", "said"),
    [
        ("raise ParameterError('no such key')", 2, "no such key"),
        pytest.param(
            *("os.kill(os.getpid(), signal.SIGKILL)", 1, "process 1 of 3 was killed by SIGKILL"),
            marks=pytest.mark.soak,
        ),
        pytest.param("1 / 0", 1, "process 1 of 3 failed, see above", marks=pytest.mark.soak),
    ],
)
def test_the_failure_of_one_ends_all(tmp_path, fail, status, said, forks):
    (tmp_path / "work.py").write_text(SCRIPT.replace("FAIL", fail))
    done = run(tmp_path, "work.py", forks=forks)
    assert done.returncode == status
    assert done.stderr.splitlines()[-1] == f"work: {said}"
    assert ("ZeroDivisionError" in done.stderr) == (fail == "1 / 0")
    assert len(done.stderr.splitlines()) == 1 or fail == "1 / 0"


def test_an_interrupt_ends_all(tmp_path):
    script = SCRIPT.replace("FAIL", "print('ready', flush=True)")
    (tmp_path / "work.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, "work.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PATHS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "stopped; run the same command again" in process.communicate(timeout=60)[1]
    assert process.returncode == 130


def test_process_count(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert distributed.process_count(machine(processes="auto", device="auto")) == 1
    assert distributed.process_count(machine(processes=2, device="auto")) == 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert distributed.process_count(machine(processes="auto", device="auto")) == 4
    assert distributed.process_count(machine(processes="auto", device="auto"), busy=2) == 2
    assert distributed.process_count(machine(processes="auto", device="auto"), busy=0) == 1
    assert distributed.process_count(machine(processes=3, device="auto"), busy=1) == 3
    assert distributed.process_count(machine(processes="auto")) == 1
    assert distributed.process_count(machine(processes=8)) == 8
    with pytest.raises(UserError, match="PyTorch sees 4 GPUs"):
        distributed.process_count(machine(processes=5, device="cuda"))


@pytest.mark.parametrize("processes", [10**4, 10**9])
def test_no_more_processes_than_a_machine_bears(processes):
    with pytest.raises(UserError, match=f"machine.processes is {processes}, of which a CPU"):
        distributed.process_count(machine(processes=processes))


def test_a_model_too_large_for_one_gpu_takes_all_however_little_there_is_to_do(monkeypatch):
    started = []
    monkeypatch.setattr(distributed, "launch", started.append)

    def work():
        raise TooLargeError("about 30 GiB are needed")

    for gpus in (4, 1):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        with nullcontext() if gpus > 1 else pytest.raises(TooLargeError):
            distributed.run(work, machine(processes="auto", device="auto"), busy=1)
    assert started == [4]
