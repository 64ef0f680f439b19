"""What becomes of every option: renamed, defaulted or dropped for this provider and model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..providers.contract import rule_for
from ..request.image_request import ImageRequest
from ..request.models import Rule
from .plan import Job, PlannedRequest, _whose_default

_ALWAYS = ("model_id", "prompt", "size", "response_format", "watermark")

_SHOWN_AS = {"model_id": "model", "asynchronous": "async", "images": "image"}

_TYPED_AS = {"model_id": "model", "images": "image"}

_UNSHOWN = {"provider", "model", "extra", "most"}


def job_names(jobs: Sequence[Job]) -> list[str]:
    """The names that the images of these jobs would get, with `.*` where the bytes decide on the suffix."""
    found = []
    for job in jobs:
        for number in range(job.first, job.first + job.request.images_at_most):
            place = job.output.place(job.fields, number=number, of=job.of)
            found.append("-" if job.output.stdout else str(place.folder / f"{place.stem}{place.suffix or '.*'}"))
    return found


def explain(planned: PlannedRequest) -> list[tuple[str, str, str, str]]:
    """Every option as (option, value, sent as, note): renamed, defaulted by whom, or dropped, why, and the source."""
    request = planned.built.request
    if request is None:
        return []
    options = [name for name in type(request).model_fields if name not in _UNSHOWN]
    rows = [_explain_option(planned, request, name) for name in options]
    idle, idly = planned.route.spec.ignored_fields, f"ignored: no effect at {planned.route.spec.name}"
    rows += [
        ("extra", _words(value), key, idly if key in idle else "merged last") for key, value in request.extra.items()
    ]
    values, origins = planned.options.values, planned.options.origins
    if "aspect" in values:
        note = f"from {origins.get('aspect', '--aspect')}: the exact pixels of that shape"
        rows.append(("aspect", values["aspect"], "size", note))
    if planned.built.count > 1:
        note = f"from {origins.get('count', '--count')}: so many independent requests"
        rows.append(("count", str(planned.built.count), "not sent", note))
    return rows


def _explain_option(planned: PlannedRequest, request: ImageRequest, name: str) -> tuple[str, str, str, str]:
    """One option's row."""
    shown = _SHOWN_AS.get(name, name).replace("_", "-")
    spec, option = planned.route.spec, _SHOWN_AS.get(name, name).replace("image", "images")
    rule = planned.built.dropped.get(name) or rule_for(spec, planned.model, option)
    model = planned.model
    source = rule.source or (spec.source if option in spec.rules else model.source if model else "")
    why = " ".join(part for part in (rule.note, f"[{source}]" if rule.note and source else "") if part)
    value = getattr(request, name)
    if name in planned.built.dropped:
        asked = planned.options.values.get(name, "on")
        return shown, asked, "not sent", f"{rule.state}: {why}" if why else rule.state
    if value in (None, False, ()) and name not in _ALWAYS:
        default = spec.defaults.get(option)
        parts = [f"{spec.name}'s own default: {default}" if default else "", _unless_taken(rule, why)]
        return shown, "-", "not sent", "; ".join(part for part in parts if part)
    typed = _TYPED_AS.get(name, name)
    origin = planned.options.origins.get(typed, "")
    given = typed in {**planned.options.values, **planned.options.switches, **planned.options.lists}
    note = f"from {origin}" if given else _whose_default(spec, option)
    sent = ", ".join(_sent_as(planned, request, name)) or "not sent"
    return shown, _words(value), sent, "; ".join(part for part in (note, _unless_taken(rule, why)) if part)


def _unless_taken(rule: Rule, why: str) -> str:
    if rule.state == "taken":
        return why
    return f"{rule.state}: {why}" if why else rule.state


def _sent_as(planned: PlannedRequest, request: ImageRequest, name: str) -> list[str]:
    """The body's keys that hang on an option: found by sending it with another value, so that no table can be wrong."""
    other = {"watermark": not request.watermark, "model_id": "?", "prompt": "?", "size": "?", "response_format": "?"}
    empty = () if name == "images" else None
    varied = request.model_copy(update={name: other.get(name, empty)})
    submit = planned.route.dialect.submit
    mine, theirs = submit(request).json or {}, submit(varied).json or {}
    return [key for key in mine if mine.get(key) != theirs.get(key)]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return "1 image" if len(value) == 1 else f"{len(value)} images"
    return value if isinstance(value, str) else str(value)
