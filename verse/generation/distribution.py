"""The distribution that a token is drawn from: the model's own, and what decoding leaves of it.

The model gives every token of its vocabulary a probability. What is drawn from is made of that
in steps, in the order in which `sampling` takes them: tokens that would break a rule go, and those
that would repeat an n-gram, the temperature sharpens or flattens what is there, top-k keeps the
likeliest, top-p the likeliest of those. `distribution` is a function of the scores alone;
`scores_along` gets them from a model.
"""

import math
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from verse.generation.sampling import permitted
from verse.params import Decoding


@dataclass(frozen=True)
class Distribution:
    """Probabilities of every token, in float64, of shape (vocabulary,)."""

    model: torch.Tensor
    """As the model gives them."""
    tempered: torch.Tensor
    """By the temperature, once rules and repetitions have forbidden some."""
    drawn: torch.Tensor
    """What a token is drawn from: after top-k and top-p, shared anew among what is left."""
    breaks: torch.Tensor
    """Whether a token would break a rule of `decoding.constrain`."""
    repeats: torch.Tensor
    """Whether a token would repeat an n-gram."""
    in_top_k: torch.Tensor
    """Whether top-k keeps a token."""

    @property
    def left(self) -> int:
        """How many tokens can be drawn."""
        return int((self.drawn > 0).sum())

    def cut_by(self, token: int) -> str:
        """Which parameter of decoding excludes a token; "" for one that can be drawn."""
        if self.drawn[token] > 0:
            return ""
        if self.breaks[token]:
            return "constrain"
        if self.repeats[token]:
            return "no_repeat_ngram_size"
        return "top_p" if self.in_top_k[token] else "top_k"


def distribution(
    scores: torch.Tensor,
    before: list[int],
    decoding: Decoding,
    allowed: torch.Tensor | None = None,
) -> Distribution:
    """What a token is drawn from where the model gives `scores`, logits of shape (vocabulary,).

    before: the ids of all tokens so far, the prompt's too. allowed: which tokens keep the rules,
    (vocabulary,); None for all. The warpers are Transformers' own, applied as in `sampling`: to
    the `top_k` likeliest tokens only. Without sampling, the likeliest token has probability 1, and
    what cuts the others is "top_k", as with top_k 1.
    """
    row = scores.float().cpu()[None]
    ids = torch.tensor([before])
    rules = torch.ones_like(row, dtype=torch.bool) if allowed is None else allowed.cpu()[None]
    lengths = torch.tensor([len(before)])
    possible = permitted(row, ids, lengths, decoding.no_repeat_ngram_size, rules)
    count = min(decoding.top_k or row.shape[1], row.shape[1])
    temperature = TemperatureLogitsWarper(decoding.temperature) if decoding.do_sample else None
    warpers = LogitsProcessorList([temperature] if temperature else [])
    if not decoding.do_sample:
        count = 1
    elif decoding.top_p < 1:
        warpers.append(TopPLogitsWarper(decoding.top_p))
    likeliest, tokens = possible.topk(count)
    left = torch.softmax(warpers(ids, likeliest).double(), -1)
    tempered = temperature(ids, possible) if temperature else possible
    return Distribution(
        model=torch.softmax(row.double(), -1)[0],
        tempered=torch.softmax(tempered.double(), -1)[0],
        drawn=torch.zeros_like(row, dtype=torch.float64).scatter_(1, tokens, left)[0],
        breaks=~rules[0],
        repeats=(rules & torch.isinf(possible) & ~torch.isinf(row))[0],
        in_top_k=torch.zeros_like(row, dtype=torch.bool).scatter_(1, tokens, True)[0],
    )


def entropy(probabilities: torch.Tensor) -> float:
    """In bits; 0 where one token is certain. Of n tokens, at most log2(n)."""
    return float(torch.special.entr(probabilities).sum()) / math.log(2)


@torch.inference_mode()
def scores_along(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The logits from which each token of an answer was chosen, (tokens, vocabulary), on the CPU.

    One pass over prompt and answer together, where writing took a pass a token: the same but for
    the last bits, in which kernels differ.
    """
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return output.logits[0, len(prompt) - 1 :].float().cpu()
