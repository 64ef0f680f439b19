"""Tables of requests: CSV, TSV and JSON Lines in, read row by row and never held; the same table with results out.

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
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Self, TextIO, TypeVar

from . import files, names
from .errors import FileError, InputError, Problem
from .inputs import Option
from .request import Draft

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
    """How a table is written. `encoding` is Python's name for it; `header_lines` are the lines above the first row."""

    kind: Literal["csv", "jsonl"]
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
        with self._turn:
            self._file.seek(offset)
            count = self._file.readinto(buffer) or 0
        if self._stamp not in {None, self._state()}:
            hint = "start again: rows that are done are not done twice"
            raise InputError([Problem("table", f"{self.shown} was changed while it was in use", hint)])
        return count

    def is_same(self, path: Path) -> bool:
        """Whether the path leads to this very file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except OSError:
            return False

    def open_text(self, encoding: str) -> TextIO:
        """The text from its beginning. Bytes that are no text become lone surrogates, which are told with their line."""
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
        file = _open_file(name)
        return file if isinstance(file, _Source) else _Source(name, file, is_copy=True)
    except (OSError, ValueError, RuntimeError) as error:
        # ValueError: a NUL in the name; RuntimeError: the "~name" of a user that is not there.
        reason = files.reason(error) if isinstance(error, OSError) else str(error).lower()
        shown = "standard input" if name == "-" else name
        raise InputError([Problem("table", f"cannot read {shown}: {reason}")]) from error


def _open_file(name: str) -> _Source | io.FileIO:
    with contextlib.ExitStack() as stack:
        if name == "-":
            stream: Any = sys.stdin.buffer
        else:
            stream = stack.enter_context(io.FileIO(Path(name).expanduser(), "r"))
            if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                stack.pop_all()
                return _Source(name, stream, is_copy=False)
        copy = tempfile.TemporaryFile(buffering=0)
        shutil.copyfileobj(stream, copy, 1 << 20)
        return copy  # type: ignore[return-value]


_OTHERS = {
    b"PK\x03\x04": ("an Excel or zip file", "save it as CSV UTF-8"),
    b"\xd0\xcf\x11\xe0": ("an old Excel file", "save it as CSV UTF-8"),
    b"\x1f\x8b": ("compressed", "unpack it: gzip -dc FILE | seedream batch -"),
    b"\xff\xfe\0\0": ("UTF-32", "save it as UTF-8"),
    b"\0\0\xfe\xff": ("UTF-32", "save it as UTF-8"),
}
_KINDS: Mapping[str, Literal["csv", "jsonl"]] = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def _recognise(source: _Source) -> Format:
    """Encoding and kind, by the first bytes and the suffix."""
    head = bytearray(4096)
    del head[source.read(0, head) :]
    for magic, (what, hint) in _OTHERS.items():
        if head.startswith(magic):
            raise InputError([Problem("table", f"{source.shown} is {what}, no table in plain text", hint)])
    encoding = "utf-8-sig" if head.startswith(b"\xef\xbb\xbf") else "utf-8"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    start = head.decode(encoding, "replace").lstrip()
    if not start:
        raise InputError([Problem("table", f"{source.shown} is empty", "its first line names the columns")])
    suffix = Path(source.shown).suffix.lower()
    kind = _KINDS.get(suffix, "jsonl" if start[0] in "{[" else "csv")
    if kind == "jsonl" and start[0] == "[":
        hint = "make lines of it: jq -c '.[]' FILE | seedream batch -"
        raise InputError([Problem("table", f"{source.shown} holds a JSON list, not one object a line", hint)])
    return Format(kind, encoding, "\t" if suffix == ".tsv" else ",")


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
        self._ended = False

    def __iter__(self) -> Iterator[str]:
        for line in iter(functools.partial(self._file.readline, LINE_MOST), ""):
            self.number += 1
            if len(line) == LINE_MOST:
                raise _TooLongError
            if "\0" not in line and line.isascii():
                yield line
            else:
                yield self._look_at(line)
            if self._ended:
                return

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

    def end(self) -> None:
        """Read no further: what follows cannot be told apart any more."""
        self._ended = True


_ENCODING_HINT = 'save the table as UTF-8 (in Excel: "CSV UTF-8")'
_QUOTE_HINT = 'inside quotes a quote is written twice: "a ""red"" fox"'
_END_HINT = "a quote that is never closed makes one cell of all that follows; the rows below were not looked at"
R = TypeVar("R")


def _read_next(reader: Iterator[R], lines: _Lines) -> R | Problem | None:
    """The next record, or what is wrong with it; None at the end."""
    line = lines.number + 1
    try:
        return next(reader, None)
    except _TooLongError:
        message, hint = f"the line is longer than {LINE_MOST:,} characters", "the rows below were not looked at"
    except UnicodeDecodeError:
        message, hint = "the bytes from here on are no text", _ENCODING_HINT
    except csv.Error as error:
        message, hint = str(error), _QUOTE_HINT
        if "field limit" in message:
            lines.end()
            message, hint = f"a cell has more than {CELL_MOST:,} characters", _END_HINT
        elif "end of data" in message:
            message = "a quote in this row is never closed"
        elif "expected after" in message:
            line, message = lines.number, "a quote within a cell is not doubled"
    return Problem("", message, hint, origin=f"{lines.shown}:{line}")


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
    header, size = list[str](), 0
    while True:
        line = _read_next(texts, lines)
        if isinstance(line, Problem):
            raise InputError([line])
        size += len(line or "")
        if line is None or size > CELL_MOST:
            hint = "the first line names the columns"
            message = "a quote in the header is never closed" if header else "the table has no header"
            raise InputError([Problem("", message, hint, origin=f"{lines.shown}:1")])
        header.append(line)
        text = "".join(header)
        if text.count('"') % 2 == 0:
            if text.strip(' \t\r\n,;"\ufeff'):
                return header
            header, size = [], 0


def _find_delimiter(text: str, usual: str) -> str:
    """The one of comma, semicolon and tab that parts the header most often, outside of quotes."""
    bare = re.sub('"[^"]*"', "", text)
    return max(dict.fromkeys((usual, ",", ";", "\t")), key=bare.count)


def _read_json_header(source: _Source, form: Format) -> tuple[Format, list[Heading]]:
    """Every key that any line has, in order of first use. Lines that are wrong are told when rows are read."""
    found: dict[str, Heading] = {}
    with source.open_text(form.encoding) as file:
        lines = _Lines(source, file)
        texts = iter(lines)
        while isinstance(text := _read_next(texts, lines), str):
            row = {} if text.isspace() else _parse_object(text)
            if isinstance(row, dict) and not row.keys() <= found.keys():
                origin = f"{source.shown}:{lines.number}"
                found |= {key: Heading(key, origin) for key in row if key not in found}
                if len(found) > COLUMNS_MOST:
                    break
    return form, list(found.values())


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


# --- what the columns mean ------------------------------------------------------------------------------------------

Role = Literal["variable", "id", "prompt", "value", "switch", "image", "list", "extra", "pair"]


@dataclass(frozen=True, slots=True)
class Column:
    """What a column sets: the option `key`, by its kind; `pair` is one key of the body, `variable` sets nothing.

    `number` orders image_1, image_2, …; it is 0 for `image`, whose cells may hold several, joined by "|".
    """

    name: str
    role: Role = "variable"
    key: str = ""
    negative: bool = False
    number: int = 0

    @property
    def is_free(self) -> bool:
        """Whether rows that differ only here share one judgment: the value has no bearing on other options."""
        return self.key in _STAND_INS


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
        return tuple(piece for piece in self.template or () if isinstance(piece, Slot))

    @functools.cached_property
    def options_at(self) -> tuple[int, ...]:
        """Where the columns that set something stand; pictures in the order of their numbers."""
        setting = [at for at, column in enumerate(self.columns) if column.role not in {"variable", "id", "prompt"}]
        return tuple(sorted(setting, key=lambda at: self.columns[at].number))

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """The options that columns set."""
        return tuple({column.key: None for column in self.columns if column.key})

    @functools.cached_property
    def shape_of(self) -> Callable[[Sequence[Cell]], tuple[Cell, ...]]:
        """Takes the cells that decide on a row's judgment: those of all options but the free ones."""
        at = [at for at in self.options_at if not self.columns[at].is_free]
        if len(at) > 1:
            return operator.itemgetter(*at)
        return lambda cells: tuple(cells[number] for number in at)

    @functools.cached_property
    def at(self) -> Mapping[str, int]:
        """Where `id`, `prompt`, `seed` and `name` stand."""
        return {column.key or column.role: at for at, column in enumerate(self.columns)}


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
    columns = planner.plan(planner.read_maps(maps))
    pieces = None
    if template is not None:
        pieces = planner.compile(template, columns, variables or {})
    elif needs_prompt and not {"prompt", "layers"} & {column.key for column in columns}:
        planner.miss_prompt(columns)
    planned = Columns(tuple(columns), pieces)
    planner.look_for_slips(planned)
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
                self.complain("map", f"there is no column {name}", _guess(name, known, "the columns are"), "--map")
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
            return Column(name, "pair", name[len("extra.") :].strip())
        option = self.options.get("count" if normal == "n" else normal)
        if option is None:
            return Column(name)
        if option.key in {"image", "extra"}:
            return Column(name, "image" if option.key == "image" else "extra", option.key)
        kind: Role = "switch" if option.kind == "switch" else "list" if option.kind == "list" else "value"
        return Column(name, kind, option.key, option.negative)

    def plan(self, mapped: Mapping[str, str]) -> list[Column]:
        """Every column, each name and each option once."""
        columns, first = list[Column](), dict[tuple[str, str, int], str]()
        for number, heading in enumerate(self.headings, 1):
            name = heading.name.strip()
            column = replace(self.understand(mapped.get(name, name)), name=name)
            if mapped.get(name) == "":
                column = Column(name)
            columns.append(column)
            self.check(column, heading, number, mapped)
            target = (column.role, column.key or name, column.number)
            earlier = first.setdefault(target, name)
            if len(first) == len(columns) or not name:
                continue
            first[("", str(number), 0)] = name
            if column.role == "variable":
                message = f"two columns are called {name}"
            else:
                message = f"the columns {earlier} and {name} set the same option"
            self.complain(name, message, "rename or delete one of them", heading.origin)
        return columns

    def check(self, column: Column, heading: Heading, number: int, mapped: Mapping[str, str]) -> None:
        """A column on its own: it has a name, and may stand in a table."""
        if not column.name:
            hint = "give it a name, or delete it"
            self.complain("", f"column {number} has no name", hint, heading.origin)
        target = _normal(mapped.get(column.name, column.name))
        key = self.options[target].key if target in self.options else target.replace("-", "_")
        if mapped.get(column.name) != "" and key in self.run_level:
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

    def look_for_slips(self, planned: Columns) -> None:
        """Warn of variables that are nearly an option, unless the template uses them."""
        for heading in self.headings:
            name = heading.name.strip()
            near = difflib.get_close_matches(_normal(name), self.known(), 1, 0.8) if name in planned.unused else []
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

    def is_file(self, path: Path) -> bool:
        """Whether the path is the table itself."""
        return self._source.is_same(path)

    def rows(self, columns: Columns) -> Iterator[Row]:
        """Every row from the first, those that cannot be read too: these hold their problems and no cells.

        Raises `InputError` where the file was changed since it was opened.
        """
        records = self._json_records(columns) if self.format.kind == "jsonl" else self._csv_records()
        for number, (line, cells, problems) in enumerate(records, 1):
            yield Row(self, columns, number, line, cells, problems)

    def _csv_records(self) -> Iterator[_Record]:
        form, width = self.format, len(self.headings)
        with self._source.open_text(form.encoding) as file:
            lines = _Lines(self._source, file)
            texts = iter(lines)
            deque(itertools.islice(texts, form.header_lines), 0)
            lines.take_problems()
            csv.field_size_limit(CELL_MOST)
            reader = csv.reader(texts, delimiter=form.delimiter, strict=True)
            while True:
                line = lines.number + 1
                cells = _read_next(reader, lines)
                if cells is None:
                    return
                problems = lines.take_problems()
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
        message = f"the row has {_count(count, 'cell')}, but the header names {_count(width, 'column')}"
        return fitted, (*problems, Problem("", message, hint, origin=f"{self.name}:{line}"))

    def _json_records(self, columns: Columns) -> Iterator[_Record]:
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


