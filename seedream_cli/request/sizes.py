"""Sizes: tiers, exact pixels and aspect ratios, and which of them a model takes."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from ..errors import Problem
from .models import ModelSpec


def parse_size(text: str) -> str | None:
    """A size as the API spells it: "2K", "2048x1152", "adaptive" or "auto"; None where the text is no size.

    `size_problem` checks whether a model takes it.
    """
    plain = text.strip().lower()
    if plain in {"adaptive", "auto"}:
        return plain
    tier = re.fullmatch(r"([1-9][0-9]?)(\.[0-9])?\s?k", plain)
    if tier:
        fraction = tier[2] or ""
        return f"{tier[1]}{fraction if fraction != '.0' else ''}K"
    pixels = re.fullmatch(r"0*([1-9][0-9]{0,5})\s?[x×*]\s?0*([1-9][0-9]{0,5})", plain)
    return f"{pixels[1]}x{pixels[2]}" if pixels else None


def size_problem(model: ModelSpec, size: str, *, layers: bool = False) -> str | None:
    """Why the model does not take this size, with the nearest one that it takes; None where it does."""
    known = parse_size(size)
    if known is None and parse_aspect(size):
        return f"{size!r} is a ratio, not a size: use --aspect {size} with --size {_legal(model, pixels=False)}"
    if shape := aspect_meant(size):
        return f"{size!r} is a shape, not a size: use --aspect {shape} with --size {_legal(model, pixels=False)}"
    if known is None:
        return f"{size!r} is no size; {model.title} takes {_legal(model)}"
    if layers and model.layer_sizes:
        legal = f"with layers {model.title} takes {_either(model.layer_sizes)}, not {known}"
        return None if known in model.layer_sizes else legal
    if known in model.tiers or known in model.keywords:
        return None
    if "x" not in known or model.pixels is None:
        return f"{model.title} has no size {known}: it takes {_legal(model)}"
    return _pixels_problem(model, *_sides(known), model.pixels)


def resolve_aspect(model: ModelSpec, size_tier: str, aspect: str) -> str | Problem:
    """The exact WIDTHxHEIGHT of a tier for a ratio such as "16:9", or the problem.

    For a model without tiers the only valid `size_tier` is its default size.
    """
    ratio = parse_aspect(aspect)
    if ratio is None:
        return Problem("aspect", f"{aspect!r} is no ratio", "write it as WIDTH:HEIGHT, such as 16:9")
    table = model.tiers.get(parse_size(size_tier) or "")
    if table is None and model.aspects and size_tier == model.default_size:
        table = model.aspects
    if table is None:
        message = f"{size_tier} has no pixels to pick for {aspect} with {model.title}"
        hint = f"use --aspect with --size {_either(tuple(model.tiers))}" if model.tiers else "leave --aspect out"
        return Problem("aspect", message, hint)
    exact = next((size for label, size in table.items() if parse_aspect(label) == ratio), None)
    if exact:
        return exact
    near = _shape(model, table["1:1"], ratio)
    hint = f"known ratios: {', '.join(table)}" + (f"; or --size {near}" if near else "")
    return Problem("aspect", f"{model.title} has no {aspect} in {size_tier}", hint)


_SHAPES = {"square": "1:1", "square_hd": "1:1", "landscape": "16:9", "portrait": "9:16"}


def aspect_meant(text: str) -> str | None:
    """The ratio meant by a size of other services ("1:1", "16x9", "square", "landscape_16_9"); None for others."""
    plain = re.sub(r"[\s-]+", "_", text[:40].strip().lower())
    if plain in _SHAPES:
        return _SHAPES[plain]
    named = re.fullmatch(r"(landscape|portrait)_([0-9]{1,2})_([0-9]{1,2})", plain)
    sides = re.fullmatch(r"([0-9]{1,2})_?[x×*:/]_?([0-9]{1,2})", plain)
    if not named and not sides:
        return None
    one, other = (int(named[2]), int(named[3])) if named else (int(sides[1]), int(sides[2])) if sides else (0, 0)
    if not one or not other:
        return None
    if named:
        one, other = (
            (max(one, other), min(one, other)) if named[1] == "landscape" else (min(one, other), max(one, other))
        )
    return f"{one}:{other}"


def size_hint(text: str) -> str:
    """A hint for a text that is no size."""
    plain = text[:40].strip().lower()
    if shape := aspect_meant(text):
        return f"--aspect {shape} gives that shape; a size is a tier such as 2K, or WIDTHxHEIGHT"
    if re.fullmatch(r"[0-9]{2,5}(px)?", plain):
        side = plain.removesuffix("px")
        return f"write {side}x{side} for a square, a tier such as 2K, or WIDTHxHEIGHT such as 2048x1152"
    if tier := re.fullmatch(r"auto[_-]([1-9](?:\.[0-9])?)k", plain):
        return f"write {tier[1]}K"
    return "give a tier such as 2K, or WIDTHxHEIGHT such as 2048x1152"


def parse_aspect(text: str) -> Fraction | None:
    """Width over height of "16:9" or "16/9"; None where the text is no ratio."""
    match = re.fullmatch(r"\s*([0-9]{1,4}(?:\.[0-9]{1,3})?)\s*[:/]\s*([0-9]{1,4}(?:\.[0-9]{1,3})?)\s*", text)
    if not match or not Fraction(match[1]) or not Fraction(match[2]):
        return None
    return Fraction(match[1]) / Fraction(match[2])


def _pixels_problem(model: ModelSpec, width: int, height: int, limits: tuple[int, int]) -> str | None:
    """Why the model does not take so many pixels, or this ratio; None where it does."""
    least, most = limits
    low, high = model.ratio
    if not low <= width / height <= high:
        return f"{width}x{height} is too long: width to height must lie between {_ratio(low)} and {_ratio(high)}"
    pixels = width * height
    if least <= pixels <= most:
        return None
    off = f"{least - pixels:,} too few" if pixels < least else f"{pixels - most:,} too many"
    near = _grown(width, height, least, model.ratio) if pixels < least else _shrunk(width, height, most, model.ratio)
    return (
        f"{width}x{height} has {pixels:,} pixels, {off}: {model.title} takes {least:,} to {most:,}; "
        f"the nearest of this shape is {near}, or use {_legal(model, pixels=False)}"
    )


def _grown(width: int, height: int, least: int, ratio: tuple[float, float]) -> str:
    """The smallest size of at least `least` pixels and about the ratio width/height."""
    wide = math.isqrt(-(-least * width // height) - 1) + 1
    high = -(-least // wide)
    # Rounding may exceed the allowed ratio.
    return f"{max(wide, math.ceil(high * ratio[0]))}x{max(high, math.ceil(wide / ratio[1]))}"


def _shrunk(width: int, height: int, most: int, ratio: tuple[float, float]) -> str:
    """The largest size of at most `most` pixels and about the ratio width/height."""
    wide = math.isqrt(most * width // height)
    high = most // wide
    return f"{min(wide, math.floor(high * ratio[1]))}x{min(high, math.floor(wide / ratio[0]))}"


def _shape(model: ModelSpec, square: str, ratio: Fraction) -> str | None:
    """A size of about a tier's pixels in another ratio, sides multiples of 16; None where the model refuses it."""
    area = math.prod(_sides(square))
    width = math.isqrt(int(area * ratio)) // 16 * 16
    height = math.isqrt(int(area / ratio)) // 16 * 16
    if not width or not height or size_problem(model, f"{width}x{height}"):
        return None
    return f"{width}x{height}"


