"""Models that finish couplets, opened by what they are called, and what they had in mind.

A model is the adapter of this workspace, the base model without it, an experiment of DVC's or a
commit, a folder with an adapter, or a folder with a merged model. Each writes what the pipeline
would: the same prompt, the same weights, the same random stream.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from verse.cli.lock import outdated_here
from verse.errors import UserError, first_line
from verse.files import parse_yaml, read_text
from verse.generation.answers import constraint_of, end_tokens
from verse.generation.candidates import Key, finish
from verse.generation.distribution import Distribution, distribution, scores_along
from verse.model import memory
from verse.model.encoding import decode
from verse.model.opening import Opening, open_model
from verse.model.prompts import PROBE
from verse.params import Decoding, Model, Params, Text, TextOrNull
from verse.paths import ADAPTER
from verse.poem import Poem
from verse.schema import Record, fit, read_json

LIKELIEST = 20


class AdapterConfig(Record):
    """PEFT's adapter_config.json, as far as it is read here."""

    base_model_name_or_path: Text
    revision: TextOrNull = None


class Trained(Record):
    """The params.yaml of a commit, as far as it is read here."""

    model: Model


ADAPTER_CONFIG = TypeAdapter(AdapterConfig)


@dataclass(frozen=True)
class Written:
    """An answer: its text, and its tokens, the end token too where the model ended it."""

    text: str
    tokens: list[int]
    pieces: list[str]
    """The part of the text that each token completes; together they are the text."""
    seed: int


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to write."""

    opening: Opening
    model: PreTrainedModel
    at_once: int

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.opening.tokenizer

    def prompt(self, poem: Poem, new_tokens: int) -> list[int]:
        """The token ids of a poem's prompt, after which so many others have room."""
        return self.opening.encode_prompts([poem], new_tokens, checked=False)[0]

    def write(
        self,
        poems: Sequence[Poem],
        decoding: Decoding,
        seed: int,
        on_text: Callable[[int, str, int], None] | None = None,
    ) -> list[Written]:
        """Finish poems; of several candidates the best is kept.

        on_text: called with a poem's number, its answer so far and how many tokens that has,
        after each of its tokens; of several candidates the first is told. What it raises stops
        the writing. Raises UserError for a prompt and an answer that are too long for the model.
        """
        prompts = self.opening.encode_prompts(poems, decoding.max_new_tokens)
        begun: dict[int, list[int]] = {}

        def on_token(key: Key, token: int) -> None:
            number, candidate = key
            if on_text and candidate == 0:
                tokens = begun.setdefault(number, [])
                tokens.append(token)
                on_text(number, self.text(tokens).rstrip("\ufffd"), len(tokens))

        kept = finish(
            self.model,
            self.opening,
            poems,
            prompts,
            decoding,
            seed=seed,
            batch_size=self.at_once,
            drawn={},
            on_token=on_token,
        )
        return [Written(one.text, one.tokens, self.pieces(one.tokens), seed) for one in kept]

    def text(self, tokens: list[int]) -> str:
        return decode(self.tokenizer, tokens)

    def pieces(self, tokens: list[int]) -> list[str]:
        """The part of an answer that each token completes: "" for all but the last of a character
        that takes several.
        """
        whole = self.text(tokens)
        ends = [0]
        for count in range(1, len(tokens)):
            both = [whole, self.text(tokens[:count])]
            alike = os.path.commonprefix(both)  # noqa: RUF071 (of any texts)
            ends.append(max(ends[-1], len(alike)))
        ends.append(len(whole))
        return [whole[start:end] for start, end in pairwise(ends)]

    def label(self, token: int) -> str:
        """What a token looks like: its text, or its name if it is none that can be read."""
        if token in end_tokens(self.model, self.tokenizer):
            return "〔終〕"
        text: str = self.tokenizer.decode([token])
        if text and text.isprintable() and "\ufffd" not in text:
            return text
        return "↵" if text == "\n" else str(self.tokenizer.convert_ids_to_tokens(token))

    def scores(self, prompt: list[int], tokens: list[int]) -> Any:
        """The logits from which each token of an answer was chosen, (tokens, vocabulary)."""
        return scores_along(self.model, prompt, tokens)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def distributions(
        self,
        scores: Any,
        prompt: list[int],
        tokens: list[int],
        decoding: Decoding,
        couplet: str,
    ) -> Iterator[Distribution]:
        """What each token of an answer to a couplet was drawn from, from the scores there."""
        constraint = constraint_of(self.model, self.tokenizer, decoding)
        states = [constraint.start(couplet)] if constraint else []
        for number, token in enumerate(tokens):
            allowed = constraint.allowed(states)[0] if constraint else None
            yield distribution(scores[number], [*prompt, *tokens[:number]], decoding, allowed)
            for state in states:
                state.add(token)

    def likeliest(self, found: Distribution) -> list[dict[str, Any]]:
        """The LIKELIEST tokens by the model, likeliest first."""
        tokens = found.model.topk(min(LIKELIEST, len(found.model))).indices
        return [self.row(found, token) for token in tokens.tolist()]

    def row(self, found: Distribution, token: int) -> dict[str, Any]:
        """A token in a distribution: its shares of 1, and what excludes it, "" if it can be drawn:
        constrain, no_repeat_ngram_size, top_k, top_p."""
        return {
            "token": token,
            "label": self.label(token),
            "model": float(found.model[token]),
            "tempered": float(found.tempered[token]),
            "drawn": float(found.drawn[token]),
            "cut_by": found.cut_by(token),
        }


