"""Errors a person can act on are one line and an exit status; bugs keep their traceback."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from verse.errors import KEPT, ParameterError, UserError, explain, run
from verse.files import replacing, write_text

ROOT = Path(__file__).parents[2]


def raised(error, capsys, monkeypatch, stage="train"):
    """Exit status and stderr of a stage whose main raises the error."""

    def main():
        raise error

    monkeypatch.setattr(sys, "argv", [f"/somewhere/stages/{stage}.py"])
    with pytest.raises(SystemExit) as end:
        run(main)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("poems.json: no such file"), 1, "train: poems.json: no such file\n"),
        (ParameterError("params.yaml: seed"), 2, "train: params.yaml: seed\n"),
        (UserError("two\n  lines\r\n"), 1, "train: two lines\n"),
        (UserError("a\x1b[2Jb\u202ec\ud800"), 1, "train: a\ufffd[2Jb\ufffdc\ufffd\n"),
        (
            KeyboardInterrupt(),
            130,
            "train: stopped; run the same command again to go on\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "data/raw"),
            1,
            "train: the disk is full while writing data/raw: "
            "free some space and run the same command again\n",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors' own
            1,
            "train: the disk is full: free some space and run the same command again\n",
        ),
        (
            RuntimeError(
                "ThreadPoolBuildError { kind: IOError(Os { code: 11, kind: WouldBlock }) }"
            ),
            1,
            "train: resource temporarily unavailable: raise the limit of processes (ulimit -u) or "
            "close other programs\n",
        ),
        (
            RuntimeError("can't start new thread"),
            1,
            "train: no thread can be started: raise the limits of processes (ulimit -u) and of "
            "memory (ulimit -v), or close other programs\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "data/raw"),
            1,
            "train: data/raw: permission denied: change its owner or mode\n",
        ),
        (
            FileExistsError(errno.EEXIST, "File exists", "data"),
            1,
            "train: data: file exists: move it out of the way\n",
        ),
    ],
)
def test_one_line_and_a_status(error, status, line, capsys, monkeypatch):
    assert raised(error, capsys, monkeypatch) == (status, line)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        ImportError("libtorch.so: cannot allocate memory in static TLS block"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: out of memory"),
    ],
)
@pytest.mark.parametrize(
    ("stage", "key"),
    [("train", "train.batch_size"), ("generate", "machine.batch_size"), ("score", "less data")],
)
def test_out_of_memory_names_what_to_lower(error, stage, key, capsys, monkeypatch):
    status, line = raised(error, capsys, monkeypatch, stage)
    assert status == 1
    assert line.startswith(f"{stage}: out of memory: ") and key in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("stage", "lock", "said"),
    [
        ("train", "stages:\n  train:\n    cmd: x\n", True),
        ("train", "stages:\n  prepare:\n    cmd: train\n", False),
        ("train", None, False),
        ("check", "stages:\n  check:\n    cmd: x\n", False),
        (None, "stages:\n  train:\n    cmd: x\n", False),
    ],
)
def test_dvc_is_told_to_bring_outputs_back_where_it_has_them(
    stage, lock, said, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    if stage:
        monkeypatch.setenv("DVC_STAGE", stage)
    if lock:
        Path("dvc.lock").write_text(lock, "utf-8")

    def fail():
        raise UserError("no poems")

    with pytest.raises(SystemExit):
        run(fail, "train")
    assert capsys.readouterr().err == f"train: no poems{KEPT * said}\n"


NAMELESS = [
    (errno.EMFILE, "ulimit -n"),
    (errno.ENFILE, "close other programs"),
    (errno.EAGAIN, "ulimit -u"),
    (errno.ECONNREFUSED, "check the network"),
    (errno.ECONNRESET, "check the network"),
    (errno.EPIPE, "check the network"),
    (errno.ETIMEDOUT, "check the network"),
    (errno.ENETUNREACH, "check the network"),
    (errno.EHOSTUNREACH, "check the network"),
    (errno.EINVAL, "run the same command again"),
    (errno.EBADF, "run the same command again"),
]


@pytest.mark.parametrize(("number", "remedy"), NAMELESS)
def test_an_error_without_a_files_name_is_blamed_on_no_file(
    number, remedy, tmp_path, capsys, monkeypatch
):
    """Though it comes about where a file is being written."""

    def main():
        with replacing(tmp_path / "adapter"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(SystemExit):
        run(main, "train")
    line = capsys.readouterr().err
    assert line.startswith(f"train: {os.strerror(number).lower()}: ") and remedy in line
    assert "adapter" not in line and "disk" not in line


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS]
)
def test_what_goes_wrong_with_an_open_file_is_named(number, tmp_path, capsys):
    def main():
        with replacing(tmp_path / "adapter"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(SystemExit):
        run(main, "train")
    assert str(tmp_path / "adapter") in capsys.readouterr().err


LIMITED = """
import pathlib, resource, sys, threading, time
from verse.errors import run
def main():
    resource.setrlimit(resource.{limit}, ({value}, {value}))
    {work}
