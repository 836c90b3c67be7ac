"""How good are the answers? Each is scored alone, then those of a contestant are set side by side.

A poem is a couplet, which is given, and its rest, which a model answers. `score_answer` takes any
answer, empty or hostile; `tabulate` sets scored answers in a table, a row a poem and a column a
metric; `summarise` takes the means of the columns. Every poem counts, and a share of nothing
(echoing lines where no line was written) is 0.

All contestants are scored on the same extent, `verse`: an answer in form as a whole, any other as
far as the true poem goes. So a model that does not stop loses form and lines, and nothing else.
The couplet was given and is no merit: only rhyme looks at it, since the answer has to go on from
it, and so does the first tone rule after it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from verse.poem import POEM_PUNCTUATION, Poem
from verse.poems.lines import FURTHER_LINES, IDEOGRAPHS, in_form
from verse.poems.prosody import Analysis, analyse, rhymes
from verse.scoring.cooccurrence import Rivals, fits, parallel, words
from verse.scoring.known_lines import stands_elsewhere
from verse.scoring.metrics import INTERVALS, KEYS, METRICS

LEAST_WORDS = 0.4
"""Least share of attested pairs of a whole poem; 97% of true poems have it."""
LEAST_FIT = 0.5
"""Least fit of a whole poem: what chance has."""
LEAST_PARALLEL = 0.07
"""Least parallelism of a whole poem's middle couplets; 95% of true poems have it."""
MOST_NEAR_COPIES = 0.5
"""Most lines of a whole poem, as a share, that are near copies; 99% of true poems have no more."""
BANDS = {10: (3.12, 6.25), 14: (2.95, 5.59), 30: (3.36, 5.47), 42: (3.41, 5.23)}
"""Characters after the couplet -> the nats a character between which 90% of the embedded training
poems lie, from the 2nd to the 92nd in a hundred: `python -m tools.bands`."""

BLANK = "\0"  # in place of a character; no verse has it
LONGEST = 20  # characters of a line that can be near another; no verse is longer

COLUMNS = ["poem", "written", *(metric.name for metric in METRICS if metric.name != "distinct2")]
"""Of metrics/poems.csv, where each metric is the mean of its column; `distinct2` is none."""

SHARES = ("whole", "any_length", "form", "lines", "rhyme", "in_band")
"""Columns of 0 and 1, whose means are shares of the poems."""
MEANS = [key for key in INTERVALS if key not in SHARES]

UNITS = 10**9  # a mean over lines as a whole number: see `resampled`
RESAMPLES_AT_ONCE = 50  # bounds the memory: 20 MB for 50,000 poems
Z = 1.959964  # the normal distribution's 97.5% point


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer, scored."""

    poem: Poem
    """The couplet and the answer to it."""
    verse: tuple[str, ...]
    """Those that are scored: all of an answer in form, else as many as the true poem has; of
    fewer an even number."""
    form: bool
    """What `in_form` says."""
    lines: bool
    """As many lines as the true poem."""
    clean: bool
    """No character that is neither Chinese nor poem punctuation."""
    echo: tuple[bool, ...]
    """For each line of the verse: it is, but for one character at most, a line of the couplet or
    an earlier one of the answer."""
    novel: tuple[bool, ...]
    """For each line of the verse: no training poem has it, nor but for one character."""
    near_copies: tuple[bool, ...]
    """For each line of the verse: a training poem has it but for two characters at most, or another
    book but for one (`stands_elsewhere`)."""
    rhyme: bool
    """The poem's even lines, the couplet's included, rhyme, and no two end on the same
    character; False where there is no verse."""
    tone: float
    """Mean share of the tone rules kept after the couplet, 0..1; 0 where lines are uneven."""
    words: float
    """Share of neighbouring characters of the verse that are attested."""
    parallel: float | None
    """How parallel the verse's couplets are but the last; None where there are none."""
    closes: bool
    """The last couplet is no more parallel than those before, if there are any."""
    repeats: float
    """Share of the verse's characters that stand earlier in it."""
    analysis: Analysis | None
    """Prosody of the couplet and the verse; None out of form."""


