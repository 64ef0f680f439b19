"""What an error of somebody else's server says, whatever its shape: FastAPI, problem+json, OAuth, XML, a web page.

Words and codes only: what an error means for the money is for the provider's table of codes to say. Foreign text is
cut before anything searches it, and every search is one pass over what is left.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

MOST = 2000
"""Characters of a foreign text that are looked at."""

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
"""Where words for people stand, the likeliest first (`error` itself comes before all of them)."""

_CODES = ("code", "Code", "error_code", "errcode", "errorCode", "status_code")

_CODE_WORDS = ("type", "status")


def one_line(text: str, most: int = MOST) -> str:
    """The start of a foreign text, each run of white space in it one space, "…" where it was cut."""
    return " ".join(text[:most].split()) + ("…" if len(text) > most else "")


def message_in(body: Any, depth: int = _DEPTH) -> str:
    """The words for people in an error's JSON, wherever they stand; "" where there are none."""
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
    """An object's own words: its heading, what follows it, and where FastAPI and its like say the mistake is."""
    error = body.get("error")
    head = message_in(error, depth - 1) if not isinstance(error, str) else ""
    if head:
        return head
    head = one_line(error) if isinstance(error, str) else ""
    head = head or next((one_line(body[name]) for name in _HEADS if isinstance(body.get(name), str)), "")
    said = next((words for name in _WORDS if (words := _member_message(body.get(name), depth - 1))), "")
    if "loc" in body and said:
        place = body["loc"]
        parts = place[:_MEMBERS] if isinstance(place, list) else [place]
        head = ".".join(one_line(str(part), 100) for part in parts if isinstance(part, str | int))
    if not said or said == head:
        return head
    return f"{head}: {said}"[:MOST] if head and head not in said else said


def _member_message(value: Any, depth: int) -> str:
    """The words under one name; an object without any of the usual names is one that says a thing of each field."""
    said = message_in(value, depth)
    if said or not isinstance(value, Mapping) or depth <= 0:
        return said
    fields = ((str(name), message_in(item, depth - 1)) for name, item in list(value.items())[:_MEMBERS])
    return "; ".join(f"{one_line(name, 100)}: {words}" for name, words in fields if words)[:MOST]


def code_in(body: Any) -> str:
    """The code of an error's object, a word or a number, from its usual names; a nested error's where it has none."""
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
    """A code as text, cut; "" for what is no code."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not value:
        return ""
    return one_line(value, _CODE_MOST) if isinstance(value, str) else str(value)[:_CODE_MOST]


def text_fault(text: str) -> tuple[str, str]:
    """The code and the words of an answer that is no JSON: an object store's XML, a web page's title, or a text."""
    start = text[:MOST].lstrip("\ufeff \t\r\n")
    if not start:
        return "", "the answer is empty"
    if not start.startswith("<"):
        # Of broken JSON a little is enough: it may be long, and words for people are not where it begins.
        most = 80 if start[0] in "{[" else 300
        return "", f"the answer is no JSON: {one_line(start.rstrip(), most)}"
    lower = start.lower()
    code, said = _element(start, lower, "code"), _element(start, lower, "message")
    if "<html" not in lower and "<!doctype html" not in lower and (code or said):
        return plain_code(code), ": ".join(part for part in (code, said) if part)
    title = _element(start, lower, "title") or _element(start, lower, "h1")
    return "", "the answer is a web page" + (f": {title}" if title else "")


def _element(text: str, lower: str, name: str) -> str:
    """The text of the first element of that name, up to the next tag; "" where there is none."""
    at = 0
    while (at := lower.find(f"<{name}", at)) >= 0:
        at += len(name) + 1
        if lower[at : at + 1] in {">", " ", "\t", "\n", "\r"} and (begins := lower.find(">", at)) >= 0:
            ends = lower.find("<", begins)
            # One that does not end was cut.
            return one_line(html.unescape(text[begins + 1 : ends] if ends >= 0 else f"{text[begins + 1 :]}…"), 300)
    return ""
