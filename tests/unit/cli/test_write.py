"""`verse write`, and the models it finds."""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from verse import params
from verse.cli import models, write
from verse.cli.models import find, load_models
from verse.cli.options import adjusted
from verse.errors import ParameterError, UserError
from verse.generation import candidates
from verse.poem import Poem
from verse.poems.lines import in_form
from verse.poems.sources import INSTRUCTION

COUPLET = "白日依山盡，黃河入海流。"
P = params.read()


@pytest.fixture(scope="module")
def both(adapter):
    return load_models(P, str(adapter), base=True)


@pytest.fixture
def verse(adapter, capsys, monkeypatch, both):
    """Run `verse write` with the made-up adapter; what it prints on both streams."""
    opened = {"tuned": both["tuned"]}, {"base": both["base"]}
    monkeypatch.setattr(models, "load_models", lambda *_, base, **__: opened[base])

    def verse(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        parser = argparse.ArgumentParser()
        write.add_options(parser)
        write.main(parser.parse_args(arguments))
        return capsys.readouterr()

    return verse


def rows(output):
    return [json.loads(line) for line in output.out.splitlines()]


@pytest.mark.parametrize("count", [1, 3])
def test_a_poem_is_the_one_that_the_pipeline_keeps(verse, both, count):
    model, drawn = both["tuned"], {}
    poem = Poem(COUPLET, instruction=INSTRUCTION)
    [kept] = candidates.finish(
        model.model,
        model.opening,
        [poem],
        model.opening.encode_prompts([poem]),
        P.decoding.model_copy(update={"candidates": count, "max_new_tokens": 16}),
        seed=P.seed,
        batch_size=1,
        drawn=drawn,
    )
    assert len({one.text for one in drawn.values()}) == count
    short = ("--candidates", str(count), "--max-new-tokens", "16")
    [row] = rows(verse(COUPLET, "--json", "--explain", *short))
    tokens = row.pop("tokens")
    assert row == {"input": COUPLET, "answer": kept.text, "seed": P.seed}
    written = model.tokenizer.decode([token["token"] for token in tokens], skip_special_tokens=True)
    assert written == kept.text


def test_of_several_candidates_the_best_is_kept_and_the_first_is_told(both, monkeypatch):
    told = []
    decoding = P.decoding.model_copy(update={"candidates": 3, "max_new_tokens": 6})
    monkeypatch.setattr(candidates, "eligible", lambda _, drawn: [drawn[2]])
    poem = Poem(COUPLET, instruction=INSTRUCTION)
    [kept] = both["tuned"].write([poem], decoding, 1, lambda *one: told.append(one))
    alone = decoding.model_copy(update={"candidates": 1})
    monkeypatch.undo()
    [first] = both["tuned"].write([poem], alone, 1)
    assert told[-1] == (0, first.text, len(first.tokens))
    assert kept.text != first.text
    assert "".join(kept.pieces) == kept.text == both["tuned"].text(kept.tokens)


def test_lines_are_answered_in_order_and_doubted_by_number(verse):
    lines = ["空山新雨後 天氣晚來秋", "白日依山尽，黄河入海流。", "空山新雨後，天氣晚來秋。"]
    output = verse("--json", "--max-new-tokens", "6", stdin="\n\n".join(lines))
    found = rows(output)
    assert [row["input"] for row in found] == [lines[2], lines[1], lines[2]]
    assert found[0] == found[2] != found[1]
    assert output.err == (
        "verse write: line 2: Simplified characters; what the model knows is traditional: "
        "白日依山盡，黃河入海流。\n"
    )


def test_samples_are_the_poems_of_the_next_seeds(verse):
    free = ("--json", "--temperature", "1.2", "--top-p", "1", "--max-new-tokens", "8")
    samples = rows(verse(COUPLET, *free, "--seed", "7", "--samples", "3"))
    alone = [rows(verse(COUPLET, *free, "--seed", str(seed)))[0] for seed in (7, 8, 9)]
    assert samples == alone
    assert len({row["answer"] for row in samples}) == 3
    with pytest.raises(UserError, match="--seed must be a whole number from 0 to 4294967295"):
        verse(COUPLET, *free, "--seed", "-1")
    last = rows(verse(COUPLET, *free, "--seed", str(2**32 - 1), "--samples", "2"))
    assert [row["seed"] for row in last] == [2**32 - 1, 0]


def test_temperature_0_samples_nothing(verse):
    cold = ("--json", "--temperature", "0", "--max-new-tokens", "16")
    cold = [rows(verse(COUPLET, *cold, "--seed", str(seed))) for seed in (1, 2)]
    assert cold[0][0]["answer"] == cold[1][0]["answer"]


def test_the_base_model_writes_something_else(verse):
    short = (COUPLET, "--json", "--max-new-tokens", "16")
    assert rows(verse(*short, "--base")) != rows(verse(*short))


def test_what_is_explained_agrees_with_what_was_written(verse):
    free = ("--temperature", "0.9", "--top-p", "0.9", "--max-new-tokens", "8")
    [row] = rows(verse(COUPLET, "--json", "--explain", *free))
    assert "".join(token["label"] for token in row["tokens"]) == row["answer"]
    for token in row["tokens"]:
        assert token["drawn"] > 0
        assert token["cut_by"] == ""
        assert len(token["likeliest"]) == 20
        shares = [other["model"] for other in token["likeliest"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(other["drawn"] for other in token["likeliest"]) <= 1 + 1e-9
        assert all((other["drawn"] == 0) == (other["cut_by"] != "") for other in token["likeliest"])
        assert 0 <= token["entropy_drawn"] <= token["entropy"] + 1e-9

    table = verse(COUPLET, "--explain", *free).out.split("\n\n")[1].splitlines()
    assert len(table) == 1 + len(row["tokens"])
    place = verse(COUPLET, "--explain", "3", *free).out.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in place[1:]] == [
        other["label"] for other in row["tokens"][2]["likeliest"]
    ]
    with pytest.raises(UserError, match="--explain 99: the answer has 8 tokens"):
        verse(COUPLET, "--explain", "99", *free)


def test_rules_that_no_token_may_break(verse):
    wild = ("--temperature", "3", "--top-k", "0", "--top-p", "1", "--json")
    wild = (*wild, "--max-new-tokens", "60")  # more than the longest poem has
    assert not in_form(COUPLET, rows(verse(COUPLET, *wild))[0]["answer"])
    [row] = rows(verse(COUPLET, *wild, "--constrain", "form,rhyme,tone", "--explain"))
    assert in_form(COUPLET, row["answer"])
    assert all(token["drawn"] > 0 and token["cut_by"] == "" for token in row["tokens"])
    cut = [other["cut_by"] for token in row["tokens"] for other in token["likeliest"]]
    assert "constrain" in cut
    with pytest.raises(ParameterError, match=r"options: decoding.constrain must be a list of form"):
        verse(COUPLET, "--constrain", "rhyme")


def test_a_poem_in_form_is_set_with_its_rhyme_and_what_it_breaks(verse, monkeypatch, both):
    text = "欲窮千里目，更上一層樓。"
    found = models.Written(text, [5, 1], [text, ""], 42)
    monkeypatch.setattr(models.LoadedModel, "write", lambda *_: [found])
    assert verse(COUPLET).out.splitlines() == [
        "白日依山盡，",
        "黃河入海流。",
        "欲窮千里目，",
        "更上一層樓。  韻",
        "五絕 · 押十一尤 · 合律 1.00",
        "",
    ]
    bad = "欲窮山河目，\x1b[31m"
    monkeypatch.setattr(
        models.LoadedModel, "write", lambda *_: [models.Written(bad, [5], [bad], 42)]
    )
    assert verse(COUPLET).out.splitlines()[2:] == ["欲窮山河目，␛[31m", "失格 · 雜字", ""]


def test_nothing_to_answer_is_one_line(verse):
    with pytest.raises(UserError, match="standard input holds no couplet"):
        verse(stdin=" \n")
    with pytest.raises(UserError, match="--samples must be at least 1"):
        verse(COUPLET, "--samples", "0")
    with pytest.raises(UserError, match="more than the model's 512 positions"):
        verse("山" * 600)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"top_p": 0.0}, "decoding.top_p must be"),
        ({"temperature": -1.0}, "decoding.temperature must be"),
        ({"top_k": -1}, "decoding.top_k must be"),
        ({"max_new_tokens": 0}, "decoding.max_new_tokens must be"),
    ],
)
def test_decoding_out_of_range_is_refused(changes, fault):
    with pytest.raises(ParameterError, match=f"options: {fault}"):
        adjusted(P, "options", **changes)


