"""Ways to a host that lead through something: a proxy, or the sandbox in this process. The one importer of httpx.

What is between speaks its own protocols (tunnels, SOCKS, the environment's rules for whom to bypass), which the
library knows; only the bytes of a link are kept from its mending.
"""

from __future__ import annotations

import contextlib
import http.cookiejar
import importlib.util
import logging
import re
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import httpx

from ..errors import ConfigError
from .exchange import Listener, LostConnectionError, NoConnectionError, Outgoing
from .proxies import Proxy
from .urls import Target

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)

_LANE = 4  # connections of one client


class _Lane:
    """A client and how many exchanges it has under way."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.busy = 0


class Relay:
    """Exchanges through one proxy, or through a `transport` without any network.

    `keep_s` is how long a connection may be idle and still serve; None keeps none.
    """

    def __init__(
        self,
        *,
        keep_s: float | None,
        connect_s: float,
        tls: Callable[[], ssl.SSLContext],
        proxy: Proxy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._keep_s = keep_s
        # A little less than the deadline around it: the library closes its socket when its own clock ends the attempt.
        self._connect_s = 0.9 * connect_s
        self._tls = tls
        self._proxy = proxy
        self._transport = transport
        self._lanes: dict[bool, list[_Lane]] = {}
        _silence_libraries()
        _remember_absence()

    async def exchange(self, outgoing: Outgoing, listener: Listener) -> None:
        """One request and its answer. Raises `NoConnectionError`, `LostConnectionError`, or what the listener does."""
        told = _Told(outgoing.method, listener, is_proxied=self._proxy is not None)
        with _library_errors(told), told.to_the_end():
            async with self._client(secure=outgoing.target.scheme == "https") as client:
                request = self._request(client, outgoing)
                request.extensions["trace"] = told.trace
                response = await client.send(request, stream=True)
                async with contextlib.aclosing(response):
                    if listener.head(response.status_code, _headers(response)):
                        return
                    async for chunk in _raw(response):
                        if listener.data(chunk):
                            return

    def _request(self, client: httpx.AsyncClient, outgoing: Outgoing) -> httpx.Request:
        target = outgoing.target
        headers = dict(outgoing.headers)
        content = None
        if outgoing.pieces is not None:
            headers["Content-Length"] = str(outgoing.length)
            content = _outgoing(outgoing.pieces())
        timeout = httpx.Timeout(outgoing.silence_s, connect=self._connect_s, pool=None)
        if outgoing.silence_s is None:
            timeout = httpx.Timeout(None, connect=self._connect_s, write=60.0)
        url = _ExactURL(target)
        request = client.build_request(outgoing.method, url, headers=headers, content=content, timeout=timeout)
        # The client has made the headers out of a copy that lost the exact bytes.
        request.url = url
        return request

    async def open(self, *, secure: bool) -> None:
        """Make a client, so that an unusable proxy or certificate is told before anything is begun."""
        async with self._client(secure=secure):
            return

    async def aclose(self) -> None:
        """Close every client."""
        lanes, self._lanes = [lane for room in self._lanes.values() for lane in room], {}
        for lane in lanes:
            await lane.client.aclose()

    @contextlib.asynccontextmanager
    async def _client(self, *, secure: bool) -> AsyncIterator[httpx.AsyncClient]:
        """A client with a place free; none follows or remembers.

        The library's pool looks at all connections for every request: many small pools cost less than a large one.
        """
        lanes = self._lanes.setdefault(secure, [])
        lane = next((lane for lane in lanes if lane.busy < _LANE), None)
        if lane is None:
            lane = _Lane(self._make_client(secure=secure))
            lanes.append(lane)
        lane.busy += 1
        try:
            yield lane.client
        finally:
            lane.busy -= 1

    def _make_client(self, *, secure: bool) -> httpx.AsyncClient:
        no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        proxy = self._library_proxy()
        try:
            client = httpx.AsyncClient(
                cookies=no_cookies,
                limits=httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=0 if self._keep_s is None else _LANE,
                    keepalive_expiry=self._keep_s or 0.0,
                ),
                verify=self._verify(secure=secure),
                proxy=proxy,
                trust_env=False,
                transport=self._transport,
                follow_redirects=False,
            )
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as exc:
            raise self._unusable() from exc
        # What leaves is what the wire says, and nothing of the library's own.
        client.headers.clear()
        return client

    def _verify(self, *, secure: bool) -> ssl.SSLContext:
        """Reading the certificates takes 20 to 40 ms, so plain http gets none.

        An empty context trusts nobody, so that a mistake here ends in a refusal and not in an unchecked connection.
        """
        if not secure or self._transport is not None:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return self._tls()

    def _library_proxy(self) -> httpx.Proxy | None:
        """The proxy as the library takes it. Raises `ConfigError` where it cannot be used."""
        if self._proxy is None or self._transport is not None:
            return None
        url = self._proxy.usable_url()
        try:
            # A proxy that is spoken to over TLS is held to the same certificates.
            return httpx.Proxy(url, ssl_context=self._tls() if url.startswith("https:") else None)
        except (ValueError, httpx.InvalidURL) as exc:
            raise self._unusable() from exc

    def _unusable(self) -> ConfigError:
        name = self._proxy.source if self._proxy else "--proxy"
        hint = f"correct or unset {name}; proxies are http://, https:// or socks5:// addresses"
        return ConfigError(f"the proxy in {name} cannot be used", hint=hint)


class _Told:
    """What the library's trace events say of one request, told to its listener."""

    def __init__(self, method: str, listener: Listener, *, is_proxied: bool = False) -> None:
        self.is_behind_proxy = False
        self.is_proxied = is_proxied
        self._method = method.encode()
        self._listener = listener
        self.has_left = False
        self.headers_left = False
        self.body_left = False

    @contextlib.contextmanager
    def to_the_end(self) -> Iterator[None]:
        """Tell, when the exchange is over, if the body was begun and not written to its end."""
        try:
            yield
        finally:
            if self.headers_left and not self.body_left:
                self._listener.cut()

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """The hook. A CONNECT to a proxy raises the same events, so the method is looked at."""
        if name.endswith("start_tls.started") and not name.startswith("connection."):
            # The way through the proxy is open: what goes wrong now lies with who is behind it.
            self.is_behind_proxy = True
        if name.endswith("send_request_body.complete"):
            # A CONNECT has no body, so it is never the last to tell this.
            self.body_left = self.headers_left
        request = info.get("request")
        if request is None or request.method != self._method or not name.endswith(".started"):
            return
        event = name.rpartition(".")[0].rpartition(".")[2]
        if event == "send_request_headers":
            await self._listener.leave()
            self.has_left = True
        elif event == "send_request_body":
            self.headers_left = True
        elif event == "receive_response_headers":
            self._listener.sent()


