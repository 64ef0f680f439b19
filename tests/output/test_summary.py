"""What the user sees: nothing from outside reaches a terminal unescaped, nothing for a script is ever reshaped."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedream_cli.errors import (
    ApiError,
    ConfigError,
    InputError,
    InterruptedRunError,
    LinkError,
    Problem,
    SeedreamError,
)
from seedream_cli.output import dry_run, json_output, messages, model_table, summary
from seedream_cli.output.console import Console
from seedream_cli.output.json_output import Row, render_json
from seedream_cli.output.plain_progress import PlainSink, QuietSink
from seedream_cli.output.progress import make_sink
from seedream_cli.request.image_request import ImageRef
from seedream_cli.request.models import ModelSpec, PriceStep, Rule
from seedream_cli.results import (
    Cost,
    Downloading,
    Draining,
    Event,
    Finished,
    JobResult,
    Layer,
    Notice,
    Planned,
    Report,
    Retrying,
    Saved,
    SavedImage,
    Stage,
    Timing,
)
from seedream_cli.text import clean, clean_path

HOSTILE = {
    "markup": "err [bold red]x[/] y",
    "unbalanced markup": "err [/foo] y",
    "markup link": "[link=https://evil.invalid]click[/link]",
    "markup like a path": "cannot open [secrets/a] [1] [b]",
    "colour": "a\x1b[31mred\x1b[0m",
    "clear screen": "a\x1b[2J\x1b[H",
    "title": "a\x1b]0;pwned\x07b",
    "terminal link": "a\x1b]8;;https://evil.invalid\x1b\\b",
    "clipboard": "a\x1b]52;c;cm0gLXJm\x07b",
    "C1": "a\x9b31mb\x85c",
    "bell, backspace, delete": "a\x07\x08\x7fb",
    "overwrite": "real error\rOK      ",
    "feeds": "a\x0b\x0cb\tc",
    "right to left": "a\u202egnp.exe",
    "isolates": "a\u2066b\u2069\u061c",
    "no width": "a\u200bb\ufeff\u00ad",
    "lone joiner": "a\u200db",
    "tags": "a\U000e0041\U000e0001b",
    "separators": "a\u2028b\u2029c",
    "private use": "a\ue000\U000f0000b",
    "GitHub": "x\n::add-mask::y\r\n::error::z",
    "GitHub, first": "::error::z",
    "GitHub, older": "x ##[add-mask]y ##vso[task.setvariable variable=a]b",
    "surrogate": "a\ud800b\udcff",
    "NUL": "a\x00#b\x00",
    "quotes": "\"'\\`$(id)",
}
URL = "https://tos.example/a%2Fb.jpeg?X-Tos-Signature=" + "0123456789abcdef" * 36 + "&x=[1]+%2B~|{}"
EVERY_HOSTILE = " | ".join(HOSTILE.values())


def is_hidden(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def assert_harmless(text: str) -> None:
    """No hidden character but line ends and our own label colours; no line that a CI runner obeys."""
    plain = re.sub(r"\x1b\[(?:0|2|36|33|1;31)m", "", text)
    assert not [hex(ord(char)) for char in plain if is_hidden(char) and char != "\n"]
    assert not [line for line in plain.split("\n") if line.lstrip().startswith("::")]
    assert "##[" not in plain
    assert "##vso[" not in plain


class Captured:
    """Streams over memory."""

    def __init__(self, encoding: str = "utf-8", **facts: object) -> None:
        self._out, self._err = io.BytesIO(), io.BytesIO()
        self.encoding = encoding
        self.console = Console(
            stdout=io.TextIOWrapper(self._out, encoding=encoding, newline="\n"),
            stderr=io.TextIOWrapper(self._err, encoding=encoding, newline="\n"),
            **facts,  # type: ignore[arg-type]
        )

    @property
    def out(self) -> str:
        return self._out.getvalue().decode(self.encoding)

    @property
    def err(self) -> str:
        return self._err.getvalue().decode(self.encoding)


def refused(**facts: object) -> ApiError:
    defaults: dict[str, object] = {
        "kind": "moderation",
        "provider": "ark",
        "code": "OutputImageSensitiveContentDetected",
        "status": 400,
        "request_id": "0217",
        "hint": "change the prompt",
    }
    return ApiError("the output may be sensitive", **(defaults | facts))  # type: ignore[arg-type]


def lost() -> ApiError:
    return ApiError(
        "no answer after 300 s (ReadTimeout)",
        kind="unknown_outcome",
        billed="unknown",
        delivered="maybe",
        provider="ark",
    )


def make_image(index: int = 0, **facts: object) -> SavedImage:
    defaults: dict[str, object] = {
        "path": Path(f"out/fox-{index + 1}.jpeg"),
        "url": URL,
        "format": "jpeg",
        "width": 2048,
        "height": 1152,
        "bytes": 812_345,
        "sha256": "ab" * 32,
    }
    return SavedImage(index, **(defaults | facts))  # type: ignore[arg-type]


def job(index: int = 0, **facts: object) -> JobResult:
    defaults: dict[str, object] = {
        "id": f"261121-abc-{index + 1}",
        "status": "succeeded",
        "provider": "ark",
        "model": "doubao-seedream-4-5-251128",
        "request": {"model": "doubao-seedream-4-5-251128", "prompt": "a fox", "size": "2K"},
        "images": (make_image(),),
        "usage": {"generated_images": 1, "tool_usage": {"web_search": 2}, "unit": "image"},
        "cost": Cost(0.04, "USD", "2026-11"),
        "attempts": 1,
        "timing": Timing(31.23456, 30.1, 1.0),
    }
    return JobResult(index, **(defaults | facts))  # type: ignore[arg-type]


def run(*jobs: JobResult, **facts: object) -> Report:
    return Report("generate", jobs, **({"elapsed_s": 32.5} | facts))  # type: ignore[arg-type]


def model(name: str = "seedream-4.5", **facts: object) -> ModelSpec:
    defaults: dict[str, object] = {
        "title": "Seedream 4.5",
        "aliases": ("4.5",),
        "ids": {"ark": ("doubao-seedream-4-5-251128",), "cometapi": ("doubao-seedream-4-5-251128", "seedream-4-5")},
        "default_size": "2K",
        "tiers": {"2K": {"1:1": "2048x2048", "16:9": "2848x1600"}, "4K": {"1:1": "4096x4096"}},
        "pixels": (3_686_400, 16_777_216),
        "ratio": (1 / 16, 16.0),
        "references": (0, 14),
        "sequence_max": 15,
        "rules": {"seed": Rule("ignored", "4.x draws without a seed | 模型不支持种子参数", "doc")},
        "formats": ("jpeg",),
        "optimize_modes": ("standard",),
        "price": {"*": (PriceStep(0.03, 2_359_296, ("1K", "1.5K")), PriceStep(0.045, per_reference=0.003))},
        "price_as_of": "2026-11",
        "as_of": "2026-11",
        "source": "Volcengine 82379/1541523",
    }
    return ModelSpec(name, **(defaults | facts))  # type: ignore[arg-type]


# --- text and streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_becomes_one_harmless_line(name: str) -> None:
    """Hidden characters become visible escapes, markup stays text, and cleaning twice changes nothing."""
    for cleaned in (clean(HOSTILE[name]), clean(HOSTILE[name], None)):
        assert not any(map(is_hidden, cleaned))
        assert "##[" not in cleaned
        assert clean(cleaned) == cleaned
    assert not any(map(is_hidden, clean_path(Path("out") / HOSTILE[name])))


def test_escapes_are_readable() -> None:
    """The escapes are those a programmer knows; ordinary text of any script, and emoji, pass untouched."""
    assert clean("a\x1b[0m\u202e\x9b\U000e0001\ud800") == r"a\x1b[0m\u202e\x9b\U000e0001\ud800"
    assert clean("a\r\nb\nc\rd\te") == r"a⏎b⏎c\rd\te"
    assert clean_path("a\nb") == r"a\nb"
    assert clean("##[error]x") == r"\x23#[error]x"
    assert clean("\ufff0\u2065\uffff\U000e0fff") == r"\ufff0\u2065\uffff\U000e0fff", "never to be drawn"
    assert clean("\U0001faff\U000323b0") == "\U0001faff\U000323b0", "newer than this Python, perhaps"
    untouched = "狐狸 лиса نمر fuchs\u00a0[/x] 👩🏽‍💻 ❤️‍🔥 100 %"
    assert clean(untouched) == untouched
    assert clean_path(URL) == URL


def test_long_text_is_cut_between_escapes() -> None:
    """A cut text ends with an ellipsis inside the limit, never with half an escape."""
    assert clean("x" * 600) == "x" * 499 + "…"
    assert clean("x" * 500) == "x" * 500
    assert clean("\x1b" * 20, 10) == r"\x1b\x1b" + "…"
    assert clean("a\r\n" * 200, 400) == "a⏎" * 200
    assert clean_path("x" * 5000) == "x" * 5000


@given(st.text(st.characters(), max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_is_safe_on_a_screen_and_exact_in_json(text: str) -> None:
    """Whatever the text: no hidden character on the screen but joined emoji; JSON reads back as it was, in UTF-8."""
    assert not [char for char in clean(text, None) if is_hidden(char) and char != "\u200d"]
    rendered = render_json({"message": text, text: 1})
    assert not set(rendered) & set("\x7f\x9b\u2028\u2029\u202e\u2066\ufeff\n")
    assert json.loads(rendered.encode()) == json.loads(json.dumps({"message": text, text: 1}))


@pytest.mark.parametrize("name", HOSTILE)
def test_json_reads_back_exactly(name: str) -> None:
    """JSON keeps hostile text exactly and shows none of it raw."""
    rendered = render_json({"m": HOSTILE[name], "u": URL})
    assert json.loads(rendered) == {"m": HOSTILE[name], "u": URL}
    assert URL in rendered
    assert "##[" not in rendered
    assert not [char for char in rendered if is_hidden(char) and char not in "\u200d\ue000\U000f0000"]


def test_json_has_no_numbers_that_json_lacks() -> None:
    """A provider's NaN and Infinity become null instead of breaking every parser."""
    assert render_json({"a": float("nan"), "b": [float("-inf"), 1.5]}) == '{"a":null,"b":[null,1.5]}'


