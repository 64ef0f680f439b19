"""How each service words what it accepts, answers and refuses: paths, model ids, envelopes, stream frames.

Sources: the services' public pages of 2026. Nothing here draws, counts or waits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .families import FAMILIES, Family
from .rules import Body, Order, Refusal

Action = Literal["generate", "models", "tasks"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One service's manners. `spellings` are the columns of `Family` whose model ids it takes."""

    name: str
    spellings: tuple[str, ...]
    envelope: Literal["ark", "comet", "openai", "ace"]
    watermark_default: bool = True
    can_search: bool = True
    endpoints: bool = False
    """Whether `ep-…` names a model, here always 5.0 lite."""


ARK = Dialect("ark", ("ark",), "ark", endpoints=True)

BYTEPLUS = Dialect("byteplus", ("byteplus",), "ark", can_search=False, endpoints=True)

COMETAPI = Dialect("cometapi", ("ark",), "comet")

OPE = Dialect("ope", ("ope",), "openai", watermark_default=False)

ACEDATA = Dialect("acedata", ("acedata",), "ace")

# A bare path is a mount of its own for tools whose base URL is fixed but for the host: it takes the ids of all
# services that answer at that path.
_ANY_ARK = replace(ARK, spellings=("ark", "byteplus"))

_ANY_OPENAI = replace(COMETAPI, spellings=("ark", "byteplus"))

_MOUNTS: tuple[tuple[str, Dialect], ...] = (
    ("/ark/api/v3", ARK),
    ("/byteplus/api/v3", BYTEPLUS),
    ("/api/v3", _ANY_ARK),
    ("/cometapi/v1", COMETAPI),
    ("/ope/v1", OPE),
    ("/v1", _ANY_OPENAI),
)

ROUTES: dict[bytes, tuple[Dialect, Action]] = {
    **{f"{mount}/images/generations".encode(): (dialect, "generate") for mount, dialect in _MOUNTS},
    **{f"{mount}/models".encode(): (dialect, "models") for mount, dialect in _MOUNTS},
    b"/acedata/seedream/images": (ACEDATA, "generate"),
    b"/acedata/seedream/tasks": (ACEDATA, "tasks"),
    b"/seedream/images": (ACEDATA, "generate"),
    b"/seedream/tasks": (ACEDATA, "tasks"),
}
"""Path to service and action."""

NOWHERE: tuple[tuple[bytes, Dialect], ...] = (
    *((f"{mount}/".encode(), dialect) for mount, dialect in _MOUNTS),
    (b"/acedata/", ACEDATA),
    (b"/seedream/", ACEDATA),
)
"""Which service words the refusal of a path below its mount that leads nowhere."""


# --- requests -------------------------------------------------------------------------------------------------------


def resolve(dialect: Dialect, body: Body) -> tuple[Dialect, Family]:
    """The model's family, and the service that serves it where a bare path leaves that open."""
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


def _unknown_model(dialect: Dialect, model: str) -> Refusal:
    shown = model[:80]
    if dialect.envelope == "comet":
        text = f"No available channel for group default and model {shown} (distributor)"
        return Refusal("model_not_found", text, native=True)
    if dialect.envelope == "ace":
        return Refusal("bad_request", f"model {shown} is not supported", native=True)
    text = f"The model or endpoint {shown} does not exist or you do not have access to it."
    return Refusal("InvalidEndpointOrModel.NotFound", text)


def adapt(dialect: Dialect, body: Body) -> Body:
    """The body as the service behind a gateway gets to see it."""
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


# --- refusals -------------------------------------------------------------------------------------------------------


def refuse(dialect: Dialect, refusal: Refusal, *, request_id: str) -> tuple[int, Json]:
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
    """What the gateway says by itself. It answers 500 to a request that lacks a field; that is its documented habit."""
    status, code = refusal.status, refusal.code
    if code == "MissingParameter":
        status, code = 500, "invalid_request"
    elif code in {"AuthenticationError", "AccountOverdueError"}:
        code = ""
    message = f"{refusal.message} (request id: {request_id})"
    return status, {"error": {"message": message, "type": "comet_api_error", "param": "", "code": code}}


def _refuse_ace(refusal: Refusal, request_id: str) -> tuple[int, Json]:
    """The gateway's few codes; an error from behind it is a sentence in `message`."""
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


def deny_key(dialect: Dialect, authorization: str | None) -> Refusal | None:
    """Why a key is refused; None where it is taken. Any word of printable characters is a key, with two exceptions."""
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


