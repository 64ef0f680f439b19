"""The conductor: sends the requests of a plan, fetches their pictures, and says how each ended. The only event loop.

`execute` runs every job of the plan side by side, at most `CONCURRENCY` at once. For each: room is reserved in the
state folder, one request is sent, its reply is on disk before it is read, and the reply stays there until every
picture of it is saved, so that `recover` can finish what a crash or a full disk cut short. A first SIGINT or SIGTERM
stops what was not sent, and finishes and saves what was; a second one stops at once and calls those unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import pictures, spool, store
from .errors import ApiError, FileError, InternalError, InterruptedRunError, LinkError, SeedreamError
from .framing import Done, EventParser
from .plan import POLLED, REPLY_MOST, Job, Plan, Route
from .providers.base import Completed, Dialect, Ready, Reply, Ticket
from .results import (
    Downloading,
    Draining,
    Finished,
    JobResult,
    Notice,
    Picture,
    Planned,
    Report,
    Retrying,
    Saved,
    SavedImage,
    Sink,
    Stage,
    Status,
    Timing,
)
from .wire import Clock, Policy, Wire

CONCURRENCY = 8
DOWNLOADS = 8
_URL_REPLY = 64 * 1024
_BASE64_PICTURE = 24 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Outlets:
    """What a run may reach of its surroundings.

    `sink` takes its events, `state` is the folder that keeps paid replies, `emit` writes bytes to standard output
    (`-o -`) and says whether they went through, `log` takes lines of the wire log, `clock` is the only sleeper.
    """

    sink: Sink
    state: Path
    emit: Callable[[bytes], bool] | None = None
    log: Callable[[str], None] | None = None
    clock: Clock = field(default_factory=Clock)


def execute(plan: Plan, outlets: Outlets) -> Report:
    """Run a plan to its end and report on it. Blocks; raises only what stops the whole run before anything is sent."""
    return asyncio.run(_Run(plan, outlets).execute())


class HurriedClock(Clock):
    """A clock that does not wait, for tests of the retries."""

    async def sleep(self, seconds: float) -> None:  # noqa: ARG002
        """Give way, and go on at once."""
        await super().sleep(0)


class _Run:
    """One run: its wires, its places, and which requests have left the house."""

    def __init__(self, plan: Plan, outlets: Outlets) -> None:
        self.plan = plan
        self.outlets = outlets
        self.sink = outlets.sink
        self.clock = outlets.clock
        self.replies = outlets.state / "replies"
        self.slots = asyncio.Semaphore(CONCURRENCY)
        self.downloads = asyncio.Semaphore(DOWNLOADS)
        self.signal: signal.Signals | None = None
        self.workers: dict[int, _Worker] = {}
        self.pictures = sum(job.request.pictures_at_most for job in plan.jobs)

    async def execute(self) -> Report:
        started = time.monotonic()
        plan = self.plan
        for job in plan.jobs:
            job.output.prepare(self.places(job))
        self.sink.emit(
            Planned(len(plan.jobs), self.pictures, plan.jobs[0].route.spec.name, plan.jobs[0].request.model_id)
        )
        async with contextlib.AsyncExitStack() as stack:
            routes = {job.route for job in plan.jobs}
            wires = {route: await stack.enter_async_context(self._wire(route)) for route in routes}
            for proxy in dict.fromkeys(wire.proxy_in_use for wire in wires.values() if wire.proxy_in_use):
                self.sink.emit(Notice(f"through the proxy {proxy}"))
            stack.enter_context(self._signals())
            self.workers = {job.index: _Worker(self, wires[job.route], job) for job in plan.jobs}
            tasks = [asyncio.create_task(worker.work()) for worker in self.workers.values()]
            for worker, task in zip(self.workers.values(), tasks, strict=True):
                worker.task = task
            results = await asyncio.gather(*tasks)
        return Report(
            plan.command,
            tuple(results),
            plan.warnings,
            time.monotonic() - started,
            self.signal.value if self.signal else None,
        )

    def places(self, job: Job) -> list[store.Place]:
        """Where the pictures of a job go, as far as that is known before the answer."""
        if job.output.stdout or job.kept or job.task_id:
            return []
        numbers = range(job.first, job.first + job.request.pictures_at_most)
        return [job.output.place(job.fields, number=number, of=job.of) for number in numbers]

    def _wire(self, route: Route) -> Wire:
        """The wire to one provider, paced and keyed for it alone."""
        transport = None
        if route.spec.offline:
            from .sandbox.transport import SandboxTransport

            transport = SandboxTransport()
        limits = route.limits
        policy = Policy(limits.timeout_s, limits.connect_timeout_s, limits.retries, limits.retry_ambiguous)
        key = route.key.value if route.key else "sandbox" if route.spec.offline else ""
        return Wire(
            base_url=route.base_url,
            key=key,
            policy=policy,
            proxy=limits.proxy,
            transport=transport,
            clock=self.clock,
            log=self.outlets.log,
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while the run lasts."""
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def tell(number: int, frame: object) -> None:  # noqa: ARG001 (what a signal handler is given)
            loop.call_soon_threadsafe(self._on_signal, signal.Signals(number))

        # Not loop.add_signal_handler, which Windows lacks; call_soon_threadsafe wakes the loop all the same.
        for number in before:
            signal.signal(number, tell)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: signal.Signals) -> None:
        """First: nothing new leaves, what was sent is finished. Second: stop."""
        again = self.signal is not None
        self.signal = self.signal or number
        busy = [worker for worker in self.workers.values() if worker.in_flight]
        if not again:
            self.sink.emit(Draining(number.name, len(busy)))
        for worker in self.workers.values():
            if again or not worker.in_flight:
                worker.stop()


