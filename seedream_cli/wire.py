"""The one room that talks to the network, and the one importer of httpx.

Contract. `Wire.ask` and `Wire.stream` send one `Call`; `Wire.fetch` gets one picture's link. A billable request leaves
at most once, unless it is proven that it never left, the provider said that it took nothing, or the user ordered the
repetition. What left is proven by httpcore's trace events, never guessed from an exception's name. Everything that is
neither proven unsent nor answered whole is `unknown_outcome`. Retries, pace and redaction happen here and nowhere else.
The API key goes to the provider's host only; links are fetched by a client that has never seen it.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.cookiejar
import importlib.util
import json
import logging
import os
import random as randomness
import re
import ssl
import sys
import urllib.parse
import urllib.request
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import httpx

from . import __version__
from .body import encode_body
from .errors import ApiError, ConfigError, FileError, LinkError, SeedreamError
from .framing import Done, EventParser
from .links import Target, is_loopback, is_private, next_hop, split_link
from .masking import check_key, mask, secret_forms
from .pace import MAX_BACKOFF_S, Clock, Pace, Policy, back_off, decide, read_retry_after
from .providers.base import Call, Reply

T = TypeVar("T")
R = TypeVar("R")

MAX_REDIRECTS = 3
REPLY_LIMIT = 1 << 30
MEMORY_LIMIT = 8 << 20
PICTURE_LIMIT = 64 << 20
_TEXT_BYTES = 2000
_INFLATE_STEP = 1 << 20
_LANE = 4  # connections of one client
_REQUEST_ID_HEADERS = ("x-request-id", "x-tt-logid", "x-client-request-id", "x-trace-id", "cf-ray")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


# --- what others give and get -----------------------------------------------------------------------------------------


class Watch(Protocol):
    """Who wants to know how an exchange goes on. Must neither raise nor block."""

    def stage(self, name: Literal["connecting", "sent", "receiving"]) -> None:
        """An attempt entered a stage."""

    def retrying(self, wait_s: float, error: SeedreamError, attempt: int) -> None:
        """Attempt number `attempt` failed and will be repeated in `wait_s` seconds."""


class ReplyFile(Protocol):
    """Where a reply is kept while it arrives, before anybody judges it."""

    @property
    def size(self) -> int:
        """Bytes written since the last reset."""

    def write(self, chunk: bytes) -> None:
        """Append; raises `FileError` where the disk refuses."""

    def reset(self) -> None:
        """Forget what was written: another attempt begins."""

    def load(self) -> Any:
        """The parsed JSON, base64 pictures left in the file; raises ValueError where it is none."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What `read` made of the reply. `provider_s` is the last attempt's time from first byte out to last byte in.

    `doubtful` counts earlier attempts that may have been billed too (only ever with `retry_ambiguous`).
    """

    value: T
    attempts: int
    provider_s: float
    reply: Reply
    doubtful: int = 0


@dataclass(frozen=True, slots=True)
class Streamed(Generic[T]):
    """The end of a stream. `whole` holds what `read` made of a reply that was one JSON document, `ended` then "whole".

    Otherwise `ended` says how the events stopped: "done" (`[DONE]` came), "eof" (the body ended between two events) or
    "cut" (inside one, or the connection broke), `cut` then being the error to report if pictures are missing.
    """

    whole: T | None
    ended: Literal["whole", "done", "eof", "cut"]
    attempts: int
    provider_s: float
    reply: Reply
    cut: ApiError | None = None
    doubtful: int = 0


@dataclass(frozen=True, slots=True)
class Fetched(Generic[T]):
    """A link that was fetched whole: what the caller's `check` made of it, and the type that the server claimed."""

    checked: T
    size: int
    content_type: str
    host: str
    attempts: int


def _silence_libraries() -> None:
    """Httpx logs whole signed links at INFO and httpcore logs headers at DEBUG: neither may speak."""
    for name in ("httpx", "httpcore", "httpcore.connection", "httpcore.proxy", "httpcore.http11"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))


def _remember_absence() -> None:
    """Httpcore asks for `sniffio` some ten times a request. Where it is not installed, each time searches the disk.

    An entry of None makes that import fail at once; it was a fifth of the time of a download.
    """
    if "sniffio" not in sys.modules and importlib.util.find_spec("sniffio") is None:
        sys.modules["sniffio"] = None  # type: ignore[assignment]


