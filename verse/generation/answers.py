"""Answer prompts: each answer depends on the seed and its own prompt, not on its neighbours.

Transformers does the generating; three things keep a batch from leaking into an answer:
- Prompts share a batch only if they have the same number of tokens, so nothing is padded.
- Every prompt draws from a random stream of its own, one number a token.
- On a CPU the linear layers work through their inputs in tiles of a fixed number of rows. A
  matrix product picks its kernel by the number of rows, and kernels differ in the last bits.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from verse.model.encoding import encode_prompt
from verse.params import Decoding

TILE = 160  # rows of a tile when each prompt adds one token
PROMPT_TILE = 512  # and when each adds many, since larger tiles are faster


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


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room to grow.

    Transformers' own layer copies all it holds for every token, which on a CPU takes as long as
    the attention itself.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = [key_states[..., :0, :], value_states[..., :0, :]]
        used = self.get_seq_length()
        total = used + key_states.shape[-2]
        for index, new in enumerate((key_states, value_states)):
            if total > self.rooms[index].shape[-2]:
                room = new.new_empty(*new.shape[:-2], 2 * total, new.shape[-1])
                room[..., :used, :] = self.rooms[index][..., :used, :]
                self.rooms[index] = room
            self.rooms[index][..., used:total, :] = new
        self.keys, self.values = (room[..., :total, :] for room in self.rooms)
        return self.keys, self.values


def roomy_cache(model: nn.Module) -> Cache | None:
    """A cache of roomy layers for a model of plain attention layers, None for any other."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return Cache(layer_class_to_replicate=RoomyLayer) if kinds == {"full_attention"} else None


def uniform_numbers(prompt: list[int], seed: int, steps: int) -> torch.Tensor:
    """`steps` numbers in [0, 1) in float64 that depend on the seed and the prompt's ids."""
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(steps, generator=generator, dtype=torch.float64)


def answer(
    model: nn.Module,
    tokenizer,
    prompts: list[str],
    decoding: Decoding,
    *,
    seed: int,
    batch_size: int,
) -> list[str]:
    """The model's answer to each prompt, in their order, without special tokens."""
    if next(model.parameters()).device.type == "cpu":
        use_tiles(model)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    results: list[str] = [""] * len(prompts)
    # Beam search with sampling draws numbers in Transformers' own way: one prompt at a time.
    together = 1 if decoding.do_sample and decoding.num_beams > 1 else batch_size
    progress = tqdm(total=len(prompts), unit="poem", disable=None)
    for batch in equal_length_batches(encoded, together):
        rows = generate_fitting(model, tokenizer, [encoded[i] for i in batch], decoding, seed)
        for index, ids in zip(batch, rows, strict=True):
            results[index] = tokenizer.decode(ids, skip_special_tokens=True)
        progress.update(len(batch))
    progress.close()
    return results


def equal_length_batches(encoded: list[list[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of up to `batch_size` prompts with equally many tokens."""
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), encoded[i]))
    start = 0
    while start < len(order):
        length = len(encoded[order[start]])
        batch = [i for i in order[start : start + batch_size] if len(encoded[i]) == length]
        yield batch
        start += len(batch)


def generate_fitting(
    model: nn.Module, tokenizer, prompts: list[list[int]], decoding: Decoding, seed: int
) -> list[list[int]]:
    """`generate`, by halves where the memory does not hold all prompts at once."""
    try:
        return generate(model, tokenizer, prompts, decoding, seed)
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(prompts) // 2
    parts = prompts[:half], prompts[half:]
    return [
        row for part in parts for row in generate_fitting(model, tokenizer, part, decoding, seed)
    ]


@torch.inference_mode()
def generate(
    model: nn.Module, tokenizer, prompts: list[list[int]], decoding: Decoding, seed: int
) -> list[list[int]]:
    """New token ids for prompts of equal length, as Transformers decodes them."""
    device = next(model.parameters()).device
    processors = LogitsProcessorList()
    own_streams = decoding.do_sample and decoding.num_beams == 1
    if decoding.no_repeat_ngram_size > 0:
        processors.append(NoRepeat(decoding.no_repeat_ngram_size))
    if own_streams:
        processors.append(OwnStreams(prompts, decoding, seed))
    sampling = {}
    if decoding.do_sample and not own_streams:
        torch.manual_seed(int(uniform_numbers(prompts[0], seed, 1).item() * 2**53))
        sampling = {
            "do_sample": True,
            "temperature": decoding.temperature,
            "top_k": decoding.top_k,
            "top_p": decoding.top_p,
        }
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.num_beams,
        eos_token_id=end_tokens(model, tokenizer),
        pad_token_id=tokenizer.eos_token_id,
        **sampling,
    )
    ids = torch.tensor(prompts, device=device)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        logits_processor=processors,
        past_key_values=roomy_cache(model) if decoding.num_beams == 1 else None,
    )
    return output[:, ids.shape[1] :].tolist()


def end_tokens(model: nn.Module, tokenizer) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and any other that the model names."""
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    return sorted({tokenizer.eos_token_id, *(token for token in named if token is not None)})


def use_tiles(model: nn.Module) -> None:
    """Make every linear layer compute `TILE` rows at a time, the last tile filled up."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = _tiled(module)


def _tiled(layer: nn.Linear):
    def forward(inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        count = len(rows)
        size = TILE if inputs.shape[-2] == 1 else PROMPT_TILE
        rows = functional.pad(rows, (0, 0, 0, -count % size))
        outputs = rows.new_empty(len(rows), layer.out_features)
        for tile, output in zip(rows.split(size), outputs.split(size), strict=True):
            torch.mm(tile, layer.weight.t(), out=output)
        if layer.bias is not None:
            outputs += layer.bias
        return outputs[:count].view(*inputs.shape[:-1], -1)

    return forward
