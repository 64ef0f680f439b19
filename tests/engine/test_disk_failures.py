"""What a batch makes of a disk, a table or a user that fails it in the middle: nothing lost, nothing called unpaid."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.errors import FileError
from seedream_cli.ledger.group_commit import GroupCommit
from seedream_cli.storage.reply_journal import Journal, adopt, sweep
from tests.support.batches import ENV, by_prompt, images, results, run, sent, table, write
from tests.support.command import Command
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream, events, refusal, sse
from tests.support.raw_server import SILENCE, Received, Script, answer


def batch(forked: Forked, upstream: Upstream, *more: str, bug: str = "") -> Any:
    wounds = {"plant": bug} if bug else {}
    return forked("batch", "shots.csv", "-p", "ark", "--base-url", upstream.url, *more, env=ENV, wounds=wounds)


def journals(command: Command) -> list[Path]:
    return list((command.folder / "shots/.seedream/replies").glob("*.journal"))


# --- a disk that fails ------------------------------------------------------------------------------------------------


def test_an_answer_that_cannot_be_read_or_filed_is_unknown(forked: Forked) -> None:
    """With room in the journal alone, an answer that makes no sense stays what it is: unknown, and not sent again."""
    table(forked, 3)
    script = by_prompt(**{"number 2": answer(b'{"data": [{"url"')})
    with Upstream(script=script) as upstream:
        done = batch(forked, upstream, bug="has_no_room_for_replies")
        assert done.code == 9, done.err
        rows = [(row["status"], row["billed"]) for row in results(forked)]
        assert rows == [("succeeded", "yes"), ("unknown", "unknown"), ("succeeded", "yes")]
        again = batch(forked, upstream)
        assert [row["status"] for row in results(forked)] == ["succeeded", "unknown", "succeeded"], again.err
        assert max(sent(upstream).values()) == 1
        assert not journals(forked)


def test_a_long_answer_without_a_file_is_not_called_unpaid(forked: Forked) -> None:
    """It is longer than a place of the journal, and there is no room elsewhere."""
    table(forked, 1)
    with Upstream() as upstream:
        upstream._reply = lambda body, number: {**upstream.images(body, number), "padding": "x" * 70_000}
        done = batch(forked, upstream, bug="has_no_room_for_replies")
        assert done.code != 0
        [row] = results(forked)
        assert (row["status"], row["billed"]) == ("unknown", "unknown"), row
        assert "the same command" in row["error"]
        again = batch(forked, upstream)
        assert again.code == 7, again.err
        assert [row["status"] for row in results(forked)] == ["unknown"]
        assert len(upstream.posts) == 1


def test_a_disk_that_fails_once_does_not_make_a_paid_row_free(forked: Forked) -> None:
    """The file that the reply was to be moved to is not in its own way when that is tried again."""
    table(forked, 1)

    def script(request: Received, number: int) -> Script:
        made = {**upstream.images({"model": "m"}, number), "padding": "x" * 70_000}
        return answer(json.dumps(made).encode(), borders=[1000], drip_s=0.1)

    with Upstream(script=script) as upstream:
        batch(forked, upstream, bug="breaks_at_the_first_write")
        [row] = results(forked)
        assert row["billed"] != "no", row
        batch(forked, upstream)
        assert len(upstream.posts) == 1


def test_answers_that_neither_the_ledger_nor_a_file_takes_come_with_the_next_run(forked: Forked) -> None:
    """They stay in the journal, which stays; the next run reads them there and pays nothing."""
    table(forked, 4)
    with Upstream() as upstream:
        done = batch(forked, upstream, "--concurrency", "2", bug="commits_no_links")
        assert done.code != 0
        paid = len(upstream.posts)
        assert paid
        assert journals(forked)
        assert not images(forked)
        again = batch(forked, upstream)
        assert again.code == 0, again.err
        assert len(images(forked)) == 4
        assert len(upstream.posts) == 4
        assert not journals(forked)


def test_a_day_that_cannot_be_booked_holds_up_no_image(forked: Forked) -> None:
    """Fewer images came than were held for: the links are safe before the user's ledger is told, and it may fail."""
    table(forked, 2)
    with Upstream() as upstream:
        made = upstream.images
        upstream._reply = lambda body, number: made({"model": "m"}, number)
        done = batch(forked, upstream, "--sequence", "3", bug="cannot_record_what_it_cost")
        assert done.code == 0, done.err
        assert len(images(forked)) == 2


