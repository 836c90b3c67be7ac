"""The one schema of params.yaml: names, types and ranges.

A field's annotation is its check. `read` checks the whole file, reports every fault in one line,
and returns it typed. Imports nothing heavy.
"""

import math
import reprlib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from verse.errors import ParameterError, UserError
from verse.files import read_text


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; take it for the number it is."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return math.nan if isinstance(value, int) else value
    return value


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("text")
    return text


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOr0 = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, AfterValidator(_not_blank)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", protected_namespaces=())


class Data(Section):
    source: Text
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None
    hw5_url: Text


class Prepare(Section):
    test_poems: CountOr0
    validation_poems: Count
    max_train: Count | None


class Model(Section):
    name: Text
    revision: Text | None
    trust_remote_code: bool
    quantization: Literal["nf4", "none"]
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    template: Literal["auto", "plain", "homework", "chat"]


class Lora(Section):
    r: Annotated[int, Field(ge=1, le=1024)]
    alpha: Annotated[Number, Field(gt=0)]
    dropout: Annotated[Number, Field(ge=0, lt=1)]
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)]


class Train(Section):
    epochs: Count
    learning_rate: Annotated[Number, Field(gt=0, le=1)]
    warmup: Annotated[Number, Field(ge=0, lt=1)]
    weight_decay: Annotated[Number, Field(ge=0)]
    max_grad_norm: Annotated[Number, Field(gt=0)]
    batch_size: Count
    eval_every: Count
    lora: Lora


class Decoding(Section):
    do_sample: bool
    temperature: Annotated[Number, Field(ge=0)]
    top_p: Annotated[Number, Field(gt=0, le=1)]
    top_k: CountOr0
    max_new_tokens: Count
    num_beams: Count
    no_repeat_ngram_size: CountOr0

    @model_validator(mode="after")
    def _something_to_sample(self) -> Self:
        if self.do_sample and self.temperature == 0:
            raise ValueError(
                "decoding.temperature must be above 0 with decoding.do_sample true "
                "(for the likeliest answer set do_sample to false)"
            )
        return self


class Score(Section):
    bootstrap: Annotated[int, Field(ge=100, le=1_000_000)]


class Machine(Section):
    device: Literal["auto", "cpu", "cuda"]
    processes: Literal["auto"] | Count
    threads: Annotated[int, Field(ge=1, le=1024)]
    memory: Literal["auto"] | Annotated[Number, Field(gt=0)]
    cache_dir: Text | None
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
    "prepare.template": "model.template",
    "model.cache_dir": "machine.cache_dir",
    "model.device": "machine.device",
    "model.processes": "machine.processes",
    "model.threads": "machine.threads",
    "train.memory": "machine.memory, auto or a number of GiB,",
    "train.checkpoint_every": "machine.checkpoint_every",
    "generate": "machine.batch_size",
}
"""Where the keys of earlier versions are."""


def read(path: str | Path = "params.yaml") -> Params:
    """The parameters of a file. Raises ParameterError with every fault of it in one line."""
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
        faults = _faults(error)
    except RecursionError:
        faults = ["holds a value that contains itself"]
    raise ParameterError(f"{where}: " + "; ".join(faults))


def _faults(error: ValidationError) -> list[str]:
    """A few words on each fault; of several on one key (those of a union) the first."""
    found: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_context=False):
        names, schema = _place(fault["loc"])
        key = ".".join(map(_name, names))
        if fault["type"] == "missing":
            text = f"missing key {key}"
        elif fault["type"] in ("extra_forbidden", "invalid_key"):
            old = "generate.batch_size" if key == "generate" else key
            text = f"{old} is {MOVED[key]} now" if key in MOVED else _unknown(key, names, schema)
        elif schema.get("type") == "object" and fault["type"] == "value_error":
            text = fault["msg"].removeprefix("Value error, ")
        elif schema.get("type") == "object":
            text = f"{key or 'the file'} must be a mapping of keys to values"
        else:
            text = f"{key} must be {_wanted(schema)}, not {_shown(fault['input'])}"
        found.setdefault(key, text)
    moved = {new.split(",")[0] for old, new in MOVED.items() if old in found}
    told = [text for key, text in found.items() if not (key in moved and text[:7] == "missing")]
    return sorted(told, key=lambda text: not text.endswith(" now") and text[:7] != "unknown")


SCHEMA = Params.model_json_schema()


def _place(location: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
    """The keys that lead to a fault, and the schema there; of an unknown key, its section's."""
    names: list[Any] = []
    schema = SCHEMA
    for name in location:
        properties = schema.get("properties")
        if properties is None:  # within a list or a union
            break
        names.append(name)
        if name not in properties:
            break
        schema = properties[name]
        if "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return names, schema


def _unknown(key: str, names: list[Any], section: dict[str, Any]) -> str:
    near = get_close_matches(str(names[-1])[:100], section["properties"], n=1)
    place = "".join(f"{name}." for name in names[:-1])
    return f"unknown key {key}" + (f" (did you mean {place}{near[0]}?)" if near else "")


def _name(key: Any) -> str:
    return str(key) if str(key).isidentifier() and len(str(key)) < 60 else _shown(key)


def _shown(value: Any) -> str:
    """A value as Python writes it, shortened: YAML's aliases can make a line of text endless."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlevel = 1
    try:
        return short.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"


def _wanted(schema: dict[str, Any]) -> str:
    """What a value must be, in words."""
    if "anyOf" in schema:
        return " or ".join(map(_wanted, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(schema.get("enum", [schema.get("const")]))
    if "pattern" in schema:
        return "64 hexadecimal digits"
    kind = {
        "array": "a list of names",
        "boolean": "true or false",
        "integer": "a whole number",
        "null": "null",
        "number": "a number",
        "string": "text",
    }[schema["type"]]
    low = f"[{schema['minimum']}" if "minimum" in schema else None
    low = f"({schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else low
    high = f"{schema['maximum']}]" if "maximum" in schema else "inf)"
    high = f"{schema['exclusiveMaximum']})" if "exclusiveMaximum" in schema else high
    return f"{kind} in {low}, {high}" if low else kind
