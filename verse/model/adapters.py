"""LoRA adapters in PEFT's own format, written so that the same training gives the same bytes.

LoRA: Hu et al. 2021, arXiv:2106.09685. PEFT is imported where it is used, since it takes a while
and imports bitsandbytes.
"""

import json
import math
import warnings
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from verse.errors import UserError, first_line, is_of_the_system
from verse.files import write_text
from verse.model import distributed
from verse.model.dropout import Masks
from verse.model.layers import decoder_layers, expert_weights, import_bitsandbytes, linear_layers
from verse.model.loading import check_files, check_finite, check_kinds
from verse.params import Lora, Model
from verse.paths import ADAPTER

WEIGHTS = "adapter_model.safetensors"
MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Models whose out_proj PEFT refuses, since their kernels read its weight past an adapter."""
MERGED = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""How far scores of the merged model may be from the unmerged one's, as a share of their spread:
rounding of the merged weights moves them."""


def add_adapter(model: PreTrainedModel, lora: Lora, base: Model, *, seed: int) -> PreTrainedModel:
    """`model` with a fresh LoRA adapter in float32, the same however the model was loaded.

    base: the model's parameters, whose name and revision go into the adapter's config. Raises
    UserError for target modules that the model does not have.
    """
    import_bitsandbytes()
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import Embedding, LoraLayer, ParamWrapper

    from verse.model.experts import adaptable

    with adaptable(model):
        check_targets(model, lora.target_modules)
        experts = targeted_experts(model, lora.target_modules)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=0.0 if experts else lora.dropout,  # which PEFT refuses for them
            target_modules=targeted_layers(model, lora.target_modules, experts),
            target_parameters=experts or None,
            base_model_name_or_path=base.name,
            revision=base.revision,
        )
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise UserError(f"train.lora.target_modules: {first_line(error)}") from None
        if experts and lora.dropout:
            distributed.say("train.lora.dropout: not on the experts, whose weights are one tensor")
        if lora.target_modules == "all-linear":
            say_share(adapted)
        check_apart(adapted)
    call_whole(adapted)
    masks = Masks(lora.dropout)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            # The adapter computes in the precision of autocast; casting its input to float32
            # first would only move memory.
            module.cast_input_dtype_enabled = False
            if lora.dropout > 0 and not isinstance(module, Embedding | ParamWrapper):
                module.lora_dropout["default"] = masks.layer(module.in_features)
    return adapted


def say_share(adapted: PreTrainedModel) -> None:
    """Say how much of a model's layers has an adapter, if it is not nearly all."""

    def size(weight: torch.Tensor) -> int:
        state = getattr(weight, "quant_state", None)  # of 4 bits
        return math.prod(state.shape) if state else weight.numel()

    with_one = set(adapted_weights(adapted).values())
    every = {
        id(w): size(w) for n, w in decoder_layers(adapted).named_parameters() if "lora_" not in n
    }
    share = sum(size for weight, size in every.items() if weight in with_one) / sum(every.values())
    if share < 0.9:
        distributed.say(
            f"train.lora.target_modules: all-linear adapts {share:.0%} of its layers' weights: the "
            "others are of a kind that PEFT does not adapt"
        )


def adapted_weights(adapted: PreTrainedModel) -> dict[str, int]:
    """By the names of layers with an adapter, which weight of the base model each has."""
    from peft.tuners.lora import LoraLayer, ParamWrapper

    return {
        name: id(m.get_param() if isinstance(m, ParamWrapper) else m.get_base_layer().weight)
        for name, m in adapted.named_modules()
        if isinstance(m, LoraLayer)
    }


def check_apart(adapted: PreTrainedModel) -> None:
    """Raise UserError if two layers with an adapter share a weight, into which none can be
    merged without changing the other."""
    owners: dict[int, str] = {}
    for name, weight in adapted_weights(adapted).items():
        name = name.removeprefix("base_model.model.")
        if (first := owners.setdefault(weight, name)) != name:
            raise UserError(
                f"train.lora.target_modules: {first} and {name} share their weights, so that "
                "their adapters cannot be merged: name layers that have their own"
            )


