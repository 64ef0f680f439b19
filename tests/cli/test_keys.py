"""Keys: which one is found, which may go where, how they are kept, and that none is ever shown."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from seedream_cli import redaction
from seedream_cli.cli.flags import FlagValues
from seedream_cli.config import credentials, key_store
from seedream_cli.config.credentials import may_send
from seedream_cli.config.environment import Environment
from seedream_cli.config.settings import Key, ProviderSettings, Settings, SettingsLayer
from seedream_cli.errors import ConfigError
from seedream_cli.providers import load
from seedream_cli.providers.base_url import full_url
from seedream_cli.request.image_request import OptionValues
from tests.support.command import CANARY

from .test_config import ConfigCommand, tool

__all__ = ["tool"]
GATEWAY = "http://127.0.0.1:9"
OWN = "https://ark.cn-beijing.volces.com/api/v3"


# --- which key may go where -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "url", "by_user", "bound_to", "wanted"),
    [
        # To the provider's own place everything may go, whatever the path and the spelling of the port.
        ("file", OWN, True, "", True),
        ("generic", OWN, False, "", True),
        ("variable", "https://ARK.cn-beijing.volces.com:443/other", False, "", True),
        ("bound", OWN, False, "", True),
        # Another scheme, port or host is another place, this machine included.
        ("bound", "http://ark.cn-beijing.volces.com/api/v3", True, "", False),
        ("bound", "https://ark.cn-beijing.volces.com:8443", True, "", False),
        ("bound", "https://ark.cn-beijing.volces.com.evil.example", True, "", False),
        ("bound", GATEWAY, True, "", False),
        # A key stored for an address goes there and nowhere else.
        ("bound", f"{GATEWAY}/v1", False, GATEWAY, True),
        ("bound", OWN, True, GATEWAY, False),
        ("bound", "http://127.0.0.1:10", True, GATEWAY, False),
        # Elsewhere: what is named for the run; variables where the user chose the address.
        ("file", GATEWAY, False, "", True),
        ("generic", GATEWAY, True, "", True),
        ("variable", GATEWAY, True, "", True),
        ("generic", GATEWAY, False, "", False),
        ("variable", GATEWAY, False, "", False),
    ],
)
def test_a_key_goes_only_where_it_belongs(
    kind: credentials.Kind, url: str, by_user: bool, bound_to: str, wanted: bool
) -> None:
    """The table of who may get what."""
    assert may_send(kind, url=url, own=OWN, by_user=by_user, bound_to=bound_to) is wanted


def test_a_provider_without_an_address_of_its_own_is_nobody_s_own() -> None:
    """Where the provider has no address, a stored key needs one, and no empty address equals another."""
    assert not may_send("bound", url=GATEWAY, own="", by_user=True)
    assert not may_send("variable", url=GATEWAY, own="", by_user=False)
    assert may_send("variable", url=GATEWAY, own="", by_user=True)


def find(options: OptionValues, environ: dict[str, str], settings: Settings | None = None) -> Key:
    """The key for ark."""
    spec = load("ark").spec
    url = full_url(spec, options.values.get("base_url"))
    return credentials.find_key(options, spec, url, Environment(environ, settings or Settings()))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for this process."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("origin", ["shot.txt:2", "rows.csv:14"])
def test_an_address_out_of_a_prompt_or_a_table_gets_no_key_of_the_environment(origin: str) -> None:
    """A file that came with a prompt cannot point a variable's key, or any file, at its own server."""
    options = OptionValues({"base_url": GATEWAY}, origins={"base_url": origin})
    with pytest.raises(ConfigError, match="belongs to another") as caught:
        find(options, {"ARK_API_KEY": CANARY, "SEEDREAM_API_KEY": CANARY})
    assert origin in caught.value.message
    assert CANARY not in caught.value.message + caught.value.hint
    both = OptionValues(
        {"base_url": GATEWAY, "api_key_file": "/etc/passwd"},
        origins=dict.fromkeys(("base_url", "api_key_file"), origin),
    )
    with pytest.raises(ConfigError, match="belongs to another"):
        find(both, {})
    assert find(OptionValues({"base_url": GATEWAY}, origins={"base_url": "--base-url"}), {"ARK_API_KEY": CANARY}).value