# --- the reply --------------------------------------------------------------------------------------------------------


class _BrokenReplyError(Exception):
    """A reply that arrived and cannot be used: too large, encoded in a way not asked for, its encoding cut."""


class _Memory:
    """A `ReplyFile` for small replies."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    @property
    def size(self) -> int:
        return len(self._bytes)

    def write(self, chunk: bytes) -> None:
        self._bytes += chunk

    def reset(self) -> None:
        self._bytes.clear()

    def load(self) -> Any:
        return json.loads(self._bytes)


async def _raw(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body's bytes as they came. A transport without a socket may hand in a reply that is read already."""
    if response.is_stream_consumed:
        yield response.content
        return
    async for chunk in response.aiter_raw():
        yield chunk


async def _pieces(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. A server that compresses although asked not to is decoded in bounded steps."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in {"", "identity"}:
        async for chunk in _raw(response):
            yield chunk
        return
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise _BrokenReplyError(f"the reply is encoded as {encoding[:40]!r}, which was not asked for")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    async for chunk in _raw(response):
        rest = chunk
        while rest and not inflater.eof:
            yield inflater.decompress(rest, _INFLATE_STEP)
            rest = inflater.unconsumed_tail
    while not inflater.eof and (piece := inflater.decompress(b"", _INFLATE_STEP)):
        yield piece
    if not inflater.eof:
        raise _BrokenReplyError("the compressed reply was cut short")


@dataclass(slots=True)
class _Received:
    """A reply's outside, and the start of its body for messages."""

    status: int
    headers: Mapping[str, str]
    start: bytearray = field(default_factory=bytearray)


async def _parse(received: _Received, file: ReplyFile) -> Reply:
    """The reply with its body parsed from where it was kept; large ones in a thread, since parsing takes seconds."""
    try:
        body = await asyncio.to_thread(file.load) if file.size > 1 << 20 else file.load()
    except (ValueError, RecursionError):
        return Reply(received.status, received.headers, None, received.start.decode("utf-8", "replace"))
    return Reply(received.status, received.headers, body)


# --- the wire ---------------------------------------------------------------------------------------------------------

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
_BROKEN = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, zlib.error, _BrokenReplyError)


class _Trail:
    """What one attempt has done so far, told by the trace events of the connection."""

    def __init__(
        self,
        call: Call,
        attempt: int,
        policy: Policy,
        *,
        gate: Callable[[int], None] | None,
        clock: Clock,
        watch: Watch | None,
    ) -> None:
        self._method = call.method.encode()
        self._attempt = attempt
        self._policy = policy
        self._gate = gate
        self._clock = clock
        self._watch = watch
        self.timer: asyncio.Timeout | None = None
        self.sent = False
        self.headers_sent = False
        self.final = False
        self.sent_at = clock.monotonic()
        self.received: _Received | None = None

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """The hook. A CONNECT to a proxy raises the same events, so the method is looked at."""
        request = info.get("request")
        if request is None or request.method != self._method or not name.endswith(".started"):
            return
        event = name.rpartition(".")[0].rpartition(".")[2]
        if event == "send_request_headers":
            self.leave()
        elif event == "send_request_body":
            self.headers_sent = True
        elif event == "receive_response_headers":
            self.stage("sent")

    def leave(self) -> None:
        """The last moment before the first byte leaves; what the gate raises here keeps it from leaving."""
        if self._gate:
            self._gate(self._attempt)
        self.sent = True
        self.sent_at = self._clock.monotonic()
        if self.timer:
            self.timer.reschedule(asyncio.get_running_loop().time() + self._policy.timeout_s)

    def stage(self, name: Literal["connecting", "sent", "receiving"]) -> None:
        """Tell whoever watches."""
        if self._watch:
            self._watch.stage(name)


@dataclass(slots=True)
class _Lane:
    """A client and how many exchanges it has under way."""

    client: httpx.AsyncClient
    busy: int = 0


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[R]):
    """A finished exchange and what it took."""

    value: R
    attempts: int
    provider_s: float
    doubtful: int


