"""Hostile replies, hostile input and hostile surroundings, found by trying to break the command: each stays mended."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.errors import LinkError
from seedream_cli.network.urls import split_link
from seedream_cli.storage.json_text import parse_json
from tests.support.command import CANARY, Command, Inside
from tests.support.provider_server import Upstream, completed, events, sse
from tests.support.raw_server import answer

SURROGATE = "\ud800"
"""What JSON can spell and UTF-8 cannot."""


def send(seedream: Command, upstream: Upstream, *args: str, provider: str = "ark", **more: Any) -> Any:
    """One run of `generate` with JSON against an upstream."""
    variable = {"ark": "ARK_API_KEY", "acedata": "ACEDATACLOUD_API_TOKEN"}[provider]
    args = ("-p", provider, "--base-url", upstream.url, "--json", *args)
    return seedream("generate", "x", *args, env={variable: CANARY}, hurried=True, **more)


# --- replies ----------------------------------------------------------------------------------------------------------


def test_json_from_outside_holds_only_what_can_be_written_down() -> None:
    """Lone surrogates become marks, numbers without a value or beyond 18 digits become null; pairs stay."""
    raw = rb'{"a":"\ud800x\\ud800\ud83d\ude00\uDFFF","b":1e999,"c":[-1e999,1.5,12345678901234567890],"d":-7,"\udc00":1}'
    assert parse_json(raw) == {
        "a": "\ufffdx\\ud800\U0001f600\ufffd",
        "b": None,
        "c": [None, 1.5, None],
        "d": -7,
        "\ufffd": 1,
    }
    assert parse_json(b'\xef\xbb\xbf{"a":"\xe9"}') == {"a": "\ufffd"}
    assert parse_json(b"[NaN,Infinity,-Infinity]") == [None, None, None]


HOSTILE: dict[str, Callable[[str], str]] = {
    "surrogates beside the link": lambda link: json.dumps(
        {
            "model": SURROGATE,
            "trace_id": SURROGATE,
            "data": [{"url": link, "size": SURROGATE, "output_format": SURROGATE, "z_index": 1, "name": SURROGATE}],
            "usage": {"generated_images": SURROGATE, SURROGATE: SURROGATE},
        }
    ),
    "numbers without end": lambda link: (
        f'{{"data":[{{"url":"{link}","z_index":1,"bounding_box":{{"absolute":[1e400,1,2,3]}}}}],'
        '"usage":{"generated_images":1e400}}'
    ),
    "a count of 400 digits": lambda link: json.dumps(
        {"data": [{"url": link, "z_index": 10**30}], "usage": {"generated_images": 10**400}}
    ),
    "a count below zero": lambda link: json.dumps({"data": [{"url": link}], "usage": {"generated_images": -5}}),
    "a count past all reason": lambda link: json.dumps(
        {"data": [{"url": link}], "usage": {"generated_images": 10**17}}
    ),
    "text that is no UTF-8": lambda link: '{"model":"\udce9","data":[{"url":"' + link + '"}]}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_stands_beside_a_link_the_image_is_saved(seedream: Command, name: str) -> None:
    """No text or number of a reply keeps a paid image from the disk, or makes its price negative."""
    with Upstream(
        script=lambda _r, _n: answer(HOSTILE[name](upstream.link(1)).encode(errors="surrogateescape"))
    ) as upstream:
        done = send(seedream, upstream)
    assert done.code == 0, done.err
    assert (seedream.folder / "x.jpg").is_file()
    assert done.json["cost"]["amount"] == 0.035
    assert seedream("history", "--json").json["requests"][0]["status"] == "succeeded"


def test_a_link_that_is_no_text_is_a_failed_download() -> None:
    """Half a character in a link is refused like everything else that cannot be asked for."""
    with pytest.raises(LinkError):
        split_link(f"https://store.example/1.jpeg?{SURROGATE}")


@pytest.mark.parametrize("index", [10**30, 2**63, 2**31, -5, True, "0", 1.5])
def test_a_stream_may_number_its_images_as_it_likes(seedream: Command, index: Any) -> None:
    """A number that no image can have is replaced by the next free one."""
    with Upstream(
        script=lambda _r, _n: answer(sse(events(upstream, 1)[0] | {"image_index": index}, completed(1)))
    ) as upstream:
        done = send(seedream, upstream, "--stream", "--sequence", "2")
    assert done.code == 0, done.err
    assert [path.name for path in seedream.folder.iterdir()] == ["x-1.jpg"]


def test_a_task_in_answer_to_a_stream_is_polled(seedream: Command) -> None:
    """A provider that answers a stream with a task is asked after the task: it is paid for."""

    def reply(body: Any, number: int) -> Any:
        return {"task_id": "t-1"} if number == 1 else upstream.acedata({}, number)

    with Upstream(reply=reply) as upstream:
        done = send(seedream, upstream, "--stream", provider="acedata")
    assert done.code == 0, done.err
    assert upstream.bodies[1] == {"id": "t-1", "action": "retrieve"}
    assert (seedream.folder / "x.jpg").is_file()


@pytest.mark.parametrize("args", [["--timeout", "0.2"], ["--callback-url", "https://x.example/cb"]])
def test_a_tasks_id_in_a_command_to_paste_is_quoted(seedream: Command, args: list[str]) -> None:
    """An id is the provider's text: pasted into a shell it must stay one word."""
    replies = [{"task_id": "t; touch owned"}, {"id": "t", "created_at": 1.5}]
    with Upstream(reply=lambda _b, number: replies[min(number, 2) - 1]) as upstream:
        done = send(seedream, upstream, *args, provider="acedata")
    assert "recover --task 't; touch owned' -p acedata" in done.err, done.err


