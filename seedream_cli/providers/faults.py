"""Errors: found in a response, classified by code and status, with a message for the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ApiError, TaskEndedError
from ..text import clean
from .contract import EMPTY_ACCOUNT, ProviderSpec, Reply, Verdict, _text
from .error_text import MOST, code_in, message_in, one_line, plain_code, text_fault


@dataclass(frozen=True, slots=True)
class ProviderFault:
    """A provider's error: its code verbatim, its message without the request id at the end."""

    code: str
    message: str
    request_id: str = ""
    error_type: str = ""
    """The field `type` beside a code: some gateways put the status into the code and the reason here."""


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

MODERATION = Verdict("moderation", hint="reword the prompt or change the reference images")

UNKNOWN_MODEL = Verdict("refused", hint="`seedream models` lists the models that this provider serves")

WRONG_ADDRESS = Verdict("refused", hint="nothing serves this path: check --base-url")

_PROMPT = Verdict("moderation", hint="reword the prompt")

_REFERENCE = Verdict("moderation", hint="use other reference images")

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
"""The vendor's moderation codes, which gateways pass on."""

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

_CHALLENGES = ("just a moment", "checking your browser", "ddos-guard", "verify you are human", "one moment, please")

_DECISIVE = {"account", "quota", "auth", "moderation"}

