"""`verse.model.adapters` and `merge`: PEFT's format, the same bytes, and the merged model."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from bitsandbytes.functional import dequantize_4bit
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file, save_file
from tiny_architectures import tiny_config
from tiny_models import CHAT, build, byte_pairs, training
from tiny_models import settings as tiny_settings
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, ZambaConfig

from verse.errors import UserError
from verse.model import adapters, experts, loading
from verse.model.layers import expert_weights, to_nf4

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def tuned(settings, seed=1):
    """A model with an adapter that changes something: its B does not stay 0."""
    base = loading.load_model(settings, CPU, torch.float32)
    model = adapters.add_adapter(base, training().lora, settings, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3, generator=generator)
    return model


def logits(model):
    return model(input_ids=torch.arange(3, 40)[None]).logits


@torch.no_grad()
def test_saved_loaded_and_merged(tmp_path):
    settings = build("qwen3", tmp_path / "base")
    model = tuned(settings).eval()
    for folder in ("one", "two"):
        adapters.save_adapter(model, tmp_path / folder, "the card")
    files = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    config = json.loads(files["adapter_config.json"])
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["revision"] is None and config["base_model_name_or_path"] == settings.name

    for merge in (False, True):
        base = loading.load_model(settings, CPU, torch.float32)
        assert not torch.allclose(logits(base), logits(model), atol=1e-2)
        loaded = adapters.load_adapter(base, tmp_path / "one", merge=merge)
        torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)


@pytest.fixture(params=["mixtral", "granitemoe", "phimoe"])
def mixture(request, tmp_path):
    """The settings of a tiny mixture of experts: one that PEFT knows, one that it does not, one
    whose router is a linear layer in name only."""
    tokenizer = byte_pairs()
    torch.manual_seed(0)
    config = tiny_config(request.param, len(tokenizer))
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tiny_settings(str(tmp_path / "base"))


@torch.no_grad()
def test_experts_are_adapted_saved_and_merged(mixture, tmp_path, capsys):
    base = loading.load_model(mixture, CPU, torch.float32)
    lora = training().lora.model_copy(update={"dropout": 0.1})
    model = adapters.add_adapter(base, lora, mixture, seed=1).eval()
    said = capsys.readouterr().out
    assert said == "train.lora.dropout: not on the experts, whose weights are one tensor\n"
    adapted = {name for name, w in model.named_parameters() if w.requires_grad}
    assert sum("experts" in name for name in adapted) == 2 * 2 * 2  # layers, tensors, A and B
    assert not any("router" in name for name in adapted)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3, generator=generator)
    adapters.save_adapter(model, tmp_path / "adapter", "the card")
    for merge in (False, True):
        base = loading.load_model(mixture, CPU, torch.float32)
        assert not torch.allclose(logits(base), logits(model), atol=1e-2)
        loaded = adapters.load_adapter(base, tmp_path / "adapter", merge=merge)
        torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)


def test_experts_are_rounded_as_linear_layers_are(mixture):
    exact = mixture.model_copy(update={"quantization": "none"})
    found = expert_weights(loading.load_model(mixture, CPU, torch.float32))
    assert len(found) == 2 * 2
    for name, weight in expert_weights(loading.load_model(exact, CPU, torch.float32)).items():
        expected = dequantize_4bit(*to_nf4(weight.detach()))
        assert torch.equal(found[name], expected) and not torch.equal(found[name], weight)


def packed(settings):
    """As a GPU holds it in 4 bits: bitsandbytes' own layers in training, as on a CPU they are wrong
    in evaluation."""
    experts.round_while_loading()
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    model = AutoModelForCausalLM.from_pretrained(
        settings.name, dtype=torch.float32, device_map={"": CPU}, quantization_config=config
    )
    return model.requires_grad_(False).train()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "granitemoe"])
def test_experts_in_4_bits_are_the_same_numbers(name, tmp_path):
    tokenizer = byte_pairs()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name, len(tokenizer)))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    mixture, lora = tiny_settings(str(tmp_path)), training().lora

    def bytes_of(model):
        return sum(weight.numel() * weight.itemsize for weight in model.parameters())

    def learn(model):
        adapted = adapters.add_adapter(
            model, lora.model_copy(update={"dropout": 0.0}), mixture, seed=1
        ).train()
        generator = torch.Generator().manual_seed(1)
        for name, weight in sorted(adapted.named_parameters()):
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.3, generator=generator)
        for _ in range(2):  # nothing stays of the first pass
            found = logits(adapted)
        found.square().mean().backward()
        gradients = {n: w.grad for n, w in adapted.named_parameters() if w.requires_grad}
        return adapted, found.detach(), gradients

    plain, small = loading.load_model(mixture, CPU, torch.float32), packed(mixture)
    assert torch.equal(logits(plain), logits(small))
    assert bytes_of(small) < 0.7 * bytes_of(plain)
    (one, found, gradients), (other, same, others) = learn(plain), learn(small)
    assert torch.equal(found, same) and gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    for folder, adapted in (("one", one), ("other", other)):
        adapters.save_adapter(adapted, tmp_path / folder, "card")
    files = ("adapter_config.json", "adapter_model.safetensors")
    assert all(
        (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
        for file in files
    )
    loaded = adapters.load_adapter(packed(mixture), tmp_path / "one", merge=False).train()
    assert torch.equal(logits(loaded), found)


def test_the_adapter_starts_from_the_seed_alone(tmp_path):
    settings = build("qwen3", tmp_path)

    def start(seed):
        torch.rand(seed)  # whatever was drawn before
        model = tuned(settings, seed)
        return torch.cat([w.flatten() for w in model.parameters() if w.requires_grad])

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


@pytest.mark.parametrize("shape", ["llama", "phi3"])  # other sizes, other names
def test_no_adapter_or_one_of_another_model(shape, tmp_path):
    settings = build("qwen3", tmp_path / "base")
    base = loading.load_model(settings, CPU, torch.float32)
    with pytest.raises(UserError, match="no adapter there: run the train stage"):
        adapters.load_adapter(base, tmp_path / "none", merge=True)
    adapters.save_adapter(tuned(settings), tmp_path / "adapter", "card")
    other = loading.load_model(build(shape, tmp_path / "other"), CPU, torch.float32)
    with pytest.raises(UserError, match="does not fit this base model"):
        adapters.load_adapter(other, tmp_path / "adapter", merge=True)


def test_an_adapter_of_no_numbers(tmp_path):
    settings = build("qwen3", tmp_path / "base")
    adapters.save_adapter(tuned(settings), tmp_path / "adapter", "card")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    base = loading.load_model(settings, CPU, torch.float32)
    with pytest.raises(UserError, match="holds numbers that are none"):
        adapters.load_adapter(base, tmp_path / "adapter", merge=True)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda w: {k: v.to(torch.int8) for k, v in w.items()}, "is of I8, no plain number"),
        (lambda w: dict(list(w.items())[1:]), "is in one of them only"),
        (lambda w: w | {"x": torch.zeros(1)}, "x is in one of them only"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens switch it on within"),
        ({"alora_invocation_tokens": "x"}, "alora_invocation_tokens switch it on within"),
        ({"use_dora": True}, "lora_magnitude_vector is in one of them only"),
        ({"lora_bias": True}, "lora_B.bias is in one of them only"),
        ({"trainable_token_indices": "x"}, "does not fit this base model"),
    ],
)
def test_a_wrong_adapter_is_told_in_a_line_and_nothing_else(spoil, line, tmp_path, recwarn):
    settings = build("llama", tmp_path / "base")
    adapters.save_adapter(tuned(settings), tmp_path / "adapter", "card")
    base = loading.load_model(settings, CPU, torch.float32)
    if isinstance(spoil, dict):
        file = tmp_path / "adapter/adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | spoil), "utf-8")
    else:
        file = tmp_path / "adapter/adapter_model.safetensors"
        save_file(spoil(load_file(file)), file, metadata={"format": "pt"})
    recwarn.clear()
    with pytest.raises(UserError, match=line):
        adapters.load_adapter(base, tmp_path / "adapter", merge=True)
    assert [str(one.message) for one in recwarn] == []


def test_an_adapter_that_cannot_be_merged(tmp_path):
    settings = build("llama", tmp_path / "base")  # its layers have no bias
    base = loading.load_model(settings, CPU, torch.float32)
    lora = LoraConfig(target_modules=["q_proj"], lora_bias=True)
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    base = loading.load_model(settings, CPU, torch.float32)
    with pytest.raises(UserError, match=r"adapter: PEFT cannot add it to the weights \(.*bias"):
        adapters.load_adapter(base, tmp_path / "adapter", merge=True)


def test_a_model_card():
    card = adapters.model_card("org/base", None, {"Losses": {"steps": 7}})
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == "org/base"
    assert "revision not pinned" in card and "| steps | 7 |" in card


@torch.no_grad()
def test_the_merged_model_is_one_that_transformers_runs(tmp_path, forks):
    tokenizer = byte_pairs()
    tokenizer.chat_template = CHAT.replace("</u>", "<pad>")  # its end of turn
    settings = build("llama, tied, grouped queries", tmp_path / "base", tokenizer)
    own = {"eos_token_id": [1, 3], "temperature": 0.1, "do_sample": True, "repetition_penalty": 2.0}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(own), "utf-8")
    model = tuned(settings)
    adapters.save_adapter(model, tmp_path / "models" / "adapter", "card")
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    params["model"] = settings.model_dump() | {"name": "base"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    done = subprocess.run(
        [forks.python, "-m", "verse.cli.main", "merge"],
        cwd=tmp_path,
        env=os.environ | forks.env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shutil.rmtree(tmp_path / "base")  # nothing is needed any more
    shutil.rmtree(tmp_path / "models" / "adapter")

    card = ModelCard.load(tmp_path / "models" / "merged" / "README.md")
    assert (card.data.license, card.data.library_name) == ("other", "transformers")
    assert "白日依山盡，黃河入海流。" in card.text and str(tmp_path) not in card.content

    kept = json.loads((tmp_path / "models/merged/generation_config.json").read_text("utf-8"))
    assert {key: kept[key] for key in kept.keys() - {"transformers_version"}} == {
        "eos_token_id": [1, 2, 3]
    }
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models" / "merged")
    assert merged.dtype == torch.bfloat16 and merged.config.tie_word_embeddings
    assert not hasattr(merged.config, "quantization_config")
    unrounded = model.unload()  # the base under the adapter was rounded to NF4, this is not
    assert not torch.allclose(logits(unrounded), logits(merged).float(), atol=0.1)
    prompt = tokenizer("完成這首詩。", return_tensors="pt")
    assert merged.generate(**prompt, max_new_tokens=5).shape[1] > prompt["input_ids"].shape[1]


TIED, UNTIED = "llama, tied, grouped queries", "llama"


def test_weights_that_layers_share_are_rounded_once_and_not_adapted(tmp_path, monkeypatch):
    """Zamba's blocks of attention are one, at several places."""
    tokenizer = byte_pairs()
    values = tiny_config("zamba", len(tokenizer)).to_dict()
    derived = ("attention_hidden_size", "attention_head_dim")
    kinds = {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2}
    kept = {key: value for key, value in values.items() if key not in derived}
    config = ZambaConfig(**kept | kinds | {"use_mamba_kernels": False})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rounded, round_to_nf4 = [], loading.round_to_nf4
    monkeypatch.setattr(
        loading,
        "round_to_nf4",
        lambda weight: rounded.append(weight.data_ptr()) or round_to_nf4(weight),
    )
    settings = tiny_settings(str(tmp_path))
    base = loading.load_model(settings, CPU, torch.float32)
    assert len(rounded) == len(set(rounded)) > 4
    with pytest.raises(UserError, match="share their weights, so that their adapters cannot"):
        adapters.add_adapter(base, training().lora, settings, seed=1)
    base = loading.load_model(settings, CPU, torch.float32)
    named = training().lora.model_copy(update={"target_modules": ["in_proj"]})
    adapters.add_adapter(base, named, settings, seed=1)


