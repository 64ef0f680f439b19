"""From drafts to a plan: provider, key, validated requests, names and limits, all decided before anything is sent."""

from __future__ import annotations

import datetime as dt
import functools
import secrets
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from .. import providers
from ..config.credentials import choose_keyed_provider, find_key
from ..config.environment import Environment
from ..config.options import parse_values, value_of
from ..config.settings import Key, Settings, complete
from ..errors import ConfigError, FileError, InputError, LinkError, Problem
from ..ledger.records import Caps
from ..providers.base_url import full_url
from ..providers.contract import Dialect, ProviderSpec, model_id_for, rule_for
from ..request.image_request import ImageRef, ImageRequest, OptionValues, TargetModel
from ..request.limits import COUNT_MOST
from ..request.models import DEFAULT_MODEL, MODELS, ModelSpec, find_model
from ..request.validation import Validated, build, shared_stdin
from ..results import Cost, JobResult, cap_micro
from ..storage import file_names, output_path
from . import cost_limit
from .cost_limit import Bill
from .work import Earlier, Fetch, Reuse, Send, Work

if TYPE_CHECKING:
    from ..request.reference_fit import Fit


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often: seconds, and further tries after the first.

    `ipm` and `rpm` are the most images and requests a minute; None for what is known of the provider.
    """

    timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    retries: int = 4
    retry_ambiguous: bool = False
    proxy: str | None = None
    ipm: int | None = None
    rpm: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests go: the provider's dialect, the API's address with its version, the key, and the limits there.

    `key` is None where nothing will be sent or the provider needs none. `by_hand` says that the reply was handed in
    by the user, so that its links may lead anywhere.
    """

    dialect: Dialect
    base_url: str
    key: Key | None
    limits: Limits
    by_hand: bool = False

    @property
    def spec(self) -> ProviderSpec:
        """The provider's data."""
        return self.dialect.spec


@dataclass(frozen=True, slots=True)
class Job:
    """One request of the run, and what there is to do for it: its `work`.

    `fields` makes its images' names, `first` is the number of its first one among the `of` that share a name.
    `in_ledger` is False for what the ledger does not know. `bill` is what its body can cost; without one, as for what
    was paid before, the request tells. `strict` ends with 9 where something else came than was asked for.
    """

    index: int
    id: str
    route: Route
    model: ModelSpec | None
    request: ImageRequest
    output: output_path.OutputTarget
    fields: Mapping[str, str]
    work: Work = field(default_factory=Send)
    first: int = 1
    of: int = 1
    download: bool = True
    in_ledger: bool = True
    bill: Bill | None = None
    strict: bool = False

    @property
    def fetches(self) -> bool:
        """Whether it sends nothing new, and only fetches what was paid for."""
        return isinstance(self.work, Fetch)

    @property
    def earlier(self) -> Earlier:
        """What is known of its request from before."""
        return Earlier() if isinstance(self.work, Send | Reuse) else self.work.earlier

    @property
    def most(self) -> int:
        """How many images it may bring."""
        return self.earlier.most or self.request.images_at_most

    @property
    def again(self) -> bool:
        """Whether it ended before, and is sent once more on the user's order."""
        return isinstance(self.work, Send) and self.work.again

    @property
    def title(self) -> str:
        """What the user knows it by: the id of its row, or else the prompt."""
        own = self.fields.get("id", "")
        return own if own not in {"", self.id} else self.request.prompt or ""

    def price(self, images: int) -> Cost | None:
        """What so many images of this request cost; None where that is not known."""
        bill = self.bill or find_bill(self.route, self.request, Settings())
        return bill.cost(images)


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One draft after planning: the outcome of `build` and where it goes, for `--explain` and `--dry-run`."""

    options: OptionValues
    built: Validated
    route: Route
    model: ModelSpec | None
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run, resolved once. `notices` are lines for the user that are no warnings.

    `caps` bounds what it may cost; `extra` are jobs that fetch what earlier runs paid for and left. `left` are results
    of earlier requests of unknown outcome, of which there is nothing to fetch.
    """

    command: str
    run: str
    drafted: tuple[PlannedRequest, ...]
    warnings: tuple[Problem, ...]
    notices: tuple[str, ...]
    caps: Caps = field(default_factory=Caps)
    extra: tuple[Job, ...] = ()
    max_unknown: int = 3
    left: tuple[JobResult, ...] = ()

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Every request of the run, in order."""
        return tuple(job for planned in self.drafted for job in planned.jobs)


def make_plan(
    command: str,
    drafted: Sequence[OptionValues],
    environment: Environment,
    *,
    problems: Sequence[Problem] = (),
    sends: bool = True,
) -> Plan:
    """Resolve drafts to a plan. Raises `InputError` with every problem found, or `ConfigError` where no key serves.

    `sends` is False for a dry run, which needs no key.
    """
    found, notices = list(problems), list[str]()
    run = run_id()
    planned: list[PlannedRequest] = []
    for options in drafted:
        one = plan_request(options, environment, found, notices, sends=sends)
        if one is not None:
            planned.append(one)
    caps = functools.reduce(Caps.within, (plan_caps(options, environment, found) for options in drafted))
    unknowns = [most for options in drafted if (most := value_of("max_unknown", options, found))]
    errors = [p for p in found if p.severity == "error"]
    if errors:
        raise InputError(list(dict.fromkeys(errors)))
    ready = _number(planned, run)
    warnings = tuple(dict.fromkeys(p for p in found if p.severity == "warning"))
    return Plan(
        command, run, ready, warnings, tuple(dict.fromkeys(notices)), caps, max_unknown=min(unknowns, default=3)
    )


def run_id() -> str:
    """A new run's id: the day, and six digits of chance."""
    return f"{dt.datetime.now(tz=dt.UTC).astimezone():%y%m%d}-{secrets.token_hex(3)}"


