"""What a run says to its user: lines while it lasts, results and the summary when it has ended, errors and warnings.

Results go to standard output, all else to standard error.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol

from .envelope import Row, add_costs, job_object, print_json, report_object
from .errors import ApiError, InputError, Problem, SeedreamError
from .results import (
    BatchReport,
    Cost,
    Draining,
    Event,
    Finished,
    JobResult,
    Notice,
    Planned,
    Report,
    Retrying,
    Saved,
    SavedImage,
    Sink,
    Stage,
)
from .streams import Streams
from .text import clean, clean_path, count_words, money_words, size_words, span_words

Mode = Literal["paths", "urls", "json", "none"]


# --- errors and warnings as lines -----------------------------------------------------------------------------------

_BILLED = {"no": "not billed", "yes": "billed", "unknown": "unknown, may have been billed"}
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
_UNITS = {
    re.compile(r"\.(jsonl|ndjson|json|toml):\d+$", re.IGNORECASE): "key",
    re.compile(r"\.(csv|tsv|tab):\d+$", re.IGNORECASE): "column",
}
"""What a place in a file is called, by the file; in a prompt's header it is an option."""
_FILE_LINE = re.compile(r":\d+$")
_Entry = tuple[list[str], str]
"""The lines that say what happened, and the hint that follows them."""


def error_lines(error: SeedreamError | Problem, *, subject: str = "", cost: Cost | None = None) -> list[str]:
    """What happened, where, what the money did, and what to do next. `subject` names the request it concerns."""
    return _join_entries(_error_entries(error, subject, cost))


def warning_lines(problems: Iterable[Problem]) -> list[str]:
    """Warnings, each once, a hint that several share after the last of them."""
    return _join_entries(_problem_entry(problem, "") for problem in dict.fromkeys(problems))


def _join_entries(entries: Iterable[_Entry]) -> list[str]:
    """Lines of all entries; a hint that the next entry repeats is left to that one."""
    listed = list(entries)
    lines: list[str] = []
    for position, (said, hint) in enumerate(listed):
        lines += said
        repeated = position + 1 < len(listed) and listed[position + 1][1] == hint
        if hint and not repeated:
            lines.append(f"  hint: {clean(hint, 2000)}")
    return lines


def _error_entries(error: SeedreamError | Problem, subject: str, cost: Cost | None = None) -> list[_Entry]:
    if isinstance(error, Problem):
        return [_problem_entry(error, subject)]
    if isinstance(error, InputError) and error.problems:
        return [_problem_entry(problem, subject) for problem in error.problems]
    said = [f"error: {_place(subject)}{clean(error.message) or error.kind}"]
    detail = _detail(error, cost)
    return [(said + ([f"  {detail}"] if detail else []), error.hint)]


def _problem_entry(problem: Problem, subject: str) -> _Entry:
    where = _place(subject) + _place(_origin(problem))
    return [f"{problem.severity}: {where}{clean(problem.message)}"], problem.hint


def _place(text: str) -> str:
    return f"{clean(text, 200)}: " if text else ""


def _origin(problem: Problem) -> str:
    """The place as the user knows it: `shots.csv:14, column size`, `--size`, or the field's name."""
    if not problem.origin:
        return "" if problem.field.lower() in problem.message.lower() else problem.field
    if not problem.field or problem.field in problem.origin or not _FILE_LINE.search(problem.origin):
        return problem.origin
    unit = next((word for ending, word in _UNITS.items() if ending.search(problem.origin)), "option")
    return f"{problem.origin}, {unit} {problem.field}"


def _detail(error: SeedreamError, cost: Cost | None = None, *, with_code: bool = True) -> str:
    """Who said it and what the money did; "" where there is nothing to add to the message."""
    billed = _BILLED[error.billed]
    if error.billed == "unknown" and cost:
        billed += f", possibly {money_words(cost)}"
    if not isinstance(error, ApiError):
        return "" if error.billed == "no" else billed
    known = {
        "provider": error.provider,
        "code": error.code if with_code else "",
        "HTTP": str(error.status or ""),
        "request id": error.request_id,
    }
    facts = ", ".join(f"{name} {clean(value, 200)}" for name, value in known.items() if value)
    return f"{facts}; {billed}" if facts else billed


