"""What is known of providers and models, and the words of theirs that are passed on."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import seedream_cli
from seedream_cli.cli.app import app
from seedream_cli.config.environment import Environment
from seedream_cli.engine.plan import plan_request
from seedream_cli.errors import ApiError, InputError, Problem
from seedream_cli.providers import base_url, contract, faults, load, specs
from seedream_cli.providers.error_text import code_in, message_in, text_fault
from seedream_cli.redaction import mask, secret_forms
from seedream_cli.request.image_request import ImageRef, OptionValues
from tests.support.batches import table
from tests.support.command import CANARY, Command, Inside
from tests.support.provider_server import Upstream, make_image, refusal
from tests.support.raw_server import answer

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
    "dots at the end": ({"message": "Just a moment..."}, "Just a moment..."),
    "a bare text": ("no such size", "no such size"),
    "a list": ([{"error": {"message": "no such size"}}], "no such size"),
}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in WORDS.items()])
@pytest.mark.parametrize(("status", "provider"), [(422, "openai"), (200, "ark"), (500, "acedata")])
def test_words_of_an_error_are_passed_on(body: tuple[Any, str], status: int, provider: str) -> None:
    """Whatever shape an error has, its words are in the message; they never decide what it cost."""
    with pytest.raises(ApiError) as caught:
        load(provider).read(contract.Reply(status, {}, body[0]))
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
            load("openai").read(contract.Reply(422, {}, body))
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


# --- models, as the pages of November 2026 have them ------------------------------------------------------------------

# Words of this table are the pages', not the program's: tiers, references, most in a group, and what each option meets.
# "+" is sent, "?" sent with a warning, "-" not sent with a warning, "!" refused before payment.
OPTIONS: dict[str, tuple[str, str | bool]] = {
    "seed": ("seed", "7"),
    "guidance": ("guidance_scale", "2"),
    "sequence": ("sequence", "3"),
    "stream": ("stream", True),
    "search": ("web_search", True),
    "png": ("format", "png"),
    "fast": ("optimize_prompt", "fast"),
    "standard": ("optimize_prompt", "standard"),
    "b64": ("response_format", "b64_json"),
    "clear": ("background", "transparent"),
    "auto": ("background", "auto"),
    "1K": ("size", "1K"),
    "1.5K": ("size", "1.5K"),
    "3K": ("size", "3K"),
    "4K": ("size", "4K"),
    "16K px": ("size", "4096x4096"),
    "adaptive": ("size", "adaptive"),
}
# fmt: off
FATES = {
    #                    seed guid seq  strm srch png  fast std  b64  clr  auto 1K   1.5K 3K   4K   px   adaptive
    ("ark", "5.5"):      "?    -    !    ?    ?    +    -    ?    +    +    +    +    +    !    !    !    !",
    ("ark", "5.0-pro"):  "?    -    !    -    -    +    +    +    +    !    !    +    +    !    !    !    !",
    ("ark", "5.0-flash"): "?   -    !    -    -    +    -    +    +    !    !    +    +    !    !    !    !",
    ("ark", "5.0-lite"): "?    -    +    +    +    +    -    +    +    !    !    !    !    +    +    +    !",
    ("ark", "4.5"):      "?    -    +    +    -    -    -    +    +    !    !    !    !    !    +    +    !",
    ("ark", "4.0"):      "?    -    +    +    -    -    +    +    +    !    !    +    !    !    +    +    !",
    ("ark", "3.0-t2i"):  "+    +    !    -    -    -    -    -    +    !    !    !    !    !    !    !    !",
    ("byteplus", "5.5"): "?    -    !    ?    -    +    -    ?    +    +    +    +    +    !    !    !    !",
    ("byteplus", "5.0-lite"): "? -  +    +    -    +    -    +    +    !    !    !    !    +    +    +    !",
    ("cometapi", "5.0-lite"): "- -  +    ?    ?    +    -    ?    +    !    !    !    !    +    +    +    !",
    ("cometapi", "4.5"): "-    ?    +    ?    -    -    -    ?    +    !    !    !    !    !    +    +    !",
    ("acedata", "5.0-pro"): "- -    !    -    -    +    +    +    +    !    !    +    +    !    !    !    ?",
    ("acedata", "4.5"):  "-    -    +    +    -    -    -    +    +    !    !    !    !    !    +    +    ?",
    ("ope", "5.0-lite"): "?    ?    +    +    ?    -    -    ?    +    !    !    !    !    +    +    +    !",
}
SENT_AS = {
    "seed": "seed", "guidance": "guidance_scale", "sequence": "sequential_image_generation", "stream": "stream",
    "search": "tools", "png": "output_format", "fast": "optimize_prompt_options", "standard": "optimize_prompt_options",
    "b64": "response_format", "clear": "background", "auto": "background",
}
# fmt: on


def planned(provider: str, model: str, *given: tuple[str, str | bool]) -> tuple[dict[str, Any], list[Problem]]:
    """The body that would be sent ({} for none) and all that is said, but for what is said of the model as a whole."""
    values = {"prompt": "x", "model": model, "provider": provider}
    switches = {name: value for name, value in given if isinstance(value, bool)}
    values |= {name: value for name, value in given if isinstance(value, str)}
    images = tuple([values.pop("image")] if "image" in values else [])
    found: list[Problem] = []
    options = OptionValues(values, switches, {"image": images})
    one = plan_request(options, Environment({}), found, [], sends=False)
    found = [problem for problem in found if problem.code not in {"model_unconfirmed", "model_retired"}]
    if one is None or one.built.request is None:
        return {}, found
    return dict(one.route.dialect.submit(one.built.request).json or {}), found


@pytest.mark.parametrize(("provider", "model"), FATES)
def test_facts_of_options_by_model_and_provider(provider: str, model: str) -> None:
    """Each option of the pages' table is sent, sent with a warning, left out with one, or refused before payment."""
    wrong = {}
    for (option, given), fate in zip(OPTIONS.items(), FATES[provider, model].split(), strict=True):
        sync = [("asynchronous", False)] if provider == "acedata" else []
        body, found = planned(provider, model, given, *sync)
        is_sent = SENT_AS.get(option, "size") in body and (option != "b64" or body["response_format"] == "b64_json")
        refused = any(problem.severity == "error" for problem in found)
        seen = "!" if refused else "-" if not is_sent else "?" if found else "+"
        if seen != fate or (seen == "-" and not found):
            wrong[option] = (fate, seen, found)
    assert not wrong


