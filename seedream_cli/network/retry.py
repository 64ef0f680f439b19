"""The attempts at one call: what each has done so far, whether another follows, and which failure speaks for all.

A billable call leaves at most once, unless it is proven that it never left, the provider said that it took nothing, or
the user ordered the repetition.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random as randomness
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from ..errors import ApiError, FileError, SeedreamError
from ..providers.contract import Call
from ..text import span_words
from .policy import Clock, Policy
from .rate_limit import LONGEST_WAIT_S, RateLimiter, Waiter, http_date
from .response import Received

R = TypeVar("R")


class Watch(Protocol):
    """Who wants to know how an exchange goes on. Must neither raise nor block."""

    def stage(self, name: Literal["connecting", "sent", "receiving"]) -> None:
        """An attempt entered a stage."""

    def retrying(self, wait_s: float, error: SeedreamError, attempt: int) -> None:
        """Attempt number `attempt` failed and will be repeated in `wait_s` seconds."""

    def unsent(self) -> None:
        """The attempt was stopped before its request was written to its end, which makes it none."""


Gate = Callable[[int], Awaitable[None] | None]
"""Called with the attempt's number just before its first byte leaves; what it raises keeps that from leaving."""


class Trail:
    """What one attempt has done so far, as the connection tells it."""

    def __init__(
        self,
        attempt: int,
        policy: Policy,
        *,
        gate: Gate | None,
        clock: Clock,
        watch: Watch | None,
    ) -> None:
        self._attempt = attempt
        self._policy = policy
        self._gate = gate
        self._clock = clock
        self._watch = watch
        self.timer: asyncio.Timeout | None = None
        self.sent = False
        self.cut = False
        self.final = False
        self.sent_at = clock.monotonic()
        self.received: Received | None = None

    @property
    def head(self) -> Received:
        """The reply's outside as far as it came."""
        return self.received or Received(0, {})

    async def leave(self) -> None:
        """The last moment before the first byte leaves; what the gate raises here keeps it from leaving."""
        if self._gate and (said := self._gate(self._attempt)) is not None:
            await said
        self.sent = True
        self.sent_at = self._clock.monotonic()
        if self.timer:
            self.timer.reschedule(asyncio.get_running_loop().time() + self._policy.timeout_s)

    def stage(self, name: Literal["connecting", "sent", "receiving"]) -> None:
        """Tell whoever watches."""
        if self._watch:
            self._watch.stage(name)

    def stopped(self) -> None:
        """The run stops. What was not written to its end, and not answered, nobody can have charged for."""
        if self._watch and self.cut and self.received is None:
            self._watch.unsent()


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """A finished exchange and what it took."""

    value: R
    attempts: int
    provider_s: float
    doubtful: int


@dataclass(slots=True)
class Effort:
    """What one call has cost so far in attempts, and when they began: the first, and the one before the last."""

    attempt: int = 0
    spared: int = 0
    began: float = -1.0
    before: float = 0.0
    last: float = 0.0

    @property
    def counted(self) -> int:
        """The attempts that count against `retries`."""
        return max(1, self.attempt - self.spared)

    def begin(self, now: float) -> None:
        """Another attempt begins."""
        if self.attempt == 1:
            self.began = self.last = now
        self.before, self.last = self.last, now


