"""What stops a request, a row or a whole batch before it is paid for, and what such a stop may be called."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.network.http import Departure, HttpRequest, LostConnectionError
from seedream_cli.network.urls import split_link
from tests.network.test_transports import exchange, make_client
from tests.support.command import CANARY, Command
from tests.support.provider_server import Upstream, noise
from tests.support.raw_server import RESET, RawServer, Script, answer, make_certificate

ENV = {"OPENAI_API_KEY": CANARY, "ARK_API_KEY": CANARY, "OPE_API_KEY": CANARY, "COMETAPI_KEY": CANARY}

# --- a request that is not written to its end -------------------------------------------------------------------------


@dataclass
class Posted:
    """What came of one request, and what of it left."""

    status: int = 0
    body: bytes = b""
    error: Exception | None = None
    departure: Departure = field(default_factory=lambda: Departure("POST"))

    @property
    def proof(self) -> tuple[bool, bool, bool]:
        """Whether it was cut, all of it left, and it failed."""
        return self.departure.is_cut, self.departure.body_left, self.error is not None


def post(url: str, pieces: int, tls: Any = ssl.create_default_context) -> Posted:
    """One request with a body of so many megabytes."""
    posted = Posted()

    async def go() -> None:
        client = make_client(tls)
        body = itertools.repeat(b"x" * (1 << 20), pieces)
        request = HttpRequest("POST", split_link(url), (), pieces << 20, lambda: body)
        try:
            async with asyncio.timeout(30):
                came = await exchange(client, request, posted.departure)
                posted.status, posted.body = came.status, came.body
        except (LostConnectionError, OSError) as error:
            posted.error = error
        finally:
            await client.aclose()

    asyncio.run(go())
    return posted


def head_only(script: Script, end: Any = None) -> Script:
    return Script(script.pieces, end or script.end, "head")


@pytest.mark.parametrize("end", ["fin", "keep", "hold"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_refusal_before_the_body_is_whole_is_read_and_the_rest_not_sent(
    framing: Any, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the server then closes without reading (which resets), or leaves the connection as it is."""
    monkeypatch.setattr("seedream_cli.network.connections._LAST_WORDS_S", 0.2)
    with RawServer(head_only(answer(b"too large", status=413, framing=framing), end)) as server:
        posted = post(server.url, 64)
    assert (posted.status, posted.body, posted.proof) == (413, b"too large", (True, False, False))


def test_reset_before_the_body_is_whole_says_that_it_is_not(tmp_path: Path) -> None:
    """Over TLS as well; a reset after the last byte says nothing of the kind."""
    with RawServer(Script((), "rst", "head")) as server:
        assert post(server.url, 64).proof == (True, False, True)
    with RawServer(RESET) as server:
        assert post(server.url, 2).proof == (False, True, True)
    made = make_certificate(tmp_path)
    if made is None:
        return
    context = ssl.create_default_context(cafile=made.path)
    for script, cut in ((Script((), "rst", "head"), True), (RESET, False), (answer(b"{}"), False)):
        with RawServer(script, tls=made.server_context()) as server:
            posted = post(server.url, 64 if cut else 2, tls=lambda: context)
            assert (posted.departure.is_cut, posted.error is None) == (cut, script.end == "fin"), script
    with RawServer(head_only(answer(b"no", status=401), "keep"), tls=made.server_context()) as server:
        posted = post(server.url, 64, tls=lambda: context)
        assert (posted.error, posted.status, posted.body, posted.departure.is_cut) == (None, 401, b"no", True)


def references(command: Command, rows: int) -> None:
    """A table whose rows each send more than the buffers of two sockets hold."""
    (command.folder / "big.png").write_bytes(noise((2400, 2000)))
    lines = ["id,prompt,image", *(f"r{number},number {number},big.png|big.png" for number in range(rows))]
    (command.folder / "shots.csv").write_text("\n".join(lines))