def test_a_character_of_several_tokens_is_the_piece_of_its_last(both):
    model = both["base"]
    tokens = model.tokenizer("山尽\n，", add_special_tokens=False)["input_ids"]
    end = model.tokenizer.eos_token_id
    assert len(tokens) == 6
    assert model.pieces([*tokens, end]) == ["山", "", "", "尽", "\n", "，", ""]
    assert [model.label(token) for token in (*tokens, end)] == [
        *("山", "<0xE5>", "<0xB0>", "<0xBD>", "↵", "，", "〔終〕")
    ]
    assert "".join(model.pieces(tokens[:3])) == model.text(tokens[:3])


def test_models_are_found_by_what_they_are_called(adapter, tmp_path, monkeypatch, capsys):
    with find(P, str(adapter)) as (settings, folder):
        assert (settings, folder) == (P.model, adapter)
    with find(P, "models/mini") as (settings, folder):
        assert (settings.name, settings.quantization, folder) == ("models/mini", "none", None)
    with pytest.raises(UserError, match="no model"), find(P, str(tmp_path)):
        pass
    with pytest.raises(UserError, match="leave out --base"):
        load_models(P, "models/mini", base=True, tuned=False)
    monkeypatch.setattr(models, "ADAPTER", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no adapter there yet: run dvc repro first"):
        load_models(P, None)
    monkeypatch.setattr(models, "ADAPTER", str(adapter))
    monkeypatch.setattr(models, "outdated_here", lambda stages: [f"{stages[0]}.seed"])
    load_models(P, None)
    said = f"{adapter}: older than train.seed in params.yaml: dvc repro\n"
    assert capsys.readouterr().err.endswith(said)
    with pytest.raises(UserError, match="no folder, no experiment and no commit"):
        find(P, "nothing-such").__enter__()


def test_the_adapter_of_a_commit_comes_from_dvc(adapter, tmp_path, monkeypatch):
    """An experiment is a commit to DVC."""
    home, run = tmp_path / "repository", subprocess.run
    (home / "models").mkdir(parents=True)
    (home / "models/adapter").symlink_to(adapter)
    (home / "params.yaml").write_text(Path("params.yaml").read_text("utf-8"), "utf-8")
    monkeypatch.chdir(home)
    bin = Path(sys.executable).parent
    (home / "models/adapter").unlink()
    run(["cp", "-r", adapter, "models/adapter"], check=True)
    run(["git", "init", "-q"], check=True)
    run([bin / "dvc", "init", "-q"], check=True)
    run([bin / "dvc", "add", "-q", "models/adapter"], check=True)
    run(["git", "add", "."], check=True)
    name = ("-c", "user.name=Li Bai", "-c", "user.email=li.bai@example.org")
    run(["git", *name, "commit", "-qm", "a state"], check=True)
    run(["rm", "-r", "models/adapter"], check=True)
    with find(P, "HEAD") as (settings, folder):
        assert settings.name == "models/mini"
        copied = (folder / "adapter_model.safetensors").read_bytes()
    assert copied == (adapter / "adapter_model.safetensors").read_bytes()
    assert not folder.exists()


@pytest.mark.parametrize(
    "arguments", [[""], [" "], ["", ""], ["\n"], ["\t"], ["\u3000"], ["\u00a0"], ["\u2028"]]
)
def test_an_empty_couplet_is_none(verse, arguments):
    with pytest.raises(UserError, match="give a couplet: verse write '白日依山盡，黃河入海流。'"):
        verse(*arguments)


@pytest.mark.parametrize("stdin", ["", "\n", " \n\t\n", "\u3000\n", "\ufeff"])
def test_no_couplet_on_standard_input_is_told(verse, stdin):
    with pytest.raises(UserError, match="standard input holds no couplet"):
        verse(stdin=stdin)
