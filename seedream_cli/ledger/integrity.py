"""Refuses databases that this tool did not write: other programs', triggers, invalid rows."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ..errors import FileError
from . import schema


def damaged(path: Path, what: str) -> FileError:
    """The error for a ledger that cannot be used."""
    return FileError(
        f"the ledger {path} is damaged: {what}",
        hint="move it away with its -wal file, and a new one is begun; kept replies are untouched "
        "(`seedream recover`), and SQLite's own `.recover` saves most rows of a copy",
    )


def refuse_foreign(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is no ledger. Asks SQLite: opening and closing the file here would drop SQLite's POSIX locks."""
    # For SQLite an empty file is a new database.
    if not path.stat().st_size:
        raise damaged(path, "it is empty")
    if db.execute(schema.APPLICATION_ID).fetchone()[0] != schema.APPLICATION:
        raise FileError(f"{path} is another program's database", hint="move it away, or choose another folder")


def refuse_triggers(db: sqlite3.Connection, path: Path) -> None:
    """Refuse views, triggers and virtual tables, which no ledger has and which could run anything."""
    known = {"table", "index"}
    for kind, name, sql in db.execute(schema.OBJECTS):
        if kind not in known or str(sql).lstrip().upper().startswith("CREATE VIRTUAL"):
            raise damaged(path, f"it holds a {kind} called {str(name)[:40]!r}, which no ledger of ours does")


def refuse_invalid_rows(db: sqlite3.Connection, path: Path) -> None:
    """Refuse values that no version wrote, as in a folder from somebody else. Raises `FileError`."""
    for table, (name, odd) in schema.INVALID_ROWS.items():
        query = f"SELECT {name} FROM {table} WHERE {' OR '.join(odd)} LIMIT 1"  # noqa: S608 -- constants
        found = db.execute(query).fetchone()
        if found is not None:
            raise damaged(path, f"{table} holds what was never written by seedream, at {str(found[0])[:80]!r}")
