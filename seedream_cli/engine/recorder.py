"""The books of a run: tells the ledger, in its own terms, how each request fares.

Between the engine, which speaks of jobs, answers and saved images, and the ledger, which speaks of rows and money
in micro-units. Every method that must be flushed before the next step has flushed when it returns; those that each
request of a batch comes by are awaited, and share their flushes.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ..errors import ApiError, BudgetError, BusyError, FileError, SeedreamError
from ..ledger.group_commit import GroupCommit
from ..ledger.ledger import Ledger
from ..ledger.records import Caps, Failure, ImageRow, NewRequest, Reservation
from ..ledger.runs import Run
from ..network.urls import expiry
from ..providers.contract import Ready
from ..results import Money, ProviderImage, SavedImage, to_micro
from ..storage import image_file
from ..text import money_words
from .plan import Job, Plan
from .work import PollTask


class NullRecorder:
    """Writes nothing down, for what no ledger knows: it keeps the budget of the run alone."""

    records: ClassVar = False
    """Whether what it is told is written down."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        # What each request holds, doubtful attempts added up.
        self._held: dict[str, int] = {}
        self._doubted = 0

    def of(self, job: Job) -> NullRecorder:  # noqa: ARG002
        """The recorder of a job."""
        return self

    def has(self, job: Job) -> bool:  # noqa: ARG002
        """Whether this run may work on a job."""
        return True

    def hide(self, secret: str) -> None:
        """Nothing is written that could hold it."""

    def open(self, jobs: Sequence[Job]) -> None:
        """Nothing is entered."""

    async def sent(self, job: Job, attempt: int, objection: Callable[[], None], *, again: bool) -> str:  # noqa: ARG002
        """The first byte is about to leave: hold the worst cost against the run's budget. Raises `BudgetError`."""
        cap, worst = self._caps.run, to_micro(job.price(job.request.images_at_most))
        if cap is not None and worst != 0:
            spent = sum(self._held.values()) - self._held.get(job.id, 0) + self._doubted
            if worst is None or spent + worst > cap:
                raise BudgetError(
                    f"the next request may cost up to {_dollars(worst)}, and this run's budget of {_dollars(cap)} has "
                    f"{_dollars(spent)} spent or held",
                    hint="only a higher --max-cost draws the rest; the same command starts anew",
                )
            self._held[job.id] = worst
        return uuid.uuid4().hex

    def refused(self, job: Job, error: SeedreamError, reply: Path | None) -> None:  # noqa: ARG002
        """An attempt failed and will be repeated; what may be billed stays in the account."""
        held = self._held.pop(job.id, 0)
        self._doubted += held if error.billed != "no" else 0

    def waiting(self, job: Job, task_id: str) -> None:
        """A task costs what was held for it."""

    def announced(self, job: Job, image: ProviderImage) -> None:
        """A link is kept in the reply alone."""

    async def ready(self, job: Job, ready: Ready, made: int | None, reply: Path | None) -> None:  # noqa: ARG002
        """The answer is read: what it cost takes the place of what was held."""
        settled = None if made is None else to_micro(job.price(made))
        if settled is not None and job.id in self._held:
            self._held[job.id] = settled

    async def image(self, job: Job, image: SavedImage, *, handed: bool = False, last: bool = False) -> None:  # noqa: ARG002
        """An image ended: its folder is flushed."""
        if image.path is not None:
            image_file.flush_folder(image.path.parent)

    async def saved(self, job: Job) -> None:
        """Nothing of it is left to fetch."""

    def ended(self, job: Job, error: SeedreamError, reply: Path | None) -> None:  # noqa: ARG002
        """It ended without an image; unbilled, it gives back what it held."""
        if error.billed == "no":
            self._held.pop(job.id, None)

    def unsent(self, job: Job) -> None:
        """It stays as it was."""

    def doubts(self, job: Job) -> int:  # noqa: ARG002
        """Earlier attempts are not known."""
        return 0

    def close(self, exit_code: int) -> None:
        """The run is over."""


