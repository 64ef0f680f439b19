"""The offline provider as a pure service: a request goes in, a reply comes out; no socket, and the clock is given.

It speaks the dialects of the real services, checks requests as they do, draws images marked SANDBOX, and hands
them over as base64 or by links signed like the object store's. Mount points, each also bare as on the real host:

    /ark/api/v3   /byteplus/api/v3   /cometapi/v1   /ope/v1      images/generations, models
    /acedata                                                     seedream/images, seedream/tasks
    /sandbox/stats                                               GET: what was accepted and billed; DELETE: forget it

Keys: any word of printable characters, but one that starts with `bad` is unknown (401), with `overdue` unpaid (403).

Faults on demand. A prompt may hold these, after it has passed the checks of a real request:

    [[error:CODE]]     that error code of the service, with its status and envelope, nothing billed
    [[status:502]]     a gateway's HTML page with that status (200, 400 to 599); 502, 504 and 524 stand for a lost
                       answer, so they are billed
    [[retry-after:S]]  with one of the two above: the header `Retry-After: S`
    [[moderated]]      refused: the prompt is sensitive
    [[hollow]]         HTTP 200 with an error at the top and no image
    [[drop]]           accepted and billed, then the connection closes without an answer (a stream: after one image)
    [[break]]          a stream that ends after one image with an `error` event
    [[slow:S]]         S seconds longer (in a stream: for each image)
    [[fail:K]]         image K of the request, counted from 1, is refused as sensitive; may stand several times
    [[fewer:K]]        a set of K images where more were allowed
    [[cut]] [[html]]   the image's link breaks off half-way; answers an HTML page
    [[expired]]        the image's link is two days old

`*N` before the closing brackets limits a fault to the first N requests with that prompt (`[[cut*N]]`, `[[html*N]]`: to
the first N fetches of each link), so `[[error:ServerOverloaded*2]]` succeeds at the third try.

Seeds: the same prompt, seed and size give the same image. Without a seed, repeated requests differ, in an order that
is the same in every process. References given as links are not fetched, except links of the sandbox itself. Nothing is
sent to a `callback_url`: the task is to be polled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import dialects, drawing, links, rules
from .dialects import Answered, Dialect, Member
from .links import LinkRefused, Sketch
from .rules import Order, Refusal

WELL_KNOWN_SECRET = b"the sandbox keeps no secrets"
"""Signs links wherever nothing else is asked for, so that a later process still serves those of an earlier one."""

IN_PROCESS_URL = "https://sandbox.invalid"

_PIECE = 64 * 1024

_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """One HTTP request. `target` is path and query, byte for byte as it came; header names in any case."""

    method: str
    target: bytes
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first value of a header, None where it is absent."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class Delay:
    """A pause. The head of a reply leaves with its first bytes, so delays in front of them hold it back too."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection closes here. In front of the first bytes it means: no answer at all."""


@dataclass(frozen=True, slots=True)
class SandboxReply:
    """One HTTP reply. Without a `content-length` header its length is not known beforehand: a stream."""

    status: int
    headers: tuple[tuple[str, str], ...]
    chunks: Iterable[bytes | Delay | Cut]


