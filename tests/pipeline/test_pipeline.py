"""The real pipeline from end to end, in clones at a reduced size, in the order of the tests."""

import json
import re
import shutil

import pandas as pd
import pytest
import yaml
from chat_server import Server, completion
from clones import (
    Clone,
    clone,
    clone_again,
    environment,
    outputs,
    stages_cached,
    stages_run,
    stages_skipped,
)

from verse.errors import KEPT
from verse.scoring.metrics import HEADLINES

STAGES = "check locate fetch prepare train baseline generate ask judge score".split()

# Python reads this in every process: what a stage opens for reading goes to a file of its name.
TRACE = """
import os, sys

argv = sys.orig_argv[1:]
stage = argv[1].removeprefix("stages.") if argv[:1] == ["-m"] and len(argv) > 1 else ""
here = os.getcwd() + "/"

def opened(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path, mode, flags = arguments
        if flags & 3 == os.O_RDONLY and (path := os.path.abspath(path)).startswith(here):
            os.write(trace, path.removeprefix(here).encode() + b"\\n")

if argv[1:2] and argv[1].startswith("stages."):
    name = "-".join([stage, *argv[2:]])
    trace = os.open(os.environ["TRACE"] + "/" + name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    sys.addaudithook(opened)
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory, forks):
    """A clone in which the whole pipeline has run once: the clone, what DVC said, its lock.

    That run is of real processes. What the tests run in the clone forks: forked.py.
    """
    folder = tmp_path_factory.mktemp("first")
    (folder / "trace").mkdir()
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(TRACE)
    copy = clone(
        folder,
        PYTHONPATH=str(folder / "hook"),
        PYTHONDONTWRITEBYTECODE="1",  # so that modules are read from their source
        TRACE=str(folder / "trace"),
        OMP_NUM_THREADS="2",
    )
    output = copy.dvc("repro")
    copy.commit()
    return Clone(copy.path, environment(folder, **forks.env)), output, copy.lock()


def test_one_command_runs_everything(first):
    copy, output, _ = first
    assert stages_run(output) == STAGES
    written = outputs(copy)
    answers = [json.loads(line) for line in written["data/generated/tuned.jsonl"].splitlines()]
    prompts = [json.loads(line) for line in written["data/prepared/test.jsonl"].splitlines()]
    assert [row["input"] for row in answers] == [row["input"] for row in prompts]
    scores = json.loads(written["metrics/score.json"])
    assert scores["tuned"]["poems"] == 6
    headlines = json.loads(written["metrics/headlines.json"])
    loss = json.loads(written["metrics/train.json"])["after"]["loss"]
    assert headlines == {key: scores["tuned"][key] for key in HEADLINES} | {"loss": loss}
    assert json.loads(written["metrics/train.json"])["steps"] == 4
    hand_in = written["data/generated/results.txt"].decode().splitlines()
    assert [line[:3] for line in hand_in] == [f"{number}. " for number in range(1, 7)]
    assert not [name for name in written if "partial" in name]
    checkpoints = copy.path.parent / "cache" / "verse" / "checkpoints"
    assert not checkpoints.exists() or not any(checkpoints.iterdir())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_what_it_depends_on(first, stage):
    copy, _, _ = first
    stages = yaml.safe_load((copy.path / "dvc.yaml").read_text("utf-8"))["stages"]
    command = stages[stage]["cmd"].removeprefix("python -m stages.")
    trace = (copy.path.parent / "trace" / command.replace(" ", "-")).read_text("utf-8")
    kinds = ("outs", "metrics", "plots")
    outs = [out for kind in kinds for out in stages[stage].get(kind, [])]
    written = [out if isinstance(out, str) else next(iter(out)) for out in outs]

    def within(path, folders):
        return any(path == folder or path.startswith(f"{folder}/") for folder in folders)

    # Neither what all stages share, nor the stage's own results, nor what is being written.
    free = {"params.yaml", "metrics/speed.json", "dvc.yaml", "pyproject.toml"}
    free.add("<unknown>")  # as Python 3.14 names the file of code that it was given as text
    plumbing = re.compile(r"(verse|stages)/\w+\.py")
    read = {p for p in trace.splitlines() if p not in free}
    read = {p for p in read if not plumbing.fullmatch(p) or p in stages[stage]["deps"]}
    read = {path for path in read if ".partial" not in path and "__pycache__" not in path}
    read = {path for path in read if not within(path, written)}
    deps = set(stages[stage]["deps"])
    if stage == "fetch":
        deps.add("poems")  # through the link data/source
    if stage in ("fetch", "locate"):
        deps.remove("data/checked")  # that it is there is enough
    deps.discard("data/model")  # a link to models/mini
    assert [path for path in sorted(read) if not within(path, deps)] == []
    assert [dep for dep in sorted(deps) if not any(within(path, [dep]) for path in read)] == []


def test_a_second_run_does_nothing(first):
    copy, _, lock = first
    before = outputs(copy)
    output = copy.dvc("repro")
    assert (stages_run(output), stages_skipped(output)) == ([], STAGES)
    assert (copy.lock(), outputs(copy)) == (lock, before)


def test_another_seed_reruns_all_but_fetch(first):
    copy, _, _ = first
    copy.set(seed=7)
    output = copy.dvc("repro", "--dry")
    # That other poems are asked of chat models, and marked, shows once they are there.
    later = ["ask", "judge"]
    assert stages_run(output) == [
        stage for stage in STAGES if stage not in ["locate", "fetch", *later]
    ]
    assert stages_skipped(output) == ["locate", "fetch", *later]
    copy.run("git", "checkout", "--", ".")


def test_what_decides_no_result_reruns_nothing(first):
    copy, _, _ = first
    for file, old, new in (
        ("verse/errors.py", "the disk is full", "no room is left"),
        ("requirements/runtime.txt", "\ndvc==", "\ndvc==9"),
    ):
        text = (copy.path / file).read_text("utf-8")
        assert old in text
        (copy.path / file).write_text(text.replace(old, new), "utf-8")
    copy.set(machine__batch_size=3, machine__memory=7, machine__checkpoint_every=2)
    assert "up to date" in copy.dvc("status")
    copy.run("git", "checkout", "--", ".")


@pytest.mark.parametrize(
    ("group", "rerun"),
    [
        ("bitsandbytes", {"train", "baseline", "generate", "score"}),
        ("pandas", {"score"}),
    ],
)
def test_a_package_that_can_change_a_number_reruns_the_stages_that_it_can_change(
    first, group, rerun
):
    copy, _, _ = first
    file = copy.path / "pyproject.toml"
    text = file.read_text("utf-8")
    assert f'"{group}==' in text
    file.write_text(text.replace(f'"{group}==', f'"{group}==9'), "utf-8")
    changed = yaml.safe_load(copy.dvc("status", "--json"))
    assert {stage for stage in STAGES if "pyproject.toml" in str(changed.get(stage))} == rerun
    copy.run("git", "checkout", "--", ".")


def test_a_changed_source_is_noticed(first):
    copy, _, _ = first
    file = copy.path / "poems" / "train.json"
    before = file.read_text("utf-8")
    file.write_text(json.dumps(json.loads(before)[1:], ensure_ascii=False), "utf-8")
    output = copy.dvc("repro", "fetch")
    assert stages_run(output) == ["fetch"]
    assert "99 training and 4 test poems from poems" in output
    file.write_text(before, "utf-8")
    assert stages_run(copy.dvc("repro", "fetch")) == ["fetch"]
    assert stages_run(copy.dvc("repro")) == []


def test_a_parameter_is_no_command(first, tmp_path):
    copy, _, lock = first
    before = outputs(copy)
    name = f"x; touch {tmp_path}/hacked $(touch {tmp_path}/hacked) `touch {tmp_path}/hacked`"
    copy.set(data__source=name)
    output = copy.dvc("repro", status=255)
    lines = [line for line in output.splitlines() if line.startswith("fetch: ")]
    assert len(lines) == 1 and lines[0].startswith("fetch: data.source 'x; touch ")
    copy.set(model__name=name)
    output = copy.dvc("repro", "train", status=255)
    lines = [line for line in output.splitlines() if line.startswith("check: ")]
    assert len(lines) == 1 and lines[0].startswith("check: model.name 'x; touch ")
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
    copy.run("git", "checkout", "--", ".")
    assert stages_run(copy.dvc("repro")) == []
    assert (copy.lock(), outputs(copy)) == (lock, before)


def test_an_experiment_reruns_what_depends_on_it(first):
    copy, _, _ = first
    output = copy.dvc("exp", "run", "--name", "freer", "-S", "decoding.top_p=0.5")
    assert (stages_run(output), stages_skipped(output)) == (
        ["check", "baseline", "generate", "judge", "score"],
        ["locate", "fetch", "prepare", "train", "ask"],
    )


def test_dvc_shows_what_one_decides_by(first):
    """In one file, and in lines that fit 100 columns."""
    copy, _, _ = first
    for command in (["show"], ["diff", "--all"]):
        table = copy.dvc("metrics", *command)
        assert set(re.findall(r"metrics/\w+\.\w+", table)) == {"metrics/headlines.json"}
        assert set(re.findall(r"[a-z]\w+", table)) >= {*HEADLINES, "loss"}
        assert max(map(len, table.splitlines())) <= 100
    assert len(copy.dvc("metrics", "show").splitlines()) == 2


def test_the_way_back_computes_nothing(first):
    copy, _, lock = first
    output = copy.dvc("exp", "run", "-S", "decoding.top_p=0.3")
    assert (stages_run(output), stages_cached(output)) == (
        [],
        ["check", "baseline", "generate", "judge", "score"],
    )
    assert copy.lock() == lock
    before = outputs(copy)

    other = copy.dvc("exp", "run", "--name", "seven", "-S", "seed=7")
    again = [stage for stage in STAGES if stage not in ("locate", "fetch")]
    assert stages_run(other) == again
    output = copy.dvc("exp", "run", "-S", "seed=42")
    assert (stages_run(output), stages_cached(output)) == ([], again)
    assert copy.lock() == lock
    assert outputs(copy) == before


def test_an_experiment_is_applied_without_running(first):
    copy, _, lock = first
    before = outputs(copy)
    copy.dvc("exp", "apply", "seven")
    assert copy.lock() != lock
    assert "up to date" in copy.dvc("status")
    assert stages_run(copy.dvc("repro")) == []
    copy.run("git", "checkout", "--", ".")
    copy.dvc("checkout")
    assert copy.lock() == lock
    assert outputs(copy) == before


def test_experiments_at_a_glance(first):
    copy, _, _ = first
    words = ("[freer]", "[seven]", "loss", "rhyme", "seed", "decoding.top_p")  # what differs
    table = copy.verse("show", env={"COLUMNS": "120"})
    assert all(word in table for word in words)
    assert "machine" not in table and ".jsonl" not in table and "…" not in table
    assert max(map(len, table.splitlines())) <= 120
    # As it comes, what one decides by stands in front of all else that DVC knows.
    plain = copy.dvc("exp", "show", "--only-changed")
    assert all(word in line[:120] for word in words[2:] for line in [plain.splitlines()[1]])

    copy.verse("compare", "seven", "freer", "--to", "figures")
    files = {file.name: file for file in (copy.path / "figures").iterdir()}
    assert sorted(files) == ["table.csv", "table.md", "tradeoff.png", "tradeoff.svg"]
    rows = pd.read_csv(files["table.csv"])
    assert list(rows["experiment"]) == ["main", "seven", "freer"]
    assert list(rows["seed"]) == [42, 7, 42] and list(rows["decoding.top_p"]) == [0.3, 0.3, 0.5]
    assert [name for name in rows if name.endswith("_low")]  # paired: the same test poems

    refused = copy.verse("compare", "nosuch", status=1)
    assert refused == "verse compare: nosuch: no such experiment: see dvc exp list\n"

    copy.verse("plots", "main", "freer", "--to", "figures")
    drawn = (copy.path / "figures" / "loss.svg").read_text("utf-8")
    assert "optimizer step" in drawn and "freer" in drawn
    shutil.rmtree(copy.path / "figures")


def test_plots_open_without_a_network(first, browser):
    from selenium.webdriver.support.wait import WebDriverWait

    copy, _, _ = first
    for command in (["show"], ["diff", "main", "freer"]):
        copy.dvc("plots", *command, "--out", "page")
        browser.get((copy.path / "page/index.html").as_uri())
        drawn = (
            "return document.querySelectorAll('.vega-embed canvas, .vega-embed svg.marks').length"
        )
        WebDriverWait(browser, 20).until(lambda browser, js=drawn: browser.execute_script(js) == 3)
        fetched = "return performance.getEntriesByType('resource').map(one => one.name)"
        assert [url for url in browser.execute_script(fetched) if url.startswith("http")] == []
    shutil.rmtree(copy.path / "page")


def test_a_commit_of_another_processor_is_compared_by_the_run_here(first):
    """Its lock names results that differ in their last bits, and that are nowhere here."""
    copy, _, lock = first
    stages = yaml.safe_load(lock)["stages"]
    there = lock
    for stage in ("train", "baseline", "generate", "score"):
        for out in stages[stage]["outs"]:
            there = there.replace(out["md5"], out["md5"][::-1])
    copy.run("git", "checkout", "--quiet", "-b", "there")
    (copy.path / "dvc.lock").write_text(there, "utf-8")
    copy.commit()
    copy.run("git", "checkout", "--quiet", "main")
    said = copy.verse("compare", "freer", "--baseline", "there", "--to", "figures")
    assert said.startswith("there: its results are not here: this machine's, of the same par")
    table = pd.read_csv(copy.path / "figures/table.csv")
    here = json.loads((copy.path / "metrics/score.json").read_text("utf-8"))["tuned"]
    assert list(table["experiment"]) == ["there", "freer"] and table["fit"][0] == here["fit"]
    assert "fit_low" in table  # paired
    shutil.rmtree(copy.path / "figures")


def test_a_stage_that_fails_loses_nothing(first):
    """DVC has removed its outputs by then: the one line says how they come back, and they do."""
    copy, _, lock = first
    before = outputs(copy)
    breaking = {"train__lora__target_modules": ["nothing"]}
    copy.set(**breaking)
    output = copy.dvc("repro", status=255)
    (line,) = (line for line in output.splitlines() if line.startswith("train: "))
    assert "target_modules" in line and line.endswith(KEPT)
    assert not (copy.path / "models/adapter").exists()
    copy.run("git", "checkout", "--", "params.yaml")
    output = copy.dvc("repro")
    assert (stages_run(output), stages_cached(output)) == ([], ["check", "train"])
    assert copy.lock() == lock
    assert outputs(copy) == before

    copy.set(**breaking)
    copy.dvc("repro", status=255)
    (copy.path / "metrics/plots/train_loss.csv").write_text("step,loss\n1,9.0\n")  # half a curve
    copy.dvc("checkout", "--force")
    copy.run("git", "checkout", "metrics", "data/source")
    assert outputs(copy) == before
    copy.run("git", "checkout", "--", ".")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("decoding.temperature=hot", "decoding.temperature must be a number"),
        ("train.learning_rate=-1", "train.learning_rate must be "),
        ("model.name=no/such/model", "model.name 'no/such/model': there is no such folder"),
        ("model.name=nobody/nothing", "model.name 'nobody/nothing': no such folder, not downl"),
        ("judge={base_url: 'https://x.org', model: m, key_env: NO_KEY}", "the judge: put the key"),
        (
            "contestants=[{name: a, base_url: 'https://x.org', model: m, key_env: NO_KEY}]",
            "a: put the key into the environment variable NO_KEY",
        ),
    ],
)
def test_a_mistake_costs_nothing(first, override, told):
    """It is told before DVC removes a result."""
    copy, _, _ = first
    before = outputs(copy)
    output = copy.dvc("exp", "run", "-S", override, status=255)
    (line,) = (line for line in output.splitlines() if line.startswith("check: "))
    assert told in line and not line.endswith(KEPT) and "Traceback" not in output
    assert stages_run(output) == ["check"] and outputs(copy) == before
    copy.run("git", "checkout", "--", ".")


def test_what_hears_of_a_training_changes_no_result(first):
    copy, _, lock = first
    before = outputs(copy)
    to = "machine.report_to=[studio]"
    output = copy.dvc("exp", "run", "-S", "seed=8", "-S", to, status=255)
    assert "check: machine.report_to: studio wants a token, DVC_STUDIO_TOKEN" in output
    copy.run("git", "checkout", "--", "params.yaml")
    with Server() as server:
        env = {"DVC_STUDIO_URL": server.base_url, "DVC_STUDIO_TOKEN": "sesame"}
        env["DVC_STUDIO_REPO_URL"] = "git@example.org:li/verse.git"
        words = ("exp", "run", "--name", "told", "-S", to, "--force", "--single-item", "train")
        assert stages_run(copy.dvc(*words, env=env)) == ["train"]
        posted = [body for body in server.asked if body["name"] == "told"]
    assert [posted[0]["type"], posted[-1]["type"]] == ["start", "done"]
    plots = [body.get("plots", {}) for body in posted if body["type"] == "data"]
    curves = [plot["metrics/plots/train_loss.csv"]["data"] for plot in plots if plot]
    rows = [row for curve in curves for row in curve]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert (copy.lock(), outputs(copy)) == (lock, before)
    assert copy.run("git", "status", "--porcelain").split() == ["M", "params.yaml"]
    copy.run("git", "checkout", "--", ".")


def test_a_collaborator_pulls_an_experiment(first, tmp_path):
    """Through git and a DVC remote: with its model, and with nothing computed."""
    copy, _, _ = first
    copy.run("git", "init", "--quiet", "--bare", "--initial-branch=main", tmp_path / "git")
    copy.run("git", "remote", "add", "hub", tmp_path / "git")
    copy.dvc("remote", "add", "--default", "shelf", tmp_path / "shelf")
    copy.commit()
    copy.run("git", "push", "--quiet", "hub", "main")
    copy.dvc("push", "--run-cache")
    copy.dvc("exp", "run", "--name", "shared", "-S", "decoding.top_p=0.5")
    copy.dvc("exp", "push", "hub", "shared")
    there = outputs(copy)

    other = clone_again(Clone(tmp_path / "git", copy.env), tmp_path / "elsewhere")
    other.dvc("exp", "pull", "origin", "shared")
    other.dvc("exp", "apply", "shared")
    assert outputs(other) == there
    assert "up to date" in other.dvc("status")

    # By parameters too; what git keeps of score is made anew, since no remote has it.
    output = other.dvc("exp", "run", "--pull", "-S", "decoding.top_p=0.3")
    assert (stages_run(output), stages_cached(output)) == (
        ["score"],
        ["check", "baseline", "generate", "judge"],
    )
    copy.run("git", "checkout", "--", ".")
    copy.dvc("checkout")
    assert outputs(other) == outputs(copy)


def test_what_is_no_experiment_any_more_is_collected_and_no_training(first):
    copy, _, lock = first
    before = outputs(copy)
    copy.dvc("exp", "apply", "seven")
    copy.dvc("gc", "--workspace", "--all-experiments", "--all-commits", "--force")
    copy.dvc("exp", "run", "-S", "seed=42")
    output = copy.dvc("exp", "run", "-S", "seed=7")
    cached = [stage for stage in STAGES if stage not in ("locate", "fetch", "score")]
    assert (stages_run(output), stages_cached(output)) == (["score"], cached)
    copy.run("git", "checkout", "--", ".")
    copy.dvc("checkout")
    assert (copy.lock(), outputs(copy)) == (lock, before)


def test_a_clean_clone_writes_the_same_bytes(first, tmp_path, forks):
    """In another folder, whatever OMP_NUM_THREADS says: dvc.lock stays as it was committed.

    A fork also writes what the processes of the first run did, which all had other hash seeds.
    """
    copy, _, lock = first
    other = clone_again(copy, tmp_path / "elsewhere", **forks.env | {"OMP_NUM_THREADS": "1"})
    # The link that locate leaves is in git.
    assert stages_run(other.dvc("repro")) == [stage for stage in STAGES if stage != "locate"]
    assert other.lock() == lock


def test_chat_models_join_and_leave_no_key(first):
    copy, _, _ = first
    copy.run("git", "checkout", "--", ".")
    key = "sk-0123456789abcdef"

    def answer(body):
        if "分數" in body["messages"][-1]["content"]:
            return 200, completion('{"score": 7, "reason": "好"}')
        return 200, completion("欲窮千里目，更上一層樓。" + key)

    def asked(server, text):
        return sum(text in body["messages"][-1]["content"] for body in server.asked)

    with Server(answer) as server:
        entry = {"base_url": server.base_url, "model": "m", "key_env": "CHAT_KEY"}
        marks = f"judge={{{as_override(entry)},poems: 2}}"
        output = copy.dvc("exp", "run", "-S", marks, status=255)
        assert "check: the judge: put the key into the environment variable CHAT_KEY" in output
        env = {"CHAT_KEY": key}
        kimi = f"{{name: kimi,{as_override(entry)}}}"
        copy.dvc("exp", "run", "-S", f"contestants=[{kimi}]", env=env)
        assert asked(server, "一首唐詩") == 6 and 36 < asked(server, "分數") <= 5 * 2 * 2 * 3
        output = copy.dvc("exp", "run", "-S", "decoding.top_p=0.9", env=env)
        assert "ask" in stages_skipped(output) and asked(server, "一首唐詩") == 6
        both = f"contestants=[{kimi},{kimi.replace('kimi', 'gpt')}]"
        output = copy.dvc("exp", "run", "-S", both, env=env)
        assert (
            stages_run(output) == ["check", "ask", "judge", "score"]
            and asked(server, "一首唐詩") == 12
        )
    scores = json.loads((copy.path / "metrics/score.json").read_text("utf-8"))
    assert list(scores) == [
        "base",
        "tuned",
        "kimi",
        "gpt",
        "random",
        "constant",
        "another",
        "reference",
    ]
    assert scores["gpt"]["judge_fluency"] == 7
    diff = copy.dvc("metrics", "diff")
    assert " judge_fluency " in diff and " chat.kimi.whole " in diff
    files = [path for path in copy.path.parent.rglob("*") if path.is_file()]
    assert len({path.relative_to(copy.path.parent).parts[0] for path in files}) >= 3
    assert [path for path in files if key.encode() in path.read_bytes()] == []
    copy.run("git", "checkout", "--", ".")


def as_override(entry):
    return ",".join(f"{key}: '{value}'" for key, value in entry.items())


def test_another_loss_reruns_training_and_what_follows(first):
    copy, _, _ = first
    copy.run("git", "checkout", "--", ".")
    copy.dvc("repro")
    file = copy.path / "verse/training/loss.py"
    text = file.read_text("utf-8")
    assert text.count("return functional.cross_entropy(") == 1
    other = text.replace("return functional.cross", "return 1.0001 * functional.cross")
    file.write_text(other, "utf-8")
    assert stages_run(copy.dvc("repro")) == ["train", "generate", "judge", "score"]
