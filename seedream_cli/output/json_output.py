"""What scripts read: a run, a request or a failure as JSON in the one envelope, written so that no terminal is harmed.

Links, paths and prompts go through no formatter: what is read back is what was there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError, Problem, SeedreamError
from ..results import BatchReport, Cost, JobResult, Layer, Money, Report, SavedImage
from ..text import CI_COMMAND
from .console import Console

if TYPE_CHECKING:
    from ..ledger.records import ImageRow

SCHEMA = "seedream/1"

JsonObject = dict[str, Any]


# C1 (C0 is escaped by every JSON writer), line separators, directions, marks of no width, lone surrogates, tags.
# Zero-width joiners stay, for emoji and for the scripts that need them.
_JSON_UNSAFE = re.compile(
    "[\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)


def render_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that is also valid UTF-8 and harmless in a terminal or a CI log: hidden characters stand as \\uXXXX.

    One line unless `indent` is given. Numbers that JSON does not have become null; all else reads back exactly.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(plain_value(value), ensure_ascii=False, allow_nan=False, separators=separators, indent=indent)
    return CI_COMMAND.sub(r"\\u0023", _JSON_UNSAFE.sub(_json_escape, text))


def _json_escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def plain_value(value: Any) -> Any:
    """Records, mappings, tuples and paths as what JSON has."""
    if value is None or type(value) in {str, int, bool}:
        return value
    if type(value) is dict:
        return {str(key): plain_value(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(value: Any, console: Console, *, indent: int | None = None) -> None:
    """Write a value to standard output as JSON, in ASCII where the stream's encoding has no more."""
    text = render_json(value, indent=indent)
    if not console.encodes_out(text):
        text = re.sub(r"[^\x00-\x7f]", _json_escape, text)
    for line in text.split("\n"):
        console.out_exactly(line)


def show_body(body: Mapping[str, Any]) -> JsonObject:
    """A request's body with its reference images as {"file", "sha256", "bytes"}; links stay as they are."""
    shown: JsonObject = _show_value(body)
    return shown


def _show_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _show_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_show_value(item) for item in value]
    return value.summary() if is_reference(value) else value


def is_reference(value: Any) -> bool:
    """Whether a value of a body is a reference image."""
    # Importing `request` costs pydantic's start-up time, which a body of plain JSON never needs.
    if value is None or isinstance(value, str | int | float):
        return False
    from ..request.image_request import ImageRef

    return isinstance(value, ImageRef)


def error_object(error: SeedreamError) -> JsonObject:
    """A failure for scripts."""
    shown = failure_fields(
        error.kind,
        getattr(error, "code", ""),
        error.message,
        error.hint,
        getattr(error, "request_id", ""),
        billed=error.billed,
        retryable=bool(getattr(error, "retryable", False)),
    )
    if getattr(error, "retry_after_s", None) is not None:
        shown["retry_after_s"] = getattr(error, "retry_after_s", None)
    if isinstance(error, InputError):
        shown["problems"] = [
            {"field": p.field, "message": p.message, "hint": p.hint or None, "origin": p.origin or None}
            for p in error.problems
        ]
    return shown


def failure_fields(
    code: str, provider_code: str, message: str, hint: str, request_id: str, **more: str | bool
) -> JsonObject:
    """What is told of every failure, of this run or an earlier one; `more` is known only while it happens."""
    return {
        "code": code,
        "provider_code": provider_code or None,
        "message": message,
        **more,
        "hint": hint or None,
        "request_id": request_id or None,
    }


@dataclass(frozen=True, slots=True)
class Row:
    """Where a request stands in its table: the row from 1, the line in the file, and its `id`."""

    row: int
    line: int | None = None
    row_id: str | None = None


