"""`seedream batch`: a table in, a folder of pictures out."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .errors import PARTIAL, FileError, InputError, Problem, SeedreamError
from .files import ForeignError
from .flags import BATCH_FLAGS, RUN_KEYS, Chosen, options, takes
from .process import BATCH_HOME, crash_step, ledger_as_it_is, open_ledger_here, process_streams

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
    "Make the pictures of a table: CSV, TSV or JSON Lines, a row a request, or plain text, a prompt a line. The same "
    "command goes on where it stopped."
    "\n\nExamples:\n\n\b\n"
    "  seedream batch shots.csv --provider sandbox\n"
    '  seedream batch shots.csv --prompt "{animal} in {place}, watercolour" -p ark -o shots/\n'
    "  seedream batch shots.csv --dry-run\n"
    "  seedream batch shots.csv --only failed --concurrency 4 --max-cost 5\n"
    "  seedream batch shots.csv --shard 2/4\n"
    "  seedream batch --merge shots-1-of-4 shots-2-of-4 shots-3-of-4 shots-4-of-4"
)


@takes(BATCH_FLAGS)
def batch(
    table: Annotated[
        str | None,
        typer.Argument(metavar="TABLE", help="The table; - reads it from standard input.", show_default=False),
    ] = None,
    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DIR]...", help="With --merge: the folders of the shards.", show_default=False),
    ] = None,
    *,
    chosen: Chosen,
) -> int:
    """Every row of a table that is not done yet, to files."""
    surroundings = chosen.surroundings()
    places = [Path(folder).expanduser() for folder in folders or ()]
    merges = chosen.switches.get("merge", False)
    _check_arguments(chosen, table, places)
    with contextlib.ExitStack() as stack:
        if merges and (table is None or Path(table).expanduser().is_dir()):
            return _merge_alone(stack, chosen, surroundings, [*([Path(table).expanduser()] if table else []), *places])
        with _saying_unsent(surroundings):
            desk = _open(stack, table or "", chosen, surroundings)
        if merges:
            return _merge(stack, desk, places)
        if not desk.sends:
            return _preview(stack, desk)
        return _run(stack, desk)


def _check_arguments(chosen: Chosen, table: str | None, folders: Sequence[Path]) -> None:
    """One table, or with --merge folders too; a merge has no preview."""
    if not chosen.switches.get("merge"):
        if table is None:
            hint = "name a table, or - for standard input; seedream batch --help shows examples"
            raise InputError([Problem("table", "there is no table", hint)], kind="usage")
        if folders:
            raise InputError([Problem("table", "a batch takes one table", "--merge joins the folders of shards")])
        return
    for switch, name in (("dry_run", "--dry-run"), ("explain_stale", "--explain-stale")):
        if chosen.switches.get(switch):
            message = f"{name} shows what would be sent, and --merge sends nothing"
            raise InputError([Problem("merge", message, "leave one out", origin="--merge")])


@contextlib.contextmanager
def _saying_unsent(surroundings: Surroundings) -> Iterator[None]:
    """Ctrl-C while a large table is being read: whoever pressed it wants to know what that means."""
    try:
        yield
    except KeyboardInterrupt:
        process_streams(surroundings).err(_UNSENT)
        raise


_UNSENT = "stopped: nothing was sent"


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
    from .plan import plan_caps
    from .report import warning_lines
    from .tables import check_results, foreign_results, open_table, plan_columns

    table = stack.enter_context(open_table(name, is_lines=chosen.switches.get("lines", False)))
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
    problems += found + _lone_braces(chosen)
    order = read_order(base, table, surroundings, problems)
    plan_caps(base, surroundings, problems)
    wrong_place = check_results(order.results, table, None if "results" in base.values else order.folder)
    problems += wrong_place or foreign_results(order.results)
    problems = [_in_users_words(problem, table, columns) for problem in problems]
    if any(problem.severity == "error" for problem in problems):
        raise InputError([problem for problem in problems if problem.severity == "error"])
    base = replace(base, values={**base.values, "output": f"{order.folder}/"})
    sends = not any(chosen.switches.get(switch) for switch in ("dry_run", "explain_stale", "merge"))
    sends = sends and not base.switches.get("dry_run")
    is_held = order.home.is_dir()
    if (sends or chosen.switches.get("merge")) and is_held:
        # Somebody else may be at work: that is said before a large table is read.
        stack.enter_context(_hold(order.home))
    sheet = Sheet(table, columns, base, order, surroundings, sends, pays=not chosen.switches.get("merge", False))
    findings = sheet.check()
    desk = _Desk(chosen, surroundings, process_streams(surroundings), sheet, sends)
    findings = replace(
        findings,
        errors=tuple(_in_users_words(problem, table, columns) for problem in findings.errors),
        warnings=tuple(_in_users_words(problem, table, columns) for problem in findings.warnings),
    )
    taken = _taken(columns)
    if findings.errors:
        # Which columns count as options is what somebody wants to know whose data they are.
        desk.say([f"note: {note}" for note in taken])
    _refuse(findings)
    if sheet.trouble:
        raise sheet.trouble
    more = [f"and {findings.more_warnings} more warnings"] if findings.more_warnings else []
    warnings = (*(p for p in problems if p.severity == "warning"), *findings.warnings)
    notes = (*sheet.notices, *taken, *_unused(columns, base, chosen))
    desk.say([*(f"note: {note}" for note in notes), *warning_lines(warnings), *more])
    if (sends or chosen.switches.get("merge")) and not is_held:
        # Another run may have made the folder since: whether it is there now says nothing of who holds it.
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


def _lone_braces(chosen: Chosen) -> list[Problem]:
    """A brace that opens or closes no column's name is sent as it stands, which is seldom meant."""
    template = chosen.values.get("prompt_template", "")
    if not re.search(r"[{}]", re.sub(r"\{\{|\}\}|\{[^{}\r\n]+\}", "", template)):
        return []
    message, hint = "a brace in the prompt stands alone, and is sent so", "columns are written {column}"
    return [Problem("prompt", message, hint, severity="warning", origin="--prompt")]


