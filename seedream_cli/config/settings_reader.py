"""Sorts a parsed settings file into options and tables, with the line of each and all problems at once."""

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
from .config_file import _LEAST_PRICE, Document, _idle_price, _is_unreachable
from .option_kinds import BadValueError
from .options import OPTIONS, Option, by_name, find_option
from .settings import Price, ProviderSettings, SettingsLayer
from .trust import TRUST_LINE, _is_link, trust_reason

PATHS = frozenset({"output", "results", "image", "api_key_file"})

PROVIDER_KEYS = ("base_url", "api_key_env", "api_key_command", "ipm", "rpm", "model")

_OWN_TABLES = ("profiles", "providers", "prices", "budget", "ledger", "batch")

_SECRETS = re.compile(r"(^|[-_])(api[-_]?)?(key|token|secret|password)$", re.IGNORECASE)


@dataclass(slots=True)
class _Content:
    """One file's options and tables."""

    top: SettingsLayer = field(default_factory=SettingsLayer)
    profile: str = ""
    profiles: dict[str, SettingsLayer] = field(default_factory=dict)
    providers: dict[str, ProviderSettings] = field(default_factory=dict)
    prices: list[Price] = field(default_factory=list)
    daily: float | None = None
    ledger: bool | None = None
    confirm: float | None = None
    origins: dict[str, str] = field(default_factory=dict)


