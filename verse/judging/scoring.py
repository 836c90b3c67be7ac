"""How good are the answers? Each is judged alone, then those of a contestant are summed up.

A poem is a couplet, which is given, and its rest, which a model answers. `judge` takes any
answer, empty or hostile; `tabulate` sets judged answers in a table, a row a poem; `summarise` turns
a table into shares. Every poem counts, and a share of nothing (echoing lines where no line was
written) is 0.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
from sacrebleu.metrics import CHRF

from verse.judging.metrics import INTERVALS, KEYS
from verse.poems.lines import CLOSES, IDEOGRAPHS, PAUSES, POEM_PUNCTUATION, STOPS, split_lines
from verse.poems.prosody import Analysis, analyse

FURTHER_LINES = (2, 6)  # of a quatrain and of an eight-line poem


TONE_UNITS = 10**9  # a tone score as a whole number: see `summarise`
CHRF2 = CHRF()  # beta 2, characters alone: sacrebleu's defaults
OVERLAPS = [
    f"{kind}_{n}" for n in range(1, CHRF.CHAR_ORDER + 1) for kind in ("written", "true", "common")
]
"""Columns of what `overlap` counts: n-grams of the answer, of the truth and of both."""
COLUMNS = "poem form lines clean written echo novel rhyme tone chrf".split()
SUMMED = ("form", "lines", "rhyme", "tone")
RESAMPLES_AT_ONCE = 50  # bounds the memory: 20 MB for 50,000 poems


@dataclass(frozen=True)
class Judged:
    """One answer, judged."""

    couplet: str
    answer: str
    written: tuple[str, ...]
    """The answer's lines without punctuation."""
    form: bool
    """What `in_form` says."""
    lines: bool
    """As many lines as the true poem."""
    clean: bool
    """No character that is neither Chinese nor poem punctuation."""
    echo: tuple[bool, ...]
    """For each line: repeats a line of the couplet or an earlier one of the answer."""
    novel: tuple[bool, ...]
    """For each line: stands in no training poem."""
    rhyme: bool
    """The poem's even lines share a rhyme group; False out of form."""
    tone: float
    """Mean share of the tone rules kept, 0..1; 0 out of form."""
    analysis: Analysis | None
    """Prosody of the couplet and the answer; None out of form."""
    raw: str | None = None
    """All that a chat model wrote, where the answer is only what counts of it."""


def in_form(couplet: str, answer: str) -> bool:
    """Whether 2 or 6 further lines follow, each as long as the couplet's two, and nothing else.

    Lines are Chinese characters alone. A line that opens a couplet ends on one of PAUSES, one
    that closes it on one of STOPS, the poem's last on one of CLOSES. Nothing may stand before,
    between or after, be it a blank or a line break.
    """
    given, lines = split_lines(couplet), split_lines(answer)
    return (
        len(given) == 2
        and len(lines) in FURTHER_LINES
        and len({len(line) for line, _ in (*given, *lines)}) == 1
        and all(IDEOGRAPHS.fullmatch(line) for line, _ in lines)
        and all(len(marks) == 1 for _, marks in lines)
        and all(marks in PAUSES for _, marks in lines[::2])
        and all(marks in STOPS for _, marks in lines[1::2])
        and lines[-1][1] in CLOSES
        and "".join(line + marks for line, marks in lines) == answer
    )


def judge(couplet: str, answer: str, truth: str, training_lines: Collection[str]) -> Judged:
    """Judge an answer to a couplet whose true rest is `truth`.

    training_lines: lines without punctuation, as `lines_in` gives them.
    """
    given = [line for line, _ in split_lines(couplet)]
    lines = tuple(line for line, _ in split_lines(answer))
    form = in_form(couplet, answer)
    analysis = analyse((*given, *lines)) if form else None
    echo, heard = [], set(given)
    for line in lines:
        echo.append(line in heard)
        heard.add(line)
    return Judged(
        couplet=couplet,
        answer=answer,
        written=lines,
        form=form,
        lines=len(lines) == len(split_lines(truth)),
        clean=set(IDEOGRAPHS.sub("", answer)) <= set(POEM_PUNCTUATION),
        echo=tuple(echo),
        novel=tuple(line not in training_lines for line in lines),
        rhyme=analysis.rhyme if analysis else False,
        tone=analysis.tone if analysis else 0.0,
        analysis=analysis,
    )


