"""The ledger: what was sent, paid and saved, recorded before it happens.

The API has no idempotency key and no list of jobs, so a request that is not recorded here is lost money. The contract:

- `mark_sent` has committed and flushed when it returns; only then may the first byte of a request be sent. If it
  raises, nothing may be sent. `mark_ready` has flushed the links before the first download starts.
- A request changes state only along `TRANSITIONS`, and only in the run that owns it. A run holds the lock on
  `<folder>/runs/<run>.lock` while it lives; a run whose lock is free is dead, and its requests are orphans.
- `billed` is at any time what would be true if the process died then. "unknown" counts as paid.
- What may have been paid is not sent again unless the caller passes `again`, and its cost stays in the sums.

One schema serves single runs (`<state>/ledger.db`) and batches (`<output>/.seedream/ledger.db`). Prompts and bodies are
stored, references by name, sha256 and size; there is no column for a key, and what looks like one is masked.
Money is whole micro-units of a currency (0.04 USD is 40000). SQLite errors are raised as `FileError`; its `billed` is
whether the request of the failed write is billed.
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
    """Open the ledger at `path`, or create one; older files are migrated.

    The folder is created with mode 0700, the file with 0600. `now` returns aware times. `secrets` are strings (keys)
    that are masked in all values. With `is_shared` it is in a batch's folder, which may come from somebody else, so
    symlinks and invalid rows are refused. Raises `FileError` where it cannot be written, or is damaged, no ledger, or
    of a newer version; such a file is not changed.
    """
    # SQLite's own error for EMFILE does not name the cause.
    require_files(file.FILES, f"the ledger {path}")
    make_folder(path.parent, is_named=not is_shared)
    if not file.exists(path) or file.is_truncated(path):
        file.create(path, now)
    ledger = Ledger(path, now=now, secrets=secrets)
    if is_shared:
        try:
            ledger.refuse_invalid_rows()
        except BaseException:
            ledger.close()
            raise
    return ledger


@contextlib.contextmanager
def lock_batch(folder: Path) -> Iterator[None]:
    """Hold the lock of the batch whose ledger is in `folder`.

    Raises `BusyError` at once where another process holds it, `FileError` where the lock cannot be created.
    """
    make_folder(folder)
    path = folder / "batch.lock"
    lock = Lock.acquire(path)
    if lock is None:
        holder = path.read_text("ascii", "replace").strip()[:20] if sys.platform != "win32" else ""
        by = f" (process {holder})" if holder.isdigit() else ""
        raise BusyError(f"another run{by} holds the batch in {folder.parent}", hint="wait for it, or stop it first")
    try:
        lock.write_pid()
        yield
    finally:
        lock.release()


class Ledger:
    """An open ledger, one per process and file. Its methods may be called from any thread and run one at a time.

    It is composed of parts that share the connection; their methods are documented there.
    """

    def __init__(  # noqa: PLR0915 -- a list
        self, path: Path, *, now: Callable[[], dt.datetime], secrets: Sequence[str] = ()
    ) -> None:
        self.path = path
        self._database = database = Database(path, now=now, secrets=secrets)
        self._locks = locks = RunLocks(path.parent / "runs")

        self.transaction = database.transaction
        self.check = database.check
        self.copy_to = database.copy_to
        self.refuse_invalid_rows = database.refuse_invalid_rows
        self.mask_secret = database.masked.mask_secret

        budget = Budget(database)
        self.record_external_charge = budget.record_external_charge
        self.external_charges = budget.external_charges
        self.charges = budget.charges
        self.reduce_external_charges = budget.reduce_external_charges
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
        self.recover_orphans = runs.recover_orphans
        self.tokens_in_flight = runs.tokens_in_flight

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
        self.with_saved_images = queries.with_saved_images
        self.count_sent = queries.count_sent
        self.unsaved = queries.unsaved
        self.refetchable = queries.refetchable
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
        self.row_statuses = table.row_statuses
        self.table_of = table.table_of
        self.is_listed = table.is_listed
        self.unlisted = table.unlisted

        self.merge = Merge(database, budget).merge
        self.purge = Purge(database, locks, budget).purge

    @property
    def journal(self) -> str:
        """The journal mode: "wal", or "truncate" on a network file system."""
        return self._database.journal

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release the locks of runs that were not ended."""
        self._locks.release()
        self._database.close()