def targeted_experts(model: PreTrainedModel, targets: str | list[str]) -> list[str]:
    """The experts' weights among the targets, by the ends of their names: all for all-linear."""
    ends = sorted({".".join(name.split(".")[-2:]) for name in expert_weights(model)})
    return ends if isinstance(targets, str) else [end for end in ends if end in targets]


def targeted_layers(
    model: PreTrainedModel, targets: str | list[str], experts: list[str]
) -> str | list[str]:
    """The layers among the targets, but for the experts. PEFT's all-linear takes routers too, which
    return something else than a linear layer, and layers that read images: then they are named one
    by one."""
    if not isinstance(targets, str):
        return [target for target in targets if target not in experts]
    output, layers = model.get_output_embeddings(), linear_layers(model)
    others = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output and name not in layers
    }
    chosen = [*layers, *(name for name, module in others.items() if is_linear(module))]
    if model.config.model_type in MAMBA:
        chosen = [name for name in chosen if not name.endswith(".out_proj")]
    if model.config.get_text_config() is not model.config:
        layers_of_text = decoder_layers(model)
        owner = next(name for name, m in model.named_modules() if m is layers_of_text)
        chosen = [name for name in chosen if name.startswith(owner.rpartition(".")[0])]
    return targets if len(chosen) == len(layers) + len(others) else sorted(chosen)


@torch.no_grad()
def is_linear(module: nn.Linear) -> bool:
    """Whether a class that is made from nn.Linear still does what that does."""
    if "forward" not in vars(type(module)):
        return True
    inputs = torch.ones(1, 2, module.in_features, device=module.weight.device)
    inputs = inputs.to(module.weight.dtype)
    expected = functional.linear(inputs, module.weight, module.bias)
    try:
        found = module(inputs)
    except Exception:  # of another form
        return False
    return torch.is_tensor(found) and found.shape == expected.shape and found.allclose(expected)


def check_targets(model: PreTrainedModel, targets: str | list[str]) -> None:
    """Raise UserError if one of the targets is no module of the model, or one that shares its
    weights with another: merged into them, its adapter would change both."""
    if isinstance(targets, str):
        return
    where = "train.lora.target_modules"
    modules = dict(model.named_modules())
    linear = sorted({name.rpartition(".")[2] for name in linear_layers(model)})
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    experts = targeted_experts(model, targets)
    tied = None not in ends and ends[0].weight is ends[1].weight
    for target in targets:
        # As PEFT looks for them.
        found = [m for name, m in modules.items() if name == target or name.endswith(f".{target}")]
        if not found and target not in experts:
            near = get_close_matches(target, linear, 1)
            hint = f"do you mean {near[0]}?" if near else f"there are {', '.join(linear)}"
            raise UserError(f"{where}: the model has no module {target}: {hint}")
        inside = [
            n for m in found for n, part in m.named_modules() if n and isinstance(part, nn.Linear)
        ]
        if names := sorted({name.rpartition(".")[2] for name in inside}):
            raise UserError(
                f"{where}: {target} holds layers and is none: name them: {', '.join(names)}"
            )
        if tied and any(module is end for module in found for end in ends):
            raise UserError(
                f"{where}: {target} shares its weights between the first and the output layer: an "
                "adapter on one cannot be merged without changing the other: leave it out"
            )


def call_whole(adapted: PreTrainedModel) -> None:
    """Let PEFT call the model itself and not its `forward`, past the hooks by which a model that is
    spread over processes gathers its weights."""
    adapted.base_model.forward = adapted.get_base_model().__call__


def save_adapter(model: PreTrainedModel, folder: Path, card: str) -> None:
    """Write adapter_model.safetensors, adapter_config.json and README.md, the model card.

    PEFT lists the targets in the order of a set; here they are sorted.
    """
    model.save_pretrained(folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for targets in (config["target_modules"], config["target_parameters"]):
        if isinstance(targets, list):
            targets.sort()
    write_text(file, json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True) + "\n")
    write_text(folder / "README.md", card)


