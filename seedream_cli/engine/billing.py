"""What a request cost, by what came of it: how many images are billed, and how much of the sum is certain."""

from __future__ import annotations

from dataclasses import replace

from ..errors import SeedreamError
from ..providers.contract import Ready
from ..request.limits import COUNT_MOST
from ..results import Cost
from .plan import Job
from .state import JobState


def billed_images(ready: Ready | None) -> int | None:
    """How many images are billed: the provider's own count, else what came; None while that is unknown.

    A count below what came is none: successes alone are billed, and these are. No budget is stretched by it.
    """
    if ready is None:
        return None
    counted, came = (ready.usage or {}).get("generated_images"), _came(ready)
    ambiguous = any(image.error and image.error.billed == "unknown" for image in ready.images)
    if isinstance(counted, int) and 0 <= counted <= COUNT_MOST and (counted or not ambiguous):
        return max(counted, came)
    # Where nobody can say of an image whether it was billed, nobody can say how many were.
    return None if ambiguous else came


def cost_of(job: Job, state: JobState, error: SeedreamError | None) -> tuple[Cost | None, Cost | None]:
    """What the request cost at the most, and how much of that is possible only; None where it cost nothing."""
    cost, possible = _cost_of_last_attempt(job, state.ready, error)
    # Where the last attempt never left, or was refused unbilled, what is reported as ambiguous is one before it.
    before = state.ambiguous - (not state.is_out)
    each = job.price(job.request.images_at_most) if before > 0 else None
    if each is None:
        return cost, possible
    # Each attempt before that may have been billed is possible money beside what the last one cost.
    loose = replace(each, amount=each.amount * before + (possible.amount if possible else 0.0))
    certain = cost.amount - (possible.amount if possible else 0.0) if cost else 0.0
    return replace(each, amount=certain + loose.amount), loose


def _cost_of_last_attempt(
    job: Job, ready: Ready | None, error: SeedreamError | None
) -> tuple[Cost | None, Cost | None]:
    made, came = billed_images(ready), _came(ready)
    if error is None or error.billed != "unknown":
        return (None if made is None else job.price(made)), None
    most, sure = _billed_at_most(job, ready), came if made is None else made
    cost, certain = job.price(most), job.price(sure) if came else None
    if cost is None or (certain and most == sure):
        return cost, None
    return cost, replace(cost, amount=cost.amount - (certain.amount if certain else 0.0))


def _billed_at_most(job: Job, ready: Ready | None) -> int:
    """How many images may have been billed where not all of it is known."""
    made = billed_images(ready)
    if made is not None:
        # The provider has counted.
        return made
    if ready is None or ready.cut or job.request.stream:
        return job.most
    return sum(1 for image in ready.images if image.error is None or image.error.billed == "unknown")


def _came(ready: Ready | None) -> int:
    """How many images came."""
    return sum(1 for image in ready.images if image.error is None) if ready else 0
