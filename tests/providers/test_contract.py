"""One contract for every provider, fed by the JSON cases in `cases/<provider>/`; a parent's cases are inherited.

`submit.json` holds options and the exact body, `read.json` replies and their images or task, `errors.json` replies
and their error, `events.json` events of a stream. A case of the same name in the child's file replaces the parent's.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.errors import EXIT_CODES, ApiError, InputError
from seedream_cli.providers import PROVIDERS, base_url, contract, load, specs
from seedream_cli.request.image_request import ImageRef, ImageRequest
from seedream_cli.request.models import MODELS, Rule, find_model
from seedream_cli.results import Base64Slice, Layer, ProviderImage

CASES = Path(__file__).parents[1] / "cases"
ROOM = Path(contract.__file__).parent

# The error codes of an image request on the upstream's error page.
UPSTREAM = """
MissingParameter MissingParameter.prompt InvalidParameter InvalidParameter.size InvalidParameter.UnsupportedParameter
InvalidParameter.TosURLInvalid InvalidImageURL.EmptyURL InvalidImageURL.InvalidFormat InvalidEndpoint.ClosedEndpoint
InputTextSensitiveContentDetected InputTextSensitiveContentDetected.PolicyViolation InputImageSensitiveContentDetected
InputImageSensitiveContentDetected.PolicyViolation InputImageSensitiveContentDetected.PrivacyInformation
OutputImageSensitiveContentDetected InputTextRiskDetection InputImageRiskDetection OutputTextRiskDetection
OutputImageRiskDetection ContentSecurityDetectionError SensitiveContentDetected
SensitiveContentDetected.SevereViolation SensitiveContentDetected.Violence InvalidSubscription AuthenticationError
InvalidAccountStatus AccessDenied OperationDenied.PermissionDenied OperationDenied.ServiceNotOpen
OperationDenied.InvalidState AccountOverdueError OperationDenied.ServiceOverdue InvalidEndpointOrModel.NotFound
InvalidEndpointOrModel.ModelIDAccessDisabled ModelNotOpen NotFound.endpoint UnsupportedModel
ModelAccountIpmRateLimitExceeded RateLimitExceeded.EndpointRPMExceeded RateLimitExceeded.EndpointTPMExceeded
ModelAccountRpmRateLimitExceeded ModelAccountTpmRateLimitExceeded APIAccountRpmRateLimitExceeded
AccountRateLimitExceeded ServerOverloaded RequestBurstTooFast QuotaExceeded SetLimitExceeded InflightBatchsizeExceeded
InternalServiceError
"""


def _revive(value: dict[str, Any]) -> Any:
    """A kept base64 image stands in a case as {"$blob": [path, offset, length]}."""
    if "$blob" in value:
        path, offset, length = value["$blob"]
        return Base64Slice(Path(path), offset, length)
    return value


def _cases(kind: str, provider: str) -> dict[str, Any]:
    """A provider's cases of one kind by name, on top of its parent's. Bodies are the provider's own."""
    spec = load(provider).spec
    inherited = _cases(kind, spec.parent) if spec.parent and kind != "submit" else {}
    path = CASES / provider / f"{kind}.json"
    return inherited | (json.loads(path.read_text("utf-8"), object_hook=_revive) if path.exists() else {})


def _params(kind: str) -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}: {title}")
        for name in PROVIDERS
        for title, case in _cases(kind, name).items()
    ]


def _reply(case: Mapping[str, Any]) -> contract.Reply:
    return contract.Reply(case["status"], case.get("headers", {}), case.get("body"), case.get("text", ""))


def _check_error(error: Any, wanted: Mapping[str, Any], provider: str) -> None:
    """Everything a caller decides by, and the words where the case gives some."""
    assert isinstance(error, ApiError)
    assert error.kind in EXIT_CODES
    seen = {name: getattr(error, name) for name in ("kind", "code", "billed", "retryable", "request_id")}
    assert seen == {name: wanted[name] for name in seen}
    assert error.provider == provider
    assert error.delivered == wanted.get("delivered", error.delivered)
    assert wanted.get("message", "") in error.message
    assert wanted.get("hint", "") in error.hint
    assert not error.request_id or error.request_id not in error.message
    assert "{" not in error.hint
    # What may not be billed twice may not be sent twice.
    assert not (error.retryable and error.billed != "no")


