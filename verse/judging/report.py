"""The score report: one HTML page that shows the metrics and every poem that they count.

The page is static: it reads without JavaScript, which only sorts and filters what stands there.
It fetches nothing, and its Content-Security-Policy lets no script or style run but its own. A
model may answer anything, so all text goes through `visible`, which leaves neither markup nor a
character that cannot be seen.

Poems are set as in an old printed book, in columns from right to left; the marks beside the
characters follow the reader's red ink (朱批).
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from string import Template
from typing import Any

from verse.judging.scoring import Judged
from verse.poems.lines import FORMS, split_lines
from verse.poems.prosody import LEVEL_GROUPS, Analysis, Break, line_tones

PAGE = Path(__file__).with_name("report.html")

GROUPS = {"base": ("未調", "base"), "tuned": ("已調", "tuned"), "reference": ("原作", "true")}

METRICS = {
    "form": (
        "合格",
        "whole answers in form: 2 or 6 further lines of the couplet's length, no more",
    ),
    "rhyme": ("押韻", "poems whose even lines share one Pingshui rhyme group"),
    "tone": ("合律", "mean share of the regulated-verse tone rules kept"),
    "lines": ("句數", "answers with as many lines as the true poem"),
    "clean": ("潔淨", "answers of Chinese characters and poem punctuation alone"),
    "echo": ("重句", "lines that repeat an earlier line; lower is better"),
    "novel": ("新句", "lines that stand in no training poem"),
    "distinct2": ("詞彙", "distinct character bigrams over all bigrams"),
    "chrf": ("相似", "character n-gram F-score against the true rest"),
}
HEADLINE = ("form", "rhyme", "tone")

RULES = {"alternation": "替", "opposition": "對", "adhesion": "黏", "level_rhyme": "韻"}

TONES = ("無考", "平", "仄", "平仄")  # by the tone bits of a character; 無考: not in the rhyme book

LONG = 200
"""Characters of a raw answer beyond which it is folded away."""

FAULTS = {
    "form": "失格 out of form",
    "rhyme": "失韻 without rhyme",
    "length": "句數異 other length",
    "echo": "重句 repeats a line",
    "copied": "襲句 copies a line",
}


@dataclass(frozen=True)
class ReportRow:
    """One test poem: its couplet, and how three answers to it were judged."""

    couplet: str
    base: Judged
    tuned: Judged
    reference: Judged


def render(rows: Sequence[ReportRow], metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The page for `rows`, in their order, and the groups base, tuned, reference of `metrics`.

    The same input gives the same text, and any text can be written as UTF-8.
    """
    page = PAGE.read_text(encoding="utf-8")
    return Template(page).substitute(
        policy=policy(page),
        count=len(rows),
        metrics="\n".join(metric_rows(metrics)),
        forms=options(
            (f, f, sum(form_of(r) == f for r in rows)) for f in [*FORMS.values(), "其他"]
        ),
        faults=options((k, v, sum(k in faults(r.tuned) for r in rows)) for k, v in FAULTS.items()),
        poems="\n".join(poem(number, row) for number, row in enumerate(rows, 1)),
    )


def policy(page: str) -> str:
    """A Content-Security-Policy under which only the page's own script and style run."""
    hashes = {}
    for element in ("script", "style"):
        (text,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = hashlib.sha256(text.encode()).digest()
        hashes[element] = f"'sha256-{base64.b64encode(digest).decode()}'"
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "base-uri 'none'; form-action 'none'"
    )


def visible(text: str) -> str:
    """`text` as HTML, what cannot be seen (controls, bidi overrides, lone surrogates) named.

    A newline is named and also breaks the line.
    """
    return "".join(escape(c) if c.isprintable() else name_of(c) for c in text)


def name_of(character: str) -> str:
    return "<b>↵</b>\n" if character == "\n" else f"<b>U+{ord(character):04X}</b>"


# The metrics


