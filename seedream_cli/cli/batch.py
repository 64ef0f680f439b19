"""`seedream batch`: makes the images of a table."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import FileError, InputError, Problem, SeedreamError
from .batch_context import (
    _UNSENT,
    _BatchContext,
    _cost_words,
    _now,
    _open,
    _plan_lines,
    _prepare_results,
    _report_unsent,
)
from .context import open_ledger_for_reading, open_ledger_here
from .flags import FlagValues, takes
from .merge import _merge, _merge_alone

if TYPE_CHECKING:
    from ..batch.run import Batch, Preview
    from ..batch.table import Row
    from ..batch.tracker import Tracker
    from ..ledger.ledger import Ledger
    from ..ledger.runs import Run
    from ..results import BatchReport, JobResult


HELP = (
    "Make the images of a table: CSV, TSV or JSON Lines, a row a request, or plain text, a prompt a line. The same "
    "command goes on where it stopped."
    "\n\nExamples:\n\n\b\n"
    "  seedream batch shots.csv --provider sandbox\n"
    '  seedream batch shots.csv --prompt "{animal} in {place}, watercolour" -p ark -o shots/\n'
    "  seedream batch shots.csv --dry-run\n"
    "  seedream batch shots.csv --only failed --concurrency 4 --max-cost 5\n"
    "  seedream batch shots.csv --shard 2/4\n"
    "  seedream batch --merge shots-1-of-4 shots-2-of-4 shots-3-of-4 shots-4-of-4"
)


@takes("batch")
def batch(
    table: Annotated[
        str | None,
        typer.Argument(metavar="TABLE", help="The table; - reads it from standard input.", show_default=False),
    ] = None,
    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="DIR", help="With --merge: the folders of the shards.", show_default=False),
    ] = None,
    *,
    flag_values: FlagValues,
) -> int:
    """Run every row of a table that is not done yet."""
    from ..batch.lost_ledger import refuse_remains

    environment = flag_values.environment()
    places = [Path(folder).expanduser() for folder in folders or ()]
    merges = flag_values.switches.get("merge", False)
    _check_arguments(flag_values, table, places)
    with contextlib.ExitStack() as stack:
        if merges and (table is None or Path(table).expanduser().is_dir()):
            return _merge_alone(
                stack, flag_values, environment, [*([Path(table).expanduser()] if table else []), *places]
            )
        with _report_unsent():
            context = _open(stack, table or "", flag_values, environment)
        if merges:
            return _merge(stack, context, places)
        refuse_remains(context.row_requests)
        return _run(stack, context) if context.sends else _preview(stack, context)


def _check_arguments(flag_values: FlagValues, table: str | None, folders: Sequence[Path]) -> None:
    """Check for one table, or with --merge folders too; a merge has no preview."""
    if not flag_values.switches.get("merge"):
        if table is None:
            hint = "name a table, or - for standard input; seedream batch --help shows examples"
            raise InputError([Problem("table", "there is no table", hint)], kind="usage")
        if folders:
            raise InputError([Problem("table", "a batch takes one table", "--merge joins the folders of shards")])
        return
    for switch, name in (("dry_run", "--dry-run"), ("explain_stale", "--explain-stale")):
        if flag_values.switches.get(switch):
            message = f"{name} shows what would be sent, and --merge sends nothing"
            raise InputError([Problem("merge", message, "leave one out", origin="--merge")])


def _enter(context: _BatchContext, ledger: Ledger, run: Run) -> tuple[Batch, Preview]:
    """The table in a ledger, and what is to be done of it; refused where the ledger is older than the folder's results.

    Where there is none any more, that was refused before this one was made.
    """
    from ..batch.lost_ledger import refuse_older_ledger
    from ..batch.run import Batch

    batch = Batch(context.row_requests, ledger, run)
    with _report_unsent():
        batch.enter()
        preview = batch.preview()
        if preview.running:
            refuse_older_ledger(context.order, ledger)
    return batch, preview


# --- a preview --------------------------------------------------------------------------------------------------------


def _preview(stack: contextlib.ExitStack, context: _BatchContext) -> int:
    """Print what a run would do, from a copy of the batch's ledger: nothing is sent or changed."""
    from ..batch.stale import explain_stale
    from ..ledger.ledger import open_ledger
    from ..output.json_output import Row as Place
    from ..output.json_output import error_object, print_json, stale_object
    from ..output.summary import print_error

    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    now = _now
    real = context.order.home / "ledger.db"
    if os.path.lexists(real):
        with open_ledger(real, now=now, is_shared=True) as ledger:
            ledger.copy_to(scratch / "ledger.db")
    ledger = stack.enter_context(open_ledger(scratch / "ledger.db", now=now))
    run = stack.enter_context(ledger.run("preview", "batch"))
    batch, preview = _enter(context, ledger, run)
    for row, why in explain_stale(batch) if context.flag_values.switches.get("explain_stale") else ():
        if context.is_json:
            print_json(stale_object(Place(row.number, row.line, row.id or None), why), context.console)
        else:
            context.console.out(f"{row.origin}: row {row.number}{f' ({row.id})' if row.id else ''}: {why}")
    stop = _foresee(context, preview, ledger) if context.options.switches.get("dry_run") else None
    if context.is_json:
        shown = _plan_object(context, preview)
        print_json(shown if stop is None else {**shown, "error": error_object(stop)}, context.console)
    for line in (*_plan_lines(context.row_requests, preview), *_left_lines(context, ledger)):
        context.console.err(line)
    if stop is not None:
        print_error(stop, context.console)
    return 0 if stop is None else stop.exit_code


