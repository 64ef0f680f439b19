"""An answer as servers really write it, mended on its way to h11, which reads only what RFC 9112 has.

What is paid for is not lost to how it is wrapped: equal lengths are one, a length beside chunks is none, lines may end
in a bare LF and be folded, and a body that breaks its own framing is handed on as it came before that is told. The
bytes of a body are never changed: only its head, and where it is cut into chunks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .http import LostConnectionError

_HEAD_MOST = 1 << 17
"""Bytes of an answer's head. A store sends less than 4 kB; without a bound a peer could fill the memory."""

_LINE_MOST = 4096

_HEAD_END = re.compile(rb"\r?\n\r?\n")

_STATUS = re.compile(rb"HTTP/([0-9])(?:\.([0-9]))?[ \t]+([0-9]{3})(?:[ \t]|$)")

_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;|$)")

_CHUNK_START = re.compile(rb"\r?[ \t]{0,64}[0-9a-fA-F]{0,15}[ \t]{0,64}(?:;|\r|$)")

_LENGTH = re.compile(r"[0-9]{1,18}")

_BODILESS = frozenset({204, 304})


class Mender:
    """One answer, handed to `give` as it comes. `reusable` says whether another request may follow on its connection;
    `status` is 0 before its head is here. With `greedy` what follows a body that is longer than its length belongs to
    it; such a body is given in chunks, whose end is told here.
    """

    def __init__(self, give: Callable[[bytes], None], *, greedy: bool) -> None:
        self.is_over = False
        self.reusable = False
        self.status = 0
        self._give = give
        self._greedy = greedy
        self._gives_chunks = False
        self._head = bytearray()
        self._has_head = False
        self._closes = True
        # Bytes that are still to come: of the body where its length is known, else of the present chunk.
        self._left: int | None = None
        self._chunks: _Chunks | None = None
        self._flaw = ""
        self._is_ambiguous = False

    def feed(self, chunk: memoryview) -> bool:
        """Take what came; True once the answer is whole. Raises `LostConnectionError` for what is none."""
        while chunk and not self.is_over:
            if self._has_head:
                self._take_body(chunk)
                break
            chunk = self._take_head(chunk)
        return self.is_over

    def close(self) -> None:
        """The peer has closed, which is the end of an answer that does not tell its length. Raises
        `LostConnectionError` where more was to come.
        """
        self.reusable = False
        if self._has_head and not self._flaw and self._may_end():
            self.end(reusable=False)
            return
        raise LostConnectionError(
            self._flaw or "the connection was closed before the answer was whole", is_ambiguous=self._is_ambiguous
        )

    def end(self, *, reusable: bool) -> None:
        """Nothing more comes of it."""
        self.is_over, self.reusable = True, reusable
        if self._gives_chunks:
            self._give(b"0\r\n\r\n")

    def _may_end(self) -> bool:
        if self._chunks is not None:
            return self._chunks.had_last
        return self._left is None

    # --- the head

    def _take_head(self, chunk: memoryview) -> memoryview:
        """What is left of the bytes behind the head, if that ends in them."""
        known = len(self._head)
        if not known:
            # Some servers end the answer before with one line too many.
            chunk = chunk[len(chunk) - len(bytes(chunk).lstrip(b"\r\n")) :]
        self._head += chunk
        end = _HEAD_END.search(self._head, max(0, known - 3))
        if end is None:
            if not b"HTTP/".startswith(self._head[:5]):
                raise LostConnectionError("the answer is no valid HTTP")
            if len(self._head) > _HEAD_MOST:
                raise LostConnectionError("the answer's head is larger than any")
            return chunk[len(chunk) :]
        rest = chunk[end.end() - known :]
        head = bytes(self._head[: end.start()])
        self._head.clear()
        self._read_head(head)
        return rest

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\n")
        found = _STATUS.match(first.rstrip(b"\r"))
        if found is None or int(found[3]) == 101:
            raise LostConnectionError("the answer is no valid HTTP")
        status, headers = int(found[3]), _read_fields(lines)
        if 100 <= status < 200:
            # It only says that the real one follows.
            return
        self._has_head, self.status = True, status
        said = {word.strip() for word in headers.get("connection", "").lower().split(",")}
        is_new = (int(found[1]), int(found[2] or 0)) >= (1, 1)
        self._closes = "close" in said or not (is_new or "keep-alive" in said)
        self._read_framing(status, headers)
        self.reusable = not (self._closes or self._flaw)
        has_body = status not in _BODILESS and self._left != 0
        self._gives_chunks = has_body and (self._greedy or self._left is None)
        self._give(_write_head(status, headers, chunked=self._gives_chunks))
        if not has_body:
            self.end(reusable=self.reusable)

    def _read_framing(self, status: int, headers: dict[str, str]) -> None:
        """How the body's end is known (RFC 9112, 6.3). The header that counts is left as a number, others are taken
        out: who reads them later shall not be led by one that does not.
        """
        codings = {word.strip() for word in headers.get("transfer-encoding", "").lower().split(",")} - {"", "identity"}
        words = (word.strip() for word in headers.pop("content-length", "").split(","))
        lengths = {word.lstrip("0") or "0" for word in words if word}
        known = sorted(int(length) for length in lengths if _LENGTH.fullmatch(length))
        if status in _BODILESS:
            return
        if codings:
            self._chunks = _Chunks() if "chunked" in codings else None
        elif len(known) == len(lengths) == 1:
            headers["content-length"] = str(known[0])
            self._left = known[0]
        elif len(lengths) > 1:
            self._flaw, self._is_ambiguous = "the answer gives several lengths of itself", True
            self._left = known[0] if known and not self._closes else None

    # --- the body

    def _take_body(self, chunk: memoryview) -> None:
        if self._chunks is not None:
            self._take_chunks(self._chunks, chunk)
            return
        if self._left is None:
            self._hand_on(chunk)
            return
        own, more = chunk[: self._left], chunk[self._left :]
        self._left -= len(own)
        self._hand_on(own)
        if self._left or self.is_over:
            return
        if self._flaw:
            self._hand_on(more)
            raise LostConnectionError(self._flaw, is_ambiguous=True)
        if more and self._greedy and bytes(more[:5]) != b"HTTP/":
            self._hand_on(more)
            self.reusable = False
            if self._closes:
                # What says that it closes has not said all before that.
                self._left = None
                return
        self.end(reusable=self.reusable and not more)

    def _take_chunks(self, chunks: _Chunks, chunk: memoryview) -> None:
        while chunk and not self.is_over:
            if chunks.is_broken:
                self._hand_on(chunk)
                return
            piece, chunk = chunks.take(chunk)
            self._hand_on(piece)
            if chunks.is_broken:
                self._flaw, self.reusable = "the answer's chunks are broken", False
                self._hand_on(memoryview(chunks.rest))
                if not self._closes:
                    self._hand_on(chunk)
                    raise LostConnectionError(self._flaw)
            elif chunks.is_over:
                self.end(reusable=self.reusable and not chunk)

    def _hand_on(self, piece: memoryview) -> None:
        if piece and not self.is_over:
            self._give(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) if self._gives_chunks else bytes(piece))


