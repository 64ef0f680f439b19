"""A table of requests, run to its end whatever happens on the way: each row is paid once at the most."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.batch.options import Shard, read_shard
from seedream_cli.output.plain_progress import PlainBatchSink
from seedream_cli.output.tally import Tally
from seedream_cli.results import (
    Cost,
    Downloading,
    Finished,
    JobResult,
    Planned,
    Retrying,
    Saved,
    SavedImage,
    Stage,
    Timing,
)
from tests.output.test_summary import Captured
from tests.support.batches import ENV, by_prompt, images, is_whole, results, run, sent, start, summary, table, write
from tests.support.command import CANARY, Command
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream, refusal
from tests.support.raw_server import Received, Script, answer

# --- from the table to files ----------------------------------------------------------------------------------------


def test_a_table_becomes_files_and_results(seedream: Command) -> None:
    """Names by id or by row, templates, references and counts; results with the table's columns; nothing twice."""
    text = 'id;animal;size;n;note\r\nkitty;=cat();2K;2;a\r\n;owl;4K;;"b;""c"""\r\n'
    write(seedream, text, "My shots.csv")
    with Upstream() as upstream:
        args = ["--prompt", "a {animal}, {style}", "--var", "style=ink"]
        done = run(seedream, upstream, *args, name="My shots.csv")
        assert done.code == 0, done.err
        assert "2 rows, 2 to run" in done.err
        assert "up to 3 images, at most $0." in done.err
        assert sent(upstream) == {"a =cat(), ink": 2, "a owl, ink": 1}
        assert images(seedream, "My shots") == ["2-a-owl-ink.jpg", "kitty-1.jpg", "kitty-2.jpg"]
        assert sorted(path.name for path in done.paths) == images(seedream, "My shots")
        assert (
            (seedream.folder / "My shots" / "results.csv")
            .read_bytes()
            .startswith(
                b"id;animal;size;n;note;status;path;error;provider_code;billed;cost;request_id;warning\r\n"
                b"kitty;'=cat();2K;2;a;succ"
            )
        )
        again = run(seedream, upstream, *args, name="My shots.csv")
        assert (again.code, again.out) == (0, "")
        assert "2 done, 0 to run" in again.err
        assert len(upstream.posts) == 3


def test_the_whole_table_is_checked_before_anything_is_sent(seedream: Command) -> None:
    """Every problem with its line and column, options too; no request, no folder, exit 2."""
    write(seedream, "id,prompt,size\na,x,9K\nb,,2K\na,y,2K\n")
    with Upstream() as upstream:
        done = run(seedream, upstream, "--shard", "5/4", "--concurrency", "none")
        assert (done.code, done.err.count("error:")) == (2, 2), done.err
        done = run(seedream, upstream)
        assert done.code == 2
        for place in (
            "shots.csv:2, column size: ",
            "has no size 9K",
            "shots.csv:3",
            "shots.csv:4",
            "the id 'a' stands in line 2",
        ):
            assert place in done.err
        assert not upstream.posts
        assert not (seedream.folder / "shots").exists()
        lonely = seedream("batch", "shots.csv", "--only", "unknown", "-p", "sandbox")
        assert lonely.code == 2
        assert "--retry-ambiguous" in lonely.err


def test_a_dry_run_writes_and_sends_nothing(seedream: Command) -> None:
    """The plan, as lines and as an object, also of a batch that was begun; without a key; the folder stays as it is."""
    table(seedream, 3)
    done = seedream("batch", "shots.csv", "-p", "ark", "--dry-run", "--json")
    assert (done.code, done.json["rows"], done.json["running"], done.json["status"]) == (0, 3, 3, "planned")
    assert not (seedream.folder / "shots").exists()
    with Upstream() as upstream:
        assert run(seedream, upstream, "--limit", "2").code == 0
        before = {path: path.read_bytes() for path in (seedream.folder / "shots").rglob("*") if path.is_file()}
        done = run(seedream, upstream, "--dry-run")
        assert "3 rows, 2 done, 1 to run" in done.err
        after = {path: path.read_bytes() for path in (seedream.folder / "shots").rglob("*") if path.is_file()}
        assert {path.name for path in before} == {path.name for path in after if path.name[-4:] not in {"-shm", "-wal"}}
        assert len(upstream.posts) == 2


