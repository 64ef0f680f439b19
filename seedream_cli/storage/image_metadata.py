"""What of an image's file is the image, and what only tells of it: where and when it was made, by whom, with what.

The latter is found without decoding a pixel, as ranges of the file to leave out; what shows the image stays (colour
profiles, transparency, frames). Only a note that says how to turn the image is looked at, since leaving it out would
turn the image: whoever sends it has to turn it then.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Part = tuple[int, int] | bytes
"""A range of the file, or bytes in the place of some of its own."""

Readable = io.BufferedReader | io.BytesIO


@dataclass(frozen=True, slots=True)
class Bare:
    """An image without what only tells of it, its parts in order. `orientation` is EXIF's number, 1 for upright.

    `parts_with_note` are the same parts with nothing but that number left in, for one that cannot be turned.
    """

    parts: tuple[Part, ...]
    parts_with_note: tuple[Part, ...]
    orientation: int = 1


class _Cutter:
    """Collects what stays of a file, and what the notes that go say of its orientation."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        self.kept = list[Part]()
        self.note_at: int | None = None
        self.by_exif = self.by_xmp = 0

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes, or ValueError where the file ends before."""
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) < length:
            raise ValueError("the file is cut")
        return data

    def find(self, pattern: re.Pattern[bytes], offset: int) -> int:
        """Where the two-byte pattern first matches at or after the offset."""
        self._file.seek(offset)
        window = self._file.read(_STEP)
        while len(window) > 1:
            if found := pattern.search(window):
                return offset + found.start()
            offset += len(window) - 1
            self._file.seek(offset)
            window = self._file.read(_STEP)
        raise ValueError("the file is cut")

    def keep(self, start: int, end: int) -> None:
        """A range stays."""
        last = self.kept[-1] if self.kept else b""
        if isinstance(last, tuple) and last[1] == start and self.note_at != len(self.kept):
            self.kept[-1] = (last[0], end)
        else:
            self.kept.append((start, end))

    def put(self, data: bytes) -> None:
        """Bytes take the place of some of the file's."""
        self.kept.append(data)

    def hear(self, *, exif: bytes = b"", xmp: bytes = b"") -> None:
        """A note goes; what it says of the orientation is kept in mind, and where it stood."""
        told = read_orientation(exif) if exif else 0
        said = _XMP_ORIENTATION.search(xmp) if xmp else None
        self.by_exif = self.by_exif or told
        self.by_xmp = self.by_xmp or (int(said[1]) if said else 0)
        if (told or said) and self.note_at is None:
            self.note_at = len(self.kept)

    def finish(self, note: Callable[[int], bytes]) -> Bare:
        """All that stays. `note` writes the orientation as this format does."""
        orientation = self.by_exif or self.by_xmp or 1
        parts = tuple(self.kept)
        if orientation == 1 or self.note_at is None:
            return Bare(parts, parts, 1)
        return Bare(parts, (*parts[: self.note_at], note(orientation), *parts[self.note_at :]), orientation)


_STEP = 1 << 18

_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")

_NOTE_MOST = 1 << 16


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


def find_bare(file: Readable, kind: str) -> Bare | None:
    """The image's own parts; None for a format whose notes cannot be cut out. ValueError where it is damaged."""
    cut = _CUTS.get(kind)
    if cut is None:
        return None
    try:
        return cut(_Cutter(file))
    except struct.error as error:
        raise ValueError("the file is damaged") from error


# --- JPEG (ITU-T T.81, annex B; the segments' owners by their first bytes) --------------------------------------------

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)

_BARE = {0x01, *range(0xD0, 0xD9)}


