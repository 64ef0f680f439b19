"""What the ledger holds, as people and scripts see it. Links are masked unless they are asked for: they are secrets."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ..redaction import mask
from ..results import Cost, Money, to_micro
from ..text import clean, clean_path, count_words, money_words
from .console import Console
from .json_output import SCHEMA, JsonObject, cost_object, failure_fields, image_facts, money_object, plain_value
from .tables import print_table

if TYPE_CHECKING:
    from ..ledger.records import Charge, Entry, Failure, ImageRow, Note, Spent


# --- what became of each ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overview:
    """A batch as one line of the history. `counts` tells how many rows stand how; `trouble` why that is not known."""

    id: str
    folder: Path
    started_at: dt.datetime
    table: str = ""
    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    providers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    images: int = 0
    spent: Spent | None = None
    status: str = "gone"
    trouble: str = ""

    @property
    def done(self) -> int:
        """Rows whose images are all saved."""
        return self.counts["succeeded"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of single requests, in the order that they were made in."""

    id: str
    entries: tuple[Entry, ...]


_COLUMNS = ("id", "when", "status", "provider", "model", "images", "cost", "prompt")


def newest(
    entries: Sequence[Entry], batches: Sequence[Overview], limit: int | None
) -> tuple[list[Entry], list[Overview]]:
    """The newest requests and batches, no more than so many together."""
    both: list[Entry | Overview] = [*entries, *batches]
    chosen = sorted(both, key=_begun_at, reverse=True)[:limit]
    return (
        [one for one in chosen if not isinstance(one, Overview)],
        [one for one in chosen if isinstance(one, Overview)],
    )


def runs_of(entries: Iterable[Entry]) -> list[Run]:
    """The requests of each run together, in the order of the first of each."""
    runs: dict[str, list[Entry]] = {}
    for entry in entries:
        runs.setdefault(entry.run, []).append(entry)
    return [Run(name, tuple(reversed(of_it))) for name, of_it in runs.items()]


def newest_runs(runs: Sequence[Run], batches: Sequence[Overview], limit: int | None) -> list[Run | Overview]:
    """The newest runs and batches, no more than so many together."""
    both: list[Run | Overview] = [*runs, *batches]
    return sorted(both, key=_begun_at, reverse=True)[:limit]


def _begun_at(one: Entry | Run | Overview) -> dt.datetime:
    first = one.entries[-1] if isinstance(one, Run) else one
    return first.started_at if isinstance(first, Overview) else first.entered_at


def print_history(listed: Sequence[Run | Overview], console: Console) -> None:
    """A line a run or batch. A narrow terminal loses the least telling columns, then stacks the rest."""
    _print_rows([_batch_row(one) if isinstance(one, Overview) else _run_row(one) for one in listed], console)


def print_requests(entries: Sequence[Entry], console: Console, say: Callable[[str], None] | None = None) -> None:
    """A line a request."""
    _print_rows([_run_row(Run(entry.id, (entry,))) for entry in entries], console, say)


def _print_rows(rows: Sequence[Mapping[str, str]], console: Console, say: Callable[[str], None] | None = None) -> None:
    if rows:
        cells = [[row[name] for name in _COLUMNS] for row in rows]
        print_table(console, _COLUMNS, cells, drop=("model", "provider", "images"), crops=True, say=say)


def _run_row(run: Run) -> dict[str, str]:
    first, *more = run.entries
    prompts = dict.fromkeys(entry.prompt or "" for entry in run.entries)
    others = f"{first.prompt or ''} and {count_words(len(prompts) - 1, 'more prompt')}"
    return {
        "id": run.id if more else first.id,
        "when": _when(first.sent_at or first.entered_at),
        "status": _counted([entry.status for entry in run.entries]),
        "provider": _several([*dict.fromkeys(entry.provider for entry in run.entries)], "providers"),
        "model": _several([*dict.fromkeys(entry.model for entry in run.entries)], "models"),
        "images": f"{sum(map(_saved_images, run.entries))}/{sum(map(_wanted_images, run.entries))}",
        "cost": _run_cost_words(run.entries) if more else _cost_words(first, entry_cost(first)),
        "prompt": clean(others if len(prompts) > 1 else first.prompt or "", 200),
    }


def _counted(words: Sequence[str]) -> str:
    """One word for all that are alike, else how many of each: "3 succeeded, 1 unknown"."""
    counts = Counter(words)
    return words[0] if len(counts) == 1 else ", ".join(f"{number} {word}" for word, number in counts.items())


