"""Metrics and poems for a terminal: aligned in cells, with no character that could steer it."""

import re
import unicodedata

from verse.poem import split_lines
from verse.scoring.metrics import EXTRA, METRICS


def metrics_table(metrics: dict[str, dict[str, int | float]]) -> str:
    """The metrics for a terminal: a row a metric, a column a contestant, ± as ci95."""
    measured = [m for m in (*METRICS, *EXTRA) if any(m.name in one for one in metrics.values())]
    first = max(10, *(len(metric.name) + 1 for metric in measured))
    rows = [["", *metrics], ["poems", *(f"{one['poems']}" for one in metrics.values())]]
    for metric in measured:
        row = [metric.name]
        for one in metrics.values():
            half = one.get(f"{metric.name}_ci95")
            told = f"{one[metric.name]:.3f}" if metric.name in one else "-"
            row.append(told + ("" if half is None else f"±{half:.3f}".replace("0.", ".", 1)[:5]))
        rows.append(row)
    wide = max(11, *(len(cell) + 1 for row in rows for cell in row[1:]))
    return "\n".join(
        (name.ljust(first) + "".join(cell.ljust(wide) for cell in cells)).rstrip()
        for name, *cells in rows
    )


def gains_table(gains: dict[str, dict[str, float]], baseline: str) -> str:
    """What contestants gain over the baseline, in a line each."""
    rows = []
    for name, values in gains.items():
        told = [
            f"{metric} {value:+.3f} ±{values[f'{metric}_ci95']:.3f}"
            for metric, value in values.items()
            if f"{metric}_ci95" in values
        ]
        rows.append(f"{name} over {baseline}, poem by poem:")
        rows += ["  " + "   ".join(told[start : start + 3]) for start in range(0, len(told), 3)]
    return "\n".join(rows)


def side_by_side(texts: dict[str, str], width: int = 18, height: int = 8) -> str:
    """Texts for a terminal, set in lines, each in a column under its heading.

    width: of a column, in terminal cells; a Chinese character takes two. height: most lines
    shown of a text. What is longer or wider ends on `…`. Holds no control character.
    """
    columns = []
    for heading, text in texts.items():
        lines = [line + marks.strip() for line, marks in split_lines(text)]
        cut = [*lines[:height], "…"] if len(lines) > height else lines
        columns.append([heading, *(map(shown, cut) if cut else ["(empty)"])])
    rows = []
    for number in range(max(map(len, columns))):
        cells = [column[number] if number < len(column) else "" for column in columns]
        rows.append("".join(padded(cell, width) for cell in cells).rstrip())
    return "\n".join(rows)


UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2028\u2029\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
"""Ends of lines, and what is called printable but has no picture: fillers, blanks and selectors."""


def shown(text: str) -> str:
    """The text with each control, format, combining or unassigned character made visible.

    An escape sequence loses its effect: ESC becomes ␛, what has no picture becomes �.
    """
    found = []
    for character in text:
        code = ord(character)
        if code < 0x20:
            character = chr(0x2400 + code)
        elif unicodedata.category(character)[0] in "CM" or UNSEEN.match(character):
            character = "\ufffd"
        found.append(character)
    return "".join(found)


def width_of(text: str) -> int:
    """How many terminal cells a printable text takes."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, width: int) -> str:
    """The text in exactly `width` cells, the last of them blank."""
    if width_of(text) >= width:
        text = text[:width]
        while width_of(text) > width - 2:
            text = text[:-1]
        text += "…"
    return text + " " * (width - width_of(text))