def _cut_jpeg(cutter: _Cutter) -> Bare:
    offset = 2
    cutter.keep(0, 2)
    while True:
        marker = cutter.read(offset, 2)[1]
        if marker == 0xFF:
            offset += 1
            continue
        if marker == 0xD9:
            # What follows the end belongs to nobody who looks at the image: a film, further images.
            cutter.keep(offset, offset + 2)
            return cutter.finish(_jpeg_note)
        end = offset + 2
        if marker not in _BARE:
            end += int.from_bytes(cutter.read(offset + 2, 2), "big")
            _take_segment(cutter, marker, offset, end)
        if marker == 0xDA:
            scan = cutter.find(_MARKER, end)
            cutter.keep(end, scan)
            end = scan
        offset = end


def _take_segment(cutter: _Cutter, marker: int, start: int, end: int) -> None:
    """Keep a segment, or leave it out where it only tells of the image."""
    if marker != 0xFE and not 0xE0 <= marker <= 0xEF:
        cutter.keep(start, end)
        return
    body = cutter.read(start + 4, end - start - 4)
    if marker == 0xE0 and body.startswith(b"JFIF\0"):
        if any(body[12:14]):
            cutter.put(b"\xff\xe0\0\x10" + body[:12] + b"\0\0")  # without its small image
        else:
            cutter.keep(start, end)
    elif (marker == 0xE2 and body.startswith(b"ICC_PROFILE\0")) or (marker == 0xEE and body.startswith(b"Adobe")):
        cutter.keep(start, end)
    elif marker == 0xE1 and body.startswith(b"Exif\0"):
        cutter.hear(exif=body[6:])
    elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/"):
        cutter.hear(xmp=body)


def _jpeg_note(orientation: int) -> bytes:
    body = b"Exif\0\0" + _exif(orientation)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


# --- PNG (third edition, 11 and 12) -----------------------------------------------------------------------------------

_PNG_KEPT = {
    *(b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"mDCV", b"cLLI", b"sBIT", b"bKGD", b"hIST", b"tRNS", b"pHYs"),
    *(b"sPLT", b"sTER", b"acTL", b"fcTL", b"fdAT"),
}

PNG_COLOURS = {b"gAMA", b"cHRM", b"sRGB", b"cICP"}
"""What says how the numbers of the pixels are to be seen, beside the profile."""


