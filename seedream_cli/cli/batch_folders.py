"""The batch folders listed in the user's ledger: queries over them, and their unsaved images.

A folder may have been replaced since its batch ran, so it is opened like one from somebody else.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import BusyError, InputError, Problem, SeedreamError
from ..output.history import Overview
from .context import BATCH_HOME, open_ledger_here

if TYPE_CHECKING:
    from ..config.environment import Environment
    from ..engine.plan import Plan
    from ..ledger.ledger import Ledger
    from ..ledger.records import Charge, Entry, RunRow
    from ..request.image_request import OptionValues


T = TypeVar("T")


def has_ledger(folder: Path) -> bool:
    """Whether the folder has a batch's ledger."""
    return os.path.lexists(folder / BATCH_HOME / "ledger.db")


def open_folder(folder: Path, environment: Environment | None = None) -> Ledger:
    """The ledger of a batch. Raises `FileError` for one that cannot be read or is invalid."""
    return open_ledger_here(environment, home=folder / BATCH_HOME)


def known_folders(ledger: Ledger) -> dict[Path, tuple[RunRow, ...]]:
    """The folders of batches by real path, with their runs, newest first."""
    found: dict[Path, tuple[Path, tuple[RunRow, ...]]] = {}
    for folder, runs in ledger.batches().items():
        real = Path(os.path.realpath(folder))
        name, others = found.get(real, (folder, ()))
        found[real] = name, (*others, *runs)
    return dict(found.values())


def folder_of(ledger: Ledger, name: str) -> Path | None:
    """The folder of the batch of a run's or request's id; None for a request of the user's own ledger.

    A merged folder has rows of other runs, so the folders' ledgers are searched too.
    """
    if not name or ledger.find(name):
        return None
    return ledger.batch_of(name) or next(
        (folder for folder in known_folders(ledger) if query(folder, lambda own: bool(own.find(name)))[0]), None
    )


