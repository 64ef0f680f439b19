"""How a batch behaves towards its user: what it asks, says and refuses, in front of any table and any terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seedream_cli.batch.tracker import Tracker
from seedream_cli.errors import FileError
from seedream_cli.output.plain_progress import QuietSink, batch_name
from seedream_cli.output.progress import make_batch_sink
from seedream_cli.output.tally import Tally
from seedream_cli.results import Draining, Finished, JobResult, Notice, Planned, SavedImage
from tests.output.test_summary import Captured
from tests.support.batches import ENV, by_prompt, images, results, run, sent, table, write
from tests.support.command import Command, Inside
from tests.support.provider_server import Upstream, refusal
from tests.test_readme import TEXT as README
from tests.test_readme import parameters

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
        console = {"stdin": stdin, "stdout": follower, "stderr": follower}
        process = command.popen(*args, env={"TERM": "xterm", **(env or {})}, preexec_fn=take_terminal, **console)
        os.close(follower)
        shown, waited, typed = "", time.monotonic() + 30, ""
        while time.monotonic() < waited and (process.poll() is None or select.select([leader], [], [], 0)[0]):
            if not select.select([leader], [], [], 1)[0]:
                # A Ctrl-C between the question and the read is seen by Python only when the read returns.
                os.write(leader, b"\x03" if typed == "\x03" else b"")
                continue
            try:
                shown += os.read(leader, 65_536).decode(errors="replace")
            except OSError:
                break
            if keys and after in shown:
                os.write(leader, keys.encode())
                typed, keys = keys, ""
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
        assert "up to 2 images, at most $0.07" in shown
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


def test_ctrl_c_while_the_table_is_read_says_what_it_means(seedream: Command) -> None:
    """Nothing was sent, and nothing is there."""
    process = seedream.popen("batch", "-", "-p", "sandbox", stdin=subprocess.PIPE)
    assert process.stdin is not None
    # More than a pipe holds: once it is written, somebody is reading.
    process.stdin.write(b"prompt\n" + b"fox\n" * 100_000)
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, b"stopped: nothing was sent\n")
    assert not list(seedream.folder.iterdir())


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


@pytest.mark.parametrize(("name", "place"), [("shots.csv", "shots.csv"), ("shots.dat", "shots.dat")])
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


@pytest.mark.parametrize("option", [(), ("--provider", "arkk")])
def test_an_unknown_provider_is_a_mistake_of_its_row(inside: Inside, option: tuple[str, ...]) -> None:
    """With its line and column, beside every other problem; or with the option that names it."""
    write(inside, "prompt,provider,n\nx,arkk,1\ny,ark,none\n" if not option else "prompt\nx\n")
    done = inside("batch", "shots.csv", *option, "--dry-run")
    assert done.code == 2
    assert "'arkk' is no known provider" in done.err
    assert ("error: --provider: 'arkk'" if option else "error: shots.csv:2, column provider: 'arkk'") in done.err
    assert option or "error: shots.csv:3, column n: 'none'" in done.err


def test_requests_are_named_by_their_rows(seedream: Command) -> None:
    """With -v too, where a step of a request is told by the row and not by a number that nobody has given it."""
    write(seedream, "prompt,n\na,2\nb,1\n")
    done = seedream("batch", "shots.csv", "-p", "sandbox", "-vv")
    assert done.code == 0
    assert set(re.findall(r"^stage: (.*): sent", done.err, re.MULTILINE)) == {"row 1", "row 1, request 2", "row 2"}
    assert batch_name(-1) == "a row that is not in the table any more"


def test_fewer_images_than_asked_for_are_told(seedream: Command) -> None:
    """A model may draw fewer than a set of N: no failure, but not what was asked for."""
    rows = [f"fox {row} [[fewer:1]],{3 if row < 13 else 1}" for row in range(1, 14)]
    write(seedream, "\n".join(["prompt,sequence", *rows, ""]))
    done = seedream("batch", "shots.csv", "-p", "sandbox")
    assert done.code == 0, done.err
    found = re.findall(r"^note: (row .*)", done.err, re.MULTILINE)
    assert len(found) == 10
    assert "row 1 (shots.csv:2): asked for up to 3, got 1" in found
    assert "note: and 2 more rows with fewer images than asked for" in done.err


# --- shards -----------------------------------------------------------------------------------------------------------


def draw_shards(seedream: Command, upstream: Upstream, count: int, *more: str, skip: int = 0) -> list[str]:
    """Run the parts of shots.csv one after another; the names of their folders."""
    for part in range(1, count + 1):
        if part != skip:
            assert run(seedream, upstream, "--shard", f"{part}/{count}", *more).code in {0, 4, 9}
    return [f"shots-{part}-of-{count}" for part in range(1, count + 1)]


def test_shards_merge_without_the_table(seedream: Command) -> None:
    """`--merge DIR…` needs neither table nor options: columns, order and delimiter are those of the shards' results."""
    rows = "".join(f'r{row};fox {row};"a;{row}\r\nb";=1+1\r\n' for row in range(1, 25))
    (seedream.folder / "shots.csv").write_text("\ufeffid;prompt;note;=x\r\n" + rows, newline="")
    with Upstream() as upstream:
        folders = draw_shards(seedream, upstream, 3)
        done = seedream("batch", "--merge", *folders, "--json")
        assert done.code == 0, done.err
        told = done.json
        assert [told[key] for key in ("type", "rows", "succeeded", "images", "exit_code")] == ["summary", 24, 24, 24, 0]
        assert told["cost"]["amount"] == pytest.approx(24 * 0.035)
        assert "24 rows: 24 done · about $0.84" in done.err
        joined = (seedream.folder / "shots" / "results.csv").read_bytes()
        again = seedream("batch", "--merge", *reversed(folders))
        assert (again.code, (seedream.folder / "shots" / "results.csv").read_bytes()) == (0, joined)
        # The very file that the whole batch would have written: so it goes on, and has nothing left to do.
        assert run(seedream, upstream).code == 0
        assert (seedream.folder / "shots" / "results.csv").read_bytes() == joined
        assert len(upstream.posts) == 24
    assert len(images(seedream)) == 24
    assert joined.startswith("\ufeffid;prompt;note;'=x;status;".encode())


