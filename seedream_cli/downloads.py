"""The download of one picture: how far its link may lead, how much may come and how slowly, and how often to try.

Whoever asks the network is handed in (`get`), and so is the clock: the rules stand here alone.
"""

from __future__ import annotations

import asyncio
import random as randomness
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from .attempts import Watch
from .errors import LinkError
from .links import Target, next_hop, split_link
from .pace import MAX_BACKOFF_S, Clock
from .transport import Listener

T = TypeVar("T")

MAX_REDIRECTS = 3
_TEXT_BYTES = 2000
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Order:
    """A picture to fetch and what that may take: bytes, seconds, seconds without enough bytes, bytes a second."""

    link: str
    write: Callable[[bytes | memoryview], None]
    explain: Callable[[bytes, int], tuple[str, str]] | None
    on_progress: Callable[[int, int | None], None] | None
    max_bytes: int
    deadline_s: float
    stall_s: float
    lowest_rate: float


@dataclass(frozen=True, slots=True)
class Fetched(Generic[T]):
    """A link that was fetched whole: what the caller's `check` made of it, and the type that the server claimed."""

    checked: T
    size: int
    content_type: str
    host: str
    attempts: int


class Downloads:
    """All downloads of a run. `get` asks for a link, tells a listener of the answer and bears so many seconds' silence.

    `plain` allows links of plain http to other machines, for a provider that is on this one.
    """

    def __init__(
        self,
        get: Callable[[Target, Listener, float], Awaitable[None]],
        *,
        retries: int,
        clock: Clock,
        random: randomness.Random,
        mask: Callable[[str], str],
        say: Callable[[str], None],
        plain: bool,
    ) -> None:
        self._get = get
        self._retries = retries
        self._clock = clock
        self._random = random
        self._mask = mask
        self._say = say
        self._plain = plain

    async def fetch(
        self, order: Order, *, restart: Callable[[], None], check: Callable[[int], Awaitable[T]], watch: Watch | None
    ) -> Fetched[T]:
        """Get an order's link, and again where that may help. Raises LinkError."""
        attempt = 0
        while True:
            attempt += 1
            try:
                size, kind, host = await self._download(order)
                return Fetched(await check(size), size, kind, host, attempt)
            except LinkError as error:
                failure = self._masked(error)
            self._say(f"* download, attempt {attempt}: {failure.message}")
            if not failure.retryable or attempt > self._retries:
                raise failure
            wait = self._random.uniform(0, min(MAX_BACKOFF_S, 2.0 ** (attempt - 1)))
            if watch:
                watch.retrying(wait, failure, attempt)
            await self._clock.sleep(wait)
            restart()

    async def _download(self, order: Order) -> tuple[int, str, str]:
        """One attempt: the link, its redirects, the body. Returns its size, its claimed type and its host."""
        origin = target = self._first_target(order.link)
        try:
            async with asyncio.timeout(order.deadline_s):
                for _ in range(MAX_REDIRECTS + 1):
                    arrival = _Arrival(target.host, order, self._clock)
                    await self._arrive(target, arrival, order.stall_s)
                    if arrival.location is not None:
                        target = next_hop(origin, target, arrival.location)
                        continue
                    return arrival.finish(), arrival.kind, target.host
        except TimeoutError as exc:
            message = f"{target.host} did not send the whole picture in {order.deadline_s:g} s"
            raise LinkError(message, retryable=True) from exc
        raise LinkError(f"the picture's link redirects more than {MAX_REDIRECTS} times (last to {target.host})")

    async def _arrive(self, target: Target, arrival: _Arrival, stall_s: float) -> None:
        """Ask for a link. A connection that breaks in the words of a refusal does not hide the refusal."""
        try:
            await self._get(target, arrival, stall_s)
        except LinkError:
            if not arrival.is_refusal:
                raise

    def _first_target(self, link: str) -> Target:
        target = split_link(link)
        if target.scheme == "http" and not (target.loopback or self._plain):
            raise LinkError(
                f"the picture's link ({target.host}) is plain http, which is fetched from this machine only",
                hint="--no-download prints the link instead",
            )
        return target

    def _masked(self, error: LinkError) -> LinkError:
        error.message = self._mask(error.message)
        error.args = (error.message,)
        return error


class _Arrival:
    """A picture as it comes, or what comes in its place: the ear of one exchange."""

    def __init__(self, host: str, order: Order, clock: Clock) -> None:
        self.host = host
        self.kind = ""
        self.location: str | None = None
        self.is_refusal = False
        self._order = order
        self._clock = clock
        self._status = 0
        self._total: int | None = None
        self._size = 0
        self._said = bytearray()
        self._mark, self._mark_size = clock.monotonic(), 0

    async def leave(self) -> None:
        """Nothing to say before: a picture may be asked for as often as one likes."""

    def sent(self) -> None:
        """Nothing to do but wait."""

    def head(self, status: int, headers: Mapping[str, str]) -> bool:
        """Judge by the head what comes; a redirect's body is not wanted."""
        if status in _REDIRECTS and "location" in headers:
            self.location = headers["location"]
            return True
        self._status, self.is_refusal = status, status != 200
        if self.is_refusal:
            return False
        self.kind, self._total = headers.get("content-type", ""), _content_length(headers)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            raise LinkError(f"{self.host} sent the picture encoded as {encoding[:40]!r}, which was not asked for")
        if self._total is not None and self._total > self._order.max_bytes:
            raise LinkError(f"the picture has {self._total} bytes, more than the limit of {self._order.max_bytes}")
        return False

    def data(self, chunk: bytes | memoryview) -> bool:
        """Write what comes; of a refusal only its first words count."""
        if self.is_refusal:
            self._said += chunk[: _TEXT_BYTES - len(self._said)]
            return len(self._said) >= _TEXT_BYTES
        order = self._order
        self._size += len(chunk)
        if self._size > order.max_bytes:
            raise LinkError(f"the picture has more than {order.max_bytes} bytes")
        order.write(chunk)
        if order.on_progress:
            order.on_progress(self._size, self._total)
        now = self._clock.monotonic()
        if now - self._mark >= order.stall_s:
            if self._size - self._mark_size < order.lowest_rate * (now - self._mark):
                raise LinkError(f"{self.host} sends less than {order.lowest_rate:g} bytes a second", retryable=True)
            self._mark, self._mark_size = now, self._size
        return False

    def finish(self) -> int:
        """The picture's size; everything that is no whole picture raises."""
        if self.is_refusal:
            raise self._refusal()
        if not self._size or (self._total is not None and self._size != self._total):
            told = f" instead of {self._total}" if self._total else ""
            raise LinkError(f"{self.host} sent {self._size} bytes of the picture{told}", retryable=True)
        return self._size

    def _refusal(self) -> LinkError:
        """The error for an answer that is no picture, in the store's own words where the caller can read them."""
        status, explain = self._status, self._order.explain
        kind, message = "download", f"{self.host} answered {status} instead of the picture"
        if explain and self._said:
            kind, message = explain(bytes(self._said), status)
        # A 2xx that is no 200 (empty, a part) is a slip of the store, which a second try may not repeat.
        retryable = kind == "download" and (status >= 500 or status in {408, 429} or 200 < status < 300)
        return LinkError(message, kind=kind, retryable=retryable)


def _content_length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length", "")
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None
