"""The disk room for replies: what a provider answers is kept as it arrives, so that what was paid for is never lost.

A reply grows in `<id>.part`, whose room is reserved before the request is sent. Whole and flushed, it becomes
`<id>.reply` beside `<id>.meta.json`, and stays until all its images are saved. Images in base64 are read from
there piece by piece and never held in memory.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import BusyError, FileError, InternalError
from . import filesystem
from .filesystem import _disk_error
from .json_scan import _WINDOW, read

_META_MOST = 1 << 20

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A reply whose images are not all saved yet."""

    id: str
    path: Path
    bytes: int


class ReplyPart:
    """One reply as it arrives. Ends with `keep` or `drop`; a killed process leaves the part for `adopt`."""

    def __init__(self, folder: Path, job_id: str, reserve: int) -> None:
        self.path = _file(folder, job_id, "part")
        self.size = 0
        self._id = job_id
        self._reserve = reserve
        self._is_reserved = False
        self._descriptor = -1

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Adds bytes of the reply. Raises `FileError` (billed) where the disk refuses them."""
        rest = memoryview(chunk)
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except OSError as error:
                raise _disk_error("keep the reply in", self.path, error, billed=True) from error
            self.size += written
            rest = rest[written:]

    def reset(self) -> None:
        """Starts from empty for another attempt, with the room reserved again. Raises `FileError` (nothing sent).

        A reply that was kept meanwhile is put aside: it answers the attempt before, but may have been paid for.
        """
        if self._descriptor < 0:
            for remains in (self.path, self.path.with_suffix(".reply")):
                if os.path.lexists(remains):
                    _put_aside(remains)
            self._descriptor = _create(self.path)
        elif self._is_reserved and not self.size:
            return
        # Cut to nothing first: an old reply behind a shorter new one would make neither readable after a crash.
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.ftruncate(self._descriptor, 0)
        self.size = 0
        try:
            filesystem.take_room(self._descriptor, 0, self._reserve, self.path)
            self._is_reserved = True
        except OSError as error:
            self.drop()
            raise _disk_error(f"reserve {self._reserve / 1e6:.1f} MB in", self.path, error) from error

    def read(self) -> bytes:
        """What was written so far. Raises `FileError` (billed)."""
        try:
            if sys.platform != "win32":
                return os.pread(self._descriptor, self.size, 0)
            with self.path.open("rb") as file:
                return file.read(self.size)
        except OSError as error:
            raise _disk_error("read the reply in", self.path, error, billed=True) from error

    def flush(self) -> None:
        """What was written so far survives a power cut. Raises `FileError` (billed)."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise _disk_error("keep the reply in", self.path, error, billed=True) from error

    def keep(self, meta: Mapping[str, Any]) -> Path:
        """Flushes the reply and what is known of it (plain JSON, no secrets) and gives it its name, which it returns.

        The order holds against a power cut: bytes, then meta, then the name that says that both are whole.
        """
        final = self.path.with_suffix(".reply")
        try:
            os.ftruncate(self._descriptor, self.size)
            os.fsync(self._descriptor)
            _write_meta(self.path.parent, self._id, meta)
            self._name(final)
        except OSError as error:
            raise _disk_error("keep the reply in", self.path, error, billed=True) from error
        return final

    def _name(self, final: Path) -> None:
        if sys.platform == "win32":
            self.close()  # an open file cannot be renamed there
        # A name that may not outlive a power cut is no reason to give up a reply that is here.
        filesystem.replace(self.path, final, may_fail=True)
        self.close()

    def drop(self) -> None:
        """Nothing came, or nothing worth keeping: removes the part."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the part and leaves it where it is, as after a reply that was cut."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_reply_part(folder: Path, job_id: str, reserve: int) -> ReplyPart:
    """A new spool with `reserve` bytes of room, before anything is paid.

    The remains of an earlier attempt are put aside as `<id>.<n>.cut`: they may be all there is of a paid reply.
    Raises `FileError` (nothing was sent) without room, `BusyError` while a living process writes the same reply.
    """
    make_private(folder)
    reply_file = ReplyPart(folder, job_id, reserve)
    reply_file.reset()
    return reply_file


def _create(path: Path) -> int:
    try:
        descriptor = filesystem.create_locked(path)
    except OSError as error:
        raise _disk_error("reserve room in", path, error) from error
    filesystem.lock(descriptor)
    return descriptor


def sweep(folder: Path) -> None:
    """Put aside what dead processes left: empty parts go, a cut reply stays as `<id>.<n>.cut`. After `adopt`."""
    if not filesystem.is_own_folder(folder):
        return
    filesystem.sweep_parts(folder)
    for path in folder.glob("*.part"):
        with contextlib.suppress(BusyError, OSError):
            _put_aside(path)


def forget(folder: Path, job_id: str, *, asides: bool = True) -> None:
    """Removes a reply and its meta, once all its images are saved; and with `asides` what came of attempts before
    it, which is the only trace of them while they are in doubt.
    """
    if not filesystem.is_own_folder(folder):
        return
    # The reply goes first: a reply without its meta would look like one that nobody knows anything about.
    for suffix in ("reply", "meta.json", "plain"):
        _remove(_file(folder, job_id, suffix))
    for aside in _asides(_file(folder, job_id, "part")) if asides else ():
        if not _remove(aside):
            break


def _remove(path: Path) -> bool:
    """Whether there was such a file, which is gone now."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def list_kept(folder: Path) -> list[StoredReply]:
    """All kept replies, oldest first."""
    if not filesystem.is_own_folder(folder):
        return []
    found = [
        (path.lstat(), path)
        for path in folder.glob("*.reply")
        if _ID.fullmatch(path.stem) and filesystem.is_plain(path)
    ]
    found.sort(key=lambda pair: (pair[0].st_mtime_ns, pair[1].name))
    return [StoredReply(path.stem, path, stat.st_size) for stat, path in found]


