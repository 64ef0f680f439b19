"""Image files without their metadata: where and when an image was made, by whom, with what.

Metadata is found without decoding a pixel, as ranges of the file to leave out; what shows the image stays (colour
profiles, transparency, frames). Only the EXIF and XMP orientation is read, since leaving it out would turn the image:
whoever sends it has to turn it then.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .image_containers import GIF_EXTENSION, Readable, Source, gif_blocks, jpeg_segments, png_chunks, webp_chunks

FilePart = tuple[int, int] | bytes
"""A range of the file, or bytes in the place of some of its own."""


@dataclass(frozen=True, slots=True)
class Stripped:
    """An image without metadata, its parts in order. `orientation` is EXIF's number, 1 for upright.

    `parts_with_orientation` are the same parts and that number, for an image that cannot be turned.
    """

    parts: tuple[FilePart, ...]
    parts_with_orientation: tuple[FilePart, ...]
    orientation: int = 1


def strip_metadata(file: Readable, kind: str) -> Stripped | None:
    """The image's own parts; None for a format whose metadata cannot be cut out. LinkError where it is damaged."""
    strip = _FORMATS.get(kind)
    return None if strip is None else strip(Source(file), _Parts())


class _Parts:
    """Collects what stays of a file, and the orientation in the metadata that does not."""

    def __init__(self) -> None:
        self.kept = list[FilePart]()
        self._orientation_at: int | None = None
        self._by_exif = self._by_xmp = 0

    def keep(self, start: int, end: int) -> None:
        """A range stays."""
        last = self.kept[-1] if self.kept else b""
        if isinstance(last, tuple) and last[1] == start and self._orientation_at != len(self.kept):
            self.kept[-1] = (last[0], end)
        else:
            self.kept.append((start, end))

    def put(self, data: bytes) -> None:
        """Bytes take the place of some of the file's."""
        self.kept.append(data)

    def drop(self, *, exif: bytes = b"", xmp: bytes = b"") -> None:
        """Metadata goes; its orientation, and where it stood, are remembered."""
        by_exif = read_orientation(exif) if exif else 0
        by_xmp = _XMP_ORIENTATION.search(xmp) if xmp else None
        self._by_exif = self._by_exif or by_exif
        self._by_xmp = self._by_xmp or (int(by_xmp[1]) if by_xmp else 0)
        if (by_exif or by_xmp) and self._orientation_at is None:
            self._orientation_at = len(self.kept)

    def finish(self, write: Callable[[int], bytes]) -> Stripped:
        """All that stays. `write` makes the orientation's bytes in this format."""
        orientation, at = self._by_exif or self._by_xmp or 1, self._orientation_at
        parts = tuple(self.kept)
        if orientation == 1 or at is None:
            return Stripped(parts, parts)
        return Stripped(parts, (*parts[:at], write(orientation), *parts[at:]), orientation)


_STEP = 1 << 18

_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")

_METADATA_MOST = 1 << 16


