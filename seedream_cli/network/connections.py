"""The connections of a client with nothing between: a transport for httpx over a free list of httpcore's connections.

A general pool looks at all its connections for every request; at hundreds a second that costs more than all the rest of
a batch. Here a free connection is found in one step, and what httpcore reads and writes is a socket of asyncio. A
request may carry two extensions of our own: `admit` is asked before each address that a name stands for is connected
to, and raises where it may not be; `repeatable` says that a second copy does no harm, so that a kept connection that
turns out dead may be replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import select
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

import httpcore
import httpx

from .http import LostConnectionError, NoConnectionError
from .mending import Mender

_BUFFER = 1 << 18

_READ_AHEAD = 1 << 18
"""Bytes of an answer that may wait for their reader before the peer has to."""

_EYEBALLS_S = 0.25

_LAST_WORDS_S = 5.0
"""How long the rest of an answer may take that refuses a request which is still being written."""


class Socket(asyncio.BufferedProtocol, httpcore.AsyncNetworkStream):
    """One connection, and the answer that is coming through it, mended where servers write what h11 does not read.

    `write` returns once the system has taken every byte, so that httpcore's trace tells what left. `heard` says
    whether a byte of the present answer came, `reusable` whether another request may follow.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        self.closed = False
        self.heard = False
        self._loop = loop
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._is_tls = False
        self._paused = False
        self._writable: asyncio.Future[None] | None = None
        self._readable: asyncio.Future[None] | None = None
        self._answer: Mender | None = None
        self._came: list[bytes] = []
        self._waiting_bytes = 0
        self._failure: BaseException | None = None
        self._is_over = True
        self._is_greedy = False
        self._has_begun = self._is_whole = self._is_refused = False

    def expect(self, *, greedy: bool) -> None:
        """Another request comes; until its first byte is written, nothing that comes is an answer to it.

        With `greedy` what follows a body that is longer than its length belongs to it.
        """
        self._is_greedy = greedy
        self._failure = None
        self.heard = self._has_begun = self._is_whole = self._is_refused = False

    def _begin(self) -> None:
        """The first byte is about to be written."""
        if self.closed or (self._answer is not None and not self.is_quiet()):
            # It came to its end while the last gate was passed.
            raise NoConnectionError("the server closed the connection before the request was sent")
        self._answer = Mender(self._give, greedy=self._is_greedy)
        self._has_begun, self._is_over = True, False

    @property
    def reusable(self) -> bool:
        """Whether the peer would take another request for one: it has all of this one, and its answer is whole."""
        is_good = self._answer is not None and self._answer.reusable and self._is_over and self._failure is None
        return is_good and self._is_whole and not self.closed

    # What httpcore asks for.

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109 (httpcore's)
        """Hand bytes to the system; httpcore writes nothing at last, which makes the request whole.

        Raises `httpcore.WriteError` where there is no use in it any more: httpcore reads the answer then.
        """
        assert self._transport is not None  # noqa: S101 - it is connected
        if not buffer:
            self._is_whole = self._has_begun
            return
        if not self._has_begun:
            self._begin()
        elif self._is_tls:
            # Under TLS a failed write is told two turns of the loop later; until then, what is written is dropped.
            for _ in range(2):
                turn = self._loop.create_future()
                self._loop.call_soon(turn.set_result, None)
                await turn
        if self._is_useless:
            raise httpcore.WriteError("the request was not wanted to its end")
        self._transport.write(buffer)
        # After a failed write the transport drops what it is given, and does not say so.
        is_given = self._is_tls or not self._transport.is_closing()
        while is_given and self._paused and not self._is_useless:
            self._writable = self._loop.create_future()
            await self._writable
        if not is_given or self._paused:
            raise httpcore.WriteError("the request could not be written to its end")

    @property
    def _is_useless(self) -> bool:
        """A refusal that comes before all has been sent is the answer; the rest is not sent."""
        gone = self.closed or self._transport is None or self._transport.is_closing()
        return gone or self._is_over or self._is_refused

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002, ASYNC109 (httpcore's)
        """What came of the answer. `timeout` bounds the silence before it."""
        assert self._transport is not None  # noqa: S101 - it is connected
        while not self._came:
            if self._failure is not None:
                raise self._failure
            if self._is_over:
                return b""
            await self._wait(timeout)
        came = self._came[0] if len(self._came) == 1 else b"".join(self._came)
        self._came.clear()
        if self._waiting_bytes > _READ_AHEAD and not self.closed:
            self._transport.resume_reading()
        self._waiting_bytes = 0
        return came

    async def _wait(self, silence_s: float | None) -> None:
        self._readable = self._loop.create_future()
        is_cut = self._is_refused and not self._is_whole
        try:
            async with asyncio.timeout(_LAST_WORDS_S if is_cut else silence_s):
                await self._readable
        except TimeoutError:
            if not is_cut:
                raise LostConnectionError(f"nothing came for {silence_s:g} s") from None
            self._end()

    async def aclose(self) -> None:
        """Close at once."""
        self.abort()

    def get_extra_info(self, info: str) -> Any:
        """Nothing is told but what `is_quiet` knows."""
        return not self.is_quiet() if info == "is_readable" else None

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

    def _give(self, data: bytes) -> None:
        self._came.append(data)
        before, self._waiting_bytes = self._waiting_bytes, self._waiting_bytes + len(data)
        if before <= _READ_AHEAD < self._waiting_bytes and self._transport is not None and not self.closed:
            self._transport.pause_reading()

    def _end(self, error: BaseException | None = None) -> None:
        """The answer is whole, or is none."""
        if self._is_over:
            return
        self._is_over, self._failure = True, error
        if error is None and self._answer is not None and not self._answer.is_over:
            self._answer.end(reusable=False)
        self._wake()

    def _wake(self) -> None:
        for waiting in (self._readable, self._writable):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    # What asyncio calls.

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
        if self._is_over or self._answer is None:
            # Bytes that nobody asked for would be taken for the next answer.
            self.abort()
            return
        self.heard = True
        try:
            is_over = self._answer.feed(self._buffer[:nbytes])
        except LostConnectionError as error:
            self._end(error)
            return
        if self._answer.status >= 300 and not self._is_whole:
            self._is_refused = True
        if is_over:
            self._end()
        self._wake()

    def eof_received(self) -> bool:
        """The peer has nothing more to say."""
        if not self._is_whole and not self._is_over and self._transport is not None:
            # Closing it would wait until the peer takes the rest of the request, which it may never do.
            self._transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, which is the end of an answer without a length."""
        self.closed = True
        if exc is not None and not self._is_whole:
            self._read_rest()
        answer = self._answer
        if not self._is_whole and answer is not None and answer.status >= 300:
            self._end()
        elif exc is None and self.heard and answer is not None and not self._is_over:
            try:
                answer.close()
            except LostConnectionError as error:
                self._end(error)
            else:
                self._end()
        else:
            self._end(exc or LostConnectionError("the server closed the connection without an answer"))
        self._wake()

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
        self._wake()


class Connection:
    """A connection as httpcore keeps it, the socket under it, and since when it has been idle."""

    def __init__(self, origin: httpcore.Origin, stream: Socket) -> None:
        self.socket = stream
        self.http = httpcore.AsyncHTTP11Connection(origin=origin, stream=stream)
        self.idle_since = 0.0


class FreeList(httpx.AsyncBaseTransport):
    """The free connections to any number of hosts. A request takes one of them, or makes one.

    `keep_s` is how long a connection may be idle and still serve; `tls` gives the certificates to trust.
    """

    def __init__(self, *, keep_s: float, connect_s: float, tls: Callable[[], ssl.SSLContext]) -> None:
        self._keep_s = keep_s
        self._connect_s = connect_s
        self._tls = tls
        self._free: dict[tuple[bytes, bytes, int], list[Connection]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        # One for all: a protocol is given its bytes in the same step in which they are read.
        self._buffer = memoryview(bytearray(_BUFFER))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request and the head of its answer."""
        url, extensions = request.url, request.extensions
        place = (url.raw_scheme, url.raw_host, url.port or (443 if url.scheme == "https" else 80))
        repeatable = bool(extensions.get("repeatable"))
        while True:
            connection = self._take(place)
            is_kept = connection is not None
            if connection is None:
                connection = await self._connect(place, extensions.get("admit"))
            connection.socket.expect(greedy=not repeatable)
            try:
                answer = await connection.http.handle_async_request(
                    httpcore.Request(
                        method=request.method,
                        url=httpcore.URL(scheme=place[0], host=place[1], port=place[2], target=url.raw_path),
                        headers=request.headers.raw,
                        content=request.stream,
                        extensions=extensions,
                    )
                )
            except BaseException as error:
                connection.socket.abort()
                if not (repeatable and is_kept and not connection.socket.heard and _is_lost(error)):
                    raise
            else:
                assert isinstance(answer.stream, AsyncIterable)  # noqa: S101 - it is that of a connection for async use
                body = _Body(answer.stream, functools.partial(self._give_back, place, connection))
                return httpx.Response(
                    answer.status, headers=answer.headers, stream=body, extensions=dict(answer.extensions)
                )

    def _take(self, place: tuple[bytes, bytes, int]) -> Connection | None:
        """A free connection that is still good, the one used last first."""
        free = self._free.get(place)
        oldest = asyncio.get_running_loop().time() - self._keep_s
        while free:
            connection = free.pop()
            if connection.idle_since >= oldest and connection.socket.is_quiet():
                return connection
            connection.socket.abort()
        return None

    def _give_back(self, place: tuple[bytes, bytes, int], connection: Connection) -> None:
        if not (connection.http.is_idle() and connection.socket.reusable):
            connection.socket.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._free.setdefault(place, []).append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._keep_s, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle too long, so that no server has to."""
        loop = asyncio.get_running_loop()
        oldest, self._sweeper = loop.time() - self._keep_s, None
        for place, free in list(self._free.items()):
            for connection in free:
                if connection.idle_since < oldest:
                    connection.socket.abort()
            free[:] = [connection for connection in free if not connection.socket.closed]
            if not free:
                del self._free[place]
        if self._free:
            self._sweeper = loop.call_later(self._keep_s, self._sweep)

    async def _connect(
        self, place: tuple[bytes, bytes, int], admit: Callable[[str], Awaitable[None]] | None
    ) -> Connection:
        scheme, host, port = place[0], place[1].decode("ascii"), place[2]
        loop = asyncio.get_running_loop()
        try:
            context = self._tls() if scheme == b"https" else None
            # A host may have an address of each kind of which one leads nowhere: both are tried, a moment apart.
            async with asyncio.timeout(self._connect_s):
                where: dict[str, Any] = {"host": host, "port": port, "happy_eyeballs_delay": _EYEBALLS_S}
                if admit and not _is_address(host):
                    # What is judged is what is connected to: nobody looks the name up a second time.
                    where = {"sock": await _connect_admitted(loop, host, port, admit)}
                _, stream = await loop.create_connection(
                    lambda: Socket(loop, self._buffer),
                    ssl=context,
                    server_hostname=host if context else None,
                    **where,
                )
        except TimeoutError as error:
            raise NoConnectionError(f"no connection after {self._connect_s:g} s") from error
        except (OSError, ssl.SSLError, UnicodeError) as error:
            raise NoConnectionError(str(error)) from error
        return Connection(httpcore.Origin(*place), stream)

    async def aclose(self) -> None:
        """Close what is free; what is in use belongs to its request."""
        free, self._free = [one for many in self._free.values() for one in many], {}
        for connection in free:
            connection.socket.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None


class _Body(httpx.AsyncByteStream):
    """The body of an answer; its connection is given back when it is closed."""

    def __init__(self, stream: AsyncIterable[bytes], give_back: Callable[[], None]) -> None:
        self._stream = stream
        self._give_back: Callable[[], None] | None = give_back

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        """Read no more."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            try:
                await self._stream.aclose()  # type: ignore[attr-defined]
            finally:
                give_back()


def _is_address(host: str) -> bool:
    """Whether a host is an address, whose spelling was judged already."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _connect_admitted(
    loop: asyncio.AbstractEventLoop, host: str, port: int, admit: Callable[[str], Awaitable[None]]
) -> socket.socket:
    """A socket that is connected to the first of a name's addresses that answers, each judged before it is asked."""
    waiting = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for found in waiting:
        await admit(str(found[4][0]))
    trying: set[asyncio.Task[socket.socket]] = set()
    error: BaseException = OSError(f"{host} has no address")
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.create_task(_connect_socket(loop, *waiting.pop(0))))
            timeout = _EYEBALLS_S if waiting else None
            done, trying = await asyncio.wait(trying, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            good = [task.result() for task in done if task.exception() is None]
            for spare in good[1:]:
                spare.close()
            if good:
                return good[0]
            error = next((task.exception() or error for task in done), error)
        raise error
    finally:
        for task in trying:
            task.cancel()


async def _connect_socket(
    loop: asyncio.AbstractEventLoop, family: int, kind: int, protocol: int, _: str, address: Any
) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    made.settimeout(0)
    try:
        await loop.sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


def _is_lost(error: BaseException) -> bool:
    return isinstance(error, LostConnectionError | NoConnectionError | OSError)


def trusted_certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    """The certificates that are trusted: those that the user names, else the system's own and certifi's.

    Each of the latter lacks some that the other has, such as a company's. Raises `OSError` where a file is none.
    """
    if file or folder:
        context = ssl.create_default_context(cafile=file, capath=folder)
    else:
        import certifi

        context = ssl.create_default_context(cafile=certifi.where())
        context.load_default_certs()
    with contextlib.suppress(NotImplementedError):
        context.set_alpn_protocols(["http/1.1"])
    return context
