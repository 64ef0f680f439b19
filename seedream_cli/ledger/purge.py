"""Deletes old requests, also from the file's free pages."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from collections.abc import Sequence

from . import schema
from .budget import Budget
from .database import Database
from .records import Purged
from .rows import to_stamp
from .run_lock import RunLocks


class Purge:
    """Deletes requests."""

    def __init__(self, database: Database, locks: RunLocks, budget: Budget) -> None:
        self._database = database
        self._locks = locks
        self._budget = budget

    def purge(self, *, before: dt.datetime | None, force: bool = False, kept_runs: Sequence[str] = ()) -> Purged:
        """Delete requests entered before a time (None: all), with their image rows, notes and empty runs.

        Requests that are unsaved, ambiguous or in flight stay unless `force`; those of a living run always stay.
        `kept_runs` stay too: a batch's folder, which may hold unsaved images, is known by its run. Today's costs stay
        in the daily budget. Deleted rows are overwritten in the file. A batch whose saved rows are purged pays for them
        again.
        """
        limit = "9999" if before is None else to_stamp(before)
        with self._database.read() as db:
            owners = db.execute(
                "SELECT owner FROM requests WHERE owner IS NOT NULL UNION SELECT id FROM runs WHERE finished_at IS NULL"
            ).fetchall()
        alive = json.dumps([row[0] for row in owners if self._locks.is_alive(row[0])])
        with self._database.write("no") as db:
            picked = _select_purged(db, limit, alive, force=force)
            asked = db.execute("SELECT count(*) FROM requests WHERE entered_at < ?", (limit,)).fetchone()[0]
            self._keep_spent(db)
            db.execute("DELETE FROM requests WHERE number IN (SELECT number FROM purged)")
            db.execute(schema.DROP_RUNS, (limit, alive, json.dumps(list(kept_runs))))
            if picked:
                self._database.note(None, "purged", f"{picked} requests")
        with self._database.read() as db:
            db.execute(schema.CHECKPOINT).fetchone()
        return Purged(picked, asked - picked)

    def _keep_spent(self, db: sqlite3.Connection) -> None:
        """Keep the sum of what was charged today: a purge must not raise today's remaining budget."""
        today, at = to_stamp(self._budget.today()), self._database.stamp()
        sums = db.execute(
            f"SELECT currency, sum({schema.PAID} + {schema.POSSIBLE}) AS micro FROM requests "  # noqa: S608 -- constants
            "WHERE number IN (SELECT number FROM purged) AND charged_at >= ? GROUP BY currency",
            (today,),
        ).fetchall()
        rows = [(f"purged {at} {row['currency']}", at, row["micro"], row["currency"]) for row in sums if row["micro"]]
        db.executemany(schema.INSERT_OUTLAY, rows)


def _select_purged(db: sqlite3.Connection, limit: str, alive: str, *, force: bool) -> int:
    """Insert the requests to delete into the temporary table `purged`; returns how many."""
    db.execute(schema.PURGED)
    db.execute("DELETE FROM purged")
    return db.execute(schema.SELECT_PURGED, (limit, alive, force)).rowcount
