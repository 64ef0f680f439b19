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

from . import store
from .errors import Billed
from .ledger import Ledger


@dataclass(frozen=True, slots=True)
class _Deed:
    """What is to be written down, and who waits for it. `folder` has a new name that must be flushed before."""

    write: Callable[[], None]
    stake: Billed
    folder: Path | None
    books_money: bool
    done: asyncio.Future[None]


class Commits:
    """Groups of deeds for a ledger. In `day`, if there is one, money is booked, which is flushed first."""

    def __init__(self, ledger: Ledger, day: Ledger | None = None) -> None:
        self._ledger = ledger
        self._day = day
        self._waiting: list[_Deed] = []

    async def do(
        self, write: Callable[[], None], stake: Billed, *, folder: Path | None = None, books_money: bool = False
    ) -> None:
        """Write something down, and return when it is flushed. Raises what `write` raises, or `FileError`.

        `write` may be called twice, where the first time was undone. Cancelled before its turn, it is not written.
        """
        loop = asyncio.get_running_loop()
        deed = _Deed(write, stake, folder, books_money, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append(deed)
        await deed.done

    def _flush(self) -> None:
        """Write down all that waits."""
        deeds, self._waiting = [deed for deed in self._waiting if not deed.done.cancelled()], []
        try:
            self._write(deeds)
        except Exception:  # noqa: BLE001 - each deed that is at fault is handed its own below
            for deed in deeds:
                self._write_alone(deed)
            return
        for deed in deeds:
            deed.done.set_result(None)

    def _write_alone(self, deed: _Deed) -> None:
        """Of a group with a deed that cannot be written nothing was: each by itself shows which one it is."""
        try:
            self._write([deed])
        except Exception as error:  # noqa: BLE001 - it is handed to whoever waits
            deed.done.set_exception(error)
            # Whoever waited may be stopped before it looks, which is no reason for the loop to complain.
            deed.done.exception()
        else:
            deed.done.set_result(None)

    def _write(self, deeds: Sequence[_Deed]) -> None:
        if not deeds:
            return
        # A name must not be lost of which the ledger says that it is there.
        for folder in dict.fromkeys(deed.folder for deed in deeds if deed.folder):
            store.flush_folder(folder)
        stakes = {deed.stake for deed in deeds}
        stake = next(word for word in ("yes", "unknown", "no") if word in stakes)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._ledger.together(stake))
            if self._day is not None and any(deed.books_money for deed in deeds):
                stack.enter_context(self._day.together("no"))
            for deed in deeds:
                deed.write()