def _base_draft(chosen: Chosen, surroundings: Surroundings, prompt: PromptText | None) -> Draft:
    """The options that hold for every row where it sets nothing."""
    draft = chosen.draft(surroundings, prompt)
    values = {key: value for key, value in draft.values.items() if key not in {"prompt", "prompt_template"}}
    return replace(draft, values=values)


_NAMED = {".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json"}
"""Suffixes by which a place in a file is known to be one in a table; of other files it must be said."""


def _in_users_words(problem: Problem, table: Table, columns: Columns) -> Problem:
    """A problem of the table with the column as it is called there, whatever option it sets."""
    if not problem.field or not problem.origin.startswith(f"{table.name}:"):
        # What is wrong with a whole line is no fault of a column's.
        return problem
    named = [column.name for column in columns.columns if column.key == problem.field]
    name = named[0] if len(named) == 1 else problem.field
    unit = "key" if table.format.kind == "jsonl" else "column"
    is_told = not name or Path(table.name).suffix.lower() in _NAMED
    origin = problem.origin if is_told else f"{problem.origin}, {unit} {name}"
    return replace(problem, field=name, origin=origin, hint=_with_way_out(problem, name, columns))


def _with_way_out(problem: Problem, name: str, columns: Columns) -> str:
    """The hint of an error in a column that is an option by its name alone: perhaps it was meant as data."""
    if problem.severity != "error" or name not in columns.taken:
        return problem.hint
    others = [other for other in columns.taken if other != name][:_IDLE_MOST]
    more = f" (taken as options too: {', '.join(_map_words(other) for other in others)})"
    way_out = f"{_map_words(name)} makes a plain variable of the column{more if others else ''}"
    return f"{problem.hint}; {way_out}" if problem.hint else way_out


def _map_words(column: str) -> str:
    """What makes a plain variable of a column."""
    return f"--map {shlex.quote(f'{column}=')}"


def _taken(columns: Columns) -> list[str]:
    """A note on columns that set an option because they are called like one."""
    if not columns.taken:
        return []
    shown = ", ".join(columns.taken[:_IDLE_MOST])
    shown += f" and {len(columns.taken) - _IDLE_MOST} more" if len(columns.taken) > _IDLE_MOST else ""
    what = "columns taken as options" if len(columns.taken) > 1 else "column taken as an option"
    return [f"{what}: {shown} ({_map_words(columns.taken[0])} makes a plain variable of it)"]


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


@contextlib.contextmanager
def _hold(home: Path) -> Iterator[None]:
    """Hold the batch of this folder. A batch needs its ledger, so there is but one way out where it cannot be."""
    from .ledger import hold_batch

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_batch(home))
        except FileError as error:
            if not isinstance(error.__cause__, ForeignError):
                error.hint = "make the place writable, or choose another folder with -o"
            raise
        yield


