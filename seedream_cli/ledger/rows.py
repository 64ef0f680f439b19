"""Records to rows and back, texts shortened and secrets masked on the way in."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import fields
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from ..errors import FileError, InternalError
from ..redaction import _SENSITIVE
from .database import _moment
from .records import Entry, Failure, Note, PictureRow
from .schema import _ENTRY, _PICTURE, _PICTURES

_JSON_COLUMNS = ("body", "fields", "output", "usage")

_MOMENTS = ("entered_at", "sent_at", "answered_at", "finished_at")


def _entry(row: sqlite3.Row, pictures: tuple[PictureRow, ...]) -> Entry:
    try:
        return _read_entry(row, pictures)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise _unreadable(row["id"]) from error


def _unreadable(name: object) -> FileError:
    hint = "move the ledger away; kept replies are untouched (`seedream recover`)"
    return FileError(f"the ledger is damaged: what it says of {str(name)[:80]!r} cannot be read", hint=hint)


def _read_entry(row: sqlite3.Row, pictures: tuple[PictureRow, ...]) -> Entry:
    # By position, since finding forty columns by name would take longer than all the rest.
    values: dict[str, Any] = dict(zip(_ENTRY, row, strict=False))
    for name in _JSON_COLUMNS:
        values[name] = None if values[name] is None else json.loads(values[name])
    for name in _MOMENTS:
        values[name] = _moment(values[name])
    values["error"] = _load_failure(values["error"])
    values["reply"] = _load_path(values["reply"])
    return Entry(**values, pictures=pictures)


def _pictures_of(db: sqlite3.Connection, ids: Sequence[str]) -> dict[str, tuple[PictureRow, ...]]:
    rows = db.execute(_PICTURES, (json.dumps(ids),))
    return {
        request: tuple(_picture(row) for row in group)
        for request, group in itertools.groupby(rows, key=lambda row: str(row[0]))
    }


def _picture(row: sqlite3.Row) -> PictureRow:
    values: dict[str, Any] = dict(zip(_PICTURE, row[1:], strict=True))
    try:
        values["path"] = _load_path(values["path"])
        values["error"] = _load_failure(values["error"])
    except (ValueError, TypeError, RecursionError) as error:
        raise _unreadable(row[0]) from error
    return PictureRow(**values)


def _note_of(row: sqlite3.Row) -> Note:
    try:
        at = _moment(row["at"])
    except (ValueError, TypeError) as error:
        raise _unreadable(row["request"]) from error
    assert at is not None  # noqa: S101 - the table has no note without
    return Note(row["request"], at, row["what"], row["detail"])


def _update(db: sqlite3.Connection, request_id: str, changes: Mapping[str, Any]) -> None:
    columns = ", ".join(f"{name} = :{name}" for name in changes)
    db.execute(f"UPDATE requests SET {columns} WHERE id = :id", {**changes, "id": request_id})  # noqa: S608 -- our names


def _store_path(path: Path | None) -> str | bytes | None:
    """A path as text; one whose name is no UTF-8 as its bytes, since text could not hold it."""
    if path is None:
        return None
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return text


def _load_path(stored: str | bytes | None) -> Path | None:
    return None if stored is None else Path(os.fsdecode(stored))


def _load_failure(stored: str | None) -> Failure | None:
    return None if stored is None else Failure(**json.loads(stored))


def _as_mapping(failure: Failure) -> dict[str, str]:
    return {one.name: getattr(failure, one.name) for one in fields(failure)}


_LONGEST_URI = 1024


def _quote(text: str) -> str:
    """A text as JSON, as `_plain` has it."""
    return encode_basestring_ascii(text) if len(text) <= _LONGEST_URI else _ENCODER.encode(_shorten(text))


def _plain(value: Any) -> Any:
    """A value without base64, and without what stands under a secret's name."""
    if isinstance(value, str):
        return _shorten(value)
    if isinstance(value, Mapping):
        return {
            str(key): "***" if isinstance(item, str) and _SENSITIVE.search(str(key)) else _plain(item)
            for key, item in value.items()
        }
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _shorten(text: str) -> Any:
    """A data URI by its sha256 and size; any other text as it is."""
    if len(text) <= _LONGEST_URI or not text.startswith("data:"):
        return text
    return {
        "file": "data URI",
        "sha256": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(),
        "bytes": len(text),
    }


def _odd(value: Any) -> Any:
    """What JSON does not know: a reference by its name, sha256 and bytes, any mapping, a path."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    # Importing `request` costs pydantic's start-up time, which a body of plain JSON never needs.
    from ..request.image_request import ImageRef

    if not isinstance(value, ImageRef):
        raise InternalError(f"the ledger cannot store a {type(value).__name__}")
    if value.kind == "url":
        return value.location
    shown = {"file": value.location, "sha256": value.sha256, "bytes": value.size or len(value.content)}
    return shown | ({"sent_sha256": value.sent.sha256, "sent_bytes": value.sent.size} if value.sent else {})


# In ASCII, so that half a character comes back as it was.
_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_odd)