class _Worker:
    """Takes one job from its plan to its result."""

    def __init__(self, run: _Run, wire: Wire, job: Job) -> None:
        self.run = run
        self.wire = wire
        self.job = job
        self.dialect = job.route.dialect
        self.task: asyncio.Task[JobResult] | None = None
        self.in_flight = False
        self.answered = False
        self.attempts = 0
        self.task_id = ""
        self.started = time.monotonic()
        self.provider_s = 0.0
        self.lost_polls = 0
        self.taken: set[int] = set()
        self.saved: dict[int, SavedImage] = {}
        self.ready: Ready | None = None

    # The wire tells how a request fares; these three are its side of the conversation.

    def gate(self, attempt: int) -> None:
        """Called by the wire just before the first byte leaves: the last place to say no."""
        if self.run.signal:
            raise InterruptedRunError("stopped before it was sent", signal_number=self.run.signal.value)
        self.attempts = attempt
        self.in_flight = True

    def stage(self, name: Any) -> None:
        """The request entered a stage."""
        self.run.sink.emit(Stage(self.job.index, name))

    def retrying(self, wait_s: float, error: SeedreamError, attempt: int) -> None:
        """The request was refused unbilled and waits; a signal may stop it meanwhile."""
        # An attempt that may have been billed stays in flight: stopping here must not call it unsent.
        self.in_flight = error.billed != "no"
        self.run.sink.emit(Retrying(self.job.index, "the request", wait_s, error.message, attempt))

    def stop(self) -> None:
        """End this job now."""
        if self.task:
            self.task.cancel()

    async def work(self) -> JobResult:
        """The job's border: whatever happens inside becomes its result."""
        try:
            async with self.run.slots:
                self.started = time.monotonic()
                error = await self._perform()
        except SeedreamError as failure:
            error = failure
        except asyncio.CancelledError:
            error = self._cancelled()
        except Exception as bug:  # noqa: BLE001
            # The per-job border: a bug in one request must not lose the others, nor what this one was paid for.
            error = InternalError(f"{type(bug).__name__}: {bug}", hint=f"seedream recover {self.job.id}")
            error.__cause__ = bug
        result = self._result(error)
        self.run.sink.emit(Finished(result))
        return result

    def _cancelled(self) -> SeedreamError:
        """What a stopped job is, by how far it had come."""
        number = self.run.signal.value if self.run.signal else signal.SIGINT.value
        if not self.in_flight:
            return InterruptedRunError("stopped before it was sent", signal_number=number)
        if self.answered:
            return LinkError("stopped before its pictures were saved", hint=f"seedream recover {self.job.id}")
        return ApiError(
            "stopped while the provider was at work; may have been billed, and is not sent again",
            kind="unknown_outcome",
            billed="unknown",
            delivered="maybe",
            hint=self._way_back(),
        )

    def _way_back(self) -> str:
        if self.task_id:
            return f"later: seedream recover --task {self.task_id} -p {self.job.route.spec.name}"
        return "look at the provider's usage page for this minute before sending it again"

    async def _perform(self) -> SeedreamError | None:
        """Send, wait, fetch. Returns the failure that some pictures had, or None; raises what hit the whole request."""
        if self._is_there():
            return None
        broken = None
        if self.job.request.stream and not (self.job.kept or self.job.task_id):
            broken = await self._stream()
        else:
            self.ready = await self._obtain()
        if self.ready is None:
            return None
        self.answered = True
        if not self.job.download:
            self.saved = {p.index: SavedImage(p.index, url=p.link, error=p.error) for p in self.ready.pictures}
            return _first_error(self.saved.values(), broken)
        # What a stream brought is saved already, or on its way.
        await asyncio.gather(
            *(self._keep(picture) for picture in self.ready.pictures if picture.index not in self.taken)
        )
        error = _first_error(self.saved.values(), broken)
        if all(image.error is None or image.error.billed == "no" for image in self.saved.values()):
            await asyncio.to_thread(spool.forget, self.run.replies, self.job.id)
        return error

    def _is_there(self) -> bool:
        """With `--if-exists skip`: whether every picture of the job exists, so that nothing need be paid."""
        if self.job.output.if_exists != "skip":
            return False
        paths = [path for place in self.run.places(self.job) if (path := store.existing(place))]
        if not paths or len(paths) < self.job.request.pictures_at_most:
            return False
        self.saved = {index: SavedImage(index, path) for index, path in enumerate(paths)}
        self.run.sink.emit(Notice(f"{paths[0]} exists already; nothing was sent"))
        return True

    async def _obtain(self) -> Ready | None:
        """The provider's answer with its pictures, however many polls it takes; None where a callback will bring it."""
        started = time.monotonic()
        outcome = await self._first_answer()
        while isinstance(outcome, Ticket):
            self.task_id = outcome.task_id
            if self.job.request.callback_url:
                return None
            outcome = await self._poll(outcome, started)
        self.provider_s = time.monotonic() - started
        return outcome

    async def _first_answer(self) -> Ready | Ticket:
        """The reply to the one paid request; or, for what was paid before, the reply or task that was kept."""
        job = self.job
        if job.task_id:
            return Ticket(job.task_id, poll_after_s=0.0)
        if job.kept is not None:
            self.answered = True
            return await asyncio.to_thread(read_kept, self.dialect, job.kept)
        kept = _KeptReply(self)
        call = self.dialect.submit(job.request)
        pictures = job.request.pictures_at_most
        try:
            answer = await self.wire.ask(
                call, self.dialect.read, spool=kept, gate=self.gate, watch=self, pictures=pictures
            )
        except SeedreamError as error:
            kept.settle(error)
            raise
        return answer.value

    async def _poll(self, ticket: Ticket, started: float) -> Ready | Ticket:
        """Wait, and ask after the task once. Its id is on disk since the submission, so a lost poll loses nothing."""
        if time.monotonic() - started > self.job.route.limits.timeout_s:
            raise self._task_left(f"task {ticket.task_id} was not ready in time")
        self.run.sink.emit(Stage(self.job.index, "polling", ticket.task_id))
        await self.run.clock.sleep(ticket.poll_after_s)
        # Beside the reply that holds the task's id: that one must stay until the pictures are here.
        kept = _KeptReply(self, beside=POLLED)
        try:
            answer = await self.wire.ask(self.dialect.poll(ticket), self.dialect.read, spool=kept)
        except ApiError as error:
            kept.forget()
            return self._judge_lost_poll(ticket, error)
        self.lost_polls = 0
        if isinstance(answer.value, Ticket):
            kept.forget()
            return answer.value
        return await asyncio.to_thread(read_kept, self.dialect, kept.take_place(self.job.id))

    def _judge_lost_poll(self, ticket: Ticket, error: ApiError) -> Ticket:
        """The ticket to ask with again; raises where the task itself failed, or cannot be asked after."""
        # The task's own failure comes whole, with HTTP 200; anything else is the asking that failed.
        if error.status == 200 and (error.code or error.kind != "unknown_outcome"):
            if error.billed == "no":
                spool.forget(self.run.replies, self.job.id)
            raise error
        self.lost_polls += 1
        is_final = error.status is not None and 400 <= error.status < 500 and error.status not in {408, 429}
        if is_final or self.lost_polls > self.job.route.limits.retries:
            raise self._task_left(f"task {ticket.task_id} could not be asked after: {error.message}") from error
        return replace(ticket, poll_after_s=max(ticket.poll_after_s, 1.0) * 2)

    def _task_left(self, message: str) -> ApiError:
        """A task that is left to itself: it is paid for, or will be, and can be fetched later."""
        return ApiError(
            f"{message}; it goes on at the provider",
            kind="unknown_outcome",
            billed="unknown",
            delivered="yes",
            hint=self._way_back(),
        )

    async def _stream(self) -> ApiError | None:
        """Send, and save each picture the moment its event arrives. Returns why the stream broke, if pictures came."""
        kept, job, started = _KeptReply(self), self.job, time.monotonic()
        pictures: list[Picture] = []
        ends: list[Completed] = []
        saving: list[asyncio.Task[None]] = []

        def on_event(event: Mapping[str, Any]) -> None:
            found = self.dialect.read_event(event)
            if isinstance(found, Completed):
                ends.append(found)
            elif found is not None and (picture := _numbered(found, pictures)) is not None:
                # The link must be on disk before its download starts, as with a whole reply.
                kept.flush()
                self.taken.add(picture.index)
                # Its base64 is held only until it is saved.
                pictures.append(replace(picture, base64=""))
                if job.download:
                    saving.append(asyncio.create_task(self._keep(picture)))

        call, most = self.dialect.submit(job.request), job.request.pictures_at_most
        cut: SeedreamError | None = None
        try:
            streamed = await self.wire.stream(
                call, self.dialect.read, on_event, spool=kept, gate=self.gate, watch=self, pictures=most
            )
        except SeedreamError as error:
            if not pictures:
                kept.settle(error)
                raise
            # Whatever ended it: the pictures before it may have been paid for.
            kept.keep()
            cut = error
        else:
            if isinstance(streamed.whole, Ready):
                self.ready = streamed.whole
                return None
            kept.keep()
            whole = bool(ends) or streamed.ended == "done" or (streamed.cut is None and len(pictures) >= most)
            cut = streamed.cut or _cut_short() if not whole else _missing(pictures, ends)
        finally:
            self.provider_s = time.monotonic() - started
        if cut and not pictures:
            raise cut
        self.ready = Ready(tuple(pictures), usage=ends[-1].usage if ends else None)
        await asyncio.gather(*saving)
        return _broken_stream(cut, len(pictures), most) if cut else None

    async def _keep(self, picture: Picture) -> None:
        """Bring one picture to disk; its failure is its own."""
        if picture.error:
            self.saved[picture.index] = SavedImage(picture.index, error=picture.error, layer=picture.layer)
            return
        try:
            async with self.run.downloads:
                image = await self._save(picture)
        except (LinkError, FileError) as error:
            if not error.hint:
                error.hint = f"seedream recover {self.job.id}"
            image = SavedImage(picture.index, url=picture.link, error=error, layer=picture.layer)
        self.saved[picture.index] = image
        self.run.sink.emit(Saved(self.job.index, image))

    async def _save(self, picture: Picture) -> SavedImage:
        """Fetch into a part file beside its place, check that it is a whole picture, and give it its name."""
        output = self.job.output
        # How many a kept reply holds is known only now.
        of = max(self.job.of, len(self.ready.pictures) if self.ready and self.job.kept else 1)
        place = output.place(self.job.fields, number=self.job.first + picture.index, of=of)
        with store.open_part(place.folder) as part:
            facts = await self._fill(part, picture)
            if output.stdout:
                await asyncio.to_thread(self._emit, part)
                path = None
            else:
                published = await asyncio.to_thread(
                    part.publish, place.folder, place.stem, facts, output.if_exists, suffix=place.suffix
                )
                path = published.path
                self._note(published)
        return SavedImage(
            picture.index,
            path,
            picture.link,
            facts.format,
            facts.width,
            facts.height,
            facts.bytes,
            facts.sha256,
            layer=picture.layer,
        )

    def _note(self, published: store.Published) -> None:
        """Say where a picture is not where it was asked to be."""
        if published.retyped_from:
            name, suffix = published.retyped_from.name, published.path.suffix
            self.run.sink.emit(
                Notice(f"{name} was asked for, but the picture is {suffix[1:]}: saved as {published.path}")
            )

    def _emit(self, part: store.Part) -> None:
        """A whole, checked picture to standard output. A closed pipe loses nothing: the reply stays for `recover`."""
        with part.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                if self.run.outlets.emit is None or not self.run.outlets.emit(chunk):
                    raise LinkError("standard output was closed before the picture was written")

    async def _fill(self, part: store.Part, picture: Picture) -> pictures.Facts:
        """The picture's bytes, from its link or from the reply, checked and flushed."""
        if picture.blob is not None:
            await asyncio.to_thread(store.write_blob, picture.blob, part)
            return await asyncio.to_thread(part.finish)
        if picture.base64:
            await asyncio.to_thread(store.write_base64, picture.base64, part)
            return await asyncio.to_thread(part.finish)

        def progress(received: int, total: int | None) -> None:
            self.run.sink.emit(Downloading(self.job.index, picture.index, received, total))

        fetched = await self.wire.fetch(
            picture.link,
            part.write,
            check=part.finish,
            restart=part.reset,
            explain=pictures.explain_store_error,
            on_progress=progress,
        )
        return fetched.checked

    def _result(self, error: SeedreamError | None) -> JobResult:
        """What is to be said of this job."""
        images = tuple(self.saved[index] for index in sorted(self.saved))
        usage = dict(self.ready.usage) if self.ready and self.ready.usage else None
        made = self._made(usage)
        request, job = self.job.request, self.job
        bare = job.kept or job.task_id
        body = {} if bare else self.dialect.submit(request).json or {}
        submitted = bool(self.task_id and request.callback_url)
        doubtful = error is not None and error.kind == "unknown_outcome" and made is None
        billed = request.pictures_at_most if doubtful else made
        return JobResult(
            index=self.job.index,
            id=self.job.id,
            status="submitted" if submitted and not error else _status(error, images),
            provider=self.job.route.spec.name,
            model=request.model_id,
            request=body,
            images=images,
            usage=usage,
            cost=job.price(billed) if billed is not None else None,
            error=error,
            attempts=self.attempts,
            timing=self._timing(),
            asked_up_to=request.pictures_at_most if request.sequence else None,
            task_id=self.task_id,
        )

    def _made(self, usage: dict[str, Any] | None) -> int | None:
        """How many pictures are billed: the provider's own count, else what came; None while that is unknown."""
        if self.ready is None:
            return None
        counted = (usage or {}).get("generated_images")
        if isinstance(counted, int):
            return counted
        return sum(1 for picture in self.ready.pictures if picture.error is None)

    def _timing(self) -> Timing:
        total = time.monotonic() - self.started
        return Timing(total, self.provider_s, max(0.0, total - self.provider_s) if self.ready else 0.0)


