"""`seedream history …`: what was sent, when, its cost and files; resolving unknown outcomes; purging."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.environment import read_environ
from ..config.options import OUTPUT, REQUEST
from ..errors import InputError, Problem
from .completion import offer_ids, offer_providers, words
from .context import BATCH_HOME, delete_replies, open_ledger_here, process_console, reply_names
from .flags import PlainCommand, PlainGroup, number

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..ledger.records import Entry, RunRow
    from ..output.history import Run


def _option(names: str, metavar: str, text: str, **more: Any) -> Any:
    return typer.Option(*names.split(), metavar=metavar, help=text, rich_help_panel=REQUEST, show_default=False, **more)


history_app = typer.Typer(
    cls=PlainGroup,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

STATUSES = ("succeeded", "partial", "failed", "unknown", "unsaved", "submitted", "running", "resolved", "unsent")

_JSON = typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT, show_default=False)

_HELP = (
    "What was sent, newest first. A run is one line, and so is a batch; `show` opens it."
    "\n\nExamples:\n\n\b\n  seedream history\n  seedream history --text fox --since 7d\n"
    "  seedream history --status unknown\n  seedream history show 261121-4f9a2c\n"
    "  seedream history resolve 261121-4f9a2c --unpaid\n  seedream history stats --by model"
)


@history_app.callback(invoke_without_command=True, help=_HELP, cls=PlainGroup)
def history(  # noqa: PLR0917 (Typer names them all)
    context: typer.Context,
    text: Annotated[str | None, _option("--text -t", "TEXT", "Only with this in prompt, id, model or file.")] = None,
    since: Annotated[
        str | None, _option("--since", "WHEN", "From a day (2026-11-21) or so long ago (36h, 7d).")
    ] = None,
    until: Annotated[str | None, _option("--until", "WHEN", "Before a day or so long ago.")] = None,
    provider: Annotated[
        str | None, _option("--provider -p", "NAME", "Only of this provider.", autocompletion=offer_providers)
    ] = None,
    status: Annotated[
        str | None, _option("--status", "STATUS", f"Only {', '.join(STATUSES)}.", autocompletion=words(*STATUSES))
    ] = None,
    limit: Annotated[
        int, _option("--limit -n", "N", "At most so many; 0 for all. Default 50.", parser=number("limit", 0, 10**9))
    ] = 50,
    json: Annotated[bool, _JSON] = False,  # noqa: FBT002
) -> int:
    """Print the requests, unless a subcommand follows."""
    if context.invoked_subcommand is not None:
        return 0
    from ..output import history
    from ..output.json_output import print_json
    from .batch_folders import list_batches

    found: list[Problem] = []
    period = [_parse_time(name, value, found) for name, value in (("since", since), ("until", until))]
    if status is not None and status not in STATUSES:
        found.append(Problem("status", f"{status!r} is no status", f"one of {', '.join(STATUSES)}", origin="--status"))
    if found:
        raise InputError(found)
    console, ledger = process_console(), open_ledger_here()
    asked: dict[str, Any] = {"since": period[0], "until": period[1], "provider": provider, "status": status}
    with ledger:
        batches = list_batches(ledger, text, **asked, limit=limit or None)
        if json:
            found_ = ledger.history(text, **asked, limit=limit or None)
            entries, batches = history.newest(found_, batches, limit or None)
            print_json(history.history_object(entries, batches=batches), console)
            return 0
        listed = history.newest_runs(_runs(ledger, text, asked, limit), batches, limit or None)
        history.print_history(listed, console)
        for one in listed:
            if isinstance(one, history.Overview) and one.trouble:
                console.err(f"note: {one.folder}: {one.trouble}")
        if not listed:
            console.err("nothing in the history is like that")
        for line in history.spent_lines(ledger.spent(), ledger.spent(since=ledger.today())):
            console.err(line)
    return 0


def _runs(ledger: Ledger, text: str | None, asked: dict[str, Any], limit: int) -> list[Run]:
    """The newest runs, as many as are wanted (0: all), each with all of its requests that were asked for."""
    from ..output.history import runs_of

    wanted = limit + 1
    while limit:
        entries = ledger.history(text, **asked, limit=wanted)
        runs = runs_of(entries)
        if len(entries) < wanted or len(runs) > limit:
            # The last may go on behind what was looked at.
            return runs[:limit]
        wanted *= 4
    return runs_of(ledger.history(text, **asked))


@history_app.command(
    cls=PlainCommand,
    help="One request, all of a run, or the rows of a batch: what was sent, its links masked, its files, its cost.",
)
def show(
    wanted: Annotated[str, typer.Argument(metavar="ID", help="An id, or the start of one.", autocompletion=offer_ids)],
    links: Annotated[bool, typer.Option("--links", help="Print every link, whole, and base64 of its reply.")] = False,  # noqa: FBT002
    json: Annotated[bool, _JSON] = False,  # noqa: FBT002
) -> int:
    """Print all that the ledger has of a request."""
    from ..output import history
    from ..output.json_output import print_json
    from .batch_folders import find_batch
    from .stored_replies import stored_replies_of

    console, environment = process_console(), read_environ()
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(open_ledger_here())
        batch = find_batch(own, wanted)
        if batch is not None:
            return _show_batch(*batch, links=links, json=json)
        ledger, _ = _ledger_of(stack, own, wanted)
        entries = _found(ledger, wanted)
        kept = [stored_replies_of(entry, ledger.path.parent / "replies", environment) for entry in entries]
        if json:
            shown = history.history_object(entries, links=links)
            for one, replies in zip(shown["requests"], kept, strict=True):
                one.update(replies.as_object(links=links))
            print_json(shown, console)
            return 0
        # With --links only the URLs are results.
        print_line = console.err if links else console.out
        for entry, replies in zip(entries, kept, strict=True):
            for line in history.entry_detail(entry, ledger.notes(entry.id), console.width, replies.lines(entry)):
                print_line(line)
            if links:
                replies.print_found(entry, console)
    return 0


@history_app.command(
    cls=PlainCommand,
    help="Settle requests of unknown outcome, once the provider's usage page has told. Sends nothing.\n\nExamples:"
    "\n\n\b\n  seedream history resolve 261121-4f9a2c --paid\n  seedream history resolve 261121-4f9a2c --unpaid",
)
def resolve(
    wanted: Annotated[
        list[str], typer.Argument(metavar="ID", help="Ids of requests or runs.", autocompletion=offer_ids)
    ],
    paid: Annotated[bool | None, typer.Option("--paid/--unpaid", help="What the provider charged.")] = None,
) -> int:
    """Record the user's decision."""
    if paid is None:
        hint = "the provider's usage page for that minute tells"
        raise InputError([Problem("paid", "say --paid or --unpaid", hint, origin="--paid")])
    from .batch_folders import reduce_charges

    console = process_console()
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(open_ledger_here())
        opened: dict[Path | None, Ledger] = {None: own}
        ambiguous: dict[Path | None, list[str]] = {}
        for name in wanted:
            ledger, folder = _ledger_of(stack, own, name, opened)
            ambiguous.setdefault(folder, []).extend(
                entry.id for entry in _ambiguous(_of_name(ledger, own, folder, name))
            )
        # All or nothing, over all ledgers.
        for folder, ids in ambiguous.items():
            opened[folder].check_resolvable(ids)
        for folder, ids in ambiguous.items():
            opened[folder].resolve(ids, "paid" if paid else "unpaid")
            # The stored responses are no longer needed, except for images that are still to be saved.
            delete_replies(
                [entry.id for entry in opened[folder].entries(ids) if entry.state != "ready"],
                opened[folder].path.parent,
            )
            if folder is not None:
                reduce_charges(own, folder, opened[folder], ids)
            for one in dict.fromkeys(ids):
                console.err(f"{one}: counted as {'paid' if paid else 'not paid'}")
    return 0