def _foresee(context: _BatchContext, preview: Preview, ledger: Ledger) -> SeedreamError | None:
    """The budget error that a run would end with; None for none."""
    from ..engine.foresight import foresee_sum
    from ..engine.plan import plan_caps

    caps = context.order.caps(plan_caps(context.options, context.environment, []))
    if not caps.any:
        return None
    with contextlib.nullcontext() if caps.daily is None else open_ledger_for_reading(context.environment) as day:
        return foresee_sum(preview.forecast.micro, caps, ledger, day)


def _plan_object(context: _BatchContext, preview: Preview) -> dict[str, Any]:
    from ..output.json_output import SCHEMA, money_object
    from ..results import Money

    forecast = preview.forecast
    cost = money_object(Money(forecast.micro))
    cost |= {"note": context.row_requests.price_note} if context.row_requests.price_note else {}
    return {
        "schema": SCHEMA,
        "type": "plan",
        "command": "batch",
        "status": "planned",
        "rows": preview.rows,
        "running": preview.running,
        "requests": forecast.requests,
        "images": forecast.images,
        "fetched": preview.fetched,
        "cost": None if forecast.unpriced else cost,
        "seconds": round(preview.seconds),
        "options": list(context.row_requests.columns.taken),
        "output": str(context.order.folder),
    }


def _left_lines(context: _BatchContext, ledger: Ledger) -> list[str]:
    """What earlier runs of this folder have spent of `--max-cost`, as lines."""
    from ..engine.plan import plan_caps
    from ..results import Money
    from ..text import count_words, money_words

    caps = context.order.caps(plan_caps(context.options, context.environment, []))
    if caps.batch is None:
        return []
    cap, whose = (caps.batch, "") if caps.part is None else (caps.part, "this shard's part of ")
    spent = ledger.spent(has_row=caps.has_row if caps.part is not None else None)
    if not spent.total and not spent.unpriced:
        return []
    used, left = (money_words(Money(micro)) for micro in (spent.total, max(0, cap - spent.total)))
    rest = f"; {count_words(spent.unpriced, 'request')} of unknown price is not counted" if spent.unpriced else ""
    return [f"{whose}--max-cost: earlier runs of this batch spent, or may have spent, {used}, {left} is left{rest}"]


# --- a run ------------------------------------------------------------------------------------------------------------


def _run(stack: contextlib.ExitStack, context: _BatchContext) -> int:
    """Insert the rows into the ledger, confirm the cost, run them, and write the results."""
    from ..engine.plan import run_id
    from ..storage import filesystem, output_path

    order = context.order
    output_path.OutputTarget(order.folder, "rename", 1).prepare()
    stream = _prepare_results(order.results)
    filesystem.sweep_parts(order.folder)
    wants_ledger = context.options.switches.get("ledger", context.environment.settings.ledger_enabled)
    day = stack.enter_context(open_ledger_here(context.environment, goes_without=True)) if wants_ledger else None
    ledger = stack.enter_context(open_ledger_here(context.environment, home=order.home))
    name = run_id()
    run = stack.enter_context(ledger.run(name, "batch", folder=str(order.folder.absolute())))
    if day is not None:
        # By this run `history` finds the batch's folder.
        own = stack.enter_context(day.run(name, "batch", folder=str(order.folder.absolute())))
        stack.callback(own.finish, None)
    batch, preview = _enter(context, ledger, run)
    context.print_lines([*_plan_lines(context.row_requests, preview), *_left_lines(context, ledger)])
    if not _confirm_cost(context, preview):
        context.console.err(_UNSENT)
        return 130
    _remember_addresses(context)
    tracker, report = _run_rows(context, batch, preview, day)
    return _finish(context, batch, tracker, report, stream)


def _remember_addresses(context: _BatchContext) -> None:
    """Record the base URL that the user gave: URLs in a batch's ledger are not trusted with a key."""
    from ..config.credentials import remember_address
    from ..providers.base_url import is_same_server

    if not context.options.origins.get("base_url", "").startswith(("--", "$")):
        return
    for route in context.row_requests.routes:
        if is_same_server(route.base_url, context.options.values["base_url"]):
            remember_address(route.spec, route.base_url, context.environment)


