"""Every failure the tool can name, its exit code and whether money moved.

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
├── BusyError         busy                                  75   another run holds it
├── BudgetError       budget                                10
├── InterruptedRunError  interrupted                  130, 143
└── InternalError     internal                               1   a bug in the tool
"""

from __future__ import annotations

from collections.abc import Sequence
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
"""The error codes of the JSON output and the exit code each ends a run with."""

PARTIAL = 9
"""The exit code of a run in which some images are on disk and others failed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong (or worth a warning) in what the user asked for, with its place and the way out."""

    field: str
    message: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"
    origin: str = ""
    code: str = "validation"


class SeedreamError(Exception):
    """The root: a message for the user, a hint, and the kind that fixes the exit code."""

    def __init__(self, message: str, *, kind: str, hint: str = "", billed: Billed = "no") -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.hint = hint
        self.billed: Billed = billed

    @property
    def exit_code(self) -> int:
        """The process exit code this failure stands for when it is the only one."""
        return EXIT_CODES[self.kind]


class InputError(SeedreamError):
    """Bad input. Holds every problem found, not the first; nothing was sent."""

    def __init__(self, problems: Sequence[Problem], *, kind: str = "validation") -> None:
        super().__init__("; ".join(p.message for p in problems), kind=kind)
        self.problems = tuple(problems)


class ConfigError(SeedreamError):
    """The set-up cannot serve the request: no key, no base URL, an unusable proxy."""

    def __init__(self, message: str, *, kind: str = "config", hint: str = "") -> None:
        super().__init__(message, kind=kind, hint=hint)


class ApiError(SeedreamError):
    """The provider refused, failed, or could not be reached.

    `delivered` says whether the request reached the provider, `billed` whether money may have moved,
    `retryable` whether the same request may be sent again without the user saying so.
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
    """A provider's task has ended without an image: asking again tells nothing new. `billed` as the provider says."""


class LinkError(SeedreamError):
    """A paid image could not be fetched from its link; the link is kept for `recover`.

    `early` says that the image may only not be there yet.
    """

    def __init__(
        self, message: str, *, kind: str = "download", hint: str = "", retryable: bool = False, early: bool = False
    ) -> None:
        super().__init__(message, kind=kind, hint=hint, billed="yes")
        self.retryable = retryable
        self.early = early


class FileError(SeedreamError):
    """The disk refused. Exit 74 while nothing was sent; an image already paid for ends as 8: `recover` gets it."""

    def __init__(self, message: str, *, hint: str = "", billed: Billed = "no") -> None:
        super().__init__(message, kind="filesystem", hint=hint, billed=billed)

    @property
    def exit_code(self) -> int:
        """74 promises that nothing was paid, so a paid image that found no room ends as 8."""
        return EXIT_CODES["filesystem" if self.billed == "no" else "download"]


class OutputError(FileError):
    """Standard output cannot be written, as on a full disk behind it: exit 74, and what was paid for is kept."""

    @property
    def exit_code(self) -> int:
        """The same whether something was paid or not: a script looks at where its output goes."""
        return EXIT_CODES["filesystem"]


class BusyError(SeedreamError):
    """Another run holds this batch; nothing was sent."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, kind="busy", hint=hint)


class BudgetError(SeedreamError):
    """The next request could spend more than the user allowed."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, kind="budget", hint=hint)


class InterruptedRunError(SeedreamError):
    """A signal ended the run; `signal_number` fixes the exit code (128 + number)."""

    def __init__(self, message: str, *, signal_number: int, hint: str = "") -> None:
        super().__init__(message, kind="interrupted", hint=hint)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number


class InternalError(SeedreamError):
    """A bug in the tool: something the code holds to be impossible."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, kind="internal", hint=hint, billed="unknown")
