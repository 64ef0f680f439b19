"""`seedream config …`: show and change settings, trust a project file, first steps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.environment import Environment, read_environ, read_environment
from ..config.option_kinds import BadValueError, switch
from ..config.options import SETTABLE, Option, find_option
from ..config.settings import Settings, SettingsLayer
from ..errors import InputError, Problem, SeedreamError
from .completion import offer_keys
from .context import process_console
from .flags import _SHARED, PlainCommand, _Every, _File, _Json, _Profile, _Project
from .keys import _address, _read_secret, key_app

if TYPE_CHECKING:
    from ..config.config_file import Document, SettingsFiles
    from ..config.load import LoadedSettings
    from ..output.console import Console
    from ..providers.contract import ProviderSpec


config_app = typer.Typer(
    **_SHARED,
    help="Settings and keys: what holds, where it comes from, and how to change it.\n\nExamples:\n\n\b\n"
    "  seedream config show\n  seedream config set provider ark\n  seedream config set profiles.wide.aspect 21:9\n"
    "  seedream config key set ark\n  seedream config init",
)

config_app.add_typer(key_app, name="key")


@config_app.callback(invoke_without_command=True)
def config(context: typer.Context) -> int:
    """Settings and keys."""
    if context.invoked_subcommand is None:
        process_console().out_exactly(context.get_help())
    return 0


# --- showing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting: its name, its effective value as text (None: not set), and its origin."""

    name: str
    value: str | None
    origin: str


@config_app.command(
    cls=PlainCommand,
    help="Print what is set, with its value and where that comes from; with --all or --json also what could be.",
)
def show(config: _File = None, profile: _Profile = None, every: _Every = False, json: _Json = False) -> int:  # noqa: FBT002
    """What is set, or can be; secrets are masked."""
    console = process_console()
    environment, reading = _read(config, profile, check_values=True)
    settings = setting_rows(reading.settings, read_environment(environment))
    _warn(reading.settings, console)
    if json:
        from ..output.json_output import print_json

        files = [{"path": str(document.path), "trusted": document.trusted} for document in reading.documents]
        rows = [{"key": row.name, "value": row.value, "origin": row.origin} for row in settings]
        object_ = {"schema": "seedream/1", "command": "config show", "files": files, "settings": rows}
        print_json(object_, console)
    else:
        _print_entries(settings, console, every=every)
    return _raise_problems(reading)


def _print_entries(settings: Sequence[SettingRow], console: Console, *, every: bool) -> None:
    """The settings as a table, without those that nobody has set unless `every` one is wanted."""
    from ..output.tables import print_table

    shown = [row for row in settings if every or row.origin not in {"-", "default"}]
    if shown:
        rows = [(row.name, _words(row.value), row.origin) for row in shown]
        print_table(console, ("setting", "value", "from"), rows)
    if len(shown) < len(settings):
        left = f"{len(settings) - len(shown)} settings are as they come"
        console.err(f"{left if shown else f'nothing is set: {left}'}; seedream config show --all lists them too")


@config_app.command(
    cls=PlainCommand,
    help="Print the value of one setting alone; nothing where it is not set.\n\nExamples:\n\n\b\n"
    "  seedream config get size\n  seedream config get providers.ark.base_url",
)
def get(
    key: Annotated[str, typer.Argument(metavar="KEY", show_default=False, autocompletion=offer_keys)],
    config: _File = None,
    profile: _Profile = None,
) -> int:
    """One setting."""
    environment, reading = _read(config, profile, check_values=False)
    if reading.problems:
        raise InputError(reading.problems, kind="config")
    console = process_console()
    _warn(reading.settings, console)
    name = _canonical(key)
    by_name = {row.name: row for row in setting_rows(reading.settings, read_environment(environment))}
    if name not in by_name and not _is_known(name.split(".")):
        raise _unknown(key, by_name)
    found = by_name.get(name)
    for line in found.value.split("\n") if found is not None and found.value is not None else ():
        console.out(line)
    return 0


