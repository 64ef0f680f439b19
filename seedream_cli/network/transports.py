"""The clients of httpx: to a host itself, through a proxy, or to the sandbox in this process.

They follow nothing, remember nothing and add nothing; the bytes of a link are kept from the library's mending.
"""

from __future__ import annotations

import contextlib
import http.cookiejar
import importlib.util
import logging
import re
import ssl
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

import httpcore
import httpx

from ..errors import ConfigError
from .connections import FreeList
from .http import Departure, HttpRequest, LostConnectionError, NoConnectionError
from .proxies import Proxy
from .urls import Link


class Client:
    """A client of httpx that follows nothing and remembers nothing, and the ways its requests take to a host.

    `proxy_before` names the proxy that stands before a host. A `transport` (the sandbox) takes the place of the
    network. `keep_s` is how long a connection may be idle and still serve, `keep_behind_s` the same where something is
    between, which may hold a connection open that has nothing behind it any more.
    """

    def __init__(
        self,
        *,
        keep_s: float,
        keep_behind_s: float,
        connect_s: float,
        tls: Callable[[], ssl.SSLContext],
        proxy_before: Callable[[Link], Proxy | None],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._keep_behind_s = keep_behind_s
        # A little less than the deadline around it: the library closes its socket when its own clock ends the attempt.
        self._connect_s = 0.9 * connect_s
        self._tls = tls
        self._proxy_before = proxy_before
        self._is_given = transport is not None
        self._direct = transport or FreeList(keep_s=keep_s, connect_s=connect_s, tls=tls)
        self._through: dict[tuple[Proxy, bool], httpx.AsyncBaseTransport] = {}
        no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self._client = httpx.AsyncClient(
            cookies=no_cookies, transport=_Routes(self._way_to), trust_env=False, follow_redirects=False
        )
        _silence_libraries()
        _remember_absence()

    async def send(self, request: HttpRequest, departure: Departure | None = None) -> Response:
        """Send a request; the head of its answer, whose body follows as it is read. `departure` learns what has left.

        Raises `NoConnectionError`, `LostConnectionError`, or what `departure` or the request's body raises.
        """
        departure = departure or Departure(request.method)
        is_proxied = self._proxy_before(request.target) is not None
        with _library_errors(departure, is_proxied=is_proxied):
            sending = self._request(request)
            sending.extensions["trace"] = departure.trace
            return Response(await self._client.send(sending, stream=True), departure, is_proxied=is_proxied)

    def _request(self, wanted: HttpRequest) -> httpx.Request:
        """A request with nothing of the library's own: what leaves is what stands here."""
        url = _ExactURL(wanted.target)
        timeout = httpx.Timeout(wanted.silence_s, connect=self._connect_s, pool=None)
        if wanted.silence_s is None:
            timeout = httpx.Timeout(None, connect=self._connect_s, write=60.0)
        request = httpx.Request(
            wanted.method,
            url,
            headers=_headers_of(wanted),
            content=None if wanted.pieces is None else _body(wanted.pieces()),
            extensions={"timeout": timeout.as_dict(), "admit": wanted.admit, "repeatable": wanted.repeatable},
        )
        # The library has made a copy that lost the exact bytes.
        request.url = url
        return request

    def open(self, target: Link) -> None:
        """Make the way to a host, so that an unusable proxy or certificate is told before anything is begun."""
        if self._way_to(target) is self._direct and target.scheme == "https" and not self._is_given:
            self._tls()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()
        await self._direct.aclose()
        for way in self._through.values():
            await way.aclose()

    def _way_to(self, target: Link) -> httpx.AsyncBaseTransport:
        """The transport for a host. Raises `ConfigError` where the proxy before it cannot be used."""
        proxy = self._proxy_before(target)
        if proxy is None:
            return self._direct
        way = self._through.get((proxy, target.scheme == "https"))
        if way is None:
            way = self._through[proxy, target.scheme == "https"] = self._make_way(proxy, target)
        return way

    def _make_way(self, proxy: Proxy, target: Link) -> httpx.AsyncBaseTransport:
        url = proxy.usable_url()
        try:
            return httpx.AsyncHTTPTransport(
                # Reading the certificates takes 20 to 40 ms, so plain http gets none: an empty context trusts nobody.
                verify=self._tls() if target.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                # A proxy that is spoken to over TLS is held to the same certificates.
                proxy=httpx.Proxy(url, ssl_context=self._tls() if url.startswith("https:") else None),
                limits=httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=None if self._keep_behind_s else 0,
                    keepalive_expiry=self._keep_behind_s,
                ),
                trust_env=False,
            )
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as exc:
            hint = f"correct or unset {proxy.source}; proxies are http://, https:// or socks5:// addresses"
            raise ConfigError(f"the proxy in {proxy.source} cannot be used", hint=hint) from exc


