"""The score stage end to end, on a handful of poems."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from stages import score
from verse.chat.client import KINDS
from verse.errors import UserError
from verse.files import read_jsonl, write_json, write_jsonl
from verse.poems.contestants import CONTESTANTS
from verse.scoring.metrics import EXTRA, HEADLINES, INTERVALS

ROOT = Path(__file__).parents[3]

TRAIN = [("國破山河在，城春草木深。", "感時花濺淚，恨別鳥驚心。")]
TEST = [
    ("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"),
    ("紅豆生南國，春來發幾枝。", "願君多采擷，此物最相思。"),
]
BASE = ["\x1b[2J" + "山" * 10_000, ""]
TUNED = ["欲窮千里目，更上一層樓。", "感時花濺淚，恨別鳥驚心。"]
SHOWN = ("base", "tuned", "reference")
OUTPUTS = (
    *(
        "score.json",
        "headlines.json",
        "intervals.json",
        "gains.json",
        "poems.csv",
        "plots/quality.csv",
        "plots/lines/tuned.csv",
        "report.html",
    ),
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name, poems in {"train": TRAIN, "test": TEST}.items():
        rows = [{"instruction": "續詩。", "input": a, "output": b} for a, b in poems]
        write_jsonl(f"data/prepared/{name}.jsonl", rows)
    write_answers("base", BASE)
    write_answers("tuned", TUNED)
    write_json("data/answers/contestants.json", [])
    write_jsonl("data/marks/marks.jsonl", [])
    write_json("metrics/train.json", {"after": {"loss": 3.5}})
    return tmp_path


def write_answers(group, answers, couplets=None):
    couplets = couplets or [couplet for couplet, _ in TEST]
    rows = [{"input": a, "answer": b} for a, b in zip(couplets, answers, strict=False)]
    write_jsonl(f"data/generated/{group}.jsonl", rows)


def test_metrics(project):
    score.main()
    metrics = json.loads(Path("metrics/score.json").read_text(encoding="utf-8"))
    assert list(metrics) == list(CONTESTANTS)
    base, tuned, reference = (metrics[name] for name in SHOWN)
    assert base["poems"] == tuned["poems"] == reference["poems"] == 2
    assert (base["form"], tuned["form"], reference["form"]) == (0, 1, 1)
    assert (base["lines"], base["clean"], base["novel"]) == (0, 0.5, 0)
    assert (tuned["rhyme"], tuned["novel"]) == (0.5, 0.5)  # 枝 and 心; its lines are the training's
    assert (reference["rhyme"], reference["novel"], reference["distinct2"]) == (1, 1, 1)


def test_baselines_stand_beside_what_models_write(project):
    score.main()
    metrics = json.loads(Path("metrics/score.json").read_text(encoding="utf-8"))
    assert metrics["random"]["form"] == metrics["random"]["lines"] == 1
    assert metrics["random"]["words"] < metrics["reference"]["words"]
    assert metrics["constant"]["novel"] == 0 and metrics["constant"]["shared"] == 1
    assert metrics["another"]["form"] == 1 and metrics["another"]["rhyme"] == 0


def test_the_gain_over_the_baseline(project):
    score.main()
    (tuned,) = json.loads(Path("metrics/gains.json").read_text(encoding="utf-8"))
    assert tuned["contestant"] == "tuned" and tuned["form"] == 1 and 0 < tuned["form_ci95"] < 1


def test_intervals_have_a_file_of_their_own(project):
    score.main()
    scores, halves = (
        json.loads(Path("metrics", name).read_text("utf-8"))
        for name in ("score.json", "intervals.json")
    )
    assert [row["contestant"] for row in halves] == list(scores)
    assert all(list(row) == ["contestant", *INTERVALS] for row in halves)
    assert not [key for key in scores["tuned"] if key.endswith("_ci95")]
    assert halves[1]["rhyme"] == 0.4055  # Wilson's, where of two poems one rhymes


def test_a_row_a_poem_and_contestant(project):
    score.main()
    rows = rows_of("metrics/poems.csv")
    assert [(row["contestant"], row["poem"]) for row in rows] == [
        (name, number) for name in CONTESTANTS for number in "12"
    ]
    forms = [row["form"] for row in rows if row["contestant"] in SHOWN]
    assert forms == list("001111")
    assert [row["novel"] for row in rows if row["contestant"] == "tuned"] == ["1.0", "0.0"]


def headlines():
    return json.loads(Path("metrics/headlines.json").read_text("utf-8"))


def test_what_dvc_shows(project):
    score.main()
    metrics = json.loads(Path("metrics/score.json").read_text("utf-8"))
    assert headlines() == {key: metrics["tuned"][key] for key in HEADLINES} | {"loss": 3.5}


def write_chat(name, raws):
    """Answers of a chat model, trimmed or not."""
    write_json("data/answers/contestants.json", [{"name": name, "model": "m"}])
    rows = [
        {"input": couplet, "answer": raw.removeprefix("<b>續：</b>"), "raw": raw}
        for (couplet, _), raw in zip(TEST, raws, strict=True)
    ]
    write_jsonl(f"data/answers/{name}/answers.jsonl", rows)


def test_a_chat_model_stands_beside_the_others(project, capsys):
    write_chat("kimi", ["<b>續：</b>" + TEST[0][1], "不會。"])
    score.main()
    metrics = json.loads(Path("metrics/score.json").read_text("utf-8"))
    assert list(metrics) == ["base", "tuned", "kimi", *list(CONTESTANTS)[2:]]
    assert metrics["kimi"]["form"] == 0.5
    assert len(rows_of("metrics/poems.csv")) == 2 * (len(CONTESTANTS) + 1)
    gains = json.loads(Path("metrics/gains.json").read_text("utf-8"))
    assert [row["contestant"] for row in gains] == ["tuned", "kimi"]
    assert {"answers": "form: kimi", "share": "0.5"} in rows_of("metrics/plots/quality.csv")
    assert rows_of("metrics/plots/lines/kimi.csv")[1] == {"lines": "1", "share": "0.5000"}
    assert (metrics["kimi"]["raw"], metrics["kimi"]["trimmed"]) == (0, 0.5)
    assert headlines()["chat"] == {"kimi": {key: metrics["kimi"][key] for key in HEADLINES}}
    assert "raw" not in metrics["tuned"]
    page = Path("metrics/report.html").read_text("utf-8")
    assert '<span lang="en">kimi</span>' in page
    raw = "<pre>&lt;b&gt;續：&lt;/b&gt;欲窮千里目，更上一層樓。</pre>"
    assert page.count(raw) == 1, "what it wrote, where something was trimmed"
    printed = capsys.readouterr().out
    (trimmed,) = re.findall(r"^trimmed .*$", printed, re.MULTILINE)
    assert trimmed.split() == ["trimmed", "-", "-", "0.500", *"----"] and "kimi" in printed


def test_questions_without_an_answer_are_told_by_their_kind(project):
    write_chat("kimi", ["", ""])
    rows = list(read_jsonl("data/answers/kimi/answers.jsonl"))
    rows[0]["unanswered"], rows[1]["unanswered"] = "cut_off", None
    write_jsonl("data/answers/kimi/answers.jsonl", rows)
    score.main()
    kimi = json.loads(Path("metrics/score.json").read_text("utf-8"))["kimi"]
    assert (kimi["unanswered"], kimi["cut_off"], kimi["form"]) == (0.5, 0.5, 0)
    assert "filtered" not in kimi
    assert {*KINDS} <= {metric.name for metric in EXTRA}
    page = Path("metrics/report.html").read_text("utf-8")
    assert "kimi：1 截斷 cut off" in page and "截斷 cut off · 失格" in page


def test_a_judges_marks_stand_beside_the_metrics(project, capsys):
    marks = {"base": [1, 2, 3], "tuned": [4, 5, 9], "reference": [8, 8, 8], "scrambled": [0, 0, 3]}
    rows = [
        {"contestant": name, "poem": poem, "question": q, "scores": scores, "reasons": ["好"] * 3}
        for name, scores in marks.items()
        for poem in (1, 2)
        for q in ("prosody", "fluency")
    ]
    write_jsonl("data/marks/marks.jsonl", rows)
    score.main()
    metrics = json.loads(Path("metrics/score.json").read_text("utf-8"))
    assert list(metrics) == list(CONTESTANTS), "poems without sense do not contend"
    tuned = metrics["tuned"]
    assert (tuned["judge_prosody"], tuned["judge_prosody_best"]) == (6, 9)
    assert headlines().keys() == {*HEADLINES, "judge_prosody", "judge_fluency", "loss"}
    judge = json.loads(Path("metrics/judge.json").read_text("utf-8"))
    assert judge["true_first"] == 1 and judge["scrambled"] == {"prosody": 1, "fluency": 1}
    (best,) = re.findall(r"^judge_fluency_best .*$", capsys.readouterr().out, re.MULTILINE)
    assert best.split()[1:] == ["3.000±.000", "9.000±.000", "-", "-", "-", "8.000±.000"]
    assert "評律" in Path("metrics/report.html").read_text("utf-8")


def test_an_answer_without_a_line_says_nothing_of_the_judge(project):
    found = []
    for score_of_none in (0, 9):
        write_jsonl(
            "data/marks/marks.jsonl",
            [
                {"contestant": name, "poem": poem, "question": q, "scores": [mark]}
                for name, of_one in {"base": [1, score_of_none], "tuned": [3, 2]}.items()
                for poem, mark in enumerate(of_one, 1)
                for q in ("prosody", "fluency")
            ],
        )
        score.main()
        found.append(json.loads(Path("metrics/judge.json").read_text("utf-8"))["agreement"])
    assert found[0] == found[1] and found[0]


def test_without_a_judge_there_are_no_marks(project):
    score.main()
    assert json.loads(Path("metrics/judge.json").read_text("utf-8")) == {}
    assert "judge" not in Path("metrics/score.json").read_text("utf-8")


@pytest.mark.parametrize("text", ["", "[", "[1]", '[{"model": "m"}]'])
def test_a_list_of_contestants_that_is_broken(project, text):
    Path("data/answers/contestants.json").write_text(text)
    with pytest.raises(UserError, match=r"contestants\.json"):
        score.main()


def test_nothing_was_trimmed(project):
    write_chat("kimi", [TEST[0][1], "我不會\n作詩"])
    score.main()
    metrics = json.loads(Path("metrics/score.json").read_text("utf-8"))
    assert (metrics["kimi"]["raw"], metrics["kimi"]["trimmed"]) == (0.5, 0)
    assert "as written" not in Path("metrics/report.html").read_text("utf-8")


def test_plots(project):
    score.main()
    quality = rows_of("metrics/plots/quality.csv")
    assert [row["answers"] for row in quality] == [
        f"{key}: {name}" for key in HEADLINES for name in CONTESTANTS
    ]
    assert {"answers": "form: base", "share": "0.0"} in quality
    assert {"answers": "form: tuned", "share": "1.0"} in quality
    lines = {
        group: [row["share"] for row in rows_of(f"metrics/plots/lines/{group}.csv")]
        for group in SHOWN
    }
    assert lines["base"] == ["0.5000", "0.5000", *["0.0000"] * 8]
    assert lines["tuned"] == lines["reference"] == [*["0.0000"] * 2, "1.0000", *["0.0000"] * 7]


def rows_of(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_long_answers_share_the_last_bin(project):
    write_answers("base", ["山\n" * 9, "山\n" * 5000])
    score.main()
    assert rows_of("metrics/plots/lines/base.csv")[-1] == {"lines": "9+", "share": "1.0000"}


def test_the_terminal_shows_the_poems_and_no_escape_sequence(project, capsys):
    score.main()
    printed = capsys.readouterr().out
    assert "欲窮千里目，" in printed and "␛[2J" in printed and "(empty)" in printed
    assert "\x1b" not in printed
    assert max(map(len, printed.split("\n"))) <= 80


def test_the_report_shows_every_poem(project):
    score.main()
    page = Path("metrics/report.html").read_text(encoding="utf-8")
    assert all(couplet[:5] in page for couplet, _ in TEST)
    assert "\x1b" not in page


def test_where_poems_are_many_the_report_has_the_first_and_the_table_all(project, monkeypatch):
    monkeypatch.setattr(score, "REPORTED", 1)
    score.main()
    page = Path("metrics/report.html").read_text(encoding="utf-8")
    assert page.count("<article") == 1 and "The first 1 of 2;" in page
    assert len(rows_of("metrics/poems.csv")) == 2 * len(CONTESTANTS)


def test_twice_the_same_bytes(project):
    score.main()
    first = [Path("metrics", name).read_bytes() for name in OUTPUTS]
    score.main()
    assert [Path("metrics", name).read_bytes() for name in OUTPUTS] == first


def test_half_a_surrogate_pair_is_no_obstacle(project):
    Path("data/generated/base.jsonl").write_text(
        "".join(json.dumps({"input": couplet, "answer": "\ud800"}) + "\n" for couplet, _ in TEST)
    )
    score.main()
    assert json.loads(Path("metrics/score.json").read_text())["base"]["clean"] == 0


def test_too_few_answers(project):
    write_answers("tuned", TUNED[:1])
    with pytest.raises(
        UserError, match=r"tuned\.jsonl: 1 answers for the 2 poems of .*test\.jsonl"
    ):
        score.main()
    assert not Path("metrics/score.json").exists()


def test_answers_to_other_couplets(project):
    write_answers("base", BASE, couplets=[TEST[0][0], TRAIN[0][0]])
    with pytest.raises(UserError, match=r"base\.jsonl, row 2: answers another couplet"):
        score.main()


def test_rows_without_text(project):
    write_jsonl("data/generated/base.jsonl", [{"input": TEST[0][0], "answer": None}])
    with pytest.raises(UserError, match=r"base\.jsonl, row 1: no text under input and answer"):
        score.main()


def test_no_test_poems(project):
    write_jsonl("data/prepared/test.jsonl", [])
    with pytest.raises(UserError, match=r"test\.jsonl: no poems to score"):
        score.main()


def test_missing_answers(project):
    Path("data/generated/base.jsonl").unlink()
    with pytest.raises(UserError, match=r"base\.jsonl: no such file"):
        score.main()
