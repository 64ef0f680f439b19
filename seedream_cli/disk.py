"""Where a deed on the disk is done: at once, or in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_SMALL = 1 << 20
_QUICK_S = 0.003
"""A thread costs a few tenths of a millisecond, and as much of everything else that goes on."""
_WEIGHT = 0.1


class Disk:
    """Does what takes a quick disk less time than a thread would: small files are flushed in the event loop.

    Every deed is timed, so a disk that is slow, or becomes so, holds nothing else up.
    """

    def __init__(self) -> None:
        self._usual_s = 0.0

    async def do(self, deed: Callable[[], T], size: int) -> T:
        """Do something with a file of so many bytes; raises what it raises."""
        if size <= _SMALL and self._usual_s < _QUICK_S:
            return self._timed(deed)
        return await asyncio.to_thread(self._timed, deed)

    def _timed(self, deed: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return deed()
        finally:
            self._usual_s += _WEIGHT * (time.perf_counter() - started - self._usual_s)
