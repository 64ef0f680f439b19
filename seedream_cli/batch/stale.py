"""Why a row of an edited table would run again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from ..ledger.records import Entry
from .options import STEP
from .run import _RUNS, Batch
from .table import Row


def explain_stale(batch: Batch) -> Iterator[tuple[Row, str]]:
    """Each row that would run, and why."""
    earlier: dict[str, str] = {}
    for request_id, row_id, position in batch.ledger.unlisted(batch.run):
        earlier[f"id {row_id}" if row_id else f"row {position // STEP}"] = request_id
    rows = batch.row_requests.table.rows(batch.row_requests.columns)
    for number, group in itertools.groupby(batch.doubtful(), key=lambda entry: entry.position // STEP):
        due = [entry for entry in group if batch.action(entry) in _RUNS]
        row = next((row for row in rows if row.number == number), None)
        if due and row is not None:
            yield row, "; ".join(dict.fromkeys(_why(entry, batch, earlier) for entry in due))


def _why(entry: Entry, batch: Batch, earlier: Mapping[str, str]) -> str:
    if entry.state == "queued" and entry.run != batch.run.id:
        return "unfinished: it was not sent yet"
    if entry.state == "queued":
        row = entry.position // STEP
        before = earlier.get(f"id {entry.row_id}" if entry.row_id else f"row {row}")
        found = batch.ledger.find(before) if before else ()
        return f"changed: {_difference(found[0], entry)}" if found else "new"
    if entry.state == "failed":
        return f"failed before: {entry.error.message if entry.error else 'no reason was kept'}"
    if entry.state == "unknown":
        return "of unknown outcome, to be sent again on your order"
    if entry.state in {"waiting", "ready", "sent"}:
        return "paid and not saved: fetched free of charge"
    fetched = batch.action(entry) == "fetch"
    return "its file is gone: fetched again, free of charge" if fetched else "its file is gone: made and paid for again"


def _difference(old: Entry, new: Entry) -> str:
    """What a row asks for that it did not ask for before."""
    pairs = {
        "provider": (old.provider, new.provider),
        "model": (old.model, new.model),
        "prompt": (old.prompt, new.prompt),
    }
    keys = dict.fromkeys((*old.body, *new.body))
    pairs |= {key: (old.body.get(key), new.body.get(key)) for key in keys if key not in pairs}
    differing = [name for name, (one, other) in pairs.items() if one != other]
    return ", ".join(differing) or "what its images hold, or which of several equal rows it is"