class Wire:
    """The connection to one provider with one key. An async context manager; clients are made when first needed.

    `proxy` overrules the proxies of the environment, which are honoured otherwise, except that a plain http address of
    this machine never goes through a proxy elsewhere. A `transport` (the sandbox) serves both clients.
    `log` takes lines for the wire log, already masked.
    """

    def __init__(
        self,
        *,
        base_url: str,
        key: str,
        policy: Policy,
        proxy: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
        random: randomness.Random | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._key = check_key(key) if key else ""
        self._forms = secret_forms(self._key)
        self._base = _check_base(base_url, offline=transport is not None)
        self._policy = policy
        # A little less than the deadline around it: the library closes its socket when its own clock ends the attempt.
        self._connect_s = 0.9 * policy.connect_timeout_s
        self._proxy = proxy
        self._transport = transport
        self._clock = clock or Clock()
        self._random = random or randomness.Random()
        self._pace = Pace(policy, self._clock, self._random)
        self._log = log
        self._lanes: dict[tuple[str, bool], list[_Lane]] = {}
        self._tls: ssl.SSLContext | None = None
        _silence_libraries()
        _remember_absence()
        if self._base.scheme == "http" and transport is None and proxy and not is_loopback(_proxy_host(proxy)):
            raise ConfigError(
                f"the API key would travel in clear to the proxy {_proxy_host(proxy)}: use an https API address"
            )

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        lanes, self._lanes = [lane for room in self._lanes.values() for lane in room], {}
        for lane in lanes:
            await lane.client.aclose()

    @property
    def proxy_in_use(self) -> str:
        """Host and port of the proxy that calls go through, without its password; "" for none. For a notice."""
        if self._transport is not None:
            return ""
        if self._proxy:
            return _proxy_host(self._proxy, port=True)
        found = _environment_proxy(self._base.scheme)
        if not found or not self._trusts_environment(secure=self._base.scheme == "https"):
            return ""
        return "" if urllib.request.proxy_bypass(self._base.host) else _proxy_host(found, port=True)

    def mask(self, text: str) -> str:
        """The text without the key, bearer tokens and the queries of links."""
        return mask(text, self._forms)

    # -- calls

    async def ask(
        self,
        call: Call,
        read: Callable[[Reply], T],
        *,
        spool: ReplyFile | None = None,
        gate: Callable[[int], None] | None = None,
        watch: Watch | None = None,
        pictures: int = 1,
    ) -> Answer[T]:
        """Send a call and let `read` judge the whole reply.

        `gate(attempt)` runs just before the first byte of each attempt leaves; what it raises comes through, and
        nothing is sent. Without a `spool` the reply may have 8 MiB. `pictures` counts against the pace.
        """
        file: ReplyFile = spool if spool is not None else _Memory()
        limit = MEMORY_LIMIT if spool is None else REPLY_LIMIT

        async def once(trail: _Trail) -> tuple[T, Reply]:
            async def receive(response: httpx.Response) -> None:
                async for _ in self._keep(response, trail, file, limit):
                    pass

            await self._exchange(call, trail, receive)
            reply = await self._reply(trail, file)
            return read(reply), reply

        outcome = await self._repeat(call, once, gate=gate, watch=watch, pictures=pictures)
        value, reply = outcome.value
        return Answer(value, outcome.attempts, outcome.provider_s, reply, outcome.doubtful)

    async def stream(
        self,
        call: Call,
        read: Callable[[Reply], T],
        on_event: Callable[[dict[str, Any]], None],
        *,
        spool: ReplyFile,
        gate: Callable[[int], None] | None = None,
        watch: Watch | None = None,
        pictures: int = 1,
    ) -> Streamed[T]:
        """Send a call and hand over each event the moment it is whole; every byte goes to the spool first.

        A reply that is one JSON document (an error, or a provider that does not stream) goes through `read` and the
        rules of `ask`. Nothing is repeated once a stream of events has begun. What `on_event` raises ends the stream
        and comes through. A stream that breaks is returned as `ended="cut"`: the pictures that came are the user's.
        """

        async def once(trail: _Trail) -> Streamed[T]:
            parser = EventParser()
            done: list[Done] = []

            def deliver(event: dict[str, Any] | Done) -> None:
                if isinstance(event, Done):
                    done.append(event)
                elif not done:
                    on_event(event)

            async def receive(response: httpx.Response) -> None:
                if response.status_code != 200:
                    parser.mode = "whole"
                async with contextlib.aclosing(self._keep(response, trail, spool, REPLY_LIMIT)) as pieces:
                    async for piece in pieces:
                        events = parser.feed(piece)
                        trail.final = parser.mode in {"sse", "lines"}
                        for event in events:
                            deliver(event)
                        if done:
                            return

            cut = await self._cut_of(self._exchange(call, trail, receive), trail, parser)
            last, unfinished = parser.close() if cut is None else ([], True)
            for event in last:
                deliver(event)
            if parser.skipped:
                self._say(f"* {parser.skipped} events were no JSON objects and were passed over")
            if parser.mode == "whole":
                reply = await self._reply(trail, spool)
                return Streamed(read(reply), "whole", 1, 0.0, reply)
            if unfinished and not done and cut is None:
                cut = self._failure(call, trail, _BrokenReplyError("the stream ended inside an event"))
            ended: Literal["done", "eof", "cut"] = "done" if done else "cut" if cut else "eof"
            received = trail.received or _Received(0, {})
            return Streamed(None, ended, 1, 0.0, Reply(received.status, received.headers), cut)

        outcome = await self._repeat(call, once, gate=gate, watch=watch, pictures=pictures)
        attempts, seconds = outcome.attempts, outcome.provider_s
        return replace(outcome.value, attempts=attempts, provider_s=seconds, doubtful=outcome.doubtful)

    async def _cut_of(self, exchange: Awaitable[None], trail: _Trail, parser: EventParser) -> ApiError | None:
        """The error that broke a stream of events, if one did; a broken document is raised as for `ask`."""
        try:
            await exchange
        except ApiError as error:
            # What `on_event` raised is the provider's word and not a cut; only the wire says "maybe delivered".
            if parser.mode in {"sse", "lines"} and error.delivered == "maybe":
                return self._settle(error, trail)
            raise
        return None

    async def _repeat(
        self,
        call: Call,
        once: Callable[[_Trail], Awaitable[R]],
        *,
        gate: Callable[[int], None] | None,
        watch: Watch | None,
        pictures: int,
    ) -> _Outcome[R]:
        """The one place where a call is sent again. Waits hold no slot."""
        began: float | None = None
        attempt, doubts = 0, list[ApiError]()
        while True:
            attempt += 1
            async with self._pace.turn(call, pictures):
                began = self._clock.monotonic() if began is None else began
                trail = _Trail(call, attempt, self._policy, gate=gate, clock=self._clock, watch=watch)
                try:
                    value = await once(trail)
                    return _Outcome(value, attempt, self._clock.monotonic() - trail.sent_at, len(doubts))
                except ApiError as error:
                    failure = self._settle(error, trail)
                except SeedreamError as error:
                    if isinstance(error, FileError) and trail.received and call.billable and error.billed == "no":
                        # The disk refused the answer, not the request: that was at work, and may be paid.
                        error.billed = "unknown"
                    # The gate or a changed file stops a repetition; the doubt about the first attempt remains.
                    if doubts:
                        raise doubts[0] from error
                    raise
            self._say(f"* attempt {attempt}: {failure.kind}: {failure.message}")
            if failure.billed == "unknown":
                doubts.append(failure)
            wait = decide(failure, attempt, self._clock.monotonic() - began, self._policy, self._random)
            if failure.kind == "rate_limited" and failure.retryable:
                self._pace.hold(wait if wait is not None else back_off(failure, attempt, self._random))
            if wait is None or trail.final:
                # A doubt is not lifted by a later refusal: what may have been paid once stays in the account.
                raise doubts[0] if doubts and failure is not doubts[0] else failure
            if watch:
                watch.retrying(wait, failure, attempt)
            await self._clock.sleep(wait)

    async def _exchange(self, call: Call, trail: _Trail, receive: Callable[[httpx.Response], Awaitable[None]]) -> None:
        """One request and its reply, within the deadlines; every way to fail becomes an ApiError of known delivery."""
        length, pieces = (0, None) if call.json is None else encode_body(call.json)
        trail.stage("connecting")
        self._say(f"> {call.method} {self._base.url}{call.path} ({length} bytes)")
        try:
            async with asyncio.timeout(self._policy.connect_timeout_s) as trail.timer:
                await self._send(call, trail, receive, length, pieces)
        except _BROKEN as exc:
            # The library's text for a bad header prints the header, key included: it must not hang on as a cause.
            cause = None if isinstance(exc, httpx.LocalProtocolError) else exc
            raise self._failure(call, trail, exc) from cause

    async def _send(
        self,
        call: Call,
        trail: _Trail,
        receive: Callable[[httpx.Response], Awaitable[None]],
        length: int,
        pieces: Callable[[], Iterator[bytes]] | None,
    ) -> None:
        headers = {"Accept": call.accept}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        body: Iterator[bytes] = iter(())
        if pieces is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(length)}
            body = pieces()
        content = None if pieces is None else _outgoing(body)
        async with self._client("api", secure=self._base.scheme == "https") as client:
            request = client.build_request(call.method, self._base.url + call.path, headers=headers, content=content)
            request.extensions["trace"] = trail.trace
            if self._transport is not None:
                # The sandbox has no connection whose events could be traced: sending begins here.
                trail.leave()
                trail.stage("sent")
            response = await client.send(request, stream=True)
            async with contextlib.aclosing(response):
                trail.received = _Received(response.status_code, dict(response.headers))
                trail.stage("receiving")
                self._refuse_redirect(response)
                await receive(response)

    def _refuse_redirect(self, response: httpx.Response) -> None:
        """A redirect of a call is never followed: it would carry prompt, pictures and money to another host."""
        if not 300 <= response.status_code < 400:
            return
        location = mask(response.headers.get("location", "nowhere"))
        message = f"{self._base.host} answered {response.status_code} and points to {location}, which is not followed"
        hint = "check --base-url: it must be the API's own address"
        raise ApiError(self.mask(message), kind="refused", hint=hint, status=response.status_code)

    async def _keep(
        self, response: httpx.Response, trail: _Trail, file: ReplyFile, limit: int
    ) -> AsyncGenerator[bytes, None]:
        """The pieces of a body, each already kept in the file."""
        file.reset()
        start = trail.received.start if trail.received else bytearray()
        async with contextlib.aclosing(_pieces(response)) as pieces:
            async for piece in pieces:
                if file.size + len(piece) > limit:
                    raise _BrokenReplyError(f"the reply is larger than {limit >> 20} MiB")
                file.write(piece)
                start += piece[: max(0, _TEXT_BYTES - len(start))]
                yield piece

    async def _reply(self, trail: _Trail, file: ReplyFile) -> Reply:
        received = trail.received or _Received(0, {})
        reply = await _parse(received, file)
        seconds = self._clock.monotonic() - trail.sent_at
        self._say(f"< {reply.status} after {seconds:.2f} s, {file.size} bytes, request id {_request_id(reply.headers)}")
        return reply

    def _failure(self, call: Call, trail: _Trail, exc: Exception) -> ApiError:
        """What an exception means for the money."""
        reason = self._reason(exc, trail)
        host = self._base.host
        local = isinstance(exc, httpx.LocalProtocolError)
        if not trail.sent or isinstance(exc, _NEVER_SENT) or (local and not trail.headers_sent):
            usable = not isinstance(exc, httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.InvalidURL)
            message = f"no connection to {host}: {reason}; nothing was sent"
            return ApiError(message, kind="network", delivered="no", retryable=usable)
        if not call.billable:
            message = f"the connection to {host} was lost: {reason}"
            return ApiError(message, kind="network", delivered="maybe", retryable=True)
        return ApiError(
            f"the request was sent to {host} and no whole answer came: {reason}; it may have been charged",
            kind="unknown_outcome",
            hint="look at the provider's usage page before sending it again; --retry-ambiguous repeats such requests",
            billed="unknown",
            delivered="maybe",
        )

    def _reason(self, exc: Exception, trail: _Trail) -> str:
        """An exception in words that hold no header."""
        if isinstance(exc, httpx.LocalProtocolError):
            return "the request is no valid HTTP"
        if isinstance(exc, TimeoutError | httpx.ConnectTimeout):
            seconds = self._policy.timeout_s if trail.sent else self._policy.connect_timeout_s
            return f"no {'whole answer' if trail.sent else 'connection'} after {seconds:g} s"
        return self.mask(_root_cause(exc))

    def _settle(self, error: ApiError, trail: _Trail) -> ApiError:
        """Complete an error with what the reply's head says, and take every secret out of it."""
        if trail.received:
            headers = trail.received.headers
            error.request_id = error.request_id or _request_id(headers)
            if error.retry_after_s is None:
                error.retry_after_s = read_retry_after(headers, self._clock.now())
            if error.status is None:
                error.status = trail.received.status
        error.message = self.mask(error.message)
        error.hint, error.code = self.mask(error.hint), self.mask(error.code)
        error.request_id = self.mask(error.request_id)
        error.args = (error.message,)
        return error

    # -- links

    async def fetch(
        self,
        link: str,
        write: Callable[[bytes], None],
        *,
        restart: Callable[[], None],
        check: Callable[[], T],
        explain: Callable[[bytes, int], tuple[str, str]] | None = None,
        on_progress: Callable[[int, int | None], None] | None = None,
        watch: Watch | None = None,
        max_bytes: int = PICTURE_LIMIT,
        deadline_s: float = 300.0,
        stall_s: float = 20.0,
        lowest_rate: float = 1000.0,
    ) -> Fetched[T]:
        """Get a link, byte for byte as the provider gave it, with nothing of the user's. Raises LinkError.

        `check` (run in a thread) judges the whole file, and its value is handed on; a retryable LinkError from it means
        another attempt. `restart` is called before one, so that the caller empties its file. `explain` turns the status
        and the first 2 kB of a refusal into (kind, message). One attempt may last `deadline_s`, and must bring
        `lowest_rate` bytes a second over every `stall_s`. `on_progress` gets the bytes so far and the total, if told.
        """
        order = _Order(link, write, explain, on_progress, max_bytes, deadline_s, stall_s, lowest_rate)
        attempt = 0
        while True:
            attempt += 1
            try:
                size, kind, host = await self._download(order)
                return Fetched(await asyncio.to_thread(check), size, kind, host, attempt)
            except LinkError as error:
                failure = self._masked(error)
            self._say(f"* download, attempt {attempt}: {failure.message}")
            if not failure.retryable or attempt > self._policy.retries:
                raise failure
            wait = self._random.uniform(0, min(MAX_BACKOFF_S, 2.0 ** (attempt - 1)))
            if watch:
                watch.retrying(wait, failure, attempt)
            await self._clock.sleep(wait)
            restart()

    async def _download(self, order: _Order) -> tuple[int, str, str]:
        """One attempt: the link, its redirects, the body. Returns its size, its claimed type and its host."""
        origin = target = self._first_target(order.link)
        try:
            async with asyncio.timeout(order.deadline_s):
                for _ in range(MAX_REDIRECTS + 1):
                    async with self._get(target, order) as response:
                        if response.status_code in _REDIRECTS and "location" in response.headers:
                            target = next_hop(origin, target, _location(response))
                            continue
                        size = await self._take(response, order)
                        return size, response.headers.get("content-type", ""), target.host
        except TimeoutError as exc:
            message = f"{target.host} did not send the whole picture in {order.deadline_s:g} s"
            raise LinkError(message, retryable=True) from exc
        except (httpx.HTTPError, httpx.StreamError, ssl.SSLError) as exc:
            usable = not isinstance(exc, httpx.LocalProtocolError | httpx.UnsupportedProtocol)
            reason = _root_cause(exc) if usable else "the link cannot be asked for"
            raise LinkError(f"the picture did not come from {target.host}: {reason}", retryable=usable) from exc
        raise LinkError(f"the picture's link redirects more than {MAX_REDIRECTS} times (last to {target.host})")

    def _first_target(self, link: str) -> Target:
        target = split_link(link)
        offline = self._transport is not None
        if target.scheme == "http" and not (target.loopback or is_loopback(self._base.host) or offline):
            raise LinkError(
                f"the picture's link ({target.host}) is plain http, which is fetched from this machine only",
                hint="--no-download prints the link instead",
            )
        return target

    @contextlib.asynccontextmanager
    async def _get(self, target: Target, order: _Order) -> AsyncIterator[httpx.Response]:
        timeout = httpx.Timeout(order.stall_s, connect=self._connect_s, pool=None)
        path = target.raw.partition(b"?")[0].decode("latin-1")
        self._say(f"> GET {target.scheme}://{target.authority}{path}")
        async with self._client("links", secure=target.scheme == "https") as client:
            url = _ExactURL(target)
            request = client.build_request("GET", url, timeout=timeout)
            # The client has made the headers out of a copy that lost the exact bytes.
            request.url = url
            response = await client.send(request, stream=True)
            async with contextlib.aclosing(response):
                self._say(f"< {response.status_code} from {target.host}")
                yield response

    async def _take(self, response: httpx.Response, order: _Order) -> int:
        """Write the body of a 200 and return its size; everything else is a failure."""
        host, total = response.url.host, _content_length(response)
        if response.status_code != 200:
            raise await _refusal(response, order.explain)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            raise LinkError(f"{host} sent the picture encoded as {encoding[:40]!r}, which was not asked for")
        if total is not None and total > order.max_bytes:
            raise LinkError(f"the picture has {total} bytes, more than the limit of {order.max_bytes}")
        size, mark, mark_size = 0, self._clock.monotonic(), 0
        async for chunk in _raw(response):
            size += len(chunk)
            if size > order.max_bytes:
                raise LinkError(f"the picture has more than {order.max_bytes} bytes")
            order.write(chunk)
            if order.on_progress:
                order.on_progress(size, total)
            now = self._clock.monotonic()
            if now - mark < order.stall_s:
                continue
            if size - mark_size < order.lowest_rate * (now - mark):
                raise LinkError(f"{host} sends less than {order.lowest_rate:g} bytes a second", retryable=True)
            mark, mark_size = now, size
        if not size or (total is not None and size != total):
            message = f"{host} sent {size} bytes of the picture" + (f" instead of {total}" if total else "")
            raise LinkError(message, retryable=True)
        return size

    # -- clients

    @contextlib.asynccontextmanager
    async def _client(self, room: Literal["api", "links"], *, secure: bool) -> AsyncIterator[httpx.AsyncClient]:
        """A client of a room with a place free. Those of links have nothing of the user's; none follows or remembers.

        The library's pool looks at all connections for every request: many small pools cost less than a large one.
        """
        lanes = self._lanes.setdefault((room, secure), [])
        lane = next((lane for lane in lanes if lane.busy < _LANE), None)
        if lane is None:
            lane = _Lane(self._make_client(room, secure=secure))
            lanes.append(lane)
        lane.busy += 1
        try:
            yield lane.client
        finally:
            lane.busy -= 1

    def _make_client(self, room: Literal["api", "links"], *, secure: bool) -> httpx.AsyncClient:
        # A paid request never goes out on a kept connection: one that dies at that moment leaves its outcome unknown.
        kept = 0 if room == "api" else _LANE
        accept = "*/*" if room == "api" else "image/*,*/*;q=0.5"
        no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        try:
            return httpx.AsyncClient(
                headers={"User-Agent": f"seedream/{__version__}", "Accept": accept, "Accept-Encoding": "identity"},
                cookies=no_cookies,
                timeout=httpx.Timeout(None, connect=self._connect_s, write=60.0),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=kept, keepalive_expiry=5.0),
                verify=self._verify(secure=secure),
                proxy=self._proxy if self._transport is None else None,
                trust_env=self._trusts_environment(secure=secure),
                transport=self._transport,
                follow_redirects=False,
            )
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as exc:
            where = _proxy_host(self._proxy or _environment_proxy("https") or "", port=True)
            raise ConfigError(
                f"the proxy ({where or 'none'}) or the certificates (SSL_CERT_FILE) cannot be used",
                hint="proxies are http:// or https:// addresses",
            ) from exc

    def _verify(self, *, secure: bool) -> ssl.SSLContext:
        """One context for all TLS. Reading the certificates takes 20 to 40 ms, so plain http gets an empty one.

        The empty one trusts nobody, so that a mistake here ends in a refusal and not in an unchecked connection.
        """
        if not secure or self._transport is not None:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._tls is None:
            self._tls = httpx.create_ssl_context()
        return self._tls

    def _trusts_environment(self, *, secure: bool) -> bool:
        """Whether the environment's proxies serve. Plain http is for this machine, and so must be its proxy."""
        if secure or self._transport is not None:
            return self._transport is None
        return is_loopback(_proxy_host(_environment_proxy("http")))

    def _masked(self, error: LinkError) -> LinkError:
        error.message = self.mask(error.message)
        error.args = (error.message,)
        return error

    def _say(self, line: str) -> None:
        if self._log:
            self._log(self.mask(line))


