"""Files written whole or not at all, UTF-8 everywhere."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from verse.errors import UserError, system_error

LARGEST = 2**28  # bytes of a text that is read into memory: a million poems
CONFLICT = re.compile("^(<<<<<<< |=======$|>>>>>>> )", re.MULTILINE)
REPRO = "run dvc repro again"
LFS_POINTER = b"version https://git-lfs.github.com/"
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What goes wrong with a file that is open for writing, whose error has no file's name."""
UNPACK, EXPORT = "unpack it first", "save it as JSON Lines, in UTF-8"
NO_TEXT = {
    b"\x1f\x8b": ("compressed (gzip)", UNPACK),
    b"PK\x03\x04": ("compressed (zip)", UNPACK),
    b"BZh": ("compressed (bzip2)", UNPACK),
    b"\xfd7zXZ": ("compressed (xz)", UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed (zstd)", UNPACK),
    b"\x04\x22\x4d\x18": ("compressed (lz4)", UNPACK),
    b"7z\xbc\xaf": ("compressed (7z)", UNPACK),
    b"Rar!": ("compressed (rar)", UNPACK),
    b"PAR1": ("a Parquet file", EXPORT),
    b"ARROW1": ("an Arrow file", EXPORT),
    b"Obj\x01": ("an Avro file", EXPORT),
    b"SQLite format 3": ("an SQLite database", EXPORT),
    b"\x89HDF": ("an HDF5 file", EXPORT),
    b"\x93NUMPY": ("a NumPy array", EXPORT),
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", EXPORT),
    b"%PDF": ("a PDF", EXPORT),
    LFS_POINTER: ("a pointer of git-lfs, not the file", "git lfs pull"),
}
"""What files begin with that are no text of ours, what they are, and what to do about each."""
OFFICE = {b"xl/": "an Excel file", b"word/": "a Word file", b"mimetype": "an OpenDocument file"}
"""What a zip archive is that has one of these names in it."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The block may make a file, a link or a folder there. When it fails, or the process is killed,
    what stood at `path` before still stands, save for the moment between two renames in which
    one folder takes another's place. The temporary names are fixed (`.<name>.partial`,
    `.<name>.old.partial`), so the next attempt removes what a killed one left. Any error of the
    system within the block becomes an OSError that names `path`, whoever wrote.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with named(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            remove(partial)
            yield partial
            sync(partial)
            take_place(partial, path)
        except BaseException:
            with suppress(OSError):  # the next attempt removes it
                remove(partial)
            raise


def take_place(new: Path, path: Path) -> None:
    """Rename a file to its place; a folder there, or one that comes, makes room first."""
    old = path.with_name(f".{path.name}.old.partial")
    remove(old)
    if not os.path.lexists(path) or not (is_folder(path) or is_folder(new)):
        os.replace(new, path)
        return
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    with suppress(OSError):  # the next attempt removes what stays
        remove(old)


@contextmanager
def named(path: Path, partial: Path) -> Iterator[None]:
    """Turn an error of the system about a temporary file, or none by name, into one about `path`.

    Libraries written in Rust raise errors of their own, with the system's number in words.
    """
    try:
        yield
    except Exception as error:
        number, file = system_error(error), getattr(error, "filename", None)
        writing = not isinstance(error, OSError) or number in WRITING
        ours = str(file).startswith(str(partial)) if file else writing
        if number is None or not ours:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold a lock that other processes respect; `waiting` is printed if it must be waited for.

    A lock whose holder is killed is free. The file stays where it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        if waiting:
            print(waiting, flush=True)
        held = lock.acquire()
    with held:
        yield


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
    if is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_folder(path: Path) -> bool:
    """Whether a folder stands at `path` itself, not at the end of a link."""
    return path.is_dir() and not path.is_symlink()


def sync(path: Path) -> None:
    """Force a file, or the files of a folder, to the disk, so that a rename never outruns them."""
    for file in sorted(path.rglob("*")) if is_folder(path) else [path]:
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def digest(path: str | Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def check_tree(path: Path) -> None:
    """Raise UserError unless a file, or all that a folder holds, can be read to its end.

    DVC hashes the whole folder through a link such as `data/source`, whatever is read of it here.
    """
    entries = [path]
    seen = set()
    for entry in entries:  # which grows
        if entry.is_dir():
            found = entry.stat()
            if (found.st_dev, found.st_ino) in seen:
                raise UserError(f"{entry}: a link in a circle: remove it")
            seen.add((found.st_dev, found.st_ino))
            entries += sorted(entry.iterdir())
        else:
            check_plain(entry)
        if not os.access(entry, os.R_OK):
            raise UserError(f"{entry}: may not be read: change its owner or mode")
        try:
            str(entry).encode()
        except UnicodeEncodeError:
            raise UserError(f"{entry!r}: a file name that is not UTF-8: rename it") from None


def note_origin(origin: Path | dict[str, Any], at: str | Path, key: str) -> None:
    """Leave at `at` what a key of params.yaml names: a link to it, or what is known of a download.

    A reader of `at` (DVC, as an output that is not cached) sees the content of the user's
    own files through the link, hence their changes. Raises UserError for a folder that holds
    `at` and for a path through `at`, since the link would make a circle.
    """
    at = Path(at)
    if isinstance(origin, dict):
        return write_json(at, origin)
    here, spelled = at.parent.resolve(), Path.cwd() / os.path.normpath(origin)
    if here.is_relative_to(origin.resolve()) or spelled.is_relative_to(here / at.name):
        raise UserError(
            f"{key} {str(origin)!r}: in a circle with {at}, which points to it: "
            "give a path apart from it"
        )
    # As the user spelled it: an absolute path stays true when the working copy moves, a
    # relative one when the repository does.
    target = origin if origin.is_absolute() else os.path.relpath(spelled, here)
    with replacing(at) as partial:
        partial.symlink_to(target)


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[Any, Any]]) -> None:
    """JSON Lines, written as the rows come."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def check_plain(path: str | Path) -> int:
    """The bytes of a file. Raises UserError unless there is one that can be read to its end.

    A pipe or a device may never end, or keep a reader waiting.
    """
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        if Path(path).is_symlink():
            raise UserError(f"{path}: a link to nothing: fix or remove it") from None
        raise UserError(f"{path}: no such file{missing_hint(path)}") from None
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path}: is a folder, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: a pipe or a device, not a file: give a file")
    return found.st_size