def test_a_long_link_crosses_a_narrow_pipe_unbroken() -> None:
    """A link of over 600 characters is one line of a 40-column pipe, byte for byte."""
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as pipe:
        console = Console(stdout=pipe, stderr=None, width=40, color=True)
        summary.print_results(run(job(images=(make_image(path=None),))), console, "urls")
    with open(reading, "rb") as pipe:
        assert len(URL) > 600
        assert pipe.read() == URL.encode() + b"\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_a_poor_encoding_loses_no_line(encoding: str) -> None:
    """What an encoding lacks is escaped: JSON stays JSON, our own signs get plain forms, nothing raises."""
    captured = Captured(encoding, stdout_is_terminal=True)
    odd = "狐 ü 👩‍💻"
    captured.console.out(odd)
    json_output.print_json({"m": odd}, captured.console)
    summary.print_results(run(job(), job(1, error=refused(), status="failed", images=())), captured.console, "none")
    first, second = captured.out.splitlines()
    assert first == odd.encode(encoding, "backslashreplace").decode(encoding)
    assert json.loads(second) == {"m": odd}
    assert re.search("1 saved, 1 failed [·-] about", captured.err)


def test_a_reader_that_leaves_stops_nothing() -> None:
    """A closed pipe is remembered, raises nothing, and Python ends quietly with the exit code of the run."""
    code = """
import sys
from seedream_cli.output.console import Console
console = Console(stdout=sys.stdout, stderr=sys.stderr)
console.out("first")
sys.stdin.readline()
for number in range(2000):
    console.out("x" * 100)
console.out_bytes(b"x")
console.err(f"closed: {console.stdout_closed}, {console.stderr_closed}")
sys.exit(9)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        assert child.stdin
        assert child.stdout
        assert child.stderr
        assert child.stdout.readline() == b"first\n"
        child.stdout.close()
        child.stdin.write(b"\n")
        child.stdin.close()
        assert child.stderr.read() == b"closed: True, False\n"
    assert child.returncode == 9


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_stops_nothing() -> None:
    """A write that the disk refuses is treated as a closed stream; a missing stream as well."""
    with open("/dev/full", "w") as full:
        console = Console(stdout=full, stderr=None)
        console.out("x")
        console.out_bytes(b"y")
        console.err("z")
        assert console.stdout_closed
        assert console.stderr_closed


def test_bytes_pass_unchanged() -> None:
    """An image for standard output is written as it is, after the lines before it."""
    captured = Captured("latin-1")
    captured.console.out("a")
    captured.console.out_bytes(b"\x89PNG\r\n\x1a\n\x00")
    assert captured.out == "a\n\x89PNG\r\n\x1a\n\x00"


# --- errors ---------------------------------------------------------------------------------------------------------

GOLDEN_ERRORS: list[tuple[SeedreamError | Problem, list[str]]] = [
    (
        ApiError(
            "size is not supported",
            kind="refused",
            provider="ark",
            code="InvalidParameter",
            status=400,
            request_id="0217",
            hint="seedream models 4.5 lists its sizes",
        ),
        [
            "error: size is not supported",
            "  provider ark, code InvalidParameter, HTTP 400, request id 0217; not billed",
            "  hint: seedream models 4.5 lists its sizes",
        ],
    ),
    (
        lost(),
        ["error: no answer after 300 s (ReadTimeout)", "  provider ark; unknown, may have been billed, possibly $0.03"],
    ),
    (
        LinkError("the link answered HTTP 503", hint="seedream recover X"),
        ["error: the link answered HTTP 503", "  billed", "  hint: seedream recover X"],
    ),
    (ConfigError("no key was found", hint="set ARK_API_KEY"), ["error: no key was found", "  hint: set ARK_API_KEY"]),
    (
        InputError(
            [
                Problem("size", "9000x9000 is too large", "at most 16.8 MP", origin="shots.csv:14"),
                Problem("size", "9001x9001 is too large", "at most 16.8 MP", origin="shots.csv:15"),
                Problem("seed", "-1 is below 0", origin="shots.jsonl:3"),
                Problem("aspect", "17:9 is not known", "16:9", origin="--aspect"),
                Problem("image", "the image is empty"),
            ]
        ),
        [
            "error: shots.csv:14, column size: 9000x9000 is too large",
            "error: shots.csv:15, column size: 9001x9001 is too large",
            "  hint: at most 16.8 MP",
            "error: shots.jsonl:3, key seed: -1 is below 0",
            "error: --aspect: 17:9 is not known",
            "  hint: 16:9",
            "error: the image is empty",
        ],
    ),
    (
        Problem("seed", "seed is ignored by 4.5", severity="warning", origin="--seed"),
        ["warning: --seed: seed is ignored by 4.5"],
    ),
    (
        ApiError("x\n::error::y", kind="network", code="\x1b[2J"),
        [r"error: x⏎::error::y", r"  code \x1b[2J; not billed"],
    ),
    (InputError([], kind="usage"), ["error: usage"]),
]


@pytest.mark.parametrize(("error", "lines"), GOLDEN_ERRORS, ids=lambda value: type(value).__name__)
def test_errors_say_what_where_money_and_way_out(error: SeedreamError | Problem, lines: list[str]) -> None:
    """The exact lines: every problem of an input error, a shared hint once, the billing truth in words."""
    assert messages.error_lines(error, cost=Cost(0.03, "USD", "2026-11")) == lines


SETTLE = "to settle the 1 unknown: check the provider's usage page, then"
AGAIN = " --only unknown --retry-ambiguous"

GOLDEN_REPORTS: dict[str, tuple[Report, list[str]]] = {
    "one image, saved": (run(job()), []),
    "four images, saved": (
        run(*(job(i) for i in range(4))),
        ["4 saved · about $0.16"],
    ),
    "an image refused": (
        run(
            job(
                status="partial",
                images=(make_image(), make_image(1), make_image(2, path=None, error=(error := refused()))),
                error=error,
                cost=Cost(0.06, "USD", "2026-11"),
                asked_up_to=4,
            )
        ),
        [
            "error: image 3 of 3: refused by moderation (OutputImageSensitiveContentDetected)",
            "  the provider says: the output may be sensitive",
            "  provider ark, HTTP 400, request id 0217; not billed",
            "  hint: change the prompt",
            "note: asked for up to 4, got 2",
            "2 saved, 1 failed · about $0.06",
        ],
    ),
    "one unknown among others": (
        run(
            job(),
            job(1, status="failed", images=(), error=refused(kind="refused", hint=""), cost=None),
            job(2, status="unknown", images=(), error=lost(), cost=Cost(0.04, "USD", "2026-11")),
        ),
        [
            "error: request 2 of 3: the output may be sensitive",
            "  provider ark, code OutputImageSensitiveContentDetected, HTTP 400, request id 0217; not billed",
            "error: request 3 of 3: no answer after 300 s (ReadTimeout)",
            "  provider ark; unknown, may have been billed, possibly $0.04",
            "1 saved, 1 failed (not charged), 1 unknown · charged about $0.04 · possibly $0.04 more",
            SETTLE + "  seedream history resolve 261121-abc-3 --paid | --unpaid",
        ],
    ),
    "only an unknown one, price unknown": (
        dataclasses.replace(run(job(status="unknown", images=(), error=lost(), cost=None)), command="batch"),
        [
            "error: no answer after 300 s (ReadTimeout)",
            "  provider ark; unknown, may have been billed",
            "1 unknown · may have been charged",
            SETTLE + "  seedream history resolve 261121-abc-1 --paid | --unpaid, or run again with" + AGAIN,
        ],
    ),
    "paid but not saved": (
        run(job(status="failed", images=(make_image(path=None, error=(bad := LinkError("HTTP 503"))),), error=bad)),
        ["error: image 1 of 1: HTTP 503", "  billed", "1 paid but not saved · about $0.04"],
    ),
    "stopped": (
        run(
            job(),
            job(
                1,
                status="failed",
                images=(),
                cost=None,
                error=InterruptedRunError("stopped before it was sent", signal_number=2),
            ),
            signal_number=2,
        ),
        [
            "error: request 2 of 2: stopped before it was sent",
            "1 saved, 1 not sent · about $0.04",
            "stopped by SIGINT",
        ],
    ),
    "refused": (
        run(job(status="failed", images=(), cost=None, error=refused(kind="refused", hint="", request_id=""))),
        [
            "error: the output may be sensitive",
            "  provider ark, code OutputImageSensitiveContentDetected, HTTP 400; not billed",
            "1 failed · not charged",
        ],
    ),
    "submitted, with a warning": (
        run(
            job(status="submitted", images=(), cost=None, task_id="t-1"),
            warnings=(Problem("seed", "seed is ignored", severity="warning", origin="--seed"),),
        ),
        [
            "warning: --seed: seed is ignored",
            "note: submitted; later: seedream recover --task t-1 -p ark",
            "1 submitted",
        ],
    ),
}


@pytest.mark.parametrize("name", GOLDEN_REPORTS)
def test_the_end_of_a_run_in_lines(name: str) -> None:
    """The exact lines on standard error; where an outcome is unknown nothing is called free or to be retried."""
    ended, lines = GOLDEN_REPORTS[name]
    captured = Captured()
    summary.print_results(ended, captured.console, "paths")
    assert captured.err.splitlines() == lines
    tasks = [one.task_id for one in ended.jobs if one.status == "submitted"]
    paths = [f"out/fox-{i.index + 1}.jpeg" for j in ended.jobs for i in j.images if i.path]
    assert captured.out.splitlines() == paths + tasks
    quiet = Captured()
    summary.print_results(ended, quiet.console, "none", quiet=True)
    assert not [line for line in quiet.err.splitlines() if not line.startswith(("error: ", "  "))]
    assert quiet.out == ""


def test_labels_replace_numbers() -> None:
    """A batch calls a request by its row."""
    ended = run(job(), job(1, status="failed", images=(), cost=None, error=refused(hint="")))
    lines = summary.failure_lines(ended, labels={1: 'row 17 "fox"'})
    assert lines[0] == 'error: row 17 "fox": the output may be sensitive'


def test_colour_only_repeats_the_word() -> None:
    """With colour the label is tinted on a terminal's standard error alone; without it the same words stand there."""
    plain, tinted, piped = Captured(), Captured(color=True, stderr_is_terminal=True), Captured(color=True)
    for captured in (plain, tinted, piped):
        summary.print_error(lost(), captured.console)
    assert "\x1b[1;31merror:\x1b[0m no answer" in tinted.err
    assert re.sub(r"\x1b\[[\d;]*m", "", tinted.err) == plain.err == piped.err


