"""The study on disk: a folder with an SQLite database and the pictures that it names.

An answer counts once and is never lost: (rater, pair, question) is the key of a vote, every change is one transaction,
and a commit returns when the disk has it (`synchronous=FULL`, write-ahead log).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import UserError

DATABASE = "study.sqlite"
PICTURES = "pictures"
# Kept in the database's `user_version`; another number is another layout.
LAYOUT = 1

# `first` and `second` are methods in the order in which the organiser named them; which of the two stood on the left
# is a matter of a rater's task alone (`swapped`: the first method's picture stood on the right).
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE methods (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE pictures (id TEXT PRIMARY KEY, media_type TEXT NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE reference_pictures (subject TEXT NOT NULL, position INTEGER NOT NULL,
    picture TEXT NOT NULL REFERENCES pictures, PRIMARY KEY (subject, position)) STRICT;
CREATE TABLE items (id INTEGER PRIMARY KEY, subject TEXT NOT NULL, prompt TEXT NOT NULL, shown_prompt TEXT NOT NULL,
    name TEXT NOT NULL, seed TEXT NOT NULL, UNIQUE (subject, name, seed)) STRICT;
CREATE TABLE pairs (id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES items,
    first INTEGER NOT NULL REFERENCES methods, second INTEGER NOT NULL REFERENCES methods,
    first_picture TEXT NOT NULL REFERENCES pictures, second_picture TEXT NOT NULL REFERENCES pictures,
    UNIQUE (item, first, second), CHECK (first < second)) STRICT;
CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('rater', 'organiser')), token_hash TEXT NOT NULL UNIQUE,
    seed INTEGER NOT NULL, invited_at TEXT NOT NULL, revoked_at TEXT) STRICT;
CREATE TABLE sessions (secret_hash TEXT PRIMARY KEY, person INTEGER NOT NULL REFERENCES people,
    opened_at TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE tasks (id TEXT PRIMARY KEY, rater INTEGER NOT NULL REFERENCES people, position INTEGER NOT NULL,
    pair INTEGER NOT NULL REFERENCES pairs, swapped INTEGER NOT NULL CHECK (swapped IN (0, 1)),
    UNIQUE (rater, position), UNIQUE (rater, pair)) STRICT, WITHOUT ROWID;
CREATE TABLE votes (rater INTEGER NOT NULL, pair INTEGER NOT NULL, question TEXT NOT NULL,
    result TEXT NOT NULL CHECK (result IN ('first', 'tie', 'second')), revision INTEGER NOT NULL,
    answered_at TEXT NOT NULL, PRIMARY KEY (rater, pair, question),
    FOREIGN KEY (rater, pair) REFERENCES tasks (rater, pair)) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Study:
    """A study's folder.

    Args:
        path: the folder that `mosgoat eval study import` has made.
    """

    path: Path

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the database; it cannot write."""
        connection = self._connect()
        try:
            connection.execute("PRAGMA query_only=ON")
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on the disk when the block ends, undone if it raises."""
        connection = self._connect()
        try:
            # IMMEDIATE: what the block reads cannot change under it, so that two windows never both come first.
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        finally:
            connection.close()  # undoes what was not committed

    def picture_file(self, identifier: str) -> Path:
        """Where the picture with this id lies; only for ids that come out of the database."""
        return self.path / PICTURES / identifier

    def _connect(self) -> sqlite3.Connection:
        # A connection lives as long as one request: opening takes 0.1 ms, and no thread shares one.
        connection = sqlite3.connect(
            f"{(self.path / DATABASE).absolute().as_uri()}?mode=rw", uri=True, timeout=20.0, isolation_level=None
        )
        connection.row_factory = sqlite3.Row
        connection.executescript("PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF;")
        return connection


def create_database(folder: Path) -> None:
    """Make the empty database of a new study in `folder`."""
    connection = sqlite3.connect(folder / DATABASE, isolation_level=None)
    try:
        connection.executescript(f"PRAGMA journal_mode=WAL;\n{_SCHEMA}\nPRAGMA user_version={LAYOUT};")
    finally:
        connection.close()
    (folder / DATABASE).chmod(0o600)


def open_study(path: Path) -> Study:
    """The study in a folder.

    Raises:
        UserError: there is none, it is damaged, or another version of mosgoat has made it.
    """
    if not (path / DATABASE).is_file():
        raise UserError(
            f"there is no study at {path}; make one: mosgoat eval study import --study {path} --set NAME=FOLDER "
            "--set NAME2=FOLDER2"
        )
    study = Study(path)
    try:
        with study.reading() as db:
            (layout,) = db.execute("PRAGMA user_version").fetchone()
            whole = db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path / DATABASE} cannot be opened ({error}); is the disk full or read-only, or was it copied without "
            "its -wal file?"
        ) from None
    if layout != LAYOUT or not whole:
        raise UserError(
            f"{path / DATABASE} is damaged or of another version (layout {layout}, this one reads {LAYOUT}); restore "
            "it from a copy, or use the version of mosgoat that made it"
        )
    return study


def now() -> str:
    """The time as the database keeps it: UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def put_fact(db: sqlite3.Connection, name: str, value: Any) -> None:
    """Keep a value that JSON can hold under a name."""
    db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value, ensure_ascii=False)))


def fact(db: sqlite3.Connection, name: str) -> Any:
    """What `put_fact` has kept."""
    row = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    assert row is not None, name
    return json.loads(row["value"])
