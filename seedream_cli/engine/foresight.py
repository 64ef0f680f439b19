"""What budgets would say of requests that are only shown: the same sums as for a run, with nothing sent or held."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import BudgetError
from ..ledger.ledger import Ledger
from ..ledger.records import Caps
from ..results import Money, to_micro
from ..text import money_words
from .plan import Plan


def foresee(plan: Plan, day: Ledger | None) -> BudgetError | None:
    """What would end a run of this plan before all of it is sent, if every request comes to the most it can cost.

    `day` is the user's ledger, which keeps the day's budget; None where there is none yet.
    """
    worst = sum(to_micro(job.price(job.request.images_at_most)) or 0 for job in plan.jobs)
    return foresee_sum(worst, plan.caps, None, day)


def foresee_sum(micro: int, caps: Caps, batch: Ledger | None, day: Ledger | None) -> BudgetError | None:
    """What would end requests that come to so much, beside what `batch`, their ledger, and the `day` have spent."""
    for cap, spent, name, hint in _budgets(caps, batch, day):
        # What costs nothing passes a budget that is used up, too.
        if micro and spent + micro > cap:
            return BudgetError(
                f"this may cost up to {_words(micro)}, and {name} of {_words(cap)} has {_words(spent)} spent or held: "
                "a run would end with 10 before all of it is sent",
                hint=hint,
            )
    return None


def _budgets(caps: Caps, batch: Ledger | None, day: Ledger | None) -> Iterator[tuple[int, int, str, str]]:
    """Each budget that is set: what it has, what of that is spent, how it is called, and what gets past it."""
    higher = "a higher --max-cost draws all of it"
    if caps.run is not None:
        yield caps.run, 0, "this run's budget", higher
    if caps.batch is not None:
        yield caps.batch, batch.spent().total if batch else 0, "the budget of this batch, over all its runs,", higher
    if caps.part is not None:
        spent = batch.spent(has_row=caps.has_row).total if batch else 0
        yield caps.part, spent, "this shard's part of the batch's budget", higher
    if caps.daily is not None:
        spent = day.spent(since=day.today()).total if day else 0
        yield caps.daily, spent, "today's budget", "raise `daily` under [budget], or wait until tomorrow"


def _words(micro: int) -> str:
    return money_words(Money(micro))
