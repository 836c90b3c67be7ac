"""Answer prompts: each answer depends on the seed and its own prompt, not on its neighbours.

Prompts of all lengths are answered together, a token of each at a time; where one ends, one that
waits takes its place. Every prompt draws from a random stream of its own. On a CPU what a prompt
meets is bit-identical for any batch composition (`cpu_engine`); on a GPU kernels depend on how many
there are (`gpu_engine`). Beams, and models whose attention is of another kind, are Transformers'.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from verse.errors import UserError
from verse.generation.batch_invariance import make_batch_invariant
from verse.generation.constraint import Constraint, ConstraintProcessor, VerseState
from verse.generation.cpu_engine import CPUEngine
from verse.generation.engine import Engine, watched_rows
from verse.generation.gpu_engine import GPUEngine
from verse.generation.norms import fuse_norms
from verse.generation.sampling import PROVEN_STEPS, SamplingProcessor, uniforms_for
from verse.model.attention import own_attention
from verse.model.encoding import decode, positions, special_tokens
from verse.model.float32 import Float32
from verse.model.graphs import to_device_async, warn_fallback
from verse.model.prompts import end_of_turn
from verse.model.sharding import is_sharded
from verse.params import Decoding

UNSUPPORTED: WeakKeyDictionary[PreTrainedModel, tuple[int, str]] = WeakKeyDictionary()
"""Up to how many tokens models were tried with, in float32, and why they cannot answer prompts of
several lengths together: "" if they can."""
AHEAD = 64  # tokens beyond the longest text that are looked at, for prompts to come
PROBED = 2  # tokens that are drawn to find that out
REFILLED = 0.75  # prompts that wait come in when no more than this share is still being answered
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 0.1}
"""How far scores may be from the model's own, as a share of their spread."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Answer:
    """What a model has written."""

    text: str
    """Without special tokens."""
    tokens: list[int]
    """Their ids, the end token's too if it was written."""
    likelihood: float
    """The mean log-probability that the model gives the tokens, at temperature 1; 0 for beams."""


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[Key, list[int]],
    decoding: Decoding,
    *,
    seed: int | Callable[[Key], str],
    batch_size: int,
    answers: dict[Key, Answer],
    couplets: Mapping[Key, str] | None = None,
    on_token: Callable[[Key, int], None] | None = None,
    given_up: Callable[[Key, list[int]], bool] | None = None,
) -> None:
    """Put the model's answer to each prompt under its key in `answers`.

    prompts: token ids by a key. seed: one for all, or what gives that of a key. batch_size: how
    many are answered at once. What `answers` holds already is left alone, so that another call
    goes on where one has run out of memory. couplets: what each prompt wants finished, for
    `decoding.constrain`, which wants them.
    on_token: called with the key and each token of its answer, the end token too, as it is chosen;
    in Transformers' own way, once the answer is whole. What it raises stops the answering.
    given_up: whether an answer of these tokens may end there, since nobody will want it;
    Transformers' own way writes all to their ends.
    """
    waiting = {key: ids for key, ids in prompts.items() if key not in answers}
    if not waiting:
        return
    if decoding.num_beams == 1:
        longest = max(map(len, waiting.values())) + decoding.max_new_tokens
        tried, reason = UNSUPPORTED.get(model, (0, ""))
        if tried < longest and not reason:
            further = min(longest + AHEAD, positions(model.config) or longest + AHEAD)
            longest = max(longest, further)  # else each that is a token longer would be tried
            reason = reason_unsupported(model, decoding, list(waiting.values()), longest)
            UNSUPPORTED[model] = longest, reason
    if model.device.type == "cpu":
        make_batch_invariant(model)
    elif not is_sharded(model):  # whose weights come and go
        fuse_norms(model)
    seed_of = seed if callable(seed) else lambda _: str(seed)
    task = Task(
        model=model,
        tokenizer=tokenizer,
        prompts=waiting,
        couplets=couplets or {},
        decoding=decoding,
        constraint=constraint_of(model, tokenizer, decoding),
        seed_of=seed_of,
        batch_size=batch_size,
        on_token=on_token or ignore,
        given_up=given_up or ignore,
    )
    progress = tqdm(total=len(prompts), initial=len(answers), unit="poem", disable=None)

    def finish(ended: Iterator[tuple[Key, list[int], float]]) -> None:
        for key, ids, likelihood in ended:
            answers[key] = Answer(decode(tokenizer, ids), ids, likelihood)
            progress.update()

    try:
        finish(
            generate_with_transformers(task) if decoding.num_beams > 1 else generate_batched(task)
        )
    except UnsupportedModel as reason:
        if decoding.num_beams > 1:
            raise UserError(f"decoding.num_beams: {reason}: set it to 1") from None
        warn_fallback("prompts of one length at a time, which is slower", reason)
        finish(generate_with_transformers(task))
    progress.close()


