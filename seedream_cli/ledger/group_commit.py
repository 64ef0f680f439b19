"""Deeds of many requests in one flush: what comes up in one turn of the event loop is written down together.

A flush costs the same for one deed as for thirty, so under load the flushes are shared, and with a single request
nothing waits. Whoever waits for a deed goes on only when it is flushed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Billed, FileError
from ..storage import image_file
from .ledger import Ledger


@dataclass(frozen=True, slots=True)
class _Action:
    """What is to be written down, and who waits for it. `folder` has a new name that must be flushed before."""

    write: Callable[[], None]
    stake: Billed
    folder: Path | None
    books_money: bool
    done: asyncio.Future[None]


class GroupCommit:
    """Groups of deeds for a ledger. In `day`, if there is one, money is booked, which is flushed first."""

    def __init__(self, ledger: Ledger, day: Ledger | None = None) -> None:
        self._ledger = ledger
        self._day = day
        self._waiting: list[_Action] = []

    async def do(
        self, write: Callable[[], None], stake: Billed, *, folder: Path | None = None, books_money: bool = False
    ) -> None:
        """Write something down, and return when it is flushed. Raises what `write` raises, or `FileError`.

        `write` may be called twice, where the first time was undone. Cancelled before its turn, it is not written.
        """
        loop = asyncio.get_running_loop()
        action = _Action(write, stake, folder, books_money, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append(action)
        await action.done

    def _flush(self) -> None:
        """Write down all that waits."""
        actions, self._waiting = [action for action in self._waiting if not action.done.cancelled()], []
        failure = self._try(actions)
        if isinstance(failure, _ActionError) and len(actions) > 1:
            # Nothing of the group was written: each by itself shows which one it is.
            for action in actions:
                _tell(action, self._try([action]))
            return
        for action in actions:
            _tell(action, failure)

    def _try(self, actions: Sequence[_Action]) -> Exception | None:
        """Write deeds down together; what went wrong."""
        try:
            self._write(actions)
        except Exception as error:  # noqa: BLE001 - it is handed to whoever waits
            return error
        return None

    def _write(self, actions: Sequence[_Action]) -> None:
        if not actions:
            return
        # A name must not be lost of which the ledger says that it is there.
        for folder in dict.fromkeys(action.folder for action in actions if action.folder):
            image_file.flush_folder(folder)
        stakes = {action.stake for action in actions}
        stake = next(word for word in ("yes", "unknown", "no") if word in stakes)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._ledger.together(stake))
            if self._day is not None and any(action.books_money for action in actions):
                stack.enter_context(self._day.together("no"))
            for action in actions:
                try:
                    action.write()
                except Exception as error:
                    raise _ActionError from error


class _ActionError(Exception):
    """One deed of a group could not be written: its cause says why."""


def _tell(action: _Action, failure: Exception | None) -> None:
    """Let whoever waits for a deed go on, or raise."""
    if failure is None:
        action.done.set_result(None)
        return
    error = failure.__cause__ if isinstance(failure, _ActionError) and failure.__cause__ else failure
    if isinstance(error, FileError):
        # Each has its own to change. What it leaves in doubt is this deed's own matter, and not that of the group.
        error = FileError(error.message, hint=error.hint, billed=action.stake)
    action.done.set_exception(error)
    # Whoever waited may be stopped before it looks, which is no reason for the loop to complain.
    action.done.exception()
