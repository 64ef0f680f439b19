"""What one attempt at a call came to: one of four, and each says what it means for the money."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import ApiError
from ..providers.contract import Reply

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NotSent:
    """It is proven that the request did not reach the provider whole: nothing was charged."""

    error: ApiError


@dataclass(frozen=True, slots=True)
class Refused:
    """The provider answered with an error, whose `billed` is its own word: "no", or "yes" for what it charges for."""

    error: ApiError


@dataclass(frozen=True, slots=True)
class Answered(Generic[T]):
    """What `read` made of the reply. `seconds` is the time from the first byte out to the last byte in."""

    value: T
    reply: Reply
    seconds: float


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """The request may have been charged, and no whole answer says so."""

    error: ApiError


Outcome = NotSent | Refused | Answered[T] | Ambiguous


def failed(error: ApiError) -> NotSent | Refused | Ambiguous:
    """The outcome of an attempt that failed."""
    if error.billed == "unknown":
        return Ambiguous(error)
    return NotSent(error) if error.delivered == "no" else Refused(error)