def metric_rows(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A table row a metric: the headline ones first, ones that METRICS does not know last."""
    values = [metrics[group] for group in GROUPS]
    measured = {key for group in values for key in group if not key.endswith("_ci95")}
    unknown = sorted(measured - METRICS.keys() - {"poems"})
    for key in [*(key for key in METRICS if key in measured), *unknown]:
        name, meaning = METRICS.get(key, ("", ""))
        intervals = [(group.get(key), group.get(f"{key}_ci95")) for group in values]
        cells = "".join(f"<td>{figure(mean)}{half_width(half)}</td>" for mean, half in intervals)
        headline = ' class="headline"' if key in HEADLINE else ""
        yield (
            f'<tr{headline}><th scope="row">{name} <span lang="en">{visible(key)}</span>'
            f'<small lang="en">{meaning}</small></th>{cells}'
            f'<td class="plot">{plot(intervals)}</td></tr>'
        )


def figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def half_width(value: float | None) -> str:
    return "" if value is None else f"<small>±{value:.3f}</small>"


def plot(intervals: list[tuple[float | None, float | None]]) -> str:
    """Means and intervals on a scale from 0 to 1, a group a line; nothing for other scales."""
    if not all(mean is not None and 0 <= mean <= 1 for mean, _ in intervals):
        return ""
    marks = []
    for line, (mean, half) in enumerate(intervals):
        x, y, half = 3 + 100 * mean, 4 + 8 * line, 100 * (half or 0)
        left, right = max(3, x - half), min(103, x + half)
        marks.append(
            f'<path d="M3 {y}H103"/><path class="interval" d="M{left:.1f} {y}H{right:.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{y}" r="2.6"/>'
        )
    return f'<svg viewBox="0 0 106 24" aria-hidden="true">{"".join(marks)}</svg>'


# The poems


def options(choices: Iterable[tuple[str, str, int]]) -> str:
    """The choices of a filter (value, label, how many poems), those that choose none left out."""
    return "".join(
        f'<option value="{value}">{label} ({count})</option>'
        for value, label, count in choices
        if count
    )


def form_of(row: ReportRow) -> str:
    """The form of the true poem."""
    analysis = row.reference.analysis
    return analysis.form if analysis and analysis.form else "其他"


def faults(judged: Judged) -> list[str]:
    """The keys of FAULTS that an answer has; one out of form does not rhyme, as in the metrics."""
    has = {
        "form": not judged.form,
        "rhyme": not judged.rhyme,
        "length": not judged.length,
        "echo": any(judged.echo),
        "copied": not all(judged.novel),
    }
    return [fault for fault in FAULTS if has[fault]]


def poem(number: int, row: ReportRow) -> str:
    """A test poem: couplet, base, tuned, true.

    The page sorts by its score: the tuned answer's form, rhyme and tone, added up.
    """
    score = row.tuned.form + row.tuned.rhyme + row.tuned.tone
    head = f'<h3><a href="#p{number}">{number}</a> {form_of(row)}</h3>'
    answers = "".join(
        f'<section class="answer"><h4>{name} <span lang="en">{english}</span></h4>'
        f"{set_answer(row.couplet, judged)}</section>"
        for (name, english), judged in zip(
            GROUPS.values(), (row.base, row.tuned, row.reference), strict=True
        )
    )
    return (
        f'<article id="p{number}" data-form="{form_of(row)}" data-score="{score:.4f}" '
        f'data-faults="{" ".join(faults(row.tuned))}">'
        f"<section>{head}{set_couplet(row)}</section>{answers}</article>"
    )


def set_couplet(row: ReportRow) -> str:
    """The couplet, with the marks it has as the head of the true poem."""
    lines = split_lines(row.couplet)
    if len(lines) == 2 and len(row.couplet) <= LONG:
        whole = [*lines, *split_lines(row.reference.answer)]
        return columns(verse(whole, row.reference.analysis)[:2], ("", ""))
    return raw(row.couplet)


def set_answer(couplet: str, judged: Judged) -> str:
    """An answer: verse if it is in form, else the raw text; below it, what was found."""
    if judged.form and len(judged.answer) <= LONG:
        seals = [
            "重" * echo + "襲" * (not novel)
            for echo, novel in zip(judged.echo, judged.novel, strict=True)
        ]
        whole = [*split_lines(couplet), *split_lines(judged.answer)]
        body = columns(verse(whole, judged.analysis)[2:], seals)
    else:
        body = raw(judged.answer)
    return f"{body}<p>{' · '.join(findings(judged))}</p>"


def findings(judged: Judged) -> Iterator[str]:
    """What was found of an answer, in a few words each."""
    if not judged.form:
        yield "失格"
        if not judged.clean:
            yield "雜字"
        if repeated := sum(judged.echo):
            yield f"重句 {repeated}"
        if copied := judged.novel.count(False):
            yield f"襲句 {copied}"
        return
    analysis = judged.analysis
    if analysis and analysis.form:
        yield analysis.form
        if not analysis.regulated:
            yield "古體"
    if not judged.length:
        yield "句數異"
    yield f"押{analysis.rhyme_group}" if judged.rhyme and analysis else "失韻"
    yield f"合律 {judged.tone:.2f}"


def raw(text: str) -> str:
    """Text as it came; a long one behind its first characters."""
    if not text:
        return '<pre class="raw"><i>空 empty</i></pre>'
    if len(text) <= LONG:
        return f'<pre class="raw">{visible(text)}</pre>'
    opening = visible(text[: LONG // 4])
    return (
        f'<details class="raw"><summary>{opening}… <i>{len(text):,} 字</i></summary>'
        f"<pre>{visible(text)}</pre></details>"
    )


def verse(lines: Sequence[tuple[str, str]], analysis: Analysis | None) -> list[str]:
    """The lines of a poem, each with the marks that follow it, as HTML.

    Marked are the characters that rhyme and those that break a rule.
    """
    bare = [line for line, _ in lines]
    html = [[visible(character) for character in line] for line in bare]
    if analysis:
        for (number, position), places in groupby(analysis.breaks, key=itemgetter(0, 1)):
            broken = list(places)
            rules = "".join(RULES[place.rule] for place in broken)
            notes = "；".join(note(place, bare, analysis.rhyme_group) for place in broken)
            character = html[number][position]
            html[number][position] = (
                f'<mark data-rules="{rules}" title="{notes}">{character}</mark>'
            )
        for number, position in analysis.rhyming:
            html[number][position] = f"<em>{html[number][position]}</em>"
    return [
        "".join(characters) + visible(marks)
        for characters, (_, marks) in zip(html, lines, strict=True)
    ]


def columns(lines: Iterable[str], seals: Iterable[str]) -> str:
    """Lines of HTML as the columns of a leaf, a seal ("" for none) at the foot of each."""
    flags = (f' data-seal="{seal}"' if seal else "" for seal in seals)
    spans = (f"<span{flag}>{line}</span>" for line, flag in zip(lines, flags, strict=True))
    return f'<p class="verse">{"".join(spans)}</p>'


def note(place: Break, lines: Sequence[str], group: str | None) -> str:
    """What rule is broken at a place, and by which characters."""
    number, position, rule = place
    here = toned(lines, number, position)
    if rule == "level_rhyme":
        wanted = f"押{group if group in LEVEL_GROUPS else '平聲'}韻" if number % 2 else "為仄聲"
        return f"失韻：{here}應{wanted}"
    if rule == "alternation":
        return f"失替：{here}應異於本句{toned(lines, number, position - 2)}"
    name, wanted = ("失對", "異於") if rule == "opposition" else ("失黏", "同於")
    return f"{name}：{here}應{wanted}上句{toned(lines, number - 1, position)}"


def toned(lines: Sequence[str], number: int, position: int) -> str:
    """A character of a poem with the tone it counts as."""
    bits = line_tones(lines[number], opens=number % 2 == 0)[position]
    return f"「{escape(lines[number][position])}」{TONES[bits]}"
