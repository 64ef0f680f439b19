"""When requests leave: how many at once, after which refusal, in which order; and a storm of refusals is ridden out."""

from __future__ import annotations

import asyncio
import itertools
import random
import selectors
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from seedream_cli.errors import ApiError
from seedream_cli.network.outcome import Answered, Outcome, Refused
from seedream_cli.network.policy import Clock, Policy
from seedream_cli.network.rate_limit import RateLimiter
from seedream_cli.network.retry import PATIENCE, Attempts
from seedream_cli.providers.contract import Call, Reply

SUBMIT = Call("POST", "/x", {}, billable=True)
POLL = Call("GET", "/x")


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

    async def serve(self, name: str) -> Outcome[str]:
        """One request."""
        now = asyncio.get_running_loop().time()
        self.came.append((now, name))
        while self.taken and self.taken[0] <= now - self.span_s:
            self.taken.popleft()
        full = self.at_once is not None and self.busy >= self.at_once
        if full or name in self.never or (self.many is not None and len(self.taken) >= self.many):
            self.refused[name] += 1
            error = ApiError("too many", kind="rate_limited", retryable=True, retry_after_s=self.retry_after_s)
            return Refused(error)
        self.taken.append(now)
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(self.takes_s)
        self.busy -= 1
        self.paid[name] += 1
        return Answered(name, Reply(200, {}), self.takes_s)


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


def make_limiter(policy: Policy) -> tuple[RateLimiter, Policy]:
    return RateLimiter(policy, LoopClock(), random.Random(7)), policy


async def send(limited: tuple[RateLimiter, Policy], provider: Provider, name: str, places: asyncio.Semaphore) -> str:
    """One row from its place to its end: "" or the kind of its failure."""
    seat, clock, chance = Seat(places), LoopClock(), random.Random(7)
    limiter, policy = limited
    attempts = Attempts(SUBMIT, 1, limiter, policy=policy, clock=clock, random=chance, log=lambda line: None)
    await seat.step_back()
    try:
        while True:
            async with attempts.turn(seat):
                assert seat.is_held
                outcome = await provider.serve(name)
                wait_s = attempts.wait_after(outcome)
            if isinstance(outcome, Answered):
                return ""
            if wait_s is None:
                return outcome.error.kind
            seat.step_aside()
            await clock.sleep(wait_s)
    finally:
        seat.step_aside()


async def storm(provider: Provider, rows: int, *, concurrency: int = 16, policy: Policy | None = None) -> list[str]:
    """So many rows side by side; how each ended."""
    limited, places = make_limiter(policy or Policy()), asyncio.Semaphore(concurrency)
    return await asyncio.gather(*(send(limited, provider, f"row {number}", places) for number in range(rows)))


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


def test_one_request_that_is_always_refused_fails_alone() -> None:
    """What is refused for itself while others are taken comes to its end, and the others to theirs."""
    provider = Provider(takes_s=1.0, never=frozenset({"row 3"}))
    ends = run(storm(provider, 400, concurrency=8, policy=Policy(retries=2)))
    assert ends == ["rate_limited" if number == 3 else "" for number in range(400)]
    assert 3 < provider.refused["row 3"] <= 2 + PATIENCE * 2 + 1


@pytest.mark.parametrize("rows", [1, 40])
def test_where_nothing_is_taken_refusals_count(rows: int) -> None:
    """A request has its tries, and a long table comes to its end: those behind do not begin from the start."""
    provider = Provider(at_once=0)
    assert run(storm(provider, rows, policy=Policy(retries=4))) == ["rate_limited"] * rows
    if rows == 1:
        assert provider.refused.total() == 5
        gaps = [after - before for (before, _), (after, _) in itertools.pairwise(provider.came)]
        assert all(low <= gap <= 2 * low + 1 for low, gap in zip((0.5, 1, 2, 4), gaps, strict=True))
    assert provider.refused.total() <= 3 * rows + 2
    assert provider.came[-1][0] < 20 + 2 * rows


