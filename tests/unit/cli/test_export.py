"""`verse export gguf`: what the converter is told, and what comes of its failures.

The converter itself is not here: it is stood in for.
"""

import argparse
import io
import json
import sys
import tarfile

import pytest
from safetensors.torch import load_file
from tiny_models import byte_pairs, moved
from transformers import AutoTokenizer

from verse import params, paths
from verse.cli import export, merge
from verse.errors import UserError
from verse.model import encoding
from verse.model.prompts import prompt_writer
from verse.poem import Poem
from verse.poems.sources import INSTRUCTION

P = params.read()
COUPLET = "國破山河在，城春草木深。"


@pytest.mark.parametrize("template", ["plain", "homework", "chat"])
def test_a_chat_with_a_couplet_alone_is_the_prompt(tmp_path, template):
    tokenizer = AutoTokenizer.from_pretrained("models/mini")
    tokenizer.chat_template = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}"
    p = P.model_copy(update={"model": P.model.model_copy(update={"template": template})})
    prompt = prompt_writer(template, tokenizer)(Poem(COUPLET, instruction=INSTRUCTION))
    before, after = export.around_couplet(p, tokenizer)
    assert before + COUPLET + after == prompt
    tokenizer.save_pretrained(tmp_path)
    export.describe(tokenizer, tmp_path, before, after)
    told = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": COUPLET}]
    assert told.apply_chat_template(chat, tokenize=False) == prompt
    asked = export.modelfile(p, "x.gguf", before, after).split('"""')[1]
    assert asked.replace("{{ .Prompt }}", COUPLET) == prompt


def test_only_a_tokenizer_that_begins_with_a_space_says_so(tmp_path):
    for tokenizer in (AutoTokenizer.from_pretrained("models/mini"), byte_pairs()):
        tokenizer.save_pretrained(tmp_path)
        export.describe(tokenizer, tmp_path, "", "")
        config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
        assert config["add_prefix_space"] is False


@pytest.mark.parametrize("content", ["[]", "5", "{", "", "null", "\ufeff"])
def test_a_tokenizers_config_that_is_none_is_named(tmp_path, content):
    (tmp_path / "tokenizer_config.json").write_text(content, "utf-8")
    with pytest.raises(UserError, match=r"tokenizer_config\.json.*: run verse export gguf again"):
        export.describe(byte_pairs(), tmp_path, "", "")


def test_the_decoding_is_that_of_the_parameters():
    settings = export.modelfile(P, "x.gguf", "a", "b").splitlines()
    assert settings[0] == "FROM ./x.gguf"
    assert f"PARAMETER temperature {P.decoding.temperature}" in settings
    greedy = P.model_copy(update={"decoding": P.decoding.model_copy(update={"do_sample": False})})
    assert "PARAMETER temperature 0" in export.modelfile(greedy, "x.gguf", "a", "b").splitlines()


def test_the_converter_is_fetched_once_and_nothing_else_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "cache_dir", lambda: tmp_path)
    calls = []

    def pip(*command):
        calls.append(command)
        folder = command[command.index("--dest") + 1]
        with tarfile.open(f"{folder}/llama_cpp_python-1.tar.gz", "w:gz") as packed:
            for name in (
                "vendor/llama.cpp/convert_hf_to_gguf.py",
                "vendor/llama.cpp/conversion/base.py",
                "vendor/llama.cpp/gguf-py/gguf/__init__.py",
                "vendor/llama.cpp/src/llama.cpp",
                "setup.py",
            ):
                member = tarfile.TarInfo(f"llama_cpp_python-1/{name}")
                member.size = 2
                packed.addfile(member, io.BytesIO(b"1\n"))

    monkeypatch.setattr(export, "run", pip)
    program = export.converter()
    assert program == export.converter() and len(calls) == 1
    assert "--require-hashes" in calls[0]
    files = [str(f.relative_to(program.parent)) for f in program.parent.rglob("*") if f.is_file()]
    assert sorted(files) == [
        "conversion/base.py",
        "convert_hf_to_gguf.py",
        "gguf-py/gguf/__init__.py",
    ]


def test_a_program_that_fails_is_a_line():
    with pytest.raises(UserError, match="failed: it cannot"):
        export.run(sys.executable, "-c", "import sys; sys.exit('first\\nit cannot')")


ALL = {"no_repeat_ngram_size": 3, "candidates": 4, "constrain": ["form"], "num_beams": 2}
NONE = {"no_repeat_ngram_size": 0, "candidates": 1, "constrain": [], "num_beams": 1}


@pytest.mark.parametrize(("gap", "changes"), [(0, NONE), (10, ALL)])
def test_the_command_from_adapter_to_files(gap, changes, adapter, tmp_path, monkeypatch, capsys):
    tokenizer = AutoTokenizer.from_pretrained("models/mini")
    last = max(tokenizer.get_vocab().values()) + gap
    tokenizer = moved(tokenizer, tokenizer.convert_ids_to_tokens(last - gap), last)
    monkeypatch.setattr(encoding, "load_tokenizer", lambda *_: tokenizer)
    monkeypatch.setattr(paths, "ADAPTER", str(adapter))
    monkeypatch.setattr(paths, "MERGED", str(tmp_path / "merged"))
    monkeypatch.setattr(export, "TO", tmp_path / "gguf")
    monkeypatch.setattr(merge, "outdated_here", lambda: ["a", "b"])
    other = P.model.model_copy(update={"name": "another/model"})  # not what it was trained on
    decoding = P.decoding.model_copy(update=changes)
    changed = P.model_copy(update={"model": other, "decoding": decoding})
    monkeypatch.setattr(params, "read", lambda: changed)
    monkeypatch.setenv("PATH", "/nowhere")  # no llama-quantize
    program = tmp_path / "convert.py"
    monkeypatch.setattr(export, "converter", lambda: program)
    program.write_text(
        "import sys, shutil; assert sys.argv[2::2] == ['--outfile', '--outtype']\n"
        "shutil.copy(sys.argv[1] + '/model.safetensors', sys.argv[3])\n"
    )
    export.main(argparse.Namespace(format="gguf"))
    told = capsys.readouterr().out
    assert "Modelfile, verse-f16.gguf" in told and "no 4 bits" in told
    lost = f"decoding: Ollama has no {', '.join(ALL)}: it writes other poems"
    assert (lost in told) is (changes is ALL) is ("Ollama has no" in told)
    rows = load_file(tmp_path / "gguf/verse-f16.gguf")["model.embed_tokens.weight"].shape[0]
    assert rows == last + 1  # no padding behind them

    card = (tmp_path / "merged/README.md").read_text("utf-8")
    assert "`mini`" in card and "Decoding:" in card and "Epochs" not in card
    assert "no scores in the card, which are older than a, b: dvc repro\n" in told

    program.write_text("raise SystemExit('it cannot')")
    with pytest.raises(UserError, match="it cannot"):
        export.main(argparse.Namespace(format="gguf"))
    assert (tmp_path / "gguf/verse-f16.gguf").exists()
