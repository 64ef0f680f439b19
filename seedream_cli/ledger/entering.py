"""Inserts requests and table rows, many in one statement."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import InternalError
from ..redaction import _SENSITIVE
from . import schema
from .database import Database
from .records import Entered, NewRequest
from .rows import ENCODER, plain, quote
from .runs import Run

ROWS_PER_TRANSACTION = 30_000
"""The more, the fewer times the same index pages are written."""

_SHARED_MOST = 200


class JsonTemplate:
    """A JSON object, encoded once, of which some values differ from row to row.

    `own` are the keys of those values (str or int), in the object's order.
    """

    __slots__ = ("_form", "own")

    def __init__(self, value: Mapping[str, Any], own: Iterable[str] = ()) -> None:
        self.own = tuple(key for key in value if key in set(own))
        if any(_SENSITIVE.search(key) for key in self.own):
            raise InternalError("what a secret's name stands for cannot differ from row to row")
        parts = [
            f"{_form(ENCODER.encode(key))}:%s" if key in self.own else _form(ENCODER.encode(plain({key: item}))[1:-1])
            for key, item in value.items()
        ]
        self._form = f"{{{','.join(parts)}}}"

    def fill(self, values: Iterable[str | int]) -> str:
        """One row's object as JSON, from the values of `own`: in ASCII, without base64."""
        return self._form % tuple([value if isinstance(value, int) else quote(value) for value in values])


def _form(text: str) -> str:
    return text.replace("%", "%%")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestTemplate:
    """The fields of `NewRequest` that rows of a table share."""

    provider: str
    base_url: str
    model: str
    body: JsonTemplate
    fields: JsonTemplate
    output: JsonTemplate
    images_at_most: int
    worst_micro: int | None
    currency: str
    as_of: str
    file: str


class NewRow(NamedTuple):
    """A request of a table's row: a shared template and the row's own values; the rest as in `NewRequest`.

    `body`, `fields` and `output` are values for the template's `JsonTemplate`s; a mapping `fields` replaces the
    template's. `identity` is the fingerprint too. A tuple, which is cheap for 100,000 rows.
    """

    request_template: RequestTemplate
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


SharedValues = dict[tuple[RequestTemplate, tuple[str | int, ...]], tuple[Any, ...]]


class Entering:
    """Inserts requests and table rows before any is sent."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._masked = database.masked

    def enter(self, run: Run, entries: Iterable[NewRequest]) -> Entered:
        """Insert requests; committed in chunks of `ROWS_PER_TRANSACTION`.

        A request without identity is claimed by the run at once. One with identity is a table's row: it is listed for
        the run, known rows keep their id, state and images (`schema.ROW_COLUMNS` are updated while it is queued), and
        `claim` or `take` claims it. Entries are iterated as they are written; where that raises, the chunk is rolled
        back.
        """
        at = self._database.stamp()
        return self._enter(run, {1: schema.ENTER}, (self._new_row(entry, run.id, at) for entry in entries))

    def enter_rows(self, run: Run, rows: Iterable[NewRow]) -> Entered:
        """`enter` for the rows of a table, several times faster."""
        shared_values: SharedValues = {}
        at = self._database.stamp()
        statements = {count: schema.enter_many(run.id, at, count) for count in (1, schema.ROWS_PER_STATEMENT)}
        return self._enter(run, statements, (self._row(row, shared_values) for row in rows))

    def _enter(self, run: Run, statements: Mapping[int, str], rows: Iterator[tuple[Any, ...]]) -> Entered:
        """Insert rows; `statements` are by how many rows each inserts."""
        count, before = 0, self._count_entered(run)
        while written := self._enter_chunk(run, statements, itertools.islice(rows, ROWS_PER_TRANSACTION)):
            count += written
        new = self._count_entered(run) - before
        return Entered(new, count - new)

    def _enter_chunk(self, run: Run, statements: Mapping[int, str], rows: Iterator[tuple[Any, ...]]) -> int:
        with self._database.lock, _unchecked(self._database.connection), self._database.write("no") as db:
            if db.execute("SELECT 1 FROM runs WHERE id = ?", (run.id,)).fetchone() is None:
                raise InternalError(f"the ledger knows no run {run.id}")
            width, rest = max(statements), list[tuple[Any, ...]]()
            count = db.executemany(statements[width], _join_rows(rows, width, rest)).rowcount
            return count + (db.executemany(statements[1], rest).rowcount if rest else 0)

    def _count_entered(self, run: Run) -> int:
        with self._database.read() as db:
            return int(db.execute("SELECT count(*) FROM requests WHERE run = ?", (run.id,)).fetchone()[0])

    def _row(self, row: NewRow, shared_values: SharedValues) -> tuple[Any, ...]:
        """The values of `schema.OWN` and `schema.COMMON`; the latter are cached in `shared_values`."""
        request_template, name, position, line, identity, occurrence, row_id, prompt, own, fields, output = row
        body, has_secrets = request_template.body.fill(own), self._masked.has_secrets
        words = request_template.fields.fill(fields) if isinstance(fields, tuple) else self._masked.json(fields)
        if has_secrets:
            body, words = self._masked.text(body), self._masked.text(words)
        if prompt is not None and (has_secrets or not prompt.isascii()):
            prompt = self._masked.text(prompt)
        if has_secrets or not row_id.isascii():
            row_id = self._masked.text(row_id)
        own_values = (name, identity, occurrence, position, row_id, line, prompt, body, words)
        return own_values + (
            shared_values.get((request_template, output)) or self._shared(request_template, output, shared_values)
        )

    def _shared(
        self, request_template: RequestTemplate, output: tuple[str | int, ...], shared_values: SharedValues
    ) -> tuple[Any, ...]:
        # Rows that share nothing would fill the memory.
        if len(shared_values) >= _SHARED_MOST:
            shared_values.clear()
        shared_values[request_template, output] = head = (
            self._masked.text(request_template.file),
            request_template.provider,
            self._masked.url(request_template.base_url),
            self._masked.text(request_template.model),
            request_template.images_at_most,
            request_template.worst_micro,
            request_template.currency,
            request_template.as_of,
            self._masked.text(request_template.output.fill(output)),
        )
        return head

    def _new_row(self, entry: NewRequest, run_id: str, at: str) -> tuple[Any, ...]:
        """The values of `schema.COLUMNS`."""
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
            self._masked.text(entry.row_id),
            self._masked.text(entry.file),
            entry.line,
            entry.provider,
            self._masked.url(entry.base_url),
            self._masked.text(entry.model),
            None if entry.prompt is None else self._masked.text(entry.prompt),
            self._masked.json(entry.body),
            entry.fingerprint,
            entry.images_at_most,
            entry.worst_micro,
            entry.currency,
            entry.as_of,
            self._masked.json(entry.fields),
            self._masked.json(entry.output),
        )


@contextlib.contextmanager
def _unchecked(db: sqlite3.Connection) -> Iterator[None]:
    """Without foreign keys and CHECK constraints, which take half the time; `schema.UNCHECKED` says why it is safe."""
    try:
        for setting in schema.UNCHECKED:
            db.execute(setting)
        yield
    finally:
        for setting in schema.CHECKED:
            db.execute(setting)


def _join_rows(rows: Iterator[tuple[Any, ...]], width: int, rest: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The values of `width` rows joined; the last rows, fewer than that, are added to `rest`."""
    while len(some := list(itertools.islice(rows, width))) == width:
        yield tuple(itertools.chain.from_iterable(some))
    rest += some
