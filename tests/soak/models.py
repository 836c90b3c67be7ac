"""Wrong models and adapters by the hundred: none generates unless it writes what the intact does.

    make soak

Each is a copy of a tiny model, or of its adapter, with one thing wrong: a tensor, a key of its
config, a file, an index, a tokenizer. Those that get through `generate` must write the intact one's
bytes, and a model that is refused there is refused in training.
"""

import json
import math
import os
import pickle
import random
import shutil

import pytest
import torch
from clones import change
from forked import cache, is_one_line, outputs
from safetensors.torch import load_file, save_file
from tiny_models import build, byte_pairs
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SHAPES = {"llama": "llama", "tied": "llama, tied, grouped queries"}
TOTALS = {
    "wrong models": 0,
    "wrong adapters": 0,
    "refused": 0,
    "no worse for it": 0,
    "another model": 0,
    "trained": 0,
}

# A folder in which one of these was changed is another model, and a sound one: nothing in it
# says that its weights were trained with another number. A removed one counts as its default.
FREE = {
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
}
FREE_ADAPTER = {"lora_alpha", "use_rslora"}


def other_values(value):
    """What a config may say in a value's place."""
    yield from (None, "nonsense", [])
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value * 2, value // 2, value + 1, -1)


def tensors(folder):
    """Each tensor dropped, reshaped, renamed, or with a number that is none."""
    (file,) = folder.glob("*model.safetensors")
    weights = load_file(file)
    chance = random.Random(0)

    def saved(changed):
        return lambda: save_file(changed, file, metadata={"format": "pt"})

    for name, weight in weights.items():
        rest = {key: value for key, value in weights.items() if key != name}
        yield f"{name} dropped", saved(rest)
        yield f"{name} renamed", saved(rest | {f"{name}x": weight})
        yield f"{name} cut", saved(rest | {name: weight[: len(weight) // 2].clone()})
        flat = weight.flatten().clone()
        flat[chance.randrange(len(flat))] = chance.choice([math.nan, math.inf, -math.inf])
        yield f"{name} with a number that is none", saved(rest | {name: flat.view(weight.shape)})
    yield "half of all dropped", saved(dict(list(weights.items())[::2]))
    yield "all as whole numbers", saved({k: v.to(torch.int8) for k, v in weights.items()})
    yield "one more", saved(weights | {"model.layers.2.mlp.up_proj.weight": torch.zeros(128, 64)})
    yield "huge", saved({k: v * 3e38 for k, v in weights.items()})


def configs(folder):
    """Each key of the config removed or changed."""
    file = folder / "config.json"
    yield from keys(file)
    config = json.loads(file.read_text("utf-8"))
    for key, value in {
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "is_encoder_decoder": True,
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
    }.items():
        spoilt = json.dumps(config | {key: value})
        yield f"{key} -> {value!r}", lambda spoilt=spoilt: file.write_text(spoilt, "utf-8")


def keys(file):
    """Each key of a JSON file removed or changed."""
    config = json.loads(file.read_text("utf-8"))

    def saved(changed):
        return lambda: file.write_text(json.dumps(changed), "utf-8")

    for key, value in config.items():
        yield f"{key} removed", saved({k: v for k, v in config.items() if k != key})
        for other in other_values(value):
            if other != value or type(other) is not type(value):
                yield f"{key} {value!r} -> {other!r}", saved(config | {key: other})


def files(folder):
    """Files cut, damaged, missing, or none."""
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        file = folder / name
        content = file.read_bytes()
        for part in (0, 1, 9, len(content) // 2, len(content) - 1):
            yield f"{name} cut at {part}", lambda f=file, c=content, n=part: f.write_bytes(c[:n])
        yield f"{name} of noise", lambda f=file: f.write_bytes(b"\x93" * 5000)
        yield f"{name} a pipe", lambda f=file: (f.unlink(), os.mkfifo(f))
        yield f"{name} a link to nothing", lambda f=file: (f.unlink(), f.symlink_to("nowhere"))
        if name != "tokenizer_config.json":
            yield f"no {name}", file.unlink
    for place in (0, 3, 20, 200):

        def flip(place=place):
            content = bytearray((folder / "model.safetensors").read_bytes())
            content[place] ^= 0x55
            (folder / "model.safetensors").write_bytes(content)

        yield f"a bit of the header at {place}", flip


def kinds(folder):
    """Models that are none of the causal kind, and one with few positions."""
    size = {"vocab_size": 400}
    bart = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    for name, model in {
        "BART": lambda: BartForConditionalGeneration(BartConfig(**size, **bart)),
        "BERT": lambda: BertForMaskedLM(BertConfig(**size, hidden_size=36, num_hidden_layers=1)),
        "T5": lambda: T5ForConditionalGeneration(T5Config(**size, d_model=32, num_layers=1)),
        "GPT-2 of 16 positions": lambda: GPT2LMHeadModel(
            GPT2Config(**size, n_embd=24, n_layer=1, n_positions=16, bos_token_id=0, eos_token_id=1)
        ),
    }.items():

        def put(model=model):
            shutil.rmtree(folder)
            model().save_pretrained(folder)
            byte_pairs().save_pretrained(folder)

        yield name, put


def shards(folder):
    """An index that is none, or names what is not there, is no safetensors or lies elsewhere."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    part = "model-00001-of-00001.safetensors"
    names = dict.fromkeys(load_file(whole), part)
    first = next(iter(names))

    def put(content):
        def spoil():
            text = content if isinstance(content, str) else json.dumps(content)
            shutil.copy(whole, folder.parent / "outside.safetensors")
            whole.rename(folder / part)
            index.write_text(text, "utf-8")

        return spoil

    rest = {name: file for name, file in names.items() if name != first}
    yield "no shard of that name", put({"weight_map": dict.fromkeys(names, "other.safetensors")})
    yield "one tensor elsewhere", put({"weight_map": names | {first: "other.safetensors"}})
    yield "one tensor left out", put({"weight_map": rest})
    yield "one tensor more", put({"weight_map": names | {"model.more.weight": part}})
    yield "a shard outside", put({"weight_map": dict.fromkeys(names, "../outside.safetensors")})
    yield "a pickle", put({"weight_map": dict.fromkeys(names, "pytorch_model-00001.bin")})
    yield "the folder itself", put({"weight_map": dict.fromkeys(names, ".")})
    yield "the index itself", put({"weight_map": dict.fromkeys(names, index.name)})
    yield "numbers for names", put({"weight_map": dict.fromkeys(names, 5)})
    yield "a list of names", put({"weight_map": [*names]})
    yield "no tensor", put({"weight_map": {}})
    yield "no map", put({"metadata": {"total_size": 1}})
    yield "a list", put([])
    yield "no JSON", put("{")
    yield "nothing", put("")


def strangers(folder):
    """Pointers of git-lfs, pickles, tokenizers of other models, ids of tokens that are none."""
    weights = folder / "model.safetensors"
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    for file in [*folder.iterdir()]:
        yield f"{file.name} a pointer", lambda f=file: f.write_text(pointer)
    bare = pickle.dumps({"model.embed_tokens.weight": 1})
    yield "a pickle as safetensors", lambda: weights.write_bytes(bare)
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"):

        def pickled(name=name):
            torch.save(load_file(weights), folder / name)
            weights.unlink()

        yield f"{name} alone", pickled
    for count in (60, 399, 400, 401, 5000):

        def other(count=count):
            tokens = ["<s>", "</s>", "<unk>", *map(chr, range(0x4E00, 0x4E00 + count - 3))]
            backend = Tokenizer(WordLevel({t: i for i, t in enumerate(tokens)}, "<unk>"))
            backend.pre_tokenizer = Split("", "isolated")
            PreTrainedTokenizerFast(
                tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
            ).save_pretrained(folder)

        yield f"a tokenizer of {count} characters", other
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    for key in ("bos_token", "eos_token"):
        for value in (None, 5, "", [], "none of its tokens"):
            spoilt = json.dumps(tokenizer | {key: value})
            file = folder / "tokenizer_config.json"
            yield f"{key} {value!r}", lambda f=file, text=spoilt: f.write_text(text, "utf-8")
    config = json.loads((folder / "generation_config.json").read_text("utf-8"))
    for value in (-1, 400, 10**9, "1", [], [1, 400], 1.5, {}):
        spoilt = json.dumps(config | {"eos_token_id": value})
        file = folder / "generation_config.json"
        yield f"eos_token_id {value!r}", lambda f=file, text=spoilt: f.write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("shape", "make"),
    [
        ("llama", tensors),
        ("llama", shards),
        ("llama", strangers),
        ("llama", files),
        ("llama", kinds),
        ("tied", configs),
    ],
)
def test_a_wrong_model(stages, whole, tmp_path, shape, make):
    work = tmp_path / "work"
    shutil.copytree(whole, work, symlinks=True)
    shutil.rmtree(work / "base")
    build(SHAPES[shape], work / "base")
    assert stages.run("baseline", work, env=cache(work)).status == 0
    right = (work / "data/generated/base.jsonl").read_bytes()
    shutil.copytree(work / "base", tmp_path / "intact")
    change(work / "params.yaml", {"model.name": "wrong"})

    before, short = outputs(work), []
    shutil.copytree(tmp_path / "intact", work / "wrong")
    for number, (what, spoil) in enumerate(list(make(work / "wrong"))):
        shutil.rmtree(work / "wrong")
        shutil.copytree(tmp_path / "intact", work / "wrong")
        spoil()
        TOTALS["wrong models"] += 1
        ended = stages.run("baseline", work, env=cache(work))
        written = (work / "data/generated/base.jsonl").read_bytes()
        if ended.status == 0:
            kind = "no worse for it" if written == right else "another model"
            TOTALS[kind] += 1
            if kind == "another model" and what.split()[0] not in FREE:
                short.append(f"{what}: another model")
            (work / "data/generated/base.jsonl").write_bytes(right)
            continue
        TOTALS["refused"] += 1
        if not is_one_line(ended) or outputs(work) != before:
            short.append(f"{what}: {ended}")
        elif number % 6 == 0:
            TOTALS["trained"] += 1
            ended = stages.run("train", work, env=cache(work))
            if not is_one_line(ended) or outputs(work) != before:
                short.append(f"{what}, in training: {ended}")
    assert not short, "\n".join(short)


@pytest.mark.parametrize(
    "make", [tensors, lambda folder: keys(folder / "adapter_config.json")], ids=["tensors", "keys"]
)
def test_a_wrong_adapter(stages, whole, tmp_path, make):
    work = tmp_path / "work"
    shutil.copytree(whole, work, symlinks=True)
    answers, adapter = work / "data/generated/tuned.jsonl", work / "models/adapter"
    right = answers.read_bytes()
    shutil.copytree(adapter, tmp_path / "intact")

    def others():
        return {name: one for name, one in outputs(work).items() if "models/" not in name}

    before, short = others(), []
    for what, spoil in list(make(adapter)):
        shutil.rmtree(adapter)
        shutil.copytree(tmp_path / "intact", adapter)
        spoil()
        TOTALS["wrong adapters"] += 1
        ended = stages.run("generate", work, env=cache(work))
        if ended.status == 0:
            kind = "no worse for it" if answers.read_bytes() == right else "another model"
            TOTALS[kind] += 1
            if kind == "another model" and what.split()[0] not in FREE_ADAPTER:
                short.append(f"{what}: another adapter")
            answers.write_bytes(right)
            before = others()  # results.txt too
            continue
        TOTALS["refused"] += 1
        if not is_one_line(ended) or others() != before:
            short.append(f"{what}: {ended}")
    assert not short, "\n".join(short)


def test_these_are_many():
    """The last test: what has been tried is no less than was promised."""
    assert TOTALS["wrong models"] >= 300, TOTALS