REFUSALS = {
    "413 as a page": (answer(b"<html>too large</html>", status=413), 4, "refused"),
    "503 as a page": (answer(b"<html>busy</html>", status=503), 5, "unavailable"),
    "a reset": (Script((), "rst"), 6, "network"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_batch_goes_on_after_requests_that_were_not_sent_whole(seedream: Command, name: str) -> None:
    """Five of them in a row are no five doubts, and none may be billed."""
    script, code, kind = REFUSALS[name]
    references(seedream, 5)
    with RawServer(head_only(script)) as server:
        args = ["batch", "shots.csv", "-p", "ark", "--base-url", server.url, "--retries", "0", "--max-unknown", "1"]
        done = seedream(*args, "--json", env=ENV)
        rows = [row for row in map(json.loads, done.out.splitlines()) if "row" in row]
        assert {(row["error"]["code"], row["error"]["billed"]) for row in rows} == {(kind, "no")}, done.err
        assert (len(rows), done.code, len(server.requests)) == (5, code, 5), done.err


def test_refusal_through_a_proxy_before_the_body_is_whole_is_not_billed(seedream: Command) -> None:
    """A proxy that resets in the middle of a request was not given all of it either."""
    references(seedream, 1)
    for script, codes in ((answer(b"<html>too large</html>", status=413), {4, 6}), (Script((), "rst"), {6})):
        with RawServer(head_only(script)) as proxy:
            more = ["--proxy", proxy.url, "--base-url", "http://127.0.0.1:9/v1", "--retries", "0"]
            done = seedream("edit", "x", "big.png", "big.png", "-p", "ark", "--json", *more, env=ENV)
            assert done.code in codes, done.err
            assert done.json["error"]["billed"] == "no"


# --- what would stop every row ----------------------------------------------------------------------------------------

EMPTY = {
    "new-api": (403, {"code": "insufficient_user_quota", "type": "new_api_error"}),
    "one-api": (403, {"code": "pre_consume_token_quota_failed", "type": "one_api_error"}),
    "LiteLLM": (400, {"code": "400", "type": "budget_exceeded"}),
    "OpenAI": (400, {"code": "billing_hard_limit_reached", "type": "image_generation_user_error"}),
    "OpenRouter": (402, {"code": 402}),
}


def many(command: Command, rows: int = 40) -> None:
    lines = ["id,prompt", *(f"r{number},number {number}" for number in range(rows))]
    (command.folder / "shots.csv").write_text("\n".join(lines))


@pytest.mark.parametrize(("provider", "name"), [*(("openai", name) for name in EMPTY), ("ope", "new-api")])
def test_batch_stops_where_the_account_is_empty(seedream: Command, provider: str, name: str) -> None:
    """A gateway's word for it is known, in the code or in the type."""
    status, error = EMPTY[name]
    many(seedream)
    with RawServer(answer(json.dumps({"error": {"message": "no", **error}}).encode(), status=status)) as server:
        args = ["batch", "shots.csv", "-p", provider, "--base-url", f"{server.url}/v1", "--concurrency", "2"]
        done = seedream(*args, env=ENV)
        assert done.code == 3, done.err
        assert server.count("POST") <= 4


@pytest.mark.parametrize("status", [403, 503])
def test_batch_stops_at_a_page_for_browsers(seedream: Command, status: int) -> None:
    """Its title is in the message, and nothing was drawn."""
    page = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
    many(seedream)
    with RawServer(answer(page, status=status)) as server:
        args = ["batch", "shots.csv", "-p", "openai", "--base-url", f"{server.url}/v1", "--concurrency", "2"]
        done = seedream(*args, env=ENV)
        assert (done.code, "Just a moment" in done.err) == (3, True), done.err
        assert server.count("POST") <= 4
        one = seedream("generate", "x", *args[2:6], "--json", env=ENV)
        assert (one.json["error"]["code"], one.json["error"]["billed"]) == ("config", "no")


def test_batch_stops_where_the_first_rows_are_all_refused_alike(seedream: Command) -> None:
    """Unless the user said how many failures to bear, or the words are about the content of each prompt."""
    many(seedream)
    args = ["batch", "shots.csv", "-p", "openai", "--concurrency", "2"]
    alike = answer(b'{"error": {"message": "channel 7 is closed", "code": "no_channel"}}', status=403)
    with RawServer(alike) as server:
        done = seedream(*args, "--base-url", f"{server.url}/v1", env=ENV)
        assert (done.code, "--max-failures" in done.err) == (4, True), done.err
        assert server.count("POST") <= 12
        before = server.count("POST")
        seedream(*args, "--base-url", f"{server.url}/v1", "--max-failures", "1000", env=ENV)
        assert server.count("POST") == before + 40
    content = answer(b'{"error": {"message": "no", "code": "content_policy_violation"}}', status=400)
    many(seedream, 41)
    with RawServer(content) as server:
        seedream("batch", "shots.csv", "-p", "openai", "-o", "b/", "--base-url", f"{server.url}/v1", env=ENV)
        assert server.count("POST") == 41


# --- standard output that has no room ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["--help"],
        [],
        ["models"],
        ["config", "show", "--all"],
        ["history", "--json"],
        ["generate", "x", "-p", "sandbox"],
        ["generate", "x", "-p", "sandbox", "--json"],
        ["generate", "x", "-p", "sandbox", "--no-download"],
        ["batch", "shots.csv", "-p", "sandbox", "--json"],
        ["generate", "x", "-p", "sandbox", "--dry-run"],
    ],
    ids=" ".join,
)
def test_full_disk_behind_standard_output_is_told(seedream: Command, args: list[str]) -> None:
    """One line on standard error, and what was paid for is on disk."""
    many(seedream, 2)
    with Path("/dev/full").open("wb") as full:
        process = seedream.popen(*args, stdout=full)
        err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 74, err
    assert err.count("standard output cannot be written") == 1, err
    if args[:1] in (["generate"], ["batch"]) and not {"--no-download", "--dry-run"} & set(args):
        assert list(seedream.folder.rglob("*.jp*g")) or list(seedream.folder.rglob("*.png"))


