"""The SQLite file: created, opened, migrated, its transactions and its errors."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import Billed, FileError, InternalError, SeedreamError
from ..storage import filesystem
from ..storage.filesystem import _flush_folder
from .run_lock import _Lock, _no_place
from .schema import _APPLICATION, MIGRATIONS

_BUSY_S = 30.0


_FILES = 8
"""How many files a ledger takes: the database with its logs and locks, and what is opened for a moment."""


def check_place(folder: Path) -> None:
    """Raise `FileError` where what is there is no folder of ours, in which a ledger would not even be found."""
    try:
        filesystem.check_folder(folder)
    except OSError as error:
        raise _no_place(folder, error) from error


def _is_there(path: Path) -> bool:
    """Whether there is a ledger. Neither it nor a log of it may be a link: SQLite follows them."""
    try:
        for log in _logs(path):
            filesystem.check_file(log)
        return filesystem.check_file(path)
    except OSError as error:
        raise _no_place(path, error) from error


def _is_half_made(path: Path) -> bool:
    """Whether a full disk cut the ledger short before it held a row, as earlier versions let happen.

    What is missing then lies in the log of the name it was made under, and its own log is empty.
    """
    made_with, own = (path.with_name(f"{path.name}{end}") for end in (".new-wal", "-wal"))
    try:
        if not _size(made_with) or _size(own):
            return False
        with path.open("rb") as file:
            head = file.read(32)
    except OSError:
        return False
    # A page's size and the number of pages, by SQLite's file format.
    return _size(path) < int.from_bytes(head[16:18]) * int.from_bytes(head[28:32])


def _size(path: Path) -> int:
    return path.lstat().st_size if path.exists() else 0


def _create(path: Path, now: Callable[[], dt.datetime]) -> None:
    """Give birth to a whole ledger or none: built under another name, flushed, then renamed.

    A file that a crash left empty could not be told from a ledger that was cut to nothing.
    """
    lock = _Lock.take(path.with_name(f"{path.name}.lock"), wait=True)
    try:
        if _is_there(path):
            if not _is_half_made(path):
                return
            path.replace(path.with_name(f"{path.name}.old"))
        _put_aside_logs(path)
        _build(path.with_name(f"{path.name}.new"), now).replace(path)
        _flush_folder(path.parent)
    except (OSError, sqlite3.Error) as error:
        _remove_new(path)
        raise _no_place(path, error) from error
    finally:
        if lock:
            lock.release()


def _remove_new(path: Path) -> None:
    """What came of a ledger that could not be made takes no room from what may be made of the rest."""
    new = path.with_name(f"{path.name}.new")
    for remains in (new, *_logs(new)):
        with contextlib.suppress(OSError):
            remains.unlink(missing_ok=True)


def _build(new: Path, now: Callable[[], dt.datetime]) -> Path:
    """A whole, closed, empty ledger in a new file."""
    for remains in (new, *_logs(new)):
        remains.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(_connect(new)) as db:
        # No log while it is made: what a full disk keeps a log's end from the file is told by nobody. The file has
        # another name until it is whole and flushed, so a crash costs nothing.
        db.execute("PRAGMA journal_mode = MEMORY")
        db.execute("PRAGMA synchronous = OFF")
        _migrate(db, now)
        _choose_journal(db, new)
    descriptor = os.open(new, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if any(log.exists() for log in _logs(new)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
    return new


def _logs(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))


def _put_aside_logs(path: Path) -> None:
    """Rename the logs of a ledger that was moved away: SQLite would play them into the new one."""
    for log in _logs(path):
        if log.exists():
            log.replace(log.with_name(f"{log.name}.old"))


def _refuse_foreign(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is no ledger. The file is not opened to look: closing it would drop SQLite's own locks on it."""
    # SQLite takes an empty file for a new database.
    if not path.stat().st_size:
        raise _damaged(path, "it is empty")
    if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise FileError(f"{path} is another program's database", hint="move it away, or choose another folder")


