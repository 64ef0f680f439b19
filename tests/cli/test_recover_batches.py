"""What batches paid for and did not save, found again by the user's own ledger: `recover` and `history`."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.batch.test_foreign_folder import KEYS, plant_task
from tests.support.command import CANARY, Command, Done
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream
from tests.support.raw_server import RESET, answer

pytestmark = pytest.mark.hurried
ENV = {"ARK_API_KEY": CANARY}
DOWN = answer(b"<html>down</html>", headers=[("Content-Type", "text/html")])


def table(command: Command, rows: int = 3, name: str = "shots.csv") -> None:
    lines = "".join(f"r{row},fox {row} of {name}\n" for row in range(1, rows + 1))
    (command.folder / name).write_text(f"id,prompt\n{lines}")


def batch(command: Command, upstream: Upstream, *more: str, name: str = "shots.csv", **options: Any) -> Done:
    return command("batch", name, "-p", "ark", "--base-url", upstream.url, *more, env=ENV, **options)


def recover(command: Command, *more: str) -> Done:
    return command("recover", *more, env=ENV)


def names(command: Command, folder: str = "shots") -> list[str]:
    return sorted(path.name for path in (command.folder / folder).glob("**/*.jp*g"))


def results(command: Command, folder: str = "shots") -> list[tuple[str, str]]:
    with (command.folder / folder / "results.csv").open(newline="", encoding="utf-8-sig") as file:
        return [(row["status"], row["path"]) for row in csv.DictReader(file)]


def query(path: Path, words: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(words).fetchall()


def ledger_of(command: Command, folder: str = "shots") -> Path:
    return command.folder / folder / ".seedream" / "ledger.db"


def first_id(command: Command, folder: str = "shots") -> str:
    return str(query(ledger_of(command, folder), "SELECT id FROM requests ORDER BY position LIMIT 1")[0][0])


@contextmanager
def unsaved(command: Command, *more: str, rows: int = 3, name: str = "shots.csv") -> Iterator[Upstream]:
    """A store that is down while a batch pays, and up again afterwards."""
    table(command, rows, name)
    with Upstream(link=lambda request, number: DOWN) as upstream:
        done = batch(command, upstream, "--retries", "0", *more, name=name)
        assert done.code == 8, done.err
        upstream._link = None
        yield upstream


# --- recover ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "json"])
def test_recover_saves_what_every_batch_paid_for_under_its_names(forked: Forked, form: str) -> None:
    """Two folders at once: paths, results and ledgers are those of a batch that went well, and nobody pays again."""
    with unsaved(forked) as one, unsaved(forked, *_SEEDED, rows=2, name="other.csv") as two:
        done = recover(forked, *(["--json"] if form == "json" else []))
        assert done.code == 0, done.err
        saved = [image["path"] for image in done.json["images"]] if form == "json" else done.out.splitlines()
        assert len(saved) == 5
        assert names(forked) == ["r1.jpg", "r2.jpg", "r3.jpg"]
        assert all(Path(path).is_file() for path in saved)
        assert [status for status, _ in results(forked)] == ["succeeded"] * 3
        assert [(forked.folder / path).name for _, path in results(forked)] == names(forked)
        assert all((forked.folder / path).is_file() for _, path in results(forked))
        drawn = [(status, Path(path).name) for status, path in results(forked, "other")]
        for again, folder in ((batch(forked, one), "shots"), (_again(forked, two), "other")):
            assert (again.code, again.out) == (0, ""), again.err
            assert "0 to run" in again.err, folder
        assert (len(one.posts), len(two.posts)) == (3, 2)
        # The names are those that the batch itself would have given.
        planned = batch(forked, two, *_SEEDED, "-o", "fresh", name="other.csv")
        assert planned.code == 0, planned.err
        assert [(status, Path(path).name) for status, path in results(forked, "fresh")] == drawn
        nothing = recover(forked)
        assert (nothing.code, nothing.out) == (0, "")
        assert "nothing to recover" in nothing.err


_SEEDED = ("--name", "{id}/{seed}-{hash}-{model}", "--seed", "7")


def _again(command: Command, upstream: Upstream) -> Done:
    return batch(command, upstream, *_SEEDED, name="other.csv")


@pytest.mark.parametrize("step", [1, 6, 14])
def test_recover_after_a_kill_pays_nothing_and_leaves_no_row_between(forked: Forked, step: int) -> None:
    """At whatever step the batch died: what was answered is saved, what was not is unknown and stays so."""
    table(forked, 2)
    with Upstream() as upstream:
        assert batch(forked, upstream, wounds={"kill": ["sent", step]}).code == -signal.SIGKILL
        done = recover(forked)
        states = [state for (state,) in query(ledger_of(forked), "SELECT state FROM requests ORDER BY position")]
        assert set(states) <= {"saved", "unknown", "queued"}, done.err
        assert done.code == (7 if set(states) & {"unknown"} and "saved" not in states else done.code), done.err
        assert ("unknown" in states) == (done.code in {7, 9}), done.err
        if (forked.folder / "shots/results.csv").exists():
            told = [status for status, _ in results(forked)]
            assert told == [{"saved": "succeeded", "queued": "unsent"}.get(state, state) for state in states]
        again = batch(forked, upstream)
        # One that died may have sent it a moment before, or not.
        sent = Counter(body["prompt"] for body in upstream.bodies)
        assert set(sent.values()) <= {1}, again.err
        assert len(sent) >= len(states) - states.count("unknown"), again.err
        assert [status for status, _ in results(forked)] == [
            "unknown" if state == "unknown" else "succeeded" for state in states
        ]


def test_recover_by_id_saves_a_row_and_by_run_the_whole_batch(forked: Forked) -> None:
    """The id of a request, then that of the run; what is saved is said to be."""
    with unsaved(forked) as upstream:
        assert "3 paid requests are not saved" in " ".join(forked("doctor", "-p", "sandbox").out.split())
        name = first_id(forked)
        done = recover(forked, name)
        assert (done.code, names(forked)) == (0, ["r1.jpg"]), done.err
        assert [status for status, _ in results(forked)] == ["succeeded", "unsaved", "unsaved"]
        saved = recover(forked, name)
        assert saved.code == 2
        assert "all its images are saved" in saved.err
        done = recover(forked, name.rsplit("-", 1)[0])
        assert (done.code, len(names(forked))) == (0, 3), done.err
        assert recover(forked, "nothing-like-it").code == 2
        assert len(upstream.posts) == 3


@pytest.mark.parametrize("way", ["another user's run", "purged"])
def test_rows_of_runs_that_the_user_s_ledger_does_not_know_go_by_their_ids(forked: Forked, way: str) -> None:
    """A batch that a colleague began, or whose line was purged, and that this user went on with: each hint works."""
    table(forked)
    with Upstream(script=lambda request, number: RESET if number == 1 else None, link=lambda *_: DOWN) as upstream:
        assert batch(forked, upstream, "--retries", "0", "--concurrency", "1").code == 8
        if way == "purged":
            assert forked("history", "purge", "--yes", "--force").code == 0
        else:
            forked.env = {**forked.env, "SEEDREAM_STATE_DIR": str(forked.home / "another")}
        lost, unsaved_one = (
            str(row[0]) for row in query(ledger_of(forked), "SELECT id FROM requests ORDER BY position LIMIT 2")
        )
        assert recover(forked, unsaved_one).code == 2
        assert batch(forked, upstream, "--retries", "0").code == 8
        upstream._link = None
        assert f"id: {lost}" in forked("history", "show", lost).out
        assert recover(forked, unsaved_one).code == 0
        assert names(forked) == ["r2.jpg"]
        assert recover(forked, lost.rpartition("-")[0]).code == 9
        assert names(forked) == ["r2.jpg", "r3.jpg"]
        assert forked("history", "resolve", lost, "--paid").code == 0
        assert "billed: yes" in forked("history", "show", lost).out
        assert len(upstream.posts) == 3


@pytest.mark.parametrize("verdict", ["--paid", "--unpaid"])
@pytest.mark.parametrize("is_doubted", [False, True])
def test_what_is_paid_and_not_saved_is_lost_by_no_verdict(forked: Forked, verdict: str, is_doubted: bool) -> None:
    """It is no doubt, so its images alone settle it; of a doubt about an attempt before that alone is settled."""
    table(forked, 1)
    lost = RESET if is_doubted else None
    with Upstream(script=lambda _, number: lost if number == 1 else None, link=lambda *_: DOWN) as upstream:
        assert batch(forked, upstream, "--retries", "1", "--retry-ambiguous").code == 8
        name, posts = first_id(forked), len(upstream.posts)
        upstream._link = None
        done = forked("history", "resolve", name, verdict)
        assert done.code == (0 if is_doubted else 2), done.err
        assert is_doubted or f"seedream recover {name}" in done.err
        assert "unsaved" in forked("history", "show", name).out
        assert (recover(forked).code, names(forked)) == (0, ["r1.jpg"])
        assert batch(forked, upstream).code == 0
        assert len(upstream.posts) == posts == 1 + is_doubted


def test_recover_of_a_run_saves_what_was_only_handed_out(forked: Forked) -> None:
    """Nobody asked for files with --no-download; the batch's id asks for them, and then nothing is left."""
    table(forked)
    with Upstream() as upstream:
        assert batch(forked, upstream, "--no-download").code == 0
        assert (recover(forked).out, names(forked)) == ("", [])
        run = first_id(forked).rpartition("-")[0]
        assert len(recover(forked, run).paths) == 3
        assert names(forked) == ["r1.jpg", "r2.jpg", "r3.jpg"]
        assert (recover(forked, run).out, len(upstream.posts)) == ("", 3)


