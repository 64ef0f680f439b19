"""The download of one image: how far its link may lead, how much may come and how slowly, and how often to try.

Whoever asks the network is handed in (`get`), and so is the clock: the rules stand here alone.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random as randomness
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import LinkError
from ..storage.image_encoding import Unwrapper
from .exchange import Listener
from .policy import Clock
from .rate_limit import http_date
from .retry import MAX_BACKOFF_S, Watch
from .urls import Link, next_hop, split_link

T = TypeVar("T")

MAX_REDIRECTS = 3

_TEXT_BYTES = 2000

_PASSING = frozenset({408, 425, 429})

_NOT_YET = frozenset({403, 404, 410})

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """An image to fetch and what that may take: bytes, seconds, seconds without enough bytes, bytes a second.

    `dies` is when the link dies, in seconds since 1970, None where nobody says; until `young_s` of the clock's own time
    the image may not be there yet.
    """

    link: str
    write: Callable[[bytes | memoryview], None]
    explain: Callable[[bytes, int], tuple[str, str]] | None
    on_progress: Callable[[int, int | None], None] | None
    max_bytes: int
    deadline_s: float
    stall_s: float
    lowest_rate: float
    dies: int | None = None
    young_s: float = 0.0


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
        get: Callable[[Link, Listener, float], Awaitable[None]],
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
        self,
        order: DownloadLimits,
        *,
        restart: Callable[[], None],
        check: Callable[[int], Awaitable[T]],
        watch: Watch | None,
    ) -> Fetched[T]:
        """Get an order's link, and again where that may help. Raises LinkError."""
        attempt = 0
        while True:
            attempt += 1
            try:
                came = await self._download(order)
                return Fetched(await _judge(came, check), came.size, came.content_type, came.host, attempt)
            except LinkError as error:
                failure = self._masked(error)
            self._say(f"* download, attempt {attempt}: {failure.message}")
            if not failure.retryable or attempt > self._retries:
                raise failure
            wait = min(MAX_BACKOFF_S, 2.0 ** (attempt - 1))
            # What is not there yet comes by waiting; what broke may hold at once.
            wait = wait if failure.early else self._random.uniform(0, wait)
            if watch:
                watch.retrying(wait, failure, attempt)
            await self._clock.sleep(wait)
            restart()

    async def _download(self, order: DownloadLimits) -> _Came:
        """One attempt: the link, its redirects, the body."""
        target = self._first_target(order.link)
        arrival = _ImageReceiver(target.host, order, self._clock)
        try:
            async with asyncio.timeout(order.deadline_s):
                for _ in range(MAX_REDIRECTS + 1):
                    arrival = _ImageReceiver(target.host, order, self._clock)
                    await self._arrive(target, arrival, order.stall_s)
                    if arrival.location is None:
                        return arrival.finish()
                    target = next_hop(target, arrival.location)
        except TimeoutError as exc:
            message = f"{target.host} did not send the whole image in {order.deadline_s:g} s"
            arrival.broken = LinkError(message, retryable=True)
            if not arrival.has_image:
                raise arrival.broken from exc
            return arrival.finish()
        raise LinkError(f"the image's link redirects more than {MAX_REDIRECTS} times (last to {target.host})")

    async def _arrive(self, target: Link, arrival: _ImageReceiver, stall_s: float) -> None:
        """Ask for a link. A connection that breaks hides neither a refusal nor an image that came before it did."""
        try:
            await self._get(target, arrival, stall_s)
        except LinkError as error:
            if not (arrival.is_refusal or arrival.has_image):
                raise
            arrival.broken = error

    def _first_target(self, link: str) -> Link:
        target = split_link(link)
        if target.scheme == "http" and not (target.loopback or self._plain):
            raise LinkError(
                f"the image's link ({target.host}) is plain http, which is fetched from this machine only",
                hint="seedream history show ID --links shows the link",
            )
        return target

    def _masked(self, error: LinkError) -> LinkError:
        error.message = self._mask(error.message)
        error.args = (error.message,)
        return error


@dataclass(frozen=True, slots=True)
class _Came:
    """What one attempt brought. `broken` is what speaks against it, should its check find that something is missing."""

    size: int
    content_type: str
    host: str
    broken: LinkError | None


async def _judge(came: _Came, check: Callable[[int], Awaitable[T]]) -> T:
    """What the check makes of it. A whole image is one, however its transfer ended."""
    try:
        return await check(came.size)
    except LinkError as error:
        raise came.broken or error from error


