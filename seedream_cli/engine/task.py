"""A task at the provider: asked after until its images are made. Its id is on disk, so a lost poll loses nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from ..errors import ApiError, InputError, TaskEndedError
from ..network.urls import absolute
from ..providers.contract import Ready, Reply, Ticket
from ..results import ProviderImage, Stage
from ..storage import reply_file
from ..text import clean
from .hints import way_out
from .plan import Job
from .state import RunningJob
from .stored_reply import POLLED, StoredReplyFile, read_kept, read_reply

_YOUNG_S = 60.0
"""A task's age in seconds until which a provider that does not know it may not know it yet."""


def with_host(image: ProviderImage, job: Job) -> ProviderImage:
    """An image whose link, where it names no host, is one of the API's own."""
    link = absolute(image.link, job.route.base_url)
    return image if link == image.link else replace(image, link=link)


class TaskPoller:
    """Asks after the task of a job."""

    def __init__(self, running: RunningJob) -> None:
        self._running = running
        self._context = running.context
        self._job = running.job
        self._state = running.state
        self._dialect = running.job.route.dialect
        self._lost_polls = 0
        self._absent_s = 0.0

    async def finish(self, answer: Ready | Ticket) -> Ready | None:
        """Poll a task to its end; an answer with images needs none. None where a callback will bring them."""
        began_s = time.monotonic()
        while isinstance(answer, Ticket):
            if not self._state.task_id:
                self._state.task_id = answer.task_id
                self._running.recorder.waiting(self._job, answer.task_id)
            if self._job.request.callback_url:
                return None
            answer = await self._poll(answer)
        self._state.provider_s += time.monotonic() - began_s
        return replace(answer, images=tuple(with_host(image, self._job) for image in answer.images))

    async def _poll(self, ticket: Ticket) -> Ready | Ticket:
        """Wait, and ask after the task once."""
        if self._job.earlier.barred:
            raise self._task_barred(ticket)
        if time.monotonic() - self._state.started_s > self._job.route.limits.timeout_s:
            raise self._task_left(f"task {ticket.task_id} was not ready in time")
        try:
            call = self._dialect.poll(ticket)
        except InputError as error:
            raise self._task_left(f"a task was not asked after: {error}") from error

        def read(reply: Reply) -> Ready | Ticket:
            return read_reply(self._dialect, replace(reply, task_id=ticket.task_id))

        self._context.sink.emit(Stage(self._job.index, "polling", ticket.task_id))
        await self._context.clock.sleep(ticket.poll_after_s)
        # Beside the reply that holds the task's id: that one must stay until the images are here.
        file = StoredReplyFile(self._context.replies, self._job, beside=POLLED)
        try:
            answer = (await self._running.client.ask(call, read, file)).value
        except ApiError as error:
            if self._is_end_of_task(error):
                self._end_task(file, error)
                raise
            file.forget()
            return self._ask_again(ticket, error)
        self._lost_polls = 0
        if isinstance(answer, Ticket):
            file.forget()
            # Some records have a second id, under which nobody finds them.
            return replace(answer, task_id=ticket.task_id)
        self._running.note_new_links()
        self._state.reply = file.take_place(self._job.id)
        return await asyncio.to_thread(read_kept, self._dialect, self._state.reply)

    def _is_end_of_task(self, error: ApiError) -> bool:
        """A structured error that comes whole, with HTTP 200, is the task's own; any other is of the asking. At a
        gateway only the task's record speaks for it.
        """
        is_own = error.delivered == "yes" and error.status == 200 and bool(error.code)
        return (is_own and not self._dialect.spec.task_path) or isinstance(error, TaskEndedError)

    def _end_task(self, file: StoredReplyFile, error: ApiError) -> None:
        """The task is over, and its record is all that is left of it, unless it says that it cost nothing."""
        self._state.task_id = ""
        if error.billed == "no":
            file.forget()
            reply_file.forget(self._context.replies, self._job.id, asides=False)
        else:
            self._state.reply = file.take_place(self._job.id)

    def _ask_again(self, ticket: Ticket, error: ApiError) -> Ticket:
        """The ticket to ask with again; raises where the task cannot be asked after."""
        if error.status == 404 and self._is_young():
            wait_s = self._absent_s + 1.0
            self._absent_s += wait_s
            return replace(ticket, poll_after_s=wait_s)
        if error.status == 404:
            self._state.task_id, self._state.absent_task = "", ticket.task_id
            message = f"{self._job.route.spec.title} knows no task {ticket.task_id}: {error.message}"
            raise ApiError(message, kind="unknown_outcome", billed="unknown", delivered="yes") from error
        self._lost_polls += 1
        is_final = error.status is not None and 400 <= error.status < 500 and error.status not in {408, 429}
        if is_final or self._lost_polls > self._job.route.limits.retries:
            raise self._task_left(f"task {ticket.task_id} could not be asked after: {error.message}") from error
        return replace(ticket, poll_after_s=max(ticket.poll_after_s, 1.0) * 2)

    def _is_young(self) -> bool:
        """Whether a task was made so lately that its provider may not find it yet."""
        began = self._state.sent_at or self._job.earlier.sent_at
        age_s = (self._context.clock.now() - began).total_seconds() if began else _YOUNG_S
        return max(age_s, self._absent_s) < _YOUNG_S

    def _task_left(self, message: str) -> ApiError:
        """A task that is left to itself: it is paid for, or will be, and can be fetched later."""
        return ApiError(
            f"{message}; it goes on at the provider",
            kind="unknown_outcome",
            billed="unknown",
            delivered="yes",
            hint=way_out(self._running),
        )

    def _task_barred(self, ticket: Ticket) -> ApiError:
        """A task at an address that only a ledger or a kept reply names, and such files may be a stranger's."""
        place, spec = clean(self._job.earlier.barred, 200), self._job.route.spec
        return self._task_left(
            f"task {ticket.task_id} was not asked after: its record names {place} as {spec.name}'s address, and a key "
            "goes only where this run, its settings or a stored key say"
        )
