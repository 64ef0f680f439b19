"""Tasks of gateways with Ark's JSON: a response has a task id instead of images, and a GET returns the task.

Formats differ. A task record may be the body, under `data`, or the only member of that; its state is a word, its
images are under `result`, `output` or `data`, as URLs or objects with URLs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from ..errors import ApiError, InputError, Problem
from ..results import Base64Slice, ProviderImage
from . import contract, faults, reading
from .error_text import one_line

_LONGEST_ID = 200

_IDS = ("task_id", "taskId")
"""Names of a task id anywhere; `id` is one only beside a task's state."""

_ENVELOPES = ("data", "task", "output", "result", "response")
"""Names under which a response may have the task record."""

_BARE = frozenset(
    (
        *("id", "object", "type", "model", "created", "created_at", "updated_at", "expires_at", "progress", "status"),
        *("code", "message", "msg", "success", "urls", "status_url", "poll_url", "polling_url", "task_info", "usage"),
    )
)
"""The fields of a response with only a task's id. Beside other fields `id` may be anything's."""

_ENDS = ("finished_at", "completed_at", "ended_at", "finish_time", "end_time")

_RESULTS = ("result", "results", "output", "outputs", "task_result", "data", "response", "images", "image")

_LINKS = (
    *("url", "image_url", "imageUrl", "b64_json", "urls", "image_urls", "imageUrls"),
    *("result_url", "resultUrl", "result_urls", "resultUrls", "url_list"),
)

_DEPTH = 6

_MOST_IMAGES = 1000


def poll(spec: contract.ProviderSpec, ticket: contract.Ticket) -> contract.Call:
    """The free GET for a task. Raises `InputError` for an id that cannot be one segment of a path."""
    if not spec.task_path:
        message = f"{spec.title} answers at once and has no tasks to ask after"
        raise InputError([Problem("task", f"{message}, so not after {ticket.task_id}", "check --provider")])
    if not _is_id(ticket.task_id):
        message = f"{one_line(ticket.task_id, 40)!r} cannot be a task's id"
        raise InputError([Problem("task", message, "give the id as the answer names it", origin="--task")])
    return contract.Call("GET", spec.task_path + quote(ticket.task_id, safe=""))


def read(spec: contract.ProviderSpec, reply: contract.Reply) -> contract.Ready | contract.Ticket | None:
    """The pending task or the task's images in a response; None where it has no task. Raises `TaskEndedError` for a
    task that ended without an image, and `ApiError` for several tasks.
    """
    record = _record(reply.body)
    if record is None or not (200 <= reply.status < 300 or _is_named(record, reply.task_id)):
        return None
    if not reply.task_id and len(several := _listed_ids(reply.body)) > 1:
        raise _several_tasks_error(spec, reply, several)
    if record is reply.body and _is_only_refused(record):
        return None
    task_id = reply.task_id or _id_of(record, is_202=reply.status == 202) or _task_ids(reply.body)
    state = faults.task_state(record)
    images = _images(spec, record) if state != "pending" and (state or task_id) else ()
    if any(not one.error for one in images):
        return contract.Ready(images, usage=_usage(record))
    fault = _error_of(record)
    if task_id and _is_over(reply, record, state) and not _is_error_of_poll(reply, record):
        error = faults.refusal(spec, replace(reply, body=_plain(record)))
        # The request was accepted, and no source says that a failed task is not billed.
        error.billed = "unknown"
        raise faults.task_ended(error, task_id)
    is_known = not reply.task_id or state == "pending" or _is_named(record, reply.task_id)
    if task_id and fault is None and state in {"", "pending"} and is_known:
        return contract.Ticket(task_id)
    return None


def _record(body: Any) -> Mapping[str, Any] | None:
    """The task record in a body: the inner object where there is an envelope."""
    if not isinstance(body, Mapping):
        return None
    is_complete = bool(_task_ids(body) and faults.task_state(body)) or _has_ended(body)
    for name in _ENVELOPES:
        inner = body.get(name)
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if is_complete or not isinstance(inner, Mapping) or not _is_task_record(inner):
            continue
        # Where the body is a record itself, these are its result.
        if name not in {"output", "result", "response"} or not _is_task_record(body):
            return inner
    return body


def _is_task_record(record: Mapping[str, Any]) -> bool:
    return bool(_task_ids(record) or faults.task_state(record)) or _has_ended(record)


def _is_over(reply: contract.Reply, record: Mapping[str, Any], state: str) -> bool:
    """Whether a task ended, by its state, an end time, or fields of its result."""
    if state:
        return state != "pending"
    is_result = record.get("success") is True and "data" in record
    return _has_ended(record) or (bool(reply.task_id) and (is_result or _error_of(record) is not None))


def _is_error_of_poll(reply: contract.Reply, record: Mapping[str, Any]) -> bool:
    """Whether an error is of the poll request itself and not of the task."""
    if not reply.task_id or _is_named(record, reply.task_id):
        return False
    words = {str(record.get(name, "")).lower() for name in ("status", "state")}
    return not faults.task_state(record) or (record is reply.body and bool(words & {"error", "fail", "success"}))


def _is_only_refused(body: Mapping[str, Any]) -> bool:
    """Whether a response lists only failed images and no task."""
    items = body.get("data")
    if not isinstance(items, list) or not items:
        return False
    return all(isinstance(item, Mapping) and _error_of(item) is not None and not _task_ids(item) for item in items)