def _new_home(order: Order) -> contextlib.AbstractContextManager[None]:
    """The batch's folder, made, and held until the end."""
    from .store import Target

    Target(order.folder, "rename", 1).prepare()
    return _hold(order.home)


# --- a preview ------------------------------------------------------------------------------------------------------


def _preview(stack: contextlib.ExitStack, desk: _Desk) -> int:
    """What a run would do, on a copy of the batch's ledger: nothing is sent, and nothing is written."""
    from .batch import Batch, explain_stale
    from .envelope import Row as Place
    from .envelope import error_object, print_json, stale_object
    from .ledger import open_ledger
    from .remains import refuse_remains
    from .report import print_error

    refuse_remains(desk.sheet)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    now = _now
    real = desk.order.home / "ledger.db"
    if os.path.lexists(real):
        with open_ledger(real, now=now, is_shared=True) as ledger:
            ledger.copy_to(scratch / "ledger.db")
    ledger = stack.enter_context(open_ledger(scratch / "ledger.db", now=now))
    run = stack.enter_context(ledger.run("preview", "batch"))
    batch = Batch(desk.sheet, ledger, run)
    batch.enter()
    survey = batch.survey()
    for row, why in explain_stale(batch) if desk.chosen.switches.get("explain_stale") else ():
        if desk.is_json:
            print_json(stale_object(Place(row.number, row.line, row.id or None), why), desk.streams)
        else:
            desk.streams.out(f"{row.origin}: row {row.number}{f' ({row.id})' if row.id else ''}: {why}")
    stop = _foresee(desk, survey, ledger) if desk.draft.switches.get("dry_run") else None
    if desk.is_json:
        shown = _plan_object(desk, survey)
        print_json(shown if stop is None else {**shown, "error": error_object(stop)}, desk.streams)
    for line in (*_plan_lines(desk.sheet, survey), *_left_lines(desk, ledger)):
        desk.streams.err(line)
    if stop is not None:
        print_error(stop, desk.streams)
    return 0 if stop is None else stop.exit_code


def _foresee(desk: _Desk, survey: Survey, ledger: Ledger) -> SeedreamError | None:
    """The budget that a run would come to the end of."""
    from .foresight import foresee_sum
    from .plan import plan_caps

    caps = desk.order.caps(plan_caps(desk.draft, desk.surroundings, []))
    if not caps.any:
        return None
    with contextlib.nullcontext() if caps.daily is None else ledger_as_it_is(desk.surroundings) as day:
        return foresee_sum(survey.forecast.micro, caps, ledger, day)


def _now() -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC)


def _plan_object(desk: _Desk, survey: Survey) -> dict[str, Any]:
    from .envelope import SCHEMA

    forecast = survey.forecast
    cost: dict[str, Any] = {"amount": round(forecast.micro / 1e6, 6), "currency": "USD"}
    cost |= {"note": desk.sheet.price_note} if desk.sheet.price_note else {}
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
        "cost": None if forecast.unpriced else cost,
        "seconds": round(survey.seconds),
        "options": list(desk.sheet.columns.taken),
        "output": str(desk.order.folder),
    }


def _plan_lines(sheet: Sheet, survey: Survey) -> list[str]:
    """Rows, pictures at most, worst cost, and time at the present pace."""
    from .text import count_words, span_words

    forecast, due, order = survey.forecast, survey.due, sheet.order
    words = {"done": "done", "left": "left alone", "failed": "failed", "unknown": "of unknown outcome"}
    told = [f"{due[deed]} {word}" for deed, word in words.items() if due[cast("Any", deed)]]  # type: ignore[index]
    told += [f"{due['missing']} whose files are gone for good"] if due["missing"] else []
    what = f"{sheet.table.name}: {count_words(survey.rows, 'row')}"
    lines = [", ".join([what, *told, f"{survey.running} to run"])]
    if survey.fetched:
        lines.append(f"{count_words(survey.fetched, 'paid request')} to fetch, free of charge")
    if forecast.requests:
        many = min(order.concurrency, forecast.requests)
        lines.append(
            f"up to {count_words(forecast.pictures, 'picture')}, {_cost_words(sheet, forecast)}, "
            f"about {span_words(survey.seconds)} with {many} at once, into {order.folder}/"
        )
    if due["missing"]:
        lines.append("--only missing makes, and pays for, those whose files are gone")
    if due["unknown"]:
        lines.append("--only unknown --retry-ambiguous sends those of unknown outcome again, which may cost twice")
    return lines