def test_a_missing_shard_is_told_and_comes_later(seedream: Command) -> None:
    """9 until all parts were brought together, in any order; a part on its own adds to what is there."""
    table(seedream, 12)
    with Upstream() as upstream:
        one, two, three = draw_shards(seedream, upstream, 3)
    short = seedream("batch", "--merge", one, three)
    assert short.code == 9
    assert f"note: parts that were not named: {two}" in short.err
    done = seedream("batch", "--merge", two)
    assert (done.code, len(results(seedream))) == (0, 12), done.err
    assert [row["prompt"] for row in results(seedream)] == [f"fox number {row}" for row in range(1, 13)]
    assert seedream("batch", "--merge", one, "shots.csv").code == 2
    assert seedream("batch", "--merge", one, "-o", "alone", "--dry-run").code == 2
    assert not (seedream.folder / "alone").exists()


def test_a_shard_that_was_mended_is_merged_anew(seedream: Command) -> None:
    """What failed at the first merge and was drawn since is done at the second, and is not paid for again."""
    table(seedream, 8)
    no = refusal(400, "InvalidParameter")
    with Upstream(script=by_prompt(**{"number 3": no, "number 7": no})) as upstream:
        folders = draw_shards(seedream, upstream, 2)
        first = seedream("batch", "--merge", *folders)
        assert first.code == 9
        assert "8 rows: 6 done, 2 failed" in first.err
        upstream._script = None
        draw_shards(seedream, upstream, 2)
        assert seedream("batch", "--merge", *folders).code == 0
        assert [row["status"] for row in results(seedream)] == ["succeeded"] * 8
        assert run(seedream, upstream).code == 0
        assert max(count for prompt, count in sent(upstream).items()) == 2
        assert len(upstream.posts) == 10


