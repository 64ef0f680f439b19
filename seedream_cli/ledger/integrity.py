"""What a database holds that no ledger of ours would: foreign tables, programs, and rows that nobody wrote."""

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
    """Refuse what is no ledger. The file is not opened to look: closing it would drop SQLite's own locks on it."""
    # SQLite takes an empty file for a new database.
    if not path.stat().st_size:
        raise damaged(path, "it is empty")
    if db.execute(schema.KIND).fetchone()[0] != schema.APPLICATION:
        raise FileError(f"{path} is another program's database", hint="move it away, or choose another folder")


def refuse_programs(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a ledger that does something by itself. None has a view or a trigger, which may say and do anything."""
    known = {"table", "index"}
    for kind, name, sql in db.execute(schema.PARTS):
        if kind not in known or str(sql).lstrip().upper().startswith("CREATE VIRTUAL"):
            raise damaged(path, f"it holds a {kind} called {str(name)[:40]!r}, which no ledger of ours does")


def refuse_odd_rows(db: sqlite3.Connection, path: Path) -> None:
    """Refuse rows that no version wrote: a stranger's folder may hold any. Raises `FileError`."""
    for table, (name, odd) in schema.ODD_ROWS.items():
        query = f"SELECT {name} FROM {table} WHERE {' OR '.join(odd)} LIMIT 1"  # noqa: S608 -- constants
        found = db.execute(query).fetchone()
        if found is not None:
            raise damaged(path, f"{table} holds what was never written by seedream, at {str(found[0])[:80]!r}")
