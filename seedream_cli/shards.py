"""The folders of shards, joined into one: their ledgers, their pictures, and replies whose pictures are to come."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from . import files
from .errors import FileError
from .ledger import Ledger


def absorb(ledger: Ledger, other: Ledger, source: Path, target: Path) -> tuple[int, int]:
    """Take over a shard's rows, pictures and replies; how many requests and pictures were new here.

    Pictures are linked, or copied where that cannot be, and stay where they were too. Their names hold the number or
    the id of their row, so two shards never claim one; what stands there already is kept. Raises `FileError`.
    """
    pictures = 0
    for entry in other.history():
        for picture in entry.pictures:
            if picture.state == "saved" and picture.path is not None and not picture.path.is_absolute():
                pictures += _bring(source / picture.path, target / picture.path)
    home = Path(".seedream") / "replies"
    for reply in sorted((source / home).glob("*")) if (source / home).is_dir() else ():
        _bring(reply, target / home / reply.name)
    return ledger.absorb(other.path), pictures


def _bring(path: Path, place: Path) -> bool:
    """One file to its place; False where it is gone, or its place is taken."""
    if not path.is_file() or os.path.lexists(place):
        return False
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            place.hardlink_to(path)
            return True
        part = place.with_name(f".seedream-{os.urandom(6).hex()}.part")
        shutil.copyfile(path, part)
        part.replace(place)
    except OSError as error:
        raise FileError(f"cannot bring {path} to {place}: {files.reason(error)}") from error
    return True
