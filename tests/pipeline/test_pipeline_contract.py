"""dvc.yaml held against the code: a stage lists what decides its result, and no more.

Which data a stage reads is held against a real run in tests/pipeline/test_pipeline.py, which
folder may import which by import-linter.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from verse import paths
from verse.params import Params

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
STAGES = PIPELINE["stages"]
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
# Packages that carry data and tensors about but change no number.
PLUMBING = set(
    "dvc_studio_client filelock httpx2 huggingface_hub jinja2 markupsafe openai pooch pydantic "
    "requests safetensors tensorboard tqdm urllib3 wandb yaml".split()
)
DATA = ("data/", "metrics/", "models/")
MACHINE = "machine"  # the section of params.yaml that reruns nothing
POEM = "verse/poem.py"  # the one flat file with a say in results: how texts fall into lines


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text("utf-8"))


def script(stage: str) -> str:
    """The file that a stage's command runs."""
    module = re.fullmatch(r"python -m (stages\.\w+)( \w+)?", STAGES[stage]["cmd"])[1]
    return module.replace(".", "/") + ".py"


def imported(file: str) -> Iterator[str]:
    """Dotted names that a file imports, at its top or within a function."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def closure(file: str) -> set[str]:
    """The file and all of the library that it imports, directly or not."""
    found, waiting = set(), [file]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            modules = (name.replace(".", "/") + ".py" for name in imported(file))
            waiting += [m for m in modules if m.startswith("verse/") and (ROOT / m).is_file()]
    return found


def packages(file: str) -> set[str]:
    """Third-party packages that a file imports."""
    return {name.split(".")[0] for name in imported(file)} - sys.stdlib_module_names - {"verse"}


def folders(stage: str) -> set[str]:
    """What of the library a stage's script imports from, directly or not: folders, and POEM."""
    files = closure(script(stage))
    return {str(Path(file).parent) for file in files} - {"stages", "verse"} | files & {POEM}


def sections_read(file: str) -> set[str]:
    """The sections of params.yaml that a script reads: what stands behind its `p.`."""
    return {
        node.attr
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "p"
    }


def listed_sections(stage: str) -> list[str]:
    return [key.partition(".")[0] for key in listed_keys(stage)]


def listed_keys(stage: str) -> list[str]:
    """Sections of params.yaml, or keys such as model.name."""
    return [key for key in STAGES[stage]["params"] if isinstance(key, str)]


def listed_groups(stage: str) -> list[str]:
    """The groups of pyproject.toml whose versions a stage depends on."""
    files = [key for key in STAGES[stage]["params"] if isinstance(key, dict)]
    keys = [key for file in files for name, keys in file.items() for key in keys]
    assert all(list(file) == ["pyproject.toml"] for file in files)
    assert all(key.startswith("dependency-groups.") for key in keys)
    return [key.removeprefix("dependency-groups.") for key in keys]


def leaves(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of params.yaml, dotted."""
    for name, field in schema.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def outputs(stage: str) -> Iterator[tuple[str, dict]]:
    """The paths that a stage writes, each with its flags."""
    for kind in ("outs", "metrics", "plots"):
        for out in STAGES[stage].get(kind, []):
            yield from out.items() if isinstance(out, dict) else [(out, {})]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_folders_that_decide_its_result(stage):
    listed = [dep for dep in STAGES[stage]["deps"] if not dep.startswith(DATA)]
    assert len(set(listed)) == len(listed)
    assert set(listed) == {script(stage)} | folders(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_packages_that_can_change_a_number(stage):
    used = set().union(*map(packages, closure(script(stage)))) - PLUMBING
    groups = listed_groups(stage)
    pinned = {group: {pin.split("==")[0] for pin in GROUPS[group]} for group in groups}
    assert used <= set().union(*pinned.values())
    assert [group for group in groups if not used & pinned[group]] == []


def test_the_packages_that_are_installed_are_those_of_the_groups():
    locks = [ROOT / "requirements/runtime.txt", ROOT / "requirements/torch.txt"]
    locked = [line.split(" ")[0] for lock in locks for line in lock.read_text("utf-8").splitlines()]
    assert [pin for group in GROUPS.values() for pin in group if pin not in locked] == []


def test_what_is_installed_has_a_hash_but_torch():
    """Of each package a pin and at least one hash; torch's builds come from several indexes."""
    for lock in ("runtime", "development", "s3", "servers", "weights", "gguf"):
        text = (ROOT / f"requirements/{lock}.txt").read_text("utf-8").replace("\\\n", "")
        pins = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
        assert pins and all("==" in pin and "--hash=sha256:" in pin for pin in pins)
        assert not any(pin.startswith("torch==") for pin in pins)


def test_all_stages_wait_for_the_check_of_every_parameter():
    assert set(listed_sections("check")) == set(Params.model_fields) - {MACHINE}
    made, waiting = {path for path, _ in outputs("check")}, set(STAGES) - {"check"}
    while ready := {s for s in waiting if any(within(d, made) for d in STAGES[s]["deps"])}:
        made |= {path for stage in ready for path, _ in outputs(stage)}
        waiting -= ready
    assert waiting == set()


def within(path: str, folders: set[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def test_every_stage_says_what_it_does():
    assert all(0 < len(stage["desc"]) <= 75 for stage in STAGES.values())


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "check"])
def test_a_stage_lists_the_parameters_that_it_reads(stage):
    assert sorted(listed_sections(stage)) == sorted(sections_read(script(stage)) - {MACHINE})


def attributes_read(where: ast.AST) -> set[str]:
    return {
        node.attr
        for node in ast.walk(where)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "check"])