class Service:
    """The provider. Thread-safe; `clock` gives Unix seconds, `latency_s` delays generations only.

    `links_at` is the origin of the links it hands out; empty means the request's own Host over plain HTTP.
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
        self._tally = _Tally()
        self._tasks: OrderedDict[str, _Task] = OrderedDict()

    @property
    def billed(self) -> dict[str, int]:
        """How many requests a real service would have charged for, by prompt."""
        return self._tally.billed()

    def handle(self, request: SandboxRequest) -> SandboxReply:
        """The reply to one request. Everything a client can send has a reply; nothing is raised."""
        path = request.target.partition(b"?")[0]
        if path.startswith(links.PREFIX):
            return self._give_image(request)
        if path == b"/sandbox/stats":
            return self._give_stats(request)
        dialect, action = dialects.ROUTES.get(path, (None, None))
        if dialect is None or action is None:
            return self._lead_nowhere(path)
        wanted = "GET" if action == "models" else "POST"
        if request.method != wanted:
            return _reply_json(405, {"error": {"code": "MethodNotAllowed", "message": f"use {wanted}"}}, allow=wanted)
        request_id = self._number_request()
        try:
            return self._serve(dialect, action, request, request_id)
        except Refusal as refusal:
            if action == "generate":
                self._tally.count_refused()
            status, body = dialects.refuse(dialect, refusal, request_id=request_id)
            return _reply_json(status, body, request_id=request_id, retry_after=refusal.retry_after)

    # --- the API ----------------------------------------------------------------------------------------------------

    def _serve(self, dialect: Dialect, action: str, request: SandboxRequest, request_id: str) -> SandboxReply:
        denied = dialects.deny_key(dialect, request.header("authorization"))
        if denied is not None:
            raise denied
        if action == "models":
            return _reply_json(200, dialects.list_models(dialect), request_id=request_id)
        body = rules.parse_body(request.body, request.header("content-type") or "")
        if action == "tasks":
            return self._report_tasks(dialect, body, request_id)
        return self._generate(dialect, body, request, request_id)

    def _generate(self, dialect: Dialect, body: rules.Body, request: SandboxRequest, request_id: str) -> SandboxReply:
        dialect, family = dialects.resolve(dialect, body)
        body = dialects.adapt(dialect, body)
        order = rules.read_order(
            body, family, watermark_default=dialect.watermark_default, can_search=dialect.can_search
        )
        deferred = dialect.envelope == "ace" and _is_deferred(body)
        if deferred and order.streamed:
            raise Refusal("bad_request", "stream cannot be combined with async or callback_url", "stream", native=True)
        attempt = self._tally.count_attempt(order.prompt)
        job = _Job(
            order=order,
            attempt=attempt,
            faults=_Faults(order.prompt, attempt),
            about=Answered(dialect, order, int(self._clock()), request_id, _make_task_id(request_id)),
            origin=self._links_at or f"http://{_clean_host(request.header('host'))}",
            source=self._look_at(order),
        )
        status = int(job.faults.number("status") or 0)
        if status == 200 or 400 <= status <= 599:
            return self._fail_like_a_gateway(job, status)
        if deferred:
            return self._accept_task(job, body)
        self._refuse_on_demand(job)
        return self._stream(job) if order.streamed else self._answer(job)

    def _refuse_on_demand(self, job: _Job) -> None:
        code = "InputTextSensitiveContentDetected" if job.faults.has("moderated") else job.faults.text("error")
        if code:
            refusal = Refusal(code, rules.word(code))
            refusal.retry_after = job.faults.text("retry-after")
            raise refusal

    def _fail_like_a_gateway(self, job: _Job, status: int) -> SandboxReply:
        if status in {502, 504, 524}:
            self._tally.bill(job.order.prompt, job.order.images)
        return _reply_html(status, retry_after=job.faults.text("retry-after"))

    def _answer(self, job: _Job) -> SandboxReply:
        pause = [Delay(seconds)] if (seconds := self._latency_s + (job.faults.number("slow") or 0)) else []
        if job.faults.has("hollow"):
            error = _member_error("OutputImageSensitiveContentDetected", job.about.request_id)
            return _reply_json(200, dialects.answer_nothing(job.about, error), delays=pause)
        self._bill(job)
        if job.faults.has("drop"):
            return SandboxReply(200, (), [*pause, Cut()])
        members = [self._finish(job, part) for part in _plan(job)]
        body = dialects.answer(job.about, members)
        return _reply_json(200, body, request_id=job.about.request_id, delays=pause)

    def _stream(self, job: _Job) -> SandboxReply:
        self._bill(job)
        headers = (("content-type", dialects.stream_type(job.about.dialect)), ("x-request-id", job.about.request_id))
        return SandboxReply(200, headers, self._frames(job))

    def _frames(self, job: _Job) -> Iterator[bytes | Delay | Cut]:
        members = []
        for part in _plan(job):
            yield Delay(self._latency_s + (job.faults.number("slow") or 0))
            members.append(self._finish(job, part))
            yield dialects.frame_member(job.about, members[-1])
            if job.faults.has("drop"):
                yield Cut()
                return
            if job.faults.has("break"):
                yield dialects.frame_error(
                    job.about, Refusal("InternalServiceError", rules.word("InternalServiceError"))
                )
                return
        yield dialects.frame_end(job.about, members)

    def _bill(self, job: _Job) -> None:
        drawn = sum(1 for part in _plan(job) if part.sketch is not None)
        if drawn:
            self._tally.bill(job.order.prompt, drawn)

    def _finish(self, job: _Job, part: _Part) -> Member:
        """A planned image as it is handed over: drawn now for base64, or when its link is fetched."""
        sketch = part.sketch
        if sketch is None:
            error = _member_error("OutputImageSensitiveContentDetected", job.about.request_id)
            return Member(part.index, error=error)
        member = Member(part.index, sketch.width, sketch.height, sketch.format, layer=part.layer)
        if job.order.response_format == "b64_json":
            return replace(member, b64=base64.b64encode(_draw(sketch)).decode())
        issued_at = self._clock() - (2 * links.LIFETIME_S if job.faults.has("expired") else 0)
        target = links.sign(sketch, f"seedream-{job.order.family.name}", secret=self._secret, issued_at=issued_at)
        return replace(member, url=job.origin + target.decode())

    def _look_at(self, order: Order) -> bytes:
        """The input images as one thumbnail, empty where there are none to be seen."""
        seen = [data for reference in order.references if (data := reference.data or self._open_own(reference.key))]
        return drawing.shrink(seen) or b""

    def _open_own(self, url: str) -> bytes:
        """An image that the sandbox itself has handed out, small; empty for anybody else's link."""
        host, slash, rest = url.partition("://")[2].partition("/")
        target = (slash + rest).encode("utf-8", "replace")
        if not host or not target.startswith(links.PREFIX) or links.ISSUER not in target:
            return b""
        try:
            sketch = links.open_link(target, secret=self._secret, now=self._clock())
        except LinkRefused as refused:
            text = f"Error while downloading: {url.partition('?')[0]}, status code: {refused.status}"
            raise Refusal("InvalidParameter", text, "image") from refused
        scale = drawing.CANVAS / max(sketch.width, sketch.height)
        small = replace(sketch, width=max(1, round(sketch.width * scale)), height=max(1, round(sketch.height * scale)))
        return _draw(small)

    # --- tasks ------------------------------------------------------------------------------------------------------

    def _accept_task(self, job: _Job, body: rules.Body) -> SandboxReply:
        """Take a task. What becomes of it is settled now, but is not told before its time has passed."""
        now = self._clock()
        try:
            self._refuse_on_demand(job)
            response = self._settle(job)
        except Refusal as refusal:
            response = dialects.refuse(job.about.dialect, refusal, request_id=job.about.request_id)[1]
            response["task_id"] = job.about.task_id
        finished_at = now + self._latency_s + (job.faults.number("slow") or 0)
        self._tasks[job.about.task_id] = _Task(job.about, body, now, finished_at, response)
        while len(self._tasks) > _REMEMBERED:
            self._tasks.popitem(last=False)
        if job.faults.has("drop"):
            return SandboxReply(200, (), [Cut()])
        return _reply_json(200, {"task_id": job.about.task_id}, request_id=job.about.request_id)

    def _settle(self, job: _Job) -> dict[str, Any]:
        if job.faults.has("hollow"):
            error = _member_error("OutputImageSensitiveContentDetected", job.about.request_id)
            return dialects.answer_nothing(job.about, error)
        self._bill(job)
        return dialects.answer(job.about, [self._finish(job, part) for part in _plan(job)])

    def _report_tasks(self, dialect: Dialect, body: rules.Body, request_id: str) -> SandboxReply:
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

    # --- images, numbers, and ways that lead nowhere --------------------------------------------------------------

    def _give_image(self, request: SandboxRequest) -> SandboxReply:
        """The image of a link. The store takes no other proof of right beside the signature, and no HEAD."""
        if request.method != "GET":
            return _reply_json(
                405, _store_error("MethodNotAllowed", "The specified method is not allowed."), allow="GET"
            )
        try:
            if request.header("authorization") is not None:
                raise LinkRefused(403, "AccessDenied", "Only one way of authorization is allowed.")
            sketch = links.open_link(request.target, secret=self._secret, now=self._clock())
        except LinkRefused as refused:
            self._tally.count_fetch(request.target, served=False)
            return _reply_json(refused.status, _store_error(refused.code, refused.message))
        fetched_before = self._tally.count_fetch(request.target, served=True)
        fault = sketch.fault if not sketch.fault_times or fetched_before < sketch.fault_times else ""
        if fault == "html":
            return _reply_html(200)
        image = _draw(sketch)
        shown = image[: len(image) // 2] if fault == "cut" else image
        headers = (
            ("content-type", f"image/{sketch.format}"),
            ("content-length", str(len(image))),
            ("etag", f'"{hashlib.md5(image, usedforsecurity=False).hexdigest()}"'),
        )
        return SandboxReply(200, headers, _slice(shown, broken=fault == "cut"))

    def _give_stats(self, request: SandboxRequest) -> SandboxReply:
        if request.method == "DELETE":
            self._tally.forget()
        elif request.method != "GET":
            return _reply_json(405, {"error": {"code": "MethodNotAllowed", "message": "use GET"}}, allow="GET, DELETE")
        return _reply_json(200, self._tally.report())

    def _lead_nowhere(self, path: bytes) -> SandboxReply:
        """What a wrong base URL gets: JSON from the services, a web page from the gateways."""
        dialect = next((owner for prefix, owner in dialects.NOWHERE if path.startswith(prefix)), None)
        if dialect is None or dialect.envelope in {"comet", "openai"}:
            return _reply_html(404)
        code = "no_api" if dialect.envelope == "ace" else "NotFound"
        refusal = Refusal(code, "The requested path does not exist.", native=True)
        status, body = dialects.refuse(dialect, refusal, request_id=self._number_request())
        return _reply_json(status, body)

    def _number_request(self) -> str:
        """A request id in the service's manner: 02, the time in milliseconds, and letters that never repeat."""
        number = self._tally.count_request()
        tail = hashlib.sha256(self._secret + str(number).encode()).hexdigest()[:32]
        return f"02{int(self._clock() * 1000)}{tail}"


# --- what a job is made of ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    order: Order
    attempt: int
    faults: _Faults
    about: Answered
    origin: str
    source: bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """One image to be made: its sketch, or None where it is to fail."""

    index: int
    sketch: Sketch | None
    layer: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Task:
    about: Answered
    request: rules.Body
    created_at: float
    finished_at: float
    response: Mapping[str, Any]

    def record(self, now: float) -> dict[str, Any]:
        """The task as the service shows it: without a response until it is done."""
        shown: dict[str, Any] = {
            "_id": hashlib.sha256(self.about.task_id.encode()).hexdigest()[:24],
            "id": self.about.task_id,
            "created_at": self.created_at,
            "started_at": self.created_at,
            "request": dict(self.request),
            "trace_id": self.about.request_id,
            "type": "images",
        }
        if now < self.finished_at:
            return shown
        elapsed = self.finished_at - self.created_at
        return {**shown, "finished_at": self.finished_at, "elapsed": elapsed, "response": dict(self.response)}


def _plan(job: _Job) -> list[_Part]:
    """The images of a request, in order, those that are to fail without a sketch."""
    order, faults = job.order, job.faults
    fewer = faults.number("fewer")
    images = max(1, min(order.images, int(fewer))) if order.grouped and fewer is not None else order.images
    failing = faults.numbers("fail")
    first = _sketch(job)
    parts = [
        _Part(index, None if index + 1 in failing else replace(first, seed=_mix(first.seed, index)))
        for index in range(images)
    ]
    return _add_layers(parts[0], order) if order.layered else parts


def _sketch(job: _Job) -> Sketch:
    order = job.order
    words = "\0".join([order.prompt, *(reference.key for reference in order.references)])
    essence = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return Sketch(
        essence=essence,
        label=order.prompt.encode("utf-8", "replace").decode()[: links.LABEL_LETTERS],
        width=order.width,
        height=order.height,
        seed=_mix(int(essence[:8], 16), job.attempt) if order.seed is None else order.seed,
        format=order.format,
        watermark=order.watermark,
        transparent=order.transparent,
        fault="cut" if job.faults.has("cut") else "html" if job.faults.has("html") else "",
        fault_times=job.faults.times("cut") or job.faults.times("html"),
        source=job.source,
    )


def _mix(seed: int, number: int) -> int:
    """Another seed for every number; the first image keeps the seed it was asked for."""
    return seed if not number else int(hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:8], 16)


