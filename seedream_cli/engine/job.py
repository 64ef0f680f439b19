"""One request from its plan to its result: sent once, its answer kept and written down, its images saved.

The order is the promise. The worst cost is held and "sent" is written down before the request leaves (`answer`); its
reply is on disk before it is read, its links are in the ledger before a download starts, and an image is in the ledger
only when its file and folder are flushed (`save`). Whatever happens inside becomes the job's result.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import (
    ApiError,
    BusyError,
    InternalError,
    InterruptedRunError,
    SeedreamError,
    TaskEndedError,
)
from ..network.client import ProviderClient
from ..network.download import DOWNLOAD_S
from ..network.urls import expiry
from ..providers.contract import Call, Ready, Ticket
from ..results import Finished, JobResult, ProviderImage, Saved, SavedImage
from ..storage import output_path, reply_file
from ..text import span_words
from .answer import Sender
from .billing import billed_images
from .context import RunContext
from .ending import cancelled, complete, result_of, shortage, write_end
from .hints import rescue
from .plan import Job
from .save import ImageSaver, is_final
from .state import RunningJob, Slot
from .stored_reply import read_kept
from .streamed_images import broken_stream, cut_short
from .task import TaskPoller
from .work import FetchLinks, FetchReply, PollTask, Reuse


def places(job: Job) -> list[output_path.OutputPath]:
    """Where the images of a job go, as far as that is known before the answer."""
    if job.output.stdout or job.fetches:
        return []
    numbers = range(job.first, job.first + job.request.images_at_most)
    return [job.output.place(job.fields, number=number, of=job.of) for number in numbers]


def is_there(job: Job) -> bool:
    """With `--if-exists skip`: whether every image of the job exists, so that nothing need be paid."""
    known = places(job) if job.output.if_exists == "skip" else []
    return bool(known) and all(output_path.existing(place) for place in known)


class JobRunner:
    """Takes one job from its plan to its result."""

    def __init__(self, context: RunContext, client: ProviderClient, job: Job) -> None:
        self.context = context
        self.client = client
        self.job = job
        self.recorder = context.recorder.of(job)
        self.slot = Slot(context.slots)
        self.running = RunningJob(job, context, client, self.recorder, self.slot)
        self.state = self.running.state
        self.saver = ImageSaver(self.running)
        self.task: asyncio.Task[JobResult] | None = None

    @property
    def in_flight(self) -> bool:
        """Whether an attempt is out, or one that may have been billed was: stopping now must not call it unsent."""
        return self.state.in_flight

    @property
    def most_s(self) -> float:
        """How long it may take at the most until what is in flight is here: the answer, then its images."""
        left = self.job.route.limits.timeout_s - (time.monotonic() - self.state.left_s)
        return DOWNLOAD_S + (0.0 if self.state.is_answered else max(0.0, left))

    @functools.cached_property
    def submission(self) -> Call:
        """The one billable call."""
        return self.job.route.dialect.submit(self.job.request)

    def stop(self) -> None:
        """End this job now."""
        if self.task:
            self.task.cancel()

    async def work(self) -> JobResult:
        """The job's border: whatever happens inside becomes its result."""
        error: SeedreamError | None
        try:
            if self.context.signal:
                # A run that was stopped begins nothing, not even what costs nothing.
                raise InterruptedRunError("stopped before it was sent", signal_number=self.running.signal_number)
            await self.slot.step_back()
            self.state.started_s = time.monotonic()
            error = await self._perform()
        except SeedreamError as failure:
            error = failure
        except asyncio.CancelledError:
            error = cancelled(self.running)
        except Exception as bug:  # noqa: BLE001
            # The per-job border: a bug in one request must not lose the others, nor what this one was paid for.
            error = shortage(self.running, bug) or InternalError(
                self.client.mask(f"{type(bug).__name__}: {bug}"), hint=rescue(self.running)
            )
            error.__cause__ = bug
        finally:
            self.slot.release()
            self.slot.on_first()
            self.running.try_to(self.state.secure_reply)
        if error:
            complete(self.running, error)
        # A disk that is full now was not when "sent" was written: the next run settles what is left open.
        self.running.try_to(lambda: write_end(self.running, error))
        body = {} if self.job.fetches else self.submission.json or {}
        result = result_of(self.running, error, body)
        if self.state.attempts and not self.state.is_vetoed:
            # What was not sent says nothing of the network.
            self.context.unknowns = self.context.unknowns + 1 if result.status == "unknown" else 0
        self.context.sink.emit(Finished(result))
        return result

    # --- the request, by what there is of it

    async def _perform(self) -> SeedreamError | None:
        """Send, wait, fetch. Returns the failure that some images had, or None; raises what hit the whole request."""
        job, state = self.job, self.state
        if isinstance(job.work, Reuse):
            return self._reuse(job.work.images)
        if is_there(job):
            self._leave_present()
            return None
        if not self.context.recorder.has(job):
            raise BusyError(f"{job.id} is being saved by another process", hint="seedream history shows its files")
        answer, broken = await self._first_answer()
        state.ready = await TaskPoller(self.running).finish(answer)
        if state.ready is None:
            return None
        broken = broken or self._rest_is_ambiguous(state.ready)
        await self._write_ready(state.ready)
        if job.fetches:
            self._notice_of_life(state.ready)
        if not job.download:
            return await self._hand_out(state.ready) or broken
        # What a stream brought is saved already; what a recovery has on disk is not fetched again.
        left = [
            one for one in state.ready.images if one.index not in state.taken | job.earlier.have or _is_ambiguous(one)
        ]
        state.saved |= {image.index: image for image in job.earlier.lost}
        await self.saver.save_all(left, are_last=not state.taken and not broken and not job.earlier.lost)
        error = _first_error(state.saved.values(), broken)
        if broken or not all(image.error is None or self._is_past(image.error) for image in state.saved.values()):
            # What can still be fetched stays to be fetched; the ledger only learns why it is not here.
            state.secure_reply()
            self.recorder.ended(job, broken or error or cut_short(), state.reply)
            return error
        if not state.is_closed:
            await self.recorder.saved(job)
        self._forget_reply()
        return error

    async def _first_answer(self) -> tuple[Ready | Ticket, SeedreamError | None]:
        """The reply to the one paid request, or what is left of one that was paid before; and why a stream broke."""
        match self.job.work:
            case FetchLinks(ready):
                return ready, None
            case FetchReply(path, task_id):
                return await self._read_again(path, task_id), None
            case PollTask(task_id):
                return self._ticket(task_id), None
        sender = Sender(self.running, self.submission)
        if self.job.request.stream:
            return await sender.stream(self.saver.save)
        return await sender.send(), None

    async def _read_again(self, path: Path, task_id: str) -> Ready | Ticket:
        """A kept reply, or the task that it started where it cannot be read as that."""
        self.state.reply = path
        try:
            return await asyncio.to_thread(read_kept, self.job.route.dialect, path)
        except TaskEndedError:
            raise
        except ApiError:
            if not task_id:
                raise
        return self._ticket(task_id)

    def _ticket(self, task_id: str) -> Ticket:
        self.state.task_id = task_id
        return Ticket(task_id, poll_after_s=0.0)

    def _rest_is_ambiguous(self, ready: Ready) -> ApiError | None:
        """What is wrong with a stream that was kept and has no end: more may have been made than came."""
        if not ready.cut or len(ready.images) >= self.job.most:
            return None
        return broken_stream(cut_short(), len(ready.images), self.job.most)

    async def _write_ready(self, ready: Ready) -> None:
        """Every link is in the ledger before any download starts."""
        state = self.state
        state.is_answered = True
        self.slot.release()
        self.running.emit_stage("done")
        try:
            await self.recorder.ready(self.job, ready, billed_images(ready), state.reply)
        except BaseException:
            # What is not in the ledger must be on disk.
            state.secure_reply()
            raise
        if state.open_reply is not None:
            state.open_reply.links_written()

    async def _hand_out(self, ready: Ready) -> SeedreamError | None:
        """With `--no-download` the links are the result; the reply stays until they are printed."""
        state = self.state
        state.secure_reply()
        state.saved = {one.index: SavedImage(one.index, url=one.link, error=one.error) for one in ready.images}
        for image in state.saved.values():
            if image.error is None:
                await self.recorder.image(self.job, image, handed=True)
        error = _first_error(state.saved.values())
        if error is not None and not is_final(error):
            self.recorder.ended(self.job, error, state.reply)
            return error
        await self.recorder.saved(self.job)
        return error

    def _is_past(self, error: SeedreamError) -> bool:
        """Whether nothing need be kept of an image. Without a ledger only the reply has the link of an expired one."""
        return is_final(error) and (error.billed == "no" or self.recorder.records)

    def _forget_reply(self) -> None:
        """Everything that the reply was kept for is saved. One with an image whose link is dead stays."""
        state, replies, name = self.state, self.context.replies, self.job.id
        if any(image.error is not None and image.error.billed != "no" for image in state.saved.values()):
            state.secure_reply()
            return
        if state.open_reply is not None:
            state.open_reply.forget()
            state.open_reply = None
        # What came of an attempt before is all there is of it, until the user settles that.
        is_open = self.job.again or state.ambiguous > 0 or self.job.fetches
        is_open = is_open and bool(reply_file.list_asides(replies, name)) and self.recorder.doubts(self.job) > 0
        reply_file.forget(replies, name, asides=not is_open)

    def _notice_of_life(self, ready: Ready) -> None:
        """Say how long the links are good for by their own dates. They are tried all the same: a clock may be wrong."""
        ends = [end for one in ready.images if one.index not in self.job.earlier.have and (end := expiry(one.link))]
        if not ends:
            return
        left = min(ends) - self.context.clock.now().timestamp()
        life = f"has {span_words(left)} left" if left > 0 else f"expired {span_words(-left)} ago by its own date"
        self.running.notice(f"{self.job.id}: {'its link' if len(ends) == 1 else 'the first link'} {life}")

    def _reuse(self, images: Sequence[SavedImage]) -> SeedreamError | None:
        """An earlier request was the same, and its images are on disk: they are the result, at no cost."""
        self.state.saved = {image.index: image for image in images}
        if not self.job.output.stdout:
            self.running.notice(f"nothing was sent: {self.job.id} was the same request, and its files are here")
            for image in images:
                self.context.sink.emit(Saved(self.job.index, image))
            return None
        for image in images:
            if image.path:
                self.saver.write_to_stdout(image.path)
        return None

    def _leave_present(self) -> None:
        """Everything is there already, and nothing need be paid."""
        self.state.is_present = True
        paths = [path for place in places(self.job) if (path := output_path.existing(place))]
        self.state.saved = {index: SavedImage(index, path) for index, path in enumerate(paths)}
        self.running.notice(f"{paths[0]} exists already; nothing was sent")


def _is_ambiguous(image: ProviderImage) -> bool:
    """Whether nobody knows what became of a member of an answer."""
    return image.error is not None and image.error.billed == "unknown"


def _first_error(images: Iterable[SavedImage], broken: SeedreamError | None = None) -> SeedreamError | None:
    """The failure to speak of where several things failed: one that money hangs on before a refusal."""
    errors = [error for error in (broken, *(image.error for image in images)) if error]
    return min(errors, key=lambda error: error.billed == "no", default=None)