def dry(inside: Inside, *args: str, code: int = 0, command: str = "generate") -> dict[str, Any]:
    """The object of a run that sends nothing."""
    done = inside(command, "x", *args, "--dry-run", "--json")
    assert done.code == code, done.err
    told: dict[str, Any] = json.loads(done.out)
    return told


def codes(told: dict[str, Any]) -> list[str]:
    """The codes of its warnings, without what is said of the model as a whole."""
    return [one["code"] for one in told["warnings"] if one["code"] not in {"model_unconfirmed", "model_retired"}]


def test_facts_of_5_5(inside: Inside) -> None:
    """A clear background needs no reference; PNG by itself; layers and JPEG go with no clear background."""
    assert dry(inside, "-p", "ark", "-m", "5.5", "--background", "transparent")["request"]["output_format"] == "png"
    plain = dry(inside, "-p", "ark", "-m", "5.5", "-o", "cat.png")
    assert "output_format" not in plain["request"]
    assert dry(inside, "-p", "ark", "-m", "5.5", "-o", "cat.jpg")["request"]["output_format"] == "jpeg"
    assert dry(inside, "-p", "ark", "-m", "lite", "-o", "cat.png")["request"]["output_format"] == "png"
    assert "output_format" not in dry(inside, "-p", "ark", "-m", "4.5", "-o", "cat.png")["request"]
    for clash in (["--format", "jpeg"], ["-i", "a.png", "--layers"]):
        (inside.folder / "a.png").write_bytes(make_image("PNG", (600, 600)))
        command = "edit" if "--layers" in clash else "generate"
        args = ["-p", "ark", "-m", "5.5", "--background", "transparent", *clash]
        assert dry(inside, *args, code=2, command=command)["error"]["code"] == "validation"


def test_facts_of_layers_at_5_5(inside: Inside) -> None:
    """`seedream models` says how many layers may come, with and without being asked for."""
    said = " ".join(inside("models", "5.5").out.split())
    assert "2 to 100" in said
    assert "30" in said