def _confirm_cost(context: _BatchContext, preview: Preview) -> bool:
    """Ask on a terminal whether to pay more than [batch] confirm_above."""
    from ..results import Money

    bound, forecast = context.environment.settings.confirm_above, preview.forecast
    is_dear = bound is not None and (Money(forecast.micro).amount > bound or forecast.unpriced)
    if not is_dear or context.flag_values.switches.get("yes") or not context.is_watched:
        return True
    if not context.console.stdin_is_terminal:
        if context.row_requests.table.name != "standard input":
            return True
        cost = _cost_words(context.row_requests, forecast)
        message = f"{cost} is above [batch] confirm_above, and standard input is the table"
        raise InputError([Problem("yes", message, "add --yes, or name a file, so that you can be asked")])
    try:
        return typer.confirm(f"Go on, for {_cost_words(context.row_requests, forecast)}?", err=True)
    except typer.Abort:
        # Ctrl-C and Ctrl-D leave the cursor after the question.
        context.console.err("")
        return False


def _run_rows(
    context: _BatchContext, batch: Batch, preview: Preview, day: Ledger | None
) -> tuple[Tracker, BatchReport]:
    """Run the rows with a progress display."""
    from ..batch.tracker import Tracker
    from ..engine.context import JobStream, RunContext
    from ..engine.plan import plan_caps
    from ..engine.recorder import Recorder
    from ..engine.run import run
    from ..output.progress import make_batch_sink
    from ..output.tally import Tally
    from ..results import Money, Planned

    order, console, options = context.order, context.console, context.options
    verbosity = -1 if context.is_quiet else context.flag_values.verbosity
    most = None if preview.forecast.unpriced else Money(preview.forecast.micro).cost("")
    kind, tally = cast("Any", options.values.get("progress", "auto")), Tally(most=most)
    display = make_batch_sink(kind, console, verbosity=verbosity, tally=tally)
    tracker = Tracker(display, _row_printer(context))
    row_requests = context.row_requests
    planned = Planned(
        preview.forecast.requests + preview.fetched,
        preview.forecast.images,
        ", ".join(sorted({route.spec.name for route in row_requests.routes})),
        ", ".join(row_requests.models),
    )
    stream = JobStream(
        planned, batch.jobs(tracker.expect), concurrency=order.concurrency, max_failures=order.max_failures
    )
    caps = order.caps(plan_caps(options, context.environment, []))
    run_context = RunContext(
        tracker,
        order.home / "replies",
        Recorder(batch.ledger, batch.run, caps, home=order.folder, day=day),
        log=(lambda line: console.err(f"wire: {line}")) if context.flag_values.verbosity > 1 else None,
        max_unknown=order.max_unknown,
        is_resumable=True,
    )
    try:
        ending = run(stream, run_context)
    finally:
        display.close()
    return tracker, tracker.report(preview, ending)


def _row_printer(context: _BatchContext) -> Any:
    """A function that prints a row's results: a JSON object, paths, or URLs."""
    from ..output.json_output import Row as Place
    from ..output.json_output import print_json, row_object
    from ..output.summary import print_places
    from ..storage import reply_file

    console, links = context.console, context.options.switches.get("no_download", False)

    def print_row(row: Row, results: Sequence[JobResult]) -> None:
        if context.is_json:
            print_json(row_object(results, Place(row.number, row.line, row.id or None)), console)
        else:
            for result in results:
                print_places(result.images, console, "urls" if links else "paths")
        for result in results if links and not console.stdout_closed else ():
            if result.status == "succeeded":
                reply_file.forget(context.order.home / "replies", result.id, asides=False)

    return print_row


def _finish(context: _BatchContext, batch: Batch, tracker: Tracker, report: BatchReport, stream: int | None) -> int:
    """Write the results file and print the summary."""
    from ..output.json_output import batch_object, print_json
    from ..output.messages import error_lines
    from ..output.summary import batch_lines

    code, trouble = report.exit_code, None
    try:
        batch.write_results(stream)
    except (FileError, InputError) as error:
        trouble = error
    batch.run.finish(code)
    if context.is_json:
        print_json(batch_object(report), context.console)
    context.print_lines(_short_lines(tracker))
    lines = batch_lines(report, tracker.labels)
    for line in lines if not context.is_quiet or code else ():
        context.console.err(line)
    if trouble is None:
        context.print_lines([f"results: {context.order.results}"])
        return code
    for line in error_lines(cast("SeedreamError", trouble)):
        context.console.err(line)
    return code or trouble.exit_code


def _short_lines(tracker: Tracker) -> list[str]:
    """Notes on rows that got fewer images than they asked for."""
    from ..output.summary import note_lines
    from ..results import Report
    from ..text import count_words

    lines = note_lines(Report("batch", tuple(tracker.short)), labels=tracker.labels)
    more = tracker.short_rows - len({tracker.labels[result.index] for result in tracker.short})
    rest = f"note: and {count_words(more, 'more row')} with fewer images than asked for"
    return [*lines, rest] if more else lines
