"""The ledger: what was asked, sent, paid and saved, written down before it happens.

The API has no idempotency key and lists no jobs, so what is not written here is lost money. The contract:

- `mark_sent` has committed and flushed when it returns; only then may the first byte of a request leave. If it
  raises, nothing may be sent. `mark_ready` has flushed the links before the first download starts.
- A request moves only along `TRANSITIONS`, and only by the run that has it in hand. A run holds the lock of
  `<folder>/runs/<run>.lock` while it lives; whose lock is free is dead, and its requests are orphans.
- `billed` is at every moment what would be true if the process died right there. Unknown counts as paid.
- What may have been paid is never sent again unless the caller says `again`, and the doubt stays in the account.

One schema serves single runs (`<state>/ledger.db`) and batches (`<output>/.seedream/ledger.db`). Prompts and bodies are
stored, references by name, sha256 and size; there is no column for a key, and what looks like one is masked.
Money is whole micro-units of a currency (0.04 USD is 40000). Every sqlite error comes out as a `FileError`, whose
`billed` says what the failed step puts at stake.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import BusyError
from ..storage.system_limits import require_files
from . import file
from .budget import Budget
from .database import Database
from .entering import Entering
from .merge import Merge
from .purge import Purge
from .queries import Queries, TableQueries
from .run_lock import Lock, RunLocks, make_folder
from .runs import Runs
from .transitions import Transitions


def open_ledger(
    path: Path, *, now: Callable[[], dt.datetime], secrets: Sequence[str] = (), is_shared: bool = False
) -> Ledger:
    """Open the ledger at `path`, or make one; older files are brought up to date.

    The folder is made 0700 where it is not there, the file is 0600. `now` gives aware times. `secrets` are strings
    (keys) that are masked in whatever is written. One that `is_shared` lies in a batch's folder, which may have come
    from somebody else. Raises `FileError` where the place cannot be written, and for a file
    that is damaged, no ledger, or of a newer version; such a file is left as it is.
    """
    # SQLite itself cannot say why it opens no file.
    require_files(file.FILES, f"the ledger {path}")
    make_folder(path.parent, is_named=not is_shared)
    if not file.is_there(path) or file.is_half_made(path):
        file.create(path, now)
    ledger = Ledger(path, now=now, secrets=secrets)
    if is_shared:
        try:
            ledger.refuse_odd_rows()
        except BaseException:
            ledger.close()
            raise
    return ledger


@contextlib.contextmanager
def hold_batch(folder: Path) -> Iterator[None]:
    """Hold the batch of which `folder` has the ledger, for as long as the block runs.

    Raises `BusyError` at once where another process holds it, `FileError` where there can be no lock.
    """
    make_folder(folder)
    path = folder / "batch.lock"
    lock = Lock.take(path)
    if lock is None:
        holder = path.read_text("ascii", "replace").strip()[:20] if sys.platform != "win32" else ""
        by = f" (process {holder})" if holder.isdigit() else ""
        raise BusyError(f"another run{by} holds the batch in {folder.parent}", hint="wait for it, or stop it first")
    try:
        lock.sign()
        yield
    finally:
        lock.release()


class Ledger:
    """An open ledger. One per process and file; its methods may be called from any thread, one runs at a time.

    It is made of parts that share the open file. What it can do is listed here, and told where a part does it.
    """

    def __init__(  # noqa: PLR0915 -- a list
        self, path: Path, *, now: Callable[[], dt.datetime], secrets: Sequence[str] = ()
    ) -> None:
        self.path = path
        self._database = database = Database(path, now=now, secrets=secrets)
        self._locks = locks = RunLocks(path.parent / "runs")

        self.together = database.together
        self.check = database.check
        self.copy_to = database.copy_to
        self.refuse_odd_rows = database.refuse_odd_rows
        self.hide = database.masked.hide

        budget = Budget(database)
        self.book = budget.book
        self.booked = budget.booked
        self.charges = budget.charges
        self.cut_bookings = budget.cut_bookings
        self.spent = budget.spent
        self.today = budget.today

        runs = Runs(database, locks)
        self.run = runs.run
        self.runs = runs.runs
        self.batches = runs.batches
        self.batch_of = runs.batch_of
        self.listing = runs.listing
        self.claim = runs.claim
        self.take = runs.take
        self.settle_orphans = runs.settle_orphans
        self.tokens_out = runs.tokens_out

        entering = Entering(database)
        self.enter = entering.enter
        self.enter_rows = entering.enter_rows

        transitions = Transitions(database, locks, budget)
        self.mark_sent = transitions.mark_sent
        self.mark_queued = transitions.mark_queued
        self.mark_waiting = transitions.mark_waiting
        self.mark_ready = transitions.mark_ready
        self.mark_image = transitions.mark_image
        self.mark_saved = transitions.mark_saved
        self.mark_missing = transitions.mark_missing
        self.mark_failed = transitions.mark_failed
        self.mark_unknown = transitions.mark_unknown
        self.check_resolvable = transitions.check_resolvable
        self.resolve = transitions.resolve
        self.note = transitions.note

        queries = Queries(database, locks)
        self.history = queries.history
        self.find = queries.find
        self.row = queries.row
        self.entries = queries.entries
        self.drawn = queries.drawn
        self.count_begun = queries.count_begun
        self.unsaved = queries.unsaved
        self.askable = queries.askable
        self.reusable = queries.reusable
        self.notes = queries.notes
        self.totals = queries.totals

        table = TableQueries(database)
        self.listed = table.listed
        self.unsent = table.unsent
        self.queued = table.queued
        self.count_single = table.count_single
        self.saved = table.saved
        self.forecast = table.forecast
        self.standings = table.standings
        self.table_of = table.table_of
        self.is_listed = table.is_listed
        self.unlisted = table.unlisted

        self.absorb = Merge(database, budget).absorb
        self.purge = Purge(database, locks, budget).purge

    @property
    def journal(self) -> str:
        """How commits are made: "wal", or "truncate" on a network disk."""
        return self._database.journal

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and let go of the locks of runs that were not ended."""
        self._locks.release()
        self._database.close()
