"""Whether the pixels of an image are all there, which its container does not show.

A container that was cut is found by reading it. An image that was cut and closed again with an end marker is not, nor
one whose compressed data is garbage. Here that data is read to its end. Only certain damage is reported: what cannot be
decoded here, or is too large for it, passes with its container.
"""

from __future__ import annotations

import io
import math
import random
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import LinkError
from .image_containers import UNREADABLE, Source, jpeg_segments, png_chunks
from .image_info import ImageInfo
from .image_metadata import read_parts, strip_metadata

PIXELS_MOST = 64_000_000
"""No Seedream model draws more than 39 million; what is larger is not decoded."""

_BYTES_MOST = 64 << 20

_FRAMES_MOST = 100

_STEP = 1 << 18


def is_checked(facts: ImageInfo) -> bool:
    """Whether an image is of a kind and a size whose pixels are looked at."""
    return facts.format in _CHECKS and facts.width * facts.height <= PIXELS_MOST and facts.bytes <= _BYTES_MOST


def check_pixels(data: bytes, facts: ImageInfo) -> None:
    """Read the compressed data of a whole container to its end. Raises LinkError (retryable) where some is missing."""
    problem = _CHECKS[facts.format](data, facts) if is_checked(facts) else ""
    if problem:
        raise LinkError(f"the {facts.format.upper()} is damaged: {problem} ({facts.bytes} bytes)", retryable=True)


