"""The ledger: what was asked, sent, paid and saved, written down before it happens. The one user of SQLite.

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
import errno
import hashlib
import itertools
import json
import os
import re
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from . import __version__, files
from .errors import Billed, BudgetError, BusyError, FileError, InputError, InternalError, Problem, SeedreamError
from .scarcity import require_files

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

State = Literal["queued", "sent", "waiting", "ready", "saved", "failed", "unknown", "resolved"]
PictureState = Literal["pending", "saved", "handed", "failed", "expired"]
Standing = Literal["unsent", "running", "submitted", "unsaved", "succeeded", "partial", "failed", "unknown", "resolved"]
Resolution = Literal["paid", "unpaid"]

TRANSITIONS: Mapping[State, frozenset[State]] = {
    "queued": frozenset({"queued", "sent", "failed"}),
    "sent": frozenset({"queued", "waiting", "ready", "failed", "unknown"}),
    "waiting": frozenset({"waiting", "ready", "failed", "unknown"}),
    "ready": frozenset({"ready", "waiting", "saved", "failed", "unknown"}),
    "saved": frozenset({"ready", "sent"}),
    "failed": frozenset({"ready", "sent"}),
    "unknown": frozenset({"unknown", "waiting", "ready", "failed", "sent"}),
    "resolved": frozenset({"ready", "sent"}),
}
"""Where a request may go from each state. From the four last ones to `sent` only where the caller says `again`.
What a person resolves goes to `resolved` (paid) or back to `queued` (unpaid), whatever it was."""

_AGAIN: frozenset[State] = frozenset({"saved", "failed", "unknown", "resolved"})
_IN_FLIGHT: frozenset[State] = frozenset({"sent", "waiting", "ready"})
_BUSY_S = 30.0
_CHUNK = 2000
_ENTERED = 30_000
"""Rows of one transaction: the more, the fewer pages of the indexes are written again and again."""
_PAGE = 200
_LOCK_BYTE = 1 << 30
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


# --- what goes in and out -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRequest:
    """A request to enter. `worst_micro` is the most it may cost, None where no price is known.

    `body` is the body as sent; references in it are stored by name, sha256 and bytes. `fields` is what names are made
    of, `output` where the pictures go. `identity` and `occurrence` name a batch's row; without an identity the
    request belongs to the run that enters it. `file`, `line` and `row_id` say where a row stands in its table.
    """

    id: str
    position: int
    provider: str
    base_url: str
    model: str
    prompt: str | None
    body: Mapping[str, Any]
    fingerprint: str
    pictures_at_most: int = 1
    worst_micro: int | None = None
    currency: str = "USD"
    as_of: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""
    occurrence: int = 0
    row_id: str = ""
    file: str = ""
    line: int | None = None


class Pattern:
    """A JSON object of which some values differ from row to row: what they have in common is written once.

    `own` are the keys of the others, whose values are texts and whole numbers, in the order of the object's keys.
    """

    __slots__ = ("_form", "own")

    def __init__(self, value: Mapping[str, Any], own: Iterable[str] = ()) -> None:
        self.own = tuple(key for key in value if key in set(own))
        if any(_SENSITIVE.search(key) for key in self.own):
            raise InternalError("what a secret's name stands for cannot differ from row to row")
        parts = [
            f"{_form(_ENCODER.encode(key))}:%s"
            if key in self.own
            else _form(_ENCODER.encode(_plain({key: item}))[1:-1])
            for key, item in value.items()
        ]
        self._form = f"{{{','.join(parts)}}}"

    def fill(self, values: Iterable[str | int]) -> str:
        """The object of one row as JSON, by the values of `own`: in ASCII, and without base64."""
        return self._form % tuple([value if isinstance(value, int) else _quote(value) for value in values])


def _form(text: str) -> str:
    return text.replace("%", "%%")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mould:
    """What rows of a table have in common, as `NewRequest` has it."""

    provider: str
    base_url: str
    model: str
    body: Pattern
    fields: Pattern
    output: Pattern
    pictures_at_most: int
    worst_micro: int | None
    currency: str
    as_of: str
    file: str


class NewRow(NamedTuple):
    """A request of a batch's row, to enter: `mould` and what is its own, as `NewRequest` has it.

    `body`, `fields` and `output` are values for the mould's patterns; fields that are not the mould's are a mapping.
    It is known by its identity, which is its fingerprint too. A tuple, since one is made for each of a hundred thousand
    rows.
    """

    mould: Mould
    id: str
    position: int
    line: int
    identity: str
    occurrence: int
    row_id: str
    prompt: str | None
    body: Sequence[str | int]
    fields: tuple[str, ...] | Mapping[str, str]
    output: tuple[str | int, ...]


_Heads = dict[tuple[Mould, tuple[str | int, ...]], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it was written down: the JSON output's `code`, and the provider's own words."""

    code: str
    message: str
    hint: str = ""
    provider_code: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRow:
    """One picture of a request.

    `pending`: paid and not on disk; `saved`: on disk at `path`; `handed`: given out as a link or to standard output;
    `failed`: the provider did not make it; `expired`: paid, and its link is dead. `expires` is when the link dies, in
    seconds since 1970, None where that is not known.
    """

    index: int
    state: PictureState = "pending"
    link: str = ""
    expires: int | None = None
    path: Path | None = None
    format: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0
    sha256: str = ""
    error: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request as the ledger has it. Times are aware, in UTC.

    `status` is the user's word for its state: `unsent`, `running`, `submitted` (a task is open), `unsaved` (paid, not
    on disk), `succeeded`, `partial`, `failed`, `unknown`, `resolved`. `run` entered it, `owner` has it in hand.
    `doubts` counts earlier attempts that may have been billed too; `earlier_micro` is what earlier ones cost for sure.
    `reply` is the kept reply of a process that died before it read it.
    """

    id: str
    run: str
    owner: str | None
    position: int
    state: State
    status: Standing
    provider: str
    base_url: str
    model: str
    prompt: str | None
    body: Mapping[str, Any]
    fingerprint: str
    identity: str | None
    occurrence: int
    row_id: str
    file: str
    line: int | None
    pictures_at_most: int
    worst_micro: int | None
    settled_micro: int | None
    earlier_micro: int
    currency: str
    as_of: str
    fields: Mapping[str, str]
    output: Mapping[str, Any]
    attempts: int
    token: str
    entered_at: dt.datetime
    sent_at: dt.datetime | None
    answered_at: dt.datetime | None
    finished_at: dt.datetime | None
    billed: Billed
    billed_pictures: int | None
    doubts: int
    error: Failure | None
    usage: Mapping[str, Any] | None
    task_id: str
    trace: str
    reply: Path | None
    pictures: tuple[PictureRow, ...]

    @property
    def links_left(self) -> list[int]:
        """The images that are no file, and whose links may be asked: expired ones, and those that were handed out."""
        return [row.index for row in self.pictures if row.state in {"expired", "handed"} and row.link and not row.path]


@dataclass(frozen=True, slots=True)
class Unsent:
    """A queued row, as far as it takes to send it: the rest is in the table."""

    id: str
    position: int
    occurrence: int


class Queued(NamedTuple):
    """A queued request, as far as it takes to count what it may come to."""

    position: int
    pictures_at_most: int
    worst_micro: int | None


class Saved(NamedTuple):
    """A saved request, as far as it takes to look for its files: state, stored path and bytes of each image."""

    id: str
    position: int
    pictures: tuple[tuple[PictureState, str | bytes | None, int], ...]


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run. `finished_at` None and not alive: it was killed."""

    id: str
    command: str
    started_at: dt.datetime
    finished_at: dt.datetime | None
    exit_code: int | None
    version: str
    folder: str
    alive: bool


class Charge(NamedTuple):
    """What a request that was sent cost, for sums: in micro-units, certain and possible, and whether that is known."""

    id: str
    at: dt.datetime
    provider: str
    model: str
    images: int
    paid: int
    possible: int
    is_priced: bool
    currency: str


@dataclass(frozen=True, slots=True)
class Note:
    """What was done to a request beside its way: `resolved`, `resent`, `recovered`, `orphaned`; `purged` names none."""

    request: str | None
    at: dt.datetime
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class Spent:
    """Money in micro-units of `currency`: certain, held for what is out or about to go, and possibly charged.

    `unpriced` counts requests that cost something that is not known (no price, or another currency).
    """

    paid: int
    reserved: int
    possible: int
    unpriced: int
    currency: str

    @property
    def total(self) -> int:
        """All three: what a budget counts."""
        return self.paid + self.reserved + self.possible


@dataclass(frozen=True, slots=True)
class Caps:
    """The most a run, and a local day over all processes, may cost, in micro-units; None for no limit.

    `batch` is the most that all runs of this ledger may cost together, and `part` of that the share of those rows
    for whose identity `has_row` says yes, as of a shard.
    """

    run: int | None = None
    daily: int | None = None
    currency: str = "USD"
    batch: int | None = None
    part: int | None = None
    has_row: Callable[[str], bool] | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return any(cap is not None for cap in (self.run, self.daily, self.batch, self.part))

    def within(self, other: Caps) -> Caps:
        """Both, of a run: the lower of each."""
        runs, days = (
            [cap for cap in pair if cap is not None] for pair in ((self.run, other.run), (self.daily, other.daily))
        )
        return replace(self, run=min(runs, default=None), daily=min(days, default=None))


@dataclass(frozen=True, slots=True)
class Hold:
    """The worst cost of a request in micro-units, None where no price is known, and the budgets it is held against."""

    micro: int | None
    caps: Caps


@dataclass(frozen=True, slots=True)
class Entered:
    """How many requests were new and how many rows the ledger knew already."""

    new: int
    known: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of the orphans: ids whose whole reply was found, ids whose outcome is unknown."""

    ready: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Purged:
    """How many requests were removed, and how many stayed because they are unsaved, unknown or in flight."""

    removed: int
    kept: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What requests may come to: how many, their pictures and cost at most, and how many have no known price."""

    requests: int = 0
    pictures: int = 0
    micro: int = 0
    unpriced: int = 0

    def __add__(self, other: Forecast) -> Forecast:
        return Forecast(
            self.requests + other.requests,
            self.pictures + other.pictures,
            self.micro + other.micro,
            self.unpriced + other.unpriced,
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """How many requests are in each state."""

    queued: int = 0
    sent: int = 0
    waiting: int = 0
    ready: int = 0
    saved: int = 0
    failed: int = 0
    unknown: int = 0
    resolved: int = 0


# --- the schema -----------------------------------------------------------------------------------------------------

_APPLICATION = 0x53454544
"""SQLite's application id of a ledger ("SEED"), which tells it from any other program's database."""

MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "runs and requests",
        (
            "PRAGMA application_id = 1397048644",
            "CREATE TABLE migrations(name TEXT PRIMARY KEY, at TEXT NOT NULL)",
            """CREATE TABLE runs(
                id TEXT PRIMARY KEY, command TEXT NOT NULL, started_at TEXT NOT NULL, finished_at TEXT,
                exit_code INTEGER, version TEXT NOT NULL, folder TEXT NOT NULL)""",
            """CREATE TABLE requests(
                number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, run TEXT NOT NULL REFERENCES runs(id),
                owner TEXT REFERENCES runs(id), listed TEXT REFERENCES runs(id), position INTEGER NOT NULL,
                state TEXT NOT NULL DEFAULT 'queued' CHECK(state IN
                    ('queued', 'sent', 'waiting', 'ready', 'saved', 'failed', 'unknown', 'resolved')),
                provider TEXT NOT NULL, base_url TEXT NOT NULL, model TEXT NOT NULL, prompt TEXT,
                body TEXT NOT NULL, fingerprint TEXT NOT NULL, identity TEXT, occurrence INTEGER NOT NULL DEFAULT 0,
                row_id TEXT NOT NULL DEFAULT '', file TEXT NOT NULL DEFAULT '', line INTEGER,
                pictures_at_most INTEGER NOT NULL, fields TEXT NOT NULL, output TEXT NOT NULL,
                worst_micro INTEGER, settled_micro INTEGER, earlier_micro INTEGER NOT NULL DEFAULT 0,
                currency TEXT NOT NULL, as_of TEXT NOT NULL, reserved INTEGER NOT NULL DEFAULT 0,
                payer TEXT REFERENCES runs(id), charged_at TEXT, doubts INTEGER NOT NULL DEFAULT 0,
                billed TEXT NOT NULL DEFAULT 'no' CHECK(billed IN ('no', 'yes', 'unknown')), billed_pictures INTEGER,
                attempts INTEGER NOT NULL DEFAULT 0, token TEXT NOT NULL DEFAULT '', entered_at TEXT NOT NULL,
                sent_at TEXT, answered_at TEXT, finished_at TEXT, error TEXT, usage TEXT,
                task_id TEXT NOT NULL DEFAULT '', trace TEXT NOT NULL DEFAULT '', reply TEXT)""",
            "CREATE UNIQUE INDEX requests_identity ON requests(identity, occurrence) WHERE identity IS NOT NULL",
            "CREATE INDEX requests_run ON requests(run)",
            "CREATE INDEX requests_owner ON requests(owner) WHERE owner IS NOT NULL",
            "CREATE INDEX requests_listed ON requests(listed, position) WHERE listed IS NOT NULL",
            "CREATE INDEX requests_claimable ON requests(listed, position) WHERE state = 'queued' AND owner IS NULL",
            "CREATE INDEX requests_payer ON requests(payer) WHERE payer IS NOT NULL",
            "CREATE INDEX requests_charged ON requests(charged_at) WHERE charged_at IS NOT NULL",
            "CREATE INDEX requests_open ON requests(state) WHERE state IN ('sent', 'waiting', 'ready', 'unknown')",
            "CREATE INDEX requests_saved ON requests(fingerprint) WHERE state = 'saved'",
        ),
    ),
    (
        "pictures",
        (
            """CREATE TABLE pictures(
                request TEXT NOT NULL REFERENCES requests(id) ON DELETE CASCADE, position INTEGER NOT NULL,
                state TEXT NOT NULL CHECK(state IN ('pending', 'saved', 'handed', 'failed', 'expired')),
                link TEXT NOT NULL, expires INTEGER, path TEXT, format TEXT NOT NULL, width INTEGER NOT NULL,
                height INTEGER NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, error TEXT,
                PRIMARY KEY(request, position)) WITHOUT ROWID""",
        ),
    ),
    (
        "notes",
        (
            """CREATE TABLE notes(
                number INTEGER PRIMARY KEY, request TEXT REFERENCES requests(id) ON DELETE CASCADE,
                at TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL)""",
            "CREATE INDEX notes_request ON notes(request)",
        ),
    ),
    (
        "outlays",
        (
            """CREATE TABLE outlays(
                key TEXT PRIMARY KEY, charged_at TEXT NOT NULL, micro INTEGER, currency TEXT NOT NULL)""",
            "CREATE INDEX outlays_charged ON outlays(charged_at)",
        ),
    ),
)
"""What makes the schema, oldest first. Only ever added to: a name that is recorded in a file is never run again."""

