"""`seedream batch`: a table in, a folder of pictures out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
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
    _saying_unsent,
)
from .context import crash_step, ledger_as_it_is, open_ledger_here
from .flags import Chosen, takes
from .merge import _merge, _merge_alone

if TYPE_CHECKING:
    from ..batch.run import Batch, Preview
    from ..batch.table import Row
    from ..batch.tracker import Tracker
    from ..ledger.ledger import Ledger
    from ..results import BatchReport, JobResult


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
    chosen: Chosen,
) -> int:
    """Every row of a table that is not done yet, to files."""
    environment = chosen.environment()
    places = [Path(folder).expanduser() for folder in folders or ()]
    merges = chosen.switches.get("merge", False)
    _check_arguments(chosen, table, places)
    with contextlib.ExitStack() as stack:
        if merges and (table is None or Path(table).expanduser().is_dir()):
            return _merge_alone(stack, chosen, environment, [*([Path(table).expanduser()] if table else []), *places])
        with _saying_unsent(environment):
            desk = _open(stack, table or "", chosen, environment)
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


# --- a preview ------------------------------------------------------------------------------------------------------


def _preview(stack: contextlib.ExitStack, desk: _BatchContext) -> int:
    """What a run would do, on a copy of the batch's ledger: nothing is sent, and nothing is written."""
    from ..batch.lost_ledger import refuse_older_ledger, refuse_remains
    from ..batch.run import Batch
    from ..batch.stale import explain_stale
    from ..ledger.ledger import open_ledger
    from ..output.json_output import Row as Place
    from ..output.json_output import error_object, print_json, stale_object
    from ..output.summary import print_error

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
    if survey.running:
        refuse_older_ledger(desk.order, ledger)
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


def _foresee(desk: _BatchContext, survey: Preview, ledger: Ledger) -> SeedreamError | None:
    """The budget that a run would come to the end of."""
    from ..engine.foresight import foresee_sum
    from ..engine.plan import plan_caps

    caps = desk.order.caps(plan_caps(desk.draft, desk.environment, []))
    if not caps.any:
        return None
    with contextlib.nullcontext() if caps.daily is None else ledger_as_it_is(desk.environment) as day:
        return foresee_sum(survey.forecast.micro, caps, ledger, day)


def _plan_object(desk: _BatchContext, survey: Preview) -> dict[str, Any]:
    from ..output.json_output import SCHEMA
    from ..results import from_micro

    forecast = survey.forecast
    cost: dict[str, Any] = {"amount": round(from_micro(forecast.micro), 6), "currency": "USD"}
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


def _left_lines(desk: _BatchContext, ledger: Ledger) -> list[str]:
    """What earlier runs of this folder have spent of `--max-cost`."""
    from ..engine.plan import plan_caps
    from ..results import Cost, from_micro
    from ..text import count_words, money_words

    caps = desk.order.caps(plan_caps(desk.draft, desk.environment, []))
    if caps.batch is None:
        return []
    cap, whose = (caps.batch, "") if caps.part is None else (caps.part, "this shard's part of ")
    spent = ledger.spent(has_row=caps.has_row if caps.part is not None else None)
    if not spent.total and not spent.unpriced:
        return []
    used, left = (money_words(Cost(from_micro(micro), "USD", "")) for micro in (spent.total, max(0, cap - spent.total)))
    rest = f"; {count_words(spent.unpriced, 'request')} of unknown price is not counted" if spent.unpriced else ""
    return [f"{whose}--max-cost: earlier runs of this batch spent, or may have spent, {used}, {left} is left{rest}"]


# --- a run ----------------------------------------------------------------------------------------------------------


