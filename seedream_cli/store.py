"""The disk room for pictures: what bytes are, what a file is called, and how a picture gets its final name.

A picture is written to a part file in its own folder, checked to the last byte of its container, and only then
linked to its final name. A file with a final name is therefore whole, and no existing file is replaced unasked.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import string
import struct
import sys
import time
import unicodedata
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from .errors import FileError, InputError, LinkError, Problem
from .results import Blob

if sys.platform != "win32":
    import fcntl

IfExists = Literal["rename", "skip", "error", "overwrite"]

SUFFIXES: dict[str, str] = {
    "jpeg": ".jpg",
    "png": ".png",
    "webp": ".webp",
    "gif": ".gif",
    "bmp": ".bmp",
    "tiff": ".tiff",
    "heic": ".heic",
    "heif": ".heif",
    "avif": ".avif",
}
"""The suffix a picture's own bytes give its file. Nothing a server says can add to these."""

_SPELLINGS = {suffix: name for name, suffix in SUFFIXES.items()} | {".jpeg": "jpeg", ".jfif": "jpeg", ".tif": "tiff"}

MAX_SIDE = 20_000
MAX_PIXELS = 200_000_000
"""No Seedream model draws more than 6240 pixels a side; a header that claims far more is a bomb."""

_WINDOW = 1 << 18
_MAX_READS = 500_000
_DAY_S = 86_400
_ROOM_BYTES = 8 << 20


# --- what bytes are -------------------------------------------------------------------------------------------------


def sniff(head: bytes) -> str:
    """The format of a picture by its first bytes (64 suffice), or "" for anything else; SVG is never a picture."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0\x08\0", b"MM\0+\0\x08")):
        return "tiff"
    # Two letters are too few to tell a BMP by: its reserved words are zero and its second header has a known size.
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and head[14:18] in _BMP_HEADERS:
        return "bmp"
    return _sniff_boxes(head)


_BMP_HEADERS = {struct.pack("<I", size) for size in (12, 16, 40, 52, 56, 64, 108, 124)}
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}


def _sniff_boxes(head: bytes) -> str:
    if head[4:8] != b"ftyp" or len(head) < 16:
        return ""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major, others = head[8:12], {head[at : at + 4] for at in range(16, end - 3, 4)}
    if major in _AVIF_BRANDS:
        return "avif"
    if major in _HEIC_BRANDS:
        return "heic"
    if major not in {b"mif1", b"msf1"}:
        return ""
    if others & _AVIF_BRANDS:
        return "avif"
    return "heic" if others & _HEIC_BRANDS else "heif"


def describe(head: bytes) -> str:
    """What these first bytes are, in words that end a sentence: "an HTML page", "a PNG picture", "unknown bytes"."""
    if not head:
        return "no bytes at all"
    if name := sniff(head):
        return f"{'an' if name == 'avif' else 'a'} {name.upper()} picture"
    text = head[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if text.startswith((b"<svg", b"<?xml", b"<!doctype svg")) and b"<svg" in text:
        return "an SVG drawing"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML error"
    return "JSON" if text.startswith((b"{", b"[")) else "unknown bytes"


_REFUSED_SIGNATURES = {
    "SignatureDoesNotMatch",
    "InvalidSignature",
    "AuthenticationFailed",
    "AuthorizationQueryParametersError",
    "InvalidAuthorization",
}


def explain_store_error(head: bytes, status: int) -> tuple[Literal["expired", "download"], str]:
    """Why an object store gave no picture: the error's kind and a message, from its XML or JSON body.

    Volcengine's store answers a link without its whole signature with AccessDenied and EC 0003-00000015; S3 and its
    kin say "Request has expired" or SignatureDoesNotMatch. Only the code and the message are repeated: the rest of
    such a body may hold the signature itself.
    """
    code, message, detail = (_store_field(head, name) for name in ("Code", "Message", "EC"))
    said = f"HTTP {status}" + (f", {code}" if code else "") + (f": {message}" if message else "")
    if "expired" in f"{code} {message}".lower() or b"not valid in the specified time frame" in head.lower():
        return "expired", f"the link has expired ({said})"
    if detail == "0003-00000015" or code in _REFUSED_SIGNATURES:
        return "download", f"the store refused the link's signature, which was cut or altered, or is too old ({said})"
    if code in {"NoSuchKey", "NoSuchBucket"} or status in {404, 410}:
        return "download", f"the store has no such picture any more ({said})"
    if code:
        return "download", f"the store refused the picture ({said})"
    return "download", f"the store answered HTTP {status} with {describe(head)} instead of a picture"


def _store_field(head: bytes, name: str) -> str:
    # The body may be cut anywhere, so that no parser would take it.
    wanted = name.encode()
    found = re.search(rb'<%b>\s*([^<]*)|"%b"\s*:\s*"([^"]*)' % (wanted, wanted), head[:4096])
    return (found[1] or found[2] or b"").decode("utf-8", "replace").strip()[:120] if found else ""


# --- whole pictures -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What a whole picture's container says: pixels, bytes, the sha256 of all of it, and whether it has frames."""

    format: str
    width: int
    height: int
    bytes: int
    sha256: str
    animated: bool = False


