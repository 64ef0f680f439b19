"""Plain UTF-8 out of a reply's bytes, told by the bytes alone: no label of theirs is believed.

A reply may be compressed without saying so, be called compressed and be plain, come in the chunks of an upload, or in
UTF-16. What begins as text is text. Nothing is lost to a checksum, or to an end that is missing.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Iterator
from typing import Protocol

_STEP = 1 << 18
"""Bytes that come out at once at the most."""

_SLICE = 1024
"""Bytes that are undone at once: where they are damaged, what came before them is not lost."""

_HEAD = 1024
"""Bytes that tell what compressed ones hold."""

_NESTED_MOST = 3

_ROOM = 32 << 20

_EXPANSION = 20

_MOST = 1 << 30

_CHUNK_START = re.compile(rb"[0-9a-fA-F]{1,8}(?:[;\r]|$)")

_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,8})(?:;[!-~]{0,300})?\r\n")

_CHUNK_LINE_MOST = 320

_GZIP = b"\x1f\x8b\x08"

_FOREIGN = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4", b"\x1f\x9d": "compress"}

_MARKS = ((codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
          (codecs.BOM_UTF16_BE, "utf-16-be"))  # fmt: skip

_TEXT = frozenset(b"\t\n\r\x0b\x0c") | frozenset(range(0x20, 0x7F)) | frozenset(range(0xC2, 0xF5))


class _Coding(Protocol):
    def take(self, chunk: bytes) -> Iterator[bytes]:
        """What a chunk holds, in bounded steps. Raises ValueError where it is damaged."""


class Unpacker:
    """Hands out what a body holds, piece by piece, as it comes. At most 32 MiB or twenty times its size, and 1 GiB.

    `is_plain` says, once that is known, that the body is handed out as it is. `flaw` says why what came out is not all.
    """

    def __init__(self, *, label: str = "", depth: int = 0) -> None:
        self.is_plain: bool | None = None
        self.flaw = ""
        self._label = label.strip().lower()[:40]
        self._depth = depth
        self._head = b""
        self._coding: _Coding | None = None
        self._inside: Unpacker | None = None
        self._came = self._made = 0
        self._is_over = False

    def take(self, chunk: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """The next bytes of the body. To be run to its end."""
        self._came += len(chunk)
        if self.is_plain:
            yield chunk
        elif self.is_plain is None:
            self._head += bytes(chunk)
            if _is_enough(self._head):
                yield from self._decide()
        else:
            yield from self._undo(bytes(chunk))

    def close(self) -> Iterator[bytes | memoryview]:
        """The body is at its end."""
        if self.is_plain is None:
            yield from self._decide()
        if self._inside is not None:
            if isinstance(self._coding, _Characters):
                yield from self._inside.take(self._coding.end())
            yield from self._inside.close()
            self.flaw = self.flaw or self._inside.flaw

    def _decide(self) -> Iterator[bytes | memoryview]:
        head, self._head = self._head, b""
        self._coding = coding_of(head) if self._depth < _NESTED_MOST else None
        self.is_plain = self._coding is None
        if self._coding is None:
            self.flaw = "" if is_text(head) else _foreign(head, self._label)
            yield head
        else:
            self._inside = Unpacker(label=self._label, depth=self._depth + 1)
            yield from self._undo(head)

    def _undo(self, chunk: bytes) -> Iterator[bytes | memoryview]:
        assert self._coding is not None  # noqa: S101 - the caller has looked
        assert self._inside is not None  # noqa: S101 - made with it
        if self.flaw or self._is_over:
            return
        most = min(_MOST, max(_ROOM, _EXPANSION * self._came))
        try:
            for start in range(0, len(chunk), _SLICE):
                for piece in self._coding.take(chunk[start : start + _SLICE]):
                    self._made += len(piece)
                    if self._made > most:
                        self.flaw = f"it holds more than {most >> 20} MiB when it is unpacked"
                        return
                    yield from self._inside.take(piece)
        except _OverError:
            self._is_over = True
        except ValueError:
            self.flaw = "its compression is damaged"


def is_plain(head: bytes) -> bool:
    """Whether a body that begins with these bytes is text as it is."""
    return coding_of(head[:_HEAD]) is None and is_text(head)


def is_text(head: bytes) -> bool:
    """Whether these first bytes are text, as far as one can tell."""
    start = head[:64]
    return not start or (start[0] in _TEXT and all(byte in _TEXT or byte >= 0x80 for byte in start))


def _is_enough(head: bytes) -> bool:
    """Whether these first bytes tell what the body is: nobody is to wait for more of a text."""
    if len(head) < 4:
        return False
    if len(head) >= _HEAD:
        return True
    return is_text(head) and not _CHUNK_START.match(head) and not _is_zlib(head)


def _is_zlib(head: bytes) -> bool:
    return head[0] & 15 == 8 and int.from_bytes(head[:2], "big") % 31 == 0


def coding_of(head: bytes) -> _Coding | None:
    """What these first bytes are wrapped in; None where they are as they are meant, or nobody can tell."""
    if head.startswith(_GZIP):
        return _Gzip()
    line = _CHUNK_LINE.match(head)
    if line and _is_chunk(head, line):
        return _Chunks()
    for mark, name in _MARKS:
        if head.startswith(mark):
            return _Characters(name, len(mark))
    if len(head) >= 2 and 0 in head[:4] and (name := _wide(head[:4])):
        return _Characters(name, 0)
    if _is_zlib(head + b"\0\0") and _tells_text(head[2:]):
        return _Deflate(2)
    return None if is_text(head) or not _tells_text(head) else _Deflate(0)


def _is_chunk(head: bytes, line: re.Match[bytes]) -> bool:
    """Whether a chunk's line is one: so many bytes and then another line, or as many as are known."""
    end = line.end() + int(line[1], 16)
    return len(head) > line.end() and (end >= len(head) or head[end : end + 2] == b"\r\n")


