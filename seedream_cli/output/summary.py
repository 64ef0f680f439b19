"""What a run says to its user: lines while it lasts, results and the summary when it has ended, errors and warnings.

Results go to standard output, all else to standard error.
"""

from __future__ import annotations

import shlex
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

from ..errors import SeedreamError
from ..results import BatchReport, Cost, JobResult, Report, SavedImage, Sink
from ..text import clean, count_words, money_words
from .console import Console
from .json_output import add_costs, print_json, report_object
from .messages import _PLAIN_ID, _detail, _Entry, _error_entries, _join_entries, _place, error_lines, warning_lines

Mode = Literal["paths", "urls", "json", "none"]


# --- while a run lasts ------------------------------------------------------------------------------------------------


class Display(Sink, Protocol):
    """A sink that may hold a screen: close it before anything else is printed."""

    def close(self) -> None:
        """Leave the terminal as it was found. May be called twice."""


# --- when a run has ended ---------------------------------------------------------------------------------------------


def print_results(
    report: Report,
    console: Console,
    mode: Mode,
    *,
    quiet: bool = False,
    warned: bool = False,
    labels: Mapping[int, str] | None = None,
    printed: Counter[str] | None = None,
) -> None:
    """Results to standard output as `mode` asks, then what went wrong and the summary to standard error.

    `quiet` leaves only errors, `warned` says that the warnings were shown before. `labels` names requests by their
    index ("row 17"), where a number of the run would not help the user. `printed` are the places printed meanwhile.
    """
    if mode == "json":
        print_json(report_object(report), console)
    before = Counter(printed or ())
    for job in report.jobs:
        print_places(job.images, console, mode, before)
        # An id that is no plain word could be a command to whoever reads the output.
        if job.status == "submitted" and mode in {"paths", "urls"} and _PLAIN_ID.fullmatch(job.task_id):
            console.out(job.task_id)
    lines = (
        []
        if quiet or warned
        else warning_lines((*report.warnings, *(w for j in report.jobs for w in j.warnings if w.code not in GAPS)))
    )
    lines += failure_lines(report, labels=labels)
    if not quiet:
        lines += note_lines(report, labels=labels) + summary_lines(report)
    for line in lines:
        console.err(line)


def print_error(error: SeedreamError, console: Console) -> None:
    """A failure that ended everything, to standard error."""
    for line in error_lines(error):
        console.err(line)


def place_of(image: SavedImage, mode: Mode) -> str:
    """The path or the link of an image that succeeded, as it is printed; "" for none."""
    if image.error:
        return ""
    return str(image.path or "") if mode == "paths" else image.url if mode == "urls" else ""


def print_places(
    images: Iterable[SavedImage], console: Console, mode: Mode, printed: Counter[str] | None = None
) -> None:
    """The paths or the links of the images that succeeded, in order, one a line, but for those `printed` before."""
    before = Counter[str]() if printed is None else printed
    for image in images:
        place = place_of(image, mode)
        if before[place] > 0:
            before[place] -= 1
        elif place:
            console.out(place)


def failure_lines(report: Report, *, labels: Mapping[int, str] | None = None) -> list[str]:
    """Every failed request and image, in order."""
    entries: list[_Entry] = []
    for number, job in enumerate(report.jobs):
        subject = _label(job, number, report, labels)
        entries += [_image_entry(image, job, subject) for image in job.images if image.error]
        loose = _loose_error(job)
        if loose:
            entries += _error_entries(loose, subject, job.possible or job.cost)
    return _join_entries(entries)


GAPS = frozenset({"size_differs", "format_differs"})
"""Warnings that are known only when the images are here."""


def note_lines(report: Report, *, labels: Mapping[int, str] | None = None) -> list[str]:
    """What is no failure and yet not what was asked for: fewer images, a task that goes on at the provider."""
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
    """The closing line, and how to settle what is unknown; nothing where one image was saved as asked."""
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


def _image_entry(image: SavedImage, job: JobResult, subject: str) -> _Entry:
    """One failed image: refusals by moderation first in our words, then in the provider's."""
    error = image.error
    if error is None:
        return [], ""
    where = f"{_place(subject)}image {image.index + 1} of {len(job.images)}"
    moderated = error.kind == "moderation"
    code = getattr(error, "code", "")
    what = "refused by moderation" if moderated else clean(error.message) or error.kind
    lines = [f"error: {where}: {what}{f' ({clean(code, 200)})' if code else ''}"]
    if moderated and error.message:
        lines.append(f"  the provider says: {clean(error.message)}")
    detail = _detail(error, with_code=False)
    return lines + ([f"  {detail}"] if detail else []), error.hint


def _loose_error(job: JobResult) -> SeedreamError | None:
    """The request's failure, unless an image has told it already."""
    told = any(image.error is job.error for image in job.images)
    return None if told else job.error


def _count_ends(report: Report) -> Counter[str]:
    """How many images, and requests without one, ended in which way."""
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
    if doubts and not any(job.in_ledger for job in doubts):
        return f"the {number} unknown: check the provider's usage page; no ledger knows of it, so nothing is to resolve"
    ids = [clean(job.id, 80) for job in doubts if job.id and job.in_ledger]
    named = " ".join(ids) if 0 < len(ids) <= 3 else "ID"
    again = ", or run again with --only unknown --retry-ambiguous" if report.command == "batch" else ""
    look = f"to settle the {number} unknown: check the provider's usage page, then"
    return f"{look}  seedream history resolve {named} --paid | --unpaid{again}"