def job_object(result: JobResult, command: str, *, row: Row | None = None) -> JsonObject:
    """One request for scripts."""
    error = result.error or next((image.error for image in result.images if image.error), None)
    shown: JsonObject = {
        "schema": SCHEMA,
        "command": command,
        "status": _script_status(result),
        "id": result.id or None,
        "provider": result.provider or None,
        "model": result.model or None,
        "request": show_body(result.request),
        "images": [_image_object(image, image.index) for image in result.images],
        "usage": plain_value(result.usage),
        "cost": cost_object(result.cost),
        "warnings": warning_objects(result.warnings),
        "error": error_object(error) if error else None,
        "attempts": result.attempts,
        "timing": {name: round(seconds, 3) for name, seconds in plain_value(result.timing).items()},
    }
    if result.possible:
        # The part of the cost that may not have been charged at all.
        shown["possible_cost"] = cost_object(result.possible)
    if result.task_id:
        shown["task_id"] = result.task_id
    return shown if row is None else _row_line(shown, row)


def _row_line(shown: JsonObject, row: Row) -> JsonObject:
    """A line of a batch: its type, which every line of a batch has, and its place in the table."""
    return {"schema": SCHEMA, "type": "row", **shown, **plain_value(row)}


def report_object(report: Report) -> JsonObject:
    """A whole run for scripts: one request as it is, several with their sums and the list of them in `requests`."""
    if len(report.jobs) == 1:
        shown = job_object(report.jobs[0], report.command)
        shown["warnings"] = warning_objects(dict.fromkeys((*report.warnings, *report.jobs[0].warnings)))
        return shown
    jobs = [job_object(job, report.command) for job in report.jobs]
    images = [image for job in report.jobs for image in job.images]
    error = most_urgent_error(report)
    possible = add_costs([job.possible for job in report.jobs if job.possible])
    shown = {
        "schema": SCHEMA,
        "command": report.command,
        "status": _overall_status([job["status"] for job in jobs]),
        "id": None,
        "provider": _common(job["provider"] for job in jobs),
        "model": _common(job["model"] for job in jobs),
        "request": _common(job["request"] for job in jobs),
        "images": [_image_object(image, index) for index, image in enumerate(images)],
        "usage": _sum_usage([job["usage"] for job in jobs if job["usage"] is not None]),
        "cost": cost_object(_total_cost(report.jobs)),
        "warnings": warning_objects(dict.fromkeys((*report.warnings, *(w for j in report.jobs for w in j.warnings)))),
        "error": error_object(error) if error else None,
        "attempts": sum(job.attempts for job in report.jobs),
        "timing": {
            "total_s": round(report.elapsed_s, 3),
            "provider_s": round(sum(job.timing.provider_s for job in report.jobs), 3),
            "download_s": round(sum(job.timing.download_s for job in report.jobs), 3),
        },
        "requests": jobs,
    }
    return shown | ({"possible_cost": cost_object(possible)} if possible else {})


def batch_object(report: BatchReport) -> JsonObject:
    """The last line of a batch."""
    return {
        "schema": SCHEMA,
        "type": "summary",
        "rows": report.rows,
        "succeeded": report.succeeded,
        "failed": report.failed,
        "unknown": report.unknown,
        "skipped": report.skipped,
        "unsent": report.unsent,
        "images": report.images,
        "cost": cost_object(report.cost),
        "possible_cost": cost_object(report.possible),
        "elapsed_s": round(report.elapsed_s, 3),
        "exit_code": report.exit_code,
        "error": error_object(report.halt) if report.halt else None,
    }


def stale_object(row: Row, why: str) -> JsonObject:
    """A row of a batch that would run, and why."""
    place: JsonObject = plain_value(row)
    return {"schema": SCHEMA, "type": "stale", **place, "why": why}


def row_object(results: Sequence[JobResult], row: Row) -> JsonObject:
    """A row of a batch, all its requests together."""
    if len(results) == 1:
        return job_object(results[0], "batch", row=row)
    return _row_line(report_object(Report("batch", tuple(results))), row)


def failure_object(command: str, error: SeedreamError) -> JsonObject:
    """A failure before any request was built, in the same envelope."""
    status: Literal["unknown", "failed"] = "unknown" if error.kind == "unknown_outcome" else "failed"
    nothing = JobResult(index=0, id="", status=status, provider="", model="", request={}, error=error)
    shown = job_object(nothing, command) | {"request": None}
    return {"schema": SCHEMA, "type": "error", **shown} if command == "batch" else shown


