"""Reads one settings file into values, with the line of each and all problems at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..storage.file_names import scheme_problem
from ..text import nearest_hint
from .config_file import _LEAST_PRICE, Document, _idle_price, _leaves
from .option_kinds import BadValueError
from .options import OPTIONS, Option, by_name, find_option
from .settings import Layer, Price, ProviderSettings
from .trust import TRUST_LINE, _is_link, trust_reason

PATHS = frozenset({"output", "results", "image", "api_key_file"})

PROVIDER_KEYS = ("base_url", "api_key_env", "api_key_command", "ipm", "rpm", "model")

_OWN_TABLES = ("profiles", "providers", "prices", "budget", "ledger", "batch")

_SECRETS = re.compile(r"(^|[-_])(api[-_]?)?(key|token|secret|password)$", re.IGNORECASE)


@dataclass(slots=True)
class _Content:
    """What one file says, sorted."""

    top: Layer = field(default_factory=Layer)
    profile: str = ""
    profiles: dict[str, Layer] = field(default_factory=dict)
    providers: dict[str, ProviderSettings] = field(default_factory=dict)
    prices: list[Price] = field(default_factory=list)
    daily: float | None = None
    ledger: bool | None = None
    confirm: float | None = None
    origins: dict[str, str] = field(default_factory=dict)


class _Reader:
    """Sorts one document; adds what is wrong to `problems` and what its file may not say to `ignored`."""

    def __init__(self, document: Document, problems: list[Problem]) -> None:
        self.document = document
        self.problems = problems
        self.ignored: list[Problem] = []
        self.content = _Content()

    def read(self) -> _Content:
        """Everything the document says."""
        table = dict(self.document.table)
        parts: dict[str, Any] = {
            "profiles": self.take_profiles,
            "providers": self.take_providers,
            "prices": self.take_prices,
            "budget": self.take_budget,
            "ledger": self.take_ledger,
            "batch": self.take_batch,
        }
        for name, take in parts.items():
            # `ledger = false` is the option, [ledger] is the table.
            if name not in table or (name in OPTIONS and not isinstance(table[name], dict)):
                continue
            value = table.pop(name)
            if isinstance(value, dict):
                take(value)
            else:
                self.add_error([name], f"{name} is a table", f"write [{name}]")
        profile = table.pop("profile", "")
        if not isinstance(profile, str):
            self.add_error(["profile"], "profile takes text", 'profile = "NAME"')
        elif profile:
            self.content.profile = profile
            self.content.origins["profile"] = self.document.place(["profile"])
        self.content.top = self.layer(table, ())
        return self.content

    def layer(self, table: Mapping[str, Any], above: tuple[str, ...]) -> Layer:
        """The options of one table."""
        layer = Layer({}, {}, {}, {})
        for name, value in table.items():
            keys = (*above, name)
            option = find_option(name)
            if option is None:
                self.complain_of_unknown(keys, [*by_name(), *(() if above else (*_OWN_TABLES, "profile"))])
            elif not option.may("file") or (above and option.key == "profile"):
                self.add_error(keys, f"{name} cannot stand in a settings file", "give it on the command line")
            elif option.key in layer.origins:
                self.add_error(keys, f"{name} is set twice", f"the other is at {layer.origins[option.key]}")
            else:
                self.take_option(layer, keys, option, value)
        return layer

    def take_option(self, layer: Layer, keys: tuple[str, ...], option: Option, value: Any) -> None:
        """One option, by its kind, if this file may set it."""
        try:
            taken = option.parse_toml(value)
        except BadValueError as error:
            self.add_error(keys, error.message, error.hint)
            return
        if not self.allows(keys, option.key, taken):
            return
        if option.key in PATHS:
            taken = self.rebase(option.key, taken)
        into: Any = (
            layer.switches if option.kind == "switch" else layer.lists if option.kind == "list" else layer.values
        )
        into[option.key] = taken
        layer.origins[option.key] = self.document.place(keys)  # type: ignore[index]

    def rebase(self, key: str, taken: Any) -> Any:
        """Paths of a project file start from its folder, and so does the user's key file; others from here."""
        if isinstance(taken, tuple):
            return tuple(self.rebase(key, item) for item in taken)
        text = os.path.expanduser(taken)  # noqa: PTH111 - keeps the slash at the end, which means a folder
        if _is_link(text) or text == "-" or Path(text).is_absolute() or scheme_problem(key, text):
            return text
        if not self.document.is_project and key != "api_key_file":
            return text
        folder = self.document.path.parent
        start = str(folder) if _leaves(folder) else os.path.relpath(folder)
        return text if start == "." else os.path.join(start, text)  # noqa: PTH118 - for the same slash

    def take_profiles(self, table: Mapping[str, Any]) -> None:
        """`[profiles.NAME]`."""
        for name, options in table.items():
            if isinstance(options, dict):
                self.content.profiles[name] = self.layer(options, ("profiles", name))
            else:
                self.add_error(["profiles", name], f"{name} is no profile", f"write [profiles.{name}]")

    def take_providers(self, table: Mapping[str, Any]) -> None:
        """`[providers.NAME]`."""
        from ..providers import PROVIDERS

        for name, stated in table.items():
            keys = ("providers", name)
            if name not in PROVIDERS:
                self.complain_of_unknown(keys, PROVIDERS, "provider")
            elif not isinstance(stated, dict):
                self.add_error(keys, f"{name} is a table", f"write [providers.{name}]")
            else:
                self.content.providers[name] = self.provider(stated, keys)

    def provider(self, stated: Mapping[str, Any], keys: tuple[str, ...]) -> ProviderSettings:
        """One provider's table."""
        values, origins = dict[str, str](), dict[str, str]()
        variable, command = "", tuple[str, ...]()
        for written, value in stated.items():
            name, place = written.replace("-", "_"), (*keys, written)
            if name not in PROVIDER_KEYS:
                self.complain_of_unknown(place, PROVIDER_KEYS)
            elif name == "api_key_command":
                words = self.words(place, value)
                command = words if words and self.allows(place, name, words) else ()
            elif name in {"ipm", "rpm"}:
                if not self.takes_rate(place, OPTIONS[name], value):
                    continue
                values[name] = str(value)
            elif not (isinstance(value, str) and value.strip()):
                self.add_error(place, f"{written} takes text")
            elif self.allows(place, name, value):
                variable = value.removeprefix("$") if name == "api_key_env" else variable
                values |= {name: value} if name != "api_key_env" else {}
            else:
                continue
            origins[name] = self.document.place(place)
        folder = str(self.document.path.resolve().parent)
        return ProviderSettings(values, variable, command, values.get("base_url", ""), folder, origins)

    def takes_rate(self, keys: tuple[str, ...], option: Option, value: Any) -> bool:
        """Whether a limit a minute is one, and this file may set it."""
        found: list[Problem] = []
        try:
            option.parse(option.parse_toml(value), "", found)
        except BadValueError as error:
            found = [Problem(option.key, error.message, error.hint)]
        for problem in found:
            self.add_error(keys, problem.message, problem.hint)
        return not found and self.allows(keys, option.key, str(value))

    def words(self, keys: tuple[str, ...], value: Any) -> tuple[str, ...]:
        """A command as its words; no shell ever sees it."""
        if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
            return tuple(value)
        import shlex

        try:
            words = shlex.split(value, posix=os.name != "nt") if isinstance(value, str) else []
        except ValueError as error:
            self.add_error(keys, f"the command cannot be read: {str(error).lower()}")
            return ()
        if not words:
            self.add_error(keys, "api_key_command takes a command", 'api_key_command = "pass show seedream"')
        return tuple(words)

    def take_prices(self, table: Mapping[str, Any]) -> None:
        """`[prices]`: "MODEL" or "PROVIDER/MODEL" = dollars, or a table with amount, per_reference, provider."""
        from ..providers import PROVIDERS

        for keys, value in _flat_prices(table, ("prices",)):
            first, slash, rest = keys[-1].partition("/")
            provider, model = (first, rest) if slash and first in PROVIDERS else ("", keys[-1])
            stated = dict(value) if isinstance(value, dict) else {"amount": value}
            amount, extra = stated.pop("amount", None), stated.pop("per_reference", 0)
            provider = stated.pop("provider", provider)
            currency = stated.pop("currency", "USD")
            if not (_is_amount(amount) and _is_amount(extra)):
                self.add_error(keys, "a price is a number of US dollars an image", '"4.5" = 0.04')
            elif any(0 < one < _LEAST_PRICE for one in (amount, extra)):
                self.add_error(keys, "a price is no smaller than $0.000001, which money is counted in", '"4.5" = 0.04')
            elif provider and provider not in PROVIDERS:
                self.complain_of_unknown((*keys[:-1], str(provider)), PROVIDERS, "provider")
            elif stated:
                self.complain_of_unknown((*keys, next(iter(stated))), ("amount", "per_reference", "provider"))
            elif str(currency).upper() != "USD":
                self.add_error(keys, f"prices are in US dollars, not in {str(currency)[:20]}", "give it in US dollars")
            elif idle := _idle_price(provider, model):
                self.add_error(keys, *idle)
            elif self.allows(keys, "prices", value):
                place = self.document.place(keys)
                self.content.prices.append(Price(model, float(amount), provider, float(extra), place))

    def take_budget(self, table: Mapping[str, Any]) -> None:
        """`[budget] daily`, in US dollars."""
        self.content.daily = self.only("budget", "daily", table, number=True)

    def take_ledger(self, table: Mapping[str, Any]) -> None:
        """`[ledger] enabled`."""
        self.content.ledger = self.only("ledger", "enabled", table, number=False)

    def take_batch(self, table: Mapping[str, Any]) -> None:
        """`[batch] confirm_above`."""
        self.content.confirm = self.only("batch", "confirm_above", table, number=True)

    def only(self, name: str, key: str, table: Mapping[str, Any], *, number: bool) -> Any:
        """The one key of a small table: a number from 0, or a yes or no."""
        found = None
        for written, value in table.items():
            keys = (name, written)
            if written.replace("-", "_") != key:
                self.complain_of_unknown(keys, (key,))
            elif not (_is_amount(value) if number else isinstance(value, bool)):
                self.add_error(keys, f"{written} takes {'a number from 0' if number else 'true or false'}")
            elif self.allows(keys, f"{name}.{key}", value):
                found = value
                self.content.origins[f"{name}.{key}"] = self.document.place(keys)
        return found

    def allows(self, keys: Sequence[str], key: str, value: Any) -> bool:
        """Whether this file may set this; else it is noted as ignored, with the way out."""
        if not self.document.is_project or self.document.trusted:
            return True
        why = trust_reason(key, value, self.document.path.parent)
        if why:
            shown = ".".join(keys)
            message = f"ignored, as the file is not trusted: {shown} {why}"
            hint = f"read the file, then run `{TRUST_LINE}`, or give the option yourself"
            place = self.document.place(keys)
            self.ignored.append(Problem(shown, message, hint, "warning", place, "untrusted"))
        return not why

    def complain_of_unknown(self, keys: Sequence[str], known: Sequence[str], what: str = "setting") -> None:
        """A key that nobody knows, with the nearest that is known. Its value is not shown: it may be a secret."""
        name = keys[-1]
        if _SECRETS.search(name) and what == "setting":
            hint = "take it out here, then store it with `seedream config key set PROVIDER`"
            self.add_error(keys, f"{name}: a key may not stand in a settings file", hint)
            return
        self.add_error(keys, f"unknown {what} {name}", nearest_hint(name, known))

    def add_error(self, keys: Sequence[str], message: str, hint: str = "") -> None:
        """Note a problem at a key."""
        self.problems.append(Problem(".".join(keys), message, hint, origin=self.document.place(keys), code="config"))


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _flat_prices(table: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every price. A bare 4.5 = 0.04 is, to TOML, a key 5 in a table 4; what was meant is clear all the same."""
    for name, value in table.items():
        if isinstance(value, dict) and "amount" not in value:
            yield from _flat_prices({f"{name}.{key}": item for key, item in value.items()}, above)
        else:
            yield (*above, name), value