@config_app.command(cls=PlainCommand, help="Print every place that is looked at, and whether it is there.")
def path(config: _File = None, json: _Json = False) -> int:  # noqa: FBT002
    """Print the paths of settings and keys."""
    from ..config.config_file import PROJECT_FILE, find_settings_files
    from ..config.key_store import STORE_FILE
    from ..config.trust import TRUST_FILE

    console, environment = process_console(), read_environ()
    files = find_settings_files(environment, file=config)
    folder = environment.config_folder
    listed = [
        ("user", files.user),
        ("project", files.project or Path(PROJECT_FILE).absolute()),
        ("keys", folder / STORE_FILE),
        ("trusted", folder / TRUST_FILE),
        ("state", environment.state_folder),
    ]
    if json:
        from ..output.json_output import print_json

        rows = [{"name": name, "path": str(place), "exists": os.path.lexists(place)} for name, place in listed]
        print_json({"schema": "seedream/1", "command": "config path", "places": rows}, console)
        return 0
    from ..output.tables import print_table

    rows_ = [(name, str(place), "there" if os.path.lexists(place) else "not there") for name, place in listed]
    print_table(console, ("place", "path", ""), rows_)
    return 0


def setting_rows(settings: Settings, environment: SettingsLayer) -> list[SettingRow]:
    """Every option and other setting with its effective value, secrets masked."""
    layer = environment.over(settings.layer)
    rows = []
    for name, option in _names().items():
        if option.key == "profile":
            rows.append(SettingRow("profile", settings.profile or None, settings.origins.get("profile") or "-"))
            continue
        value = _layer_value(layer, option)
        origin = layer.origins[option.key] if value is not None else "default" if option.default is not None else "-"
        rows.append(SettingRow(name, _masked(option.key, value if value is not None else option.default), origin))
    return rows + list(_other_rows(settings))


def _other_rows(settings: Settings) -> Iterable[SettingRow]:
    """Settings that are no option."""
    for provider, stated in settings.providers.items():
        values = dict(stated.values)
        values |= {"api_key_env": stated.key_variable} if stated.key_variable else {}
        # The arguments of a command may contain a secret.
        words = " ***" if stated.command[1:] else ""
        values |= {"api_key_command": stated.command[0] + words} if stated.command else {}
        for name, value in values.items():
            yield SettingRow(f"providers.{provider}.{name}", _masked(name, value), stated.origins[name])
    for price in reversed(settings.prices):
        model = f"{price.provider}/{price.model}" if price.provider else price.model
        yield SettingRow(f"prices.{model}", f"{price.amount:g}", price.origin)
    others: dict[str, str | None] = {
        "budget.daily": None if settings.daily_budget is None else f"{settings.daily_budget:g}",
        "ledger.enabled": "true" if settings.ledger_enabled else "false",
        "batch.confirm_above": None if settings.confirm_above is None else f"{settings.confirm_above:g}",
    }
    for name, shown_value in others.items():
        default = "default" if shown_value is not None else "-"
        yield SettingRow(name, shown_value, settings.origins.get(name, default))


def _layer_value(layer: SettingsLayer, option: Option) -> str | None:
    """The option's value as text, list items on lines of their own; None where it is not set."""
    if option.kind == "switch":
        found = layer.switches.get(option.key)
        return None if found is None else "true" if found else "false"
    if option.kind == "list":
        return "\n".join(layer.lists[option.key]) if option.key in layer.lists else None
    return layer.values.get(option.key)


def _masked(key: str, value: str | None) -> str | None:
    """The value without a password, which only URLs can contain."""
    if value is None or not (key.endswith("url") or key == "proxy"):
        return value
    from ..redaction import mask

    scheme, mark, rest = value.partition("://")
    # `mask` knows http(s) only; proxies have other schemes.
    return scheme + mark + mask(f"http://{rest}").removeprefix("http://") if mark else mask(value)


def _words(value: str | None) -> str:
    return "-" if value is None else value.replace("\n", ", ")


def _names() -> dict[str, Option]:
    """Every option that a file may set, by its name there."""
    return {option.name: option for option in SETTABLE if option.accepts("file")}


def _canonical(key: str) -> str:
    """A key with underscores, except in the names of profiles and models."""
    head, dot, rest = key.partition(".")
    return f"{head}.{rest.replace('-', '_')}" if dot and head == "providers" else key if dot else key.replace("-", "_")


