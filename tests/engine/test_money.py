"""Money and what it bought: budgets, doubts and their settling, files used again, recovery from all that is left."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.config.environment import Environment
from seedream_cli.engine.recovery import make_recovery
from seedream_cli.engine.run import run_plan
from seedream_cli.ledger.ledger import open_ledger
from seedream_cli.output.plain_progress import QuietSink
from seedream_cli.request.image_request import OptionValues
from tests.support.command import CANARY, Command
from tests.support.fork_server import Forked, Nursery
from tests.support.provider_server import Upstream, make_image, noise
from tests.support.raw_server import RESET, SILENCE, answer

pytestmark = pytest.mark.hurried
ENV = {"ARK_API_KEY": CANARY}
BROKEN = answer(b"<html>oops</html>", status=500)
EXPIRED = answer(
    b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
    status=403,
    headers=[("Date", "Fri, 01 Jan 2100 00:00:00 GMT")],
)


def generate(command: Command, upstream: Upstream, *args: str, **more: Any) -> Any:
    """One run against the upstream."""
    return command("generate", "a fox", "-p", "ark", "--base-url", upstream.url, *args, env=ENV, **more)


def entries(command: Command) -> list[Any]:
    """The history as JSON, newest first."""
    found: list[Any] = command("history", "--json").json["requests"]
    return found


# --- budgets --------------------------------------------------------------------------------------------------------


def test_a_budget_that_ends_a_run_is_exit_10_and_names_what_was_spent(forked: Forked) -> None:
    """Two of three fit: two are saved, the third is not sent, and the sums are told; over all days' runs as well."""
    with Upstream() as upstream:
        done = generate(forked, upstream, "-n", "3", "--max-cost", "0.08")
        assert done.code == 10
        assert len(upstream.posts) == 2
        assert len(done.paths) == 2
        assert "0.07 USD" in done.err
        assert "0.08 USD" in done.err
        (forked.home / ".config/seedream").mkdir(parents=True)
        (forked.home / ".config/seedream/config.toml").write_text("[budget]\ndaily = 0.10\n")
        assert generate(forked, upstream).code == 10
        assert generate(forked, upstream, "--json").json["error"]["code"] == "budget"
        assert len(upstream.posts) == 2
        # What costs nothing passes a budget that is used up.
        assert forked("generate", "a fox", "-p", "sandbox").code == 0


def test_a_repetition_of_what_is_in_doubt_is_held_against_the_budget(forked: Forked) -> None:
    """With `--retry-ambiguous` each attempt may have been paid: none is sent that could pass the cap."""
    with Upstream(script=lambda request, number: RESET) as upstream:
        assert generate(forked, upstream, "--retry-ambiguous", "--max-cost", "0.08").code == 7
        assert len(upstream.posts) == 2


def test_after_several_unknown_outcomes_nothing_new_leaves(forked: Forked) -> None:
    """What is held back does not count as a sign of life: of 20 requests only those are lost that were out, or left
    before the third outcome was unknown.
    """
    with Upstream(script=lambda request, number: RESET) as upstream:
        assert generate(forked, upstream, "-n", "20", "-q").code == 7
        assert len(upstream.posts) <= 8 + 2
        statuses = [entry["status"] for entry in entries(forked)]
        assert statuses.count("unknown") == len(upstream.posts)


def test_a_price_that_is_not_known_is_no_price_of_nothing(forked: Forked) -> None:
    """No budget takes it; without one it is told in the sum and in the history, and null in JSON."""
    with Upstream() as upstream:
        held = generate(forked, upstream, "-m", "ep-20261121-abc", "--max-cost", "1", "-n", "2")
        assert held.code == 2
        assert "seedream config set prices.ark/ep-20261121-abc AMOUNT" in held.err
        assert not upstream.posts
        done = generate(forked, upstream, "-m", "ep-20261121-abc", "-n", "2")
        assert done.code == 0
        assert "2 requests of unknown price" in done.err
        assert [entry["cost"] for entry in entries(forked)] == [None, None]
        assert "unknown price" in forked("history").out


# --- doubts ---------------------------------------------------------------------------------------------------------


