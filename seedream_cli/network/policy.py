"""How long a call may take and how often it is tried; the clock that tests replace."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """How long to wait and how often to try. Times in seconds; `retries` counts the attempts after the first.

    `timeout_s` bounds one exchange from its first byte sent to its last byte received; no further attempt starts once
    that much time has passed since the first. `connect_timeout_s` bounds all that comes before: names, proxy, TCP, TLS.
    `slots`, `rpm` and `ipm` bound the billable requests in flight and the requests and images of any 60 seconds.
    """

    timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    retries: int = 4
    retry_ambiguous: bool = False
    slots: int | None = None
    rpm: int | None = None
    ipm: int | None = None


class Clock:
    """Time, so that tests can make it pass at once. The only sleeper of the tool."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def now(self) -> dt.datetime:
        """The wall clock, aware."""
        return dt.datetime.now(dt.UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait without blocking the loop."""
        await asyncio.sleep(seconds)
