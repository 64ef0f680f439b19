"""The client of one provider with one key.

Contract. `ProviderClient.open` makes one exchange of a `Call`, which its caller takes step by step (`exchange`);
`attempts` says when the call may leave, and whether again (`retry`); `ask` does both for a free call; `fetch` gets one
image's link. What left is proven by the connection itself, never guessed from an exception's name. Everything that is
neither proven unsent nor answered whole is `Ambiguous`. The API key goes to the provider's host only; links are fetched
over connections that have never seen it.
"""

from __future__ import annotations

import random as randomness
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from .. import __version__
from ..errors import ConfigError, InternalError, LinkError
from ..providers.contract import Call, Reply
from ..redaction import check_key, hide, mask, secret_forms
from .download import Download, Downloads
from .exchange import Exchange, Service
from .http import HttpRequest
from .http_clients import HttpClients
from .link_client import LinkClient
from .outcome import Answered
from .policy import Clock, Policy
from .proxies import Proxy
from .rate_limit import RateLimiter
from .request_body import encode_body
from .response import Memory, ReplyFile
from .retry import Attempts
from .urls import Link, is_loopback, split_link

T = TypeVar("T")

REPLY_LIMIT = 1 << 30

MEMORY_LIMIT = 8 << 20


class ProviderClient:
    """The client of one provider with one key. An async context manager; connections are made when first needed.

    `proxy` overrules the proxies of the environment, which are honoured otherwise, except that a plain http address of
    this machine never goes through a proxy elsewhere. A `transport` of httpx (the sandbox) serves calls and links.
    `log` takes lines of the HTTP log, already masked. `by_hand` says that the links come from the user, who may name
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
        self._clock = clock or Clock()
        self._random = random or randomness.Random()
        self._log_line = log
        self._clients = HttpClients(
            connect_s=policy.connect_timeout_s,
            environ=environ or {},
            proxy=proxy,
            certificates=certificates,
            transport=transport,
        )
        self._limiter = RateLimiter(policy, self._clock, self._random)
        target = self._base.target
        links = LinkClient(self._clients, target, is_trusted=transport is not None or by_hand, log=self._log)
        self._downloads = Downloads(
            links.get,
            retries=policy.retries,
            clock=self._clock,
            random=self._random,
            mask=self.mask,
            log=self._log,
            is_plain_allowed=transport is not None or is_loopback(target.host),
        )
        if not self._base.secure and transport is None and proxy and not is_loopback(Proxy(proxy, "").host):
            raise ConfigError(
                f"the API key would travel in clear to the proxy {Proxy(proxy, '').host}: use an https API address"
            )

    async def __aenter__(self) -> ProviderClient:
        """Make the client of the API, so that an unusable proxy or certificate is an error before anything is begun."""
        self._clients.of("api").open(self._base.target)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._clients.aclose()

    @property
    def proxy_in_use(self) -> str:
        """Host and port of the proxy that calls go through, without its password; "" for none. For a notice."""
        proxy = self._clients.proxy_before(self._base.target)
        return proxy.where if proxy else ""

    def mask(self, text: str) -> str:
        """The text without the key, bearer tokens and the queries of links."""
        return mask(text, self._forms)

    def hide(self, value: T) -> T:
        """The provider's data without the key, whatever holds it."""
        return cast("T", hide(value, self._forms))

    def attempts(self, call: Call, images: int = 1) -> Attempts:
        """The attempts at a call, in the order of arrival; `images` count against the limit of images a minute."""
        return Attempts(
            call, images, self._limiter, policy=self._policy, clock=self._clock, random=self._random, log=self._log
        )

    def open(self, call: Call, file: ReplyFile | None = None) -> Exchange:
        """One attempt at a call. Without a `file` the reply is kept in memory, and may have 8 MiB."""
        clients, target = self._clients, self._base.target
        service = Service(
            clients.of("api"), target, clients.proxy_before(target), self._policy, self._clock, self.mask, self._log
        )
        limit = MEMORY_LIMIT if file is None else REPLY_LIMIT
        return Exchange(service, call, self._request(call), Memory() if file is None else file, limit)

    async def ask(self, call: Call, read: Callable[[Reply], T], file: ReplyFile | None = None) -> Answered[T]:
        """Send a free call, again where that may help, and let `read` judge the whole reply. Raises ApiError."""
        if call.billable:
            raise InternalError("a billable call would not be written down")
        attempts = self.attempts(call)
        while True:
            async with attempts.turn():
                async with self.open(call, file) as exchange:
                    if exchange.is_open:
                        await exchange.send()
                    outcome = await exchange.receive(read)
                wait_s = attempts.wait_after(outcome)
            if isinstance(outcome, Answered):
                return outcome
            if wait_s is None:
                raise outcome.error
            await self._clock.sleep(wait_s)

    async def fetch(self, download: Download[T]) -> T:
        """Get a link, with nothing of the user's; what the download's check made of the file. Raises LinkError."""
        return await self._downloads.fetch(download)

    def _request(self, call: Call) -> HttpRequest:
        """A call as it leaves: the key goes into its head, and nowhere else."""
        length, pieces = (0, None) if call.json is None else encode_body(call.json)
        headers = [("User-Agent", f"seedream/{__version__}"), ("Accept-Encoding", "identity"), ("Accept", call.accept)]
        if self._key:
            headers.append(("Authorization", f"Bearer {self._key}"))
        if pieces is not None:
            headers.append(("Content-Type", "application/json"))
        target = self._base.target
        target = replace(target, raw=target.raw + call.path.encode())
        self._log(f"> {call.method} {self._base.url}{call.path} ({length} bytes)")
        return HttpRequest(call.method, target, tuple(headers), length, pieces)

    def _log(self, line: str) -> None:
        if self._log_line:
            self._log_line(self.mask(line))


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
