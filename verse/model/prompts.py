"""Prompts: what a model is given before it writes the rest of a poem.

The completion is the bare rest, whatever the template. A prompt is to be encoded with
`tokenizer(prompt)`, special tokens and all: it then begins with exactly one start token if
the model wants one.
"""

import re
import string
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from verse.errors import UserError
from verse.model import distributed
from verse.model.bounded import BYTES, SECONDS, ends, held
from verse.model.encoding import affixes, special_tokens
from verse.poem import Poem

# The system text and template of the homework's notebook (generate_training_data, evaluate).
SYSTEM = (
    "You are a helpful assistant and good at writing Tang poem. "
    "你是一個樂於助人的助手且擅長寫唐詩。"
)
HOMEWORK = "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{instruction}\n{input}\n[/INST]"

# Some chat templates write today's date, by this function; here the day is always the same.
DIRECTIVES = [f"%{flag}{letter}" for flag in ("", *"-_0^#") for letter in string.ascii_letters]
DATES = [(one, datetime(2024, 7, 26).strftime(one)) for one in DIRECTIVES]
NO_DATE = (
    "{%- macro strftime_now(format) -%}{%- set date = namespace(text=format) -%}"
    f"{{%- for directive, text in {DATES} -%}}"
    "{%- set date.text = date.text|replace(directive, text) -%}{%- endfor -%}"
    "{{ date.text }}{%- endmacro -%}"
)

# By which is seen what a chat template makes of a poem and its answer.
PROBE = Poem("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。", "請續寫此詩。")

LAST_OPENING_TAG = re.compile(r"<[^<>/]*>\s*$")  # such as <think>, where thoughts would begin


class Style(NamedTuple):
    """How a conversation is put to a chat template."""

    system: bool
    """Whether the system text is a message of its own; else it opens the user's."""
    parts: bool
    """Whether contents are lists of parts; else they are strings."""


STYLES = [Style(True, False), Style(False, False), Style(True, True), Style(False, True)]


def plain(poem: Poem) -> str:
    """The instruction and, on a line of its own, the first couplet."""
    return f"{poem.instruction}\n{poem.couplet}"


def homework(poem: Poem) -> str:
    """The prompt of the homework's notebook.

    The notebook sets a space between prompt and completion in training but not in generation;
    here there is none in either.
    """
    return HOMEWORK.format(system=SYSTEM, instruction=poem.instruction, input=poem.couplet)


def prompt_writer(template: str, tokenizer: PreTrainedTokenizerBase) -> Callable[[Poem], str]:
    """The function that turns a poem into its prompt.

    template: "plain", "homework", "chat" (the tokenizer's own chat template), or "auto", which
        is chat if the tokenizer has a chat template, else plain.

    Raises UserError for "chat" without a chat template, or with a broken one.
    """
    if is_chat(template, tokenizer):
        return chat_writer(tokenizer)
    return homework if template == "homework" else plain


