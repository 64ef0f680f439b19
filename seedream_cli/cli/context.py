"""What commands share: the console, opening a ledger, and the hook for crash tests."""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.environment import Environment, prepare_state, read_environ
from ..errors import FileError

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..output.console import Console


BATCH_HOME = ".seedream"
"""The folder in a batch's output for its ledger and stored responses."""


_CONSOLE: ContextVar[Console | None] = ContextVar("console", default=None)


@contextlib.contextmanager
def console_of_run() -> Iterator[Console]:
    """The one console of a command line, which remembers errors of standard output."""
    console = _make_console()
    token = _CONSOLE.set(console)
    try:
        yield console
    finally:
        _CONSOLE.reset(token)


def process_console() -> Console:
    """The console of this run, or a new one outside of a run."""
    return _CONSOLE.get() or _make_console()


def _make_console() -> Console:
    """The process's standard streams, with terminal width and colour."""
    from ..output.console import Console

    around = read_environ()
    return Console(
        stdout=sys.stdout,
        stderr=sys.stderr,
        stdin_is_terminal=_is_terminal(sys.stdin),
        stdout_is_terminal=_is_terminal(sys.stdout),
        stderr_is_terminal=_is_terminal(sys.stderr) and not around.is_dumb,
        width=shutil.get_terminal_size().columns,
        color=around.wants_color,
        color_anywhere=around.forces_color,
        ci=around.in_ci,
        taskbar=around.has_taskbar,
        folds=around.folds_lines,
    )


def _is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal; a closed one is none."""
    return stream is not None and not stream.closed and stream.isatty()


def open_ledger_here(
    environment: Environment | None = None, *, home: Path | None = None, goes_without: bool = False
) -> Ledger:
    """Open the user's ledger, or a batch's in `home`, and recover what dead runs left in it.

    Raises `FileError`, with the hint --no-ledger for a command that `goes_without`.
    """
    from ..engine.stored_reply import POLLED, REPLY_MOST
    from ..ledger.ledger import open_ledger
    from ..storage import reply_journal
    from ..storage.reply_file import adopt, forget, list_kept, list_parts, sweep

    around = environment or read_environ()
    # `open_ledger` checks `home` before it creates it: a batch's folder may have anything of that name.
    state = home or prepare_state(around.state_folder)
    try:
        ledger = open_ledger(state / "ledger.db", now=lambda: dt.datetime.now(tz=dt.UTC), is_shared=home is not None)
    except FileError as error:
        # A daily budget needs the ledger.
        is_free = goes_without and around.settings.daily_budget is None
        way_out = "--no-ledger goes on without a record of what is paid" if is_free else ""
        error.hint = "; ".join(part for part in (error.hint, way_out) if part)
        raise
    replies = state / "replies"
    recovered = ledger.recover_orphans(
        replies,
        lambda name, token: adopt(replies, name, limit=REPLY_MOST) or reply_journal.adopt(replies, name, token),
    )
    for name in recovered.unknown:
        process_console().err(
            f"note: {name} was out when its process ended, and may have been billed; it is not sent again. Look at the "
            f"provider's usage page, then seedream history resolve {name} --paid or --unpaid"
        )
    for name in list_parts(replies):
        # Of a run with --no-ledger that died: the response is nowhere else.
        if not ledger.entries([name.removesuffix(POLLED)]):
            adopt(replies, name, limit=REPLY_MOST)
    sweep(replies)
    reply_journal.sweep(replies, ledger.tokens_in_flight())
    for kept in list_kept(replies):
        # The process died after the images were saved and before the response was deleted.
        [entry] = ledger.entries([kept.id]) or [None]
        if entry and entry.status in _ENDED and all(image.state != "expired" for image in entry.images):
            forget(replies, kept.id, asides=not entry.doubts)
    return ledger


@contextlib.contextmanager
def open_ledger_for_reading(environment: Environment) -> Iterator[Ledger | None]:
    """The user's ledger for reading, without recovery; None where there is none yet."""
    import os

    from ..ledger.ledger import open_ledger

    place = environment.state_folder / "ledger.db"
    if not os.path.lexists(place):
        yield None
        return
    with open_ledger(place, now=lambda: dt.datetime.now(tz=dt.UTC)) as ledger:
        yield ledger


def reply_names() -> list[str]:
    """The ids of all stored responses, partial ones too."""
    folder = read_environ().state_folder / "replies"
    return sorted({path.name.partition(".")[0] for path in folder.iterdir()}) if folder.is_dir() else []


def delete_replies(names: Iterable[str], home: Path | None = None) -> None:
    """Delete the stored responses of these requests, partial ones too, in the state folder or a batch's `home`."""
    from ..storage.reply_file import forget

    for name in names:
        forget((home or read_environ().state_folder) / "replies", name)


_ENDED = {"succeeded", "partial", "failed", "resolved"}
