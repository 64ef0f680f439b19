"""The folders of shards, joined into one: ledgers, images, results, and replies whose images are to come."""

from __future__ import annotations

import contextlib
import copy
import csv
import heapq
import itertools
import operator
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from ..errors import PARTIAL, FileError, InputError, Problem, SeedreamError
from ..ledger.ledger import Ledger
from ..ledger.records import Entry, NewRequest
from ..ledger.runs import Run
from ..results import BatchReport, Money
from ..storage import filesystem
from ..storage.file_names import clean_name
from ..storage.image_info import SPELLINGS, SUFFIXES, inspect
from ..storage.pixel_check import check_pixels, is_checked
from .columns import Columns
from .options import STEP
from .results_file import RowResult, write_results
from .row_results import SavedFiles, own_cost_of, row_result
from .table import Row, Table, open_table

RESULT_NAMES = tuple(one.name for one in fields(RowResult))

_NAME = re.compile(r"(?P<stem>.+)-(?P<index>[0-9]{1,5})-of-(?P<count>[0-9]{1,5})")
"""What a shard's folder is called where nobody called it otherwise."""


# --- ledgers, images and replies --------------------------------------------------------------------------------------


def merge_ledger(ledger: Ledger, other: Ledger, source: Path, target: Path) -> tuple[int, int, int]:
    """Take over a shard's rows, images and replies; how many requests and images were new here, and how many files
    were left behind: not in the folder itself, or no whole images.

    Images are linked, or copied where that cannot be, and stay where they were too. A name that is taken by another
    image gets a number, as when it is saved: only names with the row's number or id are one shard's alone. What the
    shard's ledger says of names counts for what lies within its folder alone. Raises `FileError`.
    """
    images, left, moved = 0, 0, list[tuple[str, int, Path]]()
    for entry in other.with_saved_images():
        known = ledger.row(entry.identity, entry.occurrence) if entry.identity else None
        here = {image.index: image.path for image in known.images} if known and known.id == entry.id else {}
        for image in entry.images:
            if image.state != "saved" or image.path is None:
                continue
            if not image.path.is_absolute() and not os.path.lexists(source / image.path):
                continue
            name = _whole_image_name(source, image.path, image.sha256)
            if name is None:
                left += 1
                # Where it is not, the merged folder says that it is missing.
                moved.append((entry.id, image.index, Path(clean_name(image.path.name))))
                continue
            place = here.get(image.index) or _free(source / image.path, target, name)
            images += _bring(source / image.path, target, place)
            if place != image.path:
                moved.append((entry.id, image.index, place))
    home = Path(".seedream") / "replies"
    for reply in sorted((source / home).glob("*")) if filesystem.is_own_folder(source / home) else ():
        if _REPLY.fullmatch(reply.name):
            _bring(reply, target, home / reply.name, may_link=False)
    return ledger.merge(other.path, moved), images, left


_REPLY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\.(reply|meta\.json|part|journal|[0-9]+\.cut)")


def _whole_image_name(source: Path, path: Path, sha256: str) -> Path | None:
    """The name of a shard's image by its own bytes; None where it is no whole image that lies in the folder.

    The pixels of one that still has the hash it was saved with were looked at then.
    """
    try:
        is_inside = (source / path).resolve().is_relative_to(source.resolve())
        if path.is_absolute() or not is_inside or not filesystem.is_plain(source / path):
            return None
        facts = inspect(source / path)
        found = facts.format
        if facts.sha256 != sha256 and is_checked(facts):
            check_pixels((source / path).read_bytes(), facts)
    except (SeedreamError, OSError, RuntimeError, ValueError):
        return None
    name = Path(*map(clean_name, path.with_suffix("").parts))
    suffix = path.suffix if SPELLINGS.get(path.suffix.lower()) == found else SUFFIXES[found]
    return name.with_name(f"{name.name}{suffix}")


def _free(path: Path, target: Path, name: Path) -> Path:
    """A name that is free in the target, or that of the same file, which an earlier merge may have brought."""
    numbered = (name.with_name(f"{name.stem}-{number}{name.suffix}") for number in itertools.count(2))
    for place in itertools.chain([name], numbered):
        with contextlib.suppress(OSError):
            if (target / place).samefile(path):
                return place
        if not os.path.lexists(target / place):
            return place
    raise AssertionError("there is always one more number")