def _left_lines(desk: _Desk, ledger: Ledger) -> list[str]:
    """What earlier runs of this folder have spent of `--max-cost`."""
    from .plan import plan_caps
    from .results import Cost
    from .text import count_words, money_words

    caps = desk.order.caps(plan_caps(desk.draft, desk.surroundings, []))
    if caps.batch is None:
        return []
    cap, whose = (caps.batch, "") if caps.part is None else (caps.part, "this shard's part of ")
    spent = ledger.spent(has_row=caps.has_row if caps.part is not None else None)
    if not spent.total and not spent.unpriced:
        return []
    used, left = (money_words(Cost(micro / 1e6, "USD", "")) for micro in (spent.total, max(0, cap - spent.total)))
    rest = f"; {count_words(spent.unpriced, 'request')} of unknown price is not counted" if spent.unpriced else ""
    return [f"{whose}--max-cost: earlier runs of this batch spent, or may have spent, {used}, {left} is left{rest}"]


def _cost_words(sheet: Sheet, forecast: Forecast) -> str:
    """The most that the requests may cost, how far that is known, and how many of them have no known price."""
    from .results import Cost
    from .text import count_words, money_words

    amount = money_words(Cost(forecast.micro / 1e6, "USD", ""))
    cost = f"about {amount} ({sheet.price_note})" if sheet.price_note else f"at most {amount}"
    if not forecast.unpriced:
        return cost
    unknown = f"{count_words(forecast.unpriced, 'request')} of unknown price"
    return f"{cost} and {unknown}" if forecast.micro else f"cost unknown, {unknown}"


# --- a run ----------------------------------------------------------------------------------------------------------


def _run(stack: contextlib.ExitStack, desk: _Desk) -> int:
    """Enter the table, ask where it is costly, run what is due, and write the results."""
    from . import store
    from .batch import Batch
    from .plan import run_id
    from .remains import refuse_remains

    order = desk.order
    refuse_remains(desk.sheet)
    store.Target(order.folder, "rename", 1).prepare()
    stream = _prepare_results(order.results)
    store.sweep(order.folder)
    wants_ledger = desk.draft.switches.get("ledger", desk.surroundings.settings.ledger_enabled)
    day = stack.enter_context(open_ledger_here(desk.surroundings, goes_without=True)) if wants_ledger else None
    ledger = stack.enter_context(open_ledger_here(desk.surroundings, home=order.home))
    name = run_id()
    run = stack.enter_context(ledger.run(name, "batch", folder=str(order.folder.absolute())))
    if day is not None:
        # `history` finds the batch of a request's id by this.
        own = stack.enter_context(day.run(name, "batch", folder=str(order.folder.absolute())))
        stack.callback(own.finish, None)
    batch = Batch(desk.sheet, ledger, run)
    with _saying_unsent(desk.surroundings):
        batch.enter()
        survey = batch.survey()
    desk.say([*_plan_lines(desk.sheet, survey), *_left_lines(desk, ledger)])
    if not _agreed(desk, survey):
        desk.streams.err(_UNSENT)
        return 130
    _remember_addresses(desk)
    tracker, report = _work(desk, batch, survey, day)
    return _close(desk, batch, tracker, report, stream)


def _remember_addresses(desk: _Desk) -> None:
    """Keep in mind which address the user named: a batch's own ledger is not believed where its links may lead."""
    from .credentials import is_same_place, remember_address

    if not desk.draft.origins.get("base_url", "").startswith(("--", "$")):
        return
    for route in desk.sheet.routes:
        if is_same_place(route.base_url, desk.draft.values["base_url"]):
            remember_address(route.spec, route.base_url, desk.surroundings)


def _prepare_results(results: Path) -> int | None:
    """The results are written when all is paid: that they can be is found out before.

    Where they go to no file, such as a pipe, a descriptor to write them to.
    """
    from .files import final_target
    from .tables import open_results

    stream = open_results(results)
    if stream is None:
        _prepare_folder((final_target(results) or results).parent, "--results")
    return stream


def _prepare_folder(folder: Path, option: str) -> None:
    """Make a folder and prove that it can be written; `option` is what it was named by."""
    from .store import Target

    try:
        Target(folder, "rename", 1).prepare()
    except FileError as error:
        raise FileError(error.message, hint=f"name another place with {option}") from error


