"""Environment variables and the folders they name. The only reader of `os.environ`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError, FileError, InputError, Problem
from ..text import nearest
from .option_kinds import BadValueError
from .options import OPTIONS, find_option
from .settings import Settings, SettingsLayer

PREFIX = "SEEDREAM_"


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment variables and settings of a command, read once at its start."""

    environ: Mapping[str, str]
    settings: Settings = field(default_factory=Settings)

    def option(self, name: str) -> str | None:
        """The value of `SEEDREAM_<OPTION>`, where it is set and not empty."""
        return self.environ.get(variable(name)) or None

    @property
    def is_dumb(self) -> bool:
        """Whether the terminal cannot move the cursor."""
        return self.environ.get("TERM", "") in {"dumb", "unknown"}

    @property
    def wants_color(self) -> bool:
        """NO_COLOR (any value) switches colour off."""
        return not self.environ.get("NO_COLOR") and not self.is_dumb

    @property
    def forces_color(self) -> bool:
        """FORCE_COLOR (any value but 0) asks for colour without a terminal; NO_COLOR wins over it."""
        return self.environ.get("FORCE_COLOR", "0") not in {"", "0"} and self.wants_color

    @property
    def has_taskbar(self) -> bool:
        """Whether the terminal shows a program's progress on its tab or in the taskbar (OSC 9;4).

        iTerm2 takes it for a notification before its version 3.6.6.
        """
        program = self.environ.get("TERM_PROGRAM", "")
        is_known = bool(self.environ.get("WT_SESSION")) or self.environ.get("ConEmuANSI") == "ON"
        version = [int(part) for part in self.environ.get("TERM_PROGRAM_VERSION", "").split(".") if part.isdecimal()]
        is_iterm = program == "iTerm.app" and version >= [3, 6, 6]
        return is_known or is_iterm or program in {"ghostty", "WezTerm"}

    @property
    def folds_lines(self) -> bool:
        """Whether the terminal is known to fold what stands on it when it gets narrower; xterm, for one, cuts it."""
        program, kind = self.environ.get("TERM_PROGRAM", ""), self.environ.get("TERM", "")
        is_known = any(self.environ.get(name) for name in ("WT_SESSION", "VTE_VERSION", "TMUX", "KONSOLE_VERSION"))
        by_name = program in {"ghostty", "WezTerm", "iTerm.app", "Apple_Terminal", "vscode"}
        return is_known or by_name or kind in {"xterm-kitty", "alacritty", "foot"}

    @property
    def certificates(self) -> tuple[str | None, str | None]:
        """SSL_CERT_FILE and SSL_CERT_DIR, which replace the built-in certificates."""
        return self.environ.get("SSL_CERT_FILE") or None, self.environ.get("SSL_CERT_DIR") or None

    @property
    def in_ci(self) -> bool:
        """Whether a CI service reads the output; some execute workflow commands found in it."""
        return bool(self.environ.get("CI") or self.environ.get("GITHUB_ACTIONS"))

    @property
    def state_folder(self) -> Path:
        """Where paid responses are stored until their images are saved."""
        moved = self.environ.get(PREFIX + "STATE_DIR")
        if moved and not moved.startswith("~"):
            return Path(moved)
        import platformdirs

        def find() -> Path:
            return Path(moved).expanduser() if moved else Path(platformdirs.user_state_dir("seedream", appauthor=False))

        return _below_home(find, f"paid replies and the account would be kept; set HOME, or ${PREFIX}STATE_DIR")

    @property
    def config_folder(self) -> Path:
        """The folder of the user's settings file, the stored keys and the list of trusted project files.

        `~/.config/seedream` on Linux, `~/Library/Application Support/seedream` on macOS, `%LOCALAPPDATA%\\seedream` on
        Windows; the latter two are not tested.
        """
        import platformdirs

        def find() -> Path:
            return Path(platformdirs.user_config_dir("seedream", appauthor=False))

        return _below_home(find, f"the settings are, which may hold a budget; set HOME, or ${PREFIX}CONFIG to a file")

    @property
    def home(self) -> Path | None:
        """The user's home; None without HOME and an entry in the password database."""
        try:
            return Path.home()
        except RuntimeError:
            return None


def _below_home(find: Callable[[], Path], use: str) -> Path:
    """A folder below the user's home. Raises `ConfigError` without a home."""
    with contextlib.suppress(RuntimeError):
        folder = find()
        if folder.parts[:1] != ("~",):
            return folder
    what, _, way_out = use.partition("; ")
    raise ConfigError(f"there is no home, so nobody knows where {what}", hint=way_out)


def read_environ() -> Environment:
    """This process's environment, without settings."""
    return Environment(dict(os.environ))


def environment_without(names: Collection[str]) -> dict[str, str]:
    """This process's variables without `names`, for a child process that must not inherit keys."""
    return {name: value for name, value in os.environ.items() if name not in names}


def variable(option: str) -> str:
    """The environment variable of an option: `response_format` is SEEDREAM_RESPONSE_FORMAT."""
    return PREFIX + option.upper()


def read_environment(environment: Environment) -> SettingsLayer:
    """The options set by SEEDREAM_<OPTION> variables, lists split by lines. Raises `InputError` for a bad value."""
    values, switches, origins = dict[str, str](), dict[str, bool](), dict[str, str]()
    lists, wrong = dict[str, tuple[str, ...]](), list[Problem]()
    for option in OPTIONS.values():
        text = environment.option(option.name) if option.accepts("variable") else None
        if text is None:
            continue
        origins[option.key] = origin = f"${variable(option.name)}"
        if option.kind == "list":
            lists[option.key] = tuple(filter(None, text.splitlines()))
        elif option.kind != "switch":
            values[option.key] = text
            if option.kind == "count":
                option.parse(text, origin, wrong)
        else:
            try:
                switches[option.key] = option.parse_switch(text)
            except BadValueError as error:
                wrong.append(Problem(option.key, error.message, error.hint, origin=origin))
    if wrong:
        raise InputError(wrong)
    return SettingsLayer(values, switches, lists, origins)


_OTHER_VARIABLES = ("API_KEY", "STATE_DIR")


def misspelt_variables(environment: Environment) -> list[Problem]:
    """A warning for each unknown SEEDREAM_ variable, with the nearest known one."""
    known = [*_OTHER_VARIABLES, *(option.name.upper() for option in OPTIONS.values() if option.accepts("variable"))]
    found = []
    for name in sorted(environment.environ):
        tail = name.removeprefix(PREFIX)
        if tail in {name, *known}:
            continue
        near = nearest(tail, known)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else "seedream generate --help lists the options"
        if option := find_option(tail.lower()):
            hint = f"set {variable(option.name)}" if option.off else f"give {option.flag} on the command line"
        found.append(Problem("", f"no option has the variable {name}", hint, "warning", f"${name}", "variable_unknown"))
    return found


def prepare_state(folder: Path) -> Path:
    """Create the state folder with mode 0700 and return it. Raises `FileError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot make the state folder {folder}: {error.strerror}",
            hint=f"set {PREFIX}STATE_DIR to a folder that can be written; paid replies are kept there until saved",
        ) from error
    return folder
