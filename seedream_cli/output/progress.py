"""Which display a run gets."""

from __future__ import annotations

from typing import Literal

from .console import Console
from .live_progress import LiveSink
from .plain_progress import BatchTally, FewNotes, PlainBatchSink, PlainSink, QuietSink, batch_name
from .summary import Display

Kind = Literal["auto", "bar", "plain", "none"]


def make_sink(kind: Kind, console: Console, *, verbosity: int = 0) -> Display:
    """The display for a run. `verbosity` is -1 for `-q`, which silences all but an explicit `bar` or `plain`.

    A live display needs a terminal: without one `bar` and `auto` are plain lines, whatever colours were forced. The log
    of a CI service is none, even where it looks like one.
    """
    if kind == "none" or (kind == "auto" and verbosity < 0):
        return QuietSink() if verbosity < 0 else PlainSink(console, verbosity=-1)
    if kind == "plain" or not console.stderr_is_terminal or (kind == "auto" and console.ci):
        return PlainSink(console, verbosity=max(verbosity, 0))
    return LiveSink(console, verbosity=verbosity)


def make_batch_sink(kind: Kind, console: Console, *, verbosity: int = 0) -> Display:
    """The display for a table's run: one line for the whole, above the requests in flight; or plain lines, rarely."""
    if kind == "none" or (kind == "auto" and verbosity < 0):
        return QuietSink() if verbosity < 0 else FewNotes(PlainSink(console, verbosity=-1), console)
    if kind == "plain" or not console.stderr_is_terminal:
        return FewNotes(PlainBatchSink(console, verbosity=max(verbosity, 0)), console)
    return FewNotes(LiveSink(console, verbosity=verbosity, tally=BatchTally(), name=batch_name), console)
