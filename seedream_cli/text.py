"""Text for people: foreign text made safe to show, and words for amounts.

A terminal executes escape sequences and a CI runner `::command::`, whoever wrote them. So a provider's message, a
prompt or a file name passes `clean` before it is shown, and never begins a line. Pure functions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .results import Cost, Money


def nearest(name: str, known: Iterable[str], most: int = 1, *, likeness: float = 0.6) -> list[str]:
    """The `most` nearest of `known`, nearest first. Case, dashes and underscores are ignored."""
    # Imported only for misspelt names.
    import difflib

    spelled = {_plain(one): one for one in known}
    return [spelled[one] for one in difflib.get_close_matches(_plain(name), spelled, most, likeness)]


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_")


def nearest_hint(name: str, known: Sequence[str]) -> str:
    """A hint with the nearest known names, or with all."""
    near = nearest(name, known, 3)
    if near:
        return f"did you mean {' or '.join(one.replace('-', '_') for one in near)}?"
    return f"known: {', '.join(known)}" if len(known) <= 8 else "seedream config show --all lists all"


_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})

_ZWJ = "\u200d"

# Executed by CI runners anywhere in a line (GitHub's older form, Azure Pipelines).
CI_COMMAND = re.compile(r"#(?=#(?:\[|vso\[))")


def clean(text: str, limit: int | None = 500) -> str:
    """Foreign text as one line, control and format characters escaped, at most `limit` characters."""
    if limit is not None:
        # Escapes only lengthen, and CR LF becomes one character, so twice the limit is enough.
        text = text[: 2 * limit + 2]
    shown = _show(text, newline="⏎", commands=True)
    if isinstance(shown, str):
        # No escapes, as in nearly every text.
        return shown if limit is None or len(shown) <= limit else shown[: limit - 1].rstrip(_ZWJ) + "…"
    if limit is None or sum(map(len, shown)) <= limit:
        return "".join(shown)
    return "".join(_take(shown, limit - 1)).rstrip(_ZWJ) + "…"


def clean_path(path: Path | str) -> str:
    """A path or URL with control and format characters escaped, not cut."""
    return "".join(_show(str(path), newline="\\n", commands=False))


def _show(text: str, *, newline: str, commands: bool) -> Sequence[str]:
    """The text as pieces that must not be split; with `commands` CI commands are escaped too."""
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
    """Whether a character is invisible, or changes how others are shown."""
    if char.isprintable():
        return False
    category = unicodedata.category(char)
    if category != "Cn":
        return category in _HIDDEN
    # Unassigned characters are mostly newer emoji, except for these noncharacters.
    code = ord(char)
    return code == 0x2065 or 0xFFF0 <= code <= 0xFFF8 or 0xE0000 <= code <= 0xE0FFF or code & 0xFFFE == 0xFFFE


def _joins_emoji(text: str, position: int) -> bool:
    """Whether the zero-width joiner at `position` is between two emoji."""
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


# --- words ------------------------------------------------------------------------------------------------------------


def count_words(number: int, one: str, many: str = "") -> str:
    """ "1 image", "3 images"; `many` is an irregular plural."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def size_words(count: int) -> str:
    """Bytes in decimal units: "1.2 MB"."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def span_words(seconds: float) -> str:
    """Seconds in the two largest units: "42 s", "5 min", "3 h 20 min", "6 d 23 h"."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def money_words(cost: Cost | Money) -> str:
    """An amount with two to four decimals, or six where four would show 0."""
    digits = f"{cost.amount:.{4 if cost.amount >= 0.00005 or not cost.amount else 6}f}"
    while digits.endswith("0") and len(digits.partition(".")[2]) > 2:
        digits = digits[:-1]
    return f"${digits}" if cost.currency == "USD" else f"{digits} {clean(cost.currency, 12)}"
