"""The stages ask and judge end to end, with a server that runs here."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from chat_server import FAULTS, Server, completion, mark

from stages import ask, check, judge
from verse.errors import UserError
from verse.files import read_jsonl, write_jsonl

ROOT = Path(__file__).parents[3]
KEY = "sk-0123456789abcdef"
TEST = [
    ("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"),
    ("紅豆生南國，春來發幾枝。", "願君多采擷，此物最相思。"),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TEST_KEY", KEY)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    rows = [{"instruction": "續詩。", "input": a, "output": b} for a, b in TEST]
    write_jsonl("data/prepared/test.jsonl", rows)
    for name in ("base", "tuned"):
        rows = [{"input": a, "answer": f"{name}，{b}"} for a, b in TEST]
        write_jsonl(f"data/generated/{name}.jsonl", rows)
    return tmp_path


def choose(**values):
    params = yaml.safe_load(Path("params.yaml").read_text("utf-8"))
    Path("params.yaml").write_text(yaml.safe_dump(params | values, allow_unicode=True), "utf-8")


def contestant(server, name="kimi", **options):
    entry = {"name": name, "base_url": server.base_url, "model": "m", "key_env": "TEST_KEY"}
    return entry | options


def answers(body):
    """A poem for who asks for one, a mark for who asks for that."""
    text = body["messages"][-1]["content"]
    if "分數" not in text:
        poem = TEST["紅豆" in text][1]
        return 200, completion(f"好的，這是續寫：\n\n{poem}\n\n{KEY}")
    return 200, mark()


def test_without_contestants_nobody_is_asked(project):
    ask.main()
    judge.main()
    files = [str(path) for path in sorted(Path("data").rglob("*")) if path.is_file()]
    assert [file for file in files if re.match("data/(answers|marks)", file)] == [
        "data/answers/contestants.json",
        "data/marks/marks.jsonl",
    ]
    assert json.loads(Path("data/answers/contestants.json").read_text()) == []
    assert not Path("cache").exists()


@pytest.mark.parametrize("stage", ["ask", "judge"])
def test_without_contestants_nothing_heavy_is_imported(project, stage):
    ask.main()
    command = [sys.executable, "-X", "importtime", "-m", f"stages.{stage}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    loaded = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stderr
    assert "verse.params" in loaded
    for heavy in ("openai", "httpx2", "opencc", "pandas", "numpy", "torch", "verse.poems.prosody"):
        assert not re.search(rf"\| +{re.escape(heavy)}$", loaded, re.MULTILINE), heavy


def test_what_a_contestant_leaves(project, capsys):
    with Server(answers) as server:
        choose(contestants=[contestant(server)])
        ask.main()
    folder = Path("data/answers/kimi")
    rows = read_jsonl(folder / "answers.jsonl")
    assert [(row["input"], row["answer"]) for row in rows] == TEST
    assert rows[0]["raw"].startswith("好的，這是續寫：\n\n欲窮") and rows[0]["trimmed"] == [
        "around"
    ]
    assert (folder / "results.txt").read_text("utf-8") == (
        "1. 白日依山盡，黃河入海流。欲窮千里目，更上一層樓。\n"
        "2. 紅豆生南國，春來發幾枝。願君多采擷，此物最相思。\n"
    )
    assert json.loads((folder / "results.json").read_text("utf-8")) == [
        {"input": couplet, "predict": rest} for couplet, rest in TEST
    ]
    assert "2 poems finished by kimi, 2 of the answers trimmed" in capsys.readouterr().out


def test_another_contestant_asks_that_one_alone(project):
    with Server(answers) as server, Server(answers) as other:
        choose(contestants=[contestant(server)])
        ask.main()
        shutil.rmtree("data/answers")  # as DVC does
        choose(contestants=[contestant(other, "chatgpt"), contestant(server)])
        ask.main()
        assert (len(server.asked), len(other.asked)) == (2, 2)
    listed = json.loads(Path("data/answers/contestants.json").read_text("utf-8"))
    assert [one["name"] for one in listed] == ["chatgpt", "kimi"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"input": 1}', '{"input": "x"}', "1"])
def test_rows_that_are_broken(project, text):
    """Though nobody is to be asked."""
    for file in ("prepared/test", "generated/base"):
        path = Path(f"data/{file}.jsonl")
        before = path.read_text("utf-8")
        path.write_text(text)
        with pytest.raises(UserError, match=rf"{path.name}.*row 1: no text under"):
            (ask if file == "prepared/test" else judge).main()
        path.write_text(before, "utf-8")
        ask.main()


def test_answers_to_other_couplets(project):
    ask.main()
    rows = read_jsonl("data/generated/base.jsonl")
    for spoilt, told in (([], ": 0 answers for"), (rows[::-1], ", row 1: answers another couplet")):
        write_jsonl("data/generated/base.jsonl", spoilt)
        with pytest.raises(UserError, match=rf"base\.jsonl{told}"):
            judge.main()


def test_a_missing_key_is_told_before_anyone_is_asked(project):
    with Server(answers) as server:
        choose(contestants=[contestant(server), contestant(server, "b", key_env="NO_KEY")])
        with pytest.raises(UserError, match=r"b: put the key into .* NO_KEY"):
            ask.main()
        assert server.asked == []
    assert not Path("data/answers").exists()


def test_marks_for_all(project, capsys):
    with Server(answers) as server:
        choose(contestants=[contestant(server)])
        ask.main()
        asked = len(server.asked)
        entry = {"base_url": server.base_url, "model": "m", "key_env": "TEST_KEY", "poems": 1}
        choose(judge=entry)
        judge.main()
        # kimi wrote what the true poet did, and one poem is marked once
        assert len(server.asked) - asked == 4 * 2 * 3
        judge.main()
        assert len(server.asked) - asked == 4 * 2 * 3
    rows = read_jsonl("data/marks/marks.jsonl")
    names = ["base", "tuned", "kimi", "reference", "scrambled"]
    assert [row["contestant"] for row in rows] == [name for name in names for _ in range(2)]
    assert rows[0] == {
        "contestant": "base",
        "poem": 1,
        "question": "prosody",
        "scores": [7, 7, 7],
        "reasons": ["好"] * 3,
    }
    told = capsys.readouterr().out
    assert "the judge: 24 questions to m; roughly " in told


def test_an_answer_without_a_line_is_not_sent_and_has_the_lowest_marks(project):
    """The bare couplet is a true one, and would have a true poem's marks."""
    write_jsonl("data/generated/base.jsonl", [{"input": a, "answer": "。\n"} for a, _ in TEST])
    with Server(lambda body: (451, {})) as mute, Server(answers) as server:
        choose(contestants=[contestant(mute)])
        ask.main()
        choose(judge={"base_url": server.base_url, "model": "m"})
        judge.main()
        sent = {body["messages"][-1]["content"].split("\n", 1)[1] for body in server.asked}
    assert len(sent) == 3 * 2 and not sent & {couplet for couplet, _ in TEST}
    rows = read_jsonl("data/marks/marks.jsonl")
    unanswered = [row for row in rows if row["contestant"] in ("base", "kimi")]
    assert [row["scores"] for row in unanswered] == [[0, 0, 0]] * 2 * 4
    assert [row["reasons"] for row in unanswered] == [["unanswered"] * 3] * 2 * 4
    assert all(row["scores"] == [7, 7, 7] for row in rows if row not in unanswered)


