"""Whether results are those of the parameters that stand beside them, by what dvc.lock has."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from verse.errors import UserError
from verse.files import parse_yaml, read_text

LOCK, PARAMS = "dvc.lock", "params.yaml"
STAGES = ("fetch", "prepare", "train", "baseline", "generate", "ask", "judge", "score")
"""Those that results come from, in the order that they run in."""
GONE = object()  # what a parameter is that is there no more
UNFIT = (AttributeError, LookupError, TypeError, ValueError, StopIteration)
"""What comes of a file of another shape."""


def outdated(lock: Any, values: Any, stages: Sequence[str] = STAGES) -> list[str]:
    """What stages ran with that is not so any more: parameters by their dotted names, and files
    that one of them read before another, of which they are whole outputs, wrote them anew.

    lock: what dvc.lock holds. values: what params.yaml holds.
    """
    present, made = dict(dotted(values)), dict[str, str]()
    found = dict[str, None]()
    for one in (lock["stages"][name] for name in stages if name in lock["stages"]):
        known = dotted(one["params"][PARAMS])
        found |= dict.fromkeys(key for key, value in known if present.get(key, GONE) != value)
        read = {dep["path"]: dep["md5"] for dep in one["deps"]}
        found |= dict.fromkeys(path for path in read if made.get(path, read[path]) != read[path])
        made |= {out["path"]: out["md5"] for out in one["outs"]}
    return list(found)


def outdated_here(stages: Sequence[str] = STAGES) -> list[str]:
    """The same of this workspace; nothing where DVC has run nothing.

    Raises UserError for files that are not what DVC writes and reads.
    """
    if not Path(LOCK).is_file():
        return []
    lock, values = (parse_yaml(read_text(path), path) for path in (LOCK, PARAMS))
    try:
        return outdated(lock, values, stages)
    except UNFIT:
        raise UserError(f"{LOCK}: not as DVC writes it: git checkout {LOCK}") from None


def dotted(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{above}{key}"
        yield from dotted(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
