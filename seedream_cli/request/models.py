"""The model table: one row a model, dated. No I/O, and nothing about providers' protocols.

Below the table: finding a row by name, alias or id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..text import nearest

State = Literal["taken", "ignored", "refused", "unconfirmed"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a model or provider treats one option, with the reason and its source.

    `taken` is sent; `ignored` and `refused` are not sent unless forced; `unconfirmed` is sent with a warning.
    """

    state: State
    note: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class PriceStep:
    """US dollars for an image of up to `max_pixels` (None: any size), and for each reference image sent.

    `tiers` are the tiers that the price list names for this step, whatever their pixels.
    """

    amount: float
    max_pixels: int | None = None
    tiers: tuple[str, ...] = ()
    per_reference: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class ModelSpec:
    """One model. `ids` has its ids per provider family; the first one is sent.

    `tiers` maps a tier to its exact pixels per aspect ratio ("2K" -> "16:9" -> "2848x1600"); `aspects` is for models
    without tiers. `pixels` is the least and most total pixels of a WIDTHxHEIGHT (None: only keywords are sizes),
    `ratio` the least and most width/height. `references` is the least and most input images. `sequence_max` is 0 where
    one request draws one image. `price` has ascending steps, by provider family with "*" for the list price; no entry:
    no price is known.

    `…_formats_at` are formats of references at one provider, where they differ: for layers with a warning.
    `default_format` is the format of images where none is asked for; with `transparent_from_text` a transparent
    background needs no reference. `thinking`: optimize_prompt_options takes "thinking". `not_served_at` are hosts that
    do not serve the model, with the date since when.

    References: `reference_pixels` (in all) and `reference_side` (least width and height) are in pixels;
    `reference_bytes` is the limit, `reference_bytes_safe` the limit on older pages. `layer_sizes` are the sizes that
    layers can be asked in, the default first; `layers_max` is the most layers above the base, `layers_images` the most
    images, the base among them, where no number is asked for.
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
    reference_bytes_safe: int = 10_000_000
    reference_pixels: tuple[int, int] = (196, 36_000_000)
    reference_side: int = 15
    reference_formats_at: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layers_max: int = 0
    layers_images: int = 0
    layer_sizes: tuple[str, ...] = ()
    layer_reference_formats: tuple[str, ...] = ("png", "jpeg")
    layer_reference_formats_at: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layer_reference_pixels: tuple[int, int] = (262_144, 36_000_000)
    default_format: str = "jpeg"
    backgrounds: tuple[str, ...] = ("transparent", "opaque")
    transparent_from_text: bool = False
    thinking: bool = False
    not_served_at: Mapping[str, str] = field(default_factory=dict)


# --- sources ----------------------------------------------------------------------------------------------------------

_ARK = "Volcengine image generation API, 2026-09"

_MEASURED = "measured calls to Volcengine Ark, 2026-09"

_BYTEPLUS = "BytePlus image generation API, the edition of Seedream 4.5"

_RESELLERS = "BytePlus's own nodes, Comfy Router's and resellers' pages, which agree, 2026-11"

_DISAGREE = "Volcengine, BytePlus, CometAPI and AceData Cloud pages, 2026-11"

_ROUTER = "BytePlus's field texts as Comfy Router reprints them, 2026-11"

# --- legal sizes: width x height of each tier by aspect ratio (the API's recommended pixels, recomputed by a test) ----

_ASPECTS = ("1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3", "21:9")


def _row(sizes: str) -> Mapping[str, str]:
    """Eight sizes in the order of `_ASPECTS`."""
    return dict(zip(_ASPECTS, sizes.split(), strict=True))


_PRO = {
    "1K": _row("1024x1024 1152x864 864x1152 1424x800 800x1424 1248x832 832x1248 1568x672"),
    "1.5K": _row("1536x1536 1792x1344 1344x1792 2048x1152 1152x2048 1872x1248 1248x1872 2352x1008"),
    "2K": _row("2048x2048 2368x1776 1776x2368 2816x1584 1584x2816 2496x1664 1664x2496 3136x1344"),
}

_1K = _row("1024x1024 1152x864 864x1152 1280x720 720x1280 1248x832 832x1248 1512x648")

_2K = _row("2048x2048 2304x1728 1728x2304 2848x1600 1600x2848 2496x1664 1664x2496 3136x1344")

_3K = _row("3072x3072 3456x2592 2592x3456 4096x2304 2304x4096 3744x2496 2496x3744 4704x2016")

_4K = _row("4096x4096 4704x3520 3520x4704 5504x3040 3040x5504 4992x3328 3328x4992 6240x2656")

_ANY_RATIO = (1 / 16, 16.0)

_SMALL = (921_600, 4_624_220)

_LARGE = (3_686_400, 16_777_216)

# --- rules that several rows share ------------------------------------------------------------------------------------

_SEED = Rule("unconfirmed", "documented for 3.0 only; later models may ignore or refuse it", _DISAGREE)

_GUIDANCE = Rule("unconfirmed", "for 3.0 only; the model's own pages call it not supported", _DISAGREE)

_JPEG_ONLY = Rule("refused", "always jpeg; measured calls with the field were refused", _MEASURED)

_NO_SEARCH = Rule("refused", "only 5.0 lite searches the web", _ARK)

_NO_SEQUENCE = Rule("refused", "one request draws one image; use --count for more", _ARK)

_NO_STREAM = Rule("refused", "the model does not stream", _ARK)

_NO_BACKGROUND = Rule("refused", "only 5.5, 5.0 Pro and 5.0 Flash make transparent images", _ARK)

_NO_LAYERS = Rule("refused", "only 5.5, 5.0 Pro and 5.0 Flash split an image into layers", _ARK)

_BACKGROUND = Rule("taken", "needs exactly one PNG reference with a transparent pixel, and --format png", _ARK)

_LAYERS = Rule("taken", "needs exactly one PNG or JPEG reference of at least 512x512 pixels", _ARK)

_NEWER = Rule("refused", "the parameter came with a later model", _BYTEPLUS)

_PRO_RULES = {
    "seed": _SEED,
    "guidance_scale": _GUIDANCE,
    "sequence": _NO_SEQUENCE,
    "stream": _NO_STREAM,
    "web_search": _NO_SEARCH,
    "background": _BACKGROUND,
    "layers": _LAYERS,
}

_GROUP_RULES = {
    "seed": _SEED,
    "guidance_scale": _GUIDANCE,
    "background": _NO_BACKGROUND,
    "layers": _NO_LAYERS,
}

_OLD_RULES = {
    "format": Rule("refused", "always jpeg", _BYTEPLUS),
    "sequence": _NEWER,
    "stream": _NEWER,
    "optimize_prompt": _NEWER,
    "web_search": _NEWER,
    "background": _NEWER,
    "layers": _NEWER,
}

_RESOLD = Rule("unconfirmed", "no official page describes this model yet", _RESELLERS)

_RESOLD_REFUSED = Rule("unconfirmed", "resellers say it is refused; no official page yet", _RESELLERS)

_NO_HEIC = ("jpeg", "png", "webp", "bmp", "tiff", "gif")
"""References at BytePlus, except for 5.0 Pro; and what its layers are made of, where Volcengine takes PNG and JPEG."""

DEFAULT_MODEL = "5.0-lite"
"""The model of a request that names none."""

MODELS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="5.5",
        title="Seedream 5.5",
        aliases=("5.5",),
        ids={
            "ark": ("doubao-seedream-5-5-261028",),
            "byteplus": ("dola-seedream-5-5-261028", "seedream-5-5-261028"),
        },
        default_size="2K",
        tiers=_PRO,
        pixels=_SMALL,
        ratio=_ANY_RATIO,
        references=(0, 10),
        sequence_max=0,
        rules={
            "seed": _RESOLD,
            "guidance_scale": _RESOLD,
            "stream": _RESOLD_REFUSED,
            "optimize_prompt": _RESOLD,
            "web_search": _RESOLD_REFUSED,
            "background": Rule("taken", "from text or references; not with --format jpeg, nor with layers", _RESELLERS),
            "layers": Rule("taken", "2 to 100 images, the base among them; 30 unless told otherwise", _RESELLERS),
            "sequence": Rule("refused", "one request draws one image; use --count for more", _RESELLERS),
        },
        formats=("jpeg", "png"),
        optimize_modes=("standard",),
        price={"*": (PriceStep(0.020, 2_601_123, ("1K", "1.5K"), 0.008), PriceStep(0.035, None, ("2K",), 0.008))},
        price_as_of="2026-11",
        as_of="2026-11",
        source=_RESELLERS,
        status="unconfirmed",
        layers_max=99,
        layers_images=30,
        layer_sizes=("auto", "1K", "1.5K", "2K"),
        reference_formats_at={"byteplus": _NO_HEIC},
        layer_reference_formats_at={"byteplus": _NO_HEIC},
        default_format="png",
        backgrounds=("transparent", "opaque", "auto"),
        transparent_from_text=True,
        thinking=True,
    ),
    ModelSpec(
        name="5.0-pro",
        title="Seedream 5.0 Pro",
        aliases=("pro", "5-pro"),
        ids={
            "ark": ("doubao-seedream-5-0-pro-260628",),
            "byteplus": ("dola-seedream-5-0-pro-260628", "seedream-5-0-pro-260628"),
            "acedata": ("doubao-seedream-5-0-pro-260628",),
        },
        default_size="2K",
        tiers=_PRO,
        pixels=_SMALL,
        ratio=_ANY_RATIO,
        references=(0, 10),
        sequence_max=0,
        rules=_PRO_RULES,
        formats=("jpeg", "png"),
        optimize_modes=("standard", "fast"),
        # 1K and 1.5K cost less than 2K, a WIDTHxHEIGHT by its pixels. Pages give the limit as 2.36 and as 2.60
        # million pixels; the lower one never underestimates. On Ark references beyond the first cost 0.02 CNY; here
        # every one is counted.
        price={
            "*": (PriceStep(0.045, 2_360_000, ("1K", "1.5K"), 0.003), PriceStep(0.09, None, ("2K",), 0.003)),
            "acedata": (PriceStep(0.044, 2_360_000, ("1K", "1.5K")), PriceStep(0.088, None, ("2K",))),
        },
        price_as_of="2026-11",
        as_of="2026-09",
        source=_ARK,
        layers_max=16,
        layers_images=17,
        layer_sizes=("auto", "1K", "1.5K", "2K"),
        reference_bytes_safe=30_000_000,
        layer_reference_formats_at={"byteplus": _NO_HEIC},
        thinking=True,
    ),
    ModelSpec(
        name="5.0-flash",
        title="Seedream 5.0 Flash",
        aliases=("flash", "5-flash"),
        ids={
            "ark": ("doubao-seedream-5-0-flash-260915",),
            "byteplus": ("dola-seedream-5-0-flash-260915", "seedream-5-0-flash-260915"),
        },
        default_size="2K",
        tiers=_PRO,
        pixels=_SMALL,
        ratio=_ANY_RATIO,
        references=(0, 10),
        sequence_max=0,
        rules=_PRO_RULES,
        formats=("jpeg", "png"),
        optimize_modes=("standard",),
        price={"*": (PriceStep(0.018),)},
        price_as_of="2026-11",
        as_of="2026-09",
        source=_MEASURED,
        layers_max=16,
        layers_images=17,
        layer_sizes=("auto", "1K", "1.5K", "2K"),
        reference_formats_at={"byteplus": _NO_HEIC},
        layer_reference_formats_at={"byteplus": _NO_HEIC},
    ),
    ModelSpec(
        name="5.0-lite",
        title="Seedream 5.0 lite",
        aliases=("5.0", "5", "lite", "5-lite"),
        ids={
            "ark": ("doubao-seedream-5-0-260128", "doubao-seedream-5-0-lite-260128"),
            "byteplus": ("seedream-5-0-260128", "seedream-5-0-lite-260128"),
            "ope": ("bytedance-seedream-5.0",),
            "acedata": ("doubao-seedream-5-0-lite-260128", "doubao-seedream-5-0-260128"),
        },
        default_size="2K",
        tiers={"2K": _2K, "3K": _3K, "4K": _4K},
        pixels=_LARGE,
        ratio=_ANY_RATIO,
        references=(0, 14),
        sequence_max=15,
        rules=_GROUP_RULES,
        formats=("jpeg", "png"),
        optimize_modes=("standard",),
        price={"*": (PriceStep(0.035),), "acedata": (PriceStep(0.040),)},
        price_as_of="2026-11",
        as_of="2026-09",
        source=_ARK,
        reference_formats_at={"byteplus": _NO_HEIC},
        thinking=True,
        not_served_at={"ark.eu-west.bytepluses.com": "2026-09-10"},
    ),
    ModelSpec(
        name="4.5",
        title="Seedream 4.5",
        aliases=("4.5",),
        ids={
            "ark": ("doubao-seedream-4-5-251128",),
            "byteplus": ("seedream-4-5-251128",),
            "ope": ("doubao-seedream-4.5", "doubao-seedream-4-5-251128"),
            "acedata": ("doubao-seedream-4-5-251128",),
        },
        default_size="2K",
        tiers={"2K": _2K, "4K": _4K},
        pixels=_LARGE,
        ratio=_ANY_RATIO,
        references=(0, 14),
        sequence_max=15,
        rules={**_GROUP_RULES, "format": _JPEG_ONLY, "web_search": _NO_SEARCH},
        formats=("jpeg",),
        optimize_modes=("standard",),
        price={"*": (PriceStep(0.04),), "acedata": (PriceStep(0.037),), "cometapi": (PriceStep(0.032),)},
        price_as_of="2026-11",
        as_of="2026-09",
        source=_ARK,
        reference_formats_at={"byteplus": _NO_HEIC},
        thinking=True,
    ),
    ModelSpec(
        name="4.0",
        title="Seedream 4.0",
        aliases=("4",),
        ids={
            "ark": ("doubao-seedream-4-0-250828",),
            "byteplus": ("seedream-4-0-250828",),
            "ope": ("doubao-seedream-4.0", "doubao-seedream-4-0-250828"),
            "acedata": ("doubao-seedream-4-0-250828",),
        },
        default_size="2K",
        tiers={"1K": _1K, "2K": _2K, "4K": _4K},
        pixels=(921_600, 16_777_216),
        ratio=_ANY_RATIO,
        references=(0, 14),
        sequence_max=15,
        rules={**_GROUP_RULES, "format": _JPEG_ONLY, "web_search": _NO_SEARCH},
        formats=("jpeg",),
        optimize_modes=("standard", "fast"),
        price={"*": (PriceStep(0.03),), "acedata": (PriceStep(0.030),)},
        price_as_of="2026-11",
        as_of="2026-09",
        source=_ARK,
        reference_formats_at={"byteplus": _NO_HEIC},
        thinking=True,
    ),
    ModelSpec(
        name="3.0-t2i",
        title="Seedream 3.0",
        aliases=("3.0", "3"),
        ids={
            "ark": ("doubao-seedream-3-0-t2i-250415",),
            "byteplus": ("seedream-3-0-t2i-250415",),
            "ope": ("doubao-seedream-3-0-t2i-250415",),
            "acedata": ("doubao-seedream-3-0-t2i-250415",),
        },
        default_size="1024x1024",
        tiers={},
        aspects=_1K,
        pixels=(262_144, 4_194_304),
        # No page states a ratio for this model: that of its successors.
        ratio=_ANY_RATIO,
        references=(0, 0),
        sequence_max=0,
        rules={
            **_OLD_RULES,
            "images": Rule("refused", "the model draws from text alone", _BYTEPLUS),
            "seed": Rule("taken", "-1 (the default) draws a new one each time", _BYTEPLUS),
            "guidance_scale": Rule("taken", "1 to 10, default 2.5", _BYTEPLUS),
        },
        formats=("jpeg",),
        optimize_modes=(),
        price={},
        price_as_of="",
        as_of="2026-11",
        source=_BYTEPLUS,
        status="retired",
    ),
    ModelSpec(
        name="seededit-3.0",
        title="SeedEdit 3.0",
        aliases=("seededit", "3.0-i2i"),
        ids={
            "ark": ("doubao-seededit-3-0-i2i-250628",),
            "byteplus": ("seededit-3-0-i2i-250628",),
            "acedata": ("doubao-seededit-3-0-i2i-250628",),
        },
        default_size="adaptive",
        tiers={},
        keywords=("adaptive",),
        pixels=None,
        ratio=(1 / 3, 3.0),
        references=(1, 1),
        sequence_max=0,
        rules={
            **_OLD_RULES,
            "seed": Rule("taken", "-1 (the default) draws a new one each time", _BYTEPLUS),
            "guidance_scale": Rule("taken", "1 to 10, default 5.5", _BYTEPLUS),
        },
        formats=("jpeg",),
        optimize_modes=(),
        price={},
        price_as_of="",
        as_of="2026-11",
        source=_BYTEPLUS,
        status="retired",
        reference_formats=("jpeg", "png", "webp", "bmp", "tiff", "gif"),
        reference_ratio=(1 / 3, 3.0),
        reference_bytes=10_000_000,
    ),
)
"""All models, newest first."""


# --- finding a row ----------------------------------------------------------------------------------------------------


def find_model(name: str, family: str = "") -> ModelSpec | None:
    """The row of a name, an alias or any provider's id; None for an unknown one.

    Ids match with and without their date, names with and without "seedream-", and other services' ids too
    ("doubao-seedream-4.5", "fal-ai/bytedance/seedream/v4.5/edit"). The ids of `family` are tried first.
    """
    wanted = _plain(name)
    own = (row for row in MODELS if wanted in {_plain(spelling) for spelling in row.ids.get(family, ())})
    found = next(own, None) or next((row for row in MODELS if wanted in _spellings(row)), None)
    return found or _find_foreign(name)


def is_name(typed: str) -> bool:
    """Whether a text is one of our own names ("4.5", "pro", "Seedream 4.5"), which no service uses as an id."""
    text = " ".join(typed.lower().split())
    return any(text in {row.name, *row.aliases, row.title.lower()} for row in MODELS)


_VENDORS = frozenset(("fal", "ai", "bytedance", "byteplus", "doubao", "dola", "seed", "volcengine", "volces"))

_KINDS = frozenset(("text", "to", "image", "t2i", "i2i", "edit", "layerize"))
"""Words at the end of a service's id that name the task and not the model."""