def load_adapter(model: PreTrainedModel, folder: str | Path, *, merge: bool) -> PreTrainedModel:
    """`model` with the adapter of `folder`, added to its weights if `merge`, else beside them in
    their precision: in float32 it would take longer than the model.

    Raises UserError if the folder holds no adapter or one of another model.
    """
    import_bitsandbytes()
    from peft import PeftModel, get_peft_model_state_dict

    from verse.model.experts import adaptable

    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter there: run the train stage first")
    if not (folder / WEIGHTS).is_file():  # PEFT would open a pickled one, or ask the hub
        raise UserError(f"{folder}: has no {WEIGHTS}: run the train stage again")
    check_files(folder)
    check_kinds(str(folder), ())
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is an error here
            with adaptable(model):
                tuned = PeftModel.from_pretrained(model, folder)
            with safe_open(folder / WEIGHTS, "pt") as stored:
                stray = set(stored.keys()) ^ set(get_peft_model_state_dict(tuned))
        if tuned.peft_config["default"].alora_invocation_tokens is not None:
            raise ValueError("its alora_invocation_tokens switch it on within a text")
    except Exception as error:  # whatever the libraries make of files that are not ours
        if is_of_the_system(error):
            raise
        line = first_line(error)
        raise UserError(
            f"{folder}: does not fit this base model: {line}: run the train stage again"
        ) from None
    if stray:  # PEFT passes over what it has no place for
        raise UserError(
            f"{folder}: does not fit this base model: {min(stray)} is in one of them only: "
            "run the train stage again"
        )
    call_whole(tuned)
    check_finite(tuned, str(folder), "lora_")
    if merge:
        return merged(tuned, folder)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.to(model.dtype)
    return tuned


@torch.no_grad()
def merged(tuned: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with its adapter added to its weights.

    Raises UserError if PEFT cannot do it, or if it answers otherwise than with the adapter beside
    them.
    """
    rows = tuned.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(8, device=tuned.device) * (rows // 8))[None]
    expected = tuned(input_ids=ids, use_cache=False).logits[0].float()
    try:
        model = tuned.merge_and_unload()
    except Exception as error:  # such as lora_bias, beside a layer without a bias
        if is_of_the_system(error):
            raise
        raise UserError(
            f"{folder}: PEFT cannot add it to the weights ({first_line(error)}): "
            "take an adapter that it can merge"
        ) from None
    found = model(input_ids=ids, use_cache=False).logits[0].float()
    # Of half of the tokens: rounding may turn the choice of an expert, which moves some by far.
    apart = ((found - expected).square().mean(-1).sqrt().median() / expected.std()).item()
    if not apart <= MERGED[model.dtype]:
        raise UserError(
            f"{folder}: added to the weights, it answers otherwise than beside them: scores are "
            f"{apart:.2g} of their spread apart: train with other train.lora.target_modules, or "
            "with model.dtype float32"
        )
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a whole model and its tokenizer as Transformers loads them.

    Weights of more than 5 GB are spread over several files, as on the hub.
    """
    model.save_pretrained(folder, max_shard_size="5GB")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors lets the owner alone read it, servers are often others
    tokenizer.save_pretrained(folder)


def model_card(base: str, revision: str | None, facts: dict[str, dict[str, Any]]) -> str:
    """The adapter's README.md: its base model, and a table for each group of facts."""
    lines = [
        "---",
        f"base_model: {json.dumps(base, ensure_ascii=False)}",
        "library_name: peft",
        "language: zh",
        "tags: [lora, poetry]",
        "---",
        "# Adapter that finishes Tang poems",
        "",
        f"A LoRA adapter for `{base}`, revision {revision or 'not pinned'}. Given the first "
        "couplet of a poem in the prompt, the model writes the rest.",
        "",
        "```python",
        "from peft import AutoPeftModelForCausalLM",
        f'model = AutoPeftModelForCausalLM.from_pretrained("{ADAPTER}")',
        "```",
    ]
    for title, values in facts.items():
        lines += ["", f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in values.items()]
    return "\n".join(lines) + "\n"