@pytest.mark.parametrize(
    ("shape", "targets", "wrong"),
    [
        (UNTIED, ["q_proj", "v_porj"], "has no module v_porj: do you mean v_proj?"),
        (UNTIED, ["mlp"], "mlp holds layers and is none: name them: down_proj, gate_proj, up_proj"),
        (UNTIED, ["q_proj", "x"], "has no module x: there are down_proj, gate_proj, k_proj, "),
        (TIED, ["embed_tokens", "q_proj"], "embed_tokens shares its weights between the first"),
        (TIED, ["lm_head"], "lm_head shares its weights between the first"),
    ],
)
def test_targets_that_would_do_something_else_are_refused(shape, targets, wrong, tmp_path):
    settings = build(shape, tmp_path)
    base = loading.load_model(settings, CPU, torch.float32)
    lora = training().lora.model_copy(update={"target_modules": targets})
    with pytest.raises(UserError, match=r"train\.lora\.target_modules: ") as error:
        adapters.add_adapter(base, lora, settings, seed=1)
    assert wrong in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head", "q_proj"]])
def test_first_and_last_layers_are_merged_as_they_were_trained(targets, tmp_path):
    settings = build(UNTIED, tmp_path / "base")
    lora = training().lora.model_copy(update={"target_modules": targets, "dropout": 0.1})
    base = loading.load_model(settings, CPU, torch.float32)
    model = adapters.add_adapter(base, lora, settings, seed=1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.1)
    model.eval()
    adapters.save_adapter(model, tmp_path / "adapter", "card")
    fresh = loading.load_model(settings, CPU, torch.float32)
    merged = adapters.load_adapter(fresh, tmp_path / "adapter", merge=True)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-4)


def test_an_adapter_that_does_not_survive_merging_is_refused(tmp_path, monkeypatch):
    settings = build("qwen3", tmp_path / "base")
    adapters.save_adapter(tuned(settings), tmp_path / "adapter", "card")
    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
    base = loading.load_model(settings, CPU, torch.float32)
    with pytest.raises(UserError, match="it answers otherwise than beside them"):
        adapters.load_adapter(base, tmp_path / "adapter", merge=True)
