"""Reference images on their way in: a path, URL, data URI or standard input becomes an `ImageRef` with its facts."""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import io
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import FileError, LinkError, Problem
from ..storage.file_kinds import HEAD, TAIL, find_absent, find_kind
from ..storage.image_containers import MAX_PIXELS, UNREADABLE, Readable, Source, png_chunks
from ..storage.image_info import ImageInfo, inspect, inspect_bytes, sniff
from ..storage.image_metadata import Stripped, part_length, read_parts, strip_metadata
from .image_request import ImageRef, Sent

if TYPE_CHECKING:
    from PIL.Image import Image


READ_MOST = 64 * 1024 * 1024
"""Bytes of a reference from standard input or a data URI, before it is judged: no model takes half of it."""

_URL = re.compile(r"https?://[^\s/?#@]+([/?#]\S*)?", re.IGNORECASE)

_DATA = re.compile(r"data:(?P<type>[\w.+/-]*)(?P<more>(;[\w=.-]+)*?)(?P<base64>;base64)?,", re.IGNORECASE)

_MIMES = {"heif": "image/heif", "heic": "image/heic"}


@dataclass(frozen=True, slots=True)
class Fit:
    """What an image must be shrunk to: bytes, total pixels, and the formats that are taken as they are."""

    most_bytes: int
    most_pixels: int
    formats: Sequence[str]


def read_references(texts: Sequence[str], *, origin: str = "--image") -> tuple[list[ImageRef], list[Problem]]:
    """Every reference of a request, in order, and all that is wrong with them. Local ones are read once, to the end."""
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
    """One reference, or what is wrong with it. A URL is taken as it is; nobody looks at what lies behind it."""
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
    """Standard input, read once though several requests of a run may hold it."""
    return sys.stdin.buffer.read(READ_MOST + 1)


def _bad_address(text: str, scheme: str, origin: str) -> Problem:
    """What is wrong with an address; what may be a password in it is not repeated."""
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
            # A pipe, as the shell's <(…) makes one, can be read once and has no size beforehand.
            return _from_bytes(_read_all(path), text, "file", origin)
        facts = inspect(path)
    except FileError as error:
        if absent := find_absent(path):
            return Problem("image", f"{text} is {absent.what}", absent.hint, origin=origin)
        return Problem("image", error.message, origin=origin)
    except LinkError as error:
        return _unusable(text, error, *_ends_of(path), origin=origin)
    return _with_facts(ImageRef("file", text, path), facts)


def _unusable(name: str, error: LinkError, head: bytes, tail: bytes, *, origin: str) -> Problem:
    """What is wrong with bytes that should be an image: what they are instead, where that can be told."""
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
    """The path that is meant. A name that no system knows is often a prompt in the wrong place."""
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
    """A data URI, whose header may be in any case; it is sent in lower case, the only one that is taken."""
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
        facts = inspect_bytes(raw)
    except LinkError as error:
        return _unusable(name, error, raw[:HEAD], raw[-TAIL:], origin=origin)
    return _with_facts(ImageRef("data" if kind == "data" else "file", name, content=raw), facts)


def _with_facts(ref: ImageRef, facts: ImageInfo) -> ImageRef:
    mime = _MIMES.get(facts.format, f"image/{facts.format}")
    return replace(
        ref,
        sha256=facts.sha256,
        mime=mime,
        width=facts.width,
        height=facts.height,
        size=facts.bytes,
        animated=facts.animated,
    )


# --- what leaves of an image -----------------------------------------------------------------------------------------

BARE_NOTICE = (
    "reference images are sent upright and without EXIF, GPS and other notes; --keep-metadata sends them as they are"
)

_COPIES_MOST = 512 * 1024 * 1024
"""Bytes of images made anew that are kept; beyond, one is made again whenever it is sent."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A reference as it will be sent, and what stayed in it against the rule ("" for nothing)."""

    ref: ImageRef
    stayed: str = ""


def prepare_reference(ref: ImageRef) -> Prepared:
    """A local image upright and without what only tells of it: who made it, where, when, and with what.

    Its own parts are sent from where they are; only an image that has to be turned is made anew. The work is done
    once for the same bytes, however many rows name them.
    """
    if ref.kind == "url":
        return Prepared(ref)
    known = _KNOWN.get(ref.sha256)
    if known is None:
        known = _prepare(ref)
        if len(_KNOWN) >= _KNOWN_MOST:
            del _KNOWN[next(iter(_KNOWN))]
        _KNOWN[ref.sha256] = known
    sent, is_turned, stayed = known
    width, height = (ref.height, ref.width) if is_turned else (ref.width, ref.height)
    return Prepared(replace(ref, sent=sent, width=width, height=height), stayed)


