"""The card of a merged model, read back as the Hugging Face hub's own library reads it."""

from huggingface_hub import ModelCard

from verse import params
from verse.cli.card import SAMPLES, write_card
from verse.poems.contestants import CONTESTANTS
from verse.scoring.metrics import KEYS

P = params.read()
SCORE = {name: dict.fromkeys(KEYS, 0.5) for name in CONTESTANTS}
HOSTILE = "山\n```\n# 題\n---\n<script>alert(1)</script>\x1b[31m\u2028- 水"


def test_the_hub_reads_licence_base_and_metrics(tmp_path):
    file = tmp_path / "README.md"
    written = [{"input": f"聯{n}。", "answer": f"句{n}。"} for n in range(9)]
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
    card = write_card(P, HOSTILE, SCORE, [{"input": "聯。", "answer": HOSTILE}] * 2)
    _, front, body = card.split("---\n", 2)
    assert "山" not in front
    for line in body.splitlines():
        if any(mark in line for mark in ("```", "script", "# 題", "- 水", "[31m")):
            assert line.startswith("    ")
    assert "\x1b" not in card and "\u2028" not in card
