"""Killed at every step, and run again: nothing is paid twice, nothing that was paid for is lost, no file is half.

The same survey must see each of the bugs that are planted, or it proves nothing.
"""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.storage.reply_journal import MOST, PLACE
from tests.support.command import CANARY, Command
from tests.support.fork_server import ROOT, Forked, Nursery
from tests.support.provider_server import Upstream, make_image, sse
from tests.support.raw_server import RESET, Received, Script, answer

MOST_STEPS = 150
KEYS = {"ARK_API_KEY": CANARY, "ACEDATACLOUD_API_TOKEN": CANARY}
FOREIGN = make_image(seed=99)


# --- what the provider answers ----------------------------------------------------------------------------------------


def _base64(upstream: Upstream) -> Callable[[Any, int], Any]:
    raw = base64.b64encode(make_image("PNG", (90, 90), 3)).decode()
    return lambda body, number: {"data": [{"b64_json": raw}], "usage": {"generated_images": 1}}


def _task(upstream: Upstream) -> Callable[[Any, int], Any]:
    def reply(body: Any, number: int) -> Any:
        if "model" in body:
            return {"task_id": "t-1"}
        return {"success": True, "task_id": "t-1", "data": [{"size": "64x48", "image_url": upstream.link(5)}]}

    return reply


def _events(upstream: Upstream) -> Script:
    found: list[dict[str, Any]] = [
        {"type": "image_generation.partial_succeeded", "image_index": index, "url": upstream.link(index)}
        for index in range(2)
    ]
    done = {"type": "image_generation.completed", "usage": {"generated_images": 2}}
    return answer(sse(*found, done), headers=[("Content-Type", "text/event-stream")])


@dataclass(frozen=True)
class Shape:
    """A kind of request; `first` is a step shortly before it leaves, since what comes before is the same for all."""

    provider: str
    args: tuple[str, ...] = ()
    images: int = 1
    first: int = 11


SHAPES = {
    "one image": Shape("ark", first=1),
    "a set": Shape("ark", ("--sequence", "2"), 2),
    "base64": Shape("ark", ("--response-format", "b64_json")),
    "a stream": Shape("ark", ("--sequence", "2", "--stream"), 2),
    "a task": Shape("acedata"),
}


