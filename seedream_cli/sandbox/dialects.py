"""The formats of each service: paths, model ids, response and error envelopes, stream frames.

Sources: the services' public pages of 2026. Pure functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .families import FAMILIES, Family
from .rules import Body, ParsedRequest, Refusal

Action = Literal["generate", "models", "tasks"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServiceDialect:
    """One service's API. `spellings` are the columns of `Family` with its model ids."""

    name: str
    spellings: tuple[str, ...]
    envelope: Literal["ark", "comet", "openai", "ace"]
    watermark_default: bool = True
    can_search: bool = True
    endpoints: bool = False
    """Whether `ep-…` names a model, here always 5.0 lite."""


ARK = ServiceDialect("ark", ("ark",), "ark", endpoints=True)

BYTEPLUS = ServiceDialect("byteplus", ("byteplus",), "ark", can_search=False, endpoints=True)

COMETAPI = ServiceDialect("cometapi", ("ark",), "comet")

OPE = ServiceDialect("ope", ("ope",), "openai", watermark_default=False)

ACEDATA = ServiceDialect("acedata", ("acedata",), "ace")

# A bare path is for tools of which only the host can be configured: it takes the ids of all services with that path.
_ANY_ARK = replace(ARK, spellings=("ark", "byteplus"))

_ANY_OPENAI = replace(COMETAPI, spellings=("ark", "byteplus"))

_MOUNTS: tuple[tuple[str, ServiceDialect], ...] = (
    ("/ark/api/v3", ARK),
    ("/byteplus/api/v3", BYTEPLUS),
    ("/api/v3", _ANY_ARK),
    ("/cometapi/v1", COMETAPI),
    ("/ope/v1", OPE),
    ("/v1", _ANY_OPENAI),
)

ROUTES: dict[bytes, tuple[ServiceDialect, Action]] = {
    **{f"{mount}/images/generations".encode(): (dialect, "generate") for mount, dialect in _MOUNTS},
    **{f"{mount}/models".encode(): (dialect, "models") for mount, dialect in _MOUNTS},
    b"/acedata/seedream/images": (ACEDATA, "generate"),
    b"/acedata/seedream/tasks": (ACEDATA, "tasks"),
    b"/seedream/images": (ACEDATA, "generate"),
    b"/seedream/tasks": (ACEDATA, "tasks"),
}
"""Path to service and action."""

NOT_FOUND_PREFIXES: tuple[tuple[bytes, ServiceDialect], ...] = (
    *((f"{mount}/".encode(), dialect) for mount, dialect in _MOUNTS),
    (b"/acedata/", ACEDATA),
    (b"/seedream/", ACEDATA),
)
"""Prefixes of unknown paths, and the service whose 404 is sent."""


# --- requests ---------------------------------------------------------------------------------------------------------


def resolve(dialect: ServiceDialect, body: Body) -> tuple[ServiceDialect, Family]:
    """The model's family, and its service where a bare path may be of several."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        text = "The request failed because it is missing one or multiple required parameters: `model`."
        raise Refusal("MissingParameter", text, "model")
    family = _find_family(model, dialect.spellings)
    if family is None and dialect is _ANY_OPENAI and (family := _find_family(model, OPE.spellings)):
        return OPE, family
    if family is None and dialect.endpoints and re.fullmatch(r"ep-[a-z0-9-]+", model, re.ASCII):
        family = next(row for row in FAMILIES if row.searching)
    if family is None:
        raise _unknown_model(dialect, model)
    return dialect, family


def _find_family(model: str, spellings: Sequence[str]) -> Family | None:
    return next((row for row in FAMILIES if any(model in getattr(row, name) for name in spellings)), None)


def _unknown_model(dialect: ServiceDialect, model: str) -> Refusal:
    shown = model[:80]
    if dialect.envelope == "comet":
        text = f"No available channel for group default and model {shown} (distributor)"
        return Refusal("model_not_found", text, native=True)
    if dialect.envelope == "ace":
        return Refusal("bad_request", f"model {shown} is not supported", native=True)
    text = f"The model or endpoint {shown} does not exist or you do not have access to it."
    return Refusal("InvalidEndpointOrModel.NotFound", text)


def adapt(dialect: ServiceDialect, body: Body) -> Body:
    """The body that a gateway forwards to the service."""
    if dialect is not OPE:
        return body
    dropped = {"quality", "style", "user", "output_format", "output_compression", "background", "moderation"}
    passed = {key: value for key, value in body.items() if key not in dropped}
    count = passed.pop("n", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 15:
        raise Refusal("InvalidParameter", "n must be an integer between 1 and 15", "n")
    if count > 1 and "sequential_image_generation" not in passed:
        passed["sequential_image_generation"] = "auto"
        passed["sequential_image_generation_options"] = {"max_images": count}
    return passed


# --- refusals ---------------------------------------------------------------------------------------------------------


def refuse(dialect: ServiceDialect, refusal: Refusal, *, request_id: str) -> tuple[int, Json]:
    """HTTP status and body of a refusal in this service's envelope."""
    if dialect.envelope == "ace":
        return _refuse_ace(refusal, request_id)
    if dialect.envelope == "openai":
        member = {"message": refusal.message, "type": refusal.type, "param": refusal.param, "code": refusal.code}
        return refusal.status, {"error": member}
    if dialect.envelope == "comet" and (refusal.native or refusal.code == "MissingParameter"):
        return _refuse_comet(refusal, request_id)
    message = f"{refusal.message} Request id: {request_id}"
    member = {"code": refusal.code, "message": message, "param": refusal.param, "type": refusal.type}
    return refusal.status, {"error": member}


