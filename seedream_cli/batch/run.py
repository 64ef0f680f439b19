"""A table as a run: checked whole, entered in the ledger of its folder, and sent row by row by the engine.

The table is read several times and never held: once to check it, once to enter it, once to run it, once for its
results. What a row is known by (`identity.Identities`) decides whether it is new; what the ledger says of it decides
whether it runs:

- new, changed and unfinished rows run, and so do those that failed and were not billed;
- what is paid and not on disk is fetched, free of charge; a file that was deleted is too, while its link lives;
- what is done is left alone once its files are seen to be there, and so is what may have been paid (`unknown`).

An image whose file is gone and whose link is dead is `missing`: it is reported, and made anew only when asked for.
"""

from __future__ import annotations

import heapq
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..engine.job import places
from ..engine.plan import Job
from ..engine.recovery import brings_images, lost_job, resume
from ..engine.work import Send
from ..errors import EXIT_CODES, PARTIAL
from ..ledger.entering import NewRow
from ..ledger.ledger import Ledger
from ..ledger.records import Entry, Forecast, Queued, Saved, Unsent
from ..ledger.runs import Run
from ..storage.output_path import OutputTarget
from .checks import CheckedRow
from .identity import Identities
from .options import STEP
from .results_file import RowResult, write_results
from .row_requests import RowRequests, RowTemplate
from .row_results import SavedFiles, is_saved_file, row_result
from .table import Row

CHUNK = 64
"""Rows that are taken in hand at once, with one flush."""

GUESSED_S = 20.0
"""How long a request is taken to last where nothing better is known."""

RowAction = Literal["send", "again", "fetch", "done", "left", "failed", "unknown", "missing"]

_RUNS: frozenset[RowAction] = frozenset({"send", "again", "fetch"})


@dataclass
class Preview:
    """What a run would do. Rows are counted by what they are due; `codes` are those of rows that are left as failed."""

    rows: int = 0
    due: Counter[RowAction] = field(default_factory=Counter)
    forecast: Forecast = field(default_factory=Forecast)
    fetched: int = 0
    codes: set[int] = field(default_factory=set)
    seconds: float = 0.0

    @property
    def running(self) -> int:
        """Rows that will run."""
        return sum(self.due[action] for action in _RUNS)


