"""How the tool behaves in its surroundings: colours, proxies, certificates, code pages, and `-` for files."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.command import CANARY, Command, Inside
from tests.support.provider_server import Upstream
from tests.support.raw_server import RawServer, Tunnel, make_certificate

FOX = ("generate", "a fox", "-p", "sandbox")
ESCAPE = "\x1b["


def on_terminal(command: Command, *args: str, env: dict[str, str] | None = None) -> str:
    """All that a run shows on a terminal of 80 columns as its standard error."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "seedream_cli", *args],
        env={**command.env, "TERM": "xterm", "COLUMNS": "80", **(env or {})},
        cwd=command.folder,
        stdin=follower,
        stdout=subprocess.DEVNULL,
        stderr=follower,
    ) as process:
        os.close(follower)
        shown, waited = b"", time.monotonic() + 30
        while time.monotonic() < waited and (process.poll() is None or select.select([leader], [], [], 0.2)[0]):
            if select.select([leader], [], [], 0.2)[0]:
                try:
                    shown += os.read(leader, 65_536)
                except OSError:
                    break
    os.close(leader)
    return shown.decode()


# --- colour and live bars ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "colored"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "0"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False),
    ],
)
def test_colour_without_a_terminal_is_only_forced(inside: Inside, env: dict[str, str], colored: bool) -> None:
    """Labels are coloured in a pipe for FORCE_COLOR alone, which NO_COLOR and TERM=dumb overrule; results never are."""
    done = inside("models", "no-such-model", env=env)
    assert done.code == 2
    assert (ESCAPE in done.err) == colored
    assert ESCAPE not in inside("models", env=env).out


def test_forced_colour_makes_no_live_display(seedream: Command) -> None:
    """FORCE_COLOR and --progress bar move no cursor where no terminal is."""
    done = seedream(*FOX, "--progress", "bar", env={"FORCE_COLOR": "1"})
    assert done.code == 0
    assert not re.search(r"\x1b\[\??[0-9;]*[A-HJKhl]", done.err)


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "true"}, {"NO_COLOR": "1"}])
def test_a_terminal_gets_what_it_can_show(seedream: Command, env: dict[str, str]) -> None:
    """TERM=dumb and a CI service's terminal get plain lines; NO_COLOR takes the colours and leaves the display."""
    shown = on_terminal(seedream, "generate", "a fox [[slow:1]]", "-p", "sandbox", env=env)
    moves = bool(re.search(r"\x1b\[\??[0-9;]*[A-HJKhl]", shown))
    colors = bool(re.search(r"\x1b\[[0-9;]*[1-9][0-9;]*m", shown))
    assert (moves, colors) == ("NO_COLOR" in env, "NO_COLOR" not in env and "TERM" not in env and colors)
    assert list(seedream.folder.glob("*.jpg"))


def test_columns_fold_what_is_for_people(inside: Inside) -> None:
    """COLUMNS narrows help, never JSON, nor a table in a pipe."""
    narrow, wide = (inside("models", "4.5", env={"COLUMNS": width}).out for width in ("50", "200"))
    assert narrow == wide
    narrow, wide = (inside("generate", "--help", env={"COLUMNS": width}).out for width in ("50", "100"))
    assert max(map(len, narrow.splitlines())) < max(map(len, wide.splitlines()))
    assert inside("models", "--json", env={"COLUMNS": "40"}).out.count("\n") == 1
    assert inside("models", env={"COLUMNS": "wide"}).code == 0


# --- proxies and certificates -----------------------------------------------------------------------------------------

AWAY = ("generate", "a fox", "-p", "openai", "-m", "4.5", "--base-url", "https://gateway.invalid/v1", "--retries", "0")
KEYED = {"OPENAI_API_KEY": CANARY}


@pytest.mark.parametrize(
    ("env", "args"),
    [
        ({"ALL_PROXY": "socks5://me:hunter2@127.0.0.1:9"}, ()),
        ({"https_proxy": "socks5h://127.0.0.1:9"}, ()),
        ({}, ("--proxy", "socks5://me:hunter2@127.0.0.1:9")),
    ],
)
def test_socks_without_its_extra_is_told_before_anything_is_sent(
    seedream: Command, env: dict[str, str], args: tuple[str, ...]
) -> None:
    """A SOCKS proxy without the extra ends with 3 and the line that adds it; the history stays empty."""
    import importlib.util

    if importlib.util.find_spec("socksio"):
        pytest.skip("the extra is installed")
    done = seedream(*AWAY, *args, env={**KEYED, **env})
    assert done.code == 3
    assert "SOCKS" in done.err
    assert 'pip install "seedream[socks]"' in done.err
    assert "hunter2" not in done.err
    assert seedream("history", "--json").json["requests"] == []


