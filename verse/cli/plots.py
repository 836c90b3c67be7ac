"""Draw the plots of dvc.yaml as SVG and PNG, which open anywhere and need no network.

The charts are DVC's own, those of `dvc plots show`; with revisions, those of `dvc plots diff`:
experiments, branches or commits laid over each other.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verse.errors import UserError
from verse.files import replacing, write_text


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("revisions", nargs="*", help="to lay over each other")
    parser.add_argument("--to", default="plots", help="folder to write; %(default)s")


def main(options: argparse.Namespace) -> None:
    charts = dvc_charts(options.revisions)
    if not charts:
        raise UserError("there is nothing to plot here: run dvc repro first, or dvc pull")
    for name, chart in charts.items():
        draw(chart, Path(options.to) / name)
    files = [f"{name}.{kind}" for name in charts for kind in ("svg", "png")]
    print(f"{options.to}:", *files)


def dvc_charts(revisions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The Vega-Lite charts that DVC makes of the plots in dvc.yaml, by name."""
    command = ["diff", "--json", *revisions] if revisions else ["show", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "plots", *command], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"dvc plots: {done.stderr.strip().removeprefix('ERROR: ')}")
    plots = json.loads(done.stdout).get("data", {})
    return {name: charts[0]["content"] for name, charts in sorted(plots.items()) if charts}


def draw(chart: dict[str, Any], path: Path) -> None:
    """Write a Vega-Lite chart to `path`.svg and `path`.png. Fetches nothing."""
    import vl_convert

    chart = {"background": "white", **chart}
    write_text(path.with_suffix(".svg"), vl_convert.vegalite_to_svg(chart, allowed_base_urls=[]))
    with replacing(path.with_suffix(".png")) as partial:
        partial.write_bytes(vl_convert.vegalite_to_png(chart, scale=2, allowed_base_urls=[]))
