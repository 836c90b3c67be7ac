"""`verse run`: recipes are pieces of params.yaml, handed to `dvc exp run`."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from verse import params
from verse.cli import run
from verse.errors import ParameterError, UserError

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"), key=lambda path: path.stem)
SEVEN_B = ("breeze", "taide", "llama", "qwen", "gemma", "gptoss")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with params.yaml and a recipe of one's own."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(folder, text):
    (folder / "recipes/mine.yaml").write_text(text, "utf-8")
    return run.overrides("mine")


def test_the_recipes_are_there():
    assert {*SEVEN_B} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dvc_writes_a_recipe_as_it_stands_and_nothing_else(path, folder, monkeypatch):
    """Through DVC's own way of `-S`, onto the committed params.yaml."""
    (folder / "recipes" / path.name).write_bytes(path.read_bytes())
    expected = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
    wanted = yaml.safe_load(path.read_text("utf-8"))
    run._lay_over(expected, wanted)
    apply_overrides("params.yaml", run.overrides(path.stem))
    assert yaml.safe_load((folder / "params.yaml").read_text("utf-8")) == expected
    params.read()


@pytest.mark.parametrize("name", SEVEN_B)
def test_a_recipe_of_a_large_model_says_what_it_is_trained_on_and_how(name):
    values = yaml.safe_load((ROOT / f"recipes/{name}.yaml").read_text("utf-8"))
    assert "/" in values["model"]["name"] and not values["model"]["name"].startswith("models/")
    assert values["model"]["template"] in ("homework", "chat")
    assert values["data"] == {"source": "hw5"}
    assert values["train"]["learning_rate"] == 3e-4


def test_each_recipe_opens_with_what_it_is():
    assert all(path.read_text("utf-8").startswith("# ") for path in RECIPES)


def test_lists_null_and_text_come_through(folder):
    text = "train:\n  lora:\n    target_modules: [q_proj, v_proj]\ndata:\n  sha256: null\n"
    text += "model: {name: models/詩 一, revision: 'null'}\n"
    apply_overrides("params.yaml", recipe(folder, text))
    read = params.read()
    assert read.model.revision == "null", "text, though it reads like a value"
    assert read.train.lora.target_modules == ["q_proj", "v_proj"]
    assert read.data.sha256 is None and read.model.name == "models/詩 一"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("decoding: {top_q: 1}", "decoding.top_q"),
        ("decoding: {top_p: 2}", "decoding.top_p"),
        ("decoding: 1", "decoding must be"),
        ("nonsense: {a: 1}", "nonsense"),
        ("- 1", "not a piece"),
        ("a: [", "not YAML"),
        ("", "not a piece"),
    ],
)
def test_a_recipe_that_does_not_fit_is_told_before_dvc_starts(folder, text, said):
    with pytest.raises(ParameterError, match=f"recipes/mine.yaml: .*{said}"):
        recipe(folder, text)


def test_a_name_that_is_none_runs_nothing(folder):
    recipe(folder, "seed: 1")
    for name in ("", "mien", "../recipes/mine", "-S"):
        with pytest.raises(UserError, match=r"no recipe .*there are: mine"):
            run.overrides(name)


def called(*words, cwd=ROOT):
    command = [sys.executable, "-m", "verse.cli.main", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8")


def test_without_a_name_all_are_listed():
    told = called("run")
    assert told.returncode == 0
    assert [line.split()[0] for line in told.stdout.splitlines()] == [p.stem for p in RECIPES]


def test_options_without_a_name_are_refused():
    told = called("run", "--queue")
    assert told.returncode == 1 and "name a recipe before --queue" in told.stderr


def test_what_follows_the_name_goes_to_dvc():
    told = called("run", "homework", "-S", "seed=7", "--no-such-option")
    assert told.stdout.startswith("dvc exp run -S decoding.temperature=0.1 ")
    assert "-S seed=7 --no-such-option" in told.stdout
    assert told.returncode != 0 and "--no-such-option" in told.stderr, "DVC's own words"


def test_the_version_is_that_of_the_project():
    told = called("--version")
    (version,) = [
        line.split('"')[1]
        for line in (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
        if line.startswith("version = ")
    ]
    assert told.stdout == f"verse {version}\n"