def test_a_proxy_of_no_known_kind_is_told(seedream: Command) -> None:
    """An address such as socks4:// is refused by name, and by that of its variable."""
    done = seedream(*AWAY, env={**KEYED, "ALL_PROXY": "socks4://127.0.0.1:9"})
    assert done.code == 3
    assert "socks4://127.0.0.1:9 (ALL_PROXY)" in done.err


def test_https_goes_through_the_proxy_unless_no_proxy_says_so(seedream: Command) -> None:
    """HTTPS_PROXY gets a CONNECT and never the key; NO_PROXY keeps its hosts to themselves; the sandbox needs none."""
    with Tunnel() as proxy:
        env = {**KEYED, "HTTPS_PROXY": proxy.url}
        done = seedream(*AWAY, env=env)
        assert done.code == 6
        assert f"through the proxy {proxy.url.removeprefix('http://')}" in done.err
        assert [request.method for request in proxy.requests] == ["CONNECT"]
        assert CANARY.encode() not in proxy.requests[0].raw
        assert seedream(*AWAY, env={**env, "NO_PROXY": "gateway.invalid"}).code == 6
        assert seedream(*FOX, env=env).code == 0
        assert len(proxy.requests) == 1


def test_certificates_are_the_users_or_the_systems(seedream: Command, tmp_path: Path) -> None:
    """SSL_CERT_FILE alone decides where it is set; a file that is none ends with 3 and sends nothing."""
    certificate = make_certificate(tmp_path)
    if certificate is None:
        pytest.skip("there is no openssl command")
    upstream = Upstream()
    with upstream, RawServer(upstream._serve, tls=certificate.server_context()) as server:
        call = ("generate", "a fox", "-p", "openai", "-m", "4.5", "--base-url", server.url, "--retries", "0")
        refused = seedream(*call, env=KEYED)
        assert refused.code == 6
        assert "certificate" in refused.err
        assert not server.requests
        named = seedream(*call, env={**KEYED, "SSL_CERT_FILE": str(certificate.path)})
        assert named.code == 0, named.err
        for wrong in (tmp_path / "absent.pem", Path(__file__)):
            broken = seedream(*call, env={**KEYED, "SSL_CERT_FILE": str(wrong)})
            assert broken.code == 3
            assert "SSL_CERT_FILE" in broken.err
        assert server.count("POST") == 1