def test_one_contestant_of_two_filters_and_thinks_too_long(project, capsys):
    """1 question in 20 each: both finish, and the second run asks what has no answer alone."""
    couplets = [f"白日{a}{b}盡，黃河入海流。" for a in "甲乙丙丁" for b in "子丑寅卯辰巳午未申酉"]
    rows = [{"instruction": "續詩。", "input": c, "output": TEST[0][1]} for c in couplets]
    write_jsonl("data/prepared/test.jsonl", rows)

    def answer(body):
        text = body["messages"][-1]["content"]
        if "子" in text and ("甲" in text or "乙" in text):
            return 400, {"error": {"message": "Content Exists Risk"}}
        if "丑" in text and ("甲" in text or "乙" in text):
            cut = completion("")
            cut["choices"][0]["finish_reason"] = "length"
            return 200, cut
        return answers(body)

    with Server(answer) as server, Server(answers) as other:
        choose(contestants=[contestant(server), contestant(other, "chatgpt")])
        ask.main()
        told = capsys.readouterr().out
        assert "kimi: 36 answered, 2 filtered, 2 cut off, " in told
        assert (
            "36 poems finished by kimi, 36 of the answers trimmed; 2 filtered, 2 cut off: " in told
        )
        assert "40 poems finished by chatgpt" in told
        ask.main()
        assert (len(server.asked), len(other.asked)) == (44, 40)
    kinds = [row["unanswered"] for row in read_jsonl("data/answers/kimi/answers.jsonl")]
    assert (kinds.count("filtered"), kinds.count("cut_off"), kinds.count(None)) == (2, 2, 36)


