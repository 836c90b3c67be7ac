"""Programs run by the hundred: a process that has imported their packages forks for each of them.

A forked program is a module or a script that `python` runs, with arguments, a working directory,
an environment and standard streams of its own; only the imports, which take seconds, are done once.
The process that forks has imported packages of others alone (but for `Stages`), so that a program's
code is that of its folder. What packages read as they start, such as OMP_NUM_THREADS, is that
process's: where a program should have another, Python runs it as always. All forks share the seed
of Python's hashes. tests/faults.c makes changes of the file system fail.
"""

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import re
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from types import ModuleType

from forked_python import FORWARDED, ask, end

ROOT = Path(__file__).parent.parent
STAGES = {
    "fetch": ["stages.fetch"],
    "prepare": ["stages.prepare"],
    "train": ["stages.train"],
    "baseline": ["stages.generate", "base"],
    "generate": ["stages.generate", "tuned"],
    "ask": ["stages.ask"],
    "judge": ["stages.judge"],
    "score": ["stages.score"],
}


@dataclass(frozen=True)
class Ended:
    """How a stage ended; `status` is None if it had to be stopped, below 0 after a signal."""

    stage: str
    status: int | None
    out: str
    err: str


class Server:
    """The process that forks, and what stands in for `python`.

    modules: what the process imports before it forks.
    env: what the environment of a program must hold; `python`: what starts it instead of Python.
    """

    def __init__(self, modules, **env: str):
        self.folder = Path(tempfile.mkdtemp(prefix="forked-"))  # a socket's path is short
        self.address, self.python = self.folder / "socket", self.folder / "bin/python"
        self.env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "huggingface"), **env}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.address))
            listener.listen(100)
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno()), *modules],
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | self.env,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
            )
        client = [sys.executable, "-I", "-S", ROOT / "tests/forked_python.py", self.address]
        words = " ".join(quote(str(word)) for word in [*client, self.python])
        self.python.parent.mkdir()
        self.python.write_text(f'#!/bin/sh\nexec {words} "$@"\n', "utf-8")
        self.python.chmod(0o755)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder)


class Stages:
    """A server of the stages of this repository; one for each module of tests."""

    def __init__(self, folder: Path):
        self.folder, env = folder, {"OMP_NUM_THREADS": "1"}
        self.shim = folder / "faults.so"
        if shutil.which("gcc"):
            source = ROOT / "tests/faults.c"
            command = ["gcc", "-shared", "-fPIC", "-o", self.shim, source, "-ldl"]
            subprocess.run(command, check=True)
            env["LD_PRELOAD"] = str(self.shim)
        self.server = Server([*PACKAGES, *LIBRARY], **env)
        self.number = 0

    def start(self, stage: str, cwd: Path, *, env=(), limits=(), fault=None):
        """Start a stage. fault: keywords of `fault_arm`; limits: of resource, by their names."""
        self.number += 1
        paths = [self.folder / f"{self.number}.{name}" for name in ("out", "err")]
        own = os.environ | self.server.env | {"PYTHONPATH": str(ROOT)} | dict(env)
        options = {"cwd": str(cwd), "env": own, "limits": dict(limits), "fault": fault}
        with (
            Path(os.devnull).open("rb") as stdin,
            paths[0].open("wb") as out,
            paths[1].open("wb") as err,
        ):
            streams = [stream.fileno() for stream in (stdin, out, err)]
            connection, pid = ask(self.server.address, ["-m", *STAGES[stage]], streams, **options)
        assert pid, f"{stage}: its environment is not the server's"
        return stage, pid, paths, connection

    def wait(self, started, seconds: float = 120) -> Ended:
        stage, pid, paths, connection = started
        connection.settimeout(seconds)
        try:
            status = int(connection.recv(8))
        except TimeoutError:
            os.killpg(pid, signal.SIGKILL)
            status = None
        connection.close()
        texts = [file.read_text("utf-8", "replace") for file in paths]
        for file in paths:
            file.unlink()
        return Ended(stage, status, *texts)

    def run(self, stage: str, cwd: Path, *, seconds: float = 120, **options) -> Ended:
        return self.wait(self.start(stage, cwd, **options), seconds)

    def close(self):
        self.server.close()


