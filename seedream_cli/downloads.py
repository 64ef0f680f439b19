"""The download of one picture: how far its link may lead, how much may come and how slowly, and how often to try.

Whoever asks the network is handed in (`open_link`), and so is the clock: the rules stand here alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random as randomness
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

from .attempts import Watch
from .errors import LinkError
from .links import Target, next_hop, split_link
from .pace import MAX_BACKOFF_S, Clock

T = TypeVar("T")

MAX_REDIRECTS = 3
_TEXT_BYTES = 2000
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Order:
    """A picture to fetch and what that may take: bytes, seconds, seconds without enough bytes, bytes a second."""

    link: str
    write: Callable[[bytes], None]
    explain: Callable[[bytes, int], tuple[str, str]] | None
    on_progress: Callable[[int, int | None], None] | None
    max_bytes: int
    deadline_s: float
    stall_s: float
    lowest_rate: float


@dataclass(frozen=True, slots=True)
class Opened:
    """What a server answers to a link: its head, where it points to, and the bytes as they come (LinkError if not)."""

    host: str
    status: int
    headers: Mapping[str, str]
    location: str | None
    pieces: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Fetched(Generic[T]):
    """A link that was fetched whole: what the caller's `check` made of it, and the type that the server claimed."""

    checked: T
    size: int
    content_type: str
    host: str
    attempts: int


class Downloads:
    """All downloads of a run. `open_link` asks for a link and bears silence for so many seconds.

    `plain` allows links of plain http to other machines, for a provider that is on this one.
    """

    def __init__(
        self,
        open_link: Callable[[Target, float], AbstractAsyncContextManager[Opened]],
        *,
        retries: int,
        clock: Clock,
        random: randomness.Random,
        mask: Callable[[str], str],
        say: Callable[[str], None],
        plain: bool,
    ) -> None:
        self._open = open_link
        self._retries = retries
        self._clock = clock
        self._random = random
        self._mask = mask
        self._say = say
        self._plain = plain

    async def fetch(
        self, order: Order, *, restart: Callable[[], None], check: Callable[[], T], watch: Watch | None
    ) -> Fetched[T]:
        """Get an order's link, and again where that may help. Raises LinkError."""
        attempt = 0
        while True:
            attempt += 1
            try:
                size, kind, host = await self._download(order)
                return Fetched(await asyncio.to_thread(check), size, kind, host, attempt)
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
                    async with self._open(target, order.stall_s) as opened:
                        if opened.status in _REDIRECTS and opened.location is not None:
                            target = next_hop(origin, target, opened.location)
                            continue
                        size = await self._take(opened, order)
                        return size, opened.headers.get("content-type", ""), target.host
        except TimeoutError as exc:
            message = f"{target.host} did not send the whole picture in {order.deadline_s:g} s"
            raise LinkError(message, retryable=True) from exc
        raise LinkError(f"the picture's link redirects more than {MAX_REDIRECTS} times (last to {target.host})")

    def _first_target(self, link: str) -> Target:
        target = split_link(link)
        if target.scheme == "http" and not (target.loopback or self._plain):
            raise LinkError(
                f"the picture's link ({target.host}) is plain http, which is fetched from this machine only",
                hint="--no-download prints the link instead",
            )
        return target

    async def _take(self, opened: Opened, order: Order) -> int:
        """Write the body of a 200 and return its size; everything else is a failure."""
        host, total = opened.host, _content_length(opened.headers)
        if opened.status != 200:
            raise await _refusal(opened, order.explain)
        encoding = opened.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            raise LinkError(f"{host} sent the picture encoded as {encoding[:40]!r}, which was not asked for")
        if total is not None and total > order.max_bytes:
            raise LinkError(f"the picture has {total} bytes, more than the limit of {order.max_bytes}")
        size, mark, mark_size = 0, self._clock.monotonic(), 0
        async for chunk in opened.pieces:
            size += len(chunk)
            if size > order.max_bytes:
                raise LinkError(f"the picture has more than {order.max_bytes} bytes")
            order.write(chunk)
            if order.on_progress:
                order.on_progress(size, total)
            now = self._clock.monotonic()
            if now - mark < order.stall_s:
                continue
            if size - mark_size < order.lowest_rate * (now - mark):
                raise LinkError(f"{host} sends less than {order.lowest_rate:g} bytes a second", retryable=True)
            mark, mark_size = now, size
        if not size or (total is not None and size != total):
            message = f"{host} sent {size} bytes of the picture" + (f" instead of {total}" if total else "")
            raise LinkError(message, retryable=True)
        return size

    def _masked(self, error: LinkError) -> LinkError:
        error.message = self._mask(error.message)
        error.args = (error.message,)
        return error


def _content_length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length", "")
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None


async def _refusal(opened: Opened, explain: Callable[[bytes, int], tuple[str, str]] | None) -> LinkError:
    """The error for an answer that is no picture, in the store's own words where the caller can read them."""
    status, start = opened.status, bytearray()
    with contextlib.suppress(LinkError):
        async for chunk in opened.pieces:
            start += chunk[: _TEXT_BYTES - len(start)]
            if len(start) >= _TEXT_BYTES:
                break
    kind, message = "download", f"{opened.host} answered {status} instead of the picture"
    if explain and start:
        kind, message = explain(bytes(start), status)
    # A 2xx that is no 200 (empty, a part) is a slip of the store, which a second try may not repeat.
    retryable = kind == "download" and (status >= 500 or status in {408, 429} or 200 < status < 300)
    return LinkError(message, kind=kind, retryable=retryable)
