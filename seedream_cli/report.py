"""What the user and their scripts see: plain lines, JSON, tables and the summary. Everything the tool writes goes here.

Results go to standard output, all else to standard error. Text from outside (a provider's message, a prompt, a file
name) passes `clean` before a person sees it and never begins a line: a terminal obeys escape sequences and a CI runner
obeys `::command::`, whoever wrote them. JSON, links and paths go through no formatter.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from .errors import ApiError, InputError, Problem, SeedreamError
from .models import ModelSpec, PriceStep
from .results import (
    Cost,
    Draining,
    Event,
    Finished,
    JobResult,
    Layer,
    Notice,
    Planned,
    Report,
    Retrying,
    Saved,
    SavedImage,
    Sink,
    Stage,
)

if TYPE_CHECKING:
    from .request import ImageRef

SCHEMA = "seedream/1"
Mode = Literal["paths", "urls", "json", "none"]
_JsonObject = dict[str, Any]


# --- text from outside ----------------------------------------------------------------------------------------------

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_ZWJ = "\u200d"
# A CI runner obeys these wherever they stand in a line (GitHub's older form, Azure Pipelines).
_CI_COMMAND = re.compile(r"#(?=#(?:\[|vso\[))")


def clean(text: str, limit: int | None = 500) -> str:
    """Foreign text made safe to show: one line, hidden characters as visible escapes, at most `limit` characters."""
    if limit is not None:
        # Only CR LF gets shorter, so twice the limit of input always fills the output.
        text = text[: 2 * limit + 2]
    shown = _show(text, newline="⏎", commands=True)
    if limit is None or sum(map(len, shown)) <= limit:
        return "".join(shown)
    return "".join(_take(shown, limit - 1)).rstrip(_ZWJ) + "…"


def clean_path(path: Path | str) -> str:
    """A path or link made safe to show. Whole, and unchanged unless it holds hidden characters."""
    return "".join(_show(str(path), newline="\\n", commands=False))


def _show(text: str, *, newline: str, commands: bool) -> Sequence[str]:
    """The text as pieces that are not to be cut; `commands` are made harmless too."""
    if text.isprintable() and not (commands and "##" in text):
        return text
    return list(_escape(text.replace("\r\n", "\n"), newline, commands=commands))


def _escape(text: str, newline: str, *, commands: bool) -> Iterator[str]:
    for position, char in enumerate(text):
        if commands and char == "#" and _CI_COMMAND.match(text, position):
            yield "\\x23"
        elif not _is_hidden(char) or (char == _ZWJ and _joins_emoji(text, position)):
            yield char
        else:
            yield newline if char == "\n" else _escaped(char)


def _escaped(char: str) -> str:
    if char in "\t\r":
        return "\\t" if char == "\t" else "\\r"
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_hidden(char: str) -> bool:
    """Whether a character shows nothing, or changes how others are shown."""
    if char.isprintable():
        return False
    category = unicodedata.category(char)
    if category != "Cn":
        return category in _HIDDEN
    # Unassigned characters are mostly newer emoji, except these, which are never to be drawn.
    code = ord(char)
    return code == 0x2065 or 0xFFF0 <= code <= 0xFFF8 or 0xE0000 <= code <= 0xE0FFF or code & 0xFFFE == 0xFFFE


def _joins_emoji(text: str, position: int) -> bool:
    """Whether the zero-width joiner at `position` stands between two emoji, where it belongs."""
    before = text[max(position - 2, 0) : position].rstrip("\ufe0f")[-1:]
    after = text[position + 1 : position + 2]
    pictured = before and unicodedata.category(before) in {"So", "Sk"}
    return bool(pictured and after and unicodedata.category(after) == "So")


def _take(pieces: Iterable[str], length: int) -> Iterator[str]:
    for piece in pieces:
        length -= len(piece)
        if length < 0:
            return
        yield piece


def text_width(text: str) -> int:
    """Columns that a text takes in a terminal: two for wide East Asian characters, none for combining marks."""
    return len(text) if text.isascii() else sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


# --- streams --------------------------------------------------------------------------------------------------------

# Our own typography, for a terminal whose encoding lacks it.
_TYPEWRITER = str.maketrans({"·": "-", "…": "...", "⏎": "\\n"})
_LABEL = re.compile(r"^( *)(error|warning|hint|note|retry):")
_LABEL_STYLE = {"error": "1;31", "warning": "33", "hint": "36", "note": "2", "retry": "33"}


@dataclass(kw_only=True)
class Streams:
    """Standard output and standard error, and what the caller knows of them. `width` is in columns.

    A stream that cannot be written (closed pipe, full disk) never raises: that is remembered and later writes are
    dropped, since a run that has paid goes on whoever has stopped listening. `screen` pauses a live display while a
    line is written to its terminal; `color` is for standard error alone.
    """

    stdout: TextIO | None
    stderr: TextIO | None
    stdout_is_terminal: bool = False
    stderr_is_terminal: bool = False
    width: int = 80
    color: bool = False
    ci: bool = False
    screen: Callable[[], AbstractContextManager[None]] = nullcontext
    stdout_closed: bool = field(init=False)
    stderr_closed: bool = field(init=False)

    def __post_init__(self) -> None:
        self.stdout_closed = self.stdout is None
        self.stderr_closed = self.stderr is None

    def out(self, line: str) -> None:
        """One line of results, plain and flushed. Hidden characters in it become visible escapes."""
        self.out_exactly(clean(line, None) if self.ci else clean_path(line))

    def out_exactly(self, line: str) -> None:
        """One line of results that is safe already, such as JSON."""
        with self.screen() if self.stdout_is_terminal else nullcontext():
            self._put_out(line + "\n")

    def out_bytes(self, chunk: bytes) -> None:
        """Bytes of a picture (`-o -`)."""
        self._put_out(chunk)

    def err(self, line: str) -> None:
        """One line for the user."""
        line = clean(line, None)
        if not _can_encode(self.stderr, "·…⏎"):
            line = line.translate(_TYPEWRITER)
        if self.color and self.stderr_is_terminal:
            line = _LABEL.sub(lambda m: f"{m[1]}\x1b[{_LABEL_STYLE[m[2]]}m{m[2]}:\x1b[0m", line)
        with self.screen():
            self.err_exactly(line + "\n")

    def err_exactly(self, text: str) -> None:
        """Text for standard error as it is: the drawing of a live display."""
        if not self.stderr_closed:
            self.stderr_closed = not _put(self.stderr, text)

    def encodable_err(self, text: str) -> str:
        """The text as standard error will show it."""
        return _encodable(self.stderr, text)

    def _put_out(self, data: str | bytes) -> None:
        if not self.stdout_closed:
            self.stdout_closed = not _put(self.stdout, data)


def _put(stream: TextIO | None, data: str | bytes) -> bool:
    """Write and flush; False where the stream is gone."""
    if stream is None:
        return False
    try:
        if isinstance(data, bytes):
            stream.buffer.write(data)
        else:
            stream.write(_encodable(stream, data))
        stream.flush()
    except (OSError, ValueError):
        _discard(stream)
        return False
    return True


def _discard(stream: TextIO) -> None:
    """Point a dead stream at the null device, or Python would fail on what it still holds when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


