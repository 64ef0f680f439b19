"""Parsers of option values: a number in a range, one of a few words, a size, a URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Check = Callable[[str], Any]
"""Parses a text; raises `BadValueError`."""


class BadValueError(ValueError):
    """A text that is no valid value of its option, with a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


_WHOLE = re.compile(r"([+-]?[0-9]{1,12})|(\+?[0-9]{1,12}|-0*[1-9][0-9]{0,11})\.0*", re.ASCII)

_DECIMAL = re.compile(r"[+-]?([0-9]{1,9}(\.[0-9]*)?|\.[0-9]+)", re.ASCII)

_ON, _OFF = frozenset({"1", "true", "yes", "on", "y"}), frozenset({"0", "false", "no", "off", "n"})


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `low` to `high`, or the one `word` that is also valid ("auto")."""

    low: int
    high: int
    word: str = ""

    def __call__(self, text: str) -> int | str:
        """Parse a number or the word."""
        text = text.strip()
        if self.word and text.lower() == self.word:
            return self.word
        hint = f"give {self.low} to {self.high}" + (f" or {self.word}" if self.word else "")
        digits = whole_number(text)
        if not digits:
            raise BadValueError(f"{text!r} is no whole number", hint)
        if not self.low <= int(digits) <= self.high:
            raise BadValueError(f"{text} is out of range", hint)
        return int(digits)


@dataclass(frozen=True, slots=True)
class Number:
    """A decimal number from `low` to `high`."""

    low: float
    high: float

    def __call__(self, text: str) -> float:
        """Parse a number."""
        text = text.strip()
        hint = f"give {self.low:g} to {self.high:g}"
        if not _DECIMAL.fullmatch(text):
            raise BadValueError(f"{text!r} is no number", hint)
        if not self.low <= float(text) <= self.high:
            raise BadValueError(f"{text} is out of range", hint)
        return float(text)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words, case ignored. `also` maps further spellings to them."""

    words: tuple[str, ...]
    also: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, text: str) -> str:
        """Parse a word."""
        word = text.strip().lower()
        if (word := self.also.get(word, word)) in self.words:
            return word
        raise BadValueError(f"{text.strip()!r} is not known", f"give {' or '.join(self.words)}")


def whole_number(text: str) -> str:
    """The digits of a whole number, also written as 42.0; "" for any other text.

    pandas and others write 42.0 where a column of numbers has an empty cell. -0.0 is refused: nobody types it.
    """
    found = _WHOLE.fullmatch(text)
    return (found[1] or found[2]) if found else ""


def switch(text: str) -> bool:
    """A boolean in the usual spellings."""
    word = text.strip().lower()
    if word not in _ON | _OFF:
        hint = "write true or false, yes or no, on or off, y or n, 1 or 0"
        raise BadValueError(f"{text.strip()[:40]!r} is neither yes nor no", hint)
    return word in _ON


def text(written: str) -> str:
    """Any text, stripped."""
    return written.strip()


def size(text: str) -> str:
    """A tier or WIDTHxHEIGHT; whether the model has it is checked with the request."""
    from ..request.sizes import parse_size, size_hint

    found = parse_size(text)
    if found is None:
        raise BadValueError(f"{text.strip()!r} is no size", size_hint(text))
    return found


def aspect(text: str) -> str:
    """A ratio of width to height."""
    from ..request.sizes import parse_aspect

    if parse_aspect(text) is None:
        raise BadValueError(f"{text.strip()!r} is no ratio", "write it as WIDTH:HEIGHT, such as 16:9")
    return text.strip()


def provider(text: str) -> str:
    """A provider's name."""
    from ..providers import PROVIDERS
    from ..text import nearest_hint

    name = text.strip().lower()
    if name not in PROVIDERS:
        raise BadValueError(f"{name!r} is no known provider", nearest_hint(name, PROVIDERS))
    return name


def link(text: str) -> str:
    """An http or https URL."""
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", text.strip()):
        raise BadValueError(f"{text.strip()!r} is no http(s) address")
    return text.strip()


def proxy(text: str) -> str:
    """A proxy's URL, which may hold a password, so the error does not quote it."""
    if not re.fullmatch(r"(https?|socks|socks5h?)://[^/\s]\S*|[^/\s:@]+:[0-9]{1,5}", text.strip()):
        raise BadValueError("the proxy is no address", "http://HOST:PORT or socks5://HOST:PORT")
    return text.strip()


def path(text: str) -> str:
    """A local path, no scheme://."""
    from ..storage.file_names import scheme_problem

    if problem := scheme_problem("", text):
        raise BadValueError(problem.message, problem.hint)
    return text.strip()


def template(text: str) -> str:
    """A name template, not stripped. Its fields are checked with the table's columns."""
    path(text)
    return text
