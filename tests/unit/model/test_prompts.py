"""`verse.model.prompts`: each template, and one start token however the tokenizer goes about it."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from verse.errors import UserError
from verse.model import bounded
from verse.model.opening import Opening
from verse.model.prompts import SYSTEM, end_of_turn, end_token, prompt_writer
from verse.poem import Poem

POEM = Poem("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。", "續寫此詩。")
USER = "續寫此詩。\n白日依山盡，黃河入海流。"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<turn>{{ m.role }}\n{{ m.content | trim }}</turn>\n{% endfor %}<turn>model"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% endif %}{% endfor %}"
)
WITH_DATE = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}\n" + CHATML
)
THINKS = CHATML + (
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>\n{% endif %}"
)


def tokenizer(chat_template=None, *, bos="<s>", adds_bos=True):
    """A tokenizer of characters; `adds_bos` makes it put the start token first."""
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<unk>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos and adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    built = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="</s>", unk_token="<unk>"
    )
    built.chat_template = chat_template
    return built


def prompt(template, of=None, poem=POEM):
    return prompt_writer(template, of or tokenizer())(poem)


def test_plain_is_the_instruction_and_the_couplet():
    assert prompt("plain") == USER


def test_homework_is_the_notebooks_prompt():
    assert prompt("homework") == (
        "[INST] <<SYS>>\n"
        "You are a helpful assistant and good at writing Tang poem. "
        "你是一個樂於助人的助手且擅長寫唐詩。\n"
        "<</SYS>>\n"
        "\n"
        "續寫此詩。\n"
        "白日依山盡，黃河入海流。\n"
        "[/INST]"
    )


def test_braces_in_a_poem_are_no_fields():
    assert "{system}{0}\n" in prompt("homework", poem=replace(POEM, instruction="{system}{0}"))


def test_auto_is_chat_where_the_tokenizer_has_a_template_and_plain_elsewhere():
    assert prompt("auto", tokenizer()) == USER
    assert prompt("auto", tokenizer(CHATML)) == prompt("chat", tokenizer(CHATML)) != USER


def test_chat_has_a_system_message_and_stops_where_the_answer_begins():
    assert prompt("chat", tokenizer(CHATML)) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{USER}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_that_refuses_system_messages_gets_the_text_in_the_users_turn():
    assert prompt("chat", tokenizer(REFUSES_SYSTEM)) == (
        f"<turn>user\n{SYSTEM}\n\n{USER}</turn>\n<turn>model"
    )


def test_a_template_that_drops_system_messages_gets_the_text_in_the_users_turn():
    assert prompt("chat", tokenizer(DROPS_SYSTEM)) == f"[INST] {SYSTEM}\n\n{USER} [/INST]"


@pytest.mark.parametrize("system", [True, False])
def test_a_template_that_wants_content_in_parts(system):
    wants_parts = (
        "{% for m in messages %}<turn>"
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
        "{% endfor %}</turn>{% endfor %}"
    )
    if not system:
        wants_parts += "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    between = "</turn><turn>" if system else "\n\n"
    assert prompt("chat", tokenizer(wants_parts)) == f"<turn>{SYSTEM}{between}{USER}</turn><turn>"


@pytest.mark.parametrize("lost", ["messages[0].content[:9]", "'Hello'", "messages[-1].role"])
def test_a_template_that_leaves_the_couplet_out(lost):
    with pytest.raises(UserError, match="leaves out what it is asked"):
        prompt_writer("chat", tokenizer("{{ " + lost + " }}"))


TURN = "{% for m in messages %}<u>{{ m.content }}{{ END }}{% endfor %}"


@pytest.mark.parametrize(
    ("chat", "turn"),
    [
        (TURN.replace("END", "'<end>\n'"), "<end>"),
        (TURN.replace("END", "'\n <end></s>'"), "<end>"),
        (
            TURN.replace("END", "'<end>'") + "{% if not add_generation_prompt %}</s>{% endif %}",
            "<end>",
        ),
        (TURN.replace("END", "eos_token"), "</s>"),
        (TURN.replace("END", "'</u>'"), None),  # a text like any other
        (TURN.replace("END", "''"), None),
        (TURN.replace("END", "'。<end>'"), None),
        (
            "{{ messages[0].content }}{% if messages[-1].role == 'assistant' %}<end>{% endif %}",
            None,
        ),
        (REFUSES_SYSTEM.replace("<turn>model", "").replace("</turn>", "<end>"), "<end>"),
        (None, None),
    ],
)
def test_the_end_of_turn_is_what_follows_what_the_assistant_says(chat, turn):
    built = tokenizer(chat)
    built.add_special_tokens({"additional_special_tokens": ["<end>"]})
    found = end_of_turn(built)
    assert (found if found is None else built.convert_ids_to_tokens(found)) == turn
    ends = {template: end_token(template, built) for template in ("plain", "homework", "auto")}
    eos = built.eos_token_id
    assert ends == {"plain": eos, "homework": eos, "auto": eos if found is None else found}


@pytest.mark.parametrize(
    ("directives", "today"),
    [
        ("%d %b %Y", "26 Jul 2024"),
        ("%A, %B %d, %Y at %H:%M:%S", "Friday, July 26, 2024 at 00:00:00"),
        ("%-d.%-m.%y %-I %p", "26.7.24 12 AM"),
        ("%j %c %x %F %D", "208 Fri Jul 26 00:00:00 2024 07/26/24 2024-07-26 07/26/24"),
    ],
)
def test_no_prompt_depends_on_the_day(directives, today):
    chat = WITH_DATE.replace("%d %b %Y", directives)
    assert prompt("chat", tokenizer(chat)).startswith(f"Today: {today}\n")


def test_thoughts_are_switched_off():
    assert prompt("chat", tokenizer(THINKS)).endswith("assistant\n<think></think>\n")


ASKS = "{% if add_generation_prompt %}ASKS{% endif %}"
TELLS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}TELLS{{ m.content }}<end>"
    "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}" + ASKS
)


@pytest.mark.parametrize(
    ("asks", "tells", "answer"),
    [
        (
            "<start>model",
            "<start>model<channel>final<message>",
            "<start>model<channel>final<message>",
        ),
        ("<model><think>\n", "<model>", "<model>"),
        ("<model><think>\n", "<model><think>\n\n</think>\n\n", "<model><think>\n\n</think>\n\n"),
        ("<model></think>", "<model>", "<model></think>"),  # thoughts are over where it asks
        ("<model><think></think>\n", "<model>", "<model><think></think>\n"),
        ("<model>", "<model> ", "<model> "),
        ("<model>", "<model>\n", "<model>\n"),
        ("<model>", "<model>final: ", "<model>final: "),
        ("", "<model>", "<model>"),
        ("</s>", "</s><model>", "</s><model>"),
        (" (be brief)<model>", "<model>", "<model>"),
        ("<model>", "<other>", "<model>"),
        ("<model>\n\n", "<model>\n", "<model>\n\n"),
        ("<model>", "{{ raise_exception('ask first') }}", "<model>"),
    ],
)
def test_a_prompt_stops_where_the_answer_itself_begins(asks, tells, answer):
    """Behind what the template writes of thoughts or channels, of which a poem has none."""
    chat = TELLS.replace("ASKS", asks).replace("TELLS", tells)
    assert prompt("chat", tokenizer(chat)) == f"<system>{SYSTEM}<user>{USER}{answer}"


@pytest.mark.parametrize(
    ("asks", "tells", "behind", "said"),
    [
        ("<model>", "<model>", "<end>\n", ""),
        ("<model>", "<model> ", "<end>", ""),
        ("<model>", "<other>", "<end>", "before an answer: prompts end in '<model>'\n"),
        ("<model><think>", "<model>", "<end>", "before an answer: prompts end in '<model>'\n"),
        (" (be brief)<model>", "<model>", "<end>", "prompts end in '<model>'\n"),
        (
            "<model>",
            "{{ raise_exception('no') }}",
            "",
            "changes an answer: prompts end in '<model>'\n",
        ),
        ('<model>"', '<model>"', '"<end>', "has '\"<end>' behind an answer: training has </s>"),
        ("### model\n", "### model\n", "\n\n", r"has '\n\n' behind an answer: training has </s>"),
        ("<model>", "<model>", "\n<end>", "has white space behind an answer: training has none"),
    ],
)
def test_what_a_template_writes_otherwise_than_it_asks_is_said(asks, tells, behind, said, capsys):
    chat = TELLS.replace("ASKS", asks).replace("TELLS", tells).replace("<end>", behind)
    built = tokenizer(chat)
    built.add_special_tokens({"additional_special_tokens": ["<end>"]})
    prompt("chat", built)
    lines = capsys.readouterr().out
    assert said in lines and lines.count("\n") == bool(said)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [CHATML, "{{ bos_token }}" + CHATML])
def test_an_encoded_prompt_never_has_two_start_tokens(template, adds_bos):
    built = tokenizer(template, adds_bos=adds_bos)
    ids = built(prompt("chat", built))["input_ids"]
    wanted = adds_bos or "bos_token" in template
    assert ids.count(built.bos_token_id) == (1 if wanted else 0)
    assert (ids[0] == built.bos_token_id) is wanted


def test_a_tokenizer_without_a_start_token():
    assert prompt("chat", tokenizer(CHATML, bos=None)).startswith("<|im_start|>system")


def test_chat_without_a_template_is_one_clear_line():
    with pytest.raises(UserError, match="no chat template: set it to plain, homework or auto"):
        prompt_writer("chat", tokenizer())


@pytest.mark.parametrize(
    "broken",
    [
        "{% for m in messages %}",  # a syntax error
        "{{ messages[0].nothing.at.all }}",
        "{{ raise_exception('needs tools') }}",
        "{{ messages[0].content + 1 }}",
        {"rag": CHATML, "tool_use": CHATML},  # several, and none of them the default
    ],
)
@pytest.mark.parametrize("template", ["chat", "auto"])
def test_a_broken_template_is_one_clear_line(template, broken):
    with pytest.raises(UserError, match="chat template of the model's tokenizer fails"):
        prompt_writer(template, tokenizer(broken))


def tall(text=""):
    """Ten thousand million turns."""
    loop = "{% for i in range(99999) %}"
    return loop + loop + text + "{% endfor %}{% endfor %}"


SAYS = "{{ messages[0].content }}{{ messages[1].content }}"
LONG = replace(POEM, couplet="春江潮水連海平，海上明月共潮生。")
ENDLESS = {
    "turns without a text": (tall(), "has no end"),
    "turns of a letter": (tall("x"), "has no end"),
    "a text of 3 GB": ("{{ 'x' * 3000000000 }}", "takes more than 1 GiB"),
    "a text that doubles": (
        "{% set n = namespace(t='x') %}{% for i in range(40) %}{% set n.t = n.t + n.t %}"
        "{% endfor %}{{ n.t }}",
        "takes more than 1 GiB",
    ),
    "a list of lists": (
        "{% set n = namespace(t=[0] * 1000000000) %}{{ n.t | length }}",
        "takes more than 1 GiB",
    ),
    "a number without an end": ("{{ 9 ** (9 ** 9) }}", "has no end"),
    "a text that is joined": ("{{ (['x' * 1000000] * 100000) | join }}", "takes more than 1 GiB"),
    "a text that is replaced": (
        "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
        "takes more than 1 GiB",
    ),
    "a text that is indented": (
        "{{ ('\\n' * 100000) | indent(100000, true, true) }}",
        "takes more than 1 GiB",
    ),
    "a text that is filled up": ("{{ '%3000000000s' % 'x' }}", "takes more than 1 GiB"),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_template_that_takes_too_much_is_one_clear_line(what, monkeypatch):
    monkeypatch.setattr(bounded, "SECONDS", 2)
    template, said = ENDLESS[what]
    began = time.monotonic()
    with pytest.raises(UserError, match="chat template of the model's tokenizer fails") as caught:
        prompt_writer("chat", tokenizer(template))
    assert said in str(caught.value) or "has no end" in str(caught.value)
    assert time.monotonic() - began < 30


ON_SOME = {
    "endless": "{% if 'THIS' in messages[1].content %}" + tall() + "{% endif %}",
    "huge": "{% if 'THIS' in messages[1].content %}{{ 'x' * 3000000000 }}{% endif %}",
    "an error": "{% if 'THIS' in messages[1].content %}{{ raise_exception('no') }}{% endif %}",
    "nothing to divide by": "{{ 1 // (0 if 'THIS' in messages[1].content else 1) }}",
    "an index": "{% if 'THIS' in messages[1].content %}{{ [].pop() }}{% endif %}",
}


@pytest.mark.parametrize("character", ["春", "床"])
@pytest.mark.parametrize("what", ON_SOME)
def test_a_template_that_fails_on_a_poem_alone(what, character, monkeypatch):
    """On the longest, or on the first; the probe passes."""
    monkeypatch.setattr(bounded, "SECONDS", 2)
    built = tokenizer(SAYS + ON_SOME[what].replace("THIS", character))
    first = Poem("床前明月光，疑是地上霜。", instruction="續。")
    settings = SimpleNamespace(template="chat")
    opening = Opening(settings, None, None, built, prompt_writer("chat", built), None, None)
    with pytest.raises(UserError, match="chat template of the model's tokenizer fails"):
        opening.prompts([first, POEM, LONG])
    assert len(opening.prompts([POEM, POEM])) == 2
