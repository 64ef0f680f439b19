"""A folder that came from somebody else: nothing that is read out of it is believed, followed or paid for."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import CANARY, Command, Done
from tests.support.provider_server import Upstream
from tests.support.raw_server import answer

KEYS = {"ACEDATACLOUD_API_TOKEN": CANARY, "SEEDREAM_API_KEY": CANARY}


def write_table(seedream: Command, rows: int = 2, name: str = "shots.csv") -> None:
    """A table of so many rows."""
    (seedream.folder / name).write_text("id,prompt\n" + "".join(f"r{row},fox {row}\n" for row in range(1, rows + 1)))


def draw(seedream: Command, *more: str, provider: str = "sandbox", **options: Any) -> Done:
    """The plain command."""
    return seedream("batch", "shots.csv", "-p", provider, *more, **options)


def home_of(seedream: Command, folder: str = "shots") -> Path:
    """Where the batch's own files lie."""
    return seedream.folder / folder / ".seedream"


def change(ledger: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    """Write into a ledger as a stranger would."""
    with closing(sqlite3.connect(ledger)) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            db.execute(statement, values if "?" in statement else ())
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def plant_task(ledger: Path, url: str, **more: Any) -> None:
    """A copy of the first row, that no table has, as one which awaits a task at an address; its reply is kept."""
    row = {
        "id": "lost-1",
        "identity": "planted",
        "state": "ready",
        "billed": "unknown",
        "provider": "acedata",
        "base_url": url,
        "listed": None,
        "owner": None,
        "reply": None,
        **more,
    }
    with closing(sqlite3.connect(ledger)) as db:
        db.row_factory = sqlite3.Row
        old = dict(db.execute("SELECT * FROM requests ORDER BY number LIMIT 1").fetchone())
        new = {**old, **row, "number": None}
        db.execute(f"INSERT INTO requests VALUES ({','.join('?' * len(new))})", tuple(new.values()))
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    replies = ledger.parent / "replies"
    replies.mkdir(exist_ok=True)
    (replies / "lost-1.reply").write_text('{"task_id":"t-1"}')


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["batch", "dry run", "merge", "recover", "recover --task", "kept reply"])
def test_key_never_goes_to_an_address_out_of_a_ledger(seedream: Command, way: str) -> None:
    """A planted task, with every key in the environment: nobody is asked, and the address and the way on are told."""
    write_table(seedream)
    assert draw(seedream).code == 0
    with Upstream() as stranger:
        stranger._reply = stranger.acedata
        state = seedream.home / "state"
        if way.startswith("recover"):
            assert seedream("generate", "x", "-p", "sandbox").code == 0
            plant_task(state / "ledger.db", stranger.url, identity=None, task_id="t-1")
        else:
            plant_task(home_of(seedream) / "ledger.db", stranger.url)
        if way == "kept reply":
            replies = state / "replies"
            replies.mkdir()
            (replies / "stray-1.reply").write_text('{"task_id":"t-1"}')
            meta = {"provider": "acedata", "base_url": stranger.url}
            (replies / "stray-1.meta.json").write_text(json.dumps(meta))
        done = {
            "batch": lambda: draw(seedream, env=KEYS),
            "dry run": lambda: draw(seedream, "--dry-run", env=KEYS),
            "merge": lambda: seedream("batch", "--merge", "shots", "-o", "all", env=KEYS),
            "recover": lambda: seedream("recover", env=KEYS),
            "recover --task": lambda: seedream("recover", "--task", "t-1", "-p", "acedata", env=KEYS),
            "kept reply": lambda: seedream("recover", env=KEYS),
        }[way]()
        assert stranger.server.connections == 0
        if way in {"dry run", "merge"}:
            assert done.code == 0, done.err
            again = seedream("batch", "shots.csv", "-p", "sandbox", "-o", "all", env=KEYS) if way == "merge" else done
            assert (stranger.server.connections, again.code) == (0, 0), again.err
            return
        assert stranger.url in done.err
        assert "--base-url" in done.err
        assert done.code == (0 if way == "batch" else 7), done.err
        # It stays open: named by the user, the same address is asked.
        if way != "batch":
            named = ["recover", "-p", "acedata", "--base-url", stranger.url]
            done = seedream(*named, *(["--task", "t-1"] if way == "recover --task" else []), env=KEYS)
            assert done.code == 0, done.err
            assert {request.target for request in stranger.posts} == {b"/seedream/tasks"}


