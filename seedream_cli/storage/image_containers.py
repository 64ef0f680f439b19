"""Whether an image is whole: the containers of PNG, JPEG, WEBP, GIF, BMP, TIFF and AVIF walked to their end."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import LinkError

_WINDOW = 1 << 18

_MAX_READS = 500_000


@dataclass(frozen=True, slots=True)
class _Shape:
    """Width and height in pixels, and the number of frames."""

    width: int
    height: int
    frames: int = 1


_Readable = io.BufferedReader | io.BytesIO


class _Source:
    """Bounded reads of an image. The number of reads is capped, so that no crafted file costs minutes."""

    def __init__(self, file: _Readable) -> None:
        self._file = file
        self._reads = 0
        self.size = file.seek(0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the end of the file."""
        self._reads += 1
        if self._reads > _MAX_READS:
            raise _broken("the image is made of more parts than any real one")
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


def _broken(message: str) -> LinkError:
    return LinkError(message, retryable=True)


def _cut(name: str, size: int, where: str = "before its end") -> LinkError:
    return _broken(f"the {name} stops {where} ({size} bytes)")


def _check_png(source: _Source) -> _Shape:
    """Chunks with their checksums up to IEND (source: PNG specification, third edition, 5.3)."""
    header = source.need(8, 16, "PNG")
    if header[:8] != b"\0\0\0\x0dIHDR":
        raise _broken("the PNG does not begin with its header")
    width, height = struct.unpack(">II", header[8:])
    offset, kind, data, frames = 8, b"", False, 1
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", source.need(offset, 8, "PNG"))
        if offset + 12 + length > source.size:
            raise _cut("PNG", source.size)
        _check_crc(source, offset + 4, length + 4)
        if kind == b"acTL" and length == 8:
            frames = int.from_bytes(source.read(offset + 8, 4), "big")
        data = data or kind == b"IDAT"
        offset += 12 + length
    if not data:
        raise _broken("the PNG holds no image data")
    return _Shape(width, height, frames)


def _check_crc(source: _Source, offset: int, length: int) -> None:
    crc, at, end = 0, offset, offset + length
    while at < end:
        piece = source.read(at, min(_WINDOW, end - at))
        crc = zlib.crc32(piece, crc)
        at += len(piece)
    if crc != int.from_bytes(source.read(end, 4), "big"):
        raise _broken(f"the PNG is damaged: a checksum is wrong (at byte {offset - 4})")


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)

_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}

_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _check_jpeg(source: _Source) -> _Shape:
    """Markers from SOI to EOI, at least one scan among them (source: ITU-T T.81, annex B)."""
    offset, width, height, scanned = 2, 0, 0, False
    while True:
        lead, marker = source.need(offset, 2, "JPEG")
        if lead != 0xFF:
            raise _broken(f"the JPEG is damaged: no marker where one must be (at byte {offset})")
        if marker == 0xFF:
            offset += 1
            continue
        offset += 2
        if marker == 0xD9:
            break
        if marker in _JPEG_BARE:
            continue
        length = int.from_bytes(source.need(offset, 2, "JPEG"), "big")
        if length < 2 or offset + length > source.size:
            raise _cut("JPEG", source.size, "inside a segment")
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", source.need(offset + 3, 4, "JPEG"))
        if marker == 0xDC and not height:
            # A height that was not known in advance follows the first scan.
            height = int.from_bytes(source.need(offset + 2, 2, "JPEG"), "big")
        offset += length
        if marker == 0xDA:
            scanned = True
            offset = source.search(_JPEG_MARKER, offset)
        if offset < 0:
            raise _cut("JPEG", source.size, "before its end marker")
    if not scanned:
        raise _broken("the JPEG holds no image data")
    return _Shape(width, height)


