"""What the surroundings say: environment variables, keys, places. The only reader of the environment."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ConfigError, FileError, Problem

PREFIX = "SEEDREAM_"


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
    """What the user says a picture costs, in US dollars; `provider` "" means any, `model` is a name or an id."""

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


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The process's surroundings, read once at the start of a command: the environment and what the files say."""

    environ: Mapping[str, str]
    settings: Settings = field(default_factory=Settings)

    def option(self, name: str) -> str | None:
        """The value of `SEEDREAM_<OPTION>`, where it is set and not empty."""
        return self.environ.get(variable(name)) or None

    @property
    def is_dumb(self) -> bool:
        """Whether the terminal can move no cursor."""
        return self.environ.get("TERM", "") in {"dumb", "unknown"}

    @property
    def wants_color(self) -> bool:
        """NO_COLOR (any value) switches colour off."""
        return not self.environ.get("NO_COLOR") and not self.is_dumb

    @property
    def forces_color(self) -> bool:
        """FORCE_COLOR (any value but 0) asks for colour where no terminal is; NO_COLOR overrules it."""
        return self.environ.get("FORCE_COLOR", "0") not in {"", "0"} and self.wants_color

    @property
    def certificates(self) -> tuple[str | None, str | None]:
        """The file and the folder of the certificates that the user says are to be trusted: those alone then are."""
        return self.environ.get("SSL_CERT_FILE") or None, self.environ.get("SSL_CERT_DIR") or None

    @property
    def in_ci(self) -> bool:
        """Whether a CI service reads the output; some obey commands that stand in it."""
        return bool(self.environ.get("CI") or self.environ.get("GITHUB_ACTIONS"))

    @property
    def state_folder(self) -> Path:
        """Where paid replies are kept until their pictures are saved."""
        moved = self.environ.get(PREFIX + "STATE_DIR")
        if moved and not moved.startswith("~"):
            return Path(moved)
        import platformdirs

        def find() -> Path:
            return Path(moved).expanduser() if moved else Path(platformdirs.user_state_dir("seedream", appauthor=False))

        return _below_home(find, f"paid replies and the account would be kept; set HOME, or ${PREFIX}STATE_DIR")

    @property
    def config_folder(self) -> Path:
        """Where the user's file, the stored keys and the list of trusted project files are.

        `~/.config/seedream` on Linux, `~/Library/Application Support/seedream` on macOS, `%LOCALAPPDATA%\\seedream` on
        Windows; the latter two have not been run.
        """
        import platformdirs

        def find() -> Path:
            return Path(platformdirs.user_config_dir("seedream", appauthor=False))

        return _below_home(find, f"the settings are, which may hold a budget; set HOME, or ${PREFIX}CONFIG to a file")

    @property
    def home(self) -> Path | None:
        """The user's home; None where the system knows none."""
        try:
            return Path.home()
        except RuntimeError:
            return None

    @property
    def fault(self) -> str:
        """Where the tests ask the process to die; empty outside them."""
        return self.environ.get(PREFIX + "FAULT", "")


def _below_home(find: Callable[[], Path], use: str) -> Path:
    """A folder below the user's home. Raises `ConfigError` where the system knows none."""
    with contextlib.suppress(RuntimeError):
        place = find()
        if place.parts[:1] != ("~",):
            return place
    what, _, way_out = use.partition("; ")
    raise ConfigError(f"there is no home, so nobody knows where {what}", hint=way_out)


def read_surroundings() -> Surroundings:
    """The surroundings of this process."""
    return Surroundings(dict(os.environ))


def environment_without(names: Collection[str]) -> dict[str, str]:
    """What a program of the user's inherits: this process's variables without those that hold keys."""
    return {name: value for name, value in os.environ.items() if name not in names}


def variable(option: str) -> str:
    """The environment variable of an option: `response_format` is SEEDREAM_RESPONSE_FORMAT."""
    return PREFIX + option.upper()


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
    """The first line of standard input, read once though every job of a run asks for its key."""
    if sys.stdin is None:
        raise ConfigError("cannot read the key: standard input is closed", hint="check --api-key-file")
    return sys.stdin.readline()


SANDBOX_LINE = 'seedream generate "a red fox in the snow" --provider sandbox'
"""What somebody without a key can run at once."""


def choose_provider(variables: Mapping[str, Sequence[str]], surroundings: Surroundings) -> tuple[str, str]:
    """The provider whose key is present, with the variable that spoke for it; the order is that of `variables`."""
    for provider, names in variables.items():
        for name in names:
            if surroundings.environ.get(name, "").strip():
                return provider, f"${name}"
    looked = ", ".join(dict.fromkeys(name for names in variables.values() for name in names))
    if surroundings.environ.get(PREFIX + "API_KEY", "").strip():
        raise ConfigError(
            f"${PREFIX}API_KEY is set, but not for which provider",
            hint=f"add --provider NAME or set {PREFIX}PROVIDER: {', '.join(variables)}",
        )
    raise ConfigError(
        f"no provider was given and no key was found: looked at {PREFIX}API_KEY, {looked}",
        kind="auth",
        hint=f"set one of them, or try without a key: {SANDBOX_LINE}",
    )


def prepare_state(folder: Path) -> Path:
    """Make the state folder, for this user alone, and return it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot make the state folder {folder}: {error.strerror}",
            hint=f"set {PREFIX}STATE_DIR to a folder that can be written; paid replies are kept there until saved",
        ) from error
    return folder
