"""Tables of requests: CSV, TSV, JSON Lines and plain lines in, read row by row, never held; the same with results out.

A table is opened (`open_table`), its columns are understood (`plan_columns`), its rows are read (`Table.rows`) as often
as needed, judged (`Checker`), named by what they ask for (`Identities`) and written with what became of them
(`write_results`).
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import functools
import hashlib
import io
import itertools
import json
import operator
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Self, TextIO, TypeVar

from . import files, names
from .errors import FileError, InputError, Problem
from .inputs import Option
from .kinds import HEAD, TAIL, find_absent, find_kind
from .request import ADVISED_CJK, Draft, whole_number
from .text import clean_path

CELL_MOST = 1024 * 1024
"""Characters of one cell. A quote that is never closed is found out here instead of taking all memory."""
LINE_MOST = 4 * CELL_MOST
COLUMNS_MOST = 1000
SHOWN_MOST = 50
"""Problems that are told one by one; the rest is counted."""

Cell = str | tuple[str, ...]
"""A cell as text; a list, which only JSON has, as a tuple of texts."""
T = TypeVar("T")


class Json(str):
    """A cell that is JSON already, since it stood so in a JSON line; other text may be anything."""

    __slots__ = ()


# --- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Format:
    """How a table is written. `encoding` is Python's name for it; `header_lines` are the lines above the first row.

    `lines` is one prompt a line, without a header.
    """

    kind: Literal["csv", "jsonl", "lines"]
    encoding: str = "utf-8"
    delimiter: str = ","
    line_end: str = "\n"
    names_delimiter: bool = False
    header_lines: int = 0

    @property
    def has_bom(self) -> bool:
        """Whether the file begins with a byte order mark."""
        return self.encoding != "utf-8"


@dataclass(frozen=True, slots=True)
class Heading:
    """A column's name as it stands in the table, and where ("shots.csv:1"; in JSON the line of its first use)."""

    name: str
    origin: str


