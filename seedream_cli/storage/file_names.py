"""What a file is called: slugs, templates, and names that are safe on every system. No I/O."""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath

from ..errors import InputError, Problem
from ..text import nearest
from .image_info import SPELLINGS

FIELDS = ("slug", "id", "index", "row", "model", "seed", "date", "hash")
"""The fields every name template may use; a table's columns come on top."""

_NAMELESS = "image"

_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"} | {
    device + digit for device in ("com", "lpt") for digit in "0123456789¹²³"
}

_UNPORTABLE = frozenset('<>:"/\\|?*%')

_PADDING = re.compile(r"0([1-9]|1[0-9]|20)")

_PLAIN_NAME = re.compile(r"(?=.{5,100}$)[a-z0-9]+(-[a-z0-9]+)*", re.IGNORECASE | re.ASCII)
"""Names that are safe as they are, as most are. No device's name is so long."""


def slug(text: str, limit: int = 60) -> str:
    """A prompt as part of a file name: letters and digits of every script, words joined by "-", at most `limit` bytes.

    Never empty: a text without letters gives "image".
    """
    short = ""
    for word in _words(text):
        longer = f"{short}-{word}" if short else word
        if len(longer.encode()) <= limit:
            short = longer
            continue
        # Scripts without spaces have words as long as sentences: those are cut inside rather than left out.
        return short if len(short.encode()) >= limit // 2 else _shorten(longer, limit).strip("-") or _NAMELESS
    return short or _NAMELESS


def _words(text: str) -> Iterator[str]:
    word = ""
    for char in unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()):
        category = unicodedata.category(char)[0]
        # A mark belongs to the letter before it; on its own it is no word.
        if category in "LN" or (category == "M" and word):
            word += char
        elif char not in "'’" and word:
            yield word
            word = ""
    if word:
        yield word


def _shorten(text: str, limit: int) -> str:
    """The longest start of `text` of at most `limit` UTF-8 bytes that does not part a letter from its marks."""
    short = text.encode()[:limit].decode("utf-8", "ignore")
    if len(short) == len(text):
        return text
    end = len(short)
    while end > max(0, len(short) - 8) and unicodedata.combining(text[end]):
        end -= 1
    return short[:end] if end and not unicodedata.combining(text[end]) else short


def clean_name(stem: str, limit: int = 150) -> str:
    """One part of a path, safe on Linux, macOS and Windows, NFC, at most `limit` bytes; never empty, idempotent.

    Signs that are special somewhere, control, format and unassigned characters become "_"; no leading dot (hidden),
    dash (an option) or tilde (a home), no trailing dot or space, no name that Windows keeps for a device.
    """
    if len(stem) <= limit and _PLAIN_NAME.fullmatch(stem):
        return stem
    text = unicodedata.normalize("NFC", stem.encode("utf-8", "replace").decode())
    text = re.sub("_+", "_", "".join(map(_portable, text))).lstrip(" .-~").rstrip(" .")
    text = _shorten(text, limit).rstrip(" .")
    if not text.strip("_ ."):
        return _NAMELESS
    return f"_{text}" if text.split(".")[0].strip().casefold() in _RESERVED else text


def _portable(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Zs":
        return " "
    return "_" if char in _UNPORTABLE or category[0] == "C" or category in {"Zl", "Zp"} else char


_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]{1,31})://")


def scheme_problem(field: str, text: str) -> Problem | None:
    """Why a place to write to cannot be `s3://bucket/x` and the like: it would become a folder called `s3:`.

    A drive has one letter (`C:\\`), a scheme has more.
    """
    found = _SCHEME.match(text)
    if found is None:
        return None
    scheme = found[1].lower()
    hint = "give a folder of this machine, and copy from there"
    if scheme == "file":
        hint = f"give the plain path: {text.strip()[len('file://') :][:200] or '/path'}"
    return Problem(field, f"{scheme}:// is no place to write to", hint)


def check_template(template: str, known: Collection[str]) -> list[Problem]:
    """Everything wrong with a name template whose fields may be `known`: "{row:03}-{slug}" with "/" for folders.

    A field may be padded with zeros ("{index:03}") and nothing else; "{{" and "}}" are braces.
    """
    if problem := scheme_problem("name", template):
        return [problem]
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        return [_template_problem(template, str(error).lower(), "write {{ and }} for braces")]
    problems = []
    for _, name, padding, conversion in pieces:
        if name is None:
            continue
        if name not in known:
            problems.append(_unknown_field(name, known))
        if conversion or (padding and not _PADDING.fullmatch(padding)):
            problems.append(_template_problem(template, f"{{{name}}} has a format", "only {index:03} is understood"))
    parts = "".join(literal + ("x" if name is not None else "") for literal, name, _, _ in pieces).split("/")
    if any(part.strip() in {"", ".", ".."} for part in parts):
        hint = 'each part between "/" needs a name; the folder itself is given with --output'
        problems.append(_template_problem(template, "it does not stay inside the output folder", hint))
    if PurePath(parts[-1]).suffix.lower() in SPELLINGS:
        message = f"the name template ends in {PurePath(parts[-1]).suffix}, which will be doubled"
        hint = "leave it out: the suffix comes from the image's own bytes"
        problems.append(Problem("name", message, hint, severity="warning"))
    return problems


def _template_problem(template: str, message: str, hint: str) -> Problem:
    return Problem("name", f'bad name template "{template}": {message}', hint)


def _unknown_field(name: str, known: Collection[str]) -> Problem:
    near = nearest(name, known, 3)
    guess = f"did you mean {' or '.join(f'{{{field}}}' for field in near)}? " if near else ""
    fields = " ".join(f"{{{field}}}" for field in dict.fromkeys(known))
    return Problem("name", f"unknown field {{{name}}} in the name template", f"{guess}fields: {fields}")


@functools.lru_cache(maxsize=256)
def _template_errors(template: str, known: frozenset[str]) -> list[Problem]:
    return [problem for problem in check_template(template, known) if problem.severity == "error"]


def render_name(template: str, fields: Mapping[str, str]) -> str:
    """The path a template gives, relative and without suffix, every part cleaned; a value never adds a folder.

    Raises `InputError` with all that `check_template` finds.
    """
    if errors := _template_errors(template, frozenset(fields)):
        raise InputError(errors)
    text = ""
    for literal, name, padding, _ in string.Formatter().parse(template):
        value = "" if name is None else re.sub(r"[/\\]", "_", fields[name])
        text += literal + (value.zfill(int(padding)) if padding and value.isdecimal() else value)
    return "/".join(map(clean_name, text.split("/")))
