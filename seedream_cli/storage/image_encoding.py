"""An image's own bytes out of what a store wrapped them in, told by the bytes: no label is believed.

Stores and the proxies before them compress what should not be, call plain bytes compressed, or pass on the framing of
an upload (`aws-chunked`). What begins as an image is one and goes through untouched.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from ..errors import LinkError
from .image_info import describe, sniff

_NESTED_MOST = 3

_HEAD = 1024
"""Enough for the tables at the start of any compressed stream, so that the first bytes inside can be seen."""

_STEP = 1 << 18

_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,8})(?:;[!-~]{0,300})?\r\n")

_LONGEST_LINE = 400

Write = Callable[[bytes | memoryview], None]


class _Coding(Protocol):
    def take(self, chunk: bytes | memoryview) -> Iterator[bytes]:
        """What a chunk holds, in bounded steps."""


class Unwrapper:
    """Hands a body on to `write`, unwrapped where it is wrapped. At most `limit` bytes come out."""

    def __init__(self, write: Write, limit: int, *, depth: int = 0) -> None:
        self.size = 0
        self._write = write
        self._limit = limit
        self._depth = depth
        self._head = bytearray()
        self._coding: _Coding | None = None
        self._inside: Unwrapper | None = None
        self._is_plain = False

    def take(self, chunk: bytes | memoryview) -> None:
        """The next bytes of the body. Raises LinkError where they hold too much, or are damaged."""
        if self._is_plain:
            self._hand_on(chunk)
        elif self._coding is not None:
            self._undo(chunk)
        elif not self._head and sniff(bytes(chunk[:64])):
            self._is_plain = True
            self._hand_on(chunk)
        else:
            self._head += chunk
            if sniff(bytes(self._head[:64])) or len(self._head) >= _HEAD:
                self._decide()

    def close(self) -> int:
        """The body is at its end; how many bytes came out."""
        if not self._is_plain and self._coding is None:
            self._decide()
        return self._inside.close() if self._inside is not None else self.size

    def _decide(self) -> None:
        head, self._head = bytes(self._head), bytearray()
        coding = None if sniff(head) or self._depth >= _NESTED_MOST else _coding_of(head)
        if coding is None:
            if self._depth and not sniff(head):
                raise LinkError(f"not an image but {describe(head)}", retryable=True)
            self._is_plain = True
            self._hand_on(head)
            return
        self._coding = coding
        self._inside = Unwrapper(self._write, self._limit, depth=self._depth + 1)
        self._undo(head)

    def _undo(self, chunk: bytes | memoryview) -> None:
        assert self._coding is not None  # noqa: S101 - the caller has looked
        assert self._inside is not None  # noqa: S101 - made with it
        try:
            for piece in self._coding.take(chunk):
                self._inside.take(piece)
        except zlib.error as error:
            raise LinkError("the image came compressed, and its compression is damaged", retryable=True) from error

    def _hand_on(self, chunk: bytes | memoryview) -> None:
        self.size += len(chunk)
        if self.size > self._limit:
            raise LinkError(f"the image has more than {self._limit} bytes")
        self._write(chunk)


def _coding_of(head: bytes) -> _Coding | None:
    """What these first bytes are wrapped in; None where nothing inside is known."""
    line = _CHUNK_LINE.match(head)
    if line and sniff(head[line.end() :]):
        return _Chunks()
    if head.startswith(b"\x1f\x8b\x08"):
        return _Deflate(_gzip_header(head))
    for header in (2, 0) if len(head) > 2 else ():
        # With zlib's two bytes before it, or bare: the first bytes inside tell which.
        try:
            inside = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head[header:], 64)
        except zlib.error:
            continue
        if sniff(inside):
            return _Deflate(header)
    return None


def _gzip_header(head: bytes) -> int:
    """How many bytes stand before the compressed ones (source: RFC 1952, 2.3)."""
    flags, at = head[3] if len(head) > 3 else 0, 10
    if flags & 4:
        at += 2 + int.from_bytes(head[at : at + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            at = head.find(b"\0", at) + 1 or len(head)
    return at + (2 if flags & 2 else 0)


class _Deflate:
    """A compressed body. Its checksum is not looked at: whether the image is whole is seen by the image."""

    def __init__(self, header: int) -> None:
        self._header = header
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def take(self, chunk: bytes | memoryview) -> Iterator[bytes]:
        inflater = self._inflater
        rest, self._header = bytes(chunk[self._header :]), max(0, self._header - len(chunk))
        while rest and not inflater.eof:
            yield inflater.decompress(rest, _STEP)
            rest = inflater.unconsumed_tail


class _Chunks:
    """Chunks, each behind a line with its length and perhaps its signature (source: SigV4, chunked upload)."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._left = 0
        self._is_over = False

    def take(self, chunk: bytes | memoryview) -> Iterator[bytes]:
        self._rest += chunk
        while self._rest and not self._is_over:
            if self._left:
                piece = bytes(self._rest[: self._left])
                del self._rest[: len(piece)]
                self._left -= len(piece)
                yield piece
                continue
            line = _CHUNK_LINE.match(self._rest, 2 if self._rest.startswith(b"\r\n") else 0)
            if line is None:
                if len(self._rest) > _LONGEST_LINE:
                    raise LinkError("the image came in chunks, and one has no length", retryable=True)
                return
            self._left = int(line[1], 16)
            self._is_over = not self._left
            del self._rest[: line.end()]