def _is_known(parts: Sequence[str]) -> bool:
    """Whether there is a setting of this name, set or not."""
    from ..config.settings_reader import PROVIDER_KEYS

    if len(parts) == 1:
        option = find_option(parts[0])
        return option is not None and option.accepts("file")
    if parts[0] == "providers" and len(parts) == 3:
        from ..providers import PROVIDERS

        return parts[1] in PROVIDERS and parts[2].replace("-", "_") in PROVIDER_KEYS
    if parts[0] == "profiles" and len(parts) == 3:
        return _is_known(parts[2:])
    return parts[0] == "prices" or ".".join(parts) in {"budget.daily", "ledger.enabled", "batch.confirm_above"}


def _unknown(key: str, known: Iterable[str]) -> InputError:
    """An unknown key, with the nearest ones."""
    from ..text import nearest_hint

    listed = [*known, *(name for name in _names() if name not in known)]
    shown = key if len(key) <= 60 else f"{key[:60]}…"
    return InputError([Problem("key", f"no setting is called {shown}", nearest_hint(key, listed), origin="KEY")])


# --- changing ---------------------------------------------------------------------------------------------------------


@config_app.command(
    cls=PlainCommand,
    help="Set one setting, in the user's file or with --project in the project's.\n\nExamples:\n\n\b\n"
    "  seedream config set size 4K\n  seedream config set providers.ark.model 4.5\n"
    "  seedream config set profiles.draft.size 1K --project\n  seedream config set prices.4.5 0.04",
    context_settings={"ignore_unknown_options": True},
)
def set(  # noqa: A001 - the name of the command
    key: Annotated[str, typer.Argument(metavar="KEY", show_default=False, autocompletion=offer_keys)],
    value: Annotated[list[str], typer.Argument(metavar="VALUE", help="Several for a list.", show_default=False)],
    project: _Project = False,  # noqa: FBT002
    config: _File = None,
) -> int:
    """Change one setting, checked before it is written. Comments and order of the file are kept."""
    console, environment = process_console(), read_environ()
    keys = _split(key)
    if not _is_known(keys):
        raise _refusal(key)
    target = _EditedFile.of(environment, config, project=project)
    old = target.parse()
    written = target.change(keys, _toml_value(keys, value))
    _check_change(target, environment, old, written)
    target.write(written, environment)
    console.err(f"set {key} in {target.shown}")
    document = target.document(written, environment)
    ignored = [] if document is None else _problems_of([document], environment).settings.warnings
    if any(problem.field == ".".join(keys) for problem in ignored):
        console.err(f"warning: {target.shown} is not trusted, so {key} is ignored until `seedream config trust`")
    return 0


@config_app.command(cls=PlainCommand, help="Take one setting out of the user's file, or with --project the project's.")
def unset(
    key: Annotated[str, typer.Argument(metavar="KEY", show_default=False, autocompletion=offer_keys)],
    project: _Project = False,  # noqa: FBT002
    config: _File = None,
) -> int:
    """Remove one setting, also an unknown one, which may be a typing mistake."""
    environment = read_environ()
    target = _EditedFile.of(environment, config, project=project)
    written = target.change(_split(key), None)
    if written is None:
        hint = "seedream config show tells where each setting comes from"
        raise InputError([Problem("key", f"{key} is not set in {target.shown}", hint, origin="KEY")])
    target.write(written, environment)
    process_console().err(f"took {key} out of {target.shown}")
    return 0


@config_app.command(cls=PlainCommand, help="Let the project's seedream.toml, as it is now, set everything.")
def trust() -> int:
    """Trust the nearest project file until it changes."""
    from ..config.config_file import find_project, read_document, shown_path
    from ..config.trust import load_trusted, set_trust

    console, environment = process_console(), read_environ()
    place, problems = find_project(None, environment.home), list[Problem]()
    if place is None:
        raise InputError([Problem("project", "there is no seedream.toml here or above", origin="config trust")])
    document = read_document(place, shown_path(place, environment.home), problems, is_project=True)
    if document is None:
        raise InputError(problems, kind="config")
    before = load_trusted(environment).get(str(place.resolve()))
    untrusted = _problems_of([replace(document, trusted=False)], environment).settings.warnings
    for problem in untrusted:
        console.err(f"note: {problem.origin} may now set {problem.field}")
    set_trust(environment, place, document.sha256)
    console.err(f"{'already trusted' if before == document.sha256 else 'trusted'}: {place}, until it changes")
    return 0


