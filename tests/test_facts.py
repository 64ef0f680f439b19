"""What is known of providers and models, and the words of theirs that are passed on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from seedream_cli.error_text import code_in, message_in, text_fault
from seedream_cli.errors import ApiError
from seedream_cli.masking import mask, secret_forms
from seedream_cli.providers import base, load
from tests.conftest import CANARY, Command
from tests.rawserver import answer
from tests.test_batch import table
from tests.upstream import Upstream

ENV = {"OPENAI_API_KEY": CANARY, "ARK_API_KEY": CANARY, "ACEDATACLOUD_API_TOKEN": CANARY}

# --- the other side's words -------------------------------------------------------------------------------------------

WORDS: dict[str, tuple[Any, str]] = {
    "fastapi": (
        {"detail": [{"loc": ["body", "n"], "msg": "Field required", "type": "missing"}]},
        "body.n: Field required",
    ),
    "fastapi, two of them": (
        {"detail": [{"loc": ["body", "image", 0], "msg": "bad"}, {"loc": ["query"], "msg": "worse"}]},
        "body.image.0: bad; query: worse",
    ),
    "fastapi, plain": ({"detail": "Not authenticated"}, "Not authenticated"),
    "msg": ({"code": 10012, "msg": "quota used up", "data": None}, "quota used up"),
    "description": ({"code": "E1", "description": "no such size"}, "no such size"),
    "error as a text": ({"error": "no such size"}, "no such size"),
    "error as a heading": (
        {"statusCode": 400, "message": ["n is no number"], "error": "Bad Request"},
        "n is no number",
    ),
    "errors": ({"errors": [{"message": "one"}, "two"]}, "one; two"),
    "errors of fields": ({"message": "", "errors": {"size": ["is no size"], "n": "is no number"}}, "size: is no size"),
    "oauth": ({"error": "invalid_token", "error_description": "it expired"}, "invalid_token: it expired"),
    "reason": ({"reason": "model is off"}, "model is off"),
    "problem+json": (
        {"type": "about:blank", "title": "Bad size", "detail": "2K only", "status": 422},
        "Bad size: 2K only",
    ),
    "an object store's JSON": ({"Code": "AccessDenied", "Message": "Access Denied"}, "Access Denied"),
    "an error in an error": ({"error": {"error": {"message": "no such size", "code": "x"}}}, "no such size"),
    "the old gateway": ({"ResponseMetadata": {"Error": {"Code": "X", "Message": "no such size"}}}, "no such size"),
    "an error without a message": ({"error": {"code": "x", "detail": "no such size"}}, "no such size"),
    "a bare text": ("no such size", "no such size"),
    "a list": ([{"error": {"message": "no such size"}}], "no such size"),
}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in WORDS.items()])
@pytest.mark.parametrize(("status", "provider"), [(422, "openai"), (200, "ark"), (500, "acedata")])
def test_words_of_an_error_are_passed_on(body: tuple[Any, str], status: int, provider: str) -> None:
    """Whatever shape an error has, its words are in the message; they never decide what it cost."""
    with pytest.raises(ApiError) as caught:
        load(provider).read(base.Reply(status, {}, body[0]))
    assert body[1] in caught.value.message
    enveloped = isinstance(body[0], dict) and "error" in body[0]
    if not enveloped:
        assert caught.value.billed == ("no" if status == 422 else "unknown")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (
            "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>",
            "",
            "a web page: Just a moment...",
        ),
        ("<HTML><HEAD><TITLE lang='en'>502 Bad\n Gateway &amp; more</TITLE>", "", "a web page: 502 Bad Gateway & more"),
        ("<html><body><h1>Busy</h1>", "", "a web page: Busy"),
        ("<html><body>", "", "a web page"),
        (
            '<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>',
            "AccessDenied",
            "AccessDenied: Request has expired",
        ),
        ("upstream connect error", "", "no JSON: upstream connect error"),
        ("", "", "empty"),
        ("<" * 5000, "", "a web page"),
        ("<title" * 900, "", "a web page"),
    ],
)
def test_words_of_an_answer_that_is_no_json(text: str, code: str, said: str) -> None:
    """A page is called by its title, and an object store's XML by its code and message."""
    assert text_fault(text)[0] == code
    assert said in text_fault(text)[1]


def test_words_are_cut_and_their_hidden_characters_shown() -> None:
    """Whatever comes is bounded before it is looked at, one line, and free of anything that a terminal obeys."""
    nested: Any = "deep"
    for _ in range(400):
        nested = {"error": nested, "errors": [nested] * 2}
    hostile = "\x1b]52;c;AAAA\x07 \u202e " + " " * 5000 + "." * 5000
    bodies = [
        nested,
        {"msg": hostile},
        {"error": {"code": "." * 10**6, "message": hostile}},
        {"detail": [hostile] * 900},
    ]
    for body in bodies:
        with pytest.raises(ApiError) as caught:
            load("openai").read(base.Reply(422, {}, body))
        assert len(caught.value.message) < 700
        assert len(caught.value.code) < 700
        assert caught.value.message.isprintable()
    assert message_in({"a": 1, "detail": {"b": 2}}) == ""
    assert code_in({"error": {"error": {"code": 7}}}) == "7"


def test_a_key_that_is_cut_in_a_message_is_masked() -> None:
    """An echo of the key at the place where a message is cut shows no part of it."""
    for length in range(4, len(CANARY) + 1):
        assert "canar" not in mask(f"bad key {CANARY[:length]}…", secret_forms(CANARY))


@pytest.mark.parametrize("command", ["generate", "batch"])
@pytest.mark.parametrize(
    ("value", "words", "seconds"),
    [("30", "30 s", 30), ("7200", "2 h", 7200), ("Wed, 21 Oct 2026 07:30:00 GMT", "2 min", 120)],
)
def test_retry_after_is_told(seedream: Command, command: str, value: str, words: str, seconds: float) -> None:
    """The time that the provider asks to wait stands in the text and in the JSON, as seconds or as a date."""
    headers = [("Retry-After", value), ("Date", "Wed, 21 Oct 2026 07:28:00 GMT")]
    body = json.dumps({"detail": "slow down"}).encode()
    table(seedream, 1)
    what = ["shots.csv"] if command == "batch" else ["x", "--no-ledger"]
    with Upstream(script=lambda *_: answer(body, status=429, headers=headers)) as upstream:
        done = seedream(command, *what, "-p", "openai", "--base-url", upstream.url, "--retries", "0", "--json", env=ENV)
    assert done.code == 5, done.err
    told = next(line["error"] for line in map(json.loads, done.out.splitlines()) if line.get("error"))
    assert told["retry_after_s"] == seconds
    assert "slow down" in told["message"]
    assert f"try again in {words}" in told["message"]


def test_retry_after_of_a_doubt_is_no_invitation(seedream: Command) -> None:
    """What may have been paid is not to be tried again, whatever the server says."""
    headers = [("Retry-After", "30")]
    with Upstream(script=lambda *_: answer(b"busy", status=503, headers=headers)) as upstream:
        done = seedream("generate", "x", "-p", "openai", "--base-url", upstream.url, env=ENV)
    assert done.code == 7, done.err
    assert "asks to wait 30 s" in done.err
    assert "try again" not in done.err
