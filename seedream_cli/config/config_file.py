"""The configuration files: found and parsed, with the line of every key.

A project file may come with a cloned repository. Until the user trusts it, it may set only options marked `safe` in
options.py: no key, address, program, price or limit, and no path outside its own folder. A new option is not safe.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..storage import filesystem
from ..text import nearest_hint
from .environment import Environment

PROJECT_FILE = "seedream.toml"

USER_FILE = "config.toml"

MOST = 256 * 1024
"""Most bytes of a settings file."""

_LEAST_PRICE = 1e-6
"""US dollars. Money is counted in micro-units, so a smaller price would be rounded up to one."""


# --- finding the files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SettingsFiles:
    """The paths of the settings files. `named` is what set the user's path ("--config"), "" for the default path."""

    user: Path
    named: str = ""
    project: Path | None = None


def find_settings_files(
    environment: Environment, *, file: str | None = None, folder: Path | None = None
) -> SettingsFiles:
    """The user's file (or the one named instead of it) and the project's, found upward from the folder."""
    moved = file or environment.option("config")
    if moved:
        named = "--config" if file else "$SEEDREAM_CONFIG"
        user = Path(os.path.expanduser(moved))  # noqa: PTH111 - Path.expanduser raises where there is no such user
    else:
        named, user = "", environment.config_folder / USER_FILE
    project = find_project(folder, environment.home)
    if project is not None and _is_same(project, user):
        project = None
    return SettingsFiles(user, named, project)


def find_project(folder: Path | None, home: Path | None) -> Path | None:
    """The nearest `seedream.toml` in the folder or above it, not beyond the home nor another file system."""
    with contextlib.suppress(OSError):
        start = (folder or Path.cwd()).resolve()
        border = start.stat().st_dev
        last = home.resolve() if home else None
        for here in (start, *start.parents):
            if here.stat().st_dev != border:
                return None
            if os.path.lexists(here / PROJECT_FILE):
                return here / PROJECT_FILE
            if here == last:
                return None
    return None


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def shown_path(path: Path, home: Path | None) -> str:
    """A path for messages: relative to the working folder or to the home where that is shorter."""
    here = Path(os.path.relpath(path)) if not _is_unreachable(path) else path
    if len(here.parts) <= 1 + sum(part == ".." for part in here.parts):
        return str(here)
    return f"~{os.sep}{path.relative_to(home)}" if home and path.is_relative_to(home) else str(path)


def _is_unreachable(path: Path) -> bool:
    """Whether no relative path leads there: another drive, or a working folder that was deleted."""
    try:
        os.path.relpath(path)
    except (OSError, ValueError):
        return True
    return False


# --- one file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file. `lines` maps a key's parts to its line; `sha256` is of a project file's bytes, else ""."""

    path: Path
    shown: str
    text: str
    table: Mapping[str, Any]
    lines: Mapping[tuple[str, ...], int]
    sha256: str
    trusted: bool = True
    is_project: bool = False

    def location(self, keys: Sequence[str]) -> str:
        """ "FILE:LINE" of a key, or of the table that holds it."""
        for length in range(len(keys), 0, -1):
            line = self.lines.get(tuple(keys[:length]))
            if line:
                return f"{self.shown}:{line}"
        return f"{self.shown}:1"


def read_document(path: Path, shown: str, problems: list[Problem], *, is_project: bool = False) -> Document | None:
    """Read and parse one file; None, with the reason added to `problems`, where that fails."""
    try:
        raw = _read_bytes(path, only_files=is_project)
    except OSError as error:
        hint = "check its permissions" if isinstance(error, PermissionError) else ""
        problems.append(Problem("", f"cannot be read: {filesystem.reason(error)}", hint, origin=shown))
        return None
    return parse_document(raw, path, shown, problems, is_project=is_project)


