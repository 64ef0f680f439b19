"""API keys and other secrets: checked, and masked in every text that is shown or stored."""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .errors import ConfigError

_SENSITIVE = re.compile(
    r"authorization|cookie|passw(or)?d|secret|credential|api[-_ ]?key|access[-_ ]?key|(^|[-_ ])(token|key)$",
    re.IGNORECASE,
)

_SUSPECT = ("authorization", "cookie", "passw", "secret", "credential", "key", 'token"', '"data:')

_AUTHORIZATION = re.compile(r"\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)

_USER_INFO = re.compile(r"//[^/@?#]*@")


def _forms(secrets: Sequence[str]) -> tuple[str, ...]:
    """Each secret in every encoding, longest first; empty ones would mask everything."""
    found = {form for one in secrets if one.strip() for form in (one, json.dumps(one)[1:-1], *secret_forms(one))}
    return tuple(sorted(found, key=len, reverse=True))


_KEY = re.compile(r"[\x21-\x7e]+")

_URL = re.compile(r"(https?:(?:\\?/){2})([^\s\"<>]+)", re.IGNORECASE)

_BEARER = re.compile(r"\bbearer[ \t]+[^\s\"',]+", re.IGNORECASE)

_SIGNATURE = re.compile(
    r"\b((?:x-[a-z]+-)?(?:signature|credential|security-token)|sig|ossaccesskeyid)=[^&\s\"'<>]+", re.IGNORECASE
)


def check_key(raw: str) -> str:
    """The key without surrounding white space, BOM and quotes. Raises `ConfigError`, without the key, if it is invalid.

    For a key with a line break the HTTP library would raise an error that quotes the header.
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
    """The base64 characters of the key at each of the three byte offsets."""
    for lead in range(3):
        encoded = base64.b64encode(b"\0" * lead + key.encode())
        inner = encoded[(lead * 8 + 5) // 6 : (lead + len(key)) * 8 // 6].decode()
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def secret_forms(key: str) -> tuple[str, ...]:
    """Every encoding of the key to search for, longest first; () for very short keys, which would match words."""
    if len(key) < 4:
        return ()
    quoted = urllib.parse.quote(key, safe="")
    lower = re.sub("%..", lambda match: match[0].lower(), quoted)
    forms = {key, quoted, lower, json.dumps(key)[1:-1]}
    forms.update(form for form in _base64_forms(key) if len(form) >= 8)
    return tuple(sorted(forms, key=len, reverse=True))


def mask(text: str, forms: tuple[str, ...] = ()) -> str:
    """The text without the key (`forms`), bearer tokens, and the query and user name of every URL."""
    for form in forms:
        text = text.replace(form, "***")
    if forms and "…" in text:
        text = _mask_cut(text, forms)
    text = _URL.sub(_mask_url, text)
    return _SIGNATURE.sub(r"\1=***", _BEARER.sub("Bearer ***", text))


def _mask_cut(text: str, forms: tuple[str, ...]) -> str:
    """Mask the start of a key before a "…", where a text was cut."""
    pieces = text.split("…")
    for number, piece in enumerate(pieces[:-1]):
        shared = max((_overlap(piece, form) for form in forms), default=0)
        pieces[number] = piece[:-shared] + "***" if shared else piece
    return "…".join(pieces)


def _overlap(text: str, form: str) -> int:
    """How many characters at the end of `text` are the start of `form`; 0 for fewer than four."""
    return next((count for count in range(min(len(text), len(form) - 1), 3, -1) if text.endswith(form[:count])), 0)


def hide(value: Any, forms: tuple[str, ...]) -> Any:
    """JSON data without the key in texts and names. URLs are otherwise unchanged."""
    if isinstance(value, str):
        for form in forms:
            value = value.replace(form, "***")
        return value
    if isinstance(value, Mapping):
        return {hide(name, forms): hide(one, forms) for name, one in value.items()}
    return [hide(one, forms) for one in value] if isinstance(value, list | tuple) else value


def _mask_url(match: re.Match[str]) -> str:
    address, mark, _ = match[2].partition("?")
    authority, slash, path = address.partition("/")
    if "@" in authority:
        authority = "***@" + authority.rpartition("@")[2]
    return f"{match[1]}{authority}{slash}{path}" + ("?***" if mark else "")
