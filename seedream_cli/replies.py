"""A reply as it arrives: unpacked in bounded steps, kept before anybody judges it, parsed from where it lies."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
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

    def write(self, chunk: bytes) -> None:
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

    def write(self, chunk: bytes) -> None:
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


async def unpack(chunks: AsyncIterator[bytes], headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. A server that compresses although asked not to is decoded in bounded steps.

    Raises BrokenReplyError, and zlib.error where the compression itself is damaged.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in {"", "identity"}:
        async for chunk in chunks:
            yield chunk
        return
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise BrokenReplyError(f"the reply is encoded as {encoding[:40]!r}, which was not asked for")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    async for chunk in chunks:
        rest = chunk
        while rest and not inflater.eof:
            yield inflater.decompress(rest, _INFLATE_STEP)
            rest = inflater.unconsumed_tail
    while not inflater.eof and (piece := inflater.decompress(b"", _INFLATE_STEP)):
        yield piece
    if not inflater.eof:
        raise BrokenReplyError("the compressed reply was cut short")


async def keep(
    chunks: AsyncIterator[bytes], received: Received, file: ReplyFile, limit: int
) -> AsyncGenerator[bytes, None]:
    """The unpacked pieces of a body of at most `limit` bytes, each already kept in the file, which is emptied first."""
    file.reset()
    async with contextlib.aclosing(unpack(chunks, received.headers)) as pieces:
        async for piece in pieces:
            if file.size + len(piece) > limit:
                raise BrokenReplyError(f"the reply is larger than {limit >> 20} MiB")
            file.write(piece)
            received.start += piece[: max(0, _TEXT_BYTES - len(received.start))]
            yield piece


async def parse(received: Received, file: ReplyFile) -> Reply:
    """The reply with its body parsed from where it was kept; large ones in a thread, since parsing takes seconds."""
    try:
        body = await asyncio.to_thread(file.load) if file.size > 1 << 20 else file.load()
    except (ValueError, RecursionError):
        return Reply(received.status, received.headers, None, received.start.decode("utf-8", "replace"))
    return Reply(received.status, received.headers, body)