@contextlib.contextmanager
def _library_errors(told: _Told) -> Iterator[None]:
    """The library's errors as what they mean for the request."""
    try:
        yield
    except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL):
        # The library's text for a bad header prints the header, key included: it must not hang on as a cause.
        if told.headers_left:
            raise LostConnectionError("the request is no valid HTTP") from None
        raise NoConnectionError("the request is no valid HTTP", usable=False) from None
    except _NEVER_SENT as exc:
        raise _no_connection(exc, told) from exc
    except (httpx.HTTPError, httpx.StreamError, ssl.SSLError) as exc:
        if not told.has_left:
            raise _no_connection(exc, told) from exc
        raise LostConnectionError(str(exc) or type(exc).__name__) from exc


def _no_connection(exc: Exception, told: _Told) -> NoConnectionError:
    """Whose fault it is that there is no connection: the proxy's, or that of who is behind it."""
    text = str(exc) or type(exc).__name__
    if not told.is_proxied or told.is_behind_proxy:
        return NoConnectionError(text)
    said = re.match(r"([1-5][0-9]{2})(?![0-9])", text) if isinstance(exc, httpx.ProxyError) else None
    status = int(said[1]) if said else 0
    # One that wants a password or forbids the host will not think better of it.
    return NoConnectionError(text, usable=not 400 <= status < 500, at_proxy=True, status=status)


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


def _headers(response: httpx.Response) -> dict[str, str]:
    """The headers by name in lower case; a redirect's bytes as text that can be turned back into the same bytes."""
    headers = dict(response.headers)
    raw = next((value for name, value in response.headers.raw if name.lower() == b"location"), None)
    return headers if raw is None else headers | {"location": raw.decode("utf-8", "surrogateescape")}


async def _raw(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body's bytes as they came. A transport without a socket may hand in a reply that is read already."""
    if response.is_stream_consumed:
        yield response.content
        return
    async for chunk in response.aiter_raw():
        yield chunk


async def _outgoing(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
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