def test_json_lines_as_rows_end(seedream: Command) -> None:
    """One object a row with its place, several images in one; the summary last, and nothing else."""
    lines = [{"prompt": "one", "id": "first"}, {"prompt": "two", "count": 2}, {"prompt": "bad"}]
    write(seedream, "".join(json.dumps(line) + "\n" for line in lines), "shots.jsonl")
    with Upstream(script=by_prompt(bad=refusal(400, "InvalidParameter"))) as upstream:
        done = run(seedream, upstream, "--json", name="shots.jsonl")
        assert done.code == 9
        *rows, last = map(json.loads, done.out.splitlines())
        assert {(row["row"], row["line"], row["row_id"], row["status"], len(row["images"])) for row in rows} == {
            (1, 1, "first", "succeeded", 1),
            (2, 2, None, "succeeded", 2),
            (3, 3, None, "failed", 0),
        }
        told = {key: last[key] for key in ("type", "rows", "succeeded", "failed", "unknown", "skipped", "images")}
        assert list(told.values()) == ["summary", 3, 2, 1, 0, 0, 3]
        assert last["cost"]["currency"] == "USD"
        again = summary(run(seedream, upstream, "--json", name="shots.jsonl"))
        assert (again["skipped"], again["failed"], again["images"]) == (2, 1, 0)


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_no_row_is_paid_twice(seedream: Command, seed: int) -> None:
    """SIGKILL at random moments, then the same command to its end: whole files, and unknown only what was in flight."""
    rng, rows = random.Random(seed), 40
    table(seedream, rows)
    with Upstream(script=lambda request, number: None if is_whole(request) else Script(end="rst")) as upstream:
        upstream.delay_s = 0.1
        for _ in range(5):
            process = start(seedream, upstream, "--max-unknown", "1000")
            time.sleep(0.1 + rng.random() * 0.5)
            process.kill()
            process.communicate()
        upstream.delay_s = 0.0
        done = run(seedream, upstream, "--max-unknown", "1000", "--json")
        counts = sent(upstream)
        assert max(counts.values()) == 1, counts
        found = results(seedream)
        states = Counter(row["status"] for row in found)
        assert set(states) <= {"succeeded", "unknown"}, states
        assert sum(states.values()) == rows
        assert states["unknown"] <= 5 * 8
        assert len(images(seedream)) == states["succeeded"]
        assert all((seedream.folder / row["path"]).is_file() for row in found if row["status"] == "succeeded")
        assert done.code == (9 if states["unknown"] else 0), done.err
        assert (summary(done)["unknown"], summary(done)["rows"]) == (states["unknown"], rows)
        assert not list((seedream.folder / "shots").rglob("*.part"))
        # Whoever settles the doubtful rows gets the whole table.
        last = run(seedream, upstream, "--only", "unknown", "--retry-ambiguous")
        assert last.code == 0, last.err
        assert run(seedream, upstream).code == 0
        assert len(images(seedream)) == rows


@pytest.mark.parametrize("step", [0, 1, 2, 4, 6, 8, 10, 13])
def test_what_a_killed_run_had_paid_is_fetched_by_the_next(forked: Forked, step: int) -> None:
    """Killed at a step of its one row, the same command ends it without a second payment, or calls it unknown."""
    seedream = forked
    table(seedream, 1)
    with Upstream() as upstream:
        args = ["batch", "shots.csv", "-p", "ark", "--base-url", upstream.url]
        assert seedream(*args, env=ENV, wounds={"kill": ["sent", step]}).code == -signal.SIGKILL
        moved = seedream.folder / "moved"
        if (seedream.folder / "shots").exists():
            (seedream.folder / "shots").rename(moved)
        done = run(seedream, upstream, "-o", "moved")
        assert len(upstream.posts) <= 1
        assert done.code in {0, 7}, done.err
        assert len(images(seedream, "moved")) == (done.code == 0)
        if len(upstream.gets):
            assert done.code == 0, "the answer was on disk"


