"""The score report: one HTML page that shows the metrics and every poem that they count.

The page is static: it reads without JavaScript, which only sorts and filters what stands there.
It fetches nothing, and its Content-Security-Policy lets no script or style run but its own. A
model may answer anything: the template escapes all text, and `visible` names each character that
cannot be seen.

Poems are set as in an old printed book, in columns from right to left; the marks beside the
characters follow the reader's red ink (朱批).
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from verse.poems.contestants import CONTESTANTS, WATCHED, Contestant
from verse.poems.lines import FORMS
from verse.poems.prosody import LEVEL_GROUPS, Break, counted_tones
from verse.scoring.metrics import EXTRA, METRICS
from verse.scoring.scoring import ScoredAnswer
from verse.scoring.terminal import UNSEEN

TEMPLATE = Path(__file__).with_name("report.html.jinja")

RULES = {
    "alternation": "替",
    "opposition": "對",
    "adhesion": "黏",
    "level_rhyme": "韻",
    "level_tail": "尾",
    "lone_level": "孤",
}

TONES = ("無考", "平", "仄", "平仄")  # by the tone bits of a character; 無考: not in the rhyme book

OTHER = "其他"  # a form that is none of FORMS

LONG = 200
"""Characters of a raw answer beyond which it is folded away."""

FAULTS = {
    "form": "失格 out of form",
    "rhyme": "失韻 without rhyme",
    "lines": "句數異 other length",
    "echo": "重句 repeats a line",
    "copied": "襲句 copies a line",
}

NAMED = {metric.name: f"{metric.label} {metric.name.replace('_', ' ')}" for metric in EXTRA}

Row = Mapping[str, ScoredAnswer]
"""One test poem: how each contestant's answer was scored, the true poem's last."""


def render(
    rows: Sequence[Row],
    metrics: Mapping[str, Mapping[str, Any]],
    contestants: Mapping[str, Contestant] = CONTESTANTS,
    tested: int | None = None,
    unanswered: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> str:
    """The page for `rows`, in their order, and the metrics of each contestant.

    tested: how many test poems the metrics are of, where the rows are the first of them; the page
    says so. unanswered: how many questions a contestant did not answer, by their kinds.

    The same input gives the same text, and any text can be written as UTF-8.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    return environment.get_template(TEMPLATE.name).render(
        policy=policy(),
        contestants={name: contestants[name] for name in metrics},
        metrics=list(metric_rows(metrics)),
        forms=choices((f, f, [form_of(r) == f for r in rows]) for f in (*FORMS.values(), OTHER)),
        faults=choices((f, v, [f in faults(r[WATCHED]) for r in rows]) for f, v in FAULTS.items()),
        poems=(poem(row) for row in rows),
        shown=len(rows),
        tested=tested or len(rows),
        long=LONG,
        unanswered={
            contestants[name].english: "、".join(
                f"{count} {NAMED[kind]}" for kind, count in kinds.items()
            )
            for name, kinds in unanswered.items()
            if kinds
        },
    )


def policy() -> str:
    """A Content-Security-Policy under which only the page's own script and style run."""
    page, hashes = TEMPLATE.read_text(encoding="utf-8"), {}
    for element in ("script", "style"):
        (text,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = hashlib.sha256(text.encode()).digest()
        hashes[element] = f"'sha256-{base64.b64encode(digest).decode()}'"
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "base-uri 'none'; form-action 'none'"
    )


def visible(text: str) -> Markup:
    """`text` as HTML, what cannot be seen (controls, bidi overrides, selectors) named.

    A newline is named and also breaks the line.
    """
    return Markup("").join(
        escape(c) if c.isprintable() and not UNSEEN.match(c) else name_of(c) for c in text
    )


def name_of(character: str) -> Markup:
    named = "↵</b>\n" if character == "\n" else f"U+{ord(character):04X}</b>"
    return Markup("<b>" + named)


