"""What the client and httpx say to each other: a request, a listener for what becomes of it, and two failures.

`transports` sends the bytes as they are given, follows nothing, remembers nothing, and tells the listener in this
order: `leave` just before the first byte, `sent` once the last one has left, `head`, `data`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from .urls import Link


@dataclass(frozen=True, slots=True)
class Outgoing:
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


class Listener(Protocol):
    """Who is told how an exchange goes on. What it raises ends the exchange and comes through."""

    async def leave(self) -> None:
        """The last moment before the first byte leaves; raising keeps it from leaving."""

    def sent(self) -> None:
        """All of the request has left. Not told where the answer came before that."""

    def cut(self) -> None:
        """The exchange is over, and the last bytes of the request's body never left: the peer cannot have read all."""

    def head(self, status: int, headers: Mapping[str, str]) -> bool:
        """The answer's status and headers, their names in lower case; True where its body is not wanted."""

    def data(self, chunk: bytes | memoryview) -> bool:
        """Bytes of the body, good only until this returns; True where no more are wanted."""


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

    `is_ambiguous`: what came may be another's answer, so that not even its bytes can end the doubt.
    """

    def __init__(self, message: str, *, is_ambiguous: bool = False) -> None:
        super().__init__(message)
        self.is_ambiguous = is_ambiguous
