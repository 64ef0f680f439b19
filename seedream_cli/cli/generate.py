"""`seedream generate`, `edit` and `recover`: make a plan, show or run it, print the results."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..config.environment import read_environ
from ..errors import FileError, InputError, OutputError, Problem, SeedreamError
from .completion import offer_ids
from .context import BATCH_HOME, open_ledger_for_reading, open_ledger_here, process_console
from .flags import FlagValues, takes

if TYPE_CHECKING:
    from ..config.environment import Environment
    from ..engine.plan import Plan, PlannedRequest
    from ..ledger.ledger import Ledger
    from ..output.console import Console
    from ..output.json_output import JsonObject
    from ..output.summary import Display
    from ..output.tally import Tally
    from ..request.image_request import OptionValues
    from ..results import Report
    from .batch_folders import SearchResult


GENERATE_HELP = (
    "Make images from a prompt and save them.\n\nExamples:\n\n\b\n"
    '  seedream generate "a red fox in the snow" --provider sandbox\n'
    '  seedream generate "a lighthouse at dusk" -m 4.5 -s 2K -a 16:9 -o lighthouse.jpg\n'
    "  seedream generate -f prompt.txt -n 3 -o shots/ --json\n"
    '  echo "a paper boat" | seedream generate - --dry-run -p ark'
)


@takes("generate")
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What to draw; - reads standard input.", show_default=False)
    ] = None,
    *,
    flag_values: FlagValues,
) -> int:
    """Send one request, or `-n`, and save the images."""
    return _run("generate", prompt, (), flag_values)


EDIT_HELP = (
    "Make images from images and a prompt, and save them.\n\nExamples:\n\n\b\n"
    '  seedream edit "make it night" photo.jpg --provider sandbox\n'
    '  seedream edit "the cat of the first on the sofa of the second" cat.jpg sofa.png -o out/\n'
    '  seedream edit "make it night" *.jpg --each -o night/\n'
    "  seedream edit --layers poster.png -m 5.0-pro -o layers/"
)


@takes("edit")
def edit(
    prompt: Annotated[str | None, typer.Argument(help="What to change; - reads it.", show_default=False)] = None,
    image_words: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Files, URLs, data URIs or -.", show_default=False),
    ] = None,
    *,
    flag_values: FlagValues,
) -> int:
    """Send a request with reference images, or one per image, and save the images."""
    images = tuple(image_words or ())
    # With a prompt file, or without need for a prompt, the first argument is an image.
    if prompt is not None and (
        "prompt_file" in flag_values.lists or (flag_values.switches.get("layers") and not images)
    ):
        images, prompt = (prompt, *images), None
    return _run("edit", prompt, images, flag_values)


RECOVER_HELP = (
    "Save images that were paid for and are not on disk, of single runs here and of batches in their folders. "
    "Costs nothing.\n\nExamples:\n\n\b\n"
    "  seedream recover\n  seedream recover 261121-4f9a2c -o shots/\n"
    "  curl … | seedream recover - -p ark\n  seedream recover --task TASK -p acedata"
)


@takes("recover")
def recover(
    wanted: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID|FILE|-",
            help="Runs, requests or kept replies; none: all.",
            show_default=False,
            autocompletion=offer_ids,
        ),
    ] = None,
    *,
    flag_values: FlagValues,
) -> int:
    """Save the images of stored responses and tasks."""
    from ..engine.recovery import make_recovery, nothing_left, place_all
    from ..output.messages import warning_lines
    from ..output.summary import print_results
    from ..results import Report
    from .batch_folders import search_folders

    environment = flag_values.environment()
    options = flag_values.options(environment)
    ignored = flag_values.ignored(environment)
    if any(problem.severity == "error" for problem in ignored):
        raise InputError(ignored)
    for line in () if options.switches.get("quiet") else warning_lines(ignored):
        process_console().err(line)
    names, tasks = wanted or [], flag_values.lists.get("task", ())
    with _ledger(options, environment) as ledger:
        search = search_folders(names, options, environment, ledger, every=not names and not tasks)
        own = make_recovery(names, options, environment, ledger, tasks=tasks, of_batches=search.names)
        plans = place_all(own, [plan for _, plan in search.found], options)
        for note in () if options.switches.get("quiet") else (*own.notices, *search.notes):
            process_console().err(f"note: {note}")
        for line in search.skipped:
            process_console().err(f"error: {line}")
        parts = [_Part(plans[0], ledger)]
        parts += [_Part(plan, None, folder) for plan, (folder, _) in zip(plans[1:], search.found, strict=True)]
        if any(part.plan.jobs or part.plan.left for part in parts):
            return _execute(parts, options, flag_values, environment, search)
        if options.switches.get("json", False):
            print_results(Report("recover", (), _as_warnings(search)), process_console(), "json", quiet=True)
        process_console().err(nothing_left(ledger, is_all=not search.skipped))
        return search.trouble or search.busy


def _as_warnings(search: SearchResult | None) -> tuple[Problem, ...]:
    """The skipped folders, as warnings in the JSON output."""
    return tuple(Problem("folder", line) for line in (search.skipped if search else ()))


def _print_found(parts: Sequence[_Part], report: Report, console: Console) -> None:
    """Print URLs and base64 found in responses whose outcome stays unknown."""
    from ..engine.work import FetchReply
    from .stored_replies import found_lines, key_forms

    kept = {job.id: job.work.path for part in parts for job in part.plan.jobs if isinstance(job.work, FetchReply)}
    ambiguous = [(result, result.kept or kept.get(result.id)) for result in report.jobs if result.status == "unknown"]
    forms = key_forms(read_environ()) if ambiguous else ()
    for line in (line for result, path in ambiguous[:3] if path for line in found_lines(result.id, path, forms)):
        console.err(line)


def _run(command: str, prompt: str | None, images: Sequence[str], flag_values: FlagValues) -> int:
    """Read options and prompts, plan, and show or run the plan."""
    from ..config.prompt_file import read_prompts
    from ..engine.plan import make_plan

    environment = flag_values.environment()
    prompts, problems = read_prompts(prompt, flag_values.lists.get("prompt_file", ()))
    if problems and not prompts:
        # Every further error would be about the missing prompt.
        raise InputError(problems)
    drafted = flag_values.with_images(flag_values.drafted(environment, prompts, problems), images)
    if command == "edit" and not all(options.lists.get("image") for options in drafted):
        hint = 'write seedream edit "PROMPT" IMAGE…; seedream generate works without an image'
        raise InputError([*problems, Problem("image", "there is no image to edit", hint, origin="IMAGE")])
    sends = not any(options.switches.get(name) for options in drafted for name in ("dry_run", "curl", "explain"))
    plan = make_plan(command, drafted, environment, problems=problems, sends=sends)
    if not sends:
        return _show(plan, drafted[0], environment)
    with _ledger(drafted[0], environment) as ledger:
        if ledger is not None:
            plan = _with_orphans(_with_earlier(plan, drafted[0], ledger), drafted[0], environment, ledger)
        elif drafted[0].switches.get("reuse"):
            hint = "leave out one of the two"
            raise InputError([Problem("reuse", "there is nothing to look earlier requests up in: no ledger", hint)])
        return _execute([_Part(plan, ledger)], drafted[0], flag_values, environment)


def _with_earlier(plan: Plan, options: OptionValues, ledger: Ledger) -> Plan:
    """The plan with `--reuse` applied, else with notices of equal earlier requests."""
    from ..engine.reuse import earlier_notices, reuse

    if options.switches.get("reuse"):
        return reuse(plan, ledger)
    return replace(plan, notices=(*plan.notices, *earlier_notices(plan, ledger)))


def _with_orphans(plan: Plan, options: OptionValues, environment: Environment, ledger: Ledger) -> Plan:
    """The plan with jobs that download what a dead run paid for."""
    from ..engine.recovery import orphan_jobs

    first = len(plan.jobs)
    jobs = orphan_jobs(options, environment, ledger)
    return replace(plan, extra=tuple(replace(job, index=first + number) for number, job in enumerate(jobs)))


@contextlib.contextmanager
def _ledger(options: OptionValues, environment: Environment) -> Iterator[Ledger | None]:
    """The user's ledger, or None with --no-ledger."""
    if not options.switches.get("ledger", environment.settings.ledger_enabled):
        yield None
        return
    with open_ledger_here(environment, goes_without=True) as ledger:
        yield ledger


