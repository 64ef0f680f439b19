"""Plans that send nothing new: they fetch the images that were paid for and are not on disk.

What can be had comes from the ledger (links, tasks, kept replies), from a raw reply in a file or on standard input,
or from a task id that the user gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import providers
from ..config.credentials import is_known_address, is_trusted_address, known_keys
from ..config.environment import Environment
from ..config.prompt_file import read_chunks
from ..config.settings import Key, complete
from ..errors import EXIT_CODES, ApiError, Billed, ConfigError, FileError, InputError, LinkError, Problem, SeedreamError
from ..ledger.ledger import Ledger
from ..ledger.records import Caps, Entry, ImageRow
from ..providers.base_url import full_url, is_same_server
from ..providers.contract import Dialect, ProviderSpec, Ready, Ticket
from ..redaction import secret_forms
from ..request.image_request import ImageRequest, OptionValues
from ..request.limits import GROUP_MOST
from ..request.models import PriceStep, find_model
from ..request.validation import Validated
from ..results import JobResult, Money, ProviderImage, SavedImage
from ..storage import file_names, output_path, reply_file
from ..storage.filesystem import is_own_folder, is_plain
from ..storage.reply_findings import Findings
from .cost_limit import Bill
from .plan import (
    Job,
    Limits,
    Plan,
    PlannedRequest,
    Route,
    choose_dialect,
    key_for,
    name_fields,
    plan_limits,
    plan_output,
    run_id,
)
from .stored_reply import POLLED, read_kept
from .work import Earlier, Fetch, FetchLinks, FetchReply, PollTask


def make_recovery(
    wanted: Sequence[str],
    options: OptionValues,
    environment: Environment,
    ledger: Ledger | None,
    *,
    tasks: Sequence[str] = (),
    of_batches: Collection[str] = (),
) -> Plan:
    """A plan for what is paid and not saved. `wanted` holds ids (of a run or one request of it), files with a raw
    reply, or `-`; nothing means everything, also the kept replies that no ledger knows. Raises `InputError` for what
    is neither. Where everything is meant, one that is past help is a notice and does not stop the others. The names
    `of_batches` are those of requests that batches' own ledgers know.
    """
    found: list[Problem] = []
    replies = environment.state_folder / "replies"
    limits = plan_limits(options, found)
    every = not wanted and not tasks
    wanted = [name for name in wanted if name not in of_batches]
    strays = _strays(replies, ledger)
    named = {name for name in wanted if name in strays}
    files = [name for name in wanted if is_file(name) and name not in named and not (ledger and ledger.find(name))]
    entries = _entries([name for name in wanted if name not in {*named, *files}], ledger, found, every=every)
    past_help, left = list[Problem](), list[JobResult]()
    entries = _without_lost(entries, replies, left)
    jobs = _entry_jobs(entries, options, environment, limits, past_help)
    for name in strays if every else named:
        jobs += _stray_jobs(name, strays[name], options, environment, limits, left=left)
    for name in files:
        jobs += _reply_jobs(name, replies, options, environment, limits, left=left)
    jobs += [_task_job(task, ledger, options, environment, limits) for task in tasks]
    found += [] if every else past_help
    if found:
        raise InputError(found)
    return _plan(jobs, options, left, [problem.message for problem in past_help])


def batch_recovery(
    wanted: Sequence[str],
    options: OptionValues,
    environment: Environment,
    ledger: Ledger,
    *,
    folder: Path,
    home: Path,
    is_named: bool = False,
) -> Plan:
    """A plan for what a batch paid for and did not save, by the batch's own ledger in its `home`, into its `folder`
    under the names that were planned. `wanted` are ids of its runs and requests; nothing means everything, and where
    the batch itself `is_named`, also what was handed out as a link or called expired.

    The folder may have come from anywhere: what cannot be placed within it fails and stays as it is. Raises
    `InputError` for a name that means nothing, and for one that has nothing to fetch.
    """
    found, past_help, left = list[Problem](), list[Problem](), list[JobResult]()
    entries = _entries(wanted, ledger, found, every=not wanted, folder=folder)
    entries += ledger.refetchable() if is_named else ()
    given = plan_output(options, 1, found)
    if given is None:
        raise InputError(found)
    replies, target, jobs = home / "replies", output_path.OutputTarget(folder, given.if_exists, 1), list[Job]()
    for entry in _without_lost(entries, replies, left):
        job = lost_job(entry, options, environment, replies, output=target, found=past_help)
        if job is not None and given.template:
            job = replace(job, output=replace(job.output, template=given.template))
        # What is given for all is looked at when all is known.
        problem = _place_problem(job) if job is not None and "output" not in options.values else ""
        if problem:
            error = FileError(problem, hint="set that right, or name another folder with -o", billed="yes")
            left.append(JobResult(0, entry.id, "failed", entry.provider, entry.model, {}, error=error))
        elif job is not None:
            jobs.append(job)
    found += past_help if wanted else []
    if found:
        raise InputError(found)
    return _plan(jobs, options, left, [f"{folder}: {problem.message}" for problem in past_help])


def _place_problem(job: Job) -> str:
    """Why the images of a request cannot go where they were planned; the folders they need are made."""
    try:
        numbers = range(job.first, job.first + max(1, min(job.earlier.most, GROUP_MOST)))
        job.output.prepare([job.output.place(job.fields, number=number, of=job.of) for number in numbers])
    except (FileError, InputError) as error:
        return error.message
    return ""


def _plan(jobs: Sequence[Job], options: OptionValues, left: Sequence[JobResult], notices: Sequence[str]) -> Plan:
    planned = tuple(
        PlannedRequest(options, Validated(job.request, 1, (), {}), job.route, job.model, (job,)) for job in jobs
    )
    return Plan("recover", run_id(), planned, (), tuple(notices), Caps(), left=tuple(left))


def place_all(own: Plan, batches: Sequence[Plan], options: OptionValues) -> list[Plan]:
    """The plans, that of the user's ledger first, with all their jobs numbered as one run's. Where `--output` is given
    all are sent there; where only `--name` or `--if-exists` is, those of batches stay in their folders. Raises
    `InputError`.
    """
    found = list[Problem]()
    plans = [own, *batches]
    given = {"output", "name", "if_exists"} & options.values.keys()
    output = plan_output(options, sum(len(plan.jobs) for plan in plans), found) if given else None
    if found:
        raise InputError(found)
    placed, number = list[Plan](), 0
    for plan in plans:
        drafted = []
        output = output if plan is own or "output" in options.values else None
        for one in plan.drafted:
            jobs = tuple(
                replace(job, index=number + nth, output=output or job.output) for nth, job in enumerate(one.jobs)
            )
            drafted.append(replace(one, jobs=jobs))
            number += len(jobs)
        placed.append(replace(plan, drafted=tuple(drafted)))
    beyond = itertools.count(number)
    return [replace(plan, left=tuple(replace(result, index=next(beyond)) for result in plan.left)) for plan in placed]


def nothing_left(ledger: Ledger | None, *, is_all: bool = True) -> str:
    """What to say where there is nothing to recover; not `is_all` where something could not be looked into."""
    doubtful = len(ledger.history(status="unknown")) if ledger else 0
    said = "nothing to recover: no image that was paid for and can still be had is missing"
    said += "" if is_all else " elsewhere"
    way = "seedream history --status unknown lists them, seedream history resolve settles them"
    return f"{said}; {doubtful} of unknown outcome: {way}" if doubtful else said


def is_file(name: str) -> bool:
    """Whether the user means a file, or standard input."""
    try:
        return name == "-" or Path(name).is_file()
    except OSError:
        # One that is too long, say.
        return False


def _strays(replies: Path, ledger: Ledger | None) -> dict[str, Path]:
    """Kept replies by id that no ledger knows: of runs without one, or from before it was moved away."""
    found = {}
    for kept in reply_file.list_kept(replies):
        # The answer to a poll lies beside the one that held only the task's id, and has more in it.
        name = kept.id.removesuffix(POLLED)
        is_known = ledger is not None and ledger.entries([name])
        if not is_known and (name not in found or kept.id != name):
            found[name] = kept.path
    for path in reply_file.list_asides(replies):
        name = path.name.partition(".")[0].removesuffix(POLLED)
        if name not in found and not (ledger is not None and ledger.entries([name])):
            found[name] = path
    return found


def _without_lost(entries: Sequence[Entry], replies: Path, left: list[JobResult]) -> list[Entry]:
    """The requests of which something can be fetched. Those of unknown outcome of which nothing can go to `left`: what
    is read a second time can bring images, and never says that there were none.
    """
    brought = []
    for entry in entries:
        if entry.state != "unknown" or brings_images(entry, replies):
            brought.append(entry)
        else:
            left.append(_still_unknown(entry, _kept(entry, replies)))
    return brought


def brings_images(entry: Entry, replies: Path) -> bool:
    """Whether something can be fetched of a request of unknown outcome: an image that is not saved, or a task."""
    if entry.provider not in providers.PROVIDERS:
        return False
    if any(row.state == "pending" and row.link for row in entry.images):
        return True
    kept = _kept(entry, replies)
    saved = {row.index for row in entry.images if row.state in {"saved", "handed"}}
    return bool(entry.task_id) if kept is None else _reads_images(entry.provider, kept, saved)


def _reads_images(provider: str, path: Path, saved: Collection[int] = ()) -> bool:
    """Whether a kept reply has an image in it that is not saved, or a task that is open."""
    try:
        found = read_kept(providers.load(provider), path)
    except (ApiError, ValueError, OSError):
        return False
    return isinstance(found, Ticket) or any(not one.error and one.index not in saved for one in found.images)


def _still_unknown(entry: Entry, kept: Path | None) -> JobResult:
    """A request that stays of unknown outcome, at the price that it may have cost."""
    said = entry.error
    cost = None if entry.worst_micro is None else Money(entry.worst_micro, entry.currency).cost(entry.as_of)
    message = said.message if said and said.message else "the outcome of the request is unknown"
    error = _doubt(message, entry.id, kept, entry.provider, settles=True)
    error.code, error.request_id = (said.provider_code, said.request_id) if said else ("", "")
    return JobResult(0, entry.id, "unknown", entry.provider, entry.model, {}, cost=cost, error=error, kept=kept)


def _doubt(message: str, name: str, kept: Path | None, provider: str, *, settles: bool) -> ApiError:
    """The error of what stays unknown, with where its reply lies. Only the ledger's can be settled in it."""
    where = f"what came lies in {kept}; " if kept else ""
    way = f", then seedream history resolve {name} --paid or --unpaid" if settles else ""
    hint = f"{where}look at the provider's usage page{way}"
    return ApiError(message, kind="unknown_outcome", hint=hint, billed="unknown", delivered="maybe", provider=provider)


