"""When a run that the same command goes on with takes no new job: after a fault that every further one would meet."""

from __future__ import annotations

from ..errors import ApiError, BudgetError, SeedreamError
from ..results import JobResult

_HALTING = frozenset({"auth", "account", "quota", "config", "filesystem"})
"""What every further request would meet as well."""

_ALIKE = 10
"""Rows from the first on that are refused alike, none being done, until it is held to be the fault of no row."""


class HaltRule:
    """Looks at each result as it comes. `max_failures` is how many jobs may fail (0: no bound)."""

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._failures = 0
        # What all refusals so far have in common; None once something else came.
        self._alike: tuple[object, ...] | None = ()

    def judge(self, result: JobResult) -> SeedreamError | None:
        """Why no new request may leave after this one."""
        error = result.error or next((image.error for image in result.images if image.error), None)
        if isinstance(error, BudgetError) or (error and error.kind in _HALTING):
            return error
        if result.status == "interrupted":
            return None
        self._failures += bool(result.exit_code)
        if self._max_failures and self._failures >= self._max_failures:
            words = "a row has" if self._failures == 1 else f"{self._failures} rows have"
            return ApiError(f"not sent, since {words} failed", kind="unavailable", delivered="no")
        return self._refused_alike(error)

    def _refused_alike(self, error: SeedreamError | None) -> SeedreamError | None:
        """Why not to go on after the first rows were all refused in the same words. `--max-failures` overrules it.

        What is said of a prompt's content is about that row; a refusal that names something of its row differs.
        """
        if self._alike is None or self._max_failures:
            return None
        if not isinstance(error, ApiError) or error.kind not in {"refused", "unavailable"} or error.billed != "no":
            self._alike = None
            return None
        # Ids and numbers change from answer to answer.
        words = " ".join(word for word in error.message.split() if word.isalpha())
        same = (error.provider, error.kind, error.code, error.status, words)
        if self._alike and self._alike != same:
            self._alike = None
            return None
        self._alike = same
        if self._failures < _ALIKE:
            return None
        return ApiError(
            f"not sent, since the first {self._failures} rows were all refused in the same words and none was done",
            kind=error.kind,
            hint="mend what they say first; --max-failures N goes on until N rows have failed",
            delivered="no",
        )
