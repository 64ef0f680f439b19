"""Any other gateway with Ark's JSON at an OpenAI-style `/images/generations`; --base-url is required."""

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
        # OpenAI's own codes.
        "invalid_request_error": REFUSED,
        "invalid_api_key": AUTH,
        "authentication_error": AUTH,
        "model_not_found": UNKNOWN_MODEL,
        "content_policy_violation": MODERATION,
        "moderation_blocked": MODERATION,
        "rate_limit_exceeded": RATE_LIMITED,
    },
    # A gateway that passes the response on returns the vendor's URLs.
    link_lifetime_s=86_400,
    task_path="/tasks/",
    needs_base_url=True,
)

_dialect = ark.ArkDialect(spec)

submit, read, read_event, poll = _dialect.submit, _dialect.read, _dialect.read_event, _dialect.poll
