"""The conductor: runs the jobs of a plan side by side, and says how each ended. The only event loop.

`execute` starts a worker for every job, at most `CONCURRENCY` of them sending at once, all with one ledger, and one
wire for each provider and key. A first SIGINT or SIGTERM stops what was not sent, and finishes and saves what was; a
second one stops at once, and what was in flight is of unknown outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import spool, store
from .books import Books
from .ledger import Ledger
from .plan import Job, Plan, Route
from .results import Draining, JobResult, Notice, Planned, Report, Sink
from .wire import Clock, Policy, Wire
from .worker import Desk, Worker, is_there, no_step, places

CONCURRENCY = 8
_NO_KEY = "no-key-is-needed-offline"
"""What the sandbox is shown; no word of a message, since a key is masked wherever it stands."""
DOWNLOADS = 8


@dataclass(frozen=True, slots=True)
class Outlets:
    """What a run may reach of its surroundings.

    `sink` takes its events, `state` is the folder that keeps paid replies, `ledger` what is written down (None with
    --no-ledger), `emit` writes bytes to standard output (`-o -`) and says whether they went through, `log` takes lines
    of the wire log, `clock` is the only sleeper, `step` is told of each step for the tests.
    """

    sink: Sink
    state: Path
    ledger: Ledger | None = None
    emit: Callable[[bytes], bool] | None = None
    log: Callable[[str], None] | None = None
    clock: Clock = field(default_factory=Clock)
    step: Callable[[str], None] = no_step


def execute(plan: Plan, outlets: Outlets) -> Report:
    """Run a plan to its end and report on it. Blocks; raises only what stops the whole run before anything is sent."""
    return asyncio.run(_Run(plan, outlets).execute())


class HurriedClock(Clock):
    """A clock that does not wait, for tests of the retries."""

    async def sleep(self, seconds: float) -> None:  # noqa: ARG002
        """Give way, and go on at once."""
        await super().sleep(0)


class _Run:
    """One run: its books, its wires, and its workers."""

    def __init__(self, plan: Plan, outlets: Outlets) -> None:
        self.plan = plan
        self.outlets = outlets
        # What is there already is neither sent nor written down.
        self.jobs = tuple(replace(job, booked=job.booked and not is_there(job)) for job in (*plan.jobs, *plan.extra))
        self.workers: list[Worker] = []
        self.desk: Desk | None = None

    async def execute(self) -> Report:
        started = time.monotonic()
        plan, ledger = self.plan, self.outlets.ledger
        for job in self.jobs:
            job.output.prepare(places(job))
        for folder in {job.output.folder for job in self.jobs}:
            store.sweep(folder)
        async with contextlib.AsyncExitStack() as stack:
            routes = {job.route for job in self.jobs}
            wires = {route: await stack.enter_async_context(self._wire(route)) for route in routes}
            self._announce(wires.values())
            run = stack.enter_context(ledger.run(plan.run, plan.command, folder=str(Path.cwd()))) if ledger else None
            books = Books(ledger, run, plan.caps)
            books.open(self.jobs)
            self.outlets.step("entered")
            self.desk = self._desk(books)
            stack.enter_context(self._signals(self.desk))
            results = await self._work(self.desk, wires)
            report = Report(
                plan.command,
                tuple(results),
                plan.warnings,
                time.monotonic() - started,
                self.desk.signal.value if self.desk.signal else None,
            )
            books.close(report.exit_code)
        return report

    async def _work(self, desk: Desk, wires: dict[Route, Wire]) -> Sequence[JobResult]:
        """Let every worker work; the results are those of the plan's own jobs."""
        self.workers = [Worker(desk, wires[job.route], job) for job in self.jobs]
        for worker in self.workers:
            worker.task = asyncio.create_task(worker.work())
        results = await asyncio.gather(*(worker.task for worker in self.workers if worker.task))
        own = len(self.plan.jobs)
        for job, result in zip(self.jobs[own:], results[own:], strict=True):
            self._tell_extra(job, result)
        return results[:own]

    def _tell_extra(self, job: Job, result: JobResult) -> None:
        """A picture of an earlier run is no result of this one: a line tells of it."""
        for image in result.images:
            if image.path:
                self.outlets.sink.emit(Notice(f"{image.path} was paid for earlier ({job.id}) and is saved now"))
        if result.error:
            self.outlets.sink.emit(Notice(f"{job.id} was paid for earlier: {result.error.message}"))

    def _announce(self, wires: Iterable[Wire]) -> None:
        """What is about to happen, and through which proxy."""
        first, most = self.plan.jobs[0], sum(job.request.pictures_at_most for job in self.plan.jobs)
        self.outlets.sink.emit(Planned(len(self.plan.jobs), most, first.route.spec.name, first.request.model_id))
        for proxy in dict.fromkeys(wire.proxy_in_use for wire in wires if wire.proxy_in_use):
            self.outlets.sink.emit(Notice(f"through the proxy {proxy}"))

    def _desk(self, books: Books) -> Desk:
        outlets = self.outlets
        return Desk(
            outlets.sink,
            outlets.clock,
            outlets.state / "replies",
            books,
            asyncio.Semaphore(CONCURRENCY),
            asyncio.Semaphore(DOWNLOADS),
            outlets.emit,
            outlets.step,
            self.plan.max_unknown,
        )

    def _wire(self, route: Route) -> Wire:
        """The wire to one provider, paced and keyed for it alone."""
        transport = None
        if route.spec.offline:
            from .sandbox.transport import SandboxTransport

            transport = SandboxTransport()
        limits = route.limits
        policy = Policy(limits.timeout_s, limits.connect_timeout_s, limits.retries, limits.retry_ambiguous)
        key = route.key.value if route.key else _NO_KEY if route.spec.offline else ""
        return Wire(
            base_url=route.base_url,
            key=key,
            policy=policy,
            proxy=limits.proxy,
            transport=transport,
            clock=self.outlets.clock,
            log=self.outlets.log,
        )

    @contextlib.contextmanager
    def _signals(self, desk: Desk) -> Iterator[None]:
        """Take SIGINT and SIGTERM while the run lasts."""
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def tell(number: int, frame: object) -> None:  # noqa: ARG001 (what a signal handler is given)
            loop.call_soon_threadsafe(self._on_signal, desk, signal.Signals(number))

        # Not loop.add_signal_handler, which Windows lacks; call_soon_threadsafe wakes the loop all the same.
        for number in before:
            signal.signal(number, tell)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, desk: Desk, number: signal.Signals) -> None:
        """First: nothing new leaves, what was sent is finished. Second: stop."""
        again = desk.signal is not None
        desk.signal = desk.signal or number
        busy = [worker for worker in self.workers if worker.in_flight]
        if not again:
            self.outlets.sink.emit(Draining(number.name, len(busy)))
        for worker in self.workers:
            if again or not worker.in_flight:
                worker.stop()


def release(plan: Plan, state: Path) -> None:
    """Let go of the replies of a plan, once the user has their links."""
    for job in plan.jobs:
        spool.forget(state / "replies", job.id)