@pytest.mark.parametrize(
    "spelled", ["doubao-seedream-5-5-261028", "5.5", "seedream-5-5", "bytedance/seedream/v5.5/edit"]
)
def test_facts_of_byteplus_ids(inside: Inside, spelled: str) -> None:
    """`dola-` stands in front from 5.0 Pro on; the spelling without is known and sent as it is typed."""
    assert dry(inside, "-p", "byteplus", "-m", spelled)["request"]["model"] == "dola-seedream-5-5-261028"
    for name in ("seedream-5-5-261028", "seedream-5-0-flash-260915", "seedream-5-0-pro-260628"):
        assert dry(inside, "-p", "byteplus", "-m", name)["request"]["model"] == name
        assert dry(inside, "-p", "ark", "-m", f"dola-{name}")["request"]["model"] == f"doubao-{name}"
    assert dry(inside, "-p", "byteplus", "-m", "flash")["request"]["model"] == "dola-seedream-5-0-flash-260915"


@pytest.mark.parametrize("url", ["https://ark.eu-west.bytepluses.com", "https://ARK.eu-west.bytepluses.com/api/v3/"])
def test_facts_of_byteplus_in_europe(inside: Inside, url: str) -> None:
    """The default model is not served there any more: refused before payment, with those that may be."""
    told = dry(inside, "-p", "byteplus", "--base-url", url, code=2)
    [problem] = told["error"]["problems"]
    assert "2026-09-10" in problem["message"]
    assert "5.0-pro" in problem["hint"]
    assert "5.0-lite" not in problem["hint"]
    assert dry(inside, "-p", "byteplus", "--base-url", url, "--force")["request"]["model"] == "seedream-5-0-260128"
    assert codes(dry(inside, "-p", "byteplus", "--base-url", url, "-m", "4.5")) == []
    assert dry(inside, "-p", "byteplus")["request"]["model"] == "seedream-5-0-260128"
    shots = "id,prompt,model\na,x,4.5\nb,y,\n"
    (inside.folder / "shots.csv").write_text(shots)
    done = inside("batch", "shots.csv", "-p", "byteplus", "--base-url", url, "--dry-run")
    assert done.code == 2
    assert "shots.csv:3" in done.err
    assert "2026-09-10" in done.err


def test_facts_of_thinking(inside: Inside) -> None:
    """It is sent beside the mode, held against the model, and refused where the model rewrites no prompts."""
    extra = ["--extra", 'optimize_prompt_options={"thinking":"disabled"}']
    told = dry(inside, "-p", "ark", "-m", "pro", "--optimize-prompt", "fast", *extra)
    assert told["request"]["optimize_prompt_options"] == {"mode": "fast", "thinking": "disabled"}
    assert codes(told) == []
    assert codes(dry(inside, "-p", "ark", "-m", "flash", *extra)) == ["option_unconfirmed"]
    for model, value in (
        ("pro", '{"thinking":"never"}'),
        ("lite", '{"mode":"fast"}'),
        ("3.0", '{"mode":"fast"}'),
        ("4.0", "1"),
    ):
        dry(inside, "-p", "ark", "-m", model, "--extra", f"optimize_prompt_options={value}", code=2)
    assert dry(inside, "-p", "ark", "-m", "lite")["request"].keys() == {
        "model", "prompt", "size", "response_format", "watermark",
    }  # fmt: skip


REFERENCES = [
    # provider, model, kind, megabytes, layers, what is right
    ("ark", "lite", "jpeg", 25, False, "+"),
    ("ark", "lite", "jpeg", 31, False, "!"),
    ("byteplus", "lite", "jpeg", 9, False, "+"),
    ("byteplus", "4.5", "jpeg", 25, False, "reference_large"),
    ("byteplus", "pro", "jpeg", 25, False, "+"),
    ("byteplus", "lite", "jpeg", 31, False, "!"),
    ("acedata", "lite", "jpeg", 11, False, "!"),
    ("cometapi", "lite", "jpeg", 11, False, "reference_large"),
    ("ark", "lite", "heic", 1, False, "+"),
    ("byteplus", "pro", "heic", 1, False, "+"),
    ("byteplus", "lite", "heic", 1, False, "!"),
    ("cometapi", "lite", "heic", 1, False, "!"),
    ("ark", "pro", "webp", 1, True, "!"),
    ("byteplus", "pro", "webp", 1, True, "reference_unconfirmed"),
    ("byteplus", "5.5", "gif", 1, True, "reference_unconfirmed"),
    ("byteplus", "pro", "heic", 1, True, "!"),
    ("ark", "pro", "png", 1, True, "+"),
]


