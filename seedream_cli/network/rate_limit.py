"""When a call may leave: how many at once and a minute, whether one that failed may leave again, and after which wait.

The rules are pure. Time is a `Clock` that is handed in, the only sleeper of the tool.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import heapq
import random as randomness
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from ..providers.contract import Call
from .policy import Clock, Policy

LONGEST_WAIT_S = 31_622_400.0
"""A year: a longer wait that a provider asks for is no answer."""

MINUTE_S = 60.0
"""What providers count their limits by."""


class Waiter(Protocol):
    """Who waits for a turn, and holds something meanwhile that others of its run could use."""

    def step_aside(self) -> None:
        """Give it to others; nothing where it is given already."""

    async def step_back(self) -> None:
        """Have it again, before the request leaves."""


@dataclass(slots=True)
class _Concurrency:
    """How many requests may be in flight, as answers teach it: any number up to `most` until one is refused (429).

    Requests are numbered as they leave. A refusal halves what is in flight, and counts for all up to `_halved_at`, the
    last that had left by then.
    """

    most: int | None
    limit: int | None
    in_flight: int = 0
    _left: int = 0
    _halved_at: int = 0
    _answers: int = 0

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.in_flight >= self.limit

    def leave(self) -> int:
        """One more request leaves; its number."""
        self.in_flight += 1
        self._left += 1
        return self._left

    def answer(self) -> bool:
        """A request was answered: after as many as the limit allows there may be one more. Whether there may."""
        if self.limit is None:
            return False
        self._answers += 1
        if self._answers < self.limit or (self.most is not None and self.limit >= self.most):
            return False
        self.limit, self._answers = self.limit + 1, 0
        return True

    def refuse(self, number: int) -> bool:
        """A request was refused for their number. Whether that is news: others that left beside it may be, too."""
        if number <= self._halved_at:
            return False
        self._halved_at = self._left
        flying = self.in_flight if self.limit is None else min(self.limit, self.in_flight)
        self.limit, self._answers = max(1, flying // 2), 0
        return True


@dataclass(slots=True)
class _Minute:
    """What left within the last minute: when, and for how many images. None is no bound."""

    rpm: int | None
    ipm: int | None
    _sent: deque[tuple[float, int]] = field(default_factory=deque)
    _images: int = 0

    def add(self, now: float, images: int) -> None:
        """A request leaves."""
        if self.rpm or self.ipm:
            self._sent.append((now, images))
            self._images += images

    def wait_s(self, now: float, images: int) -> float:
        """Seconds until one more may leave."""
        while self._sent and self._sent[0][0] <= now - MINUTE_S:
            self._images -= self._sent.popleft()[1]
        full = self.rpm is not None and len(self._sent) >= self.rpm
        # A request for more images than a minute allows goes alone, or it would wait for ever.
        full = full or (self.ipm is not None and self._images + images > self.ipm)
        return self._sent[0][0] + MINUTE_S - now if full and self._sent else 0.0


@dataclass(slots=True)
class _Pause:
    """Nobody sends before `until`; after that those who waited leave one after the other for `spread_s` seconds."""

    until: float = 0.0
    spread_s: float = 0.0
    _spread_until: float = 0.0
    _gap_s: float = 0.0

    def wait_s(self, now: float) -> float:
        """Seconds that are left of it."""
        return self.until - now if self.until else 0.0

    def begin(self, now: float, seconds: float) -> None:
        """Pause from now on; a longer pause stays."""
        if now + seconds > self.until:
            self.until = now + seconds
            self.spread_s, self._spread_until = min(1.0, seconds / 10), 0.0

    def spread(self, now: float, at_once: int, random: randomness.Random) -> None:
        """One leaves: the next, of as many as may leave `at_once`, does so a moment later."""
        if not self._spread_until:
            self._spread_until = now + self.spread_s
            self._gap_s = 2 * self.spread_s / at_once
        if now < self._spread_until:
            self.until = now + random.uniform(0, self._gap_s)
        else:
            self.spread_s = 0.0


class RateLimiter:
    """When the requests to one provider with one key may leave: so many at once and a minute, and not before when.

    How many at once is learnt (`_Concurrency`), never below one. Who must wait is served in the order of arrival, one
    that was refused before those that came after it. Free calls wait for the end of a pause alone.

    A request arrives, enters once for each of its attempts, and leaves; what became of the attempt is told by `took`
    or `refused`. An attempt is known by its number, which is 0 for a free call.
    """

    def __init__(self, policy: Policy, clock: Clock, random: randomness.Random) -> None:
        self.strikes = 0
        """Refusals since the last answer, those of one burst counted once."""
        self._clock = clock
        self._random = random
        self._concurrency = _Concurrency(policy.slots, policy.slots)
        self._minute = _Minute(policy.rpm, policy.ipm)
        self._pause = _Pause()
        self._answered_at: float | None = None
        self._arrivals = 0
        # The first in line waits until it may leave; the others wait to be first.
        self._has_first = False
        self._line: list[tuple[int, asyncio.Future[None]]] = []
        self._freed: asyncio.Future[None] | None = None

    def arrive(self) -> int:
        """A new request's place in the order of all."""
        self._arrivals += 1
        return self._arrivals

    def enter_at_once(self, call: Call, images: int) -> int | None:
        """The number of an attempt that may leave now; None where it has to wait."""
        if not call.billable:
            return 0 if self._pause.wait_s(self._clock.monotonic()) <= 0 else None
        if self._has_first or self._concurrency.is_full or self._wait_s(images) > 0:
            return None
        return self._depart(images)

    async def enter(self, call: Call, images: int, place: int, waiter: Waiter | None) -> int:
        """The number of an attempt, once it may leave. The waiter has stepped aside until then."""
        if not call.billable:
            while (wait := self._pause.wait_s(self._clock.monotonic())) > 0:
                await self._sleep(wait)
            return 0
        if waiter:
            waiter.step_aside()
        while True:
            await self._become_first(place)
            try:
                if await self._wait_as_first(place, images, waiter):
                    return self._depart(images)
            finally:
                self._let_next_be_first()

    def leave(self, number: int) -> None:
        """The exchange is over, however it ended."""
        if number:
            self._concurrency.in_flight -= 1
            self._tell_freed()

    def took(self, number: int) -> None:
        """The provider answered: it takes requests, and may take more."""
        if not number:
            return
        self._answered_at, self.strikes = self._clock.monotonic(), 0
        # A limit that keeps nobody waiting need not grow.
        if (self._has_first or self._concurrency.is_full) and self._concurrency.answer():
            self._tell_freed()

    def refused(self, number: int) -> None:
        """The provider said that there are too many."""
        self.strikes += self._concurrency.refuse(number)

    def hold(self, seconds: float) -> None:
        """Nobody sends for so long, and then not all at once: one request was told that there are too many."""
        self._pause.begin(self._clock.monotonic(), seconds)

    def is_taking(self, since: float) -> bool:
        """Whether the provider answered a request since then, or within the last minute, which limits are made for."""
        if self._answered_at is None:
            return False
        return self._answered_at >= since or self._clock.monotonic() - self._answered_at < MINUTE_S

    def lull_s(self, since: float) -> float:
        """Seconds since the provider answered a request, or since then."""
        return self._clock.monotonic() - max(since, self._answered_at or since)

    async def _become_first(self, place: int) -> None:
        if not self._has_first:
            self._has_first = True
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (place, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._let_next_be_first()
            raise

    def _let_next_be_first(self) -> None:
        while self._line:
            _, turn = heapq.heappop(self._line)
            # One that is not waiting any more was stopped.
            if not turn.done():
                turn.set_result(None)
                return
        self._has_first = False

    async def _wait_as_first(self, place: int, images: int, waiter: Waiter | None) -> bool:
        """Until the limits allow one more and the waiter has back what it gave away, both at the same time.

        False where one that arrived earlier, and was refused meanwhile, has to go first.
        """
        is_aside = waiter is not None
        while not self._line or self._line[0][0] > place:
            full, wait = self._concurrency.is_full, self._wait_s(images)
            if not full and wait <= 0 and not is_aside:
                return True
            if waiter and not is_aside:
                waiter.step_aside()
                is_aside = True
            if full:
                self._freed = asyncio.get_running_loop().create_future()
                await self._freed
            elif wait > 0:
                await self._sleep(wait)
            elif waiter:
                await waiter.step_back()
                is_aside = False
        if waiter:
            waiter.step_aside()
        return False

    def _tell_freed(self) -> None:
        if self._freed and not self._freed.done() and not self._concurrency.is_full:
            self._freed.set_result(None)

    def _depart(self, images: int) -> int:
        number, now = self._concurrency.leave(), self._clock.monotonic()
        self._minute.add(now, images)
        if self._pause.spread_s:
            self._pause.spread(now, self._concurrency.limit or len(self._line) + 1, self._random)
        return number

    def _wait_s(self, images: int) -> float:
        """Seconds until the pause is over, and the last minute has room for one more."""
        now = self._clock.monotonic()
        return max(self._pause.wait_s(now), self._minute.wait_s(now, images))

    async def _sleep(self, wait: float) -> None:
        # Jitter keeps several runs that were told to wait alike from coming back in the same instant.
        await self._clock.sleep(wait + self._random.uniform(0, min(1.0, wait / 20)))


def http_date(value: str) -> dt.datetime | None:
    """The moment that a header names; None for none."""
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=dt.UTC)
