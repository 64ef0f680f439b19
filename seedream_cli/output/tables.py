"""Tables and facts for people: in colours and in the width of a terminal; in a pipe plain, each row whole on its line.

rich draws what a terminal shows; every text goes to it as text, never as markup. It is imported only here and in the
live display, in the bodies that need it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..text import clean
from .console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_GAP = 2

_LAST_COLUMN = 24
"""Columns that the last cell of a row needs at least; with fewer each row becomes a block of its own."""

_STYLES = dict.fromkeys(("ok", "succeeded", "yes", "there"), "green")
_STYLES |= dict.fromkeys(("warn", "partial", "unsaved", "submitted", "running", "unknown"), "yellow")
_STYLES |= dict.fromkeys(("fail", "failed", "gone", "refused"), "red") | {"-": "dim", "ignored": "yellow"}
"""How a cell that says just this is coloured; the word is the sign, and the colour repeats it."""


def print_table(
    console: Console,
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    drop: Sequence[str] = (),
    crops: bool = False,
    indent: int = 0,
    say: Callable[[str], None] | None = None,
) -> None:
    """Rows in columns. A narrow terminal loses the columns of `drop` one by one, then stacks the cells of each row.

    On a terminal the last column is folded, or cut with `crops`; in a pipe nothing is, nor for `say`, which takes plain
    lines instead of standard output. Without `headers` there are none.
    """
    headers = [clean(header, None) for header in headers]
    cells = [[clean(cell, None) for cell in row] for row in rows]
    if say is not None or not _folds(console):
        for line in _plain_lines([headers, *cells] if headers else cells):
            (say or console.out)(f"{' ' * indent}{line}".rstrip())
        return
    whole, width = cells, console.width - indent
    names = list(headers) or [""] * max(map(len, cells), default=0)
    for dropped in (None, *drop):
        kept = [number for number, name in enumerate(names) if name != dropped or dropped is None]
        names, cells = [names[number] for number in kept], [[row[number] for number in kept] for row in cells]
        if not headers or _fits(names, cells, width):
            _show(console, _columns(names, _cropped(names, cells, width) if crops else cells, bool(headers)), indent)
            return
    for number, row in enumerate(whole):
        if number:
            console.out_exactly("")
        print_facts(console, [(name, cell) for name, cell in zip(headers, row, strict=True) if cell], indent=indent)


def print_facts(console: Console, facts: Iterable[tuple[str, str]], *, indent: int = 0) -> None:
    """A `name: value` a line; on a terminal a long value is folded beside its name."""
    named = [(f"{clean(name, None)}:", clean(value, None)) for name, value in facts]
    if not _folds(console):
        for name, value in named:
            console.out(f"{' ' * indent}{name} {value}")
        return
    from rich.table import Table

    for name, value in named:
        table = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row(_text(name, "bold"), _text(value, _STYLES.get(value, "")))
        _show(console, table, indent)


def print_text(console: Console, text: str, style: str = "") -> None:
    """A line of its own, folded between words on a terminal."""
    text = clean(text, None)
    if not _folds(console):
        console.out(text)
        return
    _show(console, _text(text, style), 0)


def fold_words(line: str, columns: int) -> list[str]:
    """A line in so many columns, folded between words alone; what follows is set in a little more than it is."""
    from rich.cells import cell_len

    indent = " " * (len(line) - len(line.lstrip()) + 2)
    lines = [line[: len(indent) - 2]]
    for word in line.split(" ")[len(indent) - 2 :]:
        longer = f"{lines[-1]} {word}" if lines[-1].strip() else lines[-1] + word
        # A line that begins with two colons is a command to some CI services.
        if cell_len(longer) <= columns or not lines[-1].strip() or word.startswith("::"):
            lines[-1] = longer
        else:
            lines.append(indent + word)
    return lines


def _folds(console: Console) -> bool:
    """Whether lines are laid out for a terminal. What follows a fold may be a command to a CI service, so not there."""
    return console.stdout_is_terminal and not console.ci


def _sizes(rows: Sequence[Sequence[str]]) -> list[int]:
    from rich.cells import cell_len

    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def _plain_lines(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Rows with their columns aligned."""
    from rich.cells import set_cell_size

    sizes = _sizes(rows)
    for row in rows:
        start = "".join(set_cell_size(cell, size) + " " * _GAP for cell, size in zip(row[:-1], sizes[:-1], strict=True))
        yield start + row[-1]


def _fits(names: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    *sizes, last = _sizes([names, *rows])
    return width - sum(sizes) - _GAP * len(sizes) >= min(last, _LAST_COLUMN)


def _cropped(names: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Rows whose last cells leave the others whole."""
    room = width - sum(size + _GAP for size in _sizes([names, *rows])[:-1])
    lasts = [_text(row[-1]) for row in rows]
    for last in lasts:
        last.truncate(room, overflow="ellipsis")
    return [[*row[:-1], last.plain] for row, last in zip(rows, lasts, strict=True)]


def _columns(names: Sequence[str], rows: Sequence[Sequence[str]], has_headers: bool) -> Table:  # noqa: FBT001
    from rich.table import Table

    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.show_header = has_headers
    sizes = _sizes([names, *rows]) if names else []
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        is_last = number == len(names) - 1
        # Only the last one gives way: an id is not cut.
        least = None if is_last else size
        table.add_column(_text(name, "bold"), no_wrap=not is_last, overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*(_cell(cell, number) for number, cell in enumerate(row)))
    return table


def _cell(cell: str, number: int) -> Text:
    return _text(cell, _STYLES.get(cell, "" if number else "cyan"))


def _text(words: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(words, style)


def _show(console: Console, shown: RenderableType, indent: int) -> None:
    """Draw for the terminal that standard output is."""
    from rich.console import Console as RichConsole
    from rich.padding import Padding

    file = io.StringIO()
    rich = RichConsole(
        file=file,
        width=max(console.width, 1),
        force_terminal=True,
        force_jupyter=False,
        legacy_windows=False,
        color_system="standard" if console.color else None,
        no_color=not console.color,
        markup=False,
        emoji=False,
        highlight=False,
        _environ=_NO_ENVIRONMENT,
    )
    rich.print(Padding(shown, (0, 0, 0, indent)) if indent else shown)
    for line in file.getvalue().splitlines():
        console.out_exactly(line.rstrip())


_NO_ENVIRONMENT: Mapping[str, str] = {}
"""What rich would read there has been decided before."""
