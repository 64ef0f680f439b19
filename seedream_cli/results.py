"""What comes out of a run: events while it lasts, a report when it ends. Plain frozen records, no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from .errors import EXIT_CODES, PARTIAL, Problem, SeedreamError

Status = Literal["succeeded", "partial", "failed", "unknown", "submitted", "planned", "interrupted"]


@dataclass(frozen=True, slots=True)
class Base64Slice:
    """A base64 image left where it lies: `length` characters at byte `offset` of the file `path`.

    With `is_raw` they are the image's own bytes and no base64.
    """

    path: Path
    offset: int
    length: int
    is_raw: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layered answer says of one layer (sources: the image generation API, `layer_decomposition`).

    `absolute` is left, top, right, bottom in pixels of the base image; `normalized` the same in 0..1000.
    """

    z_index: int
    name: str = ""
    description: str = ""
    absolute: tuple[int, ...] = ()
    normalized: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderImage:
    """One image of a provider's answer, not yet on disk: a link, or base64, or an error.

    Base64 stands in the kept reply (`blob`) or, short or from a stream, here (`base64`, without a `data:` prefix).
    """

    index: int
    link: str = ""
    blob: Base64Slice | None = None
    size: str = ""
    format: str = ""
    error: SeedreamError | None = None
    layer: Layer | None = None
    base64: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class SavedImage:
    """One image at the end of its way: on disk (`path`), printed as a link (`url` alone), or failed (`error`)."""

    index: int
    path: Path | None = None
    url: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0
    sha256: str = ""
    error: SeedreamError | None = None
    layer: Layer | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Money. `amount` in `currency`; `as_of` is the month the price was known to hold, `note` what limits that."""

    amount: float
    currency: str
    as_of: str
    note: str = ""


_MICRO = 1_000_000
"""Sums are made of whole micro-units of a currency (0.04 USD is 40000), since floats of decimals do not add up."""


@dataclass(frozen=True, slots=True)
class Money:
    """An exact amount, as the ledger adds it up: so many micro-units of a currency."""

    micro: int
    currency: str = "USD"

    @property
    def amount(self) -> float:
        """The same in whole units, for prices and for who reads it."""
        return self.micro / _MICRO

    def cost(self, as_of: str, note: str = "") -> Cost:
        """It as what a request cost."""
        return Cost(self.amount, self.currency, as_of, note)


def to_micro(cost: Cost | None) -> int | None:
    """Whole micro-units, never rounded down, so that no price is nothing; None where no price is known."""
    # The crumb is what a float of a decimal has too much.
    return None if cost is None else max(math.ceil(cost.amount * _MICRO - 1e-4), int(cost.amount > 0))


def cap_micro(amount: float | None) -> int | None:
    """A budget in whole micro-units, never rounded up; the crumb is what a float of a decimal lacks."""
    return None if amount is None else math.floor(amount * _MICRO + 1e-4)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: the whole request, the provider's share, the downloads' share."""

    total_s: float = 0.0
    provider_s: float = 0.0
    download_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobResult:
    """One request at its end. `request` is the body as sent, references shown as name, sha256 and bytes.

    `cost` is the most that it was charged for, `possible` the part of that which may not have been charged at all.
    `in_ledger` is False for what no ledger knows of, so that there is nothing to resolve.
    `kept` is its reply, where nobody found an image in that.
    """

    index: int
    id: str
    status: Status
    provider: str
    model: str
    request: Mapping[str, Any]
    images: tuple[SavedImage, ...] = ()
    usage: Mapping[str, Any] | None = None
    cost: Cost | None = None
    possible: Cost | None = None
    warnings: tuple[Problem, ...] = ()
    error: SeedreamError | None = None
    attempts: int = 0
    timing: Timing = field(default_factory=Timing)
    asked_up_to: int | None = None
    task_id: str = ""
    in_ledger: bool = True
    kept: Path | None = None

    @property
    def certain(self) -> Cost | None:
        """What it was charged for sure; None where its price is not known."""
        if self.cost is None or self.possible is None:
            return self.cost
        return replace(self.cost, amount=self.cost.amount - self.possible.amount)

    @property
    def exit_code(self) -> int:
        """What this request alone would end the process with."""
        if self.status in {"succeeded", "submitted", "planned"}:
            return 0
        if self.status == "partial":
            return PARTIAL
        return self.error.exit_code if self.error else 1


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run: its requests in order, the warnings that concern all of them, and the exit code they add up to."""

    command: str
    jobs: tuple[JobResult, ...]
    warnings: tuple[Problem, ...] = ()
    elapsed_s: float = 0.0
    signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """A signal wins; else 0, the common code where nothing succeeded, 10 where the budget ended it, or 9."""
        if self.signal_number is not None:
            return 128 + self.signal_number
        codes = {job.exit_code for job in self.jobs}
        if not codes:
            return 0
        if len(codes) == 1:
            return codes.pop()
        if 0 in codes or PARTIAL in codes:
            # More money would have gone on: that is told apart from what failed.
            return EXIT_CODES["budget"] if EXIT_CODES["budget"] in codes else PARTIAL
        # Nothing succeeded, and for several reasons: the one that needs a person most urgently speaks.
        return next(code for code in _URGENCY if code in codes)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What became of a table's rows; of the results themselves only the first that went wrong.

    `succeeded` rows were finished now, `skipped` ones had nothing to do, or were not asked for; `unsent` ones are
    left. `failed` and `unknown` count what stands so from an earlier run too. `codes` are the exit codes of all rows
    that were asked for. `cost` is certain, `possible` is what unknown outcomes of this run may have cost; `unpriced`
    requests were paid at a price that is not known. `halt` is why rows are left, unless a signal is.
    """

    rows: int
    succeeded: int = 0
    failed: int = 0
    unknown: int = 0
    skipped: int = 0
    unsent: int = 0
    images: int = 0
    cost: Cost | None = None
    possible: Cost | None = None
    unpriced: int = 0
    elapsed_s: float = 0.0
    codes: frozenset[int] = frozenset()
    worst: tuple[JobResult, ...] = ()
    signal_number: int | None = None
    halt: SeedreamError | None = None

    @property
    def exit_code(self) -> int:
        """A signal wins, then the budget, then what stopped the run before anything was paid; else as for a report."""
        if self.signal_number is not None:
            return 128 + self.signal_number
        if self.halt and self.halt.kind == "budget":
            return self.halt.exit_code
        if self.halt and self.halt.kind != "unavailable" and not (self.images or self.unknown):
            return self.halt.exit_code
        codes = self.codes
        if len(codes) <= 1:
            return next(iter(codes), 0)
        return PARTIAL if codes & {0, PARTIAL} else next(code for code in _URGENCY if code in codes)


