"""The sandbox as an in-process httpx transport: no socket, otherwise like the network.

It calls the `trace` extension with httpcore's event names, yields responses in chunks, and raises the errors of a lost
connection and of a read timeout. Images are drawn in threads, so the event loop is not blocked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from .service import Cut, Delay, SandboxReply, SandboxRequest, Service

Piece = bytes | Delay | Cut

Trace = Callable[[str, dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SentRequest:
    """`info["request"]` of trace events, with the attributes of httpcore's request."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]


class SandboxTransport(httpx.AsyncBaseTransport):
    """Answers every request from `service`, for any host."""

    def __init__(self, service: Service | None = None) -> None:
        self.service = service or Service()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the response's body is read later."""
        trace: Trace = request.extensions.get("trace") or _no_trace
        sent = SentRequest(request.method.encode("ascii"), request.url.raw_path, tuple(request.headers.raw))
        await trace("http11.send_request_headers.started", {"request": sent})
        await trace("http11.send_request_headers.complete", {"return_value": None})
        await trace("http11.send_request_body.started", {"request": sent})
        # The service parses whole bodies.
        body = await request.aread()
        await trace("http11.send_request_body.complete", {"return_value": None})
        await trace("http11.receive_response_headers.started", {"request": sent})
        sandbox_request = SandboxRequest(request.method, sent.target, tuple(request.headers.multi_items()), body)
        reply = await asyncio.to_thread(self.service.handle, sandbox_request)
        read_timeout_s = request.extensions.get("timeout", {}).get("read")
        stream = _Body(reply, request, read_timeout_s=read_timeout_s, trace=trace, sent=sent)
        await _await_first_piece(stream, trace)
        raw_headers = [(name.encode(), value.encode()) for name, value in _complete_headers(reply)]
        reason = httpx.codes.get_reason_phrase(reply.status).encode()
        head = (b"HTTP/1.1", reply.status, reason, raw_headers)
        await trace("http11.receive_response_headers.complete", {"return_value": head})
        return httpx.Response(
            reply.status,
            headers=raw_headers,
            stream=stream,
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": reason},
        )


class _Body(httpx.AsyncByteStream):
    """The chunks of a response, with the errors of a connection."""

    def __init__(
        self,
        reply: SandboxReply,
        request: httpx.Request,
        *,
        read_timeout_s: float | None,
        trace: Trace,
        sent: SentRequest,
    ) -> None:
        self._pieces: Iterator[Piece] = iter(reply.chunks)
        self._is_list = isinstance(reply.chunks, list)
        self._request = request
        self._read_timeout_s = read_timeout_s
        self._trace = trace
        self._sent = sent
        self._first: bytes | None = None
        self._received = 0
        self._length = next((int(value) for name, value in reply.headers if name == "content-length"), None)

    async def start(self) -> None:
        """Wait for the first bytes, with which the head is sent."""
        self._first = await self._next_bytes()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await self._trace("http11.receive_response_body.started", {"request": self._sent})
        piece, self._first = self._first, None
        while piece is not None:
            self._received += len(piece)
            yield piece
            piece = await self._next_bytes()
        await self._trace("http11.receive_response_body.complete", {"return_value": None})

    async def aclose(self) -> None:
        """Drop the unread rest."""
        self._pieces = iter(())

    async def _next_bytes(self) -> bytes | None:
        while (piece := await self._next_piece()) is not None:
            if isinstance(piece, bytes):
                return piece
            if isinstance(piece, Cut):
                raise httpx.RemoteProtocolError(self._describe_cut(), request=self._request)
            await self._pause(piece.seconds)
        return None

    async def _next_piece(self) -> Piece | None:
        if self._is_list:
            return next(self._pieces, None)
        return await asyncio.to_thread(next, self._pieces, None)

    async def _pause(self, seconds: float) -> None:
        if self._read_timeout_s is not None and seconds > self._read_timeout_s:
            await asyncio.sleep(self._read_timeout_s)
            raise httpx.ReadTimeout("the sandbox took longer than the read timeout", request=self._request)
        await asyncio.sleep(seconds)

    def _describe_cut(self) -> str:
        if not self._received:
            return "Server disconnected without sending a response."
        if self._length is None:
            return "peer closed connection without sending complete message body (incomplete chunked read)"
        return (
            "peer closed connection without sending complete message body "
            f"(received {self._received} bytes, expected {self._length})"
        )


async def _await_first_piece(stream: _Body, trace: Trace) -> None:
    try:
        await stream.start()
    except httpx.TransportError as error:
        await trace("http11.receive_response_headers.failed", {"exception": error})
        raise


async def _no_trace(_name: str, _info: dict[str, Any]) -> None:
    """The trace callback where there is none."""


def _complete_headers(reply: SandboxReply) -> tuple[tuple[str, str], ...]:
    """The headers, with `transfer-encoding: chunked` for a response of unknown length."""
    if any(name == "content-length" for name, _ in reply.headers):
        return reply.headers
    return (*reply.headers, ("transfer-encoding", "chunked"))
