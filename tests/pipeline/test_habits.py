"""What contributors are told and what runs are the same: hooks, workflow, citation, changelog."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from tools import plots_page

ROOT = Path(__file__).parents[2]


def text(name):
    return (ROOT / name).read_text("utf-8")


def project(key):
    return re.search(f'^{key} = "(.*)"', text("pyproject.toml"), re.MULTILINE)[1]


def test_the_hooks_do_what_make_lint_does():
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", text("Makefile"), re.MULTILINE)[1]
    (repo,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in repo["hooks"]]
    assert entries == recipe.replace("\t", "").splitlines() != []
    assert not any(hook["pass_filenames"] for hook in repo["hooks"])


def test_the_workflow_runs_what_continuous_integration_is_here():
    workflow = yaml.safe_load(text(".github/workflows/ci.yml"))
    job, metrics = workflow["jobs"]["test"], workflow["jobs"]["metrics"]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    lowest = project("requires-python").removeprefix(">=")
    assert job["strategy"]["matrix"]["python"][0] == lowest
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in job  # what a pull request runs may not write
    assert metrics["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert not any(".ci/run" in str(step) or "make" in str(step) for step in metrics["steps"])


def test_what_is_no_repository_is_told_before_anything_is_installed(tmp_path):
    """As a ZIP from GitHub is none."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "pyproject.toml").write_text("")
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    env = own | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = subprocess.run(["make", "repro"], cwd=tmp_path, env=env, capture_output=True, text=True)
    line, *ours = done.stderr.splitlines()
    assert line.startswith("this folder is no git repository") and "git clone" in line
    assert done.returncode == 2 and all(line.startswith("make: ") for line in ours)
    assert not (tmp_path / ".venv").exists()


def test_text_has_the_same_bytes_in_every_checkout():
    """DVC hashes them: a line ending of the system's would make every stage count as changed."""
    listed = subprocess.run(
        ["git", "check-attr", "eol", "--", "dvc.yaml", "data/embedded/train.json", "Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.rpartition(" ")[2] for line in listed.splitlines()] == ["lf"] * 3


def test_the_page_of_the_plots_has_its_scripts_within():
    """As the pinned vl-convert-python brings them: python -m tools.plots_page."""
    assert text(".dvc/plots.html") == plots_page.page()
    assert "<script src" not in text(".dvc/plots.html")
    assert "\n    html_template = plots.html\n" in text(".dvc/config")


def test_the_version_is_one():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == project("version")
    assert f"\n## {project('version')}\n" in text("CHANGELOG.md")


def test_the_issue_forms_have_what_a_form_needs():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert forms
    for form in forms:
        values = yaml.safe_load(form.read_text("utf-8"))
        assert values["name"] and values["description"] and values["body"]
        ids = [field["id"] for field in values["body"]]
        assert len(set(ids)) == len(ids)
        assert all(field["attributes"]["label"] for field in values["body"])


def test_the_architecture_names_every_folder():
    page = text("docs/architecture.md")
    folders = [f.name for f in (ROOT / "verse").iterdir() if f.is_dir() and f.name[0] not in "._"]
    assert [name for name in folders if f"verse/{name}/" not in page] == []
