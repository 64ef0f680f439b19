"""The live display on a terminal: a bar for the run, a line a request, a bar a download, and nothing left at the end.

One thread of its own does all the drawing, so that taking an event costs a lock and no terminal can hold up a
download. It loads rich only once the request is on its way: until the provider answers there is time to spare.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, cast

from ..results import Downloading, Event, Finished, Planned, Retrying, Saved, Stage
from ..text import clean, size_words
from .console import Console
from .plain_progress import event_line
from .tally import Tally

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text


_FRAME_S = 0.15

_BEHIND_S = 0.03

_LOAD_AFTER_S = 0.3

_LEAVE_WITHIN_S = 2.0

_DOING = {
    "connecting": "connecting",
    "sent": "drawing",
    "polling": "drawing (task)",
    "receiving": "receiving",
    "done": "saving",
}

_STYLES = {"good": "green", "doubtful": "yellow", "bad": "red", "": ""}

_STATE_COLUMNS = 28
"""What a request is doing gets so much of a narrow terminal; the request's name has the rest."""

_GUESSED_MOST = 0.95
"""How far the bar of a request gets that is still at the provider."""


@dataclass(slots=True)
class _Download:
    """Bytes so far, of `total` where the server says, and since when."""

    since: float
    before: int
    received: int = 0
    total: int | None = None
    at: float = 0.0

    def words(self, now: float) -> str:
        """Such as "50% of 1.0 MB, 2.3 MB/s"."""
        # What is here whole is only checked yet: that takes nothing from its speed.
        took = (self.at if self.received == self.total else now) - self.since
        came = self.received - self.before
        speed = f", {size_words(int(came / took))}/s" if came > 0 and took > 0 else ""
        if not self.total:
            return f"{size_words(self.received)}{speed}"
        return f"{min(self.received / self.total, 1.0):4.0%} of {size_words(self.total)}{speed}"


