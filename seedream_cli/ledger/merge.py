"""Merges the ledger of a shard, with its costs."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from . import schema
from .budget import Budget
from .database import Database
from .rows import store_path


class Merge:
    """Copies another ledger's rows."""

    def __init__(self, database: Database, budget: Budget) -> None:
        self._database = database
        self._budget = budget

    def merge(self, other: Path, moved: Sequence[tuple[str, int, Path]] = ()) -> int:
        """Copy the rows of another ledger of the same or an older version; returns how many requests were new.

        Of a request in both, the row here stays, unless it is only queued here or has later attempts there. `moved` are
        (request, index, path) of images that were renamed. Hold the lock of the other batch first.
        """
        with self._database.lock:
            with self._database.read() as db:
                db.execute(schema.ATTACH, (str(other.absolute()),))
            try:
                with self._database.write("no") as db:
                    self._budget.reset_sums()
                    new = _merge(db)
                    names = [(store_path(path), request, index) for request, index, path in moved]
                    db.executemany("UPDATE main.images SET path = ? WHERE request = ? AND position = ?", names)
                    return new
            finally:
                db.execute(schema.DETACH)


def _merge(db: sqlite3.Connection) -> int:
    """Copy the rows of the attached ledger `other`. The cost of rows that are dropped or not copied is kept: it was
    paid too.
    """
    db.execute(schema.MERGE_OUTLAYS)
    db.execute(schema.KEEP_OUTLAYS_OF_DROPPED)
    # In the order of the foreign keys.
    _copy_rows(db, "runs")
    db.execute(schema.DROP_QUEUED)
    db.execute(schema.DROP_OLDER)
    before = _count(db)
    _copy_rows(db, "requests")
    new = _count(db) - before
    db.execute(schema.KEEP_OUTLAYS_OF_IGNORED)
    _copy_rows(db, "images")
    _copy_rows(db, "notes")
    return new


def _copy_rows(db: sqlite3.Connection, table: str) -> None:
    names = [row["name"] for row in db.execute(schema.columns_of(table))]
    # `number` is assigned here.
    db.execute(schema.merge_rows(table, [name for name in names if name != "number"]))


def _count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM main.requests").fetchone()[0])
