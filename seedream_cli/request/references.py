"""Reference images: a path, URL, data URI or standard input is read and checked into an `ImageRef`."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import FileError, LinkError, Problem
from ..storage.file_kinds import HEAD, TAIL, find_absent, find_kind
from ..storage.image_containers import Readable
from ..storage.image_info import ImageInfo, inspect, inspect_bytes, sniff
from .image_request import ImageRef

READ_MOST = 64 * 1024 * 1024
"""Most bytes read from standard input or a data URI: over twice what any model takes."""

_URL = re.compile(r"https?://[^\s/?#@]+([/?#]\S*)?", re.IGNORECASE)

_DATA = re.compile(r"data:(?P<type>[\w.+/-]*)(?P<more>(;[\w=.-]+)*?)(?P<base64>;base64)?,", re.IGNORECASE)

_MIMES = {"heif": "image/heif", "heic": "image/heic"}


def read_references(texts: Sequence[str], *, origin: str = "--image") -> tuple[list[ImageRef], list[Problem]]:
    """Every reference of a request, in order, and all problems. Local ones are read completely."""
    references, problems = [], []
    if list(texts).count("-") > 1:
        problems.append(Problem("image", "standard input can be read only once", origin=origin))
    for text in texts if list(texts).count("-") < 2 else [text for text in texts if text != "-"]:
        found = read_reference(text, origin=origin)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            references.append(found)
    return references, problems


def read_reference(text: str, *, origin: str = "--image") -> ImageRef | Problem:
    """One reference, or the problem with it. A URL is not fetched."""
    if not text.strip():
        return Problem("image", "a reference is empty", "give a file, a URL, a data URI or -", origin=origin)
    if re.search("[\ud800-\udfff]", text) and re.match("[a-z]+:", text, re.IGNORECASE):
        return Problem("image", "the address of a reference holds bytes that are no UTF-8", origin=origin)
    if _URL.fullmatch(text):
        return ImageRef("url", text)
    if scheme := re.match(r"([a-z][a-z0-9+.-]+)://", text, re.IGNORECASE):
        return _bad_address(text, scheme[1].lower(), origin)
    if text[:5].lower() == "data:":
        return _read_data(text, origin)
    if text == "-" and sys.stdin is None:
        return Problem("image", "standard input is closed", origin=origin)
    if text == "-":
        return _from_bytes(_read_stdin(), "standard input", "file", origin)
    return _read_file(text, origin)


@functools.cache
def _read_stdin() -> bytes:
    """Standard input; cached, since several requests of a run may use it."""
    return sys.stdin.buffer.read(READ_MOST + 1)


def _bad_address(text: str, scheme: str, origin: str) -> Problem:
    """What is wrong with a URL, without quoting a password in it."""
    if scheme not in {"http", "https"}:
        hint = "give an http(s) address, a file or a data URI"
        return Problem("image", f"{scheme}:// is no address that a provider fetches", hint, origin=origin)
    if re.match(r"[^/?#]*//[^/?#\s]*@", text):
        hint = "the provider would get it: give an address without, or the file itself"
        return Problem("image", "the address of a reference holds a user name or password", hint, origin=origin)
    return Problem("image", f"{text.split('?', 1)[0][:80]!r} is no address that can be sent", origin=origin)


def _read_file(text: str, origin: str) -> ImageRef | Problem:
    if "\0" in text:
        return Problem("image", f"{text!r} cannot be the name of a file: it holds a zero byte", origin=origin)
    path = _find_file(text, origin)
    if isinstance(path, Problem):
        return path
    try:
        if not path.is_file() and path.exists():
            # A pipe, such as the shell's <(…), can be read once and has no size.
            return _from_bytes(_read_all(path), text, "file", origin)
        info = inspect(path)
    except FileError as error:
        if absent := find_absent(path):
            return Problem("image", f"{text} is {absent.what}", absent.hint, origin=origin)
        return Problem("image", error.message, origin=origin)
    except LinkError as error:
        return _unusable(text, error, *_ends_of(path), origin=origin)
    return with_info(ImageRef("file", text, path), info)


def _unusable(name: str, error: LinkError, head: bytes, tail: bytes, *, origin: str) -> Problem:
    """The problem with bytes that are no image; says what kind of file they are where that is recognised."""
    found = None if sniff(head) else find_kind(head, tail=tail, name=name)
    if found is not None:
        return Problem("image", f"{name} is {found.what}; no image can be read from it", found.hint, origin=origin)
    if not head:
        return Problem(
            "image", f"{name} cannot be used: it is empty", "take the image from its source again", origin=origin
        )
    return Problem("image", f"{name} cannot be used: {error.message}", origin=origin)


def _ends_of(path: Path) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(max(0, path.stat().st_size - TAIL))
            return head, file.read(TAIL)
    except OSError:
        return b"", b""


def _find_file(text: str, origin: str) -> Path | Problem:
    """The path of a reference. A name that stat refuses (too long) is often a prompt in the wrong position."""
    try:
        path = Path(text).expanduser()
        is_folder = path.is_dir()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        short = text if len(text) <= 60 else f"{text[:60]}…"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        hint = "the prompt comes first: seedream edit PROMPT IMAGE…"
        return Problem("image", f"{short!r} cannot be the name of a file: {reason.lower()}", hint, origin=origin)
    if is_folder:
        return Problem("image", f"{text} is a folder", "name the images in it", origin=origin)
    return path


def _read_all(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(READ_MOST + 1)
    except OSError as error:
        raise FileError(f"cannot read {path}: {(error.strerror or 'unreadable').lower()}") from error


def _read_data(text: str, origin: str) -> ImageRef | Problem:
    """Read a data URI. Its header may be in any case; it is sent in lower case, the only one that providers take."""
    header = _DATA.match(text)
    if header is None or not header["base64"]:
        return Problem("image", "the data URI is not data:image/…;base64,…", origin=origin)
    try:
        raw = base64.b64decode("".join(text[header.end() :].split()), validate=True)
    except (binascii.Error, ValueError):
        return Problem("image", "the data URI holds no valid base64", origin=origin)
    return _from_bytes(raw, "data URI", "data", origin)


def _from_bytes(raw: bytes, name: str, kind: str, origin: str) -> ImageRef | Problem:
    if len(raw) > READ_MOST:
        return Problem("image", f"{name} is larger than any image that is taken", origin=origin)
    try:
        info = inspect_bytes(raw)
    except LinkError as error:
        return _unusable(name, error, raw[:HEAD], raw[-TAIL:], origin=origin)
    return with_info(ImageRef("data" if kind == "data" else "file", name, content=raw), info)


def with_info(ref: ImageRef, info: ImageInfo) -> ImageRef:
    """A reference with what its bytes are."""
    mime = _MIMES.get(info.format, f"image/{info.format}")
    return replace(
        ref,
        sha256=info.sha256,
        mime=mime,
        width=info.width,
        height=info.height,
        size=info.bytes,
        animated=info.animated,
    )


def open_reference(ref: ImageRef) -> Readable:
    """A local reference's own bytes."""
    try:
        return ref.path.open("rb") if ref.path is not None else io.BytesIO(ref.content)
    except OSError as error:
        raise FileError(f"cannot read {ref.location}: {(error.strerror or 'unreadable').lower()}") from error
