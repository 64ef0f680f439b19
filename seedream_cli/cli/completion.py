"""What a shell may offer at a Tab. Typer asks; nothing is sent, made or settled, and a mistake is told to nobody."""

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
"""Set by a shell that asks."""

Offered = list[str | tuple[str, str]]
"""Words, or words with what they mean."""


def completion_script(shell: str) -> str:
    """The script that makes a shell ask `seedream` at every Tab."""
    if shell not in SHELLS:
        raise InputError([Problem("show_completion", f"no completion for {shell!r}", f"shells: {', '.join(SHELLS)}")])
    return get_completion_script(prog_name="seedream", complete_var=_VARIABLE, shell=shell)


def is_asked_by_shell() -> bool:
    """Whether a shell asks for words: Typer answers then, and runs no command."""
    return bool(read_environ().environ.get(_VARIABLE))


def words(*offered: str) -> Callable[[], Sequence[str]]:
    """A choice of these."""
    return lambda: list(offered)


def offer_models(incomplete: str) -> Offered:
    """Names of models; their ids too, once a first letter narrows them down."""
    from ..request.models import MODELS

    ids = [(name, row.title) for row in MODELS if incomplete for names in row.ids.values() for name in names]
    return list(dict.fromkeys([*((row.name, row.title) for row in MODELS), *ids]))


def offer_sizes(context: typer.Context, incomplete: str) -> Offered:
    """Sizes of the model on the line, or of all; exact pixels too, once a digit narrows them down."""
    rows = _models_meant(context)
    sizes = [size for row in rows for size in ((*row.tiers, *row.keywords) or (row.default_size,))]
    pixels = [pixels for row in rows if incomplete for _, pixels in _shapes(row)]
    return list(dict.fromkeys([*sizes, *pixels]))


def offer_aspects(context: typer.Context) -> Offered:
    """Shapes of the model on the line, or of all."""
    return list(dict.fromkeys(aspect for row in _models_meant(context) for aspect, _ in _shapes(row)))


def _models_meant(context: typer.Context) -> Sequence[ModelSpec]:
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
    """Profiles of the files that would be read here; only plain words, as a stranger may have written them."""
    from ..config.config_file import find_settings_files
    from ..config.load import read_documents

    environment = read_environ()
    files = find_settings_files(environment, file=context.params.get("config") or None)
    # Standard input is the shell's.
    if str(files.user) == "-":
        return []
    tables = [document.table.get("profiles") for document in read_documents(environment, files, [])]
    named = {name for table in tables if isinstance(table, Mapping) for name in table}
    return sorted(name for name in named if name.replace("-", "").replace("_", "").isalnum() and name.isascii())


def offer_ids() -> Offered:
    """The newest requests of the user's history, where there is one."""
    from .context import ledger_as_it_is

    with contextlib.suppress(SeedreamError), ledger_as_it_is(read_environ()) as ledger:
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
    """What is offered for an option's value: a list of its own, or the words of its row; None for free text."""
    return _LISTS.get(option.key) or (words(*option.words) if option.words else None)
