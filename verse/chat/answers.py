"""Contestants: chat models that finish the test poems."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from verse.chat import rounds
from verse.chat.cleaning import clean, without_thought
from verse.chat.client import WHY, Chat, Messages, Reply, fate
from verse.chat.store import Store, key_of
from verse.params import Contestant, Machine, Server
from verse.poem import Poem
from verse.poems.lines import in_form
from verse.schema import Record

EXPECTED = 100  # tokens of an answer, for the estimate alone


class Stored(Record):
    """What is kept of a Reply, as far as it is read again."""

    text: str
    finish: str


REPLY = TypeAdapter(Stored)


def finish(
    contestant: Contestant, poems: Sequence[Poem], store: Store, machine: Machine
) -> list[dict[str, Any]]:
    """A contestant's answers, in the order of the poems.

    Each answer is a row of `input`, `answer` (the poem in
    what the model wrote), `raw` (what it wrote), `trimmed` (what was taken away) and
    `finish_reason` (why the model stopped, in the server's words). Raises UserError if the server
    gives no answer.
    """
    asked = [question(poem, contestant) for poem in poems]
    keys = [key_of(contestant.name, *decides(contestant), messages) for messages in asked]
    questions = dict(zip(keys, asked, strict=True))
    found = rounds.ask(contestant, contestant.name, questions, put, REPLY, EXPECTED, store, machine)
    rows = []
    for poem, key in zip(poems, keys, strict=True):
        reply = found[key]
        kind = reply.get("unanswered")
        cleaned = clean(poem.couplet, reply["text"])
        rows.append(
            {
                "input": poem.couplet,
                "answer": "" if kind else cleaned.poem,
                "raw": reply["text"],
                "trimmed": [] if kind else list(cleaned.trimmed),
                "finish_reason": reply["finish"],
                "unanswered": kind,
            }
        )
    return rows


async def put(chat: Chat, messages: Messages) -> Reply:
    """A reply that has an answer in it: more than thoughts, and not cut off within the poem."""
    reply = await chat.reply(messages)
    couplet = messages[-1]["content"].rpartition("\n")[2]
    cleaned = clean(couplet, reply["text"])
    kind = fate(reply["finish"])
    if kind and cleaned.last and not in_form(couplet, cleaned.poem):
        raise chat.lacks(kind, WHY[kind], reply=reply)
    if not without_thought(reply["text"]).strip():
        raise chat.lacks("empty", "nothing but thoughts", reply=reply)
    return reply


def question(poem: Poem, server: Server) -> Messages:
    """What a contestant is told: the instruction and, on a line of its own, the couplet."""
    return opened(f"{poem.instruction}\n{poem.couplet}", server)


def opened(text: str, server: Server) -> Messages:
    """A user's message, after the server's system message if it has one."""
    system = [{"role": "system", "content": server.system}] if server.system else []
    return [*system, {"role": "user", "content": text}]


def decides(server: Server) -> list[Any]:
    """What decides a server's answers besides the question."""
    more = [server.options, server.headers, server.query]
    return [
        server.base_url.rstrip("/"),
        server.model,
        server.temperature,
        server.top_p,
        server.max_tokens,
        *(more if any(more) else []),
    ]