def test_edited_and_reordered_tables_run_only_what_is_new(seedream: Command) -> None:
    """Order, blank columns and spelling change nothing; equal rows are two images; an edited row is a new one."""
    write(seedream, "id,prompt\na,one\n,two\n,two\nd,four\n")
    with Upstream() as upstream:
        assert run(seedream, upstream).code == 0
        assert sent(upstream) == {"one": 1, "two": 2, "four": 1}
        write(seedream, "prompt,note,id\ntwo,x,\nFOUR,,d\none,y,a\ntwo,,\ntwo,,\nnew,,\n")
        told = run(seedream, upstream, "--explain-stale")
        assert told.out.splitlines() == [
            "shots.csv:3: row 2 (d): changed: prompt",
            "shots.csv:6: row 5: new",
            "shots.csv:7: row 6: new",
        ]
        assert len(upstream.posts) == 4
        assert run(seedream, upstream).code == 0
        assert sent(upstream) == {"one": 1, "two": 3, "four": 1, "FOUR": 1, "new": 1}
        assert [row["status"] for row in results(seedream)] == ["succeeded"] * 6
        assert {"d.jpg", "d-2.jpg"} <= set(images(seedream)), "the paid image keeps its name"


def test_deleted_files_are_fetched_again_while_their_links_live(seedream: Command) -> None:
    """No second payment; a dead link makes the row missing, and only `--only missing` makes it anew."""
    table(seedream, 2)
    said = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    late = answer(said, status=403, headers=[("Date", "Fri, 01 Jan 2100 00:00:00 GMT")])
    dead: list[Script | None] = [None]
    with Upstream(link=lambda request, number: dead[0]) as upstream:
        assert run(seedream, upstream).code == 0
        victim = seedream.folder / "shots" / "1-fox-number-1.jpg"
        victim.unlink()
        done = run(seedream, upstream)
        assert (done.code, len(upstream.posts), victim.is_file()) == (0, 2, True), done.err
        assert "free of charge" in done.err
        victim.unlink()
        dead[0] = late
        assert run(seedream, upstream).code == 9
        dead[0] = None
        stays = run(seedream, upstream)
        assert (stays.code, len(upstream.posts)) == (9, 2), stays.err
        assert "1 whose files are gone for good" in stays.err
        assert "--only missing" in stays.err
        anew = run(seedream, upstream, "--only", "missing")
        assert (anew.code, len(upstream.posts), victim.is_file()) == (0, 3, True), anew.err
        assert run(seedream, upstream).code == 0


def test_unknown_rows_are_never_sent_again_unasked(seedream: Command) -> None:
    """Lost connections: told, counted as failed, left alone; sent again only with both options, and the doubt stays."""
    table(seedream, 4)
    lost = [True]
    with Upstream(script=lambda request, number: Script(end="rst") if lost[0] else None) as upstream:
        done = run(seedream, upstream, "--concurrency", "1", "--max-unknown", "2")
        assert (done.code, len(upstream.posts)) == (7, 2), done.err
        assert "2 unknown, 2 not sent" in done.err
        assert "possibly $" in done.err
        [ids] = re.findall(r"seedream history resolve (.+) --paid \| --unpaid, or run again with --only", done.err)
        lost[0] = False
        done = run(seedream, upstream, "--json")
        assert (done.code, len(upstream.posts)) == (9, 4)
        assert [summary(done)[key] for key in ("succeeded", "unknown", "skipped")] == [2, 2, 0]
        assert [row["billed"] for row in results(seedream)] == ["unknown", "unknown", "yes", "yes"]
        first, second = ids.split()
        settled = seedream("history", "resolve", first, "--unpaid")
        assert settled.code == 0, settled.err
        assert seedream("history", "show", second, "--json").json["requests"][0]["status"] == "unknown"
        assert (run(seedream, upstream).code, len(upstream.posts)) == (9, 5)
        done = run(seedream, upstream, "--only", "unknown", "--retry-ambiguous")
        assert (done.code, len(upstream.posts)) == (0, 6), done.err
        assert run(seedream, upstream).code == 0


# --- endings --------------------------------------------------------------------------------------------------------