def test_a_journal_stays_while_one_of_its_answers_is_wanted(tmp_path: Path) -> None:
    """Another process may be about to adopt what lies in a dead one's journal."""
    with Journal(tmp_path / "replies") as journal:
        journal.write(journal.take(), "a-token", b'{"data": []}')
    sweep(tmp_path / "replies", {"a-token"})
    assert journal.path.is_file()
    kept = adopt(tmp_path / "replies", "r-1", "a-token")
    assert kept is not None
    assert kept.read_bytes() == b'{"data": []}'
    sweep(tmp_path / "replies", {"another-token"})
    assert not journal.path.exists()


def test_a_table_that_goes_away_stops_the_batch_and_loses_nothing(forked: Forked) -> None:
    """One error that names the table; what was sent is saved, and the next run does the rest."""
    table(forked, 3000)
    with Upstream() as upstream:
        done = batch(forked, upstream, "--concurrency", "2", "--json", bug="loses_its_table")
        assert "cannot read shots.csv any more: input/output error" in done.err + done.out, done.err
        assert done.code != 0
        assert len(images(forked)) == len(upstream.posts) < 3000
        assert max(sent(upstream).values(), default=1) == 1


# --- a user in a hurry ------------------------------------------------------------------------------------------------


def whole_but_open(upstream: Upstream, padding: int) -> Script:
    """A whole answer whose end the server does not tell."""
    made = upstream.images({"model": "m"}, 1)
    body = json.dumps({**made, "padding": "x" * padding}).encode()
    return answer(body, framing="chunked", cut=len(body), end="hold")


def announced(upstream: Upstream) -> Script:
    """A stream that goes on after its first image."""
    body, kind = sse(*events(upstream, 1), done=False), [("Content-Type", "text/event-stream")]
    return answer(body, headers=kind, framing="chunked", cut=len(body), end="hold")


def stop_at_once(
    seedream: Command, upstream: Upstream, *args: str, provider: str = "ark", env: dict[str, str] = ENV, posts: int = 1
) -> str:
    """A run with so many requests out, stopped by two signals; what it said."""
    process = seedream.popen(*args, "-p", provider, "--base-url", upstream.url, env=env)
    while len(upstream.posts) < posts:
        time.sleep(0.02)
    time.sleep(0.5)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    return err.decode()


@pytest.mark.parametrize("padding", [0, 70_000])
@pytest.mark.parametrize("verb", ["batch", "generate"])
def test_a_second_ctrl_c_loses_no_answer_that_came(seedream: Command, verb: str, padding: int) -> None:
    """The answer is here but for its last byte when the run is stopped at once: the next run saves its image."""
    table(seedream, 1)
    with Upstream(script=lambda request, number: whole_but_open(upstream, padding)) as upstream:
        args = ["batch", "shots.csv"] if verb == "batch" else ["generate", "a fox"]
        stop_at_once(seedream, upstream, *args)
        assert not list(seedream.folder.glob("**/*.jp*g"))
        args = [*args, "-p", "ark", "--base-url", upstream.url] if verb == "batch" else ["recover"]
        again = seedream(*args, env=ENV)
        assert again.code == 0, again.err
        assert len(list(seedream.folder.glob("**/*.jp*g"))) == 1
        assert len(upstream.posts) == 1


