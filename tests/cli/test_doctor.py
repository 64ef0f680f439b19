"""The set-up check: each finding, its exit code, and that it never pays."""

from __future__ import annotations

import datetime as dt
import email.utils
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import CANARY, Command, Done, Inside
from tests.support.raw_server import RawServer, Script, answer, free_port, make_certificate

MODEL = "doubao-seedream-4-5-251128"
LIST = json.dumps({"object": "list", "data": [{"id": MODEL}, {"id": "doubao-seedream-4-0-250828"}]}).encode()


def checks(done: Done) -> dict[str, dict[str, Any]]:
    """The findings by name; the last of a name counts."""
    assert done.json["schema"] == "seedream/1"
    assert done.json["command"] == "doctor"
    failed = any(row["state"] == "fail" for row in done.json["checks"])
    assert done.code == (3 if failed else 0)
    assert done.json["status"] == ("failed" if failed else "succeeded")
    return {row["name"]: row for row in done.json["checks"]}


def dated(body: bytes = LIST, *, ahead_s: float = 0.0, status: int = 200) -> Script:
    """A reply whose clock is so far ahead of ours."""
    moment = dt.datetime.now(tz=dt.UTC) + dt.timedelta(seconds=ahead_s)
    return answer(body, status=status, headers=[("Date", email.utils.format_datetime(moment, usegmt=True))])


def ask(seedream: Command, server: RawServer, *args: str, **env: str) -> dict[str, dict[str, Any]]:
    """What doctor finds with ark at this server."""
    env = {"ARK_API_KEY": CANARY} | env
    done = seedream("doctor", "-p", "ark", "--base-url", server.url, "--json", *args, env=env)
    assert [request.method for request in server.requests] == ["GET"] * len(server.requests)
    return checks(done)


def test_a_whole_set_up_is_found_good(seedream: Command) -> None:
    """With the key, one free GET tells of address, clock and models; the key is shown by its last four characters."""
    with RawServer(dated()) as server:
        found = ask(seedream, server, "-m", "4.5")
    assert [request.target for request in server.requests] == [b"/api/v3/models"]
    assert server.requests[0].header("authorization") == f"Bearer {CANARY}"
    states = {name: row["state"] for name, row in found.items()}
    # The key goes to an address that is not the provider's own, and the tests' PATH need not have the command.
    assert {**states, "key": "", "command": ""} == dict.fromkeys(states, "ok") | {"key": "", "command": ""}
    assert found["models"]["what"].startswith(MODEL)
    assert set(found) == {
        *("settings", "provider", "key", "address", "clock", "models"),
        *("output", "state", "config", "ledger", "versions", "command"),
    }


@pytest.mark.parametrize(
    ("script", "args", "name", "state", "words"),
    [
        (dated(b'{"error":{"code":"AuthenticationError","message":"no"}}', status=401), (), "models", "fail", "key"),
        (dated(b"not found", status=404), (), "models", "warn", "no list of models"),
        (dated(b"<html>busy</html>", status=503), (), "models", "warn", "503"),
        (dated(), ("-m", "5.0-pro"), "models", "warn", "not among the 2"),
        (dated(), ("-m", "ep-2026-abc"), "models", "ok", "not listed"),
        (dated(ahead_s=-90_000), ("-m", "4.5"), "clock", "warn", "25 hours ahead"),
        (dated(ahead_s=10_800), ("-m", "4.5"), "clock", "warn", "3 hours behind"),
    ],
)
def test_what_the_service_says_is_judged(
    seedream: Command, script: Script, args: tuple[str, ...], name: str, state: str, words: str
) -> None:
    """A refused key fails; a list that is missing or lacks the model, and a clock that is off, are warned of."""
    with RawServer(script) as server:
        found = ask(seedream, server, *args)
    assert len(server.requests) == 1
    assert found[name]["state"] == state
    assert words in found[name]["what"]
    assert found["address"]["state"] == "ok"


def test_without_a_key_only_the_address_is_asked(seedream: Command) -> None:
    """No key: exit 3 and the way to one; the address is still tried, with nothing of the user's."""
    with RawServer(dated(b"hello", status=404)) as server:
        done = seedream("doctor", "-p", "ark", "--base-url", server.url, "--json")
    found = checks(done)
    assert done.code == 3
    assert found["key"]["state"] == "fail"
    assert "config key set ark" in found["key"]["hint"]
    assert found["address"]["state"] == "ok"
    assert [(r.method, r.target, r.header("authorization")) for r in server.requests] == [("GET", b"/api/v3/", None)]


def test_a_provider_without_a_list_is_asked_without_the_key(seedream: Command) -> None:
    """Where there are no models to list, that the address answers is seen without the key; a redirect is an answer."""
    with RawServer(answer(b"", status=302, headers=[("Location", "https://elsewhere.invalid/")])) as server:
        env = {"ACEDATACLOUD_API_TOKEN": CANARY}
        found = checks(seedream("doctor", "-p", "acedata", "--base-url", server.url, "--json", env=env))
    assert found["address"]["state"] == "ok"
    assert "models" not in found
    assert [(r.method, r.header("authorization")) for r in server.requests] == [("GET", None)]


