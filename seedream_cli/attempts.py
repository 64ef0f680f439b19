"""The attempts at one call: what each has done so far, whether another follows, and which failure speaks for all.

A billable call leaves at most once, unless it is proven that it never left, the provider said that it took nothing, or
the user ordered the repetition.
"""

from __future__ import annotations

import asyncio
import random as randomness
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from .errors import ApiError, FileError, SeedreamError
from .pace import Clock, Pace, Policy, back_off, decide, read_retry_after
from .providers.base import Call
from .replies import Received

R = TypeVar("R")


class Watch(Protocol):
    """Who wants to know how an exchange goes on. Must neither raise nor block."""

    def stage(self, name: Literal["connecting", "sent", "receiving"]) -> None:
        """An attempt entered a stage."""

    def retrying(self, wait_s: float, error: SeedreamError, attempt: int) -> None:
        """Attempt number `attempt` failed and will be repeated in `wait_s` seconds."""


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


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """A finished exchange and what it took."""

    value: R
    attempts: int
    provider_s: float
    doubtful: int


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
        self._pace = Pace(policy, clock, random)
        self._mask = mask
        self._say = say

    async def repeat(
        self,
        call: Call,
        once: Callable[[Trail], Awaitable[R]],
        *,
        gate: Gate | None,
        watch: Watch | None,
        pictures: int,
    ) -> Outcome[R]:
        """The one place where a call is sent again. Waits hold no slot."""
        began: float | None = None
        attempt, doubts = 0, list[ApiError]()
        while True:
            attempt += 1
            async with self._pace.turn(call, pictures):
                began = self._clock.monotonic() if began is None else began
                trail = Trail(attempt, self._policy, gate=gate, clock=self._clock, watch=watch)
                try:
                    value = await once(trail)
                    return Outcome(value, attempt, self._clock.monotonic() - trail.sent_at, len(doubts))
                except ApiError as error:
                    failure = self.settle(error, trail)
                except SeedreamError as error:
                    if isinstance(error, FileError) and trail.received and call.billable and error.billed == "no":
                        # The disk refused the answer, not the request: that was at work, and may be paid.
                        error.billed = "unknown"
                    # The gate or a changed file stops a repetition; the doubt about the first attempt remains.
                    if doubts:
                        raise doubts[0] from error
                    raise
            self._say(f"* attempt {attempt}: {failure.kind}: {failure.message}")
            if failure.billed == "unknown":
                doubts.append(failure)
            wait = decide(failure, attempt, self._clock.monotonic() - began, self._policy, self._random)
            if failure.kind == "rate_limited" and failure.retryable:
                self._pace.hold(wait if wait is not None else back_off(failure, attempt, self._random))
            if wait is None or trail.final:
                # A doubt is not lifted by a later refusal: what may have been paid once stays in the account.
                raise doubts[0] if doubts and failure is not doubts[0] else failure
            if watch:
                watch.retrying(wait, failure, attempt)
            await self._clock.sleep(wait)

    def settle(self, error: ApiError, trail: Trail) -> ApiError:
        """Complete an error with what the reply's head says, and take every secret out of it."""
        if trail.received:
            error.request_id = error.request_id or trail.received.request_id
            if error.retry_after_s is None:
                error.retry_after_s = read_retry_after(trail.received.headers, self._clock.now())
            if error.status is None:
                error.status = trail.received.status
        error.message = self._mask(error.message)
        error.hint, error.code = self._mask(error.hint), self._mask(error.code)
        error.request_id = self._mask(error.request_id)
        error.args = (error.message,)
        return error
