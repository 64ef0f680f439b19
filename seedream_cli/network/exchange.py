"""One attempt at a call, in steps that its caller takes: opened, sent, received.

    async with client.open(call, reply_file) as exchange:
        if exchange.is_open:          # connected, and nothing has left
            …                         # write down that it is sent
            await exchange.send()     # until the answer begins, or it is known that none comes
        outcome = await exchange.receive(read)

The request leaves in a task of its own, which the trace hook of httpcore holds before the first byte: that is how a
caller can act in between without being called back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import ApiError, FileError
from ..providers.contract import Call, Reply
from ..storage.event_stream import Done, EventParser
from ..storage.reply_encoding import Unpacker
from ..text import span_words
from .failures import BROKEN, is_deadline, root_cause, unconnected
from .http import Departure, HttpRequest, LostConnectionError, NoConnectionError
from .outcome import Answered, Outcome, failed
from .policy import Clock, Policy
from .proxies import Proxy
from .rate_limit import LONGEST_WAIT_S
from .response import BrokenReplyError, Received, Reception, ReplyFile, parse
from .retry import read_retry_after
from .urls import Link

if TYPE_CHECKING:
    from .transports import Client, Response

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Service:
    """What an exchange has of its provider: the address, the proxy before it, limits of time, and how to speak of it.

    `mask` takes the key out of a text; `log` takes a line of the HTTP log.
    """

    http: Client
    target: Link
    proxy: Proxy | None
    policy: Policy
    clock: Clock
    mask: Callable[[str], str]
    log: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EventsEnd:
    """How a stream of events stopped: "done" (`[DONE]` came), "eof" (the body ended between two events), or "cut"
    (inside one, or the connection broke), `cut` then being the error to report if images are missing.
    """

    ended: Literal["done", "eof", "cut"]
    cut: ApiError | None = None


class _HeldDeparture(Departure):
    """A request that waits before its first byte until it is let go."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[None] = loop.create_future()
        self._released: asyncio.Future[None] = loop.create_future()

    async def before_first_byte(self) -> None:
        if not self.connected.done():
            self.connected.set_result(None)
        await self._released

    def release(self) -> None:
        """Let it leave."""
        self._released.set_result(None)