@pytest.mark.parametrize("named", [("-p", "ark"), ("-p", "ark", "--api-key-file", "key")])
def test_key_of_the_chosen_provider_never_goes_for_another_one_s_task(
    seedream: Command, named: tuple[str, ...]
) -> None:
    """The run is for one provider, at an address of the user's; a record speaks of another there, and of its task."""
    with Upstream() as own:
        own._reply = own.acedata
        assert seedream("generate", "x", "-p", "sandbox").code == 0
        plant_task(seedream.home / "state" / "ledger.db", own.url, identity=None, task_id="t-1")
        (seedream.folder / "key").write_text(CANARY)
        (seedream.folder / "key").chmod(0o600)
        done = seedream("recover", "lost-1", *named, "--base-url", own.url, env={"SEEDREAM_API_KEY": CANARY})
        (seedream.folder / "key").unlink()
        assert (done.code, own.server.connections) == (7, 0), done.err
        assert "[providers.acedata]" in done.err


def test_links_of_a_task_asked_at_the_named_address_are_saved(seedream: Command) -> None:
    """The setting of the user's own file names the address as well as an option does."""
    config = seedream.home / ".config" / "seedream"
    config.mkdir(parents=True)
    with Upstream() as own:
        own._reply = own.acedata
        (config / "config.toml").write_text(f'[providers.acedata]\nbase_url = "{own.url}"\n')
        write_table(seedream)
        assert draw(seedream).code == 0
        plant_task(home_of(seedream) / "ledger.db", own.url)
        done = draw(seedream, env=KEYS)
        assert done.code == 0, done.err
        assert [request.target for request in own.posts] == [b"/seedream/tasks"]
        assert len(own.gets) == 1


def test_task_of_a_listed_row_is_not_asked_after_elsewhere(seedream: Command) -> None:
    """A row of the table, whose record says that its task is at a stranger's: neither is asked, and nothing is paid."""
    write_table(seedream, 1)
    with Upstream() as own, Upstream() as stranger:
        own._reply = own.acedata
        first = draw(seedream, "--base-url", own.url, "--timeout", "1", provider="acedata", env=KEYS)
        assert first.code == 0, first.err
        posts = len(own.posts)
        change(
            home_of(seedream) / "ledger.db",
            "DELETE FROM images",
            "UPDATE requests SET state = 'waiting', task_id = '../t-1', base_url = ?",
            values=(stranger.url,),
        )
        done = draw(seedream, "--base-url", own.url, provider="acedata", env=KEYS)
        assert (done.code, stranger.server.connections, len(own.posts)) == (7, 0, posts), done.err
        assert stranger.url in done.err


def test_address_named_before_is_asked_for_what_this_user_began_and_for_no_folder(seedream: Command) -> None:
    """What `--base-url` named once is known for the user's own tasks, and for no folder's."""
    pending = answer(b'{"id":"t-1","created_at":1.5,"request":{"model":"m"}}')
    with Upstream() as own:
        own._reply = own.acedata
        own._script = lambda request, number: pending if request.target == b"/seedream/tasks" else None
        args = ["generate", "x", "-p", "acedata", "--base-url", own.url, "--timeout", "1"]
        left = seedream(*args, env=KEYS, hurried=True)
        assert left.code == 7, left.err
        own._script = None
        write_table(seedream)
        assert draw(seedream).code == 0
        plant_task(home_of(seedream) / "ledger.db", own.url)
        posts = len(own.posts)
        done = draw(seedream, env=KEYS)
        assert (done.code, len(own.posts)) == (0, posts), done.err
        elsewhere = seedream("recover", env={**KEYS, "HOME": str(seedream.home / "other")})
        assert (elsewhere.code, len(own.posts)) == (7, posts), elsewhere.err
        done = seedream("recover", env=KEYS)
        # The user's own is saved; what lies in the folder stays open.
        assert (done.code, len(done.paths), len(own.posts)) == (9, 1, posts + 1), done.err
        assert "task t-1 was not asked after" in done.err


# --- links, pipes and devices ---------------------------------------------------------------------------------------


