"""The contract every provider's dialect keeps. A dialect is data and pure functions: no I/O, no clock, no environment.

A dialect module offers `spec`, `submit`, `read`, `read_event` and `poll`. `submit` turns a validated request into one
`Call`; the wire sends it; `read` turns the `Reply` into a `Ready` (pictures with links) or a `Ticket` (a task to poll),
or raises an `ApiError` whose kind, billing and retry are decided by the provider's own error code. Status alone
decides nothing: a 200 may hold an error. What no source calls unbilled is held to be possibly billed.

Below the contract stand the tools that every dialect builds from: the body of a request, the address, the reading of
pictures, and the judging of errors by the tables in `ProviderSpec`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..error_text import MOST, code_in, message_in, one_line, plain_code, text_fault
from ..errors import ApiError, Billed, InputError, Problem, TaskEndedError
from ..models import ModelSpec, Rule, is_name
from ..results import Blob, Layer, Picture
from ..text import clean

if TYPE_CHECKING:
    # The request brings pydantic with it, which `seedream models` has no need to load.
    from ..request import ImageRequest


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
    for an option or for one version's ("5.0:seed"). `idle_fields` are fields of a body that have no effect here.
    `reference_bytes` is its own word on a reference; `prompt_characters` the most that it advises for a prompt.
    `doubtful_sizes` are sizes that it lists though the model's own pages do not.
    `defaults` says what the provider does when a field is not sent; `notes` is what else a user should know.
    `codes` judges error codes: "CODE" or "STATUS:CODE", where "A" also serves "A.B"; `statuses` judges a well-formed
    error whose code is unknown. `failures_free` holds where a source says that only pictures drawn are billed.
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
    idle_fields: tuple[str, ...] = ()
    doubtful_sizes: tuple[str, ...] = ()
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
    """The provider's answer with pictures (or members that failed). Plain data, so a killed run can go on from it.

    `cut` is said of a stream whose end never came: it may have been billed for more than these.
    """

    pictures: tuple[Picture, ...]
    usage: Mapping[str, Any] | None = None
    request_id: str = ""
    model: str = ""
    task_id: str = ""
    cut: bool = False


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
        """The one billable call for this request. Sends what the request holds; what is dropped is decided before."""

    def read(self, reply: Reply) -> Ready | Ticket:
        """Pictures or a task; raises `ApiError` for everything else."""

    def read_event(self, event: Mapping[str, Any]) -> Picture | Completed | None:
        """One event of a stream; None for one that says nothing; raises `ApiError` where the whole request failed."""

    def poll(self, ticket: Ticket) -> Call:
        """The free call that asks after a task; raises `InputError` where the provider has no tasks."""


# --- options and names ------------------------------------------------------------------------------------------------


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


# --- the address ------------------------------------------------------------------------------------------------------


def full_url(spec: ProviderSpec, base_url: str | None = None) -> str:
    """The API's address with its version prefix and without a slash at the end, from what `--base-url` was given.

    Taken with or without the version, with the whole endpoint pasted, behind a proxy's path. A path that names some
    version already is left as it is. Raises `InputError` for an address that cannot be meant.
    """
    from urllib.parse import urlsplit

    typed = (base_url or "").strip() or spec.base_url
    problem = _address_problem(spec, typed)
    if problem:
        raise InputError([problem])
    parts = urlsplit(typed)
    path = _versioned([part for part in parts.path.split("/") if part], spec)
    return f"{parts.scheme.lower()}://{parts.netloc}" + "".join(f"/{part}" for part in path)


def _address_problem(spec: ProviderSpec, typed: str) -> Problem | None:
    """What is wrong with an address, and the address that may have been meant. Never repeats a password."""
    from urllib.parse import urlsplit

    if not typed:
        return Problem("base_url", f"{spec.title} has no address of its own", "give --base-url URL")
    if re.search(r"[\s\x00-\x1f\x7f\\]", typed):
        return Problem("base_url", "the base URL holds a space, a backslash or a control character")
    try:
        parts = urlsplit(typed)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return Problem("base_url", f"the base URL cannot be read: {error}")
    if "@" in typed:
        return Problem("base_url", "the base URL holds a user name or password", "keys come from the environment")
    if "://" not in typed:
        near = re.match(r"/*(localhost|127\.|\[)", typed)
        return Problem(
            "base_url", f"{typed!r} has no scheme", f"write {'http' if near else 'https'}://{typed.lstrip('/')}"
        )
    if parts.scheme.lower() not in {"http", "https"}:
        return Problem("base_url", f"{parts.scheme}:// is no web address", "write https://HOST")
    if not host:
        return Problem("base_url", f"{typed!r} has no host", "write https://HOST")
    if "?" in typed or "#" in typed:
        bare = urlsplit(re.split(r"[?#]", typed, maxsplit=1)[0])
        path = "".join(f"/{part}" for part in _without_endpoint([part for part in bare.path.split("/") if part], spec))
        whole = f"write {bare.scheme.lower()}://{bare.netloc}{path}"
        return Problem("base_url", "the base URL holds a query or a fragment", whole)
    return None


_ENDPOINTS = tuple(
    tuple(text.split("/"))
    for text in (
        *("images/generations", "images/edits", "images/variations", "chat/completions", "contents/generations/tasks"),
        *("audio/speech", "audio/transcriptions", "messages/count_tokens", "seedream/images", "seedream/tasks"),
    )
)
"""Endpoints of this and of other APIs: an address that ends in one was copied from an example."""
_PLAIN_ENDPOINTS = frozenset(
    (
        *("completions", "responses", "embeddings", "models", "tasks", "images", "messages", "moderations"),
        *("files", "batches", "rerank"),
    )
)
"""Endpoints of one word, which are that only behind a version: some gateway may well be called /images."""
_NO_MOUNTS = frozenset(("completions", "responses", "embeddings"))
"""Those that are it even where nothing stands before them."""
_VERSION = re.compile(r"v[0-9]+[a-z0-9]*", re.IGNORECASE)


def _without_endpoint(path: list[str], spec: ProviderSpec) -> list[str]:
    """A path without an endpoint at its end, whosever it is, and without what it names (`models/NAME`)."""
    own = [tuple(part for part in whole.split("/") if part) for whole in (spec.path, spec.models_path)]
    lower = [part.lower() for part in path]
    tail = next((tail for tail in (*own, *_ENDPOINTS) if tail and tuple(lower[-len(tail) :]) == tail), ())
    if tail:
        return _without_endpoint(path[: -len(tail)], spec)
    if not path:
        return path
    last, *before = reversed([part.lower() for part in path])
    is_beside = any(_VERSION.fullmatch(part) or part == "openai" for part in before)
    if last in _PLAIN_ENDPOINTS and (is_beside or (not before and last in _NO_MOUNTS)):
        return _without_endpoint(path[:-1], spec)
    if before[:1] in (["models"], ["tasks"]) and before[1:] and _VERSION.fullmatch(before[1]):
        return path[:-2]
    return path


def _versioned(path: list[str], spec: ProviderSpec) -> list[str]:
    """A base path, without a pasted endpoint at its end and with the API's version unless it names one."""
    version, endpoint = ([part for part in whole.split("/") if part] for whole in (spec.version, spec.path))
    bare = _without_endpoint(path, spec)
    if len(bare) < len(path) and not version:
        # Another API's address at the same provider: this one lies beside it, without a version.
        while bare and (_VERSION.fullmatch(bare[-1]) or bare[-1] == "openai"):
            bare = bare[:-1]
    path = bare
    if any(_VERSION.fullmatch(part) for part in path):
        return path
    # A path may already hold the first half of "/api/v3", or of the endpoint where the API has no version.
    if not version:
        return path[: len(path) - _overlap(path, endpoint)]
    return path + version[_overlap(path, version) :]


