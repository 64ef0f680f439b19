"""The table of results: the table's own columns, and what became of each row."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from ..errors import FileError, InputError, Problem
from ..storage import filesystem
from ..storage.image_info import SPELLINGS
from ..text import clean_path
from .options import HOME
from .table import Row, Table
from .table_source import cell_text


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
    """That a file lies where the results go which no batch wrote: it would be replaced. Empty ones are nobody's. Nor do
    they go by the name of an image, or to a ledger.

    Results are known by their columns, behind whatever columns their table has.
    """
    if path.suffix.lower() in SPELLINGS:
        message = f"{path} is the name of an image, and the results are a table"
        return [Problem("results", message, "name a file such as results.csv with --results")]
    if HOME in path.absolute().parts[:-1]:
        message = f"{path} is in {HOME}, where a batch keeps its ledger"
        return [Problem("results", message, "name another place with --results")]
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
        target = filesystem.final_target(path)
        return target is not None and target.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False


_RESULTS_HINT = "close it where it is open; no image is lost, and the same command writes it again"


def open_results(path: Path) -> int | None:
    """A descriptor to write the results to, where they go to no file: a pipe is opened before anything is paid, so that
    its reader waits for them. Raises `FileError`.
    """
    try:
        return filesystem.open_stream(path) if filesystem.final_target(path) is None else None
    except OSError as error:
        raise _results_error(path, error, "name another place with --results") from error


def _results_error(path: Path, error: OSError, hint: str = _RESULTS_HINT) -> FileError:
    return FileError(f"cannot write {path}: {filesystem.reason(error)}", hint=hint)


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
            with os.fdopen(stream, "wb", buffering=0) as pipe:
                _write_rows(pipe, table, rows)
        except OSError as error:
            raise _results_error(path, error, "no image is lost, and the same command writes it again") from error
        return
    try:
        final = filesystem.final_target(path) or path
        if foreign_results(final):
            # It came there since the run began, and may be what was paid for.
            taken = f"cannot write {path}: another file has taken its place meanwhile"
            raise FileError(taken, hint="give --results another name: the same command writes them")
        with filesystem.atomic_file(final, 0o666) as file:
            _write_rows(file, table, rows)
    except OSError as error:
        raise _results_error(path, error) from error


def _write_rows(binary: BinaryIO, table: Table, rows: Iterable[tuple[Row, RowResult]]) -> None:
    form = table.format
    encoding = "utf-8-sig" if form.has_bom else "utf-8"
    # A broken character in a provider's message must not cost the file.
    number = binary.fileno()
    with os.fdopen(number, "w", encoding=encoding, errors="backslashreplace", newline="", closefd=False) as file:
        if form.names_delimiter:
            file.write(f"sep={form.delimiter}{form.line_end}")
        writer = csv.writer(_LineEnds(file, form.line_end), delimiter=form.delimiter)
        headings = [heading.name.strip() for heading in table.headings]
        writer.writerow(map(_defuse, (*headings, *_result_names(headings))))
        exact: frozenset[int] | None = None
        for row, result in rows:
            exact = row.columns.exact if exact is None else exact
            cells = (text if at in exact else _show_marks(text) for at, text in enumerate(map(cell_text, row.cells)))
            found = (_show_hidden(getattr(result, name)) for name in _WRITTEN)
            writer.writerow(map(_defuse, (*cells, *found)))


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