def _check_webp(source: _Source) -> _Shape:
    """RIFF chunks up to the declared length (source: WebP container specification; RFC 6386, 9.1)."""
    end = int.from_bytes(source.need(4, 4, "WEBP"), "little") + 8
    if source.size < end:
        raise _cut("WEBP", source.size, f"before its {end} bytes are full")
    offset, canvas, image, frames = 12, None, None, 0
    while offset + 8 <= end:
        kind, length = struct.unpack("<4sI", source.need(offset, 8, "WEBP"))
        if offset + 8 + length > end:
            raise _broken("the WEBP is damaged: a chunk reaches beyond its end")
        body = source.read(offset + 8, min(length, 10))
        if kind == b"VP8X" and len(body) == 10:
            canvas = _Shape(*(int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7)))
        elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
            image = image or _Shape(*(side & 0x3FFF for side in struct.unpack("<HH", body[6:10])))
        elif kind == b"VP8L" and body[:1] == b"\x2f":
            bits = int.from_bytes(body[1:5], "little")
            image = image or _Shape((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        frames += kind == b"ANMF"
        offset += 8 + length + (length & 1)
    shape = canvas or image
    if shape is None or not (image or frames):
        raise _broken("the WEBP holds no image data")
    return _Shape(shape.width, shape.height, max(frames, 1))


def _check_gif(source: _Source) -> _Shape:
    """Blocks up to the trailer (source: GIF89a specification)."""
    width, height, flags = struct.unpack("<HHB", source.need(6, 5, "GIF"))
    offset, frames = 13 + _gif_table(flags), 0
    while (kind := source.need(offset, 1, "GIF")[0]) != 0x3B:
        if kind == 0x2C:
            frames += 1
            offset += 11 + _gif_table(source.need(offset + 9, 1, "GIF")[0])
        elif kind == 0x21:
            offset += 2
        else:
            raise _broken(f"the GIF is damaged: no block where one must be (at byte {offset})")
        while length := source.need(offset, 1, "GIF")[0]:
            offset += 1 + length
        offset += 1
    if not frames:
        raise _broken("the GIF holds no image data")
    return _Shape(width, height, frames)


def _gif_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _check_bmp(source: _Source) -> _Shape:
    """The pixels must be there: their own length where they are not packed, else the declared file length."""
    declared, _, start, header = struct.unpack("<IIII", source.need(2, 16, "BMP"))
    if header == 12:
        width, height, _, depth = struct.unpack("<HHHH", source.need(18, 8, "BMP"))
        packed = 0
    else:
        width, height, _, depth = struct.unpack("<iiHH", source.need(18, 12, "BMP"))
        packed = int.from_bytes(source.need(30, 4, "BMP"), "little") if header >= 40 else 0
    if width <= 0:
        raise _broken("the BMP declares no size")
    # A negative height means rows from the top; 0, 3 and 6 are the kinds of storage that do not pack pixels.
    end = start + (width * depth + 31) // 32 * 4 * abs(height) if packed in {0, 3, 6} else declared
    if source.size < end:
        raise _cut("BMP", source.size, f"before its {end} bytes are full")
    return _Shape(width, abs(height))


_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

_TIFF_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}

_TIFF_TAGS = {256, 257, 273, 279, 324, 325}  # width, height, then offsets and lengths of strips and of tiles

_TIFF_PAGES = 64

_TIFF_STRIPS = 1 << 18


def _check_tiff(source: _Source) -> _Shape:
    """The first pages' directories and the reach of its strips or tiles (source: TIFF 6.0; BigTIFF)."""
    head = source.need(0, 16, "TIFF")
    order, big = "<" if head[:1] == b"I" else ">", head[2:4] in {b"+\0", b"\0+"}
    at = struct.unpack_from(order + "Q", head, 8)[0] if big else struct.unpack_from(order + "I", head, 4)[0]
    first, seen = None, set[int]()
    while at and at not in seen and len(seen) < _TIFF_PAGES:
        seen.add(at)
        tags, at = _tiff_page(source, at, order, big=big)
        if not tags.get(256) or not tags.get(257):
            raise _broken("the TIFF declares no size")
        first = first or _Shape(tags[256][0], tags[257][0])
        starts, lengths = (tags.get(strips) or tags.get(tiles) or () for strips, tiles in ((273, 324), (279, 325)))
        if not starts or len(starts) != len(lengths):
            raise _broken("the TIFF holds no image data")
        if max(map(sum, zip(starts, lengths, strict=True))) > source.size:
            raise _cut("TIFF", source.size)
    if first is None:
        raise _broken("the TIFF holds no image")
    return first


def _tiff_page(source: _Source, at: int, order: str, *, big: bool) -> tuple[dict[int, tuple[int, ...]], int]:
    """The tags of one page that say its size and where its data lies, and the offset of the next page or 0."""
    count_format, entry_format, entry_size = ("Q", "HHQ", 20) if big else ("H", "HHI", 12)
    word = "Q" if big else "I"
    count = struct.unpack(order + count_format, source.need(at, struct.calcsize(count_format), "TIFF"))[0]
    if count > 65_535:
        raise _broken("the TIFF is damaged: its directory is too long")
    at += struct.calcsize(count_format)
    table = source.need(at, count * entry_size, "TIFF")
    tags = dict[int, tuple[int, ...]]()
    for entry in range(0, len(table), entry_size):
        tag, kind, values = struct.unpack_from(order + entry_format, table, entry)
        size = values * _TIFF_SIZES.get(kind, 0)
        inline = at + entry + (12 if big else 8)
        fits = size <= (8 if big else 4)
        where = inline if fits else struct.unpack(order + word, source.need(inline, 8 if big else 4, "TIFF"))[0]
        if where + size > source.size:
            raise _cut("TIFF", source.size)
        if tag not in _TIFF_TAGS or kind not in _TIFF_NUMBERS:
            continue
        if values > _TIFF_STRIPS:
            raise _broken("the TIFF is made of more parts than any real one")
        tags[tag] = struct.unpack(f"{order}{values}{_TIFF_NUMBERS[kind]}", source.need(where, size, "TIFF"))
    after = source.need(at + len(table), struct.calcsize(order + word), "TIFF")
    return tags, struct.unpack(order + word, after)[0]


def _check_boxes(source: _Source) -> _Shape:
    """HEIC, HEIF and AVIF: boxes to the end of the file (source: ISO/IEC 14496-12 and 23008-12).

    The size is that of the largest item, before any rotation: an image made of tiles is larger than each of them.
    """
    top = list(_boxes(source, 0, source.size))
    sizes, data = list[_Shape](), any(kind == b"mdat" for kind, _, _ in top)
    for kind, start, end in top:
        if kind != b"meta":
            continue
        for inner, inner_start, inner_end in _boxes(source, start + 4, end):
            data = data or inner == b"idat"
            if inner == b"iprp":
                sizes += _item_sizes(source, inner_start, inner_end)
    if not data or not sizes:
        raise _broken("the image holds no image data")
    largest = max(sizes, key=lambda shape: shape.width * shape.height)
    moving = any(kind == b"moov" for kind, _, _ in top)
    return _Shape(largest.width, largest.height, 2 if moving else 1)


def _item_sizes(source: _Source, start: int, end: int) -> Iterator[_Shape]:
    for kind, inner_start, inner_end in _boxes(source, start, end):
        if kind != b"ipco":
            continue
        for item, at, _ in _boxes(source, inner_start, inner_end):
            if item == b"ispe":
                yield _Shape(*struct.unpack(">II", source.need(at + 4, 8, "image")))


def _boxes(source: _Source, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each box's body between two offsets."""
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
            raise _broken(f"the image is damaged: a box has no length (at byte {start})")
        yield kind, body, stop
        start = stop


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