def _saved_images(entry: Entry) -> int:
    return sum(image.state in {"saved", "handed"} for image in entry.images)


def _wanted_images(entry: Entry) -> int:
    return len(entry.images) or entry.images_at_most


def _run_cost_words(entries: Sequence[Entry]) -> str:
    """What the requests of a run cost together, and what they may have cost beside."""
    sums: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    unpriced = 0
    begun = [entry for entry in entries if entry.state != "queued"]
    for entry in begun:
        cost, possible = entry_cost(entry), to_micro(possible_cost(entry)) or 0
        unpriced += cost is None
        sums[0][entry.currency] += (to_micro(cost) or 0) - possible
        sums[1][entry.currency] += possible
    certain, doubtful = ([one for one in each.values() if one > 0] for each in sums)
    words = [_sums(sums[0])] if certain or not (doubtful or unpriced) else []
    words += [f"possibly {_sums(sums[1])}{' more' if words else ''}"] if doubtful else []
    words += [f"{unpriced} of unknown price"] if unpriced else []
    return ", ".join(words) if begun else "-"


def _batch_row(batch: Overview) -> dict[str, str]:
    return {
        "id": batch.id,
        "when": _when(batch.started_at),
        "status": batch.status,
        "provider": _several(batch.providers, "providers"),
        "model": _several(batch.models, "models"),
        "images": str(batch.images) if batch.spent else "?",
        "cost": _batch_cost_words(batch),
        "prompt": clean(_batch_words(batch), 200),
    }


def _batch_words(batch: Overview) -> str:
    """Such as `batch shots.csv 58/60`."""
    if batch.spent is None:
        return f"batch {batch.folder}: {'gone' if batch.status == 'gone' else 'cannot be read'}"
    return f"batch {PurePath(batch.table or batch.folder).name} {batch.done}/{batch.rows}"


def _several(names: Sequence[str], what: str) -> str:
    return clean(names[0], 80) if len(names) == 1 else f"{len(names)} {what}" if names else "-"


def _batch_cost_words(batch: Overview) -> str:
    spent = batch.spent
    if spent is None:
        return "-"
    possible = spent.possible + spent.reserved
    words = [_money(spent.paid, spent)] if spent.paid or not possible else []
    words += [f"possibly {_money(possible, spent)}{' more' if words else ''}"] if possible else []
    words += [f"{spent.unpriced} of unknown price"] if spent.unpriced else []
    return ", ".join(words)


def batch_detail(batch: Overview) -> list[str]:
    """What is known of a batch as a whole, a fact a line."""
    standing = ", ".join(f"{number} {word}" for word, number in sorted(batch.counts.items()))
    return [
        f"batch: {clean(batch.table or batch.folder.name, None)} {batch.done}/{batch.rows}",
        f"folder: {clean_path(batch.folder)}",
        f"last run: {batch.id}, {_when(batch.started_at)}",
        f"rows: {standing or 'none'}",
        f"images: {batch.images}",
        f"cost: {_batch_cost_words(batch)}",
        "",
    ]


def batch_object(batch: Overview) -> JsonObject:
    """A batch for scripts."""
    spent = batch.spent
    possible = spent.possible + spent.reserved if spent else 0
    return {
        "id": batch.id,
        "status": batch.status,
        "folder": str(batch.folder),
        "table": batch.table or None,
        "started_at": _iso(batch.started_at),
        "rows": batch.rows,
        "done": batch.done,
        "counts": dict(sorted(batch.counts.items())),
        "providers": list(batch.providers),
        "models": list(batch.models),
        "images": batch.images,
        "cost": money_object(Money(spent.paid, spent.currency)) if spent else None,
        "possible_cost": money_object(Money(possible, spent.currency)) if spent and possible else None,
        "unpriced": spent.unpriced if spent else 0,
    } | ({"trouble": batch.trouble} if batch.trouble else {})


# --- sums -------------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """What requests that have something in common came to."""

    name: str
    requests: int = 0
    images: int = 0
    paid: Counter[str] = field(default_factory=Counter)
    possible: Counter[str] = field(default_factory=Counter)
    unpriced: int = 0

    def add(self, charge: Charge) -> None:
        """Count one more."""
        self.requests += 1
        self.images += charge.images
        self.paid[charge.currency] += charge.paid
        self.possible[charge.currency] += charge.possible
        self.unpriced += not charge.is_priced