@pytest.mark.parametrize(("provider", "model", "kind", "megabytes", "layers", "right"), REFERENCES)
def test_facts_of_references(provider: str, model: str, kind: str, megabytes: int, *, layers: bool, right: str) -> None:
    """Bytes and formats by provider and model, also for an image that is split into layers."""
    seen = judged(provider, model, kind, megabytes, (1000, 1000), layers=layers)
    assert seen == (right if right in "+!" else f"?{right}")


@pytest.mark.parametrize(("model", "sides", "right"), [("lite", (1600, 100), "+"), ("lite", (1700, 100), "!")])
def test_facts_of_reference_shapes(model: str, sides: tuple[int, int], right: str) -> None:
    """A side may be sixteen times the other, at SeedEdit three times."""
    assert judged("ark", model, "png", 1, sides) == right
    assert judged("ark", "seededit", "png", 1, (300, 100)) == "+"
    assert judged("ark", "seededit", "png", 1, (310, 100)) == "!"


def judged(
    provider: str, model: str, kind: str, megabytes: int, sides: tuple[int, int], *, layers: bool = False
) -> str:
    """What becomes of a reference of these facts: "+" sent, "!" refused, "?code" warned of."""
    options = OptionValues({"prompt": "x", "model": model, "provider": provider}, {"layers": layers})
    with replaced_reader(
        ImageRef("file", "a", mime=f"image/{kind}", width=sides[0], height=sides[1], size=megabytes * 10**6)
    ):
        found: list[Problem] = []
        plan_request(replace(options, lists={"image": ("a",)}), Environment({}), found, [], sends=False)
    found = [one for one in found if not one.code.startswith(("model_", "reference_metadata"))]
    if any(one.severity == "error" for one in found):
        return "!"
    return f"?{found[0].code}" if found else "+"