def _loose_doubt(job: Job | None, name: str, path: Path | None, provider: str) -> JobResult:
    """A reply that no ledger knows, and in which no image is found."""
    error = _doubt("the reply that is kept of it holds no image", name, path, provider, settles=False)
    if path is not None:
        error.hint += ", then remove the file (history resolve is for what the ledger knows)"
    model, cost = (job.request.model_id, job.price(job.earlier.most or 1)) if job else ("", None)
    return JobResult(0, name, "unknown", provider, model, {}, cost=cost, error=error, in_ledger=False, kept=path)


def _stray_jobs(
    name: str, path: Path, options: OptionValues, environment: Environment, limits: Limits, *, left: list[JobResult]
) -> list[Job]:
    """The job that saves what a kept reply holds, by what was written down beside it."""
    meta = reply_file.load_meta(path.parent, path.name.partition(".")[0])
    provider = options.values.get("provider") or str(meta.get("provider") or "") or _recognise(path)
    if provider is None or provider not in providers.PROVIDERS:
        left.append(_loose_doubt(None, name, path, provider or ""))
        return []
    job = _stray_job(name, path, options, environment, limits, provider=provider, meta=meta)
    if _reads_images(provider, path):
        return [job]
    left.append(_loose_doubt(job, name, path, provider))
    return []