def _bring(path: Path, target: Path, name: Path, *, may_link: bool = True) -> bool:
    """One file to its place in the target; False where it is gone, or its place is taken."""
    place = target / name
    if not filesystem.is_plain(path) or os.path.lexists(place):
        return False
    try:
        # A link in the target may lead out of it.
        if not place.parent.resolve().is_relative_to(target.resolve()):
            raise FileError(f"{place.parent} leads out of the output folder", hint="name its real folder with --output")
        place.parent.mkdir(parents=True, exist_ok=True)
        if may_link:
            with contextlib.suppress(OSError):
                place.hardlink_to(path)
                return True
        # The shard has it still, so that a name which is lost in a power cut costs nothing.
        with path.open("rb") as source, filesystem.atomic_file(place, 0o666, flushes_name=False) as copy_of:
            shutil.copyfileobj(source, copy_of)
    except OSError as error:
        raise FileError(f"cannot bring {path} to {place}: {filesystem.reason(error)}") from error
    return True


# --- rows and results, without the table ------------------------------------------------------------------------------


class _Place(NamedTuple):
    """A row of a part: its number in the table, what it asks for, and its cells."""

    number: int
    entries: tuple[Entry, ...]
    cells: Sequence[str]


@dataclass(frozen=True)
class Part:
    """A shard with its ledger, the run that listed its rows last, and its results, which have the table's columns."""

    folder: Path
    ledger: Ledger
    run: Run | None
    results: Table | None
    is_current: bool

    @property
    def headings(self) -> tuple[str, ...]:
        """The columns of the table that its rows came from."""
        return tuple(heading.name for heading in self.results.headings[: -len(RESULT_NAMES)]) if self.results else ()

    def places(self, headings: Sequence[str]) -> Iterator[_Place]:
        """Its rows in the table's order, with as many cells as there are columns."""
        if self.run is None:
            return
        written = self._cells() if self.is_current else itertools.repeat(())
        for (number, group), cells in zip(_rows(self.ledger, self.run), written, strict=False):
            # Where nothing was written down, the ledger itself knows two of the columns.
            known = {"prompt": group[0].prompt or "", "id": group[0].row_id}
            yield _Place(number, group, cells or [known.get(name.strip().lower(), "") for name in headings])

    def _cells(self) -> Iterator[Sequence[str]]:
        assert self.results is not None  # noqa: S101 - only then it is current
        width = len(self.headings)
        for row in self.results.rows(Columns(())):
            yield [str(cell) for cell in row.cells[:width]]


def open_part(stack: contextlib.ExitStack, folder: Path, ledger: Ledger, place: Path | None = None) -> Part:
    """What is known of a shard's rows. Results that are missing, or older than its last run, are passed over.

    `place` is where the results lie, where that is not the folder.
    """
    run, place = ledger.listing(), place or folder / "results.csv"
    results = None
    with contextlib.suppress(InputError):
        # A pipe, say, would be waited for.
        results = stack.enter_context(open_table(str(place))) if filesystem.is_plain(place) else None
    if results and not _has_results(results):
        results = None
    part = Part(folder, ledger, run, results, is_current=False)
    if results is None or run is None:
        return part
    many = sum(1 for _ in results.rows(Columns(())))
    return Part(folder, ledger, run, results, is_current=many == sum(1 for _ in _rows(ledger, run)))


def _has_results(table: Table) -> bool:
    """Whether its last columns are those of results; the table may have had columns of the same names."""
    last = [heading.name for heading in table.headings[-len(RESULT_NAMES) :]]
    return len(last) == len(RESULT_NAMES) and all(
        re.fullmatch(rf"(seedream_)?{name}(_[0-9]+)?", found) for name, found in zip(RESULT_NAMES, last, strict=True)
    )


