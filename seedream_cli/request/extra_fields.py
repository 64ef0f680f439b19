"""What a body field given by `--extra` affects: the price, the parsing of the response, neither, or unknown.

A field that sets the number of images or their price is refused: costs are computed from the options alone. Gateways
accept `N`, `numImages` and nested fields too, so a field is recognised by the words of its name, at any depth.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Affected = Literal["money", "reading", "harmless", "unknown"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field, by its path ("input.n"): what it affects, and the option that does the same ("" for none)."""

    path: str
    affects: Affected
    option: str = ""


COUNT, SET, SIZE, ASPECT = "-n/--count", "--sequence", "--size", "--aspect"

_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("n", "num", "number", "count", "counts", "samples", "outputs", "batch", "quantity"), COUNT),
    **dict.fromkeys(("model", "models", "engine"), "--model"),
    **dict.fromkeys(("size", "sizes", "width", "height", "resolution", "quality", "pixels", "megapixels"), SIZE),
    **dict.fromkeys(("aspect", "ratio"), ASPECT),
    **dict.fromkeys(("layer", "layers", "layered", "decomposition", "layerize"), "--layers"),
    **dict.fromkeys(("sequence", "sequential"), SET),
    **dict.fromkeys(("image", "images", "picture", "pictures", "reference", "references"), "--image"),
}
"""Words in names of fields that affect the price, and the option to use instead."""

_PARTS = (
    ("sequential", SET),
    ("layer", "--layers"),
    ("decompos", "--layers"),
    ("maximage", f"{COUNT} or {SET}"),
    ("numimage", COUNT),
    ("imagecount", COUNT),
    ("imagesize", SIZE),
    ("resolution", SIZE),
    ("aspectratio", ASPECT),
    ("batchsize", COUNT),
    ("modelid", "--model"),
    ("modelname", "--model"),
)
"""The same for names whose words are not separated, such as `maximages`; the first match counts."""

_READING: Mapping[str, str] = {
    "prompt": "the prompt itself, or --prompt-file",
    "stream": "--stream",
    "async": "--async or --sync",
    "callbackurl": "--callback-url",
    "responseformat": "--response-format",
    # Some providers bill a search separately.
    "tools": "--web-search",
    "websearch": "--web-search",
}
"""Fields that change how the response is parsed or named, or that are billed separately, and their options."""

HARMLESS = frozenset(
    (
        *("seed", "guidancescale", "watermark", "outputformat", "background", "optimizeprompt"),
        *("optimizepromptoptions", "user", "style", "moderation", "outputcompression", "action"),
    )
)
"""Fields of the known APIs that affect neither; sent as given."""

_INNER = {"optimizepromptoptions": frozenset({"mode", "thinking"})}
"""The known fields inside harmless objects."""

COUNTED = frozenset(
    (
        *("n", "model", "size", "image", "layer_decomposition"),
        *("sequential_image_generation", "sequential_image_generation_options"),
    )
)
"""Fields, spelled as in the API, from which the cost can be computed when `--force` sends them."""


def fields_of(extra: Mapping[str, Any]) -> Iterator[Field]:
    """Each top-level field, and the nested ones that affect the price."""
    for key, value in extra.items():
        plain = _plain(key)
        option = _priced_option(key)
        inner = list(_inner_fields(key, value))
        if option:
            yield Field(key, "money", option)
        elif plain in _READING:
            yield Field(key, "reading", _READING[plain])
        elif plain in HARMLESS and not _has_unknown_field(plain, value):
            yield Field(key, "harmless")
        else:
            yield Field(key, "unknown")
        # Fields nested in a refused one are not reported too.
        if not option:
            yield from inner


def uncounted(extra: Mapping[str, Any]) -> list[str]:
    """The fields that make the cost of a request unknown: unknown ones, and those that only look like a count."""
    found = [one.path for one in fields_of(extra) if one.affects == "unknown"]
    found += [one.path for one in fields_of(extra) if one.affects == "money" and one.path not in COUNTED]
    return list(dict.fromkeys(found))


def _inner_fields(path: str, value: Any, depth: int = 0) -> Iterator[Field]:
    """The nested fields that affect the price."""
    if depth > _DEPTH:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            option = _priced_option(str(key))
            if option:
                yield Field(f"{path}.{key}", "money", option)
            else:
                yield from _inner_fields(f"{path}.{key}", item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inner_fields(path, item, depth + 1)


_DEPTH = 50
"""Deeper than any API's body; a field there is inside one that is reported as unknown."""


def _has_unknown_field(plain: str, value: Any) -> bool:
    """Whether a harmless field holds nested fields that its API does not know."""
    known = _INNER.get(plain)
    if known is None:
        return isinstance(value, Mapping | list)
    return not isinstance(value, Mapping) or any(_plain(str(key)) not in known for key in value)


def _priced_option(name: str) -> str:
    """The option that replaces a field of this name, "" where the field does not affect the price."""
    plain = _plain(name)
    if plain in HARMLESS or plain in _READING:
        return ""
    for part, option in _PARTS:
        if part in plain:
            return option
    if plain in _WORDS:
        return _WORDS[plain]
    found = [_WORDS[word] for word in _split_words(name) if word in _WORDS]
    # `number of images` means --count and `image size` --size, so --image comes last.
    return next((option for option in found if option != "--image"), "--image" if found or "image" in plain else "")


def _plain(name: str) -> str:
    """A name without separators and case: "Seq-Image.N" is "seqimagen"."""
    folded = unicodedata.normalize("NFKC", name[:200]).casefold()
    return re.sub(r"[^a-z0-9]+", "", folded)


def _split_words(name: str) -> list[str]:
    """The words of a name: `num_outputs`, `numOutputs` and `Num-Outputs` are "num" and "outputs"."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name[:200]))
    return re.findall(r"[a-z]+", apart.casefold())