def _agreed(desk: _Desk, survey: Survey) -> bool:
    """Whether the user wants to pay as much: asked on a terminal, above [batch] confirm_above."""
    bound, forecast = desk.surroundings.settings.confirm_above, survey.forecast
    is_dear = bound is not None and (forecast.micro > bound * 1e6 or forecast.unpriced)
    if not is_dear or desk.chosen.switches.get("yes") or not desk.is_watched:
        return True
    if not desk.streams.stdin_is_terminal:
        if desk.sheet.table.name != "standard input":
            return True
        message = f"{_cost_words(desk.sheet, forecast)} is above [batch] confirm_above, and standard input is the table"
        raise InputError([Problem("yes", message, "add --yes, or name a file, so that you can be asked")])
    try:
        return typer.confirm(f"Go on, for {_cost_words(desk.sheet, forecast)}?", err=True)
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
    caps = order.caps(plan_caps(draft, desk.surroundings, []))
    books = Books(batch.ledger, batch.run, caps, home=order.folder, day=day)
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
            if result.status == "succeeded":
                spool.forget(desk.order.home / "replies", result.id, asides=False)

    return tell


def _close(desk: _Desk, batch: Batch, tracker: Tracker, report: BatchReport, stream: int | None) -> int:
    """Write the results, and say what became of the table."""
    from .envelope import batch_object, print_json
    from .report import batch_lines, error_lines

    code, trouble = report.exit_code, None
    try:
        batch.write_results(stream)
    except (FileError, InputError) as error:
        trouble = error
    batch.run.finish(code)
    if desk.is_json:
        print_json(batch_object(report), desk.streams)
    desk.say(_short_lines(tracker))
    lines = batch_lines(report, tracker.labels)
    for line in lines if not desk.is_quiet or code else ():
        desk.streams.err(line)
    if trouble is None:
        desk.say([f"results: {desk.order.results}"])
        return code
    for line in error_lines(cast("SeedreamError", trouble)):
        desk.streams.err(line)
    return code or trouble.exit_code


def _short_lines(tracker: Tracker) -> list[str]:
    """Rows that got fewer pictures than they asked for."""
    from .report import note_lines
    from .results import Report
    from .text import count_words

    lines = note_lines(Report("batch", tuple(tracker.short)), labels=tracker.labels)
    more = tracker.short_rows - len({tracker.labels[result.index] for result in tracker.short})
    rest = f"note: and {count_words(more, 'more row')} with fewer pictures than asked for"
    return [*lines, rest] if more else lines


# --- shards ---------------------------------------------------------------------------------------------------------


def _merge(stack: contextlib.ExitStack, desk: _Desk, folders: Sequence[Path]) -> int:
    """Join the folders of shards into one, which the same table then goes on with."""
    from .batch import Batch
    from .plan import run_id
    from .shards import absorb, survey_rows

    order = desk.order
    _check_folders(folders)
    stream = _prepare_results(order.results)
    ledger = stack.enter_context(open_ledger_here(desk.surroundings, home=order.home))
    for folder, other in _shard_ledgers(stack, folders, order.folder, desk.surroundings):
        desk.say([_absorbed_words(folder, *absorb(ledger, other, folder, order.folder))])
    run = stack.enter_context(ledger.run(run_id(), "merge", folder=str(order.folder.absolute())))
    batch = Batch(desk.sheet, ledger, run)
    batch.enter()
    survey = batch.survey()
    batch.write_results(stream)
    run.finish(0)
    notes = []
    if survey.running and any(True for _ in ledger.unlisted(run)):
        notes = ["note: the shards have rows that this table, with these options, does not ask for"]
    desk.say([*notes, *_plan_lines(desk.sheet, survey)])
    report = survey_rows(order.folder, ledger, run)
    return _tell_merged(report, order.results, desk.streams, is_quiet=desk.is_quiet, is_json=desk.is_json)