def test_some_rows_fail_and_the_others_go_on(seedream: Command) -> None:
    """Refused rows cost nothing and end with 9, or, where none succeeded, with their code; they run again."""
    write(seedream, "prompt\nfine\nnaughty\nalso fine\n")
    no = refusal(400, "InputTextSensitiveContentDetected")
    with Upstream(script=by_prompt(naughty=no)) as upstream:
        done = run(seedream, upstream)
        assert done.code == 9
        assert "row 2 (shots.csv:3)" in done.err
        assert "3 rows: 2 done, 1 failed" in done.err
        [row] = [row for row in results(seedream) if row["status"] == "failed"]
        assert (row["prompt"], row["billed"], row["provider_code"]) == (
            "naughty",
            "no",
            "InputTextSensitiveContentDetected",
        )
        upstream._script = None
        done = run(seedream, upstream, "--only", "failed")
        assert done.code == 0, done.err
        assert sent(upstream) == {"fine": 1, "also fine": 1, "naughty": 2}
    write(seedream, "prompt\nnaughty 1\nnaughty 2\n", "bad.csv")
    with Upstream(script=by_prompt(naughty=no)) as upstream:
        assert run(seedream, upstream, name="bad.csv").code == 4


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [(401, "AuthenticationError", 3), (403, "AccountOverdueError", 3), (429, "SetLimitExceeded", 5)],
)
def test_a_refused_key_and_an_empty_account_stop_at_once(
    seedream: Command, status: int, code: str, exit_code: int
) -> None:
    """One request tells for all of them; the rest is not sent, and runs once that is mended."""
    table(seedream, 30)
    with Upstream(script=lambda request, number: refusal(status, code)) as upstream:
        done = run(seedream, upstream, "--concurrency", "1")
        assert (done.code, len(upstream.posts)) == (exit_code, 1), done.err
        assert "29 not sent" in done.err
        assert run(seedream, upstream, "--concurrency", "4").code == exit_code
        assert len(upstream.posts) <= 5
        upstream._script = None
        done = run(seedream, upstream, "--limit", "5")
        assert done.code == 0, done.err
        assert len(images(seedream)) == 5


def test_fail_fast_and_max_failures_bound_the_failures(seedream: Command) -> None:
    """No new row after the first, or after N; what was not sent is left for the next run."""
    table(seedream, 20)
    with Upstream(script=by_prompt(fox=refusal(400, "InvalidParameter"))) as upstream:
        done = run(seedream, upstream, "--fail-fast", "--concurrency", "1", "--json")
        assert (done.code, len(upstream.posts)) == (4, 1)
        assert (summary(done)["failed"], summary(done)["unsent"]) == (1, 19)
        done = run(seedream, upstream, "--max-failures", "3", "--concurrency", "1")
        assert (done.code, len(upstream.posts)) == (4, 4), done.err
        assert "since 3 rows have failed" in done.err


def test_no_more_is_spent_than_allowed(seedream: Command) -> None:
    """A run stops at its cap with 10, a day at its own over all runs; the same command goes on when there is more."""
    table(seedream, 6)
    with Upstream() as upstream:
        plan = seedream("batch", "shots.csv", "-p", "ark", "--dry-run", "--json").json
        price = plan["cost"]["amount"] / 6
        done = run(seedream, upstream, "--max-cost", f"{2.5 * price:.4f}", "--json")
        assert (done.code, len(upstream.posts)) == (10, 2), done.err
        assert summary(done)["unsent"] == 4
        assert summary(done)["cost"]["amount"] == pytest.approx(2 * price)
        settings = seedream.home / ".config" / "seedream" / "config.toml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(f"[budget]\ndaily = {3.5 * price:.4f}\n")
        done = run(seedream, upstream)
        assert (done.code, len(upstream.posts)) == (10, 3), done.err
        assert "today's budget" in done.err
        settings.unlink()
        assert run(seedream, upstream).code == 0
        assert len(upstream.posts) == 6


def test_a_second_process_ends_at_once(seedream: Command) -> None:
    """75, and nothing sent; the first goes on untroubled."""
    table(seedream, 4)
    may_answer = threading.Event()

    def wait(request: Received, number: int) -> None:
        may_answer.wait(60)

    with Upstream(script=wait) as upstream:
        first = start(seedream, upstream)
        while not upstream.posts:
            time.sleep(0.02)
        second = run(seedream, upstream)
        may_answer.set()
        assert second.code == 75, second.err
        assert len(upstream.posts) <= 4
        first.communicate()
        assert first.returncode == 0
        assert max(sent(upstream).values()) == 1


