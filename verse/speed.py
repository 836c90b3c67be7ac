"""How fast a stage was: clock times, which differ from run to run and are never locked."""

import json
import sys
import time
from pathlib import Path

from verse.files import write_json
from verse.paths import SPEED


class Stopwatch:
    """Seconds since it was made or started again."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.began = time.perf_counter()

    def numbers(self, poems: int) -> dict[str, float]:
        """Seconds, poems a second and, where a GPU was used, the most memory in GiB.

        peak_gib is what tensors held, reserved_gib what PyTorch took from the GPU for them.
        """
        seconds = time.perf_counter() - self.began
        numbers = {"seconds": seconds, "poems_per_second": poems / seconds}
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_initialized():
            numbers["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            numbers["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
        return numbers


def store(stage: str, numbers: dict[str, float]) -> None:
    """Put a stage's numbers into the shared JSON file, leaving the other stages' alone."""
    try:
        speeds = json.loads(Path(SPEED).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        speeds = {}
    speeds = speeds if isinstance(speeds, dict) else {}
    speeds[stage] = {name: round(number, 2) for name, number in numbers.items()}
    write_json(SPEED, dict(sorted(speeds.items())))
