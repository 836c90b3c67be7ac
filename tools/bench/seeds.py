"""What another training seed does to the metrics.

    python -m tools.bench.seeds [seeds]

Trains and answers with each of so many seeds (five if not said) as params.yaml has it, on the
prepared poems as they stand, so that only the training differs: the order of the poems, the
adapter's first values and its dropout. Prints each metric's mean and standard deviation over the
seeds, beside the ± of one run. Wants what `dvc repro` leaves in data/prepared; works in a folder of
its own and takes as long as so many trainings.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from verse import params
from verse.model.surprise import surprises
from verse.poem import ANSWER, Poem, read_poems
from verse.scoring.cooccurrence import rivals
from verse.scoring.metrics import METRICS
from verse.scoring.scoring import learnt, score_answer, summarise, tabulate

ROOT = Path(__file__).parents[2]


def main(seeds: int) -> None:
    training, test = (read_poems(f"data/prepared/{name}.jsonl") for name in ("train", "test"))
    others = rivals(poem.couplet_lines for poem in training)
    runs = []
    for seed in range(1, seeds + 1):
        given = answers(seed)
        known = learnt(given, training)
        scored = [score_answer(*both, known) for both in zip(given, test, strict=True)]
        verses = [(one.poem.couplet_lines, one.verse) for one in scored]
        table = tabulate(scored, others, surprises(verses, params.read().machine))
        runs.append(summarise(scored, table, test, seed=1, resamples=1000))
        print(f"seed {seed}: whole {runs[-1]['whole']:.3f}", flush=True)
    print(f"{'':10}{'mean':>8}{'sd':>8}{'± of one':>10}")
    for name in (metric.name for metric in METRICS):
        values, half = [run[name] for run in runs], runs[0].get(f"{name}_ci95")
        told = "" if half is None else f"{half:.3f}"
        print(f"{name:10}{np.mean(values):8.3f}{np.std(values, ddof=1):8.3f}{told:>10}")


def answers(seed: int) -> list[Poem]:
    """What a model trained with a seed answers, decoded with the seed of params.yaml."""
    params = yaml.safe_load(Path("params.yaml").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("data/prepared", "models/mini"):
            shutil.copytree(name, Path(folder, name))
        for stage, values in (
            (["stages.train"], params | {"seed": seed}),
            (["stages.generate", "tuned"], params),
        ):
            Path(folder, "params.yaml").write_text(json.dumps(values), "utf-8")
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", *stage]
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        return read_poems(Path(folder, "data/generated/tuned.jsonl"), ANSWER)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or ["5"]))
