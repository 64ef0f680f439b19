"""Money: what was paid, is held and may have been paid, and the caps it is held against."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BudgetError
from ..results import Money
from . import schema
from .database import Database
from .records import Caps, Charge, Hold, Spent
from .rows import to_moment, to_stamp, unreadable, update


@dataclass(frozen=True, slots=True)
class _Scope:
    """Whose money is summed up: that of a run, since a moment, of rows by their identity, or all."""

    currency: str
    run: str | None = None
    since: str | None = None
    has_row: Callable[[str], bool] | None = None


class Budget:
    """The account of all requests, and what was booked of those that are in another ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sums: dict[_Scope, tuple[int, int]] = {}

    def forget(self) -> None:
        """Sum up anew at the next look: something is about to cost more than was held for it."""
        self._sums.clear()

    def hold(self, db: sqlite3.Connection, row: sqlite3.Row, hold: Hold) -> dict[str, Any]:
        """Look at the budgets; what changes when the cost is held.

        Counted are what was paid, what others hold and what may have been paid. No price known passes no cap. Raises
        `BudgetError` that names the sums; nothing is held then.
        """
        if hold.micro is None and hold.caps.any:
            raise BudgetError(
                "the price of the next request is not known, so no budget holds it",
                hint="say what it costs under [prices] in the configuration file",
            )
        if row["reserved"] and hold.caps.any:
            # Its own earlier reservation must not count twice.
            update(db, row["id"], {"reserved": 0})
        foreign = row["currency"] != hold.caps.currency
        self._check_caps(db, row["owner"], 0 if foreign else hold.micro or 0, hold.caps)
        if row["doubts"] or row["earlier_micro"] or row["billed"] != "no":
            # What it cost before is in this run's account from now on.
            self.forget()
        changes = {"reserved": 1, "charged_at": self._database.stamp(), "payer": row["owner"]}
        return changes if hold.micro is None else {**changes, "worst_micro": hold.micro}

    def book(self, key: str, micro: int | None, *, caps: Caps) -> None:
        """Hold, then settle, money of a request whose row is in another ledger, so that the day's budget sees it.

        A batch books its worst cost here under its request's id before it sends, and the settled cost after; 0 takes
        the booking back. A crash leaves the worst cost booked. Raises `BudgetError` as `mark_sent` does.
        """
        with self._database.write("no") as db:
            if micro == 0 or caps.daily is not None:
                # Its own earlier booking must not count twice.
                db.execute("DELETE FROM outlays WHERE key = ?", (key,))
            if caps.daily is None:
                # What it costs now may be more than was held for it.
                self.forget()
            self._check_caps(db, None, micro or 0, Caps(None, caps.daily, caps.currency))
            if micro != 0:
                row = (key, self._database.stamp(), micro, caps.currency)
                db.execute(schema.BOOK, row)

    def cut_bookings(self, runs: Collection[str], costs: Mapping[str, int]) -> None:
        """Take back what was booked for requests of these runs beyond what they cost after all, the newest first."""
        self.forget()
        with self._database.write("no") as db:
            booked: dict[str, list[tuple[str, int]]] = {}
            for key, micro in db.execute(schema.NEWEST_BOOKINGS):
                run, name = [*key.split(" "), ""][:2]
                if run in runs and name in costs:
                    booked.setdefault(name, []).append((key, micro or 0))
            for name, keys in booked.items():
                excess = sum(micro for _, micro in keys) - costs[name]
                for key, micro in keys if excess > 0 or not costs[name] else ():
                    if excess >= micro:
                        db.execute("DELETE FROM outlays WHERE key = ?", (key,))
                    elif excess > 0:
                        db.execute("UPDATE outlays SET micro = micro - ? WHERE key = ?", (excess, key))
                    excess -= min(excess, micro)

    def spent(
        self,
        *,
        run: str | None = None,
        since: dt.datetime | None = None,
        currency: str = "USD",
        has_row: Callable[[str], bool] | None = None,
    ) -> Spent:
        """What was paid, is held, and may have been paid: by one run, since a moment, for some rows, or at all."""
        with self._database.read() as db:
            return _spent(db, _Scope(currency, run, None if since is None else to_stamp(since), has_row))

    def today(self) -> dt.datetime:
        """When the local day began, which the daily budget counts from."""
        return _midnight(self._database.now())

    def charges(self) -> Iterator[Charge]:
        """What each request that was ever sent cost, or may have cost, oldest first."""
        with self._database.read() as db:
            rows = db.execute(schema.CHARGES).fetchall()
        for row in rows:
            name, at, provider, model, images, paid, possible, is_priced, currency = row
            try:
                moment = to_moment(at)
            except (ValueError, TypeError) as error:
                raise unreadable(name) from error
            assert moment is not None  # noqa: S101 - a request has always one
            yield Charge(name, moment, provider, model, images, paid, possible, bool(is_priced), currency)

    def booked(self) -> Iterator[tuple[str, Charge]]:
        """What was booked here of batches' requests, each with the id of its run."""
        with self._database.read() as db:
            rows = db.execute("SELECT key, charged_at, micro, currency FROM outlays ORDER BY charged_at").fetchall()
        for key, at, micro, currency in rows:
            # Behind the id there may be which attempt it was.
            run, name = [*key.split(" "), ""][:2]
            moment = dt.datetime.fromisoformat(at)
            yield run, Charge(name, moment, "", "", 0, micro or 0, 0, micro is not None, currency)

    def _check_caps(self, db: sqlite3.Connection, run_id: str | None, micro: int, caps: Caps) -> None:
        if caps.run is not None and run_id is not None:
            told = ("this run's budget", "only a higher --max-cost draws the rest; the same command starts anew")
            self._check_cap(db, _Scope(caps.currency, run=run_id), micro, caps.run, told)
        more = "the same command goes on only with a higher --max-cost"
        if caps.batch is not None:
            told = ("the budget of this batch, over all its runs,", more)
            self._check_cap(db, _Scope(caps.currency), micro, caps.batch, told)
        if caps.part is not None:
            told = ("this shard's part of the batch's budget", more)
            self._check_cap(db, _Scope(caps.currency, has_row=caps.has_row), micro, caps.part, told)
        if caps.daily is not None:
            told = ("today's budget", "raise `daily` under [budget], or go on tomorrow")
            self._check_cap(db, _Scope(caps.currency, since=to_stamp(self.today())), micro, caps.daily, told)

    def _check_cap(
        self,
        db: sqlite3.Connection,
        of: _Scope,
        micro: int,
        cap: int,
        told: tuple[str, str],
    ) -> None:
        """Hold what is spent `of` a run, since a moment, of some rows or at all, against a cap.

        All rows are summed up only where the last sum, and all that was held since, may not leave room: what happens to
        a request that is held only makes it cost less. What may make the sum larger forgets it, and another process's
        writes make it worthless.
        """
        version = db.execute(schema.VERSION).fetchone()[0]
        known, most = self._sums.get(of, (None, 0))
        if known != version or most + micro > cap:
            spent = _spent(db, of)
            _hold_cap(spent, micro, cap, *told)
            most = spent.total
        self._sums[of] = version, most + micro