class _KeptReply:
    """The wire's view of the reply file: bytes go to disk as they arrive, and are flushed before they are read."""

    def __init__(self, worker: _Worker, *, beside: str = "") -> None:
        job = worker.job
        request = job.request
        self.folder = worker.run.replies
        self.id = job.id + beside
        pictures = request.pictures_at_most if request.response_format == "b64_json" else 0
        self.spool = spool.open_spool(self.folder, self.id, _URL_REPLY + pictures * _BASE64_PICTURE)
        self.meta = {
            "provider": job.route.spec.name,
            "base_url": job.route.base_url,
            "model": request.model_id,
            "size": request.size,
            "fields": dict(job.fields),
            "first": job.first,
            "of": job.of,
        }
        self.kept: Path | None = None

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.spool.size

    def write(self, chunk: bytes) -> None:
        """Append what arrived."""
        self.spool.write(chunk)

    def reset(self) -> None:
        """A new attempt starts from nothing."""
        self.kept = None
        self.spool.reset()

    def load(self) -> Any:
        """Flush the reply under its id, then parse it; base64 pictures stay where they lie, as `Blob`s."""
        self.kept = self.spool.keep(self.meta)
        return spool.load(self.kept, limit=REPLY_MOST)

    def flush(self) -> None:
        """What arrived so far survives a power cut."""
        self.spool.flush()

    def keep(self) -> None:
        """The stream has ended: its bytes get their name."""
        self.kept = self.spool.keep(self.meta)

    def forget(self) -> None:
        """Nothing worth keeping came, and what an earlier reply said stays."""
        self.spool.drop()
        spool.forget(self.folder, self.id)

    def take_place(self, job_id: str) -> Path:
        """Become the job's kept reply, in the place of the one that held only a task's id."""
        assert self.kept is not None  # noqa: S101 - it was read, so it was kept
        final = self.kept.with_name(f"{job_id}{self.kept.suffix}")
        self.kept.with_suffix(".meta.json").replace(final.with_suffix(".meta.json"))
        return self.kept.replace(final)

    def settle(self, error: SeedreamError) -> None:
        """Keep what may have been paid for; remove what was not."""
        if error.billed == "no":
            self.spool.drop()
            spool.forget(self.folder, self.id)
        elif self.kept is None and self.size:
            self.spool.keep(self.meta)


