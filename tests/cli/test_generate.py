"""`seedream generate` from end to end: the real command, real sockets, and a provider that counts what is paid."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.support.command import CANARY, Command
from tests.support.provider_server import QUERY, Upstream, make_image, refusal
from tests.support.raw_server import RESET, SILENCE, Script, answer, free_port

KEYS = {
    "cometapi": "COMETAPI_KEY",
    "acedata": "ACEDATACLOUD_API_TOKEN",
    "ope": "OPE_API_KEY",
    "ark": "ARK_API_KEY",
    "byteplus": "BYTEPLUS_API_KEY",
    "openai": "OPENAI_API_KEY",
}
PATHS = {
    "cometapi": "/v1/images/generations",
    "acedata": "/seedream/images",
    "ope": "/v1/images/generations",
    "ark": "/api/v3/images/generations",
    "byteplus": "/api/v3/images/generations",
    "openai": "/v1/images/generations",
}
LITE = {
    "cometapi": "doubao-seedream-5-0-260128",
    "acedata": "doubao-seedream-5-0-lite-260128",
    "ope": "bytedance-seedream-5.0",
    "ark": "doubao-seedream-5-0-260128",
    "byteplus": "seedream-5-0-260128",
    "openai": "doubao-seedream-5-0-260128",
}


def ark(seedream: Command, upstream: Upstream, *args: str, **more: Any) -> Any:
    """One run against an upstream of Ark's shape."""
    env = {"ARK_API_KEY": CANARY, **more.pop("env", {})}
    return seedream("generate", *args, "-p", "ark", "--base-url", upstream.url, env=env, **more)


@pytest.mark.parametrize("provider", sorted(KEYS))
@pytest.mark.parametrize("prefix", ["", "/v9"])
def test_one_line_makes_one_file_at_every_provider(seedream: Command, provider: str, prefix: str) -> None:
    """Each provider gets its path, its spelling and its key; the link comes back byte for byte, without the key."""
    with Upstream() as upstream:

        def reply(body: Any, number: int) -> Any:
            if provider != "acedata":
                return upstream.images(body, number)
            if "model" in body:
                return {"task_id": "t-1"}
            found = [{"prompt": "x", "size": "64x48", "image_url": upstream.link(7)}]
            return {"success": True, "task_id": "t-1", "trace_id": "r", "data": found}

        upstream._reply = reply
        base = upstream.url + prefix
        done = seedream("generate", "a fox", "-p", provider, "--base-url", base, env={KEYS[provider]: CANARY})
        assert done.code == 0, done.err
        [path] = done.paths
        assert (seedream.folder / path).read_bytes()[:3] == b"\xff\xd8\xff"
        first = upstream.posts[0]
        expected = (
            PATHS[provider] if not prefix else prefix + PATHS[provider].removeprefix("/api/v3").removeprefix("/v1")
        )
        assert first.target.decode() == expected
        assert first.header("authorization") == f"Bearer {CANARY}"
        body = {"model": LITE[provider], "prompt": "a fox", "size": "2K", "response_format": "url", "watermark": False}
        assert upstream.bodies[0] == body | ({"async": True} if provider == "acedata" else {})
        [get] = upstream.gets
        assert get.target.decode().endswith(f".jpeg?{QUERY}")
        assert {"authorization", "cookie"}.isdisjoint(name for name, _ in get.headers)


def test_every_option_arrives_under_its_upstream_name(seedream: Command) -> None:
    """What was asked for is sent, renamed; what was not is absent; `--extra` is merged last."""
    with Upstream() as upstream:
        done = ark(
            seedream, upstream, "a fox", "-m", "5.0-lite", "-s", "3k", "-a", "16:9", "--format", "png",
            "--optimize-prompt", "standard", "--web-search", "--watermark", "--sequence", "2",
            "--extra", "user=\"me\"", "--extra", "output_format=\"jpeg\"", "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        assert upstream.bodies == [
            {
                "model": "doubao-seedream-5-0-260128", "prompt": "a fox", "size": "4096x2304", "response_format": "url",
                "watermark": True, "sequential_image_generation": "auto",
                "sequential_image_generation_options": {"max_images": 2}, "output_format": "jpeg",
                "optimize_prompt_options": {"mode": "standard"}, "tools": [{"type": "web_search"}], "user": "me",
            }
        ]  # fmt: skip
        assert [image["index"] for image in done.json["images"]] == [0, 1]
        assert len({image["path"] for image in done.json["images"]}) == 2