def test_a_request_without_retries_is_sent_once() -> None:
    """`--retries 0` is kept, whatever the others do."""
    provider = Provider(at_once=2, takes_s=5)
    ends = run(storm(provider, 6, concurrency=6, policy=Policy(retries=0)))
    assert ends[:3] == ["", "", "rate_limited"]
    assert Counter(name for _, name in provider.came) == {f"row {number}": 1 for number in range(6)}


# --- how many at once -----------------------------------------------------------------------------------------------


class Turns:
    """A pace, and what is in flight."""

    def __init__(self, **policy: Any) -> None:
        self.pace = RateLimiter(Policy(**policy), LoopClock(), random.Random(7))
        self.turns: list[int] = []
        self.waiting: list[asyncio.Task[int]] = []

    def send(self, many: int = 1) -> int:
        """So many more arrive; how many of them left at once."""
        before = len(self.turns)
        for _ in range(many):
            turn = self.pace.enter_at_once(SUBMIT, 1)
            self.turns += [] if turn is None else [turn]
        return len(self.turns) - before

    def end(self, *, taken: bool = True) -> None:
        """The oldest comes back."""
        turn = self.turns.pop(0)
        (self.pace.took if taken else self.pace.refused)(turn)
        self.pace.leave(turn)

    def room(self) -> int:
        """How many leave at once from now on, as things stand."""
        left = self.send(100)
        for _ in range(left):
            self.pace.leave(self.turns.pop())
        return left


def test_a_refusal_halves_what_is_in_flight_once_a_burst() -> None:
    """16 in flight and 9 of them refused: 8. Another that left later is refused: 4 … and never below 1."""

    async def go() -> None:
        turns = Turns()
        assert turns.send(16) == 16
        for _ in range(9):
            turns.end(taken=False)
        assert turns.send(5) == 1
        for _ in range(8):
            turns.end()
        assert turns.room() == 8
        for limit in (4, 2, 1, 1):
            turns.send(100)
            turns.end(taken=False)
            while turns.turns:
                turns.pace.leave(turns.turns.pop())
            assert turns.room() == limit

    run(go())


def test_as_many_answers_as_the_limit_allow_one_more() -> None:
    """From 2 to 3 after two answers, to 4 after three more, and not beyond what the policy allows."""

    async def go() -> None:
        turns = Turns(slots=4)
        assert turns.send(9) == 4
        turns.end(taken=False)
        while turns.turns:
            turns.pace.leave(turns.turns.pop())
        for limit in (2, 3, 4, 4, 4):
            assert turns.room() == limit
            turns.send(limit)
            for _ in range(limit):
                turns.end()
                turns.send()
            while turns.turns:
                turns.pace.leave(turns.turns.pop())

    run(go())


def test_answers_that_keep_nobody_waiting_raise_no_limit() -> None:
    """A run that sends one at a time learns nothing of how many may go at once."""

    async def go() -> None:
        turns = Turns()
        turns.send(8)
        turns.end(taken=False)
        while turns.turns:
            turns.end()
        for _ in range(100):
            turns.send()
            turns.end()
        assert turns.room() <= 5

    run(go())


def test_who_waits_leaves_in_the_order_of_arrival() -> None:
    """Also one that was refused: it came before those that wait since. One that is stopped is passed over."""

    async def go() -> list[int]:
        pace, left = RateLimiter(Policy(slots=1), LoopClock(), random.Random(7)), list[int]()

        async def wait(place: int) -> None:
            turn = await pace.enter(SUBMIT, 1, place, None)
            left.append(place)
            await asyncio.sleep(1)
            pace.leave(turn)

        tasks = []
        for place in (2, 3, 4, 5, 1):
            tasks.append(asyncio.create_task(wait(place)))
            await asyncio.sleep(0.1)
        tasks[2].cancel()
        await asyncio.sleep(0.1)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Nobody is left standing at the door.
        pace.leave(await pace.enter(SUBMIT, 1, 9, None))
        assert pace.enter_at_once(SUBMIT, 1)
        return left

    assert run(go()) == [2, 1, 5]


