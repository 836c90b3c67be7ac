"""How Tang verse uses characters: which follow each other, which keep company in a poem, and which
face each other in a parallel couplet.

The counts stand in cooccurrence.npz, which tools/cooccurrence.py makes of poems that share no line
with the embedded poems or the homework's, so that neither what is judged nor what a model learnt
from has a say. A pair counts as attested if two poems have it: a poem that was counted by mistake,
such as one of a user's own, attests none of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RIVALS = 1000  # couplets with which a poem's own is compared, at most
AT_ONCE = 500  # answers, which bounds the memory
UNIT = 127**2  # the product of two vectors whose cosine is 1


class Cooccurrence(NamedTuple):
    attested: frozenset[str]
    """Two characters that follow each other within a line of two poems or more."""
    place: dict[str, int]
    """Character -> its row and column in `company`; the commonest characters alone."""
    company: npt.NDArray[np.float32]
    """How much oftener than by chance two characters stand in couplets near each other: the
    logarithm in whole steps, so that sums of it are exact. 0 for a character and itself."""
    facing: npt.NDArray[np.int32]
    """A vector of length 127 for each: the nearer two, the oftener their characters face each other
    in middle couplets. Whole numbers, so that products are exact; the last row, of all others, is
    0."""


@cache
def cooccurrence() -> Cooccurrence:
    with np.load(Path(__file__).with_name("cooccurrence.npz"), allow_pickle=False) as file:
        text = "".join(map(chr, file["pairs"].ravel().tolist()))
        attested = frozenset(text[at : at + 2] for at in range(0, len(text), 2))
        characters = [chr(code) for code in file["characters"].tolist()]
        company = np.zeros((len(characters), len(characters)), np.float32)
        company[np.triu_indices(len(characters), 1)] = file["company"]
        facing = np.pad(file["facing"].astype(np.int32), ((0, 1), (0, 0)))
    company += company.T
    place = {c: number for number, c in enumerate(characters)}
    return Cooccurrence(attested, place, company, facing)


def words(lines: Sequence[str]) -> float:
    """The share of the pairs of neighbouring characters within lines that are attested."""
    attested = cooccurrence().attested
    known = [a + b in attested for line in lines for a, b in pairwise(line)]
    return sum(known) / len(known) if known else 0.0


def parallel(lines: Sequence[str]) -> float | None:
    """How parallel (對仗) the couplets of some lines are, the mean; None where there is none.

    Of a couplet: the mean cosine of the characters that face each other, less that of those that
    do not; 0 where its lines differ in length or have one character alone.
    """
    place, facing = cooccurrence().place, cooccurrence().facing
    found = []
    for first, second in zip(lines[::2], lines[1::2], strict=False):
        size = len(first)
        if size != len(second) or size < 2:
            found.append(0.0)
            continue
        a, b = (facing[[place.get(c, -1) for c in line]] for line in (first, second))
        products = a @ b.T
        faced, total = int(np.trace(products)), int(products.sum())
        found.append((faced - (total - faced) / (size - 1)) / size / UNIT)
    return sum(found) / len(found) if found else None


@dataclass(frozen=True)
class Rivals:
    """Couplets with which a poem's own is compared."""

    counts: npt.NDArray[np.float32]
    """(couplets, characters) how often each has each."""
    lengths: npt.NDArray[np.int64]
    """(couplets,) characters of their first lines."""


def rivals(couplets: Iterable[Sequence[str]]) -> Rivals:
    """The first RIVALS of the couplets, each given as its lines."""
    chosen = list(islice(couplets, RIVALS))
    return Rivals(counted(chosen), np.array([len("".join(lines[:1])) for lines in chosen], int))


def counted(couplets: Sequence[Sequence[str]]) -> npt.NDArray[np.float32]:
    place = cooccurrence().place
    counts = np.zeros((len(couplets), len(place)), np.float32)
    for row, lines in zip(counts, couplets, strict=True):
        for c in unrhymed(lines):
            if c in place:
                row[place[c]] += 1
    return counts


def unrhymed(lines: Sequence[str]) -> str:
    """The characters of lines, but for those that close a couplet: rhyme is no topic."""
    return "".join(line[:-1] if number % 2 else line for number, line in enumerate(lines))


def fits(
    couplets: Sequence[Sequence[str]], answers: Sequence[Sequence[str]], others: Rivals
) -> list[float]:
    """For each answer, the share of other couplets that explain it worse than its own does.

    couplets, answers: each given as its lines. A couplet explains an answer as well as their
    characters keep company, on average over all pairs; a tie counts half. Others are those whose
    lines are as long, or all where none is. Chance is 0.5. Characters that the answer has from
    its couplet count for nothing, rhyme words neither; an answer with none left has 0.
    """
    found: list[float] = []
    for start in range(0, len(answers), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        found += fits_of(couplets[part], answers[part], others)
    return found


def fits_of(
    couplets: Sequence[Sequence[str]], answers: Sequence[Sequence[str]], others: Rivals
) -> list[float]:
    place, company = cooccurrence().place, cooccurrence().company
    sums = np.zeros((len(answers), len(place)), np.float32)
    for row, couplet, lines in zip(sums, couplets, answers, strict=True):
        given = set("".join(couplet))
        row += company[[place[c] for c in unrhymed(lines) if c in place and c not in given]].sum(0)
    own = counted(couplets)
    mine = (sums * own).sum(axis=1) / np.maximum(own.sum(axis=1), 1)
    theirs = sums @ others.counts.T / np.maximum(others.counts.sum(axis=1), 1)
    found = []
    for number, couplet in enumerate(couplets):
        alike = others.lengths == len("".join(couplet[:1]))
        compared = theirs[number, alike if alike.any() else slice(None)]
        if not sums[number].any() or not compared.size:
            found.append(0.0)
        else:
            worse, even = (compared < mine[number]).mean(), (compared == mine[number]).mean()
            found.append(float(worse + even / 2))
    return found
