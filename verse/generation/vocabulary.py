"""What the tokens of a tokenizer write of verse: characters, marks, and parts of either."""

import re
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import torch
from transformers import PreTrainedTokenizerBase

from verse.errors import UserError
from verse.model.encoding import decode, id_bound
from verse.poems.lines import CLOSES, IDEOGRAPHS, PAUSES, STOPS

PAUSE, STOP, CLOSE = 1, 2, 4  # bits: what a mark may do
MARKS = {
    mark: PAUSE * (mark in PAUSES) + STOP * (mark in STOPS) + CLOSE * (mark in CLOSES)
    for mark in PAUSES + STOPS + CLOSES
}
BYTES = 3  # of a mark, and of any character that is written in parts
BEYOND = 0x40000  # any ideograph's code point
BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of verse after an unfinished character, by what they and that have written."""

    ids: torch.Tensor
    """(T,)"""
    characters: torch.Tensor
    """(T, C + 1) whole ones by their code points; 0 behind the last."""
    count: torch.Tensor
    """(T,) how many there are, C at most."""
    marks: torch.Tensor
    """(T,) what the mark behind them may do; 0 without one."""
    part: torch.Tensor
    """(T,) which of `parts` stands at the end."""
    parts: list[bytes]
    """Characters' first bytes; none to begin with."""

    @cached_property
    def reach(self) -> int:
        """How many characters a token has a part in, at most."""
        return max((self.count + (self.part > 0)).tolist(), default=0)

    @cached_property
    def missing(self) -> torch.Tensor:
        """(T,) bytes that a part at the end still wants."""
        return torch.tensor([BYTES - len(part) if part else 0 for part in self.parts])[self.part]

    def leads(self, characters: frozenset[str], taken: frozenset[str]) -> torch.Tensor:
        """(T,) whether a part at the end, if there is one, can become one of the characters."""
        led = by_beginning(characters)
        can = [not part or not led.get(part, taken) <= taken for part in self.parts]
        return torch.tensor(can)[self.part]


@lru_cache(maxsize=256)
def among(tokens: Tokens, characters: frozenset[str]) -> torch.Tensor:
    """(T, C + 1) which characters are among some."""
    flags = torch.zeros(BEYOND, dtype=torch.bool)
    flags[torch.tensor([ord(c) for c in characters], dtype=torch.long)] = True
    return flags[tokens.characters]


