"""The commands of the tool, made once for all runs in a process and its children: half of a short run goes there."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def keep_commands() -> None:
    """Let Typer use the same commands for every run from now on."""
    from typer import main

    from seedream_cli.cli.app import app

    make = main.get_command
    command = make(app)
    _prepare(command)
    main.get_command = lambda wanted: command if wanted is app else make(wanted)


def _prepare(command: Any) -> None:
    for param in command.params:
        # Newer Typers make at the first use what reads a value.
        if hasattr(param, "get_runtime_param"):
            param.get_runtime_param()
    for one in getattr(command, "commands", {}).values():
        _prepare(one)
