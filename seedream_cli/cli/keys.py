"""`seedream config key`: store and delete keys, show where they come from. Never shows a whole key."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.environment import Environment, read_environ
from ..errors import ConfigError, InputError, Problem
from .completion import offer_providers, words
from .context import process_console
from .flags import _SHARED, FlagValues, PlainCommand, _File, _Json

if TYPE_CHECKING:
    from ..output.console import Console
    from ..providers.contract import ProviderSpec


key_app = typer.Typer(
    **_SHARED,
    help="Keys: kept in the system's keyring, or in a file that only you can read.\n\nExamples:\n\n\b\n"
    "  seedream config key set ark\n  pass show ark | seedream config key set ark\n  seedream config key status",
)

_Provider = Annotated[
    str,
    typer.Argument(
        metavar="PROVIDER", help="cometapi, ark, … as `--provider` takes it.", autocompletion=offer_providers
    ),
]

_BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="For this address, not the provider's own.", show_default=False),
]


@key_app.callback(invoke_without_command=True)
def key(context: typer.Context) -> int:
    """Keys."""
    if context.invoked_subcommand is None:
        process_console().out_exactly(context.get_help())
    return 0


@key_app.command(
    "set",
    cls=PlainCommand,
    help="Keep a key: it is asked for without an echo, or read from standard input. It is never an argument.",
)
def key_set(
    provider: _Provider,
    base_url: _BaseUrl = None,
    store: Annotated[
        str,
        typer.Option(
            "--store",
            metavar="auto|keyring|file",
            help="Where to; auto takes a keyring if there is one.",
            autocompletion=words("auto", "keyring", "file"),
        ),
    ] = "auto",
    config: _File = None,
) -> int:
    """Store one key for one base URL."""
    from ..config.key_store import store_key
    from ..text import nearest_hint

    if store not in {"auto", "keyring", "file"}:
        hint = nearest_hint(store, ("auto", "keyring", "file"))
        raise InputError([Problem("store", f"{store!r} is no place", hint, origin="--store")])
    console = process_console()
    spec, url = _address(provider, base_url, config)
    wanted: Any = None if store == "auto" else store
    entry, trouble = store_key(spec, url, _read_secret(spec.name), read_environ(), store=wanted)
    if trouble:
        console.err(f"note: {trouble}")
    location = "the system keyring" if entry.store == "keyring" else str(_store_path())
    console.err(f"stored the key for {spec.name} in {location}; it is sent to {_server(entry.base_url or url)} only")
    return 0


@key_app.command("unset", cls=PlainCommand, help="Forget the stored key of a provider.")
def key_unset(provider: _Provider, base_url: _BaseUrl = None, config: _File = None) -> int:
    """Delete one stored key."""
    from ..config.key_store import remove_key

    spec, url = _address(provider, base_url, config)
    gone, trouble = remove_key(spec, url, read_environ())
    if not gone:
        hint = "seedream config key status tells which keys there are"
        raise ConfigError(f"no key is stored for {spec.name} at {_server(url)}", hint=hint)
    if trouble:
        raise ConfigError(f"the key is no longer used, but may still be in the keyring: {trouble}")
    process_console().err(f"forgot {' and '.join(item.words for item in gone)} of {spec.name}")
    return 0


@key_app.command(
    "status", cls=PlainCommand, help="Print where each provider's key comes from, and its last four characters."
)
def key_status(config: _File = None, json: _Json = False) -> int:  # noqa: FBT002
    """Print the source of each provider's key."""
    from ..config.key_store import load_store
    from ..providers import specs

    console = process_console()
    environment = FlagValues({"config": config} if config else {}).environment()
    rows = [_status(spec, environment) for spec in specs() if not spec.offline]
    _print_status(rows, console, json=json)
    # Raises once, after the table, where the stored keys cannot be read.
    load_store(environment)
    return 0


def _print_status(rows: Sequence[tuple[str, str, str, str, str]], console: Console, *, json: bool) -> None:
    """Print the rows as a table or JSON object."""
    if json:
        from ..output.json_output import print_json

        names = ("provider", "source", "last4", "address", "problem")
        listed = [dict(zip(names, row, strict=True)) for row in rows]
        print_json({"schema": "seedream/1", "command": "config key status", "keys": listed}, console)
        return
    from ..output.tables import print_table

    shown = [
        (name, source or "none", f"…{last}" if last else "-", location, why)
        for name, source, last, location, why in rows
    ]
    print_table(console, ("provider", "key from", "ends in", "for", "note"), shown)


def _status(spec: ProviderSpec, environment: Environment) -> tuple[str, str, str, str, str]:
    """Provider, source of its key, last four characters, server, and error ("" where there is just no key)."""
    from ..config.credentials import find_key
    from ..config.settings import complete
    from ..providers.base_url import full_url
    from ..redaction import check_key

    options = complete(FlagValues().options(environment), spec.name, environment.settings)
    url = options.values.get("base_url") or spec.base_url
    if not url:
        return spec.name, "", "", "-", "has no address of its own: give it a base_url"
    whole = full_url(spec, url)
    try:
        found = find_key(options, spec, whole, environment)
        value = check_key(found.value)
    except ConfigError as error:
        why = "" if error.message.startswith(f"no key for {spec.name}: ") and "keyring" not in error.message else error
        return spec.name, "", "", _server(whole), str(why)
    # Four characters of a short key would reveal too much.
    return spec.name, found.source, value[-4:] if len(value) >= 12 else "", _server(whole), ""


def _address(provider: str, base_url: str | None, file: str | None) -> tuple[ProviderSpec, str]:
    """The provider and the whole base URL that a key is for: the one given, else the one in use."""
    from ..config.settings import complete
    from ..providers import load
    from ..providers.base_url import full_url

    spec = load(provider.strip().lower()).spec
    if spec.offline:
        raise InputError([Problem("provider", f"{spec.name} needs no key", origin="PROVIDER")])
    if base_url is None:
        environment = FlagValues({"config": file} if file else {}).environment()
        base_url = complete(FlagValues().options(environment), spec.name, environment.settings).values.get("base_url")
    return spec, full_url(spec, base_url)


def _server(url: str) -> str:
    from ..providers.base_url import server_of

    return server_of(url)


def _store_path() -> Path:
    from ..config.key_store import STORE_FILE

    return read_environ().config_folder / STORE_FILE


def _read_secret(provider: str) -> str:
    """Read a key from the terminal without echo, else from standard input."""
    if sys.stdin is not None and sys.stdin.isatty():
        import getpass

        return getpass.getpass(f"key for {provider} (not shown): ")
    return sys.stdin.buffer.read(64 * 1024).decode("utf-8-sig", errors="replace") if sys.stdin else ""
