"""This product and what people would use instead, side by side in one run on the present device.

    python -m tools.bench.speed [-S key=value ...] [--to folder]

Everyone trains on the same poems with the same adapter's settings in the same precision, and
answers the same prompts with the same adapter (the product's) and the same decoding: each entry of
tools/bench/peers.py in a process of its own, so that its peak of memory is its own and one that
fails costs a row only. Writes table.md, chart.png (and .svg) and numbers.json. The parameters are
those of params.yaml but for SMALL, which suits a CPU; any can follow -S. docs/bench.md has the
command for a GPU.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import vl_convert
import yaml

from tools.bench.peers import ENTRIES, PROMPTS, TRAINING, Entry, any_kernel
from verse import params
from verse.errors import ParameterError, UserError, run
from verse.files import cache_dir, write_json, write_text
from verse.params import Params
from verse.poem import read_poems

ROOT = Path(__file__).parents[2]
SMALL = {
    "data.source": str(ROOT / "data/embedded"),
    "prepare.max_train": 64,
    "prepare.test_poems": 16,
    "prepare.validation_poems": 1,  # the product alone validates, twice, within its time
    "decoding.max_new_tokens": 64,
    "decoding.candidates": 1,  # what peers write
    "machine.processes": 1,
}
NOTES = """\
Of the limit: the least time that the device could take over the time taken. Training:
4 (linear weights × own tokens + output weights × answers' tokens) / operations a second, that is 4
operations a weight and token that cannot be shared (LoRA: the frozen weights forward, and backward
to their inputs); own tokens come after the prefix of all prompts. Generation: the greater of
longest answer's tokens × bytes of the weights / bytes a second (the weights are read once a step)
and 2 (linear weights × own tokens + output weights × answers' tokens) / operations a second.
Attention and adapters count nothing.
"""
CPU_NOTES = """\

On a CPU no weights stay in 4 bits: bitsandbytes' layers train wrong there after an evaluation. All
entries have them rounded to NF4 and expanded to plain numbers.
"""
MEASURES = {"poems_per_second": "poems a second", "peak_gib": "peak memory, GiB"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.speed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-S", dest="settings", action="append", default=[], metavar="key=value")
    parser.add_argument("--to", type=Path, default=Path("speed"), help="folder; %(default)s")
    parser.add_argument("--process", help=argparse.SUPPRESS)  # do one entry here
    options = parser.parse_args()
    if options.process:
        return measure(options.process)
    p = chosen(options.settings)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        prepare(p, folder)
        device = in_process("device", folder)
        if "failed" in device:
            raise UserError(device["failed"])
        results = []
        for entry in ENTRIES:
            numbers = compete(entry, device, folder)
            print(*cells(entry, numbers), sep=" | ", flush=True)
            results.append(vars(entry) | {"work": entry.work.__name__} | numbers)
    facts = {"device": device, "load_before": load, "params": p.model_dump()}
    options.to.mkdir(parents=True, exist_ok=True)
    write_json(options.to / "numbers.json", facts | {"results": results})
    write_text(options.to / "table.md", table(facts, results))
    drawing = chart(results)
    write_text(options.to / "chart.svg", vl_convert.vegalite_to_svg(drawing, allowed_base_urls=[]))
    png = vl_convert.vegalite_to_png(drawing, scale=2, allowed_base_urls=[])
    (options.to / "chart.png").write_bytes(png)
    print(f"{options.to}: table.md chart.png chart.svg numbers.json")


def chosen(settings: list[str]) -> Params:
    """params.yaml, but for SMALL and then for settings such as "train.lora.r=4"."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    changes: dict[str, Any] = dict(SMALL)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ParameterError(f"-S {setting}: write key=value, such as train.lora.r=4")
        changes[key] = yaml.safe_load(value)
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    for section, key in (values["data"], "source"), (values["model"], "name"):
        if Path(section[key]).exists():  # the work is done in another folder
            section[key] = str(Path(section[key]).resolve())
    return params.parse(values, "params.yaml with -S")


def prepare(p: Params, folder: str) -> None:
    """params.yaml and data/prepared in a folder, by the pipeline's own stages."""
    write_json(Path(folder, "params.yaml"), p.model_dump())
    for stage in ("stages.fetch", "stages.prepare"):
        if failed := start([stage], folder):
            raise UserError(failed)


def compete(entry: Entry, device: dict[str, Any], folder: str) -> dict[str, Any]:
    """An entry's numbers, or why it "failed"."""
    if entry.package and not find_spec(entry.package):
        return {"failed": f"not installed: pip install {entry.package}"}
    numbers = in_process(str(ENTRIES.index(entry)), folder)
    if "failed" not in numbers:
        numbers["poems_per_second"] = numbers["poems"] / numbers["seconds"]
        numbers["of_limit"] = least_seconds(numbers, device) / numbers["seconds"]
    return numbers


def in_process(name: str, folder: str) -> dict[str, Any]:
    """What `measure` finds in a process of its own, or why it "failed"."""
    file = Path(folder, "numbers.json")
    file.unlink(missing_ok=True)
    failed = start(["tools.bench.speed", "--process", name], folder)
    return {"failed": failed} if failed else json.loads(file.read_text("utf-8"))


def start(module: list[str], folder: str) -> str:
    """Run a module in a folder; why it failed, in a line, or nothing."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XDG_CACHE_HOME": str(Path(folder, "cache")),  # where no earlier run left a checkpoint
        "HF_HOME": os.environ.get("HF_HOME", str(cache_dir().parent / "huggingface")),
    }
    command = [sys.executable, "-m", *module]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    said = done.stderr.strip().splitlines() or ["failed without a word"]
    return said[-1][:200] if done.returncode else ""


def measure(name: str) -> None:
    """One entry, or the device, in this process and folder."""
    p = params.read()
    numbers = survey(p) if name == "device" else ENTRIES[int(name)].work(p)
    import torch

    if torch.cuda.is_initialized():
        numbers["peak_gib"] = torch.cuda.max_memory_reserved() / 2**30
    else:
        unit = 1 if sys.platform == "darwin" else 2**10
        numbers["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    write_json("numbers.json", numbers)


def survey(p: Params) -> dict[str, Any]:
    """The device's peaks, the model's sizes, and how many tokens there are to compute."""
    import torch

    from verse.model.encoding import common_prefix
    from verse.model.layers import linear_layers
    from verse.model.loading import load_skeleton
    from verse.model.opening import open_model

    opening = open_model(p.model, p.machine, seed=p.seed)
    any_kernel()
    device, dtype, gpu = opening.device, opening.dtype, opening.device.type == "cuda"
    model = load_skeleton(p.model, p.machine.cache_dir)
    linear = sum(layer.weight.numel() for layer in linear_layers(model).values())
    output = model.get_output_embeddings().weight.numel()
    examples = opening.encode(read_poems(TRAINING))
    prompts = opening.encode_prompts(read_poems(PROMPTS))
    prefix = len(common_prefix([e.prompt for e in examples]))

    size = 8192 if gpu else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    # Read and written together as many bytes as the weights: caches hold either as well.
    source = torch.zeros((linear + output) // 2, dtype=dtype, device=device)
    target = torch.empty_like(source)
    return {
        "name": torch.cuda.get_device_name(device) if gpu else processor(),
        "type": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "operations_per_second": 2 * size**3 / fastest(lambda: left @ right, gpu),
        "bytes_per_second": 2 * source.nbytes / fastest(lambda: target.copy_(source), gpu),
        "linear_weights": linear,
        "output_weights": output,
        "weight_bytes": (linear + output) * dtype.itemsize,
        # What predicts nothing, the end token, need not be computed.
        "own_tokens": sum(e.length - 1 - prefix for e in examples) * p.train.epochs,
        "answer_tokens": sum(len(e.completion) for e in examples) * p.train.epochs,
        "prompt_tokens": sum(map(len, prompts)) - len(prompts) * len(common_prefix(prompts)),
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"


def fastest(work: Callable[[], Any], gpu: bool) -> float:
    """Seconds of the fastest of some calls."""
    import torch

    seconds: list[float] = []
    while len(seconds) < 10 or sum(seconds) < 0.5:
        start = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def least_seconds(numbers: dict[str, Any], device: dict[str, Any]) -> float:
    """What the device could at best take for what an entry did; NOTES has the formula."""
    linear, output = device["linear_weights"], device["output_weights"]
    rate = device["operations_per_second"]
    if "tokens" not in numbers:
        return 4 * (linear * device["own_tokens"] + output * device["answer_tokens"]) / rate
    written = sum(numbers["tokens"])
    own = device["prompt_tokens"] + written - numbers["poems"]
    reading = max(numbers["tokens"]) * device["weight_bytes"] / device["bytes_per_second"]
    return max(reading, 2 * (linear * own + output * written) / rate)


def cells(entry: Entry, numbers: dict[str, Any]) -> list[str]:
    """A row of the table."""
    told = [entry.job, f"{entry.contender}: {entry.way}"]
    if "failed" in numbers:
        return [*told, numbers["failed"].replace("|", "/"), "", "", ""]
    tokens = numbers.get("tokens")
    return [
        *told,
        f"{numbers['poems_per_second']:.3g}",
        f"{numbers['peak_gib']:.2f}",
        f"{numbers['of_limit']:.1%}",
        f"{sum(tokens) / len(tokens):.0f}" if tokens else "",
    ]


def table(facts: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """All in Markdown, with what it was measured on."""
    device, p = facts["device"], facts["params"]
    cpu = device["type"] == "cpu"
    head = f" | contender | poems/s | peak GiB {'resident' if cpu else 'reserved'} | of the limit"
    weights = (device["linear_weights"] + device["output_weights"]) / 1e6
    lines = [
        f"{device['name']}; {p['machine']['threads']} threads, {device['dtype']}, load "
        f"{facts['load_before']:.1f} before the run; in the same run "
        f"{device['operations_per_second'] / 1e12:.3g}e12 operations/s (matrix product) and "
        f"{device['bytes_per_second'] / 1e9:.3g}e9 bytes/s (copy). "
        f"{Path(p['model']['name']).name}, {weights:,.1f} million weights; at most "
        f"{p['prepare']['max_train']} poems to train on, {p['prepare']['test_poems']} prompts, "
        f"{p['decoding']['max_new_tokens']} tokens an answer.",
        "",
        f"|{head} | tokens an answer |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells(e, r))} |" for e, r in zip(ENTRIES, results, strict=True)),
        "",
        NOTES,
    ]
    return "\n".join(lines) + (CPU_NOTES if cpu else "")


def chart(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Bars of poems a second and of memory, in Vega-Lite."""

    def panel(job: str, measure: str) -> dict[str, Any]:
        keys = ("contender", measure)
        bars = [r for r in results if r["job"] == job and measure in r]
        label = {"type": "text", "align": "left", "dx": 3}
        return {
            "title": job,
            "width": 260,
            "data": {"values": [{key: bar[key] for key in keys} for bar in bars]},
            "encoding": {
                "y": {"field": "contender", "type": "nominal", "sort": None, "title": None},
                "x": {"field": measure, "type": "quantitative", "title": MEASURES[measure]},
            },
            "layer": [
                {"mark": "bar"},
                {"mark": label, "encoding": {"text": {"field": measure, "format": ".3~g"}}},
            ],
        }

    rows = [{"hconcat": [panel(job, m) for m in MEASURES]} for job in ("train", "generate")]
    schema = "https://vega.github.io/schema/vega-lite/v5.json"
    return {"$schema": schema, "background": "white", "vconcat": rows}


if __name__ == "__main__":
    run(main, "tools.bench.speed")
