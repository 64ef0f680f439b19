"""What a reply says, read in turn: one JSON value, the first one and those behind it, events, lines.

Whatever is not the image may not keep the image from the disk: a guard before the JSON, a call around it, a terminator
or a text behind it, constants that JSON does not know, control characters inside a string. Knows no file and no clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .event_stream import Done, EventParser, is_field
from .json_text import plain_text, read_value

_VALUES_MOST = 10_000

_INNER_MOST = 2

_PAGE = re.compile(r"<(?:!doctype|html|head|body|script|style)\b", re.IGNORECASE)

_LINK = re.compile(r"(?:https?://|data:)\S+", re.IGNORECASE)

_BARE = re.compile(r"[A-Za-z0-9+/=_\s-]{200,}")

_OPENING = re.compile(r"[{\[]")

_MEANT = re.compile(r"\{\s*\"|\[\s*[{\[\"]")
"""How JSON begins, and hardly any other text."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a reply holds: JSON values in the order in which they came, perhaps a stream's events. `ended` says that
    such a stream came to its terminator.
    """

    values: tuple[Any, ...]
    ended: bool = False


def read_document(raw: bytes | bytearray) -> Document:
    """What these bytes of UTF-8 hold. Raises ValueError where nothing of it can be read."""
    text = plain_text(raw).strip("\ufeff\0 \t\r\n")
    if not text:
        raise ValueError("the reply is empty")
    if is_field(text) and (found := _events(text)):
        return found
    values = _values(text)
    if not values:
        raise ValueError("the reply is no JSON")
    return Document(tuple(values))


def is_event(value: Any) -> bool:
    """Whether a value is one of a stream's events, in a vocabulary that is known."""
    kind = value.get("type") if isinstance(value, dict) else None
    return isinstance(kind, str) and kind.startswith(("image_generation.", "image_edit."))


def _events(text: str) -> Document | None:
    """The events of a stream, whether anybody asked for one or not; None where there is none."""
    parser = EventParser()
    parser.mode = "sse"
    events = parser.feed(text.encode("utf-8", "replace"))
    events += parser.close()[0]
    values = [event for event in events if not isinstance(event, Done)]
    if not values or parser.skipped:
        # Data that is no object, or several in one event.
        found = _values(text)
        values = found if len(found) > len(values) else values
    ended = any(isinstance(event, Done) for event in events)
    return Document(tuple(values), ended=ended) if values else None


def _values(text: str, depth: int = 0) -> list[Any]:
    """All JSON values, one behind the other, whatever stands before, between and after them."""
    if text[0] == '"' and depth < _INNER_MOST:
        return _inner(text, depth)
    if _LINK.fullmatch(text) or _BARE.fullmatch(text):
        return [text]
    found = list[Any]()
    at, effort = 0, 4 * len(text) + 100_000
    while len(found) < _VALUES_MOST and effort > 0 and (opening := _OPENING.search(text, at)):
        start = opening.start()
        if not found and _PAGE.search(text, 0, start):
            # What a web page holds in its scripts is not meant for us.
            break
        try:
            value, at = read_value(text, start)
        except ValueError as error:
            if _MEANT.match(text, start):
                # It is cut or damaged: what stands inside it was not said by itself.
                break
            # How far it was looked at tells the effort: many openings before one long text must not cost its square.
            # An error counts the lines before it, too.
            end = getattr(error, "pos", len(text))
            effort -= max(1, end - start) + end // 100
            at = start + 1
            continue
        found.append(value)
    return found


def _inner(text: str, depth: int) -> list[Any]:
    """JSON inside a JSON string, or a link alone."""
    try:
        value, _ = read_value(text, 0)
    except ValueError:
        return []
    inner = value.strip() if isinstance(value, str) else ""
    if not inner:
        return []
    return _values(inner, depth + 1) or [inner]
