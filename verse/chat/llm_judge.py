"""The homework's grader: a chat model that marks poems.

Two questions about each poem, couplet and answer together: how near it is to the prosody of Tang
verse, and how fluent its sense is, 0 to 10 each, by a tool call that it must make, three times
each. The questions and the tool are those of the homework's gradingAI.py. The judge is told nothing
but the poem, and poems come in an order that their hashes make.

A server that knows no tools is asked for an answer by a JSON schema, or for plain JSON.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from verse.chat import rounds
from verse.chat.answers import decides, opened
from verse.chat.cleaning import without_thought
from verse.chat.client import Chat, Messages, Refused
from verse.chat.rounds import Answer
from verse.chat.store import Store, key_of
from verse.errors import UserError
from verse.params import Judge, Machine

QUESTIONS = {
    "prosody": "請判斷以下詩句與唐詩格律相似程度，打0到10分的分數，分數越高越相似\n",
    "fluency": "請判斷以下唐詩語意通順程度，打0到10分的分數，分數越高越通順\n",
}
TIMES = 3
TRIES = 5  # for a mark that can be read
FIRST_TRIES = 2  # in each way, as long as none has brought one
EXPECTED = 80  # tokens of an answer, for the estimate alone

SCHEMA = {
    "type": "object",
    "properties": {
        "score": {"type": "number", "description": "Ranging from 0 to 10, the higher the better"},
        "reason": {"type": "string", "description": "A brief explanation of the score"},
    },
    "required": ["score", "reason"],
    "additionalProperties": False,
}
TOOL = {
    "name": "auto_grader",
    "description": "Give a score in the range from 0 to 10 according to the instruction.",
    "parameters": SCHEMA,
}
IN_JSON = '\n\n只回答一個 JSON 物件：{"score": 分數, "reason": "簡短的理由"}'


class AnswerFormat(NamedTuple):
    """A way to have a mark: what the question ends on, and what the API is told."""

    ending: str
    options: dict[str, Any]


FORMATS = (
    AnswerFormat(
        "",
        {
            "tools": [{"type": "function", "function": TOOL}],
            "tool_choice": {"type": "function", "function": {"name": TOOL["name"]}},
        },
    ),
    AnswerFormat(
        IN_JSON,
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": TOOL["name"], "schema": SCHEMA, "strict": True},
            }
        },
    ),
    AnswerFormat(IN_JSON, {}),
)
"""From the surest to the one that every server knows."""


class MarkReader:
    """Asks for marks in the first way in which the server gives one."""

    def __init__(self) -> None:
        self.way = 0
        self.proven = False

    async def mark(self, chat: Chat, messages: Messages) -> Answer:
        """A mark: `score`, `reason`, `tokens`. The score is None if TRIES bring none.

        Raises UserError if the server gives no mark in any way.
        """
        tokens, said = [0, 0], ""
        while True:
            number, sure = self.way, self.proven
            way = FORMATS[number]
            *before, last = messages
            worded = [*before, last | {"content": last["content"] + way.ending}]
            for _ in range(TRIES if sure else FIRST_TRIES):
                try:
                    reply = await chat.reply(worded, **way.options)
                except Refused as refused:
                    said = str(refused)
                    break
                tokens = [a + b for a, b in zip(tokens, reply["tokens"], strict=True)]
                said = reply["arguments"] or reply["text"]
                if mark := read(said):
                    self.way, self.proven = number, True
                    return {"score": mark[0], "reason": mark[1], "tokens": tokens}
            if sure:
                return {"score": None, "reason": "", "tokens": tokens}
            if self.proven or self.way > number:  # others have found out more meanwhile
                continue
            if number + 1 == len(FORMATS):
                said = " ".join(said.split())[:100]
                raise UserError(
                    f"no mark can be read from the judge's answers, such as {said!r}: "
                    "take another model"
                )
            self.way = number + 1


def read(text: str) -> tuple[float, str] | None:
    """The score and the reason in a judge's answer; None unless it is strict JSON, 0 to 10."""
    bare = re.sub(r"\A```(?:json)?|```\Z", "", without_thought(text).strip()).strip()
    try:
        mark = json.loads(bare)
        score = float(mark["score"])
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return None
    if isinstance(mark["score"], bool) or not 0 <= score <= 10:
        return None
    return score, str(mark.get("reason", ""))[:1000]


def mark_poems(
    judge: Judge, poems: Iterable[str], store: Store, machine: Machine
) -> dict[str, dict[str, list[Answer]]]:
    """The TIMES marks of each distinct poem for each of QUESTIONS.

    poems: whole poems. Raises UserError if the server gives no marks.
    """
    keys: dict[tuple[str, str], list[str]] = {}
    asked: dict[str, Messages] = {}
    for poem in dict.fromkeys(poems):
        for name, question in QUESTIONS.items():
            messages = opened(question + poem, judge)
            of_one = [key_of("judge", *decides(judge), messages, time) for time in range(TIMES)]
            keys[poem, name] = of_one
            asked |= dict.fromkeys(of_one, messages)
    shuffled = dict(sorted(asked.items()))
    marks = rounds.ask(judge, "the judge", shuffled, MarkReader().mark, EXPECTED, store, machine)
    found: dict[str, dict[str, list[Answer]]] = {}
    for (poem, name), of_one in keys.items():
        found.setdefault(poem, {})[name] = [marks[key] for key in of_one]
    return found