def test_count_is_independent_requests_and_sequence_is_one(seedream: Command) -> None:
    """`-n 3` pays three requests for three files; `--sequence 4` pays one, and fewer than asked is said."""
    with Upstream(reply=None) as upstream:
        done = ark(seedream, upstream, "a fox", "-n", "3", "--json")
        assert (done.code, len(upstream.posts), len(done.json["images"])) == (0, 3, 3)
        assert len(done.json["requests"]) == 3
        assert len({one["path"] for one in done.json["images"]}) == 3
    two = lambda body, number: {"data": [{"url": upstream.link(1)}, {"url": upstream.link(2)}]}  # noqa: E731
    with Upstream(reply=two) as upstream:
        done = ark(seedream, upstream, "a set", "--sequence", "4")
        assert (done.code, len(upstream.posts), len(done.paths)) == (0, 1, 2)
        assert "asked for up to 4, got 2" in done.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--size", "5K"], ["--size", "2K"]),
        (["--size", "100x100"], ["3,686,400"]),
        (["--seed", "x", "--count", "0", "--timeout", "-1"], ["--seed", "--count", "--timeout"]),
        (["-m", "5.0-pro", "--sequence", "4"], ["--sequence"]),
        (["-m", "4.5", "--format", "png", "--strict"], ["--format"]),
        (["--extra", "user=me"], ["--extra", "JSON"]),
        (["--extra", "stream=true"], ["--extra"]),
        (["--aspect", "5:4"], ["--aspect", "16:9"]),
        (["-o", "fox.txt"], ["fox.txt"]),
        (["--name", "{nope}"], ["{nope}", "{slug}"]),
        (["--no-download", "--response-format", "b64_json"], ["--no-download"]),
        (["--if-exists", "maybe"], ["--if-exists", "rename"]),
        (["-o", "-", "-n", "2"], ["standard output"]),
        (["--base-url", "ftp://x"], ["base"]),
    ],
)
def test_bad_input_is_told_with_its_place_and_nothing_is_sent(
    seedream: Command, args: list[str], words: list[str]
) -> None:
    """Every problem in one go, exit 2, no request; with `--json` also as an object."""
    with Upstream() as upstream:
        more = args if "--base-url" in args else ["--base-url", upstream.url, *args]
        done = seedream("generate", "a fox", "-p", "ark", *more, "--json", env={"ARK_API_KEY": CANARY})
        assert done.code == 2, done.err
        assert not upstream.server.requests
        for word in words:
            assert word in done.err, done.err
        assert done.json["error"]["billed"] == "no"
        assert done.json["status"] == "failed"


def test_a_dropped_option_is_a_warning_and_force_sends_it(seedream: Command) -> None:
    """What the model refuses is left out and said; `--force` sends it; an unknown id passes untouched."""
    with Upstream() as upstream:
        done = ark(seedream, upstream, "x", "-m", "4.5", "--format", "png")
        assert (done.code, "output_format" in upstream.bodies[0]) == (0, False)
        assert "warning: --format" in done.err
        done = ark(seedream, upstream, "x", "-m", "4.5", "--format", "png", "--size", "64x64", "--force")
        assert (done.code, upstream.bodies[1]["output_format"], upstream.bodies[1]["size"]) == (0, "png", "64x64")
        done = ark(seedream, upstream, "x", "-m", "ep-2026-abc")
        assert (done.code, upstream.bodies[2]["model"]) == (0, "ep-2026-abc")
        assert "ep-2026-abc" in done.err


