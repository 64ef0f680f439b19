"""The configuration files: found, read, judged and put together, everything with its file and line.

A project file comes with whatever folder somebody works in, so until it is trusted it may set only what is harmless:
nothing that names a key, an address, a program, a price or a limit, and no place outside its own folder. What is
harmless is listed (`_HARMLESS`); an option that is new is not harmless until somebody has thought about it.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from . import files
from .errors import FileError, InputError, Problem
from .names import scheme_problem
from .settings import Layer, Price, ProviderSettings, Settings, Surroundings

if TYPE_CHECKING:
    from .inputs import Option
    from .models import PriceStep
    from .request import Draft

PROJECT_FILE = "seedream.toml"
USER_FILE = "config.toml"
TRUST_FILE = "trusted.json"
MOST = 256 * 1024
"""Bytes of a file that are still believed to be settings."""
TRUST_LINE = "seedream config trust"
ONLY_TYPED = frozenset({"prompt_file", "var", "config"})
"""Options that make sense for one run alone."""
PATHS = frozenset({"output", "results", "image", "api_key_file"})
PROVIDER_KEYS = ("base_url", "api_key_env", "api_key_command", "ipm", "rpm", "model")
DEFAULTS: Mapping[str, str] = {
    "count": "1",
    "response_format": "url",
    "watermark": "false",
    "stream": "false",
    "web_search": "false",
    "if_exists": "rename",
    "metadata": "none",
    "progress": "auto",
    "timeout": "600",
    "connect_timeout": "10",
    "retries": "4",
    "retry_ambiguous": "false",
    "concurrency": "8",
    "results": "results.csv",
    "max_unknown": "3",
}
"""What holds for every model and provider where nothing is said; other options are left out of the request."""

# fmt: off
_HARMLESS = frozenset((
    "model", "size", "aspect", "count", "sequence", "image", "fit_images", "seed", "guidance_scale", "format",
    "response_format", "optimize_prompt", "web_search", "background", "stream", "watermark", "asynchronous",
    "strict", "each", "layers", "output", "name", "if_exists", "no_download", "json", "progress", "quiet", "verbose",
    "dry_run", "curl", "explain", "metadata", "timeout", "connect_timeout", "retries", "provider", "concurrency",
    "ipm", "rpm", "fail_fast", "reuse", "max_failures", "limit", "sheet", "profile",
))
# fmt: on
_COUNT_HARMLESS = 10
"""Pictures a request; each is billed, so that a stranger's file may not ask for a thousand."""
_LEAST_PRICE = 1e-6
"""A smaller price would be counted as more than it is, or as nothing."""
_OWN_TABLES = ("profiles", "providers", "prices", "budget", "ledger", "batch")
_SECRETS = re.compile(r"(^|[-_])(api[-_]?)?(key|token|secret|password)$", re.IGNORECASE)


# --- places -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Places:
    """Where settings come from. `named` says what moved the user's file ("--config"), "" for its usual place."""

    user: Path
    named: str = ""
    project: Path | None = None


def find_places(surroundings: Surroundings, *, file: str | None = None, folder: Path | None = None) -> Places:
    """The user's file (or the one named instead of it) and the project's, found upward from the folder."""
    moved = file or surroundings.option("config")
    if moved:
        named = "--config" if file else "$SEEDREAM_CONFIG"
        user = Path(os.path.expanduser(moved))  # noqa: PTH111 - Path.expanduser raises where there is no such user
    else:
        named, user = "", surroundings.config_folder / USER_FILE
    project = find_project(folder, surroundings.home)
    if project is not None and _is_same(project, user):
        project = None
    return Places(user, named, project)


def find_project(folder: Path | None, home: Path | None) -> Path | None:
    """The nearest `seedream.toml` in the folder or above it, not beyond the home nor another file system."""
    with contextlib.suppress(OSError):
        start = (folder or Path.cwd()).resolve()
        border = start.stat().st_dev
        last = home.resolve() if home else None
        for here in (start, *start.parents):
            if here.stat().st_dev != border:
                return None
            if os.path.lexists(here / PROJECT_FILE):
                return here / PROJECT_FILE
            if here == last:
                return None
    return None


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def shown_path(path: Path, home: Path | None) -> str:
    """A path as short as it is clear: from here, or from the home."""
    here = Path(os.path.relpath(path)) if not _leaves(path) else path
    if len(here.parts) <= 1 + sum(part == ".." for part in here.parts):
        return str(here)
    return f"~{os.sep}{path.relative_to(home)}" if home and path.is_relative_to(home) else str(path)


