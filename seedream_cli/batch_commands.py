"""`seedream batch`: a table in, a folder of pictures out."""

from __future__ import annotations

import contextlib
import datetime as dt
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .errors import FileError, InputError, Problem, SeedreamError
from .flags import BATCH_FLAGS, RUN_KEYS, Chosen, options, takes
from .process import BATCH_HOME, crash_step, open_ledger_here, process_streams

if TYPE_CHECKING:
    from .batch import Batch, Order, Sheet, Survey, Tracker
    from .inputs import PromptText
    from .ledger import Forecast, Ledger
    from .request import Draft
    from .results import BatchReport, JobResult
    from .settings import Surroundings
    from .streams import Streams
    from .tables import Columns, Findings, Row, Table

HELP = (
    "Make the pictures of a table: CSV, TSV or JSON Lines, a row a request. The same command goes on where it stopped."
    "\n\nExamples:\n\n\b\n"
    "  seedream batch shots.csv --provider sandbox\n"
    '  seedream batch shots.csv --prompt "{animal} in {place}, watercolour" -p ark -o shots/\n'
    "  seedream batch shots.csv --dry-run\n"
    "  seedream batch shots.csv --only failed --concurrency 4 --max-cost 5\n"
    "  seedream batch shots.csv --shard 2/4\n"
    "  seedream batch shots.csv --merge shots-1-of-4 shots-2-of-4 shots-3-of-4 shots-4-of-4"
)


@takes(BATCH_FLAGS)
def batch(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="The table; - reads it from standard input.")],
    folders: Annotated[
        list[str] | None, typer.Argument(metavar="[DIR]...", help="With --merge: the shards.", show_default=False)
    ] = None,
    *,
    chosen: Chosen,
) -> int:
    """Every row of a table that is not done yet, to files."""
    surroundings = chosen.surroundings()
    if folders and not chosen.switches.get("merge"):
        raise InputError([Problem("table", "a batch takes one table", "--merge joins the folders of shards")])
    with contextlib.ExitStack() as stack:
        desk = _open(stack, table, chosen, surroundings)
        if chosen.switches.get("merge"):
            return _merge(stack, desk, [Path(folder) for folder in folders or ()])
        if not desk.sends:
            return _preview(stack, desk)
        return _run(stack, desk)


@dataclass(frozen=True)
class _Desk:
    """What a run of the command works with."""

    chosen: Chosen
    surroundings: Surroundings
    streams: Streams
    sheet: Sheet
    sends: bool

    @property
    def draft(self) -> Draft:
        """The options of the run."""
        return self.sheet.base

    @property
    def order(self) -> Order:
        """The options of the batch."""
        return self.sheet.order

    @property
    def is_quiet(self) -> bool:
        """With -q."""
        return self.draft.switches.get("quiet", False)

    @property
    def is_json(self) -> bool:
        """With --json."""
        return self.draft.switches.get("json", False)

    @property
    def is_watched(self) -> bool:
        """Whether somebody sees standard error, even on a terminal that can do nothing but print."""
        stream = self.streams.stderr
        return stream is not None and not stream.closed and stream.isatty()

    def say(self, lines: Sequence[str]) -> None:
        """Lines for the user, unless they are not wanted."""
        for line in () if self.is_quiet else lines:
            self.streams.err(line)


# --- the table ------------------------------------------------------------------------------------------------------