def tabulate(judged: Sequence[Judged], truths: Sequence[str]) -> pd.DataFrame:
    """Judged answers as a table: a row a poem, numbered from 1, in their order.

    truths: the true rests of the poems. Columns: `poem`; `form`, `lines`, `clean` and `rhyme`, 0
    or 1; `written`, how many lines, of which `echo` repeat and `novel` are new; `tone`; `chrf`.
    What `summarise` adds up besides stands in OVERLAPS.
    """
    rows = [
        {
            "poem": number,
            "form": int(one.form),
            "lines": int(one.lines),
            "clean": int(one.clean),
            "written": len(one.written),
            "echo": sum(one.echo),
            "novel": sum(one.novel),
            "rhyme": int(one.rhyme),
            "tone": one.tone,
            **dict(zip(OVERLAPS, overlap(one.answer, truth), strict=True)),
        }
        for number, (one, truth) in enumerate(zip(judged, truths, strict=True), 1)
    ]
    table = pd.DataFrame(rows, columns=[*COLUMNS[:-1], *OVERLAPS])
    table["chrf"] = [f_score(counts) for counts in table[OVERLAPS].to_numpy()]
    return table


def summarise(
    judged: Sequence[Judged], table: pd.DataFrame, *, seed: int, resamples: int
) -> dict[str, int | float]:
    """The metrics of a contestant, by KEYS.

    table: what `tabulate` makes of the judged answers.

    `form`, `lines`, `clean`, `rhyme` and `tone` are means over poems; `echo` and `novel` shares
    of all lines of the contestant; `distinct2` takes bigrams within lines, over all of them, so
    compare it between contestants of one size. `chrf` is sacrebleu's corpus chrF2 (character
    n-grams up to 6, beta 2, no word n-grams) in 0..1: white space does not count, Chinese
    punctuation counts as any other character. Numbers are rounded to 4 digits.

    `_ci95` is half the width of the 95% percentile interval of a bootstrap over poems
    (B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). It is 0
    where all poems agree: it tells the noise of the sample, not what the sample never met.

    The same arguments and numpy give the same numbers on any machine: the resamples add up whole
    numbers, whose sum depends on no order.
    """
    every_line = [line for one in judged for line in one.written]
    bigrams = {pair for line in every_line for pair in pairwise(line)}
    lines = int(table["written"].sum())
    metrics: dict[str, float] = {
        "clean": share(table["clean"].sum(), len(table)),
        "echo": share(table["echo"].sum(), lines),
        "novel": share(table["novel"].sum(), lines),
        "distinct2": share(len(bigrams), sum(len(line) - 1 for line in every_line)),
    }
    if len(table):
        summed = table.assign(tone=(table["tone"] * TONE_UNITS).round())[[*SUMMED, *OVERLAPS]]
        poems = summed.to_numpy(dtype=float)
        metrics |= intervalled(poems.sum(axis=0), len(poems))
        drawn = [intervalled(sums, len(poems)) for sums in resampled(poems, seed, resamples)]
        for key in INTERVALS:
            low, high = np.quantile([one[key] for one in drawn], (0.025, 0.975))
            metrics[f"{key}_ci95"] = float(high - low) / 2
    return {"poems": len(table)} | {key: round(metrics.get(key, 0.0), 4) for key in KEYS[1:]}


def share(part: float, whole: int) -> float:
    return part / whole if whole else 0.0


def overlap(answer: str, truth: str) -> list[int]:
    """What sacrebleu's chrF counts: for n = 1..6 the answer's n-grams, the truth's, common ones.

    Counted here because `CHRF.corpus_score` keeps every n-gram of every reference (0.9 GiB for
    50,000 poems) and tells no resampled score. Where no n-gram is common no longer one is, which
    spares most of the work.
    """
    answer, truth = "".join(answer.split()), "".join(truth.split())
    counts, common = [], 1
    for n in range(1, CHRF.CHAR_ORDER + 1):
        if common:
            written, true = ngrams(answer, n), ngrams(truth, n)
            common = sum(min(written[gram], true[gram]) for gram in written.keys() & true.keys())
        written_total, true_total = max(len(answer) - n + 1, 0), max(len(truth) - n + 1, 0)
        counts += [written_total if true_total else 0, true_total, common]
    return counts


def ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))


def resampled(
    poems: npt.NDArray[np.float64], seed: int, resamples: int
) -> Iterable[npt.NDArray[np.float64]]:
    """For each resample of the rows, drawn with replacement, the sums of the columns."""
    random, number = np.random.default_rng(seed), len(poems)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        counts = [  # how often each poem is drawn
            np.bincount(random.integers(number, size=number), minlength=number)
            for _ in range(start, min(start + RESAMPLES_AT_ONCE, resamples))
        ]
        yield from np.array(counts, dtype=float) @ poems


def intervalled(sums: npt.NDArray[np.float64], poems: int) -> dict[str, float]:
    """The metrics that have an interval, from the columns SUMMED and OVERLAPS, added up."""
    form, lines, rhyme, tone = sums[: len(SUMMED)].tolist()
    return {
        "form": form / poems,
        "lines": lines / poems,
        "rhyme": rhyme / poems,
        "tone": tone / TONE_UNITS / poems,
        "chrf": f_score(sums[len(SUMMED) :]),
    }


def f_score(counts: npt.NDArray[np.float64]) -> float:
    """chrF2 in 0..1 from what `overlap` counts."""
    return float(CHRF2._compute_f_score(counts.tolist())) / 100
