"""All settings files of a run, laid over each other: user, project, profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, Problem
from ..text import nearest_hint
from .config_file import Document, Places, _is_there, find_places, read_document, shown_path
from .environment import Environment
from .settings import Layer, ProviderSettings, Settings
from .settings_reader import _Content, _Reader
from .trust import load_trusted
from .value_checks import address_problems, value_problems


@dataclass(frozen=True, slots=True)
class Reading:
    """All that was read: the settings, the documents in order of rank (the user's first), what is wrong with them."""

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
    """The surroundings with the settings of the files in them. Raises `InputError` with all that is wrong in them."""
    places = find_places(environment, file=file, folder=folder)
    reading = read(environment, places, profile=profile)
    if reading.problems:
        raise InputError(reading.problems, kind="config")
    return replace(environment, settings=reading.settings)


def read(
    environment: Environment,
    places: Places,
    *,
    profile: str | None = None,
    deep: bool = True,
) -> Reading:
    """Read the files of these places, judge what is in them and put it together. Raises nothing.

    Without `deep` the values themselves are not judged, which would load the request's checks.
    """
    problems: list[Problem] = []
    documents = read_documents(environment, places, problems)
    return combine(environment, documents, problems, profile=profile, deep=deep)


def read_documents(environment: Environment, places: Places, problems: list[Problem]) -> list[Document]:
    """The files that are there: the user's, then the project's."""
    documents = []
    home = environment.home
    if places.named or _is_there(places.user, environment, problems):
        shown = "standard input" if str(places.user) == "-" else shown_path(places.user, home)
        documents.append(read_document(places.user, shown, problems))
    if places.project is not None:
        document = read_document(places.project, shown_path(places.project, home), problems, is_project=True)
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
    deep: bool = True,
) -> Reading:
    """Documents as settings: the project's over the user's, a profile over what it was chosen by or above."""
    readers = [_Reader(document, problems) for document in documents]
    contents = [reader.read() for reader in readers]
    for content in contents if deep else ():
        for layer in (content.top, *content.profiles.values()):
            problems += value_problems(layer)
        for provider, stated in content.providers.items():
            problems += address_problems(provider, stated, f"providers.{provider}.base_url")
    name, origin, chooser = _choose_profile(environment, contents, profile)
    profiles = tuple(dict.fromkeys(key for content in contents for key in content.profiles))
    if name and name not in profiles:
        hint = nearest_hint(name, profiles) if profiles else "no file has a [profiles.NAME]"
        problems.append(Problem("profile", f"there is no profile {name!r}", hint, origin=origin, code="config"))
    layer, profiled = _stack(contents, name, chooser)
    settings = Settings(
        layer,
        frozenset(key for key, place in layer.origins.items() if profiled.get(key) == place),
        name,
        profiles,
        _merge_providers(contents),
        tuple(price for content in reversed(contents) for price in content.prices),
        _last(content.daily for content in contents),
        _last(content.ledger for content in contents) is not False,
        _last(content.confirm for content in contents),
        _overruled_provider(documents, contents, name, layer),
        {key: place for content in contents for key, place in content.origins.items()} | {"profile": origin},
        tuple(problem for reader in readers for problem in sorted(reader.ignored, key=_line)),
    )
    return Reading(settings, tuple(documents), tuple(sorted(dict.fromkeys(problems), key=_line)))


def _line(problem: Problem) -> tuple[str, int]:
    """Where a problem stands, to tell the problems of a file in its order."""
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
    """The profile's name, who chose it, and the file that did, if one did."""
    if asked:
        return asked, "--profile", None
    variable = environment.option("profile")
    if variable:
        return variable, "$SEEDREAM_PROFILE", None
    for content in reversed(contents):
        if content.profile:
            return content.profile, content.origins["profile"], content
    return "", "", None


def _stack(contents: Sequence[_Content], profile: str, chooser: _Content | None) -> tuple[Layer, Mapping[str, str]]:
    """All layers as one, and the places of what the profile says.

    A profile chosen for this run, or by the project, stands above the top of every file; one that the user's file
    chooses is a part of that file, so the project's top stands above it.
    """
    chosen = [content.profiles.get(profile, Layer()) for content in contents]
    tops = [content.top for content in contents]
    by_user = chooser is not None and len(contents) > 1 and chooser is contents[0]
    order = [tops[0], chosen[0], tops[1], chosen[1]] if by_user else [*tops, *chosen]
    merged = Layer()
    for layer in order:
        merged = layer.over(merged)
    return merged, {key: place for layer in chosen for key, place in layer.origins.items()}


def _merge_providers(contents: Sequence[_Content]) -> dict[str, ProviderSettings]:
    """Each provider's settings, a later file's over an earlier one's. A command keeps its own file's address."""
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


def _overruled_provider(documents: Sequence[Document], contents: Sequence[_Content], profile: str, layer: Layer) -> str:
    """The provider of the user's own file, where an untrusted project file names another one."""
    if len(contents) < 2 or documents[1].trusted:
        return ""
    own = contents[0].profiles.get(profile, Layer()).over(contents[0].top).values.get("provider", "")
    return own if own and own != layer.values.get("provider") else ""
