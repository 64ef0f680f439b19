"""A reply as it arrives: unpacked in bounded steps, kept before anybody judges it, parsed from where it lies."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .framing import parse_json
from .providers.base import Reply

_TEXT_BYTES = 2000
_INFLATE_STEP = 1 << 20
_REQUEST_ID_HEADERS = ("x-request-id", "x-tt-logid", "x-client-request-id", "x-trace-id", "cf-ray")


class ReplyFile(Protocol):
    """Where a reply is kept while it arrives, before anybody judges it."""

    @property
    def size(self) -> int:
        """Bytes written since the last reset."""

    def write(self, chunk: bytes | memoryview) -> None:
        """Append; raises `FileError` where the disk refuses."""

    def reset(self) -> None:
        """Forget what was written: another attempt begins."""

    def load(self) -> Any:
        """The parsed JSON, base64 pictures left in the file; raises ValueError where it is none."""


class BrokenReplyError(Exception):
    """A reply that arrived and cannot be used: too large, encoded in a way not asked for, its encoding cut."""


class Memory:
    """A `ReplyFile` for small replies."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    @property
    def size(self) -> int:
        return len(self._bytes)

    def write(self, chunk: bytes | memoryview) -> None:
        self._bytes += chunk

    def reset(self) -> None:
        self._bytes.clear()

    def load(self) -> Any:
        return parse_json(self._bytes)


@dataclass(slots=True)
class Received:
    """A reply's outside, and the start of its body for messages."""

    status: int
    headers: Mapping[str, str]
    start: bytearray = field(default_factory=bytearray)

    @property
    def request_id(self) -> str:
        """The provider's name for this exchange, by whatever header it gives it; "" for none."""
        return next((self.headers[name] for name in _REQUEST_ID_HEADERS if self.headers.get(name)), "")


class Reception:
    """A body on its way into its file: unpacked, within `limit` bytes, each piece kept before anybody reads it."""

    def __init__(self, received: Received, file: ReplyFile, limit: int) -> None:
        encoding = received.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            raise BrokenReplyError(f"the reply is encoded as {encoding[:40]!r}, which was not asked for")
        self._received = received
        self._file = file
        self._limit = limit
        self._inflater = None if encoding in {"", "identity"} else zlib.decompressobj(zlib.MAX_WBITS | 32)
        file.reset()

    def take(self, chunk: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """Keep a chunk as it came, and hand out what it holds piece by piece. To be run to its end.

        Raises BrokenReplyError, and zlib.error where the compression itself is damaged.
        """
        for piece in (chunk,) if self._inflater is None else self._inflate(self._inflater, chunk):
            if self._file.size + len(piece) > self._limit:
                raise BrokenReplyError(f"the reply is larger than {self._limit >> 20} MiB")
            self._file.write(piece)
            start = self._received.start
            if len(start) < _TEXT_BYTES:
                start += piece[: _TEXT_BYTES - len(start)]
            yield piece

    def _inflate(self, inflater: Any, chunk: bytes | memoryview) -> Iterator[bytes]:
        """A server that compresses although asked not to is decoded in bounded steps."""
        rest: bytes | memoryview = chunk
        while rest and not inflater.eof:
            yield inflater.decompress(rest, _INFLATE_STEP)
            rest = inflater.unconsumed_tail
        while not rest and not inflater.eof and (piece := inflater.decompress(b"", _INFLATE_STEP)):
            yield piece

    def close(self) -> None:
        """The body is at its end. Raises BrokenReplyError where its compression is not."""
        if self._inflater is not None and not self._inflater.eof:
            raise BrokenReplyError("the compressed reply was cut short")


async def parse(received: Received, file: ReplyFile) -> Reply:
    """The reply with its body parsed from where it was kept; large ones in a thread, since parsing takes seconds."""
    try:
        body = await asyncio.to_thread(file.load) if file.size > 1 << 20 else file.load()
    except (ValueError, RecursionError):
        return Reply(received.status, received.headers, None, received.start.decode("utf-8", "replace"))
    return Reply(received.status, received.headers, body)
