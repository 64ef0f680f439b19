"""One request from its plan to its result: reserved, sent once, its answer kept and written down, its images saved.

The order is the promise. The worst cost is held, then the intent is written inside the wire's last gate, then one
request leaves; its reply is on disk before it is read, its links are in the books before a download starts, and an
image is in the books only when its file and folder are flushed. Whatever happens inside becomes the job's result.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import (
    ApiError,
    BudgetError,
    BusyError,
    FileError,
    InputError,
    InternalError,
    InterruptedRunError,
    LinkError,
    Problem,
    SeedreamError,
    TaskEndedError,
)
from ..network.client import DOWNLOAD_S, ProviderClient
from ..network.urls import absolute, expiry
from ..providers.base_url import full_url
from ..providers.contract import Call, Completed, Ready, Reply, Ticket
from ..request.limits import COUNT_MOST
from ..request.sizes import size_gap
from ..results import (
    Cost,
    Downloading,
    Finished,
    JobResult,
    Notice,
    ProviderImage,
    Retrying,
    Saved,
    SavedImage,
    Stage,
    Status,
    Timing,
)
from ..storage import base64_image, image_file, image_info, output_path, reply_file
from ..storage.system_limits import lack_of
from ..text import clean, span_words
from .context import RunContext
from .plan import Job
from .stored_reply import POLLED, StoredReplyFile, StoredReplySlot, numbered, read_event, read_kept, read_reply

_YOUNG_S = 60.0
"""How long after the answer an image that is not at its link may only not be there yet."""


def places(job: Job) -> list[output_path.OutputPath]:
    """Where the images of a job go, as far as that is known before the answer."""
    if job.output.stdout or job.recovers:
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
        self.dialect = job.route.dialect
        self.task: asyncio.Task[JobResult] | None = None
        self.holds_slot = False
        self.begun: Callable[[], None] = lambda: None
        self.objected = False
        self.answered = False
        self.doubted = False
        self.doubts = 0
        self.attempts = 0
        self.task_id = ""
        self.absent_task = ""
        self.started = time.monotonic()
        self.gone_at = self.started
        self.sent_at: dt.datetime | None = None
        self.provider_s = 0.0
        self.young_s = 0.0
        self.lost_polls = 0
        self.absent_s = 0.0
        self.taken: set[int] = set()
        self.saved: dict[int, SavedImage] = {}
        self.is_left = False
        self.ready: Ready | None = None
        self.reply: Path | None = None
        self.kept: StoredReplyFile | StoredReplySlot | None = None
        self.incoming: StoredReplyFile | StoredReplySlot | None = None
        self.token = ""
        self.is_out = False
        self.left_behind = False
        self.closed = False

    @property
    def in_flight(self) -> bool:
        """Whether an attempt is out, or one that may have been billed was: stopping now must not call it unsent."""
        return self.is_out or self.doubted

    @functools.cached_property
    def submission(self) -> Call:
        """The one billable call."""
        return self.dialect.submit(self.job.request)

    def read(self, reply: Reply) -> Ready | Ticket:
        """What a reply to this request says."""
        return read_reply(self.dialect, reply)

    # The wire tells how a request fares; these five are its side of the conversation.

    async def gate(self, attempt: int) -> None:
        """Called by the wire just before the first byte leaves: the last place to say no, and the intent is written."""
        self.raise_objection()
        self.context.step("gate")
        # What an attempt before may have cost stays in the account: a repetition is held against the budget as well.
        self.token = await self.recorder.sent(self.job, attempt, self.raise_objection, again=self.doubted)
        if self.incoming is not None and self.incoming.size:
            # What came of the attempt before must not be taken for the answer to this one.
            self.incoming.reset()
        self.attempts = attempt
        self.sent_at = self.sent_at or self.context.clock.now()
        self.gone_at = time.monotonic()
        self.is_out = True
        self.context.step("sent")

    def raise_objection(self) -> None:
        """Raise what keeps a new request from leaving."""
        if why := self.context.objection():
            self.objected = True
            raise why

    def stage(self, name: Any) -> None:
        """The request entered a stage."""
        self.context.sink.emit(Stage(self.job.index, name, "", self.job.title, self.job.request.model_id))

    def retrying(self, wait_s: float, error: SeedreamError, attempt: int) -> None:
        """The request was refused unbilled, or is repeated on the user's order; a signal may stop it meanwhile."""
        self.doubted = self.doubted or error.billed != "no"
        was_out, self.is_out = self.is_out, False
        # One that never came as far as the gate is not in the books either.
        if was_out:
            self.doubts += error.billed != "no"
            self.recorder.refused(self.job, error, self._put_aside(error))
        self.context.sink.emit(Retrying(self.job.index, "the request", wait_s, error.message, attempt))

    def unsent(self) -> None:
        """The run was stopped while the request was being written: it is none, and goes back among those to send."""
        if self.doubted:
            return
        self.is_out = False
        number = self.context.signal.value if self.context.signal else signal.SIGINT.value
        error = InterruptedRunError("stopped before it was sent", signal_number=number)
        self._try(lambda: self.recorder.refused(self.job, error, None))

    def _put_aside(self, error: SeedreamError) -> Path | None:
        """What came of an attempt that may have been paid for, before another one is made; of others nothing stays."""
        kept = self.incoming
        if kept is None or not kept.size:
            return None
        if error.billed == "no":
            self._try(kept.reset)
            return None
        self._try(kept.secure)
        return kept.kept

    def step_aside(self) -> None:
        """The request waits for its provider's turn."""
        self._leave_slot()

    async def step_back(self) -> None:
        """Its turn has come: it needs a slot."""
        if not self.holds_slot:
            await self.context.slots.acquire()
            self.holds_slot = True
            self.begun()

    def stop(self) -> None:
        """End this job now."""
        if self.task:
            self.task.cancel()

    async def work(self) -> JobResult:
        """The job's border: whatever happens inside becomes its result."""
        try:
            if self.context.signal:
                # A run that was stopped begins nothing, not even what costs nothing.
                raise InterruptedRunError("stopped before it was sent", signal_number=self.context.signal.value)
            await self.step_back()
            self.started = time.monotonic()
            error = await self._perform()
        except SeedreamError as failure:
            error = failure
        except asyncio.CancelledError:
            error = self._cancelled()
        except Exception as bug:  # noqa: BLE001
            # The per-job border: a bug in one request must not lose the others, nor what this one was paid for.
            error = self._shortage(bug) or InternalError(
                self.client.mask(f"{type(bug).__name__}: {bug}"), hint=self._rescue()
            )
            error.__cause__ = bug
        finally:
            self._leave_slot()
            self.begun()
            self._try(self._secure_reply)
        if error and not (self.in_flight or self.answered or self.job.recovers):
            # Nothing left the house, whatever the failure says of itself.
            error.billed = "no"
        has_image = any(not image.error for image in self.saved.values())
        if isinstance(error, ApiError) and error.billed == "unknown" and not has_image:
            # No code that stands for "not billed" is given to what may have been.
            error.kind = "unknown_outcome"
        if error and error.kind == "unknown_outcome":
            error.hint = self._way_back()
        # A disk that is full now was not when the intent was written: the next run settles what is left open.
        self._try(lambda: self._write_end(error))
        result = self._result(error)
        if self.attempts and not self.objected:
            # What was not sent says nothing of the network.
            self.context.unknowns = self.context.unknowns + 1 if result.status == "unknown" else 0
        self.context.sink.emit(Finished(result))
        return result

    def _shortage(self, bug: Exception) -> SeedreamError | None:
        """The machine had too little of something, by how far the request had come; None for a fault of our own."""
        lack = lack_of(bug)
        if not lack:
            return None
        if self.answered or self.job.recovers:
            return FileError(f"not saved: {lack}", hint=self._rescue(), billed="yes")
        if not self.in_flight:
            return FileError(f"not sent: {lack}")
        said = f"{lack}, before its answer was read; it may have been billed, and is not sent again"
        return ApiError(said, kind="unknown_outcome", billed="unknown", delivered="maybe")

    def _leave_slot(self) -> None:
        """Let the next request leave: downloads have places of their own."""
        if self.holds_slot:
            self.holds_slot = False
            self.context.slots.release()

    def _is_held_back(self, error: SeedreamError) -> bool:
        """Whether the run kept the request from leaving, for a reason that is not its own."""
        stopped = isinstance(error, InterruptedRunError | BudgetError)
        return not self.in_flight and (stopped or (self.objected and self.context.is_resumable))

    def _try(self, action: Callable[[], object]) -> None:
        """A deed that may fail, but not keep the result from being told, nor take the other jobs with it."""
        try:
            action()
        except FileError:
            pass
        except (SeedreamError, OSError) as error:
            self.context.sink.emit(Notice(self.client.mask(f"{self.job.id}: {error}")))

    def _write_end(self, error: SeedreamError | None) -> None:
        """Write down a request that ended without an answer. One with an answer is in the books as far as it came."""
        task_goes_on = self.task_id and error is not None and error.kind == "unknown_outcome"
        if error is None or self.ready is not None or task_goes_on or self.left_behind:
            return
        if self.job.recovers and not self._is_verdict(error):
            return
        last = error.__cause__
        if self.doubted and self.is_out and isinstance(last, SeedreamError) and last.billed == "no":
            # The last attempt was refused unbilled: in doubt are those before it.
            self.is_out = False
            self.recorder.refused(self.job, last, None)
            self.recorder.unsent(self.job)
        # What ended before, and was to be sent once more, keeps that end until it has left.
        if self._is_held_back(error) or (self.job.again and not self.attempts):
            self.recorder.unsent(self.job)
        else:
            self.recorder.ended(self.job, error, self.reply)

    def _is_verdict(self, error: SeedreamError) -> bool:
        """Whether a failure says what became of a request that was paid for before: only the provider's own word does,
        and no missing key or full disk.
        """
        said = isinstance(error, ApiError) and (error.delivered == "yes" or error.billed == "unknown")
        return said and not self.job.is_settled

    def _cancelled(self) -> SeedreamError:
        """What a stopped job is, by how far it had come."""
        number = self.context.signal.value if self.context.signal else signal.SIGINT.value
        if not self.in_flight and not self.answered:
            return InterruptedRunError("stopped before it was sent", signal_number=number)
        if self.answered:
            return LinkError("stopped before its images were saved", hint=self._rescue())
        return ApiError(
            "stopped while the provider was at work; may have been billed, and is not sent again",
            kind="unknown_outcome",
            billed="unknown",
            delivered="maybe",
        )

    def _rescue(self) -> str:
        """The command that saves what is paid for and not here."""
        return "run the same command again" if self.context.is_resumable else f"seedream recover {self.job.id}"

    def _rescue_of(self, error: SeedreamError) -> str:
        """As `_rescue`; and where trying again may not help, the command that shows the link."""
        final = isinstance(error, LinkError) and not error.retryable
        if not final or self.context.is_resumable or not self.recorder.records:
            return self._rescue()
        return f"{self._rescue()} tries again; seedream history show {self.job.id} --links prints the link"

    def _way_back(self) -> str:
        """The commands that lead out of an unknown outcome."""
        if self.task_id and self.job.barred:
            name, place = self.job.route.spec.name, shlex.quote(clean(self.job.barred, 200))
            give = f"--provider {name} --base-url {place}, or set base_url under [providers.{name}]"
            return f"if that address is yours, name it yourself: {give}"
        if self.left_behind or (self.task_id and self.context.is_resumable):
            return self._rescue()
        if self.task_id:
            return f"later: seedream recover --task {shlex.quote(self.task_id)} -p {self._address_options()}"
        look = f"look at the provider's usage page for {self.sent_at or self.context.clock.now():%Y-%m-%d %H:%M} UTC"
        if self.absent_task:
            again = f"seedream recover --task {shlex.quote(self.absent_task)} -p {self._address_options()}"
            look = f"{again} asks once more; {look}"
        if not self.recorder.records:
            return look if self.job.recovers else f"{look}; the same command sends it once more, and pays once more"
        resolve = f"{look}, then seedream history resolve {self.job.id} --paid or --unpaid"
        came = self.ready is not None or self.reply is not None
        if came and not (self.context.is_resumable or self.job.recovers):
            resolve = f"seedream recover {self.job.id} reads again what came; {resolve}"
        if self.job.recovers and not self.context.is_resumable:
            # Saving what was paid for sends nothing anew, and so does no command that only does that.
            return resolve
        again = " with --only unknown --retry-ambiguous" if self.context.is_resumable else ""
        return f"{resolve}; the same command{again} sends it once more, and pays once more"

    def _address_options(self) -> str:
        """The provider, and its address where it is not its own: what is written down of that counts for nothing."""
        route = self.job.route
        is_own = route.base_url == full_url(route.spec) if route.spec.base_url else False
        return route.spec.name + ("" if is_own else f" --base-url {shlex.quote(route.base_url)}")

    @property
    def most_s(self) -> float:
        """How long it may take at the most until what is in flight is here: the answer, then its images."""
        left = self.job.route.limits.timeout_s - (time.monotonic() - self.gone_at)
        return DOWNLOAD_S + (0.0 if self.answered else max(0.0, left))

    async def _perform(self) -> SeedreamError | None:
        """Send, wait, fetch. Returns the failure that some images had, or None; raises what hit the whole request."""
        if self.job.reused:
            return self._reuse()
        if is_there(self.job):
            self._leave()
            return None
        if not self.context.recorder.has(self.job):
            raise BusyError(f"{self.job.id} is being saved by another process", hint="seedream history shows its files")
        broken = None
        if self.job.request.stream and not self.job.recovers:
            broken = await self._stream()
        else:
            self.ready = await self._obtain()
        if self.ready is None:
            return None
        broken = broken or self._rest_in_doubt(self.ready)
        await self._take_answer(self.ready)
        if self.job.recovers:
            self._tell_life(self.ready)
        if not self.job.download:
            return await self._hand_out(self.ready) or broken
        # What a stream brought is saved already, or on its way; what a recovery has on disk is not fetched again.
        left = [one for one in self.ready.images if one.index not in self.taken | self.job.have or _in_doubt(one)]
        self.saved |= {image.index: image for image in self.job.lost}
        await self._keep_all(left, last=not self.taken and not broken and not self.job.lost)
        error = _first_error(self.saved.values(), broken)
        if broken or not all(image.error is None or self._is_past(image.error) for image in self.saved.values()):
            # What can still be fetched stays to be fetched; the books only learn why it is not here.
            self._secure_reply()
            self.recorder.ended(self.job, broken or error or _cut_short(), self.reply)
        else:
            self.context.step("all saved")
            if not self.closed:
                await self.recorder.saved(self.job)
            self.context.step("saved written")
            self._forget_reply()
        return error

    def _is_past(self, error: SeedreamError) -> bool:
        """Whether nothing need be kept of an image. Without books the reply alone knows the link of an expired one."""
        return _is_final(error) and (error.billed == "no" or self.recorder.records)

    def _rest_in_doubt(self, ready: Ready) -> ApiError | None:
        """What is wrong with a stream that was kept and has no end: more may have been made than came."""
        most = self.job.most or self.job.request.images_at_most
        if not ready.cut or len(ready.images) >= most:
            return None
        return _broken_stream(_cut_short(), len(ready.images), most)

    async def _take_answer(self, ready: Ready) -> None:
        """Every link is in the books before any download starts."""
        self.answered = True
        self._leave_slot()
        self.stage("done")
        self.context.step("read")
        try:
            await self.recorder.ready(self.job, ready, self._made(), self.reply)
        except BaseException:
            # What is not in the books must be on disk.
            self._secure_reply()
            raise
        if self.kept is not None:
            self.kept.links_written()
        self.context.step("ready written")

    async def _hand_out(self, ready: Ready) -> SeedreamError | None:
        """With `--no-download` the links are the result; the reply stays until they are printed."""
        self._secure_reply()
        self.saved = {one.index: SavedImage(one.index, url=one.link, error=one.error) for one in ready.images}
        for image in self.saved.values():
            if image.error is None:
                await self.recorder.image(self.job, image, handed=True)
        error = _first_error(self.saved.values())
        if error is not None and not _is_final(error):
            self.recorder.ended(self.job, error, self.reply)
            return error
        await self.recorder.saved(self.job)
        return error

    def _secure_reply(self) -> None:
        """Flush the reply and give it its name, where its links were enough so far: another run may need it."""
        if self.kept is not None:
            self.reply, self.kept = self.kept.secure(), None

    def _forget_reply(self) -> None:
        """Everything that the reply was kept for is saved. One with an image whose link is dead stays."""
        if any(image.error is not None and image.error.billed != "no" for image in self.saved.values()):
            self._secure_reply()
            return
        if self.kept is not None:
            self.kept.forget()
            self.kept = None
        replies, name = self.context.replies, self.job.id
        # What came of an attempt before is all there is of it, until the user settles that.
        in_doubt = self.job.again or self.doubted or self.job.recovers
        in_doubt = in_doubt and bool(reply_file.list_asides(replies, name)) and self.recorder.doubts(self.job) > 0
        reply_file.forget(replies, name, asides=not in_doubt)

    def _tell_life(self, ready: Ready) -> None:
        """Say how long the links are good for by their own dates. They are tried all the same: a clock may be wrong."""
        ends = [end for one in ready.images if one.index not in self.job.have and (end := expiry(one.link))]
        if not ends:
            return
        left = min(ends) - self.context.clock.now().timestamp()
        said = f"has {span_words(left)} left" if left > 0 else f"expired {span_words(-left)} ago by its own date"
        self.context.sink.emit(Notice(f"{self.job.id}: {'its link' if len(ends) == 1 else 'the first link'} {said}"))

    def _reuse(self) -> SeedreamError | None:
        """An earlier request was the same, and its images are on disk: they are the result, at no cost."""
        self.saved = {image.index: image for image in self.job.reused}
        if not self.job.output.stdout:
            self.context.sink.emit(
                Notice(f"nothing was sent: {self.job.id} was the same request, and its files are here")
            )
            return None
        for image in self.job.reused:
            if image.path:
                self._emit(image.path)
        return None

    def _leave(self) -> None:
        """Everything is there already, and nothing need be paid."""
        self.is_left = True
        paths = [path for place in places(self.job) if (path := output_path.existing(place))]
        self.saved = {index: SavedImage(index, path) for index, path in enumerate(paths)}
        self.context.sink.emit(Notice(f"{paths[0]} exists already; nothing was sent"))

    # Getting the answer.

    async def _obtain(self) -> Ready | None:
        """The provider's answer with its images, however many polls it takes; None where a callback will bring it."""
        started = time.monotonic()
        return await self._wait_for(await self._first_answer(), started)

    async def _wait_for(self, outcome: Ready | Ticket, started: float, reply: Path | None = None) -> Ready | None:
        """Poll a task, which was kept as `reply`, to its end; an answer with images needs none."""
        self.reply = reply or self.reply
        while isinstance(outcome, Ticket):
            if not self.task_id:
                self.task_id = outcome.task_id
                self.recorder.waiting(self.job, outcome.task_id)
                self.context.step("task written")
            if self.job.request.callback_url:
                return None
            outcome = await self._poll(outcome, started)
        self.provider_s = time.monotonic() - started
        return replace(outcome, images=tuple(map(self._with_host, outcome.images)))

    def _with_host(self, image: ProviderImage) -> ProviderImage:
        """An image whose link, where it names no host, is one of the API's own."""
        link = absolute(image.link, self.job.route.base_url)
        return image if link == image.link else replace(image, link=link)

    async def _first_answer(self) -> Ready | Ticket:
        """The reply to the one paid request; or, for what was paid before, what is left of it."""
        job = self.job
        if job.known is not None:
            return job.known
        if job.kept is not None:
            self.reply = job.kept
            return await self._read_again(job.kept)
        if job.task_id:
            self.task_id = job.task_id
            return Ticket(job.task_id, poll_after_s=0.0)
        kept = self.incoming = self._make_room()
        self.context.step("room reserved")
        try:
            answer = await self.client.ask(
                self.submission,
                self.read,
                reply_file=kept,
                gate=self.gate,
                watch=self,
                images=job.request.images_at_most,
                waiter=self,
            )
        except SeedreamError as error:
            self._settle(kept, error)
            raise
        except BaseException:
            self._leave_behind(kept)
            raise
        self._note_age()
        self.kept, self.reply = kept, kept.kept
        if not (isinstance(answer.value, Ready) and all(one.link or one.error for one in answer.value.images)):
            # A task, or an image inside the reply.
            self._secure_reply()
        return answer.value

    async def _read_again(self, path: Path) -> Ready | Ticket:
        """A kept reply, or the task that it started where it cannot be read as that."""
        try:
            return await asyncio.to_thread(read_kept, self.dialect, path)
        except TaskEndedError:
            raise
        except ApiError:
            if not self.job.known_task:
                raise
        self.task_id = self.job.known_task
        return Ticket(self.job.known_task, poll_after_s=0.0)

    def _make_room(self) -> StoredReplyFile | StoredReplySlot:
        """Room for the reply, before it is asked for. Where the books take its links, it need not be flushed itself."""
        context, job = self.context, self.job
        links_suffice = self.recorder.records and job.request.response_format != "b64_json"
        if links_suffice and context.journal is not None and context.journal.has_place_for(job.id):
            return StoredReplySlot(context.journal, context.replies, job, lambda: self.token)
        return StoredReplyFile(context.replies, job, links_suffice=links_suffice)

    def _settle(self, kept: StoredReplyFile | StoredReplySlot, error: SeedreamError) -> None:
        """Keep the reply to a request that may have been paid for; `recover` can read it."""
        last = error.__cause__
        try:
            if isinstance(last, ApiError) and last.billed == "no":
                # What came is the refusal of the last attempt, and says nothing of the one that is in doubt.
                kept.drop()
            else:
                kept.settle(error)
        except SeedreamError:
            # That must not take the place of what the request came to. The next run looks for what there is.
            self.left_behind = True
        self.reply = kept.kept

    def _leave_behind(self, kept: StoredReplyFile | StoredReplySlot) -> None:
        """A stop, or a fault of our own, while an answer was coming: what came may be a whole one, and is paid for."""
        if not (self.is_out and kept.size):
            kept.drop()
            return
        self.left_behind = True
        # Where the disk refuses it, the intent is still there.
        with contextlib.suppress(SeedreamError):
            if self.recorder.records:
                kept.leave_behind()
            else:
                self.reply = kept.secure()

    async def _poll(self, ticket: Ticket, started: float) -> Ready | Ticket:
        """Wait, and ask after the task once. Its id is on disk since the submission, so a lost poll loses nothing."""
        if self.job.barred:
            raise self._task_barred(ticket)
        if time.monotonic() - started > self.job.route.limits.timeout_s:
            raise self._task_left(f"task {ticket.task_id} was not ready in time")
        try:
            call = self.dialect.poll(ticket)
        except InputError as error:
            raise self._task_left(f"a task was not asked after: {error}") from error

        def read(reply: Reply) -> Ready | Ticket:
            return self.read(replace(reply, task_id=ticket.task_id))

        self.context.sink.emit(Stage(self.job.index, "polling", ticket.task_id))
        await self.context.clock.sleep(ticket.poll_after_s)
        # Beside the reply that holds the task's id: that one must stay until the images are here.
        kept = StoredReplyFile(self.context.replies, self.job, beside=POLLED)
        try:
            answer = await self.client.ask(call, read, reply_file=kept)
        except ApiError as error:
            # A structured error that comes whole, with HTTP 200, is the task's own; any other is of the asking. At a
            # gateway only the task's record speaks for it.
            is_own = error.delivered == "yes" and error.status == 200 and bool(error.code)
            is_own = is_own and not self.dialect.spec.task_path
            if is_own or isinstance(error, TaskEndedError):
                self._end_task(kept, error)
                raise
            kept.forget()
            return self._judge_lost_poll(ticket, error)
        self.lost_polls = 0
        self._note_age()
        if isinstance(answer.value, Ticket):
            kept.forget()
            # Some records have a second id, under which nobody finds them.
            return replace(answer.value, task_id=ticket.task_id)
        self.reply = kept.take_place(self.job.id)
        return await asyncio.to_thread(read_kept, self.dialect, self.reply)

    def _end_task(self, kept: StoredReplyFile, error: ApiError) -> None:
        """The task is over, and its record is all that is left of it, unless it says that it cost nothing."""
        self.task_id = ""
        if error.billed == "no":
            kept.forget()
            reply_file.forget(self.context.replies, self.job.id, asides=False)
        else:
            self.reply = kept.take_place(self.job.id)

    def _judge_lost_poll(self, ticket: Ticket, error: ApiError) -> Ticket:
        """The ticket to ask with again; raises where the task cannot be asked after."""
        if error.status == 404 and self._is_young():
            wait_s = self.absent_s + 1.0
            self.absent_s += wait_s
            return replace(ticket, poll_after_s=wait_s)
        if error.status == 404:
            self.task_id, self.absent_task = "", ticket.task_id
            said = f"{self.job.route.spec.title} knows no task {ticket.task_id}: {error.message}"
            raise ApiError(said, kind="unknown_outcome", billed="unknown", delivered="yes") from error
        self.lost_polls += 1
        is_final = error.status is not None and 400 <= error.status < 500 and error.status not in {408, 429}
        if is_final or self.lost_polls > self.job.route.limits.retries:
            raise self._task_left(f"task {ticket.task_id} could not be asked after: {error.message}") from error
        return replace(ticket, poll_after_s=max(ticket.poll_after_s, 1.0) * 2)

    def _is_young(self) -> bool:
        """Whether a task was made so lately that its provider may not find it yet."""
        began = self.sent_at or self.job.sent_at
        age_s = (self.context.clock.now() - began).total_seconds() if began else _YOUNG_S
        return max(age_s, self.absent_s) < _YOUNG_S

    def _task_left(self, message: str) -> ApiError:
        """A task that is left to itself: it is paid for, or will be, and can be fetched later."""
        return ApiError(
            f"{message}; it goes on at the provider",
            kind="unknown_outcome",
            billed="unknown",
            delivered="yes",
            hint=self._way_back(),
        )

    def _task_barred(self, ticket: Ticket) -> ApiError:
        """A task at an address that only a ledger or a kept reply names, and such files may be a stranger's."""
        place, spec = clean(self.job.barred, 200), self.job.route.spec
        return self._task_left(
            f"task {ticket.task_id} was not asked after: its record names {place} as {spec.name}'s address, and a key "
            "goes only where this run, its settings or a stored key say"
        )

    async def _stream(self) -> ApiError | None:
        """Send, and save each image the moment its event arrives. Returns why the stream broke, if images came."""
        job, started = self.job, time.monotonic()
        kept = self.incoming = StoredReplyFile(self.context.replies, job)
        self.context.step("room reserved")
        came: list[ProviderImage] = []
        ends: list[Completed] = []
        saving: list[asyncio.Task[None]] = []

        def on_event(event: Mapping[str, Any]) -> None:
            for found in read_event(self.dialect, event):
                take(found)

        def take(found: ProviderImage | Completed) -> None:
            if isinstance(found, Completed):
                ends.append(found)
            elif (image := numbered(self._with_host(found), came)) is not None:
                # The link must be on disk before its download starts, as with a whole reply.
                kept.flush()
                self._note_age()
                self.recorder.announced(job, image)
                self.context.step("event written")
                self.taken.add(image.index)
                # Its base64 is held only until it is saved.
                came.append(replace(image, base64=""))
                if job.download:
                    saving.append(asyncio.create_task(self._keep(image)))

        most = job.request.images_at_most
        cut: SeedreamError | None = None
        try:
            streamed = await self.client.stream(
                self.submission,
                self.read,
                on_event,
                reply_file=kept,
                gate=self.gate,
                watch=self,
                images=most,
                waiter=self,
            )
        except SeedreamError as error:
            if not came:
                self._settle(kept, error)
                raise
            # Whatever ended it: the images before it may have been paid for.
            kept.secure()
            cut = error
        except BaseException:
            for task in saving:
                task.cancel()
            self._leave_behind(kept)
            raise
        else:
            if streamed.whole is not None:
                # Images at once, or a task that the provider has made of it, which is asked after.
                self.ready = await self._wait_for(streamed.whole, started, kept.kept)
                return None
            kept.secure()
            whole = bool(ends) or streamed.ended == "done" or (streamed.cut is None and len(came) >= most)
            cut = streamed.cut or _cut_short() if not whole else _missing(came, ends)
        finally:
            self.provider_s = time.monotonic() - started
        self.reply = kept.kept
        if cut and not came:
            self.ready = await self._wait_for(await self._read_whole(cut, kept.kept), started, kept.kept)
            return None
        self.ready = Ready(tuple(came), usage=ends[-1].usage if ends else None)
        await asyncio.gather(*saving)
        return _broken_stream(cut, len(came), most) if cut else None

    async def _read_whole(self, cut: SeedreamError, reply: Path | None) -> Ready | Ticket:
        """The answer of a stream that brought no event of an image: as a whole it may bring images, or a task.

        Raises `cut` where it does not.
        """
        with contextlib.suppress(ApiError):
            if reply is not None:
                return await asyncio.to_thread(read_kept, self.dialect, reply)
        raise cut

    # Getting the images.

    async def _keep_all(self, images: Sequence[ProviderImage], *, last: bool) -> None:
        """Bring them to disk; they are the `last`, if the others are there."""
        # The slot is free: what leaves in its place goes first, since the provider's time is the longest.
        await self.context.clock.sleep(0)
        if len(images) == 1:
            await self._keep(images[0], last=last)
        else:
            await asyncio.gather(*(self._keep(image) for image in images))

    async def _keep(self, made: ProviderImage, *, last: bool = False) -> None:
        """Bring one image to disk; its failure is its own. After the `last` nothing is left of the request."""
        if made.error:
            self.saved[made.index] = SavedImage(made.index, error=made.error, layer=made.layer)
            return
        try:
            async with self.context.downloads:
                image = await self._save(made)
        except (LinkError, FileError, OSError, MemoryError, ImportError, RuntimeError, SystemError) as cause:
            # Whatever the disk says of itself: this image is paid for.
            error = self._image_error(cause)
            error.billed = "yes"
            if not error.hint and not _is_final(error):
                error.hint = self._rescue_of(error)
            image = SavedImage(made.index, url=made.link, error=error, layer=made.layer)
        self.saved[made.index] = image
        self.closed = last and image.error is None
        await self.recorder.image(self.job, image, handed=self.job.output.stdout, last=self.closed)
        self.context.step("image written")
        self.context.sink.emit(Saved(self.job.index, image))

    def _image_error(self, cause: Exception) -> LinkError | FileError:
        """What keeps an image from being saved: the link, the disk, or too little memory. Anything else is a bug."""
        if isinstance(cause, LinkError | FileError):
            return cause
        if not (lack := lack_of(cause)):
            raise cause
        return FileError(f"not saved: {lack}", billed="yes")

    async def _save(self, image: ProviderImage) -> SavedImage:
        """Fetch into a part file beside its place, check that it is a whole image, and give it its name."""
        output = self.job.output
        # How many a kept reply holds is known only now.
        of = max(self.job.of, len(self.ready.images) if self.ready and self.job.recovers else 1)
        number, rule = self.job.first + image.index, output.if_exists
        beyond = 0 if self.job.recovers else image.index + 1 - self.job.request.images_at_most
        if beyond > 0 and output.stdout:
            raise LinkError("standard output takes one image, and the provider made more")
        if beyond > 0:
            # More came than was asked for. They are billed, so they are kept, behind the names that were planned.
            number, of, rule = self.job.of + beyond, self.job.of + beyond, "rename"
        # "skip" keeps a request from being paid for; what was paid for is not dropped for a name that is taken.
        rule = "rename" if rule == "skip" else rule
        place = output.place(self.job.fields, number=number, of=of)
        with image_file.open_part(place.folder) as part:
            facts = await self._fill(part, image)
            self.context.step("part written")
            same = image_file.find_same(place, facts) if self.job.recovers else None
            if output.stdout:
                await asyncio.to_thread(self._emit, part.path)
                path = None
            elif same is not None:
                path = same
            else:
                published = await self.context.disk.do(
                    lambda: part.publish(place.folder, place.stem, facts, rule, suffix=place.suffix), 0
                )
                path = published.path
                self._note(published)
            self.context.step("published")
        return SavedImage(
            image.index,
            path,
            image.link,
            facts.format,
            facts.width,
            facts.height,
            facts.bytes,
            facts.sha256,
            layer=image.layer,
        )

    def _note(self, published: image_file.Published) -> None:
        """Say where an image is not where it was asked to be."""
        if published.renamed_from and self.job.output.if_exists == "skip":
            name = published.renamed_from.name
            self.context.sink.emit(
                Notice(f"{name} exists already, and another was paid for: saved as {published.path}")
            )
        if published.retyped_from:
            name, suffix = published.retyped_from.name, published.path.suffix
            self.context.sink.emit(
                Notice(f"{name} was asked for, but the image is {suffix[1:]}: saved as {published.path}")
            )

    def _emit(self, path: Path) -> None:
        """A whole, checked image to standard output. A closed pipe loses nothing: the reply stays for `recover`."""
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                # What cannot be written, as on a full disk, raises `OutputError`.
                if self.context.emit is None or not self.context.emit(chunk):
                    raise LinkError("standard output was closed before the image was written")

    async def _fill(self, part: image_file.ImagePart, image: ProviderImage) -> image_info.ImageInfo:
        """The image's bytes, from its link or from the reply, checked and flushed."""
        if image.blob is not None or image.base64:
            return await self._decode_base64(part, image)

        async def check(size: int) -> image_info.ImageInfo:
            facts = await self.context.disk.do(part.check, size)
            await self.context.disk.decode(part, facts)
            return facts

        def progress(received: int, total: int | None) -> None:
            self.context.sink.emit(Downloading(self.job.index, image.index, received, total))

        fetched = await self.client.fetch(
            image.link,
            part.write,
            check=check,
            restart=part.reset,
            explain=image_info.explain_store_error,
            on_progress=progress,
            dies=self._dies(image),
            young_s=self.young_s,
        )
        await self.context.disk.flush(part)
        return fetched.checked

    def _note_age(self) -> None:
        """What links came now are new."""
        self.young_s = self.context.clock.monotonic() + _YOUNG_S

    def _dies(self, image: ProviderImage) -> int | None:
        """When a link dies: by its own date, else by what its provider says of all of its links."""
        own, lifetime = expiry(image.link), self.job.route.spec.link_lifetime_s
        made = self.job.answered_at or self.sent_at
        if own is not None or lifetime is None or made is None:
            return own
        return int(made.timestamp()) + lifetime

    async def _decode_base64(self, part: image_file.ImagePart, image: ProviderImage) -> image_info.ImageInfo:
        """An image out of the reply, which is all that there is of it: it stays until the image is saved."""
        try:
            if image.blob is not None:
                await asyncio.to_thread(base64_image.write_blob, image.blob, part)
            else:
                await asyncio.to_thread(base64_image.write_base64, image.base64, part)
            facts = await asyncio.to_thread(part.finish)
            await self.context.disk.decode(part, facts)
        except LinkError as error:
            kept = self.reply or (self.incoming.kept if self.incoming else None)
            error.hint = f"what came is kept{f' in {kept}' if kept else ''}; {self._rescue()} reads it again"
            raise
        return facts

    # What came of it.

    def _result(self, error: SeedreamError | None) -> JobResult:
        """What is to be said of this job."""
        images = tuple(self._without_key(self.saved[index]) for index in sorted(self.saved))
        request, job = self.job.request, self.job
        cost, possible = self._cost(error)
        return JobResult(
            index=job.index,
            id=job.id,
            status=self._status(error, images),
            provider=job.route.spec.name,
            model=request.model_id,
            request={} if job.recovers else self.submission.json or {},
            images=images,
            usage=self.client.hide(dict(self.ready.usage)) if self.ready and self.ready.usage else None,
            cost=Cost(0.0, "USD", "") if job.reused or self.is_left else cost,
            possible=possible,
            error=error,
            attempts=self.attempts,
            timing=self._timing(),
            asked_up_to=request.images_at_most if request.sequence else None,
            task_id=self.client.hide(self.task_id or self.absent_task),
            warnings=self._gaps(images),
            booked=self.recorder.records,
        )

    def _gaps(self, images: Iterable[SavedImage]) -> tuple[Problem, ...]:
        """Where an image is not what was asked for: its size, or its format. What the model may choose is no gap."""
        request, found = self.job.request, dict[str, str]()
        for image in () if self.job.recovers or self.job.reused or request.layers else images:
            if image.error or not image.format:
                continue
            if words := size_gap(self.job.model, request.size, image.width, image.height):
                found.setdefault(words, "size_differs")
            if request.format and image.format != request.format:
                found.setdefault(f"{request.format} was asked for, and {image.format} came", "format_differs")
        return tuple(
            Problem("size" if code == "size_differs" else "format", words, severity="warning", code=code)
            for words, code in found.items()
        )

    def _without_key(self, image: SavedImage) -> SavedImage:
        """An image as it is told of: a provider may put the key that it was given into anything it says."""
        error = image.error
        if error is not None:
            error.message, error.hint = self.client.mask(error.message), self.client.mask(error.hint)
            error.args = (error.message,)
            if isinstance(error, ApiError):
                error.code, error.request_id = self.client.mask(error.code), self.client.mask(error.request_id)
        url = self.client.hide(image.url)
        return image if url == image.url else replace(image, url=url)

    def _status(self, error: SeedreamError | None, images: tuple[SavedImage, ...]) -> Status:
        """The job's status word."""
        if error is None:
            if self.job.strict and self._gaps(images):
                return "partial"
            return "submitted" if self.task_id and self.job.request.callback_url else "succeeded"
        if self.context.is_resumable and not self.answered and self._is_held_back(error):
            return "interrupted"
        if any(image.error is None for image in images):
            return "partial"
        return "unknown" if error.kind == "unknown_outcome" else "failed"

    def _made(self) -> int | None:
        """How many images are billed: the provider's own count, else what came; None while that is unknown.

        A count below what came is none: successes alone are billed, and these are. No budget is stretched by it.
        """
        if self.ready is None:
            return None
        counted, came = (self.ready.usage or {}).get("generated_images"), self._came()
        doubts = any(image.error and image.error.billed == "unknown" for image in self.ready.images)
        if isinstance(counted, int) and 0 <= counted <= COUNT_MOST and (counted or not doubts):
            return max(counted, came)
        # Where nobody can say of an image whether it was billed, nobody can say how many were.
        return None if doubts else came

    def _came(self) -> int:
        """How many images came."""
        return sum(1 for image in self.ready.images if image.error is None) if self.ready else 0

    def _cost(self, error: SeedreamError | None) -> tuple[Cost | None, Cost | None]:
        """What the request cost at the most, and how much of that is possible only; None where it cost nothing."""
        cost, possible = self._own_cost(error)
        # Where the last attempt never left, or was refused unbilled, the doubt that is told is that of one before.
        before = self.doubts - (not self.is_out)
        each = self.job.price(self.job.request.images_at_most) if before > 0 else None
        if each is None:
            return cost, possible
        # Each attempt before that may have been billed is possible money beside what the last one cost.
        loose = replace(each, amount=each.amount * before + (possible.amount if possible else 0.0))
        certain = cost.amount - (possible.amount if possible else 0.0) if cost else 0.0
        return replace(each, amount=certain + loose.amount), loose

    def _own_cost(self, error: SeedreamError | None) -> tuple[Cost | None, Cost | None]:
        """The same of the last attempt alone."""
        job, made, came = self.job, self._made(), self._came()
        if error is None or error.billed != "unknown":
            return (None if made is None else job.price(made)), None
        most, sure = self._at_most(), came if made is None else made
        cost, certain = job.price(most), job.price(sure) if came else None
        if cost is None or (certain and most == sure):
            return cost, None
        return cost, replace(cost, amount=cost.amount - (certain.amount if certain else 0.0))

    def _at_most(self) -> int:
        """How many images may have been billed where not all of it is known."""
        made, ready, request = self._made(), self.ready, self.job.request
        if made is not None:
            # The provider has counted.
            return made
        if ready is None or ready.cut or request.stream:
            return self.job.most or request.images_at_most
        return sum(1 for image in ready.images if image.error is None or image.error.billed == "unknown")

    def _timing(self) -> Timing:
        total = time.monotonic() - self.started
        return Timing(total, self.provider_s, max(0.0, total - self.provider_s) if self.ready else 0.0)


