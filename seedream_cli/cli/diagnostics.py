"""The checks of `doctor`: settings, key, URL, clock, models, folders, ledger, versions. Free, works offline.

Each check returns findings and does not raise. The one request is free: the list of models or, where a provider has
none, the base URL without the key.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import ssl
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .. import __version__
from ..config.environment import Environment
from ..config.load import LoadedSettings
from ..config.settings import Key, complete
from ..engine.connect import ask, make_client
from ..engine.plan import Limits, Route, choose_dialect, key_for, plan_output
from ..errors import ApiError, ConfigError, InputError, Problem, SeedreamError, causes
from ..ledger.ledger import open_ledger
from ..network.client import ProviderClient
from ..network.failures import CERTIFICATE_HINT
from ..network.policy import Clock
from ..providers.base_url import full_url
from ..providers.contract import Call, Dialect, ProviderSpec, Reply, model_id_for
from ..providers.error_text import message_in, text_fault
from ..providers.faults import refusal
from ..request.image_request import OptionValues
from ..request.models import DEFAULT_MODEL, find_model
from ..storage import filesystem
from ..text import clean
from .batch_folders import left_in_batches

State = Literal["ok", "warn", "fail"]

CONNECT_S, WHOLE_S = 5.0, 10.0
"""Timeouts in seconds: to connect, and for the whole request."""

SKEW_S = 30.0
"""Seconds of clock skew beyond which expiry times of URLs are misread."""

PACKAGES = ("typer", "httpx", "rich", "pydantic", "platformdirs", "pillow", "tomlkit", "certifi")

EXTRAS = {"keyring": "keyring", "socks": "socksio"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, with a hint for what is wrong."""

    name: str
    state: State
    what: str
    hint: str = ""


def run_checks(
    options: OptionValues, environment: Environment, reading: LoadedSettings, clock: Clock
) -> Iterator[Finding]:
    """All checks, in the order of their dependencies."""
    yield from check_settings(reading, environment)
    found = list[Finding]()
    dialect = _provider(options, environment, found)
    yield from found
    if dialect is not None:
        options = complete(options, dialect.spec.name, environment.settings)
        yield from _check_service(options, dialect, environment, clock)
    yield from check_folders(options, environment)
    yield check_ledger(environment, clock)
    yield check_versions()
    yield check_command()


# --- settings and keys ------------------------------------------------------------------------------------------------


def check_settings(reading: LoadedSettings, environment: Environment) -> Iterator[Finding]:
    """The settings files, and what is wrong or ignored in them."""
    for document in reading.documents:
        kind = "project file" if document.is_project else "user file"
        trust = "" if document.trusted else ", not trusted: it sets only what is harmless"
        yield Finding("settings", "ok", f"{kind} {document.shown}{trust}")
    if not reading.documents and not reading.problems:
        yield Finding("settings", "ok", f"no file; the user's would be in {environment.config_folder}")
    yield from (_as_finding("settings", problem) for problem in reading.problems)
    yield from (_as_finding("settings", problem) for problem in reading.settings.warnings)


def _as_finding(name: str, problem: Problem) -> Finding:
    place = f"{problem.origin}: " if problem.origin else ""
    return Finding(name, "fail" if problem.severity == "error" else "warn", place + problem.message, problem.hint)


def _as_failure(name: str, error: SeedreamError) -> Finding:
    if isinstance(error, InputError) and error.problems:
        return _as_finding(name, error.problems[0])
    return Finding(name, "fail", error.message, error.hint)


def _provider(options: OptionValues, environment: Environment, found: list[Finding]) -> Dialect | None:
    """The provider that would be used, None for none; a finding is added to `found`."""
    try:
        dialect, notes = choose_dialect(options, environment, sends=True)
    except SeedreamError as error:
        found.append(_as_failure("provider", error))
        return None
    origin = options.origins.get("provider") if "provider" in options.values else ""
    message = origin or "; ".join(notes).partition(", ")[2]
    found.append(Finding("provider", "ok", dialect.spec.name + (f" ({message})" if message else "")))
    return dialect


def _check_service(
    options: OptionValues, dialect: Dialect, environment: Environment, clock: Clock
) -> Iterator[Finding]:
    """Key, base URL and server."""
    spec = dialect.spec
    try:
        base_url = full_url(spec, options.values.get("base_url"))
    except InputError as error:
        yield _as_failure("address", error)
        return
    found = list[Finding]()
    key = None if spec.offline else _key(options, spec, environment, base_url, found)
    yield from found
    listed = bool(spec.models_path) and (spec.offline or key is not None)
    limits = Limits(timeout_s=WHOLE_S, connect_timeout_s=CONNECT_S, retries=0, proxy=options.values.get("proxy"))
    # The key is sent only for the list of models.
    route = Route(dialect, base_url, key if listed else None, limits)
    yield from check_address(route, clock, asks_models=listed, typed=options.values.get("model", ""))
    if spec.models_path and not listed:
        yield Finding("models", "warn", "not asked for: there is no key")