@contextlib.contextmanager
def replaced_reader(reference: ImageRef) -> Iterator[None]:
    """Facts of an image without its bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seedream_cli.request.references.read_references", lambda *_, **__: ([reference], []))
        yield


# --- what users and other services call things ------------------------------------------------------------------------

NAMES = {
    "doubao-seedream-3.0-t2i": "doubao-seedream-3-0-t2i-250415",
    "doubao-seedream-4.5": "doubao-seedream-4-5-251128",
    "doubao-seedream-4.0": "doubao-seedream-4-0-250828",
    "doubao-seedream-5.0-lite": "doubao-seedream-5-0-lite-260128",
    "doubao-seedream-5-0-lite": "doubao-seedream-5-0-lite-260128",
    "doubao-seedream-5.0-pro": "doubao-seedream-5-0-pro-260628",
    "doubao-seededit-3.0-i2i": "doubao-seededit-3-0-i2i-250628",
    "doubao-seedream-5-0-260128": "doubao-seedream-5-0-260128",
    "fal-ai/bytedance/seedream/v4.5/text-to-image": "doubao-seedream-4-5-251128",
    "fal-ai/bytedance/seedream/v4/edit": "doubao-seedream-4-0-250828",
    "bytedance/seedream/v5/pro/text-to-image": "doubao-seedream-5-0-pro-260628",
    "bytedance/seedream/v5/lite/edit": "doubao-seedream-5-0-lite-260128",
    "bytedance-seed/seedream-4.5": "doubao-seedream-4-5-251128",
    "bytedance-seed/seedream-5-0-lite": "doubao-seedream-5-0-lite-260128",
    "ByteDance-Seed/Seedream-4.0": "doubao-seedream-4-0-250828",
    "bytedance/seedream-4": "doubao-seedream-4-0-250828",
    "bytedance/seedream-5-pro": "doubao-seedream-5-0-pro-260628",
    "bytedance:seedream@4.5": "doubao-seedream-4-5-251128",
    "bytedance:seedream@5.0-lite": "doubao-seedream-5-0-lite-260128",
    "seedream/4.5-edit": "doubao-seedream-4-5-251128",
    "bytedance/dola-seedream-5-0-pro": "doubao-seedream-5-0-pro-260628",
}
UNKNOWN = [
    "doubao-seedream-5-0-260628", "doubao-seedream-4-5-270101", "bytedance/seedream-4:5f2a", "seedream-4.5-turbo",
    "bytedance/seedream", "seedream/v9/text-to-image", "doubao-seedream-4-5-lite", "seedream-3-0-i2i", "ep-20260101-x",
    "bytedance/seedance-1.0", "seedream-4.5.1", "fal-ai/flux/v4.5", "v4.5", "seedream-55",
]  # fmt: skip


@pytest.mark.parametrize("typed", [*NAMES, *UNKNOWN])
def test_names_of_models_are_read(typed: str) -> None:
    """Other services' spellings become the provider's id; what could be another model stays as it is typed."""
    image = [("image", "https://x.invalid/a.png")] if "seededit" in typed else []
    body, found = planned("acedata", typed, *image)
    assert body["model"] == NAMES.get(typed, typed)
    assert ("model_unknown" in [problem.code for problem in found]) == (typed not in NAMES)
    gateway, _ = planned("openai", typed, ("base_url", "https://h.invalid"), *image)
    assert gateway["model"] == typed, "a gateway calls models as it likes"


@pytest.mark.parametrize(
    "typed", ["bytedance-seed/seedream-4.5", "doubao-seedream-4.5", "fal-ai/bytedance/seedream/v4.5/edit"]
)
def test_names_of_models_are_read_by_every_command(inside: Inside, typed: str) -> None:
    """With the flag, in a table and in `seedream models`."""
    assert dry(inside, "-p", "ark", "-m", typed)["request"]["model"] == "doubao-seedream-4-5-251128"
    (inside.folder / "shots.csv").write_text(f"id,prompt,model\na,x,{typed}\n")
    assert inside("batch", "shots.csv", "-p", "ark", "--dry-run").code == 0
    assert inside("models", typed).out.startswith("Seedream 4.5")


def test_names_of_ours_are_spelled_for_a_gateway(inside: Inside) -> None:
    """A name that no service has for an id is spelled as the upstream has it."""
    for name in ("4.5", "Seedream 4.5"):
        told = dry(inside, "-p", "openai", "--base-url", "https://h.invalid", "-m", name)
        assert told["request"]["model"] == "doubao-seedream-4-5-251128"
    told = dry(inside, "-p", "ope", "-m", "doubao-seedream-4.5")
    assert told["request"]["model"] == "doubao-seedream-4.5"


SIZES = {
    "1:1": "--aspect 1:1", "16x9": "--aspect 16:9", "16/9": "--aspect 16/9", "square": "--aspect 1:1",
    "square_hd": "--aspect 1:1", "landscape_16_9": "--aspect 16:9", "portrait_4_3": "--aspect 3:4",
    "1024": "1024x1024", "auto_2K": "2K", "huge": "WIDTHxHEIGHT",
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", ["4.5", "ep-1", "seededit"])
def test_sizes_of_other_services_are_explained(inside: Inside, size: str, model: str) -> None:
    """What is a ratio or another service's word is refused with the option that does it, in tables with its place."""
    images = ["-i", "https://x.invalid/a.png"] if model == "seededit" else []
    told = dry(inside, "-p", "acedata", "-m", model, "-s", size, *images, code=2)
    problem = told["error"]["problems"][0]
    assert SIZES[size].replace("16/9", "16") in f"{problem['message']} {problem['hint']}"
    if model == "4.5":
        (inside.folder / "shots.csv").write_text(f"id,prompt,size\na,x,2k\nb,y,{size}\n")
        done = inside("batch", "shots.csv", "-p", "ark", "-m", model, "--dry-run")
        assert done.code == 2
        assert "shots.csv:3, column size" in done.err
        assert SIZES[size].replace("16/9", "16") in " ".join(done.err.split())


def test_sizes_that_only_acedata_lists(inside: Inside) -> None:
    """`adaptive` is sent with a warning there; with --strict, or elsewhere, it is refused."""
    told = dry(inside, "-p", "acedata", "-m", "4.5", "-s", "adaptive")
    assert (told["request"]["size"], codes(told)) == ("adaptive", ["size_unconfirmed"])
    dry(inside, "-p", "acedata", "-m", "4.5", "-s", "adaptive", "--strict", code=2)
    dry(inside, "-p", "ark", "-m", "4.5", "-s", "adaptive", code=2)