def is_chat(template: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    return template == "chat" or (template == "auto" and bool(tokenizer.chat_template))


def end_token(template: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a completion: as a chat model expects it, the end of the assistant's
    turn, else the tokenizer's end token."""
    turn = end_of_turn(tokenizer) if is_chat(template, tokenizer) else None
    return tokenizer.eos_token_id if turn is None else turn


def chat_writer(tokenizer: PreTrainedTokenizerBase) -> Callable[[Poem], str]:
    """Prompts by the tokenizer's chat template, up to where the assistant's turn begins.

    The function that is returned raises UserError for a poem that the template fails on.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "model.template is chat, but the model's tokenizer has no chat template: "
            "set it to plain, homework or auto"
        )
    check_bounds(lambda: (openings(tokenizer), end_of_turn(tokenizer)))
    style = chat_style(tokenizer)
    asking, answering = openings(tokenizer)
    before = tokenizer.convert_ids_to_tokens(affixes(tokenizer)[0])

    def write(poem: Poem) -> str:
        try:
            text = render(tokenizer, plain(poem), style)
        except Exception as error:
            raise UserError(fails(error, f" on the poem {poem.couplet}")) from error
        if text.endswith(asking):
            text = text.removesuffix(asking) + answering
        for number in range(len(before)):  # the tokenizer puts these there itself
            if text.startswith(written := "".join(before[number:])):
                return text.removeprefix(written)
        return text

    said, behind = around_answer(tokenizer)
    if not said:
        distributed.say(f"the chat template changes an answer: prompts end in {asking!r}")
    elif not (said.endswith(write(PROBE)) and answering.startswith(asking)):
        line = "the chat template has one text where it asks, another before an answer: prompts"
        distributed.say(f"{line} end in {answering!r}")
    if behind and end_of_turn(tokenizer) is None:
        line = f"the chat template has {behind!r} behind an answer: training has"
        distributed.say(f"{line} {tokenizer.eos_token} there")
    elif behind != behind.lstrip():
        distributed.say("the chat template has white space behind an answer: training has none")
    return write


def chat_style(tokenizer: PreTrainedTokenizerBase) -> Style:
    """The first of STYLES in which the tokenizer's chat template writes all that it is given.

    Raises UserError if there is none.
    """
    failed: dict[Style, Exception] = {}
    for style in STYLES:
        try:
            text = render(tokenizer, plain(PROBE), style)
        except Exception as error:  # a template is a program of the model's author
            failed[style] = error
            continue
        # A list of parts may also have been written as Python shows it, its line break as \n.
        asked = [plain(PROBE)] if style.parts else [PROBE.instruction, PROBE.couplet]
        if all(part in text for part in (SYSTEM, *asked)):
            return style
    if raised := failed.get(Style(system=False, parts=False)):
        raise UserError(fails(raised)) from raised
    raise UserError(
        "the chat template of the model's tokenizer leaves out what it is asked: "
        "set model.template to plain"
    )


def check_bounds(rendering: Callable[[], object]) -> None:
    """Raise UserError if what renders a chat template has no end."""
    if not ends(rendering):
        raise UserError(fails(TimeoutError(f"has no end within {SECONDS} s")))


def fails(error: Exception, where: str = "") -> str:
    said = str(error) or type(error).__name__
    return (
        f"the chat template of the model's tokenizer fails ({said}){where}: "
        "set model.template to plain"
    )


def render(
    tokenizer: PreTrainedTokenizerBase, user: str, style: Style, answer: str | None = None
) -> str:
    """A conversation as the chat template writes it: up to the assistant's turn, or, with an
    answer, to its end. It may raise anything."""
    turns = [("system", SYSTEM), ("user", user)]
    if not style.system:
        turns = [("user", f"{SYSTEM}\n\n{user}")]
    if answer is not None:
        turns.append(("assistant", answer))
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if style.parts else text}
        for role, text in turns
    ]
    try:
        with held():
            text: str = tokenizer.apply_chat_template(
                messages,
                chat_template=NO_DATE + tokenizer.get_chat_template(),
                tokenize=False,
                add_generation_prompt=answer is None,
                enable_thinking=False,  # some make room for thoughts otherwise
            )
    except MemoryError:
        raise ValueError(f"takes more than {BYTES // 2**30} GiB") from None
    return text


@lru_cache(maxsize=4)
def openings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template writes behind a question: where it asks for an answer, and where the
    answer itself begins.

    Most end in the same. gpt-oss's asks, and leaves the channel to the model; DeepSeek-R1's opens
    thoughts; Mistral's leaves out a blank. Raises UserError like `chat_style`.
    """
    style, question = chat_style(tokenizer), plain(PROBE)
    asking = render(tokenizer, question, style).rpartition(PROBE.couplet)[2]
    answering = around_answer(tokenizer)[0].rpartition(PROBE.couplet)[2]
    if asking.startswith(answering):
        thoughts = LAST_OPENING_TAG.search(asking.removeprefix(answering))
        return asking, answering if thoughts and answering.strip() else asking
    begun = LAST_OPENING_TAG.sub("", asking).rstrip() or asking.rstrip()
    further = answering.startswith(begun) or (answering.strip() and asking.endswith(answering))
    return asking, answering if further else asking


@lru_cache(maxsize=4)
def around_answer(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template writes before an answer, from the start token on, and behind it;
    nothing if it fails on an answer, or changes it."""
    try:
        text = render(tokenizer, plain(PROBE), chat_style(tokenizer), PROBE.rest)
    except Exception:  # some want a conversation to end with a question
        return "", ""
    before, said, behind = text.rpartition(PROBE.rest)
    return (before, behind) if said else ("", "")


@lru_cache(maxsize=4)
def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that follows what an assistant says, in the tokenizer's chat template:
    Llama 3's <|eot_id|>, Gemma's <end_of_turn>. None without a template, or without such a token.
    """
    if not tokenizer.chat_template:
        return None
    behind = around_answer(tokenizer)[1].lstrip()
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    ends = special_tokens(tokenizer) - {tokenizer.unk_token_id}
    return ids[0] if ids and ids[0] in ends else None
