"""Runs: which live, which requests they have claimed, and the orphans of dead ones."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .. import __version__
from ..errors import FileError, InputError, Problem
from ..storage import filesystem
from . import schema
from .database import Database
from .records import Entry, Failure, RecoveredOrphans, RunRow
from .rows import as_mapping, by_ids, store_path, to_moment, unreadable, update
from .run_lock import RunLocks


class Run:
    """The current run; call `finish` with its exit code before the block ends."""

    def __init__(self, runs: Runs, run_id: str) -> None:
        self.id = run_id
        self.finished = False
        self._runs = runs

    def finish(self, exit_code: int | None) -> None:
        """Record the end and release every claimed request but those in flight, which become orphans."""
        self._runs.end(self.id, exit_code)
        self.finished = True


class Runs:
    """Runs and the requests that they have claimed."""

    def __init__(self, database: Database, locks: RunLocks) -> None:
        self._database = database
        self._masked = database.masked
        self._locks = locks

    @contextlib.contextmanager
    def run(self, run_id: str, command: str, *, folder: str = "") -> Iterator[Run]:
        """Start a run and hold its lock to the end of the block. `folder` is the working folder.

        Raises `BusyError` where a living process has this id, `FileError` where the lock cannot be created.
        """
        run = Run(self, run_id)
        with self._locks.hold(run_id):
            try:
                self._start(run_id, command, folder)
                yield run
            finally:
                # A full disk must not mask the block's exception; the next run recovers what was not written.
                with contextlib.suppress(FileError):
                    if not run.finished:
                        self.end(run_id, None)

    def _start(self, run_id: str, command: str, folder: str) -> None:
        with self._database.write("no") as db:
            row = (run_id, command, self._database.stamp(), __version__, self._masked.text(folder))
            db.execute("INSERT INTO runs(id, command, started_at, version, folder) VALUES (?, ?, ?, ?, ?)", row)

    def end(self, run_id: str, exit_code: int | None) -> None:
        """Record a run's end. A request still `sent` keeps its owner and so becomes an orphan."""
        with self._database.write("no") as db:
            at = self._database.stamp()
            db.execute("UPDATE runs SET finished_at = ?, exit_code = ? WHERE id = ?", (at, exit_code, run_id))
            db.execute("UPDATE requests SET owner = NULL, reserved = 0 WHERE owner = ? AND state <> 'sent'", (run_id,))

    def runs(self, *, limit: int | None = None) -> tuple[RunRow, ...]:
        """Runs, newest first."""
        with self._database.read() as db:
            rows = db.execute(schema.RUNS, (schema.most(limit),)).fetchall()
        return tuple(self._run_row(row) for row in rows)

    def batches(self) -> dict[Path, tuple[RunRow, ...]]:
        """The folders of batches with their runs, newest first; their requests are in the ledger of each folder."""
        with self._database.read() as db:
            rows = db.execute(schema.BATCHES).fetchall()
        found: dict[Path, tuple[RunRow, ...]] = {}
        for run in map(self._run_row, rows):
            found[Path(run.folder)] = (*found.get(Path(run.folder), ()), run)
        return found

    def batch_of(self, name: str) -> Path | None:
        """The folder of the batch of a request's or run's id, or a prefix of a run's; None where there is none.

        Raises `InputError` where a prefix matches several folders.
        """
        batches = {folder: [run.id for run in runs] for folder, runs in self.batches().items()}
        for folder, ids in batches.items():
            if any(name == one or name.startswith(f"{one}-") for one in ids):
                return folder
        found = [folder for folder, ids in batches.items() if name and any(one.startswith(name) for one in ids)]
        if len(found) > 1:
            several = ", ".join(str(folder) for folder in found[:5])
            raise InputError(
                [Problem("id", f"{name} is the start of several batches' ids: {several}", "give more of it")]
            )
        return found[0] if found else None

    def listing(self) -> Run | None:
        """The last run that listed a batch's table; None where there is none."""
        with self._database.read() as db:
            row = db.execute(schema.LISTING).fetchone()
        return None if row is None else Run(self, row[0])

    def _run_row(self, row: sqlite3.Row) -> RunRow:
        values = dict(row)
        try:
            for name in ("started_at", "finished_at"):
                values[name] = to_moment(values[name])
        except (ValueError, TypeError) as error:
            raise unreadable(row["id"]) from error
        return RunRow(**values)

    def claim(self, run: Run, ids: Sequence[str]) -> frozenset[str]:
        """Claim queued requests; returns those that no other run has claimed."""
        taken = []
        with self._database.write("no") as db:
            for one in ids:
                claimed = "UPDATE requests SET owner = ? WHERE id = ? AND state = 'queued' AND owner IS NULL"
                taken += [one] if db.execute(claimed, (run.id, one)).rowcount else []
        return frozenset(taken)

    def take(self, run: Run, ids: Sequence[str]) -> tuple[Entry, ...]:
        """Claim requests to recover or to send again; returns those that were free.

        Requests of a living run are not free, nor any in `sent`: call `recover_orphans` first.
        """
        with self._database.read() as db:
            entries = by_ids(db, ids)
        free = [entry for entry in entries if entry.state != "sent" and self._is_free(entry.owner, run)]
        taken = []
        with self._database.write("no") as db:
            for entry in free:
                changed = db.execute(schema.TAKE, (run.id, entry.id, entry.owner, entry.state))
                taken += [entry.id] if changed.rowcount else []
            return by_ids(db, taken)

    def _is_free(self, owner: str | None, run: Run) -> bool:
        return owner is None or owner == run.id or not self._locks.is_alive(owner)

    def recover_orphans(self, replies: Path, find_reply: Callable[[str, str], Path | None]) -> RecoveredOrphans:
        """Recover the requests of dead runs. Call it before a run starts, and before history and costs are shown.

        A request in flight becomes `ready` where its complete response is in `replies` or `find_reply(id, token)` finds
        it: without images, `reply` still to be parsed, which ends in `mark_ready`, `mark_waiting` or `mark_failed`.
        Else it becomes `unknown`. Tasks and paid images are released for `unsaved`. Requests of living runs are not
        touched; of several processes one recovers a run. Each step is committed and flushed.
        """
        ready: list[str] = []
        unknown: list[str] = []
        for owner in self._possibly_dead():
            # The dead run's lock keeps a second process from checking a response that this one is moving.
            lock = self._locks.acquire(owner)
            if lock is None:
                continue
            settled = False
            try:
                self._recover_run(owner, replies, find_reply, ready, unknown)
                settled = True
            finally:
                lock.release(remove=settled)
        return RecoveredOrphans(tuple(ready), tuple(unknown))

    def _possibly_dead(self) -> list[str]:
        """Runs with claimed requests or a lock file. A lock file without a run may be of one that is starting."""
        files = json.dumps(self._locks.list_ids())
        with self._database.read() as db:
            return [row[0] for row in db.execute(schema.POSSIBLY_DEAD, (files,))]

    def _recover_run(
        self,
        owner: str,
        replies: Path,
        find_reply: Callable[[str, str], Path | None],
        ready: list[str],
        unknown: list[str],
    ) -> None:
        with self._database.read() as db:
            out = db.execute(
                "SELECT id, token FROM requests WHERE owner = ? AND state = 'sent' ORDER BY number", (owner,)
            ).fetchall()
        for request_id, token in out:
            kept = replies / f"{request_id}.reply"
            reply = kept if filesystem.is_plain(kept) else find_reply(request_id, token)
            with self._database.write("unknown") as db:
                self._end_orphan(db, request_id, reply)
            (unknown if reply is None else ready).append(request_id)
        with self._database.write("unknown") as db:
            db.execute("UPDATE requests SET owner = NULL, reserved = 0 WHERE owner = ?", (owner,))

    def tokens_in_flight(self) -> frozenset[str]:
        """The tokens of all attempts in flight, whose responses must not be deleted."""
        with self._database.read() as db:
            return frozenset(row[0] for row in db.execute("SELECT token FROM requests WHERE state = 'sent'"))

    def _end_orphan(self, db: sqlite3.Connection, request_id: str, reply: Path | None) -> None:
        at = self._database.stamp()
        if reply is not None:
            # Whether it was billed is unknown until the response, perhaps an error, is parsed.
            update(db, request_id, {"state": "ready", "answered_at": at, "reply": store_path(reply), "reserved": 0})
            self._database.note(request_id, "orphaned", "the process died before it read the reply, which was kept")
            return
        failure = Failure(
            "unknown_outcome",
            "the process stopped while the request was out; it may have been billed, and is not sent again",
            f"look at the provider's usage page, then `seedream history resolve {request_id} --paid` or `--unpaid`",
        )
        changes = {
            "state": "unknown",
            "finished_at": at,
            "error": self._masked.json(as_mapping(failure)),
            "reserved": 0,
        }
        update(db, request_id, changes)
        self._database.note(request_id, "orphaned", "the process died while the request was out")