def _add_layers(base: _Part, order: Order) -> list[_Part]:
    """The base image and two layers cut from it, each with its place in the base."""
    if base.sketch is None:
        return [base]
    parts = [replace(base, layer={"z_index": 0})]
    rng = random.Random(base.sketch.essence)
    for z_index, name in enumerate(("主体", "foreground"), start=1):
        left, top = (round(side * rng.uniform(0.02, 0.3)) for side in (order.width, order.height))
        right, bottom = (round(side * rng.uniform(0.65, 0.98)) for side in (order.width, order.height))
        sketch = replace(
            base.sketch,
            width=right - left,
            height=bottom - top,
            format="png",
            transparent=True,
            seed=z_index,
            label=name,
        )
        across, down = 1000 / order.width, 1000 / order.height
        box = {
            "absolute": [left, top, right, bottom],
            "normalized": [round(left * across), round(top * down), round(right * across), round(bottom * down)],
        }
        layer = {
            "z_index": z_index,
            "name": name,
            "description": f"layer {z_index} of the sandbox",
            "bounding_box": box,
        }
        parts.append(_Part(z_index, sketch, layer))
    return parts


def _draw(sketch: Sketch) -> bytes:
    return drawing.draw(
        sketch.essence,
        sketch.width,
        sketch.height,
        sketch.seed,
        format=sketch.format,
        label=sketch.label,
        transparent=sketch.transparent,
        watermark=sketch.watermark,
        source=sketch.source or None,
    )