@pytest.mark.parametrize(
    ("script", "code", "kind", "billed", "posts"),
    [
        (refusal(401, "AuthenticationError", f"key {CANARY} is wrong. Request id: 02"), 3, "auth", "no", 1),
        (refusal(403, "AccountOverdueError"), 3, "account", "no", 1),
        (refusal(400, "InvalidParameter"), 4, "refused", "no", 1),
        (refusal(400, "InputTextSensitiveContentDetected"), 4, "moderation", "no", 1),
        (refusal(404, "InvalidEndpointOrModel.NotFound"), 4, "refused", "no", 1),
        (refusal(429, "QuotaExceeded"), 5, "quota", "no", 1),
        (refusal(429, "ModelAccountIpmRateLimitExceeded"), 5, "rate_limited", "no", 3),
        (refusal(500, "InternalServiceError"), 5, "unavailable", "no", 3),
        (answer(b'{"error":{"code":"InvalidParameter","message":"ratio"}}'), 4, "refused", "no", 1),
        (answer(b"<html>bad gateway</html>", status=502), 7, "unknown_outcome", "unknown", 1),
        (answer(b"", status=408), 7, "unknown_outcome", "unknown", 1),
        (answer(b"", status=302, headers=[("Location", "http://127.0.0.1:9/")]), 4, "refused", "no", 1),
        (answer(b"{}"), 7, "unknown_outcome", "unknown", 1),
        (answer(b'{"data":[]}'), 7, "unknown_outcome", "unknown", 1),
        (answer(b"<html>"), 7, "unknown_outcome", "unknown", 1),
        (answer(b'{"data":[{"url":"http', cut=10, status=200), 7, "unknown_outcome", "unknown", 1),
        (RESET, 7, "unknown_outcome", "unknown", 1),
    ],
)
def test_failures_are_told_apart_and_never_paid_twice(
    seedream: Command, script: Script, code: int, kind: str, billed: str, posts: int
) -> None:
    """Exit code, error code, billing and the number of POSTs of each failure; only unbilled refusals are repeated."""
    with Upstream(script=lambda request, number: script) as upstream:
        done = ark(seedream, upstream, "a fox", "--json", "--retries", "2", hurried=True)
        assert done.code == code, done.err
        error = done.json["error"]
        assert (error["code"], error["billed"], len(upstream.posts)) == (kind, billed, posts)
        assert not list(seedream.folder.iterdir())
        assert ("may have been billed" in done.err) == (billed == "unknown")


def test_what_never_left_is_network_and_what_was_lost_is_unknown(seedream: Command) -> None:
    """A closed port is exit 6 and unbilled; a lost answer is exit 7, and is sent again only when asked."""
    closed = ["generate", "x", "-p", "ark", "--base-url", f"http://127.0.0.1:{free_port()}", "--retries", "1"]
    done = seedream(*closed, "--json", env={"ARK_API_KEY": CANARY})
    assert (done.code, done.json["error"]["code"], done.json["error"]["billed"]) == (6, "network", "no")
    with Upstream(script=lambda request, number: SILENCE) as upstream:
        done = ark(seedream, upstream, "x", "--timeout", "1", "--json")
        assert (done.code, done.json["error"]["code"], len(upstream.posts)) == (7, "unknown_outcome", 1)
    with Upstream(script=lambda request, number: RESET if number == 1 else None) as upstream:
        done = ark(seedream, upstream, "x", "--retry-ambiguous", "--retries", "1")
        assert (done.code, len(upstream.posts)) == (0, 2), done.err


CUT_SIGNATURE = b'{"Code":"AccessDenied","Message":"Access Denied","EC":"0003-00000015"}'
TOO_LATE = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


