"""An HTTP client for the provider, key and limits of a job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ..config.environment import read_environ
from ..network.client import ProviderClient
from ..network.outcome import Answered
from ..network.policy import Clock, Policy
from ..providers.contract import Call, Reply
from .plan import Route

T = TypeVar("T")

_NO_KEY = "no-key-is-needed-offline"
"""What the sandbox is shown; no word of a message, since a key is masked wherever it stands."""


def make_client(route: Route, *, clock: Clock, log: Callable[[str], None] | None = None) -> ProviderClient:
    """The client of a route, with its key alone; the sandbox's ends in this process."""
    transport = None
    if route.spec.offline:
        from ..sandbox.transport import SandboxTransport

        transport = SandboxTransport()
    limits, spec = route.limits, route.spec
    policy = Policy(
        limits.timeout_s,
        limits.connect_timeout_s,
        limits.retries,
        limits.retry_ambiguous,
        rpm=limits.rpm or spec.rpm,
        ipm=limits.ipm or spec.ipm,
    )
    key = route.key.value if route.key else _NO_KEY if spec.offline else ""
    environment = read_environ()
    return ProviderClient(
        base_url=route.base_url,
        key=key,
        policy=policy,
        proxy=limits.proxy,
        transport=transport,
        clock=clock,
        log=log,
        by_hand=route.by_hand,
        environ=environment.environ,
        certificates=environment.certificates,
    )


def ask(client: ProviderClient, call: Call, read: Callable[[Reply], T]) -> Answered[T]:
    """Send one free call by itself, and close the client. What is billable goes through a run, which writes it down."""

    async def once() -> Answered[T]:
        async with client:
            return await client.ask(call, read)

    return asyncio.run(once())
