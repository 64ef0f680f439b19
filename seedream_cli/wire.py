"""The one room that talks to the network, and the one importer of httpx.

Contract. `Wire.ask` and `Wire.stream` send one `Call`; `Wire.fetch` gets one picture's link. A billable request leaves
at most once, unless it is proven that it never left, the provider said that it took nothing, or the user ordered the
repetition. What left is proven by httpcore's trace events, never guessed from an exception's name. Everything that is
neither proven unsent nor answered whole is `unknown_outcome`. The API key goes to the provider's host only; links are
fetched by a client that has never seen it.

Here is what needs the library. What it follows stands in rooms of its own, without a network: `attempts` and `pace`
(what may leave, and when), `body`, `replies` and `framing` (what goes and comes), `downloads` and `links`, `masking`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.cookiejar
import importlib.util
import logging
import os
import random as randomness
import ssl
import sys
import urllib.request
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import httpx

from . import __version__
from .attempts import Attempts, Trail, Watch
from .body import encode_body
from .downloads import Downloads, Fetched, Opened, Order
from .errors import ApiError, ConfigError, LinkError
from .framing import Done, EventParser
from .links import Target, is_loopback
from .masking import check_key, mask, secret_forms
from .pace import Clock, Policy
from .providers.base import Call, Reply
from .replies import BrokenReplyError, Memory, Received, ReplyFile, keep, parse
from .settings import read_surroundings

T = TypeVar("T")

REPLY_LIMIT = 1 << 30
MEMORY_LIMIT = 8 << 20
PICTURE_LIMIT = 64 << 20
DOWNLOAD_S = 300.0
_LANE = 4  # connections of one client


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
    "cut" (inside one, or the connection broke), `cut` then being the error to report if pictures are missing.
    """

    whole: T | None
    ended: Literal["whole", "done", "eof", "cut"]
    attempts: int
    provider_s: float
    reply: Reply
    cut: ApiError | None = None
    doubtful: int = 0


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


# --- the wire ---------------------------------------------------------------------------------------------------------

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
_BROKEN = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, zlib.error, BrokenReplyError)


