"""Another ledger, of a shard, taken over with its money."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from . import schema
from .budget import Budget
from .database import Database
from .rows import store_path


class Merge:
    """Ledgers taken over."""

    def __init__(self, database: Database, budget: Budget) -> None:
        self._database = database
        self._budget = budget

    def absorb(self, other: Path, moved: Sequence[tuple[str, int, Path]] = ()) -> int:
        """Take over all that another ledger knows, of a version not newer than this; the rows that were new here.

        What both know stays as it is here, except that a row gives way which is only queued here, or which went on
        over there. `moved` are images that have another name here. Nobody else may have the other ledger in hand:
        hold its batch first.
        """
        with self._database.turn:
            with self._database.read() as db:
                db.execute(schema.ATTACH, (str(other.absolute()),))
            try:
                with self._database.write("no") as db:
                    self._budget.forget()
                    new = _absorb(db)
                    names = [(store_path(path), request, index) for request, index, path in moved]
                    db.executemany("UPDATE main.images SET path = ? WHERE request = ? AND position = ?", names)
                    return new
            finally:
                db.execute(schema.DETACH)


def _absorb(db: sqlite3.Connection) -> int:
    """Copy the rows of the attached ledger `other`. What gives way, or is not taken over, was paid all the same: the
    money of both folders adds up.
    """
    db.execute(schema.MERGE_OUTLAYS)
    db.execute(schema.OUTLAYS_THAT_GIVE_WAY)
    # Rows refer to each other, so the order is that of the references.
    _take_over(db, "runs")
    db.execute(schema.DROP_QUEUED)
    db.execute(schema.DROP_OLDER)
    before = _count(db)
    _take_over(db, "requests")
    new = _count(db) - before
    db.execute(schema.OUTLAYS_LEFT_OVER)
    _take_over(db, "images")
    _take_over(db, "notes")
    return new


def _take_over(db: sqlite3.Connection, table: str) -> None:
    names = [row["name"] for row in db.execute(schema.columns_of(table))]
    # A row is numbered where it comes to.
    db.execute(schema.merge_rows(table, [name for name in names if name != "number"]))


def _count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM main.requests").fetchone()[0])
