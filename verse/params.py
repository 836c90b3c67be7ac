"""The one schema of params.yaml: names, types and ranges.

A field's annotation is its check: the type, and for a number its interval in mathematical
notation, `"[0, 1)"`. `read` checks the whole file, reports every fault at once, and hands a
stage just the keys it names, so that a stage cannot use a parameter that dvc.yaml does not
list. Imports nothing heavy.
"""

import math
import re
import reprlib
import types
import typing
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import yaml

from verse.errors import ParameterError, UserError
from verse.files import read_text

Count = Annotated[int, "[1, 2147483647]"]
CountOr0 = Annotated[int, "[0, 2147483647]"]


@dataclass(frozen=True)
class Data:
    source: str
    sha256: str | None
    hw5_url: str


@dataclass(frozen=True)
class Prepare:
    template: Literal["auto", "plain", "homework", "chat"]
    test_poems: CountOr0
    validation_poems: Count
    max_train: Count | None


@dataclass(frozen=True)
class Model:
    name: str
    revision: str | None
    cache_dir: str | None
    trust_remote_code: bool
    quantization: Literal["nf4", "none"]
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    device: Literal["auto", "cpu", "cuda"]
    processes: Literal["auto"] | Count
    threads: Annotated[int, "[1, 1024]"]


@dataclass(frozen=True)
class Lora:
    r: Annotated[int, "[1, 1024]"]
    alpha: Annotated[float, "(0, inf)"]
    dropout: Annotated[float, "[0, 1)"]
    target_modules: Literal["all-linear"] | list[str]


@dataclass(frozen=True)
class Train:
    epochs: Count
    learning_rate: Annotated[float, "(0, 1]"]
    warmup: Annotated[float, "[0, 1)"]
    weight_decay: Annotated[float, "[0, inf)"]
    max_grad_norm: Annotated[float, "(0, inf)"]
    batch_size: Count
    memory: Literal["auto", "low", "fast"]
    eval_every: Count
    checkpoint_every: Count
    lora: Lora


@dataclass(frozen=True)
class Decoding:
    do_sample: bool
    temperature: Annotated[float, "[0, inf)"]
    top_p: Annotated[float, "(0, 1]"]
    top_k: CountOr0
    max_new_tokens: Count
    num_beams: Count
    no_repeat_ngram_size: CountOr0


@dataclass(frozen=True)
class Generate:
    batch_size: Count


@dataclass(frozen=True)
class Score:
    bootstrap: Annotated[int, "[100, 1000000]"]


@dataclass(frozen=True)
class Params:
    seed: Annotated[int, "[0, 4294967295]"]
    data: Data
    prepare: Prepare
    model: Model
    train: Train
    decoding: Decoding
    generate: Generate
    score: Score


def read(path: str | Path, *keys: str) -> SimpleNamespace:
    """The values of `keys` ("seed", "decoding", "model.name"), after checking the whole file.

    Raises ParameterError with every fault of the file in one line.
    """
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
    params = parse(values, str(path))
    selected = SimpleNamespace()
    for key in keys:
        source, target = params, selected
        *sections, name = key.split(".")
        for section in sections:
            source = getattr(source, section)
            if not hasattr(target, section):
                setattr(target, section, SimpleNamespace())
            target = getattr(target, section)
        setattr(target, name, getattr(source, name))
    return selected


def parse(values: Any, where: str = "params.yaml") -> Params:
    """Check parsed YAML against the schema. Raises ParameterError naming every fault."""
    faults: list[str] = []
    parsed = _section(Params, values, "", faults)
    faults += _further_faults(parsed)
    if faults:
        raise ParameterError(f"{where}: " + "; ".join(faults))
    return _build(Params, parsed)


def _further_faults(parsed: dict[str, Any]) -> list[str]:
    """Faults that neither a type nor an interval tells, among the values that are in theirs."""
    faults = []
    data, decoding = parsed.get("data", {}), parsed.get("decoding", {})
    if decoding.get("do_sample") and decoding.get("temperature") == 0:
        faults.append(
            "decoding.temperature must be above 0 with decoding.do_sample true "
            "(for the likeliest answer set do_sample to false)"
        )
    if data.get("sha256") is not None and not re.fullmatch("[0-9a-fA-F]{64}", data["sha256"]):
        faults.append("data.sha256 must be 64 hexadecimal digits or null")
    return faults


def _build(schema: type, parsed: dict[str, Any]) -> Any:
    """The dataclass of values without a fault."""
    hints = typing.get_type_hints(schema)
    return schema(
        **{
            name: _build(hints[name], value) if is_dataclass(hints[name]) else value
            for name, value in parsed.items()
        }
    )


def _section(schema: type, values: Any, prefix: str, faults: list[str]) -> dict[str, Any]:
    """The values of a section that fit the schema; what does not fit goes to `faults`."""
    if not isinstance(values, dict):
        faults.append(f"{prefix.rstrip('.') or 'the file'} must be a mapping of keys to values")
        return {}
    hints = typing.get_type_hints(schema, include_extras=True)
    for key in values:
        if key not in hints:
            near = get_close_matches(str(key)[:100], hints, n=1)
            hint = f" (did you mean {prefix}{near[0]}?)" if near else ""
            name = key if str(key).isidentifier() and len(str(key)) < 60 else _shown(key)
            faults.append(f"unknown key {prefix}{name}{hint}")
    parsed = {}
    for name, hint in hints.items():
        if name not in values:
            faults.append(f"missing key {prefix}{name}")
        elif is_dataclass(hint):
            parsed[name] = _section(hint, values[name], f"{prefix}{name}.", faults)
        elif (value := _value(hint, values[name])) is _WRONG:
            wanted, found = _describe(hint), _shown(values[name])
            faults.append(f"{prefix}{name} must be {wanted}, not {found}")
        else:
            parsed[name] = value
    return parsed


def _shown(value: Any) -> str:
    """A value as Python writes it, shortened: YAML's aliases can make a line of text endless."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlevel = 1
    try:
        return short.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"


_WRONG = object()


def _value(hint: Any, value: Any) -> Any:
    """`value` as the annotation wants it, `_WRONG` where it does not fit."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        kind, interval = typing.get_args(hint)
        number = _value(kind, value)
        return number if number is not _WRONG and _within(number, interval) else _WRONG
    if origin is Literal:
        fits = any(value == option and type(value) is type(option) for option in hint.__args__)
        return value if fits else _WRONG
    if origin in (typing.Union, types.UnionType):
        results = (_value(option, value) for option in typing.get_args(hint))
        return next((result for result in results if result is not _WRONG), _WRONG)
    if origin is list:
        items = [_value(hint.__args__[0], v) for v in value] if isinstance(value, list) else []
        return items if items and _WRONG not in items else _WRONG
    if hint is types.NoneType:
        return None if value is None else _WRONG
    if hint is bool or isinstance(value, bool):
        return value if hint is bool and isinstance(value, bool) else _WRONG
    if hint is float:
        return _float(value)
    if hint is int:
        return value if isinstance(value, int) else _WRONG
    return value if isinstance(value, str) and value.strip() else _WRONG


def _float(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; take it for the number it is."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return _WRONG
    return number if math.isfinite(number) else _WRONG


def _within(number: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    return above and below


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        kind, interval = typing.get_args(hint)
        return f"{_describe(kind)} in {interval}"
    if origin is Literal:
        return " or ".join(map(str, hint.__args__))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if origin is list:
        return "a list of names"
    names = {types.NoneType: "null", bool: "true or false", float: "a number"}
    return names.get(hint) or {int: "a whole number", str: "text"}[hint]
