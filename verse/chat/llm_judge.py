"""The homework's grader: a chat model that marks poems.

Two questions about each poem, couplet and answer together: how near it is to the prosody of Tang
verse, and how fluent its sense is, 0 to 10 each, by a tool call that it must make, three times
each. The questions and the tool are those of the homework's gradingAI.py. The judge is told nothing
but the poem, and poems come in an order that their hashes make.

A server that does not take tools, in whatever way it says so, is asked by a JSON schema, in JSON
mode, and in plain words, in this order; the first way that brings a mark is kept.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter

from verse.chat import rounds
from verse.chat.answers import decides, opened
from verse.chat.cleaning import first_turn, without_thought
from verse.chat.client import SHOWN, Chat, Fault, Messages, NoAnswer, fate
from verse.chat.rounds import Answer
from verse.chat.store import Store, key_of
from verse.params import Judge, Machine
from verse.schema import Record

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


SCORES = ("score", "分數", "分数", "評分", "评分", "得分", "rating", "points")
REASONS = ("reason", "理由", "原因", "說明", "说明")
BRACES = 100  # the last ones that may begin a mark in JSON
LONGEST = 1000  # characters of a reason
SHORT = 12  # characters that are no reason beside a mark
NUMERALS = dict(
    zip("零〇一二兩两三四五六七八九十", "0 0 1 2 2 2 3 4 5 6 7 8 9 10".split(), strict=True)
)
NUMERALS |= {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten".split(),
    )
}
NUMERAL = re.compile(
    "[零〇一二兩两三四五六七八九十]|\\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten)\\b",
    re.IGNORECASE,
)
TEN = r"10(?:\.0+)?(?!\.?\d)"
RANGE = re.compile(
    rf"(?<!\d)(?:0 ?(?:[到至~〜–—-]|to) ?{TEN} ?分?|{TEN} ?分(?:[滿满]分|制))|"
    rf"[滿满]分[是為为:(]? ?{TEN} ?分?\)?"
)
SCALE = re.compile(r"[滿满]分[是為为:(]? ?\d|分制|百分")
PART = re.compile(r"[扣減减加]除? ?\d|第 ?\d ?[項项]")
"""Words of another scale, and of a part of the mark, where only what is called the mark is one."""
SPAN = re.compile(
    r"(?<![/\d.])[\d.]{1,9}(?: ?分? ?\(?"
    rf"(?:[-~〜–—到至或、]|to|or|(?:/|(?:out )?of)(?! ?{TEN})) ?[\d.]{{1,9}})+"
)
"""From one number to another, or so many of another scale."""
NUMBER = r"(?<![-\d._])([0-9]{1,4}(?:\.[0-9]{1,9})?)(?![\d.]*\d|_| ?(?:[百%顆颗星]|stars?))"
ALONE = re.compile(rf"\A\s*{NUMBER}\s*(?:分|/\s*10|points?|out of 10)?\s*[。.!]?\s*\Z")
LABELLED = re.compile(
    rf"(?:[分評评]數|[分评]数|[評评得總总打]分|score|rating|grade)[^\w-]{{0,4}}(?:結果|结果)?(?:[是為为給给]|is|of)?[^\w-]{{0,4}}{NUMBER}",
    re.IGNORECASE,
)
POINTS = re.compile(rf"{NUMBER}\s*(?:分(?!之)|/\s*{TEN}|out of {TEN})", re.IGNORECASE)
"""A mark in words: nothing else, called so, or so many points."""


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
    AnswerFormat(IN_JSON, {"response_format": {"type": "json_object"}}),
    AnswerFormat(IN_JSON, {}),
)
"""From the surest to the one that every server knows."""


class MarkReader:
    """Asks for marks in the first way in which the server gives one."""

    def __init__(self) -> None:
        self.way: AnswerFormat | None = None

    async def mark(self, chat: Chat, messages: Messages) -> Answer:
        """A mark: `score`, `reason`, `tokens`.

        Raises NoAnswer if TRIES bring none, or if the server gives none in any way, Fault if it
        answers nothing at all.
        """
        tokens, said = [0, 0], ""
        *before, last = messages
        for step in FORMATS:
            known = self.way  # which another question may have found meanwhile
            way = known or step
            worded = [*before, last | {"content": last["content"] + way.ending}]
            chat.probing = probing = not known and step is not FORMATS[-1]
            for _ in range(TRIES if known else FIRST_TRIES):
                try:
                    reply = await chat.reply(worded, **way.options)
                except (Fault, NoAnswer) as none:
                    if not probing or not might_be_the_way(none):
                        raise
                    break
                tokens = [a + b for a, b in zip(tokens, reply["tokens"], strict=True)]
                said = reply["arguments"] or reply["text"]
                if mark := read(said, bool(fate(reply["finish"]))):
                    self.way = way
                    return {"score": mark[0], "reason": mark[1], "tokens": tokens}
            if known:
                break
        shown = " ".join(said.split())[:SHOWN]
        raise chat.lacks(
            "malformed",
            f"no mark can be read from the judge's answers, such as {shown!r}",
            remedy="take another model",
            reply=reply | {"tokens": tokens},
        )


def might_be_the_way(none: Fault | NoAnswer) -> bool:
    """Whether another way of asking may bring what this one did not."""
    return none.refusal if isinstance(none, Fault) else none.kind not in ("filtered", "cut_off")


def read(text: str, cut: bool = False) -> tuple[float, str] | None:
    """The score and the reason in a judge's answer; None unless it is one number, 0 to 10.

    It may be JSON, alone or among words, or words: 8分, ８／１０, 八分半, Score: 8 out of 10. Of an
    answer that is cut off, words do not count: 1 may be the half of 10.
    """
    bare = unicodedata.normalize("NFKC", without_thought(first_turn(text))).strip()
    found: dict[float, tuple[float, str]] = {}
    for brace in [*re.finditer(r"\{", bare)][-BRACES:]:
        with suppress(ValueError, RecursionError):
            if mark := from_json(json.JSONDecoder().raw_decode(bare, brace.start())[0]):
                found.setdefault(mark[0], mark)
    if found:
        return found.popitem()[1] if len(found) == 1 else None
    score = None if cut or bare.startswith(("{", "[")) else score_in(bare)
    return None if score is None else (score, "" if len(bare) < SHORT else bare[:LONGEST])


def from_json(mark: dict[str, Any]) -> tuple[float, str] | None:
    named = {name.strip().lower(): value for name, value in mark.items()}
    score = next((named[name] for name in SCORES if name in named), None)
    if isinstance(score, bool) or not isinstance(score, int | float | str):
        return None
    found = score_in(str(score))
    reason = next((named[name] for name in REASONS if name in named), "")
    return None if found is None else (found, str(reason)[:LONGEST])


def score_in(text: str) -> float | None:
    """The number that words call the mark, the one that they call so many points, or all there is.

    None where there are several, or where it is not 0 to 10.
    """
    text = re.sub(r"[^\S\n]+", " ", text)  # a line break ends what belongs together
    text = re.sub("(?<![一二三四五六七八九])十分(?=[\u4e00-\u9fff])", "", text)  # "very"
    text = re.sub(NUMERAL, lambda word: NUMERALS[word[0].lower()], text)
    text = re.sub(r"(?<=\d)[點点](?=\d)", ".", text)
    text = re.sub(r"(\d)(\s*分?)半", r"\1.5\2", text)
    text = RANGE.sub("", text)
    if SCALE.search(text):
        return None
    text = SPAN.sub("99", text)  # no mark
    for pattern in (LABELLED,) if PART.search(text) else (ALONE, LABELLED, POINTS):
        if scores := {float(number) for number in pattern.findall(text)}:
            score = scores.pop()
            return score if not scores and score <= 10 else None
    return None


class Mark(Record):
    """What is kept of a mark."""

    score: Annotated[float, Field(ge=0, le=10)]
    reason: str


MARK = TypeAdapter(Mark)
UNMARKED = {"score": None, "reason": ""}
UNANSWERED = dict.fromkeys(QUESTIONS, [{"score": 0, "reason": "unanswered"}] * TIMES)
"""The marks of a poem of which nobody wrote a line: the bare couplet would get a true poem's."""


def mark_poems(
    judge: Judge, poems: Iterable[str], store: Store, machine: Machine
) -> dict[str, dict[str, list[Answer]]]:
    """The TIMES marks of each distinct poem for each of QUESTIONS.

    poems: whole poems. A mark that the server does not give is None. Raises UserError if it gives
    none at all.
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
    marks = rounds.ask(
        judge, "the judge", shuffled, MarkReader().mark, MARK, EXPECTED, store, machine
    )
    found: dict[str, dict[str, list[Answer]]] = {}
    for (poem, name), of_one in keys.items():
        found.setdefault(poem, {})[name] = [UNMARKED | marks[key] for key in of_one]
    return found
