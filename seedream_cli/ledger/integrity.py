"""What a database holds that no ledger of ours would: foreign tables, programs, and rows that nobody wrote."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from .database import _damaged


def _refuse_programs(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a ledger that does something by itself. None has a view or a trigger, which may say and do anything."""
    known = {"table", "index"}
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master LIMIT 1000"):
        if kind not in known or str(sql).lstrip().upper().startswith("CREATE VIRTUAL"):
            raise _damaged(path, f"it holds a {kind} called {str(name)[:40]!r}, which no ledger of ours does")


# A class of characters is slow to look for: of a name in the letters of an id it need not be. GLOB ends at a NUL.
_NAME = (
    "typeof({0}) <> 'text' OR instr({0}, char(0)) OR {0} NOT GLOB '[A-Za-z0-9_]*' OR length({0}) > 100 "
    "OR (trim({0}, '-0123456789abcdef') <> '' AND {0} GLOB '*[^A-Za-z0-9_-]*')"
)

_RUN = "{0} NOT IN (SELECT id FROM runs) AND (" + _NAME + ")"  # noqa: S608 -- a constant
"""Of a run that is in its table, its name is looked at there, once."""

_OBJECT = "typeof({0}) <> 'text' OR NOT json_valid({0}) OR json_type({0}) <> 'object'"

_COUNT = "typeof({0}) <> 'integer' OR {0} NOT BETWEEN 0 AND 1000000000000"

_WORDS = "typeof({0}) <> 'text' OR instr({0}, char(0))"


def _odd_columns(rule: str, *names: str, or_null: bool = False) -> list[str]:
    """Conditions under which a column holds what was never written there."""
    return [f"({f'{name} IS NOT NULL AND ' if or_null else ''}({rule.format(name)}))" for name in names]


_ODD_ROWS: Mapping[str, tuple[str, Sequence[str]]] = {
    "requests": (
        "id",
        [
            *_odd_columns(_NAME, "id"),
            *_odd_columns(_RUN, "run"),
            *_odd_columns(_RUN, "owner", "listed", "payer", or_null=True),
            *_odd_columns(_OBJECT, "body", "fields", "output"),
            *_odd_columns(_OBJECT, "usage", "error", or_null=True),
            *_odd_columns(_COUNT, "position", "occurrence", "pictures_at_most", "earlier_micro", "doubts", "attempts"),
            *_odd_columns(_COUNT, "worst_micro", "settled_micro", "billed_pictures", "line", or_null=True),
            *_odd_columns(
                _WORDS, "provider", "base_url", "model", "fingerprint", "row_id", "file", "currency", "as_of"
            ),
            *_odd_columns(_WORDS, "token", "task_id", "trace", "entered_at"),
            *_odd_columns("typeof({0}) <> 'text'", "prompt", "identity", or_null=True),
            *_odd_columns("typeof({0}) <> 'text'", "sent_at", "answered_at", "finished_at", "charged_at", or_null=True),
            "state NOT IN ('queued', 'sent', 'waiting', 'ready', 'saved', 'failed', 'unknown', 'resolved')",
            "billed NOT IN ('no', 'yes', 'unknown')",
            "reserved NOT IN (0, 1)",
        ],
    ),
    "pictures": (
        "request",
        [
            *_odd_columns(_COUNT, "position", "width", "height", "bytes"),
            *_odd_columns("typeof({0}) <> 'integer' OR abs({0}) > 100000000000", "expires", or_null=True),
            *_odd_columns(_WORDS, "request", "link", "format", "sha256"),
            *_odd_columns(_OBJECT, "error", or_null=True),
            "state NOT IN ('pending', 'saved', 'handed', 'failed', 'expired')",
            # A batch writes where its images are from its own folder on, and none lies above that.
            "'/' || replace(CAST(path AS TEXT), char(92), '/') || '/' LIKE '%/../%'",
            "CAST(path AS TEXT) LIKE '.seedream/%'",
            "instr(CAST(path AS TEXT), char(0))",
        ],
    ),
    "runs": ("id", [*_odd_columns(_NAME, "id"), *_odd_columns(_WORDS, "command", "started_at", "version", "folder")]),
}
