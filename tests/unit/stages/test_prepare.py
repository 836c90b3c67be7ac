"""`stages.prepare`: from data/raw to data/prepared and metrics/data.json."""

import json
import os
import subprocess
import sys
from pathlib import Path

import opencc
import pytest
import yaml

from stages import prepare
from verse.errors import UserError
from verse.files import read_jsonl, write_jsonl
from verse.poems import dataset, sources
from verse.poems.sources import INSTRUCTION

ROOT = Path(__file__).parents[3]
PARTS = ("train", "validation", "test")


def poem(number, couplets=2):
    """A poem of characters of its own, in lines of five."""
    lines = ["".join(chr(0x4E00 + 40 * number + 5 * n + k) for k in range(5)) for n in range(8)]
    text = [line + "，。"[n % 2] for n, line in enumerate(lines)]
    return {
        "instruction": INSTRUCTION,
        "input": "".join(text[:2]),
        "output": "".join(text[2 : 2 * couplets]),
    }


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A working directory with ten training poems, seven of them good, and two test poems."""
    monkeypatch.chdir(tmp_path)
    holed = poem(20) | {"output": "□□□□□，□□□□□。"}
    kin = poem(30) | {"input": poem(8)["input"]}
    train = [poem(0), poem(1, couplets=4), *map(poem, range(2, 7)), poem(3), holed, kin]
    write_jsonl("data/raw/train.jsonl", train)
    write_jsonl("data/raw/test.jsonl", [poem(9, couplets=3), poem(8)])
    choose()
    return tmp_path


def choose(seed=42, **values):
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    params["seed"] = seed
    params["prepare"] |= {"test_poems": 3, "validation_poems": 2, "max_train": None} | values
    Path("params.yaml").write_text(yaml.safe_dump(params), "utf-8")


def prepared():
    return {part: read_jsonl(f"data/prepared/{part}.jsonl") for part in PARTS}


def metrics():
    return json.loads(Path("metrics/data.json").read_text("utf-8"))


def test_the_parts_and_their_rows():
    prepare.main()
    assert sorted(p.name for p in Path("data/prepared").iterdir()) == [
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    parts = prepared()
    assert {part: len(rows) for part, rows in parts.items()} == {
        "train": 4,
        "validation": 2,
        "test": 3,
    }
    inputs = [row["input"] for rows in parts.values() for row in rows]
    assert sorted(inputs) == sorted(poem(n)["input"] for n in (*range(7), 8, 9))
    assert [row["input"] for row in parts["test"]][:2] == [poem(9)["input"], poem(8)["input"]]
    assert len(parts["test"][0]["output"]) == 24, "a given test poem may be longer"
    for rows in parts.values():
        for row in rows:
            assert list(row) == ["instruction", "input", "output"]
            assert row["instruction"] == INSTRUCTION


def test_the_counts():
    prepare.main()
    counts = metrics()
    assert counts["read"] == {"train": 10, "test": 2}
    assert {r: n for r, n in counts["dropped"].items() if n} == {
        "lacuna": 1,
        "duplicate": 1,
        "shared_line": 1,
    }
    assert counts["kept"] == 9 == 12 - sum(counts["dropped"].values())
    assert [counts[part]["poems"] for part in PARTS] == [4, 2, 3]
    forms = ("五絕", "五律", "other")
    assert [sum(counts[p][f] for p in PARTS) for f in forms] == [7, 1, 1]
    assert sum(counts[p]["characters"] for p in PARTS) == 7 * 20 + 40 + 30


def test_the_table(capsys):
    choose(max_train=3)
    prepare.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["五絕", "七絕", "五律", "七律", "other", "poems", "characters"]
    for line, part in zip(lines[1:], PARTS, strict=False):
        name, *numbers = line.split()
        counts = metrics()[part]
        columns = ("五絕", "七絕", "五律", "七律", "other", "poems", "characters")
        assert (name, numbers) == (part, [str(counts[column]) for column in columns])
    assert lines[4] == "dropped: 1 lacuna, 1 duplicate, 1 shared_line, 1 over_max_train"


def test_a_source_with_more_test_poems_or_fewer_is_told(capsys):
    prepare.main()
    assert capsys.readouterr().out.endswith("prepare.test_poems: 3, where the source has 2\n")
    choose(test_poems=1)
    prepare.main()
    assert capsys.readouterr().out.endswith("prepare.test_poems: 1, where the source has 2\n")
    assert len(prepared()["test"]) == 1 and metrics()["dropped"]["over_test_poems"] == 1
    choose(test_poems=2)
    prepare.main()
    assert "prepare.test_poems" not in capsys.readouterr().out


def test_the_same_poems_give_the_same_bytes_in_any_order():
    def written():
        files = [*sorted(Path("data/prepared").iterdir()), Path("metrics/data.json")]
        return [path.read_bytes() for path in files]

    prepare.main()
    first = written()
    write_jsonl("data/raw/train.jsonl", reversed(read_jsonl("data/raw/train.jsonl")))
    prepare.main()
    assert written() == first
    choose(seed=7)
    prepare.main()
    assert written() != first


def test_a_failure_leaves_what_was_there():
    prepare.main()
    before, counts = prepared(), metrics()
    choose(test_poems=300)
    with pytest.raises(UserError, match="no poem is left to train on: of 8 usable ones"):
        prepare.main()
    assert (prepared(), metrics()) == (before, counts)


def test_without_fetch_is_one_clear_line(repository):
    Path("data/raw/train.jsonl").unlink()
    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "prepare: data/raw/train.jsonl: no such file\n"


def test_a_wrong_parameter_is_one_line_and_exit_status_2():
    choose(test_poems=-1)
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("prepare: params.yaml: prepare.test_poems ")
    assert done.stderr.endswith("-1\n") and done.stderr.count("\n") == 1
    assert not Path("data/prepared").exists()


def test_a_wrong_parameter_is_told_before_pandas_is_loaded():
    choose(test_poems=-1)
    loaded = run("-X", "importtime").stderr
    assert "verse.params" in loaded and "pandas" not in loaded


def run(*options):
    return subprocess.run(
        [sys.executable, *options, "-m", "stages.prepare"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_homeworks_poems():
    if "VERSE_HW5" not in os.environ:
        pytest.skip("needs the homework's three files: set VERSE_HW5 to their folder")
    train, test = sources.read_folder(Path(os.environ["VERSE_HW5"]))
    write_jsonl("data/raw/train.jsonl", (poem.row() for poem in train))
    write_jsonl("data/raw/test.jsonl", (poem.row() for poem in test))
    choose(test_poems=300, validation_poems=100)
    prepare.main()
    counts, parts = metrics(), prepared()
    assert counts["read"] == {"train": 5001, "test": 15}
    assert {reason: count for reason, count in counts["dropped"].items() if count} == {
        "lacuna": 1,
        "private_use": 1,
        "couplet": 4,
        "duplicate": 39,
        "shared_line": 33,
    }
    sizes = {"train": 4538, "validation": 100, "test": 300}
    assert {part: len(rows) for part, rows in parts.items()} == sizes
    assert counts["kept"] == 4938
    assert [row["input"] for row in parts["test"][:15]] == [poem.couplet for poem in test]


POEMS = [
    ("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"),
    ("空山不見人，但聞人語響。", "返景入深林，復照青苔上。"),
    ("移舟泊煙渚，日暮客愁新。", "野曠天低樹，江清月近人。"),
    ("千山鳥飛絕，萬徑人蹤滅。", "孤舟簑笠翁，獨釣寒江雪。"),
    ("床前明月光，疑是地上霜。", "舉頭望明月，低頭思故鄉。"),
    ("春眠不覺曉，處處聞啼鳥。", "夜來風雨聲，花落知多少。"),
]


def in_script(name, count=6):
    """The six poems, so many of them in another script of OpenCC's."""
    convert = opencc.OpenCC(name).convert
    for number, texts in enumerate(POEMS):
        couplet, rest = map(convert, texts) if number < count else texts
        yield {"instruction": INSTRUCTION, "input": couplet, "output": rest}


