"""What this machine made of a commit's code and parameters, found in DVC's run cache.

A commit's dvc.lock names the results of the machine that it was made on. Another kind of processor
adds up in another order: its results differ in their last bits, and so in their hashes.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from verse.files import parse_yaml


def own_run(lock: dict[str, Any], stage: str) -> dict[str, Path]:
    """The newest outputs of a stage in DVC's cache, by path, as a run here made them; {} if none.

    lock: what the commit's dvc.lock holds. A run counts if it ran the same command with the same
    parameters on what the lock has, or on what a run that counts made in its place.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        runs, cache = Path(repo.stage_cache.cache_dir), Path(repo.cache.local.path)
    files = sorted((f for f in runs.glob("*/*/*") if f.is_file()), key=lambda f: f.stat().st_mtime)
    made = same_run(lock["stages"], [parse_yaml(f.read_text("utf-8"), f) for f in files], stage)
    found = {path: cache / md5[:2] / md5[2:] for path, md5 in made.items()}
    return found if all(file.exists() for file in found.values()) else {}


def same_run(stages: dict[str, Any], runs: list[dict[str, Any]], stage: str) -> dict[str, str]:
    """The hashes of a stage's outputs by path, of the last of the runs that counts."""
    known: defaultdict[str, set[str]] = defaultdict(set)
    for one in stages.values():
        for file in one["deps"]:
            known[file["path"]].add(file["md5"])
    found: dict[str, str] = {}
    for _ in stages:  # a stage's inputs are known after as many rounds as stages lead to it
        for name, one in stages.items():
            for run in runs:
                alike = all(run.get(key) == one.get(key) for key in ("cmd", "params"))
                if alike and all(dep["md5"] in known[dep["path"]] for dep in run["deps"]):
                    outs = {out["path"]: out["md5"] for out in run["outs"]}
                    for path, md5 in outs.items():
                        known[path].add(md5)
                    found = outs if name == stage else found
    return found
