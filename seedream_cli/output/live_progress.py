"""The live display on a terminal: a line a request, a bar a download, nothing left on the screen at the end.

One thread of its own does all the drawing, so that taking an event costs a lock and no terminal can hold up a
download. It loads rich only once the request is on its way: until the provider answers there is time to spare.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, cast

from ..results import Downloading, Event, Finished, Planned, Retrying, Saved, Stage
from ..text import clean, size_words
from .console import Console
from .plain_progress import BatchTally, Tally, event_line

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.live import Live
    from rich.text import Text


_FRAME_S = 0.1

_BEHIND_S = 0.02

_LOAD_AFTER_S = 0.3

_LEAVE_WITHIN_S = 2.0

_DOING = {
    "connecting": "connecting",
    "sent": "drawing",
    "polling": "drawing (task)",
    "receiving": "receiving",
    "done": "saving",
}


@dataclass(slots=True)
class _Job:
    """What is known of one running request."""

    since: float
    doing: str = "connecting"
    detail: str = ""
    waiting_for: str = ""
    again_at: float = 0.0
    downloads: dict[int, tuple[int, int | None]] = field(default_factory=dict)


class LiveSink:
    """Draws the running requests on standard error. Events may come from any thread; `close` gives the screen back."""

    def __init__(
        self,
        console: Console,
        *,
        verbosity: int = 0,
        clock: Callable[[], float] = time.monotonic,
        tally: Tally | None = None,
        name: Callable[[int], str] | None = None,
    ) -> None:
        self._console = console
        self._own_name = name
        self._name = name or (lambda index: f"request {index + 1}")
        self._verbosity = 2 if verbosity > 0 else 0
        self._clock = clock
        self._state = threading.Lock()
        self._screen = threading.RLock()
        self._jobs: dict[int, _Job] = {}
        self._tally = tally or Tally()
        self._title = ""
        self._lines: deque[str] = deque()
        self._sent = threading.Event()
        self._closing = threading.Event()
        self._cleared = threading.Event()
        self._rich: RichConsole | None = None
        self._live: Live | None = None
        console.screen = self._paused
        self._thread = threading.Thread(target=self._draw_until_closed, name="display", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Take one event; the next frame shows it."""
        with self._state:
            self._tally.take(event)
            line = event_line(event, self._tally, verbosity=self._verbosity, name=self._own_name)
            if line:
                self._lines.append(line)
            self._take(event)
        if not isinstance(event, Planned) and not (isinstance(event, Stage) and event.stage == "connecting"):
            self._sent.set()

    def close(self) -> None:
        """Clear the display and leave the screen to others."""
        self._closing.set()
        self._cleared.set()
        self._sent.set()
        # A terminal stopped with Ctrl-S never returns from a write: the run does not wait for it.
        self._thread.join(_LEAVE_WITHIN_S)
        self._console.screen = nullcontext
        self._print_lines()

    # --- events become state

    def _take(self, event: Event) -> None:
        if isinstance(event, Planned):
            self._title = clean(event.provider, 40)
        elif isinstance(event, Finished):
            self._jobs.pop(event.result.index, None)
        elif isinstance(event, Stage):
            job = self._job(event.job)
            job.doing, job.detail, job.waiting_for = _DOING[event.stage], clean(event.detail, 80), ""
        elif isinstance(event, Retrying):
            job = self._job(event.job)
            job.waiting_for, job.again_at = clean(event.reason, 200), self._clock() + event.wait_s
        elif isinstance(event, Downloading):
            job = self._job(event.job)
            job.doing, job.waiting_for = "downloading", ""
            job.downloads[event.index] = (event.received, event.total)
        elif isinstance(event, Saved):
            self._job(event.job).downloads.pop(event.image.index, None)

    def _job(self, index: int) -> _Job:
        return self._jobs.setdefault(index, _Job(self._clock()))

    # --- the drawing thread

    def _draw_until_closed(self) -> None:
        # What takes long before anything is sent (a slow name server) is worth showing as well.
        self._sent.wait(_LOAD_AFTER_S)
        if self._closing.is_set():
            return
        self._rich = self._make_console()
        while not self._closing.is_set() and not self._console.stderr_closed:
            self._print_lines()
            self._draw()
            if self._cleared.wait(_FRAME_S):
                # Whoever writes many lines would have the display gone most of the time.
                self._cleared.clear()
                self._closing.wait(_BEHIND_S)
        with self._screen:
            self._stop()

    def _draw(self) -> None:
        from rich.console import ConsoleDimensions

        with self._screen:
            if self._rich:
                self._rich.size = ConsoleDimensions(*self._dimensions())
            if self._live is None:
                self._start()
            if self._live:
                self._live.refresh()

    def _start(self) -> None:
        from rich.live import Live

        if self._rich is None or self._closing.is_set():
            return
        self._live = Live(
            console=self._rich,
            get_renderable=self._image,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live:
            live.stop()

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """Clear the display while somebody writes to the terminal; the next frame comes soon, and is drawn below."""
        with self._screen:
            self._stop()
            yield
        self._cleared.set()

    def _print_lines(self) -> None:
        while self._lines:
            with contextlib.suppress(IndexError):
                self._console.err(self._lines.popleft())

    def _make_console(self) -> RichConsole:
        from rich.console import Console as RichConsole

        return RichConsole(
            file=cast("IO[str]", _Screen(self._console)),
            force_terminal=True,
            force_interactive=True,
            force_jupyter=False,
            color_system="standard" if self._console.color else None,
            no_color=not self._console.color,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def _dimensions(self) -> tuple[int, int]:
        """Columns and rows to draw in: one column less than there are, since some terminals wrap at the last one."""
        size = os.terminal_size((0, 0))
        with contextlib.suppress(OSError, ValueError, AttributeError):
            size = os.get_terminal_size(self._console.stderr.fileno())  # type: ignore[union-attr]
        return max((size.columns or self._console.width) - 1, 1), max(size.lines or 24, 2)

    # --- state becomes lines

    def _image(self) -> Text:
        """The whole display as text, every line cut to the width."""
        from rich.text import Text

        width, height = self._dimensions()
        with self._state:
            lines = self._compose(width, self._clock())
        if len(lines) >= height:
            hidden = len(lines) - height + 2
            lines = [*lines[: height - 2], f"and {hidden} more"]
        text = Text("\n".join(self._console.encodable_err(line) for line in lines), no_wrap=True, overflow="crop")
        text.highlight_regex(r"\[=+>?", "cyan")
        return text

    def _compose(self, width: int, now: float) -> list[str]:
        many = self._tally.requests > 1
        whole = self._tally.line(now, width) if isinstance(self._tally, BatchTally) else self._tally.words()
        many = many or isinstance(self._tally, BatchTally)
        lines = [whole] if many else []
        for index, job in sorted(self._jobs.items()):
            name = self._name(index) if many else self._title or "request"
            lines.append(f"{name}: {_describe(job, now)}")
            for image, (received, total) in sorted(job.downloads.items()):
                lines.append(_bar(f"  image {image + 1} ", received, total, width))
        return lines


def _describe(job: _Job, now: float) -> str:
    if job.waiting_for:
        left = max(job.again_at - now, 0.0)
        return f"again in {left:.0f} s: {job.waiting_for}"
    elapsed = f"{job.doing}, {now - job.since:.0f} s"
    return f"{elapsed} ({job.detail})" if job.detail else elapsed


def _bar(label: str, received: int, total: int | None, width: int) -> str:
    """A download as a line of `width` columns. ASCII, because a CJK terminal draws bar characters twice as wide."""
    if not total:
        return label + size_words(received)
    share = min(received / total, 1.0)
    facts = f" {share:4.0%} of {size_words(total)}"
    room = min(width - len(label) - len(facts) - 2, 40)
    if room < 6:
        return label + facts.strip()
    filled = int(share * room)
    drawn = "=" * filled if filled == room else "=" * filled + ">"
    return f"{label}[{drawn.ljust(room)}]{facts}"


class _Screen(io.TextIOBase):
    """The file that rich draws to. It never raises: rich would end the process where a pipe is broken."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._console.stderr, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        if self._console.stderr is None:
            raise OSError("there is no standard error")
        return self._console.stderr.fileno()

    def isatty(self) -> bool:
        return self._console.stderr_is_terminal

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._console.err_exactly(text)
        return len(text)