# --- what a provider ignores, advises and does by itself --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["quality", "style", "user", "output_format", "output_compression", "background", "moderation"]
)
def test_facts_of_ope_without_effect(inside: Inside, name: str) -> None:
    """Each field that OPE lists as without effect is said, refused with --strict and explained."""
    extra = ["-p", "ope", "--extra", f'{name}="png"']
    told = dry(inside, *extra)
    assert "option_ignored" in codes(told)
    assert any(name in one["message"] for one in told["warnings"])
    dry(inside, *extra, "--strict", code=2)
    shown = " ".join(inside("generate", "x", *extra, "--explain").out.split())
    assert "no effect at ope" in shown
    if name != "quality":
        assert "option_ignored" not in codes(dry(inside, "-p", "ark", "--extra", f'{name}="png"'))


def test_facts_of_a_background_that_would_be_dropped(inside: Inside) -> None:
    """A clear background is refused where it would be left out, with a model that can; an opaque one is not."""
    told = dry(inside, "-p", "ark", "-m", "4.5", "--background", "transparent", code=2)
    assert "5.5" in told["error"]["problems"][0]["hint"]
    assert dry(inside, "-p", "ope", "--background", "transparent", code=2)
    assert codes(dry(inside, "-p", "ark", "-m", "4.5", "--background", "opaque")) == ["option_refused"]


@pytest.mark.parametrize(
    ("provider", "prompt", "long"),
    [
        ("ark", "猫" * 300, False),
        ("ark", "猫" * 301, True),
        ("ark", "cat " * 600, False),
        ("ark", "cat " * 601, True),
        ("ark", "猫" * 200 + " cat" * 300, True),
        ("cometapi", "c" * 1000, False),
        ("cometapi", "c" * 1001, True),
        ("openai", "c" * 5000, False),
    ],
)
def test_facts_of_prompt_length(inside: Inside, provider: str, prompt: str, *, long: bool) -> None:
    """A prompt longer than is advised is warned of and sent whole."""
    where = ["--base-url", "https://h.invalid"] if provider == "openai" else []
    done = inside("generate", prompt, "-p", provider, *where, "--dry-run", "--json", "--strict")
    told = json.loads(done.out)
    assert done.code == 0, done.err
    assert ("prompt_long" in codes(told)) == long
    assert told["request"]["prompt"] == prompt


@pytest.mark.parametrize(("provider", "own"), [("ark", "on"), ("ope", "off"), ("acedata", "on"), ("cometapi", "on")])
def test_facts_of_the_watermark_are_explained(inside: Inside, provider: str, own: str) -> None:
    """Whose default it is: this tool's, which is always sent, and what the provider would have done."""
    said = " ".join(inside("generate", "x", "-p", provider, "--explain", env={"COLUMNS": "300"}).out.split())
    row = said.partition(" watermark ")[2].partition(" images ")[0]
    assert row.startswith("off watermark this tool's default, always sent")
    assert f"{provider}'s own is {own}" in row


# --- an endpoint that was pasted as the address -----------------------------------------------------------------------

ENDPOINTS = [
    "chat/completions", "completions", "images/generations", "images/edits", "images/variations", "responses",
    "embeddings", "models", "tasks", "models/some-id", "contents/generations/tasks", "images", "messages",
]  # fmt: skip


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("provider", ["openai", "ark", "byteplus", "cometapi", "ope", "acedata", "sandbox"])
def test_address_that_ends_in_an_endpoint(provider: str, endpoint: str) -> None:
    """Whatever endpoint of an API was pasted, the API's own address is meant, also behind a proxy's path."""
    spec = load(provider).spec
    for host in ("https://h.invalid", "https://h.invalid/proxy"):
        right = base_url.full_url(spec, host)
        for end in ("", "/", "//"):
            pasted = f"{host}{spec.version or '/v1'}/{endpoint}{end}"
            assert base_url.full_url(spec, pasted) == right
            assert base_url.full_url(spec, base_url.full_url(spec, pasted)) == right
        if "/" in endpoint and not endpoint.startswith("models"):
            assert base_url.full_url(spec, f"{host}/{endpoint.title()}") == right
        with pytest.raises(InputError) as caught:
            base_url.full_url(spec, f"{host}{spec.version or '/v1'}/{endpoint}?key={CANARY}#x")
        problem = caught.value.problems[0]
        assert CANARY not in f"{problem.message} {problem.hint}"
        assert problem.hint.startswith(f"write {host}")
        assert endpoint not in problem.hint
        assert base_url.full_url(spec, problem.hint.removeprefix("write ")) in {right, f"{right}/v1"}