def test_images_of_one_name_are_all_kept(seedream: Command) -> None:
    """Two shards called two images the same: one gets a number; a second merge adds none."""
    write(seedream, "prompt,k\n" + "".join(f"same fox{'!' * row},{row}\n" for row in range(8)))
    with Upstream() as upstream:
        folders = draw_shards(seedream, upstream, 2, "--name", "{slug}")
        assert seedream("batch", "--merge", *folders).code == 0
        assert seedream("batch", "--merge", *folders).code == 0
        paths = [row["path"] for row in results(seedream)]
        assert len(set(paths)) == len(images(seedream)) == 8
        shards = {row["k"]: row["path"] for folder in folders for row in results(seedream, folder)}
        for row in results(seedream):
            assert (seedream.folder / row["path"]).samefile(seedream.folder / shards[row["k"]])


def test_folders_that_do_not_belong_together_stay_apart(seedream: Command) -> None:
    """Other columns, or another row of the same number: nothing is written; nor for what is no batch's folder."""
    with Upstream() as upstream:
        for name, text in (("a", "prompt,k\nx,1\n"), ("b", "prompt\nx\n"), ("c", "prompt,k\ny,1\n")):
            write(seedream, text, f"{name}.csv")
            assert run(seedream, upstream, name=f"{name}.csv").code == 0
    for other, message in (
        ("b", "different columns"),
        ("c", "row 1 is not the same"),
        ("none", "no folder of a batch"),
    ):
        done = seedream("batch", "--merge", "a", other, "-o", "all")
        assert (done.code, (seedream.folder / "all").exists()) == (2, False), done.err
        assert message in done.err
    assert "with -o" in seedream("batch", "--merge", "a").err


def test_results_that_a_killed_shard_did_not_write_are_told(seedream: Command) -> None:
    """Its rows are there with what the ledger knows of them; the table fills in the rest."""
    write(seedream, "id,prompt,note\n" + "".join(f"r{row},fox {row},n{row}\n" for row in range(1, 9)))
    with Upstream() as upstream:
        folders = draw_shards(seedream, upstream, 2)
        (seedream.folder / folders[0] / "results.csv").unlink()
        done = seedream("batch", "--merge", *folders)
        assert done.code == 0, done.err
        assert f"{folders[0]} has no results of its last run" in done.err
        assert [(row["id"], row["prompt"]) for row in results(seedream)] == [(f"r{n}", f"fox {n}") for n in range(1, 9)]
        assert {row["note"] for row in results(seedream)} > {""}
        whole = seedream("batch", "shots.csv", "--merge", *folders, "-p", "ark", "--base-url", upstream.url)
        assert whole.code == 0, whole.err
        assert [row["note"] for row in results(seedream)] == [f"n{row}" for row in range(1, 9)]


def test_a_merge_of_killed_shards_is_put_right_by_a_later_one(seedream: Command) -> None:
    """Where no shard has results yet, those of the whole know two columns, which bind nobody."""
    write(seedream, "id,prompt,note\n" + "".join(f"r{row},fox {row},n{row}\n" for row in range(1, 5)))
    with Upstream() as upstream:
        folders = draw_shards(seedream, upstream, 2)
        for folder in folders:
            (seedream.folder / folder / "results.csv").unlink()
        assert seedream("batch", "--merge", *folders).code == 0
        assert [row["prompt"] for row in results(seedream)] == [f"fox {row}" for row in range(1, 5)]
        draw_shards(seedream, upstream, 2)
        assert seedream("batch", "--merge", folders[0]).code == 0
        assert seedream("batch", "--merge", *folders).code == 0
        assert [row["note"] for row in results(seedream)] == [f"n{row}" for row in range(1, 5)]


def test_shards_share_the_pace(seedream: Command) -> None:
    """What the provider or the settings allow is divided by the number of parts; what is typed is this part's alone."""
    write(seedream, "prompt\n" + "".join(f"fox {row}\n" for row in range(200)))

    def seconds(*more: str) -> float:
        found: float = seedream("batch", "shots.csv", "-p", "ark", "--dry-run", "--json", *more).json["seconds"]
        return found

    (seedream.folder / "own.toml").write_text("[providers.ark]\nipm = 40\nrpm = 1000\n")
    settings = ("--config", "own.toml", "--concurrency", "1000")
    rows = seedream("batch", "shots.csv", "-p", "ark", "--dry-run", "--json", "--shard", "1/4").json["rows"]
    assert seconds(*settings) == 300
    assert seconds(*settings, "--shard", "1/4") == rows * 60 / 10
    assert seconds(*settings, "--shard", "1/4", "--ipm", "60") == rows
    assert seconds(*settings, "--shard", "1/4", "--ipm", "60", "--rpm", "6") == rows * 10
    (seedream.folder / "own.toml").write_text("[providers.ark]\nipm = 2\n")
    assert seconds(*settings, "--shard", "1/4") == rows * 60, "no part stands still"