class Exchange:
    """One attempt at a call. Every way to fail is an outcome, except for what the request's body raises (`InputError`
    for a reference that changed) and what the reply's file raises: `FileError`, billed "unknown" where a billable call
    had been answered.
    """

    def __init__(self, service: Service, call: Call, request: HttpRequest, file: ReplyFile, limit: int) -> None:
        self._service = service
        self._call = call
        self._request = request
        self._file = file
        self._limit = limit
        self._departure = _HeldDeparture(request.method)
        self._sending: asyncio.Task[Response] | None = None
        self._response: Response | None = None
        self._received: Received | None = None
        self._broken: Exception | None = None
        self._sent_at = service.clock.monotonic()
        self._ends_at = 0.0
        self.has_events = False

    async def __aenter__(self) -> Exchange:
        """Connect, within `connect_timeout_s`."""
        self._sending = asyncio.create_task(self._service.http.send(self._request, self._departure))
        # One that fails while it is being stopped is looked at by nobody else, which asyncio would report.
        self._sending.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with asyncio.timeout(self._service.policy.connect_timeout_s):
                waited: set[asyncio.Future[Any]] = {self._sending, self._departure.connected}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._sending.done():
                await self._begin_answer()
        except TimeoutError as exc:
            self._broken = exc
            await self._stop_sending()
        except BaseException:
            await self._stop_sending()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._stop_sending()
        if self._response is not None:
            await self._response.aclose()

    @property
    def is_open(self) -> bool:
        """Whether it is connected, and nothing has left."""
        return self._broken is None and self._response is None

    @property
    def has_answer(self) -> bool:
        """Whether the head of an answer came."""
        return self._response is not None

    @property
    def is_unfinished(self) -> bool:
        """Whether the request was stopped before its end was written, and not answered: nobody can charge for it."""
        return self._departure.is_cut and self._response is None

    async def send(self) -> None:
        """Let the request leave, and wait until its answer begins. From here on, all of it may take `timeout_s`."""
        self._sent_at = self._service.clock.monotonic()
        self._ends_at = asyncio.get_running_loop().time() + self._service.policy.timeout_s
        self._departure.release()
        try:
            async with asyncio.timeout_at(self._ends_at):
                await self._begin_answer()
        except TimeoutError as exc:
            self._broken = exc

    async def receive(self, read: Callable[[Reply], T]) -> Outcome[T]:
        """What `read` makes of the whole reply."""
        if (redirect := self._redirect()) is not None:
            return failed(self._complete(redirect))
        with self._disk_failures():
            broken = self._broken or await self._keep_body()
            return await self._read_whole(read, broken)

    async def receive_events(
        self, read: Callable[[Reply], T], on_event: Callable[[dict[str, Any]], None]
    ) -> Outcome[T | EventsEnd]:
        """Hand over each event the moment it is whole; every byte is in the reply's file first.

        An answer that is one JSON document (an error, or a provider that does not stream) is as with `receive`. An
        `ApiError` that `on_event` raises is the provider's own word, and ends the stream.
        """
        if (redirect := self._redirect()) is not None:
            return failed(self._complete(redirect))
        events = _Events(on_event, is_document=self._is_failure_status())
        with self._disk_failures():
            try:
                broken = self._broken or await self._keep_body(events.take)
                error = self._failure(broken) if broken is not None else None
                if error is not None and not (events.have_begun and error.delivered == "maybe"):
                    return await self._read_whole(read, broken)
                events.close()
            except ApiError as failure:
                return failed(self._complete(failure))
            finally:
                self.has_events = events.have_begun
            if events.is_document:
                return await self._read_whole(read, None)
        if events.skipped:
            self._service.log(f"* {events.skipped} events were no JSON objects and were passed over")
        return self._answered(self._events_end(events, error), self._head())

    def _events_end(self, events: _Events, error: ApiError | None) -> EventsEnd:
        """How the stream stopped."""
        cut = self._complete(error) if error is not None else None
        if cut is None and events.is_unfinished and not events.is_done:
            cut = self._complete(self._failure(BrokenReplyError("the stream ended inside an event")))
        return EventsEnd("done" if events.is_done else "cut" if cut else "eof", cut)

    # --- the steps inside

    async def _begin_answer(self) -> None:
        assert self._sending is not None  # noqa: S101 - it is entered
        try:
            self._response = await self._sending
        except BROKEN as exc:
            self._broken = exc
            return
        self._received = Received(self._response.status, self._response.headers)

    async def _stop_sending(self) -> None:
        if self._sending is not None and not self._sending.done():
            self._sending.cancel()
            await asyncio.wait({self._sending})

    def _redirect(self) -> ApiError | None:
        """A redirect of a call is never followed: it would carry prompt, images and money to another host."""
        if self._response is None or not 300 <= self._response.status < 400:
            return None
        status, host, mask = self._response.status, self._service.target.host, self._service.mask
        location = mask(self._response.headers.get("location", "nowhere"))
        message = f"{host} answered {status} and points to {location}, which is not followed"
        hint = "check --base-url: it must be the API's own address"
        return ApiError(mask(message), kind="refused", hint=hint, status=status)

    async def _keep_body(self, listen: Callable[[bytes], bool] | None = None) -> Exception | None:
        """Bring the body into the file, and let each piece be read after it; what broke it off, if anything did."""
        assert self._response is not None  # noqa: S101 - its head came
        assert self._received is not None  # noqa: S101
        reception = Reception(self._received, self._file, self._limit)
        try:
            async with asyncio.timeout_at(self._ends_at), contextlib.aclosing(self._response.chunks()) as chunks:
                async for chunk in chunks:
                    reception.take(chunk)
                    if listen is not None and listen(chunk):
                        break
        except BROKEN as exc:
            return exc
        return None

    async def _read_whole(self, read: Callable[[Reply], T], broken: Exception | None) -> Outcome[T]:
        """What `read` makes of the body. Where its end was lost, a whole JSON document may be there all the same."""
        error = self._failure(broken) if broken is not None else None
        try:
            if error is not None and not self._may_be_whole(error, broken):
                raise error
            reply = await self._reply()
            if error is not None and reply.body is None:
                raise error
            return self._answered(read(reply), reply)
        except ApiError as failure:
            if error is None and self._departure.is_cut and self._is_failure_status() and failure.billed != "no":
                # A request that was not written to its end was refused, whatever the words of the answer are.
                failure.kind, failure.billed, failure.retryable = "unavailable", "no", True
                failure.hint = "it was refused before it was written to its end, so it was not charged"
            # Neither what a cut answer says nor what the disk says may take the place of the doubt.
            return failed(self._complete(error or failure))
        except FileError:
            if error is None:
                raise
            return failed(self._complete(error))

    def _may_be_whole(self, error: ApiError, broken: Exception | None) -> bool:
        """Whether what came may be the whole answer to this request: a JSON document shows where it ends."""
        if isinstance(broken, LostConnectionError) and broken.is_ambiguous:
            return False
        return error.delivered == "maybe" and self._received is not None and bool(self._file.size)

    def _is_failure_status(self) -> bool:
        return self._received is not None and not 200 <= self._received.status < 300

    def _head(self) -> Reply:
        assert self._received is not None  # noqa: S101 - there is a body
        return Reply(self._received.status, self._received.headers)

    async def _reply(self) -> Reply:
        assert self._received is not None  # noqa: S101 - there is a body
        reply = await parse(self._received, self._file)
        seconds = self._service.clock.monotonic() - self._sent_at
        request_id = self._received.request_id
        self._service.log(f"< {reply.status} after {seconds:.2f} s, {self._file.size} bytes, request id {request_id}")
        return reply

    def _answered(self, value: T, reply: Reply) -> Answered[T]:
        return Answered(value, reply, self._service.clock.monotonic() - self._sent_at)

    @contextlib.contextmanager
    def _disk_failures(self) -> Iterator[None]:
        """The disk refuses the answer, not the request: that was at work, and may be paid."""
        try:
            yield
        except FileError as error:
            if self._received is not None and self._call.billable and error.billed == "no":
                error.billed = "unknown"
            raise

    # --- what a failure means

    def _failure(self, exc: Exception) -> ApiError:
        """What a broken exchange means for the money, by what is proven to have left."""
        error = self._error_of(exc)
        error.__cause__ = exc
        return error

    def _error_of(self, exc: Exception) -> ApiError:
        host, departure = self._service.target.host, self._departure
        reason = self._reason(exc)
        if not departure.begun or isinstance(exc, NoConnectionError):
            usable = exc.usable if isinstance(exc, NoConnectionError) else True
            why, hint = unconnected(exc, self._service.target, reason, self._service.proxy)
            return ApiError(f"{why}; nothing was sent", kind="network", hint=hint, delivered="no", retryable=usable)
        if departure.is_cut:
            message = f"the connection to {host} was lost before the request was written to its end: {reason}"
            return ApiError(f"{message}; not charged", kind="network", delivered="no", retryable=True)
        if not self._call.billable:
            message = f"the connection to {host} was lost: {reason}"
            return ApiError(message, kind="network", delivered="maybe", retryable=True)
        return ApiError(
            f"the request was sent to {host} and no whole answer came: {reason}; it may have been charged",
            kind="unknown_outcome",
            hint="look at the provider's usage page before sending it again; --retry-ambiguous repeats such requests",
            billed="unknown",
            delivered="maybe",
        )

    def _reason(self, exc: Exception) -> str:
        """An exception in words that hold no header."""
        if is_deadline(exc):
            policy, begun = self._service.policy, self._departure.begun
            seconds = policy.timeout_s if begun else policy.connect_timeout_s
            return f"no {'whole answer' if begun else 'connection'} after {seconds:g} s"
        return self._service.mask(root_cause(exc))

    def _complete(self, error: ApiError) -> ApiError:
        """Add what the head of the reply says to an error, and take every secret out of it."""
        mask = self._service.mask
        if self._received is not None:
            error.request_id = error.request_id or self._received.request_id
            if error.retry_after_s is None:
                now = self._service.clock.now()
                error.retry_after_s = read_retry_after(self._received.headers, now, most=LONGEST_WAIT_S)
                error.message = _with_wait(error)
            if error.status is None:
                error.status = self._received.status
        error.message, error.hint = mask(error.message), mask(error.hint)
        error.code, error.request_id = mask(error.code), mask(error.request_id)
        error.args = (error.message,)
        return error


