"""Which options an untrusted project file may set."""

from __future__ import annotations

import json
import re
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import Problem
from ..storage import filesystem
from ..storage.filesystem import atomic_write
from .config_file import shown_path
from .environment import Environment
from .options import OPTIONS

TRUST_FILE = "trusted.json"

TRUST_LINE = "seedream config trust"

_COUNT_HARMLESS = 10
"""Most requests that an untrusted file may ask for; each is billed."""


def load_trusted(environment: Environment, problems: list[Problem] | None = None) -> dict[str, str]:
    """The sha256 of each trusted project file by its absolute path; empty where the list cannot be read.

    A list that cannot be read is added to `problems`: a budget in a trusted file would not be applied.
    """
    path = environment.config_folder / TRUST_FILE
    try:
        known = json.loads(path.read_bytes())["files"]
        return {str(file): str(digest) for file, digest in known.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = filesystem.reason(error) if isinstance(error, OSError) else "it is damaged"
        message = f"the list of trusted project files cannot be read: {why}"
        hint = f"move it away, then run `{TRUST_LINE}`"
        origin = shown_path(path, environment.home)
        if problems is not None:
            problems.append(Problem("", message, hint, origin=origin, code="config"))
        return {}


def set_trust(environment: Environment, path: Path, sha256: str | None) -> None:
    """Trust a project file with these contents, or with None no longer."""
    known = load_trusted(environment)
    known.pop(str(path.resolve()), None)
    if sha256 is not None:
        known[str(path.resolve())] = sha256
    text = json.dumps({"schema": 1, "files": known}, indent=1) + "\n"
    atomic_write(environment.config_folder / TRUST_FILE, text.encode())


def trust_reason(key: str, value: Any, folder: Path) -> str:
    """Why an untrusted project file in `folder` may not set this; "" where it may."""
    if key not in OPTIONS or not OPTIONS[key].safe:
        return "takes a trusted file"
    if key == "output" and value != "-" and not is_inside(value, folder):
        return "lies outside the project's folder"
    if key == "image" and not all(_is_link(item) or is_inside(item, folder) for item in value):
        return "lies outside the project's folder"
    if key == "if_exists" and value.strip().lower() == "overwrite":
        return "would replace files"
    if key == "count" and value.strip().isdecimal() and int(value) > _COUNT_HARMLESS:
        return f"asks for more than {_COUNT_HARMLESS} billed images"
    return ""


def _is_link(text: str) -> bool:
    return text == "-" or re.match(r"(https?://|data:)", text, re.IGNORECASE) is not None


def is_inside(text: str, folder: Path) -> bool:
    """Whether a path, symlinks resolved, stays in the folder; read as POSIX and as Windows would."""
    windows = PureWindowsPath(text)
    if text.startswith(("~", "/")) or windows.drive or windows.root or ".." in windows.parts or "\0" in text:
        return False
    try:
        return (folder / text).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False