_KNOWN: dict[str, tuple[Sent | None, bool, str]] = {}
"""By the sha256 of an image: what is sent of it, whether its sides changed places, and what stayed in it."""

_KNOWN_MOST = 4096


def _open(ref: ImageRef) -> Readable:
    try:
        return ref.path.open("rb") if ref.path is not None else io.BytesIO(ref.content)
    except OSError as error:
        raise FileError(f"cannot read {ref.location}: {(error.strerror or 'unreadable').lower()}") from error


def _prepare(ref: ImageRef) -> tuple[Sent | None, bool, str]:
    kind = ref.mime.removeprefix("image/")
    with _open(ref) as file:
        try:
            stripped = strip_metadata(file, kind)
            if kind == "tiff" and _is_plain_tiff(file):
                return None, False, ""
        except (*UNREADABLE, LinkError):
            stripped = None
        if stripped is not None and stripped.orientation == 1:
            return _without_metadata(file, stripped, ref, with_orientation=False), False, ""
        is_deep = kind == "png" and _is_deep(file)
        if not ref.animated and not is_deep and (stripped is not None or kind == "tiff"):
            with contextlib.suppress(*UNREADABLE):
                return _turned(ref, stripped.orientation if stripped else 1)
        if stripped is not None:
            still = "has 16 bits a colour, of which turning would keep 8" if is_deep else "cannot be decoded here"
            why = "has several frames" if ref.animated else still
            message = f"{ref.location} {why}, so it is not turned: only the note how to turn it goes along"
            return _without_metadata(file, stripped, ref, with_orientation=True), False, message
    return (
        None,
        False,
        f"{ref.location} is sent with its metadata (place and time may be in it): {kind} is not rewritten",
    )


_TIFF_PLAIN = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 282, 283, 284, 292, 293, 296, 297, 301),
    *(317, 318, 319, 320, 321, 322, 323, 324, 325, 332, 333, 334, 336, 338, 339, 340, 341, 347, 529, 530, 531, 532),
    34675,
}
"""Tags that a reader needs for the pixels and their colours."""


def _is_plain_tiff(file: Readable) -> bool:
    """Whether a TIFF holds nothing but one upright image."""
    from PIL.TiffImagePlugin import TiffImageFile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = TiffImageFile(file)
    tags = {tag for tag, value in image.tag_v2.items() if (tag, value) != (_ORIENTATION, 1)}
    return tags <= _TIFF_PLAIN and not image.is_animated


_ORIENTATION = 0x0112


def _is_deep(file: Readable) -> bool:
    """Whether a PNG has 16 bits a colour, of which the library keeps 8; of grey without transparency it keeps all."""
    file.seek(24)
    depth, colours = file.read(2)
    return depth == 16 and colours != 0


def _without_metadata(file: Readable, stripped: Stripped, ref: ImageRef, *, with_orientation: bool) -> Sent | None:
    """What is sent of an image that is not turned; None where that is all of it."""
    parts = stripped.parts_with_orientation if with_orientation else stripped.parts
    if parts == ((0, ref.size),):
        return None
    digest = hashlib.sha256()
    for piece in read_parts(file, parts):
        digest.update(piece)
    return Sent(sum(map(part_length, parts)), digest.hexdigest(), parts)


def _turned(ref: ImageRef, orientation: int) -> tuple[Sent, bool, str]:
    """A copy with its pixels turned. Raises what the library does where it cannot be decoded."""
    raw, size = _turn(ref, orientation)
    at = _COPIES.keep(raw)
    # What is kept elsewhere need not be held in memory as well.
    copy = _Copy(ref if at is None else replace(ref, path=None, content=b""), orientation, at, len(raw))
    return Sent(len(raw), hashlib.sha256(raw).hexdigest(), copy=copy.pieces), size != (ref.width, ref.height), ""


