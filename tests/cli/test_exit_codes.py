"""How a request ends that never reached the model, or whose image cannot be handed on."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import CANARY, Command
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream, make_image, noise, refusal
from tests.support.raw_server import RawServer, Script, answer

KEYS = ("ARK_API_KEY", "OPENAI_API_KEY", "ACEDATACLOUD_API_TOKEN")
pytestmark = pytest.mark.hurried
ENV = dict.fromkeys(KEYS, CANARY)


# --- refusals that concern every request ----------------------------------------------------------------------------


def page(title: str, status: int = 403, **headers: str) -> Script:
    """A web page for people."""
    text = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>x</h1></body></html>"
    kind = [("Content-Type", "text/html; charset=UTF-8"), *headers.items()]
    return answer(text.encode(), status=status, headers=kind)


def fault(status: int, code: str, **more: str) -> Script:
    """An error in the envelope of OpenAI's gateways."""
    return answer(json.dumps({"error": {"message": "no", "code": code, **more}}).encode(), status=status)


PAGE = "Attention Required! | Cloudflare"
REFUSALS = {
    "challenge": (page("Just a moment...", **{"cf-mitigated": "challenge"}), "config", "Just a moment..."),
    "challenge without a body": (answer(status=403, headers=[("cf-mitigated", "challenge")]), "config", "403"),
    "block page": (page(PAGE), "config", PAGE),
    "a proxy's page": (page("403 Forbidden"), "config", "403 Forbidden"),
    "page of a region's law": (page("Unavailable", 451), "config", "Unavailable"),
    "wrong key": (refusal(401, "AuthenticationError"), "auth", "no"),
    "wrong key, by a page": (page("401 Authorization Required", 401), "auth", "401"),
    "overdue": (refusal(403, "AccountOverdueError"), "account", "no"),
    "empty at new-api": (fault(403, "insufficient_user_quota", type="new_api_error"), "account", "no"),
    "empty at LiteLLM": (fault(400, "400", type="budget_exceeded"), "account", "no"),
    "payment required": (answer(b'{"detail": "no credits"}', status=402), "account", "no credits"),
}


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        *((name, "openai") for name in REFUSALS),
        *((name, "ark") for name in ("block page", "empty at new-api", "empty at LiteLLM")),
        *((name, "acedata") for name in ("block page", "empty at new-api", "empty at LiteLLM")),
    ],
)
def test_refusal_of_every_request_is_exit_3_by_its_kind(forked: Forked, name: str, provider: str) -> None:
    """Whatever provider the address was given for: one request, not billed, the other side's words in the message."""
    script, kind, words = REFUSALS[name]
    with Upstream(script=lambda request, number: script) as upstream:
        to = ["-p", provider, "-m", "4.5", "--base-url", upstream.url]
        done = forked("generate", "a fox", *to, "--json", env=ENV)
        error = done.json["error"]
        assert (done.code, error["code"], error["billed"]) == (3, kind, "no")
        assert words in error["message"]
        assert len(upstream.posts) == 1


def test_page_that_forbids_stops_a_batch_at_once(forked: Forked) -> None:
    """Each of a hundred rows would get the same page."""
    (forked.folder / "t.csv").write_text("prompt\n" + "".join(f"fox {number}\n" for number in range(100)))
    with Upstream(script=lambda request, number: page(PAGE)) as upstream:
        to = ["-p", "openai", "-m", "4.5", "--base-url", upstream.url, "--concurrency", "1"]
        done = forked("batch", "t.csv", *to, env=ENV)
        assert (done.code, len(upstream.posts)) == (3, 1)
        assert PAGE in done.err


# --- a request that was not written to its end ----------------------------------------------------------------------


@contextlib.contextmanager
def deaf() -> Iterator[RawServer]:
    """A server that reads the head of a request and nothing more."""
    # The pause ends with the test; to hold the connection would be to read from it.
    with RawServer(Script((60.0,), reads="head")) as server:
        yield server


def stop_twice(command: Command, server: RawServer, *args: str) -> tuple[int, str]:
    """Stop a run twice while its request is under way; its exit code and what it said."""
    process = command.popen(*args, "--base-url", server.url, env={**ENV, "NO_PROXY": "*"})
    assert process.stderr
    told = b""
    while not server.requests:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            raise AssertionError(process.stderr.read().decode())
    process.send_signal(signal.SIGINT)
    while b"stopping (SIGINT)" not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    process.send_signal(signal.SIGINT)
    told += process.communicate(timeout=30)[1]
    assert b"Traceback" not in told
    return process.returncode, told.decode()


@pytest.mark.parametrize("verb", ["edit", "edit without a ledger", "batch"])
def test_second_signal_while_a_request_is_being_written_leaves_it_unsent(seedream: Command, verb: str) -> None:
    """A body not written to its end is no request: not unknown, nothing to settle, and the same command sends it."""
    (seedream.folder / "big.png").write_bytes(noise((1900, 1900)))
    (seedream.folder / "t.csv").write_text("prompt,image\nnight,big.png\n")
    args = ["batch", "t.csv"] if verb == "batch" else ["edit", "night", "big.png"]
    args += ["-p", "ark", "-m", "4.5", *(["--no-ledger"] if "without" in verb else [])]
    with deaf() as server:
        code, told = stop_twice(seedream, server, *args)
        assert code == 130
        assert "may have been" not in told
        assert "unknown" not in told
    if verb == "batch":
        with Upstream() as upstream:
            assert seedream(*args, "--base-url", upstream.url, "--max-cost", "0.05", env=ENV).code == 0
            assert len(upstream.posts) == 1
    elif "without" not in verb:
        [entry] = seedream("history", "--json").json["requests"]
        assert (entry["status"], entry["cost"]["amount"]) == ("unsent", 0)
        assert "resolve" not in seedream("recover", env=ENV).err


def test_second_signal_after_a_request_was_written_leaves_it_unknown(seedream: Command) -> None:
    """The small body of a prompt is written whole: the provider may be at work, and that stays said."""
    with RawServer(Script((), "hold")) as server:
        code, told = stop_twice(seedream, server, "generate", "a fox", "-p", "ark", "-m", "4.5")
        assert code == 130
        assert "may have been billed" in told
        assert seedream("history", "--json").json["requests"][0]["status"] == "unknown"


# --- standard output that is full -----------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("more", [[], ["--response-format", "b64_json"], ["--no-ledger"]])
def test_image_for_a_full_standard_output_is_exit_74_and_kept(seedream: Command, more: list[str]) -> None:
    """It is paid: the reply stays, the message says why and names the way back, which costs nothing; twice over."""
    import base64

    image = base64.b64encode(make_image()).decode()
    reply = (lambda body, number: {"data": [{"b64_json": image}]}) if "b64_json" in more else None
    with Upstream(reply=reply) as upstream:
        to = ["-p", "ark", "--base-url", upstream.url]
        for args in (["generate", "a fox", *to, *more], ["recover", *more[2:]]):
            with open("/dev/full", "wb") as full:
                done = seedream(*args, "-o", "-", env=ENV, stdout=full)
            assert done.code == 74, done.err
            assert "standard output cannot be written: no space left on device" in done.err
            assert "seedream recover" in done.err
        saved = seedream("recover", "-o", "out/", env=ENV)
        assert saved.code == 0
        assert [(seedream.folder / path).read_bytes() for path in saved.paths] == [
            make_image(seed=100 if not reply else 0)
        ]
        assert len(upstream.posts) == 1