@config_app.command(cls=PlainCommand, help="Trust the project's seedream.toml no longer.")
def untrust() -> int:
    """Stop trusting the nearest project file."""
    from ..config.config_file import find_project
    from ..config.trust import load_trusted, set_trust

    environment = read_environ()
    place = find_project(None, environment.home)
    if place is None or str(place.resolve()) not in load_trusted(environment):
        process_console().err("nothing here was trusted")
        return 0
    set_trust(environment, place, None)
    process_console().err(f"no longer trusted: {place}")
    return 0


@dataclass(frozen=True, slots=True)
class _EditedFile:
    """The settings file to change, with its present bytes."""

    path: Path
    shown: str
    raw: bytes
    is_project: bool

    @classmethod
    def of(cls, environment: Environment, file: str | None, *, project: bool) -> _EditedFile:
        """The user's file, or the project's (in the working folder where there is none). Raises `InputError`."""
        from ..config.config_file import PROJECT_FILE, find_settings_files, shown_path

        files: SettingsFiles = find_settings_files(environment, file=file)
        place = (files.project or Path.cwd() / PROJECT_FILE) if project else files.user
        if str(place) == "-":
            raise InputError([Problem("config", "standard input cannot be changed", "name a file", origin="--config")])
        shown = shown_path(place, environment.home)
        if project and place.is_symlink() and not _stays_in_folder(place):
            # The symlink may come with a cloned repository, and the user did not name its target.
            hint = "change the file itself, by its own name with --config, or put a file in the link's place"
            problem = Problem("config", f"{shown} is a link that leads out of its folder", hint, origin=shown)
            raise InputError([problem], kind="config")
        try:
            raw = place.read_bytes() if os.path.lexists(place) else b""
        except OSError as error:
            problem = Problem("config", f"cannot read {shown}: {error.strerror}", origin=shown)
            raise InputError([problem], kind="config") from error
        return cls(place, shown, raw, project)

    def parse(self) -> Document | None:
        """The file parsed; None for invalid TOML, which `change` reports."""
        from ..config.config_file import parse_document

        return parse_document(self.raw, self.path, self.shown, [], is_project=self.is_project)

    def document(self, raw: bytes, environment: Environment) -> Document | None:
        """The new bytes parsed, with `trusted` as it would be."""
        from ..config.config_file import parse_document
        from ..config.trust import load_trusted

        document = parse_document(raw, self.path, self.shown, [], is_project=self.is_project)
        known = load_trusted(environment).get(str(self.path.resolve()))
        return replace(document, trusted=known == document.sha256) if document else None

    def change(self, keys: Sequence[str], value: Any) -> bytes:
        """The file's bytes with one key set or, for None, removed. Raises `InputError` where it cannot be.

        Errors in the file's TOML are reported with their line.
        """
        from ..config.config_file import parse_document

        problems: list[Problem] = []
        if parse_document(self.raw, self.path, self.shown, problems) is None:
            raise InputError(problems, kind="config")
        import tomlkit

        document = tomlkit.parse(self.raw.decode("utf-8-sig"))
        table = _table_at(document, keys[:-1], make=value is not None)
        name = None if table is None else _key_in(table, keys[-1], in_prices=keys[0] == "prices")
        if value is not None and table is not None:
            if isinstance(table.get(name or keys[-1]), dict):
                problem = Problem(
                    "key", f"{'.'.join(keys)} is a table in {self.shown}", "name a key in it", origin="KEY"
                )
                raise InputError([problem])
            table[name or keys[-1]] = value
        elif table is None or name is None:
            hint = "seedream config show tells where each setting comes from"
            shown = ".".join(keys)
            raise InputError([Problem("key", f"{shown} is not set in {self.shown}", hint, origin="KEY")])
        else:
            del table[name]
        return tomlkit.dumps(document).encode()

    def write(self, raw: bytes, environment: Environment) -> None:
        """Write the file. A trusted project file stays trusted, since its user changed it."""
        from ..config.config_file import parse_document
        from ..config.trust import load_trusted, set_trust
        from ..storage.filesystem import atomic_write

        before = parse_document(self.raw, self.path, self.shown, [], is_project=self.is_project)
        was_trusted = before is not None and load_trusted(environment).get(str(self.path.resolve())) == before.sha256
        atomic_write(self.path, raw)
        after = parse_document(raw, self.path, self.shown, [], is_project=self.is_project)
        if self.is_project and was_trusted and after is not None:
            set_trust(environment, self.path, after.sha256)