def _stray_job(
    name: str,
    path: Path,
    options: OptionValues,
    environment: Environment,
    limits: Limits,
    *,
    provider: str,
    meta: Mapping[str, Any],
) -> Job:
    """The job for a kept reply, whatever is in it."""
    dialect = providers.load(provider)
    stated = complete(options, dialect.spec.name, environment.settings)
    base_url = str(meta.get("base_url") or "") or full_url(dialect.spec, stated.values.get("base_url"))
    route, barred = _old_route(dialect, base_url, stated, environment, limits, is_own=True)
    # Of a reply that the user handed in nothing else is known.
    route = replace(route, by_hand=not meta.get("base_url"))
    request = _bare_request(dialect.spec.name, str(meta.get("model") or ""), str(meta.get("size") or ""))
    own = meta.get("fields")
    fields = {str(key): str(value) for key, value in own.items()} if isinstance(own, dict) else {"slug": "recovered"}
    return Job(
        0,
        name,
        route,
        find_model(request.model_id, dialect.spec.spelling),
        request,
        output_path.OutputTarget(Path(), "rename", 1),
        {**name_fields(request, name, 0), **fields},
        # Of an adopted one nobody knows how many were asked for.
        FetchReply(path, earlier=Earlier(_number(meta.get("most", GROUP_MOST)), barred=barred)),
        first=_number(meta.get("first")),
        of=_number(meta.get("of")),
        in_ledger=False,
    )


