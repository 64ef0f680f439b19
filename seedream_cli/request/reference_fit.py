"""Shrinks references to a model's limits."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LinkError
from ..storage.image_containers import MAX_PIXELS
from ..storage.image_info import inspect_bytes
from .image_request import ImageRef, Sent
from .references import with_info

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Fit:
    """Limits that an image must be shrunk to, and the formats that need no conversion."""

    most_bytes: int
    most_pixels: int
    formats: Sequence[str]


def fit_reference(ref: ImageRef, fit: Fit) -> tuple[ImageRef, str]:
    """The reference shrunk to the limits and a notice about it; the same reference and "" where it fits.

    Raises `LinkError` where the image cannot be decoded.
    """
    if ref.kind == "url" or not _too_much(ref, fit):
        return ref, ""
    return _shrink_reference(ref, fit)


def fit_prepared(ref: ImageRef, fit: Fit) -> tuple[ImageRef, str]:
    """As `fit_reference`, for a reference that got too large by rotation. `sha256` stays that of the original."""
    if ref.sent is None or ref.sent_size <= fit.most_bytes:
        return ref, ""
    made, done = _shrink_reference(replace(ref, sent=None), fit)
    sent = Sent(made.size, made.sha256, ((0, made.size),))
    return replace(made, sha256=ref.sha256, size=ref.size, sent=sent), done


def _shrink_reference(ref: ImageRef, fit: Fit) -> tuple[ImageRef, str]:
    raw, size = _shrink(ref, fit)
    info = inspect_bytes(raw)
    made = replace(with_info(ref, info), path=None, content=raw)
    before = f"{ref.width}x{ref.height} {ref.mime.removeprefix('image/')}, {ref.size / 1e6:.1f} MB"
    after = f"{size[0]}x{size[1]} {info.format}, {info.bytes / 1e6:.1f} MB"
    return made, f"{ref.location} is sent smaller: {before} became {after}"


def _too_much(ref: ImageRef, fit: Fit) -> bool:
    taken = ref.mime.removeprefix("image/") in fit.formats
    return not taken or ref.size > fit.most_bytes or ref.width * ref.height > fit.most_pixels


def _shrink(ref: ImageRef, fit: Fit) -> tuple[bytes, tuple[int, int]]:
    """Encoded bytes within the limits, and their width and height."""
    try:
        image = _decode(ref, fit.most_pixels)
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise LinkError(f"{ref.location} cannot be decoded, so not shrunk: {type(error).__name__}") from error
    scale = min(1.0, (fit.most_pixels / (image.width * image.height)) ** 0.5)
    while True:
        raw = _encode(image, scale)
        if len(raw) <= fit.most_bytes or scale < 0.02:
            return raw, _scaled(image, scale)
        scale *= min(0.9, (fit.most_bytes / len(raw)) ** 0.5)


def _decode(ref: ImageRef, most_pixels: int) -> Image:
    """The pixels as RGB or, where any are transparent, RGBA, rotated by the EXIF orientation.

    Re-encoding drops the orientation tag, so it is applied here. The colour profile stays with RGB pixels.
    """
    from PIL import Image, ImageOps

    # The pixel count was checked on reading; Pillow's own limit would warn on standard error.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    source: Path | io.BytesIO = ref.path or io.BytesIO(ref.content)
    with Image.open(source) as opened:
        scale = min(1.0, (most_pixels / max(1, opened.width * opened.height)) ** 0.5)
        # libjpeg decodes at 1/2, 1/4 or 1/8 of the size, which saves memory.
        opened.draft(None, _scaled(opened, scale))
        opened.load()
        image = ImageOps.exif_transpose(opened)
    profile = image.info.get("icc_profile") if image.mode in {"RGB", "RGBA"} else None
    has_alpha = image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info
    if image.mode == "I" or image.mode.startswith("I;"):
        # 16 bits a pixel: Pillow would clip values above 255 instead of scaling them.
        image = image.convert("F").point(lambda value: value / 257).convert("L")
    image = image.convert("RGBA" if has_alpha else "RGB")
    if has_alpha and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    image.info = {"icc_profile": profile} if profile else {}
    return image


def _scaled(image: Image, scale: float) -> tuple[int, int]:
    # Rounded down to stay within the limit.
    return max(1, int(image.width * scale)), max(1, int(image.height * scale))


def _encode(image: Image, scale: float) -> bytes:
    """PNG for an image with alpha, else JPEG of quality 92."""
    scaled = image.resize(_scaled(image, scale)) if scale < 1 else image
    file, profile = io.BytesIO(), image.info.get("icc_profile")
    if image.mode == "RGBA":
        scaled.save(file, "PNG", icc_profile=profile)
    else:
        scaled.save(file, "JPEG", quality=92, icc_profile=profile)
    return file.getvalue()