def _stays_in_folder(link: Path) -> bool:
    """Whether a symlink's target is in the symlink's folder, or below."""
    try:
        return link.resolve().is_relative_to(link.parent.resolve())
    except (OSError, RuntimeError):
        # RuntimeError: a loop of symlinks.
        return False


def _table_at(document: Any, keys: Sequence[str], *, make: bool) -> Any:
    """The table under these keys; with `make` created where it is missing, else None."""
    import tomlkit

    table = document
    for position, key in enumerate(keys):
        if key not in table:
            if not make:
                return None
            # No empty [profiles] above [profiles.wide].
            table.add(key, tomlkit.table(is_super_table=position + 1 < len(keys)))
        table = table[key]
        if not isinstance(table, dict):
            raise InputError([Problem("key", f"{'.'.join(keys)} is no table in the file", origin="KEY")])
    return table


def _key_in(table: Mapping[str, Any], key: str, *, in_prices: bool) -> str | None:
    """The table's name of a key: with dashes or underscores, or the same side of a switch; None where it is missing."""
    if key in table or in_prices:
        return key if key in table else None
    meant = find_option(key)
    for name in table:
        other = find_option(name)
        same = meant is not None and other is not None and (other.key, other.off) == (meant.key, meant.off)
        if same or name.replace("-", "_") == key.replace("-", "_"):
            return name
    return None


def _split(key: str) -> list[str]:
    """A dotted key's parts. A model's name may contain dots, so all after `prices.` is one part."""
    head, dot, rest = key.partition(".")
    if head == "prices" and dot:
        return [head, rest.strip("\"'")]
    parts = key.split(".")
    return [*parts[:-1], parts[-1].replace("-", "_")]


def _toml_value(keys: Sequence[str], words: Sequence[str]) -> Any:
    """The typed words as a TOML value. Raises `InputError` for several words where one is expected."""
    option = None if keys[0] in {"prices", "budget", "ledger", "batch"} and len(keys) > 1 else find_option(keys[-1])
    if option is not None and option.kind == "list":
        return list(words)
    if len(words) > 1:
        hint = "put text with spaces in quotes"
        raise InputError([Problem("value", f"{'.'.join(keys)} takes one value", hint, origin="VALUE")])
    text = words[0]
    if (option is not None and option.kind == "switch") or (keys[0] == "ledger" and len(keys) > 1):
        try:
            return switch(text)
        except BadValueError as error:
            raise InputError([Problem("value", error.message, error.hint, origin="VALUE")]) from error
    if option is None or option.is_number:
        return _number(text) if option is not None or keys[0] in {"prices", "budget", "batch"} else text
    return text


def _number(text: str) -> int | float | str:
    """The text as a number; unchanged where it is none, which the checks then refuse."""
    try:
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return text


def _check_change(target: _EditedFile, environment: Environment, old: Document | None, raw: bytes) -> None:
    """Raise `InputError` for a change that adds problems, by the rules that the file is read with."""
    document = target.document(raw, environment)
    if document is None:
        raise InputError([Problem("key", "the file would be no TOML any more", "change it by hand", origin="KEY")])

    def problems_with(one: Document) -> list[Problem]:
        # As trusted: the values of ignored settings are checked too.
        return list(_problems_of([replace(one, trusted=True)], environment).problems)

    before = {(problem.field, problem.message) for problem in (problems_with(old) if old else ())}
    new = [problem for problem in problems_with(document) if (problem.field, problem.message) not in before]
    if new:
        raise InputError([replace(problem, origin="VALUE", code="validation") for problem in new])