def _key(
    options: OptionValues, spec: ProviderSpec, environment: Environment, base_url: str, found: list[Finding]
) -> Key | None:
    """The key that would be sent, None for none; findings are added to `found`."""
    from ..redaction import check_key

    try:
        key = key_for(options, spec, environment, base_url)
        value = check_key(key.value)
    except ConfigError as error:
        found.append(_as_failure("key", error))
        return None
    # Four characters of a short key would reveal too much.
    ends = f", ends in {value[-4:]}" if len(value) >= 12 else ""
    found.append(Finding("key", "ok", f"from {key.source}{ends}"))
    if key.note:
        found.append(Finding("key", "warn", key.note))
    return key


# --- the network ------------------------------------------------------------------------------------------------------


def check_address(route: Route, clock: Clock, *, asks_models: bool, typed: str) -> Iterator[Finding]:
    """One free request: proxy, DNS, connection, certificate, clock, and with a key the list of models."""
    spec = route.spec
    try:
        client = make_client(route, clock=clock)
        # Reported before the request, which may fail.
        proxy = client.proxy_in_use
        if proxy:
            yield Finding("proxy", "ok", f"calls go through {proxy}")
        reply = _ask(client, Call("GET", spec.models_path if asks_models else "/"))
    except ApiError as error:
        yield _unreachable(route.base_url, error)
        return
    except SeedreamError as error:
        yield _as_failure("address", error)
        return
    if isinstance(reply, ApiError):
        yield Finding("address", "ok", f"{route.base_url} answers")
        return
    inside = " (inside this program)" if spec.offline else f" (HTTP {reply.status})"
    yield Finding("address", "ok", f"{route.base_url} answers{inside}")
    yield from check_clock(reply, clock.now())
    if asks_models:
        yield check_models(spec, replace(reply), typed, client)


def _ask(client: ProviderClient, call: Call) -> Reply | ApiError:
    """The response of any status; for one that the client refuses, such as a redirect, the error."""
    try:
        return ask(client, call, lambda reply: reply).value
    except ApiError as error:
        if error.status is not None:
            return error
        raise


def _unreachable(base_url: str, error: ApiError) -> Finding:
    """The finding for a failed connection, with a hint by its cause."""
    hint = "check the network, --base-url and the proxy"
    for cause in causes(error):
        if isinstance(cause, socket.gaierror):
            hint = "the name is not known here: check the network, DNS and --base-url"
        elif isinstance(cause, ssl.SSLCertVerificationError):
            hint = CERTIFICATE_HINT
        elif isinstance(cause, ConnectionRefusedError):
            hint = "the machine is there and nothing listens: check the port of --base-url, and the proxy"
    if "proxy" in error.message and error.hint:
        hint = error.hint
    return Finding("address", "fail", f"{base_url}: {error.message}", hint)


def check_clock(reply: Reply, now: dt.datetime) -> Iterator[Finding]:
    """This machine's clock against the server's `Date` header; nothing where there is none."""
    try:
        there = email.utils.parsedate_to_datetime(reply.headers.get("date", ""))
    except (ValueError, TypeError):
        return
    if there.tzinfo is None:
        there = there.replace(tzinfo=dt.UTC)
    skew = (now - there).total_seconds()
    if abs(skew) <= SKEW_S:
        yield Finding("clock", "ok", f"within {SKEW_S:.0f} s of the server's")
        return
    where = "ahead of" if skew > 0 else "behind"
    hint = "set the clock: how long links live is told by it, and certificates are judged by it"
    yield Finding("clock", "warn", f"{_span(abs(skew))} {where} the server's", hint)


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def check_models(spec: ProviderSpec, reply: Reply, typed: str, client: ProviderClient) -> Finding:
    """Whether the chosen model is in the account's list of models."""
    if reply.status in {401, 403}:
        error = refusal(spec, reply)
        return Finding("models", "fail", client.mask(error.message), error.hint or "check the key")
    listed = listed_models(reply)
    if listed is None:
        message = message_in(reply.body) if reply.body is not None else text_fault(reply.text)[1]
        words = f"{spec.name} gave no list of models (HTTP {reply.status})" + (f": {message}" if message else "")
        return Finding("models", "warn", client.mask(clean(words)))
    typed = typed.strip() or DEFAULT_MODEL
    spelled = model_id_for(spec, find_model(typed, spec.spelling), typed) or typed
    if spelled in listed:
        return Finding("models", "ok", f"{spelled} is among the {len(listed)} of this account")
    if spelled.startswith("ep-"):
        return Finding("models", "ok", f"{len(listed)} of this account; an endpoint such as {spelled} is not listed")
    near = [name for name in listed if "seedream" in name.lower() or "seededit" in name.lower()]
    hint = f"it lists {', '.join(near[:8])}" if near else "switch the model on in the provider's console"
    return Finding("models", "warn", f"{spelled} is not among the {len(listed)} of this account", hint)


def listed_models(reply: Reply) -> tuple[str, ...] | None:
    """The ids in `{"data": [{"id": …}]}`; None where the response is no such list."""
    rows = reply.body.get("data") if reply.status == 200 and isinstance(reply.body, dict) else None
    if not isinstance(rows, list):
        return None
    return tuple(row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str))


