"""Requests and table rows on their way in, many in one statement."""

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

ENTERED = 30_000
"""Rows of one transaction: the more, the fewer pages of the indexes are written again and again."""

_HEADS = 200


class JsonTemplate:
    """A JSON object of which some values differ from row to row: what they have in common is written once.

    `own` are the keys of the others, whose values are texts and whole numbers, in the order of the object's keys.
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
        """The object of one row as JSON, by the values of `own`: in ASCII, and without base64."""
        return self._form % tuple([value if isinstance(value, int) else quote(value) for value in values])


def _form(text: str) -> str:
    return text.replace("%", "%%")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestTemplate:
    """What rows of a table have in common, as `NewRequest` has it."""

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
    """A request of a batch's row, to enter: `request_template` and what is its own, as `NewRequest` has it.

    `body`, `fields` and `output` are values for the mould's patterns; fields that are not the mould's are a mapping.
    It is known by its identity, which is its fingerprint too. A tuple, since one is made for each of a hundred thousand
    rows.
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


Heads = dict[tuple[RequestTemplate, tuple[str | int, ...]], tuple[Any, ...]]


class Entering:
    """Requests and rows of tables, written down before anything is done for them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._masked = database.masked

    def enter(self, run: Run, entries: Iterable[NewRequest]) -> Entered:
        """Write down what is to be done, before any of it; flushed a chunk at a time and at the end.

        A request without identity is in the run's hands at once. One with identity is a batch's row: the run's table
        lists it, known rows keep their id, state and images (what a row says is renewed while nothing was sent),
        and `claim` or `take` puts it in the run's hands. Entries are drawn one by one, as they are written; where that
        raises, their chunk is not written.
        """
        at = self._database.stamp()
        return self._enter(run, {1: schema.ENTER}, (self._new_row(entry, run.id, at) for entry in entries))

    def enter_rows(self, run: Run, rows: Iterable[NewRow]) -> Entered:
        """`enter` for the rows of a table, in a fraction of the time."""
        heads: Heads = {}
        at = self._database.stamp()
        orders = {count: schema.enter_many(run.id, at, count) for count in (1, schema.TOGETHER)}
        return self._enter(run, orders, (self._row(row, heads) for row in rows))

    def _enter(self, run: Run, orders: Mapping[int, str], rows: Iterator[tuple[Any, ...]]) -> Entered:
        """Enter rows by the statements that enter so many of them at once."""
        count, before = 0, self._count_entered(run)
        while written := self._enter_chunk(run, orders, itertools.islice(rows, ENTERED)):
            count += written
        new = self._count_entered(run) - before
        return Entered(new, count - new)

    def _enter_chunk(self, run: Run, orders: Mapping[int, str], rows: Iterator[tuple[Any, ...]]) -> int:
        with self._database.turn, _unchecked(self._database.connection), self._database.write("no") as db:
            if db.execute("SELECT 1 FROM runs WHERE id = ?", (run.id,)).fetchone() is None:
                raise InternalError(f"the ledger knows no run {run.id}")
            many, rest = max(orders), list[tuple[Any, ...]]()
            count = db.executemany(orders[many], _join_rows(rows, many, rest)).rowcount
            return count + (db.executemany(orders[1], rest).rowcount if rest else 0)

    def _count_entered(self, run: Run) -> int:
        with self._database.read() as db:
            return int(db.execute("SELECT count(*) FROM requests WHERE run = ?", (run.id,)).fetchone()[0])

    def _row(self, row: NewRow, heads: Heads) -> tuple[Any, ...]:
        """The values of `schema.OWN` and `schema.COMMON`; the latter are kept in `heads`."""
        request_template, name, position, line, identity, occurrence, row_id, prompt, own, fields, output = row
        body, has_secrets = request_template.body.fill(own), self._masked.has_secrets
        told = request_template.fields.fill(fields) if isinstance(fields, tuple) else self._masked.json(fields)
        if has_secrets:
            body, told = self._masked.text(body), self._masked.text(told)
        if prompt is not None and (has_secrets or not prompt.isascii()):
            prompt = self._masked.text(prompt)
        if has_secrets or not row_id.isascii():
            row_id = self._masked.text(row_id)
        own_values = (name, identity, occurrence, position, row_id, line, prompt, body, told)
        return own_values + (heads.get((request_template, output)) or self._head(request_template, output, heads))

    def _head(self, request_template: RequestTemplate, output: tuple[str | int, ...], heads: Heads) -> tuple[Any, ...]:
        # Where every row has its own none is worth keeping.
        if len(heads) >= _HEADS:
            heads.clear()
        heads[request_template, output] = head = (
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
    """Enter rows without a look at what cannot be wrong: it takes as long as the rest."""
    try:
        for setting in schema.UNCHECKED:
            db.execute(setting)
        yield
    finally:
        for setting in schema.CHECKED:
            db.execute(setting)


def _join_rows(rows: Iterator[tuple[Any, ...]], many: int, rest: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The values of so many rows at once; those of the last ones, which are fewer, go to `rest`."""
    while len(some := list(itertools.islice(rows, many))) == many:
        yield tuple(itertools.chain.from_iterable(some))
    rest += some
