"""What there is to do for a job: send a new request, or fetch what was paid for before, at no cost."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path

from ..providers.contract import Ready
from ..results import SavedImage


@dataclass(frozen=True, slots=True)
class Send:
    """A new request. `again`: it ended before, and is sent once more on the user's order."""

    again: bool = False


@dataclass(frozen=True, slots=True)
class Reuse:
    """The files of an earlier request that was the same: nothing is sent."""

    images: tuple[SavedImage, ...]


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of a request that was paid for before.

    `most` is how many images were asked for, 0 where nobody knows. The images in `have` are on disk; `lost` were
    refused, or their links are dead. `sent_at` and `answered_at` are when that was. `is_settled` marks one that ended,
    and keeps that end unless its images come. `barred` is an address out of a ledger or a kept reply that nothing of
    this run names: a task there stays open, since no key goes there.
    """

    most: int = 0
    have: frozenset[int] = frozenset()
    lost: tuple[SavedImage, ...] = ()
    sent_at: dt.datetime | None = None
    answered_at: dt.datetime | None = None
    is_settled: bool = False
    barred: str = ""


@dataclass(frozen=True, slots=True)
class FetchReply:
    """Read a reply that was kept, and fetch what it names. `task_id` is the task that it started, if it did."""

    path: Path
    task_id: str = ""
    earlier: Earlier = field(default_factory=Earlier)


@dataclass(frozen=True, slots=True)
class FetchLinks:
    """Fetch the links that the ledger has."""

    ready: Ready
    earlier: Earlier = field(default_factory=Earlier)


@dataclass(frozen=True, slots=True)
class PollTask:
    """Ask after a task until its images are made."""

    task_id: str
    earlier: Earlier = field(default_factory=Earlier)


Fetch = FetchReply | FetchLinks | PollTask

Work = Send | Reuse | Fetch
