"""CPU seconds and memory of each stage that reads poems, by how many there are.

    python -m tools.bench.scale [poems …]

Without arguments 5,000, 50,000 and 500,000 poems. Made-up poems in the homework's format go through
fetch, prepare, judge and score as they are, each a process of its own, and through what train does
with them before it opens the model. A tenth of them are test poems, up to 50,000. Their answers are
made of true poems: base has the rest of another, tuned the true rest with every twelfth character
changed.

Prints a table of CPU seconds, which a busy machine changes little, and of the highest resident
memory in MiB, and what 100,000 poems more take, by the two largest numbers. Works in a folder that
goes when it ends.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from verse.files import write_json, write_jsonl
from verse.poem import read_poems
from verse.poems.prosody import BOOK
from verse.poems.sources import INSTRUCTION

ROOT = Path(__file__).parents[2]
SIZES = (5_000, 50_000, 500_000)
MOST_TESTED = 50_000


def called(function: str) -> list[str]:
    """What Python is to be started with to call a function of this module."""
    return ["-c", f"from tools.bench import scale; scale.{function}"]


STAGES = {
    "fetch": ["-m", "stages.fetch"],
    "prepare": ["-m", "stages.prepare"],
    "train's data": called("read_for_training()"),
    "judge": ["-m", "stages.judge"],
    "score": ["-m", "stages.score"],
}


def main(sizes: list[int]) -> None:
    measured = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            measured.append(measure(size, Path(folder)))
        print(*table(sizes[: len(measured)], measured), sep="\n", flush=True)


def measure(size: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Of each stage the CPU seconds and MiB, for so many poems."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    params["data"]["source"] = "poems.json"
    params["prepare"]["test_poems"] = min(size // 10, MOST_TESTED)
    params["model"]["name"] = str(ROOT / "models/mini")
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    run(called(f"write_poems({size})"), folder)
    found = {}
    for stage, arguments in STAGES.items():
        if stage == "judge":
            run(called("write_answers()"), folder)
        found[stage] = run(arguments, folder)
        seconds, mib = found[stage]
        print(f"{size:,} poems, {stage}: {seconds:.1f} s, {mib:,.0f} MiB", flush=True)
    return found


def run(arguments: list[str], folder: Path) -> tuple[float, float]:
    """CPU seconds and highest resident MiB of a Python process in a folder.

    Linux counts what the parent held when it started the process: it has to stay small.
    """
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=log,
        stderr=log,
    )
    _, status, usage = os.wait4(process.pid, 0)
    os.close(log)
    if status:
        sys.exit((folder / "log").read_text("utf-8"))
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def write_poems(count: int) -> None:
    """Records of random characters in the shapes of Tang poems, as poems.json."""
    draw = random.Random(42)
    characters = "".join(sorted(set("".join(BOOK.values()))))
    poems = []
    for _ in range(count):
        length, lines = draw.choice((5, 7)), draw.choice((4, 8))
        text = "".join(
            "".join(draw.choices(characters, k=length)) + "，。"[place % 2]
            for place in range(lines)
        )
        cut = 2 * (length + 1)
        poems.append({"instruction": INSTRUCTION, "input": text[:cut], "output": text[cut:]})
    write_json("poems.json", poems)


def write_answers() -> None:
    """The answers of base and tuned, and that no chat model was asked."""
    poems = read_poems("data/prepared/test.jsonl")
    truths = [poem.rest for poem in poems]
    answers = {
        "base": [*truths[1:], truths[0]],
        "tuned": ["".join("山" if n % 12 == 1 else c for n, c in enumerate(t)) for t in truths],
    }
    for name, texts in answers.items():
        rows = [{"input": a.couplet, "answer": b} for a, b in zip(poems, texts, strict=True)]
        write_jsonl(f"data/generated/{name}.jsonl", rows)
    write_json("data/answers/contestants.json", [])
    write_json("metrics/train.json", {"after": {"loss": 0.0}})


def read_for_training() -> None:
    """What stages/train.py does with the poems before it opens the model."""
    from verse import params, paths
    from verse.model.opening import open_model
    from verse.training import loop, packing

    p = params.read()
    poems, held_out = (read_poems(path) for path in (paths.TRAIN, paths.VALIDATION))
    opening = open_model(p.model, p.machine, seed=p.seed)
    examples, validation = opening.encode(poems), opening.encode(held_out)
    task = loop.Task(examples, validation, p.train, p.seed)
    packing.tokens_of_a_pass(examples)
    assert len(list(task.batches())) == task.steps


def table(sizes: list[int], measured: list[dict[str, tuple[float, float]]]) -> Iterator[str]:
    """The figures as Markdown."""
    more = len(sizes) > 1
    heads = [f"{size:,} poems" for size in sizes] + ["100,000 more"] * more
    yield f"| | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(heads)}"
    for stage in STAGES:
        of_stage = [one[stage] for one in measured]
        if more:
            hundred_thousands = (sizes[-1] - sizes[-2]) / 100_000
            before, after = of_stage[-2:]
            of_stage.append(
                tuple((b - a) / hundred_thousands for a, b in zip(before, after, strict=True))
            )
        cells = [f"{seconds:.1f} s, {mib:,.0f} MiB" for seconds, mib in of_stage]
        yield f"| {stage} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or list(SIZES))