def _refuse_comet(refusal: Refusal, request_id: str) -> tuple[int, Json]:
    """The gateway's own errors. Its documentation says 500 for a missing field."""
    status, code = refusal.status, refusal.code
    if code == "MissingParameter":
        status, code = 500, "invalid_request"
    elif code in {"AuthenticationError", "AccountOverdueError"}:
        code = ""
    message = f"{refusal.message} (request id: {request_id})"
    return status, {"error": {"message": message, "type": "comet_api_error", "param": "", "code": code}}


def _refuse_ace(refusal: Refusal, request_id: str) -> tuple[int, Json]:
    """The gateway's own codes; an error of the service is in `message`."""
    status, code, message = refusal.status, refusal.code, refusal.message
    if refusal.type and not refusal.native:
        status = 400 if status == 404 else status
        message = f"{code}: {message}"
        code = {"MissingParameter": "token_mismatched", "AccountOverdueError": "used_up"}.get(code, _ACE_CODES[status])
    return status, {"success": False, "error": {"code": code, "message": message}, "trace_id": request_id}


_ACE_CODES = {
    400: "bad_request",
    401: "invalid_token",
    403: "disabled",
    429: "too_many_requests",
    500: "api_error",
    503: "api_error",
}


def deny_key(dialect: ServiceDialect, authorization: str | None) -> Refusal | None:
    """Why a key is refused; None where it is accepted, as any printable word but "bad…" and "overdue…" is."""
    scheme, _, key = (authorization or "").partition(" ")
    ace = dialect.envelope == "ace"
    if authorization is None or scheme.lower() != "bearer" or not re.fullmatch(r"[\x21-\x7e]+", key):
        if ace:
            return Refusal("no_token", "the Authorization header with a bearer token is missing", native=True)
        return Refusal("AuthenticationError", "The API key format is incorrect.", native=True)
    if key.startswith("bad"):
        code = "invalid_token" if ace else "AuthenticationError"
        return Refusal(code, "the token is invalid" if ace else "The API key doesn't exist.", native=True)
    if key.startswith("overdue"):
        code = "used_up" if ace else "AccountOverdueError"
        return Refusal(code, "The request failed because your account has an overdue balance.", native=True)
    return None


# --- responses --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """One image of a response: a URL, base64 or an error, with the fields of its layer."""

    index: int
    width: int = 0
    height: int = 0
    format: str = ""
    url: str = ""
    b64: str = ""
    error: Json | None = None
    layer: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ReplyContext:
    """What responses need to know of the request."""

    dialect: ServiceDialect
    parsed: ParsedRequest
    created: int
    request_id: str
    task_id: str


