"""Kept replies: what a provider answered is on disk before it is read, and can be read again by a later run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ApiError, FileError, SeedreamError
from ..providers.contract import Completed, Dialect, Ready, Reply, Ticket
from ..results import Base64Slice, ProviderImage
from ..storage import json_scan, reply_file
from ..storage.reply_document import Document, is_event, read_document
from ..storage.reply_encoding import is_plain
from ..storage.reply_journal import MOST, Journal
from .plan import Job

REPLY_MOST = 64 * 1024 * 1024
"""Bytes of a reply beside its base64 images."""

POLLED = "_poll"
"""What is added to a job's id for the answers to its polls."""

_URL_REPLY = 64 * 1024

_BASE64_IMAGE = 24 * 1024 * 1024


class StoredReplyFile:
    """The wire's view of the reply file: bytes go to disk as they arrive, and are flushed before they are read.

    With `links_suffice` a reply of links alone is flushed only by `secure`: the links will be written down, and what
    was written to the file outlives the process as it is.
    """

    def __init__(self, replies: Path, job: Job, *, beside: str = "", links_suffice: bool = False) -> None:
        request = job.request
        self.folder = replies
        self.id = job.id + beside
        images = request.images_at_most if request.response_format == "b64_json" else 0
        self.links_suffice = links_suffice
        self.reply_file = reply_file.open_reply_part(self.folder, self.id, _URL_REPLY + images * _BASE64_IMAGE)
        self.meta = {
            "provider": job.route.spec.name,
            "base_url": job.route.base_url,
            "model": request.model_id,
            "size": request.size,
            "fields": dict(job.fields),
            "first": job.first,
            "of": job.of,
            "most": request.images_at_most,
        }
        self.kept: Path | None = None

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.reply_file.size

    def write(self, chunk: bytes | memoryview) -> None:
        """Append what arrived."""
        self.reply_file.write(chunk)

    def reset(self) -> None:
        """A new attempt starts from nothing."""
        self.kept = None
        self.reply_file.reset()

    def load(self) -> Document:
        """Flush the reply under its id, then parse it; base64 images stay where they lie, as `Base64Slice`s."""
        if self.links_suffice and self.size <= _URL_REPLY and is_plain(body := self.reply_file.read()):
            return read_document(body)
        return json_scan.read(self.secure(), limit=REPLY_MOST)

    def flush(self) -> None:
        """What arrived so far survives a power cut."""
        self.reply_file.flush()

    def secure(self) -> Path:
        """Flush the reply, give it its name, and return that."""
        if self.kept is None:
            self.kept = self.reply_file.keep(self.meta)
        return self.kept

    def forget(self) -> None:
        """Nothing worth keeping came, or all of it is saved. What came of attempts before it stays."""
        self.reply_file.drop()
        reply_file.forget(self.folder, self.id, asides=False)

    def leave_behind(self) -> None:
        """What came so far is for the next run, which finds it as after a kill."""
        self.flush()

    def drop(self) -> None:
        """Nothing came of this attempt. What earlier ones left stays."""
        self.reply_file.drop()

    def links_written(self) -> None:
        """The links are in the ledger. The file stays for what may go wrong with them."""

    def take_place(self, job_id: str) -> Path:
        """Become the job's kept reply, in the place of the one that held only a task's id."""
        assert self.kept is not None  # noqa: S101 - it was read, so it was kept
        final = self.kept.with_name(f"{job_id}{self.kept.suffix}")
        # Whoever reads it there unpacks it there.
        self.kept.with_suffix(".plain").unlink(missing_ok=True)
        self.kept.with_suffix(".meta.json").replace(final.with_suffix(".meta.json"))
        return self.kept.replace(final)

    def settle(self, error: SeedreamError) -> None:
        """Keep what may have been paid for; remove what was not."""
        if error.billed == "no":
            self.forget()
        elif self.size:
            self.secure()


