"""The one schema of params.yaml: names, types and ranges.

A field's annotation is its check. `read` checks the whole file and reports every fault at once.
Imports nothing heavy.
"""

import re
import reprlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from difflib import get_close_matches
from ipaddress import ip_address
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from verse.errors import ParameterError, UserError
from verse.files import parse_yaml, read_text


def _number(value: object) -> object:
    """A number in quotes is taken for the number it is."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
        with suppress(ValueError):
            return float(value)
    return value


# Where a field has a description, it says what fits in place of pydantic's own words.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOr0 = Annotated[int, Field(ge=0, le=2**31 - 1)]
Real = Annotated[float, BeforeValidator(_number)]
Factor = Annotated[Real, Field(ge=1e-6, le=1e6)]
Share = Annotated[Real, Field(ge=0, lt=1)]
Text = Annotated[str, Field(pattern=r"\S", description="text")]
TextOrNull = Annotated[str | None, Field(pattern=r"\S", description="text or null")]


Rule = Literal["form", "rhyme", "tone"]


class Section(BaseModel):
    """Keys and values of params.yaml that belong together."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    source: Text
    sha256: Annotated[
        str | None,
        Field(pattern="^[0-9a-fA-F]{64}$", description="64 hexadecimal digits or null"),
    ]
    hw5_url: Text


class Prepare(Section):
    test_poems: Count
    validation_poems: Count
    max_train: Annotated[Count | None, Field(description="a whole number above 0, or null")]
    max_dropped: Annotated[Real, Field(ge=0, le=1)]


class Model(Section):
    name: Text
    revision: TextOrNull
    trust_remote_code: bool
    quantization: Literal["nf4", "none"]
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    template: Literal["auto", "plain", "homework", "chat"]


class Lora(Section):
    r: Annotated[int, Field(ge=1, le=1024)]
    alpha: Factor
    dropout: Share
    target_modules: Annotated[
        Literal["all-linear"] | list[Text],
        Field(min_length=1, description="all-linear or a list of names"),
    ]


class Train(Section):
    epochs: Annotated[int, Field(ge=1, le=1000)]
    learning_rate: Annotated[Real, Field(ge=1e-9, le=1)]
    warmup: Share
    weight_decay: Annotated[Real, Field(ge=0, le=10)]
    max_grad_norm: Factor
    batch_size: Count
    eval_every: Count
    lora: Lora


class Decoding(Section):
    do_sample: bool
    temperature: Annotated[Real, Field(ge=0, le=100)]
    top_p: Annotated[Real, Field(ge=1e-3, le=1)]
    top_k: CountOr0
    min_p: Annotated[Real, Field(ge=0, le=1)]
    repetition_penalty: Annotated[Real, Field(ge=0.01, le=100)]
    max_new_tokens: Count
    num_beams: Annotated[int, Field(ge=1, le=128)]
    no_repeat_ngram_size: CountOr0
    candidates: Annotated[int, Field(ge=1, le=1000)]
    constrain: Annotated[
        list[Rule],
        Field(description="a list of form and, beside it, rhyme and tone, or []"),
    ]

    @property
    def num_candidates(self) -> int:
        """How many answers to a prompt are written: one where no token is drawn freely."""
        return self.candidates if self.do_sample and self.num_beams == 1 else 1

    @field_validator("constrain")
    @classmethod
    def _form_first(cls, rules: list[str]) -> list[str]:
        """Where a line ends, and so where a rhyme stands, is for the form to say."""
        if (rules and "form" not in rules) or len(set(rules)) < len(rules):
            raise ValueError("form, and each once")
        return rules

    @field_validator("temperature")
    @classmethod
    def _of_some_use(cls, temperature: float, others: ValidationInfo) -> float:
        """Logits divided by less than 0.01 leave the numbers that a float can hold."""
        if temperature < 0.01 and (temperature > 0 or others.data.get("do_sample")):
            raise ValueError("0.01 or more, or 0 where decoding.do_sample is false")
        return temperature


