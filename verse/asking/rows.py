"""What the stages before have written, checked."""

from pathlib import Path
from typing import Any

from verse.errors import UserError
from verse.files import read_jsonl


def read(path: str | Path, *keys: str, like: list[dict[str, Any]] | None = None) -> list[Any]:
    """The rows of a JSON Lines file, each with a text under every key.

    like: rows whose `input` each row's must be. Raises UserError naming the file and the row.
    """
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
            wanted = " and ".join(keys)
            raise UserError(f"{path}, row {number}: no text under {wanted}: run dvc repro again")
    if like is not None and [row["input"] for row in rows] != [row["input"] for row in like]:
        raise UserError(f"{path}: answers other couplets than those asked for: run dvc repro again")
    return rows
