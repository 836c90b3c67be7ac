"""What forked.py runs starts, works and ends as what Python runs."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import atexit, os, signal, sys, threading, time

started = [name for name in sys.modules if name.split(".")[0] in ("verse", "stages", "tools")]
handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)]
streams = [
    (one.encoding, one.errors, one.line_buffering, one.isatty(), one is other)
    for one, other in zip(
        (sys.stdin, sys.stdout, sys.stderr), (sys.__stdin__, sys.__stdout__, sys.__stderr__)
    )
]
print(__name__, __file__, sys.argv, sys.orig_argv[1:], sys.path, os.getcwd(), sys.flags, sep="\\n")
of_shell = ("_", "OLDPWD", "PWD", "SHLVL")
environment = {k: v for k, v in sorted(os.environ.items()) if k not in of_shell}
print(started, handlers, streams, environment, sep="\\n")
print(sys.modules["__main__"].__dict__ is globals(), threading.active_count(), os.umask(0))
print(sorted(os.listdir("/proc/self/fd")), sys.stdin.readline())
print("詩", file=sys.stderr)
threading.Thread(target=lambda: (time.sleep(0.1), print("a thread"))).start()
atexit.register(print, "the end")
"""
ENDS = {
    "well": "",
    "a status": "sys.exit(3)",
    "a large status": "sys.exit(300)",
    "a sentence": "sys.exit('a line')",
    "none": "sys.exit(None)",
    "a bug": "{}['x']",
    "an interrupt": "raise KeyboardInterrupt",
    "a signal": "sys.stdout.flush(); os.kill(os.getpid(), signal.SIGTERM)",
    "a kill": "sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)",
    "no stdout": "sys.stdout.flush(); os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print(1)",
}


def both(forks, *command, **options):
    """How a command ends by Python and by a fork, in one environment."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}:nowhere"} | forks.env | options.pop("env", {})
    pipes = {"input": "白日", "capture_output": True, "text": True, "encoding": "utf-8"}
    return [
        subprocess.run([python, *command], env=env, **pipes, **options)
        for python in (sys.executable, forks.python)
    ]


@pytest.fixture
def program(tmp_path):
    def write(end=""):
        (tmp_path / "program.py").write_text(f"{PROGRAM}\n{end}\n", "utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize("command", [("-m", "program"), ("program.py",)], ids=" ".join)
@pytest.mark.parametrize("end", ENDS)
def test_a_fork_starts_and_ends_as_a_process(forks, program, end, command):
    real, fork = both(forks, *command, "a", "詩", cwd=program(ENDS[end]))
    assert fork.stdout.splitlines() == real.stdout.splitlines()
    assert fork.returncode == real.returncode
    assert "白日" in fork.stdout
    # What cannot be written at the very end is told by Python alone.
    lines = 1 if end == "no stdout" else None
    assert fork.stderr.splitlines()[:lines] == real.stderr.splitlines()[:lines]


def test_what_a_job_in_the_background_ignores_a_fork_does(forks, program):
    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    real, fork = both(forks, "program.py", cwd=program(), preexec_fn=ignore)
    assert fork.stdout == real.stdout and "[<Handlers.SIG_IGN: 1>" in fork.stdout


@pytest.mark.parametrize("stage", ["check", "prepare", "train", "score"])
@pytest.mark.parametrize("params", [None, "seed: -1\n"])
def test_an_error_is_the_same_line(forks, tmp_path, stage, params):
    if params:
        (tmp_path / "params.yaml").write_text(params)
    real, fork = both(forks, "-m", f"stages.{stage}", cwd=tmp_path)
    assert fork.stderr.count("\n") == 1 and fork.stderr.startswith(f"{stage}: params.yaml")
    assert vars(fork) | {"args": real.args} == vars(real)


def test_a_terminal_stays_one(forks, program):
    texts = []
    for python in (sys.executable, forks.python):
        ours, theirs = pty.openpty()
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        env = os.environ | forks.env
        command = [python, "-m", "program"]
        process = subprocess.Popen(command, cwd=program(), env=env, **streams)
        os.write(ours, b"line\n")
        assert process.wait(60) == 0
        texts.append(os.read(ours, 100_000))
        os.close(theirs)
        os.close(ours)
    assert texts[0] == texts[1] and b", True, True)" in texts[0]


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # which a job in the background may ignore
WAITS = "import os, time\nprint(os.getpid(), os.getppid(), flush=True)\ntime.sleep(60)\n"


def started(forks, folder, **options):
    """A process that waits, its number and its parent's."""
    (folder / "waits.py").write_text(WAITS)
    options["env"] = os.environ | forks.env | options.get("env", {})
    process = subprocess.Popen(
        [forks.python, "waits.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(getattr(signal, n), signal.SIG_DFL) for n in SIGNALS],
        **options,
    )
    return process, *map(int, process.stdout.readline().split())


@pytest.mark.parametrize("name", [*SIGNALS, "SIGKILL"])
def test_a_signal_reaches_the_fork(forks, tmp_path, name):
    process, pid, _ = started(forks, tmp_path)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=20)  # once nothing holds its streams
    assert process.returncode == -getattr(signal, name)
    assert ("KeyboardInterrupt" in said) == (name == "SIGINT")
    late = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < late:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "env",
    [
        {"OMP_NUM_THREADS": "3"},
        {"LC_ALL": "POSIX"},
        {"PYTHONUTF8": "1"},
        {"HF_HUB_OFFLINE": "0"},
        {"ATEN_CPU_CAPABILITY": "default"},
        {"PYTHONPATH": "hook"},
        {"pass_fds": "0"},
    ],
    ids=str,
)
def test_what_a_fork_cannot_be_is_a_process(forks, tmp_path, env):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").touch()
    process, pid, _ = started(forks, tmp_path)
    process.kill()
    process.communicate()
    assert pid != process.pid or forks.python == sys.executable
    with Path(os.devnull).open() as other:
        more = {"pass_fds": [other.fileno()]} if "pass_fds" in env else {"env": env}
        process, pid, parent = started(forks, tmp_path, **more)
    process.kill()
    process.communicate()
    assert (pid, parent) == (process.pid, os.getpid())
