"""Image containers read by hand, in bounded memory: PNG, JPEG and WEBP, which providers send, GIF, HEIC and AVIF.

BMP and TIFF are decoded by Pillow. It cannot answer for the others: version 11 takes minutes over a GIF with a long
comment and accepts one without its end, AVIF came with 11.3, and HEIC is no part of it.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import LinkError

Readable = io.BufferedReader | io.BytesIO

_WINDOW = 1 << 18

_READS_MOST = 500_000

MAX_SIDE = 20_000

MAX_PIXELS = 200_000_000
"""No Seedream model draws more than 6240 pixels a side; a header that claims far more is a bomb."""

_DECODED_PIXELS_MOST = 100_000_000

UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, MemoryError, struct.error)
"""What Pillow raises for an image that it cannot read."""


class Shape(NamedTuple):
    """Width and height in pixels, and the number of frames."""

    width: int
    height: int
    frames: int = 1


class Part(NamedTuple):
    """A chunk, segment, block or box: its kind, where it starts, where its content does, and where it ends."""

    kind: bytes
    start: int
    content: int
    end: int


class Source:
    """Bounded reads of an image. The number of reads is capped, so that no crafted file costs minutes."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._reads = 0
        self.size = file.seek(0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the end of the file."""
        self._reads += 1
        if self._reads > _READS_MOST:
            raise broken("the image is made of more parts than any real one")
        self._file.seek(offset)
        return self._file.read(length)

    def need(self, offset: int, length: int, name: str) -> bytes:
        """Exactly `length` bytes, or an error that calls the image cut."""
        data = self.read(offset, length)
        if len(data) < length:
            raise _cut(name, self.size)
        return data

    def search(self, pattern: re.Pattern[bytes], offset: int) -> int:
        """Where the two-byte `pattern` first matches at or after `offset`, or -1."""
        # The first look is short, because a file may be made of very many very short stretches.
        length = 4096
        while len(window := self.read(offset, length)) > 1:
            if found := pattern.search(window):
                return offset + found.start()
            offset += len(window) - 1
            length = _WINDOW
        return -1


def broken(message: str) -> LinkError:
    """An image that is not whole, and may be the next time."""
    return LinkError(message, retryable=True)


def _cut(name: str, size: int, where: str = "before its end") -> LinkError:
    return broken(f"the {name} stops {where} ({size} bytes)")


def check_container(source: Source, name: str) -> Shape:
    """The size and frames of an image whose container is whole. Raises `LinkError` saying what is wrong with it."""
    shape = _CHECKS[name](source)
    _check_size(shape, name, MAX_PIXELS)
    return shape


def _check_size(shape: Shape, name: str, most: int) -> None:
    if not shape.width or not shape.height:
        raise broken(f"the {name.upper()} declares no size")
    if max(shape[:2]) > MAX_SIDE or shape.width * shape.height > most:
        raise broken(f"the {name.upper()} declares {shape.width}x{shape.height} pixels, more than is taken")


# --- PNG (third edition, 5.3) -----------------------------------------------------------------------------------------


def png_chunks(source: Source) -> Iterator[Part]:
    """Every chunk up to IEND."""
    offset, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", source.need(offset, 8, "PNG"))
        end = offset + 12 + length
        if end > source.size:
            raise _cut("PNG", source.size)
        yield Part(kind, offset, offset + 8, end)
        offset = end


def _check_png(source: Source) -> Shape:
    """Chunks with their checksums."""
    header = source.need(8, 16, "PNG")
    if header[:8] != b"\0\0\0\x0dIHDR":
        raise broken("the PNG does not begin with its header")
    kinds, frames = set[bytes](), 1
    for kind, start, content, end in png_chunks(source):
        _check_crc(source, start + 4, end - 4)
        kinds.add(kind)
        if kind == b"acTL" and end - content == 12:
            frames = int.from_bytes(source.read(content, 4), "big")
    if b"IDAT" not in kinds:
        raise broken("the PNG holds no image data")
    width, height = struct.unpack(">II", header[8:])
    return Shape(width, height, frames)


def _check_crc(source: Source, start: int, end: int) -> None:
    crc = 0
    for at in range(start, end, _WINDOW):
        crc = zlib.crc32(source.read(at, min(_WINDOW, end - at)), crc)
    if crc != int.from_bytes(source.read(end, 4), "big"):
        raise broken(f"the PNG is damaged: a checksum is wrong (at byte {start - 4})")


# --- JPEG (ITU-T T.81, annex B) ---------------------------------------------------------------------------------------

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)

_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}

_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def jpeg_segments(source: Source) -> Iterator[Part]:
    """The segments from SOI to EOI by their marker; behind that of a scan comes the scan's data, of kind b""."""
    offset = 2
    while True:
        lead, marker = source.need(offset, 2, "JPEG")
        if lead != 0xFF:
            raise broken(f"the JPEG is damaged: no marker where one must be (at byte {offset})")
        start, offset = offset, offset + (1 if marker == 0xFF else 2)
        if marker == 0xFF or marker in _JPEG_BARE:
            continue
        kind = bytes((marker,))
        if marker == 0xD9:
            yield Part(kind, start, offset, offset)
            return
        length = int.from_bytes(source.need(offset, 2, "JPEG"), "big")
        if length < 2 or offset + length > source.size:
            raise _cut("JPEG", source.size, "inside a segment")
        yield Part(kind, start, offset + 2, offset + length)
        offset += length
        if marker == 0xDA:
            start, offset = offset, source.search(_JPEG_MARKER, offset)
            if offset < 0:
                raise _cut("JPEG", source.size, "before its end marker")
            yield Part(b"", start, start, offset)


def _check_jpeg(source: Source) -> Shape:
    width, height, has_scan = 0, 0, False
    for kind, _, content, _ in jpeg_segments(source):
        if kind and kind[0] in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", source.need(content + 1, 4, "JPEG"))
        elif kind == b"\xdc" and not height:
            # A height that was not known in advance follows the first scan.
            height = int.from_bytes(source.need(content, 2, "JPEG"), "big")
        has_scan = has_scan or kind == b"\xda"
    if not has_scan:
        raise broken("the JPEG holds no image data")
    return Shape(width, height)


# --- WEBP (container specification; RFC 6386, 9.1) --------------------------------------------------------------------


def webp_chunks(source: Source) -> Iterator[Part]:
    """RIFF chunks up to the declared length, each with the byte that makes its length even."""
    end = int.from_bytes(source.need(4, 4, "WEBP"), "little") + 8
    if source.size < end:
        raise _cut("WEBP", source.size, f"before its {end} bytes are full")
    offset = 12
    while offset + 8 <= end:
        kind, length = struct.unpack("<4sI", source.need(offset, 8, "WEBP"))
        stop = offset + 8 + length
        if stop > end:
            raise broken("the WEBP is damaged: a chunk reaches beyond its end")
        stop = min(stop + (length & 1), end)
        yield Part(kind, offset, offset + 8, stop)
        offset += 8 + length + (length & 1)


def _check_webp(source: Source) -> Shape:
    canvas, image, frames = None, None, 0
    for kind, _, content, end in webp_chunks(source):
        body = source.read(content, min(end - content, 10))
        if kind == b"VP8X" and len(body) == 10:
            canvas = Shape(*(int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7)))
        elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a" and len(body) == 10:
            image = image or Shape(*(side & 0x3FFF for side in struct.unpack("<HH", body[6:10])))
        elif kind == b"VP8L" and body[:1] == b"\x2f":
            bits = int.from_bytes(body[1:5], "little")
            image = image or Shape((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        frames += kind == b"ANMF"
    shape = canvas or image
    if shape is None or not (image or frames):
        raise broken("the WEBP holds no image data")
    return Shape(shape.width, shape.height, max(frames, 1))


# --- GIF (89a) --------------------------------------------------------------------------------------------------------

GIF_FRAME, GIF_EXTENSION, _GIF_END = b",", b"!", b";"


def gif_blocks(source: Source) -> Iterator[Part]:
    """The header (of kind b""), frames and extensions, whose content begins with their label, and the trailer."""
    offset, kind = 13 + _gif_palette(source.need(10, 1, "GIF")), b""
    yield Part(kind, 0, 0, offset)
    while kind != _GIF_END:
        start, kind = offset, source.need(offset, 1, "GIF")
        if kind == GIF_FRAME:
            offset += 11 + _gif_palette(source.need(offset + 9, 1, "GIF"))
        elif kind == GIF_EXTENSION:
            offset += 2
        elif kind != _GIF_END:
            raise broken(f"the GIF is damaged: no block where one must be (at byte {offset})")
        while kind != _GIF_END and (length := source.need(offset, 1, "GIF")[0]):
            offset += 1 + length
        offset += 1
        yield Part(kind, start, start + 1, offset)


def _gif_palette(flags: bytes) -> int:
    return 3 << ((flags[0] & 7) + 1) if flags[0] & 0x80 else 0


def _check_gif(source: Source) -> Shape:
    frames = sum(block.kind == GIF_FRAME for block in gif_blocks(source))
    if not frames:
        raise broken("the GIF holds no image data")
    width, height = struct.unpack("<HH", source.need(6, 4, "GIF"))
    return Shape(width, height, frames)


# --- HEIC, HEIF and AVIF (ISO/IEC 14496-12 and 23008-12) --------------------------------------------------------------


def _check_boxes(source: Source) -> Shape:
    """Boxes to the end of the file.

    The size is that of the largest item, before any rotation: an image made of tiles is larger than each of them.
    """
    top = list(_boxes(source, 0, source.size))
    inner = [box for kind, _, start, end in top if kind == b"meta" for box in _boxes(source, start + 4, end)]
    properties = [box for kind, _, start, end in inner if kind == b"iprp" for box in _boxes(source, start, end)]
    items = [box for kind, _, start, end in properties if kind == b"ipco" for box in _boxes(source, start, end)]
    sizes = [source.need(start + 4, 8, "image") for kind, _, start, _ in items if kind == b"ispe"]
    if not sizes or not ({box.kind for box in top} & {b"mdat"} or {box.kind for box in inner} & {b"idat"}):
        raise broken("the image holds no image data")
    width, height = max((struct.unpack(">II", size) for size in sizes), key=lambda size: size[0] * size[1])
    return Shape(width, height, 2 if any(box.kind == b"moov" for box in top) else 1)


def _boxes(source: Source, start: int, end: int) -> Iterator[Part]:
    """Each box between two offsets."""
    while start < end:
        size, kind = struct.unpack(">I4s", source.need(start, 8, "image"))
        body = start + 8
        if size == 1:
            size = int.from_bytes(source.need(body, 8, "image"), "big")
            body += 8
        stop = start + size if size else end
        if stop > end:
            raise _cut("image", source.size)
        if stop < body:
            raise broken(f"the image is damaged: a box has no length (at byte {start})")
        yield Part(kind, start, body, stop)
        start = stop


# --- BMP and TIFF -----------------------------------------------------------------------------------------------------

_PAGES_MOST = 64


def _check_bmp(source: Source) -> Shape:
    # Pillow does not miss the bytes that fill up the last row.
    declared = int.from_bytes(source.need(2, 4, "BMP"), "little")
    if source.size < declared:
        raise _cut("BMP", source.size, f"before its {declared} bytes are full")
    return _decode(source, "bmp")


def _check_tiff(source: Source) -> Shape:
    return _decode(source, "tiff")


def _decode(source: Source, name: str) -> Shape:
    """Let Pillow decode the first pages. A file of a kind that it does not know is refused like a damaged one."""
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        with warnings.catch_warnings():
            # What Pillow thinks of odd tags would appear on standard error.
            warnings.simplefilter("ignore")
            file: Any = _PillowFile(source)
            image = BmpImageFile(file) if name == "bmp" else TiffImageFile(file)
            first, pixels = Shape(*image.size), 0
            for _ in range(_PAGES_MOST):
                _check_size(Shape(*image.size), name, _DECODED_PIXELS_MOST)
                image.load()
                pixels += image.width * image.height
                if pixels > MAX_PIXELS or not _turn_page(image):
                    break
    except UNREADABLE as error:
        raise broken(f"the {name.upper()} cannot be decoded: {error} ({source.size} bytes)") from error
    return first


def _turn_page(image: Any) -> bool:
    try:
        image.seek(image.tell() + 1)
    except EOFError:
        return False
    return True


class _PillowFile(io.RawIOBase):
    """An image as Pillow reads it: at most a few times over, since each of a thousand tags may claim all of it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0
        self._left = 4 * source.size + _WINDOW

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._source.size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, length: int | None = -1) -> bytes:
        data = self._source.read(self._at, -1 if length is None else length)
        self._at += len(data)
        self._left -= len(data)
        if self._left < 0:
            raise broken("the image is made of more parts than any real one")
        return data


_CHECKS = {
    "jpeg": _check_jpeg,
    "png": _check_png,
    "webp": _check_webp,
    "gif": _check_gif,
    "bmp": _check_bmp,
    "tiff": _check_tiff,
    "heic": _check_boxes,
    "heif": _check_boxes,
    "avif": _check_boxes,
}
