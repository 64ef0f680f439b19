"""AceData Cloud: Ark's fields in an envelope of its own, and asynchronous tasks.

`POST /seedream/images` returns images, or at once a task id for `async` and `callback_url`; `POST /seedream/tasks`
returns a task. An image's URL is `image_url`. Streams are NDJSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..request.models import Rule
from ..results import ProviderImage
from . import contract, faults, payload, reading
from .contract import Verdict
from .faults import ACCOUNT, AUTH, MODERATION, RATE_LIMITED, REFUSED, UNKNOWN, WRONG_ADDRESS

if TYPE_CHECKING:
    from ..request.image_request import ImageRequest


_PAGE = "AceData Cloud Seedream pages, 2026-11"

_OLD_ONLY = Rule("refused", "AceData Cloud takes it for 3.0 models only", _PAGE)

spec = contract.ProviderSpec(
    name="acedata",
    title="AceData Cloud",
    base_url="https://api.acedata.cloud",
    version="",
    path="/seedream/images",
    key_variables=("ACEDATACLOUD_API_TOKEN",),
    spelling="acedata",
    as_of="2026-11",
    source=_PAGE,
    unconfirmed={"seed": _OLD_ONLY, "guidance_scale": _OLD_ONLY},
    defaults={"watermark": "on", "size": "2048x2048", "response_format": "url", "async": "off"},
    notes=(
        "a stream cannot be combined with a task or a callback",
        "a transparent background cannot be combined with layers",
        "prices are quoted in credits; the ones known here are of an older public table",
    ),
    codes={
        **faults.CONTENT,
        # A bad parameter with status 400, a bad key with 401.
        "token_mismatched": Verdict("refused", hint="a parameter is missing or wrong: a dry run shows what is sent"),
        "401:token_mismatched": AUTH,
        "api_not_implemented": REFUSED,
        "bad_request": Verdict("refused", hint="`seedream models` shows what each model takes"),
        "disabled": Verdict("account", hint="the service is disabled for this account: see its console"),
        "no_token": AUTH,
        "invalid_token": AUTH,
        "token_expired": AUTH,
        "used_up": Verdict("account", hint="the balance is used up: top it up in AceData Cloud's console"),
        "no_api": WRONG_ADDRESS,
        "request_too_large": Verdict("refused", hint="give references as URLs, or smaller ones (10 MB each)"),
        "too_many_requests": RATE_LIMITED,
        # No source says that a request with this error is not billed.
        "api_error": UNKNOWN,
    },
    statuses={402: ACCOUNT, 403: MODERATION},
    reference_bytes=10_000_000,
    hosts=("x402.acedata.cloud",),
    unconfirmed_sizes=("adaptive",),
    asynchronous=True,
)


def submit(request: ImageRequest) -> contract.Call:
    """The billable call. References are a list, except for the one image of --layers."""
    body = payload.body_of(request, image_list=not request.layers)
    return payload.submission(spec, body, stream_type="application/x-ndjson")


def poll(ticket: contract.Ticket) -> contract.Call:
    """The free call that returns a task; a POST here."""
    return contract.Call("POST", "/seedream/tasks", {"id": ticket.task_id, "action": "retrieve"})


def read_event(event: Mapping[str, Any]) -> ProviderImage | contract.Completed | None:
    """One line of a stream, with Ark's event types."""
    return reading.read_stream_event(spec, event)


def read(reply: contract.Reply) -> contract.Ready | contract.Ticket:
    """Images or a task, from a response to a request, a task's result, a task record, or a list of one record."""
    body = reply.body
    if isinstance(body, Mapping) and isinstance(body.get("items"), list) and len(body["items"]) == 1:
        body = body["items"][0]
    elif isinstance(body, Mapping) and isinstance(body.get("data"), Mapping) and _is_record(body["data"]):
        body = body["data"]
    if not isinstance(body, Mapping):
        raise faults.refusal(spec, reply)
    return _read_record(reply, body) if _is_record(body) else _read_result(reply, body)


def _is_record(body: Mapping[str, Any]) -> bool:
    """Whether an object is a task record, whose result is under `response`, and not the result itself."""
    if "data" in body or not _name(body, "id"):
        return "data" not in body and "response" in body
    return any(name in body for name in ("response", "created_at", "finished_at")) or faults.task_state(body) != ""


def _read_result(
    reply: contract.Reply, result: Mapping[str, Any], *, over: bool = False
) -> contract.Ready | contract.Ticket:
    """A response {"success", "task_id", "trace_id", "data" or "error"}; `over` where it is of a task that ended."""
    plain = replace(reply, body=result)
    ready = reading.read_images(spec, result, reply.headers)
    well = 200 <= reply.status < 300
    if ready and (any(not image.error for image in ready.images) or (well and not (over and _is_ambiguous(ready)))):
        return ready
    task_id = _name(result, "task_id")
    if task_id and result.get("data") is None and faults.fault_in(result) is None and well and not over:
        return contract.Ticket(task_id)
    if well and (over or (task_id and result.get("success") is True)):
        raise faults.task_ended(faults.refusal(spec, plain), task_id)
    raise faults.refusal(spec, plain)


def _is_ambiguous(ready: contract.Ready) -> bool:
    """Whether a failed member may have been billed."""
    return any(image.error is not None and image.error.billed == "unknown" for image in ready.images)


def _read_record(reply: contract.Reply, record: Mapping[str, Any]) -> contract.Ready | contract.Ticket:
    """A task record, which has no state field: it is pending until it has a response or an end time."""
    ids = {"task_id": _name(record, "id"), "trace_id": _name(record, "trace_id")}
    answer = record.get("response")
    answer = answer if isinstance(answer, Mapping) else {}
    error = answer.get("error") or record.get("error")
    # A pending task has `success: false` without an error.
    undecided = not error and (not answer or answer.get("success") is False)
    is_open = not faults.is_time(record.get("finished_at")) and faults.task_state(record) in {"", "pending"}
    if undecided and is_open and ids["task_id"]:
        return contract.Ticket(ids["task_id"])
    return _read_result(reply, {**ids, "data": [], **answer, "error": error}, over=True)


def _name(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    return value if isinstance(value, str) else ""
