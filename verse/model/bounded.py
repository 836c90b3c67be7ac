"""Try in a fork what a stranger wrote, which may never end or may fill the memory."""

import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path

SECONDS = 10  # of a processor
BYTES = 2**30  # beside what the process has


def overrun(work: Callable[[], object]) -> str:
    """What `work` takes too much of; "" where it ends, in whatever way.

    The caller then does the same for its result. A thread beside the main one does not fork, and
    has "": there the page answers, of whose model the main thread has tried another poem.
    """
    if threading.current_thread() is not threading.main_thread():
        return ""
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"takes more than {SECONDS} s"
        return f"takes more than {BYTES // 2**30} GiB" if status else ""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        if (sizes := Path("/proc/self/statm")).exists():  # Linux alone holds a process to it
            pages = int(sizes.read_text("ascii").split()[0])
            most = pages * resource.getpagesize() + BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        work()
        status = 0
    except MemoryError:
        pass
    except BaseException:
        status = 0
    finally:
        os._exit(status)
