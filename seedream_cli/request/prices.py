"""The list price of an image."""

from __future__ import annotations

import functools
import math

from .models import ModelSpec, PriceStep
from .sizes import _sides, parse_size


@functools.lru_cache(maxsize=256)
def price_for(model: ModelSpec, family: str, size: str) -> PriceStep | None:
    """The price of one image: the provider's own, else the list price; None where neither is known.

    A size whose pixels are not known before the response is priced at the highest step.
    """
    steps = model.price.get(family) or model.price.get("*")
    if not steps:
        return None
    known = parse_size(size)
    named = next((step for step in steps if known in step.tiers), None)
    if named or known is None:
        return named or steps[-1]
    sizes = [known] if "x" in known else list(model.tiers.get(known, {}).values())
    if not sizes:
        return steps[-1]
    most = max(math.prod(_sides(one)) for one in sizes)
    return next((step for step in steps if step.max_pixels is None or most <= step.max_pixels), steps[-1])
