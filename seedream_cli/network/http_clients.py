"""The clients of httpx of one provider: one for its API, one for links, and the proxies and certificates of both."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError
from .failures import root_cause
from .proxies import Proxies, Proxy
from .urls import Link, is_loopback

if TYPE_CHECKING:
    from .transports import Client

_CALL_KEEP_S = 1.0
"""How old a connection may be that a paid request goes out on. One that its server closes at that moment leaves the
outcome unknown, and no server closes so soon."""

_LINK_KEEP_S = 5.0


class HttpClients:
    """Two clients, so that no image store sees a connection that the API key went over. Each is made when first needed.

    `environ` holds the variables that name proxies; `proxy` overrules them. `certificates` are a file and a folder of
    those to trust in place of the system's. A `transport` of httpx (the sandbox) takes the place of the network.
    """

    def __init__(
        self,
        *,
        connect_s: float,
        environ: Mapping[str, str],
        proxy: str | None,
        certificates: tuple[str | None, str | None],
        transport: Any,
    ) -> None:
        self._connect_s = connect_s
        self._proxies = Proxies(environ, proxy)
        self._certificate_files = certificates
        self._transport = transport
        self._clients: dict[str, Client] = {}
        self._proxy_of: dict[tuple[str, str, int | None], Proxy | None] = {}
        self._tls: ssl.SSLContext | None = None

    def of(self, what: Literal["api", "links"]) -> Client:
        """The client for the API or for links."""
        client = self._clients.get(what)
        if client is None:
            from .transports import Client

            client = self._clients[what] = Client(
                keep_s=_CALL_KEEP_S if what == "api" else _LINK_KEEP_S,
                keep_behind_s=0.0 if what == "api" else _LINK_KEEP_S,
                connect_s=self._connect_s,
                tls=self._certificates,
                proxy_before=self.proxy_before,
                transport=self._transport,
            )
        return client

    def proxy_before(self, target: Link) -> Proxy | None:
        """The proxy that stands before a host: the user's own, or the environment's for this very address.

        Plain http is for this machine, and so must be the proxy of the environment that serves it.
        """
        place = (target.scheme, target.host, target.port)
        if place not in self._proxy_of:
            proxy = None if self._transport is not None else self._proxies.of(*place)
            if proxy and not self._proxies.is_named and target.scheme == "http" and not is_loopback(proxy.host):
                proxy = None
            self._proxy_of[place] = proxy
        return self._proxy_of[place]

    async def aclose(self) -> None:
        """Close every connection."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    def _certificates(self) -> ssl.SSLContext:
        """One context for all TLS, read when first needed: that takes 20 to 40 ms."""
        if self._tls is None:
            self._tls = _trusted(*self._certificate_files)
        return self._tls


def _trusted(file: str | None, folder: str | None) -> ssl.SSLContext:
    """The certificates that are trusted; ConfigError where the user's are none."""
    from .connections import trusted_certificates

    try:
        return trusted_certificates(file, folder)
    except OSError as exc:
        hint = "it must name a file of certificates (PEM); unset it for the system's own"
        raise ConfigError(f"the certificates of $SSL_CERT_FILE cannot be read: {root_cause(exc)}", hint=hint) from exc
