"""Load a causal model: device, precision, NF4.

QLoRA trains an adapter on a base model whose weights have been rounded to 4 bits (NF4 with
double quantization, Dettmers et al. 2023, arXiv:2305.14314). Where memory allows, each
rounded weight is expanded back once instead of in every forward pass: the same numbers, and
several times faster. On a CPU that is the only sound way: bitsandbytes repacks 4-bit weights
in place during evaluation there, and gradients through them are wrong afterwards.

What is no causal model, or whose weights and config do not belong together, would run all the
same and write garbage. `read_config` and `check_model` stand at the entrance.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GenerationConfig,
    Mxfp4Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from verse.errors import UserError, first_line, is_of_the_system
from verse.files import LFS_POINTER, NO_TEXT
from verse.hub import find_folder, origin, reading
from verse.model import distributed
from verse.model.layers import (
    expert_weights,
    in_four_bits,
    linear_layers,
    never_packed,
    outputs_first,
    own_embeddings,
    round_to_nf4,
    to_main_memory,
)
from verse.model.memory import keep_freed
from verse.params import Model
from verse.schema import Record, read_json

# Transformers renames gradient checkpointing; PEFT and its own earlier versions know the old name.
warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
HARMLESS = re.compile(r"rotary_emb\.inv_freq$|attn\.(masked_)?bias$|^(model\.)?mtp\.")
"""Tensors that a model never uses: constants of older files, layers that draft further tokens."""

WIDER = "set model.dtype to bfloat16 or float32; if that does not help, get the model anew"
EXPANDED = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
"""What models are published in that Transformers reads into plain numbers, such as gpt-oss."""

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""By which a user says how PyTorch takes a GPU's memory."""