def most_urgent_error(report: Report) -> SeedreamError | None:
    """The failure that speaks for the run: the first of those whose exit code matters most."""
    errors = [error for job in report.jobs for error in (job.error, *(image.error for image in job.images)) if error]
    if not errors:
        return None
    failed = tuple(dataclasses.replace(report.jobs[0], status="failed", error=error) for error in errors)
    code = Report(report.command, failed).exit_code
    return next((error for error in errors if error.exit_code == code), errors[0])


def _image_object(image: SavedImage, index: int) -> JsonObject:
    shown: JsonObject = {
        "index": index,
        "path": str(image.path) if image.path else None,
        "url": image.url or None,
        **image_facts(image),
        "error": error_object(image.error) if image.error else None,
    }
    return shown | ({"layer": _layer_object(image.layer)} if image.layer else {})


def image_facts(image: SavedImage | ImageRow) -> JsonObject:
    """What is known of an image's bytes, for scripts."""
    return {
        "format": image.format or None,
        "width": image.width or None,
        "height": image.height or None,
        "bytes": image.bytes or None,
        "sha256": image.sha256 or None,
    }


def _layer_object(layer: Layer) -> JsonObject:
    box = {"absolute": list(layer.absolute), "normalized": list(layer.normalized)}
    return {
        "z_index": layer.z_index,
        "name": layer.name,
        "description": layer.description,
        "bounding_box": box if layer.absolute or layer.normalized else None,
    }


def warning_objects(warnings: Iterable[Problem]) -> list[JsonObject]:
    """Warnings for scripts."""
    return [{"code": warning.code, "message": warning.message} for warning in warnings]


def money_object(money: Money | Cost) -> JsonObject:
    """An amount for scripts."""
    return {"amount": round(money.amount, 6), "currency": money.currency}


def cost_object(cost: Cost | None) -> JsonObject | None:
    """What a request cost, for scripts; null where nobody knows."""
    if cost is None:
        return None
    return money_object(cost) | {"as_of": cost.as_of} | ({"note": cost.note} if cost.note else {})


def _script_status(job: JobResult) -> str:
    """The contract's word. A request that a signal ended is partial, unknown or failed by what became of it."""
    if job.status != "interrupted":
        return job.status
    if any(image.error is None for image in job.images):
        return "partial"
    return "unknown" if job.error and job.error.billed == "unknown" else "failed"


def _overall_status(states: Sequence[str]) -> str:
    """One word for several requests; something on disk beside something missing is partial."""
    kinds = set(states)
    if not kinds:
        return "succeeded"
    if len(kinds) == 1:
        return states[0]
    if kinds <= {"failed", "unknown"}:
        return "unknown"
    return "submitted" if kinds == {"succeeded", "submitted"} else "partial"


def _common(values: Iterable[Any]) -> Any:
    """What all have in common, or None."""
    listed = list(values)
    return listed[0] if listed and all(value == listed[0] for value in listed) else None


def _sum_usage(usages: Sequence[Any]) -> Any:
    """Numbers added up at every depth; what is no number stays where all agree on it."""
    if not usages:
        return None
    if all(isinstance(usage, dict) for usage in usages):
        keys = dict.fromkeys(key for usage in usages for key in usage)
        return {key: _sum_usage([usage[key] for usage in usages if key in usage]) for key in keys}
    if all(isinstance(usage, int | float) and not isinstance(usage, bool) for usage in usages):
        return sum(usages)
    return _common(usages)


def _total_cost(jobs: Iterable[JobResult]) -> Cost | None:
    """The sum of what each request cost, or may have cost; None where the price of an image is not known."""
    priced = [job for job in jobs if job.cost or any(image.error is None for image in job.images)]
    costs = [job.cost for job in priced if job.cost]
    if len(costs) < len(priced):
        return None
    return add_costs(costs)


def add_costs(costs: Sequence[Cost]) -> Cost | None:
    """The sum of amounts in one currency, as old as the oldest; None for none and for several currencies."""
    if len({cost.currency for cost in costs}) != 1:
        return None
    note = next((cost.note for cost in costs if cost.note), "")
    amount = math.fsum(cost.amount for cost in costs)
    # What cost nothing has no date.
    return Cost(amount, costs[0].currency, min((cost.as_of for cost in costs if cost.as_of), default=""), note)
