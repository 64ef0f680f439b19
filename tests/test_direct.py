"""Connections with nothing between, over real sockets: when one may serve again, and what is no answer."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from typing import Any

from seedream_cli.network.connection import write_head
from seedream_cli.network.exchange import LostConnectionError, NoConnectionError, Outgoing
from seedream_cli.network.pool import Direct
from seedream_cli.network.urls import split_link

from .rawserver import RawServer, Script, answer


class Ear:
    """A listener that remembers."""

    def __init__(self, meanwhile: Any = None) -> None:
        self.status, self.body = 0, bytearray()
        self.headers: dict[str, str] = {}
        self._meanwhile = meanwhile

    async def leave(self) -> None:
        if self._meanwhile:
            self._meanwhile()

    def sent(self) -> None:
        pass

    def cut(self) -> None:
        pass

    def head(self, status: int, headers: Any) -> bool:
        self.status, self.headers = status, headers
        return False

    def data(self, chunk: bytes | memoryview) -> bool:
        self.body += chunk
        return False


def converse(url: str, *outgoing: tuple[str, int, Any], ear: Any = Ear) -> list[Any]:
    """Several requests, one after the other, over the same free connections; what came of each."""

    async def go() -> list[Any]:
        way, came = Direct(keep_s=5.0, connect_s=5.0, tls=ssl.create_default_context), list[Any]()
        for method, length, pieces in outgoing:
            heard = ear()
            request = Outgoing(method, split_link(url), (), length, pieces)
            try:
                async with asyncio.timeout(5):
                    await way.exchange(request, heard)
            except (NoConnectionError, LostConnectionError) as error:
                came.append(error)
            else:
                came.append(heard)
        await way.aclose()
        return came

    return asyncio.run(go())


def test_a_refusal_before_all_was_sent_leaves_no_connection_to_use_again() -> None:
    """The peer would take the next paid request for the rest of the body that it did not read."""
    refusal = answer(b"{}", status=429, end="keep")
    size = 64 << 20
    large = ("POST", size, lambda: itertools.repeat(b"x" * (1 << 20), 64))
    with RawServer(Script(refusal.pieces, "keep", "head"), answer(b"done")) as server:
        first, second = converse(server.url, large, ("POST", 2, lambda: iter([b"{}"])))
        assert (first.status, second.status, bytes(second.body)) == (429, 200, b"done")
        assert server.connections == 2


def test_what_follows_a_body_changes_nothing_and_has_a_bound() -> None:
    """Trailers are no headers; a second answer ends the connection; trailers without an end are no answer."""
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    with RawServer(Script((start + b"Retry-After: 600\r\n\r\n",), "keep")) as server:
        (came,) = converse(server.url, ("GET", 0, None))
        assert (bytes(came.body), "retry-after" in came.headers) == (b"{}", False)
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    with RawServer(Script((one + one.replace(b"{}", b"[]"),), "keep")) as server:
        came = converse(server.url, ("GET", 0, None), ("GET", 0, None))
        assert [bytes(one.body) for one in came] == [b"{}", b"{}"]
        assert server.connections == 2
    with RawServer(Script((start, *([b"A: " + b"x" * 60_000 + b"\r\n"] * 40)), "fin")) as server:
        assert isinstance(converse(server.url, ("GET", 0, None))[0], LostConnectionError)


def test_a_change_of_protocol_is_no_answer() -> None:
    """101 to a paid request leaves its outcome unknown; it is no bug of the tool."""
    with RawServer(Script((b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nxx",))) as server:
        assert isinstance(converse(server.url, ("POST", 2, lambda: iter([b"{}"])))[0], LostConnectionError)


def test_a_connection_that_ends_while_the_intent_is_written_carries_nothing() -> None:
    """The server closes in the moment between the choice of a connection and the first byte: nothing was sent."""

    async def go(server: RawServer) -> tuple[int, Exception | None]:
        way = Direct(keep_s=5.0, connect_s=5.0, tls=ssl.create_default_context)
        request = Outgoing("POST", split_link(server.url), (), 2, lambda: iter([b"{}"]))
        await way.exchange(request, Ear())
        failed = None
        try:
            # The end arrives while the loop is kept busy, as by a flush.
            await way.exchange(request, Ear(lambda: time.sleep(0.4)))
        except NoConnectionError as error:
            failed = error
        await way.aclose()
        return len(server.requests), failed

    closing = Script((*answer(b"ok", end="keep").pieces, 0.2), "fin")
    with RawServer(closing) as server:
        count, failed = asyncio.run(go(server))
        assert (count, type(failed)) == (1, NoConnectionError)


def test_a_host_in_another_script_is_asked_by_its_ascii_name() -> None:
    """The name in the request is the one that is connected to; an ASCII one stays as it was written."""
    for link, host in (
        ("https://例え.jp/x.png?s=1", b"xn--r8jz45g.jp"),
        ("https://bücher.example:8443/x", b"xn--bcher-kva.example:8443"),
        ("https://EXAMPLE.com:443/x", b"EXAMPLE.com:443"),
    ):
        assert b"\r\nHost: " + host + b"\r\n" in write_head(Outgoing("GET", split_link(link), ()))