class StoredReplySlot:
    """As `StoredReplyFile`, where links suffice: a short reply goes to the run's journal once it is whole.

    `token` tells the attempt's token.
    """

    def __init__(self, journal: Journal, replies: Path, job: Job, token: Callable[[], str]) -> None:
        self.kept: Path | None = None
        self._journal = journal
        self._replies = replies
        self._job = job
        self._token = token
        self._body = bytearray()
        self._file: StoredReplyFile | None = None
        self._place: int | None = journal.take()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._file.size if self._file else len(self._body)

    def write(self, chunk: bytes | memoryview) -> None:
        """Append what arrived. A reply that is too long for the journal goes on in a file of its own."""
        if self._file is None and len(self._body) + len(chunk) <= MOST:
            self._body += chunk
            return
        try:
            self._move().write(chunk)
        except FileError as error:
            raise _paid(error) from error

    def reset(self) -> None:
        """A new attempt starts from nothing."""
        self.kept = None
        self._body.clear()
        if self._file is not None:
            self._file.reset()

    def load(self) -> Document:
        """Put the reply where it outlives this process, then parse it. A packed one goes to a file of its own."""
        if self._file is not None or self._place is None or not is_plain(bytes(self._body[:_URL_REPLY])):
            return self._move().load()
        self._write_place()
        return read_document(self._body)

    def secure(self) -> Path:
        """Flush the reply to a file of its own, and return that. Raises `FileError` (billed); then it stays where it
        is, in its place in the journal or in a part, where the next run finds it.
        """
        try:
            self.kept = self._move().secure()
        except FileError as error:
            if self._file is None:
                self._write_place()
            raise _paid(error) from error
        self._leave()
        return self.kept

    def forget(self) -> None:
        """Nothing worth keeping came, or all of it is saved."""
        self._leave()
        if self._file is not None:
            self._file.forget()

    def leave_behind(self) -> None:
        """What came so far is for the next run, which finds it as after a kill; of a cut reply it makes nothing."""
        if self._file is not None:
            self._file.leave_behind()
            return
        with contextlib.suppress(ValueError):
            read_document(self._body)
            self._write_place()

    def drop(self) -> None:
        """Nothing came of this attempt. What earlier ones left stays."""
        self._leave()
        if self._file is not None:
            self._file.drop()

    def settle(self, error: SeedreamError) -> None:
        """Keep what may have been paid for; remove what was not."""
        if error.billed == "no":
            self.forget()
        elif self.size:
            self.secure()
        else:
            self.drop()

    def links_written(self) -> None:
        """The links are in the ledger: the place is free for another."""
        self._leave()

    def _move(self) -> StoredReplyFile:
        """The reply in a file of its own, with all that came so far."""
        if self._file is None:
            file = StoredReplyFile(self._replies, self._job)
            try:
                file.write(memoryview(self._body))
            except BaseException:
                file.drop()
                raise
            self._file = file
        return self._file

    def _write_place(self) -> None:
        """Whatever came so far, under the attempt's token."""
        if self._place is not None and self._body:
            self._journal.write(self._place, self._token(), self._body)

    def _leave(self) -> None:
        if self._place is not None:
            self._journal.free(self._place)
            self._place = None


def _paid(error: FileError) -> FileError:
    """A file that cannot be made for a reply that is here: that reply may have been paid for."""
    hint = "the reply may have been paid for: set that right before the next request"
    return FileError(error.message, hint=hint, billed="yes")


def read_kept(dialect: Dialect, path: Path) -> Ready | Ticket:
    """A kept reply, read again: one JSON document, or the events of a stream as far as they came.

    With which status it came is not known. So it can prove that something was made; that it was refused, and cost
    nothing, only where its own code says so under any status.
    """
    try:
        found = json_scan.read(path, limit=REPLY_MOST)
    except ValueError:
        return dialect.read(Reply(200, {}, None, _start(path)))
    first, *more = found.values
    reply = Reply(200, {}, first, more=tuple(more), ended=found.ended)
    try:
        return read_reply(dialect, reply)
    except ApiError as error:
        known = _refused_under_any_status(dialect, reply, error) if error.billed == "no" else error
    known.status = None
    raise known


