"""The disk room for replies: what a provider answers is kept as it arrives, so that what was paid for is never lost.

A reply grows in `<id>.part`, whose room is reserved before the request is sent. Whole and flushed, it becomes
`<id>.reply` beside `<id>.meta.json`, and stays until all its pictures are saved. Pictures in base64 are read from
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

from . import files
from .documents import Document, read_document
from .errors import BusyError, FileError, InternalError
from .pictures import sniff
from .results import Blob
from .unpacking import Unpacker, is_plain

_WINDOW = 1 << 18
_META_MOST = 1 << 20
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


# --- keeping --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """A reply whose pictures are not all saved yet."""

    id: str
    path: Path
    bytes: int


class Spool:
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
            files.take_room(self._descriptor, 0, self._reserve, self.path)
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
        self.path.replace(final)
        _flush_folder(final.parent)
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


def open_spool(folder: Path, job_id: str, reserve: int) -> Spool:
    """A new spool with `reserve` bytes of room, before anything is paid.

    The remains of an earlier attempt are put aside as `<id>.<n>.cut`: they may be all there is of a paid reply.
    Raises `FileError` (nothing was sent) without room, `BusyError` while a living process writes the same reply.
    """
    make_private(folder)
    spool = Spool(folder, job_id, reserve)
    spool.reset()
    return spool


def _create(path: Path) -> int:
    try:
        descriptor = files.create_locked(path)
    except OSError as error:
        raise _disk_error("reserve room in", path, error) from error
    files.lock(descriptor)
    return descriptor


def sweep(folder: Path) -> None:
    """Put aside what dead processes left: empty parts go, a cut reply stays as `<id>.<n>.cut`. After `adopt`."""
    for path in folder.glob("*.part") if files.is_own_folder(folder) else ():
        with contextlib.suppress(BusyError, OSError):
            _put_aside(path)


def forget(folder: Path, job_id: str, *, asides: bool = True) -> None:
    """Removes a reply and its meta, once all its pictures are saved; and with `asides` what came of attempts before
    it, which is the only trace of them while they are in doubt.
    """
    if not files.is_own_folder(folder):
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


def list_kept(folder: Path) -> list[Kept]:
    """All kept replies, oldest first."""
    if not files.is_own_folder(folder):
        return []
    found = [
        (path.lstat(), path) for path in folder.glob("*.reply") if _ID.fullmatch(path.stem) and files.is_plain(path)
    ]
    found.sort(key=lambda pair: (pair[0].st_mtime_ns, pair[1].name))
    return [Kept(path.stem, path, stat.st_size) for stat, path in found]


def list_asides(folder: Path, job_id: str = "*") -> list[Path]:
    """What came of attempts and was put aside, of one request or of all."""
    found = folder.glob(f"{job_id}.*.cut") if files.is_own_folder(folder) else ()
    return sorted(path for path in found if files.is_plain(path))


def list_parts(folder: Path) -> list[str]:
    """The ids of replies that are on their way, or were when their process died."""
    found = folder.glob("*.part") if files.is_own_folder(folder) else ()
    return sorted(path.stem for path in found if _ID.fullmatch(path.stem))


def load_meta(folder: Path, job_id: str) -> dict[str, Any]:
    """What `keep` was told of a reply; empty where there is none, as for an adopted one."""
    path = _file(folder, job_id, "meta.json")
    try:
        meta = json.loads(path.read_bytes()) if files.is_plain(path) and path.lstat().st_size <= _META_MOST else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}


def adopt(folder: Path, job_id: str, *, limit: int) -> Path | None:
    """Keeps the part of a killed process where it holds a whole JSON reply or events of a stream; its path.

    None for anything else, and while a living process writes it. `limit` as for `load`; reserved room is cut off.
    """
    path = _file(folder, job_id, "part")
    try:
        descriptor = files.open_own(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    except OSError:
        return None
    with os.fdopen(descriptor, "r+b") as file:
        if not files.lock(file.fileno()):
            return None
        size = _end_of_text(file)
        if not _is_reply(path, limit, size):
            return None
        file.truncate(size)
        os.fsync(file.fileno())
    final = path.with_suffix(".reply")
    path.replace(final)
    _flush_folder(folder)
    return final


def _file(folder: Path, job_id: str, suffix: str) -> Path:
    if not _ID.fullmatch(job_id):
        raise InternalError(f"{job_id!r} cannot name a reply")
    return folder / f"{job_id}.{suffix}"


def make_private(folder: Path) -> None:
    """The folder of replies, for its owner alone, made where it is not there. Raises `FileError`."""
    try:
        files.make_folder(folder)
        if sys.platform != "win32" and folder.lstat().st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise _disk_error("make the folder", folder, error) from error


def _put_aside(path: Path) -> None:
    """Frees the name that an earlier attempt left; an empty file is simply removed."""
    if not files.is_plain(path):
        return
    with os.fdopen(files.open_own(path, os.O_RDWR | getattr(os, "O_BINARY", 0)), "r+b") as file:
        if sys.platform != "win32" and not files.lock(file.fileno()):
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
    final, part = _file(folder, job_id, "meta.json"), _file(folder, job_id, "meta.part")
    part.unlink(missing_ok=True)
    descriptor = files.create(part)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(dict(meta), ensure_ascii=True, sort_keys=True).encode())
        file.flush()
        os.fsync(descriptor)
    part.replace(final)


def _flush_folder(folder: Path) -> None:
    # A name that may not outlive a power cut is no reason to give up a reply that is here.
    with contextlib.suppress(OSError):
        files.flush_folder(folder)


def _disk_error(doing: str, path: Path, error: OSError, *, billed: bool = False) -> FileError:
    hint = "the reply is paid for: set that right before the next request" if billed else "nothing was sent"
    hint = f"{hint}; {error.way_out}" if isinstance(error, files.ForeignError) else hint
    return FileError(f"cannot {doing} {path}: {files.reason(error)}", hint=hint, billed="yes" if billed else "no")


# --- reading --------------------------------------------------------------------------------------------------------

_SHORT = 4096
_CUT_MOST = 1 << 20
"""Bytes of a string without an end that are looked at."""
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_\r\n\t"
_STARTS = (b"iVBORw0KGgo", b"/9j/", b"_9j_", b"UklGR", b"R0lGOD", b"SUkqA", b"TU0AK")
"""How base64 begins of the formats that a picture may have. Such a one may be broken by spaces too."""
DATA_PREFIX = re.compile(rb'data:[^"]{0,200}?;base64,', re.IGNORECASE)
_PREFIX_ROOM = 256


def read(path: Path, *, limit: int, length: int | None = None) -> Document:
    """What a reply holds, unpacked where it came packed; every base64 picture is left on disk as a `Blob`, so that
    memory does not grow with pictures.

    A picture is a string of more than 4096 characters that are all base64, perhaps behind a data URI's prefix, with
    "/" and line breaks as escapes; or the whole reply. `limit` is the most bytes of everything else that is read, and
    `length` how many of the file count. Raises `ValueError` where nothing can be read, `FileError` (billed) for the
    disk.
    """
    plain, flaw = _unpack(path, length)
    found: Document | None = None
    try:
        found = _read_plain(plain, limit, length if plain == path else None)
    except ValueError as error:
        raise ValueError(flaw or str(error)) from error
    finally:
        if plain != path and not (found and has_blob(found.values)):
            plain.unlink(missing_ok=True)
    return found


def _read_plain(path: Path, limit: int, length: int | None) -> Document:
    with path.open("rb", buffering=0) as file:
        end = file.seek(0, os.SEEK_END) if length is None else length
        file.seek(0)
        if sniff(file.read(min(64, end))):
            return Document((Blob(path, 0, end, is_raw=True),))
        # No provider can guess the token, so no string of its own is taken for a place in the file.
        token = os.urandom(16).hex()
        skeleton = _skeleton(_Window(file, end), token, limit)
    found = read_document(skeleton)
    return Document(tuple(_fill_in(value, token, path) for value in found.values), ended=found.ended)


def load(path: Path, *, limit: int) -> Any:
    """The first JSON value of a kept reply; as `read` otherwise."""
    return read(path, limit=limit).values[0]


def has_blob(value: Any) -> bool:
    """Whether a picture in it was left where it lies."""
    work = [value]
    while work:
        item = work.pop()
        if isinstance(item, Blob):
            return True
        if isinstance(item, dict):
            work += item.values()
        elif isinstance(item, list | tuple):
            work += item
    return False


def _unpack(path: Path, length: int | None) -> tuple[Path, str]:
    """The file that holds the reply as plain text, and why not all of it is there. Most replies are plain as they are;
    for others a file is made beside them, which has a bound.
    """
    with path.open("rb") as file:
        head = file.read(_WINDOW if length is None else min(_WINDOW, length))
        if is_plain(head) or sniff(head[:64]):
            return path, ""
        unpacker, plain = Unpacker(), path.with_suffix(".plain")
        try:
            plain.unlink(missing_ok=True)
            with os.fdopen(files.create(plain), "wb") as target:
                left = (file.seek(0, os.SEEK_END) if length is None else length) - len(head)
                file.seek(len(head))
                while head:
                    target.writelines(unpacker.take(head))
                    head = file.read(min(_WINDOW, left))
                    left -= len(head)
                target.writelines(unpacker.close())
        except OSError as error:
            with contextlib.suppress(OSError):
                plain.unlink(missing_ok=True)
            raise _disk_error("unpack the reply in", plain, error, billed=True) from error
    return plain, unpacker.flaw


class _Window:
    """A view that moves over the file: `at` gives the bytes from a place on, as far as the view reaches."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self._file = file
        self._end = end
        self._start = 0
        self._chunk = b""

    def at(self, position: int, room: int = 1) -> tuple[bytes, int]:
        """A chunk and the place of `position` in it, with `room` bytes behind that unless the file ends before."""
        inside = position - self._start
        if 0 <= inside <= len(self._chunk) - room or position >= self._end:
            return (self._chunk, inside) if position < self._end else (b"", 0)
        if inside < 0 or self._start + len(self._chunk) < self._end:
            self._file.seek(position)
            self._start, self._chunk = position, self._file.read(min(_WINDOW, self._end - position))
            return self._chunk, 0
        return self._chunk, inside