@dataclass(frozen=True)
class _Part:
    """A plan and its ledger: the user's, or that of the batch in `folder`."""

    plan: Plan
    ledger: Ledger | None
    folder: Path | None = None


def _execute(
    parts: Sequence[_Part],
    options: OptionValues,
    flag_values: FlagValues,
    environment: Environment,
    search: SearchResult | None = None,
) -> int:
    """Run plans one after the other and print their results as one report."""
    from ..config.environment import prepare_state
    from ..engine.run import release
    from ..output.messages import warning_lines
    from ..output.progress import PrintingSink
    from ..output.summary import print_results
    from ..results import Report

    quiet, json = options.switches.get("quiet", False), options.switches.get("json", False)
    console = process_console()
    first, *_ = parts
    if first.plan.command != "recover":
        for line in (
            () if quiet else (*(f"note: {note}" for note in first.plan.notices), *warning_lines(first.plan.warnings))
        ):
            console.err(line)
    jobs = [job for part in parts for job in part.plan.jobs]
    to_stdout, download = any(job.output.stdout for job in jobs), all(job.download for job in jobs)
    if to_stdout and (json or console.stdout_is_terminal):
        what = "is taken by --json" if json else "is a terminal"
        raise InputError([Problem("output", f"standard output {what}", "give a file or a folder with -o")])
    if to_stdout and console.stdout_closed:
        raise FileError("standard output is closed; nothing was sent", hint="give a file or a folder with -o")
    state = prepare_state(environment.state_folder)
    _remember_addresses(first.plan, environment)
    mode = "json" if json else "none" if to_stdout else "paths" if download else "urls"
    reports, printed = list[tuple[_Part, Report]](), Counter[str]()

    def printing(display: Display) -> Display:
        return PrintingSink(display, console, cast("Any", mode), printed, {job.index for job in jobs})

    for part in parts:
        if part.plan.jobs and not (reports and reports[-1][1].signal_number):
            try:
                done = _run_part(part, options, flag_values, environment, console=console, printing=printing)
                reports.append((part, done))
            except SeedreamError as error:
                # Go on: the results of the others are reported too.
                if part.folder is None or search is None:
                    raise
                search.skip(part.folder, error)
                console.err(f"error: {search.skipped[-1]}")
    report = Report(
        first.plan.command,
        (*(job for _, one in reports for job in one.jobs), *(result for part in parts for result in part.plan.left)),
        (*(warning for _, one in reports for warning in one.warnings), *_as_warnings(search)),
        sum(one.elapsed_s for _, one in reports),
        next((one.signal_number for _, one in reports if one.signal_number), None),
    )
    print_results(report, console, cast("Any", mode), quiet=quiet, warned=bool(jobs), printed=printed)
    if report.command == "recover":
        _print_found(parts, report, console)
    for part, one in () if download or console.stdout_closed else reports:
        release(one, part.folder / BATCH_HOME if part.folder else state)
    return report.exit_code or (search.trouble if search else 0) or (search.busy if search and not report.jobs else 0)