@dataclass(slots=True)
class _Lane:
    """A client and how many exchanges it has under way."""

    client: httpx.AsyncClient
    busy: int = 0


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
        self._log = log
        self._attempts = Attempts(policy, self._clock, self._random, mask=self.mask, say=self._say)
        self._downloads = Downloads(
            self._open,
            retries=policy.retries,
            clock=self._clock,
            random=self._random,
            mask=self.mask,
            say=self._say,
            plain=transport is not None or is_loopback(self._base.host),
        )
        self._lanes: dict[tuple[str, bool], list[_Lane]] = {}
        self._tls: ssl.SSLContext | None = None
        _silence_libraries()
        _remember_absence()
        if self._base.scheme == "http" and transport is None and proxy and not is_loopback(_proxy_host(proxy)):
            raise ConfigError(
                f"the API key would travel in clear to the proxy {_proxy_host(proxy)}: use an https API address"
            )

    async def __aenter__(self) -> Wire:
        """Make the first client, so that an unusable proxy or certificate is told before anything is begun."""
        async with self._client("api", secure=self._base.scheme == "https"):
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
        file: ReplyFile = spool if spool is not None else Memory()
        limit = MEMORY_LIMIT if spool is None else REPLY_LIMIT

        async def once(trail: Trail) -> tuple[T, Reply]:
            async def receive(response: httpx.Response) -> None:
                async for _ in self._keep(response, trail, file, limit):
                    pass

            await self._exchange(call, trail, receive)
            reply = await self._reply(trail, file)
            return read(reply), reply

        outcome = await self._attempts.repeat(call, once, gate=gate, watch=watch, pictures=pictures)
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

        async def once(trail: Trail) -> Streamed[T]:
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
                cut = self._failure(call, trail, BrokenReplyError("the stream ended inside an event"))
            ended: Literal["done", "eof", "cut"] = "done" if done else "cut" if cut else "eof"
            return Streamed(None, ended, 1, 0.0, Reply(trail.head.status, trail.head.headers), cut)

        outcome = await self._attempts.repeat(call, once, gate=gate, watch=watch, pictures=pictures)
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

    async def _exchange(self, call: Call, trail: Trail, receive: Callable[[httpx.Response], Awaitable[None]]) -> None:
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
        trail: Trail,
        receive: Callable[[httpx.Response], Awaitable[None]],
        length: int,
        pieces: Callable[[], Iterator[bytes]] | None,
    ) -> None:
        headers = {"Accept": call.accept}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        content: AsyncIterator[bytes] | None = None
        if pieces is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(length)}
            content = _outgoing(pieces())
        async with self._client("api", secure=self._base.scheme == "https") as client:
            request = client.build_request(call.method, self._base.url + call.path, headers=headers, content=content)
            request.extensions["trace"] = trail.trace
            response = await client.send(request, stream=True)
            async with contextlib.aclosing(response):
                trail.received = Received(response.status_code, dict(response.headers))
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

    def _keep(self, response: httpx.Response, trail: Trail, file: ReplyFile, limit: int) -> AsyncGenerator[bytes, None]:
        return keep(_raw(response), trail.head, file, limit)

    async def _reply(self, trail: Trail, file: ReplyFile) -> Reply:
        reply = await parse(trail.head, file)
        seconds = self._clock.monotonic() - trail.sent_at
        self._say(f"< {reply.status} after {seconds:.2f} s, {file.size} bytes, request id {trail.head.request_id}")
        return reply

    def _failure(self, call: Call, trail: Trail, exc: Exception) -> ApiError:
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

    def _reason(self, exc: Exception, trail: Trail) -> str:
        """An exception in words that hold no header."""
        if isinstance(exc, httpx.LocalProtocolError):
            return "the request is no valid HTTP"
        if isinstance(exc, TimeoutError | httpx.ConnectTimeout):
            seconds = self._policy.timeout_s if trail.sent else self._policy.connect_timeout_s
            return f"no {'whole answer' if trail.sent else 'connection'} after {seconds:g} s"
        return self.mask(_root_cause(exc))

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
        deadline_s: float = DOWNLOAD_S,
        stall_s: float = 20.0,
        lowest_rate: float = 1000.0,
    ) -> Fetched[T]:
        """Get a link, byte for byte as the provider gave it, with nothing of the user's. Raises LinkError.

        `check` (run in a thread) judges the whole file, and its value is handed on; a retryable LinkError from it means
        another attempt. `restart` is called before one, so that the caller empties its file. `explain` turns the status
        and the first 2 kB of a refusal into (kind, message). One attempt may last `deadline_s`, and must bring
        `lowest_rate` bytes a second over every `stall_s`. `on_progress` gets the bytes so far and the total, if told.
        """
        order = Order(link, write, explain, on_progress, max_bytes, deadline_s, stall_s, lowest_rate)
        return await self._downloads.fetch(order, restart=restart, check=check, watch=watch)

    @contextlib.asynccontextmanager
    async def _open(self, target: Target, stall_s: float) -> AsyncIterator[Opened]:
        """Ask for a link, with nothing of the user's. Raises LinkError for all that can go wrong on the way."""
        timeout = httpx.Timeout(stall_s, connect=self._connect_s, pool=None)
        path = target.raw.partition(b"?")[0].decode("latin-1")
        self._say(f"> GET {target.scheme}://{target.authority}{path}")
        with _link_errors(target.host):
            async with self._client("links", secure=target.scheme == "https") as client:
                url = _ExactURL(target)
                request = client.build_request("GET", url, timeout=timeout)
                # The client has made the headers out of a copy that lost the exact bytes.
                request.url = url
                response = await client.send(request, stream=True)
                async with contextlib.aclosing(response):
                    self._say(f"< {response.status_code} from {target.host}")
                    pieces = _picture_bytes(response, target.host)
                    yield Opened(target.host, response.status_code, response.headers, _location(response), pieces)

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
        if self._transport is None:
            self._check_proxies(secure=secure)
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
                f"the proxy ({where or 'none'}) cannot be used",
                hint="proxies are http://, https:// or socks5:// addresses",
            ) from exc

    def _verify(self, *, secure: bool) -> ssl.SSLContext:
        """One context for all TLS. Reading the certificates takes 20 to 40 ms, so plain http gets an empty one.

        The empty one trusts nobody, so that a mistake here ends in a refusal and not in an unchecked connection.
        """
        if not secure or self._transport is not None:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._tls is None:
            self._tls = _trusted()
        return self._tls

    def _check_proxies(self, *, secure: bool) -> None:
        """Refuse what the library cannot use, by name and before anything is begun."""
        from_environment = self._trusts_environment(secure=secure) and not self._proxy
        for proxy in [self._proxy] if self._proxy else list(_environment_proxies()) if from_environment else []:
            scheme = proxy.partition("://")[0].lower() if "://" in proxy else "http"
            where = f"{scheme}://{_proxy_host(proxy, port=True)}"
            if scheme not in {"http", "https", "socks5", "socks5h"}:
                hint = "proxies are http://, https:// or socks5:// addresses"
                raise ConfigError(f"the proxy {where} cannot be used: it is not known how to speak to it", hint=hint)
            if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
                hint = 'pip install "seedream[socks]" adds that, or unset the proxy (ALL_PROXY, HTTPS_PROXY)'
                raise ConfigError(f"the proxy {where} needs support for SOCKS, which is not installed", hint=hint)

    def _trusts_environment(self, *, secure: bool) -> bool:
        """Whether the environment's proxies serve. Plain http is for this machine, and so must be its proxy."""
        if secure or self._transport is not None:
            return self._transport is None
        return is_loopback(_proxy_host(_environment_proxy("http")))

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


