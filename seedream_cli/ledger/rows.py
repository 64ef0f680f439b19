"""Converts records to rows and back; shortens data URIs and masks secrets before they are stored."""

from __future__ import annotations

import datetime as dt
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

from ..errors import FileError, InternalError, SeedreamError
from ..redaction import _AUTHORIZATION, _SENSITIVE, _SUSPECT, _USER_INFO, _forms
from . import schema
from .records import Entry, Failure, ImageRow, Note

_JSON_COLUMNS = ("body", "fields", "output", "usage")

_MOMENTS = ("entered_at", "sent_at", "answered_at", "finished_at")


def to_stamp(moment: dt.datetime) -> str:
    """A time as text that sorts: UTC, fixed length."""
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")


def to_moment(stamp: str | None) -> dt.datetime | None:
    if stamp is None:
        return None
    moment = dt.datetime.fromisoformat(stamp)
    if not _FIRST_YEAR <= moment.year < dt.MAXYEAR:
        raise ValueError(f"{stamp} is no moment of ours")
    return moment


_FIRST_YEAR = 1970
"""Earlier times, and the last year, overflow in some time zones, and were never written here."""


def read_entry(row: sqlite3.Row, images: tuple[ImageRow, ...]) -> Entry:
    try:
        return _entry_of(row, images)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise unreadable(row["id"]) from error


def unreadable(name: object) -> FileError:
    hint = "move the ledger away; kept replies are untouched (`seedream recover`)"
    return FileError(f"the ledger is damaged: what it says of {str(name)[:80]!r} cannot be read", hint=hint)


def _entry_of(row: sqlite3.Row, images: tuple[ImageRow, ...]) -> Entry:
    # By position: looking up forty columns by name dominates the time.
    values: dict[str, Any] = dict(zip(schema.ENTRY, row, strict=False))
    for name in _JSON_COLUMNS:
        values[name] = None if values[name] is None else json.loads(values[name])
    for name in _MOMENTS:
        values[name] = to_moment(values[name])
    values["error"] = _read_failure(values["error"])
    values["reply"] = _read_path(values["reply"])
    return Entry(**values, images=images)


def read_images(db: sqlite3.Connection, ids: Sequence[str]) -> dict[str, tuple[ImageRow, ...]]:
    rows = db.execute(schema.IMAGES, (json.dumps(ids),))
    return {
        request: tuple(_image(row) for row in group)
        for request, group in itertools.groupby(rows, key=lambda row: str(row[0]))
    }


def _image(row: sqlite3.Row) -> ImageRow:
    values: dict[str, Any] = dict(zip(schema.IMAGE, row[1:], strict=True))
    try:
        values["path"] = _read_path(values["path"])
        values["error"] = _read_failure(values["error"])
    except (ValueError, TypeError, RecursionError) as error:
        raise unreadable(row[0]) from error
    return ImageRow(**values)


def read_note(row: sqlite3.Row) -> Note:
    try:
        at = to_moment(row["at"])
    except (ValueError, TypeError) as error:
        raise unreadable(row["request"]) from error
    assert at is not None  # noqa: S101 - the table has no note without
    return Note(row["request"], at, row["what"], row["detail"])