def plant(place: Path, kind: str, victim: Path) -> None:
    """Put something else under a name of ours."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "dangling link":
        place.symlink_to(victim.with_name("not-there"))
    elif kind == "hard link":
        place.hardlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()


def fingerprint(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that is in a folder, with its modes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found[str(path)] = (stat.st_mode, path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
    return found


PLACES = [
    ("batch.lock", "link", "new"),
    ("batch.lock", "hard link", "old"),
    ("batch.lock", "pipe", "new"),
    ("batch.lock", "dangling link", "new"),
    ("ledger.db", "link", "new"),
    ("ledger.db", "hard link", "new"),
    ("ledger.db", "pipe", "new"),
    ("ledger.db", "folder", "new"),
    ("ledger.db", "dangling link", "old"),
    ("ledger.db.lock", "link", "new"),
    ("ledger.db-wal", "link", "old"),
    ("ledger.db-shm", "pipe", "old"),
    ("ledger.db-journal", "link", "new"),
    ("runs", "link", "old"),
    ("replies", "link", "old"),
    ("replies", "link", "new"),
    ("", "link", "new"),
    ("", "pipe", "new"),
]


@pytest.mark.parametrize(("name", "kind", "age"), PLACES)
def test_folder_with_a_planted_link_pipe_or_device_is_refused_unharmed(
    seedream: Command, name: str, kind: str, age: str
) -> None:
    """Nothing behind the name is emptied, renamed, removed or given another mode, nothing is paid, nothing hangs."""
    outside = seedream.home / "precious"
    outside.mkdir(mode=0o755)
    for one in ("file", "0123456789ab.journal", "x-1.part", "x-2.part", "x-1.reply", "r.lock"):
        (outside / one).write_bytes(b"precious\0\0" if one != "x-1.part" else b"")
    victim = outside if name in {"runs", "replies", ""} else outside / "file"
    write_table(seedream, 1)
    if age == "old":
        assert draw(seedream).code == 0
        write_table(seedream, 2)
    place = home_of(seedream) / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    plant(place, kind, victim)
    before = fingerprint(outside)
    done = draw(seedream, timeout=30)
    assert fingerprint(outside) == before
    assert (done.code, done.paths) == (74, []), done.err
    assert str(place.relative_to(seedream.folder)) in done.err
    assert ("cp -a" if kind == "hard link" else "remove it") in done.err
    place.unlink() if kind != "folder" else place.rmdir()


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_remains_of_replies_that_are_links_or_pipes_are_left(seedream: Command, kind: str) -> None:
    """Parts, replies, journals and what is known of them: swept, adopted and read only where they are files."""
    write_table(seedream, 1)
    assert draw(seedream).code == 0
    outside = seedream.home / "precious"
    outside.mkdir()
    for name in ("a-1.part", "a-2.reply", "a-2.meta.json", "a-3.journal", "a-4.meta.part"):
        (outside / name).write_bytes(b'{"task_id":"t"}\0\0')
        plant(home_of(seedream) / "replies" / name, kind, outside / name)
    before = {name: path[1] for name, path in fingerprint(outside).items()}
    done = draw(seedream, timeout=30)
    assert done.code == 0, done.err
    assert {name: path[1] for name, path in fingerprint(outside).items()} == before
    shutil.rmtree(home_of(seedream) / "replies")


def test_state_folder_may_be_a_link_of_the_user_s(seedream: Command) -> None:
    """Where the user's own records lie is the user's to say; what is in it is not to be a link."""
    (seedream.home / "disk").mkdir()
    (seedream.home / "state").symlink_to(seedream.home / "disk")
    assert seedream("generate", "x", "-p", "sandbox").code == 0
    assert (seedream.home / "disk" / "ledger.db").is_file()
    shutil.rmtree(seedream.home / "disk" / "replies", ignore_errors=True)
    (seedream.home / "disk" / "replies").symlink_to(seedream.home)
    done = seedream("generate", "x", "-p", "sandbox")
    assert done.code == 74, done.err
    (seedream.home / "disk" / "replies").unlink()


# --- a folder whose ledger is gone ----------------------------------------------------------------------------------


def count_images(seedream: Command, folder: str = "shots") -> int:
    """Every image in the folder and below."""
    return sum(path.suffix in {".jpg", ".png", ".jpeg"} for path in (seedream.folder / folder).rglob("*"))


@pytest.mark.parametrize("kind", ["emptied", "older", "older, elsewhere"])
def test_folder_with_an_older_ledger_pays_no_row_again(seedream: Command, kind: str) -> None:
    """An older or an emptied ledger beside newer results: nothing is sent, and the way is named."""
    write_table(seedream, 1)
    assert draw(seedream).code == 0
    ledger = home_of(seedream) / "ledger.db"
    older = ledger.read_bytes()
    write_table(seedream, 3)
    assert draw(seedream).code == 0
    newest = ledger.read_bytes()
    if kind == "emptied":
        change(ledger, "DELETE FROM images")
        change(ledger, "DELETE FROM requests")
    else:
        ledger.write_bytes(older)
    if kind == "older, elsewhere":
        (seedream.folder / "shots").rename(seedream.folder / "moved")
    folder = "moved" if kind == "older, elsewhere" else "shots"
    for more in ((), ("--dry-run",)):
        done = draw(seedream, "-o", folder, *more)
        assert (done.code, done.paths, count_images(seedream, folder)) == (2, [], 3), done.err
        assert "older one" in done.err
    (seedream.folder / folder / ".seedream/ledger.db").write_bytes(newest)
    done = draw(seedream, "-o", folder)
    assert (done.code, done.paths, count_images(seedream, folder)) == (0, [], 3), done.err


@pytest.mark.parametrize("gone", ["ledger", "home", "results too", "results elsewhere"])
@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_folder_without_its_ledger_pays_for_nothing_and_says_why(
    seedream: Command, gone: str, more: tuple[str, ...]
) -> None:
    """What was done or may have been paid is known to the ledger alone: the run stops, and names the way on."""
    write_table(seedream, 3)
    named = ("--results", "elsewhere.csv", "--name", "{slug}") if gone == "results elsewhere" else ()
    assert draw(seedream, *named).code == 0
    if gone == "ledger":
        for path in home_of(seedream).glob("ledger.db*"):
            path.unlink()
    else:
        shutil.rmtree(home_of(seedream))
    if gone == "results too":
        (seedream.folder / "shots" / "results.csv").unlink()
    if gone == "results elsewhere":
        for path in (seedream.folder / "shots").glob("*.*"):
            path.unlink()
    images = count_images(seedream)
    done = draw(seedream, *named, *more)
    assert (done.code, done.paths, count_images(seedream)) == (2, [], images), done.err
    assert "no ledger" in done.err
    assert "-o" in done.err
    assert not (home_of(seedream) / "ledger.db").exists()
    assert draw(seedream, "-o", "again", *more).code == 0


def test_unknown_row_without_its_ledger_is_not_sent_again(seedream: Command) -> None:
    """Results by which a row may have been paid, and no image at all."""
    write_table(seedream, 1)
    header = "id,prompt,status,path,error,provider_code,billed,cost,request_id\n"
    (seedream.folder / "shots").mkdir()
    place = seedream.folder / "shots" / "results.csv"
    place.write_text(header + "r1,fox 1,unknown,,lost,,unknown,0.035,\n")
    assert draw(seedream).code == 2
    place.write_text(header + "r1,fox 1,failed,,refused,x,no,,\n")
    assert draw(seedream).code == 0


def test_kept_reply_without_a_ledger_is_told_before_anything_is_paid(seedream: Command) -> None:
    """It may be all there is of a paid image."""
    write_table(seedream, 1)
    replies = home_of(seedream) / "replies"
    replies.mkdir(parents=True)
    (replies / "x-1.reply").write_text("{}")
    done = draw(seedream)
    assert (done.code, done.paths) == (2, []), done.err
    assert "x-1.reply" in done.err


def test_images_of_others_stand_in_the_way_only_until_that_is_said(seedream: Command) -> None:
    """Images by other names are no sign; those by the rows' own are, unless the command says what becomes of them."""
    write_table(seedream, 1)
    assert draw(seedream).code == 0
    shutil.rmtree(home_of(seedream))
    (seedream.folder / "shots" / "results.csv").unlink()
    [image] = (seedream.folder / "shots").iterdir()
    assert draw(seedream).code == 2
    done = draw(seedream, "--if-exists", "skip")
    assert (done.code, count_images(seedream)) == (0, 1), done.err
    shutil.rmtree(home_of(seedream))
    (seedream.folder / "shots" / "results.csv").unlink()
    image.rename(image.with_name("holiday.jpg"))
    done = draw(seedream)
    assert (done.code, count_images(seedream)) == (0, 2), done.err


