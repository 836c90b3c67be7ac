"""Mistakes a person can mend, told in one line.

Raise `UserError` with what is wrong, where, and what to do. `run` is the entry of every
stage: it turns the errors a person can act on into one line on stderr and a non-zero exit
status, and lets everything else (our own bugs) keep its traceback.
"""

import errno
import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

KEPT = "; the last results are safe: dvc checkout and git checkout metrics bring them back"


class UserError(Exception):
    """One line for the user: what is wrong, where, what to do."""

    status = 1


class ParameterError(UserError):
    """params.yaml is wrong; the exit status is 2."""

    status = 2


REMEDIES = {
    errno.EACCES: "change its owner or mode",
    errno.EPERM: "change its owner or mode",
    errno.EROFS: "use a folder that can be written",
    errno.EEXIST: "move it out of the way",
    errno.ENOTDIR: "move what is no folder out of the way",
    errno.EISDIR: "move this folder out of the way",
    errno.EIO: "check the disk",
}
"""What to do about an error of the file system, by its number."""

MEMORY = {
    "train": "lower train.batch_size or close other programs",
    "generate": "lower machine.batch_size or decoding.max_new_tokens",
}
"""What to do where a stage is out of memory."""


def explain(error: BaseException, stage: str = "") -> tuple[str, int] | None:
    """The line and exit status for an error that a person can act on, None for a bug."""
    if isinstance(error, UserError):
        return str(error), error.status
    if isinstance(error, KeyboardInterrupt):
        return "stopped; run the same command again to go on", 128 + signal.SIGINT
    if is_disk_full(error):
        file = getattr(error, "filename", None)
        where = f" while writing {file}" if file else ""
        return f"the disk is full{where}: free some space and run the same command again", 1
    if is_out_of_memory(error):
        return f"out of memory: {MEMORY.get(stage, 'close other programs, or use less data')}", 1
    if isinstance(error, OSError) and error.filename and error.errno in REMEDIES:
        return f"{error.filename}: {(error.strerror or '').lower()}: {REMEDIES[error.errno]}", 1
    return None


def is_disk_full(error: BaseException) -> bool:
    """Whether the system says so, or a library that hands its words on in an error of its own."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, the system's, torch's on a CPU or a GPU."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    said = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def run(main: Callable[[], None], name: str = "") -> None:
    """Run a program's `main`; print `<name>: <line>` and exit for an explained error.

    name: the stage or command; the script's without one.
    """
    stage = name or os.path.splitext(os.path.basename(sys.argv[0]))[0]
    # PyTorch and Transformers bring millions of objects that live as long as the program.
    # Looking among them for garbage takes seconds, most of them at the very end.
    gc.set_threshold(100_000)
    for stream in (sys.stdout, sys.stderr):  # a terminal may not know every character
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        main()
    except BaseException as error:
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
    return KEPT if f"\n  {os.environ.get('DVC_STAGE')}:\n" in lock else ""


def printable(line: str) -> str:
    """One line that a terminal shows as it is: no line break, no control character."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(line.split()))