class _Copies:
    """One nameless file for all copies of a run: gone with the process, however that ends."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._file: BinaryIO | None = None
        self._end = 0

    def keep(self, raw: bytes) -> int | None:
        """Where the bytes were put; None where there is no room for them."""
        with self._turn:
            if self._end + len(raw) > _COPIES_MOST:
                return None
            try:
                self._file = self._file or tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                assert self._file is not None  # noqa: S101 - made just now
                self._file.seek(self._end)
                if self._file.write(raw) != len(raw):
                    return None
            except OSError:
                return None
            at, self._end = self._end, self._end + len(raw)
            return at

    def read(self, at: int, length: int) -> bytes:
        """Bytes that were kept."""
        with self._turn:
            assert self._file is not None  # noqa: S101 - something was kept
            self._file.seek(at)
            return self._file.read(length)


_COPIES = _Copies()


@dataclass(frozen=True, slots=True)
class _Copy:
    """An image made anew: where it is kept, or how it is made again."""

    ref: ImageRef
    orientation: int
    at: int | None
    size: int

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, in pieces."""
        if self.at is None:
            yield _turn(self.ref, self.orientation)[0]
            return
        for start in range(0, self.size, _PIECE):
            yield _COPIES.read(self.at + start, min(_PIECE, self.size - start))


_PIECE = 3 << 16


def _turn(ref: ImageRef, orientation: int) -> tuple[bytes, tuple[int, int]]:
    """The image with its pixels turned, in its own format and as near to its own quality as can be; and its size."""
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    turns = Image.Transpose
    how = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE}
    how |= {6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90}
    file = io.BytesIO()
    with _open(ref) as own, warnings.catch_warnings():
        # What Pillow thinks of odd metadata would appear on standard error.
        warnings.simplefilter("ignore")
        stripped = strip_metadata(own, ref.mime.removeprefix("image/"))
        source = own if stripped is None else io.BytesIO(b"".join(read_parts(own, stripped.parts)))
        own.seek(0)
        opened = Image.open(source)
        kind = opened.format or ""
        options = _encoding(opened, kind, is_on_its_side=orientation > 4)
        opened.load()
        # A TIFF is turned by Pillow when it is read.
        image = opened.transpose(how[orientation]) if orientation in how else ImageOps.exif_transpose(opened)
        image = image.copy()
        profile, transparency = image.info.get("icc_profile"), image.info.get("transparency")
        image.info = {} if transparency is None else {"transparency": transparency}
        image.save(file, kind, icc_profile=profile, **options)
        size = image.size
        raw = file.getvalue()
        return (_with_colours(raw, source) if kind == "PNG" else raw), size


def _encoding(opened: Any, kind: str, *, is_on_its_side: bool) -> dict[str, Any]:
    """How an image is encoded again: what was kept of its detail stays, and it gets no larger than it was."""
    if kind == "TIFF":
        return {"compression": "tiff_lzw"}
    if kind == "WEBP":
        return {"lossless": True} if _is_lossless(opened.fp) else {"quality": 95}
    if kind == "PNG":
        return {}
    if kind != "JPEG":
        raise ValueError("not a format that is made here")
    from PIL.JpegImagePlugin import get_sampling

    tables = [list(table) for _, table in sorted(opened.quantization.items())]
    fits = opened.mode in {"L", "RGB"} and len(tables) in {1, 2} and all(max(table) < 256 for table in tables)
    if not fits:
        return {"quality": 95, "subsampling": 0}
    if is_on_its_side:
        tables = [[table[column * 8 + row] for row in range(8) for column in range(8)] for table in tables]
    return {"qtables": tables, "subsampling": 2 if get_sampling(opened) == 2 else 0, "optimize": True}


def _is_lossless(file: Any) -> bool:
    file.seek(0)
    head = file.read(4096)
    return b"VP8L" in head and b"VP8 " not in head


_PNG_COLOURS = {b"gAMA", b"cHRM", b"sRGB", b"cICP"}
"""What says how the numbers of the pixels are to be seen, beside the profile."""


def _with_colours(raw: bytes, source: Readable) -> bytes:
    """A PNG with those chunks of the source that say how its colours are to be seen."""
    before = Source(source)
    missing = _PNG_COLOURS - {chunk.kind for chunk in png_chunks(Source(io.BytesIO(raw)))}
    colours = [before.read(start, end - start) for kind, start, _, end in png_chunks(before) if kind in missing]
    return raw[:33] + b"".join(colours) + raw[33:]


# --- making an image fit -------------------------------------------------------------------------------------------


