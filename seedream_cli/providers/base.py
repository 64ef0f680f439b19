"""The contract every provider's dialect keeps. A dialect is data and pure functions: no I/O, no clock, no environment.

A dialect module offers `spec`, `submit`, `read`, and where the provider has them `read_event` and `poll`.
`submit` turns a validated request into one `Call`; the wire sends it; `read` turns the `Reply` into a `Ready`
(pictures with links) or a `Ticket` (a task to poll), or raises an `ApiError` whose kind, billing and retry are
decided by the provider's own error code. Status alone decides nothing: a 200 may hold an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..models import ModelSpec, Rule
from ..request import ImageRequest
from ..results import Picture


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """One provider as data. Times are in seconds, limits per minute; None where nobody has published a figure.

    `version` is the path prefix of the API ("/v1"), which `--base-url` may hold or omit. `spelling` names the
    family of model ids in `ModelSpec.ids`; a model without an id there is not served unless `passes_unlisted`.
    `rules` overrule the model's row; `doubtful` rules replace only what the row calls unconfirmed.
    `defaults` says what the provider does when a field is not sent.
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
    passes_unlisted: bool = False
    models_path: str = ""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    doubtful: Mapping[str, Rule] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    ipm: int | None = None
    rpm: int | None = None
    link_lifetime_s: int | None = None
    asynchronous: bool = False
    needs_base_url: bool = False
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, not yet sent. `path` is relative to the base URL with its version prefix.

    Values of `json` are plain JSON, except that a reference picture stands as its `ImageRef`; the wire encodes it.
    """

    purpose: Literal["submit", "poll", "list"]
    method: Literal["POST", "GET"]
    path: str
    json: Mapping[str, Any] | None = None
    accept: str = "application/json"
    stream: bool = False
    billable: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer. `body` is parsed JSON, base64 pictures in it replaced by `Blob`s; None where it is no JSON.

    Header names are lower case. `text` is the start of a body that is no JSON, for the error message.
    """

    status: int
    headers: Mapping[str, str]
    body: Any = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """The provider's answer with pictures (or members that failed). Plain data, so a killed run can go on from it."""

    pictures: tuple[Picture, ...]
    usage: Mapping[str, Any] | None = None
    request_id: str = ""
    model: str = ""
    task_id: str = ""
    size_defaulted: str = ""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A task that the provider works on; poll it after `poll_after_s` seconds."""

    task_id: str
    trace_id: str = ""
    poll_after_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a stream: nothing more follows. `usage` as in a plain reply."""

    usage: Mapping[str, Any] | None = None
    request_id: str = ""


class Dialect(Protocol):
    """What a provider's module looks like to the engine."""

    @property
    def spec(self) -> ProviderSpec:
        """The provider's data."""

    def submit(self, request: ImageRequest) -> Call:
        """The one billable call for this request."""

    def read(self, reply: Reply) -> Ready | Ticket:
        """Pictures or a task; raises `ApiError` for everything else."""

    def read_event(self, event: Mapping[str, Any]) -> Picture | Completed | None:
        """One event of a stream; None for one that says nothing; raises `ApiError` where the whole request failed."""

    def poll(self, ticket: Ticket) -> Call:
        """The free call that asks after a task."""


def rule_for(spec: ProviderSpec, model: ModelSpec | None, option: str) -> Rule:
    """How `option` fares with this model at this provider. Unknown models take everything, unconfirmed."""
    if option in spec.rules:
        return spec.rules[option]
    if model is None:
        return spec.doubtful.get(option, Rule("unconfirmed", "the model is not in the table"))
    rule = model.rules.get(option, Rule("taken"))
    if rule.state == "unconfirmed":
        return spec.doubtful.get(option, rule)
    return rule