@pytest.mark.parametrize("path", ["/images", "/tasks", "/models-proxy", "/v1/my-models", "/chat", "/edits"])
def test_address_that_only_looks_like_an_endpoint(path: str) -> None:
    """A gateway may lie under a word that is an endpoint elsewhere: it is not taken away."""
    assert path in base_url.full_url(load("openai").spec, f"https://h.invalid{path}")


def test_address_that_was_pasted_is_asked_where_the_api_is(seedream: Command) -> None:
    """One request, at the path of this API, with generate, batch and doctor."""
    table(seedream, 1)
    listing = answer(b'{"data": []}')
    with Upstream(link=lambda request, _: listing if request.target == b"/v1/models" else None) as upstream:
        pasted = f"{upstream.url}/v1/chat/completions"
        for args in (["generate", "x"], ["batch", "shots.csv"], ["doctor"]):
            done = seedream(*args, "-p", "openai", "--base-url", pasted, env=ENV)
            assert done.code == 0 or args == ["doctor"], done.err
        asked = [request.target for request in upstream.server.requests if b"/store/" not in request.target]
    assert asked == [b"/v1/images/generations"] * 2 + [b"/v1/models"]


# --- hints ------------------------------------------------------------------------------------------------------------


def offered(command: str) -> set[str]:
    """The options of a command, by its own help."""
    runner = CliRunner().invoke(app, [command, "--help"])
    return set(re.findall(r"--[a-z][a-z-]+", runner.output))


def named(text: str, command: str) -> set[str]:
    """Options that a text names for the command that prints it: those of a command named before them are its own."""
    found: set[str] = set()
    for clause in re.split(r"[;,`]|, then ", text):
        other = re.search(r"seedream ([a-z]+)", clause)
        if other is None or other[1] == command:
            found |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", clause))
    return found


def test_hints_of_verdicts_name_no_option() -> None:
    """What a provider answers comes through every command, also through those that have few options."""
    common = offered("generate") & offered("batch") & offered("recover") & offered("doctor")
    for spec in specs():
        for verdict in (*spec.codes.values(), *spec.statuses.values(), *faults._STATUSES.values()):
            assert named(verdict.hint, "recover") <= common, verdict.hint
            assert not PAYS.search(verdict.hint)


PAYS = re.compile(r"--retry-ambiguous|pays once more|sends it once more|send(s)? it again|--only")
# Texts of these rooms are printed by `recover` too. The exceptions say which commands alone print them.
REACHED = (
    "cli/context",
    "config/credentials",
    "config/environment",
    "config/settings",
    "engine/answer",
    "engine/billing",
    "engine/ending",
    "engine/hints",
    "engine/job",
    "engine/recovery",
    "engine/save",
    "engine/state",
    "engine/stored_reply",
    "engine/streamed_images",
    "engine/task",
    "network/client",
    "network/connections",
    "network/download",
    "network/exchange",
    "network/failures",
    "network/http",
    "network/http_clients",
    "network/link_client",
    "network/mending",
    "network/outcome",
    "network/policy",
    "network/proxies",
    "network/rate_limit",
    "network/request_body",
    "network/response",
    "network/retry",
    "network/transports",
    "network/urls",
    "providers/error_text",
    "redaction",
    "storage/base64_image",
    "storage/fsync_batch",
    "storage/image_containers",
    "storage/image_file",
    "storage/image_info",
    "storage/output_path",
    "storage/reply_file",
)
ALONE = {
    ("network/exchange", "--retry-ambiguous"): "a billable request, which recover has none of",
    ("engine/job", "--max-unknown"): "requests that were not sent",
    ("engine/hints", "--retry-ambiguous"): "a batch",
    ("engine/hints", "--only"): "a batch",
    ("engine/job", "--no-download"): "a docstring's word",
    ("engine/recovery", "--reuse"): "generate and edit",
    ("engine/recovery", "--unpaid"): "history resolve, named right before",
    ("config/credentials", "--store"): "config key set",
}


