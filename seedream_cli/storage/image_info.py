"""What bytes are: an image's format by its first bytes, and whether it is a whole one."""

from __future__ import annotations

import hashlib
import io
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import FileError
from .image_containers import Readable, Source, broken, check_container

SUFFIXES: dict[str, str] = {
    "jpeg": ".jpg",
    "png": ".png",
    "webp": ".webp",
    "gif": ".gif",
    "bmp": ".bmp",
    "tiff": ".tiff",
    "heic": ".heic",
    "heif": ".heif",
    "avif": ".avif",
}
"""The suffix an image's own bytes give its file. Nothing a server says can add to these."""

SPELLINGS = {suffix: name for name, suffix in SUFFIXES.items()} | {".jpeg": "jpeg", ".jfif": "jpeg", ".tif": "tiff"}


# --- what bytes are -------------------------------------------------------------------------------------------------


def sniff(head: bytes) -> str:
    """The format of an image by its first bytes (64 suffice), or "" for anything else; SVG is never an image."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0\x08\0", b"MM\0+\0\x08")):
        return "tiff"
    # Two letters are too few to tell a BMP by: its reserved words are zero and its second header has a known size.
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and head[14:18] in _BMP_HEADERS:
        return "bmp"
    return _sniff_boxes(head)


_BMP_HEADERS = {struct.pack("<I", size) for size in (12, 16, 40, 52, 56, 64, 108, 124)}

_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}

_AVIF_BRANDS = {b"avif", b"avis"}


def _sniff_boxes(head: bytes) -> str:
    if head[4:8] != b"ftyp" or len(head) < 16:
        return ""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major, others = head[8:12], {head[at : at + 4] for at in range(16, end - 3, 4)}
    if major in _AVIF_BRANDS:
        return "avif"
    if major in _HEIC_BRANDS:
        return "heic"
    if major not in {b"mif1", b"msf1"}:
        return ""
    if others & _AVIF_BRANDS:
        return "avif"
    return "heic" if others & _HEIC_BRANDS else "heif"


def describe(head: bytes) -> str:
    """What these first bytes are, in words that end a sentence: "an HTML page", "a PNG image", "unknown bytes"."""
    if not head:
        return "no bytes at all"
    if name := sniff(head):
        return f"{'an' if name == 'avif' else 'a'} {name.upper()} image"
    text = head[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if text.startswith((b"<svg", b"<?xml", b"<!doctype svg")) and b"<svg" in text:
        return "an SVG drawing"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML error"
    return "JSON" if text.startswith((b"{", b"[")) else "unknown bytes"


_REFUSED_SIGNATURES = {
    "SignatureDoesNotMatch",
    "InvalidSignature",
    "AuthenticationFailed",
    "AuthorizationQueryParametersError",
    "InvalidAuthorization",
}


def explain_store_error(head: bytes, status: int) -> tuple[Literal["expired", "download"], str]:
    """Why an object store gave no image: the error's kind and a message, from its XML or JSON body.

    Volcengine's store answers a link without its whole signature with AccessDenied and EC 0003-00000015; S3 and its
    kin say "Request has expired" or SignatureDoesNotMatch. Only the code and the message are repeated: the rest of
    such a body may hold the signature itself.
    """
    code, message, detail = (_store_field(head, name) for name in ("Code", "Message", "EC"))
    said = f"HTTP {status}" + (f", {code}" if code else "") + (f": {message}" if message else "")
    if "expired" in f"{code} {message}".lower() or b"not valid in the specified time frame" in head.lower():
        return "expired", f"the link has expired ({said})"
    if detail == "0003-00000015" or code in _REFUSED_SIGNATURES:
        return "download", f"the store refused the link's signature, which was cut or altered, or is too old ({said})"
    if code in {"NoSuchKey", "NoSuchBucket"} or status in {404, 410}:
        return "download", f"the store has no such image any more ({said})"
    if code:
        return "download", f"the store refused the image ({said})"
    return "download", f"the store answered HTTP {status} with {describe(head)} instead of an image"


def _store_field(head: bytes, name: str) -> str:
    # The body may be cut anywhere, so that no parser would take it.
    wanted = name.encode()
    found = re.search(rb'<%b>\s*([^<]*)|"%b"\s*:\s*"([^"]*)' % (wanted, wanted), head[:4096])
    return (found[1] or found[2] or b"").decode("utf-8", "replace").strip()[:120] if found else ""


# --- whole images -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a whole image's container says: its size, the sha256 of all of it, and whether it has several frames."""

    format: str
    width: int
    height: int
    bytes: int
    sha256: str
    animated: bool = False


def inspect(path: Path) -> ImageInfo:
    """Format, size and sha256 of the image at `path`, its container read to the end in bounded memory.

    Raises `LinkError` (kind "download", retryable) saying what is wrong with it, `FileError` where it cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(f"cannot read {path}: {(error.strerror or 'unreadable').lower()}") from error
    with file:
        return inspect_file(file)


def inspect_bytes(data: bytes) -> ImageInfo:
    """As `inspect`, for an image in memory."""
    return inspect_file(io.BytesIO(data))


def inspect_file(file: Readable, sha256: str = "") -> ImageInfo:
    """As `inspect`, for an open file; its sha256 is computed where the caller has not done so."""
    source = Source(file)
    head = source.read(0, 4096)
    name = sniff(head)
    if not name:
        raise broken(f"not an image but {describe(head)} ({source.size} bytes)")
    shape = check_container(source, name)
    if not sha256:
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ImageInfo(name, shape.width, shape.height, source.size, sha256, shape.frames > 1)
