"""Queries: history, single requests, and the rows of a batch's table."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from ..errors import InputError, Problem
from . import schema
from .database import Database
from .records import Entry, Forecast, Note, Queued, RequestStatus, Saved, State, Unsent
from .rows import by_ids, read_entry, read_images, read_note, select, to_stamp
from .run_lock import RunLocks
from .runs import Run

CHUNK = 2000

_PAGE = 200


class Queries:
    """Queries on requests of all runs."""

    def __init__(self, database: Database, locks: RunLocks) -> None:
        self._database = database
        self._locks = locks

    def history(
        self,
        text: str | None = None,
        *,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        provider: str | None = None,
        status: str | None = None,
        limit: int | None = None,
    ) -> tuple[Entry, ...]:
        """Requests, newest first. `text` is searched for, ignoring case, in prompts, ids, models and file names.

        `since` (inclusive) and `until` (exclusive) are compared with `entered_at`; `status` is an `Entry.status`.
        """
        conditions, values = [], list[Any]()
        if text:
            conditions.append(schema.FOUND)
            values += [text.casefold()] * schema.FOUND.count("?")
        for condition, value in (
            ("entered_at >= ?", None if since is None else to_stamp(since)),
            ("entered_at < ?", None if until is None else to_stamp(until)),
            ("provider = ?", provider),
            ("status = ?", status),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        with self._database.read() as db:
            return select(db, f"{where} ORDER BY number DESC LIMIT ?", (*values, schema.most(limit)))

    def find(self, prefix: str) -> tuple[Entry, ...]:
        """The request or the run's requests of this id, task id or unique prefix of an id; () for none.

        Raises `InputError` where a prefix matches several runs.
        """
        with self._database.read() as db:
            if not prefix:
                return ()
            exact = select(
                db,
                "WHERE id = :name OR run = :name OR payer = :name OR task_id = :name ORDER BY number",
                {"name": prefix},
            )
            if exact:
                # A request's id may equal its run's: then that request alone.
                return tuple(entry for entry in exact if entry.id == prefix) or exact
            span = {"low": prefix, "high": prefix + "\U0010ffff"}
            within = "WHERE id >= :low AND id < :high ORDER BY number"
            rows = db.execute(f"SELECT id, run FROM requests {within}", span)  # noqa: S608 -- a constant
            runs = {row["run"] for row in rows}
            if len(runs) > 1:
                several = ", ".join(sorted(runs)[:5])
                raise InputError([Problem("id", f"{prefix} is the start of several ids: {several}", "give more of it")])
            return select(db, within, span)

    def row(self, identity: str, occurrence: int) -> Entry | None:
        """The batch's request of this identity; None where there is none."""
        with self._database.read() as db:
            found = select(db, "WHERE identity = ? AND occurrence = ?", (identity, occurrence))
        return found[0] if found else None

    def entries(self, ids: Sequence[str]) -> tuple[Entry, ...]:
        """The requests of these ids in their order, without unknown ones."""
        with self._database.read() as db:
            return by_ids(db, ids)

    def count_sent(self) -> int:
        """How many requests are not queued, of any table."""
        with self._database.read() as db:
            return int(db.execute("SELECT count(*) FROM requests WHERE state <> 'queued'").fetchone()[0])

    def with_saved_images(self) -> Iterator[Entry]:
        """Requests with saved images, oldest first, in chunks."""
        last = -1
        while True:
            with self._database.read() as db:
                rows = db.execute(
                    "SELECT id, number FROM requests WHERE number > ? AND EXISTS(SELECT 1 FROM images "
                    "WHERE request = requests.id AND images.state = 'saved') ORDER BY number LIMIT ?",
                    (last, _PAGE),
                ).fetchall()
                entries = by_ids(db, [row["id"] for row in rows])
            if not rows:
                return
            last = rows[-1]["number"]
            yield from entries

    def unsaved(self) -> tuple[Entry, ...]:
        """What `recover` processes: paid and not saved, open tasks, unread replies; not those of living runs."""
        with self._database.read() as db:
            found = select(
                db,
                "WHERE state IN ('waiting', 'ready') OR (state = 'unknown' AND (reply IS NOT NULL OR EXISTS("
                "SELECT 1 FROM images WHERE request = requests.id AND images.state = 'pending'))) ORDER BY number",
            )
        alive = {owner for owner in {entry.owner for entry in found} if owner and self._locks.is_alive(owner)}
        return tuple(entry for entry in found if entry.owner not in alive)

    def refetchable(self) -> tuple[Entry, ...]:
        """Saved requests with images that are no file: printed as a link, or their link had expired. Links may be tried
        again."""
        with self._database.read() as db:
            return select(
                db,
                "WHERE state = 'saved' AND EXISTS(SELECT 1 FROM images WHERE request = requests.id "
                "AND images.state IN ('expired', 'handed') AND link <> '' AND path IS NULL) ORDER BY number",
            )

    def reusable(self, fingerprint: str, *, limit: int = 100) -> tuple[Entry, ...]:
        """Of the last `limit` requests of this fingerprint those with all images saved, newest first.

        The caller checks that the files still exist.
        """
        with self._database.read() as db:
            found = select(
                db, "WHERE fingerprint = ? AND state = 'saved' ORDER BY number DESC LIMIT ?", (fingerprint, limit)
            )
        whole = (entry for entry in found if entry.images)
        return tuple(entry for entry in whole if all(p.state == "saved" and p.path for p in entry.images))

    def notes(self, request_id: str) -> tuple[Note, ...]:
        """The notes of a request, oldest first."""
        with self._database.read() as db:
            rows = db.execute("SELECT * FROM notes WHERE request = ? ORDER BY number", (request_id,)).fetchall()
        return tuple(read_note(row) for row in rows)

    def totals(self) -> tuple[int, frozenset[str], frozenset[str]]:
        """The number of saved images, and the providers and models of all requests."""
        with self._database.read() as db:
            images = db.execute("SELECT count(*) FROM images WHERE state IN ('saved', 'handed')").fetchone()[0]
            pairs = db.execute("SELECT DISTINCT provider, model FROM requests").fetchall()
        return int(images), frozenset(row[0] for row in pairs), frozenset(row[1] for row in pairs)