@history_app.command(
    cls=PlainCommand,
    help="Remove settled requests and batches from the history, for privacy. What is unsaved or unknown stays unless "
    "--force. The folder of a batch keeps a ledger of its own.",
)
def purge(
    before: Annotated[str | None, _option("--before", "WHEN", "Only older than a day or so long ago.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what is unsaved or unknown.")] = False,  # noqa: FBT002
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,  # noqa: FBT002
) -> int:
    """Delete settled requests."""
    found: list[Problem] = []
    moment = _parse_time("before", before, found)
    console = process_console()
    if not yes and not console.stdin_is_terminal:
        found.append(Problem("yes", "nobody can be asked here", "add --yes", origin="--yes"))
    if found:
        raise InputError(found)
    if not yes and not typer.confirm("Remove it from the history for good?", err=True):
        return 0
    from .batch_folders import kept_runs

    with open_ledger_here() as ledger:
        # The stored response goes with its request.
        known = [name for name in reply_names() if ledger.find(name)]
        before_that = len(ledger.batches())
        gone = ledger.purge(before=moment, force=force, kept_runs=() if force else kept_runs(ledger))
        delete_replies(name for name in known if not ledger.find(name))
        kept = len(ledger.batches())
        console.err(f"removed {gone.removed}, kept {gone.kept}")
        if before_that:
            console.err(f"batches: removed {before_that - kept}, kept {kept}")
    return 0


_TROUBLES_MOST = 3

GROUPS = ("day", "month", "model", "provider")


