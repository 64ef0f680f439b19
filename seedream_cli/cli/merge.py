"""`seedream batch --merge`: merges the folders of shards."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PARTIAL, InputError, Problem
from .batch_context import _IDLE_MOST, _BatchContext, _lock_batch, _now, _plan_lines, _prepare_folder, _prepare_results
from .context import BATCH_HOME, open_ledger_here, process_console
from .flags import FlagValues

if TYPE_CHECKING:
    from ..config.environment import Environment
    from ..ledger.ledger import Ledger
    from ..output.console import Console
    from ..request.image_request import OptionValues
    from ..results import BatchReport


def _merge(stack: contextlib.ExitStack, context: _BatchContext, folders: Sequence[Path]) -> int:
    """Merge shards with their table, whose batch can then go on in the merged folder."""
    from ..batch.run import Batch
    from ..batch.shards import merge_ledger, preview_rows
    from ..engine.plan import run_id

    order = context.order
    _check_folders(folders)
    stream = _prepare_results(order.results)
    ledger = stack.enter_context(open_ledger_here(context.environment, home=order.home))
    for folder, other in _shard_ledgers(stack, folders, order.folder, context.environment):
        context.print_lines([_merged_words(folder, *merge_ledger(ledger, other, folder, order.folder))])
    run = stack.enter_context(ledger.run(run_id(), "merge", folder=str(order.folder.absolute())))
    batch = Batch(context.row_requests, ledger, run)
    batch.enter()
    preview = batch.preview()
    batch.write_results(stream)
    run.finish(0)
    notes = []
    if preview.running and any(True for _ in ledger.unlisted(run)):
        notes = ["note: the shards have rows that this table, with these options, does not ask for"]
    context.print_lines([*notes, *_plan_lines(context.row_requests, preview)])
    report = preview_rows(order.folder, ledger, run)
    return _report_merge(report, order.results, context.console, is_quiet=context.is_quiet, is_json=context.is_json)


def _merge_alone(
    stack: contextlib.ExitStack, flag_values: FlagValues, environment: Environment, folders: list[Path]
) -> int:
    """Merge shards without their table, from their results files."""
    from ..batch import shards
    from ..batch.results_file import foreign_results
    from ..engine.plan import run_id
    from ..ledger.ledger import open_ledger

    options, console = flag_values.options(environment), process_console()
    is_quiet = options.switches.get("quiet", False)
    _check_folders(folders)
    folder = _merged_folder(options, folders)
    results = Path(options.values.get("results") or folder / "results.csv")
    if problems := foreign_results(results):
        raise InputError(problems)
    others = list(_shard_ledgers(stack, folders, folder, environment))
    parts = [shards.open_part(stack, path, other) for path, other in others]
    headings = shards.check_parts(parts)
    _prepare_folder(folder, "--output")
    stream = _prepare_results(results)
    stack.enter_context(_lock_batch(folder / BATCH_HOME))
    ledger = stack.enter_context(open_ledger_here(environment, home=folder / BATCH_HOME))
    # The rows that were merged before are a part too: a copy from before this merge.
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "ledger.db"
    ledger.copy_to(scratch)
    own = shards.open_part(stack, folder, stack.enter_context(open_ledger(scratch, now=_now)))
    parts.append(shards.without_foreign_columns(own, parts))
    if parts[-1].run is not None:
        headings = shards.check_parts(parts)
    for path, other in others:
        merged = _merged_words(path, *shards.merge_ledger(ledger, other, path, folder))
        if not is_quiet:
            console.err(merged)
    run = stack.enter_context(ledger.run(run_id(), "merge", folder=str(folder.absolute())))
    shards.list_rows(ledger, run, parts, headings)
    shards.join_results(results, folder, ledger, run, parts=parts, headings=headings, stream=stream)
    run.finish(0)
    for part in parts:
        if part.run is not None and not part.is_current and not is_quiet:
            hint = "their columns are empty in the results; name the table before the folders to fill them"
            console.err(f"note: {part.folder} has no results of its last run for its rows: {hint}")
    absent = shards.absent_parts(folders, ledger)
    if absent:
        console.err(f"note: parts that were not named: {', '.join(absent[:_IDLE_MOST])}; their rows are not here")
    code = _report_merge(
        shards.preview_rows(folder, ledger, run),
        results,
        console,
        is_quiet=is_quiet,
        is_json=options.switches.get("json", False),
    )
    return code or (PARTIAL if absent else 0)


def _check_folders(folders: Sequence[Path]) -> None:
    """Refuse folders without a batch, before anything is written."""
    hint = "name the output folders of the shards"
    found = [
        Problem("merge", f"{folder} is no folder of a batch", hint, origin="--merge")
        for folder in folders
        if not os.path.lexists(folder / BATCH_HOME / "ledger.db")
    ]
    if found or not folders:
        raise InputError(found or [Problem("merge", "there is nothing to merge", hint, origin="--merge")])


def _merged_folder(options: OptionValues, folders: Sequence[Path]) -> Path:
    """The target: the folder given, else the one that the whole table would use."""
    from ..batch.shards import common_folder
    from ..storage.file_names import scheme_problem

    wrong = [scheme_problem(key, options.values[key]) for key in ("output", "results") if key in options.values]
    if any(wrong):
        raise InputError([problem for problem in wrong if problem])
    output = options.values.get("output")
    folder = Path(output).expanduser() if output else common_folder(folders)
    if folder is None:
        hint = "name the folder for all with -o"
        raise InputError([Problem("output", "the names of the folders do not tell where to", hint, origin="--merge")])
    if output == "-" or folder.is_file():
        raise InputError([Problem("output", f"{output} is no folder", "give a folder with -o", origin="-o")])
    return folder


def _shard_ledgers(
    stack: contextlib.ExitStack, folders: Sequence[Path], target: Path, environment: Environment
) -> Iterator[tuple[Path, Ledger]]:
    """Each shard's ledger, with its lock held, except for the target's."""
    for path in dict.fromkeys(folder.resolve() for folder in folders):
        if path == target.resolve():
            continue
        folder = next(folder for folder in folders if folder.resolve() == path)
        stack.enter_context(_lock_batch(folder / BATCH_HOME))
        yield folder, stack.enter_context(open_ledger_here(environment, home=folder / BATCH_HOME))


def _merged_words(folder: Path, rows: int, images: int, left: int) -> str:
    from ..text import count_words

    summary = f"{folder}: {count_words(rows, 'new request')}, {count_words(images, 'new image')}"
    why = "no whole images, or not in that folder itself"
    return summary + (f"; left behind: {count_words(left, 'file')} ({why})" if left else "")


def _report_merge(report: BatchReport, results: Path, console: Console, *, is_quiet: bool, is_json: bool) -> int:
    """Print the summary; returns 9 where a row is not done."""
    from ..output.json_output import batch_object, print_json
    from ..output.summary import merged_line

    if is_json:
        print_json(batch_object(report), console)
    for line in () if is_quiet else (merged_line(report), f"results: {results}"):
        console.err(line)
    return report.exit_code
