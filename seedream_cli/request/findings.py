"""Collects the problems of a request."""

from __future__ import annotations

from typing import Literal

from ..errors import Problem
from .image_request import OptionValues


class Findings:
    """Problems with the origin of their option; `--force` and `--strict` determine their severity."""

    def __init__(self, options: OptionValues) -> None:
        self.problems: list[Problem] = []
        self.force = options.switches.get("force", False)
        self.strict = options.switches.get("strict", False)
        self._options = options

    def add_error(self, name: str, message: str, hint: str = "") -> None:
        """Add an error that `--force` does not overrule: the value is meaningless."""
        self.problems.append(Problem(name, message, hint, origin=self._options.origin(name)))

    def refuse(self, name: str, message: str, hint: str = "") -> None:
        """Add an error about what the model takes; a warning with `--force`, since models change monthly."""
        severity: Literal["error", "warning"] = "warning" if self.force else "error"
        way_out = hint if self.force else "; ".join(part for part in (hint, "--force sends it all the same") if part)
        self.problems.append(Problem(name, message, way_out, severity, self._options.origin(name)))

    def warn(self, name: str, message: str, hint: str = "", code: str = "") -> None:
        """Add a warning."""
        self.problems.append(Problem(name, message, hint, "warning", self._options.origin(name), code or name))
