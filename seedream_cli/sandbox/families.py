"""The sandbox's own model table, independent of the client's, so that errors in one show up against the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RATIOS = ("1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3", "21:9")


def _row(*sizes: str) -> dict[str, str]:
    return dict(zip(RATIOS, sizes, strict=True))


_PRO = {
    "1K": _row("1024x1024", "1152x864", "864x1152", "1424x800", "800x1424", "1248x832", "832x1248", "1568x672"),
    "1.5K": _row(
        "1536x1536", "1792x1344", "1344x1792", "2048x1152", "1152x2048", "1872x1248", "1248x1872", "2352x1008"
    ),
    "2K": _row("2048x2048", "2368x1776", "1776x2368", "2816x1584", "1584x2816", "2496x1664", "1664x2496", "3136x1344"),
}

_1K = _row("1024x1024", "1152x864", "864x1152", "1280x720", "720x1280", "1248x832", "832x1248", "1512x648")

_2K = _row("2048x2048", "2304x1728", "1728x2304", "2848x1600", "1600x2848", "2496x1664", "1664x2496", "3136x1344")

_3K = _row("3072x3072", "3456x2592", "2592x3456", "4096x2304", "2304x4096", "3744x2496", "2496x3744", "4704x2016")

_4K = _row("4096x4096", "4704x3520", "3520x4704", "5504x3040", "3040x5504", "4992x3328", "3328x4992", "6240x2656")


@dataclass(frozen=True, slots=True)
class Family:
    """One model with its ids at each service. `pixels` is the range for WIDTHxHEIGHT, None where it takes none.

    `formats` and `modes` are the values of `output_format` and `optimize_prompt_options.mode`, empty where the field is
    refused. `untiered` are the sizes by ratio without a tier. `has_layers`: takes layer_decomposition and background.
    """

    name: str
    ark: tuple[str, ...]
    byteplus: tuple[str, ...]
    default_size: str
    tiers: Mapping[str, Mapping[str, str]]
    pixels: tuple[int, int] | None
    references: tuple[int, int]
    ope: tuple[str, ...] = ()
    acedata: tuple[str, ...] = ()
    untiered: Mapping[str, str] = field(default_factory=dict)
    reference_ratio: float = 16.0
    grouped: bool = False
    formats: tuple[str, ...] = ()
    format: Literal["jpeg", "png"] = "jpeg"
    modes: tuple[str, ...] = ()
    searching: bool = False
    backgrounds: tuple[str, ...] = ()
    has_layers: bool = False
    retiring: bool = False


_NEW: dict[str, Any] = {
    "default_size": "2K",
    "tiers": _PRO,
    "pixels": (921_600, 4_624_220),
    "references": (0, 10),
    "formats": ("jpeg", "png"),
    "has_layers": True,
}

_FREE_4: dict[str, Any] = {
    "pixels": (3_686_400, 16_777_216),
    "references": (0, 14),
    "default_size": "2048x2048",
    "grouped": True,
}

FAMILIES = (
    Family(
        "5.5",
        ("doubao-seedream-5-5-261028",),
        ("dola-seedream-5-5-261028", "seedream-5-5-261028"),
        format="png",
        modes=("standard",),
        backgrounds=("opaque", "transparent", "auto"),
        **_NEW,
    ),
    Family(
        "5.0-flash",
        ("doubao-seedream-5-0-flash-260915",),
        ("dola-seedream-5-0-flash-260915", "seedream-5-0-flash-260915"),
        modes=("standard",),
        backgrounds=("opaque", "transparent"),
        **_NEW,
    ),
    Family(
        "5.0-pro",
        ("doubao-seedream-5-0-pro-260628",),
        ("dola-seedream-5-0-pro-260628", "seedream-5-0-pro-260628"),
        acedata=("doubao-seedream-5-0-pro-260628",),
        modes=("standard", "fast"),
        backgrounds=("opaque", "transparent"),
        **_NEW,
    ),
    Family(
        "5.0-lite",
        ("doubao-seedream-5-0-260128", "doubao-seedream-5-0-lite-260128"),
        ("seedream-5-0-260128", "seedream-5-0-lite-260128"),
        ope=("bytedance-seedream-5.0",),
        acedata=("doubao-seedream-5-0-lite-260128", "doubao-seedream-5-0-260128"),
        tiers={"2K": _2K, "3K": _3K, "4K": _4K},
        formats=("jpeg", "png"),
        modes=("standard",),
        searching=True,
        **_FREE_4,
    ),
    Family(
        "4.5",
        ("doubao-seedream-4-5-251128",),
        ("seedream-4-5-251128",),
        ope=("doubao-seedream-4.5", "doubao-seedream-4-5-251128"),
        acedata=("doubao-seedream-4-5-251128",),
        tiers={"2K": _2K, "4K": _4K},
        modes=("standard",),
        **_FREE_4,
    ),
    Family(
        "4.0",
        ("doubao-seedream-4-0-250828",),
        ("seedream-4-0-250828",),
        ope=("doubao-seedream-4.0", "doubao-seedream-4-0-250828"),
        acedata=("doubao-seedream-4-0-250828",),
        tiers={"1K": _1K, "2K": _2K, "4K": _4K},
        modes=("standard", "fast"),
        **{**_FREE_4, "pixels": (921_600, 16_777_216)},
    ),
    Family(
        "3.0-t2i",
        ("doubao-seedream-3-0-t2i-250415",),
        ("seedream-3-0-t2i-250415",),
        default_size="1024x1024",
        tiers={},
        pixels=(262_144, 4_194_304),
        references=(0, 0),
        untiered=_1K,
        retiring=True,
    ),
    Family(
        "seededit-3.0",
        ("doubao-seededit-3-0-i2i-250628",),
        ("seededit-3-0-i2i-250628",),
        default_size="adaptive",
        tiers={},
        pixels=None,
        references=(1, 1),
        untiered=_1K,
        reference_ratio=3.0,
        retiring=True,
    ),
)