# --- what is said of a run --------------------------------------------------------------------------------------------


def test_why_rows_would_run_is_json_too(seedream: Command) -> None:
    """With --json every line is an object: a row each, and the plan last."""
    write(seedream, "id,prompt\na,one\nb,two\n")
    assert seedream("batch", "shots.csv", "-p", "sandbox").code == 0
    write(seedream, "id,prompt\nb,two!\na,one\nc,three\n")
    done = seedream("batch", "shots.csv", "-p", "sandbox", "--explain-stale", "--json")
    *stale, plan = map(json.loads, done.out.splitlines())
    assert [(one["type"], one["row"], one["line"], one["row_id"], one["why"]) for one in stale] == [
        ("stale", 1, 2, "b", "changed: prompt"),
        ("stale", 3, 4, "c", "new"),
    ]
    assert (plan["type"], plan["running"]) == ("plan", 2)


def test_notes_do_not_grow_with_the_table() -> None:
    """A note in every row is told ten times, and counted; everything else is told."""
    captured = Captured()
    sink = make_batch_sink("plain", captured.console)
    sink.emit(Planned(30, 30, "ark", "m"))
    for row in range(30):
        sink.emit(Notice(f"note of row {row}"))
    sink.emit(Draining("SIGINT", 2))
    sink.close()
    sink.close()
    lines = captured.err.splitlines()
    assert [line for line in lines if "note of row" in line] == [f"note: note of row {row}" for row in range(10)]
    assert lines[-1] == "note: and 20 more notes like these"
    assert any(line.startswith("stopping (SIGINT)") for line in lines)


def test_a_run_that_is_being_stopped_has_no_time_left() -> None:
    """What is not sent any more is not waited for."""
    clock = [0.0]
    tally = Tally(lambda: clock[0])
    tally.take(Planned(100, 100, "ark", "m"))
    clock[0] = 60.0
    tally.take(Finished(JobResult(1000, "i", "succeeded", "ark", "m", {})))
    assert "left" in tally.line(60.0)
    tally.take(Draining("SIGINT", 1))
    assert tally.line(60.0) == "1 of 100 · stopping"


def test_what_a_full_disk_kept_away_comes_with_the_same_command() -> None:
    """`recover` looks into the user's ledger, and a batch has its own."""
    hint = "the image is paid for: set that right, then run `seedream recover`"
    lost = SavedImage(0, None, error=FileError("no space left", billed="yes", hint=hint))
    told: list[JobResult] = []
    tracker = Tracker(QuietSink(), lambda row, results: told.extend(results))
    row: Any = SimpleNamespace(number=1, origin="shots.csv:2")
    tracker.expect(row, 1)
    tracker.emit(Finished(JobResult(1000, "i", "failed", "ark", "m", {}, images=(lost,), attempts=1)))
    [image] = told[0].images
    assert image.error is not None
    assert "recover" not in image.error.hint
    assert "the same command" in image.error.hint


def test_what_no_budget_holds_is_told(seedream: Command) -> None:
    """A model without a known price under --max-cost is refused once for all its rows; without a cap it is told."""
    table(seedream, 3)
    args = ("batch", "shots.csv", "-p", "ark", "-m", "own-model", "--dry-run")
    held = seedream(*args, "--max-cost", "1")
    assert held.code == 2
    assert held.err.count("so --max-cost cannot hold it") == 1
    assert "cost unknown, 3 requests of unknown price" in seedream(*args).err


# --- the workflow of the README ---------------------------------------------------------------------------------------


