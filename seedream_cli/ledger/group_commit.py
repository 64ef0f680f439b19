"""Group commit: the writes of one iteration of the event loop share one transaction and one flush.

A flush takes as long for thirty writes as for one. A caller goes on only when its write is flushed.
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
    """A write and its waiting caller. `folder` has a new name that must be flushed before."""

    write: Callable[[], None]
    billed: Billed
    folder: Path | None
    has_external_charge: bool
    done: asyncio.Future[None]


class GroupCommit:
    """Groups writes to a ledger. External charges go to `day`, if there is one, which is flushed first."""

    def __init__(self, ledger: Ledger, day: Ledger | None = None) -> None:
        self._ledger = ledger
        self._day = day
        self._waiting: list[_Action] = []

    async def commit(
        self,
        write: Callable[[], None],
        billed: Billed,
        *,
        folder: Path | None = None,
        has_external_charge: bool = False,
    ) -> None:
        """Run `write` in the next group and return when it is flushed. Raises what `write` raises, or `FileError`.

        `write` may run twice, the first time rolled back. Not run where the caller is cancelled before.
        """
        loop = asyncio.get_running_loop()
        action = _Action(write, billed, folder, has_external_charge, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append(action)
        await action.done

    def _flush(self) -> None:
        """Commit the waiting writes as one group."""
        actions, self._waiting = [action for action in self._waiting if not action.done.cancelled()], []
        failure = self._attempt(actions)
        if isinstance(failure, _ActionError) and len(actions) > 1:
            # Rolled back: one at a time, only the failing one fails.
            for action in actions:
                _complete(action, self._attempt([action]))
            return
        for action in actions:
            _complete(action, failure)

    def _attempt(self, actions: Sequence[_Action]) -> Exception | None:
        """Commit a group; returns its error."""
        try:
            self._write(actions)
        except Exception as error:  # noqa: BLE001 - raised in the waiting callers
            return error
        return None

    def _write(self, actions: Sequence[_Action]) -> None:
        if not actions:
            return
        # The ledger must not list a file whose name a crash could still lose.
        for folder in dict.fromkeys(action.folder for action in actions if action.folder):
            image_file.flush_folder(folder)
        stakes = {action.billed for action in actions}
        billed = next(word for word in ("yes", "unknown", "no") if word in stakes)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._ledger.transaction(billed))
            if self._day is not None and any(action.has_external_charge for action in actions):
                stack.enter_context(self._day.transaction("no"))
            for action in actions:
                try:
                    action.write()
                except Exception as error:
                    raise _ActionError from error


class _ActionError(Exception):
    """A write of a group raised; the error is its cause."""


def _complete(action: _Action, failure: Exception | None) -> None:
    """Let the caller go on, or raise."""
    if failure is None:
        action.done.set_result(None)
        return
    error = failure.__cause__ if isinstance(failure, _ActionError) and failure.__cause__ else failure
    if isinstance(error, FileError):
        # A copy for each caller, with what failing costs this write and not the group.
        error = FileError(error.message, hint=error.hint, billed=action.billed)
    action.done.set_exception(error)
    # Retrieved here: else asyncio logs it where the caller was cancelled.
    action.done.exception()
