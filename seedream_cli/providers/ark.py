"""Volcengine Ark, the upstream of every Seedream model, and the shape that its compatible gateways share.

One synchronous `POST …/images/generations` with a JSON body; `stream` answers with server-sent events instead.
Facts: the pages on image generation, its stream and the error codes, as of 2026-09.
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
class Shape:
    """The functions of a dialect in Ark's shape. `image_list` sends a single reference as an array too."""

    spec: contract.ProviderSpec
    image_list: bool = False

    def submit(self, request: ImageRequest) -> contract.Call:
        """The one billable call for this request."""
        body = payload.body_of(request, image_list=self.image_list)
        return payload.submission(self.spec, body, stream_type="text/event-stream")

    def read(self, reply: contract.Reply) -> contract.Ready | contract.Ticket:
        """The images of an answer. A failed member is an image with an error; no image at all is an `ApiError`.

        At a gateway that may make a task of a request, what tells of one is that, unless it has images in it.
        """
        ready = reading.read_images(self.spec, reply.body, reply.headers)
        if self.spec.task_path and not (ready and any(not image.error for image in ready.images)):
            found = tasks.read(self.spec, reply)
            if found is not None:
                return found
        # Images that were drawn were paid for, whatever status or error came beside them.
        if ready and (200 <= reply.status < 300 or any(not image.error for image in ready.images)):
            return ready
        raise faults.refusal(self.spec, reply)

    def read_event(self, event: Mapping[str, Any]) -> ProviderImage | contract.Completed | None:
        """One server-sent event, from its `data` line."""
        return reading.read_stream_event(self.spec, event)

    def poll(self, ticket: contract.Ticket) -> contract.Call:
        """The free call that asks after a gateway's task; raises `InputError` where there are none."""
        return tasks.poll(self.spec, ticket)


_BAD_IMAGE = Verdict("refused", hint="the provider could not use a reference: check its URL and format")

_OPEN_MODEL = Verdict("refused", hint="open the model in the provider's console, then send again")

CODES: Mapping[str, Verdict] = {
    # 400: refused before anything is drawn.
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
    # 429: too fast, or used up.
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
    # 500: only images that were drawn are billed, says the API's page.
    "InternalServiceError": Verdict("unavailable", retryable=True, hint="the provider failed; try later"),
}
"""The error codes of image requests. A code that is not here is judged by its status."""

RESOLD: Mapping[str, Verdict] = {
    **CODES,
    # No gateway says that it does not bill what failed upstream.
    "InternalServiceError": UNKNOWN,
    "insufficient_quota": QUOTA,
    **dict.fromkeys(EMPTY_ACCOUNT, ACCOUNT),
}
"""The same codes passed on by a gateway that bills on its own account."""

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
"""Of the gateways that may answer with a task."""

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
    doubtful={"guidance_scale": NOT_NEWER},
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

_shape = Shape(spec)

submit, read, read_event, poll = _shape.submit, _shape.read, _shape.read_event, _shape.poll