def orphan_jobs(options: OptionValues, environment: Environment, ledger: Ledger) -> list[Job]:
    """Jobs for what a process that died had paid for: a new run fetches its images on the way, free of charge."""
    found: list[Problem] = []
    # One with an error was tried before and can wait for `recover`.
    orphans = [entry for entry in ledger.unsaved() if entry.state == "ready" and entry.error is None]
    return _entry_jobs(orphans, options, environment, plan_limits(options, []), found)


def _entry_jobs(
    entries: Sequence[Entry], options: OptionValues, environment: Environment, limits: Limits, found: list[Problem]
) -> list[Job]:
    jobs = (_entry_job(entry, options, environment, limits, found) for entry in entries)
    return [job for job in jobs if job is not None]


def _entries(
    wanted: Sequence[str], ledger: Ledger | None, found: list[Problem], *, every: bool, folder: Path | None = None
) -> list[Entry]:
    """The ledger's requests that are meant and not saved; a name that means nothing is a problem."""
    doubtful = ledger.history(status="unknown") if ledger else ()
    found_unsaved = (*ledger.unsaved(), *(entry for entry in doubtful if entry.owner is None)) if ledger else ()
    unsaved = {entry.id: entry for entry in found_unsaved}
    if every:
        return list(unsaved.values())
    chosen: dict[str, Entry] = {}
    for name in wanted:
        meant = ledger.find(name) if ledger else ()
        # To ask for a link costs nothing: what was called expired, handed out or removed is tried where it is named.
        again = [(entry, entry.links_left(folder)) for entry in meant if entry.state == "saved"]
        unsaved |= {entry.id: _as_pending(entry, left) for entry, left in again if left}
        chosen |= {entry.id: unsaved[entry.id] for entry in meant if entry.id in unsaved}
        if meant:
            # Of a run's requests some may be saved; only where none is left is that a problem.
            left = any(entry.id in unsaved for entry in meant)
            found += [] if left else [_nothing_left(entry) for entry in meant]
            continue
        hint = f"waiting now: {', '.join(unsaved) or 'nothing'}"
        found.append(Problem("id", f"nothing is called {name}: no request, no file", hint, origin="ID"))
    return list(chosen.values())


def _as_pending(entry: Entry, left: Collection[int]) -> Entry:
    """A saved request of which some files are gone."""
    gone = [row.index in left and row.state == "saved" for row in entry.images]
    rows = (replace(row, state="pending") if is_gone else row for row, is_gone in zip(entry.images, gone, strict=True))
    return replace(entry, images=tuple(rows))


def _nothing_left(entry: Entry) -> Problem:
    """Why a request has nothing to fetch."""
    why = {
        "succeeded": "all its images are saved",
        "running": "another process works on it",
    }.get(entry.status, f"it is {entry.status}")
    return Problem("id", f"{entry.id}: there is nothing to fetch, {why}", origin="ID")


