"""A round of questions to one server: several at once, each answer kept the moment it arrives."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tqdm import tqdm

from verse.chat.client import Chat, Messages
from verse.chat.store import Store
from verse.params import Machine, Server

Answer = dict[str, Any]
"""What is kept of an answer; under `tokens` how many were [read, written] for it."""

Work = Callable[[Chat, Messages], Awaitable[Answer]]
"""Puts a question and returns what is to be kept."""


def ask(
    server: Server,
    where: str,
    questions: Mapping[str, Messages],
    work: Work,
    expected: int,
    store: Store,
    machine: Machine,
) -> dict[str, Answer]:
    """The answer to each question, by its key: from the store, or asked for now.

    where: what messages call the server. expected: tokens of an answer, for the estimate that
    is printed before the first question.

    After a fault no other question is put; those on their way are waited for, and kept. Raises
    UserError like `work`.
    """
    answers = {key: store.get(key) for key in questions}
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
            asyncio.run(ask_all(server, where, missing, work, store, machine, bar))
        answers |= {key: store.get(key) for key in missing}
        read, written = (sum(answers[key]["tokens"][place] for key in missing) for place in (0, 1))
        print(f"{where}: {len(missing)} answered, {read:,} tokens read and {written:,} written")
    return answers


def estimate(server: Server, missing: Mapping[str, Messages], total: int, expected: int) -> str:
    read = sum(len(message["content"]) for one in missing.values() for message in one)
    written = len(missing) * min(expected, server.max_tokens or expected)
    known = f", {total - len(missing)} are known" if len(missing) < total else ""
    return (
        f"{len(missing)} questions to {server.model}{known}; roughly {read:,} tokens to read "
        f"(a token a character) and {written:,} to write"
    )


async def ask_all(
    server: Server,
    where: str,
    missing: Mapping[str, Messages],
    work: Work,
    store: Store,
    machine: Machine,
    bar: "tqdm[Any]",
) -> None:
    waiting = (pair for pair in missing.items())
    tokens = 0

    async def take_turns() -> None:
        nonlocal tokens
        for key, question in waiting:  # shared: whoever is free takes the next one
            try:
                answer = await work(chat, question)
                store.put(key, answer)
            except BaseException:
                waiting.close()
                raise
            tokens += sum(answer["tokens"])
            bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
            bar.update()

    async with Chat(server, where, machine.timeout) as chat:
        turns = [take_turns() for _ in range(min(machine.max_concurrent_requests, len(missing)))]
        for outcome in await asyncio.gather(*turns, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