def _check_image(image: Any, wanted: Mapping[str, Any], provider: str) -> None:
    assert isinstance(image, ProviderImage)
    plain = dict(wanted)
    error, layer, blob = plain.pop("error", None), plain.pop("layer", None), plain.pop("blob", None)
    if error is not None:
        _check_error(image.error, error, provider)
        assert isinstance(image.error, ApiError)
        assert not image.error.retryable
    if layer is not None:
        layer = Layer(**{k: tuple(v) if isinstance(v, list) else v for k, v in layer.items()})
    kept = Base64Slice(Path(blob[0]), blob[1], blob[2]) if blob else None
    assert image == ProviderImage(**plain, error=image.error if error else None, layer=layer, blob=kept)


def _request(provider: str, options: Mapping[str, Any]) -> ImageRequest:
    """A request for a case: the model spelled as the provider spells it, the rest as given."""
    plain = dict(options)
    name = plain.pop("typed", plain.get("model", ""))
    row = find_model(name) if name else None
    model_id = plain.pop("model_id", None) or contract.model_id_for(load(provider).spec, row, name)
    plain["images"] = tuple(
        ImageRef(**{**ref, "path": Path(ref["path"])} if "path" in ref else ref) for ref in plain.get("images", ())
    )
    fixed = {"provider": provider, "model": row.name if row else "", "model_id": model_id}
    return ImageRequest(**{"prompt": "a fox", "size": "2K", **plain, **fixed})


