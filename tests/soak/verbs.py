"""DVC's verbs on this pipeline, once each: what the pages name, and ways to set a repository up.

All start from copies of one clone in which the pipeline has run, at a reduced size.
"""

import json
import shutil
import time

import pytest
from clones import BIN, Clone, clone, clone_again, outputs, sign, stages_cached, stages_run

TOP_P = "decoding.top_p=0.5"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    copy = clone(folder)
    copy.dvc("repro")
    copy.dvc("remote", "add", "--default", "shelf", folder / "shelf")
    copy.commit()
    copy.dvc("push", "--run-cache")
    return copy


@pytest.fixture
def copy(first, tmp_path):
    """A copy of the clone, with its cache."""
    shutil.copytree(first.path, tmp_path / "repository", symlinks=True)
    return Clone(tmp_path / "repository", first.env)


def up_to_date(copy):
    return "up to date" in copy.dvc("status")


def printed_json(output):
    """The one line of JSON, beside which DVC may warn of a plot that is not there yet."""
    (line,) = (line for line in output.splitlines() if line.startswith(("[", "{")))
    return json.loads(line)


def names(copy, *where):
    return set(copy.dvc("exp", "list", *where, "--name-only").split())


def test_an_experiment_from_its_run_to_its_branch(copy):
    copy.dvc("exp", "run", "--name", "free", "-S", TOP_P)
    assert "decoding.top_p" in copy.dvc("exp", "diff", "main", "free")
    copy.dvc("exp", "rename", "free", "freer")
    copy.run("git", "checkout", "--", ".")
    copy.dvc("checkout")
    copy.dvc("exp", "apply", "freer")
    assert up_to_date(copy)
    copy.dvc("exp", "save", "--name", "kept")
    assert names(copy) == {"freer", "kept"}
    copy.dvc("exp", "branch", "freer", "branched")
    copy.dvc("exp", "remove", "freer", "kept")
    copy.dvc("exp", "clean")
    assert names(copy) == set() and "branched" in copy.run("git", "branch")
    copy.run("git", "checkout", "--quiet", "--", ".")
    copy.run("git", "checkout", "--quiet", "branched")
    copy.dvc("checkout")
    assert up_to_date(copy) and stages_run(copy.dvc("repro")) == []


def test_experiments_through_git_and_a_remote(copy, tmp_path):
    copy.run("git", "clone", "--quiet", "--bare", copy.path, tmp_path / "hub.git")
    copy.run("git", "remote", "add", "hub", tmp_path / "hub.git")
    copy.dvc("exp", "run", "--temp", "--name", "free", "-S", TOP_P)
    copy.dvc("exp", "push", "hub", "free")
    assert names(copy, "hub") == {"free"}
    (tmp_path / "there").mkdir()
    other = clone_again(Clone(tmp_path / "hub.git", copy.env), tmp_path / "there")
    other.dvc("pull")
    assert up_to_date(other) and outputs(other) == outputs(copy)
    other.dvc("exp", "pull", "origin", "free")
    other.dvc("exp", "apply", "free")
    assert up_to_date(other)


def test_a_queue_with_three_jobs(copy):
    copy.dvc("exp", "run", "--queue", "--name", "q", "-S", "decoding.top_p=0.4,0.6,0.8")
    copy.dvc("exp", "run", "--run-all", "--jobs", "3")
    assert copy.dvc("queue", "status").count("Success") == 3
    assert "Running stage 'score'" in copy.dvc("queue", "logs", "q-1")
    copy.dvc("queue", "remove", "--all")


def test_a_queue_that_two_workers_empty_in_the_background(copy):
    copy.dvc("exp", "run", "--queue", "--name", "one", "-S", TOP_P)
    copy.dvc("exp", "run", "--queue", "--name", "two", "-S", "seed=7")
    copy.dvc("queue", "start", "-j", "2")
    until = time.monotonic() + 600
    while (status := copy.dvc("queue", "status")).count("Success") < 2:
        assert "Failed" not in status and time.monotonic() < until, status
        time.sleep(2)
    assert names(copy) == {"one", "two"}
    copy.dvc("exp", "apply", "two")
    assert up_to_date(copy)


def test_a_curve_is_drawn_while_an_experiment_runs(copy):
    """By what VS Code's view reads."""
    process = copy.start(BIN / "dvc", "exp", "run", "-S", "train.epochs=100", "-S", "seed=7")
    lengths, states = set(), set()
    while process.poll() is None:
        shown = printed_json(copy.dvc("exp", "show", "--json"))
        found = [one["executor"] for row in shown for one in row["experiments"] or []]
        states |= {executor["state"] for executor in found if executor}
        drawn = printed_json(copy.dvc("plots", "diff", "HEAD", "workspace", "--json", "--split"))
        rows = drawn["data"]["loss"][0]["anchor_definitions"]["<DVC_METRIC_DATA>"]
        lengths.add(sum(row["rev"] == "workspace" for row in rows))
    assert process.returncode == 0 and "running" in states
    assert len(lengths - {0, max(lengths)}) > 1, lengths


