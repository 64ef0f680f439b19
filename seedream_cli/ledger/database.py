"""The open database: connection, transactions, and the errors of SQLite."""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import Billed, FileError, InternalError, SeedreamError
from ..storage import filesystem
from . import schema
from .integrity import damaged, refuse_foreign, refuse_invalid_rows, refuse_triggers
from .rows import Masking, to_stamp

_BUSY_S = 30.0


class Database:
    """The connection that the parts of a ledger share: one transaction at a time, from any thread.

    `now` returns aware times, `masked` removes secrets from values before they are stored.
    """

    def __init__(self, path: Path, *, now: Callable[[], dt.datetime], secrets: Sequence[str] = ()) -> None:
        self.path = path
        self.now = now
        self.masked = Masking(secrets)
        self.lock = threading.RLock()
        self._is_grouped = False
        try:
            self.connection = connect(path)
            self._bring_up_to_date()
        except sqlite3.Error as error:
            raise self.explain(error, "no") from error

    def _bring_up_to_date(self) -> None:
        try:
            refuse_foreign(self.connection, self.path)
            refuse_triggers(self.connection, self.path)
            newer = _applied(self.connection) - {name for name, _ in schema.MIGRATIONS}
            if newer:
                raise FileError(
                    f"{self.path} was written by a newer seedream ({', '.join(sorted(newer))})",
                    hint="use that version, or move the file away",
                )
            choose_journal(self.connection, self.path)
            migrate(self.connection, self.now)
        except BaseException:
            self.connection.close()
            raise

    def stamp(self) -> str:
        """The current time as stored."""
        return to_stamp(self.now())

    @contextlib.contextmanager
    def write(self, billed: Billed) -> Iterator[sqlite3.Connection]:
        """One transaction, flushed when the block ends. `billed` is set on the `FileError` where that fails."""
        with self.lock:
            try:
                # Inside `transaction` that one is committed.
                with contextlib.nullcontext() if self._is_grouped else _transaction(self.connection):
                    yield self.connection
            except sqlite3.Error as error:
                raise self.explain(error, billed) from error

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Read, uncommitted writes of this process included."""
        with self.lock:
            try:
                yield self.connection
            except sqlite3.Error as error:
                raise self.explain(error, "no") from error

    @contextlib.contextmanager
    def transaction(self, billed: Billed) -> Iterator[None]:
        """All writes of the block in one transaction, flushed once; rolled back where the block raises."""
        with self.write(billed):
            self._is_grouped = True
            try:
                yield
            finally:
                self._is_grouped = False

    def note(self, request_id: str | None, what: str, detail: str) -> None:
        """Insert a note in the open transaction."""
        row = (request_id, self.stamp(), what, self.masked.text(detail))
        self.connection.execute("INSERT INTO notes(request, at, what, detail) VALUES (?, ?, ?, ?)", row)

    def explain(self, error: sqlite3.Error, billed: Billed) -> SeedreamError:
        """A SQLite error as one for the user."""
        return _explain(self.path, error, billed)

    @property
    def journal(self) -> str:
        """The journal mode: "wal", or "truncate" on a network file system."""
        with self.read() as db:
            return str(db.execute(schema.JOURNAL).fetchone()[0])

    def check(self) -> tuple[str, ...]:
        """`quick_check` and `foreign_key_check`, for `doctor`; () for a sound file. Reads all of it."""
        try:
            with self.lock:
                found = [row[0] for row in self.connection.execute(schema.QUICK_CHECK) if row[0] != "ok"]
                loose = self.connection.execute(schema.FOREIGN_KEY_CHECK)
                found += [f"{row[0]} {row[1]} belongs to nothing" for row in loose]
        except sqlite3.Error as error:
            return (str(error),)
        return tuple(found)

    def refuse_invalid_rows(self) -> None:
        """`integrity.refuse_invalid_rows`. Raises `FileError`."""
        with self.read() as db:
            refuse_invalid_rows(db, self.path)

    def copy_to(self, path: Path) -> None:
        """Back up the whole ledger to a new file while it is in use."""
        with self.read() as db, contextlib.closing(sqlite3.connect(path)) as copy:
            db.backup(copy)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()


def connect(path: Path) -> sqlite3.Connection:
    """A connection with `schema.SETTINGS`. Does not create the file."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    db = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        for setting in schema.SETTINGS:
            db.execute(setting)
        db.create_function("folded", 1, _fold, deterministic=True)
    except BaseException:
        db.close()
        raise
    return db


def choose_journal(db: sqlite3.Connection, path: Path) -> None:
    """WAL, whose commit costs one flush; it needs shared memory, which no network file system has."""
    wanted = "truncate" if filesystem.is_remote(path) else "wal"
    if db.execute(schema.JOURNAL).fetchone()[0] == wanted:
        return
    # Where SQLite cannot use WAL it returns another mode.
    if db.execute(f"{schema.JOURNAL} = {wanted}").fetchone()[0] not in {"wal", "truncate"}:
        db.execute(f"{schema.JOURNAL} = truncate")


def migrate(db: sqlite3.Connection, now: Callable[[], dt.datetime]) -> None:
    """Run the migrations that the file does not list, each in one transaction with its record."""
    for name, statements in schema.MIGRATIONS:
        if name in _applied(db):
            continue
        with _transaction(db):
            # Another process may have run it since the check above.
            if name not in _applied(db):
                for statement in statements:
                    db.execute(statement)
                db.execute("INSERT INTO migrations VALUES (?, ?)", (name, to_stamp(now())))


def _applied(db: sqlite3.Connection) -> set[str]:
    if db.execute(schema.HAS_MIGRATIONS).fetchone() is None:
        return set()
    return {row[0] for row in db.execute("SELECT name FROM migrations")}


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute(schema.BEGIN)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has rolled back already.
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _fold(value: str | bytes | None) -> str:
    """Text for a search that ignores case, also outside ASCII (SQLite's own lower() does not)."""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value or "").casefold()


def _explain(path: Path, error: sqlite3.Error, billed: Billed) -> SeedreamError:
    """A SQLite error as one for the user, by its primary result code."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None or isinstance(error, sqlite3.IntegrityError):
        return InternalError(f"the ledger was used wrongly: {error}")
    primary = code & 0xFF
    if primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}:
        found = damaged(path, str(error))
    elif primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}:
        found = FileError(
            f"another process has kept the ledger {path} locked for {_BUSY_S:.0f} s", hint="stop it, and try again"
        )
    else:
        found = FileError(
            f"cannot write the ledger {path}: {str(error).lower()}", hint="make room there, or make it writable"
        )
    found.billed = billed
    return found