def _shown(value: Any) -> Any:
    """A body as a case writes it: a local reference by its name."""
    if isinstance(value, ImageRef):
        return {"$ref": value.location}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return {k: _shown(v) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(("provider", "case"), _params("submit"))
def test_submit_writes_the_body_of_the_case(provider: str, case: dict[str, Any]) -> None:
    """Options become exactly the documented fields, four of them always, nothing that was not asked for."""
    dialect = load(provider)
    request = _request(provider, case["request"])
    call = dialect.submit(request)
    assert _shown(dict(call.json or {})) == case["body"]
    assert (call.method, call.path, call.billable) == ("POST", dialect.spec.path, True)
    assert call.stream == (case["body"].get("stream") is True)
    assert call.accept == case.get("accept", "application/json")
    assert dialect.submit(request) == call


@pytest.mark.parametrize(("provider", "case"), _params("read"))
def test_read_finds_every_image(provider: str, case: dict[str, Any]) -> None:
    """A reply becomes images and failed members in their order, or a task."""
    answer = load(provider).read(_reply(case["reply"]))
    if "ticket" in case:
        assert isinstance(answer, contract.Ticket)
        assert answer.task_id == case["ticket"]["task_id"]
        return
    assert isinstance(answer, contract.Ready)
    assert len(answer.images) == len(case["images"])
    for image, wanted in zip(answer.images, case["images"], strict=True):
        _check_image(image, wanted, provider)
    assert answer.usage == case.get("usage")
    assert answer.request_id == case.get("request_id", "")


@pytest.mark.parametrize(("provider", "case"), _params("errors"))
def test_read_judges_every_error(provider: str, case: dict[str, Any]) -> None:
    """A failure has the documented kind, says whether it may have been billed and whether it may be sent again."""
    reply = _reply(case["reply"])
    with pytest.raises(ApiError) as caught:
        load(provider).read(reply)
    _check_error(caught.value, case["error"], provider)
    assert caught.value.status == reply.status


@pytest.mark.parametrize(("provider", "case"), _params("events"))
def test_read_event_takes_a_stream_apart(provider: str, case: dict[str, Any]) -> None:
    """An event is an image, the end, nothing, or the failure of the whole request; a failed member is no failure."""
    dialect = load(provider)
    if "error" in case:
        with pytest.raises(ApiError) as caught:
            dialect.read_event(case["event"])
        _check_error(caught.value, case["error"], provider)
        return
    seen = dialect.read_event(case["event"])
    if "image" in case:
        _check_image(seen, case["image"], provider)
    elif "completed" in case:
        assert isinstance(seen, contract.Completed)
        assert seen.usage == case["completed"]
    else:
        assert seen is None


def test_every_documented_error_has_a_case() -> None:
    """No code of the upstream's page, and no code a provider adds to its parent's, is without a case."""
    assert set(UPSTREAM.split()) <= set(_cases("errors", "ark"))
    for spec in specs():
        inherited = load(spec.parent).spec.codes if spec.parent else {}
        own = {code for code, verdict in spec.codes.items() if inherited.get(code) != verdict}
        met = {case["error"]["code"] for case in _cases("errors", spec.name).values()}
        met |= {code.rpartition(".")[0] for code in met} | {
            f"{case['reply']['status']}:{case['error']['code']}" for case in _cases("errors", spec.name).values()
        }
        missing = own - met - {"Unauthorized"}
        assert not missing, f"{spec.name}: {missing}"


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_module_keeps_the_contract(name: str) -> None:
    """Each module has the dialect's functions and a whole spec; `full_url` leaves its base URL alone."""
    dialect = load(name)
    spec = dialect.spec
    for part in ("submit", "read", "read_event", "poll"):
        assert callable(getattr(dialect, part))
    assert spec.name == name
    assert spec.parent in {"", *PROVIDERS}
    assert spec.title
    assert spec.source
    assert spec.as_of.count("-") == 1
    assert spec.needs_base_url or base_url.full_url(spec) == spec.base_url
    assert spec.base_url.endswith(spec.version) or spec.needs_base_url
    assert bool(spec.key_variables) != spec.offline
    assert all(verdict.kind in EXIT_CODES for verdict in (*spec.codes.values(), *spec.statuses.values()))
    options = {"seed", "guidance_scale", "format", "response_format", "stream", "optimize_prompt", "web_search"}
    options |= {"background", "layers", "sequence", "images", "watermark", "callback_url", "async"}
    assert set(spec.rules) | {name.rpartition(":")[2] for name in spec.unconfirmed} <= options
    assert any(spec.spelling in row.ids for row in MODELS)


SHARED = {"base_url", "contract", "error_text", "faults", "payload", "reading", "tasks"}
"""What every provider may use."""


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.stem)
def test_a_dialect_is_pure(path: Path) -> None:
    """No provider reads a clock, the environment or the network, or imports a provider that is not its parent."""
    parent = load(path.stem).spec.parent if path.stem in PROVIDERS else ""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or alias.name for alias in node.names]
            if node.level == 1 and path.stem != "__init__":
                siblings = {(node.module or alias.name).split(".")[0] for alias in node.names}
                assert siblings <= SHARED | {parent}, f"{path.name} imports {siblings}"
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"time", "os", "asyncio", "httpx", "socket", "pathlib", "datetime", "random", "sqlite3"}


def test_loading_one_provider_loads_no_other() -> None:
    """An unknown name is refused with the nearest ones; every name loads its own module, in a stable order."""
    assert [spec.name for spec in specs()] == list(PROVIDERS)
    assert {path.stem for path in ROOM.glob("*.py")} == {*PROVIDERS, *SHARED, "__init__"}
    with pytest.raises(InputError) as caught:
        load("comet")
    assert caught.value.exit_code == 2
    assert "cometapi" in caught.value.problems[0].hint
    for bad in ("", "base", "../ark", "ARK"):
        with pytest.raises(InputError):
            load(bad)


