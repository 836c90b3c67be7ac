"""Let a model write by the rules of verse alone, whatever model and tokenizer it is.

Before a token is chosen, those that would break a rule are masked. `decoding.constrain` names the
rules: form, rhyme and tone, as `verse.poems` judges them. A token may be a character, several,
either with a mark behind, or some bytes of a character; one that goes on behind a mark is never
taken. What may come next depends on the couplet and the row's own tokens only. Where rules leave
nothing, tone gives way first, then rhyme; form never does.
"""

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from verse.errors import UserError
from verse.generation.sampling import forbidden
from verse.generation.vocabulary import (
    CLOSE,
    MARKS,
    PAUSE,
    STOP,
    Tokens,
    among,
    any_character,
    any_mark,
    split,
    vocabulary_of,
)
from verse.params import Decoding
from verse.poem import Poem
from verse.poems.lines import FURTHER_LINES
from verse.poems.prosody import (
    ANY,
    BOOK,
    LENGTHS,
    LEVEL_GROUPS,
    READINGS,
    allowed_tones,
    final_groups,
    settled_tones,
    tone_bits,
)

SLACK_TOKENS = 8  # tokens: a line that may take so many more than it must is in no hurry
MASKS = 512  # kept


class MaskKey(NamedTuple):
    """All that decides which tokens may come next."""

    unfinished: bytes
    """The first bytes of a character or mark."""
    room: int
    """Characters that the line still wants, the unfinished one too."""
    tones: tuple[frozenset[int], ...]
    """Tone bits that the next of them may have."""
    groups: frozenset[str]
    """The line's last character has to rhyme on one of these; none where it need not, or is far."""
    taken: frozenset[str]
    """Characters that have rhymed already."""
    marks: int
    """What the mark at its end has to do."""
    tokens: int
    """How many the line may take after the next."""
    may_go_on: bool
    may_end: bool


@cache
def characters_of(tones: frozenset[int], groups: frozenset[str]) -> frozenset[str]:
    """Those of the book with one of some tone bits that rhyme on one of some groups, if any."""
    rhyming = "".join(text for reading, text in BOOK.items() if reading.group in groups)
    return frozenset(c for c in (rhyming or READINGS) if tone_bits(c) in tones)


class Constraint:
    """Which tokens the rules allow."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        ends: Iterable[int],
    ):
        """ends: tokens that end an answer. Raises UserError if the tokenizer cannot write verse."""
        self.vocabulary = vocabulary_of(tokenizer)
        self.rules, self.most = frozenset(decoding.constrain), decoding.max_new_tokens
        self.width = int(model.config.get_text_config().vocab_size)
        self.ends, self.device = [end for end in ends if 0 <= end < self.width], model.device
        self.mask = lru_cache(maxsize=MASKS)(self.make_mask)

    def start(self, couplet: str, tokens: Iterable[int] = ()) -> "VerseState":
        """An answer of so many tokens so far. Raises UserError if it has no room for two lines."""
        state = VerseState(self, couplet)
        for token in tokens:
            state.add(token)
        return state

    def allowed(self, states: Iterable["VerseState"]) -> torch.Tensor:
        """Which tokens may come next in each state, (R, vocabulary), on the model's device."""
        return torch.stack([self.mask(state.place()) for state in states])

    def make_mask(self, place: MaskKey | None) -> torch.Tensor:
        """At one place, (vocabulary,); None is behind the end."""
        mask = torch.zeros(self.width, dtype=torch.bool)
        if place is None or place.may_end:
            mask[self.ends] = True
        if place and place.may_go_on:
            tokens = self.vocabulary.after(place.unfinished)
            formed, easier = self.formed(tokens, place), place._replace(tones=())
            for asked in (place, easier, easier._replace(groups=frozenset())):
                found = formed & kept(tokens, asked)
                if found.any():
                    break
            mask[tokens.ids[found]] = True
        return mask.to(self.device)

    def formed(self, tokens: Tokens, place: MaskKey) -> torch.Tensor:
        """(T,) which tokens keep the form, and leave tokens enough to end in form."""
        left = place.room - tokens.count
        marked, begun = tokens.marks > 0, tokens.part > 0
        fits = (tokens.ids < self.width) & (left >= 0)  # the tokenizer may know more tokens
        fits &= ~marked | ((left == 0) & (tokens.marks & place.marks > 0))
        fits &= (left == 0) | tokens.leads(any_character(), frozenset())
        fits &= (left > 0) | tokens.leads(any_mark(place.marks), frozenset())
        characters = left - (begun & (left > 0)).long()
        mark = ~marked & ~(begun & (left == 0))
        short = self.vocabulary
        needed = characters * short.character + mark * short.mark + tokens.missing
        return fits & (needed <= place.tokens)


def kept(tokens: Tokens, place: MaskKey) -> torch.Tensor:
    """(T,) which tokens have no characters but those that tones and rhyme allow."""
    fits = torch.ones(len(tokens.ids), dtype=torch.bool)
    for number in range(min(place.room, tokens.reach)):
        tones = place.tones[number] if place.tones else ANY
        groups = place.groups if number == place.room - 1 else frozenset()
        if tones == ANY and not groups:
            continue
        characters, taken = characters_of(tones, groups), place.taken if groups else frozenset()
        whole = among(tokens, characters)[:, number]
        for c in taken:
            whole = whole & (tokens.characters[:, number] != ord(c))
        other = (tokens.count < number) | tokens.leads(characters, taken)
        fits &= torch.where(tokens.count > number, whole, other)
    return fits