def count_usage(parsed: ParsedRequest, members: Sequence[Member]) -> Json:
    """The `usage` object: successful images, and a token for every 256 pixels."""
    drawn = [member for member in members if member.error is None]
    tokens = sum(member.width * member.height // 256 for member in drawn)
    usage: Json = {"generated_images": len(drawn), "output_tokens": tokens, "total_tokens": tokens}
    if parsed.family.has_layers:
        usage["input_images"] = len(parsed.references)
    if parsed.searching:
        usage["tool_usage"] = {"web_search": 1}
    return usage


def answer(context: ReplyContext, members: Sequence[Member]) -> Json:
    """The body of a response. Without any image it is an error, still with HTTP 200."""
    if all(member.error is not None for member in members):
        return answer_without_images(context, members[0].error or {})
    if context.dialect.envelope == "ace":
        data = [{"prompt": context.parsed.prompt, **_describe(context, member)} for member in members]
        return {"success": True, "task_id": context.task_id, "trace_id": context.request_id, "data": data}
    parsed = context.parsed
    body: Json = {
        # Without the date, unlike in streams, as the service does.
        "model": re.sub(r"-\d{6}$", "", parsed.model),
        "created": context.created,
        "data": [_describe(context, member) for member in members],
        "usage": count_usage(parsed, members),
    }
    if parsed.searching:
        body["tools"] = [{"type": "web_search"}]
    return body


def answer_without_images(context: ReplyContext, error: Json) -> Json:
    """The body for an accepted request without images."""
    if context.dialect.envelope == "ace":
        return {"success": False, "task_id": context.task_id, "trace_id": context.request_id, "error": error}
    return {"model": context.parsed.model, "created": context.created, "error": error}


def _describe(context: ReplyContext, member: Member) -> Json:
    if member.error is not None:
        return {"error": member.error}
    link_key = "image_url" if context.dialect.envelope == "ace" else "url"
    fields: Json = {"b64_json": member.b64} if member.b64 else {link_key: member.url}
    fields["size"] = f"{member.width}x{member.height}"
    if context.parsed.reports_format:
        fields["output_format"] = member.format
    return {**fields, **(member.layer or {})}


# --- streams ----------------------------------------------------------------------------------------------------------


def stream_type(dialect: ServiceDialect) -> str:
    """The content type of this service's streams."""
    return "application/x-ndjson" if dialect.envelope == "ace" else "text/event-stream; charset=utf-8"


def frame_image(context: ReplyContext, member: Member) -> bytes:
    """The stream event of one image or its error."""
    outcome = "partial_failed" if member.error else "partial_succeeded"
    return _frame(context, outcome, {"image_index": member.index, **_describe(context, member)})


def frame_completed(context: ReplyContext, members: Sequence[Member]) -> bytes:
    """The last event, with the usage, and the service's terminator."""
    fields: Json = {"usage": count_usage(context.parsed, members)}
    if context.parsed.searching:
        fields["tools"] = [{"type": "web_search"}]
    done = b"" if context.dialect.envelope == "ace" else b"data: [DONE]\n\n"
    return _frame(context, "completed", fields) + done


def frame_error(context: ReplyContext, refusal: Refusal) -> bytes:
    """The event for a failure of the whole request after the stream began."""
    error = {"code": refusal.code, "message": f"{refusal.message} Request ID: {context.request_id}"}
    if context.dialect.envelope == "ace":
        return _dump({"success": False, "error": error, "trace_id": context.request_id}) + b"\n"
    return b"event: error\ndata: " + _dump({"error": error}) + b"\n\n"


def _frame(context: ReplyContext, outcome: str, fields: Json) -> bytes:
    kind = f"image_generation.{outcome}"
    data = _dump({"type": kind, "model": context.parsed.model, "created": context.created, **fields})
    if context.dialect.envelope == "ace":
        return data + b"\n"
    return f"event: {kind}\ndata: ".encode() + data + b"\n\n"


def _dump(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# --- lists of models --------------------------------------------------------------------------------------------------


def list_models(dialect: ServiceDialect) -> Json:
    """The list of models: Ark's format, or OpenAI's at gateways."""
    rows = [(family, model) for family in FAMILIES for name in dialect.spellings for model in getattr(family, name)]
    if dialect.envelope == "ark":
        return {"data": [_list_row(family, model) for family, model in rows]}
    owner = "bytedance" if dialect.envelope == "comet" else dialect.name
    data = [{"id": model, "object": "model", "created": 1_756_339_200, "owned_by": owner} for _, model in rows]
    return {"object": "list", "data": data}


def _list_row(family: Family, model: str) -> Json:
    name, _, version = model.rpartition("-")
    least, most = family.references
    tasks = [*(["TextToImage"] if not least else []), *(["ImageToImage"] if most else [])]
    return {
        "id": model,
        "name": name,
        "object": "model",
        "created": 1_756_339_200,
        "version": version,
        "domain": "ImageGeneration",
        "task_type": tasks,
        "status": "Retiring" if family.retiring else "Running",
        "modalities": {"input_modalities": ["text", *(["image"] if most else [])], "output_modalities": ["image"]},
    }