def score_answer(answer: Poem, truth: Poem, training_lines: Collection[str]) -> ScoredAnswer:
    """Score an answer to the couplet of the true poem.

    training_lines: as `learnt` or `likenesses` gives them of the training poems; plain lines will
    do, but then a line with one character changed passes for new.
    """
    given, lines, true_lines = answer.couplet_lines, answer.rest_lines, len(truth.rest_lines)
    form = in_form(answer.couplet, answer.rest, {*FURTHER_LINES, true_lines})
    verse = lines if form else lines[: min(len(lines), true_lines) // 2 * 2]
    poem = (*given, *verse)
    analysis = analyse(poem)
    echo, heard = [], likenesses(given)
    for line in verse:
        alike = likenesses([line])
        echo.append(not heard.isdisjoint(alike))
        heard |= alike
    finals = [line[-1:] for line in poem[1::2]]
    characters = "".join(verse)
    middle = parallel(verse[:-2])

    def known(line: str, most: int) -> bool:
        return any(alike in training_lines for alike in (line, *blanked(line, most)))

    return ScoredAnswer(
        poem=answer,
        verse=verse,
        form=form,
        lines=len(lines) == true_lines,
        clean=set(IDEOGRAPHS.sub("", answer.rest)) <= set(POEM_PUNCTUATION),
        echo=tuple(echo),
        novel=tuple(not known(line, 1) for line in verse),
        near_copies=tuple(known(line, 2) or stands_elsewhere(line) for line in verse),
        rhyme=bool(verse) and rhymes(poem) and len(set(finals)) == len(finals),
        tone=analysis.rest_tone,
        words=words(verse),
        parallel=middle,
        closes=middle is None or (parallel(verse[-2:]) or 0) <= middle,
        repeats=1 - len(set(characters)) / len(characters) if characters else 0.0,
        analysis=analysis if form else None,
    )


def learnt(answers: Iterable[Poem], training: Iterable[Poem]) -> set[str]:
    """The likenesses of training lines that an answer has too, which `score_answer` looks among.

    Takes memory for the answers, and none for the training poems, however many.
    """
    wanted = likenesses({line for answer in answers for line in answer.rest_lines}, 2)
    return {
        alike
        for poem in training
        for line in poem.lines
        for alike in (line, *blanked(line, 2))
        if alike in wanted
    }


def likenesses(lines: Iterable[str], most: int = 1) -> set[str]:
    """Each line, and each with so many of its characters blanked, one or two.

    Two lines of one length differ in so many characters at most if they have a likeness in common.

    >>> sorted(likenesses(["山水"]))
    ['\\x00水', '山\\x00', '山水']
    """
    return {alike for line in lines for alike in (line, *blanked(line, most))}


def blanked(line: str, most: int = 1) -> Iterator[str]:
    if 1 < len(line) < LONGEST:
        for at in range(len(line)):
            yield line[:at] + BLANK + line[at + 1 :]
    if most > 1 and 4 < len(line) < LONGEST:  # of fewer characters, too little is left
        for at in range(len(line)):
            for later in range(at + 1, len(line)):
                yield line[:at] + BLANK + line[at + 1 : later] + BLANK + line[later + 1 :]


def tabulate(
    scored: Sequence[ScoredAnswer], others: Rivals, surprises: Sequence[float]
) -> pd.DataFrame:
    """A contestant's scored answers as a table: a row a poem, numbered from 1, in their order.

    others: couplets that a poem's own is compared with. surprises: of each answer's verse, as
    `verse.model.surprise` has them. Columns: COLUMNS, NaN where an answer has nothing to measure.
    Of those, `any_length` says of a poem: it is in form, rhymes, is in tone, has no line of a
    training poem, of its own or of another answer and at most MOST_NEAR_COPIES, reaches LEAST_WORDS
    and LEAST_FIT, is as surprising as BANDS have it, and its middle couplets reach LEAST_PARALLEL
    and the last one. `whole` says that it is as long as the true one, too.
    """
    known = Counter(alike for one in scored for alike in sorted(likenesses(one.verse)))

    def is_shared(line: str) -> bool:
        return any(known[alike] > 1 for alike in likenesses([line]))

    couplets = [one.poem.couplet_lines for one in scored]
    rows = []
    fitting = fits(couplets, [one.verse for one in scored], others)
    for number, (one, fit, nats) in enumerate(zip(scored, fitting, surprises, strict=True), 1):
        lines = len(one.verse)
        row = {
            "poem": number,
            "written": len(one.poem.rest_lines),
            "form": int(one.form),
            "lines": int(one.lines),
            "clean": int(one.clean),
            "rhyme": int(one.rhyme),
            "tone": one.tone,
            "fit": fit,
            "words": one.words,
            "parallel": np.nan if one.parallel is None else one.parallel,
            "surprise": nats,
            "in_band": int(in_band(nats, len("".join(one.verse)))),
            "novel": share(sum(one.novel), lines),
            "near_copies": share(sum(one.near_copies), lines),
            "echo": share(sum(one.echo), lines),
            "shared": share(sum(map(is_shared, one.verse)), lines),
            "repeats": one.repeats,
        }
        row["any_length"] = int(
            one.form
            and one.rhyme
            and bool(one.analysis and one.analysis.in_tone)
            and all(one.novel)
            and row["near_copies"] <= MOST_NEAR_COPIES
            and not row["echo"]
            and not row["shared"]
            and one.words >= LEAST_WORDS
            and fit >= LEAST_FIT
            and row["in_band"]
            and not row["parallel"] < LEAST_PARALLEL
            and one.closes
        )
        row["whole"] = int(row["any_length"] and one.lines)
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def in_band(nats: float, characters: int) -> bool:
    """Whether as many characters are as surprising as nine in ten true poems of that length, or of
    the length next to it; False for NaN."""
    low, high = BANDS[min(BANDS, key=lambda known: abs(known - characters))]
    return low <= nats <= high


def summarise(
    scored: Sequence[ScoredAnswer],
    table: pd.DataFrame,
    truths: Sequence[Poem],
    *,
    seed: int,
    resamples: int,
) -> dict[str, int | float]:
    """The metrics of a contestant, by KEYS, rounded to 4 digits.

    table: what `tabulate` makes of the scored answers. Each metric is the mean of its column, 0 if
    that is empty, but for `distinct2`: the distinct bigrams within the first two lines of the
    answers, over as many bigrams as the true rests have there. So all contestants are measured at
    one length.

    `_ci95` is half the width of a 95% interval: of Wilson's for a share of the poems, which
    knows that 300 of 300 are not all there are; of the percentile bootstrap over poems for a mean
    (B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

    The same arguments and numpy give the same numbers on any machine: the resamples add up whole
    numbers, whose sum depends on no order.
    """
    metrics: dict[str, float] = dict.fromkeys(KEYS[1:], 0.0)
    openings = [
        line[: len(true)]
        for one, poem in zip(scored, truths, strict=True)
        for line, true in zip(one.verse[:2], poem.rest_lines, strict=False)
    ]
    bigrams = {pair for line in openings for pair in pairwise(line)}
    true = sum(len(line) - 1 for poem in truths for line in poem.rest_lines[:2])
    metrics["distinct2"] = min(1.0, share(len(bigrams), true))
    if len(table):
        metrics |= means_of(table[COLUMNS[2:]])
        for key in SHARES:
            metrics[f"{key}_ci95"] = wilson(int(table[key].sum()), len(table))
        metrics |= half_widths(table[MEANS], seed, resamples)
    return {"poems": len(table)} | {key: round(metrics[key], 4) for key in KEYS[1:]}


def gain(
    table: pd.DataFrame, baseline: pd.DataFrame, *, seed: int, resamples: int
) -> dict[str, float]:
    """What a contestant's answers gain over the baseline's to the same couplets, with `_ci95`.

    Of each metric that has an interval, the mean of the differences poem by poem, rounded to 4
    digits; none where no poem has both. The interval is the percentile bootstrap's, or that of
    D. G. Bonett and R. M. Price (J. Educ. Behav. Stat. 37(4), 2012) for shares: as if one poem more
    was won and one lost, which tells some doubt where all agree.
    """
    differences = (table[INTERVALS] - baseline[INTERVALS]).dropna(axis="columns", how="all")
    found = means_of(differences)
    for key in SHARES:
        spread = np.std([*differences[key], 1, -1]) / (len(differences) + 2) ** 0.5
        found[f"{key}_ci95"] = Z * float(spread)
    found |= half_widths(differences[[key for key in MEANS if key in differences]], seed, resamples)
    return {key: round(value, 4) for key, value in found.items()}


def means_of(table: pd.DataFrame) -> dict[str, float]:
    """Of each column the mean of what it has, or 0."""
    return {str(key): float(mean) for key, mean in table.mean().fillna(0).items()}


def share(part: float, whole: int) -> float:
    return part / whole if whole else 0.0


def wilson(part: int, whole: int) -> float:
    """Half the width of E. B. Wilson's 95% interval for a share (J. Am. Stat. Assoc. 22, 1927)."""
    p, z = part / whole, Z**2 / whole
    return float(Z * (p * (1 - p) / whole + z / 4 / whole) ** 0.5 / (1 + z))


def half_widths(poems: pd.DataFrame, seed: int, resamples: int) -> dict[str, float]:
    """For each column half the width of the 95% bootstrap interval of its mean, as `_ci95`."""
    low, high = np.quantile(bootstrap_means(poems, seed, resamples), (0.025, 0.975), axis=0)
    halves = ((high - low) / 2).tolist()
    return {f"{key}_ci95": half for key, half in zip(poems.columns, halves, strict=True)}


def bootstrap_means(poems: pd.DataFrame, seed: int, resamples: int) -> npt.NDArray[np.float64]:
    """The columns' means in resamples of the rows, drawn with replacement: (resamples, columns).

    A mean is of the rows that have a value; a resample that has none of them tells nothing.
    """
    units = (poems.fillna(0) * UNITS).round().to_numpy(dtype=float)
    given = poems.notna().to_numpy(dtype=float)
    sums = np.concatenate(list(resampled(np.hstack([units, given]), seed, resamples)))
    totals, counts = np.split(sums, 2, axis=1)
    mean = units.sum(axis=0) / np.maximum(given.sum(axis=0), 1)
    means: npt.NDArray[np.float64] = np.where(counts, totals / np.maximum(counts, 1), mean) / UNITS
    return means


def resampled(
    poems: npt.NDArray[np.float64], seed: int, resamples: int
) -> Iterable[npt.NDArray[np.float64]]:
    """For resamples of the rows, drawn with replacement, the sums of the columns, some at once."""
    random, number = np.random.default_rng(seed), len(poems)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        counts = [  # how often each poem is drawn
            np.bincount(random.integers(number, size=number), minlength=number)
            for _ in range(start, min(start + RESAMPLES_AT_ONCE, resamples))
        ]
        yield np.array(counts, dtype=float) @ poems
