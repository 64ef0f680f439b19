"""The one room that talks to the network.

Contract. `ProviderClient.ask` and `ProviderClient.stream` send one `Call`; `ProviderClient.fetch` gets one image's
link. A billable request leaves at most once, unless it is proven that it never left, the provider said that it took
nothing, or the user ordered the repetition. What left is told by the connection itself, never guessed from an
exception's name. Everything that is neither proven unsent nor answered whole is `unknown_outcome`. The API key goes to
the provider's host only; links are fetched over connections that have never seen it.

Here is what binds the parts. What it follows stands in files of its own: `retry` and `rate_limit` (what may leave, and
when), `request_body` and `response` (what goes and comes), `download` and `urls`; and httpx in `transports`, over the
connections of `connections`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random as randomness
import re
import ssl
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from .. import __version__
from ..errors import ApiError, ConfigError, FileError, LinkError
from ..providers.contract import Call, Reply
from ..redaction import check_key, hide, mask, secret_forms
from ..storage.event_stream import Done, EventParser
from ..storage.reply_encoding import Unpacker
from ..storage.system_limits import lack_of
from .download import DownloadLimits, Downloads, Fetched
from .exchange import Listener, LostConnectionError, NoConnectionError, Outgoing
from .policy import Clock, Policy
from .proxies import Proxies, Proxy
from .rate_limit import Waiter
from .request_body import encode_body
from .response import BrokenReplyError, Memory, Received, Reception, ReplyFile, parse
from .retry import Attempts, Gate, Trail, Watch
from .urls import Link, Nearness, is_loopback, may_ask, nearness, resolved_nearness, split_link

if TYPE_CHECKING:
    from .transports import Client


T = TypeVar("T")

REPLY_LIMIT = 1 << 30

MEMORY_LIMIT = 8 << 20

IMAGE_LIMIT = 64 << 20

DOWNLOAD_S = 300.0

_CALL_KEEP_S = 1.0
"""How old a connection may be that a paid request goes out on. One that its server closes at that moment leaves the
outcome unknown, and no server closes so soon."""

_LINK_KEEP_S = 5.0


# --- what others give and get -----------------------------------------------------------------------------------------


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
    "cut" (inside one, or the connection broke), `cut` then being the error to report if images are missing.
    """

    whole: T | None
    ended: Literal["whole", "done", "eof", "cut"]
    attempts: int
    provider_s: float
    reply: Reply
    cut: ApiError | None = None
    doubtful: int = 0


# --- the wire ---------------------------------------------------------------------------------------------------------

_BROKEN = (NoConnectionError, LostConnectionError, BrokenReplyError, OSError)


