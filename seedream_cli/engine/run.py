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
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BusyError
from ..network.client import ProviderClient
from ..network.policy import Clock
from ..results import JobResult, Notice, Planned, Report
from ..storage import filesystem, reply_file
from .connect import T
from .context import CONCURRENCY, DOWNLOADS, JobStream, RunContext, RunOutcome, RunServices
from .job import JobRunner, is_there, places
from .plan import Job, Plan, Route
from .recorder import NullRecorder, Recorder
from .scheduler import _Conductor, _FlowRun


def conduct(flow: JobStream, services: RunServices, recorder: Recorder) -> RunOutcome:
    """Run a flow; results go to the sink as they come. Blocks; raises nothing that a job or its source meets."""
    return _run(_FlowRun(flow, services, recorder).execute())


def execute(plan: Plan, services: RunServices, *, home: Path | None = None) -> Report:
    """Run a plan to its end and report on it. Blocks; raises only what stops the whole run before anything is sent.

    `home` is the folder of the batch whose ledger it is: paths are written down from there on.
    """
    return _run(_Run(plan, services, home).execute())


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


class _Run(_Conductor):
    """One run: its books, its wires, and its workers."""

    def __init__(self, plan: Plan, services: RunServices, home: Path | None = None) -> None:
        super().__init__(services, CONCURRENCY, len(plan.jobs) + len(plan.extra))
        self.plan = plan
        self.home = home
        # What is there already is neither sent nor written down.
        self.jobs = tuple(replace(job, booked=job.booked and not is_there(job)) for job in (*plan.jobs, *plan.extra))
        self.context: RunContext | None = None

    async def execute(self) -> Report:
        started = time.monotonic()
        plan, ledger = self.plan, self.services.ledger
        for job in self.jobs:
            # Nothing is paid for what is recovered or reused: a folder that is gone must not stop anything else.
            if not (job.recovers or job.reused):
                job.output.prepare(places(job))
        for folder in {job.output.folder for job in self.jobs}:
            filesystem.sweep_parts(folder)
        async with contextlib.AsyncExitStack() as stack:
            routes = {job.route for job in self.jobs}
            clients = {route: await stack.enter_async_context(self._client(route)) for route in routes}
            self._announce(clients.values())
            for route in routes if ledger else ():
                # A provider may echo the key in its answer, which is written down.
                if ledger and route.key:
                    ledger.hide(route.key.value.strip())
            recorder: Recorder | NullRecorder = NullRecorder(plan.caps)
            if ledger:
                run = stack.enter_context(ledger.run(plan.run, plan.command, folder=_working_folder()))
                recorder = Recorder(ledger, run, plan.caps, home=self.home)
            recorder.open(self.jobs)
            self.services.step("entered")
            self.context = self._context(recorder)
            stack.enter_context(self._signals(self.context))
            results = await self._work(self.context, clients)
            report = Report(
                plan.command,
                tuple(results),
                plan.warnings,
                time.monotonic() - started,
                self.context.signal.value if self.context.signal else None,
            )
            recorder.close(report.exit_code)
        return report

    async def _work(self, context: RunContext, clients: dict[Route, ProviderClient]) -> Sequence[JobResult]:
        """Let every worker work; the results are those of the plan's own jobs."""
        self.workers = [JobRunner(context, clients[job.route], job) for job in self.jobs]
        for worker in self.workers:
            worker.task = asyncio.create_task(worker.work())
        results = await asyncio.gather(*(worker.task for worker in self.workers if worker.task))
        own = len(self.plan.jobs)
        for job, result in zip(self.jobs[own:], results[own:], strict=True):
            self._tell_extra(job, result)
        return results[:own]

    def _tell_extra(self, job: Job, result: JobResult) -> None:
        """An image of an earlier run is no result of this one: a line tells of it."""
        for image in result.images:
            if image.path:
                self.services.sink.emit(Notice(f"{image.path} was paid for earlier ({job.id}) and is saved now"))
        if result.error and not isinstance(result.error, BusyError):
            self.services.sink.emit(Notice(f"{job.id} was paid for earlier: {result.error.message}"))

    def _announce(self, clients: Iterable[ProviderClient]) -> None:
        """What is about to happen, and through which proxy."""
        first, most = self.plan.jobs[0], sum(job.request.images_at_most for job in self.plan.jobs)
        self.services.sink.emit(Planned(len(self.plan.jobs), most, first.route.spec.name, first.request.model_id))
        for proxy in dict.fromkeys(client.proxy_in_use for client in clients if client.proxy_in_use):
            self.services.sink.emit(Notice(f"through the proxy {proxy}"))

    def _context(self, recorder: Recorder | NullRecorder) -> RunContext:
        services = self.services
        return RunContext(
            services.sink,
            services.clock,
            services.state / "replies",
            recorder,
            asyncio.Semaphore(self.concurrency),
            asyncio.Semaphore(self.concurrency if self.is_short else DOWNLOADS),
            services.emit,
            services.step,
            self.plan.max_unknown,
        )


def release(report: Report, state: Path) -> None:
    """Let go of the replies of a run, once the user has their links. Those without links stay."""
    for result in report.jobs:
        if result.status == "succeeded":
            reply_file.forget(state / "replies", result.id, asides=False)


def _working_folder() -> str:
    """Where the command was given; "" where that folder is gone, which is no reason not to run."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""
