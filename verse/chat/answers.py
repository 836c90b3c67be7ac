"""Contestants: chat models that finish the test poems."""

from collections.abc import Mapping, Sequence
from typing import Any

from verse.chat import rounds
from verse.chat.cleaning import clean
from verse.chat.client import Chat, Messages
from verse.chat.store import Store, key_of
from verse.params import Contestant, Machine, Server

EXPECTED = 100  # tokens of an answer, for the estimate alone

Poem = Mapping[str, str]


def finish(
    contestant: Contestant, poems: Sequence[Poem], store: Store, machine: Machine
) -> list[dict[str, Any]]:
    """A contestant's answers, in the order of the poems.

    poems: with `instruction` and `input`. Each answer is a row of `input`, `answer` (the poem in
    what the model wrote), `raw` (what it wrote), `trimmed` (what was taken away) and
    `finish_reason` (why the model stopped, in the server's words). Raises UserError if the server
    gives no answer.
    """
    asked = [question(poem, contestant) for poem in poems]
    keys = [key_of(contestant.name, *decides(contestant), messages) for messages in asked]
    questions = dict(zip(keys, asked, strict=True))
    found = rounds.ask(contestant, contestant.name, questions, put, EXPECTED, store, machine)
    rows = []
    for poem, key in zip(poems, keys, strict=True):
        reply = found[key]
        cleaned = clean(poem["input"], reply["text"])
        rows.append(
            {
                "input": poem["input"],
                "answer": cleaned.poem,
                "raw": reply["text"],
                "trimmed": list(cleaned.trimmed),
                "finish_reason": reply["finish"],
            }
        )
    return rows


async def put(chat: Chat, messages: Messages) -> dict[str, Any]:
    return await chat.reply(messages)


def question(poem: Poem, server: Server) -> Messages:
    """What a contestant is told: the instruction and, on a line of its own, the couplet."""
    return opened(f"{poem['instruction']}\n{poem['input']}", server)


def opened(text: str, server: Server) -> Messages:
    """A user's message, after the server's system message if it has one."""
    system = [{"role": "system", "content": server.system}] if server.system else []
    return [*system, {"role": "user", "content": text}]


def decides(server: Server) -> list[Any]:
    """What decides a server's answers besides the question."""
    return [
        server.base_url.rstrip("/"),
        server.model,
        server.temperature,
        server.top_p,
        server.max_tokens,
    ]
