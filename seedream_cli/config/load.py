"""All settings files of a run, merged: user, project, profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, Problem
from ..text import nearest_hint
from .config_file import Document, SettingsFiles, _exists, find_settings_files, read_document, shown_path
from .environment import Environment
from .settings import ProviderSettings, Settings, SettingsLayer
from .settings_reader import _Content, _Reader
from .trust import load_trusted
from .value_checks import address_problems, value_problems


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The merged settings, the documents (the user's first), and all problems in them."""

    settings: Settings
    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]


def load(
    environment: Environment,
    *,
    file: str | None = None,
    profile: str | None = None,
    folder: Path | None = None,
) -> Environment:
    """The environment with the settings of the files. Raises `InputError` with all problems in them."""
    files = find_settings_files(environment, file=file, folder=folder)
    reading = read(environment, files, profile=profile)
    if reading.problems:
        raise InputError(reading.problems, kind="config")
    return replace(environment, settings=reading.settings)


def read(
    environment: Environment,
    files: SettingsFiles,
    *,
    profile: str | None = None,
    check_values: bool = True,
) -> LoadedSettings:
    """Read, check and merge the files; problems are in the result. Raises nothing.

    Without `check_values` the values are not validated, which spares loading pydantic.
    """
    problems: list[Problem] = []
    documents = read_documents(environment, files, problems)
    return combine(environment, documents, problems, profile=profile, check_values=check_values)


def read_documents(environment: Environment, files: SettingsFiles, problems: list[Problem]) -> list[Document]:
    """The files that exist: the user's, then the project's."""
    documents = []
    home = environment.home
    if files.named or _exists(files.user, environment, problems):
        shown = "standard input" if str(files.user) == "-" else shown_path(files.user, home)
        documents.append(read_document(files.user, shown, problems))
    if files.project is not None:
        document = read_document(files.project, shown_path(files.project, home), problems, is_project=True)
        documents.append(_with_trust(environment, document, problems) if document else None)
    return [document for document in documents if document is not None]


def _with_trust(environment: Environment, document: Document, problems: list[Problem]) -> Document:
    known = load_trusted(environment, problems).get(str(document.path.resolve()))
    return replace(document, trusted=known == document.sha256)


def combine(
    environment: Environment,
    documents: Sequence[Document],
    problems: list[Problem],
    *,
    profile: str | None = None,
    check_values: bool = True,
) -> LoadedSettings:
    """Merge documents into settings; `_merge_layers` has the order."""
    readers = [_Reader(document, problems) for document in documents]
    contents = [reader.read() for reader in readers]
    for content in contents if check_values else ():
        for layer in (content.top, *content.profiles.values()):
            problems += value_problems(layer)
        for provider, stated in content.providers.items():
            problems += address_problems(provider, stated, f"providers.{provider}.base_url")
    name, origin, chooser = _choose_profile(environment, contents, profile)
    profiles = tuple(dict.fromkeys(key for content in contents for key in content.profiles))
    if name and name not in profiles:
        hint = nearest_hint(name, profiles) if profiles else "no file has a [profiles.NAME]"
        problems.append(Problem("profile", f"there is no profile {name!r}", hint, origin=origin, code="config"))
    layer, profiled = _merge_layers(contents, name, chooser)
    settings = Settings(
        layer,
        frozenset(key for key, origin in layer.origins.items() if profiled.get(key) == origin),
        name,
        profiles,
        _merge_providers(contents),
        tuple(price for content in reversed(contents) for price in content.prices),
        _last(content.daily for content in contents),
        _last(content.ledger for content in contents) is not False,
        _last(content.confirm for content in contents),
        _overruled_provider(documents, contents, name, layer),
        {key: at for content in contents for key, at in content.origins.items()} | {"profile": origin},
        tuple(problem for reader in readers for problem in sorted(reader.ignored, key=_line)),
    )
    return LoadedSettings(settings, tuple(documents), tuple(sorted(dict.fromkeys(problems), key=_line)))


def _line(problem: Problem) -> tuple[str, int]:
    """Sort key: file name, line."""
    name, _, line = problem.origin.rpartition(":")
    return name, int(line) if line.isdecimal() else 0


def _last(values: Iterator[Any]) -> Any:
    found = None
    for value in values:
        found = value if value is not None else found
    return found


def _choose_profile(
    environment: Environment, contents: Sequence[_Content], asked: str | None
) -> tuple[str, str, _Content | None]:
    """The profile's name, the origin of that choice, and the file that made it, if one did."""
    if asked:
        return asked, "--profile", None
    variable = environment.option("profile")
    if variable:
        return variable, "$SEEDREAM_PROFILE", None
    for content in reversed(contents):
        if content.profile:
            return content.profile, content.origins["profile"], content
    return "", "", None


def _merge_layers(
    contents: Sequence[_Content], profile: str, chooser: _Content | None
) -> tuple[SettingsLayer, Mapping[str, str]]:
    """All layers merged, and the origins of the profile's options.

    A profile chosen by option, variable or project file overrides the top level of every file. One that the user's file
    chooses is part of that file, so the project's top level overrides it.
    """
    chosen = [content.profiles.get(profile, SettingsLayer()) for content in contents]
    tops = [content.top for content in contents]
    by_user = chooser is not None and len(contents) > 1 and chooser is contents[0]
    order = [tops[0], chosen[0], tops[1], chosen[1]] if by_user else [*tops, *chosen]
    merged = SettingsLayer()
    for layer in order:
        merged = layer.over(merged)
    return merged, {key: origin for layer in chosen for key, origin in layer.origins.items()}


def _merge_providers(contents: Sequence[_Content]) -> dict[str, ProviderSettings]:
    """Each provider's settings; a later file overrides an earlier one. A command keeps the base URL of its own file."""
    merged: dict[str, ProviderSettings] = {}
    for content in contents:
        for name, new in content.providers.items():
            old = merged.get(name, ProviderSettings())
            kept = new if new.command else old
            merged[name] = ProviderSettings(
                {**old.values, **new.values},
                new.key_variable or old.key_variable,
                kept.command,
                kept.command_base_url,
                kept.command_folder,
                {**old.origins, **new.origins},
            )
    return merged


def _overruled_provider(
    documents: Sequence[Document], contents: Sequence[_Content], profile: str, layer: SettingsLayer
) -> str:
    """The provider of the user's file, where an untrusted project file overrides it; else ""."""
    if len(contents) < 2 or documents[1].trusted:
        return ""
    own = contents[0].profiles.get(profile, SettingsLayer()).over(contents[0].top).values.get("provider", "")
    return own if own and own != layer.values.get("provider") else ""
