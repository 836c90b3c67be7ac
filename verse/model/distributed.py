"""Share work over processes: one a GPU, on one machine or several.

`run` is all a stage needs. It starts the stage once more for every process, as torchrun does or as
the command `machine.launch` does, waits for them, and turns the failure of any into one error. A
process that torchrun, or whatever sets its variables, has started joins the group. Inside, `rank`
and `size` tell a process its share, `all_reduce_sum` and `gather` bring the shares together; in a
single process they do nothing. Tensors on GPUs travel through NCCL, all else through gloo.
"""

import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import distributed
from tqdm import tqdm

from verse.errors import AGAIN, TooLargeError, UserError, explain, first_line
from verse.params import Machine

FAILURES = "VERSE_FAILURES"  # names the file in which the processes say why they failed
DONE = "VERSE_DONE"  # names the file that process 0 makes when all is done
CROWD = 8  # processes for each core of a CPU, at most
TIMEOUT = timedelta(minutes=10)  # that a process waits for the others
LOST = f"another process or its machine was lost: {AGAIN}"
T = TypeVar("T")


def run(work: Callable[[], None], machine: Machine, busy: int) -> None:
    """Do `work` in the machine's processes: here if one is enough, else in fresh ones like this.

    busy: how many processes it keeps busy long enough to repay their start. A model that one GPU
    cannot hold is spread over all. Raises UserError if there are fewer GPUs than asked for, and
    with the first failure of a process.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        work_in_group(work, machine.device)
    elif machine.launch:
        if FAILURES in os.environ:
            raise UserError(
                f"machine.launch {machine.launch!r}: starts no group of processes: let it end in "
                "torchrun and its options"
            )
        launch_by(machine.launch)
    elif (count := process_count(machine, busy)) > 1:
        launch(count)
    else:
        try:
            work()
        except TooLargeError:
            if (most := process_count(machine)) == 1:
                raise
            launch(most)


def process_count(machine: Machine, busy: int = sys.maxsize) -> int:
    """How many processes to start: "auto" is one for every GPU, but no more than are kept busy, and
    one on a CPU.

    Raises UserError if there are fewer GPUs than wanted, or far fewer cores.
    """
    gpus = 0 if machine.device == "cpu" else torch.cuda.device_count()
    processes = machine.processes
    if processes == "auto":
        return max(1, min(gpus, busy))
    if 0 < gpus < processes:
        raise UserError(
            f"machine.processes is {processes}, but PyTorch sees {gpus} GPU{'s'[: gpus > 1]}: "
            "lower it, or set it to auto"
        )
    if not gpus and processes > (most := CROWD * (os.cpu_count() or 1)):
        raise UserError(
            f"machine.processes is {processes}, of which a CPU with {os.cpu_count()} cores runs no "
            f"more than {most}: lower it, or set it to auto"
        )
    return processes


def launch(count: int) -> None:
    """Run this very command in `count` processes on this machine and wait for them."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=0,
    )
    with reported_failures() as reported:
        try:
            elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
        except SignalException as stopped:
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise UserError(f"stopped; {AGAIN}") from None
        except ChildFailedError as failed:
            # The launcher ends the others by SIGTERM.
            own = {r: f for r, f in failed.failures.items() if f.exitcode != -signal.SIGTERM}

            def cause(one: tuple[int, Any]) -> tuple[bool, int]:
                """One that was killed comes first: the others fail since they miss it."""
                return one[1].exitcode >= 0, one[1].timestamp

            rank, failure = min((own or failed.failures).items(), key=cause)
            killed = failure.exitcode < 0
            what = f"was killed by {failure.signal_name()}" if killed else "failed, see above"
            raise failed_as(reported(), f"process {rank} of {count} {what}") from None


def launch_by(command: str) -> None:
    """Let a command, such as torchrun and its options, run this very command in its processes."""
    where = f"machine.launch {command!r}"
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"{where}: {error}: fix its quotes") from None
    with reported_failures() as reported:
        try:
            started = subprocess.Popen([*words, *sys.orig_argv[1:]])
        except FileNotFoundError:
            raise UserError(f"{where}: there is no program {words[0]!r}: fix it") from None
        signal.signal(signal.SIGTERM, lambda number, _: started.send_signal(number))
        try:
            status = started.wait()
        except KeyboardInterrupt:  # which the command has got as well
            started.wait()
            raise
        if status:
            ended = f"ended with {status}, see above"
            if status < 0:
                ended = f"was killed by {signal.Signals(-status).name}: {AGAIN}"
            raise failed_as(reported(), f"machine.launch: {words[0]} {ended}")
        if not Path(os.environ[DONE]).exists():
            raise UserError(
                f"{where}: ended, and no process has done the stage's work in this folder: let it "
                "end in torchrun and its options"
            )