FindKey = Callable[[OptionValues, ProviderSpec, Environment, str], Key]


def plan_request(
    options: OptionValues,
    environment: Environment,
    found: list[Problem],
    notices: list[str],
    *,
    sends: bool,
    fields: Collection[str] = file_names.FIELDS,
    find: FindKey | None = None,
    pays: bool = True,
) -> PlannedRequest | None:
    """One draft; its problems are added to `found`. The key is looked for last, so bad input is told first.

    `fields` are what its name template may use; `find` may remember keys that were looked up before. Where nobody
    `pays`, not even later, no budget need hold it.
    """
    dialect, note = choose_dialect(options, environment, sends=sends)
    spec = dialect.spec
    options = complete(options, spec.name, environment.settings)
    notices += note
    model, model_id, unserved = _spell_model(options, spec)
    target_model = TargetModel(
        spec.name,
        model,
        model_id,
        lambda option: rule_for(spec, model, option),
        asynchronous=spec.asynchronous,
        reference_bytes=spec.reference_bytes,
        reference_formats=spec.reference_formats,
        ignored_fields=spec.ignored_fields,
        unconfirmed_sizes=spec.unconfirmed_sizes,
        prompt_characters=spec.prompt_characters,
        models_taking=lambda option: _able(spec, option),
    )
    images, mine = _references(options, target_model, notices)
    mine += shared_stdin(options)
    unread: list[Problem] = []
    built = build(options, parse_values(options, unread), target_model, images)
    mine += [*unserved, *built.problems, *unread]
    limits = plan_limits(options, mine)
    base_url = _base_url(options, spec, mine)
    bill = None
    if built.request is not None:
        bill = find_bill(Route(dialect, base_url, None, limits), built.request, environment.settings)
        built = replace(built, request=built.request.model_copy(update={"most": bill.images}))
        mine += _unserved_there(options, spec, model, base_url)
        # Of what cannot be had there, or of a place that is none, nobody wants to know the price.
        is_had = not any(p.severity == "error" and p.field in {"model", "base_url"} for p in mine)
        mine += unheld(options, environment, bill, spec, base_url) if pays and is_had else []
        mine += too_many(options, bill)
    else:
        mine += _unserved_there(options, spec, model, base_url)
    download = not options.switches.get("no_download", False)
    if not download and built.request and built.request.response_format == "b64_json":
        place = options.origin("no_download")
        mine.append(Problem("no_download", "b64_json replies hold no links to print", "leave one out", origin=place))
    most = built.count * built.request.images_at_most if built.request else 1
    output = plan_output(options, most, mine, fields)
    found += dict.fromkeys(mine)
    if built.request is None or output is None or any(p.severity == "error" for p in found):
        return None
    key = None if spec.offline or not sends else (find or key_for)(options, spec, environment, base_url)
    notices += [key.note] if key and key.note else []
    route = Route(dialect, base_url, key, limits)
    job = Job(0, "", route, model, built.request, output, {}, download=download, bill=bill)
    job = replace(job, strict=options.switches.get("strict", False))
    return PlannedRequest(options, built, route, model, (job,) * built.count)


