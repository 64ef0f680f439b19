"""The one room that talks to the network, and the one importer of httpx.

Contract. `Wire.ask` and `Wire.stream` send one `Call`; `Wire.fetch` gets one picture's link. A billable request leaves
at most once, unless it is proven that it never left, the provider said that it took nothing, or the user ordered the
repetition. What left is proven by httpcore's trace events, never guessed from an exception's name. Everything that is
neither proven unsent nor answered whole is `unknown_outcome`. Retries, pace and redaction happen here and nowhere else.
The API key goes to the provider's host only; links are fetched by a client that has never seen it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import email.utils
import hashlib
import http.cookiejar
import importlib.util
import ipaddress
import json
import logging
import os
import random as randomness
import re
import secrets
import socket
import ssl
import sys
import time
import urllib.parse
import urllib.request
import zlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import httpx

from . import __version__
from .errors import ApiError, ConfigError, FileError, InputError, InternalError, LinkError, Problem, SeedreamError
from .providers.base import Call, Reply
from .request import ImageRef

T = TypeVar("T")
R = TypeVar("R")

MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 600.0
MAX_REDIRECTS = 3
REPLY_LIMIT = 1 << 30
MEMORY_LIMIT = 8 << 20
PICTURE_LIMIT = 64 << 20
_TEXT_BYTES = 2000
_OPENING_BYTES = 8192
_READ_STEP = 3 << 16  # a multiple of three, so that base64 pads only at the very end
_INFLATE_STEP = 1 << 20
_LANE = 4  # connections of one client
_REQUEST_ID_HEADERS = ("x-request-id", "x-tt-logid", "x-client-request-id", "x-trace-id", "cf-ray")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


# --- what others give and get -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """How long to wait and how often to try. Times in seconds; `retries` counts the attempts after the first.

    `timeout_s` bounds one exchange from its first byte sent to its last byte received; no further attempt starts once
    that much time has passed since the first. `connect_timeout_s` bounds all that comes before: names, proxy, TCP, TLS.
    `slots`, `rpm` and `ipm` bound the billable requests in flight and the requests and pictures of any 60 seconds.
    """

    timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    retries: int = 4
    retry_ambiguous: bool = False
    slots: int | None = None
    rpm: int | None = None
    ipm: int | None = None


class Clock:
    """Time, so that tests can make it pass at once. The only sleeper of the tool."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def now(self) -> dt.datetime:
        """The wall clock, aware."""
        return dt.datetime.now(dt.UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait without blocking the loop."""
        await asyncio.sleep(seconds)


class Watch(Protocol):
    """Who wants to know how an exchange goes on. Must neither raise nor block."""

    def stage(self, name: Literal["connecting", "sent", "receiving"]) -> None:
        """An attempt entered a stage."""

    def retrying(self, wait_s: float, error: SeedreamError, attempt: int) -> None:
        """Attempt number `attempt` failed and will be repeated in `wait_s` seconds."""


class ReplyFile(Protocol):
    """Where a reply is kept while it arrives, before anybody judges it."""

    @property
    def size(self) -> int:
        """Bytes written since the last reset."""

    def write(self, chunk: bytes) -> None:
        """Append; raises `FileError` where the disk refuses."""

    def reset(self) -> None:
        """Forget what was written: another attempt begins."""

    def load(self) -> Any:
        """The parsed JSON, base64 pictures left in the file; raises ValueError where it is none."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What `read` made of the reply. `provider_s` is the last attempt's time from first byte out to last byte in.

    `doubtful` counts earlier attempts that may have been billed too (only ever with `retry_ambiguous`).
    """

    value: T
    attempts: int
    provider_s: float
    reply: Reply
    doubtful: int = 0


@dataclass(frozen=True, slots=True)
class Streamed(Generic[T]):
    """The end of a stream. `whole` holds what `read` made of a reply that was one JSON document, `ended` then "whole".

    Otherwise `ended` says how the events stopped: "done" (`[DONE]` came), "eof" (the body ended between two events) or
    "cut" (inside one, or the connection broke), `cut` then being the error to report if pictures are missing.
    """

    whole: T | None
    ended: Literal["whole", "done", "eof", "cut"]
    attempts: int
    provider_s: float
    reply: Reply
    cut: ApiError | None = None
    doubtful: int = 0


@dataclass(frozen=True, slots=True)
class Fetched(Generic[T]):
    """A link that was fetched whole: what the caller's `check` made of it, and the type that the server claimed."""

    checked: T
    size: int
    content_type: str
    host: str
    attempts: int


# --- secrets ----------------------------------------------------------------------------------------------------------

_KEY = re.compile(r"[\x21-\x7e]+")
_URL = re.compile(r"(https?:(?:\\?/){2})([^\s\"<>]+)", re.IGNORECASE)
_BEARER = re.compile(r"\bbearer[ \t]+[^\s\"',]+", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"\b((?:x-[a-z]+-)?(?:signature|credential|security-token)|sig|ossaccesskeyid)=[^&\s\"'<>]+", re.IGNORECASE
)


def check_key(raw: str) -> str:
    """The key without surrounding white space, BOM and quotes; ConfigError, which never shows it, where it is unusable.

    A key with a line break would be refused by the HTTP library in an error that prints the whole header.
    """
    key = raw.strip().lstrip("\ufeff").strip()
    if len(key) >= 2 and key[0] == key[-1] and key[0] in "\"'":
        key = key[1:-1].strip()
    if not key:
        raise ConfigError("the API key is empty")
    if not _KEY.fullmatch(key):
        hint = "paste the key alone: no 'Bearer ', no spaces, no line breaks"
        raise ConfigError("the API key holds a space, a control character or a non-ASCII character", hint=hint)
    return key


def _base64_forms(key: str) -> Iterator[str]:
    """The characters that stand for the key inside base64, at each of the three places where it can begin."""
    for lead in range(3):
        encoded = base64.b64encode(b"\0" * lead + key.encode())
        inner = encoded[(lead * 8 + 5) // 6 : (lead + len(key)) * 8 // 6].decode()
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def secret_forms(key: str) -> tuple[str, ...]:
    """Every spelling of the key that is searched for in texts, longest first. Very short ones would blot out words."""
    if len(key) < 4:
        return ()
    quoted = urllib.parse.quote(key, safe="")
    lower = re.sub("%..", lambda match: match[0].lower(), quoted)
    forms = {key, quoted, lower, json.dumps(key)[1:-1]}
    forms.update(form for form in _base64_forms(key) if len(form) >= 8)
    return tuple(sorted(forms, key=len, reverse=True))


def mask(text: str, forms: tuple[str, ...] = ()) -> str:
    """The text without the key (`forms`), bearer tokens, and the query and user name of every link in it."""
    for form in forms:
        text = text.replace(form, "***")
    text = _URL.sub(_mask_url, text)
    return _SIGNATURE.sub(r"\1=***", _BEARER.sub("Bearer ***", text))


def _mask_url(match: re.Match[str]) -> str:
    address, mark, _ = match[2].partition("?")
    authority, slash, path = address.partition("/")
    if "@" in authority:
        authority = "***@" + authority.rpartition("@")[2]
    return f"{match[1]}{authority}{slash}{path}" + ("?***" if mark else "")


def _silence_libraries() -> None:
    """Httpx logs whole signed links at INFO and httpcore logs headers at DEBUG: neither may speak."""
    for name in ("httpx", "httpcore", "httpcore.connection", "httpcore.proxy", "httpcore.http11"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))


def _remember_absence() -> None:
    """Httpcore asks for `sniffio` some ten times a request. Where it is not installed, each time searches the disk.

    An entry of None makes that import fail at once; it was a fifth of the time of a download.
    """
    if "sniffio" not in sys.modules and importlib.util.find_spec("sniffio") is None:
        sys.modules["sniffio"] = None  # type: ignore[assignment]


# --- the request body -------------------------------------------------------------------------------------------------


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


# --- the reply --------------------------------------------------------------------------------------------------------


class _BrokenReplyError(Exception):
    """A reply that arrived and cannot be used: too large, encoded in a way not asked for, its encoding cut."""


class _Memory:
    """A `ReplyFile` for small replies."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    @property
    def size(self) -> int:
        return len(self._bytes)

    def write(self, chunk: bytes) -> None:
        self._bytes += chunk

    def reset(self) -> None:
        self._bytes.clear()

    def load(self) -> Any:
        return json.loads(self._bytes)


async def _raw(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body's bytes as they came. A transport without a socket may hand in a reply that is read already."""
    if response.is_stream_consumed:
        yield response.content
        return
    async for chunk in response.aiter_raw():
        yield chunk


async def _pieces(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. A server that compresses although asked not to is decoded in bounded steps."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in {"", "identity"}:
        async for chunk in _raw(response):
            yield chunk
        return
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise _BrokenReplyError(f"the reply is encoded as {encoding[:40]!r}, which was not asked for")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    async for chunk in _raw(response):
        rest = chunk
        while rest and not inflater.eof:
            yield inflater.decompress(rest, _INFLATE_STEP)
            rest = inflater.unconsumed_tail
    while not inflater.eof and (piece := inflater.decompress(b"", _INFLATE_STEP)):
        yield piece
    if not inflater.eof:
        raise _BrokenReplyError("the compressed reply was cut short")


@dataclass(slots=True)
class _Received:
    """A reply's outside, and the start of its body for messages."""

    status: int
    headers: Mapping[str, str]
    start: bytearray = field(default_factory=bytearray)


async def _parse(received: _Received, file: ReplyFile) -> Reply:
    """The reply with its body parsed from where it was kept; large ones in a thread, since parsing takes seconds."""
    try:
        body = await asyncio.to_thread(file.load) if file.size > 1 << 20 else file.load()
    except (ValueError, RecursionError):
        return Reply(received.status, received.headers, None, received.start.decode("utf-8", "replace"))
    return Reply(received.status, received.headers, body)


def read_retry_after(headers: Mapping[str, str], now: dt.datetime) -> float | None:
    """Seconds to wait by `Retry-After`, 0 to 600; None where it is absent, hostile or garbage.

    The date form is measured against the server's own `Date`, so that a wrong clock on either side does not matter.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,11}(\.[0-9]{1,9})?", value):
        return min(float(value), MAX_RETRY_AFTER_S)
    then = _http_date(value)
    if then is None:
        return None
    base = _http_date(headers.get("date", "")) or now
    return min(max((then - base).total_seconds(), 0.0), MAX_RETRY_AFTER_S)


def _http_date(value: str) -> dt.datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=dt.UTC)


# --- retries and pace -------------------------------------------------------------------------------------------------


def decide(error: ApiError, attempt: int, elapsed_s: float, policy: Policy, random: randomness.Random) -> float | None:
    """Seconds to wait before the next attempt, or None to give up. `attempt` counts the attempts made, from 1.

    An attempt that may have been billed is repeated only where the user ordered it. A server error that its contract
    calls unbilled is repeated twice at most: that claim is worth less than a refusal at the door.
    """
    ambiguous = error.kind == "unknown_outcome" or error.billed == "unknown"
    if not (policy.retry_ambiguous if ambiguous else error.retryable):
        return None
    if attempt > policy.retries or (error.kind == "unavailable" and attempt > 2):
        return None
    wait = _back_off(error, attempt, random)
    return None if elapsed_s + wait > policy.timeout_s else wait


def _back_off(error: ApiError, attempt: int, random: randomness.Random) -> float:
    """1, 2, 4, 8 … 30 s with jitter. Limits get equal jitter: full jitter can use up every try inside one minute."""
    if error.retry_after_s is not None:
        return error.retry_after_s + random.uniform(0, min(1.0, 0.1 * error.retry_after_s + 0.1))
    ceiling = min(MAX_BACKOFF_S, 2.0 ** (attempt - 1))
    if error.kind == "network":
        return random.uniform(0, ceiling)
    return ceiling / 2 + random.uniform(0, ceiling / 2)


class _Pace:
    """Slots, requests and pictures a minute, and the moment before which nobody may send."""

    def __init__(self, policy: Policy, clock: Clock, random: randomness.Random) -> None:
        self._clock = clock
        self._random = random
        self._rpm, self._ipm = policy.rpm, policy.ipm
        self._slots = asyncio.Semaphore(policy.slots) if policy.slots else None
        self._sent: deque[tuple[float, int]] = deque()
        self._not_before = 0.0

    def hold(self, seconds: float) -> None:
        """Nobody sends for so long: one request was told that there are too many."""
        self._not_before = max(self._not_before, self._clock.monotonic() + seconds)

    @contextlib.asynccontextmanager
    async def turn(self, call: Call, pictures: int) -> AsyncIterator[None]:
        """Hold a slot from before the first byte to the end of the reply. Polls and lists need none."""
        async with self._slots if self._slots and call.billable else contextlib.nullcontext():
            while (wait := self._wait(call, pictures)) > 0:
                # Jitter keeps all that waited for the same moment from leaving in it.
                await self._clock.sleep(wait + self._random.uniform(0, min(1.0, wait / 10)))
            if call.billable and (self._rpm or self._ipm):
                self._sent.append((self._clock.monotonic(), pictures))
            yield

    def _wait(self, call: Call, pictures: int) -> float:
        now = self._clock.monotonic()
        while self._sent and self._sent[0][0] <= now - 60:
            self._sent.popleft()
        wait = self._not_before - now
        if not call.billable or not self._sent:
            return wait
        full = self._rpm is not None and len(self._sent) >= self._rpm
        # A request for more pictures than a minute allows goes alone, or it would wait for ever.
        full = full or (self._ipm is not None and sum(n for _, n in self._sent) + pictures > self._ipm)
        return max(wait, self._sent[0][0] + 60 - now) if full else wait


# --- events of a stream -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """The terminator `[DONE]`."""


_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_EVENT_TYPE = re.compile(rb'"type"\s*:\s*"(?:image_generation\.|error")')
_WHOLE = re.compile(rb'"(?:data|error)"\s*:\s*[\[{"]')
_FIELD = re.compile(rb"(?:event|data|id|retry)?(?::|$)")


class EventParser:
    """Events out of bytes that arrive in any pieces: server-sent events, or one JSON object a line.

    Which of them is decided by the first bytes, since providers answer a bad request to a stream with plain JSON, and
    label it as they like: `mode` becomes "sse", "lines", or "whole" for a body that is one document (no events then).
    A line of JSON is an event if it has a `type`; every other first line is the start of a document.
    """

    def __init__(self) -> None:
        self.mode: Literal["", "sse", "lines", "whole"] = ""
        self.skipped = 0
        """Events whose data was neither a JSON object nor the terminator."""
        self._opening: list[bytes] = []
        self._held = 0
        self._line: list[bytes] = []
        self._after_cr = False
        self._first = True
        self._name = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[dict[str, Any] | Done]:
        """The events that these bytes complete."""
        if self.mode:
            return self._events(data)
        self._opening.append(data)
        return self._open(newline=b"\n" in data or b"\r" in data, ended=False)

    def close(self) -> tuple[list[dict[str, Any] | Done], bool]:
        """The end of the body: the events it completes, and whether it came inside one (which is not delivered)."""
        events = [] if self.mode else self._open(newline=False, ended=True)
        rest = b"".join(self._line)
        if self.mode == "lines" and rest.strip():
            last = _parse_event(rest)
            return ([*events, last], False) if last else (events, True)
        if self.mode == "sse" and not rest and self._data == [b"[DONE]"]:
            # Some servers hang up after the terminator without the empty line that would complete it.
            return [*events, Done()], False
        return events, self.mode == "sse" and bool(rest or self._data or self._name)

    def _open(self, *, newline: bool, ended: bool) -> list[dict[str, Any] | Done]:
        # Looked at while it is short or when a line ends: a long first line must not be copied at every piece.
        if not (newline or ended or self._held <= _OPENING_BYTES):
            return []
        self._held = sum(map(len, self._opening))
        opening = b"".join(self._opening)
        self._opening = [opening]
        self.mode = _recognise(opening, ended=ended)
        if not self.mode:
            return []
        self._opening = []
        return self._events(opening)

    def _events(self, data: bytes) -> list[dict[str, Any] | Done]:
        if self.mode == "whole":
            return []
        take = self._take_field if self.mode == "sse" else self._take_object
        return [event for line in self._lines(data) if (event := take(line)) is not None]

    def _lines(self, data: bytes) -> Iterator[bytes]:
        """Whole lines, ended by CR, LF or CRLF, wherever the pieces are cut."""
        start = 1 if self._after_cr and data[:1] == b"\n" else 0
        self._after_cr = data.endswith(b"\r") if data else self._after_cr
        *whole, rest = _LINE_END.split(data[start:])
        for line in whole:
            text = b"".join([*self._line, line])
            self._line.clear()
            yield text.removeprefix(_BOM) if self._first else text
            self._first = False
        if rest:
            self._line.append(rest)

    def _take_object(self, line: bytes) -> dict[str, Any] | Done | None:
        return self._judge(_parse_event(line)) if line.strip() else None

    def _take_field(self, line: bytes) -> dict[str, Any] | Done | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value
        return None

    def _dispatch(self) -> dict[str, Any] | Done | None:
        name, data = self._name, b"\n".join(self._data)
        self._name, self._data = b"", []
        if not data.strip():
            return None
        event = self._judge(_parse_event(data))
        if isinstance(event, dict) and name:
            event.setdefault("type", name.decode("utf-8", "replace"))
        return event

    def _judge(self, event: dict[str, Any] | Done | None) -> dict[str, Any] | Done | None:
        self.skipped += event is None
        return event


def _recognise(opening: bytes, *, ended: bool) -> Literal["", "sse", "lines", "whole"]:
    """What a body is by its first bytes; "" while they do not tell."""
    if not ended and _BOM.startswith(opening[:3]) and len(opening) < 3:
        return ""
    text = opening.removeprefix(_BOM).lstrip()
    if not text:
        return "whole" if ended else ""
    line, *more = _LINE_END.split(text, maxsplit=1)
    if text[:1] not in b"{[":
        known = bool(more) or ended or len(line) > 6
        return ("sse" if _FIELD.match(line) else "whole") if known else ""
    if _EVENT_TYPE.search(text, 0, 4096):
        return "lines"
    if more or ended:
        event = _parse_event(line)
        return "lines" if isinstance(event, dict) and isinstance(event.get("type"), str) else "whole"
    return "whole" if len(text) >= 4096 and _WHOLE.search(text, 0, 4096) else ""


def _parse_event(data: bytes) -> dict[str, Any] | Done | None:
    if data.strip() == b"[DONE]":
        return Done()
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


# --- links ------------------------------------------------------------------------------------------------------------

_LINK = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)
_UNSENDABLE = re.compile(rb"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class Target:
    """A link taken apart without changing a byte: `raw` is what follows the host, as it goes over the wire."""

    scheme: str
    authority: str
    host: str
    raw: bytes

    @property
    def loopback(self) -> bool:
        """Whether the host is this machine."""
        return is_loopback(self.host)


class _ExactURL(httpx.URL):
    """A URL whose request target is sent as it is.

    A signature covers the exact bytes of a link, and every URL parser mends some of them. The library's own `target`
    extension is no way out: through a proxy it sends the whole signed target in clear, as the name of the tunnel.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(f"{target.scheme}://{target.authority}/")
        self._exact = target.raw

    @property
    def raw_path(self) -> bytes:
        return self._exact


def split_link(link: str) -> Target:
    """Take a link apart; LinkError for what can never be sent as it stands. Only non-ASCII bytes are escaped."""
    match = _LINK.fullmatch(link.strip())
    if not match:
        raise LinkError("the picture's link is no http or https address")
    scheme, authority, rest = match[1].lower(), match[2], match[3]
    if "@" in authority:
        raise LinkError("the picture's link holds a user name, which is refused")
    raw = b"".join(
        bytes([byte]) if byte < 0x80 else b"%%%02X" % byte for byte in rest.encode("utf-8", "surrogateescape")
    )
    if "\\" in authority or _UNSENDABLE.search(raw) or re.search(r"[\x00-\x20\x7f]", authority):
        raise LinkError("the picture's link holds a space, a control character or a backslash where none can be")
    try:
        host = httpx.URL(f"{scheme}://{authority}/").host
    except (httpx.InvalidURL, ValueError) as exc:
        raise LinkError("the picture's link has no valid host") from exc
    if not host:
        raise LinkError("the picture's link has no host")
    return Target(scheme, authority, host, raw if raw.startswith(b"/") else b"/" + raw)


def next_hop(origin: Target, current: Target, location: str) -> Target:
    """Where a redirect leads, rebuilt from its `Location` alone; LinkError where the picture may not be sought there.

    Only https is followed, never to a private address: a store's answer must not make this machine ask its own network.
    Loopback may lead to loopback. The signature of the link before is never carried along.
    """
    location = location.strip()
    if not re.match(r"[a-z][a-z0-9+.-]*:", location, re.IGNORECASE):
        location = _absolute(current, location)
    target = split_link(location)
    if (
        origin.loopback
        and current.loopback
        and target.loopback
        and (current.scheme, target.scheme) != ("https", "http")
    ):
        return target
    if target.scheme != "https":
        raise LinkError(f"{current.host} redirects the picture to an address without TLS ({target.host})")
    if is_private(target.host) and not (origin.loopback and target.loopback):
        raise LinkError(f"{current.host} redirects the picture to a private address ({target.host})")
    return target


def _absolute(current: Target, location: str) -> str:
    """A relative reference made absolute by joining strings, so that nothing in it is normalised."""
    path = current.raw.decode("latin-1").partition("?")[0]
    base = f"{current.scheme}://{current.authority}"
    if location.startswith("//"):
        return f"{current.scheme}:{location}"
    if location.startswith("/"):
        return base + location
    if location.startswith("?") or not location:
        return base + path + location
    return base + path.rpartition("/")[0] + "/" + location


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address a host spells, also in the short and octal forms that resolvers take; None for a name."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return getattr(address, "ipv4_mapped", None) or address
    with contextlib.suppress(OSError, UnicodeError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address; nothing is looked up."""
    name = host.lower().rstrip(".")
    address = _address(host)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def is_private(host: str) -> bool:
    """Whether a host is not on the public internet, as far as its spelling tells; nothing is looked up."""
    address = _address(host)
    return is_loopback(host) or (address is not None and not address.is_global)


# --- the wire ---------------------------------------------------------------------------------------------------------

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
_BROKEN = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, zlib.error, _BrokenReplyError)


class _Trail:
    """What one attempt has done so far, told by the trace events of the connection."""

    def __init__(
        self,
        call: Call,
        attempt: int,
        policy: Policy,
        *,
        gate: Callable[[int], None] | None,
        clock: Clock,
        watch: Watch | None,
    ) -> None:
        self._method = call.method.encode()
        self._attempt = attempt
        self._policy = policy
        self._gate = gate
        self._clock = clock
        self._watch = watch
        self.timer: asyncio.Timeout | None = None
        self.sent = False
        self.headers_sent = False
        self.final = False
        self.sent_at = clock.monotonic()
        self.received: _Received | None = None

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """The hook. A CONNECT to a proxy raises the same events, so the method is looked at."""
        request = info.get("request")
        if request is None or request.method != self._method or not name.endswith(".started"):
            return
        event = name.rpartition(".")[0].rpartition(".")[2]
        if event == "send_request_headers":
            self.leave()
        elif event == "send_request_body":
            self.headers_sent = True
        elif event == "receive_response_headers":
            self.stage("sent")

    def leave(self) -> None:
        """The last moment before the first byte leaves; what the gate raises here keeps it from leaving."""
        if self._gate:
            self._gate(self._attempt)
        self.sent = True
        self.sent_at = self._clock.monotonic()
        if self.timer:
            self.timer.reschedule(asyncio.get_running_loop().time() + self._policy.timeout_s)

    def stage(self, name: Literal["connecting", "sent", "receiving"]) -> None:
        """Tell whoever watches."""
        if self._watch:
            self._watch.stage(name)


@dataclass(slots=True)
class _Lane:
    """A client and how many exchanges it has under way."""

    client: httpx.AsyncClient
    busy: int = 0


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[R]):
    """A finished exchange and what it took."""

    value: R
    attempts: int
    provider_s: float
    doubtful: int


class Wire:
    """The connection to one provider with one key. An async context manager; clients are made when first needed.

    `proxy` overrules the proxies of the environment, which are honoured otherwise, except that a plain http address of
    this machine never goes through a proxy elsewhere. A `transport` (the sandbox) serves both clients.
    `log` takes lines for the wire log, already masked.
    """

    def __init__(
        self,
        *,
        base_url: str,
        key: str,
        policy: Policy,
        proxy: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
        random: randomness.Random | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._key = check_key(key) if key else ""
        self._forms = secret_forms(self._key)
        self._base = _check_base(base_url, offline=transport is not None)
        self._policy = policy
        # A little less than the deadline around it: the library closes its socket when its own clock ends the attempt.
        self._connect_s = 0.9 * policy.connect_timeout_s
        self._proxy = proxy
        self._transport = transport
        self._clock = clock or Clock()
        self._random = random or randomness.Random()
        self._pace = _Pace(policy, self._clock, self._random)
        self._log = log
        self._lanes: dict[tuple[str, bool], list[_Lane]] = {}
        self._tls: ssl.SSLContext | None = None
        _silence_libraries()
        _remember_absence()
        if self._base.scheme == "http" and transport is None and proxy and not is_loopback(_proxy_host(proxy)):
            raise ConfigError(
                f"the API key would travel in clear to the proxy {_proxy_host(proxy)}: use an https API address"
            )

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        lanes, self._lanes = [lane for room in self._lanes.values() for lane in room], {}
        for lane in lanes:
            await lane.client.aclose()

    @property
    def proxy_in_use(self) -> str:
        """Host and port of the proxy that calls go through, without its password; "" for none. For a notice."""
        if self._transport is not None:
            return ""
        if self._proxy:
            return _proxy_host(self._proxy, port=True)
        found = _environment_proxy(self._base.scheme)
        if not found or not self._trusts_environment(secure=self._base.scheme == "https"):
            return ""
        return "" if urllib.request.proxy_bypass(self._base.host) else _proxy_host(found, port=True)

    def mask(self, text: str) -> str:
        """The text without the key, bearer tokens and the queries of links."""
        return mask(text, self._forms)

    # -- calls

    async def ask(
        self,
        call: Call,
        read: Callable[[Reply], T],
        *,
        spool: ReplyFile | None = None,
        gate: Callable[[int], None] | None = None,
        watch: Watch | None = None,
        pictures: int = 1,
    ) -> Answer[T]:
        """Send a call and let `read` judge the whole reply.

        `gate(attempt)` runs just before the first byte of each attempt leaves; what it raises comes through, and
        nothing is sent. Without a `spool` the reply may have 8 MiB. `pictures` counts against the pace.
        """
        file: ReplyFile = spool if spool is not None else _Memory()
        limit = MEMORY_LIMIT if spool is None else REPLY_LIMIT

        async def once(trail: _Trail) -> tuple[T, Reply]:
            async def receive(response: httpx.Response) -> None:
                async for _ in self._keep(response, trail, file, limit):
                    pass

            await self._exchange(call, trail, receive)
            reply = await self._reply(trail, file)
            return read(reply), reply

        outcome = await self._repeat(call, once, gate=gate, watch=watch, pictures=pictures)
        value, reply = outcome.value
        return Answer(value, outcome.attempts, outcome.provider_s, reply, outcome.doubtful)

    async def stream(
        self,
        call: Call,
        read: Callable[[Reply], T],
        on_event: Callable[[dict[str, Any]], None],
        *,
        spool: ReplyFile,
        gate: Callable[[int], None] | None = None,
        watch: Watch | None = None,
        pictures: int = 1,
    ) -> Streamed[T]:
        """Send a call and hand over each event the moment it is whole; every byte goes to the spool first.

        A reply that is one JSON document (an error, or a provider that does not stream) goes through `read` and the
        rules of `ask`. Nothing is repeated once a stream of events has begun. What `on_event` raises ends the stream
        and comes through. A stream that breaks is returned as `ended="cut"`: the pictures that came are the user's.
        """

        async def once(trail: _Trail) -> Streamed[T]:
            parser = EventParser()
            done: list[Done] = []

            def deliver(event: dict[str, Any] | Done) -> None:
                if isinstance(event, Done):
                    done.append(event)
                elif not done:
                    on_event(event)

            async def receive(response: httpx.Response) -> None:
                if response.status_code != 200:
                    parser.mode = "whole"
                async with contextlib.aclosing(self._keep(response, trail, spool, REPLY_LIMIT)) as pieces:
                    async for piece in pieces:
                        events = parser.feed(piece)
                        trail.final = parser.mode in {"sse", "lines"}
                        for event in events:
                            deliver(event)
                        if done:
                            return

            cut = await self._cut_of(self._exchange(call, trail, receive), trail, parser)
            last, unfinished = parser.close() if cut is None else ([], True)
            for event in last:
                deliver(event)
            if parser.skipped:
                self._say(f"* {parser.skipped} events were no JSON objects and were passed over")
            if parser.mode == "whole":
                reply = await self._reply(trail, spool)
                return Streamed(read(reply), "whole", 1, 0.0, reply)
            if unfinished and not done and cut is None:
                cut = self._failure(call, trail, _BrokenReplyError("the stream ended inside an event"))
            ended: Literal["done", "eof", "cut"] = "done" if done else "cut" if cut else "eof"
            received = trail.received or _Received(0, {})
            return Streamed(None, ended, 1, 0.0, Reply(received.status, received.headers), cut)

        outcome = await self._repeat(call, once, gate=gate, watch=watch, pictures=pictures)
        attempts, seconds = outcome.attempts, outcome.provider_s
        return replace(outcome.value, attempts=attempts, provider_s=seconds, doubtful=outcome.doubtful)

    async def _cut_of(self, exchange: Awaitable[None], trail: _Trail, parser: EventParser) -> ApiError | None:
        """The error that broke a stream of events, if one did; a broken document is raised as for `ask`."""
        try:
            await exchange
        except ApiError as error:
            # What `on_event` raised is the provider's word and not a cut; only the wire says "maybe delivered".
            if parser.mode in {"sse", "lines"} and error.delivered == "maybe":
                return self._settle(error, trail)
            raise
        return None

    async def _repeat(
        self,
        call: Call,
        once: Callable[[_Trail], Awaitable[R]],
        *,
        gate: Callable[[int], None] | None,
        watch: Watch | None,
        pictures: int,
    ) -> _Outcome[R]:
        """The one place where a call is sent again. Waits hold no slot."""
        began: float | None = None
        attempt, doubts = 0, list[ApiError]()
        while True:
            attempt += 1
            async with self._pace.turn(call, pictures):
                began = self._clock.monotonic() if began is None else began
                trail = _Trail(call, attempt, self._policy, gate=gate, clock=self._clock, watch=watch)
                try:
                    value = await once(trail)
                    return _Outcome(value, attempt, self._clock.monotonic() - trail.sent_at, len(doubts))
                except ApiError as error:
                    failure = self._settle(error, trail)
                except SeedreamError as error:
                    if isinstance(error, FileError) and trail.received and call.billable and error.billed == "no":
                        # The disk refused the answer, not the request: that was at work, and may be paid.
                        error.billed = "unknown"
                    # The gate or a changed file stops a repetition; the doubt about the first attempt remains.
                    if doubts:
                        raise doubts[0] from error
                    raise
            self._say(f"* attempt {attempt}: {failure.kind}: {failure.message}")
            if failure.billed == "unknown":
                doubts.append(failure)
            wait = decide(failure, attempt, self._clock.monotonic() - began, self._policy, self._random)
            if failure.kind == "rate_limited" and failure.retryable:
                self._pace.hold(wait if wait is not None else _back_off(failure, attempt, self._random))
            if wait is None or trail.final:
                # A doubt is not lifted by a later refusal: what may have been paid once stays in the account.
                raise doubts[0] if doubts and failure is not doubts[0] else failure
            if watch:
                watch.retrying(wait, failure, attempt)
            await self._clock.sleep(wait)

    async def _exchange(self, call: Call, trail: _Trail, receive: Callable[[httpx.Response], Awaitable[None]]) -> None:
        """One request and its reply, within the deadlines; every way to fail becomes an ApiError of known delivery."""
        length, pieces = (0, None) if call.json is None else encode_body(call.json)
        trail.stage("connecting")
        self._say(f"> {call.method} {self._base.url}{call.path} ({length} bytes)")
        try:
            async with asyncio.timeout(self._policy.connect_timeout_s) as trail.timer:
                await self._send(call, trail, receive, length, pieces)
        except _BROKEN as exc:
            # The library's text for a bad header prints the header, key included: it must not hang on as a cause.
            cause = None if isinstance(exc, httpx.LocalProtocolError) else exc
            raise self._failure(call, trail, exc) from cause

    async def _send(
        self,
        call: Call,
        trail: _Trail,
        receive: Callable[[httpx.Response], Awaitable[None]],
        length: int,
        pieces: Callable[[], Iterator[bytes]] | None,
    ) -> None:
        headers = {"Accept": call.accept}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        body: Iterator[bytes] = iter(())
        if pieces is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(length)}
            body = pieces()
        content = None if pieces is None else _outgoing(body)
        async with self._client("api", secure=self._base.scheme == "https") as client:
            request = client.build_request(call.method, self._base.url + call.path, headers=headers, content=content)
            request.extensions["trace"] = trail.trace
            if self._transport is not None:
                # The sandbox has no connection whose events could be traced: sending begins here.
                trail.leave()
                trail.stage("sent")
            response = await client.send(request, stream=True)
            async with contextlib.aclosing(response):
                trail.received = _Received(response.status_code, dict(response.headers))
                trail.stage("receiving")
                self._refuse_redirect(response)
                await receive(response)

    def _refuse_redirect(self, response: httpx.Response) -> None:
        """A redirect of a call is never followed: it would carry prompt, pictures and money to another host."""
        if not 300 <= response.status_code < 400:
            return
        location = mask(response.headers.get("location", "nowhere"))
        message = f"{self._base.host} answered {response.status_code} and points to {location}, which is not followed"
        hint = "check --base-url: it must be the API's own address"
        raise ApiError(self.mask(message), kind="refused", hint=hint, status=response.status_code)

    async def _keep(
        self, response: httpx.Response, trail: _Trail, file: ReplyFile, limit: int
    ) -> AsyncGenerator[bytes, None]:
        """The pieces of a body, each already kept in the file."""
        file.reset()
        start = trail.received.start if trail.received else bytearray()
        async with contextlib.aclosing(_pieces(response)) as pieces:
            async for piece in pieces:
                if file.size + len(piece) > limit:
                    raise _BrokenReplyError(f"the reply is larger than {limit >> 20} MiB")
                file.write(piece)
                start += piece[: max(0, _TEXT_BYTES - len(start))]
                yield piece

    async def _reply(self, trail: _Trail, file: ReplyFile) -> Reply:
        received = trail.received or _Received(0, {})
        reply = await _parse(received, file)
        seconds = self._clock.monotonic() - trail.sent_at
        self._say(f"< {reply.status} after {seconds:.2f} s, {file.size} bytes, request id {_request_id(reply.headers)}")
        return reply

    def _failure(self, call: Call, trail: _Trail, exc: Exception) -> ApiError:
        """What an exception means for the money."""
        reason = self._reason(exc, trail)
        host = self._base.host
        local = isinstance(exc, httpx.LocalProtocolError)
        if not trail.sent or isinstance(exc, _NEVER_SENT) or (local and not trail.headers_sent):
            usable = not isinstance(exc, httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.InvalidURL)
            message = f"no connection to {host}: {reason}; nothing was sent"
            return ApiError(message, kind="network", delivered="no", retryable=usable)
        if not call.billable:
            message = f"the connection to {host} was lost: {reason}"
            return ApiError(message, kind="network", delivered="maybe", retryable=True)
        return ApiError(
            f"the request was sent to {host} and no whole answer came: {reason}; it may have been charged",
            kind="unknown_outcome",
            hint="look at the provider's usage page before sending it again; --retry-ambiguous repeats such requests",
            billed="unknown",
            delivered="maybe",
        )

    def _reason(self, exc: Exception, trail: _Trail) -> str:
        """An exception in words that hold no header."""
        if isinstance(exc, httpx.LocalProtocolError):
            return "the request is no valid HTTP"
        if isinstance(exc, TimeoutError | httpx.ConnectTimeout):
            seconds = self._policy.timeout_s if trail.sent else self._policy.connect_timeout_s
            return f"no {'whole answer' if trail.sent else 'connection'} after {seconds:g} s"
        return self.mask(_root_cause(exc))

    def _settle(self, error: ApiError, trail: _Trail) -> ApiError:
        """Complete an error with what the reply's head says, and take every secret out of it."""
        if trail.received:
            headers = trail.received.headers
            error.request_id = error.request_id or _request_id(headers)
            if error.retry_after_s is None:
                error.retry_after_s = read_retry_after(headers, self._clock.now())
            if error.status is None:
                error.status = trail.received.status
        error.message = self.mask(error.message)
        error.hint, error.code = self.mask(error.hint), self.mask(error.code)
        error.request_id = self.mask(error.request_id)
        error.args = (error.message,)
        return error

    # -- links

    async def fetch(
        self,
        link: str,
        write: Callable[[bytes], None],
        *,
        restart: Callable[[], None],
        check: Callable[[], T],
        explain: Callable[[bytes, int], tuple[str, str]] | None = None,
        on_progress: Callable[[int, int | None], None] | None = None,
        watch: Watch | None = None,
        max_bytes: int = PICTURE_LIMIT,
        deadline_s: float = 300.0,
        stall_s: float = 20.0,
        lowest_rate: float = 1000.0,
    ) -> Fetched[T]:
        """Get a link, byte for byte as the provider gave it, with nothing of the user's. Raises LinkError.

        `check` (run in a thread) judges the whole file, and its value is handed on; a retryable LinkError from it means
        another attempt. `restart` is called before one, so that the caller empties its file. `explain` turns the status
        and the first 2 kB of a refusal into (kind, message). One attempt may last `deadline_s`, and must bring
        `lowest_rate` bytes a second over every `stall_s`. `on_progress` gets the bytes so far and the total, if told.
        """
        order = _Order(link, write, explain, on_progress, max_bytes, deadline_s, stall_s, lowest_rate)
        attempt = 0
        while True:
            attempt += 1
            try:
                size, kind, host = await self._download(order)
                return Fetched(await asyncio.to_thread(check), size, kind, host, attempt)
            except LinkError as error:
                failure = self._masked(error)
            self._say(f"* download, attempt {attempt}: {failure.message}")
            if not failure.retryable or attempt > self._policy.retries:
                raise failure
            wait = self._random.uniform(0, min(MAX_BACKOFF_S, 2.0 ** (attempt - 1)))
            if watch:
                watch.retrying(wait, failure, attempt)
            await self._clock.sleep(wait)
            restart()

    async def _download(self, order: _Order) -> tuple[int, str, str]:
        """One attempt: the link, its redirects, the body. Returns its size, its claimed type and its host."""
        origin = target = self._first_target(order.link)
        try:
            async with asyncio.timeout(order.deadline_s):
                for _ in range(MAX_REDIRECTS + 1):
                    async with self._get(target, order) as response:
                        if response.status_code in _REDIRECTS and "location" in response.headers:
                            target = next_hop(origin, target, _location(response))
                            continue
                        size = await self._take(response, order)
                        return size, response.headers.get("content-type", ""), target.host
        except TimeoutError as exc:
            message = f"{target.host} did not send the whole picture in {order.deadline_s:g} s"
            raise LinkError(message, retryable=True) from exc
        except (httpx.HTTPError, httpx.StreamError, ssl.SSLError) as exc:
            usable = not isinstance(exc, httpx.LocalProtocolError | httpx.UnsupportedProtocol)
            reason = _root_cause(exc) if usable else "the link cannot be asked for"
            raise LinkError(f"the picture did not come from {target.host}: {reason}", retryable=usable) from exc
        raise LinkError(f"the picture's link redirects more than {MAX_REDIRECTS} times (last to {target.host})")

    def _first_target(self, link: str) -> Target:
        target = split_link(link)
        offline = self._transport is not None
        if target.scheme == "http" and not (target.loopback or is_loopback(self._base.host) or offline):
            raise LinkError(
                f"the picture's link ({target.host}) is plain http, which is fetched from this machine only",
                hint="--no-download prints the link instead",
            )
        return target

    @contextlib.asynccontextmanager
    async def _get(self, target: Target, order: _Order) -> AsyncIterator[httpx.Response]:
        timeout = httpx.Timeout(order.stall_s, connect=self._connect_s, pool=None)
        path = target.raw.partition(b"?")[0].decode("latin-1")
        self._say(f"> GET {target.scheme}://{target.authority}{path}")
        async with self._client("links", secure=target.scheme == "https") as client:
            request = client.build_request("GET", f"{target.scheme}://{target.authority}/", timeout=timeout)
            request.url = _ExactURL(target)
            response = await client.send(request, stream=True)
            async with contextlib.aclosing(response):
                self._say(f"< {response.status_code} from {target.host}")
                yield response

    async def _take(self, response: httpx.Response, order: _Order) -> int:
        """Write the body of a 200 and return its size; everything else is a failure."""
        host, total = response.url.host, _content_length(response)
        if response.status_code != 200:
            raise await _refusal(response, order.explain)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            raise LinkError(f"{host} sent the picture encoded as {encoding[:40]!r}, which was not asked for")
        if total is not None and total > order.max_bytes:
            raise LinkError(f"the picture has {total} bytes, more than the limit of {order.max_bytes}")
        size, mark, mark_size = 0, self._clock.monotonic(), 0
        async for chunk in _raw(response):
            size += len(chunk)
            if size > order.max_bytes:
                raise LinkError(f"the picture has more than {order.max_bytes} bytes")
            order.write(chunk)
            if order.on_progress:
                order.on_progress(size, total)
            now = self._clock.monotonic()
            if now - mark < order.stall_s:
                continue
            if size - mark_size < order.lowest_rate * (now - mark):
                raise LinkError(f"{host} sends less than {order.lowest_rate:g} bytes a second", retryable=True)
            mark, mark_size = now, size
        if not size or (total is not None and size != total):
            message = f"{host} sent {size} bytes of the picture" + (f" instead of {total}" if total else "")
            raise LinkError(message, retryable=True)
        return size

    # -- clients

    @contextlib.asynccontextmanager
    async def _client(self, room: Literal["api", "links"], *, secure: bool) -> AsyncIterator[httpx.AsyncClient]:
        """A client of a room with a place free. Those of links have nothing of the user's; none follows or remembers.

        The library's pool looks at all connections for every request: many small pools cost less than a large one.
        """
        lanes = self._lanes.setdefault((room, secure), [])
        lane = next((lane for lane in lanes if lane.busy < _LANE), None)
        if lane is None:
            lane = _Lane(self._make_client(room, secure=secure))
            lanes.append(lane)
        lane.busy += 1
        try:
            yield lane.client
        finally:
            lane.busy -= 1

    def _make_client(self, room: Literal["api", "links"], *, secure: bool) -> httpx.AsyncClient:
        # A paid request never goes out on a kept connection: one that dies at that moment leaves its outcome unknown.
        kept = 0 if room == "api" else _LANE
        accept = "*/*" if room == "api" else "image/*,*/*;q=0.5"
        no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        try:
            return httpx.AsyncClient(
                headers={"User-Agent": f"seedream/{__version__}", "Accept": accept, "Accept-Encoding": "identity"},
                cookies=no_cookies,
                timeout=httpx.Timeout(None, connect=self._connect_s, write=60.0),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=kept, keepalive_expiry=5.0),
                verify=self._verify(secure=secure),
                proxy=self._proxy if self._transport is None else None,
                trust_env=self._trusts_environment(secure=secure),
                transport=self._transport,
                follow_redirects=False,
            )
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as exc:
            where = _proxy_host(self._proxy or _environment_proxy("https") or "", port=True)
            raise ConfigError(
                f"the proxy ({where or 'none'}) or the certificates (SSL_CERT_FILE) cannot be used",
                hint="proxies are http:// or https:// addresses",
            ) from exc

    def _verify(self, *, secure: bool) -> ssl.SSLContext:
        """One context for all TLS. Reading the certificates takes 20 to 40 ms, so plain http gets an empty one.

        The empty one trusts nobody, so that a mistake here ends in a refusal and not in an unchecked connection.
        """
        if not secure or self._transport is not None:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._tls is None:
            self._tls = httpx.create_ssl_context()
        return self._tls

    def _trusts_environment(self, *, secure: bool) -> bool:
        """Whether the environment's proxies serve. Plain http is for this machine, and so must be its proxy."""
        if secure or self._transport is not None:
            return self._transport is None
        return is_loopback(_proxy_host(_environment_proxy("http")))

    def _masked(self, error: LinkError) -> LinkError:
        error.message = self.mask(error.message)
        error.args = (error.message,)
        return error

    def _say(self, line: str) -> None:
        if self._log:
            self._log(self.mask(line))


@dataclass(frozen=True, slots=True)
class _Order:
    """A picture to fetch and what that may take: bytes, seconds, seconds without enough bytes, bytes a second."""

    link: str
    write: Callable[[bytes], None]
    explain: Callable[[bytes, int], tuple[str, str]] | None
    on_progress: Callable[[int, int | None], None] | None
    max_bytes: int
    deadline_s: float
    stall_s: float
    lowest_rate: float


@dataclass(frozen=True, slots=True)
class _Base:
    """The API's address, checked: no slash at its end, no user name, no query."""

    url: str
    scheme: str
    host: str


def _check_base(base_url: str, *, offline: bool) -> _Base:
    """The API's address; ConfigError where it is none, or where the key would travel in clear."""
    try:
        url = httpx.URL(base_url.strip())
    except (httpx.InvalidURL, ValueError) as exc:
        raise ConfigError(f"the API address is no URL: {mask(base_url)}") from exc
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigError(f"the API address must be https://host/path, without user name or query: {mask(base_url)}")
    if url.scheme == "http" and not offline and not is_loopback(url.host):
        message = f"the API address http://{url.host} is refused: the key would travel in clear"
        raise ConfigError(message, hint="use https://; plain http is for this machine only")
    return _Base(str(url).rstrip("/"), url.scheme, url.host)


def _environment_proxy(scheme: str) -> str:
    found = urllib.request.getproxies()
    return found.get(scheme) or found.get("all") or ""


def _proxy_host(proxy: str, *, port: bool = False) -> str:
    """The host of a proxy's address, never its password."""
    authority = proxy.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
    if port:
        return authority
    return authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]


async def _outgoing(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _request_id(headers: Mapping[str, str]) -> str:
    return next((headers[name] for name in _REQUEST_ID_HEADERS if headers.get(name)), "")


def _root_cause(exc: BaseException) -> str:
    """The words of the system's own error under the library's wrappers ("Connection refused"), or the library's."""
    text = str(exc) or type(exc).__name__
    seen: set[int] = set()
    cause: BaseException | None = exc
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate is not trusted ({cause.verify_message})"
        if isinstance(cause, ConnectionError) and cause.errno:
            text = os.strerror(cause.errno)
        elif isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror
        cause = cause.__cause__ or cause.__context__
    return text


def _location(response: httpx.Response) -> str:
    """The redirect's bytes as text that `split_link` can turn back into the same bytes."""
    raw = next((value for name, value in response.headers.raw if name.lower() == b"location"), b"")
    return raw.decode("utf-8", "surrogateescape")


def _content_length(response: httpx.Response) -> int | None:
    value = response.headers.get("content-length", "")
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None


async def _refusal(response: httpx.Response, explain: Callable[[bytes, int], tuple[str, str]] | None) -> LinkError:
    """The error for an answer that is no picture, in the store's own words where the caller can read them."""
    status, start = response.status_code, bytearray()
    with contextlib.suppress(httpx.HTTPError):
        async for chunk in _raw(response):
            start += chunk[: _TEXT_BYTES - len(start)]
            if len(start) >= _TEXT_BYTES:
                break
    kind, message = "download", f"{response.url.host} answered {status} instead of the picture"
    if explain and start:
        kind, message = explain(bytes(start), status)
    # A 2xx that is no 200 (empty, a part) is a slip of the store, which a second try may not repeat.
    retryable = kind == "download" and (status >= 500 or status in {408, 429} or 200 < status < 300)
    return LinkError(message, kind=kind, retryable=retryable)


__all__ = [
    "Answer",
    "Clock",
    "Done",
    "EventParser",
    "Fetched",
    "Policy",
    "ReplyFile",
    "Streamed",
    "Target",
    "Watch",
    "Wire",
    "check_key",
    "decide",
    "encode_body",
    "is_loopback",
    "is_private",
    "mask",
    "next_hop",
    "read_retry_after",
    "secret_forms",
    "split_link",
]
