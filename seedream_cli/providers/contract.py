"""The contract every provider's dialect keeps. A dialect is data and pure functions: no I/O, no clock, no environment.

A dialect module offers `spec`, `submit`, `read`, `read_event` and `poll`. `submit` turns a validated request into one
`Call`; the wire sends it; `read` turns the `Reply` into a `Ready` (images with links) or a `Ticket` (a task to poll),
or raises an `ApiError` whose kind, billing and retry are decided by the provider's own error code. Status alone
decides nothing: a 200 may hold an error. What no source calls unbilled is held to be possibly billed.

Below the contract stand the tools that every dialect builds from: the body of a request, the address, the reading of
images, and the judging of errors by the tables in `ProviderSpec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import Billed
from ..request.models import ModelSpec, Rule, is_name
from ..results import ProviderImage

if TYPE_CHECKING:
    from ..request.image_request import ImageRequest


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error code (or a status) of a provider means. `{keys}` in a hint becomes the provider's key variables."""

    kind: str
    billed: Billed = "no"
    retryable: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """One provider as data. Times are in seconds, limits per minute; None where nobody has published a figure.

    `base_url` ends with `version`, the path prefix of the API ("/v1"), which `--base-url` may hold or omit. `spelling`
    names the family of model ids in `ModelSpec.ids`; a model without an id there is not served unless
    `passes_unlisted`. Prices go by `name`. `parent` is the one dialect whose functions this one may use.
    `rules` overrule the model's row where they are stricter; `doubtful` rules replace what the row calls unconfirmed,
    for an option or for one version's ("5.0:seed"). `ignored_fields` are fields of a body that have no effect here.
    `reference_bytes` is its own word on a reference; `prompt_characters` the most that it advises for a prompt.
    `unconfirmed_sizes` are sizes that it lists though the model's own pages do not.
    `defaults` says what the provider does when a field is not sent; `notes` is what else a user should know.
    `codes` judges error codes: "CODE" or "STATUS:CODE", where "A" also serves "A.B"; `statuses` judges a well-formed
    error whose code is unknown. `failures_free` holds where a source says that only images drawn are billed.
    `asynchronous` holds where a task can be asked for; `task_path`, an id behind it, is where a GET asks after one.
    `is_vendor` holds where the list price is its own; `hosts` are further addresses of its own, ".x.org" any below.
    """

    name: str
    title: str
    base_url: str
    version: str
    path: str
    key_variables: tuple[str, ...]
    spelling: str
    as_of: str
    source: str
    parent: str = ""
    passes_unlisted: bool = False
    models_path: str = ""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    doubtful: Mapping[str, Rule] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    codes: Mapping[str, Verdict] = field(default_factory=dict)
    statuses: Mapping[int, Verdict] = field(default_factory=dict)
    failures_free: bool = False
    reference_bytes: int | None = None
    reference_formats: tuple[str, ...] = ()
    ignored_fields: tuple[str, ...] = ()
    unconfirmed_sizes: tuple[str, ...] = ()
    prompt_characters: int | None = None
    ipm: int | None = None
    rpm: int | None = None
    link_lifetime_s: int | None = None
    asynchronous: bool = False
    task_path: str = ""
    needs_base_url: bool = False
    offline: bool = False
    is_vendor: bool = False
    hosts: tuple[str, ...] = ()

    @property
    def has_tasks(self) -> bool:
        """Whether a task can be asked after."""
        return self.asynchronous or bool(self.task_path)


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, not yet sent. `path` is relative to the base URL with its version prefix.

    Values of `json` are plain JSON, except that a reference image stands as its `ImageRef`; the wire encodes it.
    """

    method: Literal["POST", "GET"]
    path: str
    json: Mapping[str, Any] | None = None
    accept: str = "application/json"
    stream: bool = False
    billable: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer. `body` is parsed JSON, base64 images in it replaced by `Base64Slice`s; None where it is no
    JSON.

    Header names are lower case. `text` is the start of a body that is no JSON, for the error message. `more` are values
    that came behind the first, such as further events; `ended` says that their terminator came. `task_id` is the task
    that was asked after, where this is the answer to that.
    """

    status: int
    headers: Mapping[str, str]
    body: Any = None
    text: str = ""
    more: tuple[Any, ...] = ()
    ended: bool = False
    task_id: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """The provider's answer with images (or members that failed). Plain data, so a killed run can go on from it.

    `cut` is said of a stream whose end never came: it may have been billed for more than these.
    """

    images: tuple[ProviderImage, ...]
    usage: Mapping[str, Any] | None = None
    request_id: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Ticket:
    """A task that the provider works on; poll it after `poll_after_s` seconds."""

    task_id: str
    poll_after_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a stream: nothing more follows. `usage` as in a plain reply."""

    usage: Mapping[str, Any] | None = None


class Dialect(Protocol):
    """What a provider's module looks like to the engine."""

    @property
    def spec(self) -> ProviderSpec:
        """The provider's data."""

    def submit(self, request: ImageRequest) -> Call:
        """The one billable call for this request. Sends what the request holds; what is dropped is decided before."""

    def read(self, reply: Reply) -> Ready | Ticket:
        """Images or a task; raises `ApiError` for everything else."""

    def read_event(self, event: Mapping[str, Any]) -> ProviderImage | Completed | None:
        """One event of a stream; None for one that says nothing; raises `ApiError` where the whole request failed."""

    def poll(self, ticket: Ticket) -> Call:
        """The free call that asks after a task; raises `InputError` where the provider has no tasks."""


