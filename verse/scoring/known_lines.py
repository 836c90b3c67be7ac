"""Lines that stand in other books: Song verse that the embedded model has read, and Tang poems
apart from the embedded ones and the homework's.

A line is found again with any one of its characters changed: known_lines.npz, which
tools/known_lines.py makes, holds a hash of it with each gap of GAPS. The hashes are sorted, and
kept as the steps from one to the next: a byte each, where LONGEST goes on in the next. One gapped
line in ODDS that is of no book passes for one that is.
"""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

GAPS = {5: ((0,), (1,), (2,), (3,), (4,)), 7: ((0, 1), (2, 3), (4, 5), (6,))}
"""Places that are left out, by the length of the line. Seven characters tell enough without two: 4%
of true lines are found so, and 1% without one at a time, which would take twice the hashes."""
ODDS = 64  # hashes for each that is taken
LONGEST = 255


def stands_elsewhere(line: str) -> bool:
    """Whether a line, of five or seven characters, stands in another book but for one of them."""
    hashes, space = known_lines()
    wanted = np.array([hash_of(text, space) for text in gapped(line)], np.int64)
    at = np.searchsorted(hashes, wanted).clip(max=len(hashes) - 1)
    return bool((hashes[at] == wanted).any())


def gapped(line: str) -> list[str]:
    """A line with each gap of GAPS; of five or seven characters, or there are none."""
    return [
        "".join("\0" if place in gap else c for place, c in enumerate(line))
        for gap in GAPS.get(len(line), ())
    ]


def hash_of(text: str, space: int) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % space


@cache
def known_lines() -> tuple[npt.NDArray[np.int64], int]:
    """The hashes, sorted, and how many there could be."""
    with np.load(Path(__file__).with_name("known_lines.npz"), allow_pickle=False) as file:
        return unpacked(file["steps"]), int(file["space"])


def unpacked(steps: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The hashes whose steps these are."""
    return np.cumsum(steps, dtype=np.int64)[steps < LONGEST]