def _member_error(code: str, request_id: str) -> dict[str, str]:
    return {"code": code, "message": f"{rules.word(code)} Request id: {request_id}"}


def _is_deferred(body: rules.Body) -> bool:
    return body.get("async") is True or bool(body.get("callback_url"))


def _make_task_id(request_id: str) -> str:
    return str(uuid.UUID(bytes=hashlib.sha256(request_id.encode()).digest()[:16], version=4))


def _clean_host(host: str | None) -> str:
    """The request's Host where it looks like one: a link is built from it."""
    return host if host and re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", host) else "127.0.0.1"


class _Faults:
    """The faults that a prompt asks for and that are due at this attempt."""

    _FORM = re.compile(r"\[\[([a-z-]+)(?::([A-Za-z0-9_.]+))?(?:\*([0-9]{1,6}))?\]\]", re.ASCII)
    # A link knows nothing of attempts: it counts its own fetches.
    _ON_LINKS = frozenset({"cut", "html"})

    def __init__(self, prompt: str, attempt: int) -> None:
        self._due: dict[str, list[str]] = {}
        self._times: dict[str, int] = {}
        for name, value, times in self._FORM.findall(prompt):
            if name in self._ON_LINKS or not times or attempt < int(times):
                self._due.setdefault(name, []).append(value)
                self._times[name] = int(times or 0)

    def has(self, name: str) -> bool:
        return name in self._due

    def text(self, name: str) -> str:
        return self._due.get(name, [""])[0]

    def number(self, name: str) -> float | None:
        return next(iter(self.numbers(name)), None)

    def numbers(self, name: str) -> list[float]:
        given = self._due.get(name, [])
        return [float(value) for value in given if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value)]

    def times(self, name: str) -> int:
        return self._times.get(name, 0)


