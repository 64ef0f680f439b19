"""Removes metadata from references and rotates them upright before they are sent."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from ..errors import LinkError
from ..storage.image_containers import MAX_PIXELS, UNREADABLE, Readable, Source, png_chunks
from ..storage.image_metadata import Stripped, part_length, read_parts, strip_metadata
from .image_request import ImageRef, Sent
from .references import open_reference

BARE_NOTICE = (
    "reference images are sent upright and without EXIF, GPS and other notes; --keep-metadata sends them as they are"
)

_COPIES_MOST = 512 * 1024 * 1024
"""Most bytes of re-encoded images in the temporary file; an image beyond is re-encoded whenever it is sent."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A reference as it will be sent, and a warning about metadata that could not be removed ("" for none)."""

    ref: ImageRef
    warning: str = ""


def prepare_reference(ref: ImageRef) -> Prepared:
    """A local image upright and without EXIF, GPS and other metadata.

    Only an image that must be rotated is re-encoded; of others, ranges of the file are sent. Cached by sha256, since
    many rows may use the same image.
    """
    if ref.kind == "url":
        return Prepared(ref)
    known = _KNOWN.get(ref.sha256)
    if known is None:
        known = _prepare(ref)
        if len(_KNOWN) >= _KNOWN_MOST:
            del _KNOWN[next(iter(_KNOWN))]
        _KNOWN[ref.sha256] = known
    sent, is_rotated, warning = known
    width, height = (ref.height, ref.width) if is_rotated else (ref.width, ref.height)
    return Prepared(replace(ref, sent=sent, width=width, height=height), warning)


_KNOWN: dict[str, tuple[Sent | None, bool, str]] = {}
"""By sha256: what is sent, whether width and height are swapped, and the warning."""

_KNOWN_MOST = 4096


def _prepare(ref: ImageRef) -> tuple[Sent | None, bool, str]:
    kind = ref.mime.removeprefix("image/")
    with open_reference(ref) as file:
        try:
            stripped = strip_metadata(file, kind)
            if kind == "tiff" and _is_plain_tiff(file):
                return None, False, ""
        except (*UNREADABLE, LinkError):
            stripped = None
        if stripped is not None and stripped.orientation == 1:
            return _without_metadata(file, stripped, ref, with_orientation=False), False, ""
        is_deep = kind == "png" and _is_deep(file)
        if not ref.animated and not is_deep and (stripped is not None or kind == "tiff"):
            with contextlib.suppress(*UNREADABLE):
                return _rotated_copy(ref, stripped.orientation if stripped else 1)
        if stripped is not None:
            still = "has 16 bits a colour, of which turning would keep 8" if is_deep else "cannot be decoded here"
            why = "has several frames" if ref.animated else still
            message = f"{ref.location} {why}, so it is not turned: only the note how to turn it goes along"
            return _without_metadata(file, stripped, ref, with_orientation=True), False, message
    return (
        None,
        False,
        f"{ref.location} is sent with its metadata (place and time may be in it): {kind} is not rewritten",
    )


_TIFF_PLAIN = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 282, 283, 284, 292, 293, 296, 297, 301),
    *(317, 318, 319, 320, 321, 322, 323, 324, 325, 332, 333, 334, 336, 338, 339, 340, 341, 347, 529, 530, 531, 532),
    34675,
}
"""Tags about the pixels and their colours."""


def _is_plain_tiff(file: Readable) -> bool:
    """Whether a TIFF has one upright image and no metadata."""
    from PIL.TiffImagePlugin import TiffImageFile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = TiffImageFile(file)
    tags = {tag for tag, value in image.tag_v2.items() if (tag, value) != (_ORIENTATION, 1)}
    return tags <= _TIFF_PLAIN and not image.is_animated


_ORIENTATION = 0x0112


def _is_deep(file: Readable) -> bool:
    """Whether a PNG has 16 bits a channel, of which Pillow keeps 8, except for grey without alpha."""
    file.seek(24)
    depth, colours = file.read(2)
    return depth == 16 and colours != 0


def _without_metadata(file: Readable, stripped: Stripped, ref: ImageRef, *, with_orientation: bool) -> Sent | None:
    """The ranges to send of an image that is not rotated; None for the whole file."""
    parts = stripped.parts_with_orientation if with_orientation else stripped.parts
    if parts == ((0, ref.size),):
        return None
    digest = hashlib.sha256()
    for piece in read_parts(file, parts):
        digest.update(piece)
    return Sent(sum(map(part_length, parts)), digest.hexdigest(), parts)


def _rotated_copy(ref: ImageRef, orientation: int) -> tuple[Sent, bool, str]:
    """A copy with its pixels rotated. Raises what Pillow does where it cannot be decoded."""
    raw, size = _rotate(ref, orientation)
    at = _COPIES.add(raw)
    # A copy in the temporary file needs no original in memory.
    copy = _Copy(ref if at is None else replace(ref, path=None, content=b""), orientation, at, len(raw))
    return Sent(len(raw), hashlib.sha256(raw).hexdigest(), copy=copy.pieces), size != (ref.width, ref.height), ""


