"""Choose the next token: every prompt draws from a random stream of its own.

One uniform number per prompt and token, by inverting the distribution. Temperature, top-k and top-p
are Transformers' own, in its order, applied to the `top_k` likeliest tokens only: sorting the whole
vocabulary would take longer than the model.
"""

import hashlib

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from verse.errors import UserError
from verse.params import Decoding

Drawn = tuple[torch.Tensor, torch.Tensor]
"""Tokens, and their log-probabilities among the likeliest k at temperature 1; both (R,)."""


def candidates(
    scores: torch.Tensor,
    history: torch.Tensor,
    lengths: torch.Tensor,
    decoding: Decoding,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may come next, likeliest first: their scores and ids, both (R, k).

    scores: (R, vocabulary). history: (R, W), each row's tokens from the left; lengths: (R,), how
    many of them there are. allowed: (R, vocabulary), which tokens may come at all; None allows all.
    One candidate only where nothing is drawn.
    """
    scores = permitted(scores.float(), history, lengths, decoding.no_repeat_ngram_size, allowed)
    if not decoding.do_sample:
        best = scores.argmax(-1, keepdim=True)
        return scores.gather(1, best), best
    count = min(decoding.top_k or scores.shape[1], scores.shape[1])
    likeliest, tokens = scores.topk(count)
    return likeliest, tokens


def permitted(
    scores: torch.Tensor,
    history: torch.Tensor,
    lengths: torch.Tensor,
    no_repeat_ngram_size: int,
    allowed: torch.Tensor | None,
) -> torch.Tensor:
    """`scores` with -inf for every token that is not allowed or would repeat an n-gram.

    Where all that is allowed would, it may. No shape depends on a value.
    """
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    if no_repeat_ngram_size == 0:
        return scores
    left = forbid_repeats(scores, history, lengths, no_repeat_ngram_size)
    if allowed is None:
        return left
    return torch.where(left.isneginf().all(-1, keepdim=True), scores, left)


def forbid_repeats(
    scores: torch.Tensor, history: torch.Tensor, lengths: torch.Tensor, size: int
) -> torch.Tensor:
    """`scores` with -inf for every token that would end an n-gram which the row already has.

    The same as Transformers' NoRepeatNGramLogitsProcessor, which loops over rows in Python; here
    no shape depends on a value.
    """
    if history.shape[1] < size:
        return scores
    ngrams = history.unfold(1, size, 1)  # (R, places, size)
    last = lengths[:, None] + torch.arange(1 - size, 0, device=history.device)
    begun = history.gather(1, last.clamp(min=0))
    ends = torch.arange(size, history.shape[1] + 1, device=history.device)
    repeats = (ngrams[:, :, :-1] == begun[:, None]).all(-1) & (ends <= lengths[:, None])
    # To add nothing to the others takes no other copy of the scores.
    banned = torch.zeros_like(repeats, dtype=scores.dtype).masked_fill(repeats, -torch.inf)
    return scores.scatter_add(1, ngrams[:, :, -1], banned)


class Draw:
    """Draws a token for each row."""

    def __init__(self, decoding: Decoding):
        self.sample = decoding.do_sample
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(decoding.temperature or 1.0)])
        if decoding.top_p < 1:
            self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(
        self, likeliest: torch.Tensor, tokens: torch.Tensor, numbers: torch.Tensor
    ) -> Drawn:
        """likeliest, tokens: (R, k), as `candidates` gives them. numbers: (R,), in [0, 1).

        The log-probability is 0 where nothing is drawn, and no number where the scores are none.
        """
        if not self.sample:
            return tokens[:, 0], likeliest[:, 0] * 0
        warped = self.warpers(tokens, likeliest).double()
        cumulative = torch.softmax(warped, -1).cumsum(-1)
        places = torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:], right=True)
        places = places.clamp(max=tokens.shape[1] - 1)  # where the scores are no numbers
        chances = torch.log_softmax(likeliest, -1).gather(1, places)
        return tokens.gather(1, places)[:, 0], chances[:, 0]


def check_scores(chances: torch.Tensor) -> None:
    """Raise UserError where the model's scores were no numbers. chances: as `Draw` gives them."""
    if not chances.isfinite().all():
        raise UserError(
            "the model's scores are not finite numbers: its weights are broken, or too large "
            "for model.dtype: take another model or set model.dtype to float32"
        )


class OwnStreams(LogitsProcessor):
    """The same within Transformers' own generation, for prompts of equal length.

    Leaves the drawn token as the only possible one, so that greedy search takes it.
    """

    def __init__(self, numbers: torch.Tensor, decoding: Decoding, prompt_length: int):
        """numbers: (R, tokens), each prompt's stream."""
        self.decoding, self.draw = decoding, Draw(decoding)
        self.numbers, self.prompt_length = numbers, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_length
        lengths = torch.full_like(input_ids[:, 0], input_ids.shape[1])
        likeliest, tokens = candidates(scores, input_ids, lengths, self.decoding)
        drawn, chances = self.draw(likeliest.cpu(), tokens.cpu(), self.numbers[:, step])
        check_scores(chances)
        chosen = drawn[:, None].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def uniform_numbers(prompt: list[int], seed: str, steps: int) -> torch.Tensor:
    """`steps` numbers in [0, 1) in float64 that depend on the seed and the prompt's ids."""
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(steps, generator=generator, dtype=torch.float64)