class _Tally:
    """What was asked and what was billed, by prompt, for the last few thousand prompts; shared by all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0
        self.forget()

    def forget(self) -> None:
        with self._lock:
            self._prompts: OrderedDict[str, dict[str, int]] = OrderedDict()
            self._fetches: OrderedDict[bytes, int] = OrderedDict()
            self._totals = dict.fromkeys(
                ("generations", "refused", "billed", "images", "links_served", "links_refused"), 0
            )

    def count_request(self) -> int:
        with self._lock:
            self._requests += 1
            return self._requests

    def count_refused(self) -> None:
        with self._lock:
            self._totals["refused"] += 1

    def count_attempt(self, prompt: str) -> int:
        """How many requests with this prompt came before this one."""
        with self._lock:
            self._totals["generations"] += 1
            row = self._row(prompt)
            row["attempts"] += 1
            return row["attempts"] - 1

    def bill(self, prompt: str, images: int) -> None:
        with self._lock:
            row = self._row(prompt)
            row["billed"] += 1
            row["images"] += images
            self._totals["billed"] += 1
            self._totals["images"] += images

    def count_fetch(self, target: bytes, *, served: bool) -> int:
        """How often this link was fetched before."""
        key = hashlib.sha256(target).digest()
        with self._lock:
            self._totals["links_served" if served else "links_refused"] += 1
            before = self._fetches.pop(key, 0)
            self._fetches[key] = before + 1
            if len(self._fetches) > _REMEMBERED:
                self._fetches.popitem(last=False)
            return before

    def billed(self) -> dict[str, int]:
        with self._lock:
            return {prompt: row["billed"] for prompt, row in self._prompts.items() if row["billed"]}

    def report(self) -> dict[str, Any]:
        with self._lock:
            return {**self._totals, "prompts": {prompt: dict(row) for prompt, row in self._prompts.items()}}

    def _row(self, prompt: str) -> dict[str, int]:
        row = self._prompts.setdefault(prompt, {"attempts": 0, "billed": 0, "images": 0})
        self._prompts.move_to_end(prompt)
        if len(self._prompts) > _REMEMBERED:
            self._prompts.popitem(last=False)
        return row


# --- replies --------------------------------------------------------------------------------------------------------


def _reply_json(
    status: int,
    body: Mapping[str, Any],
    *,
    request_id: str = "",
    retry_after: str = "",
    allow: str = "",
    delays: Iterable[Delay] = (),
) -> SandboxReply:
    # Lone surrogates can come in by a JSON escape and would not encode: they go out as they came.
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    headers = [("content-type", "application/json; charset=utf-8"), ("content-length", str(len(text)))]
    named = (("x-request-id", request_id), ("retry-after", retry_after), ("allow", allow))
    headers += [(name, value) for name, value in named if value]
    return SandboxReply(status, tuple(headers), [*delays, *_slice(text)])


def _reply_html(status: int, *, retry_after: str = "") -> SandboxReply:
    """The page of a gateway or web server that knows nothing of JSON."""
    text = f"<html><head><title>{status}</title></head><body><center><h1>{status}</h1></center></body></html>".encode()
    headers = (("content-type", "text/html"), ("content-length", str(len(text))))
    return SandboxReply(status, (*headers, ("retry-after", retry_after)) if retry_after else headers, [text])


def _store_error(code: str, message: str) -> dict[str, str]:
    return {"Code": code, "Message": message, "EC": "0003-00000015"}


def _slice(body: bytes, *, broken: bool = False) -> list[bytes | Delay | Cut]:
    pieces: list[bytes | Delay | Cut] = [body[start : start + _PIECE] for start in range(0, len(body), _PIECE)]
    return [*pieces, Cut()] if broken else pieces
