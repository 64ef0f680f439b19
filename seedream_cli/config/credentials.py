"""API keys: where they are looked up, where they are stored, and which server each may be sent to.

Looked up in this order: `--api-key-file`, SEEDREAM_API_KEY, the provider's variables (`api_key_env` first),
`api_key_command`, the keys stored by `config key set` in the system's keyring or in a file of mode 0600.
A stored key, and one that a command prints, is sent only to the server it was stored for.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

from ..errors import ConfigError, FileError, InputError
from ..providers import PROVIDERS, load
from ..providers.base_url import full_url, is_same_server, server_of
from ..providers.contract import ProviderSpec
from ..redaction import mask, secret_forms
from ..request.image_request import OptionValues
from ..storage import filesystem
from ..storage.filesystem import atomic_write
from .environment import PREFIX, Environment, environment_without
from .key_store import Stored, load_store
from .keyring import ask_keyring
from .settings import Key, ProviderSettings

ADDRESS_FILE = "addresses.json"

_KNOWN_MOST = 100

COMMAND_S = 30.0
"""Most seconds for `api_key_command`."""

Kind = Literal["file", "generic", "variable", "bound"]


# --- which key may go where -------------------------------------------------------------------------------------------


def may_send(kind: Kind, *, url: str, own: str, by_user: bool, bound_to: str = "", stated: bool = True) -> bool:
    """Whether a key may be sent to `url`, for a provider whose own base URL is `own` ("": it has none).

    `kind`: `file` is --api-key-file, `generic` SEEDREAM_API_KEY, `variable` one of the provider's variables, `bound` a
    stored key or a command's, which belongs to the server `bound_to` ("": the provider's own). `by_user`: the URL comes
    from the command line, the environment, the user's file or a trusted one, so variables may be sent to it. To a URL
    of a prompt file or a table only a `file` key is sent, and to one that no option of this run states (not `stated`),
    such as one in a ledger, only a key bound to it.
    """
    if kind == "bound":
        return is_same_server(url, bound_to or own)
    return is_same_server(url, own) or (stated and (kind == "file" or by_user))


def is_trusted_address(options: OptionValues, spec: ProviderSpec, base_url: str, environment: Environment) -> bool:
    """Whether a request with a key may be sent to a URL that was read from a ledger or a stored reply.

    Such a file may come from somebody else, who would be sent the user's key. So the server must be the provider's own,
    one that this run's options or settings name, or one that a key is stored for.
    """
    stated = _stated_url(options, spec, environment)
    if spec.offline or is_same_server(base_url, spec.base_url) or is_same_server(base_url, stated):
        return True
    return any(one.provider == spec.name and is_same_server(base_url, one.base_url) for one in load_store(environment))


def remember_address(spec: ProviderSpec, base_url: str, environment: Environment) -> None:
    """Record a base URL that the user gave, so that `recover` may send a key there without the option."""
    known = _known_addresses(environment)
    server = [spec.name, server_of(base_url)]
    if spec.offline or server in known or is_same_server(base_url, spec.base_url):
        return
    text = json.dumps({"schema": 1, "addresses": [*known, server][-_KNOWN_MOST:]}, indent=1) + "\n"
    # Not fatal: `recover` then needs --base-url again.
    with contextlib.suppress(FileError):
        atomic_write(environment.config_folder / ADDRESS_FILE, text.encode())


def is_known_address(spec: ProviderSpec, base_url: str, environment: Environment) -> bool:
    """Whether `remember_address` recorded this server for the provider."""
    known = _known_addresses(environment)
    return any(name == spec.name and is_same_server(base_url, server) for name, server in known)


def _known_addresses(environment: Environment) -> list[list[str]]:
    try:
        found = json.loads((environment.config_folder / ADDRESS_FILE).read_bytes())["addresses"]
        return [[str(name), str(server)] for name, server in found]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _is_for_other(options: OptionValues, spec: ProviderSpec) -> bool:
    """Whether the options are for another provider, as when `recover` finds requests of several in a ledger."""
    return options.values.get("provider", spec.name).strip().lower() != spec.name


def _stated_url(options: OptionValues, spec: ProviderSpec, environment: Environment) -> str:
    """The base URL that the options or settings state for a provider; "" where it is no URL."""
    values = environment.settings.provider(spec.name).values if _is_for_other(options, spec) else options.values
    try:
        return full_url(spec, values.get("base_url"))
    except InputError:
        return ""


# --- looking a key up -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A possible source of a key. `read` returns the key, or None where the source holds none."""

    kind: Kind
    source: str
    read: Callable[[], Key | None]
    bound_to: str = ""


