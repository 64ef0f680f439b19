"""One HTTP/1.1 connection: a request written, its reply read, what left known byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket

from .exchange import Listener, LostConnectionError, NoConnectionError, Outgoing
from .http1 import AnswerReader
from .urls import Target

_LAST_WORDS_S = 5.0
"""How long the rest of an answer may take that refuses a request which is still being written."""

_FIELD = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def _host_of(target: Target) -> str:
    """The host as it was written, or, where that is no ASCII, as it is connected to."""
    if target.authority.isascii():
        return target.authority
    return target.host if target.port is None else f"{target.host}:{target.port}"


def write_head(outgoing: Outgoing) -> bytes:
    """The request's head. Raises `NoConnectionError` for what would be no valid HTTP: nothing is sent then."""
    target = outgoing.target
    lines = [f"{outgoing.method} {target.raw.decode('latin-1')} HTTP/1.1", f"Host: {_host_of(target)}"]
    lines += [f"{name}: {value}" for name, value in outgoing.headers]
    if outgoing.pieces is not None:
        lines.append(f"Content-Length: {outgoing.length}")
    if not all(map(_FIELD.fullmatch, lines)):
        # Said without the line, which may hold the key.
        raise NoConnectionError("the request is no valid HTTP", usable=False)
    return "\r\n".join((*lines, "", "")).encode("latin-1")


