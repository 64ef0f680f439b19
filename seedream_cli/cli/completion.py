"""Shell completion. Nothing is sent or written, and errors are not reported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]

from ..config.environment import read_environ
from ..config.options import SETTABLE, Option
from ..errors import InputError, Problem, SeedreamError

if TYPE_CHECKING:
    from ..request.models import ModelSpec

SHELLS = ("bash", "zsh", "fish", "powershell")

_VARIABLE = "_SEEDREAM_COMPLETE"
"""Set by the completion script."""

Offered = list[str | tuple[str, str]]
"""Words, or (word, description)."""


def completion_script(shell: str) -> str:
    """The completion script of a shell. Raises `InputError` for an unknown shell."""
    if shell not in SHELLS:
        raise InputError([Problem("show_completion", f"no completion for {shell!r}", f"shells: {', '.join(SHELLS)}")])
    return get_completion_script(prog_name="seedream", complete_var=_VARIABLE, shell=shell)


def is_completion() -> bool:
    """Whether this process was started by a completion script; Typer then runs no command."""
    return bool(read_environ().environ.get(_VARIABLE))


def words(*offered: str) -> Callable[[], Sequence[str]]:
    """Completion with these words."""
    return lambda: list(offered)


def offer_models(incomplete: str) -> Offered:
    """Names of models; ids too once a letter is typed."""
    from ..request.models import MODELS

    ids = [(name, row.title) for row in MODELS if incomplete for names in row.ids.values() for name in names]
    return list(dict.fromkeys([*((row.name, row.title) for row in MODELS), *ids]))


def offer_sizes(context: typer.Context, incomplete: str) -> Offered:
    """Sizes of the model on the line, or of all; exact pixels too once a digit is typed."""
    rows = _models_on_line(context)
    sizes = [size for row in rows for size in ((*row.tiers, *row.keywords) or (row.default_size,))]
    pixels = [pixels for row in rows if incomplete for _, pixels in _shapes(row)]
    return list(dict.fromkeys([*sizes, *pixels]))


def offer_aspects(context: typer.Context) -> Offered:
    """Ratios of the model on the line, or of all."""
    return list(dict.fromkeys(aspect for row in _models_on_line(context) for aspect, _ in _shapes(row)))


def _models_on_line(context: typer.Context) -> Sequence[ModelSpec]:
    from ..request.models import MODELS, find_model

    named = find_model(str(context.params.get("model") or ""))
    return [named] if named else MODELS


def _shapes(row: ModelSpec) -> Iterator[tuple[str, str]]:
    for shapes in (*row.tiers.values(), row.aspects):
        yield from shapes.items()


def offer_providers() -> Offered:
    """Names of providers."""
    from ..providers import specs

    return [(spec.name, spec.title) for spec in specs()]


def offer_profiles(context: typer.Context) -> Offered:
    """Profiles of the settings files; only plain words, since a project file may come from somebody else."""
    from ..config.config_file import find_settings_files
    from ..config.load import read_documents

    environment = read_environ()
    files = find_settings_files(environment, file=context.params.get("config") or None)
    # --config -: standard input belongs to the shell.
    if str(files.user) == "-":
        return []
    tables = [document.table.get("profiles") for document in read_documents(environment, files, [])]
    named = {name for table in tables if isinstance(table, Mapping) for name in table}
    return sorted(name for name in named if name.replace("-", "").replace("_", "").isalnum() and name.isascii())


def offer_ids() -> Offered:
    """The newest requests of the user's history."""
    from .context import open_ledger_for_reading

    with contextlib.suppress(SeedreamError), open_ledger_for_reading(read_environ()) as ledger:
        return [entry.id for entry in ledger.history(limit=200)] if ledger else []
    return []


def offer_keys() -> Offered:
    """Keys of the settings files."""
    from ..config.settings_reader import PROVIDER_KEYS
    from ..providers import PROVIDERS

    own = [option.name for option in SETTABLE if option.accepts("file")]
    return [*own, *(f"providers.{name}.{key}" for name in PROVIDERS for key in PROVIDER_KEYS)]


_LISTS: Mapping[str, Callable[..., Offered]] = {
    "model": offer_models,
    "size": offer_sizes,
    "aspect": offer_aspects,
    "provider": offer_providers,
    "profile": offer_profiles,
}


def offers_of(option: Option) -> Callable[..., Sequence[str | tuple[str, str]]] | None:
    """The completion of an option's value: a function above, or its valid words; None for free text."""
    return _LISTS.get(option.key) or (words(*option.words) if option.words else None)
