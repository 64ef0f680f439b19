"""The live display, as it stands on the screen of a terminal."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seedream_cli.output.console import Console
from seedream_cli.output.live_progress import LiveSink
from seedream_cli.output.plain_progress import batch_name
from seedream_cli.output.progress import PrintingSink, make_sink
from seedream_cli.output.tally import Tally
from seedream_cli.results import (
    Cost,
    Downloading,
    Finished,
    Notice,
    Planned,
    Retrying,
    Saved,
    Stage,
)
from tests.output.test_summary import (
    EVERY_HOSTILE,
    HOSTILE,
    Captured,
    assert_harmless,
    course,
    hostile_events,
    job,
    make_image,
    refused,
)
from tests.support.command import Command
from tests.support.provider_server import Upstream
from tests.support.terminal import Terminal, without_controls

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the terminals of these tests are POSIX")

FOX = "a red fox in the snow"
WIDE = "一只在雪中的红狐狸，水彩画，冬天的森林"
EMOJI = "👩‍🚀 on the moon ❤️ 🦊🦊🦊"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Terminal]]:
    monkeypatch.setenv("TERM", "xterm-256color")
    made: list[Terminal] = []

    def make(columns: int, rows: int = 24, **facts: object) -> Terminal:
        made.append(Terminal(columns, rows, **facts))
        return made[-1]

    yield make
    for one in made:
        one.close()


def start(sink: LiveSink, *titles: str, requests: int = 0) -> None:
    """A run with a request at the provider for each title."""
    count = requests or len(titles)
    sink.emit(Planned(count, count, "ark", "m"))
    for index, title in enumerate(titles):
        sink.emit(Stage(index, "connecting", "", title, "m"))
        sink.emit(Stage(index, "sent", "", title, "m"))


def bar_of(line: str) -> str:
    return re.sub(r"[^━╸╺]", "", line)


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_live_display_tells_of_run_requests_and_downloads(columns: int, terminal: Callable[..., Terminal]) -> None:
    """A bar over all the width with the percent, the facts, a line a request with its elapsed and usual time, and a bar
    a download with size and speed; nothing is wider than the screen, whatever the prompts are written in.
    """
    screen, now = terminal(columns), [0.0]
    tally = Tally(lambda: now[0], most=Cost(0.4, "USD", "2026-11"), usual={"m": 30.0})
    sink = LiveSink(screen.console, clock=lambda: now[0], tally=tally)
    start(sink, FOX, WIDE, EMOJI, "four", "five", requests=10)
    screen.wait("1  a red", "2  一只", "3  👩", "drawing 0 s of ~30 s", "0 of 10", "5 in flight", "at most $0.40")
    now[0] = 12.0
    screen.wait("drawing 12 s of ~30 s")
    sink.emit(Stage(0, "done"))
    sink.emit(Downloading(0, 0, 0, 1_000_000))
    sink.emit(Downloading(0, 1, 2_000, None))
    now[0] = 14.0
    sink.emit(Downloading(0, 0, 500_000, 1_000_000))
    screen.wait("50% of 1.0 MB, 0.2 MB/s", "image 2 2.0 kB", "downloading 2 s", "4 in flight")
    sink.emit(Retrying(1, "the request", 3.0, "too many 请求 " * 20, 1))
    screen.wait("again in 3 s: too", "3 in flight")
    sink.emit(Finished(job(3, cost=Cost(0.04, "USD", "2026-11"))))
    sink.emit(Finished(job(4, status="failed", images=(), error=refused(), attempts=1)))
    screen.wait(" 20%", "2 of 10", "1 failed", "56 s left", "$0.08 of at most $0.40")
    whole = screen.lines[0]
    assert whole.endswith(" 20%")
    assert len(whole) == columns - 1
    sink.close()
    sink.close()
    screen.wait_until(lambda: not screen.lines)
    assert screen.is_tidy
    # The last column is free in every frame: some terminals wrap there.
    drawn = [line for frame in screen.frames for line in frame.splitlines()]
    assert not [line for line in drawn if len(line) == columns and line[-1] != " "]


def test_live_display_of_one_request_is_a_line(terminal: Callable[..., Terminal]) -> None:
    """Its prompt, what it is doing and the most that it costs; with a bar where it is known how long it takes."""
    screen, now = terminal(80), [0.0]
    sink = LiveSink(screen.console, clock=lambda: now[0], tally=Tally(most=Cost(0.04, "USD", "2026-11")))
    start(sink, FOX)
    screen.wait(FOX, "drawing 0 s", "at most $0.04")
    assert not bar_of(screen.shown)
    sink.close()
    sink = LiveSink(screen.console, clock=lambda: now[0], tally=Tally(usual={"m": 30.0}))
    start(sink, FOX)
    now[0] = 15.0
    screen.wait("  48%", "drawing 15 s of ~30 s")
    sink.close()


def test_live_display_keeps_lines_whole_above_itself(terminal: Callable[..., Terminal]) -> None:
    """Messages are folded between words; a path stays whole, whatever its length; the order is that of printing."""
    screen = terminal(40)
    sink = LiveSink(screen.console)
    start(sink, FOX, WIDE)
    screen.wait("drawing")
    sink.emit(Notice("provider ark, since ARK_API_KEY is set and 没有 else is there at all"))
    screen.wait("is there at all", "drawing")
    path = "out/" + "狐" * 30 + "-" + "x" * 90
    screen.console.out(path)
    screen.console.err("warning: the --seed is ignored by this model, which draws as it likes")
    screen.wait("as it likes", "drawing")
    lines = screen.lines
    assert lines[:2] == ["note: provider ark, since ARK_API_KEY is", "  set and 没有 else is there at all"]
    assert "".join(lines[2 : lines.index("warning: the --seed is ignored by this")]) == path
    sink.close()
    screen.console.err("after")
    screen.wait("after")
    assert screen.lines[-2:] == ["  model, which draws as it likes", "after"]
    assert screen.is_tidy


@pytest.mark.parametrize("name", [*HOSTILE, "all"])
def test_live_display_shows_hostile_text_as_text(name: str, terminal: Callable[..., Terminal]) -> None:
    """Neither rich's markup nor the terminal's sequences act: what is drawn is text in its columns."""
    text = HOSTILE.get(name, EVERY_HOSTILE)
    screen = terminal(40, 16)
    sink = LiveSink(screen.console, verbosity=1)
    for event in (*hostile_events(text)[:-2], Stage(2, "sent", "", text, text)):
        sink.emit(event)
    screen.wait("image 2 0.0 kB")
    sink.close()
    assert_harmless(without_controls(screen.text))


def test_live_display_stays_within_the_rows(terminal: Callable[..., Terminal]) -> None:
    """More requests than rows: the last line says how many are not shown, and clearing still works."""
    screen = terminal(40, 8)
    sink = LiveSink(screen.console, name=batch_name)
    sink.emit(Planned(30, 30, "ark", "m"))
    for row in range(1, 31):
        sink.emit(Stage(row * 1000, "sent"))
    screen.wait("row 4", "and 26 more", "30 in flight")
    sink.emit(Downloading(1000, 0, 10, 100))
    screen.wait("10% of 0.1 kB", "and 27 more")
    sink.close()
    screen.console.err("after")
    screen.wait("after")
    assert screen.lines == ["after"]


@pytest.mark.parametrize("folds", [True, False])
def test_live_display_follows_the_size_of_its_terminal(folds: bool, terminal: Callable[..., Terminal]) -> None:
    """Narrower and wider while requests are out: no remains of older frames, and what stands above stays."""
    screen = terminal(100, 20, folds=folds)
    sink = LiveSink(screen.console)
    start(sink, FOX * 4, WIDE * 3, EMOJI, requests=4)
    screen.wait("3  👩")
    screen.console.err("above")
    for columns in (40, 120, 60, 30):
        screen.wait("above", "3  👩")
        screen.resize(columns, folds=folds)
        screen.wait_until(lambda wide=columns: any(len(bar_of(line)) == wide - 8 for line in screen.lines))
        assert screen.lines[0] == "above"
        assert [line[:4].strip()[:1] for line in screen.lines[-3:]] == ["1", "2", "3"]
        assert sum(" of 4" in line for line in screen.lines) == 1
    sink.close()
    screen.wait_until(lambda: screen.lines == ["above"])


def test_colour_is_never_the_only_sign(terminal: Callable[..., Terminal]) -> None:
    """The same words stand there without any colour."""
    shown = []
    for color in (True, False):
        screen, now = terminal(80, color=color), [0.0]
        sink = LiveSink(screen.console, clock=lambda now=now: now[0], tally=Tally(lambda now=now: now[0]))
        start(sink, FOX, WIDE, EMOJI, "four", "five")
        now[0] = 30.0
        sink.emit(Finished(job(2)))
        sink.emit(Finished(job(3, status="unknown", images=(), error=refused())))
        sink.emit(Finished(job(4, status="failed", images=(), error=refused())))
        screen.wait("3 of 5", "1 failed", "1 unknown", "2 in flight")
        shown.append([line[1:].replace("━", "").rstrip() for line in screen.lines[1:]])
        sink.close()
        assert bool(re.search(r"\x1b\[[\d;]*3[1-6]m", screen.text)) == color
    assert shown[0] == shown[1]


# --- what the terminal's tab shows ------------------------------------------------------------------------------------


def test_taskbar_shows_the_run_and_is_left_clean(terminal: Callable[..., Terminal]) -> None:
    """OSC 9;4 where the terminal knows it: unknown, so many percent, red once something failed, and none at the end."""
    screen = terminal(80, taskbar=True)
    sink = LiveSink(screen.console)
    start(sink, FOX, WIDE, EMOJI, "four")
    screen.wait("drawing")
    sink.emit(Finished(job(0)))
    screen.wait(" 25%")
    screen.console.err("a line")
    sink.emit(Finished(job(1, status="failed", images=(), error=refused())))
    screen.wait(" 50%")
    sink.close()
    screen.wait_until(lambda: "9;4;0;0" in screen.text)
    assert re.findall(r"\x1b\]9;4;([\d;]+)\x1b\\", screen.text) == ["3;0", "1;25", "2;50", "0;0"]
    assert screen.lines == ["a line"]


TERMINALS = {
    "WT_SESSION=1": True,
    "ConEmuANSI=ON": True,
    "TERM_PROGRAM=ghostty": True,
    "TERM_PROGRAM=WezTerm": True,
    "TERM_PROGRAM=iTerm.app TERM_PROGRAM_VERSION=3.6.10": True,
    "TERM_PROGRAM=iTerm.app TERM_PROGRAM_VERSION=3.5.14": False,
    "TERM_PROGRAM=iTerm.app": False,
    "TERM_PROGRAM=Apple_Terminal": False,
    "": False,
}


@pytest.mark.parametrize("words", TERMINALS)
def test_taskbar_is_for_terminals_that_know_it(words: str) -> None:
    """An iTerm2 of before 3.6.6 would show each step as a notification."""
    from seedream_cli.config.environment import Environment

    assert Environment(dict(word.split("=") for word in words.split())).has_taskbar == TERMINALS[words]


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_leaves_the_terminal_tidy(presses: int, seedream: Command, terminal: Callable[..., Terminal]) -> None:
    """Pressed once or twice: no display, no taskbar, a cursor, and above all what was to be said."""
    screen = terminal(80)
    args = ("generate", "a fox [[slow:2]]", "-n", "2", "-p", "sandbox")
    env = {"TERM": "xterm", "WT_SESSION": "1"}
    with seedream.popen(*args, env=env, **screen.streams()) as process:
        screen.wait("drawing")
        screen.type("\x03")
        screen.wait("stopping (SIGINT)")
        if presses == 2:
            screen.type("\x03")
        assert process.wait(timeout=30) == 130
    screen.wait_until(lambda: screen.text.rstrip().endswith("stopped by SIGINT"))
    assert re.findall(r"\x1b\]9;4;([\d;]+)\x1b\\", screen.text)[-1] == "0;0"
    assert screen.is_tidy
    assert not bar_of(screen.shown)
    assert len(list(seedream.folder.glob("*.jpg"))) == (2 if presses == 1 else 0)


def test_ctrl_z_gives_the_terminal_to_the_shell(seedream: Command, terminal: Callable[..., Terminal]) -> None:
    """The display is gone before the shell speaks, comes back below with `fg`, and draws nothing in the background."""
    if not shutil.which("bash"):
        pytest.skip("there is no bash")
    screen = terminal(80)
    environment = {**seedream.env, "TERM": "xterm", "PS1": "$ "}
    with subprocess.Popen(["bash", "--norc", "-i"], env=environment, cwd=seedream.folder, **screen.streams()) as shell:
        screen.wait("$")
        screen.type(f"clear; {sys.executable} -m seedream_cli generate 'a fox [[slow:4]]' -n 2 -p sandbox\r")
        screen.wait("drawing 1 s")
        screen.type("\x1a")
        screen.wait("Stopped")
        assert "drawing" not in screen.shown
        assert screen.is_tidy
        screen.type("bg\recho once; echo more\r")
        screen.wait("\nonce\nmore")
        time.sleep(0.5)
        assert "drawing" not in screen.shown
        screen.type("fg\r")
        screen.wait("drawing")
        screen.wait("a-fox-slow-4-1.jpg", "a-fox-slow-4-2.jpg")
        screen.type("exit\r")
        shell.wait(timeout=30)
    assert not bar_of(screen.shown)
    assert "\nonce\nmore" in screen.shown


def test_a_terminal_that_goes_away_ends_the_display_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """When drawing fails (EPIPE, EIO), the display is switched off; events go on being taken."""
    monkeypatch.setenv("TERM", "xterm")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as broken:
        console = Console(stdout=None, stderr=broken, stderr_is_terminal=True)
        sink = make_sink("bar", console)
        for event in course():
            sink.emit(event)
        deadline = time.monotonic() + 20
        while not console.stderr_closed and time.monotonic() < deadline:
            time.sleep(0.01)
        assert console.stderr_closed
        while any(thread.name == "display" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        sink.emit(Notice("still here"))
        sink.close()


def test_nothing_heavy_is_imported_before_a_request_is_sent() -> None:
    """Reporting costs no start-up time: rich waits for the provider, and a run over before that never loads it."""
    code = """