def test_an_interrupted_batch_saves_what_is_paid_and_writes_its_results(seedream: Command) -> None:
    """SIGINT: nothing new leaves, what was sent is saved, results tell of all rows; the same command does the rest."""
    table(seedream, 12)
    with Upstream() as upstream:
        upstream.delay_s = 0.6
        process = start(seedream, upstream, "--concurrency", "3")
        while len(upstream.posts) < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 130, err
        paid = len(upstream.posts)
        states = Counter(row["status"] for row in results(seedream))
        assert states == {"succeeded": paid, "unsent": 12 - paid}, (states, err)
        assert b"run the same command again to go on" in err
        upstream.delay_s = 0.0
        assert run(seedream, upstream).code == 0
        assert max(sent(upstream).values()) == 1
        assert len(images(seedream)) == 12


# --- parts of a table -----------------------------------------------------------------------------------------------


def test_shards_share_the_rows_and_merge_into_one(seedream: Command) -> None:
    """Every row in exactly one part; the merged folder holds all, and the plain command has nothing left to do."""
    table(seedream, 24)
    with Upstream() as upstream:
        for part in (1, 2, 3):
            assert run(seedream, upstream, "--shard", f"{part}/3").code == 0
        assert sent(upstream) == {f"fox number {row}": 1 for row in range(1, 25)}
        folders = [f"shots-{part}-of-3" for part in (1, 2, 3)]
        assert all(images(seedream, folder) for folder in folders)
        short = seedream("batch", "shots.csv", "-p", "ark", "--merge", *folders[:2])
        assert short.code == 9
        done = seedream("batch", "shots.csv", "-p", "ark", "--merge", *folders)
        assert done.code == 0, done.err
        assert len(images(seedream)) == 24
        assert [row["status"] for row in results(seedream)] == ["succeeded"] * 24
        assert [row["prompt"] for row in results(seedream)] == [f"fox number {row}" for row in range(1, 25)]
        assert run(seedream, upstream).code == 0
        assert len(upstream.posts) == 24


def test_auto_finds_the_part_in_every_ci() -> None:
    """The variables of GitLab, CircleCI, Buildkite, Slurm, Kubernetes and AWS Batch."""
    cases = {
        (2, 4): {"CI_NODE_INDEX": "2", "CI_NODE_TOTAL": "4"},
        (3, 4): {"CIRCLE_NODE_INDEX": "2", "CIRCLE_NODE_TOTAL": "4"},
        (1, 5): {"BUILDKITE_PARALLEL_JOB": "0", "BUILDKITE_PARALLEL_JOB_COUNT": "5"},
        (2, 3): {"AWS_BATCH_JOB_ARRAY_INDEX": "1", "AWS_BATCH_JOB_ARRAY_SIZE": "3"},
        (4, 6): {
            "SLURM_ARRAY_TASK_ID": "7",
            "SLURM_ARRAY_TASK_MIN": "1",
            "SLURM_ARRAY_TASK_STEP": "2",
            "SLURM_ARRAY_TASK_COUNT": "6",
        },
    }
    for (index, count), environ in cases.items():
        found: list[Any] = []
        assert (read_shard("auto", environ, found), found) == (Shard(index, count), [])
    found = []
    assert read_shard("auto/8", {"JOB_COMPLETION_INDEX": "7"}, found) == Shard(8, 8)
    assert not found
    for text, environ in (("auto", {}), ("auto", {"JOB_COMPLETION_INDEX": "1"}), ("auto/2", cases[3, 4]), ("0/3", {})):
        found = []
        read_shard(text, environ, found)
        assert len(found) == 1, text


def test_rows_of_several_providers_go_their_own_ways(seedream: Command) -> None:
    """Each row to its provider with its key, at the address of its table."""
    write(seedream, "prompt,provider\none,ark\ntwo,byteplus\nthree,ark\n")
    with Upstream() as here, Upstream() as there:
        settings = seedream.folder / "own.toml"
        settings.write_text(
            f'[providers.ark]\nbase_url = "{here.url}"\n[providers.byteplus]\nbase_url = "{there.url}"\n'
        )
        env = {"ARK_API_KEY": CANARY, "BYTEPLUS_API_KEY": f"{CANARY}-2"}
        done = seedream("batch", "shots.csv", "--config", "own.toml", env=env)
        assert done.code == 0, done.err
        assert (sent(here), sent(there)) == ({"one": 1, "three": 1}, {"two": 1})
        assert {request.header("authorization") for request in there.posts} == {f"Bearer {CANARY}-2"}
        assert not (seedream.folder / "own.toml").unlink()


