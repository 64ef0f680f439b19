"""When a call may be sent again, and after which wait.

A billable call leaves at most once, unless it is proven that it never left, the provider said that it took nothing, or
the user ordered the repetition.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random as randomness
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from ..errors import ApiError, SeedreamError
from ..providers.contract import Call
from .outcome import Answered, Outcome
from .policy import Clock, Policy
from .rate_limit import RateLimiter, Waiter, http_date


class Attempts:
    """The attempts at one call: when each may leave, and whether another may follow it.

        while True:
            async with attempts.turn(waiter):
                outcome = …
                wait_s = attempts.wait_after(outcome)
            …

    A billable call that was refused for the number of requests (429) is not to fail because others are taken. Such a
    refusal counts against `retries` only where the provider took no request since this one's attempt before, nor within
    the last minute; then those of the others count too, so that a long table comes to its end. `timeout_s` is counted
    from the last that it took. More than `PATIENCE` times `retries` are not forgiven: what is refused so often is
    refused for itself.
    """

    def __init__(
        self,
        call: Call,
        images: int,
        limiter: RateLimiter,
        *,
        policy: Policy,
        clock: Clock,
        random: randomness.Random,
        log: Callable[[str], None],
    ) -> None:
        self._call = call
        self._images = images
        self._limiter = limiter
        self._policy = policy
        self._clock = clock
        self._random = random
        self._log = log
        self._arrival = limiter.arrive()
        self._turn = 0
        self._forgiven = 0
        # When the first began, the one before the last, and the last.
        self._first_at = self._before_at = self._last_at = 0.0
        self._ambiguous: ApiError | None = None
        self.number = 0

    @contextlib.asynccontextmanager
    async def turn(self, waiter: Waiter | None = None) -> AsyncIterator[None]:
        """The next attempt's turn at the provider's limits; `waiter` is aside while it is waited for."""
        self.number += 1
        limiter, call, images = self._limiter, self._call, self._images
        turn = limiter.enter_at_once(call, images) if self.number == 1 else None
        self._turn = turn if turn is not None else await limiter.enter(call, images, self._arrival, waiter)
        now = self._clock.monotonic()
        if self.number == 1:
            self._first_at = self._last_at = now
        self._before_at, self._last_at = self._last_at, now
        try:
            yield
        finally:
            limiter.leave(self._turn)

    def wait_after(self, outcome: Outcome[Any]) -> float | None:
        """Seconds until the call may be sent again; None where it may not be. To be asked once, within the turn."""
        if isinstance(outcome, Answered):
            self._limiter.took(self._turn)
            return None
        error = outcome.error
        self._log(f"* attempt {self.number}: {error.kind}: {error.message}")
        if error.billed == "unknown":
            self._ambiguous = self._ambiguous or error
        if not _is_limit(error):
            elapsed_s = self._clock.monotonic() - self._first_at
            return decide(error, self._counted, elapsed_s, self._policy, self._random)
        self._limiter.refused(self._turn)
        return self._wait_after_limit(error)

    def verdict(self, last: SeedreamError) -> SeedreamError:
        """What the call came to, after what ended it: that is the cause of the verdict where it is not the verdict.

        An attempt that may have been paid for is not made good by a later refusal, a full disk or a spent budget.
        """
        if self._ambiguous is None or last is self._ambiguous:
            return last
        self._ambiguous.__cause__ = last
        return self._ambiguous

    @property
    def _counted(self) -> int:
        """The attempts that count against `retries`."""
        return max(1, self.number - self._forgiven)

    def _wait_after_limit(self, error: ApiError) -> float | None:
        """The same after a refusal for the number of requests; nobody else sends until then."""
        limiter, count = self._limiter, self._counted
        elapsed_s, strikes = self._clock.monotonic() - self._first_at, count
        if self._call.billable:
            elapsed_s, strikes = limiter.lull_s(self._first_at), limiter.strikes
            count = self._count_refusal()
        wait = decide(error, count, elapsed_s, self._policy, self._random, strikes=strikes)
        # One that gives up has been patient enough for those behind it.
        limiter.hold(wait if wait is not None else back_off(error, 1, self._random))
        return wait

    def _count_refusal(self) -> int:
        """How many attempts count, after a refusal for the number of requests."""
        if not self._limiter.is_taking(self._before_at):
            return max(self._counted, self._limiter.strikes)
        if self._forgiven < PATIENCE * self._policy.retries:
            self._forgiven += 1
        return self._counted


def _is_limit(error: ApiError) -> bool:
    """Whether it was refused for the number of requests alone, unbilled."""
    return error.kind == "rate_limited" and error.retryable and error.billed == "no"


MAX_BACKOFF_S = 30.0

MAX_RETRY_AFTER_S = 600.0

PATIENCE = 5
"""How many times `retries` a request may be refused for the number of requests while others are taken."""


def decide(
    error: ApiError, attempt: int, elapsed_s: float, policy: Policy, random: randomness.Random, *, strikes: int = 0
) -> float | None:
    """Seconds to wait before the next attempt, or None to give up. `attempt` counts those that count, from 1.

    An attempt that may have been billed is repeated only where the user ordered it. A server error that its contract
    calls unbilled is repeated twice at most: that claim is worth less than a refusal at the door. `strikes`, where it
    is known how often in a row the provider has refused everybody, makes the wait instead of the attempts of this one.
    """
    ambiguous = error.kind == "unknown_outcome" or error.billed == "unknown"
    if not (policy.retry_ambiguous if ambiguous else error.retryable):
        return None
    if attempt > policy.retries or (error.kind == "unavailable" and attempt > 2):
        return None
    wait = back_off(error, strikes or attempt, random)
    return None if elapsed_s + wait > policy.timeout_s else wait


def back_off(error: ApiError, attempt: int, random: randomness.Random) -> float:
    """1, 2, 4, 8 … 30 s with jitter. Limits get equal jitter: full jitter can use up every try inside one minute."""
    if error.retry_after_s is not None:
        asked_s = min(error.retry_after_s, MAX_RETRY_AFTER_S)
        return asked_s + random.uniform(0, min(1.0, 0.1 * asked_s + 0.1))
    ceiling = min(MAX_BACKOFF_S, 2.0 ** (attempt - 1))
    if error.kind == "network":
        return random.uniform(0, ceiling)
    return ceiling / 2 + random.uniform(0, ceiling / 2)


def read_retry_after(headers: Mapping[str, str], now: dt.datetime, *, most: float = MAX_RETRY_AFTER_S) -> float | None:
    """Seconds to wait by `Retry-After`, 0 to `most`; None where it is absent, hostile or garbage.

    The date form is measured against the server's own `Date`, so that a wrong clock on either side does not matter.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,11}(\.[0-9]{1,9})?", value):
        return min(float(value), most)
    then = http_date(value)
    if then is None:
        return None
    base = http_date(headers.get("date", "")) or now
    return min(max((then - base).total_seconds(), 0.0), most)
