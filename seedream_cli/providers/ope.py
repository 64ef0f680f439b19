"""OPE.AI: Ark's JSON with short model names. Responses and errors are undocumented, so all known formats are read.

It treats `n` as a group of at most that size; `n` is therefore never sent.
"""

from __future__ import annotations

from ..request.models import Rule
from . import ark, contract

_PAGE = "OPE.AI Seedream page, 2026-11"

_SILENT = Rule("unconfirmed", "OPE.AI's page does not mention it", _PAGE)

_IDLE = Rule("ignored", "OPE.AI lists it as without effect", _PAGE)

spec = contract.ProviderSpec(
    name="ope",
    title="OPE.AI",
    base_url="https://api-platform.ope.ai/v1",
    version="/v1",
    path="/images/generations",
    key_variables=("OPE_API_KEY",),
    spelling="ope",
    as_of="2026-11",
    source=_PAGE,
    parent="ark",
    rules={
        **ark.GATEWAY_TASKS,
        "format": _IDLE,
        "background": _IDLE,
        "seed": _SILENT,
        "guidance_scale": _SILENT,
        "web_search": _SILENT,
        "optimize_prompt": _SILENT,
        "layers": _SILENT,
    },
    ignored_fields=("quality", "style", "user", "output_format", "output_compression", "background", "moderation"),
    defaults={"watermark": "off", "size": "2K (1024x1024 for 3.0)", "response_format": "url"},
    codes=ark.RESOLD,
    link_lifetime_s=86_400,
    task_path="/tasks/",
)

_dialect = ark.ArkDialect(spec)

submit, read, read_event, poll = _dialect.submit, _dialect.read, _dialect.read_event, _dialect.poll
