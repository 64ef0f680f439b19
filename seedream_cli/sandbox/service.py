"""The offline provider without sockets: takes a request, returns a response; the clock is a parameter.

It implements the APIs of the real services, validates requests as they do, draws images marked SANDBOX, and returns
them as base64 or URLs signed like the object store's. Mount points, each also without its prefix:

    /ark/api/v3   /byteplus/api/v3   /cometapi/v1   /ope/v1      images/generations, models
    /acedata                                                     seedream/images, seedream/tasks
    /sandbox/stats                                               GET: what was accepted and billed; DELETE: reset

What a prompt can ask to go wrong: `faults.py`.

Keys: any printable word; one that starts with `bad` is unknown (401), with `overdue` unpaid (403).

Seeds: the same prompt, seed and size give the same image. Without a seed, repeated requests differ, in the same order
in every process. References given as URLs are not fetched, except for the sandbox's own. Nothing is sent to a
`callback_url`: poll the task.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import dialects, drawing, links, rules
from .dialects import Member, ReplyContext, ServiceDialect
from .faults import Faults
from .jobs import Job, PlannedImage, Task, make_task_id, plan_images
from .links import ImageSpec, LinkRefused
from .rules import ParsedRequest, Refusal
from .stats import REMEMBERED, Stats

WELL_KNOWN_SECRET = b"the sandbox keeps no secrets"
"""The default signing secret, so that a later process serves the URLs of an earlier one."""

IN_PROCESS_URL = "https://sandbox.invalid"

_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """One HTTP request. `target` is path and query as received; header names in any case."""

    method: str
    target: bytes
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first value of a header, None where it is missing."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class Delay:
    """A pause. The head is sent with the first bytes, so earlier delays delay it too."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection closes here; before the first bytes: without a response."""


@dataclass(frozen=True, slots=True)
class SandboxReply:
    """One HTTP response; a stream where it has no `content-length`."""

    status: int
    headers: tuple[tuple[str, str], ...]
    chunks: Iterable[bytes | Delay | Cut]


