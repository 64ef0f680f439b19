"""Text for people: foreign text made safe to show, its width in columns, lines and tables that fit, words for amounts.

A terminal obeys escape sequences and a CI runner obeys `::command::`, whoever wrote them. So a provider's message, a
prompt or a file name passes `clean` before it is shown, and never begins a line. Everything here is pure.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .results import Cost, Money


def nearest(name: str, known: Iterable[str], most: int = 1, *, likeness: float = 0.6) -> list[str]:
    """Those of `known` that `name` may be meant for, nearest first. Capitals, dashes and underscores do not count."""
    # It is of use only where something was misspelled.
    import difflib

    spelled = {_plain(one): one for one in known}
    return [spelled[one] for one in difflib.get_close_matches(_plain(name), spelled, most, likeness)]


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_")


def nearest_hint(name: str, known: Sequence[str]) -> str:
    """What may have been meant, or what there is."""
    near = nearest(name, known, 3)
    if near:
        return f"did you mean {' or '.join(one.replace('-', '_') for one in near)}?"
    return f"known: {', '.join(known)}" if len(known) <= 8 else "seedream config show lists all"


_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})

_ZWJ = "\u200d"

# A CI runner obeys these wherever they stand in a line (GitHub's older form, Azure Pipelines).
CI_COMMAND = re.compile(r"#(?=#(?:\[|vso\[))")


def clean(text: str, limit: int | None = 500) -> str:
    """Foreign text made safe to show: one line, hidden characters as visible escapes, at most `limit` characters."""
    if limit is not None:
        # Only CR LF gets shorter, so twice the limit of input always fills the output.
        text = text[: 2 * limit + 2]
    shown = _show(text, newline="⏎", commands=True)
    if isinstance(shown, str):
        # Nearly every text: nothing in it is an escape of several characters.
        return shown if limit is None or len(shown) <= limit else shown[: limit - 1].rstrip(_ZWJ) + "…"
    if limit is None or sum(map(len, shown)) <= limit:
        return "".join(shown)
    return "".join(_take(shown, limit - 1)).rstrip(_ZWJ) + "…"


def clean_path(path: Path | str) -> str:
    """A path or link made safe to show. Whole, and unchanged unless it holds hidden characters."""
    return "".join(_show(str(path), newline="\\n", commands=False))


def _show(text: str, *, newline: str, commands: bool) -> Sequence[str]:
    """The text as pieces that are not to be cut; `commands` are made harmless too."""
    if text.isprintable() and not (commands and "##" in text):
        return text
    return list(_escape(text.replace("\r\n", "\n"), newline, commands=commands))


def _escape(text: str, newline: str, *, commands: bool) -> Iterator[str]:
    for position, char in enumerate(text):
        if commands and char == "#" and CI_COMMAND.match(text, position):
            yield "\\x23"
        elif not _is_hidden(char) or (char == _ZWJ and _joins_emoji(text, position)):
            yield char
        else:
            yield newline if char == "\n" else _escaped(char)


def _escaped(char: str) -> str:
    if char in "\t\r":
        return "\\t" if char == "\t" else "\\r"
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_hidden(char: str) -> bool:
    """Whether a character shows nothing, or changes how others are shown."""
    if char.isprintable():
        return False
    category = unicodedata.category(char)
    if category != "Cn":
        return category in _HIDDEN
    # Unassigned characters are mostly newer emoji, except these, which are never to be drawn.
    code = ord(char)
    return code == 0x2065 or 0xFFF0 <= code <= 0xFFF8 or 0xE0000 <= code <= 0xE0FFF or code & 0xFFFE == 0xFFFE


def _joins_emoji(text: str, position: int) -> bool:
    """Whether the zero-width joiner at `position` stands between two emoji, where it belongs."""
    before = text[max(position - 2, 0) : position].rstrip("\ufe0f")[-1:]
    after = text[position + 1 : position + 2]
    imaged = before and unicodedata.category(before) in {"So", "Sk"}
    return bool(imaged and after and unicodedata.category(after) == "So")


def _take(pieces: Iterable[str], length: int) -> Iterator[str]:
    for piece in pieces:
        length -= len(piece)
        if length < 0:
            return
        yield piece


def text_width(text: str) -> int:
    """Columns that a text takes in a terminal: two for wide East Asian characters, none for combining marks."""
    return len(text) if text.isascii() else sum(map(_char_width, text))


@functools.lru_cache(maxsize=4096)
def _char_width(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


# --- words ------------------------------------------------------------------------------------------------------------


def count_words(number: int, one: str, many: str = "") -> str:
    """Such as "1 image" and "3 images"; `many` where an s does not make it."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def size_words(count: int) -> str:
    """Bytes for people, in decimal units."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def span_words(seconds: float) -> str:
    """A span of time in its two largest units: "42 s", "5 min", "3 h 20 min", "6 d 23 h"."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def money_words(cost: Cost | Money) -> str:
    """An amount for people: two to four decimals, or six where four would show nothing of it."""
    digits = f"{cost.amount:.{4 if cost.amount >= 0.00005 or not cost.amount else 6}f}"
    while digits.endswith("0") and len(digits.partition(".")[2]) > 2:
        digits = digits[:-1]
    return f"${digits}" if cost.currency == "USD" else f"{digits} {clean(cost.currency, 12)}"


