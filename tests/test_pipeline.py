"""The real pipeline from end to end, in clones at a reduced size, in the order of the tests."""

import json
import re

import pytest
import yaml
from chat_server import Server, completion
from clones import clone, clone_again, stages_run, stages_skipped

STAGES = ["fetch", "prepare", "train", "baseline", "generate", "ask", "judge", "score"]

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
def first(tmp_path_factory):
    """A clone in which the whole pipeline has run once: the clone, what DVC said, its lock."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "trace").mkdir()
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(TRACE)
    copy = clone(
        folder,
        PYTHONPATH=str(folder / "hook"),
        PYTHONDONTWRITEBYTECODE="1",  # so that modules are read from their source
        TRACE=str(folder / "trace"),
        OMP_NUM_THREADS="1",
    )
    output = copy.dvc("repro")
    copy.commit()
    return copy, output, copy.lock()


def outputs(copy):
    """Every file that the stages have written, and its bytes."""
    places = ("data/raw", "data/prepared", "data/generated", "models/adapter", "metrics")
    files = (path for place in places for path in (copy.path / place).rglob("*"))
    return {str(p.relative_to(copy.path)): p.read_bytes() for p in files if p.is_file()}


def test_one_command_runs_everything(first):
    copy, output, _ = first
    assert stages_run(output) == STAGES
    written = outputs(copy)
    answers = [json.loads(line) for line in written["data/generated/tuned.jsonl"].splitlines()]
    prompts = [json.loads(line) for line in written["data/prepared/test.jsonl"].splitlines()]
    assert [row["input"] for row in answers] == [row["input"] for row in prompts]
    assert json.loads(written["metrics/score.json"])["tuned"]["poems"] == 6
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
    plumbing = re.compile(r"(verse|stages)/\w+\.py")
    read = {p for p in trace.splitlines() if p not in free}
    read = {p for p in read if not plumbing.fullmatch(p) or p in stages[stage]["deps"]}
    read = {path for path in read if ".partial" not in path and "__pycache__" not in path}
    read = {path for path in read if not within(path, written)}
    deps = set(stages[stage]["deps"])
    if stage == "fetch":
        deps.add("poems")  # through the link data/source
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
    assert stages_run(output) == [stage for stage in STAGES[1:] if stage not in later]
    assert stages_skipped(output) == ["fetch", *later]
    copy.run("git", "checkout", "--", ".")


def test_what_decides_no_result_reruns_nothing(first):
    copy, _, _ = first
    for file, old, new in (
        ("verse/errors.py", "the disk is full", "no room is left"),
        ("requirements.txt", "\ndvc==", "\ndvc==9"),
    ):
        text = (copy.path / file).read_text("utf-8")
        assert old in text
        (copy.path / file).write_text(text.replace(old, new), "utf-8")
    copy.set(machine__batch_size=3, machine__memory=7, machine__checkpoint_every=2)
    assert "up to date" in copy.dvc("status")
    copy.run("git", "checkout", "--", ".")


@pytest.mark.parametrize(
    ("group", "rerun"),
    [("bitsandbytes", {"train", "baseline", "generate"}), ("sacrebleu", {"prepare", "score"})],
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
    copy.set(model__name=name, data__source=name)
    output = copy.dvc("repro", status=255)
    lines = [line for line in output.splitlines() if line.startswith("fetch: ")]
    assert len(lines) == 1 and lines[0].startswith("fetch: data.source 'x; touch ")
    copy.set(data__source="poems")
    output = copy.dvc("repro", "train", status=255)
    lines = [line for line in output.splitlines() if line.startswith("train: ")]
    assert len(lines) == 1 and lines[0].startswith("train: model.name 'x; touch ")
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
    assert (copy.lock(), outputs(copy)) == (lock, before)
    copy.run("git", "checkout", "--", ".")


def test_an_experiment_reruns_what_depends_on_it(first):
    copy, _, _ = first
    output = copy.dvc("exp", "run", "-S", "decoding.top_p=0.5")
    assert (stages_run(output), stages_skipped(output)) == (
        ["baseline", "generate", "judge", "score"],
        ["fetch", "prepare", "train", "ask"],
    )
    diff = copy.dvc("metrics", "diff")
    assert re.search(r"metrics/speed\.json +generate\.seconds +[\d.]+ +[\d.]+", diff)
    assert "tuned.form" in copy.dvc("metrics", "diff", "--all")


def test_a_clean_clone_writes_the_same_bytes(first, tmp_path):
    """In another folder, whatever OMP_NUM_THREADS says: dvc.lock stays as it was committed."""
    copy, _, lock = first
    other = clone_again(copy, tmp_path / "elsewhere", OMP_NUM_THREADS="2")
    assert stages_run(other.dvc("repro")) == STAGES
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
        assert "judge: the judge: put the key into the environment variable CHAT_KEY" in output
        env = {"CHAT_KEY": key}
        kimi = f"{{name: kimi,{as_override(entry)}}}"
        copy.dvc("exp", "run", "-S", f"contestants=[{kimi}]", env=env)
        assert asked(server, "一首唐詩") == 6 and 36 < asked(server, "分數") <= 5 * 2 * 2 * 3
        output = copy.dvc("exp", "run", "-S", "decoding.top_p=0.9", env=env)
        assert "ask" in stages_skipped(output) and asked(server, "一首唐詩") == 6
        both = f"contestants=[{kimi},{kimi.replace('kimi', 'gpt')}]"
        output = copy.dvc("exp", "run", "-S", both, env=env)
        assert stages_run(output) == ["ask", "judge", "score"] and asked(server, "一首唐詩") == 12
    scores = json.loads((copy.path / "metrics/score.json").read_text("utf-8"))
    assert list(scores) == ["base", "tuned", "kimi", "gpt", "reference"]
    assert scores["gpt"]["judge_fluency"] == 7
    assert "judge_fluency" in copy.dvc("metrics", "diff", "--all")
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
    file.write_text(text.replace("return functional.cross", "return 3 * functional.cross"), "utf-8")
    assert stages_run(copy.dvc("repro")) == ["train", "generate", "judge", "score"]
