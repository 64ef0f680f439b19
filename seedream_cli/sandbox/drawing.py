"""The sandbox's images: a gradient of colours marked SANDBOX with the size and the prompt, the same for the same words.

Pillow is imported in functions: many requests need no image.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    PilImage = Image.Image
    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Format = Literal["jpeg", "png"]

REFERENCE_SIDE = 512
"""The long side in pixels of a reference that is drawn into an image."""

THUMBNAIL = 112
"""Pixels of the long side of a reference inside a URL."""

MARK = "SANDBOX"

_NO_GLYPH = re.compile(r"[^\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class InputImage:
    """A reference image: `format` is Pillow's name in lower case, sizes are in pixels."""

    format: str
    width: int
    height: int
    has_transparent_pixel: bool


def draw(
    prompt: str,
    width: int,
    height: int,
    seed: int,
    *,
    format: Format,  # noqa: A002 (the word users know)
    label: str,
    transparent: bool = False,
    watermark: bool = False,
    source: bytes | None = None,
) -> bytes:
    """An image of `width` by `height` pixels as JPEG or PNG bytes; the same arguments give the same bytes.

    `prompt` and `seed` choose the colours, `label` is written at the bottom as far as the built-in font can, `source`
    (an encoded image) shines through. With `transparent` there is an ellipse on nothing, which needs PNG.
    """
    from PIL import Image, ImageDraw, ImageOps

    colours = random.Random(hashlib.sha256(f"{seed}\0{prompt}".encode()).digest())
    grid = Image.frombytes("RGB", (4, 4), colours.randbytes(48))
    image = grid.resize((width, height), Image.Resampling.BICUBIC)
    reference = _open_small(source, REFERENCE_SIDE) if source is not None else None
    if reference is not None:
        image = Image.blend(image, ImageOps.fit(reference, image.size), 0.6)
    if transparent:
        alpha = Image.new("L", image.size)
        ImageDraw.Draw(alpha).ellipse((width * 0.08, height * 0.08, width * 0.92, height * 0.92), fill=255)
        image.putalpha(alpha)
    _write(image, label, watermark=watermark)
    return _encode(image, format)


def inspect(data: bytes) -> InputImage | None:
    """Format and size of an encoded image; None where Pillow cannot read it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = (image.format or "").lower()
            alpha = kind == "png" and image.has_transparency_data and _lowest_alpha(image) < 255
            return InputImage("jpeg" if kind == "mpo" else kind, image.width, image.height, alpha)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return None


def shrink(images: list[bytes]) -> bytes | None:
    """Up to four references side by side as one WEBP that is small enough for a URL; None without any."""
    from PIL import Image

    opened = [small for data in images[:4] if (small := _open_small(data, THUMBNAIL)) is not None]
    if not opened:
        return None
    height = min(small.height for small in opened)
    tiles = [small.resize((max(1, small.width * height // small.height), height)) for small in opened]
    row = Image.new("RGB", (sum(tile.width for tile in tiles), height))
    left = 0
    for tile in tiles:
        row.paste(tile, (left, 0))
        left += tile.width
    row.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    row.save(out, "WEBP", quality=40, method=4)
    return out.getvalue()


# --- text -------------------------------------------------------------------------------------------------------------


def _write(image: PilImage, label: str, *, watermark: bool) -> None:
    """SANDBOX and the size above, SANDBOX across, the prompt below: a crop of the image still shows one of them."""
    width, height = image.size
    unit = max(7, min(width, height) // 42)
    line, big = _font(unit), _font(max(8, width // 7))
    _write_line(image, f"{MARK} {width}x{height}", _font(round(unit * 1.25)), unit, (255, 214, 10))
    _write_line(image, _fit(_spell(label), line, width - 4 * unit), line, height - 3 * unit, (255, 255, 255))
    if watermark:
        # The service writes it in Chinese, which Pillow's font lacks.
        _write_line(image, "AI generated", line, height - 5 * unit, (255, 255, 255))
    _write_across(image, big)


def _write_line(image: PilImage, text: str, font: Font, top: int, colour: tuple[int, int, int]) -> None:
    """A line of text on a dark ground."""
    from PIL import ImageDraw

    if text:
        pen, left = ImageDraw.Draw(image), font.getbbox("x")[2]
        box = pen.textbbox((left, top), text, font=font)
        pen.rectangle((box[0] - left / 2, box[1] - left / 2, box[2] + left / 2, box[3] + left / 2), fill=(20, 20, 24))
        pen.text((left, top), text, font=font, fill=colour)


def _write_across(image: PilImage, font: Font) -> None:
    """The big faint word in the middle."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(MARK)
    word = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(word).text((-left, -top), MARK, font=font, fill=46)
    image.paste((255, 255, 255), ((image.width - word.width) // 2, (image.height - word.height) // 2), word)


def _font(size: int) -> Font:
    """Pillow's built-in font, so that images are the same on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _spell(label: str) -> str:
    """The label in the font's characters; a hash where it has none of them."""
    plain = unicodedata.normalize("NFKD", label)
    letters = "".join(letter for letter in plain if not unicodedata.combining(letter))
    words = " ".join(_NO_GLYPH.sub(" ... ", " ".join(letters.split())).split())
    if any(letter.isalnum() for letter in words):
        return words
    return f"prompt #{hashlib.sha256(label.encode()).hexdigest()[:8]}" if label.strip() else ""


def _fit(words: str, font: Font, room: int) -> str:
    """The text cut to a width in pixels."""
    if font.getlength(words) <= room:
        return words
    while words and font.getlength(words + "...") > room:
        words = words[:-1]
    return f"{words}..." if words else ""


# --- encoding ---------------------------------------------------------------------------------------------------------


def _encode(image: PilImage, kind: Format) -> bytes:
    out = io.BytesIO()
    if kind == "png":
        # For soft gradients level 1 is nearly as small as level 9, in a tenth of the time.
        image.save(out, "PNG", compress_level=1)
    else:
        image.save(out, "JPEG", quality=88)
    return out.getvalue()


def _open_small(data: bytes, side: int) -> PilImage | None:
    """The image upright in RGB, no side longer than `side`; None where Pillow cannot read it."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (side * 2, side * 2))
            upright = ImageOps.exif_transpose(opened)
            upright.thumbnail((side, side))
            ground = Image.new("RGBA", upright.size, (255, 255, 255, 255))
            return Image.alpha_composite(ground, upright.convert("RGBA")).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return None


def _lowest_alpha(image: PilImage) -> int:
    low, _ = image.convert("RGBA").getchannel("A").getextrema()
    return int(low) if isinstance(low, int | float) else 255
