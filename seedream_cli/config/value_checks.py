"""Checks of the values in settings files, used on reading and by `config set`."""

from __future__ import annotations

from dataclasses import replace

from ..errors import InputError, Problem
from .options import parse_values
from .settings import ProviderSettings, SettingsLayer


def value_problems(layer: SettingsLayer) -> list[Problem]:
    """What is wrong with values for every model and provider, each with its origin. May load pydantic."""
    problems: list[Problem] = []
    values = parse_values(layer, problems)
    if "size" in values or "aspect" in values:
        problems += _shape_problems(layer, values.get("size"), values.get("aspect"))
    if "extra" in layer.lists or layer.switches.get("stream"):
        problems += _request_problems(layer)
    if "base_url" in values:
        problems += address_problems(values.get("provider", ""), layer, "base_url")
    return [replace(p, code="config") for p in problems if p.severity == "error" and p.field in layer.origins]


def address_problems(provider: str, stated: SettingsLayer | ProviderSettings, field: str) -> list[Problem]:
    """What is wrong with the base URL that a file states for a provider ("": any)."""
    if "base_url" not in stated.values:
        return []
    from ..providers import PROVIDERS, base_url, load

    try:
        base_url.full_url(load(provider or PROVIDERS[0]).spec, stated.values["base_url"])
    except InputError as error:
        origin = stated.origins["base_url"]
        return [replace(p, field=field, origin=origin, code="config") for p in error.problems]
    return []


def _shape_problems(layer: SettingsLayer, size: str | None, aspect: str | None) -> list[Problem]:
    """A size or ratio that no known model has; nothing for an unknown model."""
    from ..request.models import MODELS, find_model
    from ..request.sizes import resolve_aspect, size_problem

    found: list[Problem] = []
    if "model" in layer.values and find_model(layer.values["model"]) is None:
        return found
    if size is not None and all(size_problem(row, size) and size not in row.layer_sizes for row in MODELS):
        tiers = dict.fromkeys(tier for row in MODELS for tier in row.tiers)
        hint = f"sizes are {', '.join(sorted(tiers, key=lambda tier: float(tier[:-1])))}, or WIDTHxHEIGHT"
        found.append(Problem("size", f"no model has the size {size}", hint, origin=layer.origins["size"]))
    if aspect is not None:
        pairs = [(row, tier) for row in MODELS for tier in (*row.tiers, row.default_size)]
        if not any(isinstance(resolve_aspect(row, tier, aspect), str) for row, tier in pairs):
            known = dict.fromkeys(shape for row in MODELS for tier in row.tiers.values() for shape in tier)
            hint = f"known ratios: {', '.join(known)}"
            found.append(Problem("aspect", f"no model has the ratio {aspect}", hint, origin=layer.origins["aspect"]))
    return found


def _request_problems(layer: SettingsLayer) -> list[Problem]:
    """Problems of `extra` fields and `stream`, found by the request's checks for a model that takes everything."""
    from ..request.image_request import OptionValues, TargetModel
    from ..request.models import DEFAULT_MODEL, Rule, find_model
    from ..request.validation import build

    target_model = TargetModel("", find_model(DEFAULT_MODEL), DEFAULT_MODEL, lambda _: Rule("taken"))
    # With `force` the checks report only what no model takes.
    switches = {key: on for key, on in layer.switches.items() if key != "strict"} | {"force": True}
    lists = {"extra": layer.lists["extra"]} if "extra" in layer.lists else {}
    options = OptionValues({"prompt": "x"}, switches, lists, layer.origins)
    callback = {"callback_url": layer.values["callback_url"]} if "callback_url" in layer.values else {}
    return list(build(options, callback, target_model).problems)