# --- answers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """One image of an answer: handed over as a link or base64, or refused by `error`, with its layer's facts."""

    index: int
    width: int = 0
    height: int = 0
    format: str = ""
    url: str = ""
    b64: str = ""
    error: Json | None = None
    layer: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """What every shape of answer needs to know of the request."""

    dialect: Dialect
    order: Order
    created: int
    request_id: str
    task_id: str


def count_usage(order: Order, members: Sequence[Member]) -> Json:
    """The usage member: images that succeeded, and a token for every 256 of their pixels."""
    drawn = [member for member in members if member.error is None]
    tokens = sum(member.width * member.height // 256 for member in drawn)
    usage: Json = {"generated_images": len(drawn), "output_tokens": tokens, "total_tokens": tokens}
    if order.family.decorated:
        usage["input_images"] = len(order.references)
    if order.searching:
        usage["tool_usage"] = {"web_search": 1}
    return usage


def answer(about: Answered, members: Sequence[Member]) -> Json:
    """The body of a whole answer. Where no image came about, the error stands at the top, still with HTTP 200."""
    if all(member.error is not None for member in members):
        return answer_nothing(about, members[0].error or {})
    if about.dialect.envelope == "ace":
        data = [{"prompt": about.order.prompt, **_describe(about, member)} for member in members]
        return {"success": True, "task_id": about.task_id, "trace_id": about.request_id, "data": data}
    order = about.order
    body: Json = {
        # The service drops the date from the model's name here, though not in streams.
        "model": re.sub(r"-\d{6}$", "", order.model),
        "created": about.created,
        "data": [_describe(about, member) for member in members],
        "usage": count_usage(order, members),
    }
    if order.searching:
        body["tools"] = [{"type": "web_search"}]
    return body


def answer_nothing(about: Answered, error: Json) -> Json:
    """The body of a request that was worked on and gave no image."""
    if about.dialect.envelope == "ace":
        return {"success": False, "task_id": about.task_id, "trace_id": about.request_id, "error": error}
    return {"model": about.order.model, "created": about.created, "error": error}


def _describe(about: Answered, member: Member) -> Json:
    if member.error is not None:
        return {"error": member.error}
    link_key = "image_url" if about.dialect.envelope == "ace" else "url"
    handed: Json = {"b64_json": member.b64} if member.b64 else {link_key: member.url}
    handed["size"] = f"{member.width}x{member.height}"
    if about.order.reports_format:
        handed["output_format"] = member.format
    return {**handed, **(member.layer or {})}


# --- streams --------------------------------------------------------------------------------------------------------


def stream_type(dialect: Dialect) -> str:
    """The content type of this service's streams."""
    return "application/x-ndjson" if dialect.envelope == "ace" else "text/event-stream; charset=utf-8"


def frame_member(about: Answered, member: Member) -> bytes:
    """The frame of one image, or of its failure."""
    outcome = "partial_failed" if member.error else "partial_succeeded"
    return _frame(about, outcome, {"image_index": member.index, **_describe(about, member)})


def frame_end(about: Answered, members: Sequence[Member]) -> bytes:
    """The last frame with the usage, and where the service has it the terminator."""
    fields: Json = {"usage": count_usage(about.order, members)}
    if about.order.searching:
        fields["tools"] = [{"type": "web_search"}]
    done = b"" if about.dialect.envelope == "ace" else b"data: [DONE]\n\n"
    return _frame(about, "completed", fields) + done


def frame_error(about: Answered, refusal: Refusal) -> bytes:
    """The frame that says, after the stream has begun, that the whole request failed."""
    error = {"code": refusal.code, "message": f"{refusal.message} Request ID: {about.request_id}"}
    if about.dialect.envelope == "ace":
        return _dump({"success": False, "error": error, "trace_id": about.request_id}) + b"\n"
    return b"event: error\ndata: " + _dump({"error": error}) + b"\n\n"


def _frame(about: Answered, outcome: str, fields: Json) -> bytes:
    kind = f"image_generation.{outcome}"
    data = _dump({"type": kind, "model": about.order.model, "created": about.created, **fields})
    if about.dialect.envelope == "ace":
        return data + b"\n"
    return f"event: {kind}\ndata: ".encode() + data + b"\n\n"


def _dump(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# --- lists of models ------------------------------------------------------------------------------------------------


def list_models(dialect: Dialect) -> Json:
    """The catalog: the services' own with domain and state, or the plain one of gateways."""
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