def _error_of(record: Mapping[str, Any]) -> faults.ProviderFault | None:
    """The error of a record; None for an empty error object."""
    found = faults.fault_in({"error": record.get("error")})
    return found if found is not None and (found.code or found.message) else None


def _listed_ids(body: Any) -> list[str]:
    """The ids of all tasks that a response lists."""
    items = body.get("data") if isinstance(body, Mapping) else None
    found = (_id_of(item) for item in items if isinstance(item, Mapping)) if isinstance(items, list) else ()
    return list(dict.fromkeys(one for one in found if one))


def _several_tasks_error(spec: contract.ProviderSpec, reply: contract.Reply, several: list[str]) -> ApiError:
    """The error for a response with several tasks: all may be billed, and each can be polled with --task."""
    error = faults.refusal(spec, replace(reply, body={}))
    error.kind, error.billed = "unknown_outcome", "unknown"
    error.message = (
        f"{spec.title} answered with {len(several)} tasks: {one_line(', '.join(several), 1000)}; "
        "seedream recover --task ID asks after each"
    )
    return error


def _is_id(value: str) -> bool:
    """Whether a text is safe as an id in a path and on a command line."""
    return 0 < len(value) <= _LONGEST_ID and value.isprintable() and bool(value.strip()) and value.strip(".") != ""


def _one_id(value: Any) -> str:
    """An id, str or int, as text; "" for other values."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and _is_id(value) else ""


def _task_ids(record: Mapping[str, Any]) -> str:
    return next((found for name in _IDS if (found := _one_id(record.get(name)))), "")


def _id_of(record: Mapping[str, Any], *, is_202: bool = False) -> str:
    """The id of an object's task; "" where it is no task."""
    if found := _task_ids(record):
        return found
    is_task = is_202 or faults.task_state(record) != "" or _has_ended(record) or record.keys() <= _BARE
    return (_one_id(record.get("id")) or (_one_id(record.get("request_id")) if is_202 else "")) if is_task else ""


def _is_named(record: Mapping[str, Any], task_id: str) -> bool:
    """Whether a record has the polled task's id."""
    return bool(task_id) and task_id in {_one_id(record.get(name)) for name in (*_IDS, "id")}


def _has_ended(record: Mapping[str, Any]) -> bool:
    return any(faults.is_time(record.get(name)) for name in _ENDS)


def _plain(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record with `fail_reason` and the like as `message`, for parsing its error."""
    text = next((record[name] for name in ("fail_reason", "failure_reason", "failed_reason") if record.get(name)), None)
    return {**record, "message": text} if isinstance(text, str) and not record.get("message") else record


def _usage(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The `usage` of a record, with its `cost` merged in."""
    stated = record.get("usage")
    usage = dict(stated) if isinstance(stated, Mapping) else {}
    cost = record.get("cost")
    if isinstance(cost, int | float) and not isinstance(cost, bool):
        usage.setdefault("cost", cost)
    return usage or None


def _images(spec: contract.ProviderSpec, record: Mapping[str, Any]) -> tuple[ProviderImage, ...]:
    """The images and failed members of a task that ended, without references that the record repeats."""
    repeats_request = "prompt" in record
    for name in _RESULTS:
        value = record.get(name)
        if name in {"images", "image"} and not _is_result(value, repeats_request=repeats_request):
            continue
        found: list[Mapping[str, Any]] = []
        for item in _members(value, _DEPTH):
            if item not in found:
                found.append(item)
            if len(found) == _MOST_IMAGES:
                break
        images = tuple(reading.read_image(spec, item, index) for index, item in enumerate(found))
        if any(not one.error for one in images):
            return images
    own = {name: value for name, value in record.items() if not (repeats_request and name.startswith("image"))}
    return tuple(reading.read_image(spec, item, index) for index, item in enumerate(_links(own)))


def _is_result(value: Any, *, repeats_request: bool) -> bool:
    """Whether the `images` of a record are its result. Bare URLs beside the prompt are the request's references."""
    return (
        not repeats_request
        or isinstance(value, Mapping)
        or (isinstance(value, list) and all(isinstance(one, Mapping) for one in value))
    )


def _members(value: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """Each image of a result as an object with one URL, or an error."""
    if not depth:
        return
    if isinstance(value, Base64Slice) or (
        isinstance(value, str) and value.startswith(("http://", "https://", "data:", "/"))
    ):
        yield {"url": value}
    elif isinstance(value, list):
        for one in value:
            yield from _members(one, depth - 1)
    elif isinstance(value, Mapping):
        found = tuple(_links(value))
        yield from found
        inner = () if found else [one for name in _RESULTS if (one := tuple(_members(value.get(name), depth - 1)))]
        # The same images may be listed under two names.
        yield from inner[0] if inner else ()
        if not found and not inner and faults.fault_in(value) is not None:
            yield value


def _links(item: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """An object once for each URL under the first name that has any."""
    bare = {name: value for name, value in item.items() if name not in _LINKS}
    for name in _LINKS:
        value = item.get(name)
        links = [
            one for one in (value if isinstance(value, list) else [value]) if one and isinstance(one, str | Base64Slice)
        ]
        if links:
            kind = "b64_json" if name == "b64_json" else "url"
            yield from ({**bare, kind: one} for one in links)
            return


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
