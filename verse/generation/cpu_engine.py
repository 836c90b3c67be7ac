"""The engine on a CPU: prompts of all lengths, bit-identical for any batch composition.

The linear layers take the rows together (`batch_invariance`). Attention takes rows of
one length together, so that nothing is padded. Prompts are read in blocks that begin at
fixed places, and rows that begin alike share the blocks: what a row meets depends on its own
tokens only.
"""

from itertools import groupby
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from verse.generation.engine import ENGINE, watched_rows
from verse.generation.sampling import Drawn, check_scores, sample
from verse.model.attention import Attention, attention, no_mask
from verse.params import Decoding

BLOCK = 16  # tokens of a prompt that are read at once, at first; then as many as before
ROOM = 32  # tokens more than a group has, at first


class Group:
    """Rows of one length, with their keys and values: by layer, (2, N or more, K, places, D)."""

    def __init__(self, size: int, length: int = 0):
        self.size, self.length = size, length
        self.held: dict[int, torch.Tensor] = {}

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Add (N, K, Q, D) to what a layer holds; all of it, (2, N, K, length + Q, D)."""
        end = self.length + key.shape[2]
        held = self.held.get(layer)
        if held is None or held.shape[3] < end:
            shape = (2, *key.shape[:2], end + max(ROOM, self.length), key.shape[3])
            room = key.new_empty(shape)
            if held is not None:
                room[:, :, :, : self.length] = held[:, : self.size, :, : self.length]
            self.held[layer] = held = room
        held[0, : self.size, :, self.length : end] = key
        held[1, : self.size, :, self.length : end] = value
        return held[:, : self.size, :, :end]

    def keep(self, rows: list[int]) -> list[int]:
        """Let go of all rows but these, in ascending order; the last of them fill the gaps. Returns
        which row stands at each place from then on."""
        if len(rows) == self.size:
            return rows
        self.size = len(rows)
        gaps = sorted(set(range(self.size)).difference(rows))
        moved = rows[self.size - len(gaps) :]
        for layer, held in self.held.items():
            held[:, gaps, :, : self.length] = held[:, moved, :, : self.length]
            if 2 * self.size <= held.shape[1]:
                self.held[layer] = held[:, : self.size].clone()
        moves = dict(zip(gaps, moved, strict=True))
        return [moves.get(place, place) for place in range(self.size)]

    def select(self, rows: list[int]) -> "Group":
        """Some of the rows, or one several times."""
        chosen = Group(len(rows), self.length)
        index = torch.tensor(rows, dtype=torch.long)
        chosen.held = {layer: held[:, index] for layer, held in self.held.items()}
        return chosen


class CPUEngine:
    """An `Engine` whose rows are in groups of one length."""

    def __init__(self, model: PreTrainedModel, decoding: Decoding):
        self.model, self.decoding = model, decoding
        self.groups: list[Group] = []
        self.order: list[int] = []
        """The place of each row in the groups, one after the other, and in what follows."""
        self.history = torch.zeros(0, 0, dtype=torch.long)  # a row's tokens from the left
        self.lengths = torch.zeros(0, dtype=torch.long)
        self.starts = self.lengths  # how long each row's prompt is
        self.uniforms = torch.zeros(0, decoding.max_new_tokens, dtype=torch.float64)
        self.watched, self.shown = False, torch.zeros(0)

    def prefill(self, prompts: list[list[int]], uniforms: torch.Tensor) -> None:
        for _, alike in groupby(prompts, len):
            self.groups.append(self.read([tuple(prompt[:-1]) for prompt in alike]))
        self.order += range(len(self.order), len(self.order) + len(prompts))
        lengths = torch.tensor([len(ids) for ids in prompts])
        self.lengths = torch.cat([self.lengths, lengths])
        self.starts = torch.cat([self.starts, lengths])
        self.uniforms = torch.cat([self.uniforms, uniforms])
        places = int(self.lengths.max()) + self.decoding.max_new_tokens
        self.history = functional.pad(self.history, (0, places - self.history.shape[1]))
        added = [torch.tensor(ids + [0] * (places - len(ids))) for ids in prompts]
        self.history = torch.cat([self.history, torch.stack(added)])

    def read(self, texts: list[tuple[int, ...]]) -> Group:
        group = Group(1)
        known: dict[tuple[int, ...], int] = {(): 0}
        start = 0
        while start < len(texts[0]):
            end = max(BLOCK, 2 * start)
            heads = list(dict.fromkeys(text[:end] for text in texts))
            group = group.select([known[head[:start]] for head in heads])
            self.forward([group], torch.tensor([head[start:] for head in heads]), predict=False)
            group.length = len(heads[0])
            known = {head: row for row, head in enumerate(heads)}
            start = end
        return group.select([known[text] for text in texts])

    def forward(self, groups: list[Group], ids: torch.Tensor, *, predict: bool) -> Any:
        """Let the model see Q more tokens of each row; its scores (R, Q, vocabulary) if wanted."""
        starts = torch.tensor([group.length for group in groups for _ in range(group.size)])
        self.current = groups
        with attention(self.model, ENGINE):
            return self.model(
                input_ids=ids,
                position_ids=starts[:, None] + torch.arange(ids.shape[1]),
                attention_mask=no_mask(ids.device),
                use_cache=False,
                logits_to_keep=0 if predict else torch.zeros(0, dtype=torch.long),
                engine=self,
            ).logits

    def scores(self) -> torch.Tensor:
        """Those of the token that comes next at each place, (R, vocabulary)."""
        last = self.history.gather(1, self.lengths[:, None] - 1)
        scores: torch.Tensor = self.forward(self.groups, last, predict=True)[:, -1]
        return scores

    def decode(self, allowed: torch.Tensor | None = None, *, prefetch: bool = False) -> Drawn:
        """Nothing is begun before it is asked for."""
        scores = self.scores()
        if self.watched:
            self.shown = scores[[self.order[row] for row in watched_rows(len(scores))]]
        if allowed is not None:
            allowed = allowed[torch.tensor(self.order).argsort()]
        uniforms = self.uniforms.gather(1, (self.lengths - self.starts)[:, None])[:, 0]
        tokens, logprobs = sample(
            scores, self.history, self.lengths, uniforms, self.decoding, allowed
        )
        check_scores(logprobs)
        self.history.scatter_(1, self.lengths[:, None], tokens[:, None])
        self.lengths += 1
        for group in self.groups:
            group.length += 1
        return tokens[self.order], logprobs[self.order]

    def evict(self, rows: list[int]) -> None:
        kept, places, start = sorted(self.order[row] for row in rows), list[int](), 0
        for group in self.groups:
            end = start + group.size
            inside = [place - start for place in kept if start <= place < end]
            places += [start + place for place in group.keep(inside)]
            start = end
        self.groups = [group for group in self.groups if group.size]
        self.history, self.uniforms = self.history[places], self.uniforms[places]
        self.lengths, self.starts = self.lengths[places], self.starts[places]
        moved = {place: now for now, place in enumerate(places)}
        self.order = [moved[self.order[row]] for row in rows]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        how: Attention,
    ) -> torch.Tensor:
        output = torch.empty_like(query)
        start = 0
        for group in self.current:
            rows = slice(start, start + group.size)
            seen = group.extend(layer, key[rows], value[rows])
            output[rows] = self.attend_alike(query[rows], seen, how)
            start += group.size
        return output

    def attend_alike(self, query: torch.Tensor, seen: torch.Tensor, how: Attention) -> torch.Tensor:
        """For rows of one length. seen: (2, N, K, L, D), of which the last are the query's own."""
        count, heads, tokens, size = query.shape
        keys, length = seen.shape[2:4]
        mask, window = None, how.window or length
        if tokens == 1:
            seen = seen[..., max(0, length - window) :, :]
        else:
            places = torch.arange(length)
            ahead = places[-tokens:, None] - places
            mask = (ahead >= 0) & (ahead < window)
            mask = mask.repeat(heads // keys, 1)
        # Queries of one group of heads have one key: they count as more queries.
        grouped = query.reshape(count, keys, heads // keys * tokens, size)
        if how.plain:
            queries = grouped.shape[2]
            if count * keys == 1:  # the only product, which threads would share
                grouped, seen = grouped.expand(2, -1, -1, -1), seen.expand(-1, 2, -1, -1, -1)
            if query.dtype == torch.float32:
                # MKL's products hang on where a thread's memory begins: at whole fours of queries
                # each has the same place.
                more = -queries % 4
                grouped = functional.pad(grouped, (0, 0, 0, more))
                mask = mask if mask is None else functional.pad(mask, (0, 0, 0, more), value=True)
            found = functional.scaled_dot_product_attention(
                grouped, seen[0], seen[1], mask, scale=how.scale
            )
            return found[:count, :, :queries].reshape(query.shape)
        # A row at a time: a product of several may take another order for each.
        return torch.cat(
            [
                self.attend_one(*one, mask, how).reshape(query[:1].shape)
                for one in zip(grouped, seen[0], seen[1], strict=True)
            ]
        )

    def attend_one(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        how: Attention,
    ) -> torch.Tensor:
        """With capped scores and sinks. query: (K, groups of queries, D); key, value: (K, L, D)."""
        scores = how.cap((query @ key.transpose(1, 2)).float() * how.scale)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        heads = len(how.sinks) if how.sinks is not None else len(query)
        by_head = scores.reshape(heads, -1, scores.shape[-1])
        weights = how.shares(by_head).view(scores.shape).to(value.dtype)
        return weights @ value