@pytest.mark.parametrize("first", [429, 500])
def test_an_earlier_refusal_is_not_taken_for_the_answer(seedream: Command, first: int) -> None:
    """The attempt that was out when the run was stopped may have been paid, whatever the one before was told."""
    table(seedream, 1)
    refused = refusal(first, "RateLimitExceeded" if first == 429 else "Oops", **{"Retry-After": "0"})
    with Upstream(script=lambda request, number: refused if number == 1 else SILENCE) as upstream:
        more = ["--retry-ambiguous"] if first == 500 else []
        stop_at_once(seedream, upstream, "batch", "shots.csv", *more, posts=2)
        for _ in range(2):
            assert run(seedream, upstream).code == 7
            assert [(row["status"], row["billed"]) for row in results(seedream)] == [("unknown", "unknown")]
        assert len(upstream.posts) == 2


def test_an_answer_read_again_proves_no_refusal_that_its_status_denied(seedream: Command) -> None:
    """A gateway's 504 has a body that would be a refusal under another status, and the status is not kept."""
    table(seedream, 1)
    body = json.dumps({"error": {"code": "gateway_timeout", "message": "upstream timed out"}}).encode()
    open_ended = answer(body, status=504, framing="chunked", cut=len(body), end="hold")
    with Upstream(script=lambda request, number: open_ended) as upstream:
        stop_at_once(seedream, upstream, "batch", "shots.csv")
        for _ in range(2):
            assert run(seedream, upstream).code == 7
            assert [(row["status"], row["billed"]) for row in results(seedream)] == [("unknown", "unknown")]
        assert len(upstream.posts) == 1
    with Upstream(script=lambda request, number: answer(body, status=504)) as upstream:
        assert seedream("generate", "a fox", "-p", "ark", "--base-url", upstream.url, env=ENV).code == 7
        again = seedream("recover", env=ENV)
        assert again.code == 7, again.err
        assert "unknown, may have been billed" in again.err


def test_a_refusal_whose_code_says_enough_is_one_when_it_is_read_again(seedream: Command) -> None:
    """Under any status an image that was not made for its prompt costs nothing."""
    table(seedream, 1)
    made = refusal(400, "InputTextSensitiveContentDetected")
    cut = [piece for piece in made.pieces if isinstance(piece, bytes)]
    held = Script([cut[0].replace(b"Content-Length: ", b"Content-Length: 1"), *cut[1:]], "hold")
    with Upstream(script=lambda request, number: held) as upstream:
        stop_at_once(seedream, upstream, "batch", "shots.csv")
        run(seedream, upstream, "--max-failures", "1")
        assert [(row["status"], row["billed"]) for row in results(seedream)] == [("failed", "no")]
        assert len(upstream.posts) == 1


@pytest.mark.parametrize("more", [(), ("--retry-ambiguous",)])
def test_a_whole_answer_counts_though_its_end_was_lost(seedream: Command, more: tuple[str, ...]) -> None:
    """The connection breaks behind the last brace: the image is here, and nothing is sent again."""
    table(seedream, 2)
    with Upstream(script=lambda request, number: replace(whole_but_open(upstream, 0), end="rst")) as upstream:
        done = run(seedream, upstream, *more)
        assert done.code == 0, done.err
        assert len(upstream.posts) == len(images(seedream)) == 2


def test_without_a_ledger_a_whole_answer_is_kept_as_well(seedream: Command) -> None:
    """`recover` finds the reply."""
    with Upstream(script=lambda request, number: whole_but_open(upstream, 0)) as upstream:
        err = stop_at_once(seedream, upstream, "generate", "a fox", "--no-ledger")
        assert "hint: seedream recover" in err
        assert len(seedream("recover", env=ENV).paths) == 1
        assert len(upstream.posts) == 1


