"""BytePlus ModelArk: Ark outside China, with its own model ids and without web search."""

from __future__ import annotations

from ..request.models import Rule
from . import ark, contract

_PAGE = "BytePlus image generation API, 2026-06"

_NODES = "BytePlus's own nodes for ModelArk, 2026-11"

spec = contract.ProviderSpec(
    name="byteplus",
    title="BytePlus ModelArk",
    base_url="https://ark.ap-southeast.bytepluses.com/api/v3",
    version="/api/v3",
    path="/images/generations",
    models_path="/models",
    key_variables=("BYTEPLUS_API_KEY", "ARK_API_KEY"),
    spelling="byteplus",
    as_of="2026-11",
    source=_PAGE,
    parent="ark",
    rules={
        **ark.NO_TASKS,
        "web_search": Rule("refused", "absent from its page, and refused when it was tried", _PAGE),
    },
    unconfirmed={
        "seed": Rule("unconfirmed", "BytePlus takes it; whether it has an effect is not shown", _NODES),
        "guidance_scale": ark.NOT_NEWER,
    },
    defaults={
        "watermark": "on",
        "size": "2048x2048 (2K for 5.0 Pro)",
        "response_format": "url",
        "format": "jpeg (png for 5.5)",
    },
    notes=(
        "Europe: --base-url https://ark.eu-west.bytepluses.com/api/v3, with keys of its own and without 5.0 lite",
        "references above 10 MB: its page allows 10 MB except for 5.0 Pro, its own nodes send up to 30",
        "only images that were drawn are billed",
    ),
    codes=ark.CODES,
    failures_free=True,
    link_lifetime_s=86_400,
    is_vendor=True,
    hosts=(".bytepluses.com",),
)

_dialect = ark.ArkDialect(spec)

submit, read, read_event, poll = _dialect.submit, _dialect.read, _dialect.read_event, _dialect.poll