def test_the_workflow_of_the_readme_is_sound() -> None:
    """Well formed, each action pinned, each command and option real; parts and folders agree; hidden files go along."""
    text = re.search(r"^```yaml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert text
    workflow = text[1]
    for line in workflow.splitlines():
        assert re.match(r"( {2})*(- )?[\w{]", line), f"indented by two: {line}"
        # A flow mapping stands on one line: its braces and quotes are closed there.
        bare = re.sub(r'"[^"]*"|\$\{\{[^}]*\}\}', "x", line)
        assert '"' not in bare, line
        assert [bare.count(one) for one in "{["] == [bare.count(one) for one in "}]"], line
        assert re.fullmatch(r"\s*(- )?(\w[\w-]*:( .+)?|\{ .+ \})", line), line
    assert all(re.fullmatch(r"actions/[\w/-]+@v\d+", action) for action in re.findall(r"uses: ([^\s,]+)", workflow))
    commands = re.findall(r"- run: .*&& exec (seedream .+)$", workflow, re.MULTILINE)
    assert len(commands) == 2, "exec, so that a signal reaches the run itself"
    known = parameters()["batch"]
    for command in commands:
        words = shlex.split(re.sub(r"\$\{\{[^}]*\}\}", "1", command))
        assert words[:2] == ["seedream", "batch"]
        assert {word for word in words if word.startswith("--")} <= known
    [parts] = re.findall(r"part: \[(.*?)\]", workflow)
    count = len(parts.split(","))
    assert set(re.findall(r"--shard \$\{\{ matrix\.part \}\}/(\d+)", workflow)) == {str(count)}
    assert set(re.findall(r"shots-\*-of-(\d+)", workflow)) == {str(count)}
    assert "include-hidden-files: true" in workflow, "the ledger lies in a hidden folder"
    assert "fail-fast: false" in workflow, "one part's failed row must not stop the others"


def test_the_workflow_of_the_readme_does_its_work(seedream: Command) -> None:
    """Its own lines, in the sandbox: every part in a folder of its own, and all of them in one."""
    table(seedream, 5)
    [draw, join] = re.findall(r"&& exec seedream (batch .+)$", README, re.MULTILINE)
    for part in range(1, 5):
        words = shlex.split(draw.replace("${{ matrix.part }}", str(part)).replace("-p ark", "-p sandbox"))
        assert seedream(*words).code == 0
    folders = sorted(path.name for path in seedream.folder.glob("shots-*-of-4"))
    done = seedream(*shlex.split(join.replace("shots-*-of-4", " ".join(folders))))
    assert done.code == 0, done.err
    assert len(results(seedream)) == len(images(seedream)) == 5


def test_rows_that_failed_alike_are_told_three_times(seedream: Command) -> None:
    """The reason once more for each row would bury the others; the results hold all of them."""
    write(seedream, "prompt\n" + "".join(f"fox {row}\n" for row in range(9)) + "odd one\n")
    script = by_prompt(fox=refusal(400, "InvalidParameter"), odd=refusal(400, "Other", message="another reason"))
    with Upstream(script=script) as upstream:
        done = run(seedream, upstream)
    assert done.code == 4
    assert len(re.findall(r"^error: row \d+", done.err, re.MULTILINE)) == 4
    assert "another reason" in done.err
    assert "and 6 rows more that failed or whose outcome is unknown: see the results" in done.err
    assert [row["status"] for row in results(seedream)] == ["failed"] * 10


def test_what_trying_again_does_not_mend_is_told_so(seedream: Command) -> None:
    """A refused key: the same command goes on, but only once that is set right."""
    table(seedream, 9)
    with Upstream(script=lambda request, number: refusal(401, "AuthenticationError")) as upstream:
        done = run(seedream, upstream, "--concurrency", "1")
    assert done.code == 3
    assert "set that right, then run the same command again to go on" in done.err


def test_a_lone_brace_and_a_short_row_are_explained(inside: Inside) -> None:
    """`{animal` is no column; Excel leaves out empty last cells, which may as well be a torn row."""
    write(inside, "id,animal,note\na,fox,n\n")
    args = ("batch", "shots.csv", "-p", "sandbox", "--dry-run", "--prompt")
    assert "warning: --prompt: a brace in the prompt stands alone" in inside(*args, "a {animal in snow").err
    assert "alone" not in inside(*args, "a {animal} in {{snow}}").err
    write(inside, "id,prompt,note\na,fox\n")
    done = inside("batch", "shots.csv", "-p", "sandbox")
    assert done.code == 2
    assert "Excel left out empty last cells" in done.err
