"""The records that the ledger gives and takes."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import Billed

State = Literal["queued", "sent", "waiting", "ready", "saved", "failed", "unknown", "resolved"]

ImageState = Literal["pending", "saved", "handed", "failed", "expired"]

Standing = Literal["unsent", "running", "submitted", "unsaved", "succeeded", "partial", "failed", "unknown", "resolved"]

Resolution = Literal["paid", "unpaid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRequest:
    """A request to enter. `worst_micro` is the most it may cost, None where no price is known.

    `body` is the body as sent; references in it are stored by name, sha256 and bytes. `fields` is what names are made
    of, `output` where the images go. `identity` and `occurrence` name a batch's row; without an identity the
    request belongs to the run that enters it. `file`, `line` and `row_id` say where a row stands in its table.
    """

    id: str
    position: int
    provider: str
    base_url: str
    model: str
    prompt: str | None
    body: Mapping[str, Any]
    fingerprint: str
    images_at_most: int = 1
    worst_micro: int | None = None
    currency: str = "USD"
    as_of: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""
    occurrence: int = 0
    row_id: str = ""
    file: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it was written down: the JSON output's `code`, and the provider's own words."""

    code: str
    message: str
    hint: str = ""
    provider_code: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """One image of a request.

    `pending`: paid and not on disk; `saved`: on disk at `path`; `handed`: given out as a link or to standard output;
    `failed`: the provider did not make it; `expired`: paid, and its link is dead. `expires` is when the link dies, in
    seconds since 1970, None where that is not known.
    """

    index: int
    state: ImageState = "pending"
    link: str = ""
    expires: int | None = None
    path: Path | None = None
    format: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0
    sha256: str = ""
    error: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request as the ledger has it. Times are aware, in UTC.

    `status` is the user's word for its state: `unsent`, `running`, `submitted` (a task is open), `unsaved` (paid, not
    on disk), `succeeded`, `partial`, `failed`, `unknown`, `resolved`. `run` entered it, `owner` has it in hand.
    `doubts` counts earlier attempts that may have been billed too; `earlier_micro` is what earlier ones cost for sure.
    `reply` is the kept reply of a process that died before it read it.
    """

    id: str
    run: str
    owner: str | None
    position: int
    state: State
    status: Standing
    provider: str
    base_url: str
    model: str
    prompt: str | None
    body: Mapping[str, Any]
    fingerprint: str
    identity: str | None
    occurrence: int
    row_id: str
    file: str
    line: int | None
    images_at_most: int
    worst_micro: int | None
    settled_micro: int | None
    earlier_micro: int
    currency: str
    as_of: str
    fields: Mapping[str, str]
    output: Mapping[str, Any]
    attempts: int
    entered_at: dt.datetime
    sent_at: dt.datetime | None
    answered_at: dt.datetime | None
    finished_at: dt.datetime | None
    billed: Billed
    doubts: int
    error: Failure | None
    usage: Mapping[str, Any] | None
    task_id: str
    trace: str
    reply: Path | None
    images: tuple[ImageRow, ...]

    def links_left(self, folder: Path | None = None) -> list[int]:
        """The images that are no file, and whose links may be asked: expired ones, those that were handed out, and
        those whose files are gone. Paths are relative to a batch's `folder`.
        """
        return [row.index for row in self.images if row.link and _is_missing(row, folder or Path())]


@dataclass(frozen=True, slots=True)
class Unsent:
    """A queued row, as far as it takes to send it: the rest is in the table."""

    id: str
    position: int
    occurrence: int


class Queued(NamedTuple):
    """A queued request, as far as it takes to count what it may come to."""

    position: int
    images_at_most: int
    worst_micro: int | None


class Saved(NamedTuple):
    """A saved request, as far as it takes to look for its files: state, stored path and bytes of each image."""

    id: str
    position: int
    images: tuple[tuple[ImageState, str | bytes | None, int], ...]


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run. `finished_at` is None while it lives, and where it was killed."""

    id: str
    started_at: dt.datetime
    finished_at: dt.datetime | None
    folder: str


class Charge(NamedTuple):
    """What a request that was sent cost, for sums: in micro-units, certain and possible, and whether that is known."""

    id: str
    at: dt.datetime
    provider: str
    model: str
    images: int
    paid: int
    possible: int
    is_priced: bool
    currency: str


@dataclass(frozen=True, slots=True)
class Note:
    """What was done to a request beside its way: `resolved`, `resent`, `recovered`, `orphaned`; `purged` names none."""

    request: str | None
    at: dt.datetime
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class Spent:
    """Money in micro-units of `currency`: certain, held for what is out or about to go, and possibly charged.

    `unpriced` counts requests that cost something that is not known (no price, or another currency).
    """

    paid: int
    reserved: int
    possible: int
    unpriced: int
    currency: str

    @property
    def total(self) -> int:
        """All three: what a budget counts."""
        return self.paid + self.reserved + self.possible


@dataclass(frozen=True, slots=True)
class Caps:
    """The most a run, and a local day over all processes, may cost, in micro-units; None for no limit.

    `batch` is the most that all runs of this ledger may cost together, and `part` of that the share of those rows
    for whose identity `has_row` says yes, as of a shard.
    """

    run: int | None = None
    daily: int | None = None
    currency: str = "USD"
    batch: int | None = None
    part: int | None = None
    has_row: Callable[[str], bool] | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return any(cap is not None for cap in (self.run, self.daily, self.batch, self.part))

    def within(self, other: Caps) -> Caps:
        """Both, of a run: the lower of each."""
        runs, days = (
            [cap for cap in pair if cap is not None] for pair in ((self.run, other.run), (self.daily, other.daily))
        )
        return replace(self, run=min(runs, default=None), daily=min(days, default=None))


@dataclass(frozen=True, slots=True)
class Hold:
    """The worst cost of a request in micro-units, None where no price is known, and the budgets it is held against."""

    micro: int | None
    caps: Caps


@dataclass(frozen=True, slots=True)
class Entered:
    """How many requests were new and how many rows the ledger knew already."""

    new: int
    known: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of the orphans: ids whose whole reply was found, ids whose outcome is unknown."""

    ready: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Purged:
    """How many requests were removed, and how many stayed because they are unsaved, unknown or in flight."""

    removed: int
    kept: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What requests may come to: how many, their images and cost at most, and how many have no known price."""

    requests: int = 0
    images: int = 0
    micro: int = 0
    unpriced: int = 0

    def __add__(self, other: Forecast) -> Forecast:
        return Forecast(
            self.requests + other.requests,
            self.images + other.images,
            self.micro + other.micro,
            self.unpriced + other.unpriced,
        )


def _is_missing(row: ImageRow, folder: Path) -> bool:
    if row.path is None:
        return row.state in {"expired", "handed"}
    return row.state == "saved" and not os.path.lexists(folder / row.path)