def parse_document(
    raw: bytes, path: Path, shown: str, problems: list[Problem], *, is_project: bool = False
) -> Document | None:
    """Parse a file's bytes; None, with file and line added to `problems`, where they are no TOML."""
    import tomllib

    if len(raw) > MOST:
        problems.append(Problem("", f"too long for settings (over {MOST} bytes)", origin=shown))
        return None
    try:
        text = raw.decode("utf-8-sig")
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problems.append(Problem("", "not UTF-8", "save it as UTF-8", origin=f"{shown}:{line}"))
        return None
    except (ValueError, RecursionError) as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else raw.count(b"\n") + 1
        message = re.sub(r" \(at .*\)$", "", str(error))
        words = f"no TOML: {message[:1].lower()}{message[1:]}"
        unquoted = "nvalid value" in message or "after a statement" in message
        hint = 'text stands in quotes: size = "2K"' if unquoted else ""
        problems.append(Problem("", words, hint, origin=f"{shown}:{line}"))
        return None
    return Document(
        path, shown, text, table, key_lines(text), _digest(raw) if is_project else "", is_project=is_project
    )


def _digest(raw: bytes) -> str:
    """The sha256 that a project file is trusted by."""
    import hashlib

    return hashlib.sha256(raw).hexdigest()


def _read_bytes(path: Path, *, only_files: bool) -> bytes:
    """At most `MOST` + 1 bytes. With `only_files` a named pipe raises `OSError`: opening one would block for ever."""
    if str(path) == "-":
        return sys.stdin.buffer.read(MOST + 1)
    if only_files and not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "not a file")
    with path.open("rb") as file:
        return file.read(MOST + 1)


_KEY = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""

_ENTRY = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")

_PART = re.compile(r""""((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+)""")


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of every key and table, which `tomllib` does not report."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    quote = ""
    for number, line in enumerate(text.splitlines(), 1):
        if quote:
            quote = "" if quote in line else quote
            continue
        if line.lstrip().startswith("["):
            table = _parts(line.strip().lstrip("[").partition("]")[0])
            lines.setdefault(table, number)
            continue
        found = re.match(_ENTRY, line[:500])
        if found:
            lines.setdefault((*table, *_parts(found[1])), number)
        quote = next((mark for mark in ('"""', "'''") if line.count(mark) % 2), "")
    return lines


def _parts(dotted: str) -> tuple[str, ...]:
    """The parts of a dotted key, without quotes."""
    return tuple(found[1] or found[2] or found[3] or "" for found in _PART.finditer(dotted))


def _idle_price(provider: str, model: str) -> tuple[str, str] | None:
    """Message and hint where a price for this model would have no effect; None where it has one."""
    from ..providers import PROVIDERS, load
    from ..request.models import MODELS, find_model, nearest_models

    if provider and load(provider).spec.offline:
        return f"{provider} costs nothing, so a price has no effect there", ""
    if find_model(model) is not None or re.match(r"ep-.", model):
        return None
    near = nearest_models(model) if model.strip() else []
    is_id = "/" in model or re.search(r"seed(ream|edit)", model, re.IGNORECASE) is not None
    if provider and model.strip() and (is_id or not near):
        # Unknown ids are sent as typed, so only what resembles a known name is taken for a typing mistake.
        return None
    first, border, rest = model.partition("/") if "/" in model else model.partition(".")
    if border and first in PROVIDERS:
        return f"no model is called {model[:60]}", f"write {first}/{rest}"
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(row.name for row in MODELS)}"
    if border == "/" and find_model(rest) is not None:
        return f"unknown provider {first[:40]}", nearest_hint(first, PROVIDERS)
    return (
        f"no model is called {model[:60]}",
        hint if provider else f"{hint}; a provider's own id is written PROVIDER/ID",
    )


def _exists(path: Path, environment: Environment, problems: list[Problem]) -> bool:
    """Whether the user's file exists. If stat fails it is a problem: a budget in the file would not be applied."""
    hint = "set that right, or name a file with --config or $SEEDREAM_CONFIG, such as /dev/null for none"
    try:
        return _path_exists(path)
    except OSError as error:
        message = f"the settings cannot be looked at, which may hold a budget: {filesystem.reason(error)}"
        problems.append(Problem("", message, hint, origin=shown_path(path, environment.home), code="config"))
        return False


def _path_exists(path: Path) -> bool:
    """Whether a file or symlink exists. Raises `OSError` where a parent is not searchable or a dangling symlink."""
    try:
        path.lstat()
    except FileNotFoundError:
        above = next((folder for folder in path.parents if os.path.lexists(folder)), path.parent)
        above.stat()  # raises for a dangling symlink
        return False
    return True
