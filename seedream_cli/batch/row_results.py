"""What became of a row: its requests in the ledger and its files on disk, as a line of results.csv."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import providers
from ..errors import LinkError
from ..ledger.records import Entry
from ..request.models import ModelSpec, find_model
from ..request.sizes import size_gap
from ..results import Money
from ..storage.image_info import inspect
from .results_file import RowResult


@dataclass(frozen=True, slots=True)
class SavedFiles:
    """The images in a batch's folder, wherever that lies now; with `verify` their contents are looked at."""

    home: Path
    verify: bool = False

    def path(self, stored: Path | None) -> Path:
        """An image's file."""
        return self.home / (stored or Path())

    def gone(self, entry: Entry) -> list[int]:
        """Which images were saved and are not there any more, or are damaged."""
        rows = (row for row in entry.images if row.state == "saved" and row.path is not None)
        return [
            row.index for row in rows if not is_saved_file(self.path(row.path), row.bytes, row.sha256 * self.verify)
        ]


def is_saved_file(path: str | Path, size: int | None, sha256: str = "") -> bool:
    """Whether a file is still the image that was saved: by its size, and by its contents where `sha256` is given.

    Another size is a damaged file, unless it is a whole image: that is what the user made of it.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - a hundred thousand of them
        if not stat.S_ISREG(found.st_mode):
            return False
        # No image has no bytes: its size was not written down.
        if not sha256 and (not size or found.st_size == size):
            return True
        return inspect(Path(path)).sha256 == sha256 if sha256 else bool(inspect(Path(path)))
    except (OSError, LinkError):
        return False


def row_result(entries: Sequence[Entry], files: SavedFiles) -> RowResult:
    """One row, all its requests together."""
    images = [image for entry in entries for image in entry.images]
    errors = [error for entry in entries for error in (entry.error, *(p.error for p in entry.images)) if error]
    words = [error.message for error in errors] + [_LEFT_OPEN for entry in entries if entry.state == "sent"]
    states = [_status(entry, files) for entry in entries]
    status = states[0] if len(set(states)) == 1 else next(word for word in _WORDS if word in states)
    paid = [entry for entry in entries if entry.billed != "no" or entry.earlier_micro]
    known = [entry for entry in paid if entry.settled_micro is not None or entry.worst_micro is not None]
    micro = sum(cost_of(entry) for entry in known)
    traces = [text for e in entries for text in (e.trace, e.error.request_id if e.error else "") if text]
    return RowResult(
        "partial" if len(set(states)) > 1 and "succeeded" in states else status,
        "|".join(str(files.path(p.path)) if p.path else p.link for p in images if p.state in {"saved", "handed"}),
        "; ".join(dict.fromkeys(words)),
        "; ".join(dict.fromkeys(error.provider_code for error in errors if error.provider_code)),
        "unknown" if any(e.billed == "unknown" for e in entries) else "yes" if paid else "no",
        f"{Money(micro).amount:.6f}".rstrip("0").rstrip(".") if known else "",
        "; ".join(dict.fromkeys(traces)),
        "; ".join(dict.fromkeys(words for entry in entries for words in _gaps(entry))),
    )


_LEFT_OPEN = "it was out when the run ended; the same command reads what came of it, if anything did"

_WORDS = (
    "unknown",
    "unsaved",
    "submitted",
    "failed",
    "partial",
    "missing",
    "resolved",
    "unsent",
    "running",
    "succeeded",
)


def _status(entry: Entry, files: SavedFiles) -> str:
    """The word for a request in the results."""
    if entry.state in {"saved", "resolved"} and files.gone(entry):
        return "missing"
    # A run that is over has nothing under way.
    return {"queued": "unsent", "sent": "unknown"}.get(entry.state, entry.status)


def _gaps(entry: Entry) -> Iterator[str]:
    """Where the images of a request are not what its body asked for."""
    size, format_ = entry.body.get("size"), entry.body.get("output_format")
    if any("layer" in name for name in entry.body):
        return
    for row in entry.images:
        if row.state != "saved":
            continue
        model = _model(entry.provider, entry.model)
        if isinstance(size, str) and (gap := size_gap(model, size, row.width, row.height)):
            yield gap
        if isinstance(format_, str) and row.format and row.format != format_:
            yield f"{format_} was asked for, and {row.format} came"


@functools.cache
def _model(provider: str, model_id: str) -> ModelSpec | None:
    return find_model(model_id, providers.load(provider).spec.spelling) if provider in providers.PROVIDERS else None


def cost_of(entry: Entry) -> int:
    """What a request may have cost, in millionths."""
    return entry.earlier_micro + (0 if entry.billed == "no" else own_cost_of(entry) or 0)


def own_cost_of(entry: Entry) -> int | None:
    """The same without its earlier attempts, if it was billed at all; None where no price is known."""
    # Of what came in part the images are certain; where nothing came, the price of the request is what it may be.
    is_settled = entry.settled_micro is not None and (entry.billed != "unknown" or entry.settled_micro > 0)
    return entry.settled_micro if is_settled else entry.worst_micro
