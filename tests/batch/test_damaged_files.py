"""Files that are there already, are damaged, or were changed by the user."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.support.command import Command
from tests.support.provider_server import Upstream, make_image
from tests.support.raw_server import answer

KEY = {"ARK_API_KEY": "sk-canary-0123456789-do-not-print"}


def batch(seedream: Command, upstream: Upstream, *more: str) -> tuple[int, list[dict[str, object]]]:
    """Run the table of two rows; the exit code and its objects."""
    done = seedream("batch", "t.csv", "-p", "ark", "--base-url", upstream.url, "--json", *more, env=KEY)
    return done.code, [json.loads(line) for line in done.out.splitlines()]


def damage(path: Path, how: str) -> None:
    """Make a file what no run has saved."""
    whole = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(whole[:100])
    elif how == "empty":
        path.touch()
    elif how == "folder":
        path.mkdir()
    elif how == "same size":
        path.write_bytes(whole[:-40] + b"x" * 40)
    elif how == "link":
        path.symlink_to("nowhere.jpg")


@pytest.mark.parametrize("how", ["cut", "empty", "folder", "link", "gone", "same size"])
def test_damaged_file_of_a_done_row_is_fetched_again_for_nothing(seedream: Command, how: str) -> None:
    """The next run fetches it from its link and pays nothing; --verify sees what the size does not."""
    (seedream.folder / "t.csv").write_text("id,prompt\nfox,a fox\nowl,an owl\n")
    with Upstream() as upstream:
        assert batch(seedream, upstream)[0] == 0
        file = seedream.folder / "t" / "fox.jpg"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        damage(file, how)
        code, found = batch(seedream, upstream, *(["--verify"] if how == "same size" else []))
        assert code == 0
        assert len(upstream.posts) == 2
        rows = [row for row in found if "row_id" in row]
        assert [row["row_id"] for row in rows] == ["fox"]
        saved = rows[0]["images"][0]["path"]  # type: ignore[index]
        assert hashlib.sha256((seedream.folder / saved).read_bytes()).hexdigest() == digest
        assert [row for row in batch(seedream, upstream, "--verify")[1] if "row_id" in row] == []
        assert len(upstream.posts) == 2


def test_damaged_file_whose_link_is_dead_is_told_and_not_paid(seedream: Command) -> None:
    """The row is missing: only --only missing pays for it again."""
    (seedream.folder / "t.csv").write_text("id,prompt\nfox,a fox\nowl,an owl\n")
    dead: list[int] = []
    headers = [("Date", "Mon, 06 Dec 2027 00:00:00 GMT")]

    def store(_: object, number: int) -> object:
        return answer(b"<Error/>", status=403, headers=headers) if dead else answer(make_image(seed=number))

    with Upstream(link=store) as upstream:  # type: ignore[arg-type]
        assert batch(seedream, upstream)[0] == 0
        damage(seedream.folder / "t" / "fox.jpg", "cut")
        dead.append(1)
        code, _ = batch(seedream, upstream, "--retries", "0")
        assert code != 0
        assert len(upstream.posts) == 2


def test_image_that_the_user_changed_is_left(seedream: Command) -> None:
    """Another whole image under the name is the user's work: neither fetched again nor written over."""
    (seedream.folder / "t.csv").write_text("id,prompt\nfox,a fox\nowl,an owl\n")
    with Upstream() as upstream:
        assert batch(seedream, upstream)[0] == 0
        file = seedream.folder / "t" / "fox.jpg"
        own = make_image("JPEG", (200, 100), seed=9)
        file.write_bytes(own)
        code, found = batch(seedream, upstream)
        assert (code, [row for row in found if "row_id" in row]) == (0, [])
        assert len(upstream.posts) == 2
        assert file.read_bytes() == own


@pytest.mark.parametrize("how", [["-n", "2"], ["--sequence", "2"]])
def test_if_exists_skip_drops_nothing_that_was_paid_for(seedream: Command, how: list[str]) -> None:
    """With one of two files there, what is paid for is saved under a name of its own and told as it is."""
    own = make_image("JPEG", (200, 100), seed=9)
    (seedream.folder / "cat-1.jpg").write_bytes(own)
    with Upstream() as upstream:
        options = ["-p", "ark", "--base-url", upstream.url, "--if-exists", "skip", "--json"]
        done = seedream("generate", "cat", *how, *options, env=KEY)
        assert done.code == 0, done.err
        assert len(upstream.posts) == 1
    assert (seedream.folder / "cat-1.jpg").read_bytes() == own
    images = done.json["images"]
    assert len(images) == 2
    for image in images:
        if image["sha256"] is None:
            # One that was there before: nothing was paid for it, and nothing is said of its bytes.
            assert image["path"] == "cat-1.jpg"
            continue
        data = (seedream.folder / image["path"]).read_bytes()
        assert (image["sha256"], image["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
