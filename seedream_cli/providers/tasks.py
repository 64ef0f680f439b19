"""Tasks of the gateways that take Ark's JSON: an answer names a task instead of images, and a GET asks after it.

Nobody has written down one shape for them. A record may stand alone, under `data`, or as the one member of that; its
state is a word, its images lie under `result`, `output` or `data`, as links or as objects with links.
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
"""Names of a member that is an id of a task wherever it stands; `id` is one beside the state of a task."""

_PLACES = ("data", "task", "output", "result", "response")
"""Where a record may lie inside an answer."""

_BARE = frozenset(
    (
        *("id", "object", "type", "model", "created", "created_at", "updated_at", "expires_at", "progress", "status"),
        *("code", "message", "msg", "success", "urls", "status_url", "poll_url", "polling_url", "task_info", "usage"),
    )
)
"""The members of an answer that says no more than a task's id. With others `id` alone may be that of anything."""

_ENDS = ("finished_at", "completed_at", "ended_at", "finish_time", "end_time")

_RESULTS = ("result", "results", "output", "outputs", "task_result", "data", "response", "images", "image")

_LINKS = (
    *("url", "image_url", "imageUrl", "b64_json", "urls", "image_urls", "imageUrls"),
    *("result_url", "resultUrl", "result_urls", "resultUrls", "url_list"),
)

_DEPTH = 6

_MOST_IMAGES = 1000


def poll(spec: contract.ProviderSpec, ticket: contract.Ticket) -> contract.Call:
    """The free GET that asks after a task. Raises `InputError` for what cannot stand in a path as one part of it."""
    if not spec.task_path:
        message = f"{spec.title} answers at once and has no tasks to ask after"
        raise InputError([Problem("task", f"{message}, so not after {ticket.task_id}", "check --provider")])
    if not _is_id(ticket.task_id):
        message = f"{one_line(ticket.task_id, 40)!r} cannot be a task's id"
        raise InputError([Problem("task", message, "give the id as the answer names it", origin="--task")])
    return contract.Call("GET", spec.task_path + quote(ticket.task_id, safe=""))


def read(spec: contract.ProviderSpec, reply: contract.Reply) -> contract.Ready | contract.Ticket | None:
    """The task that a reply without images tells of: to be asked after (again), or its images; None where there is no
    task. Raises `TaskEndedError` for one that is over without an image, and `ApiError` where there are several.
    """
    record = _record(reply.body)
    if record is None or not (200 <= reply.status < 300 or _is_named(record, reply.task_id)):
        return None
    if not reply.task_id and len(several := _several(reply.body)) > 1:
        raise _many(spec, reply, several)
    if record is reply.body and _is_only_refused(record):
        return None
    task_id = reply.task_id or _id_of(record, is_202=reply.status == 202) or _task_ids(reply.body)
    state = faults.task_state(record)
    images = _images(spec, record) if state != "pending" and (state or task_id) else ()
    if any(not one.error for one in images):
        return contract.Ready(images, usage=_usage(record))
    fault = _fault(record)
    if task_id and _is_over(reply, record, state) and not _is_of_the_asking(reply, record):
        error = faults.refusal(spec, replace(reply, body=_plain(record)))
        # A request was taken, and no page says of all gateways that what fails then costs nothing.
        error.billed = "unknown"
        raise faults.task_ended(error, task_id)
    is_known = not reply.task_id or state == "pending" or _is_named(record, reply.task_id)
    if task_id and fault is None and state in {"", "pending"} and is_known:
        return contract.Ticket(task_id)
    return None


def _record(body: Any) -> Mapping[str, Any] | None:
    """The object in a reply that tells of a task: the inner one, where an envelope has words of its own."""
    if not isinstance(body, Mapping):
        return None
    whole = bool(_task_ids(body) and faults.task_state(body)) or _has_ended(body)
    for name in _PLACES:
        inner = body.get(name)
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if whole or not isinstance(inner, Mapping) or not _tells(inner):
            continue
        # Beside a word of its own, what lies under these is the result.
        if name not in {"output", "result", "response"} or not _tells(body):
            return inner
    return body


def _tells(record: Mapping[str, Any]) -> bool:
    return bool(_task_ids(record) or faults.task_state(record)) or _has_ended(record)


def _is_over(reply: contract.Reply, record: Mapping[str, Any], state: str) -> bool:
    """Whether a task has come to its end, by its state, a time, or what else only stands in the record of one."""
    if state:
        return state != "pending"
    is_result = record.get("success") is True and "data" in record
    return _has_ended(record) or (bool(reply.task_id) and (is_result or _fault(record) is not None))