def _entry_job(
    entry: Entry,
    options: OptionValues,
    environment: Environment,
    limits: Limits,
    found: list[Problem],
    *,
    replies: Path | None = None,
) -> Job | None:
    """The job that finishes a request of the ledger: from its kept reply, its links, or its task."""
    if entry.provider not in providers.PROVIDERS:
        found.append(Problem("id", f"{entry.id}: its provider, {entry.provider}, is none that is known", origin="ID"))
        return None
    dialect = providers.load(entry.provider)
    stated = complete(options, dialect.spec.name, environment.settings)
    base_url = entry.base_url or full_url(dialect.spec, stated.values.get("base_url"))
    route, barred = _old_route(dialect, base_url, stated, environment, limits, is_own=replies is None)
    request = _bare_request(entry.provider, entry.model, entry.fields.get("size", ""))
    job = Job(
        0,
        entry.id,
        route,
        find_model(entry.model, dialect.spec.spelling),
        request,
        _old_output(entry),
        name_fields(request, entry.id, 0),
        bill=_old_bill(entry),
    )
    resumed = resume(entry, job, replies or environment.state_folder / "replies", barred=barred)
    if resumed is None:
        found.append(Problem("id", f"{entry.id}: neither its reply nor a link of it is left", origin="ID"))
    return resumed


def _old_route(
    dialect: Dialect, base_url: str, options: OptionValues, environment: Environment, limits: Limits, *, is_own: bool
) -> tuple[Route, str]:
    """The way to an address out of a ledger or a kept reply, and that address where no key may go to it.

    `is_own` tells that it is the user's ledger, which may speak of what the user named before.
    """
    spec = dialect.spec
    is_known = is_own and is_known_address(spec, base_url, environment)
    if is_known or is_trusted_address(options, spec, base_url, environment):
        return Route(
            dialect, base_url, _key_if_any(options, spec, environment, base_url, is_known=is_known), limits
        ), ""
    return Route(dialect, base_url, None, limits), base_url


def _old_bill(entry: Entry) -> Bill | None:
    """What was held for a request when it was sent, which its body and the prices of that day decided."""
    if entry.worst_micro is None or not entry.images_at_most:
        return None
    price = PriceStep(Money(entry.worst_micro).amount / entry.images_at_most)
    return Bill(entry.model, entry.images_at_most, 0, price, entry.as_of)


def resume(entry: Entry, job: Job, replies: Path, *, barred: str = "") -> Job | None:
    """The job as one that only fetches what its request was paid for; None where nothing of that is left. `barred` is
    an address that no key may go to.
    """
    earlier = Earlier(
        entry.images_at_most,
        # What was handed out is no file yet, and is asked for where it is named.
        frozenset(
            row.index
            for row in entry.images
            if row.state in {"saved", "failed"} or (row.state == "handed" and entry.state != "saved")
        ),
        tuple(_lost_image(row) for row in entry.images if row.state == "failed"),
        entry.sent_at,
        entry.answered_at,
        barred=barred or _elsewhere(entry, job.route.base_url),
    )
    work = _fetch(entry, _kept(entry, replies), earlier)
    if work is None:
        return None
    return replace(
        job,
        id=entry.id,
        work=work,
        fields={**job.fields, **entry.fields},
        first=_number(entry.output.get("first")),
        of=_number(entry.output.get("of")),
    )


def _elsewhere(entry: Entry, base_url: str) -> str:
    """The address that a request went to, where that is another server than this one; "" where it is the same."""
    return entry.base_url if entry.base_url and not is_same_server(entry.base_url, base_url) else ""


def _fetch(entry: Entry, kept: Path | None, earlier: Earlier) -> Fetch | None:
    """What there is to fetch of a request: its kept reply, else its links, else its task."""
    if kept is not None:
        return FetchReply(kept, entry.task_id, earlier)
    images = tuple(_image(row) for row in entry.images)
    if images and all(one.link or one.error for one in images):
        return FetchLinks(Ready(images, usage=entry.usage), earlier)
    return PollTask(entry.task_id, earlier) if entry.task_id else None


