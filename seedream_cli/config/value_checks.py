"""Ranges and choices of settings, checked where they are written and where they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..errors import InputError, Problem
from ..storage.file_names import scheme_problem
from ..text import nearest_hint
from .settings import Layer, ProviderSettings

_NUMBERS: Mapping[str, tuple[float, float]] = {
    "timeout": (0.1, 86_400),
    "connect_timeout": (0.1, 3_600),
    "max_cost": (0, 1e9),
}

_WHOLE: Mapping[str, tuple[int, int]] = {"retries": (0, 100), "concurrency": (1, 1000), "ipm": (1, 10**9)}

_WHOLE = {**_WHOLE, "rpm": (1, 10**9), "limit": (0, 10**9), "max_failures": (0, 10**9), "max_unknown": (0, 10**9)}

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "if_exists": ("rename", "skip", "error", "overwrite"),
    "progress": ("auto", "bar", "plain", "none"),
    "metadata": ("none", "embed", "sidecar"),
}


def value_problems(layer: Layer) -> list[Problem]:
    """What is wrong with values whatever the model and provider, each with its place. Loads pydantic if it must."""
    if not layer.origins:
        return []
    problems = _limit_problems(layer)
    checked = layer.values.keys() - {"model", "output", "name", *_NUMBERS, *_WHOLE, *_CHOICES}
    if checked or layer.lists:
        problems += _request_problems(layer)
    return [replace(p, code="config") for p in problems if p.severity == "error" and p.field in layer.origins]


def address_problems(provider: str, stated: ProviderSettings) -> list[Problem]:
    """What is wrong with the base URL of a provider's table."""
    if "base_url" not in stated.values:
        return []
    from ..providers import base_url, load

    try:
        base_url.full_url(load(provider).spec, stated.values["base_url"])
    except InputError as error:
        place = stated.origins["base_url"]
        return [replace(p, field=f"providers.{provider}.base_url", origin=place, code="config") for p in error.problems]
    return []


def _limit_problems(layer: Layer) -> list[Problem]:
    """Numbers and choices that are no part of the request."""
    found: list[Problem] = []

    def complain(key: str, message: str, hint: str) -> None:
        found.append(Problem(key, message, hint, origin=layer.origins[key]))

    for key, text in layer.values.items():
        value = text.strip()
        if key in {"output", "results", "name"} and (problem := scheme_problem(key, text)):
            complain(key, problem.message, problem.hint)
        bounds = _NUMBERS.get(key) or _WHOLE.get(key)
        if bounds:
            pattern = r"[+-]?[0-9]{1,12}" if key in _WHOLE else r"[+-]?([0-9]{1,9}(\.[0-9]*)?|\.[0-9]+)"
            if not re.fullmatch(pattern, value) or not bounds[0] <= float(value) <= bounds[1]:
                complain(key, f"{key} cannot be {value!r}", f"give {bounds[0]:g} to {bounds[1]:g}")
        elif key in _CHOICES and value.lower() not in _CHOICES[key]:
            complain(key, f"{key} cannot be {value!r}", f"give {' or '.join(_CHOICES[key])}")
        elif key == "proxy" and not re.match(r"(https?|socks5?h?)://[^/\s]", value):
            complain(key, "the proxy is no address", "http://HOST:PORT or socks5://HOST:PORT")
    return found


def _request_problems(layer: Layer) -> list[Problem]:
    """What the request's own checks say, held against a model that takes everything."""
    from ..providers import PROVIDERS, base_url, load
    from ..request.image_request import Draft, Recipient
    from ..request.models import DEFAULT_MODEL, Rule, find_model
    from ..request.validation import build

    row = find_model(DEFAULT_MODEL)
    recipient = Recipient("", row, DEFAULT_MODEL, lambda _: Rule("taken"))
    values = {key: value for key, value in layer.values.items() if key != "aspect"}
    # Forced, the checks tell only what no model could take.
    switches = {key: on for key, on in layer.switches.items() if key != "strict"} | {"force": True}
    lists = {"extra": layer.lists["extra"]} if "extra" in layer.lists else {}
    problems = [*build(Draft({**values, "prompt": "x"}, switches, lists, layer.origins), recipient).problems]
    if "aspect" in layer.values:
        shape = {"aspect": layer.values["aspect"], "prompt": "x"}
        problems += build(Draft(shape, {"force": True}, {}, layer.origins), recipient).problems
    name = values.get("provider", "").strip().lower() or PROVIDERS[0]
    if name not in PROVIDERS:
        hint = nearest_hint(name, PROVIDERS)
        problems.append(Problem("provider", f"{name!r} is no known provider", hint, origin=layer.origins["provider"]))
    elif "base_url" in values:
        try:
            base_url.full_url(load(name).spec, values["base_url"])
        except InputError as error:
            problems += [replace(problem, origin=layer.origins["base_url"]) for problem in error.problems]
    return problems
