"""A round of questions to one server: several at once, each answer kept the moment it arrives.

What happens to one question is its own: it is counted, and put again in the next round. But where
nothing is known of a server, questions go one at a time, until one brings more than a refusal; and
where nothing but refusals or faults come, DOUBTS in a row, none will have an answer.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter
from tqdm import tqdm

from verse.chat.client import KINDS, Chat, Messages, NoAnswer
from verse.chat.store import Store
from verse.params import Machine, Server

THOUGHTS = 2000
"""Tokens of thoughts before an answer, for the estimate alone: today's models think unless they
are told not to."""
DOUBTS = 3
NOTHING = {"text": "", "arguments": None, "finish": None, "tokens": [0, 0]}

Answer = dict[str, Any]
"""What is kept of an answer; under `tokens` how many were [read, written] for it."""

Work = Callable[[Chat, Messages], Awaitable[Answer]]
"""Puts a question and returns what is to be kept."""


def ask(
    server: Server,
    where: str,
    questions: Mapping[str, Messages],
    work: Work,
    schema: TypeAdapter[Any],
    expected: int,
    store: Store,
    machine: Machine,
) -> dict[str, Answer]:
    """The answer to each question, by its key: from the store, or asked for now.

    where: what messages call the server. schema: what `work` returns. expected: tokens of an
    answer, for the estimate that is printed before the first question.

    A question without an answer has what came all the same, and under `unanswered` its kind. After
    a fault of the whole server no other question is put; those on their way are waited for, and
    kept. Raises UserError like `work`.
    """
    answers = {key: store.get(key, schema) for key in questions}
    if store.marred:
        print(f"{store.file}: {store.marred} marred answers are set aside and asked for again")
    missing = {key: question for key, question in questions.items() if answers[key] is None}
    if missing:
        print(f"{where}: {estimate(server, missing, len(questions), expected)}", flush=True)
        with tqdm(
            desc=where,
            total=len(questions),
            initial=len(questions) - len(missing),
            unit="answer",
            disable=None,  # a bar on a terminal, silence in a log
        ) as bar:
            heard = len(missing) < len(questions)
            lost = asyncio.run(ask_all(server, where, missing, work, store, machine, bar, heard))
        answers |= {key: lost.get(key) or store.get(key, schema) for key in missing}
        read, written = (sum(answers[key]["tokens"][place] for key in missing) for place in (0, 1))
        told = [f"{len(missing) - len(lost)} answered"]
        told += counted(one["unanswered"] for one in lost.values())
        print(f"{where}: {', '.join(told)}, {read:,} tokens read and {written:,} written")
    return answers


def counted(kinds: Iterable[str | None]) -> list[str]:
    """How many are of each kind, such as `3 filtered` and `1 cut off`."""
    counts = Counter(kinds)
    return [f"{counts[kind]} {kind.replace('_', ' ')}" for kind in KINDS if counts[kind]]


def estimate(server: Server, missing: Mapping[str, Messages], total: int, expected: int) -> str:
    read = sum(len(message["content"]) for one in missing.values() for message in one)
    sent = server.options | {"max_tokens": server.max_tokens}
    limits = [v for k, v in sent.items() if re.match("max.*tokens", k) and isinstance(v, int)]
    each = min([expected + THOUGHTS * thinks(server.options), *limits])
    known = f", {total - len(missing)} are known" if len(missing) < total else ""
    return (
        f"{len(missing)} questions to {server.model}{known}; roughly {read:,} tokens to read "
        f"(a token a character) and {len(missing) * each:,} to write, thoughts included"
    )


def thinks(options: Any, named: bool = False) -> bool:
    """Whether a model may think before it answers: no option whose name speaks of it says no."""
    if isinstance(options, dict):
        ours = ((named or bool(re.search("think|reason", k)), v) for k, v in options.items())
        return all(thinks(value, named) for named, value in ours)
    return not (named and options in (False, 0, "none", "off", "disabled"))


async def ask_all(
    server: Server,
    where: str,
    missing: Mapping[str, Messages],
    work: Work,
    store: Store,
    machine: Machine,
    bar: "tqdm[Any]",
    heard: bool,
) -> dict[str, Answer]:
    """Put the questions; what came of those that have no answer, by their keys.

    heard: whether the server has ever done more than refuse or fail.
    """
    waiting = (pair for pair in missing.items())
    lost: dict[str, Answer] = {}
    arrived = doubts = tokens = 0

    async def put(key: str, question: Messages) -> None:
        nonlocal heard, arrived, doubts, tokens
        before, told = arrived, f"{key} failed"
        try:
            answer = await work(chat, question)
            store.put(key, answer)
            arrived, doubts = arrived + 1, 0
            heard = True
        except NoAnswer as no:
            lost[key] = answer = NOTHING | (no.reply or {}) | {"unanswered": no.kind}
            heard = heard or not no.doubtful
            if no.doubtful and not (heard and no.reply):
                if arrived > before:  # the server was well meanwhile
                    store.put(told, True)
                elif not store.get(told):
                    doubts += 1
                if doubts == DOUBTS or (not heard and len(lost) == len(missing)):
                    raise
        tokens += sum(answer["tokens"])
        bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
        bar.update()

    async def take_turns(alone: bool = False) -> None:
        for key, question in waiting:  # shared: whoever is free takes the next one
            try:
                await put(key, question)
            except BaseException:
                waiting.close()
                raise
            if alone and heard:
                return

    async with Chat(server, where, machine.timeout) as chat:
        if not heard:
            await take_turns(alone=True)
        turns = [take_turns() for _ in range(min(machine.max_concurrent_requests, len(missing)))]
        for outcome in await asyncio.gather(*turns, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
    return lost