def release(plan: Plan, state: Path) -> None:
    """Let go of the replies of a plan, once the user has their links."""
    for job in plan.jobs:
        spool.forget(state / "replies", job.id)


def read_kept(dialect: Dialect, path: Path) -> Ready | Ticket:
    """A kept reply, read again: one JSON document, or the events of a stream as far as they came."""
    try:
        body = spool.load(path, limit=REPLY_MOST)
    except ValueError:
        return _read_kept_stream(dialect, path)
    # A stream of one line is a JSON document too.
    is_event = isinstance(body, dict) and str(body.get("type")).startswith("image_generation.")
    return _read_kept_stream(dialect, path) if is_event else dialect.read(Reply(200, {}, body))


def _read_kept_stream(dialect: Dialect, path: Path) -> Ready | Ticket:
    parser, events = EventParser(), list[dict[str, Any] | Done]()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            events += parser.feed(chunk)
    events += parser.close()[0]
    pictures, ends = list[Picture](), list[Completed]()
    for event in events:
        found = None if isinstance(event, Done) else _read_again(dialect, event)
        if isinstance(found, Completed):
            ends.append(found)
        elif found is not None and (picture := _numbered(found, pictures)) is not None:
            pictures.append(picture)
    if not pictures:
        return dialect.read(Reply(200, {}, None, path.read_bytes()[:2000].decode(errors="replace")))
    return Ready(tuple(pictures), usage=ends[-1].usage if ends else None)


