"""The card of a merged model, read back as the Hugging Face hub's own library reads it."""

import argparse
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from verse import params
from verse.cli import merge
from verse.cli.card import SAMPLES, licence, write_card
from verse.errors import UserError
from verse.files import write_jsonl, write_text
from verse.model import loading
from verse.poem import Poem
from verse.poems.contestants import CONTESTANTS
from verse.scoring.metrics import KEYS

P = params.read()
SCORE = {name: dict.fromkeys(KEYS, 0.5) for name in CONTESTANTS}
HOSTILE = "山\n```\n# 題\n---\n<script>alert(1)</script>\x1b[31m\u2028- 水"


def test_the_hub_reads_licence_base_and_metrics(tmp_path):
    file = tmp_path / "README.md"
    written = [Poem(f"聯{n}。", f"句{n}。") for n in range(9)]
    file.write_text(write_card(P, "續詩。\n聯。", SCORE, written), "utf-8")
    card = ModelCard.load(file)
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", "lzh", None)
    assert found == {key: SCORE["tuned"][key] for key in found}
    assert {"whole", "form", "rhyme"} <= found.keys()
    assert "\n    續詩。\n    聯。\n" in card.text
    assert f"聯{SAMPLES - 1}。" in card.text and f"聯{SAMPLES}。" not in card.text
    assert "rounded to 4 bits" in card.text

    changes = {"model": P.model.model_copy(update={"name": "some/one", "revision": "abc"})}
    other = write_card(P.model_copy(update=changes), "續", SCORE, [])
    assert "\nbase_model: some/one\n" in other and "\nlicense: other\n" in other
    assert "`some/one`, revision abc" in other


def test_paths_stay_at_home(tmp_path):
    (tmp_path / "base").mkdir()
    changes = {
        "model": P.model.model_copy(update={"name": str(tmp_path / "base")}),
        "data": P.data.model_copy(update={"source": str(tmp_path / "poems")}),
    }
    card = write_card(P.model_copy(update=changes), "續", {}, [])
    assert str(tmp_path) not in card and "`base`" in card and "own choice" in card
    assert "## Metrics" not in card and "## Samples" not in card


def test_what_a_model_wrote_is_text_alone():
    card = write_card(P, HOSTILE, SCORE, [Poem("聯。", HOSTILE)] * 2)
    _, front, body = card.split("---\n", 2)
    assert "山" not in front
    for line in body.splitlines():
        if any(mark in line for mark in ("```", "script", "# 題", "- 水", "[31m")):
            assert line.startswith("    ")
    assert "\x1b" not in card and "\u2028" not in card


CARDS = {
    "not UTF-8": "---\nlicense: 授\n---\n".encode("big5"),
    "bad YAML": b"---\nlicense: [mit\n---\n# x\n",
    "a tab": b"---\n\tlicense: mit\n---\n",
    "a list": b"---\n- license\n- mit\n---\n",
    "a text": b"---\nmit\n---\n",
    "a number": b"---\n5\n---\n",
    "a tag": b"---\nlicense: !!python/object/apply:os.system [touch hacked]\n---\n",
    "a date that is none": b"---\nlicense: mit\ndate: 2024-99-99\n---\n",
    "a licence that is a mapping": b"---\nlicense: {name: mit}\n---\n",
    "a licence that is a number": b"---\nlicense: 5\n---\n",
    "brackets": b"---\nlicense: " + b"[" * 3000 + b"\n---\n",
    "packed": b"\x1f\x8b\x08\x00",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("what", CARDS)
def test_a_base_models_card_that_cannot_be_read_is_named(tmp_path, what):
    (tmp_path / "README.md").write_bytes(CARDS[what])
    with pytest.raises(UserError, match=r"README\.md"):
        licence(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlicense: mit\nlanguage: [zh]\nnew: {a: 1}\n---", "mit"),
        ("---\r\nlicense: apache-2.0\r\n---\r\n", "apache-2.0"),
        ("\ufeff---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense:\n---\n", "other"),
        ("---\nlicense: [mit, other]\n---\n", "other"),
        ("---\n---\n", "other"),
        ("# a card without a head", "other"),
        ("", "other"),
    ],
)
def test_the_licence_of_a_base_models_card(tmp_path, text, name):
    (tmp_path / "README.md").write_bytes(text.encode())
    assert licence(tmp_path) == name
    assert (licence(tmp_path / "none"), licence(None)) == ("other", "other")


ROW = {
    "instruction": "續。",
    "input": "白日依山盡，黃河入海流。",
    "output": "欲窮千里目，更上一層樓。",
}
BESIDE = {
    "metrics/score.json": [
        "<<<<<<< HEAD\n{}",
        "[]",
        '{"tuned": {"whole": NaN}}',
        '{"tuned": 1}',
        "",
    ],
    "data/prepared/test.jsonl": ["[]", "{}", '{"input": 5}', "{", '"x"', "null", "\n"],
    "data/generated/tuned.jsonl": ["[]", '{"input": "x"}', "5", '{"input": "x", "answer": null}'],
}


@pytest.mark.parametrize(
    ("file", "content"), [(file, one) for file, many in BESIDE.items() for one in many]
)
def test_what_lies_beside_a_merge_is_read_before_the_weights(tmp_path, monkeypatch, file, content):
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("weights were read"))
    shutil.copy("params.yaml", tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mini").symlink_to(Path("models/mini").resolve())
    monkeypatch.chdir(tmp_path)
    write_jsonl("data/prepared/test.jsonl", [ROW])
    write_jsonl("data/generated/tuned.jsonl", [ROW | {"answer": "。"}])
    write_text("metrics/score.json", "{}")
    write_text(file, content)
    with pytest.raises(UserError, match=file):
        merge.main(argparse.Namespace())
    assert not Path("models/merged").exists()