@dataclass
class SearchResult:
    """Unsaved images of batches, by folder. `names` are the arguments that matched them.

    `skipped` are messages on folders that could not be used: `busy` is the exit code where there is nothing else to
    do, `trouble` the one where the others succeeded.
    """

    found: list[tuple[Path, Plan]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: frozenset[str] = frozenset()
    skipped: list[str] = field(default_factory=list)
    busy: int = 0
    trouble: int = 0

    def skip(self, folder: Path, error: SeedreamError) -> None:
        """Skip a folder because of its error, and go on with the others."""
        if isinstance(error, BusyError):
            self.busy = self.busy or error.exit_code
            self.skipped.append(f"{error.message}, and was passed over: {error.hint}")
            return
        self.trouble = self.trouble or error.exit_code
        hint = f": {error.hint}" if error.hint else ""
        self.skipped.append(f"the batch in {folder} was passed over, {error.message}{hint}")


def search_folders(
    wanted: Sequence[str],
    options: OptionValues,
    environment: Environment,
    ledger: Ledger | None,
    *,
    every: bool,
) -> SearchResult:
    """Search the folders of the wanted requests, or with `every` all folders in the user's ledger.

    With `every` a folder that is missing, locked or unreadable is skipped with a message; else its error is raised.
    """
    from ..engine.recovery import is_file

    search = SearchResult()
    if ledger is None:
        return search
    if every:
        _search_all(search, options, environment, ledger)
        return search
    named: dict[Path, list[str]] = {}
    for name in wanted:
        if not is_file(name) and (folder := folder_of(ledger, name)):
            named.setdefault(folder, []).append(name)
    gone = [Problem("id", f"{named[folder][0]} is of the batch in {folder}, which is gone", _GONE, origin="ID")
            for folder in named if not has_ledger(folder)]  # fmt: skip
    if gone:
        raise InputError(gone)
    for folder, names in named.items():
        with lock_and_open(folder, environment) as own:
            ids = _ids(own, names, {run.id for run in known_folders(ledger).get(folder, ())})
            search.found.append((folder, _plan(folder, own, ids, options, environment, is_named=not ids)))
    search.names = frozenset(name for names in named.values() for name in names)
    return search


_GONE = "bring the folder back to that place; what lies elsewhere the same `seedream batch` command goes on with"


def _ids(own: Ledger, names: Iterable[str], runs: set[str]) -> list[str]:
    """The names to search for in the batch's ledger; [] (all) where one is a run of the batch."""
    found = list[str]()
    for name in names:
        if (name in runs or not own.find(name)) and any(run.startswith(name) for run in runs):
            return []
        found.append(name)
    return found


def _search_all(search: SearchResult, options: OptionValues, environment: Environment, ledger: Ledger) -> None:
    gone = list[str]()
    for folder in known_folders(ledger):
        if not has_ledger(folder):
            gone.append(str(folder))
            continue
        try:
            with lock_and_open(folder, environment) as own:
                plan = _plan(folder, own, (), options, environment)
        except SeedreamError as error:
            search.skip(folder, error)
            continue
        search.notes += plan.notices
        if plan.jobs or plan.left:
            search.found.append((folder, plan))
    if gone:
        more = f" and {len(gone) - _GONE_MOST} more" if len(gone) > _GONE_MOST else ""
        what = "a batch's folder is" if len(gone) == 1 else "batches' folders are"
        search.notes.append(f"{what} gone or elsewhere, and passed over: {', '.join(gone[:_GONE_MOST])}{more}")


_GONE_MOST = 3


@contextlib.contextmanager
def lock_and_open(folder: Path, environment: Environment) -> Iterator[Ledger]:
    """The ledger of a batch, with its lock held. Raises `BusyError` and `FileError`."""
    from ..ledger.ledger import lock_batch

    with lock_batch(folder / BATCH_HOME), open_folder(folder, environment) as own:
        yield own


def _plan(
    folder: Path,
    own: Ledger,
    names: Sequence[str],
    options: OptionValues,
    environment: Environment,
    *,
    is_named: bool = False,
) -> Plan:
    from ..engine.recovery import batch_recovery

    home = folder / BATCH_HOME
    return batch_recovery(names, options, environment, own, folder=folder, home=home, is_named=is_named)


_STATUSES = ("unknown", "unsaved", "submitted", "running", "failed", "partial", "resolved", "unsent", "succeeded")
"""Most urgent first: a row has the first status of its requests, a batch that of its rows."""

STEP = 1000


def overview(folder: Path, runs: Sequence[RunRow], own: Ledger | None, trouble: str = "") -> Overview:
    """A batch in numbers; without its ledger (`own` is None) only why, `trouble`."""
    newest = runs[0]
    if own is None:
        status = "gone" if trouble == _IS_GONE else "unreadable"
        return Overview(newest.id, folder, newest.started_at, status=status, trouble=trouble)
    run, counts = own.listing(), Counter[str]()
    for row_statuses, many in own.row_statuses(run, STEP).items() if run else ():
        counts[next(word for word in _STATUSES if word in row_statuses)] += many
    images, providers, models = own.totals()
    return Overview(
        newest.id,
        folder,
        newest.started_at,
        own.table_of(run) if run else "",
        sum(counts.values()),
        counts,
        tuple(sorted(providers)),
        tuple(sorted(models)),
        images,
        own.spent(),
        next((word for word in _STATUSES if counts[word]), "unsent"),
    )


def list_batches(
    ledger: Ledger,
    text: str | None = None,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    provider: str | None = None,
    status: str | None = None,
    limit: int | None = None,
) -> list[Overview]:
    """The batches with a matching run or row, newest first."""
    found = list[Overview]()
    for folder, runs in known_folders(ledger).items():
        if limit is not None and len(found) >= limit:
            break
        within = [
            run for run in runs if (not since or run.started_at >= since) and (not until or run.started_at < until)
        ]
        if not within:
            continue
        names = (str(folder), *(run.id for run in runs))
        is_named = text is None or any(text.casefold() in name.casefold() for name in names)
        look = functools.partial(_match, folder, within, text=None if is_named else text, of=(provider, status))
        one, trouble = query(folder, look)
        if one is None and trouble and is_named and not (provider or status):
            one = overview(folder, within, None, trouble)
        found += [one] if one else []
    return found


def _match(
    folder: Path, runs: Sequence[RunRow], own: Ledger, *, text: str | None, of: tuple[str | None, str | None]
) -> Overview | None:
    """A batch in numbers where it or one of its rows matches; else None."""
    one = overview(folder, runs, own)
    provider, status = of
    wanted = None if text is not None and text.casefold() in one.table.casefold() else text
    is_like = not (wanted or provider or status) or own.history(wanted, provider=provider, status=status, limit=1)
    return one if is_like else None


def query(folder: Path, question: Callable[[Ledger], T]) -> tuple[T | None, str]:
    """(result of `question` on a batch's ledger, ""), or (None, the error's message)."""
    if not has_ledger(folder):
        return None, _IS_GONE
    try:
        with open_folder(folder) as own:
            return question(own), ""
    except SeedreamError as error:
        return None, error.message


_IS_GONE = "its folder is gone"


def find_batch(ledger: Ledger, name: str) -> tuple[Path, tuple[RunRow, ...]] | None:
    """The batch of a run's id or its prefix; None for any other name."""
    if ledger.find(name):
        return None
    folder = ledger.batch_of(name)
    runs = known_folders(ledger)
    at = next((one for one in runs if folder and os.path.realpath(one) == os.path.realpath(folder)), None)
    return (at, runs[at]) if at and name and any(run.id.startswith(name) for run in runs[at]) else None


def rows_of(own: Ledger) -> Iterator[Entry]:
    """The requests of a batch's table, in table order."""
    run = own.listing()
    return own.listed(run) if run else iter(())


def kept_runs(ledger: Ledger) -> list[str]:
    """The runs of batches with unsaved, unknown or running requests, or whose ledger cannot be read."""
    return [
        run.id
        for folder, runs in known_folders(ledger).items()
        if query(folder, _is_settled)[0] is not True
        for run in runs
    ]


def _is_settled(own: Ledger) -> bool:
    open_ones = (own.history(status=standing, limit=1) for standing in ("unknown", "running"))
    return not own.unsaved() and not any(open_ones)


def left_in_batches(ledger: Ledger) -> tuple[Counter[str], list[str]]:
    """Counts of unsaved and unknown requests of batches, and the errors of folders."""
    found, troubles = Counter[str](), list[str]()
    for folder in known_folders(ledger):
        many, trouble = query(folder, _count_open)
        found += many or Counter()
        troubles += [f"{folder}: {trouble}"] if trouble and trouble != _IS_GONE else []
    return found, troubles


def _count_open(own: Ledger) -> Counter[str]:
    unsaved, unknown = own.unsaved(), own.history(status="unknown")
    return Counter(unsaved=len(unsaved), unknown=len(unknown))


def reduce_charges(ledger: Ledger, folder: Path, own: Ledger, ids: Collection[str]) -> None:
    """Reduce the external charges in the user's ledger to the costs of these requests, after `resolve`."""
    runs = next(
        (runs for one, runs in known_folders(ledger).items() if os.path.realpath(one) == os.path.realpath(folder)), ()
    )
    costs = dict.fromkeys(ids, 0)
    for charge in own.charges():
        if charge.id in costs and charge.is_priced:
            costs[charge.id] = charge.paid + charge.possible
        elif charge.id in costs:
            del costs[charge.id]
    ledger.reduce_external_charges({run.id for run in runs}, costs)


def all_charges(ledger: Ledger) -> tuple[list[Charge], list[str]]:
    """The costs of all requests, of single runs and batches, each once; and the errors of folders, for whose requests
    the external charges are used.
    """
    found = {charge.id: charge for charge in ledger.charges()}
    lost, troubles = set[str](), list[str]()
    for folder, runs in known_folders(ledger).items():
        charges, trouble = query(folder, lambda own: list(own.charges()))
        if charges is None:
            troubles.append(f"{folder}: {trouble}")
            lost |= {run.id for run in runs}
        for charge in charges or ():
            found.setdefault(charge.id, charge)
    booked = [charge for run, charge in ledger.external_charges() if run in lost and charge.id not in found]
    return [*found.values(), *booked], troubles