def _connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings of the contract. It never makes a file that is not there."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    db = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA trusted_schema = OFF")
        # What is purged must not stay readable in the file, nor what a row said before.
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA temp_store = MEMORY")
        # A large table is entered a third faster so; neither says anything about what is flushed.
        db.execute("PRAGMA cache_size = -4000")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")
        db.create_function("folded", 1, _fold, deterministic=True)
    except BaseException:
        db.close()
        raise
    return db


def _choose_journal(db: sqlite3.Connection, path: Path) -> None:
    """WAL, whose commit costs one flush; it needs memory shared between processes, which no network disk has."""
    wanted = "truncate" if _is_remote(path) else "wal"
    if db.execute("PRAGMA journal_mode").fetchone()[0] == wanted:
        return
    # Where SQLite itself finds that it cannot have WAL, it answers with another mode.
    if db.execute(f"PRAGMA journal_mode = {wanted}").fetchone()[0] not in {"wal", "truncate"}:
        db.execute("PRAGMA journal_mode = truncate")


_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "davfs"}


def _is_remote(path: Path) -> bool:
    """Whether the file lies on another machine. Unknown counts as local: SQLite refuses most of what it cannot do."""
    if sys.platform == "win32":
        return str(path.absolute()).startswith("\\\\")
    kind = _file_system(path.resolve())
    return kind in _REMOTE or kind.startswith("fuse.")


def _file_system(path: Path) -> str:
    """The type of the file system a path lies on, from Linux's table of mounts; "" elsewhere."""
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        place, found = line.split()[1:3]
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place)
        # Of mounts on one place the last one lies on top.
        if len(place) >= best and path.is_relative_to(place):
            best, kind = len(place), found
    return kind


def _migrate(db: sqlite3.Connection, now: Callable[[], dt.datetime]) -> None:
    """Run the migrations that the file does not record, each in one transaction with its record."""
    for name, statements in MIGRATIONS:
        if name in _applied(db):
            continue
        with _transaction(db):
            # Another process may have been quicker since the look above.
            if name not in _applied(db):
                for statement in statements:
                    db.execute(statement)
                db.execute("INSERT INTO migrations VALUES (?, ?)", (name, _stamp(now())))


def _applied(db: sqlite3.Connection) -> set[str]:
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'migrations'").fetchone() is None:
        return set()
    return {row[0] for row in db.execute("SELECT name FROM migrations")}


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """One write. IMMEDIATE, since a read that turns into a write fails at once beside another writer."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, so there may be nothing left to undo.
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _stamp(moment: dt.datetime) -> str:
    """A moment as text that sorts: always UTC, always of one length."""
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")


def _moment(stamp: str | None) -> dt.datetime | None:
    if stamp is None:
        return None
    moment = dt.datetime.fromisoformat(stamp)
    if not _FIRST_YEAR <= moment.year < dt.MAXYEAR:
        raise ValueError(f"{stamp} is no moment of ours")
    return moment


_FIRST_YEAR = 1970
"""What is earlier, or last of all, has no local time in some place, and was never written here."""


def _fold(value: str | bytes | None) -> str:
    """Text for a search in any case and any script."""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value or "").casefold()


def _damaged(path: Path, what: str) -> FileError:
    return FileError(
        f"the ledger {path} is damaged: {what}",
        hint="move it away with its -wal file, and a new one is begun; kept replies are untouched "
        "(`seedream recover`), and SQLite's own `.recover` saves most rows of a copy",
    )


def _explain(path: Path, error: sqlite3.Error, stake: Billed) -> SeedreamError:
    """What an error of SQLite means for the user, by the primary part of its code."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None or isinstance(error, sqlite3.IntegrityError):
        return InternalError(f"the ledger was used wrongly: {error}")
    primary = code & 0xFF
    if primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}:
        found = _damaged(path, str(error))
    elif primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}:
        found = FileError(
            f"another process has kept the ledger {path} locked for {_BUSY_S:.0f} s", hint="stop it, and try again"
        )
    else:
        found = FileError(
            f"cannot write the ledger {path}: {str(error).lower()}", hint="make room there, or make it writable"
        )
    found.billed = stake
    return found
