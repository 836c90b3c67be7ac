"""The picture of experiments: quality against diversity, as a Vega-Lite chart."""

from collections.abc import Sequence
from typing import Any

TRUE = "#b03a2e"


def chart(
    points: list[dict[str, Any]],
    truth: dict[str, Any],
    x: str,
    qualities: Sequence[str],
    subtitle: str,
    legend: str | None,
) -> dict[str, Any]:
    """A panel for each quality against `x`, a point an experiment.

    points: for `x` and each quality the value under its name, its interval under `<name>_low` and
    `<name>_high`; `label`; `line`, of which each value has a colour, told under the heading
    `legend`; `order`, a number by which the points of a line are joined, or None; `baseline`,
    whether it gets a ring. truth: the same figures of the true poems, and their `label`.
    """
    colour = {
        "field": "line",
        "type": "nominal",
        "title": legend,
        "legend": {"orient": "bottom"} if legend else None,
        "scale": {"scheme": "tableau10"},
    }
    joined = all(isinstance(point["order"], int | float) for point in points)
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "title": {"text": f"{' and '.join(qualities)} against {x}", "subtitle": subtitle},
        "hconcat": [panel(points, truth, x, y, colour, joined) for y in qualities],
    }


def panel(
    points: list[dict[str, Any]],
    truth: dict[str, Any],
    x: str,
    y: str,
    colour: dict[str, Any],
    joined: bool,
) -> dict[str, Any]:
    """One chart: quality upward, diversity to the right."""

    def axis(name: str, end: str = "") -> dict[str, Any]:
        scale = {"zero": False, "padding": 14}
        return {"field": name + end, "type": "quantitative", "title": name, "scale": scale}

    place, label = {"x": axis(x), "y": axis(y)}, {"text": {"field": "label"}}
    coloured = place | {"color": colour}
    upright = coloured | {"y": axis(y, "_low"), "y2": {"field": f"{y}_high"}}
    across = coloured | {"x": axis(x, "_low"), "x2": {"field": f"{x}_high"}}
    baseline = {"transform": [{"filter": "datum.baseline"}]}
    true = {"data": {"values": [truth]}}
    layers = [
        layer("rule", upright, opacity=0.35),
        layer("rule", across, opacity=0.35),
        layer("point", coloured, filled=True, size=60),
        baseline | layer("point", place, size=180, color="black"),
        layer("text", place | label, align="left", dx=7, dy=-5),
        true | layer("point", place, shape="diamond", size=80, color=TRUE),
        true | layer("text", place | label, align="right", dx=-8, color=TRUE),
    ]
    if joined:
        order = {"order": {"field": "order", "type": "quantitative"}}
        layers.insert(0, layer("line", coloured | order, opacity=0.6))
    return {"width": 420, "height": 380, "data": {"values": points}, "layer": layers}


def layer(kind: str, encoding: dict[str, Any], **looks: Any) -> dict[str, Any]:
    return {"mark": {"type": kind, **looks}, "encoding": encoding}
