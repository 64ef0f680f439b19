"""The states of a request and the transitions between them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import Billed, InputError, InternalError, Problem, SeedreamError
from . import schema
from .budget import Budget
from .database import Database
from .records import Entry, ImageRow, Reservation, Resolution, State
from .rows import by_ids, store_path, update
from .run_lock import RunLocks

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
"""The allowed next states. From the last four to `sent` only with `again`. `resolve` goes to `resolved` (paid) or
`queued` (unpaid) from any state."""

_AGAIN: frozenset[State] = frozenset({"saved", "failed", "unknown", "resolved"})

_IN_FLIGHT: frozenset[State] = frozenset({"sent", "waiting", "ready"})


def _check_move(row: sqlite3.Row, to: State, *, again: bool = False) -> None:
    """Raise `InternalError` for a transition that is not in the table: such a bug could cost money."""
    if to not in TRANSITIONS[row["state"]]:
        raise InternalError(f"request {row['id']} cannot go from {row['state']} to {to}")
    if to == "sent" and row["state"] in _AGAIN and not again:
        raise InternalError(f"request {row['id']} is {row['state']} and would be sent again without being told to")


class Transitions:
    """The transitions of a request. Each has committed and flushed when it returns."""

    def __init__(self, database: Database, locks: RunLocks, budget: Budget) -> None:
        self._database = database
        self._masked = database.masked
        self._locks = locks
        self._budget = budget

    def mark_sent(
        self, request_id: str, *, attempt: int, token: str, again: bool = False, reserve: Reservation | None = None
    ) -> None:
        """Before the first byte is sent: committed and flushed when this returns; if it raises, send nothing.

        With `reserve` its worst cost is reserved in the same transaction. `token` is this attempt's client request id.
        A request that ended before (`unknown`, `failed`, `saved`, `resolved`) needs `again`: its earlier cost stays in
        the sums, and a note is added. Raises `FileError` (billed "no") for disk and SQLite errors, `BudgetError` over a
        cap.
        """
        with self._database.write("no") as db:
            row = self._claimed_row(db, request_id)
            _check_move(row, "sent", again=again)
            held = self._budget.reserve(db, row, reserve) if reserve else {}
            at = self._database.stamp()
            sent_before = row["state"] in _AGAIN
            changes = {
                **held,
                "state": "sent",
                "billed": "unknown",
                "attempts": max(row["attempts"] + 1, attempt),
                "token": token,
                "sent_at": at,
                "charged_at": at,
                "payer": row["owner"],
            }
            if sent_before:
                changes |= _carry_over(row)
                detail = f"after it was {row['state']}, billed {row['billed']}, token {row['token']}"
                self._database.note(request_id, "resent", detail)
                # Else the earlier response's image rows would be taken for the next one's. The files stay.
                db.execute("DELETE FROM images WHERE request = ?", (request_id,))
            blank = ("answered_at", "finished_at", "error", "usage", "reply", "settled_micro", "billed_images")
            update(db, request_id, {**changes, "task_id": "", "trace": "", **dict.fromkeys(blank)})

    def mark_queued(self, request_id: str, error: SeedreamError | None = None) -> None:
        """Refused and not billed, or not sent, and will be tried again; the reservation stays.

        With ambiguous earlier attempts it becomes `unknown` instead, so that after a crash it is not sent as if new.
        """
        with self._database.write("no") as db:
            row = self._claimed_row(db, request_id)
            changes = {"error": self._masked.failure(error)}
            if row["doubts"] and row["state"] == "sent":
                to: State = "unknown"
                changes |= {"state": to, "billed": "unknown", "doubts": row["doubts"] - 1}
            else:
                to = "queued"
                changes |= {"state": to, "billed": "no"}
            _check_move(row, to)
            update(db, request_id, changes)

    def mark_waiting(self, request_id: str, task_id: str, *, trace: str = "") -> None:
        """The provider accepted it as a task, whose id is stored so that a killed run polls instead of paying again."""
        with self._database.write("yes") as db:
            row = self._claimed_row(db, request_id)
            _check_move(row, "waiting")
            changes = {
                "state": "waiting",
                "task_id": self._masked.text(task_id),
                "trace": self._masked.text(trace) or row["trace"],
            }
            update(db, request_id, {**changes, "reserved": 0, **dict.fromkeys(("reply", "error", "finished_at"))})

    def mark_ready(
        self,
        request_id: str,
        images: Sequence[ImageRow],
        *,
        usage: Mapping[str, Any] | None = None,
        billed_count: int | None = None,
        settled_micro: int | None = None,
        reply: Path | None = None,
        trace: str = "",
    ) -> None:
        """The response is parsed: flushed with all its links before any download starts.

        `billed_count` is the provider's count, None where it gave none; 0 means that nothing was billed. Images that
        are saved or printed already (from a stream, or an earlier run) stay so.
        """
        with self._database.write("yes") as db:
            row = self._claimed_row(db, request_id)
            _check_move(row, "ready")
            if (settled_micro or 0) > (row["worst_micro"] or 0):
                # More than was reserved.
                self._budget.reset_sums()
            db.executemany(schema.ANNOUNCE_IMAGE, [self._masked.image(request_id, image) for image in images])
            changes = {
                "state": "ready",
                "billed": "no" if billed_count == 0 else "yes",
                "billed_images": billed_count,
                "settled_micro": row["settled_micro"] if settled_micro is None else settled_micro,
                "usage": None if usage is None else self._masked.json(usage),
                "answered_at": row["answered_at"] or self._database.stamp(),
                "finished_at": None,
                "error": None,
                "reserved": 0,
                "reply": store_path(reply),
                "trace": self._masked.text(trace) or row["trace"],
            }
            update(db, request_id, changes)

    def mark_image(self, request_id: str, image: ImageRow) -> None:
        """One image is saved (call it after the file and its folder are flushed), handed out, failed or expired.

        Allowed while the request is in flight, since a stream sends images one by one.
        """
        with self._database.write("yes") as db:
            row = self._claimed_row(db, request_id)
            if row["state"] not in _IN_FLIGHT | {"unknown"}:
                raise InternalError(f"request {request_id} is {row['state']} and can have no new image")
            db.execute(schema.KEEP_IMAGE, self._masked.image(request_id, image))

    def mark_saved(self, request_id: str, *, settled_micro: int | None = None, image: ImageRow | None = None) -> None:
        """Every image is on disk, handed out, or lost for good. The stored response may be deleted after this.

        `image` is the last one, stored in the same transaction. Raises `InternalError` while an image is pending.
        """
        with self._database.write("yes") as db:
            row = self._claimed_row(db, request_id)
            _check_move(row, "saved")
            if image is not None:
                db.execute(schema.KEEP_IMAGE, self._masked.image(request_id, image))
            if _pending(db, row):
                raise InternalError(f"request {request_id} has images that are not saved")
            settled = row["settled_micro"] if settled_micro is None else settled_micro
            changes = {"state": "saved", "settled_micro": settled, "finished_at": self._database.stamp()}
            update(db, request_id, {**changes, "error": None, "reply": None, "owner": None})

    def mark_missing(self, request_id: str, indexes: Sequence[int]) -> None:
        """Files of a saved request were deleted: it is `ready` again, with these images pending."""
        with self._database.write("yes") as db:
            _check_move(self._claimed_row(db, request_id), "ready")
            marks = [(request_id, index) for index in indexes]
            db.executemany("UPDATE images SET state = 'pending' WHERE request = ? AND position = ?", marks)
            update(db, request_id, {"state": "ready", "finished_at": None})

    def mark_failed(self, request_id: str, error: SeedreamError) -> None:
        """It ended without an image for a known reason; `error.billed` is whether it was billed.

        A `ready` request with pending images stays `ready` and only the error is stored: paid images can be downloaded.
        """
        with self._database.write("unknown") as db:
            row = self._claimed_row(db, request_id)
            _check_move(row, "failed")
            if _pending(db, row):
                update(db, request_id, {"error": self._masked.failure(error)})
                return
            changes = {"state": "failed", "billed": error.billed, "finished_at": self._database.stamp(), "owner": None}
            update(db, request_id, {**changes, "error": self._masked.failure(error), "reserved": 0})

    def mark_unknown(self, request_id: str, error: SeedreamError, *, reply: Path | None = None) -> None:
        """Whether it was billed is not known. It is not sent again; `recover` may parse the stored response `reply`.

        A `ready` request with pending images stays so, as for `mark_failed`.
        """
        with self._database.write("unknown") as db:
            row = self._claimed_row(db, request_id)
            _check_move(row, "unknown")
            if _pending(db, row):
                update(db, request_id, {"error": self._masked.failure(error)})
                return
            changes = {"state": "unknown", "billed": "unknown", "finished_at": self._database.stamp(), "reserved": 0}
            kept = store_path(reply) or row["reply"]
            update(db, request_id, {**changes, "error": self._masked.failure(error), "reply": kept})

    def resolve(self, ids: Sequence[str], paid: Resolution, *, by: str = "the user") -> None:
        """Apply the user's decision: `paid` ends as `resolved`, `unpaid` becomes `queued`.

        A request that succeeded after an ambiguous attempt keeps its state; only `doubts` is reset. All or none: raises
        `InputError` for ids that are unknown, claimed by a living run, or not ambiguous.
        """
        entries = self.check_resolvable(ids)
        self._budget.reset_sums()
        with self._database.write("no") as db:
            for entry in entries.values():
                row = db.execute("SELECT * FROM requests WHERE id = ?", (entry.id,)).fetchone()
                update(db, entry.id, _resolved(row, paid))
                self._database.note(entry.id, "resolved", f"{paid}, by {by}; it was {row['state']}")

    def check_resolvable(self, ids: Sequence[str]) -> dict[str, Entry]:
        """The requests of these ids. Raises `InputError` for those that `resolve` would refuse."""
        with self._database.read() as db:
            entries = {entry.id: entry for entry in by_ids(db, ids)}
        problems = [problem for one in ids if (problem := self._resolve_problem(one, entries.get(one)))]
        if problems:
            raise InputError(problems)
        return entries

    def _resolve_problem(self, request_id: str, entry: Entry | None) -> Problem | None:
        """Why a request cannot be resolved; None where it can."""
        if entry is None:
            return Problem("id", f"the ledger knows no request {request_id}", "`seedream history` lists them")
        if entry.owner and self._locks.is_alive(entry.owner):
            return Problem("id", f"{request_id} is in the hands of a run that lives", "wait for it")
        if entry.state == "sent":
            return Problem("id", f"{request_id} is not settled yet", "try again")
        if entry.state == "ready" and entry.billed == "unknown" and entry.reply and entry.reply.is_file():
            way = f"`seedream recover {request_id}` reads it"
            return Problem("id", f"the answer to {request_id} is here and was not read yet", way)
        if not entry.doubts and not _is_ambiguous(entry.state, entry.billed):
            way = f"`seedream recover {request_id}` saves what was paid for" if entry.state == "ready" else ""
            return Problem("id", f"{request_id} is {entry.status}: there is nothing to resolve", way)
        return None

    def note(self, request_id: str, what: str, detail: str = "") -> None:
        """Add a note to a request, such as `recovered`."""
        with self._database.write("yes"):
            self._database.note(request_id, what, detail)

    def _claimed_row(self, db: sqlite3.Connection, request_id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = db.execute(schema.CLAIMED_ROW, (request_id,)).fetchone()
        if row is None:
            raise InternalError(f"the ledger knows no request {request_id}")
        if not self._locks.is_held(row["owner"]):
            raise InternalError(f"request {request_id} is not in the hands of this process")
        return row


def _pending(db: sqlite3.Connection, row: sqlite3.Row) -> int:
    """How many images of a `ready` request are pending."""
    if row["state"] != "ready":
        return 0
    pending = "SELECT count(*) FROM images WHERE request = ? AND state = 'pending'"
    return int(db.execute(pending, (row["id"],)).fetchone()[0])


def _carry_over(row: sqlite3.Row) -> dict[str, int]:
    """The columns that keep the cost of an earlier attempt when the request is sent again."""
    if row["billed"] == "yes":
        cost = row["worst_micro"] if row["settled_micro"] is None else row["settled_micro"]
        return {"earlier_micro": row["earlier_micro"] + (cost or 0)}
    return {"doubts": row["doubts"] + (row["billed"] == "unknown")}


def _is_ambiguous(state: State, billed: Billed) -> bool:
    """Whether the request itself, not only earlier attempts, may have been billed and can be resolved."""
    return state in {"waiting", "unknown", "resolved"} or billed == "unknown"


def _resolved(row: sqlite3.Row, paid: Resolution) -> dict[str, Any]:
    """The columns that a resolution changes; ambiguous earlier attempts are resolved with it."""
    changes: dict[str, Any] = {"doubts": 0}
    if paid == "paid":
        changes["earlier_micro"] = row["earlier_micro"] + row["doubts"] * (row["worst_micro"] or 0)
    if not _is_ambiguous(row["state"], row["billed"]):
        return changes
    state: State = "resolved" if paid == "paid" else "queued"
    return {**changes, "state": state, "billed": "yes" if paid == "paid" else "no", "reserved": 0, "owner": None}
