"""What servers have answered, kept in the user's cache: asking costs time and money.

DVC removes a stage's outputs before it runs, and an experiment may live in a folder of its own; an
answer is kept under a hash of everything that decides it, so that nothing is asked twice,
whatever was killed and wherever it ran. Nothing here is ever removed.
"""

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from verse.errors import UserError
from verse.files import LARGEST

WAIT = 60.0  # seconds that one run waits for another to write
TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
ASIDE = "UPDATE answers SET key = key || ' marred ' || hex(randomblob(8)) WHERE key = ?"
ANYTHING = TypeAdapter(Any)


def key_of(*parts: Any) -> str:
    """A hash of what decides an answer: anything that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sealed(key: str, text: str) -> str:
    """JSON, which is one line, and on a second line its checksum."""
    return f"{text}\n{key_of(key, text)}"


def unsealed(key: str, stored: str) -> Any:
    """The value of what `sealed` made; earlier versions wrote no checksum. Raises ValueError."""
    text, _, seal = stored.partition("\n")
    if seal and seal != key_of(key, text):
        raise ValueError("another checksum")
    return json.loads(text)


class Store:
    """Answers by their keys in one SQLite file, each written for good before `put` returns.

    Several processes may use the file at once. Raises UserError if it is no such file.
    """

    def __init__(self, file: Path):
        self.file = file
        self.marred = 0
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A place to write at once, so that what cannot be kept is never asked for.
            with closing(self.connect()) as connection, connection:
                connection.execute(TABLE)
        except sqlite3.Error as error:
            raise self.fault(error) from None

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.file, timeout=WAIT)

    def get(self, key: str, schema: TypeAdapter[Any] = ANYTHING) -> Any:
        """The value under a key; None if there is none.

        One that does not fit the schema, or its own checksum, counts as none. It is set aside
        under another key, and counted in `marred`.
        """
        try:
            with closing(self.connect()) as connection, connection:
                select = "SELECT substr(value, 1, ?) FROM answers WHERE key = ?"
                row = connection.execute(select, (LARGEST, key)).fetchone()
                try:
                    value = unsealed(key, row[0]) if row else None
                    if row:
                        schema.validate_python(value)
                    return value
                except (ValueError, TypeError, RecursionError):
                    connection.execute(ASIDE, (key,))
        except sqlite3.Error as error:
            raise self.fault(error) from None
        self.marred += 1
        return None

    def put(self, key: str, value: Any) -> None:
        """Keep a value. The first one under a key stays: two runs may ask the same at once."""
        try:
            with closing(self.connect()) as connection, connection:
                row = (key, sealed(key, json.dumps(value)))
                connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", row)
        except sqlite3.Error as error:
            raise self.fault(error) from None

    def fault(self, error: sqlite3.Error) -> UserError:
        if "disk is full" in str(error):
            return UserError(f"the disk is full while writing {self.file}: free some space")
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR"):
            return UserError(  # SQLite does not say more
                f"{self.file}: {error}: see whether the disk is full or broken, or a limit of file "
                "sizes too low (ulimit -f)"
            )
        return UserError(f"{self.file}: {error}: fix it or move it out of the way")