def _run(stack: contextlib.ExitStack, desk: _BatchContext) -> int:
    """Enter the table, ask where it is costly, run what is due, and write the results."""
    from ..batch.lost_ledger import refuse_older_ledger, refuse_remains
    from ..batch.run import Batch
    from ..engine.plan import run_id
    from ..storage import image_file, output_path

    order = desk.order
    refuse_remains(desk.sheet)
    output_path.OutputTarget(order.folder, "rename", 1).prepare()
    stream = _prepare_results(order.results)
    image_file.sweep(order.folder)
    wants_ledger = desk.draft.switches.get("ledger", desk.environment.settings.ledger_enabled)
    day = stack.enter_context(open_ledger_here(desk.environment, goes_without=True)) if wants_ledger else None
    ledger = stack.enter_context(open_ledger_here(desk.environment, home=order.home))
    name = run_id()
    run = stack.enter_context(ledger.run(name, "batch", folder=str(order.folder.absolute())))
    if day is not None:
        # `history` finds the batch of a request's id by this.
        own = stack.enter_context(day.run(name, "batch", folder=str(order.folder.absolute())))
        stack.callback(own.finish, None)
    batch = Batch(desk.sheet, ledger, run)
    with _saying_unsent(desk.environment):
        batch.enter()
        survey = batch.survey()
        if survey.running:
            refuse_older_ledger(order, ledger)
    desk.say([*_plan_lines(desk.sheet, survey), *_left_lines(desk, ledger)])
    if not _agreed(desk, survey):
        desk.streams.err(_UNSENT)
        return 130
    _remember_addresses(desk)
    tracker, report = _work(desk, batch, survey, day)
    return _close(desk, batch, tracker, report, stream)


def _remember_addresses(desk: _BatchContext) -> None:
    """Keep in mind which address the user named: a batch's own ledger is not believed where its links may lead."""
    from ..config.credentials import is_same_place, remember_address

    if not desk.draft.origins.get("base_url", "").startswith(("--", "$")):
        return
    for route in desk.sheet.routes:
        if is_same_place(route.base_url, desk.draft.values["base_url"]):
            remember_address(route.spec, route.base_url, desk.environment)


def _agreed(desk: _BatchContext, survey: Preview) -> bool:
    """Whether the user wants to pay as much: asked on a terminal, above [batch] confirm_above."""
    from ..results import from_micro

    bound, forecast = desk.environment.settings.confirm_above, survey.forecast
    is_dear = bound is not None and (from_micro(forecast.micro) > bound or forecast.unpriced)
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


def _work(desk: _BatchContext, batch: Batch, survey: Preview, day: Ledger | None) -> tuple[Tracker, BatchReport]:
    """Run what is due in front of the user."""
    from ..batch.tracker import Tracker
    from ..engine.context import JobStream, RunServices
    from ..engine.plan import plan_caps
    from ..engine.recorder import Recorder
    from ..engine.run import HurriedClock, conduct
    from ..output.progress import make_batch_sink

    order, streams, draft = desk.order, desk.streams, desk.draft
    verbosity = -1 if desk.is_quiet else desk.chosen.verbosity
    display = make_batch_sink(cast("Any", draft.values.get("progress", "auto")), streams, verbosity=verbosity)
    tracker = Tracker(display, _teller(desk))
    sheet, fault = desk.sheet, desk.environment.fault
    flow = JobStream(
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
    services = RunServices(tracker, order.home, batch.ledger, None, log, step=crash_step(fault))
    if fault == "no-wait":
        services = replace(services, clock=HurriedClock())
    caps = order.caps(plan_caps(draft, desk.environment, []))
    books = Recorder(batch.ledger, batch.run, caps, home=order.folder, day=day)
    try:
        ending = conduct(flow, services, books)
    finally:
        display.close()
    return tracker, tracker.report(survey, ending)


def _teller(desk: _BatchContext) -> Any:
    """Prints a row's results as it ends: an object, its paths, or its links."""
    from ..output.json_output import Row as Place
    from ..output.json_output import print_json, row_object
    from ..output.summary import print_places
    from ..storage import reply_file

    streams, links = desk.streams, desk.draft.switches.get("no_download", False)

    def tell(row: Row, results: Sequence[JobResult]) -> None:
        if desk.is_json:
            print_json(row_object(results, Place(row.number, row.line, row.id or None)), streams)
        else:
            for result in results:
                print_places(result.images, streams, "urls" if links else "paths")
        for result in results if links and not streams.stdout_closed else ():
            if result.status == "succeeded":
                reply_file.forget(desk.order.home / "replies", result.id, asides=False)

    return tell


def _close(desk: _BatchContext, batch: Batch, tracker: Tracker, report: BatchReport, stream: int | None) -> int:
    """Write the results, and say what became of the table."""
    from ..output.json_output import batch_object, print_json
    from ..output.messages import error_lines
    from ..output.summary import batch_lines

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
    from ..output.summary import note_lines
    from ..results import Report
    from ..text import count_words

    lines = note_lines(Report("batch", tuple(tracker.short)), labels=tracker.labels)
    more = tracker.short_rows - len({tracker.labels[result.index] for result in tracker.short})
    rest = f"note: and {count_words(more, 'more row')} with fewer pictures than asked for"
    return [*lines, rest] if more else lines
