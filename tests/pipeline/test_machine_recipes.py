"""recipes/machines: what the files for SLURM and SkyPilot start, without either."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

ROOT = Path(__file__).parents[2]
MACHINES = ROOT / "recipes/machines"


@pytest.fixture
def started(tmp_path):
    """A function that runs a script where `verse` only notes its words, and returns them."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}:$PATH\n")
    (tmp_path / "verse").write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > {tmp_path}/words\n')
    (tmp_path / "verse").chmod(0o755)

    def start(*command, **env):
        subprocess.run(command, cwd=tmp_path, env=os.environ | env, check=True)
        return (tmp_path / "words").read_text("utf-8").split("\0")[:-1]

    return start


def test_under_slurm_a_stage_is_started_on_all_nodes(started, tmp_path):
    job = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "16"}
    words = started("bash", MACHINES / "slurm.sbatch", "breeze", "-S", "seed=7", **job)
    assert words[:4] == ["run", "breeze", "-S", "seed=7"] and words[4] == "-S" and len(words) == 6
    (tmp_path / "params.yaml").write_text("machine: {launch: null}\n")
    apply_overrides(tmp_path / "params.yaml", words[5:])
    launch = yaml.safe_load((tmp_path / "params.yaml").read_text())["machine"]["launch"]
    command = shlex.split(launch)
    assert command[:2] == ["srun", "torchrun"] and command[command.index("--nnodes") + 1] == "2"
    assert command[-1].endswith(":29500") and command[command.index("--rdzv-id") + 1] == "7"


def test_the_notebook_calls_what_the_page_says_and_nothing_else():
    """recipes/machines/colab.ipynb and the cells of docs/gpu.md."""
    notebook = json.loads((MACHINES / "colab.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    page = (ROOT / "docs/gpu.md").read_text("utf-8")
    assert "".join(f"{cell}\n" for cell in cells) == page.split("```bash\n")[1].split("```")[0]
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert notebook["nbformat"] == 4


def test_the_container_is_set_up_by_the_makefile():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text("utf-8"))
    make, target = container["postCreateCommand"].split()
    assert make == "make" and f"\n{target}: " in (ROOT / "Makefile").read_text("utf-8")
    version = container["image"].rpartition(":")[2]
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'requires-python = ">={version}"' in pyproject
    assert "/.venv/bin:" in container["remoteEnv"]["PATH"]


def test_on_a_cloud_the_work_is_what_the_variable_says(started):
    task = yaml.safe_load((MACHINES / "skypilot.yaml").read_text("utf-8"))
    assert {"num_nodes", "resources", "envs", "setup", "run"} <= set(task)
    run = task["run"].replace("cd verse\n", "")
    work = "verse node-$SKYPILOT_NODE_RANK"
    assert started("bash", "-c", run, WORK=work, SKYPILOT_NODE_RANK="3") == ["node-3"]
    words = shlex.split(task["envs"]["WORK"])
    assert words[:2] == ["verse", "run"] and (ROOT / f"recipes/{words[2]}.yaml").is_file()