# --- JSON -----------------------------------------------------------------------------------------------------------

JOB_KEYS = (
    "schema command status id provider model request images usage cost warnings error attempts timing".split()  # noqa: SIM905
)
IMAGE_KEYS = "index path url format width height bytes sha256 error".split()  # noqa: SIM905
ERROR_KEYS = "code provider_code message billed retryable hint request_id".split()  # noqa: SIM905


def test_one_request_in_json() -> None:
    """The contract's keys in the contract's order, with the values a script expects."""
    shown = json.loads(render_json(json_output.report_object(run(job()))))
    assert list(shown) == JOB_KEYS
    assert list(shown["images"][0]) == IMAGE_KEYS
    assert shown["schema"] == "seedream/1"
    assert (shown["command"], shown["status"], shown["id"]) == ("generate", "succeeded", "261121-abc-1")
    assert shown["images"][0]["path"] == "out/fox-1.jpeg"
    assert shown["images"][0]["url"] == URL
    assert shown["cost"] == {"amount": 0.04, "currency": "USD", "as_of": "2026-11"}
    assert shown["timing"] == {"total_s": 31.235, "provider_s": 30.1, "download_s": 1.0}
    assert shown["error"] is None


def test_several_requests_in_one_object() -> None:
    """Images are numbered through the run, sums add up, and `requests` lists each request."""
    layer = Layer(2, "sky", "the sky", (0, 0, 9, 9), (0, 0, 1000, 1000))
    ended = run(
        job(images=(make_image(), make_image(1, layer=layer)), warnings=(Problem("a", "b", code="ignored"),)),
        job(1, cost=Cost(0.1 + 0.2, "USD", "2026-10"), warnings=(Problem("a", "b", code="ignored"),)),
        job(2, status="failed", images=(), usage=None, cost=None, error=refused(retryable=True), attempts=3),
    )
    shown = json_output.report_object(ended)
    assert list(shown) == [*JOB_KEYS, "requests"]
    assert shown["status"] == "partial"
    assert [image["index"] for image in shown["images"]] == [0, 1, 2]
    assert [image["index"] for entry in shown["requests"] for image in entry["images"]] == [0, 1, 0]
    assert shown["images"][1]["layer"] == {
        "z_index": 2,
        "name": "sky",
        "description": "the sky",
        "bounding_box": {"absolute": [0, 0, 9, 9], "normalized": [0, 0, 1000, 1000]},
    }
    assert shown["usage"] == {"generated_images": 2, "tool_usage": {"web_search": 4}, "unit": "image"}
    assert shown["cost"] == {"amount": 0.34, "currency": "USD", "as_of": "2026-10"}
    assert shown["warnings"] == [{"code": "ignored", "message": "b"}]
    assert list(shown["error"]) == ERROR_KEYS
    assert shown["error"]["provider_code"] == "OutputImageSensitiveContentDetected"
    assert shown["attempts"] == 5
    assert shown["timing"]["total_s"] == 32.5


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        (["succeeded", "succeeded"], "succeeded"),
        (["succeeded", "failed"], "partial"),
        (["failed", "unknown"], "unknown"),
        (["failed", "failed"], "failed"),
        (["unknown", "succeeded"], "partial"),
        (["submitted", "submitted"], "submitted"),
        (["interrupted", "interrupted"], "failed"),
        ([], "succeeded"),
    ],
)
def test_one_word_for_several_requests(states: list[str], whole: str) -> None:
    """The status of a run uses the contract's words alone."""
    jobs = (job(i, status=state, images=()) for i, state in enumerate(states))
    assert json_output.report_object(run(*jobs))["status"] == whole


