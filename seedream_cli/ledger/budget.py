"""TODO"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Scope:
    """Whose money is summed up: that of a run, since a moment, of rows by their identity, or all."""

    currency: str
    run: str | None = None
    since: str | None = None
    has_row: Callable[[str], bool] | None = None