def _run_part(
    part: _Part,
    options: OptionValues,
    flag_values: FlagValues,
    environment: Environment,
    *,
    console: Console,
    printing: Callable[[Display], Display],
) -> Report:
    """Run one plan, `printing` each image at once; for a batch hold its lock and update its results file."""
    from ..engine.run import run_plan
    from ..output.progress import is_live, make_sink
    from .batch_folders import lock_and_open

    verbosity = flag_values.verbosity_of(options)
    display_verbosity = -1 if options.switches.get("quiet", False) else verbosity
    kind = cast("Any", options.values.get("progress", "auto"))
    tally = _tally(part) if is_live(kind, console, verbosity=display_verbosity) else None
    sink = printing(make_sink(kind, console, verbosity=display_verbosity, tally=tally))

    def emit(chunk: bytes) -> bool:
        console.out_bytes(chunk)
        if console.trouble:
            raise OutputError(f"standard output cannot be written: {console.trouble}")
        return not console.stdout_closed

    log = (lambda line: console.err(f"wire: {line}")) if verbosity > 1 else None
    state = part.folder / BATCH_HOME if part.folder else environment.state_folder
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(lock_and_open(part.folder, environment)) if part.folder else part.ledger
        try:
            report = run_plan(part.plan, sink, state, ledger, home=part.folder, emit=emit, log=log)
        finally:
            sink.close()
        if part.folder and ledger:
            _refresh_results(part.folder, ledger, console)
    return report


def _tally(part: _Part) -> Tally:
    """What a live display counts with: the most that the run can cost, and how long its models took before."""
    from ..engine.work import Send
    from ..output.json_output import add_costs
    from ..output.tally import Tally

    jobs = part.plan.jobs
    costs = [job.price(job.request.images_at_most) for job in jobs if isinstance(job.work, Send)]
    most, own = None if None in costs else add_costs([one for one in costs if one]), {job.index for job in jobs}
    return Tally(most=most, usual=_usual_times(part.ledger), is_own=own.__contains__)


