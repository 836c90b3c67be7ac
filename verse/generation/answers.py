"""Answer prompts: each answer depends on the seed and its own prompt, not on its neighbours.

Transformers does the generating; three things keep a batch from leaking into an answer:
- Prompts share a batch only if they have the same number of tokens, so nothing is padded.
- Every prompt draws from a random stream of its own, one number a token.
- On a CPU the linear layers work through their inputs in tiles of a fixed number of rows. A
  matrix product picks its kernel by the number of rows, and kernels differ in the last bits.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation import BaseStreamer

from verse.generation.batches import equal_length_batches, roomy_cache, use_tiles
from verse.generation.sampling import NoRepeat, OwnStreams, uniform_numbers
from verse.params import Decoding

Key = TypeVar("Key", bound=Hashable)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[Key, list[int]],
    decoding: Decoding,
    *,
    seed: int,
    batch_size: int,
    answers: dict[Key, str],
    on_token: Callable[[Key, int], None] | None = None,
) -> None:
    """Put the model's answer to each prompt, without special tokens, under its key in `answers`.

    prompts: token ids by a key. What `answers` holds already is left alone, so that another call
    goes on where one has run out of memory. on_token: called with the key and each token of its
    answer, the end token too, as it is chosen; with beams, once the answer is whole. What it
    raises stops the answering.
    """
    if model.device.type == "cpu":
        use_tiles(model)
    # Beam search with sampling draws numbers in Transformers' own way: one prompt at a time.
    together = 1 if decoding.do_sample and decoding.num_beams > 1 else batch_size
    waiting = {key: ids for key, ids in prompts.items() if key not in answers}
    progress = tqdm(total=len(prompts), initial=len(answers), unit="poem", disable=None)
    for batch in equal_length_batches(waiting, together):
        ends = end_tokens(model, tokenizer)
        heard = Heard(batch, ends, on_token) if on_token else None
        streamer = heard if decoding.num_beams == 1 else None
        rows = generate(model, tokenizer, [prompts[key] for key in batch], decoding, seed, streamer)
        if heard and not streamer:
            for tokens in zip(*rows, strict=True):
                heard.tell(tokens)
        for key, ids in zip(batch, rows, strict=True):
            answers[key] = tokenizer.decode(ids, skip_special_tokens=True)
        progress.update(len(batch))
    progress.close()


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    decoding: Decoding,
    seed: int,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """New token ids for prompts of equal length, as Transformers decodes them."""
    device = model.device
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
        streamer=streamer,
        past_key_values=roomy_cache(model) if decoding.num_beams == 1 else None,
    )
    return output[:, ids.shape[1] :].tolist()


class Heard(BaseStreamer):
    """Hand on each token that Transformers chooses for the rows of a batch, up to a row's end."""

    def __init__(self, keys: list[Key], ends: list[int], on_token: Callable[[Key, int], None]):
        self.running = dict(enumerate(keys))
        self.ends = ends
        self.on_token = on_token
        self.prompts_passed = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompts_passed:
            self.tell(value.tolist())
        self.prompts_passed = True

    def tell(self, tokens: Sequence[int]) -> None:
        """tokens: the next one of each row."""
        for row, key in list(self.running.items()):
            self.on_token(key, tokens[row])
            if tokens[row] in self.ends:
                del self.running[row]

    def end(self) -> None:
        pass


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and any other that the model names."""
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    return sorted({tokenizer.eos_token_id, *(token for token in named if token is not None)})
