"""The command line as data, read from the commands' own declarations: the grammar of completions.

Texts stand in the declarations alone; here is only their form. A command is whatever Typer built: it is asked for its
parameters and help, and never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .flags import BATCH_TYPED_FLAGS, FLAGS


@dataclass(frozen=True, slots=True)
class Entry:
    """One option or argument. `takes` tells that a value follows, `repeats` that it may stand several times."""

    names: tuple[str, ...]
    metavar: str
    help: str
    panel: str
    takes: bool
    repeats: bool


@dataclass(frozen=True, slots=True)
class Page:
    """One command: its words ("seedream config set"), its help as written, and what it takes."""

    words: str
    help: str
    options: tuple[Entry, ...]
    arguments: tuple[Entry, ...]
    commands: tuple[Page, ...]

    @property
    def summary(self) -> str:
        """The help's first sentence, without its full stop."""
        first = self.help.split("\n\n", 1)[0].replace("\n", " ")
        return re.split(r"\.\s", first, maxsplit=1)[0].strip().removesuffix(".")


def read_command(command: Any, words: str) -> Page:
    """A command and all below it."""
    entries = [(param, _entry(param)) for param in command.params if not getattr(param, "hidden", False)]
    below = getattr(command, "commands", {})
    return Page(
        words,
        (command.help or "").strip(),
        (*(entry for param, entry in entries if param.param_type_name == "option"), _HELP),
        tuple(entry for param, entry in entries if param.param_type_name == "argument"),
        tuple(read_command(inner, f"{words} {name}") for name, inner in below.items() if not inner.hidden),
    )


_HELP = Entry(("--help", "-h"), "", "Show this message and exit.", "Other", takes=False, repeats=False)


def _entry(param: Any) -> Entry:
    is_flag = bool(getattr(param, "is_flag", False) or getattr(param, "count", False))
    names = sorted((*param.opts, *param.secondary_opts), key=lambda name: not name.startswith("--"))
    metavar = param.metavar or str(param.name).upper()
    panel = getattr(param, "rich_help_panel", None) or "Other"
    repeats = bool(getattr(param, "multiple", False) or getattr(param, "count", False) or param.nargs != 1)
    text = " ".join((getattr(param, "help", None) or "").split())
    return Entry(tuple(names), "" if is_flag else metavar, text, panel, takes=not is_flag, repeats=repeats)


# --- the grammar of completions ---------------------------------------------------------------------------------------

_BY_KEY = {"model": "models", "size": "sizes", "aspect": "aspects", "provider": "providers", "profile": "profiles"}

_BY_METAVAR = {"PROVIDER": "providers", "MODEL": "models", "KEY": "settings", "VALUE...": "values"}

_FILES = re.compile(r"(^|[^A-Z])(FILE|PATH|REF|IMAGE|TABLE)([^A-Z]|$)")

_FOLDERS = re.compile(r"(^|[^A-Z])(DIR|FOLDER)([^A-Z]|$)")


def grammar(page: Page, *, extra: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """All that completions know. `extra` names words by metavar that stand nowhere else."""
    from ..config.settings_reader import ONLY_TYPED, PROVIDER_KEYS
    from ..providers import specs
    from ..request.models import MODELS

    return {
        "nodes": dict(_nodes(page, extra)),
        "models": [_model(row) for row in MODELS],
        "providers": [[spec.name, spec.title] for spec in specs()],
        "settings": [flag.names[0].split("/")[0][2:].replace("-", "_") for flag in FLAGS if flag.key not in ONLY_TYPED],
        "tables": ["profiles", "providers", "prices"],
        "own": list(PROVIDER_KEYS),
    }


def _nodes(page: Page, extra: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Any]]:
    """Every command by its words behind `seedream`."""
    node = {
        "commands": [[below.words.rpartition(" ")[2], below.summary] for below in page.commands],
        "options": [_item(entry, extra) | {"names": list(entry.names), "help": entry.help} for entry in page.options],
        "arguments": [_item(entry, extra) for entry in page.arguments],
    }
    yield page.words.partition(" ")[2], node
    for below in page.commands:
        yield from _nodes(below, extra)


def _item(entry: Entry, extra: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {"takes": entry.takes, "repeats": entry.repeats, "source": _source(entry, extra)}


def _source(entry: Entry, extra: Mapping[str, Sequence[str]]) -> str | list[str]:
    """Where values come from: the name of a list, "files", "folders", the words themselves, or "" for free text."""
    if not entry.takes:
        return ""
    flag = next((flag for flag in (*FLAGS, *BATCH_TYPED_FLAGS) if entry.names[0] in flag.names[0].split()), None)
    key = flag.key if flag else entry.names[0].removeprefix("--")
    if key in _BY_KEY:
        return _BY_KEY[key]
    if flag is not None and flag.offers:
        return list(flag.offers())
    if entry.metavar in _BY_METAVAR or entry.metavar in extra:
        return _BY_METAVAR.get(entry.metavar) or list(extra[entry.metavar])
    if _FILES.search(entry.metavar):
        return "files"
    if _FOLDERS.search(entry.metavar):
        return "folders"
    return [word for word in entry.metavar.split("|") if "|" in entry.metavar and re.fullmatch(r"[a-z0-9_.-]+", word)]


def _model(row: Any) -> dict[str, Any]:
    shapes = [shape for tier in row.tiers.values() for shape in tier.items()] + list(row.aspects.items())
    ids = dict.fromkeys(name for names in row.ids.values() for name in names)
    return {
        "name": row.name,
        "title": row.title,
        "aliases": list(row.aliases),
        "ids": [name for name in ids if name != row.name],
        "sizes": list(dict.fromkeys((*row.tiers, *row.keywords))) or [row.default_size],
        "pixels": list(dict.fromkeys(size for _, size in shapes)),
        "aspects": list(dict.fromkeys(aspect for aspect, _ in shapes)),
    }
