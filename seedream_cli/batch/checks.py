"""All problems of all rows, found before anything is sent."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple

from ..config.option_kinds import BadValueError
from ..config.options import OPTIONS
from ..errors import Problem
from ..request.image_request import OptionValues
from ..request.model_checks import ADVISED_CJK
from ..text import count_words
from .columns import _HERE, _STAND_INS, Columns, Slot
from .table import Row, T, Table, _overlay, _plain_number
from .table_source import COLUMNS_MOST, SHOWN_MOST, Cell, cell_text


class CheckedRow(NamedTuple, Generic[T]):
    """A row and what was found. `value` is the judge's for its shape, None where the row cannot be read.

    `prompt` and `seed` are the parts of its request that the shape leaves out ("" where there is none); its name is
    `row.text("name")`. A tuple, since one is made for each of a hundred thousand rows.
    """

    row: Row
    value: T | None
    found: tuple[Problem, ...] = ()
    prompt: str = ""
    seed: str = ""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was found, placed where the row stands."""
        here = self.row.origin
        return tuple(replace(p, origin=here) if p.origin == _HERE else p for p in self.found)


@dataclass(frozen=True, slots=True, eq=False)
class _Shaped(Generic[T]):
    """The judgment of a shape. `is_sound`: there is nothing in it but warnings."""

    value: T
    found: tuple[Problem, ...]
    is_sound: bool


class TemplateCache(Generic[T]):
    """Judges each shape once, since building a request costs more than reading a row.

    `judge` gets a draft that is the row over `base`, in which stand-ins take the place of a prompt, seed and name that
    are sound in themselves: its answer, the fingerprint of a request say, is the same for all rows of the shape, in
    every run. Answers are kept for `most` shapes.
    """

    def __init__(
        self, base: OptionValues, judge: Callable[[OptionValues], tuple[T, Sequence[Problem]]], *, most: int = 512
    ) -> None:
        self.base = base
        self._judge = judge
        self._most = most
        self._kept: dict[_Key, _Shaped[T]] = {}
        self._prompt, self._seed, self._name = (base.values.get(key, "") for key in _STAND_INS)
        self._columns: Columns | None = None
        self.glanced = 0
        """How long the prompt is that was glanced at last."""

    def _place(self, columns: Columns) -> None:
        """Look once where the cells stand that are looked at in every row."""
        self._columns = columns
        self._shape_of, self._prompt_of = columns.shape_of, columns.prompt_of
        self._seed_at, self._name_at = columns.at.get("seed"), columns.at.get("name")

    def judge(self, row: Row) -> CheckedRow[T]:
        """The row with the judgment of its shape."""
        key, prompt, number = self._find(row.columns, row.cells)
        shaped = self._kept.get(key) or self._keep(key, row)
        return CheckedRow(row, shaped.value, shaped.found, prompt, number)

    def glance(self, columns: Columns, cells: Sequence[Cell]) -> _Shaped[T] | None:
        """The judgment of the cells' shape, where it is known already."""
        key, prompt, _ = self._find(columns, cells)
        self.glanced = len(prompt)
        return self._kept.get(key)

    def _find(self, columns: Columns, cells: Sequence[Cell]) -> tuple[_Key, str, str]:
        """The shape of a row, and its prompt and seed, which the shape leaves out."""
        if columns is not self._columns:
            self._place(columns)
        prompt = self._prompt_of(cells) or self._prompt
        seed = ("" if self._seed_at is None else _plain_number(cell_text(cells[self._seed_at]))) or self._seed
        name = ("" if self._name_at is None else cell_text(cells[self._name_at]).strip()) or self._name
        number = _plain_seed(seed) if seed else ""
        key = (
            self._shape_of(cells),
            _STAND_INS["prompt"] if prompt and not prompt.isspace() else prompt,
            _STAND_INS["seed"] if number else seed,
            _STAND_INS["name"] if name and _PLAIN_NAME.fullmatch(name) else name,
        )
        return key, prompt, number

    def _keep(self, key: _Key, row: Row) -> _Shaped[T]:
        reader = row.sort_cells()
        options = _overlay(self.base, reader, row.columns.places)
        marks = {name: mark for name, mark in zip(_STAND_INS, key[1:], strict=True) if name in options.values}
        value, problems = self._judge(replace(options, values={**options.values, **marks}))
        found = (*(replace(problem, origin=_HERE) for problem in reader.problems), *map(_unplace, problems))
        shaped = _Shaped(value, found, all(problem.severity == "warning" for problem in found))
        # Images in data URIs would make the keys as large as the table.
        if len(repr(key)) <= 4096:
            if len(self._kept) >= self._most:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = shaped
        return shaped


_Key = tuple[tuple[Cell, ...], str, str, str]

_PLAIN_NAME = re.compile(r"\w[\w -]*(/\w[\w -]*)*")
"""A name without fields, dots and signs: whatever template rules there are, it keeps them."""


def _plain_seed(text: str) -> str:
    """A seed that every model can take, in one spelling; "" for any other text, which is judged as it stands."""
    if len(text) < 10 and text.isdecimal() and text.isascii() and text[0] != "0":
        return text
    try:
        return str(OPTIONS["seed"].check(text))
    except BadValueError:
        return ""


def _unplace(problem: Problem) -> Problem:
    """A problem found for a shape: of no row yet where an option of the row is to blame."""
    origin = _HERE if problem.origin.startswith(_HERE) else problem.origin
    return replace(problem, message=problem.message.replace(_HERE, ""), origin=origin)