_OTHER_ACTIONS: Mapping[str, frozenset[str]] = {
    # The first only draws and the second only edits, so these ids are neither.
    "seedream-3.0": frozenset(("i2i", "edit", "layerize")),
    "seededit-3.0": frozenset(("t2i", "text", "layerize")),
}


def _find_foreign(name: str) -> ModelSpec | None:
    """The row of another service's id, by its words: vendor, "seedream", version, variant, task, date.

    None where a word is none of these, or the date is another model's.
    """
    words = [word for word in re.split(r"[\s/:@._-]+", name[:200].strip().lower()) if word]
    while words and words[0] in _VENDORS:
        words.pop(0)
    if not words or words[0] not in {"seedream", "seededit"}:
        return None
    stem, words = words[0], words[1:]
    version = re.fullmatch(r"v?([1-9])", words[0]) if words else None
    if version is None:
        return None
    minor = words.pop(1) if len(words) > 1 and re.fullmatch("[0-9]", words[1]) else "0"
    words.pop(0)
    date = words.pop() if words and re.fullmatch("[0-9]{6}", words[-1]) else ""
    plain = f"{version[1]}.{minor}"
    named = [row for row in MODELS if _version_of(row) == (stem, plain)]
    flavour = words.pop(0) if words and f"{plain}-{words[0]}" in {row.name for row in named} else ""
    if not set(words) <= _KINDS - _OTHER_ACTIONS.get(f"{stem}-{plain}", frozenset()):
        return None
    # A version without variant is the model of that name.
    label = f"{plain}-{flavour}" if flavour else plain
    row = next((row for row in named if label in {row.name, *row.aliases} or stem == "seededit"), None)
    if row is None or (date and not any(spelling.endswith(date) for ids in row.ids.values() for spelling in ids)):
        return None
    return row