def _open(stack: contextlib.ExitStack, name: str, chosen: Chosen, surroundings: Surroundings) -> _Desk:
    """The table, found sound. Raises `InputError` with all that is wrong; nothing was sent or written by then."""
    from .batch import Sheet, read_order
    from .ledger import hold_batch
    from .plan import plan_caps
    from .report import warning_lines
    from .tables import check_results, open_table, plan_columns

    table = stack.enter_context(open_table(name))
    problems = list(chosen.ignored(surroundings))
    prompt = _read_template(chosen, problems)
    variables, wrong = chosen.variables()
    problems += wrong
    base = _base_draft(chosen, surroundings, prompt)
    columns, found = plan_columns(
        table.headings,
        options(),
        run_level=RUN_KEYS,
        maps=chosen.lists.get("map", ()),
        template=chosen.values.get("prompt_template", prompt.text if prompt else None),
        variables={**(prompt.variables if prompt else {}), **variables},
        needs_prompt=not base.switches.get("layers"),
    )
    problems += found
    order = read_order(base, table, surroundings, problems)
    plan_caps(base, surroundings, problems)
    problems += check_results(order.results, table)
    problems = [_in_users_words(problem, table, columns) for problem in problems]
    if any(problem.severity == "error" for problem in problems):
        raise InputError([problem for problem in problems if problem.severity == "error"])
    base = replace(base, values={**base.values, "output": f"{order.folder}/"})
    sends = not any(chosen.switches.get(switch) for switch in ("dry_run", "explain_stale", "merge"))
    sends = sends and not base.switches.get("dry_run")
    if (sends or chosen.switches.get("merge")) and order.home.is_dir():
        # Somebody else may be at work: that is said before a large table is read.
        stack.enter_context(hold_batch(order.home))
    sheet = Sheet(table, columns, base, order, surroundings, sends)
    findings = sheet.check()
    desk = _Desk(chosen, surroundings, process_streams(surroundings), sheet, sends)
    findings = replace(
        findings,
        errors=tuple(_in_users_words(problem, table, columns) for problem in findings.errors),
        warnings=tuple(_in_users_words(problem, table, columns) for problem in findings.warnings),
    )
    _refuse(findings)
    if sheet.trouble:
        raise sheet.trouble
    more = [f"and {findings.more_warnings} more warnings"] if findings.more_warnings else []
    warnings = (*(p for p in problems if p.severity == "warning"), *findings.warnings)
    notes = (*sheet.notices, *_unused(columns, base, chosen))
    desk.say([*(f"note: {note}" for note in notes), *warning_lines(warnings), *more])
    if (sends or chosen.switches.get("merge")) and not order.home.is_dir():
        stack.enter_context(_new_home(order))
    return desk


def _read_template(chosen: Chosen, problems: list[Problem]) -> PromptText | None:
    """The prompt template of a file, with the options that stand above it."""
    from .inputs import read_prompts

    files = chosen.lists.get("prompt_file", ())
    if len(files) > 1 or (files and "prompt_template" in chosen.values):
        problems.append(Problem("prompt", "the prompt was given twice", "give --prompt or one --prompt-file"))
        return None
    prompts, wrong = read_prompts(None, files, options())
    problems += wrong
    return prompts[0] if prompts else None


def _base_draft(chosen: Chosen, surroundings: Surroundings, prompt: PromptText | None) -> Draft:
    """The options that hold for every row where it sets nothing."""
    draft = chosen.draft(surroundings, prompt)
    values = {key: value for key, value in draft.values.items() if key not in {"prompt", "prompt_template"}}
    return replace(draft, values=values)


_NAMED = {".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json"}
"""Suffixes by which a place in a file is known to be one in a table; of other files it must be said."""


def _in_users_words(problem: Problem, table: Table, columns: Columns) -> Problem:
    """A problem of the table with the column as it is called there, whatever option it sets."""
    if not problem.origin.startswith(f"{table.name}:"):
        return problem
    named = [column.name for column in columns.columns if column.key == problem.field]
    name = named[0] if len(named) == 1 else problem.field
    unit = "key" if table.format.kind == "jsonl" else "column"
    is_told = not name or Path(table.name).suffix.lower() in _NAMED
    return replace(problem, field=name, origin=problem.origin if is_told else f"{problem.origin}, {unit} {name}")


