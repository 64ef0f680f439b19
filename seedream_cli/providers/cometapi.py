"""CometAPI: Ark's JSON and model ids at an OpenAI-style URL, with its own error codes.

Its 500, 504 and 524 may follow a billed image, so they are ambiguous. Two error codes with 5xx are not: a malformed
request (500) and a model that no channel serves (503).
"""

from __future__ import annotations

from ..request.models import Rule
from . import ark, contract
from .contract import Verdict
from .faults import ACCOUNT

_PAGE = "CometAPI Seedream page, 2026-11"

_SILENT = Rule("unconfirmed", "CometAPI's page does not mention it", _PAGE)

_LEGACY = Rule("ignored", "CometAPI's page calls it ignored by newer models", _PAGE)

_NOT_5 = Rule("ignored", "CometAPI's page calls it ignored by 5.0", _PAGE)

_NOT_4 = Rule("unconfirmed", "CometAPI's page lists it; the model's own pages call it not supported", _PAGE)

spec = contract.ProviderSpec(
    name="cometapi",
    title="CometAPI",
    base_url="https://api.cometapi.com/v1",
    version="/v1",
    path="/images/generations",
    models_path="/models",
    key_variables=("COMETAPI_KEY",),
    spelling="ark",
    as_of="2026-11",
    source=_PAGE,
    parent="ark",
    passes_unlisted=True,
    rules={
        **ark.GATEWAY_TASKS,
        "stream": _SILENT,
        "web_search": _SILENT,
        "optimize_prompt": _SILENT,
        "background": _SILENT,
        "layers": _SILENT,
    },
    unconfirmed={"seed": _LEGACY, "5.0:guidance_scale": _NOT_5, "guidance_scale": _NOT_4},
    defaults={"watermark": "on", "size": "2048x2048", "response_format": "url", "format": "jpeg"},
    notes=("which models are served changes: see cometapi.com/models",),
    codes={
        **ark.RESOLD,
        "invalid_request": Verdict("refused", hint="a field is missing or malformed: a dry run shows what is sent"),
        "model_not_found": Verdict(
            "refused", hint="CometAPI serves no such model to this key: `seedream models` lists the known ids"
        ),
        "convert_request_failed": Verdict("refused", hint="CometAPI does not draw with this model: `seedream models`"),
    },
    statuses={403: ACCOUNT},
    reference_formats=("jpeg", "png", "webp", "bmp", "tiff", "gif"),
    prompt_characters=1000,
    link_lifetime_s=86_400,
    task_path="/tasks/",
)

_dialect = ark.ArkDialect(spec, image_list=True)

submit, read, read_event, poll = _dialect.submit, _dialect.read, _dialect.read_event, _dialect.poll
