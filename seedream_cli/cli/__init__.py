"""The command line: one file a command. Parses, calls the rooms below, and hands over what came of it."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    # A shell's completion enters this room as well, and waits for none of the commands.
    from .app import main as run

    return run(argv)