def _leaves(path: Path) -> bool:
    """Whether there is no way from here to the path: another drive, or a working folder that is gone."""
    try:
        os.path.relpath(path)
    except (OSError, ValueError):
        return True
    return False


# --- one file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Document:
    """One file as it was read. `lines` maps a key's parts to its line; `sha256` is of a project file's bytes."""

    path: Path
    shown: str
    text: str
    table: Mapping[str, Any]
    lines: Mapping[tuple[str, ...], int]
    sha256: str
    trusted: bool = True
    is_project: bool = False

    def place(self, keys: Sequence[str]) -> str:
        """ "FILE:LINE" of a key, or of the table that holds it."""
        for length in range(len(keys), 0, -1):
            line = self.lines.get(tuple(keys[:length]))
            if line:
                return f"{self.shown}:{line}"
        return f"{self.shown}:1"


def read_document(path: Path, shown: str, problems: list[Problem], *, is_project: bool = False) -> Document | None:
    """One file; None where it cannot be used, which is added to `problems`."""
    try:
        raw = _read_bytes(path, only_files=is_project)
    except OSError as error:
        hint = "check its permissions" if isinstance(error, PermissionError) else ""
        problems.append(Problem("", f"cannot be read: {files.reason(error)}", hint, origin=shown))
        return None
    return parse_document(raw, path, shown, problems, is_project=is_project)


def parse_document(
    raw: bytes, path: Path, shown: str, problems: list[Problem], *, is_project: bool = False
) -> Document | None:
    """A file's bytes as a document; a mistake in its TOML is told with its line."""
    import tomllib

    if len(raw) > MOST:
        problems.append(Problem("", f"too long for settings (over {MOST} bytes)", origin=shown))
        return None
    try:
        text = raw.decode("utf-8-sig")
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problems.append(Problem("", "not UTF-8", "save it as UTF-8", origin=f"{shown}:{line}"))
        return None
    except (ValueError, RecursionError) as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else raw.count(b"\n") + 1
        message = re.sub(r" \(at .*\)$", "", str(error))
        words = f"no TOML: {message[:1].lower()}{message[1:]}"
        unquoted = "nvalid value" in message or "after a statement" in message
        hint = 'text stands in quotes: size = "2K"' if unquoted else ""
        problems.append(Problem("", words, hint, origin=f"{shown}:{line}"))
        return None
    return Document(
        path, shown, text, table, key_lines(text), _digest(raw) if is_project else "", is_project=is_project
    )


def _digest(raw: bytes) -> str:
    """The sha256 by which a project file is known to be the one that was trusted."""
    import hashlib

    return hashlib.sha256(raw).hexdigest()


def _read_bytes(path: Path, *, only_files: bool) -> bytes:
    """The bytes, up to just past the limit. A pipe that is named on purpose is read, one that lies about is not."""
    if str(path) == "-":
        return sys.stdin.buffer.read(MOST + 1)
    if only_files and not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "not a file")
    with path.open("rb") as file:
        return file.read(MOST + 1)


_KEY = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
_ENTRY = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")
_PART = re.compile(r""""((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+)""")


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of every key and table, which the standard library's parser does not tell."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    quote = ""
    for number, line in enumerate(text.splitlines(), 1):
        if quote:
            quote = "" if quote in line else quote
            continue
        if line.lstrip().startswith("["):
            table = _parts(line.strip().lstrip("[").partition("]")[0])
            lines.setdefault(table, number)
            continue
        found = re.match(_ENTRY, line[:500])
        if found:
            lines.setdefault((*table, *_parts(found[1])), number)
        quote = next((mark for mark in ('"""', "'''") if line.count(mark) % 2), "")
    return lines


def _parts(dotted: str) -> tuple[str, ...]:
    """The parts of a dotted key, without quotes."""
    return tuple(found[1] or found[2] or found[3] or "" for found in _PART.finditer(dotted))


# --- trust ------------------------------------------------------------------------------------------------------------


