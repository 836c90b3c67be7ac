"""What the page can do: everything behind its addresses, without HTTP.

One thread works the models, so that writing is deterministic and a GPU meets one poem at a time.
Who asks waits in a queue of bounded length. What comes in is checked here, before any model sees
it; what goes out is plain data, which the page shows as text.
"""

import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field

from verse.cli import couplets
from verse.cli.models import LIKELIEST, LoadedModel, load_models
from verse.cli.options import adjusted
from verse.errors import UserError, is_out_of_memory
from verse.generation.distribution import entropy
from verse.params import Params, Rule
from verse.poem import Poem
from verse.poems.contestants import MODELS

WAITING = 32  # who may wait for the models
LONGEST_COUPLET = 500  # characters
LONGEST_ANSWER = 256  # tokens
REMEMBERED = 4  # answers whose scores are kept, so that a slider need not ask the model again
T = TypeVar("T")


class Refusal(Exception):
    """What cannot be done, in a sentence of Chinese and one of English."""

    def __init__(self, status: int, chinese: str, english: str):
        super().__init__(english)
        self.status = status
        self.words = {"zh": chinese, "en": english}


class Gone(Exception):
    """Nobody waits for the answer any more."""


class Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Couplet(Request):
    couplet: Annotated[str, Field(max_length=LONGEST_COUPLET, pattern=r"\S")]


class Controls(Request):
    """What the page's controls are set to; the rest of decoding is that of params.yaml."""

    temperature: Annotated[float, Field(ge=0, le=5)]
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Annotated[int, Field(ge=1, le=LONGEST_ANSWER)]
    constrain: Annotated[list[Rule], Field(max_length=len(get_args(Rule)))] | None = None


class Writing(Couplet):
    model: Annotated[str, Field(max_length=40)]
    controls: Controls
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]


class Explaining(Couplet):
    model: Annotated[str, Field(max_length=40)]
    controls: Controls
    tokens: Annotated[
        list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=LONGEST_ANSWER)
    ]
    place: Annotated[int, Field(ge=0, lt=LONGEST_ANSWER)]