# --- PNG --------------------------------------------------------------------------------------------------------------

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Left, top and the steps to the right and down of the seven passes of an interlaced PNG (source: PNG, 8.1)."""


def _check_png(data: bytes, facts: ImageInfo) -> str:
    """Inflate all of it: the rows must add up, and the checksum over them is right."""
    depth, colour, interlaced = data[24], data[25], data[28]
    bits = depth * _CHANNELS.get(colour, 0)
    if not bits:
        return ""
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [
        (-(-(facts.width - left) // right), -(-(facts.height - top) // down))
        for left, top, right, down in passes
        if facts.width > left and facts.height > top
    ]
    wanted = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes)
    inflater, size = zlib.decompressobj(), 0
    try:
        for piece in _png_data(data):
            rest: bytes | memoryview = piece
            while rest and not inflater.eof and size <= wanted:
                size += len(inflater.decompress(rest, _STEP))
                rest = inflater.unconsumed_tail
    except zlib.error:
        return "its pixels cannot be unpacked"
    return "" if size >= wanted else "its last rows are missing"


def _png_data(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    for kind, _, content, end in png_chunks(Source(io.BytesIO(data))):
        if kind == b"IDAT":
            yield view[content : end - 4]


# --- JPEG -------------------------------------------------------------------------------------------------------------

_RESTART = re.compile(rb"\xff[\xd0-\xd7]", re.DOTALL)

_SEQUENTIAL, _PROGRESSIVE = {0xC0, 0xC1}, {0xC2}

_MORE = random.Random(83778332).randbytes(1 << 10).replace(b"\xff", b"\x5a")

_GREY = {127, 128, 129}


@dataclass(frozen=True, slots=True)
class _Scan:
    """One scan: its components, the band and the precision of what it brings, and where its data lies."""

    components: bytes
    band: range
    low_bit: int
    start: int
    end: int
    restart: int


@dataclass(slots=True)
class _Jpeg:
    """What the markers say. `factors` are the sampling factors of each component; `end` is where the end marker is."""

    kind: int = 0
    precision: int = 0
    width: int = 0
    height: int = 0
    factors: dict[int, tuple[int, int]] = field(default_factory=dict)
    scans: list[_Scan] = field(default_factory=list)
    end: int = 0


def _check_jpeg(data: bytes, facts: ImageInfo) -> str:
    """A decoder fills in silently what is missing before an end marker. Nothing is, if more data would change nothing.

    Where a single scan ends early, the last pixel is grey; only then is the second decoding worth its time.
    """
    jpeg = _read_jpeg(data)
    if jpeg.kind not in _SEQUENTIAL | _PROGRESSIVE or jpeg.precision != 8 or not jpeg.height or not jpeg.scans:
        return ""
    missing = "some of its data is missing before its end marker"
    if _lacks_scans(jpeg) or any(_lacks_restarts(jpeg, scan, data) for scan in jpeg.scans):
        return missing
    is_simple = jpeg.kind in _SEQUENTIAL and len(jpeg.scans) == 1
    image = _decode_jpeg(data, facts, 8 if is_simple else 1)
    if image is None or (is_simple and not _is_grey(image.getpixel((image.width - 1, image.height - 1)))):
        return ""
    other = _decode_jpeg(data[: jpeg.end] + _MORE + data[jpeg.end :], facts, 8 if is_simple else 1)
    return "" if other is None or other.tobytes() == image.tobytes() else missing


def _is_grey(pixel: Any) -> bool:
    return all(value in _GREY for value in (pixel if isinstance(pixel, tuple) else (pixel,)))


def _decode_jpeg(data: bytes, facts: ImageInfo, scale: int) -> Any:
    """The image at a fraction of its size, which takes all of its data; None where it cannot be read."""
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        image = JpegImageFile(io.BytesIO(data))
        image.draft("L", (max(1, facts.width // scale), max(1, facts.height // scale)))
        image.load()
    except UNREADABLE:
        return None
    return image


def _read_jpeg(data: bytes) -> _Jpeg:
    """The markers up to the end marker (source: ITU-T T.81, annex B)."""
    jpeg, restart, scan = _Jpeg(), 0, b""
    for kind, start, content, end in jpeg_segments(Source(io.BytesIO(data))):
        body = data[content:end] if kind else b""
        marker = kind[0] if kind else 0
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC} and len(body) >= 6:
            jpeg.kind, jpeg.precision = marker, body[0]
            jpeg.height, jpeg.width = struct.unpack_from(">HH", body, 1)
            jpeg.factors |= {
                body[one]: (body[one + 1] >> 4 or 1, body[one + 1] & 15 or 1) for one in range(6, len(body) - 2, 3)
            }
        elif marker == 0xDD and len(body) >= 2:
            restart = int.from_bytes(body[:2], "big")
        elif marker == 0xDA:
            scan = body
        elif not kind and len(scan) >= 4:
            first, last, bits = scan[-3:]
            jpeg.scans.append(_Scan(scan[1:-3:2], range(first, last + 1), bits & 15, start, end, restart))
        jpeg.end = start
    return jpeg


def _lacks_scans(jpeg: _Jpeg) -> bool:
    """Whether a component has no data at all, or, in steps of growing precision, never came to its last."""
    if jpeg.kind in _SEQUENTIAL:
        return not set(jpeg.factors) <= {component for scan in jpeg.scans for component in scan.components}
    whole = {
        (component, place)
        for scan in jpeg.scans
        if not scan.low_bit
        for component in scan.components
        for place in scan.band
    }
    return not {(component, place) for component in jpeg.factors for place in range(64)} <= whole


def _lacks_restarts(jpeg: _Jpeg, scan: _Scan, data: bytes) -> bool:
    """Whether a scan has fewer restart markers than its size asks for (source: ITU-T T.81, A.2)."""
    if not scan.restart:
        return False
    widest, tallest = (max(factor[side] for factor in jpeg.factors.values()) for side in (0, 1))
    across, down = jpeg.width / (8 * widest), jpeg.height / (8 * tallest)
    if len(scan.components) == 1:
        horizontal, vertical = jpeg.factors.get(scan.components[0], (1, 1))
        across, down = across * horizontal, down * vertical
    units = math.ceil(across) * math.ceil(down)
    return len(_RESTART.findall(data, scan.start, scan.end)) < -(-units // scan.restart) - 1


# --- others -----------------------------------------------------------------------------------------------------------


def _check_frames(data: bytes, facts: ImageInfo) -> str:
    """Decode every frame."""
    from PIL import features
    from PIL.GifImagePlugin import GifImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    if facts.format == "webp" and not features.check("webp"):
        return ""
    # Pillow 11 takes minutes over a GIF with a comment of megabytes.
    stripped = strip_metadata(io.BytesIO(data), "gif") if facts.format == "gif" else None
    bare = data if stripped is None else b"".join(read_parts(io.BytesIO(data), stripped.parts))
    try:
        image = (WebPImageFile if facts.format == "webp" else GifImageFile)(io.BytesIO(bare))
        for number in range(min(getattr(image, "n_frames", 1), _FRAMES_MOST)):
            image.seek(number)
            image.load()
    except MemoryError:
        return ""
    except UNREADABLE:
        return "its pixels cannot be decoded"
    return ""


_CHECKS = {
    "png": _check_png,
    "jpeg": _check_jpeg,
    "webp": _check_frames,
    "gif": _check_frames,
}