class ProviderClient:
    """The connection to one provider with one key. An async context manager; connections are made when first needed.

    `proxy` overrules the proxies of the environment, which are honoured otherwise, except that a plain http address of
    this machine never goes through a proxy elsewhere. A `transport` of httpx (the sandbox)
    serves calls and links alike.
    `log` takes lines for the wire log, already masked. `by_hand` says that the links come from the user, who may name
    any host. `environ` holds the variables that name proxies; `certificates` are a file and a folder of those to trust
    in place of the system's.
    """

    def __init__(
        self,
        *,
        base_url: str,
        key: str,
        policy: Policy,
        proxy: str | None = None,
        transport: Any = None,
        clock: Clock | None = None,
        random: randomness.Random | None = None,
        log: Callable[[str], None] | None = None,
        by_hand: bool = False,
        environ: Mapping[str, str] | None = None,
        certificates: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self._key = check_key(key) if key else ""
        self._forms = secret_forms(self._key)
        self._base = _check_base(base_url, offline=transport is not None)
        self._policy = policy
        self._proxies = Proxies(environ or {}, proxy)
        self._trust_files = certificates
        self._transport = transport
        self._clock = clock or Clock()
        self._random = random or randomness.Random()
        self._log = log
        self._attempts = Attempts(policy, self._clock, self._random, mask=self.mask, say=self._say)
        self._downloads = Downloads(
            self._get,
            retries=policy.retries,
            clock=self._clock,
            random=self._random,
            mask=self.mask,
            say=self._say,
            plain=transport is not None or is_loopback(self._base.target.host),
        )
        self._nearness: Nearness = "loopback" if transport is not None or by_hand else nearness(self._base.target.host)
        self._is_looked_up = False
        self._clients: dict[str, Client] = {}
        self._between: dict[tuple[str, str, int | None], Proxy | None] = {}
        self._tls: ssl.SSLContext | None = None
        agent = ("User-Agent", f"seedream/{__version__}")
        self._call_headers = (agent, ("Accept-Encoding", "identity"))
        self._link_headers = (agent, ("Accept", "image/*,*/*;q=0.5"), ("Accept-Encoding", "identity"))
        if not self._base.secure and transport is None and proxy and not is_loopback(Proxy(proxy, "").host):
            raise ConfigError(
                f"the API key would travel in clear to the proxy {Proxy(proxy, '').host}: use an https API address"
            )

    async def __aenter__(self) -> ProviderClient:
        """Make the client of the API, so that an unusable proxy or certificate is told before anything is begun."""
        self._client("api").open(self._base.target)
        return self

    async def __aexit__(self, *_: object) -> None:
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    @property
    def proxy_in_use(self) -> str:
        """Host and port of the proxy that calls go through, without its password; "" for none. For a notice."""
        proxy = self._proxy_before(self._base.target)
        return proxy.where if proxy else ""

    def mask(self, text: str) -> str:
        """The text without the key, bearer tokens and the queries of links."""
        return mask(text, self._forms)

    def hide(self, value: T) -> T:
        """The provider's data without the key, whatever holds it."""
        return cast("T", hide(value, self._forms))

    # -- calls

    async def ask(
        self,
        call: Call,
        read: Callable[[Reply], T],
        *,
        reply_file: ReplyFile | None = None,
        gate: Gate | None = None,
        watch: Watch | None = None,
        images: int = 1,
        waiter: Waiter | None = None,
    ) -> Answer[T]:
        """Send a call and let `read` judge the whole reply.

        `gate(attempt)` runs just before the first byte of each attempt leaves; what it raises comes through, and
        nothing is sent. Without a `spool` the reply may have 8 MiB. `images` counts against the pace, and `waiter` is
        told when the call waits for that.
        """
        file: ReplyFile = reply_file if reply_file is not None else Memory()
        limit = MEMORY_LIMIT if reply_file is None else REPLY_LIMIT

        async def once(trail: Trail) -> tuple[T, Reply]:
            try:
                await self._exchange(call, trail, _Ear(trail, file, limit, self._refuse_redirect))
            except ApiError as error:
                return await self._salvage(error, trail, file, read)
            reply = await self._reply(trail, file)
            return _judge(read, reply, trail), reply

        outcome = await self._attempts.repeat(call, once, gate=gate, watch=watch, images=images, waiter=waiter)
        value, reply = outcome.value
        return Answer(value, outcome.attempts, outcome.provider_s, reply, outcome.doubtful)

    async def stream(
        self,
        call: Call,
        read: Callable[[Reply], T],
        on_event: Callable[[dict[str, Any]], None],
        *,
        reply_file: ReplyFile,
        gate: Gate | None = None,
        watch: Watch | None = None,
        images: int = 1,
        waiter: Waiter | None = None,
    ) -> Streamed[T]:
        """Send a call and hand over each event the moment it is whole; every byte goes to the spool first.

        A reply that is one JSON document (an error, or a provider that does not stream) goes through `read` and the
        rules of `ask`. Nothing is repeated once a stream of events has begun. What `on_event` raises ends the stream
        and comes through. A stream that breaks is returned as `ended="cut"`: the images that came are the user's.
        """

        async def once(trail: Trail) -> Streamed[T]:
            parser, unpackers = EventParser(), list[Unpacker]()
            done: list[Done] = []

            def deliver(event: dict[str, Any] | Done) -> None:
                if isinstance(event, Done):
                    done.append(event)
                elif not done:
                    on_event(event)

            def listen(piece: bytes | memoryview) -> bool:
                if not 200 <= trail.head.status < 300:
                    parser.mode = "whole"
                unpackers[:] = unpackers or [Unpacker()]
                for plain in unpackers[0].take(piece):
                    events = parser.feed(bytes(plain))
                    trail.final = parser.mode in {"sse", "lines"}
                    for event in events:
                        deliver(event)
                return bool(done)

            ear = _Ear(trail, reply_file, REPLY_LIMIT, self._refuse_redirect, listen)
            try:
                cut = await self._cut_of(self._exchange(call, trail, ear), trail, parser)
            except ApiError as error:
                value, reply = await self._salvage(error, trail, reply_file, read)
                return Streamed(value, "whole", 1, 0.0, reply)
            rest = [event for one in unpackers for plain in one.close() for event in parser.feed(bytes(plain))]
            last, unfinished = parser.close()
            for event in (*rest, *last):
                deliver(event)
            if parser.skipped:
                self._say(f"* {parser.skipped} events were no JSON objects and were passed over")
            if parser.mode == "whole":
                reply = await self._reply(trail, reply_file)
                return Streamed(_judge(read, reply, trail), "whole", 1, 0.0, reply)
            if unfinished and not done and cut is None:
                cut = self._failure(call, trail, BrokenReplyError("the stream ended inside an event"))
            ended: Literal["done", "eof", "cut"] = "done" if done else "cut" if cut else "eof"
            return Streamed(None, ended, 1, 0.0, Reply(trail.head.status, trail.head.headers), cut)

        outcome = await self._attempts.repeat(call, once, gate=gate, watch=watch, images=images, waiter=waiter)
        attempts, seconds = outcome.attempts, outcome.provider_s
        return replace(outcome.value, attempts=attempts, provider_s=seconds, doubtful=outcome.doubtful)

    async def _cut_of(self, exchange: Awaitable[None], trail: Trail, parser: EventParser) -> ApiError | None:
        """The error that broke a stream of events, if one did; a broken document is raised as for `ask`."""
        try:
            await exchange
        except ApiError as error:
            # What `on_event` raised is the provider's word and not a cut; only the wire says "maybe delivered".
            if parser.mode in {"sse", "lines"} and error.delivered == "maybe":
                return self._attempts.settle(error, trail)
            raise
        return None

    async def _salvage(
        self, error: ApiError, trail: Trail, file: ReplyFile, read: Callable[[Reply], T]
    ) -> tuple[T, Reply]:
        """The end of an exchange was lost, but the answer may be here: a JSON document shows where it ends. Raises
        `error` where it is not.
        """
        cause = error.__cause__
        if isinstance(cause, LostConnectionError) and cause.is_ambiguous:
            raise error
        if error.delivered != "maybe" or not trail.received or not file.size:
            raise error
        try:
            reply = await self._reply(trail, file)
            if reply.body is not None:
                return read(reply), reply
        except (ApiError, FileError):
            # Neither what it says nor what the disk says may take the place of the doubt.
            pass
        raise error

    async def _exchange(self, call: Call, trail: Trail, ear: _Ear) -> None:
        """One request and its reply, within the deadlines; every way to fail becomes an ApiError of known delivery."""
        length, pieces = (0, None) if call.json is None else encode_body(call.json)
        headers = [*self._call_headers, ("Accept", call.accept)]
        if self._key:
            headers.append(("Authorization", f"Bearer {self._key}"))
        if pieces is not None:
            headers.append(("Content-Type", "application/json"))
        target = self._base.target
        target = replace(target, raw=target.raw + call.path.encode())
        outgoing = Outgoing(call.method, target, tuple(headers), length, pieces)
        trail.stage("connecting")
        if self._log:
            self._say(f"> {call.method} {self._base.url}{call.path} ({length} bytes)")
        try:
            async with asyncio.timeout(self._policy.connect_timeout_s) as trail.timer:
                await self._client("api").exchange(outgoing, ear)
        except _BROKEN as exc:
            raise self._failure(call, trail, exc) from exc
        except asyncio.CancelledError:
            trail.stopped()
            raise

    def _refuse_redirect(self, status: int, headers: Mapping[str, str]) -> None:
        """A redirect of a call is never followed: it would carry prompt, images and money to another host."""
        if not 300 <= status < 400:
            return
        location, host = mask(headers.get("location", "nowhere")), self._base.target.host
        message = f"{host} answered {status} and points to {location}, which is not followed"
        hint = "check --base-url: it must be the API's own address"
        raise ApiError(self.mask(message), kind="refused", hint=hint, status=status)

    async def _reply(self, trail: Trail, file: ReplyFile) -> Reply:
        reply = await parse(trail.head, file)
        if self._log:
            seconds = self._clock.monotonic() - trail.sent_at
            self._say(f"< {reply.status} after {seconds:.2f} s, {file.size} bytes, request id {trail.head.request_id}")
        return reply

    def _failure(self, call: Call, trail: Trail, exc: Exception) -> ApiError:
        """What an exception means for the money."""
        reason = self._reason(exc, trail)
        host = self._base.target.host
        if not trail.sent or isinstance(exc, NoConnectionError):
            usable = exc.usable if isinstance(exc, NoConnectionError) else True
            why, hint = self._unconnected(exc, self._base.target, reason)
            return ApiError(f"{why}; nothing was sent", kind="network", hint=hint, delivered="no", retryable=usable)
        if trail.cut:
            message = f"the connection to {host} was lost before the request was written to its end: {reason}"
            return ApiError(f"{message}; not charged", kind="network", delivered="no", retryable=True)
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

    def _reason(self, exc: Exception, trail: Trail) -> str:
        """An exception in words that hold no header."""
        if _is_deadline(exc):
            seconds = self._policy.timeout_s if trail.sent else self._policy.connect_timeout_s
            return f"no {'whole answer' if trail.sent else 'connection'} after {seconds:g} s"
        return self.mask(_root_cause(exc))

    # -- links

    async def fetch(
        self,
        link: str,
        write: Callable[[bytes | memoryview], None],
        *,
        restart: Callable[[], None],
        check: Callable[[int], Awaitable[T]],
        explain: Callable[[bytes, int], tuple[str, str]] | None = None,
        on_progress: Callable[[int, int | None], None] | None = None,
        watch: Watch | None = None,
        max_bytes: int = IMAGE_LIMIT,
        deadline_s: float = DOWNLOAD_S,
        stall_s: float = 20.0,
        lowest_rate: float = 1000.0,
        dies: int | None = None,
        young_s: float = 0.0,
    ) -> Fetched[T]:
        """Get a link, byte for byte as the provider gave it, with nothing of the user's. Raises LinkError.

        `check` is told the size and judges the whole file, and its value is handed on; a retryable LinkError from it
        means another attempt. `restart` is called before one, so that the caller empties its file. `explain` turns the
        status and the first 2 kB of a refusal into (kind, message). One attempt may last `deadline_s`, and must bring
        `lowest_rate` bytes a second over every `stall_s`. `dies` and `young_s` are as in an `DownloadLimits`.
        `on_progress` gets the bytes so far and the total, if told.
        """
        order = DownloadLimits(
            link, write, explain, on_progress, max_bytes, deadline_s, stall_s, lowest_rate, dies, young_s
        )
        return await self._downloads.fetch(order, restart=restart, check=check, watch=watch)

    async def _get(self, target: Link, listener: Listener, silence_s: float) -> None:
        """Ask for a link, with nothing of the user's. Raises LinkError for all that can go wrong on the way."""
        admit = None
        if self._nearness != "loopback" and target.host != self._base.target.host:
            await self._admit(target, nearness(target.host))
            admit = self._gate_to(target)
        outgoing = Outgoing("GET", target, self._link_headers, silence_s=silence_s, repeatable=True, admit=admit)
        if self._log:
            self._say(f"> GET {target.scheme}://{target.authority}{outgoing.path}")
        try:
            await self._client("links").exchange(outgoing, listener)
        except _BROKEN as exc:
            if _is_deadline(exc):
                # The download's own deadline, which speaks for itself.
                raise
            usable = exc.usable if isinstance(exc, NoConnectionError) else True
            hint, reason = "", _root_cause(exc)
            if isinstance(exc, NoConnectionError) and (exc.at_proxy or usable):
                reason, hint = self._unconnected(exc, target, reason)
            elif not usable:
                reason = "the link cannot be asked for"
            raise LinkError(
                f"the image did not come from {target.host}: {reason}", hint=hint, retryable=usable
            ) from exc
        except ConfigError as exc:
            # The image is paid for: with another proxy, or none, it can still be fetched.
            raise LinkError(f"the image did not come from {target.host}: {exc.message}", hint=exc.hint) from exc

    def _unconnected(self, exc: Exception, target: Link, reason: str) -> tuple[str, str]:
        """Who was not reached, and what to do about it."""
        proxy = self._proxy_before(target)
        if proxy is None or not (isinstance(exc, NoConnectionError) and exc.at_proxy):
            through = f" through the proxy {proxy.where} (from {proxy.source})" if proxy else ""
            hint = CERTIFICATE_HINT if _is_distrust(exc) else ""
            return f"no connection to {target.host}{through}: {reason}", hint
        hint = f"check {proxy.source}"
        if not proxy.source.startswith("--"):
            hint += f", or except this host from it: NO_PROXY={target.host}"
        if _is_distrust(exc):
            hint = CERTIFICATE_HINT
        elif exc.status == 407:
            hint = f"it wants a user name and a password: http://USER:PASSWORD@HOST:PORT in {proxy.source}"
        where = f"the proxy {proxy.where} (from {proxy.source})"
        if exc.status:
            return f"{where} does not connect to {target.host}: it answered {reason}", hint
        return f"could not connect to {where}: {reason}", hint

    def _gate_to(self, target: Link) -> Callable[[str], Awaitable[None]]:
        """What judges the addresses that a link's host stands for."""

        async def admit(address: str) -> None:
            await self._admit(target, resolved_nearness(address))

        return admit

    async def _admit(self, target: Link, near: Nearness) -> None:
        """Raise LinkError where a link leads to a nearer network than the API is in, which may be the user's own."""
        if not may_ask(self._nearness, near) and near == "private" and not self._is_looked_up:
            self._is_looked_up = True
            await self._look_up()
        if not may_ask(self._nearness, near):
            place = "this machine" if near == "loopback" else "a private network"
            raise LinkError(
                f"the image's link leads to {place} ({target.host}), and the API is not there: not asked for"
            )

    async def _look_up(self) -> None:
        """See whether the API, whose name does not tell, is in a private network."""
        base = self._base.target
        with contextlib.suppress(OSError, UnicodeError):
            found = await asyncio.get_running_loop().getaddrinfo(base.host, base.port or 443)
            if any(resolved_nearness(str(one[4][0])) == "private" for one in found):
                self._nearness = "private"

    # -- clients

    def _client(self, room: Literal["api", "links"]) -> Client:
        """Calls and links have a client each, so that no store sees a connection where a key went."""
        client = self._clients.get(room)
        if client is None:
            from .transports import Client

            client = self._clients[room] = Client(
                keep_s=_CALL_KEEP_S if room == "api" else _LINK_KEEP_S,
                keep_behind_s=0.0 if room == "api" else _LINK_KEEP_S,
                connect_s=self._policy.connect_timeout_s,
                tls=self._certificates,
                proxy_before=self._proxy_before,
                transport=self._transport,
            )
        return client

    def _proxy_before(self, target: Link) -> Proxy | None:
        """The proxy that stands before a host: the user's own, or the environment's for this very address.

        Plain http is for this machine, and so must be the proxy of the environment that serves it.
        """
        place = (target.scheme, target.host, target.port)
        if place not in self._between:
            proxy = None if self._transport is not None else self._proxies.of(*place)
            if proxy and not self._proxies.is_named and target.scheme == "http" and not is_loopback(proxy.host):
                proxy = None
            self._between[place] = proxy
        return self._between[place]

    def _certificates(self) -> ssl.SSLContext:
        """One context for all TLS, read when first needed: that takes 20 to 40 ms."""
        if self._tls is None:
            self._tls = _trusted(*self._trust_files)
        return self._tls

    def _say(self, line: str) -> None:
        if self._log:
            self._log(self.mask(line))


class _Ear:
    """What one attempt's connection tells: to the trail what left, to the file what came, to `listen` each piece."""

    def __init__(
        self,
        trail: Trail,
        file: ReplyFile,
        limit: int,
        judge: Callable[[int, Mapping[str, str]], None],
        listen: Callable[[bytes | memoryview], bool] | None = None,
    ) -> None:
        self._trail = trail
        self._file = file
        self._limit = limit
        self._judge = judge
        self._listen = listen
        self._reception: Reception | None = None

    async def leave(self) -> None:
        """The attempt's last gate."""
        await self._trail.leave()

    def sent(self) -> None:
        """The provider is at work."""
        self._trail.stage("sent")

    def cut(self) -> None:
        """The provider cannot have read the request to its end."""
        self._trail.cut = True

    def head(self, status: int, headers: Mapping[str, str]) -> bool:
        """The reply begins."""
        self._trail.received = Received(status, headers)
        self._trail.stage("receiving")
        self._judge(status, headers)
        self._reception = Reception(self._trail.received, self._file, self._limit)
        return False

    def data(self, chunk: bytes | memoryview) -> bool:
        """Keep what came, then let it be read."""
        assert self._reception is not None  # noqa: S101 - a body follows its head
        self._reception.take(chunk)
        return self._listen is not None and self._listen(chunk)


def _judge(read: Callable[[Reply], T], reply: Reply, trail: Trail) -> T:
    """What `read` makes of a reply. A request that was not written to its end was refused, whatever the words are."""
    try:
        return read(reply)
    except ApiError as error:
        if trail.cut and reply.status >= 300 and error.billed != "no":
            error.kind, error.billed, error.retryable = "unavailable", "no", True
            error.hint = "it was refused before it was written to its end, so it was not charged"
        raise


@dataclass(frozen=True, slots=True)
class _Base:
    """The API's address, checked: no slash at its end, no user name, no query."""

    url: str
    target: Link

    @property
    def secure(self) -> bool:
        """Whether it is reached over TLS."""
        return self.target.scheme == "https"


def _check_base(base_url: str, *, offline: bool) -> _Base:
    """The API's address; ConfigError where it is none, or where the key would travel in clear."""
    typed = base_url.strip()
    try:
        parts = urllib.parse.urlsplit(typed)
        is_plain = parts.scheme.lower() in {"http", "https"} and parts.hostname and "@" not in parts.netloc
        if not is_plain or parts.query or parts.fragment:
            raise ConfigError(
                f"the API address must be https://host/path, without user name or query: {mask(base_url)}"
            )
        path = urllib.parse.quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        target = split_link(f"{parts.scheme.lower()}://{parts.netloc}{path}")
    except (ValueError, LinkError) as exc:
        raise ConfigError(f"the API address is no URL: {mask(base_url)}") from exc
    if target.scheme == "http" and not offline and not is_loopback(target.host):
        message = f"the API address http://{target.host} is refused: the key would travel in clear"
        raise ConfigError(message, hint="use https://; plain http is for this machine only")
    # A link without a path asks for "/"; a base only has something put behind it.
    target = replace(target, raw=path.encode("ascii"))
    return _Base(f"{target.scheme}://{target.authority}{path}", target)


def _trusted(file: str | None, folder: str | None) -> ssl.SSLContext:
    """The certificates that are trusted; ConfigError where the user's are none."""
    from .connections import trusted_certificates

    try:
        return trusted_certificates(file, folder)
    except OSError as exc:
        hint = "it must name a file of certificates (PEM); unset it for the system's own"
        raise ConfigError(f"the certificates of $SSL_CERT_FILE cannot be read: {_root_cause(exc)}", hint=hint) from exc


CERTIFICATE_HINT = (
    "behind a company's proxy, name its certificate: SSL_CERT_FILE=/path/to/ca.pem; "
    "else look at --base-url and at this machine's clock"
)


def _is_distrust(exc: BaseException) -> bool:
    """Whether a certificate was not trusted, whoever showed it."""
    seen: set[int] = set()
    cause: BaseException | None = exc
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


_NUMBERED = re.compile(r"\[Errno (\d+)\]")


def _is_deadline(exc: BaseException) -> bool:
    """Whether our own deadline passed. What the system calls a timeout, such as that of a connection, has a number."""
    return isinstance(exc, TimeoutError) and exc.errno is None


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
        elif isinstance(cause, OSError) and not cause.errno and (numbered := _NUMBERED.search(str(cause))):
            # Several addresses of a host were tried: the first one's failure speaks for all.
            text = os.strerror(int(numbered[1]))
        elif isinstance(cause, OSError) and cause.strerror:
            text = lack_of(cause) or cause.strerror
        cause = cause.__cause__ or cause.__context__
    return text


__all__ = [
    "Answer",
    "Clock",
    "Fetched",
    "Policy",
    "ProviderClient",
    "ReplyFile",
    "Streamed",
    "Watch",
]