class TableQueries:
    """Queries on the rows of the table that a batch's run listed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def listed(self, run: Run, states: Iterable[State] = get_args(State)) -> Iterator[Entry]:
        """The rows of the run's table in these states, in table order, in chunks."""
        wanted = json.dumps(sorted(states))
        last = (-1, -1)
        while True:
            with self._database.read() as db:
                # By number too: else rows of equal position could be skipped or repeated between chunks.
                rows = db.execute(schema.LISTED, (run.id, *last, wanted, _PAGE)).fetchall()
                images = read_images(db, [row["id"] for row in rows])
            if not rows:
                return
            last = (rows[-1]["position"], rows[-1]["number"])
            for row in rows:
                yield read_entry(row, images.get(row["id"], ()))

    def unsent(self, run: Run) -> Iterator[Unsent]:
        """The queued rows of the run's table, in table order, in chunks."""
        last = (-1, -1)
        while True:
            with self._database.read() as db:
                rows = db.execute(
                    "SELECT id, position, occurrence, number FROM requests WHERE listed = ? AND state = 'queued' "
                    "AND owner IS NULL AND (position, number) > (?, ?) ORDER BY position, number LIMIT ?",
                    (run.id, *last, _PAGE),
                ).fetchall()
            if not rows:
                return
            last = (rows[-1]["position"], rows[-1]["number"])
            for row in rows:
                yield Unsent(row["id"], row["position"], row["occurrence"])

    def queued(self, run: Run, step: int, *, single: bool) -> Iterator[Queued]:
        """The queued requests, in table order, of rows with one request (`single`) or of those with several."""
        last, which = -1, schema.SINGLE if single else f"NOT ({schema.SINGLE})"
        while True:
            with self._database.read() as db:
                rows = db.execute(
                    f"SELECT position, images_at_most, worst_micro {schema.QUEUED} AND {which} AND position > ? "
                    "ORDER BY position LIMIT ?",
                    (run.id, step, last, CHUNK),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from itertools.starmap(Queued, rows)

    def count_single(self, run: Run, step: int) -> int:
        """How many queued requests of the run's table are the only one of their row.

        A row's requests have consecutive positions from a multiple of `step` on.
        """
        with self._database.read() as db:
            return int(db.execute(f"SELECT count(*) {schema.QUEUED} AND {schema.SINGLE}", (run.id, step)).fetchone()[0])

    def saved(self, run: Run) -> Iterator[Saved]:
        """The saved requests of the run's table, in table order, with what is needed to check their files."""
        last = (-1, -1)
        while True:
            with self._database.read() as db:
                rows = db.execute(schema.SAVED, (run.id, *last, _PAGE)).fetchall()
            if not rows:
                return
            last = tuple(rows[-1][:2])
            for (position, _, name), group in itertools.groupby(rows, key=lambda row: (row[0], row[1], row[2])):
                yield Saved(name, position, tuple(tuple(row[3:6]) for row in group if row[3] is not None))

    def forecast(self, run: Run) -> Forecast:
        """Number, images and worst cost of the queued requests of the run's table."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT count(*), coalesce(sum(images_at_most), 0), coalesce(sum(worst_micro), 0), "
                "count(*) - count(worst_micro) FROM requests WHERE listed = ? AND state = 'queued' AND owner IS NULL",
                (run.id,),
            ).fetchone()
        return Forecast(*row)

    def row_statuses(self, run: Run, step: int) -> Counter[frozenset[RequestStatus]]:
        """How many rows have which set of statuses among their requests; a row has `step` positions."""
        with self._database.read() as db:
            rows = db.execute(schema.ROW_STATUSES, (run.id, step)).fetchall()
        return Counter({frozenset(statuses.split(",")): count for statuses, count in rows})

    def table_of(self, run: Run) -> str:
        """The file name of the table that a run listed; "" for none."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT file FROM requests WHERE listed = ? ORDER BY position, number LIMIT 1", (run.id,)
            ).fetchone()
        return "" if row is None else str(row[0])

    def is_listed(self, run: Run, request_id: str) -> bool:
        """Whether a request is of a row of the run's table."""
        with self._database.read() as db:
            found = db.execute("SELECT 1 FROM requests WHERE id = ? AND listed = ?", (request_id, run.id)).fetchone()
        return found is not None

    def unlisted(self, run: Run) -> Iterator[tuple[str, str, int]]:
        """(id, row id, position) of the batch's rows that the run's table no longer has, oldest first."""
        with self._database.read() as db:
            rows = db.execute(schema.UNLISTED, (run.id,)).fetchall()
        for row in rows:
            yield row["id"], row["row_id"], row["position"]