def png_chunks(read: Callable[[int, int], bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of every chunk up to the last."""
    offset, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", read(offset, 8))
        yield kind, offset, offset + 12 + length
        offset += 12 + length


def _cut_png(cutter: _Cutter) -> Bare:
    cutter.keep(0, 8)
    for kind, start, end in png_chunks(cutter.read):
        # A capital first letter: no reader can do without it.
        if kind[:1].isupper() or kind in _PNG_KEPT:
            cutter.keep(start, end)
        elif kind == b"eXIf":
            cutter.hear(exif=cutter.read(start + 8, min(end - start - 12, _NOTE_MOST)))
        elif kind == b"iTXt":
            cutter.hear(xmp=cutter.read(start + 8, min(end - start - 12, _NOTE_MOST)))
    return cutter.finish(_png_note)


def _png_note(orientation: int) -> bytes:
    body = b"eXIf" + _exif(orientation)
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


# --- WEBP (container specification) -----------------------------------------------------------------------------------

_WEBP_KEPT = {b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}

_HAS_EXIF, _HAS_XMP = 0x08, 0x04


def _cut_webp(cutter: _Cutter) -> Bare:
    """The same file with its length and its list of contents put right."""
    end, offset = int.from_bytes(cutter.read(4, 4), "little") + 8, 12
    header: bytes | None = None
    while offset + 8 <= end:
        kind, length = struct.unpack("<4sI", cutter.read(offset, 8))
        stop = min(offset + 8 + length + (length & 1), end)
        if kind == b"VP8X" and header is None:
            header = cutter.read(offset, stop - offset)
        elif kind in _WEBP_KEPT:
            cutter.keep(offset, stop)
        elif kind == b"EXIF":
            body = cutter.read(offset + 8, min(length, _NOTE_MOST))
            cutter.hear(exif=body.removeprefix(b"Exif\0\0"))
        elif kind == b"XMP ":
            cutter.hear(xmp=cutter.read(offset + 8, min(length, _NOTE_MOST)))
        offset += 8 + length + (length & 1)
    bare = cutter.finish(_webp_note)
    return Bare(
        _webp(bare.parts, header, 0, cutter),
        _webp(bare.parts_with_note, header, _HAS_EXIF if bare.orientation > 1 else 0, cutter),
        bare.orientation,
    )


def _webp_note(orientation: int) -> bytes:
    body = _exif(orientation)
    return b"EXIF" + struct.pack("<I", len(body)) + body


def _webp(parts: tuple[Part, ...], header: bytes | None, flag: int, cutter: _Cutter) -> tuple[Part, ...]:
    """Parts with what stands in front of them; those of a file that needs no change are the file."""
    length = 4 + sum(map(part_length, parts)) + len(header or b"")
    if header is not None:
        kept = header[8] & ~(_HAS_EXIF | _HAS_XMP) | flag
        if header[8] == kept and length + 8 == cutter.size:
            return ((0, cutter.size),)
        header = header[:8] + bytes((kept,)) + header[9:]
    elif length + 8 == cutter.size:
        return ((0, cutter.size),)
    return (b"RIFF" + struct.pack("<I", length) + b"WEBP" + (header or b""), *parts)


# --- GIF (89a) --------------------------------------------------------------------------------------------------------

_GIF_KEPT = (b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012")


def _cut_gif(cutter: _Cutter) -> Bare:
    offset = 13 + _gif_table(cutter.read(10, 1)[0])
    cutter.keep(0, offset)
    while True:
        start, kind = offset, cutter.read(offset, 1)[0]
        if kind == 0x3B:
            cutter.keep(start, start + 1)
            return cutter.finish(lambda _: b"")
        is_note = False
        if kind == 0x2C:
            offset += 11 + _gif_table(cutter.read(offset + 9, 1)[0])
        else:
            label = cutter.read(offset + 1, 1)[0]
            is_note = label == 0xFE or (label == 0xFF and cutter.read(offset + 3, 11) not in _GIF_KEPT)
            offset += 2
        while length := cutter.read(offset, 1)[0]:
            offset += 1 + length
        offset += 1
        if not is_note:
            cutter.keep(start, offset)


def _gif_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


# --- BMP and TIFF -----------------------------------------------------------------------------------------------------


def _keep_all(cutter: _Cutter) -> Bare:
    whole = ((0, cutter.size),)
    return Bare(whole, whole)


_TIFF_PLAIN = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 282, 283, 284, 292, 293, 296, 297, 301),
    *(317, 318, 319, 320, 321, 322, 323, 324, 325, 332, 333, 334, 336, 338, 339, 340, 341, 347, 529, 530, 531, 532),
    34675,
}
"""Tags that a reader needs for the pixels and their colours."""


def is_plain_tiff(file: Readable) -> bool:
    """Whether a TIFF of the usual kind holds nothing but the image, upright; one with more pages does not count."""
    cutter = _Cutter(file)
    head = cutter.read(0, 8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None:
        return False
    at = struct.unpack_from(f"{order}I", head, 4)[0]
    count = struct.unpack(f"{order}H", cutter.read(at, 2))[0]
    table = cutter.read(at + 2, 12 * count + 4)
    for entry in range(0, 12 * count, 12):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", table, entry)
        if tag not in _TIFF_PLAIN and not (tag == _ORIENTATION and value == 1):
            return False
    return not any(table[-4:])


_CUTS: dict[str, Callable[[_Cutter], Bare]] = {
    "jpeg": _cut_jpeg,
    "png": _cut_png,
    "webp": _cut_webp,
    "gif": _cut_gif,
    "bmp": _keep_all,
}


# --- parts ------------------------------------------------------------------------------------------------------------


def part_length(part: Part) -> int:
    """The bytes of a part."""
    return len(part) if isinstance(part, bytes) else part[1] - part[0]


def read_parts(file: Readable, parts: tuple[Part, ...], step: int = _STEP) -> Iterator[bytes]:
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
