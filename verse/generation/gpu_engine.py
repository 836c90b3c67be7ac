"""The engine on a GPU: prompts of all lengths in slots of a fixed number.

What all prompts begin with is read once and held once. Each slot has places for the rest of a
prompt and its answer. A step of all slots, their draws included, is recorded as a CUDA graph; a
slot whose row has ended keeps computing, its output ignored, until another prompt takes it, or
until so few are left that fewer slots are worth it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from verse.generation.engine import ENGINE, watched_rows
from verse.generation.sampling import Drawn, check_scores, sample
from verse.model.attention import Attention, attention, no_mask
from verse.model.encoding import common_prefix
from verse.model.graphs import AsyncHostCopy, Graph, to_device_async, warn_fallback
from verse.model.loading import widest_float
from verse.model.sharding import is_sharded
from verse.params import Decoding

MULTIPLE = 8  # of sizes that kernels like
FEW = 64  # slots, in a step of which a model's weights are most of what is read
READ_AT_ONCE = 4096  # tokens of prompts in a pass
Computed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of a step, by slot: the scores, (slots, vocabulary), and what was drawn, as `Drawn` has it."""


class GPUEngine:
    """An `Engine` whose rows are in slots."""

    def __init__(
        self, model: PreTrainedModel, decoding: Decoding, prompts: Sequence[list[int]], rows: int
    ):
        """prompts: all that will be added, up to so many rows at a time."""
        self.model, self.decoding, self.device = model, decoding, model.device
        shared = common_prefix(list(prompts))
        self.prefix = shared[: len(shared) - len(shared) % MULTIPLE]
        longest = max(map(len, prompts)) + decoding.max_new_tokens
        self.places = rounded(longest - len(self.prefix))
        self.slots = rounded(rows)
        self.order: list[int] = []
        """The slot of each row."""
        self.prefix_held: dict[int, torch.Tensor] = {}
        """By layer, keys and values of the prefix, (2, K, P, D)."""
        self.held: dict[int, torch.Tensor] = {}
        """By layer, keys and values of the rest, (2, slots, K, places, D)."""
        self.history = torch.zeros(self.slots, longest, dtype=torch.long, device=self.device)
        self.lengths = torch.full((self.slots,), len(self.prefix) + 1, device=self.device)
        self.starts = self.lengths.clone()
        """How long each slot's prompt is."""
        self.uniforms = torch.zeros(
            self.slots,
            decoding.max_new_tokens,
            dtype=widest_float(self.device),
            device=self.device,
        )
        """By which each slot draws its tokens."""
        self.allowed: torch.Tensor | None = None
        """Which tokens each slot may take, (slots, vocabulary); None for all."""
        self.graph: Graph[Computed] | None = None
        self.sharded = is_sharded(model)
        self.recordable = self.device.type == "cuda" and not self.sharded
        self.under_way: list[AsyncHostCopy] | None = None
        """What a step finds that was begun before it was asked for."""
        self.watched, self.shown = False, torch.zeros(0)
        self.into: torch.Tensor | None = None
        """The slots that a pass reads prompts into; None if it is a step of all slots."""
        self.source: torch.Tensor | None = None
        """Which row of that pass each of them gets."""
        self.hidden: dict[int | None, torch.Tensor] = {}
        """What the tokens of this pass do not see, by the window of a layer."""
        self.ends: Any = None
        """The place of each slot's last token, as an index into what a layer holds."""
        if self.prefix:
            with quickly():
                self.forward(torch.tensor([self.prefix], device=self.device), 0, predict=False)

    def prefill(self, prompts: list[list[int]], uniforms: torch.Tensor) -> None:
        """Equal ones are read once."""
        self.under_way = None  # of rows that have all ended
        taken = set(self.order)
        slots = [slot for slot in range(self.slots) if slot not in taken][: len(prompts)]
        self.order += slots
        slots_of: dict[tuple[int, ...], list[int]] = {}
        for slot, prompt in zip(slots, prompts, strict=True):
            slots_of.setdefault(tuple(prompt), []).append(slot)
        texts, start = list(slots_of), len(self.prefix)
        at_once = max(1, READ_AT_ONCE // max(len(text) - start for text in texts))
        with quickly():
            index = to_device_async(torch.tensor(slots), self.device)
            lengths = to_device_async(torch.tensor(list(map(len, prompts))), self.device)
            self.lengths[index] = self.starts[index] = lengths
            self.uniforms[index] = to_device_async(uniforms.to(self.uniforms.dtype), self.device)
            for first in range(0, len(texts), at_once):
                some = texts[first : first + at_once]
                into = [(slot, row) for row, text in enumerate(some) for slot in slots_of[text]]
                self.into, self.source = to_device_async(torch.tensor(into), self.device).unbind(1)
                ids = pad_sequence([torch.tensor(text) for text in some], batch_first=True)
                ids, width = to_device_async(ids, self.device), ids.shape[1]
                self.history[self.into, :width] = ids[self.source]
                if width - 1 > start:
                    self.forward(ids[:, start:-1], start, predict=False)
        self.into = None

    def forward(self, ids: torch.Tensor, starts: Any, *, predict: bool) -> Any:
        """Let the model see Q more tokens of each row; its scores (N, Q, vocabulary) if wanted.

        starts: how many tokens a row has had, one number or a column of them.
        """
        positions = starts + torch.arange(ids.shape[1], device=self.device)
        self.hidden.clear()
        places = 0 if predict else torch.zeros(0, dtype=torch.long, device=self.device)
        with attention(self.model, ENGINE):
            return self.model(
                input_ids=ids,
                position_ids=positions.expand(ids.shape),
                attention_mask=no_mask(self.device),
                use_cache=False,
                logits_to_keep=places,
                engine=self,
            ).logits

    def scores(self) -> torch.Tensor:
        """Those of the token that comes next in each slot, (slots, vocabulary)."""
        last = self.lengths[:, None] - 1
        every = torch.arange(self.slots, device=self.device)
        self.ends = every, slice(None), last[:, 0] - len(self.prefix)
        return self.forward(self.history.gather(1, last), last, predict=True)[:, -1]

    def decode(self, allowed: torch.Tensor | None = None, *, prefetch: bool = False) -> Drawn:
        with quickly():
            found, self.under_way = self.under_way, None
            if found is None:
                if self.mostly_empty():
                    self.shrink()
                if allowed is not None:
                    if self.allowed is None:
                        self.allowed = allowed.new_ones(self.slots, allowed.shape[1])
                    self.allowed[self.order] = allowed
                found = self.begin()
            if prefetch and not self.sharded and not self.mostly_empty():
                self.under_way = self.begin()
        tokens, logprobs = (reading.value()[self.order] for reading in found)
        check_scores(logprobs)
        return tokens, logprobs

    def begin(self) -> list[AsyncHostCopy]:
        if self.graph is None:
            self.graph = self.record()
        scores, *drawn = self.graph([]) if self.graph else self.compute()
        if self.watched:  # a copy, since the next step overwrites them
            self.shown = torch.stack(
                [scores[self.order[row]] for row in watched_rows(len(self.order))]
            )
        return [AsyncHostCopy(part) for part in drawn]

    def compute(self, _: Sequence[torch.Tensor] = ()) -> Computed:
        scores = self.scores()
        turns = (self.lengths - self.starts).clamp(max=self.uniforms.shape[1] - 1)
        uniforms = self.uniforms.gather(1, turns[:, None])[:, 0]
        tokens, logprobs = sample(
            scores, self.history, self.lengths, uniforms, self.decoding, self.allowed
        )
        # A slot whose output is ignored stays within its room.
        room = self.history.shape[1]
        self.history.scatter_(1, self.lengths.clamp(max=room - 1)[:, None], tokens[:, None])
        self.lengths.add_(1).clamp_(max=room)
        return scores, tokens, logprobs

    def record(self, beside: Graph[Computed] | None = None) -> Graph[Computed] | None:
        if self.recordable:
            if not self.held:  # what is made while recording would be made anew in each step
                self.scores()
            try:
                return Graph(self.compute, [], beside)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                warn_fallback("without a CUDA graph, which would be faster", error)
                self.recordable = False
        return None

    def mostly_empty(self) -> bool:
        """Whether to move to fewer slots: recording them anew takes as long as a dozen steps, and
        few slots take little less time than some more."""
        return len(self.order) <= self.slots // 4 and self.slots > FEW

    def shrink(self) -> None:
        """Move the rows to as few slots as hold them."""
        slots = rounded(len(self.order))
        index = torch.tensor(
            self.order + self.order[:1] * (slots - len(self.order)), device=self.device
        )
        for layer in self.held:
            self.held[layer] = self.held[layer][:, index]
        self.history, self.uniforms = self.history[index], self.uniforms[index]
        self.lengths, self.starts = self.lengths[index], self.starts[index]
        if self.allowed is not None:
            self.allowed = self.allowed[index]
        self.slots, self.order = slots, list(range(len(self.order)))
        self.graph = self.record(self.graph)

    def evict(self, rows: list[int]) -> None:
        self.order = [self.order[row] for row in rows]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        how: Attention,
    ) -> torch.Tensor:
        count, heads, tokens, size = query.shape
        keys, shared = key.shape[1], len(self.prefix)
        if layer not in self.prefix_held:
            if shared:  # this pass is the one that reads it
                self.prefix_held[layer] = torch.stack([key[0], value[0]])
                return self.look(query, key, value, how)
            self.prefix_held[layer] = key.new_empty(2, keys, 0, size)
        if layer not in self.held:
            self.held[layer] = key.new_zeros(2, self.slots, keys, self.places, size)
        held = self.held[layer]
        if self.into is None:
            held[0][self.ends], held[1][self.ends] = key[:, :, 0], value[:, :, 0]
            key, value = held
        else:
            held[0, self.into, :, :tokens] = key[self.source]
            held[1, self.into, :, :tokens] = value[self.source]

        # All rows meet the prefix's keys in one product, and each its own keys in another.
        shared_keys, shared_values = self.prefix_held[layer]
        queries = heads // keys * tokens  # that have one key
        grouped = (query * how.scale).reshape(count, keys, queries, size)
        together = grouped.transpose(0, 1).reshape(keys, count * queries, size)
        to_prefix = (together @ shared_keys.transpose(1, 2)).view(keys, count, queries, shared)
        scores = torch.cat([to_prefix.transpose(0, 1), grouped @ key.transpose(2, 3)], -1)
        rows = how.cap(scores).view(count, heads, tokens, scores.shape[-1])
        rows.masked_fill_(self.unseen(tokens, how.window), -torch.inf)
        weights = how.shares(rows).view(scores.shape)  # in float32, whatever it comes from
        weights_of_prefix = weights[..., :shared].transpose(0, 1)
        seen = weights_of_prefix.reshape(keys, count * queries, shared) @ shared_values
        seen = seen.view(keys, count, queries, size).transpose(0, 1)
        return (seen + weights[..., shared:] @ value).reshape(query.shape)

    def unseen(self, tokens: int, window: int | None) -> torch.Tensor:
        """Which places, the prefix's and its own, each token does not see: (N or 1, 1, Q, L)."""
        if window not in self.hidden:
            shared = len(self.prefix)
            if self.into is None:
                at, places = self.lengths[:, None] - 1, shared + self.places
            else:
                at = shared + torch.arange(tokens, device=self.device)[None]
                places = shared + tokens
            ahead = at[..., None] - torch.arange(places, device=self.device)
            self.hidden[window] = far(ahead, window)[:, None]
        return self.hidden[window]

    def look(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        how: Attention,
    ) -> torch.Tensor:
        """Plain attention within the prefix."""
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        places = torch.arange(query.shape[2], device=self.device)
        scores = how.cap(((query * how.scale) @ key.transpose(2, 3)).float())
        scores = scores.masked_fill(far(places[:, None] - places, how.window), -torch.inf)
        return how.shares(scores).to(query.dtype) @ value


def far(ahead: torch.Tensor, window: int | None) -> torch.Tensor:
    """Whether a place is not seen from one so far ahead: a later one, one beyond the window."""
    return (ahead < 0) if window is None else (ahead < 0) | (ahead >= window)


def rounded(count: int) -> int:
    return count + -count % MULTIPLE


@contextmanager
def quickly() -> Iterator[None]:
    """Let PyTorch write to places by an index as it likes: these are distinct, so that there is
    no race, and the deterministic way would sort them first."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
