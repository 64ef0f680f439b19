"""Any other gateway that takes Ark's JSON at an OpenAI-style `/images/generations`; its address is the user's."""

from __future__ import annotations

from . import ark, contract
from .faults import AUTH, MODERATION, RATE_LIMITED, REFUSED, UNKNOWN_MODEL

spec = contract.ProviderSpec(
    name="openai",
    title="the gateway",
    base_url="",
    version="/v1",
    path="/images/generations",
    models_path="/models",
    key_variables=("OPENAI_API_KEY",),
    spelling="ark",
    as_of="2026-11",
    source="pages of compatible gateways, 2026-11",
    parent="ark",
    passes_unlisted=True,
    rules=ark.GATEWAY_TASKS,
    defaults={"watermark": "the gateway's choice", "response_format": "the gateway's choice"},
    notes=("ids of any provider are sent as they are typed; names such as 4.5 are spelled for Ark",),
    codes={
        **ark.RESOLD,
        # The codes of OpenAI's own envelope, which such gateways answer with.
        "invalid_request_error": REFUSED,
        "invalid_api_key": AUTH,
        "authentication_error": AUTH,
        "model_not_found": UNKNOWN_MODEL,
        "content_policy_violation": MODERATION,
        "moderation_blocked": MODERATION,
        "rate_limit_exceeded": RATE_LIMITED,
    },
    # A gateway that passes the answer on passes on a link with the upstream's life.
    link_lifetime_s=86_400,
    task_path="/tasks/",
    needs_base_url=True,
)

_shape = ark.Shape(spec)

submit, read, read_event, poll = _shape.submit, _shape.read, _shape.read_event, _shape.poll