def test_the_most_urgent_error_speaks() -> None:
    """Money in doubt comes before a refusal, whichever came first; one priceless image leaves the sum unknown."""
    ended = run(
        job(status="failed", images=(), error=refused()), job(1, status="unknown", images=(), error=lost()), job(2)
    )
    assert json_output.report_object(ended)["error"]["code"] == "unknown_outcome"
    assert json_output.report_object(run(job(), job(1, cost=None)))["cost"] is None


def test_failures_before_anything_was_built_keep_the_envelope() -> None:
    """A usage error has the same keys, nothing in them, and all its problems."""
    shown = json_output.failure_object(
        "edit", InputError([Problem("size", "bad", "2K", origin="--size")], kind="usage")
    )
    assert list(shown) == JOB_KEYS
    assert (shown["status"], shown["request"], shown["images"], shown["id"]) == ("failed", None, [], None)
    assert shown["error"]["code"] == "usage"
    assert shown["error"]["problems"] == [{"field": "size", "message": "bad", "hint": "2K", "origin": "--size"}]


def test_a_row_of_a_batch_says_where_it_stands() -> None:
    """An object of its own, with its place in the table."""
    shown = json_output.job_object(job(), "batch", row=Row(3, 7, "fox"))
    assert list(shown) == ["schema", "type", *JOB_KEYS[1:], "row", "line", "row_id"]
    assert (shown["row"], shown["line"], shown["row_id"], shown["command"]) == (3, 7, "fox", "batch")


