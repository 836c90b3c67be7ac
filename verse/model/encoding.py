"""Tokenizers, and the token ids of prompts and completions."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from verse.errors import UserError, is_of_the_system
from verse.hub import find_folder, origin, reading
from verse.params import Model

pooled = cache(int)
"""A token id as the one object that all poems share: each of their own would take 32 bytes."""
AT_ONCE = 1000  # texts given to a tokenizer, which needs some kilobytes for each
BLANK = re.compile(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])")


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


@lru_cache(maxsize=4)
def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of tokens that are no text, which decoding leaves out."""
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {i for i in added if added[i].special}


def id_bound(tokenizer: PreTrainedTokenizerBase) -> int:
    """What all token ids are below: more than the number of tokens where ids have gaps."""
    known = chain(tokenizer.get_vocab().values(), special_tokens(tokenizer))
    return max(len(tokenizer), int(max(known)) + 1)


@lru_cache(maxsize=4)
def affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The token ids that `tokenizer(text)` by itself puts before a text, and behind it."""
    known = (i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids)
    for text in chain(["一"], map(tokenizer.decode, known)):  # one that it has a token for
        if bare := tokenizer(text, add_special_tokens=False)["input_ids"]:
            break
    ids = tokenizer(text)["input_ids"]
    for start in range(len(ids) - len(bare) + 1):
        if ids[start : start + len(bare)] == bare:
            return ids[:start], ids[start + len(bare) :]
    return [], []


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], **options: bool
) -> list[list[int]]:
    """Their token ids: with what the tokenizer puts before a text, such as the start token, and
    without what it puts behind. options: the tokenizer's.

    Raises UserError for a text that the tokenizer fails on.
    """
    behind = 0 if options else len(affixes(tokenizer)[1])
    found: list[list[int]] = []
    for start in range(0, len(prompts), AT_ONCE):
        try:
            some = tokenizer(prompts[start : start + AT_ONCE], **options)["input_ids"]
        except Exception as error:  # such as one without a token for what it does not know
            if is_of_the_system(error):
                raise
            raise UserError(
                f"model.name: its tokenizer fails on a poem ({error}): take a model that knows "
                "Chinese text"
            ) from error
        found += [list(map(pooled, ids[: len(ids) - behind])) for ids in some]
    return found


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """What token ids write, without special tokens: the text of an answer wherever one is read.

    Blanks that the tokenizer sets between Chinese characters of its own accord are left out.
    """
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return BLANK.sub("", text) if sets_blanks(tokenizer) else text


@lru_cache(maxsize=4)
def sets_blanks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer writes blanks between characters that have none, as BERT's does."""
    ids = tokenizer("山水", add_special_tokens=False)["input_ids"]
    return " " in tokenizer.decode(ids).strip()


def common_prefix(texts: Sequence[list[int]]) -> list[int]:
    """The longest beginning that all texts share, leaving each a token of its own."""
    most = max(min(map(len, texts), default=0) - 1, 0)
    return list(os.path.commonprefix(texts))[:most]  # noqa: RUF071 (of any sequences)


def encode_poems(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    end: int,
) -> list[Example]:
    """Token ids of poems. The prompts' are those that generation will start from.

    A tokenizer may merge characters across the seam between prompt and completion; generation
    never does, so in that case the completion is encoded behind a line break, where no tokenizer
    adds a blank. end: what ends each.
    """
    given = encode_prompts(tokenizer, prompts)
    whole = encode_prompts(tokenizer, [a + b for a, b in zip(prompts, completions, strict=True)])
    examples = []
    for before, ids, text in zip(given, whole, completions, strict=True):
        if ids[: len(before)] == before:
            answer = ids[len(before) :]
        else:
            both = encode_prompts(tokenizer, ["\n", f"\n{text}", text], add_special_tokens=False)
            parted = both[0] and both[1][: len(both[0])] == both[0]
            answer = both[1][len(both[0]) :] if parted else both[2]
        examples.append(Example(before, [*answer, end], len(text) + 1))
    return examples


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