PLACES = ("data", "models/adapter", "metrics")


def workplace(folder: Path, stages: Stages, **params) -> Path:
    """A folder with small poems and a tiny model, in which all stages have run."""
    from clones import SMALL, change
    from tiny_models import build

    for name, first in (("poems", 0), ("others", 100)):
        (folder / name).mkdir(parents=True)
        for part, count in (("train", 100), ("test", 6)):
            poems = json.loads((ROOT / f"data/embedded/{part}.json").read_text("utf-8"))
            text = json.dumps(poems[first : first + count], ensure_ascii=False)
            (folder / name / f"{part}.json").write_text(text, "utf-8")
    shutil.copy(ROOT / "params.yaml", folder)
    build("llama, tied, grouped queries", folder / "base")
    tiny = {"model.name": "base", "model.dtype": "float32", "machine.threads": 1}
    change(folder / "params.yaml", SMALL | tiny | params)
    for stage in STAGES:
        ended = stages.run(stage, folder, env=cache(folder))
        assert ended.status == 0, ended
    return folder


def cache(folder: Path) -> dict[str, str]:
    """The environment of a stage whose cache lies beside its folder."""
    return {"XDG_CACHE_HOME": str(folder.parent / "cache")}


def outputs(folder: Path) -> dict[str, bytes]:
    """What stages have written, but for clock times: files and their bytes, links and targets."""
    found = {}
    for file in (file for place in PLACES for file in sorted((folder / place).rglob("*"))):
        if file.is_symlink():
            found[str(file.relative_to(folder))] = str(file.readlink()).encode()
        elif file.is_file() and file.name != "speed.json":
            found[str(file.relative_to(folder))] = file.read_bytes()
    return {name: content for name, content in found.items() if ".partial" not in name}


def is_one_line(ended: Ended, *words: str) -> bool:
    """Whether a stage ended in one line that names cause, place and remedy, and these words."""
    name = STAGES[ended.stage][0].removeprefix("stages.")
    line = ended.err
    return (
        ended.status in (1, 2)
        and re.fullmatch(rf"{name}: [^\n]{{10,700}}: [^\n]{{8,300}}\n", line) is not None
        and all(word in line for word in words)
    )


PACKAGES = (
    *(
        "torch",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
    ),
    *("bitsandbytes", "peft.tuners.lora.bnb", "transformers.integrations.bitsandbytes"),
    *("pandas.io.formats.csvs", "tabulate", "pydantic.main", "pooch", "requests", "sqlite3"),
)
"""What stages import."""
LIBRARY = (
    "verse.chat.llm_judge",
    "verse.generation.answers",
    "verse.model.opening",
    "verse.poems.sources",
    "verse.scoring.report",
    "verse.scoring.scoring",
    "verse.training.loop",
)
AT_START = ("ATEN_", "HF_", "LANG", "LC_", "LD_", "MALLOC_", "OMP_", "PYTHON", "TORCH_LOGS")
"""What Python and its packages read as they start begins so; PYTHONPATH is set after a fork too."""


def read_at_start(env):
    return {k: v for k, v in env.items() if k.startswith(AT_START) and k != "PYTHONPATH"}


