"""Choose the next token: every prompt draws from a random stream of its own.

One uniform number per prompt and token, by inverting the distribution. Temperature, top-k and top-p
are Transformers' own, in its order, applied to the `top_k` likeliest tokens only: sorting the whole
vocabulary would take longer than the model.
"""

import hashlib
from collections.abc import Callable

import torch
from torch.nn import functional
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from verse.errors import UserError
from verse.params import Decoding

Drawn = tuple[torch.Tensor, torch.Tensor]
"""Tokens, and the log-probabilities that the model gives them (at temperature 1); both (R,)."""


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
    scores = permitted(scores, history, lengths, decoding.no_repeat_ngram_size, allowed)
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
        self.decoding = decoding
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(decoding.temperature or 1.0)])
        if decoding.top_p < 1:
            self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(
        self,
        scores: torch.Tensor,
        history: torch.Tensor,
        lengths: torch.Tensor,
        numbers: torch.Tensor,
        allowed: torch.Tensor | None = None,
    ) -> Drawn:
        """scores, history, lengths, allowed: as `candidates` wants them. numbers: (R,), in [0, 1).

        The log-probability is no number where the scores are none.
        """
        scores = scores.float()
        likeliest, tokens = candidates(scores, history, lengths, self.decoding, allowed)
        if self.decoding.do_sample:
            warped = self.warpers(tokens, likeliest).double()
            cumulative = torch.softmax(warped, -1).cumsum(-1)
            numbers = numbers[:, None] * cumulative[:, -1:]
            places = torch.searchsorted(cumulative, numbers, right=True)
            places = places.clamp(max=tokens.shape[1] - 1)  # where the scores are no numbers
            tokens = tokens.gather(1, places)
        tokens = tokens[:, 0]
        return tokens, -functional.cross_entropy(scores, tokens, reduction="none")


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

    def __init__(
        self,
        numbers: torch.Tensor,
        decoding: Decoding,
        prompt_length: int,
        allowed: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        """numbers: (R, tokens), each prompt's stream. allowed: which tokens may come after token
        ids (R, L), as `candidates` wants them; None allows all."""
        self.draw, self.numbers, self.allowed = Draw(decoding), numbers, allowed
        self.prompt_length = prompt_length
        self.chances: list[torch.Tensor] = []
        """The log-probabilities of the tokens drawn so far, each (R,)."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ids, step = input_ids.cpu(), input_ids.shape[1] - self.prompt_length
        lengths = torch.full_like(ids[:, 0], ids.shape[1])
        allowed = self.allowed(ids).cpu() if self.allowed else None
        drawn, chances = self.draw(scores.cpu(), ids, lengths, self.numbers[:, step], allowed)
        check_scores(chances)
        self.chances.append(chances)
        chosen = drawn[:, None].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def uniform_numbers(prompt: list[int], seed: str, steps: int) -> torch.Tensor:
    """`steps` numbers in [0, 1) in float64 that depend on the seed and the prompt's ids."""
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(steps, generator=generator, dtype=torch.float64)