class _ExactURL(httpx.URL):
    """A URL whose request target is sent as it is.

    A signature covers the exact bytes of a link, and every URL parser mends some of them. The library's own `target`
    extension is no way out: through a proxy it sends the whole signed target in clear, as the name of the tunnel.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(scheme=target.scheme, host=target.host, port=target.port, path="/")
        self._exact = target.raw

    @property
    def raw_path(self) -> bytes:
        return self._exact


@dataclass(frozen=True, slots=True)
class _Order:
    """A picture to fetch and what that may take: bytes, seconds, seconds without enough bytes, bytes a second."""

    link: str
    write: Callable[[bytes], None]
    explain: Callable[[bytes, int], tuple[str, str]] | None
    on_progress: Callable[[int, int | None], None] | None
    max_bytes: int
    deadline_s: float
    stall_s: float
    lowest_rate: float


@dataclass(frozen=True, slots=True)
class _Base:
    """The API's address, checked: no slash at its end, no user name, no query."""

    url: str
    scheme: str
    host: str


def _check_base(base_url: str, *, offline: bool) -> _Base:
    """The API's address; ConfigError where it is none, or where the key would travel in clear."""
    try:
        url = httpx.URL(base_url.strip())
    except (httpx.InvalidURL, ValueError) as exc:
        raise ConfigError(f"the API address is no URL: {mask(base_url)}") from exc
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigError(f"the API address must be https://host/path, without user name or query: {mask(base_url)}")
    if url.scheme == "http" and not offline and not is_loopback(url.host):
        message = f"the API address http://{url.host} is refused: the key would travel in clear"
        raise ConfigError(message, hint="use https://; plain http is for this machine only")
    return _Base(str(url).rstrip("/"), url.scheme, url.host)


