"""Every link and every image in base64 that a reply holds, wherever they stand: for a reply whose images are not plain.

The reply is read in pieces, so that its size does not matter. Escapes of JSON are undone first, however often they were
applied; then a link is what follows `scheme://`, and base64 a long run of its alphabet.
"""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..redaction import hide
from .image_info import sniff
from .reply_encoding import Unpacker, is_text

MOST = 10_000
"""Findings of one reply."""

_LOOKS_MOST = 20 * MOST

_PIECE = 1 << 18

_LINK_MOST = 8192

_AHEAD = 1024

_BEHIND = 32

_RUN_LEAST = 200
"""Characters that are base64 and no name; an image is known by its start, however short it is."""

_LINE_LEAST = 40
"""The shortest line into which base64 is broken."""

_SEED = b"a" * _LINE_LEAST

_WORD_MOST = 20

_ESCAPE_MOST = 28

_ESCAPE = re.compile(
    rb"\\{1,8}(?:u([dD][89abAB][0-9a-fA-F]{2})\\{1,8}u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|([^\\u]))"
)

_PLAIN = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b" ", b"f": b" ", b'"': b'"', b"'": b"'", b"/": b"/"}

_RUN_END = re.compile(rb"[^A-Za-z0-9+/_-]")

_CLASSES = bytes(46 if _RUN_END.match(bytes([code])) else 97 for code in range(256))

_SPACED_RUN = re.compile(rb"[A-Za-z0-9+/_ -]*")

_BREAK = re.compile(rb"[\r\n\t ]{1,60}")

_HEX = re.compile(rb"[0-9a-f]+|[0-9A-F]+")

_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{1,9}\Z")

_LINK_AHEAD = re.compile(rb"[A-Za-z]{1,9}://")

_STOP = re.compile(rb"[\x00-\x20\"<>`\\\x7f]")

_LOOSE_STOP = re.compile(r"[{}|^]")

_ATTRIBUTE = re.compile(rb"(?:src|href|content|poster)=[\"']\Z", re.IGNORECASE)

_SUFFIX = r"\.(?:png|jpe?g|webp|gif|avif|bmp|tiff?|heic)"

_QUOTED_PATH = re.compile(rb"\"(//?[^\x00-\x20\"<>\\]{1,2000})\"")

_IMAGE_PATH = re.compile(rf"//[^/.]+\.[^/]+/.*|/[^?#]*{_SUFFIX}(?:[?#].*)?", re.IGNORECASE | re.DOTALL)

_WITH_SPACES = re.compile(rf"[^?#]*{_SUFFIX}(?:[?#][^ ]*)?", re.IGNORECASE)

_NAMES_IMAGE = re.compile(rf"{_SUFFIX}(?:\Z|[?#])", re.IGNORECASE)

_GLUED = re.compile(rf"{_SUFFIX}(?=[^\x00-\x7f])", re.IGNORECASE)