# --- every way out, hostile -----------------------------------------------------------------------------------------


def hostile_report(text: str) -> Report:
    error = ApiError(text, kind="moderation", hint=text, provider=text, code=text, status=400, request_id=text)
    warning = Problem(text, text, text, "warning", text, text)
    bad = make_image(1, path=None, error=error, layer=Layer(1, text, text))
    hurt = job(
        id=text,
        provider=text,
        model=text,
        request={"prompt": text, text: [text]},
        images=(make_image(path=Path("out") / text), bad),
        status="partial",
        error=error,
        warnings=(warning,),
        asked_up_to=3,
        cost=Cost(0.01, text, text),
    )
    unknown = job(1, id=text, status="unknown", images=(), error=dataclass_error(text), cost=None)
    return run(hurt, unknown, job(2, status="submitted", images=(), task_id=text), warnings=(warning,))


def dataclass_error(text: str) -> InputError:
    return InputError([Problem(text, text, text, origin=f"{text}:3")])


def hostile_events(text: str) -> list[Event]:
    ended = hostile_report(text)
    return [
        Planned(2, 3, text, text),
        Notice(text),
        Stage(0, "connecting", text),
        Stage(0, "sent", text),
        Retrying(0, text, 3.4, text, 1),
        Stage(1, "polling", text),
        Downloading(0, 0, 10, 100),
        Downloading(0, 1, 10, None),
        Saved(0, ended.jobs[0].images[0]),
        Finished(ended.jobs[0]),
        Draining(text, 1),
    ]