class Witness(Upstream):
    """A provider that looks into the books of its client at every request: `wrong` holds what should not be there."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.home = Path()
        self.wrong: list[str] = []
        if shape == "base64":
            self._reply = _base64(self)
        elif shape == "a task":
            self._reply = _task(self)
        self._console = shape == "a stream"
        self._script = self._look
        self._link = self._look_at_link

    def _books(self, query: str) -> list[Any]:
        with sqlite3.connect(f"file:{self.home}/state/ledger.db?mode=ro", uri=True) as db:
            found = db.execute(query).fetchall()
        db.close()
        return found

    def _look(self, request: Received, number: int) -> Script | None:
        paid = b'"model"' in request.body
        if paid and ("sent",) not in self._books("SELECT state FROM requests"):
            self.wrong.append("a request left before it was written down")
        return _events(self) if paid and self._console else None

    def _look_at_link(self, request: Received, number: int) -> Script | None:
        known = [row[0] for row in self._books("SELECT link FROM images")]
        if not any(link.endswith(request.target.decode()) for link in known):
            self.wrong.append("a download began before its link was written down")
        return None

    def paid(self) -> int:
        """How many POSTs cost money; asking after a task does not."""
        return sum("model" in body for body in self.bodies)


# --- the survey -------------------------------------------------------------------------------------------------------


class Survey:
    """Kills runs of one shape, at one step each, and says what came out wrong afterwards."""

    def __init__(self, shape: str, nursery: Nursery, tmp_path: Path, *, bug: str = "") -> None:
        self.shape = SHAPES[shape]
        self.nursery = nursery
        self.tmp_path = tmp_path
        self.upstream = Witness(shape)
        self.bug: dict[str, Any] = {"plant": bug} if bug else {}
        self.template = Forked(tmp_path / "template", nursery, hurried=True)
        assert self.template("history").code == 0

    def home(self, name: str) -> Forked:
        """A home with an empty ledger, and an image of somebody else's under the first name."""
        seedream = Forked(self.tmp_path / name, self.nursery, hurried=True)
        shutil.copytree(self.template.home / "state", seedream.home / "state")
        (seedream.folder / "a-fox.jpg").write_bytes(FOREIGN)
        self.upstream.home, self.upstream.wrong = seedream.home, []
        return seedream

    def generate(self, seedream: Forked, step: int) -> int:
        """One run that dies at a step; its exit code."""
        args = ["generate", "a fox", "-p", self.shape.provider, "--base-url", self.upstream.url, *self.shape.args]
        return seedream(*args, env=KEYS, wounds={"kill": step, **self.bug}).code

    def recover(self, seedream: Forked, step: int = 0) -> int:
        """What was paid for; its exit code."""
        return seedream("recover", env=KEYS, wounds={"kill": step, **self.bug}).code

    def step(self, number: int) -> tuple[bool, list[str]]:
        """Kill one run at a step and recover. Whether it was reached, and all that came out wrong."""
        before, seedream = self.upstream.paid(), self.home(str(number))
        code = self.generate(seedream, number)
        whole = _holds_whole_reply(seedream)
        wrong = _half_files(seedream)
        if code != 0:
            wrong += [] if code == -signal.SIGKILL else [f"exit {code} instead of a death"]
            self.recover(seedream)
        paid = self.upstream.paid() - before
        wrong += self.upstream.wrong + _half_files(seedream) + self.judge(seedream, paid, whole=whole)
        shutil.rmtree(seedream.home)
        return code != 0, [f"step {number}: {one}" for one in wrong]

    def judge(self, seedream: Forked, paid: int, *, whole: bool = False) -> list[str]:
        """What is wrong with the state after a recovery."""
        if (seedream.folder / "a-fox.jpg").read_bytes() != FOREIGN:
            return ["somebody else's file is gone"]
        saved = len(_images(seedream)) - 1
        entries = _history(seedream)
        if paid > 1 or len(entries) > 1:
            return [f"paid {paid} times"]
        if not entries:
            return ["a paid request is in no ledger"] if paid else []
        status, billed, answered = entries[0]
        if saved == self.shape.images and status == "saved":
            remains = [*seedream.home.rglob("*.part"), *seedream.home.rglob("*.reply")]
            return [f"{path.name} was left" for path in remains]
        wrong = [] if status in {"unknown", "queued"} else [f"it is {status} with {saved} images"]
        # Only before an answer is on disk may a paid request be in doubt, and then it is in doubt.
        wrong += [f"{saved} images for one that is {status}"] if saved else []
        wrong += ["a reply that was on disk is lost"] if whole or answered else []
        wrong += ["what was paid for is said to be free"] if paid and billed == "no" else []
        return wrong


def _images(seedream: Forked) -> list[Path]:
    """What is there under a final name."""
    found = [path for path in seedream.folder.rglob("*") if path.is_file()]
    return [path for path in found if not path.name.startswith(".seedream-")]


def _half_files(seedream: Forked) -> list[str]:
    ends = (b"\xff\xd9", b"IEND\xaeB`\x82")
    images = (path for path in _images(seedream) if path.suffix in {".jpg", ".png"})
    return [f"{path.name} is half a file" for path in images if not path.read_bytes().endswith(ends)]


def _holds_whole_reply(seedream: Forked) -> bool:
    """Whether an answer that holds images is on disk, under its name or not yet."""
    bodies = [path.read_bytes() for end in ("part", "reply") for path in seedream.home.rglob(f"replies/*.{end}")]
    for journal in (path.read_bytes() for path in seedream.home.rglob("replies/*.journal")):
        places = range(PLACE - MOST, len(journal), PLACE)
        bodies += [journal[start : start + MOST] for start in places]
    for text in (body.rstrip(b"\0") for body in bodies):
        if text.startswith(b"event:") or (text.startswith(b"{") and _is_json(text)):
            return True
    return False


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _history(seedream: Forked) -> list[tuple[str, str, str | None]]:
    with sqlite3.connect(seedream.home / "state/ledger.db") as db:
        found = db.execute("SELECT state, billed, answered_at FROM requests").fetchall()
    db.close()
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_killed_at_every_step_nothing_is_paid_twice_or_lost(nursery: Nursery, tmp_path: Path, shape: str) -> None:
    """SIGKILL at step 1, 2, 3 … until a run ends untouched; after each, `recover` saves what an answer came for.

    The one window that no client can close is an answer that had not reached the disk: then the request is unknown,
    is never sent again, and is told as such. The steps are all writes, names, flushes and commits.
    """
    preview = Survey(shape, nursery, tmp_path)
    with preview.upstream:
        for number in range(preview.shape.first, MOST_STEPS):
            reached, wrong = preview.step(number)
            assert not wrong
            if not reached:
                assert number > preview.shape.first + 15, "the steps were not reached"
                return
    pytest.fail("the run never ended untouched")