def _overlap(path: list[str], start: list[str]) -> int:
    """How many parts at the end of `path` are the first parts of `start`."""
    return next((n for n in range(len(start), 0, -1) if path[-n:] == start[:n]), 0)


# --- writing a request ------------------------------------------------------------------------------------------------


def body_of(request: ImageRequest, *, image_list: bool) -> dict[str, Any]:
    """The JSON body in the upstream's names: four fields always, the rest only if asked for, `extra` last.

    A linked reference is its URL, a local one stays an `ImageRef`. One reference is sent bare unless `image_list`.
    `n` is never sent: upstream ignores it, and gateways turn it into a group that may come back smaller.
    """
    images = [ref.location if ref.kind == "url" else ref for ref in request.images]
    body: dict[str, Any] = {"model": request.model_id}
    if request.prompt is not None:
        body["prompt"] = request.prompt
    if images:
        body["image"] = images if image_list or len(images) > 1 else images[0]
    body["size"] = request.size
    body["response_format"] = request.response_format
    body["watermark"] = request.watermark
    asked: dict[str, Any] = {
        "seed": request.seed,
        "guidance_scale": request.guidance_scale,
        "sequential_image_generation": "auto" if request.sequence else None,
        "sequential_image_generation_options": (
            {"max_images": request.sequence} if isinstance(request.sequence, int) else None
        ),
        "output_format": request.format,
        "optimize_prompt_options": {"mode": request.optimize_prompt} if request.optimize_prompt else None,
        "tools": [{"type": "web_search"}] if request.web_search else None,
        "background": request.background,
        "layer_decomposition": request.layers or None,
        "stream": request.stream or None,
        "async": request.asynchronous or None,
        "callback_url": request.callback_url,
    }
    body.update((name, value) for name, value in asked.items() if value is not None)
    merged = dict(request.extra)
    rewriting = merged.get("optimize_prompt_options")
    if isinstance(rewriting, Mapping) and "optimize_prompt_options" in body:
        # One object with two options of ours in it: what else it holds is not to undo the mode.
        merged["optimize_prompt_options"] = {**body["optimize_prompt_options"], **rewriting}
    body.update(merged)
    return body