_YOUNG_S = 60.0
"""A task's age in seconds until which a provider that does not know it may not know it yet."""


def _in_doubt(image: ProviderImage) -> bool:
    """Whether nobody knows what became of a member of an answer."""
    return image.error is not None and image.error.billed == "unknown"


def _is_final(error: SeedreamError) -> bool:
    """Whether nothing is left to fetch of an image: it was never made, or its link is dead for ever."""
    return error.billed == "no" or error.kind == "expired"


def _missing(images: Sequence[ProviderImage], ends: Sequence[Completed]) -> ApiError | None:
    """What is wrong with a stream that came to its end: no image at all, or fewer than the provider counts."""
    came = sum(1 for image in images if image.error is None)
    counted = (ends[-1].usage or {}).get("generated_images") if ends else None
    if not images:
        return _cut_short("the stream ended without an image")
    if isinstance(counted, int) and counted > came:
        return _cut_short(f"the provider counts {counted} images and {came} came")
    return None


def _cut_short(message: str = "the stream ended before it was complete") -> ApiError:
    """A stream that ended between two events, without its end and with fewer images than were asked for."""
    return ApiError(
        message,
        kind="unknown_outcome",
        billed="unknown",
        delivered="yes",
    )


def _broken_stream(cut: SeedreamError, got: int, most: int) -> ApiError:
    """What a broken stream means when some of its images came: they are the user's, the rest is in doubt."""
    said = cut if isinstance(cut, ApiError) else None
    unbilled = cut.billed == "no"
    return ApiError(
        f"{cut.message}; {got} of up to {most} images came and are kept"
        + ("" if unbilled else ", the rest may have been billed"),
        kind=cut.kind if unbilled else "unknown_outcome",
        billed="no" if unbilled else "unknown",
        delivered="yes",
        hint=cut.hint if unbilled else "it is not sent again; the provider's usage page tells what was billed",
        provider=said.provider if said else "",
        code=said.code if said else "",
        request_id=said.request_id if said else "",
    )


def _first_error(images: Iterable[SavedImage], broken: SeedreamError | None = None) -> SeedreamError | None:
    """The failure to speak of where several things failed: one that money hangs on before a refusal."""
    errors = [error for error in (broken, *(image.error for image in images)) if error]
    return min(errors, key=lambda error: error.billed == "no", default=None)