def _unused(columns: Columns, base: Draft, chosen: Chosen) -> list[str]:
    """A note on columns that set nothing and stand in no template: one of them may be an option, misspelt."""
    if "name" in columns.keys:
        # Any cell of that column may be a template with any column in it.
        return []
    mapped = {pair.rpartition("=")[0].strip() for pair in chosen.lists.get("map", ())}
    used = base.values.get("name", "")
    idle = [name for name in columns.unused if name and name not in mapped and f"{{{name}" not in used]
    shown = ", ".join(idle[:_IDLE_MOST]) + (f" and {len(idle) - _IDLE_MOST} more" if len(idle) > _IDLE_MOST else "")
    return [f"columns that set nothing and stand in no template: {shown}"] if idle else []


_IDLE_MOST = 8


def _refuse(findings: Findings) -> None:
    """Raise all that is wrong with the table."""
    if not findings.errors:
        return
    more = [Problem("", f"and {findings.more_errors} more problems like these")] if findings.more_errors else []
    raise InputError([*findings.errors, *more])


def _new_home(order: Order) -> contextlib.AbstractContextManager[None]:
    """The batch's folder, made, and held until the end."""
    from .ledger import hold_batch
    from .store import Target

    Target(order.folder, "rename", 1).prepare()
    return hold_batch(order.home)


# --- a preview ------------------------------------------------------------------------------------------------------


def _preview(stack: contextlib.ExitStack, desk: _Desk) -> int:
    """What a run would do, on a copy of the batch's ledger: nothing is sent, and nothing is written."""
    from .batch import Batch, explain_stale
    from .envelope import print_json
    from .ledger import open_ledger

    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    now = _now
    real = desk.order.home / "ledger.db"
    if real.is_file():
        with open_ledger(real, now=now) as ledger:
            ledger.copy_to(scratch / "ledger.db")
    ledger = stack.enter_context(open_ledger(scratch / "ledger.db", now=now))
    run = stack.enter_context(ledger.run("preview", "batch"))
    batch = Batch(desk.sheet, ledger, run)
    batch.enter()
    survey = batch.survey()
    if desk.is_json:
        print_json(_plan_object(desk, survey), desk.streams)
    for row, why in explain_stale(batch) if desk.chosen.switches.get("explain_stale") else ():
        desk.streams.out(f"{row.origin}: row {row.number}{f' ({row.id})' if row.id else ''}: {why}")
    for line in _plan_lines(desk, survey):
        desk.streams.err(line)
    return 0


def _now() -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC)


def _plan_object(desk: _Desk, survey: Survey) -> dict[str, Any]:
    from .envelope import SCHEMA

    forecast = survey.forecast
    cost = None if forecast.unpriced else {"amount": round(forecast.micro / 1e6, 6), "currency": "USD"}
    return {
        "schema": SCHEMA,
        "type": "plan",
        "command": "batch",
        "status": "planned",
        "rows": survey.rows,
        "running": survey.running,
        "requests": forecast.requests,
        "images": forecast.pictures,
        "fetched": survey.fetched,
        "cost": cost,
        "seconds": round(survey.seconds),
        "output": str(desk.order.folder),
    }


def _plan_lines(desk: _Desk, survey: Survey) -> list[str]:
    """Rows, pictures at most, worst cost, and time at the present pace."""
    from .text import count_words, span_words

    forecast, due = survey.forecast, survey.due
    words = {"done": "done", "left": "left alone", "failed": "failed", "unknown": "of unknown outcome"}
    told = [f"{due[deed]} {word}" for deed, word in words.items() if due[cast("Any", deed)]]  # type: ignore[index]
    told += [f"{due['missing']} whose files are gone for good"] if due["missing"] else []
    what = f"{desk.sheet.table.name}: {count_words(survey.rows, 'row')}"
    lines = [", ".join([what, *told, f"{survey.running} to run"])]
    if survey.fetched:
        lines.append(f"{count_words(survey.fetched, 'paid request')} to fetch, free of charge")
    if forecast.requests:
        many = min(desk.order.concurrency, forecast.requests)
        lines.append(
            f"up to {count_words(forecast.pictures, 'picture')}, {_cost_words(forecast)}, "
            f"about {span_words(survey.seconds)} with {many} at once, into {desk.order.folder}/"
        )
    if due["missing"]:
        lines.append("--only missing makes, and pays for, those whose files are gone")
    if due["unknown"]:
        lines.append("--only unknown --retry-ambiguous sends those of unknown outcome again, which may cost twice")
    return lines


