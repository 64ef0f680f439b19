"""A table as a run: checked whole, entered in the ledger of its folder, and drawn row by row by the engine.

The table is read several times and never held: once to check it, once to enter it, once to run it, once for its
results. What a row is known by (`tables.Identities`) decides whether it is new; what the ledger says of it decides
whether it runs:

- new, changed and unfinished rows run, and so do those that failed and were not billed;
- what is paid and not on disk is fetched, free of charge; a file that was deleted is too, while its link lives;
- what is done is left alone once its files are seen to be there, and so is what may have been paid (`unknown`).

A picture whose file is gone and whose link is dead is `missing`: told as such, and made anew only when asked for.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import os
import stat
import string
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import names, providers
from .books import to_micro
from .errors import EXIT_CODES, PARTIAL, ConfigError, InputError, LinkError, Problem
from .ledger import Caps, Entry, Forecast, Ledger, Mould, NewRow, Pattern, Queued, Run, Saved, Unsent
from .models import ModelSpec, find_model, size_gap
from .pictures import inspect
from .plan import MICRO, FindKey, Job, Route, key_for, name_fields, plan_draft
from .providers.base import ProviderSpec
from .recovery import brings_images, lost_job, resume
from .request import Draft, Form, ImageRequest, prompt_advice
from .results import BatchReport, Cost, Event, Finished, JobResult, Notice, Report, Sink
from .settings import Key, Surroundings
from .store import Target
from .tables import (
    Checker,
    Columns,
    Findings,
    Identities,
    Judged,
    Row,
    RowResult,
    Shapes,
    Table,
    gather,
    shard_of,
    write_results,
)
from .worker import places

HOME = ".seedream"
"""The folder beside the pictures that holds the batch's ledger and its kept replies."""
CHUNK = 64
"""Rows that are taken in hand at once, with one flush."""
STEP = 1000
"""Positions between two rows, for the requests of one row."""
GUESSED_S = 20.0
"""How long a request is taken to last where nothing better is known."""
WORST_MOST = 50
"""Failed rows that are told one by one at the end; all are in the results."""

ALIKE_MOST = 3
"""Of those, rows that failed for the same reason."""
SHORT_MOST = 10
"""Rows with fewer pictures than they asked for that are told one by one."""

Only = Literal["failed", "unknown", "missing"]
Deed = Literal["send", "again", "fetch", "done", "left", "failed", "unknown", "missing"]
_RUNS: frozenset[Deed] = frozenset({"send", "again", "fetch"})


# --- what is asked for ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index`, from 1, of `count`."""

    index: int = 1
    count: int = 1

    def has(self, key: str) -> bool:
        """Whether the row of this key is its."""
        return self.count == 1 or shard_of(key, self.count) == self.index - 1


@dataclass(frozen=True, slots=True)
class Order:
    """What holds for the whole batch. `folder` takes the pictures, `results` the table of results."""

    folder: Path
    results: Path
    shard: Shard = Shard()
    only: Only | None = None
    limit: int | None = None
    concurrency: int = 8
    max_failures: int = 0
    max_unknown: int = 3
    verify: bool = False

    @property
    def home(self) -> Path:
        """Where the batch's own files lie."""
        return self.folder / HOME

    def caps(self, caps: Caps) -> Caps:
        """What may be spent: `--max-cost` holds for all runs of the folder together, and each shard has its part."""
        if caps.run is None:
            return caps
        part = caps.run // self.shard.count if self.shard.count > 1 else None
        return Caps(None, caps.daily, caps.currency, caps.run, part, self.shard.has)


def read_order(draft: Draft, table: Table, surroundings: Surroundings, found: list[Problem]) -> Order:
    """The options of the batch; what is wrong with them is added to `found`."""
    form = Form(draft, found)
    only = form.choice("only", ("failed", "unknown", "missing"))
    if only == "unknown" and not draft.switches.get("retry_ambiguous"):
        hint = "add --retry-ambiguous to send them all the same, or settle them with `seedream history resolve`"
        found.append(Problem("only", "rows of unknown outcome may have been billed", hint, origin="--only"))
    shard = read_shard(draft.values.get("shard"), surroundings.environ, found)
    for key in ("output", "results"):
        if key in draft.values and (problem := names.scheme_problem(key, draft.values[key])):
            found.append(replace(problem, origin=draft.origin(key)))
    folder = _read_folder(draft.values.get("output"), table, shard, found)
    results = draft.values.get("results")
    failures = form.integer("max_failures", 0, 10**9) or 0
    limit = form.integer("limit", 1, 10**9)
    return Order(
        folder,
        Path(results) if results else folder / "results.csv",
        shard,
        only,  # type: ignore[arg-type]
        limit,
        form.integer("concurrency", 1, 1000) or 8,
        1 if form.switch("fail_fast") else failures,
        form.integer("max_unknown", 1, 1_000_000) or 3,
        form.switch("verify"),
    )


def _read_folder(output: str | None, table: Table, shard: Shard, found: list[Problem]) -> Path:
    """Where pictures go: the folder given, else one that is called as the table."""
    if output is None:
        stem = Path(table.name).stem if table.folder != Path() or table.name != "standard input" else "batch"
        part = f"-{shard.index}-of-{shard.count}" if shard.count > 1 else ""
        return Path(f"{names.clean_name(stem)}{part}")
    folder = Path(output).expanduser()
    if output == "-" or folder.is_file():
        what = "standard output takes one picture" if output == "-" else f"{output} is a file"
        found.append(Problem("output", f"{what}, and a batch fills a folder", "give a folder with -o", origin="-o"))
    return folder