_Record = tuple[int, Sequence[Cell], tuple[Problem, ...]]


def open_table(name: str) -> Table:
    """A table by its file's name, or standard input for `-`. Raises `InputError` where it is none.

    The kind is told by the suffix (.csv .tsv .jsonl .ndjson), else by the first bytes.
    """
    source = _open_source(name)
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        form = _recognise(source)
        read = _read_json_header if form.kind == "jsonl" else _read_csv_header
        form, headings = read(source, form)
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
        hint = "write one object on each line: jq -c . does so" if text.rstrip() in {"{", "["} else ""
        return [""] * len(keys), [Problem("", row, hint, origin=origin)]
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
        return _number(value, column)
    if isinstance(value, dict):
        return Problem(column.name, f"{column.name} takes no object", "only extra and extra.KEY take one")
    if isinstance(value, list):
        if column.role not in {"image", "list", "extra"} or column.number:
            return Problem(column.name, f"{column.name} takes one value, not a list", "only image takes several")
        if not all(isinstance(item, str) for item in value):
            return Problem(column.name, f"{column.name} takes a list of texts")
        return tuple(value)
    return str(value)


def _number(value: float, column: Column) -> Cell | Problem:
    """A number as it is written. Python reads 1e999 as infinity."""
    text = json.dumps(value)
    return Problem(column.name, "the number is too large") if "Inf" in text else text


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


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it stands: its number from 1, the line its record starts at, its cells, and what is wrong with it.

    The problems are those of its reading. What its options are worth is judged by a `Checker`.
    """

    table: Table
    columns: Columns
    number: int
    line: int
    cells: Sequence[Cell] = field(repr=False)
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
        return self.text("id").strip()

    @property
    def prompt(self) -> str:
        """The template filled in, or else the cell as it stands; "" where there is neither."""
        if self.columns.template is None:
            return self.text("prompt")
        cells = self.cells
        return "".join(
            piece if isinstance(piece, str) else _text(cells[piece.at]) or piece.otherwise
            for piece in self.columns.template
        )

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
        reader = _OptionReader(self)
        for at in self.columns.options_at:
            cell = self.cells[at]
            if _text(cell).strip():
                reader.take(self.columns.columns[at], cell)
        if prompt := self.prompt:
            reader.values["prompt"] = prompt
        found = (*reader.values, *reader.switches, *reader.lists)
        draft = Draft(reader.values, reader.switches, reader.lists, dict.fromkeys(found, self.origin))
        return draft, reader.problems

    def draft(self, base: Draft) -> Draft:
        """The row over the options of the run, which hold where it sets nothing; what the body gets is joined."""
        own, _ = self.read_options()
        return _overlay(base, own, self)


def _overlay(base: Draft, own: Draft, row: Row) -> Draft:
    """A row's own options over the run's. What nobody set is missing in the row, so that is its place."""
    lists = {**base.lists, **own.lists}
    if "extra" in own.lists:
        lists["extra"] = (*base.lists.get("extra", ()), *own.lists["extra"])
    nowhere = dict.fromkeys((*row.columns.keys, "prompt", "image"), row.origin)
    return replace(
        base,
        values={**base.values, **own.values},
        switches={**base.switches, **own.switches},
        lists=lists,
        origins={**nowhere, **base.origins, **own.origins},
    )


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
        if column.role == "value":
            self.values[column.key] = text
        elif column.role == "switch":
            self.take_switch(column, text)
        elif column.role == "image":
            parts = text.split("|") if isinstance(cell, str) and not column.number else [text]
            self.add("image", self.locate(column, parts if isinstance(cell, str) else cell))
        elif column.role == "pair":
            self.add("extra", [f"{column.key}={_as_json(text, is_json=isinstance(cell, Json))}"])
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


class Judged(NamedTuple, Generic[T]):
    """A row and what was found. `value` is the judge's for its shape, None where the row cannot be read.

    `prompt` and `seed` are the parts of its request that the shape leaves out ("" where there is none); the name is
    `row.text("name")`. A tuple, since one is made for each of a hundred thousand rows.
    """

    row: Row
    value: T | None
    problems: Sequence[Problem]
    prompt: str = ""
    seed: str = ""


@dataclass(frozen=True, slots=True)
class _Shaped(Generic[T]):
    """The judgment of a shape, with the place of the row that it was made for."""

    value: T
    problems: tuple[Problem, ...]
    origin: str


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
        self._kept: dict[tuple[object, ...], _Shaped[T]] = {}
        self._base_prompt = base.values.get("prompt", "")
        self._base_seed = base.values.get("seed", "")
        self._base_name = base.values.get("name", "")

    def judge(self, row: Row) -> Judged[T]:
        """The row with the judgment of its shape; the problems are placed where the row stands."""
        prompt = row.prompt or self._base_prompt
        seed, name = row.text("seed") or self._base_seed, row.text("name") or self._base_name
        number = _plain_seed(seed) if seed else ""
        marks = {
            "prompt": "…" if prompt and not prompt.isspace() else prompt,
            "seed": "0" if number else seed,
            "name": "name" if name and _PLAIN_NAME.fullmatch(name) else name,
        }
        key = (row.shape, *marks.values())
        shaped = self._kept.get(key)
        if shaped is None:
            shaped = self._keep(key, row, marks)
        problems = [_move(problem, shaped.origin, row.origin) for problem in shaped.problems] if shaped.problems else ()
        return Judged(row, shaped.value, problems, prompt, number)

    def _keep(self, key: tuple[object, ...], row: Row, marks: Mapping[str, str]) -> _Shaped[T]:
        own, wrong = row.read_options()
        draft = _overlay(self.base, own, row)
        values = {**draft.values, **{name: mark for name, mark in marks.items() if name in draft.values}}
        value, problems = self._judge(replace(draft, values=values))
        shaped = _Shaped(value, (*wrong, *problems), row.origin)
        # Pictures in data URIs would make the keys as large as the table.
        if len(repr(key)) <= 4096:
            if len(self._kept) >= self._most:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = shaped
        return shaped


_PLAIN_NAME = re.compile(r"\w[\w -]*(/\w[\w -]*)*")
"""A name without fields, dots and signs: whatever template rules there are, it keeps them."""


@functools.lru_cache(maxsize=256)
def _plain_seed(text: str) -> str:
    """A seed that every model can take, in one spelling; "" for any other text, which is judged as it stands."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,12}\s*", text, re.ASCII):
        return ""
    return str(int(text)) if -1 <= int(text) < 2**31 else ""


