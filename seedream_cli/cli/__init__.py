"""The command line: one file a command. Parses, calls the rooms below, and hands over what came of it."""

from .app import main

__all__ = ["main"]