# --- large tables, and what is seen ---------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_table(seedream: Command) -> None:
    """Of 20,000 rows 20 are run: the process takes hardly more than for 200 rows, and the same number of requests."""
    peaks = {}
    with Upstream() as upstream:
        for rows in (200, 20_000):
            table(seedream, rows, f"t{rows}.csv")
            # A process of its own, since what a forked one was given counts as well.
            args = ("batch", f"t{rows}.csv", "-p", "ark", "--base-url", upstream.url, "--limit", "20", "-q")
            process = Command.popen(seedream, *args, env=ENV)
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read()
            err = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            process.stdout.close()
            process.stderr.close()
            assert process.returncode == 0, err
            peaks[rows] = usage.ru_maxrss
        assert len(upstream.posts) == 40
    assert peaks[20_000] - peaks[200] < 12_000, peaks


def fake_run(rows: int, seconds: float, take: Any, clock: list[float]) -> None:
    """The events of a run of so many rows that takes so long."""
    take(Planned(rows, rows, "ark", "m"))
    for row in range(rows):
        clock[0] += seconds / rows
        take(Stage((row + 1) * 1000, "sent"))
        take(Saved((row + 1) * 1000, SavedImage(0, Path("x.jpg"))))
        status: Any = "failed" if row % 100 == 7 else "succeeded"
        cost = Cost(0.04, "USD", "2026-11")
        take(Finished(JobResult((row + 1) * 1000, "i", status, "ark", "m", {}, cost=cost, attempts=1)))


@pytest.mark.parametrize(
    ("rows", "seconds", "most", "least"), [(100_000, 9e4, 200, 90), (500, 60, 6, 4), (50, 5, 0, 0)]
)
def test_without_a_terminal_progress_is_a_line_now_and_then(rows: int, seconds: float, most: int, least: int) -> None:
    """A line every ten seconds or every hundredth, whichever is rarer."""
    captured, clock = Captured(), [0.0]
    sink = PlainBatchSink(captured.console, clock=lambda: clock[0])
    fake_run(rows, seconds, sink.emit, clock)
    lines = [line for line in captured.err.splitlines() if line.startswith("done: ")]
    assert least <= len(lines) <= most


def test_tally_tells_of_the_whole() -> None:
    """Done, failed and the time left first; then cost and the most of it, pace and what is in flight."""
    clock = [0.0]
    tally = Tally(lambda: clock[0], most=Cost(80, "USD", "2026-11"))
    fake_run(1000, 600.0, tally.take, clock)
    tally.requests = 2000
    tally.take(Stage(999_999, "sent"))
    told = "1000 of 2000 · 10 failed · 10 min left · $40.00 of at most $80.00 · 100 images/min · 1 in flight"
    assert tally.line(clock[0]) == told


def test_tally_counts_requests_alone_in_flight() -> None:
    """One that waits to be sent again, or is answered, is not in flight; nor is what earlier runs have paid for."""
    tally = Tally()
    tally.take(Planned(3, 3, "ark", "m"))
    for row in (1000, 2000, 3000):
        tally.take(Stage(row, "sent"))
    tally.take(Retrying(1000, "the request", 3.0, "too many requests", 1))
    tally.take(Stage(2000, "done"))
    tally.take(Downloading(2000, 0, 10, 100))
    tally.take(Downloading(-1, 0, 10, 100))
    tally.take(Finished(JobResult(-1, "i", "succeeded", "ark", "m", {})))
    tally.take(Finished(JobResult(3000, "i", "interrupted", "ark", "m", {})))
    assert tally.line(0.0) == "0 of 3"
    tally.take(Stage(1000, "sent"))
    assert tally.line(0.0) == "0 of 3 · 1 in flight"


def test_tally_knows_how_long_a_model_takes() -> None:
    """The median of what it took in this run, and before there is one that of earlier runs."""
    tally = Tally(usual={"m": 9.0})
    assert (tally.usual_s("m"), tally.usual_s("n")) == (9.0, None)
    for row, took in enumerate((30.0, 31.0, 300.0)):
        timing = Timing(took, took, 0.0)
        tally.take(Finished(JobResult(row, "i", "succeeded", "ark", "m", {}, attempts=1, timing=timing)))
    assert tally.usual_s("m") == 31.0