@contextmanager
def reported_failures() -> Iterator[Callable[[], list[tuple[int, str]]]]:
    """Give the processes that are started a file to say why they fail; what they said, in order.

    And one that process 0 makes when it is done, where other machines see it too if they share the
    clone.
    """
    shared = Path(".dvc/tmp").resolve()
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        file = Path(folder) / "failures"
        os.environ[FAILURES], os.environ[DONE] = str(file), str(Path(folder) / "done")

        def reported() -> list[tuple[int, str]]:
            lines = file.read_text("utf-8").splitlines() if file.exists() else []
            return [(int(status), text) for status, _, text in (s.partition(" ") for s in lines)]

        try:
            yield reported
        finally:
            del os.environ[FAILURES], os.environ[DONE]


def failed_as(reported: list[tuple[int, str]], otherwise: str) -> UserError:
    """The error of the first process that knows why it failed, else what can be said of it."""
    status, line = next((one for one in reported if one[1] != LOST), (1, otherwise))
    error = UserError(line)
    error.status = status
    return error


def work_in_group(work: Callable[[], None], device: str) -> None:
    """Do `work` as one process of a group, leaving an explained error to who started it."""
    gpu = None
    if device != "cpu" and torch.cuda.is_available():
        gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    end_with_parent()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves
    try:
        join_group(gpu)
        work()
        barrier()
        if rank() == 0 and DONE in os.environ:
            with suppress(OSError):  # whoever started it is on another machine
                Path(os.environ[DONE]).touch()
    except Exception as error:
        lost = isinstance(error, distributed.DistError) or (
            isinstance(error, RuntimeError) and "gloo" in str(error)
        )
        explained = explain(UserError(LOST) if lost else error)
        if explained is None:
            raise
        leave(*explained)
    distributed.destroy_process_group()


def leave(line: str, status: int) -> None:
    """End this process without waiting for the others, which may be waiting for it."""
    line = " ".join(line.split())
    try:
        with Path(os.environ[FAILURES]).open("a", encoding="utf-8") as file:
            file.write(f"{status} {line}\n")
    except (KeyError, OSError):  # whoever started it is on another machine, or does not ask
        print(f"process {os.environ['RANK']}: {line}", file=sys.stderr)
    sys.stdout.flush()
    os._exit(status)


def end_with_parent() -> None:
    """Let this process end with the one that started it.

    If that is killed nobody else ends this one, and it would work on beside the next attempt.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        leave(LOST, 1)

    threading.Thread(target=watch, daemon=True).start()


def join_group(gpu: torch.device | None) -> None:
    """Meet the other processes. Raises UserError if they are not met where the variables say."""
    if gpu and gpu.index >= torch.cuda.device_count():
        raise UserError(
            f"process {os.environ['RANK']} wants GPU {gpu.index} of this machine, which has "
            f"{torch.cuda.device_count()}: start one process for each GPU"
        )
    if gpu:
        torch.cuda.set_device(gpu)
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT, device_id=gpu
        )
    except (distributed.DistError, RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
        said = first_line(error)
        raise UserError(
            f"the other processes cannot be met at {where} ({said}): check the address, and that "
            "all machines run the same command"
        ) from None


def rank() -> int:
    """The number of this process, from 0. Process 0 prints and writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes share the work."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def all_reduce_sum(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor, in place, by its sum over the processes, in one exchange."""
    if size() > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def any_rank(happened: bool) -> bool:
    """Whether something happened in any of the processes, which all must ask.

    The answer waits for the other processes, and for no GPU.
    """
    if size() == 1:
        return happened
    count = torch.tensor(int(happened))
    distributed.all_reduce(count)
    return bool(count.item())


def all_or_none(work: Callable[[], T], *, alone: bool = False) -> T:
    """What `work` returns, or OutOfMemoryError in all processes if memory runs out in any.

    alone: raise it in that process only, since the others wait for its part of the model.
    """
    result, short = None, False
    try:
        result = work()
    except torch.OutOfMemoryError:
        if alone:
            raise
        short = True
    if any_rank(short):
        raise torch.OutOfMemoryError
    return cast(T, result)


def barrier() -> None:
    """Go on when all processes have come here."""
    any_rank(False)


def broadcast(value: T) -> T:
    """What process 0 has."""
    if size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def say(line: str) -> None:
    """Print a line, once for all processes."""
    if rank() == 0:
        print(line, flush=True)


def check_alike(fingerprint: Callable[[], str]) -> None:
    """Raise UserError unless all processes have the same fingerprint of what they work with."""
    fingerprints = gather([fingerprint()]) if size() > 1 else []
    for number, other in enumerate(fingerprints):
        if other != fingerprints[0]:
            raise UserError(
                f"process {number} has other code, parameters or data than process 0: give all "
                "machines the same folder, or the same commit and the same files"
            )


def gather(share: list[Any]) -> list[Any]:
    """The whole of which process r holds items r, r + size, r + 2 size and so on."""
    if size() == 1:
        return share
    shares: list[list[Any]] = [[] for _ in range(size())]
    distributed.all_gather_object(shares, share)
    whole: list[Any] = [None] * sum(map(len, shares))
    for index, items in enumerate(shares):
        whole[index :: size()] = items
    return whole