class _ImageReceiver:
    """An image as it comes, or what comes in its place: the ear of one exchange."""

    def __init__(self, host: str, order: DownloadLimits, clock: Clock) -> None:
        self.host = host
        self.kind = ""
        self.location: str | None = None
        self.is_refusal = False
        self.broken: LinkError | None = None
        self._order = order
        self._clock = clock
        self._status = 0
        self._date: dt.datetime | None = None
        self._total: int | None = None
        self._size = 0
        self._said = bytearray()
        self._mark, self._mark_size = clock.monotonic(), 0
        self._body = Unwrapper(order.write, order.max_bytes)

    async def leave(self) -> None:
        """Nothing to say before: an image may be asked for as often as one likes."""

    def sent(self) -> None:
        """Nothing to do but wait."""

    def cut(self) -> None:
        """A request without a body has no end that could be missing."""

    def head(self, status: int, headers: Mapping[str, str]) -> bool:
        """Judge by the head what comes; a redirect's body is not wanted."""
        if status in _REDIRECTS and "location" in headers:
            self.location = headers["location"]
            return True
        self._date = http_date(headers.get("date", ""))
        self._status, self.is_refusal = status, not _may_be_image(status, headers)
        if not self.is_refusal:
            self.kind, self._total = headers.get("content-type", ""), _content_length(headers)
        return False

    @property
    def has_image(self) -> bool:
        """Whether bytes came that may be one."""
        return bool(self._size) and not self.is_refusal

    def data(self, chunk: bytes | memoryview) -> bool:
        """Write what comes; of a refusal only its first words count."""
        if self.is_refusal:
            self._said += chunk[: _TEXT_BYTES - len(self._said)]
            return len(self._said) >= _TEXT_BYTES
        order = self._order
        self._size += len(chunk)
        if self._size > order.max_bytes:
            raise LinkError(f"the image has more than {order.max_bytes} bytes")
        self._body.take(chunk)
        if order.on_progress:
            order.on_progress(self._size, self._total)
        now = self._clock.monotonic()
        if now - self._mark >= order.stall_s:
            if self._size - self._mark_size < order.lowest_rate * (now - self._mark):
                raise LinkError(f"{self.host} sends less than {order.lowest_rate:g} bytes a second", retryable=True)
            self._mark, self._mark_size = now, self._size
        return False

    def finish(self) -> _Came:
        """What came; whether it is whole is for the check to see, and no length that a server tells is proof."""
        if self.is_refusal:
            raise self._refusal()
        if not self._size:
            raise LinkError(f"{self.host} sent 0 bytes of the image", retryable=True)
        if self._total is not None and self._size < self._total and self.broken is None:
            message = f"{self.host} sent {self._size} bytes of the image instead of {self._total}"
            self.broken = LinkError(message, retryable=True)
        return _Came(self._body.close(), self.kind, self.host, self.broken)

    def _refusal(self) -> LinkError:
        """The error for an answer that is no image, in the store's own words where the caller can read them.

        A link has expired where its own date and the store say so. What a store refuses before that date, or of a link
        that was just made, may only not be there yet.
        """
        status, order = self._status, self._order
        kind, message = "download", f"{self.host} answered {status} instead of the image"
        if order.explain and self._said:
            kind, message = order.explain(bytes(self._said), status)
        if 400 <= status < 500 and status not in _PASSING:
            now = self._date or self._clock.now()
            if order.dies is not None and order.dies <= now.timestamp():
                by_date = "" if kind == "expired" else f"the link has expired by its own date; {message}"
                return LinkError(by_date or message, kind="expired")
            if kind == "expired":
                message = message.replace("the link has expired", "the store says that the link has expired", 1)
                message += "; its time is not over yet" if order.dies is not None else "; it has no date of its own"
            is_early = status in _NOT_YET and (order.dies is not None or self._clock.monotonic() < order.young_s)
            return LinkError(message, retryable=is_early, early=is_early)
        # A 2xx that is no 200 (empty, a part) is a slip of the store, which a second try may not repeat.
        return LinkError(message, retryable=status >= 500 or status in _PASSING or 200 < status < 300)


_RANGE = re.compile(r"bytes +([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)


def _may_be_image(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an image may come with this head. Every kind of success may bring one, but an empty one or a part."""
    if status in {204, 205} or not 200 <= status < 300:
        return False
    if status == 206 and (told := _RANGE.fullmatch(headers.get("content-range", "").strip())):
        # A range nobody asked for; its end is not looked at, which some servers tell wrongly by one.
        return int(told[1]) == 0 and (told[3] == "*" or int(told[2]) + 1 >= int(told[3]))
    return True


def _content_length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length", "")
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None
