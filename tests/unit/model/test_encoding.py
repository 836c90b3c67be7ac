"""`verse.model.encoding`: from a folder or the hub, and one line for whatever is wrong."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sentencepiece
from tiny_models import settings
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BloomConfig, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from verse.errors import UserError
from verse.hub import check_reach
from verse.model.encoding import (
    affixes,
    check_lengths,
    encode_poems,
    encode_prompts,
    load_tokenizer,
    positions,
)

ROOT = Path(__file__).parents[3]


def build(adds_bos):
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def fault(name, **options):
    with pytest.raises(UserError) as error:
        load_tokenizer(settings(str(name), **options))
    message = str(error.value)
    assert message.startswith(f"model.name {str(name)!r}: ")
    return message


@pytest.mark.parametrize("wanted", [True, False])
def test_a_folder(tmp_path, monkeypatch, wanted):
    build(wanted).save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("base", "./base/", "~/base", str(tmp_path / "base")):
        tokenizer = load_tokenizer(settings(name))
        assert tokenizer.eos_token == "</s>"
        assert affixes(tokenizer) == ([0] if wanted else [], [])


def test_a_folder_with_a_sentencepiece_model_only(tmp_path):
    """As Llama 2 and its descendants came, before tokenizer.json."""
    poems = json.loads((ROOT / "data/embedded/train.json").read_text("utf-8"))[:1000]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([poem["input"] + poem["output"] for poem in poems]),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=4000,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
    )
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    config |= {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(settings(str(tmp_path)))
    text = "白日依山盡，黃河入海流。\n😀"
    ids = tokenizer(text)["input_ids"]
    assert affixes(tokenizer) == ([1], []) and tokenizer.eos_token_id == 2
    assert len(ids) > 10 and tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "models/x"])
def test_a_missing_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert "there is no such folder" in fault(name)


def test_a_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "no tokenizer in this folder" in fault(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[]", ""])
def test_a_folder_with_a_broken_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    assert "its tokenizer cannot be read" in fault(tmp_path)


def test_code_that_comes_with_a_model_is_not_run_unasked(tmp_path):
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    config = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert "set model.trust_remote_code to true" in fault(tmp_path)


class Hub(BaseHTTPRequestHandler):
    """Answers like huggingface.co does for models that cannot be had."""

    def do_HEAD(self):
        status, code = {
            "unknown": (401, "RepoNotFound"),
            "gated": (401, "GatedRepo"),
            "refused": (403, "GatedRepo"),
            "old": (404, "RevisionNotFound"),
        }[self.path.split("/")[2]]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


SCRIPT = """
import sys
from verse.errors import UserError
from tiny_models import settings
from verse.model.encoding import load_tokenizer
for name in sys.argv[1:]:
    try:
        load_tokenizer(settings(name, revision="v2"))
    except UserError as error:
        print(error)
"""


def ask_hub(tmp_path, *names, **environment):
    """What is said of each name. Its own process, since the hub's address is read on import."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HF_HOME": str(tmp_path)}
        | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_models_that_the_hub_does_not_give(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    names = ["org/unknown", "org/gated", "org/refused", "org/old", "no name!/x"]
    unknown, gated, refused, old, odd = ask_hub(tmp_path, *names, HF_ENDPOINT=endpoint)
    server.shutdown()
    assert "neither a folder nor a public model" in unknown
    assert "gated: accept its licence" in gated and "HF_TOKEN" in gated
    assert "gated: accept its licence" in refused
    assert "has no revision 'v2'" in old
    assert "neither a folder nor a public model" in odd


def test_a_revision_is_of_the_hub(tmp_path):
    check_reach(settings(str(tmp_path)), None)
    with pytest.raises(
        UserError, match=r"model\.revision: of the hub, and model\.name is a folder"
    ):
        check_reach(settings(str(tmp_path), revision="v2"), None)


def test_a_hub_that_cannot_be_reached(tmp_path):
    (message,) = ask_hub(tmp_path, "org/model", HF_HUB_OFFLINE="1")
    assert "not downloaded yet, and huggingface.co cannot be reached" in message


@pytest.mark.parametrize(
    ("config", "bound"),
    [
        (LlamaConfig(max_position_embeddings=512), 512),
        (GPT2Config(n_positions=32), 32),
        (BloomConfig(), None),
        (
            LlamaConfig(
                max_position_embeddings=512,
                rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            ),
            2048,
        ),
    ],
)
def test_how_far_a_model_reaches(config, bound):
    assert positions(config) == bound


def test_what_is_too_long_is_told_before_the_work():
    check_lengths([3, 8], 8)
    check_lengths([3, 5], 8, 3)
    check_lengths([10**9], None, 10**9)
    check_lengths([], 8)
    with pytest.raises(UserError, match="poem 2: 9 tokens are more than the model's 8 positions"):
        check_lengths([3, 9, 9], 8)
    with pytest.raises(UserError, match=r"max_new_tokens: 4 .* set it to 3 or less"):
        check_lengths([3, 5], 8, 4)
    with pytest.raises(UserError, match="poem 1: 8 tokens"):
        check_lengths([8], 8, 4)


@pytest.mark.parametrize(
    "text", ["黃河", "a", "白日\n", "🌙", "\x00", "，？", "日a", " ", "㐀", "\ud7ff"]
)
def test_a_tokenizer_that_fails_on_a_real_text(text):
    """It has no token for what it does not know: the characters of any probe may pass."""
    vocabulary = {c: i for i, c in enumerate(["<s>", "</s>", *"一白日依山盡，。"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<none>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    built = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert encode_prompts(built, ["白日依山盡"]) == [[3, 4, 5, 6, 7]]
    with pytest.raises(UserError, match="its tokenizer fails on a poem"):
        encode_prompts(built, ["白日", text])


def test_a_completion_that_merges_with_its_prompt_begins_with_no_blank():
    """Tokenizers like SentencePiece's put one before a text that stands alone."""
    characters = sorted(set("完成這首詩。\n白日依山盡，黃河入海流。「欲窮千里目」▁"))
    vocabulary = {t: i for i, t in enumerate(["<unk>", "</s>", *characters, "。「"])}
    built = Tokenizer(models.BPE(vocabulary, [("。", "「")], unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, unk_token="<unk>")
    [poem] = encode_poems(tokenizer, ["完成這首詩。"], ["「欲窮千里目。"], 1)
    assert tokenizer.convert_ids_to_tokens(poem.completion) == [*"「欲窮千里目。", "</s>"]
