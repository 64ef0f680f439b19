"""`seedream doctor`: the set-up check, as text or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..config.environment import Environment, misspelt_variables, read_environ, read_environment
from ..config.options import parse_values
from ..errors import EXIT_CODES, InputError, Problem
from .context import process_console
from .flags import FlagValues, takes

if TYPE_CHECKING:
    from ..config.load import LoadedSettings
    from ..output.console import Console
    from ..request.image_request import OptionValues
    from .diagnostics import Finding


DOCTOR_HELP = (
    "Check settings, key, address, clock, models, folders and ledger. Pays nothing, works offline.\n\nExamples:\n\n\b\n"
    "  seedream doctor\n  seedream doctor -p ark -m 4.5\n  seedream doctor -p sandbox --json"
)


@takes("doctor")
def doctor(*, flag_values: FlagValues) -> int:
    """Run all checks; exit code 3 where one failed."""
    from ..network.policy import Clock
    from .diagnostics import Finding, run_checks

    environment, reading, broken = _read_settings(flag_values)
    findings = [Finding("settings", "fail", f"{p.origin}: {p.message}", p.hint) for p in broken]
    # Without the invalid variables, to check the rest.
    clear = environment if not broken else _without(environment, [p.origin.removeprefix("$") for p in broken])
    options = flag_values.options(clear)
    findings += [
        Finding("settings", "warn" if p.severity == "warning" else "fail", f"{p.origin}: {p.message}", p.hint)
        for p in (*_unread(options), *misspelt_variables(environment))
    ]
    findings += run_checks(options, clear, reading, Clock())
    failed = any(finding.state == "fail" for finding in findings)
    console = process_console()
    if options.switches.get("json"):
        from ..output.json_output import print_json

        rows = [{"name": f.name, "state": f.state, "what": f.what, "hint": f.hint or None} for f in findings]
        status = "failed" if failed else "succeeded"
        print_json({"schema": "seedream/1", "command": "doctor", "status": status, "checks": rows}, console)
    else:
        _print(findings, console)
    return EXIT_CODES["config"] if failed else 0


def _read_settings(flag_values: FlagValues) -> tuple[Environment, LoadedSettings, Sequence[Any]]:
    """The environment, the settings with their problems, and problems of environment variables."""
    from ..config.config_file import find_settings_files
    from ..config.load import read

    environment = read_environ()
    files = find_settings_files(environment, file=flag_values.values.get("config"))
    reading = read(environment, files, profile=flag_values.values.get("profile"))
    environment = replace(environment, settings=reading.settings)
    try:
        read_environment(environment)
    except InputError as error:
        return environment, reading, error.problems
    return environment, reading, ()


def _unread(options: OptionValues) -> list[Problem]:
    """Invalid values from the command line and environment; those of files are reported elsewhere."""
    found: list[Problem] = []
    parse_values(options, found)
    return [problem for problem in found if problem.origin.startswith(("$", "-"))]


def _without(environment: Environment, names: Sequence[str]) -> Environment:
    environ = {name: value for name, value in environment.environ.items() if name not in names}
    return replace(environment, environ=environ)


def _print(findings: Sequence[Finding], console: Console) -> None:
    from ..output.tables import print_table

    rows = list[tuple[str, str, str]]()
    for finding in findings:
        rows.append((finding.state, finding.name, finding.what))
        rows += [("", "", f"hint: {finding.hint}")] if finding.hint and finding.state != "ok" else []
    print_table(console, (), rows)
    counts = {state: sum(f.state == state for f in findings) for state in ("fail", "warn")}
    console.err(f"{counts['fail']} failed, {counts['warn']} to look at; nothing was sent that costs anything")
