"""Settings: where they come from, which wins, what a stranger's file may not do, and how they are written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedream_cli.cli import flags
from seedream_cli.config import config_file, load, trust
from seedream_cli.config.environment import Environment, read_environment
from seedream_cli.config.options import OPTIONS, SETTABLE
from seedream_cli.config.settings import Settings, complete, price_for
from seedream_cli.engine.plan import Limits
from tests.support.command import CANARY
from tests.support.fork_server import Forked, Nursery


class ConfigCommand(Forked):
    """The command, and the files of settings that it reads."""

    @property
    def user(self) -> Path:
        """The user's folder."""
        return self.home / ".config" / "seedream"

    def write(self, text: str, *, project: bool = False) -> Path:
        """Write the user's file, or the project's."""
        path = self.folder / "seedream.toml" if project else self.user / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def tool(tmp_path: Path, nursery: Nursery) -> Iterator[ConfigCommand]:
    """The command in an empty home; afterwards no file but the credentials holds the key."""
    command = ConfigCommand(tmp_path / "home", nursery)
    yield command
    for path in (tmp_path / "home").rglob("*"):
        if path.is_file() and path.name not in {"credentials.json", "key.txt", "keyring.json"}:
            assert CANARY.encode() not in path.read_bytes(), f"the key is in {path}"


def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> load.LoadedSettings:
    """Read files called `user` and `project` in this process."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    environ = {name: value for name, value in files.items() if name.startswith("SEEDREAM_")}
    user = tmp_path / ".config" / "seedream" / "config.toml"
    user.parent.mkdir(parents=True, exist_ok=True)
    if "user" in files:
        user.write_text(files["user"])
    if "project" in files:
        (work / "seedream.toml").write_text(files["project"])
    around = Environment(environ)
    return load.read(around, config_file.find_settings_files(around))


# --- which one holds --------------------------------------------------------------------------------------------------


def test_option_environment_project_user_default_in_this_order(tool: ConfigCommand) -> None:
    """Each level stands above the next, and `config get` and the body that is sent agree on it."""

    def size(*args: str, **env: str) -> str:
        body = tool("generate", "fox", "-p", "ark", "--json", "--dry-run", *args, env=env).json
        return str(body["request"]["size"])

    assert size() == "2K"
    tool.write('size = "4K"\n')
    assert size() == "4K"
    tool.write('# ours\n\nsize = "3K"\n', project=True)
    assert size() == "3K"
    assert size(SEEDREAM_SIZE="2048x2048") == "2048x2048"
    assert size("-s", "4K", SEEDREAM_SIZE="2048x2048") == "4K"
    assert tool("config", "get", "size", env={"SEEDREAM_SIZE": "1K"}).out == "1K\n"
    rows = {row["key"]: row for row in tool("config", "show", "--json").json["settings"]}
    assert rows["size"] == {"key": "size", "value": "3K", "origin": "seedream.toml:3"}
    assert rows["retries"] == {"key": "retries", "value": "4", "origin": "default"}


def test_a_project_file_is_found_upward_but_not_beyond_the_home(tool: ConfigCommand) -> None:
    """A file above the working folder counts, with paths that start from the file; one above the home does not."""
    tool.write('output = "shots/"\nsize = "4K"\n', project=True)
    deep = tool.folder / "a" / "b"
    deep.mkdir(parents=True)
    assert tool("config", "get", "output", cwd=deep).out == "../../shots/\n"
    (tool.folder / "seedream.toml").rename(tool.home.parent / "seedream.toml")
    assert tool("config", "get", "size", cwd=deep).out == ""


def test_profiles_stand_above_the_top_and_are_chosen_three_ways(tool: ConfigCommand) -> None:
    """--profile, SEEDREAM_PROFILE or `profile` choose one; an unknown one names the nearest."""
    tool.write('size = "2K"\n[profiles.large]\nsize = "4K"\n[profiles.small]\nsize = "1K"\n')
    tool.write('size = "3K"\n', project=True)
    assert tool("config", "get", "size", "--profile", "large").out == "4K\n"
    assert tool("config", "get", "size", env={"SEEDREAM_PROFILE": "small"}).out == "1K\n"
    tool.write('profile = "small"\nsize = "2K"\n[profiles.small]\nsize = "1K"\n')
    assert tool("config", "get", "size").out == "3K\n", "the user's own choice lies below the project"
    wrong = tool("generate", "fox", "-p", "sandbox", "--profile", "smal")
    assert wrong.code == 3
    assert "did you mean small?" in wrong.err


def test_settings_of_a_provider_lie_between_the_top_and_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[providers.NAME] overrules the top of a file, and nothing that was said more closely."""
    text = (
        'model = "4.0"\n[providers.ark]\nmodel = "4.5"\nbase_url = "https://gw.example"\n[profiles.p]\nmodel = "3.0"\n'
    )
    for environ, typed, wanted in (
        ({}, {}, "4.5"),
        ({"SEEDREAM_PROFILE": "p"}, {}, "3.0"),
        ({"SEEDREAM_MODEL": "5.0-pro"}, {}, "5.0-pro"),
        ({}, {"model": "5.5"}, "5.5"),
    ):
        settings = read(tmp_path, monkeypatch, user=text, **environ).settings
        around = Environment(environ, settings)
        options = complete(flags.FlagValues(typed).options(around), "ark", settings)
        assert options.values["model"] == wanted
        assert options.values["base_url"] == "https://gw.example"
        assert options.origin("base_url") == "~/.config/seedream/config.toml:4"


