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

    def axis(name: str) -> dict[str, Any]:
        scale = {"zero": False, "padding": 14}
        return {"field": name, "type": "quantitative", "title": name, "scale": scale}

    place = {"x": axis(x), "y": axis(y)}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rule", "opacity": 0.35},
            "encoding": {
                "x": place["x"],
                "y": axis(y) | {"field": f"{y}_low"},
                "y2": {"field": f"{y}_high"},
                "color": colour,
            },
        },
        {
            "mark": {"type": "rule", "opacity": 0.35},
            "encoding": {
                "x": axis(x) | {"field": f"{x}_low"},
                "x2": {"field": f"{x}_high"},
                "y": place["y"],
                "color": colour,
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 60},
            "encoding": {**place, "color": colour},
        },
        {
            "transform": [{"filter": "datum.baseline"}],
            "mark": {"type": "point", "size": 180, "color": "black"},
            "encoding": place,
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 7, "dy": -5},
            "encoding": {**place, "text": {"field": "label"}},
        },
        {
            "data": {"values": [truth]},
            "mark": {"type": "point", "shape": "diamond", "size": 80, "color": TRUE},
            "encoding": place,
        },
        {
            "data": {"values": [truth]},
            "mark": {"type": "text", "align": "right", "dx": -8, "color": TRUE},
            "encoding": {**place, "text": {"field": "label"}},
        },
    ]
    if joined:
        order = {"field": "order", "type": "quantitative"}
        line = {"mark": {"type": "line", "opacity": 0.6}}
        layers.insert(0, line | {"encoding": {**place, "color": colour, "order": order}})
    return {"width": 420, "height": 380, "data": {"values": points}, "layer": layers}
