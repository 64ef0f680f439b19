"""The ledger's records."""

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

RequestStatus = Literal[
    "unsent", "running", "submitted", "unsaved", "succeeded", "partial", "failed", "unknown", "resolved"
]

Resolution = Literal["paid", "unpaid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRequest:
    """A request to insert. `worst_micro` is the most it may cost, None where no price is known.

    `body` is the request body; references in it are stored by name, sha256 and bytes. `fields` are for file names,
    `output` is the target. `identity` and `occurrence` identify a batch's row; without identity the request belongs to
    the run that inserts it. `file`, `line` and `row_id` locate a row in its table.
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
    """A stored error: `code` as in the JSON output, `provider_code` and the rest as in `ApiError`."""

    code: str
    message: str
    hint: str = ""
    provider_code: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """One image of a request.

    `pending`: paid, not on disk; `saved`: on disk at `path`; `handed`: printed as a link or written to standard output;
    `failed`: not made by the provider; `expired`: paid, and its URL no longer works. `expires` is a Unix time, None
    where it is not known.
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
    """A stored request. Times are aware, in UTC.

    `status` is the state for users: `unsent`, `running`, `submitted` (a task is open), `unsaved` (paid, not on disk),
    `succeeded`, `partial`, `failed`, `unknown`, `resolved`. `run` inserted it, `owner` has claimed it. `doubts` counts
    earlier attempts that may have been billed too; `earlier_micro` is the certain cost of earlier ones. `reply` is the
    stored response of a process that died before it parsed it.
    """

    id: str
    run: str
    owner: str | None
    position: int
    state: State
    status: RequestStatus
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
        """Indexes of images that are no file but have a URL: expired, printed, or deleted since. Paths are relative to
        a batch's `folder`.
        """
        return [row.index for row in self.images if row.link and _is_missing(row, folder or Path())]


@dataclass(frozen=True, slots=True)
class Unsent:
    """A queued request: what is needed to send it; the rest is in the table."""

    id: str
    position: int
    occurrence: int


class Queued(NamedTuple):
    """A queued request: what is needed to estimate the cost."""

    position: int
    images_at_most: int
    worst_micro: int | None


class Saved(NamedTuple):
    """A saved request: what is needed to check its files. `images` are (state, stored path, bytes)."""

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
    """The cost of a sent request in micro-units: `paid` for certain, `possible` beyond that."""

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
    """An event of a request: `resolved`, `resent`, `recovered`, `orphaned`; `purged` has no request."""

    request: str | None
    at: dt.datetime
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class Spent:
    """Micro-units of `currency`: paid for certain, reserved for requests in flight, and possibly charged.

    `unpriced` counts requests of unknown cost (no price, or another currency).
    """

    paid: int
    reserved: int
    possible: int
    unpriced: int
    currency: str

    @property
    def total(self) -> int:
        """The sum of the three, which is compared with a budget."""
        return self.paid + self.reserved + self.possible


@dataclass(frozen=True, slots=True)
class Caps:
    """The most that a run, and all processes on a local day, may cost, in micro-units; None for no limit.

    `batch` is for all runs of this ledger, `part` for the rows of a shard, those whose identity `has_row` accepts.
    """

    run: int | None = None
    daily: int | None = None
    currency: str = "USD"
    batch: int | None = None
    part: int | None = None
    has_row: Callable[[str], bool] | None = None

    @property
    def any(self) -> bool:
        """Whether there is any limit."""
        return any(cap is not None for cap in (self.run, self.daily, self.batch, self.part))

    def within(self, other: Caps) -> Caps:
        """The lower of each limit of a run and day."""
        runs, days = (
            [cap for cap in pair if cap is not None] for pair in ((self.run, other.run), (self.daily, other.daily))
        )
        return replace(self, run=min(runs, default=None), daily=min(days, default=None))


@dataclass(frozen=True, slots=True)
class Reservation:
    """The worst cost of a request in micro-units, None where no price is known, and the caps to check it against."""

    micro: int | None
    caps: Caps


@dataclass(frozen=True, slots=True)
class Entered:
    """How many requests were new, and how many were known."""

    new: int
    known: int


@dataclass(frozen=True, slots=True)
class RecoveredOrphans:
    """Ids of orphans whose complete response was found, and of those whose outcome is unknown."""

    ready: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Purged:
    """How many requests were deleted, and how many kept because they are unsaved, unknown or in flight."""

    removed: int
    kept: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """How many requests, their images and cost at most, and how many without a known price."""

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