class _Copies:
    """An unlinked temporary file for all copies of a run, which the kernel removes with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._end = 0

    def add(self, raw: bytes) -> int | None:
        """Append bytes; returns their offset, or None where the file is full or the disk fails."""
        with self._lock:
            if self._end + len(raw) > _COPIES_MOST:
                return None
            try:
                self._file = self._file or tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                assert self._file is not None  # noqa: S101 - made just now
                self._file.seek(self._end)
                if self._file.write(raw) != len(raw):
                    return None
            except OSError:
                return None
            at, self._end = self._end, self._end + len(raw)
            return at

    def read(self, at: int, length: int) -> bytes:
        """Read bytes at an offset that `add` returned."""
        with self._lock:
            assert self._file is not None  # noqa: S101 - `add` was called
            self._file.seek(at)
            return self._file.read(length)


_COPIES = _Copies()


@dataclass(frozen=True, slots=True)
class _Copy:
    """A re-encoded image: its offset in the temporary file, or None and it is encoded again."""

    ref: ImageRef
    orientation: int
    at: int | None
    size: int

    def pieces(self) -> Iterator[bytes]:
        """Its bytes in chunks."""
        if self.at is None:
            yield _rotate(self.ref, self.orientation)[0]
            return
        for start in range(0, self.size, _PIECE):
            yield _COPIES.read(self.at + start, min(_PIECE, self.size - start))


_PIECE = 3 << 16


def _rotate(ref: ImageRef, orientation: int) -> tuple[bytes, tuple[int, int]]:
    """The image rotated, in its own format and at about its own quality; and its width and height."""
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    turns = Image.Transpose
    methods = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE}
    methods |= {6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90}
    file = io.BytesIO()
    with open_reference(ref) as own, warnings.catch_warnings():
        # Pillow warns on standard error about malformed metadata.
        warnings.simplefilter("ignore")
        stripped = strip_metadata(own, ref.mime.removeprefix("image/"))
        source = own if stripped is None else io.BytesIO(b"".join(read_parts(own, stripped.parts)))
        own.seek(0)
        opened = Image.open(source)
        kind = opened.format or ""
        options = _encoding(opened, kind, is_on_its_side=orientation > 4)
        opened.load()
        # Pillow rotates a TIFF when it is loaded.
        image = opened.transpose(methods[orientation]) if orientation in methods else ImageOps.exif_transpose(opened)
        image = image.copy()
        profile, transparency = image.info.get("icc_profile"), image.info.get("transparency")
        image.info = {} if transparency is None else {"transparency": transparency}
        image.save(file, kind, icc_profile=profile, **options)
        size = image.size
        raw = file.getvalue()
        return (_with_colours(raw, source) if kind == "PNG" else raw), size


def _encoding(opened: Any, kind: str, *, is_on_its_side: bool) -> dict[str, Any]:
    """Options for `Image.save` that keep the quality (a JPEG's quantisation tables) without making the file larger."""
    if kind == "TIFF":
        return {"compression": "tiff_lzw"}
    if kind == "WEBP":
        return {"lossless": True} if _is_lossless(opened.fp) else {"quality": 95}
    if kind == "PNG":
        return {}
    if kind != "JPEG":
        raise ValueError("not a format that is made here")
    from PIL.JpegImagePlugin import get_sampling

    tables = [list(table) for _, table in sorted(opened.quantization.items())]
    fits = opened.mode in {"L", "RGB"} and len(tables) in {1, 2} and all(max(table) < 256 for table in tables)
    if not fits:
        return {"quality": 95, "subsampling": 0}
    if is_on_its_side:
        tables = [[table[column * 8 + row] for row in range(8) for column in range(8)] for table in tables]
    return {"qtables": tables, "subsampling": 2 if get_sampling(opened) == 2 else 0, "optimize": True}


def _is_lossless(file: Any) -> bool:
    file.seek(0)
    head = file.read(4096)
    return b"VP8L" in head and b"VP8 " not in head


_PNG_COLOURS = {b"gAMA", b"cHRM", b"sRGB", b"cICP"}
"""The PNG chunks about colour, beside the profile."""


def _with_colours(raw: bytes, source: Readable) -> bytes:
    """A PNG with the source's chunks about colour (gamma, profile)."""
    before = Source(source)
    missing = _PNG_COLOURS - {chunk.kind for chunk in png_chunks(Source(io.BytesIO(raw)))}
    colours = [before.read(start, end - start) for kind, start, _, end in png_chunks(before) if kind in missing]
    return raw[:33] + b"".join(colours) + raw[33:]