def _move(problem: Problem, there: str, here: str) -> Problem:
    """A problem of one row as that of another of the same shape."""
    if there == here or (problem.origin != there and there not in problem.message):
        return problem
    message = re.sub(rf"{re.escape(there)}(?!\d)", lambda _: here, problem.message)
    return replace(problem, message=message, origin=here if problem.origin == there else problem.origin)


class Checker(Generic[T]):
    """Checks the rows of one pass: each on its own, and what only the whole table shows."""

    def __init__(self, shapes: Shapes[T]) -> None:
        self._shapes = shapes
        self._ids = _Numbers()
        self._told: set[Problem] = set()
        self._empty: dict[Slot, tuple[str, int]] = {}

    def judge(self, row: Row) -> Judged[T]:
        """The row judged. A problem of an option of the run, not of the row, is told at the first row alone."""
        if row.problems:
            return Judged(row, None, row.problems)
        for slot in row.columns.slots:
            if not row.cells[slot.at] and not slot.otherwise:
                first, count = self._empty.get(slot, (row.origin, 0))
                self._empty[slot] = first, count + 1
        judged = self._shapes.judge(row)
        twice = self._find_twice(row)
        if not (judged.problems or twice):
            return judged
        problems = [problem for problem in judged.problems if problem.origin == row.origin or self._is_new(problem)]
        return judged._replace(problems=[*problems, *twice])

    def _is_new(self, problem: Problem) -> bool:
        if problem in self._told:
            return False
        if len(self._told) < COLUMNS_MOST:
            self._told.add(problem)
        return True

    def _find_twice(self, row: Row) -> list[Problem]:
        name = row.id
        if not name:
            return []
        digest = int.from_bytes(hashlib.blake2b(_bytes(name), digest_size=8).digest())
        line = self._ids.get(digest)
        if not line:
            self._ids.put(digest, row.line)
            return []
        message = f"the id {name[:80]!r} stands in line {line} already"
        return [Problem("id", message, "give every row an id of its own", origin=row.origin)]

    def close(self) -> list[Problem]:
        """What shows only after the last row: variables that were empty, each once with the number of rows."""
        problems = []
        for slot, (origin, count) in self._empty.items():
            message = f"{{{slot.name}}} is empty here" + (f" and in {count - 1:,} more rows" if count > 1 else "")
            hint = f"--var {slot.name}=… gives a text for empty cells"
            problems.append(Problem(slot.name, message, hint, "warning", origin, "variable_empty"))
        return problems