def test_every_way_out_of_a_doubt_is_named_and_works(forked: Forked) -> None:
    """The message names both commands and what sending again means; `resolve` settles the money; nothing is sent."""
    with Upstream(script=lambda request, number: RESET) as upstream:
        done = generate(forked, upstream, "--json")
        name, hint = done.json["id"], done.json["error"]["hint"]
        assert f"seedream history resolve {name} --paid or --unpaid" in hint
        assert "sends it once more, and pays once more" in hint
        assert f"resolve {name} --paid" in done.err
        assert entries(forked)[0]["billed"] == "unknown"
        assert "settle the 1 unknown" in forked("recover", env=ENV).err
        assert forked("history", "resolve", name, "--paid").code == 0
        assert entries(forked)[0]["status"] == "resolved"
        assert forked("history", "resolve", name, "--unpaid").code == 0
        assert [(one["status"], one["billed"]) for one in entries(forked)] == [("unsent", "no")]
        again = forked("history", "resolve", name, "--unpaid")
        assert again.code == 2
        assert "nothing to resolve" in again.err
        assert len(upstream.posts) == 1
        lone = generate(forked, upstream, "--no-ledger", "--json").json["error"]["hint"]
        assert "resolve" not in lone
        assert "pays once more" in lone


def test_a_run_is_resolved_by_its_name(forked: Forked) -> None:
    """Of a run's requests those in doubt are settled, the others stay."""
    with Upstream(script=lambda request, number: RESET if number == 1 else None) as upstream:
        assert generate(forked, upstream, "-n", "2").code == 9
        run = entries(forked)[0]["run"]
        done = forked("history", "resolve", run, "--unpaid")
        assert done.code == 0, done.err
        assert sorted(entry["status"] for entry in entries(forked)) == ["succeeded", "unsent"]


def test_what_died_in_flight_is_told_by_the_next_command(forked: Forked) -> None:
    """The orphan is unknown, said once with both commands, and never sent again."""
    assert forked("history").code == 0
    with Upstream() as upstream:
        assert generate(forked, upstream, wounds={"kill": 13}).code == -signal.SIGKILL
        done = forked("history")
        [entry] = entries(forked)
        assert entry["status"] == "unknown"
        assert f"seedream history resolve {entry['id']} --paid or --unpaid" in done.err
        assert "note" not in forked("history").err


# --- used again -----------------------------------------------------------------------------------------------------


def test_the_same_request_is_new_unless_its_files_are_to_be_used_again(forked: Forked) -> None:
    """Without --reuse a note says that nothing is reused; with it the old paths come back and nothing is sent."""
    with Upstream() as upstream:
        first = generate(forked, upstream, "-o", "fox.jpg")
        assert "reuse" not in first.err
        second = generate(forked, upstream)
        assert "nothing is reused" in second.err
        assert len(upstream.posts) == 2
        fox, other = forked.folder / "fox.jpg", forked.folder / second.paths[0]
        # Newest first; and the named file that is there is no obstacle, since it is the answer.
        both = generate(forked, upstream, "--reuse", "-n", "2")
        assert both.code == 0, both.err
        assert both.paths == [other, fox]
        one = generate(forked, upstream, "--reuse", "--json", "-o", "fox.jpg")
        assert one.code == 0
        assert one.json["images"][0]["path"] == str(other)
        assert one.json["cost"]["amount"] == 0
        assert one.json["id"] == entries(forked)[0]["id"]
        assert len(upstream.posts) == 2
        third = generate(forked, upstream, "--reuse", "-n", "3")
        assert third.code == 0
        assert len(upstream.posts) == 3
        # A file that is gone or is another now is no image of that request.
        other.unlink()
        fox.write_bytes(make_image(seed=9))
        (forked.folder / third.paths[2]).unlink()
        assert generate(forked, upstream, "--reuse").code == 0
        assert len(upstream.posts) == 4
        assert forked("generate", "a wolf", "-p", "ark", "--base-url", upstream.url, "--reuse", env=ENV).code == 0
        assert len(upstream.posts) == 5
        assert generate(forked, upstream, "--reuse", "--no-ledger").code == 2
        assert len(upstream.posts) == 5


# --- recovery -------------------------------------------------------------------------------------------------------


