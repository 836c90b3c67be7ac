"""Tell others of a training's losses while it runs: `machine.report_to`.

Each service has a thread of its own, so that none makes the training wait, and none makes it fail:
what goes wrong is said once. Packages and keys are the user's own.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from verse import paths
from verse.errors import UserError, printable
from verse.files import remove

Points = Sequence[Mapping[str, float]]
Send = Callable[[dict[str, Points]], None]

INTERVAL, PATIENCE = 1, 15
"""Seconds between two reports, and those that a service has to be reached and to hear the end."""
SHOWN = 300  # characters of a service's own words


class Reports:
    """The services that hear of a training, until it is closed.

    settings: of the training, for services that keep such.
    """

    def __init__(self, names: Sequence[str], settings: dict[str, Any]):
        self.settings = settings
        self.curves: Mapping[str, Points] = {}
        self.ended = threading.Event()
        self.threads = [
            threading.Thread(target=self.report, args=(name,), name=name, daemon=True)
            for name in dict.fromkeys(names)
        ]
        for thread in self.threads:
            thread.start()

    def __call__(self, curves: Mapping[str, Points]) -> None:
        """curves: rows of {"step", "loss"} by the curve's name; rows are appended, none changes."""
        self.curves = curves

    def close(self) -> None:
        """Wait until all services know all, but not long."""
        self.ended.set()
        end = time.monotonic() + PATIENCE
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
            if thread.is_alive():
                say(thread.name, "not reached in time")

    def report(self, name: str) -> None:
        told: dict[str, int] = {}
        said = ended = False
        try:
            if fault := missing(name):
                raise UserError(fault)
            with SERVICES[name](self.settings) as send:
                while not ended:
                    ended = self.ended.wait(INTERVAL)
                    new = {c: rows[told.get(c, 0) :] for c, rows in self.curves.items()}
                    if not any(new.values()):
                        continue
                    try:
                        send(new)
                        told |= {c: told.get(c, 0) + len(rows) for c, rows in new.items()}
                    except Exception as error:  # with the next rows it is told these too
                        said = said or say(name, error)
        except BaseException as error:  # such as sys.exit, which a thread does not tell
            say(name, error)


def say(name: str, what: object) -> bool:
    said = printable(str(what)[:SHOWN]) or type(what).__name__
    print(f"{name}: {said}; no result depends on it", file=sys.stderr, flush=True)
    return True


def check(names: Sequence[str]) -> None:
    """Raise UserError unless the package and the key of each service are here."""
    if faults := [fault for name in dict.fromkeys(names) if (fault := missing(name))]:
        raise UserError("machine.report_to: " + "; ".join(faults))


def missing(name: str) -> str:
    """What a service lacks, and what to do; "" if nothing."""
    if name != "studio" and not getattr(find_spec(name), "origin", None):  # W&B's folder is none
        return f"{name} is not installed: pip install {name}"
    if name == "studio" and "DVC_STUDIO_TOKEN" not in os.environ:
        return "studio wants a token, DVC_STUDIO_TOKEN in the environment"
    online = os.environ.get("WANDB_MODE", "online") == "online"
    if name == "wandb" and online and "WANDB_API_KEY" not in os.environ:
        return "wandb wants a key, WANDB_API_KEY in the environment, or WANDB_MODE=offline"
    return ""


def place() -> Path:
    """DVC's own folder, which git ignores; of the repository that a temporary experiment is of."""
    return Path(os.environ.get("DVC_ROOT", "")) / ".dvc/tmp"


def run_name() -> str:
    name = os.environ.get("DVC_EXP_NAME", "").replace("/", "-").strip(".")
    return name or time.strftime("%Y%m%d-%H%M%S")


@contextmanager
def tensorboard(settings: dict[str, Any]) -> Iterator[Send]:
    from tensorboard.summary import Writer

    folder = place() / "tensorboard" / run_name()
    remove(folder)  # of a training that was killed, and is told anew
    writer = Writer(str(folder))

    def send(new: dict[str, Points]) -> None:
        for curve, rows in new.items():
            for row in rows:
                writer.add_scalar(f"loss/{curve}", row["loss"], row["step"])
        writer.flush()

    yield send
    writer.close()


@contextmanager
def wandb(settings: dict[str, Any]) -> Iterator[Send]:
    defaults = {"PROJECT": "verse", "NAME": run_name(), "DIR": str(place())}
    for name, value in {**defaults, "CONSOLE": "off", "SILENT": "true"}.items():
        os.environ.setdefault(f"WANDB_{name}", value)
    place().mkdir(parents=True, exist_ok=True)
    import wandb

    patience = wandb.Settings(init_timeout=PATIENCE, finish_timeout=PATIENCE)
    with wandb.init(config=settings, settings=patience) as run:
        if run.url:
            print(f"wandb: {run.url}", flush=True)
        run.define_metric("loss/*", step_metric="step")

        def send(new: dict[str, Points]) -> None:
            for curve, rows in new.items():
                for row in rows:
                    run.log({"step": row["step"], f"loss/{curve}": row["loss"]})

        yield send


@contextmanager
def studio(settings: dict[str, Any]) -> Iterator[Send]:
    """DVC itself tells Studio when an experiment begins and ends; this is what DVCLive would."""
    from dvc_studio_client.post_live_metrics import post_live_metrics

    if "DVC_EXP_NAME" not in os.environ:
        raise UserError("it takes experiments alone, of dvc exp run")
    faults = ["no DVC_STUDIO_REPO_URL, and no remote of git's"]

    def keep(log: logging.LogRecord) -> bool:
        faults.append(log.getMessage())
        return False

    logging.getLogger("dvc_studio_client").addFilter(keep)

    def send(new: dict[str, Points]) -> None:
        plots = {f"{paths.PLOTS}/{curve}_loss.csv": {"data": rows} for curve, rows in new.items()}
        step = max(int(row["step"]) for rows in new.values() for row in rows)
        baseline, name = os.environ["DVC_EXP_BASELINE_REV"], os.environ["DVC_EXP_NAME"]
        if not post_live_metrics("data", baseline, name, "dvclive", step=step, plots=plots):
            raise UserError(faults[-1])

    yield send


SERVICES: dict[str, Callable[[dict[str, Any]], AbstractContextManager[Send]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "studio": studio,
}