_JOINED = re.compile(r"[,;|](?=https?://)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """A link as it is meant, or so many bytes and what they look like."""

    link: str = ""
    bytes: int = 0
    format: str = ""
    coding: str = "base64"

    @property
    def line(self) -> str:
        """It as a line of its own."""
        looks = f"looks like {self.format}" if self.format else "looks like no image that is known"
        return self.link or f"{self.coding}, {self.bytes} bytes, {looks}"


class Findings:
    """What a file holds, one by one, each link once. `forms` are the spellings of keys, which nobody is to see.

    `notes` says afterwards what is to be known beside that: what could not be read, or was left out.
    """

    def __init__(self, path: Path, forms: tuple[str, ...] = (), most: int = MOST) -> None:
        self.notes: list[str] = []
        self._path = path
        self._forms = forms
        self._most = most

    def __iter__(self) -> Iterator[Finding]:
        """Read the file. One that cannot be read is a note."""
        seen, shown = set[str](), 0
        try:
            for number, one in enumerate(_find(self._path, self.notes)):
                if shown >= self._most or number >= _LOOKS_MOST:
                    self.notes.append(f"there is more in it than these {shown}")
                    break
                if one.link in seen:
                    continue
                seen |= {one.link} if one.link else set()
                shown += 1
                yield Finding(hide(one.link, self._forms)) if one.link else one
        except OSError as error:
            self.notes.append(f"it cannot be read: {(error.strerror or type(error).__name__).lower()}")


def _find(path: Path, notes: list[str]) -> Iterator[Finding]:
    with path.open("rb") as file:
        head = file.read(64)
        if name := sniff(head):
            yield Finding(bytes=path.stat().st_size, format=name, coding="the whole reply")
            return
    yield from _Scanner(_Text(_pieces(path, notes)), notes).scan()


def _pieces(path: Path, notes: list[str]) -> Iterator[bytes]:
    """The text of a file in pieces of some size: unpacked where it came packed, the escapes of JSON undone."""
    unpacker, held = Unpacker(), bytearray()
    with path.open("rb") as file:
        is_over = False
        while not is_over:
            piece = file.read(_PIECE)
            is_over = not piece
            for text in unpacker.close() if is_over else unpacker.take(piece):
                held += text
                if len(held) >= _PIECE:
                    # What may be the start of an escape waits for the rest.
                    start = held.find(b"\\", len(held) - _ESCAPE_MOST)
                    whole = bytes(held if start < 0 else held[:start])
                    del held[: len(whole)]
                    yield _unescaped(whole)
    yield _unescaped(bytes(held))
    if unpacker.flaw:
        notes.append(f"not all of it may be readable: {unpacker.flaw}")


def _unescaped(text: bytes) -> bytes:
    if b"\\" in text:
        # The most frequent by far: some write every slash of base64 so.
        text = _ESCAPE.sub(_undo, text.replace(b"\\/", b"/"))
    return text


def _undo(found: re.Match[bytes]) -> bytes:
    high, low, unit, char = found.groups()
    if char is not None:
        return _PLAIN.get(char, found[0])
    code = int(unit, 16) if unit else 0x10000 + ((int(high, 16) & 0x3FF) << 10) + (int(low, 16) & 0x3FF)
    return chr(code).encode("utf-8", "replace")


class _Text:
    """The part of a text that is looked at."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.text = b""
        self.classes = b""
        """The same with every character of base64 as an "a"."""
        self.number = 0
        """How often more was taken."""
        self.is_over = False
        self._pieces = pieces

    def go_on(self, at: int) -> int:
        """Take more text, and let go of what lies before `at`; where that is now."""
        self.number += 1
        start, piece = max(0, at - _BEHIND), next(self._pieces, None)
        self.is_over = piece is None
        self.text = self.text[start:] + (piece or b"")
        self.classes = self.text.translate(_CLASSES)
        return at - start


_NOWHERE = 1 << 62


class _Scanner:
    """Findings out of a text, from its start to its end."""

    def __init__(self, text: _Text, notes: list[str]) -> None:
        self._text = text
        self._notes = notes
        self._at = 0
        self._told = set[str]()
        self._known: dict[str, tuple[int, int]] = {}

    def scan(self) -> Iterator[Finding]:
        """All of them, in order."""
        text = self._text
        while True:
            link, run, path = self._next("link"), self._next("run"), self._next("path")
            # A link that began before the end of what is here may go on behind it.
            bound = len(text.text) - (0 if text.is_over else _LINK_MOST + _AHEAD)
            nearest = min(link, run, path)
            if nearest >= bound:
                if text.is_over:
                    return
                self._at = text.go_on(max(self._at, bound - 16))
            elif nearest == path:
                yield from self._take_path(path)
            elif nearest == link:
                yield from self._take_link(link)
            else:
                self._at = run
                yield from self._take_run()

    def _next(self, what: str) -> int:
        """Where the next of these begins. It is looked for once, and again where there is more text."""
        number, place = self._known.get(what, (-1, -1))
        if number != self._text.number or place < self._at:
            place = self._look(what, self._at)
            self._known[what] = (self._text.number, place)
        return place

    def _look(self, what: str, at: int) -> int:
        if what == "path":
            return quoted.start() if (quoted := _QUOTED_PATH.search(self._text.text, at)) else _NOWHERE
        return (self._text.text.find(b"://", at) if what == "link" else self._text.classes.find(_SEED, at)) % _NOWHERE

    def _take_path(self, quote: int) -> Iterator[Finding]:
        """A string that is a link without a host, and names an image."""
        quoted = _QUOTED_PATH.match(self._text.text, quote)
        assert quoted is not None  # noqa: S101 - it was found there
        link = quoted[1].decode("utf-8", "replace")
        if _IMAGE_PATH.fullmatch(link) and not link.startswith("///"):
            self._at = quoted.end()
            yield Finding(link)
        else:
            # What stands behind an opening quote may be base64 as well.
            self._known["path"] = (self._text.number, self._look("path", quote + 1))

    # Links.

    def _take_link(self, colon: int) -> Iterator[Finding]:
        """The link around `://`."""
        text, low = self._text.text, max(self._at, colon - 10)
        self._at = colon + 3
        before = text[low:colon]
        secure = next((one for one in (b"https", b"http") if before.lower().endswith(one)), None)
        scheme = _SCHEME.search(before)
        if secure is None and scheme is None:
            return
        start = colon - (len(secure) if secure else len(scheme[0]) if scheme else 0)
        stop = _STOP.search(text, colon + 3, start + _LINK_MOST)
        if stop is None and len(text) > start + _LINK_MOST:
            self._skip_link(start)
            return
        end = stop.start() if stop else len(text)
        links, self._at = self._read_link(start, end)
        for link in links:
            if link.partition("://")[2]:
                yield Finding(link)
        if stop is None and links and text[start - 1 : start] == b'"' and start:
            self._notes.append(f"its last link is cut off: the reply ends in {_cut(text[start:])}")

    def _skip_link(self, start: int) -> None:
        """Pass over what is longer than any link."""
        text = self._text
        self._tell("long", f"what begins with {_cut(text.text[start:])} is longer than any link, and is left out")
        self._at = start + _LINK_MOST
        while not (stop := _STOP.search(text.text, self._at)) and not text.is_over:
            self._at = text.go_on(len(text.text))
        self._at = stop.start() if stop else len(text.text)

    def _tell(self, what: str, note: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._notes.append(note)

    def _read_link(self, start: int, end: int) -> tuple[list[str], int]:
        """The links that begin at `start`, with no character that no link has before `end`; and where they end."""
        text = self._text.text
        before, after = text[start - 1 : start] if start else b"", text[end : end + 1]
        if before == b"'" and (quote := text.find(b"'", start, end)) >= 0:
            end, after = quote, b"'"
        if before == b'"' and after == b" " and (longer := _end_with_spaces(text, start, end)):
            end, after = longer, b'"'
        link = text[start:end].decode("utf-8", "replace")
        in_markup = (before + after) == b"><" or _ATTRIBUTE.search(text, max(0, start - 10), start)
        if in_markup:
            link = html.unescape(link) if "&" in link else link
        is_whole = (before + after) in {b'""', b"''", b"<>", b"><", b"``"}
        found = [one if is_whole else _trimmed(one) for one in _JOINED.split(link)]
        return found, end if is_whole or len(found) > 1 else start + max(1, len(found[0].encode()))

    # Base64.

    def _take_run(self) -> Iterator[Finding]:
        """The base64 that begins here, over as many lines as it has."""
        head, size = bytearray(), 0
        line = 0
        while True:
            text = self._text.text
            found = _RUN_END.search(text, self._at)
            end = found.start() if found else len(text)
            if text[end : end + 3] == b"://" and (scheme := _LINK_AHEAD.match(text, max(self._at, end - 5))):
                # A link that follows at once.
                end = scheme.start()
            head += text[self._at : min(end, self._at + 128 - len(head))] if len(head) < 128 else b""
            size, line, self._at = size + end - self._at, line + end - self._at, end
            if len(text) - end < _AHEAD and not self._text.is_over:
                self._at = self._text.go_on(end)
                continue
            gap = _BREAK.match(text, end)
            if gap is None or not self._goes_on(gap, bytes(head), line):
                break
            # A space stands for a plus sign, a line break for nothing.
            size += 0 if gap[0].strip(b" ") else len(gap[0])
            self._at, line = gap.end(), 0
        yield from _as_finding(bytes(head), size)

    def _goes_on(self, gap: re.Match[bytes], head: bytes, line: int) -> bool:
        """Whether base64 goes on behind white space."""
        text, at = self._text.text, gap.end()
        if not gap[0].strip(b" "):
            # A form took the plus signs of an image for spaces.
            rest = _SPACED_RUN.match(text, at, at + _AHEAD)
            return bool(
                _format_of(head) not in {"", "text"} and rest and _SEED[:_WORD_MOST] in rest[0].translate(_CLASSES)
            )
        goes_on = line >= _LINE_LEAST and at < len(text) and self._text.classes[at] == 97
        return goes_on and not _LINK_AHEAD.match(text, at)


def _cut(text: bytes) -> str:
    return text[:60].decode("utf-8", "replace") + ("…" if len(text) > 60 else "")


def _end_with_spaces(text: bytes, start: int, end: int) -> int:
    """Where the string ends that is one link with spaces in it, of an image; 0 where it is none."""
    quote = text.find(b'"', end, start + _LINK_MOST)
    rest = text[end:quote] if quote > 0 else b"://"
    if b"://" in rest or re.search(rb"[\x00-\x1f<>`\\]", rest):
        return 0
    first, whole = (text[start:stop].decode("utf-8", "replace") for stop in (end, quote))
    return quote if _WITH_SPACES.fullmatch(whole) and not _NAMES_IMAGE.search(first) else 0


def _trimmed(link: str) -> str:
    """A link out of a sentence, without what belongs to that: closing brackets, full stops, signs of other scripts."""
    if found := _LOOSE_STOP.search(link):
        link = link[: found.start()]
    if found := _GLUED.search(link):
        link = link[: found.end()]
    depth = 0
    for position, char in enumerate(link):
        depth += (char in "([") - (char in ")]")
        if depth < 0 or (not char.isascii() and unicodedata.category(char)[0] in "PZSC"):
            link = link[:position]
            break
    return link.rstrip(".,;:!?'*")


def _as_finding(head: bytes, size: int) -> Iterator[Finding]:
    format_, coding, made = _format_of(head), "base64", size * 3 // 4
    if not format_ and len(head) >= 64 and _HEX.fullmatch(head):
        format_, coding, made = sniff(bytes.fromhex(head[:128].decode())), "hexadecimal", size // 2
    if format_ not in {"", "text"} or (size >= _RUN_LEAST and coding == "base64"):
        yield Finding(bytes=made, format=format_, coding=coding)


def _format_of(head: bytes) -> str:
    """What base64 that begins so looks like."""
    whole = head[: min(len(head), 128) // 4 * 4].replace(b"-", b"+").replace(b"_", b"/")
    decoded = base64.b64decode(whole)
    return sniff(decoded) or ("text" if len(decoded) >= 48 and is_text(decoded) else "")
