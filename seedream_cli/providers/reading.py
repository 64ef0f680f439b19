"""Parses images and failed members of responses and stream events."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..results import Base64Slice, Layer, ProviderImage
from .contract import _BASE64_STARTS, _CHARACTERS, _DEPTH, _MEMBERS, Completed, ProviderSpec, Ready, _mapping, _text
from .error_text import message_in, plain_code
from .faults import _MOST_IMAGES, _fault, _member_error, _no_image, api_error, fault_in, task_state


def read_images(spec: ProviderSpec, body: Any, headers: Mapping[str, str]) -> Ready | None:
    """The images and failed members of a response, under `data` or a similar name; None where there are none."""
    items = _image_list(body)
    if not items:
        return None
    outer = body if isinstance(body, Mapping) else {}
    return Ready(
        images=tuple(read_image(spec, item, index) for index, item in enumerate(items)),
        usage=_bounded(outer.get("usage")),
        request_id=_text(outer.get("trace_id")) or headers.get("x-request-id", ""),
    )


_IMAGE_KEYS = ("url", "image_url", "imageUrl", "b64_json", "b64", "base64", "image_base64", "image", "link", "src")
"""Names of a member's image, likeliest first."""

_LIST_KEYS = ("images", "image_urls", "imageUrls", "urls", "output", "outputs", "result", "results", "response")
"""Names that gateways use for the list of images instead of `data`."""

_LIST_DEPTH = 4


def _image_list(body: Any) -> list[Any]:
    """The members of a response. A list under `data` is taken with its failed members; a list elsewhere only where it
    holds images, and the response is neither an error nor a task record.
    """
    data = body.get("data") if isinstance(body, Mapping) else None
    if isinstance(data, list) and data:
        nested = [item for part in data for item in part] if all(isinstance(part, list) for part in data) else data
        return [one for item in nested for one in _members(item)]
    if isinstance(body, Mapping) and fault_in(body) is not None:
        return []
    found = _images_at(body, _LIST_DEPTH)
    return list({_image_in(one) or id(one): one for one in found}.values())


def _images_at(value: Any, depth: int) -> list[Any]:
    """The images in a value: a list, a single one, or an object that has them under one of its names."""
    if not depth or value is None:
        return []
    if isinstance(value, list):
        parts = (_images_at(one, depth - 1) if isinstance(one, list) else _members(one) for one in value)
        found = [one for part in parts for one in part]
        return found if found and all(_image_in(one) for one in found) else []
    if isinstance(value, str | Base64Slice):
        return [value] if _image_in(value) else []
    if not isinstance(value, Mapping) or task_state(value):
        return []
    for name in ("data", *_LIST_KEYS):
        if found := _images_at(value.get(name), depth - 1):
            return found
    # An object with the prompt repeats the request, so its image is the reference.
    return _members(value) if "prompt" not in value and _image_in(value) else []


def _members(item: Any) -> list[Any]:
    """A member, or several where its image field is a list."""
    if isinstance(item, Mapping):
        for key in _IMAGE_KEYS:
            if isinstance(several := item.get(key), list) and several:
                return [{**item, key: one} for one in several]
    return [item]


def _image_in(item: Any) -> Any:
    """The image of a member: URL, data URI, base64 or `Base64Slice`; None where it has none."""
    if isinstance(item, Base64Slice):
        return item
    if isinstance(item, str):
        # A bare string is an image only where it can be nothing else.
        known = item.startswith(_BASE64_STARTS) or re.match(r"https?://.|data:image/|/[^/]", item, re.IGNORECASE)
        return item if known else None
    if not isinstance(item, Mapping):
        return None
    values = (item.get(key) for key in _IMAGE_KEYS)
    inner = (_image_in(value) if isinstance(value, Mapping) else value for value in values)
    return next(
        (value for value in inner if isinstance(value, Base64Slice) or (isinstance(value, str) and value)), None
    )


