"""The lock that a run holds while it lives, so that others know whether it died."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import BusyError, FileError, InternalError
from ..storage import filesystem


def make_folder(folder: Path, *, is_named: bool = False) -> None:
    """Make a folder of ours. One that the user named may lie behind a link that the user made."""
    try:
        if is_named:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            filesystem.make_folder(folder)
    except OSError as error:
        raise no_place(folder, error) from error


# --- locks ----------------------------------------------------------------------------------------------------------


class Lock:
    """An exclusive lock on a file, let go by the system when its process dies, however it dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @staticmethod
    def take(path: Path, *, wait: bool = False) -> Lock | None:
        """The lock, or None where another process holds it. Raises `FileError` where the disk has no locks."""
        descriptor = -1
        try:
            descriptor = filesystem.open_own(path, os.O_RDWR | os.O_CREAT)
            if filesystem.try_lock(descriptor, wait=wait):
                return Lock(path, descriptor)
        except OSError as error:
            raise no_place(path, error) from error
        os.close(descriptor)
        return None

    @staticmethod
    def is_free(path: Path) -> bool:
        """Whether nobody holds it: whoever did is dead. A lock that cannot be looked at counts as held."""
        try:
            descriptor = filesystem.open_own(path, os.O_RDWR)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        # Shared, so that two processes that look at once do not take each other for the owner.
        with os.fdopen(descriptor, "rb", buffering=0), contextlib.suppress(OSError):
            return filesystem.try_lock(descriptor, shared=True)
        return False

    def sign(self) -> None:
        """Write this process's number into the file, for the message that another one shows."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self, *, remove: bool = False) -> None:
        """Let go. With `remove` the file goes too, while it is still held where the system allows that."""
        if remove and sys.platform != "win32":
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        if remove and sys.platform == "win32":
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


class RunLocks:
    """The locks of runs in a folder: those of this process, and whether another's is held, whose run then lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Lock] = {}

    def take(self, run_id: str) -> Lock | None:
        """The lock of a run that is not this process's, to look after what it left; None where the run lives."""
        return None if run_id in self._held else Lock.take(self._path(run_id))

    @contextlib.contextmanager
    def hold(self, run_id: str) -> Iterator[None]:
        """Be the living run of this id. Raises `BusyError` where another process is."""
        lock = Lock.take(self._path(run_id))
        if lock is None:
            raise BusyError(f"run {run_id} is alive in another process")
        self._held[run_id] = lock
        try:
            yield
        finally:
            self._held.pop(run_id, lock).release(remove=True)

    def is_held(self, run_id: str | None) -> bool:
        """Whether it is a run of this process."""
        return run_id in self._held

    def is_alive(self, run_id: str) -> bool:
        """Whether the process of a run lives."""
        return run_id in self._held or not Lock.is_free(self._path(run_id))

    def list_left(self) -> list[str]:
        """The ids of which a file is there: of runs that live, or died."""
        return [file.stem for file in self._folder.glob("*.lock")]

    def release(self) -> None:
        """Let go of those of runs that were not ended."""
        for lock in self._held.values():
            lock.release()
        self._held.clear()

    def _path(self, run_id: str) -> Path:
        if not _ID.fullmatch(run_id):
            raise InternalError(f"{run_id!r} cannot name a run")
        make_folder(self._folder)
        return self._folder / f"{run_id}.lock"


_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


# --- what went wrong ------------------------------------------------------------------------------------------------


def no_place(path: Path, error: OSError | sqlite3.Error) -> FileError:
    reason = filesystem.reason(error) if isinstance(error, OSError) else str(error)
    is_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    is_full = is_full or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
    hint = "make room there" if is_full else "make the place writable"
    if isinstance(error, filesystem.ForeignError):
        # The name that is meant is the error's own: a log's, say.
        return FileError(f"cannot keep the ledger {error.filename}: {filesystem.reason(error)}", hint=error.way_out)
    return FileError(f"cannot keep the ledger {path}: {reason.lower()}", hint=hint)