@pytest.mark.parametrize("name", [*HOSTILE, "all"])
def test_no_way_out_lets_hostile_text_through(name: str) -> None:
    """Lines, JSON, paths, tables, plans: nothing hidden is left, no line obeys the text, JSON reads back exactly."""
    text = HOSTILE.get(name, EVERY_HOSTILE)
    captured = Captured(stdout_is_terminal=True, stderr_is_terminal=True, color=True, ci=True, width=40)
    ended = hostile_report(text)
    for mode in ("paths", "urls", "json", "none"):
        summary.print_results(ended, captured.console, mode)
    plain = PlainSink(captured.console, verbosity=1)
    for event in hostile_events(text):
        plain.emit(event)
    odd = model(text, title=text, aliases=(text,), ids={text: (text,)}, rules={text: Rule("taken", text)}, source=text)
    for line in model_table.models_markdown([odd]).splitlines():
        captured.console.out("| " + line)
    dry_run.print_plan({"prompt": text}, [text], Cost(1, text, text), "https://x/" + text, captured.console)
    assert_harmless(captured.err)
    # Private characters and joiners do nothing alone, so JSON keeps them as they are.
    assert_harmless(re.sub("[\u200d\ue000\U000f0000]", "", captured.out))
    assert not captured.err.splitlines()[0].startswith(text[:2])
    objects = [json.loads(line) for line in captured.out.splitlines() if line.startswith('{"schema"')]
    assert objects[0]["requests"][0]["images"][1]["error"]["message"] == text
    assert objects[0]["requests"][0]["request"] == {"prompt": text, text: [text]}


