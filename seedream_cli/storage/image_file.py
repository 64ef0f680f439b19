"""The disk room for images: where each one goes, and how it gets its final name.

An image is written to a part file in its own folder, checked to the last byte of its container, and only then
linked to its final name. A file with a final name is therefore whole, and no existing file is replaced unasked.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import FileError
from . import filesystem
from .image_info import SPELLINGS, SUFFIXES, ImageInfo, inspect_file
from .output_path import IfExists, OutputPath, _make_one
from .pixel_check import check_pixels

_WINDOW = 1 << 18


@dataclass(frozen=True, slots=True)
class Published:
    """How an image got its name. `renamed_from` was taken; `retyped_from` was asked for, but the bytes disagree."""

    path: Path
    renamed_from: Path | None = None
    retyped_from: Path | None = None


class ImagePart:
    """An image on its way to the disk. Closed and removed at the end of a `with` block unless it was published.

    Its methods exclude each other: a cancelled task may leave the block while a thread still writes or publishes.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size = 0
        self._descriptor = descriptor
        self._hash = hashlib.sha256()
        self._turn = threading.RLock()
        # What the umask and the folder's own rules made of 0666: the mode of the finished file.
        self._mode = os.fstat(descriptor).st_mode & 0o777
        filesystem.set_mode(descriptor, 0o600)
        self._has_name = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Adds bytes. Raises `FileError` (billed) where the disk refuses them."""
        with self._turn:
            self._hash.update(chunk)
            self._write(memoryview(chunk))

    def _write(self, rest: memoryview) -> None:
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except OSError as error:
                raise _paid_error("write", self.path, error) from error
            self.size += written
            rest = rest[written:]

    def reset(self) -> None:
        """Forgets what was written, for another attempt at the same image."""
        with self._turn:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.ftruncate(self._descriptor, 0)
            self.size = 0
            self._hash = hashlib.sha256()

    def finish(self) -> ImageInfo:
        """Checks the whole image and flushes it. Raises `LinkError` where it is no whole one, `FileError`."""
        facts = self.check()
        self.flush()
        return facts

    def check(self) -> ImageInfo:
        """Checks the whole image. Raises `LinkError` where it is no whole one."""
        with self._turn, self._open() as file:
            return inspect_file(file, self._hash.hexdigest())

    def check_pixels(self, facts: ImageInfo) -> None:
        """Checks what the container cannot tell. Raises `LinkError` where pixels are missing."""
        with self._turn, self._open() as file:
            file.seek(0)
            data = file.read()
        check_pixels(data, facts)

    def _open(self) -> io.BufferedReader | io.BytesIO:
        """What was written, to read; a small image in memory, where its many short reads cost nothing."""
        if self.size <= _WINDOW and sys.platform != "win32":
            return io.BytesIO(os.pread(self._descriptor, self.size, 0))
        return os.fdopen(os.dup(self._descriptor), "rb")

    def begin_flush(self) -> None:
        """Sends the bytes on their way to the disk, where the system can; `flush` waits until they are there."""
        with self._turn, contextlib.suppress(OSError):
            if hasattr(os, "posix_fadvise"):
                # Linux takes "these will not be needed" for a reason to write at once.
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def flush(self) -> None:
        """Returns when the bytes survive a power cut. Raises `FileError` (billed)."""
        with self._turn:
            try:
                filesystem.set_mode(self._descriptor, self._mode)
                os.fsync(self._descriptor)
            except OSError as error:
                raise _paid_error("flush", self.path, error) from error

    def publish(self, folder: Path, stem: str, facts: ImageInfo, if_exists: IfExists, *, suffix: str = "") -> Published:
        """Gives the finished part its final name in `folder` (on the same file system); `flush_folder` comes after.

        `suffix` is what the user typed, kept where the bytes agree. Where they do not, the name is one that the user
        did not give: no file of that name is replaced, and none is a reason to drop or fail a paid image.
        Nor is one with "skip", which is said of requests that are not sent. Raises `FileError` (billed), also where the
        name is taken and `if_exists` is "error".
        """
        asked = folder / f"{stem}{suffix}" if suffix and SPELLINGS.get(suffix.lower()) != facts.format else None
        is_named = bool(suffix)
        suffix = SUFFIXES[facts.format] if asked or not suffix else suffix
        first = folder / f"{stem}{suffix}"
        if not is_named and if_exists == "overwrite" and not (first.is_symlink() or filesystem.is_plain(first)):
            # A pipe, say, that lies under a name which nobody typed: it is left, as is whatever is behind a link.
            if_exists = "rename"
        with self._turn:
            return self._publish(first, "rename" if asked else if_exists, asked, is_named=is_named)

    def _publish(self, first: Path, rule: IfExists, asked: Path | None, *, is_named: bool) -> Published:
        if sys.platform == "win32":
            self._close()  # an open file can be neither renamed nor removed there
        if rule == "overwrite":
            _replace(self.path, first, is_named=is_named)
            return self._published(Published(first))
        if _claim(self.path, first):
            return self._published(Published(first, None, asked))
        if rule == "error":
            hint = "`seedream recover` saves it under another name"
            raise FileError(f"{first} exists already, so the image was not saved", hint=hint, billed="yes")
        free = next(path for path in _numbered(first) if _claim(self.path, path))
        return self._published(Published(free, first, asked))

    def _published(self, published: Published) -> Published:
        self._close()
        self._has_name = False
        return published

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Closes and removes the part; nothing happens where it was published."""
        with self._turn:
            self._close()
            if self._has_name:
                self.path.unlink(missing_ok=True)
                self._has_name = False