class _FullError(Exception):
    """As much is read as may be."""


def _skeleton(window: _Window, token: str, limit: int) -> bytearray:
    """The text with each picture's string replaced by "token:offset:length", as far as the limit goes."""
    out, position = bytearray(), 0
    with contextlib.suppress(_FullError):
        while True:
            chunk, start = window.at(position)
            if not chunk:
                break
            quote = chunk.find(b'"', start)
            stop = quote if quote >= 0 else len(chunk)
            _append(out, chunk[start:stop], limit)
            position += stop - start
            if quote >= 0:
                position = _take_string(out, window, position, token, limit)
    return out


def _take_string(out: bytearray, window: _Window, position: int, token: str, limit: int) -> int:
    """A string of the text, or its place in the file; where it ends."""
    end, is_base64 = _string_end(window, position + 1)
    if end < 0:
        # It is cut, or the quote is none: a reply's rest is not held in memory for that.
        _copy(out, window, position, position + _CUT_MOST, limit)
        raise _FullError
    size = end - position - 1
    if is_base64 and size > _SHORT:
        _append(out, f'"{token}:{position + 1}:{size}"'.encode(), limit)
    else:
        _copy(out, window, position, end + 1, limit)
    return end + 1


def _append(out: bytearray, piece: bytes, limit: int) -> None:
    out += piece[: max(0, limit - len(out))]
    if len(out) >= limit:
        raise _FullError