def _can_encode(stream: TextIO | None, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _encodable(stream: TextIO | None, text: str) -> str:
    """The text with what the stream's encoding lacks as backslash escapes."""
    if text.isascii() or _can_encode(stream, text):
        return text
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


# --- errors and warnings as lines -----------------------------------------------------------------------------------

_BILLED = {"no": "not billed", "yes": "billed", "unknown": "unknown, may have been billed"}
_KEYED_FILE = re.compile(r"\.(jsonl|ndjson|json|toml):\d+$", re.IGNORECASE)
_FILE_LINE = re.compile(r":\d+$")
_Entry = tuple[list[str], str]
"""The lines that say what happened, and the hint that follows them."""


def error_lines(error: SeedreamError | Problem, *, subject: str = "", cost: Cost | None = None) -> list[str]:
    """What happened, where, what the money did, and what to do next. `subject` names the request it concerns."""
    return _join_entries(_error_entries(error, subject, cost))


def warning_lines(problems: Iterable[Problem]) -> list[str]:
    """Warnings, each once, a hint that several share after the last of them."""
    return _join_entries(_problem_entry(problem, "") for problem in dict.fromkeys(problems))


def _join_entries(entries: Iterable[_Entry]) -> list[str]:
    """Lines of all entries; a hint that the next entry repeats is left to that one."""
    listed = list(entries)
    lines: list[str] = []
    for position, (said, hint) in enumerate(listed):
        lines += said
        repeated = position + 1 < len(listed) and listed[position + 1][1] == hint
        if hint and not repeated:
            lines.append(f"  hint: {clean(hint, 2000)}")
    return lines


def _error_entries(error: SeedreamError | Problem, subject: str, cost: Cost | None = None) -> list[_Entry]:
    if isinstance(error, Problem):
        return [_problem_entry(error, subject)]
    if isinstance(error, InputError) and error.problems:
        return [_problem_entry(problem, subject) for problem in error.problems]
    said = [f"error: {_place(subject)}{clean(error.message) or error.kind}"]
    detail = _detail(error, cost)
    return [(said + ([f"  {detail}"] if detail else []), error.hint)]


def _problem_entry(problem: Problem, subject: str) -> _Entry:
    where = _place(subject) + _place(_origin(problem))
    return [f"{problem.severity}: {where}{clean(problem.message)}"], problem.hint


def _place(text: str) -> str:
    return f"{clean(text, 200)}: " if text else ""


def _origin(problem: Problem) -> str:
    """The place as the user knows it: `shots.csv:14, column size`, `--size`, or the field's name."""
    if not problem.origin:
        return "" if problem.field.lower() in problem.message.lower() else problem.field
    if not problem.field or problem.field in problem.origin or not _FILE_LINE.search(problem.origin):
        return problem.origin
    unit = "key" if _KEYED_FILE.search(problem.origin) else "column"
    return f"{problem.origin}, {unit} {problem.field}"


def _detail(error: SeedreamError, cost: Cost | None = None, *, with_code: bool = True) -> str:
    """Who said it and what the money did; "" where there is nothing to add to the message."""
    billed = _BILLED[error.billed]
    if error.billed == "unknown" and cost:
        billed += f", about {_money(cost)}"
    if not isinstance(error, ApiError):
        return "" if error.billed == "no" else billed
    known = {
        "provider": error.provider,
        "code": error.code if with_code else "",
        "HTTP": str(error.status or ""),
        "request id": error.request_id,
    }
    facts = ", ".join(f"{name} {clean(value, 200)}" for name, value in known.items() if value)
    return f"{facts}; {billed}" if facts else billed


def _money(cost: Cost) -> str:
    """An amount for people: at least two decimals, at most four."""
    digits = f"{cost.amount:.4f}"
    while digits.endswith("0") and len(digits.partition(".")[2]) > 2:
        digits = digits[:-1]
    return f"${digits}" if cost.currency == "USD" else f"{digits} {clean(cost.currency, 12)}"


# --- JSON -----------------------------------------------------------------------------------------------------------

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
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=separators, indent=indent)
    return _CI_COMMAND.sub(r"\\u0023", _JSON_UNSAFE.sub(_json_escape, text))


def _json_escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def _plain(value: Any) -> Any:
    """Records, mappings, tuples and paths as what JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(value: Any, streams: Streams, *, indent: int | None = None) -> None:
    """Write a value to standard output as JSON, in ASCII where the stream's encoding has no more."""
    text = render_json(value, indent=indent)
    if not _can_encode(streams.stdout, text):
        text = re.sub(r"[^\x00-\x7f]", _json_escape, text)
    for line in text.split("\n"):
        streams.out_exactly(line)