class _Routes(httpx.AsyncBaseTransport):
    """Hands each request to the transport for its host."""

    def __init__(self, way_to: Callable[[Link], httpx.AsyncBaseTransport]) -> None:
        self._way_to = way_to

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request and the head of its answer."""
        assert isinstance(request.url, _ExactURL)  # noqa: S101 - every request is made here
        return await self._way_to(request.url.target).handle_async_request(request)


class Response:
    """The answer to a request: its status, its headers by name in lower case, and its body as it comes."""

    def __init__(self, response: httpx.Response, departure: Departure, *, is_proxied: bool) -> None:
        self.status = response.status_code
        self.headers = _headers(response)
        self._response = response
        self._departure = departure
        self._is_proxied = is_proxied

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body's bytes as they came. Raises `LostConnectionError`."""
        with _library_errors(self._departure, is_proxied=self._is_proxied):
            if self._response.is_stream_consumed:
                # A transport without a socket may hand in an answer that is read already.
                yield self._response.content
                return
            async for chunk in self._response.aiter_raw():
                yield chunk

    async def aclose(self) -> None:
        """Read no more; the connection is kept if its answer was read to its end."""
        await self._response.aclose()


@contextlib.contextmanager
def _library_errors(departure: Departure, *, is_proxied: bool) -> Iterator[None]:
    """The library's errors as what they mean for the request."""
    try:
        yield
    except (httpx.LocalProtocolError, httpcore.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL):
        # The library's text for a bad header prints the header, key included: it must not hang on as a cause.
        if departure.headers_left:
            raise LostConnectionError("the request is no valid HTTP") from None
        raise NoConnectionError("the request is no valid HTTP", usable=False) from None
    except (httpx.HTTPError, httpx.StreamError, httpcore.RemoteProtocolError, ssl.SSLError) as exc:
        if not departure.begun:
            raise _no_connection(exc, departure, is_proxied=is_proxied) from exc
        raise LostConnectionError(str(exc) or type(exc).__name__) from exc


def _no_connection(exc: Exception, departure: Departure, *, is_proxied: bool) -> NoConnectionError:
    """Whose fault it is that there is no connection: the proxy's, or that of who is behind it."""
    text = str(exc) or type(exc).__name__
    if not is_proxied or departure.is_behind_proxy:
        return NoConnectionError(text)
    said = re.match(r"([1-5][0-9]{2})(?![0-9])", text) if isinstance(exc, httpx.ProxyError) else None
    status = int(said[1]) if said else 0
    # One that wants a password or forbids the host will not think better of it.
    return NoConnectionError(text, usable=not 400 <= status < 500, at_proxy=True, status=status)


_FIELD = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

_TARGET = re.compile(rb"[\x21-\x7e]+")


def _headers_of(request: HttpRequest) -> list[tuple[bytes, bytes]]:
    """The request's headers, and no others. Raises `NoConnectionError` for what would be no valid HTTP."""
    headers = [("Host", host_of(request.target)), *request.headers]
    if request.pieces is not None:
        headers.append(("Content-Length", str(request.length)))
    lines = [f"{name}: {value}" for name, value in headers]
    if not (_TARGET.fullmatch(request.target.raw) and all(map(_FIELD.fullmatch, lines))):
        # Said without the line, which may hold the key.
        raise NoConnectionError("the request is no valid HTTP", usable=False)
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def host_of(target: Link) -> str:
    """The host as it was written, or, where that is no ASCII, as it is connected to."""
    if target.authority.isascii():
        return target.authority
    return target.host if target.port is None else f"{target.host}:{target.port}"


class _ExactURL(httpx.URL):
    """A URL whose request target is sent as it is.

    A signature covers the exact bytes of a link, and every URL parser mends some of them. The library's own `target`
    extension is no way out: through a proxy it sends the whole signed target in clear, as the name of the tunnel.
    """

    def __init__(self, target: Link) -> None:
        super().__init__(scheme=target.scheme, host=target.host, port=target.port, path="/")
        self.target = target

    @property
    def raw_host(self) -> bytes:
        return self.target.host.encode("ascii")

    @property
    def raw_path(self) -> bytes:
        return self.target.raw


def _headers(response: httpx.Response) -> dict[str, str]:
    """The headers by name in lower case; a redirect's bytes as text that can be turned back into the same bytes."""
    headers = dict(response.headers)
    raw = next((value for name, value in response.headers.raw if name.lower() == b"location"), None)
    return headers if raw is None else headers | {"location": raw.decode("utf-8", "surrogateescape")}


async def _body(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


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
