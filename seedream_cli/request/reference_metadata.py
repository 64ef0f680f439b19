"""References as they are sent: upright, and without metadata that tells who made them, where and when."""

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
"""Bytes of images made anew that are kept; beyond, one is made again whenever it is sent."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A reference as it will be sent, and what stayed in it against the rule ("" for nothing)."""

    ref: ImageRef
    stayed: str = ""


def prepare_reference(ref: ImageRef) -> Prepared:
    """A local image upright and without what only tells of it: who made it, where, when, and with what.

    Its own parts are sent from where they are; only an image that has to be turned is made anew. The work is done
    once for the same bytes, however many rows name them.
    """
    if ref.kind == "url":
        return Prepared(ref)
    known = _KNOWN.get(ref.sha256)
    if known is None:
        known = _prepare(ref)
        if len(_KNOWN) >= _KNOWN_MOST:
            del _KNOWN[next(iter(_KNOWN))]
        _KNOWN[ref.sha256] = known
    sent, is_turned, stayed = known
    width, height = (ref.height, ref.width) if is_turned else (ref.width, ref.height)
    return Prepared(replace(ref, sent=sent, width=width, height=height), stayed)


_KNOWN: dict[str, tuple[Sent | None, bool, str]] = {}
"""By the sha256 of an image: what is sent of it, whether its sides changed places, and what stayed in it."""

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
                return _turned(ref, stripped.orientation if stripped else 1)
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
"""Tags that a reader needs for the pixels and their colours."""


def _is_plain_tiff(file: Readable) -> bool:
    """Whether a TIFF holds nothing but one upright image."""
    from PIL.TiffImagePlugin import TiffImageFile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = TiffImageFile(file)
    tags = {tag for tag, value in image.tag_v2.items() if (tag, value) != (_ORIENTATION, 1)}
    return tags <= _TIFF_PLAIN and not image.is_animated


_ORIENTATION = 0x0112


def _is_deep(file: Readable) -> bool:
    """Whether a PNG has 16 bits a colour, of which the library keeps 8; of grey without transparency it keeps all."""
    file.seek(24)
    depth, colours = file.read(2)
    return depth == 16 and colours != 0


def _without_metadata(file: Readable, stripped: Stripped, ref: ImageRef, *, with_orientation: bool) -> Sent | None:
    """What is sent of an image that is not turned; None where that is all of it."""
    parts = stripped.parts_with_orientation if with_orientation else stripped.parts
    if parts == ((0, ref.size),):
        return None
    digest = hashlib.sha256()
    for piece in read_parts(file, parts):
        digest.update(piece)
    return Sent(sum(map(part_length, parts)), digest.hexdigest(), parts)


def _turned(ref: ImageRef, orientation: int) -> tuple[Sent, bool, str]:
    """A copy with its pixels turned. Raises what the library does where it cannot be decoded."""
    raw, size = _turn(ref, orientation)
    at = _COPIES.keep(raw)
    # What is kept elsewhere need not be held in memory as well.
    copy = _Copy(ref if at is None else replace(ref, path=None, content=b""), orientation, at, len(raw))
    return Sent(len(raw), hashlib.sha256(raw).hexdigest(), copy=copy.pieces), size != (ref.width, ref.height), ""


class _Copies:
    """One nameless file for all copies of a run: gone with the process, however that ends."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._file: BinaryIO | None = None
        self._end = 0

    def keep(self, raw: bytes) -> int | None:
        """Where the bytes were put; None where there is no room for them."""
        with self._turn:
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
        """Bytes that were kept."""
        with self._turn:
            assert self._file is not None  # noqa: S101 - something was kept
            self._file.seek(at)
            return self._file.read(length)


_COPIES = _Copies()


@dataclass(frozen=True, slots=True)
class _Copy:
    """An image made anew: where it is kept, or how it is made again."""

    ref: ImageRef
    orientation: int
    at: int | None
    size: int

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, in pieces."""
        if self.at is None:
            yield _turn(self.ref, self.orientation)[0]
            return
        for start in range(0, self.size, _PIECE):
            yield _COPIES.read(self.at + start, min(_PIECE, self.size - start))


_PIECE = 3 << 16


def _turn(ref: ImageRef, orientation: int) -> tuple[bytes, tuple[int, int]]:
    """The image with its pixels turned, in its own format and as near to its own quality as can be; and its size."""
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    turns = Image.Transpose
    how = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE}
    how |= {6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90}
    file = io.BytesIO()
    with open_reference(ref) as own, warnings.catch_warnings():
        # What Pillow thinks of odd metadata would appear on standard error.
        warnings.simplefilter("ignore")
        stripped = strip_metadata(own, ref.mime.removeprefix("image/"))
        source = own if stripped is None else io.BytesIO(b"".join(read_parts(own, stripped.parts)))
        own.seek(0)
        opened = Image.open(source)
        kind = opened.format or ""
        options = _encoding(opened, kind, is_on_its_side=orientation > 4)
        opened.load()
        # A TIFF is turned by Pillow when it is read.
        image = opened.transpose(how[orientation]) if orientation in how else ImageOps.exif_transpose(opened)
        image = image.copy()
        profile, transparency = image.info.get("icc_profile"), image.info.get("transparency")
        image.info = {} if transparency is None else {"transparency": transparency}
        image.save(file, kind, icc_profile=profile, **options)
        size = image.size
        raw = file.getvalue()
        return (_with_colours(raw, source) if kind == "PNG" else raw), size


def _encoding(opened: Any, kind: str, *, is_on_its_side: bool) -> dict[str, Any]:
    """How an image is encoded again: what was kept of its detail stays, and it gets no larger than it was."""
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
"""Chunks that say, beside the profile, how the numbers of the pixels are to be shown."""


def _with_colours(raw: bytes, source: Readable) -> bytes:
    """A PNG with those chunks of the source that say how its colours are to be seen."""
    before = Source(source)
    missing = _PNG_COLOURS - {chunk.kind for chunk in png_chunks(Source(io.BytesIO(raw)))}
    colours = [before.read(start, end - start) for kind, start, _, end in png_chunks(before) if kind in missing]
    return raw[:33] + b"".join(colours) + raw[33:]
