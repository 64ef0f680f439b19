"""Keys that `config key set` stored: in the system's keyring, or in a file of mode 0600, each for one server."""

from __future__ import annotations

import json
import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ConfigError
from ..providers.base_url import is_same_server, server_of
from ..providers.contract import ProviderSpec
from ..redaction import check_key
from ..storage import filesystem
from ..storage.filesystem import atomic_write
from .environment import Environment
from .keyring import ask_keyring

STORE_FILE = "credentials.json"

KeyStore = Literal["keyring", "file"]


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored key: for which base URL (whole; "": the provider's own), and where. `key` is "" in the keyring."""

    provider: str
    base_url: str
    store: KeyStore
    key: str = ""

    def __repr__(self) -> str:
        """Without the key."""
        return f"Stored({self.provider!r}, {self.base_url!r}, {self.store!r})"

    @property
    def user(self) -> str:
        """The name of the key in the keyring."""
        return f"{self.provider} {server_of(self.base_url)}" if self.base_url else self.provider

    @property
    def words(self) -> str:
        """Where the key is stored, for messages."""
        server = f" for {server_of(self.base_url)}" if self.base_url else ""
        return ("the system keyring" if self.store == "keyring" else "the credentials file") + server


def load_store(environment: Environment) -> tuple[Stored, ...]:
    """The stored keys. Raises `ConfigError` where others can read the file, or it cannot be parsed.

    The file also lists the keys in the keyring, so that the keyring, which may hang, is asked only if it holds one.
    """
    path = environment.config_folder / STORE_FILE
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        raw = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"cannot read the stored keys in {path}: {filesystem.reason(error)}") from error
    # Windows has no mode bits; files in a user's profile are private there. Not tested.
    if os.name != "nt" and mode & 0o077:
        hint = f"run `chmod 600 {shlex.quote(str(path))}`; if others may have read it, make new keys"
        raise ConfigError(f"others can read the stored keys in {path} (mode {mode:04o}), so none is used", hint=hint)
    return _parse_store(raw, path)


def _parse_store(raw: bytes, path: Path) -> tuple[Stored, ...]:
    try:
        rows = json.loads(raw)["keys"]
        return tuple(Stored(row["provider"], row["base_url"], row["where"], row.get("key", "")) for row in rows)
    except (ValueError, LookupError, TypeError, AttributeError):
        # `from None`: the parser's error may quote a key.
        message = f"the stored keys in {path} cannot be read: not as seedream wrote them"
        raise ConfigError(message, hint="move the file away and store the keys again") from None


def _save_store(environment: Environment, kept: Sequence[Stored]) -> Path:
    path = environment.config_folder / STORE_FILE
    rows = [
        {"provider": item.provider, "base_url": item.base_url, "where": item.store}
        | ({"key": item.key} if item.key else {})
        for item in kept
    ]
    atomic_write(path, (json.dumps({"schema": 1, "keys": rows}, indent=1) + "\n").encode())
    return path


def store_key(
    spec: ProviderSpec, base_url: str, raw: str, environment: Environment, *, store: KeyStore | None = None
) -> tuple[Stored, str]:
    """Store a key for a provider's base URL ("": its own): in the keyring if there is one, else in the file.

    Returns the entry, and why it is not in the keyring. Raises `ConfigError` for a malformed key, and where the
    keyring was required (`store`) and fails.
    """
    key = check_key(raw)
    bound = "" if is_same_server(base_url, spec.base_url) else base_url
    others = [item for item in load_store(environment) if not _is_for(item, spec.name, bound)]
    entry, trouble = Stored(spec.name, bound, "keyring"), ""
    if store != "file":
        value, trouble = ask_keyring("set", entry.user, key)
        if value is None and store == "keyring":
            raise ConfigError(trouble, hint="--store file keeps it in a file that only you can read")
    if store == "file" or trouble:
        entry = Stored(spec.name, bound, "file", key)
    _save_store(environment, [*others, entry])
    return entry, trouble


def remove_key(spec: ProviderSpec, base_url: str, environment: Environment) -> tuple[list[Stored], str]:
    """Delete the keys stored for a base URL; returns them, and the keyring's error."""
    bound = "" if is_same_server(base_url, spec.base_url) else base_url
    known = load_store(environment)
    gone = [item for item in known if _is_for(item, spec.name, bound)]
    if gone:
        _save_store(environment, [item for item in known if item not in gone])
    troubles = [ask_keyring("delete", item.user)[1] for item in gone if item.store == "keyring"]
    return gone, "; ".join(filter(None, troubles))


def _is_for(stored: Stored, provider: str, base_url: str) -> bool:
    same = is_same_server(stored.base_url, base_url) if base_url else not stored.base_url
    return stored.provider == provider and same