@pytest.mark.parametrize(
    ("script", "count", "told"),
    [
        ("t2s", 6, True),
        ("t2s", 3, True),
        ("t2s", 1, True),
        ("t2jp", 6, True),
        ("t2jp", 3, True),
        ("t2tw", 6, False),
        ("t2hk", 6, False),
        ("s2t", 6, False),
        ("t2s", 0, False),
    ],
)
def test_simplified_poems_are_told_and_counted(capsys, script, count, told):
    write_jsonl("data/raw/train.jsonl", in_script(script, count))
    write_jsonl("data/raw/test.jsonl", [])
    choose(test_poems=1, validation_poems=1)
    prepare.main()
    line = capsys.readouterr().err
    share = metrics()["strange"]["simplified"]
    assert (share > 0.01) is told is bool(line)
    if told:
        assert line.startswith(f"prepare: {share:.1%} of the characters are simplified and ")
        assert "opencc -c s2t" in line and line.count("\n") == 1


def test_characters_in_no_book_of_rhymes_are_told(capsys):
    strange = {
        "instruction": "",
        "input": "㐀㐁㐂㐃㐄，㐅㐆㐇㐈㐉。",
        "output": "㐊㐋㐌㐍㐎，㐏㐐㐑㐒㐓。",
    }
    write_jsonl("data/raw/train.jsonl", [*in_script("s2t"), strange])
    choose(test_poems=1, validation_poems=1)
    prepare.main()
    assert "in no book of rhymes" in capsys.readouterr().err
    assert metrics()["strange"]["unrhymed"] > 0.05