def _sides(size: str) -> tuple[int, int]:
    """Width and height of a WIDTHxHEIGHT."""
    width, height = size.split("x")
    return int(width), int(height)


def _legal(model: ModelSpec, *, pixels: bool = True) -> str:
    """The sizes that the model takes, for a message."""
    words = [*model.keywords, *model.tiers]
    if not words:
        words = list(model.aspects.values())[:3]
    if pixels and model.pixels:
        words.append(f"WIDTHxHEIGHT of {model.pixels[0]:,} to {model.pixels[1]:,} pixels")
    return _either(tuple(words))


def _either(words: tuple[str, ...]) -> str:
    """ "1K, 2K or 4K"."""
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _ratio(value: float) -> str:
    """A limit of the ratio for a message: 1:16 or 16:1."""
    return f"{value:g}:1" if value >= 1 else f"1:{1 / value:g}"


_SIDE_SLACK = 0.03

_AREA_SLACK = 0.15

_TIER_AREAS = {"1K": 1024**2, "1.5K": 1536**2, "2K": 2048**2, "3K": 3072**2, "4K": 4096**2}


def size_gap(model: ModelSpec | None, asked: str, width: int, height: int) -> str:
    """A message where an image does not have the size that was asked for; "" where it does.

    Models round: each side of a WIDTHxHEIGHT may differ by 3 % or 16 pixels. For a tier, whose ratio the model may
    choose, the area may differ by 15 %. A keyword ("auto") is not compared.
    """
    size = parse_size(asked)
    if size is None or not width or not height:
        return ""
    message = f"{asked} was asked for, and {width}x{height} came"
    if "x" in size:
        wanted = [int(side) for side in size.split("x")]
        pairs = zip(wanted, (width, height), strict=True)
        return message if any(abs(side - got) > max(16, _SIDE_SLACK * side) for side, got in pairs) else ""
    table = model.tiers.get(size, {}).values() if model else ()
    areas = [int(one.partition("x")[0]) * int(one.partition("x")[2]) for one in table]
    areas = areas or ([_TIER_AREAS[size]] if size in _TIER_AREAS else [])
    low, high = min(areas, default=0) * (1 - _AREA_SLACK), max(areas, default=0) * (1 + _AREA_SLACK)
    return message if areas and not low <= width * height <= high else ""
