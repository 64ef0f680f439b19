"""SQL that is specific to SQLite: tables, migrations, settings, and every longer statement.

SQL in the other files of this package is standard, except for its parameter markers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from .records import Entry, ImageRow

APPLICATION = 0x53454544
"""The application id ("SEED") in a ledger's header, by which other programs' databases are recognised."""

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
    (
        "images",
        (
            "ALTER TABLE pictures RENAME TO images",
            "ALTER TABLE requests RENAME COLUMN pictures_at_most TO images_at_most",
            "ALTER TABLE requests RENAME COLUMN billed_pictures TO billed_images",
        ),
    ),
)
"""Oldest first. Only ever add: a name that is listed in a file is not run again."""

SETTINGS = (
    "PRAGMA trusted_schema = OFF",
    # Purged and updated values must not stay readable in the file.
    "PRAGMA secure_delete = ON",
    "PRAGMA temp_store = MEMORY",
    # A third faster for a large table; both do not affect durability.
    "PRAGMA cache_size = -4000",
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA foreign_keys = ON",
    "PRAGMA synchronous = FULL",
)
"""For every connection."""

# No WAL while a file is created: SQLite does not report that a full disk stopped its checkpoint on close. The file has
# a temporary name until it is complete and flushed, so a crash costs nothing.
BUILDING = ("PRAGMA journal_mode = MEMORY", "PRAGMA synchronous = OFF")
"""For the connection that creates a file."""

JOURNAL = "PRAGMA journal_mode"

# IMMEDIATE: a read that turns into a write fails at once beside another writer, without the busy timeout.
BEGIN = "BEGIN IMMEDIATE"

# Safe for inserted rows: they refer only to their run, which is checked, and CHECK columns have their defaults.
UNCHECKED = ("PRAGMA foreign_keys = OFF", "PRAGMA ignore_check_constraints = ON")

CHECKED = ("PRAGMA ignore_check_constraints = OFF", "PRAGMA foreign_keys = ON")

APPLICATION_ID = "PRAGMA application_id"

HAS_MIGRATIONS = "SELECT 1 FROM sqlite_master WHERE name = 'migrations'"

OBJECTS = "SELECT type, name, sql FROM sqlite_master LIMIT 1000"

# Changes when another connection has written.
DATA_VERSION = "PRAGMA data_version"

QUICK_CHECK = "PRAGMA quick_check(20)"

FOREIGN_KEY_CHECK = "PRAGMA foreign_key_check"

# The WAL holds deleted rows until it is checkpointed and truncated.
CHECKPOINT = "PRAGMA wal_checkpoint(TRUNCATE)"


def most(limit: int | None) -> int:
    """The value for LIMIT; -1 is no limit."""
    return -1 if limit is None else limit


# --- money and status -------------------------------------------------------------------------------------------------

PAID = "earlier_micro + CASE WHEN billed = 'yes' THEN coalesce(settled_micro, worst_micro, 0) ELSE 0 END"

RESERVED = "CASE WHEN reserved OR state IN ('sent', 'waiting') THEN coalesce(worst_micro, 0) ELSE 0 END"

POSSIBLE = (
    "coalesce(worst_micro, 0) * "
    "(doubts + CASE WHEN billed = 'unknown' AND state NOT IN ('sent', 'waiting') THEN 1 ELSE 0 END)"
)

OUTLAY = f"({PAID} + {RESERVED} + {POSSIBLE})"

COSTS = "(reserved OR doubts OR billed <> 'no')"

MONEY = f"""SELECT
    coalesce(sum(({PAID}) * (currency = :currency)), 0),
    coalesce(sum(({RESERVED}) * (currency = :currency)), 0),
    coalesce(sum(({POSSIBLE}) * (currency = :currency)), 0),
    coalesce(sum({COSTS} AND (currency <> :currency OR coalesce(settled_micro, worst_micro) IS NULL)), 0)
    FROM requests"""  # noqa: S608 -- made of the constants above

CHARGES = f"""SELECT id, coalesce(sent_at, charged_at, entered_at), provider, model,
    (SELECT count(*) FROM images WHERE request = requests.id AND images.state IN ('saved', 'handed')),
    {PAID}, {RESERVED} + {POSSIBLE},
    billed = 'no' AND NOT doubts OR coalesce(settled_micro, worst_micro) IS NOT NULL, currency
    FROM requests WHERE attempts > 0 OR {COSTS} ORDER BY number"""  # noqa: S608 -- made of the constants above

OUTLAY_SUMS = """SELECT coalesce(sum(micro * (currency = :currency)), 0),
    coalesce(sum(micro IS NULL OR currency <> :currency), 0)
    FROM outlays WHERE :since IS NULL OR charged_at >= :since"""

INSERT_OUTLAY = "INSERT OR REPLACE INTO outlays VALUES (?, ?, ?, ?)"

NEWEST_OUTLAYS = "SELECT key, micro FROM outlays ORDER BY charged_at DESC, rowid DESC"

STATUS = """CASE state
    WHEN 'queued' THEN CASE WHEN owner IS NULL THEN 'unsent' ELSE 'running' END
    WHEN 'sent' THEN 'running' WHEN 'waiting' THEN 'submitted' WHEN 'ready' THEN 'unsaved'
    WHEN 'saved' THEN CASE
        WHEN NOT EXISTS(SELECT 1 FROM images WHERE request = requests.id AND images.state IN ('failed', 'expired'))
        THEN 'succeeded'
        WHEN EXISTS(SELECT 1 FROM images WHERE request = requests.id AND images.state IN ('saved', 'handed'))
        THEN 'partial' ELSE 'failed' END
    ELSE state END"""

ENTRY = tuple(one.name for one in fields(Entry) if one.name != "images")

ENTRY_COLUMNS = ", ".join(f"{STATUS} AS status" if name == "status" else name for name in ENTRY)

ENTRIES = f"SELECT {ENTRY_COLUMNS} FROM requests"  # noqa: S608 -- made of the constants above

LISTED = f"""SELECT {ENTRY_COLUMNS}, number FROM requests WHERE listed = ? AND (position, number) > (?, ?)
    AND state IN (SELECT value FROM json_each(?)) ORDER BY position, number LIMIT ?"""  # noqa: S608 -- made as above

# The columns that a transition reads; the whole row, with body and prompt, would be slower than all else.
CLAIMED_ROW = """SELECT id, owner, state, billed, reserved, doubts, attempts, token, trace, currency, worst_micro,
    settled_micro, earlier_micro, answered_at, reply FROM requests WHERE id = ?"""

# The columns set by a table's row, updated by a later run while the request is queued.
ROW_COLUMNS = (
    "provider",
    "base_url",
    "model",
    "prompt",
    "body",
    "fingerprint",
    "images_at_most",
    "worst_micro",
    "currency",
    "as_of",
    "fields",
    "output",
)

POSITION_COLUMNS = ("position", "row_id", "file", "line")

COLUMNS = ("id", "run", "owner", "listed", "identity", "occurrence", "entered_at", *POSITION_COLUMNS, *ROW_COLUMNS)

NEW = f"""INSERT INTO requests({", ".join(COLUMNS)})
    VALUES ({", ".join("?" * len(COLUMNS))})"""  # noqa: S608 -- made of the constants above

KNOWN = f"""ON CONFLICT(identity, occurrence) WHERE identity IS NOT NULL DO UPDATE SET listed = excluded.listed,
    {", ".join(f"{name} = excluded.{name}" for name in POSITION_COLUMNS)},
    {", ".join(f"{name} = CASE state WHEN 'queued' THEN excluded.{name} ELSE {name} END" for name in ROW_COLUMNS)}