def missing_hint(path: str | Path) -> str:
    """What to add to the news that a path is missing, where git may be the cause."""
    temporary = ".dvc/tmp/exps" in Path.cwd().as_posix() and not Path(path).is_absolute()
    return (
        " in this experiment's own folder, which holds what git tracks: "
        "git add it or give an absolute path"
        if temporary
        else ""
    )


def read_text(path: str | Path) -> str:
    """The text of a file. Raises UserError if it is missing, no file, compressed or not UTF-8."""
    if check_plain(path) > LARGEST:
        raise UserError(f"{path}: larger than {LARGEST:,} bytes: give a part of it")
    return decoded(Path(path).read_bytes(), path)


def iter_lines(path: str | Path) -> Iterator[str]:
    """The lines of a file, which is never in memory as a whole; only a line feed ends one.

    Raises UserError like `read_text`, for a large line and not for a large file.
    """
    check_plain(path)
    start = 0
    with Path(path).open("rb") as file:
        while line := file.readline(LARGEST + 1):
            if len(line) > LARGEST:
                raise UserError(f"{path}: a line larger than {LARGEST:,} bytes: {REPRO}")
            yield decoded(line, path, start)
            start += len(line)


def decoded(content: bytes, path: str | Path, start: int = 0) -> str:
    """The text of a file, or of a part of it that starts at that byte.

    Raises UserError if it is compressed or not UTF-8.
    """
    for opening, (kind, remedy) in NO_TEXT.items():
        if start == 0 and content.startswith(opening):
            for name, document in OFFICE.items() if "zip" in kind else ():
                if name in content[:30_000]:
                    kind, remedy = document, EXPORT
            raise UserError(f"{path}: {kind}: {remedy}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise UserError(
                f"{path}: cut off within its last character: download or copy the file again"
            ) from None
        place = start + error.start
        raise UserError(f"{path}: not UTF-8 (byte {place}): save the file as UTF-8") from None
    return text if start else text.removeprefix("\ufeff")


def iter_jsonl(path: str | Path) -> Iterator[Any]:
    """The rows of a JSON Lines file, one at a time.

    Raises UserError naming the file and line that is broken.
    """
    for number, line in enumerate(iter_lines(path), 1):
        if line.strip():
            yield parse_value(line.rstrip(), path, REPRO, number)


def parse_value(text: str, path: str | Path, remedy: str, line: int = 1) -> Any:
    """The JSON value of a text that starts on that line of a file.

    Raises UserError naming the place that is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {line + error.lineno - 1}"
        reason = f"column {error.colno}: {error.msg[0].lower()}{error.msg[1:]}"
        if CONFLICT.search(text):
            reason, remedy = "git's conflict markers", "settle the merge"
        elif error.pos >= len(text.rstrip()) or "unterminated" in reason:
            reason += "; it looks cut off"
        raise UserError(f"{where}: not JSON ({reason}): {remedy}") from None
    except (RecursionError, ValueError) as error:  # brackets or digits by the thousand
        deep = isinstance(error, RecursionError)
        reason = "nested too deeply" if deep else "a number too long to read"
        raise UserError(f"{path}, line {line}: not JSON ({reason}): {remedy}") from None


class Yaml(yaml.SafeLoader):
    """PyYAML's, but for numbers and truth values, which are those of YAML 1.2, as DVC reads them:
    052 is 52, 1e-3 is a number, and no and 1:30 are texts."""


def whole_number(loader: Yaml, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 0 if re.search("0[box]", text) else 10)


TYPES = {
    "bool": ("tTfF", "true|True|TRUE|false|False|FALSE"),
    "int": ("-+0123456789", "[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)"),
    "float": (
        "-+0123456789.",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9_]+|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
}
Yaml.yaml_implicit_resolvers = {
    first: [one for one in known if one[0].rpartition(":")[2] not in TYPES]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for name, (first, pattern) in TYPES.items():
    Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^({pattern})$"), [*first])
Yaml.add_constructor("tag:yaml.org,2002:int", whole_number)


def parse_yaml(text: str, path: str | Path) -> Any:
    """What a file's YAML says, to DVC as well. Raises UserError that names the line."""
    try:
        return yaml.load(text, Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise UserError(f"{path}{line}: not YAML ({problem}): correct it") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        # What PyYAML lets through for a date such as 2024-99-99, `!!int x` or 10,000 brackets.
        raise UserError(
            f"{path}: holds a value that YAML cannot make sense of: correct it"
        ) from None


def read_jsonl(path: str | Path) -> list[Any]:
    """All rows of a JSON Lines file: see `iter_jsonl`."""
    return list(iter_jsonl(path))