def test_a_collection_spares_what_is_referred_to(copy):
    copy.dvc("exp", "run", "--name", "free", "-S", TOP_P)
    copy.dvc("exp", "run", "-S", "decoding.top_p=0.3")
    before = outputs(copy)
    copy.dvc("gc", "--workspace", "--all-experiments", "--force")
    copy.dvc("exp", "apply", "free")
    assert up_to_date(copy)
    copy.run("git", "checkout", "--", ".")
    copy.dvc("checkout")
    assert outputs(copy) == before


def test_a_frozen_stage_and_a_single_one(copy):
    copy.dvc("freeze", "train")
    copy.set(train__learning_rate=0.01)
    assert "train" not in stages_run(copy.dvc("repro"))
    copy.dvc("unfreeze", "train")
    copy.run("git", "reset", "--quiet", "--hard")  # DVC has staged the lock
    output = copy.dvc("repro", "--single-item", "--force", "score")
    assert stages_run(output) == ["score"]
    assert up_to_date(copy)


def test_poems_of_another_repository_are_imported(copy, tmp_path):
    copy.dvc("import", copy.path, "data/prepared", "--out", "mine")
    (copy.path / "mine/validation.jsonl").unlink()
    copy.dvc("exp", "run", "--name", "mine", "-S", "data.source=mine", "prepare")
    assert (copy.path / "data/source").resolve() == copy.path / "mine"


def test_a_registered_model_is_had_by_its_version(copy, tmp_path):
    copy.run("gto", "register", "adapter")
    assert "v0.0.1" in copy.run("gto", "show", "adapter")
    anywhere = Clone(tmp_path, copy.env)
    words = ["adapter", "--rev", "v0.0.1", "--out", "got"]
    anywhere.dvc("artifacts", "get", copy.path, *words)
    got, own = (folder / "adapter_model.safetensors" for folder in (tmp_path / "got", copy.path))
    assert got.read_bytes() == (own.parent / "models/adapter" / own.name).read_bytes()


def test_hooks_keep_git_and_dvc_together(copy):
    copy.dvc("install")
    copy.run("git", "checkout", "--quiet", "-b", "free")
    copy.dvc("exp", "run", "-S", TOP_P)
    copy.run("git", "commit", "--quiet", "--all", "--message", "freer")
    copy.run("git", "checkout", "--quiet", "main")
    assert up_to_date(copy)


@pytest.mark.parametrize("link", ["hardlink", "symlink", "reflink,copy"])
def test_a_linked_cache(copy, link):
    """Outputs are links into the cache: whatever a stage does, the cache stays whole."""
    copy.dvc("config", "cache.type", link)
    copy.dvc("checkout", "--relink")
    before = outputs(copy)
    copy.dvc("exp", "run", "-S", TOP_P)
    output = copy.dvc("exp", "run", "-S", "decoding.top_p=0.3")
    assert stages_run(output) == [] and "score" in stages_cached(output)
    assert outputs(copy) == before and up_to_date(copy)


def test_a_worktree(copy, tmp_path):
    copy.run("git", "worktree", "add", "--quiet", tmp_path / "tree", "-b", "tree")
    tree = Clone(tmp_path / "tree", copy.env)
    tree.dvc("cache", "dir", "--local", copy.path / ".dvc/cache")
    tree.dvc("checkout")
    assert up_to_date(tree) and outputs(tree) == outputs(copy)
    assert "score" in stages_run(tree.dvc("exp", "run", "--name", "grown", "-S", TOP_P))
    copy.dvc("exp", "apply", "grown")
    assert up_to_date(copy) and outputs(copy) == outputs(tree)


@pytest.mark.parametrize(
    ("folder", "env"),
    [("larger/verse", {}), ("唐詩/續寫", {"LC_ALL": "C", "LANG": "C"})],
)
def test_another_place(first, tmp_path, folder, env):
    """A subdirectory of a larger repository; a Chinese path in a locale of ASCII."""
    place = tmp_path / folder
    shutil.copytree(first.path, place, symlinks=True)
    copy = Clone(place, first.env | env)
    if folder.startswith("larger"):
        shutil.rmtree(place / ".git")
        larger = Clone(tmp_path / "larger", copy.env)
        larger.run("git", "init", "--quiet")
        sign(larger)
        config = (place / ".dvc/config").read_text("utf-8")
        shutil.rmtree(place / ".dvc/tmp")
        copy.dvc("init", "--subdir", "--force")
        (place / ".dvc/config").write_text(config, "utf-8")
        larger.run("git", "add", "--force", "verse/data/source")
        larger.commit()
    output = copy.dvc("exp", "run", "-S", TOP_P)
    assert "score" in stages_run(output)
    headlines = json.loads((place / "metrics/headlines.json").read_text("utf-8"))
    assert headlines.keys() >= {"whole", "loss"} and up_to_date(copy)
