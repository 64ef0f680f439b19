"""BytePlus ModelArk: Ark for the world outside China, with ids of its own and without the web search."""

from __future__ import annotations

from ..models import Rule
from . import ark, base

_PAGE = "BytePlus image generation API, 2026-06"

spec = base.ProviderSpec(
    name="byteplus",
    title="BytePlus ModelArk",
    base_url="https://ark.ap-southeast.bytepluses.com/api/v3",
    version="/api/v3",
    path="/images/generations",
    models_path="/models",
    key_variables=("BYTEPLUS_API_KEY", "ARK_API_KEY"),
    spelling="byteplus",
    as_of="2026-06",
    source=_PAGE,
    parent="ark",
    rules={
        **ark.NO_TASKS,
        "web_search": Rule("refused", "absent from its page, and refused when it was tried", _PAGE),
        "background": Rule("unconfirmed", "known from Volcengine's page only", _PAGE),
    },
    defaults={"watermark": "on", "size": "2048x2048", "response_format": "url", "format": "jpeg"},
    notes=(
        "5.0 lite above 10,404,496 pixels (4K): an older page refuses it, so the server decides",
        "Europe: --base-url https://ark.eu-west.bytepluses.com/api/v3, said to serve 5.0 lite only",
        "only pictures that were drawn are billed",
    ),
    codes=ark.CODES,
    failures_free=True,
    link_lifetime_s=86_400,
    is_vendor=True,
    hosts=(".bytepluses.com",),
)

_shape = ark.Shape(spec)
submit, read, read_event, poll = _shape.submit, _shape.read, _shape.read_event, _shape.poll
