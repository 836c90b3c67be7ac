"""Load a causal model: device, precision, NF4.

QLoRA trains an adapter on a base model whose weights have been rounded to 4 bits (NF4 with
double quantization, Dettmers et al. 2023, arXiv:2305.14314). Where memory allows, each
rounded weight is expanded back once instead of in every forward pass: the same numbers, and
several times faster. On a CPU that is the only sound way: bitsandbytes repacks 4-bit weights
in place during evaluation there, and gradients through them are wrong afterwards.
"""

import logging
import os
import warnings
from collections.abc import Iterable

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from verse.errors import UserError
from verse.hub import find_folder, origin, reading
from verse.params import Model

# Transformers renames gradient checkpointing; PEFT and its own earlier versions know the old name.
warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
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
    """The device for "auto", "cuda" or "cpu". Raises UserError for a GPU that is not there."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "machine.device is cuda but PyTorch sees no GPU: set machine.device to auto or cpu, "
            "or install a driver and a CUDA build of torch"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The precision for "auto" or a name: bfloat16 where the hardware multiplies it."""
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def load_model(
    settings: Model,
    device: torch.device,
    dtype: torch.dtype,
    *,
    expanded: bool = True,
    cache_dir: str | None = None,
) -> PreTrainedModel:
    """The base model in evaluation mode, its weights frozen.

    With quantization nf4, the linear layers but the output layer are rounded to NF4. They stay
    plain linear layers of `dtype` if `expanded` or on a CPU; else they keep their 4 bits.
    cache_dir: where downloads from the hub are kept; None takes Hugging Face's own place.
    Raises UserError for a model that is missing, gated, without safetensors or unreadable.
    """
    check_weights(settings.name)
    four_bit = settings.quantization == "nf4" and not expanded and device.type == "cuda"
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    with reading("its weights", settings):
        model = AutoModelForCausalLM.from_pretrained(
            **origin(settings, cache_dir),
            use_safetensors=True,
            dtype=dtype,
            device_map={"": device},
            quantization_config=config if four_bit else None,
        )
    model.requires_grad_(False)
    model.eval()
    if settings.quantization == "nf4" and not four_bit:
        round_to_nf4(model)
    return model


def load_skeleton(settings: Model, cache_dir: str | None = None) -> PreTrainedModel:
    """The model without its weights, on the meta device, to tell its sizes.

    Raises UserError like `load_model`.
    """
    check_weights(settings.name)
    with reading("its config.json", settings), torch.device("meta"):
        config = AutoConfig.from_pretrained(**origin(settings, cache_dir))
        return AutoModelForCausalLM.from_config(
            config, trust_remote_code=settings.trust_remote_code
        )


def check_weights(name: str) -> None:
    """Raise UserError for a local model without a folder, a config or safetensors."""
    folder = find_folder(name)
    if folder is None:
        return
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise UserError(
                f"model.name {name!r}: has pickled weights only, which can run code when loaded: "
                "convert them to safetensors"
            )
        raise UserError(f"model.name {name!r}: has no weights (*.safetensors)")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.name {name!r}: has no config.json: it is not a model folder")


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


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers that QLoRA quantizes: all but the output layer."""
    output = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    }


@torch.no_grad()
def round_to_nf4(model: PreTrainedModel) -> None:
    """Replace each linear weight by its NF4 value, in place, keeping the layers plain."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # slow to import

    for layer in linear_layers(model).values():
        packed, state = quantize_4bit(
            layer.weight.contiguous(), quant_type="nf4", compress_statistics=True
        )
        layer.weight.copy_(dequantize_4bit(packed, state))