run(main, "train")
"""
THREADS = "[threading.Thread(target=time.sleep, args=(0.5,)).start() for _ in range(99)]"
LIMITS = [
    ("RLIMIT_AS", 2**28, "bytearray(2**29)", "raise its limit of 0.2 GiB (ulimit -v)"),
    ("RLIMIT_AS", 2**28, THREADS, "(ulimit -v)"),
    ("RLIMIT_NOFILE", 20, "[open(__file__) for _ in range(30)]", "ulimit -n"),
    ("RLIMIT_FSIZE", 9, "pathlib.Path('big').write_text('x' * 99)", "ulimit -f"),
]


@pytest.mark.parametrize(("limit", "value", "work", "said"), LIMITS)
def test_a_limit_of_the_system_is_named(tmp_path, limit, value, work, said):
    (tmp_path / "stage.py").write_text(LIMITED.format(limit=limit, value=value, work=work))
    done = subprocess.run(
        [sys.executable, "stage.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and said in done.stderr, done


def test_torchs_own_allocator():
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    line, status = explain(error.value, "generate")
    assert line.startswith("out of memory: ") and status == 1


@pytest.mark.parametrize("bug", [KeyError("x"), RuntimeError("x"), OSError("x")])
def test_a_bug_keeps_its_traceback(bug, monkeypatch):
    def main():
        raise bug

    with pytest.raises(type(bug)):
        run(main)


def test_a_stage_that_ends_well_says_nothing(capsys):
    run(lambda: None)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_any_error_of_the_file_system_is_one_line(number, capsys, monkeypatch):
    status, line = raised(OSError(number, os.strerror(number), "data/raw"), capsys, monkeypatch)
    assert status == 1 and line.count("\n") == 1
    assert "data/raw" in line or number == errno.ENOMEM


SPEAKS = """
import sys
from pathlib import Path
from verse.errors import run
def main():
    print("詩" * 5000)
    print("詩", file=sys.stderr)
    Path(sys.argv[1], "詩.txt").write_text("done", "utf-8")
run(main)
"""
ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("env", [{}, {"PYTHONIOENCODING": "ascii"}, ASCII])
@pytest.mark.parametrize(
    "streams", ["", ">&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full", "| true", "2>&1 | true"]
)
def test_neither_locale_nor_streams_have_a_say(tmp_path, env, streams):
    (tmp_path / "stage.py").write_text(SPEAKS, "utf-8")
    words = f"{sys.executable} stage.py {tmp_path} {streams}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert (tmp_path / "詩.txt").read_text() == "done"


def test_ctrl_c_is_one_line(tmp_path):
    """As from a terminal: the signal comes in the midst of a running stage."""
    stage = tmp_path / "stage.py"
    started = tmp_path / "started"
    write_text(
        stage,
        "import time, pathlib\n"
        "from verse.errors import run\n"
        "def main():\n"
        f"    pathlib.Path({str(started)!r}).touch()\n"
        "    time.sleep(60)\n"
        "run(main)\n",
    )
    process = subprocess.Popen(
        [sys.executable, stage],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background would ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not started.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == (
        "stage: stopped; run the same command again to go on\n"
    )
    assert process.returncode == 130


SLOW_END = """
import pathlib, sys, threading, time
from verse.errors import run
def main():
    threading.Thread(target=time.sleep, args=(0.3,)).start()
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
run(main)
"""


@pytest.mark.parametrize("pause", [n * 0.01 for n in range(12)])
def test_a_second_ctrl_c_adds_nothing(tmp_path, pause):
    """Whenever it comes after the line: in the end of Python too, which waits for threads."""
    (tmp_path / "stage.py").write_text(SLOW_END)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "stage.py", tmp_path / "started"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    line = process.stderr.readline()
    time.sleep(pause)
    process.send_signal(signal.SIGINT)
    assert (line, process.stderr.read()) == (
        "stage: stopped; run the same command again to go on\n",
        "",
    )
    assert process.wait(20) == 130


@pytest.mark.parametrize(("others", "policy"), [(0, None), (3, None), (4, "PASSIVE"), (None, None)])
def test_threads_take_turns_on_a_busy_machine(others, policy, monkeypatch, tmp_path):
    """On four cores, beside so many programs; None: where the system does not tell, as on a Mac."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr("verse.errors.LOAD", tmp_path / "loadavg")
    if others is not None:
        (tmp_path / "loadavg").write_text(f"9.00 9.00 9.00 {others + 1}/97 30574\n")
    run(lambda: None, "train")
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run(lambda: None, "train")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE", "who has chosen is asked no more"