def test_a_task_is_asked_after_for_free() -> None:
    """AceData Cloud's tasks are read by a POST that is not billable, a gateway's by a GET; a vendor has none."""
    call = load("acedata").poll(contract.Ticket("c9aa"))
    assert call == contract.Call("POST", "/seedream/tasks", {"id": "c9aa", "action": "retrieve"})
    gateways = {"openai", "ope", "cometapi"}
    for name in gateways:
        assert load(name).poll(contract.Ticket("a/b?c#d e%2e é")) == contract.Call(
            "GET", "/tasks/a%2Fb%3Fc%23d%20e%252e%20%C3%A9"
        )
        for odd in ("", ".", "..", "a\nb", "a\x00", "a\x1b[0m", "a\u202eb", "a\udc80", "x" * 201, " "):
            with pytest.raises(InputError):
                load(name).poll(contract.Ticket(odd))
    for name in set(PROVIDERS) - gateways - {"acedata"}:
        with pytest.raises(InputError):
            load(name).poll(contract.Ticket("c9aa"))


@pytest.mark.parametrize(
    ("provider", "model", "option", "state"),
    [
        ("ark", "4.5", "seed", "unconfirmed"),
        ("ark", "3.0", "seed", "taken"),
        ("cometapi", "4.5", "seed", "ignored"),
        ("cometapi", "4.5", "stream", "unconfirmed"),
        ("cometapi", "pro", "stream", "refused"),
        ("cometapi", "4.5", "sequence", "taken"),
        ("acedata", "4.5", "seed", "refused"),
        ("acedata", "4.5", "guidance_scale", "refused"),
        ("acedata", "seededit", "guidance_scale", "taken"),
        ("acedata", "4.5", "async", "taken"),
        ("acedata", "4.5", "callback_url", "taken"),
        ("ark", "4.5", "async", "refused"),
        ("ope", "4.5", "callback_url", "refused"),
        ("ope", "lite", "format", "ignored"),
        ("ope", "lite", "background", "ignored"),
        ("ope", "4.5", "web_search", "refused"),
        ("ope", "lite", "web_search", "unconfirmed"),
        ("ope", "3.0", "seed", "unconfirmed"),
        ("ark", "lite", "web_search", "taken"),
        ("byteplus", "lite", "web_search", "refused"),
        ("byteplus", "pro", "background", "taken"),
        ("byteplus", "lite", "background", "refused"),
        ("ark", "4.5", "format", "refused"),
        ("ark", "4.5", "watermark", "taken"),
        ("ark", "ep-1", "seed", "unconfirmed"),
        ("ope", "ep-1", "format", "ignored"),
    ],
)
def test_the_stricter_rule_holds(provider: str, model: str, option: str, state: str) -> None:
    """What the provider or the model refuses is refused; a provider's doubt never softens a model's refusal."""
    assert contract.rule_for(load(provider).spec, find_model(model), option).state == state


def test_every_rule_gives_its_reason() -> None:
    """A rule that is not plain "taken" says why, and where that is known from."""
    for spec in specs():
        for rule in (*spec.rules.values(), *spec.unconfirmed.values()):
            assert isinstance(rule, Rule)
            assert rule.state != "taken"
            assert rule.note


@pytest.mark.parametrize(
    ("provider", "typed", "sent"),
    [
        ("ark", "4.5", "doubao-seedream-4-5-251128"),
        ("byteplus", "4.5", "seedream-4-5-251128"),
        ("byteplus", "doubao-seedream-4-5-251128", "seedream-4-5-251128"),
        ("byteplus", "seedream-5-0-pro-260628", "seedream-5-0-pro-260628"),
        ("ope", "4.5", "doubao-seedream-4.5"),
        ("ope", "doubao-seedream-4-5-251128", "doubao-seedream-4-5-251128"),
        ("ope", "5.0", "bytedance-seedream-5.0"),
        ("ope", "5.5", None),
        ("acedata", "lite", "doubao-seedream-5-0-lite-260128"),
        ("acedata", "flash", None),
        ("openai", "seedream-4-5-251128", "seedream-4-5-251128"),
        ("openai", "4.5", "doubao-seedream-4-5-251128"),
        ("cometapi", "bytedance-seedream-5.0", "bytedance-seedream-5.0"),
        ("ark", "ep-20260101-x", "ep-20260101-x"),
    ],
)
def test_a_model_is_spelled_as_the_provider_spells_it(provider: str, typed: str, sent: str | None) -> None:
    """A name gets the provider's first spelling, an id of its own goes as typed, and a model it lacks has none."""
    assert contract.model_id_for(load(provider).spec, find_model(typed), typed) == sent