import io, sys
from seedream_cli.output import json_output
from seedream_cli.output import progress
from seedream_cli.output import summary
from seedream_cli.output import dry_run
from seedream_cli.output.console import Console
from seedream_cli.results import JobResult, Planned, Stage
console = Console(stdout=io.StringIO(), stderr=io.StringIO(), stderr_is_terminal=True)
sink = progress.make_sink("auto", console)
sink.emit(Planned(1, 1, "ark", "m")); sink.emit(Stage(0, "connecting")); sink.close()
job = json_output.job_object(JobResult(0, "", "planned", "", "", {"prompt": "x"}), "generate")
json_output.print_json(job, console)
print([name for name in ("rich", "pydantic", "httpx", "typer", "asyncio", "sqlite3") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"
    assert done.stderr == b""


# --- images as they come ----------------------------------------------------------------------------------------------


def test_each_image_is_printed_when_it_is_there(seedream: Command) -> None:
    """`-n` prints a path, flushed, while other requests are still at the provider, and no path twice."""
    gate = threading.Event()

    def script(request: object, number: int) -> None:
        if number > 1:
            gate.wait(30)

    with Upstream(script=script) as upstream:
        args = ("generate", "a fox", "-n", "3", "-p", "openai", "-m", "4.5", "--base-url", upstream.url)
        with seedream.popen(*args, env={"OPENAI_API_KEY": "sk-1"}) as process:
            assert process.stdout is not None
            first = process.stdout.readline().decode().strip()
            assert (seedream.folder / first).is_file()
            assert process.poll() is None
            gate.set()
            rest, _ = process.communicate(timeout=30)
    printed = [first, *rest.decode().splitlines()]
    assert sorted(printed) == sorted(path.name for path in seedream.folder.glob("*.jpg"))
    assert len(printed) == 3


def test_images_that_were_not_printed_come_at_the_end() -> None:
    """What no event told of, such as the files of an earlier request, is printed with the results; nothing twice."""
    from collections import Counter

    from seedream_cli.output.summary import print_results
    from tests.output.test_summary import run

    captured, printed = Captured(), Counter[str]()
    sink = PrintingSink(make_sink("none", captured.console), captured.console, "paths", printed, {0, 1})
    sink.emit(Saved(0, make_image()))
    sink.emit(Saved(1, make_image(path=None, error=refused())))
    assert captured.out == "out/fox-1.jpeg\n"
    print_results(
        run(job(), job(1, images=(make_image(path=Path("there.jpg")),))), captured.console, "paths", printed=printed
    )
    assert captured.out == "out/fox-1.jpeg\nthere.jpg\n"
