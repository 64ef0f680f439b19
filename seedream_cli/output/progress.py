"""Which display a run gets."""

from __future__ import annotations

from typing import Literal

from .live_progress import LiveSink
from .plain_progress import BatchTally, FewNotes, PlainBatchSink, PlainSink, QuietSink, batch_name
from .streams import Console
from .summary import Display

Kind = Literal["auto", "bar", "plain", "none"]


def make_sink(kind: Kind, streams: Console, *, verbosity: int = 0) -> Display:
    """The display for a run. `verbosity` is -1 for `-q`, which silences all but an explicit `bar` or `plain`.

    A live display needs a terminal: without one `bar` and `auto` are plain lines, whatever colours were forced. The log
    of a CI service is none, even where it looks like one.
    """
    if kind == "none" or (kind == "auto" and verbosity < 0):
        return QuietSink() if verbosity < 0 else PlainSink(streams, verbosity=-1)
    if kind == "plain" or not streams.stderr_is_terminal or (kind == "auto" and streams.ci):
        return PlainSink(streams, verbosity=max(verbosity, 0))
    return LiveSink(streams, verbosity=verbosity)


def make_batch_sink(kind: Kind, streams: Console, *, verbosity: int = 0) -> Display:
    """The display for a table's run: one line for the whole, above the requests in flight; or plain lines, rarely."""
    if kind == "none" or (kind == "auto" and verbosity < 0):
        return QuietSink() if verbosity < 0 else FewNotes(PlainSink(streams, verbosity=-1), streams)
    if kind == "plain" or not streams.stderr_is_terminal:
        return FewNotes(PlainBatchSink(streams, verbosity=max(verbosity, 0)), streams)
    return FewNotes(LiveSink(streams, verbosity=verbosity, tally=BatchTally(), name=batch_name), streams)