# --- while a run lasts ----------------------------------------------------------------------------------------------


class Display(Sink, Protocol):
    """A sink that may hold a screen: close it before anything else is printed."""

    def close(self) -> None:
        """Leave the terminal as it was found. May be called twice."""


class QuietSink:
    """Shows nothing."""

    def emit(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """Nothing to leave."""


class PlainSink:
    """A few plain lines on standard error, for logs and pipes.

    `verbosity` 1 adds stages and saved files, -1 leaves only what the user must know.
    """

    def __init__(self, streams: Streams, *, verbosity: int = 0) -> None:
        self._streams = streams
        self._verbosity = verbosity
        self._tally = Tally()

    def emit(self, event: Event) -> None:
        """Take one event."""
        self._tally.take(event)
        line = event_line(event, self._tally, verbosity=self._verbosity + 1)
        if line:
            self._streams.err(line)
        # Ten lines tell the progress of any number of requests.
        tally = self._tally
        if self._verbosity >= 0 and isinstance(event, Finished) and tally.requests > 1 and tally.crossed_tenth:
            self._streams.err(f"done: {tally.words()}")

    def close(self) -> None:
        """Nothing to leave."""


class TeeSink:
    """Hands every event to several sinks."""

    def __init__(self, *sinks: Display) -> None:
        self._sinks = sinks

    def emit(self, event: Event) -> None:
        """Take one event."""
        for sink in self._sinks:
            sink.emit(event)

    def close(self) -> None:
        """Close all, the last first."""
        for sink in reversed(self._sinks):
            sink.close()


class ResultSink:
    """Prints each result on standard output as it comes, for a batch: paths or links as saved, or an object a row."""

    def __init__(
        self, streams: Streams, mode: Mode, *, command: str = "batch", rows: Mapping[int, Row] | None = None
    ) -> None:
        self._streams = streams
        self._mode = mode
        self._command = command
        self._rows = rows or {}

    def emit(self, event: Event) -> None:
        """Take one event."""
        if self._mode == "json" and isinstance(event, Finished):
            job = event.result
            print_json(job_object(job, self._command, row=self._rows.get(job.index)), self._streams)
        elif isinstance(event, Finished):
            print_places(event.result.images, self._streams, self._mode)

    def close(self) -> None:
        """Nothing to leave."""


class Tally:
    """How many requests there are and how many of them have ended, and badly."""

    def __init__(self) -> None:
        self.requests = 0
        self.done = 0
        self.failed = 0
        self.unknown = 0

    def take(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, Planned):
            self.requests = event.requests
        elif isinstance(event, Finished):
            self.done += 1
            self.unknown += event.result.status == "unknown"
            self.failed += event.result.exit_code != 0 and event.result.status != "unknown"

    @property
    def crossed_tenth(self) -> bool:
        """Whether the request that just ended completed another tenth of the run."""
        return self.done * 10 // self.requests > (self.done - 1) * 10 // self.requests

    def words(self) -> str:
        """Such as "12 of 120 requests, 1 failed"."""
        bad = [f"{count} {word}" for count, word in ((self.failed, "failed"), (self.unknown, "unknown")) if count]
        return ", ".join([f"{self.done} of {self.requests} requests", *bad])


def event_line(event: Event, tally: Tally, *, verbosity: int, name: Callable[[int], str] | None = None) -> str:
    """The line that tells of an event, or "". At 0 only what must be known, at 1 the course, at 2 every step.

    `name` says what a request is called by its index, where it is not one of so many.
    """
    if isinstance(event, Notice):
        return f"note: {clean(event.message)}"
    if isinstance(event, Draining):
        what = count_words(event.in_flight, "request in flight", "requests in flight")
        stop = f"stopping ({clean(event.signal_name, 20)}): nothing new is sent"
        if not event.in_flight:
            return f"{stop}, and nothing is in flight"
        long = f", which may take up to {span_words(event.most_s)}" if event.most_s else ""
        return f"{stop}, {what} will be finished and saved{long}; once more stops at once, and may lose what is paid"
    if verbosity >= 1 and isinstance(event, Planned):
        upto = "up to " if event.pictures != event.requests else ""
        asked = f"{count_words(event.requests, 'request')}, {upto}{count_words(event.pictures, 'picture')}"
        return f"start: {' '.join(filter(None, (clean(event.provider, 40), clean(event.model, 80))))}, {asked}"
    if verbosity >= 1 and isinstance(event, Retrying):
        what = f"{_subject(event.job, tally.requests, name)}{clean(event.what, 60)}"
        return f"retry: {what}: {clean(event.reason)}; again in {event.wait_s:.0f} s"
    if verbosity >= 2 and isinstance(event, Stage):
        detail = f" ({clean(event.detail, 80)})" if event.detail else ""
        return f"stage: {_subject(event.job, tally.requests, name)}{event.stage}{detail}"
    if verbosity >= 2 and isinstance(event, Saved) and event.image.path:
        return f"saved: {_facts(event.image)}"
    return ""


def _facts(image: SavedImage) -> str:
    size = f" ({image.width}x{image.height} {image.format}, {size_words(image.bytes)})" if image.bytes else ""
    return f"{clean_path(image.path or '')}{size}"


def _subject(job: int, requests: int, name: Callable[[int], str] | None = None) -> str:
    if name:
        return f"{name(job)}: "
    return f"request {job + 1} of {requests}: " if requests > 1 else ""


# --- when a run has ended -------------------------------------------------------------------------------------------


def print_results(
    report: Report,
    streams: Streams,
    mode: Mode,
    *,
    quiet: bool = False,
    warned: bool = False,
    labels: Mapping[int, str] | None = None,
) -> None:
    """Results to standard output as `mode` asks, then what went wrong and the summary to standard error.

    `quiet` leaves only errors, `warned` says that the warnings were shown before. `labels` names requests by their
    index ("row 17"), where a number of the run would not help the user.
    """
    if mode == "json":
        print_json(report_object(report), streams)
    for job in report.jobs:
        print_places(job.images, streams, mode)
        # An id that is no plain word could be a command to whoever reads the output.
        if job.status == "submitted" and mode in {"paths", "urls"} and _PLAIN_ID.fullmatch(job.task_id):
            streams.out(job.task_id)
    lines = (
        []
        if quiet or warned
        else warning_lines((*report.warnings, *(w for j in report.jobs for w in j.warnings if w.code not in GAPS)))
    )
    lines += failure_lines(report, labels=labels)
    if not quiet:
        lines += note_lines(report, labels=labels) + summary_lines(report)
    for line in lines:
        streams.err(line)


def print_error(error: SeedreamError, streams: Streams) -> None:
    """A failure that ended everything, to standard error."""
    for line in error_lines(error):
        streams.err(line)


def print_places(images: Iterable[SavedImage], streams: Streams, mode: Mode) -> None:
    """The paths or the links of the pictures that succeeded, in order, one a line."""
    for image in images:
        if mode == "paths" and image.path and not image.error:
            streams.out(str(image.path))
        elif mode == "urls" and image.url and not image.error:
            streams.out(image.url)


def failure_lines(report: Report, *, labels: Mapping[int, str] | None = None) -> list[str]:
    """Every failed request and picture, in order."""
    entries: list[_Entry] = []
    for number, job in enumerate(report.jobs):
        subject = _label(job, number, report, labels)
        entries += [_picture_entry(image, job, subject) for image in job.images if image.error]
        loose = _loose_error(job)
        if loose:
            entries += _error_entries(loose, subject, job.possible or job.cost)
    return _join_entries(entries)


GAPS = frozenset({"size_differs", "format_differs"})
"""Warnings that are known only when the images are here."""


def note_lines(report: Report, *, labels: Mapping[int, str] | None = None) -> list[str]:
    """What is no failure and yet not what was asked for: fewer pictures, a task that goes on at the provider."""
    lines = []
    for number, job in enumerate(report.jobs):
        where = _place(_label(job, number, report, labels))
        got = sum(map(_is_paid, job.images))
        if job.asked_up_to and job.status in {"succeeded", "partial"} and got < job.asked_up_to:
            lines.append(f"note: {where}asked for up to {job.asked_up_to}, got {got}")
        lines += [f"warning: {where}{problem.message}" for problem in job.warnings if problem.code in GAPS]
        if job.status == "submitted":
            task = shlex.quote(clean(job.task_id, 200))
            lines.append(f"note: {where}submitted; later: seedream recover --task {task} -p {clean(job.provider, 40)}")
    return lines


def batch_lines(report: BatchReport, labels: Mapping[int, str]) -> list[str]:
    """The first rows that went wrong, why rows are left, and the closing line of a batch."""
    worst = Report("batch", report.worst)
    lines = failure_lines(worst, labels=labels)
    told = len({labels.get(job.index) for job in report.worst})
    rest = report.failed + report.unknown - told
    if rest > 0:
        lines.append(f"and {count_words(rest, 'row')} more that failed or whose outcome is unknown: see the results")
    if report.halt and not any(job.error is report.halt for job in report.worst):
        lines += error_lines(report.halt)
    counts = (
        (report.succeeded, "done"),
        (report.skipped, "left as they were"),
        (report.failed, "failed"),
        (report.unknown, "unknown"),
        (report.unsent, "not sent"),
    )
    shown = ", ".join(f"{count} {word}" for count, word in counts if count) or "nothing to do"
    money = _batch_money(report)
    lines.append(" · ".join([f"{count_words(report.rows, 'row')}: {shown}", *money]))
    if report.unknown:
        lines.append(_settle_words(worst, report.unknown))
    if report.signal_number is not None:
        lines.append(f"stopped by {signal.Signals(report.signal_number).name}")
    if report.unsent and not (report.halt and report.halt.kind == "budget"):
        errors = [report.halt, *(job.error for job in report.worst)]
        mend = report.signal_number is None and any(error and error.kind in _UNMENDED for error in errors)
        lines.append(f"{'set that right, then ' if mend else ''}run the same command again to go on")
    return lines


_UNMENDED = frozenset({"config", "auth", "account", "quota"})
"""What stops a batch at once, and is not mended by trying again."""


def merged_line(report: BatchReport) -> str:
    """What became of the rows of shards that were joined."""
    counts = (
        (report.succeeded, "done"),
        (report.failed, "failed"),
        (report.unknown, "unknown"),
        (report.unsent, "not done yet"),
    )
    shown = ", ".join(f"{count} {word}" for count, word in counts if count) or "none"
    return " · ".join([f"{count_words(report.rows, 'row')}: {shown}", *_batch_money(report)])


def _batch_money(report: BatchReport) -> list[str]:
    """What the run has cost for sure, and may have cost beside."""
    money = []
    if report.cost and report.cost.amount:
        money.append(f"about {_noted(report.cost)}")
    if report.unpriced:
        money.append(f"{count_words(report.unpriced, 'request')} of unknown price")
    if report.possible:
        money.append(f"possibly {money_words(report.possible)}{' more' if money else ''}")
    return money


_ENDS = ("saved", "paid but not saved", "submitted", "failed", "not sent", "unknown")
_UNPAID = frozenset({"failed", "not sent"})


def summary_lines(report: Report) -> list[str]:
    """The closing line, and how to settle what is unknown; nothing where one picture was saved as asked."""
    counts = _count_ends(report)
    if sum(counts.values()) <= 1 and counts.keys() <= {"saved"} and not any(job.possible for job in report.jobs):
        return []
    doubtful = counts["unknown"] > 0
    names = {"failed": "failed (not charged)"} if doubtful else {}
    shown = [f"{counts[end]} {names.get(end, end)}" for end in _ENDS if counts[end]]
    spent = _spent_words(report, doubtful=doubtful) or (["not charged"] if counts.keys() <= _UNPAID else [])
    lines = [" · ".join([", ".join(shown), *spent])]
    if counts["unknown"]:
        lines.append(_settle_words(report, counts["unknown"]))
    if report.signal_number is not None:
        again = "; run the same command again to go on" if report.command == "batch" else ""
        lines.append(f"stopped by {signal.Signals(report.signal_number).name}{again}")
    return lines


def _label(job: JobResult, number: int, report: Report, labels: Mapping[int, str] | None) -> str:
    if labels and job.index in labels:
        return labels[job.index]
    return f"request {number + 1} of {len(report.jobs)}" if len(report.jobs) > 1 else ""


def _picture_entry(image: SavedImage, job: JobResult, subject: str) -> _Entry:
    """One failed picture: refusals by moderation first in our words, then in the provider's."""
    error = image.error
    if error is None:
        return [], ""
    where = f"{_place(subject)}picture {image.index + 1} of {len(job.images)}"
    moderated = error.kind == "moderation"
    code = getattr(error, "code", "")
    what = "refused by moderation" if moderated else clean(error.message) or error.kind
    lines = [f"error: {where}: {what}{f' ({clean(code, 200)})' if code else ''}"]
    if moderated and error.message:
        lines.append(f"  the provider says: {clean(error.message)}")
    detail = _detail(error, with_code=False)
    return lines + ([f"  {detail}"] if detail else []), error.hint


def _loose_error(job: JobResult) -> SeedreamError | None:
    """The request's failure, unless a picture has told it already."""
    told = any(image.error is job.error for image in job.images)
    return None if told else job.error


def _count_ends(report: Report) -> Counter[str]:
    """How many pictures, and requests without one, ended in which way."""
    counts: Counter[str] = Counter()
    for job in report.jobs:
        counts.update(_end(image.error) if image.error else "saved" for image in job.images)
        loose = _loose_error(job)
        if job.status == "submitted":
            counts["submitted"] += 1
        elif loose or (not job.images and job.status in {"failed", "unknown", "interrupted"}):
            counts["unknown" if job.status == "unknown" else _end(loose)] += 1
    return counts


def _end(error: SeedreamError | None) -> str:
    if error and (error.kind == "unknown_outcome" or error.billed == "unknown"):
        return "unknown"
    if error and error.billed == "yes":
        return "paid but not saved"
    return "not sent" if error and error.kind in {"interrupted", "budget"} else "failed"


def _is_doubtful(job: JobResult) -> bool:
    """Whether it is unknown if this request was billed."""
    return job.status == "unknown" or bool(job.error and job.error.billed == "unknown")


def _is_paid(image: SavedImage) -> bool:
    return image.error is None or image.error.billed == "yes"


def _spent_words(report: Report, *, doubtful: bool) -> list[str]:
    """The money. "Nothing" is never said while a request may have been billed unseen."""
    certain = [job for job in report.jobs if any(_is_paid(image) for image in job.images)]
    known = add_costs([job.certain for job in certain if job.certain])
    amount = f"about {_noted(known)}" if known and known.amount else ""
    unpriced = sum(1 for job in certain if not job.cost)
    if unpriced:
        # An unknown price is no price of nothing.
        unknown = f"{count_words(unpriced, 'request')} of unknown price"
        amount = f"{amount} and {unknown}" if amount else unknown
    repeated = add_costs([job.possible for job in report.jobs if job.possible])
    if not doubtful:
        # Attempts before, that may have been billed as well.
        more = [f"possibly {money_words(repeated)}{' more' if amount else ''}"] if repeated else []
        return [*([amount] if amount else []), *more]
    doubts = [job for job in report.jobs if _is_doubtful(job)]
    loose = [job.possible or (None if any(map(_is_paid, job.images)) else job.cost) for job in doubts]
    possible = add_costs([cost for cost in loose if cost])
    if not amount:
        return [f"may have been charged, possibly {_noted(possible)}" if possible else "may have been charged"]
    return [f"charged {amount}", f"possibly {money_words(possible)} more" if possible else "possibly more"]


def _noted(cost: Cost) -> str:
    """Money, and what limits that."""
    return f"{money_words(cost)} ({cost.note})" if cost.note else money_words(cost)


def _settle_words(report: Report, number: int) -> str:
    """What a person does about outcomes that the tool cannot know."""
    doubts = [job for job in report.jobs if _is_doubtful(job)]
    if doubts and not any(job.booked for job in doubts):
        return f"the {number} unknown: check the provider's usage page; no ledger knows of it, so nothing is to resolve"
    ids = [clean(job.id, 80) for job in doubts if job.id and job.booked]
    named = " ".join(ids) if 0 < len(ids) <= 3 else "ID"
    again = ", or run again with --only unknown --retry-ambiguous" if report.command == "batch" else ""
    look = f"to settle the {number} unknown: check the provider's usage page, then"
    return f"{look}  seedream history resolve {named} --paid | --unpaid{again}"