@dataclass(frozen=True)
class Task(Generic[Key]):
    """What `answer` was given."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: dict[Key, list[int]]
    couplets: Mapping[Key, str]
    decoding: Decoding
    constraint: Constraint | None
    seed_of: Callable[[Key], str]
    batch_size: int
    on_token: Callable[[Key, int], object]
    given_up: Callable[[Key, list[int]], object]

    def uniforms(self, key: Key) -> torch.Tensor:
        """The random stream of a prompt: a number in [0, 1) for each token."""
        return uniforms_for(self.prompts[key], self.seed_of(key), self.decoding.max_new_tokens)

    def states(self, keys: Iterable[Key]) -> dict[Key, VerseState]:
        """What is written to each prompt where rules constrain it; none where they do not."""
        return {key: self.constraint.start(self.couplets[key]) for key in keys if self.constraint}


def ignore(*_: object) -> None:
    """What is done with tokens that nobody asks about."""


class UnsupportedModel(Exception):
    """Why a model cannot answer prompts of several lengths together."""


@torch.no_grad()
def generate_batched(task: Task[Key]) -> Iterator[tuple[Key, list[int], float]]:
    """The keys, new token ids and likelihoods of prompts of any lengths, as they end.

    Raises UnsupportedModel before the first of them: until the scores of some steps are known to be
    the model's own, nothing is reported.
    """
    if reason := UNSUPPORTED[task.model][1]:
        raise UnsupportedModel(reason)
    prompts, decoding = task.prompts, task.decoding
    ends, most = set(end_tokens(task.model, task.tokenizer)), decoding.max_new_tokens
    waiting = sorted(prompts, key=lambda key: (-len(prompts[key]), prompts[key]))
    batch_size = min(task.batch_size, len(waiting))
    keys: list[Key] = []
    written: dict[Key, list[int]] = {}
    likelihoods: dict[Key, float] = {}
    states = task.states(prompts)
    engine: Engine | None = None
    tried: list[tuple[list[int], torch.Tensor]] | None = []
    early: list[tuple[Key, int]] = []
    ended: list[tuple[Key, list[int], float]] = []
    step, ahead = 0, False  # whether a step is under way, in which no new rows can take part
    while waiting or keys:
        proving = tried is not None and step in (0, PROVEN_STEPS - 1)
        with nullcontext() if tried is None else first_try(task.model):
            due = waiting and len(keys) <= REFILLED * batch_size
            if due and (not ahead or not keys):
                new = [waiting.pop() for _ in range(min(batch_size - len(keys), len(waiting)))]
                texts = [prompts[key] for key in new]
                if engine is None:
                    engine = new_engine(task.model, decoding, list(prompts.values()), len(texts))
                engine.prefill(texts, torch.stack([task.uniforms(key) for key in new]))
                for key in new:
                    written[key], likelihoods[key] = [], 0.0
                keys += new
                due = False
            assert engine
            allowed = None
            if task.constraint:
                allowed = task.constraint.allowed(states[key] for key in keys)
            goes_on = min(len(written[key]) for key in keys) + 1 < most
            ahead = goes_on and not due and not task.constraint and tried is None
            if proving:
                some = [keys[row] for row in watched_rows(len(keys))]
                texts = [prompts[key] + written[key] for key in some]
            engine.watched = proving
            drawn, logprobs = engine.decode(allowed, prefetch=ahead)
        if proving and tried is not None:
            tried += zip(texts, engine.shown, strict=True)
        kept = []
        for row, (key, token, logprob) in enumerate(
            zip(keys, drawn.tolist(), logprobs.tolist(), strict=True)
        ):
            written[key].append(token)
            likelihoods[key] += logprob
            if states:
                states[key].add(token)
            early.append((key, token))
            length = len(written[key])
            if token in ends or length == most or task.given_up(key, written[key]):
                ended.append((key, written.pop(key), likelihoods[key] / length))
            else:
                kept.append(row)
        if len(kept) < len(keys):
            engine.evict(kept)
            keys = [keys[row] for row in kept]
        step += 1
        if tried is not None and (step == PROVEN_STEPS or not (waiting or keys)):
            with first_try(task.model):
                check_scores_of(task.model, tried)
            tried = None
        if tried is None:
            for told_of in early:
                task.on_token(*told_of)
            yield from ended
            early, ended = [], []


@torch.no_grad()
def reason_unsupported(
    model: PreTrainedModel, decoding: Decoding, prompts: list[list[int]], length: int
) -> str:
    """Why a model cannot answer these prompts together, up to so many tokens; "" if it can.

    In float32, where nothing hides a mistake: what the shortest prompt and the longest read, and
    what comes after a step; then the longest, repeated to nearly that length, since some models
    change their attention or their positions beyond some length.
    """
    shortest, longest = min(prompts, key=len), max(prompts, key=len)
    few = min(PROBED, decoding.max_new_tokens)
    whole = length - few
    repeated = (longest * (whole // len(longest) + 1))[:whole]
    decoding = decoding.model_copy(update={"max_new_tokens": few})
    tried: list[tuple[list[int], torch.Tensor]] = []
    try:
        with Float32(), first_try(model):
            for texts in ([shortest, longest], [longest, repeated]):
                engine = new_engine(model, decoding, texts, len(texts))
                if isinstance(engine, GPUEngine):
                    engine.recordable = False
                engine.prefill(texts, torch.zeros(len(texts), few, dtype=torch.float64))
                engine.watched = True
                for _ in range(few):
                    drawn, _ = engine.decode()
                    tried += zip(texts, engine.shown, strict=True)
                    texts = [[*t, token] for t, token in zip(texts, drawn.tolist(), strict=True)]
            check_scores_of(model, tried)
    except UnsupportedModel as reason:
        return str(reason)
    return ""


def new_engine(
    model: PreTrainedModel, decoding: Decoding, prompts: list[list[int]], count: int
) -> Engine:
    """For prompts of which `count` are answered at a time."""
    if model.device.type == "cpu":
        return CPUEngine(model, decoding)
    return GPUEngine(model, decoding, prompts, count)


@contextmanager
def first_try(model: PreTrainedModel, reason: str = "") -> Iterator[None]:
    """Raise UnsupportedModel for anything that a model may raise which knows nothing of this."""
    try:
        yield
    except (torch.OutOfMemoryError, UserError, UnsupportedModel):
        raise
    except Exception:
        unsuited = own_attention(model) or "its attention is of a kind that cannot be given rows"
        raise UnsupportedModel(reason or unsuited) from None


def check_scores_of(model: PreTrainedModel, tried: list[tuple[list[int], torch.Tensor]]) -> None:
    """Raise UnsupportedModel unless the scores after some texts, (vocabulary,), are the model's
    own, as it gives them for each text in its own attention."""
    texts, found = zip(*tried, strict=True)
    # What follows a text does not matter to it: it is read as a part of one that goes on.
    read = [text for text in texts if not any(continues(other, text) for other in texts)]
    rows = [next(i for i, one in enumerate(read) if one[: len(text)] == text) for text in texts]
    last, at = torch.tensor([len(text) - 1 for text in texts]).unique(return_inverse=True)
    ids = pad_sequence([torch.tensor(text) for text in read], batch_first=True)
    ids, last = (to_device_async(part, model.device) for part in (ids, last))
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=last).logits
    expected = logits[rows, at.tolist()]
    tolerance = TOLERANCE[expected.dtype]
    expected = expected.float()
    apart = (torch.stack(found).float() - expected).square().mean(-1).sqrt() / expected.std(-1)
    if not (apart <= tolerance).all():
        raise UnsupportedModel(
            f"its scores would differ by {apart.max().item():.2g} of their spread"
        )


def continues(text: list[int], start: list[int]) -> bool:
    return len(text) > len(start) and text[: len(start)] == start


@torch.no_grad()
def generate_with_transformers(task: Task[Key]) -> Iterator[tuple[Key, list[int], float]]:
    """The same as `generate_batched` by Transformers' generation, prompts of one length at a time.

    Sampling with beams draws numbers in Transformers' own way: one prompt at a time.
    """
    ends = set(end_tokens(task.model, task.tokenizer))
    alone = task.decoding.num_beams > 1 and task.decoding.do_sample
    at_once, use_cache = (1, True) if alone else transformers_way(task)
    for batch in equal_lengths(task.prompts, at_once):
        beams = task.decoding.num_beams > 1
        with first_try(task.model, "its cache takes no beams") if beams else nullcontext():
            ids_of, logprobs_of, _ = generate(task, batch, use_cache)
        for key, ids, logprobs in zip(batch, ids_of, logprobs_of, strict=True):
            end = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
            ids = ids[: end + 1]
            for token in ids:
                task.on_token(key, token)
            yield key, ids, sum(logprobs[: end + 1]) / len(ids)


@torch.no_grad()
def transformers_way(task: Task[Key]) -> tuple[int, bool]:
    """How many prompts at a time, and whether with a cache, Transformers' generation may answer:
    not all models' own caches hold what several texts, or one, have been."""
    ways = [(task.batch_size, True), (1, True), (1, False)]
    if task.decoding.num_beams > 1:  # whose scores belong to no one text
        return ways[0]
    for at_once, use_cache in ways:
        batch = max(equal_lengths(task.prompts, at_once), key=len)
        few = min(PROVEN_STEPS, task.decoding.max_new_tokens)
        decoding = task.decoding.model_copy(update={"max_new_tokens": few})
        short = replace(task, decoding=decoding, constraint=None)
        try:
            with first_try(task.model, "its cache is of a kind that fails"):
                ids_of, _, scores = generate(short, batch[:2], use_cache)
                tried = [
                    ([*task.prompts[key], *ids[:step]], shown[row])
                    for row, (key, ids) in enumerate(zip(batch[:2], ids_of, strict=True))
                    for step, shown in enumerate(scores)
                    if step in (0, few - 1)
                ]
                check_scores_of(task.model, tried)
            return at_once, use_cache
        except UnsupportedModel as error:
            what = "Transformers' generation is not the model itself"
            if use_cache:
                slower = "one prompt at a time" if at_once > 1 else "without a cache"
                what = f"{slower}, which is slower"
            warn_fallback(what, error)
    return ways[-1]