def open_part(folder: Path) -> ImagePart:
    """A new part file in `folder`, which is made where it is missing. Never opens an existing file or a link."""
    path = folder / filesystem.part_name()
    try:
        try:
            descriptor = filesystem.create_locked(path, 0o666)
        except (FileNotFoundError, NotADirectoryError):
            _make_one(folder)
            descriptor = filesystem.create_locked(path, 0o666)
    except OSError as error:
        raise _paid_error("write", path, error) from error
    return ImagePart(path, descriptor)


def _paid_error(verb: str, path: Path, error: OSError) -> FileError:
    hint = "the image is paid for: set that right, then run `seedream recover`"
    return FileError(f"cannot {verb} {path}: {filesystem.reason(error)}", hint=hint, billed="yes")


def flush_folder(folder: Path) -> None:
    """Makes the names of published images survive a power cut. Raises `FileError` (billed)."""
    try:
        filesystem.flush_folder(folder)
    except OSError as error:
        raise _paid_error("flush", folder, error) from error


def _replace(part: Path, final: Path, *, is_named: bool) -> None:
    """The part in the place of a file. A link that the user named stays one, and what is no file is written to."""
    try:
        target = filesystem.final_target(final) if is_named else final
        if target is None:
            with part.open("rb") as source, os.fdopen(filesystem.open_stream(final), "wb") as stream:
                shutil.copyfileobj(source, stream)
            part.unlink()
        elif target == final:
            part.replace(final)
        else:
            # The file behind a link may lie on another disk.
            with part.open("rb") as source, filesystem.atomic_file(target, 0o666) as copy:
                shutil.copyfileobj(source, copy)
            part.unlink()
    except OSError as error:
        raise _paid_error("write", final, error) from error


def _numbered(first: Path) -> Iterator[Path]:
    """Names "stem-2", "stem-3", … from about the first free one: thousands may be taken, so they are bisected."""

    def name(number: int) -> Path:
        return first.with_stem(f"{first.stem}-{number}")

    low, high = 1, 2
    while os.path.lexists(name(high)):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if os.path.lexists(name(middle)) else (low, middle)
    return map(name, itertools.count(high))


def _claim(part: Path, final: Path) -> bool:
    """Moves the part to a name that nothing holds, as one step; False where something holds it."""
    try:
        filesystem.move_to_free(part, final)
    except FileExistsError:
        return False
    except OSError as error:
        raise _paid_error("write", final, error) from error
    return True


def _digest(path: Path) -> str:
    """The sha256 of a file, whatever it holds: the one that lies there may be damaged."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_same(place: OutputPath, facts: ImageInfo) -> Path | None:
    """The image itself where it is on disk already, under this place's name or a numbered one.

    A process may have died after it gave an image its name and before it could write that down.
    """
    suffixes = {place.suffix or SUFFIXES[facts.format], SUFFIXES[facts.format]}
    for suffix in sorted(suffixes):
        taken = itertools.takewhile(os.path.lexists, _names(place.folder / f"{place.stem}{suffix}"))
        for path in taken:
            if path.is_file() and path.stat().st_size == facts.bytes and _digest(path) == facts.sha256:
                return path
    return None


def _names(first: Path) -> Iterator[Path]:
    yield first
    yield from (first.with_stem(f"{first.stem}-{number}") for number in itertools.count(2))