def error_object(error: SeedreamError) -> _JsonObject:
    """A failure for scripts."""
    shown: _JsonObject = {
        "code": error.kind,
        "provider_code": getattr(error, "code", "") or None,
        "message": error.message,
        "billed": error.billed,
        "retryable": bool(getattr(error, "retryable", False)),
        "hint": error.hint or None,
        "request_id": getattr(error, "request_id", "") or None,
    }
    if isinstance(error, InputError):
        shown["problems"] = [
            {"field": p.field, "message": p.message, "hint": p.hint or None, "origin": p.origin or None}
            for p in error.problems
        ]
    return shown


@dataclass(frozen=True, slots=True)
class Row:
    """Where a request stands in its table: the row from 1, the line in the file, and its `id`."""

    row: int
    line: int | None = None
    row_id: str | None = None


def job_object(result: JobResult, command: str, *, row: Row | None = None) -> _JsonObject:
    """One request for scripts."""
    error = result.error or next((image.error for image in result.images if image.error), None)
    shown: _JsonObject = {
        "schema": SCHEMA,
        "command": command,
        "status": _script_status(result),
        "id": result.id or None,
        "provider": result.provider or None,
        "model": result.model or None,
        "request": show_body(result.request),
        "images": [_image_object(image, image.index) for image in result.images],
        "usage": _plain(result.usage),
        "cost": _cost_object(result.cost),
        "warnings": _warning_objects(result.warnings),
        "error": error_object(error) if error else None,
        "attempts": result.attempts,
        "timing": {name: round(seconds, 3) for name, seconds in _plain(result.timing).items()},
    }
    if result.task_id:
        shown["task_id"] = result.task_id
    return shown | (_plain(row) if row else {})


def report_object(report: Report) -> _JsonObject:
    """A whole run for scripts: one request as it is, several with their sums and the list of them in `requests`."""
    if len(report.jobs) == 1:
        shown = job_object(report.jobs[0], report.command)
        shown["warnings"] = _warning_objects(dict.fromkeys((*report.warnings, *report.jobs[0].warnings)))
        return shown
    jobs = [job_object(job, report.command) for job in report.jobs]
    pictures = [image for job in report.jobs for image in job.images]
    error = most_urgent_error(report)
    return {
        "schema": SCHEMA,
        "command": report.command,
        "status": _overall_status([job["status"] for job in jobs]),
        "id": None,
        "provider": _common(job["provider"] for job in jobs),
        "model": _common(job["model"] for job in jobs),
        "request": _common(job["request"] for job in jobs),
        "images": [_image_object(image, index) for index, image in enumerate(pictures)],
        "usage": _sum_usage([job["usage"] for job in jobs if job["usage"] is not None]),
        "cost": _cost_object(_total_cost(report.jobs)),
        "warnings": _warning_objects(dict.fromkeys((*report.warnings, *(w for j in report.jobs for w in j.warnings)))),
        "error": error_object(error) if error else None,
        "attempts": sum(job.attempts for job in report.jobs),
        "timing": {
            "total_s": round(report.elapsed_s, 3),
            "provider_s": round(sum(job.timing.provider_s for job in report.jobs), 3),
            "download_s": round(sum(job.timing.download_s for job in report.jobs), 3),
        },
        "requests": jobs,
    }


def summary_object(report: Report, *, skipped: int = 0) -> _JsonObject:
    """The last line of a batch. `rows` counts those of this run and the `skipped`; a partial row has failed."""
    states = Counter("unknown" if job.status == "unknown" else _row_state(job) for job in report.jobs)
    cost = _total_cost(report.jobs)
    return {
        "schema": SCHEMA,
        "type": "summary",
        "rows": len(report.jobs) + skipped,
        "succeeded": states["succeeded"],
        "failed": states["failed"],
        "unknown": states["unknown"],
        "skipped": skipped,
        "images": sum(1 for job in report.jobs for image in job.images if image.error is None),
        "cost": _cost_object(cost),
        "elapsed_s": round(report.elapsed_s, 3),
    }


def failure_object(command: str, error: SeedreamError) -> _JsonObject:
    """A failure before any request was built, in the same envelope."""
    status: Literal["unknown", "failed"] = "unknown" if error.kind == "unknown_outcome" else "failed"
    nothing = JobResult(index=0, id="", status=status, provider="", model="", request={}, error=error)
    return job_object(nothing, command) | {"request": None}


def most_urgent_error(report: Report) -> SeedreamError | None:
    """The failure that speaks for the run: the first of those whose exit code matters most."""
    errors = [error for job in report.jobs for error in (job.error, *(image.error for image in job.images)) if error]
    if not errors:
        return None
    failed = tuple(dataclasses.replace(report.jobs[0], status="failed", error=error) for error in errors)
    code = Report(report.command, failed).exit_code
    return next((error for error in errors if error.exit_code == code), errors[0])


def _image_object(image: SavedImage, index: int) -> _JsonObject:
    shown: _JsonObject = {
        "index": index,
        "path": str(image.path) if image.path else None,
        "url": image.url or None,
        "format": image.format or None,
        "width": image.width or None,
        "height": image.height or None,
        "bytes": image.bytes or None,
        "sha256": image.sha256 or None,
        "error": error_object(image.error) if image.error else None,
    }
    return shown | ({"layer": _layer_object(image.layer)} if image.layer else {})


def _layer_object(layer: Layer) -> _JsonObject:
    box = {"absolute": list(layer.absolute), "normalized": list(layer.normalized)}
    return {
        "z_index": layer.z_index,
        "name": layer.name,
        "description": layer.description,
        "bounding_box": box if layer.absolute or layer.normalized else None,
    }


def _warning_objects(warnings: Iterable[Problem]) -> list[_JsonObject]:
    return [{"code": warning.code, "message": warning.message} for warning in warnings]


