"""Tables of requests: CSV, TSV, JSON Lines and plain lines, read row by row and never held in memory.

A table is opened (`open_table`), its columns are mapped to options (`plan_columns`), and its rows are read
(`Table.rows`) as often as needed.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from ..config.option_kinds import BadValueError, switch
from ..config.options import OPTIONS
from ..errors import InputError, Problem
from ..request.image_request import OptionValues
from ..storage import file_names
from ..text import count_words
from .columns import Column, Columns
from .table_source import (
    CELL_MOST,
    COLUMNS_MOST,
    JSON_DECODER,
    SURROGATE,
    Cell,
    Format,
    Heading,
    Json,
    Lines,
    TableFile,
    _read_csv_header,
    _read_json_header,
    _read_lines_header,
    cell_text,
    not_an_object,
    open_source,
    parse_object,
    read_records,
    recognise,
)

T = TypeVar("T")


class Table:
    """A table that can be read again and again; made by `open_table`, closed as a context manager."""

    def __init__(self, source: TableFile, form: Format, headings: tuple[Heading, ...]) -> None:
        self.name = source.shown
        self.folder = source.folder
        self.format = form
        self.headings = headings
        self._source = source

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    @property
    def no_rows(self) -> str:
        """What is said of a table without a row."""
        if self.format.kind == "lines":
            return "the file holds no prompt: every line is blank or begins with #"
        return "the table has a header and no rows"

    def is_file(self, path: Path) -> bool:
        """Whether the path is the table itself."""
        return self._source.is_same(path)

    def rows(self, columns: Columns) -> Iterator[Row]:
        """Every row from the first, those that cannot be read too: these hold their problems and no cells.

        Raises `InputError` where the file was changed since it was opened.
        """
        for number, (line, cells, problems) in enumerate(self.records(columns), 1):
            yield Row(self, columns, number, line, cells, problems)

    def records(self, columns: Columns) -> Iterator[Record]:
        """What rows are made of, in their order: the line, the cells, and what is wrong with the reading."""
        if self.format.kind == "lines":
            return self._line_records()
        return self._json_records(columns) if self.format.kind == "jsonl" else self._csv_records()

    def _line_records(self) -> Iterator[Record]:
        """One prompt a line; blank lines and those that begin with `#` are left out."""
        with self._source.open_text(self.format.encoding) as file:
            lines = Lines(self._source, file)
            for line, text, problems in read_records(iter(lines), lines):
                if isinstance(text, Problem):
                    yield line, [""], (*problems, text)
                    return
                prompt = text.strip()
                if len(prompt) > CELL_MOST:
                    message = f"the line has more than {CELL_MOST:,} characters"
                    yield line, [prompt], (*problems, Problem("", message, origin=f"{self.name}:{line}"))
                elif prompt and (problems or not prompt.startswith("#")):
                    yield line, [prompt], problems

    def _csv_records(self) -> Iterator[Record]:
        form, width = self.format, len(self.headings)
        with self._source.open_text(form.encoding) as file:
            lines = Lines(self._source, file)
            texts = iter(lines)
            deque(itertools.islice(texts, form.header_lines), 0)
            lines.take_problems()
            csv.field_size_limit(CELL_MOST)
            reader = csv.reader(texts, delimiter=form.delimiter, strict=True)
            for line, cells, problems in read_records(reader, lines):
                if isinstance(cells, Problem):
                    yield line, [""] * width, (*problems, cells)
                elif problems or not _is_blank(cells):
                    yield line, *self._fit(cells, line, problems)

    def _fit(self, cells: list[str], line: int, problems: tuple[Problem, ...]) -> tuple[list[str], tuple[Problem, ...]]:
        """As many cells as columns. Empty ones too many are what Excel leaves; anything else is a mistake."""
        count, width = len(cells), len(self.headings)
        if count == width:
            return cells, problems
        fitted = [*cells[:width], *[""] * (width - count)]
        if count > width and _is_blank(cells[width:]):
            return fitted, problems
        mark = "a tab" if self.format.delimiter == "\t" else self.format.delimiter
        hint = f"put quotes around a cell that holds {mark} or a line break"
        if count < width:
            hint += "; where Excel left out empty last cells, move a column that is always filled to the end"
        message = f"the row has {count_words(count, 'cell')}, but the header names {count_words(width, 'column')}"
        return fitted, (*problems, Problem("", message, hint, origin=f"{self.name}:{line}"))

    def _json_records(self, columns: Columns) -> Iterator[Record]:
        keys = list(zip([heading.name for heading in self.headings], columns.columns, strict=True))
        with self._source.open_text(self.format.encoding) as file:
            lines = Lines(self._source, file)
            for line, text, problems in read_records(iter(lines), lines):
                if isinstance(text, Problem):
                    yield line, [""] * len(keys), (*problems, text)
                elif problems or not text.isspace():
                    cells, wrong = _read_object(text, keys, f"{self.name}:{line}")
                    yield line, cells, (*problems, *wrong) if problems or wrong else ()


Record = tuple[int, Sequence[Cell], tuple[Problem, ...]]


_HEADERS = {"csv": _read_csv_header, "jsonl": _read_json_header, "lines": _read_lines_header}


def open_table(name: str, *, is_lines: bool = False) -> Table:
    """A table by its file's name, or standard input for `-`. Raises `InputError` where it is none.

    The kind is told by the suffix (.csv .tsv .jsonl .ndjson .txt), else by the first bytes; `is_lines` says that it is
    one prompt a line, whatever it is called.
    """
    source = open_source(name)
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        form = recognise(source, is_lines=is_lines)
        form, headings = _HEADERS[form.kind](source, form)
        if len(headings) > COLUMNS_MOST:
            message = f"{source.shown} has more than {COLUMNS_MOST:,} columns"
            raise InputError([Problem("table", message, "leave out those that set nothing")])
        stack.pop_all()
    return Table(source, form, tuple(headings))


def _is_blank(cells: Sequence[str]) -> bool:
    return not any(cells) or not "".join(cells).strip()


def _read_object(text: str, keys: Sequence[tuple[str, Column]], origin: str) -> tuple[list[Cell], list[Problem]]:
    """The cells of a line of JSON, one for each key that any line has, and all that is wrong with them."""
    row = parse_object(text)
    if isinstance(row, str):
        return [""] * len(keys), [not_an_object(text, row, origin)]
    cells, problems = list[Cell](), list[Problem]()
    # A surrogate can only come from an escape, and a cell can only be too long in a line that is.
    is_suspect = "\\u" in text or len(text) > CELL_MOST
    for key, column in keys:
        value = row.get(key)
        cell: Cell | Problem = value if type(value) is str and column.role != "pair" else _read_json(value, column)
        if is_suspect and not isinstance(cell, Problem):
            cell = _inspect(cell, column)
        if isinstance(cell, Problem):
            problems.append(replace(cell, origin=origin))
            cell = ""
        cells.append(cell)
    return cells, problems


def _read_json(value: Any, column: Column) -> Cell | Problem:
    """A JSON value as a cell. Lists are for images, objects for the body."""
    if value is None:
        return ""
    if column.role == "pair" or (column.role == "extra" and isinstance(value, dict)):
        return Json(json.dumps(value, ensure_ascii=False))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        # As it is written, nearly; the module reads 1e999 as infinity.
        return Problem(column.name, "the number is too large") if value in _INFINITE else repr(value)
    if isinstance(value, dict):
        return Problem(column.name, f"{column.name} takes no object", "only extra and extra.KEY take one")
    if isinstance(value, list):
        if column.role not in {"image", "list", "extra"} or column.number:
            return Problem(column.name, f"{column.name} takes one value, not a list", "only image takes several")
        if not all(isinstance(item, str) for item in value):
            return Problem(column.name, f"{column.name} takes a list of texts")
        return tuple(value)
    return str(value)


_INFINITE = {float("inf"), float("-inf")}


def _inspect(cell: Cell, column: Column) -> Cell | Problem:
    """A cell unless it is too long or holds what is no text."""
    text = cell_text(cell)
    if len(text) > CELL_MOST:
        return Problem(column.name, f"the cell has more than {CELL_MOST:,} characters")
    if "\0" in text or SURROGATE.search(text):
        return Problem(column.name, "the cell holds a zero byte or half a character, which is no text")
    return cell


class Row(NamedTuple):
    """A row as it stands: its number from 1, the line its record starts at, its cells, and what is wrong with it.

    The problems are those of its reading; its options are checked by a `Checker`. A tuple, since one is made for each
    of a hundred thousand rows.
    """

    table: Table
    columns: Columns
    number: int
    line: int
    cells: Sequence[Cell]
    problems: tuple[Problem, ...] = ()

    @property
    def origin(self) -> str:
        """Where the row stands: "shots.csv:14"."""
        return f"{self.table.name}:{self.line}"

    def text(self, name: str) -> str:
        """The cell of `id`, `prompt`, `seed` or `name`; "" where there is no such column."""
        at = self.columns.at.get(name)
        return "" if at is None else cell_text(self.cells[at])

    @property
    def id(self) -> str:
        """What the table calls the row, or ""."""
        at = self.columns.id_at
        return "" if at is None else cell_text(self.cells[at]).strip()

    @property
    def prompt(self) -> str:
        """The template filled in, or else the cell as it stands; "" where there is neither."""
        return self.columns.prompt_of(self.cells)

    @property
    def shape(self) -> tuple[Cell, ...]:
        """The cells of its options but prompt, seed and name: rows of one shape are checked once."""
        return self.columns.shape_of(self.cells)

    @property
    def variables(self) -> dict[str, str]:
        """Every column by name, those of options too."""
        pairs = zip(self.columns.columns, self.cells, strict=True)
        return {column.name: cell_text(cell) for column, cell in pairs if column.name}

    @property
    def fields(self) -> dict[str, str]:
        """What file names may use: every column, safe and at most 80 bytes long, the row's number, and its id."""
        fields = {name: _clean(text) for name, text in self.variables.items()}
        own = {"id": _clean(self.id)} if self.id else {}
        return {**fields, "row": str(self.number), **own}

    def options(self, base: OptionValues) -> OptionValues:
        """The row over the options of the run, which hold where it sets nothing; what the body gets is joined."""
        return _overlay(base, self.sort_cells(), dict.fromkeys(self.columns.places, self.origin))

    def sort_cells(self) -> _OptionReader:
        """The row's cells by what they set."""
        reader = _OptionReader(self)
        for at in self.columns.options_at:
            cell = self.cells[at]
            if cell_text(cell).strip():
                reader.take(self.columns.columns[at], cell)
        if prompt := self.prompt:
            reader.values["prompt"] = prompt
        return reader