def test_more_images_than_asked_for_all_have_their_place(seedream: Command) -> None:
    """A gateway may return more than was asked for: each is billed, so each is saved, in order."""

    def reply(_body: Any, _number: int) -> Any:
        return {"data": [{"url": upstream.link(index)} for index in range(4)], "usage": {"generated_images": 4}}

    with Upstream(reply=reply) as upstream:
        first = send(seedream, upstream)
        second = send(seedream, upstream, "-o", "one.jpg")
    assert [image["path"] for image in first.json["images"]] == ["x.jpg", "x-2.jpg", "x-3.jpg", "x-4.jpg"]
    assert second.code == 0, second.err
    assert [image["path"] for image in second.json["images"]] == ["one.jpg", "one-2.jpg", "one-3.jpg", "one-4.jpg"]


def test_standard_output_gets_one_image_alone(seedream: Command) -> None:
    """Where more images come than standard output takes, one is written and the others stay for `recover`."""

    def reply(_body: Any, _number: int) -> Any:
        return {"data": [{"url": upstream.link(index)} for index in range(2)], "usage": {"generated_images": 2}}

    with Upstream(reply=reply) as upstream:
        process = seedream.popen(
            "generate", "x", "-p", "ark", "--base-url", upstream.url, "-o", "-", env={"ARK_API_KEY": CANARY}
        )
        out, err = process.communicate(timeout=30)
        assert out.count(b"\xff\xd8\xff") == 1
        assert process.returncode == 9, err
        assert b"recover" in err
        assert seedream("recover", env={"ARK_API_KEY": CANARY}).code == 0
    assert len(list(seedream.folder.glob("*.jpg"))) == 1
    assert len(upstream.posts) == 1


# --- input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "origin"),
    [
        (["-m", "n\udce9"], "--model"),
        (["--extra", 'a="\udce9"'], "--extra"),
        (["--extra", r'a=["\ud800"]'], "--extra"),
        (["--extra", r'a={"\ud800":1}'], "--extra"),
        (["-i", "https://x.example/\udce9.png"], "--image"),
        (["--callback-url", "https://x.example/\udce9", "-p", "acedata"], "--callback-url"),
    ],
)
def test_what_is_no_text_is_told_before_anything_is_sent(inside: Inside, args: list[str], origin: str) -> None:
    """An option that JSON cannot carry is a mistake of the user's, whichever it is."""
    done = inside("generate", "x", "-p", "ark", "--dry-run", *args)
    assert done.code == 2, done.err
    assert origin in done.err


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "-", "--api-key-file", "-"],
        ["edit", "x", "-", "--api-key-file", "-"],
        ["edit", "-", "-"],
        ["generate", "-f", "-", "-i", "-"],
    ],
)
def test_standard_input_serves_one_thing(seedream: Command, args: list[str]) -> None:
    """A key on standard input never becomes a prompt: two readers of one stream are refused and nothing is sent."""
    with Upstream() as upstream:
        done = seedream(
            *args,
            *("-p", "ark", "--base-url", upstream.url),
            stdin=f"{CANARY}\nprompt\n".encode(),
            env={} if "--api-key-file" in args else {"ARK_API_KEY": CANARY},
        )
    assert done.code == 2, done.err
    assert "standard input" in done.err
    assert not upstream.posts


