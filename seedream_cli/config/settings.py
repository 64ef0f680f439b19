"""The settings of a run, and the values that hold where nothing was set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import Problem

if TYPE_CHECKING:
    from ..request.image_request import OptionValues
    from ..request.models import PriceStep


def complete(options: OptionValues, provider: str, settings: Settings) -> OptionValues:
    """The draft with `[providers.NAME]` in it: over the top of the files, under the profile and all else."""
    values, origins = dict(options.values), dict(options.origins)
    stated = settings.provider(provider)
    for key, value in stated.values.items():
        general = key not in settings.from_profile and origins.get(key) == settings.layer.origins.get(key)
        if key not in values or general:
            values[key], origins[key] = value, stated.origins[key]
    return replace(options, values=values, origins=origins)


def price_for(settings: Settings, provider: str, model: str, model_id: str) -> PriceStep | None:
    """The user's own price of an image, the one for this provider first; None where no file states one.

    `model` is the row's name, "" for an id the table does not know.
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
    """A key and where it came from; the source is for messages, the value never is.

    `note` is what the user should know of where the key lies or goes; mostly empty.
    """

    value: str
    source: str
    note: str = ""

    def __repr__(self) -> str:
        """Without the value, so that no traceback or log can hold it."""
        return f"Key(source={self.source!r})"


@dataclass(frozen=True, slots=True)
class Layer:
    """Options as a file states them, by key and kind like a draft's, each with its place ("seedream.toml:3")."""

    values: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    def over(self, other: Layer) -> Layer:
        """This layer's options, and the other's where this one has none."""
        return Layer(
            {**other.values, **self.values},
            {**other.switches, **self.switches},
            {**other.lists, **self.lists},
            {**other.origins, **self.origins},
        )


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """`[providers.NAME]`. `values` holds base_url, model, ipm and rpm as text; `key_variable` is `api_key_env`.

    `command` is `api_key_command` as a list of words, run in `command_folder`; it speaks for the address
    `command_base_url` ("": the provider's own), which is the one that stands in the same table.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    key_variable: str = ""
    command: tuple[str, ...] = ()
    command_base_url: str = ""
    command_folder: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Price:
    """What the user says an image costs, in US dollars; `provider` "" means any, `model` is a name or an id."""

    model: str
    amount: float
    provider: str = ""
    per_reference: float = 0.0
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the configuration files say, put together; empty without a file.

    `from_profile` holds the keys of `layer` that the chosen profile set. `own_provider` is the provider of the user's
    own file where an untrusted project names another one, else "". `origins` is for what is no option
    ("budget.daily"). `warnings` tell what an untrusted project file may not set.
    """

    layer: Layer = field(default_factory=Layer)
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
        """`[providers.NAME]`, empty where it is not there."""
        return self.providers.get(name, ProviderSettings())