def test_kept_replies_outlive_the_ledger(forked: Forked) -> None:
    """What a run without a ledger left, and what a damaged one that was moved away knew, is recovered all the same."""
    with Upstream(link=lambda request, number: BROKEN) as upstream:
        lone = generate(forked, upstream, "--no-ledger", "--json")
        assert lone.code == 8
        assert generate(forked, upstream).code == 8
        upstream._link = None
        ledger = forked.home / "state/ledger.db"
        with sqlite3.connect(ledger) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        ledger.write_bytes(ledger.read_bytes()[: ledger.stat().st_size // 2])
        done = generate(forked, upstream)
        assert done.code == 74
        assert "--no-ledger" in done.err
        by_id = forked("recover", lone.json["id"], "--no-ledger", env=ENV)
        assert by_id.code == 0, by_id.err
        for path in forked.home.glob("state/ledger.db*"):
            path.rename(forked.home / path.name)
        assert len(forked("recover", env=ENV).paths) == 1
        assert forked("recover", env=ENV).paths == []
        assert len(list(forked.folder.iterdir())) == 2
        assert len(upstream.posts) == 2


def test_one_that_is_past_help_does_not_stop_the_others(forked: Forked) -> None:
    """A reply that somebody deleted and a folder that is gone are told; what can be had is saved, new runs go on."""
    with Upstream(link=lambda request, number: BROKEN) as upstream:
        for folder in ("gone", "here"):
            assert generate(forked, upstream, "-o", f"{folder}/").code == 8
        upstream._link = None
        (forked.folder / "gone").rmdir()
        (forked.folder / "gone").write_bytes(b"no folder")
        with sqlite3.connect(forked.home / "state/ledger.db") as db:
            db.execute("UPDATE requests SET error = NULL")
        db.close()
        done = generate(forked, upstream)
        assert done.code == 0, done.err
        assert "gone is not a folder" in done.err
        assert len(list((forked.folder / "here").iterdir())) == 1
        assert forked("recover", "-o", "other/", env=ENV).code == 0
        assert len(list((forked.folder / "other").iterdir())) == 1
        assert len(upstream.posts) == 3


def link_that_dies(upstream: Upstream, hours: float) -> str:
    """A signed link that says of itself when it dies."""
    start = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - 3600))
    return (
        f"{upstream.url}/store/7.jpeg?X-Tos-Date={start}&X-Tos-Expires={round(hours * 3600) + 3600}&X-Tos-Signature=a"
    )


def test_what_is_left_of_a_link_s_life_is_said(forked: Forked) -> None:
    """By its own date, in `recover` and in the history; with a clock that is wrong it is tried all the same."""
    with Upstream(link=lambda request, number: BROKEN) as upstream:
        upstream._reply = lambda body, number: {"data": [{"url": link_that_dies(upstream, 5)}]}
        name = generate(forked, upstream, "--json").json["id"]
        assert "link has 4.9 h left" in forked("history", "show", name).out.replace("5.0", "4.9")
        failed = forked("recover", env=ENV)
        assert failed.code == 8
        assert "its link has 4 h 59 min left" in failed.err
        upstream._link = None
        done = forked("recover", env=ENV, wounds={"shift": 25})
        assert "expired 20 h" in done.err
        assert done.code == 0
        assert len(done.paths) == 1


def test_an_expired_link_is_told_and_never_drawn_anew(forked: Forked) -> None:
    """Exit 8 and no second request; the history calls it failed and billed; `recover` has no false comfort."""
    with Upstream(link=lambda request, number: EXPIRED) as upstream:
        done = generate(forked, upstream, "--json")
        assert (done.code, done.json["error"]["code"]) == (8, "expired")
        [entry] = entries(forked)
        assert (entry["status"], entry["billed"]) == ("failed", "yes")
        assert "all that was paid for is saved" not in forked("recover", env=ENV).err
        assert "expired" in forked("recover", entry["id"], env=ENV).err
        assert len(upstream.posts) == 1


