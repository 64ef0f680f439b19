"""What each Seedream model can do, as dated data: one row a model. No provider's manners, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["taken", "ignored", "refused", "unconfirmed"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a model or provider treats one option, with the reason and where that is known from.

    `taken` is sent; `ignored` and `refused` are not sent unless forced; `unconfirmed` is sent with a warning.
    """

    state: State
    note: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class PriceStep:
    """US dollars for one picture of up to `max_pixels` (None: any size)."""

    amount: float
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model. `ids` spells it per provider family, the first spelling being the one that is sent.

    `tiers` maps a tier to its exact pixels per aspect ratio ("2K" -> "16:9" -> "2848x1600"); `aspects` serves
    models without tiers. `pixels` is the least and most total pixels of a WIDTHxHEIGHT, `ratio` the least and
    most width/height. `references` is the least and most input pictures. `sequence_max` is 0 where one request
    draws one picture. `price` steps are in US dollars a picture, by provider family with "*" for the list price.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    ids: Mapping[str, tuple[str, ...]]
    default_size: str
    tiers: Mapping[str, Mapping[str, str]]
    pixels: tuple[int, int] | None
    ratio: tuple[float, float]
    references: tuple[int, int]
    sequence_max: int
    rules: Mapping[str, Rule]
    formats: tuple[str, ...]
    optimize_modes: tuple[str, ...]
    price: Mapping[str, tuple[PriceStep, ...]]
    price_as_of: str
    as_of: str
    source: str
    status: Literal["current", "retired", "unconfirmed"] = "current"
    keywords: tuple[str, ...] = ()
    aspects: Mapping[str, str] = field(default_factory=dict)
    reference_formats: tuple[str, ...] = ("jpeg", "png", "webp", "bmp", "tiff", "gif", "heic", "heif")
    reference_ratio: tuple[float, float] = (1 / 16, 16.0)
    reference_bytes: int = 30_000_000
    layers_max: int = 0
