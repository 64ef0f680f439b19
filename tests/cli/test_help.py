"""Help and usage errors: in our own words, whichever version of Typer is there."""

from __future__ import annotations

import pytest

from tests.support.command import Inside

USAGES = {
    "generate": "[PROMPT]",
    "edit": "[PROMPT] [IMAGE]...",
    "batch": "[TABLE] [DIR]...",
    "recover": "[ID|FILE|-]...",
    "models": "[MODEL]",
    "history show": "ID",
    "history resolve": "ID...",
    "config set": "KEY VALUE...",
    "config key set": "PROVIDER",
}


@pytest.mark.parametrize("command", USAGES)
def test_the_usage_line_names_the_arguments_as_they_are_typed(inside: Inside, command: str) -> None:
    """Brackets and dots mean what they mean everywhere, and no name of a Python type stands in a help."""
    shown = inside(*command.split(), "--help")
    assert shown.code == 0
    assert shown.out.splitlines()[0] == f"Usage: seedream {command} [OPTIONS] {USAGES[command]}"
    assert not [word for word in ("<", "str", "INTEGER", "list[") if word in shown.out.split()]
    assert "<str>" not in shown.out


MISTAKES = {
    "sandbox --port x": "--port: 'x' is no number from 0 to 65535",
    "sandbox --port 70000": "--port: '70000' is no number from 0 to 65535",
    "sandbox --latency nan": "--latency: 'nan' is no number from 0 to 3600",
    "history --limit -1": "--limit: '-1' is no number from 0 to 1000000000",
    "generate --nope x": "no such option: --nope",
    "generate --model": "option '--model' requires an argument",
    "generate --json=1 x": "option '--json' does not take a value",
    "nope": "no such command 'nope'",
    "models a b": "there is an argument too many",
    "history show": "missing argument 'ID'",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_on_the_command_line_is_told_in_one_line(inside: Inside, line: str) -> None:
    """Exit code 2, what is wrong, and no word of a library."""
    done = inside(*line.split())
    assert (done.code, done.out) == (2, "")
    assert MISTAKES[line] in done.err.splitlines()[0]
    assert len(done.err.splitlines()) <= 2