_UNKNOWN_GROUP = "(of a batch folder that is gone)"


def group_charges(charges: Iterable[Charge], by: str) -> list[Group]:
    """Sums by local day or month, or by model or provider, in the order of their names."""
    groups: dict[str, Group] = {}
    for charge in charges:
        if by in {"day", "month"}:
            name = f"{charge.at.astimezone():%Y-%m-%d}"[: 10 if by == "day" else 7]
        else:
            name = (charge.model if by == "model" else charge.provider) or _UNKNOWN_GROUP
        if name not in groups:
            groups[name] = Group(name)
        groups[name].add(charge)
    return [groups[name] for name in sorted(groups)]


def _in_all(groups: Sequence[Group]) -> Group:
    total = Group("in all")
    for group in groups:
        total.requests += group.requests
        total.images += group.images
        total.paid += group.paid
        total.possible += group.possible
        total.unpriced += group.unpriced
    return total


def print_stats(groups: Sequence[Group], by: str, console: Console) -> None:
    """A line a group, and one for all."""
    shown = [*groups, _in_all(groups)] if len(groups) > 1 else groups
    headers = (by, "requests", "images", "cost", "possibly more", "of unknown price")
    rows = [
        (
            clean(group.name, 80),
            str(group.requests),
            str(group.images),
            _sums(group.paid),
            _sums(group.possible, "-"),
            str(group.unpriced or "-"),
        )
        for group in shown
    ]
    print_table(console, headers, rows)


def _sums(sums: Counter[str], nothing: str = "") -> str:
    words = [money_words(Money(micro, currency)) for currency, micro in sorted(sums.items()) if micro]
    return " + ".join(words) or nothing or money_words(Money(0))


def stats_object(groups: Sequence[Group], by: str) -> JsonObject:
    """The sums for scripts. Amounts of several currencies are not added up: null."""
    shown = [{by: group.name} | _group_object(group) for group in groups]
    return {"schema": SCHEMA, "command": "history", "by": by, "stats": shown, "total": _group_object(_in_all(groups))}


def _group_object(group: Group) -> JsonObject:
    return {
        "requests": group.requests,
        "images": group.images,
        "cost": _sum_object(group.paid),
        "possible_cost": _sum_object(group.possible) if any(group.possible.values()) else None,
        "unpriced": group.unpriced,
    }


def _sum_object(sums: Counter[str]) -> JsonObject | None:
    """An amount in the one currency; None for several, which cannot be added."""
    used = {currency: micro for currency, micro in sums.items() if micro} or {"USD": 0}
    if len(used) > 1:
        return None
    [(currency, micro)] = used.items()
    return money_object(Money(micro, currency))


# --- requests ---------------------------------------------------------------------------------------------------------


def entry_cost(entry: Entry) -> Cost | None:
    """What a request cost, or where that is not known may have cost at the most; None where no price is known."""
    if entry.billed == "no" and not entry.doubts:
        return Money(entry.earlier_micro, entry.currency).cost(entry.as_of)
    is_settled = entry.settled_micro is not None and entry.billed != "unknown"
    micro = 0 if entry.billed == "no" else entry.settled_micro if is_settled else entry.worst_micro
    doubted = entry.doubts * (entry.worst_micro or 0)
    return None if micro is None else Money(micro + doubted + entry.earlier_micro, entry.currency).cost(entry.as_of)


def possible_cost(entry: Entry) -> Cost | None:
    """The part of `entry_cost` that may not have been charged at all; None for nothing."""
    is_doubted = entry.billed == "unknown" and entry.state != "queued"
    micro = (entry.doubts + is_doubted) * (entry.worst_micro or 0) - (entry.settled_micro or 0) * is_doubted
    return Money(micro, entry.currency).cost(entry.as_of) if micro else None


def _cost_words(entry: Entry, cost: Cost | None) -> str:
    if entry.state == "queued":
        return "-"
    words = "unknown price" if cost is None else money_words(cost)
    return f"possibly {words}" if entry.billed == "unknown" else words


def _when(moment: dt.datetime | None) -> str:
    """Local time, to the minute."""
    return "-" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M}"


