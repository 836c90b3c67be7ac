"""Make verse/scoring/known_lines.npz, which verse/scoring/known_lines.py reads.

    python -m tools.known_lines /tmp/chinese-poetry-2.0.1.tgz FOLDER_OF_THE_HOMEWORK

Wants tools/pretrain/data/song.txt, which the stage corpus of tools/pretrain makes: what the
embedded model has read, but for what quotes any Tang line of the package up to a character. The
Tang poems are those that tools/cooccurrence.py counts, which share no line with the embedded ones
or the homework's.
"""

import sys
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools.cooccurrence import held_out
from tools.pretrain.poetry import TANG, files, han_runs, texts
from verse.scoring.known_lines import LONGEST, ODDS, gapped, hash_of

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "verse" / "scoring" / "known_lines.npz"
SONG = ROOT / "tools" / "pretrain" / "data" / "song.txt"


def main(package: Path, homework: Path) -> None:
    song = han_runs(SONG.read_text("utf-8"))
    tang = chain.from_iterable(held_out(package, homework))
    read = (text for file in files(package, TANG) for text in texts(file))
    every = set(chain.from_iterable(map(han_runs, read)))
    quoted = {text for line in every for text in gapped(line)}
    own = {line for line in song if quoted.isdisjoint(gapped(line))}
    kept = {text for line in chain(own, set(tang)) for text in gapped(line)}
    space = ODDS * len(kept)
    hashes = np.unique([hash_of(text, space) for text in kept])
    np.savez_compressed(TARGET, steps=packed(hashes), space=np.int64(space))
    print(f"{TARGET.name}: {len(kept)} gapped lines, {TARGET.stat().st_size} bytes")


def packed(hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Sorted hashes as their steps."""
    steps = np.diff(hashes, prepend=0)
    ends = np.cumsum(steps // LONGEST + 1)
    found = np.full(ends[-1] if len(ends) else 0, LONGEST, np.uint8)
    found[ends - 1] = steps % LONGEST
    return found


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tools.known_lines chinese-poetry-2.0.1.tgz HOMEWORK_FOLDER")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
