"""The body of a request: JSON of a known length, its reference images encoded from their files while it is sent."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from ..errors import InputError, InternalError, Problem
from ..request.image_request import ImageRef

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
            yield from encode_reference(ref)
        yield texts[-1]

    return length, pieces


def _size(ref: ImageRef) -> int:
    """The bytes that leave of a reference, whose file is checked against what it was when it was judged."""
    if ref.path is None:
        return ref.sent.size if ref.sent is not None else len(ref.content)
    try:
        size = ref.path.stat().st_size
    except OSError as exc:
        raise _unreadable(ref, exc) from exc
    if size != ref.size:
        raise _changed(ref)
    return ref.sent_size


def encode_reference(ref: ImageRef) -> Iterator[bytes]:
    """A reference in base64. What is cut into pieces of another length is joined first: only the end is padded."""
    rest = b""
    for piece in _pieces(ref):
        data = rest + piece if rest else piece
        whole = len(data) - len(data) % 3
        rest = data[whole:]
        if whole:
            yield base64.b64encode(data[:whole])
    if rest:
        yield base64.b64encode(rest)


def _pieces(ref: ImageRef) -> Iterator[bytes]:
    """The bytes that leave of a reference."""
    if ref.sent is not None and ref.sent.copy is not None:
        try:
            yield from _counted(ref, ref.sent.copy())
        except (OSError, ValueError, SyntaxError, MemoryError) as exc:
            # It had to be made again, of a file that is not what it was.
            raise _changed(ref) from exc
        return
    parts = ref.sent.parts if ref.sent is not None else ((0, ref.size if ref.path else len(ref.content)),)
    if ref.path is None:
        for part in parts:
            start, end, data = (0, len(part), part) if isinstance(part, bytes) else (*part, ref.content)
            for at in range(start, end, _READ_STEP):
                yield data[at : min(end, at + _READ_STEP)]
        return
    try:
        with ref.path.open("rb") as file:
            yield from _held_back(_parts_of(ref, file, parts))
    except OSError as exc:
        raise _unreadable(ref, exc) from exc


def _counted(ref: ImageRef, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """A copy's pieces; short of the announced length where it is not what was announced."""
    digest = hashlib.sha256()

    def told() -> Iterator[bytes]:
        for piece in pieces:
            digest.update(piece)
            yield piece
        if ref.sent is None or digest.hexdigest() != ref.sent.sha256:
            raise _changed(ref)

    yield from _held_back(told())


def _held_back(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces, each once the next one is there: what is found out at the very end keeps the last one from leaving."""
    last = b""
    for piece in pieces:
        if last:
            yield last
        last = piece
    if last:
        yield last


def _parts_of(ref: ImageRef, file: BinaryIO, parts: Sequence[tuple[int, int] | bytes]) -> Iterator[bytes]:
    """The parts of a file that is read whole, so that one that is not what was checked is never sent whole."""
    digest, at = hashlib.sha256(), 0

    def read(end: int) -> Iterator[bytes]:
        nonlocal at
        while at < end:
            chunk = file.read(min(_READ_STEP, end - at))
            if not chunk:
                raise _changed(ref)
            at += len(chunk)
            digest.update(chunk)
            yield chunk

    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        for _ in read(part[0]):
            pass
        yield from read(part[1])
    for _ in read(ref.size):
        pass
    if file.read(1) or (ref.sha256 and digest.hexdigest() != ref.sha256):
        raise _changed(ref)


def _changed(ref: ImageRef) -> InputError:
    return InputError([Problem("image", f"{ref.location} changed while the request was being made", "run it again")])


def _unreadable(ref: ImageRef, exc: OSError) -> InputError:
    return InputError([Problem("image", f"cannot read {ref.location}: {exc.strerror or type(exc).__name__}")])