_PAID = "earlier_micro + CASE WHEN billed = 'yes' THEN coalesce(settled_micro, worst_micro, 0) ELSE 0 END"
_RESERVED = "CASE WHEN reserved OR state IN ('sent', 'waiting') THEN coalesce(worst_micro, 0) ELSE 0 END"
_POSSIBLE = (
    "coalesce(worst_micro, 0) * "
    "(doubts + CASE WHEN billed = 'unknown' AND state NOT IN ('sent', 'waiting') THEN 1 ELSE 0 END)"
)
_OUTLAY = f"({_PAID} + {_RESERVED} + {_POSSIBLE})"
_COSTS = "(reserved OR doubts OR billed <> 'no')"
_MONEY = f"""SELECT
    coalesce(sum(({_PAID}) * (currency = :currency)), 0),
    coalesce(sum(({_RESERVED}) * (currency = :currency)), 0),
    coalesce(sum(({_POSSIBLE}) * (currency = :currency)), 0),
    coalesce(sum({_COSTS} AND (currency <> :currency OR coalesce(settled_micro, worst_micro) IS NULL)), 0)
    FROM requests"""  # noqa: S608 -- made of the constants above
_CHARGES = f"""SELECT id, coalesce(sent_at, charged_at, entered_at), provider, model,
    (SELECT count(*) FROM pictures WHERE request = requests.id AND pictures.state IN ('saved', 'handed')),
    {_PAID}, {_RESERVED} + {_POSSIBLE},
    billed = 'no' AND NOT doubts OR coalesce(settled_micro, worst_micro) IS NOT NULL, currency
    FROM requests WHERE attempts > 0 OR {_COSTS} ORDER BY number"""  # noqa: S608 -- made of the constants above
_STANDING = """CASE state
    WHEN 'queued' THEN CASE WHEN owner IS NULL THEN 'unsent' ELSE 'running' END
    WHEN 'sent' THEN 'running' WHEN 'waiting' THEN 'submitted' WHEN 'ready' THEN 'unsaved'
    WHEN 'saved' THEN CASE
        WHEN NOT EXISTS(SELECT 1 FROM pictures WHERE request = requests.id AND pictures.state IN ('failed', 'expired'))
        THEN 'succeeded'
        WHEN EXISTS(SELECT 1 FROM pictures WHERE request = requests.id AND pictures.state IN ('saved', 'handed'))
        THEN 'partial' ELSE 'failed' END
    ELSE state END"""
_ENTRY = tuple(one.name for one in fields(Entry) if one.name != "pictures")
_ENTRY_COLUMNS = ", ".join(f"{_STANDING} AS status" if name == "status" else name for name in _ENTRY)
_ENTRIES = f"SELECT {_ENTRY_COLUMNS} FROM requests"  # noqa: S608 -- made of the constants above
_LISTED = f"""SELECT {_ENTRY_COLUMNS}, number FROM requests WHERE listed = ? AND (position, number) > (?, ?)
    AND state IN (SELECT value FROM json_each(?)) ORDER BY position, number LIMIT ?"""  # noqa: S608 -- made as above

# What a step looks at; the whole row, with its body and its prompt, would take longer to read than all else.
_IN_HAND = """SELECT id, owner, state, billed, reserved, doubts, attempts, token, trace, currency, worst_micro,
    settled_micro, earlier_micro, answered_at, reply FROM requests WHERE id = ?"""

# What a row says of its request, which a later listing of the table may say anew while nothing was sent.
_SAID = (
    "provider",
    "base_url",
    "model",
    "prompt",
    "body",
    "fingerprint",
    "pictures_at_most",
    "worst_micro",
    "currency",
    "as_of",
    "fields",
    "output",
)
_PLACE = ("position", "row_id", "file", "line")
_COLUMNS = ("id", "run", "owner", "listed", "identity", "occurrence", "entered_at", *_PLACE, *_SAID)
_NEW = f"""INSERT INTO requests({", ".join(_COLUMNS)})
    VALUES ({", ".join("?" * len(_COLUMNS))})"""  # noqa: S608 -- made of the constants above
_KNOWN = f"""ON CONFLICT(identity, occurrence) WHERE identity IS NOT NULL DO UPDATE SET listed = excluded.listed,
    {", ".join(f"{name} = excluded.{name}" for name in _PLACE)},
    {", ".join(f"{name} = CASE state WHEN 'queued' THEN excluded.{name} ELSE {name} END" for name in _SAID)}
"""
_ENTER = f"{_NEW} {_KNOWN}"
_OWN = ("id", "identity", "occurrence", "position", "row_id", "line", "prompt", "body", "fields")
_COMMON = (
    "file",
    "provider",
    "base_url",
    "model",
    "pictures_at_most",
    "worst_micro",
    "currency",
    "as_of",
    "output",
)
_TOGETHER = 10
"""Rows of one statement: what SQLite does once a statement costs as much as a row."""


def _order_rows(run_id: str, at: str, count: int) -> str:
    """The statement that enters so many rows of a run; what they have in common is not handed over with each."""
    width = len(_OWN) + len(_COMMON)
    # Neither name comes from outside, and neither can hold a quote.
    common = f"'{run_id}', '{at}', '{run_id}'"
    rows = [
        f"({common}, ?{first + 2}, {', '.join(f'?{first + nth + 1}' for nth in range(width))})"
        for first in range(0, count * width, width)
    ]
    return f"""INSERT INTO requests(listed, entered_at, run, fingerprint, {", ".join((*_OWN, *_COMMON))})
        VALUES {", ".join(rows)} {_KNOWN}"""  # noqa: S608 -- made of the constants above


_QUEUED = "FROM requests WHERE listed = ? AND state = 'queued' AND owner IS NULL"
_SINGLE = """position % ? = 0 AND NOT EXISTS(
    SELECT 1 FROM requests AS other WHERE other.listed = requests.listed AND other.position = requests.position + 1)"""
_SAVED = """SELECT chosen.position, number, id, pictures.state, path, bytes FROM (
        SELECT position, number, id FROM requests WHERE listed = ? AND state = 'saved' AND (position, number) > (?, ?)
        ORDER BY position, number LIMIT ?) AS chosen
    LEFT JOIN pictures ON request = id ORDER BY chosen.position, number"""

_PICTURE = tuple(one.name for one in fields(PictureRow))
_RENEWED = tuple(name for name in _PICTURE if name not in {"index", "link", "expires"})
_KEEP_PICTURE = f"""INSERT INTO pictures(request, position, {", ".join(_PICTURE[1:])})
    VALUES (:request, {", ".join(":" + name for name in _PICTURE)})
    ON CONFLICT(request, position) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _RENEWED)},
    link = CASE excluded.link WHEN '' THEN link ELSE excluded.link END, expires = coalesce(excluded.expires, expires)
"""  # noqa: S608 -- made of the fields' names
_ANNOUNCE_PICTURE = _KEEP_PICTURE + " WHERE pictures.state NOT IN ('saved', 'handed')"


_FILES = 8
"""How many files a ledger takes: the database with its logs and locks, and what is opened for a moment."""


# --- opening --------------------------------------------------------------------------------------------------------


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
    require_files(_FILES, f"the ledger {path}")
    _make_folder(path.parent, is_named=not is_shared)
    if not _is_there(path) or _is_half_made(path):
        _create(path, now)
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
    _make_folder(folder)
    path = folder / "batch.lock"
    lock = _Lock.take(path)
    if lock is None:
        holder = path.read_text("ascii", "replace").strip()[:20] if sys.platform != "win32" else ""
        by = f" (process {holder})" if holder.isdigit() else ""
        raise BusyError(f"another run{by} holds the batch in {folder.parent}", hint="wait for it, or stop it first")
    try:
        lock.sign()
        yield
    finally:
        lock.release()


def _make_folder(folder: Path, *, is_named: bool = False) -> None:
    """Make a folder of ours. One that the user named may lie behind a link that the user made."""
    try:
        if is_named:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            files.make_folder(folder)
    except OSError as error:
        raise _no_place(folder, error) from error


def check_place(folder: Path) -> None:
    """Raise `FileError` where what is there is no folder of ours, in which a ledger would not even be found."""
    try:
        files.check_folder(folder)
    except OSError as error:
        raise _no_place(folder, error) from error


def _is_there(path: Path) -> bool:
    """Whether there is a ledger. Neither it nor a log of it may be a link: SQLite follows them."""
    try:
        for log in _logs(path):
            files.check_file(log)
        return files.check_file(path)
    except OSError as error:
        raise _no_place(path, error) from error


def _is_half_made(path: Path) -> bool:
    """Whether a full disk cut the ledger short before it held a row, as earlier versions let happen.

    What is missing then lies in the log of the name it was made under, and its own log is empty.
    """
    made_with, own = (path.with_name(f"{path.name}{end}") for end in (".new-wal", "-wal"))
    try:
        if not _size(made_with) or _size(own):
            return False
        with path.open("rb") as file:
            head = file.read(32)
    except OSError:
        return False
    # A page's size and the number of pages, by SQLite's file format.
    return _size(path) < int.from_bytes(head[16:18]) * int.from_bytes(head[28:32])


def _size(path: Path) -> int:
    return path.lstat().st_size if path.exists() else 0


def _create(path: Path, now: Callable[[], dt.datetime]) -> None:
    """Give birth to a whole ledger or none: built under another name, flushed, then renamed.

    A file that a crash left empty could not be told from a ledger that was cut to nothing.
    """
    lock = _Lock.take(path.with_name(f"{path.name}.lock"), wait=True)
    try:
        if _is_there(path):
            if not _is_half_made(path):
                return
            path.replace(path.with_name(f"{path.name}.old"))
        _put_aside_logs(path)
        _build(path.with_name(f"{path.name}.new"), now).replace(path)
        _flush_folder(path.parent)
    except (OSError, sqlite3.Error) as error:
        _remove_new(path)
        raise _no_place(path, error) from error
    finally:
        if lock:
            lock.release()


def _remove_new(path: Path) -> None:
    """What came of a ledger that could not be made takes no room from what may be made of the rest."""
    new = path.with_name(f"{path.name}.new")
    for remains in (new, *_logs(new)):
        with contextlib.suppress(OSError):
            remains.unlink(missing_ok=True)


