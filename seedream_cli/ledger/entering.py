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
from .rows import _ENCODER, _plain, _quote
from .schema import _COMMON, _KNOWN, _OWN

_ENTERED = 30_000
"""Rows of one transaction: the more, the fewer pages of the indexes are written again and again."""


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
