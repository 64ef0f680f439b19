"""A base64 image out of a reply into its file, in bounded memory."""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import LinkError
from ..results import Base64Slice
from . import filesystem
from .image_file import _WINDOW, ImagePart
from .json_scan import DATA_PREFIX

_ESCAPE = re.compile(rb"\\(?:([/nrt])|u00([0-9a-fA-F]{2}))")

_SPACES = b"\r\n\t "

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def write_blob(blob: Base64Slice, part: ImagePart) -> None:
    """Decodes a base64 image from the kept reply straight into `part`, in bounded memory.

    Undoes what JSON writers do to base64: "/", "+" and "=" as escapes, line breaks, a data URI's prefix, the alphabet
    of URLs. Padding may be missing. Raises `LinkError` (not retryable: the reply stays as it is) for what is no base64,
    `FileError`.
    """
    if blob.is_raw:
        _copy(blob, part)
        return
    _decode(_blob_text(blob), part)


def write_base64(text: str, part: ImagePart) -> None:
    """As `write_blob`, for base64 that is in memory already: short, or from a stream."""
    raw = text.encode("ascii", "replace")
    start = prefix.end() if (prefix := DATA_PREFIX.match(raw)) else 0
    _decode((raw[at : at + _WINDOW].translate(_URL_SAFE, _SPACES) for at in range(start, len(raw), _WINDOW)), part)


def _copy(blob: Base64Slice, part: ImagePart) -> None:
    """An image that is no base64: the whole reply."""
    with _open_reply(blob.path) as file:
        file.seek(blob.offset)
        left = blob.length
        while left and (piece := file.read(min(_WINDOW, left))):
            part.write(piece)
            left -= len(piece)


def _decode(pieces: Iterable[bytes], part: ImagePart) -> None:
    rest, padded = b"", False
    for text in pieces:
        rest += text
        whole = len(rest) // 4 * 4
        padded = _write_decoded(rest[:whole], part, after_padding=padded)
        rest = rest[whole:]
    if rest:
        _write_decoded(rest + b"=" * (-len(rest) % 4), part, after_padding=padded)


def _write_decoded(text: bytes, part: ImagePart, *, after_padding: bool) -> bool:
    if not text:
        return after_padding
    if after_padding:
        raise LinkError("the image's base64 goes on after its end")
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise LinkError(f"the image's base64 is damaged: {str(error).lower()}") from error
    part.write(data)
    return text.endswith(b"=")


def _blob_text(blob: Base64Slice) -> Iterator[bytes]:
    """The characters of the base64 alone, piece by piece."""
    left, held, first = blob.length, b"", True
    with _open_reply(blob.path) as file:
        file.seek(blob.offset)
        while left:
            raw = file.read(min(_WINDOW, left))
            if not raw:
                raise LinkError(f"the kept reply {blob.path} stops before its image's end")
            left -= len(raw)
            raw = held + raw
            if first and (prefix := DATA_PREFIX.match(raw)):
                raw = raw[prefix.end() :]
            first = False
            # An escape may lie across two reads: its start waits for its end.
            cut = raw.rfind(b"\\", max(0, len(raw) - 5)) if left else -1
            raw, held = (raw[:cut], raw[cut:]) if cut >= 0 else (raw, b"")
            yield _unescape(raw) if b"\\" in raw else raw.translate(_URL_SAFE, _SPACES)


def _open_reply(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise LinkError(f"cannot read the kept reply {path}: {filesystem.reason(error)}") from error


def _unescape(raw: bytes) -> bytes:
    def plain(found: re.Match[bytes]) -> bytes:
        return bytes.fromhex(found[2].decode()) if found[2] else b"/" if found[1] == b"/" else b""

    return _ESCAPE.sub(plain, raw).translate(_URL_SAFE, _SPACES)