def test_hints_of_what_recover_prints_name_its_own_options() -> None:
    """Every text in the rooms that recover goes through names options that it has, or the command that has them."""
    own, wrong = offered("recover"), []
    for room in REACHED:
        tree = ast.parse((Path(seedream_cli.__file__).parent / f"{room}.py").read_text())
        nodes = list(ast.walk(tree))
        documented = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        inside_f = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if id(node) in documented | inside_f:
                continue
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            wrong += [(room, one, text) for one in named(text, "recover") - own if (room, one) not in ALONE]
    assert not wrong


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"success": False, "error": {"code": "token_mismatched", "message": "no such task"}}),
        (429, {"success": False, "error": {"code": "too_many_requests", "message": "slow down"}}),
        (500, {"success": False, "error": {"code": "api_error", "message": "fetch failed"}}),
        (200, {"success": False, "error": {"code": "api_error", "message": "fetch failed"}}),
        (200, {"success": True, "task_id": "t-1", "data": [{"prompt": "x"}]}),
        (200, {"success": True, "task_id": "t-1", "data": [{"image_url": "http://h.example/x.jpg"}]}),
        (403, {"success": False, "error": {"code": "used_up", "message": "nothing left"}}),
    ],
)
def test_hints_of_recover_are_its_own_and_none_pays(seedream: Command, status: int, body: dict[str, Any]) -> None:
    """However asking after a task fails, nothing that recover prints lies outside its help, nor sends anything anew."""
    reply = answer(json.dumps(body).encode(), status=status)
    own = offered("recover")
    with Upstream(script=lambda *_: reply) as upstream:
        args = ["-p", "acedata", "--base-url", upstream.url, "--retries", "0"]
        done = seedream("recover", "--task", "t-1", *args, env=ENV, hurried=True)
    assert done.code != 0
    assert named(done.err, "recover") <= own, done.err
    assert not PAYS.search(done.err), done.err


def test_hints_of_a_batch_that_was_too_fast_name_its_options(seedream: Command) -> None:
    """There they are of use; a single request has none of them."""
    table(seedream, 1)
    with Upstream(script=lambda *_: refusal(429, "TooManyRequests")) as upstream:
        args = ["-p", "ark", "--base-url", upstream.url, "--retries", "0"]
        assert "--concurrency" in seedream("batch", "shots.csv", *args, env=ENV).err
        lone = seedream("generate", "x", *args, env=ENV).err
    assert named(lone, "generate") <= offered("generate")


@pytest.mark.parametrize("command", [["history"], ["doctor", "-p", "sandbox"]])
def test_hints_about_a_ledger_that_cannot_be_opened(seedream: Command, command: list[str]) -> None:
    """Only a command that goes on without a ledger says how."""
    blocked = seedream.home / "state" / "ledger.db"
    blocked.mkdir(parents=True)
    done = seedream(*command)
    assert done.code != 0
    assert "--no-ledger" not in done.out + done.err
    assert "--no-ledger" in seedream("generate", "x", "-p", "sandbox").err


@pytest.mark.parametrize("more", [[], ["--prompt", "{prompt} in {place}"]])
def test_facts_of_prompt_length_in_a_table(inside: Inside, more: list[str]) -> None:
    """The first long prompt is named with its line, the others are counted; short ones are not."""
    rows = [("a", "short"), ("b", "cat " * 700), ("c", "cat " * 700), ("d", "short")]
    (inside.folder / "shots.csv").write_text("id,prompt,place\n" + "".join(f"{i},{p},x\n" for i, p in rows))
    done = inside("batch", "shots.csv", "-p", "ark", "--dry-run", *more)
    assert done.code == 0, done.err
    assert done.err.count("longer than the 300 Chinese characters or 600 words") == 1
    assert "shots.csv:3" in done.err
    assert "1 more row" in done.err


def test_words_of_a_catalog_that_is_none_are_in_doctor(seedream: Command) -> None:
    """What the server says instead of its list of models is passed on."""
    reply = answer(json.dumps({"detail": [{"loc": ["header"], "msg": "no tenant"}]}).encode(), status=422)
    with Upstream(link=lambda *_: reply) as upstream:
        done = seedream("doctor", "-p", "openai", "--base-url", upstream.url, env=ENV)
    assert "header: no tenant" in " ".join(done.out.split())