def _trusted() -> ssl.SSLContext:
    """The certificates that are trusted: those that SSL_CERT_FILE and SSL_CERT_DIR name, else the system's own and the
    library's: each lacks some that the other has, such as a company's.
    """
    try:
        context = httpx.create_ssl_context()
    except OSError as exc:
        hint = "it must name a file of certificates (PEM); unset it for the system's own"
        raise ConfigError(f"the certificates of $SSL_CERT_FILE cannot be read: {_root_cause(exc)}", hint=hint) from exc
    if not read_surroundings().names_certificates:
        context.load_default_certs()
    return context


def _environment_proxies() -> Iterator[str]:
    """Every proxy that the library will prepare for: it does so for all of them, whatever is asked for."""
    found = urllib.request.getproxies()
    return (found[name] for name in ("http", "https", "all") if found.get(name))


def _environment_proxy(scheme: str) -> str:
    found = urllib.request.getproxies()
    return found.get(scheme) or found.get("all") or ""


def _proxy_host(proxy: str, *, port: bool = False) -> str:
    """The host of a proxy's address, never its password."""
    authority = proxy.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
    if port:
        return authority
    return authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]


async def _raw(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body's bytes as they came. A transport without a socket may hand in a reply that is read already."""
    if response.is_stream_consumed:
        yield response.content
        return
    async for chunk in response.aiter_raw():
        yield chunk


@contextlib.contextmanager
def _link_errors(host: str) -> Iterator[None]:
    """The library's errors while a link is asked for, as what they mean for the picture."""
    try:
        yield
    except (httpx.HTTPError, httpx.StreamError, ssl.SSLError) as exc:
        usable = not isinstance(exc, httpx.LocalProtocolError | httpx.UnsupportedProtocol)
        reason = _root_cause(exc) if usable else "the link cannot be asked for"
        raise LinkError(f"the picture did not come from {host}: {reason}", retryable=usable) from exc


async def _picture_bytes(response: httpx.Response, host: str) -> AsyncGenerator[bytes, None]:
    with _link_errors(host):
        async for chunk in _raw(response):
            yield chunk


async def _outgoing(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


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


def _location(response: httpx.Response) -> str | None:
    """The redirect's bytes as text that `split_link` can turn back into the same bytes; None where there are none."""
    raw = next((value for name, value in response.headers.raw if name.lower() == b"location"), None)
    return None if raw is None else raw.decode("utf-8", "surrogateescape")


__all__ = [
    "Answer",
    "Clock",
    "Fetched",
    "Policy",
    "ReplyFile",
    "Streamed",
    "Watch",
    "Wire",
]
