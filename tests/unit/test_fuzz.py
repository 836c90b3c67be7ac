"""Any data file ends in prepared poems or in one line, and what fails leaves what was there."""

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stages import fetch, prepare
from verse.errors import UserError, printable
from verse.files import read_jsonl

ROOT = Path(__file__).parents[2]
LINES = ["白日依山盡", "黃河入海流", "欲窮千里目", "更上一層樓", "紅豆生南國", "春來發幾枝"]


@pytest.fixture(scope="module", autouse=True)
def repository(tmp_path_factory):
    """A working directory that takes its poems from poems.json, two of them for the tests."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("fuzz"))
    values = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    values["data"]["source"] = "poems.json"
    values["prepare"] |= {"test_poems": 1, "validation_poems": 1}
    values["model"]["template"] = "plain"
    Path("params.yaml").write_text(yaml.safe_dump(values), "utf-8")
    yield
    os.chdir(before)


VERSE = st.lists(st.sampled_from(LINES) | st.text(max_size=6), min_size=1, max_size=8).map(
    lambda lines: "".join(line + "，。"[number % 2] for number, line in enumerate(lines))
)
RECORDS = st.lists(
    st.fixed_dictionaries({"input": VERSE, "output": VERSE}, optional={"instruction": st.text()}),
    min_size=1,
    max_size=12,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["input", "output", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)


def encoded(value):
    return json.dumps(value).encode()


def as_lines(records):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode(
        "utf-8", "surrogatepass"
    )


@st.composite
def damaged(draw):
    """A good file of which a piece is gone, with another in its place."""
    content = as_lines(draw(RECORDS))
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, len(content)))
    return content[:start] + draw(st.binary(max_size=6)) + content[end:]


def written():
    return {
        str(path): path.read_bytes()
        for place in ("data/raw", "data/prepared", "metrics")
        for path in Path(place).rglob("*")
    }


def one_line(stage):
    """Whether a stage ends well; else it must say one line and leave its outputs alone."""
    before = written()
    try:
        stage.main()
        return True
    except UserError as error:
        assert printable(str(error)) and len(str(error)) < 2_000
        assert written() == before
        return False


POEMS = [
    {"input": "白日依山盡，黃河入海流。", "output": "欲窮千里目，更上一層樓。"},
    {"input": "床前明月光，疑是地上霜。", "output": "舉頭望明月，低頭思故鄉。"},
    {"input": "松下問童子，言師採藥去。", "output": "只在此山中，雲深不知處。"},
]


@given(st.binary() | JSON.map(encoded) | RECORDS.map(encoded) | RECORDS.map(as_lines) | damaged())
@example(encoded(POEMS))
@example(encoded(POEMS).replace(b'"', b"'"))
@example(b"\xef\xbb\xbf" + encoded(POEMS))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_file_is_poems_or_one_line(content):
    Path("poems.json").write_bytes(content)
    if one_line(fetch):
        raw = len(read_jsonl("data/raw/train.jsonl"))
        if one_line(prepare):
            counts = json.loads(Path("metrics/data.json").read_text("utf-8"))
            assert counts["read"] == {"train": raw, "test": 0}
            assert counts["kept"] + sum(counts["dropped"].values()) == raw
            for part in ("train", "validation", "test"):
                rows = read_jsonl(f"data/prepared/{part}.jsonl")
                assert len(rows) == counts[part]["poems"]


def test_a_good_file_gets_through():
    """The fuzzing above is not all of refusals."""
    Path("poems.json").write_bytes(encoded(POEMS))
    assert one_line(fetch) and one_line(prepare)
    Path("poems.json").write_bytes(encoded(POEMS[:2]))
    assert one_line(fetch) and not one_line(prepare), "no poem is left to train on"
