"""JSON as providers write it: flaws that stand beside the image keep nobody from reading it."""

from __future__ import annotations

import functools
import json
import math
import re
from typing import Any

# Escapes are taken in order, or the second half of an escaped backslash would be read as the start of one.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_BRACKET = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)

_DEPTH = 100

_DIGITS = 18
"""As many as fit into the 64 bits of a database, whatever they are."""


def parse_json(raw: bytes | bytearray) -> Any:
    """JSON that somebody else wrote, made of values that can be written down again. ValueError where it is none.

    Half a surrogate pair, which UTF-8 has no bytes for, and bytes that are no UTF-8 become U+FFFD; a number that is
    infinite or longer than any real one, and a constant that JSON has not, become null; control characters may stand in
    a string. Nothing of it may keep an image that was paid for from the disk.
    """
    text = plain_text(raw).strip("\0 \t\r\n")
    value, end = read_value(text, 0)
    if end != len(text):
        raise json.JSONDecodeError("extra data", text, end)
    return value


def plain_text(raw: bytes | bytearray) -> str:
    """The text of bytes from outside, each of its characters one that can be written down again."""
    text = raw.decode("utf-8-sig", "replace")
    if _SURROGATE.search(raw):
        text = _ESCAPE.sub(lambda found: "\ufffd" if found[1] else found[0], text)
    return text


def read_value(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends. ValueError where none does, or it is cut."""
    try:
        return _decoder().raw_decode(text, start)
    except RecursionError:
        shallow, end = _cut_depths(text, start)
    try:
        return _decoder().raw_decode(shallow)[0], end
    except json.JSONDecodeError as error:
        # It was looked at as far as that.
        raise json.JSONDecodeError(error.msg, text, end) from error


def _cut_depths(text: str, start: int) -> tuple[str, int]:
    """The JSON value that begins at `start` with null for all that is nested too deeply to be read, and where it ends.
    No image lies there. ValueError where it is cut.
    """
    depth, pieces, begin = 0, list[str](), start
    for found in _BRACKET.finditer(text, start):
        if found[0] in {"[", "{"}:
            depth += 1
            if depth == _DEPTH:
                pieces += [text[begin : found.start()], "null"]
        elif found[0] in {"]", "}"}:
            begin = found.end() if depth == _DEPTH else begin
            depth -= 1
            if depth == 0:
                return "".join([*pieces, text[begin : found.end()]]), found.end()
    raise json.JSONDecodeError("the JSON is nested deeply, and cut", text, len(text))


@functools.cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(
        strict=False,
        parse_int=_read_integer,
        parse_float=_read_fraction,
        parse_constant=_no_constant,
        object_pairs_hook=_read_object,
    )


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Of a name that stands there twice nothing is lost: lists are joined, what is empty gives way."""
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    made = {}
    for name, value in pairs:
        before = made.get(name)
        if isinstance(before, list) and isinstance(value, list):
            made[name] = before + value
        elif value or not before:
            made[name] = value
    return made


def _read_integer(digits: str) -> int | None:
    return int(digits) if len(digits.lstrip("-")) <= _DIGITS else None


def _no_constant(name: str) -> None:
    """NaN and Infinity, which no field of ours can be."""


def _read_fraction(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None
