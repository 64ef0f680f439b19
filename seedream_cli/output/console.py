"""Standard output and standard error. Everything the tool writes leaves here, safe to show or exactly as it is."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TextIO

from ..text import clean, clean_path

# Our own typography, for a terminal whose encoding lacks it.
_TYPEWRITER = str.maketrans({"·": "-", "…": "...", "⏎": "\\n"})

_LABEL = re.compile(r"^( *)(error|warning|hint|note|retry):")

_LABEL_STYLE = {"error": "1;31", "warning": "33", "hint": "36", "note": "2", "retry": "33"}


@dataclass(kw_only=True)
class Console:
    """Standard output and standard error, and what the caller knows of them. `width` is in columns.

    A stream that cannot be written (closed pipe, full disk) never raises: that is remembered and later writes are
    dropped, since a run that has paid goes on whoever has stopped listening. `screen` pauses a live display while a
    line is written to its terminal; `color` is for terminals alone, unless for standard error `color_anywhere`.
    `taskbar` says that the terminal shows a program's progress on its tab (OSC 9;4), `folds` that it folds what stands
    on it when it gets narrower.
    """

    stdout: TextIO | None
    stderr: TextIO | None
    stdin_is_terminal: bool = False
    stdout_is_terminal: bool = False
    stderr_is_terminal: bool = False
    width: int = 80
    color: bool = False
    color_anywhere: bool = False
    ci: bool = False
    taskbar: bool = False
    folds: bool = False
    screen: Callable[[], AbstractContextManager[None]] = nullcontext
    stdout_closed: bool = field(init=False)
    stderr_closed: bool = field(init=False)
    trouble: str = field(default="", init=False)
    """Why standard output could not be written; a reader that left is no trouble."""

    def __post_init__(self) -> None:
        self.stdout_closed = self.stdout is None
        self.stderr_closed = self.stderr is None

    def out(self, line: str) -> None:
        """One line of results, plain and flushed. Hidden characters in it become visible escapes."""
        self.out_exactly(clean(line, None) if self.ci else clean_path(line))

    def out_exactly(self, line: str) -> None:
        """One line of results that is safe already, such as JSON."""
        with self.screen() if self.stdout_is_terminal else nullcontext():
            self._put_out(line + "\n")

    def out_bytes(self, chunk: bytes) -> None:
        """Bytes of an image (`-o -`)."""
        self._put_out(chunk)

    def err(self, line: str) -> None:
        """One line for the user."""
        line = clean(line, None)
        if not _can_encode(self.stderr, "·…⏎"):
            line = line.translate(_TYPEWRITER)
        text = "\n".join(self._fold(line))
        if self.color and (self.stderr_is_terminal or self.color_anywhere):
            text = _LABEL.sub(lambda m: f"{m[1]}\x1b[{_LABEL_STYLE[m[2]]}m{m[2]}:\x1b[0m", text)
        with self.screen():
            self.err_exactly(text + "\n")

    def err_exactly(self, text: str) -> None:
        """Text for standard error as it is: the drawing of a live display."""
        if self.stderr is not None and not self.stderr_closed:
            self.stderr_closed = _put(self.stderr, text) is not None

    def err_size(self) -> tuple[int, int]:
        """Columns and rows of the terminal that standard error is."""
        size = os.terminal_size((0, 0))
        with contextlib.suppress(OSError, ValueError, AttributeError):
            size = os.get_terminal_size(self.stderr.fileno())  # type: ignore[union-attr]
        return size.columns or self.width, size.lines or 24

    def _fold(self, line: str) -> list[str]:
        """The line as it stands on a terminal, folded between words and not within one, nor within an id or a path."""
        # A CI service obeys what begins a line, and may look like a terminal.
        if not self.stderr_is_terminal or self.ci or len(line) * 2 <= (columns := self.err_size()[0]):
            return [line]
        from .tables import fold_words

        return fold_words(line, columns)

    def encodable_err(self, text: str) -> str:
        """The text as standard error will show it."""
        return _encodable(self.stderr, text)

    def encodes_out(self, text: str) -> bool:
        """Whether standard output has all characters of a text."""
        return _can_encode(self.stdout, text)

    def _put_out(self, data: str | bytes) -> None:
        if self.stdout is not None and not self.stdout_closed:
            failure = _put(self.stdout, data)
            self.stdout_closed = failure is not None
            self._note(failure)

    def finish(self) -> str:
        """Write what standard output still holds, also of what others wrote to it; `trouble`."""
        if self.stdout is not None:
            try:
                self.stdout.flush()
            except (OSError, ValueError) as error:
                self._note(error)
                _discard(self.stdout)
        return self.trouble

    def _note(self, failure: Exception | None) -> None:
        gone = (errno.EPIPE, errno.EBADF, errno.ECONNRESET)
        if isinstance(failure, OSError) and failure.errno not in gone:
            self.trouble = self.trouble or (failure.strerror or type(failure).__name__).lower()


def _put(stream: TextIO, data: str | bytes) -> Exception | None:
    """Write and flush; why that failed, after which nothing more is written there."""
    try:
        if isinstance(data, bytes):
            stream.buffer.write(data)
        else:
            stream.write(_encodable(stream, data))
        stream.flush()
    except (OSError, ValueError) as error:
        _discard(stream)
        return error
    return None


def _discard(stream: TextIO) -> None:
    """Point a dead stream at the null device, or Python would fail on what it still holds when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


def _can_encode(stream: TextIO | None, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _encodable(stream: TextIO | None, text: str) -> str:
    """The text with what the stream's encoding lacks as backslash escapes."""
    if text.isascii() or _can_encode(stream, text):
        return text
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
