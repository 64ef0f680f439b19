"""The offline provider: Ark's JSON and model ids, served by this program itself."""

from __future__ import annotations

from . import ark, contract

spec = contract.ProviderSpec(
    name="sandbox",
    title="the sandbox",
    base_url="https://sandbox.invalid/api/v3",
    version="/api/v3",
    path="/images/generations",
    models_path="/models",
    key_variables=(),
    spelling="ark",
    as_of="2026-11",
    source="part of this program",
    parent="ark",
    rules=ark.NO_TASKS,
    defaults={"watermark": "on", "size": "2048x2048", "response_format": "url", "format": "jpeg (png for 5.5)"},
    notes=("draws test images, free of charge",),
    codes=ark.CODES,
    failures_free=True,
    link_lifetime_s=86_400,
    offline=True,
)

_dialect = ark.ArkDialect(spec)

submit, read, read_event, poll = _dialect.submit, _dialect.read, _dialect.read_event, _dialect.poll
