"""What a request can cost at the most, read from the body that leaves, by the row of the model that it names.

The plan, the question before payment, `--max-cost`, `[budget] daily` and the sums afterwards all go by this. The
vendor's list price is a bound only where the vendor itself is called; a reseller may ask for more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..config.settings import Settings, price_for
from ..network.urls import is_loopback
from ..providers.contract import ProviderSpec
from ..request import prices
from ..request.extra_fields import uncounted
from ..request.image_request import ImageRequest
from ..request.limits import COUNT_MOST, GROUP_MOST
from ..request.models import MODELS, ModelSpec, PriceStep, find_model
from ..request.validation import without_ignored
from ..results import Cost

LIST_PRICE = "list price; this provider's may differ"
"""What is said of a price that is the vendor's, where somebody else sends the bill."""

OWN_PRICE = "your settings"


@dataclass(frozen=True, slots=True)
class Bill:
    """What one request can bring, `images` at the most, and the price of each.

    `price` is None where none is known. `is_list_price`: it is the vendor's, and this provider's may differ.
    `uncounted` are fields of the body that make the cost unknown. `name` is what `[prices]` knows the model by.
    """

    name: str
    images: int
    references: int
    price: PriceStep | None
    as_of: str = ""
    is_list_price: bool = False
    uncounted: tuple[str, ...] = ()

    @property
    def is_bound(self) -> bool:
        """Whether it is known that no more than this is charged, so that a budget can hold it."""
        return self.price is not None and not self.is_list_price and not self.uncounted

    def cost(self, images: int) -> Cost | None:
        """What a request that brings so many images costs; None where that is not known."""
        if self.price is None or self.uncounted:
            return None
        amount = self.price.amount * images + self.price.per_reference * self.references
        return Cost(amount, "USD", self.as_of, LIST_PRICE if self.is_list_price else "")


def read_bill(
    request: ImageRequest, body: Mapping[str, Any], spec: ProviderSpec, base_url: str, settings: Settings
) -> Bill:
    """The bill of a body that goes to a provider's address."""
    model_id = body.get("model")
    row = find_model(model_id, spec.spelling) if isinstance(model_id, str) else None
    references = _count_references(body.get("image"))
    size = body.get("size")
    images, is_counted = _count_images(body, row, references)
    strange = uncounted(without_ignored(request.extra, spec.ignored_fields))
    if row is not None and body.get("layer_decomposition") and any("layer" in one.lower() for one in strange):
        # A field that sets the ceiling by another name: the model itself has one.
        images = row.layers_max + 1
    unknown = tuple(strange) if is_counted else (*strange, *_miscounted(body))
    named = size if isinstance(size, str) else ""
    priced = price_of(row, str(model_id), named, spec=spec, base_url=base_url, settings=settings)
    name = row.name if row else str(model_id)
    return Bill(name, images, references, *priced, unknown)


def price_of(
    row: ModelSpec | None, model_id: str, size: str, *, spec: ProviderSpec, base_url: str, settings: Settings
) -> tuple[PriceStep | None, str, bool]:
    """The price of an image, the month or place it is known from, and whether it is the vendor's list price only."""
    if spec.offline:
        return PriceStep(0.0), spec.as_of, False
    own = price_for(settings, spec.name, row.name if row else "", model_id)
    if own is not None:
        return own, OWN_PRICE, False
    step = prices.price_for(row, spec.name, size) if row else None
    if row is None or step is None:
        return None, "", False
    is_stated = spec.is_vendor or spec.name in row.price
    return step, row.price_as_of, not (is_stated and is_own_address(spec, base_url))


def is_own_address(spec: ProviderSpec, base_url: str) -> bool:
    """Whether the provider itself is called. What listens on this machine is a forwarder or a test of the user's."""
    host = (urlsplit(base_url).hostname or "").rstrip(".")
    own = (urlsplit(spec.base_url).hostname or "", *spec.hosts)
    return is_loopback(host) or any(host == one or (one.startswith(".") and host.endswith(one)) for one in own if one)


def _count_references(value: Any) -> int:
    if isinstance(value, list | tuple):
        return len(value)
    return 0 if value in (None, "") else 1


def _count_images(body: Mapping[str, Any], row: ModelSpec | None, references: int) -> tuple[int, bool]:
    """The most images that a body can bring, and whether every field that says so could be read."""
    one, is_known = 1, True
    if body.get("layer_decomposition"):
        one = layers_at_most(row)
    asked = body.get("sequential_image_generation")
    options = body.get("sequential_image_generation_options")
    if options is not None or asked not in (None, False, "disabled"):
        most = options.get("max_images") if isinstance(options, Mapping) else None
        is_known = options is None or (
            isinstance(options, Mapping) and {*options} == {"max_images"} and _is_count(most)
        )
        group = most if isinstance(most, int) and _is_count(most) else max(1, GROUP_MOST - references)
        one = max(one, group)
    times = body.get("n")
    if times is None:
        return one, is_known
    # `n` is not sent by the tool itself; a gateway that takes it draws so often.
    return (one * times, is_known) if isinstance(times, int) and _is_count(times) else (one, False)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= COUNT_MOST


def _miscounted(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a body whose number cannot be read."""
    names = [] if body.get("n") is None or _is_count(body["n"]) else ["n"]
    options = body.get("sequential_image_generation_options")
    is_read = isinstance(options, Mapping) and {*options} == {"max_images"} and _is_count(options["max_images"])
    return (*names, *([] if options is None or is_read else ["sequential_image_generation_options"]))


def layers_at_most(row: ModelSpec | None) -> int:
    """The most images of a layered answer where no number is asked for, the base among them."""
    most = max(one.layers_images for one in MODELS)
    return row.layers_images if row is not None and row.layers_images else most