def test_a_key_on_standard_input_serves_every_job(seedream: Command) -> None:
    """The key is read once for all the requests of a run."""
    for name in ("a", "b"):
        (seedream.folder / f"{name}.txt").write_text(name)
    with Upstream() as upstream:
        done = seedream(
            *("generate", "-f", "a.txt", "-f", "b.txt", "-p", "ark", "--base-url", upstream.url, "--api-key-file", "-"),
            stdin=CANARY.encode(),
        )
    assert done.code == 0, done.err
    assert [request.header("authorization") for request in upstream.posts] == [f"Bearer {CANARY}"] * 2


@pytest.mark.parametrize(
    "args",
    [["generate", "-"], ["edit", "x", "-"], ["generate", "x", "--api-key-file", "-"], ["recover", "-", "-p", "ark"]],
)
def test_a_closed_standard_input_is_told(seedream: Command, args: list[str]) -> None:
    """`-` with nothing behind it is a mistake of the user's, not a bug."""
    words = " ".join([*args, "-p", "ark"])
    done = shell(seedream, f"$SEEDREAM {words} <&-", env={} if "--api-key-file" in args else {"ARK_API_KEY": CANARY})
    assert done.code in {2, 3}, done.err
    assert "standard input" in done.err


def test_a_stream_that_is_dropped_leaves_the_task_that_is_the_default(inside: Inside) -> None:
    """Where the model does not stream, AceData still gets a task, which survives a lost connection."""
    done = inside("generate", "x", "-p", "acedata", "-m", "5.0-pro", "--stream", "--dry-run", "--json")
    assert done.json["request"]["async"] is True
    assert "stream" not in done.json["request"]


def test_a_dry_run_shows_its_warnings_to_scripts(inside: Inside) -> None:
    """The object of a dry run holds the warnings that a run would hold."""
    done = inside("generate", "x", "-p", "ope", "--format", "png", "--dry-run", "--json")
    assert [warning["message"] in done.err for warning in done.json["warnings"]] == [True]


def test_a_bad_base_url_names_its_option(inside: Inside) -> None:
    """A mistake is told with the name of the option that made it."""
    assert "--base-url" in inside("generate", "x", "-p", "ark", "--base-url", "nonsense", "--dry-run").err


# --- surroundings -----------------------------------------------------------------------------------------------------


def shell(seedream: Command, line: str, **more: Any) -> Any:
    """A command line of the shell, with $SEEDREAM for the command."""
    import subprocess
    import sys

    from tests.support.command import Done

    env = {**seedream.env, **more.pop("env", {}), "SEEDREAM": f"{sys.executable} -m seedream_cli"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    run = subprocess.run(
        ["sh", "-c", line], check=False, env=env, cwd=seedream.folder, capture_output=True, timeout=60, **more
    )
    done = Done(run.returncode, run.stdout.decode(), run.stderr.decode())
    assert "Traceback" not in done.err, done.err
    assert "a bug in" not in done.err, done.err
    return done


def test_the_version_can_be_asked_for_without_anywhere_to_print_it(seedream: Command) -> None:
    """A closed standard output is no bug."""
    assert shell(seedream, "$SEEDREAM --version >&-").code == 0
    assert shell(seedream, "_SEEDREAM_COMPLETE=complete_bash COMP_WORDS=seedream COMP_CWORD=0 $SEEDREAM >&-").code == 0


def test_a_working_folder_that_is_gone_is_told(seedream: Command) -> None:
    """Without a working folder images need one by name, and with one they are saved."""
    gone = "mkdir gone && cd gone && rmdir ../gone && $SEEDREAM generate x -p sandbox -m 4.0 -s 1K"
    done = shell(seedream, gone)
    assert done.code == 74, done.err
    done = shell(seedream, f"{gone} -o {seedream.folder}/shots/")
    assert done.code == 0, done.err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_closed_terminal_saves_what_was_paid(seedream: Command) -> None:
    """SIGHUP is taken like SIGTERM, and ends with its own code; under nohup it changes nothing."""
    with Upstream() as upstream:
        upstream.delay_s = 0.5
        for kept, code in ((signal.SIG_DFL, 129), (signal.SIG_IGN, 0)):
            before = signal.signal(signal.SIGHUP, kept)
            try:
                # An interpreter of its own, which takes from this one what is done at a signal.
                process = Command.popen(
                    seedream, "generate", "x", "-p", "ark", "--base-url", upstream.url, env={"ARK_API_KEY": CANARY}
                )
            finally:
                signal.signal(signal.SIGHUP, before)
            posts = len(upstream.posts)
            while len(upstream.posts) == posts and process.poll() is None:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGHUP)
            _, err = process.communicate(timeout=20)
            assert process.returncode == code, err
    assert len(list(seedream.folder.glob("*.jpg"))) == 2