def submission(spec: ProviderSpec, body: Mapping[str, Any], *, stream_type: str) -> Call:
    """The billable call for a body; `stream_type` is the media type to ask for where the body asks for a stream."""
    stream = body.get("stream") is True
    accept = stream_type if stream else "application/json"
    return Call("submit", "POST", spec.path, body, accept, stream=stream, billable=True)


# --- reading pictures -------------------------------------------------------------------------------------------------


def read_pictures(spec: ProviderSpec, body: Any, headers: Mapping[str, str]) -> Ready | None:
    """The images and failed members of an answer, under `data` or where else they plainly lie; None where none are."""
    items = _image_list(body)
    if not items:
        return None
    outer = body if isinstance(body, Mapping) else {}
    return Ready(
        pictures=tuple(read_picture(spec, item, index) for index, item in enumerate(items)),
        usage=_bounded(outer.get("usage")),
        request_id=_text(outer.get("trace_id")) or headers.get("x-request-id", ""),
        model=_text(outer.get("model")),
        task_id=_text(outer.get("task_id")),
    )


_IMAGE_KEYS = ("url", "image_url", "imageUrl", "b64_json", "b64", "base64", "image_base64", "image", "link", "src")
"""Names under which a member of an answer has its image, the likeliest first."""
_LIST_KEYS = ("images", "image_urls", "imageUrls", "urls", "output", "outputs", "result", "results", "response")
"""Names under which gateways put the list of images that belongs under `data`."""
_LIST_DEPTH = 4
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")
"""How base64 of a JPEG, PNG, WEBP and GIF begins."""


def _image_list(body: Any) -> list[Any]:
    """The members of an answer. The list under `data` counts as it is, failed members too; one at another place only
    where it holds images, and where the answer is neither an error nor the record of a task.
    """
    data = body.get("data") if isinstance(body, Mapping) else None
    if isinstance(data, list) and data:
        nested = [item for part in data for item in part] if all(isinstance(part, list) for part in data) else data
        return [one for item in nested for one in _members(item)]
    if isinstance(body, Mapping) and fault_in(body) is not None:
        return []
    found = _images_at(body, _LIST_DEPTH)
    return list({_image_in(one) or id(one): one for one in found}.values())


def _images_at(value: Any, depth: int) -> list[Any]:
    """The images under a name of an answer: a list of them, one, or an object that has them under a name of its own."""
    if not depth or value is None:
        return []
    if isinstance(value, list):
        parts = (_images_at(one, depth - 1) if isinstance(one, list) else _members(one) for one in value)
        found = [one for part in parts for one in part]
        return found if found and all(_image_in(one) for one in found) else []
    if isinstance(value, str | Blob):
        return [value] if _image_in(value) else []
    if not isinstance(value, Mapping) or task_state(value):
        return []
    for name in ("data", *_LIST_KEYS):
        if found := _images_at(value.get(name), depth - 1):
            return found
    # What repeats the prompt repeats the request, and its image is the one that was sent.
    return _members(value) if "prompt" not in value and _image_in(value) else []