class Connection(asyncio.BufferedProtocol):
    """One connection and the answer that is coming through it.

    `heard` says whether a byte of the present answer came, `reusable` whether another request may follow.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        self.closed = False
        self.heard = False
        self.reusable = False
        self.idle_since = 0.0
        self._loop = loop
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._reader: AnswerReader | None = None
        self._ended: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._is_tls = False
        self._silence_s: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._last = 0.0
        self._begin()

    def _begin(self) -> None:
        """Nothing of an answer is here yet."""
        self.heard = self.reusable = False
        self._given = self._is_whole = self._is_refused = False

    # The exchange.

    async def converse(self, outgoing: Outgoing, head: bytes, listener: Listener) -> None:
        """Send one request and hear its answer to the end."""
        if self.closed:
            raise NoConnectionError("the connection was closed before the request was sent")
        self._begin()
        # What follows an image's last byte is none of it; what follows a paid answer may be its end.
        self._reader = AnswerReader(listener, greedy=not outgoing.repeatable)
        ended = self._ended = self._loop.create_future()
        self._silence_s, self._last = outgoing.silence_s, self._loop.time()
        try:
            await self._send(outgoing, head, ended)
            if self._is_refused and not ended.done():
                await asyncio.wait((ended,), timeout=_LAST_WORDS_S)
                self._end()
            elif self._is_whole and not ended.done():
                listener.sent()
            if self._silence_s is not None and not ended.done():
                self._watch = self._loop.call_at(self._last + self._silence_s, self._look)
            await ended
        finally:
            if not self._is_whole:
                # The peer would take the next request for the rest of this one.
                self.reusable = False
                listener.cut()
            self._reader = self._ended = None
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
            if ended.done() and not ended.cancelled():
                ended.exception()

    async def _send(self, outgoing: Outgoing, head: bytes, ended: asyncio.Future[None]) -> None:
        """Hand the request to the system. `_is_whole` says afterwards whether it took the last byte."""
        assert self._transport is not None  # noqa: S101 - it is connected
        pieces = iter(()) if outgoing.pieces is None else outgoing.pieces()
        # Most bodies are one piece, which leaves in one segment with its head.
        self._transport.write(head + next(pieces, b""))
        for piece in pieces:
            await self._drain(ended)
            if ended.done() or self._is_refused or self.closed or self._transport.is_closing():
                # A refusal that comes before all has been sent is the answer; the rest is not sent.
                return
            self._transport.write(piece)
        # After a failed write the transport drops what it is given, and does not say so.
        self._given = self._is_tls or not self._transport.is_closing()
        self._is_whole = self._given and not self._paused
        if not self._is_whole:
            await self._drain(ended)

    async def _drain(self, ended: asyncio.Future[None]) -> None:
        """Wait until the system has taken what was written, or there is no use in it."""
        if self._paused and not self._is_refused:
            self._writable = self._loop.create_future()
            await asyncio.wait((self._writable, ended), return_when=asyncio.FIRST_COMPLETED)
        if self._is_tls:
            # Under TLS a failed write is told two turns of the loop later; until then, what is written is dropped.
            for _ in range(2):
                turn = self._loop.create_future()
                self._loop.call_soon(turn.set_result, None)
                await turn

    def _wake_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _look(self) -> None:
        """End an answer that has been silent for too long."""
        assert self._silence_s is not None  # noqa: S101 - set where this is called from
        due = self._last + self._silence_s
        if self._loop.time() >= due:
            self._end(LostConnectionError(f"nothing came for {self._silence_s:g} s"))
        else:
            self._watch = self._loop.call_at(due, self._look)

    def is_quiet(self) -> bool:
        """Whether the peer has left it alone: a kept connection that has anything to read is at its end."""
        if self.closed or self._transport is None or self._transport.is_closing():
            return False
        peer = self._transport.get_extra_info("socket")
        if not hasattr(select, "poll"):
            return not select.select([peer], [], [], 0)[0]
        poll = select.poll()
        poll.register(peer, select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """Close at once."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    @property
    def _is_over(self) -> bool:
        return self._ended is None or self._ended.done()

    def _end(self, error: BaseException | None = None) -> None:
        """The answer is whole, or is none."""
        if error is not None:
            self.reusable = False
        if self._ended is not None and not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream is asked for
        self._transport = transport
        # Paused as long as the system has not taken everything: so it is known whether a request is whole.
        # (The one for TLS would take 0 for always.)
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        transport.set_write_buffer_limits(high=int(self._is_tls), low=0)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (what the transport asks)
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes came."""
        chunk = self._buffer[:nbytes]
        if self._is_over:
            # Bytes that nobody asked for would be taken for the next answer.
            self.abort()
            return
        self.heard = True
        self._last = self._loop.time()
        assert self._reader is not None  # noqa: S101 - an answer is under way
        try:
            is_over = self._reader.feed(chunk)
            if self._reader.status >= 300 and not self._is_whole:
                self._is_refused = True
                self._wake_writer()
            if is_over:
                self.reusable = self._reader.reusable
                self._end()
        except Exception as error:  # noqa: BLE001 - it is handed to the exchange, which is waiting for it
            self._end(error)

    def eof_received(self) -> bool:
        """The peer has nothing more to say."""
        if not self._is_whole and not self._is_over and self._transport is not None:
            # Closing it would wait until the peer takes the rest of the request, which it may never do.
            self._transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, which is the end of an answer without a length."""
        self.closed = True
        self._wake_writer()
        if exc is not None and not self._is_whole:
            self._read_rest()
        reader = self._reader
        is_refusal = not self._is_whole and reader is not None and reader.status >= 300
        if is_refusal:
            self._end()
        elif exc is None and self.heard and reader is not None:
            try:
                reader.close()
            except LostConnectionError as error:
                self._end(error)
            else:
                self._end()
        else:
            self._end(exc or LostConnectionError("the server closed the connection without an answer"))

    def _read_rest(self) -> None:
        """A write failed. The answer that the peer gave before may have come unread: only reading was not tried."""
        transport = self._transport
        if transport is None or self._is_tls or self._is_over:
            return
        with (
            contextlib.suppress(OSError),
            socket.fromfd(transport.get_extra_info("socket").fileno(), socket.AF_INET, socket.SOCK_STREAM) as rest,
        ):
            rest.settimeout(0)
            while not self._is_over and (size := rest.recv_into(self._buffer)):
                self.buffer_updated(size)

    def pause_writing(self) -> None:
        """The peer reads more slowly than it is written to."""
        self._paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._paused = False
        self._is_whole = self._is_whole or self._given
        self._wake_writer()
