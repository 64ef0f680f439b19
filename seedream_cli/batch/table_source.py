"""The bytes of a table as lines: its encoding, its kind, its header. Problems name their line."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from ..errors import FileError, InputError, Problem
from ..storage import filesystem
from ..storage.file_kinds import HEAD, TAIL, find_absent, find_kind

CELL_MOST = 1024 * 1024
"""Characters of one cell. A quote that is never closed is found out here instead of taking all memory."""

LINE_MOST = 4 * CELL_MOST

COLUMNS_MOST = 1000

SHOWN_MOST = 50
"""Problems that are told one by one; the rest is counted."""

Cell = str | tuple[str, ...]
"""A cell as text; a list, which only JSON has, as a tuple of texts."""


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


class TableFile:
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
            raise FileError(f"cannot read {self.shown} any more: {filesystem.reason(error)}", hint=again) from error
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
        """The text from its beginning. Bytes that are no text become lone surrogates, for `Lines` to find."""
        window = io.BufferedReader(_Window(self), 1 << 16)
        # Only UTF-8 can keep any broken byte; a broken pair of UTF-16 is a lone surrogate as it stands.
        errors = "surrogatepass" if encoding == "utf-16" else "surrogateescape"
        return io.TextIOWrapper(window, encoding=encoding, errors=errors, newline="")

    def close(self) -> None:
        """Let go of the file; a copy is gone with that."""
        self._file.close()


class _Window(io.RawIOBase):
    """A view of a source with a position of its own."""

    def __init__(self, source: TableFile) -> None:
        self._source = source
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._source.read(self._offset, buffer)
        self._offset += count
        return count


def open_source(name: str) -> TableFile:
    """The file, or a nameless temporary copy of what can be read only once: standard input, a pipe."""
    try:
        if name == "-":
            return TableFile(name, _copy(sys.stdin.buffer), is_copy=True)
        return _open_file(name)
    except (OSError, ValueError, RuntimeError) as error:
        # ValueError: a NUL in the name; RuntimeError: the "~name" of a user that is not there.
        reason = filesystem.reason(error) if isinstance(error, OSError) else str(error).lower()
        shown = "standard input" if name == "-" else name
        absent = find_absent(Path(name)) if isinstance(error, FileNotFoundError) and name != "-" else None
        if absent is not None:
            raise InputError([Problem("table", f"{shown} is {absent.what}", absent.hint)]) from error
        raise InputError([Problem("table", f"cannot read {shown}: {reason}")]) from error


def _open_file(name: str) -> TableFile:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(io.FileIO(Path(name).expanduser(), "r"))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return TableFile(name, _copy(file), is_copy=True)
        stack.pop_all()
    return TableFile(name, file, is_copy=False)


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


def recognise(source: TableFile, *, is_lines: bool) -> Format:
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


def _refuse_others(source: TableFile, head: bytes) -> None:
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


def _refuse_table(source: TableFile, start: str) -> None:
    """Refuse a table that is called .txt: every line of it, its header too, would be taken for a prompt and paid."""
    first = start.split("\n", 1)[0].strip()
    cells = {cell.strip().strip('"').casefold() for cell in re.split(r"[,;\t]", first)}
    what = ""
    if first.startswith("{") and isinstance(parse_object(first), dict):
        what = "holds a JSON object on its first line: call it .jsonl"
    elif len(cells) > 1 and "prompt" in cells:
        what = "names columns on its first line: call it .csv (or .tsv)"
    if what:
        message = f"{source.shown} is read as one prompt a line, but {what}"
        raise InputError([Problem("table", message, "or add --lines where each line is a prompt all the same")])


class _TooLongError(Exception):
    """A line that is longer than any table's."""


SURROGATE = re.compile("[\ud800-\udfff]")


class Lines:
    """The physical lines of a table, counted, and what is wrong with those read since it was last asked."""

    def __init__(self, source: TableFile, file: TextIO) -> None:
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

    def _look_at(self, line: str) -> str:
        """Note what of a line is no text; the line without NULs, at which csv modules used to stop."""
        if "\0" in line:
            self.add_error("the line holds zero bytes, so it is no text", "save the table as UTF-8")
        if SURROGATE.search(line):
            self.add_error("the line holds bytes that are no text in UTF-8", _ENCODING_HINT)
        return line.replace("\0", "\ufffd")

    def add_error(self, message: str, hint: str) -> None:
        """Note a problem of the line that was read last."""
        self._spoiled.append(Problem("", message, hint, origin=f"{self.shown}:{self.number}"))

    def take_problems(self) -> tuple[Problem, ...]:
        """What is wrong with the lines read since the last time."""
        if not self._spoiled:
            return ()
        found, self._spoiled = tuple(self._spoiled), []
        return found