def _overlay(base: OptionValues, own: _OptionReader, places: Mapping[str, str]) -> OptionValues:
    """A row's own options over the run's. What nobody set has its place in the row too, since there it is missing."""
    lists = {**base.lists, **own.lists}
    if "extra" in own.lists:
        lists["extra"] = (*base.lists.get("extra", ()), *own.lists["extra"])
    origins = {**places, **base.origins}
    for key in (*own.values, *own.switches, *own.lists):
        origins[key] = places[key]
    values, switches = {**base.values, **own.values}, {**base.switches, **own.switches}
    return OptionValues(values, switches, lists, origins, base.label)


def _clean(text: str) -> str:
    """A cell as part of a file's name; a line break in it is a blank."""
    joined = " ".join(text.split())
    return file_names.clean_name(joined, 80) if joined else ""


class _OptionReader:
    """Sorts the cells of a row into values, switches and lists."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.values: dict[str, str] = {}
        self.switches: dict[str, bool] = {}
        self.lists: dict[str, tuple[str, ...]] = {}
        self.problems: list[Problem] = []

    def add_error(self, column: Column, message: str, hint: str = "") -> None:
        """Note a problem of the row in a column."""
        self.problems.append(Problem(column.name, message, hint, origin=self.row.origin))

    def take(self, column: Column, cell: Cell) -> None:
        """One cell that is not empty, by what its column sets."""
        text = cell_text(cell)
        if column.role == "value" and OPTIONS[column.key].is_number:
            # An empty number is written in many ways; so is a whole one, where a column has empty cells.
            if text := _plain_number(text):
                self.values[column.key] = text
        elif column.role == "value":
            self.values[column.key] = text
        elif column.role == "switch":
            self.take_switch(column, text)
        elif column.role == "image":
            parts = text.split("|") if isinstance(cell, str) and not column.number else [text]
            self.add("image", self.locate(column, parts if isinstance(cell, str) else cell))
        elif column.role == "pair":
            self.add("extra", [f"{column.part}={_as_json(text, is_json=isinstance(cell, Json))}"])
        elif column.role == "extra":
            self.add("extra", self.split_extra(column, cell))
        else:
            self.add(column.key, [text] if isinstance(cell, str) else cell)

    def add(self, key: str, items: Iterable[str]) -> None:
        """Put items behind those of earlier columns."""
        self.lists[key] = (*self.lists.get(key, ()), *items)

    def take_switch(self, column: Column, text: str) -> None:
        """A yes or no in one of its spellings; the column may be the off side, as no-watermark is."""
        try:
            self.switches[column.key] = switch(text) is not column.negative
        except BadValueError as error:
            self.add_error(column, error.message, error.hint)

    def locate(self, column: Column, references: Iterable[str]) -> list[str]:
        """References with paths from the table's folder; addresses and data URIs as they stand."""
        found = []
        for reference in filter(None, map(str.strip, references)):
            if reference == "-":
                self.add_error(column, "a table cannot take an image from standard input", "name a file or an address")
            elif re.match(r"data:|[a-z][a-z0-9+.-]+://|~", reference, re.IGNORECASE):
                found.append(reference)
            else:
                found.append(str(self.row.table.folder / reference))
        return found

    def split_extra(self, column: Column, cell: Cell) -> Iterable[str]:
        """KEY=JSON, a list of such, or a JSON object whose keys all go to the body."""
        if not isinstance(cell, str):
            return cell
        if not cell.lstrip().startswith("{"):
            return [cell]
        pairs = parse_object(cell)
        if isinstance(pairs, str):
            self.add_error(column, pairs, 'write KEY=JSON, or an object: {"key": 1}')
            return []
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in pairs.items()]


def _as_json(text: str, *, is_json: bool) -> str:
    """A cell as JSON: as it stands where it is JSON, else as a JSON string."""
    if is_json:
        return text
    try:
        JSON_DECODER.decode(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


_UNSET = frozenset({"nan", "NaN", "NAN", "None", "null", "NULL", "NA", "N/A", "#N/A", "<NA>"})
"""What programs write into a cell of numbers that holds none."""


def _plain_number(text: str) -> str:
    """A cell of numbers as an option takes it: "" where it is a program's word for nothing."""
    text = text.strip()
    return "" if text in _UNSET else text
