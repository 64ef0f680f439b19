"""The tables, their migrations and the statements that read and write them."""

from __future__ import annotations

from dataclasses import fields

from .records import Entry, PictureRow

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


_BOOKED = """SELECT coalesce(sum(micro * (currency = :currency)), 0),
    coalesce(sum(micro IS NULL OR currency <> :currency), 0)
    FROM outlays WHERE :since IS NULL OR charged_at >= :since"""


_PICK_PURGED = """INSERT INTO purged SELECT number FROM requests WHERE entered_at < ?
    AND (owner IS NULL OR owner NOT IN (SELECT value FROM json_each(?)))
    AND (? OR (state IN ('queued', 'saved', 'failed', 'resolved') AND billed <> 'unknown' AND doubts = 0))"""


_PICTURES = f"""SELECT request, position, {", ".join(_PICTURE[1:])} FROM pictures
    WHERE request IN (SELECT value FROM json_each(?)) ORDER BY request, position"""  # noqa: S608 -- fields' names