def test_an_address_that_cannot_be_reached_is_told_apart(seedream: Command, tmp_path: Path) -> None:
    """A closed port, an unknown name and a certificate nobody trusts fail, each with its own hint; nothing is tried
    twice.
    """
    env = {"ARK_API_KEY": CANARY, "OPENAI_API_KEY": CANARY}
    closed = checks(seedream("doctor", "-p", "ark", "--base-url", f"http://127.0.0.1:{free_port()}", "--json", env=env))
    assert closed["address"]["state"] == "fail"
    assert "nothing listens" in closed["address"]["hint"]
    unknown = checks(seedream("doctor", "-p", "openai", "--base-url", "https://h.invalid", "--json", env=env))
    assert "DNS" in unknown["address"]["hint"]
    certificate = make_certificate(tmp_path)
    if certificate is None:
        pytest.skip("there is no openssl command")
    with RawServer(dated(), tls=certificate.server_context()) as server:
        found = ask(seedream, server)
        assert "certificate is not trusted" in found["address"]["what"]
        assert "SSL_CERT_FILE" in found["address"]["hint"]
        assert not server.requests
        assert ask(seedream, server, SSL_CERT_FILE=str(certificate.path))["address"]["state"] == "ok"


def test_settings_are_judged_and_the_rest_goes_on(seedream: Command) -> None:
    """Mistakes in files and variables fail with file and line, the untrusted is warned of, all else is checked."""
    (seedream.folder / "seedream.toml").write_text('size = "2K"\nsise = "4K"\nproxy = "http://h:1"\n')
    done = seedream("doctor", "-p", "sandbox", "--json", env={"SEEDREAM_STRICT": "perhaps"})
    rows = [row for row in done.json["checks"] if row["name"] == "settings"]
    told = {(row["state"], row["what"].partition(": ")[0]) for row in rows}
    assert {("fail", "$SEEDREAM_STRICT"), ("fail", "seedream.toml:2"), ("warn", "seedream.toml:3")} <= told
    assert any("did you mean" in (row["hint"] or "") for row in rows)
    assert checks(done)["models"]["state"] == "ok"


def test_folders_and_ledger_are_tried(inside: Inside) -> None:
    """A folder that cannot be written fails, without leaving anything; a damaged ledger fails with the way out."""
    (inside.folder / "file").write_text("")
    state = inside.home / "state"
    state.mkdir()
    (state / "ledger.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    found = checks(inside("doctor", "-p", "sandbox", "-o", "file/below/", "--json"))
    assert found["output"]["state"] == "fail"
    assert found["ledger"]["state"] == "fail"
    assert found["state"]["state"] == "ok"
    assert {path.name for path in inside.folder.iterdir()} == {"file"}


def test_a_sound_ledger_tells_what_waits(seedream: Command) -> None:
    """After an image that is paid and not saved, doctor names `seedream recover`."""
    assert seedream("generate", "a fox", "-p", "sandbox", "-o", "fox.jpg").code == 0
    assert checks(seedream("doctor", "-p", "sandbox", "--json"))["ledger"]["state"] == "ok"
    assert seedream("generate", "a fox [[cut]]", "-p", "sandbox", "--retries", "0").code == 8
    found = checks(seedream("doctor", "-p", "sandbox", "--json"))["ledger"]
    assert (found["state"], found["hint"]) == ("warn", "seedream recover")


def test_whose_command_it_is(seedream: Command) -> None:
    """Another program of the same name on PATH is told apart from this one installed elsewhere."""
    tools = seedream.home / "bin"
    tools.mkdir()
    script = tools / "seedream"
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    script.write_text("#!/usr/bin/python3\nfrom other.cli import app\napp()\n")
    script.chmod(0o755)
    other = checks(seedream("doctor", "-p", "sandbox", "--json", env=path))["command"]
    assert other["state"] == "warn"
    assert "another program" in other["what"]
    script.write_text("#!/usr/bin/python3\nfrom seedream_cli.__main__ import main\nmain()\n")
    mine = checks(seedream("doctor", "-p", "sandbox", "--json", env=path))["command"]
    assert mine["state"] == "ok"
    assert sys.executable in mine["what"]


def test_the_text_is_for_people(inside: Inside) -> None:
    """Without --json each finding is a line that begins with its state, and a hint stands below what is wrong."""
    done = inside("doctor", "-p", "ark", "--base-url", f"http://127.0.0.1:{free_port()}", env={"COLUMNS": "60"})
    assert done.code == 3
    lines = done.out.splitlines()
    assert any(line.startswith("fail  address") for line in lines)
    assert any("hint: " in line for line in lines)
    # In a pipe a finding is one line, a path in it whole.
    assert {line[:5].strip() for line in lines} == {"ok", "warn", "fail", ""}
    assert done.err.startswith("2 failed")