def _cost_words(forecast: Forecast) -> str:
    """The most that the requests may cost, and how many of them have no known price."""
    from .results import Cost
    from .text import count_words, money_words

    cost = f"at most {money_words(Cost(forecast.micro / 1e6, 'USD', ''))}"
    if not forecast.unpriced:
        return cost
    unknown = f"{count_words(forecast.unpriced, 'request')} of unknown price"
    return f"{cost} and {unknown}" if forecast.micro else unknown


# --- a run ----------------------------------------------------------------------------------------------------------


def _run(stack: contextlib.ExitStack, desk: _Desk) -> int:
    """Enter the table, ask where it is costly, run what is due, and write the results."""
    from . import store
    from .batch import Batch
    from .plan import run_id

    order = desk.order
    store.Target(order.folder, "rename", 1).prepare()
    _prepare_results(order)
    store.sweep(order.folder)
    wants_ledger = desk.draft.switches.get("ledger", desk.surroundings.settings.ledger_enabled)
    day = stack.enter_context(open_ledger_here(desk.surroundings)) if wants_ledger else None
    ledger = stack.enter_context(open_ledger_here(desk.surroundings, home=order.home))
    name = run_id()
    run = stack.enter_context(ledger.run(name, "batch", folder=str(order.folder.absolute())))
    if day is not None:
        # `history` finds the batch of a request's id by this.
        own = stack.enter_context(day.run(name, "batch", folder=str(order.folder.absolute())))
        stack.callback(own.finish, None)
    batch = Batch(desk.sheet, ledger, run)
    batch.enter()
    survey = batch.survey()
    desk.say(_plan_lines(desk, survey))
    if not _agreed(desk, survey):
        desk.streams.err("stopped: nothing was sent")
        return 130
    tracker, report = _work(desk, batch, survey, day)
    return _close(desk, batch, tracker, report)


def _prepare_results(order: Order) -> None:
    """The results are written when all is paid: that they can be is found out before."""
    from .store import Target

    try:
        Target(order.results.parent, "rename", 1).prepare()
    except FileError as error:
        raise FileError(error.message, hint="name another place with --results") from error


def _agreed(desk: _Desk, survey: Survey) -> bool:
    """Whether the user wants to pay as much: asked on a terminal, above [batch] confirm_above."""
    bound, forecast = desk.surroundings.settings.confirm_above, survey.forecast
    is_dear = bound is not None and (forecast.micro > bound * 1e6 or forecast.unpriced)
    if not is_dear or desk.chosen.switches.get("yes") or not desk.is_watched:
        return True
    if not desk.streams.stdin_is_terminal:
        if desk.sheet.table.name != "standard input":
            return True
        message = f"{_cost_words(forecast)} is above [batch] confirm_above, and standard input is the table"
        raise InputError([Problem("yes", message, "add --yes, or name a file, so that you can be asked")])
    try:
        return typer.confirm(f"Go on, for {_cost_words(forecast)}?", err=True)
    except typer.Abort:
        # Ctrl-C and Ctrl-D leave the cursor behind the question.
        desk.streams.err("")
        return False