def _read_again(dialect: Dialect, event: Mapping[str, Any]) -> Picture | Completed | None:
    """An event of a kept stream; the error that ended it was told when it came, and the pictures before it count."""
    try:
        return dialect.read_event(event)
    except ApiError:
        return None


def _numbered(found: Picture, before: Sequence[Picture]) -> Picture | None:
    """A stream's picture under a number of its own; None for one that came already.

    Not every provider numbers its events, and no paid picture may be lost to another with its number.
    """
    same = next((picture for picture in before if picture.index == found.index), None)
    if found.index >= 0 and same is None:
        return found
    if same is not None and (found.error or (found.link and found.link == same.link)):
        return None
    return replace(found, index=max((picture.index for picture in before), default=-1) + 1)


def _missing(pictures: Sequence[Picture], ends: Sequence[Completed]) -> ApiError | None:
    """What is wrong with a stream that came to its end: no picture at all, or fewer than the provider counts."""
    came = sum(1 for picture in pictures if picture.error is None)
    counted = (ends[-1].usage or {}).get("generated_images") if ends else None
    if not pictures:
        return _cut_short("the stream ended without a picture")
    if isinstance(counted, int) and counted > came:
        return _cut_short(f"the provider counts {counted} pictures and {came} came")
    return None


def _cut_short(message: str = "the stream ended before it was complete") -> ApiError:
    """A stream that ended between two events, without its end and with fewer pictures than were asked for."""
    return ApiError(
        message,
        kind="unknown_outcome",
        billed="unknown",
        delivered="yes",
    )


