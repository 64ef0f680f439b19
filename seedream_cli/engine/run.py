"""Runs jobs side by side in the only event loop, and says how each ended."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import BusyError
from ..ledger.ledger import Ledger
from ..results import Event, Finished, JobResult, Notice, Planned, Report, Sink
from ..storage import filesystem, reply_file
from .context import JobStream, RunContext, RunOutcome
from .job import is_there, places
from .plan import Job, Plan
from .recorder import open_recorder
from .scheduler import Scheduler
from .work import Send


def run(stream: JobStream, context: RunContext) -> RunOutcome:
    """Run a stream of jobs; results go to the sink as they come. Blocks. What a job or its source meets becomes a
    result, or the reason for the halt; raises what stops the whole run before its first job is drawn.
    """
    # Look for garbage meanwhile, but not among what was loaded before.
    gc.freeze()
    gc.enable()
    try:
        return asyncio.run(Scheduler(stream, context).run())
    except ExceptionGroup as group:
        # A bug that came through a job's border is told by itself.
        raise group.exceptions[0] from None


def run_plan(
    plan: Plan,
    sink: Sink,
    state: Path,
    ledger: Ledger | None = None,
    *,
    home: Path | None = None,
    emit: Callable[[bytes], bool] | None = None,
    log: Callable[[str], None] | None = None,
) -> Report:
    """Run a plan to its end and report on it. Raises only what stops the whole run before anything is sent.

    `state` is the folder that keeps paid replies, `ledger` what is written down (None with --no-ledger). `home` is the
    folder of the batch whose ledger it is: paths are written down from there on.
    """
    # What is there already is neither sent nor written down.
    jobs = tuple(replace(job, in_ledger=job.in_ledger and not is_there(job)) for job in (*plan.jobs, *plan.extra))
    _prepare_folders(jobs)
    results = _Results(sink)
    with open_recorder(ledger, plan, home) as recorder:
        context = RunContext(results, state / "replies", recorder, emit, log, max_unknown=plan.max_unknown)
        outcome = run(JobStream(_planned(plan), known=jobs), context)
        if outcome.halt:
            raise outcome.halt
        for job in plan.extra:
            _tell_extra(job, results.ended[job.index], sink)
        own = tuple(results.ended[job.index] for job in plan.jobs)
        report = Report(plan.command, own, plan.warnings, outcome.elapsed_s, outcome.signal_number)
        recorder.close(report.exit_code)
    return report


class _Results:
    """Hands every event on, and holds the results."""

    def __init__(self, sink: Sink) -> None:
        self.ended: dict[int, JobResult] = {}
        self._sink = sink

    def emit(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Finished):
            self.ended[event.result.index] = event.result
        self._sink.emit(event)


def _prepare_folders(jobs: Sequence[Job]) -> None:
    """Every folder takes files, and holds no remains of dead runs."""
    for job in jobs:
        # Nothing is paid for what is recovered or reused: a folder that is gone must not stop anything else.
        if isinstance(job.work, Send):
            job.output.prepare(places(job))
    for folder in {job.output.folder for job in jobs}:
        filesystem.sweep_parts(folder)


def _planned(plan: Plan) -> Planned:
    """What is about to happen."""
    first, most = plan.jobs[0], sum(job.request.images_at_most for job in plan.jobs)
    return Planned(len(plan.jobs), most, first.route.spec.name, first.request.model_id)


def _tell_extra(job: Job, result: JobResult, sink: Sink) -> None:
    """An image of an earlier run is no result of this one: a line tells of it."""
    for image in result.images:
        if image.path:
            sink.emit(Notice(f"{image.path} was paid for earlier ({job.id}) and is saved now"))
    if result.error and not isinstance(result.error, BusyError):
        sink.emit(Notice(f"{job.id} was paid for earlier: {result.error.message}"))


def release(report: Report, state: Path) -> None:
    """Let go of the replies of a run, once the user has their links. Those without links stay."""
    for result in report.jobs:
        if result.status == "succeeded":
            reply_file.forget(state / "replies", result.id, asides=False)