def _rows(ledger: Ledger, run: Run) -> Iterator[tuple[int, tuple[Entry, ...]]]:
    """The rows that a run lists, by number, each with its requests."""
    for number, group in itertools.groupby(ledger.listed(run), key=lambda entry: entry.position // STEP):
        yield number, tuple(group)


def without_foreign_columns(part: Part, others: Sequence[Part]) -> Part:
    """What was merged before, without its results where its columns are not those of the others.

    A merge of shards that had no results yet knew but two columns.
    """
    if not part.results or part.headings in {other.headings for other in others if other.results} or not others:
        return part
    return replace(part, results=None, is_current=False) if any(other.results for other in others) else part


def check_parts(parts: Sequence[Part]) -> tuple[str, ...]:
    """The columns that all parts have. Raises `InputError` where they are not of one table."""
    known = {part.headings: part for part in parts if part.results}
    if len(known) > 1:
        first, second, *_ = known.values()
        raise InputError([_unlike(f"{first.folder} and {second.folder} have different columns")])
    headings = next(iter(known), ("id", "prompt"))
    for number, group in _by_number(parts, headings):
        if len({tuple(entry.identity for entry in place.entries) for place in group}) > 1:
            raise InputError([_unlike(f"row {number} is not the same in all folders")])
    return headings


def _unlike(message: str) -> Problem:
    hint = "were they made of one table? Name it before the folders, with the options of the shards' runs"
    return Problem("merge", message, hint, origin="--merge")


def _by_number(parts: Sequence[Part], headings: Sequence[str]) -> Iterator[tuple[int, list[_Place]]]:
    """The rows of all parts in the table's order, a row of several parts once."""
    merged = heapq.merge(*(part.places(headings) for part in parts), key=operator.attrgetter("number"))
    for number, group in itertools.groupby(merged, key=operator.attrgetter("number")):
        yield number, list(group)


def refresh_results(folder: Path, ledger: Ledger) -> bool:
    """Write a batch's results anew without its table, with the columns that they have; whether they are true now.

    Results that are not there are made where the last run was killed before it wrote any; one that ended wrote them
    elsewhere. Those of another table stay as they are. Raises `FileError`.
    """
    place = folder / "results.csv"
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())) / place.name
        is_there = os.path.lexists(place)
        try:
            if filesystem.is_plain(place):
                # The table that is written over cannot be the one that is read.
                shutil.copyfile(place, scratch)
        except OSError as error:
            raise FileError(f"cannot read {place}: {filesystem.reason(error)}") from error
        part = open_part(stack, folder, ledger, scratch)
        if part.run is None:
            return False
        if not is_there:
            if any(run.id == part.run.id and run.finished_at for run in ledger.runs()):
                return True
            headings: tuple[str, ...] = ("id", "prompt")
        elif part.is_current and _has_listed_rows(part):
            headings = part.headings
        else:
            return False
        join_results(place, folder, ledger, part.run, parts=[part], headings=headings)
    return True


def _has_listed_rows(part: Part) -> bool:
    """Whether the results are those of the rows that were listed last, by what both know of them."""
    known = [name.strip().lower() for name in part.headings]
    name = next((name for name in ("id", "prompt") if name in known), "")
    at = known.index(name) if name else 0
    for _, entries, cells in part.places(part.headings) if name else ():
        listed = entries[0].row_id if name == "id" else entries[0].prompt or ""
        # What would be a formula in a spreadsheet has a mark before it.
        if cells[at].strip().removeprefix("'") != listed.strip().removeprefix("'"):
            return False
    return True


def list_rows(ledger: Ledger, run: Run, parts: Sequence[Part], headings: Sequence[str]) -> None:
    """List the rows of all parts, whose requests the ledger has taken over, as those of one table."""
    ledger.enter(run, (_as_new(entry, run) for _, group in _by_number(parts, headings) for entry in group[0].entries))


def _as_new(entry: Entry, run: Run) -> NewRequest:
    """A row as it was entered first. The ledger knows it, so nothing of it changes but the run that lists it."""
    return NewRequest(
        id=f"{run.id}-{entry.position}",
        position=entry.position,
        provider=entry.provider,
        base_url=entry.base_url,
        model=entry.model,
        prompt=entry.prompt,
        body=entry.body,
        fingerprint=entry.fingerprint,
        images_at_most=entry.images_at_most,
        worst_micro=entry.worst_micro,
        currency=entry.currency,
        as_of=entry.as_of,
        fields=entry.fields,
        output=entry.output,
        identity=entry.identity or "",
        occurrence=entry.occurrence,
        row_id=entry.row_id,
        file=entry.file,
        line=entry.line,
    )


