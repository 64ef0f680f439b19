"""Events out of the bytes of a stream, however they are cut into pieces. Knows no network, file or clock."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .json_text import parse_json

_OPENING_BYTES = 8192


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
        if self.mode != "sse":
            return events, False
        # Some servers hang up without the empty line that would complete the last event, and links break there: a JSON
        # object shows by itself whether it is whole.
        if rest:
            self._take_field(rest)
        if self._data and _parse_event(b"\n".join(self._data)) and (found := self._dispatch()) is not None:
            return [*events, found], False
        return events, bool(rest or self._data or self._name)

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
        event = parse_json(data)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def is_field(text: str) -> bool:
    """Whether a text begins as server-sent events do."""
    return (
        text[:1] not in "{["
        and _FIELD.match(text[:100].split("\n", 1)[0].strip().encode("utf-8", "replace")) is not None
    )