def test_a_stage_uses_the_parameters_that_it_lists(stage):
    files = closure(script(stage)) - {"verse/params.py"}
    used = {name for file in files for name in attributes_read(tree(file))}
    for node in ast.walk(tree("verse/params.py")):  # by a property that is used
        if isinstance(node, ast.FunctionDef) and node.name in used:
            used |= attributes_read(node)
    keys = listed_keys(stage)
    listed = [leaf for leaf in leaves(Params) if leaf in keys or leaf.split(".")[0] in keys]
    assert [leaf for leaf in listed if leaf.split(".")[-1] not in used] == []


def test_every_parameter_but_the_machines_steers_some_stage():
    listed = {s for stage in STAGES if stage != "check" for s in listed_sections(stage)}
    assert listed == set(Params.model_fields) - {MACHINE}


def test_every_stage_script_is_a_stage():
    assert {script(stage) for stage in STAGES} == {
        f"stages/{path.name}" for path in (ROOT / "stages").glob("*.py")
    }


def test_the_run_cache_serves_every_stage_but_those_that_leave_links():
    """As DVC has it: no output persists, and what its cache does not hold is a metric."""
    for stage in STAGES:
        served = not any(flags.get("persist") for _, flags in outputs(stage))
        metrics = {next(iter(metric)) for metric in STAGES[stage].get("metrics", [])}
        outside = {path for path, flags in outputs(stage) if flags.get("cache") is False}
        assert (served and outside == metrics) == (stage not in ("locate", "fetch")), stage


def test_git_keeps_the_headlines_and_dvc_all_else():
    in_git = {path for s in STAGES for path, flags in outputs(s) if flags.get("cache") is False}
    assert in_git == {"data/model", "data/source", "metrics/headlines.json"}
    # Clock times are no metric, and not in git, since every run has others.
    assert "metrics" not in PIPELINE
    assert "/speed.json" in (ROOT / "metrics/.gitignore").read_text("utf-8").split()
    # The links are in git, and ignored: DVC would add the files behind, which stops dvc exp run.
    assert {"/model", "/source"} <= {*(ROOT / "data/.gitignore").read_text("utf-8").split()}


def test_no_parameter_reaches_a_shell():
    assert [stage for stage in STAGES if "${" in str(STAGES[stage]["cmd"])] == []
    assert "vars" not in PIPELINE


def test_every_parameter_has_a_comment_of_one_line():
    lines = (ROOT / "params.yaml").read_text("utf-8").splitlines()
    section, commented = {}, set()
    for line in lines:
        match = re.fullmatch(r"( *)(\w+):(.*)", line)
        if match:
            depth, name, rest = len(match[1]) // 2, match[2], match[3]
            section[depth] = name
            if rest.strip():
                assert re.search(r" # \S", rest), f"{line}: no comment"
                commented.add(".".join(section[d] for d in range(depth + 1)))
    assert commented == set(leaves(Params))


def test_the_library_opens_with_a_docstring_alone():
    """An import of any module runs this file, which no stage lists."""
    assert [type(node) for node in tree("verse/__init__.py").body] == [ast.Expr]
    assert ast.get_docstring(tree("verse/__init__.py"))


PATHS = {value for name, value in vars(paths).items() if name.isupper()}
BESIDE = {  # of the pipeline, which no stage reads or writes under DVC's eyes
    *(paths.EMBEDDED, paths.MERGED, paths.GGUF, paths.SPEED),
}


def test_every_path_of_dvc_yaml_stands_in_one_place():
    read = {dep for s in STAGES for dep in STAGES[s]["deps"] if dep.startswith(DATA)}
    wrote = {path for stage in STAGES for path, _ in outputs(stage)}
    in_folders = {f"{paths.PLOTS}/{part}_loss.csv" for part in ("train", "validation")}
    in_folders |= {f"{paths.GENERATED}/results.{kind}" for kind in ("txt", "json")}
    assert read | wrote <= PATHS | in_folders
    under = {path for path in PATHS if within(path, read | wrote)}
    above = {path for path in PATHS if any(within(known, {path}) for known in read | wrote)}
    assert PATHS - under - above == BESIDE


def test_no_other_code_spells_a_path_of_the_pipeline():
    files = [*(ROOT / "verse").rglob("*.py"), *(ROOT / "stages").glob("*.py")]
    spelled = {
        (file.name, node.value)
        for file in files
        if file != Path(paths.__file__)
        for node in ast.walk(tree(str(file.relative_to(ROOT))))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"(data|metrics|models)/[\w./-]*", node.value)
    }
    assert spelled == set()
