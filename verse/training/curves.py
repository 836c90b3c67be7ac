"""The loss curves as CSV files, which grow while a training runs: DVC draws them meanwhile.

DVCLive would count the steps of a training that goes on from a checkpoint by itself, and gives them
other numbers; rows that are appended here end as the bytes that an undisturbed training writes.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from verse.training.loop import Curves

HEAD = "step,loss\n"


def rows(points: Sequence[dict[str, float]]) -> str:
    return "".join(f"{point['step']},{point['loss']}\n" for point in points)


def file_of(folder: Path, curve: str) -> Path:
    return folder / f"{curve}_loss.csv"


class Growing:
    """Appends what is new of a training's curves to their files, unless an earlier run's are there.

    No training fails for it: what cannot be written now is in the files that its stage writes.
    """

    def __init__(self, folder: Path):
        names = ("train", "validation")
        files = {name: file_of(folder, name) for name in names}
        self.files = {} if any(file.exists() for file in files.values()) else files
        self.written = dict.fromkeys(names, 0)

    def __call__(self, curves: Curves) -> None:
        for name, file in self.files.items():
            points = getattr(curves, name)
            new = rows(points[self.written[name] :])
            with suppress(OSError):
                if not self.written[name]:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    new = HEAD + new
                with file.open("a" if self.written[name] else "w", newline="\n") as stream:
                    stream.write(new)
                self.written[name] = len(points)