def load_trusted(surroundings: Surroundings, problems: list[Problem] | None = None) -> dict[str, str]:
    """The sha256 of each trusted project file by its absolute path; nothing where the list cannot be read.

    Then nothing is trusted, which is mended by trusting again; but a budget in a file that was trusted would be passed
    by, so that it is added to `problems`.
    """
    place = surroundings.config_folder / TRUST_FILE
    try:
        known = json.loads(place.read_bytes())["files"]
        return {str(path): str(digest) for path, digest in known.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = files.reason(error) if isinstance(error, OSError) else "it is damaged"
        message = f"the list of trusted project files cannot be read: {why}"
        hint = f"move it away, then run `{TRUST_LINE}`"
        origin = shown_path(place, surroundings.home)
        if problems is not None:
            problems.append(Problem("", message, hint, origin=origin, code="config"))
        return {}


def set_trust(surroundings: Surroundings, path: Path, sha256: str | None) -> None:
    """Remember a project file as it is now, or with None forget it."""
    known = load_trusted(surroundings)
    known.pop(str(path.resolve()), None)
    if sha256 is not None:
        known[str(path.resolve())] = sha256
    text = json.dumps({"schema": 1, "files": known}, indent=1) + "\n"
    write_whole(surroundings.config_folder / TRUST_FILE, text.encode())


def trust_reason(key: str, value: Any, folder: Path) -> str:
    """Why a project file must be trusted to set this; "" where it need not be. `folder` is the file's."""
    if key not in _HARMLESS:
        return "takes a trusted file"
    if key == "output" and value != "-" and not is_inside(value, folder):
        return "lies outside the project's folder"
    if key == "image" and not all(_is_link(item) or is_inside(item, folder) for item in value):
        return "lies outside the project's folder"
    if key == "if_exists" and value.strip().lower() == "overwrite":
        return "would replace files"
    if key == "count" and value.strip().isdecimal() and int(value) > _COUNT_HARMLESS:
        return f"asks for more than {_COUNT_HARMLESS} billed pictures"
    return ""


def _is_link(text: str) -> bool:
    return text == "-" or re.match(r"(https?://|data:)", text, re.IGNORECASE) is not None


def is_inside(text: str, folder: Path) -> bool:
    """Whether a path, its links followed, stays in the folder. Read as Windows would too: both know this slash."""
    windows = PureWindowsPath(text)
    if text.startswith(("~", "/")) or windows.drive or windows.root or ".." in windows.parts or "\0" in text:
        return False
    try:
        return (folder / text).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False


# --- what a file says -------------------------------------------------------------------------------------------------


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

    def __init__(self, document: Document, options: Mapping[str, Option], problems: list[Problem]) -> None:
        self.document = document
        self.options = options
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
            if name not in table or (name in self.options and not isinstance(table[name], dict)):
                continue
            value = table.pop(name)
            if isinstance(value, dict):
                take(value)
            else:
                self.complain([name], f"{name} is a table", f"write [{name}]")
        profile = table.pop("profile", "")
        if not isinstance(profile, str):
            self.complain(["profile"], "profile takes text", 'profile = "NAME"')
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
            option = self.options.get(name.replace("_", "-"))
            if option is None:
                self.complain_of_unknown(keys, [*self.options, *(() if above else (*_OWN_TABLES, "profile"))])
            elif option.key in ONLY_TYPED or (above and option.key == "profile"):
                self.complain(keys, f"{name} cannot stand in a settings file", "give it on the command line")
            elif option.key in layer.origins:
                self.complain(keys, f"{name} is set twice", f"the other is at {layer.origins[option.key]}")
            else:
                self.take_option(layer, keys, option, value)
        return layer

    def take_option(self, layer: Layer, keys: tuple[str, ...], option: Option, value: Any) -> None:
        """One option, by its kind, if this file may set it."""
        taken = _as_option(option, value)
        if taken is None:
            wanted = {"switch": "true or false", "list": "a list of texts", "count": "a number from 0 to 9"}
            self.complain(keys, f"{keys[-1]} takes {wanted.get(option.kind, 'text or a number')}")
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
                self.complain(["profiles", name], f"{name} is no profile", f"write [profiles.{name}]")

    def take_providers(self, table: Mapping[str, Any]) -> None:
        """`[providers.NAME]`."""
        from .providers import PROVIDERS

        for name, stated in table.items():
            keys = ("providers", name)
            if name not in PROVIDERS:
                self.complain_of_unknown(keys, PROVIDERS, "provider")
            elif not isinstance(stated, dict):
                self.complain(keys, f"{name} is a table", f"write [providers.{name}]")
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
            elif name in {"ipm", "rpm"} and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                self.complain(place, f"{written} takes a whole number from 1")
            elif name not in {"ipm", "rpm"} and not (isinstance(value, str) and value.strip()):
                self.complain(place, f"{written} takes text")
            elif self.allows(place, name, str(value)):
                variable = value.removeprefix("$") if name == "api_key_env" else variable
                values |= {name: str(value)} if name != "api_key_env" else {}
            else:
                continue
            origins[name] = self.document.place(place)
        folder = str(self.document.path.resolve().parent)
        return ProviderSettings(values, variable, command, values.get("base_url", ""), folder, origins)

    def words(self, keys: tuple[str, ...], value: Any) -> tuple[str, ...]:
        """A command as its words; no shell ever sees it."""
        if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
            return tuple(value)
        import shlex

        try:
            words = shlex.split(value, posix=os.name != "nt") if isinstance(value, str) else []
        except ValueError as error:
            self.complain(keys, f"the command cannot be read: {str(error).lower()}")
            return ()
        if not words:
            self.complain(keys, "api_key_command takes a command", 'api_key_command = "pass show seedream"')
        return tuple(words)

    def take_prices(self, table: Mapping[str, Any]) -> None:
        """`[prices]`: "MODEL" or "PROVIDER/MODEL" = dollars, or a table with amount, per_reference, provider."""
        from .providers import PROVIDERS

        for keys, value in _flat_prices(table, ("prices",)):
            first, slash, rest = keys[-1].partition("/")
            provider, model = (first, rest) if slash and first in PROVIDERS else ("", keys[-1])
            stated = dict(value) if isinstance(value, dict) else {"amount": value}
            amount, extra = stated.pop("amount", None), stated.pop("per_reference", 0)
            provider = stated.pop("provider", provider)
            currency = stated.pop("currency", "USD")
            if not (_is_amount(amount) and _is_amount(extra)):
                self.complain(keys, "a price is a number of US dollars a picture", '"4.5" = 0.04')
            elif any(0 < one < _LEAST_PRICE for one in (amount, extra)):
                self.complain(keys, "a price is no smaller than $0.000001, which money is counted in", '"4.5" = 0.04')
            elif provider and provider not in PROVIDERS:
                self.complain_of_unknown((*keys[:-1], str(provider)), PROVIDERS, "provider")
            elif stated:
                self.complain_of_unknown((*keys, next(iter(stated))), ("amount", "per_reference", "provider"))
            elif str(currency).upper() != "USD":
                self.complain(keys, f"prices are in US dollars, not in {str(currency)[:20]}", "give it in US dollars")
            elif idle := _idle_price(provider, model):
                self.complain(keys, *idle)
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
                self.complain(keys, f"{written} takes {'a number from 0' if number else 'true or false'}")
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
            self.complain(keys, f"{name}: a key may not stand in a settings file", hint)
            return
        self.complain(keys, f"unknown {what} {name}", nearest_hint(name, known))

    def complain(self, keys: Sequence[str], message: str, hint: str = "") -> None:
        """Note a problem at a key."""
        self.problems.append(Problem(".".join(keys), message, hint, origin=self.document.place(keys), code="config"))


def nearest_hint(name: str, known: Sequence[str]) -> str:
    """What may have been meant, or what there is."""
    spelled = {one.replace("-", "_"): one for one in known}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), spelled, 3)
    if near:
        return f"did you mean {' or '.join(spelled[one].replace('-', '_') for one in near)}?"
    return f"known: {', '.join(known)}" if len(known) <= 8 else "seedream config show lists all"


