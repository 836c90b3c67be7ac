"""How good are the answers? Each is judged alone, then a group of them is summed up.

A poem is a couplet, which is given, and its rest, which a model answers. `judge` takes any
answer, empty or hostile; `summarise` turns a group of judged answers into shares. Every poem
counts, and a share of nothing (echoing lines where no line was written) is 0.
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from sacrebleu.metrics import CHRF

from verse.poems.lines import CLOSES, IDEOGRAPHS, PAUSES, POEM_PUNCTUATION, STOPS, split_lines
from verse.poems.prosody import Analysis, analyse

FURTHER_LINES = (2, 6)  # of a quatrain and of an eight-line poem

KEYS = ("poems", "form", "lines", "clean", "echo", "novel", "rhyme", "tone", "distinct2", "chrf")
HEADLINES = ("form", "lines", "rhyme", "tone", "chrf")
"""The keys with a confidence interval."""


TONE_UNITS = 10**9  # a tone score as a whole number: see `summarise`
CHRF2 = CHRF()  # beta 2, characters alone: sacrebleu's defaults
RESAMPLES_AT_ONCE = 50  # bounds the memory: 20 MB for 50,000 poems


@dataclass(frozen=True)
class Judged:
    """One answer, judged."""

    couplet: str
    answer: str
    lines: tuple[str, ...]
    """The answer's lines without punctuation."""
    form: bool
    """What `in_form` says."""
    length: bool
    """As many lines as the true poem (the key `lines`)."""
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
        lines=lines,
        form=form,
        length=len(lines) == len(split_lines(truth)),
        clean=set(IDEOGRAPHS.sub("", answer)) <= set(POEM_PUNCTUATION),
        echo=tuple(echo),
        novel=tuple(line not in training_lines for line in lines),
        rhyme=analysis.rhyme if analysis else False,
        tone=analysis.tone if analysis else 0.0,
        analysis=analysis,
    )


def summarise(
    judged: Sequence[Judged], truths: Sequence[str], *, seed: int, resamples: int
) -> dict[str, int | float]:
    """The metrics of a group: KEYS, and `<key>_ci95` beside each of HEADLINES.

    truths: the true rests of the judged poems, in their order.

    `form`, `lines`, `clean`, `rhyme` and `tone` are means over poems; `echo` and `novel` shares
    of all lines of the group; `distinct2` takes bigrams within lines, over the whole group, so
    compare it between groups of one size. `chrf` is sacrebleu's corpus chrF2 (character n-grams
    up to 6, beta 2, no word n-grams) in 0..1: white space does not count, Chinese punctuation
    counts as any other character. Numbers are rounded to 4 digits.

    `_ci95` is half the width of the 95% percentile interval of a bootstrap over poems
    (B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). It is 0
    where all poems agree: it tells the noise of the sample, not what the sample never met.

    The same arguments and numpy give the same numbers on any machine: the resamples add up whole
    numbers, whose sum depends on no order.
    """
    every_line = [line for one in judged for line in one.lines]
    bigrams = {pair for line in every_line for pair in pairwise(line)}
    poems = np.array(
        [
            (
                one.form,
                one.length,
                one.rhyme,
                round(one.tone * TONE_UNITS),
                *overlap(one.answer, truth),
            )
            for one, truth in zip(judged, truths, strict=True)
        ],
        dtype=float,
    )
    metrics = {
        "poems": len(judged),
        "clean": share(sum(one.clean for one in judged), len(judged)),
        "echo": share(sum(sum(one.echo) for one in judged), len(every_line)),
        "novel": share(sum(sum(one.novel) for one in judged), len(every_line)),
        "distinct2": share(len(bigrams), sum(len(line) - 1 for line in every_line)),
    }
    if len(poems):
        metrics |= headlines(poems.sum(axis=0), len(poems))
        drawn = [headlines(sums, len(poems)) for sums in resampled(poems, seed, resamples)]
        for key in HEADLINES:
            low, high = np.quantile([one[key] for one in drawn], (0.025, 0.975))
            metrics[f"{key}_ci95"] = float(high - low) / 2
    else:
        metrics |= {name: 0.0 for key in HEADLINES for name in (key, f"{key}_ci95")}
    ordered = (name for key in KEYS for name in (key, f"{key}_ci95") if name in metrics)
    return {name: round(metrics[name], 4) for name in ordered}


def share(part: int, whole: int) -> float:
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


def resampled(poems: np.ndarray, seed: int, resamples: int) -> Iterable[np.ndarray]:
    """For each resample of the rows, drawn with replacement, the sums of the columns."""
    random, number = np.random.default_rng(seed), len(poems)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        counts = [  # how often each poem is drawn
            np.bincount(random.integers(number, size=number), minlength=number)
            for _ in range(start, min(start + RESAMPLES_AT_ONCE, resamples))
        ]
        yield from np.array(counts, dtype=float) @ poems


def headlines(sums: np.ndarray, poems: int) -> dict[str, float]:
    """The headline metrics from the columns that `summarise` lays out, added up over the poems."""
    form, lines, rhyme, tone, *ngram_counts = sums.tolist()
    return {
        "form": form / poems,
        "lines": lines / poems,
        "rhyme": rhyme / poems,
        "tone": tone / TONE_UNITS / poems,
        "chrf": CHRF2._compute_f_score(ngram_counts) / 100,
    }


def metrics_table(metrics: dict[str, dict[str, int | float]]) -> str:
    """The metrics for a terminal: a row a key, a column a group, ± half a confidence interval."""
    rows = [" " * 10 + "".join(f"{group:<16}" for group in metrics)]
    for key in KEYS:
        row = f"{key:<10}"
        for group in metrics.values():
            value = f"{group[key]}" if key == "poems" else f"{group[key]:.3f}"
            noise = f" ±{group[f'{key}_ci95']:.3f}" if key in HEADLINES else ""
            row += f"{value + noise:<16}"
        rows.append(row)
    return "\n".join(row.rstrip() for row in rows)


def side_by_side(texts: dict[str, str], width: int = 18, height: int = 8) -> str:
    """Texts for a terminal, set in lines, each in a column under its heading.

    width: of a column, in terminal cells; a Chinese character takes two. height: most lines
    shown of a text. What is longer or wider ends on `…`. Holds no control character.
    """
    columns = []
    for heading, text in texts.items():
        lines = [line + marks.strip() for line, marks in split_lines(text)]
        cut = [*lines[:height], "…"] if len(lines) > height else lines
        columns.append([heading, *(map(printable, cut) if cut else ["(empty)"])])
    rows = []
    for number in range(max(map(len, columns))):
        cells = [column[number] if number < len(column) else "" for column in columns]
        rows.append("".join(fit(cell, width) for cell in cells).rstrip())
    return "\n".join(rows)


def printable(text: str) -> str:
    """The text with each control, format, combining or unassigned character made visible.

    An escape sequence loses its effect: ESC becomes ␛, what has no picture becomes �.
    """
    shown = []
    for character in text:
        code = ord(character)
        if code < 0x20:
            character = chr(0x2400 + code)
        elif unicodedata.category(character)[0] in "CM" or character in "\u2028\u2029":
            character = "\ufffd"
        shown.append(character)
    return "".join(shown)


def cells(text: str) -> int:
    """How many terminal cells a printable text takes."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def fit(text: str, width: int) -> str:
    """The text in exactly `width` cells, the last of them blank."""
    if cells(text) >= width:
        text = text[:width]
        while cells(text) > width - 2:
            text = text[:-1]
        text += "…"
    return text + " " * (width - cells(text))
