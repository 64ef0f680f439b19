"""The protocol of a provider's dialect: data and pure functions, no I/O, no clock, no environment.

A dialect's module has `spec`, `submit`, `read`, `read_event` and `poll`. `submit` turns a validated request into a
`Call`; the client sends it; `read` turns the `Reply` into a `Ready` (images with URLs) or a `Ticket` (a task to poll),
or raises an `ApiError` whose kind, `billed` and `retryable` come from the provider's error code. The status alone is
not enough: a 200 may hold an error. Unless a source says that an error is not billed, it is "unknown".

Dialects are built from the functions of `payload`, `base_url`, `reading`, `tasks` and `faults`.
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
    """What an error code or status means. `{keys}` in a hint is replaced by the provider's key variables."""

    kind: str
    billed: Billed = "no"
    retryable: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """A provider's data. Times are in seconds, limits per minute; None where none is published.

    `base_url` ends with `version`, the API's path prefix ("/v1"), which `--base-url` may omit. `spelling` is the family
    of model ids in `ModelSpec.ids`; a model without an id there is not served unless `passes_unlisted`. Prices are by
    `name`. `parent` is the one dialect whose functions this one may use. `rules` override the model's row where they
    are stricter; rules in `unconfirmed` replace the row's unconfirmed ones, for an option or one version's
    ("5.0:seed"). `ignored_fields` of the body have no effect here. `reference_bytes` is the limit for a reference,
    `prompt_characters` the advised length of a prompt. `unconfirmed_sizes` are sizes that the provider lists and the
    model's own pages do not. `defaults` are for fields that are not sent; `notes` are for users. `codes` maps "CODE" or
    "STATUS:CODE" to a verdict, where "A" also matches "A.B"; `statuses` is for errors of unknown code. `failures_free`:
    a source says that only finished images are billed. `asynchronous`: the body may ask for a task; `task_path` and an
    id is the path of a GET for one. `is_vendor`: the list price is its own; `hosts` are further hosts of its own,
    ".x.org" matches subdomains.
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
    unconfirmed: Mapping[str, Rule] = field(default_factory=dict)
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
        """Whether tasks can be polled."""
        return self.asynchronous or bool(self.task_path)


@dataclass(frozen=True, slots=True)
class Call:
    """An HTTP request, not yet sent. `path` is relative to the base URL with its version prefix.

    `json` is plain JSON except for reference images, `ImageRef`s that are encoded while sending.
    """

    method: Literal["POST", "GET"]
    path: str
    json: Mapping[str, Any] | None = None
    accept: str = "application/json"
    stream: bool = False
    billable: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response. `body` is parsed JSON with `Base64Slice`s for base64 images; None where it is no JSON.

    Header names are lower case. `text` is the start of a body that is no JSON, for messages. `more` are further JSON
    values or events after the first; `ended`: the stream's terminator was received. `task_id` is the polled task.
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
    """A response with images or failed members. Plain data, from which a later run can download.

    `cut`: a stream broke off, so more images than these may have been billed.
    """

    images: tuple[ProviderImage, ...]
    usage: Mapping[str, Any] | None = None
    request_id: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Ticket:
    """A pending task; poll it after `poll_after_s` seconds."""

    task_id: str
    poll_after_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Completed:
    """The last event of a stream. `usage` as in a plain response."""

    usage: Mapping[str, Any] | None = None


class Dialect(Protocol):
    """The interface of a provider's module."""

    @property
    def spec(self) -> ProviderSpec:
        """The provider's data."""

    def submit(self, request: ImageRequest) -> Call:
        """The billable call, with every field of the request."""

    def read(self, reply: Reply) -> Ready | Ticket:
        """Images or a task; raises `ApiError` otherwise."""

    def read_event(self, event: Mapping[str, Any]) -> ProviderImage | Completed | None:
        """One event of a stream; None for unknown ones; raises `ApiError` where the whole request failed."""

    def poll(self, ticket: Ticket) -> Call:
        """The free call that returns a task; raises `InputError` where the provider has no tasks."""


def rule_for(spec: ProviderSpec, model: ModelSpec | None, option: str) -> Rule:
    """The rule for an option: the stricter of the model's and the provider's; "unconfirmed" for unknown models."""
    own = spec.rules.get(option)
    if own is not None and own.state in {"refused", "ignored"}:
        return own
    if model is None:
        return own or spec.unconfirmed.get(option, Rule("unconfirmed", "the model is not in the table"))
    rule = model.rules.get(option, Rule("taken"))
    if rule.state == "unconfirmed":
        version = model.name.partition("-")[0]
        return spec.unconfirmed.get(f"{version}:{option}") or spec.unconfirmed.get(option, rule)
    return own if own is not None and rule.state == "taken" else rule


def model_id_for(spec: ProviderSpec, model: ModelSpec | None, typed: str) -> str | None:
    """The model id that this provider uses; None where it does not serve the model.

    An id of the provider is sent as typed; with `passes_unlisted` any provider's id is. A gateway at the user's own URL
    may use any ids, so there only our own names are translated.
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
"""Limits on a stored `usage`, more than any API returns; what exceeds them is cut and marked with "…"."""


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
"""Codes for an empty account or key budget: new-api, one-api, LiteLLM, OpenAI."""