class _Source:
    """The bytes of a table, readable several times at once although standard input comes only once.

    The file stays open from the check to the last row, so that a new file of the same name changes nothing; one that
    is changed in place is noticed before a changed row of it is used.
    """

    def __init__(self, name: str, file: io.FileIO, *, is_copy: bool) -> None:
        self.shown = "standard input" if name == "-" else name
        self.folder = Path() if name == "-" else Path(name).expanduser().parent
        self._file = file
        self._turn = threading.Lock()
        self._stamp = None if is_copy else self._state()

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    def read(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill the buffer from the offset on; the bytes read. Raises `InputError` where the file was changed."""
        again = "start again: rows that are done are not done twice"
        try:
            with self._turn:
                self._file.seek(offset)
                count = self._file.readinto(buffer) or 0
        except OSError as error:
            raise FileError(f"cannot read {self.shown} any more: {files.reason(error)}", hint=again) from error
        if self._stamp not in {None, self._state()}:
            raise InputError([Problem("table", f"{self.shown} was changed while it was in use", again)])
        return count

    def piece(self, offset: int, length: int) -> bytes:
        """So many bytes from the offset on, or as many as there are."""
        buffer = bytearray(length)
        return bytes(buffer[: self.read(offset, buffer)])

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    def is_same(self, path: Path) -> bool:
        """Whether the path leads to this very file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except OSError:
            return False

    def open_text(self, encoding: str) -> TextIO:
        """The text from its beginning. Bytes that are no text become lone surrogates, for `_Lines` to find."""
        window = io.BufferedReader(_Window(self), 1 << 16)
        # Only UTF-8 can keep any broken byte; a broken pair of UTF-16 is a lone surrogate as it stands.
        errors = "surrogatepass" if encoding == "utf-16" else "surrogateescape"
        return io.TextIOWrapper(window, encoding=encoding, errors=errors, newline="")

    def close(self) -> None:
        """Let go of the file; a copy is gone with that."""
        self._file.close()


class _Window(io.RawIOBase):
    """A view of a source with a position of its own."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._source.read(self._offset, buffer)
        self._offset += count
        return count


def _open_source(name: str) -> _Source:
    """The file, or a nameless temporary copy of what can be read only once: standard input, a pipe."""
    try:
        if name == "-":
            return _Source(name, _copy(sys.stdin.buffer), is_copy=True)
        return _open_file(name)
    except (OSError, ValueError, RuntimeError) as error:
        # ValueError: a NUL in the name; RuntimeError: the "~name" of a user that is not there.
        reason = files.reason(error) if isinstance(error, OSError) else str(error).lower()
        shown = "standard input" if name == "-" else name
        absent = find_absent(Path(name)) if isinstance(error, FileNotFoundError) and name != "-" else None
        if absent is not None:
            raise InputError([Problem("table", f"{shown} is {absent.what}", absent.hint)]) from error
        raise InputError([Problem("table", f"cannot read {shown}: {reason}")]) from error


def _open_file(name: str) -> _Source:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(io.FileIO(Path(name).expanduser(), "r"))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return _Source(name, _copy(file), is_copy=True)
        stack.pop_all()
    return _Source(name, file, is_copy=False)


def _copy(stream: Any) -> Any:
    with contextlib.ExitStack() as stack:
        copy = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        shutil.copyfileobj(stream, copy, 1 << 20)
        stack.pop_all()
    return copy


_KINDS: Mapping[str, Literal["csv", "jsonl", "lines"]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "lines",
}


def _recognise(source: _Source, *, is_lines: bool) -> Format:
    """Encoding and kind, by the first bytes and the suffix; `is_lines` says that it is one prompt a line."""
    head = source.piece(0, HEAD)
    _refuse_others(source, head)
    encoding = "utf-8-sig" if head.startswith(b"\xef\xbb\xbf") else "utf-8"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    start = head.decode(encoding, "replace").lstrip()
    suffix = Path(source.shown).suffix.lower()
    kind = "lines" if is_lines else _KINDS.get(suffix, "jsonl" if start[:1] in {"{", "["} else "csv")
    if not start and source.size <= len(head):
        hint = "write one prompt on each line" if kind == "lines" else "its first line names the columns"
        raise InputError([Problem("table", f"{source.shown} is empty", hint)])
    if kind == "jsonl" and start[:1] == "[":
        hint = "make lines of it: jq -c '.[]' FILE | seedream batch -"
        raise InputError([Problem("table", f"{source.shown} holds a JSON list, not one object a line", hint)])
    if kind == "lines" and not is_lines:
        _refuse_table(source, start)
    return Format(kind, encoding, "\t" if suffix == ".tsv" else ",")


def _refuse_others(source: _Source, head: bytes) -> None:
    """Refuse what is no plain text, by what it is."""
    is_utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        raise InputError([Problem("table", f"{source.shown} is UTF-32, no table in plain text", "save it as UTF-8")])
    if is_utf16:
        return
    tail = source.piece(max(0, source.size - TAIL), TAIL) if head.startswith(b"PK") else b""
    if found := find_kind(head, tail=tail, name=source.shown):
        raise InputError([Problem("table", f"{source.shown} is {found.what}, no table in plain text", found.hint)])
    odd, even = (head[start::2].count(b"\0") for start in (1, 0))
    if len(head) > 3 and max(odd, even) > len(head) // 4 > 8 * min(odd, even):
        hint = f"save it as UTF-8: iconv -f UTF-16{'LE' if odd > even else 'BE'} -t UTF-8 FILE"
        message = f"{source.shown} is UTF-16 without a mark that says so"
        raise InputError([Problem("table", message, hint)])


def _refuse_table(source: _Source, start: str) -> None:
    """Refuse a table that is called .txt: every line of it, its header too, would be taken for a prompt and paid."""
    first = start.split("\n", 1)[0].strip()
    cells = {cell.strip().strip('"').casefold() for cell in re.split(r"[,;\t]", first)}
    what = ""
    if first.startswith("{") and isinstance(_parse_object(first), dict):
        what = "holds a JSON object on its first line: call it .jsonl"
    elif len(cells) > 1 and "prompt" in cells:
        what = "names columns on its first line: call it .csv (or .tsv)"
    if what:
        message = f"{source.shown} is read as one prompt a line, but {what}"
        raise InputError([Problem("table", message, "or add --lines where each line is a prompt all the same")])


class _TooLongError(Exception):
    """A line that is longer than any table's."""


_SURROGATE = re.compile("[\ud800-\udfff]")


class _Lines:
    """The physical lines of a table, counted, and what is wrong with those read since it was last asked."""

    def __init__(self, source: _Source, file: TextIO) -> None:
        self.shown = source.shown
        self.number = 0
        self._file = file
        self._spoiled: list[Problem] = []

    def __iter__(self) -> Iterator[str]:
        for line in iter(functools.partial(self._file.readline, LINE_MOST), ""):
            self.number += 1
            if len(line) == LINE_MOST:
                raise _TooLongError
            if "\0" not in line and line.isascii():
                yield line
            else:
                yield self._look_at(line)

    def blocks(self) -> Iterator[Iterable[str]]:
        """All lines, many at a time: looked at together, and one by one only where that finds something.

        `number` is ahead of the reader then, except while the lines of a block come one by one.
        """
        while text := self._file.read(_BLOCK):
            # A line break of two characters may have been cut in half: the rest of the line may be the other half.
            rest = self._file.readline(LINE_MOST)
            lines = io.StringIO(text + rest, newline="").readlines()
            if len(lines[-1]) >= LINE_MOST:
                yield self._one_by_one(lines[:-1])
                raise _TooLongError
            if _is_clean(text) and _is_clean(rest):
                self.number += len(lines)
                yield lines
            else:
                yield self._one_by_one(lines)

    def _one_by_one(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self.number += 1
            yield self._look_at(line)

    def _look_at(self, line: str) -> str:
        """Note what of a line is no text; the line without NULs, at which csv modules used to stop."""
        if "\0" in line:
            self.complain("the line holds zero bytes, so it is no text", "save the table as UTF-8")
        if _SURROGATE.search(line):
            self.complain("the line holds bytes that are no text in UTF-8", _ENCODING_HINT)
        return line.replace("\0", "\ufffd")

    def complain(self, message: str, hint: str) -> None:
        """Note a problem of the line that was read last."""
        self._spoiled.append(Problem("", message, hint, origin=f"{self.shown}:{self.number}"))

    def take_problems(self) -> tuple[Problem, ...]:
        """What is wrong with the lines read since the last time."""
        if not self._spoiled:
            return ()
        found, self._spoiled = tuple(self._spoiled), []
        return found


_BLOCK = 1 << 15


def _is_clean(text: str) -> bool:
    """Whether there is nothing in a text that is no text."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_ENCODING_HINT = 'save the table as UTF-8 (in Excel: "CSV UTF-8")'
_QUOTE_HINT = 'inside quotes a quote is written twice: "a ""red"" fox"'
_END_HINT = "a quote that is never closed makes one cell of all that follows; the rows below were not looked at"
R = TypeVar("R")


def _read_next(reader: Iterator[R], lines: _Lines) -> R | Problem | None:
    """The next record, or what is wrong with it; None at the end."""
    line = lines.number + 1
    try:
        return next(reader, None)
    except _UNREADABLE as error:
        return _unreadable(error, lines.shown, line, lines.number)


_UNREADABLE = (_TooLongError, UnicodeDecodeError, csv.Error)


def _unreadable(error: Exception, shown: str, line: int, last: int) -> Problem:
    """What is wrong with a record that starts at a line and was read as far as the last one."""
    if isinstance(error, _TooLongError):
        message, hint = f"the line is longer than {LINE_MOST:,} characters", "the rows below were not looked at"
    elif isinstance(error, UnicodeDecodeError):
        message, hint = "the bytes from here on are no text", _ENCODING_HINT
    else:
        message, hint = str(error), _QUOTE_HINT
        if "field limit" in message:
            message, hint = f"a cell has more than {CELL_MOST:,} characters", _END_HINT
        elif "end of data" in message:
            message = "a quote in this row is never closed"
        elif "expected after" in message:
            line, message = last, "a quote within a cell is not doubled"
    return Problem("", message, hint, origin=f"{shown}:{line}")


# --- headers --------------------------------------------------------------------------------------------------------

_DECLARED = re.compile(r'"?sep=([^"\r\n])"?\s*', re.IGNORECASE)


def _read_csv_header(source: _Source, form: Format) -> tuple[Format, list[Heading]]:
    """The delimiter, found out from the header alone, and the header's names."""
    with source.open_text(form.encoding) as file:
        lines = _Lines(source, file)
        texts = iter(lines)
        header = _header_lines(texts, lines)
        declared = _DECLARED.fullmatch("".join(header))
        if declared:
            header = _header_lines(texts, lines)
        if problems := lines.take_problems():
            raise InputError(problems)
    form = replace(
        form,
        delimiter=declared[1] if declared else _find_delimiter("".join(header), form.delimiter),
        line_end="\n" if header[-1].endswith("\n") and not header[-1].endswith("\r\n") else "\r\n",
        names_delimiter=declared is not None,
        header_lines=lines.number,
    )
    before = lines.number - len(header)
    lines.number = before
    csv.field_size_limit(CELL_MOST)
    cells = _read_next(csv.reader(header, delimiter=form.delimiter, strict=True), lines)
    if isinstance(cells, Problem) or cells is None:
        raise InputError([cells] if cells else [])
    # Excel writes delimiters behind the last column where cells were in use once; cells below them are looked at.
    while cells and not cells[-1].strip():
        cells.pop()
    return form, [Heading(cell, f"{source.shown}:{before + 1}") for cell in cells]


def _header_lines(texts: Iterator[str], lines: _Lines) -> list[str]:
    """The lines of the next record that holds anything: it goes on while a quote is open."""
    header, size, quotes = list[str](), 0, 0
    while True:
        line = _read_next(texts, lines)
        if isinstance(line, Problem):
            raise InputError([line])
        size += len(line or "")
        if line is None or size > CELL_MOST:
            message = "a quote in the header is never closed" if header else "the table has no header"
            raise InputError([Problem("", message, "the first line names the columns", origin=f"{lines.shown}:1")])
        header.append(line)
        quotes += line.count('"')
        if quotes % 2:
            continue
        if "".join(header).strip(' \t\r\n,;"'):
            return header
        header, size, quotes = [], 0, 0


def _find_delimiter(text: str, usual: str) -> str:
    """The one of comma, semicolon and tab that parts the header most often, outside of quotes."""
    bare = re.sub('"[^"]*"', "", text)
    return max(dict.fromkeys((usual, ",", ";", "\t")), key=bare.count)


def _read_json_header(source: _Source, form: Format) -> tuple[Format, list[Heading]]:
    """Every key that any line has, in order of first use. Lines that are wrong are told when rows are read."""
    found, wrong = dict[str, Heading](), list[Problem]()
    with source.open_text(form.encoding) as file:
        lines = _Lines(source, file)
        texts = iter(lines)
        while isinstance(text := _read_next(texts, lines), str) and len(found) <= COLUMNS_MOST:
            row = {} if text.isspace() else _parse_object(text)
            if isinstance(row, dict) and row.keys() <= found.keys():
                continue
            origin = f"{source.shown}:{lines.number}"
            if isinstance(row, dict):
                found |= {key: Heading(key, origin) for key in row if key not in found}
            elif len(wrong) < SHOWN_MOST:
                wrong.append(_no_object(text, row, origin))
    wrong += [text] if isinstance(text, Problem) else []
    if not found:
        raise InputError(wrong or [Problem("table", f"no line of {source.shown} holds a key with a value")])
    return form, list(found.values())


def _lines_header(source: _Source, form: Format) -> tuple[Format, list[Heading]]:
    """Plain lines have no header: each is a prompt."""
    return form, [Heading("prompt", source.shown)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, none of whose keys may stand twice: the last one would win in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _refuse_constant(name: str) -> Any:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{name} is no JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _parse_object(text: str) -> dict[str, Any] | str:
    """The object in a line of JSON, or what is wrong with the line."""
    try:
        value = _JSON.decode(text.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        return f"no JSON at character {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}"
    except RecursionError:
        return "no JSON: it is nested too deeply"
    except ValueError as error:
        return f"no JSON: {str(error).partition(';')[0]}"
    return value if isinstance(value, dict) else "a line must hold one object in braces"


def _no_object(text: str, message: str, origin: str) -> Problem:
    hint = "write one object on each line: jq -c . does so" if text.strip() in {"{", "["} else ""
    return Problem("", message, hint, origin=origin)


# --- what the columns mean ------------------------------------------------------------------------------------------

Role = Literal["variable", "id", "prompt", "value", "switch", "image", "list", "extra", "pair"]


@dataclass(frozen=True, slots=True)
class Column:
    """What a column sets: the option `key`, by its kind; `pair` one key of the body, `part`; `variable` nothing.

    `number` orders image_1, image_2, …; it is 0 for `image`, whose cells may hold several, joined by "|".
    `is_mapped`: the user said what it sets.
    """

    name: str
    role: Role = "variable"
    key: str = ""
    part: str = ""
    negative: bool = False
    number: int = 0
    is_mapped: bool = False

    @property
    def is_free(self) -> bool:
        """Whether rows that differ only here share one judgment: the value has no bearing on other options."""
        return self.key in _STAND_INS


_NO_OPTION: Collection[Role] = {"variable", "id", "prompt"}
_STAND_INS = {"prompt": "…", "seed": "0", "name": "name"}
"""What stands for a prompt, a seed and a name while the other options of a row are judged."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a prompt template: the column that fills it, or the text where its cell is empty."""

    name: str
    at: int
    otherwise: str = ""


@dataclass(frozen=True)
class Columns:
    """The columns of a table, understood. `template` is the prompt's, in pieces; None: the column `prompt` is it."""

    columns: tuple[Column, ...]
    template: tuple[str | Slot, ...] | None = None

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The columns' names: what templates of prompts and file names may use."""
        return tuple(column.name for column in self.columns if column.name)

    @functools.cached_property
    def unused(self) -> tuple[str, ...]:
        """Variables that the prompt template does not use; a name template may."""
        used = {slot.at for slot in self.slots}
        pairs = enumerate(self.columns)
        return tuple(column.name for at, column in pairs if column.role == "variable" and at not in used)

    @functools.cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The places of the template that columns fill."""
        return tuple(dict.fromkeys(piece for piece in self.template or () if isinstance(piece, Slot)))

    @functools.cached_property
    def options_at(self) -> tuple[int, ...]:
        """Where the columns that set something stand; pictures in the order of their numbers."""
        setting = [at for at, column in enumerate(self.columns) if column.role not in _NO_OPTION]
        return tuple(sorted(setting, key=lambda at: self.columns[at].number))

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """The options that columns set."""
        return tuple({column.key: None for column in self.columns if column.key})

    @functools.cached_property
    def taken(self) -> tuple[str, ...]:
        """Columns that are options by their own name alone, which may have been meant as data."""
        return tuple(column.name for column in self.columns if column.role not in _NO_OPTION and not column.is_mapped)

    @functools.cached_property
    def places(self) -> Mapping[str, str]:
        """Where each option stands, in words that hold for every row: messages may name where an option came from."""
        headings = {column.key: column.name for column in self.columns if column.key}
        return {key: f"{_HERE}column {headings.get(key, key)}" for key in (*_ALWAYS, *self.keys)}

    @functools.cached_property
    def shape_of(self) -> Callable[[Sequence[Cell]], tuple[Cell, ...]]:
        """Takes the cells that decide on a row's judgment: those of all options but the free ones."""
        at = [at for at in self.options_at if not self.columns[at].is_free]
        if len(at) > 1:
            return operator.itemgetter(*at)
        return lambda cells: tuple(cells[number] for number in at)

    @functools.cached_property
    def prompt_of(self) -> Callable[[Sequence[Cell]], str]:
        """Takes the prompt from the cells: the template filled in, or else the cell; "" where there is neither."""
        template, at = self.template, self.at.get("prompt")

        def fill(cells: Sequence[Cell]) -> str:
            texts = [p if isinstance(p, str) else _text(cells[p.at]) or p.otherwise for p in template or ()]
            text = "".join(texts)
            return "" if text.isspace() else text

        def take(cells: Sequence[Cell]) -> str:
            text = "" if at is None else _text(cells[at])
            return "" if text.isspace() else text

        return take if template is None else fill

    @functools.cached_property
    def id_at(self) -> int | None:
        """Where the id stands."""
        return self.at.get("id")

    @functools.cached_property
    def exact(self) -> frozenset[int]:
        """Where the cells stand by which a row is known again: its id and what its prompt is made of."""
        own = (
            at for at, column in enumerate(self.columns) if column.role in {"id", "prompt"} or column.key == "prompt"
        )
        return frozenset((*own, *(slot.at for slot in self.slots)))

    @functools.cached_property
    def needed_at(self) -> tuple[int, ...]:
        """Where the cells stand that should not be empty, since the template has no other text for them."""
        return tuple(slot.at for slot in self.slots if not slot.otherwise)

    @functools.cached_property
    def at(self) -> Mapping[str, int]:
        """Where `id`, `prompt`, `seed` and `name` stand."""
        named = enumerate(self.columns)
        return {column.key or column.role: at for at, column in named if column.role == "id" or column.is_free}


def plan_columns(
    headings: Sequence[Heading],
    options: Mapping[str, Option],
    *,
    run_level: Collection[str],
    maps: Sequence[str] = (),
    template: str | None = None,
    variables: Mapping[str, str] | None = None,
    needs_prompt: bool = True,
) -> tuple[Columns, list[Problem]]:
    """What each column sets, and all that is wrong with the header. Without an error the columns can be used.

    `options` are the long names and `run_level` the keys of those that hold for a whole run. `maps` are COLUMN=OPTION;
    an empty OPTION makes a plain variable. `template` is the prompt's, `variables` what `--var` gives, for cells that
    are empty or not there. `needs_prompt` is False where the prompt comes from elsewhere or none is needed.
    """
    planner = _Planner(headings, options, run_level)
    mapped = planner.read_maps(maps)
    columns = planner.plan(mapped)
    pieces = None
    if template is not None:
        pieces = planner.compile(template, columns, variables or {})
    elif needs_prompt and not {"prompt", "layers"} & {column.key for column in columns}:
        planner.miss_prompt(columns)
    planned = Columns(tuple(columns), pieces)
    planner.look_for_slips(planned, mapped)
    return planned, planner.problems


class _Planner:
    """Finds out what columns mean and notes every problem of a header."""

    def __init__(self, headings: Sequence[Heading], options: Mapping[str, Option], run_level: Collection[str]) -> None:
        self.headings = headings
        self.options = options
        self.run_level = run_level
        self.problems: list[Problem] = []

    def complain(self, name: str, message: str, hint: str = "", origin: str = "") -> None:
        """Note an error at a column."""
        self.problems.append(Problem(name, message, hint, origin=origin))

    def read_maps(self, maps: Sequence[str]) -> dict[str, str]:
        """COLUMN=OPTION by column. An option's name holds no "=", a column's may."""
        mapped: dict[str, str] = {}
        known = [heading.name.strip() for heading in self.headings]
        for pair in maps:
            name, equals, option = (part.strip() for part in pair.rpartition("="))
            if not equals:
                self.complain("map", f"{pair!r} is not COLUMN=OPTION", "write --map 'Text=prompt'", "--map")
            elif name not in known:
                hint = _guess(name, known, "the columns are")
                if self.headings and not re.search(r":\d+$", self.headings[0].origin):
                    hint = f"{self.headings[0].origin} is read as one prompt a line; a table is called .csv or .tsv"
                self.complain("map", f"there is no column {name}", hint, "--map")
            elif option and self.understand(option).role == "variable":
                hint = _guess(option, self.known(), "")
                self.complain("map", f"there is no option {option}", hint or "see seedream batch --help", "--map")
            else:
                mapped[name] = option
        return mapped

    def known(self) -> list[str]:
        """The names that a column can have to set something."""
        found = [name for name, option in self.options.items() if option.key not in self.run_level]
        return ["prompt", "id", "image", *found]

    def understand(self, name: str) -> Column:
        """The meaning of a column's name."""
        name = name.strip()
        normal = _normal(name)
        if normal == "id":
            return Column(name, "id")
        if normal == "prompt":
            return Column(name, "prompt", "prompt")
        if numbered := re.fullmatch(r"image-([0-9]{1,6})", normal):
            return Column(name, "image", "image", number=int(numbered[1]) + 1)
        if normal.startswith("extra.") and len(normal) > len("extra."):
            return Column(name, "pair", "extra", name[len("extra.") :].strip())
        option = self.options.get("count" if normal == "n" else normal)
        if option is None:
            return Column(name)
        if option.key in {"image", "extra"}:
            return Column(name, "image" if option.key == "image" else "extra", option.key)
        kind: Role = "switch" if option.kind == "switch" else "list" if option.kind == "list" else "value"
        return Column(name, kind, option.key, negative=option.negative)

    def plan(self, mapped: Mapping[str, str]) -> list[Column]:
        """Every column, each name and each option once."""
        columns, first = list[Column](), dict[tuple[str, ...], str]()
        for number, heading in enumerate(self.headings, 1):
            name = heading.name.strip()
            column = replace(self.understand(mapped.get(name, name)), name=name, is_mapped=name in mapped)
            if mapped.get(name) == "":
                column = Column(name)
            columns.append(column)
            self.check(column, heading, number, mapped)
            own = name if column.role == "variable" else column.key
            target = (column.role, own, column.part, str(column.number))
            if name and target in first:
                alike = f"the columns {first[target]} and {name} set the same option"
                message = f"two columns are called {name}" if first[target] == name else alike
                self.complain(name, message, "rename or delete one of them", heading.origin)
            first.setdefault(target, name)
        return columns

    def check(self, column: Column, heading: Heading, number: int, mapped: Mapping[str, str]) -> None:
        """A column on its own: it has a name, and may stand in a table."""
        if not column.name:
            hint = "give it a name, or delete it"
            self.complain("", f"column {number} has no name", hint, heading.origin)
        if "=" in column.part:
            self.complain(
                column.name, "a key of the body cannot hold =", "use a column extra with JSON", heading.origin
            )
        target = _normal(mapped.get(column.name, column.name))
        option = self.options.get(target, Option(target.replace("-", "_"), "value"))
        if mapped.get(column.name) != "" and (option.key in self.run_level or option.kind == "count"):
            hint = f"give --{target} on the command line; --map '{column.name}=' makes the column a plain variable"
            self.complain(column.name, f"--{target} holds for the whole run, not for a row", hint, heading.origin)

    def compile(self, template: str, columns: Sequence[Column], variables: Mapping[str, str]) -> tuple[str | Slot, ...]:
        """The template in pieces. A name that is no column and no variable is an error, once."""
        pieces, end, missing = list[str | Slot](), 0, dict[str, None]()
        exact = {column.name: at for at, column in reversed(list(enumerate(columns)))}
        loose = {_normal(column.name): at for at, column in reversed(list(enumerate(columns)))}
        for found in _VARIABLE.finditer(template):
            pieces.append(template[end : found.start()])
            end, name = found.end(), (found[1] or "").strip()
            at = exact.get(name, loose.get(_normal(name)))
            if found[1] is None:
                pieces.append(found[0][0])
            elif at is not None:
                pieces.append(Slot(name, at, variables.get(name, "")))
            elif name in variables:
                pieces.append(variables[name])
            else:
                missing[name] = None
        for name in missing:
            hint = _guess(name, [*exact, *variables], "the columns are")
            way_out = f"{hint}; write {{{{{name}}}}} for braces"
            self.complain("prompt", f"{{{name}}} in the prompt is no column", way_out, "--prompt")
        return tuple(piece for piece in (*pieces, template[end:]) if piece != "")

    def miss_prompt(self, columns: Sequence[Column]) -> None:
        """Tell that there are no prompts, and, where the first line seems to be data, that it is taken for names."""
        origin = self.headings[0].origin if self.headings else ""
        found = [column.name for column in columns]
        hint = _guess("prompt", found, "")
        if not hint and all(column.role == "variable" for column in columns) and any(map(_is_data, found)):
            hint = "the first line looks like data: put a line with the columns' names above it"
        usual = "call a column prompt, or give --prompt with {column} in it, or --map COLUMN=prompt"
        self.complain("prompt", "no column is called prompt", hint or usual, origin)

    def look_for_slips(self, planned: Columns, mapped: Collection[str]) -> None:
        """Warn of variables that are nearly an option, unless the template uses them or they were mapped."""
        doubtful = {name for name in planned.unused if name and name not in mapped}
        for heading in self.headings:
            name = heading.name.strip()
            near = difflib.get_close_matches(_normal(name), self.known(), 1, 0.8) if name in doubtful else []
            if near:
                message, hint = f"column {name} is taken as a variable", f"did you mean {near[0]}?"
                self.problems.append(Problem(name, message, hint, "warning", heading.origin, "column_unknown"))


_VARIABLE = re.compile(r"\{\{|\}\}|\{([^{}\r\n]+)\}")


def _normal(name: str) -> str:
    return name.strip().casefold().replace("_", "-")


def _is_data(name: str) -> bool:
    """Whether a column's name reads like a cell: a sentence, a number, an address."""
    return len(name) > 40 or len(name.split()) > 3 or re.fullmatch(r"[-+0-9.,x]+|\w+://.*", name) is not None


def _guess(name: str, known: Collection[str], otherwise: str) -> str:
    """A hint that names what was probably meant, or else some of what there is."""
    near = difflib.get_close_matches(_normal(name), {_normal(other): None for other in known}, 1)
    if near:
        return f"did you mean {next(other for other in known if _normal(other) == near[0])}?"
    some = ", ".join(itertools.islice(filter(None, known), 10))
    return f"{otherwise} {some}" if otherwise and some else ""


# --- rows -----------------------------------------------------------------------------------------------------------


class Table:
    """A table that can be read again and again; made by `open_table`, closed as a context manager."""

    def __init__(self, source: _Source, form: Format, headings: tuple[Heading, ...]) -> None:
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
            lines = _Lines(self._source, file)
            texts = iter(lines)
            while (text := _read_next(texts, lines)) is not None:
                problems = lines.take_problems()
                if isinstance(text, Problem):
                    yield lines.number, [""], (*problems, text)
                    return
                prompt = text.strip()
                if len(prompt) > CELL_MOST:
                    message = f"the line has more than {CELL_MOST:,} characters"
                    problems = (*problems, Problem("", message, origin=f"{self.name}:{lines.number}"))
                if prompt and (problems or not prompt.startswith("#")):
                    yield lines.number, [prompt], problems

    def _csv_records(self) -> Iterator[Record]:
        form, width = self.format, len(self.headings)
        with self._source.open_text(form.encoding) as file:
            lines = _Lines(self._source, file)
            deque(itertools.islice(iter(lines), form.header_lines), 0)
            lines.take_problems()
            csv.field_size_limit(CELL_MOST)
            # Of UTF-16 that is cut in half all would be lost that is read with its end.
            texts = iter(lines) if form.encoding == "utf-16" else itertools.chain.from_iterable(lines.blocks())
            reader = csv.reader(texts, delimiter=form.delimiter, strict=True)
            for line, cells in _number_records(reader, form.header_lines, lines.shown):
                problems = lines.take_problems()
                if isinstance(cells, Problem):
                    yield line, [""] * width, (*problems, cells)
                elif problems or len(cells) != width:
                    if problems or not _is_blank(cells):
                        yield line, *self._fit(cells, line, problems)
                elif (cells and cells[0] and not cells[0].isspace()) or not _is_blank(cells):
                    yield line, cells, ()

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
        message = f"the row has {_count(count, 'cell')}, but the header names {_count(width, 'column')}"
        return fitted, (*problems, Problem("", message, hint, origin=f"{self.name}:{line}"))

    def _json_records(self, columns: Columns) -> Iterator[Record]:
        keys = list(zip([heading.name for heading in self.headings], columns.columns, strict=True))
        with self._source.open_text(self.format.encoding) as file:
            lines = _Lines(self._source, file)
            texts = iter(lines)
            while (text := _read_next(texts, lines)) is not None:
                problems = lines.take_problems()
                line = lines.number
                if isinstance(text, Problem):
                    yield line, [""] * len(keys), (*problems, text)
                elif problems or not text.isspace():
                    cells, wrong = _read_object(text, keys, f"{self.name}:{line}")
                    yield line, cells, (*problems, *wrong) if problems or wrong else ()


Record = tuple[int, Sequence[Cell], tuple[Problem, ...]]


def _number_records(reader: Any, before: int, shown: str) -> Iterator[tuple[int, list[str] | Problem]]:
    """Each record of a csv reader with the line it starts at, or what is wrong with it. `before` lines were passed."""
    line = before
    while True:
        try:
            for cells in reader:
                yield line + 1, cells
                line = before + reader.line_num
            return
        except _UNREADABLE as error:
            problem = _unreadable(error, shown, line + 1, before + reader.line_num)
            yield line + 1, problem
        # What follows cannot be told apart any more.
        if problem.hint == _END_HINT:
            return
        line = before + reader.line_num


_HEADERS = {"csv": _read_csv_header, "jsonl": _read_json_header, "lines": _lines_header}


def open_table(name: str, *, is_lines: bool = False) -> Table:
    """A table by its file's name, or standard input for `-`. Raises `InputError` where it is none.

    The kind is told by the suffix (.csv .tsv .jsonl .ndjson .txt), else by the first bytes; `is_lines` says that it is
    one prompt a line, whatever it is called.
    """
    source = _open_source(name)
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        form = _recognise(source, is_lines=is_lines)
        form, headings = _HEADERS[form.kind](source, form)
        if len(headings) > COLUMNS_MOST:
            message = f"{source.shown} has more than {COLUMNS_MOST:,} columns"
            raise InputError([Problem("table", message, "leave out those that set nothing")])
        stack.pop_all()
    return Table(source, form, tuple(headings))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _is_blank(cells: Sequence[str]) -> bool:
    return not any(cells) or not "".join(cells).strip()


def _read_object(text: str, keys: Sequence[tuple[str, Column]], origin: str) -> tuple[list[Cell], list[Problem]]:
    """The cells of a line of JSON, one for each key that any line has, and all that is wrong with them."""
    row = _parse_object(text)
    if isinstance(row, str):
        return [""] * len(keys), [_no_object(text, row, origin)]
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
    """A JSON value as a cell. Lists are for pictures, objects for the body."""
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
    text = _text(cell)
    if len(text) > CELL_MOST:
        return Problem(column.name, f"the cell has more than {CELL_MOST:,} characters")
    if "\0" in text or _SURROGATE.search(text):
        return Problem(column.name, "the cell holds a zero byte or half a character, which is no text")
    return cell


def _text(cell: Cell) -> str:
    """A cell as text; several pictures are joined as a table joins them."""
    return cell if isinstance(cell, str) else "|".join(cell)


class Row(NamedTuple):
    """A row as it stands: its number from 1, the line its record starts at, its cells, and what is wrong with it.

    The problems are those of its reading. What its options are worth is judged by a `Checker`. A tuple, since one is
    made for each of a hundred thousand rows.
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
        return "" if at is None else _text(self.cells[at])

    @property
    def id(self) -> str:
        """What the table calls the row, or ""."""
        at = self.columns.id_at
        return "" if at is None else _text(self.cells[at]).strip()

    @property
    def prompt(self) -> str:
        """The template filled in, or else the cell as it stands; "" where there is neither."""
        return self.columns.prompt_of(self.cells)

    @property
    def shape(self) -> tuple[Cell, ...]:
        """The cells of its options but prompt, seed and name: rows of one shape share one judgment."""
        return self.columns.shape_of(self.cells)

    @property
    def variables(self) -> dict[str, str]:
        """Every column by name, those of options too."""
        pairs = zip(self.columns.columns, self.cells, strict=True)
        return {column.name: _text(cell) for column, cell in pairs if column.name}

    @property
    def fields(self) -> dict[str, str]:
        """What file names may use: every column, safe and at most 80 bytes long, the row's number, and its id."""
        fields = {name: _clean(text) for name, text in self.variables.items()}
        own = {"id": _clean(self.id)} if self.id else {}
        return {**fields, "row": str(self.number), **own}

    def read_options(self) -> tuple[Draft, list[Problem]]:
        """What the row's own cells set, each with its place, and what of it has no meaning. Empty cells set nothing."""
        reader = self.sort_cells()
        found = (*reader.values, *reader.switches, *reader.lists)
        draft = Draft(reader.values, reader.switches, reader.lists, dict.fromkeys(found, self.origin))
        return draft, reader.problems

    def draft(self, base: Draft) -> Draft:
        """The row over the options of the run, which hold where it sets nothing; what the body gets is joined."""
        return _overlay(base, self.sort_cells(), dict.fromkeys(self.columns.places, self.origin))

    def sort_cells(self) -> _OptionReader:
        """The row's cells by what they set."""
        reader = _OptionReader(self)
        for at in self.columns.options_at:
            cell = self.cells[at]
            if _text(cell).strip():
                reader.take(self.columns.columns[at], cell)
        if prompt := self.prompt:
            reader.values["prompt"] = prompt
        return reader


_ALWAYS = ("prompt", "image")
"""What is missing in a row, where it is missing, whether there is a column for it or not."""


def _overlay(base: Draft, own: _OptionReader, places: Mapping[str, str]) -> Draft:
    """A row's own options over the run's. What nobody set has its place in the row too, since there it is missing."""
    lists = {**base.lists, **own.lists}
    if "extra" in own.lists:
        lists["extra"] = (*base.lists.get("extra", ()), *own.lists["extra"])
    origins = {**places, **base.origins}
    for key in (*own.values, *own.switches, *own.lists):
        origins[key] = places[key]
    values, switches = {**base.values, **own.values}, {**base.switches, **own.switches}
    return Draft(values, switches, lists, origins, base.label)


def _clean(text: str) -> str:
    """A cell as part of a file's name; a line break in it is a blank."""
    joined = " ".join(text.split())
    return names.clean_name(joined, 80) if joined else ""


_SWITCHES = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}


class _OptionReader:
    """Sorts the cells of a row into values, switches and lists."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.values: dict[str, str] = {}
        self.switches: dict[str, bool] = {}
        self.lists: dict[str, tuple[str, ...]] = {}
        self.problems: list[Problem] = []

    def complain(self, column: Column, message: str, hint: str = "") -> None:
        """Note a problem of the row in a column."""
        self.problems.append(Problem(column.name, message, hint, origin=self.row.origin))

    def take(self, column: Column, cell: Cell) -> None:
        """One cell that is not empty, by what its column sets."""
        text = _text(cell)
        if column.key in _NUMBERED:
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
        value = _SWITCHES.get(text.strip().lower())
        if value is None:
            self.complain(column, f"{text.strip()[:40]!r} is neither true nor false", f"write {', '.join(_SWITCHES)}")
        else:
            self.switches[column.key] = value is not column.negative

    def locate(self, column: Column, references: Iterable[str]) -> list[str]:
        """References with paths from the table's folder; addresses and data URIs as they stand."""
        found = []
        for reference in filter(None, map(str.strip, references)):
            if reference == "-":
                self.complain(column, "a table cannot take a picture from standard input", "name a file or an address")
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
        pairs = _parse_object(cell)
        if isinstance(pairs, str):
            self.complain(column, pairs, 'write KEY=JSON, or an object: {"key": 1}')
            return []
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in pairs.items()]


def _as_json(text: str, *, is_json: bool) -> str:
    """A cell as JSON: as it stands where it is JSON, else as a JSON string."""
    if is_json:
        return text
    try:
        _JSON.decode(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


# --- judging rows ---------------------------------------------------------------------------------------------------


_HERE = "\x1e"
"""Stands for a row's place in problems that were found for all rows of a shape."""


class Judged(NamedTuple, Generic[T]):
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


class Shapes(Generic[T]):
    """Judges each shape once, since building a request costs more than reading a row.

    `judge` gets a draft that is the row over `base`, in which stand-ins take the place of a prompt, seed and name that
    are sound in themselves: its answer, the fingerprint of a request say, is the same for all rows of the shape, in
    every run. Answers are kept for `most` shapes.
    """

    def __init__(self, base: Draft, judge: Callable[[Draft], tuple[T, Sequence[Problem]]], *, most: int = 512) -> None:
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

    def judge(self, row: Row) -> Judged[T]:
        """The row with the judgment of its shape."""
        key, prompt, number = self._find(row.columns, row.cells)
        shaped = self._kept.get(key) or self._keep(key, row)
        return Judged(row, shaped.value, shaped.found, prompt, number)

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
        seed = ("" if self._seed_at is None else _plain_number(_text(cells[self._seed_at]))) or self._seed
        name = ("" if self._name_at is None else _text(cells[self._name_at]).strip()) or self._name
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
        draft = _overlay(self.base, reader, row.columns.places)
        marks = {name: mark for name, mark in zip(_STAND_INS, key[1:], strict=True) if name in draft.values}
        value, problems = self._judge(replace(draft, values={**draft.values, **marks}))
        found = (*(replace(problem, origin=_HERE) for problem in reader.problems), *map(_unplace, problems))
        shaped = _Shaped(value, found, all(problem.severity == "warning" for problem in found))
        # Pictures in data URIs would make the keys as large as the table.
        if len(repr(key)) <= 4096:
            if len(self._kept) >= self._most:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = shaped
        return shaped


_Key = tuple[tuple[Cell, ...], str, str, str]
_PLAIN_NAME = re.compile(r"\w[\w -]*(/\w[\w -]*)*")
"""A name without fields, dots and signs: whatever template rules there are, it keeps them."""


_SEED = re.compile(r"\s*[+-]?[0-9]{1,12}\s*", re.ASCII)
_NUMBERED = frozenset({"seed", "count", "sequence", "guidance_scale"})
_UNSET = frozenset({"nan", "NaN", "NAN", "None", "null", "NULL", "NA", "N/A", "#N/A", "<NA>"})
"""What programs write into a cell of numbers that holds none."""


def _plain_number(text: str) -> str:
    """A cell of numbers as an option takes it: "" where it is a program's word for nothing."""
    text = text.strip()
    return "" if text in _UNSET else text


def _plain_seed(text: str) -> str:
    """A seed that every model can take, in one spelling; "" for any other text, which is judged as it stands."""
    if len(text) < 10 and text.isdecimal() and text.isascii() and text[0] != "0":
        return text
    if not _SEED.fullmatch(text := whole_number(text.strip()) or text):
        return ""
    number = int(text)
    return str(number) if -1 <= number < 2**31 else ""


def _unplace(problem: Problem) -> Problem:
    """A problem found for a shape: of no row yet where an option of the row is to blame."""
    origin = _HERE if problem.origin.startswith(_HERE) else problem.origin
    return replace(problem, message=problem.message.replace(_HERE, ""), origin=origin)


class Checker(Generic[T]):
    """Checks the rows of one pass: each on its own, and what only the whole table shows."""

    def __init__(self, shapes: Shapes[T], advise: Callable[[Judged[T]], Problem | None] | None = None) -> None:
        """`advise` may warn of one row's own prompt, where that is long enough to be looked at."""
        self._shapes = shapes
        self._advise = advise
        self._ids = _Numbers()
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
        name = "" if columns.id_at is None else _text(cells[columns.id_at]).strip()
        if name and self._keep_id(name, line) != line:
            return False
        if self._advise and self._shapes.glanced > ADVISED_CJK:
            return False
        if shaped.found:
            self._passed[shaped] += 1
        return True

    def judge(self, row: Row) -> Judged[T]:
        """The row judged, with its errors; one of an option of the run, not of the row, is told once.

        Warnings are kept for `close`: most concern every row of the table.
        """
        if row.problems:
            return Judged(row, None, row.problems)
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
        return self._ids.keep(hash(name) & _ALL_BITS, line)

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
            others = f" (and in {_count(count - 1, 'more row')})" if count > 1 else ""
            problems.append(replace(problem, message=problem.message + others, origin=first))
        return problems


def _empty(slot: Slot) -> Problem:
    hint = f"--var {slot.name}=… gives a text for empty cells"
    return Problem(slot.name, f"{{{slot.name}}} is empty here", hint, "warning", _HERE, "variable_empty")


def check_table(
    table: Table, columns: Columns, base: Draft, judge: Callable[[Draft], Sequence[Problem]]
) -> Iterator[Problem]:
    """Every problem of every row, with its place, in the order of the rows; nothing is held."""
    checker = Checker(Shapes(base, lambda draft: (None, judge(draft))))
    yield from checker.check(table, columns)
    if not checker.rows:
        yield Problem("", table.no_rows, severity="warning", origin=table.name, code="no_rows")


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


# --- identity -------------------------------------------------------------------------------------------------------


def row_key(parts: Sequence[str], row_id: str = "", occurrence: int = 1) -> str:
    """What a row is known by: 32 hexadecimal digits of all that it asks for, its id, and which of equals it is.

    `parts` say what is asked for: the fingerprint of the shape's request, the prompt, the seed. Where the row stands
    has no part in it.
    """
    # No text that came through a table, a flag or a prompt file holds a NUL, so it can part them.
    texts = "\0".join((*parts, row_id, str(occurrence)))
    # A copy costs half of what it takes to begin anew.
    key = _NO_KEY.copy()
    key.update(_bytes(texts))
    return key.hexdigest()


_NO_KEY = hashlib.blake2b(digest_size=16)


def shard_of(key: str, count: int) -> int:
    """Which of `count` shards, from 0, a row belongs to, by its key alone."""
    return int(key, 16) % count


class Identities:
    """Gives the rows of one pass their keys, and numbers those that are equal: two equal rows are two pictures."""

    def __init__(self) -> None:
        self._times = _Numbers()

    def key(self, row: Row, parts: Sequence[str]) -> str:
        """The row's key; `parts` as for `row_key`. A row with an id is no other's equal."""
        return self.key_of(row.id, parts)

    def key_of(self, name: str, parts: Sequence[str]) -> str:
        """The key of a row with this id, or with none."""
        if name:
            return row_key(parts, name)
        first = row_key(parts)
        times = self._times.add(int(first[:16], 16))
        return first if times == 1 else row_key(parts, "", times)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class _Numbers:
    """A small number for each 64-bit digest. A dict of 100,000 would take 15 MiB, this takes less than 2.

    Digests lie in the first free place behind the one that their last bits name.
    """

    def __init__(self) -> None:
        self._make_room(1024)

    def _make_room(self, places: int) -> None:
        self._digests = array("Q", bytes(8 * places))
        self._numbers = array("I", bytes(array("I").itemsize * places))
        self._free = places * 4 // 5
        self._last = places - 1

    def _find(self, digest: int) -> int:
        """The place of a digest, or the free one that is its."""
        digests, last = self._digests, self._last
        at = digest & last
        while (there := digests[at]) and there != digest:
            at = (at + 1) & last
        return at

    def _take(self, at: int, digest: int, number: int) -> int:
        """Put a new digest into its place; its number."""
        if not self._free:
            self._grow()
            at = self._find(digest)
        self._free -= 1
        self._digests[at], self._numbers[at] = digest, number
        return number

    def _grow(self) -> None:
        digests, numbers = self._digests, self._numbers
        # Four times the room saves work, twice saves memory.
        self._make_room(len(digests) * (4 if len(digests) < 1 << 16 else 2))
        for digest, number in zip(digests, numbers, strict=True):
            if digest:
                self._take(self._find(digest), digest, number)

    def add(self, digest: int) -> int:
        """Count the digest once more; how often it has been counted."""
        # Zero marks a free place.
        at = self._find(digest := digest or 1)
        if not self._digests[at]:
            return self._take(at, digest, 1)
        self._numbers[at] += 1
        return self._numbers[at]

    def keep(self, digest: int, number: int) -> int:
        """The number that was kept for the digest first."""
        at = self._find(digest := digest or 1)
        return self._numbers[at] if self._digests[at] else self._take(at, digest, number)


_ALL_BITS = 2**64 - 1


# --- results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of a row, as texts. Several paths are joined by "|"."""

    status: str
    path: str = ""
    error: str = ""
    provider_code: str = ""
    billed: str = ""
    cost: str = ""
    request_id: str = ""
    warning: str = ""


RESULTS = ("status", "path", "error", "provider_code", "billed", "cost", "request_id")
_WRITTEN = (*RESULTS, "warning")
_RESULT_NAME = [re.compile(rf"(seedream_)?{name}(_[0-9]+)?") for name in RESULTS]


def find_results(headings: Sequence[str]) -> int | None:
    """Where the columns of results begin in a table that has them behind its own; None where it has none."""
    starts = range(len(headings) - len(RESULTS), -1, -1)
    names = [heading.strip() for heading in headings]
    fits = (at for at in starts if all(p.fullmatch(n) for p, n in zip(_RESULT_NAME, names[at:], strict=False)))
    return next(fits, None)


_CSV_NUMBER = re.compile(r"\s*[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]+)?%?\s*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARKS = re.compile("[\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb]")
_LAYOUT = re.compile(r"([\n\t])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def check_results(path: Path, table: Table, folder: Path | None = None) -> list[Problem]:
    """What speaks against writing the results there, before anything is paid.

    `folder` is the batch's, where the user did not name the file: one that lies there may be a stranger's, and what is
    a link out of it, or no file, is not what anybody asked for.
    """
    if table.is_file(path):
        return [Problem("results", f"the results would replace the table {path}", "name another file with --results")]
    if path.is_dir():
        return [Problem("results", f"{path} is a folder", "name a file with --results")]
    if folder is not None and os.path.lexists(path) and not _is_within(path, folder):
        message = f"{path} is a link that leads out of its folder, or no file"
        return [Problem("results", message, "remove it, or name it with --results where it is meant")]
    return []


def foreign_results(path: Path) -> list[Problem]:
    """That a file lies where the results go which no batch wrote: it would be replaced. Empty ones are nobody's.

    Results are known by their columns, behind whatever columns their table has.
    """
    try:
        is_foreign = path.is_file() and path.stat().st_size > 0 and not _has_results(path)
    except OSError:
        # What cannot be looked at cannot be written either, which is told before anything is paid.
        return []
    if not is_foreign:
        return []
    message = f"{path} is there and holds no results of a batch: it would be replaced"
    return [Problem("results", message, "move it away, or name another file with --results", origin=str(path))]


_RESULTS_HEADER_MOST = 1 << 20


def _has_results(path: Path) -> bool:
    """Whether a file is a table with the columns of results, whatever its suffix says."""
    with path.open("rb") as file:
        text = file.read(_RESULTS_HEADER_MOST).decode("utf-8-sig", "replace")
    if text.startswith("sep="):
        text = text.partition("\n")[2]
    for delimiter in ",;\t":
        with contextlib.suppress(csv.Error):
            headings = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
            if find_results(headings) is not None:
                return True
    return False


def _is_within(path: Path, folder: Path) -> bool:
    try:
        target = files.final_target(path)
        return target is not None and target.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False


_RESULTS_HINT = "close it where it is open; no picture is lost, and the same command writes it again"


def open_results(path: Path) -> int | None:
    """A descriptor to write the results to, where they go to no file: a pipe is opened before anything is paid, so that
    its reader waits for them. Raises `FileError`.
    """
    try:
        return files.open_stream(path) if files.final_target(path) is None else None
    except (OSError, RuntimeError) as error:
        raise _results_error(path, error, "name another place with --results") from error


def _results_error(path: Path, error: OSError | RuntimeError, hint: str = _RESULTS_HINT) -> FileError:
    reason = files.reason(error) if isinstance(error, OSError) else "a loop of links"
    return FileError(f"cannot write {path}: {reason}", hint=hint)


def write_results(
    path: Path, table: Table, rows: Iterable[tuple[Row, RowResult]], *, stream: int | None = None
) -> None:
    """Write the table with what became of its rows, whole or not at all: the earlier results stand until then.

    What is no file is written to as it is (`stream` is what `open_results` gave, if that was asked before); a link
    stays one. Columns, order and delimiter are the table's (commas for JSON). Raises `FileError`, and `InputError`
    where the path is the table itself.
    """
    if problems := check_results(path, table):
        raise InputError(problems)
    stream = open_results(path) if stream is None else stream
    if stream is not None:
        try:
            _write_rows(stream, table, rows)
        except OSError as error:
            raise _results_error(path, error, "no picture is lost, and the same command writes it again") from error
        return
    part: Path | None = None
    try:
        final = files.final_target(path) or path
        # The name is that of pictures' parts, so that what a killed run leaves is swept away with those.
        part = final.with_name(f".seedream-{os.urandom(6).hex()}.part")
        _write_rows(files.create(part, 0o666), table, rows, is_file=True)
        part.replace(final)
        files.flush_folder(final.parent)
    except (OSError, RuntimeError) as error:
        raise _results_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            if part is not None:
                part.unlink(missing_ok=True)


def _write_rows(descriptor: int, table: Table, rows: Iterable[tuple[Row, RowResult]], *, is_file: bool = False) -> None:
    form = table.format
    encoding = "utf-8-sig" if form.has_bom else "utf-8"
    # A broken character in a provider's message must not cost the file.
    with os.fdopen(descriptor, "w", encoding=encoding, errors="backslashreplace", newline="") as file:
        if is_file:
            files.lock(descriptor)
        if form.names_delimiter:
            file.write(f"sep={form.delimiter}{form.line_end}")
        writer = csv.writer(_LineEnds(file, form.line_end), delimiter=form.delimiter)
        headings = [heading.name.strip() for heading in table.headings]
        writer.writerow(map(_defuse, (*headings, *_result_names(headings))))
        exact: frozenset[int] | None = None
        for row, result in rows:
            exact = row.columns.exact if exact is None else exact
            cells = (text if at in exact else _show_marks(text) for at, text in enumerate(map(_text, row.cells)))
            found = (_show_hidden(getattr(result, name)) for name in _WRITTEN)
            writer.writerow(map(_defuse, (*cells, *found)))
        file.flush()
        if is_file:
            os.fsync(descriptor)


class _LineEnds:
    """Ends lines as the table does. The writer must believe in CR LF, for else it leaves a CR in a cell unquoted."""

    def __init__(self, file: TextIO, line_end: str) -> None:
        self._file = file
        self._line_end = line_end

    def write(self, text: str) -> int:
        return self._file.write(text.removesuffix("\r\n") + self._line_end)


def _result_names(headings: Collection[str]) -> list[str]:
    """The names of the result columns; one that the table has already, as earlier results do, gets a prefix."""
    found = []
    for name in _WRITTEN:
        numbers = (f"seedream_{name}_{number}" for number in itertools.count(2))
        found.append(next(n for n in itertools.chain((name, f"seedream_{name}"), numbers) if n not in headings))
    return found


def _show_marks(text: str) -> str:
    """A cell of the table, with marks that change how others are read as visible escapes."""
    return text if text.isascii() else _MARKS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _show_hidden(text: str) -> str:
    """A text of the provider's as the screen shows it, but for line breaks and tabs, which a cell may hold."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        piece if piece in {"\n", "\t"} else clean_path(piece) for piece in _LAYOUT.split(text.replace("\r\n", "\n"))
    )


def _defuse(text: str) -> str:
    """A cell that no spreadsheet takes for a formula, and no terminal for a command; numbers stay numbers."""
    text = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
    if not text.lstrip(" ").startswith(_FORMULA) or _CSV_NUMBER.fullmatch(text):
        return text
    return f"'{text}"
