"""What is wrong with a request, collected while it is checked."""

from __future__ import annotations

from typing import Literal

from ..errors import Problem
from .image_request import OptionValues


class Findings:
    """Collects problems, each with the origin of its option, as hard as `--force` and `--strict` make them."""

    def __init__(self, options: OptionValues) -> None:
        self.problems: list[Problem] = []
        self.force = options.switches.get("force", False)
        self.strict = options.switches.get("strict", False)
        self._options = options

    def add_error(self, name: str, message: str, hint: str = "") -> None:
        """Note an error that `--force` cannot overrule: the value has no meaning."""
        self.problems.append(Problem(name, message, hint, origin=self._options.origin(name)))

    def refuse(self, name: str, message: str, hint: str = "") -> None:
        """Note an error about what the model takes; with `--force` it is a warning, since models change monthly."""
        severity: Literal["error", "warning"] = "warning" if self.force else "error"
        way_out = hint if self.force else "; ".join(part for part in (hint, "--force sends it all the same") if part)
        self.problems.append(Problem(name, message, way_out, severity, self._options.origin(name)))

    def warn(self, name: str, message: str, hint: str = "", code: str = "") -> None:
        """Note something worth knowing that stops nothing."""
        self.problems.append(Problem(name, message, hint, "warning", self._options.origin(name), code or name))