class Service:
    """The provider. Thread-safe; `clock` returns Unix seconds, `latency_s` delays generations only.

    `links_at` is the scheme and host of image URLs; "" means http and the request's Host.
    """

    def __init__(
        self,
        *,
        secret: bytes = WELL_KNOWN_SECRET,
        clock: Callable[[], float] = time.time,
        latency_s: float = 0.0,
        links_at: str = IN_PROCESS_URL,
    ) -> None:
        self._secret = secret
        self._clock = clock
        self._latency_s = latency_s
        self._links_at = links_at
        self._stats = Stats()
        self._tasks: OrderedDict[str, Task] = OrderedDict()

    @property
    def billed(self) -> dict[str, int]:
        """How many requests a real service would have charged for, by prompt."""
        return self._stats.billed()

    def handle(self, request: SandboxRequest) -> SandboxReply:
        """The response to a request. Raises nothing."""
        path = request.target.partition(b"?")[0]
        if path.startswith(links.PREFIX):
            return self._serve_image(request)
        if path == b"/sandbox/stats":
            return self._serve_stats(request)
        dialect, action = dialects.ROUTES.get(path, (None, None))
        if dialect is None or action is None:
            return self._not_found(path)
        wanted = "GET" if action == "models" else "POST"
        if request.method != wanted:
            return _reply_json(405, {"error": {"code": "MethodNotAllowed", "message": f"use {wanted}"}}, allow=wanted)
        request_id = self._number_request()
        try:
            return self._serve(dialect, action, request, request_id)
        except Refusal as refusal:
            if action == "generate":
                self._stats.count_refused()
            status, body = dialects.refuse(dialect, refusal, request_id=request_id)
            return _reply_json(status, body, request_id=request_id, retry_after=refusal.retry_after)

    # --- the API ------------------------------------------------------------------------------------------------------

    def _serve(self, dialect: ServiceDialect, action: str, request: SandboxRequest, request_id: str) -> SandboxReply:
        denied = dialects.deny_key(dialect, request.header("authorization"))
        if denied is not None:
            raise denied
        if action == "models":
            return _reply_json(200, dialects.list_models(dialect), request_id=request_id)
        body = rules.parse_body(request.body, request.header("content-type") or "")
        if action == "tasks":
            return self._report_tasks(dialect, body, request_id)
        return self._generate(dialect, body, request, request_id)

    def _generate(
        self, dialect: ServiceDialect, body: rules.Body, request: SandboxRequest, request_id: str
    ) -> SandboxReply:
        dialect, family = dialects.resolve(dialect, body)
        body = dialects.adapt(dialect, body)
        parsed = rules.parse_request(
            body, family, watermark_default=dialect.watermark_default, can_search=dialect.can_search
        )
        deferred = dialect.envelope == "ace" and _is_deferred(body)
        if deferred and parsed.streamed:
            raise Refusal("bad_request", "stream cannot be combined with async or callback_url", "stream", native=True)
        attempt = self._stats.count_attempt(parsed.prompt)
        job = Job(
            parsed=parsed,
            attempt=attempt,
            faults=Faults(parsed.prompt, attempt),
            context=ReplyContext(dialect, parsed, int(self._clock()), request_id, make_task_id(request_id)),
            origin=self._links_at or f"http://{_clean_host(request.header('host'))}",
            source=self._shrink_references(parsed),
        )
        status = int(job.faults.number("status") or 0)
        if status == 200 or 400 <= status <= 599:
            return self._fail_like_a_gateway(job, status)
        if deferred:
            return self._accept_task(job, body)
        self._raise_requested_error(job)
        return self._stream(job) if parsed.streamed else self._answer(job)

    def _raise_requested_error(self, job: Job) -> None:
        code = "InputTextSensitiveContentDetected" if job.faults.has("moderated") else job.faults.text("error")
        if code:
            refusal = Refusal(code, rules.message_of(code))
            refusal.retry_after = job.faults.text("retry-after")
            raise refusal

    def _fail_like_a_gateway(self, job: Job, status: int) -> SandboxReply:
        if status in {502, 504, 524}:
            self._stats.bill(job.parsed.prompt, job.parsed.images)
        return _reply_html(status, retry_after=job.faults.text("retry-after"))

    def _answer(self, job: Job) -> SandboxReply:
        pause = [Delay(seconds)] if (seconds := self._latency_s + (job.faults.number("slow") or 0)) else []
        if job.faults.has("hollow"):
            error = _member_error("OutputImageSensitiveContentDetected", job.context.request_id)
            return _reply_json(200, dialects.answer_without_images(job.context, error), delays=pause)
        self._bill(job)
        if job.faults.has("drop"):
            return SandboxReply(200, (), [*pause, Cut()])
        members = [self._finish(job, part) for part in plan_images(job)]
        body = dialects.answer(job.context, members)
        return _reply_json(200, body, request_id=job.context.request_id, delays=pause)

    def _stream(self, job: Job) -> SandboxReply:
        self._bill(job)
        headers = (
            ("content-type", dialects.stream_type(job.context.dialect)),
            ("x-request-id", job.context.request_id),
        )
        return SandboxReply(200, headers, self._frames(job))

    def _frames(self, job: Job) -> Iterator[bytes | Delay | Cut]:
        members = []
        for part in plan_images(job):
            yield Delay(self._latency_s + (job.faults.number("slow") or 0))
            members.append(self._finish(job, part))
            yield dialects.frame_image(job.context, members[-1])
            if job.faults.has("drop"):
                yield Cut()
                return
            if job.faults.has("break"):
                yield dialects.frame_error(
                    job.context, Refusal("InternalServiceError", rules.message_of("InternalServiceError"))
                )
                return
        yield dialects.frame_completed(job.context, members)

    def _bill(self, job: Job) -> None:
        drawn = sum(1 for part in plan_images(job) if part.spec is not None)
        if drawn:
            self._stats.bill(job.parsed.prompt, drawn)

    def _finish(self, job: Job, part: PlannedImage) -> Member:
        """A planned image in a response: drawn now for base64, or when its URL is fetched."""
        spec = part.spec
        if spec is None:
            error = _member_error("OutputImageSensitiveContentDetected", job.context.request_id)
            return Member(part.index, error=error)
        member = Member(part.index, spec.width, spec.height, spec.format, layer=part.layer)
        if job.parsed.response_format == "b64_json":
            return replace(member, b64=base64.b64encode(_draw(spec)).decode())
        issued_at = self._clock() - (2 * links.LIFETIME_S if job.faults.has("expired") else 0)
        target = links.sign(spec, f"seedream-{job.parsed.family.name}", secret=self._secret, issued_at=issued_at)
        return replace(member, url=job.origin + target.decode())

    def _shrink_references(self, parsed: ParsedRequest) -> bytes:
        """The input images as one thumbnail, b"" where there are none."""
        seen = [
            data for reference in parsed.references if (data := reference.data or self._open_own_link(reference.key))
        ]
        return drawing.shrink(seen) or b""

    def _open_own_link(self, url: str) -> bytes:
        """An image of the sandbox's own URL, small; b"" for other URLs."""
        host, slash, rest = url.partition("://")[2].partition("/")
        target = (slash + rest).encode("utf-8", "replace")
        if not host or not target.startswith(links.PREFIX) or links.ISSUER not in target:
            return b""
        try:
            spec = links.open_link(target, secret=self._secret, now=self._clock())
        except LinkRefused as refused:
            text = f"Error while downloading: {url.partition('?')[0]}, status code: {refused.status}"
            raise Refusal("InvalidParameter", text, "image") from refused
        scale = drawing.REFERENCE_SIDE / max(spec.width, spec.height)
        small = replace(spec, width=max(1, round(spec.width * scale)), height=max(1, round(spec.height * scale)))
        return _draw(small)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _accept_task(self, job: Job, body: rules.Body) -> SandboxReply:
        """Take a task. What becomes of it is decided now, but not shown before its time has passed."""
        now = self._clock()
        try:
            self._raise_requested_error(job)
            response = self._finish_task(job)
        except Refusal as refusal:
            response = dialects.refuse(job.context.dialect, refusal, request_id=job.context.request_id)[1]
            response["task_id"] = job.context.task_id
        finished_at = now + self._latency_s + (job.faults.number("slow") or 0)
        self._tasks[job.context.task_id] = Task(job.context, body, now, finished_at, response)
        while len(self._tasks) > REMEMBERED:
            self._tasks.popitem(last=False)
        if job.faults.has("drop"):
            return SandboxReply(200, (), [Cut()])
        return _reply_json(200, {"task_id": job.context.task_id}, request_id=job.context.request_id)

    def _finish_task(self, job: Job) -> dict[str, Any]:
        if job.faults.has("hollow"):
            error = _member_error("OutputImageSensitiveContentDetected", job.context.request_id)
            return dialects.answer_without_images(job.context, error)
        self._bill(job)
        return dialects.answer(job.context, [self._finish(job, part) for part in plan_images(job)])

    def _report_tasks(self, dialect: ServiceDialect, body: rules.Body, request_id: str) -> SandboxReply:
        action = body.get("action", "retrieve")
        now = self._clock()
        if action == "retrieve_batch" and isinstance(body.get("ids"), list):
            found = [self._tasks[key].record(now) for key in body["ids"] if isinstance(key, str) and key in self._tasks]
            return _reply_json(200, {"items": found, "count": len(found)}, request_id=request_id)
        task = self._tasks.get(str(body.get("id", "")))
        if action != "retrieve" or task is None:
            wrong = "the task does not exist" if action == "retrieve" else "action or ids is not valid"
            status, refusal = dialects.refuse(
                dialect, Refusal("bad_request", wrong, native=True), request_id=request_id
            )
            return _reply_json(status, refusal, request_id=request_id)
        return _reply_json(200, task.record(now), request_id=request_id)

    # --- images, statistics, and what is not there --------------------------------------------------------------------

    def _serve_image(self, request: SandboxRequest) -> SandboxReply:
        """The image of a URL. Like the store it refuses an Authorization header and HEAD."""
        if request.method != "GET":
            return _reply_json(
                405, _store_error("MethodNotAllowed", "The specified method is not allowed."), allow="GET"
            )
        try:
            if request.header("authorization") is not None:
                raise LinkRefused(403, "AccessDenied", "Only one way of authorization is allowed.")
            spec = links.open_link(request.target, secret=self._secret, now=self._clock())
        except LinkRefused as refused:
            self._stats.count_fetch(request.target, served=False)
            return _reply_json(refused.status, _store_error(refused.code, refused.message))
        fetched_before = self._stats.count_fetch(request.target, served=True)
        fault = spec.fault if not spec.fault_times or fetched_before < spec.fault_times else ""
        if fault == "html":
            return _reply_html(200)
        image = _draw(spec)
        shown = image[: len(image) // 2] if fault == "cut" else image
        headers = (
            ("content-type", f"image/{spec.format}"),
            ("content-length", str(len(image))),
            ("etag", f'"{hashlib.md5(image, usedforsecurity=False).hexdigest()}"'),
        )
        return SandboxReply(200, headers, _slice(shown, broken=fault == "cut"))

    def _serve_stats(self, request: SandboxRequest) -> SandboxReply:
        if request.method == "DELETE":
            self._stats.reset()
        elif request.method != "GET":
            return _reply_json(405, {"error": {"code": "MethodNotAllowed", "message": "use GET"}}, allow="GET, DELETE")
        return _reply_json(200, self._stats.report())

    def _not_found(self, path: bytes) -> SandboxReply:
        """The response for an unknown path: JSON from the services, HTML from gateways."""
        dialect = next((owner for prefix, owner in dialects.NOT_FOUND_PREFIXES if path.startswith(prefix)), None)
        if dialect is None or dialect.envelope in {"comet", "openai"}:
            return _reply_html(404)
        code = "no_api" if dialect.envelope == "ace" else "NotFound"
        refusal = Refusal(code, "The requested path does not exist.", native=True)
        status, body = dialects.refuse(dialect, refusal, request_id=self._number_request())
        return _reply_json(status, body)

    def _number_request(self) -> str:
        """A request id in the service's format: 02, milliseconds, and a unique hash."""
        number = self._stats.count_request()
        tail = hashlib.sha256(self._secret + str(number).encode()).hexdigest()[:32]
        return f"02{int(self._clock() * 1000)}{tail}"


# --- responses --------------------------------------------------------------------------------------------------------


def _draw(spec: ImageSpec) -> bytes:
    return drawing.draw(
        spec.prompt_hash,
        spec.width,
        spec.height,
        spec.seed,
        format=spec.format,
        label=spec.label,
        transparent=spec.transparent,
        watermark=spec.watermark,
        source=spec.source or None,
    )


def _member_error(code: str, request_id: str) -> dict[str, str]:
    return {"code": code, "message": f"{rules.message_of(code)} Request id: {request_id}"}


def _is_deferred(body: rules.Body) -> bool:
    return body.get("async") is True or bool(body.get("callback_url"))


def _clean_host(host: str | None) -> str:
    """The request's Host, if valid: URLs are built from it."""
    return host if host and re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", host) else "127.0.0.1"


def _reply_json(
    status: int,
    body: Mapping[str, Any],
    *,
    request_id: str = "",
    retry_after: str = "",
    allow: str = "",
    delays: Iterable[Delay] = (),
) -> SandboxReply:
    # Lone surrogates from JSON escapes are escaped again.
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    headers = [("content-type", "application/json; charset=utf-8"), ("content-length", str(len(text)))]
    named = (("x-request-id", request_id), ("retry-after", retry_after), ("allow", allow))
    headers += [(name, value) for name, value in named if value]
    return SandboxReply(status, tuple(headers), [*delays, *_slice(text)])


def _reply_html(status: int, *, retry_after: str = "") -> SandboxReply:
    """The HTML page of a gateway or web server."""
    text = f"<html><head><title>{status}</title></head><body><center><h1>{status}</h1></center></body></html>".encode()
    headers = (("content-type", "text/html"), ("content-length", str(len(text))))
    return SandboxReply(status, (*headers, ("retry-after", retry_after)) if retry_after else headers, [text])


def _store_error(code: str, message: str) -> dict[str, str]:
    return {"Code": code, "Message": message, "EC": "0003-00000015"}


def _slice(body: bytes, *, broken: bool = False) -> list[bytes | Delay | Cut]:
    pieces: list[bytes | Delay | Cut] = [body[start : start + _PIECE] for start in range(0, len(body), _PIECE)]
    return [*pieces, Cut()] if broken else pieces
