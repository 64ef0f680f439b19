"""Progress as lines: for pipes, CI and logs."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..results import Draining, Event, Finished, Notice, Planned, Retrying, Saved, SavedImage, Stage
from ..text import clean, clean_path, count_words, size_words, span_words
from .console import Console
from .summary import Display
from .tally import Tally

_PLAIN_S = 10.0

_NOTES_MOST = 10


class FewNotes:
    """Hands every event on, but of notes only the first: a table may give cause for one in each of its rows."""

    def __init__(self, display: Display, console: Console) -> None:
        self._display = display
        self._console = console
        self._notes = 0

    def emit(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Notice):
            self._notes += 1
            if self._notes > _NOTES_MOST:
                return
        self._display.emit(event)

    def close(self) -> None:
        """Leave the terminal, and say how many notes there were beside those shown."""
        self._display.close()
        more, self._notes = self._notes - _NOTES_MOST, 0
        if more > 0:
            self._console.err(f"note: and {count_words(more, 'more note')} like these")


def batch_name(index: int) -> str:
    """What a request of a batch is called, whose number is made of that of its row."""
    if index < 0:
        return "a row that is not in the table any more"
    row, number = divmod(index, 1000)
    return f"row {row}" if not number else f"row {row}, request {number + 1}"


class PlainBatchSink:
    """A line every ten seconds or every hundredth of the run, whichever is rarer, and what must be known at once."""

    def __init__(self, console: Console, *, verbosity: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._verbosity = verbosity
        self._clock = clock
        self._tally = Tally(clock)
        self._told_at = clock()
        self._told = 0

    def emit(self, event: Event) -> None:
        """Take one event."""
        tally, now = self._tally, self._clock()
        tally.take(event)
        line = event_line(event, tally, verbosity=self._verbosity, name=batch_name)
        if line:
            self._console.err(line)
        rare = now - self._told_at >= _PLAIN_S and (tally.done - self._told) * 100 >= tally.requests
        if isinstance(event, Finished) and rare:
            self._told_at, self._told = now, tally.done
            self._console.err(f"done: {tally.line(now)}")

    def close(self) -> None:
        """Nothing to leave."""


class QuietSink:
    """Shows nothing."""

    def emit(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """Nothing to leave."""


class PlainSink:
    """A few plain lines on standard error, for logs and pipes.

    `verbosity` 1 adds stages and saved files, -1 leaves only what the user must know.
    """

    def __init__(self, console: Console, *, verbosity: int = 0) -> None:
        self._console = console
        self._verbosity = verbosity
        self._tally = Tally()
        self._done = 0

    def emit(self, event: Event) -> None:
        """Take one event."""
        self._tally.take(event)
        line = event_line(event, self._tally, verbosity=self._verbosity + 1)
        if line:
            self._console.err(line)
        # Ten lines tell the progress of any number of requests.
        tally, before = self._tally, self._done
        self._done = tally.done
        if self._verbosity >= 0 and tally.done > before and tally.requests > 1 and tally.crossed_tenth:
            self._console.err(f"done: {tally.words()}")

    def close(self) -> None:
        """Nothing to leave."""


def event_line(event: Event, tally: Tally, *, verbosity: int, name: Callable[[int], str] | None = None) -> str:
    """The line that tells of an event, or "". At 0 only what must be known, at 1 the course, at 2 every step.

    `name` says what a request is called by its index, where it is not one of so many.
    """
    if isinstance(event, Notice):
        return f"note: {clean(event.message)}"
    if isinstance(event, Draining):
        what = count_words(event.in_flight, "request in flight", "requests in flight")
        stop = f"stopping ({clean(event.signal_name, 20)}): nothing new is sent"
        if not event.in_flight:
            return f"{stop}, and nothing is in flight"
        long = f", which may take up to {span_words(event.most_s)}" if event.most_s else ""
        return f"{stop}, {what} will be finished and saved{long}; once more stops at once, and may lose what is paid"
    if verbosity >= 1 and isinstance(event, Planned):
        upto = "up to " if event.images != event.requests else ""
        asked = f"{count_words(event.requests, 'request')}, {upto}{count_words(event.images, 'image')}"
        return f"start: {' '.join(filter(None, (clean(event.provider, 40), clean(event.model, 80))))}, {asked}"
    if verbosity >= 1 and isinstance(event, Retrying):
        what = f"{_subject(event.job, tally.requests, name)}{clean(event.what, 60)}"
        return f"retry: {what}: {clean(event.reason)}; again in {event.wait_s:.0f} s"
    if verbosity >= 2 and isinstance(event, Stage):
        detail = f" ({clean(event.detail, 80)})" if event.detail else ""
        return f"stage: {_subject(event.job, tally.requests, name)}{event.stage}{detail}"
    if verbosity >= 2 and isinstance(event, Saved) and event.image.path:
        return f"saved: {_facts(event.image)}"
    return ""


def _facts(image: SavedImage) -> str:
    size = f" ({image.width}x{image.height} {image.format}, {size_words(image.bytes)})" if image.bytes else ""
    return f"{clean_path(image.path or '')}{size}"


def _subject(job: int, requests: int, name: Callable[[int], str] | None = None) -> str:
    if name:
        return f"{name(job)}: "
    return f"request {job + 1} of {requests}: " if requests > 1 else ""