class _Events:
    """The events in a body as it comes; `is_document` where it is one JSON document, which has none."""

    def __init__(self, on_event: Callable[[dict[str, Any]], None], *, is_document: bool) -> None:
        self._on_event = on_event
        self._parser = EventParser()
        self._unpacker = Unpacker()
        self.is_done = False
        self.is_unfinished = False
        if is_document:
            self._parser.mode = "whole"

    @property
    def is_document(self) -> bool:
        return self._parser.mode == "whole"

    @property
    def have_begun(self) -> bool:
        return self._parser.mode in {"sse", "lines"}

    @property
    def skipped(self) -> int:
        """How many were no JSON objects."""
        return self._parser.skipped

    def take(self, piece: bytes) -> bool:
        """Read a piece; True where nothing more is wanted."""
        for plain in self._unpacker.take(piece):
            self._deliver(self._parser.feed(bytes(plain)))
        return self.is_done

    def close(self) -> None:
        """The body is at its end."""
        for plain in self._unpacker.close():
            self._deliver(self._parser.feed(bytes(plain)))
        last, self.is_unfinished = self._parser.close()
        self._deliver(last)

    def _deliver(self, events: list[dict[str, Any] | Done]) -> None:
        for event in events:
            if isinstance(event, Done):
                self.is_done = True
            elif not self.is_done:
                self._on_event(event)


def _with_wait(error: ApiError) -> str:
    """The message with the time that the provider asks to wait. What may have been paid is nothing to try again."""
    if error.retry_after_s is None:
        return error.message
    span = span_words(error.retry_after_s)
    wait = f"try again in {span}" if error.billed == "no" else f"the provider asks to wait {span}"
    return f"{error.message}; {wait}"