class VerseState:
    """An answer that is being written, and what its place in the poem asks of it."""

    def __init__(self, constraint: Constraint, couplet: str):
        given = Poem(couplet).lines or ("",)
        self.constraint, self.vocabulary = constraint, constraint.vocabulary
        self.length = len(given[-1]) or min(LENGTHS)
        self.line, self.unfinished = "", b""
        self.tokens, self.lines = constraint.most, 0
        """Tokens that are left, and lines that are written."""
        self.closed = self.over = False
        self.taken, self.groups = frozenset(given[-1][-1:]), final_groups(given[-1])
        if "tone" in constraint.rules:
            self.groups = self.groups & LEVEL_GROUPS or self.groups
        bits = tuple(map(tone_bits, given[-1]))
        self.above = settled_tones((0,) * len(bits), bits)
        short = self.vocabulary
        self.line_takes = self.length * short.character + short.mark
        if (needed := self.needed(FURTHER_LINES[0])) > self.tokens:
            raise UserError(
                f"decoding.max_new_tokens: {self.tokens} are too few for {FURTHER_LINES[0]} lines "
                f"of {self.length} characters: set it to {needed} or more"
            )

    def needed(self, lines: int) -> int:
        """Tokens for so many more lines and the end, if few will do."""
        return lines * self.line_takes + 1

    def add(self, token: int) -> None:
        """What is no verse is taken too: beams try it, and let go of it."""
        self.tokens -= 1
        texts = self.vocabulary.texts  # the model may know more tokens than the tokenizer
        found = split(self.unfinished + texts[token]) if token < len(texts) else None
        if token in self.constraint.ends or found is None:
            self.over = True
            return
        text, self.unfinished = found
        for c in text:
            if c in MARKS:
                self.close(MARKS[c])
            else:
                self.line += c

    def close(self, mark: int) -> None:
        """End a line on a mark."""
        opens = self.lines % 2 == 0
        self.above = settled_tones(self.above, tuple(map(tone_bits, self.line)), opens)
        if not opens:
            self.groups = self.groups & final_groups(self.line) or self.groups
            self.taken |= {self.line[-1:]}
        self.closed = not opens and mark & CLOSE > 0
        self.line = ""
        self.lines += 1

    def place(self) -> MaskKey | None:
        """Where it stands; None behind its end, or where it is no verse any more."""
        room = self.length - len(self.line)
        if self.over or room < 0 or self.lines > FURTHER_LINES[-1]:
            return None
        starts = not self.line and not self.unfinished
        may_end = starts and self.closed and self.lines in FURTHER_LINES
        further = [lines - self.lines for lines in FURTHER_LINES if lines > self.lines]
        may_go_on = bool(further) and (not may_end or self.needed(further[0]) <= self.tokens)
        if not may_go_on:
            return MaskKey(b"", 0, (), frozenset(), frozenset(), 0, 0, False, may_end)
        opens = self.lines % 2 == 0
        reach = self.vocabulary.after(self.unfinished).reach
        tones: tuple[frozenset[int], ...] = ()
        rules = self.constraint.rules
        if "tone" in rules and self.length in LENGTHS and len(self.above) == self.length and room:
            begun = tuple(map(tone_bits, self.line))
            level = bool(self.groups & LEVEL_GROUPS)
            tones = allowed_tones(self.above, begun, opens, level)[:reach]
        rhymes = "rhyme" in rules and not opens and 0 < room <= reach
        must = room * self.vocabulary.character + self.vocabulary.mark + SLACK_TOKENS
        return MaskKey(
            unfinished=self.unfinished,
            room=room,
            tones=tones,
            groups=self.groups if rhymes else frozenset(),
            taken=self.taken if rhymes else frozenset(),
            marks=PAUSE if opens else self.closing(room, further),
            tokens=min(self.tokens - 1 - self.needed(further[0] - 1), must),
            may_go_on=True,
            may_end=may_end,
        )

    def closing(self, room: int, further: Sequence[int]) -> int:
        """What the mark has to do that closes this couplet."""
        if further[0] > 1:
            return STOP
        must = room * self.vocabulary.character + self.vocabulary.mark + SLACK_TOKENS
        more = further[1:] and self.needed(further[1] - 1) + must <= self.tokens
        return STOP if more else CLOSE


class ConstraintProcessor(LogitsProcessor):
    """The same within Transformers' own generation, for prompts of equal length."""

    def __init__(
        self,
        constraint: Constraint,
        couplets: Sequence[str],
        prompt_length: int,
        decoding: Decoding,
    ):
        """couplets: one for each prompt, which has as many rows as there are beams."""
        self.constraint, self.couplets = constraint, couplets
        self.prompt_length, self.decoding = prompt_length, decoding

    def allowed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which tokens may come next, (R, vocabulary)."""
        beams = len(input_ids) // len(self.couplets)
        return self.constraint.allowed(
            self.constraint.start(self.couplets[row // beams], ids)
            for row, ids in enumerate(input_ids[:, self.prompt_length :].tolist())
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        lengths = torch.full_like(input_ids[:, 0], input_ids.shape[1])
        allowed = self.allowed(input_ids)
        for _, left in forbidden(scores, input_ids, lengths, self.decoding, allowed):
            scores = left
        return scores
