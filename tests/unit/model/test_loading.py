"""`verse.model.loading`: loading, precision, NF4."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file
from tiny_architectures import tiny_config
from tiny_models import SHAPES, build, byte_pairs, training
from tiny_models import settings as tiny_settings
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    FalconConfig,
    GPT2Config,
    GPTNeoConfig,
    Llama4ForConditionalGeneration,
    MixtralConfig,
    OPTConfig,
    Qwen3VLForConditionalGeneration,
)

from verse.errors import UserError
from verse.model import adapters, loading, sharding
from verse.model.layers import linear_layers, never_packed, to_main_memory
from verse.model.memory import sizes

CPU, ROOT = torch.device("cpu"), Path(__file__).parents[3]


def fault(settings):
    with pytest.raises(UserError) as error:
        loading.load_model(settings, CPU, torch.float32)
    message = str(error.value)
    assert message.startswith(f"model.name {settings.name!r}: ")
    return message


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_touches_the_linear_layers_but_the_output(shape, tmp_path):
    settings = build(shape, tmp_path)
    exact = loading.load_model(
        settings.model_copy(update={"quantization": "none"}), CPU, torch.float32
    )
    rounded = loading.load_model(settings, CPU, torch.float32)
    assert not rounded.training and not any(w.requires_grad for w in rounded.parameters())
    layers = {f"{name}.weight" for name in linear_layers(exact)}
    assert layers and not any("lm_head" in name or "embed" in name for name in layers)
    for name, weight in exact.state_dict().items():
        found = rounded.state_dict()[name]
        if name in layers:
            packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
            assert torch.equal(found, dequantize_4bit(packed, state))
            assert not torch.equal(found, weight)
        else:
            assert torch.equal(found, weight), name
    tied = exact.config.tie_word_embeddings
    same = rounded.lm_head.weight is rounded.get_input_embeddings().weight
    assert same == tied


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("llama", set()),
        ("bloom", set()),  # whose code reads weights for a setting that this one has not
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("mamba", {"dt_proj", "x_proj", "out_proj"}),
        ("deepseek_v32", {"weights_proj"}),
        ("longcat_flash", {"classifier"}),
        ("gemma3n_text", {"correction_coefs", "prediction_coefs"}),
    ],
)
def test_layers_whose_weights_a_model_reads_by_itself(name, found):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(name, 300))
    assert {each.rpartition(".")[2] for each in never_packed(model)} == found
    part = sizes(model, torch.bfloat16, "nf4")
    assert (part.four_bit < part.plain * 0.9) == (name != "gpt2")


def whole(name, kind, folder):
    """A tiny model that reads images too, saved with all its parts."""
    tokenizer = byte_pairs()
    config = tiny_config(name, len(tokenizer))
    if name == "llama4":
        vision = config.vision_config
        vision.vision_output_dim = vision.projector_input_dim = vision.projector_output_dim = 64
    model = kind(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tiny_settings(str(folder), quantization="none"), model


def test_the_text_part_of_a_model_saved_whole(tmp_path):
    named, saved = whole("llama4", Llama4ForConditionalGeneration, tmp_path / "base")
    loaded = loading.load_model(named, CPU, torch.float32)
    text = saved.language_model.state_dict()
    assert loaded.state_dict().keys() == text.keys()
    assert all(torch.equal(weight, text[key]) for key, weight in loaded.state_dict().items())

    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    extra = {"language_model.model.layers.7.x.weight": torch.zeros(2, 2)}
    save_file(weights | extra, file, metadata={"format": "pt"})
    assert "has no place for language_model.model.layers.7.x" in fault(named)


def test_a_model_of_images_without_a_text_part_of_its_own(tmp_path):
    named, _ = whole("qwen3_vl", Qwen3VLForConditionalGeneration, tmp_path / "base")
    assert "qwen3_vl reads more than text" in fault(named)


def test_folders_that_are_no_models(tmp_path):
    settings = build("llama", tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    assert "no such folder" in fault(settings.model_copy(update={"name": str(tmp_path / "none")}))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "its weights cannot be read" in fault(settings)
    config = (tmp_path / "base" / "config.json").read_text()
    (tmp_path / "base" / "config.json").write_text("{")
    assert "cannot be read" in fault(settings)
    (tmp_path / "base" / "config.json").unlink()
    assert "has no config.json" in fault(settings)
    (tmp_path / "base" / "config.json").write_text(config)
    weights.unlink()
    assert "has no weights" in fault(settings)
    (tmp_path / "base" / "pytorch_model.bin").touch()
    assert "pickled weights only" in fault(settings)


def sharded(folder, index, *, weights="a.safetensors"):
    """A model whose index names one file for all tensors."""
    settings = build("llama", folder / "base")
    file = folder / "base" / "model.safetensors"
    names = load_file(file)
    file.rename(folder / "base" / weights)
    text = index if isinstance(index, str) else json.dumps(index(names))
    (folder / "base" / loading.INDEX).write_text(text)
    return settings


def all_in(name):
    return lambda names: {"metadata": {}, "weight_map": dict.fromkeys(names, name)}


ELSEWHERE = {
    "a pickled file": all_in("pytorch_model.bin"),
    "a pickled one among others": lambda names: {
        "weight_map": dict.fromkeys(names, "a.safetensors") | {"model.norm.weight": "x.bin"}
    },
    "a file above": all_in("../outside.safetensors"),
    "a file far above": all_in("../../../../etc/passwd.safetensors"),
    "an absolute path": all_in("/tmp/outside.safetensors"),
    "a folder below": all_in("below/a.safetensors"),
    "a path that comes back": all_in("../base/a.safetensors"),
    "a name in disguise": all_in("a.safetensors.bin"),
    "a name of two lines": all_in("a.bin\n.safetensors"),
    "an address": all_in("https://example.org/a.safetensors"),
    "a back slash": all_in("..\\outside.safetensors"),
    "no name": all_in(""),
    "a number": all_in(5),
    "a list": "[]",
    "no map": '{"metadata": {}}',
    "half a file": '{"weight_map": {"a":',
    "a pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n",
}


@pytest.fixture
def no_pickles(monkeypatch):
    """torch.load, by whatever name a library knows it."""

    def load(*arguments, **options):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", load)
    monkeypatch.setattr(torch.serialization, "load", load)


@pytest.mark.parametrize("what", ELSEWHERE)
def test_an_index_names_safetensors_of_its_folder_alone(tmp_path, no_pickles, what):
    settings = sharded(tmp_path, ELSEWHERE[what])
    torch_file = tmp_path / "base" / "pytorch_model.bin"
    for file in (torch_file, tmp_path / "outside.safetensors"):
        file.write_bytes((tmp_path / "base" / "a.safetensors").read_bytes())
    for load in (loading.load_model, sharding.load_sharded, loading.read_config):
        arguments = [] if load is loading.read_config else [CPU, torch.float32]
        more = {"dequantized": True} if load is sharding.load_sharded else {}
        with pytest.raises(UserError) as caught:
            load(settings, *arguments, **more)
        line = str(caught.value)
        assert loading.INDEX in line and "weights_only" not in line and line.count(": ") >= 2


def test_an_index_that_is_right(tmp_path, no_pickles):
    loading.load_model(sharded(tmp_path, all_in("a.safetensors")), CPU, torch.float32)


PICKLED = ["adapter_model.bin", "pytorch_model.bin", "adapter_model.pt", "adapter_model.pth"]


@pytest.mark.parametrize("name", [*PICKLED, None])
def test_an_adapter_without_safetensors(tmp_path, no_pickles, name):
    settings = build("llama", tmp_path / "base")
    base = loading.load_model(settings, CPU, torch.float32)
    tuned = adapters.add_adapter(base, training().lora, settings, seed=1)
    adapters.save_adapter(tuned, tmp_path / "adapter", "card")
    file = tmp_path / "adapter" / adapters.WEIGHTS
    file.rename(file.with_name(name)) if name else file.unlink()
    base = loading.load_model(settings, CPU, torch.float32)
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors: run the train stage"):
        adapters.load_adapter(base, tmp_path / "adapter", merge=False)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 45\n"


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"],
)
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, name):
    settings = build("llama", tmp_path)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=f"{name}: a pointer of git-lfs, .*: git lfs pull"):
        loading.load_model(settings, CPU, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [1e30, 7e4, -1e6, float("inf"), float("nan")])
def test_what_float16_cannot_hold_is_no_fault_of_the_model(tmp_path, dtype, value):
    settings = build("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float().clone()
    weights["model.norm.weight"][3] = value
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    exact = settings.model_copy(update={"quantization": "none"})
    try:
        loading.load_model(exact, CPU, dtype)
    except UserError as error:
        narrow = dtype == torch.float16 and value == value
        assert ("set model.dtype to bfloat16" in str(error)) == narrow
        assert ("get it anew" in str(error)) != narrow or "get the whole model" in str(error)
    else:
        assert abs(value) <= 1e30 and dtype != torch.float16


WRONG = {
    "a layer more": ("config", {"num_hidden_layers": 3}, "the weights lack model.layers.2."),
    "a layer less": ("config", {"num_hidden_layers": 1}, "the config has no place for model.lay"),
    "wider": ("config", {"intermediate_size": 256}, "the weights have another shape of model.lay"),
    "BART": ("config", {"model_type": "bart"}, "bart is no causal language model"),
    "of two kinds": ("config", {"model_type": "gemma"}, "config.json declares LlamaForCausalLM"),
    "quantized, it says": (
        "config",
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "quantized already",
    ),
    "cut": ("weights", lambda w: w[:1].clone(), "another shape of model.norm.weight"),
    "NaN": ("weights", lambda w: w * float("nan"), "model.norm.weight holds numbers that are none"),
    "endless": ("weights", lambda w: w * 1e38, "computes numbers that are none"),
    "of whole numbers": ("weights", lambda w: w.to(torch.int8), "model.norm.weight is of I8"),
}


@pytest.mark.parametrize("what", WRONG)
def test_config_and_weights_that_do_not_belong_together(tmp_path, what):
    settings = build("llama", tmp_path)
    part, change, words = WRONG[what]
    if part == "config":
        config = json.loads((tmp_path / "config.json").read_text("utf-8"))
        (tmp_path / "config.json").write_text(json.dumps(config | change), "utf-8")
    else:
        weights = load_file(tmp_path / "model.safetensors")
        weights["model.norm.weight"] = change(weights["model.norm.weight"])
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=re.escape(words)):
        loading.load_model(settings, CPU, torch.float32)


@pytest.mark.parametrize("through", ["load_model", "load_skeleton", "read_config"])
def test_an_adapter_beside_a_model(tmp_path, through):
    """Transformers would load it, and all that is called the base model would be another."""
    settings = build("llama", tmp_path)
    base = loading.load_model(settings, CPU, torch.float32)
    head = base.lm_head.weight
    tuned = adapters.add_adapter(base, training().lora, settings, seed=1)
    adapters.save_adapter(tuned, tmp_path, "card")
    arguments = [CPU, torch.float32] if through == "load_model" else []
    with pytest.raises(UserError) as error:
        getattr(loading, through)(settings, *arguments)
    assert str(error.value) == (
        f"model.name {str(tmp_path)!r}: an adapter lies beside it (adapter_config.json), which "
        "would be loaded too: remove it from the folder, or take the model without it"
    )
    (tmp_path / "adapter_config.json").unlink()
    again = loading.load_model(settings, CPU, torch.float32)
    assert torch.equal(again.lm_head.weight, head)


HOSTILE = {
    "do_sample": True,
    "temperature": 0.1,
    "repetition_penalty": 5.0,
    "suppress_tokens": [50, 51],
    "min_length": 100,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "bad_words_ids": [[9]],
    "max_time": 1e-9,
    "length_penalty": -9.0,
    "num_beam_groups": 2,
    "cache_implementation": "static",
    "stop_strings": ["a"],
}


@pytest.mark.parametrize("file", ["generation_config.json", "config.json", None])
def test_nothing_of_how_a_model_would_generate_is_kept_but_its_tokens(tmp_path, file):
    settings = build("llama", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    if file:
        path = tmp_path / file
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.write_text(json.dumps(known | HOSTILE | {"eos_token_id": [1, 5]}), "utf-8")
    model = loading.load_model(settings, CPU, torch.float32)
    kept = model.generation_config.to_diff_dict()
    assert {key: kept[key] for key in kept if key != "transformers_version"} == (
        {"eos_token_id": [1, 5], "bos_token_id": 0}
        if file == "config.json"
        else {"eos_token_id": [1, 5]}
        if file
        else {"bos_token_id": 0, "eos_token_id": 1}
    )


def test_a_loss_of_routers_is_off_and_told(tmp_path, capsys):
    tokenizer = byte_pairs()
    config = tiny_config("mixtral", len(tokenizer))
    config.output_router_logits = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = loading.load_model(tiny_settings(str(tmp_path)), CPU, torch.float32)
    assert model(torch.arange(5)[None]).aux_loss is None
    assert capsys.readouterr().out.startswith("output_router_logits in its config.json is off")


def test_whether_activations_are_computed_twice_is_not_for_the_model_to_say(tmp_path):
    settings = build("llama", tmp_path)
    path = tmp_path / "config.json"
    known = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(known | {"gradient_checkpointing": True}), "utf-8")
    model = loading.load_model(settings, CPU, torch.float32)
    assert not model.is_gradient_checkpointing


DROPOUTS = {
    "gpt2": GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=400),
    "gpt_neo": GPTNeoConfig(
        num_layers=2, num_heads=2, hidden_size=32, vocab_size=400,
        attention_types=[[["global"], 2]],
        attention_dropout=0.1, resid_dropout=0.2,
    ),
    "falcon": FalconConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=32, vocab_size=400,
        attention_dropout=0.1, hidden_dropout=0.1,
    ),
    "opt": OPTConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=32, ffn_dim=64, vocab_size=400,
        word_embed_proj_dim=32, layerdrop=0.5,
    ),
    "mixtral": MixtralConfig(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=32,
        intermediate_size=64, vocab_size=400, router_jitter_noise=0.3, attention_dropout=0.2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DROPOUTS)
@torch.no_grad()
def test_a_models_own_dropout_is_told_and_off(kind):
    model = AutoModelForCausalLM.from_config(DROPOUTS[kind]).train()
    ids = torch.arange(40)[None]

    def apart():
        return (model(input_ids=ids).logits - model(input_ids=ids).logits).abs().max().item()

    assert apart() > 0
    asked = loading.still(model)
    assert asked and all(value > 0 for value in asked.values())
    assert apart() == 0
    assert loading.still(model) == {}
    written = model(input_ids=ids).logits
    assert torch.equal(model.eval()(input_ids=ids).logits, written)


def test_a_dropout_that_is_an_integer():
    model = AutoModelForCausalLM.from_config(DROPOUTS["mixtral"])
    layers = [model.config, *(layer.self_attn for layer in model.model.layers)]
    for layer in layers:
        layer.attention_dropout = 1
    assert loading.still(model)["attention_dropout"] == 1
    assert {layer.attention_dropout for layer in layers} == {0}


def test_a_model_that_sees_what_is_to_come(tmp_path):
    """Its config may declare what it likes."""
    torch.manual_seed(4)
    BertLMHeadModel(BertConfig(vocab_size=400, hidden_size=36)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="sees tokens that are still to come"):
        loading.load_model(tiny_settings(str(tmp_path)), CPU, torch.float32)


def test_harmless_tensors_of_other_versions(tmp_path):
    settings = build("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    weights["mtp.layers.0.weight"] = torch.ones(8)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loading.load_model(settings, CPU, torch.float32)


def test_a_tokenizer_of_another_model(tmp_path):
    settings = build("llama", tmp_path)
    model = loading.load_model(settings, CPU, torch.float32)
    tokenizer = byte_pairs()
    loading.check_tokens(model, tokenizer, [[3, len(tokenizer) - 1], []])
    with pytest.raises(UserError, match=f"has token {len(tokenizer)}, but the model knows"):
        loading.check_tokens(model, tokenizer, [[3, len(tokenizer)]])
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no end token"):
        loading.check_tokens(model, tokenizer, [])


def test_a_gpu_without_virtual_addresses_keeps_segments_of_a_fixed_size(monkeypatch):
    asked = []
    monkeypatch.setattr("torch._C._accelerator_setAllocatorSettings", asked.append)

    def refuse(*shape, device):
        raise RuntimeError("CUDA driver error: operation not supported")

    monkeypatch.setattr("torch.zeros", refuse)
    loading.grow_segments(torch.device("cuda"))
    assert asked == ["expandable_segments:True", "expandable_segments:False"]


def test_embeddings_stay_where_main_memory_cannot_be_locked(monkeypatch, capsys):
    def refuse(tensor):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    embeddings = torch.nn.Embedding(4, 3)
    before = embeddings.weight.data
    to_main_memory(embeddings)
    assert embeddings.weight.data.data_ptr() == before.data_ptr()
    said = "the input embeddings stay in the GPU's memory: CUDA error: out of memory\n"
    assert capsys.readouterr().out == said


def test_device_and_precision(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert loading.choose_device("auto") == loading.choose_device("cpu") == CPU
    with pytest.raises(UserError, match="sees no GPU"):
        loading.choose_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    gpu = loading.choose_device("auto")
    assert gpu == torch.device("cuda", 1)
    assert loading.choose_dtype("float32", gpu) == torch.float32
    for has_bf16, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda _=has_bf16, **__: _)
        assert loading.choose_dtype("auto", gpu) == dtype


def test_apples_gpu_by_pytorchs_rules(monkeypatch):
    """No Mac: what PyTorch says of itself there is stood in for."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UserError, match="sees no GPU of Apple's"):
        loading.choose_device("mps")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    try:
        gpu = loading.choose_device("mps")
    finally:
        torch.use_deterministic_algorithms(False)
    assert gpu == torch.device("mps")
    assert (loading.widest_float(gpu), loading.widest_float(CPU)) == (torch.float32, torch.float64)
    for new, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.backends.mps.is_macos_or_newer", lambda *_, new=new: new)
        assert loading.choose_dtype("auto", gpu) == dtype
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="processes to 1"):
        loading.choose_device("mps")


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"torch.backends.mps.is_available": lambda: True}, "Apple's GPU"),
        ({"torch.xpu.is_available": lambda: True}, "Intel GPUs"),
        ({"pathlib.Path.exists": lambda path: str(path) == "/dev/kfd"}, "ROCm build"),
        ({"pathlib.Path.glob": lambda *_: ["nvidia0"], "torch.version.cuda": None}, "CPU build"),
        ({"pathlib.Path.glob": lambda *_: ["nvidia0"], "torch.version.cuda": "13.0"}, "too old"),
        ({}, ""),
    ],
)
def test_a_gpu_that_is_not_used_is_told_in_a_line(monkeypatch, capfd, there, said):
    def driver():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\n…")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.init", driver)
    monkeypatch.setattr("pathlib.Path.glob", lambda *_: [])
    for name, value in there.items():
        monkeypatch.setattr(name, value)
    assert loading.choose_device("cpu") == CPU and capfd.readouterr().err == ""
    assert loading.choose_device("auto") == CPU
    told = capfd.readouterr().err
    assert said in told and told.count("\n") == bool(said)


def test_loading_says_nothing():
    script = (
        "import torch; from verse.model import adapters, loading; loading.deterministic(1, 1);"
        "from tiny_models import settings;"
        "loading.load_model(settings('models/mini'), torch.device('cpu'), torch.float32);"
        "import peft"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "", "HOME": "/"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
