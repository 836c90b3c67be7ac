"""The distribution that a token is drawn from: the model's own, and what decoding leaves of it.

`distribution` is a function of the scores alone, by the same chain as sampling; `scores_along` gets
them from a model.
"""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from verse.generation.sampling import logits_chain
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
    cut: dict[str, torch.Tensor]
    """By the parameter of decoding, which tokens it excludes that were left before."""

    @property
    def left(self) -> int:
        """How many tokens can be drawn."""
        return int((self.drawn > 0).sum())

    def cut_by(self, token: int) -> str:
        """Which parameter of decoding excludes a token; "" for one that can be drawn."""
        if self.drawn[token] > 0:
            return ""
        return next((name for name, tokens in self.cut.items() if tokens[token]), "top_k")


def distribution(
    scores: torch.Tensor,
    before: list[int],
    decoding: Decoding,
    allowed: torch.Tensor | None = None,
) -> Distribution:
    """What a token is drawn from where the model gives `scores`, logits of shape (vocabulary,).

    before: the ids of all tokens so far, the prompt's too. allowed: which tokens keep the rules,
    (vocabulary,); None for all. Without sampling, the likeliest token has probability 1, and what
    cuts the others is "top_k", as with top_k 1.
    """
    row = whole = scores.float().cpu()[None]
    rules = None if allowed is None else allowed.cpu()[None]
    left, cut = row.isfinite(), {}
    ids, lengths = torch.tensor([before]), torch.tensor([len(before)])
    for name, found, tokens in logits_chain(row, ids, lengths, decoding, rules):
        if tokens is None:
            whole = after = found
        else:
            after = torch.full_like(row, -torch.inf).scatter_(1, tokens, found)
        cut[name] = (left & after.isneginf())[0]
        left = after.isfinite()
    assert tokens is not None  # behind top-k
    temperature = decoding.temperature if decoding.do_sample else 1.0
    drawn = torch.zeros_like(row, dtype=torch.float64)
    return Distribution(
        model=torch.softmax(row.double(), -1)[0],
        tempered=torch.softmax((whole / temperature).double(), -1)[0],
        drawn=drawn.scatter_(1, tokens, torch.softmax(found.double(), -1))[0],
        cut=cut,
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