@pytest.mark.parametrize(
    ("link", "kind", "words"),
    [
        (answer(b"<!DOCTYPE html><html>sign in"), "download", "HTML page"),
        (answer(CUT_SIGNATURE, status=403), "download", "signature"),
        (answer(TOO_LATE, status=403), "download", "the store says that the link has expired"),
        (answer(TOO_LATE, status=403, headers=[("Date", "Fri, 01 Jan 2100 00:00:00 GMT")]), "expired", "expired"),
        (answer(make_image()[:-200]), "download", "JPEG"),
        (answer(make_image(), cut=400), "download", ""),
        (answer(b""), "download", "0 bytes"),
        (answer(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "download", ""),
        (answer(b"", status=302, headers=[("Location", "http://example.com/x.jpg")]), "download", ""),
    ],
)
def test_a_paid_image_that_does_not_come_is_exit_8_and_can_be_recovered(
    seedream: Command, link: Script, kind: str, words: str
) -> None:
    """Nothing false is on disk, the message says why, and `recover` saves it later without a second payment."""
    broken = True
    with Upstream(link=lambda request, number: link if broken else None) as upstream:
        done = ark(seedream, upstream, "a fox", "--json", "--retries", "0")
        assert done.code == 8, done.err
        [image] = done.json["images"]
        assert (image["error"]["code"], image["error"]["billed"], image["path"]) == (kind, "yes", None)
        assert image["url"] == upstream.link(100), "a script gets the link itself"
        assert words in done.err
        assert "X-Tos-Signature=" not in done.err, "a log never gets the signature"
        assert not list(seedream.folder.iterdir())
        # What cannot be had any more is not offered, and yet tried once more where it is named.
        assert (f"seedream recover {done.json['id']}" in done.err) == (kind != "expired")
        broken = False
        done = seedream("recover", done.json["id"])
        assert (done.code, len(done.paths), len(upstream.posts)) == (0, 1, 1), done.err
        assert (seedream.folder / done.paths[0]).read_bytes() == make_image(seed=100)
        assert "nothing to recover" in seedream("recover").err


def test_a_cut_download_is_repeated_and_the_request_is_not(seedream: Command) -> None:
    """Half an image is fetched again from its link: one POST, two GETs, a whole file."""
    with Upstream(link=lambda request, number: answer(make_image()[:-99]) if number == 1 else None) as upstream:
        done = ark(seedream, upstream, "a fox")
        assert (done.code, len(upstream.posts), len(upstream.gets)) == (0, 1, 2), done.err


@pytest.mark.parametrize("data_uri", [False, True])
def test_base64_replies_become_files_and_are_never_echoed(seedream: Command, *, data_uri: bool) -> None:
    """The image in the reply is decoded to disk; neither the terminal nor the JSON shows it."""
    import base64

    raw = make_image("PNG", (300, 300))
    text = base64.b64encode(raw * 1).decode()
    item = {"url": f"data:image/png;base64,{text}"} if data_uri else {"b64_json": text, "size": "300x300"}
    with Upstream(reply=lambda body, number: {"data": [item]}) as upstream:
        done = ark(seedream, upstream, "a fox", "--response-format", "b64_json", "--json")
        assert done.code == 0, done.err
        path = seedream.folder / done.json["images"][0]["path"]
        assert (path.suffix, path.read_bytes()) == (".png", raw)
        assert text[:64] not in done.out + done.err


HOSTILE = [
    "../../etc/passwd",
    "a\x1b[31mb\u202egnp",
    "CON",
    "图像" * 200,
    "x/y\\z",
    "{slug}",
    ".hidden",
    "--help ",
    "a\nb",
]


@pytest.mark.parametrize("prompt", HOSTILE)
def test_names_stay_inside_the_folder_whatever_the_prompt_holds(seedream: Command, prompt: str) -> None:
    """A hostile prompt gives a plain name in the output folder, and nothing is written anywhere else."""
    with Upstream() as upstream:
        env = {"ARK_API_KEY": CANARY}
        args = ["-p", "ark", "--base-url", upstream.url, "-o", "out/"]
        done = seedream("generate", *args, "--", prompt, env=env)
        assert done.code == 0, done.err
        [file] = [path for path in seedream.folder.rglob("*") if path.is_file()]
        assert file.parent == seedream.folder / "out"
        assert len(file.name.encode()) <= 255
        assert file.name.isprintable()
        assert not file.name.startswith((".", "-"))


def test_nothing_existing_is_replaced_unless_told(seedream: Command) -> None:
    """An explicit file that exists is refused before anything is paid; each way of `--if-exists` does as it says."""
    fox = seedream.folder / "fox.jpg"
    fox.write_bytes(b"mine")
    with Upstream() as upstream:
        done = ark(seedream, upstream, "x", "-o", "fox.jpg")
        assert (done.code, len(upstream.posts)) == (2, 0)
        assert "--if-exists" in done.err
        done = ark(seedream, upstream, "x", "-o", "fox.jpg", "--if-exists", "rename")
        assert (done.code, done.out.strip(), fox.read_bytes()) == (0, "fox-2.jpg", b"mine")
        done = ark(seedream, upstream, "x", "-o", "fox.jpg", "--if-exists", "skip")
        assert (done.code, len(upstream.posts), fox.read_bytes()) == (0, 1, b"mine"), "skipping pays nothing"
        assert done.out.strip() == "fox.jpg"
        done = ark(seedream, upstream, "x", "-o", "fox.jpg", "--if-exists", "overwrite")
        assert (done.code, fox.read_bytes()[:2]) == (0, b"\xff\xd8")
        done = ark(seedream, upstream, "x", "-o", "fox.png")
        assert (done.code, done.out.strip()) == (0, "fox-3.jpg"), "the bytes decide on the suffix"


def test_an_image_that_was_there_costs_nothing(seedream: Command) -> None:
    """What was left is free and known to be: it hides nothing of what the others cost."""
    with Upstream() as upstream:
        (seedream.folder / "fox-1.jpg").write_bytes(b"mine")
        args = ["fox", "-n", "2", "--if-exists", "skip"]
        done = ark(seedream, upstream, *args, "--json")
        assert (len(upstream.posts), done.json["cost"]["amount"], done.json["cost"]["as_of"]) == (1, 0.035, "2026-11")
        done = ark(seedream, upstream, *args)
        assert (done.code, len(upstream.posts)) == (0, 1), done.err
        assert "unknown price" not in done.err


@pytest.mark.parametrize("place", ["x/" + "y" * 300 + ".jpg", "z" * 260 + "/", "é" * 126 + ".jpg", "a/" * 1500])
def test_a_name_that_no_disk_takes_is_refused_before_payment(seedream: Command, place: str) -> None:
    """Whatever part of the path it is."""
    with Upstream() as upstream:
        done = ark(seedream, upstream, "x", "-n", "2", "-o", place)
        assert (done.code, upstream.posts) == (74 if place.startswith("z") else 2, []), done.err
        assert list(seedream.folder.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the stream")
def test_an_image_for_a_closed_standard_output_is_not_paid_for(seedream: Command) -> None:
    """That it is closed is known before."""
    with Upstream() as upstream:
        args = ["generate", "x", "-o", "-", "-p", "ark", "--base-url", upstream.url]
        closed = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "seedream_cli", *args]
        env = {**seedream.env, "ARK_API_KEY": CANARY}
        done = subprocess.run(closed, cwd=seedream.folder, env=env, capture_output=True, timeout=60, check=False)
        assert (done.returncode, upstream.posts) == (74, []), done.stderr


def test_two_processes_with_one_name_keep_both_images(seedream: Command) -> None:
    """Two runs that end at once with the same name leave two files."""
    with Upstream(script=lambda request, number: None) as upstream:
        args = ["generate", "same", "-p", "ark", "--base-url", upstream.url, "-n", "4"]
        runs = [seedream.popen(*args, env={"ARK_API_KEY": CANARY}) for _ in range(2)]
        for run in runs:
            run.communicate(timeout=60)
        assert [run.returncode for run in runs] == [0, 0]
        assert len(list(seedream.folder.glob("same*.jpg"))) == 8


def test_an_output_that_cannot_be_written_costs_nothing(seedream: Command) -> None:
    """A file where the folder should be is found out before the request."""
    (seedream.folder / "out").write_text("a file")
    with Upstream() as upstream:
        done = ark(seedream, upstream, "x", "-o", "out/")
        assert (done.code, len(upstream.posts)) == (74, 0), done.err
        assert "out" in done.err


def test_json_is_exact_in_a_narrow_pipe(seedream: Command) -> None:
    """One line, every character of a long link, markup, emoji codes and CJK as they are, whatever the terminal is."""
    link = "https://x.invalid/" + "a%2F" * 150 + "?s=[bold]x[/bold]&e=:smile:&中=1"
    with Upstream(reply=lambda body, number: {"data": [{"url": link}]}) as upstream:
        env = {"COLUMNS": "40", "FORCE_COLOR": "1"}
        done = ark(seedream, upstream, "[red]中[/red] :fox:", "--no-download", "--json", env=env)
        assert done.code == 0, done.err
        assert done.out.count("\n") == 1
        assert done.json["images"][0]["url"] == link
        assert done.json["request"]["prompt"] == "[red]中[/red] :fox:"
        assert "\x1b" not in done.out
        done = ark(seedream, upstream, "x", "--no-download", env=env)
        assert done.out == link + "\n"


@pytest.mark.parametrize(
    "hostile", ["\x1b]0;pwned\x07", "[/red] [link=x]y", "\u202eevil", "a\r::error::x\n::add-mask::y"]
)
def test_foreign_text_is_shown_and_never_obeyed(seedream: Command, hostile: str) -> None:
    """Control characters, markup and direction overrides of a provider's message reach nobody's terminal."""
    with Upstream(script=lambda request, number: refusal(400, "InvalidParameter", hostile)) as upstream:
        done = ark(seedream, upstream, "x")
        assert done.code == 4
        assert not set(done.err) & set("\x1b\x07\r\u202e\x9b")
        assert not [line for line in done.err.splitlines() if line.startswith("::")]


def test_a_key_that_is_missing_or_odd_is_exit_3_and_never_shown(seedream: Command) -> None:
    """No key names the variables and the sandbox line and makes nothing; a key with a newline is used without it."""
    done = seedream("generate", "x", "-p", "byteplus")
    assert done.code == 3
    for word in ("SEEDREAM_API_KEY", "BYTEPLUS_API_KEY", "ARK_API_KEY", "--provider sandbox"):
        assert word in done.err
    assert not list(seedream.folder.iterdir())
    key_file = seedream.home.parent / "key"
    key_file.write_bytes(b"\xef\xbb\xbf" + CANARY.encode() + b"\r\n")
    with Upstream() as upstream:
        args = ["generate", "x", "-p", "ark", "--base-url", upstream.url, "--api-key-file"]
        assert seedream(*args, str(key_file)).code == 0
        assert seedream(*args, "-", stdin=CANARY.encode() + b"\n").code == 0
        assert [post.header("authorization") for post in upstream.posts] == [f"Bearer {CANARY}"] * 2
        done = seedream("generate", "x", "-p", "ark", env={"ARK_API_KEY": f"{CANARY} é\n"})
        assert done.code == 3, done.err
        done = seedream("generate", "x", "--base-url", upstream.url, env={"ARK_API_KEY": CANARY})
        assert done.code == 0
        assert "provider ark" in done.err, "a provider that was not asked for is named"


def test_dry_run_curl_and_explain_send_nothing_and_need_no_key(seedream: Command) -> None:
    """The body of a dry run is the body that is sent; the curl command sends the same when a shell runs it."""
    with Upstream() as upstream:
        base = ["generate", 'it\'s $HOME `x`\n"中"', "-p", "ark", "--base-url", upstream.url, "-s", "2K", "-a", "1:1"]
        dry = seedream(*base, "--dry-run")
        curl = seedream(*base, "--curl")
        explained = seedream(*base, "--explain")
        assert (dry.code, curl.code, explained.code) == (0, 0, 0)
        assert not upstream.server.requests
        assert "2048x2048" in explained.out
        assert "$ARK_API_KEY" in curl.out
        assert seedream(*base, env={"ARK_API_KEY": CANARY}).code == 0
        assert upstream.bodies == [json.loads(dry.out)]
        subprocess.run(
            ["sh", "-c", curl.out], env={**os.environ, "ARK_API_KEY": CANARY}, check=True, capture_output=True
        )
        assert upstream.bodies[1] == upstream.bodies[0]
        assert shlex.split(curl.out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_was_paid_and_a_second_one_stops(seedream: Command, number: signal.Signals) -> None:
    """The request in flight is finished and saved; its exit code says what signal it was."""
    with Upstream() as upstream:
        upstream.delay_s = 1.5
        args = ["generate", "x", "-p", "ark", "--base-url", upstream.url, "-o", "fox.jpg"]
        run = seedream.popen(*args, env={"ARK_API_KEY": CANARY})
        _await(lambda: bool(upstream.posts))
        run.send_signal(number)
        out, err = run.communicate(timeout=20)
        assert (run.returncode, out) == (128 + number, b"fox.jpg\n"), err
        assert (seedream.folder / "fox.jpg").stat().st_size
    with Upstream(script=lambda request, n: SILENCE) as upstream:
        args[5] = upstream.url
        run = seedream.popen(*args, "--json", "--if-exists", "rename", env={"ARK_API_KEY": CANARY})
        _await(lambda: bool(upstream.posts))
        run.send_signal(number)
        time.sleep(0.3)
        run.send_signal(number)
        out, err = run.communicate(timeout=10)
        assert run.returncode == 128 + number, err
        assert json.loads(out)["error"]["code"] == "unknown_outcome"


def _await(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_image_can_go_to_standard_output(seedream: Command) -> None:
    """`-o -` writes the checked bytes and nothing else; a closed pipe leaves the image for `recover`."""
    with Upstream() as upstream:
        run = seedream.popen(
            "generate", "x", "-p", "ark", "--base-url", upstream.url, "-o", "-", env={"ARK_API_KEY": CANARY}
        )
        out, _ = run.communicate(timeout=30)
        assert (run.returncode, out) == (0, make_image(seed=100))


def test_nothing_of_a_run_is_left_behind(seedream: Command) -> None:
    """After success the state folder keeps no reply and the output folder no part."""
    with Upstream() as upstream:
        assert ark(seedream, upstream, "x", "-o", "out/").code == 0
        left = {path.name for path in seedream.home.rglob("*") if path.is_file()}
        assert left == {"x.jpg", "ledger.db", "ledger.db.lock"}


def test_version_and_bare_command(seedream: Command) -> None:
    """`--version` prints the version alone; the bare command prints help; both exit 0."""
    from seedream_cli import __version__

    assert seedream("--version").out == f"seedream {__version__}\n"
    bare = seedream()
    assert len(bare.out.splitlines()) > 5, "a line a line"
    assert bare.code == 0
    assert "generate" in bare.out