@dataclass(frozen=True, slots=True)
class _KeyLookup:
    """What a key is looked up for: the provider, the whole URL, and who set both."""

    spec: ProviderSpec
    url: str
    url_origin: str
    url_by_user: bool
    url_stated: bool
    provider_by_other: bool
    key_file: str | None
    key_file_kind: Kind


def find_key(
    options: OptionValues, spec: ProviderSpec, base_url: str, environment: Environment, *, is_known: bool = False
) -> Key:
    """The first key that may be sent to `base_url` (whole, with its version). `is_known`: see `is_known_address`.

    Raises `ConfigError` where there is none, with the sources looked at and the keys that may not be sent there.
    """
    lookup = _key_lookup(options, spec, base_url, environment, is_known=is_known)
    refused: list[str] = []
    troubles: list[str] = []
    for candidate in _candidates(lookup, environment, troubles):
        allowed = may_send(
            candidate.kind,
            url=lookup.url,
            own=spec.base_url,
            by_user=lookup.url_by_user,
            bound_to=candidate.bound_to,
            stated=lookup.url_stated,
        )
        if not allowed or (lookup.provider_by_other and candidate.kind == "generic"):
            refused.append(candidate.source)
            continue
        key = candidate.read()
        if key is not None:
            return _with_note(key, candidate, lookup)
    raise _missing(lookup, environment, refused, troubles)


def _with_note(key: Key, candidate: _Candidate, lookup: _KeyLookup) -> Key:
    """The key, with a note where it is sent to another server than the provider's own."""
    own = lookup.spec.base_url
    if candidate.kind == "bound" or not own or is_same_server(lookup.url, own):
        return key
    origin = f" (from {lookup.url_origin})" if lookup.url_origin else ""
    note = f"the key of {key.source} goes to {server_of(lookup.url)}{origin}, not to {server_of(own)}"
    return replace(key, note="; ".join(part for part in (note, key.note) if part))


def _key_lookup(
    options: OptionValues, spec: ProviderSpec, base_url: str, environment: Environment, *, is_known: bool
) -> _KeyLookup:
    settings = environment.settings

    def by_user(key: str) -> bool:
        origin = options.origins.get(key, "")
        stated = (settings.layer.origins.get(key), settings.provider(spec.name).origins.get(key))
        return key not in options.values or not origin or origin.startswith(("--", "$")) or origin in stated

    overruled = bool(settings.own_provider)
    overruled &= options.origins.get("provider") == settings.layer.origins.get("provider", "-")
    is_for_other = _is_for_other(options, spec)
    is_stated = is_same_server(base_url, _stated_url(options, spec, environment))
    kind: Kind = "file" if by_user("api_key_file") else "variable"
    if overruled and options.origins.get("api_key_file") != "--api-key-file":
        kind = "generic"
    kind = "generic" if is_for_other else kind
    return _KeyLookup(
        spec,
        base_url,
        options.origins.get("base_url", "") if "base_url" in options.values else "",
        is_known or (by_user("base_url") and is_stated),
        is_known or is_stated,
        # SEEDREAM_API_KEY belongs to the provider that the user chose.
        overruled or is_for_other,
        options.values.get("api_key_file"),
        kind,
    )


def _candidates(lookup: _KeyLookup, environment: Environment, troubles: list[str]) -> Iterator[_Candidate]:
    """Every possible source, in order; errors of reading one are added to `troubles`."""
    spec, settings = lookup.spec, environment.settings.provider(lookup.spec.name)
    if lookup.key_file is not None:
        yield _Candidate(
            lookup.key_file_kind, f"the key file {lookup.key_file}", partial(_read_key_file, lookup.key_file)
        )
    for variable in (PREFIX + "API_KEY", *variables_of(spec, environment)):
        value = environment.environ.get(variable, "")
        if value.strip():
            kind: Kind = "generic" if variable == PREFIX + "API_KEY" else "variable"
            yield _Candidate(kind, f"${variable}", partial(Key, value, f"${variable}"))
    if settings.command:
        bound = full_url(spec, settings.command_base_url) if settings.command_base_url else ""
        yield _Candidate("bound", "api_key_command", partial(_read_command, settings, environment), bound)
    for stored in load_store(environment):
        if stored.provider == spec.name:
            yield _Candidate("bound", stored.words, partial(_read_stored, stored, troubles), stored.base_url)