def _spent(db: sqlite3.Connection, of: _Scope) -> Spent:
    currency = of.currency
    values = {"currency": currency, "run": of.run, "since": of.since}
    parts = ["payer = :run"] if of.run is not None else []
    parts += ["charged_at >= :since"] if of.since is not None else []
    if of.has_row is not None:
        db.create_function("in_part", 1, of.has_row, deterministic=True)
        parts += ["charged_at IS NOT NULL AND identity IS NOT NULL AND in_part(identity)"]
    where = f" WHERE {' AND '.join(parts)}" if parts else ""
    paid, reserved, possible, unpriced = db.execute(schema.MONEY + where, values).fetchone()
    if of.run is None and of.has_row is None:
        booked, unknown = db.execute(schema.BOOKED, values).fetchone()
        paid, unpriced = paid + booked, unpriced + unknown
    return Spent(paid, reserved, possible, unpriced, currency)


def _hold_cap(spent: Spent, micro: int, cap: int, name: str, hint: str) -> None:
    # What costs nothing passes a budget that is used up, too.
    if not micro or spent.total + micro <= cap:
        return
    sums = ((spent.paid, "spent"), (spent.reserved, "reserved"), (spent.possible, "possibly spent"))
    told = " and ".join(
        f"{_money(amount, spent.currency)} {word}" for amount, word in sums if amount or word == "spent"
    )
    raise BudgetError(
        f"the next request may cost up to {_money(micro, spent.currency)}, and {name} of "
        f"{_money(cap, spent.currency)} has {told}",
        hint=hint,
    )


def _money(micro: int, currency: str) -> str:
    """Micro-units as an amount: at least two decimals, more where it has them."""
    whole, _, rest = f"{Money(micro).amount:.6f}".partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')} {currency}"


def _midnight(moment: dt.datetime) -> dt.datetime:
    """The start of the local day, also on a day on which the clocks are put forward or back."""
    day = moment.astimezone().date()
    return dt.datetime(day.year, day.month, day.day).astimezone()