def _references(
    options: OptionValues, target_model: TargetModel, notices: list[str]
) -> tuple[list[ImageRef], list[Problem]]:
    """The draft's reference images as they will be sent, and all that is wrong with or done to them."""
    texts = options.lists.get("image", ())
    if not texts:
        return [], []
    from ..request.reference_fit import Fit
    from ..request.reference_metadata import BARE_NOTICE
    from ..request.references import read_references

    images, problems = read_references(texts, origin=options.origin("image"))
    model, fit = target_model.model, None
    if options.switches.get("fit_images") and model is not None:
        layers = options.switches.get("layers", False)
        formats = model.layer_reference_formats if layers else target_model.taken_formats
        pixels = model.layer_reference_pixels if layers else model.reference_pixels
        fit = Fit(target_model.safe_bytes, pixels[1], formats)
    made = []
    for image in images:
        try:
            made.append(_ready_reference(image, options, fit, problems))
        except (FileError, LinkError) as error:
            problems.append(Problem("image", error.message, origin=options.origin("image")))
    if any(image.sent is not None for image in made):
        notices.append(BARE_NOTICE)
    return made, problems


def _ready_reference(image: ImageRef, options: OptionValues, fit: Fit | None, problems: list[Problem]) -> ImageRef:
    """One reference, shrunk where that was asked for, upright and without its metadata unless that was asked for."""
    from ..request.reference_fit import fit_prepared, fit_reference
    from ..request.reference_metadata import prepare_reference

    image, done = fit_reference(image, fit) if fit else (image, "")
    if not options.switches.get("keep_metadata"):
        prepared = prepare_reference(image)
        image = prepared.ref
        if prepared.warning:
            hint = "send it as a JPEG or PNG, or add --keep-metadata where this is meant"
            problems.append(Problem("image", prepared.warning, hint, severity="warning", code="reference_metadata"))
        if fit and not done:
            image, done = fit_prepared(image, fit)
    if done:
        problems.append(Problem("fit_images", done, severity="warning", code="reference_fitted"))
    return image


def _number(planned: Sequence[PlannedRequest], run: str) -> tuple[PlannedRequest, ...]:
    """Give every job of the run its id, its number and the fields of its names.

    Images are counted through the run, except that drafts whose names differ anyway are counted each for itself.
    """
    total = sum(len(one.jobs) for one in planned)
    slugs = [_slug(one) for one in planned]
    named = any(one.jobs[0].output.file or one.jobs[0].output.template for one in planned)
    apart = not named and len(set(slugs)) == len(slugs)
    most = sum(_most(one) for one in planned)
    ready, index, first = [], 0, 1
    for one, slug in zip(planned, slugs, strict=True):
        jobs, first = [], 1 if apart else first
        for job in one.jobs:
            name = run if total == 1 else f"{run}-{index + 1}"
            fields = {**name_fields(job.request, name, index), "slug": slug}
            of = _most(one) if apart else most
            jobs.append(replace(job, index=index, id=name, fields=fields, first=first, of=of))
            index, first = index + 1, first + job.request.images_at_most
        ready.append(replace(one, jobs=tuple(jobs)))
    return tuple(ready)


def _most(one: PlannedRequest) -> int:
    return sum(job.request.images_at_most for job in one.jobs)


def _slug(one: PlannedRequest) -> str:
    """The words of a draft's names; its label in front, which is the image that is edited, say."""
    request = one.jobs[0].request
    return file_names.slug(" ".join(part for part in (one.options.label, request.prompt or request.mode) if part))