def _cost_object(cost: Cost | None) -> _JsonObject | None:
    return {"amount": round(cost.amount, 6), "currency": cost.currency, "as_of": cost.as_of} if cost else None


def _script_status(job: JobResult) -> str:
    """The contract's word. A request that a signal ended is partial, unknown or failed by what became of it."""
    if job.status != "interrupted":
        return job.status
    if any(image.error is None for image in job.images):
        return "partial"
    return "unknown" if job.error and job.error.billed == "unknown" else "failed"


def _row_state(job: JobResult) -> str:
    """A row of which pictures failed counts as failed, or nobody would run it again."""
    return "succeeded" if job.exit_code == 0 else "failed"


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
    """The sum of what each request cost, or may have cost; None where the price of a picture is not known."""
    priced = [job for job in jobs if job.cost or any(image.error is None for image in job.images)]
    costs = [job.cost for job in priced if job.cost]
    if len(costs) < len(priced):
        return None
    return _add_costs(costs)


def _add_costs(costs: Sequence[Cost]) -> Cost | None:
    """The sum of amounts in one currency, as old as the oldest; None for none and for several currencies."""
    if len({cost.currency for cost in costs}) != 1:
        return None
    return Cost(math.fsum(cost.amount for cost in costs), costs[0].currency, min(cost.as_of for cost in costs))


# --- while a run lasts ----------------------------------------------------------------------------------------------


class Display(Sink, Protocol):
    """A sink that may hold a screen: close it before anything else is printed."""

    def close(self) -> None:
        """Leave the terminal as it was found. May be called twice."""