def test_killed_again_while_it_recovers(nursery: Nursery, tmp_path: Path) -> None:
    """A run is killed once its reply is on disk, then `recover` at each of its steps, then `recover` saves it."""
    preview = Survey("one image", nursery, tmp_path)
    with preview.upstream:
        dead = preview.home("dead")
        number = 12
        while not _holds_whole_reply(dead):
            dead = preview.home(f"dead-{number}")
            number += 1
            assert preview.generate(dead, number) == -signal.SIGKILL
        paid = preview.upstream.paid()
        shutil.copytree(dead.home, tmp_path / "kept")
        for number in range(1, MOST_STEPS):
            shutil.rmtree(dead.home)
            shutil.copytree(tmp_path / "kept", dead.home)
            code = preview.recover(dead, number)
            if code == -signal.SIGKILL:
                assert not _half_files(dead)
                assert preview.recover(dead) == 0
            assert not preview.judge(dead, 1, whole=True), number
            assert preview.upstream.paid() == paid
            if code == 0:
                assert number > 12
                return
    pytest.fail("recover never ended untouched")


PLANTED = {
    "sends_before_it_writes": ("one image", 11),
    "downloads_before_it_writes": ("one image", 13),
    "forgets_before_it_writes": ("base64", 24),
    "replaces_what_is_there": ("one image", 17),
    "takes_orphans_for_new": ("one image", 12),
    "reads_no_remains": ("a stream", 12),
    "knows_no_image_again": ("one image", 18),
}
"""The shape of request that a bug shows in, and a step shortly before it does."""


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_seen(nursery: Nursery, tmp_path: Path, bug: str) -> None:
    """The survey finds something wrong with a tool that has a bug of this kind."""
    shape, first = PLANTED[bug]
    preview = Survey(shape, nursery, tmp_path, bug=bug)
    with preview.upstream:
        assert any(preview.step(number)[1] for number in range(first, first + 20)), "the bug was not seen"


class BatchSurvey:
    """Kills batches of three rows, at one step each, gives the same command again, and says what came out wrong."""

    rows = ("fox", "owl", "elk")

    def __init__(self, nursery: Nursery, tmp_path: Path, upstream: Upstream, bug: str = "") -> None:
        self.nursery = nursery
        self.tmp_path = tmp_path
        self.upstream = upstream
        self.bug: dict[str, Any] = {"plant": bug} if bug else {}

    def step(self, at: int | list[Any]) -> tuple[bool, list[str]]:
        """Kill one batch at a step, run it again. Whether the step was reached, and all that came out wrong."""
        seedream, before = Forked(self.tmp_path / str(at), self.nursery, hurried=True), len(self.upstream.bodies)
        (seedream.folder / "shots.csv").write_text("prompt\n" + "\n".join(self.rows) + "\n")
        args = ["batch", "shots.csv", "-p", "ark", "--base-url", self.upstream.url, "--concurrency", "2"]
        code = seedream(*args, env=KEYS, wounds={"kill": at, **self.bug}).code
        kept = [row for row in self.rows if _is_in_journal(seedream, self.upstream, row)]
        wrong = _half_files(seedream)
        if code != 0:
            wrong += [] if code == -signal.SIGKILL else [f"exit {code} instead of a death"]
            again = seedream(*args, env=KEYS, wounds=self.bug).code
            wrong += [] if again in {0, 7, 9} else [f"exit {again} of the second run"]
        paid = [body["prompt"] for body in self.upstream.bodies[before:]]
        wrong += _half_files(seedream) + self.judge(seedream, paid, kept)
        shutil.rmtree(seedream.home)
        return code != 0, [f"step {at}: {one}" for one in wrong]

    def judge(self, seedream: Forked, paid: list[str], kept: list[str]) -> list[str]:
        """What is wrong after the second run."""
        wrong = [f"{row} was paid {paid.count(row)} times" for row in self.rows if paid.count(row) > 1]
        with sqlite3.connect(seedream.folder / "shots/.seedream/ledger.db") as db:
            found = dict(db.execute("SELECT prompt, state FROM requests").fetchall())
            links = dict(db.execute("SELECT prompt, link FROM requests JOIN images ON requests.id = images.request"))
        db.close()
        for row in self.rows:
            saved = list((seedream.folder / "shots").glob(f"*-{row}.jpg"))
            if found.get(row) == "saved":
                wrong += [] if len(saved) == 1 and row in paid else [f"{row} has {len(saved)} files"]
                wrong += [] if links[row].endswith(f"&row={row}") else [f"{row} got the image of another"]
            elif found.get(row) != "unknown" or saved:
                wrong.append(f"{row} is {found.get(row)}")
            elif row in kept:
                wrong.append(f"the answer to {row} was on disk and is lost")
        remains = [path.name for path in (seedream.folder / "shots/.seedream/replies").iterdir()]
        return wrong + [f"{name} was left" for name in remains]