def check_table(
    table: Table, columns: Columns, base: Draft, judge: Callable[[Draft], Sequence[Problem]]
) -> Iterator[Problem]:
    """Every problem of every row, with its place, in the order of the rows; nothing is held."""
    checker = Checker(Shapes(base, lambda draft: (None, judge(draft))))
    is_empty = True
    for row in table.rows(columns):
        is_empty = False
        yield from checker.judge(row).problems
    yield from checker.close()
    if is_empty:
        yield Problem("", "the table has a header and no rows", severity="warning", origin=table.name, code="no_rows")


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
    texts = (*parts, row_id, str(occurrence))
    # The lengths in front keep two rows apart whose texts are only divided differently.
    lengths = ",".join(str(len(text)) for text in texts)
    return hashlib.blake2b(_bytes("".join((lengths, ":", *texts))), digest_size=16).hexdigest()


def shard_of(key: str, count: int) -> int:
    """Which of `count` shards, from 0, a row belongs to, by its key alone."""
    return int(key, 16) % count


class Identities:
    """Gives the rows of one pass their keys, and numbers those that are equal: two equal rows are two pictures."""

    def __init__(self) -> None:
        self._times = _Numbers()

    def key(self, row: Row, parts: Sequence[str]) -> str:
        """The row's key; `parts` as for `row_key`. A row with an id is no other's equal."""
        if name := row.id:
            return row_key(parts, name)
        first = row_key(parts)
        digest = int(first[:16], 16)
        times = self._times.get(digest) + 1
        self._times.put(digest, times)
        return first if times == 1 else row_key(parts, "", times)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class _Numbers:
    """A small number for each 64-bit digest, 0 where there is none. A dict of 100,000 would take 15 MiB, this takes 3.

    Digests lie in the first free place behind the one that their last bits name.
    """

    def __init__(self) -> None:
        self._make_room(1024)

    def _make_room(self, places: int) -> None:
        self._digests = array("Q", bytes(8 * places))
        self._numbers = array("I", bytes(array("I").itemsize * places))
        self._used = 0

    def _find(self, digest: int) -> int:
        digests = self._digests
        last = len(digests) - 1
        at = digest & last
        while (there := digests[at]) and there != digest:
            at = (at + 1) & last
        return at

    def get(self, digest: int) -> int:
        """The number of a digest."""
        return self._numbers[self._find(digest or 1)]

    def put(self, digest: int, number: int) -> None:
        """Set the number of a digest."""
        # Zero marks a free place.
        digest = digest or 1
        at = self._find(digest)
        if not self._digests[at]:
            self._used += 1
            self._digests[at] = digest
        self._numbers[at] = number
        if self._used * 10 > len(self._digests) * 7:
            digests, numbers = self._digests, self._numbers
            self._make_room(2 * len(digests))
            for old, value in zip(digests, numbers, strict=True):
                if old:
                    self.put(old, value)


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