CHANCE = re.compile("^(?!summary|classifier).*(drop|jitter)")
"""Names of what makes a model draw at random in training."""

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Index(Record):
    """Which file has a tensor: none outside of the model's folder, none that is pickled."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.safetensors$")]]


# On a CPU bitsandbytes warns that it misses an optional kernel, which is never used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def deterministic(seed: int, threads: int) -> None:
    """Same inputs, same bytes: kernels without races, a fixed number of CPU threads, one seed."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(seed)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def choose_device(wanted: str) -> torch.device:
    """The device for "auto", "cuda", "mps" or "cpu"; a line says why "auto" leaves out a GPU.

    Its memory is taken as suits large tensors from then on. Raises UserError for a GPU that is not
    there, or does not do what is asked of it.
    """
    if wanted == "auto" and not torch.cuda.is_available():
        if reason := reason_gpu_unused():
            print(f"on the CPU: {reason}", file=sys.stderr, flush=True)
        wanted = "cpu"
    if wanted == "cpu":
        keep_freed()
        return torch.device("cpu")
    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(
                "machine.device is mps but PyTorch sees no GPU of Apple's: set it to auto or cpu"
            )
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError("machine.device is mps, for one process: set machine.processes to 1")
        torch.use_deterministic_algorithms(True, warn_only=True)  # not every operation has one
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise UserError(
            "machine.device is cuda but PyTorch sees no GPU: set machine.device to auto or cpu, "
            "or install a driver and a CUDA build of torch"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if os.environ.keys().isdisjoint(ALLOCATOR_VARIABLES):
        grow_segments(device)
    return device


def grow_segments(device: torch.device) -> None:
    """Let PyTorch take a GPU's memory in segments that grow, where the GPU can: in those of a fixed
    size a 7B model leaves 1 GiB of a small card in pieces."""
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    try:
        torch.zeros(1, device=device)
    except Exception:  # such as some virtual GPUs, without virtual addresses
        torch._C._accelerator_setAllocatorSettings("expandable_segments:False")


def reason_gpu_unused() -> str:
    """Why no GPU is used by itself, where this machine has one; "" if there is none to be seen."""
    if torch.backends.mps.is_available():
        return "Apple's GPU has not been tried with this program yet; machine.device: mps uses it"
    if torch.xpu.is_available():
        return "Intel GPUs (XPU) are not supported"
    if Path("/dev/kfd").exists() and not torch.version.hip:
        return "the AMD GPU needs a ROCm build of PyTorch: install one into .venv"
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return ""
    if not torch.version.cuda:
        return (
            "this is PyTorch's CPU build: remove .venv, and the next make installs the CUDA build"
        )
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return f"PyTorch cannot use the NVIDIA GPU: {first_line(error)}"
    return ""


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no wider one."""
    return torch.float32 if device.type == "mps" else torch.float64


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The precision for "auto" or a name: bfloat16 where the hardware multiplies it."""
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def load_model(
    settings: Model,
    device: torch.device,
    dtype: torch.dtype,
    *,
    dequantized: bool = True,
    cache_dir: str | None = None,
) -> PreTrainedModel:
    """The base model in evaluation mode, its weights frozen.

    With quantization nf4, the linear layers but the output layer are rounded to NF4. They stay
    plain linear layers of `dtype` if `dequantized` or on a CPU; else they keep their 4 bits.
    cache_dir: where downloads from the hub are kept; None takes Hugging Face's own place.
    Raises UserError for a model that is missing, gated, without safetensors or unreadable.
    """
    stored = read_config(settings, cache_dir)
    published = quantized_by(stored)
    four_bit = settings.quantization == "nf4" and not dequantized and device.type != "cpu"
    by_hand: list[str] = []
    if four_bit:
        from verse.model.experts import round_while_loading

        round_while_loading()
        # Plain, and rounded below.
        by_hand = never_packed(load_skeleton(settings, cache_dir))
    config: Any = None
    if published:
        config = EXPANDED[published](dequantize=True)
    elif four_bit:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=[*by_hand, "lm_head"] if by_hand else None,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    with reading("its weights", settings):
        model, found = AutoModelForCausalLM.from_pretrained(
            **origin(settings, cache_dir),
            use_safetensors=True,
            dtype=dtype,
            device_map={"": device},
            quantization_config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
        )
    model.requires_grad_(False)
    model.eval()
    if published:  # else each in what its file has, or its reader makes of it
        wide = set(model._keep_in_fp32_modules_strict)
        if dtype == torch.float16:
            wide |= set(model._keep_in_fp32_modules)
        for name, weight in model.named_parameters():
            if wide.isdisjoint(name.split(".")):
                weight.data = weight.data.to(dtype)
    keep_ends(model)
    if text_part(stored) and not text_part(model.config):  # saved whole, read in part
        own = {model.base_model_prefix, *dict(model.named_children())}
        keys = found["unexpected_keys"]
        found["unexpected_keys"] = [key for key in keys if key.split(".")[0] in own]
    check_model(model, found, settings.name)
    if settings.quantization == "nf4":
        shared = {id(layer.weight): layer for layer in linear_layers(model).values()}
        for layer in shared.values():  # each weight once
            if not in_four_bits(layer):  # Transformers leaves out the last one of some models
                round_to_nf4(outputs_first(layer))
        for weight in expert_weights(model).values():
            round_to_nf4(weight)
    if four_bit and device.type == "cuda" and (apart := own_embeddings(model)):
        to_main_memory(apart)
    return model


def found(settings: Model, name: str, cache_dir: str | None) -> Path | None:
    """A file of a model, downloaded if need be; None if the model has no such file."""
    where = origin(settings, cache_dir)
    where.pop("trust_remote_code")
    place = where.pop("pretrained_model_name_or_path")
    path = cached_file(place, name, _raise_exceptions_for_missing_entries=False, **where)
    return Path(path) if path else None


def keep_ends(model: PreTrainedModel) -> None:
    """Leave nothing of how a model would generate but its special tokens: params.yaml decides.

    Transformers takes from the model's generation_config.json whatever a call does not name, and
    from its config.json whether activations are computed twice, which some caches cannot stand, and
    whether a loss of the routers is computed, which no stage has a use for.
    """
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False
        distributed.say("output_router_logits in its config.json is off: no loss of its routers")
    if model.is_gradient_checkpointing:
        model.gradient_checkpointing_disable()
    own = model.generation_config
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{key: getattr(own, key) for key in tokens})
    vars(model).pop("generate", None)  # custom_generate/generate.py


def still(model: PreTrainedModel) -> dict[str, float]:
    """Take out of a model the dropout and noise that its config asks for in training.

    params.yaml names one dropout, the adapter's; a mask that differs between the ways of a pass
    would make them learn different things. Returns what the config has other than 0, by name.
    """
    asked: dict[str, float] = {}
    for config in (model.config, model.config.get_text_config()):
        asked |= silence(config)
    for module in model.modules():
        silence(module)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return asked


def silence(owner: object) -> dict[str, float]:
    """Set to 0, and return, each chance that an object has."""
    chances = {
        name: value
        for name, value in vars(owner).items()
        if CHANCE.search(name) and type(value) in (int, float) and value
    }
    for name in chances:
        setattr(owner, name, 0.0)
    return chances