# --- sinks ----------------------------------------------------------------------------------------------------------


def course() -> list[Event]:
    return [
        Planned(2, 2, "ark", "doubao-seedream-4-5-251128"),
        Notice("provider ark, since ARK_API_KEY is set"),
        Stage(0, "connecting"),
        Stage(0, "sent"),
        Retrying(1, "the request", 3.2, "too many requests", 1),
        Downloading(0, 0, 10, 100),
        Saved(0, make_image()),
        Finished(job()),
        Draining("SIGINT", 1, 330.0),
        Finished(job(1, status="failed", images=(), error=refused())),
    ]


def test_plain_progress_is_few_lines() -> None:
    """Without a terminal: start, notices, retries, the drain and tenths; stages and files with -v; less with none."""
    wanted = [
        "start: ark doubao-seedream-4-5-251128, 2 requests, 2 images",
        "note: provider ark, since ARK_API_KEY is set",
        "stage: request 1 of 2: connecting",
        "stage: request 1 of 2: sent",
        "retry: request 2 of 2: the request: too many requests; again in 3 s",
        "saved: out/fox-1.jpeg (2048x1152 jpeg, 0.8 MB)",
        "done: 1 of 2 requests",
        (
            "stopping (SIGINT): nothing new is sent, 1 request in flight will be finished and saved, which may take "
            "up to 5 min; once more stops at once, and may lose what is paid"
        ),
        "done: 2 of 2 requests, 1 failed",
    ]
    shown = {}
    for verbosity in (-1, 0, 1):
        captured = Captured()
        sink = PlainSink(captured.console, verbosity=verbosity)
        for event in course():
            sink.emit(event)
        shown[verbosity] = captured.err.splitlines()
        assert captured.out == ""
    assert shown[1] == wanted
    assert shown[0] == [line for line in wanted if not line.startswith(("stage:", "saved:"))]
    assert shown[-1] == [line for line in wanted if line.startswith(("note:", "stopping"))]


@pytest.mark.parametrize("kind", ["auto", "bar", "plain", "none"])
def test_no_live_display_without_a_terminal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets plain lines without a single escape sequence, whatever colours are forced; -q silences `auto`."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    captured = Captured(color=True)
    sink = make_sink(kind, captured.console)  # type: ignore[arg-type]
    for event in course():
        sink.emit(event)
    sink.close()
    assert isinstance(sink, PlainSink)
    assert "\x1b" not in captured.err
    assert ("start:" in captured.err) == (kind != "none")
    assert isinstance(make_sink("auto", captured.console, verbosity=-1), QuietSink)


# --- what would be sent ---------------------------------------------------------------------------------------------


def body_of(path: Path, prompt: str) -> dict[str, object]:
    return {
        "model": "doubao-seedream-4-5-251128",
        "prompt": prompt,
        "image": [
            ImageRef("file", str(path), path, "cd" * 32, "image/png", 2, 2, size=path.stat().st_size),
            ImageRef("url", "https://x/a.png?b=[1]"),
            ImageRef("data", "standard input", sha256="ef" * 32, mime="image/jpeg", content=b"\xff\xd8'"),
        ],
        "watermark": False,
        "empty": {"a": [], "b": {}},
    }


