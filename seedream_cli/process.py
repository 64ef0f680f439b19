"""What a command has of its process: its streams, its surroundings' ledger, and the hook by which tests kill it."""

from __future__ import annotations

import datetime as dt
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import FileError
from .settings import Surroundings, prepare_state, read_surroundings

if TYPE_CHECKING:
    from .ledger import Ledger
    from .streams import Streams


def process_streams(surroundings: Surroundings | None = None) -> Streams:
    """The process's streams, and what is known of them."""
    from .streams import Streams

    around = surroundings or read_surroundings()
    return Streams(
        stdout=sys.stdout,
        stderr=sys.stderr,
        stdin_is_terminal=_is_terminal(sys.stdin),
        stdout_is_terminal=_is_terminal(sys.stdout),
        stderr_is_terminal=_is_terminal(sys.stderr) and not around.is_dumb,
        width=shutil.get_terminal_size().columns,
        color=around.wants_color,
        ci=around.in_ci,
    )


def _is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal; a closed one is none."""
    return stream is not None and not stream.closed and stream.isatty()


def open_ledger_here(surroundings: Surroundings | None = None) -> Ledger:
    """The user's ledger, what dead processes left in it settled. Raises `FileError` where there can be none."""
    from .kept import REPLY_MOST
    from .ledger import open_ledger
    from .spool import adopt, forget, list_kept, sweep

    around = surroundings or read_surroundings()
    state = prepare_state(around.state_folder)
    try:
        ledger = open_ledger(state / "ledger.db", now=lambda: dt.datetime.now(tz=dt.UTC))
    except FileError as error:
        error.hint = "; ".join(part for part in (error.hint, "--no-ledger goes on without one") if part)
        raise
    replies = state / "replies"
    ledger.settle_orphans(replies, lambda name: adopt(replies, name, limit=REPLY_MOST))
    sweep(replies)
    for kept in list_kept(replies):
        # A process may die between writing that all is saved and removing the reply.
        if any(entry.id == kept.id and entry.status in _SETTLED for entry in ledger.find(kept.id)):
            forget(replies, kept.id)
    return ledger


_SETTLED = {"succeeded", "partial", "failed", "resolved"}


def crash_step(fault: str) -> Callable[[str], None]:
    """A test's hook: `kill:N` kills the process, without a chance to clean up, at its N-th step."""
    import os
    import signal

    number = int(fault.removeprefix("kill:")) if fault.startswith("kill:") else 0
    passed = 0

    def step(name: str) -> None:  # noqa: ARG001 (for a person with a debugger)
        nonlocal passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return step