@pytest.mark.usefixtures("home")
def test_a_project_that_overrules_the_provider_gets_no_key_meant_for_another() -> None:
    """SEEDREAM_API_KEY belongs to the provider of the user's own file, not to the one a stranger's file names."""
    layer = SettingsLayer({"provider": "ark"}, origins={"provider": "seedream.toml:1"})
    settings = Settings(layer, own_provider="ope")
    options = OptionValues({"provider": "ark"}, origins=layer.origins)
    with pytest.raises(ConfigError, match="overrules yours"):
        find(options, {"SEEDREAM_API_KEY": CANARY}, settings)
    assert find(options, {"SEEDREAM_API_KEY": "x", "ARK_API_KEY": CANARY}, settings).source == "$ARK_API_KEY"
    typed = OptionValues({"provider": "ark"}, origins={"provider": "--provider"})
    assert find(typed, {"SEEDREAM_API_KEY": CANARY}, settings).source == "$SEEDREAM_API_KEY"


def test_the_first_of_all_places_wins(home: Path) -> None:
    """File, SEEDREAM_API_KEY, api_key_env, the provider's variable, command, stored: in this order."""
    path = home / "key.txt"
    path.write_text("k-file")
    path.chmod(0o600)
    command = (sys.executable, "-c", "print('k-command')")
    stated = ProviderSettings(key_variable="MY_KEY", command=command, command_folder=str(home))
    settings = Settings(providers={"ark": stated})
    environ = {"SEEDREAM_API_KEY": "k-generic", "MY_KEY": "k-own", "ARK_API_KEY": "k-provider"}
    around = Environment({})
    key_store.store_key(load("ark").spec, OWN, "k-stored", around, store="file")
    found = [find(OptionValues({"api_key_file": str(path)}), environ, settings).value]
    for name in (*environ, "command"):
        found.append(find(OptionValues(), environ, settings).value)
        environ.pop(name, None)
    found.append(find(OptionValues(), {}, Settings()).value)
    assert found == ["k-file", "k-generic", "k-own", "k-provider", "k-command", "k-stored"]


def test_a_provider_is_chosen_by_its_stored_key_too(home: Path) -> None:
    """Variables speak first, then commands and stored keys; what spoke is named."""
    specs = [load(name).spec for name in ("cometapi", "ark", "ope")]
    around = Environment({})
    key_store.store_key(load("ope").spec, "https://api-platform.ope.ai", CANARY, around, store="file")
    assert credentials.choose_keyed_provider(specs, around) == ("ope", "the credentials file")
    assert credentials.choose_keyed_provider(specs, Environment({"ARK_API_KEY": "x"}))[0] == "ark"


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_key_command_is_run_without_a_shell_in_its_file_s_folder(tool: ConfigCommand) -> None:
    """Its words are passed as they are; a relative program is the one beside the file, wherever one works."""
    script = tool.user / "give key"
    tool.write(f"[providers.ark]\napi_key_command = \"'./give key' '$HOME; touch {tool.home}/ran'\"\n")
    script.write_text(f'#!/bin/sh\ntest "$#" = 1 && cat "{tool.home}/key.txt"\n')
    script.chmod(0o700)
    (tool.home / "key.txt").write_text(f"{CANARY}\n")
    rows = {row["provider"]: row for row in tool("config", "key", "status", "--json").json["keys"]}
    assert (rows["ark"]["source"], rows["ark"]["last4"]) == ("api_key_command", CANARY[-4:])
    assert not (tool.home / "ran").exists()
    elsewhere = tool("generate", "fox", "-p", "ark", "--base-url", GATEWAY)
    assert elsewhere.code == 3
    assert "api_key_command belongs to another" in elsewhere.err


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print('{key}'); sys.exit('no: {key} Bearer {key}')", "ended with 1: no: *** Bearer ***"),
        ("", "printed nothing"),
        ("print('two words')", "holds a space"),
    ],
)
def test_a_failing_key_command_says_why_without_the_key(home: Path, code: str, words: str) -> None:
    """Its last words are shown, masked."""
    command = (sys.executable, "-c", code.replace("{key}", CANARY))
    with pytest.raises(ConfigError) as caught:
        redaction.check_key(credentials.run_command(command, str(home)))
    assert words in caught.value.message
    assert CANARY not in caught.value.message