_MESSAGES = {
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

_MOST_IMAGES = 1000
"""More than any response has; larger indexes are ignored."""


def fault_in(body: Any) -> ProviderFault | None:
    """The error in a body of a known format; None where there is none.

    {"error": {"code", "message", "type"}}, {"error": "text"}, {"success": false, "error": …, "trace_id"}; of
    {"error": {"error": …}} the inner error.
    """
    if not isinstance(body, Mapping):
        return None
    error = body.get("error")
    trace = _text(body.get("trace_id"))
    if isinstance(error, Mapping) and error:
        return replace(_fault(code_in(error), message_in(error), trace), error_type=plain_code(error.get("type")))
    if isinstance(error, str) and error:
        return _fault("", message_in(body), trace)
    if body.get("success") is False:
        return _fault(code_in(body), message_in(body), trace)
    return None


def api_error(spec: ProviderSpec, fault: ProviderFault, *, status: int | None = None) -> ApiError:
    """The `ApiError` of a fault, by its code, else by the HTTP status (None: in a stream)."""
    verdict = _verdict_on(spec, fault.code, status)
    other = _verdict_on(spec, fault.error_type, status) if verdict is None else None
    if other is not None and other.kind in _DECISIVE:
        return _make_error(spec, other, replace(fault, code=fault.error_type), status=status)
    return _make_error(spec, verdict or _by_status(spec, status), fault, status=status)


def refusal(spec: ProviderSpec, reply: Reply) -> ApiError:
    """The `ApiError` of a response without images. A 5xx or 2xx that is no error of the provider is ambiguous."""
    fault = fault_in(reply.body)
    name = reply.headers.get("x-request-id", "")
    if fault:
        fault = replace(fault, request_id=fault.request_id or name)
        return api_error(spec, fault, status=reply.status)
    fault = _fault_without_envelope(reply, name)
    if _is_challenge(reply):
        return _make_error(spec, CHALLENGED, fault, status=reply.status)
    # Such a code counts only with a status that rules out an image.
    is_refused = 400 <= reply.status < 500 and reply.status != 408
    known = _by_code(spec.codes, fault.code, reply.status) if is_refused else None
    if known:
        return _make_error(spec, known, fault, status=reply.status)
    if reply.status in {404, 405} or 300 <= reply.status < 400:
        return _make_error(spec, WRONG_ADDRESS, fault, status=reply.status)
    verdict = _STATUSES.get(reply.status, REFUSED if 400 <= reply.status < 500 else UNKNOWN)
    return _make_error(spec, verdict, fault, status=reply.status, delivered=verdict is not UNKNOWN)


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
"""State names of gateways, in lower case."""


_NO_TIMES = ("0000-", "0001-01-01", "1970-01-01T00:00:00", "-")


def task_state(record: Mapping[str, Any]) -> str:
    """ "pending", "done" or "failed" by a task's state field; "" where it has none or an unknown one."""
    names = ("status", "state", "task_status", "taskStatus")
    word = next((text for name in names if (text := _text(record.get(name)))), "")
    return _TASK_STATES.get(word.strip().lower().replace("-", "_").replace(" ", "_"), "")


def is_time(value: Any) -> bool:
    """Whether a field holds a time. For "not yet" programs write null, 0 or the year 1."""
    return bool(value) and not str(value).strip().startswith(_NO_TIMES) and str(value).strip(" 0.") != ""


def task_ended(error: ApiError, task_id: str) -> TaskEndedError:
    """The error for a task that ended without an image, from its record's error."""
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
    """Whether a firewall's browser check answered. It is in front of the API, so nothing was billed."""
    if reply.headers.get("cf-mitigated") or reply.headers.get("x-amzn-waf-action"):
        return True
    text = text_fault(reply.text)[1].lower() if reply.body is None and reply.status in {403, 429, 451, 503} else ""
    if reply.status in {403, 451} and text.startswith("the answer is a web page"):
        # No API forbids with an HTML page.
        return True
    return any(f"web page: {words}" in text for words in _CHALLENGES)


def _fault(code: str, message: str, request_id: str) -> ProviderFault:
    text, found = _split_request_id(message[:MOST])
    return ProviderFault(code, text, request_id or found)


def _split_request_id(message: str) -> tuple[str, str]:
    """(message without a trailing "(request id: 0123)", id or "").

    Without a regular expression, which takes minutes for a long run of spaces.
    """
    end = message.rstrip(" \t\r\n.").removesuffix(")").rstrip()
    at = end.lower().rfind("request")
    name, mark, value = end[at + len("request") :].partition(":" if ":" in end[at:] else "=")
    value = value.strip()
    if at < 0 or not mark or name.strip(" _-\t").lower() != "id" or not value or set(value) & set(" \t\r\n()"):
        return message, ""
    return end[:at].rstrip(" \t\r\n,;").removesuffix("(").rstrip(" \t\r\n,;"), value


def _by_code(codes: Mapping[str, Verdict], code: str, status: int | None) -> Verdict | None:
    """The verdict for "STATUS:CODE" or "CODE", else for the code's prefixes: "A.B.C", "A.B", "A"."""
    while code:
        verdict = codes.get(f"{status}:{code}") or codes.get(code)
        if verdict:
            return verdict
        code = code.rpartition(".")[0]
    return None


def _verdict_on(spec: ProviderSpec, code: str, status: int | None) -> Verdict | None:
    """The verdict for a code by the provider's table, else by codes that all gateways share, since --base-url may be
    any gateway.
    """
    return _by_code(spec.codes, code, status) or (ACCOUNT if code in EMPTY_ACCOUNT else None)


def _by_status(spec: ProviderSpec, status: int | None) -> Verdict:
    """The verdict for an error of unknown code."""
    if status is not None and 300 <= status < 500:
        return spec.statuses.get(status) or _STATUSES.get(status, REFUSED)
    answered = status is None or 200 <= status < 300
    return REFUSED if answered and spec.failures_free else UNKNOWN


def _make_error(
    spec: ProviderSpec, verdict: Verdict, fault: ProviderFault, *, status: int | None, delivered: bool = True
) -> ApiError:
    """The `ApiError` with a message: provider, verdict, status, and the provider's message."""
    at = f" (HTTP {status})" if status is not None and not 200 <= status < 300 else ""
    code = clean(fault.code, _LONGEST)
    # Control characters are escaped here, so that no file or log gets them either.
    text = one_line(fault.message)
    text = clean(text if text.endswith("..") else text.removesuffix("."), _LONGEST) or code
    keys = " or ".join(f"${name}" for name in spec.key_variables)
    return ApiError(
        f"{spec.title} {_MESSAGES[verdict.kind]}{at}" + (f": {text}" if text else ""),
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


def _fault_without_envelope(reply: Reply, name: str) -> ProviderFault:
    """The fault of a response in no known format."""
    if reply.body is None:
        code, message = text_fault(reply.text)
        return ProviderFault(code, message, name)
    code, message = code_in(reply.body), message_in(reply.body)
    if 200 <= reply.status < 300 or not message:
        message = "the answer holds no images" + (f": {message}" if message else "")
    fault = _fault(code, message, "")
    return ProviderFault(fault.code, fault.message, fault.request_id or name)


def _member_error(spec: ProviderSpec, fault: ProviderFault) -> ApiError:
    """The error of one image among others. Not retryable: that would pay for all images again."""
    error = api_error(spec, fault)
    if error.kind == "unknown_outcome":
        # The response says that this image failed; only the billing is unknown.
        error = _make_error(spec, Verdict("unavailable", billed="unknown"), fault, status=None)
    error.retryable = False
    return error


def _no_image(spec: ProviderSpec) -> ApiError:
    """The error for a list member that is neither an image nor an error."""
    return _make_error(spec, UNKNOWN, ProviderFault("", "a member of the answer holds no image"), status=None)