def equal_lengths(prompts: dict[Key, list[int]], batch_size: int) -> Iterator[list[Key]]:
    """Keys of up to `batch_size` prompts with equally many tokens."""
    order = sorted(prompts, key=lambda key: (len(prompts[key]), prompts[key]))
    start = 0
    while start < len(order):
        length = len(prompts[order[start]])
        batch = [key for key in order[start : start + batch_size] if len(prompts[key]) == length]
        yield batch
        start += len(batch)


@torch.no_grad()
def generate(
    task: Task[Key], batch: list[Key], use_cache: bool
) -> tuple[list[list[int]], list[list[float]], list[torch.Tensor]]:
    """New token ids for prompts of equal length, as Transformers decodes them, their
    log-probabilities, and by step the model's scores, (R, vocabulary) (neither for beams)."""
    model, decoding = task.model, task.decoding
    device = model.device
    prompt_length = len(task.prompts[batch[0]])
    constrained = None
    if task.constraint:
        given = [task.couplets[key] for key in batch]
        constrained = ConstraintProcessor(task.constraint, given, prompt_length, decoding)
    streams = None
    known = vars(GenerationConfig())
    settings = {name: value for name, value in decoding if name in known}
    if decoding.num_beams == 1:
        uniforms = torch.stack([task.uniforms(key) for key in batch])
        allowed = constrained.allowed if constrained else None
        streams = SamplingProcessor(uniforms, decoding, prompt_length, allowed)
        settings = {}
    elif decoding.do_sample:
        torch.manual_seed(int(task.uniforms(batch[0])[0].item() * 2**53))
    if constrained:
        settings["no_repeat_ngram_size"] = 0
    own = streams or constrained
    ends = {
        "max_new_tokens": decoding.max_new_tokens,
        "eos_token_id": end_tokens(model, task.tokenizer),
        "pad_token_id": task.tokenizer.eos_token_id,
    }
    config = GenerationConfig(**(settings | ends))
    ids = torch.tensor([task.prompts[key] for key in batch], device=device)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        logits_processor=LogitsProcessorList([own] if own else []),
        use_cache=use_cache,
    )
    logprobs = torch.stack(streams.logprobs, 1) if streams else torch.zeros(len(batch), 0)
    return output[:, ids.shape[1] :].tolist(), logprobs.tolist(), streams.shown if streams else []


def constraint_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding
) -> Constraint | None:
    """The rules that what is written has to keep; None where there are none."""
    ends = end_tokens(model, tokenizer)
    return Constraint(model, tokenizer, decoding, ends) if decoding.constrain else None


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the tokenizer's, those that the model names, and what ends a turn
    in the chat template."""
    own = named(model.generation_config)
    if not own:  # a config that names none has that of its class, which may be any token
        own = named(model.config.get_text_config()) & special_tokens(tokenizer)
    return sorted({tokenizer.eos_token_id, end_of_turn(tokenizer), *own} - {None})


def named(config: Any) -> set[int]:
    """The end tokens that a config names."""
    ends = getattr(config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return {end for end in ends if isinstance(end, int)}