def lost_job(
    entry: Entry,
    options: OptionValues,
    environment: Environment,
    replies: Path,
    *,
    output: output_path.OutputTarget,
    found: list[Problem],
) -> Job | None:
    """The job that fetches what was paid for a row without its table, into the batch's folder; why there can be none
    goes to `found`.
    """
    job = _entry_job(entry, options, environment, plan_limits(options, []), found, replies=replies)
    barred = job.earlier.barred if job else ""
    if job and barred and not is_known_address(job.route.spec, barred, environment):
        # Nor does it say where links may lead: to this machine, say.
        job = replace(job, route=replace(job.route, base_url=job.route.spec.base_url or _NOWHERE))
    template = entry.output.get("template")
    output = replace(output, template=str(template) if template else None)
    fields = {"slug": file_names.slug(entry.prompt or entry.id)}
    if entry.sent_at:
        fields["date"] = f"{entry.sent_at.astimezone():%Y-%m-%d}"
    if type(seed := entry.body.get("seed")) is int:
        fields["seed"] = str(seed)
    fields |= {key: value for key, value in entry.fields.items() if isinstance(value, str)}
    return replace(job, output=output, fields={**job.fields, **fields}) if job else None


_NOWHERE = "https://address.invalid"
"""The address of a provider that has none of its own, where nothing may be asked. No host is ever called so."""


def _kept(entry: Entry, replies: Path) -> Path | None:
    """The reply of a request that still lies on disk."""
    # Only there: a path out of a ledger may lead anywhere, and the folder may have been moved since.
    names = [entry.reply.name] if entry.reply and entry.reply.name.startswith(f"{entry.id}.") else []
    paths = [replies / name for name in dict.fromkeys((*names, f"{entry.id}.reply"))]
    if entry.state == "unknown":
        # Of one that is known to be saved, what came of earlier attempts is not its answer.
        paths += reversed(reply_file.list_asides(replies, entry.id))
    return next((path for path in paths if is_plain(path)), None) if is_own_folder(replies) else None


def _image(row: ImageRow) -> ProviderImage:
    """An image as the ledger knows it."""
    if row.state != "failed":
        return ProviderImage(row.index, link=row.link, format=row.format)
    return ProviderImage(row.index, error=_old_error(row))


def _lost_image(row: ImageRow) -> SavedImage:
    """An image that cannot be had, for a reason that an earlier run found out."""
    return SavedImage(row.index, url=row.link, error=_old_error(row))