def read_image(spec: ProviderSpec, item: Any, index: int) -> ProviderImage:
    """One member of a response or one stream event: URL, base64, or an error."""
    value = _image_in(item)
    fields = item if isinstance(item, Mapping) else {}
    size = _text(fields.get("size")).replace("×", "x").replace("*", "x")
    image_format = _text(fields.get("output_format"))
    layer = _read_layer(fields)
    if isinstance(value, Base64Slice):
        return ProviderImage(index, blob=value, size=size, format=image_format, layer=layer)
    if isinstance(value, str):
        # Some gateways put a data URI into the URL or base64 field.
        inline = re.match(r"data:(?:image/([a-z0-9.+-]{1,40}))?[^,]{0,300},", value, re.IGNORECASE)
        if inline:
            image_format = image_format or (inline[1] or "").lower()
            return ProviderImage(index, base64=value[inline.end() :], size=size, format=image_format, layer=layer)
        if _is_base64(fields, value):
            return ProviderImage(index, base64=value, size=size, format=image_format, layer=layer)
        return ProviderImage(index, link=value, size=size, format=image_format, layer=layer)
    fault = fault_in(fields) if fields else None
    return ProviderImage(index, size=size, error=_member_error(spec, fault) if fault else _no_image(spec))


def _is_base64(item: Mapping[str, Any], value: str) -> bool:
    """Whether an image is base64, by its field's name, or by its first characters where the field may hold both."""
    key = next((key for key in _IMAGE_KEYS if value in (item.get(key), _image_in(item.get(key)))), "")
    if key in {"", "image"}:
        return value.startswith(_BASE64_STARTS)
    return key in {"b64_json", "b64", "base64", "image_base64"}


def read_stream_event(spec: ProviderSpec, event: Mapping[str, Any]) -> ProviderImage | Completed | None:
    """One event with Ark's types; None for previews and unknown events. A failed member is an image with an error."""
    kind = _text(event.get("type"))
    if kind in {"image_generation.partial_succeeded", "image_generation.partial_failed"}:
        index = event.get("image_index")
        # -1: the caller assigns the next free index.
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < _MOST_IMAGES:
            index = -1
        return read_image(spec, event, index)
    fault = fault_in(event) or (
        _fault(plain_code(event.get("code")), message_in(event), "") if kind == "error" else None
    )
    if fault:
        raise api_error(spec, fault)
    if kind == "image_generation.completed":
        return Completed(_bounded(event.get("usage")))
    return None


def _read_layer(item: Mapping[str, Any]) -> Layer | None:
    """The fields of a layer; None for an image that is none."""
    z_index = item.get("z_index")
    if not isinstance(z_index, int):
        return None
    box = _mapping(item.get("bounding_box")) or {}
    return Layer(
        z_index,
        name=_text(item.get("name")),
        description=_text(item.get("description")),
        absolute=_numbers(box.get("absolute")),
        normalized=_numbers(box.get("normalized")),
    )


def _numbers(value: Any) -> tuple[int, ...]:
    """A list of numbers, rounded; () for any other value."""
    if not isinstance(value, list) or not all(isinstance(one, int | float) for one in value):
        return ()
    return tuple(round(one) for one in value)


def _bounded(value: Any) -> Mapping[str, Any] | None:
    """An object cut to the limits for storing and printing."""
    return _cut(value, _DEPTH) if isinstance(value, Mapping) else None


def _cut(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _CHARACTERS else value[:_CHARACTERS] + "…"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "…"
    if not isinstance(value, Mapping | list):
        return value if isinstance(value, int | float) or value is None else "…"
    if not depth:
        return "…"
    if isinstance(value, list):
        return [_cut(one, depth - 1) for one in value[:_MEMBERS]] + ["…"] * (len(value) > _MEMBERS)
    members = list(value.items())
    cut = {str(name)[:200]: _cut(one, depth - 1) for name, one in members[:_MEMBERS]}
    return cut | ({"…": "…"} if len(members) > _MEMBERS else {})