class QuietSink:
    """Shows nothing."""

    def emit(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """Nothing to leave."""


class PlainSink:
    """A few plain lines on standard error, for logs and pipes.

    `verbosity` 1 adds stages and saved files, -1 leaves only what the user must know.
    """

    def __init__(self, streams: Streams, *, verbosity: int = 0) -> None:
        self._streams = streams
        self._verbosity = verbosity
        self._tally = Tally()

    def emit(self, event: Event) -> None:
        """Take one event."""
        self._tally.take(event)
        line = event_line(event, self._tally, verbosity=self._verbosity + 1)
        if line:
            self._streams.err(line)
        # Ten lines tell the progress of any number of requests.
        tally = self._tally
        if self._verbosity >= 0 and isinstance(event, Finished) and tally.requests > 1 and tally.crossed_tenth:
            self._streams.err(f"done: {tally.words()}")

    def close(self) -> None:
        """Nothing to leave."""


class TeeSink:
    """Hands every event to several sinks."""

    def __init__(self, *sinks: Display) -> None:
        self._sinks = sinks

    def emit(self, event: Event) -> None:
        """Take one event."""
        for sink in self._sinks:
            sink.emit(event)

    def close(self) -> None:
        """Close all, the last first."""
        for sink in reversed(self._sinks):
            sink.close()


class ResultSink:
    """Prints each result on standard output as it comes, for a batch: paths or links as saved, or an object a row."""

    def __init__(
        self, streams: Streams, mode: Mode, *, command: str = "batch", rows: Mapping[int, Row] | None = None
    ) -> None:
        self._streams = streams
        self._mode = mode
        self._command = command
        self._rows = rows or {}

    def emit(self, event: Event) -> None:
        """Take one event."""
        if self._mode == "json" and isinstance(event, Finished):
            job = event.result
            print_json(job_object(job, self._command, row=self._rows.get(job.index)), self._streams)
        elif isinstance(event, Finished):
            _print_places(event.result.images, self._streams, self._mode)

    def close(self) -> None:
        """Nothing to leave."""


class Tally:
    """How many requests there are and how many of them have ended, and badly."""

    def __init__(self) -> None:
        self.requests = 0
        self.done = 0
        self.failed = 0
        self.unknown = 0

    def take(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, Planned):
            self.requests = event.requests
        elif isinstance(event, Finished):
            self.done += 1
            self.unknown += event.result.status == "unknown"
            self.failed += event.result.exit_code != 0 and event.result.status != "unknown"

    @property
    def crossed_tenth(self) -> bool:
        """Whether the request that just ended completed another tenth of the run."""
        return self.done * 10 // self.requests > (self.done - 1) * 10 // self.requests

    def words(self) -> str:
        """Such as "12 of 120 requests, 1 failed"."""
        bad = [f"{count} {word}" for count, word in ((self.failed, "failed"), (self.unknown, "unknown")) if count]
        return ", ".join([f"{self.done} of {self.requests} requests", *bad])


def event_line(event: Event, tally: Tally, *, verbosity: int) -> str:
    """The line that tells of an event, or "". At 0 only what must be known, at 1 the course, at 2 every step."""
    if isinstance(event, Notice):
        return f"note: {clean(event.message)}"
    if isinstance(event, Draining):
        what = _count(event.in_flight, "request in flight", "requests in flight")
        return f"stopping ({clean(event.signal_name, 20)}): nothing new is sent, {what} will be finished and saved"
    if verbosity >= 1 and isinstance(event, Planned):
        upto = "up to " if event.pictures != event.requests else ""
        asked = f"{_count(event.requests, 'request')}, {upto}{_count(event.pictures, 'picture')}"
        return f"start: {clean(event.provider, 40)} {clean(event.model, 80)}, {asked}"
    if verbosity >= 1 and isinstance(event, Retrying):
        what = f"{_subject(event.job, tally.requests)}{clean(event.what, 60)}"
        return f"retry: {what}: {clean(event.reason)}; again in {event.wait_s:.0f} s"
    if verbosity >= 2 and isinstance(event, Stage):
        detail = f" ({clean(event.detail, 80)})" if event.detail else ""
        return f"stage: {_subject(event.job, tally.requests)}{event.stage}{detail}"
    if verbosity >= 2 and isinstance(event, Saved) and event.image.path:
        return f"saved: {_facts(event.image)}"
    return ""


def _facts(image: SavedImage) -> str:
    size = f" ({image.width}x{image.height} {image.format}, {size_words(image.bytes)})" if image.bytes else ""
    return f"{clean_path(image.path or '')}{size}"


def size_words(count: int) -> str:
    """Bytes for people, in decimal units."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _subject(job: int, requests: int) -> str:
    return f"request {job + 1} of {requests}: " if requests > 1 else ""


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


# --- when a run has ended -------------------------------------------------------------------------------------------


def print_results(
    report: Report,
    streams: Streams,
    mode: Mode,
    *,
    quiet: bool = False,
    warned: bool = False,
    labels: Mapping[int, str] | None = None,
) -> None:
    """Results to standard output as `mode` asks, then what went wrong and the summary to standard error.

    `quiet` leaves only errors, `warned` says that the warnings were shown before. `labels` names requests by their
    index ("row 17"), where a number of the run would not help the user.
    """
    if mode == "json":
        print_json(report_object(report), streams)
    for job in report.jobs:
        _print_places(job.images, streams, mode)
    lines = [] if quiet or warned else warning_lines((*report.warnings, *(w for j in report.jobs for w in j.warnings)))
    lines += failure_lines(report, labels=labels)
    if not quiet:
        lines += note_lines(report, labels=labels) + summary_lines(report)
    for line in lines:
        streams.err(line)


def print_error(error: SeedreamError, streams: Streams) -> None:
    """A failure that ended everything, to standard error."""
    for line in error_lines(error):
        streams.err(line)


def _print_places(images: Iterable[SavedImage], streams: Streams, mode: Mode) -> None:
    """The paths or the links of the pictures that succeeded, in order, one a line."""
    for image in images:
        if mode == "paths" and image.path and not image.error:
            streams.out(str(image.path))
        elif mode == "urls" and image.url and not image.error:
            streams.out(image.url)


def failure_lines(report: Report, *, labels: Mapping[int, str] | None = None) -> list[str]:
    """Every failed request and picture, in order."""
    entries: list[_Entry] = []
    for number, job in enumerate(report.jobs):
        subject = _label(job, number, report, labels)
        entries += [_picture_entry(image, job, subject) for image in job.images if image.error]
        loose = _loose_error(job)
        if loose:
            entries += _error_entries(loose, subject, job.cost)
    return _join_entries(entries)


def note_lines(report: Report, *, labels: Mapping[int, str] | None = None) -> list[str]:
    """What is no failure and yet not what was asked for: fewer pictures, a task that goes on at the provider."""
    lines = []
    for number, job in enumerate(report.jobs):
        where = _place(_label(job, number, report, labels))
        got = sum(map(_is_paid, job.images))
        if job.asked_up_to and job.status in {"succeeded", "partial"} and got < job.asked_up_to:
            lines.append(f"note: {where}asked for up to {job.asked_up_to}, got {got}")
        if job.status == "submitted":
            task = clean(job.task_id, 200)
            lines.append(f"note: {where}submitted as task {task}: seedream recover --task {task}")
    return lines


_ENDS = ("saved", "paid but not saved", "submitted", "failed", "not sent", "unknown")
_UNPAID = frozenset({"failed", "not sent"})


def summary_lines(report: Report) -> list[str]:
    """The closing line, and how to settle what is unknown; nothing where one picture was saved as asked."""
    counts = _count_ends(report)
    if sum(counts.values()) <= 1 and counts.keys() <= {"saved"}:
        return []
    doubtful = counts["unknown"] > 0
    names = {"failed": "failed (not charged)"} if doubtful else {}
    shown = [f"{counts[end]} {names.get(end, end)}" for end in _ENDS if counts[end]]
    spent = _spent_words(report, doubtful=doubtful) or (["not charged"] if counts.keys() <= _UNPAID else [])
    lines = [" · ".join([", ".join(shown), *spent])]
    if counts["unknown"]:
        lines.append(_settle_words(report, counts["unknown"]))
    if report.signal_number is not None:
        again = "; run the same command again to go on" if report.command == "batch" else ""
        lines.append(f"stopped by {signal.Signals(report.signal_number).name}{again}")
    return lines


def _label(job: JobResult, number: int, report: Report, labels: Mapping[int, str] | None) -> str:
    if labels and job.index in labels:
        return labels[job.index]
    return f"request {number + 1} of {len(report.jobs)}" if len(report.jobs) > 1 else ""


def _picture_entry(image: SavedImage, job: JobResult, subject: str) -> _Entry:
    """One failed picture: refusals by moderation first in our words, then in the provider's."""
    error = image.error
    if error is None:
        return [], ""
    where = f"{_place(subject)}picture {image.index + 1} of {len(job.images)}"
    moderated = error.kind == "moderation"
    code = getattr(error, "code", "")
    what = "refused by moderation" if moderated else clean(error.message) or error.kind
    lines = [f"error: {where}: {what}{f' ({clean(code, 200)})' if code else ''}"]
    if moderated and error.message:
        lines.append(f"  the provider says: {clean(error.message)}")
    detail = _detail(error, with_code=False)
    return lines + ([f"  {detail}"] if detail else []), error.hint


def _loose_error(job: JobResult) -> SeedreamError | None:
    """The request's failure, unless a picture has told it already."""
    told = any(image.error is job.error for image in job.images)
    return None if told else job.error


def _count_ends(report: Report) -> Counter[str]:
    """How many pictures, and requests without one, ended in which way."""
    counts: Counter[str] = Counter()
    for job in report.jobs:
        counts.update(_end(image.error) if image.error else "saved" for image in job.images)
        loose = _loose_error(job)
        if job.status == "submitted":
            counts["submitted"] += 1
        elif loose or (not job.images and job.status in {"failed", "unknown", "interrupted"}):
            counts["unknown" if job.status == "unknown" else _end(loose)] += 1
    return counts


def _end(error: SeedreamError | None) -> str:
    if error and (error.kind == "unknown_outcome" or error.billed == "unknown"):
        return "unknown"
    if error and error.billed == "yes":
        return "paid but not saved"
    return "not sent" if error and error.kind in {"interrupted", "budget"} else "failed"


def _is_doubtful(job: JobResult) -> bool:
    """Whether it is unknown if this request was billed."""
    return job.status == "unknown" or bool(job.error and job.error.billed == "unknown")


def _is_paid(image: SavedImage) -> bool:
    return image.error is None or image.error.billed == "yes"


def _spent_words(report: Report, *, doubtful: bool) -> list[str]:
    """The money. "Nothing" is never said while a request may have been billed unseen."""
    certain = [job for job in report.jobs if not _is_doubtful(job) and any(_is_paid(image) for image in job.images)]
    known = _add_costs([job.cost for job in certain if job.cost])
    amount = f"about {_money(known)}" if known and known.amount else ""
    unpriced = sum(1 for job in certain if not job.cost)
    if amount and unpriced:
        amount += f" and {_count(unpriced, 'request')} of unknown price"
    if not doubtful:
        return [amount] if amount else []
    possible = _add_costs([job.cost for job in report.jobs if _is_doubtful(job) and job.cost])
    if not amount:
        return [f"may have been charged, about {_money(possible)}" if possible else "may have been charged"]
    return [f"charged {amount}", f"possibly {_money(possible)} more" if possible else "possibly more"]


def _settle_words(report: Report, number: int) -> str:
    """What a person does about outcomes that the tool cannot know."""
    ids = [clean(job.id, 80) for job in report.jobs if _is_doubtful(job) and job.id]
    named = " ".join(ids) if 0 < len(ids) <= 3 else "ID"
    again = ", or run again with --only unknown --retry-ambiguous" if report.command == "batch" else ""
    look = f"to settle the {number} unknown: check the provider's usage page, then"
    return f"{look}  seedream history resolve {named} --paid | --unpaid{again}"


# --- tables ---------------------------------------------------------------------------------------------------------

_GAP = 2
_LAST_COLUMN = 24


def table_lines(headers: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """Aligned columns in `width`; the last one is wrapped where it must be, and where all that is too narrow each row
    becomes a block of `header: value` lines.
    """
    cells = [[clean(cell, None) for cell in row] for row in rows]
    if not _fits(headers, cells, width):
        return _stack(headers, cells, width)
    sizes = _column_sizes(headers, cells)
    room = width - sum(sizes[:-1]) - _GAP * (len(sizes) - 1)
    lines = []
    for row in (headers, *cells):
        start = "".join(_pad(cell, size + _GAP) for cell, size in zip(row[:-1], sizes[:-1], strict=True))
        wrapped = _wrap(row[-1], room)
        lines += [f"{start}{wrapped[0]}".rstrip(), *(" " * text_width(start) + more for more in wrapped[1:])]
    return lines


def _column_sizes(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(text_width, column)) for column in zip(headers, *rows, strict=True)]


def _fits(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether the columns stand side by side, the last one perhaps wrapped."""
    sizes = _column_sizes(headers, rows)
    return width - sum(sizes[:-1]) - _GAP * (len(sizes) - 1) >= min(sizes[-1], _LAST_COLUMN)


def _stack(headers: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """A block of `header: value` lines a row, with an empty line between two."""
    lines: list[str] = []
    for row in rows:
        lines += [""] if lines else []
        for header, cell in zip(headers, row, strict=True):
            if cell:
                lines += _pair(header, cell, width)
    return lines


def _pair(name: str, value: str, width: int) -> list[str]:
    """One `name: value`, wrapped with an indent."""
    first, *more = _wrap(f"{name}: {clean(value, None)}", width, indent=4)
    return [first, *(f"    {line}" for line in more)]


def _pad(text: str, width: int) -> str:
    return text + " " * (width - text_width(text))


def _wrap(text: str, width: int, *, indent: int = 0) -> list[str]:
    """Lines of at most `width` columns, broken at spaces and between wide characters; an id is never broken.

    After the first, lines are shorter by the `indent` that the caller puts before them.
    """
    lines = [""]
    for word in text.split():
        for part in [word] if text_width(word) <= width - indent else _break_wide(word, width - indent):
            joined = f"{lines[-1]} {part}" if lines[-1] else part
            room = width if len(lines) == 1 else width - indent
            if text_width(joined) <= room or not lines[-1]:
                lines[-1] = joined
            else:
                lines.append(part)
    return lines


def _break_wide(word: str, width: int) -> list[str]:
    """A long word in pieces where its script allows that, else whole."""
    if text_width(word) == len(word):
        return [word]
    lines = [""]
    for char in word:
        if text_width(lines[-1]) + _char_width(char) > width and lines[-1]:
            lines.append("")
        lines[-1] += char
    return lines


# --- models ---------------------------------------------------------------------------------------------------------

_MODEL_COLUMNS = ("model", "sizes", "references", "sequence", "stream", "formats", "price", "as of")


def models_table(rows: Iterable[ModelSpec], width: int) -> list[str]:
    """All models, a line each. A terminal too narrow for all columns loses the least telling ones first."""
    cells = [dict(zip(_MODEL_COLUMNS, _model_row(model), strict=True)) for model in rows]
    headers: list[str] = list(_MODEL_COLUMNS)
    for dropped in ("", "formats", "stream", "as of"):
        headers = [header for header in headers if header != dropped]
        listed = [[row[header] for header in headers] for row in cells]
        if _fits(headers, listed, width):
            return table_lines(headers, listed, width)
    return _stack(_MODEL_COLUMNS, [list(row.values()) for row in cells], width)


def models_markdown(rows: Iterable[ModelSpec]) -> str:
    """The same as a Markdown table."""
    listed = [_MODEL_COLUMNS, ("---",) * len(_MODEL_COLUMNS), *(_model_row(model) for model in rows)]
    cells = ([clean(cell, None).replace("\\", "\\\\").replace("|", "\\|") for cell in row] for row in listed)
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def models_object(rows: Iterable[ModelSpec]) -> _JsonObject:
    """All models for scripts."""
    return {"schema": SCHEMA, "models": [_plain(model) for model in rows]}


def model_object(model: ModelSpec) -> _JsonObject:
    """One model for scripts."""
    plain: _JsonObject = _plain(model)
    return {"schema": SCHEMA, **plain}


def model_detail(model: ModelSpec, width: int) -> list[str]:
    """All that is known of one model, in sections."""
    facts = {
        "aliases": ", ".join(model.aliases),
        "status": "" if model.status == "current" else model.status,
        "default size": model.default_size,
        "size words": ", ".join(model.keywords),
        "own sizes": _own_sizes(model),
        "references": _reference_words(model),
        "sequence": f"up to {model.sequence_max} pictures in one request" if model.sequence_max else "no",
        "layers": _layer_words(model),
        "formats": ", ".join(model.formats),
        "optimize-prompt": ", ".join(model.optimize_modes),
        "as of": model.as_of,
        "source": model.source,
    }
    lines = _wrap(f"{clean(model.title)} ({clean(model.name)})", width)
    for name, value in facts.items():
        lines += _pair(name, value, width) if value else []
    lines += _section("sizes", _size_headers(model), _size_rows(model), width)
    rules = [(option.replace("_", "-"), rule.state, rule.note) for option, rule in model.rules.items()]
    lines += _section("parameters", ("option", "state", "note"), rules, width)
    ids = [(family, ", ".join(spellings)) for family, spellings in model.ids.items()]
    lines += _section("ids", ("provider", "id"), ids, width)
    prices = [(_family(family), price_words(steps)) for family, steps in model.price.items()]
    return lines + _section(f"price a picture, as of {clean(model.price_as_of)}", ("provider", "price"), prices, width)


def _section(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """A titled table, or nothing where there are no rows."""
    if not rows:
        return []
    return ["", f"{title}:", *(f"  {line}".rstrip() for line in table_lines(headers, rows, width - 2))]


def _model_row(model: ModelSpec) -> tuple[str, ...]:
    name = model.name if model.status == "current" else f"{model.name} ({model.status})"
    return (
        name,
        " ".join(model.tiers) or model.default_size,
        _span(*model.references),
        f"up to {model.sequence_max}" if model.sequence_max else "no",
        _stream_word(model),
        " ".join(model.formats),
        _price_span(model.price.get("*", ())),
        model.price_as_of or model.as_of,
    )


def _stream_word(model: ModelSpec) -> str:
    rule = model.rules.get("stream")
    return {"taken": "yes", "unconfirmed": "unconfirmed"}.get(rule.state, "no") if rule else "yes"


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _own_sizes(model: ModelSpec) -> str:
    if not model.pixels:
        return ""
    return f"WIDTHxHEIGHT of {_pixels(model.pixels)}, width / height {_ratio(model.ratio)}"


def _ratio(span: tuple[float, float]) -> str:
    low, high = (f"1/{round(1 / bound)}" if 0 < bound < 1 else f"{bound:g}" for bound in span)
    return f"{low} to {high}"


def _reference_words(model: ModelSpec) -> str:
    if not model.references[1]:
        return "none"
    most, safe = model.reference_bytes / 1e6, model.reference_bytes_safe / 1e6
    facts = [
        ", ".join(model.reference_formats),
        f"up to {most:g} MB each" + (f", {safe:g} MB is safe" if safe < most else ""),
        f"{_pixels(model.reference_pixels)}, sides of {model.reference_side} or more",
        f"width / height {_ratio(model.reference_ratio)}",
    ]
    return f"{_span(*model.references)} ({'; '.join(facts)})"


def _layer_words(model: ModelSpec) -> str:
    if not model.layers_max:
        return ""
    source = f"{', '.join(model.layer_reference_formats)}; {_pixels(model.layer_reference_pixels)}"
    return f"up to {model.layers_max} above the base; sizes {', '.join(model.layer_sizes)}; from one {source}"


def _pixels(span: tuple[int, int]) -> str:
    return f"{span[0]:,} to {span[1]:,} pixels"


def _size_headers(model: ModelSpec) -> tuple[str, ...]:
    return ("aspect", *model.tiers) if model.tiers else ("aspect", "size")


def _size_rows(model: ModelSpec) -> list[tuple[str, ...]]:
    """A row an aspect ratio: its exact pixels at every tier."""
    if not model.tiers:
        return list(model.aspects.items())
    aspects = dict.fromkeys(aspect for sizes in model.tiers.values() for aspect in sizes)
    return [(aspect, *(sizes.get(aspect, "-") for sizes in model.tiers.values())) for aspect in aspects]


def _family(name: str) -> str:
    return "list price" if name == "*" else name


def _price_span(steps: Sequence[PriceStep]) -> str:
    """Such as "$0.03 to $0.05"."""
    amounts = sorted({step.amount for step in steps})
    return " to ".join(map(_dollars, amounts[:1] + amounts[1:][-1:])) or "unknown"


def price_words(steps: Sequence[PriceStep]) -> str:
    """Such as "$0.03 for 1K, 1.5K or up to 2.36 MP; $0.05 for 2K or above; $0.003 more a reference"."""
    words: list[str] = []
    for step in steps:
        spans = [", ".join(step.tiers)]
        if step.max_pixels is None:
            spans.append("above" if words else "")
        elif step.max_pixels:
            spans.append(f"up to {step.max_pixels / 1e6:.3g} MP")
        span = " or ".join(filter(None, spans))
        words.append(f"{_dollars(step.amount)}{' for ' * bool(step.tiers) or ' ' * bool(span)}{span}")
    extra = max((step.per_reference for step in steps), default=0.0)
    words += [f"{_dollars(extra)} more a reference"] if extra else []
    return "; ".join(words) or "unknown"


def _dollars(amount: float) -> str:
    return _money(Cost(amount, "USD", ""))


# --- what would be sent ---------------------------------------------------------------------------------------------


def show_body(body: Mapping[str, Any]) -> _JsonObject:
    """A request's body with its reference pictures as {"file", "sha256", "bytes"}; links stay as they are."""
    shown: _JsonObject = _show_value(body)
    return shown


def _show_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _show_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_show_value(item) for item in value]
    if not _is_reference(value):
        return value
    if value.kind == "url":
        return value.location
    return {"file": value.location, "sha256": value.sha256, "bytes": value.size or len(value.content)}


def _is_reference(value: Any) -> bool:
    # Importing `request` costs pydantic's start-up time, which a body of plain JSON never needs.
    if value is None or isinstance(value, str | int | float):
        return False
    from .request import ImageRef

    return isinstance(value, ImageRef)


def plan_object(
    body: Mapping[str, Any],
    names: Sequence[str],
    cost: Cost | None,
    url: str,
    *,
    command: str = "generate",
    provider: str = "",
) -> _JsonObject:
    """A dry run for scripts: the usual envelope, with the address in `endpoint`."""
    images = tuple(SavedImage(index, path=Path(name)) for index, name in enumerate(names))
    model = str(body.get("model", ""))
    planned = JobResult(0, "", "planned", provider, model, body, images=images, cost=cost)
    return job_object(planned, command) | {"endpoint": url}


def plan_lines(body: Mapping[str, Any], names: Sequence[str], cost: Cost | None, url: str) -> list[str]:
    """What stands beside the body of a dry run: where it would go, what it would write, and the most it can cost."""
    references = sum(1 for _ in _references(body))
    with_them = f", with {_count(references, 'reference picture')}" if references else ""
    worst = f"at most about {_money(cost)} (price of {clean(cost.as_of)})" if cost else "unknown, no price is known"
    return [
        f"nothing was sent; it would go to {clean(url, 2000)}{with_them}",
        *(f"would write: {clean_path(name)}" for name in names),
        f"cost: {worst}",
    ]


def print_plan(body: Mapping[str, Any], names: Sequence[str], cost: Cost | None, url: str, streams: Streams) -> None:
    """A dry run: the body on standard output, the rest on standard error."""
    print_json(show_body(body), streams, indent=2)
    for line in plan_lines(body, names, cost, url):
        streams.err(line)


def _references(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
    elif _is_reference(value):
        yield value


def curl_command(url: str, body: Mapping[str, Any], key_variable: str, accept: str = "application/json") -> str:
    """A command for any POSIX shell that sends exactly this body; the key stays in the environment.

    The body is written to curl's standard input in pieces, since an argument has a length limit and a leading `@`
    a meaning; a local reference picture is encoded from its file when the command runs.
    """
    pieces: list[str] = []
    text = ""
    for piece in _body_pieces(body):
        if isinstance(piece, str):
            text += piece
            continue
        pieces += [f"printf '%s' {_quote(text)}", _encode_file(piece)]
        text = ""
    pieces.append(f"printf '%s' {_quote(text)}")
    source = pieces[0] if len(pieces) == 1 else "{\n" + "".join(f"  {piece}\n" for piece in pieces) + "}"
    variable = key_variable if re.fullmatch(r"[A-Za-z_]\w*", key_variable, re.ASCII) else "SEEDREAM_API_KEY"
    unbuffered = " -N" if accept == "text/event-stream" else ""
    # -g: curl would otherwise read brackets and braces in the address as a range of addresses.
    options = [
        f"curl -sS -g{unbuffered} {_quote(url)}",
        f'-H "Authorization: Bearer ${variable}"',
        "-H 'Content-Type: application/json'",
        f"-H {_quote(f'Accept: {accept}')}",
        "--data-binary @-",
    ]
    return f"{source} | " + " \\\n  ".join(options)


def _body_pieces(value: Any) -> Iterator[str | ImageRef]:
    """The body's JSON, with each local file in its place in the text."""
    if isinstance(value, Mapping):
        for number, (key, item) in enumerate(value.items()):
            yield f"{',' if number else '{'}{render_json(str(key))}:"
            yield from _body_pieces(item)
        yield "}" if value else "{}"
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield "," if number else "["
            yield from _body_pieces(item)
        yield "]" if value else "[]"
    elif _is_reference(value):
        yield from _reference_pieces(value)
    else:
        yield render_json(value)


def _reference_pieces(ref: ImageRef) -> Iterator[str | ImageRef]:
    if ref.kind == "url":
        yield render_json(ref.location)
        return
    yield render_json(f"data:{ref.mime};base64,")[:-1]
    yield base64.b64encode(ref.content).decode() if ref.content else ref
    yield '"'


def _encode_file(ref: ImageRef) -> str:
    """The shell command that writes a file as base64 on one line, whatever the file is called."""
    path = str(ref.path or ref.location)
    if clean_path(path) == path:
        return f"base64 < {_quote(path)} | tr -d '\\r\\n'"
    # A name with hidden characters is spelled in octal. The dot keeps a last newline, which $( ) would drop.
    octal = "".join(f"\\{byte:03o}" for byte in os.fsencode(path))
    return f"""name=$(printf '{octal}.'); base64 < "${{name%.}}" | tr -d '\\r\\n'"""


def _quote(text: str) -> str:
    """Text as one word of any POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def explain_table(rows: Iterable[tuple[str, str, str, str]], width: int) -> list[str]:
    """How each option was renamed, defaulted or dropped: option, value, what is sent, and why."""
    return table_lines(("option", "value", "sent as", "note"), rows, width)
