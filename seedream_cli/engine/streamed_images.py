"""The images of a stream of events, each saved the moment it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from ..errors import ApiError, SeedreamError
from ..network.exchange import EventsEnd
from ..providers.contract import Completed, Ready
from ..results import ProviderImage
from .state import RunningJob
from .stored_reply import StoredReplyFile, numbered, read_event
from .task import with_host


class StreamedImages:
    """What a stream brought so far, each image on its way to the disk. `file` holds every byte of the stream."""

    def __init__(
        self,
        running: RunningJob,
        file: StoredReplyFile,
        save: Callable[[ProviderImage], Coroutine[Any, Any, None]],
    ) -> None:
        self.came: list[ProviderImage] = []
        self._running = running
        self._file = file
        self._save = save
        self._ends: list[Completed] = []
        self._saving: list[asyncio.Task[None]] = []

    def take(self, event: Mapping[str, Any]) -> None:
        """Start to save what an event brings."""
        for found in read_event(self._running.job.route.dialect, event):
            if isinstance(found, Completed):
                self._ends.append(found)
            elif (image := numbered(with_host(found, self._running.job), self.came)) is not None:
                self._take_image(image)

    def _take_image(self, image: ProviderImage) -> None:
        running = self._running
        # The link must be on disk before its download starts, as with a whole reply.
        self._file.flush()
        running.note_new_links()
        running.recorder.announced(running.job, image)
        running.state.taken.add(image.index)
        # Its base64 is held only until it is saved.
        self.came.append(replace(image, base64=""))
        if running.job.download:
            self._saving.append(asyncio.create_task(self._save(image)))

    def stop(self) -> None:
        """Save nothing more."""
        for task in self._saving:
            task.cancel()

    async def saved(self) -> None:
        """Wait until all are saved, or failed."""
        await asyncio.gather(*self._saving)

    def ready(self) -> Ready:
        """The images that came, as an answer."""
        return Ready(tuple(self.came), usage=self._ends[-1].usage if self._ends else None)

    def lack(self, end: EventsEnd) -> ApiError | None:
        """What is wrong with a stream that ended like that, if anything is."""
        most = self._running.job.request.images_at_most
        is_whole = bool(self._ends) or end.ended == "done" or (end.cut is None and len(self.came) >= most)
        if not is_whole:
            return end.cut or cut_short()
        return self._missing()

    def _missing(self) -> ApiError | None:
        """What is wrong with a stream that came to its end: no image at all, or fewer than the provider counts."""
        came = sum(1 for image in self.came if image.error is None)
        counted = (self._ends[-1].usage or {}).get("generated_images") if self._ends else None
        if not self.came:
            return cut_short("the stream ended without an image")
        if isinstance(counted, int) and counted > came:
            return cut_short(f"the provider counts {counted} images and {came} came")
        return None


def cut_short(message: str = "the stream ended before it was complete") -> ApiError:
    """A stream that ended between two events, without its end and with fewer images than were asked for."""
    return ApiError(message, kind="unknown_outcome", billed="unknown", delivered="yes")


def broken_stream(cut: SeedreamError, got: int, most: int) -> ApiError:
    """What a broken stream means when some of its images came: they are the user's, the rest is ambiguous."""
    api = cut if isinstance(cut, ApiError) else None
    unbilled = cut.billed == "no"
    return ApiError(
        f"{cut.message}; {got} of up to {most} images came and are kept"
        + ("" if unbilled else ", the rest may have been billed"),
        kind=cut.kind if unbilled else "unknown_outcome",
        billed="no" if unbilled else "unknown",
        delivered="yes",
        hint=cut.hint if unbilled else "it is not sent again; the provider's usage page tells what was billed",
        provider=api.provider if api else "",
        code=api.code if api else "",
        request_id=api.request_id if api else "",
    )