def read_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block (TIFF's form), 0 where there is none or the block is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 10:
        return 0
    at = struct.unpack_from(f"{order}I", exif, 4)[0]
    if at + 2 > len(exif):
        return 0
    count = struct.unpack_from(f"{order}H", exif, at)[0]
    for entry in range(at + 2, min(at + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, values, value = struct.unpack_from(f"{order}HHIH", exif, entry)
        if tag == _ORIENTATION and kind == 3 and values == 1:
            return int(value) if 1 <= value <= 8 else 0
    return 0


_ORIENTATION = 0x0112


def _exif(orientation: int) -> bytes:
    """An EXIF block with nothing in it but the orientation."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", _ORIENTATION, 3, 1, orientation, 0) + bytes(4)


# --- JPEG (the segments' owners by their first bytes) -----------------------------------------------------------------


def _strip_jpeg(source: Source, parts: _Parts) -> Stripped:
    """What follows the end marker is no part of the image: a film, further images."""
    parts.keep(0, 2)
    for kind, start, content, end in jpeg_segments(source):
        if kind == b"\xfe" or b"\xe0" <= kind <= b"\xef":
            _take_segment(parts, kind, start, source.read(content, end - content))
        else:
            parts.keep(start, end)
    return parts.finish(_jpeg_orientation)


def _take_segment(parts: _Parts, kind: bytes, start: int, body: bytes) -> None:
    """Keep a comment or an application's segment, or leave it out where it is metadata."""
    if kind == b"\xe0" and body.startswith(b"JFIF\0"):
        if any(body[12:14]):
            parts.put(b"\xff\xe0\0\x10" + body[:12] + b"\0\0")  # without its small image
        else:
            parts.keep(start, start + 4 + len(body))
    elif (kind == b"\xe2" and body.startswith(b"ICC_PROFILE\0")) or (kind == b"\xee" and body.startswith(b"Adobe")):
        parts.keep(start, start + 4 + len(body))
    elif kind == b"\xe1" and body.startswith(b"Exif\0"):
        parts.drop(exif=body[6:])
    elif kind == b"\xe1" and body.startswith(b"http://ns.adobe.com/xap/"):
        parts.drop(xmp=body)


def _jpeg_orientation(orientation: int) -> bytes:
    body = b"Exif\0\0" + _exif(orientation)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


# --- PNG (third edition, 11 and 12) -----------------------------------------------------------------------------------

_PNG_KEPT = {
    *(b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"mDCV", b"cLLI", b"sBIT", b"bKGD", b"hIST", b"tRNS", b"pHYs"),
    *(b"sPLT", b"sTER", b"acTL", b"fcTL", b"fdAT"),
}


def _strip_png(source: Source, parts: _Parts) -> Stripped:
    parts.keep(0, 8)
    for kind, start, content, end in png_chunks(source):
        # A capital first letter: no reader can do without it.
        if kind[:1].isupper() or kind in _PNG_KEPT:
            parts.keep(start, end)
        elif kind in {b"eXIf", b"iTXt"}:
            body = source.read(content, min(end - content - 4, _METADATA_MOST))
            parts.drop(exif=body if kind == b"eXIf" else b"", xmp=body if kind == b"iTXt" else b"")
    return parts.finish(_png_orientation)


def _png_orientation(orientation: int) -> bytes:
    body = b"eXIf" + _exif(orientation)
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


# --- WEBP (container specification) -----------------------------------------------------------------------------------

_WEBP_KEPT = {b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}

_HAS_EXIF, _HAS_XMP = 0x08, 0x04


def _strip_webp(source: Source, parts: _Parts) -> Stripped:
    """The same file with its length and the flags in its first chunk corrected."""
    header = b""
    for kind, start, content, end in webp_chunks(source):
        if kind == b"VP8X" and not header:
            header = source.read(start, end - start)
        elif kind in _WEBP_KEPT:
            parts.keep(start, end)
        elif kind in {b"EXIF", b"XMP "}:
            body = source.read(content, min(end - content, _METADATA_MOST)).removeprefix(b"Exif\0\0")
            parts.drop(exif=body if kind == b"EXIF" else b"", xmp=body if kind == b"XMP " else b"")
    stripped = parts.finish(_webp_orientation)
    flag = _HAS_EXIF if stripped.orientation > 1 else 0
    return Stripped(
        _webp(stripped.parts, header, 0, source.size),
        _webp(stripped.parts_with_orientation, header, flag, source.size),
        stripped.orientation,
    )


def _webp_orientation(orientation: int) -> bytes:
    body = _exif(orientation)
    return b"EXIF" + struct.pack("<I", len(body)) + body


def _webp(parts: tuple[FilePart, ...], header: bytes, flag: int, size: int) -> tuple[FilePart, ...]:
    """Parts with what stands in front of them; those of a file that needs no change are the file."""
    length = 4 + sum(map(part_length, parts)) + len(header)
    flags = header[8:9] and bytes((header[8] & ~(_HAS_EXIF | _HAS_XMP) | flag,))
    if header[8:9] == flags and length + 8 == size:
        return ((0, size),)
    return (b"RIFF" + struct.pack("<I", length) + b"WEBP" + header[:8] + flags + header[9:], *parts)


# --- GIF and BMP ------------------------------------------------------------------------------------------------------

_GIF_KEPT = (b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012")


def _strip_gif(source: Source, parts: _Parts) -> Stripped:
    for kind, start, content, end in gif_blocks(source):
        label = source.read(content, 1) if kind == GIF_EXTENSION else b""
        if label != b"\xfe" and (label != b"\xff" or source.read(content + 2, 11) in _GIF_KEPT):
            parts.keep(start, end)
    return parts.finish(lambda _: b"")


def _keep_all(source: Source, parts: _Parts) -> Stripped:
    parts.keep(0, source.size)
    return parts.finish(lambda _: b"")


_FORMATS: dict[str, Callable[[Source, _Parts], Stripped]] = {
    "jpeg": _strip_jpeg,
    "png": _strip_png,
    "webp": _strip_webp,
    "gif": _strip_gif,
    "bmp": _keep_all,
}


# --- parts ------------------------------------------------------------------------------------------------------------


def part_length(part: FilePart) -> int:
    """The bytes of a part."""
    return len(part) if isinstance(part, bytes) else part[1] - part[0]


def read_parts(file: Readable, parts: tuple[FilePart, ...], step: int = _STEP) -> Iterator[bytes]:
    """The bytes of the parts, in pieces."""
    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        file.seek(part[0])
        left = part[1] - part[0]
        while left:
            piece = file.read(min(step, left))
            if not piece:
                raise ValueError("the file is cut")
            left -= len(piece)
            yield piece
