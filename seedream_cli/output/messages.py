"""Errors and warnings as lines: what happened, where, the way out, and what was billed."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import ApiError, InputError, Problem, SeedreamError
from ..results import Cost
from ..text import clean, money_words

_BILLED = {"no": "not billed", "yes": "billed", "unknown": "unknown, may have been billed"}

_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")

_UNITS = {
    re.compile(r"\.(jsonl|ndjson|json|toml):\d+$", re.IGNORECASE): "key",
    re.compile(r"\.(csv|tsv|tab):\d+$", re.IGNORECASE): "column",
}
"""What a place in a file is called, by the file; in a prompt's header it is an option."""

_FILE_LINE = re.compile(r":\d+$")

_Entry = tuple[list[str], str]
"""The lines that say what happened, and the hint that follows them."""


def error_lines(error: SeedreamError | Problem, *, subject: str = "", cost: Cost | None = None) -> list[str]:
    """What happened, where, what the money did, and what to do next. `subject` names the request it concerns."""
    return _join_entries(_error_entries(error, subject, cost))


def warning_lines(problems: Iterable[Problem]) -> list[str]:
    """Warnings, each once, a hint that several share after the last of them."""
    return _join_entries(_problem_entry(problem, "") for problem in dict.fromkeys(problems))


def _join_entries(entries: Iterable[_Entry]) -> list[str]:
    """Lines of all entries; a hint that the next entry repeats is left to that one."""
    listed = list(entries)
    lines: list[str] = []
    for position, (said, hint) in enumerate(listed):
        lines += said
        repeated = position + 1 < len(listed) and listed[position + 1][1] == hint
        if hint and not repeated:
            lines.append(f"  hint: {clean(hint, 2000)}")
    return lines


def _error_entries(error: SeedreamError | Problem, subject: str, cost: Cost | None = None) -> list[_Entry]:
    if isinstance(error, Problem):
        return [_problem_entry(error, subject)]
    if isinstance(error, InputError) and error.problems:
        return [_problem_entry(problem, subject) for problem in error.problems]
    said = [f"error: {_place(subject)}{clean(error.message) or error.kind}"]
    detail = _detail(error, cost)
    return [(said + ([f"  {detail}"] if detail else []), error.hint)]


def _problem_entry(problem: Problem, subject: str) -> _Entry:
    where = _place(subject) + _place(_origin(problem))
    return [f"{problem.severity}: {where}{clean(problem.message)}"], problem.hint


def _place(text: str) -> str:
    return f"{clean(text, 200)}: " if text else ""


def _origin(problem: Problem) -> str:
    """The place as the user knows it: `shots.csv:14, column size`, `--size`, or the field's name."""
    if not problem.origin:
        return "" if problem.field.lower() in problem.message.lower() else problem.field
    if not problem.field or problem.field in problem.origin or not _FILE_LINE.search(problem.origin):
        return problem.origin
    unit = next((word for ending, word in _UNITS.items() if ending.search(problem.origin)), "option")
    return f"{problem.origin}, {unit} {problem.field}"


def _detail(error: SeedreamError, cost: Cost | None = None, *, with_code: bool = True) -> str:
    """Who said it and what the money did; "" where there is nothing to add to the message."""
    billed = _BILLED[error.billed]
    if error.billed == "unknown" and cost:
        billed += f", possibly {money_words(cost)}"
    if not isinstance(error, ApiError):
        return "" if error.billed == "no" else billed
    known = {
        "provider": error.provider,
        "code": error.code if with_code else "",
        "HTTP": str(error.status or ""),
        "request id": error.request_id,
    }
    facts = ", ".join(f"{name} {clean(value, 200)}" for name, value in known.items() if value)
    return f"{facts}; {billed}" if facts else billed
