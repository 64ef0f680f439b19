"""The download of one image: how far its link may lead, how much may come and how slowly, and how often to try.

Who asks for a link is handed in (`get`), and so is the clock: the rules stand here alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random as randomness
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import LinkError
from ..storage.image_encoding import Unwrapper
from .policy import Clock
from .rate_limit import http_date
from .retry import MAX_BACKOFF_S
from .urls import Link, next_hop, split_link

if TYPE_CHECKING:
    from .transports import Response

T = TypeVar("T")

MAX_REDIRECTS = 3

_TEXT_BYTES = 2000

_PASSING = frozenset({408, 425, 429})

_NOT_YET = frozenset({403, 404, 410})

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


IMAGE_LIMIT = 64 << 20

DOWNLOAD_S = 300.0


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """What one attempt at an image may take: bytes, seconds, and no fewer than `lowest_rate` bytes a second over every
    `stall_s`.
    """

    max_bytes: int = IMAGE_LIMIT
    deadline_s: float = DOWNLOAD_S
    stall_s: float = 20.0
    lowest_rate: float = 1000.0


@dataclass(frozen=True, slots=True)
class Download(Generic[T]):
    """An image to fetch. `write` takes its bytes, `restart` empties the file before another attempt, `check` is given
    the size and judges the whole file: a retryable LinkError from it means another attempt.

    `explain` turns the status and the first 2 kB of a refusal into (kind, message). `on_progress` gets the bytes so far
    and the total, if the server tells it. `dies` is when the link dies, in seconds since 1970, None where nobody says;
    until `young_s` of the clock's own time the image may not be there yet.
    """

    link: str
    write: Callable[[bytes | memoryview], None]
    restart: Callable[[], None]
    check: Callable[[int], Awaitable[T]]
    explain: Callable[[bytes, int], tuple[str, str]] | None = None
    on_progress: Callable[[int, int | None], None] | None = None
    dies: int | None = None
    young_s: float = 0.0
    limits: DownloadLimits = DownloadLimits()


Get = Callable[[Link, float], contextlib.AbstractAsyncContextManager["Response"]]
"""Asks for a link, and bears so many seconds' silence."""