def _is_in_journal(seedream: Forked, upstream: Upstream, row: str) -> bool:
    """Whether a row's whole answer lies in the journal, and its links are not written down yet."""
    texts = [path.read_bytes() for path in seedream.home.rglob("*.journal")]
    return any(f"&row={row}".encode() in text for text in texts)


def _answer_for_a_row(upstream: Upstream) -> Callable[[Any, int], Any]:
    return lambda body, number: {"data": [{"url": f"{upstream.link(number)}&row={body['prompt']}"}]}


@pytest.mark.parametrize("first", range(1, 5))
def test_a_batch_killed_at_every_step_pays_no_row_twice(nursery: Nursery, tmp_path: Path, first: int) -> None:
    """SIGKILL at every fourth step of a batch, from each of the first four, then the same command again: each row has
    its own image, or is unknown because its answer had not reached the disk.
    """
    with Upstream() as upstream:
        upstream._reply = _answer_for_a_row(upstream)
        preview = BatchSurvey(nursery, tmp_path, upstream)
        for number in range(first, MOST_STEPS, 4):
            reached, wrong = preview.step(number)
            assert not wrong
            if not reached:
                assert number > 60, "the steps were not reached"
                return
    pytest.fail("the batch never ended untouched")


@pytest.mark.parametrize("bug", ["reads_no_journal", "takes_any_token"])
def test_a_planted_bug_of_the_journal_is_seen(nursery: Nursery, tmp_path: Path, bug: str) -> None:
    """The survey finds something wrong with a batch that has a bug of this kind."""
    with Upstream() as upstream:
        upstream._reply = _answer_for_a_row(upstream)
        preview = BatchSurvey(nursery, tmp_path, upstream, bug)
        # An answer gets into the journal soon after the first request is written down.
        assert any(preview.step(["sent", number])[1] for number in range(1, 30)), "the bug was not seen"


def test_a_lost_answer_is_not_asked_for_again(nursery: Nursery, tmp_path: Path) -> None:
    """One POST, exit 7, and none by `recover`, which has no better news; a tool that repeats it is seen."""
    for bug, posts in (({}, 1), ({"plant": "repeats_what_is_in_doubt"}, 2)):
        seedream = Forked(tmp_path / str(posts), nursery, hurried=True)
        with Upstream(script=lambda request, number: RESET) as upstream:
            args = ["generate", "a fox", "-p", "ark", "--base-url", upstream.url]
            assert seedream(*args, env=KEYS, wounds=bug).code == 7
            assert seedream("recover", env=KEYS).code == 7
            assert len(upstream.posts) == posts


# --- power cuts -------------------------------------------------------------------------------------------------------

_CALL = re.compile(r"^(?:\[pid +)?(\d+)[\] ] *(\w+)\((.*)")
_CALLS = "trace=fsync,fdatasync,write,pwrite64,writev,sendto,sendmsg,link,linkat,rename,renameat,renameat2"


