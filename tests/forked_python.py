"""Stands in for `python` in tests: a fork runs a module or a script, and this ends as it does.

    python -I -S forked_python.py SOCKET PYTHON COMMAND…

takes 30 ms. PYTHON is what it is called by, with which the fork starts others. Python itself runs
other commands, those with more open files than the standard streams, and those that forked.py
refuses.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCONT)


def ask(address, command, streams, **options):
    """Have `-m` and a module, or a script, run with three standard streams.

    Returns the connection, which says how it ends and must stay open until then, and the number of
    its process, 0 where it has none.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(address))
    request = json.dumps({"command": command, **options}).encode()
    socket.send_fds(connection, [b"%8d" % len(request)], streams)
    connection.sendall(request)
    return connection, int(connection.recv(8))


def main():
    address, python, *command = sys.argv[1:]
    program = command[0] if command else ""
    if (program == "-m" or program.endswith(".py")) and open_files() == {0, 1, 2}:
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        options = {"env": dict(os.environ), "executable": python}
        options["cwd"] = os.getcwd()  # noqa: PTH109
        # As those of a job in the background.
        options["ignored"] = [n for n in FORWARDED if signal.getsignal(n) == signal.SIG_IGN]
        connection, pid = ask(address, command, (0, 1, 2), **options)
        if pid:
            for number in FORWARDED:
                signal.signal(number, lambda number, _: forward(pid, number))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            end(int(connection.recv(8)))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    os.execv(sys.executable, [sys.executable, *command])


def open_files():
    with os.scandir("/proc/self/fd") as folder:
        return {int(entry.name) for entry in folder if not is_itself(entry)}


def is_itself(entry):
    return os.readlink(entry.path).endswith("/fd")  # noqa: PTH115


def forward(pid, number):
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def end(status):
    """End with a status, or by a signal where it is below 0."""
    if status < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
