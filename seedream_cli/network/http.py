"""One HTTP request as it is handed to httpx, what of it has left, and the two ways in which it fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .urls import Link


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request. `pieces` makes its body of `length` bytes, None for no body; `silence_s` is how long a peer may be
    silent between two pieces of its answer, None for as long as the deadline allows.

    `admit` is asked before each address that a name stands for is connected to, and raises where it may not be.
    `repeatable` says that a second copy does no harm: a kept connection that turns out dead may be replaced.
    """

    method: str
    target: Link
    headers: tuple[tuple[str, str], ...]
    length: int = 0
    pieces: Callable[[], Iterator[bytes]] | None = None
    silence_s: float | None = None
    repeatable: bool = False
    admit: Callable[[str], Awaitable[None]] | None = None

    @property
    def path(self) -> str:
        """The target without its query, for logs."""
        return self.target.raw.partition(b"?")[0].decode("latin-1")


class Departure:
    """What of a request has left, as the trace events of the connection tell. No exception's name proves that.

    `begun`: its first byte may have left. `headers_left`, `body_left`: all of them have. `is_behind_proxy`: the tunnel
    through the proxy is open.
    """

    def __init__(self, method: str) -> None:
        self._method = method.encode()
        self.begun = False
        self.headers_left = False
        self.body_left = False
        self.is_behind_proxy = False

    @property
    def is_cut(self) -> bool:
        """Whether the request was begun, and its last bytes never left: the peer cannot have read all of it."""
        return self.begun and not self.body_left

    async def before_first_byte(self) -> None:
        """The connection is there and nothing has left; what this raises keeps the request from leaving."""

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """The `trace` extension of httpcore. A CONNECT to a proxy raises the same events, with its own method."""
        if name.endswith("start_tls.started") and not name.startswith("connection."):
            self.is_behind_proxy = True
        if name.endswith("send_request_body.complete"):
            # A CONNECT has no body, so it is never the last to raise this.
            self.body_left = self.headers_left
        request = info.get("request")
        if request is None or request.method != self._method or not name.endswith(".started"):
            return
        event = name.rpartition(".")[0].rpartition(".")[2]
        if event == "send_request_headers":
            await self.before_first_byte()
            self.begun = True
        elif event == "send_request_body":
            self.headers_left = True


class NoConnectionError(Exception):
    """There was no connection, so not a byte of the request has left. `usable`: another attempt may find one.

    `at_proxy`: what stands between was not reached, or would not pass the request on; `status` is what it said.
    """

    def __init__(self, message: str, *, usable: bool = True, at_proxy: bool = False, status: int = 0) -> None:
        super().__init__(message)
        self.usable = usable
        self.at_proxy = at_proxy
        self.status = status


class LostConnectionError(Exception):
    """The connection broke, or the answer is no HTTP or not whole, after the request may have left.

    `is_ambiguous`: what came may be another request's answer, so that not even its bytes can end the doubt.
    """

    def __init__(self, message: str, *, is_ambiguous: bool = False) -> None:
        super().__init__(message)
        self.is_ambiguous = is_ambiguous
