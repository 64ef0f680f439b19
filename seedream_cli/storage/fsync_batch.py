"""Where a deed on the disk is done: at once or in a thread, by itself or with others like it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..errors import FileError
from .image_file import ImagePart
from .image_info import ImageInfo
from .pixel_check import is_checked

T = TypeVar("T")

_SMALL = 1 << 20

_QUICK_S = 0.003
"""A thread costs a few tenths of a millisecond, and as much of everything else that goes on."""

_FEW_BYTES = 1 << 16

_FEW_PIXELS = 1 << 16
"""So small an image is decoded in less time than a thread takes."""

_PATIENCE_S = 0.01

_WEIGHT = 0.1

_Waiting = tuple[ImagePart, "asyncio.Future[None]"]


class FsyncBatch:
    """Does at once what a quick disk does sooner than a thread: small files are checked and flushed in the loop.

    Every deed with a small file is timed, so a disk that is slow, or becomes so, holds nothing else up, and one that is
    quick again is noticed. Images that come in one turn of the loop are flushed together: their bytes go to the disk
    all at once, and its own journal is written once.
    """

    def __init__(self) -> None:
        self._usual_s = 0.0
        self._flush_s = 0.0
        self._waiting: list[_Waiting] = []
        self._is_busy = False
        self._tasks = set[asyncio.Task[None]]()
        self._decoders = asyncio.Semaphore(os.cpu_count() or 1)

    async def do(self, action: Callable[[], T], size: int) -> T:
        """Do something with a file of so many bytes; raises what it raises."""
        if size > _SMALL:
            return await asyncio.to_thread(action)
        if self._usual_s >= _QUICK_S:
            return await asyncio.to_thread(self._time, action)
        return self._time(action)

    def _time(self, action: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return action()
        finally:
            self._usual_s += _WEIGHT * (time.perf_counter() - started - self._usual_s)

    async def decode(self, part: ImagePart, facts: ImageInfo) -> None:
        """Look at a part's pixels, as many parts at once as there are processors. Raises `LinkError`."""
        if not is_checked(facts):
            return
        if facts.bytes <= _FEW_BYTES and facts.width * facts.height <= _FEW_PIXELS:
            part.check_pixels(facts)
            return
        async with self._decoders:
            await asyncio.to_thread(part.check_pixels, facts)

    async def flush(self, part: ImagePart) -> None:
        """Return when a part's bytes survive a power cut. Raises `FileError` (billed)."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        if not (self._waiting or self._is_busy):
            loop.call_soon(self._flush_waiting)
        self._waiting.append((part, done))
        await done

    def _flush_waiting(self) -> None:
        group, self._waiting = [one for one in self._waiting if not one[1].done()], []
        is_small = all(part.size <= _SMALL for part, _ in group)
        if not group or (is_small and self._flush_s * len(group) < _PATIENCE_S):
            _tell(group, self._flush_all([part for part, _ in group]))
            return
        self._is_busy = True
        task = asyncio.create_task(self._flush_apart(group))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _flush_apart(self, group: Sequence[_Waiting]) -> None:
        """In a thread; what comes meanwhile is the next group."""
        try:
            _tell(group, await asyncio.to_thread(self._flush_all, [part for part, _ in group]))
        finally:
            self._is_busy = False
            if self._waiting:
                self._flush_waiting()

    def _flush_all(self, parts: Sequence[ImagePart]) -> list[FileError | None]:
        """Flush each; what went wrong with each."""
        started = time.perf_counter()
        if len(parts) > 1:
            for part in parts:
                part.begin_flush()
        failures = [_flush(part) for part in parts]
        if parts:
            self._flush_s += _WEIGHT * ((time.perf_counter() - started) / len(parts) - self._flush_s)
        return failures


def _flush(part: ImagePart) -> FileError | None:
    try:
        part.flush()
    except FileError as error:
        return error
    return None


def _tell(group: Sequence[_Waiting], failures: Sequence[FileError | None]) -> None:
    for (_, done), failure in zip(group, failures, strict=True):
        if done.done():
            continue
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(failure)
