"""The conductor: runs the jobs of a plan side by side, and says how each ended. The only event loop.

`execute` starts a worker for every job, at most `CONCURRENCY` of them sending at once, all with one ledger, and one
wire for each provider and key. A first SIGINT or SIGTERM stops what was not sent, and finishes and saves what was; a
second one stops at once, and what was in flight is of unknown outcome.

`conduct` does the same for a flow of any number of jobs, which it draws one by one when there is a place for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from . import journal, scarcity, spool, store
from .books import Books
from .errors import ApiError, BudgetError, BusyError, FileError, InternalError, SeedreamError
from .ledger import Ledger
from .plan import Job, Plan, Route
from .providers.base import Call, Reply
from .results import Draining, JobResult, Notice, Planned, Report, Sink
from .settings import read_surroundings
from .wire import Answer, Clock, Policy, Wire
from .worker import Desk, Worker, is_there, no_step, places

T = TypeVar("T")
CONCURRENCY = 8
_NO_KEY = "no-key-is-needed-offline"
"""What the sandbox is shown; no word of a message, since a key is masked wherever it stands."""
DOWNLOADS = 8
AHEAD = 8
"""Rows of a flow that wait for a slot with everything prepared: what is answered at once is followed at once."""
LOOK_AHEAD = 1000
"""Rows of a flow that are read and wait for their provider, while those behind them go to others."""


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


@dataclass(frozen=True, slots=True)
class Flow:
    """A run whose jobs are drawn one by one, so that a hundred thousand take no more room than a thousand.

    `requests` and `pictures` are the most that will be drawn. No new one is drawn once `max_failures` have failed (0:
    no bound) or `max_unknown` outcomes in a row are unknown. Whatever is left, the same command does later.
    """

    jobs: Iterator[Job]
    requests: int
    pictures: int
    provider: str
    model: str
    concurrency: int = CONCURRENCY
    max_failures: int = 0
    max_unknown: int = 3


@dataclass(frozen=True, slots=True)
class Ending:
    """How a flow ended: after which time, by which signal, and why it took no new job before all were drawn."""

    elapsed_s: float
    signal_number: int | None = None
    halt: SeedreamError | None = None


def conduct(flow: Flow, outlets: Outlets, books: Books) -> Ending:
    """Run a flow; results go to the sink as they come. Blocks; raises nothing that a job or its source meets."""
    return _run(_FlowRun(flow, outlets, books).execute())


def execute(plan: Plan, outlets: Outlets, *, home: Path | None = None) -> Report:
    """Run a plan to its end and report on it. Blocks; raises only what stops the whole run before anything is sent.

    `home` is the folder of the batch whose ledger it is: paths are written down from there on.
    """
    return _run(_Run(plan, outlets, home).execute())


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Do it on the one loop, and look for garbage meanwhile, but not among what was loaded before."""
    gc.freeze()
    gc.enable()
    return asyncio.run(work)


class HurriedClock(Clock):
    """A clock that does not wait, for tests of the retries."""

    async def sleep(self, seconds: float) -> None:  # noqa: ARG002
        """Give way, and go on at once."""
        await super().sleep(0)