def metric_rows(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A table row a metric: the headline ones first, ones that METRICS does not know last."""
    measured = {key for values in metrics.values() for key in values if key[-5:] != "_ci95"}
    known = sorted((*METRICS, *EXTRA), key=lambda metric: not metric.headline)
    rows = [(m.name, m.label, m.meaning, m.headline) for m in known if m.name in measured]
    unknown = sorted(measured - {metric.name for metric in known} - {"poems"})
    for name, label, meaning, headline in [*rows, *((key, "", "", False) for key in unknown)]:
        values = [(group.get(name), group.get(f"{name}_ci95")) for group in metrics.values()]
        on_scale = all(mean is not None and 0 <= mean <= 1 for mean, _ in values)
        yield {
            "name": name,
            "label": label,
            "meaning": meaning,
            "headline": headline,
            "values": [(figure(mean), half) for mean, half in values],
            "intervals": [interval(mean, half or 0) for mean, half in values] if on_scale else [],
        }


def figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def interval(mean: Any, half: float) -> dict[str, str]:
    """Where a mean and its interval lie on a scale from 3 to 103."""
    x = 3 + 100 * mean
    ends = (max(3, x - 100 * half), x, min(103, x + 100 * half))
    return dict(zip(("left", "x", "right"), (f"{end:.1f}" for end in ends), strict=True))


def choices(options: Iterable[tuple[str, str, list[bool]]]) -> list[tuple[str, str, int]]:
    """A filter's choices (value, label, which poems) with their counts, if they choose any."""
    return [(value, label, sum(chosen)) for value, label, chosen in options if any(chosen)]


def form_of(row: Row) -> str:
    """The form of the true poem."""
    analysis = row["reference"].analysis
    form = (analysis and analysis.form) or OTHER
    return form if form in FORMS.values() else OTHER


def faults(scored: ScoredAnswer) -> list[str]:
    """The keys of FAULTS that an answer has; one out of form does not rhyme, as in the metrics."""
    has = {
        "form": not scored.form,
        "rhyme": not scored.rhyme,
        "lines": not scored.lines,
        "echo": any(scored.echo),
        "copied": not all(scored.novel),
    }
    return [fault for fault in FAULTS if has[fault]]


def poem(row: Row) -> dict[str, Any]:
    """A test poem; the page sorts by its score, form, rhyme and tone of the watched answer."""
    watched, true = row[WATCHED], row["reference"]
    short = len(true.poem.couplet_lines) == 2 and len(true.poem.couplet) <= LONG
    return {
        "form": form_of(row),
        "score": f"{watched.form + watched.rhyme + watched.tone:.4f}",
        "faults": " ".join(faults(watched)),
        "couplet": true.poem.couplet,
        "lines": set_lines(true)[:2] if short else None,
        "answers": {name: answer(scored) for name, scored in row.items()},
    }


def answer(scored: ScoredAnswer) -> dict[str, Any]:
    """An answer: set in lines if it is in form, else the raw text; and what was found."""
    lines = None
    if scored.form and len(scored.poem.rest) <= LONG:
        lines = set_lines(scored)[2:]
        for line, echo, novel in zip(lines, scored.echo, scored.novel, strict=True):
            line["seal"] = "重" * echo + "襲" * (not novel)
    return {
        "text": scored.poem.rest,
        "lines": lines,
        "raw": None if scored.poem.raw == scored.poem.rest else scored.poem.raw,
        "findings": " · ".join(findings(scored)),
    }


def findings(scored: ScoredAnswer) -> Iterator[str]:
    """What was found of an answer, in a few words each."""
    if scored.poem.unanswered:
        yield NAMED[scored.poem.unanswered]
    if not scored.form:
        yield "失格"
        if not scored.clean:
            yield "雜字"
        if repeated := sum(scored.echo):
            yield f"重句 {repeated}"
        if copied := scored.novel.count(False):
            yield f"襲句 {copied}"
        return
    analysis = scored.analysis
    if analysis and analysis.form:
        yield analysis.form
        if not analysis.regulated:
            yield "古體"
    if not scored.lines:
        yield "句數異"
    if scored.rhyme and analysis:
        yield f"押{analysis.rhyme_group}"
    elif analysis and analysis.rhyme:
        yield f"重韻 押{analysis.rhyme_group}"
    else:
        yield "鄰韻" if analysis and analysis.near_rhyme else "失韻"
    yield f"合律 {scored.tone:.2f}"


def set_lines(scored: ScoredAnswer) -> list[dict[str, Any]]:
    """The lines of a poem, in characters, with the rules that each breaks and whether it rhymes."""
    bare, analysis = scored.poem.lines, scored.analysis
    unmarked = {"rules": "", "note": "", "rhymes": False}
    characters = [[{"text": character, **unmarked} for character in line] for line in bare]
    if analysis:
        for (number, position), places in groupby(analysis.breaks, key=itemgetter(0, 1)):
            broken = list(places)
            characters[number][position] |= {
                "rules": "".join(RULES[place.rule] for place in broken),
                "note": "；".join(note(place, bare, analysis.rhyme_group) for place in broken),
            }
        for number, position in analysis.rhyming:
            characters[number][position]["rhymes"] = True
    return [
        {"characters": line, "marks": marks, "seal": ""}
        for line, (_, marks) in zip(characters, scored.poem.marked_lines, strict=True)
    ]


def note(place: Break, lines: Sequence[str], group: str | None) -> str:
    """What rule is broken at a place, and by which characters."""
    number, position, rule = place
    here = toned(lines, number, position)
    if rule == "level_rhyme":
        wanted = f"押{group if group in LEVEL_GROUPS else '平聲'}韻" if number % 2 else "為仄聲"
        return f"失韻：{here}應{wanted}"
    if rule == "level_tail":
        return "三平尾：句末三字皆平"
    if rule == "lone_level":
        return "孤平：除韻腳外，五字中惟一平聲"
    if rule == "alternation":
        return f"失替：{here}應異於本句{toned(lines, number, position - 2)}"
    name, wanted = ("失對", "異於") if rule == "opposition" else ("失黏", "同於")
    return f"{name}：{here}應{wanted}上句{toned(lines, number - 1, position)}"


def toned(lines: Sequence[str], number: int, position: int) -> str:
    """A character of a poem with the tone it counts as."""
    bits = counted_tones(lines)[0][number][position]
    return f"「{lines[number][position]}」{TONES[bits]}"
