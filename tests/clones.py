"""Working copies of this repository in which the real pipeline runs at a reduced size."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

SMALL = {
    "data.source": "poems",
    "prepare.test_poems": 6,
    "prepare.validation_poems": 6,
    "prepare.max_train": 32,
    "train.batch_size": 8,
    "train.eval_every": 2,
    "machine.checkpoint_every": 1,
    "decoding.temperature": 1.0,
    "decoding.top_p": 0.3,
    "decoding.candidates": 1,
    "decoding.max_new_tokens": 12,
    "score.bootstrap": 100,
}
"""Four steps of training, six answers of twelve tokens, so free that another top_p changes some."""


@dataclass(frozen=True)
class Clone:
    """A git repository of its own, with a cache folder and an environment of its own."""

    path: Path
    env: dict[str, str]

    def start(self, *command: str, **options) -> subprocess.Popen:
        """A command in the clone; both streams come back as one."""
        return subprocess.Popen(
            [*map(str, command)],
            cwd=self.path,
            env=self.env | options.pop("env", {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def run(self, *command: str, status: int = 0, **options) -> str:
        """What a command prints. Raises AssertionError for another exit status."""
        process = self.start(*command, **options)
        output, _ = process.communicate()
        assert process.returncode == status, f"{command}: status {process.returncode}\n{output}"
        return output

    def dvc(self, *arguments: str, **options) -> str:
        return self.run("dvc", *arguments, **options)

    def verse(self, *arguments: str, **options) -> str:
        """The clone's own command, whatever is installed."""
        return self.run("python", "-m", "verse.cli.main", *arguments, **options)

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "a state")

    def set(self, **values) -> None:
        """Change values of params.yaml; the dots of a key are written __."""
        change(self.path / "params.yaml", {k.replace("__", "."): v for k, v in values.items()})

    def lock(self) -> str:
        return (self.path / "dvc.lock").read_text("utf-8")


def clone(to: Path, **env: str) -> Clone:
    """The working tree as a clone in the folder `to`, set to SMALL and committed.

    Its poems are the first of the embedded ones, in a local folder beside its own data.
    """
    path = to / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "tools/")):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)
    for name, count in (("train", 100), ("test", 4)):
        poems = json.loads((path / f"data/embedded/{name}.json").read_text("utf-8"))[:count]
        (path / "poems").mkdir(exist_ok=True)
        text = json.dumps(poems, ensure_ascii=False)
        (path / "poems" / f"{name}.json").write_text(text, "utf-8")
    change(path / "params.yaml", SMALL)
    (path / "data/source").symlink_to("../poems")
    (path / "data/model").symlink_to("../models/mini")
    (path / "dvc.lock").unlink(missing_ok=True)

    copy = Clone(path, environment(to, **env))
    copy.run("git", "init", "--quiet", "--initial-branch=main")
    sign(copy)
    # Ignored, so that DVC does not add what is behind.
    copy.run("git", "add", "--force", "data/source", "data/model")
    copy.commit()
    return copy


def clone_again(first: Clone, to: Path, **env: str) -> Clone:
    """A clone of what another clone has committed, without its DVC cache."""
    copy = Clone(to / "repository", environment(to, **env))
    first.run("git", "clone", "--quiet", first.path, copy.path)
    sign(copy)
    return copy


def sign(copy: Clone) -> None:
    """Give git a name, which DVC's experiments want and a fresh machine lacks."""
    copy.run("git", "config", "user.name", "Li Bai")
    copy.run("git", "config", "user.email", "li.bai@example.org")


def environment(to: Path, **env: str) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",
        "XDG_CACHE_HOME": str(to / "cache"),
        "DVC_SITE_CACHE_DIR": str(to / "site"),
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # on a busy machine, waiting threads take turns
        **env,
    }


def change(file: Path, values: dict) -> None:
    """Change values in a YAML file; keys are dotted."""
    content = yaml.safe_load(file.read_text("utf-8"))
    for key, value in values.items():
        *sections, name = key.split(".")
        section = content
        for one in sections:
            section = section[one]
        section[name] = value
    file.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")


def outputs(copy: Clone) -> dict[str, bytes]:
    """Every file that the stages have written, and its bytes; clock times left out."""
    places = ("data/raw", "data/prepared", "data/generated", "models/adapter", "metrics")
    files = (path for place in places for path in (copy.path / place).rglob("*"))
    found = {str(p.relative_to(copy.path)): p.read_bytes() for p in files if p.is_file()}
    return {name: content for name, content in found.items() if name != "metrics/speed.json"}


def stages_run(output: str) -> list[str]:
    """The stages that ran, from what DVC printed."""
    return re.findall(r"^Running stage '(\w+)':", output, re.MULTILINE)


def stages_skipped(output: str) -> list[str]:
    return re.findall(r"^Stage '(\w+)' didn't change, skipping$", output, re.MULTILINE)


def stages_cached(output: str) -> list[str]:
    """The stages whose outputs came from the run cache."""
    return re.findall(r"^Stage '(\w+)' is cached - skipping run", output, re.MULTILINE)