def _build(new: Path, now: Callable[[], dt.datetime]) -> Path:
    """A whole, closed, empty ledger in a new file."""
    for remains in (new, *_logs(new)):
        remains.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(_connect(new)) as db:
        # No log while it is made: what a full disk keeps a log's end from the file is told by nobody. The file has
        # another name until it is whole and flushed, so a crash costs nothing.
        db.execute("PRAGMA journal_mode = MEMORY")
        db.execute("PRAGMA synchronous = OFF")
        _migrate(db, now)
        _choose_journal(db, new)
    descriptor = os.open(new, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if any(log.exists() for log in _logs(new)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
    return new


def _logs(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))


def _put_aside_logs(path: Path) -> None:
    """Rename the logs of a ledger that was moved away: SQLite would play them into the new one."""
    for log in _logs(path):
        if log.exists():
            log.replace(log.with_name(f"{log.name}.old"))


def _refuse_foreign(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is no ledger. The file is not opened to look: closing it would drop SQLite's own locks on it."""
    # SQLite takes an empty file for a new database.
    if not path.stat().st_size:
        raise _damaged(path, "it is empty")
    if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise FileError(f"{path} is another program's database", hint="move it away, or choose another folder")


def _refuse_programs(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a ledger that does something by itself. None has a view or a trigger, which may say and do anything."""
    known = {"table", "index"}
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master LIMIT 1000"):
        if kind not in known or str(sql).lstrip().upper().startswith("CREATE VIRTUAL"):
            raise _damaged(path, f"it holds a {kind} called {str(name)[:40]!r}, which no ledger of ours does")


# A class of characters is slow to look for: of a name in the letters of an id it need not be. GLOB ends at a NUL.
_NAME = (
    "typeof({0}) <> 'text' OR instr({0}, char(0)) OR {0} NOT GLOB '[A-Za-z0-9_]*' OR length({0}) > 100 "
    "OR (trim({0}, '-0123456789abcdef') <> '' AND {0} GLOB '*[^A-Za-z0-9_-]*')"
)
_RUN = "{0} NOT IN (SELECT id FROM runs) AND (" + _NAME + ")"  # noqa: S608 -- a constant
"""Of a run that is in its table, its name is looked at there, once."""
_OBJECT = "typeof({0}) <> 'text' OR NOT json_valid({0}) OR json_type({0}) <> 'object'"
_COUNT = "typeof({0}) <> 'integer' OR {0} NOT BETWEEN 0 AND 1000000000000"
_WORDS = "typeof({0}) <> 'text' OR instr({0}, char(0))"


def _odd_columns(rule: str, *names: str, or_null: bool = False) -> list[str]:
    """Conditions under which a column holds what was never written there."""
    return [f"({f'{name} IS NOT NULL AND ' if or_null else ''}({rule.format(name)}))" for name in names]


_ODD_ROWS: Mapping[str, tuple[str, Sequence[str]]] = {
    "requests": (
        "id",
        [
            *_odd_columns(_NAME, "id"),
            *_odd_columns(_RUN, "run"),
            *_odd_columns(_RUN, "owner", "listed", "payer", or_null=True),
            *_odd_columns(_OBJECT, "body", "fields", "output"),
            *_odd_columns(_OBJECT, "usage", "error", or_null=True),
            *_odd_columns(_COUNT, "position", "occurrence", "pictures_at_most", "earlier_micro", "doubts", "attempts"),
            *_odd_columns(_COUNT, "worst_micro", "settled_micro", "billed_pictures", "line", or_null=True),
            *_odd_columns(
                _WORDS, "provider", "base_url", "model", "fingerprint", "row_id", "file", "currency", "as_of"
            ),
            *_odd_columns(_WORDS, "token", "task_id", "trace", "entered_at"),
            *_odd_columns("typeof({0}) <> 'text'", "prompt", "identity", or_null=True),
            *_odd_columns("typeof({0}) <> 'text'", "sent_at", "answered_at", "finished_at", "charged_at", or_null=True),
            "state NOT IN ('queued', 'sent', 'waiting', 'ready', 'saved', 'failed', 'unknown', 'resolved')",
            "billed NOT IN ('no', 'yes', 'unknown')",
            "reserved NOT IN (0, 1)",
        ],
    ),
    "pictures": (
        "request",
        [
            *_odd_columns(_COUNT, "position", "width", "height", "bytes"),
            *_odd_columns("typeof({0}) <> 'integer' OR abs({0}) > 100000000000", "expires", or_null=True),
            *_odd_columns(_WORDS, "request", "link", "format", "sha256"),
            *_odd_columns(_OBJECT, "error", or_null=True),
            "state NOT IN ('pending', 'saved', 'handed', 'failed', 'expired')",
            # A batch writes where its images are from its own folder on, and none lies above that.
            "'/' || replace(CAST(path AS TEXT), char(92), '/') || '/' LIKE '%/../%'",
            "CAST(path AS TEXT) LIKE '.seedream/%'",
            "instr(CAST(path AS TEXT), char(0))",
        ],
    ),
    "runs": ("id", [*_odd_columns(_NAME, "id"), *_odd_columns(_WORDS, "command", "started_at", "version", "folder")]),
}


def _connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings of the contract. It never makes a file that is not there."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    db = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA trusted_schema = OFF")
        # What is purged must not stay readable in the file, nor what a row said before.
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA temp_store = MEMORY")
        # A large table is entered a third faster so; neither says anything about what is flushed.
        db.execute("PRAGMA cache_size = -4000")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")
        db.create_function("folded", 1, _fold, deterministic=True)
    except BaseException:
        db.close()
        raise
    return db


def _choose_journal(db: sqlite3.Connection, path: Path) -> None:
    """WAL, whose commit costs one flush; it needs memory shared between processes, which no network disk has."""
    wanted = "truncate" if _is_remote(path) else "wal"
    if db.execute("PRAGMA journal_mode").fetchone()[0] == wanted:
        return
    # Where SQLite itself finds that it cannot have WAL, it answers with another mode.
    if db.execute(f"PRAGMA journal_mode = {wanted}").fetchone()[0] not in {"wal", "truncate"}:
        db.execute("PRAGMA journal_mode = truncate")


_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "davfs"}


def _is_remote(path: Path) -> bool:
    """Whether the file lies on another machine. Unknown counts as local: SQLite refuses most of what it cannot do."""
    if sys.platform == "win32":
        return str(path.absolute()).startswith("\\\\")
    kind = _file_system(path.resolve())
    return kind in _REMOTE or kind.startswith("fuse.")


def _file_system(path: Path) -> str:
    """The type of the file system a path lies on, from Linux's table of mounts; "" elsewhere."""
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        place, found = line.split()[1:3]
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place)
        # Of mounts on one place the last one lies on top.
        if len(place) >= best and path.is_relative_to(place):
            best, kind = len(place), found
    return kind


def _migrate(db: sqlite3.Connection, now: Callable[[], dt.datetime]) -> None:
    """Run the migrations that the file does not record, each in one transaction with its record."""
    for name, statements in MIGRATIONS:
        if name in _applied(db):
            continue
        with _transaction(db):
            # Another process may have been quicker since the look above.
            if name not in _applied(db):
                for statement in statements:
                    db.execute(statement)
                db.execute("INSERT INTO migrations VALUES (?, ?)", (name, _stamp(now())))


def _applied(db: sqlite3.Connection) -> set[str]:
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'migrations'").fetchone() is None:
        return set()
    return {row[0] for row in db.execute("SELECT name FROM migrations")}


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """One write. IMMEDIATE, since a read that turns into a write fails at once beside another writer."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, so there may be nothing left to undo.
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


# --- the ledger -----------------------------------------------------------------------------------------------------


class Run:
    """A run that lives: `finish` it with its exit code before its block ends."""

    def __init__(self, ledger: Ledger, run_id: str) -> None:
        self.id = run_id
        self.finished = False
        self._ledger = ledger

    def finish(self, exit_code: int | None) -> None:
        """Write down the end, and let go of every request in hand but those still out, which stay as orphans."""
        self._ledger.end_run(self.id, exit_code)
        self.finished = True


class Ledger:
    """An open ledger. One per process and file; its methods may be called from any thread, one runs at a time."""

    def __init__(self, path: Path, *, now: Callable[[], dt.datetime], secrets: Sequence[str] = ()) -> None:
        self.path = path
        self._now = now
        self._secrets = _forms(secrets)
        self._held: dict[str, _Lock] = {}
        self._turn = threading.RLock()
        self._is_grouped = False
        self._sums: dict[_Scope, tuple[int, int]] = {}
        try:
            self._db = _connect(path)
            self._bring_up_to_date()
        except sqlite3.Error as error:
            raise self._explain(error, "no") from error

    def _bring_up_to_date(self) -> None:
        try:
            _refuse_foreign(self._db, self.path)
            _refuse_programs(self._db, self.path)
            newer = _applied(self._db) - {name for name, _ in MIGRATIONS}
            if newer:
                raise FileError(
                    f"{self.path} was written by a newer seedream ({', '.join(sorted(newer))})",
                    hint="use that version, or move the file away",
                )
            _choose_journal(self._db, self.path)
            _migrate(self._db, self._now)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refuse_odd_rows(self) -> None:
        """Refuse rows that no version wrote: a stranger's folder may hold any. Raises `FileError`."""
        with self._read() as db:
            for table, (name, odd) in _ODD_ROWS.items():
                query = f"SELECT {name} FROM {table} WHERE {' OR '.join(odd)} LIMIT 1"  # noqa: S608 -- constants
                found = db.execute(query).fetchone()
                if found is not None:
                    what = f"{table} holds what was never written by seedream, at {str(found[0])[:80]!r}"
                    raise _damaged(self.path, what)

    def close(self) -> None:
        """Close the file, and let go of the locks of runs that were not ended."""
        for lock in self._held.values():
            lock.release()
        self._held.clear()
        self._db.close()

    def hide(self, secret: str) -> None:
        """Mask this string too in whatever is written from now on."""
        self._secrets += _forms([secret])

    @property
    def journal(self) -> str:
        """How commits are made: "wal", or "truncate" on a network disk."""
        with self._read() as db:
            return str(db.execute("PRAGMA journal_mode").fetchone()[0])

    def check(self) -> tuple[str, ...]:
        """What is wrong inside the file, nothing where it is sound. Reads all of it: for `doctor`."""
        try:
            with self._turn:
                found = [row[0] for row in self._db.execute("PRAGMA quick_check(20)") if row[0] != "ok"]
                found += [
                    f"{row[0]} {row[1]} belongs to nothing" for row in self._db.execute("PRAGMA foreign_key_check")
                ]
        except sqlite3.Error as error:
            return (str(error),)
        return tuple(found)

    # Runs and their locks.

    @contextlib.contextmanager
    def run(self, run_id: str, command: str, *, folder: str = "") -> Iterator[Run]:
        """Live as a run, with its lock held to the end of the block. `folder` is where the user stands.

        Raises `BusyError` where a living process has this id, `FileError` where there can be no lock.
        """
        lock = _Lock.take(self._lock_path(run_id))
        if lock is None:
            raise BusyError(f"run {run_id} is alive in another process")
        self._held[run_id] = lock
        run = Run(self, run_id)
        try:
            self._start_run(run_id, command, folder)
            yield run
        finally:
            # A full disk must not hide how the block ended; what could not be written the next run settles.
            with contextlib.suppress(FileError):
                if not run.finished:
                    self.end_run(run_id, None)
            self._held.pop(run_id, lock).release(remove=True)

    def _start_run(self, run_id: str, command: str, folder: str) -> None:
        with self._write("no") as db:
            row = (run_id, command, _stamp(self._now()), __version__, self._text(folder))
            db.execute("INSERT INTO runs(id, command, started_at, version, folder) VALUES (?, ?, ?, ?, ?)", row)

    def end_run(self, run_id: str, exit_code: int | None) -> None:
        """Write down a run's end; see `Run.finish`. What is still `sent` keeps its owner and so becomes an orphan."""
        with self._write("no") as db:
            at = _stamp(self._now())
            db.execute("UPDATE runs SET finished_at = ?, exit_code = ? WHERE id = ?", (at, exit_code, run_id))
            db.execute("UPDATE requests SET owner = NULL, reserved = 0 WHERE owner = ? AND state <> 'sent'", (run_id,))

    def runs(self, *, limit: int | None = None) -> tuple[RunRow, ...]:
        """Runs, newest first."""
        with self._read() as db:
            rows = db.execute("SELECT * FROM runs ORDER BY rowid DESC LIMIT ?", (_most(limit),)).fetchall()
        return tuple(self._run_row(row) for row in rows)

    def batches(self) -> dict[Path, tuple[RunRow, ...]]:
        """The folders of batches, each with its runs, newest first; what happened there its own ledger knows."""
        with self._read() as db:
            rows = db.execute(
                "SELECT * FROM runs WHERE command = 'batch' AND folder <> '' ORDER BY rowid DESC"
            ).fetchall()
        found: dict[Path, tuple[RunRow, ...]] = {}
        for run in map(self._run_row, rows):
            found[Path(run.folder)] = (*found.get(Path(run.folder), ()), run)
        return found

    def batch_of(self, name: str) -> Path | None:
        """The folder of the batch that a request of this id, or a run, belongs to; its own ledger knows the rest.

        The start of a run's id will do; raises `InputError` where that is several folders'.
        """
        batches = {folder: [run.id for run in runs] for folder, runs in self.batches().items()}
        for folder, ids in batches.items():
            if any(name == one or name.startswith(f"{one}-") for one in ids):
                return folder
        found = [folder for folder, ids in batches.items() if name and any(one.startswith(name) for one in ids)]
        if len(found) > 1:
            several = ", ".join(str(folder) for folder in found[:5])
            raise InputError(
                [Problem("id", f"{name} is the start of several batches' ids: {several}", "give more of it")]
            )
        return found[0] if found else None

    def listing(self) -> Run | None:
        """The run that listed the rows of a batch's table last."""
        with self._read() as db:
            row = db.execute(
                "SELECT id FROM runs WHERE EXISTS(SELECT 1 FROM requests WHERE listed = runs.id) "
                "ORDER BY rowid DESC LIMIT 1"
            ).fetchone()
        return None if row is None else Run(self, row[0])

    def standings(self, run: Run, step: int) -> Counter[frozenset[Standing]]:
        """How many rows of the run's table stand how, by what their requests do; a row has `step` positions."""
        with self._read() as db:
            rows = db.execute(
                f"""SELECT said, count(*) FROM (SELECT group_concat(DISTINCT {_STANDING}) AS said
                    FROM requests WHERE listed = ? GROUP BY position / ?) GROUP BY said""",  # noqa: S608 -- a constant
                (run.id, step),
            ).fetchall()
        return Counter({frozenset(said.split(",")): many for said, many in rows})

    def table_of(self, run: Run) -> str:
        """The name of the table whose rows a run listed."""
        with self._read() as db:
            row = db.execute(
                "SELECT file FROM requests WHERE listed = ? ORDER BY position, number LIMIT 1", (run.id,)
            ).fetchone()
        return "" if row is None else str(row[0])

    def totals(self) -> tuple[int, frozenset[str], frozenset[str]]:
        """How many images are saved, and from which providers and models those and the others were asked."""
        with self._read() as db:
            images = db.execute("SELECT count(*) FROM pictures WHERE state IN ('saved', 'handed')").fetchone()[0]
            pairs = db.execute("SELECT DISTINCT provider, model FROM requests").fetchall()
        return int(images), frozenset(row[0] for row in pairs), frozenset(row[1] for row in pairs)

    def charges(self) -> Iterator[Charge]:
        """What each request that was ever sent cost, or may have cost, oldest first."""
        with self._read() as db:
            rows = db.execute(_CHARGES).fetchall()
        for row in rows:
            name, at, provider, model, images, paid, possible, is_priced, currency = row
            try:
                moment = _moment(at)
            except (ValueError, TypeError) as error:
                raise _unreadable(name) from error
            assert moment is not None  # noqa: S101 - a request has always one
            yield Charge(name, moment, provider, model, images, paid, possible, bool(is_priced), currency)

    def booked(self) -> Iterator[tuple[str, Charge]]:
        """What was booked here of batches' requests, each with the id of its run."""
        with self._read() as db:
            rows = db.execute("SELECT key, charged_at, micro, currency FROM outlays ORDER BY charged_at").fetchall()
        for key, at, micro, currency in rows:
            run, _, name = key.partition(" ")
            moment = dt.datetime.fromisoformat(at)
            yield run, Charge(name, moment, "", "", 0, micro or 0, 0, micro is not None, currency)

    def _run_row(self, row: sqlite3.Row) -> RunRow:
        values = dict(row)
        try:
            for name in ("started_at", "finished_at"):
                values[name] = _moment(values[name])
        except (ValueError, TypeError) as error:
            raise _unreadable(row["id"]) from error
        return RunRow(**values, alive=row["finished_at"] is None and self._is_alive(row["id"]))

    def _lock_path(self, run_id: str) -> Path:
        if not _ID.fullmatch(run_id):
            raise InternalError(f"{run_id!r} cannot name a run")
        folder = self.path.parent / "runs"
        _make_folder(folder)
        return folder / f"{run_id}.lock"

    def _is_alive(self, run_id: str) -> bool:
        return run_id in self._held or not _Lock.is_free(self._lock_path(run_id))

    def orphans(self) -> tuple[Entry, ...]:
        """Requests that are out, or paid and not saved, in the hands of a run that is dead."""
        with self._read():
            rows = self._select("WHERE owner IS NOT NULL AND state IN ('sent', 'waiting', 'ready') ORDER BY number")
        dead = {owner for owner in {row.owner for row in rows} if owner and not self._is_alive(owner)}
        return tuple(row for row in rows if row.owner in dead)

    def settle_orphans(self, replies: Path, adopt: Callable[[str, str], Path | None]) -> Settled:
        """Settle what dead runs left. Call it before a run starts, and before history and money are shown.

        A request that was out becomes `ready` where its whole reply is in `replies` or `adopt(id, token)` finds it:
        without pictures, its `reply` still to be read, which ends in `mark_ready`, `mark_waiting` or `mark_failed`.
        Else it becomes `unknown`. Tasks and paid pictures are let go for `unsaved`. Never touches what a living run
        holds; of several processes at once one settles a run. Each step is committed and flushed by itself.
        """
        ready: list[str] = []
        unknown: list[str] = []
        for owner in self._possibly_dead():
            # Holding the dead run's own lock keeps a second process from judging a reply that this one is moving.
            lock = None if owner in self._held else _Lock.take(self._lock_path(owner))
            if lock is None:
                continue
            settled = False
            try:
                self._settle_run(owner, replies, adopt, ready, unknown)
                settled = True
            finally:
                lock.release(remove=settled)
        return Settled(tuple(ready), tuple(unknown))

    def _possibly_dead(self) -> list[str]:
        """Runs that have requests in hand or left a lock file. A file without a run may be of one that just starts."""
        files = json.dumps([file.stem for file in (self.path.parent / "runs").glob("*.lock")])
        with self._read() as db:
            rows = db.execute(
                "SELECT owner FROM requests WHERE owner IS NOT NULL "
                "UNION SELECT id FROM runs WHERE id IN (SELECT value FROM json_each(?))",
                (files,),
            )
            return [row[0] for row in rows]

    def _settle_run(
        self, owner: str, replies: Path, adopt: Callable[[str, str], Path | None], ready: list[str], unknown: list[str]
    ) -> None:
        with self._read() as db:
            out = db.execute(
                "SELECT id, token FROM requests WHERE owner = ? AND state = 'sent' ORDER BY number", (owner,)
            ).fetchall()
        for request_id, token in out:
            kept = replies / f"{request_id}.reply"
            reply = kept if files.is_plain(kept) else adopt(request_id, token)
            with self._write("unknown") as db:
                self._settle_one(db, request_id, reply)
            (unknown if reply is None else ready).append(request_id)
        with self._write("unknown") as db:
            db.execute("UPDATE requests SET owner = NULL, reserved = 0 WHERE owner = ?", (owner,))

    def tokens_out(self) -> frozenset[str]:
        """The tokens of the attempts that are out, whoever has them in hand: a reply to one of them is still wanted."""
        with self._read() as db:
            return frozenset(row[0] for row in db.execute("SELECT token FROM requests WHERE state = 'sent'"))

    def _settle_one(self, db: sqlite3.Connection, request_id: str, reply: Path | None) -> None:
        at = _stamp(self._now())
        if reply is not None:
            # Whether it was billed is in the reply, which may hold an error: unknown until it is read.
            _update(db, request_id, {"state": "ready", "answered_at": at, "reply": _store_path(reply), "reserved": 0})
            self._note(db, request_id, "orphaned", "the process died before it read the reply, which was kept")
            return
        failure = Failure(
            "unknown_outcome",
            "the process stopped while the request was out; it may have been billed, and is not sent again",
            f"look at the provider's usage page, then `seedream history resolve {request_id} --paid` or `--unpaid`",
        )
        changes = {"state": "unknown", "finished_at": at, "error": self._json(_as_mapping(failure)), "reserved": 0}
        _update(db, request_id, changes)
        self._note(db, request_id, "orphaned", "the process died while the request was out")

    # Entering and taking.

    def enter(self, run: Run, entries: Iterable[NewRequest]) -> Entered:
        """Write down what is to be done, before any of it; flushed a chunk at a time and at the end.

        A request without identity is in the run's hands at once. One with identity is a batch's row: the run's table
        lists it, known rows keep their id, state and pictures (what a row says is renewed while nothing was sent),
        and `claim` or `take` puts it in the run's hands. Entries are drawn one by one, as they are written; where that
        raises, their chunk is not written.
        """
        at = _stamp(self._now())
        return self._enter(run, {1: _ENTER}, (self._new_row(entry, run.id, at) for entry in entries))

    def enter_rows(self, run: Run, rows: Iterable[NewRow]) -> Entered:
        """`enter` for the rows of a table, in a fraction of the time."""
        heads: _Heads = {}
        at = _stamp(self._now())
        orders = {count: _order_rows(run.id, at, count) for count in (1, _TOGETHER)}
        return self._enter(run, orders, (self._row(row, heads) for row in rows))

    def _enter(self, run: Run, orders: Mapping[int, str], rows: Iterator[tuple[Any, ...]]) -> Entered:
        """Enter rows by the statements that enter so many of them at once."""
        count, before = 0, self._count_entered(run)
        while written := self._enter_chunk(run, orders, itertools.islice(rows, _ENTERED)):
            count += written
        new = self._count_entered(run) - before
        return Entered(new, count - new)

    def _enter_chunk(self, run: Run, orders: Mapping[int, str], rows: Iterator[tuple[Any, ...]]) -> int:
        with self._turn, _unchecked(self._db), self._write("no") as db:
            if db.execute("SELECT 1 FROM runs WHERE id = ?", (run.id,)).fetchone() is None:
                raise InternalError(f"the ledger knows no run {run.id}")
            many, rest = max(orders), list[tuple[Any, ...]]()
            count = db.executemany(orders[many], _join_rows(rows, many, rest)).rowcount
            return count + (db.executemany(orders[1], rest).rowcount if rest else 0)

    def _count_entered(self, run: Run) -> int:
        with self._read() as db:
            return int(db.execute("SELECT count(*) FROM requests WHERE run = ?", (run.id,)).fetchone()[0])

    def _row(self, row: NewRow, heads: _Heads) -> tuple[Any, ...]:
        """The values of `_OWN` and `_COMMON`; the latter are kept in `heads`."""
        mould, name, position, line, identity, occurrence, row_id, prompt, own, fields, output = row
        body = mould.body.fill(own)
        told = mould.fields.fill(fields) if isinstance(fields, tuple) else self._json(fields)
        if self._secrets:
            body, told = self._text(body), self._text(told)
        if prompt is not None and (self._secrets or not prompt.isascii()):
            prompt = self._text(prompt)
        if self._secrets or not row_id.isascii():
            row_id = self._text(row_id)
        own_values = (name, identity, occurrence, position, row_id, line, prompt, body, told)
        return own_values + (heads.get((mould, output)) or self._head(mould, output, heads))

    def _head(
        self,
        mould: Mould,
        output: tuple[str | int, ...],
        heads: _Heads,
    ) -> tuple[Any, ...]:
        # Where every row has its own none is worth keeping.
        if len(heads) >= _PAGE:
            heads.clear()
        heads[mould, output] = head = (
            self._text(mould.file),
            mould.provider,
            _USER_INFO.sub("//***@", self._text(mould.base_url)),
            self._text(mould.model),
            mould.pictures_at_most,
            mould.worst_micro,
            mould.currency,
            mould.as_of,
            self._text(mould.output.fill(output)),
        )
        return head

    def _new_row(self, entry: NewRequest, run_id: str, at: str) -> tuple[Any, ...]:
        """The values of `_COLUMNS`."""
        mine = not entry.identity
        return (
            entry.id,
            run_id,
            run_id if mine else None,
            None if mine else run_id,
            entry.identity or None,
            entry.occurrence,
            at,
            entry.position,
            self._text(entry.row_id),
            self._text(entry.file),
            entry.line,
            entry.provider,
            _USER_INFO.sub("//***@", self._text(entry.base_url)),
            self._text(entry.model),
            None if entry.prompt is None else self._text(entry.prompt),
            self._json(entry.body),
            entry.fingerprint,
            entry.pictures_at_most,
            entry.worst_micro,
            entry.currency,
            entry.as_of,
            self._json(entry.fields),
            self._json(entry.output),
        )

    def claim(self, run: Run, ids: Sequence[str]) -> frozenset[str]:
        """Take queued rows in hand; those that could be had. Each goes to one run, whatever the rush."""
        taken = []
        with self._write("no") as db:
            for one in ids:
                claimed = "UPDATE requests SET owner = ? WHERE id = ? AND state = 'queued' AND owner IS NULL"
                taken += [one] if db.execute(claimed, (run.id, one)).rowcount else []
        return frozenset(taken)

    def take(self, run: Run, ids: Sequence[str]) -> tuple[Entry, ...]:
        """Take requests in hand, to recover or to send them again; returns those that could be had.

        Not those that a living run holds, and none that is `sent`: `settle_orphans` comes first.
        """
        free = [entry for entry in self._by_ids(ids) if entry.state != "sent" and self._is_free(entry.owner, run)]
        taken = []
        with self._write("no") as db:
            for entry in free:
                # Between the look and this write another run may have been quicker.
                changed = db.execute(
                    "UPDATE requests SET owner = ? WHERE id = ? AND owner IS ? AND state = ?",
                    (run.id, entry.id, entry.owner, entry.state),
                )
                taken += [entry.id] if changed.rowcount else []
            return self._by_ids(taken)

    def _is_free(self, owner: str | None, run: Run) -> bool:
        return owner is None or owner == run.id or not self._is_alive(owner)

    # Transitions. Each has committed and flushed when it returns.

    def mark_sent(
        self, request_id: str, *, attempt: int, token: str, again: bool = False, hold: Hold | None = None
    ) -> None:
        """The first byte is about to leave: committed and flushed when this returns, and if it raises, send nothing.

        With `hold` its worst cost is held in the same step.

        Called inside the wire's last gate. `token` is this attempt's client request id. A request that ended before
        (`unknown`, `failed`, `saved`, `resolved`) needs `again`: its old cost or doubt stays in the account, and a
        note says that it was sent once more. Raises `FileError` (billed no) for whatever the disk or SQLite says.
        """
        with self._write("no") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "sent", again=again)
            held = self._hold(db, row, hold) if hold else {}
            at = _stamp(self._now())
            sent_before = row["state"] in _AGAIN
            changes = {
                **held,
                "state": "sent",
                "billed": "unknown",
                "attempts": max(row["attempts"] + 1, attempt),
                "token": token,
                "sent_at": at,
                "charged_at": at,
                "payer": row["owner"],
            }
            if sent_before:
                changes |= _carry_over(row)
                said = f"after it was {row['state']}, billed {row['billed']}, token {row['token']}"
                self._note(db, request_id, "resent", said)
                # The rows of the earlier answer's pictures would pass for the next one's; the files stay.
                db.execute("DELETE FROM pictures WHERE request = ?", (request_id,))
            blank = ("answered_at", "finished_at", "error", "usage", "reply", "settled_micro", "billed_pictures")
            _update(db, request_id, {**changes, "task_id": "", "trace": "", **dict.fromkeys(blank)})

    def mark_queued(self, request_id: str, error: SeedreamError | None = None) -> None:
        """It was refused and not billed, or never left, and will be tried again; its reservation stays.

        One with doubts from earlier attempts becomes `unknown` instead, so that a crash before the next attempt does
        not make it look like new.
        """
        with self._write("no") as db:
            row = self._row_in_hand(db, request_id)
            changes = {"error": self._failure(error)}
            if row["doubts"] and row["state"] == "sent":
                to: State = "unknown"
                changes |= {"state": to, "billed": "unknown", "doubts": row["doubts"] - 1}
            else:
                to = "queued"
                changes |= {"state": to, "billed": "no"}
            _check_move(row, to)
            _update(db, request_id, changes)

    def mark_waiting(self, request_id: str, task_id: str, *, trace: str = "") -> None:
        """The provider took it as a task. Flushed with the task's id, so that a killed run polls instead of paying."""
        with self._write("yes") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "waiting")
            changes = {"state": "waiting", "task_id": self._text(task_id), "trace": self._text(trace) or row["trace"]}
            _update(db, request_id, {**changes, "reserved": 0, **dict.fromkeys(("reply", "error", "finished_at"))})

    def mark_ready(
        self,
        request_id: str,
        pictures: Sequence[PictureRow],
        *,
        usage: Mapping[str, Any] | None = None,
        billed_count: int | None = None,
        settled_micro: int | None = None,
        reply: Path | None = None,
        trace: str = "",
    ) -> None:
        """The answer is read: flushed with all its links before any download may start.

        `billed_count` is the provider's own count, None where it gave none; 0 means that nothing was billed. Pictures
        that are saved or handed out already (from a stream, or an earlier run) stay so.
        """
        with self._write("yes") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "ready")
            if (settled_micro or 0) > (row["worst_micro"] or 0):
                # It costs more than was held for it.
                self._sums.clear()
            db.executemany(_ANNOUNCE_PICTURE, [self._picture_row(request_id, picture) for picture in pictures])
            changes = {
                "state": "ready",
                "billed": "no" if billed_count == 0 else "yes",
                "billed_pictures": billed_count,
                "settled_micro": row["settled_micro"] if settled_micro is None else settled_micro,
                "usage": None if usage is None else self._json(usage),
                "answered_at": row["answered_at"] or _stamp(self._now()),
                "finished_at": None,
                "error": None,
                "reserved": 0,
                "reply": _store_path(reply),
                "trace": self._text(trace) or row["trace"],
            }
            _update(db, request_id, changes)

    def mark_picture(self, request_id: str, picture: PictureRow) -> None:
        """One picture got on: saved (call it after the file and its folder are flushed), handed, failed or expired.

        Legal while the request is out too, since a stream brings its pictures one by one.
        """
        with self._write("yes") as db:
            row = self._row_in_hand(db, request_id)
            if row["state"] not in _IN_FLIGHT | {"unknown"}:
                raise InternalError(f"request {request_id} is {row['state']} and can have no new picture")
            db.execute(_KEEP_PICTURE, self._picture_row(request_id, picture))

    def mark_saved(
        self, request_id: str, *, settled_micro: int | None = None, picture: PictureRow | None = None
    ) -> None:
        """Every picture is on disk, handed out, or for ever out of reach. Flushed; the kept reply may go after this.

        `picture` is the last one, written down in the same step. Raises `InternalError` while a picture is pending.
        """
        with self._write("yes") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "saved")
            if picture is not None:
                db.execute(_KEEP_PICTURE, self._picture_row(request_id, picture))
            if _pending(db, row):
                raise InternalError(f"request {request_id} has pictures that are not saved")
            settled = row["settled_micro"] if settled_micro is None else settled_micro
            changes = {"state": "saved", "settled_micro": settled, "finished_at": _stamp(self._now())}
            _update(db, request_id, {**changes, "error": None, "reply": None, "owner": None})

    def mark_missing(self, request_id: str, indexes: Sequence[int]) -> None:
        """Files of a saved request are gone: it is `ready` again with these pictures pending, to be fetched anew."""
        with self._write("yes") as db:
            _check_move(self._row_in_hand(db, request_id), "ready")
            marks = [(request_id, index) for index in indexes]
            db.executemany("UPDATE pictures SET state = 'pending' WHERE request = ? AND position = ?", marks)
            _update(db, request_id, {"state": "ready", "finished_at": None})

    def mark_failed(self, request_id: str, error: SeedreamError) -> None:
        """It ended without a picture for a known reason; `error.billed` says whether that was paid for.

        A `ready` request with pending pictures stays so, and only the error is written: what is paid can be fetched.
        """
        with self._write("unknown") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "failed")
            if _pending(db, row):
                _update(db, request_id, {"error": self._failure(error)})
                return
            changes = {"state": "failed", "billed": error.billed, "finished_at": _stamp(self._now()), "owner": None}
            _update(db, request_id, {**changes, "error": self._failure(error), "reserved": 0})

    def mark_unknown(self, request_id: str, error: SeedreamError, *, reply: Path | None = None) -> None:
        """Nobody can say whether it was billed. It is not sent again; a kept `reply` is what `recover` may read.

        A `ready` request with pending pictures stays so, as for `mark_failed`.
        """
        with self._write("unknown") as db:
            row = self._row_in_hand(db, request_id)
            _check_move(row, "unknown")
            if _pending(db, row):
                _update(db, request_id, {"error": self._failure(error)})
                return
            changes = {"state": "unknown", "billed": "unknown", "finished_at": _stamp(self._now()), "reserved": 0}
            kept = _store_path(reply) or row["reply"]
            _update(db, request_id, {**changes, "error": self._failure(error), "reply": kept})

    def resolve(self, ids: Sequence[str], paid: Resolution, *, by: str = "the user") -> None:
        """A person has looked: `paid` counts as paid and ends as `resolved`, `unpaid` is `queued` like new.

        A request that ended well after a doubtful attempt keeps its state; only the doubt is settled. All or none:
        raises `InputError` for ids that are unknown to the ledger, in a living run's hands, or not in doubt.
        """
        entries = self.check_resolvable(ids)
        self._sums.clear()
        with self._write("no") as db:
            for entry in entries.values():
                row = db.execute("SELECT * FROM requests WHERE id = ?", (entry.id,)).fetchone()
                _update(db, entry.id, _resolved(row, paid))
                self._note(db, entry.id, "resolved", f"{paid}, by {by}; it was {row['state']}")

    def check_resolvable(self, ids: Sequence[str]) -> dict[str, Entry]:
        """The requests of these ids. Raises `InputError` for those that `resolve` would refuse."""
        entries = {entry.id: entry for entry in self._by_ids(ids)}
        problems = [problem for one in ids if (problem := self._objection(one, entries.get(one)))]
        if problems:
            raise InputError(problems)
        return entries

    def _objection(self, request_id: str, entry: Entry | None) -> Problem | None:
        """Why a request cannot be resolved."""
        if entry is None:
            return Problem("id", f"the ledger knows no request {request_id}", "`seedream history` lists them")
        if entry.owner and self._is_alive(entry.owner):
            return Problem("id", f"{request_id} is in the hands of a run that lives", "wait for it")
        if entry.state == "sent":
            return Problem("id", f"{request_id} is not settled yet", "try again")
        if entry.state == "ready" and entry.billed == "unknown" and entry.reply and entry.reply.is_file():
            way = f"`seedream recover {request_id}` reads it"
            return Problem("id", f"the answer to {request_id} is here and was not read yet", way)
        if not entry.doubts and not _is_doubtful(entry.state, entry.billed):
            return Problem("id", f"{request_id} is {entry.status}: there is nothing to resolve")
        return None

    # Money.

    def _hold(self, db: sqlite3.Connection, row: sqlite3.Row, hold: Hold) -> dict[str, Any]:
        """Look at the budgets; what changes when the cost is held.

        Counted are what was paid, what others hold and what may have been paid. No price known passes no cap. Raises
        `BudgetError` that names the sums; nothing is held then.
        """
        if hold.micro is None and hold.caps.any:
            raise BudgetError(
                "the price of the next request is not known, so no budget holds it",
                hint="say what it costs under [prices] in the configuration file",
            )
        if row["reserved"] and hold.caps.any:
            # Its own earlier reservation must not count twice.
            _update(db, row["id"], {"reserved": 0})
        foreign = row["currency"] != hold.caps.currency
        self._check_caps(db, row["owner"], 0 if foreign else hold.micro or 0, hold.caps)
        if row["doubts"] or row["earlier_micro"] or row["billed"] != "no":
            # What it cost before is in this run's account from now on.
            self._sums.clear()
        changes = {"reserved": 1, "charged_at": _stamp(self._now()), "payer": row["owner"]}
        return changes if hold.micro is None else {**changes, "worst_micro": hold.micro}

    def book(self, key: str, micro: int | None, *, caps: Caps) -> None:
        """Hold, then settle, money of a request whose row is in another ledger, so that the day's budget sees it.

        A batch books its worst cost here under its request's id before it sends, and the settled cost after; 0 takes
        the booking back. A crash leaves the worst cost booked. Raises `BudgetError` as `mark_sent` does.
        """
        with self._write("no") as db:
            if micro == 0 or caps.daily is not None:
                # Its own earlier booking must not count twice.
                db.execute("DELETE FROM outlays WHERE key = ?", (key,))
            if caps.daily is None:
                # What it costs now may be more than was held for it.
                self._sums.clear()
            self._check_caps(db, None, micro or 0, Caps(None, caps.daily, caps.currency))
            if micro != 0:
                row = (key, _stamp(self._now()), micro, caps.currency)
                db.execute("INSERT OR REPLACE INTO outlays VALUES (?, ?, ?, ?)", row)

    def spent(
        self,
        *,
        run: str | None = None,
        since: dt.datetime | None = None,
        currency: str = "USD",
        has_row: Callable[[str], bool] | None = None,
    ) -> Spent:
        """What was paid, is held, and may have been paid: by one run, since a moment, for some rows, or at all."""
        with self._read() as db:
            return _spent(db, _Scope(currency, run, None if since is None else _stamp(since), has_row))

    def today(self) -> dt.datetime:
        """When the local day began, which the daily budget counts from."""
        return _midnight(self._now())

    def _check_caps(self, db: sqlite3.Connection, run_id: str | None, micro: int, caps: Caps) -> None:
        if caps.run is not None and run_id is not None:
            told = ("this run's budget", "only a higher --max-cost draws the rest; the same command starts anew")
            self._check_cap(db, _Scope(caps.currency, run=run_id), micro, caps.run, told)
        more = "the same command goes on only with a higher --max-cost"
        if caps.batch is not None:
            told = ("the budget of this batch, over all its runs,", more)
            self._check_cap(db, _Scope(caps.currency), micro, caps.batch, told)
        if caps.part is not None:
            told = ("this shard's part of the batch's budget", more)
            self._check_cap(db, _Scope(caps.currency, has_row=caps.has_row), micro, caps.part, told)
        if caps.daily is not None:
            told = ("today's budget", "raise `daily` under [budget], or go on tomorrow")
            self._check_cap(db, _Scope(caps.currency, since=_stamp(self.today())), micro, caps.daily, told)

    def _check_cap(
        self,
        db: sqlite3.Connection,
        of: _Scope,
        micro: int,
        cap: int,
        told: tuple[str, str],
    ) -> None:
        """Hold what is spent `of` a run, since a moment, of some rows or at all, against a cap.

        All rows are summed up only where the last sum, and all that was held since, may not leave room: what happens to
        a request that is held only makes it cost less. What may make the sum larger forgets it, and another process's
        writes make it worthless.
        """
        version = db.execute("PRAGMA data_version").fetchone()[0]
        known, most = self._sums.get(of, (None, 0))
        if known != version or most + micro > cap:
            spent = _spent(db, of)
            _hold_cap(spent, micro, cap, *told)
            most = spent.total
        self._sums[of] = version, most + micro

    # Reading.

    def history(
        self,
        text: str | None = None,
        *,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        provider: str | None = None,
        status: str | None = None,
        limit: int | None = None,
    ) -> tuple[Entry, ...]:
        """Requests, newest first. `text` is looked for, in any case, in prompts, ids, models and file names.

        `since` (included) and `until` (not) are compared with the time of entering; `status` is an `Entry.status`.
        """
        conditions, values = [], list[Any]()
        if text:
            conditions.append(
                "(instr(folded(prompt), ?) OR instr(folded(id), ?) OR instr(folded(row_id), ?) OR "
                "instr(folded(model), ?) OR EXISTS(SELECT 1 FROM pictures WHERE request = requests.id AND "
                "instr(folded(path), ?)))"
            )
            values += [text.casefold()] * 5
        for condition, value in (
            ("entered_at >= ?", None if since is None else _stamp(since)),
            ("entered_at < ?", None if until is None else _stamp(until)),
            ("provider = ?", provider),
            ("status = ?", status),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        with self._read():
            return self._select(f"{where} ORDER BY number DESC LIMIT ?", (*values, _most(limit)))

    def find(self, prefix: str) -> tuple[Entry, ...]:
        """The request of this id, all of the run of this id, or what a unique start of either, or a task id, means.

        Nothing where nothing is meant; raises `InputError` where a start is several runs'.
        """
        with self._read() as db:
            if not prefix:
                return ()
            exact = self._select(
                "WHERE id = :name OR run = :name OR payer = :name OR task_id = :name ORDER BY number", {"name": prefix}
            )
            if exact:
                # An id names its request alone, also where the run is called the same.
                return tuple(entry for entry in exact if entry.id == prefix) or exact
            span = {"low": prefix, "high": prefix + "\U0010ffff"}
            within = "WHERE id >= :low AND id < :high ORDER BY number"
            rows = db.execute(f"SELECT id, run FROM requests {within}", span)  # noqa: S608 -- a constant
            runs = {row["run"] for row in rows}
            if len(runs) > 1:
                several = ", ".join(sorted(runs)[:5])
                raise InputError([Problem("id", f"{prefix} is the start of several ids: {several}", "give more of it")])
            return self._select(within, span)

    def row(self, identity: str, occurrence: int) -> Entry | None:
        """The batch's row of this identity, where the ledger knows it."""
        with self._read():
            found = self._select("WHERE identity = ? AND occurrence = ?", (identity, occurrence))
        return found[0] if found else None

    def listed(self, run: Run, states: Iterable[State] = get_args(State)) -> Iterator[Entry]:
        """The rows of the run's table that are in one of these states, in its order; a chunk in memory at a time."""
        wanted = json.dumps(sorted(states))
        last = (-1, -1)
        while True:
            with self._read() as db:
                # A tie of positions is broken by the number, so no row is passed over or given twice.
                rows = db.execute(_LISTED, (run.id, *last, wanted, _PAGE)).fetchall()
                pictures = _pictures_of(db, [row["id"] for row in rows])
            if not rows:
                return
            last = (rows[-1]["position"], rows[-1]["number"])
            for row in rows:
                yield _entry(row, pictures.get(row["id"], ()))

    def drawn(self) -> Iterator[Entry]:
        """Requests with pictures on disk, in the order of their entering; a chunk in memory at a time."""
        last = -1
        while True:
            with self._read() as db:
                rows = db.execute(
                    "SELECT id, number FROM requests WHERE number > ? AND EXISTS(SELECT 1 FROM pictures "
                    "WHERE request = requests.id AND pictures.state = 'saved') ORDER BY number LIMIT ?",
                    (last, _PAGE),
                ).fetchall()
                entries = self._by_ids([row["id"] for row in rows])
            if not rows:
                return
            last = rows[-1]["number"]
            yield from entries

    def tally(self, run: Run) -> Tally:
        """How many rows of the run's table, or of its own requests, are in each state."""
        with self._read() as db:
            rows = db.execute(
                "SELECT state, count(*) FROM requests WHERE coalesce(listed, run) = ? GROUP BY state", (run.id,)
            )
            return Tally(**dict(rows.fetchall()))

    def forecast(self, run: Run) -> Forecast:
        """What the queued rows of the run's table may come to."""
        with self._read() as db:
            row = db.execute(
                "SELECT count(*), coalesce(sum(pictures_at_most), 0), coalesce(sum(worst_micro), 0), "
                "count(*) - count(worst_micro) FROM requests WHERE listed = ? AND state = 'queued' AND owner IS NULL",
                (run.id,),
            ).fetchone()
        return Forecast(*row)

    def count_single(self, run: Run, step: int) -> int:
        """How many queued requests of the run's table are all that their rows ask for.

        A row's requests stand at positions that follow each other, from a multiple of `step` on.
        """
        with self._read() as db:
            return int(db.execute(f"SELECT count(*) {_QUEUED} AND {_SINGLE}", (run.id, step)).fetchone()[0])

    def queued(self, run: Run, step: int, *, single: bool) -> Iterator[Queued]:
        """The queued requests of the run's table, in its order, of rows with one request or of the others."""
        last, which = -1, _SINGLE if single else f"NOT ({_SINGLE})"
        while True:
            with self._read() as db:
                rows = db.execute(
                    f"SELECT position, pictures_at_most, worst_micro {_QUEUED} AND {which} AND position > ? "
                    "ORDER BY position LIMIT ?",
                    (run.id, step, last, _CHUNK),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from itertools.starmap(Queued, rows)

    def saved(self, run: Run) -> Iterator[Saved]:
        """The saved requests of the run's table, in its order, as far as it takes to see whether all is there."""
        last = (-1, -1)
        while True:
            with self._read() as db:
                rows = db.execute(_SAVED, (run.id, *last, _PAGE)).fetchall()
            if not rows:
                return
            last = tuple(rows[-1][:2])
            for (position, _, name), group in itertools.groupby(rows, key=lambda row: (row[0], row[1], row[2])):
                yield Saved(name, position, tuple(tuple(row[3:6]) for row in group if row[3] is not None))

    def entries(self, ids: Sequence[str]) -> tuple[Entry, ...]:
        """The requests of these ids in their order; those that are not there are left out."""
        return self._by_ids(ids)

    def unsent(self, run: Run) -> Iterator[Unsent]:
        """The queued rows of the run's table, in its order; a chunk in memory at a time."""
        last = (-1, -1)
        while True:
            with self._read() as db:
                rows = db.execute(
                    "SELECT id, position, occurrence, number FROM requests WHERE listed = ? AND state = 'queued' "
                    "AND owner IS NULL AND (position, number) > (?, ?) ORDER BY position, number LIMIT ?",
                    (run.id, *last, _PAGE),
                ).fetchall()
            if not rows:
                return
            last = (rows[-1]["position"], rows[-1]["number"])
            for row in rows:
                yield Unsent(row["id"], row["position"], row["occurrence"])

    def is_listed(self, run: Run, request_id: str) -> bool:
        """Whether a request belongs to a row of the run's table."""
        with self._read() as db:
            found = db.execute("SELECT 1 FROM requests WHERE id = ? AND listed = ?", (request_id, run.id)).fetchone()
        return found is not None

    def unlisted(self, run: Run) -> Iterator[tuple[str, str, int]]:
        """Id, row's id and position of the batch's rows that the run's table has no more, oldest first."""
        with self._read() as db:
            rows = db.execute(
                "SELECT id, row_id, position FROM requests WHERE identity IS NOT NULL AND listed IS NOT ? "
                "ORDER BY number",
                (run.id,),
            ).fetchall()
        for row in rows:
            yield row["id"], row["row_id"], row["position"]

    def copy_to(self, path: Path) -> None:
        """Write a copy of the whole ledger to a new file, beside whatever else happens to it."""
        with self._read() as db, contextlib.closing(sqlite3.connect(path)) as copy:
            db.backup(copy)

    def absorb(self, other: Path, moved: Sequence[tuple[str, int, Path]] = ()) -> int:
        """Take over all that another ledger knows, of a version not newer than this; the rows that were new here.

        What both know stays as it is here, except that a row gives way which is only queued here, or which went on
        over there. `moved` are pictures that have another name here. Nobody else may have the other ledger in hand:
        hold its batch first.
        """
        with self._turn:
            try:
                self._db.execute("ATTACH DATABASE ? AS other", (str(other.absolute()),))
            except sqlite3.Error as error:
                raise self._explain(error, "no") from error
            try:
                with self._write("no") as db:
                    self._sums.clear()
                    new = _absorb(db)
                    names = [(_store_path(path), request, index) for request, index, path in moved]
                    db.executemany("UPDATE main.pictures SET path = ? WHERE request = ? AND position = ?", names)
                    return new
            finally:
                self._db.execute("DETACH DATABASE other")

    def unsaved(self) -> tuple[Entry, ...]:
        """What `recover` takes: paid and not saved, open tasks, unread replies. Not what a living run works on."""
        with self._read():
            found = self._select(
                "WHERE state IN ('waiting', 'ready') OR (state = 'unknown' AND (reply IS NOT NULL OR EXISTS("
                "SELECT 1 FROM pictures WHERE request = requests.id AND pictures.state = 'pending'))) ORDER BY number"
            )
        alive = {owner for owner in {entry.owner for entry in found} if owner and self._is_alive(owner)}
        return tuple(entry for entry in found if entry.owner not in alive)

    def reusable(self, fingerprint: str, *, limit: int = 100) -> tuple[Entry, ...]:
        """Of the last `limit` requests of this fingerprint those whose pictures were all saved, newest first.

        The caller looks whether the files are still there.
        """
        with self._read():
            found = self._select(
                "WHERE fingerprint = ? AND state = 'saved' ORDER BY number DESC LIMIT ?", (fingerprint, limit)
            )
        whole = (entry for entry in found if entry.pictures)
        return tuple(entry for entry in whole if all(p.state == "saved" and p.path for p in entry.pictures))

    def notes(self, request_id: str) -> tuple[Note, ...]:
        """What was done to a request beside its own way, oldest first."""
        with self._read() as db:
            rows = db.execute("SELECT * FROM notes WHERE request = ? ORDER BY number", (request_id,)).fetchall()
        return tuple(_note_of(row) for row in rows)

    def note(self, request_id: str, what: str, detail: str = "") -> None:
        """Write down that something was done to a request, such as `recovered`."""
        with self._write("yes") as db:
            self._note(db, request_id, what, detail)

    def purge(self, *, before: dt.datetime | None, force: bool = False, kept_runs: Sequence[str] = ()) -> Purged:
        """Remove requests entered before a moment (None: all), with their pictures' rows, notes and empty runs.

        Those that are unsaved, unknown, in doubt or in flight stay unless `force`; those of a living run stay always.
        Batches among `kept_runs` stay too: by them their folders are known, where something may be left to fetch.
        Today's money stays in the day's budget. What was removed is overwritten in the file, not only unlinked.
        A batch whose saved rows are purged pays for them again.
        """
        limit = "9999" if before is None else _stamp(before)
        with self._read() as db:
            owners = db.execute(
                "SELECT owner FROM requests WHERE owner IS NOT NULL UNION SELECT id FROM runs WHERE finished_at IS NULL"
            ).fetchall()
        alive = json.dumps([row[0] for row in owners if self._is_alive(row[0])])
        with self._write("no") as db:
            picked = _pick_purged(db, limit, alive, force=force)
            asked = db.execute("SELECT count(*) FROM requests WHERE entered_at < ?", (limit,)).fetchone()[0]
            self._keep_outlay(db)
            db.execute("DELETE FROM requests WHERE number IN (SELECT number FROM purged)")
            db.execute(
                "DELETE FROM runs WHERE started_at < ? AND id NOT IN (SELECT value FROM json_each(?) "
                "UNION SELECT value FROM json_each(?) UNION SELECT run FROM requests "
                "UNION SELECT owner FROM requests WHERE owner IS NOT NULL "
                "UNION SELECT listed FROM requests WHERE listed IS NOT NULL "
                "UNION SELECT payer FROM requests WHERE payer IS NOT NULL)",
                (limit, alive, json.dumps(list(kept_runs))),
            )
            if picked:
                self._note(db, None, "purged", f"{picked} requests")
        with self._read() as db:
            # The write-ahead log still holds the removed rows until it is written back and cut.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return Purged(picked, asked - picked)

    def _keep_outlay(self, db: sqlite3.Connection) -> None:
        """Keep the sum of what is purged and was charged today: a purge must not refill the day's budget."""
        today, at = _stamp(self.today()), _stamp(self._now())
        sums = db.execute(
            f"SELECT currency, sum({_PAID} + {_POSSIBLE}) AS micro FROM requests "  # noqa: S608 -- constants
            "WHERE number IN (SELECT number FROM purged) AND charged_at >= ? GROUP BY currency",
            (today,),
        ).fetchall()
        rows = [(f"purged {at} {row['currency']}", at, row["micro"], row["currency"]) for row in sums if row["micro"]]
        db.executemany("INSERT OR REPLACE INTO outlays VALUES (?, ?, ?, ?)", rows)

    # What all of them stand on.

    @contextlib.contextmanager
    def together(self, stake: Billed) -> Iterator[None]:
        """All that is written in the block in one transaction, flushed once when it ends. Where the block raises,
        nothing of it was written. `stake` is what a failure to flush leaves in doubt.
        """
        with self._write(stake):
            self._is_grouped = True
            try:
                yield
            finally:
                self._is_grouped = False

    @contextlib.contextmanager
    def _write(self, stake: Billed) -> Iterator[sqlite3.Connection]:
        """One transaction, flushed when the block ends. `stake` is what its failure leaves in doubt."""
        with self._turn:
            try:
                # Inside a group the group's own transaction is the one that is flushed.
                with contextlib.nullcontext() if self._is_grouped else _transaction(self._db):
                    yield self._db
            except sqlite3.Error as error:
                raise self._explain(error, stake) from error

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._turn:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise self._explain(error, "no") from error

    def _explain(self, error: sqlite3.Error, stake: Billed) -> SeedreamError:
        """What an error of SQLite means for the user."""
        return _explain(self.path, error, stake)

    def _row_in_hand(self, db: sqlite3.Connection, request_id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = db.execute(_IN_HAND, (request_id,)).fetchone()
        if row is None:
            raise InternalError(f"the ledger knows no request {request_id}")
        if row["owner"] not in self._held:
            raise InternalError(f"request {request_id} is not in the hands of this process")
        return row

    def _select(self, clause: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> tuple[Entry, ...]:
        rows = self._db.execute(f"{_ENTRIES} {clause}", values).fetchall()
        pictures = _pictures_of(self._db, [row["id"] for row in rows])
        return tuple(_entry(row, pictures.get(row["id"], ())) for row in rows)

    def _by_ids(self, ids: Sequence[str]) -> tuple[Entry, ...]:
        """The requests of these ids in their order; those that are not there are left out."""
        with self._read():
            found = self._select("WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),))
        known = {entry.id: entry for entry in found}
        return tuple(known[one] for one in dict.fromkeys(ids) if one in known)

    def _note(self, db: sqlite3.Connection, request_id: str | None, what: str, detail: str) -> None:
        row = (request_id, _stamp(self._now()), what, self._text(detail))
        db.execute("INSERT INTO notes(request, at, what, detail) VALUES (?, ?, ?, ?)", row)

    def _text(self, text: str) -> str:
        """Text as it may be stored: without secrets, and without half characters, which SQLite cannot take."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

    def _json(self, value: Mapping[str, Any]) -> str:
        # In ASCII, so that half a character comes back as it was.
        text = _ENCODER.encode(value)
        # A look at the text is cheaper than a walk through every value of every row.
        lower = text.lower()
        return self._text(_ENCODER.encode(_plain(value)) if any(word in lower for word in _SUSPECT) else text)

    def _failure(self, error: SeedreamError | None) -> str | None:
        if error is None:
            return None
        failure = Failure(
            error.kind,
            _BEARER.sub(r"\1 ***", error.message),
            error.hint,
            str(getattr(error, "code", "")),
            str(getattr(error, "request_id", "")),
        )
        return self._json(_as_mapping(failure))

    def _picture_row(self, request_id: str, picture: PictureRow) -> dict[str, Any]:
        row: dict[str, Any] = {name: getattr(picture, name) for name in _PICTURE}
        row["request"] = request_id
        row["link"] = self._text(picture.link)
        row["path"] = _store_path(picture.path)
        row["error"] = None if picture.error is None else self._json(_as_mapping(picture.error))
        return row


# --- rules ----------------------------------------------------------------------------------------------------------


def _check_move(row: sqlite3.Row, to: State, *, again: bool = False) -> None:
    """Hold a move against the table. A wrong one is a bug that could cost money, so it stops everything."""
    if to not in TRANSITIONS[row["state"]]:
        raise InternalError(f"request {row['id']} cannot go from {row['state']} to {to}")
    if to == "sent" and row["state"] in _AGAIN and not again:
        raise InternalError(f"request {row['id']} is {row['state']} and would be sent again without being told to")


def _pending(db: sqlite3.Connection, row: sqlite3.Row) -> int:
    """How many pictures of an answered request are paid for and not fetched."""
    if row["state"] != "ready":
        return 0
    pending = "SELECT count(*) FROM pictures WHERE request = ? AND state = 'pending'"
    return int(db.execute(pending, (row["id"],)).fetchone()[0])


def _carry_over(row: sqlite3.Row) -> dict[str, int]:
    """What an earlier attempt leaves in the account when the request is sent once more."""
    if row["billed"] == "yes":
        cost = row["worst_micro"] if row["settled_micro"] is None else row["settled_micro"]
        return {"earlier_micro": row["earlier_micro"] + (cost or 0)}
    return {"doubts": row["doubts"] + (row["billed"] == "unknown")}


def _absorb(db: sqlite3.Connection) -> int:
    """Copy the rows of the attached ledger `other`. Their owners are dead."""

    def copied(table: str, *blank: str) -> tuple[str, str]:
        names = [row["name"] for row in db.execute(f"PRAGMA main.table_info({table})")]
        names = [name for name in names if name != "number"]
        return ", ".join(names), ", ".join("NULL" if name in blank else name for name in names)

    # What gives way, or is not taken over, was paid all the same: the money of both folders adds up.
    outlay = f"INSERT OR REPLACE INTO main.outlays SELECT 'merged ' || id, charged_at, {_OUTLAY}, currency FROM"
    db.execute("INSERT OR IGNORE INTO main.outlays SELECT * FROM other.outlays")
    db.execute(
        f"{outlay} main.requests AS mine WHERE state = 'queued' AND charged_at IS NOT NULL AND {_OUTLAY} > 0 AND "  # noqa: S608
        "EXISTS(SELECT 1 FROM other.requests AS theirs WHERE theirs.identity = mine.identity "
        "AND theirs.occurrence = mine.occurrence AND theirs.state <> 'queued' AND theirs.id <> mine.id)"
    )
    # Rows refer to each other, so the order is that of the references.
    names, taken = copied("runs")
    db.execute(f"INSERT OR IGNORE INTO main.runs({names}) SELECT {taken} FROM other.runs")  # noqa: S608
    db.execute(
        "DELETE FROM main.requests WHERE state = 'queued' AND EXISTS(SELECT 1 FROM other.requests AS theirs "
        "WHERE theirs.identity = requests.identity AND theirs.occurrence = requests.occurrence "
        "AND theirs.state <> 'queued')"
    )
    # A shard that was run again after it was absorbed knows better; it holds all that was known here of its own rows.
    db.execute(
        "DELETE FROM main.requests WHERE state <> 'saved' AND EXISTS(SELECT 1 FROM other.requests AS theirs "
        "WHERE theirs.id = requests.id AND (theirs.attempts > requests.attempts OR "
        "theirs.attempts = requests.attempts AND theirs.state IN ('saved', 'resolved')))"
    )
    names, taken = copied("requests", "owner", "listed")
    before = int(db.execute("SELECT count(*) FROM main.requests").fetchone()[0])
    db.execute(f"INSERT OR IGNORE INTO main.requests({names}) SELECT {taken} FROM other.requests ORDER BY number")  # noqa: S608
    db.execute(
        f"{outlay} other.requests AS theirs WHERE charged_at IS NOT NULL AND {_OUTLAY} > 0 "  # noqa: S608
        "AND id NOT IN (SELECT id FROM main.requests)"
    )
    for table in ("pictures", "notes"):
        names, taken = copied(table)
        db.execute(
            f"INSERT OR IGNORE INTO main.{table}({names}) SELECT {taken} FROM other.{table} "  # noqa: S608
            f"WHERE request IN (SELECT id FROM main.requests) "
            f"AND request NOT IN (SELECT request FROM main.{table} WHERE request IS NOT NULL)"
        )
    return int(db.execute("SELECT count(*) FROM main.requests").fetchone()[0]) - before


def _is_doubtful(state: State, billed: Billed) -> bool:
    """Whether a person may have something to say about the request itself, not only about its earlier attempts."""
    return state in {"waiting", "ready", "unknown", "resolved"} or billed == "unknown"


def _resolved(row: sqlite3.Row, paid: Resolution) -> dict[str, Any]:
    """The changes that a resolution makes. Earlier doubtful attempts are settled with it."""
    changes: dict[str, Any] = {"doubts": 0}
    if paid == "paid":
        changes["earlier_micro"] = row["earlier_micro"] + row["doubts"] * (row["worst_micro"] or 0)
    if not _is_doubtful(row["state"], row["billed"]):
        return changes
    state: State = "resolved" if paid == "paid" else "queued"
    return {**changes, "state": state, "billed": "yes" if paid == "paid" else "no", "reserved": 0, "owner": None}


@dataclass(frozen=True, slots=True)
class _Scope:
    """Whose money is summed up: that of a run, since a moment, of rows by their identity, or all."""

    currency: str
    run: str | None = None
    since: str | None = None
    has_row: Callable[[str], bool] | None = None


def _spent(db: sqlite3.Connection, of: _Scope) -> Spent:
    currency = of.currency
    values = {"currency": currency, "run": of.run, "since": of.since}
    parts = ["payer = :run"] if of.run is not None else []
    parts += ["charged_at >= :since"] if of.since is not None else []
    if of.has_row is not None:
        db.create_function("in_part", 1, of.has_row, deterministic=True)
        parts += ["charged_at IS NOT NULL AND identity IS NOT NULL AND in_part(identity)"]
    where = f" WHERE {' AND '.join(parts)}" if parts else ""
    paid, reserved, possible, unpriced = db.execute(_MONEY + where, values).fetchone()
    if of.run is None and of.has_row is None:
        booked, unknown = db.execute(_BOOKED, values).fetchone()
        paid, unpriced = paid + booked, unpriced + unknown
    return Spent(paid, reserved, possible, unpriced, currency)


_BOOKED = """SELECT coalesce(sum(micro * (currency = :currency)), 0),
    coalesce(sum(micro IS NULL OR currency <> :currency), 0)
    FROM outlays WHERE :since IS NULL OR charged_at >= :since"""


def _hold_cap(spent: Spent, micro: int, cap: int, name: str, hint: str) -> None:
    # What costs nothing passes a budget that is used up, too.
    if not micro or spent.total + micro <= cap:
        return
    sums = ((spent.paid, "spent"), (spent.reserved, "reserved"), (spent.possible, "possibly spent"))
    told = " and ".join(
        f"{_money(amount, spent.currency)} {word}" for amount, word in sums if amount or word == "spent"
    )
    raise BudgetError(
        f"the next request may cost up to {_money(micro, spent.currency)}, and {name} of "
        f"{_money(cap, spent.currency)} has {told}",
        hint=hint,
    )


def _money(micro: int, currency: str) -> str:
    """Micro-units as an amount: at least two decimals, more where it has them."""
    whole, _, rest = f"{micro / 1e6:.6f}".partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')} {currency}"


def _midnight(moment: dt.datetime) -> dt.datetime:
    """The start of the local day, also on a day on which the clocks are put forward or back."""
    day = moment.astimezone().date()
    return dt.datetime(day.year, day.month, day.day).astimezone()


def _pick_purged(db: sqlite3.Connection, limit: str, alive: str, *, force: bool) -> int:
    """Put the numbers of the requests to remove into the temporary table `purged`; returns how many."""
    db.execute("CREATE TEMP TABLE IF NOT EXISTS purged(number INTEGER PRIMARY KEY)")
    db.execute("DELETE FROM purged")
    return db.execute(_PICK_PURGED, (limit, alive, force)).rowcount


_PICK_PURGED = """INSERT INTO purged SELECT number FROM requests WHERE entered_at < ?
    AND (owner IS NULL OR owner NOT IN (SELECT value FROM json_each(?)))
    AND (? OR (state IN ('queued', 'saved', 'failed', 'resolved') AND billed <> 'unknown' AND doubts = 0))"""


# --- rows -----------------------------------------------------------------------------------------------------------

_JSON_COLUMNS = ("body", "fields", "output", "usage")
_MOMENTS = ("entered_at", "sent_at", "answered_at", "finished_at")


def _entry(row: sqlite3.Row, pictures: tuple[PictureRow, ...]) -> Entry:
    try:
        return _read_entry(row, pictures)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise _unreadable(row["id"]) from error


def _unreadable(name: object) -> FileError:
    hint = "move the ledger away; kept replies are untouched (`seedream recover`)"
    return FileError(f"the ledger is damaged: what it says of {str(name)[:80]!r} cannot be read", hint=hint)


def _read_entry(row: sqlite3.Row, pictures: tuple[PictureRow, ...]) -> Entry:
    # By position, since finding forty columns by name would take longer than all the rest.
    values: dict[str, Any] = dict(zip(_ENTRY, row, strict=False))
    for name in _JSON_COLUMNS:
        values[name] = None if values[name] is None else json.loads(values[name])
    for name in _MOMENTS:
        values[name] = _moment(values[name])
    values["error"] = _load_failure(values["error"])
    values["reply"] = _load_path(values["reply"])
    return Entry(**values, pictures=pictures)


def _pictures_of(db: sqlite3.Connection, ids: Sequence[str]) -> dict[str, tuple[PictureRow, ...]]:
    rows = db.execute(_PICTURES, (json.dumps(ids),))
    return {
        request: tuple(_picture(row) for row in group)
        for request, group in itertools.groupby(rows, key=lambda row: str(row[0]))
    }


_PICTURES = f"""SELECT request, position, {", ".join(_PICTURE[1:])} FROM pictures
    WHERE request IN (SELECT value FROM json_each(?)) ORDER BY request, position"""  # noqa: S608 -- fields' names


def _picture(row: sqlite3.Row) -> PictureRow:
    values: dict[str, Any] = dict(zip(_PICTURE, row[1:], strict=True))
    try:
        values["path"] = _load_path(values["path"])
        values["error"] = _load_failure(values["error"])
    except (ValueError, TypeError, RecursionError) as error:
        raise _unreadable(row[0]) from error
    return PictureRow(**values)


def _note_of(row: sqlite3.Row) -> Note:
    try:
        at = _moment(row["at"])
    except (ValueError, TypeError) as error:
        raise _unreadable(row["request"]) from error
    assert at is not None  # noqa: S101 - the table has no note without
    return Note(row["request"], at, row["what"], row["detail"])


@contextlib.contextmanager
def _unchecked(db: sqlite3.Connection) -> Iterator[None]:
    """Enter rows without a look at what cannot be wrong: it takes as long as the rest.

    All that they refer to is their run, and the columns that are bound to a few words have their first ones.
    """
    try:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("PRAGMA ignore_check_constraints = ON")
        yield
    finally:
        db.execute("PRAGMA ignore_check_constraints = OFF")
        db.execute("PRAGMA foreign_keys = ON")


def _join_rows(rows: Iterator[tuple[Any, ...]], many: int, rest: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The values of so many rows at once; those of the last ones, which are fewer, go to `rest`."""
    while len(some := list(itertools.islice(rows, many))) == many:
        yield tuple(itertools.chain.from_iterable(some))
    rest += some


def _update(db: sqlite3.Connection, request_id: str, changes: Mapping[str, Any]) -> None:
    columns = ", ".join(f"{name} = :{name}" for name in changes)
    db.execute(f"UPDATE requests SET {columns} WHERE id = :id", {**changes, "id": request_id})  # noqa: S608 -- our names


def _most(limit: int | None) -> int:
    """SQLite's word for no limit is -1."""
    return -1 if limit is None else limit


def _stamp(moment: dt.datetime) -> str:
    """A moment as text that sorts: always UTC, always of one length."""
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")


def _moment(stamp: str | None) -> dt.datetime | None:
    if stamp is None:
        return None
    moment = dt.datetime.fromisoformat(stamp)
    if not _FIRST_YEAR <= moment.year < dt.MAXYEAR:
        raise ValueError(f"{stamp} is no moment of ours")
    return moment


_FIRST_YEAR = 1970
"""What is earlier, or last of all, has no local time in some place, and was never written here."""


def _store_path(path: Path | None) -> str | bytes | None:
    """A path as text; one whose name is no UTF-8 as its bytes, since text could not hold it."""
    if path is None:
        return None
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return text


def _load_path(stored: str | bytes | None) -> Path | None:
    return None if stored is None else Path(os.fsdecode(stored))


def _load_failure(stored: str | None) -> Failure | None:
    return None if stored is None else Failure(**json.loads(stored))


def _as_mapping(failure: Failure) -> dict[str, str]:
    return {one.name: getattr(failure, one.name) for one in fields(failure)}


def _fold(value: str | bytes | None) -> str:
    """Text for a search in any case and any script."""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value or "").casefold()


# --- what is never stored -------------------------------------------------------------------------------------------

_SENSITIVE = re.compile(
    r"authorization|cookie|passw(or)?d|secret|credential|api[-_ ]?key|access[-_ ]?key|(^|[-_ ])(token|key)$",
    re.IGNORECASE,
)
_SUSPECT = ("authorization", "cookie", "passw", "secret", "credential", "key", 'token"', '"data:')
_BEARER = re.compile(r"\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_USER_INFO = re.compile(r"//[^/@?#]*@")
_LONGEST_URI = 1024


def _quote(text: str) -> str:
    """A text as JSON, as `_plain` has it."""
    return encode_basestring_ascii(text) if len(text) <= _LONGEST_URI else _ENCODER.encode(_shorten(text))


def _forms(secrets: Sequence[str]) -> tuple[str, ...]:
    """Each secret as it is and as it stands inside JSON, longest first; blanks would mask everything."""
    both = {form for one in secrets if one.strip() for form in (one, json.dumps(one)[1:-1])}
    return tuple(sorted(both, key=len, reverse=True))


def _plain(value: Any) -> Any:
    """A value without base64, and without what stands under a secret's name."""
    if isinstance(value, str):
        return _shorten(value)
    if isinstance(value, Mapping):
        return {
            str(key): "***" if isinstance(item, str) and _SENSITIVE.search(str(key)) else _plain(item)
            for key, item in value.items()
        }
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _shorten(text: str) -> Any:
    """A data URI by its sha256 and size; any other text as it is."""
    if len(text) <= _LONGEST_URI or not text.startswith("data:"):
        return text
    return {
        "file": "data URI",
        "sha256": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(),
        "bytes": len(text),
    }


def _odd(value: Any) -> Any:
    """What JSON does not know: a reference by its name, sha256 and bytes, any mapping, a path."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    # Importing `request` costs pydantic's start-up time, which a body of plain JSON never needs.
    from .request import ImageRef

    if not isinstance(value, ImageRef):
        raise InternalError(f"the ledger cannot store a {type(value).__name__}")
    if value.kind == "url":
        return value.location
    shown = {"file": value.location, "sha256": value.sha256, "bytes": value.size or len(value.content)}
    return shown | ({"sent_sha256": value.sent.sha256, "sent_bytes": value.sent.size} if value.sent else {})


# In ASCII, so that half a character comes back as it was.
_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_odd)


# --- locks ----------------------------------------------------------------------------------------------------------


class _Lock:
    """An exclusive lock on a file, let go by the system when its process dies, however it dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @staticmethod
    def take(path: Path, *, wait: bool = False) -> _Lock | None:
        """The lock, or None where another process holds it. Raises `FileError` where the disk has no locks."""
        descriptor = -1
        try:
            descriptor = files.open_own(path, os.O_RDWR | os.O_CREAT)
            if _try_lock(descriptor, wait=wait):
                return _Lock(path, descriptor)
        except OSError as error:
            raise _no_place(path, error) from error
        os.close(descriptor)
        return None

    @staticmethod
    def is_free(path: Path) -> bool:
        """Whether nobody holds it: whoever did is dead. A lock that cannot be looked at counts as held."""
        try:
            descriptor = files.open_own(path, os.O_RDWR)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        # Shared, so that two processes that look at once do not take each other for the owner.
        with os.fdopen(descriptor, "rb", buffering=0), contextlib.suppress(OSError):
            return _try_lock(descriptor, shared=True)
        return False

    def sign(self) -> None:
        """Write this process's number into the file, for the message that another one shows."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self, *, remove: bool = False) -> None:
        """Let go. With `remove` the file goes too, while it is still held where the system allows that."""
        if remove and sys.platform != "win32":
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        if remove and sys.platform == "win32":
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}


def _try_lock(descriptor: int, *, wait: bool = False, shared: bool = False) -> bool:
    """False where another has it; raises `OSError` where there are no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCK_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def _flush_folder(folder: Path) -> None:
    """Make a new name survive a power cut, where the system knows such a thing."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- what went wrong ------------------------------------------------------------------------------------------------


def _no_place(path: Path, error: OSError | sqlite3.Error) -> FileError:
    reason = files.reason(error) if isinstance(error, OSError) else str(error)
    is_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    is_full = is_full or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
    hint = "make room there" if is_full else "make the place writable"
    if isinstance(error, files.ForeignError):
        # The name that is meant is the error's own: a log's, say.
        return FileError(f"cannot keep the ledger {error.filename}: {files.reason(error)}", hint=error.way_out)
    return FileError(f"cannot keep the ledger {path}: {reason.lower()}", hint=hint)


def _damaged(path: Path, what: str) -> FileError:
    return FileError(
        f"the ledger {path} is damaged: {what}",
        hint="move it away with its -wal file, and a new one is begun; kept replies are untouched "
        "(`seedream recover`), and SQLite's own `.recover` saves most rows of a copy",
    )


def _explain(path: Path, error: sqlite3.Error, stake: Billed) -> SeedreamError:
    """What an error of SQLite means for the user, by the primary part of its code."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None or isinstance(error, sqlite3.IntegrityError):
        return InternalError(f"the ledger was used wrongly: {error}")
    primary = code & 0xFF
    if primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}:
        found = _damaged(path, str(error))
    elif primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}:
        found = FileError(
            f"another process has kept the ledger {path} locked for {_BUSY_S:.0f} s", hint="stop it, and try again"
        )
    else:
        found = FileError(
            f"cannot write the ledger {path}: {str(error).lower()}", hint="make room there, or make it writable"
        )
    found.billed = stake
    return found