def test_full_disk_behind_standard_output_is_told_beside_a_failure(seedream: Command) -> None:
    """A script that finds half an object behind `>` must be told why, though something else went wrong as well."""
    refusal = answer(b'{"error": {"message": "no", "code": "x"}}', status=400)
    with RawServer(refusal) as server, Path("/dev/full").open("wb") as full:
        args = ["generate", "x", "-p", "openai", "--base-url", f"{server.url}/v1", "--json"]
        process = seedream.popen(*args, env=ENV, stdout=full)
        err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 74, err
    assert "standard output cannot be written" in err


# --- places that are no files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "x", "-o", "s3://bucket/x/"],
        ["generate", "x", "-o", "GS://bucket/x.png"],
        ["generate", "x", "-o", "file:///tmp/x/"],
        ["generate", "x", "--name", "az://{slug}"],
        ["batch", "shots.csv", "-o", "s3://bucket/x/"],
        ["batch", "shots.csv", "--results", "s3://bucket/x.csv"],
        ["config", "set", "output", "s3://bucket/x"],
    ],
    ids=" ".join,
)
def test_place_with_a_scheme_is_refused_before_anything_is_paid(seedream: Command, args: list[str]) -> None:
    """It would become a local folder called `s3:`."""
    many(seedream, 1)
    done = seedream(*args, *([] if args[0] == "config" else ["-p", "sandbox"]))
    assert done.code == 2, done.err
    assert "no place to write to" in done.err
    assert sorted(path.name for path in seedream.folder.iterdir()) == ["shots.csv"]


def test_place_with_a_scheme_is_refused_wherever_it_stands(seedream: Command) -> None:
    """In the environment, a project's file and a prompt file."""
    done = seedream("generate", "x", "-p", "sandbox", env={"SEEDREAM_OUTPUT": "s3://b/"})
    assert done.code == 2, done.err
    (seedream.folder / "p.md").write_text('+++\noutput = "s3://b/"\n+++\nx')
    assert seedream("generate", "-f", "p.md", "-p", "sandbox").code == 2
    below = seedream.folder / "below"
    below.mkdir()
    (seedream.folder / "seedream.toml").write_text('output = "s3://b/"\n')
    done = seedream("generate", "x", "-p", "sandbox", cwd=below)
    assert not list(below.iterdir())
    assert done.code in {2, 3}, done.err


# --- what a provider says, and what a helper is told ------------------------------------------------------------------


def test_key_and_commands_in_what_a_provider_says_are_not_passed_on(seedream: Command) -> None:
    """In usage, in the error of one image, in results; and nesting without end is cut."""
    deep: Any = CANARY
    for _ in range(240):
        deep = {CANARY: [deep]}
    inside = base64.b64encode(f"user:{CANARY}:".encode()).decode()
    usage = {
        "generated_images": 1,
        "echo": f"Bearer {CANARY}",
        "inside": inside,
        "big": 10**400,
        "deep": deep,
        "many": list(range(9999)),
    }
    with Upstream() as upstream:
        upstream._reply = lambda body, number: {**upstream.images(body, number), "usage": usage}
        args = ["-p", "ark", "--base-url", upstream.url, "--json"]
        done = seedream("generate", "x", *args, env=ENV)
        assert (done.code, done.json["usage"]["generated_images"]) == (0, 1), done.err
        assert seedream("history", "--json", env=ENV).code == 0
        ledger = b"".join(path.read_bytes() for path in (seedream.home / "state").glob("ledger.db*"))
        assert b"generated_images" in ledger
        for told in (done.out.encode(), ledger):
            assert inside[12:36].encode() not in told
        error = {"error": {"code": "bad\x1b[2J", "message": f"\x1b]0;x\x07 {CANARY} \x9b2J"}}
        upstream._reply = lambda body, number: {"data": [error]}
        (seedream.folder / "shots.csv").write_text("prompt\nx")
        seedream("batch", "shots.csv", *args, env=ENV)
        raw = (seedream.folder / "shots/results.csv").read_bytes()
        assert not {0x1B, 0x07} & set(raw), raw
        assert b"\xc2\x9b" not in raw


def test_key_command_inherits_no_key(seedream: Command) -> None:
    """Neither another provider's, nor one that a setting names."""
    program = seedream.folder / "ask.sh"
    program.write_text(f"#!/bin/sh\nenv > {seedream.folder}/seen\necho {CANARY}\n")
    program.chmod(0o755)
    secrets = {"COMETAPI_KEY": "sk-other-1", "OPE_API_KEY": "sk-other-2", "MY_OWN": "sk-other-3"}
    with Upstream() as upstream:
        (seedream.folder / "own.toml").write_text(
            f'[providers.ark]\nbase_url = "{upstream.url}"\napi_key_command = "{program}"\n'
            '[providers.openai]\napi_key_env = "MY_OWN"\n'
        )
        done = seedream("generate", "x", "-p", "ark", "--config", "own.toml", env=secrets)
    program.write_text("")
    assert (seedream.folder / "seen").is_file(), done.err
    seen = (seedream.folder / "seen").read_text()
    (seedream.folder / "seen").unlink()
    assert "sk-other" not in seen
    assert "HOME=" in seen, done.err
