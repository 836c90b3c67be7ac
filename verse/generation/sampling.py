"""Choose the next token: every prompt draws from a random stream of its own."""

import hashlib

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from verse.params import Decoding


class OwnStreams(LogitsProcessor):
    """Sample with one uniform number per prompt and step, by inverting the distribution.

    Temperature, top-k and top-p are Transformers' own, in its order, applied to the `top_k`
    likeliest tokens only: sorting the whole vocabulary would take longer than the model.
    Leaves the sampled token as the only possible one, so that greedy search takes it.
    """

    def __init__(self, prompts: list[list[int]], decoding: Decoding, seed: int):
        self.numbers = torch.stack(
            [uniform_numbers(ids, seed, decoding.max_new_tokens) for ids in prompts]
        )
        self.prompt_length = len(prompts[0])
        self.top_k = decoding.top_k
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(decoding.temperature)])
        if decoding.top_p < 1:
            self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_length
        count = min(self.top_k or scores.shape[1], scores.shape[1])
        likeliest, tokens = (part.cpu() for part in scores.topk(count))  # CUDA sums in any order
        cumulative = torch.softmax(self.warpers(input_ids, likeliest).double(), -1).cumsum(-1)
        numbers = self.numbers[:, step : step + 1] * cumulative[:, -1:]
        drawn = tokens.gather(1, torch.searchsorted(cumulative, numbers, right=True))
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn.to(scores.device), 0.0)


class NoRepeat(LogitsProcessor):
    """Forbid every token that would end an n-gram which the row already has.

    The same as Transformers' NoRepeatNGramLogitsProcessor, which loops over rows in Python.
    """

    def __init__(self, size: int):
        self.size = size

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] < self.size:
            return scores
        ngrams = input_ids.unfold(1, self.size, 1)  # (rows, places, size)
        begun = input_ids[:, input_ids.shape[1] + 1 - self.size :]
        repeats = (ngrams[:, :, :-1] == begun[:, None]).all(-1)
        rows, places = repeats.nonzero(as_tuple=True)
        scores = scores.clone()
        scores[rows, ngrams[rows, places, -1]] = -torch.inf
        return scores


def uniform_numbers(prompt: list[int], seed: int, steps: int) -> torch.Tensor:
    """`steps` numbers in [0, 1) in float64 that depend on the seed and the prompt's ids."""
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(steps, generator=generator, dtype=torch.float64)