class _Reader:
    """Reads one document; adds errors to `problems`, and what an untrusted file may not set to `ignored`."""

    def __init__(self, document: Document, problems: list[Problem]) -> None:
        self.document = document
        self.problems = problems
        self.ignored: list[Problem] = []
        self.content = _Content()

    def read(self) -> _Content:
        """Read the whole document."""
        table = dict(self.document.table)
        parts: dict[str, Any] = {
            "profiles": self.read_profiles,
            "providers": self.read_providers,
            "prices": self.read_prices,
            "budget": self.read_budget,
            "ledger": self.read_ledger,
            "batch": self.read_batch,
        }
        for name, read in parts.items():
            # `ledger = false` is the option, [ledger] the table.
            if name not in table or (name in OPTIONS and not isinstance(table[name], dict)):
                continue
            value = table.pop(name)
            if isinstance(value, dict):
                read(value)
            else:
                self.add_error([name], f"{name} is a table", f"write [{name}]")
        profile = table.pop("profile", "")
        if not isinstance(profile, str):
            self.add_error(["profile"], "profile takes text", 'profile = "NAME"')
        elif profile:
            self.content.profile = profile
            self.content.origins["profile"] = self.document.location(["profile"])
        self.content.top = self.layer(table, ())
        return self.content

    def layer(self, table: Mapping[str, Any], above: tuple[str, ...]) -> SettingsLayer:
        """The options of one table."""
        layer = SettingsLayer({}, {}, {}, {})
        for name, value in table.items():
            keys = (*above, name)
            option = find_option(name)
            if option is None:
                self.add_unknown_key(keys, [*by_name(), *(() if above else (*_OWN_TABLES, "profile"))])
            elif not option.accepts("file") or (above and option.key == "profile"):
                self.add_error(keys, f"{name} cannot stand in a settings file", "give it on the command line")
            elif option.key in layer.origins:
                self.add_error(keys, f"{name} is set twice", f"the other is at {layer.origins[option.key]}")
            else:
                self.read_option(layer, keys, option, value)
        return layer

    def read_option(self, layer: SettingsLayer, keys: tuple[str, ...], option: Option, value: Any) -> None:
        """Add one option to the layer, if this file may set it."""
        try:
            parsed = option.parse_toml(value)
        except BadValueError as error:
            self.add_error(keys, error.message, error.hint)
            return
        if not self.allows(keys, option.key, parsed):
            return
        if option.key in PATHS:
            parsed = self.rebase(option.key, parsed)
        into: Any = (
            layer.switches if option.kind == "switch" else layer.lists if option.kind == "list" else layer.values
        )
        into[option.key] = parsed
        layer.origins[option.key] = self.document.location(keys)  # type: ignore[index]

    def rebase(self, key: str, parsed: Any) -> Any:
        """Resolve a path: a project file's paths, and any `api_key_file`, are relative to the file's folder."""
        if isinstance(parsed, tuple):
            return tuple(self.rebase(key, item) for item in parsed)
        text = os.path.expanduser(parsed)  # noqa: PTH111 - keeps the slash at the end, which means a folder
        if _is_link(text) or text == "-" or Path(text).is_absolute() or scheme_problem(key, text):
            return text
        if not self.document.is_project and key != "api_key_file":
            return text
        folder = self.document.path.parent
        start = str(folder) if _is_unreachable(folder) else os.path.relpath(folder)
        return text if start == "." else os.path.join(start, text)  # noqa: PTH118 - for the same slash

    def read_profiles(self, table: Mapping[str, Any]) -> None:
        """`[profiles.NAME]`."""
        for name, options in table.items():
            if isinstance(options, dict):
                self.content.profiles[name] = self.layer(options, ("profiles", name))
            else:
                self.add_error(["profiles", name], f"{name} is no profile", f"write [profiles.{name}]")

    def read_providers(self, table: Mapping[str, Any]) -> None:
        """`[providers.NAME]`."""
        from ..providers import PROVIDERS

        for name, stated in table.items():
            keys = ("providers", name)
            if name not in PROVIDERS:
                self.add_unknown_key(keys, PROVIDERS, "provider")
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
                self.add_unknown_key(place, PROVIDER_KEYS)
            elif name == "api_key_command":
                words = self.words(place, value)
                command = words if words and self.allows(place, name, words) else ()
            elif name in {"ipm", "rpm"}:
                if not self.check_rate(place, OPTIONS[name], value):
                    continue
                values[name] = str(value)
            elif not (isinstance(value, str) and value.strip()):
                self.add_error(place, f"{written} takes text")
            elif self.allows(place, name, value):
                variable = value.removeprefix("$") if name == "api_key_env" else variable
                values |= {name: value} if name != "api_key_env" else {}
            else:
                continue
            origins[name] = self.document.location(place)
        folder = str(self.document.path.resolve().parent)
        return ProviderSettings(values, variable, command, values.get("base_url", ""), folder, origins)

    def check_rate(self, keys: tuple[str, ...], option: Option, value: Any) -> bool:
        """Whether `ipm` or `rpm` is valid, and this file may set it."""
        found: list[Problem] = []
        try:
            option.parse(option.parse_toml(value), "", found)
        except BadValueError as error:
            found = [Problem(option.key, error.message, error.hint)]
        for problem in found:
            self.add_error(keys, problem.message, problem.hint)
        return not found and self.allows(keys, option.key, str(value))

    def words(self, keys: tuple[str, ...], value: Any) -> tuple[str, ...]:
        """A command split into words, as it is run without a shell; () with a problem added where it cannot be."""
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

    def read_prices(self, table: Mapping[str, Any]) -> None:
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
                self.add_unknown_key((*keys[:-1], str(provider)), PROVIDERS, "provider")
            elif stated:
                self.add_unknown_key((*keys, next(iter(stated))), ("amount", "per_reference", "provider"))
            elif str(currency).upper() != "USD":
                self.add_error(keys, f"prices are in US dollars, not in {str(currency)[:20]}", "give it in US dollars")
            elif idle := _idle_price(provider, model):
                self.add_error(keys, *idle)
            elif self.allows(keys, "prices", value):
                origin = self.document.location(keys)
                self.content.prices.append(Price(model, float(amount), provider, float(extra), origin))

    def read_budget(self, table: Mapping[str, Any]) -> None:
        """`[budget] daily`, in US dollars."""
        self.content.daily = self.only("budget", "daily", table, number=True)

    def read_ledger(self, table: Mapping[str, Any]) -> None:
        """`[ledger] enabled`."""
        self.content.ledger = self.only("ledger", "enabled", table, number=False)

    def read_batch(self, table: Mapping[str, Any]) -> None:
        """`[batch] confirm_above`."""
        self.content.confirm = self.only("batch", "confirm_above", table, number=True)

    def only(self, name: str, key: str, table: Mapping[str, Any], *, number: bool) -> Any:
        """Read a table that may hold only `key`: a number from 0, or a boolean. None where it is not set."""
        found = None
        for written, value in table.items():
            keys = (name, written)
            if written.replace("-", "_") != key:
                self.add_unknown_key(keys, (key,))
            elif not (_is_amount(value) if number else isinstance(value, bool)):
                self.add_error(keys, f"{written} takes {'a number from 0' if number else 'true or false'}")
            elif self.allows(keys, f"{name}.{key}", value):
                found = value
                self.content.origins[f"{name}.{key}"] = self.document.location(keys)
        return found

    def allows(self, keys: Sequence[str], key: str, value: Any) -> bool:
        """Whether this file may set this; else a warning is added to `ignored`."""
        if not self.document.is_project or self.document.trusted:
            return True
        why = trust_reason(key, value, self.document.path.parent)
        if why:
            shown = ".".join(keys)
            message = f"ignored, as the file is not trusted: {shown} {why}"
            hint = f"read the file, then run `{TRUST_LINE}`, or give the option yourself"
            origin = self.document.location(keys)
            self.ignored.append(Problem(shown, message, hint, "warning", origin, "untrusted"))
        return not why

    def add_unknown_key(self, keys: Sequence[str], known: Sequence[str], what: str = "setting") -> None:
        """Add a problem for an unknown key, with the nearest known one. Its value is not shown: it may be a secret."""
        name = keys[-1]
        if _SECRETS.search(name) and what == "setting":
            hint = "take it out here, then store it with `seedream config key set PROVIDER`"
            self.add_error(keys, f"{name}: a key may not stand in a settings file", hint)
            return
        self.add_error(keys, f"unknown {what} {name}", nearest_hint(name, known))

    def add_error(self, keys: Sequence[str], message: str, hint: str = "") -> None:
        """Add a problem at a key."""
        self.problems.append(Problem(".".join(keys), message, hint, origin=self.document.location(keys), code="config"))


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _flat_prices(table: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every price by its keys. An unquoted 4.5 = 0.04, in TOML the key 5 of a table 4, is read as "4.5"."""
    for name, value in table.items():
        if isinstance(value, dict) and "amount" not in value:
            yield from _flat_prices({f"{name}.{key}": item for key, item in value.items()}, above)
        else:
            yield (*above, name), value
