"""What is known of a request on its way, and what every step of it works with."""

from __future__ import annotations

import asyncio
import datetime as dt
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FileError, SeedreamError
from ..network.client import ProviderClient
from ..providers.contract import Ready
from ..results import Notice, SavedImage, Stage
from .context import RunContext
from .plan import Job
from .recorder import NullRecorder, Recorder
from .stored_reply import StoredReplyFile, StoredReplySlot

ReplyOnDisk = StoredReplyFile | StoredReplySlot

_YOUNG_S = 60.0
"""How long after the answer an image that is not at its link may only not be there yet."""


@dataclass(slots=True)
class JobState:
    """How far a request has come.

    `attempts` is the number of the last attempt that left, `sent_at` when the first one did and `left_s` (of the
    monotonic clock) when the last one did; `is_out` while one is out whose outcome is not known. `ambiguous` counts the
    attempts before it that may have been billed. `is_vetoed`: the run kept it from leaving.

    `ready` is its answer, `is_answered` from then on; `task_id` the task that makes it, `absent_task` one that the
    provider does not know. `saved` are its images by index, `taken` the indexes that a stream brought.

    `incoming` is the file that the present reply goes into, `token` that of the attempt; `open_reply` is that file as
    long as it is neither secured nor removed; `reply` is where a reply was kept. `is_left_behind`: the next run finds
    what came. `is_present`: its files were there, and nothing was sent. `is_closed`: the ledger has it as saved.
    """

    started_s: float = field(default_factory=time.monotonic)
    attempts: int = 0
    sent_at: dt.datetime | None = None
    left_s: float = field(default_factory=time.monotonic)
    is_out: bool = False
    ambiguous: int = 0
    is_vetoed: bool = False
    ready: Ready | None = None
    is_answered: bool = False
    provider_s: float = 0.0
    links_young_until_s: float = 0.0
    task_id: str = ""
    absent_task: str = ""
    saved: dict[int, SavedImage] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    incoming: ReplyOnDisk | None = None
    open_reply: ReplyOnDisk | None = None
    reply: Path | None = None
    token: str = ""
    is_left_behind: bool = False
    is_present: bool = False
    is_closed: bool = False

    @property
    def in_flight(self) -> bool:
        """Whether an attempt is out, or one that may have been billed was: stopping now must not call it unsent."""
        return self.is_out or self.ambiguous > 0

    def secure_reply(self) -> None:
        """Flush the reply and give it its name, where its links were enough so far: another run may need it."""
        if self.open_reply is not None:
            self.reply, self.open_reply = self.open_reply.secure(), None


class Slot:
    """A job's place among those that send at once. Others have it while the job waits for its provider.

    `on_first` is called when it has it for the first time, or never will.
    """

    def __init__(self, slots: asyncio.Semaphore) -> None:
        self._slots = slots
        self._is_held = False
        self.on_first: Callable[[], None] = lambda: None

    def step_aside(self) -> None:
        """Give it to others while the rate limit is waited for."""
        self.release()

    async def step_back(self) -> None:
        """Have it, or have it again."""
        if not self._is_held:
            await self._slots.acquire()
            self._is_held = True
            self.on_first()

    def release(self) -> None:
        """Let the next request leave: downloads have places of their own."""
        if self._is_held:
            self._is_held = False
            self._slots.release()


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job in the hands of its run."""

    job: Job
    context: RunContext
    client: ProviderClient
    recorder: Recorder | NullRecorder
    slot: Slot
    state: JobState = field(default_factory=JobState)

    def emit_stage(self, name: Any) -> None:
        """The request entered a stage."""
        job = self.job
        self.context.sink.emit(Stage(job.index, name, "", job.title, job.request.model_id))

    def notice(self, text: str) -> None:
        """A line for the user."""
        self.context.sink.emit(Notice(text))

    def try_to(self, action: Callable[[], object]) -> None:
        """What may fail, but not keep the result from being reported, nor take the other jobs with it."""
        try:
            action()
        except FileError:
            pass
        except (SeedreamError, OSError) as error:
            self.notice(self.client.mask(f"{self.job.id}: {error}"))

    def note_new_links(self) -> None:
        """The links that came now are new: an image that is not there yet may come."""
        self.state.links_young_until_s = self.context.clock.monotonic() + _YOUNG_S

    @property
    def signal_number(self) -> int:
        """The signal that stops the run."""
        return self.context.signal.value if self.context.signal else signal.SIGINT.value