def _as_option(option: Option, value: Any) -> Any:
    """A TOML value as a draft holds it; None where it is of the wrong kind."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if option.kind == "switch":
        return value is not option.negative if isinstance(value, bool) else None
    if option.kind == "count":
        return str(value) if isinstance(value, int) and is_number and 0 <= value <= 9 else None
    if option.kind == "value":
        return str(value) if is_number or isinstance(value, str) else None
    if option.key == "extra" and isinstance(value, dict):
        return tuple(f"{key}={json.dumps(item, default=str)}" for key, item in value.items())
    items = value if isinstance(value, list) else [value]
    return tuple(items) if all(isinstance(item, str) for item in items) else None


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _flat_prices(table: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every price. A bare 4.5 = 0.04 is, to TOML, a key 5 in a table 4; what was meant is clear all the same."""
    for name, value in table.items():
        if isinstance(value, dict) and "amount" not in value:
            yield from _flat_prices({f"{name}.{key}": item for key, item in value.items()}, above)
        else:
            yield (*above, name), value


def _idle_price(provider: str, model: str) -> tuple[str, str] | None:
    """Why a price for this would have no effect, and what may have been meant; None where it has one."""
    from .models import MODELS, find_model, nearest
    from .providers import PROVIDERS, load

    if provider and load(provider).spec.offline:
        return f"{provider} costs nothing, so a price has no effect there", ""
    if find_model(model) is not None or re.match(r"ep-.", model):
        return None
    near = nearest(model) if model.strip() else []
    is_id = "/" in model or re.search(r"seed(ream|edit)", model, re.IGNORECASE) is not None
    if provider and model.strip() and (is_id or not near):
        # Any id is sent as it is typed; only what looks like one of our names and is none is a slip.
        return None
    first, border, rest = model.partition("/") if "/" in model else model.partition(".")
    if border and first in PROVIDERS:
        return f"no model is called {model[:60]}", f"write {first}/{rest}"
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(row.name for row in MODELS)}"
    if border == "/" and find_model(rest) is not None:
        return f"unknown provider {first[:40]}", nearest_hint(first, PROVIDERS)
    return (
        f"no model is called {model[:60]}",
        hint if provider else f"{hint}; a provider's own id is written PROVIDER/ID",
    )