@pytest.mark.parametrize(
    ("provider", "typed", "full"),
    [
        ("ark", "https://h", "https://h/api/v3"),
        ("ark", "https://h/api", "https://h/api/v3"),
        ("ark", "https://h/api/v3", "https://h/api/v3"),
        ("ark", " https://h/api/v3/ ", "https://h/api/v3"),
        ("ark", "https://h/api/v3/images/generations", "https://h/api/v3"),
        ("ark", "https://h/api/v3/models", "https://h/api/v3"),
        ("ark", "https://h/ark", "https://h/ark/api/v3"),
        ("ark", "https://h/ark/api/", "https://h/ark/api/v3"),
        ("ark", "https://h//ark//", "https://h/ark/api/v3"),
        ("ark", "http://127.0.0.1:8080", "http://127.0.0.1:8080/api/v3"),
        ("ark", "http://[::1]:8080/v1", "http://[::1]:8080/v1"),
        ("ark", None, "https://ark.cn-beijing.volces.com/api/v3"),
        ("openai", "https://api.deepinfra.com/v1/openai", "https://api.deepinfra.com/v1/openai"),
        ("openai", "https://h/v1/openai/images/generations", "https://h/v1/openai"),
        ("openai", "HTTPS://api.example.com", "https://api.example.com/v1"),
        ("openai", "https://h/v1beta", "https://h/v1beta"),
        ("openai", "https://h/v1%2Fa", "https://h/v1%2Fa/v1"),
        ("acedata", "https://api.acedata.cloud/", "https://api.acedata.cloud"),
        ("acedata", "https://api.acedata.cloud/seedream/images", "https://api.acedata.cloud"),
        ("acedata", "https://api.acedata.cloud/seedream", "https://api.acedata.cloud"),
        ("acedata", "https://h/proxy", "https://h/proxy"),
    ],
)
def test_the_address_is_completed_once(provider: str, typed: str | None, full: str) -> None:
    """However much of the address was typed, the version stands in it once; doing it again changes nothing."""
    spec = load(provider).spec
    assert base_url.full_url(spec, typed) == full
    assert base_url.full_url(spec, full) == full


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("api.example.com", "https://api.example.com"),
        ("localhost:8080/v1", "http://localhost:8080/v1"),
        ("//h/v1", "https://h/v1"),
        ("https://user:pass-word@h", "user name or password"),
        ("user:pass-word@h", "user name or password"),
        ("https://h/v1?key=pass-word", "write https://h/v1"),
        ("https://h/v1#x", "write https://h/v1"),
        ("https://", "https://HOST"),
        ("https:///v1", "https://HOST"),
        ("ftp://h", "https://HOST"),
        ("https://h:99999", "cannot be read"),
        ("https://[::1", "cannot be read"),
        ("https://h/a b", "space"),
        ("https://h/\x00", "control"),
        ("", "--base-url"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(typed: str, said: str) -> None:
    """The message says what to write instead and never repeats what may be a secret."""
    with pytest.raises(InputError) as caught:
        base_url.full_url(load("openai").spec, typed)
    problem = caught.value.problems[0]
    assert said in f"{problem.message}; {problem.hint}"
    assert "pass-word" not in f"{problem.message}; {problem.hint}"


def test_a_long_message_is_cut_and_a_key_is_named() -> None:
    """An error fits a terminal, and a refused key names the variables it may have come from."""
    body = {"error": {"code": "AuthenticationError", "message": "line\n" * 1000}}
    with pytest.raises(ApiError) as caught:
        load("byteplus").read(contract.Reply(401, {}, body))
    assert len(caught.value.message) < 700
    assert "\n" not in caught.value.message
    assert "$BYTEPLUS_API_KEY or $ARK_API_KEY" in caught.value.hint