def _members(item: Any) -> list[Any]:
    """A member of an answer, or the several that it stands for where its image is a list of them."""
    if isinstance(item, Mapping):
        for key in _IMAGE_KEYS:
            if isinstance(several := item.get(key), list) and several:
                return [{**item, key: one} for one in several]
    return [item]


def _image_in(item: Any) -> Any:
    """The image of a member: its link, data URI or base64; None where it has none."""
    if isinstance(item, Blob):
        return item
    if isinstance(item, str):
        # Among strings only what can be nothing else is an image.
        known = item.startswith(_BASE64_STARTS) or re.match(r"https?://.|data:image/|/[^/]", item, re.IGNORECASE)
        return item if known else None
    if not isinstance(item, Mapping):
        return None
    values = (item.get(key) for key in _IMAGE_KEYS)
    inner = (_image_in(value) if isinstance(value, Mapping) else value for value in values)
    return next((value for value in inner if isinstance(value, Blob) or (isinstance(value, str) and value)), None)


def read_picture(spec: ProviderSpec, item: Any, index: int) -> Picture:
    """One member of an answer, or one event of a stream: a link, base64, or an error of its own."""
    value = _image_in(item)
    facts = item if isinstance(item, Mapping) else {}
    size = _text(facts.get("size")).replace("×", "x").replace("*", "x")
    made = _text(facts.get("output_format"))
    layer = _read_layer(facts)
    if isinstance(value, Blob):
        return Picture(index, blob=value, size=size, format=made, layer=layer)
    if isinstance(value, str):
        # Some relays put a data URI where the link belongs, or into the base64 field.
        inline = re.match(r"data:(?:image/([a-z0-9.+-]{1,40}))?[^,]{0,300},", value, re.IGNORECASE)
        if inline:
            made = made or (inline[1] or "").lower()
            return Picture(index, base64=value[inline.end() :], size=size, format=made, layer=layer)
        if _is_base64(facts, value):
            return Picture(index, base64=value, size=size, format=made, layer=layer)
        return Picture(index, link=value, size=size, format=made, layer=layer)
    fault = fault_in(facts) if facts else None
    return Picture(index, size=size, error=_member_error(spec, fault) if fault else _no_picture(spec))


def _is_base64(item: Mapping[str, Any], value: str) -> bool:
    """Whether an image is base64: by the name that it has, or by its first letters where that may hold both."""
    key = next((key for key in _IMAGE_KEYS if value in (item.get(key), _image_in(item.get(key)))), "")
    if key in {"", "image"}:
        return value.startswith(_BASE64_STARTS)
    return key in {"b64_json", "b64", "base64", "image_base64"}


def read_stream_event(spec: ProviderSpec, event: Mapping[str, Any]) -> Picture | Completed | None:
    """One event in the upstream's vocabulary. Previews and unknown events say nothing; a failed member is a picture."""
    kind = _text(event.get("type"))
    if kind in {"image_generation.partial_succeeded", "image_generation.partial_failed"}:
        index = event.get("image_index")
        # Without a number that one can have, a picture gets the next free one, from whoever collects them.
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < _MOST_PICTURES:
            index = -1
        return read_picture(spec, event, index)
    fault = fault_in(event) or (
        _fault(plain_code(event.get("code")), message_in(event), "") if kind == "error" else None
    )
    if fault:
        raise api_error(spec, fault)
    if kind == "image_generation.completed":
        return Completed(_bounded(event.get("usage")), _text(event.get("trace_id")))
    return None


def _read_layer(item: Mapping[str, Any]) -> Layer | None:
    """What is said of a layer; None for a picture that is none."""
    z_index = item.get("z_index")
    if not isinstance(z_index, int):
        return None
    box = _mapping(item.get("bounding_box")) or {}
    return Layer(
        z_index,
        name=_text(item.get("name")),
        description=_text(item.get("description")),
        absolute=_numbers(box.get("absolute")),
        normalized=_numbers(box.get("normalized")),
    )


def _numbers(value: Any) -> tuple[int, ...]:
    """Whole numbers of a list; nothing for a list that holds anything else."""
    if not isinstance(value, list) or not all(isinstance(one, int | float) for one in value):
        return ()
    return tuple(round(one) for one in value)