def test_every_option_has_a_variable_and_a_place_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can be typed for every run can be set in a file and by SEEDREAM_<OPTION>, lists and switches too."""
    samples = {"value": "1", "switch": "yes", "list": "k=1", "count": "1"}
    settable = [option for option in SETTABLE if option.key not in {"config", "prompt_file", "var"}]
    environ = {f"SEEDREAM_{option.name.upper()}": samples[option.kind] for option in settable}
    layer = read_environment(Environment(environ))
    assert set(layer.origins) == {option.key for option in settable}
    reading = read(tmp_path, monkeypatch, user="async = true\nno-watermark = true\nextra = {k = 1}\nimage = 'a.png'\n")
    assert not reading.problems
    merged = reading.settings.layer
    assert merged.switches == {"asynchronous": True, "watermark": False}
    assert merged.lists == {"extra": ("k=1",), "image": ("a.png",)}
    limits = Limits()
    assert (OPTIONS["retries"].default, OPTIONS["timeout"].default) == (str(limits.retries), f"{limits.timeout_s:g}")


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_all_mistakes_of_all_files_are_told_at_once_with_file_and_line(tool: ConfigCommand) -> None:
    """Unknown keys with the nearest, wrong kinds, bad values and stray keys: one run tells them all, exit 3."""
    tool.write(f'siez = "2K"\nseed = "x"\ntimeout = true\napi_key = "{CANARY}"\n[providers.arkk]\nmodel = "4.5"\n')
    tool.write('[profiles.a]\n\nsize = "zz"\n[batch]\nconfirm = 3\n', project=True)
    done = tool("generate", "fox", "-p", "sandbox")
    assert done.code == 3
    assert done.out == ""
    user = "~/.config/seedream/config.toml"
    for place, words in (
        (f"{user}:1", "unknown setting siez"),
        (f"{user}:2", "'x' is no whole number"),
        (f"{user}:3", "timeout takes text or a number"),
        (f"{user}:4", "a key may not stand in a settings file"),
        (f"{user}:5", "unknown provider arkk"),
        ("seedream.toml:3", "'zz' is no size"),
        ("seedream.toml:5", "unknown setting confirm"),
    ):
        assert any(place in line and words in line for line in done.err.splitlines()), (place, words, done.err)
    (tool.user / "config.toml").unlink()  # the fixture looks for the key in files
    for near in ("did you mean size?", "did you mean ark?", "did you mean confirm_above?"):
        assert near in done.err


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"a = 1\nsize = 2K\n", "seedream.toml:2"),
        (b'size = "2K\n', "seedream.toml:1"),
        (b'size = "4K"\n# \xff\n', "seedream.toml:2"),
        (b"image = " + b"[" * 5000, "seedream.toml:1"),
        (b"#" * 300_000, "seedream.toml"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tool: ConfigCommand, text: bytes, place: str) -> None:
    """Broken TOML, bytes that are no UTF-8, depth without end: file and line, exit 3, in `config get` too."""
    (tool.folder / "seedream.toml").write_bytes(text)
    for args in (("config", "get", "size"), ("generate", "fox", "-p", "sandbox")):
        done = tool(*args)
        assert done.code == 3
        assert f"error: {place}" in done.err


def test_a_project_file_that_is_no_file_is_an_error_and_a_missing_user_file_is_none(tool: ConfigCommand) -> None:
    """A folder or a pipe called seedream.toml is told, never waited for; a named user's file must be there."""
    os.mkfifo(tool.folder / "seedream.toml")
    done = tool("config", "get", "size", timeout=20)
    assert (done.code, "not a file" in done.err) == (3, True)
    (tool.folder / "seedream.toml").unlink()
    assert tool("config", "get", "size").code == 0
    assert tool("config", "get", "size", "--config", "gone.toml").code == 3
    assert tool("config", "get", "size", "--config", "-", stdin=b'size = "4K"').out == "4K\n"