def load_models(
    p: Params, which: str | None, *, base: bool = False, tuned: bool = True, at_once: int = 1
) -> dict[str, LoadedModel]:
    """The models asked for, ready to write, by the contestant's name: "base", "tuned".

    which: an adapter's or a model's folder, an experiment or a commit; None is models/adapter. A
    whole model stands alone, so that there is no base beside it. Raises UserError for one that
    cannot be found or loaded.
    """
    with find(p, which) as (settings, adapter):
        wanted: dict[str, Path | None] = {"base": None} if base and adapter else {}
        if tuned:
            wanted |= {"tuned": adapter}
        if not wanted:
            raise UserError(
                f"{which}: a whole model, which has no base beside it: leave out --base"
            )
        if tuned and adapter and not (adapter / "adapter_config.json").is_file():
            raise UserError(f"{adapter}: no adapter there yet: run dvc repro first, or say --base")
        with suppress(UserError):  # a dvc.lock that cannot be read is no fault of the model
            if tuned and which is None and (changed := outdated_here(["train"])):
                older = f"{adapter}: older than {', '.join(changed)} in params.yaml: dvc repro"
                print(older, file=sys.stderr)
        opening = open_model(settings, p.machine, seed=p.seed)
        # A sample of prompts to check the tokenizer by: the characters of any will do.
        ids = opening.encode_prompts([Poem(PROBE.couplet)], checked=False)
        tokens = max(map(len, ids)) + p.decoding.max_new_tokens
        ways = opening.ways(
            lambda sizes: [
                replace(way, estimated_bytes=way.estimated_bytes * len(wanted))
                for way in memory.plans_for_generation(sizes, at_once, tokens)
            ]
        )
        remedy = "take a smaller model, or close other programs on the GPU"
        return memory.run_with_oom_fallback(
            ways,
            lambda way: {
                name: LoadedModel(opening, opening.load(way, ids, folder), way.micro_batch_size)
                for name, folder in wanted.items()
            },
            remedy,
        )


@contextmanager
def find(p: Params, which: str | None) -> Iterator[tuple[Model, Path | None]]:
    """The base model of what `which` names, and the folder of its adapter, None without one."""
    folder = Path(which or ADAPTER)
    if which is None or (folder / "adapter_config.json").is_file():
        yield beneath(folder, p.model), folder
    elif (folder / "config.json").is_file():
        changes = {"name": str(folder), "revision": None, "quantization": "none"}
        yield p.model.model_copy(update=changes), None
    elif folder.is_dir():
        raise UserError(f"{which}: no adapter_config.json and no config.json there: no model")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            copied = Path(temporary) / "adapter"
            yield beneath(copied, copy_from(which, copied)), copied


def beneath(adapter: Path, settings: Model) -> Model:
    """The base model that an adapter was trained on, otherwise set as `settings`."""
    config = adapter / "adapter_config.json"
    if not config.is_file():
        return settings
    values = read_json(config, ADAPTER_CONFIG, "take a folder that PEFT wrote")
    base = {"name": values.base_model_name_or_path, "revision": values.revision}
    return settings.model_copy(update=base)


def copy_from(revision: str, folder: Path) -> Model:
    """Copy the adapter of an experiment or a commit, and return the `model` it was trained with.

    Raises UserError if there is no such revision, or if its adapter is not in DVC's cache.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    file = folder.with_name("params.yaml")
    try:
        files = DVCFileSystem(rev=revision)
        files.get_file("params.yaml", str(file))
        files.get(ADAPTER, str(folder), recursive=True)
    except RevError:
        raise UserError(
            f"{revision}: no folder, no experiment and no commit: dvc exp show names them"
        ) from None
    except (DvcException, FileNotFoundError) as error:
        line = first_line(error)
        raise UserError(f"{revision}: its {ADAPTER} cannot be had from DVC ({line})") from None
    values = parse_yaml(read_text(file), f"{revision}: its params.yaml")
    remedy = "take an experiment of this version"
    return fit(TypeAdapter(Trained), values, f"{revision}: its params.yaml", remedy).model