# --- paths and rows out of a ledger ---------------------------------------------------------------------------------


def merge(seedream: Command) -> Done:
    """One shard's folder into a new one."""
    return seedream("batch", "--merge", "shots", "-o", "all")


@pytest.mark.parametrize("path", ["../../x.desktop", "..", "a/../../x.jpg", ".seedream/batch.lock", "..\\x.jpg"])
def test_path_out_of_a_ledger_that_leaves_its_folder_is_refused(seedream: Command, path: str) -> None:
    """Neither a merge nor the plain command writes, reads or pays anything."""
    write_table(seedream)
    assert draw(seedream).code == 0
    (seedream.home / "x.desktop").write_text("[Desktop Entry]")
    change(home_of(seedream) / "ledger.db", "UPDATE images SET path = ?", values=(path,))
    before = sorted(seedream.home.rglob("*"))
    for done in (merge(seedream), draw(seedream)):
        assert (done.code, done.paths) == (74, []), done.err
        assert "damaged" in done.err
    assert [path for path in sorted(seedream.home.rglob("*")) if path.suffix in {".desktop", ".jpg"}] == [
        path for path in before if path.suffix in {".desktop", ".jpg"}
    ]


@pytest.mark.parametrize("what", ["no image", "half an image", "half that is closed", "link out", "linked folder"])
def test_merge_takes_whole_images_of_the_folder_itself_alone(seedream: Command, what: str) -> None:
    """What is no image, or lies elsewhere, is left behind and told; its row is missing, and nothing is paid."""
    write_table(seedream)
    assert draw(seedream).code == 0
    [image, *_] = sorted((seedream.folder / "shots").glob("r1.*"))
    outside = seedream.folder / "outside"
    outside.mkdir()
    shutil.copy(image, outside / image.name)
    if what == "no image":
        image.write_text("[Desktop Entry]\nExec=sh")
    elif what == "half an image":
        image.write_bytes(image.read_bytes()[:200])
    elif what == "half that is closed":
        whole = image.read_bytes()
        assert whole[-2:] == b"\xff\xd9"
        image.write_bytes(whole[: len(whole) * 3 // 5] + b"\xff\xd9")
    else:
        image.unlink()
        link = image if what == "link out" else image.parent / "sub"
        link.symlink_to(outside / image.name if what == "link out" else outside)
        if what == "linked folder":
            values = (f"sub/{image.name}", image.name)
            change(home_of(seedream) / "ledger.db", "UPDATE images SET path = ? WHERE path = ?", values=values)
    done = merge(seedream)
    assert done.code == 9, done.err
    assert "left behind: 1 file" in done.err
    assert not list((seedream.folder / "all").rglob("r1.*"))
    assert len(list((seedream.folder / "all").rglob("r2.*"))) == 1
    for link in (image, image.parent / "sub"):
        link.unlink(missing_ok=True)


def test_merge_names_an_image_by_its_bytes(seedream: Command) -> None:
    """Whatever the ledger calls it."""
    write_table(seedream, 1)
    assert draw(seedream).code == 0
    [image] = (seedream.folder / "shots").glob("r1.*")
    image.rename(image.with_name("r1.desktop"))
    change(home_of(seedream) / "ledger.db", "UPDATE images SET path = 'r1.desktop'")
    done = merge(seedream)
    assert done.code == 0, done.err
    assert [path.name for path in (seedream.folder / "all").glob("r1*")] == [image.name]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE requests SET body = 'null'",
        "UPDATE requests SET fields = '[]'",
        "UPDATE requests SET worst_micro = -5000000",
        "UPDATE requests SET position = 9223372036854775807",
        "UPDATE requests SET state = 'sold'",
        "UPDATE requests SET id = '../../x'",
        "UPDATE requests SET prompt = x'00ff'",
        "UPDATE requests SET entered_at = 'tomorrow', state = 'failed'",
        "UPDATE images SET bytes = 'many'",
        "UPDATE images SET error = '{\"odd\":1}', state = 'failed'",
        "UPDATE runs SET id = '/etc'",
        "CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM requests; END",
        "CREATE VIEW v AS SELECT 1",
    ],
)
def test_ledger_with_rows_that_nobody_wrote_is_refused_in_one_line(seedream: Command, statement: str) -> None:
    """Odd types, sizes, states and names, and what does something by itself: no traceback, and nothing is paid."""
    write_table(seedream, 1)
    assert draw(seedream).code == 0
    change(home_of(seedream) / "ledger.db", statement)
    write_table(seedream, 2)
    done = draw(seedream)
    assert (done.code, done.paths) == (74, []), done.err
    assert sum(line.startswith("error:") for line in done.err.splitlines()) == 1
    assert "damaged" in done.err


