"""Tokenizers, and the token ids of prompts and completions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from verse.errors import UserError
from verse.hub import find_folder, origin, reading
from verse.params import Model

pooled = cache(int)
"""A token id as the one object that all poems share: each of their own would take 32 bytes."""


@dataclass(frozen=True, slots=True)
class Example:
    """One poem as token ids; `completion` ends with the end token, exactly once."""

    prompt: list[int]
    completion: list[int]
    characters: int  # of the completion's text, the end counted as one

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


def load_tokenizer(settings: Model, cache_dir: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model: a folder, or one on the Hugging Face hub.

    cache_dir: where downloads from the hub are kept; None takes Hugging Face's own place. Raises
    UserError: no such folder or model or revision, no tokenizer in it, one that cannot be read,
    gated, no network.
    """
    folder = find_folder(settings.name)
    if folder and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        raise UserError(
            f"model.name {settings.name!r}: no tokenizer in this folder: "
            "put the model's tokenizer files there, such as tokenizer.json"
        )
    with reading("its tokenizer", settings):
        return AutoTokenizer.from_pretrained(**origin(settings, cache_dir))


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `tokenizer(text)` by itself puts the start token before the text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("一")["input_ids"][:1] == [bos]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Its token ids, with the start token if the tokenizer has one, never with the end token."""
    ids = list(map(pooled, tokenizer(prompt)["input_ids"]))
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids


def common_prefix(texts: Sequence[list[int]]) -> list[int]:
    """The longest beginning that all texts share, leaving each a token of its own."""
    if not texts:
        return []
    first, last = min(texts), max(texts)
    length = max(min(map(len, texts)) - 1, 0)
    for index in range(length):
        if first[index] != last[index]:
            length = index
            break
    return first[:length]


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> Example:
    """Token ids of a poem. The prompt's are those that generation will start from.

    A tokenizer may merge characters across the seam between prompt and completion; generation
    never does, so in that case the completion is encoded on its own.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    ids = encode_prompt(tokenizer, prompt + completion)
    if ids[: len(prompt_ids)] == prompt_ids:
        answer = ids[len(prompt_ids) :]
    else:
        answer = list(map(pooled, tokenizer(completion, add_special_tokens=False)["input_ids"]))
    return Example(prompt_ids, [*answer, tokenizer.eos_token_id], len(completion) + 1)


def positions(config: PretrainedConfig) -> int | None:
    """How many tokens a text may have for a model of this config; None if there is no bound.

    Stretched rotary positions reach as much further.
    """
    text = config.get_text_config()
    known = getattr(text, "max_position_embeddings", None)
    stretched = getattr(text, "rope_parameters", None) or {}
    factor = stretched.get("factor") if isinstance(stretched.get("factor"), int | float) else None
    return int(known * max(1, factor or 1)) if isinstance(known, int) and known > 0 else None


def check_lengths(lengths: Iterable[int], positions: int | None, new_tokens: int = 0) -> None:
    """Raise UserError if a text, with so many tokens to be written, has no room in the model.

    lengths: tokens of each text, in the order of the poems.
    """
    length, number = max(
        ((length, -number) for number, length in enumerate(lengths, 1)), default=(0, 0)
    )
    if positions is None or length + new_tokens <= positions:
        return
    if length < positions and new_tokens:
        raise UserError(
            f"decoding.max_new_tokens: {new_tokens} after a prompt of {length} tokens are more "
            f"than the model's {positions} positions: set it to {positions - length} or less"
        )
    raise UserError(
        f"poem {-number}: {length} tokens are more than the model's {positions} positions: shorten "
        "its instruction or lines, or take another model"
    )
