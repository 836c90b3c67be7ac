"""The one schema of params.yaml: names, types and ranges.

A field's annotation is its check. `read` checks the whole file and reports every fault at once.
Imports nothing heavy.
"""

import reprlib
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from verse.errors import ParameterError, UserError
from verse.files import read_text


def _number(value: object) -> object:
    """YAML 1.1 reads `1e-3` as text; take it for the number it is."""
    if isinstance(value, str):
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
    test_poems: CountOr0
    validation_poems: Count
    max_train: Annotated[Count | None, Field(description="a whole number above 0, or null")]


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
    max_new_tokens: Count
    num_beams: Annotated[int, Field(ge=1, le=128)]
    no_repeat_ngram_size: CountOr0

    @field_validator("temperature")
    @classmethod
    def _of_some_use(cls, temperature: float, others: ValidationInfo) -> float:
        """Logits divided by less than 0.01 leave the numbers that a float can hold."""
        if temperature < 0.01 and (temperature > 0 or others.data.get("do_sample")):
            raise ValueError("0.01 or more, or 0 where decoding.do_sample is false")
        return temperature


class Score(Section):
    bootstrap: Annotated[int, Field(ge=100, le=1_000_000)]


class Machine(Section):
    device: Literal["auto", "cpu", "cuda"]
    processes: Literal["auto"] | Count
    threads: Annotated[int, Field(ge=1, le=1024)]
    memory: Annotated[
        Literal["auto"] | Annotated[Real, Field(gt=0, le=100_000)],
        Field(description="auto or a number of GiB, above 0 and at most 100000"),
    ]
    cache_dir: TextOrNull
    checkpoint_every: Count
    batch_size: Count


class Params(Section):
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    data: Data
    prepare: Prepare
    model: Model
    train: Train
    decoding: Decoding
    score: Score
    machine: Machine


MOVED = {
    "prepare.template": "model.template now",
    "model.cache_dir": "machine.cache_dir now",
    "model.device": "machine.device now",
    "model.processes": "machine.processes now",
    "model.threads": "machine.threads now",
    "train.memory": "machine.memory now (auto or a number of GiB)",
    "train.checkpoint_every": "machine.checkpoint_every now",
    "generate.batch_size": "machine.batch_size now",
}
"""What the keys of older files are called now."""

WORDS = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a mapping of keys to values",
}
"""Plainer words than pydantic's, by its name of the error."""

UNKNOWN = ("extra_forbidden", "invalid_key")


def read(path: str | Path = "params.yaml") -> Params:
    """The parameters in a file. Raises ParameterError with every fault of the file in one line."""
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ParameterError(f"{path}{line}: not YAML ({problem})") from None
    except UserError as error:
        raise ParameterError(str(error)) from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, ValueError):
        # What PyYAML lets through for a date such as 2024-99-99, `!!int x` or 10,000 brackets.
        raise ParameterError(f"{path}: holds a value that YAML cannot make sense of") from None
    return parse(values, str(path))


def parse(values: Any, where: str = "params.yaml") -> Params:
    """Check parsed YAML against the schema. Raises ParameterError naming every fault."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParameterError(f"{where}: " + "; ".join(_faults(error))) from None


def _faults(error: ValidationError) -> Iterator[str]:
    """What is wrong, one text for each key; for keys that moved, only where they went."""
    faults = [(_place(fault["loc"]), fault) for fault in error.errors(include_url=False)]
    unknown = {key for (_, key), fault in faults if fault["type"] in UNKNOWN}
    moved = {old: new for old, new in MOVED.items() if any(_within(old, key) for key in unknown)}
    for (section, key), group in groupby(faults, lambda fault: fault[0]):
        options = [fault for _, fault in group]
        if key in unknown:
            moves = [f"{old} is {new}" for old, new in moved.items() if _within(old, key)]
            yield from moves or [f"unknown key {key}{_hint(section, options[0]['loc'])}"]
        elif options[0]["type"] == "missing":
            if not any(_within(new.split()[0], key) for new in moved.values()):
                yield f"missing key {key}"
        else:
            field = section.model_fields.get(key.split(".")[-1])
            words = " or ".join(WORDS.get(fault["type"], fault["msg"]) for fault in options)
            said = words.replace("Input should be ", "").removeprefix("Value error, ")
            wanted = (field and field.description) or said
            yield f"{key or 'the file'} must be {wanted}, not {_shown(options[0]['input'])}"


def _place(loc: tuple[int | str, ...]) -> tuple[type[Section], str]:
    """The section an error is in and its dotted key, without what pydantic adds below a key."""
    section: type[Section] = Params
    names = []
    for name in map(str, loc):
        names.append(name if name.isidentifier() and len(name) < 60 else _shown(name))
        field = section.model_fields.get(name)
        kind = field.annotation if field else None
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            break
        section = kind
    return section, ".".join(names)


def _within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def _hint(section: type[Section], loc: tuple[int | str, ...]) -> str:
    """The key of a section that an unknown one may stand for."""
    *above, name = map(str, loc)
    near = get_close_matches(name[:100], section.model_fields, n=1)
    return f" (did you mean {'.'.join(above + near)}?)" if near else ""


def _shown(value: Any) -> str:
    """A value as Python writes it, shortened: YAML's aliases can make a line of text endless."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlevel = 1
    try:
        return short.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
