"""Every error, its exit code, and whether the request was billed.

SeedreamError
├── InputError        usage, validation                      2   nothing was sent
├── ConfigError       config, auth (no key found)             3   nothing was sent
├── ApiError          auth, account                          3   refused by the provider
│                     refused, moderation                    4
│                     rate_limited, quota, unavailable       5
│                     network                                6   proven not delivered
│                     unknown_outcome                        7   may have been billed
│   └── TaskEndedError  a task that ended without an image
├── LinkError         download, expired                      8   paid, not saved
├── FileError         filesystem                            74   nothing was sent (8 once paid)
│   └── OutputError   standard output                       74   what was paid is kept
├── BusyError         busy                                  75   another run has the lock
├── BudgetError       budget                                10
├── InterruptedRunError  interrupted                  130, 143
└── InternalError     internal                               1   a bug in the tool
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Billed = Literal["no", "yes", "unknown"]

Delivered = Literal["no", "maybe", "yes"]

EXIT_CODES: dict[str, int] = {
    "usage": 2,
    "validation": 2,
    "config": 3,
    "auth": 3,
    "account": 3,
    "refused": 4,
    "moderation": 4,
    "rate_limited": 5,
    "quota": 5,
    "unavailable": 5,
    "network": 6,
    "unknown_outcome": 7,
    "download": 8,
    "expired": 8,
    "filesystem": 74,
    "busy": 75,
    "budget": 10,
    "interrupted": 130,
    "internal": 1,
}
"""The error codes of the JSON output and their exit codes."""

PARTIAL = 9
"""The exit code where some images are on disk and others failed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning about the user's input: option, message, hint, and where the value came from."""

    field: str
    message: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"
    origin: str = ""
    code: str = "validation"


class SeedreamError(Exception):
    """The base class: a message for the user, a hint, and the kind that determines the exit code."""

    def __init__(self, message: str, *, kind: str, hint: str = "", billed: Billed = "no") -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.hint = hint
        self.billed: Billed = billed

    @property
    def exit_code(self) -> int:
        """The exit code of the process where this is the only error."""
        return EXIT_CODES[self.kind]


class InputError(SeedreamError):
    """Invalid input, with all problems and not the first; nothing was sent."""

    def __init__(self, problems: Sequence[Problem], *, kind: str = "validation") -> None:
        super().__init__("; ".join(p.message for p in problems), kind=kind)
        self.problems = tuple(problems)


class ConfigError(SeedreamError):
    """The configuration is incomplete: no key, no base URL, an unusable proxy."""

    def __init__(self, message: str, *, kind: str = "config", hint: str = "") -> None:
        super().__init__(message, kind=kind, hint=hint)


class ApiError(SeedreamError):
    """The provider refused, failed, or could not be reached.

    `delivered` is whether the request reached the provider, `billed` whether it may have been billed, `retryable`
    whether it may be sent again automatically.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        hint: str = "",
        billed: Billed = "no",
        delivered: Delivered = "yes",
        retryable: bool = False,
        provider: str = "",
        code: str = "",
        status: int | None = None,
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, kind=kind, hint=hint, billed=billed)
        self.delivered: Delivered = delivered
        self.retryable = retryable
        self.provider = provider
        self.code = code
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class TaskEndedError(ApiError):
    """A provider's task ended without an image, so it is not polled again. `billed` as the provider says."""


class LinkError(SeedreamError):
    """A paid image could not be downloaded; its URL is kept for `recover`.

    `early`: the image may not be available yet.
    """

    def __init__(
        self, message: str, *, kind: str = "download", hint: str = "", retryable: bool = False, early: bool = False
    ) -> None:
        super().__init__(message, kind=kind, hint=hint, billed="yes")
        self.retryable = retryable
        self.early = early


class FileError(SeedreamError):
    """A file system error. Exit 74 where nothing was billed, 8 where a paid image is left for `recover`."""

    def __init__(self, message: str, *, hint: str = "", billed: Billed = "no") -> None:
        super().__init__(message, kind="filesystem", hint=hint, billed=billed)

    @property
    def exit_code(self) -> int:
        """74 means that nothing was billed; else 8."""
        return EXIT_CODES["filesystem" if self.billed == "no" else "download"]


class OutputError(FileError):
    """Standard output cannot be written, such as a redirect to a full disk. Paid images are kept."""

    @property
    def exit_code(self) -> int:
        """74, billed or not."""
        return EXIT_CODES["filesystem"]


class BusyError(SeedreamError):
    """Another run has the lock of this batch; nothing was sent."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, kind="busy", hint=hint)


class BudgetError(SeedreamError):
    """The next request could exceed a budget."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, kind="budget", hint=hint)


class InterruptedRunError(SeedreamError):
    """A signal ended the run; the exit code is 128 + `signal_number`."""

    def __init__(self, message: str, *, signal_number: int, hint: str = "") -> None:
        super().__init__(message, kind="interrupted", hint=hint)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number


class InternalError(SeedreamError):
    """A bug in the tool."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, kind="internal", hint=hint, billed="unknown")


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that it came from, outermost first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
