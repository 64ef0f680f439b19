"""Jobs into slots: one queue a provider, so that one that is full holds up no other."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import BudgetError, FileError, SeedreamError
from ..network.client import ProviderClient
from ..results import Draining, JobResult, Notice
from ..storage import reply_journal, system_limits
from .connect import make_client
from .context import DOWNLOADS, JobStream, RunContext, RunOutcome
from .halting import HaltRule
from .job import JobRunner
from .plan import Job, Route

AHEAD = 8
"""Jobs that wait for a slot with everything prepared: what is answered at once is followed at once."""

LOOK_AHEAD = 1000
"""Jobs that are drawn and wait for their provider, while those behind them go to others."""


def _once(action: Callable[[], None]) -> Callable[[], None]:
    """An action that is done the first time it is asked for."""
    rest = [action]
    return lambda: rest.pop()() if rest else None


@dataclass(slots=True)
class ProviderQueue:
    """The jobs that go to one provider with one key: how many are under way, and those that wait for room there."""

    under_way: int = 0
    jobs: deque[Job] = field(default_factory=deque)


class Scheduler:
    """Draws the jobs of a run, and has each done.

    What waits for its provider's rate limit gives its slot to others. Of each provider so many are under way as may be
    sent at once, and beside them at most `DOWNLOADS` more, that are being saved; jobs that find their provider so full
    wait in its queue, in their order, while those behind them go to others. `LOOK_AHEAD` jobs wait like that: a
    provider whose jobs stand further back waits until they come near.
    """

    def __init__(self, stream: JobStream, context: RunContext) -> None:
        self.stream = stream
        self.context = context
        self.jobs = itertools.chain(stream.known, stream.jobs)
        self.rule = HaltRule(stream.max_failures)
        self.halt: SeedreamError | None = None
        self.runners: list[JobRunner] = []
        self.clients: dict[Route, ProviderClient] = {}
        self.stack = contextlib.AsyncExitStack()
        self.queues: dict[Route, ProviderQueue] = {}
        self.waiting = 0
        self.is_drawn = False
        self.moved = asyncio.Event()
        wanted = max(1, min(stream.concurrency, max(stream.planned.requests, len(stream.known))))
        allowed = system_limits.requests_at_once(wanted)
        system_limits.require_memory()
        concurrency, downloads, ahead = stream.concurrency, max(DOWNLOADS, stream.concurrency), AHEAD
        if allowed < wanted:
            concurrency, downloads, ahead = allowed, allowed, 1
            why = system_limits.files_words(full=False)
            context.sink.emit(Notice(f"{allowed} at once instead of {wanted}, since {why}"))
        self.most_under_way = concurrency + downloads
        self.ahead = asyncio.Semaphore(ahead)
        context.slots, context.downloads = asyncio.Semaphore(concurrency), asyncio.Semaphore(downloads)

    async def run(self) -> RunOutcome:
        """Draw and work until nothing is left, or nothing more may leave."""
        started, context = time.monotonic(), self.context
        context.sink.emit(self.stream.planned)
        async with self.stack:
            for job in self.stream.known:
                await self._client_for(job.route)
            context.recorder.open(self.stream.known)
            if reply_journal.is_possible():
                # Without one each reply has a file of its own, whose error tells what is wrong with the disk.
                with contextlib.suppress(FileError):
                    context.journal = self.stack.enter_context(reply_journal.Journal(context.replies))
            with self._signals():
                async with asyncio.TaskGroup() as group:
                    await self._draw(group)
        return RunOutcome(time.monotonic() - started, context.signal.value if context.signal else None, self.halt)

    # Signals.

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP while the run lasts, unless they are ignored."""
        loop = asyncio.get_running_loop()
        # A terminal that closes (SIGHUP, which Windows lacks) ends a run like a request to stop; nohup has it ignored.
        named = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
        before = {number: signal.getsignal(number) for number in named}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

        def tell(number: int, frame: object) -> None:  # noqa: ARG001 (what a signal handler is given)
            loop.call_soon_threadsafe(self._on_signal, signal.Signals(number))

        # Not loop.add_signal_handler, which Windows lacks; call_soon_threadsafe wakes the loop all the same.
        for number in before:
            signal.signal(number, tell)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: signal.Signals) -> None:
        """First: nothing new leaves, what was sent is finished. Second: stop."""
        again = self.context.signal is not None
        self.context.signal = self.context.signal or number
        busy = [runner for runner in self.runners if runner.in_flight]
        if not again:
            most = max((runner.most_s for runner in busy), default=None)
            self.context.sink.emit(Draining(number.name, len(busy), most))
        self.moved.set()
        self._stop(self.runners, in_flight=again)

    def _stop(self, runners: Iterable[JobRunner], *, in_flight: bool = False) -> None:
        """End these jobs, those in flight only if told to."""

        def stop(chosen: Sequence[JobRunner]) -> None:
            for runner in chosen:
                if in_flight or not runner.in_flight:
                    runner.stop()

        # Not at once: a task that is cancelled before its first step would have no result.
        asyncio.get_running_loop().call_soon(stop, tuple(runners))

    # Drawing.

    async def _draw(self, group: asyncio.TaskGroup) -> None:
        """Let the next jobs wait for a slot, so that one leaves the moment that another is answered."""
        while True:
            await self.ahead.acquire()
            runner = await self._next_runner()
            if runner is None:
                return
            self.runners.append(runner)
            runner.slot.on_first = _once(self.ahead.release)
            self._queue_of(runner.job.route).under_way += 1
            runner.task = group.create_task(self._tend(runner))

    async def _next_runner(self) -> JobRunner | None:
        """The next job, to be run. A source that fails ends the run, and what is under way goes on."""
        try:
            job = await self._next_job()
            return None if job is None else JobRunner(self.context, await self._client_for(job.route), job)
        except SeedreamError as error:
            self.halt = self.halt or error
            return None
        except (MemoryError, OSError, ImportError, RuntimeError, SystemError) as error:
            lack = system_limits.lack_of(error)
            if not lack:
                raise
            self.halt = self.halt or FileError(f"not sent: {lack}")
            return None

    async def _next_job(self) -> Job | None:
        """The next job whose provider has room for it; None when all are under way, or no more is drawn."""
        while not self._is_over():
            job = self._waiting_job() or self._drawn_job()
            if job or (self.is_drawn and not self.waiting):
                return job
            if self._may_draw():
                # What is under way goes on while so many rows are read.
                await self.context.clock.sleep(0)
                continue
            self.moved.clear()
            await self.moved.wait()
        return None

    def _is_over(self) -> bool:
        """Whether the jobs that are left stay undrawn: the same command does them later."""
        return self.halt is not None or (self.context.is_resumable and self.context.objection() is not None)

    def _waiting_job(self) -> Job | None:
        """The first of a queue that has room again."""
        for queue in self.queues.values() if self.waiting else ():
            if queue.jobs and queue.under_way < self.most_under_way:
                self.waiting -= 1
                return queue.jobs.popleft()
        return None

    def _drawn_job(self) -> Job | None:
        """The next of all, if its provider has room, and nobody waits before it then; else it waits in its queue."""
        if not self._may_draw():
            return None
        job = next(self.jobs, None)
        if job is None:
            self.is_drawn = True
            return None
        queue = self._queue_of(job.route)
        if queue.under_way < self.most_under_way:
            return job
        queue.jobs.append(job)
        self.waiting += 1
        return None

    def _may_draw(self) -> bool:
        return not self.is_drawn and self.waiting < LOOK_AHEAD

    def _queue_of(self, route: Route) -> ProviderQueue:
        queue = self.queues.get(route)
        if queue is None:
            queue = self.queues[route] = ProviderQueue()
        return queue

    async def _client_for(self, route: Route) -> ProviderClient:
        """The one client for a provider with a key: all jobs that go there share its rate limit."""
        client = self.clients.get(route)
        if client is None:
            made = make_client(route, clock=self.context.clock, log=self.context.log)
            client = await self.stack.enter_async_context(made)
            if route.key:
                # A provider may echo the key in its answer, which is written down.
                self.context.recorder.hide(route.key.value.strip())
            proxy = client.proxy_in_use
            if proxy and all(proxy != other.proxy_in_use for other in self.clients.values()):
                self.context.sink.emit(Notice(f"through the proxy {proxy}"))
            self.clients[route] = client
        return client

    # Running.

    async def _tend(self, runner: JobRunner) -> JobResult:
        """One job to its end, and what that means for the others."""
        result = await runner.work()
        self.runners.remove(runner)
        self._queue_of(runner.job.route).under_way -= 1
        self.moved.set()
        if self.context.is_resumable:
            self._judge(result)
        return result

    def _judge(self, result: JobResult) -> None:
        """Let nothing new leave where every further request would meet the same; the same command does the rest."""
        context = self.context
        self.halt = self.halt or self.rule.judge(result) or (None if context.signal else context.objection())
        if self.halt is None or isinstance(self.halt, BudgetError):
            # Where the money is at its end, what has its share of it may still leave.
            return
        context.halt = self.halt
        self._stop(other for other in self.runners if not other.job.fetches)