def test_a_turn_that_comes_to_one_that_is_stopped_goes_to_the_next() -> None:
    """The stop falls into the moment between being called and leaving."""

    async def go() -> list[int]:
        pace, left = RateLimiter(Policy(slots=1), LoopClock(), random.Random(7)), list[int]()
        tasks = list[asyncio.Task[None]]()

        async def wait(place: int) -> None:
            turn = await pace.enter(SUBMIT, 1, place, None)
            left.append(place)
            await asyncio.sleep(1)
            pace.leave(turn)
            if place == 1:
                # The second stands at the door and is called now; the third is called when that one goes.
                tasks[1].cancel()

        tasks += [asyncio.create_task(wait(place)) for place in (1, 2, 3)]
        await asyncio.gather(*tasks, return_exceptions=True)
        return left

    assert run(go()) == [1, 3]


# --- when -----------------------------------------------------------------------------------------------------------


def test_after_a_hold_requests_leave_one_after_the_other() -> None:
    """Nobody before the moment, polls neither; then not all in the same instant, and all soon."""

    async def go() -> tuple[list[float], float]:
        loop, pace, times = (
            asyncio.get_running_loop(),
            RateLimiter(Policy(), LoopClock(), random.Random(7)),
            list[float](),
        )
        pace.hold(20)
        assert pace.enter_at_once(SUBMIT, 1) is None
        assert pace.enter_at_once(POLL, 1) is None

        async def wait(place: int) -> None:
            await pace.enter(SUBMIT, 1, place, None)
            times.append(loop.time())

        async def poll() -> float:
            assert await pace.enter(POLL, 1, 99, None) == 0
            return loop.time()

        *_, polled = await asyncio.gather(*(wait(place) for place in range(8)), poll())
        assert isinstance(polled, float)
        return times, polled

    times, polled = run(go())
    assert times == sorted(times)
    assert 20 <= times[0] <= 21
    assert polled >= 20
    assert len({round(time, 3) for time in times}) >= 5
    assert times[-1] < 24


def test_polls_take_no_room() -> None:
    """A full provider is asked after its tasks."""

    async def go() -> None:
        pace = RateLimiter(Policy(slots=1, rpm=1), LoopClock(), random.Random(7))
        assert pace.enter_at_once(SUBMIT, 1) == 1
        for _ in range(5):
            assert pace.enter_at_once(POLL, 1) == 0
            pace.refused(0)
            pace.took(0)
            pace.leave(0)
        pace.leave(1)
        assert pace.enter_at_once(SUBMIT, 1) is None

    run(go())


@pytest.mark.parametrize(("limits", "most"), [({"rpm": 10}, 10), ({"ipm": 20}, 6), ({"rpm": 5, "ipm": 100}, 5)])
def test_no_minute_holds_more_than_it_may(limits: dict[str, int], most: int) -> None:
    """Of any 60 seconds; and the minutes are used."""

    async def go() -> list[float]:
        loop, pace, times = asyncio.get_running_loop(), RateLimiter(Policy(**limits), LoopClock(), random.Random(7)), []
        for number in range(40):
            turn = pace.enter_at_once(SUBMIT, 3) or await pace.enter(SUBMIT, 3, number, None)
            times.append(loop.time())
            await asyncio.sleep(0.5)
            pace.leave(turn)
        return times

    times = run(go())
    assert all(sum(start <= time < start + 60 for time in times) <= most for start in times)
    assert times[-1] <= 40 / most * 66


def test_who_waits_is_aside_until_it_leaves() -> None:
    """Rows of a slow provider hold no place: those of another use both, and lose none of their order."""

    async def go() -> tuple[list[str], list[str], Provider, Provider]:
        slow, free = Provider(takes_s=1), Provider(takes_s=1)
        one, other = make_limiter(Policy(rpm=2)), make_limiter(Policy())
        places = asyncio.Semaphore(2)
        rows = [send(one, slow, f"slow {number}", places) for number in range(8)]
        rows += [send(other, free, f"free {number}", places) for number in range(40)]
        ends = await asyncio.gather(*rows)
        assert set(ends) == {""}
        assert places._value == 2
        return [name for _, name in slow.came], [name for _, name in free.came], slow, free

    first, second, slow, free = run(go())
    assert first == [f"slow {number}" for number in range(8)]
    assert second == [f"free {number}" for number in range(40)]
    assert free.came[-1][0] < 30 < slow.came[2][0]
