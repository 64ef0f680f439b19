"""What all batch commands share: the checked table, the folder and its lock, the plan in words."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import FileError, InputError, Problem
from ..storage.filesystem import ForeignError
from .context import process_console
from .flags import FlagValues

if TYPE_CHECKING:
    from ..batch.checks import Findings
    from ..batch.columns import Columns
    from ..batch.options import BatchOptions
    from ..batch.row_requests import RowRequests
    from ..batch.run import Preview
    from ..batch.table import Table
    from ..config.environment import Environment
    from ..config.prompt_file import PromptText
    from ..ledger.records import Forecast
    from ..output.console import Console
    from ..request.image_request import OptionValues


@contextlib.contextmanager
def _report_unsent() -> Iterator[None]:
    """Report on Ctrl-C while a large table is read that nothing was sent."""
    try:
        yield
    except KeyboardInterrupt:
        process_console().err(_UNSENT)
        raise


_UNSENT = "stopped: nothing was sent"


@dataclass(frozen=True)
class _BatchContext:
    """The inputs of a batch command."""

    flag_values: FlagValues
    environment: Environment
    console: Console
    row_requests: RowRequests
    sends: bool

    @property
    def options(self) -> OptionValues:
        """The options of the run."""
        return self.row_requests.base

    @property
    def order(self) -> BatchOptions:
        """The options of the batch."""
        return self.row_requests.order

    @property
    def is_quiet(self) -> bool:
        """Whether -q was given."""
        return self.options.switches.get("quiet", False)

    @property
    def is_json(self) -> bool:
        """Whether --json was given."""
        return self.options.switches.get("json", False)

    @property
    def is_watched(self) -> bool:
        """Whether standard error is a terminal, also a dumb one."""
        stream = self.console.stderr
        return stream is not None and not stream.closed and stream.isatty()

    def print_lines(self, lines: Sequence[str]) -> None:
        """Print to standard error, unless quiet."""
        for line in () if self.is_quiet else lines:
            self.console.err(line)


def _open(stack: contextlib.ExitStack, name: str, flag_values: FlagValues, environment: Environment) -> _BatchContext:
    """Open and check the table. Raises `InputError` with all problems, before anything is sent or written."""
    from ..batch.columns import plan_columns
    from ..batch.options import read_order
    from ..batch.results_file import check_results, foreign_results
    from ..batch.row_requests import RowRequests
    from ..batch.table import open_table
    from ..engine.plan import plan_caps
    from ..output.messages import warning_lines

    table = stack.enter_context(open_table(name, is_lines=flag_values.switches.get("lines", False)))
    problems = list(flag_values.ignored(environment))
    prompt = _read_template(flag_values, problems)
    variables, wrong = flag_values.variables()
    problems += wrong
    base = _base_values(flag_values, environment, prompt)
    columns, found = plan_columns(
        table.headings,
        maps=flag_values.lists.get("map", ()),
        template=flag_values.values.get("prompt_template", prompt.text if prompt else None),
        variables={**(prompt.variables if prompt else {}), **variables},
        needs_prompt=not base.switches.get("layers"),
    )
    problems += found + _lone_braces(flag_values)
    order = read_order(base, table, environment, problems)
    plan_caps(base, environment, problems)
    wrong_place = check_results(order.results, table, None if "results" in base.values else order.folder)
    problems += wrong_place or foreign_results(order.results)
    problems = [_name_column(problem, table, columns) for problem in problems]
    if any(problem.severity == "error" for problem in problems):
        raise InputError([problem for problem in problems if problem.severity == "error"])
    base = replace(base, values={**base.values, "output": f"{order.folder}/"})
    sends = not any(flag_values.switches.get(switch) for switch in ("dry_run", "explain_stale", "merge"))
    sends = sends and not base.switches.get("dry_run")
    has_folder = order.home.is_dir()
    if (sends or flag_values.switches.get("merge")) and has_folder:
        # Locked before a large table is read, so that a second run fails at once.
        stack.enter_context(_lock_batch(order.home))
    row_requests = RowRequests(
        table, columns, base, order, environment, sends, pays=not flag_values.switches.get("merge", False)
    )
    findings = row_requests.check()
    context = _BatchContext(flag_values, environment, process_console(), row_requests, sends)
    findings = replace(
        findings,
        errors=tuple(_name_column(problem, table, columns) for problem in findings.errors),
        warnings=tuple(_name_column(problem, table, columns) for problem in findings.warnings),
    )
    taken = _taken_notes(columns)
    if findings.errors:
        # A column of data may have been taken for an option.
        context.print_lines([f"note: {note}" for note in taken])
    _refuse(findings)
    if row_requests.trouble:
        raise row_requests.trouble
    more = [f"and {findings.more_warnings} more warnings"] if findings.more_warnings else []
    warnings = (*(p for p in problems if p.severity == "warning"), *findings.warnings)
    notes = (*row_requests.notices, *taken, *_unused_notes(columns, base, flag_values))
    context.print_lines([*(f"note: {note}" for note in notes), *warning_lines(warnings), *more])
    if (sends or flag_values.switches.get("merge")) and not has_folder:
        # By the earlier check: another run may have created the folder since.
        stack.enter_context(_make_home(order))
    return context


def _read_template(flag_values: FlagValues, problems: list[Problem]) -> PromptText | None:
    """The prompt template of --prompt-file, with the options in its header."""
    from ..config.prompt_file import read_prompts

    files = flag_values.lists.get("prompt_file", ())
    if len(files) > 1 or (files and "prompt_template" in flag_values.values):
        problems.append(Problem("prompt", "the prompt was given twice", "give --prompt or one --prompt-file"))
        return None
    prompts, wrong = read_prompts(None, files)
    problems += wrong
    return prompts[0] if prompts else None


def _lone_braces(flag_values: FlagValues) -> list[Problem]:
    """Warn of a brace that encloses no column's name: it is sent as it is."""
    template = flag_values.values.get("prompt_template", "")
    if not re.search(r"[{}]", re.sub(r"\{\{|\}\}|\{[^{}\r\n]+\}", "", template)):
        return []
    message, hint = "a brace in the prompt stands alone, and is sent so", "columns are written {column}"
    return [Problem("prompt", message, hint, severity="warning", origin="--prompt")]


