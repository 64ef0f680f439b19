"""What the jobs of a run share: the sink, the clock, the recorder, the slots and the signals."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ApiError, InterruptedRunError, SeedreamError
from ..ledger.ledger import Ledger
from ..network.policy import Clock
from ..results import Sink
from ..storage.fsync_batch import FsyncBatch
from ..storage.reply_journal import Journal
from .plan import Job
from .recorder import NullRecorder, Recorder

CONCURRENCY = 8

DOWNLOADS = 8


def no_step(name: str) -> None:
    """Steps are for the tests alone."""


@dataclass(frozen=True, slots=True)
class RunServices:
    """What a run may reach of its surroundings.

    `sink` takes its events, `state` is the folder that keeps paid replies, `ledger` what is written down (None with
    --no-ledger), `emit` writes bytes to standard output (`-o -`) and says whether they went through, `log` takes lines
    of the wire log, `clock` is the only sleeper, `step` is told of each step for the tests.
    """

    sink: Sink
    state: Path
    ledger: Ledger | None = None
    emit: Callable[[bytes], bool] | None = None
    log: Callable[[str], None] | None = None
    clock: Clock = field(default_factory=Clock)
    step: Callable[[str], None] = no_step


@dataclass(frozen=True, slots=True)
class JobStream:
    """A run whose jobs are drawn one by one, so that a hundred thousand take no more room than a thousand.

    `requests` and `images` are the most that will be drawn. No new one is drawn once `max_failures` have failed (0:
    no bound) or `max_unknown` outcomes in a row are unknown. Whatever is left, the same command does later.
    """

    jobs: Iterator[Job]
    requests: int
    images: int
    provider: str
    model: str
    concurrency: int = CONCURRENCY
    max_failures: int = 0
    max_unknown: int = 3


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a flow ended: after which time, by which signal, and why it took no new job before all were drawn."""

    elapsed_s: float
    signal_number: int | None = None
    halt: SeedreamError | None = None


@dataclass
class RunContext:
    """What the workers of a run share.

    `step` is told of every step that a crash could fall behind, for the tests. `unknowns` counts the outcomes in a
    row that nobody knows; at `max_unknown` nothing new leaves, since a broken network makes every request one more.
    `halt` is why a batch takes no new row. `goes_on` says that the same command, given again, saves what is left.
    `journal` takes the replies of a batch.
    `steps_aside` gives the slot of a request that waits for its provider to another, which may be a free one's.
    """

    sink: Sink
    clock: Clock
    replies: Path
    recorder: Recorder | NullRecorder
    slots: asyncio.Semaphore
    downloads: asyncio.Semaphore
    emit: Callable[[bytes], bool] | None = None
    step: Callable[[str], None] = no_step
    max_unknown: int = 3
    unknowns: int = 0
    signal: signal.Signals | None = None
    halt: SeedreamError | None = None
    goes_on: bool = False
    disk: FsyncBatch = field(default_factory=FsyncBatch)
    journal: Journal | None = None
    steps_aside: bool = False

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