# --- all files together -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """All that was read: the settings, the documents in order of rank (the user's first), what is wrong with them."""

    settings: Settings
    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]


def load(
    surroundings: Surroundings,
    options: Mapping[str, Option],
    *,
    file: str | None = None,
    profile: str | None = None,
    folder: Path | None = None,
) -> Surroundings:
    """The surroundings with the settings of the files in them. Raises `InputError` with all that is wrong in them."""
    places = find_places(surroundings, file=file, folder=folder)
    reading = read(surroundings, options, places, profile=profile)
    if reading.problems:
        raise InputError(reading.problems, kind="config")
    return replace(surroundings, settings=reading.settings)


def read(
    surroundings: Surroundings,
    options: Mapping[str, Option],
    places: Places,
    *,
    profile: str | None = None,
    deep: bool = True,
) -> Reading:
    """Read the files of these places, judge what is in them and put it together. Raises nothing.

    Without `deep` the values themselves are not judged, which would load the request's checks.
    """
    problems: list[Problem] = []
    documents = read_documents(surroundings, places, problems)
    return combine(surroundings, options, documents, problems, profile=profile, deep=deep)


def read_documents(surroundings: Surroundings, places: Places, problems: list[Problem]) -> list[Document]:
    """The files that are there: the user's, then the project's."""
    documents = []
    home = surroundings.home
    if places.named or _is_there(places.user, surroundings, problems):
        shown = "standard input" if str(places.user) == "-" else shown_path(places.user, home)
        documents.append(read_document(places.user, shown, problems))
    if places.project is not None:
        document = read_document(places.project, shown_path(places.project, home), problems, is_project=True)
        documents.append(_with_trust(surroundings, document, problems) if document else None)
    return [document for document in documents if document is not None]


def _is_there(path: Path, surroundings: Surroundings, problems: list[Problem]) -> bool:
    """Whether the user's file is there. Where that cannot be seen, a budget in it would be passed by: a problem."""
    hint = "set that right, or name a file with --config or $SEEDREAM_CONFIG, such as /dev/null for none"
    try:
        return _looks_there(path)
    except OSError as error:
        message = f"the settings cannot be looked at, which may hold a budget: {files.reason(error)}"
        problems.append(Problem("", message, hint, origin=shown_path(path, surroundings.home), code="config"))
        return False