def serve(listener, env):
    """Fork for each request. Returns the request in each fork, and None at the end of stdin."""
    running = {}  # who waits for each process
    wake, waking = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal, to all; who asked is told too
    while True:
        ready, _, _ = select.select([0, wake, listener, *running.values()], [], [])
        for pid, connection in running.items():
            if 0 in ready or connection in ready:  # whoever waited has ended
                os.kill(pid, signal.SIGKILL)
        if 0 in ready:
            return None
        if wake in ready:
            os.read(wake, 1000)
        for pid, status in ended():
            with running.pop(pid) as connection, suppress(OSError):
                connection.sendall(b"%8d" % status)
        if listener in ready:
            connection, _ = listener.accept()
            request, streams = receive(connection)
            suits = (
                request
                and read_at_start(request["env"]) == read_at_start(env)
                and not has_hook(request)
            )
            pid = os.fork() if suits else 0
            if suits and not pid:
                signal.set_wakeup_fd(-1)
                for one in (listener, connection, *running.values()):
                    one.close()
                os.closerange(wake, waking + 1)
                return request | {"streams": streams}
            for stream in streams:
                os.close(stream)
            with suppress(OSError):
                connection.sendall(b"%8d" % pid)
            if pid:
                running[pid] = connection
            else:
                connection.close()


def receive(connection):
    """A request and its streams; None where who asks has ended."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        text = file.read(int(size or 0))
    return json.loads(text) if text and len(text) == int(size) else None, streams


def has_hook(request):
    """Whether Python would import a module of the user's as it starts."""
    paths = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    paths = [Path(request["cwd"], path, "sitecustomize.py") for path in filter(None, paths)]
    return any(path.exists() for path in paths)


def ended():
    """The processes that have ended since, and how."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found[0], os.waitstatus_to_exitcode(found[1])


def become(
    command, cwd, env, streams, executable=sys.executable, ignored=(), limits=(), fault=None
):
    """Make a fork what Python is once it has started."""
    os.setsid()
    for number in (signal.SIGCHLD, *FORWARDED):
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    paths = list(map(os.path.abspath, filter(None, env.get("PYTHONPATH", "").split(os.pathsep))))
    first = Path.cwd() if command[0] == "-m" else Path(command[0]).resolve().parent
    # What .pth files add is not added twice.
    sys.path[:] = [str(first), *paths, *(path for path in sys.path[1:] if path not in paths)]
    sys.argv = ["-m", *command[2:]] if command[0] == "-m" else command
    sys.executable, sys.orig_argv = executable, [executable, *command]
    sys.modules["__main__"] = ModuleType("__main__")
    tempfile.tempdir = None  # TMPDIR may be another
    sys.modules["numpy"].random.seed()  # nor are random numbers those of another fork
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(streams[number], number)
        os.close(streams[number])
        old = getattr(sys, name)
        unbuffered = old.write_through
        mode, buffering = ("wb", 0 if unbuffered else -1) if number else ("rb", -1)
        binary = open(number, mode, buffering, closefd=False)  # noqa: SIM115
        by_line = not unbuffered and (binary.isatty() or name == "stderr")
        stream = io.TextIOWrapper(binary, old.encoding, old.errors, None, by_line, unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for name, value in dict(limits).items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if fault:
        ctypes.CDLL(None).fault_arm(
            str(cwd).encode(),
            fault["cache"].encode(),
            fault["log"].encode(),
            *(fault.get(name, 0) for name in ("at", "error", "lasting", "pause", "seed")),
        )


def main():
    descriptor, *modules = sys.argv[1:]
    sys.path[0], env = str(ROOT), dict(os.environ)
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    if request := serve(socket.socket(fileno=int(descriptor)), env):
        become(**request)
        run(*request["command"][:2])


def run(script, module=None):
    """What Python does with a command, and at its end, but for freeing what the fork shares."""
    status = 0
    try:
        if script == "-m":
            runpy._run_module_as_main(module)
        else:
            script, names = str(Path.cwd() / script), vars(sys.modules["__main__"])
            names["__file__"] = script
            exec(compile(Path(script).read_bytes(), script, "exec"), names)
    except SystemExit as error:
        status = error.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException as error:
        status = 1
        error = error.with_traceback(error.__traceback__.tb_next)  # without this function
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            status = -signal.SIGINT
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):
        status = 120
    ctypes.CDLL(None).fflush(None)
    end(status)


if __name__ == "__main__":
    main()