def is_local(base_url: str) -> bool:
    """Whether an address is of this machine."""
    host = urlsplit(base_url).hostname or ""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _address(base_url: str) -> str:
    """A base URL that may be written down and to which a key may be sent."""
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
        plain = parts.netloc and "@" not in parts.netloc and not parts.query + parts.fragment
    except ValueError:
        host = None
    if not host or not plain or not base_url.isprintable() or " " in base_url:
        raise ValueError("no address of a server")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_local(base_url)):
        raise ValueError("not encrypted")
    return base_url


def _plain(values: object) -> object:
    """Texts for the dates that YAML reads, such as an api-version; a number's would be another."""
    if isinstance(values, dict):
        return {k: str(v) if type(v) is date else v for k, v in values.items()}
    return values


SECRET = re.compile(r"api.?key|auth|secret|passw|cookie|(^|[-_])(key|token)$|subscription", re.I)
"""Names of what nobody writes into a file."""


def _public(values: dict[str, Any]) -> dict[str, Any]:
    """Values that may be written down: what is called like a key comes from the environment."""
    for name, value in values.items():
        if SECRET.search(name) and not re.fullmatch(r"\$[A-Z][A-Z0-9_]*", str(value)):
            raise ValueError("a secret by its name")
    return values


def _sendable(options: dict[str, Any]) -> dict[str, Any]:
    if {"model", "messages", "stream"} & options.keys():
        raise ValueError("not ours to send")
    return _public({k: v for k, v in options.items() if k != "prompt_cache_key"}) and options


Values = Annotated[
    dict[str, str],
    BeforeValidator(_plain),
    AfterValidator(_public),
    Field(
        description="a mapping of names to texts (numbers in quotes), keys and tokens as $NAME, "
        "the environment variable that holds them"
    ),
]


class Server(Section):
    """A server with the OpenAI chat API; where a value is null, the server's own default counts."""

    base_url: Annotated[
        Text,
        AfterValidator(_address),
        Field(
            description="an https address, or an http one of this machine, without a user name, "
            "password or query"
        ),
    ]
    model: Text
    key_env: Annotated[
        str | None,
        Field(
            pattern="^[A-Z][A-Z0-9_]*$",
            description="the name of an environment variable in capitals, or null",
        ),
    ] = None
    temperature: Annotated[Real | None, Field(ge=0, le=2, description="0 to 2, or null")] = None
    top_p: Annotated[
        Real | None, Field(gt=0, le=1, description="above 0 and at most 1, or null")
    ] = None
    max_tokens: Annotated[Count | None, Field(description="a whole number above 0, or null")] = None
    system: TextOrNull = None
    options: Annotated[
        dict[str, JsonValue],
        AfterValidator(_sendable),
        Field(
            description="a mapping of what goes into the request as it stands, without model, "
            "messages, stream and keys"
        ),
    ] = {}
    headers: Values = {}
    query: Values = {}


ContestantName = Annotated[
    str,
    Field(
        pattern=r"^\w[\w.-]{0,39}$",
        description="1 to 40 letters, digits, dots, dashes and underscores",
    ),
]


class Contestant(Server):
    name: ContestantName


class Judge(Server):
    temperature: Annotated[Real | None, Field(ge=0, le=2, description="0 to 2, or null")] = 1.0
    poems: Count = 50


class Score(Section):
    bootstrap: Annotated[int, Field(ge=100, le=1_000_000)]


class Machine(Section):
    device: Literal["auto", "cpu", "cuda", "mps"]
    processes: Literal["auto"] | Count
    launch: TextOrNull
    threads: Annotated[int, Field(ge=1, le=1024)]
    memory: Annotated[
        Literal["auto"] | Annotated[Real, Field(gt=0, le=100_000)],
        Field(description="auto or a number of GiB, above 0 and at most 100000"),
    ]
    cache_dir: TextOrNull
    checkpoint_every: Count
    batch_size: Count
    max_concurrent_requests: Annotated[int, Field(ge=1, le=256)]
    timeout: Annotated[Real, Field(gt=0, le=3600)]
    report_to: Annotated[
        list[Literal["tensorboard", "wandb", "studio"]],
        Field(description="a list of tensorboard, wandb and studio, or []"),
    ]


