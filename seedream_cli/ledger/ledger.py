"""The ledger: what was asked, sent, paid and saved, written down before it happens. The one user of SQLite.

The API has no idempotency key and lists no jobs, so what is not written here is lost money. The contract:

- `mark_sent` has committed and flushed when it returns; only then may the first byte of a request leave. If it
  raises, nothing may be sent. `mark_ready` has flushed the links before the first download starts.
- A request moves only along `TRANSITIONS`, and only by the run that has it in hand. A run holds the lock of
  `<folder>/runs/<run>.lock` while it lives; whose lock is free is dead, and its requests are orphans.
- `billed` is at every moment what would be true if the process died right there. Unknown counts as paid.
- What may have been paid is never sent again unless the caller says `again`, and the doubt stays in the account.

One schema serves single runs (`<state>/ledger.db`) and batches (`<output>/.seedream/ledger.db`). Prompts and bodies are
stored, references by name, sha256 and size; there is no column for a key, and what looks like one is masked.
Money is whole micro-units of a currency (0.04 USD is 40000). Every sqlite error comes out as a `FileError`, whose
`billed` says what the failed step puts at stake.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import re
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from .. import __version__
from ..errors import Billed, BudgetError, BusyError, FileError, InputError, InternalError, Problem, SeedreamError
from ..redaction import _AUTHORIZATION, _SUSPECT, _USER_INFO, _forms
from ..storage import filesystem
from ..storage.system_limits import require_files
from .budget import _Scope
from .database import (
    _FILES,
    _applied,
    _choose_journal,
    _connect,
    _create,
    _damaged,
    _explain,
    _is_half_made,
    _is_there,
    _migrate,
    _moment,
    _refuse_foreign,
    _stamp,
    _transaction,
)
from .entering import _ENTERED, Mould, NewRow, _Heads, _join_rows, _order_rows, _unchecked
from .integrity import _ODD_ROWS, _refuse_programs
from .records import (
    Caps,
    Charge,
    Entered,
    Entry,
    Failure,
    Forecast,
    Hold,
    NewRequest,
    Note,
    PictureRow,
    Purged,
    Queued,
    Resolution,
    RunRow,
    Saved,
    Settled,
    Spent,
    Standing,
    State,
    Tally,
    Unsent,
)
from .rows import _ENCODER, _as_mapping, _entry, _note_of, _pictures_of, _plain, _store_path, _unreadable, _update
from .run_lock import _Lock, _make_folder
from .schema import (
    _ANNOUNCE_PICTURE,
    _BOOKED,
    _CHARGES,
    _ENTER,
    _ENTRIES,
    _IN_HAND,
    _KEEP_PICTURE,
    _LISTED,
    _MONEY,
    _OUTLAY,
    _PAID,
    _PICK_PURGED,
    _PICTURE,
    _POSSIBLE,
    _QUEUED,
    _SAVED,
    _SINGLE,
    _STANDING,
    _TOGETHER,
    MIGRATIONS,
)
from .transitions import _AGAIN, _IN_FLIGHT, _carry_over, _check_move, _is_doubtful, _pending, _resolved

_CHUNK = 2000

_PAGE = 200

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


# --- opening --------------------------------------------------------------------------------------------------------


def open_ledger(
    path: Path, *, now: Callable[[], dt.datetime], secrets: Sequence[str] = (), is_shared: bool = False
) -> Ledger:
    """Open the ledger at `path`, or make one; older files are brought up to date.

    The folder is made 0700 where it is not there, the file is 0600. `now` gives aware times. `secrets` are strings
    (keys) that are masked in whatever is written. One that `is_shared` lies in a batch's folder, which may have come
    from somebody else. Raises `FileError` where the place cannot be written, and for a file
    that is damaged, no ledger, or of a newer version; such a file is left as it is.
    """
    # SQLite itself cannot say why it opens no file.
    require_files(_FILES, f"the ledger {path}")
    _make_folder(path.parent, is_named=not is_shared)
    if not _is_there(path) or _is_half_made(path):
        _create(path, now)
    ledger = Ledger(path, now=now, secrets=secrets)
    if is_shared:
        try:
            ledger.refuse_odd_rows()
        except BaseException:
            ledger.close()
            raise
    return ledger


@contextlib.contextmanager
def hold_batch(folder: Path) -> Iterator[None]:
    """Hold the batch of which `folder` has the ledger, for as long as the block runs.

    Raises `BusyError` at once where another process holds it, `FileError` where there can be no lock.
    """
    _make_folder(folder)
    path = folder / "batch.lock"
    lock = _Lock.take(path)
    if lock is None:
        holder = path.read_text("ascii", "replace").strip()[:20] if sys.platform != "win32" else ""
        by = f" (process {holder})" if holder.isdigit() else ""
        raise BusyError(f"another run{by} holds the batch in {folder.parent}", hint="wait for it, or stop it first")
    try:
        lock.sign()
        yield
    finally:
        lock.release()


# --- the ledger -----------------------------------------------------------------------------------------------------


class Run:
    """A run that lives: `finish` it with its exit code before its block ends."""

    def __init__(self, ledger: Ledger, run_id: str) -> None:
        self.id = run_id
        self.finished = False
        self._ledger = ledger

    def finish(self, exit_code: int | None) -> None:
        """Write down the end, and let go of every request in hand but those still out, which stay as orphans."""
        self._ledger.end_run(self.id, exit_code)
        self.finished = True


class Ledger:
    """An open ledger. One per process and file; its methods may be called from any thread, one runs at a time."""

    def __init__(self, path: Path, *, now: Callable[[], dt.datetime], secrets: Sequence[str] = ()) -> None:
        self.path = path
        self._now = now
        self._secrets = _forms(secrets)
        self._held: dict[str, _Lock] = {}
        self._turn = threading.RLock()
        self._is_grouped = False
        self._sums: dict[_Scope, tuple[int, int]] = {}
        try:
            self._db = _connect(path)
            self._bring_up_to_date()
        except sqlite3.Error as error:
            raise self._explain(error, "no") from error

    def _bring_up_to_date(self) -> None:
        try:
            _refuse_foreign(self._db, self.path)
            _refuse_programs(self._db, self.path)
            newer = _applied(self._db) - {name for name, _ in MIGRATIONS}
            if newer:
                raise FileError(
                    f"{self.path} was written by a newer seedream ({', '.join(sorted(newer))})",
                    hint="use that version, or move the file away",
                )
            _choose_journal(self._db, self.path)
            _migrate(self._db, self._now)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refuse_odd_rows(self) -> None:
        """Refuse rows that no version wrote: a stranger's folder may hold any. Raises `FileError`."""
        with self._read() as db:
            for table, (name, odd) in _ODD_ROWS.items():
                query = f"SELECT {name} FROM {table} WHERE {' OR '.join(odd)} LIMIT 1"  # noqa: S608 -- constants
                found = db.execute(query).fetchone()
                if found is not None:
                    what = f"{table} holds what was never written by seedream, at {str(found[0])[:80]!r}"
                    raise _damaged(self.path, what)

    def close(self) -> None:
        """Close the file, and let go of the locks of runs that were not ended."""
        for lock in self._held.values():
            lock.release()
        self._held.clear()
        self._db.close()

    def hide(self, secret: str) -> None:
        """Mask this string too in whatever is written from now on."""
        self._secrets += _forms([secret])

    @property
    def journal(self) -> str:
        """How commits are made: "wal", or "truncate" on a network disk."""
        with self._read() as db:
            return str(db.execute("PRAGMA journal_mode").fetchone()[0])

    def check(self) -> tuple[str, ...]:
        """What is wrong inside the file, nothing where it is sound. Reads all of it: for `doctor`."""
        try:
            with self._turn:
                found = [row[0] for row in self._db.execute("PRAGMA quick_check(20)") if row[0] != "ok"]
                found += [
                    f"{row[0]} {row[1]} belongs to nothing" for row in self._db.execute("PRAGMA foreign_key_check")
                ]
        except sqlite3.Error as error:
            return (str(error),)
        return tuple(found)

    # Runs and their locks.

    @contextlib.contextmanager
    def run(self, run_id: str, command: str, *, folder: str = "") -> Iterator[Run]:
        """Live as a run, with its lock held to the end of the block. `folder` is where the user stands.

        Raises `BusyError` where a living process has this id, `FileError` where there can be no lock.
        """
        lock = _Lock.take(self._lock_path(run_id))
        if lock is None:
            raise BusyError(f"run {run_id} is alive in another process")
        self._held[run_id] = lock
        run = Run(self, run_id)
        try:
            self._start_run(run_id, command, folder)
            yield run
        finally:
            # A full disk must not hide how the block ended; what could not be written the next run settles.
            with contextlib.suppress(FileError):
                if not run.finished:
                    self.end_run(run_id, None)
            self._held.pop(run_id, lock).release(remove=True)

    def _start_run(self, run_id: str, command: str, folder: str) -> None:
        with self._write("no") as db:
            row = (run_id, command, _stamp(self._now()), __version__, self._text(folder))
            db.execute("INSERT INTO runs(id, command, started_at, version, folder) VALUES (?, ?, ?, ?, ?)", row)

    def end_run(self, run_id: str, exit_code: int | None) -> None:
        """Write down a run's end; see `Run.finish`. What is still `sent` keeps its owner and so becomes an orphan."""
        with self._write("no") as db:
            at = _stamp(self._now())
            db.execute("UPDATE runs SET finished_at = ?, exit_code = ? WHERE id = ?", (at, exit_code, run_id))
            db.execute("UPDATE requests SET owner = NULL, reserved = 0 WHERE owner = ? AND state <> 'sent'", (run_id,))

    def runs(self, *, limit: int | None = None) -> tuple[RunRow, ...]:
        """Runs, newest first."""
        with self._read() as db:
            rows = db.execute("SELECT * FROM runs ORDER BY rowid DESC LIMIT ?", (_most(limit),)).fetchall()
        return tuple(self._run_row(row) for row in rows)

    def batches(self) -> dict[Path, tuple[RunRow, ...]]:
        """The folders of batches, each with its runs, newest first; what happened there its own ledger knows."""
        with self._read() as db:
            rows = db.execute(
                "SELECT * FROM runs WHERE command = 'batch' AND folder <> '' ORDER BY rowid DESC"
            ).fetchall()
        found: dict[Path, tuple[RunRow, ...]] = {}
        for run in map(self._run_row, rows):
            found[Path(run.folder)] = (*found.get(Path(run.folder), ()), run)
        return found

    def batch_of(self, name: str) -> Path | None:
        """The folder of the batch that a request of this id, or a run, belongs to; its own ledger knows the rest.

        The start of a run's id will do; raises `InputError` where that is several folders'.
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
        """The run that listed the rows of a batch's table last."""
        with self._read() as db:
            row = db.execute(
                "SELECT id FROM runs WHERE EXISTS(SELECT 1 FROM requests WHERE listed = runs.id) "
                "ORDER BY rowid DESC LIMIT 1"
            ).fetchone()
        return None if row is None else Run(self, row[0])

    def standings(self, run: Run, step: int) -> Counter[frozenset[Standing]]:
        """How many rows of the run's table stand how, by what their requests do; a row has `step` positions."""
        with self._read() as db:
            rows = db.execute(
                f"""SELECT said, count(*) FROM (SELECT group_concat(DISTINCT {_STANDING}) AS said
                    FROM requests WHERE listed = ? GROUP BY position / ?) GROUP BY said""",  # noqa: S608 -- a constant
                (run.id, step),
            ).fetchall()
        return Counter({frozenset(said.split(",")): many for said, many in rows})

    def table_of(self, run: Run) -> str:
        """The name of the table whose rows a run listed."""
        with self._read() as db:
            row = db.execute(
                "SELECT file FROM requests WHERE listed = ? ORDER BY position, number LIMIT 1", (run.id,)
            ).fetchone()
        return "" if row is None else str(row[0])

    def totals(self) -> tuple[int, frozenset[str], frozenset[str]]:
        """How many images are saved, and from which providers and models those and the others were asked."""
        with self._read() as db:
            images = db.execute("SELECT count(*) FROM pictures WHERE state IN ('saved', 'handed')").fetchone()[0]
            pairs = db.execute("SELECT DISTINCT provider, model FROM requests").fetchall()
        return int(images), frozenset(row[0] for row in pairs), frozenset(row[1] for row in pairs)

    def charges(self) -> Iterator[Charge]:
        """What each request that was ever sent cost, or may have cost, oldest first."""
        with self._read() as db:
            rows = db.execute(_CHARGES).fetchall()
        for row in rows:
            name, at, provider, model, images, paid, possible, is_priced, currency = row
            try:
                moment = _moment(at)
            except (ValueError, TypeError) as error:
                raise _unreadable(name) from error
            assert moment is not None  # noqa: S101 - a request has always one
            yield Charge(name, moment, provider, model, images, paid, possible, bool(is_priced), currency)

    def booked(self) -> Iterator[tuple[str, Charge]]:
        """What was booked here of batches' requests, each with the id of its run."""
        with self._read() as db:
            rows = db.execute("SELECT key, charged_at, micro, currency FROM outlays ORDER BY charged_at").fetchall()
        for key, at, micro, currency in rows:
            # Behind the id there may be which attempt it was.
            run, name = [*key.split(" "), ""][:2]
            moment = dt.datetime.fromisoformat(at)
            yield run, Charge(name, moment, "", "", 0, micro or 0, 0, micro is not None, currency)

    def _run_row(self, row: sqlite3.Row) -> RunRow:
        values = dict(row)
        try:
            for name in ("started_at", "finished_at"):
                values[name] = _moment(values[name])
        except (ValueError, TypeError) as error:
            raise _unreadable(row["id"]) from error
        return RunRow(**values, alive=row["finished_at"] is None and self._is_alive(row["id"]))

    def _lock_path(self, run_id: str) -> Path:
        if not _ID.fullmatch(run_id):
            raise InternalError(f"{run_id!r} cannot name a run")
        folder = self.path.parent / "runs"
        _make_folder(folder)
        return folder / f"{run_id}.lock"

    def _is_alive(self, run_id: str) -> bool:
        return run_id in self._held or not _Lock.is_free(self._lock_path(run_id))

    def orphans(self) -> tuple[Entry, ...]:
        """Requests that are out, or paid and not saved, in the hands of a run that is dead."""
        with self._read():
            rows = self._select("WHERE owner IS NOT NULL AND state IN ('sent', 'waiting', 'ready') ORDER BY number")
        dead = {owner for owner in {row.owner for row in rows} if owner and not self._is_alive(owner)}
        return tuple(row for row in rows if row.owner in dead)

    def settle_orphans(self, replies: Path, adopt: Callable[[str, str], Path | None]) -> Settled:
        """Settle what dead runs left. Call it before a run starts, and before history and money are shown.

        A request that was out becomes `ready` where its whole reply is in `replies` or `adopt(id, token)` finds it:
        without pictures, its `reply` still to be read, which ends in `mark_ready`, `mark_waiting` or `mark_failed`.
        Else it becomes `unknown`. Tasks and paid pictures are let go for `unsaved`. Never touches what a living run
        holds; of several processes at once one settles a run. Each step is committed and flushed by itself.
        """
        ready: list[str] = []
        unknown: list[str] = []
        for owner in self._possibly_dead():
            # Holding the dead run's own lock keeps a second process from judging a reply that this one is moving.
            lock = None if owner in self._held else _Lock.take(self._lock_path(owner))
            if lock is None:
                continue
            settled = False
            try:
                self._settle_run(owner, replies, adopt, ready, unknown)
                settled = True
            finally:
                lock.release(remove=settled)
        return Settled(tuple(ready), tuple(unknown))

    def _possibly_dead(self) -> list[str]:
        """Runs that have requests in hand or left a lock file. A file without a run may be of one that just starts."""
        files = json.dumps([file.stem for file in (self.path.parent / "runs").glob("*.lock")])
        with self._read() as db:
            rows = db.execute(
                "SELECT owner FROM requests WHERE owner IS NOT NULL "
                "UNION SELECT id FROM runs WHERE id IN (SELECT value FROM json_each(?))",
                (files,),
            )
            return [row[0] for row in rows]

    def _settle_run(
        self, owner: str, replies: Path, adopt: Callable[[str, str], Path | None], ready: list[str], unknown: list[str]
    ) -> None:
        with self._read() as db:
            out = db.execute(
                "SELECT id, token FROM requests WHERE owner = ? AND state = 'sent' ORDER BY number", (owner,)
            ).fetchall()
        for request_id, token in out:
            kept = replies / f"{request_id}.reply"
            reply = kept if filesystem.is_plain(kept) else adopt(request_id, token)
            with self._write("unknown") as db:
                self._settle_one(db, request_id, reply)
            (unknown if reply is None else ready).append(request_id)
        with self._write("unknown") as db:
            db.execute("UPDATE requests SET owner = NULL, reserved = 0 WHERE owner = ?", (owner,))

    def tokens_out(self) -> frozenset[str]:
        """The tokens of the attempts that are out, whoever has them in hand: a reply to one of them is still wanted."""
        with self._read() as db:
            return frozenset(row[0] for row in db.execute("SELECT token FROM requests WHERE state = 'sent'"))

    def _settle_one(self, db: sqlite3.Connection, request_id: str, reply: Path | None) -> None:
        at = _stamp(self._now())
        if reply is not None:
            # Whether it was billed is in the reply, which may hold an error: unknown until it is read.
            _update(db, request_id, {"state": "ready", "answered_at": at, "reply": _store_path(reply), "reserved": 0})
            self._note(db, request_id, "orphaned", "the process died before it read the reply, which was kept")
            return
        failure = Failure(
            "unknown_outcome",
            "the process stopped while the request was out; it may have been billed, and is not sent again",
            f"look at the provider's usage page, then `seedream history resolve {request_id} --paid` or `--unpaid`",
        )
        changes = {"state": "unknown", "finished_at": at, "error": self._json(_as_mapping(failure)), "reserved": 0}
        _update(db, request_id, changes)
        self._note(db, request_id, "orphaned", "the process died while the request was out")

    # Entering and taking.

    def enter(self, run: Run, entries: Iterable[NewRequest]) -> Entered:
        """Write down what is to be done, before any of it; flushed a chunk at a time and at the end.

        A request without identity is in the run's hands at once. One with identity is a batch's row: the run's table
        lists it, known rows keep their id, state and pictures (what a row says is renewed while nothing was sent),
        and `claim` or `take` puts it in the run's hands. Entries are drawn one by one, as they are written; where that
        raises, their chunk is not written.
        """
        at = _stamp(self._now())
        return self._enter(run, {1: _ENTER}, (self._new_row(entry, run.id, at) for entry in entries))

    def enter_rows(self, run: Run, rows: Iterable[NewRow]) -> Entered:
        """`enter` for the rows of a table, in a fraction of the time."""
        heads: _Heads = {}
        at = _stamp(self._now())
        orders = {count: _order_rows(run.id, at, count) for count in (1, _TOGETHER)}
        return self._enter(run, orders, (self._row(row, heads) for row in rows))

    def _enter(self, run: Run, orders: Mapping[int, str], rows: Iterator[tuple[Any, ...]]) -> Entered:
        """Enter rows by the statements that enter so many of them at once."""
        count, before = 0, self._count_entered(run)
        while written := self._enter_chunk(run, orders, itertools.islice(rows, _ENTERED)):
            count += written
        new = self._count_entered(run) - before
        return Entered(new, count - new)

    def _enter_chunk(self, run: Run, orders: Mapping[int, str], rows: Iterator[tuple[Any, ...]]) -> int:
        with self._turn, _unchecked(self._db), self._write("no") as db:
            if db.execute("SELECT 1 FROM runs WHERE id = ?", (run.id,)).fetchone() is None:
                raise InternalError(f"the ledger knows no run {run.id}")
            many, rest = max(orders), list[tuple[Any, ...]]()
            count = db.executemany(orders[many], _join_rows(rows, many, rest)).rowcount
            return count + (db.executemany(orders[1], rest).rowcount if rest else 0)

    def _count_entered(self, run: Run) -> int:
        with self._read() as db:
            return int(db.execute("SELECT count(*) FROM requests WHERE run = ?", (run.id,)).fetchone()[0])

    def _row(self, row: NewRow, heads: _Heads) -> tuple[Any, ...]:
        """The values of `_OWN` and `_COMMON`; the latter are kept in `heads`."""
        mould, name, position, line, identity, occurrence, row_id, prompt, own, fields, output = row
        body = mould.body.fill(own)
        told = mould.fields.fill(fields) if isinstance(fields, tuple) else self._json(fields)
        if self._secrets:
            body, told = self._text(body), self._text(told)
        if prompt is not None and (self._secrets or not prompt.isascii()):
            prompt = self._text(prompt)
        if self._secrets or not row_id.isascii():
            row_id = self._text(row_id)
        own_values = (name, identity, occurrence, position, row_id, line, prompt, body, told)
        return own_values + (heads.get((mould, output)) or self._head(mould, output, heads))

    def _head(
        self,
        mould: Mould,
        output: tuple[str | int, ...],
        heads: _Heads,
    ) -> tuple[Any, ...]:
        # Where every row has its own none is worth keeping.
        if len(heads) >= _PAGE:
            heads.clear()
        heads[mould, output] = head = (
            self._text(mould.file),
            mould.provider,
            _USER_INFO.sub("//***@", self._text(mould.base_url)),
            self._text(mould.model),
            mould.pictures_at_most,
            mould.worst_micro,
            mould.currency,
            mould.as_of,
            self._text(mould.output.fill(output)),
        )
        return head

    def _new_row(self, entry: NewRequest, run_id: str, at: str) -> tuple[Any, ...]:
        """The values of `_COLUMNS`."""
        mine = not entry.identity
        return (
            entry.id,
            run_id,
            run_id if mine else None,
            None if mine else run_id,
            entry.identity or None,
            entry.occurrence,
            at,
            entry.position,
            self._text(entry.row_id),
            self._text(entry.file),
            entry.line,
            entry.provider,
            _USER_INFO.sub("//***@", self._text(entry.base_url)),
            self._text(entry.model),
            None if entry.prompt is None else self._text(entry.prompt),
            self._json(entry.body),
            entry.fingerprint,
            entry.pictures_at_most,
            entry.worst_micro,
            entry.currency,
            entry.as_of,
            self._json(entry.fields),
            self._json(entry.output),
        )

    def claim(self, run: Run, ids: Sequence[str]) -> frozenset[str]:
        """Take queued rows in hand; those that could be had. Each goes to one run, whatever the rush."""
        taken = []
        with self._write("no") as db:
            for one in ids:
                claimed = "UPDATE requests SET owner = ? WHERE id = ? AND state = 'queued' AND owner IS NULL"
                taken += [one] if db.execute(claimed, (run.id, one)).rowcount else []
        return frozenset(taken)

    def take(self, run: Run, ids: Sequence[str]) -> tuple[Entry, ...]:
        """Take requests in hand, to recover or to send them again; returns those that could be had.

        Not those that a living run holds, and none that is `sent`: `settle_orphans` comes first.
        """
        free = [entry for entry in self._by_ids(ids) if entry.state != "sent" and self._is_free(entry.owner, run)]
        taken = []
        with self._write("no") as db:
            for entry in free:
                # Between the look and this write another run may have been quicker.
                changed = db.execute(
                    "UPDATE requests SET owner = ? WHERE id = ? AND owner IS ? AND state = ?",
                    (run.id, entry.id, entry.owner, entry.state),
                )
                taken += [entry.id] if changed.rowcount else []
            return self._by_ids(taken)

    def _is_free(self, owner: str | None, run: Run) -> bool:
        return owner is None or owner == run.id or not self._is_alive(owner)

    # Transitions. Each has committed and flushed when it returns.

    def mark_sent(
        self, request_id: str, *, attempt: int, token: str, again: bool = False, hold: Hold | None = None
    ) -> None:
        """The first byte is about to leave: committed and flushed when this returns, and if it raises, send nothing.

        With `hold` its worst cost is held in the same step.

        Called inside the wire's last gate. `token` is this attempt's client request id. A request that ended before
        (`unknown`, `failed`, `saved`, `resolved`) needs `again`: its old cost or doubt stays in the account, and a
        note says that it was sent once more. Raises `FileError` (billed no) for whatever the disk or SQLite says.
        """
        with self._write("no") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "sent", again=again)
            held = self._hold(db, row, hold) if hold else {}
            at = _stamp(self._now())
            sent_before = row["state"] in _AGAIN
            changes = {
                **held,
                "state": "sent",
                "billed": "unknown",
                "attempts": max(row["attempts"] + 1, attempt),
                "token": token,
                "sent_at": at,
                "charged_at": at,
                "payer": row["owner"],
            }
            if sent_before:
                changes |= _carry_over(row)
                said = f"after it was {row['state']}, billed {row['billed']}, token {row['token']}"
                self._note(db, request_id, "resent", said)
                # The rows of the earlier answer's pictures would pass for the next one's; the files stay.
                db.execute("DELETE FROM pictures WHERE request = ?", (request_id,))
            blank = ("answered_at", "finished_at", "error", "usage", "reply", "settled_micro", "billed_pictures")
            _update(db, request_id, {**changes, "task_id": "", "trace": "", **dict.fromkeys(blank)})

    def mark_queued(self, request_id: str, error: SeedreamError | None = None) -> None:
        """It was refused and not billed, or never left, and will be tried again; its reservation stays.

        One with doubts from earlier attempts becomes `unknown` instead, so that a crash before the next attempt does
        not make it look like new.
        """
        with self._write("no") as db:
            row = self._row_in_hand(db, request_id)
            changes = {"error": self._failure(error)}
            if row["doubts"] and row["state"] == "sent":
                to: State = "unknown"
                changes |= {"state": to, "billed": "unknown", "doubts": row["doubts"] - 1}
            else:
                to = "queued"
                changes |= {"state": to, "billed": "no"}
            _check_move(row, to)
            _update(db, request_id, changes)

    def mark_waiting(self, request_id: str, task_id: str, *, trace: str = "") -> None:
        """The provider took it as a task. Flushed with the task's id, so that a killed run polls instead of paying."""
        with self._write("yes") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "waiting")
            changes = {"state": "waiting", "task_id": self._text(task_id), "trace": self._text(trace) or row["trace"]}
            _update(db, request_id, {**changes, "reserved": 0, **dict.fromkeys(("reply", "error", "finished_at"))})

    def mark_ready(
        self,
        request_id: str,
        pictures: Sequence[PictureRow],
        *,
        usage: Mapping[str, Any] | None = None,
        billed_count: int | None = None,
        settled_micro: int | None = None,
        reply: Path | None = None,
        trace: str = "",
    ) -> None:
        """The answer is read: flushed with all its links before any download may start.

        `billed_count` is the provider's own count, None where it gave none; 0 means that nothing was billed. Pictures
        that are saved or handed out already (from a stream, or an earlier run) stay so.
        """
        with self._write("yes") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "ready")
            if (settled_micro or 0) > (row["worst_micro"] or 0):
                # It costs more than was held for it.
                self._sums.clear()
            db.executemany(_ANNOUNCE_PICTURE, [self._picture_row(request_id, picture) for picture in pictures])
            changes = {
                "state": "ready",
                "billed": "no" if billed_count == 0 else "yes",
                "billed_pictures": billed_count,
                "settled_micro": row["settled_micro"] if settled_micro is None else settled_micro,
                "usage": None if usage is None else self._json(usage),
                "answered_at": row["answered_at"] or _stamp(self._now()),
                "finished_at": None,
                "error": None,
                "reserved": 0,
                "reply": _store_path(reply),
                "trace": self._text(trace) or row["trace"],
            }
            _update(db, request_id, changes)

    def mark_picture(self, request_id: str, picture: PictureRow) -> None:
        """One picture got on: saved (call it after the file and its folder are flushed), handed, failed or expired.

        Legal while the request is out too, since a stream brings its pictures one by one.
        """
        with self._write("yes") as db:
            row = self._row_in_hand(db, request_id)
            if row["state"] not in _IN_FLIGHT | {"unknown"}:
                raise InternalError(f"request {request_id} is {row['state']} and can have no new picture")
            db.execute(_KEEP_PICTURE, self._picture_row(request_id, picture))

    def mark_saved(
        self, request_id: str, *, settled_micro: int | None = None, picture: PictureRow | None = None
    ) -> None:
        """Every picture is on disk, handed out, or for ever out of reach. Flushed; the kept reply may go after this.

        `picture` is the last one, written down in the same step. Raises `InternalError` while a picture is pending.
        """
        with self._write("yes") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "saved")
            if picture is not None:
                db.execute(_KEEP_PICTURE, self._picture_row(request_id, picture))
            if _pending(db, row):
                raise InternalError(f"request {request_id} has pictures that are not saved")
            settled = row["settled_micro"] if settled_micro is None else settled_micro
            changes = {"state": "saved", "settled_micro": settled, "finished_at": _stamp(self._now())}
            _update(db, request_id, {**changes, "error": None, "reply": None, "owner": None})

    def mark_missing(self, request_id: str, indexes: Sequence[int]) -> None:
        """Files of a saved request are gone: it is `ready` again with these pictures pending, to be fetched anew."""
        with self._write("yes") as db:
            _check_move(self._row_in_hand(db, request_id), "ready")
            marks = [(request_id, index) for index in indexes]
            db.executemany("UPDATE pictures SET state = 'pending' WHERE request = ? AND position = ?", marks)
            _update(db, request_id, {"state": "ready", "finished_at": None})

    def mark_failed(self, request_id: str, error: SeedreamError) -> None:
        """It ended without a picture for a known reason; `error.billed` says whether that was paid for.

        A `ready` request with pending pictures stays so, and only the error is written: what is paid can be fetched.
        """
        with self._write("unknown") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "failed")
            if _pending(db, row):
                _update(db, request_id, {"error": self._failure(error)})
                return
            changes = {"state": "failed", "billed": error.billed, "finished_at": _stamp(self._now()), "owner": None}
            _update(db, request_id, {**changes, "error": self._failure(error), "reserved": 0})

    def mark_unknown(self, request_id: str, error: SeedreamError, *, reply: Path | None = None) -> None:
        """Nobody can say whether it was billed. It is not sent again; a kept `reply` is what `recover` may read.

        A `ready` request with pending pictures stays so, as for `mark_failed`.
        """
        with self._write("unknown") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "unknown")
            if _pending(db, row):
                _update(db, request_id, {"error": self._failure(error)})
                return
            changes = {"state": "unknown", "billed": "unknown", "finished_at": _stamp(self._now()), "reserved": 0}
            kept = _store_path(reply) or row["reply"]
            _update(db, request_id, {**changes, "error": self._failure(error), "reply": kept})

    def resolve(self, ids: Sequence[str], paid: Resolution, *, by: str = "the user") -> None:
        """A person has looked: `paid` counts as paid and ends as `resolved`, `unpaid` is `queued` like new.

        A request that ended well after a doubtful attempt keeps its state; only the doubt is settled. All or none:
        raises `InputError` for ids that are unknown to the ledger, in a living run's hands, or not in doubt.
        """
        entries = self.check_resolvable(ids)
        self._sums.clear()
        with self._write("no") as db:
            for entry in entries.values():
                row = db.execute("SELECT * FROM requests WHERE id = ?", (entry.id,)).fetchone()
                _update(db, entry.id, _resolved(row, paid))
                self._note(db, entry.id, "resolved", f"{paid}, by {by}; it was {row['state']}")

    def check_resolvable(self, ids: Sequence[str]) -> dict[str, Entry]:
        """The requests of these ids. Raises `InputError` for those that `resolve` would refuse."""
        entries = {entry.id: entry for entry in self._by_ids(ids)}
        problems = [problem for one in ids if (problem := self._objection(one, entries.get(one)))]
        if problems:
            raise InputError(problems)
        return entries

    def _objection(self, request_id: str, entry: Entry | None) -> Problem | None:
        """Why a request cannot be resolved."""
        if entry is None:
            return Problem("id", f"the ledger knows no request {request_id}", "`seedream history` lists them")
        if entry.owner and self._is_alive(entry.owner):
            return Problem("id", f"{request_id} is in the hands of a run that lives", "wait for it")
        if entry.state == "sent":
            return Problem("id", f"{request_id} is not settled yet", "try again")
        if entry.state == "ready" and entry.billed == "unknown" and entry.reply and entry.reply.is_file():
            way = f"`seedream recover {request_id}` reads it"
            return Problem("id", f"the answer to {request_id} is here and was not read yet", way)
        if not entry.doubts and not _is_doubtful(entry.state, entry.billed):
            return Problem("id", f"{request_id} is {entry.status}: there is nothing to resolve")
        return None

    # Money.

    def _hold(self, db: sqlite3.Connection, row: sqlite3.Row, hold: Hold) -> dict[str, Any]:
        """Look at the budgets; what changes when the cost is held.

        Counted are what was paid, what others hold and what may have been paid. No price known passes no cap. Raises
        `BudgetError` that names the sums; nothing is held then.
        """
        if hold.micro is None and hold.caps.any:
            raise BudgetError(
                "the price of the next request is not known, so no budget holds it",
                hint="say what it costs under [prices] in the configuration file",
            )
        if row["reserved"] and hold.caps.any:
            # Its own earlier reservation must not count twice.
            _update(db, row["id"], {"reserved": 0})
        foreign = row["currency"] != hold.caps.currency
        self._check_caps(db, row["owner"], 0 if foreign else hold.micro or 0, hold.caps)
        if row["doubts"] or row["earlier_micro"] or row["billed"] != "no":
            # What it cost before is in this run's account from now on.
            self._sums.clear()
        changes = {"reserved": 1, "charged_at": _stamp(self._now()), "payer": row["owner"]}
        return changes if hold.micro is None else {**changes, "worst_micro": hold.micro}

    def book(self, key: str, micro: int | None, *, caps: Caps) -> None:
        """Hold, then settle, money of a request whose row is in another ledger, so that the day's budget sees it.

        A batch books its worst cost here under its request's id before it sends, and the settled cost after; 0 takes
        the booking back. A crash leaves the worst cost booked. Raises `BudgetError` as `mark_sent` does.
        """
        with self._write("no") as db:
            if micro == 0 or caps.daily is not None:
                # Its own earlier booking must not count twice.
                db.execute("DELETE FROM outlays WHERE key = ?", (key,))
            if caps.daily is None:
                # What it costs now may be more than was held for it.
                self._sums.clear()
            self._check_caps(db, None, micro or 0, Caps(None, caps.daily, caps.currency))
            if micro != 0:
                row = (key, _stamp(self._now()), micro, caps.currency)
                db.execute("INSERT OR REPLACE INTO outlays VALUES (?, ?, ?, ?)", row)

    def cut_bookings(self, runs: Collection[str], costs: Mapping[str, int]) -> None:
        """Take back what was booked for requests of these runs beyond what they cost after all, the newest first."""
        self._sums.clear()
        with self._write("no") as db:
            booked: dict[str, list[tuple[str, int]]] = {}
            for key, micro in db.execute("SELECT key, micro FROM outlays ORDER BY charged_at DESC, rowid DESC"):
                run, name = [*key.split(" "), ""][:2]
                if run in runs and name in costs:
                    booked.setdefault(name, []).append((key, micro or 0))
            for name, keys in booked.items():
                excess = sum(micro for _, micro in keys) - costs[name]
                for key, micro in keys if excess > 0 or not costs[name] else ():
                    if excess >= micro:
                        db.execute("DELETE FROM outlays WHERE key = ?", (key,))
                    elif excess > 0:
                        db.execute("UPDATE outlays SET micro = micro - ? WHERE key = ?", (excess, key))
                    excess -= min(excess, micro)

    def spent(
        self,
        *,
        run: str | None = None,
        since: dt.datetime | None = None,
        currency: str = "USD",
        has_row: Callable[[str], bool] | None = None,
    ) -> Spent:
        """What was paid, is held, and may have been paid: by one run, since a moment, for some rows, or at all."""
        with self._read() as db:
            return _spent(db, _Scope(currency, run, None if since is None else _stamp(since), has_row))

    def today(self) -> dt.datetime:
        """When the local day began, which the daily budget counts from."""
        return _midnight(self._now())

    def _check_caps(self, db: sqlite3.Connection, run_id: str | None, micro: int, caps: Caps) -> None:
        if caps.run is not None and run_id is not None:
            told = ("this run's budget", "only a higher --max-cost draws the rest; the same command starts anew")
            self._check_cap(db, _Scope(caps.currency, run=run_id), micro, caps.run, told)
        more = "the same command goes on only with a higher --max-cost"
        if caps.batch is not None:
            told = ("the budget of this batch, over all its runs,", more)
            self._check_cap(db, _Scope(caps.currency), micro, caps.batch, told)
        if caps.part is not None:
            told = ("this shard's part of the batch's budget", more)
            self._check_cap(db, _Scope(caps.currency, has_row=caps.has_row), micro, caps.part, told)
        if caps.daily is not None:
            told = ("today's budget", "raise `daily` under [budget], or go on tomorrow")
            self._check_cap(db, _Scope(caps.currency, since=_stamp(self.today())), micro, caps.daily, told)

    def _check_cap(
        self,
        db: sqlite3.Connection,
        of: _Scope,
        micro: int,
        cap: int,
        told: tuple[str, str],
    ) -> None:
        """Hold what is spent `of` a run, since a moment, of some rows or at all, against a cap.

        All rows are summed up only where the last sum, and all that was held since, may not leave room: what happens to
        a request that is held only makes it cost less. What may make the sum larger forgets it, and another process's
        writes make it worthless.
        """
        version = db.execute("PRAGMA data_version").fetchone()[0]
        known, most = self._sums.get(of, (None, 0))
        if known != version or most + micro > cap:
            spent = _spent(db, of)
            _hold_cap(spent, micro, cap, *told)
            most = spent.total
        self._sums[of] = version, most + micro

    # Reading.

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
            conditions.append(
                "(instr(folded(prompt), ?) OR instr(folded(id), ?) OR instr(folded(row_id), ?) OR "
                "instr(folded(model), ?) OR EXISTS(SELECT 1 FROM pictures WHERE request = requests.id AND "
                "instr(folded(path), ?)))"
            )
            values += [text.casefold()] * 5
        for condition, value in (
            ("entered_at >= ?", None if since is None else _stamp(since)),
            ("entered_at < ?", None if until is None else _stamp(until)),
            ("provider = ?", provider),
            ("status = ?", status),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        with self._read():
            return self._select(f"{where} ORDER BY number DESC LIMIT ?", (*values, _most(limit)))

    def find(self, prefix: str) -> tuple[Entry, ...]:
        """The request of this id, all of the run of this id, or what a unique start of either, or a task id, means.

        Nothing where nothing is meant; raises `InputError` where a start is several runs'.
        """
        with self._read() as db:
            if not prefix:
                return ()
            exact = self._select(
                "WHERE id = :name OR run = :name OR payer = :name OR task_id = :name ORDER BY number", {"name": prefix}
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
            return self._select(within, span)

    def row(self, identity: str, occurrence: int) -> Entry | None:
        """The batch's row of this identity, where the ledger knows it."""
        with self._read():
            found = self._select("WHERE identity = ? AND occurrence = ?", (identity, occurrence))
        return found[0] if found else None

    def listed(self, run: Run, states: Iterable[State] = get_args(State)) -> Iterator[Entry]:
        """The rows of the run's table that are in one of these states, in its order; a chunk in memory at a time."""
        wanted = json.dumps(sorted(states))
        last = (-1, -1)
        while True:
            with self._read() as db:
                # A tie of positions is broken by the number, so no row is passed over or given twice.
                rows = db.execute(_LISTED, (run.id, *last, wanted, _PAGE)).fetchall()
                pictures = _pictures_of(db, [row["id"] for row in rows])
            if not rows:
                return
            last = (rows[-1]["position"], rows[-1]["number"])
            for row in rows:
                yield _entry(row, pictures.get(row["id"], ()))

    def drawn(self) -> Iterator[Entry]:
        """Requests with pictures on disk, in the order of their entering; a chunk in memory at a time."""
        last = -1
        while True:
            with self._read() as db:
                rows = db.execute(
                    "SELECT id, number FROM requests WHERE number > ? AND EXISTS(SELECT 1 FROM pictures "
                    "WHERE request = requests.id AND pictures.state = 'saved') ORDER BY number LIMIT ?",
                    (last, _PAGE),
                ).fetchall()
                entries = self._by_ids([row["id"] for row in rows])
            if not rows:
                return
            last = rows[-1]["number"]
            yield from entries

    def tally(self, run: Run) -> Tally:
        """How many rows of the run's table, or of its own requests, are in each state."""
        with self._read() as db:
            rows = db.execute(
                "SELECT state, count(*) FROM requests WHERE coalesce(listed, run) = ? GROUP BY state", (run.id,)
            )
            return Tally(**dict(rows.fetchall()))

    def forecast(self, run: Run) -> Forecast:
        """What the queued rows of the run's table may come to."""
        with self._read() as db:
            row = db.execute(
                "SELECT count(*), coalesce(sum(pictures_at_most), 0), coalesce(sum(worst_micro), 0), "
                "count(*) - count(worst_micro) FROM requests WHERE listed = ? AND state = 'queued' AND owner IS NULL",
                (run.id,),
            ).fetchone()
        return Forecast(*row)

    def count_single(self, run: Run, step: int) -> int:
        """How many queued requests of the run's table are all that their rows ask for.

        A row's requests stand at positions that follow each other, from a multiple of `step` on.
        """
        with self._read() as db:
            return int(db.execute(f"SELECT count(*) {_QUEUED} AND {_SINGLE}", (run.id, step)).fetchone()[0])

    def queued(self, run: Run, step: int, *, single: bool) -> Iterator[Queued]:
        """The queued requests of the run's table, in its order, of rows with one request or of the others."""
        last, which = -1, _SINGLE if single else f"NOT ({_SINGLE})"
        while True:
            with self._read() as db:
                rows = db.execute(
                    f"SELECT position, pictures_at_most, worst_micro {_QUEUED} AND {which} AND position > ? "
                    "ORDER BY position LIMIT ?",
                    (run.id, step, last, _CHUNK),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from itertools.starmap(Queued, rows)

    def saved(self, run: Run) -> Iterator[Saved]:
        """The saved requests of the run's table, in its order, as far as it takes to see whether all is there."""
        last = (-1, -1)
        while True:
            with self._read() as db:
                rows = db.execute(_SAVED, (run.id, *last, _PAGE)).fetchall()
            if not rows:
                return
            last = tuple(rows[-1][:2])
            for (position, _, name), group in itertools.groupby(rows, key=lambda row: (row[0], row[1], row[2])):
                yield Saved(name, position, tuple(tuple(row[3:6]) for row in group if row[3] is not None))

    def entries(self, ids: Sequence[str]) -> tuple[Entry, ...]:
        """The requests of these ids in their order; those that are not there are left out."""
        return self._by_ids(ids)

    def unsent(self, run: Run) -> Iterator[Unsent]:
        """The queued rows of the run's table, in its order; a chunk in memory at a time."""
        last = (-1, -1)
        while True:
            with self._read() as db:
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

    def is_listed(self, run: Run, request_id: str) -> bool:
        """Whether a request belongs to a row of the run's table."""
        with self._read() as db:
            found = db.execute("SELECT 1 FROM requests WHERE id = ? AND listed = ?", (request_id, run.id)).fetchone()
        return found is not None

    def unlisted(self, run: Run) -> Iterator[tuple[str, str, int]]:
        """Id, row's id and position of the batch's rows that the run's table has no more, oldest first."""
        with self._read() as db:
            rows = db.execute(
                "SELECT id, row_id, position FROM requests WHERE identity IS NOT NULL AND listed IS NOT ? "
                "ORDER BY number",
                (run.id,),
            ).fetchall()
        for row in rows:
            yield row["id"], row["row_id"], row["position"]

    def copy_to(self, path: Path) -> None:
        """Write a copy of the whole ledger to a new file, beside whatever else happens to it."""
        with self._read() as db, contextlib.closing(sqlite3.connect(path)) as copy:
            db.backup(copy)

    def absorb(self, other: Path, moved: Sequence[tuple[str, int, Path]] = ()) -> int:
        """Take over all that another ledger knows, of a version not newer than this; the rows that were new here.

        What both know stays as it is here, except that a row gives way which is only queued here, or which went on
        over there. `moved` are pictures that have another name here. Nobody else may have the other ledger in hand:
        hold its batch first.
        """
        with self._turn:
            try:
                self._db.execute("ATTACH DATABASE ? AS other", (str(other.absolute()),))
            except sqlite3.Error as error:
                raise self._explain(error, "no") from error
            try:
                with self._write("no") as db:
                    self._sums.clear()
                    new = _absorb(db)
                    names = [(_store_path(path), request, index) for request, index, path in moved]
                    db.executemany("UPDATE main.pictures SET path = ? WHERE request = ? AND position = ?", names)
                    return new
            finally:
                self._db.execute("DETACH DATABASE other")

    def unsaved(self) -> tuple[Entry, ...]:
        """What `recover` takes: paid and not saved, open tasks, unread replies. Not what a living run works on."""
        with self._read():
            found = self._select(
                "WHERE state IN ('waiting', 'ready') OR (state = 'unknown' AND (reply IS NOT NULL OR EXISTS("
                "SELECT 1 FROM pictures WHERE request = requests.id AND pictures.state = 'pending'))) ORDER BY number"
            )
        alive = {owner for owner in {entry.owner for entry in found} if owner and self._is_alive(owner)}
        return tuple(entry for entry in found if entry.owner not in alive)

    def askable(self) -> tuple[Entry, ...]:
        """Requests of which an image was handed out as a link, or its link called expired: it may be asked again."""
        with self._read():
            return self._select(
                "WHERE state = 'saved' AND EXISTS(SELECT 1 FROM pictures WHERE request = requests.id "
                "AND pictures.state IN ('expired', 'handed') AND link <> '' AND path IS NULL) ORDER BY number"
            )

    def reusable(self, fingerprint: str, *, limit: int = 100) -> tuple[Entry, ...]:
        """Of the last `limit` requests of this fingerprint those whose pictures were all saved, newest first.

        The caller looks whether the files are still there.
        """
        with self._read():
            found = self._select(
                "WHERE fingerprint = ? AND state = 'saved' ORDER BY number DESC LIMIT ?", (fingerprint, limit)
            )
        whole = (entry for entry in found if entry.pictures)
        return tuple(entry for entry in whole if all(p.state == "saved" and p.path for p in entry.pictures))

    def notes(self, request_id: str) -> tuple[Note, ...]:
        """What was done to a request beside its own way, oldest first."""
        with self._read() as db:
            rows = db.execute("SELECT * FROM notes WHERE request = ? ORDER BY number", (request_id,)).fetchall()
        return tuple(_note_of(row) for row in rows)

    def note(self, request_id: str, what: str, detail: str = "") -> None:
        """Write down that something was done to a request, such as `recovered`."""
        with self._write("yes") as db:
            self._note(db, request_id, what, detail)

    def purge(self, *, before: dt.datetime | None, force: bool = False, kept_runs: Sequence[str] = ()) -> Purged:
        """Remove requests entered before a moment (None: all), with their pictures' rows, notes and empty runs.

        Those that are unsaved, unknown, in doubt or in flight stay unless `force`; those of a living run stay always.
        Batches among `kept_runs` stay too: by them their folders are known, where something may be left to fetch.
        Today's money stays in the day's budget. What was removed is overwritten in the file, not only unlinked.
        A batch whose saved rows are purged pays for them again.
        """
        limit = "9999" if before is None else _stamp(before)
        with self._read() as db:
            owners = db.execute(
                "SELECT owner FROM requests WHERE owner IS NOT NULL UNION SELECT id FROM runs WHERE finished_at IS NULL"
            ).fetchall()
        alive = json.dumps([row[0] for row in owners if self._is_alive(row[0])])
        with self._write("no") as db:
            picked = _pick_purged(db, limit, alive, force=force)
            asked = db.execute("SELECT count(*) FROM requests WHERE entered_at < ?", (limit,)).fetchone()[0]
            self._keep_outlay(db)
            db.execute("DELETE FROM requests WHERE number IN (SELECT number FROM purged)")
            db.execute(
                "DELETE FROM runs WHERE started_at < ? AND id NOT IN (SELECT value FROM json_each(?) "
                "UNION SELECT value FROM json_each(?) UNION SELECT run FROM requests "
                "UNION SELECT owner FROM requests WHERE owner IS NOT NULL "
                "UNION SELECT listed FROM requests WHERE listed IS NOT NULL "
                "UNION SELECT payer FROM requests WHERE payer IS NOT NULL)",
                (limit, alive, json.dumps(list(kept_runs))),
            )
            if picked:
                self._note(db, None, "purged", f"{picked} requests")
        with self._read() as db:
            # The write-ahead log still holds the removed rows until it is written back and cut.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return Purged(picked, asked - picked)

    def _keep_outlay(self, db: sqlite3.Connection) -> None:
        """Keep the sum of what is purged and was charged today: a purge must not refill the day's budget."""
        today, at = _stamp(self.today()), _stamp(self._now())
        sums = db.execute(
            f"SELECT currency, sum({_PAID} + {_POSSIBLE}) AS micro FROM requests "  # noqa: S608 -- constants
            "WHERE number IN (SELECT number FROM purged) AND charged_at >= ? GROUP BY currency",
            (today,),
        ).fetchall()
        rows = [(f"purged {at} {row['currency']}", at, row["micro"], row["currency"]) for row in sums if row["micro"]]
        db.executemany("INSERT OR REPLACE INTO outlays VALUES (?, ?, ?, ?)", rows)

    # What all of them stand on.

    @contextlib.contextmanager
    def together(self, stake: Billed) -> Iterator[None]:
        """All that is written in the block in one transaction, flushed once when it ends. Where the block raises,
        nothing of it was written. `stake` is what a failure to flush leaves in doubt.
        """
        with self._write(stake):
            self._is_grouped = True
            try:
                yield
            finally:
                self._is_grouped = False

    @contextlib.contextmanager
    def _write(self, stake: Billed) -> Iterator[sqlite3.Connection]:
        """One transaction, flushed when the block ends. `stake` is what its failure leaves in doubt."""
        with self._turn:
            try:
                # Inside a group the group's own transaction is the one that is flushed.
                with contextlib.nullcontext() if self._is_grouped else _transaction(self._db):
                    yield self._db
            except sqlite3.Error as error:
                raise self._explain(error, stake) from error

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._turn:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise self._explain(error, "no") from error

    def _explain(self, error: sqlite3.Error, stake: Billed) -> SeedreamError:
        """What an error of SQLite means for the user."""
        return _explain(self.path, error, stake)

    def _row_in_hand(self, db: sqlite3.Connection, request_id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = db.execute(_IN_HAND, (request_id,)).fetchone()
        if row is None:
            raise InternalError(f"the ledger knows no request {request_id}")
        if row["owner"] not in self._held:
            raise InternalError(f"request {request_id} is not in the hands of this process")
        return row

    def _select(self, clause: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> tuple[Entry, ...]:
        rows = self._db.execute(f"{_ENTRIES} {clause}", values).fetchall()
        pictures = _pictures_of(self._db, [row["id"] for row in rows])
        return tuple(_entry(row, pictures.get(row["id"], ())) for row in rows)

    def _by_ids(self, ids: Sequence[str]) -> tuple[Entry, ...]:
        """The requests of these ids in their order; those that are not there are left out."""
        with self._read():
            found = self._select("WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),))
        known = {entry.id: entry for entry in found}
        return tuple(known[one] for one in dict.fromkeys(ids) if one in known)

    def _note(self, db: sqlite3.Connection, request_id: str | None, what: str, detail: str) -> None:
        row = (request_id, _stamp(self._now()), what, self._text(detail))
        db.execute("INSERT INTO notes(request, at, what, detail) VALUES (?, ?, ?, ?)", row)

    def _text(self, text: str) -> str:
        """Text as it may be stored: without secrets, and without half characters, which SQLite cannot take."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

    def _json(self, value: Mapping[str, Any]) -> str:
        # In ASCII, so that half a character comes back as it was.
        text = _ENCODER.encode(value)
        # A look at the text is cheaper than a walk through every value of every row.
        lower = text.lower()
        return self._text(_ENCODER.encode(_plain(value)) if any(word in lower for word in _SUSPECT) else text)

    def _failure(self, error: SeedreamError | None) -> str | None:
        if error is None:
            return None
        failure = Failure(
            error.kind,
            _AUTHORIZATION.sub(r"\1 ***", error.message),
            error.hint,
            str(getattr(error, "code", "")),
            str(getattr(error, "request_id", "")),
        )
        return self._json(_as_mapping(failure))

    def _picture_row(self, request_id: str, picture: PictureRow) -> dict[str, Any]:
        row: dict[str, Any] = {name: getattr(picture, name) for name in _PICTURE}
        row["request"] = request_id
        row["link"] = self._text(picture.link)
        row["path"] = _store_path(picture.path)
        row["error"] = None if picture.error is None else self._json(_as_mapping(picture.error))
        return row


def _absorb(db: sqlite3.Connection) -> int:
    """Copy the rows of the attached ledger `other`. Their owners are dead."""

    def copied(table: str, *blank: str) -> tuple[str, str]:
        names = [row["name"] for row in db.execute(f"PRAGMA main.table_info({table})")]
        names = [name for name in names if name != "number"]
        return ", ".join(names), ", ".join("NULL" if name in blank else name for name in names)

    # What gives way, or is not taken over, was paid all the same: the money of both folders adds up.
    outlay = f"INSERT OR REPLACE INTO main.outlays SELECT 'merged ' || id, charged_at, {_OUTLAY}, currency FROM"
    db.execute("INSERT OR IGNORE INTO main.outlays SELECT * FROM other.outlays")
    db.execute(
        f"{outlay} main.requests AS mine WHERE state = 'queued' AND charged_at IS NOT NULL AND {_OUTLAY} > 0 AND "  # noqa: S608
        "EXISTS(SELECT 1 FROM other.requests AS theirs WHERE theirs.identity = mine.identity "
        "AND theirs.occurrence = mine.occurrence AND theirs.state <> 'queued' AND theirs.id <> mine.id)"
    )
    # Rows refer to each other, so the order is that of the references.
    names, taken = copied("runs")
    db.execute(f"INSERT OR IGNORE INTO main.runs({names}) SELECT {taken} FROM other.runs")  # noqa: S608
    db.execute(
        "DELETE FROM main.requests WHERE state = 'queued' AND EXISTS(SELECT 1 FROM other.requests AS theirs "
        "WHERE theirs.identity = requests.identity AND theirs.occurrence = requests.occurrence "
        "AND theirs.state <> 'queued')"
    )
    # A shard that was run again after it was absorbed knows better; it holds all that was known here of its own rows.
    db.execute(
        "DELETE FROM main.requests WHERE state <> 'saved' AND EXISTS(SELECT 1 FROM other.requests AS theirs "
        "WHERE theirs.id = requests.id AND (theirs.attempts > requests.attempts OR "
        "theirs.attempts = requests.attempts AND theirs.state IN ('saved', 'resolved')))"
    )
    names, taken = copied("requests", "owner", "listed")
    before = int(db.execute("SELECT count(*) FROM main.requests").fetchone()[0])
    db.execute(f"INSERT OR IGNORE INTO main.requests({names}) SELECT {taken} FROM other.requests ORDER BY number")  # noqa: S608
    db.execute(
        f"{outlay} other.requests AS theirs WHERE charged_at IS NOT NULL AND {_OUTLAY} > 0 "  # noqa: S608
        "AND id NOT IN (SELECT id FROM main.requests)"
    )
    for table in ("pictures", "notes"):
        names, taken = copied(table)
        db.execute(
            f"INSERT OR IGNORE INTO main.{table}({names}) SELECT {taken} FROM other.{table} "  # noqa: S608
            f"WHERE request IN (SELECT id FROM main.requests) "
            f"AND request NOT IN (SELECT request FROM main.{table} WHERE request IS NOT NULL)"
        )
    return int(db.execute("SELECT count(*) FROM main.requests").fetchone()[0]) - before


def _spent(db: sqlite3.Connection, of: _Scope) -> Spent:
    currency = of.currency
    values = {"currency": currency, "run": of.run, "since": of.since}
    parts = ["payer = :run"] if of.run is not None else []
    parts += ["charged_at >= :since"] if of.since is not None else []
    if of.has_row is not None:
        db.create_function("in_part", 1, of.has_row, deterministic=True)
        parts += ["charged_at IS NOT NULL AND identity IS NOT NULL AND in_part(identity)"]
    where = f" WHERE {' AND '.join(parts)}" if parts else ""
    paid, reserved, possible, unpriced = db.execute(_MONEY + where, values).fetchone()
    if of.run is None and of.has_row is None:
        booked, unknown = db.execute(_BOOKED, values).fetchone()
        paid, unpriced = paid + booked, unpriced + unknown
    return Spent(paid, reserved, possible, unpriced, currency)


def _hold_cap(spent: Spent, micro: int, cap: int, name: str, hint: str) -> None:
    # What costs nothing passes a budget that is used up, too.
    if not micro or spent.total + micro <= cap:
        return
    sums = ((spent.paid, "spent"), (spent.reserved, "reserved"), (spent.possible, "possibly spent"))
    told = " and ".join(
        f"{_money(amount, spent.currency)} {word}" for amount, word in sums if amount or word == "spent"
    )
    raise BudgetError(
        f"the next request may cost up to {_money(micro, spent.currency)}, and {name} of "
        f"{_money(cap, spent.currency)} has {told}",
        hint=hint,
    )


def _money(micro: int, currency: str) -> str:
    """Micro-units as an amount: at least two decimals, more where it has them."""
    whole, _, rest = f"{micro / 1e6:.6f}".partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')} {currency}"


def _midnight(moment: dt.datetime) -> dt.datetime:
    """The start of the local day, also on a day on which the clocks are put forward or back."""
    day = moment.astimezone().date()
    return dt.datetime(day.year, day.month, day.day).astimezone()


def _pick_purged(db: sqlite3.Connection, limit: str, alive: str, *, force: bool) -> int:
    """Put the numbers of the requests to remove into the temporary table `purged`; returns how many."""
    db.execute("CREATE TEMP TABLE IF NOT EXISTS purged(number INTEGER PRIMARY KEY)")
    db.execute("DELETE FROM purged")
    return db.execute(_PICK_PURGED, (limit, alive, force)).rowcount


def _most(limit: int | None) -> int:
    """SQLite's word for no limit is -1."""
    return -1 if limit is None else limit