def test_key_lines_are_found_in_every_way_to_write_a_key() -> None:
    """Dotted, quoted and inline keys have their lines; what looks like a key inside a long text has none."""
    text = 'a = """\nb = 1\n"""\n"c d" = 1\np . q = 2\n[t."u.v"]\nw = 1\n[[x]]\n'
    lines = config_file.key_lines(text)
    assert lines == {("a",): 1, ("c d",): 4, ("p", "q"): 5, ("t", "u.v"): 6, ("t", "u.v", "w"): 7, ("x",): 8}


# --- a stranger's file ------------------------------------------------------------------------------------------------

HOSTILE = """size = "4K"
provider = "ark"
output = "{output}"
base-url = "{url}"
proxy = "{url}"
callback_url = "{url}"
api_key_file = "/etc/passwd"
force = true
count = 500
if_exists = "overwrite"
image = ["/etc/passwd"]

[providers.ark]
base_url = "{url}"
api_key_env = "ARK_API_KEY"
api_key_command = "touch {flag}"
model = "4.5"

[profiles.x]
base_url = "{url}"

[prices]
4.5 = 0.0

[budget]
daily = 1e6

[ledger]
enabled = false
"""


def test_a_strangers_file_sets_only_what_is_harmless(tool: ConfigCommand) -> None:
    """Keys, addresses, programs, limits and places outside are ignored with file, key and the way out."""
    flag = tool.home / "ran"
    tool.write(HOSTILE.format(output="../out", url="https://evil.example", flag=flag), project=True)
    env = {"ARK_API_KEY": CANARY, "SEEDREAM_PROFILE": "x"}
    done = tool("generate", "fox", "--dry-run", "--json", env=env)
    assert done.code == 0
    assert (done.json["request"]["size"], "evil" in done.out) == ("4K", False)
    assert done.json["request"]["model"].startswith("doubao-seedream-4-5")
    assert not flag.exists()
    options = ("output", "base-url", "proxy", "callback_url", "api_key_file", "force", "count", "if_exists", "image")
    tables = ("profiles.x.base_url", "prices.4.5", "budget.daily", "ledger.enabled")
    keys = tuple(f"providers.ark.{name}" for name in ("base_url", "api_key_env", "api_key_command"))
    for key in (*options, *tables, *keys):
        assert any(line.startswith("warning: seedream.toml:") and key in line for line in done.err.splitlines()), key
    assert "seedream config trust" in done.err
    strict = tool("generate", "fox", "--dry-run", "--strict", env=env)
    assert (strict.code, strict.out) == (2, "")


@pytest.mark.parametrize(
    "output", ["../x", "/tmp/x", "~/x", "a/../../x", "C:\\x", "\\\\host\\x", "a\\..\\..\\x", "link"]
)
def test_a_strangers_output_stays_in_the_project(tmp_path: Path, output: str) -> None:
    """No spelling of a path, no link in the folder, leads a stranger's images out of it."""
    (tmp_path / "link").symlink_to("/tmp")
    assert trust.trust_reason("output", output, tmp_path)
    assert not trust.trust_reason("output", "shots/", tmp_path)