def _problems_of(documents: list[Document], environment: Environment) -> LoadedSettings:
    from ..config.load import combine

    # The chosen profile may be in another file.
    bare = Environment({name: value for name, value in environment.environ.items() if name != "SEEDREAM_PROFILE"})
    reading = combine(bare, documents, [])
    return replace(reading, problems=tuple(p for p in reading.problems if p.field != "profile"))


def _refusal(key: str) -> InputError:
    """The error for an unknown key, without quoting what may be a secret."""
    if any(word in key.lower().replace("-", "_") for word in ("api_key", "token", "secret", "password")):
        hint = "seedream config key set PROVIDER asks for it, or reads it from standard input"
        return InputError([Problem("key", "keys are not kept in settings files", hint, origin="KEY")])
    return _unknown(key, _names())


# --- the first steps --------------------------------------------------------------------------------------------------

_PROOF = "a red fox in the snow"


@config_app.command(cls=PlainCommand, help="Set the tool up in a short dialogue: provider, key, folder, a test image.")
def init(context: typer.Context) -> int:
    """Ask three questions, store the answers and make a sandbox image."""
    from ..providers import PROVIDERS, load

    console = process_console()
    if not (console.stdin_is_terminal and console.stderr_is_terminal):
        hint = "seedream config set provider NAME; seedream config key set NAME; seedream config set output FOLDER"
        message = "config init asks questions, and there is no terminal"
        raise InputError([Problem("init", message, f"without one: {hint}", origin="config init")], kind="usage")
    offered = [name for name in PROVIDERS if not load(name).spec.offline]
    console.err(f"providers: {', '.join(offered)}; sandbox needs no key")
    provider = _ask("provider", offered[0])
    load(provider)
    _set("provider", provider)
    spec = load(provider).spec
    if spec.needs_base_url and not spec.offline:
        _set(f"providers.{provider}.base_url", _ask("base URL", ""))
    if not spec.offline:
        _ask_key(spec, console)
    folder = _ask("folder for images", "images")
    _set("output", folder if folder.endswith(("/", os.sep)) else f"{folder}/")
    console.err("an image from the sandbox, as proof:")
    words = ["generate", _PROOF, "--provider", "sandbox", "--output", os.path.expanduser(folder)]  # noqa: PTH111
    code = int(context.find_root().command.main(args=words, prog_name="seedream", standalone_mode=False) or 0)
    if code == 0:
        console.err('ready: seedream generate "a lighthouse at dusk"')
    return code


def _ask(question: str, default: str) -> str:
    answer = typer.prompt(question, default=default or None, err=True)
    return str(answer).strip()


def _ask_key(spec: ProviderSpec, console: Console) -> None:
    """Store a key if one is typed; else print how to set it."""
    from ..config.key_store import store_key

    typed = _read_secret(f"{spec.name}, empty for later")
    if not typed.strip():
        console.err(f"no key now: seedream config key set {spec.name}, or set {spec.key_variables[0]}")
        return
    _, url = _address(spec.name, None, None)
    row, trouble = store_key(spec, url, typed, read_environ())
    console.err(f"stored in {row.words}" + (f" ({trouble})" if trouble else ""))


def _set(key: str, value: str) -> None:
    set(key, [value])


# --- shared -----------------------------------------------------------------------------------------------------------


def _read(file: str | None, profile: str | None, *, check_values: bool) -> tuple[Environment, LoadedSettings]:
    """The environment, and all settings with their problems."""
    from ..config.config_file import find_settings_files
    from ..config.load import read

    environment = read_environ()
    files = find_settings_files(environment, file=file)
    return environment, read(environment, files, profile=profile, check_values=check_values)


def _warn(settings: Settings, console: Console) -> None:
    """Print warnings about an untrusted file."""
    for problem in settings.warnings:
        console.err(f"warning: {problem.origin}: {problem.message}")
    if settings.warnings:
        console.err(f"  hint: {settings.warnings[-1].hint}")


def _raise_problems(reading: LoadedSettings) -> int:
    """Raise `InputError` where the files have problems; else 0."""
    if not reading.problems:
        return 0
    error: SeedreamError = InputError(reading.problems, kind="config")
    raise error