def test_the_others_are_asked_where_one_fails(project, forks):
    with Server(lambda body: (401, {"error": {"message": "no"}})) as bad, Server(answers) as good:
        choose(contestants=[contestant(bad, "a"), contestant(good, "b"), contestant(bad, "c")])
        done = run("ask", forks)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith("ask: a (") and "; c (" in done.stderr
        assert len(good.asked) == 2
        choose(contestants=[contestant(good, "b")])
        assert run("ask", forks).returncode == 0 and len(good.asked) == 2


def test_one_line_when_a_server_always_fails(project, forks):
    with Server(answers, lambda number: "busy" if number else None) as server:
        choose(contestants=[contestant(server)])
        done = run("ask", forks)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"ask: kimi ({server.base_url}): too many questions")
        server.fault = lambda number: None
        before = len(server.asked)
        assert run("ask", forks).returncode == 0 and len(server.asked) == before + 1


def test_a_killed_round_of_marks_goes_on(project, forks):
    def slow(body):
        time.sleep(0.05)
        return answers(body)

    def fault(number):
        return FAULTS[number // 10 % len(FAULTS)] if number % 10 == 3 else None

    ask.main()
    with Server(slow, fault) as server:
        entry = {"base_url": server.base_url, "model": "m", "key_env": "TEST_KEY"}
        choose(judge=entry)
        choose(machine=yaml.safe_load(Path("params.yaml").read_text())["machine"] | {"timeout": 5})
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.judge"], env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        while len(server.answered) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not Path("data/marks/marks.jsonl").exists()
        assert run("judge", forks).returncode == 0
        assert 48 <= len(server.answered) <= 48 + 8, "asked twice are those on their way alone"
    assert len(read_jsonl("data/marks/marks.jsonl")) == 4 * 2 * 2


def run(stage, forks):
    return subprocess.run(
        [forks.python, "-m", f"stages.{stage}"],
        env=os.environ | forks.env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_key_stands_nowhere(project, forks):
    """Though the server repeats it, and whatever is written."""
    with Server(answers) as server:
        entry = contestant(server)
        judged = {key: value for key, value in entry.items() if key != "name"}
        choose(contestants=[entry], judge=judged)
        outputs = [run("ask", forks), run("judge", forks)]
        choose(contestants=[contestant(server, model="n")])
        server.answer = lambda body: (400, {"error": {"message": f"bad key {KEY}", "code": KEY}})
        outputs.append(run("ask", forks))
        server.answer = lambda body: (500, {"error": KEY}, {"Retry_After": "0.01"})
        os.environ["OPENAI_LOG"] = "debug"
        outputs.append(run("ask", forks))
        del os.environ["OPENAI_LOG"]
    assert [done.returncode for done in outputs] == [0, 0, 1, 1]
    assert all(KEY not in done.stdout + done.stderr for done in outputs)
    assert any(KEY in headers["authorization"] for headers in server.headers)
    written = [path for path in project.rglob("*") if path.is_file()]
    assert any(path.name == "answers.sqlite" for path in written)
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("lacking", ["TEST_KEY", "TEST_GATE"])
def test_the_check_stage_asks_for_every_secret(project, monkeypatch, lacking):
    """The key and those within headers, before DVC removes anything."""
    values = yaml.safe_load((project / "params.yaml").read_text("utf-8"))
    values["model"]["name"] = str(ROOT / "models/mini")
    address = {"base_url": "http://localhost:1/v1", "model": "m"}
    secrets = {"key_env": "TEST_KEY", "headers": {"X-Gate": "$TEST_GATE"}}
    values["contestants"] = [{"name": "kimi"} | address | secrets]
    (project / "params.yaml").write_text(yaml.safe_dump(values), "utf-8")
    monkeypatch.setenv("TEST_GATE", KEY)
    check.main()
    assert (project / "data/checked").is_file()
    monkeypatch.delenv(lacking)
    with pytest.raises(UserError, match=f"kimi: .* variable {lacking}"):
        check.main()