_URGENCY = (74, 8, 7, 10, 3, 5, 6, 4, 2, 130, 143, 1)


@dataclass(frozen=True, slots=True)
class Planned:
    """The run is about to start with so many requests; `images` is the most they can return."""

    requests: int
    images: int
    provider: str
    model: str


@dataclass(frozen=True, slots=True)
class Stage:
    """Request `job` entered a stage: `connecting`, `sent` (the provider is at work), `polling`, `receiving`, `done`.

    `done` means answered: what remains is to save the images. `title` is what the user knows the request by.
    """

    job: int
    stage: Literal["connecting", "sent", "polling", "receiving", "done"]
    detail: str = ""
    title: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Retrying:
    """Request `job` (or a download, `what`) will be tried again in `wait_s` seconds, because of `reason`."""

    job: int
    what: str
    wait_s: float
    reason: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Downloading:
    """Bytes of image `index` of request `job` so far, of `total` where the server says."""

    job: int
    index: int
    received: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Saved:
    """An image is on disk under its final name (or its link is ready to print)."""

    job: int
    image: SavedImage


@dataclass(frozen=True, slots=True)
class Finished:
    """A request ended, well or badly."""

    result: JobResult


@dataclass(frozen=True, slots=True)
class Draining:
    """A signal came: nothing new is sent, `in_flight` requests are finished and saved first, in `most_s` seconds."""

    signal_name: str
    in_flight: int
    most_s: float | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A line for the user that is no error: which proxy, which provider, what was renamed."""

    message: str


Event = Planned | Stage | Retrying | Downloading | Saved | Finished | Draining | Notice


class Sink(Protocol):
    """Where events go. The engine never knows whether that is a terminal, a log or nothing."""

    def emit(self, event: Event) -> None:
        """Take one event; must not raise and must not block."""