def test_system_certificates_are_trusted_beside_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system trusts counts (a company's authority is there), and what the user names counts alone."""
    from seedream_cli.network import http_clients

    loaded = []
    monkeypatch.setattr(http_clients.ssl.SSLContext, "load_default_certs", lambda *_: loaded.append(1))
    http_clients._trusted(None, None)
    assert loaded == [1]
    http_clients._trusted(None, str(Path(__file__).parents[1]))
    assert loaded == [1]


# --- code pages, locales, standard input ------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "LANG": ""}, {"PYTHONIOENCODING": "cp1252"}])
def test_names_survive_any_locale(seedream: Command, env: dict[str, str]) -> None:
    """In a C locale or a code page that lacks the characters the file has its name, and JSON reads back exactly."""
    done = seedream("generate", "ein Füchslein 狐", "-p", "sandbox", "--json", env=env)
    assert done.code == 0
    assert Path(seedream.folder, done.json["images"][0]["path"]).is_file()
    assert done.json["request"]["prompt"] == "ein Füchslein 狐"
    assert [path.name for path in seedream.folder.iterdir()] == ["ein-füchslein-狐.jpg"]
    assert seedream("doctor", "-p", "sandbox", env={**env, "PYTHONIOENCODING": "cp437"}).code == 0


def test_a_dash_is_standard_input_or_output(seedream: Command) -> None:
    """Prompt, prompt file, image, settings, key and output take `-`."""
    sent: list[str] = []
    for args, stdin in [
        (("generate", "-"), b"a fox"),
        (("generate", "-f", "-"), b"+++\ncount = 1\n+++\na fox"),
        (("generate", "a fox", "--config", "-"), b'size = "2K"'),
    ]:
        done = seedream(*args, "-p", "sandbox", "--dry-run", "--json", stdin=stdin)
        sent.append(done.json["request"]["prompt"])
    assert sent == ["a fox"] * 3
    with subprocess.Popen(
        [sys.executable, "-m", "seedream_cli", *FOX, "-o", "-"],
        env=seedream.env, cwd=seedream.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        image, _ = process.communicate(timeout=60)
    assert image.startswith(b"\xff\xd8")
    done = seedream("edit", "night", "-", "-p", "sandbox", "-o", "night.jpg", stdin=image)
    assert done.out == "night.jpg\n"
    with Upstream() as upstream:
        call = ("generate", "a fox", "-p", "ark", "--base-url", upstream.url, "--api-key-file", "-")
        assert seedream(*call, stdin=CANARY.encode()).code == 0
        assert upstream.posts[0].header("authorization") == f"Bearer {CANARY}"


def test_standard_input_that_is_read_already_holds_no_key(seedream: Command) -> None:
    """With the prompt and the key both on `-`, or with an empty key, nothing is sent."""
    with Upstream() as upstream:
        call = ("generate", "-", "-p", "ark", "--base-url", upstream.url, "--api-key-file", "-")
        assert seedream(*call, stdin=b"a fox").code == 2
        empty = seedream("generate", "a fox", *call[2:])
        assert empty.code == 3
        assert "holds no key" in empty.err
        (seedream.folder / "empty").write_text("\n")
        assert seedream(*FOX[:2], "-p", "ark", "--base-url", upstream.url, "--api-key-file", "empty").code == 3
        assert not upstream.posts


# --- what variables and files ask for ---------------------------------------------------------------------------------


def test_json_by_variable_or_file_is_json_for_failures_too(inside: Inside) -> None:
    """SEEDREAM_JSON and `json = true` give an object for what fails before any request; commands without it stay."""
    for env in ({"SEEDREAM_JSON": "1"}, {}):
        if not env:
            (inside.folder / "seedream.toml").write_text("json = true\n")
        done = inside("generate", "-p", "sandbox", "--size", "nonsense", env=env)
        assert (done.code, done.json["status"], done.json["error"]["code"]) == (2, "failed", "validation")
    assert inside("generate", "-p", "sandbox", env={"SEEDREAM_JSON": "0"}).out == ""
    (inside.folder / "seedream.toml").write_text("sise = 1\njson = true\n")
    assert inside("generate", "a fox", "-p", "sandbox").json["error"]["code"] == "config"
    assert inside("config", "get", "nonsense", env={"SEEDREAM_JSON": "1"}).out == ""


def test_verbose_by_variable_or_file_counts(seedream: Command) -> None:
    """SEEDREAM_VERBOSE=2 and `verbose = 2` show the wire as -vv does; a word is no number."""
    assert "wire: >" in seedream(*FOX, env={"SEEDREAM_VERBOSE": "2"}).err
    assert "wire: >" not in seedream(*FOX).err
    (seedream.folder / "seedream.toml").write_text("verbose = 2\n")
    assert "wire: >" in seedream(*FOX).err
    wrong = seedream(*FOX, env={"SEEDREAM_VERBOSE": "loud"})
    assert wrong.code == 2
    assert "SEEDREAM_VERBOSE" in wrong.err


def test_recover_tells_what_an_untrusted_project_wanted(inside: Inside) -> None:
    """`recover` ignores what a project file may not set, and says so."""
    (inside.folder / "seedream.toml").write_text('proxy = "http://proxy.invalid:1"\n')
    done = inside("recover")
    assert done.code == 0
    assert "seedream.toml:1" in done.err
    assert "not trusted" in done.err
    assert inside("recover", env={"SEEDREAM_STRICT": "1"}).code == 2


def test_a_key_that_goes_elsewhere_is_told_in_a_line(seedream: Command) -> None:
    """Where the user sends a provider's key to another host, one note says whose key goes where; else none does."""
    with Upstream() as upstream:
        call = ("generate", "a fox", "-p", "ark", "--base-url", upstream.url)
        done = seedream(*call, env={"ARK_API_KEY": CANARY})
        notes = [line for line in done.err.splitlines() if line.startswith("note: the key")]
        there = f"{upstream.url} (from --base-url), not to https://ark.cn-beijing.volces.com"
        assert notes == [f"note: the key of $ARK_API_KEY goes to {there}"]
        gateway = ("generate", "a fox", "-p", "openai", "-m", "4.5", "--base-url", upstream.url)
        assert "note: the key" not in seedream(*gateway, env=KEYED).err