class Checker(Generic[T]):
    """Checks the rows of one pass: each on its own, and what only the whole table shows."""

    def __init__(
        self, shapes: TemplateCache[T], advise: Callable[[CheckedRow[T]], Problem | None] | None = None
    ) -> None:
        """`advise` may warn of one row's own prompt, where that is long enough to be looked at."""
        self._shapes = shapes
        self._advise = advise
        self._ids = dict[int, int]()
        self._told: set[Problem] = set()
        self._warned: dict[Problem, tuple[str, int]] = {}
        self._passed: dict[_Shaped[T], int] = {}
        self.rows = 0

    def check(self, table: Table, columns: Columns) -> Iterator[Problem]:
        """Every problem of every row, with its place, in the order of the rows; nothing is held."""
        for number, (line, cells, problems) in enumerate(table.records(columns), 1):
            self.rows = number
            if problems or not self._passes(columns, cells, line):
                yield from self.judge(Row(table, columns, number, line, cells, problems)).problems
        yield from self.close()

    def _passes(self, columns: Columns, cells: Sequence[Cell], line: int) -> bool:
        """Whether nothing has to be said of a row but what was said of its shape. Where it is not so, `judge` it."""
        shaped = self._shapes.glance(columns, cells)
        if shaped is None or not shaped.is_sound:
            return False
        if shaped.found and shaped not in self._passed:
            # The first row of a shape, at which its warnings are told.
            if len(self._passed) < COLUMNS_MOST:
                self._passed[shaped] = 0
            return False
        for at in columns.needed_at:
            if not cells[at]:
                return False
        name = "" if columns.id_at is None else cell_text(cells[columns.id_at]).strip()
        if name and self._keep_id(name, line) != line:
            return False
        if self._advise and self._shapes.glanced > ADVISED_CJK:
            return False
        if shaped.found:
            self._passed[shaped] += 1
        return True

    def judge(self, row: Row) -> CheckedRow[T]:
        """The row judged, with its errors; one of an option of the run, not of the row, is told once.

        Warnings are kept for `close`: most concern every row of the table.
        """
        if row.problems:
            return CheckedRow(row, None, row.problems)
        for slot in row.columns.slots:
            if slot.at in row.columns.needed_at and not row.cells[slot.at]:
                self._warn(_empty(slot), row)
        judged = self._shapes.judge(row)
        advice = self._advise(judged) if self._advise else None
        if advice:
            self._warn(replace(advice, origin=_HERE), row)
        name = row.id
        if not (judged.found or name):
            return judged
        errors = [problem for problem in judged.found if self._is_error(problem, row)]
        return judged._replace(found=(*errors, *self._find_twice(name, row)))

    def _is_error(self, problem: Problem, row: Row) -> bool:
        if problem.severity == "warning":
            self._warn(problem, row)
            return False
        if problem.origin == _HERE:
            return True
        is_new = problem not in self._told
        if len(self._told) < COLUMNS_MOST:
            self._told.add(problem)
        return is_new

    def _warn(self, problem: Problem, row: Row) -> None:
        first, count = self._warned.get(problem) or (row.origin, 0)
        if count or len(self._warned) < COLUMNS_MOST:
            self._warned[problem] = first, count + 1

    def _find_twice(self, name: str, row: Row) -> list[Problem]:
        if not name:
            return []
        line = self._keep_id(name, row.line)
        if line == row.line:
            return []
        message = f"the id {name[:80]!r} stands in line {line} already"
        return [Problem("id", message, "give every row an id of its own", origin=row.origin)]

    def _keep_id(self, name: str, line: int) -> int:
        """The line in which this id stood first. Only this process compares its hashes."""
        return self._ids.setdefault(hash(name), line)

    def close(self) -> list[Problem]:
        """The warnings, each once, at the first row that it concerns and with the number of the others."""
        problems, more = list[Problem](), Counter[Problem]()
        for shaped, passed in self._passed.items():
            for problem in shaped.found:
                more[problem] += passed
        for problem, (first, own) in self._warned.items():
            count = own + more[problem]
            if problem.origin != _HERE:
                problems.append(problem)
                continue
            others = f" (and in {count_words(count - 1, 'more row')})" if count > 1 else ""
            problems.append(replace(problem, message=problem.message + others, origin=first))
        return problems


def _empty(slot: Slot) -> Problem:
    hint = f"--var {slot.name}=… gives a text for empty cells"
    return Problem(slot.name, f"{{{slot.name}}} is empty here", hint, "warning", _HERE, "variable_empty")


@dataclass(frozen=True, slots=True)
class Findings:
    """The first errors and warnings, and how many more there are of each."""

    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    more_errors: int = 0
    more_warnings: int = 0


def gather(problems: Iterable[Problem], *, most: int = SHOWN_MOST) -> Findings:
    """Keep the first problems of either severity and count the rest, so that warnings never hide an error."""
    kept: dict[str, list[Problem]] = {"error": [], "warning": []}
    more = {"error": 0, "warning": 0}
    for problem in problems:
        if len(kept[problem.severity]) < most:
            kept[problem.severity].append(problem)
        else:
            more[problem.severity] += 1
    return Findings(tuple(kept["error"]), tuple(kept["warning"]), more["error"], more["warning"])