def test_a_raw_reply_is_recovered_from_standard_input(seedream: Command) -> None:
    """`curl … | seedream recover -`, without a provider's name; one whose download fails can be had by its id."""
    with Upstream(link=lambda request, number: BROKEN if number < 6 else None) as upstream:
        reply = json.dumps({"data": [{"url": upstream.link(3)}]}).encode()
        failed = seedream("recover", "-", "--json", "--retries", "1", stdin=reply)
        assert failed.code == 8
        upstream._link = None
        name = failed.json["id"]
        assert f"seedream recover {name}" in failed.err
        done = seedream("recover", name)
        assert done.code == 0, done.err
        assert (seedream.folder / done.paths[0]).read_bytes() == make_image(seed=3)
        assert not upstream.posts


def test_eight_processes_recover_once(nursery: Nursery, tmp_path: Path) -> None:
    """Six paid requests and eight processes that recover at once: six files, no bug, nothing paid."""
    home = Forked(tmp_path / "home", nursery, hurried=True)
    with Upstream(link=lambda request, number: BROKEN) as upstream:
        assert generate(home, upstream, "-n", "6").code == 8
        upstream._link = None
        runs = [home.popen("recover", env=ENV) for _ in range(8)]
        told = [run.communicate()[1].decode() for run in runs]
        assert {run.returncode for run in runs} <= {0, 75}, told
        assert not any("bug" in text or "Traceback" in text for text in told)
        assert len(list(home.folder.iterdir())) == 6
        assert len(upstream.posts) == 6
        assert {entry["status"] for entry in entries(home)} == {"succeeded"}


def test_what_another_process_saved_meanwhile_is_left_to_it(seedream: Command) -> None:
    """A recovery that was planned before another process finished the same one ends with 75 and touches nothing."""
    with Upstream(link=lambda request, number: BROKEN) as upstream:
        address = ["-p", "ark", "--base-url", upstream.url]
        assert seedream("generate", "x", *address, "--retries", "0", env=ENV).code == 8
        upstream._link = None
        state = seedream.home / "state"
        around = Environment({"SEEDREAM_STATE_DIR": str(state), **ENV})
        with open_ledger(state / "ledger.db", now=lambda: dt.datetime.now(dt.UTC)) as ledger:
            plan = make_recovery([], OptionValues(), around, ledger)
            assert seedream("recover", env=ENV).code == 0
            report = run_plan(plan, QuietSink(), state, ledger)
        assert report.exit_code == 75, report
        assert [path.name for path in seedream.folder.iterdir()] == ["x.jpg"]


# --- the disk -------------------------------------------------------------------------------------------------------


def test_a_full_disk_costs_no_image(forked: Forked) -> None:
    """Full before: exit 74 and nothing is sent. Full for the image alone: exit 8, and then `recover` has it."""
    big = noise((300, 300))
    with Upstream(link=lambda request, number: answer(big)) as upstream:
        assert forked("history").code == 0
        assert generate(forked, upstream, wounds={"shrink": 30_000}).code == 74
        assert not upstream.posts
        full = generate(forked, upstream, "--no-ledger", wounds={"shrink": 200_000})
        assert full.code == 8, full.err
        assert generate(forked, upstream, "--response-format", "b64_json", wounds={"shrink": 200_000}).code == 74
        assert len(upstream.posts) == 1
        assert not list(forked.folder.iterdir())
        assert len(forked("recover", env=ENV).paths) == 1
        assert len(upstream.posts) == 1


def test_a_ledger_that_fails_behind_the_answer_loses_nothing(forked: Forked) -> None:
    """The answer is on disk and cannot be written down: exit 8, and the next run saves it without a second request."""
    with Upstream() as upstream:
        assert forked("history").code == 0
        done = generate(forked, upstream, wounds={"plant": "cannot_write_answers"})
        assert done.code == 8, done.err
        assert len(forked("recover", env=ENV).paths) == 1
        assert len(upstream.posts) == 1
        assert entries(forked)[0]["status"] == "succeeded"


@pytest.mark.skipif(not shutil.which("mount"), reason="a tiny disk is mounted")
def test_a_tiny_disk_is_found_out_before_anything_is_paid(forked: Forked, tmp_path: Path) -> None:
    """State folder or output folder on a disk of 256 kB: exit 74, no POST; with room everywhere it works."""
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tiny)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("not allowed to mount")
    try:
        with Upstream() as upstream:
            assert generate(forked, upstream, "-o", f"{tiny}/").code == 74
            (tiny / "filler").write_bytes(b"x" * 200_000)
            forked.env["SEEDREAM_STATE_DIR"] = str(tiny / "state")
            assert generate(forked, upstream).code == 74
            assert not upstream.posts
    finally:
        subprocess.run(["umount", tiny], check=True)


