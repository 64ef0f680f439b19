"""The merged settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import Problem

if TYPE_CHECKING:
    from ..request.image_request import OptionValues
    from ..request.models import PriceStep


def complete(options: OptionValues, provider: str, settings: Settings) -> OptionValues:
    """The options with `[providers.NAME]` merged in, which overrides the files' top level and nothing else."""
    values, origins = dict(options.values), dict(options.origins)
    stated = settings.provider(provider)
    for key, value in stated.values.items():
        general = key not in settings.from_profile and origins.get(key) == settings.layer.origins.get(key)
        if key not in values or general:
            values[key], origins[key] = value, stated.origins[key]
    return replace(options, values=values, origins=origins)


def price_for(settings: Settings, provider: str, model: str, model_id: str) -> PriceStep | None:
    """The user's own price of an image, one for this provider preferred; None where no file states one.

    `model` is the name in the model table, "" for an unknown id.
    """
    from ..request.models import PriceStep, find_model

    def means(price: Price) -> bool:
        row = find_model(price.model)
        return price.model == model_id or bool(model and row and row.name == model)

    fitting = [price for price in settings.prices if price.provider in {"", provider} and means(price)]
    fitting.sort(key=lambda price: not price.provider)
    return PriceStep(fitting[0].amount, per_reference=fitting[0].per_reference) if fitting else None


@dataclass(frozen=True, slots=True)
class Key:
    """A key and where it came from. `source` is for messages, `value` is never shown.

    `note` is a warning about where the key is stored or sent; mostly empty.
    """

    value: str
    source: str
    note: str = ""

    def __repr__(self) -> str:
        """Without the value, so that no traceback or log can hold it."""
        return f"Key(source={self.source!r})"


@dataclass(frozen=True, slots=True)
class SettingsLayer:
    """Options of one file, unparsed, by key and kind, each with its origin ("seedream.toml:3")."""

    values: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    def over(self, other: SettingsLayer) -> SettingsLayer:
        """Merge: this layer's options override the other's."""
        return SettingsLayer(
            {**other.values, **self.values},
            {**other.switches, **self.switches},
            {**other.lists, **self.lists},
            {**other.origins, **self.origins},
        )


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """`[providers.NAME]`. `values` holds base_url, model, ipm and rpm as text; `key_variable` is `api_key_env`.

    `command` is `api_key_command` as words, run in `command_folder`; its key is for `command_base_url` ("": the
    provider's own), the base URL of the same table.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    key_variable: str = ""
    command: tuple[str, ...] = ()
    command_base_url: str = ""
    command_folder: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Price:
    """`[prices]`: US dollars an image; `provider` "" means any, `model` is a name or an id."""

    model: str
    amount: float
    provider: str = ""
    per_reference: float = 0.0
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration files merged; empty without a file.

    `from_profile` holds the keys of `layer` that the chosen profile set. `own_provider` is the provider of the user's
    file where an untrusted project file overrides it, else "". `origins` is for keys that are no option
    ("budget.daily"). `warnings` are for what an untrusted project file tried to set.
    """

    layer: SettingsLayer = field(default_factory=SettingsLayer)
    from_profile: frozenset[str] = frozenset()
    profile: str = ""
    profiles: tuple[str, ...] = ()
    providers: Mapping[str, ProviderSettings] = field(default_factory=dict)
    prices: tuple[Price, ...] = ()
    daily_budget: float | None = None
    ledger_enabled: bool = True
    confirm_above: float | None = None
    own_provider: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()

    def provider(self, name: str) -> ProviderSettings:
        """`[providers.NAME]`, empty where there is none."""
        return self.providers.get(name, ProviderSettings())