def _merge_alone(stack: contextlib.ExitStack, chosen: Chosen, surroundings: Surroundings, folders: list[Path]) -> int:
    """Join the folders of shards by what they hold, without the table that they came from."""
    from . import shards
    from .ledger import open_ledger
    from .plan import run_id
    from .tables import foreign_results

    draft, streams = chosen.draft(surroundings), process_streams(surroundings)
    is_quiet = draft.switches.get("quiet", False)
    _check_folders(folders)
    folder = _merged_folder(draft, folders)
    results = Path(draft.values.get("results") or folder / "results.csv")
    if problems := foreign_results(results):
        raise InputError(problems)
    others = list(_shard_ledgers(stack, folders, folder, surroundings))
    parts = [shards.open_part(stack, path, other) for path, other in others]
    headings = shards.check_parts(parts)
    _prepare_folder(folder, "--output")
    stream = _prepare_results(results)
    stack.enter_context(_hold(folder / BATCH_HOME))
    ledger = stack.enter_context(open_ledger_here(surroundings, home=folder / BATCH_HOME))
    # What was merged before is a part too, as it was before the others come.
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "ledger.db"
    ledger.copy_to(scratch)
    own = shards.open_part(stack, folder, stack.enter_context(open_ledger(scratch, now=_now)))
    parts.append(shards.without_foreign_columns(own, parts))
    if parts[-1].run is not None:
        headings = shards.check_parts(parts)
    for path, other in others:
        absorbed = _absorbed_words(path, *shards.absorb(ledger, other, path, folder))
        if not is_quiet:
            streams.err(absorbed)
    run = stack.enter_context(ledger.run(run_id(), "merge", folder=str(folder.absolute())))
    shards.list_rows(ledger, run, parts, headings)
    shards.join_results(results, folder, ledger, run, parts=parts, headings=headings, stream=stream)
    run.finish(0)
    for part in parts:
        if part.run is not None and not part.is_current and not is_quiet:
            hint = "their columns are empty in the results; name the table before the folders to fill them"
            streams.err(f"note: {part.folder} has no results of its last run for its rows: {hint}")
    absent = shards.absent_parts(folders, ledger)
    if absent:
        streams.err(f"note: parts that were not named: {', '.join(absent[:_IDLE_MOST])}; their rows are not here")
    code = _tell_merged(
        shards.survey_rows(folder, ledger, run),
        results,
        streams,
        is_quiet=is_quiet,
        is_json=draft.switches.get("json", False),
    )
    return code or (PARTIAL if absent else 0)


def _check_folders(folders: Sequence[Path]) -> None:
    """Refuse what is no batch's folder, before anything is written."""
    hint = "name the output folders of the shards"
    found = [
        Problem("merge", f"{folder} is no folder of a batch", hint, origin="--merge")
        for folder in folders
        if not os.path.lexists(folder / BATCH_HOME / "ledger.db")
    ]
    if found or not folders:
        raise InputError(found or [Problem("merge", "there is nothing to merge", hint, origin="--merge")])


def _merged_folder(draft: Draft, folders: Sequence[Path]) -> Path:
    """Where all goes: the folder given, else the one that the table itself would fill."""
    from .names import scheme_problem
    from .shards import common_folder

    wrong = [scheme_problem(key, draft.values[key]) for key in ("output", "results") if key in draft.values]
    if any(wrong):
        raise InputError([problem for problem in wrong if problem])
    output = draft.values.get("output")
    folder = Path(output).expanduser() if output else common_folder(folders)
    if folder is None:
        hint = "name the folder for all with -o"
        raise InputError([Problem("output", "the names of the folders do not tell where to", hint, origin="--merge")])
    if output == "-" or folder.is_file():
        raise InputError([Problem("output", f"{output} is no folder", "give a folder with -o", origin="-o")])
    return folder


def _shard_ledgers(
    stack: contextlib.ExitStack, folders: Sequence[Path], target: Path, surroundings: Surroundings
) -> Iterator[tuple[Path, Ledger]]:
    """Each shard's ledger, in nobody else's hands; not that of the target, should it be among them."""
    for path in dict.fromkeys(folder.resolve() for folder in folders):
        if path == target.resolve():
            continue
        folder = next(folder for folder in folders if folder.resolve() == path)
        stack.enter_context(_hold(folder / BATCH_HOME))
        yield folder, stack.enter_context(open_ledger_here(surroundings, home=folder / BATCH_HOME))


def _absorbed_words(folder: Path, rows: int, pictures: int, left: int) -> str:
    from .text import count_words

    said = f"{folder}: {count_words(rows, 'new request')}, {count_words(pictures, 'new picture')}"
    why = "no whole pictures, or not in that folder itself"
    return said + (f"; left behind: {count_words(left, 'file')} ({why})" if left else "")


def _tell_merged(report: BatchReport, results: Path, streams: Streams, *, is_quiet: bool, is_json: bool) -> int:
    """Say what became of all rows; 9 where any of them is not done."""
    from .envelope import batch_object, print_json
    from .report import merged_line

    if is_json:
        print_json(batch_object(report), streams)
    for line in () if is_quiet else (merged_line(report), f"results: {results}"):
        streams.err(line)
    return report.exit_code
