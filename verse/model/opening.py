"""Open a model: its tokenizer, its prompt, the device and the precision it works in, its weights.

Training, generation and whatever else runs a model begin with `open_model`, which is quick and
finds most mistakes; `Opening.load` reads the weights, in one of the ways of `memory`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from verse.model import adapters, distributed, encoding, loading, memory, roundtrip, sharding
from verse.model.layers import to_main_memory
from verse.model.prompts import check_bounds, end_token, is_chat, plain, prompt_writer
from verse.params import Machine, Model
from verse.poem import Poem


@dataclass(frozen=True)
class Opening:
    """All of a model but its weights."""

    settings: Model
    machine: Machine
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    prompt: Callable[[Poem], str]
    """A poem's prompt: what the model is given before it writes the rest."""
    device: torch.device
    dtype: torch.dtype

    @property
    def positions(self) -> int | None:
        """How many tokens a text may have, None for a model that sets no bound."""
        return encoding.positions(self.config)

    def prompts(self, poems: Sequence[Poem]) -> list[str]:
        """The poems' prompts.

        Raises UserError where the chat template fails, or takes too much for the first poem or
        the longest.
        """
        if poems and is_chat(self.settings.template, self.tokenizer):
            longest = max(poems, key=lambda poem: len(plain(poem)))
            check_bounds(lambda: [self.prompt(poem) for poem in (poems[0], longest)])
        return [self.prompt(poem) for poem in poems]

    def encode(self, poems: Sequence[Poem]) -> list[encoding.Example]:
        """Poems as the token ids of their prompts and completions.

        Raises UserError if one is longer than the model's positions, or if they do not come back
        as they were (`roundtrip.check`).
        """
        prompts = self.prompts(poems)
        completions = [poem.rest for poem in poems]
        end = end_token(self.settings.template, self.tokenizer)
        examples = encoding.encode_poems(self.tokenizer, prompts, completions, end)
        roundtrip.check(self.tokenizer, poems, prompts, examples)
        encoding.check_lengths((example.length for example in examples), self.positions)
        return examples

    def encode_prompts(
        self, poems: Sequence[Poem], max_new_tokens: int = 0, *, checked: bool = True
    ) -> list[list[int]]:
        """The token ids of the poems' prompts.

        Raises UserError if one, with so many new tokens, is longer than the model's positions, or,
        if `checked`, if they do not hold the poems (`roundtrip.check`).
        """
        texts = self.prompts(poems)
        prompts = encoding.encode_prompts(self.tokenizer, texts)
        if checked:
            roundtrip.check(self.tokenizer, poems, texts, prompts)
        encoding.check_lengths(map(len, prompts), self.positions, max_new_tokens)
        return prompts

    def ways(
        self, reckon: Callable[[memory.Sizes], list[memory.MemoryPlan]]
    ) -> list[memory.MemoryPlan]:
        """The ways that fit, best first: the best on a CPU, unless machine.memory bounds it.

        reckon: what `memory.plans_for_training` or `plans_for_generation` makes of the sizes.
        Raises UserError if the model does not fit.
        """
        skeleton = loading.load_skeleton(self.settings, config=self.config)
        on_cpu = self.device.type == "cpu"  # where weights are expanded
        expanded = on_cpu or loading.quantized_by(self.config)
        quantization = "none" if expanded else self.settings.quantization
        share = memory.share_in_four_bits(skeleton)
        if self.settings.quantization == "nf4" and share < 0.9:
            distributed.say(
                f"model.quantization: nf4 rounds {share:.0%} of its layers' weights: the others "
                "are of a kind that stays as it is"
            )
        ways = reckon(memory.sizes(skeleton, self.dtype, quantization))
        if self.device.type != "cuda":  # others do not read main memory as their own
            ways = [way for way in ways if not way.output_apart]
        if on_cpu and self.machine.memory == "auto":
            return ways[:1]
        return memory.fitting(ways, memory.available_bytes(self.device, self.machine.memory))

    def load(
        self, way: memory.MemoryPlan, texts: Iterable[list[int]], adapter: str | Path | None = None
    ) -> PreTrainedModel:
        """The model with its weights, and with the adapter of a folder if one is named.

        texts: token ids of all that it will meet. Raises UserError for a model that cannot be
        read, or that does not know one of the tokens.
        """
        load = sharding.load_sharded if way.sharded else loading.load_model
        model = load(
            self.settings,
            self.device,
            self.dtype,
            dequantized=way.dequantized,
            cache_dir=self.machine.cache_dir,
        )
        if way.output_apart:
            to_main_memory(model.get_output_embeddings())
        loading.check_tokens(model, self.tokenizer, texts)
        merge = way.dequantized and not way.sharded
        return adapters.load_adapter(model, adapter, merge=merge) if adapter else model


def open_model(settings: Model, machine: Machine, *, seed: int) -> Opening:
    """Make PyTorch deterministic and open a model.

    Raises UserError for a config, a tokenizer, a chat template or a device that cannot be used.
    """
    loading.deterministic(seed, machine.threads)
    device = loading.choose_device(machine.device)
    config = loading.read_config(settings, machine.cache_dir)
    tokenizer = encoding.load_tokenizer(settings, machine.cache_dir)
    return Opening(
        settings,
        machine,
        config,
        tokenizer,
        prompt_writer(settings.template, tokenizer),
        device,
        loading.choose_dtype(settings.dtype, device),
    )