# --- this machine -----------------------------------------------------------------------------------------------------


def check_folders(options: OptionValues, environment: Environment) -> Iterator[Finding]:
    """Whether the folders for images, ledger and settings can be written."""
    problems: list[Problem] = []
    target = plan_output(options, 1, problems)
    yield from (_as_finding("output", problem) for problem in problems)
    if target is not None and not target.stdout:
        yield check_folder("output", target.folder, "choose another with -o, or mend its permissions")
    moved = "set SEEDREAM_STATE_DIR to a folder that can be written"
    yield check_folder("state", environment.state_folder, moved)
    yield check_folder("config", environment.config_folder, "mend its permissions", needed=False)


def check_folder(name: str, folder: Path, hint: str, *, needed: bool = True) -> Finding:
    """Whether a folder, or its nearest existing parent, can be written, by creating a file in it."""
    folder = folder.expanduser().absolute()
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    probe = there / f".seedream-{os.urandom(6).hex()}"
    try:
        os.close(filesystem.create(probe))
        probe.unlink()
    except OSError as error:
        state: State = "fail" if needed else "warn"
        return Finding(name, state, f"{there} cannot be written: {filesystem.reason(error)}", hint)
    return Finding(name, "ok", str(folder) + ("" if there == folder else " (will be made)"))


def check_ledger(environment: Environment, clock: Clock) -> Finding:
    """Whether the ledger is sound, and whether it has unsaved or unknown requests."""
    if not environment.settings.ledger_enabled:
        return Finding("ledger", "ok", "switched off in the settings")
    path = environment.state_folder / "ledger.db"
    if not path.exists():
        return Finding("ledger", "ok", "none yet: the first request makes it")
    try:
        with open_ledger(path, now=clock.now) as ledger:
            wrong = ledger.check()
            unsaved, unknown = len(ledger.unsaved()), len(ledger.history(status="unknown"))
            journal = ledger.journal
            batches, troubles = left_in_batches(ledger)
    except SeedreamError as error:
        return Finding("ledger", "fail", error.message, error.hint)
    if wrong:
        hint = f"move {path} aside; kept replies stay recoverable from {path.parent / 'replies'}"
        return Finding("ledger", "fail", f"damaged: {'; '.join(wrong[:3])}", hint)
    unsaved, unknown = unsaved + batches["unsaved"], unknown + batches["unknown"]
    if unsaved:
        return Finding("ledger", "warn", f"{unsaved} paid requests are not saved", "seedream recover")
    if troubles:
        hint = "a batch's ledger that is damaged cannot tell what was paid there"
        return Finding("ledger", "warn", "; ".join(troubles[:3]), hint)
    if unknown:
        hint = "seedream history --status unknown, then seedream history resolve"
        return Finding("ledger", "warn", f"the outcome of {unknown} requests is unknown", hint)
    return Finding("ledger", "ok", f"sound ({path}, {journal})")


def check_versions() -> Finding:
    """Versions of the tool, Python and libraries."""
    parts = [f"seedream {__version__}", f"python {platform.python_version()}", f"{platform.system()}"]
    parts += [f"{name} {_version(name)}" for name in PACKAGES]
    parts.append(ssl.OPENSSL_VERSION)
    parts += [
        f"extra {name} {'' if importlib.util.find_spec(module) else 'not '}installed" for name, module in EXTRAS.items()
    ]
    return Finding("versions", "ok", ", ".join(parts))


def _version(name: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return "unknown"


def check_command() -> Finding:
    """Whether `seedream` on PATH is this program: another distribution has a command of that name."""
    owners = sorted({name for name in _owners() if name != "seedream"})
    here = Path(sysconfig.get_path("scripts"))
    found = shutil.which("seedream")
    if owners:
        hint = f"pip uninstall {owners[0]}, then install seedream again"
        return Finding("command", "fail", f"{', '.join(owners)} brings a command seedream too, into {here}", hint)
    if found is None:
        return Finding("command", "warn", "seedream is not on PATH", f"add {here} to PATH, or activate its venv")
    place = Path(found)
    if place.parent.resolve() == here.resolve():
        return Finding("command", "ok", f"{found} is this program")
    whose = "another installation of this program" if _starts_this_package(place) else "another program"
    state: State = "ok" if whose.startswith("another inst") else "warn"
    return Finding("command", state, f"{found} is {whose}; this one runs from {sys.executable}", f"run {here}/seedream")


def _owners() -> Sequence[str]:
    """The installed distributions that declare a command `seedream`."""
    scripts = importlib.metadata.entry_points(group="console_scripts", name="seedream")
    return [entry.dist.name for entry in scripts if entry.dist is not None]


def _starts_this_package(script: Path) -> bool:
    """Whether a script on PATH imports this package."""
    with contextlib.suppress(OSError):
        return b"seedream_cli.__main__" in script.read_bytes()[-65_536:]
    return False
