"""The file of a ledger: found, made whole or not at all, with its logs."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from ..storage import filesystem
from . import database, schema
from .run_lock import Lock, no_place

FILES = 8
"""How many files a ledger takes: the database with its logs and locks, and what is opened for a moment."""


def check_place(folder: Path) -> None:
    """Raise `FileError` where what is there is no folder of ours, in which a ledger would not even be found."""
    try:
        filesystem.check_folder(folder)
    except OSError as error:
        raise no_place(folder, error) from error


def is_there(path: Path) -> bool:
    """Whether there is a ledger. Neither it nor a log of it may be a link: SQLite follows them."""
    try:
        for log in logs(path):
            filesystem.check_file(log)
        return filesystem.check_file(path)
    except OSError as error:
        raise no_place(path, error) from error


def is_half_made(path: Path) -> bool:
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


def create(path: Path, now: Callable[[], dt.datetime]) -> None:
    """Give birth to a whole ledger or none: built under another name, flushed, then renamed.

    A file that a crash left empty could not be told from a ledger that was cut to nothing.
    """
    lock = Lock.take(path.with_name(f"{path.name}.lock"), wait=True)
    try:
        if is_there(path):
            if not is_half_made(path):
                return
            path.replace(path.with_name(f"{path.name}.old"))
        _put_aside_logs(path)
        filesystem.replace(_build(path.with_name(f"{path.name}.new"), now), path)
    except (OSError, sqlite3.Error) as error:
        _remove_new(path)
        raise no_place(path, error) from error
    finally:
        if lock:
            lock.release()


def _remove_new(path: Path) -> None:
    """What came of a ledger that could not be made takes no room from what may be made of the rest."""
    new = path.with_name(f"{path.name}.new")
    for remains in (new, *logs(new)):
        with contextlib.suppress(OSError):
            remains.unlink(missing_ok=True)


def _build(new: Path, now: Callable[[], dt.datetime]) -> Path:
    """A whole, closed, empty ledger in a new file.

    No `atomic_file`: SQLite opens it by its name and makes logs beside it, which are found again after a crash since
    the name is always the same. The lock on the ledger's creation holds others off.
    """
    for remains in (new, *logs(new)):
        remains.unlink(missing_ok=True)
    os.close(filesystem.create(new))
    with contextlib.closing(database.connect(new)) as db:
        for setting in schema.BUILDING:
            db.execute(setting)
        database.migrate(db, now)
        database.choose_journal(db, new)
    descriptor = os.open(new, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if any(log.exists() for log in logs(new)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
    return new


def logs(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))


def _put_aside_logs(path: Path) -> None:
    """Rename the logs of a ledger that was moved away: SQLite would play them into the new one."""
    for log in logs(path):
        if log.exists():
            log.replace(log.with_name(f"{log.name}.old"))