def name_fields(request: ImageRequest, name: str, index: int) -> dict[str, str]:
    """What a file name may be made of, beside the slug."""
    return {
        "id": name,
        "row": str(index + 1),
        "model": request.model or request.model_id,
        "seed": "" if request.seed is None else str(request.seed),
        "date": f"{dt.datetime.now(tz=dt.UTC).astimezone():%Y-%m-%d}",
        "hash": request.fingerprint[:8],
    }


def choose_dialect(options: OptionValues, environment: Environment, *, sends: bool) -> tuple[Dialect, list[str]]:
    """The provider asked for, else the one whose key is present; a dry run without either is shown for the first."""
    wrong: list[Problem] = []
    name = value_of("provider", options, wrong)
    if wrong:
        raise InputError(wrong, kind="usage")
    if name is not None:
        return providers.load(name), []
    try:
        name, source = choose_keyed_provider(providers.specs(), environment)
    except ConfigError:
        if sends:
            raise
        name = providers.PROVIDERS[0]
        return providers.load(name), [f"no provider was given and no key found: shown for {name}"]
    return providers.load(name), [f"provider {name}, since {source} is set"]


def _spell_model(options: OptionValues, spec: ProviderSpec) -> tuple[ModelSpec | None, str, list[Problem]]:
    """The model's row, the id to send, and what is wrong. An id that the table does not know passes untouched."""
    typed = options.values.get("model", "").strip() or DEFAULT_MODEL
    model = find_model(typed, spec.spelling)
    spelled = model_id_for(spec, model, typed)
    if spelled is not None or model is None:
        return model, spelled or typed, []
    if options.switches.get("force"):
        return model, typed, [Problem("model", f"{spec.name} may not serve {model.title}", severity="warning")]
    served = [row.name for row in MODELS if spec.spelling in row.ids]
    hint = f"it serves {', '.join(served)}; --force sends {typed} as it is"
    problem = Problem("model", f"{spec.name} does not serve {model.title}", hint, origin=options.origin("model"))
    return model, typed, [problem]


def _able(spec: ProviderSpec, option: str) -> list[str]:
    """The models that this provider serves and that take an option, the newest first."""
    served = [row for row in MODELS if row.status != "retired" and model_id_for(spec, row, row.name)]
    return [row.name for row in served if rule_for(spec, row, option).state in {"taken", "unconfirmed"}]


def _unserved_there(options: OptionValues, spec: ProviderSpec, model: ModelSpec | None, base_url: str) -> list[Problem]:
    """That a provider does not serve the model at this very address, although it does elsewhere."""
    host = urlsplit(base_url).hostname or ""
    since = model.not_served_at.get(host) if model else None
    if model is None or since is None:
        return []
    message = f"{host} has not served {model.title} since {since}"
    if options.switches.get("force"):
        return [Problem("model", f"{message}; sent because of --force", "", "warning", options.origin("model"))]
    rows = (row for row in MODELS if row.status != "retired" and model_id_for(spec, row, row.name))
    others = ", ".join(row.name for row in rows if host not in row.not_served_at)
    hint = f"name another with -m ({others}), or another region's --base-url; --force sends it all the same"
    return [Problem("model", message, hint, origin=options.origin("model"))]


def plan_limits(options: OptionValues, found: list[Problem]) -> Limits:
    """The limits of the run; what cannot be read is added to `found`."""
    timeout, connect = value_of("timeout", options, found), value_of("connect_timeout", options, found)
    retries = value_of("retries", options, found)
    return Limits(
        timeout_s=600.0 if timeout is None else timeout,
        connect_timeout_s=10.0 if connect is None else connect,
        retries=4 if retries is None else retries,
        retry_ambiguous=options.switches.get("retry_ambiguous", False),
        proxy=value_of("proxy", options, found),
        ipm=value_of("ipm", options, found),
        rpm=value_of("rpm", options, found),
    )


def plan_caps(options: OptionValues, environment: Environment, found: list[Problem]) -> Caps:
    """What the run, and the day over all runs, may cost at the most."""
    most, daily = value_of("max_cost", options, found), environment.settings.daily_budget
    return Caps(run=cap_micro(most), daily=cap_micro(daily))


def find_bill(route: Route, request: ImageRequest, settings: Settings) -> Bill:
    """What the request's body, as the provider's dialect writes it, can cost."""
    body = route.dialect.submit(request).json or {}
    return cost_limit.read_bill(request, body, route.spec, route.base_url, settings)