def test_a_dry_run_shows_the_body_and_the_worst_case(tmp_path: Path) -> None:
    """The body on standard output with references by name, hash and size; address, names and cost beside it."""
    path = tmp_path / "fox.png"
    path.write_bytes(b"12345")
    body = body_of(path, "a fox\x1b")
    captured = Captured()
    dry_run.print_plan(body, ["fox-1.jpeg"], None, "https://ark/api/v3/images/generations", captured.console)
    shown = json.loads(captured.out)
    assert shown["image"] == [
        {"file": str(path), "sha256": "cd" * 32, "bytes": 5},
        "https://x/a.png?b=[1]",
        {"file": "standard input", "sha256": "ef" * 32, "bytes": 3},
    ]
    assert captured.err.splitlines() == [
        "nothing was sent; it would go to https://ark/api/v3/images/generations, with 3 reference images",
        "would write: fox-1.jpeg",
        "cost: unknown, no price is known",
    ]
    lines = dry_run.plan_lines({}, [], Cost(0.12, "USD", "2026-11"), "u")
    assert lines[-1] == "cost: at most about $0.12 (price of 2026-11)"
    planned = dry_run.plan_object(body, ["fox-1.jpeg"], None, "u", provider="ark")
    assert list(planned) == [*JOB_KEYS, "endpoint"]
    assert (planned["status"], planned["images"][0]["path"]) == ("planned", "fox-1.jpeg")
    assert planned["request"] == shown


@pytest.fixture
def recorder() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A loopback server that keeps the headers and the body of every POST."""
    received: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/images?a=[1-2]&b=it's", received
        server.shutdown()
        thread.join()


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("base64")), reason="needs curl and base64")
@pytest.mark.parametrize("shell", [shell for shell in ("sh", "bash") if shutil.which(shell)])
def test_the_curl_command_sends_the_exact_body(
    shell: str, tmp_path: Path, recorder: tuple[str, list[tuple[dict[str, str], bytes]]]
) -> None:
    """In any POSIX shell, whatever the prompt and the files are called, and with the key from the environment."""
    url, received = recorder
    prompt = '@it\'s "100%" $HOME `id` $(id) \\n \\ !! \n\t 狐 \u202e ' + HOSTILE["colour"]
    names = ["plain.png", "-", 'it\'s a $HOME `id` "fox".png', "line\nbreak\x1b %s \\ last\n", "狐.png"]
    content = bytes(range(256)) * 3
    for name in names:
        (tmp_path / name).write_bytes(content)
    refs = [ImageRef("file", name, Path(name), "0", "image/png", size=768) for name in names]
    body = {"prompt": prompt, "image": [*refs, ImageRef("data", "-", mime="image/jpeg", content=b"\xff'")], "n": 1}
    command = dry_run.curl_command(url, body, "MY_KEY", "text/event-stream")
    assert not [char for char in command if is_hidden(char) and char != "\n"]
    environment = {"PATH": os.environ["PATH"], "MY_KEY": "sk-1 $x", "LC_ALL": "C", "HOME": str(tmp_path)}
    subprocess.run([shell, "-c", command], cwd=tmp_path, env=environment, check=True, timeout=30)
    ((headers, sent),) = received
    encoded = subprocess.run(["base64", "-w0"], input=content, capture_output=True, check=True).stdout.decode()
    expected = {"prompt": prompt, "image": [f"data:image/png;base64,{encoded}"] * 5 + ["data:image/jpeg;base64,/9gn"]}
    assert sent.decode() == render_json(expected | {"n": 1}).replace("/9gn", "/yc=")
    assert headers["Authorization"] == "Bearer sk-1 $x"
    assert headers["Accept"] == "text/event-stream"
    assert headers["Content-Type"] == "application/json"


def test_the_curl_command_of_a_plain_request() -> None:
    """Without files it is one pipe; a key variable that is no name is not put into a shell."""
    command = dry_run.curl_command("https://ark/v3", {"prompt": "a fox"}, "ARK_API_KEY")
    assert command == (
        """printf '%s' '{"prompt":"a fox"}' | curl -sS -g 'https://ark/v3' \\\n"""
        """  -H "Authorization: Bearer $ARK_API_KEY" \\\n  -H 'Content-Type: application/json' \\\n"""
        """  -H 'Accept: application/json' \\\n  --data-binary @-"""
    )
    assert "$(id)" not in dry_run.curl_command("https://ark/v3", {}, "X$(id)")