class Recorder:
    """The books of one run.

    A batch has a ledger of its own in its folder `home`: paths are written relative to that, so that the folder may be
    moved, and its money is booked in the user's ledger, `day`, too, which keeps the day's budget.
    """

    records: ClassVar = True

    def __init__(
        self,
        ledger: Ledger,
        run: Run,
        caps: Caps,
        *,
        home: Path | None = None,
        day: Ledger | None = None,
    ) -> None:
        self._ledger = ledger
        self._run = run
        self._caps = caps
        self._home = home.absolute() if home else None
        self._day = day
        self._commits = GroupCommit(ledger, day)
        self._elsewhere: frozenset[str] = frozenset()
        self._unbooked = NullRecorder(caps)
        # How many attempts of this run at each request may have been billed, and were repeated.
        self._repeated: Counter[str] = Counter()

    def of(self, job: Job) -> Recorder | NullRecorder:
        """The recorder of a job: this one, where it knows the job and has it in hand."""
        return self if job.in_ledger and self.has(job) else self._unbooked

    def has(self, job: Job) -> bool:
        """Whether this run may work on a job: another process may have taken first what is to be recovered."""
        return job.id not in self._elsewhere

    def hide(self, secret: str) -> None:
        """Mask this in whatever is written down from now on."""
        self._ledger.mask_secret(secret)

    def open(self, jobs: Sequence[Job]) -> None:
        """Enter new requests; take those in hand that were paid before."""
        if not jobs:
            return
        self._ledger.enter(self._run, (_new(job) for job in jobs if job.in_ledger and not job.fetches))
        wanted = {job.id for job in jobs if job.in_ledger and job.fetches}
        taken = self._ledger.take(self._run, sorted(wanted))
        # One that another process finished since this run was planned has nothing left, its kept reply least of all.
        tasks = {job.id for job in jobs if isinstance(job.work, PollTask)}
        mine = {entry.id for entry in taken if entry.state != "saved" or entry.id in tasks}
        for entry in taken:
            if entry.state == "saved" and (left := entry.links_left(self._home)):
                # It was named, and may be there after all.
                self._ledger.mark_missing(entry.id, left)
                mine.add(entry.id)
        self._elsewhere = frozenset(wanted - mine)

    def _book(self, job: Job, micro: int | None, caps: Caps | None = None) -> None:
        """Tell the user's ledger what a batch's request costs, or may cost. What costs nothing needs no entry."""
        if self._day is None or job.fetches or (job.route.spec.offline and not micro):
            return
        # A key for each run, and for each attempt after one in doubt: what those paid for the same row stays booked.
        nth = f" {nth}" if (nth := self._repeated[job.id]) else ""
        self._day.record_external_charge(f"{self._run.id} {job.id}{nth}", micro, caps=caps or Caps())

    async def sent(self, job: Job, attempt: int, objection: Callable[[], None], *, again: bool) -> str:
        """The first byte is about to leave: hold the worst cost, and write that down. If it raises, nothing may leave.

        Returns the token of the attempt.

        Raises `BudgetError` where the cost would pass a cap, `FileError`, and what `objection` raises, which is asked
        at the last moment.
        """
        ledger, worst, token = self._ledger, to_micro(job.price(job.request.images_at_most)), uuid.uuid4().hex
        # Of a batch the user's ledger keeps the day's budget, and the batch's own that of the run.
        caps = self._caps if self._day is None else replace(self._caps, daily=None)
        is_written = False

        def write() -> None:
            nonlocal is_written
            is_written = False
            objection()
            self._book(job, worst, self._caps)
            try:
                ledger.mark_sent(
                    job.id, attempt=attempt, token=token, again=again or job.again, reserve=Reservation(worst, caps)
                )
            except BudgetError:
                self._book(job, 0)
                raise
            is_written = True

        try:
            await self._commits.commit(write, "no", has_external_charge=True)
        except asyncio.CancelledError:
            # Stopped between the flush and the first byte: it never left.
            if is_written:
                ledger.mark_queued(job.id)
            raise
        return token

    def refused(self, job: Job, error: SeedreamError, reply: Path | None) -> None:
        """An attempt failed and will be repeated: unbilled it is as new, otherwise in doubt, with what came of it."""
        self._repeated[job.id] += error.billed != "no"
        if error.billed == "no":
            self._ledger.mark_queued(job.id, error)
        else:
            self._ledger.mark_unknown(job.id, error, reply=reply)

    def waiting(self, job: Job, task_id: str) -> None:
        """The provider works on a task."""
        self._ledger.mark_waiting(job.id, task_id)

    def announced(self, job: Job, image: ProviderImage) -> None:
        """A stream brought an image; its link is written down before its download starts."""
        self._ledger.mark_image(job.id, _row(image))

    async def ready(self, job: Job, ready: Ready, made: int | None, reply: Path | None) -> None:
        """The answer is read: every link is written down before any download starts."""
        ledger, settled = self._ledger, None if made is None else to_micro(job.price(made))
        images = [_row(image) for image in ready.images]

        def write() -> None:
            ledger.mark_ready(
                job.id,
                images,
                usage=ready.usage,
                billed_count=made,
                settled_micro=settled,
                reply=reply,
                trace=ready.request_id,
            )

        await self._commits.commit(write, "yes")
        # Mostly it costs what was held for it, and then there is nothing new to flush.
        if settled is not None and settled != to_micro(job.price(job.request.images_at_most)):
            # The links are safe. An account that cannot be written keeps what was held, and holds up no image.
            with contextlib.suppress(FileError, BusyError):
                await self._commits.commit(lambda: self._book(job, settled), "no", has_external_charge=True)

    async def image(self, job: Job, image: SavedImage, *, handed: bool = False, last: bool = False) -> None:
        """An image ended: on disk, handed out, or out of reach for ever. One that can come later stays pending.

        Its folder is flushed before. With `last` nothing is left to fetch of the request after it.
        """
        expired = image.error is not None and image.error.kind == "expired"
        if image.error is not None and not expired:
            return
        row = ImageRow(
            index=image.index,
            state="expired" if expired else "handed" if handed or image.path is None else "saved",
            link=image.url,
            expires=expiry(image.url),
            path=self._stored(image.path) if image.path else None,
            format=image.format,
            width=image.width,
            height=image.height,
            bytes=image.bytes,
            sha256=image.sha256,
            error=_failure(image.error),
        )

        def write() -> None:
            if last:
                self._ledger.mark_saved(job.id, image=row)
            else:
                self._ledger.mark_image(job.id, row)

        await self._commits.commit(write, "yes", folder=image.path.parent if image.path else None)

    def _stored(self, path: Path) -> Path:
        """An image's path as it is written down."""
        whole = path.absolute()
        return whole.relative_to(self._home) if self._home and whole.is_relative_to(self._home) else whole

    async def saved(self, job: Job) -> None:
        """Nothing of it is left to fetch."""
        await self._commits.commit(lambda: self._ledger.mark_saved(job.id), "yes")

    def ended(self, job: Job, error: SeedreamError, reply: Path | None) -> None:
        """It ended without an image: refused, never sent, or nobody knows."""
        # Where the disk refused an answer, the next run settles by what reached it: a failure would be the end.
        if isinstance(error, FileError) and error.billed == "yes":
            return
        if error.billed == "unknown":
            self._ledger.mark_unknown(job.id, error, reply=reply)
        else:
            self._ledger.mark_failed(job.id, error)
            if error.billed == "no":
                self._book(job, 0)

    def unsent(self, job: Job) -> None:
        """It stays queued: nothing happened to it."""
        self._book(job, 0)

    def doubts(self, job: Job) -> int:
        """How many earlier attempts at a request may have been billed."""
        return sum(entry.doubts for entry in self._ledger.entries([job.id]))

    def close(self, exit_code: int) -> None:
        """The run is over."""
        self._run.finish(exit_code)


