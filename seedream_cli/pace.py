"""When a call may leave: how many at once and a minute, whether one that failed may leave again, and after which wait.

The rules are pure. Time is a `Clock` that is handed in, the only sleeper of the tool.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import email.utils
import random as randomness
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from .errors import ApiError
from .providers.base import Call

MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 600.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How long to wait and how often to try. Times in seconds; `retries` counts the attempts after the first.

    `timeout_s` bounds one exchange from its first byte sent to its last byte received; no further attempt starts once
    that much time has passed since the first. `connect_timeout_s` bounds all that comes before: names, proxy, TCP, TLS.
    `slots`, `rpm` and `ipm` bound the billable requests in flight and the requests and pictures of any 60 seconds.
    """

    timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    retries: int = 4
    retry_ambiguous: bool = False
    slots: int | None = None
    rpm: int | None = None
    ipm: int | None = None


class Clock:
    """Time, so that tests can make it pass at once. The only sleeper of the tool."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def now(self) -> dt.datetime:
        """The wall clock, aware."""
        return dt.datetime.now(dt.UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait without blocking the loop."""
        await asyncio.sleep(seconds)


def decide(error: ApiError, attempt: int, elapsed_s: float, policy: Policy, random: randomness.Random) -> float | None:
    """Seconds to wait before the next attempt, or None to give up. `attempt` counts the attempts made, from 1.

    An attempt that may have been billed is repeated only where the user ordered it. A server error that its contract
    calls unbilled is repeated twice at most: that claim is worth less than a refusal at the door.
    """
    ambiguous = error.kind == "unknown_outcome" or error.billed == "unknown"
    if not (policy.retry_ambiguous if ambiguous else error.retryable):
        return None
    if attempt > policy.retries or (error.kind == "unavailable" and attempt > 2):
        return None
    wait = back_off(error, attempt, random)
    return None if elapsed_s + wait > policy.timeout_s else wait


def back_off(error: ApiError, attempt: int, random: randomness.Random) -> float:
    """1, 2, 4, 8 … 30 s with jitter. Limits get equal jitter: full jitter can use up every try inside one minute."""
    if error.retry_after_s is not None:
        return error.retry_after_s + random.uniform(0, min(1.0, 0.1 * error.retry_after_s + 0.1))
    ceiling = min(MAX_BACKOFF_S, 2.0 ** (attempt - 1))
    if error.kind == "network":
        return random.uniform(0, ceiling)
    return ceiling / 2 + random.uniform(0, ceiling / 2)


class Pace:
    """Slots, requests and pictures a minute, and the moment before which nobody may send."""

    def __init__(self, policy: Policy, clock: Clock, random: randomness.Random) -> None:
        self._clock = clock
        self._random = random
        self._rpm, self._ipm = policy.rpm, policy.ipm
        self._slots = asyncio.Semaphore(policy.slots) if policy.slots else None
        self._sent: deque[tuple[float, int]] = deque()
        self._not_before = 0.0

    def hold(self, seconds: float) -> None:
        """Nobody sends for so long: one request was told that there are too many."""
        self._not_before = max(self._not_before, self._clock.monotonic() + seconds)

    @contextlib.asynccontextmanager
    async def turn(self, call: Call, pictures: int) -> AsyncIterator[None]:
        """Hold a slot from before the first byte to the end of the reply. Polls and lists need none."""
        async with self._slots if self._slots and call.billable else contextlib.nullcontext():
            while (wait := self._wait(call, pictures)) > 0:
                # Jitter keeps all that waited for the same moment from leaving in it.
                await self._clock.sleep(wait + self._random.uniform(0, min(1.0, wait / 10)))
            if call.billable and (self._rpm or self._ipm):
                self._sent.append((self._clock.monotonic(), pictures))
            yield

    def _wait(self, call: Call, pictures: int) -> float:
        now = self._clock.monotonic()
        while self._sent and self._sent[0][0] <= now - 60:
            self._sent.popleft()
        wait = self._not_before - now
        if not call.billable or not self._sent:
            return wait
        full = self._rpm is not None and len(self._sent) >= self._rpm
        # A request for more pictures than a minute allows goes alone, or it would wait for ever.
        full = full or (self._ipm is not None and sum(n for _, n in self._sent) + pictures > self._ipm)
        return max(wait, self._sent[0][0] + 60 - now) if full else wait


def read_retry_after(headers: Mapping[str, str], now: dt.datetime) -> float | None:
    """Seconds to wait by `Retry-After`, 0 to 600; None where it is absent, hostile or garbage.

    The date form is measured against the server's own `Date`, so that a wrong clock on either side does not matter.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,11}(\.[0-9]{1,9})?", value):
        return min(float(value), MAX_RETRY_AFTER_S)
    then = _http_date(value)
    if then is None:
        return None
    base = _http_date(headers.get("date", "")) or now
    return min(max((then - base).total_seconds(), 0.0), MAX_RETRY_AFTER_S)


def _http_date(value: str) -> dt.datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=dt.UTC)