# --- tables -----------------------------------------------------------------------------------------------------------

_GAP = 2

_LAST_COLUMN = 24


def table_lines(headers: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """Aligned columns in `width`; the last one is wrapped where it must be, and where all that is too narrow each row
    becomes a block of `header: value` lines.
    """
    cells = [[clean(cell, None) for cell in row] for row in rows]
    if not fits(headers, cells, width):
        return stack(headers, cells, width)
    sizes = _column_sizes(headers, cells)
    room = width - sum(sizes[:-1]) - _GAP * (len(sizes) - 1)
    lines = []
    for row in (headers, *cells):
        start = "".join(_pad(cell, size + _GAP) for cell, size in zip(row[:-1], sizes[:-1], strict=True))
        wrapped = wrap(row[-1], room)
        lines += [f"{start}{wrapped[0]}".rstrip(), *(" " * text_width(start) + more for more in wrapped[1:])]
    return lines


def _column_sizes(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(text_width, column)) for column in zip(headers, *rows, strict=True)]


def fits(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether the columns stand side by side, the last one perhaps wrapped."""
    sizes = _column_sizes(headers, rows)
    return width - sum(sizes[:-1]) - _GAP * (len(sizes) - 1) >= min(sizes[-1], _LAST_COLUMN)


def stack(headers: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """A block of `header: value` lines a row, with an empty line between two."""
    lines: list[str] = []
    for row in rows:
        lines += [""] if lines else []
        for header, cell in zip(headers, row, strict=True):
            if cell:
                lines += pair(header, cell, width)
    return lines


def pair(name: str, value: str, width: int) -> list[str]:
    """One `name: value`, wrapped with an indent."""
    first, *more = wrap(f"{name}: {clean(value, None)}", width, indent=4)
    return [first, *(f"    {line}" for line in more)]


def _pad(text: str, width: int) -> str:
    return text + " " * (width - text_width(text))


def wrap(text: str, width: int, *, indent: int = 0) -> list[str]:
    """Lines of at most `width` columns, broken at spaces and between wide characters; an id is never broken.

    After the first, lines are shorter by the `indent` that the caller puts before them.
    """
    lines = [""]
    for word in text.split():
        for part in [word] if text_width(word) <= width - indent else _break_wide(word, width - indent):
            joined = f"{lines[-1]} {part}" if lines[-1] else part
            room = width if len(lines) == 1 else width - indent
            if text_width(joined) <= room or not lines[-1]:
                lines[-1] = joined
            else:
                lines.append(part)
    return lines


def _break_wide(word: str, width: int) -> list[str]:
    """A long word in pieces where its script allows that, else whole."""
    if text_width(word) == len(word):
        return [word]
    lines = [""]
    for char in word:
        if text_width(lines[-1]) + _char_width(char) > width and lines[-1]:
            lines.append("")
        lines[-1] += char
    return lines
