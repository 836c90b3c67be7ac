"""What contributors are told and what runs are the same: hooks, workflow, citation, changelog."""

import re
from pathlib import Path

import yaml

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