def _base_values(flag_values: FlagValues, environment: Environment, prompt: PromptText | None) -> OptionValues:
    """The options of rows that do not set them."""
    options = flag_values.options(environment, prompt)
    values = {key: value for key, value in options.values.items() if key not in {"prompt", "prompt_template"}}
    return replace(options, values=values)


_NAMED = {".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json"}
"""Suffixes of tables. In files with another suffix, such as standard input, the origin names the column too."""


def _name_column(problem: Problem, table: Table, columns: Columns) -> Problem:
    """The problem with the table's name of the column instead of the option's."""
    if not problem.field or not problem.origin.startswith(f"{table.name}:"):
        return problem  # of a whole line
    named = [column.name for column in columns.columns if column.key == problem.field]
    name = named[0] if len(named) == 1 else problem.field
    unit = "key" if table.format.kind == "jsonl" else "column"
    names_column = not name or Path(table.name).suffix.lower() in _NAMED
    origin = problem.origin if names_column else f"{problem.origin}, {unit} {name}"
    return replace(problem, field=name, origin=origin, hint=_add_map_hint(problem, name, columns))


def _add_map_hint(problem: Problem, name: str, columns: Columns) -> str:
    """The hint, with `--map COLUMN=` where the column is an option only by its name and may be data."""
    if problem.severity != "error" or name not in columns.taken:
        return problem.hint
    others = [other for other in columns.taken if other != name][:_IDLE_MOST]
    more = f" (taken as options too: {', '.join(_map_words(other) for other in others)})"
    way_out = f"{_map_words(name)} makes a plain variable of the column{more if others else ''}"
    return f"{problem.hint}; {way_out}" if problem.hint else way_out


def _map_words(column: str) -> str:
    """The option that makes a template variable of a column."""
    return f"--map {shlex.quote(f'{column}=')}"


def _taken_notes(columns: Columns) -> list[str]:
    """A note on columns that set an option because of their name."""
    if not columns.taken:
        return []
    shown = ", ".join(columns.taken[:_IDLE_MOST])
    shown += f" and {len(columns.taken) - _IDLE_MOST} more" if len(columns.taken) > _IDLE_MOST else ""
    what = "columns taken as options" if len(columns.taken) > 1 else "column taken as an option"
    return [f"{what}: {shown} ({_map_words(columns.taken[0])} makes a plain variable of it)"]


