"""Mistakes a person can fix, told in one line.

Raise `UserError` with what is wrong, where, and what to do. `run` is the entry of every
stage: it turns the errors a person can act on into one line on stderr and a non-zero exit
status, and lets everything else (our own bugs) keep its traceback. It also sees to it that
neither the locale nor whoever reads stdout has a say in a result.
"""

import errno
import gc
import io
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

AGAIN = "run the same command again to go on"
KEPT = "; the last results are safe: dvc checkout --force and git checkout metrics bring them back"


class UserError(Exception):
    """One line for the user: what is wrong, where, what to do."""

    status = 1


class TooLargeError(UserError):
    """A model does not fit the GPU, or its share of it the GPUs."""


class ParameterError(UserError):
    """params.yaml is wrong; the exit status is 2."""

    status = 2


REMEDIES = {
    errno.ENOENT: "put it back and run the same command again",
    errno.EACCES: "change its owner or mode",
    errno.EPERM: "change its owner or mode",
    errno.EROFS: "use a folder that can be written",
    errno.EEXIST: "move it out of the way",
    errno.ENOTEMPTY: "move it out of the way",
    errno.ENOTDIR: "move what is no folder out of the way",
    errno.EISDIR: "move this folder out of the way",
    errno.EIO: "check the disk",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f) or use another disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "fix its circle of links",
    errno.EAGAIN: "raise the limit of processes (ulimit -u) or close other programs",
    errno.ENFILE: "close other programs",
    **dict.fromkeys(
        (
            *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE),
            *(errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN),
        ),
        f"check the network, and {AGAIN}",
    ),
}
"""What to do about an error of the file system, by its number."""

NO_THREAD = "can't start new thread"  # in Python's words

MEMORY = {
    "train": "lower train.batch_size or close other programs",
    "generate": "lower machine.batch_size or decoding.max_new_tokens",
}
"""What to do where a stage is out of memory."""


def first_line(error: object) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def explain(error: BaseException, stage: str = "") -> tuple[str, int] | None:
    """The line and exit status for an error that a person can act on, None for a bug."""
    if isinstance(error, UserError):
        return str(error), error.status
    if isinstance(error, KeyboardInterrupt) and threads_start():
        return f"stopped; {AGAIN}", 128 + signal.SIGINT
    if is_disk_full(error):
        file = getattr(error, "filename", None)
        where = f" while writing {file}" if file else ""
        return f"the disk is full{where}: free some space and run the same command again", 1
    if is_out_of_memory(error):
        what = MEMORY.get(stage, "close other programs, or use less data")
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            what = f"raise its limit of {limit / 2**30:.1f} GiB (ulimit -v), or {what}"
        return f"out of memory: {what}", 1
    if NO_THREAD in str(error) or isinstance(error, KeyboardInterrupt):
        limits = "raise the limits of processes (ulimit -u) and of memory (ulimit -v)"
        return f"no thread can be started: {limits}, or close other programs", 1
    if number := system_error(error):
        where = f"{file}: " if (file := getattr(error, "filename", None)) else ""
        remedy = REMEDIES.get(number, "check this file and its disk" if where else AGAIN)
        return f"{where}{os.strerror(number).lower()}: {remedy}", 1
    return None


def threads_start() -> bool:
    """Whether a thread can be started; where none can, OpenBLAS interrupts its own program."""
    with suppress(RuntimeError):
        threading.Thread(target=int).start()
        return True
    return False


def is_of_the_system(error: BaseException) -> bool:
    """Whether the machine failed, in whatever words, and not what was read or computed on it."""
    return is_out_of_memory(error) or NO_THREAD in str(error) or system_error(error) is not None


def system_error(error: BaseException) -> int | None:
    """The system's number of an error, also where a library written in Rust hides it in words."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"(?:\(os error |Os \{ code: )(\d+)", str(error))
    return int(found[1]) if found and not isinstance(error, UserError) else None


def is_disk_full(error: BaseException) -> bool:
    """Whether the system says so, or a library that hands its words on in an error of its own."""
    full = system_error(error) in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, the system's, torch's on a CPU or a GPU."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    said = re.compile(
        "out of memory|can't allocate memory|annot allocate memory|failed to map segment|"
        "CUBLAS_STATUS_ALLOC_FAILED"
    )
    return isinstance(error, RuntimeError | ImportError) and bool(said.search(str(error)))


def run(main: Callable[[], None], name: str = "") -> None:
    """Run a program's `main`; print `<name>: <line>` and exit for an explained error.

    name: the stage or command; the script's without one.
    """
    stage = name or os.path.splitext(os.path.basename(sys.argv[0]))[0]
    # PyTorch and Transformers bring millions of objects that live as long as the program.
    # Looking among them for garbage takes seconds, most of them at the very end.
    gc.set_threshold(100_000)
    if "OMP_WAIT_POLICY" not in os.environ and is_busy():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait take turns
    speak_utf8()
    keep_docstrings()
    open_streams()
    try:
        main()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # another would break into what the line ends
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        explained = explain(error, stage)
        if explained is None:
            raise
        line, status = explained
        print(f"{stage}: {printable(line)}{kept()}", file=sys.stderr)
        sys.exit(status)
    finally:
        gc.freeze()


def kept() -> str:
    """What to add where DVC runs a stage once more: it removed outputs that its cache has."""
    try:
        lock = Path("dvc.lock").read_text("utf-8")
    except (OSError, ValueError):
        return ""
    stage = os.environ.get("DVC_STAGE")  # of which check has nothing to lose
    return KEPT if stage != "check" and f"\n  {stage}:\n" in lock else ""


LOAD = Path("/proc/loadavg")


def is_busy() -> bool:
    """Whether other programs keep all cores at work just now, by three looks.

    Threads that wait had better not spin then. On two cores that makes training quicker by a tenth
    to a quarter where one other program works or none, and slower by a third where two do.
    """
    running = []
    for _ in range(3):
        with suppress(OSError):  # as on a Mac
            counts = LOAD.read_text("ascii").split()[3]
            running.append(int(counts.partition("/")[0]))
        time.sleep(0.01)
    return min(running, default=0) > (os.cpu_count() or 1)  # this one runs too


def speak_utf8() -> None:
    """Start anew in Python's UTF-8 mode where the locale gives file names another encoding.

    File names are UTF-8 in data.source as on the disk. What a terminal is told stays in its own.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ.setdefault("PYTHONIOENCODING", getattr(sys.stdout, "encoding", "utf-8"))
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def keep_docstrings() -> None:
    """Start anew without -OO, which takes away the docstrings that Transformers reads."""
    if sys.flags.optimize > 1 and os.environ.get("PYTHONOPTIMIZE") != "0":
        os.environ["PYTHONOPTIMIZE"] = "0"
        arguments = [one for one in sys.orig_argv[1:] if one != "-OO"]
        os.execv(sys.executable, [sys.executable, *arguments])


class Outlet(io.FileIO):
    """A standard stream that drops what nobody takes: a result does not hang on its reader."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:  # a closed pipe, a full disk
            return len(data)


def open_streams() -> None:
    """Let stdout and stderr take any character, and neither fail nor be missing."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):  # a test's
            continue
        if stream is None:  # the next file to be opened would become stdout to a library in C
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        outlet = io.BufferedWriter(Outlet(number, "w", closefd=False))
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                outlet,
                encoding=getattr(stream, "encoding", "utf-8"),
                errors="replace",
                line_buffering=getattr(stream, "line_buffering", False) or name == "stderr",
            ),
        )


def printable(line: str) -> str:
    """One line that a terminal shows as it is: no line break, no control character."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(line.split()))