_DEPTH, _MEMBERS, _CHARACTERS = 8, 200, 2000
"""More than any usage holds: what goes beyond is cut, with a mark, so that it can always be stored and shown."""


def _bounded(value: Any) -> Mapping[str, Any] | None:
    """An object of the provider's, cut to what can be kept and printed."""
    return _cut(value, _DEPTH) if isinstance(value, Mapping) else None


def _cut(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _CHARACTERS else value[:_CHARACTERS] + "…"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "…"
    if not isinstance(value, Mapping | list):
        return value if isinstance(value, int | float) or value is None else "…"
    if not depth:
        return "…"
    if isinstance(value, list):
        return [_cut(one, depth - 1) for one in value[:_MEMBERS]] + ["…"] * (len(value) > _MEMBERS)
    members = list(value.items())
    cut = {str(name)[:200]: _cut(one, depth - 1) for name, one in members[:_MEMBERS]}
    return cut | ({"…": "…"} if len(members) > _MEMBERS else {})


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """The value where it is an object."""
    return value if isinstance(value, Mapping) else None


def _text(value: Any) -> str:
    """The value where it is text."""
    return value if isinstance(value, str) else ""


# --- judging errors ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as a provider words it: its code verbatim, its message without the request id at the end."""

    code: str
    message: str
    request_id: str = ""
    also: str = ""
    """Its type, where it has a code too: some gateways put the status into the code and the reason here."""


REFUSED = Verdict("refused", hint="a dry run shows what is sent, `seedream models` what each model takes")
UNKNOWN = Verdict(
    "unknown_outcome",
    billed="unknown",
    hint="it may have been billed: look at the provider's usage page, then `seedream history resolve`",
)
RATE_LIMITED = Verdict("rate_limited", retryable=True, hint="send fewer at once, or fewer a minute")
QUOTA = Verdict("quota", hint="raise the limit or wait for it to renew, in the provider's console")
ACCOUNT = Verdict("account", hint="look at the account's state and balance in the provider's console")
AUTH = Verdict("auth", hint="check the key{keys}")
MODERATION = Verdict("moderation", hint="reword the prompt or change the reference pictures")
UNKNOWN_MODEL = Verdict("refused", hint="`seedream models` lists the models that this provider serves")
WRONG_ADDRESS = Verdict("refused", hint="nothing serves this path: check --base-url")

_PROMPT = Verdict("moderation", hint="reword the prompt")
_REFERENCE = Verdict("moderation", hint="use other reference pictures")
_RESULT = Verdict("moderation", hint="the result was refused, not the request: it may pass another time")

CONTENT: Mapping[str, Verdict] = {
    "InputTextSensitiveContentDetected": _PROMPT,
    "InputTextRiskDetection": _PROMPT,
    "InputImageSensitiveContentDetected": _REFERENCE,
    "InputImageRiskDetection": _REFERENCE,
    "OutputImageSensitiveContentDetected": _RESULT,
    "OutputImageRiskDetection": _RESULT,
    "OutputTextRiskDetection": _RESULT,
    "SensitiveContentDetected": MODERATION,
}
"""The upstream's content codes, which come through every provider that draws there."""

_STATUSES = {
    401: AUTH,
    402: ACCOUNT,
    404: UNKNOWN_MODEL,
    408: UNKNOWN,
    413: Verdict("refused", hint="the request is too large: give references as URLs, or smaller ones"),
    429: RATE_LIMITED,
}
CHALLENGED = Verdict(
    "config",
    hint="a firewall before the API lets only browsers through: check --base-url and --proxy, or ask its owner",
)
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
_CHALLENGES = ("just a moment", "checking your browser", "ddos-guard", "verify you are human", "one moment, please")
_DECISIVE = {"account", "quota", "auth", "moderation"}
_SAYS = {
    "config": "is not reached by programs",
    "refused": "refused the request",
    "moderation": "refused the content",
    "auth": "did not accept the key",
    "account": "does not serve this account",
    "rate_limited": "asks for fewer requests",
    "quota": "says that the quota is used up",
    "unavailable": "could not draw it",
    "unknown_outcome": "gave no clear answer",
}
_LONGEST = 600
_MOST_PICTURES = 1000
"""More than any answer holds; a number or a count beyond it is a slip."""


def fault_in(body: Any) -> Fault | None:
    """The error that a body carries, in any of the known envelopes; None where it carries none.

    {"error": {"code", "message", "type"}}, {"error": "text"}, {"success": false, "error": …, "trace_id"}. Of an error
    that only passes another one on ({"error": {"error": …}}) the inner one counts.
    """
    if not isinstance(body, Mapping):
        return None
    error = body.get("error")
    trace = _text(body.get("trace_id"))
    if isinstance(error, Mapping) and error:
        return replace(_fault(code_in(error), message_in(error), trace), also=plain_code(error.get("type")))
    if isinstance(error, str) and error:
        return _fault("", message_in(body), trace)
    if body.get("success") is False:
        return _fault(code_in(body), message_in(body), trace)
    return None


def api_error(spec: ProviderSpec, fault: Fault, *, status: int | None = None) -> ApiError:
    """The error for a well-formed fault, judged by its code, then by the status it came with (None: in a stream)."""
    verdict = _judge_code(spec, fault.code, status)
    other = _judge_code(spec, fault.also, status) if verdict is None else None
    if other is not None and other.kind in _DECISIVE:
        return _worded(spec, other, replace(fault, code=fault.also), status=status)
    return _worded(spec, verdict or _by_status(spec, status), fault, status=status)


def refusal(spec: ProviderSpec, reply: Reply) -> ApiError:
    """The error for a reply without pictures. A 5xx (or a 2xx) that is not the provider's own error proves nothing."""
    fault = fault_in(reply.body)
    name = reply.headers.get("x-request-id", "")
    if fault:
        fault = replace(fault, request_id=fault.request_id or name)
        return api_error(spec, fault, status=reply.status)
    said = _bare_fault(reply, name)
    if _is_challenge(reply):
        return _worded(spec, CHALLENGED, said, status=reply.status)
    # Its code is believed where its status says already that nothing was drawn.
    known = _by_code(spec.codes, said.code, reply.status) if 400 <= reply.status < 500 and reply.status != 408 else None
    if known:
        return _worded(spec, known, said, status=reply.status)
    if reply.status in {404, 405} or 300 <= reply.status < 400:
        return _worded(spec, WRONG_ADDRESS, said, status=reply.status)
    verdict = _STATUSES.get(reply.status, REFUSED if 400 <= reply.status < 500 else UNKNOWN)
    return _worded(spec, verdict, said, status=reply.status, delivered=verdict is not UNKNOWN)


_TASK_STATES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("submitted", "queued", "pending", "processing", "running", "in_progress", "in_queue", "created"),
            *("starting", "started", "waiting", "not_start", "not_started", "generating", "accepted", "preparing"),
        ),
        "pending",
    ),
    **dict.fromkeys(("succeeded", "success", "successful", "completed", "complete", "finished", "done"), "done"),
    **dict.fromkeys(
        ("failed", "failure", "fail", "error", "cancelled", "canceled", "expired", "rejected", "aborted", "timeout"),
        "failed",
    ),
}
"""What the words of tasks come to, in lower case."""