def test_trust_holds_until_the_file_changes(tool: ConfigCommand) -> None:
    """Trusted once the file may set all; any change, and `untrust`, ends that; our own `set` does not."""
    path = tool.write('base_url = "https://gw.example"\n', project=True)
    assert tool("config", "get", "base_url").out == ""
    said = tool("config", "trust")
    assert "seedream.toml:1 may now set base_url" in said.err
    assert tool("config", "get", "base_url").out == "https://gw.example\n"
    assert tool("config", "set", "size", "4K", "--project").code == 0
    assert tool("config", "get", "base_url").out == "https://gw.example\n"
    path.write_text(path.read_text() + "# more\n")
    assert tool("config", "get", "base_url").out == ""
    tool("config", "trust")
    tool("config", "untrust")
    assert tool("config", "get", "base_url").out == ""
    named = tool("config", "get", "base_url", env={"SEEDREAM_CONFIG": "seedream.toml"})
    assert named.out == "https://gw.example\n", "the file that the user names is the user's"


# --- writing ----------------------------------------------------------------------------------------------------------

COMMENTED = """# my settings
size = "2K"   # enough

# the best one
model = "4.5"

[providers.ark]  # at work
base-url = "https://gw.example"
"""


def test_set_and_unset_keep_comments_order_mode_and_links(tool: ConfigCommand) -> None:
    """Only the one value changes; the file keeps its permissions, and a link stays one."""
    real = tool.home / "dotfiles.toml"
    real.write_text(COMMENTED)
    real.chmod(0o640)
    tool.user.mkdir(parents=True)
    (tool.user / "config.toml").symlink_to(real)
    assert tool("config", "set", "size", "4K").code == 0
    assert tool("config", "set", "providers.ark.base_url", "https://other.example").code == 0
    changed = COMMENTED.replace('"2K"', '"4K"').replace("gw.example", "other.example")
    assert real.read_text() == changed
    assert (tool.user / "config.toml").is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert tool("config", "unset", "model").code == 0
    assert real.read_text() == changed.replace('model = "4.5"\n', "")
    assert sorted(path.name for path in tool.user.iterdir()) == ["config.toml"]


def test_a_new_user_file_is_for_its_owner_and_values_have_their_kinds(tool: ConfigCommand) -> None:
    """Numbers are numbers, names text, switches true or false, lists lists; and what is written is read back."""
    for key, *words in (
        ("seed", "-1"), ("model", "4.5"), ("watermark", "on"), ("image", "a.png", "b c.png"), ("prices.4.5", "0.04"),
        ("profiles.wide.aspect", "21:9"), ("providers.ark.ipm", "30"), ("budget.daily", "5"), ("ledger.enabled", "no"),
    ):  # fmt: skip
        done = tool("config", "set", key, *words)
        assert done.code == 0, done.err
    path = tool.user / "config.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == (
        'seed = -1\nmodel = "4.5"\nwatermark = true\nimage = ["a.png", "b c.png"]\n\n[prices]\n"4.5" = 0.04\n\n'
        '[profiles.wide]\naspect = "21:9"\n\n[providers.ark]\nipm = 30\n\n[budget]\ndaily = 5\n\n'
        "[ledger]\nenabled = false\n"
    )
    for key, value in (("image", "a.png\nb c.png"), ("prices.4.5", "0.04"), ("ledger.enabled", "false")):
        assert tool("config", "get", key).out == f"{value}\n"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("siez", "2K", "did you mean size?"),
        ("size", "banana", "no size"),
        ("aspect", "wide", "no ratio"),
        ("provider", "arkk", "did you mean ark?"),
        ("retries", "1000", "0 to 100"),
        ("if_exists", "maybe", "rename"),
        ("watermark", "perhaps", "neither yes nor no"),
        ("base_url", "gw.example", "https://gw.example"),
        ("providers.ark.ipm", "fast", "whole number"),
        ("prices.4.5", "cheap", "US dollars"),
        ("prompt_file", "a.txt", "no setting"),
        ("api_key", CANARY, "seedream config key set"),
        ("providers.ark.api_key", CANARY, "seedream config key set"),
    ],
)
def test_set_refuses_what_would_not_be_read(tool: ConfigCommand, key: str, value: str, words: str) -> None:
    """A bad key or value ends with 2 and the way out, and nothing is written. A key is never repeated."""
    done = tool("config", "set", key, value)
    assert done.code == 2
    assert words in done.err
    assert not tool.user.exists()


