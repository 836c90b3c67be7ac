"""dvc.yaml held against the code: what a stage lists is what it imports and reads, no more.

Which data a stage reads is held against a real run in tests/test_pipeline.py.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from verse.params import Params

ROOT = Path(__file__).parent.parent
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
STAGES = PIPELINE["stages"]
# Packages that carry data about but have no say in a result: their version is no dependency.
PLUMBING = {"filelock", "requests", "tqdm", "urllib3", "yaml"}


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


def companions(file: str) -> set[str]:
    """The data files that a module reads from beside itself: Path(__file__).with_name(…)."""
    return {
        str(Path(file).with_name(node.args[0].value))
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "with_name"
        and isinstance(node.args[0], ast.Constant)
    }


def packages(file: str) -> set[str]:
    """Third-party packages that a file imports."""
    return {name.split(".")[0] for name in imported(file)} - sys.stdlib_module_names - {"verse"}


def keys_read(file: str) -> list[str]:
    """The keys in a script's one call of params.read."""
    calls = [
        node
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("params.read", "read")
        and ast.unparse(node.args[0]) == "'params.yaml'"
    ]
    assert len(calls) == 1, f"{file}: params.yaml is read once"
    return [argument.value for argument in calls[0].args[1:]]


def leaves(key: str) -> Iterator[str]:
    """The keys of params.yaml below `key`, itself if it holds a value."""
    schema = Params
    for name in key.split("."):
        schema = get_type_hints(schema)[name]
    if is_dataclass(schema):
        for name in get_type_hints(schema):
            yield from leaves(f"{key}.{name}")
    else:
        yield key


def outputs(stage: str) -> Iterator[tuple[str, dict]]:
    """The paths that a stage writes, each with its flags."""
    for kind in ("outs", "metrics", "plots"):
        for out in STAGES[stage].get(kind, []):
            yield from out.items() if isinstance(out, dict) else [(out, {})]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_imports(stage):
    code = closure(script(stage))
    wanted = code.union(*map(companions, code))
    if set().union(*map(packages, code)) - PLUMBING:
        wanted.add("requirements.txt")
    listed = [dep for dep in STAGES[stage]["deps"] if not dep.startswith(("data/", "models/"))]
    assert len(set(listed)) == len(listed)
    assert set(listed) == wanted


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_parameters_that_it_reads(stage):
    assert sorted(STAGES[stage]["params"]) == sorted(keys_read(script(stage)))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_uses_the_parameters_that_it_lists(stage):
    used = {
        node.attr
        for file in closure(script(stage)) - {"verse/params.py"}
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    listed = [leaf for key in STAGES[stage]["params"] for leaf in leaves(key)]
    assert [leaf for leaf in listed if leaf.split(".")[-1] not in used] == []


def test_every_parameter_steers_some_stage():
    listed = {leaf for stage in STAGES for key in STAGES[stage]["params"] for leaf in leaves(key)}
    assert listed == {leaf for key in get_type_hints(Params) for leaf in leaves(key)}


def test_every_stage_script_is_a_stage():
    assert {script(stage) for stage in STAGES} == {
        f"stages/{path.name}" for path in (ROOT / "stages").glob("*.py")
    }


def test_a_stage_that_fails_leaves_its_outputs():
    fleeting = [path for s in STAGES for path, flags in outputs(s) if not flags.get("persist")]
    assert fleeting == []


def test_what_git_keeps_is_not_in_dvcs_cache_too():
    """Small results are read in git; the rest DVC keeps, and git ignores."""
    for stage in STAGES:
        for path, flags in outputs(stage):
            in_git = path.startswith("metrics/") and path != "metrics/report.html"
            assert (flags.get("cache") is False) == (in_git or path == "data/source"), path
    # A kill would leave the files behind the link in git's index, which stops dvc exp run.
    assert "/source" in (ROOT / "data/.gitignore").read_text("utf-8").split()


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
    assert commented == {leaf for key in get_type_hints(Params) for leaf in leaves(key)}


def test_the_library_opens_with_a_docstring_alone():
    """An import of any module runs this file, which no stage lists."""
    assert [type(node) for node in tree("verse/__init__.py").body] == [ast.Expr]
    assert ast.get_docstring(tree("verse/__init__.py"))
