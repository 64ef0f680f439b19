"""The file lock that a run holds while it lives, by which other processes know whether it died."""

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
    """Create a folder with mode 0700. Symlinks are refused unless the user named the folder. Raises `FileError`."""
    try:
        if is_named:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            filesystem.make_folder(folder)
    except OSError as error:
        raise open_error(folder, error) from error


# --- locks ------------------------------------------------------------------------------------------------------------


class Lock:
    """An exclusive lock on a file, which the kernel releases when the process dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @staticmethod
    def acquire(path: Path, *, wait: bool = False) -> Lock | None:
        """The lock, or None where another process holds it. Raises `FileError` where the file system has no locks."""
        descriptor = -1
        try:
            descriptor = filesystem.open_own(path, os.O_RDWR | os.O_CREAT)
            if filesystem.try_lock(descriptor, wait=wait):
                return Lock(path, descriptor)
        except OSError as error:
            raise open_error(path, error) from error
        os.close(descriptor)
        return None

    @staticmethod
    def is_free(path: Path) -> bool:
        """Whether no process holds it. A file that cannot be opened counts as held."""
        try:
            descriptor = filesystem.open_own(path, os.O_RDWR)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        # Shared, so that two processes that check at once do not take each other for the owner.
        with os.fdopen(descriptor, "rb", buffering=0), contextlib.suppress(OSError):
            return filesystem.try_lock(descriptor, shared=True)
        return False

    def write_pid(self) -> None:
        """Write the process id into the file, for another process's error message."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self, *, remove: bool = False) -> None:
        """Release; with `remove` also delete the file, while the lock is held where the system allows that."""
        if remove and sys.platform != "win32":
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        if remove and sys.platform == "win32":
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


class RunLocks:
    """The locks of runs in a folder, this process's and others'."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Lock] = {}

    def acquire(self, run_id: str) -> Lock | None:
        """The lock of a dead run, to recover its requests; None where the run lives."""
        return None if run_id in self._held else Lock.acquire(self._path(run_id))

    @contextlib.contextmanager
    def hold(self, run_id: str) -> Iterator[None]:
        """Hold the lock of this run. Raises `BusyError` where another process does."""
        lock = Lock.acquire(self._path(run_id))
        if lock is None:
            raise BusyError(f"run {run_id} is alive in another process")
        self._held[run_id] = lock
        try:
            yield
        finally:
            self._held.pop(run_id, lock).release(remove=True)

    def is_held(self, run_id: str | None) -> bool:
        """Whether this process holds the run's lock."""
        return run_id in self._held

    def is_alive(self, run_id: str) -> bool:
        """Whether a process holds the run's lock."""
        return run_id in self._held or not Lock.is_free(self._path(run_id))

    def list_ids(self) -> list[str]:
        """The ids of all lock files: of runs that live, or died."""
        return [file.stem for file in self._folder.glob("*.lock")]

    def release(self) -> None:
        """Release the locks of runs that were not ended."""
        for lock in self._held.values():
            lock.release()
        self._held.clear()

    def _path(self, run_id: str) -> Path:
        if not _ID.fullmatch(run_id):
            raise InternalError(f"{run_id!r} cannot name a run")
        make_folder(self._folder)
        return self._folder / f"{run_id}.lock"


_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


# --- errors -----------------------------------------------------------------------------------------------------------


def open_error(path: Path, error: OSError | sqlite3.Error) -> FileError:
    reason = filesystem.reason(error) if isinstance(error, OSError) else str(error)
    is_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    is_full = is_full or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
    hint = "make room there" if is_full else "make the place writable"
    if isinstance(error, filesystem.ForeignError):
        # The error names the file, perhaps a log.
        return FileError(f"cannot keep the ledger {error.filename}: {filesystem.reason(error)}", hint=error.way_out)
    return FileError(f"cannot keep the ledger {path}: {reason.lower()}", hint=hint)
