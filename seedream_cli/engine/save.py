"""The images of an answer, to disk: each whole and checked before it has its name, and in the ledger after that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from ..errors import FileError, LinkError, SeedreamError
from ..network.download import Download
from ..network.urls import expiry
from ..results import Downloading, ProviderImage, Saved, SavedImage
from ..storage import base64_image, image_file, image_info
from ..storage.system_limits import lack_of
from .hints import rescue, rescue_image
from .state import RunningJob


class ImageSaver:
    """Saves the images of one job."""

    def __init__(self, running: RunningJob) -> None:
        self._running = running
        self._context = running.context
        self._job = running.job
        self._state = running.state
        self._recorder = running.recorder

    async def save_all(self, images: Sequence[ProviderImage], *, are_last: bool) -> None:
        """Bring them to disk; they `are_last` where nothing else of the request is left to fetch."""
        # The slot is free: the request that takes it goes first, since the provider's time is the longest.
        await self._context.clock.sleep(0)
        if len(images) == 1:
            await self.save(images[0], is_last=are_last)
        else:
            await asyncio.gather(*(self.save(image) for image in images))

    async def save(self, image: ProviderImage, *, is_last: bool = False) -> None:
        """Bring one image to disk; its failure is its own. After the last nothing is left of the request."""
        if image.error:
            self._state.saved[image.index] = SavedImage(image.index, error=image.error, layer=image.layer)
            return
        try:
            async with self._context.downloads:
                saved = await self._save(image)
        except (LinkError, FileError, OSError, MemoryError, ImportError, RuntimeError, SystemError) as cause:
            # Whatever the failure says of itself: this image is paid for.
            error = _image_error(cause)
            error.billed = "yes"
            if not error.hint and not is_final(error):
                error.hint = rescue_image(self._running, error)
            saved = SavedImage(image.index, url=image.link, error=error, layer=image.layer)
        self._state.saved[image.index] = saved
        self._state.is_closed = is_last and saved.error is None
        is_handed_out = self._job.output.stdout
        await self._recorder.image(self._job, saved, handed=is_handed_out, last=self._state.is_closed)
        self._context.sink.emit(Saved(self._job.index, saved))

    def write_to_stdout(self, path: Path) -> None:
        """A whole, checked image to standard output. A closed pipe loses nothing: the reply stays for `recover`."""
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                # What cannot be written, as on a full disk, raises `OutputError`.
                if self._context.emit is None or not self._context.emit(chunk):
                    raise LinkError("standard output was closed before the image was written")

    async def _save(self, image: ProviderImage) -> SavedImage:
        """Fetch into a part file beside its place, check that it is a whole image, and give it its name."""
        job, output, ready = self._job, self._job.output, self._state.ready
        # How many a kept reply holds is known only now.
        of = max(job.of, len(ready.images) if ready and job.fetches else 1)
        number, rule = job.first + image.index, output.if_exists
        beyond = 0 if job.fetches else image.index + 1 - job.request.images_at_most
        if beyond > 0 and output.stdout:
            raise LinkError("standard output takes one image, and the provider made more")
        if beyond > 0:
            # More came than was asked for. They are billed, so they are kept, behind the names that were planned.
            number, of, rule = job.of + beyond, job.of + beyond, "rename"
        # "skip" keeps a request from being paid for; what was paid for is not dropped for a name that is taken.
        rule = "rename" if rule == "skip" else rule
        place = output.place(job.fields, number=number, of=of)
        with image_file.open_part(place.folder) as part:
            facts = await self._fill(part, image)
            path = image_file.find_same(place, facts) if job.fetches else None
            if output.stdout:
                await asyncio.to_thread(self.write_to_stdout, part.path)
                path = None
            elif path is None:
                published = await self._context.disk.do(
                    lambda: part.publish(place.folder, place.stem, facts, rule, suffix=place.suffix), 0
                )
                path = published.path
                self._notice_of_name(published)
        return SavedImage(
            image.index,
            path,
            image.link,
            facts.format,
            facts.width,
            facts.height,
            facts.bytes,
            facts.sha256,
            layer=image.layer,
        )

    def _notice_of_name(self, published: image_file.Published) -> None:
        """Say where an image is not where it was asked to be."""
        if published.renamed_from and self._job.output.if_exists == "skip":
            name = published.renamed_from.name
            self._running.notice(f"{name} exists already, and another was paid for: saved as {published.path}")
        if published.retyped_from:
            name, suffix = published.retyped_from.name, published.path.suffix
            self._running.notice(f"{name} was asked for, but the image is {suffix[1:]}: saved as {published.path}")

    async def _fill(self, part: image_file.ImagePart, image: ProviderImage) -> image_info.ImageInfo:
        """The image's bytes, from its link or from the reply, checked and flushed."""
        if image.blob is not None or image.base64:
            return await self._decode_base64(part, image)

        async def check(size: int) -> image_info.ImageInfo:
            facts = await self._context.disk.do(part.check, size)
            await self._context.disk.decode(part, facts)
            return facts

        def progress(received: int, total: int | None) -> None:
            self._context.sink.emit(Downloading(self._job.index, image.index, received, total))

        facts = await self._running.client.fetch(
            Download(
                image.link,
                part.write,
                part.reset,
                check,
                explain=image_info.explain_store_error,
                on_progress=progress,
                dies=self._dies(image),
                young_s=self._state.links_young_until_s,
            )
        )
        await self._context.disk.flush(part)
        return facts

    def _dies(self, image: ProviderImage) -> int | None:
        """When a link dies: by its own date, else by what its provider says of all of its links."""
        own, lifetime = expiry(image.link), self._job.route.spec.link_lifetime_s
        made = self._job.earlier.answered_at or self._state.sent_at
        if own is not None or lifetime is None or made is None:
            return own
        return int(made.timestamp()) + lifetime

    async def _decode_base64(self, part: image_file.ImagePart, image: ProviderImage) -> image_info.ImageInfo:
        """An image out of the reply, which is all that there is of it: it stays until the image is saved."""
        try:
            if image.blob is not None:
                await asyncio.to_thread(base64_image.write_blob, image.blob, part)
            else:
                await asyncio.to_thread(base64_image.write_base64, image.base64, part)
            facts = await asyncio.to_thread(part.finish)
            await self._context.disk.decode(part, facts)
        except LinkError as error:
            state = self._state
            kept = state.reply or (state.incoming.kept if state.incoming else None)
            error.hint = f"what came is kept{f' in {kept}' if kept else ''}; {rescue(self._running)} reads it again"
            raise
        return facts


def is_final(error: SeedreamError) -> bool:
    """Whether nothing is left to fetch of an image: it was never made, or its link is dead for ever."""
    return error.billed == "no" or error.kind == "expired"


def _image_error(cause: Exception) -> LinkError | FileError:
    """What keeps an image from being saved: the link, the disk, or too little memory. Anything else is a bug."""
    if isinstance(cause, LinkError | FileError):
        return cause
    if not (lack := lack_of(cause)):
        raise cause
    return FileError(f"not saved: {lack}", billed="yes")