def _order(seedream: Command, *command: str) -> list[str]:
    """What one run did out of order: what a power cut at the wrong moment would have made of it."""
    log = seedream.home / "strace"
    with Upstream() as upstream:
        args = ["generate", "a fox", "-p", "ark", "--base-url", upstream.url]
        strace = ["strace", "-f", "-y", "-e", _CALLS, "-s", "64", "-o", str(log), sys.executable, "-m", *command]
        done = subprocess.run(
            [*strace, *args], env={**seedream.env, **KEYS, "PYTHONPATH": str(ROOT)}, cwd=seedream.folder, check=False
        )
    assert done.returncode == 0
    unflushed: set[str] = set()
    wrong: list[str] = []
    nameless: dict[str, str] = {}
    published, named = 0, False
    for line in log.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if not match:
            continue
        call, rest = match[2], match[3]
        path = (re.search(r"^\d+<(.*?)>", rest) or ["", ""])[1]
        if call in {"fsync", "fdatasync"}:
            unflushed.discard(path)
            named = named and path != str(seedream.folder)
        elif call in {"write", "pwrite64", "writev"} and path.startswith(str(seedream.home)):
            wrong += ["an image was written down before its name was flushed"] if named and "ledger" in path else []
            unflushed.add(path)
        elif call.startswith("send") and ('"POST ' in rest or '"GET ' in rest):
            dirty = [one for one in unflushed if one.endswith(("-wal", ".reply"))]
            wrong += [f"a request left while {one} was not flushed" for one in dirty]
        elif call.startswith("link") and '"/proc/self/fd/' in rest:
            # A file without a name gets its first one.
            nameless[Path(re.findall(r'"([^"]*)"', rest)[-1]).name] = path
        elif call.startswith(("link", "rename")) and ".seedream-" in rest and '.jpg"' in rest:
            part = rest[rest.index(".seedream-") :].partition('"')[0]
            wrong += [f"{one} got its name unflushed" for one in unflushed if part in one or one == nameless.get(part)]
            published, named = published + 1, True
    assert published == 1
    return wrong


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace shows the order of flushes")
def test_the_order_survives_a_power_cut(tmp_path: Path) -> None:
    """Flushed are the ledger before a byte leaves, an image before its name, the folder before the books say saved.

    Each of the three, left out, is seen.
    """
    assert not _order(Command(tmp_path / "sound"), "seedream_cli")
    for bug in ("flushes_no_commit", "flushes_no_image", "flushes_no_folder"):
        assert _order(Command(tmp_path / bug), "tests.support.fork_server", bug), bug


# --- the same from outside --------------------------------------------------------------------------------------------


def test_the_next_run_fetches_what_a_dead_one_paid_for(nursery: Nursery, tmp_path: Path) -> None:
    """The same command after a crash sends its own request only, and saves the dead one's image on the way."""
    seedream = Forked(tmp_path, nursery, hurried=True)
    with Upstream() as upstream:
        args = ["generate", "a fox", "-p", "ark", "--base-url", upstream.url]
        # The steps of one image end near the fourteenth; each killed run leaves what the next ones fetch.
        for kill in (["link", 0], ["posix_fallocate", 0], *(["sent", step] for step in range(12))):
            assert seedream(*args, env=KEYS, wounds={"kill": kill}).code == -signal.SIGKILL
        # The server may still be reading what a dead one had sent.
        time.sleep(0.3)
        before = len(upstream.posts)
        done = seedream(*args, env=KEYS)
        assert done.code == 0, done.err
        assert len(done.paths) == 1, "only its own image is a result"
        assert len(upstream.posts) == before + 1
        statuses = [entry["status"] for entry in seedream("history", "--json").json["requests"]]
        assert not {"unsaved", "running", "submitted"} & set(statuses), statuses
        assert len(_images(seedream)) == statuses.count("succeeded")
        # A request is in doubt that was paid and lost its answer, or that died between its intent and its first byte.
        assert statuses.count("succeeded") <= len(upstream.posts) <= len(statuses) - statuses.count("unsent")


@pytest.mark.parametrize("seed", range(4))
def test_killed_from_outside_at_any_time(tmp_path: Path, nursery: Nursery, seed: int) -> None:
    """SIGKILL at a random moment of four requests: whole files only, and each request is paid once at the most."""
    rng = random.Random(seed)
    seedream = Forked(tmp_path / "home", nursery, hurried=True)
    with Upstream() as upstream:
        upstream.delay_s = 0.2
        run = seedream.popen("generate", "a fox", "-p", "ark", "--base-url", upstream.url, "-n", "4", env=KEYS)
        time.sleep(rng.random() * 0.6)
        run.kill()
        run.communicate()
        assert not _half_files(seedream)
        seedream("recover", env=KEYS)
        entries = seedream("history", "--json").json["requests"]
        assert len(upstream.posts) <= 4
        saved = [entry for entry in entries if entry["status"] == "succeeded"]
        assert len(_images(seedream)) == len(saved)
        assert all(entry["status"] in {"succeeded", "unknown", "unsent"} for entry in entries), entries
