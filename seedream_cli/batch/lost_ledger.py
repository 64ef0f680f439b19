"""A batch's folder without its ledger: what in it shows that rows were paid for, so that none is paid for twice."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..engine.job import places
from ..errors import InputError, Problem
from ..ledger.file import check_folder
from ..ledger.ledger import Ledger
from ..ledger.records import Unsent
from ..storage import filesystem
from ..storage.image_info import SPELLINGS
from ..storage.output_path import existing
from ..text import count_words
from .checks import CheckedRow
from .columns import Columns
from .options import STEP, BatchOptions
from .results_file import RESULTS, find_results
from .row_requests import RowRequests, RowTemplate
from .table import open_table

_UNPAID = frozenset({"", "unsent", "planned", "interrupted"})


def refuse_remains(row_requests: RowRequests) -> None:
    """Raise `InputError` where there is no ledger, and the folder shows that this batch, or another, was paid for.

    What was paid is known to the ledger alone: without it every row would be sent again. Raises `FileError` where the
    ledger may be there, but in no folder of ours.
    """
    order = row_requests.order
    check_folder(order.home)
    if os.path.lexists(order.home / "ledger.db"):
        return
    found = [*_told_by_results(order), *_told_by_replies(order)]
    # Whoever says what is to become of files that are there has seen them.
    found += [] if found or "if_exists" in row_requests.base.values else _told_by_images(row_requests)
    if found:
        raise InputError(found)


def refuse_older_ledger(order: BatchOptions, ledger: Ledger) -> None:
    """Raise `InputError` where the folder's results tell of more images that are there than its ledger knows.

    An older copy of the ledger, or an emptied one, would have rows sent again that were paid for since.
    """
    results = order.folder / "results.csv"
    done = _count_rows(results, "path", functools.partial(_is_done, order.folder))
    if not done:
        return
    known = ledger.count_sent()
    if done > known:
        message = (
            f"{results} tells of {count_words(done, 'row')} whose files are there, and {order.home / 'ledger.db'} "
            f"knows {known}: it is an older one, nothing is sent, since the rest may be paid for already"
        )
        way = f"put the newer ledger back, or move {results} away to pay for what this one does not know"
        raise InputError([Problem("output", message, way, origin="-o")])


def _is_done(folder: Path, status: str, told: str) -> bool:
    """Whether a row was done and the first of its images is there, also where its folder was moved since."""
    first = told.partition("|")[0]
    if status != "succeeded" or not first:
        return False
    return os.path.isfile(first) or (folder / Path(first).name).is_file()  # noqa: PTH113 - of many rows


def _problem(order: BatchOptions, said: str, way: str) -> Problem:
    message = f"{order.folder} has no ledger ({order.home / 'ledger.db'}) and {said}: nothing is sent, since it may be "
    return Problem("output", f"{message}paid for already", f"{way}, or give another folder with -o", origin="-o")


def _told_by_results(order: BatchOptions) -> Iterator[Problem]:
    """Results by which rows were done, or may have been paid for."""
    for path in dict.fromkeys((order.results, order.folder / "results.csv")):
        many = _count_rows(path, "billed", _is_paid)
        if many:
            way = f"put the ledger back (the folder {order.home.name}), or move {path} away to pay for all again"
            yield _problem(order, f"{path} tells of {count_words(many, 'row')} done or perhaps paid", way)


def _is_paid(status: str, billed: str) -> bool:
    """Whether a row was done, or may have cost something."""
    return status not in _UNPAID and not (status == "failed" and billed == "no")


def _count_rows(path: Path, column: str, counts: Callable[[str, str], bool]) -> int:
    """How many rows of a table of results count by their status and this column; 0 where it is none."""
    if not path.is_file():
        return 0
    with contextlib.suppress(InputError, OSError, UnicodeError), open_table(str(path)) as table:
        at = find_results([heading.name for heading in table.headings])
        if at is None:
            return 0
        status, other = at + RESULTS.index("status"), at + RESULTS.index(column)
        rows = (row.cells for row in table.rows(Columns(())) if len(row.cells) > max(status, other))
        return sum(counts(str(cells[status]), str(cells[other])) for cells in rows)
    return 0


def _told_by_replies(order: BatchOptions) -> Iterator[Problem]:
    """Replies that were kept since their images are not on disk yet."""
    folder = order.home / "replies"
    names = sorted(path.name for path in folder.iterdir()) if filesystem.is_own_folder(folder) else []
    if names:
        way = f"`seedream recover {folder / names[0]}` saves what a reply holds; move it away to go on"
        yield _problem(order, f"{count_words(len(names), 'kept reply', 'kept replies')}", way)


def _told_by_images(row_requests: RowRequests) -> list[Problem]:
    """Images under the names that rows of this table would get."""
    order = row_requests.order
    if not _has_images(order.folder):
        return []
    taken = sum(_is_taken(row_requests, judged) for judged in row_requests.judged())
    if not taken:
        return []
    way = (
        "--if-exists skip leaves the rows whose files are there; --if-exists rename or overwrite pays for all, "
        "which is right where the files are not of this table"
    )
    return [_problem(order, f"files by the names of {count_words(taken, 'row')}", way)]


def _has_images(folder: Path) -> bool:
    """Whether there is an image anywhere in a folder; links are not followed."""
    return any(
        os.path.splitext(name)[1].lower() in SPELLINGS  # noqa: PTH122 - of a hundred thousand names
        for _, _, names in os.walk(folder)
        for name in names
    )


def _is_taken(row_requests: RowRequests, judged: CheckedRow[RowTemplate | None]) -> bool:
    if judged.value is None:
        return False
    job = row_requests.job(judged, Unsent("0", judged.row.number * STEP, 0))
    return any(existing(place) for place in places(job))
