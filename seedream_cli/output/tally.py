"""How far a run is: what has ended and how, what is at the provider, how fast it goes and what it has cost."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from ..results import (
    Cost,
    Downloading,
    Draining,
    Event,
    Finished,
    Money,
    Planned,
    Retrying,
    Saved,
    Stage,
    to_micro,
)
from ..text import money_words, span_words

Fact = tuple[str, str]
"""Words, and whether they are "bad", "doubtful", "good" or plain (""): colour is never their only sign."""

_RECENT_S = 60.0

_TIMES_KEPT = 21


class Tally:
    """Counts events. `most` is the most that the run can cost, `usual` the seconds that models took before it.

    `is_own` tells by its index whether a request is one of those planned: beside them a run may fetch what earlier
    ones have paid for.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        most: Cost | None = None,
        usual: Mapping[str, float] | None = None,
        is_own: Callable[[int], bool] = lambda index: index >= 0,
    ) -> None:
        self._clock = clock
        self._since = clock()
        self._most = most
        self._usual = usual or {}
        self._is_own = is_own
        self._took: dict[str, deque[float]] = {}
        self._in_flight: set[int] = set()
        self._images: deque[float] = deque(maxlen=1000)
        self._cost: Counter[str] = Counter()
        self._is_stopping = False
        self.requests = 0
        self.done = 0
        self.failed = 0
        self.unknown = 0

    def take(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, Planned):
            self.requests, self._since = event.requests, self._clock()
        elif isinstance(event, Draining):
            self._is_stopping = True
        elif isinstance(event, Stage) and event.stage != "done":
            self._in_flight.add(event.job)
        elif isinstance(event, Stage | Retrying | Downloading):
            self._in_flight.discard(event.job)
        elif isinstance(event, Saved) and event.image.path:
            self._images.append(self._clock())
        elif isinstance(event, Finished):
            self._end(event)

    def _end(self, event: Finished) -> None:
        result = event.result
        self._in_flight.discard(result.index)
        if not self._is_own(result.index) or result.status == "interrupted":
            # What was held back has not ended: it was never begun.
            return
        self.done += 1
        self.unknown += result.status == "unknown"
        self.failed += result.exit_code != 0 and result.status != "unknown"
        if result.attempts and result.cost:
            self._cost[result.cost.currency] += to_micro(result.cost) or 0
        if result.status == "succeeded" and result.timing.provider_s:
            self._took.setdefault(result.model, deque(maxlen=_TIMES_KEPT)).append(result.timing.provider_s)

    @property
    def crossed_tenth(self) -> bool:
        """Whether the request that just ended completed another tenth of the run."""
        return self.done * 10 // self.requests > (self.done - 1) * 10 // self.requests

    @property
    def share(self) -> float:
        """How much of the run is done, from 0 to 1."""
        return min(self.done / self.requests, 1.0) if self.requests else 0.0

    @property
    def is_troubled(self) -> bool:
        """Whether anything has failed, or may have."""
        return bool(self.failed or self.unknown)

    def usual_s(self, model: str) -> float | None:
        """How long this model takes as a rule (the median), by this run or by earlier ones; None where nobody knows."""
        took = sorted(self._took.get(model, ()))
        return took[len(took) // 2] if took else self._usual.get(model)

    def words(self) -> str:
        """Such as "12 of 120 requests, 1 failed"."""
        return ", ".join([f"{self.done} of {self.requests} requests", *(word for word, _ in self._bad())])

    def facts(self, now: float) -> list[Fact]:
        """What is worth saying, the most important first."""
        span = min(_RECENT_S, now - self._since)
        recent = sum(moment > now - _RECENT_S for moment in self._images)
        return [
            (f"{self.done} of {self.requests}", "good" if self.done else ""),
            *self._bad(),
            *self._ahead(now),
            *self.money(),
            *([(f"{recent * 60 / span:.0f} images/min", "")] if recent and span >= 1 else []),
            *([(f"{len(self._in_flight)} in flight", "")] if self._in_flight else []),
        ]

    def line(self, now: float) -> str:
        """All facts on one line."""
        return " · ".join(words for words, _ in self.facts(now))

    def _bad(self) -> list[Fact]:
        named = ((self.failed, "failed", "bad"), (self.unknown, "unknown", "doubtful"))
        return [(f"{count} {word}", kind) for count, word, kind in named if count]

    def _ahead(self, now: float) -> list[Fact]:
        """The time left. Once a run is being stopped, what is left is not waited for."""
        if self._is_stopping:
            return [("stopping", "doubtful")]
        left = (now - self._since) / self.done * (self.requests - self.done) if self.done else 0.0
        return [(f"{span_words(left)} left", "")] if left >= 1 else []

    def money(self) -> list[Fact]:
        """What was spent so far, and the most that it may come to."""
        spent = [money_words(Money(micro, currency)) for currency, micro in self._cost.items() if micro]
        most = f"at most {money_words(self._most)}" if self._most and self._most.amount else ""
        words = " of ".join(filter(None, [" + ".join(spent), most]))
        return [(words, "")] if words else []
