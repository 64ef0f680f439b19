"""The command line as data, read from the commands' own declarations: man pages and the grammar of completions.

Texts stand in the declarations alone; here is only their form. A command is whatever Typer built: it is asked for its
parameters and help, and never run.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..errors import EXIT_CODES, PARTIAL
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


# --- man pages --------------------------------------------------------------------------------------------------------


def man_pages(page: Page, now: dt.datetime) -> dict[str, str]:
    """Every command's page in the roff language, by its file's name."""
    pages = {f"{page.words.replace(' ', '-')}.1": _man_page(page, now)}
    for below in page.commands:
        pages |= man_pages(below, now)
    return pages


def _man_page(page: Page, now: dt.datetime) -> str:
    name = page.words.replace(" ", "-")
    text, examples = _split_help(page.help)
    lines = [
        f'.TH {_roff(name.upper())} 1 {now:%Y-%m-%d} "seedream {__version__}" "User Commands"',
        *(".SH NAME", f"{_roff(name)} \\- {_roff(page.summary)}"),
        *(".SH SYNOPSIS", *_synopsis(page)),
        *(".SH DESCRIPTION", *_paragraphs(text)),
        *(_commands(page) if page.commands else ()),
        *_options(page),
        *((".SH EXAMPLES", ".EX", *(_line(line) for line in examples), ".EE") if examples else ()),
        *((".SH EXIT STATUS", *_exit_codes()) if " " not in page.words else ()),
        *_see_also(page),
    ]
    return "\n".join(lines) + "\n"


def _split_help(text: str) -> tuple[str, list[str]]:
    """The help's text, and the lines of its examples."""
    before, _, after = text.partition("Examples:")
    lines = [line.strip("\b") for line in after.splitlines()]
    return before.strip(), [line.removeprefix("  ").rstrip() for line in lines if line.strip()]


def _synopsis(page: Page) -> Iterator[str]:
    words = [*(["COMMAND"] if page.commands else []), *(_argument(entry) for entry in page.arguments)]
    yield " ".join([f"\\fB{_roff(page.words)}\\fR", "[\\fIOPTIONS\\fR]", *(f"\\fI{_roff(word)}\\fR" for word in words)])


def _argument(entry: Entry) -> str:
    return entry.metavar + ("..." if entry.repeats and "..." not in entry.metavar else "")


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(part for part in text.split("\n\n") if part.strip("\b\n ")):
        if number:
            yield ".PP"
        yield _line(" ".join(paragraph.replace("\b", "").split()))


def _commands(page: Page) -> Iterator[str]:
    yield ".SH COMMANDS"
    for below in page.commands:
        yield ".TP"
        yield f"\\fB{_roff(below.words.rpartition(' ')[2])}\\fR"
        yield _line(below.summary + ".")


def _options(page: Page) -> Iterator[str]:
    """Arguments that have a help, and options panel by panel."""
    described = [entry for entry in page.arguments if entry.help]
    if described:
        yield ".SH ARGUMENTS"
    for entry in described:
        yield from (".TP", f"\\fI{_roff(_argument(entry))}\\fR", _line(entry.help))
    yield ".SH OPTIONS"
    panels = dict.fromkeys(entry.panel for entry in page.options)
    for panel in panels:
        if len(panels) > 1:
            yield f".SS {_roff(panel)}"
        for entry in page.options:
            if entry.panel == panel:
                names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in entry.names)
                yield from (".TP", names + (f" \\fI{_roff(entry.metavar)}\\fR" if entry.takes else ""))
                yield _line(entry.help or "See the description.")


def _exit_codes() -> Iterator[str]:
    """The codes with the error codes that end a run so."""
    kinds: dict[int, list[str]] = {0: ["success"], PARTIAL: ["partial"]}
    for kind, code in EXIT_CODES.items():
        kinds.setdefault(code, []).append(kind)
    for code, named in sorted(kinds.items()):
        yield from (".TP", str(code), _line(", ".join(named).replace("_", " ") + "."))


def _see_also(page: Page) -> Iterator[str]:
    above = page.words.rpartition(" ")[0]
    names = [*([above] if above else []), *(below.words for below in page.commands)]
    if names:
        yield ".SH SEE ALSO"
        yield ",\n".join(f".BR {_roff(name.replace(' ', '-'))} (1)" for name in names).replace("(1),", '(1) ","')


def _roff(text: str) -> str:
    """Text in which nothing is a command of roff. Other characters than ASCII go by their number."""
    text = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq").replace("^", "\\(ha")
    )
    return "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in text.replace("~", "\\(ti"))


def _line(text: str) -> str:
    """A whole line of text; one that begins like a request of roff is none."""
    return ("\\&" if text.startswith((".", "'")) else "") + _roff(text)
