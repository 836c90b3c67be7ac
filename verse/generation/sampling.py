"""Choose the next token: one chain of what decoding does to the model's scores, and a draw from it.

The chain is Transformers' own, in its order, but that all behind top-k is applied to the `top_k`
likeliest tokens only: sorting the whole vocabulary would take longer than the model. Sampling, the
page's distributions and Transformers' own generation read it. Every prompt draws from a random
stream of its own: one uniform number per token, by inverting the distribution.
"""

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from verse.errors import UserError
from verse.params import Decoding

TIES = 16  # tokens that may tie with the last of top-k; in bfloat16 up to 5 do
PROVEN_STEPS = 4  # after which what was written is known to be right, and reported
Drawn = tuple[torch.Tensor, torch.Tensor]
"""Tokens, and the log-probabilities that the model gives them (at temperature 1); both (R,)."""


def logits_chain(
    scores: torch.Tensor,
    history: torch.Tensor,
    lengths: torch.Tensor,
    decoding: Decoding,
    allowed: torch.Tensor | None = None,
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """Parameters of decoding, in the order of their work, and the scores that each leaves: (R, k)
    and the ids that they are of, (R, k), likeliest first; before top-k (R, vocabulary) and None.

    scores: (R, vocabulary). history: (R, W), each row's tokens from the left; lengths: (R,), how
    many of them there are. allowed: (R, vocabulary), which tokens may come at all; None allows all.
    Without sampling one token is left, as with top_k 1. Else k has room for tokens that tie with
    the last of top-k, which Transformers keeps. No shape depends on a value.
    """
    if decoding.repetition_penalty != 1:
        scores = penalize(scores, history, lengths, decoding.repetition_penalty)
        yield "repetition_penalty", scores, None
    for name, scores in forbidden(scores, history, lengths, decoding, allowed):  # noqa: B020
        yield name, scores, None
    if not decoding.do_sample:
        tokens = scores.argmax(-1, keepdim=True)
        yield "top_k", scores.gather(1, tokens), tokens
        return
    size = scores.shape[1]
    most = min(decoding.top_k or size, size)
    scores, tokens = scores.topk(min(most + TIES, size))
    scores = scores.masked_fill(scores < scores[:, most - 1, None], -torch.inf)
    yield "top_k", scores, tokens
    warpers = {"temperature": TemperatureLogitsWarper(decoding.temperature)}
    if decoding.top_p < 1:
        warpers["top_p"] = TopPLogitsWarper(decoding.top_p)
    if decoding.min_p > 0:
        warpers["min_p"] = MinPLogitsWarper(decoding.min_p)
    for name, warp in warpers.items():
        scores = warp(tokens, scores)
        yield name, scores, tokens


def penalize(
    scores: torch.Tensor, history: torch.Tensor, lengths: torch.Tensor, penalty: float
) -> torch.Tensor:
    """`scores` of tokens that a row already has, divided by the penalty, or times it below 0.

    Keskar et al. 2019, arXiv:1909.05858. As Transformers' RepetitionPenaltyLogitsProcessor does,
    for rows of several lengths.
    """
    within = torch.arange(history.shape[1], device=history.device) < lengths[:, None]
    counts = torch.zeros_like(scores).scatter_add(1, history, within.to(scores.dtype))
    penalized = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(counts > 0, penalized, scores)


def forbidden(
    scores: torch.Tensor,
    history: torch.Tensor,
    lengths: torch.Tensor,
    decoding: Decoding,
    allowed: torch.Tensor | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The part of the chain that forbids tokens, as `logits_chain` has it: scores of -inf.

    Where all that is allowed would repeat an n-gram, it may.
    """
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
        yield "constrain", scores
    if size := decoding.no_repeat_ngram_size:
        left = forbid_repeats(scores, history, lengths, size)
        if allowed is not None:
            left = torch.where(left.isneginf().all(-1, keepdim=True), scores, left)
        yield "no_repeat_ngram_size", left


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


def sample(
    scores: torch.Tensor,
    history: torch.Tensor,
    lengths: torch.Tensor,
    uniforms: torch.Tensor,
    decoding: Decoding,
    allowed: torch.Tensor | None = None,
) -> Drawn:
    """A token for each row. uniforms: (R,), in [0, 1); the others as `logits_chain` has them.

    The log-probability is NaN where the scores are.
    """
    scores = scores.float()
    for _, left, ids in logits_chain(scores, history, lengths, decoding, allowed):
        likeliest, tokens = left, ids
    assert tokens is not None  # behind top-k
    if decoding.do_sample:
        cumulative = torch.softmax(likeliest.to(uniforms.dtype), -1).cumsum(-1)
        places = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
        places = places.clamp(max=tokens.shape[1] - 1)  # where the scores are NaN
        tokens = tokens.gather(1, places)
    tokens = tokens[:, 0]
    return tokens, -functional.cross_entropy(scores, tokens, reduction="none")


def check_scores(logprobs: torch.Tensor) -> None:
    """Raise UserError where the model's scores were NaN. logprobs: as `sample` gives them."""
    if not logprobs.isfinite().all():
        raise UserError(
            "the model's scores are not finite numbers: its weights are broken, or too large "
            "for model.dtype: take another model or set model.dtype to float32"
        )


class SamplingProcessor(LogitsProcessor):
    """The same within Transformers' own generation, for prompts of equal length.

    Leaves the drawn token as the only possible one, so that greedy search takes it.
    """

    def __init__(
        self,
        uniforms: torch.Tensor,
        decoding: Decoding,
        prompt_length: int,
        allowed: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        """uniforms: (R, tokens), each prompt's stream. allowed: which tokens may come after token
        ids (R, L), as `logits_chain` wants them; None allows all."""
        self.uniforms, self.decoding, self.allowed = uniforms, decoding, allowed
        self.prompt_length = prompt_length
        self.logprobs: list[torch.Tensor] = []
        """Of the tokens drawn so far, each (R,)."""
        self.shown: list[torch.Tensor] = []
        """The scores of the first steps, each (R, vocabulary)."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ids, step = input_ids.cpu(), input_ids.shape[1] - self.prompt_length
        lengths = torch.full_like(ids[:, 0], ids.shape[1])
        if step < PROVEN_STEPS:
            self.shown.append(scores)
        allowed = self.allowed(ids).cpu() if self.allowed else None
        uniforms = self.uniforms[:, step]
        drawn, logprobs = sample(scores.cpu(), ids, lengths, uniforms, self.decoding, allowed)
        check_scores(logprobs)
        self.logprobs.append(logprobs)
        chosen = drawn[:, None].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def uniforms_for(prompt: list[int], seed: str, steps: int) -> torch.Tensor:
    """`steps` numbers in [0, 1) in float64 that depend on the seed and the prompt's ids."""
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(steps, generator=generator, dtype=torch.float64)