def test_the_embedded_poems_are_as_the_metrics_expect():
    every = json.loads((ROOT / "data/embedded/train.json").read_text("utf-8"))
    poems, _ = dataset.clean(sources.checked(row, "", 1) for row in every)
    assert all(share < prepare.STRANGE for share in dataset.strange(poems).values())


HOLED = [
    {"input": "□□□□□，□□□□□。", "output": "a，b。"},
    {"input": "白日依山盡", "output": "欲窮千里目，更上一層樓。"},
    {"input": "白日依山盡，黃河入海流。", "output": "欲窮千里目。"},
    {"input": "白日依山盡，黃河入海流。", "output": "(注)欲窮千里，更上一層樓。"},
    {"input": "白日依山，黃河入海。", "output": "欲窮千里，更上一層。"},
    {"input": "\ue000日依山盡，黃河入海流。", "output": "欲窮千里目，更上一層樓。"},
    {"input": "", "output": ""},
]


@pytest.mark.parametrize(
    ("good", "bad", "most", "stops"),
    [
        *((6, 6, 0.5, False), (6, 7, 0.5, True), (6, 7, 0.6, False), (6, 1, 0, True)),
        *((6, 0, 0, False), (6, 7, 1, False), (3, 7, 0.69, True), (3, 7, 0.7, False)),
        (6, 2, 0.2, True),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_too_many_poems_of_no_use_stop_the_stage(part, good, bad, most, stops):
    """In either file: a test set that is left out would be made up from training poems."""
    rows = [{"instruction": ""} | row for row in HOLED]
    mixed = [*list(in_script("s2t"))[:good], *rows[:bad]]
    write_jsonl("data/raw/train.jsonl", in_script("s2t"))
    write_jsonl(f"data/raw/{part}.jsonl", mixed)
    choose(test_poems=1, validation_poems=1, max_dropped=most)
    if not stops:
        prepare.main()
        return
    with pytest.raises(UserError, match=f"{part}.jsonl: {bad} of {good + bad} poems are of no use"):
        prepare.main()
    assert not Path("data/prepared").exists()


def test_poems_that_stand_there_twice_are_of_use():
    write_jsonl("data/raw/train.jsonl", [*in_script("s2t")] * 9)
    choose(test_poems=1, validation_poems=1)
    prepare.main()
    assert metrics()["dropped"]["duplicate"] == 48