def _version_of(row: ModelSpec) -> tuple[str, str]:
    """The stem of a row's ids and its version: ("seedream", "4.5")."""
    version = re.search("[0-9][.][0-9]", row.name)
    return "seededit" if row.name.startswith("seededit") else "seedream", version[0] if version else ""


def nearest_models(name: str) -> list[str]:
    """The names of models spelled like `name`, best first; all names, newest first, for an empty one."""
    if not name.strip():
        return [row.name for row in MODELS]
    owner = {spelling: row.name for row in MODELS for spelling in _spellings(row)}
    return list(dict.fromkeys(owner[spelling] for spelling in nearest(_plain(name), owner, 9)))[:3]


def _spellings(row: ModelSpec) -> Iterator[str]:
    """All names, aliases and ids of a row in the form of `_plain`; an id also without its date."""
    for text in (row.name, *row.aliases):
        yield _plain(text)
    for spelling in (text for family in row.ids.values() for text in family):
        yield _plain(spelling)
        yield re.sub(r"-[0-9]{6}$", "", _plain(spelling))


def _plain(name: str) -> str:
    """Lower case, dashes for spaces and underscores, without a leading "seedream" before a number."""
    text = re.sub(r"[\s_]+", "-", name.strip().lower())
    return re.sub(r"^seedream-?(?=[0-9])", "", text)