def _work(desk: _Desk, batch: Batch, survey: Survey, day: Ledger | None) -> tuple[Tracker, BatchReport]:
    """Run what is due in front of the user."""
    from .batch import Tracker
    from .books import Books
    from .engine import Flow, HurriedClock, Outlets, conduct
    from .live import make_batch_sink
    from .plan import plan_caps

    order, streams, draft = desk.order, desk.streams, desk.draft
    verbosity = -1 if desk.is_quiet else desk.chosen.verbosity
    display = make_batch_sink(cast("Any", draft.values.get("progress", "auto")), streams, verbosity=verbosity)
    tracker = Tracker(display, _teller(desk))
    sheet, fault = desk.sheet, desk.surroundings.fault
    flow = Flow(
        batch.jobs(tracker.expect),
        survey.forecast.requests + survey.fetched,
        survey.forecast.pictures,
        ", ".join(sorted({route.spec.name for route in sheet.routes})),
        ", ".join(sheet.models),
        order.concurrency,
        order.max_failures,
        order.max_unknown,
    )
    log = (lambda line: streams.err(f"wire: {line}")) if desk.chosen.verbosity > 1 else None
    outlets = Outlets(tracker, order.home, batch.ledger, None, log, step=crash_step(fault))
    if fault == "no-wait":
        outlets = replace(outlets, clock=HurriedClock())
    books = Books(batch.ledger, batch.run, plan_caps(draft, desk.surroundings, []), home=order.folder, day=day)
    try:
        ending = conduct(flow, outlets, books)
    finally:
        display.close()
    return tracker, tracker.report(survey, ending)


def _teller(desk: _Desk) -> Any:
    """Prints a row's results as it ends: an object, its paths, or its links."""
    from . import spool
    from .envelope import Row as Place
    from .envelope import print_json, row_object
    from .report import print_places

    streams, links = desk.streams, desk.draft.switches.get("no_download", False)

    def tell(row: Row, results: Sequence[JobResult]) -> None:
        if desk.is_json:
            print_json(row_object(results, Place(row.number, row.line, row.id or None)), streams)
        else:
            for result in results:
                print_places(result.images, streams, "urls" if links else "paths")
        for result in results if links and not streams.stdout_closed else ():
            spool.forget(desk.order.home / "replies", result.id)

    return tell


def _close(desk: _Desk, batch: Batch, tracker: Tracker, report: BatchReport) -> int:
    """Write the results, and say what became of the table."""
    from .envelope import batch_object, print_json
    from .report import batch_lines, error_lines

    code, trouble = report.exit_code, None
    try:
        batch.write_results()
    except (FileError, InputError) as error:
        trouble = error
    batch.run.finish(code)
    if desk.is_json:
        print_json(batch_object(report), desk.streams)
    lines = batch_lines(report, tracker.labels)
    for line in lines if not desk.is_quiet or code else ():
        desk.streams.err(line)
    if trouble is None:
        desk.say([f"results: {desk.order.results}"])
        return code
    for line in error_lines(cast("SeedreamError", trouble)):
        desk.streams.err(line)
    return code or trouble.exit_code


# --- shards ---------------------------------------------------------------------------------------------------------


def _merge(stack: contextlib.ExitStack, desk: _Desk, folders: Sequence[Path]) -> int:
    """Join the folders of shards into one, which the same table then goes on with."""
    from .batch import Batch
    from .ledger import hold_batch
    from .plan import run_id
    from .shards import absorb

    order = desk.order
    wrong = [folder for folder in folders if not (folder / BATCH_HOME / "ledger.db").is_file()]
    if wrong or not folders:
        hint = "name the output folders of the shards behind the table"
        found = [Problem("merge", f"{folder} is no folder of a batch", hint, origin="--merge") for folder in wrong]
        raise InputError(found or [Problem("merge", "there is nothing to merge", hint, origin="--merge")])
    ledger = stack.enter_context(open_ledger_here(desk.surroundings, home=order.home))
    for folder in folders:
        if folder.resolve() == order.folder.resolve():
            continue
        home = folder / BATCH_HOME
        with hold_batch(home), open_ledger_here(desk.surroundings, home=home) as other:
            rows, pictures = absorb(ledger, other, folder, order.folder)
        desk.say([f"{folder}: {rows} requests, {pictures} pictures"])
    run = stack.enter_context(ledger.run(run_id(), "merge", folder=str(order.folder.absolute())))
    batch = Batch(desk.sheet, ledger, run)
    batch.enter()
    survey = batch.survey()
    batch.write_results()
    run.finish(0)
    for line in (*_plan_lines(desk, survey), f"results: {order.results}"):
        desk.say([line])
    return 0 if survey.due["done"] == survey.rows else 9
