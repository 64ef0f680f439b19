"""The API's address from what `--base-url` was given, and the server that an address is at."""

from __future__ import annotations

import re

from ..errors import InputError, Problem
from .contract import ProviderSpec


def full_url(spec: ProviderSpec, base_url: str | None = None) -> str:
    """The base URL with the API's version prefix and without a trailing slash.

    Accepts URLs without the version, with the endpoint, and with a proxy's path. A path with any version is kept.
    Raises `InputError` for an invalid URL.
    """
    from urllib.parse import urlsplit

    typed = (base_url or "").strip() or spec.base_url
    problem = _address_problem(spec, typed)
    if problem:
        raise InputError([problem])
    parts = urlsplit(typed)
    path = _versioned([part for part in parts.path.split("/") if part], spec)
    return f"{parts.scheme.lower()}://{parts.netloc}" + "".join(f"/{part}" for part in path)


def _address_problem(spec: ProviderSpec, typed: str) -> Problem | None:
    """What is wrong with a URL, and a correction. Never quotes a password."""
    from urllib.parse import urlsplit

    if not typed:
        return Problem("base_url", f"{spec.title} has no address of its own", "give --base-url URL")
    if re.search(r"[\s\x00-\x1f\x7f\\]", typed):
        return Problem("base_url", "the base URL holds a space, a backslash or a control character")
    try:
        parts = urlsplit(typed)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return Problem("base_url", f"the base URL cannot be read: {error}")
    if "@" in typed:
        return Problem("base_url", "the base URL holds a user name or password", "keys come from the environment")
    if "://" not in typed:
        near = re.match(r"/*(localhost|127\.|\[)", typed)
        return Problem(
            "base_url", f"{typed!r} has no scheme", f"write {'http' if near else 'https'}://{typed.lstrip('/')}"
        )
    if parts.scheme.lower() not in {"http", "https"}:
        return Problem("base_url", f"{parts.scheme}:// is no web address", "write https://HOST")
    if not host:
        return Problem("base_url", f"{typed!r} has no host", "write https://HOST")
    if "?" in typed or "#" in typed:
        bare = urlsplit(re.split(r"[?#]", typed, maxsplit=1)[0])
        path = "".join(f"/{part}" for part in _without_endpoint([part for part in bare.path.split("/") if part], spec))
        whole = f"write {bare.scheme.lower()}://{bare.netloc}{path}"
        return Problem("base_url", "the base URL holds a query or a fragment", whole)
    return None


_ENDPOINTS = tuple(
    tuple(text.split("/"))
    for text in (
        *("images/generations", "images/edits", "images/variations", "chat/completions", "contents/generations/tasks"),
        *("audio/speech", "audio/transcriptions", "messages/count_tokens", "seedream/images", "seedream/tasks"),
    )
)
"""Endpoints of this and other APIs, removed from a URL that was copied from an example."""

_PLAIN_ENDPOINTS = frozenset(
    (
        *("completions", "responses", "embeddings", "models", "tasks", "images", "messages", "moderations"),
        *("files", "batches", "rerank"),
    )
)
"""Endpoints of one word, removed only after a version: a gateway's path may be /images."""

_NO_MOUNTS = frozenset(("completions", "responses", "embeddings"))
"""Those that are removed even without a version."""

_VERSION = re.compile(r"v[0-9]+[a-z0-9]*", re.IGNORECASE)


def _without_endpoint(path: list[str], spec: ProviderSpec) -> list[str]:
    """A path without a trailing endpoint of any API, and without its resource (`models/NAME`)."""
    own = [tuple(part for part in whole.split("/") if part) for whole in (spec.path, spec.models_path)]
    lower = [part.lower() for part in path]
    tail = next((tail for tail in (*own, *_ENDPOINTS) if tail and tuple(lower[-len(tail) :]) == tail), ())
    if tail:
        return _without_endpoint(path[: -len(tail)], spec)
    if not path:
        return path
    last, *before = reversed([part.lower() for part in path])
    is_beside = any(_VERSION.fullmatch(part) or part == "openai" for part in before)
    if last in _PLAIN_ENDPOINTS and (is_beside or (not before and last in _NO_MOUNTS)):
        return _without_endpoint(path[:-1], spec)
    if before[:1] in (["models"], ["tasks"]) and before[1:] and _VERSION.fullmatch(before[1]):
        return path[:-2]
    return path


def _versioned(path: list[str], spec: ProviderSpec) -> list[str]:
    """A path without endpoint and with the API's version, unless it has a version."""
    version, endpoint = ([part for part in whole.split("/") if part] for whole in (spec.version, spec.path))
    bare = _without_endpoint(path, spec)
    if len(bare) < len(path) and not version:
        # Another API of the same provider; this one has no version.
        while bare and (_VERSION.fullmatch(bare[-1]) or bare[-1] == "openai"):
            bare = bare[:-1]
    path = bare
    if any(_VERSION.fullmatch(part) for part in path):
        return path
    # A path may already end with the first part of "/api/v3", or of the endpoint where the API has no version.
    if not version:
        return path[: len(path) - _overlap(path, endpoint)]
    return path + version[_overlap(path, version) :]


def _overlap(path: list[str], start: list[str]) -> int:
    """How many parts at the end of `path` are the first parts of `start`."""
    return next((n for n in range(len(start), 0, -1) if path[-n:] == start[:n]), 0)


def is_same_server(one: str, other: str) -> bool:
    """Whether two URLs share scheme, host and port; False where either is empty or no URL."""
    try:
        return bool(other) and server_of(one) == server_of(other)
    except ValueError:
        return False


def server_of(url: str) -> str:
    """Scheme, host and port of a URL, without the scheme's default port."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    usual = {"http": 80, "https": 443}.get(parts.scheme.lower())
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = "" if parts.port in {None, usual} else f":{parts.port}"
    return f"{parts.scheme.lower()}://{host}{port}"