def join_results(
    path: Path,
    folder: Path,
    ledger: Ledger,
    run: Run,
    *,
    parts: Sequence[Part],
    headings: Sequence[str],
    stream: int | None = None,
) -> None:
    """Write one table of results: the columns of the parts' own, and what the ledger says now. Raises `FileError`."""
    pattern = next((part.results for part in parts if part.results and not part.results.is_file(path)), None)
    with contextlib.ExitStack() as stack:
        table = copy.copy(pattern) if pattern else stack.enter_context(_bare_table(folder, headings))
        table.headings = table.headings[: len(headings)]
        results = _joined_results(ledger, run, SavedFiles(folder), table, parts=parts, headings=headings)
        write_results(path, table, results, stream=stream)


@contextlib.contextmanager
def _bare_table(folder: Path, headings: Sequence[str]) -> Iterator[Table]:
    """A table with these columns and no rows, where no part has results."""
    place = folder / filesystem.part_name()
    try:
        with place.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(headings)
        with open_table(str(place)) as table:
            yield table
    finally:
        place.unlink(missing_ok=True)


def _joined_results(
    ledger: Ledger, run: Run, files: SavedFiles, table: Table, *, parts: Sequence[Part], headings: Sequence[str]
) -> Iterator[tuple[Row, RowResult]]:
    cells = ((number, group[0].cells) for number, group in _by_number(parts, headings))
    for (number, entries), (_, known) in zip(_rows(ledger, run), cells, strict=True):
        yield Row(table, Columns(()), number, entries[0].line or 0, known), row_result(entries, files)


def preview_rows(folder: Path, ledger: Ledger, run: Run) -> BatchReport:
    """What became of all rows that the run lists, whenever that was."""
    files, counts, money, unpriced = SavedFiles(folder), Counter[str](), Counter[str](), 0
    for _, entries in _rows(ledger, run):
        status = row_result(entries, files).status
        counts[_WORDS.get(status, "failed")] += 1
        for entry in entries:
            counts["images"] += sum(image.state in {"saved", "handed"} for image in entry.images)
            cost = own_cost_of(entry)
            money["yes"] += entry.earlier_micro
            money["unknown"] += entry.doubts * (entry.worst_micro or 0)
            money[entry.billed] += cost or 0
            unpriced += entry.billed != "no" and cost is None
            currency, as_of = entry.currency, entry.as_of
    rows = sum(counts[word] for word in ("succeeded", "failed", "unknown", "unsent"))
    possible = Money(money["unknown"], currency).cost(as_of) if money["unknown"] else None
    return BatchReport(
        rows=rows,
        succeeded=counts["succeeded"],
        failed=counts["failed"],
        unknown=counts["unknown"],
        unsent=counts["unsent"],
        images=counts["images"],
        cost=Money(money["yes"], currency).cost(as_of) if rows and not unpriced else None,
        possible=possible,
        unpriced=unpriced,
        codes=frozenset({0 if rows and counts["succeeded"] == rows else PARTIAL}),
    )


_WORDS = {
    "succeeded": "succeeded",
    "unknown": "unknown",
    "unsent": "unsent",
    "running": "unsent",
    "unsaved": "unsent",
    "submitted": "unsent",
}
"""How the words of results are counted; every other one is a failure."""


# --- names ------------------------------------------------------------------------------------------------------------


def common_folder(folders: Sequence[Path]) -> Path | None:
    """The folder of the whole, by the names of its parts: shots-1-of-2 and shots-2-of-2 are parts of shots."""
    found = [_NAME.fullmatch(folder.resolve().name) for folder in folders]
    stems = {(match["stem"], match["count"]) if match else None for match in found}
    [stem] = stems if len(stems) == 1 else [None]
    return Path(stem[0]) if stem else None


def absent_parts(folders: Sequence[Path], ledger: Ledger) -> list[str]:
    """The names of parts that were never brought together here, as far as names tell."""
    known = [*(folder.resolve().name for folder in folders), *(Path(run.folder).name for run in ledger.runs())]
    found = [match for match in map(_NAME.fullmatch, known) if match]
    wanted = {f"{m['stem']}-{index}-of-{m['count']}": None for m in found for index in range(1, int(m["count"]) + 1)}
    return [name for name in wanted if name not in known]