@dataclass(slots=True)
class _Request:
    """What is known of one running request."""

    since: float
    title: str = ""
    model: str = ""
    doing: str = "connecting"
    detail: str = ""
    waiting_for: str = ""
    again_at: float = 0.0
    is_out: bool = True
    downloads: dict[int, _Download] = field(default_factory=dict)

    def words(self, now: float, usual: float | None) -> str:
        """What it is doing, and for how long."""
        if self.waiting_for:
            return f"again in {max(self.again_at - now, 0.0):.0f} s: {self.waiting_for}"
        elapsed = f"{self.doing} {now - self.since:.0f} s"
        if usual and self.is_out:
            return f"{elapsed} of ~{usual:.0f} s"
        return f"{elapsed} ({self.detail})" if self.detail else elapsed


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
        self._verbosity = 2 if verbosity > 0 else 0
        self._clock = clock
        self._state = threading.Lock()
        self._screen = threading.RLock()
        self._requests: dict[int, _Request] = {}
        self._tally = tally or Tally(clock)
        self._lines: deque[str] = deque()
        self._sent = threading.Event()
        self._closing = threading.Event()
        self._cleared = threading.Event()
        self._rich: RichConsole | None = None
        self._spinner: Spinner | None = None
        self._live: Live | None = None
        self._is_blank = False
        self._widths: list[int] = []
        self._made: RenderableType = ""
        self._made_at = 0.0
        self._image_of = (0, 0)
        self._columns = 0
        self._taskbar = ""
        self._pause = _Pause()
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
        self._pause.close()
        # A terminal stopped with Ctrl-S never returns from a write: the run does not wait for it.
        self._thread.join(_LEAVE_WITHIN_S)
        self._console.screen = nullcontext
        self._print_lines()

    # --- events become state

    def _take(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._requests.pop(event.result.index, None)
        elif isinstance(event, Stage):
            self._take_stage(event)
        elif isinstance(event, Retrying):
            request = self._request(event.job)
            request.waiting_for, request.again_at = clean(event.reason, 200), self._clock() + event.wait_s
            request.is_out = False
        elif isinstance(event, Downloading):
            self._take_bytes(event)
        elif isinstance(event, Saved):
            self._request(event.job).downloads.pop(event.image.index, None)

    def _take_stage(self, event: Stage) -> None:
        request = self._request(event.job)
        is_out = event.stage != "done"
        if event.stage == "connecting" or request.waiting_for or request.is_out != is_out:
            request.since = self._clock()
        request.doing, request.detail, request.waiting_for = _DOING[event.stage], clean(event.detail, 80), ""
        request.title = clean(event.title, 200) or request.title
        request.model = event.model or request.model
        request.is_out = is_out

    def _take_bytes(self, event: Downloading) -> None:
        request = self._request(event.job)
        if request.is_out or request.waiting_for:
            request.since = self._clock()
        request.doing, request.waiting_for, request.detail, request.is_out = "downloading", "", "", False
        known = request.downloads.get(event.index)
        if known is None or event.received < known.received:
            known = _Download(self._clock(), event.received)
        known.received, known.total, known.at = event.received, event.total, self._clock()
        request.downloads[event.index] = known

    def _request(self, index: int) -> _Request:
        return self._requests.setdefault(index, _Request(self._clock()))

    # --- the drawing thread

    def _draw_until_closed(self) -> None:
        # What takes long before anything is sent (a slow name server) is worth showing as well.
        self._sent.wait(_LOAD_AFTER_S)
        if self._closing.is_set():
            return
        self._load()
        while not self._closing.is_set() and not self._console.stderr_closed:
            if self._pause.is_asked or not self._is_in_front():
                self._leave()
                self._pause.given_back.set()
                self._closing.wait(_FRAME_S)
                continue
            self._print_lines()
            self._draw()
            if self._cleared.wait(_FRAME_S):
                # Whoever writes many lines would have the display gone most of the time.
                self._cleared.clear()
                self._closing.wait(_BEHIND_S)
        self._leave()

    def _is_in_front(self) -> bool:
        """Whether the terminal is the run's: one that went on with `bg` must not draw over its shell."""
        try:
            return os.tcgetpgrp(self._console.stderr.fileno()) == os.getpgrp()  # type: ignore[union-attr]
        except (OSError, ValueError, AttributeError):
            return True

    def _draw(self) -> None:
        from rich.console import ConsoleDimensions

        with self._screen:
            if self._rich is None or self._closing.is_set():
                return
            columns, rows = self._console.err_size()
            # One column less than there are, since some terminals wrap at the last one.
            self._rich.size = ConsoleDimensions(max(columns - 1, 1), max(rows, 2))
            if self._live is None:
                self._start()
            self._fold_back(columns)
            if self._live:
                self._live.refresh()
            self._columns = columns

    def _start(self) -> None:
        from rich.live import Live

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
        """Take the display off the screen."""
        live, self._live = self._live, None
        if live is None:
            return
        self._fold_back(self._console.err_size()[0])
        # What rich draws once more before it clears costs nothing if there is nothing.
        self._is_blank = True
        live.stop()
        self._is_blank = False

    def _leave(self) -> None:
        """Take everything off the screen that this display has put there."""
        with self._screen:
            self._stop()
            self._tell_taskbar("0;0")

    def _fold_back(self, columns: int) -> None:
        """Where a terminal that got narrower has folded the lines drawn before, clear the rows that are more for it."""
        if columns < self._columns and self._console.folds:
            more = sum(max(-(-width // columns), 1) for width in self._widths) - len(self._widths)
            self._console.err_exactly("\r\x1b[2K" + "\x1b[1A\x1b[2K" * more)

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

    def _tell_taskbar(self, told: str) -> None:
        """The run's progress for the terminal's tab or the taskbar (OSC 9;4: state and percent; 0 takes it away)."""
        known, self._taskbar = self._taskbar or "0;0", told
        if self._console.taskbar and told != known:
            self._console.err_exactly(f"\x1b]9;4;{told}\x1b\\")

    def _load(self) -> None:
        from rich.console import Console as RichConsole
        from rich.spinner import Spinner

        self._rich = RichConsole(
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
        self._spinner = Spinner("dots" if self._console.encodable_err("⠋━") == "⠋━" else "line", style="cyan")

    # --- state becomes lines

    def _image(self) -> RenderableType:
        """The whole display, every line cut to the width. A young one is shown again as it was."""
        from rich.console import Group
        from rich.segment import Segments

        if self._rich is None or self._is_blank:
            return ""
        (columns, rows), now = self._rich.size, time.monotonic()
        if self._image_of != (columns, rows) or now - self._made_at >= _FRAME_S:
            with self._state:
                lines = self._compose(columns, rows, self._clock())
            for line in lines:
                line.truncate(columns, overflow="ellipsis")
            self._widths = [line.cell_len for line in lines]
            self._made = Segments(self._rich.render(Group(*lines)))
            self._image_of, self._made_at = (columns, rows), now
        return self._made

    def _compose(self, width: int, height: int, now: float) -> list[Text]:
        """The bar of the run, what is to be said of it, and of its requests as many as there are rows for."""
        share = self._share(now)
        lines: list[Text] = []
        if share is not None:
            color = "yellow" if self._tally.is_troubled else "green"
            lines.append(self._bar(share, width - 7, color).append(f" {share:4.0%}"))
        lines += self._facts(width, now)
        lines += self._request_lines(width, height - len(lines), now)
        self._tell_taskbar(f"{2 if self._tally.failed else 1};{100 * share:.0f}" if share else "3;0")
        indented = [self._text("  ").append_text(line) for line in lines]
        if self._spinner and indented:
            indented[0] = self._text("").append_text(cast("Text", self._spinner.render(now))).append(indented[0][1:])
        return indented

    def _request_lines(self, width: int, height: int, now: float) -> list[Text]:
        """A line a request and one a download, and how many requests there are beside those there is room for."""
        shown = [(self._name(index, one), one) for index, one in sorted(self._requests.items())[:height]]
        doing = [one.words(now, self._tally.usual_s(one.model)) for _, one in shown]
        room = max(width - 4 - max(map(len, doing), default=0), width - _STATE_COLUMNS)
        room = min(room, max((self._text(name).cell_len for name, _ in shown), default=0))
        lines: list[Text] = []
        left = len(self._requests)
        for (name, request), words in zip(shown, doing, strict=True):
            block = [self._line(name, words, room, "yellow" if request.waiting_for else "")]
            block += [self._download(number, one, width, now) for number, one in sorted(request.downloads.items())]
            if len(lines) + len(block) + (left > 1) >= height:
                return [*lines, self._text(f"and {left} more", "dim")][: max(height - 1, 0)]
            lines += block
            left -= 1
        return lines

    def _share(self, now: float) -> float | None:
        """How much of the run is done; of a single request by the time that it takes as a rule."""
        if self._tally.requests > 1:
            return self._tally.share
        for request in self._requests.values():
            usual = self._tally.usual_s(request.model)
            return min((now - request.since) / usual, 1.0) * _GUESSED_MOST if usual and request.is_out else None
        return None

    def _facts(self, width: int, now: float) -> list[Text]:
        """What is to be said of the run, on as many lines as that takes."""
        lines: list[Text] = []
        # Of a single request its own line says all but what it costs.
        for words, kind in self._tally.facts(now) if self._tally.requests > 1 else self._tally.money():
            if not lines or lines[-1].cell_len + len(words) + 5 > width:
                lines.append(self._text(""))
            else:
                lines[-1].append(" · ", "dim")
            lines[-1].append(words, _STYLES[kind])
        return lines

    def _name(self, index: int, request: _Request) -> str:
        """What a request is called: its number where there are several, and its row's id or its prompt."""
        is_one = self._own_name is None and self._tally.requests <= 1
        number = (
            self._own_name(index) if self._own_name else f"{index + 1}" if request.title else f"request {index + 1}"
        )
        return request.title if is_one and request.title else f"{number}  {request.title}".rstrip()

    def _line(self, name: str, words: str, room: int, style: str) -> Text:
        line = self._text(name)
        line.truncate(max(room, 1), overflow="ellipsis", pad=True)
        return line.append("  ").append_text(self._text(words, style))

    def _download(self, number: int, download: _Download, width: int, now: float) -> Text:
        """A download: its bar, how much there is of it, and how fast it comes."""
        line, words = self._text(f"  image {number + 1} "), download.words(now)
        room = min(width - line.cell_len - len(words) - 3, 40)
        if download.total and room >= 6:
            line.append_text(self._bar(min(download.received / download.total, 1.0), room, "cyan")).append(" ")
        return line.append(words)

    def _text(self, words: str, style: str = "") -> Text:
        from rich.text import Text

        return Text(self._console.encodable_err(words), style, no_wrap=True)

    def _bar(self, share: float, width: int, style: str) -> Text:
        """A bar of exactly so many columns."""
        from rich.progress_bar import ProgressBar

        line = self._text("")
        if self._rich is None or width < 1:
            return line
        bar = ProgressBar(1.0, share, width=width, style="bright_black", complete_style=style, finished_style=style)
        for segment in self._rich.render(bar, self._rich.options.update(width=width)):
            line.append(segment.text, segment.style)
        line.truncate(width, pad=True)
        return line


class _Pause:
    """Ctrl-Z: the display goes before the process stops, so that the shell finds its cursor where it should be."""

    def __init__(self) -> None:
        self.is_asked = False
        self.given_back = threading.Event()
        self._before: Any = None
        is_ours = hasattr(signal, "SIGTSTP") and threading.current_thread() is threading.main_thread()
        if is_ours and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            self._before = signal.signal(signal.SIGTSTP, self._stop)

    def close(self) -> None:
        """Leave the signal to the system again."""
        if self._before is not None:
            signal.signal(signal.SIGTSTP, self._before)
            self._before = None

    def _stop(self, number: int, frame: object) -> None:  # noqa: ARG002 (what a signal handler is given)
        # Only the drawing thread may write: what this has interrupted may be a write, or hold the lock of one.
        self.is_asked = True
        self.given_back.wait(_LEAVE_WITHIN_S / 4)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Here the process has been brought back.
        signal.signal(number, self._stop)
        self.given_back.clear()
        self.is_asked = False


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
        # No terminal draws every character as wide as Unicode says: a line must not wrap, or clearing would miss it.
        self._console.err_exactly(f"\x1b[?7l{text}\x1b[?7h")
        return len(text)