_SHARD_VARIABLES = (
    # (number of this part, the first number, how many parts): GitLab counts from 1, the others from 0.
    ("CI_NODE_INDEX", 1, "CI_NODE_TOTAL"),
    ("CIRCLE_NODE_INDEX", 0, "CIRCLE_NODE_TOTAL"),
    ("BUILDKITE_PARALLEL_JOB", 0, "BUILDKITE_PARALLEL_JOB_COUNT"),
    ("AWS_BATCH_JOB_ARRAY_INDEX", 0, "AWS_BATCH_JOB_ARRAY_SIZE"),
    ("JOB_COMPLETION_INDEX", 0, "JOB_COMPLETIONS"),
)


def read_shard(text: str | None, environ: Mapping[str, str], found: list[Problem]) -> Shard:
    """`I/N`; or `auto`, or `auto/N` where the surroundings tell only the part's number, as Kubernetes does."""
    if text is None:
        return Shard()
    word, _, count = text.strip().lower().partition("/")
    if word == "auto" and (count.isdecimal() or "/" not in text):
        return _find_shard(count, environ, found)
    if word.isdecimal() and count.isdecimal() and 1 <= int(word) <= int(count) <= 100_000:
        return Shard(int(word), int(count))
    found.append(
        Problem("shard", f"{text!r} is no part", "write 2/4 for the second of four, or auto", origin="--shard")
    )
    return Shard()


def _find_shard(count: str, environ: Mapping[str, str], found: list[Problem]) -> Shard:
    """The part by the variables of a CI service or a cluster."""
    numbers = {name: int(text) for name, text in environ.items() if text.isdecimal() and len(text) < 10}
    places = [(name, first, numbers.get(total)) for name, first, total in _SHARD_VARIABLES]
    slurm = numbers.get("SLURM_ARRAY_TASK_COUNT"), numbers.get("SLURM_ARRAY_TASK_MIN", 0)
    step = max(1, numbers.get("SLURM_ARRAY_TASK_STEP", 1))
    places.append(("SLURM_ARRAY_TASK_ID", slurm[1], slurm[0]))
    for name, first, total in places:
        parts = int(count) if count.isdecimal() else total
        if name not in numbers or parts is None:
            continue
        index = (numbers[name] - first) // (step if name.startswith("SLURM") else 1)
        if 0 <= index < parts:
            return Shard(index + 1, parts)
        found.append(Problem("shard", f"${name} is {numbers[name]}, which is none of {parts} parts", origin="--shard"))
        return Shard()
    looked = ", ".join(name for name, _, _ in places)
    hint = f"give --shard I/N, or auto/N where only the part's number is set; looked at {looked}"
    found.append(Problem("shard", "no variable tells which part this is", hint, origin="--shard"))
    return Shard()