def _environment_proxy(scheme: str) -> str:
    found = urllib.request.getproxies()
    return found.get(scheme) or found.get("all") or ""


def _proxy_host(proxy: str, *, port: bool = False) -> str:
    """The host of a proxy's address, never its password."""
    authority = proxy.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
    if port:
        return authority
    return authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]


async def _outgoing(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _request_id(headers: Mapping[str, str]) -> str:
    return next((headers[name] for name in _REQUEST_ID_HEADERS if headers.get(name)), "")


def _root_cause(exc: BaseException) -> str:
    """The words of the system's own error under the library's wrappers ("Connection refused"), or the library's."""
    text = str(exc) or type(exc).__name__
    seen: set[int] = set()
    cause: BaseException | None = exc
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate is not trusted ({cause.verify_message})"
        if isinstance(cause, ConnectionError) and cause.errno:
            text = os.strerror(cause.errno)
        elif isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror
        cause = cause.__cause__ or cause.__context__
    return text


def _location(response: httpx.Response) -> str:
    """The redirect's bytes as text that `split_link` can turn back into the same bytes."""
    raw = next((value for name, value in response.headers.raw if name.lower() == b"location"), b"")
    return raw.decode("utf-8", "surrogateescape")


def _content_length(response: httpx.Response) -> int | None:
    value = response.headers.get("content-length", "")
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None


async def _refusal(response: httpx.Response, explain: Callable[[bytes, int], tuple[str, str]] | None) -> LinkError:
    """The error for an answer that is no picture, in the store's own words where the caller can read them."""
    status, start = response.status_code, bytearray()
    with contextlib.suppress(httpx.HTTPError):
        async for chunk in _raw(response):
            start += chunk[: _TEXT_BYTES - len(start)]
            if len(start) >= _TEXT_BYTES:
                break
    kind, message = "download", f"{response.url.host} answered {status} instead of the picture"
    if explain and start:
        kind, message = explain(bytes(start), status)
    # A 2xx that is no 200 (empty, a part) is a slip of the store, which a second try may not repeat.
    retryable = kind == "download" and (status >= 500 or status in {408, 429} or 200 < status < 300)
    return LinkError(message, kind=kind, retryable=retryable)


__all__ = [
    "Answer",
    "Clock",
    "Done",
    "EventParser",
    "Fetched",
    "Policy",
    "ReplyFile",
    "Streamed",
    "Target",
    "Watch",
    "Wire",
    "check_key",
    "decide",
    "encode_body",
    "is_loopback",
    "is_private",
    "mask",
    "next_hop",
    "read_retry_after",
    "secret_forms",
    "split_link",
]