def _broken_stream(cut: SeedreamError, got: int, most: int) -> ApiError:
    """What a broken stream means when some of its pictures came: they are the user's, the rest is in doubt."""
    said = cut if isinstance(cut, ApiError) else None
    unbilled = cut.billed == "no"
    return ApiError(
        f"{cut.message}; {got} of up to {most} pictures came and are kept"
        + ("" if unbilled else ", the rest may have been billed"),
        kind=cut.kind if unbilled else "unknown_outcome",
        billed="no" if unbilled else "unknown",
        delivered="yes",
        hint=cut.hint if unbilled else "it is not sent again; the provider's usage page tells what was billed",
        provider=said.provider if said else "",
        code=said.code if said else "",
        request_id=said.request_id if said else "",
    )


def _first_error(images: Iterable[SavedImage], broken: SeedreamError | None = None) -> SeedreamError | None:
    """The failure to speak of where several things failed: one that money hangs on before a refusal."""
    errors = [error for error in (broken, *(image.error for image in images)) if error]
    return min(errors, key=lambda error: error.billed == "no", default=None)


def _status(error: SeedreamError | None, images: tuple[SavedImage, ...]) -> Status:
    """The job's status word."""
    if error is None:
        return "succeeded"
    if any(image.error is None for image in images):
        return "partial"
    if error.kind == "unknown_outcome":
        return "unknown"
    return "failed"