class PageService:
    """The models, the thread that works them, and what this workspace knows of couplets."""

    def __init__(self, p: Params, model: str | None = None, *, base_alone: bool = False):
        self.p = p
        self.jobs: queue.Queue[Callable[[], None]] = queue.Queue(WAITING)
        self.scores = lru_cache(REMEMBERED)(
            lambda name, *texts: self.do(lambda: self.models[name].scores(*map(list, texts)))
        )
        threading.Thread(target=self.work, daemon=True).start()
        self.models: dict[str, LoadedModel] = self.do(
            lambda: load_models(p, model, base=True, tuned=not base_alone)
        )
        self.library = couplets.Library(own=frozenset(MODELS))

    def work(self) -> None:
        while True:
            self.jobs.get()()

    def hand_in(self, job: Callable[[], None]) -> None:
        try:
            self.jobs.put_nowait(job)
        except queue.Full:
            raise Refusal(
                503, "等候的人太多，請稍後再試。", "Too many are waiting: try again in a while."
            ) from None

    def do(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, done by the thread that works the models."""
        promised: Future[T] = Future()

        def job() -> None:
            try:
                promised.set_result(work())
            except BaseException as error:
                promised.set_exception(error)

        self.hand_in(job)
        return promised.result()

    def state(self) -> dict[str, Any]:
        """What the page is set up with."""
        decoding = self.p.decoding
        return {
            "models": [self.named(name) for name in self.models],
            "examples": couplets.EXAMPLES,
            "seed": self.p.seed,
            "likeliest": LIKELIEST,
            "longest": LONGEST_ANSWER,
            "controls": {
                "temperature": decoding.temperature if decoding.do_sample else 0,
                "top_k": decoding.top_k,
                "top_p": decoding.top_p,
                "max_new_tokens": min(decoding.max_new_tokens, LONGEST_ANSWER),
                "constrain": [rule for rule in get_args(Rule) if rule in decoding.constrain],
            },
        }

    def named(self, name: str) -> dict[str, str]:
        one = self.library.contestants[name]
        return {"name": name, "zh": one.label or one.english, "en": one.english}

    def random(self) -> dict[str, str]:
        return {"couplet": self.library.any_couplet()}

    def look_up(self, asked: Couplet) -> dict[str, Any]:
        """A couplet as the pipeline writes it, what speaks against it, and who answered it."""
        couplet = couplets.written(asked.couplet)
        true = self.library.test.get(couplet)
        known = {name: one.get(couplet) for name, one in self.library.others.items()}
        answers = {name: text for name, text in known.items() if text is not None}
        if true:
            answers["reference"] = true.rest
        return {
            "couplet": couplet,
            "doubts": [{"zh": zh, "en": en} for zh, en in couplets.doubts(couplet)],
            "traditional": couplets.traditional(couplet),
            "answers": [
                self.named(name) | {"answer": self.library.set(Poem(couplet, text))}
                for name, text in answers.items()
            ],
        }

    def write(self, asked: Writing, gone: threading.Event) -> Iterator[dict[str, Any]]:
        """An answer as it grows: {"text", "tokens"} many times, then {"done"} or {"error"} once.

        gone: set when nobody reads any more.
        """
        model, poem = self.model(asked.model), self.library.poem(asked.couplet)
        decoding = self.decoding(asked.controls)
        events: queue.Queue[dict[str, Any] | None] = queue.Queue()

        def on_text(_: int, text: str, tokens: int) -> None:
            if gone.is_set():
                raise Gone
            events.put({"text": text, "tokens": tokens})

        def job() -> None:
            try:
                if not gone.is_set():
                    [written] = model.write([poem], decoding, asked.seed, on_text)
                    answer = self.library.set(Poem(asked.couplet, written.text))
                    events.put({"done": asdict(written) | {"answer": answer}})
            except Gone:
                pass
            except Exception as error:
                events.put({"error": refusal(error).words})
            finally:
                events.put(None)

        events.put({"text": "", "tokens": 0})
        self.hand_in(job)
        return iter(events.get, None)

    def explain(self, asked: Explaining) -> dict[str, Any]:
        """The distribution at a place of an answer, and the entropy at each of its places."""
        model, poem = self.model(asked.model), self.library.poem(asked.couplet)
        if asked.place >= len(asked.tokens) or max(asked.tokens) >= model.vocabulary:
            raise Refusal(400, "沒有這個位置或這個字。", "There is no such place or token.")
        prompt = model.prompt(poem, len(asked.tokens))
        scores = self.scores(asked.model, tuple(prompt), tuple(asked.tokens))
        decoding = self.decoding(asked.controls)
        along = list(model.distributions(scores, prompt, asked.tokens, decoding, poem.couplet))
        here, token = along[asked.place], asked.tokens[asked.place]
        return {
            "entropy": [
                {"model": entropy(one.model), "drawn": entropy(one.drawn), "left": one.left}
                for one in along
            ],
            "labels": [model.label(token) for token in asked.tokens],
            "chosen": model.row(here, token),
            "likeliest": model.likeliest(here),
        }

    def model(self, name: str) -> LoadedModel:
        if name not in self.models:
            raise Refusal(400, "這裡沒有這個模型。", "This model is not here.")
        return self.models[name]

    def decoding(self, controls: Controls) -> Any:
        """One candidate: what is read as it is written cannot be taken back for a better one."""
        return adjusted(self.p, "controls", num_beams=1, candidates=1, **controls.model_dump())


def refusal(error: Exception) -> Refusal:
    """What to tell the page of an error; our own bugs are told on the terminal too."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UserError):
        return Refusal(400, "模型不能照辦。", str(error))
    if is_out_of_memory(error):
        return Refusal(503, "記憶體不足。", "Out of memory: ask for a shorter answer.")
    traceback.print_exception(error)
    return Refusal(
        500, "程式出錯，詳見終端機。", "A fault of the program: the terminal tells more."
    )