class _Conductor:
    """What every run has: wires, workers, and an ear for signals."""

    def __init__(self, outlets: Outlets, concurrency: int, requests: int) -> None:
        """`concurrency` of these requests are sent at once, or as many as files can be opened for."""
        self.outlets = outlets
        self.workers: list[Worker] = []
        most = max(1, min(concurrency, requests))
        allowed = scarcity.requests_at_once(most)
        scarcity.require_memory()
        self.is_short = allowed < most
        self.concurrency = allowed if self.is_short else concurrency
        if self.is_short:
            told = f"{allowed} at once instead of {most}, since {scarcity.files_words(full=False)}"
            outlets.sink.emit(Notice(told))

    def _wire(self, route: Route) -> Wire:
        """The wire to one provider, paced and keyed for it alone."""
        return make_wire(route, clock=self.outlets.clock, log=self.outlets.log)

    @contextlib.contextmanager
    def _signals(self, desk: Desk) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP while the run lasts, unless they are ignored."""
        loop = asyncio.get_running_loop()
        # A terminal that closes (SIGHUP, which Windows lacks) ends a run like a request to stop; nohup has it ignored.
        named = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
        before = {number: signal.getsignal(number) for number in named}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

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
            most = max((worker.most_s for worker in busy), default=None)
            self.outlets.sink.emit(Draining(number.name, len(busy), most))
        for worker in list(self.workers):
            if again or not worker.in_flight:
                worker.stop()


class _Run(_Conductor):
    """One run: its books, its wires, and its workers."""

    def __init__(self, plan: Plan, outlets: Outlets, home: Path | None = None) -> None:
        super().__init__(outlets, CONCURRENCY, len(plan.jobs) + len(plan.extra))
        self.plan = plan
        self.home = home
        # What is there already is neither sent nor written down.
        self.jobs = tuple(replace(job, booked=job.booked and not is_there(job)) for job in (*plan.jobs, *plan.extra))
        self.desk: Desk | None = None

    async def execute(self) -> Report:
        started = time.monotonic()
        plan, ledger = self.plan, self.outlets.ledger
        for job in self.jobs:
            # Nothing is paid for what is recovered or reused: a folder that is gone must not stop anything else.
            if not (job.recovers or job.reused):
                job.output.prepare(places(job))
        for folder in {job.output.folder for job in self.jobs}:
            store.sweep(folder)
        async with contextlib.AsyncExitStack() as stack:
            routes = {job.route for job in self.jobs}
            wires = {route: await stack.enter_async_context(self._wire(route)) for route in routes}
            self._announce(wires.values())
            for route in routes if ledger else ():
                # A provider may echo the key in its answer, which is written down.
                if ledger and route.key:
                    ledger.hide(route.key.value.strip())
            run = stack.enter_context(ledger.run(plan.run, plan.command, folder=_working_folder())) if ledger else None
            books = Books(ledger, run, plan.caps, home=self.home)
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
        if result.error and not isinstance(result.error, BusyError):
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
            asyncio.Semaphore(self.concurrency),
            asyncio.Semaphore(self.concurrency if self.is_short else DOWNLOADS),
            outlets.emit,
            outlets.step,
            self.plan.max_unknown,
        )


_HALTING = frozenset({"auth", "account", "quota", "config", "filesystem"})
"""What every further request would meet as well."""
_ALIKE = 10
"""Rows from the first on that are refused alike, none being done, until it is held to be the fault of no row."""


def _once(deed: Callable[[], None]) -> Callable[[], None]:
    """A deed that is done the first time it is asked for."""
    rest = [deed]
    return lambda: rest.pop()() if rest else None


@dataclass(slots=True)
class _Lane:
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

    def __init__(self, flow: Flow, outlets: Outlets, books: Books) -> None:
        super().__init__(outlets, flow.concurrency, flow.requests)
        self.flow = flow
        self.failures = 0
        self.alike: tuple[object, ...] | None = ()
        self.halt: SeedreamError | None = None
        self.wires: dict[Route, Wire] = {}
        self.stack = contextlib.AsyncExitStack()
        downloads = self.concurrency if self.is_short else max(DOWNLOADS, self.concurrency)
        self.most_under_way = self.concurrency + downloads
        self.lanes: dict[Route, _Lane] = {}
        self.waiting = 0
        self.is_drawn = False
        self.moved = asyncio.Event()
        self.ahead = asyncio.Semaphore(1 if self.is_short else AHEAD)
        self.desk = Desk(
            outlets.sink,
            outlets.clock,
            outlets.state / "replies",
            books,
            asyncio.Semaphore(self.concurrency),
            asyncio.Semaphore(downloads),
            outlets.emit,
            outlets.step,
            flow.max_unknown,
            goes_on=True,
            steps_aside=True,
        )

    async def execute(self) -> Ending:
        """Draw and work until nothing is left, or nothing more may leave."""
        started, flow = time.monotonic(), self.flow
        self.outlets.sink.emit(Planned(flow.requests, flow.pictures, flow.provider, flow.model))
        async with self.stack, asyncio.TaskGroup() as group:
            if journal.is_possible():
                # Without one each reply has a file of its own, whose error tells what is wrong with the disk.
                with contextlib.suppress(FileError):
                    self.desk.journal = self.stack.enter_context(journal.Journal(self.desk.replies))
            with self._signals(self.desk):
                await self._draw(group)
                await asyncio.gather(*(worker.task for worker in self.workers if worker.task), return_exceptions=True)
        number = self.desk.signal.value if self.desk.signal else None
        return Ending(time.monotonic() - started, number, self.halt)

    async def _draw(self, group: asyncio.TaskGroup) -> None:
        """Let the next jobs wait for a slot, so that one leaves the moment that another is answered."""
        while True:
            await self.ahead.acquire()
            worker = await self._next_worker()
            if worker is None:
                return
            self.workers.append(worker)
            worker.begun = _once(self.ahead.release)
            self._lane_of(worker.job.route).under_way += 1
            worker.task = group.create_task(self._tend(worker))

    async def _next_worker(self) -> Worker | None:
        """The next job in the hands of a worker. A source that fails ends the run, and what is under way goes on."""
        try:
            job = await self._next_job()
            return None if job is None else Worker(self.desk, await self._wire_to(job.route), job)
        except SeedreamError as error:
            self.halt = self.halt or error
            return None
        except (MemoryError, OSError, ImportError, RuntimeError, SystemError) as error:
            lack = scarcity.lack_of(error)
            if not lack:
                raise
            self.halt = self.halt or FileError(f"not sent: {lack}")
            return None

    async def _next_job(self) -> Job | None:
        """The next job whose provider has room for it; None when all are under way, or nothing more may leave."""
        while not (self.halt or self.desk.objection()):
            job = self._waiting_job() or self._drawn_job()
            if job or (self.is_drawn and not self.waiting):
                return job
            if self._may_draw():
                # What is under way goes on while so many rows are read.
                await self.outlets.clock.sleep(0)
                continue
            self.moved.clear()
            await self.moved.wait()
        return None

    def _waiting_job(self) -> Job | None:
        """The first of a lane that has room again."""
        for lane in self.lanes.values() if self.waiting else ():
            if lane.jobs and lane.under_way < self.most_under_way:
                self.waiting -= 1
                return lane.jobs.popleft()
        return None

    def _drawn_job(self) -> Job | None:
        """The next of all, if its provider has room, and nobody waits before it then; else it waits in its lane."""
        if not self._may_draw():
            return None
        job = next(self.flow.jobs, None)
        if job is None:
            self.is_drawn = True
            return None
        lane = self._lane_of(job.route)
        if lane.under_way < self.most_under_way:
            return job
        lane.jobs.append(job)
        self.waiting += 1
        return None

    def _may_draw(self) -> bool:
        return not self.is_drawn and self.waiting < LOOK_AHEAD

    def _lane_of(self, route: Route) -> _Lane:
        lane = self.lanes.get(route)
        if lane is None:
            lane = self.lanes[route] = _Lane()
        return lane

    async def _wire_to(self, route: Route) -> Wire:
        """The one wire to a provider with a key: all rows that go there share its pace."""
        wire = self.wires.get(route)
        if wire is None:
            wire = self.wires[route] = await self.stack.enter_async_context(self._wire(route))
            if self.outlets.ledger and route.key:
                self.outlets.ledger.hide(route.key.value.strip())
            if wire.proxy_in_use:
                self.outlets.sink.emit(Notice(f"through the proxy {wire.proxy_in_use}"))
        return wire

    async def _tend(self, worker: Worker) -> JobResult:
        """One job to its end, and what that means for the others."""
        result = await worker.work()
        self.workers.remove(worker)
        self._lane_of(worker.job.route).under_way -= 1
        self.moved.set()
        self.halt = self.halt or self._judge(result)
        if self.halt and not isinstance(self.halt, BudgetError):
            # Where the money is at its end, what has its share of it may still leave.
            self.desk.halt = self.halt
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
        return self._refused_alike(result, error) or (self.desk.objection() if not self.desk.signal else None)

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


def make_wire(route: Route, *, clock: Clock, log: Callable[[str], None] | None = None) -> Wire:
    """The wire of a route, keyed for it alone; the sandbox's ends in this process."""
    transport = None
    if route.spec.offline:
        from .sandbox.transport import SandboxTransport

        transport = SandboxTransport()
    limits, spec = route.limits, route.spec
    policy = Policy(
        limits.timeout_s,
        limits.connect_timeout_s,
        limits.retries,
        limits.retry_ambiguous,
        rpm=limits.rpm or spec.rpm,
        ipm=limits.ipm or spec.ipm,
    )
    key = route.key.value if route.key else _NO_KEY if spec.offline else ""
    surroundings = read_surroundings()
    return Wire(
        base_url=route.base_url,
        key=key,
        policy=policy,
        proxy=limits.proxy,
        transport=transport,
        clock=clock,
        log=log,
        by_hand=route.by_hand,
        environ=surroundings.environ,
        certificates=surroundings.certificates,
    )


def ask(wire: Wire, call: Call, read: Callable[[Reply], T]) -> Answer[T]:
    """Send one free call by itself, and close the wire. For looking around; what is billable goes through `execute`."""
    if call.billable:
        raise InternalError("a billable call would not be written down")

    async def once() -> Answer[T]:
        async with wire:
            return await wire.ask(call, read)

    return asyncio.run(once())


def release(report: Report, state: Path) -> None:
    """Let go of the replies of a run, once the user has their links. Those without links stay."""
    for result in report.jobs:
        if result.status == "succeeded":
            spool.forget(state / "replies", result.id, asides=False)


def _working_folder() -> str:
    """Where the command was given; "" where that folder is gone, which is no reason not to run."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""
