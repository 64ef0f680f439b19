"""Money: what was paid, is reserved and may have been paid, and the caps on it."""

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
from .records import Caps, Charge, Reservation, Spent
from .rows import to_moment, to_stamp, unreadable, update


@dataclass(frozen=True, slots=True)
class _Scope:
    """Which requests are summed up: of a run, charged since a time, rows by identity, or all."""

    currency: str
    run: str | None = None
    since: str | None = None
    has_row: Callable[[str], bool] | None = None


class Budget:
    """Sums over all requests, and charges for requests of other ledgers (the table `outlays`)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sums: dict[_Scope, tuple[int, int]] = {}

    def reset_sums(self) -> None:
        """Drop the cached sums: a request costs more than was reserved for it."""
        self._sums.clear()

    def reserve(self, db: sqlite3.Connection, row: sqlite3.Row, reservation: Reservation) -> dict[str, Any]:
        """Check the caps and return the columns that reserve the cost.

        Paid, reserved and possible costs count. A request without a known price passes no cap. Raises `BudgetError`
        with the sums; nothing is reserved then.
        """
        if reservation.micro is None and reservation.caps.any:
            raise BudgetError(
                "the price of the next request is not known, so no budget holds it",
                hint="say what it costs under [prices] in the configuration file",
            )
        if row["reserved"] and reservation.caps.any:
            # Else its earlier reservation would count twice.
            update(db, row["id"], {"reserved": 0})
        foreign = row["currency"] != reservation.caps.currency
        self._check_caps(db, row["owner"], 0 if foreign else reservation.micro or 0, reservation.caps)
        if row["doubts"] or row["earlier_micro"] or row["billed"] != "no":
            # Its earlier costs count for this run from now on.
            self.reset_sums()
        changes = {"reserved": 1, "charged_at": self._database.stamp(), "payer": row["owner"]}
        return changes if reservation.micro is None else {**changes, "worst_micro": reservation.micro}

    def record_external_charge(self, key: str, micro: int | None, *, caps: Caps) -> None:
        """Record the cost of a request that another ledger has, for the daily budget.

        A batch records the worst cost before it sends and the settled cost after; 0 deletes the record. After a crash
        the worst cost stays. Raises `BudgetError` as `mark_sent` does.
        """
        with self._database.write("no") as db:
            if micro == 0 or caps.daily is not None:
                # Else its earlier record would count twice.
                db.execute("DELETE FROM outlays WHERE key = ?", (key,))
            if caps.daily is None:
                # It may cost more now than was reserved.
                self.reset_sums()
            self._check_caps(db, None, micro or 0, Caps(None, caps.daily, caps.currency))
            if micro != 0:
                row = (key, self._database.stamp(), micro, caps.currency)
                db.execute(schema.INSERT_OUTLAY, row)

    def reduce_external_charges(self, runs: Collection[str], costs: Mapping[str, int]) -> None:
        """Reduce the external charges of these runs to `costs`, micro-units by request id, the newest first."""
        self.reset_sums()
        with self._database.write("no") as db:
            external_charges: dict[str, list[tuple[str, int]]] = {}
            for key, micro in db.execute(schema.NEWEST_OUTLAYS):
                run, name = [*key.split(" "), ""][:2]
                if run in runs and name in costs:
                    external_charges.setdefault(name, []).append((key, micro or 0))
            for name, keys in external_charges.items():
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
        """The sums for one run, since a time, for rows that `has_row` accepts by identity, or for all."""
        with self._database.read() as db:
            return _spent(db, _Scope(currency, run, None if since is None else to_stamp(since), has_row))

    def today(self) -> dt.datetime:
        """Local midnight, which the daily budget counts from."""
        return _midnight(self._database.now())

    def charges(self) -> Iterator[Charge]:
        """The cost of each request that was ever sent, oldest first."""
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

    def external_charges(self) -> Iterator[tuple[str, Charge]]:
        """The charges recorded here for requests of batches, each with its run's id."""
        with self._database.read() as db:
            rows = db.execute("SELECT key, charged_at, micro, currency FROM outlays ORDER BY charged_at").fetchall()
        for key, at, micro, currency in rows:
            # "RUN REQUEST" or "RUN REQUEST ATTEMPT".
            run, name = [*key.split(" "), ""][:2]
            moment = dt.datetime.fromisoformat(at)
            yield run, Charge(name, moment, "", "", 0, micro or 0, 0, micro is not None, currency)

    def _check_caps(self, db: sqlite3.Connection, run_id: str | None, micro: int, caps: Caps) -> None:
        if caps.run is not None and run_id is not None:
            words = ("this run's budget", "only a higher --max-cost draws the rest; the same command starts anew")
            self._check_cap(db, _Scope(caps.currency, run=run_id), micro, caps.run, words)
        more = "the same command goes on only with a higher --max-cost"
        if caps.batch is not None:
            words = ("the budget of this batch, over all its runs,", more)
            self._check_cap(db, _Scope(caps.currency), micro, caps.batch, words)
        if caps.part is not None:
            words = ("this shard's part of the batch's budget", more)
            self._check_cap(db, _Scope(caps.currency, has_row=caps.has_row), micro, caps.part, words)
        if caps.daily is not None:
            words = ("today's budget", "raise `daily` under [budget], or go on tomorrow")
            self._check_cap(db, _Scope(caps.currency, since=to_stamp(self.today())), micro, caps.daily, words)

    def _check_cap(
        self,
        db: sqlite3.Connection,
        of: _Scope,
        micro: int,
        cap: int,
        words: tuple[str, str],
    ) -> None:
        """Raise `BudgetError` where the sum `of` a scope and `micro` exceed a cap.

        Summing reads all rows, so the last sum plus all reservations since is used while that is below the cap: a
        reserved request can only get cheaper, and what makes a sum larger calls `reset_sums`. Another process's writes
        (the data version) invalidate it too.
        """
        version = db.execute(schema.DATA_VERSION).fetchone()[0]
        known, most = self._sums.get(of, (None, 0))
        if known != version or most + micro > cap:
            spent = _spent(db, of)
            _raise_if_over(spent, micro, cap, *words)
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
        external_charges, unknown = db.execute(schema.OUTLAY_SUMS, values).fetchone()
        paid, unpriced = paid + external_charges, unpriced + unknown
    return Spent(paid, reserved, possible, unpriced, currency)


def _raise_if_over(spent: Spent, micro: int, cap: int, name: str, hint: str) -> None:
    # Free requests pass an exhausted budget.
    if not micro or spent.total + micro <= cap:
        return
    sums = ((spent.paid, "spent"), (spent.reserved, "reserved"), (spent.possible, "possibly spent"))
    words = " and ".join(
        f"{_money(amount, spent.currency)} {word}" for amount, word in sums if amount or word == "spent"
    )
    raise BudgetError(
        f"the next request may cost up to {_money(micro, spent.currency)}, and {name} of "
        f"{_money(cap, spent.currency)} has {words}",
        hint=hint,
    )


def _money(micro: int, currency: str) -> str:
    """Micro-units as an amount with two to six decimals."""
    whole, _, rest = f"{Money(micro).amount:.6f}".partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')} {currency}"


def _midnight(moment: dt.datetime) -> dt.datetime:
    """The start of the local day, also on days with a change of daylight saving."""
    day = moment.astimezone().date()
    return dt.datetime(day.year, day.month, day.day).astimezone()