@dataclass(frozen=True, slots=True)
class _Shape:
    """Width and height in pixels, and the number of frames."""

    width: int
    height: int
    frames: int = 1


_Readable = io.BufferedReader | io.BytesIO


class _Source:
    """Bounded reads of a picture. The number of reads is capped, so that no crafted file costs minutes."""

    def __init__(self, file: _Readable) -> None:
        self._file = file
        self._reads = 0
        self.size = file.seek(0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the end of the file."""
        self._reads += 1
        if self._reads > _MAX_READS:
            raise _broken("the picture is made of more parts than any real one")
        self._file.seek(offset)
        return self._file.read(length)

    def need(self, offset: int, length: int, name: str) -> bytes:
        """Exactly `length` bytes, or an error that calls the picture cut."""
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


def inspect(path: Path) -> Facts:
    """The facts of the picture at `path`, its container walked to the end in bounded memory; no pixel is decoded.

    Raises `LinkError` (kind "download", retryable) saying what is wrong with it, `FileError` where it cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(f"cannot read {path}: {_reason(error)}") from error
    with file:
        return _inspect(file)


def inspect_bytes(data: bytes) -> Facts:
    """As `inspect`, for a picture in memory."""
    return _inspect(io.BytesIO(data))


def _inspect(file: _Readable, sha256: str = "") -> Facts:
    source = _Source(file)
    head = source.read(0, 4096)
    name = sniff(head)
    if not name:
        raise _broken(f"not a picture but {describe(head)} ({source.size} bytes)")
    shape = _CHECKS[name](source)
    if not shape.width or not shape.height:
        raise _broken(f"the {name.upper()} declares no size")
    if max(shape.width, shape.height) > MAX_SIDE or shape.width * shape.height > MAX_PIXELS:
        raise _broken(f"the {name.upper()} declares {shape.width}x{shape.height} pixels, more than is taken")
    if not sha256:
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Facts(name, shape.width, shape.height, source.size, sha256, shape.frames > 1)


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
        raise _broken("the PNG holds no picture data")
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
        raise _broken("the JPEG holds no picture data")
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
        raise _broken("the WEBP holds no picture data")
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
        raise _broken("the GIF holds no picture data")
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
            raise _broken("the TIFF holds no picture data")
        if max(map(sum, zip(starts, lengths, strict=True))) > source.size:
            raise _cut("TIFF", source.size)
    if first is None:
        raise _broken("the TIFF holds no picture")
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

    The size is that of the largest item, before any rotation: a picture made of tiles is larger than each of them.
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
        raise _broken("the picture holds no picture data")
    largest = max(sizes, key=lambda shape: shape.width * shape.height)
    moving = any(kind == b"moov" for kind, _, _ in top)
    return _Shape(largest.width, largest.height, 2 if moving else 1)


def _item_sizes(source: _Source, start: int, end: int) -> Iterator[_Shape]:
    for kind, inner_start, inner_end in _boxes(source, start, end):
        if kind != b"ipco":
            continue
        for item, at, _ in _boxes(source, inner_start, inner_end):
            if item == b"ispe":
                yield _Shape(*struct.unpack(">II", source.need(at + 4, 8, "picture")))


def _boxes(source: _Source, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each box's body between two offsets."""
    while start < end:
        size, kind = struct.unpack(">I4s", source.need(start, 8, "picture"))
        body = start + 8
        if size == 1:
            size = int.from_bytes(source.need(body, 8, "picture"), "big")
            body += 8
        stop = start + size if size else end
        if stop > end:
            raise _cut("picture", source.size)
        if stop < body:
            raise _broken(f"the picture is damaged: a box has no length (at byte {start})")
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


# --- names ----------------------------------------------------------------------------------------------------------

FIELDS = ("slug", "id", "index", "row", "model", "seed", "date", "hash")
"""The fields every name template may use; a table's columns come on top."""

_NAMELESS = "image"
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"} | {
    device + digit for device in ("com", "lpt") for digit in "0123456789¹²³"
}
_UNPORTABLE = frozenset('<>:"/\\|?*%')
_PADDING = re.compile(r"0([1-9]|1[0-9]|20)")


def slug(text: str, limit: int = 60) -> str:
    """A prompt as part of a file name: letters and digits of every script, words joined by "-", at most `limit` bytes.

    Never empty: a text without letters gives "image".
    """
    short = ""
    for word in _words(text):
        longer = f"{short}-{word}" if short else word
        if len(longer.encode()) <= limit:
            short = longer
            continue
        # Scripts without spaces have words as long as sentences: those are cut inside rather than left out.
        return short if len(short.encode()) >= limit // 2 else _shorten(longer, limit).strip("-") or _NAMELESS
    return short or _NAMELESS


def _words(text: str) -> Iterator[str]:
    word = ""
    for char in unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()):
        category = unicodedata.category(char)[0]
        # A mark belongs to the letter before it; on its own it is no word.
        if category in "LN" or (category == "M" and word):
            word += char
        elif char not in "'’" and word:
            yield word
            word = ""
    if word:
        yield word


