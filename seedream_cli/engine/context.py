"""What the jobs of a run share: the sink, the clock, the recorder, the slots and the signals."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ApiError, InterruptedRunError, SeedreamError
from ..network.policy import Clock
from ..results import Planned, Sink
from ..storage.fsync_batch import FsyncBatch
from ..storage.reply_journal import Journal
from .plan import Job
from .recorder import NullRecorder, Recorder

CONCURRENCY = 8

DOWNLOADS = 8


@dataclass(frozen=True, slots=True)
class JobStream:
    """The jobs of a run, drawn one by one, so that a hundred thousand take no more room than a thousand.

    `planned` counts the requests among them. `known` are jobs that are there before the run begins, and go before
    `jobs`: the clients that they need are opened, and they are entered in the ledger, before the first of them leaves.
    `concurrency` requests are sent at once. Once `max_failures` have failed no more is drawn (0: no bound).
    """

    planned: Planned
    jobs: Iterable[Job] = ()
    known: tuple[Job, ...] = ()
    concurrency: int = CONCURRENCY
    max_failures: int = 0


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended: after which time, by which signal, and why it took no new job before all were drawn."""

    elapsed_s: float
    signal_number: int | None = None
    halt: SeedreamError | None = None


@dataclass
class RunContext:
    """What a run may reach of its surroundings, and what its jobs share.

    `sink` takes the events, `replies` is the folder that keeps paid replies, `emit` writes bytes to standard output
    (`-o -`) and says whether they went through, `log` takes lines of the HTTP log, `clock` is the only sleeper.

    `is_resumable` says that the same command, given again, does what is left. Then no more is drawn after a fault that
    every further request would meet, and what never left is no failure. Otherwise every job has a result, sent or not.

    `unknowns` counts the outcomes in a row that nobody knows; at `max_unknown` nothing new leaves, since a broken
    network makes every request one more. `halt` is another reason why nothing new leaves. `journal` takes short
    replies, and is None where there can be none.
    """

    sink: Sink
    replies: Path
    recorder: Recorder | NullRecorder
    emit: Callable[[bytes], bool] | None = None
    log: Callable[[str], None] | None = None
    clock: Clock = field(default_factory=Clock)
    max_unknown: int = 3
    is_resumable: bool = False
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENCY))
    downloads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DOWNLOADS))
    disk: FsyncBatch = field(default_factory=FsyncBatch)
    journal: Journal | None = None
    unknowns: int = 0
    signal: signal.Signals | None = None
    halt: SeedreamError | None = None

    def objection(self) -> SeedreamError | None:
        """Why nothing new may leave now."""
        if self.signal:
            return InterruptedRunError("stopped before it was sent", signal_number=self.signal.value)
        if self.unknowns >= self.max_unknown:
            return ApiError(
                f"not sent: the outcome of {self.unknowns} requests in a row is unknown",
                kind="unavailable",
                delivered="no",
                hint="look at the network and the provider first; --max-unknown sets how many are borne",
            )
        return self.halt
