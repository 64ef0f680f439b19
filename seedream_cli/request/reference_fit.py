"""References made smaller where a model does not take them as they are."""

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
from .references import with_facts

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Fit:
    """What an image must be shrunk to: bytes, total pixels, and the formats that are taken as they are."""

    most_bytes: int
    most_pixels: int
    formats: Sequence[str]


def fit_reference(ref: ImageRef, fit: Fit) -> tuple[ImageRef, str]:
    """The reference shrunk to what is taken, and a line that says what was done; the same one and "" where it fits.

    Raises `LinkError` where the image cannot be decoded.
    """
    if ref.kind == "url" or not _too_much(ref, fit):
        return ref, ""
    return _made_to_fit(ref, fit)


def fit_prepared(ref: ImageRef, fit: Fit) -> tuple[ImageRef, str]:
    """As `fit_reference`, for one that fitted until it was turned; it is known by its own bytes, as it was before."""
    if ref.sent is None or ref.sent_size <= fit.most_bytes:
        return ref, ""
    made, done = _made_to_fit(replace(ref, sent=None), fit)
    sent = Sent(made.size, made.sha256, ((0, made.size),))
    return replace(made, sha256=ref.sha256, size=ref.size, sent=sent), done


def _made_to_fit(ref: ImageRef, fit: Fit) -> tuple[ImageRef, str]:
    raw, size = _shrink(ref, fit)
    facts = inspect_bytes(raw)
    made = replace(with_facts(ref, facts), path=None, content=raw)
    before = f"{ref.width}x{ref.height} {ref.mime.removeprefix('image/')}, {ref.size / 1e6:.1f} MB"
    after = f"{size[0]}x{size[1]} {facts.format}, {facts.bytes / 1e6:.1f} MB"
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
    """The pixels, as RGB or, where something can be seen through, RGBA, and turned as the EXIF orientation says.

    Orientation is applied because re-encoding drops the note about it. The colour profile stays with RGB pixels.
    """
    from PIL import Image, ImageOps

    # The container was judged before, by a limit of our own; the library's would warn on standard error.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    source: Path | io.BytesIO = ref.path or io.BytesIO(ref.content)
    with Image.open(source) as opened:
        scale = min(1.0, (most_pixels / max(1, opened.width * opened.height)) ** 0.5)
        # A JPEG can be decoded at a half, a quarter or an eighth of its size: less memory for one that is far too big.
        opened.draft(None, _scaled(opened, scale))
        opened.load()
        image = ImageOps.exif_transpose(opened)
    profile = image.info.get("icc_profile") if image.mode in {"RGB", "RGBA"} else None
    see_through = image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info
    if image.mode == "I" or image.mode.startswith("I;"):
        # 16 bits a pixel: the library would cut off what is above 255 instead of scaling it.
        image = image.convert("F").point(lambda value: value / 257).convert("L")
    image = image.convert("RGBA" if see_through else "RGB")
    if see_through and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    image.info = {"icc_profile": profile} if profile else {}
    return image


def _scaled(image: Image, scale: float) -> tuple[int, int]:
    # Rounded down, so that the pixels stay within the limit.
    return max(1, int(image.width * scale)), max(1, int(image.height * scale))


def _encode(image: Image, scale: float) -> bytes:
    """JPEG of a high quality, or PNG where the image can be seen through."""
    scaled = image.resize(_scaled(image, scale)) if scale < 1 else image
    file, profile = io.BytesIO(), image.info.get("icc_profile")
    if image.mode == "RGBA":
        scaled.save(file, "PNG", icc_profile=profile)
    else:
        scaled.save(file, "JPEG", quality=92, icc_profile=profile)
    return file.getvalue()
