"""What a value of an option may be: a number in a range, one of a few words, a size, an address."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Check = Callable[[str], Any]
"""Takes what was written and returns the value, or raises `BadValueError`."""


class BadValueError(ValueError):
    """A text that is no value of its option, and what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


_WHOLE = re.compile(r"([+-]?[0-9]{1,12})|(\+?[0-9]{1,12}|-0*[1-9][0-9]{0,11})\.0*", re.ASCII)

_DECIMAL = re.compile(r"[+-]?([0-9]{1,9}(\.[0-9]*)?|\.[0-9]+)", re.ASCII)

_ON, _OFF = frozenset({"1", "true", "yes", "on", "y"}), frozenset({"0", "false", "no", "off", "n"})


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number in a range, or a word that may stand for one."""

    low: int
    high: int
    word: str = ""

    def __call__(self, text: str) -> int | str:
        """The number, or the word."""
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
    """A number in a range."""

    low: float
    high: float

    def __call__(self, text: str) -> float:
        """The number."""
        text = text.strip()
        hint = f"give {self.low:g} to {self.high:g}"
        if not _DECIMAL.fullmatch(text):
            raise BadValueError(f"{text!r} is no number", hint)
        if not self.low <= float(text) <= self.high:
            raise BadValueError(f"{text} is out of range", hint)
        return float(text)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words, in any case. `also` maps further spellings to them."""

    words: tuple[str, ...]
    also: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, text: str) -> str:
        """The word."""
        word = text.strip().lower()
        if (word := self.also.get(word, word)) in self.words:
            return word
        raise BadValueError(f"{text.strip()!r} is not known", f"give {' or '.join(self.words)}")


def whole_number(text: str) -> str:
    """The digits of a whole number, also of one that a program wrote as 42.0; "" for any other text.

    Programs write so where a column of numbers has an empty cell. -0.0 is a mistake that nobody typed.
    """
    found = _WHOLE.fullmatch(text)
    return (found[1] or found[2]) if found else ""


def switch(text: str) -> bool:
    """A yes or no as people write it."""
    word = text.strip().lower()
    if word not in _ON | _OFF:
        hint = "write true or false, yes or no, on or off, y or n, 1 or 0"
        raise BadValueError(f"{text.strip()[:40]!r} is neither yes nor no", hint)
    return word in _ON


def text(written: str) -> str:
    """Any text."""
    return written.strip()


def size(text: str) -> str:
    """A tier or pixels. Whether the model takes it is for the request to say."""
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
    """An http or https address."""
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", text.strip()):
        raise BadValueError(f"{text.strip()!r} is no http(s) address")
    return text.strip()


def proxy(text: str) -> str:
    """A proxy's address, which may hold a password and is not repeated."""
    if not re.fullmatch(r"(https?|socks|socks5h?)://[^/\s]\S*|[^/\s:@]+:[0-9]{1,5}", text.strip()):
        raise BadValueError("the proxy is no address", "http://HOST:PORT or socks5://HOST:PORT")
    return text.strip()


def place(text: str) -> str:
    """Where files are written to: a path of this machine."""
    from ..storage.file_names import scheme_problem

    if problem := scheme_problem("", text):
        raise BadValueError(problem.message, problem.hint)
    return text.strip()


def template(text: str) -> str:
    """A name template, blanks and all. Which fields it may use hangs on the table."""
    place(text)
    return text
