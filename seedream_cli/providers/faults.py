"""Errors: found in an answer, judged by their code, worded for the user."""

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

_MOST_IMAGES = 1000
"""More than any answer holds; a number or a count beyond it is a slip."""


def fault_in(body: Any) -> ProviderFault | None:
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


def api_error(spec: ProviderSpec, fault: ProviderFault, *, status: int | None = None) -> ApiError:
    """The error for a well-formed fault, judged by its code, then by the status it came with (None: in a stream)."""
    verdict = _judge_code(spec, fault.code, status)
    other = _judge_code(spec, fault.also, status) if verdict is None else None
    if other is not None and other.kind in _DECISIVE:
        return _worded(spec, other, replace(fault, code=fault.also), status=status)
    return _worded(spec, verdict or _by_status(spec, status), fault, status=status)


def refusal(spec: ProviderSpec, reply: Reply) -> ApiError:
    """The error for a reply without images. A 5xx (or a 2xx) that is not the provider's own error proves nothing."""
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


_NO_TIMES = ("0000-", "0001-01-01", "1970-01-01T00:00:00", "-")


def task_state(record: Mapping[str, Any]) -> str:
    """Whether a task is "pending", "done" or "failed" by its own word; "" where it has none that is known."""
    names = ("status", "state", "task_status", "taskStatus")
    word = next((text for name in names if (text := _text(record.get(name)))), "")
    return _TASK_STATES.get(word.strip().lower().replace("-", "_").replace(" ", "_"), "")


def is_time(value: Any) -> bool:
    """Whether a record's member is a time. Programs write "not yet" as nothing, as 0 and as the year 1."""
    return bool(value) and not str(value).strip().startswith(_NO_TIMES) and str(value).strip(" 0.") != ""


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


def _fault(code: str, message: str, request_id: str) -> ProviderFault:
    """A fault with the request id taken off the end of its message."""
    said, found = _split_request_id(message[:MOST])
    return ProviderFault(code, said, request_id or found)


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
    spec: ProviderSpec, verdict: Verdict, fault: ProviderFault, *, status: int | None, delivered: bool = True
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


def _bare_fault(reply: Reply, name: str) -> ProviderFault:
    """What a reply that is in none of the known envelopes can tell a user."""
    if reply.body is None:
        code, message = text_fault(reply.text)
        return ProviderFault(code, message, name)
    code, message = code_in(reply.body), message_in(reply.body)
    if 200 <= reply.status < 300 or not message:
        message = "the answer holds no images" + (f": {message}" if message else "")
    fault = _fault(code, message, "")
    return ProviderFault(fault.code, fault.message, fault.request_id or name)


def _member_error(spec: ProviderSpec, fault: ProviderFault) -> ApiError:
    """The error of one image among others. Never retryable: sending the request again draws all of them again."""
    error = api_error(spec, fault)
    if error.kind == "unknown_outcome":
        # The answer came, so it is known that this image failed; only the billing is not.
        error = _worded(spec, Verdict("unavailable", billed="unknown"), fault, status=None)
    error.retryable = False
    return error


def _no_image(spec: ProviderSpec) -> ApiError:
    """The error for a member that is neither an image nor an error."""
    return _worded(spec, UNKNOWN, ProviderFault("", "a member of the answer holds no image"), status=None)