@contextlib.contextmanager
def open_recorder(ledger: Ledger | None, plan: Plan, home: Path | None = None) -> Iterator[Recorder | NullRecorder]:
    """The recorder of a plan's run, which is written down in the ledger while the block lasts."""
    if ledger is None:
        yield NullRecorder(plan.caps)
        return
    with ledger.run(plan.run, plan.command, folder=_working_folder()) as run:
        yield Recorder(ledger, run, plan.caps, home=home)


def _working_folder() -> str:
    """Where the command was given; "" where that folder is gone, which is no reason not to run."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _dollars(micro: int | None) -> str:
    return "an unknown amount" if micro is None else money_words(Money(micro))


def _new(job: Job) -> NewRequest:
    request, worst = job.request, job.price(job.request.images_at_most)
    output = job.output
    return NewRequest(
        id=job.id,
        position=job.index,
        provider=job.route.spec.name,
        base_url=job.route.base_url,
        model=request.model_id,
        prompt=request.prompt,
        body=job.route.dialect.submit(request).json or {},
        fingerprint=request.fingerprint,
        images_at_most=request.images_at_most,
        worst_micro=to_micro(worst),
        currency=worst.currency if worst else "USD",
        as_of=worst.as_of if worst else "",
        fields={**job.fields, "size": request.size},
        output={
            "folder": str(output.folder.absolute()),
            "file": str(output.file.absolute()) if output.file else None,
            "template": output.template,
            "if_exists": output.if_exists,
            "stdout": output.stdout,
            "first": job.first,
            "of": job.of,
        },
    )


def _row(image: ProviderImage) -> ImageRow:
    """An image as it was announced."""
    return ImageRow(
        index=image.index,
        state="failed" if image.error else "pending",
        link=image.link,
        expires=expiry(image.link),
        format=image.format,
        error=_failure(image.error),
    )


def _failure(error: SeedreamError | None) -> Failure | None:
    if error is None:
        return None
    said = error if isinstance(error, ApiError) else None
    return Failure(error.kind, error.message, error.hint, said.code if said else "", said.request_id if said else "")