def _shorten(text: str, limit: int) -> str:
    """The longest start of `text` of at most `limit` UTF-8 bytes that does not part a letter from its marks."""
    short = text.encode()[:limit].decode("utf-8", "ignore")
    if len(short) == len(text):
        return text
    end = len(short)
    while end > max(0, len(short) - 8) and unicodedata.combining(text[end]):
        end -= 1
    return short[:end] if end and not unicodedata.combining(text[end]) else short


def clean_name(stem: str, limit: int = 150) -> str:
    """One part of a path, safe on Linux, macOS and Windows, NFC, at most `limit` bytes; never empty, idempotent.

    Signs that are special somewhere, control, format and unassigned characters become "_"; no leading dot (hidden),
    dash (an option) or tilde (a home), no trailing dot or space, no name that Windows keeps for a device.
    """
    text = unicodedata.normalize("NFC", stem.encode("utf-8", "replace").decode())
    text = re.sub("_+", "_", "".join(map(_portable, text))).lstrip(" .-~").rstrip(" .")
    text = _shorten(text, limit).rstrip(" .")
    if not text.strip("_ ."):
        return _NAMELESS
    return f"_{text}" if text.split(".")[0].strip().casefold() in _RESERVED else text


def _portable(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Zs":
        return " "
    return "_" if char in _UNPORTABLE or category[0] == "C" or category in {"Zl", "Zp"} else char


def check_template(template: str, known: Collection[str]) -> list[Problem]:
    """Everything wrong with a name template whose fields may be `known`: "{row:03}-{slug}" with "/" for folders.

    A field may be padded with zeros ("{index:03}") and nothing else; "{{" and "}}" are braces.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        return [_template_problem(template, str(error).lower(), "write {{ and }} for braces")]
    problems = []
    for _, name, padding, conversion in pieces:
        if name is None:
            continue
        if name not in known:
            problems.append(_unknown_field(name, known))
        if conversion or (padding and not _PADDING.fullmatch(padding)):
            problems.append(_template_problem(template, f"{{{name}}} has a format", "only {index:03} is understood"))
    parts = "".join(literal + ("x" if name is not None else "") for literal, name, _, _ in pieces).split("/")
    if any(part.strip() in {"", ".", ".."} for part in parts):
        hint = 'each part between "/" needs a name; the folder itself is given with --output'
        problems.append(_template_problem(template, "it does not stay inside the output folder", hint))
    if Path(parts[-1]).suffix.lower() in _SPELLINGS:
        message = f"the name template ends in {Path(parts[-1]).suffix}, which will be doubled"
        hint = "leave it out: the suffix comes from the picture's own bytes"
        problems.append(Problem("name", message, hint, severity="warning"))
    return problems


def _template_problem(template: str, message: str, hint: str) -> Problem:
    return Problem("name", f'bad name template "{template}": {message}', hint)


def _unknown_field(name: str, known: Collection[str]) -> Problem:
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(f'{{{field}}}' for field in near)}? " if near else ""
    fields = " ".join(f"{{{field}}}" for field in known)
    return Problem("name", f"unknown field {{{name}}} in the name template", f"{guess}fields: {fields}")


def render_name(template: str, fields: Mapping[str, str]) -> str:
    """The path a template gives, relative and without suffix, every part cleaned; a value never adds a folder.

    Raises `InputError` with all that `check_template` finds.
    """
    if errors := [problem for problem in check_template(template, fields) if problem.severity == "error"]:
        raise InputError(errors)
    text = ""
    for literal, name, padding, _ in string.Formatter().parse(template):
        value = "" if name is None else re.sub(r"[/\\]", "_", fields[name])
        text += literal + (value.zfill(int(padding)) if padding and value.isdecimal() else value)
    return "/".join(map(clean_name, text.split("/")))


# --- targets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where one picture goes: its folder, its name, and the suffix the user typed, "" where the bytes alone decide."""

    folder: Path
    stem: str
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What `--output`, `--name` and `--if-exists` add up to. With `stdout` the folder is for temporary files."""

    folder: Path
    if_exists: IfExists
    pictures: int
    template: str | None = None
    file: Path | None = None
    stdout: bool = False

    def place(self, fields: Mapping[str, str], *, number: int = 1, of: int = 1, default: str = "{slug}") -> Place:
        """The place of picture `number` (from 1) of `of`; `default` is the template where the user gave none.

        Where several pictures would share a name, it gets "-1", "-2", … at its end.
        """
        if self.file is not None:
            stem = self.file.stem if max(of, self.pictures) <= 1 else f"{self.file.stem}-{number}"
            return Place(self.folder, stem, self.file.suffix)
        template = self.template or default
        path = Path(render_name(template, {**fields, "index": str(number)}))
        numbered = of <= 1 or any(name == "index" for _, name, _, _ in string.Formatter().parse(template))
        return Place(self.folder / path.parent, path.name if numbered else f"{path.name}-{number}")

    def prepare(self, places: Iterable[Place] = ()) -> None:
        """Before anything is paid: makes the folders, proves that they can be written, refuses names that are taken.

        `places` are those known in advance; an explicit file needs none. Raises `FileError` (nothing was sent) for
        the disk and `InputError` for every name that exists while `--if-exists` is "error".
        """
        if self.file is not None:
            places = [self.place({}, number=number, of=self.pictures) for number in range(1, self.pictures + 1)]
        taken, proved = list[Path](), set[Path]()
        for place in [Place(self.folder, ""), *places]:
            if place.folder not in proved:
                _make_folder(self.folder, place.folder)
                _prove_room(place.folder)
                proved.add(place.folder)
            if place.stem and self.if_exists == "error" and (path := existing(place)):
                taken.append(path)
        if taken:
            hint = "--if-exists rename keeps both, skip leaves the old one, overwrite replaces it"
            raise InputError([Problem("output", f"{path} exists already", hint) for path in taken])


def existing(place: Place) -> Path | None:
    """The file that holds this place's name already: under the suffix typed, or under any picture's suffix."""
    suffixes = (place.suffix,) if place.suffix else _SPELLINGS
    paths = (place.folder / f"{place.stem}{suffix}" for suffix in suffixes)
    # A dangling link takes a name too, though exists() is blind to it.
    return next((path for path in paths if os.path.lexists(path)), None)


def plan_output(
    output: str | None, *, pictures: int, if_exists: IfExists | None = None, template: str | None = None
) -> Target:
    """Reads `--output`: a folder, a file named by a picture's suffix, "-" for standard output, None for here.

    Looks at the disk but changes nothing. For an explicit file `template` is not used. Raises `InputError`.
    """
    if if_exists is not None and if_exists not in get_args(IfExists):
        hint = f"one of {', '.join(get_args(IfExists))}"
        raise InputError([Problem("if_exists", f'unknown value "{if_exists}"', hint)])
    if output == "-":
        return _plan_stdout(pictures, if_exists)
    if output is not None and (not output.strip() or "\0" in output):
        raise InputError([Problem("output", "the output path is empty or holds a NUL", "give a folder or a file")])
    path = Path(output or ".")
    if output is None or output.endswith(tuple(filter(None, ("/", os.sep, os.altsep)))) or _is_folder(path):
        return Target(path, if_exists or "rename", pictures, template)
    if path.suffix.lower() in _SPELLINGS:
        return Target(path.parent, if_exists or "error", pictures, file=path)
    if os.path.lexists(path):
        raise InputError([Problem("output", f"{path} is a file, but not named as a picture", _NAME_HINT)])
    if path.suffix:
        raise InputError([Problem("output", f"{path.suffix} is no picture's suffix (in {path})", _NAME_HINT)])
    return Target(path, if_exists or "rename", pictures, template)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # an impossible name, or a folder that may not be entered: making it says which


_NAME_HINT = f"end a file in {', '.join(SUFFIXES.values())}, a folder in /"


def _plan_stdout(pictures: int, if_exists: IfExists | None) -> Target:
    import tempfile

    if pictures > 1:
        message = f"standard output takes one picture, and up to {pictures} were asked for"
        raise InputError([Problem("output", message, "give a folder with --output")])
    return Target(Path(tempfile.gettempdir()), if_exists or "rename", pictures, stdout=True)


def _make_folder(root: Path, folder: Path) -> None:
    """Makes `folder`, which is `root` or below it, and refuses a link inside `root` that leads out of it."""
    _make_one(root)
    inside, step = Path(os.path.realpath(root)), root
    for part in folder.relative_to(root).parts:
        step /= part
        if not Path(os.path.realpath(step)).is_relative_to(inside):
            raise FileError(f"{step} leads out of the output folder", hint="name its real folder with --output")
        _make_one(step)


def _make_one(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        above = [folder, *folder.parents]
        other = next((path for path in above if os.path.lexists(path) and not _is_folder(path)), None)
        reason = f"{other} is not a folder" if other else _reason(error)
        raise FileError(f"cannot make the folder {folder}: {reason}", hint="choose another with --output") from error


def _prove_room(folder: Path) -> None:
    """Proves by a file that the folder can be written: modes say nothing to root, and a mount may be read-only."""
    try:
        _write_proof(folder / _part_name())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        hint = "choose another folder with --output"
        raise FileError(f"cannot write to the folder {folder}: {_reason(error)}", hint=hint) from error
    if free < _ROOM_BYTES:
        hint = "make room, or choose another folder with --output"
        raise FileError(f"only {free / 1e6:.1f} MB are free in {folder}", hint=hint)


def _write_proof(path: Path) -> None:
    descriptor = os.open(path, _NEW_FILE, 0o600)
    try:
        os.write(descriptor, b"\0")
    finally:
        os.close(descriptor)
        path.unlink()


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


# --- parts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Published:
    """How a picture got its name. `renamed_from` was taken; `retyped_from` was asked for, but the bytes disagree.

    `skipped`: `path` existed and was left, the new picture was dropped.
    """

    path: Path
    renamed_from: Path | None = None
    retyped_from: Path | None = None
    skipped: bool = False


class Part:
    """A picture on its way to the disk. Closed and removed at the end of a `with` block unless it was published."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size = 0
        self._descriptor = descriptor
        self._hash = hashlib.sha256()
        # What the umask and the folder's own rules made of 0666: the mode of the finished file.
        self._mode = os.fstat(descriptor).st_mode & 0o777
        _set_mode(descriptor, 0o600)
        _lock(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Adds bytes. Raises `FileError` (billed) where the disk refuses them."""
        rest = memoryview(chunk)
        self._hash.update(rest)
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except OSError as error:
                raise _paid_error("write", self.path, error) from error
            self.size += written
            rest = rest[written:]

    def reset(self) -> None:
        """Forgets what was written, for another attempt at the same picture."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.ftruncate(self._descriptor, 0)
        self.size = 0
        self._hash = hashlib.sha256()

    def finish(self) -> Facts:
        """Checks the whole picture and flushes it. Raises `LinkError` where it is no whole one, `FileError`."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            facts = _inspect(file, self._hash.hexdigest())
        try:
            _set_mode(self._descriptor, self._mode)
            os.fsync(self._descriptor)
        except OSError as error:
            raise _paid_error("flush", self.path, error) from error
        return facts

    def publish(self, folder: Path, stem: str, facts: Facts, if_exists: IfExists, *, suffix: str = "") -> Published:
        """Gives the finished part its final name in `folder` (on the same file system) and flushes the folder.

        `suffix` is what the user typed, kept where the bytes agree. Where they do not, the name is one that the user
        did not give: no file of that name is replaced, and none is a reason to drop or fail a paid picture.
        Raises `FileError` (billed), also where the name is taken and `if_exists` is "error".
        """
        asked = folder / f"{stem}{suffix}" if suffix and _SPELLINGS.get(suffix.lower()) != facts.format else None
        suffix = SUFFIXES[facts.format] if asked or not suffix else suffix
        first = folder / f"{stem}{suffix}"
        if sys.platform == "win32":
            self._close()  # an open file can be neither renamed nor removed there
        rule = "rename" if asked else if_exists
        if rule == "overwrite":
            _replace(self.path, first)
            return self._published(Published(first))
        if _claim(self.path, first):
            return self._published(Published(first, None, asked))
        if rule == "skip":
            self.discard()
            return Published(first, skipped=True)
        if rule == "error":
            hint = "`seedream recover` saves it under another name"
            raise FileError(f"{first} exists already, so the picture was not saved", hint=hint, billed="yes")
        free = next(path for path in _numbered(folder, stem, suffix) if _claim(self.path, path))
        return self._published(Published(free, first, asked))

    def _published(self, published: Published) -> Published:
        self._close()
        _flush_folder(published.path.parent)
        return published

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Closes and removes the part; nothing happens where it was published."""
        self._close()
        self.path.unlink(missing_ok=True)


def open_part(folder: Path) -> Part:
    """A new part file in `folder`, which is made where it is missing. Never opens an existing file or a link."""
    _make_one(folder)
    path = folder / _part_name()
    try:
        descriptor = os.open(path, _NEW_FILE, 0o666)
    except OSError as error:
        raise _paid_error("write", path, error) from error
    return Part(path, descriptor)


_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def _part_name() -> str:
    return f".seedream-{os.urandom(6).hex()}.part"


_PART_NAME = re.compile(r"\.seedream-[0-9a-f]{12}\.part")


def _paid_error(verb: str, path: Path, error: OSError) -> FileError:
    hint = "the picture is paid for: set that right, then run `seedream recover`"
    return FileError(f"cannot {verb} {path}: {_reason(error)}", hint=hint, billed="yes")


def _set_mode(descriptor: int, mode: int) -> None:
    if sys.platform != "win32":
        os.fchmod(descriptor, mode)


def _lock(descriptor: int) -> bool:
    """Marks the file as in use by a living process. False where another holds it or locks are not to be had."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _flush_folder(folder: Path) -> None:
    """Makes a new name survive a power cut. Some file systems know no such thing, and the name stands anyway."""
    if sys.platform == "win32":
        return
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            os.fsync(descriptor)
        except OSError as error:
            # EACCES: a folder that may be written but not listed.
            if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EACCES}:
                raise _paid_error("flush", folder, error) from error


def _replace(part: Path, final: Path) -> None:
    try:
        part.replace(final)
    except OSError as error:
        raise _paid_error("write", final, error) from error


def _numbered(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    """Names "stem-2", "stem-3", … from about the first free one: thousands may be taken, so they are bisected."""
    low, high = 1, 2
    while os.path.lexists(folder / f"{stem}-{high}{suffix}"):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        taken = os.path.lexists(folder / f"{stem}-{middle}{suffix}")
        low, high = (middle, high) if taken else (low, middle)
    while True:
        yield folder / f"{stem}-{high}{suffix}"
        high += 1


def _claim(part: Path, final: Path) -> bool:
    """Moves the part to a name that nothing holds, as one step; False where something holds it."""
    try:
        _link_or_move(part, final)
    except FileExistsError:
        return False
    except OSError as error:
        raise _paid_error("write", final, error) from error
    return True


_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


def _link_or_move(part: Path, final: Path) -> None:
    # A hard link never replaces a name, where every kind of check before a rename loses races.
    try:
        final.hardlink_to(part)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _move_exclusively(part, final)
    else:
        part.unlink()


def _move_exclusively(part: Path, final: Path) -> None:
    """For file systems without links (FAT, some shares): a rename that fails where the name exists."""
    if sys.platform == "win32":
        part.rename(final)
        return
    problem = _rename_noreplace(part, final)
    if problem not in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}:
        if problem:
            raise OSError(problem, os.strerror(problem), str(final))
        return
    # The last way out: an empty file takes the name, which only its maker may replace. A kill between the two steps
    # leaves that empty file; it loses no picture, as the part is still there.
    os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    part.replace(final)


def _rename_noreplace(part: Path, final: Path) -> int:
    """The system's own exclusive rename: 0, or an errno; ENOSYS where there is none."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    source, target = os.fsencode(part), os.fsencode(final)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(source, target, ctypes.c_uint(4))  # RENAME_EXCL
    elif sys.platform == "linux" and hasattr(library, "renameat2"):
        here = -100  # AT_FDCWD
        failed = library.renameat2(here, source, here, target, ctypes.c_uint(1))  # RENAME_NOREPLACE
    else:
        return errno.ENOSYS
    return ctypes.get_errno() if failed else 0


def sweep(folder: Path) -> int:
    """Removes part files that killed runs left in `folder` over a day ago; the number removed.

    A part is locked while its process lives. Where there are no locks nothing is removed.
    """
    if sys.platform == "win32" or not folder.is_dir():
        return 0
    old = time.time() - _DAY_S
    paths = [path for path in folder.iterdir() if _PART_NAME.fullmatch(path.name)]
    return sum(_sweep_one(path, old) for path in paths)


def _sweep_one(path: Path, old: float) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # a link, someone else's, or gone already
    try:
        stale = os.fstat(descriptor).st_mtime < old and _lock(descriptor)
        if stale:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return stale


# --- base64 ---------------------------------------------------------------------------------------------------------

_DATA_PREFIX = re.compile(rb"data:image\\?/[a-zA-Z0-9.+-]{1,40}(?:;[a-zA-Z0-9=.-]{1,40})*;base64,")
_ESCAPE = re.compile(rb"\\(?:([/nr])|u00([0-9a-fA-F]{2}))")
_SPACES = b"\r\n\t "


def write_blob(blob: Blob, part: Part) -> None:
    """Decodes a base64 picture from the kept reply straight into `part`, in bounded memory.

    Undoes what JSON writers do to base64: "/", "+" and "=" as escapes, line breaks, a data URI's prefix. Padding may
    be missing. Raises `LinkError` (not retryable: the reply stays as it is) for what is no base64, `FileError`.
    """
    rest, padded = b"", False
    for text in _blob_text(blob):
        rest += text
        whole = len(rest) // 4 * 4
        padded = _write_decoded(rest[:whole], part, after_padding=padded)
        rest = rest[whole:]
    if rest:
        _write_decoded(rest + b"=" * (-len(rest) % 4), part, after_padding=padded)


def _write_decoded(text: bytes, part: Part, *, after_padding: bool) -> bool:
    if not text:
        return after_padding
    if after_padding:
        raise LinkError("the picture's base64 goes on after its end")
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise LinkError(f"the picture's base64 is damaged: {str(error).lower()}") from error
    part.write(data)
    return text.endswith(b"=")


def _blob_text(blob: Blob) -> Iterator[bytes]:
    """The characters of the base64 alone, piece by piece."""
    left, held, first = blob.length, b"", True
    with _open_reply(blob.path) as file:
        file.seek(blob.offset)
        while left:
            raw = file.read(min(_WINDOW, left))
            if not raw:
                raise LinkError(f"the kept reply {blob.path} stops before its picture's end")
            left -= len(raw)
            raw = held + raw
            if first and (prefix := _DATA_PREFIX.match(raw)):
                raw = raw[prefix.end() :]
            first = False
            # An escape may lie across two reads: its start waits for its end.
            cut = raw.rfind(b"\\", max(0, len(raw) - 5)) if left else -1
            raw, held = (raw[:cut], raw[cut:]) if cut >= 0 else (raw, b"")
            yield _unescape(raw) if b"\\" in raw else raw.translate(None, _SPACES)


def _open_reply(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise LinkError(f"cannot read the kept reply {path}: {_reason(error)}") from error


def _unescape(raw: bytes) -> bytes:
    def plain(found: re.Match[bytes]) -> bytes:
        return bytes.fromhex(found[2].decode()) if found[2] else b"/" if found[1] == b"/" else b""

    return _ESCAPE.sub(plain, raw).translate(None, _SPACES)