def task_state(record: Mapping[str, Any]) -> str:
    """Whether a task is "pending", "done" or "failed" by its own word; "" where it has none that is known."""
    names = ("status", "state", "task_status", "taskStatus")
    word = next((text for name in names if (text := _text(record.get(name)))), "")
    return _TASK_STATES.get(word.strip().lower().replace("-", "_").replace(" ", "_"), "")


def task_ended(error: ApiError, task_id: str) -> TaskEndedError:
    """The error of a task that is over and has no image, from what its record says."""
    return TaskEndedError(
        error.message if error.billed == "no" else f"task {task_id} has ended without an image: {error.message}",
        kind=error.kind if error.billed == "no" else "unknown_outcome",
        hint=error.hint,
        billed=error.billed,
        delivered="yes",
        provider=error.provider,
        code=error.code,
        status=error.status,
        request_id=error.request_id,
    )


def _is_challenge(reply: Reply) -> bool:
    """Whether a firewall wants to see a browser. It stands before the API, so nothing was drawn."""
    if reply.headers.get("cf-mitigated") or reply.headers.get("x-amzn-waf-action"):
        return True
    said = text_fault(reply.text)[1].lower() if reply.body is None and reply.status in {403, 429, 451, 503} else ""
    if reply.status in {403, 451} and said.startswith("the answer is a web page"):
        # No API refuses with a page for people: whoever forbids it stands before it, whatever its title says.
        return True
    return any(f"web page: {words}" in said for words in _CHALLENGES)