def unheld(
    options: OptionValues, environment: Environment, bill: Bill, spec: ProviderSpec, base_url: str
) -> list[Problem]:
    """Why no budget that is set can hold a request: the most that it costs is not known. Nothing without a budget."""
    settings = environment.settings
    daily = settings.daily_budget is not None
    if daily and not spec.offline and not options.switches.get("ledger", settings.ledger_enabled):
        named = options.origins.get("ledger") or settings.origins.get("ledger.enabled", "[ledger] enabled")
        message = "the day's budget is kept in the ledger, and without one nothing holds [budget] daily"
        return [Problem("ledger", message, "go on with the ledger, or take `daily` out", "error", named)]
    if bill.is_bound or not (daily or "max_cost" in options.values):
        return []
    cap = options.origin("max_cost") if "max_cost" in options.values else "[budget] daily"
    place = options.origin("max_cost") if "max_cost" in options.values else settings.origins.get("budget.daily", "")
    if bill.uncounted:
        message = f"what {' and '.join(bill.uncounted)} may cost is not known, so {cap} cannot hold it"
        return [
            Problem(
                "extra",
                message,
                "leave it out, or go without a budget",
                "error",
                options.origin("extra"),
                "price_unknown",
            )
        ]
    amount = f"{bill.price.amount:g}" if bill.price else "AMOUNT"
    known = f"; the vendor's list price is ${amount} an image" if bill.price else ""
    # Who sends the bill at another address than the provider's own is for the user to say.
    whom = spec.title if cost_limit.is_own_address(spec, base_url) else urlsplit(base_url).netloc
    message = f"what {whom} takes for {bill.name} is not known, so {cap} cannot hold it{known}"
    line = shlex.join(["seedream", "config", "set", f"prices.{spec.name}/{bill.name}", amount])
    hint = f"say under [prices] what it takes, in US dollars an image: {line}"
    named = "max_cost" if "max_cost" in options.values else "daily"
    return [Problem(named, message, hint, "error", place, "price_unknown")]


def too_many(options: OptionValues, bill: Bill) -> list[Problem]:
    """A slip of the finger in what is sent by --force, which no name and no sum could follow."""
    if bill.images <= COUNT_MOST:
        return []
    return [Problem("extra", f"it asks for {bill.images:,} images in one request", origin=options.origin("extra"))]


def _base_url(options: OptionValues, spec: ProviderSpec, found: list[Problem]) -> str:
    """The API's address with its version prefix."""
    asked = options.values.get("base_url")
    if asked is None and spec.needs_base_url:
        found.append(Problem("base_url", f"{spec.name} has no address of its own", "give --base-url URL"))
        return ""
    try:
        return full_url(spec, asked)
    except InputError as error:
        found.extend(replace(problem, origin=options.origin("base_url")) for problem in error.problems)
        return ""


def plan_output(
    options: OptionValues, images: int, found: list[Problem], fields: Collection[str] = file_names.FIELDS
) -> output_path.OutputTarget | None:
    """Where the images go; what cannot be is added to `found`."""
    how, template = value_of("if_exists", options, found), value_of("name", options, found)
    found += file_names.check_template(template, fields) if template is not None else []
    try:
        return output_path.plan_output(
            value_of("output", options, found),
            images=images,
            if_exists=cast("output_path.IfExists | None", how),
            template=template,
        )
    except InputError as error:
        found.extend(error.problems)
        return None


def key_for(
    options: OptionValues, spec: ProviderSpec, environment: Environment, base_url: str = "", *, is_known: bool = False
) -> Key:
    """The key for this provider at this address (whole), or at the draft's."""
    stated = complete(options, spec.name, environment.settings)
    url = base_url or full_url(spec, stated.values.get("base_url"))
    return find_key(stated, spec, url, environment, is_known=is_known)


def _whose_default(spec: ProviderSpec, option: str) -> str:
    """For an option that nobody gave: that this tool decided, and what the provider would have done by itself."""
    if option == "format":
        return "from the suffix of --output, or the background"
    theirs = spec.defaults.get(option)
    return "this tool's default, always sent" + (f"; {spec.name}'s own is {theirs}" if theirs else "")