def _looks_there(path: Path) -> bool:
    """Whether a file or a link is there. Raises `OSError` where a folder above cannot be entered or leads nowhere."""
    try:
        path.lstat()
    except FileNotFoundError:
        above = next((folder for folder in path.parents if os.path.lexists(folder)), path.parent)
        # It is there itself; as a link it must lead somewhere.
        above.stat()
        return False
    return True


def _with_trust(surroundings: Surroundings, document: Document, problems: list[Problem]) -> Document:
    known = load_trusted(surroundings, problems).get(str(document.path.resolve()))
    return replace(document, trusted=known == document.sha256)


def combine(
    surroundings: Surroundings,
    options: Mapping[str, Option],
    documents: Sequence[Document],
    problems: list[Problem],
    *,
    profile: str | None = None,
    deep: bool = True,
) -> Reading:
    """Documents as settings: the project's over the user's, a profile over what it was chosen by or above."""
    readers = [_Reader(document, options, problems) for document in documents]
    contents = [reader.read() for reader in readers]
    for content in contents if deep else ():
        for layer in (content.top, *content.profiles.values()):
            problems += value_problems(layer)
        for provider, stated in content.providers.items():
            problems += address_problems(provider, stated)
    name, origin, chooser = _choose_profile(surroundings, contents, profile)
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
    surroundings: Surroundings, contents: Sequence[_Content], asked: str | None
) -> tuple[str, str, _Content | None]:
    """The profile's name, who chose it, and the file that did, if one did."""
    if asked:
        return asked, "--profile", None
    variable = surroundings.option("profile")
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


# --- what settings mean for a draft -----------------------------------------------------------------------------------


def complete(draft: Draft, provider: str, settings: Settings) -> Draft:
    """The draft with `[providers.NAME]` in it: over the top of the files, under the profile and all else."""
    values, origins = dict(draft.values), dict(draft.origins)
    stated = settings.provider(provider)
    for key, value in stated.values.items():
        general = key not in settings.from_profile and origins.get(key) == settings.layer.origins.get(key)
        if key not in values or general:
            values[key], origins[key] = value, stated.origins[key]
    return replace(draft, values=values, origins=origins)


def price_for(settings: Settings, provider: str, model: str, model_id: str) -> PriceStep | None:
    """The user's own price of a picture, the one for this provider first; None where no file states one.

    `model` is the row's name, "" for an id the table does not know.
    """
    from .models import PriceStep, find_model

    def means(price: Price) -> bool:
        row = find_model(price.model)
        return price.model == model_id or bool(model and row and row.name == model)

    fitting = [price for price in settings.prices if price.provider in {"", provider} and means(price)]
    fitting.sort(key=lambda price: not price.provider)
    return PriceStep(fitting[0].amount, per_reference=fitting[0].per_reference) if fitting else None


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
    from .providers import base, load

    try:
        base.full_url(load(provider).spec, stated.values["base_url"])
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
    from .models import DEFAULT_MODEL, Rule, find_model
    from .providers import PROVIDERS, base, load
    from .request import Draft, Recipient, build

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
            base.full_url(load(name).spec, values["base_url"])
        except InputError as error:
            problems += [replace(problem, origin=layer.origins["base_url"]) for problem in error.problems]
    return problems


# --- writing ----------------------------------------------------------------------------------------------------------


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file as one step, so that a reader sees the old or the new one. A new one is for its owner alone.

    A link stays a link: what it points to is replaced. What is no file is written to as it is. Raises `FileError`.
    """
    part: Path | None = None
    try:
        target = files.final_target(path)
        if target is None:
            with os.fdopen(files.open_stream(path), "wb") as stream:
                stream.write(data)
            return
        target = target.resolve()
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
        with os.fdopen(files.create(part), "wb") as file:
            file.write(data)
            file.flush()
            files.set_mode(file.fileno(), mode)
            os.fsync(file.fileno())
        part.replace(target)
        files.flush_folder(target.parent)
    except (OSError, RuntimeError) as error:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        reason = files.reason(error) if isinstance(error, OSError) else "a loop of links"
        raise FileError(f"cannot write {path}: {reason}", hint="check the folder's permissions and room") from error
