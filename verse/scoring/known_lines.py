"""Lines that stand in other books: Song verse that the embedded model has read, and Tang poems
apart from the embedded ones and the homework's.

known_lines.npz, which tools/known_lines.py makes, holds a hash of each, sorted, as the steps from
one to the next: a byte each, where LONGEST goes on in the next. One line in 1 / ODDS that stands in
none of them passes for one that does.
"""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

ODDS = 64  # hashes for each that is taken
LONGEST = 255


def stands_elsewhere(line: str) -> bool:
    """Whether a line, of five or seven characters, stands in another book, word for word."""
    hashes, space = known_lines()
    wanted = hash_of(line, space)
    at = int(np.searchsorted(hashes, wanted))
    return at < len(hashes) and int(hashes[at]) == wanted


def hash_of(line: str, space: int) -> int:
    digest = hashlib.blake2b(line.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % space


@cache
def known_lines() -> tuple[npt.NDArray[np.int64], int]:
    """The hashes, sorted, and how many there could be."""
    with np.load(Path(__file__).with_name("known_lines.npz"), allow_pickle=False) as file:
        return unpacked(file["steps"]), int(file["space"])


def unpacked(steps: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The hashes whose steps these are."""
    return np.cumsum(steps, dtype=np.int64)[steps < LONGEST]