_LOOKED_AT = 50


def _usual_times(ledger: Ledger | None) -> dict[str, float]:
    """How many seconds each model took for the last requests: the median."""
    took: dict[str, list[float]] = {}
    for entry in ledger.history(limit=_LOOKED_AT) if ledger else ():
        if entry.sent_at and entry.answered_at and entry.status == "succeeded":
            took.setdefault(entry.model, []).append((entry.answered_at - entry.sent_at).total_seconds())
    return {model: sorted(times)[len(times) // 2] for model, times in took.items()}


def _refresh_results(folder: Path, ledger: Ledger, console: Console) -> None:
    """Update a batch's results file; a failure is only a note, since no image is lost by it."""
    from ..batch.shards import refresh_results

    place = folder / "results.csv"
    try:
        if not refresh_results(folder, ledger):
            console.err(f"note: {place} is not of this batch's last table; the same `seedream batch` writes it anew")
    except (FileError, InputError) as error:
        console.err(f"note: {error.message}; the same `seedream batch` writes it anew")


def _remember_addresses(plan: Plan, environment: Environment) -> None:
    """Record the base URLs that the user gave, so that a later run may poll tasks there."""
    from ..config.credentials import remember_address

    for one in plan.drafted if plan.command != "recover" else ():
        is_typed = one.options.origins.get("base_url", "").startswith(("--", "$"))
        if is_typed and one.route.key is not None and one.route.spec.has_tasks:
            remember_address(one.route.spec, one.route.base_url, environment)


def _show(plan: Plan, options: OptionValues, environment: Environment) -> int:
    """Print what would be sent: the body, a curl command, or how each option is treated."""
    from ..output import dry_run
    from ..output.json_output import error_object, print_json
    from ..output.messages import warning_lines
    from ..output.summary import print_error

    console = process_console()
    show = _explain if options.switches.get("explain") else _curl if options.switches.get("curl") else _dry_run
    json = options.switches.get("json", False) and show is not _curl
    objects = [show(planned, plan.command, None if json else console) for planned in plan.drafted]
    stop = _foresee(plan, environment) if show is _dry_run else None
    if json:
        shown = dry_run.combined_object([one for one in objects if one is not None], plan.warnings)
        print_json(shown if stop is None else {**shown, "error": error_object(stop)}, console)
    for line in (*(f"note: {note}" for note in plan.notices), *warning_lines(plan.warnings)):
        console.err(line)
    if stop is not None:
        print_error(stop, console)
    return 0 if stop is None else stop.exit_code


def _foresee(plan: Plan, environment: Environment) -> SeedreamError | None:
    """The budget error that a run of the plan would end with; None for none."""
    if not plan.caps.any:
        return None
    from ..engine.foresight import foresee

    with contextlib.nullcontext() if plan.caps.daily is None else open_ledger_for_reading(environment) as day:
        return foresee(plan, day)


def _explain(planned: PlannedRequest, command: str, console: Console | None) -> JsonObject | None:
    """Print how each option is treated, or return it as an object."""
    from ..engine.explain import explain
    from ..output import dry_run

    rows = explain(planned)
    if console is None:
        return dry_run.explain_object(rows, command=command, provider=planned.route.spec.name)
    dry_run.print_explained(rows, console)
    return None


def _curl(planned: PlannedRequest, command: str, console: Console | None) -> None:  # noqa: ARG001 (one form for three)
    """Print the request as a curl command."""
    from ..output import dry_run

    call = planned.route.dialect.submit(planned.jobs[0].request)
    variable = next(iter(planned.route.spec.key_variables), "SEEDREAM_API_KEY")
    if console is not None:
        url = planned.route.base_url + call.path
        console.out_exactly(dry_run.curl_command(url, call.json or {}, variable, call.accept))


def _dry_run(planned: PlannedRequest, command: str, console: Console | None) -> JsonObject | None:
    """Print body, URL, file names and cost, or return them as an object."""
    from ..engine.explain import job_names
    from ..output import dry_run
    from ..output.json_output import add_costs

    job = planned.jobs[0]
    call = planned.route.dialect.submit(job.request)
    body, url = call.json or {}, planned.route.base_url + call.path
    costs = [one.price(one.request.images_at_most) for one in planned.jobs]
    names, cost = job_names(planned.jobs), None if None in costs else add_costs([one for one in costs if one])
    if console is None:
        return dry_run.plan_object(body, names, cost, url, command=command, provider=planned.route.spec.name)
    dry_run.print_plan(body, names, cost, url, console)
    return None
