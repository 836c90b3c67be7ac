"""A poem's way into a model and out of it, held against the poem.

A model whose chat template loses the couplet, or whose tokenizer cannot write a character, trains
and answers all the same, and what it says is worth nothing.
"""

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain

from transformers import PreTrainedTokenizerBase

from verse.errors import UserError, printable
from verse.model import distributed
from verse.model.encoding import Example, affixes, decode, encode_prompts, special_tokens
from verse.poem import Poem

MOST = 0.5  # of the poems: where more are unsound, nothing of worth comes of them
SHOWN = 30  # characters of a text

LOST = "the chat template leaves out a part of it"
TWICE = "its prompt begins twice with"
HELD = "its text holds the special token"
UNKNOWN = "the tokenizer has no token for"
CHANGED = "the tokenizer makes of its text"
REMEDIES = {
    LOST: "set model.template to plain, or mend the chat template in its tokenizer_config.json",
    TWICE: "set model.template to plain, or let only one of chat template and tokenizer write it",
    HELD: "take it out of the poem",
    UNKNOWN: "take a model that knows them, or other poems",
    CHANGED: "take a model whose tokenizer gives Chinese text back as it was",
}
ALWAYS = (TWICE, HELD)
"""What stops the work even if it is one poem's: no model and no count of poems excuses it."""


def check(
    tokenizer: PreTrainedTokenizerBase,
    poems: Sequence[Poem],
    prompts: Sequence[str],
    encoded: Sequence[Example | list[int]],
) -> None:
    """Hold the token ids of poems, or of their prompts alone, against the poems.

    prompts: their texts. Tells in a line, on the error stream, how many poems are unsound; raises
    UserError if most are, or one in a way that is never to be taken.
    """
    unsound: dict[str, list[tuple[int, str]]] = {}
    for number, fault in enumerate(faults(tokenizer, poems, prompts, encoded), 1):
        if fault:
            what, detail = fault
            unsound.setdefault(what, []).append((number, detail))
    most = sum(map(len, unsound.values())) > MOST * len(poems)
    for what in sorted(unsound, key=lambda what: (what not in ALWAYS, -len(unsound[what]))):
        (number, detail), *others = unsound[what]
        poem = f"{number} ({poems[number - 1].couplet})"
        said = f"{what} {detail[:SHOWN]}".rstrip()
        if most or what in ALWAYS:
            more = f", and {len(others)} more of {len(poems)} are alike" if others else ""
            raise UserError(f"poem {poem}: {said}{more}: {REMEDIES[what]}")
        if distributed.rank() == 0:
            line = f"{len(others) + 1} of {len(poems)} poems are unsound, such as {poem}: {said}"
            print(printable(line), file=sys.stderr, flush=True)


def faults(
    tokenizer: PreTrainedTokenizerBase,
    poems: Sequence[Poem],
    prompts: Sequence[str],
    encoded: Sequence[Example | list[int]],
) -> Iterator[tuple[str, str] | None]:
    """What is wrong with each poem, of REMEDIES, and the text it is wrong with; None for a sound
    poem."""
    before, special = affixes(tokenizer)[0], special_tokens(tokenizer)
    starts, place = before or [tokenizer.bos_token_id], max(1, len(before))
    unknown = unknown_id(tokenizer)

    @cache
    def is_unknown(character: str) -> bool:
        return unknown in tokenizer(character, add_special_tokens=False)["input_ids"]

    for poem, prompt, one in zip(poems, prompts, encoded, strict=True):
        ids, answer, text = (
            (one.prompt, one.completion[:-1], poem.rest)
            if isinstance(one, Example)
            else (one, [], "")
        )
        asked, read = [poem.instruction, poem.couplet], decode(tokenizer, ids)
        written = decode(tokenizer, answer)
        changed = [part for part in asked if not holds(read, [part])]
        parts = tokenizer(changed, add_special_tokens=False)["input_ids"] if changed else []
        held = special.intersection(chain(answer, *parts)) - {unknown}
        strange = ""
        if unknown is not None and (unknown in ids or unknown in answer):  # of the poem's own text
            own = "".join(("".join(asked) + text).split())
            strange = "、".join(filter(is_unknown, dict.fromkeys(own)))
        if not holds(prompt, asked):
            yield LOST, ""
        elif len(ids) > place and ids[0] in starts and ids[place] in starts:
            yield TWICE, tokenizer.decode(ids[:1])
        elif held:
            yield HELD, tokenizer.decode([min(held)])
        elif strange:
            yield UNKNOWN, strange
        elif written != text:
            yield CHANGED, written
        elif changed:
            yield CHANGED, decode(tokenizer, tokenizer(changed[0])["input_ids"])
        else:
            yield None


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token of what a tokenizer does not know; None as in GPT-2's, which writes every byte."""
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return None if tokenizer.unk_token_id in ends else tokenizer.unk_token_id


def tokenless(tokenizer: PreTrainedTokenizerBase, poems: Sequence[Poem]) -> str:
    """The share of the poems' characters that have no token of their own, in a line; "" if none.

    Those unknown to the tokenizer are lost, those in bytes take several tokens each.
    """
    counts = Counter(chain.from_iterable("".join(poem.lines) for poem in poems))
    unknown, found = unknown_id(tokenizer), Counter[str]()
    tokens = encode_prompts(tokenizer, [*counts], add_special_tokens=False)
    for (character, count), ids in zip(counts.items(), tokens, strict=True):
        if unknown is not None and unknown in ids:
            found["are unknown to it"] += count
        elif not any(character in tokenizer.decode([i]) for i in ids):
            found["take several tokens each, of bytes"] += count
    shares = [f"{count / counts.total():.2%} {what}" for what, count in sorted(found.items())]
    return f"tokenizer: of the poems' characters {', '.join(shares)}" if shares else ""


def holds(text: str, parts: list[str]) -> bool:
    """Whether all parts stand in a text, as they are or squeezed."""
    if all(part in text for part in parts):
        return True
    text = squeezed(text)
    return all(squeezed(part) in text for part in parts)


def squeezed(text: str) -> str:
    """A text without what tokenizers may change in a prompt and no reader minds: white space, case,
    the width of letters and marks."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