def test_a_key_command_that_is_missing_or_hangs_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, and no waiting without end."""
    for command, words in ((("no-such-program",), "cannot run"), ((sys.executable, "-c", "input()"), "ended with")):
        with pytest.raises(ConfigError, match=words):
            credentials.run_command(command, str(home))
    monkeypatch.setattr(credentials, "COMMAND_S", 0.3)
    with pytest.raises(ConfigError, match="gave no key in"):
        credentials.run_command((sys.executable, "-c", "import time; time.sleep(9)"), str(home))


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_keys_are_kept_where_only_their_owner_reads_and_shown_by_four_characters(tool: ConfigCommand) -> None:
    """Set from standard input, used, listed, replaced and forgotten; the file has mode 0600 and says no more."""
    done = tool("config", "key", "set", "ark", "--store", "file", stdin=f"{CANARY}\n".encode())
    path = tool.user / "credentials.json"
    assert done.code == 0
    assert str(path) in done.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    status = tool("config", "key", "status", env={"COLUMNS": "160"})
    assert any(line.split()[:2] == ["ark", "the"] and f"…{CANARY[-4:]}" in line for line in status.out.splitlines())
    assert CANARY[-5:] not in status.out
    assert "no key was sent to http://127.0.0.1:9" in tool("generate", "f", "-p", "ark", "--base-url", GATEWAY).err
    tool("config", "key", "set", "ark", "--store", "file", "--base-url", GATEWAY, stdin=CANARY.encode())
    sent = tool("generate", "f", "-p", "ark", "--base-url", GATEWAY, "--retries", "0")
    assert sent.code == 6, "the key was found, and nobody listens"
    assert tool("config", "key", "unset", "ark").code == 0
    assert [row["base_url"] for row in json.loads(path.read_text())["keys"]] == ["http://127.0.0.1:9/api/v3"]
    assert tool("config", "key", "unset", "ark").code == 3


def test_a_key_file_that_others_read_is_refused_with_the_command_that_mends_it(tool: ConfigCommand) -> None:
    """Nothing of it is used, unless a place before it has a key; following the message is enough."""
    tool("config", "key", "set", "ark", "--store", "file", stdin=CANARY.encode())
    path = tool.user / "credentials.json"
    path.chmod(0o640)
    for args in (("generate", "f", "-p", "ark"), ("config", "key", "status"), ("generate", "f")):
        done = tool(*args)
        assert (done.code, f"`chmod 600 {path}`" in done.err) == (3, True)
    assert (
        tool("generate", "f", "-p", "ark", "--base-url", GATEWAY, "--retries", "0", env={"ARK_API_KEY": "k"}).code == 6
    )
    path.chmod(0o600)
    assert tool("config", "key", "status").code == 0
    path.write_text(f"{{ {CANARY}")
    broken = tool("config", "key", "status")
    assert (broken.code, "cannot be read" in broken.err) == (3, True)


@pytest.mark.parametrize(
    ("args", "stdin", "code"),
    [
        (("ark", CANARY), b"", 2),
        (("arkk",), CANARY.encode(), 2),
        (("sandbox",), CANARY.encode(), 2),
        (("openai",), CANARY.encode(), 2),
        (("ark",), b"", 3),
        (("ark",), f"{CANARY}\n{CANARY}\n".encode(), 3),
    ],
)
def test_what_is_no_key_or_no_place_for_one_is_refused(
    tool: ConfigCommand, args: tuple[str, ...], stdin: bytes, code: int
) -> None:
    """A key as an argument is not repeated; unknown providers, empty and broken keys store nothing."""
    assert tool("config", "key", "set", *args, stdin=stdin).code == code
    assert not (tool.user / "credentials.json").exists()


# --- the keyring ------------------------------------------------------------------------------------------------------

BACKENDS = """
import json, os, time
from keyring.backend import KeyringBackend
PATH = os.path.join(os.path.dirname(__file__), "keyring.json")
class Good(KeyringBackend):
    priority = 9
    def _all(self):
        return json.load(open(PATH)) if os.path.exists(PATH) else {}
    def set_password(self, service, user, key):
        json.dump({**self._all(), user: key}, open(PATH, "w"))
    def get_password(self, service, user):
        return self._all().get(user)
    def delete_password(self, service, user):
        json.dump({k: v for k, v in self._all().items() if k != user}, open(PATH, "w"))
