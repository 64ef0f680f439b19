"""The file of a ledger: found, or created completely or not at all."""

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
from .run_lock import Lock, open_error

FILES = 8
"""File descriptors that a ledger needs: the database, its logs and locks, and temporary ones."""


def check_folder(folder: Path) -> None:
    """Raise `FileError` where the ledger's folder is a symlink, a file or another user's."""
    try:
        filesystem.check_folder(folder)
    except OSError as error:
        raise open_error(folder, error) from error


def exists(path: Path) -> bool:
    """Whether there is a ledger. Raises `FileError` where it or a log is a symlink, which SQLite would follow."""
    try:
        for log in logs(path):
            filesystem.check_file(log)
        return filesystem.check_file(path)
    except OSError as error:
        raise open_error(path, error) from error


def is_truncated(path: Path) -> bool:
    """Whether a full disk truncated the ledger before its first row, as earlier versions let happen.

    The missing pages are then in the WAL of the temporary name, and its own WAL is empty.
    """
    made_with, own = (path.with_name(f"{path.name}{end}") for end in (".new-wal", "-wal"))
    try:
        if not _size(made_with) or _size(own):
            return False
        with path.open("rb") as file:
            head = file.read(32)
    except OSError:
        return False
    # SQLite's header: page size and number of pages.
    return _size(path) < int.from_bytes(head[16:18]) * int.from_bytes(head[28:32])


def _size(path: Path) -> int:
    return path.lstat().st_size if path.exists() else 0


def create(path: Path, now: Callable[[], dt.datetime]) -> None:
    """Create a ledger under a temporary name, flush it, then rename it.

    So a crash leaves no empty file, which could not be told from a truncated ledger.
    """
    lock = Lock.acquire(path.with_name(f"{path.name}.lock"), wait=True)
    try:
        if exists(path):
            if not is_truncated(path):
                return
            path.replace(path.with_name(f"{path.name}.old"))
        _rename_logs(path)
        filesystem.replace(_build(path.with_name(f"{path.name}.new"), now), path)
    except (OSError, sqlite3.Error) as error:
        _remove_new(path)
        raise open_error(path, error) from error
    finally:
        if lock:
            lock.release()


def _remove_new(path: Path) -> None:
    """Delete the temporary file: on a full disk it would take up space."""
    new = path.with_name(f"{path.name}.new")
    for remains in (new, *logs(new)):
        with contextlib.suppress(OSError):
            remains.unlink(missing_ok=True)


def _build(new: Path, now: Callable[[], dt.datetime]) -> Path:
    """Create an empty ledger and close it.

    Not with `atomic_file`: SQLite opens the file by name and creates logs beside it. The name is constant, so that logs
    are found after a crash; the lock keeps other processes off.
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


def _rename_logs(path: Path) -> None:
    """Rename the logs of a ledger that was moved away: SQLite would apply them to the new one."""
    for log in logs(path):
        if log.exists():
            log.replace(log.with_name(f"{log.name}.old"))