def _is_of_the_asking(reply: contract.Reply, record: Mapping[str, Any]) -> bool:
    """Whether the words of an answer are those of any answer of this server, and not of the task."""
    if not reply.task_id or _is_named(record, reply.task_id):
        return False
    words = {str(record.get(name, "")).lower() for name in ("status", "state")}
    return not faults.task_state(record) or (record is reply.body and bool(words & {"error", "fail", "success"}))


def _is_only_refused(body: Mapping[str, Any]) -> bool:
    """Whether an answer lists images that failed, each with its own error, and no task."""
    items = body.get("data")
    if not isinstance(items, list) or not items:
        return False
    return all(isinstance(item, Mapping) and _fault(item) is not None and not _task_ids(item) for item in items)


def _fault(record: Mapping[str, Any]) -> faults.ProviderFault | None:
    """The error of a record; one without a word in it is the place for an error."""
    found = faults.fault_in({"error": record.get("error")})
    return found if found is not None and (found.code or found.message) else None


def _several(body: Any) -> list[str]:
    """The ids of all tasks that an answer lists."""
    items = body.get("data") if isinstance(body, Mapping) else None
    found = (_id_of(item) for item in items if isinstance(item, Mapping)) if isinstance(items, list) else ()
    return list(dict.fromkeys(one for one in found if one))


def _many(spec: contract.ProviderSpec, reply: contract.Reply, several: list[str]) -> ApiError:
    """The error for one answer with several tasks: all are paid for, and each is asked after on its own."""
    error = faults.refusal(spec, replace(reply, body={}))
    error.kind, error.billed = "unknown_outcome", "unknown"
    error.message = (
        f"{spec.title} answered with {len(several)} tasks: {one_line(', '.join(several), 1000)}; "
        "seedream recover --task ID asks after each"
    )
    return error


def _is_id(value: str) -> bool:
    """Whether a text may be an id that is put into a path, printed and pasted."""
    return 0 < len(value) <= _LONGEST_ID and value.isprintable() and bool(value.strip()) and value.strip(".") != ""


def _one_id(value: Any) -> str:
    """An id out of a reply, a word or a number; "" for what cannot be one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and _is_id(value) else ""


def _task_ids(record: Mapping[str, Any]) -> str:
    return next((found for name in _IDS if (found := _one_id(record.get(name)))), "")


def _id_of(record: Mapping[str, Any], *, is_202: bool = False) -> str:
    """The id of the task that an object tells of; "" where it tells of none."""
    if found := _task_ids(record):
        return found
    is_task = is_202 or faults.task_state(record) != "" or _has_ended(record) or record.keys() <= _BARE
    return (_one_id(record.get("id")) or (_one_id(record.get("request_id")) if is_202 else "")) if is_task else ""


def _is_named(record: Mapping[str, Any], task_id: str) -> bool:
    """Whether a record is that of the task which was asked after."""
    return bool(task_id) and task_id in {_one_id(record.get(name)) for name in (*_IDS, "id")}


def _has_ended(record: Mapping[str, Any]) -> bool:
    return any(faults.is_time(record.get(name)) for name in _ENDS)


def _plain(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record as an error is read from it: `fail_reason` and its like say what the message would."""
    said = next((record[name] for name in ("fail_reason", "failure_reason", "failed_reason") if record.get(name)), None)
    return {**record, "message": said} if isinstance(said, str) and not record.get("message") else record


def _usage(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a record says of its use, and of its charge where that stands beside it."""
    said = record.get("usage")
    usage = dict(said) if isinstance(said, Mapping) else {}
    cost = record.get("cost")
    if isinstance(cost, int | float) and not isinstance(cost, bool):
        usage.setdefault("cost", cost)
    return usage or None


def _images(spec: contract.ProviderSpec, record: Mapping[str, Any]) -> tuple[ProviderImage, ...]:
    """The images of a task that is over, and its failed members. What it repeats of the request is none of them."""
    echoes = "prompt" in record
    for name in _RESULTS:
        value = record.get(name)
        if name in {"images", "image"} and not _is_result(value, echoes=echoes):
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
    own = {name: value for name, value in record.items() if not (echoes and name.startswith("image"))}
    return tuple(reading.read_image(spec, item, index) for index, item in enumerate(_links(own)))


def _is_result(value: Any, *, echoes: bool) -> bool:
    """Whether what a record calls its images are those. Links beside the prompt are the request's references."""
    return (
        not echoes
        or isinstance(value, Mapping)
        or (isinstance(value, list) and all(isinstance(one, Mapping) for one in value))
    )


def _members(value: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """Each image of a result as one object with one link, or an error."""
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
        # The same images under two names count once.
        yield from inner[0] if inner else ()
        if not found and not inner and faults.fault_in(value) is not None:
            yield value


def _links(item: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """An object once for each link under the first of the names that has any."""
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