def _unused_notes(columns: Columns, base: OptionValues, flag_values: FlagValues) -> list[str]:
    """A note on columns that are neither option nor in a template: one may be a misspelt option."""
    if "name" in columns.keys:
        # Its cells are templates, with any column in them.
        return []
    mapped = {pair.rpartition("=")[0].strip() for pair in flag_values.lists.get("map", ())}
    used = base.values.get("name", "")
    idle = [name for name in columns.unused if name and name not in mapped and f"{{{name}" not in used]
    shown = ", ".join(idle[:_IDLE_MOST]) + (f" and {len(idle) - _IDLE_MOST} more" if len(idle) > _IDLE_MOST else "")
    return [f"columns that set nothing and stand in no template: {shown}"] if idle else []


_IDLE_MOST = 8


def _refuse(findings: Findings) -> None:
    """Raise `InputError` with all errors of the table."""
    if not findings.errors:
        return
    more = [Problem("", f"and {findings.more_errors} more problems like these")] if findings.more_errors else []
    raise InputError([*findings.errors, *more])


@contextlib.contextmanager
def _lock_batch(home: Path) -> Iterator[None]:
    """Hold the batch's lock. A batch cannot run with --no-ledger, so the hint is another folder."""
    from ..ledger.ledger import lock_batch

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_batch(home))
        except FileError as error:
            if not isinstance(error.__cause__, ForeignError):
                error.hint = "make the place writable, or choose another folder with -o"
            raise
        yield


def _make_home(order: BatchOptions) -> contextlib.AbstractContextManager[None]:
    """Create the batch's folder and hold its lock."""
    from ..storage.output_path import OutputTarget

    OutputTarget(order.folder, "rename", 1).prepare()
    return _lock_batch(order.home)


def _now() -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC)


def _plan_lines(row_requests: RowRequests, preview: Preview) -> list[str]:
    """Rows, images, worst cost, and time at the current rate, as lines."""
    from ..text import count_words, span_words

    forecast, due, order = preview.forecast, preview.due, row_requests.order
    words = {"done": "done", "left": "left alone", "failed": "failed", "unknown": "of unknown outcome"}
    counts = [f"{due[action]} {word}" for action, word in words.items() if due[cast("Any", action)]]  # type: ignore[index]
    counts += [f"{due['missing']} whose files are gone for good"] if due["missing"] else []
    what = f"{row_requests.table.name}: {count_words(preview.rows, 'row')}"
    lines = [", ".join([what, *counts, f"{preview.running} to run"])]
    if preview.fetched:
        lines.append(f"{count_words(preview.fetched, 'paid request')} to fetch, free of charge")
    if forecast.requests:
        many = min(order.concurrency, forecast.requests)
        lines.append(
            f"up to {count_words(forecast.images, 'image')}, {_cost_words(row_requests, forecast)}, "
            f"about {span_words(preview.seconds)} with {many} at once, into {order.folder}/"
        )
    if due["missing"]:
        lines.append("--only missing makes, and pays for, those whose files are gone")
    if due["unknown"]:
        lines.append("--only unknown --retry-ambiguous sends those of unknown outcome again, which may cost twice")
    return lines


def _cost_words(row_requests: RowRequests, forecast: Forecast) -> str:
    """The worst cost in words, and how many requests have no known price."""
    from ..results import Money
    from ..text import count_words, money_words

    amount = money_words(Money(forecast.micro))
    cost = f"about {amount} ({row_requests.price_note})" if row_requests.price_note else f"at most {amount}"
    if not forecast.unpriced:
        return cost
    unknown = f"{count_words(forecast.unpriced, 'request')} of unknown price"
    return f"{cost} and {unknown}" if forecast.micro else f"cost unknown, {unknown}"


def _prepare_results(results: Path) -> int | None:
    """Check before paying that the results file can be written.

    Returns a descriptor where `results` is no regular file, such as a pipe; else None.
    """
    from ..batch.results_file import open_results
    from ..storage.filesystem import final_target

    stream = open_results(results)
    if stream is None:
        _prepare_folder((final_target(results) or results).parent, "--results")
    return stream


def _prepare_folder(folder: Path, option: str) -> None:
    """Create a folder and check that it can be written; `option` is for the hint."""
    from ..storage.output_path import OutputTarget

    try:
        OutputTarget(folder, "rename", 1).prepare()
    except FileError as error:
        raise FileError(error.message, hint=f"name another place with {option}") from error