def _start(path: Path) -> str:
    """How a reply begins that cannot be read."""
    with path.open("rb") as file:
        return file.read(2000).decode("utf-8", "replace")


def _refused_under_any_status(dialect: Dialect, reply: Reply, error: ApiError) -> ApiError:
    """The error itself, where it would be unbilled in an answer that broke down as well; else that one."""
    try:
        read_reply(dialect, replace(reply, status=504))
    except ApiError as other:
        return error if other.billed == "no" else other
    return error


def read_reply(dialect: Dialect, reply: Reply) -> Ready | Ticket:
    """What a reply says, whatever shape it came in: one value, several, or events that nobody may have asked for.

    Images count before everything else that it says, then a task, then the first error that names itself. Raises
    `ApiError` as `dialect.read` does.
    """
    values = (reply.body, *reply.more)
    if any(map(is_event, values)):
        return _read_events(dialect, reply, values)
    if isinstance(reply.body, Base64Slice):
        return Ready((ProviderImage(0, blob=reply.body),))
    errors, tickets, ready = list[ApiError](), list[Ticket](), list[tuple[Any, Ready]]()
    for value in values:
        try:
            made = dialect.read(replace(reply, body=value, more=()))
        except ApiError as error:
            errors.append(error)
            continue
        if isinstance(made, Ready):
            ready.append((value, made))
        else:
            tickets.append(made)
    if ready:
        return _joined(ready)
    if tickets:
        return tickets[0]
    raise min(errors, key=lambda error: not error.code)


def _joined(ready: Sequence[tuple[Any, Ready]]) -> Ready:
    """The images of several values. Those behind the first count where they are alike: a line for each image, say."""
    first, made = ready[0]
    images = list(made.images)
    for value, more in ready[1:]:
        if _names(value) == _names(first):
            for image in more.images:
                known = any(one.link == image.link and one.base64 == image.base64 for one in images)
                if not known or image.blob:
                    images.append(replace(image, index=len(images)))
    return replace(made, images=tuple(images))


def _names(value: Any) -> frozenset[str]:
    return frozenset(value) if isinstance(value, dict) else frozenset()


def _read_events(dialect: Dialect, reply: Reply, values: Sequence[Any]) -> Ready | Ticket:
    images, ends = list[ProviderImage](), [Completed()] if reply.ended else []
    errors = list[ApiError]()
    for value in values:
        try:
            found = read_event(dialect, value) if isinstance(value, dict) else []
        except ApiError as error:
            errors.append(error)
            # One that cost nothing is the end of a stream: the images before it count.
            ends += [Completed()] if error.billed == "no" else []
            continue
        for one in found:
            if isinstance(one, Completed):
                ends.append(one)
            elif (image := numbered(one, images)) is not None:
                images.append(image)
    if images:
        usage = next((end.usage for end in reversed(ends) if end.usage), None)
        return Ready(tuple(images), usage=usage, cut=not ends)
    if errors:
        raise errors[0]
    return dialect.read(replace(reply, body={}, more=()))


def read_event(dialect: Dialect, event: Mapping[str, Any]) -> list[ProviderImage | Completed]:
    """What one event of a stream says. One in no known vocabulary may be a whole reply. Raises `ApiError`."""
    found = dialect.read_event(event)
    if found is not None:
        return [found]
    if is_event(event):
        return []
    try:
        made = dialect.read(Reply(200, {}, event))
    except ApiError:
        return []
    return [replace(one, index=-1) for one in made.images] if isinstance(made, Ready) else []


def numbered(found: ProviderImage, before: Sequence[ProviderImage]) -> ProviderImage | None:
    """A stream's image under a number of its own; None for one that came already.

    Not every provider numbers its events, and no paid image may be lost to another with its number.
    """
    same = next((image for image in before if image.index == found.index), None)
    if found.index >= 0 and same is None:
        return found
    if same is not None and (found.error or (found.link and found.link == same.link)):
        return None
    return replace(found, index=max((image.index for image in before), default=-1) + 1)