class Batch:
    """A table and its ledger in one run."""

    def __init__(
        self, row_requests: RowRequests, ledger: Ledger, run: Run, *, now: Callable[[], float] = time.time
    ) -> None:
        self.row_requests = row_requests
        self.order = row_requests.order
        self.ledger = ledger
        self.run = run
        self.now = now
        self.files = SavedFiles(row_requests.order.folder, row_requests.order.verify)

    def enter(self) -> None:
        """List every row of the table, or of its shard, in the ledger. Known ones keep what is known of them."""
        self.ledger.enter_rows(self.run, self._new_rows())

    def _new_rows(self) -> Iterator[NewRow]:
        identities, row_requests, shard, run = Identities(), self.row_requests, self.order.shard, self.run.id
        for checked in row_requests.judged():
            shape, row_id = checked.value, checked.row.id
            if shape is None:
                continue
            key = identities.key_of(row_id, row_requests.parts(checked, shape))
            if shard.has(key):
                yield from row_requests.new_rows(checked, shape, row_id, key, run)

    def action(self, entry: Entry) -> RowAction:
        """What a request is due, by what the ledger says and what the disk shows."""
        only = self.order.only
        if entry.state == "queued":
            return "send" if only is None else "left"
        if entry.state in {"waiting", "ready", "sent"}:
            # What is left of it costs nothing, and tells what became of it.
            return "fetch" if only in {None, "missing", "unknown"} else "left"
        if entry.state == "unknown":
            return "again" if only == "unknown" else "unknown" if only is None else "left"
        if entry.state == "failed":
            unbilled = entry.billed == "no" and not entry.doubts
            if only == "failed" or (only is None and unbilled):
                return "again"
            return "failed" if only is None else "left"
        return self._action_of_saved(entry)

    def _action_of_saved(self, entry: Entry) -> RowAction:
        """A request that ended well, or was settled as paid: its files may be gone, or may never have come."""
        only, gone = self.order.only, self.files.gone(entry)
        if gone and all(self._lives(entry, index) for index in gone):
            return "fetch" if only in {None, "missing"} else "left"
        lost = gone or entry.state == "resolved" or any(image.state == "expired" for image in entry.images)
        if lost:
            return "again" if only == "missing" else "missing" if only is None else "left"
        if only is not None:
            return "left"
        return "failed" if entry.status in {"partial", "failed"} else "done"

    def _lives(self, entry: Entry, index: int) -> bool:
        """Whether an image can still be fetched, as far as one can tell."""
        row = next(row for row in entry.images if row.index == index)
        return bool(row.link) and (row.expires is None or row.expires > self.now())

    def preview(self) -> Preview:
        """What the run will do, row by row, and what it may cost. Only what is not plain is looked at in Python."""
        preview, limit = Preview(), self.order.limit if self.order.only is None else None
        queued: RowAction = "send" if self.order.only is None else "left"
        forecast, single = self.ledger.forecast(self.run), self.ledger.count_single(self.run, STEP)
        # Of rows with a single request only as many are looked at as can be within the limit.
        within = min(single, limit or 0)
        fresh: Iterator[Queued] = itertools.islice(self.ledger.queued(self.run, STEP, single=True), within)
        if single < forecast.requests:
            fresh = heapq.merge(fresh, self.ledger.queued(self.run, STEP, single=False))
        if queued == "send" and not limit:
            preview.forecast = forecast
        due: Iterator[_Due] = ((one.position, queued, one if limit else None) for one in fresh)
        for _, group in itertools.groupby(_merge(self._ended(), due), key=lambda one: one[0] // STEP):
            self._count(preview, [(action, entry) for _, action, entry in group])
        preview.rows += single - within
        preview.due["left" if limit else queued] += single - within
        preview.seconds = self._guess_seconds(preview)
        return preview

    def _ended(self) -> Iterator[_Due]:
        """What the requests that are not queued are due, in the order of the table; done ones without their entries."""
        others: Iterator[_Due] = (
            (entry.position, self.action(entry), entry) for entry in self.ledger.listed(self.run, _UNSAVED)
        )
        return _merge(others, self._saved())

    def _saved(self) -> Iterator[tuple[int, RowAction, Entry | None]]:
        done: RowAction = "done" if self.order.only is None else "left"
        rows = self.ledger.saved(self.run)
        while chunk := list(itertools.islice(rows, CHUNK)):
            odd = [one.id for one in chunk if not self._is_whole(one)]
            entries = {entry.id: entry for entry in self.ledger.entries(odd)} if odd else {}
            for one in chunk:
                entry = entries.get(one.id)
                yield one.position, self.action(entry) if entry else done, entry

    def _is_whole(self, saved: Saved) -> bool:
        """Whether every image was made, and every file is there, as far as its size tells; `--verify` looks closer."""
        home = str(self.files.home)
        for state, path, size in saved.images:
            if state == "handed" or (state == "saved" and path is None):
                continue
            # Of a hundred thousand files a path as an object would take longer than the look.
            if state != "saved" or not is_saved_file(os.path.join(home, os.fsdecode(path or "")), size):  # noqa: PTH118
                return False
        return not self.files.verify

    def doubtful(self, *, queued: bool = True) -> Iterator[Entry]:
        """Every request of the table but those that are plainly done, in its order."""
        states = ("queued", *_UNSAVED) if queued else _UNSAVED
        others = ((entry.position, entry) for entry in self.ledger.listed(self.run, states))
        odd = ((position, entry) for position, _, entry in self._saved() if entry)
        return (entry for _, entry in heapq.merge(others, odd, key=lambda one: one[0]))

    def _count(self, preview: Preview, requests: Sequence[tuple[RowAction, Entry | Queued | None]]) -> None:
        """One row, by the most urgent of what its requests are due."""
        preview.rows += 1
        actions = {action for action, _ in requests}
        if (
            actions & {"send", "again"}
            and self.order.limit
            and preview.due["send"] + preview.due["again"] >= self.order.limit
        ):
            preview.due["left"] += 1
            return
        preview.due[next(action for action in _ORDER if action in actions)] += 1
        for action, entry in requests:
            if entry is None:
                continue
            if action == "fetch":
                preview.fetched += 1
            elif action in {"send", "again"}:
                priced = entry.worst_micro is not None
                preview.forecast += Forecast(1, entry.images_at_most, entry.worst_micro or 0, int(not priced))
            elif action in {"failed", "unknown", "missing"} and isinstance(entry, Entry):
                preview.codes.add(_code(entry, action))

    def _guess_seconds(self, preview: Preview) -> float:
        """How long it may take: by the number at work, and by the pace of the slowest provider."""
        requests, images = preview.forecast.requests, preview.forecast.images
        seconds = [requests * GUESSED_S / min(self.order.concurrency, max(1, requests))]
        for route in self.row_requests.routes:
            seconds += [60 * requests / route.limits.rpm] if route.limits.rpm else []
            seconds += [60 * images / route.limits.ipm] if route.limits.ipm else []
        return max(seconds) if requests else 0.0

    # Running.

    def jobs(self, expect: Callable[[Row, int], None]) -> Iterator[Job]:
        """The jobs of the run in the order of the table, each in hand when it comes.

        `expect` is called with each row, and how many jobs of it come, before the first of them does.
        """
        yield from self._lost_jobs()
        rows = self.row_requests.judged()
        for number, group in itertools.groupby(self._due(), key=lambda entry: entry.position // STEP):
            due = list(group)
            checked = next((checked for checked in rows if checked.row.number == number), None)
            if checked is None:
                continue
            jobs = [job for entry in due if (job := self._job(checked, entry))]
            expect(checked.row, len(jobs))
            yield from jobs

    def _due(self) -> Iterator[Entry | Unsent]:
        """What runs, a chunk at a time in hand."""
        known = (entry for entry in self.doubtful(queued=False) if self.action(entry) in _RUNS)
        unsent = self.ledger.unsent(self.run) if self.order.only is None else iter(())
        runs = self._within_limit(heapq.merge(known, unsent, key=lambda one: one.position))
        while chunk := list(itertools.islice(runs, CHUNK)):
            claimed = self.ledger.claim(self.run, [one.id for one in chunk if isinstance(one, Unsent)])
            wanted = [one.id for one in chunk if isinstance(one, Entry)]
            taken = {entry.id: entry for entry in self.ledger.take(self.run, wanted)} if wanted else {}
            for one in chunk:
                if isinstance(one, Entry) and one.id in taken:
                    yield self._fetchable(taken[one.id])
                elif one.id in claimed:
                    yield one

    def _within_limit(self, entries: Iterable[Entry | Unsent]) -> Iterator[Entry | Unsent]:
        """What is to be sent for the first rows, up to the limit; what is free of charge is always fetched."""
        rows, last = 0, None
        for entry in entries:
            row = entry.position // STEP
            if self.order.limit and (isinstance(entry, Unsent) or self.action(entry) != "fetch"):
                rows, last = rows + (row != last), row
                if rows > self.order.limit:
                    continue
            yield entry

    def _fetchable(self, entry: Entry) -> Entry:
        """A saved request whose files are gone has images to fetch again."""
        if entry.state != "saved" or self.action(entry) != "fetch":
            return entry
        self.ledger.mark_missing(entry.id, self.files.gone(entry))
        return self.ledger.take(self.run, [entry.id])[0]

    def _job(self, checked: CheckedRow[RowTemplate | None], entry: Entry | Unsent) -> Job | None:
        job = self.row_requests.job(checked, entry)
        action = "send" if isinstance(entry, Unsent) else self.action(entry)
        if isinstance(entry, Entry) and action == "fetch":
            return resume(entry, job, self.order.home / "replies")
        replies = self.order.home / "replies"
        if isinstance(entry, Entry) and entry.state == "unknown" and brings_images(entry, replies):
            # What was paid for is here after all: nothing need be sent again.
            return resume(entry, job, replies)
        if job.output.if_exists == "error" or "/" in (job.output.template or ""):
            job.output.prepare(places(job))
        return replace(job, work=Send(again=True)) if action == "again" else job

    def _lost_jobs(self) -> Iterator[Job]:
        """What was paid for rows that are not in the table any more: it is fetched all the same."""
        if self.order.only is not None:
            return
        target = OutputTarget(self.order.folder, "rename", 1)
        for number, entry in enumerate(self.ledger.unsaved()):
            is_listed = self.ledger.is_listed(self.run, entry.id)
            if is_listed or entry.state != "ready" or entry.error is not None:
                continue
            row_requests = self.row_requests
            replies = self.order.home / "replies"
            job = lost_job(entry, row_requests.base, row_requests.environment, replies, output=target, found=[])
            if job and self.ledger.take(self.run, [entry.id]):
                # Below zero no row has its place.
                yield replace(job, index=-1 - number)

    # Results.

    def write_results(self, stream: int | None = None) -> None:
        """The table of results, from the ledger alone, so that it is true whenever it is written."""
        write_results(self.order.results, self.row_requests.table, self._results(), stream=stream)

    def _results(self) -> Iterator[tuple[Row, RowResult]]:
        rows = self.row_requests.table.rows(self.row_requests.columns)
        for number, group in itertools.groupby(self.ledger.listed(self.run), key=lambda entry: entry.position // STEP):
            entries = list(group)
            row = next((row for row in rows if row.number == number), None)
            if row is not None:
                yield row, row_result(entries, self.files)


_ORDER: tuple[RowAction, ...] = ("send", "again", "fetch", "unknown", "missing", "failed", "left", "done")

_ENDED: tuple[Any, ...] = ("sent", "waiting", "ready", "saved", "failed", "unknown", "resolved")


_UNSAVED: tuple[Any, ...] = tuple(state for state in _ENDED if state != "saved")

_Due = tuple[int, RowAction, Entry | Queued | None]


def _merge(*streams: Iterator[_Due]) -> Iterator[_Due]:
    """Several streams in one, by position."""
    return heapq.merge(*streams, key=lambda one: one[0])


def _code(entry: Entry, action: RowAction) -> int:
    """The exit code of a row that stays as it ended earlier."""
    if action == "unknown":
        return EXIT_CODES["unknown_outcome"]
    if action == "missing":
        return EXIT_CODES["expired"]
    if entry.status == "partial":
        return PARTIAL
    code = entry.error.code if entry.error else next((p.error.code for p in entry.images if p.error), "")
    return EXIT_CODES.get(code, 1)
