"""The body of a request: JSON of a known length, its reference pictures encoded from their files while it is sent."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .errors import InputError, InternalError, Problem
from .request import ImageRef

_READ_STEP = 3 << 16  # a multiple of three, so that base64 pads only at the very end


def encode_body(body: Mapping[str, Any]) -> tuple[int, Callable[[], Iterator[bytes]]]:
    """A JSON body's exact length in bytes, and a maker of its pieces. References are read and encoded piece by piece.

    Raises InputError for what cannot be JSON, and for a reference file whose size is not what was checked.
    """
    mark = secrets.token_hex(16)
    refs: list[ImageRef] = []

    def place(value: object) -> str:
        if not isinstance(value, ImageRef):
            raise InternalError(f"a request body holds a {type(value).__name__}")
        if value.kind == "url":
            return value.location
        refs.append(value)
        return mark

    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=place)
        texts = [part.encode() for part in text.split(mark)]
    except ValueError as exc:
        # A lone surrogate (half of a character) and NaN have no form in UTF-8 and JSON.
        message = "the request holds half a character (a lone surrogate) or a number that JSON cannot carry"
        raise InputError([Problem("prompt", message)]) from exc
    heads = [f"data:{ref.mime};base64,".encode() for ref in refs]
    length = sum(map(len, texts)) + sum(map(len, heads)) + sum(4 * ((_size(ref) + 2) // 3) for ref in refs)

    def pieces() -> Iterator[bytes]:
        for text, head, ref in zip(texts, heads, refs, strict=False):
            yield text + head
            yield from _encoded(ref)
        yield texts[-1]

    return length, pieces


def _size(ref: ImageRef) -> int:
    """The bytes of a reference, checked against what they were when it was judged."""
    if ref.path is None:
        return len(ref.content)
    try:
        size = ref.path.stat().st_size
    except OSError as exc:
        raise _unreadable(ref, exc) from exc
    if size != ref.size:
        raise _changed(ref)
    return size


def _encoded(ref: ImageRef) -> Iterator[bytes]:
    if ref.path is None:
        for start in range(0, len(ref.content), _READ_STEP):
            yield base64.b64encode(ref.content[start : start + _READ_STEP])
        return
    try:
        yield from _encoded_file(ref)
    except OSError as exc:
        raise _unreadable(ref, exc) from exc


def _encoded_file(ref: ImageRef) -> Iterator[bytes]:
    """Stops short of the announced length if the file is not what was checked, so that no whole request is sent."""
    assert ref.path is not None  # noqa: S101 - the caller has looked; this tells the type checker
    digest, left = hashlib.sha256(), ref.size
    with ref.path.open("rb") as file:
        while chunk := file.read(_READ_STEP):
            left -= len(chunk)
            digest.update(chunk)
            if left < 0 or (left == 0 and ref.sha256 and digest.hexdigest() != ref.sha256):
                raise _changed(ref)
            yield base64.b64encode(chunk)
    if left:
        raise _changed(ref)


def _changed(ref: ImageRef) -> InputError:
    return InputError([Problem("image", f"{ref.location} changed while the request was being made", "run it again")])


def _unreadable(ref: ImageRef, exc: OSError) -> InputError:
    return InputError([Problem("image", f"cannot read {ref.location}: {exc.strerror or type(exc).__name__}")])
