"""Who asks for links: with nothing of the user's, and never into a network that is nearer than the API's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import ConfigError, LinkError
from .failures import BROKEN, is_deadline, root_cause, unconnected
from .http import HttpRequest, NoConnectionError
from .http_clients import HttpClients
from .urls import Link, Nearness, may_ask, nearness, resolved_nearness

if TYPE_CHECKING:
    from .transports import Response

_HEADERS = (
    ("User-Agent", f"seedream/{__version__}"),
    ("Accept", "image/*,*/*;q=0.5"),
    ("Accept-Encoding", "identity"),
)


class LinkClient:
    """Asks for links. `api` is the API's address; `is_trusted` says that a link may lead anywhere: the user named it,
    or it never leaves this process. `log` takes a line.
    """

    def __init__(self, clients: HttpClients, api: Link, *, is_trusted: bool, log: Callable[[str], None]) -> None:
        self._clients = clients
        self._api = api
        self._nearness: Nearness = "loopback" if is_trusted else nearness(api.host)
        self._is_looked_up = False
        self._log = log

    @contextlib.asynccontextmanager
    async def get(self, target: Link, silence_s: float) -> AsyncIterator[Response]:
        """The answer to a link, whose peer may be silent for `silence_s`. Raises LinkError for all that can go wrong
        on the way, also while its body is read.
        """
        admit = None
        if self._nearness != "loopback" and target.host != self._api.host:
            await self._admit(target, nearness(target.host))
            admit = self._admission_to(target)
        request = HttpRequest("GET", target, _HEADERS, silence_s=silence_s, repeatable=True, admit=admit)
        self._log(f"> GET {target.scheme}://{target.authority}{request.path}")
        try:
            async with contextlib.aclosing(await self._clients.of("links").send(request)) as response:
                yield response
        except BROKEN as exc:
            if is_deadline(exc):
                # The download's own deadline, which speaks for itself.
                raise
            raise self._failure(exc, target) from exc
        except ConfigError as exc:
            # The image is paid for: with another proxy, or none, it can still be fetched.
            raise LinkError(f"the image did not come from {target.host}: {exc.message}", hint=exc.hint) from exc

    def _failure(self, exc: Exception, target: Link) -> LinkError:
        usable = exc.usable if isinstance(exc, NoConnectionError) else True
        hint, reason = "", root_cause(exc)
        if isinstance(exc, NoConnectionError) and (exc.at_proxy or usable):
            reason, hint = unconnected(exc, target, reason, self._clients.proxy_before(target))
        elif not usable:
            reason = "the link cannot be asked for"
        return LinkError(f"the image did not come from {target.host}: {reason}", hint=hint, retryable=usable)

    def _admission_to(self, target: Link) -> Callable[[str], Awaitable[None]]:
        """What checks each address that a link's host stands for."""

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
        with contextlib.suppress(OSError, UnicodeError):
            found = await asyncio.get_running_loop().getaddrinfo(self._api.host, self._api.port or 443)
            if any(resolved_nearness(str(one[4][0])) == "private" for one in found):
                self._nearness = "private"
