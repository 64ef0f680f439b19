"""Jobs into slots: one queue a provider, so that one that is full holds up no other."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..errors import ApiError, BudgetError, FileError, SeedreamError
from ..network.client import ProviderClient
from ..results import Draining, JobResult, Notice, Planned
from ..storage import reply_journal, system_limits
from .connect import make_client
from .context import DOWNLOADS, JobStream, RunContext, RunOutcome, RunServices
from .job import JobRunner
from .plan import Job, Route
from .recorder import Recorder

AHEAD = 8
"""Rows of a flow that wait for a slot with everything prepared: what is answered at once is followed at once."""

LOOK_AHEAD = 1000
"""Rows of a flow that are read and wait for their provider, while those behind them go to others."""


class _Conductor:
    """What every run has: wires, workers, and an ear for signals."""

    def __init__(self, services: RunServices, concurrency: int, requests: int) -> None:
        """`concurrency` of these requests are sent at once, or as many as files can be opened for."""
        self.services = services
        self.workers: list[JobRunner] = []
        most = max(1, min(concurrency, requests))
        allowed = system_limits.requests_at_once(most)
        system_limits.require_memory()
        self.is_short = allowed < most
        self.concurrency = allowed if self.is_short else concurrency
        if self.is_short:
            told = f"{allowed} at once instead of {most}, since {system_limits.files_words(full=False)}"
            services.sink.emit(Notice(told))

    def _client(self, route: Route) -> ProviderClient:
        """The wire to one provider, paced and keyed for it alone."""
        return make_client(route, clock=self.services.clock, log=self.services.log)

    @contextlib.contextmanager
    def _signals(self, context: RunContext) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP while the run lasts, unless they are ignored."""
        loop = asyncio.get_running_loop()
        # A terminal that closes (SIGHUP, which Windows lacks) ends a run like a request to stop; nohup has it ignored.
        named = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
        before = {number: signal.getsignal(number) for number in named}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

        def tell(number: int, frame: object) -> None:  # noqa: ARG001 (what a signal handler is given)
            loop.call_soon_threadsafe(self._on_signal, context, signal.Signals(number))

        # Not loop.add_signal_handler, which Windows lacks; call_soon_threadsafe wakes the loop all the same.
        for number in before:
            signal.signal(number, tell)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, context: RunContext, number: signal.Signals) -> None:
        """First: nothing new leaves, what was sent is finished. Second: stop."""
        again = context.signal is not None
        context.signal = context.signal or number
        busy = [worker for worker in self.workers if worker.in_flight]
        if not again:
            most = max((worker.most_s for worker in busy), default=None)
            self.services.sink.emit(Draining(number.name, len(busy), most))
        for worker in list(self.workers):
            if again or not worker.in_flight:
                worker.stop()


_HALTING = frozenset({"auth", "account", "quota", "config", "filesystem"})
"""What every further request would meet as well."""

_ALIKE = 10
"""Rows from the first on that are refused alike, none being done, until it is held to be the fault of no row."""


def _once(action: Callable[[], None]) -> Callable[[], None]:
    """A deed that is done the first time it is asked for."""
    rest = [action]
    return lambda: rest.pop()() if rest else None


@dataclass(slots=True)
class ProviderQueue:
    """The rows that go to one provider with one key: how many are under way, and those that wait for room there."""

    under_way: int = 0
    jobs: deque[Job] = field(default_factory=deque)


