"""The batch folders that the user's ledger knows: looked into, and saved from what they paid for.

A folder is opened as one that came from somebody else (`files`): it may have been changed since its batch ran in it.
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
    """Whether there is a batch in the folder, as far as names tell: where there is none, none is made."""
    return os.path.lexists(folder / BATCH_HOME / "ledger.db")


def open_folder(folder: Path, environment: Environment | None = None) -> Ledger:
    """The ledger of a batch. Raises `FileError` for one that cannot be read or is not to be trusted."""
    return open_ledger_here(environment, home=folder / BATCH_HOME)


def known_folders(ledger: Ledger) -> dict[Path, tuple[RunRow, ...]]:
    """The folders of batches, each once, whatever it was called by, with its runs, newest first."""
    found: dict[Path, tuple[Path, tuple[RunRow, ...]]] = {}
    for folder, runs in ledger.batches().items():
        real = Path(os.path.realpath(folder))
        name, others = found.get(real, (folder, ()))
        found[real] = name, (*others, *runs)
    return dict(found.values())


def folder_of(ledger: Ledger, name: str) -> Path | None:
    """The folder of the batch that a run or a request of this name belongs to, where the user's ledger has no such
    request itself. Folders that came from elsewhere hold rows of other users' runs: those are asked one by one.
    """
    if not name or ledger.find(name):
        return None
    return ledger.batch_of(name) or next(
        (folder for folder in known_folders(ledger) if ask(folder, lambda own: bool(own.find(name)))[0]), None
    )


@dataclass
class Search:
    """What batches paid for and did not save, by folder. `names` are those of the user's words that meant it.

    `notes` tell what cannot be had. `passed` are folders that were passed over, each with why: `busy` is what that
    ends with where nothing else was to be done, `trouble` what it ends with where the others went well.
    """

    found: list[tuple[Path, Plan]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: frozenset[str] = frozenset()
    passed: list[str] = field(default_factory=list)
    busy: int = 0
    trouble: int = 0

    def pass_over(self, folder: Path, error: SeedreamError) -> None:
        """Leave a folder out, so that it keeps nobody from the others."""
        if isinstance(error, BusyError):
            self.busy = self.busy or error.exit_code
            self.passed.append(f"{error.message}, and was passed over: {error.hint}")
            return
        self.trouble = self.trouble or error.exit_code
        hint = f": {error.hint}" if error.hint else ""
        self.passed.append(f"the batch in {folder} was passed over, {error.message}{hint}")


def search_folders(
    wanted: Sequence[str],
    options: OptionValues,
    environment: Environment,
    ledger: Ledger | None,
    *,
    every: bool,
) -> Search:
    """Look into the folders of the requests that are named, or with `every` into all that the user's ledger knows.

    Of all, one that is gone, held by another run or cannot be read is passed over and told. Raises what is wrong with
    one of which something is named.
    """
    from ..engine.recovery import is_file

    search = Search()
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
        with hold(folder, environment) as own:
            ids = _ids(own, names, {run.id for run in known_folders(ledger).get(folder, ())})
            search.found.append((folder, _plan(folder, own, ids, options, environment, is_named=not ids)))
    search.names = frozenset(name for names in named.values() for name in names)
    return search


_GONE = "bring the folder back to that place; what lies elsewhere the same `seedream batch` command goes on with"


def _ids(own: Ledger, names: Iterable[str], runs: set[str]) -> list[str]:
    """What the batch's ledger can find: a name of one of its runs is all that is in it."""
    found = list[str]()
    for name in names:
        if (name in runs or not own.find(name)) and any(run.startswith(name) for run in runs):
            return []
        found.append(name)
    return found


def _search_all(search: Search, options: OptionValues, environment: Environment, ledger: Ledger) -> None:
    gone = list[str]()
    for folder in known_folders(ledger):
        if not has_ledger(folder):
            gone.append(str(folder))
            continue
        try:
            with hold(folder, environment) as own:
                plan = _plan(folder, own, (), options, environment)
        except SeedreamError as error:
            search.pass_over(folder, error)
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
def hold(folder: Path, environment: Environment) -> Iterator[Ledger]:
    """The ledger of a batch that no other run holds meanwhile. Raises `BusyError` and `FileError`."""
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


_STANDINGS = ("unknown", "unsaved", "submitted", "running", "failed", "partial", "resolved", "unsent", "succeeded")
"""By which of its requests a row is called, and a batch by which of its rows; the most urgent first."""

STEP = 1000