def _old_error(row: ImageRow) -> SeedreamError:
    failure = row.error
    if row.state == "expired":
        return LinkError(failure.message if failure else "its link has expired", kind="expired")
    if failure is None:
        return ApiError("it was not made", kind="refused")
    # The two kinds that a member has where nobody says that it cost nothing.
    billed: Billed = "unknown" if failure.code in {"unknown_outcome", "unavailable"} else "no"
    return ApiError(
        failure.message,
        kind=failure.code if failure.code in EXIT_CODES else "refused",
        billed=billed,
        code=failure.provider_code,
        request_id=failure.request_id,
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 1


def _old_output(entry: Entry) -> output_path.OutputTarget:
    """Where the images were meant to go. What was for standard output goes to the current folder now."""
    output = entry.output
    if output.get("stdout") or not output.get("folder"):
        return output_path.OutputTarget(Path(), "rename", 1)
    file = output.get("file")
    return output_path.OutputTarget(
        Path(str(output["folder"])), "rename", 1, output.get("template"), Path(str(file)) if file else None
    )


def _reply_jobs(
    name: str, replies: Path, options: OptionValues, environment: Environment, limits: Limits, *, left: list[JobResult]
) -> list[Job]:
    """A raw reply from outside. It is kept like any other, so that nothing is lost if its download fails; of a file
    without an image no copy stays, since the user has it.
    """
    run = run_id()
    part = reply_file.open_reply_part(replies, run, 0)
    for chunk in read_chunks(name):
        part.write(chunk)
    path = part.keep({})
    provider = options.values.get("provider") or _recognise(path)
    has_images = provider is not None and _reads_images(provider, path)
    holds = "" if has_images else _holds(path, environment)
    if not has_images and (name != "-" or not path.stat().st_size):
        reply_file.forget(replies, run)
    if provider is None:
        where, way = ("standard input", f"; what came lies in {path}") if name == "-" else (name, "")
        raise InputError(
            [Problem("file", f"{where} is no provider's reply with images in it", f"name the --provider{way}{holds}")]
        )
    dialect = providers.load(provider)
    options = complete(options, dialect.spec.name, environment.settings)
    key = _key_if_any(options, dialect.spec, environment)
    request = _bare_request(dialect.spec.name, "", "")
    fields = {**name_fields(request, run, 0), "slug": "recovered"}
    route = Route(dialect, full_url(dialect.spec, options.values.get("base_url")), key, limits, by_hand=True)
    target = output_path.OutputTarget(Path(), "rename", 1)
    job = Job(0, run, route, None, request, target, fields, FetchReply(path), in_ledger=False)
    if has_images:
        return [job]
    lost = _loose_doubt(job, run, path if path.exists() else None, provider)
    if lost.error and lost.kept is None:
        lost.error.hint += holds
    left.append(lost)
    return []


def _holds(path: Path, environment: Environment) -> str:
    """The first links and images that are in a reply which nobody can read, to end a hint with."""
    forms = tuple(form for key in known_keys(environment) for form in secret_forms(key))
    found = Findings(path, forms, 5)
    lines = [one.line for one in found]
    return f"; in it: {', '.join(lines)}{', …' if found.notes else ''}" if lines else ""


def _recognise(path: Path) -> str | None:
    """The first provider whose dialect makes something of a raw reply."""
    for name in providers.PROVIDERS:
        try:
            read_kept(providers.load(name), path)
        except (ApiError, ValueError):
            continue
        return name
    return None


def _task_job(task: str, ledger: Ledger | None, options: OptionValues, environment: Environment, limits: Limits) -> Job:
    """The job that asks after a task; where the ledger knows it, it is that request's."""
    known = [entry for entry in (ledger.find(task) if ledger else ()) if entry.task_id == task]
    if known and (job := _entry_job(known[0], options, environment, limits, [])):
        is_settled = known[0].state not in {"waiting", "ready", "unknown"}
        return replace(job, work=PollTask(task, replace(job.earlier, lost=(), is_settled=is_settled)))
    dialect, _ = choose_dialect(options, environment, sends=True)
    if not dialect.spec.has_tasks:
        hint = f"providers with tasks: {', '.join(spec.name for spec in providers.specs() if spec.has_tasks)}"
        raise InputError([Problem("task", f"{dialect.spec.name} has no tasks", hint, origin="--task")])
    # What can be no id of a task is told before anything is asked.
    dialect.poll(Ticket(task))
    options = complete(options, dialect.spec.name, environment.settings)
    key = key_for(options, dialect.spec, environment)
    request = _bare_request(dialect.spec.name, "", "")
    name = f"{run_id()}-task"
    fields = {**name_fields(request, name, 0), "slug": f"task-{file_names.clean_name(task, 60)}"}
    route = Route(dialect, full_url(dialect.spec, options.values.get("base_url")), key, limits)
    return Job(
        0,
        name,
        route,
        None,
        request,
        output_path.OutputTarget(Path(), "rename", 1),
        fields,
        PollTask(task),
        in_ledger=False,
    )


def _bare_request(provider: str, model_id: str, size: str) -> ImageRequest:
    """What is left of a request when only its reply matters."""
    return ImageRequest(provider=provider, model="", model_id=model_id, prompt=None, size=size)


def _key_if_any(
    options: OptionValues, spec: ProviderSpec, environment: Environment, base_url: str = "", *, is_known: bool = False
) -> Key | None:
    """Links need no key, but an open task does: one that is there is taken along."""
    try:
        return None if spec.offline else key_for(options, spec, environment, base_url, is_known=is_known)
    except ConfigError:
        return None