def variables_of(spec: ProviderSpec, environment: Environment) -> tuple[str, ...]:
    """The provider's variables, the one of `api_key_env` first."""
    own = environment.settings.provider(spec.name).key_variable
    return tuple(dict.fromkeys(name for name in (own, *spec.key_variables) if name))


def _read_key_file(name: str) -> Key:
    """The key in a file, with a note where others can read it. No error: mounted secrets are often mode 0644."""
    key = read_key_file(name)
    if not key.value.strip():
        hint = "something else may have read it before: give the prompt another way" if name == "-" else ""
        raise ConfigError(f"{key.source} holds no key", kind="auth", hint=hint or "check --api-key-file")
    path = Path(name).expanduser()
    if name == "-" or os.name == "nt" or not path.is_file() or not stat.S_IMODE(path.stat().st_mode) & 0o077:
        return key
    return replace(key, note=f"others can read the key file {path}: chmod 600 {shlex.quote(str(path))}")


def _read_command(settings: ProviderSettings, environment: Environment) -> Key:
    named = (one.key_variable for one in (settings, *environment.settings.providers.values()))
    return Key(run_command(settings.command, settings.command_folder, tuple(sorted(set(named)))), "api_key_command")


def _read_stored(stored: Stored, troubles: list[str]) -> Key | None:
    if stored.store == "file":
        return Key(stored.key, stored.words)
    value, trouble = ask_keyring("get", stored.user)
    if value is None:
        troubles.append(trouble or "the system keyring no longer holds the key")
        return None
    return Key(value, stored.words)


def _missing(lookup: _KeyLookup, environment: Environment, refused: list[str], troubles: list[str]) -> ConfigError:
    """The error for a missing key, with how to set one."""
    spec, names = lookup.spec, (PREFIX + "API_KEY", *variables_of(lookup.spec, environment))
    if not refused:
        message = f"no key for {spec.name}: looked at {', '.join(names)}, stored keys"
        message = "; ".join([message, *troubles])
        hint = f"set one of them, run `seedream config key set {spec.name}`, or give --api-key-file FILE"
        return ConfigError(message, kind="auth", hint=f"{hint}; without a key: {SANDBOX_LINE}")
    if lookup.provider_by_other and refused == [f"${PREFIX}API_KEY"]:
        message = f"the key in {refused[0]} was not sent: an untrusted {spec.name} in the project file overrules yours"
        return ConfigError(message, kind="auth", hint=f"name the --provider, or read the file and `{_TRUST}`")
    server = server_of(lookup.url)
    origin = f" (from {lookup.url_origin})" if lookup.url_origin else ""
    message = f"no key was sent to {server}{origin}: what is in {', '.join(refused)} belongs to another"
    store = f"seedream config key set {spec.name} --base-url {server}"
    hint = f"give the key for this address: --api-key-file FILE, {names[-1]}, or `{store}`"
    if not lookup.url_by_user:
        hint = "give --base-url yourself, or the key for it with --api-key-file FILE"
    return ConfigError("; ".join([message, *troubles]), kind="auth", hint=hint)


_TRUST = "seedream config trust"


def choose_keyed_provider(specs: Sequence[ProviderSpec], environment: Environment) -> tuple[str, str]:
    """The first provider that has a key, and the key's source: variables first, then commands and stored keys."""
    online = [spec for spec in specs if not spec.offline]
    try:
        return choose_provider({spec.name: variables_of(spec, environment) for spec in online}, environment)
    except ConfigError as error:
        if error.kind != "auth":
            raise
        found = _configured_provider(online, environment)
        if found is None:
            raise
        return found