class Hanging(Good):
    def set_password(self, service, user, key):
        time.sleep(60)
    get_password = lambda self, service, user: time.sleep(60)
class Loud(Good):
    def set_password(self, service, user, key):
        print(key)
        raise SystemExit(key)
"""


@pytest.fixture
def backends(tool: ConfigCommand) -> Path:
    """Keyring back-ends of ours, where Python finds them."""
    pytest.importorskip("keyring")
    folder = tool.home / "backends"
    folder.mkdir()
    (folder / "ours.py").write_text(BACKENDS)
    return folder


def with_backend(folder: Path, name: str) -> dict[str, str]:
    """An environment with this back-end."""
    root = Path(credentials.__file__).parent.parent
    return {"PYTHON_KEYRING_BACKEND": name, "PYTHONPATH": f"{root}{os.pathsep}{folder}"}


def test_the_keyring_keeps_the_key_and_the_file_only_its_name(tool: ConfigCommand, backends: Path) -> None:
    """Where there is a keyring the key goes there, comes back, and is deleted there."""
    env = with_backend(backends, "ours.Good")
    done = tool("config", "key", "set", "ark", stdin=CANARY.encode(), env=env)
    assert (done.code, "in the system keyring" in done.err) == (0, True)
    assert json.loads((backends / "keyring.json").read_text()) == {"ark": CANARY}
    assert CANARY not in (tool.user / "credentials.json").read_text()
    rows = {row["provider"]: row for row in tool("config", "key", "status", "--json", env=env).json["keys"]}
    assert (rows["ark"]["source"], rows["ark"]["last4"]) == ("the system keyring", CANARY[-4:])
    assert tool("config", "key", "unset", "ark", env=env).code == 0
    assert json.loads((backends / "keyring.json").read_text()) == {}


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("keyring.backends.fail.Keyring", "cannot be used"),
        ("keyring.backends.null.Keyring", "stores nothing"),
        ("no.such.Backend", "cannot be used"),
        ("ours.Loud", "failed"),
        ("ours.Hanging", "did not answer in 5 s"),
    ],
)
def test_a_keyring_that_does_not_work_gives_way_to_the_file(
    tool: ConfigCommand, backends: Path, backend: str, words: str
) -> None:
    """None, one that stores nothing, one that raises or hangs: said in a line, and the key is kept all the same."""
    env = with_backend(backends, backend)
    done = tool("config", "key", "set", "ark", stdin=CANARY.encode(), env=env, timeout=30)
    assert (done.code, words in done.err) == (0, True), done.err
    assert "credentials.json" in done.err
    asked = tool("config", "key", "set", "ark", "--store", "keyring", stdin=CANARY.encode(), env=env, timeout=30)
    assert asked.code == 3
    assert tool("generate", "f", "-p", "ark", "--dry-run").code == 0


def test_a_keyring_that_is_gone_is_told_as_the_reason_for_no_key(tool: ConfigCommand, backends: Path) -> None:
    """A key that lies in a keyring nobody can open: exit 3 with why, and no program of the folder is run."""
    tool("config", "key", "set", "ark", stdin=CANARY.encode(), env=with_backend(backends, "ours.Good"))
    (tool.folder / "keyring.py").write_text("open('imported', 'w')")
    done = tool("generate", "f", "-p", "ark", env=with_backend(backends, "keyring.backends.fail.Keyring"))
    assert done.code == 3
    assert "the system keyring cannot be used (NoKeyringError)" in done.err
    assert not (tool.folder / "imported").exists()


def test_keys_have_no_representation() -> None:
    """Neither a traceback nor a log of a stored key holds it."""
    assert CANARY not in repr(key_store.Stored("ark", "", "file", CANARY)) + repr(Key(CANARY, "x"))
    assert FlagValues().values == {}
