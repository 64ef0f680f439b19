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


class RateLimiter:
    """When the requests to one provider with one key may leave: so many at once and a minute, and not before when.

    How many at once is learnt: any number up to `Policy.slots`, until one is refused for its number (429). That halves
    what is in flight, once for all that had left by then, and never below one; as many answers as the limit allow one
    more. Who must wait is served in the order of arrival, one that was refused before those that came after it. Free
    calls wait for the moment alone.
    """

    def __init__(self, policy: Policy, clock: Clock, random: randomness.Random) -> None:
        self._clock = clock
        self._random = random
        self._rpm, self._ipm = policy.rpm, policy.ipm
        self._most = self._limit = policy.slots
        self._in_flight = 0
        # Requests are counted as they leave; up to `_burst` they have been answered for.
        self._departures = 0
        self._burst = 0
        self._answers = 0
        self._took_at: float | None = None
        self.strikes = 0
        self._sent: deque[tuple[float, int]] = deque()
        self._images = 0
        self._not_before = 0.0
        self._spread_s = self._spread_until = self._gap_s = 0.0
        # One waits at the door, for a moment or for room; the others wait for the door.
        self._arrivals = 0
        self._door_is_taken = False
        self._queue: list[tuple[int, asyncio.Future[None]]] = []
        self._room: asyncio.Future[None] | None = None

    # A request's way: `arrive`, then for each attempt a turn, what became of it, and `leave`.

    def arrive(self) -> int:
        """A new request's place in the order of all."""
        self._arrivals += 1
        return self._arrivals

    def enter_at_once(self, call: Call, images: int) -> int | None:
        """A turn, if nothing stands against it; 0 for a free call."""
        if not call.billable:
            return 0 if self._until_moment() <= 0 else None
        if self._door_is_taken or self._is_full() or self._wait(images) > 0:
            return None
        return self._depart(images)

    async def enter(self, call: Call, images: int, place: int, waiter: Waiter | None) -> int:
        """A turn, when it comes. The waiter is aside until then."""
        if not call.billable:
            while (wait := self._until_moment()) > 0:
                await self._sleep(wait)
            return 0
        if waiter:
            waiter.step_aside()
        while True:
            await self._reach_door(place)
            try:
                if await self._stand_at_door(place, images, waiter):
                    return self._depart(images)
            finally:
                self._pass_door()

    def leave(self, turn: int) -> None:
        """The exchange is over, however it ended."""
        if turn:
            self._in_flight -= 1
            self._make_room()

    def took(self, turn: int) -> None:
        """The provider answered: it takes requests, and may take more."""
        if not turn:
            return
        self._took_at, self.strikes = self._clock.monotonic(), 0
        # A limit that keeps nobody waiting need not grow.
        if self._limit is None or not (self._door_is_taken or self._in_flight >= self._limit):
            return
        self._answers += 1
        if self._answers >= self._limit and (self._most is None or self._limit < self._most):
            self._limit += 1
            self._answers = 0
            self._make_room()

    def refused(self, turn: int) -> None:
        """The provider said that there are too many."""
        if turn <= self._burst:
            return
        self._burst = self._departures
        self.strikes += 1
        flying = self._in_flight if self._limit is None else min(self._limit, self._in_flight)
        self._limit, self._answers = max(1, flying // 2), 0

    def hold(self, seconds: float) -> None:
        """Nobody sends for so long, and then not all at once: one request was told that there are too many."""
        until = self._clock.monotonic() + seconds
        if until > self._not_before:
            self._not_before = until
            self._spread_s, self._spread_until = min(1.0, seconds / 10), 0.0

    def is_taking(self, since: float) -> bool:
        """Whether the provider answered a request since then, or within the last minute, which limits are made for."""
        if self._took_at is None:
            return False
        return self._took_at >= since or self._clock.monotonic() - self._took_at < MINUTE_S

    def lull_s(self, since: float) -> float:
        """Seconds since the provider answered a request, or since then."""
        return self._clock.monotonic() - max(since, self._took_at or since)

    # The door.

    async def _reach_door(self, place: int) -> None:
        if not self._door_is_taken:
            self._door_is_taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (place, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_door()
            raise

    def _pass_door(self) -> None:
        while self._queue:
            _, turn = heapq.heappop(self._queue)
            # One that is not waiting any more was stopped.
            if not turn.done():
                turn.set_result(None)
                return
        self._door_is_taken = False

    async def _stand_at_door(self, place: int, images: int, waiter: Waiter | None) -> bool:
        """Until there is room, the moment has come and the waiter has back what it gave away, all at the same time.

        False where one that came earlier, and was refused meanwhile, has to go first.
        """
        is_aside = waiter is not None
        while not self._queue or self._queue[0][0] > place:
            full, wait = self._is_full(), self._wait(images)
            if not full and wait <= 0 and not is_aside:
                return True
            if waiter and not is_aside:
                waiter.step_aside()
                is_aside = True
            if full:
                self._room = asyncio.get_running_loop().create_future()
                await self._room
            elif wait > 0:
                await self._sleep(wait)
            elif waiter:
                await waiter.step_back()
                is_aside = False
        if waiter:
            waiter.step_aside()
        return False

    def _make_room(self) -> None:
        if self._room and not self._room.done() and not self._is_full():
            self._room.set_result(None)

    def _is_full(self) -> bool:
        return self._limit is not None and self._in_flight >= self._limit

    def _depart(self, images: int) -> int:
        self._in_flight += 1
        self._departures += 1
        if self._rpm or self._ipm:
            self._sent.append((self._clock.monotonic(), images))
            self._images += images
        if self._spread_s:
            self._spread()
        return self._departures

    def _spread(self) -> None:
        """The first that leaves after a hold begins a while in which the others leave one after the other."""
        now = self._clock.monotonic()
        if not self._spread_until:
            self._spread_until = now + self._spread_s
            self._gap_s = 2 * self._spread_s / (self._limit or len(self._queue) + 1)
        if now < self._spread_until:
            self._not_before = now + self._random.uniform(0, self._gap_s)
        else:
            self._spread_s = 0.0

    async def _sleep(self, wait: float) -> None:
        # Jitter keeps several runs that were told to wait alike from coming back in the same instant.
        await self._clock.sleep(wait + self._random.uniform(0, min(1.0, wait / 20)))

    def _until_moment(self) -> float:
        return self._not_before - self._clock.monotonic() if self._not_before else 0.0

    def _wait(self, images: int) -> float:
        """Seconds until the moment has come, and the last minute has room for one more."""
        wait = self._until_moment()
        if not self._sent:
            return wait
        now = self._clock.monotonic()
        while self._sent and self._sent[0][0] <= now - MINUTE_S:
            self._images -= self._sent.popleft()[1]
        full = self._rpm is not None and len(self._sent) >= self._rpm
        # A request for more images than a minute allows goes alone, or it would wait for ever.
        full = full or (self._ipm is not None and self._images + images > self._ipm)
        return max(wait, self._sent[0][0] + MINUTE_S - now) if full and self._sent else wait


def http_date(value: str) -> dt.datetime | None:
    """The moment that a header names; None for none."""
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=dt.UTC)