def test_a_broken_file_can_be_mended_by_following_the_messages(tool: ConfigCommand) -> None:
    """An unknown key that is told can be taken out by the command, whatever else is wrong."""
    tool.write('siez = "2K"\nwrong = 1\n')
    assert tool("config", "show").code == 3
    assert tool("config", "unset", "siez").code == 0
    assert tool("config", "set", "size", "4K").code == 0
    assert tool("config", "unset", "wrong").code == 0
    assert tool("config", "get", "size").out == "4K\n"
    missing = tool("config", "unset", "model")
    assert (missing.code, "model is not set" in missing.err) == (2, True)


def test_secrets_are_masked_where_settings_are_shown(tool: ConfigCommand) -> None:
    """Passwords in a proxy's address and the words of a key command are never printed."""
    tool.write(f'proxy = "socks5://me:{CANARY}@h:1"\n[providers.ark]\napi_key_command = "echo {CANARY}"\n')
    for args in (("show",), ("show", "--json"), ("get", "proxy"), ("get", "providers.ark.api_key_command")):
        assert tool("config", *args).code == 0
    tool.write("")  # the fixture looks for the key in files


def test_init_refuses_without_a_terminal(tool: ConfigCommand) -> None:
    """A script gets the commands that do the same instead of a question that nobody answers."""
    done = tool("config", "init")
    assert done.code == 2
    assert "config set provider" in done.err


def test_init_sets_up_and_makes_an_image(tool: ConfigCommand) -> None:
    """On a terminal: provider, hidden key, folder; then a sandbox image lies in that folder."""
    import pty

    main, other = pty.openpty()
    process = tool.popen("config", "init", stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    said = b""
    answers = [(b"provider", b"ark\n"), (b"not shown", CANARY.encode() + b"\n"), (b"folder", b"pics\n")]
    while True:
        try:
            chunk = os.read(main, 4096)
        except OSError:
            break
        said += chunk
        if answers and answers[0][0] in said.rpartition(b"\n")[2]:
            os.write(main, answers.pop(0)[1])
    assert process.wait(30) == 0, said.decode()
    os.close(main)
    assert CANARY.encode() not in said
    assert len(list((tool.folder / "pics").iterdir())) == 1
    assert tool("config", "get", "output").out == "pics/\n"


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_prices_are_found_for_the_provider_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "MODEL", "PROVIDER/MODEL" and tables: aliases mean their model, ids themselves, and nothing else has a price."""
    text = (
        '[prices]\n4.5 = 0.05\n"ark/4.5" = 0.04\n"ep-1/x" = {amount = 1, per_reference = 0.5}\n'
        'pro = {amount = 0.2, provider = "ope"}\n'
    )
    settings = read(tmp_path, monkeypatch, user=text).settings

    def amount(*args: str) -> float | None:
        step = price_for(settings, *args)
        return step.amount if step else None

    assert amount("ark", "4.5", "doubao-seedream-4-5-251128") == 0.04
    assert amount("cometapi", "4.5", "x") == 0.05
    assert amount("ark", "", "ep-1/x") == 1
    assert (amount("ope", "5.0-pro", "x"), amount("ark", "5.0-pro", "x")) == (0.2, None)
    assert price_for(Settings(), "ark", "4.5", "x") is None


def test_get_is_light(tool: ConfigCommand) -> None:
    """Reading a setting loads none of the heavy libraries; from 0.29 on, Typer itself loads pydantic."""
    tool.write('size = "4K"\n')
    code = (
        "import sys; from seedream_cli.cli.app import main; main(sys.argv[1:]);"
        "heavy = 'httpx', 'rich', 'tomlkit', 'keyring', 'PIL', 'sqlite3';"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = [sys.executable, "-P", "-c", code, "config", "get", "size"]
    done = subprocess.run(run, env=tool.env, cwd=tool.folder, capture_output=True, text=True, check=True)
    assert done.stdout == "4K\n[]\n"