_RESULTS = ("status", "path", "error", "provider_code", "billed", "cost", "request_id")
_CSV_NUMBER = re.compile(r"\s*[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]+)?%?\s*", re.ASCII)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def check_results(path: Path, table: Table) -> list[Problem]:
    """What speaks against writing the results there, before anything is paid."""
    if table.is_file(path):
        return [Problem("results", f"the results would replace the table {path}", "name another file with --results")]
    if path.is_dir():
        return [Problem("results", f"{path} is a folder", "name a file with --results")]
    return []


def write_results(path: Path, table: Table, rows: Iterable[tuple[Row, RowResult]]) -> None:
    """Write the table with what became of its rows, whole or not at all: the earlier results stand until then.

    Columns, order and delimiter are the table's (commas for JSON). Raises `FileError`, and `InputError` where the
    path is the table itself.
    """
    if problems := check_results(path, table):
        raise InputError(problems)
    # The name is that of pictures' parts, so that what a killed run leaves is swept away with those.
    part = path.with_name(f".seedream-{os.urandom(6).hex()}.part")
    try:
        _write_part(part, table, rows)
        part.replace(path)
        files.flush_folder(path.parent)
    except OSError as error:
        hint = "is it open in another program? no picture is lost: the same command writes it again"
        raise FileError(f"cannot write {path}: {files.reason(error)}", hint=hint) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _write_part(part: Path, table: Table, rows: Iterable[tuple[Row, RowResult]]) -> None:
    form = table.format
    encoding = "utf-8-sig" if form.has_bom else "utf-8"
    descriptor = files.create(part, 0o666)
    # A broken character in a provider's message must not cost the file.
    with os.fdopen(descriptor, "w", encoding=encoding, errors="backslashreplace", newline="") as file:
        files.lock(descriptor)
        if form.names_delimiter:
            file.write(f"sep={form.delimiter}{form.line_end}")
        writer = csv.writer(_LineEnds(file, form.line_end), delimiter=form.delimiter)
        headings = [heading.name.strip() for heading in table.headings]
        writer.writerow(map(_defuse, (*headings, *_result_names(headings))))
        for row, result in rows:
            texts = (*map(_text, row.cells), *(getattr(result, name) for name in _RESULTS))
            writer.writerow(map(_defuse, texts))
        file.flush()
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
    for name in _RESULTS:
        numbers = (f"seedream_{name}_{number}" for number in itertools.count(2))
        found.append(next(n for n in itertools.chain((name, f"seedream_{name}"), numbers) if n not in headings))
    return found


def _defuse(text: str) -> str:
    """A cell that no spreadsheet takes for a formula; numbers stay numbers."""
    if not text.lstrip(" ").startswith(_FORMULA) or _CSV_NUMBER.fullmatch(text):
        return text
    return f"'{text}"