# --- signals and pipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_says_how_many_and_how_long(seedream: Command, number: signal.Signals) -> None:
    """One in flight, at most its timeout and the download; it is saved, and the code is 128 and the signal's."""
    with Upstream() as upstream:
        upstream.delay_s = 0.6
        run = seedream.popen("generate", "a fox", "-p", "ark", "--base-url", upstream.url, "--timeout", "60", env=ENV)
        while not upstream.posts:
            time.sleep(0.02)
        run.send_signal(number)
        out, err = run.communicate(timeout=20)
        assert run.returncode == 128 + number
        assert b"1 request in flight will be finished and saved, which may take up to 5 min" in err
        assert b"once more stops at once" in err
        assert len(out.splitlines()) == 1


def test_a_second_signal_during_a_stream_loses_no_link(seedream: Command) -> None:
    """An image was announced and not fetched when it was stopped at once: `recover` has the image."""

    def script(request: Any, number: int) -> Any:
        event = {"type": "image_generation.partial_succeeded", "image_index": 0, "url": upstream.link(4)}
        body = f"data: {json.dumps(event)}\n\n".encode() + b": wait\n\n" * 2
        kind = [("Content-Type", "text/event-stream")]
        return answer(body, headers=kind, framing="chunked", cut=len(body), end="hold")

    with Upstream(script=script, link=lambda request, number: SILENCE) as upstream:
        args = ["generate", "a fox", "-p", "ark", "--base-url", upstream.url, "--sequence", "2", "--stream"]
        run = seedream.popen(*args, env=ENV)
        while not upstream.gets:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=10)
        assert run.returncode == 130
        assert entries(seedream)[0]["status"] == "unsaved"
        upstream._link = None
        assert len(seedream("recover", env=ENV).paths) == 1
        assert len(upstream.posts) == 1


def test_a_closed_pipe_loses_no_image(seedream: Command) -> None:
    """`seedream generate -n 3 | true`: all three are on disk and in the books."""
    with Upstream() as upstream:
        upstream.delay_s = 0.2
        args = ["generate", "a fox", "-p", "ark", "--base-url", upstream.url, "-n", "3"]
        run = seedream.popen(*args, env=ENV)
        assert run.stdout
        run.stdout.close()
        assert run.stderr
        err = run.stderr.read()
        run.stderr.close()
        run.wait(20)
        assert b"Traceback" not in err
        assert len(list(seedream.folder.iterdir())) == 3
        assert [entry["status"] for entry in entries(seedream)] == ["succeeded"] * 3


# --- privacy --------------------------------------------------------------------------------------------------------


def test_a_purge_takes_the_replies_along(forked: Forked) -> None:
    """What a provider answered, links included, goes with the request; what is unsaved stays unless forced."""
    with Upstream(link=lambda request, number: BROKEN) as upstream:
        assert generate(forked, upstream).code == 8
        replies = forked.home / "state/replies"
        assert "removed 0, kept 1" in forked("history", "purge", "--yes").err
        assert list(replies.iterdir())
        assert "removed 1, kept 0" in forked("history", "purge", "--yes", "--force").err
        assert not list(replies.iterdir())
        assert not entries(forked)


def test_a_ledger_that_is_switched_off_writes_nothing_down(forked: Forked) -> None:
    """`[ledger] enabled = false`: the image is saved and no ledger begun; a place without room for one is told."""
    (forked.home / ".config/seedream").mkdir(parents=True)
    config = forked.home / ".config/seedream/config.toml"
    config.write_text("[ledger]\nenabled = false\n")
    with Upstream() as upstream:
        assert generate(forked, upstream).code == 0
        assert not (forked.home / "state/ledger.db").exists()
        config.unlink()
        (forked.home / "state/ledger.db").mkdir()
        done = generate(forked, upstream)
        assert done.code == 74
        assert "--no-ledger" in done.err
        assert len(upstream.posts) == 1
        assert generate(forked, upstream, "--no-ledger").code == 0
