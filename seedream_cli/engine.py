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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import pictures, spool, store
from .errors import ApiError, FileError, InternalError, InterruptedRunError, LinkError, SeedreamError
from .plan import REPLY_MOST, Job, Plan, Route
from .providers.base import Ready, Reply, Ticket
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
        return [job.output.place(job.fields, number=number, of=self.pictures) for number in numbers]

    def _wire(self, route: Route) -> Wire:
        """The wire to one provider, paced and keyed for it alone."""
        transport = None
        if route.spec.offline:
            from .sandbox.transport import SandboxTransport

            transport = SandboxTransport()
        limits = route.limits
        policy = Policy(limits.timeout_s, limits.connect_timeout_s, limits.retries, limits.retry_ambiguous)
        key = route.key.value if route.key else ""
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
        taken = (signal.SIGINT, signal.SIGTERM)
        for number in taken:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)

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
        self.in_flight = False
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
            return f"the task goes on at the provider: seedream recover {self.job.id}"
        return "look at the provider's usage page for this minute before sending it again"

    async def _perform(self) -> SeedreamError | None:
        """Send, wait, fetch. Returns the failure that some pictures had, or None; raises what hit the whole request."""
        if self._is_there():
            return None
        self.ready = await self._obtain()
        self.answered = True
        if not self.job.download:
            self.saved = {p.index: SavedImage(p.index, url=p.link, error=p.error) for p in self.ready.pictures}
            return _first_error(self.saved.values())
        await asyncio.gather(*(self._keep(picture) for picture in self.ready.pictures))
        error = _first_error(self.saved.values())
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

    async def _obtain(self) -> Ready:
        """The provider's answer with its pictures, however many polls it takes."""
        started = time.monotonic()
        outcome = await self._first_answer()
        while isinstance(outcome, Ticket):
            outcome = await self._poll(outcome, started)
        self.provider_s = time.monotonic() - started
        return outcome

    async def _first_answer(self) -> Ready | Ticket:
        """The reply to the one paid request; or, for what was paid before, the reply or task that was kept."""
        job = self.job
        if job.task_id:
            return Ticket(job.task_id, poll_after_s=0.0)
        if job.kept is not None:
            return self.dialect.read(Reply(200, {}, await asyncio.to_thread(spool.load, job.kept, limit=REPLY_MOST)))
        kept = _KeptReply(self)
        call = self.dialect.submit(job.request)
        try:
            answer = await self.wire.ask(
                call, self.dialect.read, spool=kept, gate=self.gate, watch=self, pictures=job.request.pictures_at_most
            )
        except SeedreamError as error:
            kept.settle(error)
            raise
        return answer.value

    async def _poll(self, ticket: Ticket, started: float) -> Ready | Ticket:
        """Wait, and ask after the task once. Its id is on disk since the submission, so a lost poll loses nothing."""
        self.task_id = ticket.task_id
        if time.monotonic() - started > self.job.route.limits.timeout_s:
            raise ApiError(
                f"task {ticket.task_id} was not ready in time; it goes on at the provider",
                kind="unknown_outcome",
                billed="unknown",
                delivered="yes",
                hint=self._way_back(),
            )
        self.run.sink.emit(Stage(self.job.index, "polling", ticket.task_id))
        await self.run.clock.sleep(ticket.poll_after_s)
        call = self.dialect.poll(ticket)
        answer = await self.wire.ask(call, self.dialect.read, spool=_KeptReply(self), gate=None, watch=None)
        return answer.value

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
        place = output.place(self.job.fields, number=self.job.first + picture.index, of=self.run.pictures)
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
        request = self.job.request
        body = self.dialect.submit(request).json or {}
        return JobResult(
            index=self.job.index,
            id=self.job.id,
            status=_status(error, images),
            provider=self.job.route.spec.name,
            model=request.model_id,
            request=body,
            images=images,
            usage=usage,
            cost=self.job.price(made) if made is not None else None,
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

    def __init__(self, worker: _Worker) -> None:
        job = worker.job
        request = job.request
        self.folder = worker.run.replies
        self.id = job.id
        pictures = request.pictures_at_most if request.response_format == "b64_json" else 0
        self.spool = spool.open_spool(self.folder, job.id, _URL_REPLY + pictures * _BASE64_PICTURE)
        self.meta = {
            "provider": job.route.spec.name,
            "base_url": job.route.base_url,
            "model": request.model_id,
            "size": request.size,
            "fields": dict(job.fields),
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

    def settle(self, error: SeedreamError) -> None:
        """Keep what may have been paid for; remove what was not."""
        if error.billed == "no":
            self.spool.drop()
            spool.forget(self.folder, self.id)
        elif self.kept is None and self.size:
            self.spool.keep(self.meta)


def _first_error(images: Iterable[SavedImage]) -> SeedreamError | None:
    """The failure to speak of where several pictures failed: one that money hangs on before a refusal."""
    errors = [image.error for image in images if image.error]
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
