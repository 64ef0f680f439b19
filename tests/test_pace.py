"""When requests leave: how many at once, after which refusal, in which order; and a storm of refusals is ridden out."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from seedream_cli.attempts import Attempts, Trail
from seedream_cli.errors import ApiError
from seedream_cli.pace import Clock, Pace, Policy
from seedream_cli.providers.base import Call

SUBMIT = Call("submit", "POST", "/x", {}, billable=True)
POLL = Call("poll", "GET", "/x")


# --- time that passes at once ---------------------------------------------------------------------------------------


class Skipping(selectors.SelectSelector):
    """Where a loop would wait, its time goes on at once; one that would wait for ever has come to a dead end."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everybody waits for somebody else"
        self.now += max(0.0, timeout)
        return super().select(0)


class SkippingLoop(asyncio.SelectorEventLoop):
    """A loop that waits for nothing."""

    def __init__(self) -> None:
        self.skipping = Skipping()
        super().__init__(self.skipping)

    def time(self) -> float:
        return self.skipping.now


class LoopClock(Clock):
    """The loop's own time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run it in a time of its own, from 0."""
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(main)


# --- a provider that takes only so much -----------------------------------------------------------------------------


@dataclass
class Provider:
    """Takes `at_once` requests at a time, and `many` in any `span_s`; all others are refused with a 429."""

    at_once: int | None = None
    many: int | None = None
    span_s: float = 1.0
    takes_s: float = 1.0
    retry_after_s: float | None = None
    never: frozenset[str] = frozenset()
    busy: int = 0
    most: int = 0
    taken: deque[float] = field(default_factory=deque)
    paid: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    came: list[tuple[float, str]] = field(default_factory=list)

    async def serve(self, name: str) -> str:
        """One request."""
        now = asyncio.get_running_loop().time()
        self.came.append((now, name))
        while self.taken and self.taken[0] <= now - self.span_s:
            self.taken.popleft()
        full = self.at_once is not None and self.busy >= self.at_once
        if full or name in self.never or (self.many is not None and len(self.taken) >= self.many):
            self.refused[name] += 1
            raise ApiError("too many", kind="rate_limited", retryable=True, retry_after_s=self.retry_after_s)
        self.taken.append(now)
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(self.takes_s)
        self.busy -= 1
        self.paid[name] += 1
        return name


class Seat:
    """A place among so many that work at once, as a worker of a batch has it."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self.places = places
        self.is_held = False

    def step_aside(self) -> None:
        if self.is_held:
            self.is_held = False
            self.places.release()

    async def step_back(self) -> None:
        if not self.is_held:
            await self.places.acquire()
            self.is_held = True


def make_attempts(policy: Policy, seed: int = 7) -> Attempts:
    clock, source = LoopClock(), random.Random(seed)
    return Attempts(policy, clock, source, Pace(policy, clock, source), mask=str, say=lambda line: None)


async def send(attempts: Attempts, provider: Provider, name: str, places: asyncio.Semaphore) -> str:
    """One row from its place to its end: "" or the kind of its failure."""
    seat = Seat(places)

    async def once(trail: Trail) -> str:
        assert seat.is_held
        return await provider.serve(name)

    await seat.step_back()
    try:
        await attempts.repeat(SUBMIT, once, gate=None, watch=None, pictures=1, waiter=seat)
    except ApiError as error:
        return error.kind
    finally:
        seat.step_aside()
    return ""


async def storm(provider: Provider, rows: int, *, concurrency: int = 16, policy: Policy | None = None) -> list[str]:
    """So many rows side by side; how each ended."""
    attempts, places = make_attempts(policy or Policy()), asyncio.Semaphore(concurrency)
    return await asyncio.gather(*(send(attempts, provider, f"row {number}", places) for number in range(rows)))


# --- storms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "rows", "refused_most"),
    [
        (Provider(at_once=5, takes_s=20), 200, 45),
        (Provider(at_once=1, takes_s=20), 60, 80),
        (Provider(many=5, span_s=1, takes_s=0.05), 200, 90),
        (Provider(many=10, span_s=60, takes_s=20), 100, 100),
        (Provider(many=1, span_s=60, takes_s=5), 30, 260),
        (Provider(many=10, span_s=60, takes_s=20, retry_after_s=5), 100, 200),
        (Provider(many=10, span_s=60, takes_s=20, retry_after_s=60), 100, 60),
    ],
    ids=["5 at once", "1 at once", "5 a second", "10 a minute", "1 a minute", "10 a minute, 5 s", "10 a minute, 60 s"],
)
def test_a_storm_of_refusals_fails_no_row(provider: Provider, rows: int, refused_most: int) -> None:
    """Where the provider goes on taking requests, every row has its turn, is paid once, and few are refused."""
    ends = run(storm(provider, rows))
    assert ends == [""] * rows
    assert provider.paid == {f"row {number}": 1 for number in range(rows)}
    assert provider.refused.total() <= refused_most