def _fault(code: str, message: str, request_id: str) -> Fault:
    """A fault with the request id taken off the end of its message."""
    said, found = _split_request_id(message[:MOST])
    return Fault(code, said, request_id or found)


def _split_request_id(message: str) -> tuple[str, str]:
    """A message without the "(request id: 0123)" at its end, and that id; "" where there is none.

    By plain searches: a pattern for it takes minutes over a long run of spaces.
    """
    end = message.rstrip(" \t\r\n.").removesuffix(")").rstrip()
    at = end.lower().rfind("request")
    name, mark, value = end[at + len("request") :].partition(":" if ":" in end[at:] else "=")
    value = value.strip()
    if at < 0 or not mark or name.strip(" _-\t").lower() != "id" or not value or set(value) & set(" \t\r\n()"):
        return message, ""
    return end[:at].rstrip(" \t\r\n,;").removesuffix("(").rstrip(" \t\r\n,;"), value


def _by_code(codes: Mapping[str, Verdict], code: str, status: int | None) -> Verdict | None:
    """The verdict on a code with this status, on the code, or on the part before a dot: "A.B.C", "A.B", "A"."""
    while code:
        verdict = codes.get(f"{status}:{code}") or codes.get(code)
        if verdict:
            return verdict
        code = code.rpartition(".")[0]
    return None


def _judge_code(spec: ProviderSpec, code: str, status: int | None) -> Verdict | None:
    """The verdict on a code by the provider's own list, else by what every gateway means by it: anybody's may be behind
    an address that the user gave.
    """
    return _by_code(spec.codes, code, status) or (ACCOUNT if code in EMPTY_ACCOUNT else None)


def _by_status(spec: ProviderSpec, status: int | None) -> Verdict:
    """The verdict on a well-formed error whose code says nothing."""
    if status is not None and 300 <= status < 500:
        return spec.statuses.get(status) or _STATUSES.get(status, REFUSED)
    answered = status is None or 200 <= status < 300
    return REFUSED if answered and spec.failures_free else UNKNOWN


def _worded(
    spec: ProviderSpec, verdict: Verdict, fault: Fault, *, status: int | None, delivered: bool = True
) -> ApiError:
    """The error with a message for the user: who, what, and what the provider said."""
    at = f" (HTTP {status})" if status is not None and not 200 <= status < 300 else ""
    code = clean(fault.code, _LONGEST)
    # Hidden characters become escapes here, so that no file or log gets them either.
    said = one_line(fault.message)
    said = clean(said if said.endswith("..") else said.removesuffix("."), _LONGEST) or code
    keys = " or ".join(f"${name}" for name in spec.key_variables)
    return ApiError(
        f"{spec.title} {_SAYS[verdict.kind]}{at}" + (f": {said}" if said else ""),
        kind=verdict.kind,
        hint=verdict.hint.replace("{keys}", f" in {keys}" if keys else ""),
        billed=verdict.billed,
        delivered="yes" if delivered else "maybe",
        retryable=verdict.retryable,
        provider=spec.name,
        code=code,
        status=status,
        request_id=clean(fault.request_id, 200),
    )


def _bare_fault(reply: Reply, name: str) -> Fault:
    """What a reply that is in none of the known envelopes can tell a user."""
    if reply.body is None:
        code, message = text_fault(reply.text)
        return Fault(code, message, name)
    code, message = code_in(reply.body), message_in(reply.body)
    if 200 <= reply.status < 300 or not message:
        message = "the answer holds no pictures" + (f": {message}" if message else "")
    fault = _fault(code, message, "")
    return Fault(fault.code, fault.message, fault.request_id or name)


def _member_error(spec: ProviderSpec, fault: Fault) -> ApiError:
    """The error of one picture among others. Never retryable: sending the request again draws all of them again."""
    error = api_error(spec, fault)
    if error.kind == "unknown_outcome":
        # The answer came, so it is known that this picture failed; only the billing is not.
        error = _worded(spec, Verdict("unavailable", billed="unknown"), fault, status=None)
    error.retryable = False
    return error


def _no_picture(spec: ProviderSpec) -> ApiError:
    """The error for a member that is neither a picture nor an error."""
    return _worded(spec, UNKNOWN, Fault("", "a member of the answer holds no picture"), status=None)
