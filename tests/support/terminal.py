"""A terminal: what a program has written to it stands on a real model of a screen (pyte)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

import pyte

from seedream_cli.output.console import Console


class Terminal:
    """A pseudo-terminal of some columns and rows, read by a thread. `text` is every byte, `lines` what stands on it."""

    def __init__(self, columns: int, rows: int = 24, **facts: Any) -> None:
        self.leader, self.follower = pty.openpty()
        self.screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=0.001)
        self.stream = pyte.ByteStream(self.screen)
        self._set_size(columns, rows)
        self.file = open(os.dup(self.follower), "w", encoding="utf-8")  # noqa: SIM115
        told = {"stdout_is_terminal": True, "stderr_is_terminal": True, "color": True, **facts}
        self.console = Console(stdout=self.file, stderr=self.file, **told)
        self.text = ""
        self.frames: set[str] = set()
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self.leader, 65536):
                with self._lock:
                    self.text += chunk.decode(errors="replace")
                    # The model leaves out what follows a joiner or a selector of emoji.
                    self.stream.feed(re.sub("\u200d|\ufe0f".encode(), b"", chunk))
                    self.frames.add("\n".join(self.screen.display))

    @property
    def lines(self) -> list[str]:
        """Every line, those that have left the screen at its top included, up to the last that is not empty."""
        with self._lock:
            gone = ["".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top]
            found = [line.rstrip() for line in (*gone, *self.screen.display)]
        while found and not found[-1]:
            found.pop()
        return found

    @property
    def shown(self) -> str:
        """What stands on it now."""
        return "\n".join(self.lines)

    @property
    def is_tidy(self) -> bool:
        """Whether the cursor is seen, and long lines wrap, as it was before."""
        return not self.screen.cursor.hidden and pyte.modes.DECAWM in self.screen.mode

    def wait(self, *found: str) -> None:
        """Until all these stand on it at once."""
        self.wait_until(lambda: all(one in self.shown for one in found))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until it is so."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.shown
            time.sleep(0.01)

    def resize(self, columns: int, *, folds: bool) -> None:
        """Another width. Some terminals fold what is too long then, others cut it."""
        with self._lock:
            rows = self.screen.lines
            if folds:
                kept = [line.rstrip() for line in self.screen.display[: self.screen.cursor.y + 1]]
                hidden = self.screen.cursor.hidden
                self.screen.reset()
                self.screen.resize(rows, columns)
                self.stream.feed("\r\n".join(kept).encode())
                self.screen.cursor.hidden = hidden
            else:
                self.screen.resize(rows, columns)
            self._set_size(columns, rows)
            self.frames.clear()

    def type(self, keys: str) -> None:
        """Press these keys."""
        os.write(self.leader, keys.encode())

    def take(self) -> None:
        """Make it the controlling terminal of this process (`preexec_fn`): elsewhere Ctrl-C is a sign like others."""
        os.setsid()
        fcntl.ioctl(self.follower, termios.TIOCSCTTY, 0)

    def streams(self) -> dict[str, Any]:
        """A process that has it as all of its streams, and as its terminal."""
        return {
            "stdin": self.follower,
            "stdout": self.follower,
            "stderr": self.follower,
            "preexec_fn": self.take,
        }

    def close(self) -> None:
        """Hang up."""
        self.file.close()
        with contextlib.suppress(OSError):
            os.close(self.follower)
        self._reader.join(10)
        os.close(self.leader)


def without_controls(text: str) -> str:
    """What was written, without the sequences that a display moves its cursor and sets its colours with."""
    return re.sub(r"\x1b\[(?:\?25[lh]|\?7[lh]|2K|1A|[\d;]*m)|\r", "", text)
