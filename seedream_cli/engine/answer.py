"""The one billable request of a job: sent once, its reply kept.

The order is the promise. The worst cost is held and "sent" is in the ledger before the first byte leaves; the reply is
on disk before it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from ..errors import ApiError, InterruptedRunError, SeedreamError
from ..network.exchange import EventsEnd, Exchange
from ..network.outcome import Ambiguous, Answered, NotSent, Outcome, Refused
from ..providers.contract import Call, Ready, Reply, Ticket
from ..results import ProviderImage, Retrying
from .state import ReplyOnDisk, RunningJob
from .stored_reply import StoredReplyFile, StoredReplySlot, read_kept, read_reply
from .streamed_images import StreamedImages, broken_stream

T = TypeVar("T")


class Sender:
    """Sends the call of a job, and keeps its reply."""

    def __init__(self, running: RunningJob, call: Call) -> None:
        self._context = running.context
        self._client = running.client
        self._job = running.job
        self._running = running
        self._state = running.state
        self._recorder = running.recorder
        self._call = call

    async def send(self) -> Ready | Ticket:
        """Send, and say what the reply holds. Raises what it came to instead; what may be paid for is kept."""
        file = self._reserve_reply()
        try:
            answer = await self._send(file, lambda exchange: exchange.receive(self._read))
        except SeedreamError as error:
            self._settle_reply(file, error)
            raise
        except BaseException:
            self._leave_reply_behind(file)
            raise
        self._running.note_new_links()
        self._state.open_reply, self._state.reply = file, file.kept
        if not (isinstance(answer, Ready) and all(one.link or one.error for one in answer.images)):
            # A task, or an image inside the reply: links in the ledger are not enough.
            self._state.secure_reply()
        return answer

    async def stream(
        self, save: Callable[[ProviderImage], Coroutine[Any, Any, None]]
    ) -> tuple[Ready | Ticket, SeedreamError | None]:
        """Send, and `save` each image the moment its event arrives. Returns why the stream broke, if images came."""
        file = self._state.incoming = StoredReplyFile(self._context.replies, self._job)
        images = StreamedImages(self._running, file, save)
        try:
            end = await self._send(file, lambda exchange: exchange.receive_events(self._read, images.take))
        except SeedreamError as error:
            if not images.came:
                self._settle_reply(file, error)
                raise
            # Whatever ended it: the images before it may have been paid for.
            cut: SeedreamError | None = error
        except BaseException:
            images.stop()
            self._leave_reply_behind(file)
            raise
        else:
            if not isinstance(end, EventsEnd):
                # Images at once, or a task that the provider has made of it, which is asked after.
                self._state.reply = file.kept
                return end, None
            cut = images.lack(end)
        self._state.reply = reply = file.secure()
        if cut and not images.came:
            # As a whole it may bring images, or a task.
            with contextlib.suppress(ApiError):
                return await asyncio.to_thread(read_kept, self._job.route.dialect, reply), None
            raise cut
        self._state.ready = images.ready()
        await images.saved()
        most = self._job.request.images_at_most
        return self._state.ready, broken_stream(cut, len(images.came), most) if cut else None

    # --- the send, from top to bottom

    async def _send(self, file: ReplyOnDisk, receive: Callable[[Exchange], Awaitable[Outcome[T]]]) -> T:
        """Send until it is answered, and again only where that pays for nothing twice."""
        began_s = time.monotonic()
        attempts = self._client.attempts(self._call, self._job.request.images_at_most)
        try:
            while True:
                async with attempts.turn(self._running.slot):
                    outcome, is_final = await self._attempt(attempts.number, file, receive)
                    wait_s = attempts.wait_after(outcome)
                match outcome:
                    case Answered():
                        return outcome.value
                    case NotSent(error) | Refused(error) | Ambiguous(error):
                        if wait_s is None or is_final:
                            raise error
                        self._write_failed_attempt(error, file)
                self._context.sink.emit(
                    Retrying(self._job.index, "the request", wait_s, error.message, attempts.number)
                )
                self._running.slot.step_aside()
                await self._context.clock.sleep(wait_s)
        except SeedreamError as error:
            # A later refusal, a full disk or a spent budget does not undo an attempt that may have been billed.
            verdict = attempts.verdict(error)
            raise verdict from verdict.__cause__
        finally:
            self._state.provider_s = time.monotonic() - began_s

    async def _attempt(
        self, number: int, file: ReplyOnDisk, receive: Callable[[Exchange], Awaitable[Outcome[T]]]
    ) -> tuple[Outcome[T], bool]:
        """One attempt; what it came to, and whether no other may follow, since a stream of events had begun."""
        self._running.emit_stage("connecting")
        exchange = self._client.open(self._call, file)
        try:
            async with exchange:
                if exchange.is_open:
                    await self._write_sent(number, file)
                    self._running.emit_stage("sent")
                    await exchange.send()
                if exchange.has_answer:
                    self._running.emit_stage("receiving")
                return await receive(exchange), exchange.has_events
        except asyncio.CancelledError:
            if exchange.is_unfinished:
                self._write_unsent()
            raise

    async def _write_sent(self, number: int, file: ReplyOnDisk) -> None:
        """Nothing has left: the last moment to say no. When this returns, "sent" and the worst cost are on disk."""
        state = self._state
        self._raise_veto()
        # What an attempt before may have cost stays in the account: a repetition is held against the budget as well.
        state.token = await self._recorder.sent(self._job, number, self._raise_veto, again=state.ambiguous > 0)
        if file.size:
            # What came of the attempt before must not be taken for the answer to this one.
            file.reset()
        state.attempts = number
        state.sent_at = state.sent_at or self._context.clock.now()
        state.left_s = time.monotonic()
        state.is_out = True

    def _raise_veto(self) -> None:
        """Raise what keeps a new request from leaving."""
        if why := self._context.objection():
            self._state.is_vetoed = True
            raise why

    def _write_failed_attempt(self, error: ApiError, file: ReplyOnDisk) -> None:
        """An attempt was refused unbilled, or is repeated on the user's order; a signal may stop it meanwhile."""
        state = self._state
        was_out, state.is_out = state.is_out, False
        # One that was never connected is not in the ledger either.
        if was_out:
            state.ambiguous += error.billed != "no"
            self._recorder.refused(self._job, error, self._put_aside(file, error))

    def _write_unsent(self) -> None:
        """The run was stopped while the request was being written: it is none, and is queued again."""
        if self._state.ambiguous:
            return
        self._state.is_out = False
        error = InterruptedRunError("stopped before it was sent", signal_number=self._running.signal_number)
        self._running.try_to(lambda: self._recorder.refused(self._job, error, None))

    def _read(self, reply: Reply) -> Ready | Ticket:
        return read_reply(self._job.route.dialect, reply)

    # --- the reply on disk

    def _reserve_reply(self) -> ReplyOnDisk:
        """Room for the reply, before it is asked for. Where the ledger takes its links, it need not be flushed."""
        context, job, state = self._context, self._job, self._state
        links_suffice = self._recorder.records and job.request.response_format != "b64_json"
        if links_suffice and context.journal is not None and context.journal.has_place_for(job.id):
            state.incoming = StoredReplySlot(context.journal, context.replies, job, lambda: state.token)
        else:
            state.incoming = StoredReplyFile(context.replies, job, links_suffice=links_suffice)
        return state.incoming

    def _put_aside(self, file: ReplyOnDisk, error: SeedreamError) -> Any:
        """What came of an attempt that may have been paid for, before another one is made; of others nothing stays."""
        if not file.size:
            return None
        if error.billed == "no":
            self._running.try_to(file.reset)
            return None
        self._running.try_to(file.secure)
        return file.kept

    def _settle_reply(self, file: ReplyOnDisk, error: SeedreamError) -> None:
        """Keep the reply to a request that may have been paid for; `recover` can read it."""
        last = error.__cause__
        try:
            if isinstance(last, ApiError) and last.billed == "no":
                # What came is the refusal of the last attempt, and says nothing of the one that is ambiguous.
                file.drop()
            else:
                file.settle(error)
        except SeedreamError:
            # That must not take the place of what the request came to. The next run looks for what there is.
            self._state.is_left_behind = True
        self._state.reply = file.kept

    def _leave_reply_behind(self, file: ReplyOnDisk) -> None:
        """A stop, or a fault of our own, while an answer was coming: what came may be a whole one, and is paid for."""
        state = self._state
        if not (state.is_out and file.size):
            file.drop()
            return
        state.is_left_behind = True
        # Where the disk refuses it, the ledger still has it as sent.
        with contextlib.suppress(SeedreamError):
            if self._recorder.records:
                file.leave_behind()
            else:
                state.reply = file.secure()