def overview(folder: Path, runs: Sequence[RunRow], own: Ledger | None, trouble: str = "") -> Overview:
    """What a batch's ledger tells of it; `trouble` where there is none to ask."""
    newest = runs[0]
    if own is None:
        status = "gone" if trouble == _IS_GONE else "unreadable"
        return Overview(newest.id, folder, newest.started_at, status=status, trouble=trouble)
    run, counts = own.listing(), Counter[str]()
    for row_statuses, many in own.row_statuses(run, STEP).items() if run else ():
        counts[next(word for word in _STANDINGS if word in row_statuses)] += many
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
        next((word for word in _STANDINGS if counts[word]), "unsent"),
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
    """The batches, newest first, of which a run or a row is like what is asked for."""
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
        look = functools.partial(_meant, folder, within, text=None if is_named else text, of=(provider, status))
        one, trouble = ask(folder, look)
        if one is None and trouble and is_named and not (provider or status):
            one = overview(folder, within, None, trouble)
        found += [one] if one else []
    return found


def _meant(
    folder: Path, runs: Sequence[RunRow], own: Ledger, *, text: str | None, of: tuple[str | None, str | None]
) -> Overview | None:
    """A batch as one line, where it or a row of it is like what is asked for."""
    one = overview(folder, runs, own)
    provider, status = of
    wanted = None if text is not None and text.casefold() in one.table.casefold() else text
    is_like = not (wanted or provider or status) or own.history(wanted, provider=provider, status=status, limit=1)
    return one if is_like else None


def ask(folder: Path, question: Callable[[Ledger], T]) -> tuple[T | None, str]:
    """What a batch's ledger answers, or why it does not: one that is gone or damaged keeps nobody from the others."""
    if not has_ledger(folder):
        return None, _IS_GONE
    try:
        with open_folder(folder) as own:
            return question(own), ""
    except SeedreamError as error:
        return None, error.message


_IS_GONE = "its folder is gone"


def find_batch(ledger: Ledger, name: str) -> tuple[Path, tuple[RunRow, ...]] | None:
    """The batch of which this is a run's id, or the start of one; None for the id of a request, too."""
    if ledger.find(name):
        return None
    folder = ledger.batch_of(name)
    runs = known_folders(ledger)
    at = next((one for one in runs if folder and os.path.realpath(one) == os.path.realpath(folder)), None)
    return (at, runs[at]) if at and name and any(run.id.startswith(name) for run in runs[at]) else None


def rows_of(own: Ledger) -> Iterator[Entry]:
    """The requests of the rows that a batch's table has, in its order."""
    run = own.listing()
    return own.listed(run) if run else iter(())


def kept_runs(ledger: Ledger) -> list[str]:
    """The runs of batches of which something may be left to save, to settle or to ask after."""
    return [
        run.id
        for folder, runs in known_folders(ledger).items()
        if ask(folder, _is_settled)[0] is not True
        for run in runs
    ]


def _is_settled(own: Ledger) -> bool:
    open_ones = (own.history(status=standing, limit=1) for standing in ("unknown", "running"))
    return not own.unsaved() and not any(open_ones)


def left_in_batches(ledger: Ledger) -> tuple[Counter[str], list[str]]:
    """How many requests of batches are unsaved, and how many of unknown outcome; and what is wrong with folders."""
    found, troubles = Counter[str](), list[str]()
    for folder in known_folders(ledger):
        many, trouble = ask(folder, _open_ones)
        found += many or Counter()
        troubles += [f"{folder}: {trouble}"] if trouble and trouble != _IS_GONE else []
    return found, troubles


def _open_ones(own: Ledger) -> Counter[str]:
    unsaved, unknown = own.unsaved(), own.history(status="unknown")
    return Counter(unsaved=len(unsaved), unknown=len(unknown))


def take_back(ledger: Ledger, folder: Path, own: Ledger, ids: Collection[str]) -> None:
    """Leave of what the user's ledger booked for rows of a batch what they cost, now that a person has looked."""
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
    """What every request cost, of single runs and of all batches, each once; and why of some folders only what was
    booked when they paid is known.
    """
    found = {charge.id: charge for charge in ledger.charges()}
    lost, troubles = set[str](), list[str]()
    for folder, runs in known_folders(ledger).items():
        charges, trouble = ask(folder, lambda own: list(own.charges()))
        if charges is None:
            troubles.append(f"{folder}: {trouble}")
            lost |= {run.id for run in runs}
        for charge in charges or ():
            found.setdefault(charge.id, charge)
    booked = [charge for run, charge in ledger.external_charges() if run in lost and charge.id not in found]
    return [*found.values(), *booked], troubles