"""

ENTER = f"{NEW} {KNOWN}"

OWN = ("id", "identity", "occurrence", "position", "row_id", "line", "prompt", "body", "fields")

COMMON = (
    "file",
    "provider",
    "base_url",
    "model",
    "images_at_most",
    "worst_micro",
    "currency",
    "as_of",
    "output",
)

ROWS_PER_STATEMENT = 10
"""SQLite's overhead per statement is as much as a row."""


def enter_many(run_id: str, at: str, count: int) -> str:
    """The statement that inserts `count` rows of a run; values common to the run are in its text."""
    width = len(OWN) + len(COMMON)
    # Neither value comes from outside, and neither can contain a quote.
    common = f"'{run_id}', '{at}', '{run_id}'"
    rows = [
        f"({common}, ?{first + 2}, {', '.join(f'?{first + nth + 1}' for nth in range(width))})"
        for first in range(0, count * width, width)
    ]
    return f"""INSERT INTO requests(listed, entered_at, run, fingerprint, {", ".join((*OWN, *COMMON))})
        VALUES {", ".join(rows)} {KNOWN}"""  # noqa: S608 -- made of the constants above


# --- runs and claims --------------------------------------------------------------------------------------------------

RUNS = "SELECT id, started_at, finished_at, folder FROM runs ORDER BY rowid DESC LIMIT ?"