@history_app.command(
    cls=PlainCommand,
    help="What was spent, of single runs and of batches, by day, month, model or provider.\n\nExamples:\n\n\b\n"
    "  seedream history stats\n  seedream history stats --by model --json",
)
def stats(
    by: Annotated[str, _option("--by", "GROUP", f"By {', '.join(GROUPS)}. Default day.")] = "day",
    json: Annotated[bool, _JSON] = False,  # noqa: FBT002
) -> int:
    """Print requests, images and costs in groups."""
    from ..output import history
    from ..output.json_output import print_json
    from .batch_folders import all_charges

    if by not in GROUPS:
        raise InputError([Problem("by", f"{by!r} is no group", f"one of {', '.join(GROUPS)}", origin="--by")])
    console = process_console()
    with open_ledger_here() as ledger:
        charges, troubles = all_charges(ledger)
    groups = history.group_charges(charges, by)
    if json:
        print_json(history.stats_object(groups, by), console)
    elif groups:
        history.print_stats(groups, by, console)
    else:
        console.err("nothing was sent yet")
    for trouble in troubles[:_TROUBLES_MOST]:
        console.err(f"note: {trouble}; what was paid there counts as it was booked, at the most")
    if len(troubles) > _TROUBLES_MOST:
        console.err(f"note: and so it is with {len(troubles) - _TROUBLES_MOST} more folders of batches")
    return 0


def _show_batch(folder: Path, runs: Sequence[RunRow], *, links: bool, json: bool) -> int:
    """Print a batch and its requests, in table order."""
    from ..output import history
    from ..output.json_output import print_json
    from . import batch_folders
    from .stored_replies import stored_replies_of

    console = process_console()
    if not batch_folders.has_ledger(folder):
        hint = "bring the folder back to that place"
        raise InputError([Problem("id", f"the batch was in {folder}, which is gone", hint, origin="ID")])
    with batch_folders.open_folder(folder) as ledger:
        one, entries = batch_folders.overview(folder, runs, ledger), list(batch_folders.rows_of(ledger))
    if json:
        print_json(history.history_object(entries, links=links, batches=[one]), console)
        return 0
    # With --links only the URLs are results.
    print_line = console.err if links else console.out
    for line in history.batch_detail(one):
        print_line(line)
    history.print_requests(entries, console, console.err if links else None)
    for entry in entries if links else ():
        stored_replies_of(entry, folder / BATCH_HOME / "replies", read_environ()).print_found(entry, console)
    return 0


def _ledger_of(
    stack: contextlib.ExitStack, own: Ledger, name: str, opened: dict[Path | None, Ledger] | None = None
) -> tuple[Ledger, Path | None]:
    """The ledger that has a request: the user's `own`, or that of the batch in a folder."""
    from .batch_folders import folder_of, has_ledger, open_folder

    folder = folder_of(own, name)
    if folder is None:
        return own, None
    if not has_ledger(folder):
        hint = "bring the folder back to that place"
        raise InputError([Problem("id", f"{name} is of the batch in {folder}, which is gone", hint, origin="ID")])
    known = {} if opened is None else opened
    if folder not in known:
        known[folder] = stack.enter_context(open_folder(folder))
    return known[folder], folder


def _of_name(ledger: Ledger, own: Ledger, folder: Path | None, name: str) -> Sequence[Entry]:
    """The requests of a name; for a batch's run all of unknown outcome."""
    from .batch_folders import find_batch

    if folder is None or find_batch(own, name) is None:
        return _found(ledger, name)
    return ledger.history(status="unknown") or _found(ledger, name)


def _ambiguous(entries: Sequence[Entry]) -> Sequence[Entry]:
    """The ambiguous ones of a run's requests; all where none is, for the ledger's error."""
    return [entry for entry in entries if entry.status == "unknown" or entry.doubts] or entries


def _found(ledger: Ledger, name: str) -> tuple[Entry, ...]:
    entries = ledger.find(name)
    if not entries:
        raise InputError([Problem("id", f"the history knows no {name}", "`seedream history` lists ids", origin="ID")])
    return entries


_AGO = re.compile(r"([0-9]{1,5})([mhdw])")

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _parse_time(name: str, text: str | None, found: list[Problem]) -> dt.datetime | None:
    """A date, a time or a span ("7d" ago) as an aware time; a problem is added to `found`."""
    if text is None:
        return None
    now = dt.datetime.now(tz=dt.UTC)
    if ago := _AGO.fullmatch(text.strip().lower()):
        return now - dt.timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        return dt.datetime.fromisoformat(text.strip()).astimezone()
    except ValueError:
        hint = "write a day such as 2026-11-21, or 36h, 7d, 2w for so long ago"
        found.append(Problem(name, f"{text!r} is no time", hint, origin=f"--{name}"))
        return None
