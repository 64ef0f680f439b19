"""What a batch makes of a disk, a table or a user that fails it in the middle: nothing lost, nothing called unpaid."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.commits import Commits
from seedream_cli.errors import FileError
from tests.conftest import Command
from tests.forked import Forked, Nursery, nursery
from tests.rawserver import Script, answer
from tests.test_batch import ENV, by_prompt, pictures, results, run, sent, table, write
from tests.upstream import Upstream, refusal


@pytest.fixture(scope="module", name="farm")
def _farm() -> Iterator[Nursery]:
    with nursery() as found:
        yield found


@pytest.fixture
def forked(tmp_path: Path, farm: Nursery) -> Forked:
    """The command with wounds."""
    return Forked(tmp_path / "home", farm)


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
        upstream._reply = lambda body, number: {**upstream.pictures(body, number), "padding": "x" * 70_000}
        done = batch(forked, upstream, bug="has_no_room_for_replies")
        assert done.code != 0
        [row] = results(forked)
        assert (row["status"], row["billed"]) == ("unknown", "unknown"), row
        assert "the same command" in row["error"]
        again = batch(forked, upstream)
        assert again.code == 7, again.err
        assert [row["status"] for row in results(forked)] == ["unknown"]
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
        assert not pictures(forked)
        again = batch(forked, upstream)
        assert again.code == 0, again.err
        assert len(pictures(forked)) == 4
        assert len(upstream.posts) == 4
        assert not journals(forked)


def test_a_table_that_goes_away_stops_the_batch_and_loses_nothing(forked: Forked) -> None:
    """One error that names the table; what was sent is saved, and the next run does the rest."""
    table(forked, 3000)
    with Upstream() as upstream:
        done = batch(forked, upstream, "--concurrency", "2", "--json", bug="loses_its_table")
        assert "cannot read shots.csv any more: input/output error" in done.err + done.out, done.err
        assert done.code != 0
        assert len(pictures(forked)) == len(upstream.posts) < 3000
        assert max(sent(upstream).values(), default=1) == 1


# --- a user in a hurry ------------------------------------------------------------------------------------------------


def whole_but_open(upstream: Upstream, padding: int) -> Script:
    """A whole answer whose end the server does not tell."""
    made = upstream.pictures({"model": "m"}, 1)
    body = json.dumps({**made, "padding": "x" * padding}).encode()
    return answer(body, framing="chunked", cut=len(body), end="hold")


@pytest.mark.parametrize("padding", [0, 70_000])
@pytest.mark.parametrize("verb", ["batch", "generate"])
def test_a_second_ctrl_c_loses_no_answer_that_came(seedream: Command, verb: str, padding: int) -> None:
    """The answer is here but for its last byte when the run is stopped at once: the next run saves its picture."""
    table(seedream, 1)
    with Upstream(script=lambda request, number: whole_but_open(upstream, padding)) as upstream:
        args = ["batch", "shots.csv"] if verb == "batch" else ["generate", "a fox"]
        process = seedream.popen(*args, "-p", "ark", "--base-url", upstream.url, env=ENV)
        while not upstream.posts:
            time.sleep(0.02)
        time.sleep(0.5)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, err = process.communicate(timeout=20)
        assert process.returncode in {7, 130}, err
        assert not list(seedream.folder.glob("**/*.jp*g"))
        args = [*args, "-p", "ark", "--base-url", upstream.url] if verb == "batch" else ["recover"]
        again = seedream(*args, env=ENV)
        assert again.code == 0, again.err
        assert len(list(seedream.folder.glob("**/*.jp*g"))) == 1
        assert len(upstream.posts) == 1


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
    def together(self, stake: Any) -> Iterator[None]:
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
        commits = Commits(ledger)
        stakes: Any = ["no", "yes", "unknown"]
        return await asyncio.gather(*(commits.do(lambda: None, stake) for stake in stakes), return_exceptions=True)

    failures = asyncio.run(write())
    assert [failure.billed for failure in failures] == ["no", "yes", "unknown"]
    assert len({id(failure) for failure in failures}) == 3
    assert ledger.groups == 1