class _Chunks:
    """The chunked coding (RFC 9112, 7.1): a line with a length, so many bytes, and so on to a length of 0."""

    def __init__(self) -> None:
        self.is_over = False
        self.is_broken = False
        self.had_last = False
        """The chunk of length 0 came: what follows are only trailers, which nobody reads."""
        self.rest = b""
        """Where it is broken: the bytes that are no length."""
        self._line = bytearray()
        self._left = 0
        self._tail = 0
        self._is_behind = False

    def take(self, chunk: memoryview) -> tuple[memoryview, memoryview]:
        """The next bytes of the body, and what is left of the chunk."""
        if self._left:
            piece = chunk[: self._left]
            self._left -= len(piece)
            self._is_behind = not self._left
            return piece, chunk[len(piece) :]
        known = len(self._line)
        self._line += chunk[: _LINE_MOST + 2]
        end = self._line.find(b"\n", known)
        if end < 0 and len(self._line) <= _LINE_MOST and (self.had_last or _CHUNK_START.match(self._line)):
            return chunk[:0], chunk[len(chunk) :]
        line, used = bytes(self._line[: end + 1]), end + 1 - known
        if self.had_last:
            self._count_trailer(line or bytes(self._line))
            used = used if line else len(self._line) - known
            self._line.clear()
        elif not line:
            self._break(bytes(self._line))
            used = len(self._line) - known
        else:
            self._line.clear()
            self._read_line(line)
        return chunk[:0], chunk[used:]

    def _read_line(self, line: bytes) -> None:
        text = line.rstrip(b"\r\n")
        if self._is_behind and not text:
            # The end of the line that the chunk before ends with.
            self._is_behind = False
            return
        found = _CHUNK.match(text)
        if found is None or self._is_behind:
            self._break(line)
            return
        self._left = int(found[1], 16)
        self.had_last = not self._left

    def _count_trailer(self, line: bytes) -> None:
        self._tail += len(line)
        if self._tail > _HEAD_MOST:
            raise LostConnectionError("the answer has no end")
        self.is_over = line in {b"\r\n", b"\n"}

    def _break(self, rest: bytes) -> None:
        self.is_broken, self.rest = True, rest


_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")

_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]+")


def _write_head(status: int, headers: Mapping[str, str], *, chunked: bool) -> bytes:
    """An answer's head as h11 reads it: without what is no field, and with the framing that its body is given."""
    lines = [b"HTTP/1.1 %03d" % status]
    for name, text in headers.items():
        if name != "transfer-encoding" and _TOKEN.fullmatch(name):
            value = text.encode("utf-8", "surrogateescape") if name == "location" else text.encode("latin-1")
            lines.append(b"%b: %b" % (name.encode(), _CONTROLS.sub(b" ", value).strip()))
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    return b"\r\n".join((*lines, b"", b""))


def _read_fields(lines: list[bytes]) -> dict[str, str]:
    """Header fields by name in lower case; repeated ones are joined, folded ones made whole."""
    fields: dict[str, str] = {}
    key = ""
    for line in lines:
        value = line.strip(b" \t\r")
        if line[:1] in {b" ", b"\t"} and key:
            fields[key] = f"{fields[key]} {_text(key, value)}"
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            continue
        key = name.strip().decode("latin-1").lower()
        text = _text(key, value.strip(b" \t\r"))
        fields[key] = f"{fields[key]}, {text}" if key in fields else text
    return fields


def _text(key: str, value: bytes) -> str:
    # What a redirect names must come out byte for byte; other headers are only read.
    return value.decode("utf-8", "surrogateescape") if key == "location" else value.decode("latin-1")
