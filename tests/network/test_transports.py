"""Connections with nothing between, over real sockets: when one may serve again, and what is no answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import time
from typing import Any

from seedream_cli.network.http import Departure, HttpRequest, LostConnectionError, NoConnectionError
from seedream_cli.network.transports import Client, Response, host_of
from seedream_cli.network.urls import split_link
from tests.support.raw_server import RawServer, Script, answer


class Came:
    """An answer that came whole."""

    def __init__(self, response: Response, body: bytes) -> None:
        self.status, self.headers, self.body = response.status, response.headers, body


class Delayed(Departure):
    """A request that leaves after something else has happened."""

    def __init__(self, meanwhile: Any) -> None:
        super().__init__("POST")
        self._meanwhile = meanwhile

    async def before_first_byte(self) -> None:
        if (waited := self._meanwhile()) is not None:
            await waited


async def exchange(client: Client, request: HttpRequest, departure: Departure | None = None) -> Came:
    """One request, and its whole answer."""
    async with contextlib.aclosing(await client.send(request, departure)) as response:
        return Came(response, b"".join([chunk async for chunk in response.chunks()]))


def make_client(tls: Any = ssl.create_default_context) -> Client:
    """A client with nothing between."""
    return Client(keep_s=5.0, keep_behind_s=0.0, connect_s=5.0, tls=tls, proxy_before=lambda target: None)


def converse(url: str, *requests: tuple[str, int, Any]) -> list[Any]:
    """Several requests, one after the other, over the same free connections; what came of each."""

    async def go() -> list[Any]:
        way, came = (
            Client(
                keep_s=5.0,
                keep_behind_s=0.0,
                connect_s=5.0,
                proxy_before=lambda target: None,
                tls=ssl.create_default_context,
            ),
            list[Any](),
        )
        for method, length, pieces in requests:
            request = HttpRequest(method, split_link(url), (), length, pieces)
            try:
                async with asyncio.timeout(5):
                    came.append(await exchange(way, request))
            except (NoConnectionError, LostConnectionError) as error:
                came.append(error)
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
        way = Client(
            keep_s=5.0,
            keep_behind_s=0.0,
            connect_s=5.0,
            proxy_before=lambda target: None,
            tls=ssl.create_default_context,
        )
        request = HttpRequest("POST", split_link(server.url), (), 2, lambda: iter([b"{}"]))
        await exchange(way, request)
        failed = None
        try:
            # The end arrives while the loop is kept busy, as by a flush.
            await exchange(way, request, Delayed(lambda: time.sleep(0.4)))
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
        ("https://例え.jp/x.png?s=1", "xn--r8jz45g.jp"),
        ("https://bücher.example:8443/x", "xn--bcher-kva.example:8443"),
        ("https://EXAMPLE.com:443/x", "EXAMPLE.com:443"),
    ):
        assert host_of(split_link(link)) == host


class Waiting(RawServer):
    """A server that says twice that it is at work before it reads any of a body."""

    def _receive_body(self, connection: socket.socket, head: bytes) -> bytes:
        for _ in range(2):
            connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
            self._stopped.wait(0.1)
        return super()._receive_body(connection, head)


def test_word_that_comes_while_the_body_is_written_does_not_end_it() -> None:
    """Only a refusal does: the rest of the body follows, and the answer is that of the whole request."""
    size = 16 << 20
    with Waiting(answer(b"done")) as server:
        large = ("POST", size, lambda: itertools.repeat(b"x" * (1 << 20), 16))
        (came,) = converse(server.url, large)
        assert (came.status, bytes(came.body), len(server.requests[0].body)) == (200, b"done", size)


def test_answer_that_nobody_asked_for_is_not_the_next_requests() -> None:
    """It comes while the intent is written down: nothing was sent on that connection, and nothing is believed."""

    async def go(server: RawServer) -> tuple[int, Exception | None]:
        way, failed = make_client(), None
        request = HttpRequest("POST", split_link(server.url), (), 2, lambda: iter([b"{}"]))
        await exchange(way, request)
        try:
            await exchange(way, request, Delayed(lambda: asyncio.sleep(0.4)))
        except NoConnectionError as error:
            failed = error
        await way.aclose()
        return len(server.requests), failed

    stray = Script((*answer(b"ok", end="keep").pieces, 0.2, *answer(b"not yours", end="keep").pieces), "keep")
    with RawServer(stray) as server:
        count, failed = asyncio.run(go(server))
        assert (count, type(failed)) == (1, NoConnectionError)