def spent_lines(ever: Spent, today: Spent) -> list[str]:
    """What was spent, in words; nothing where nothing was."""
    lines = []
    for name, spent in (("today", today), ("in all", ever)):
        words = [_money(spent.paid, spent)]
        words += [f"possibly {_money(spent.possible, spent)} more"] if spent.possible else []
        words += [f"{spent.unpriced} without a known price"] if spent.unpriced else []
        if spent.total or spent.unpriced:
            lines.append(f"{name}: {', '.join(words)}")
    return lines


def _money(micro: int, spent: Spent) -> str:
    return money_words(Money(micro, spent.currency))


def history_object(
    entries: Iterable[Entry], *, links: bool = False, batches: Sequence[Overview] | None = None
) -> JsonObject:
    """The requests for scripts; the body as it was sent, references by name and hash. Batches stand beside them."""
    shown = {
        "schema": SCHEMA,
        "command": "history",
        "requests": [entry_object(entry, links=links) for entry in entries],
    }
    return shown if batches is None else shown | {"batches": [batch_object(batch) for batch in batches]}


def entry_object(entry: Entry, *, links: bool = False) -> JsonObject:
    """One request for scripts."""
    cost, possible = entry_cost(entry), possible_cost(entry)
    return {
        "id": entry.id,
        "run": entry.run,
        "status": entry.status,
        "billed": entry.billed,
        "provider": entry.provider,
        "model": entry.model,
        "prompt": entry.prompt,
        "request": plain_value(entry.body),
        "entered_at": _iso(entry.entered_at),
        "sent_at": _iso(entry.sent_at),
        "answered_at": _iso(entry.answered_at),
        "finished_at": _iso(entry.finished_at),
        "attempts": entry.attempts,
        "task_id": entry.task_id or None,
        "request_id": entry.trace or None,
        "images": [_image_object(image, links=links) for image in entry.images],
        "usage": plain_value(entry.usage) if entry.usage else None,
        "cost": cost_object(cost),
        "error": _failure_object(entry.error),
    } | ({"possible_cost": cost_object(possible)} if possible else {})


def _image_object(image: ImageRow, *, links: bool) -> JsonObject:
    return {
        "index": image.index,
        "state": image.state,
        "path": str(image.path) if image.path else None,
        "url": (image.link if links else mask(image.link)) or None,
        "expires_at": _iso(dt.datetime.fromtimestamp(image.expires, dt.UTC)) if image.expires else None,
        **image_facts(image),
        "error": _failure_object(image.error),
    }


def _failure_object(failure: Failure | None) -> JsonObject | None:
    if failure is None:
        return None
    return failure_fields(failure.code, failure.provider_code, failure.message, failure.hint, failure.request_id)


def _iso(moment: dt.datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None


def entry_detail(entry: Entry, notes: Iterable[Note], width: int, more: Sequence[str] = ()) -> list[str]:
    """Everything of one request, a fact a line; `more` facts come last."""
    facts = [
        ("id", entry.id),
        ("status", f"{entry.status}, billed: {entry.billed}"),
        ("provider", f"{entry.provider} {entry.model}"),
        ("entered", _when(entry.entered_at)),
        ("sent", f"{_when(entry.sent_at)}, attempts: {entry.attempts}" if entry.sent_at else "not sent"),
        ("cost", _cost_words(entry, entry_cost(entry))),
        ("task", entry.task_id),
        ("request id", entry.trace),
        ("prompt", clean(entry.prompt or "", None)),
        ("error", _failure_words(entry.error)),
    ]
    lines = [f"{name}: {value}" for name, value in facts if value]
    for image in entry.images:
        where = clean_path(image.path) if image.path else image.state
        lines.append(f"image {image.index + 1}: {where}{_left(image)}")
        if image.link:
            lines.append(f"  {clean(mask(image.link), None)}")
        if image.error:
            lines.append(f"  {_failure_words(image.error)}")
    lines += [f"note: {_when(note.at)} {note.what}: {clean(note.detail)}" for note in notes]
    lines += more
    return [*lines, ""] if width else lines


def _failure_words(failure: Failure | None) -> str:
    if failure is None:
        return ""
    code = f" ({failure.provider_code})" if failure.provider_code else ""
    return clean(f"{failure.message or failure.code}{code}")


def _left(image: ImageRow) -> str:
    """What is left of the life of a link that is still needed."""
    if image.state != "pending" or not image.expires:
        return ""
    left = image.expires - dt.datetime.now(tz=dt.UTC).timestamp()
    return f", its link has {left / 3600:.1f} h left" if left > 0 else ", its link has expired by its own date"