def _configured_provider(specs: Sequence[ProviderSpec], environment: Environment) -> tuple[str, str] | None:
    for spec in specs:
        if environment.settings.provider(spec.name).command:
            return spec.name, "its api_key_command"
    stored = {entry.provider: entry.words for entry in reversed(load_store(environment))}
    return next(((spec.name, stored[spec.name]) for spec in specs if spec.name in stored), None)


# --- a command's key --------------------------------------------------------------------------------------------------


def secret_variables(more: Iterable[str] = ()) -> set[str]:
    """The variables that may hold a key: every provider's, our own, and those that a user's settings name."""
    known = {name for provider in PROVIDERS for name in load(provider).spec.key_variables}
    return {f"{PREFIX}API_KEY", *known, *more}


def known_keys(environment: Environment) -> set[str]:
    """Every key that can be read without running a command or the keyring, to mask in output."""
    specs = [load(name).spec for name in PROVIDERS]
    names = secret_variables(name for spec in specs for name in variables_of(spec, environment))
    found = {environment.environ.get(name, "").strip() for name in names}
    with contextlib.suppress(ConfigError):
        found |= {stored.key.strip() for stored in load_store(environment)}
    file = environment.option("api_key_file")
    with contextlib.suppress(ConfigError):
        found |= {read_key_file(file).value.strip()} if file and file != "-" else set()
    return found - {""}


@cache
def run_command(words: tuple[str, ...], folder: str, more: tuple[str, ...] = ()) -> str:
    """What a command prints; cached, run without a shell. Raises `ConfigError` with the end of its stderr, masked.

    It runs in the folder of the file that names it, so that a relative path means the same program everywhere.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the command of a file that the user wrote or trusts
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
            cwd=folder,
            env=environment_without(secret_variables(more)),
        )
    except subprocess.TimeoutExpired as error:
        message = f"api_key_command gave no key in {COMMAND_S:.0f} s: {words[0]}"
        raise ConfigError(message, hint="run it by hand: it may be waiting for a password") from error
    except (OSError, ValueError) as error:
        reason = filesystem.reason(error) if isinstance(error, OSError) else "its name cannot be used"
        hint = "name it with its full path; no shell reads it, so write sh -c '…' for pipes"
        raise ConfigError(f"cannot run api_key_command {words[0]}: {reason}", hint=hint) from error
    printed = done.stdout.decode(errors="replace").strip()
    if done.returncode or not printed:
        lines = mask(done.stderr.decode(errors="replace"), secret_forms(printed)).strip()[-300:]
        ended = f"ended with {done.returncode}" if done.returncode else "printed nothing"
        raise ConfigError(f"api_key_command {words[0]} {ended}" + (f": {lines}" if lines else ""))
    return printed


def read_key_file(name: str) -> Key:
    """The key in a file, or on standard input for `-`. One trailing newline and a BOM are taken off."""
    if name == "-":
        return Key(_read_stdin_line(), "standard input")
    path = Path(name).expanduser()
    try:
        return Key(path.read_text(encoding="utf-8-sig", errors="replace"), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}", hint="check --api-key-file") from error


@functools.cache
def _read_stdin_line() -> str:
    """The first line of standard input; cached, since every job of a run looks its key up."""
    if sys.stdin is None:
        raise ConfigError("cannot read the key: standard input is closed", hint="check --api-key-file")
    return sys.stdin.readline()


SANDBOX_LINE = 'seedream generate "a red fox in the snow" --provider sandbox'
"""Needs no key."""


def choose_provider(variables: Mapping[str, Sequence[str]], environment: Environment) -> tuple[str, str]:
    """The first provider of `variables` with a key in the environment, and the variable's name."""
    for provider, names in variables.items():
        for name in names:
            if environment.environ.get(name, "").strip():
                return provider, f"${name}"
    looked = ", ".join(dict.fromkeys(name for names in variables.values() for name in names))
    if environment.environ.get(PREFIX + "API_KEY", "").strip():
        raise ConfigError(
            f"${PREFIX}API_KEY is set, but not for which provider",
            hint=f"add --provider NAME or set {PREFIX}PROVIDER: {', '.join(variables)}",
        )
    raise ConfigError(
        f"no provider was given and no key was found: looked at {PREFIX}API_KEY, {looked}",
        kind="auth",
        hint=f"set one of them, or try without a key: {SANDBOX_LINE}",
    )