def fit_reference(ref: ImageRef, fit: Fit) -> tuple[ImageRef, str]:
    """The reference shrunk to what is taken, and a line that says what was done; the same one and "" where it fits.

    Raises `LinkError` where the image cannot be decoded.
    """
    if ref.kind == "url" or not _too_much(ref, fit):
        return ref, ""
    return _made_to_fit(ref, fit)


def fit_prepared(ref: ImageRef, fit: Fit) -> tuple[ImageRef, str]:
    """As `fit_reference`, for one that fitted until it was turned; it is known by its own bytes, as it was before."""
    if ref.sent is None or ref.sent_size <= fit.most_bytes:
        return ref, ""
    made, done = _made_to_fit(replace(ref, sent=None), fit)
    sent = Sent(made.size, made.sha256, ((0, made.size),))
    return replace(made, sha256=ref.sha256, size=ref.size, sent=sent), done


def _made_to_fit(ref: ImageRef, fit: Fit) -> tuple[ImageRef, str]:
    raw, size = _shrink(ref, fit)
    facts = inspect_bytes(raw)
    made = replace(_with_facts(ref, facts), path=None, content=raw)
    before = f"{ref.width}x{ref.height} {ref.mime.removeprefix('image/')}, {ref.size / 1e6:.1f} MB"
    after = f"{size[0]}x{size[1]} {facts.format}, {facts.bytes / 1e6:.1f} MB"
    return made, f"{ref.location} is sent smaller: {before} became {after}"


def _too_much(ref: ImageRef, fit: Fit) -> bool:
    taken = ref.mime.removeprefix("image/") in fit.formats
    return not taken or ref.size > fit.most_bytes or ref.width * ref.height > fit.most_pixels


def _shrink(ref: ImageRef, fit: Fit) -> tuple[bytes, tuple[int, int]]:
    """Encoded bytes within the limits, and their width and height."""
    try:
        image = _decode(ref, fit.most_pixels)
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise LinkError(f"{ref.location} cannot be decoded, so not shrunk: {type(error).__name__}") from error
    scale = min(1.0, (fit.most_pixels / (image.width * image.height)) ** 0.5)
    while True:
        raw = _encode(image, scale)
        if len(raw) <= fit.most_bytes or scale < 0.02:
            return raw, _scaled(image, scale)
        scale *= min(0.9, (fit.most_bytes / len(raw)) ** 0.5)


def _decode(ref: ImageRef, most_pixels: int) -> Image:
    """The pixels, as RGB or, where something can be seen through, RGBA, and turned as the EXIF orientation says.

    Orientation is applied because re-encoding drops the note about it. The colour profile stays with RGB pixels.
    """
    from PIL import Image, ImageOps

    # The container was judged before, by a limit of our own; the library's would warn on standard error.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    source: Path | io.BytesIO = ref.path or io.BytesIO(ref.content)
    with Image.open(source) as opened:
        scale = min(1.0, (most_pixels / max(1, opened.width * opened.height)) ** 0.5)
        # A JPEG can be decoded at a half, a quarter or an eighth of its size: less memory for one that is far too big.
        opened.draft(None, _scaled(opened, scale))
        opened.load()
        image = ImageOps.exif_transpose(opened)
    profile = image.info.get("icc_profile") if image.mode in {"RGB", "RGBA"} else None
    see_through = image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info
    if image.mode == "I" or image.mode.startswith("I;"):
        # 16 bits a pixel: the library would cut off what is above 255 instead of scaling it.
        image = image.convert("F").point(lambda value: value / 257).convert("L")
    image = image.convert("RGBA" if see_through else "RGB")
    if see_through and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    image.info = {"icc_profile": profile} if profile else {}
    return image


def _scaled(image: Image, scale: float) -> tuple[int, int]:
    # Rounded down, so that the pixels stay within the limit.
    return max(1, int(image.width * scale)), max(1, int(image.height * scale))


def _encode(image: Image, scale: float) -> bytes:
    """JPEG of a high quality, or PNG where the image can be seen through."""
    scaled = image.resize(_scaled(image, scale)) if scale < 1 else image
    file, profile = io.BytesIO(), image.info.get("icc_profile")
    if image.mode == "RGBA":
        scaled.save(file, "PNG", icc_profile=profile)
    else:
        scaled.save(file, "JPEG", quality=92, icc_profile=profile)
    return file.getvalue()
