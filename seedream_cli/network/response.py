"""A reply as it arrives: kept byte for byte before anybody judges it, parsed from where it lies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..providers.contract import Reply
from ..storage.reply_document import Document, read_document
from ..storage.reply_encoding import Unpacker, is_text

_TEXT_BYTES = 2000

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

    def load(self) -> Document:
        """What it holds, base64 images left in the file; raises ValueError where nothing can be read."""


class BrokenReplyError(Exception):
    """A reply that arrived and cannot be used: too large, or a stream that ends inside an event."""


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

    def load(self) -> Document:
        unpacker = Unpacker()
        return read_document(b"".join((*unpacker.take(bytes(self._bytes)), *unpacker.close())))


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
    """A body on its way into its file, within `limit` bytes: kept as it came, whatever its head says of it."""

    def __init__(self, received: Received, file: ReplyFile, limit: int) -> None:
        self._received = received
        self._file = file
        self._limit = limit
        file.reset()

    def take(self, chunk: bytes | memoryview) -> None:
        """Keep a chunk. Raises BrokenReplyError where it is too much."""
        if self._file.size + len(chunk) > self._limit:
            raise BrokenReplyError(f"the reply is larger than {self._limit >> 20} MiB")
        self._file.write(chunk)
        start = self._received.start
        if len(start) < _TEXT_BYTES:
            start += chunk[: _TEXT_BYTES - len(start)]


async def parse(received: Received, file: ReplyFile) -> Reply:
    """The reply with its body parsed from where it was kept; large ones in a thread, since parsing takes seconds."""
    try:
        found = await asyncio.to_thread(file.load) if file.size > 1 << 20 else file.load()
    except (ValueError, RecursionError):
        return Reply(received.status, received.headers, None, _start_text(received))
    first, *more = found.values
    return Reply(received.status, received.headers, first, more=tuple(more), ended=found.ended)


def _start_text(received: Received) -> str:
    """How a body that cannot be read begins, or why it cannot."""
    unpacker = Unpacker(label=received.headers.get("content-encoding", ""))
    pieces = [bytes(piece) for piece in (*unpacker.take(bytes(received.start)), *unpacker.close())]
    if unpacker.flaw and not is_text(b"".join(pieces)):
        return unpacker.flaw
    return b"".join(pieces)[:_TEXT_BYTES].decode("utf-8", "replace")