@pytest.mark.parametrize("verb", ["batch", "generate"])
def test_recover_by_id_fetches_again_what_was_removed(forked: Forked, verb: str) -> None:
    """What is not on disk is not called saved: its link still lives, and to ask costs nothing."""
    table(forked, 1)
    with Upstream() as upstream:
        to = ["-p", "ark", "--base-url", upstream.url]
        done = forked(*(["batch", "shots.csv"] if verb == "batch" else ["generate", "a fox"]), *to, env=ENV)
        (forked.folder / done.out.strip()).unlink()
        assert recover(forked).out == ""
        name = first_id(forked) if verb == "batch" else forked("history", "--json").json["requests"][0]["id"]
        again = recover(forked, name)
        assert (again.code, len(again.paths), again.paths[0].name) == (0, 1, done.paths[0].name), again.err
        assert (forked.folder / again.paths[0]).is_file()
        assert recover(forked, name).code == 2
        assert len(upstream.posts) == 1


def test_recover_into_another_folder_is_done_for_the_batch_as_well(forked: Forked) -> None:
    """`-o` is where the user wants it; the rows are done all the same."""
    with unsaved(forked) as upstream:
        done = recover(forked, "-o", "else/")
        assert (done.code, len(names(forked, "else")), names(forked)) == (0, 3, []), done.err
        again = batch(forked, upstream)
        assert "3 done, 0 to run" in again.err
        assert len(upstream.posts) == 3


