"""The results of a run: events while it lasts, a report at its end. Frozen dataclasses, no I/O."""

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
    """A base64 image inside a file: `length` characters at byte `offset` of `path`.

    With `is_raw` the bytes are the image itself and not base64.
    """

    path: Path
    offset: int
    length: int
    is_raw: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a response to `layer_decomposition` (image generation API).

    `absolute` is left, top, right, bottom in pixels of the base image; `normalized` the same in 0..1000.
    """

    z_index: int
    name: str = ""
    description: str = ""
    absolute: tuple[int, ...] = ()
    normalized: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderImage:
    """One image of a response, not yet on disk: a URL, base64, or an error.

    Base64 is in the stored response (`blob`) or, if short or from a stream, in `base64`, without a `data:` prefix.
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
    """One image of a result: on disk (`path`), printed (`url` alone), or failed (`error`)."""

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
    """An amount of money. `as_of` is the month of the price, `note` a reservation about it."""

    amount: float
    currency: str
    as_of: str
    note: str = ""


_MICRO = 1_000_000
"""Sums are of whole micro-units of a currency (0.04 USD is 40000), since binary floats do not add up exactly."""


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
    """Whole micro-units, rounded up, so that no price becomes 0; None where no price is known."""
    # 1e-4: the error of the float.
    return None if cost is None else max(math.ceil(cost.amount * _MICRO - 1e-4), int(cost.amount > 0))


def cap_micro(amount: float | None) -> int | None:
    """A budget in whole micro-units, rounded down."""
    return None if amount is None else math.floor(amount * _MICRO + 1e-4)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: the whole request, the provider's share, the downloads' share."""

    total_s: float = 0.0
    provider_s: float = 0.0
    download_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobResult:
    """The result of a request. `request` is the body as sent, references as name, sha256 and bytes.

    `cost` is the most that was charged, `possible` the part of that which may not have been charged. `in_ledger` is
    False where no ledger has the request, so it cannot be resolved. `kept` is the stored response where no image was
    found in it.
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
        """The cost that is certain; None where the price is not known."""
        if self.cost is None or self.possible is None:
            return self.cost
        return replace(self.cost, amount=self.cost.amount - self.possible.amount)

    @property
    def exit_code(self) -> int:
        """The exit code of a run with this request alone."""
        if self.status in {"succeeded", "submitted", "planned"}:
            return 0
        if self.status == "partial":
            return PARTIAL
        return self.error.exit_code if self.error else 1


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run: its requests in order, and warnings that concern all of them."""

    command: str
    jobs: tuple[JobResult, ...]
    warnings: tuple[Problem, ...] = ()
    elapsed_s: float = 0.0
    signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + signal; else 0, the common code where nothing succeeded, 10 where the budget ended it, or 9."""
        if self.signal_number is not None:
            return 128 + self.signal_number
        codes = {job.exit_code for job in self.jobs}
        if not codes:
            return 0
        if len(codes) == 1:
            return codes.pop()
        if 0 in codes or PARTIAL in codes:
            # 10 and not 9: with a higher budget the run would have continued.
            return EXIT_CODES["budget"] if EXIT_CODES["budget"] in codes else PARTIAL
        # Nothing succeeded, for several reasons: the most urgent one.
        return next(code for code in _URGENCY if code in codes)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The result of a batch: counts of rows, and the first failed results.

    `succeeded` rows were finished now, `skipped` ones were done or not selected, `unsent` ones are left. `failed` and
    `unknown` include rows of earlier runs. `codes` are the exit codes of all selected rows. `cost` is certain,
    `possible` is of unknown outcomes in this run; `unpriced` requests were paid at an unknown price. `halt` is why rows
    are left, unless it was a signal.
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
        """128 + signal, else the budget's, else that of an error before anything was paid, else as in `Report`."""
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
    """The run starts; `images` is the most that the requests can return."""

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
    """Request `job` or its download (`what`) will be retried in `wait_s` seconds."""

    job: int
    what: str
    wait_s: float
    reason: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Downloading:
    """Bytes of image `index` received so far, of `total` (Content-Length) or None."""

    job: int
    index: int
    received: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Saved:
    """An image is on disk under its final name, or its URL is ready to print."""

    job: int
    image: SavedImage


@dataclass(frozen=True, slots=True)
class Finished:
    """A request ended, with success or failure."""

    result: JobResult


@dataclass(frozen=True, slots=True)
class Draining:
    """A signal was received: nothing new is sent, `in_flight` requests are finished within `most_s` seconds."""

    signal_name: str
    in_flight: int
    most_s: float | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A note for the user: which proxy, which provider, what was renamed."""

    message: str


Event = Planned | Stage | Retrying | Downloading | Saved | Finished | Draining | Notice


class Sink(Protocol):
    """Receives events: a display, a log or nothing."""

    def emit(self, event: Event) -> None:
        """Handle one event; must not raise or block."""
