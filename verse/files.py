"""Files written whole or not at all, UTF-8 everywhere."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from verse.errors import UserError

# Temporary path -> its place, of what waits for the end of `together`; None outside of it.
WAITING: ContextVar[dict[Path, Path] | None] = ContextVar("waiting", default=None)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The block may make a file or a folder there. When it fails, or the process is killed,
    what stood at `path` before still stands, save for the moment between two renames in which
    one folder takes another's place. The temporary names are fixed (`.<name>.partial`,
    `.<name>.old.partial`), so the next attempt removes what a killed one left. An error of the
    disk that names no file gets the name of `path`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = WAITING.get()
    try:
        remove(partial)
        yield partial
        sync(partial)
        if waiting is None:
            take_place(partial, path)
        else:
            waiting[partial] = path
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        if not waiting or partial not in waiting:
            remove(partial)


@contextmanager
def together() -> Iterator[None]:
    """Let all that the block writes take its place when the block ends; if it fails, nothing."""
    waiting: dict[Path, Path] = {}
    before = WAITING.set(waiting)
    try:
        yield
        for partial, path in waiting.items():
            take_place(partial, path)
    finally:
        WAITING.reset(before)
        for partial in waiting:
            remove(partial)


def take_place(new: Path, path: Path) -> None:
    """Rename `new` to `path`. A file gives way by itself; else what stands there is set aside."""
    old = path.with_name(f".{path.name}.old.partial")
    remove(old)
    folder = new.is_dir() or (path.is_dir() and not path.is_symlink())
    if folder and os.path.lexists(path):
        os.replace(path, old)
    os.replace(new, path)
    remove(old)


def cache_dir() -> Path:
    """Where downloads and checkpoints lie: $XDG_CACHE_HOME/verse, or ~/.cache/verse.

    A relative XDG_CACHE_HOME does not count, as the XDG specification says. The folder need
    not exist yet. Raises UserError if the user has no home folder.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "verse"
    except RuntimeError:
        raise UserError("there is no home folder: set XDG_CACHE_HOME to a cache folder") from None


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; nothing happens if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file, or the files of a folder, to the disk, so that a rename never outruns them."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def digest(path: str | Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[Any, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_text(path: str | Path) -> str:
    """The text of a file. Raises UserError if it is missing, unreadable or not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a file") from None
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise UserError(
                f"{path}: cut off within its last character: download or copy the file again"
            ) from None
        raise UserError(f"{path}: not UTF-8 (byte {error.start}): save the file as UTF-8") from None


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file. Raises UserError naming the file and line that is broken."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
            except (RecursionError, ValueError):  # brackets or digits by the thousand
                raise UserError(f"{path}, line {number}: not JSON that can be read") from None
    return rows
