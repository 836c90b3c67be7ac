"""Read what is not ours, or what anyone may have changed, through a schema of pydantic's.

What does not fit is one line: the file, the place in it, what is wrong and what to do.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from verse.errors import UserError
from verse.files import REPRO, iter_jsonl, parse_value, read_text

T = TypeVar("T")
SHOWN = 60  # characters of a place's name


class Record(BaseModel):
    """An object whose values keep their type; no number is NaN, and other keys are passed over."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


SCORES = TypeAdapter(dict[str, dict[str, float]], config=Record.model_config)
"""Of metrics/score.json: scores by contestant and name."""


def fit(schema: TypeAdapter[T], value: Any, where: str | Path, remedy: str = REPRO) -> T:
    """The value as the schema has it.

    Raises UserError that names the first place in it that does not fit.
    """
    try:
        return schema.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part)[:SHOWN] for part in first["loc"])
        said = first["msg"].replace("Input should", "it should").replace("Field req", "it is req")
        raise UserError(f"{where}{', ' * bool(place)}{place}: {said}: {remedy}") from None


def read_json(path: str | Path, schema: TypeAdapter[T], remedy: str = REPRO) -> T:
    """What a JSON file holds. Raises UserError like `read_text`, `parse_value` and `fit`."""
    return fit(schema, parse_value(read_text(path), path, remedy), path, remedy)


def iter_records(path: str | Path, schema: TypeAdapter[T]) -> Iterator[T]:
    """The rows of a JSON Lines file, one at a time.

    Raises UserError like `iter_jsonl` and `fit`.
    """
    for number, row in enumerate(iter_jsonl(path), 1):
        yield fit(schema, row, f"{path}, row {number}")
