"""Prompts and their answers on a GPU, of all lengths at once, in slots of a fixed number.

What all prompts begin with is read once and held once. Each slot has places for the rest of a
prompt and its answer. A step of all slots is recorded as a CUDA graph; a slot whose row has ended
computes on unheard until another prompt takes it, or until so few are left that half the slots do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from verse.generation.attention import ROWS
from verse.generation.sampling import candidates
from verse.model.attention import attention, no_mask
from verse.model.encoding import common_prefix
from verse.model.graphs import Graph, told
from verse.model.sharding import is_sharded
from verse.params import Decoding

MULTIPLE = 8  # of sizes that kernels like
READ_AT_ONCE = 4096  # tokens of prompts in a pass

Found = tuple[torch.Tensor, torch.Tensor]


class Slots:
    """What a model has seen of the prompts and answers that are being written."""

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
        self.allowed: torch.Tensor | None = None
        """Which tokens each slot may take, (slots, vocabulary); None for all."""
        self.graph: Graph[Found] | None = None
        self.recordable = self.device.type == "cuda" and not is_sharded(model)
        self.into: torch.Tensor | None = None
        """The slots that a pass reads prompts into; None if it is a step of all slots."""
        self.hidden: dict[int | None, torch.Tensor] = {}
        """What the tokens of this pass do not see, by the window of a layer."""
        if self.prefix:
            with quickly():
                self.forward(torch.tensor([self.prefix], device=self.device), 0, predict=False)

    def add(self, prompts: list[list[int]]) -> None:
        """Read prompts, all but the last token of each; they become the last rows."""
        taken = set(self.order)
        slots = [slot for slot in range(self.slots) if slot not in taken][: len(prompts)]
        start = len(self.prefix)
        at_once = max(1, READ_AT_ONCE // max(len(prompt) - start for prompt in prompts))
        with quickly():
            for first in range(0, len(prompts), at_once):
                some = prompts[first : first + at_once]
                into = torch.tensor(slots[first : first + at_once], device=self.device)
                width = max(map(len, some))
                ids = torch.tensor([p + [0] * (width - len(p)) for p in some], device=self.device)
                self.history[into, :width] = ids
                self.lengths[into] = torch.tensor([len(p) for p in some], device=self.device)
                self.into = into
                if width - 1 > start:
                    self.forward(ids[:, start:-1], start, predict=False)
        self.into = None
        self.order += slots

    def forward(self, ids: torch.Tensor, starts: Any, *, predict: bool) -> Any:
        """Let the model see Q more tokens of each row; its scores (N, Q, vocabulary) if wanted.

        starts: how many tokens a row has had, one number or a column of them.
        """
        positions = starts + torch.arange(ids.shape[1], device=self.device)
        self.hidden.clear()
        places = 0 if predict else torch.zeros(0, dtype=torch.long, device=self.device)
        with attention(self.model, ROWS):
            return self.model(
                input_ids=ids,
                position_ids=positions.expand(ids.shape),
                attention_mask=no_mask(self.device),
                use_cache=False,
                logits_to_keep=places,
                seen=self,
            ).logits

    def scores(self) -> torch.Tensor:
        """Those of the token that comes next in each row, (R, vocabulary)."""
        with quickly():
            return self.all_scores()[self.order]

    def all_scores(self) -> torch.Tensor:
        last = self.lengths[:, None] - 1
        return self.forward(self.history.gather(1, last), last, predict=True)[:, -1]

    def step(self, allowed: torch.Tensor | None = None) -> Found:
        """The `candidates` that come next in each row, of those allowed, (R, vocabulary); on the
        CPU."""
        with quickly():
            if len(self.order) <= self.slots // 2 and self.slots > MULTIPLE:
                self.shrink()
            if allowed is not None:
                if self.allowed is None:
                    self.allowed = allowed.new_ones(self.slots, allowed.shape[1])
                self.allowed[self.order] = allowed
            if self.graph is None:
                self.graph = self.record()
            likeliest, tokens = self.graph([]) if self.graph else self.compute()
            likeliest, tokens = likeliest.cpu(), tokens.cpu()
        return likeliest[self.order], tokens[self.order]

    def compute(self, _: Sequence[torch.Tensor] = ()) -> Found:
        scores = self.all_scores()
        return candidates(scores, self.history, self.lengths, self.decoding, self.allowed)

    def record(self, beside: Graph[Found] | None = None) -> Graph[Found] | None:
        if self.recordable:
            try:
                return Graph(self.compute, [], beside)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                told("without a CUDA graph, which would be faster", error)
                self.recordable = False
        return None

    def shrink(self) -> None:
        """Move the rows to half as many slots, or fewer."""
        slots = rounded(len(self.order))
        index = torch.tensor(
            self.order + self.order[:1] * (slots - len(self.order)), device=self.device
        )
        for layer in self.held:
            self.held[layer] = self.held[layer][:, index]
        self.history, self.lengths = self.history[index], self.lengths[index]
        if self.allowed is not None:
            self.allowed = self.allowed[index]
        self.slots, self.order = slots, list(range(len(self.order)))
        self.graph = self.record(self.graph)

    def write(self, tokens: torch.Tensor) -> None:
        """Add a token to each row."""
        order = torch.tensor(self.order, device=self.device)
        with quickly():
            self.history[order, self.lengths[order]] = tokens.to(self.device)
            self.lengths[order] += 1

    def keep(self, rows: list[int]) -> None:
        """Let go of all rows but these, which are in ascending order."""
        self.order = [self.order[row] for row in rows]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        count, heads, tokens, size = query.shape
        keys, shared = key.shape[1], len(self.prefix)
        if layer not in self.prefix_held:
            if shared:  # this pass is the one that reads it
                self.prefix_held[layer] = torch.stack([key[0], value[0]])
                return self.look(query, key, value, scale, window)
            self.prefix_held[layer] = key.new_empty(2, keys, 0, size)
        if layer not in self.held:
            self.held[layer] = key.new_zeros(2, self.slots, keys, self.places, size)
        held = self.held[layer]
        if self.into is None:
            every, at = torch.arange(count, device=self.device), self.lengths - 1 - shared
            held[0, every, :, at], held[1, every, :, at] = key[:, :, 0], value[:, :, 0]
            key, value = held
        else:
            held[0, self.into, :, :tokens], held[1, self.into, :, :tokens] = key, value

        # All rows meet the prefix's keys in one product, and each its own keys in another.
        shared_keys, shared_values = self.prefix_held[layer]
        queries = heads // keys * tokens  # that have one key
        grouped = (query * scale).reshape(count, keys, queries, size)
        together = grouped.transpose(0, 1).reshape(keys, count * queries, size)
        to_prefix = (together @ shared_keys.transpose(1, 2)).view(keys, count, queries, shared)
        scores = torch.cat([to_prefix.transpose(0, 1), grouped @ key.transpose(2, 3)], -1)
        rows = scores.view(count, heads, tokens, scores.shape[-1])
        rows.masked_fill_(self.unseen(tokens, window), -torch.inf)
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
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
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Plain attention within the prefix."""
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        places = torch.arange(query.shape[2], device=self.device)
        scores = (query * scale) @ key.transpose(2, 3)
        scores = scores.masked_fill(far(places[:, None] - places, window), -torch.inf)
        return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ value


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
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
