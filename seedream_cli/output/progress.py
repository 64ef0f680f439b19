"""Which display a run gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Literal

from ..results import Event, Saved, SavedImage
from .console import Console
from .live_progress import LiveSink
from .plain_progress import FewNotes, PlainBatchSink, PlainSink, QuietSink, batch_name
from .summary import Display, Mode, place_of
from .tally import Tally

Kind = Literal["auto", "bar", "plain", "none"]


def is_live(kind: Kind, console: Console, *, verbosity: int = 0) -> bool:
    """Whether a run gets a live display. `verbosity` is -1 for `-q`, which silences all but an explicit `bar`.

    It needs a terminal, whatever colours were forced. The log of a CI service is none, even where it looks like one.
    """
    if kind == "auto" and (verbosity < 0 or console.ci):
        return False
    return kind in {"auto", "bar"} and console.stderr_is_terminal


def make_sink(kind: Kind, console: Console, *, verbosity: int = 0, tally: Tally | None = None) -> Display:
    """The display for a run: live, or plain lines, or with `-q` nothing unless it is asked for."""
    if is_live(kind, console, verbosity=verbosity):
        return LiveSink(console, verbosity=verbosity, tally=tally)
    if kind == "none" or (kind == "auto" and verbosity < 0):
        return QuietSink() if verbosity < 0 else PlainSink(console, verbosity=-1)
    return PlainSink(console, verbosity=max(verbosity, 0))


def make_batch_sink(kind: Kind, console: Console, *, verbosity: int = 0, tally: Tally | None = None) -> Display:
    """The display for a table's run, whose plain lines are rare."""
    if is_live(kind, console, verbosity=verbosity):
        return FewNotes(LiveSink(console, verbosity=verbosity, tally=tally, name=batch_name), console)
    if kind == "none" or (kind == "auto" and verbosity < 0):
        return QuietSink() if verbosity < 0 else FewNotes(PlainSink(console, verbosity=-1), console)
    return FewNotes(PlainBatchSink(console, verbosity=max(verbosity, 0)), console)


class PrintingSink:
    """Prints each image's place the moment that it is there, counts it in `printed`, and hands every event on.

    `own` are the indexes of the run's own jobs: an image of an earlier run is no result of this one.
    """

    def __init__(
        self, display: Display, console: Console, mode: Mode, printed: Counter[str], own: Container[int]
    ) -> None:
        self._display = display
        self._console = console
        self._mode = mode
        self._printed = printed
        self._own = own

    def emit(self, event: Event) -> None:
        """Take one event."""
        self._display.emit(event)
        if isinstance(event, Saved) and event.job in self._own:
            self._print(event.image)

    def _print(self, image: SavedImage) -> None:
        if place := place_of(image, self._mode):
            self._console.out(place)
            self._printed[place] += 1

    def close(self) -> None:
        """Leave the terminal."""
        self._display.close()
