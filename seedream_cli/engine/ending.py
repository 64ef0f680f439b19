"""How a request ended: what its failure means for the money, what is written down of it, and its result."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import ApiError, BudgetError, FileError, InterruptedRunError, LinkError, Problem, SeedreamError
from ..request.sizes import size_gap
from ..results import Cost, JobResult, SavedImage, Status, Timing
from ..storage.system_limits import lack_of
from .billing import cost_of
from .hints import rescue, way_out
from .state import RunningJob
from .work import Reuse, Send


def complete(running: RunningJob, error: SeedreamError) -> None:
    """What a failure means for this request, beyond what it says of itself."""
    if not (running.state.in_flight or running.state.is_answered or running.job.fetches):
        # Nothing was sent, whatever the failure says of itself.
        error.billed = "no"
    has_image = any(not image.error for image in running.state.saved.values())
    if isinstance(error, ApiError) and error.billed == "unknown" and not has_image:
        # No code that stands for "not billed" is given to what may have been.
        error.kind = "unknown_outcome"
    if error.kind == "unknown_outcome":
        error.hint = way_out(running)


def shortage(running: RunningJob, bug: Exception) -> SeedreamError | None:
    """The machine had too little of something, by how far the request had come; None for a fault of our own."""
    lack = lack_of(bug)
    if not lack:
        return None
    if running.state.is_answered or running.job.fetches:
        return FileError(f"not saved: {lack}", hint=rescue(running), billed="yes")
    if not running.state.in_flight:
        return FileError(f"not sent: {lack}")
    return _ambiguous(f"{lack}, before its answer was read; it may have been billed, and is not sent again")


def cancelled(running: RunningJob) -> SeedreamError:
    """What a stopped job is, by how far it had come."""
    if running.state.is_answered:
        return LinkError("stopped before its images were saved", hint=rescue(running))
    if not running.state.in_flight:
        return InterruptedRunError("stopped before it was sent", signal_number=running.signal_number)
    return _ambiguous("stopped while the provider was at work; may have been billed, and is not sent again")


def write_end(running: RunningJob, error: SeedreamError | None) -> None:
    """Write down a request that ended without an answer. One with an answer is in the ledger as far as it came."""
    job, state = running.job, running.state
    task_goes_on = state.task_id and error is not None and error.kind == "unknown_outcome"
    if error is None or state.ready is not None or task_goes_on or state.is_left_behind:
        return
    if job.fetches and not _is_verdict(running, error):
        return
    last = error.__cause__
    if state.ambiguous and state.is_out and isinstance(last, SeedreamError) and last.billed == "no":
        # The last attempt was refused unbilled: ambiguous are those before it.
        state.is_out = False
        running.recorder.refused(job, last, None)
        running.recorder.unsent(job)
    # What ended before, and was to be sent once more, keeps that end until it has left.
    if _is_held_back(running, error) or (job.again and not state.attempts):
        running.recorder.unsent(job)
    else:
        running.recorder.ended(job, error, state.reply)


def _is_verdict(running: RunningJob, error: SeedreamError) -> bool:
    """Whether a failure says what became of a request that was paid for before: only the provider's own word does,
    and no missing key or full disk.
    """
    is_word = isinstance(error, ApiError) and (error.delivered == "yes" or error.billed == "unknown")
    return is_word and not running.job.earlier.is_settled


def _is_held_back(running: RunningJob, error: SeedreamError) -> bool:
    """Whether the run kept the request from leaving, for a reason that is not its own."""
    is_stopped = isinstance(error, InterruptedRunError | BudgetError)
    return not running.state.in_flight and (is_stopped or (running.state.is_vetoed and running.context.is_resumable))


def result_of(running: RunningJob, error: SeedreamError | None, body: Mapping[str, Any]) -> JobResult:
    """What is to be said of this job."""
    job, state, request = running.job, running.state, running.job.request
    images = tuple(_without_key(running, state.saved[index]) for index in sorted(state.saved))
    cost, possible = cost_of(job, state, error)
    usage = state.ready.usage if state.ready else None
    return JobResult(
        index=job.index,
        id=job.id,
        status=_status(running, error, images),
        provider=job.route.spec.name,
        model=request.model_id,
        request=dict(body),
        images=images,
        usage=running.client.hide(dict(usage)) if usage else None,
        cost=Cost(0.0, "USD", "") if isinstance(job.work, Reuse) or state.is_present else cost,
        possible=possible,
        error=error,
        attempts=state.attempts,
        timing=_timing(running),
        asked_up_to=request.images_at_most if request.sequence else None,
        task_id=running.client.hide(state.task_id or state.absent_task),
        warnings=_gaps(running, images),
        in_ledger=running.recorder.records,
    )


def _gaps(running: RunningJob, images: Iterable[SavedImage]) -> tuple[Problem, ...]:
    """Where an image is not what was asked for: its size, or its format. What the model may choose is no gap."""
    request, found = running.job.request, dict[str, str]()
    is_asked = isinstance(running.job.work, Send) and not request.layers
    for image in images if is_asked else ():
        if image.error or not image.format:
            continue
        if words := size_gap(running.job.model, request.size, image.width, image.height):
            found.setdefault(words, "size_differs")
        if request.format and image.format != request.format:
            found.setdefault(f"{request.format} was asked for, and {image.format} came", "format_differs")
    return tuple(
        Problem("size" if code == "size_differs" else "format", words, severity="warning", code=code)
        for words, code in found.items()
    )


def _without_key(running: RunningJob, image: SavedImage) -> SavedImage:
    """An image as it is reported: a provider may put the key that it was given into anything it says."""
    mask, error = running.client.mask, image.error
    if error is not None:
        error.message, error.hint = mask(error.message), mask(error.hint)
        error.args = (error.message,)
        if isinstance(error, ApiError):
            error.code, error.request_id = mask(error.code), mask(error.request_id)
    url = running.client.hide(image.url)
    return image if url == image.url else replace(image, url=url)


def _status(running: RunningJob, error: SeedreamError | None, images: tuple[SavedImage, ...]) -> Status:
    """The job's status word."""
    if error is None:
        if running.job.strict and _gaps(running, images):
            return "partial"
        return "submitted" if running.state.task_id and running.job.request.callback_url else "succeeded"
    if running.context.is_resumable and not running.state.is_answered and _is_held_back(running, error):
        return "interrupted"
    if any(image.error is None for image in images):
        return "partial"
    return "unknown" if error.kind == "unknown_outcome" else "failed"


def _timing(running: RunningJob) -> Timing:
    total, provider_s = time.monotonic() - running.state.started_s, running.state.provider_s
    return Timing(total, provider_s, max(0.0, total - provider_s) if running.state.ready else 0.0)


def _ambiguous(message: str) -> ApiError:
    return ApiError(message, kind="unknown_outcome", billed="unknown", delivered="maybe")
