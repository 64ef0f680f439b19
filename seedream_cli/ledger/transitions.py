"""The states of a request and where it may go from each."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from ..errors import Billed, InternalError
from .records import Resolution, State

TRANSITIONS: Mapping[State, frozenset[State]] = {
    "queued": frozenset({"queued", "sent", "failed"}),
    "sent": frozenset({"queued", "waiting", "ready", "failed", "unknown"}),
    "waiting": frozenset({"waiting", "ready", "failed", "unknown"}),
    "ready": frozenset({"ready", "waiting", "saved", "failed", "unknown"}),
    "saved": frozenset({"ready", "sent"}),
    "failed": frozenset({"ready", "sent"}),
    "unknown": frozenset({"unknown", "waiting", "ready", "failed", "sent"}),
    "resolved": frozenset({"ready", "sent"}),
}
"""Where a request may go from each state. From the four last ones to `sent` only where the caller says `again`.
What a person resolves goes to `resolved` (paid) or back to `queued` (unpaid), whatever it was."""

_AGAIN: frozenset[State] = frozenset({"saved", "failed", "unknown", "resolved"})

_IN_FLIGHT: frozenset[State] = frozenset({"sent", "waiting", "ready"})


def _check_move(row: sqlite3.Row, to: State, *, again: bool = False) -> None:
    """Hold a move against the table. A wrong one is a bug that could cost money, so it stops everything."""
    if to not in TRANSITIONS[row["state"]]:
        raise InternalError(f"request {row['id']} cannot go from {row['state']} to {to}")
    if to == "sent" and row["state"] in _AGAIN and not again:
        raise InternalError(f"request {row['id']} is {row['state']} and would be sent again without being told to")


def _pending(db: sqlite3.Connection, row: sqlite3.Row) -> int:
    """How many pictures of an answered request are paid for and not fetched."""
    if row["state"] != "ready":
        return 0
    pending = "SELECT count(*) FROM pictures WHERE request = ? AND state = 'pending'"
    return int(db.execute(pending, (row["id"],)).fetchone()[0])


def _carry_over(row: sqlite3.Row) -> dict[str, int]:
    """What an earlier attempt leaves in the account when the request is sent once more."""
    if row["billed"] == "yes":
        cost = row["worst_micro"] if row["settled_micro"] is None else row["settled_micro"]
        return {"earlier_micro": row["earlier_micro"] + (cost or 0)}
    return {"doubts": row["doubts"] + (row["billed"] == "unknown")}


def _is_doubtful(state: State, billed: Billed) -> bool:
    """Whether a person may have something to say about the request itself, not only about its earlier attempts."""
    return state in {"waiting", "ready", "unknown", "resolved"} or billed == "unknown"


def _resolved(row: sqlite3.Row, paid: Resolution) -> dict[str, Any]:
    """The changes that a resolution makes. Earlier doubtful attempts are settled with it."""
    changes: dict[str, Any] = {"doubts": 0}
    if paid == "paid":
        changes["earlier_micro"] = row["earlier_micro"] + row["doubts"] * (row["worst_micro"] or 0)
    if not _is_doubtful(row["state"], row["billed"]):
        return changes
    state: State = "resolved" if paid == "paid" else "queued"
    return {**changes, "state": state, "billed": "yes" if paid == "paid" else "no", "reserved": 0, "owner": None}