def rule_for(spec: ProviderSpec, model: ModelSpec | None, option: str) -> Rule:
    """How `option` fares with this model at this provider: the stricter of the two. Unknown models are unconfirmed."""
    own = spec.rules.get(option)
    if own is not None and own.state in {"refused", "ignored"}:
        return own
    if model is None:
        return own or spec.doubtful.get(option, Rule("unconfirmed", "the model is not in the table"))
    rule = model.rules.get(option, Rule("taken"))
    if rule.state == "unconfirmed":
        version = model.name.partition("-")[0]
        return spec.doubtful.get(f"{version}:{option}") or spec.doubtful.get(option, rule)
    return own if own is not None and rule.state == "taken" else rule


def wire_model(spec: ProviderSpec, model: ModelSpec | None, typed: str) -> str | None:
    """The model's id as this provider spells it; None where it does not serve the model.

    An id goes as it was typed where it is one of the provider's own, or any provider's where the list is open. A
    gateway whose address is the user's calls models as it likes: there only our own names are spelled.
    """
    if model is None or (spec.needs_base_url and not is_name(typed)):
        return typed
    own = model.ids.get(spec.spelling, ())
    known = {spelling for family in model.ids.values() for spelling in family} if spec.passes_unlisted else own
    if typed in known:
        return typed
    return own[0] if own else None


_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")
"""How base64 of a JPEG, PNG, WEBP and GIF begins."""


_DEPTH, _MEMBERS, _CHARACTERS = 8, 200, 2000
"""More than any usage holds: what goes beyond is cut, with a mark, so that it can always be stored and shown."""


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """The value where it is an object."""
    return value if isinstance(value, Mapping) else None


def _text(value: Any) -> str:
    """The value where it is text."""
    return value if isinstance(value, str) else ""


EMPTY_ACCOUNT = frozenset(
    {
        "insufficient_user_quota",
        "pre_consume_token_quota_failed",
        "token_quota_exhausted",
        "quota_not_enough",
        "budget_exceeded",
        "insufficient_balance",
        "insufficient_credits",
        "billing_hard_limit_reached",
        "billing_not_active",
        "payment_required",
        "account_deactivated",
        "account_disabled",
    }
)
"""An account, or a key with a budget of its own, that is empty: new-api, one-api, LiteLLM, OpenAI."""
