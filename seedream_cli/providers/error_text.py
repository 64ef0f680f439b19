"""Message and code of an error response in any format: FastAPI, problem+json, OAuth, XML, HTML.

`faults` decides what a code means. Foreign text is cut first, and searched in linear time.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

MOST = 2000
"""Characters of a foreign text that are read."""

_CODE_MOST = 200

_DEPTH = 5

_MEMBERS = 5

_HEADS = ("title", "Title")

_WORDS = (
    "message",
    "msg",
    "detail",
    "details",
    "error_description",
    "description",
    "error_message",
    "errorMessage",
    "error_msg",
    "errmsg",
    "err_msg",
    "status_msg",
    "reason",
    "Message",
    "errors",
    "Error",
    "ResponseMetadata",
    "base_resp",
    "fault",
    "faultstring",
    "cause",
)
"""Names of message fields, likeliest first (`error` itself comes before them)."""

_CODES = ("code", "Code", "error_code", "errcode", "errorCode", "status_code")

_CODE_WORDS = ("type", "status")


def one_line(text: str, most: int = MOST) -> str:
    """The start of a text with white space collapsed, "…" where it was cut."""
    return " ".join(text[:most].split()) + ("…" if len(text) > most else "")


def message_in(body: Any, depth: int = _DEPTH) -> str:
    """The message in an error's JSON; "" where there is none."""
    if isinstance(body, str):
        return one_line(body)
    if not depth:
        return ""
    if isinstance(body, list | tuple):
        found = [words for item in body[:_MEMBERS] if (words := message_in(item, depth - 1))]
        more = len(body) - _MEMBERS
        return "; ".join([*found, *([f"and {more} more"] if found and more > 0 else [])])[:MOST]
    if not isinstance(body, Mapping):
        return ""
    return _mapping_message(body, depth)


def _mapping_message(body: Mapping[str, Any], depth: int) -> str:
    """An object's message: its title, its text, and FastAPI's `loc`."""
    error = body.get("error")
    heading = message_in(error, depth - 1) if not isinstance(error, str) else ""
    if heading:
        return heading
    heading = one_line(error) if isinstance(error, str) else ""
    heading = heading or next((one_line(body[name]) for name in _HEADS if isinstance(body.get(name), str)), "")
    message = next((words for name in _WORDS if (words := _member_message(body.get(name), depth - 1))), "")
    if "loc" in body and message:
        place = body["loc"]
        parts = place[:_MEMBERS] if isinstance(place, list) else [place]
        heading = ".".join(one_line(str(part), 100) for part in parts if isinstance(part, str | int))
    if not message or message == heading:
        return heading
    return f"{heading}: {message}"[:MOST] if heading and heading not in message else message


def _member_message(value: Any, depth: int) -> str:
    """The message in one field; an object without the usual names has a message for each of its fields."""
    message = message_in(value, depth)
    if message or not isinstance(value, Mapping) or depth <= 0:
        return message
    fields = ((str(name), message_in(item, depth - 1)) for name, item in list(value.items())[:_MEMBERS])
    return "; ".join(f"{one_line(name, 100)}: {words}" for name, words in fields if words)[:MOST]


def code_in(body: Any) -> str:
    """An error's code, or a nested error's; "" where there is none."""
    found = _codes(body, _DEPTH)
    return next(found, "")


def _codes(body: Any, depth: int) -> Iterator[str]:
    if not depth or not isinstance(body, Mapping):
        return
    inner = [body.get(name) for name in ("error", "Error", "ResponseMetadata", "base_resp")]
    for name in _CODES:
        if code := plain_code(body.get(name)):
            yield code
    for one in inner:
        yield from _codes(one, depth - 1)
    for name in _CODE_WORDS:
        if isinstance(body.get(name), str) and (code := plain_code(body[name])):
            yield code


def plain_code(value: Any) -> str:
    """A str or int code as text, cut; "" for other values."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not value:
        return ""
    return one_line(value, _CODE_MOST) if isinstance(value, str) else str(value)[:_CODE_MOST]


def text_fault(text: str) -> tuple[str, str]:
    """(code, message) of a body that is no JSON: an object store's XML, an HTML page's title, or plain text."""
    start = text[:MOST].lstrip("\ufeff \t\r\n")
    if not start:
        return "", "the answer is empty"
    if not start.startswith("<"):
        # The start of broken JSON is seldom a message.
        most = 80 if start[0] in "{[" else 300
        return "", f"the answer is no JSON: {one_line(start.rstrip(), most)}"
    lower = start.lower()
    code, message = _element(start, lower, "code"), _element(start, lower, "message")
    if "<html" not in lower and "<!doctype html" not in lower and (code or message):
        return plain_code(code), ": ".join(part for part in (code, message) if part)
    title = _element(start, lower, "title") or _element(start, lower, "h1")
    return "", "the answer is a web page" + (f": {title}" if title else "")


def _element(text: str, lower: str, name: str) -> str:
    """The text of the first element of a name, up to the next tag; "" where there is none."""
    at = 0
    while (at := lower.find(f"<{name}", at)) >= 0:
        at += len(name) + 1
        if lower[at : at + 1] in {">", " ", "\t", "\n", "\r"} and (begins := lower.find(">", at)) >= 0:
            ends = lower.find("<", begins)
            # No end: the text was cut.
            return one_line(html.unescape(text[begins + 1 : ends] if ends >= 0 else f"{text[begins + 1 :]}…"), 300)
    return ""