def select(db: sqlite3.Connection, clause: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> tuple[Entry, ...]:
    """The requests of a WHERE clause, with their images."""
    rows = db.execute(f"{schema.ENTRIES} {clause}", values).fetchall()
    images = read_images(db, [row["id"] for row in rows])
    return tuple(read_entry(row, images.get(row["id"], ())) for row in rows)


def by_ids(db: sqlite3.Connection, ids: Sequence[str]) -> tuple[Entry, ...]:
    """The requests of these ids in their order, without unknown ones."""
    known = {entry.id: entry for entry in select(db, schema.AMONG, (json.dumps(list(ids)),))}
    return tuple(known[one] for one in dict.fromkeys(ids) if one in known)


def update(db: sqlite3.Connection, request_id: str, changes: Mapping[str, Any]) -> None:
    columns = ", ".join(f"{name} = :{name}" for name in changes)
    db.execute(f"UPDATE requests SET {columns} WHERE id = :id", {**changes, "id": request_id})  # noqa: S608 -- our names


def store_path(path: Path | None) -> str | bytes | None:
    """A path as text, or as bytes where it is no UTF-8."""
    if path is None:
        return None
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return text


def _read_path(stored: str | bytes | None) -> Path | None:
    return None if stored is None else Path(os.fsdecode(stored))


def _read_failure(stored: str | None) -> Failure | None:
    return None if stored is None else Failure(**json.loads(stored))


def as_mapping(failure: Failure) -> dict[str, str]:
    return {one.name: getattr(failure, one.name) for one in fields(failure)}


_LONGEST_URI = 1024


def quote(text: str) -> str:
    """A text as JSON, shortened as in `plain`."""
    return encode_basestring_ascii(text) if len(text) <= _LONGEST_URI else ENCODER.encode(_shorten(text))


def plain(value: Any) -> Any:
    """A value with data URIs shortened and the values of secret-like names masked."""
    if isinstance(value, str):
        return _shorten(value)
    if isinstance(value, Mapping):
        return {
            str(key): "***" if isinstance(item, str) and _SENSITIVE.search(str(key)) else plain(item)
            for key, item in value.items()
        }
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _shorten(text: str) -> Any:
    """A long data URI as its sha256 and size; any other text unchanged."""
    if len(text) <= _LONGEST_URI or not text.startswith("data:"):
        return text
    return {
        "file": "data URI",
        "sha256": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(),
        "bytes": len(text),
    }


def _default(value: Any) -> Any:
    """JSON for other types: a reference as name, sha256 and bytes; mappings; paths."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    # Imported here, since `request` loads pydantic.
    from ..request.image_request import ImageRef

    if not isinstance(value, ImageRef):
        raise InternalError(f"the ledger cannot store a {type(value).__name__}")
    return value.summary()


# ASCII, so that lone surrogates survive.
ENCODER = json.JSONEncoder(separators=(",", ":"), default=_default)


class Masking:
    """Makes values that may be stored, without secrets."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = _forms(secrets)

    def mask_secret(self, secret: str) -> None:
        """Mask this string from now on."""
        self._secrets += _forms([secret])

    @property
    def has_secrets(self) -> bool:
        """Whether texts must be searched for secrets."""
        return bool(self._secrets)

    def text(self, text: str) -> str:
        """Text without secrets and without lone surrogates, which SQLite cannot store."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

    def url(self, url: str) -> str:
        """A URL without user name and password."""
        return _USER_INFO.sub("//***@", self.text(url))

    def json(self, value: Mapping[str, Any]) -> str:
        """A mapping as JSON, masked."""
        text = ENCODER.encode(value)
        # Searching the text is cheaper than walking every value of every row.
        lower = text.lower()
        return self.text(ENCODER.encode(plain(value)) if any(word in lower for word in _SUSPECT) else text)

    def failure(self, error: SeedreamError | None) -> str | None:
        """An error as JSON, masked; None for None."""
        if error is None:
            return None
        failure = Failure(
            error.kind,
            _AUTHORIZATION.sub(r"\1 ***", error.message),
            error.hint,
            str(getattr(error, "code", "")),
            str(getattr(error, "request_id", "")),
        )
        return self.json(as_mapping(failure))

    def image(self, request_id: str, image: ImageRow) -> dict[str, Any]:
        """The column values of an image's row."""
        row: dict[str, Any] = {name: getattr(image, name) for name in schema.IMAGE}
        row["request"] = request_id
        row["link"] = self.text(image.link)
        row["path"] = store_path(image.path)
        row["error"] = None if image.error is None else self.json(as_mapping(image.error))
        return row