class Vocabulary:
    """What a tokenizer's tokens write. Raises UserError if they cannot write any verse."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.texts = token_bytes(tokenizer)
        self.inner = [n for n, text in enumerate(self.texts) if text and 0x80 <= text[0] < 0xC0]
        """Tokens that begin within a character."""
        self.found: dict[bytes, Tokens] = {}
        alone = {text[0] for text in self.texts if len(text) == 1}
        self.bytewise = alone.issuperset((*range(0x80, 0xC0), *range(0xE3, 0xF0)))
        """Whether any character of three bytes can be written in parts."""
        whole = self.after(b"")
        bare = whole.marks[whole.count == 0]
        single = (whole.count == 1) & (whole.marks == 0) & (whole.part == 0)
        self.character = 1 if bool(single.any()) else BYTES
        """Tokens that a character takes, if few will do."""
        self.mark = 1 if all(bool((bare & does).any()) for does in (PAUSE, CLOSE)) else BYTES
        """Tokens that a mark takes."""
        finished = whole.ids[whole.part == 0].tolist()
        text = b"".join(self.texts[token] for token in finished).decode()
        if BYTES in (self.character, self.mark) and not self.bytewise:
            raise UserError(unfit("lacks Chinese characters or punctuation"))
        if decode(tokenizer, finished) != text:
            raise UserError(unfit("sets something between its tokens"))

    def after(self, unfinished: bytes) -> Tokens:
        """What can follow the first bytes of a character, or none."""
        if unfinished not in self.found:
            self.found[unfinished] = self.read(unfinished)
        return self.found[unfinished]

    def read(self, unfinished: bytes) -> Tokens:
        tokens, bodies, marks, places, parts = [], [], [], [], {b"": 0}
        for token in self.inner if unfinished else range(len(self.texts)):
            found = verse_in(unfinished + self.texts[token])
            if found and (self.bytewise or not found[2]):
                body, mark, rest = found
                tokens.append(token)
                bodies.append(body)
                marks.append(MARKS.get(mark, 0))
                places.append(parts.setdefault(rest, len(parts)))
        width = max(map(len, bodies), default=0) + 1
        codes = [[ord(c) for c in body] + [0] * (width - len(body)) for body in bodies]
        counts = [len(body) for body in bodies]
        ids, count, does, part = (
            torch.tensor(one, dtype=torch.long) for one in (tokens, counts, marks, places)
        )
        characters = torch.tensor(codes, dtype=torch.long).reshape(len(tokens), width)
        return Tokens(ids, characters, count, does, part, list(parts))


vocabulary_of = lru_cache(maxsize=4)(Vocabulary)
"""A large vocabulary takes a second to read."""


def unfit(reason: str) -> str:
    return f"decoding.constrain: the model's tokenizer {reason}: set it to []"


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """What each token writes, in UTF-8; nothing for a special one."""
    ids = range(id_bound(tokenizer))
    names = [name or "" for name in tokenizer.convert_ids_to_tokens([*ids])]  # ids may have gaps
    backend = getattr(tokenizer, "backend_tokenizer", None)
    letters = byte_letters() if "ByteLevel" in repr(getattr(backend, "decoder", None)) else {}
    added = tokenizer.added_tokens_decoder
    texts = []
    for token, name in enumerate(names):
        if token in added:
            texts.append(b"" if added[token].special else added[token].content.encode())
        elif byte := BYTE.fullmatch(name):
            texts.append(bytes([int(byte[1], 16)]))
        elif letters and all(letter in letters for letter in name):
            texts.append(bytes(letters[letter] for letter in name))
        else:
            texts.append(name.encode())
    return texts


def byte_letters() -> dict[str, int]:
    """How byte-level tokenizers write bytes, as GPT-2's did: letter -> byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + n): b for n, b in enumerate(others)}


def verse_in(text: bytes) -> tuple[str, str, bytes] | None:
    """Characters, the mark behind them or "", and the first bytes of another character or mark;
    None if a text is anything else, or nothing.
    """
    found = split(text)
    if found is None or not text:
        return None
    body, part = found
    mark = body[-1:] if body[-1:] in MARKS else ""
    body = body.removesuffix(mark)
    if (body and not IDEOGRAPHS.fullmatch(body)) or (mark and part):
        return None
    led = not part or part in by_beginning(any_character()) or part in by_beginning(any_mark())
    return (body, mark, part) if led else None


def split(text: bytes) -> tuple[str, bytes] | None:
    """The whole characters of some bytes, and the first bytes of another; None if it is no UTF-8.

    >>> split("山水".encode()[:5]) == ("山", "水".encode()[:2])
    True
    """
    part = b""
    for length in range(1, min(BYTES, len(text) + 1)):
        lead = text[-length]
        if lead >= 0xC0:  # begins a character of 2, 3 or 4 bytes
            whole = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 0
            part = text[-length:] if length < whole else b""
            break
    try:
        return text[: len(text) - len(part)].decode(), part
    except UnicodeDecodeError:
        return None


@cache
def any_character() -> frozenset[str]:
    """Those that may be written in parts."""
    text = "".join(chr(code) for code in (*range(0x3000, 0xD800), *range(0xE000, 0x10000)))
    return frozenset("".join(IDEOGRAPHS.findall(text)))


@cache
def any_mark(bits: int = PAUSE | STOP | CLOSE) -> frozenset[str]:
    """Those that may do one of some things."""
    return frozenset(mark for mark, does in MARKS.items() if does & bits)


@cache
def by_beginning(characters: frozenset[str]) -> dict[bytes, frozenset[str]]:
    """First bytes -> those of the characters, of BYTES bytes each, that begin so."""
    found: dict[bytes, set[str]] = {}
    for c in characters:
        text = c.encode()
        for length in range(1, BYTES) if len(text) == BYTES else ():
            found.setdefault(text[:length], set()).add(c)
    return {part: frozenset(led) for part, led in found.items()}
