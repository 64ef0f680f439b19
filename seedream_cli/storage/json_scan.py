"""JSON from outside: read in bounded memory, its base64 images left on disk."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import IO, Any

from ..results import Base64Slice
from . import filesystem
from .filesystem import _disk_error
from .image_info import sniff
from .reply_document import Document, read_document
from .reply_encoding import Unpacker, is_plain

_WINDOW = 1 << 18


_SHORT = 4096

_CUT_MOST = 1 << 20
"""Bytes of a string without an end that are looked at."""

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_\r\n\t"

_STARTS = (b"iVBORw0KGgo", b"/9j/", b"_9j_", b"UklGR", b"R0lGOD", b"SUkqA", b"TU0AK")
"""How base64 begins of the formats that an image may have. Such a one may be broken by spaces too."""

DATA_PREFIX = re.compile(rb'data:[^"]{0,200}?;base64,', re.IGNORECASE)

_PREFIX_ROOM = 256


def read(path: Path, *, limit: int, length: int | None = None) -> Document:
    """What a reply holds, unpacked where it came packed; every base64 image is left on disk as a `Base64Slice`, so
    that memory does not grow with images.

    An image is a string of more than 4096 characters that are all base64, perhaps behind a data URI's prefix, with
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
            return Document((Base64Slice(path, 0, end, is_raw=True),))
        # No provider can guess the token, so no string of its own is taken for a place in the file.
        token = os.urandom(16).hex()
        skeleton = _skeleton(_Window(file, end), token, limit)
    found = read_document(skeleton)
    return Document(tuple(_fill_in(value, token, path) for value in found.values), ended=found.ended)


def load(path: Path, *, limit: int) -> Any:
    """The first JSON value of a kept reply; as `read` otherwise."""
    return read(path, limit=limit).values[0]


def has_blob(value: Any) -> bool:
    """Whether an image in it was left where it lies."""
    work = [value]
    while work:
        item = work.pop()
        if isinstance(item, Base64Slice):
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
            with os.fdopen(filesystem.create(plain), "wb") as target:
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
    """The text with each image's string replaced by "token:offset:length", as far as the limit goes."""
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
    """`value` with a `Base64Slice` for each placeholder. A list of work instead of recursion: nesting may be deep."""
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
                holder[key] = Base64Slice(path, int(offset), int(length))
            elif isinstance(item, dict | list):
                work.append(item)
    return top[0]
