"""Where the results of a batch go: over earlier results, and over nobody else's file."""

from __future__ import annotations

import pytest

from tests.support.command import CANARY
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream
from tests.support.raw_server import Received

pytestmark = pytest.mark.hurried
ENV = {"ARK_API_KEY": CANARY}


@pytest.fixture
def forked(forked: Forked) -> Forked:
    """The command in an empty home, with a table."""
    (forked.folder / "shots.csv").write_text("id,prompt\na,fox\nb,owl\n")
    return forked


FOREIGN = {
    "another program's table": b"epoch,loss\n1,0.5\n",
    "a table with a column called status": b"id,status,path\n1,ok,/x\n",
    "text": b"my notes\n",
    "no text": bytes(range(256)) * 20,
    "one byte": b"\n",
    "a table with a broken quote": b'"never closed, status,path,error,provider_code,billed,cost,request_id\n',
}


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        *((kind, "") for kind in FOREIGN),
        ("text", "notes.txt"),
        ("text", "link.csv"),
        ("another program's table", "data.jsonl"),
    ],
)
def test_results_replace_no_file_of_another_program(forked: Forked, kind: str, named: str) -> None:
    """Found out before anything is paid, in a dry run too; both ways out are named, and both work."""
    place = forked.folder / (named or "shots/results.csv")
    place.parent.mkdir(exist_ok=True)
    if named == "link.csv":
        place.symlink_to("target")
    place.write_bytes(FOREIGN[kind])
    with Upstream() as upstream:
        to = ["batch", "shots.csv", "-p", "ark", "--base-url", upstream.url]
        more = ["--results", named] if named else []
        for args in ([*to, *more, "--dry-run"], [*to, *more]):
            done = forked(*args, env=ENV)
            assert (done.code, place.read_bytes()) == (2, FOREIGN[kind]), done.err
            assert f"{named or 'shots/results.csv'} is there and holds no results" in done.err
            assert "--results" in done.err
        assert not upstream.posts
        if kind != "text":
            return
        assert forked(*to, "--results", "elsewhere.csv", env=ENV).code == 0
        assert place.read_bytes() == FOREIGN[kind]
        place.unlink()
        assert forked(*to, *more, env=ENV).code == 0
        assert len(upstream.posts) == 2


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("semicolons.csv", ""),
        ("excel.csv", ""),
        ("tabs.tsv", "r"),
        ("rows.jsonl", "r.jsonl"),
        ("prompts.txt", "r.txt"),
    ],
)
def test_results_replace_earlier_results_and_empty_files(forked: Forked, table: str, named: str) -> None:
    """Of every kind of table and whatever the file is called; of another table, too, as long as they are results."""
    folder = forked.folder
    (folder / "semicolons.csv").write_text("id;prompt\na;fox\n")
    (folder / "excel.csv").write_bytes(b"\xef\xbb\xbfsep=;\r\nid;prompt\r\na;fox\r\n")
    (folder / "tabs.tsv").write_text("id\tprompt\na\tfox\n")
    (folder / "rows.jsonl").write_text('{"id": "a", "prompt": "fox"}\n')
    (folder / "prompts.txt").write_text("a fox\n")
    to = ["batch", table, "-p", "sandbox", "-o", "out", *(["--results", named] if named else [])]
    place = folder / (named or "out/results.csv")
    place.parent.mkdir(exist_ok=True)
    place.touch()
    assert forked(*to).code == 0
    first = place.read_bytes()
    assert b"succeeded" in first
    assert forked(*to).code == 0
    assert place.read_bytes() == first


@pytest.mark.parametrize("named", ["shots/r1.jpg", "shots/r2.PNG", "shots/.seedream/ledger.db", "out/.seedream/x.csv"])
def test_results_by_the_name_of_an_image_or_a_ledger_are_refused(forked: Forked, named: str) -> None:
    """They would replace what was paid for, or all that knows of it."""
    with Upstream() as upstream:
        to = ["batch", "shots.csv", "-p", "ark", "--base-url", upstream.url, "--results", named]
        for args in ([*to, "--dry-run"], to):
            done = forked(*args, env=ENV)
            assert done.code == 2, done.err
            assert named in done.err
            assert "--results" in done.err
        assert not upstream.posts
        assert forked("batch", "shots.csv", "-p", "sandbox", "--shard", "1/2").code == 0
        assert forked("batch", "--merge", "shots-1-of-2", "-o", "shots", "--results", named).code == 2
        assert not (forked.folder / named).exists()


def test_results_replace_no_image_that_took_their_name_meanwhile(forked: Forked) -> None:
    """An image without a suffix to tell it by is on disk before the results are: it stays, and they are elsewhere."""
    place = forked.folder / "made"

    def link(request: Received, number: int) -> None:
        place.write_bytes(b"what somebody else wrote while the batch ran")

    with Upstream(link=link) as upstream:
        to = ["batch", "shots.csv", "-p", "ark", "--base-url", upstream.url]
        done = forked(*to, "--results", "made", env=ENV)
        assert done.code == 74, done.err
        assert "made" in done.err
        assert place.read_bytes().startswith(b"what somebody else")
        assert len(done.paths) == len(upstream.posts) == 2
        assert forked(*to, "--results", "results.csv", env=ENV).code == 0
        assert (forked.folder / "results.csv").exists()
        assert len(upstream.posts) == 2


def test_merged_results_replace_no_file_of_another_program(forked: Forked) -> None:
    """With the table and without, before any file of a shard is brought over."""
    for part in ("1/2", "2/2"):
        assert forked("batch", "shots.csv", "-p", "sandbox", "--shard", part).code == 0
    (forked.folder / "shots").mkdir()
    place = forked.folder / "shots" / "results.csv"
    place.write_bytes(FOREIGN["text"])
    parts = ["shots-1-of-2", "shots-2-of-2"]
    for args in (parts, ["shots.csv", *parts]):
        done = forked("batch", "--merge", *args)
        assert (done.code, place.read_bytes()) == (2, FOREIGN["text"]), done.err
        assert [path.name for path in place.parent.iterdir()] == ["results.csv"]
    place.unlink()
    assert forked("batch", "--merge", *parts).code == 0
    assert forked("batch", "--merge", *parts).code == 0