@pytest.mark.parametrize("is_there", [True, False])
def test_merge_tells_of_an_image_at_an_absolute_path(seedream: Command, is_there: bool) -> None:
    """It lies in no shard's folder, so it is left behind, and the merged ledger names no place outside."""
    write_table(seedream, 1)
    assert draw(seedream).code == 0
    [image] = (seedream.folder / "shots").glob("r1.*")
    outside = seedream.home / image.name
    image.rename(outside)
    change(home_of(seedream) / "ledger.db", "UPDATE images SET path = ?", values=(str(outside),))
    if not is_there:
        outside.unlink()
    done = merge(seedream)
    assert done.code == 9, done.err
    assert "left behind: 1 file" in done.err
    with closing(sqlite3.connect(home_of(seedream, "all") / "ledger.db")) as db:
        assert db.execute("SELECT path FROM images").fetchall() == [(image.name,)]


# --- folders that are the user's after all --------------------------------------------------------------------------


def test_copy_by_hard_links_names_a_way_on_that_pays_nothing(seedream: Command) -> None:
    """`cp -al` and `rsync --link-dest`: what is shared is not written in, and nobody is told to remove what is paid."""
    write_table(seedream, 1)
    assert draw(seedream).code == 0
    shots = seedream.folder / "shots"
    shutil.copytree(shots, seedream.folder / "backup", copy_function=os.link)
    before = fingerprint(shots)
    for more in ((), ("-o", "backup"), ("--dry-run",)):
        done = draw(seedream, *more)
        assert (done.code, done.paths) == (74, []), done.err
        assert "cp -a" in done.err
        assert ": remove it" not in done.err
    assert fingerprint(shots) == before
    shutil.copytree(seedream.folder / "backup", seedream.folder / "copy")
    done = draw(seedream, "-o", "copy")
    assert (done.code, done.paths, count_images(seedream, "copy")) == (0, [], 1), done.err


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users of that kind")
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_batch_of_another_user_is_called_that_with_a_way_on(seedream: Command, more: tuple[str, ...]) -> None:
    """After `sudo seedream`, or a cache that was restored: the ledger is there, and is not to be removed."""
    write_table(seedream, 1)
    assert draw(seedream).code == 0
    as_other = (
        "import os, sys; from seedream_cli.cli import main; os.geteuid = lambda: 54321; sys.exit(main(sys.argv[1:]))"
    )
    args = [sys.executable, "-c", as_other, "batch", "shots.csv", "-p", "sandbox", *more]
    done = subprocess.run(
        args, check=False, cwd=seedream.folder, env=seedream.env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (74, ""), done.stderr
    assert "another user's folder" in done.stderr
    assert "chown" in done.stderr
    assert ": remove it" not in done.stderr


@pytest.mark.parametrize("target", ["../.bashrc", "/abs", "inside.toml"])
def test_settings_of_a_project_are_written_to_no_file_outside_of_it(seedream: Command, target: str) -> None:
    """A cloned repository may hold `seedream.toml` as a link to any file of the user's."""
    victim = seedream.home / ".bashrc"
    victim.write_text("# mine\n")
    inside = seedream.folder / "inside.toml"
    inside.write_text("# shared\n")
    link = seedream.folder / "seedream.toml"
    link.symlink_to(str(victim) if target == "/abs" else target)
    done = seedream("config", "set", "--project", "size", "4K")
    assert victim.read_text() == "# mine\n"
    assert link.is_symlink()
    if target == "inside.toml":
        assert done.code == 0, done.err
        assert 'size = "4K"' in inside.read_text()
    else:
        assert done.code == 3, done.err
        assert "leads out of its folder" in done.err