def load_skeleton(
    settings: Model, cache_dir: str | None = None, config: PretrainedConfig | None = None
) -> PreTrainedModel:
    """The model without its weights, on the meta device, to tell its sizes.

    config: what `read_config` returned, if it was read already. Raises UserError like `load_model`.
    """
    config = config or read_config(settings, cache_dir)
    with reading("its config.json", settings), torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, trust_remote_code=settings.trust_remote_code
        )


def read_config(settings: Model, cache_dir: str | None = None) -> PretrainedConfig:
    """The config of a causal model whose weights are plain numbers, or can be made such.

    Raises UserError for another kind of model, for one that is quantized otherwise, and for a
    folder without a config or safetensors.
    """
    check_folder(settings.name)
    weight_files(settings, cache_dir)
    with reading("its config.json", settings):
        config = AutoConfig.from_pretrained(**origin(settings, cache_dir))
        adapter = found(settings, "adapter_config.json", cache_dir)
    own_code = settings.trust_remote_code and hasattr(config, "auto_map")
    classes = AutoModelForCausalLM._model_mapping.get(type(config), None)
    classes = classes if isinstance(classes, list | tuple) else filter(None, [classes])
    causal = [kind.__name__ for kind in classes]
    where = f"model.name {settings.name!r}"
    if adapter:
        raise UserError(
            f"{where}: an adapter lies beside it (adapter_config.json), which would be loaded too: "
            "remove it from the folder, or take the model without it"
        )
    if getattr(config, "is_encoder_decoder", False) or not (causal or own_code):
        if text_part(config):
            raise UserError(
                f"{where}: {config.model_type} reads more than text, and Transformers has no "
                "causal language model of its text part alone: take a model of text"
            )
        raise UserError(f"{where}: {config.model_type} is no causal language model: take one")
    declared = {str(kind).lower() for kind in config.architectures or []}
    whole = config.get_text_config() is config  # else the text part of a larger model
    if declared and causal and whole and declared.isdisjoint(map(str.lower, causal)):
        raise UserError(
            f"{where}: its config.json declares {' and '.join(config.architectures)}, where a "
            f"causal model of type {config.model_type} is {causal[0]}: take a causal model"
        )
    published = quantized_by(config)
    if published and published not in EXPANDED:
        raise UserError(
            f"{where}: its config.json says that it is quantized already, by {published}: take the "
            "model that it was made from, and let model.quantization round it"
        )
    check_kinds(settings.name, ("F8_E4M3",) if published == "fp8" else ())
    return config


def text_part(config: PretrainedConfig) -> bool:
    """Whether a config is of a larger model, of which a part reads text."""
    return "text_config" in config.sub_configs


def weight_files(settings: Model, cache_dir: str | None) -> list[str]:
    """The names of a model's weight files, by its index if it has one.

    Raises UserError for an index that names other files than safetensors beside it: pickled ones,
    which a library would open, or some elsewhere.
    """
    file = None
    with suppress(OSError):  # not there, and no network: where it is needed that is told
        file = found(settings, INDEX, cache_dir)
    if file is None:
        return [SINGLE]
    remedy = "get the whole model anew, as safetensors"
    return sorted(set(read_json(file, TypeAdapter(Index), remedy).weight_map.values()))


def quantized_by(config: PretrainedConfig) -> str:
    """The method by which a model's files are quantized, "" for plain numbers."""
    found: Any = getattr(config, "quantization_config", None) or {}
    values = found if isinstance(found, dict) else found.to_dict()
    method = values.get("quant_method", "an unknown method" if values else "")
    return str(getattr(method, "value", method))


def check_kinds(name: str, others: tuple[str, ...]) -> None:
    """Raise UserError if a local model's weights are neither plain numbers nor of the others.

    Whole numbers, quantized by a program unknown, would be taken as they are.
    """
    folder = find_folder(name)
    for file in folder.glob("*.safetensors") if folder else ():
        with suppress(SafetensorError), safe_open(file, "pt") as stored:  # reported by the loading
            for key in stored.keys():  # noqa: SIM118
                kind = stored.get_slice(key).get_dtype()
                if key.endswith(".weight") and kind not in ("F64", "F32", "F16", "BF16", *others):
                    raise UserError(
                        f"{file}: {key} is of {kind}, no plain number: take the model in full "
                        "precision"
                    )


