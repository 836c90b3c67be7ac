"""What a stranger wrote may never end, or fill the memory: it is tried in a fork, and held."""

import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 10  # of a processor
BYTES = 2**30  # beside what the process has
SIZES = Path("/proc/self/statm")
LOCK = threading.Lock()


def ends(work: Callable[[], object]) -> bool:
    """Whether `work` ends in time, in whatever way: it runs in a fork, and its result is lost.

    A thread beside the main one does not fork: there the page answers, with a model of which the
    main thread has tried another poem.
    """
    if threading.current_thread() is not threading.main_thread():
        return True
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) >= 0
    try:
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        work()
    finally:
        os._exit(0)


@contextmanager
def held() -> Iterator[None]:
    """Raise MemoryError where the block takes more than BYTES; on Linux alone."""
    if not SIZES.exists():
        yield
        return
    with LOCK:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = int(SIZES.read_text("ascii").split()[0]) * resource.getpagesize() + BYTES
        if soft == resource.RLIM_INFINITY or most < soft:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
