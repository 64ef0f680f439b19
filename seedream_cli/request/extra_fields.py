"""What a field given by `--extra` bears on: the price, the reading of the answer, nothing of the two, or nobody knows.

What sets how many images come or what they cost has an option of its own, and the options are what every sum is made
of: such a field is refused, however it is spelled and however deep it lies. Gateways read `N`, `numImages` and a
field inside another as they like, so a name is judged by its words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Bearing = Literal["money", "reading", "harmless", "unknown"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an extra, by its path ("input.n"): what it bears on, and the option that does the same."""

    path: str
    bearing: Bearing
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
"""Words of a field's name that bear on the money, and the option that is meant."""

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
"""The same for names without borders between their words, such as `maximages`; the first that is found holds."""

_READING: Mapping[str, str] = {
    "prompt": "the prompt itself, or --prompt-file",
    "stream": "--stream",
    "async": "--async or --sync",
    "callbackurl": "--callback-url",
    "responseformat": "--response-format",
    # A search is billed by itself at some providers.
    "tools": "--web-search",
    "websearch": "--web-search",
}
"""What the tool must know of to read, name and find the answer again, or what may cost by itself."""

HARMLESS = frozenset(
    (
        *("seed", "guidancescale", "watermark", "outputformat", "background", "optimizeprompt"),
        *("optimizepromptoptions", "user", "style", "moderation", "outputcompression", "action"),
    )
)
"""Fields of the known APIs that change neither the money nor the reading of the answer: they are sent as given."""

_INNER = {"optimizepromptoptions": frozenset({"mode", "thinking"})}
"""Of harmless fields with fields inside: those that are known."""

COUNTED = frozenset(
    (
        *("n", "model", "size", "image", "layer_decomposition"),
        *("sequential_image_generation", "sequential_image_generation_options"),
    )
)
"""Fields whose meaning for the sum is known, spelled as the API has them: what `--force` sends is counted by them."""


def fields_of(extra: Mapping[str, Any]) -> Iterator[Field]:
    """Every field of an extra that bears on something, and what nobody knows; each outer name once."""
    for key, value in extra.items():
        plain = _plain(key)
        option = _money_option(key)
        inner = list(_inner_fields(key, value))
        if option:
            yield Field(key, "money", option)
        elif plain in _READING:
            yield Field(key, "reading", _READING[plain])
        elif plain in HARMLESS and not _strange(plain, value):
            yield Field(key, "harmless")
        else:
            yield Field(key, "unknown")
        # What lies in a field that is refused need not be told too.
        if not option:
            yield from inner


def uncounted(extra: Mapping[str, Any]) -> list[str]:
    """The fields that make the cost of a request unknown: those that nobody knows, and what only looks like a count."""
    found = [one.path for one in fields_of(extra) if one.bearing == "unknown"]
    found += [one.path for one in fields_of(extra) if one.bearing == "money" and one.path not in COUNTED]
    return list(dict.fromkeys(found))


def _inner_fields(path: str, value: Any, depth: int = 0) -> Iterator[Field]:
    """What bears on the money inside a field."""
    if depth > _DEPTH:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            option = _money_option(str(key))
            if option:
                yield Field(f"{path}.{key}", "money", option)
            else:
                yield from _inner_fields(f"{path}.{key}", item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inner_fields(path, item, depth + 1)


_DEPTH = 50
"""Deeper than any API's body; what lies there is in a field that nobody knows anyway."""


def _strange(plain: str, value: Any) -> bool:
    """Whether a harmless field holds more than its API knows."""
    known = _INNER.get(plain)
    if known is None:
        return isinstance(value, Mapping | list)
    return not isinstance(value, Mapping) or any(_plain(str(key)) not in known for key in value)


def _money_option(name: str) -> str:
    """The option that sets what a field of this name would set, "" where that is not the money."""
    plain = _plain(name)
    if plain in HARMLESS or plain in _READING:
        return ""
    for part, option in _PARTS:
        if part in plain:
            return option
    if plain in _WORDS:
        return _WORDS[plain]
    found = [_WORDS[word] for word in _split_words(name) if word in _WORDS]
    # Of `number of images` and `image size` it is the images that are counted, and the size that is set.
    return next((option for option in found if option != "--image"), "--image" if found or "image" in plain else "")


def _plain(name: str) -> str:
    """A name without borders and case: "Seq-Image.N" is "seqimagen"."""
    folded = unicodedata.normalize("NFKC", name[:200]).casefold()
    return re.sub(r"[^a-z0-9]+", "", folded)


def _split_words(name: str) -> list[str]:
    """The words of a name: `num_outputs`, `numOutputs` and `Num-Outputs` are "num" and "outputs"."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name[:200]))
    return re.findall(r"[a-z]+", apart.casefold())