def _wide(head: bytes) -> str:
    """The coding of a text in which each character has several bytes, by where its zeros are."""
    zeros = tuple(byte == 0 for byte in head)
    if len(zeros) == 4 and sum(zeros) == 3 and (not zeros[0] or not zeros[3]):
        return "utf-32-le" if not zeros[0] else "utf-32-be"
    if zeros[:2] in {(False, True), (True, False)} and zeros[2:4] in {(), zeros[:1], zeros[:2], (False, False)}:
        return "utf-16-le" if zeros[1] else "utf-16-be"
    return ""


def _tells_text(head: bytes) -> bool:
    """Whether bytes without a head of their own are deflated text."""
    try:
        inside = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, 64)
    except zlib.error:
        return False
    return len(inside) >= 8 and (is_text(inside) or inside.startswith(_GZIP))


def _foreign(head: bytes, label: str) -> str:
    """What to say of bytes that are no text and that nothing here undoes."""
    name = next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), label)
    name = "" if name in {"identity", "none", "utf-8"} else name
    return f"it is encoded as {name!r}, which cannot be undone here" if name else "it is no text"


class _Deflate:
    """Compressed bytes behind a head of known length. No checksum is looked at."""

    def __init__(self, head: int) -> None:
        self._head = head
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def take(self, chunk: bytes) -> Iterator[bytes]:
        """What a chunk holds."""
        rest, self._head = chunk[self._head :], max(0, self._head - len(chunk))
        yield from _inflate(self._inflater, rest)


class _Gzip:
    """One member after another (source: RFC 1952). What follows the last is not looked at, nor is any checksum."""

    def __init__(self) -> None:
        self._held = b""
        self._is_first = True
        self._inflater: zlib._Decompress | None = None

    def take(self, chunk: bytes) -> Iterator[bytes]:
        """What a chunk holds."""
        self._held += chunk
        while self._held:
            if self._inflater is None:
                start = _gzip_head(self._held) if self._is_first else _gzip_next(self._held)
                if start < 0:
                    return
                self._held = self._held[start:]
                self._inflater, self._is_first = zlib.decompressobj(-zlib.MAX_WBITS), False
            inflater, rest, self._held = self._inflater, self._held, b""
            yield from _inflate(inflater, rest)
            if not inflater.eof:
                return
            self._held, self._inflater = inflater.unused_data, None


def _inflate(inflater: zlib._Decompress, rest: bytes) -> Iterator[bytes]:
    try:
        while rest and not inflater.eof:
            yield inflater.decompress(rest, _STEP)
            rest = inflater.unconsumed_tail
        while not inflater.eof and (piece := inflater.decompress(b"", _STEP)):
            yield piece
    except zlib.error as error:
        raise ValueError(str(error)) from error


def _gzip_head(head: bytes) -> int:
    """How many bytes stand before a member's compressed ones; -1 while they are not all here."""
    if len(head) < 10:
        return -1
    flags, at = head[3], 10
    if flags & 4:
        if len(head) < at + 2:
            return -1
        at += 2 + int.from_bytes(head[at : at + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            end = head.find(b"\0", at)
            if end < 0:
                if len(head) > 1 << 16:
                    raise ValueError("a name without an end")
                return -1
            at = end + 1
    at += 2 if flags & 2 else 0
    return at if len(head) >= at else -1


def _gzip_next(held: bytes) -> int:
    """The same for a member that follows another, behind whose end stand eight bytes of checksum and length."""
    if not _GZIP.startswith(held[8:11]):
        raise _OverError
    start = _gzip_head(held[8:]) if len(held) > 8 else -1
    return start if start < 0 else start + 8


class _OverError(ValueError):
    """Nothing of the body follows."""


class _Characters:
    """UTF-16 or UTF-32 as UTF-8."""

    def __init__(self, name: str, head: int) -> None:
        self._head = head
        self._width = 4 if "32" in name else 2
        self._decoder = codecs.getincrementaldecoder(name)("replace")

    def take(self, chunk: bytes) -> Iterator[bytes]:
        """What a chunk holds."""
        rest, self._head = chunk[self._head :], max(0, self._head - len(chunk))
        yield self._decoder.decode(rest).encode("utf-8", "replace")

    def end(self) -> bytes:
        """The last character, whose zeros may have been taken for room that was never written."""
        held, _ = self._decoder.getstate()
        return self._decoder.decode(b"\0" * (-len(held) % self._width)).encode() if held else b""


class _Chunks:
    """Chunks, each behind a line with its length and perhaps its signature (source: SigV4, chunked upload)."""

    def __init__(self) -> None:
        self._held = b""
        self._left = 0

    def take(self, chunk: bytes) -> Iterator[bytes]:
        """What a chunk holds."""
        self._held += chunk
        while self._held:
            if self._left:
                piece, self._held = self._held[: self._left], self._held[self._left :]
                self._left -= len(piece)
                yield piece
                continue
            at = 2 if self._held.startswith(b"\r\n") else 0
            line = _CHUNK_LINE.match(self._held, at)
            if line is None:
                if len(self._held) > _CHUNK_LINE_MOST:
                    raise ValueError("a chunk without a length")
                return
            self._left, self._held = int(line[1], 16), self._held[line.end() :]
            if not self._left:
                raise _OverError
