"""Reading: history, single requests, and the rows of a batch's table."""

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
from .records import Entry, Forecast, Note, Queued, Saved, Standing, State, Unsent
from .rows import by_ids, read_entry, read_images, read_note, select, to_stamp
from .run_lock import RunLocks
from .runs import Run

CHUNK = 2000

_PAGE = 200


class Queries:
    """What is written down, read."""

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
        """Requests, newest first. `text` is looked for, in any case, in prompts, ids, models and file names.

        `since` (included) and `until` (not) are compared with the time of entering; `status` is an `Entry.status`.
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
        """The request of this id, all of the run of this id, or what a unique start of either, or a task id, means.

        Nothing where nothing is meant; raises `InputError` where a start is several runs'.
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
                # An id names its request alone, also where the run is called the same.
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
        """The batch's row of this identity, where the ledger knows it."""
        with self._database.read() as db:
            found = select(db, "WHERE identity = ? AND occurrence = ?", (identity, occurrence))
        return found[0] if found else None

    def entries(self, ids: Sequence[str]) -> tuple[Entry, ...]:
        """The requests of these ids in their order; those that are not there are left out."""
        with self._database.read() as db:
            return by_ids(db, ids)

    def count_begun(self) -> int:
        """How many requests were sent, of whatever table, but for those that are to be sent anew."""
        with self._database.read() as db:
            return int(db.execute("SELECT count(*) FROM requests WHERE state <> 'queued'").fetchone()[0])

    def drawn(self) -> Iterator[Entry]:
        """Requests with images on disk, in the order of their entering; a chunk in memory at a time."""
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
        """What `recover` takes: paid and not saved, open tasks, unread replies. Not what a living run works on."""
        with self._database.read() as db:
            found = select(
                db,
                "WHERE state IN ('waiting', 'ready') OR (state = 'unknown' AND (reply IS NOT NULL OR EXISTS("
                "SELECT 1 FROM images WHERE request = requests.id AND images.state = 'pending'))) ORDER BY number",
            )
        alive = {owner for owner in {entry.owner for entry in found} if owner and self._locks.is_alive(owner)}
        return tuple(entry for entry in found if entry.owner not in alive)

    def askable(self) -> tuple[Entry, ...]:
        """Requests of which an image was handed out as a link, or its link called expired: it may be asked again."""
        with self._database.read() as db:
            return select(
                db,
                "WHERE state = 'saved' AND EXISTS(SELECT 1 FROM images WHERE request = requests.id "
                "AND images.state IN ('expired', 'handed') AND link <> '' AND path IS NULL) ORDER BY number",
            )

    def reusable(self, fingerprint: str, *, limit: int = 100) -> tuple[Entry, ...]:
        """Of the last `limit` requests of this fingerprint those whose images were all saved, newest first.

        The caller looks whether the files are still there.
        """
        with self._database.read() as db:
            found = select(
                db, "WHERE fingerprint = ? AND state = 'saved' ORDER BY number DESC LIMIT ?", (fingerprint, limit)
            )
        whole = (entry for entry in found if entry.images)
        return tuple(entry for entry in whole if all(p.state == "saved" and p.path for p in entry.images))

    def notes(self, request_id: str) -> tuple[Note, ...]:
        """What was done to a request beside its own way, oldest first."""
        with self._database.read() as db:
            rows = db.execute("SELECT * FROM notes WHERE request = ? ORDER BY number", (request_id,)).fetchall()
        return tuple(read_note(row) for row in rows)

    def totals(self) -> tuple[int, frozenset[str], frozenset[str]]:
        """How many images are saved, and from which providers and models those and the others were asked."""
        with self._database.read() as db:
            images = db.execute("SELECT count(*) FROM images WHERE state IN ('saved', 'handed')").fetchone()[0]
            pairs = db.execute("SELECT DISTINCT provider, model FROM requests").fetchall()
        return int(images), frozenset(row[0] for row in pairs), frozenset(row[1] for row in pairs)


class TableQueries:
    """The rows of the table that a run of a batch listed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def listed(self, run: Run, states: Iterable[State] = get_args(State)) -> Iterator[Entry]:
        """The rows of the run's table that are in one of these states, in its order; a chunk in memory at a time."""
        wanted = json.dumps(sorted(states))
        last = (-1, -1)
        while True:
            with self._database.read() as db:
                # A tie of positions is broken by the number, so no row is passed over or given twice.
                rows = db.execute(schema.LISTED, (run.id, *last, wanted, _PAGE)).fetchall()
                images = read_images(db, [row["id"] for row in rows])
            if not rows:
                return
            last = (rows[-1]["position"], rows[-1]["number"])
            for row in rows:
                yield read_entry(row, images.get(row["id"], ()))

    def unsent(self, run: Run) -> Iterator[Unsent]:
        """The queued rows of the run's table, in its order; a chunk in memory at a time."""
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
        """The queued requests of the run's table, in its order, of rows with one request or of the others."""
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
        """How many queued requests of the run's table are all that their rows ask for.

        A row's requests stand at positions that follow each other, from a multiple of `step` on.
        """
        with self._database.read() as db:
            return int(db.execute(f"SELECT count(*) {schema.QUEUED} AND {schema.SINGLE}", (run.id, step)).fetchone()[0])

    def saved(self, run: Run) -> Iterator[Saved]:
        """The saved requests of the run's table, in its order, as far as it takes to see whether all is there."""
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
        """What the queued rows of the run's table may come to."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT count(*), coalesce(sum(images_at_most), 0), coalesce(sum(worst_micro), 0), "
                "count(*) - count(worst_micro) FROM requests WHERE listed = ? AND state = 'queued' AND owner IS NULL",
                (run.id,),
            ).fetchone()
        return Forecast(*row)

    def standings(self, run: Run, step: int) -> Counter[frozenset[Standing]]:
        """How many rows of the run's table stand how, by what their requests do; a row has `step` positions."""
        with self._database.read() as db:
            rows = db.execute(schema.STANDINGS, (run.id, step)).fetchall()
        return Counter({frozenset(said.split(",")): many for said, many in rows})

    def table_of(self, run: Run) -> str:
        """The name of the table whose rows a run listed."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT file FROM requests WHERE listed = ? ORDER BY position, number LIMIT 1", (run.id,)
            ).fetchone()
        return "" if row is None else str(row[0])

    def is_listed(self, run: Run, request_id: str) -> bool:
        """Whether a request belongs to a row of the run's table."""
        with self._database.read() as db:
            found = db.execute("SELECT 1 FROM requests WHERE id = ? AND listed = ?", (request_id, run.id)).fetchone()
        return found is not None

    def unlisted(self, run: Run) -> Iterator[tuple[str, str, int]]:
        """Id, row's id and position of the batch's rows that the run's table has no more, oldest first."""
        with self._database.read() as db:
            rows = db.execute(schema.UNLISTED, (run.id,)).fetchall()
        for row in rows:
            yield row["id"], row["row_id"], row["position"]