def _copy(out: bytearray, window: _Window, start: int, end: int, limit: int) -> None:
    while start < end:
        chunk, at = window.at(start)
        if not chunk:
            return
        piece = chunk[at : at + end - start]
        _append(out, piece, limit)
        start += len(piece)


def _string_end(window: _Window, position: int) -> tuple[int, bool]:
    """Where the string that begins at `position` has its closing quote (-1: nowhere), and whether it is all base64."""
    chunk, at = window.at(position, _PREFIX_ROOM)
    prefix = DATA_PREFIX.match(chunk, at)
    position += prefix.end() - at if prefix else 0
    chunk, at = window.at(position, _PREFIX_ROOM)
    start = chunk[at : at + 24].lstrip(b" \t\r\n\\")
    alphabet = _BASE64 + b" " if start.replace(b"\\", b"").startswith(_STARTS) else _BASE64
    pure, slashes = True, 0
    while True:
        chunk, at = window.at(position)
        if not chunk:
            return -1, False
        quote = chunk.find(b'"', at)
        piece = chunk[at : quote if quote >= 0 else len(chunk)]
        pure = pure and _is_base64(piece, alphabet)
        # A quote behind an odd number of backslashes belongs to the string; they may lie in the chunk before.
        tail = len(piece) - len(piece.rstrip(b"\\"))
        slashes = tail + (slashes if tail == len(piece) else 0)
        position += len(piece)
        if quote < 0:
            continue
        if slashes % 2 == 0:
            return position, pure
        pure, slashes, position = False, 0, position + 1


def _is_base64(piece: bytes, alphabet: bytes) -> bool:
    # Taking the alphabet away runs at several GB a second; what is left over can only be the escapes' backslashes.
    return not piece.translate(None, alphabet).strip(b"\\") and b"\\\\" not in piece


def _fill_in(value: Any, token: str, path: Path) -> Any:
    """`value` with a `Blob` for each placeholder. A list of work instead of recursion: nesting may be deep."""
    top = [value]
    work: list[Any] = [top]
    while work:
        holder = work.pop()
        for key, item in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if isinstance(key, str) and key.startswith(token):
                # No name is so long. Whatever it names is none of ours.
                del holder[key]
                continue
            if isinstance(item, str) and item.startswith(token):
                offset, length = item.split(":")[1:]
                holder[key] = Blob(path, int(offset), int(length))
            elif isinstance(item, dict | list):
                work.append(item)
    return top[0]
