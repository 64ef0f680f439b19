"""The sandbox's images: abstract, drawn small and scaled up, the same for the same words, marked SANDBOX.

Pillow is imported in the bodies: the sandbox also answers many requests for which nothing is drawn.
"""

from __future__ import annotations

import bisect
import colorsys
import hashlib
import io
import math
import random
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    ProviderImage = Image.Image
    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Colour = tuple[int, int, int]

Ink = Literal["jpeg", "png"]

CANVAS = 512
"""The long side in pixels of the small image that is scaled up: soft shapes lose nothing by it."""

THUMBNAIL = 112
"""The long side in pixels of a reference as it travels inside a link."""

MARK = "SANDBOX"

_NO_GLYPH = re.compile(r"[^\x20-\x7e]+")

_NEAR = str.maketrans(
    {"ß": "ss", "æ": "ae", "ø": "o", "ł": "l", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"'}
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reference image is: `format` as Pillow names it in lower case, sides in pixels."""

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
    format: Ink,  # noqa: A002 (the word users know)
    label: str,
    transparent: bool = False,
    watermark: bool = False,
    source: bytes | None = None,
) -> bytes:
    """One image of exactly `width` by `height` pixels as JPEG or PNG bytes; the same arguments give the same bytes.

    `prompt` and `seed` choose colours and shapes, `label` is written at the bottom as far as the built-in font can,
    `source` (an encoded image) shines through. With `transparent` the surroundings of the motif have alpha 0,
    which needs PNG.
    """
    from PIL import Image

    rng = random.Random(hashlib.sha256(f"{seed}\0{prompt}".encode()).digest())
    scale = CANVAS / max(width, height)
    small_size = (max(8, round(width * scale)), max(8, round(height * scale)))
    palette = _choose_palette(rng)
    small = _paint(small_size, palette, rng)
    if source is not None:
        small = _shine_through(small, source)
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    if transparent:
        image.putalpha(_cut_out(small_size, rng).resize((width, height), Image.Resampling.BILINEAR))
    _write(image, label, watermark=watermark)
    return _encode(image, format)


def inspect(data: bytes) -> Facts | None:
    """The facts of an encoded image; None where Pillow cannot read it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = (image.format or "").lower()
            alpha = kind == "png" and image.has_transparency_data and _lowest_alpha(image) < 255
            return Facts("jpeg" if kind == "mpo" else kind, image.width, image.height, alpha)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return None


def shrink(images: list[bytes]) -> bytes | None:
    """Up to four references side by side as one small WEBP, short enough to travel inside a link."""
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


# --- colours and shapes ---------------------------------------------------------------------------------------------


def _choose_palette(rng: random.Random) -> list[Colour]:
    """Six colours from dark to light around one hue and its neighbour, so that any of them look well together."""
    hue = rng.random()
    reach = rng.choice((-0.28, -0.16, -0.09, 0.09, 0.16, 0.28, 0.5))
    palette = []
    for step in range(6):
        light = 0.16 + 0.135 * step
        turn = hue + reach * step / 5 + rng.uniform(-0.015, 0.015)
        red, green, blue = colorsys.hls_to_rgb(turn % 1, light, 0.62 - 0.12 * abs(step - 2.5) / 2.5)
        palette.append((round(red * 255), round(green * 255), round(blue * 255)))
    return palette


def _paint(size: tuple[int, int], palette: list[Colour], rng: random.Random) -> ProviderImage:
    """The whole motif at canvas size: a mesh of colours, and one of four compositions upon it."""
    from PIL import Image, ImageFilter

    mesh = Image.new("RGB", (4, 4))
    for cell in range(16):
        row = cell // 4
        # Light above, dark below: what lies on the mesh then reads as a landscape.
        mesh.putpixel((cell % 4, row), palette[max(0, min(5, 5 - row + rng.choice((-1, 0, 0, 1))))])
    canvas = mesh.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(6))
    compose = rng.choice((_paint_ridges, _paint_discs, _paint_ribbons, _paint_arcs))
    compose(canvas, palette, rng)
    return canvas.filter(ImageFilter.GaussianBlur(0.6))


def _lay(canvas: ProviderImage, shape: ProviderImage, colour: Colour, strength: float, *, blur: float = 0.0) -> None:
    """Lay `colour` on the canvas where `shape` (a mask) is white, at `strength` of 0…1."""
    from PIL import ImageFilter

    mask = shape.filter(ImageFilter.GaussianBlur(blur)) if blur else shape
    canvas.paste(colour, (0, 0), mask.point(lambda value: value * strength))


def _blank(canvas: ProviderImage) -> ProviderImage:
    from PIL import Image

    return Image.new("L", canvas.size)


def _disc(canvas: ProviderImage, x: float, y: float, radius: float) -> ProviderImage:
    from PIL import ImageDraw

    mask = _blank(canvas)
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


def _wave(rng: random.Random, width: int, amplitude: float) -> list[float]:
    """Heights along the width: three sine waves of random length and phase."""
    waves = [(rng.uniform(0.6, 1.4) * n, rng.uniform(0, math.tau), amplitude / n) for n in (1, 2.3, 4.7)]
    return [sum(a * math.sin(math.tau * f * x / width + p) for f, p, a in waves) for x in range(width)]


def _paint_ridges(canvas: ProviderImage, palette: list[Colour], rng: random.Random) -> None:
    """A sun with its glow behind ridges that darken towards the viewer."""
    from PIL import ImageDraw

    width, height = canvas.size
    short = min(width, height)
    sun = _disc(canvas, width * rng.uniform(0.2, 0.8), height * rng.uniform(0.2, 0.42), short * rng.uniform(0.07, 0.14))
    _lay(canvas, sun, (255, 250, 235), 0.9, blur=short * 0.09)
    _lay(canvas, sun, (255, 252, 244), 0.95, blur=1.2)
    ridges = rng.randint(4, 6)
    for ridge in range(ridges):
        depth = (ridge + 1) / ridges
        base = height * (0.42 + 0.46 * depth)
        mask = _blank(canvas)
        edge = [(x, base + y) for x, y in enumerate(_wave(rng, width, height * 0.055))]
        ImageDraw.Draw(mask).polygon([(0, height), *edge, (width, height)], fill=255)
        _lay(canvas, mask, palette[max(0, 4 - round(depth * 4))], 0.55 + 0.4 * depth, blur=2.2 * (1 - depth) + 0.4)


def _paint_discs(canvas: ProviderImage, palette: list[Colour], rng: random.Random) -> None:
    """Many translucent discs, the far ones out of focus."""
    width, height = canvas.size
    short = min(width, height)
    for disc in range(22):
        near = disc / 21
        radius = short * rng.uniform(0.05, 0.24) * (1.15 - 0.6 * near)
        mask = _disc(canvas, rng.uniform(0, width), rng.uniform(0, height), radius)
        colour = rng.choice([*palette[1:], (255, 255, 255)])
        _lay(canvas, mask, colour, 0.28 + 0.34 * near, blur=(1 - near) * short * 0.03 + 0.5)


def _paint_ribbons(canvas: ProviderImage, palette: list[Colour], rng: random.Random) -> None:
    """Broad ribbons that swing across the whole width."""
    from PIL import ImageDraw

    width, height = canvas.size
    ribbons = rng.randint(6, 9)
    for ribbon in range(ribbons):
        base = height * (0.08 + 0.84 * ribbon / (ribbons - 1))
        upper, thick = _wave(rng, width, height * 0.09), height * rng.uniform(0.03, 0.11)
        lower = [y + thick * (1.2 + math.sin(math.tau * x / width * 1.3 + ribbon)) for x, y in enumerate(upper)]
        mask = _blank(canvas)
        outline = [(x, base + y) for x, y in enumerate(upper)] + [(x, base + lower[x]) for x in reversed(range(width))]
        ImageDraw.Draw(mask).polygon(outline, fill=255)
        _lay(canvas, mask, palette[rng.randrange(6)], 0.18, blur=height * 0.04)
        _lay(canvas, mask, palette[rng.randrange(1, 6)], 0.72, blur=0.6)


def _paint_arcs(canvas: ProviderImage, palette: list[Colour], rng: random.Random) -> None:
    """Rings around one point, cut open at random angles, with a bright heart."""
    from PIL import ImageDraw

    width, height = canvas.size
    short = min(width, height)
    x, y = width * rng.uniform(0.3, 0.7), height * rng.uniform(0.35, 0.65)
    for ring in reversed(range(9)):
        radius, start = short * (0.1 + 0.085 * ring), rng.uniform(0, 360)
        mask = _blank(canvas)
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(mask).arc(box, start, start + rng.uniform(120, 330), fill=255, width=round(short * 0.05))
        _lay(canvas, mask, palette[rng.randrange(6)], 0.25, blur=short * 0.03)
        _lay(canvas, mask, palette[(ring + rng.randrange(3)) % 6], 0.8, blur=0.9)
    heart = _disc(canvas, x, y, short * 0.06)
    _lay(canvas, heart, (255, 250, 240), 0.8, blur=short * 0.06)
    _lay(canvas, heart, (255, 252, 246), 0.9, blur=0.8)


def _shine_through(canvas: ProviderImage, source: bytes) -> ProviderImage:
    """The reference, filling the canvas, tinted by the motif so that both can be told."""
    from PIL import Image, ImageChops, ImageOps

    reference = _open_small(source, CANVAS)
    if reference is None:
        return canvas
    fitted = ImageOps.fit(reference, canvas.size, Image.Resampling.BICUBIC)
    return Image.blend(Image.blend(canvas, fitted, 0.62), ImageChops.soft_light(fitted, canvas), 0.45)


def _cut_out(size: tuple[int, int], rng: random.Random) -> ProviderImage:
    """The alpha of a motif standing free: an uneven rounded form, clear all around."""
    from PIL import Image, ImageDraw, ImageFilter

    width, height = size
    turns = [(n, rng.uniform(0, math.tau), rng.uniform(0.02, 0.07) / n**0.5) for n in (2, 3, 5)]
    outline = []
    for step in range(180):
        angle = math.tau * step / 180
        reach = 0.38 + sum(amount * math.sin(n * angle + phase) for n, phase, amount in turns)
        outline.append((width * (0.5 + reach * math.cos(angle)), height * (0.5 + reach * math.sin(angle))))
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    return mask.filter(ImageFilter.GaussianBlur(1.2))


# --- words ----------------------------------------------------------------------------------------------------------


def _write(image: ProviderImage, label: str, *, watermark: bool) -> None:
    """SANDBOX above and across, the prompt below; drawn onto the full-size image, so the letters are sharp."""
    from PIL import ImageDraw

    width, height = image.size
    pen = ImageDraw.Draw(image)
    unit = max(7, min(width, height) // 42)
    _write_mark(image, unit)
    words = _fit(_spell(label), _font(unit), width - 4 * unit)
    if words:
        band = (0, height - 3 * unit, width, height)
        _darken(image, band)
        pen.text((2 * unit, height - 2.2 * unit), words, font=_font(unit), fill=(255, 255, 255))
    if watermark:
        # The service writes this in Chinese; the built-in font has no such letters.
        text, font = "AI generated", _font(unit)
        left = width - 2 * unit - font.getbbox(text)[2]
        pen.text((left, height - 4.6 * unit), text, font=font, fill=(255, 255, 255))


def _write_mark(image: ProviderImage, unit: int) -> None:
    """The badge at the top left and the big faint word across: a crop of the image still shows one of them."""
    from PIL import Image, ImageDraw

    width, height = image.size
    badge = _font(round(unit * 1.25))
    right, bottom = badge.getbbox(MARK)[2], badge.getbbox(MARK)[3]
    ImageDraw.Draw(image).rounded_rectangle(
        (unit, unit, unit * 3 + right, unit * 2.2 + bottom), radius=unit * 0.7, fill=(20, 20, 24)
    )
    ImageDraw.Draw(image).text((unit * 2, unit * 1.55), MARK, font=badge, fill=(255, 214, 10))
    big = _font(max(8, round(width / 6.5)))
    box = big.getbbox(MARK)
    word = Image.new("L", (round(box[2] - box[0]), round(box[3] - box[1])))
    ImageDraw.Draw(word).text((-box[0], -box[1]), MARK, font=big, fill=46)
    image.paste((255, 255, 255), ((width - word.width) // 2, (height - word.height) // 2), word)


def _darken(image: ProviderImage, box: tuple[int, int, int, int]) -> None:
    from PIL import Image

    strip = image.crop(box)
    image.paste(Image.blend(strip, Image.new(strip.mode, strip.size, (0, 0, 0)), 0.5), box[:2])


def _font(size: int) -> Font:
    """The font inside Pillow: the same on every machine, so the images are too."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _spell(label: str) -> str:
    """The label in letters the font has; where it has none of them, a number that still tells prompts apart."""
    plain = unicodedata.normalize("NFKD", label.translate(_NEAR))
    letters = "".join(letter for letter in plain if not unicodedata.combining(letter))
    words = " ".join(_NO_GLYPH.sub(" ... ", " ".join(letters.split())).split())
    if any(letter.isalnum() for letter in words):
        return words
    return f"prompt #{hashlib.sha256(label.encode()).hexdigest()[:8]}" if label.strip() else ""


def _fit(words: str, font: Font, room: int) -> str:
    """As many letters as fit the room."""
    if font.getlength(words) <= room:
        return words
    spans = [font.getlength(words[:count] + "...") for count in range(1, len(words))]
    keep = bisect.bisect_right(spans, room)
    return words[:keep].rstrip() + "..." if keep else ""


# --- bytes ----------------------------------------------------------------------------------------------------------


def _encode(image: ProviderImage, ink: Ink) -> bytes:
    out = io.BytesIO()
    if ink == "png":
        # The first level packs soft gradients nearly as well as the ninth, in a tenth of the time.
        image.save(out, "PNG", compress_level=1)
    else:
        image.save(out, "JPEG", quality=88)
    return out.getvalue()


def _open_small(data: bytes, side: int) -> ProviderImage | None:
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


def _lowest_alpha(image: ProviderImage) -> int:
    low, _ = image.convert("RGBA").getchannel("A").getextrema()
    return int(low) if isinstance(low, int | float) else 255
