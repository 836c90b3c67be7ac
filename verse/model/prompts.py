"""Prompts: what a model is given before it writes the rest of a poem.

The completion is the bare rest, whatever the template. A prompt is to be encoded with
`tokenizer(prompt)`, special tokens and all: it then begins with exactly one start token if
the model wants one.
"""

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from verse.errors import UserError
from verse.model.encoding import adds_bos

# The system text and template of the homework's notebook (generate_training_data, evaluate).
SYSTEM = (
    "You are a helpful assistant and good at writing Tang poem. "
    "你是一個樂於助人的助手且擅長寫唐詩。"
)
HOMEWORK = "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{instruction}\n{input}\n[/INST]"

# Some chat templates write today's date, by this function; here the day is always the same.
NO_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    "|replace('%Y', '2024')|replace('%y', '24')|replace('%m', '07')|replace('%d', '26')"
    "|replace('%B', 'July')|replace('%b', 'Jul')|replace('%A', 'Friday')|replace('%a', 'Fri')"
    "|replace('%H', '00')|replace('%M', '00')|replace('%S', '00') }}{%- endmacro -%}"
)


def plain(poem: dict[str, str]) -> str:
    """The instruction and, on a line of its own, the first couplet."""
    return f"{poem['instruction']}\n{poem['input']}"


def homework(poem: dict[str, str]) -> str:
    """The prompt of the homework's notebook.

    The notebook sets a space between prompt and completion in training but not in generation;
    here there is none in either.
    """
    return HOMEWORK.format(system=SYSTEM, instruction=poem["instruction"], input=poem["input"])


def prompt_writer(
    template: str, tokenizer: PreTrainedTokenizerBase
) -> Callable[[dict[str, str]], str]:
    """The function that turns a poem into its prompt.

    template: "plain", "homework", "chat" (the tokenizer's own chat template), or "auto", which
        is chat if the tokenizer has a chat template, else plain.

    Raises UserError for "chat" without a chat template, or with a broken one.
    """
    if template == "auto":
        template = "chat" if tokenizer.chat_template else "plain"
    if template == "chat":
        return chat_writer(tokenizer)
    return {"plain": plain, "homework": homework}[template]


def chat_writer(tokenizer: PreTrainedTokenizerBase) -> Callable[[dict[str, str]], str]:
    """Prompts by the tokenizer's chat template, up to where the assistant's turn begins.

    The system text is a system message; where the template refuses or drops those, it opens
    the user's.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "model.template is chat, but the model's tokenizer has no chat template: "
            "set it to plain, homework or auto"
        )
    drop_bos = adds_bos(tokenizer)

    def render(user: str, system_message: bool) -> str:
        if system_message:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
        else:
            messages = [{"role": "user", "content": f"{SYSTEM}\n\n{user}"}]
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=NO_DATE + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # some make room for thoughts otherwise
        )
        return text.removeprefix(tokenizer.bos_token) if drop_bos else text

    # A chat template is a program of the model's author, so it may raise anything.
    try:
        system_message = SYSTEM in render("", system_message=True)
    except Exception:
        system_message = False
    try:
        render("", system_message)
    except Exception as error:
        raise UserError(
            f"the chat template of the model's tokenizer fails ({error}): "
            "set model.template to plain"
        ) from error
    return lambda poem: render(plain(poem), system_message)