_ENCODING_HINT = 'save the table as UTF-8 (in Excel: "CSV UTF-8")'

_QUOTE_HINT = 'inside quotes a quote is written twice: "a ""red"" fox"'

_END_HINT = "a quote that is never closed makes one cell of all that follows; the rows below were not looked at"

R = TypeVar("R")


def read_next(reader: Iterator[R], lines: Lines) -> R | Problem | None:
    """The next record, or what is wrong with it; None at the end."""
    line = lines.number + 1
    try:
        return next(reader, None)
    except (_TooLongError, UnicodeDecodeError, csv.Error) as error:
        return _unreadable(error, lines.shown, line, lines.number)


def read_records(reader: Iterator[R], lines: Lines) -> Iterator[tuple[int, R | Problem, tuple[Problem, ...]]]:
    """Each record with the line it starts at and what is wrong with its lines, as far as records can be told apart."""
    line = lines.number + 1
    while (record := read_next(reader, lines)) is not None:
        yield line, record, lines.take_problems()
        if isinstance(record, Problem) and record.hint == _END_HINT:
            return
        line = lines.number + 1


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


def _read_csv_header(source: TableFile, form: Format) -> tuple[Format, list[Heading]]:
    """The delimiter, found out from the header alone, and the header's names."""
    with source.open_text(form.encoding) as file:
        lines = Lines(source, file)
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
    cells = read_next(csv.reader(header, delimiter=form.delimiter, strict=True), lines)
    if isinstance(cells, Problem) or cells is None:
        raise InputError([cells] if cells else [])
    # Excel writes delimiters behind the last column where cells were in use once; cells below them are looked at.
    while cells and not cells[-1].strip():
        cells.pop()
    return form, [Heading(cell, f"{source.shown}:{before + 1}") for cell in cells]


def _header_lines(texts: Iterator[str], lines: Lines) -> list[str]:
    """The lines of the next record that holds anything: it goes on while a quote is open."""
    header, size, quotes = list[str](), 0, 0
    while True:
        line = read_next(texts, lines)
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


def _read_json_header(source: TableFile, form: Format) -> tuple[Format, list[Heading]]:
    """Every key that any line has, in order of first use. Lines that are wrong are told when rows are read."""
    found, wrong = dict[str, Heading](), list[Problem]()
    with source.open_text(form.encoding) as file:
        lines = Lines(source, file)
        texts = iter(lines)
        while isinstance(text := read_next(texts, lines), str) and len(found) <= COLUMNS_MOST:
            row = {} if text.isspace() else parse_object(text)
            if isinstance(row, dict) and row.keys() <= found.keys():
                continue
            origin = f"{source.shown}:{lines.number}"
            if isinstance(row, dict):
                found |= {key: Heading(key, origin) for key in row if key not in found}
            elif len(wrong) < SHOWN_MOST:
                wrong.append(not_an_object(text, row, origin))
    wrong += [text] if isinstance(text, Problem) else []
    if not found:
        raise InputError(wrong or [Problem("table", f"no line of {source.shown} holds a key with a value")])
    return form, list(found.values())


def _read_lines_header(source: TableFile, form: Format) -> tuple[Format, list[Heading]]:
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


JSON_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def parse_object(text: str) -> dict[str, Any] | str:
    """The object in a line of JSON, or what is wrong with the line."""
    try:
        value = JSON_DECODER.decode(text.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        return f"no JSON at character {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}"
    except RecursionError:
        return "no JSON: it is nested too deeply"
    except ValueError as error:
        return f"no JSON: {str(error).partition(';')[0]}"
    return value if isinstance(value, dict) else "a line must hold one object in braces"


def not_an_object(text: str, message: str, origin: str) -> Problem:
    hint = "write one object on each line: jq -c . does so" if text.strip() in {"{", "["} else ""
    return Problem("", message, hint, origin=origin)


def cell_text(cell: Cell) -> str:
    """A cell as text; several images are joined as a table joins them."""
    return cell if isinstance(cell, str) else "|".join(cell)