BATCHES = """SELECT id, started_at, finished_at, folder FROM runs WHERE command = 'batch' AND folder <> ''
    ORDER BY rowid DESC"""

LISTING = """SELECT id FROM runs WHERE EXISTS(SELECT 1 FROM requests WHERE listed = runs.id)
    ORDER BY rowid DESC LIMIT 1"""

POSSIBLY_DEAD = """SELECT owner FROM requests WHERE owner IS NOT NULL
    UNION SELECT id FROM runs WHERE id IN (SELECT value FROM json_each(?))"""

# Another run may have claimed it since it was read.
TAKE = "UPDATE requests SET owner = ? WHERE id = ? AND owner IS ? AND state = ?"

# --- queries ----------------------------------------------------------------------------------------------------------

AMONG = "WHERE id IN (SELECT value FROM json_each(?))"

# `folded` is defined by `database.connect`.
FOUND = """(instr(folded(prompt), ?) OR instr(folded(id), ?) OR instr(folded(row_id), ?) OR instr(folded(model), ?)
    OR EXISTS(SELECT 1 FROM images WHERE request = requests.id AND instr(folded(path), ?)))"""

ROW_STATUSES = f"""SELECT statuses, count(*) FROM (SELECT group_concat(DISTINCT {STATUS}) AS statuses
    FROM requests WHERE listed = ? GROUP BY position / ?) GROUP BY statuses"""  # noqa: S608 -- a constant

UNLISTED = """SELECT id, row_id, position FROM requests
    WHERE identity IS NOT NULL AND listed IS NOT ? ORDER BY number"""

QUEUED = "FROM requests WHERE listed = ? AND state = 'queued' AND owner IS NULL"

SINGLE = """position % ? = 0 AND NOT EXISTS(
    SELECT 1 FROM requests AS other WHERE other.listed = requests.listed AND other.position = requests.position + 1)"""

SAVED = """SELECT chosen.position, number, id, images.state, path, bytes FROM (
        SELECT position, number, id FROM requests WHERE listed = ? AND state = 'saved' AND (position, number) > (?, ?)
        ORDER BY position, number LIMIT ?) AS chosen
    LEFT JOIN images ON request = id ORDER BY chosen.position, number"""

IMAGE = tuple(one.name for one in fields(ImageRow))

RENEWED = tuple(name for name in IMAGE if name not in {"index", "link", "expires"})

KEEP_IMAGE = f"""INSERT INTO images(request, position, {", ".join(IMAGE[1:])})
    VALUES (:request, {", ".join(":" + name for name in IMAGE)})
    ON CONFLICT(request, position) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in RENEWED)},
    link = CASE excluded.link WHEN '' THEN link ELSE excluded.link END, expires = coalesce(excluded.expires, expires)
"""  # noqa: S608 -- made of the fields' names

