"""Rows as requests: rows of the same shape share one template of their request."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from ..config.environment import Environment
from ..config.settings import Key
from ..engine.plan import FindKey, Job, Route, key_for, name_fields, plan_request
from ..errors import ConfigError, InputError, Problem
from ..ledger.entering import JsonTemplate, NewRow, RequestTemplate
from ..ledger.records import Entry, Unsent
from ..providers.contract import ProviderSpec
from ..request.image_request import ImageRequest, OptionValues
from ..request.model_checks import prompt_advice
from ..results import Cost, to_micro
from ..storage import file_names
from .checks import CheckedRow, Checker, Findings, TemplateCache, gather
from .columns import Columns
from .options import STEP, BatchOptions
from .table import Row, Table


class RowTemplate(NamedTuple):
    """What all rows of one shape have in common: the job, but for prompt, seed and name, and how often it is sent.

    `request_template` is what they have in common in the ledger, None where the dialect does not send prompts as they
    stand.
    """

    job: Job
    times: int
    fingerprint: str
    most: int
    worst: Cost | None
    request_template: RequestTemplate | None = None


@dataclass
class RowRequests:
    """A table and what its rows ask for. `notices` and `trouble` (no key) are found out while it is checked."""

    table: Table
    columns: Columns
    base: OptionValues
    order: BatchOptions
    environment: Environment
    sends: bool = True
    notices: dict[str, None] = field(default_factory=dict)
    trouble: ConfigError | None = None
    routes: dict[Route, None] = field(default_factory=dict)
    models: dict[str, None] = field(default_factory=dict)
    pays: bool = True
    price_note: str = ""
    _keys: dict[tuple[str, str], Key] = field(default_factory=dict)
    _shapes: TemplateCache[RowTemplate | None] = field(init=False)

    def __post_init__(self) -> None:
        self._shapes = TemplateCache(self.base, self._judge)
        self._fields = (*file_names.FIELDS, *self.columns.names)
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

    def _judge(self, options: OptionValues) -> tuple[RowTemplate | None, Sequence[Problem]]:
        """One shape: a plan of its request, whose prompt, seed and name are stand-ins."""
        found, notices = list[Problem](), list[str]()
        make: Callable[..., Any] = plan_request
        arguments = (options, self.environment, found, notices)
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
            return None, [*found, *(replace(p, origin=p.origin or options.origin(p.field)) for p in error.problems)]
        if planned is None:
            return None, found
        self.notices |= dict.fromkeys(notices)
        job = replace(planned.jobs[0], route=self._pace(planned.route, planned.options))
        self.routes[job.route] = None
        self.models[job.request.model_id] = None
        most = job.request.images_at_most
        worst = job.price(most)
        self.price_note = self.price_note or (worst.note if worst else "")
        shape = RowTemplate(job, planned.built.count, job.request.fingerprint, most, worst)
        body = find_pattern(job)
        return shape if body is None else shape._replace(request_template=self._mould(shape, body)), found

    def _find_key(self) -> FindKey:
        """Looks each key up once, however many shapes there are: a key's command may take its time."""

        def find(options: OptionValues, spec: ProviderSpec, environment: Environment, base_url: str = "") -> Key:
            place = (spec.name, base_url)
            if place not in self._keys:
                self._keys[place] = key_for(options, spec, environment, base_url)
            return self._keys[place]

        return find

    def _pace(self, route: Route, options: OptionValues) -> Route:
        """The route with its pace: shards share the provider's, unless the flag itself says what is this one's."""
        limits, count = route.limits, self.order.shard.count

        def share(name: Literal["ipm", "rpm"]) -> int | None:
            most: int | None = getattr(limits, name) or getattr(route.spec, name)
            is_own = options.origins.get(name) == f"--{name}"
            return most if most is None or is_own or count == 1 else max(1, most // count)

        return replace(route, limits=replace(limits, ipm=share("ipm"), rpm=share("rpm")))

    # One row.

    def judged(self) -> Iterator[CheckedRow[RowTemplate | None]]:
        """Every row with its shape, once the table is known to be sound."""
        return map(self._shapes.judge, self.table.rows(self.columns))

    def parts(self, judged: CheckedRow[RowTemplate | None], shape: RowTemplate) -> tuple[str, str, str]:
        """What a row asks for, for its identity."""
        return shape.fingerprint, judged.prompt, judged.seed if shape.job.request.seed is not None else ""

    def request(self, judged: CheckedRow[RowTemplate | None], shape: RowTemplate) -> ImageRequest:
        """The row's own request."""
        request = shape.job.request
        own: dict[str, Any] = {"prompt": judged.prompt} if request.prompt is not None else {}
        if request.seed is not None and judged.seed:
            own["seed"] = int(judged.seed)
        return request.model_copy(update=own)

    def template(self, row: Row) -> str:
        """What the row's images are called by."""
        return self._template(row, row.id)

    def _template(self, row: Row, row_id: str) -> str:
        typed = (row.text("name").strip() if self._has_names else "") or self._name
        return typed or ("{id}" if row_id else "{row}-{slug}")

    def _mould(self, shape: RowTemplate, body: JsonTemplate) -> RequestTemplate:
        """What the requests of a shape have in common in the ledger, of which `body` is the body."""
        request, worst = shape.job.request, shape.worst
        fields = {"row": "", **({"id": ""} if self._has_ids else {}), "size": request.size}
        output = {"template": "", "first": 1, "of": shape.times * shape.most}
        return RequestTemplate(
            provider=request.provider,
            base_url=shape.job.route.base_url,
            model=request.model_id,
            body=body,
            fields=JsonTemplate(fields, ("row", "id")),
            output=JsonTemplate(output, ("template", "first")),
            images_at_most=shape.most,
            worst_micro=to_micro(worst),
            currency=worst.currency if worst else "USD",
            as_of=worst.as_of if worst else "",
            file=self.table.name,
        )

    def new_rows(
        self, judged: CheckedRow[RowTemplate | None], shape: RowTemplate, row_id: str, key: str, run: str
    ) -> list[NewRow]:
        """The requests of a row, for the ledger, where the row is known by `key`."""
        row, request = judged.row, shape.job.request
        number, request_template, template = (
            row.number,
            shape.request_template or self._own_mould(judged, shape),
            self._template(row, row_id),
        )
        prompt = None if request.prompt is None else judged.prompt
        body: tuple[str | int, ...] = (judged.prompt,)
        if request_template.body.own != _PROMPT_ALONE:
            own: dict[str, str | int] = {"prompt": judged.prompt, "seed": int(judged.seed or request.seed or 0)}
            body = tuple([own[name] for name in request_template.body.own])
        fields: tuple[str, ...] | Mapping[str, str] = (str(number), row_id[:200]) if row_id else (str(number),)
        if (row_id != "") != self._has_ids or not _is_known(template):
            fields = {**self._needed(template, judged, shape), "size": request.size}
        if shape.times == 1:
            place, output = number * STEP, (template, 1)
            name = f"{run}-{number}"
            return [NewRow(request_template, name, place, row.line, key, 0, row_id, prompt, body, fields, output)]
        return [
            NewRow(
                request_template,
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

    def _needed(self, template: str, judged: CheckedRow[RowTemplate | None], shape: RowTemplate) -> dict[str, str]:
        """The fields of a name that a later run could not find out by itself: those of the table, and of the request
        that only the table makes whole.
        """
        row, used = judged.row, _used_fields(template)
        # As it stands: whoever makes a name of it cleans it, and of a hundred thousand rows most are never asked again.
        own = {"row": str(row.number)} | ({"id": row.id[:200]} if row.id else {})
        if used & _OF_REQUEST:
            made = name_fields(self.request(judged, shape), "", 0)
            own |= {name: made[name] for name in sorted(used & _OF_REQUEST)}
        return {name: text for name, text in row.fields.items() if name in used and name not in file_names.FIELDS} | own

    def _own_mould(self, judged: CheckedRow[RowTemplate | None], shape: RowTemplate) -> RequestTemplate:
        """The mould of this row alone, its body made by the dialect."""
        submit = shape.job.route.dialect.submit
        return self._mould(shape, JsonTemplate(submit(self.request(judged, shape)).json or {}))

    def job(self, judged: CheckedRow[RowTemplate | None], entry: Entry | Unsent) -> Job:
        """The job of a row's request, to be sent."""
        row, shape = judged.row, judged.value
        assert shape is not None  # noqa: S101 - only a table without errors is run
        request, template, output = self.request(judged, shape), self.template(row), shape.job.output
        used = _used_fields(template)
        slug = file_names.slug(request.prompt or request.mode)
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


def _advise(judged: CheckedRow[RowTemplate | None]) -> Problem | None:
    """What is to be said of a row's own prompt, whose shape was judged with a short one."""
    spec = judged.value.job.route.spec if judged.value else None
    return prompt_advice(judged.prompt, spec.prompt_characters) if spec else None


_PROMPT_ALONE = ("prompt",)

_TRIALS: tuple[Mapping[str, Any], ...] = (
    {"prompt": f" \t“A fox” in\nC:\\wood & <b>100 %</b> {{x}} 狐狸 \U0001f98a {'and on ' * 2000} ", "seed": 104729},
    {"prompt": "b", "seed": 0},
)
"""Two prompts and seeds that have nothing in common, the first as odd as any."""


def find_pattern(job: Job) -> JsonTemplate | None:
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
    return JsonTemplate(bodies[0], own)


@functools.lru_cache(maxsize=64)
def _is_known(template: str) -> bool:
    """Whether all fields of a name can be found out without the table, but for the row's number and id."""
    return _used_fields(template) <= {"id", "row", *file_names.FIELDS} - _OF_REQUEST


_OF_REQUEST = frozenset({"hash", "model", "seed"})
"""Fields of a name that are made of the whole request, which no ledger has."""


@functools.lru_cache(maxsize=64)
def _used_fields(template: str) -> frozenset[str]:
    return frozenset(name for _, name, _, _ in string.Formatter().parse(template) if name)