class Downloads:
    """All downloads of a run. `is_plain_allowed` lets a link be plain http to another machine, for a provider that is
    on this one. `mask` takes secrets out of a text, `log` takes a line.
    """

    def __init__(
        self,
        get: Get,
        *,
        retries: int,
        clock: Clock,
        random: randomness.Random,
        mask: Callable[[str], str],
        log: Callable[[str], None],
        is_plain_allowed: bool,
    ) -> None:
        self._get = get
        self._retries = retries
        self._clock = clock
        self._random = random
        self._mask = mask
        self._log = log
        self._is_plain_allowed = is_plain_allowed

    async def fetch(self, download: Download[T]) -> T:
        """Get a link, byte for byte as the provider gave it, and again where that may help; what `check` made of it.

        Raises LinkError.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                size, broken = await self._download(download)
                return await _checked(download, size, broken)
            except LinkError as error:
                failure = self._masked(error)
            self._log(f"* download, attempt {attempt}: {failure.message}")
            if not failure.retryable or attempt > self._retries:
                raise failure
            wait = min(MAX_BACKOFF_S, 2.0 ** (attempt - 1))
            # What is not there yet comes by waiting; what broke may hold at once.
            await self._clock.sleep(wait if failure.early else self._random.uniform(0, wait))
            download.restart()

    async def _download(self, download: Download[T]) -> tuple[int, LinkError | None]:
        """One attempt: the link, its redirects, the body. Returns the size, and what speaks against it being whole."""
        target, limits = self._first_target(download.link), download.limits
        receiver = _ImageReceiver(target.host, download, self._clock)
        try:
            async with asyncio.timeout(limits.deadline_s):
                for _ in range(MAX_REDIRECTS + 1):
                    receiver = _ImageReceiver(target.host, download, self._clock)
                    await self._receive(target, receiver, limits.stall_s)
                    if receiver.location is None:
                        return receiver.finish()
                    target = next_hop(target, receiver.location)
        except TimeoutError as exc:
            message = f"{target.host} did not send the whole image in {limits.deadline_s:g} s"
            receiver.broken = LinkError(message, retryable=True)
            if not receiver.has_image:
                raise receiver.broken from exc
            return receiver.finish()
        raise LinkError(f"the image's link redirects more than {MAX_REDIRECTS} times (last to {target.host})")

    async def _receive(self, target: Link, receiver: _ImageReceiver, stall_s: float) -> None:
        """Ask for a link. A connection that breaks hides neither a refusal nor an image that came before it did."""
        try:
            async with self._get(target, stall_s) as response:
                receiver.begin(response.status, response.headers)
                async with contextlib.aclosing(response.chunks()) as chunks:
                    while not receiver.is_done and (chunk := await anext(chunks, None)) is not None:
                        receiver.take(chunk)
        except LinkError as error:
            if not (receiver.is_refusal or receiver.has_image):
                raise
            receiver.broken = error

    def _first_target(self, link: str) -> Link:
        target = split_link(link)
        if target.scheme == "http" and not (target.loopback or self._is_plain_allowed):
            raise LinkError(
                f"the image's link ({target.host}) is plain http, which is fetched from this machine only",
                hint="seedream history show ID --links shows the link",
            )
        return target

    def _masked(self, error: LinkError) -> LinkError:
        error.message = self._mask(error.message)
        error.args = (error.message,)
        return error


async def _checked(download: Download[T], size: int, broken: LinkError | None) -> T:
    """What the check makes of it. A whole image is one, however its transfer ended."""
    try:
        return await download.check(size)
    except LinkError as error:
        raise broken or error from error


class _ImageReceiver:
    """An image as it comes, or what comes in its place."""

    def __init__(self, host: str, download: Download[T], clock: Clock) -> None:
        self.host = host
        self.location: str | None = None
        self.is_done = False
        self.is_refusal = False
        self.broken: LinkError | None = None
        self._download = download
        self._limits = download.limits
        self._clock = clock
        self._status = 0
        self._date: dt.datetime | None = None
        self._total: int | None = None
        self._size = 0
        self._refusal_text = bytearray()
        self._mark, self._mark_size = clock.monotonic(), 0
        self._body = Unwrapper(download.write, download.limits.max_bytes)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """See by the head what comes; a redirect's body is not wanted."""
        if status in _REDIRECTS and "location" in headers:
            self.location, self.is_done = headers["location"], True
            return
        self._date = http_date(headers.get("date", ""))
        self._status, self.is_refusal = status, not _may_be_image(status, headers)
        if not self.is_refusal:
            self._total = _content_length(headers)

    @property
    def has_image(self) -> bool:
        """Whether bytes came that may be one."""
        return bool(self._size) and not self.is_refusal

    def take(self, chunk: bytes | memoryview) -> None:
        """Write what comes; of a refusal only its first words count."""
        if self.is_refusal:
            self._refusal_text += chunk[: _TEXT_BYTES - len(self._refusal_text)]
            self.is_done = len(self._refusal_text) >= _TEXT_BYTES
            return
        limits = self._limits
        self._size += len(chunk)
        if self._size > limits.max_bytes:
            raise LinkError(f"the image has more than {limits.max_bytes} bytes")
        self._body.take(chunk)
        if self._download.on_progress:
            self._download.on_progress(self._size, self._total)
        now = self._clock.monotonic()
        if now - self._mark >= limits.stall_s:
            if self._size - self._mark_size < limits.lowest_rate * (now - self._mark):
                raise LinkError(f"{self.host} sends less than {limits.lowest_rate:g} bytes a second", retryable=True)
            self._mark, self._mark_size = now, self._size

    def finish(self) -> tuple[int, LinkError | None]:
        """The size of what came, and what speaks against it, should the check find that something is missing. No length
        that a server gives is proof.
        """
        if self.is_refusal:
            raise self._refusal()
        if not self._size:
            raise LinkError(f"{self.host} sent 0 bytes of the image", retryable=True)
        if self._total is not None and self._size < self._total and self.broken is None:
            message = f"{self.host} sent {self._size} bytes of the image instead of {self._total}"
            self.broken = LinkError(message, retryable=True)
        return self._body.close(), self.broken

    def _refusal(self) -> LinkError:
        """The error for an answer that is no image, in the store's own words where the caller can read them.

        A link has expired where its own date and the store say so. What a store refuses before that date, or of a link
        that was just made, may only not be there yet.
        """
        status, order = self._status, self._download
        kind, message = "download", f"{self.host} answered {status} instead of the image"
        if order.explain and self._refusal_text:
            kind, message = order.explain(bytes(self._refusal_text), status)
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