class _FlowRun(_Conductor):
    """A run that draws its jobs.

    What waits for its provider's pace gives its slot to others. Of each provider so many are under way as may be sent
    at once, and beside them at most `DOWNLOADS` more, that are being saved; rows that find their provider so full wait
    in its lane, in the order of the table, while those behind them go to others. `LOOK_AHEAD` rows wait like that: a
    provider whose rows stand further back waits until they come near.
    """

    def __init__(self, flow: JobStream, services: RunServices, recorder: Recorder) -> None:
        super().__init__(services, flow.concurrency, flow.requests)
        self.flow = flow
        self.failures = 0
        self.alike: tuple[object, ...] | None = ()
        self.halt: SeedreamError | None = None
        self.clients: dict[Route, ProviderClient] = {}
        self.stack = contextlib.AsyncExitStack()
        downloads = self.concurrency if self.is_short else max(DOWNLOADS, self.concurrency)
        self.most_under_way = self.concurrency + downloads
        self.queues: dict[Route, ProviderQueue] = {}
        self.waiting = 0
        self.is_drawn = False
        self.moved = asyncio.Event()
        self.ahead = asyncio.Semaphore(1 if self.is_short else AHEAD)
        self.context = RunContext(
            services.sink,
            services.clock,
            services.state / "replies",
            recorder,
            asyncio.Semaphore(self.concurrency),
            asyncio.Semaphore(downloads),
            services.emit,
            services.step,
            flow.max_unknown,
            goes_on=True,
            steps_aside=True,
        )

    async def execute(self) -> RunOutcome:
        """Draw and work until nothing is left, or nothing more may leave."""
        started, flow = time.monotonic(), self.flow
        self.services.sink.emit(Planned(flow.requests, flow.images, flow.provider, flow.model))
        async with self.stack, asyncio.TaskGroup() as group:
            if reply_journal.is_possible():
                # Without one each reply has a file of its own, whose error tells what is wrong with the disk.
                with contextlib.suppress(FileError):
                    self.context.journal = self.stack.enter_context(reply_journal.Journal(self.context.replies))
            with self._signals(self.context):
                await self._draw(group)
                await asyncio.gather(*(worker.task for worker in self.workers if worker.task), return_exceptions=True)
        number = self.context.signal.value if self.context.signal else None
        return RunOutcome(time.monotonic() - started, number, self.halt)

    async def _draw(self, group: asyncio.TaskGroup) -> None:
        """Let the next jobs wait for a slot, so that one leaves the moment that another is answered."""
        while True:
            await self.ahead.acquire()
            worker = await self._next_worker()
            if worker is None:
                return
            self.workers.append(worker)
            worker.begun = _once(self.ahead.release)
            self._queue_of(worker.job.route).under_way += 1
            worker.task = group.create_task(self._tend(worker))

    async def _next_worker(self) -> JobRunner | None:
        """The next job in the hands of a worker. A source that fails ends the run, and what is under way goes on."""
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
        """The next job whose provider has room for it; None when all are under way, or nothing more may leave."""
        while not (self.halt or self.context.objection()):
            job = self._waiting_job() or self._drawn_job()
            if job or (self.is_drawn and not self.waiting):
                return job
            if self._may_draw():
                # What is under way goes on while so many rows are read.
                await self.services.clock.sleep(0)
                continue
            self.moved.clear()
            await self.moved.wait()
        return None

    def _waiting_job(self) -> Job | None:
        """The first of a lane that has room again."""
        for queue in self.queues.values() if self.waiting else ():
            if queue.jobs and queue.under_way < self.most_under_way:
                self.waiting -= 1
                return queue.jobs.popleft()
        return None

    def _drawn_job(self) -> Job | None:
        """The next of all, if its provider has room, and nobody waits before it then; else it waits in its lane."""
        if not self._may_draw():
            return None
        job = next(self.flow.jobs, None)
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
        """The one wire to a provider with a key: all rows that go there share its pace."""
        client = self.clients.get(route)
        if client is None:
            client = self.clients[route] = await self.stack.enter_async_context(self._client(route))
            if self.services.ledger and route.key:
                self.services.ledger.hide(route.key.value.strip())
            if client.proxy_in_use:
                self.services.sink.emit(Notice(f"through the proxy {client.proxy_in_use}"))
        return client

    async def _tend(self, worker: JobRunner) -> JobResult:
        """One job to its end, and what that means for the others."""
        result = await worker.work()
        self.workers.remove(worker)
        self._queue_of(worker.job.route).under_way -= 1
        self.moved.set()
        self.halt = self.halt or self._judge(result)
        if self.halt and not isinstance(self.halt, BudgetError):
            # Where the money is at its end, what has its share of it may still leave.
            self.context.halt = self.halt
            for other in list(self.workers):
                if not (other.in_flight or other.job.recovers):
                    other.stop()
        return result

    def _judge(self, result: JobResult) -> SeedreamError | None:
        """Why no new request may leave after this one."""
        error = result.error or next((image.error for image in result.images if image.error), None)
        if isinstance(error, BudgetError) or (error and error.kind in _HALTING):
            return error
        if result.status != "interrupted" and result.exit_code:
            self.failures += 1
        if self.flow.max_failures and self.failures >= self.flow.max_failures:
            words = "a row has" if self.failures == 1 else f"{self.failures} rows have"
            return ApiError(f"not sent, since {words} failed", kind="unavailable", delivered="no")
        return self._refused_alike(result, error) or (self.context.objection() if not self.context.signal else None)

    def _refused_alike(self, result: JobResult, error: SeedreamError | None) -> SeedreamError | None:
        """Why not to go on after the first rows were all refused in the same words. `--max-failures` overrules it.

        What is said of a prompt's content is about that row; a refusal that names something of its row differs.
        """
        if self.alike is None or self.flow.max_failures or result.status == "interrupted":
            return None
        if not isinstance(error, ApiError) or error.kind not in {"refused", "unavailable"} or error.billed != "no":
            self.alike = None
            return None
        # Ids and numbers change from answer to answer.
        words = " ".join(word for word in error.message.split() if word.isalpha())
        same = (error.provider, error.kind, error.code, error.status, words)
        if self.alike and self.alike != same:
            self.alike = None
            return None
        self.alike = same
        if self.failures < _ALIKE:
            return None
        return ApiError(
            f"not sent, since the first {self.failures} rows were all refused in the same words and none was done",
            kind=error.kind,
            hint="mend what they say first; --max-failures N goes on until N rows have failed",
            delivered="no",
        )