def check_folder(name: str) -> None:
    """Raise UserError for a local model without a config or safetensors."""
    folder = find_folder(name)
    if folder is None:
        return
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise UserError(
                f"model.name {name!r}: has pickled weights only, which can run code when loaded: "
                "convert them to safetensors"
            )
        raise UserError(f"model.name {name!r}: has no weights (*.safetensors): add them")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.name {name!r}: has no config.json: it is not a model folder")
    check_files(folder)


def check_files(folder: Path) -> None:
    """Raise UserError for a file of a model's folder that can be none of a model's."""
    for file in folder.iterdir():
        if not file.is_dir() and not file.is_file():
            raise UserError(f"{file}: a pipe, a device or a link to nothing: remove it")
        if file.suffix in (".safetensors", ".json", ".model", ".txt") and file.is_file():
            with file.open("rb") as stream:
                if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise UserError(f"{file}: {': '.join(NO_TEXT[LFS_POINTER])}")


@torch.no_grad()
def check_model(model: PreTrainedModel, found: dict[str, Any], name: str) -> None:
    """Raise UserError unless config and weights belong together and make a causal model.

    found: what Transformers says of the loading; it fills what is missing with random numbers and
    leaves out what has no place. Then a token must not be seen by the one before it, and no
    weight and no answer may be other than a finite number.
    """
    where = f"model.name {name!r}"
    missing, mismatched = sorted(found["missing_keys"]), sorted(found["mismatched_keys"])
    unexpected = sorted(key for key in found["unexpected_keys"] if not HARMLESS.search(key))
    for keys, what in (
        (missing, "the weights lack"),
        (mismatched, "the weights have another shape of"),
        (unexpected, "the config has no place for"),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if keys[1:] else ""
            first = keys[0] if isinstance(keys[0], str) else keys[0][0]
            raise UserError(
                f"{where}: {what} {first}{more}: its config.json and its safetensors do not "
                "belong together, get the whole model anew"
            )
    check_finite(model, where)
    check_causal(model, where)


@torch.no_grad()
def check_causal(model: PreTrainedModel, where: str) -> None:
    """Raise UserError unless the model computes finite scores that know no later token."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(8, device=model.device).view(2, 4) * (rows // 8)
    ids[:, 0] = 0
    try:
        logits = model(input_ids=ids, use_cache=False).logits.float()
    except Exception as error:  # whatever a model of a wrong config stumbles over
        if is_of_the_system(error):
            raise
        said = first_line(error)
        narrow = any(weight.dtype != torch.float32 for weight in model.parameters())
        wider = "set model.dtype to float32, or " if narrow else ""
        raise UserError(f"{where}: cannot compute ({said}): {wider}mend its config.json") from error
    if not logits.isfinite().all():
        if model.dtype == torch.float16:
            raise UserError(f"{where}: its scores are too large for float16: {WIDER}")
        raise UserError(f"{where}: computes numbers that are none: get the whole model anew")
    if (logits[0, 0] - logits[1, 0]).abs().max() > 0.05 * logits[:, 0].std():
        raise UserError(f"{where}: sees tokens that are still to come: take a causal model")


def check_finite(model: nn.Module, where: str, part: str = "") -> None:
    """Raise UserError if a weight with `part` in its name holds infinity or no number."""
    for name, weight in model.named_parameters():
        if part in name:
            check_numbers(weight, where, name)


def check_numbers(weight: torch.Tensor, where: str, name: str) -> None:
    """Raise UserError if a weight holds infinity or no number."""
    # The extremes take no memory, as isfinite of the whole weight would.
    counts = weight.is_floating_point() and weight.numel()
    if counts and not torch.stack(torch.aminmax(weight)).isfinite().all():
        if weight.dtype == torch.float16 and not weight.isnan().any():
            raise UserError(f"{where}: {name} is too large for float16: {WIDER}")
        raise UserError(f"{where}: {name} holds numbers that are none: get it anew")


def check_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[list[int]]
) -> None:
    """Raise UserError if the tokenizer is not one that the model can work with.

    texts: the token ids of all texts. A tokenizer may have more tokens than the model if no text
    uses them: some Gemma models come with one for images.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "model.name: the tokenizer has no end token, so that no answer could end: "
            "name its eos_token in tokenizer_config.json"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max([tokenizer.eos_token_id, *(max(ids, default=0) for ids in texts)])
    if largest >= rows:
        raise UserError(
            f"model.name: the tokenizer has token {largest}, but the model knows {rows} only: "
            "they do not belong together; take the tokenizer that came with the model"
        )
