"""Volcengine Ark, the vendor's API, and the dialect that compatible gateways share.

One synchronous `POST …/images/generations` with a JSON body; with `stream` the response is server-sent events.
Sources: the pages on image generation, its stream and the error codes, as of 2026-09.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..request.models import Rule
from ..results import ProviderImage
from . import contract, faults, payload, reading, tasks
from .contract import EMPTY_ACCOUNT, Verdict
from .faults import ACCOUNT, AUTH, CONTENT, QUOTA, RATE_LIMITED, REFUSED, UNKNOWN, UNKNOWN_MODEL

if TYPE_CHECKING:
    from ..request.image_request import ImageRequest


@dataclass(frozen=True, slots=True)
class ArkDialect:
    """The functions of a dialect with Ark's JSON. `image_list` sends a single reference as an array too."""

    spec: contract.ProviderSpec
    image_list: bool = False

    def submit(self, request: ImageRequest) -> contract.Call:
        """The billable call."""
        body = payload.body_of(request, image_list=self.image_list)
        return payload.submission(self.spec, body, stream_type="text/event-stream")

    def read(self, reply: contract.Reply) -> contract.Ready | contract.Ticket:
        """The images of a response; a failed member is an image with an error. Raises `ApiError` where there is none.

        A gateway with `task_path` may return a task instead of images.
        """
        ready = reading.read_images(self.spec, reply.body, reply.headers)
        if self.spec.task_path and not (ready and any(not image.error for image in ready.images)):
            found = tasks.read(self.spec, reply)
            if found is not None:
                return found
        # Images are billed, whatever the status or another error in the response.
        if ready and (200 <= reply.status < 300 or any(not image.error for image in ready.images)):
            return ready
        raise faults.refusal(self.spec, reply)

    def read_event(self, event: Mapping[str, Any]) -> ProviderImage | contract.Completed | None:
        """One server-sent event, from its `data`."""
        return reading.read_stream_event(self.spec, event)

    def poll(self, ticket: contract.Ticket) -> contract.Call:
        """The free call that returns a gateway's task; raises `InputError` where the provider has no tasks."""
        return tasks.poll(self.spec, ticket)


_BAD_IMAGE = Verdict("refused", hint="the provider could not use a reference: check its URL and format")

_OPEN_MODEL = Verdict("refused", hint="open the model in the provider's console, then send again")

CODES: Mapping[str, Verdict] = {
    # 400: refused and not billed.
    "BadRequest": REFUSED,
    "MissingParameter": REFUSED,
    "InvalidParameter": Verdict("refused", hint="`seedream models` shows what each model takes"),
    "InvalidParameter.UnsupportedParameter": Verdict(
        "refused", hint="leave that option out: this model lacks it (`seedream models`)"
    ),
    "InvalidParameter.TosURLInvalid": _BAD_IMAGE,
    "InvalidImageURL": _BAD_IMAGE,
    "InvalidEndpoint": Verdict("refused", hint="start the endpoint in the provider's console, or name another model"),
    "InvalidSubscription": Verdict("account", hint="the plan is not bought or has expired"),
    **CONTENT,
    "ContentSecurityDetectionError": Verdict("unavailable", retryable=True, hint="the content check failed; try later"),
    # 401 and 403: the key and the account.
    "Unauthorized": AUTH,
    "AuthenticationError": AUTH,
    "InvalidAccountStatus": ACCOUNT,
    "Forbidden": ACCOUNT,
    "AccessDenied": Verdict("account", hint="the key{keys} has no right to this model or endpoint"),
    "OperationDenied": ACCOUNT,
    "OperationDenied.PermissionDenied": Verdict("account", hint="the key{keys} has no right to do this"),
    "OperationDenied.ServiceNotOpen": Verdict("account", hint="open the service in the provider's console"),
    "OperationDenied.ServiceOverdue": Verdict("account", hint="pay the outstanding balance"),
    "AccountOverdueError": Verdict("account", hint="pay the outstanding balance"),
    # 404: the model.
    "NotFound": UNKNOWN_MODEL,
    "InvalidEndpointOrModel": UNKNOWN_MODEL,
    "InvalidEndpointOrModel.ModelIDAccessDisabled": Verdict("refused", hint="give an endpoint id (ep-…) as the model"),
    "ModelNotOpen": _OPEN_MODEL,
    "UnsupportedModel": Verdict("refused", hint="this key's plan does not hold the model; use a pay-as-you-go key"),
    # 429: rate limits and quotas.
    "TooManyRequests": RATE_LIMITED,
    "ModelAccountIpmRateLimitExceeded": Verdict("rate_limited", retryable=True, hint="ask for fewer images a minute"),
    "ModelAccountRpmRateLimitExceeded": RATE_LIMITED,
    "ModelAccountTpmRateLimitExceeded": RATE_LIMITED,
    "APIAccountRpmRateLimitExceeded": RATE_LIMITED,
    "AccountRateLimitExceeded": RATE_LIMITED,
    "RateLimitExceeded": RATE_LIMITED,
    "RequestBurstTooFast": RATE_LIMITED,
    "ServerOverloaded": Verdict("rate_limited", retryable=True, hint="the provider is overloaded; try later"),
    "QuotaExceeded": QUOTA,
    "SetLimitExceeded": QUOTA,
    "InflightBatchsizeExceeded": QUOTA,
    # 500: the API's page says that only finished images are billed.
    "InternalServiceError": Verdict("unavailable", retryable=True, hint="the provider failed; try later"),
}
"""The error codes of image requests. For other codes the HTTP status decides."""

RESOLD: Mapping[str, Verdict] = {
    **CODES,
    # No gateway says that it does not bill requests that fail upstream.
    "InternalServiceError": UNKNOWN,
    "insufficient_quota": QUOTA,
    **dict.fromkeys(EMPTY_ACCOUNT, ACCOUNT),
}
"""The same codes from a gateway that does its own billing."""

_PAGE = "Volcengine image generation API, 2026-09"

NOT_NEWER = Rule("refused", "for 3.0 models only: later ones do not support it", _PAGE)

NO_TASKS: Mapping[str, Rule] = {
    "async": Rule("refused", "the provider answers at once and has no tasks"),
    "callback_url": Rule("refused", "the provider answers at once and calls nobody back"),
}

GATEWAY_TASKS: Mapping[str, Rule] = {
    "async": Rule("refused", "a task cannot be asked for; one that the gateway makes by itself is asked after"),
    "callback_url": Rule("refused", "nobody is called back"),
}
"""For gateways that may return a task."""

spec = contract.ProviderSpec(
    name="ark",
    title="Volcengine Ark",
    base_url="https://ark.cn-beijing.volces.com/api/v3",
    version="/api/v3",
    path="/images/generations",
    models_path="/models",
    key_variables=("ARK_API_KEY",),
    spelling="ark",
    as_of="2026-09",
    source=_PAGE,
    rules=NO_TASKS,
    unconfirmed={"guidance_scale": NOT_NEWER},
    reference_bytes=30_000_000,
    defaults={
        "watermark": "on",
        "size": "2048x2048 (2K for 5.0 Pro)",
        "response_format": "url",
        "format": "jpeg (png for 5.5)",
    },
    notes=("endpoint ids (ep-…) are sent as they are", "only images that were drawn are billed"),
    codes=CODES,
    failures_free=True,
    ipm=500,
    link_lifetime_s=86_400,
    is_vendor=True,
    hosts=(".volces.com",),
)

_dialect = ArkDialect(spec)

submit, read, read_event, poll = _dialect.submit, _dialect.read, _dialect.read_event, _dialect.poll