class Attempts:
    """All attempts at the calls of one provider with one key. `mask` takes secrets out of a text, `say` logs a line."""

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        random: randomness.Random,
        *,
        mask: Callable[[str], str],
        say: Callable[[str], None],
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._random = random
        self._pace = RateLimiter(policy, clock, random)
        self._mask = mask
        self._say = say

    async def repeat(
        self,
        call: Call,
        once: Callable[[Trail], Awaitable[R]],
        *,
        gate: Gate | None,
        watch: Watch | None,
        images: int,
        waiter: Waiter | None = None,
    ) -> Outcome[R]:
        """The one place where a call is sent again. Waits hold no slot, and the waiter is aside meanwhile.

        A billable call that was refused for the number of requests (429) is not to fail because others are taken. Such
        a refusal counts against `retries` only where the provider took no request since this one's attempt before, nor
        within the last minute; then those of the others count too, so that a long table comes to its end. `timeout_s`
        is counted from the last that it took. More than `PATIENCE` times `retries` are not forgiven: what is refused
        so often is refused for itself.
        """
        pace, place = self._pace, self._pace.arrive()
        effort, doubts = Effort(), list[ApiError]()
        while True:
            effort.attempt += 1
            # Who waited before has to come back first.
            turn = pace.enter_at_once(call, images) if effort.attempt == 1 else None
            if turn is None:
                turn = await pace.enter(call, images, place, waiter)
            trail = Trail(effort.attempt, self._policy, gate=gate, clock=self._clock, watch=watch)
            effort.begin(trail.sent_at)
            try:
                value = await once(trail)
                pace.took(turn)
                return Outcome(value, effort.attempt, self._clock.monotonic() - trail.sent_at, len(doubts))
            except ApiError as error:
                failure = self.settle(error, trail)
                if _is_limit(failure):
                    pace.refused(turn)
            except SeedreamError as error:
                if isinstance(error, FileError) and trail.received and call.billable and error.billed == "no":
                    # The disk refused the answer, not the request: that was at work, and may be paid.
                    error.billed = "unknown"
                # The gate or a changed file stops a repetition; the doubt about the first attempt remains.
                if doubts:
                    raise doubts[0] from error
                raise
            finally:
                pace.leave(turn)
            self._say(f"* attempt {effort.attempt}: {failure.kind}: {failure.message}")
            if failure.billed == "unknown":
                doubts.append(failure)
            wait = self._wait_after(failure, effort, call)
            if wait is None or trail.final:
                raise _verdict(doubts, failure)
            if watch:
                watch.retrying(wait, failure, effort.attempt)
            if waiter:
                waiter.step_aside()
            await self._clock.sleep(wait)

    def _wait_after(self, failure: ApiError, effort: Effort, call: Call) -> float | None:
        """Seconds until the next attempt, or None; after a refusal for their number nobody else sends until then."""
        pace, elapsed_s = self._pace, self._clock.monotonic() - effort.began
        if not _is_limit(failure):
            return decide(failure, effort.counted, elapsed_s, self._policy, self._random)
        count = effort.counted
        if call.billable:
            elapsed_s = pace.lull_s(effort.began)
            count = self._count_refusal(effort)
        strikes = pace.strikes if call.billable else count
        wait = decide(failure, count, elapsed_s, self._policy, self._random, strikes=strikes)
        # Who gives up has been patient enough for those behind it.
        pace.hold(wait if wait is not None else back_off(failure, 1, self._random))
        return wait

    def _count_refusal(self, effort: Effort) -> int:
        """How many attempts count, after a refusal for the number of requests."""
        if not self._pace.is_taking(effort.before):
            return max(effort.counted, self._pace.strikes)
        if effort.spared < PATIENCE * self._policy.retries:
            effort.spared += 1
        return effort.counted

    def settle(self, error: ApiError, trail: Trail) -> ApiError:
        """Complete an error with what the reply's head says, and take every secret out of it."""
        if trail.received:
            error.request_id = error.request_id or trail.received.request_id
            if error.retry_after_s is None:
                error.retry_after_s = read_retry_after(trail.received.headers, self._clock.now(), most=LONGEST_WAIT_S)
                error.message = _with_wait(error)
            if error.status is None:
                error.status = trail.received.status
        error.message = self._mask(error.message)
        error.hint, error.code = self._mask(error.hint), self._mask(error.code)
        error.request_id = self._mask(error.request_id)
        error.args = (error.message,)
        return error


def _verdict(doubts: Sequence[ApiError], last: ApiError) -> ApiError:
    """What a call came to after its last attempt, which is the cause of the verdict where it is not the verdict.

    A doubt is not lifted by a later refusal: what may have been paid once stays in the account.
    """
    if not doubts or last is doubts[0]:
        return last
    doubts[0].__cause__ = last
    return doubts[0]


def _with_wait(error: ApiError) -> str:
    """The message with the time that the provider asks to wait. What may have been paid is nothing to try again."""
    if error.retry_after_s is None:
        return error.message
    span = span_words(error.retry_after_s)
    wait = f"try again in {span}" if error.billed == "no" else f"the provider asks to wait {span}"
    return f"{error.message}; {wait}"


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