ANNOUNCE_IMAGE = KEEP_IMAGE + " WHERE images.state NOT IN ('saved', 'handed')"

IMAGES = f"""SELECT request, position, {", ".join(IMAGE[1:])} FROM images
    WHERE request IN (SELECT value FROM json_each(?)) ORDER BY request, position"""  # noqa: S608 -- fields' names

# --- purge: the requests to delete are first listed in a temporary table ----------------------------------------------

PURGED = "CREATE TEMP TABLE IF NOT EXISTS purged(number INTEGER PRIMARY KEY)"

SELECT_PURGED = """INSERT INTO purged SELECT number FROM requests WHERE entered_at < ?
    AND (owner IS NULL OR owner NOT IN (SELECT value FROM json_each(?)))
    AND (? OR (state IN ('queued', 'saved', 'failed', 'resolved') AND billed <> 'unknown' AND doubts = 0))"""

DROP_RUNS = """DELETE FROM runs WHERE started_at < ? AND id NOT IN (SELECT value FROM json_each(?)
    UNION SELECT value FROM json_each(?) UNION SELECT run FROM requests
    UNION SELECT owner FROM requests WHERE owner IS NOT NULL
    UNION SELECT listed FROM requests WHERE listed IS NOT NULL
    UNION SELECT payer FROM requests WHERE payer IS NOT NULL)"""

# --- merge: another ledger is attached as `other` ---------------------------------------------------------------------

ATTACH = "ATTACH DATABASE ? AS other"

DETACH = "DETACH DATABASE other"

_KEEP_OUTLAY = f"INSERT OR REPLACE INTO main.outlays SELECT 'merged ' || id, charged_at, {OUTLAY}, currency FROM"

MERGE_OUTLAYS = "INSERT OR IGNORE INTO main.outlays SELECT * FROM other.outlays"

KEEP_OUTLAYS_OF_DROPPED = f"""{_KEEP_OUTLAY} main.requests AS mine
    WHERE state = 'queued' AND charged_at IS NOT NULL AND {OUTLAY} > 0 AND
    EXISTS(SELECT 1 FROM other.requests AS theirs WHERE theirs.identity = mine.identity
    AND theirs.occurrence = mine.occurrence AND theirs.state <> 'queued' AND theirs.id <> mine.id)"""  # noqa: S608

KEEP_OUTLAYS_OF_IGNORED = f"""{_KEEP_OUTLAY} other.requests AS theirs WHERE charged_at IS NOT NULL AND {OUTLAY} > 0
    AND id NOT IN (SELECT id FROM main.requests)"""  # noqa: S608 -- made of the constants above

DROP_QUEUED = """DELETE FROM main.requests WHERE state = 'queued' AND EXISTS(SELECT 1 FROM other.requests AS theirs
    WHERE theirs.identity = requests.identity AND theirs.occurrence = requests.occurrence
    AND theirs.state <> 'queued')"""

# A shard that ran again after it was merged is newer, and has all that is known here of its rows.
DROP_OLDER = """DELETE FROM main.requests WHERE state <> 'saved' AND EXISTS(SELECT 1 FROM other.requests AS theirs
    WHERE theirs.id = requests.id AND (theirs.attempts > requests.attempts OR
    theirs.attempts = requests.attempts AND theirs.state IN ('saved', 'resolved')))"""

_OF_REQUESTS = """WHERE request IN (SELECT id FROM main.requests)
    AND request NOT IN (SELECT request FROM main.{0} WHERE request IS NOT NULL)"""

# In the order of the foreign keys.
_MERGED = {
    "runs": "",
    "requests": "ORDER BY number",
    "images": _OF_REQUESTS.format("images"),
    "notes": _OF_REQUESTS.format("notes"),
}


def columns_of(table: str) -> str:
    """The statement that lists a table's columns."""
    return f"PRAGMA main.table_info({table})"