@pytest.mark.parametrize("way", ["recover", "only unknown"])
def test_an_answer_that_is_here_is_not_settled_by_hand(seedream: Command, way: str) -> None:
    """`--unpaid` would have it paid for twice: it names the way to read the answer, which --only unknown goes too."""
    table(seedream, 1)
    with Upstream(script=lambda request, number: whole_but_open(upstream, 0) if number == 1 else None) as upstream:
        stop_at_once(seedream, upstream, "batch", "shots.csv")
        with sqlite3.connect(seedream.folder / "shots/.seedream/ledger.db") as db:
            [[name]] = db.execute("SELECT id FROM requests")
        db.close()
        settled = seedream("history", "resolve", name, "--unpaid", env=ENV)
        assert settled.code == 2
        assert "is here and was not read yet" in settled.err
        if way == "recover":
            done = seedream("recover", name, env=ENV)
        else:
            done = run(seedream, upstream, "--only", "unknown", "--retry-ambiguous")
        assert done.code == 0, done.err
        assert len(upstream.posts) == len(images(seedream)) == 1
        assert run(seedream, upstream).code == 0
        assert len(upstream.posts) == 1


def test_a_stopped_stream_is_fetched_by_the_next_run(seedream: Command) -> None:
    """An image was announced and its download under way: the same command saves it."""
    table(seedream, 1)
    with Upstream(script=lambda request, number: announced(upstream), link=lambda request, number: SILENCE) as upstream:
        stop_at_once(seedream, upstream, "batch", "shots.csv", "--stream", "--sequence", "3")
        upstream._link = None
        done = run(seedream, upstream, "--stream", "--sequence", "3")
        assert len(images(seedream)) == 1, done.err
        # What was made after it, nobody knows.
        [row] = results(seedream)
        assert (row["billed"], row["cost"]) == ("unknown", "0.035"), row
        assert "1 of up to 3 images came and are kept, the rest may have been billed" in row["error"]
        assert done.code in {7, 9}
        assert run(seedream, upstream, "--stream", "--sequence", "3").code in {7, 9}
        assert len(upstream.posts) == 1


def test_streams_of_one_image_each_have_nothing_more_to_come(seedream: Command) -> None:
    """Three requests of one image are not one of three."""
    with Upstream(script=lambda request, number: announced(upstream), link=lambda request, number: SILENCE) as upstream:
        stop_at_once(seedream, upstream, "generate", "a fox", "--stream", "--count", "3", posts=3)
        upstream._link = None
        done = seedream("recover", env=ENV)
        assert (done.code, len(done.paths)) == (0, 3), done.err


def test_without_a_ledger_the_answer_of_a_killed_run_is_found(seedream: Command) -> None:
    """It lies in a part that no ledger knows."""
    with Upstream(script=lambda request, number: whole_but_open(upstream, 0)) as upstream:
        process = seedream.popen("generate", "a fox", "-p", "ark", "--base-url", upstream.url, "--no-ledger", env=ENV)
        while not upstream.posts:
            time.sleep(0.02)
        time.sleep(0.4)
        process.kill()
        process.communicate()
        assert len(seedream("recover", env=ENV).paths) == 1
        assert len(upstream.posts) == 1


def test_a_doubt_is_not_settled_by_the_refusal_of_a_repetition(seedream: Command) -> None:
    """The first attempt may be paid, whatever the second is told: no later command says that nothing was charged."""

    def script(request: Received, number: int) -> Script:
        return refusal(500, "Oops") if number == 1 else refusal(400, "InputTextSensitiveContentDetected")

    with Upstream(script=script) as upstream:
        args = ["generate", "a fox", "-p", "ark", "--base-url", upstream.url, "--retry-ambiguous"]
        assert seedream(*args, env=ENV).code == 7
        assert "not charged" not in seedream("recover", env=ENV).err
        assert "unknown" in seedream("history", "--status", "unknown").out
        assert len(upstream.posts) == 2


# --- tasks ------------------------------------------------------------------------------------------------------------

ACEDATA = {"ACEDATACLOUD_API_TOKEN": ENV["ARK_API_KEY"]}


