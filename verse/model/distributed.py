"""Share work over processes, one a GPU, with PyTorch's own launcher.

`run` is all a stage needs: it starts the stage once more for every process, as torchrun does,
waits for them, and turns the failure of any into one error. Inside, `rank` and `size` tell a
process its share, `add_up` and `gather` bring the shares together; in a single process they
do nothing. The group talks through NCCL between GPUs and gloo between CPU processes.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from verse.errors import UserError, explain
from verse.params import Machine

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # set by the launcher: where a process says why it failed


def run(work: Callable[[], None], machine: Machine) -> None:
    """Do `work` in the machine's processes: here if one is enough, else in fresh ones like this.

    Raises UserError if there are fewer GPUs, and with the first failure of a process.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        work_in_group(work, machine.device)
    elif (count := process_count(machine)) == 1:
        work()
    else:
        launch(count)


def process_count(machine: Machine) -> int:
    """How many processes to start: "auto" is one for every GPU, and one on a CPU.

    Raises UserError if there are fewer GPUs than wanted.
    """
    gpus = 0 if machine.device == "cpu" else torch.cuda.device_count()
    processes = machine.processes
    if processes == "auto":
        return max(1, gpus)
    if 0 < gpus < processes:
        raise UserError(
            f"machine.processes is {processes}, but PyTorch sees {gpus} GPU{'s'[: gpus > 1]}: "
            "lower it, or set it to auto"
        )
    return processes


def launch(count: int) -> None:
    """Run this very command in `count` processes and wait for them."""
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
    try:
        elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise UserError("stopped; run the same command again to go on") from None
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        told = failure.error_file_data.get("message") == failure.message
        if failure.exitcode < 0:
            line = f"process {rank} of {count} was killed by {failure.signal_name()}"
        else:
            line = failure.message if told else f"process {rank} of {count} failed, see above"
        error = UserError(line)
        error.status = max(1, failure.exitcode)
        raise error from None


def work_in_group(work: Callable[[], None], device: str) -> None:
    """Do `work` as one process of the launcher's group, leaving it an explained error."""
    gpu = None
    if device != "cpu" and torch.cuda.is_available():
        gpu = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(gpu)
    try:
        # Process 0 evaluates and writes alone; the launcher ends all when one fails, so that
        # none waits in vain.
        distributed.init_process_group(
            "nccl" if gpu else "gloo", timeout=timedelta(days=1), device_id=gpu
        )
        work()
        distributed.barrier()
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        line, status = explained
        told = {"message": " ".join(line.split()), "timestamp": int(time.time())}
        Path(os.environ[ERROR_FILE]).write_text(json.dumps(told), encoding="utf-8")
        sys.stdout.flush()
        os._exit(status)  # without waiting for the others, which may be waiting for this one
    distributed.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0. Process 0 prints and writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes share the work."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def add_up(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor, in place, by its sum over the processes, in one exchange."""
    if size() > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def in_any(happened: bool) -> bool:
    """Whether something happened in any of the processes, which all must ask."""
    if size() == 1:
        return happened
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    count = torch.tensor(int(happened), device=device)
    distributed.all_reduce(count)
    return bool(count.item())


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    if size() > 1:
        distributed.barrier()


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