def merge_rows(table: str, names: list[str]) -> str:
    """The statement that copies a table's rows, without `owner` and `listed`, whose runs are dead."""
    taken = ", ".join("NULL" if name in {"owner", "listed"} else name for name in names)
    rows = f"SELECT {taken} FROM other.{table} {_MERGED[table]}"  # noqa: S608 -- made of the schema's own names
    return f"INSERT OR IGNORE INTO main.{table}({', '.join(names)}) {rows}"


# --- values that no version wrote -------------------------------------------------------------------------------------

# GLOB with a character class is slow, so names of hexadecimal digits skip it. GLOB stops at a NUL.
_NAME = (
    "typeof({0}) <> 'text' OR instr({0}, char(0)) OR {0} NOT GLOB '[A-Za-z0-9_]*' OR length({0}) > 100 "
    "OR (trim({0}, '-0123456789abcdef') <> '' AND {0} GLOB '*[^A-Za-z0-9_-]*')"
)

_RUN = "{0} NOT IN (SELECT id FROM runs) AND (" + _NAME + ")"  # noqa: S608 -- a constant
"""A run that is in the table `runs` is checked there, once."""

_OBJECT = "typeof({0}) <> 'text' OR NOT json_valid({0}) OR json_type({0}) <> 'object'"

_COUNT = "typeof({0}) <> 'integer' OR {0} NOT BETWEEN 0 AND 1000000000000"

_WORDS = "typeof({0}) <> 'text' OR instr({0}, char(0))"


def _invalid(rule: str, *names: str, or_null: bool = False) -> list[str]:
    """SQL conditions for an invalid value of a column."""
    return [f"({f'{name} IS NOT NULL AND ' if or_null else ''}({rule.format(name)}))" for name in names]


INVALID_ROWS: Mapping[str, tuple[str, Sequence[str]]] = {
    "requests": (
        "id",
        [
            *_invalid(_NAME, "id"),
            *_invalid(_RUN, "run"),
            *_invalid(_RUN, "owner", "listed", "payer", or_null=True),
            *_invalid(_OBJECT, "body", "fields", "output"),
            *_invalid(_OBJECT, "usage", "error", or_null=True),
            *_invalid(_COUNT, "position", "occurrence", "images_at_most", "earlier_micro", "doubts", "attempts"),
            *_invalid(_COUNT, "worst_micro", "settled_micro", "billed_images", "line", or_null=True),
            *_invalid(_WORDS, "provider", "base_url", "model", "fingerprint", "row_id", "file", "currency", "as_of"),
            *_invalid(_WORDS, "token", "task_id", "trace", "entered_at"),
            *_invalid("typeof({0}) <> 'text'", "prompt", "identity", or_null=True),
            *_invalid("typeof({0}) <> 'text'", "sent_at", "answered_at", "finished_at", "charged_at", or_null=True),
            "state NOT IN ('queued', 'sent', 'waiting', 'ready', 'saved', 'failed', 'unknown', 'resolved')",
            "billed NOT IN ('no', 'yes', 'unknown')",
            "reserved NOT IN (0, 1)",
        ],
    ),
    "images": (
        "request",
        [
            *_invalid(_COUNT, "position", "width", "height", "bytes"),
            *_invalid("typeof({0}) <> 'integer' OR abs({0}) > 100000000000", "expires", or_null=True),
            *_invalid(_WORDS, "request", "link", "format", "sha256"),
            *_invalid(_OBJECT, "error", or_null=True),
            "state NOT IN ('pending', 'saved', 'handed', 'failed', 'expired')",
            # Paths are relative to the batch's folder, and none leaves it.
            "'/' || replace(CAST(path AS TEXT), char(92), '/') || '/' LIKE '%/../%'",
            "CAST(path AS TEXT) LIKE '.seedream/%'",
            "instr(CAST(path AS TEXT), char(0))",
        ],
    ),
    "runs": ("id", [*_invalid(_NAME, "id"), *_invalid(_WORDS, "command", "started_at", "version", "folder")]),
}