def test_a_cut_poll_does_not_make_a_task_free(seedream: Command) -> None:
    """The asking failed, though with HTTP 200, and not the task: it is asked after again, and not submitted again."""
    table(seedream, 1)
    record = json.dumps({"id": "t-1", "created_at": 1.0, "request": {}}).encode()
    is_broken = True

    def script(request: Received, number: int) -> Script | None:
        is_poll = request.target.endswith(b"/tasks")
        return answer(record, cut=len(record) - 5) if is_poll and is_broken else None

    def reply(body: Any, number: int) -> Any:
        return (
            {"id": "t-1", "response": upstream.acedata({}, number)} if body.get("action") else upstream.acedata(body, 1)
        )

    with Upstream(script=script, reply=reply) as upstream:
        args = ["batch", "shots.csv", "-p", "acedata", "--base-url", upstream.url, "--async", "--retries", "0"]
        first = seedream(*args, env=ACEDATA)
        assert first.code == 7, first.err
        is_broken = False
        again = seedream(*args, env=ACEDATA)
        assert again.code == 0, again.err
        assert len(images(seedream)) == 1
        assert sum(request.target.endswith(b"/images") for request in upstream.posts) == 1


def test_a_task_that_is_gone_can_be_settled_by_hand(seedream: Command) -> None:
    """Its id came just before the run was stopped at once, and the provider does not know it any more."""
    ticket = json.dumps({"task_id": "t-1"}).encode()

    def script(request: Received, number: int) -> Script:
        if request.target.endswith(b"/tasks"):
            return refusal(404, "not_found", "task not found")
        return answer(ticket, framing="chunked", cut=len(ticket), end="hold")

    with Upstream(script=script) as upstream:
        stop_at_once(seedream, upstream, "generate", "a fox", "--async", provider="acedata", env=ACEDATA)
        # A task so young may not be known yet: it is asked after for a minute.
        assert seedream("recover", env=ACEDATA, hurried=True).code == 7
        [entry] = seedream("history", "--json").json["requests"]
        assert entry["task_id"] == "t-1"
        assert seedream("history", "resolve", entry["id"], "--paid").code == 0


# --- a provider that is not there -------------------------------------------------------------------------------------


def test_a_row_that_is_sent_again_in_vain_stays_what_it_was(seedream: Command) -> None:
    """A refused row and an unknown one, sent again to where nobody listens: no request left, and nothing changes."""
    write(seedream, "prompt\ngood\nbad\nlost\n")
    script = by_prompt(bad=refusal(400, "InvalidParameter"), lost=Script((), "rst"))
    with Upstream(script=script) as upstream:
        assert run(seedream, upstream).code == 9
        before = [(row["status"], row["billed"]) for row in results(seedream)]
        assert before == [("succeeded", "yes"), ("failed", "no"), ("unknown", "unknown")]
        nowhere = seedream.home / "nowhere"
        assert not nowhere.exists()
    for only in (["--only", "failed"], ["--only", "unknown", "--retry-ambiguous"]):
        done = seedream("batch", "shots.csv", "-p", "ark", "--base-url", upstream.url, "--retries", "1", *only, env=ENV)
        assert done.code == 6, done.err
        assert [(row["status"], row["billed"]) for row in results(seedream)] == before


# --- groups of deeds --------------------------------------------------------------------------------------------------


class FullLedger:
    """A ledger whose group cannot begin, or cannot end."""

    def __init__(self, *, ends: bool) -> None:
        self.ends = ends
        self.groups = 0

    @contextlib.contextmanager
    def transaction(self, stake: Any) -> Iterator[None]:
        self.groups += 1
        if not self.ends:
            raise FileError("locked", billed=stake)
        yield
        raise FileError("full", billed=stake)


@pytest.mark.parametrize("ends", [False, True])
def test_a_group_that_cannot_be_written_is_tried_once(ends: bool) -> None:
    """Not deed by deed, each of which would wait as long; and each is told what is its own in doubt."""
    ledger: Any = FullLedger(ends=ends)

    async def write() -> list[Any]:
        commits = GroupCommit(ledger)
        stakes: Any = ["no", "yes", "unknown"]
        return await asyncio.gather(*(commits.commit(lambda: None, stake) for stake in stakes), return_exceptions=True)

    failures = asyncio.run(write())
    assert [failure.billed for failure in failures] == ["no", "yes", "unknown"]
    assert len({id(failure) for failure in failures}) == 3
    assert ledger.groups == 1
