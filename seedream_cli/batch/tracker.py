"""Counts the rows of a batch as their requests end, and gathers what they came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import PARTIAL
from ..results import BatchReport, Cost, Event, Finished, JobResult, Money, Notice, Report, Sink, to_micro
from .options import STEP
from .run import Preview
from .table import Row

WORST_MOST = 50
"""Failed rows that are told one by one at the end; all are in the results."""

ALIKE_MOST = 3
"""Of those, rows that failed for the same reason."""

SHORT_MOST = 10
"""Rows with fewer images than they asked for that are told one by one."""


def _mend_hints(results: Sequence[JobResult]) -> None:
    """`recover` looks into the user's ledger, and a batch has its own: there the same command does it."""
    for image in (image for result in results for image in result.images):
        if image.error and "`seedream recover`" in image.error.hint:
            image.error.hint = "it is paid for: set that right, and the same command fetches it, free of charge"
    for error in (result.error for result in results):
        if error and error.kind == "rate_limited" and "--" not in error.hint:
            error.hint = "; ".join(part for part in (error.hint, "lower --concurrency, --ipm or --rpm") if part)


@dataclass(frozen=True, slots=True)
class _Under:
    """A row that runs: how many of its results are to come, and those that came."""

    row: Row
    expected: int
    came: list[JobResult] = field(default_factory=list)


class Tracker:
    """Counts rows as they end, and hands each whole row on. Holds only rows under way, and the first failures."""

    def __init__(self, sink: Sink, tell: Callable[[Row, Sequence[JobResult]], None]) -> None:
        self._sink = sink
        self._tell = tell
        self._under: dict[int, _Under] = {}
        self.counts: Counter[str] = Counter()
        self.codes: set[int] = set()
        self.images = 0
        self.unpriced = 0
        self.costs: Counter[str] = Counter()
        self.currency = ("USD", "", "")
        self.worst: list[JobResult] = []
        self._reasons: Counter[str] = Counter()
        self.short: list[JobResult] = []
        self.short_rows = 0
        self.labels: dict[int, str] = {}

    def expect(self, row: Row, jobs: int) -> None:
        """A row is about to run."""
        if jobs:
            self._under[row.number] = _Under(row, jobs)

    def emit(self, event: Event) -> None:
        """Take one event and hand it on."""
        if isinstance(event, Finished):
            self._take(event.result)
        self._sink.emit(event)

    def close(self) -> None:
        """Nothing to leave."""

    def _take(self, result: JobResult) -> None:
        under = self._under.get(result.index // STEP)
        self._count_money(result)
        if under is None:
            self._tell_lost(result)
            return
        under.came.append(result)
        if len(under.came) == under.expected:
            del self._under[result.index // STEP]
            self._end(under.row, sorted(under.came, key=lambda one: one.index))

    def _tell_lost(self, result: JobResult) -> None:
        """What was paid for a row that the table has no more, and is still not here: no row of it tells of that."""
        if result.error is not None and result.error.kind != "interrupted":
            said = f"{result.id} was paid for earlier, and its row is not in the table: {result.error.message}"
            self._sink.emit(Notice(f"{said}; {result.error.hint}" if result.error.hint else said))

    def _count_money(self, result: JobResult) -> None:
        """What the run has paid; what an earlier one paid is fetched and not paid again."""
        self.images += sum(1 for image in result.images if image.error is None)
        if not result.attempts:
            return
        doubtful = result.status == "unknown" or (result.error is not None and result.error.billed == "unknown")
        if result.cost and result.certain:
            self.costs["paid"] += to_micro(result.certain) or 0
            self.costs["possible"] += to_micro(result.possible) or 0
            self.currency = (result.cost.currency, result.cost.as_of, result.cost.note)
        elif doubtful or any(image.error is None for image in result.images):
            self.unpriced += 1

    def _end(self, row: Row, results: Sequence[JobResult]) -> None:
        """A row is at its end; one that was held back, for a reason that is not its own, is not."""
        if any(result.status == "interrupted" for result in results):
            self.counts["unsent"] += 1
            return
        _mend_hints(results)
        code = Report("batch", tuple(results)).exit_code
        unknown = any(result.status == "unknown" for result in results)
        self.counts["unknown" if unknown else "failed" if code else "succeeded"] += 1
        self.codes.add(code)
        self._note_short(row, results)
        if code and len(self.worst) < WORST_MOST and (unknown or self._is_news(results)):
            for result in results:
                self.labels[result.index] = f"row {row.number} ({row.origin})"
                self.worst += [replace(result, request={})]
        self._tell(row, results)

    def _is_news(self, results: Sequence[JobResult]) -> bool:
        """Whether no more than a few rows failed for this very reason before: forty lines tell no more than three."""
        errors = [e for r in results for e in (r.error, *(image.error for image in r.images)) if e]
        reason = "; ".join(dict.fromkeys(error.message for error in errors))
        if reason in self._reasons or len(self._reasons) < WORST_MOST:
            self._reasons[reason] += 1
        return self._reasons[reason] <= ALIKE_MOST

    def _note_short(self, row: Row, results: Sequence[JobResult]) -> None:
        """Keep the first rows that got fewer images than they asked for, which is no failure."""
        short = [result for result in results if (result.asked_up_to or 0) > len(result.images) or result.warnings]
        short = [replace(result, request={}) for result in short if result.status in {"succeeded", "partial"}]
        self.short_rows += bool(short)
        if short and self.short_rows <= SHORT_MOST:
            self.short += short
            self.labels |= {result.index: f"row {row.number} ({row.origin})" for result in short}

    def report(self, preview: Preview, ending: Any) -> BatchReport:
        """What became of all rows."""
        ended = sum(self.counts[word] for word in ("succeeded", "failed", "unknown"))
        standing = Counter({word: preview.due[word] for word in ("failed", "unknown", "missing", "left")})
        unsent = max(0, preview.running - ended)
        failed = self.counts["failed"] + standing["failed"] + standing["missing"]
        unknown = self.counts["unknown"] + standing["unknown"]
        codes = self.codes | preview.codes | ({0} if preview.due["done"] else set())
        if unsent and not (ending.halt or ending.signal_number):
            # Nothing stopped the run, and yet rows are left: another process had them, or the table changed meanwhile.
            codes |= {PARTIAL}
        return BatchReport(
            rows=preview.rows,
            succeeded=self.counts["succeeded"],
            failed=failed,
            unknown=unknown,
            skipped=preview.rows - self.counts["succeeded"] - failed - unknown - unsent,
            unsent=unsent,
            images=self.images,
            cost=None if self.unpriced else Cost(Money(self.costs["paid"]).amount, *self.currency),
            possible=Cost(Money(self.costs["possible"]).amount, *self.currency) if self.costs["possible"] else None,
            unpriced=self.unpriced,
            elapsed_s=ending.elapsed_s,
            codes=frozenset(codes),
            worst=tuple(self.worst),
            signal_number=ending.signal_number,
            halt=ending.halt,
        )