def test_recover_tells_of_dead_links_and_of_what_stays_unknown(forked: Forked) -> None:
    """A store that is still down is 8, a reply without an image 7; neither is ever called failed or unpaid."""
    with unsaved(forked, rows=1) as upstream:
        upstream._link = lambda request, number: DOWN
        done = recover(forked)
        assert done.code == 8, done.err
        assert results(forked)[0][0] == "unsaved"
    table(forked, 1, "doubt.csv")
    with Upstream(script=lambda request, number: answer(b'{"data": [{"url"')) as other:
        assert batch(forked, other, name="doubt.csv").code == 7
        name = first_id(forked, "doubt")
        done = recover(forked, name)
        assert done.code == 7, done.err
        assert results(forked, "doubt")[0][0] == "unknown"
        assert f"history resolve {name}" in done.err
        assert recover(forked).code in {7, 8, 9}
        assert len(other.posts) == 1


def test_recover_passes_over_folders_that_are_gone_or_held(forked: Forked) -> None:
    """Each is told; the others are saved; only where nothing else happened does a held one end with 75."""
    fcntl = pytest.importorskip("fcntl")
    with ExitStack() as stack:
        parts = ("here", "moved", "held")
        uppers = [stack.enter_context(unsaved(forked, rows=1, name=f"{name}.csv")) for name in parts]
        shutil.move(forked.folder / "moved", forked.home / "away")
        lock = stack.enter_context((ledger_of(forked, "held").parent / "batch.lock").open("r+"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        named = recover(forked, first_id(forked, "held"))
        assert named.code == 75, named.err
        done = recover(forked)
        assert (done.code, names(forked, "here"), names(forked, "held")) == (0, ["r1.jpg"], []), done.err
        assert "moved" in done.err
        assert "gone" in done.err
        assert "holds the batch" in done.err
        assert not (forked.folder / "moved").exists()
        assert recover(forked).code == 75
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert recover(forked).code == 0
        assert names(forked, "held") == ["r1.jpg"]
        assert [len(upstream.posts) for upstream in uppers] == [1, 1, 1]


# --- a folder that is not as it was -----------------------------------------------------------------------------------


@pytest.mark.parametrize("trick", ["ledger", "home", "subfolder", "results", "template", "broken"])
def test_recover_follows_nothing_out_of_a_batch_folder(seedream: Command, trick: str) -> None:
    """Links, a name that climbs, a ledger that is none: told, nothing written elsewhere, other batches are saved."""
    with ExitStack() as stack:
        upstream = stack.enter_context(unsaved(seedream, "--name", "sub/{id}", rows=1))
        other = stack.enter_context(unsaved(seedream, rows=1, name="other.csv"))
        done = tricked(seedream, trick)
        assert names(seedream, "other") == ["r1.jpg"], done.err
        assert done.code == {"results": 0, "subfolder": 9, "template": 9}.get(trick, 74), done.err
        away = seedream.home / "away"
        assert (away / "mine").read_text() == "mine"
        assert not list(away.glob("**/*.jp*g"))
        assert (len(upstream.posts), len(other.posts)) == (1, 1)


def tricked(seedream: Command, trick: str) -> Done:
    """What `recover` makes of a folder that somebody changed."""
    folder, away = seedream.folder / "shots", seedream.home / "away"
    away.mkdir()
    (away / "mine").write_text("mine")
    if trick == "ledger":
        ledger_of(seedream).rename(away / "ledger.db")
        ledger_of(seedream).symlink_to(away / "ledger.db")
    elif trick == "home":
        (folder / ".seedream").rename(away / "dot")
        (folder / ".seedream").symlink_to(away / "dot")
    elif trick == "subfolder":
        shutil.rmtree(folder / "sub", ignore_errors=True)
        (folder / "sub").symlink_to(away)
    elif trick == "results":
        (folder / "results.csv").unlink()
        (folder / "results.csv").symlink_to(away / "mine")
    elif trick == "template":
        with closing(sqlite3.connect(ledger_of(seedream))) as db:
            db.execute("""UPDATE requests SET output = '{"template": "../../away/x", "first": 1, "of": 1}'""")
            db.commit()
    else:
        ledger_of(seedream).write_bytes(b"no ledger at all")
    return recover(seedream)


def test_recover_takes_no_key_to_an_address_out_of_a_batch(seedream: Command) -> None:
    """A planted task in a folder that the user's ledger knows: it stays open, and its address is told."""
    table(seedream, 1)
    assert seedream("batch", "shots.csv", "-p", "sandbox").code == 0
    with Upstream() as stranger:
        stranger._reply = stranger.acedata
        plant_task(ledger_of(seedream), stranger.url)
        for named in ([], ["lost-1"]):
            done = seedream("recover", *named, env=KEYS)
            assert stranger.server.connections == 0
            assert done.code == 7, done.err
        assert stranger.url in seedream("recover", env=KEYS).err


ODD = {
    "sent_at": "'soon'",
    "entered_at": "'0001-01-01T00:00:00+23:00'",
    "model": "'x' || char(27) || '[31m'",
    "file": "char(27) || '[2J' || char(10) || 'x'",
    "currency": "char(27) || 'EUR'",
    "state": "'unheard of'",
}


def test_history_of_a_batch_says_plainly_what_is_odd(forked: Forked) -> None:
    """Whatever stands in a folder's ledger: no bug, no escape sequence, and single runs are shown all the same."""
    with unsaved(forked, rows=1):
        assert forked("generate", "a hen", "-p", "sandbox").code == 0
        sound = ledger_of(forked).read_bytes()
        run = forked("history", "--json").json["batches"][0]["id"]
        for column, value in ODD.items():
            with closing(sqlite3.connect(ledger_of(forked))) as db:
                db.execute("PRAGMA ignore_check_constraints = ON")
                db.execute(f"UPDATE requests SET {column} = {value}, attempts = 1")
                db.commit()
            for args in (["history"], ["history", "stats"], ["history", "stats", "--by", "model"]):
                done = forked(*args, env={"COLUMNS": "160"})
                assert (done.code, "\x1b" in done.out + done.err) == (0, False), (column, done.err)
            assert "a hen" in forked("history").out
            for args in (["history", "show", run], ["recover", "--json"], ["recover", "-q", run]):
                done = forked(*args)
                assert done.code in {0, 2, 7, 8, 9, 74}, (column, args, done.err)
                assert "\x1b" not in done.out + done.err
                assert done.err or done.code == 0
            ledger_of(forked).write_bytes(sound)


# --- money ------------------------------------------------------------------------------------------------------------


def test_recover_books_no_money_a_second_time(forked: Forked) -> None:
    """The day's account has what the batch paid, before and after; the history and its sums say the same once."""
    with unsaved(forked) as upstream:
        account = forked.home / "state/ledger.db"
        before = query(account, "SELECT key, micro FROM outlays ORDER BY key")
        shown = forked("history", "--json").json["batches"][0]["cost"]
        assert recover(forked).code == 0
        assert query(account, "SELECT key, micro FROM outlays ORDER BY key") == before
        assert len(before) == 3
        [one] = forked("history", "--json").json["batches"]
        assert one["cost"] == shown
        assert round(one["cost"]["amount"] * 1e6) == sum(micro for _, micro in before)
        batch(forked, upstream)
        stats = forked("history", "stats", "--json").json
        assert stats["total"]["cost"] == shown
        assert stats["total"]["requests"] == 3


# --- history ----------------------------------------------------------------------------------------------------------


def test_history_has_a_line_for_a_batch_that_show_opens(forked: Forked) -> None:
    """Rows that are done of all, whatever number of runs it took; the line's id opens the rows, a row's id its own."""
    with unsaved(forked) as upstream:
        assert forked("generate", "a hen", "-p", "sandbox").code == 0
        lines = forked("history", env={"COLUMNS": "160"}).out
        assert "batch shots.csv 0/3" in lines
        assert "a hen" in lines
        recover(forked, first_id(forked))
        batch(forked, upstream)
        batch(forked, upstream)
        shown = forked("history", "--json").json
        [one] = shown["batches"]
        assert (len(shown["requests"]), one["done"], one["rows"], one["status"]) == (1, 3, 3, "succeeded")
        assert forked("history", env={"COLUMNS": "160"}).out.count("batch shots.csv 3/3") == 1
        opened = forked("history", "show", one["id"])
        assert opened.code == 0, opened.err
        assert all(f"fox {row}" in opened.out for row in (1, 2, 3))
        rows = forked("history", "show", one["id"], "--json").json
        assert [entry["status"] for entry in rows["requests"]] == ["succeeded"] * 3
        assert rows["batches"][0]["id"] == one["id"]
        assert forked("history", "show", one["id"][:-1]).code == 0
        assert "fox 1" in forked("history", "show", first_id(forked)).out
        # Filters hold for the rows in it.
        assert forked("history", "--status", "failed", "--json").json["batches"] == []
        assert len(forked("history", "--text", "fox 2", "--json").json["batches"]) == 1
        assert len(forked("history", "-p", "ark", "--json").json["batches"]) == 1
        assert forked("history", "-n", "1", "--json").json["requests"] == []
        shutil.rmtree(forked.folder / "shots")
        gone = forked("history")
        assert "gone" in gone.out
        assert forked("history", "show", one["id"]).code == 2
        assert forked("history", "show", first_part(one["id"])).code == 2


def first_part(run: str) -> str:
    return f"{run}-1"


def test_history_settles_rows_of_batches_beside_single_runs(forked: Forked) -> None:
    """Ids of two batches and of a single run in one command; one that cannot be settled keeps all as they are."""
    with Upstream(script=lambda request, number: answer(b'{"data": [{"url"')) as upstream:
        for name in ("one.csv", "two.csv"):
            table(forked, 1, name)
            assert batch(forked, upstream, name=name).code == 7
        args = ("generate", "x", "-p", "ark", "--base-url", upstream.url)
        assert forked(*args, env=ENV).code == 7
        own = forked("history", "--json").json["requests"][0]["id"]
        ids = [own, first_id(forked, "one"), first_id(forked, "two")]
        assert forked("history", "resolve", *ids, "nobody", "--paid").code == 2
        assert query(ledger_of(forked, "one"), "SELECT state FROM requests") == [("unknown",)]
        done = forked("history", "resolve", *ids, "--paid")
        assert done.code == 0, done.err
        assert all(f"{name}: counted as paid" in done.err for name in ids)
        assert query(ledger_of(forked, "two"), "SELECT state FROM requests") == [("resolved",)]
        assert recover(forked).code == 0


@pytest.mark.parametrize("by", ["day", "month", "model", "provider"])
def test_stats_count_single_runs_and_batches_once(forked: Forked, by: str) -> None:
    """What is unknown is possible cost; a folder that is gone counts as it was booked."""
    script = lambda request, number: answer(b"{") if b"fox 3" in request.body else None  # noqa: E731
    with Upstream(script=script) as upstream:
        table(forked, 3)
        batch(forked, upstream)
        forked("generate", "x", "-p", "ark", "--base-url", upstream.url, env=ENV)
        done = forked("history", "stats", "--by", by, "--json")
        assert done.code == 0, done.err
        [group] = done.json["stats"]
        total = done.json["total"]
        assert (group["requests"], group["images"]) == (4, 3)
        price = group["possible_cost"]["amount"]
        assert price > 0
        assert group["cost"]["amount"] == pytest.approx(3 * price)
        assert total == {key: value for key, value in group.items() if key != by}
        text = forked("history", "stats", "--by", by).out
        assert group[by] in text
        shutil.rmtree(forked.folder / "shots")
        gone = forked("history", "stats", "--by", by, "--json")
        assert "gone" in gone.err
        assert gone.json["total"]["cost"]["amount"] == pytest.approx(4 * price)
    assert forked("history", "stats", "--by", "moon").code == 2


@pytest.mark.parametrize("state", ["unsaved", "done", "gone"])
def test_purge_forgets_no_batch_that_has_something_left(forked: Forked, state: str) -> None:
    """What is unsaved, or cannot be looked at, stays known; a batch that is done goes, and its folder keeps its own."""
    with unsaved(forked) as upstream:
        if state == "done":
            assert recover(forked).code == 0
        if state == "gone":
            shutil.move(forked.folder / "shots", forked.home / "away")
        done = forked("history", "purge", "--yes")
        assert done.code == 0, done.err
        known = forked("history", "--json").json["batches"]
        assert len(known) == (state != "done")
        if state == "gone":
            shutil.move(forked.home / "away", forked.folder / "shots")
        if state != "done":
            assert recover(forked).code == 0
        assert len(names(forked)) == 3
        assert len(upstream.posts) == 3
        assert forked("history", "purge", "--yes", "--force").code == 0
        assert json.loads(forked("history", "--json").out)["batches"] == []
