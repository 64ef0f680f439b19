"""Connections with nothing between: HTTP/1.1 over a socket, kept for a while for the next request.

A general client looks at its whole pool and builds a dozen objects for every request; at hundreds a second that costs
more than all the rest of a batch. Here a request is one write, an answer goes from the socket's buffer into its file,
and a free connection is found in one step. Proxies are not spoken here: `relay` has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from .connection import Connection, write_head
from .exchange import Listener, LostConnectionError, NoConnectionError, Outgoing

_BUFFER = 1 << 18

_EYEBALLS_S = 0.25


class Direct:
    """The free connections to any number of hosts. An exchange takes one of them, or makes one.

    `keep_s` is how long a connection may be idle and still serve; `tls` gives the certificates to trust.
    """

    def __init__(self, *, keep_s: float, connect_s: float, tls: Callable[[], ssl.SSLContext]) -> None:
        self._keep_s = keep_s
        self._connect_s = connect_s
        self._tls = tls
        self._free: dict[tuple[str, str, int], list[Connection]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        # One for all: a protocol is given its bytes in the same step in which they are read.
        self._buffer = memoryview(bytearray(_BUFFER))

    async def exchange(self, outgoing: Outgoing, listener: Listener) -> None:
        """One request and its answer. Raises `NoConnectionError`, `LostConnectionError`, or what the listener does."""
        head = write_head(outgoing)
        target = outgoing.target
        place = (target.scheme, target.host, target.port or (443 if target.scheme == "https" else 80))
        while True:
            connection = self._take(place)
            is_kept = connection is not None
            if connection is None:
                connection = await self._connect(place, outgoing.admit)
            try:
                await listener.leave()
                if is_kept and not connection.is_quiet():
                    # It came to its end while the last gate was passed.
                    raise NoConnectionError("the server closed the connection before the request was sent")
                await connection.converse(outgoing, head, listener)
            except BaseException as error:
                connection.abort()
                if not (outgoing.repeatable and is_kept and not connection.heard and _is_lost(error)):
                    raise
            else:
                if connection.reusable:
                    self._keep(place, connection)
                else:
                    connection.abort()
                return

    def _take(self, place: tuple[str, str, int]) -> Connection | None:
        """A free connection that is still good, the one used last first."""
        free = self._free.get(place)
        oldest = asyncio.get_running_loop().time() - self._keep_s
        while free:
            connection = free.pop()
            if connection.idle_since >= oldest and connection.is_quiet():
                return connection
            connection.abort()
        return None

    def _keep(self, place: tuple[str, str, int], connection: Connection) -> None:
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
                    connection.abort()
            free[:] = [connection for connection in free if not connection.closed]
            if not free:
                del self._free[place]
        if self._free:
            self._sweeper = loop.call_later(self._keep_s, self._sweep)

    async def _connect(self, place: tuple[str, str, int], admit: Callable[[str], Awaitable[None]] | None) -> Connection:
        scheme, host, port = place
        loop = asyncio.get_running_loop()
        try:
            context = self._tls() if scheme == "https" else None
            # A host may have an address of each kind of which one leads nowhere: both are tried, a moment apart.
            async with asyncio.timeout(self._connect_s):
                where: dict[str, Any] = {"host": host, "port": port, "happy_eyeballs_delay": _EYEBALLS_S}
                if admit and not _is_address(host):
                    # What is judged is what is connected to: nobody looks the name up a second time.
                    where = {"sock": await _connect_admitted(loop, host, port, admit)}
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, self._buffer),
                    ssl=context,
                    server_hostname=host if context else None,
                    **where,
                )
        except TimeoutError as error:
            raise NoConnectionError(f"no connection after {self._connect_s:g} s") from error
        except (OSError, ssl.SSLError, UnicodeError) as error:
            raise NoConnectionError(str(error)) from error
        return connection

    async def aclose(self) -> None:
        """Close what is free; what is in use belongs to its exchange."""
        free, self._free = [one for many in self._free.values() for one in many], {}
        for connection in free:
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None


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