def list_asides(folder: Path, job_id: str = "*") -> list[Path]:
    """What came of attempts and was put aside, of one request or of all."""
    found = folder.glob(f"{job_id}.*.cut") if filesystem.is_own_folder(folder) else ()
    return sorted(path for path in found if filesystem.is_plain(path))


def list_parts(folder: Path) -> list[str]:
    """The ids of replies that are on their way, or were when their process died."""
    found = folder.glob("*.part") if filesystem.is_own_folder(folder) else ()
    return sorted(path.stem for path in found if _ID.fullmatch(path.stem))


def load_meta(folder: Path, job_id: str) -> dict[str, Any]:
    """What `keep` was told of a reply; empty where there is none, as for an adopted one."""
    path = _file(folder, job_id, "meta.json")
    try:
        meta = json.loads(path.read_bytes()) if filesystem.is_plain(path) and path.lstat().st_size <= _META_MOST else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}


def adopt(folder: Path, job_id: str, *, limit: int) -> Path | None:
    """Keeps the part of a killed process where it holds a whole JSON reply or events of a stream; its path.

    None for anything else, and while a living process writes it. `limit` as for `load`; reserved room is cut off.
    """
    path = _file(folder, job_id, "part")
    try:
        descriptor = filesystem.open_own(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    except OSError:
        return None
    with os.fdopen(descriptor, "r+b") as file:
        if not filesystem.lock(file.fileno()):
            return None
        size = _end_of_text(file)
        if not _is_reply(path, limit, size):
            return None
        file.truncate(size)
        os.fsync(file.fileno())
    final = path.with_suffix(".reply")
    filesystem.replace(path, final, may_fail=True)
    return final


def _file(folder: Path, job_id: str, suffix: str) -> Path:
    if not _ID.fullmatch(job_id):
        raise InternalError(f"{job_id!r} cannot name a reply")
    return folder / f"{job_id}.{suffix}"


def make_private(folder: Path) -> None:
    """The folder of replies, for its owner alone, made where it is not there. Raises `FileError`."""
    try:
        filesystem.make_folder(folder)
        if sys.platform != "win32" and folder.lstat().st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise _disk_error("make the folder", folder, error) from error


def _put_aside(path: Path) -> None:
    """Frees the name that an earlier attempt left; an empty file is simply removed."""
    if not filesystem.is_plain(path):
        return
    with os.fdopen(filesystem.open_own(path, os.O_RDWR | getattr(os, "O_BINARY", 0)), "r+b") as file:
        if sys.platform != "win32" and not filesystem.lock(file.fileno()):
            raise BusyError(f"another run is writing {path}")
        size = _end_of_text(file)
        file.truncate(size)
    if size:
        path.replace(next(aside for aside in _asides(path) if not aside.exists()))
    else:
        path.unlink()


def _asides(path: Path) -> Iterator[Path]:
    """The names under which remains are put aside, which are used in this order."""
    return (path.with_suffix(f".{number}.cut") for number in itertools.count(1))


def _end_of_text(file: IO[bytes]) -> int:
    """The length without the zeros of room that was reserved and not written."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _WINDOW)
        file.seek(start)
        if text := file.read(end - start).rstrip(b"\0"):
            return start + len(text)
        end = start
    return 0


def _is_reply(path: Path, limit: int, size: int) -> bool:
    """Whether something whole is in these bytes: a JSON value, or an event of a stream. It was paid for."""
    try:
        # A bare number may be the start of a longer one; a bracket closes only when all is there.
        return any(isinstance(value, dict | list) for value in read(path, limit=limit, length=size).values)
    except (ValueError, FileError):
        return False


def _write_meta(folder: Path, job_id: str, meta: Mapping[str, Any]) -> None:
    # The name of the reply itself comes next, and flushes the folder of both.
    with filesystem.atomic_file(_file(folder, job_id, "meta.json"), flushes_name=False) as file:
        file.write(json.dumps(dict(meta), ensure_ascii=True, sort_keys=True).encode())