RESERVED_NAMES = (
    *("base", "tuned", "reference", "scrambled", "random", "constant", "another"),
    "contestants.json",
)
"""Names that a contestant of the user's cannot have: others have them, or a file beside theirs."""


class Params(Section):
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    data: Data
    prepare: Prepare
    model: Model
    train: Train
    decoding: Decoding
    contestants: list[Contestant]
    judge: Judge | None
    score: Score
    machine: Machine

    @field_validator("contestants")
    @classmethod
    def _each_a_name_of_its_own(cls, contestants: list[Contestant]) -> list[Contestant]:
        names = [*RESERVED_NAMES, *(one.name.lower() for one in contestants)]
        if len(set(names)) < len(names):
            raise ValueError(f"of different names, none of {', '.join(RESERVED_NAMES)}")
        return contestants


WORDS = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a mapping of keys to values",
}
"""Plainer words than pydantic's, by its name of the error."""

UNKNOWN = ("extra_forbidden", "invalid_key")

REDACTED = ("contestants", "judge")
"""Sections of which no fault shows a value: it may be a key that stands there by mistake."""


def read(path: str | Path = "params.yaml") -> Params:
    """The parameters in a file. Raises ParameterError with every fault of the file in one line."""
    try:
        values = parse_yaml(read_text(path), path)
    except UserError as error:
        raise ParameterError(str(error)) from None
    return parse(values, str(path))


def parse(values: Any, where: str = "params.yaml") -> Params:
    """Check parsed YAML against the schema. Raises ParameterError naming every fault."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParameterError(f"{where}: " + "; ".join(_faults(error))) from None


def _faults(error: ValidationError) -> Iterator[str]:
    """What is wrong, one text for each key."""
    faults = [(_place(fault["loc"]), fault) for fault in error.errors(include_url=False)]
    for (section, key), group in groupby(faults, lambda fault: fault[0]):
        options = [fault for _, fault in group]
        if options[0]["type"] in UNKNOWN:
            yield f"unknown key {key}{_hint(section, options[0]['loc'])}"
        elif options[0]["type"] == "missing":
            yield f"missing key {key}"
        else:
            field = section.model_fields.get(key.split(".")[-1])
            words = " or ".join(WORDS.get(fault["type"], fault["msg"]) for fault in options)
            said = words.replace("Input should be ", "").removeprefix("Value error, ")
            wanted = (field and field.description) or said
            shown = "" if key.startswith(REDACTED) else f", not {_shown(options[0]['input'])}"
            yield f"{key or 'the file'} must be {wanted}{shown}"


def _place(loc: tuple[int | str, ...]) -> tuple[type[Section], str]:
    """The section an error is in and its dotted key, without what pydantic adds below a key."""
    section: type[Section] = Params
    names: list[str] = []
    for part in loc:
        if isinstance(part, int) and names:  # a place in a list of sections
            names[-1] += f"[{part}]"
            continue
        name = str(part)
        names.append(name if name.isidentifier() and len(name) < 60 else _shown(name))
        field = section.model_fields.get(name)
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if not inner:
            break
        section = inner[0]
    return section, ".".join(names)


def _hint(section: type[Section], loc: tuple[int | str, ...]) -> str:
    """The key of a section that an unknown one may stand for."""
    near = get_close_matches(str(loc[-1])[:100], section.model_fields, n=1)
    place = _place((*loc[:-1], *near))[1] if near else ""
    return f" (did you mean {place}?)" if near else ""


def _shown(value: Any) -> str:
    """A value as Python writes it, shortened: YAML's aliases can make a line of text endless."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlevel = 1
    try:
        return short.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