# --- rows become requests -------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What all rows of one shape have in common: the job, but for prompt, seed and name, and how often it is sent.

    `mould` is what they have in common in the ledger, None where the dialect does not send prompts as they stand.
    """

    job: Job
    times: int
    fingerprint: str
    most: int
    worst: Cost | None
    mould: Mould | None = None


@dataclass
class Sheet:
    """A table and what its rows ask for. `notices` and `trouble` (no key) are found out while it is checked."""

    table: Table
    columns: Columns
    base: Draft
    order: Order
    surroundings: Surroundings
    sends: bool = True
    notices: dict[str, None] = field(default_factory=dict)
    trouble: ConfigError | None = None
    routes: dict[Route, None] = field(default_factory=dict)
    models: dict[str, None] = field(default_factory=dict)
    pays: bool = True
    price_note: str = ""
    _keys: dict[tuple[str, str], Key] = field(default_factory=dict)
    _shapes: Shapes[Shape | None] = field(init=False)

    def __post_init__(self) -> None:
        self._shapes = Shapes(self.base, self._judge)
        self._fields = (*names.FIELDS, *self.columns.names)
        # What is asked of each of a hundred thousand rows is found out once.
        self._has_ids, self._has_names = (name in self.columns.at for name in ("id", "name"))
        self._name = self.base.values.get("name", "").strip()

    def check(self) -> Findings:
        """Every problem of every row, before anything is sent or written."""
        return gather(self._problems())

    def _problems(self) -> Iterator[Problem]:
        checker = Checker(self._shapes, _advise)
        yield from checker.check(self.table, self.columns)
        if not checker.rows:
            yield Problem("", self.table.no_rows, origin=self.table.name)

    def _judge(self, draft: Draft) -> tuple[Shape | None, Sequence[Problem]]:
        """One shape: a plan of its request, whose prompt, seed and name are stand-ins."""
        found, notices = list[Problem](), list[str]()
        make: Callable[..., Any] = plan_draft
        arguments = (draft, self.surroundings, found, notices)
        more = {"fields": self._fields, "find": self._find_key(), "pays": self.pays}
        try:
            planned = make(*arguments, sends=self.sends, **more)
        except ConfigError as error:
            # A missing key is told after all that is wrong with the table.
            self.trouble = error
            found.clear()
            planned = make(*arguments, sends=False, **more)
        except InputError as error:
            # Such as a provider that nobody knows: a mistake of the row that names it, one of many perhaps.
            return None, [*found, *(replace(p, origin=p.origin or draft.origin(p.field)) for p in error.problems)]
        if planned is None:
            return None, found
        self.notices |= dict.fromkeys(notices)
        job = replace(planned.jobs[0], route=self._pace(planned.route, planned.draft))
        self.routes[job.route] = None
        self.models[job.request.model_id] = None
        most = job.request.pictures_at_most
        worst = job.price(most)
        self.price_note = self.price_note or (worst.note if worst else "")
        shape = Shape(job, planned.built.count, job.request.fingerprint, most, worst)
        body = find_pattern(job)
        return shape if body is None else shape._replace(mould=self._mould(shape, body)), found

    def _find_key(self) -> FindKey:
        """Looks each key up once, however many shapes there are: a key's command may take its time."""

        def find(draft: Draft, spec: ProviderSpec, surroundings: Surroundings, base_url: str = "") -> Key:
            place = (spec.name, base_url)
            if place not in self._keys:
                self._keys[place] = key_for(draft, spec, surroundings, base_url)
            return self._keys[place]

        return find

    def _pace(self, route: Route, draft: Draft) -> Route:
        """The route with its pace: shards share the provider's, unless the flag itself says what is this one's."""
        limits, count = route.limits, self.order.shard.count

        def share(name: Literal["ipm", "rpm"]) -> int | None:
            most: int | None = getattr(limits, name) or getattr(route.spec, name)
            is_own = draft.origins.get(name) == f"--{name}"
            return most if most is None or is_own or count == 1 else max(1, most // count)

        return replace(route, limits=replace(limits, ipm=share("ipm"), rpm=share("rpm")))

    # One row.

    def judged(self) -> Iterator[Judged[Shape | None]]:
        """Every row with its shape, once the table is known to be sound."""
        return map(self._shapes.judge, self.table.rows(self.columns))

    def parts(self, judged: Judged[Shape | None], shape: Shape) -> tuple[str, str, str]:
        """What a row asks for, for its identity."""
        return shape.fingerprint, judged.prompt, judged.seed if shape.job.request.seed is not None else ""

    def request(self, judged: Judged[Shape | None], shape: Shape) -> ImageRequest:
        """The row's own request."""
        request = shape.job.request
        own: dict[str, Any] = {"prompt": judged.prompt} if request.prompt is not None else {}
        if request.seed is not None and judged.seed:
            own["seed"] = int(judged.seed)
        return request.model_copy(update=own)

    def template(self, row: Row) -> str:
        """What the row's pictures are called by."""
        return self._template(row, row.id)

    def _template(self, row: Row, row_id: str) -> str:
        typed = (row.text("name").strip() if self._has_names else "") or self._name
        return typed or ("{id}" if row_id else "{row}-{slug}")

    def _mould(self, shape: Shape, body: Pattern) -> Mould:
        """What the requests of a shape have in common in the ledger, of which `body` is the body."""
        request, worst = shape.job.request, shape.worst
        fields = {"row": "", **({"id": ""} if self._has_ids else {}), "size": request.size}
        output = {"template": "", "first": 1, "of": shape.times * shape.most}
        return Mould(
            provider=request.provider,
            base_url=shape.job.route.base_url,
            model=request.model_id,
            body=body,
            fields=Pattern(fields, ("row", "id")),
            output=Pattern(output, ("template", "first")),
            pictures_at_most=shape.most,
            worst_micro=to_micro(worst),
            currency=worst.currency if worst else "USD",
            as_of=worst.as_of if worst else "",
            file=self.table.name,
        )

    def new_rows(self, judged: Judged[Shape | None], shape: Shape, row_id: str, key: str, run: str) -> list[NewRow]:
        """The requests of a row, for the ledger, where the row is known by `key`."""
        row, request = judged.row, shape.job.request
        number, mould, template = row.number, shape.mould or self._own_mould(judged, shape), self._template(row, row_id)
        prompt = None if request.prompt is None else judged.prompt
        body: tuple[str | int, ...] = (judged.prompt,)
        if mould.body.own != _PROMPT_ALONE:
            own: dict[str, str | int] = {"prompt": judged.prompt, "seed": int(judged.seed or request.seed or 0)}
            body = tuple([own[name] for name in mould.body.own])
        fields: tuple[str, ...] | Mapping[str, str] = (str(number), row_id[:200]) if row_id else (str(number),)
        if (row_id != "") != self._has_ids or not _is_known(template):
            fields = {**self._needed(template, judged, shape), "size": request.size}
        if shape.times == 1:
            place, output = number * STEP, (template, 1)
            name = f"{run}-{number}"
            return [NewRow(mould, name, place, row.line, key, 0, row_id, prompt, body, fields, output)]
        return [
            NewRow(
                mould,
                f"{run}-{number}-{nth + 1}",
                number * STEP + nth,
                row.line,
                key,
                nth,
                row_id,
                prompt,
                body,
                fields,
                (template, nth * shape.most + 1),
            )
            for nth in range(shape.times)
        ]

    def _needed(self, template: str, judged: Judged[Shape | None], shape: Shape) -> dict[str, str]:
        """The fields of a name that a later run could not find out by itself: those of the table, and of the request
        that only the table makes whole.
        """
        row, used = judged.row, _used_fields(template)
        # As it stands: whoever makes a name of it cleans it, and of a hundred thousand rows most are never asked again.
        own = {"row": str(row.number)} | ({"id": row.id[:200]} if row.id else {})
        if used & _OF_REQUEST:
            made = name_fields(self.request(judged, shape), "", 0)
            own |= {name: made[name] for name in sorted(used & _OF_REQUEST)}
        return {name: text for name, text in row.fields.items() if name in used and name not in names.FIELDS} | own

    def _own_mould(self, judged: Judged[Shape | None], shape: Shape) -> Mould:
        """The mould of this row alone, its body made by the dialect."""
        submit = shape.job.route.dialect.submit
        return self._mould(shape, Pattern(submit(self.request(judged, shape)).json or {}))

    def job(self, judged: Judged[Shape | None], entry: Entry | Unsent) -> Job:
        """The job of a row's request, to be sent."""
        row, shape = judged.row, judged.value
        assert shape is not None  # noqa: S101 - only a table without errors is run
        request, template, output = self.request(judged, shape), self.template(row), shape.job.output
        used = _used_fields(template)
        slug = names.slug(request.prompt or request.mode)
        # What no name is made of is not made either: of a hundred thousand rows that is felt.
        is_plain = used <= {"id", "row", "slug", "index"}
        fields = {} if is_plain else {**row.fields, **name_fields(request, entry.id, row.number - 1)}
        fields |= {"id": row.id[:200] or entry.id, "row": str(row.number), "slug": slug}
        return replace(
            shape.job,
            index=entry.position,
            id=entry.id,
            request=request,
            output=output if output.template == template else replace(output, template=template),
            fields=fields,
            first=entry.occurrence * shape.most + 1,
            of=shape.times * shape.most,
        )


def _advise(judged: Judged[Shape | None]) -> Problem | None:
    """What is to be said of a row's own prompt, whose shape was judged with a short one."""
    spec = judged.value.job.route.spec if judged.value else None
    return prompt_advice(judged.prompt, spec.prompt_characters) if spec else None


_PROMPT_ALONE = ("prompt",)
_TRIALS: tuple[Mapping[str, Any], ...] = (
    {"prompt": f" \t“A fox” in\nC:\\wood & <b>100 %</b> {{x}} 狐狸 \U0001f98a {'and on ' * 2000} ", "seed": 104729},
    {"prompt": "b", "seed": 0},
)
"""Two prompts and seeds that have nothing in common, the first as odd as any."""


def find_pattern(job: Job) -> Pattern | None:
    """The body of all requests that differ in their prompt and seed only, as the dialect writes it.

    None where it does not send these as they stand: then each body has to be made by the dialect itself.
    """
    request, submit = job.request, job.route.dialect.submit
    trials = [{key: value for key, value in trial.items() if getattr(request, key) is not None} for trial in _TRIALS]
    bodies = [dict(submit(request.model_copy(update=trial)).json or {}) for trial in trials]
    own = [key for key, value in trials[0].items() if bodies[0].get(key) == value]
    for body, trial in zip(bodies, trials, strict=True):
        if list(body.items()) != list({**bodies[0], **{key: trial[key] for key in own}}.items()):
            return None
    return Pattern(bodies[0], own)


@functools.lru_cache(maxsize=64)
def _is_known(template: str) -> bool:
    """Whether all fields of a name can be found out without the table, but for the row's number and id."""
    return _used_fields(template) <= {"id", "row", *names.FIELDS} - _OF_REQUEST


_OF_REQUEST = frozenset({"hash", "model", "seed"})
"""Fields of a name that are made of the whole request, which no ledger has."""


@functools.lru_cache(maxsize=64)
def _used_fields(template: str) -> frozenset[str]:
    return frozenset(name for _, name, _, _ in string.Formatter().parse(template) if name)


# --- what each row is due -------------------------------------------------------------------------------------------


@dataclass
class Survey:
    """What a run would do. Rows are counted by what they are due; `codes` are those of rows that are left as failed."""

    rows: int = 0
    due: Counter[Deed] = field(default_factory=Counter)
    forecast: Forecast = field(default_factory=Forecast)
    fetched: int = 0
    codes: set[int] = field(default_factory=set)
    seconds: float = 0.0

    @property
    def running(self) -> int:
        """Rows that will run."""
        return sum(self.due[deed] for deed in _RUNS)


class Batch:
    """A sheet with its ledger, in the hands of one run."""

    def __init__(self, sheet: Sheet, ledger: Ledger, run: Run, *, now: Callable[[], float] = time.time) -> None:
        self.sheet = sheet
        self.order = sheet.order
        self.ledger = ledger
        self.run = run
        self.now = now
        self.home = sheet.order.folder
        self.verify = sheet.order.verify
        self._folder = str(self.home)

    def enter(self) -> None:
        """List every row of the table, or of its shard, in the ledger. Known ones keep what is known of them."""
        self.ledger.enter_rows(self.run, self._new_rows())

    def _new_rows(self) -> Iterator[NewRow]:
        identities, sheet, shard, run = Identities(), self.sheet, self.order.shard, self.run.id
        for judged in sheet.judged():
            shape, row_id = judged.value, judged.row.id
            if shape is None:
                continue
            key = identities.key_of(row_id, sheet.parts(judged, shape))
            if shard.has(key):
                yield from sheet.new_rows(judged, shape, row_id, key, run)

    def deed(self, entry: Entry) -> Deed:
        """What a request is due, by what the ledger says and what the disk shows."""
        only = self.order.only
        if entry.state == "queued":
            return "send" if only is None else "left"
        if entry.state in {"waiting", "ready", "sent"}:
            # What is left of it costs nothing, and tells what became of it.
            return "fetch" if only in {None, "missing", "unknown"} else "left"
        if entry.state == "unknown":
            return "again" if only == "unknown" else "unknown" if only is None else "left"
        if entry.state == "failed":
            unbilled = entry.billed == "no" and not entry.doubts
            if only == "failed" or (only is None and unbilled):
                return "again"
            return "failed" if only is None else "left"
        return self._deed_of_saved(entry)

    def _deed_of_saved(self, entry: Entry) -> Deed:
        """A request that ended well, or was settled as paid: its files may be gone, or may never have come."""
        only, gone = self.order.only, self.gone(entry)
        if gone and all(self._lives(entry, index) for index in gone):
            return "fetch" if only in {None, "missing"} else "left"
        lost = gone or entry.state == "resolved" or any(picture.state == "expired" for picture in entry.pictures)
        if lost:
            return "again" if only == "missing" else "missing" if only is None else "left"
        if only is not None:
            return "left"
        return "failed" if entry.status in {"partial", "failed"} else "done"

    def gone(self, entry: Entry) -> list[int]:
        """Which images were saved and are not there any more, or are damaged."""
        rows = (row for row in entry.pictures if row.state == "saved" and row.path is not None)
        digest = self.verify
        return [row.index for row in rows if not _is_saved_file(self.path(row.path), row.bytes, row.sha256 * digest)]

    def path(self, stored: Path | None) -> Path:
        """A picture's file, wherever the batch's folder lies now."""
        return self.home / (stored or Path())

    def _lives(self, entry: Entry, index: int) -> bool:
        """Whether a picture can still be fetched, as far as one can tell."""
        row = next(row for row in entry.pictures if row.index == index)
        return bool(row.link) and (row.expires is None or row.expires > self.now())

    def survey(self) -> Survey:
        """What the run will do, row by row, and what it may cost. Only what is not plain is looked at in Python."""
        survey, limit = Survey(), self.order.limit if self.order.only is None else None
        queued: Deed = "send" if self.order.only is None else "left"
        forecast, single = self.ledger.forecast(self.run), self.ledger.count_single(self.run, STEP)
        # Of rows with a single request only as many are looked at as can be within the limit.
        within = min(single, limit or 0)
        fresh: Iterator[Queued] = itertools.islice(self.ledger.queued(self.run, STEP, single=True), within)
        if single < forecast.requests:
            fresh = heapq.merge(fresh, self.ledger.queued(self.run, STEP, single=False))
        if queued == "send" and not limit:
            survey.forecast = forecast
        due: Iterator[_Due] = ((one.position, queued, one if limit else None) for one in fresh)
        for _, group in itertools.groupby(_merge(self._ended(), due), key=lambda one: one[0] // STEP):
            self._count(survey, [(deed, entry) for _, deed, entry in group])
        survey.rows += single - within
        survey.due["left" if limit else queued] += single - within
        survey.seconds = self._guess_seconds(survey)
        return survey

    def _ended(self) -> Iterator[_Due]:
        """What the requests that are not queued are due, in the order of the table; done ones without their entries."""
        others: Iterator[_Due] = (
            (entry.position, self.deed(entry), entry) for entry in self.ledger.listed(self.run, _UNSAVED)
        )
        return _merge(others, self._saved())

    def _saved(self) -> Iterator[tuple[int, Deed, Entry | None]]:
        done: Deed = "done" if self.order.only is None else "left"
        rows = self.ledger.saved(self.run)
        while chunk := list(itertools.islice(rows, CHUNK)):
            odd = [one.id for one in chunk if not self._is_whole(one)]
            entries = {entry.id: entry for entry in self.ledger.entries(odd)} if odd else {}
            for one in chunk:
                entry = entries.get(one.id)
                yield one.position, self.deed(entry) if entry else done, entry

    def _is_whole(self, saved: Saved) -> bool:
        """Whether every image was made, and every file is there, as far as its size tells; `--verify` looks closer."""
        home = self._folder
        for state, path, size in saved.pictures:
            if state == "handed" or (state == "saved" and path is None):
                continue
            # Of a hundred thousand files a path as an object would take longer than the look.
            if state != "saved" or not _is_saved_file(os.path.join(home, os.fsdecode(path or "")), size):  # noqa: PTH118
                return False
        return not self.verify

    def doubtful(self, *, queued: bool = True) -> Iterator[Entry]:
        """Every request of the table but those that are plainly done, in its order."""
        states = ("queued", *_UNSAVED) if queued else _UNSAVED
        others = ((entry.position, entry) for entry in self.ledger.listed(self.run, states))
        odd = ((position, entry) for position, _, entry in self._saved() if entry)
        return (entry for _, entry in heapq.merge(others, odd, key=lambda one: one[0]))

    def _count(self, survey: Survey, requests: Sequence[tuple[Deed, Entry | Queued | None]]) -> None:
        """One row, by the most urgent of what its requests are due."""
        survey.rows += 1
        deeds = {deed for deed, _ in requests}
        if (
            deeds & {"send", "again"}
            and self.order.limit
            and survey.due["send"] + survey.due["again"] >= self.order.limit
        ):
            survey.due["left"] += 1
            return
        survey.due[next(deed for deed in _ORDER if deed in deeds)] += 1
        for deed, entry in requests:
            if entry is None:
                continue
            if deed == "fetch":
                survey.fetched += 1
            elif deed in {"send", "again"}:
                priced = entry.worst_micro is not None
                survey.forecast += Forecast(1, entry.pictures_at_most, entry.worst_micro or 0, int(not priced))
            elif deed in {"failed", "unknown", "missing"} and isinstance(entry, Entry):
                survey.codes.add(_code(entry, deed))

    def _guess_seconds(self, survey: Survey) -> float:
        """How long it may take: by the number at work, and by the pace of the slowest provider."""
        requests, pictures = survey.forecast.requests, survey.forecast.pictures
        seconds = [requests * GUESSED_S / min(self.order.concurrency, max(1, requests))]
        for route in self.sheet.routes:
            seconds += [60 * requests / route.limits.rpm] if route.limits.rpm else []
            seconds += [60 * pictures / route.limits.ipm] if route.limits.ipm else []
        return max(seconds) if requests else 0.0

    # Running.

    def jobs(self, expect: Callable[[Row, int], None]) -> Iterator[Job]:
        """The jobs of the run in the order of the table, each in hand when it comes.

        `expect` is told of each row, and how many jobs of it come, before the first of them does.
        """
        yield from self._lost_jobs()
        rows = self.sheet.judged()
        for number, group in itertools.groupby(self._due(), key=lambda entry: entry.position // STEP):
            due = list(group)
            judged = next((judged for judged in rows if judged.row.number == number), None)
            if judged is None:
                continue
            jobs = [job for entry in due if (job := self._job(judged, entry))]
            expect(judged.row, len(jobs))
            yield from jobs

    def _due(self) -> Iterator[Entry | Unsent]:
        """What runs, a chunk at a time in hand."""
        known = (entry for entry in self.doubtful(queued=False) if self.deed(entry) in _RUNS)
        unsent = self.ledger.unsent(self.run) if self.order.only is None else iter(())
        runs = self._within_limit(heapq.merge(known, unsent, key=lambda one: one.position))
        while chunk := list(itertools.islice(runs, CHUNK)):
            claimed = self.ledger.claim(self.run, [one.id for one in chunk if isinstance(one, Unsent)])
            wanted = [one.id for one in chunk if isinstance(one, Entry)]
            taken = {entry.id: entry for entry in self.ledger.take(self.run, wanted)} if wanted else {}
            for one in chunk:
                if isinstance(one, Entry) and one.id in taken:
                    yield self._fetchable(taken[one.id])
                elif one.id in claimed:
                    yield one

    def _within_limit(self, entries: Iterable[Entry | Unsent]) -> Iterator[Entry | Unsent]:
        """What is to be sent for the first rows, up to the limit; what is free of charge is always fetched."""
        rows, last = 0, None
        for entry in entries:
            row = entry.position // STEP
            if self.order.limit and (isinstance(entry, Unsent) or self.deed(entry) != "fetch"):
                rows, last = rows + (row != last), row
                if rows > self.order.limit:
                    continue
            yield entry

    def _fetchable(self, entry: Entry) -> Entry:
        """A saved request whose files are gone has pictures to fetch again."""
        if entry.state != "saved" or self.deed(entry) != "fetch":
            return entry
        self.ledger.mark_missing(entry.id, self.gone(entry))
        return self.ledger.take(self.run, [entry.id])[0]

    def _job(self, judged: Judged[Shape | None], entry: Entry | Unsent) -> Job | None:
        job = self.sheet.job(judged, entry)
        deed = "send" if isinstance(entry, Unsent) else self.deed(entry)
        if isinstance(entry, Entry) and deed == "fetch":
            return resume(entry, job, self.order.home / "replies")
        replies = self.order.home / "replies"
        if isinstance(entry, Entry) and entry.state == "unknown" and brings_images(entry, replies):
            # What was paid for is here after all: nothing need be sent again.
            return resume(entry, job, replies)
        if job.output.if_exists == "error" or "/" in (job.output.template or ""):
            job.output.prepare(places(job))
        return replace(job, again=True) if deed == "again" else job

    def _lost_jobs(self) -> Iterator[Job]:
        """What was paid for rows that are not in the table any more: it is fetched all the same."""
        if self.order.only is not None:
            return
        target = Target(self.order.folder, "rename", 1)
        for number, entry in enumerate(self.ledger.unsaved()):
            is_listed = self.ledger.is_listed(self.run, entry.id)
            if is_listed or entry.state != "ready" or entry.error is not None:
                continue
            sheet = self.sheet
            replies = self.order.home / "replies"
            job = lost_job(entry, sheet.base, sheet.surroundings, replies, output=target, found=[])
            if job and self.ledger.take(self.run, [entry.id]):
                # Below zero no row has its place.
                yield replace(job, index=-1 - number)

    # Results.

    def write_results(self, stream: int | None = None) -> None:
        """The table of results, from the ledger alone, so that it is true whenever it is written."""
        write_results(self.order.results, self.sheet.table, self._results(), stream=stream)

    def _results(self) -> Iterator[tuple[Row, RowResult]]:
        rows = self.sheet.table.rows(self.sheet.columns)
        for number, group in itertools.groupby(self.ledger.listed(self.run), key=lambda entry: entry.position // STEP):
            entries = list(group)
            row = next((row for row in rows if row.number == number), None)
            if row is not None:
                yield row, self.result(entries)

    def result(self, entries: Sequence[Entry]) -> RowResult:
        """One row, all its requests together."""
        pictures = [picture for entry in entries for picture in entry.pictures]
        errors = [error for entry in entries for error in (entry.error, *(p.error for p in entry.pictures)) if error]
        words = [error.message for error in errors] + [_LEFT_OPEN for entry in entries if entry.state == "sent"]
        states = [self._status(entry) for entry in entries]
        status = states[0] if len(set(states)) == 1 else next(word for word in _WORDS if word in states)
        paid = [entry for entry in entries if entry.billed != "no" or entry.earlier_micro]
        known = [entry for entry in paid if entry.settled_micro is not None or entry.worst_micro is not None]
        micro = sum(_cost_of(entry) for entry in known)
        traces = [text for e in entries for text in (e.trace, e.error.request_id if e.error else "") if text]
        return RowResult(
            "partial" if len(set(states)) > 1 and "succeeded" in states else status,
            "|".join(str(self.path(p.path)) if p.path else p.link for p in pictures if p.state in {"saved", "handed"}),
            "; ".join(dict.fromkeys(words)),
            "; ".join(dict.fromkeys(error.provider_code for error in errors if error.provider_code)),
            "unknown" if any(e.billed == "unknown" for e in entries) else "yes" if paid else "no",
            f"{micro / MICRO:.6f}".rstrip("0").rstrip(".") if known else "",
            "; ".join(dict.fromkeys(traces)),
            "; ".join(dict.fromkeys(words for entry in entries for words in _gaps(entry))),
        )

    def _status(self, entry: Entry) -> str:
        """The word for a request in the results."""
        if entry.state in {"saved", "resolved"} and self.gone(entry):
            return "missing"
        # A run that is over has nothing under way.
        return {"queued": "unsent", "sent": "unknown"}.get(entry.state, entry.status)


def _gaps(entry: Entry) -> Iterator[str]:
    """Where the images of a request are not what its body asked for."""
    size, format_ = entry.body.get("size"), entry.body.get("output_format")
    if any("layer" in name for name in entry.body):
        return
    for row in entry.pictures:
        if row.state != "saved":
            continue
        model = _model(entry.provider, entry.model)
        if isinstance(size, str) and (said := size_gap(model, size, row.width, row.height)):
            yield said
        if isinstance(format_, str) and row.format and row.format != format_:
            yield f"{format_} was asked for, and {row.format} came"


@functools.cache
def _model(provider: str, model_id: str) -> ModelSpec | None:
    return find_model(model_id, providers.load(provider).spec.spelling) if provider in providers.PROVIDERS else None


def _cost_of(entry: Entry) -> int:
    # Of what came in part the images are certain; where nothing came, the price of the request is what it may be.
    is_settled = entry.settled_micro is not None and (entry.billed != "unknown" or entry.settled_micro > 0)
    own = entry.settled_micro if is_settled else entry.worst_micro
    return entry.earlier_micro + (0 if entry.billed == "no" else own or 0)


_LEFT_OPEN = "it was out when the run ended; the same command reads what came of it, if anything did"
_WORDS = (
    "unknown",
    "unsaved",
    "submitted",
    "failed",
    "partial",
    "missing",
    "resolved",
    "unsent",
    "running",
    "succeeded",
)
_ORDER: tuple[Deed, ...] = ("send", "again", "fetch", "unknown", "missing", "failed", "left", "done")
_ENDED: tuple[Any, ...] = ("sent", "waiting", "ready", "saved", "failed", "unknown", "resolved")


_UNSAVED: tuple[Any, ...] = tuple(state for state in _ENDED if state != "saved")
_Due = tuple[int, Deed, Entry | Queued | None]


def _merge(*streams: Iterator[_Due]) -> Iterator[_Due]:
    """Several streams in one, by position."""
    return heapq.merge(*streams, key=lambda one: one[0])


def _code(entry: Entry, deed: Deed) -> int:
    """The exit code of a row that stays as it ended earlier."""
    if deed == "unknown":
        return EXIT_CODES["unknown_outcome"]
    if deed == "missing":
        return EXIT_CODES["expired"]
    if entry.status == "partial":
        return PARTIAL
    code = entry.error.code if entry.error else next((p.error.code for p in entry.pictures if p.error), "")
    return EXIT_CODES.get(code, 1)


# --- why a row would run --------------------------------------------------------------------------------------------


def explain_stale(batch: Batch) -> Iterator[tuple[Row, str]]:
    """Each row that would run, and why."""
    earlier: dict[str, str] = {}
    for request_id, row_id, position in batch.ledger.unlisted(batch.run):
        earlier[f"id {row_id}" if row_id else f"row {position // STEP}"] = request_id
    rows = batch.sheet.table.rows(batch.sheet.columns)
    for number, group in itertools.groupby(batch.doubtful(), key=lambda entry: entry.position // STEP):
        due = [entry for entry in group if batch.deed(entry) in _RUNS]
        row = next((row for row in rows if row.number == number), None)
        if due and row is not None:
            yield row, "; ".join(dict.fromkeys(_why(entry, batch, earlier) for entry in due))


def _why(entry: Entry, batch: Batch, earlier: Mapping[str, str]) -> str:
    if entry.state == "queued" and entry.run != batch.run.id:
        return "unfinished: it was not sent yet"
    if entry.state == "queued":
        row = entry.position // STEP
        before = earlier.get(f"id {entry.row_id}" if entry.row_id else f"row {row}")
        found = batch.ledger.find(before) if before else ()
        return f"changed: {_difference(found[0], entry)}" if found else "new"
    if entry.state == "failed":
        return f"failed before: {entry.error.message if entry.error else 'no reason was kept'}"
    if entry.state == "unknown":
        return "of unknown outcome, to be sent again on your order"
    if entry.state in {"waiting", "ready", "sent"}:
        return "paid and not saved: fetched free of charge"
    fetched = batch.deed(entry) == "fetch"
    return "its file is gone: fetched again, free of charge" if fetched else "its file is gone: made and paid for again"


def _difference(old: Entry, new: Entry) -> str:
    """What a row asks for that it did not ask for before."""
    pairs = {
        "provider": (old.provider, new.provider),
        "model": (old.model, new.model),
        "prompt": (old.prompt, new.prompt),
    }
    keys = dict.fromkeys((*old.body, *new.body))
    pairs |= {key: (old.body.get(key), new.body.get(key)) for key in keys if key not in pairs}
    differing = [name for name, (one, other) in pairs.items() if one != other]
    return ", ".join(differing) or "what its pictures hold, or which of several equal rows it is"


# --- what comes of it -----------------------------------------------------------------------------------------------


def _mend_hints(results: Sequence[JobResult]) -> None:
    """`recover` looks into the user's ledger, and a batch has its own: there the same command does it."""
    for image in (image for result in results for image in result.images):
        if image.error and "`seedream recover`" in image.error.hint:
            image.error.hint = "it is paid for: set that right, and the same command fetches it, free of charge"
    for error in (result.error for result in results):
        if error and error.kind == "rate_limited" and "--" not in error.hint:
            error.hint = "; ".join(part for part in (error.hint, "lower --concurrency, --ipm or --rpm") if part)


@dataclass(frozen=True, slots=True)
class _Under:
    """A row that runs: how many of its results are to come, and those that came."""

    row: Row
    expected: int
    came: list[JobResult] = field(default_factory=list)


def _is_saved_file(path: str | Path, size: int | None, sha256: str = "") -> bool:
    """Whether a file is still the image that was saved: by its size, and by its contents where `sha256` is given.

    Another size is a damaged file, unless it is a whole image: that is what the user made of it.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - a hundred thousand of them
        if not stat.S_ISREG(found.st_mode):
            return False
        # No image has no bytes: its size was not written down.
        if not sha256 and (not size or found.st_size == size):
            return True
        return inspect(Path(path)).sha256 == sha256 if sha256 else bool(inspect(Path(path)))
    except (OSError, LinkError):
        return False


class Tracker:
    """Counts rows as they end, and hands each whole row on. Holds only rows under way, and the first failures."""

    def __init__(self, sink: Sink, tell: Callable[[Row, Sequence[JobResult]], None]) -> None:
        self._sink = sink
        self._tell = tell
        self._under: dict[int, _Under] = {}
        self.counts: Counter[str] = Counter()
        self.codes: set[int] = set()
        self.images = 0
        self.unpriced = 0
        self.costs: Counter[str] = Counter()
        self.currency = ("USD", "", "")
        self.worst: list[JobResult] = []
        self._reasons: Counter[str] = Counter()
        self.short: list[JobResult] = []
        self.short_rows = 0
        self.labels: dict[int, str] = {}

    def expect(self, row: Row, jobs: int) -> None:
        """A row is about to run."""
        if jobs:
            self._under[row.number] = _Under(row, jobs)

    def emit(self, event: Event) -> None:
        """Take one event and hand it on."""
        if isinstance(event, Finished):
            self._take(event.result)
        self._sink.emit(event)

    def close(self) -> None:
        """Nothing to leave."""

    def _take(self, result: JobResult) -> None:
        under = self._under.get(result.index // STEP)
        self._count_money(result)
        if under is None:
            self._tell_lost(result)
            return
        under.came.append(result)
        if len(under.came) == under.expected:
            del self._under[result.index // STEP]
            self._end(under.row, sorted(under.came, key=lambda one: one.index))

    def _tell_lost(self, result: JobResult) -> None:
        """What was paid for a row that the table has no more, and is still not here: no row of it tells of that."""
        if result.error is not None and result.error.kind != "interrupted":
            said = f"{result.id} was paid for earlier, and its row is not in the table: {result.error.message}"
            self._sink.emit(Notice(f"{said}; {result.error.hint}" if result.error.hint else said))

    def _count_money(self, result: JobResult) -> None:
        """What the run has paid; what an earlier one paid is fetched and not paid again."""
        self.images += sum(1 for image in result.images if image.error is None)
        if not result.attempts:
            return
        doubtful = result.status == "unknown" or (result.error is not None and result.error.billed == "unknown")
        if result.cost and result.certain:
            self.costs["paid"] += to_micro(result.certain) or 0
            self.costs["possible"] += to_micro(result.possible) or 0
            self.currency = (result.cost.currency, result.cost.as_of, result.cost.note)
        elif doubtful or any(image.error is None for image in result.images):
            self.unpriced += 1

    def _end(self, row: Row, results: Sequence[JobResult]) -> None:
        """A row is at its end; one that was held back, for a reason that is not its own, is not."""
        if any(result.status == "interrupted" for result in results):
            self.counts["unsent"] += 1
            return
        _mend_hints(results)
        code = Report("batch", tuple(results)).exit_code
        unknown = any(result.status == "unknown" for result in results)
        self.counts["unknown" if unknown else "failed" if code else "succeeded"] += 1
        self.codes.add(code)
        self._note_short(row, results)
        if code and len(self.worst) < WORST_MOST and (unknown or self._is_news(results)):
            for result in results:
                self.labels[result.index] = f"row {row.number} ({row.origin})"
                self.worst += [replace(result, request={})]
        self._tell(row, results)

    def _is_news(self, results: Sequence[JobResult]) -> bool:
        """Whether no more than a few rows failed for this very reason before: forty lines tell no more than three."""
        errors = [e for r in results for e in (r.error, *(image.error for image in r.images)) if e]
        reason = "; ".join(dict.fromkeys(error.message for error in errors))
        if reason in self._reasons or len(self._reasons) < WORST_MOST:
            self._reasons[reason] += 1
        return self._reasons[reason] <= ALIKE_MOST

    def _note_short(self, row: Row, results: Sequence[JobResult]) -> None:
        """Keep the first rows that got fewer pictures than they asked for, which is no failure."""
        short = [result for result in results if (result.asked_up_to or 0) > len(result.images) or result.warnings]
        short = [replace(result, request={}) for result in short if result.status in {"succeeded", "partial"}]
        self.short_rows += bool(short)
        if short and self.short_rows <= SHORT_MOST:
            self.short += short
            self.labels |= {result.index: f"row {row.number} ({row.origin})" for result in short}

    def report(self, survey: Survey, ending: Any) -> BatchReport:
        """What became of all rows."""
        ended = sum(self.counts[word] for word in ("succeeded", "failed", "unknown"))
        standing = Counter({word: survey.due[word] for word in ("failed", "unknown", "missing", "left")})
        unsent = max(0, survey.running - ended)
        failed = self.counts["failed"] + standing["failed"] + standing["missing"]
        unknown = self.counts["unknown"] + standing["unknown"]
        codes = self.codes | survey.codes | ({0} if survey.due["done"] else set())
        if unsent and not (ending.halt or ending.signal_number):
            # Nothing stopped the run, and yet rows are left: another process had them, or the table changed meanwhile.
            codes |= {PARTIAL}
        return BatchReport(
            rows=survey.rows,
            succeeded=self.counts["succeeded"],
            failed=failed,
            unknown=unknown,
            skipped=survey.rows - self.counts["succeeded"] - failed - unknown - unsent,
            unsent=unsent,
            images=self.images,
            cost=None if self.unpriced else Cost(self.costs["paid"] / MICRO, *self.currency),
            possible=Cost(self.costs["possible"] / MICRO, *self.currency) if self.costs["possible"] else None,
            unpriced=self.unpriced,
            elapsed_s=ending.elapsed_s,
            codes=frozenset(codes),
            worst=tuple(self.worst),
            signal_number=ending.signal_number,
            halt=ending.halt,
        )
