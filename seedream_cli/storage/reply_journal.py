"""The journal of a run: what was answered lies here from before it is read until its links are in the ledger.

Most replies are a few hundred bytes of links and are needed for a few milliseconds, so they share one file of equal
places, whose room is taken before a request leaves. A place holds the token of the attempt, so that after a crash no
reply is taken for another attempt's. Whatever must be kept for longer moves to a file of its own (`reply_file`).
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Self

from ..errors import FileError
from . import filesystem, reply_file

PLACE = 1 << 16
"""Bytes of one place, its head included."""

_HEAD = struct.Struct(">8sII64s")
"""A mark, the length and the checksum (CRC-32) of what follows, and the token."""

_MARK = b"seedream"

MOST = PLACE - _HEAD.size
"""Bytes of the longest reply that a place takes."""


class Journal:
    """An open journal in `folder`, locked while its process lives. A context manager; closing removes it, unless a
    place in it is still needed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{os.urandom(6).hex()}.journal"
        reply_file.make_private(folder)
        # Those that an earlier run left something of have files of their own, which must be put aside first.
        self._remains = frozenset(path.name.partition(".")[0] for path in folder.iterdir())
        try:
            self._descriptor = filesystem.create_locked(self.path)
        except OSError as error:
            raise _no_room(self.path, error) from error
        filesystem.lock(self._descriptor)
        self._free: list[int] = []
        self._places = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        # A place that is not free may hold the only copy of what was paid for: the next run adopts it.
        if len(self._free) == self._places:
            self.path.unlink(missing_ok=True)

    def has_place_for(self, request_id: str) -> bool:
        """Whether its reply may come here: nothing of an earlier attempt lies about."""
        return request_id not in self._remains

    def take(self) -> int:
        """A place, its room on the disk taken. Raises `FileError` (nothing was sent)."""
        if self._free:
            return self._free.pop()
        try:
            filesystem.take_room(self._descriptor, self._places * PLACE, PLACE, self.path)
        except OSError as error:
            raise _no_room(self.path, error) from error
        self._places += 1
        return self._places - 1

    def write(self, place: int, token: str, body: bytes | bytearray) -> None:
        """Put a whole reply into its place, where it outlives this process. Raises `FileError` (billed)."""
        rest = memoryview(_HEAD.pack(_MARK, len(body), zlib.crc32(body), token.encode()) + body)
        offset = place * PLACE
        try:
            while rest:
                written = os.pwrite(self._descriptor, rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            hint = "the reply is paid for: set that right before the next request"
            message = f"cannot keep the reply in {self.path}: {filesystem.reason(error)}"
            raise FileError(message, hint=hint, billed="yes") from error

    def free(self, place: int) -> None:
        """What lies there is not needed any more."""
        self._free.append(place)


def is_possible() -> bool:
    """Whether this system can write at a place of a file."""
    return sys.platform != "win32"


def adopt(folder: Path, request_id: str, token: str) -> Path | None:
    """The reply to an attempt of a dead process, in a file of its own; None where none of its journals has it."""
    for path in folder.glob("*.journal") if token and filesystem.is_own_folder(folder) else ():
        with _dead(path) as descriptor:
            for body in _find(descriptor, token) if descriptor is not None else ():
                kept = reply_file.open_reply_part(folder, request_id, 0)
                kept.write(body)
                return kept.keep({})
    return None


def sweep(folder: Path, wanted: Collection[str]) -> None:
    """Remove the journals of dead processes, but those that hold a reply to an attempt whose token is `wanted`: another
    process may be about to adopt it.
    """
    for path in folder.glob("*.journal") if filesystem.is_own_folder(folder) else ():
        with _dead(path) as descriptor:
            if descriptor is not None and not any(any(_find(descriptor, token)) for token in wanted):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _dead(path: Path) -> Iterator[int | None]:
    """A journal to read, if its process is dead."""
    descriptor = -1
    try:
        with contextlib.suppress(OSError):
            descriptor = filesystem.open_own(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        yield descriptor if descriptor >= 0 and filesystem.lock(descriptor) else None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _find(descriptor: int, token: str) -> Iterator[bytes]:
    """The whole reply to the attempt of this token, if it lies there."""
    for offset in range(0, os.fstat(descriptor).st_size, PLACE):
        place = os.pread(descriptor, PLACE, offset)
        if len(place) < _HEAD.size:
            continue
        mark, length, checksum, name = _HEAD.unpack_from(place)
        body = place[_HEAD.size : _HEAD.size + length]
        if mark == _MARK and name.rstrip(b"\0") == token.encode() and zlib.crc32(body) == checksum:
            yield body


def _no_room(path: Path, error: OSError) -> FileError:
    return FileError(f"cannot reserve room in {path}: {filesystem.reason(error)}", hint="nothing was sent", billed="no")
