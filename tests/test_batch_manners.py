"""How a batch behaves towards its user: what it asks, says and refuses, in front of any table and any terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command, Inside
from tests.test_batch import ENV, run, table, write
from tests.upstream import Upstream

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the terminals of these tests are POSIX")


def on_terminal(
    command: Command,
    *args: str,
    keys: str = "",
    after: str = "",
    columns: int = 80,
    env: dict[str, str] | None = None,
    table_in: Path | None = None,
) -> tuple[int, str]:
    """Exit code and all that is shown on a terminal of its own, where `keys` are typed once `after` stands on it."""
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def take_terminal() -> None:
        # Without a controlling terminal Ctrl-C is a sign like any other.
        os.setsid()
        fcntl.ioctl(follower, termios.TIOCSCTTY, 0)

    with contextlib.ExitStack() as stack:
        stdin: Any = stack.enter_context(table_in.open("rb")) if table_in else follower
        streams = {"stdin": stdin, "stdout": follower, "stderr": follower}
        process = command.popen(*args, env={"TERM": "xterm", **(env or {})}, preexec_fn=take_terminal, **streams)
        os.close(follower)
        shown, waited = "", time.monotonic() + 30
        while time.monotonic() < waited and (process.poll() is None or select.select([leader], [], [], 0)[0]):
            if not select.select([leader], [], [], 0.1)[0]:
                continue
            try:
                shown += os.read(leader, 65_536).decode(errors="replace")
            except OSError:
                break
            if keys and after in shown:
                os.write(leader, keys.encode())
                keys = ""
        os.close(leader)
        return process.wait(timeout=10), shown


# --- the question -----------------------------------------------------------------------------------------------------


def limited(seedream: Command, upstream: Upstream, above: str = "0.05") -> list[str]:
    """The command line of two rows, and a file with a bound that they exceed."""
    table(seedream, 2)
    (seedream.folder / "own.toml").write_text(f"[batch]\nconfirm_above = {above}\n")
    return ["batch", "shots.csv", "-p", "ark", "--base-url", upstream.url, "--config", "own.toml"]


@pytest.mark.parametrize(
    ("keys", "code"), [("y\r", 0), ("n\r", 130), ("\r", 130), ("\x03", 130), ("\x04", 130), ("what\ryes\r", 0)]
)
def test_a_dear_plan_asks_on_a_terminal(seedream: Command, keys: str, code: int) -> None:
    """Only a yes goes on; no, Enter, Ctrl-C and Ctrl-D send nothing, say so, and end the line of the question."""
    with Upstream() as upstream:
        done, shown = on_terminal(seedream, *limited(seedream, upstream), keys=keys, after="[y/N]: ", env=ENV)
        assert (done, len(upstream.posts)) == (code, 0 if code else 2), shown
        assert "up to 2 pictures, at most $0.07" in shown
        assert "Go on, for at most $0.07? [y/N]: " in shown
        assert "Traceback" not in shown
        if code:
            assert shown.endswith("\r\nstopped: nothing was sent\r\n")


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {"CI": "true"}])
def test_the_question_names_the_cost_on_any_terminal(seedream: Command, env: dict[str, str]) -> None:
    """With -q too, where the plan is not shown, and on a terminal that can only print."""
    with Upstream() as upstream:
        args = [*limited(seedream, upstream), "-q"]
        code, shown = on_terminal(seedream, *args, keys="n\r", after="[y/N]: ", env={**ENV, **env})
        assert (code, len(upstream.posts)) == (130, 0), shown
        assert shown.startswith("Go on, for at most $0.07? [y/N]: ")


def test_nobody_is_asked_who_said_yes_or_is_not_there(seedream: Command) -> None:
    """With --yes, below the bound, for what is done already, and without a terminal a batch goes on by itself."""
    with Upstream() as upstream:
        args = limited(seedream, upstream, above="0.5")
        assert on_terminal(seedream, *args, "--limit", "1", env=ENV)[0] == 0
        args = limited(seedream, upstream, above="0.01")
        assert on_terminal(seedream, *args, "--yes", env=ENV)[0] == 0
        assert on_terminal(seedream, *args, env=ENV)[0] == 0
        assert seedream(*args, "-o", "more", env=ENV).code == 0
        assert len(upstream.posts) == 4


def test_a_table_on_standard_input_leaves_nobody_to_ask(seedream: Command) -> None:
    """The answer would be read from the table: on a terminal --yes is asked for, and nothing is sent."""
    with Upstream() as upstream:
        args = limited(seedream, upstream)
        args[1] = "-"
        path = seedream.folder / "shots.csv"
        code, shown = on_terminal(seedream, *args, env=ENV, table_in=path)
        assert (code, len(upstream.posts)) == (2, 0), shown
        assert "add --yes" in shown
        assert on_terminal(seedream, *args, "--yes", env=ENV, table_in=path)[0] == 0
        assert len(upstream.posts) == 2


# --- what is refused before anything is paid --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-cost", "abc"], "--max-cost: 'abc' is no number"),
        (["--max-cost", "-1"], "--max-cost: -1 is out of range"),
        (["--limit", "0"], "--limit: 0 is out of range"),
        (["--shard", "auto/x"], "'auto/x' is no part"),
    ],
)
def test_an_option_that_means_nothing_is_refused(seedream: Command, options: list[str], message: str) -> None:
    """A cap that cannot be read is no cap: nothing is sent."""
    table(seedream, 2)
    with Upstream() as upstream:
        done = run(seedream, upstream, *options)
        assert (done.code, len(upstream.posts)) == (2, 0), done.err
        assert message in done.err


def test_results_that_cannot_be_written_are_found_out_first(seedream: Command) -> None:
    """A place that cannot be is refused with 74 before anything is sent; a folder that is not there is made."""
    table(seedream, 2)
    write(seedream, "a file", "taken")
    with Upstream() as upstream:
        done = run(seedream, upstream, "--results", "taken/results.csv")
        assert (done.code, len(upstream.posts)) == (74, 0), done.err
        assert "--results" in done.err
        assert run(seedream, upstream, "--results", "new/deep/my.csv").code == 0
        assert (seedream.folder / "new" / "deep" / "my.csv").is_file()


# --- what is said of a table ------------------------------------------------------------------------------------------

HEADER = "Nr;Text;Größe;n\r\n1;x;9K;2\r\n2;;2K;zwei\r\n"
MAPS = ("--map", "Nr=id", "--map", "Text=prompt", "--map", "Größe=size")


@pytest.mark.parametrize(("name", "place"), [("shots.csv", "shots.csv"), ("shots.txt", "shots.txt")])
def test_columns_are_named_as_in_the_table(inside: Inside, name: str, place: str) -> None:
    """Not by the option that they set, whatever the table's suffix is."""
    write(inside, HEADER, name)
    done = inside("batch", name, *MAPS, "-p", "sandbox", "--dry-run")
    assert done.code == 2
    assert re.findall(r"^error: (.*?: .{7})", done.err, re.MULTILINE) == [
        f"{place}:2, column Größe: Seedrea",
        f"{place}:3, column Text: there i",
        f"{place}:3, column n: 'zwei' ",
    ]


def test_columns_of_standard_input_are_named_too(seedream: Command) -> None:
    """Where there is no suffix to tell by."""
    done = seedream("batch", "-", *MAPS, "-p", "sandbox", "--dry-run", stdin=HEADER.encode())
    assert done.code == 2
    assert "error: standard input:2, column Größe: " in done.err
    keys = '{"prompt":"x","size":"9K"}\n'
    done = seedream("batch", "-", "-p", "sandbox", "--dry-run", stdin=keys.encode())
    assert "error: standard input:1, key size: " in done.err


def test_idle_columns_are_told(inside: Inside) -> None:
    """A column that sets nothing may be an option, misspelt; one that a template uses is not told, nor a mapped one."""
    write(inside, "id,prompt,sise,mood,note,own\na,x,4K,m,n,o\n")
    args = ("batch", "shots.csv", "-p", "sandbox", "--dry-run", "--name", "{id}-{mood}", "--map", "own=")
    done = inside(*args)
    assert done.code == 0
    assert "note: columns that set nothing and stand in no template: sise, note\n" in done.err
    assert "sise" not in inside(*args, "-q").err
    fields = inside(*args[:-4], "--name", "{nope}").err
    assert fields.count("{id}") == 1, "each field once"
