"""The ledger: what may have been paid is written down before it happens, and survives whatever comes after."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import pytest

from seedream_cli.errors import ApiError, BudgetError, BusyError, FileError, InputError, InternalError
from seedream_cli.ledger import database, queries, records, schema
from seedream_cli.ledger.ledger import Ledger, lock_batch, open_ledger
from seedream_cli.ledger.records import Caps, ImageRow, NewRequest, State
from seedream_cli.ledger.runs import Run
from seedream_cli.ledger.schema import MIGRATIONS
from seedream_cli.ledger.transitions import TRANSITIONS
from seedream_cli.request.image_request import ImageRef
from seedream_cli.storage import filesystem

CANARY = 'sk-canary-"0123456789"-do-not-store'
NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
LOST = ApiError("no answer came", kind="unknown_outcome", billed="unknown", delivered="maybe")
REFUSED = ApiError("too dark", kind="moderation", code="Input.Sensitive", request_id="req-1")
LIMITED = ApiError("slow down", kind="rate_limited", retryable=True)
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="flock, rlimits and signals are POSIX's")


class Now:
    """A clock that the test winds."""

    def __init__(self) -> None:
        self.moment = NOON

    def __call__(self) -> dt.datetime:
        self.moment += dt.timedelta(milliseconds=1)
        return self.moment


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def ledger(path: Path, now: Now) -> Iterator[Ledger]:
    with open_ledger(path, now=now) as opened:
        yield opened


def new(name: str, *, position: int = 0, **more: Any) -> NewRequest:
    values: dict[str, Any] = {
        "id": name,
        "position": position,
        "provider": "ark",
        "base_url": "https://ark.example/api/v3",
        "model": "seedream-x",
        "prompt": f"a fox in {name}",
        "body": {"model": "seedream-x", "prompt": f"a fox in {name}", "watermark": False},
        "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
        "worst_micro": 40_000,
        **more,
    }
    return NewRequest(**values)


def send(ledger: Ledger, name: str, **more: Any) -> None:
    ledger.mark_sent(name, attempt=1, token=f"token-{name}", **more)


def one(ledger: Ledger, name: str) -> records.Entry:
    (entry,) = ledger.find(name)
    return entry


IN_HAND = "SELECT id FROM requests WHERE owner IS NOT NULL AND state IN ('sent', 'waiting', 'ready')"


def rows_of(ledger: Ledger, query: str) -> list[Any]:
    """What the file holds, by SQL."""
    return [tuple(row) for row in ledger._database.connection.execute(query)]


def save(ledger: Ledger, run: Run, name: str, *images: ImageRow, **more: Any) -> None:
    """A request's whole way."""
    ledger.enter(run, [new(name, **more)])
    send(ledger, name)
    ledger.mark_ready(name, [ImageRow(index=p.index, link="https://x/1") for p in images], settled_micro=30_000)
    for image in images:
        ledger.mark_image(name, image)
    ledger.mark_saved(name)


PRELUDE = """
    import datetime as dt, os, signal, sys, time
    from pathlib import Path
    from tests.ledger.test_ledger import *
    ledger = open_ledger(Path(sys.argv[1]), now=lambda: dt.datetime.now(dt.UTC))
"""


def child(code: str, *args: object, **more: Any) -> subprocess.Popen[str]:
    """Python in a process of its own, with the ledger `sys.argv[1]` open as `ledger`."""
    command = [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code), *map(str, args)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    said = []
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        said.append(out)
    return said


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_new_ledger_is_private_flushed_and_whole(path: Path, ledger: Ledger) -> None:
    """0600 in a 0700 folder, WAL with full flushes, foreign keys, and every migration on record with its time."""
    if os.name == "posix":
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {p.stat().st_mode & 0o777 for p in path.parent.iterdir() if p.is_file()} == {0o600}
    pragmas = {
        name: ledger._database.connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("synchronous", "foreign_keys")
    }
    assert (ledger.journal, pragmas) == ("wal", {"synchronous": 2, "foreign_keys": 1})
    assert ledger._database.connection.execute("PRAGMA busy_timeout").fetchone()[0] == 30_000
    recorded = ledger._database.connection.execute("SELECT name, at FROM migrations ORDER BY rowid").fetchall()
    assert [row["name"] for row in recorded] == [name for name, _ in MIGRATIONS]
    assert all(dt.datetime.fromisoformat(row["at"]) > NOON for row in recorded)
    assert ledger.check() == ()


def test_a_network_disk_gets_a_rollback_journal(path: Path, now: Now, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where WAL's shared memory cannot be trusted the journal is truncated instead, also for a ledger that had WAL."""
    open_ledger(path, now=now).close()
    monkeypatch.setattr(filesystem, "_file_system", lambda _: "nfs4")
    with open_ledger(path, now=now) as ledger, ledger.run("r", "generate") as run:
        assert ledger.journal == "truncate"
        ledger.enter(run, [new("r")])
        send(ledger, "r")
        assert one(ledger, "r").state == "sent"


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's table of mounts")
def test_file_systems_are_told_apart() -> None:
    """The type of the mount that a path lies on is found."""
    assert filesystem._file_system(Path("/proc/self")) == "proc"


@pytest.mark.parametrize("count", range(1, len(MIGRATIONS)))
def test_every_older_file_is_brought_up_to_date(count: int, path: Path, now: Now) -> None:
    """A file that has only the first migrations gets the rest, and its rows stay."""
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for name, statements in MIGRATIONS[:count]:
            for statement in statements:
                db.execute(statement)
            db.execute("INSERT INTO migrations VALUES (?, 'then')", (name,))
        db.execute("INSERT INTO runs VALUES ('old', 'generate', '2026-01-01T00:00:00+00:00', NULL, NULL, '0', '')")
        db.execute(
            "INSERT INTO requests(id, run, position, state, provider, base_url, model, body, fingerprint, fields, "
            "pictures_at_most, output, currency, as_of, entered_at, billed) VALUES ('old', 'old', 0, 'unknown', 'p', "
            "'u', 'm', '{}', 'f', '{}', 1, '{}', 'USD', '', '2026-01-01T00:00:00.000000+00:00', 'unknown')"
        )
    with open_ledger(path, now=now) as ledger, ledger.run("r", "generate") as run:
        assert one(ledger, "old").state == "unknown"
        save(ledger, run, "r", ImageRow(index=0, state="saved", path=Path("a.png")))
        assert [entry.id for entry in ledger.history()] == ["r", "old"]


def test_a_migration_and_its_record_are_one(path: Path, now: Now, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that fails half-way leaves neither its tables nor its record."""
    open_ledger(path, now=now).close()
    broken = ("later", ("CREATE TABLE later(x)", "CREATE TABLE nonsense("))
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
    with pytest.raises(FileError):
        open_ledger(path, now=now)
    monkeypatch.undo()
    with open_ledger(path, now=now) as ledger:
        assert not ledger._database.connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'later'").fetchone()


def test_a_newer_file_is_refused_and_left_alone(path: Path, now: Now) -> None:
    """Unknown migrations mean a newer tool: a clear refusal, exit 74, and not one byte changed."""
    open_ledger(path, now=now).close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO migrations VALUES ('colours', 'tomorrow')")
    before = path.read_bytes()
    with pytest.raises(FileError, match="written by a newer seedream") as caught:
        open_ledger(path, now=now)
    assert (caught.value.exit_code, "use that version, or move the file away") == (74, caught.value.hint)
    assert path.read_bytes() == before


def filled(path: Path) -> bytes:
    with open_ledger(path, now=Now()) as ledger, ledger.run("r", "batch") as run:
        ledger.enter(run, (new(f"r-{n}") for n in range(300)))
    return path.read_bytes()


def test_a_damaged_file_is_refused_with_a_way_out_and_never_begun_anew(path: Path) -> None:
    """Empty, cut anywhere, overwritten or foreign: always a `FileError`, and the file stays byte for byte."""
    whole = filled(path)
    half = len(whole) // 2
    damages = [b"", whole[:50], whole[:4096], whole[:half], whole[: half + 777], b"not a database" * 500]
    damages += [whole[:4096] + b"\xff" * (len(whole) - 4096), b"\0" * len(whole)]
    for damage in damages:
        path.write_bytes(damage)
        with pytest.raises(FileError) as caught, open_ledger(path, now=Now()) as ledger:
            ledger.history()
        assert str(path) in caught.value.message
        assert "move it away" in caught.value.hint
        assert (caught.value.billed, path.read_bytes()) == ("no", damage)


def test_damage_found_late_is_told_by_a_check(path: Path) -> None:
    """Pages overwritten in the middle: `check` names it, and whatever reads it raises `FileError`."""
    whole = bytearray(filled(path))
    middle = len(whole) // 2 // 4096 * 4096
    whole[middle:] = b"\xaa" * (len(whole) - middle)
    path.write_bytes(whole)
    with open_ledger(path, now=Now()) as ledger:
        assert ledger.check()
        with pytest.raises(FileError, match="damaged"):
            ledger.history()


def test_another_program_s_database_is_refused(path: Path, now: Now) -> None:
    """A sound database that is no ledger is not touched."""
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE migrations(id)")
    before = path.read_bytes()
    with pytest.raises(FileError, match="another program's database"):
        open_ledger(path, now=now)
    assert path.read_bytes() == before


def test_the_log_of_a_ledger_that_was_moved_away_is_not_played_into_the_new_one(path: Path) -> None:
    """Following the hint but forgetting the -wal file: the new ledger is empty and sound."""
    process = child("held = ledger.run('r', 'batch'); held.__enter__(); os.kill(os.getpid(), signal.SIGKILL)", path)
    process.communicate(timeout=30)
    assert path.with_name("ledger.db-wal").exists()
    path.rename(path.with_name("away"))
    with open_ledger(path, now=Now()) as ledger:
        assert (ledger.runs(), ledger.check()) == ((), ())


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, now: Now) -> None:
    """A folder where a file stands, and a folder as the ledger: exit 74 and the way on."""
    (tmp_path / "file").write_text("")
    (tmp_path / "ledger.db").mkdir()
    for place in (tmp_path / "file" / "ledger.db", tmp_path / "ledger.db"):
        with pytest.raises(FileError) as caught:
            open_ledger(place, now=now)
        assert caught.value.exit_code == 74
    with pytest.raises(FileError, match="cannot keep the ledger") as caught:
        open_ledger(tmp_path / "file" / "ledger.db", now=now)
    assert "writable" in caught.value.hint


# --- transitions ------------------------------------------------------------------------------------------------------

MOVES: Mapping[State, Callable[[Ledger, str], None]] = {
    "queued": lambda ledger, name: ledger.mark_queued(name, LIMITED),
    "sent": lambda ledger, name: send(ledger, name, again=True),
    "waiting": lambda ledger, name: ledger.mark_waiting(name, "task-1"),
    "ready": lambda ledger, name: ledger.mark_ready(name, []),
    "saved": lambda ledger, name: ledger.mark_saved(name),
    "failed": lambda ledger, name: ledger.mark_failed(name, REFUSED),
    "unknown": lambda ledger, name: ledger.mark_unknown(name, LOST),
    "resolved": lambda ledger, name: ledger.resolve([name], "paid"),
}


def test_the_table_is_what_the_methods_do(ledger: Ledger) -> None:
    """Every pair of states: a move of the table works, any other is an `InternalError` that changes nothing."""
    assert set(TRANSITIONS) == set(get_args(State))
    with ledger.run("r", "test") as run:
        for before, after in itertools.product(TRANSITIONS, TRANSITIONS):
            if after == "resolved":
                continue
            name = f"{before}-{after}"
            ledger.enter(run, [new(name)])
            ledger._database.connection.execute("UPDATE requests SET state = ? WHERE id = ?", (before, name))
            if after in TRANSITIONS[before]:
                MOVES[after](ledger, name)
                assert one(ledger, name).state == after
                continue
            with pytest.raises(InternalError):
                MOVES[after](ledger, name)
            assert one(ledger, name).state == before


def test_what_was_sent_is_not_sent_again_without_being_told_to(ledger: Ledger) -> None:
    """After an unknown end `mark_sent` needs `again`; then the doubt stays in the account and a note tells of it."""
    with ledger.run("r", "generate") as run:
        ledger.enter(run, [new("r")])
        send(ledger, "r")
        ledger.mark_unknown("r", LOST)
        with pytest.raises(InternalError, match="without being told to"):
            send(ledger, "r")
        send(ledger, "r", again=True)
        ledger.mark_ready("r", [], billed_count=1, settled_micro=30_000)
        ledger.mark_saved("r")
        entry = one(ledger, "r")
        assert (entry.attempts, entry.doubts, entry.billed, entry.error) == (2, 1, "yes", None)
        assert [note.what for note in ledger.notes("r")] == ["resent"]
        assert ledger.spent(run="r") == records.Spent(30_000, 0, 40_000, 0, "USD")


def test_a_refusal_after_a_doubt_does_not_make_it_new(ledger: Ledger) -> None:
    """First attempt in doubt, second refused and waiting for a third: a crash there must not look like never sent."""
    with ledger.run("r", "generate") as run:
        ledger.enter(run, [new("r")])
        send(ledger, "r")
        ledger.mark_unknown("r", LOST)
        send(ledger, "r", again=True)
        ledger.mark_queued("r", LIMITED)
        entry = one(ledger, "r")
        assert (entry.state, entry.billed, entry.doubts) == ("unknown", "unknown", 0)
        assert ledger.spent(run="r").possible == 40_000


def test_a_request_belongs_to_the_run_that_has_it(path: Path, ledger: Ledger) -> None:
    """No process moves what it has not in hand, and none takes what another living one has."""
    with open_ledger(path, now=Now()) as other, ledger.run("a", "generate") as run, other.run("b", "recover") as second:
        ledger.enter(run, [new("a")])
        with pytest.raises(InternalError, match="not in the hands"):
            send(other, "a")
        assert other.take(second, ["a"]) == ()
        run.finish(0)
        assert [entry.owner for entry in other.take(second, ["a"])] == ["b"]
        with pytest.raises(InternalError):
            ledger.enter(run, [new("a")])


def test_all_that_is_told_comes_back(ledger: Ledger, tmp_path: Path) -> None:
    """A request's every column survives: odd text, references without their bytes, paths that are no UTF-8."""
    odd = Path(os.fsdecode(b"/tmp/\xff.png")) if os.name == "posix" else tmp_path / "a.png"
    reference = ImageRef("file", "ref.png", path=tmp_path / "ref.png", sha256="ab" * 32, size=12)
    body = MappingProxyType({"prompt": "half \ud800", "image": [reference, ImageRef("url", "https://x/y.png")]})
    with ledger.run("r", "edit", folder="/home") as run:
        entry = new("r", prompt="雪 half \ud800", body=body, fields={"slug": "雪"}, output={"folder": "/o"}, line=3)
        ledger.enter(run, [entry])
        send(ledger, "r")
        ledger.mark_waiting("r", "task-9", trace="t-1")
        image = ImageRow(index=0, link="https://x/1?X=%2f", expires=1_800_000_000)
        bad = ImageRow(index=1, state="failed", error=records.Failure("moderation", "too dark"))
        ledger.mark_ready("r", [image, bad], usage={"generated_images": 1}, billed_count=1, settled_micro=40_000)
        ledger.mark_image("r", ImageRow(index=0, state="saved", path=odd, format="png", width=2, bytes=9, sha256="c"))
        ledger.mark_saved("r")
        run.finish(9)
    told = one(ledger, "r")
    assert (told.prompt, told.body["prompt"]) == ("雪 half \\ud800", "half \ud800")
    assert told.body["image"] == [{"file": "ref.png", "sha256": "ab" * 32, "bytes": 12}, "https://x/y.png"]
    assert (told.status, told.task_id, told.trace, told.line, told.usage) == (
        "partial",
        "task-9",
        "t-1",
        3,
        {"generated_images": 1},
    )
    assert told.images[0] == ImageRow(
        index=0,
        state="saved",
        link="https://x/1?X=%2f",
        expires=1_800_000_000,
        path=odd,
        format="png",
        width=2,
        bytes=9,
        sha256="c",
    )
    assert told.images[1] == bad
    assert told.entered_at < told.sent_at < told.answered_at < told.finished_at  # type: ignore[operator]
    assert [row.folder for row in ledger.runs()] == ["/home"]
    assert rows_of(ledger, "SELECT command, exit_code FROM runs") == [("edit", 9)]


def test_saved_means_no_image_is_left_behind(ledger: Ledger) -> None:
    """A pending image keeps a request `ready` whatever is said; saved ones stay saved, and lost files come back."""
    with ledger.run("r", "generate") as run:
        ledger.enter(run, [new("r")])
        send(ledger, "r")
        ledger.mark_image("r", ImageRow(index=0, state="saved", path=Path("0.png")))
        ledger.mark_ready("r", [ImageRow(index=n, link="l") for n in (0, 1)])
        with pytest.raises(InternalError, match="not saved"):
            ledger.mark_saved("r")
        ledger.mark_failed("r", REFUSED)
        ledger.mark_unknown("r", LOST)
        told = one(ledger, "r")
        assert (told.state, told.billed, told.error and told.error.code) == ("ready", "yes", "unknown_outcome")
        assert [p.state for p in one(ledger, "r").images] == ["saved", "pending"]
        ledger.mark_image("r", ImageRow(index=1, state="handed"))
        ledger.mark_saved("r")
        assert ledger.take(run, ["r"])
        ledger.mark_missing("r", [0])
        assert [entry.id for entry in ledger.unsaved()] == []
    assert [(e.status, [p.state for p in e.images]) for e in ledger.unsaved()] == [("unsaved", ["pending", "handed"])]


# --- dying ------------------------------------------------------------------------------------------------------------

DRIVER = """
    def step(name):
        if os.environ["STEP"] == name:
            os.kill(os.getpid(), signal.SIGKILL)

    replies = Path(sys.argv[2])
    with ledger.run("r", "generate") as run:
        step("begun")
        ledger.enter(run, [new("r")])
        step("entered")
        ledger.mark_sent("r", attempt=1, token="t", reserve=records.Reservation(40_000, Caps(run=1_000_000)))
        step("sent")
        (replies / "r.part").write_text("{}")
        step("answer in a part")
        (replies / "r.part").rename(replies / "r.reply")
        step("answer kept")
        ledger.mark_waiting("r", "task-1")
        step("waiting")
        ledger.mark_ready("r", [ImageRow(index=0, link="l")], settled_micro=30_000)
        step("ready")
        ledger.mark_image("r", ImageRow(index=0, state="saved", path=Path("0.png")))
        step("image")
        ledger.mark_saved("r")
        step("saved")
        run.finish(0)
        step("finished")
"""
AFTER = {
    "begun": None,
    "entered": ("queued", "no", 0),
    "sent": ("unknown", "unknown", 40_000),
    "answer in a part": ("ready", "unknown", 40_000),
    "answer kept": ("ready", "unknown", 40_000),
    "waiting": ("waiting", "unknown", 40_000),
    "ready": ("ready", "yes", 30_000),
    "image": ("ready", "yes", 30_000),
    "saved": ("saved", "yes", 30_000),
    "finished": ("saved", "yes", 30_000),
}


@POSIX
@pytest.mark.parametrize("step", AFTER)
def test_killed_at_a_step_the_next_run_knows_the_truth(step: str, path: Path, tmp_path: Path, now: Now) -> None:
    """SIGKILL after each step: state, billing and money are what they must be, and everything can go on."""
    process = child(DRIVER, path, tmp_path, env={**os.environ, "STEP": step})
    assert (process.communicate(timeout=30)[1], process.returncode) == ("", -signal.SIGKILL)

    def adopt(name: str, token: str) -> Path | None:
        part = tmp_path / f"{name}.part"
        return part.rename(tmp_path / f"{name}.reply") if part.exists() else None

    with open_ledger(path, now=now) as ledger:
        assert ledger.check() == ()
        orphans = rows_of(ledger, IN_HAND)
        assert orphans == ([("r",)] if step in {"sent", "answer in a part", "answer kept"} | IN_FLIGHT else [])
        settled = ledger.recover_orphans(tmp_path, adopt)
        assert (settled.ready, settled.unknown) == (
            ("r",) if step.startswith("answer") else (),
            ("r",) if step == "sent" else (),
        )
        assert (rows_of(ledger, IN_HAND), ledger.recover_orphans(tmp_path, adopt)) == ([], records.RecoveredOrphans())
        assert not list((path.parent / "runs").iterdir())
        if AFTER[step] is None:
            assert ledger.history() == ()
            return
        entry = one(ledger, "r")
        assert (entry.state, entry.billed, ledger.spent().total) == AFTER[step]
        assert [e.id for e in ledger.unsaved()] == (["r"] if entry.state in {"waiting", "ready"} else [])
        assert entry.error is None or "may have been billed" in entry.error.message
        with ledger.run("second", "recover") as run:
            assert ledger.take(run, ["r"])


IN_FLIGHT = {"waiting", "ready", "image"}


@POSIX
def test_a_full_disk_at_the_gate_is_a_file_error(path: Path) -> None:
    """RLIMIT_FSIZE inside `mark_sent`: exit 74, nothing billed, the row is queued; after the answer it is exit 8."""
    code = """
        import resource
        def full(on):
            wal = Path(f"{path}-wal")
            limit = wal.stat().st_size + 100 if on else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        path = Path(sys.argv[1])
        with ledger.run("r", "generate") as run:
            ledger.enter(run, [new("r")])
            full(True)
            try:
                send(ledger, "r")
            except FileError as error:
                print(error.exit_code, error.billed, one(ledger, "r").state, error.message)
            full(False)
            send(ledger, "r")
            full(True)
            try:
                ledger.mark_ready("r", [ImageRow(index=0, link="l" * 9000)])
            except FileError as error:
                print(error.exit_code, error.billed, one(ledger, "r").state)
            full(False)
            ledger.mark_ready("r", [])
    """
    (said,) = finish(child(code, path))
    lines = said.splitlines()
    assert lines[0].startswith(f"74 no queued cannot write the ledger {path}: ")
    assert lines[1] == "8 yes sent"


def test_a_stranger_s_lock_is_a_file_error(
    path: Path, ledger: Ledger, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that never ends: `FileError` after the timeout, and nothing is sent."""
    monkeypatch.setattr(database, "_BUSY_S", 0.05)
    with open_ledger(path, now=now) as hasty, hasty.run("r", "generate") as run:
        hasty.enter(run, [new("r")])
        ledger._database.connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(FileError, match="locked"):
            send(hasty, "r")
        ledger._database.connection.execute("ROLLBACK")
        send(hasty, "r")


# --- several processes ------------------------------------------------------------------------------------------------


@POSIX
def test_eight_processes_share_one_new_ledger(path: Path) -> None:
    """Born, written and closed by eight at once, again and again: every row is there, no error, no remains."""
    code = """
        ledger.close()
        for number in range(8):
            with open_ledger(Path(sys.argv[1]), now=Now()) as ledger, ledger.run(f"{sys.argv[2]}-{number}", "x") as run:
                save(ledger, run, run.id, ImageRow(index=0, state="saved", path=Path("a")))
                run.finish(0)
    """
    finish(*(child(code, path, f"p{number}") for number in range(8)))
    with open_ledger(path, now=Now()) as ledger:
        assert (len(ledger.history()), len(ledger.runs(limit=None)), ledger.check()) == (64, 64, ())
        assert {entry.status for entry in ledger.history()} == {"succeeded"}
    assert sorted(p.name for p in path.parent.iterdir()) == ["ledger.db", "ledger.db.lock", "runs"]


def test_each_row_is_claimed_once_in_its_order(ledger: Ledger) -> None:
    """Eight threads that claim from one table get every row exactly once, each in the table's order."""
    with ledger.run("table", "batch") as run:
        ledger.enter(run, (new(f"q-{n}", position=n, identity=f"i{n}") for n in range(200)))

        def work(_: int) -> list[int]:
            mine: list[int] = []
            while rows := list(itertools.islice(ledger.unsent(run), 3)):
                claimed = ledger.claim(run, [row.id for row in rows])
                mine += [row.position for row in rows if row.id in claimed]
            return mine

        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(work, range(8)))
        assert sorted(n for part in parts for n in part) == list(range(200))
        assert all(part == sorted(part) for part in parts)
        assert rows_of(ledger, "SELECT state, count(*) FROM requests GROUP BY state") == [("queued", 200)]


@POSIX
def test_what_is_to_be_recovered_is_taken_once(path: Path, ledger: Ledger) -> None:
    """Four processes that take all that is unsaved share it out; the dead owner's rows are free to take."""
    with ledger.run("r", "generate") as run:
        ledger.enter(run, [new(f"q-{n}") for n in range(60)])
        for n in range(60):
            send(ledger, f"q-{n}")
            ledger.mark_ready(f"q-{n}", [ImageRow(index=0, link="l")])
    code = """
        with ledger.run(sys.argv[2], "recover") as run:
            print(*(entry.id for entry in ledger.take(run, [entry.id for entry in ledger.unsaved()])))
            sys.stdout.flush()
            while len(ledger.runs()) < 5:
                time.sleep(0.01)
            time.sleep(0.3)
    """
    said = finish(*(child(code, path, f"c{n}") for n in range(4)))
    assert sorted(" ".join(said).split()) == sorted(f"q-{n}" for n in range(60))


@POSIX
def test_orphans_of_the_dead_are_settled_once_and_the_living_left_alone(path: Path, ledger: Ledger) -> None:
    """Three dead runs and a living one: four settlers share out the dead ones' requests, none touches the other's."""
    die = """
        held = ledger.run(sys.argv[2], "x")
        run = held.__enter__()
        ledger.enter(run, [new(run.id)])
        send(ledger, run.id)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    for name in ("d1", "d2", "d3"):
        assert child(die, path, name).communicate(timeout=30) == ("", "")
    with ledger.run("alive", "generate") as run:
        ledger.enter(run, [new("alive")])
        send(ledger, "alive")
        assert [one(ledger, name).status for name in ("d1", "d2", "d3")] == ["running"] * 3
        code = """
            # A slow look for the reply makes the settlers meet.
            settled = ledger.recover_orphans(Path("nowhere"), lambda name, token: time.sleep(0.1))
            print(*settled.unknown)
        """
        said = finish(*(child(code, path) for _ in range(4)))
        assert sorted(" ".join(said).split()) == ["d1", "d2", "d3"]
        assert (one(ledger, "alive").status, one(ledger, "d2").status) == ("running", "unknown")
        ledger.mark_ready("alive", [])


@POSIX
def test_a_batch_is_held_by_one_process(tmp_path: Path) -> None:
    """The second gets 75 at once, with the holder's number; after a kill the batch is free again."""
    code = "with lock_batch(Path(sys.argv[2])):\n        print('held', flush=True); time.sleep(60)"
    process = child(code, tmp_path / "a" / "ledger.db", tmp_path / "b")
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=f"process {process.pid}") as caught, lock_batch(tmp_path / "b"):
        pass
    # Its holder is still there: nobody waited for it to go.
    assert (caught.value.exit_code, process.poll()) == (75, None)
    process.kill()
    process.communicate()
    with lock_batch(tmp_path / "b"), pytest.raises(BusyError), lock_batch(tmp_path / "b"):
        pass


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_that_comes_again_adds_only_what_is_new(ledger: Ledger) -> None:
    """Reordered and edited: known rows keep id and state and get their new line, dropped ones are not claimed."""

    def rows(run: str, *names: str) -> Iterator[NewRequest]:
        for n, name in enumerate(names):
            yield new(f"{run}-{n}", position=n, line=n + 2, identity=name, occurrence=names[:n].count(name), prompt=run)

    with ledger.run("a", "batch") as run:
        assert ledger.enter(run, rows("a", "fox", "fox", "owl", "elk")) == records.Entered(4, 0)
        for name in sorted(ledger.claim(run, ["a-0", "a-1"])):
            send(ledger, name)
            ledger.mark_ready(name, [])
            ledger.mark_saved(name)
    with ledger.run("b", "batch") as run:
        assert ledger.enter(run, rows("b", "owl", "yak", "fox", "fox")) == records.Entered(1, 3)
        told = [(e.id, e.position, e.line, e.state, e.prompt) for e in ledger.listed(run)]
        assert told == [
            ("a-2", 0, 2, "queued", "b"),
            ("b-1", 1, 3, "queued", "b"),
            ("a-0", 2, 4, "saved", "a"),
            ("a-1", 3, 5, "saved", "a"),
        ]
        assert [e.id for e in ledger.listed(run, ["saved"])] == ["a-0", "a-1"]
        assert [e.state for e in ledger.listed(run)] == ["queued", "queued", "saved", "saved"]
        assert [(e.id, e.position, e.occurrence) for e in ledger.unsent(run)] == [("a-2", 0, 0), ("b-1", 1, 0)]
        assert ledger.claim(run, ["a-2", "b-1", "a-0"]) == {"a-2", "b-1"}
        assert not list(ledger.unsent(run))
        assert ledger.row("fox", 1) == one(ledger, "a-1")
        assert ledger.row("fox", 2) is None


def test_a_long_table_is_entered_in_chunks_of_flat_memory(ledger: Ledger) -> None:
    """The iterator is never more than a chunk ahead of what is written."""
    seen = []

    def rows() -> Iterator[NewRequest]:
        for n in range(5000):
            if n % 1000 == 0:
                seen.append(n - ledger._database.connection.execute("SELECT count(*) FROM requests").fetchone()[0])
            yield new(f"q-{n}", position=n, identity=str(n))

    began = time.perf_counter()
    with ledger.run("r", "batch") as run:
        ledger.enter(run, rows())
        print(f"5000 rows entered in {time.perf_counter() - began:.2f} s")
        assert max(seen) <= queries.CHUNK
        assert [entry.position for entry in ledger.listed(run)] == list(range(5000))


# --- money ------------------------------------------------------------------------------------------------------------


def test_money_follows_the_request(ledger: Ledger) -> None:
    """Reserved, possible, paid by what is settled; nothing for a refusal; an unknown price is counted, not summed."""
    caps = Caps(run=1_000_000, daily=1_000_000)
    with ledger.run("r", "generate") as run:
        names = ("free", "lost", "made", "none")
        ledger.enter(run, [*(new(n) for n in names), new("dear", worst_micro=None), new("yen", currency="CNY")])
        for name in names:
            send(ledger, name, reserve=records.Reservation(40_000, caps))
            ledger.mark_queued(name, REFUSED)
        with pytest.raises(BudgetError, match="not known"):
            send(ledger, "dear", reserve=records.Reservation(None, caps))
        send(ledger, "dear", reserve=records.Reservation(None, Caps()))
        # One that is tried again holds what it held.
        assert ledger.spent(run="r") == records.Spent(0, 160_000, 0, 1, "USD")
        for name in (*names, "yen"):
            send(ledger, name, reserve=records.Reservation(40_000, caps))
        assert ledger.spent(run="r") == records.Spent(0, 160_000, 0, 2, "USD")
        ledger.mark_failed("free", REFUSED)
        ledger.mark_unknown("lost", LOST)
        ledger.mark_ready("made", [], billed_count=1, settled_micro=30_000)
        ledger.mark_ready("none", [], billed_count=0)
        assert ledger.spent(run="r") == records.Spent(30_000, 0, 40_000, 2, "USD")
        assert ledger.spent(since=ledger.today()) == ledger.spent()
        assert ledger.spent(currency="CNY") == records.Spent(0, 40_000, 0, 3, "CNY")


def test_caps_count_what_is_spent_held_and_in_doubt(ledger: Ledger) -> None:
    """The next request may reach a cap but not pass it; the refusal (exit 10) names the sums and holds nothing."""
    with ledger.run("r", "generate") as run:
        ledger.enter(run, [new(name) for name in ("paid", "lost", "held", "next")])
        send(ledger, "paid")
        ledger.mark_ready("paid", [], settled_micro=35_000)
        send(ledger, "lost")
        ledger.mark_unknown("lost", LOST)
        send(ledger, "held", reserve=records.Reservation(40_000, Caps()))
        for caps, named in ((Caps(run=154_999), "--max-cost"), (Caps(daily=154_999), "daily")):
            with pytest.raises(BudgetError) as caught:
                send(ledger, "next", reserve=records.Reservation(40_000, caps))
            assert (caught.value.exit_code, named in caught.value.hint) == (10, True)
            for part in ("up to 0.04 USD", "0.035 USD spent", "0.04 USD reserved", "0.04 USD possibly", "0.154999 USD"):
                assert part in caught.value.message
        assert ledger.spent(run="r").total == 115_000
        send(ledger, "next", reserve=records.Reservation(40_000, Caps(run=155_000, daily=155_000)))
        ledger.mark_queued("next", REFUSED)
        ledger.mark_queued("held", REFUSED)
    assert ledger.spent(run="r") == records.Spent(35_000, 0, 40_000, 0, "USD"), "a run that ended holds no reservation"


def test_a_long_run_under_a_budget_does_not_add_up_all_of_it_again(ledger: Ledger, path: Path, now: Now) -> None:
    """The sum is made once while there is room, anew near the cap, and whenever another process has written."""
    sums: list[str] = []
    caps = Caps(run=2_000_000, daily=3_000_000)
    with ledger.run("r", "generate") as run:
        ledger.enter(run, [new(f"r-{n}") for n in range(60)])
        ledger._database.connection.set_trace_callback(
            lambda statement: sums.append(statement) if "sum((" in statement else None
        )
        for n in range(40):
            ledger.mark_sent(f"r-{n}", attempt=1, token="t", reserve=records.Reservation(40_000, caps))
            ledger.mark_ready(f"r-{n}", [], settled_micro=30_000)
        assert len(sums) == 2, "once for the run, once for the day"
        # 40 of 0.03 are paid, so 20 of 0.04 fit under 2.00, though what was held first would leave no room for them.
        for n in range(40, 60):
            ledger.mark_sent(f"r-{n}", attempt=1, token="t", reserve=records.Reservation(40_000, caps))
        assert ledger.spent(run="r").total == 2_000_000
        ledger.enter(run, [new("more")])
        with pytest.raises(BudgetError):
            ledger.mark_sent("more", attempt=1, token="t", reserve=records.Reservation(40_000, caps))
        with open_ledger(path, now=now) as other:
            other.record_external_charge("elsewhere", 980_000, caps=Caps())
        with pytest.raises(BudgetError, match="today"):
            ledger.mark_sent("more", attempt=1, token="t", reserve=records.Reservation(40_000, Caps(daily=3_000_000)))


def test_a_budget_counts_what_is_sent_again_with_its_past(ledger: Ledger) -> None:
    """What may have been paid before comes into the account of the run that sends it once more, and counts there."""
    names = [f"r-{n}" for n in range(20)]
    with ledger.run("first", "batch") as run:
        ledger.enter(run, [new(name, identity=name) for name in names])
        ledger.claim(run, names)
        for name in names:
            send(ledger, name)
            ledger.mark_unknown(name, LOST)
    caps, sent = Caps(run=600_000), 0
    with ledger.run("second", "batch") as run:
        ledger.take(run, names)
        with contextlib.suppress(BudgetError):
            for name in names:
                send(ledger, name, again=True, reserve=records.Reservation(40_000, caps))
                sent += 1
        # Each holds 0.04, which must have room, and brings as much of doubt with it, which the next one finds there.
        assert (sent, ledger.spent(run="second").total) == (8, 640_000)


def test_the_daily_budget_is_of_today_over_all_runs(ledger: Ledger, now: Now) -> None:
    """Another run's cost of today counts, yesterday's does not; so do external charges, and a purge keeps them."""
    caps = Caps(daily=100_000)
    with ledger.run("a", "generate") as run:
        save(ledger, run, "a", ImageRow(index=0, state="saved", path=Path("a")))
    now.moment += dt.timedelta(days=1)
    with ledger.run("b", "generate") as run:
        save(ledger, run, "b", ImageRow(index=0, state="saved", path=Path("b")))
    ledger.record_external_charge("batch/1", 40_000, caps=caps)
    with pytest.raises(BudgetError):
        ledger.record_external_charge("batch/2", 40_000, caps=caps)
    ledger.record_external_charge("batch/1", 30_000, caps=caps)
    ledger.record_external_charge("batch/2", 40_000, caps=caps)
    assert ledger.spent(since=ledger.today()).total == 100_000
    assert ledger.purge(before=None) == records.Purged(2, 0)
    assert (ledger.history(), ledger.spent(since=ledger.today()).total) == ((), 100_000)
    ledger.record_external_charge("batch/2", 0, caps=caps)
    assert ledger.spent().total == 60_000


@POSIX
def test_a_daily_budget_holds_across_processes(path: Path, ledger: Ledger) -> None:
    """Eight processes race for ten reservations of 0.04 USD under a budget of 0.40 USD: ten get through."""
    code = """
        with ledger.run(sys.argv[2], "generate") as run:
            ledger.enter(run, [new(f"{run.id}-{n}") for n in range(4)])
            got = 0
            for n in range(4):
                try:
                    send(ledger, f"{run.id}-{n}", reserve=records.Reservation(40_000, Caps(run=10**9, daily=400_000)))
                except BudgetError:
                    continue
                got += 1
            print(got)
    """
    said = finish(*(child(code, path, f"p{number}") for number in range(8)))
    assert sum(map(int, said)) == 10
    assert ledger.spent(since=dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)).total == 400_000


def test_a_person_settles_what_is_in_doubt(ledger: Ledger) -> None:
    """`paid` counts and stays ended, `unpaid` is like new; a doubt beside a saved request is settled alone."""
    with ledger.run("r", "generate") as run:
        ledger.enter(run, [new(name) for name in ("yes", "no", "both", "out")])
        for name in ("yes", "no", "both"):
            send(ledger, name)
            ledger.mark_unknown(name, LOST)
        send(ledger, "both", again=True)
        ledger.mark_ready("both", [], settled_micro=30_000)
        ledger.mark_saved("both")
        with pytest.raises(InputError, match="in the hands of a run"):
            ledger.resolve(["yes"], "paid")
    ledger.resolve(["yes", "both"], "paid", by="ann")
    ledger.resolve(["no"], "unpaid")
    told = {entry.id: (entry.state, entry.billed, entry.status) for entry in ledger.history()}
    assert told["yes"] == ("resolved", "yes", "resolved")
    assert told["no"] == ("queued", "no", "unsent")
    assert told["both"] == ("saved", "yes", "succeeded")
    assert ledger.spent() == records.Spent(40_000 + 70_000, 0, 0, 0, "USD")
    assert [note.detail for note in ledger.notes("yes")] == ["paid, by ann; it was unknown"]
    with pytest.raises(InputError) as caught:
        ledger.resolve(["yes", "out", "nobody"], "unpaid")
    assert [problem.message.split()[0] for problem in caught.value.problems] == ["out", "the"]
    assert one(ledger, "yes").state == "resolved", "all or none"


# --- history ----------------------------------------------------------------------------------------------------------


def test_history_is_searched_by_what_users_remember(ledger: Ledger, now: Now) -> None:
    """Text in any case and script, dates, provider, status; newest first and limited."""
    with ledger.run("r", "generate") as run:
        save(ledger, run, "fox", ImageRow(index=0, state="saved", path=Path("out/Füchse.png")), prompt="ein FUCHS")
        now.moment += dt.timedelta(days=1)
        morning = now.moment
        two = (ImageRow(index=0, state="failed"), ImageRow(index=1, state="saved", path=Path("b.png")))
        save(ledger, run, "part", *two, prompt="雪山 50%_", provider="byteplus")
        ledger.enter(run, [new("new")])

    def ids(text: str | None = None, **more: Any) -> list[str]:
        return [entry.id for entry in ledger.history(text, **more)]

    assert ids() == ["new", "part", "fox"]
    assert ids(limit=2) == ["new", "part"]
    assert (ids("fuchs"), ids("FÜCHSE"), ids("雪"), ids("0%_"), ids("SEEDREAM")) == (
        ["fox"],
        ["fox"],
        ["part"],
        ["part"],
        ["new", "part", "fox"],
    )
    assert (ids(since=morning), ids(until=morning)) == (["new", "part"], ["fox"])
    assert (ids(provider="byteplus"), ids(status="partial"), ids(status="unsent")) == (["part"], ["part"], ["new"])
    with ledger.run("s", "generate") as run:
        save(ledger, run, "none", ImageRow(index=0, state="expired"))
    assert ids(status="failed") == ["none"], "a request without an image is not a part of one"
    assert ids("fox", status="succeeded", provider="ark", since=NOON, until=morning, limit=9) == ["fox"]


def test_a_request_is_found_by_what_names_it(ledger: Ledger) -> None:
    """Its id, its run's, a start that only one run has, its task; a start of several runs is a usage error."""
    for name, count in (("261121-aaa111", 2), ("261121-aab222", 1), ("261122-ccc333", 1)):
        with ledger.run(name, "generate") as run:
            ledger.enter(run, [new(name if count == 1 else f"{name}-{n}") for n in range(count)])
            if name.endswith("333"):
                send(ledger, name)
                ledger.mark_waiting(name, "task-77")
    assert [e.id for e in ledger.find("261121-aaa111")] == ["261121-aaa111-0", "261121-aaa111-1"]
    assert [e.id for e in ledger.find("261121-aaa111-1")] == ["261121-aaa111-1"]
    assert [e.id for e in ledger.find("261122")] == [e.id for e in ledger.find("task-77")] == ["261122-ccc333"]
    assert (len(ledger.find("261121-aaa")), ledger.find("zzz"), ledger.find("")) == (2, (), ())
    with pytest.raises(InputError, match="several ids: 261121-aaa111, 261121-aab222"):
        ledger.find("261121-")


def test_only_whole_requests_are_reused(ledger: Ledger) -> None:
    """Newest first, and none with an image that is not on disk."""
    with ledger.run("r", "generate") as run:
        for name, state in (("a", "saved"), ("b", "handed"), ("c", "saved"), ("d", "failed")):
            where = Path(name) if state == "saved" else None
            save(ledger, run, name, ImageRow(index=0, state=state, path=where), fingerprint="same")  # type: ignore[arg-type]
    assert [entry.images[0].path for entry in ledger.reusable("same")] == [Path("c"), Path("a")]


def test_ten_thousand_rows_cost_few_steps_of_the_database(ledger: Ledger) -> None:
    """What a history of 10,000 requests costs, in thousands of SQLite's own steps: no machine's load changes them."""
    with ledger.run("r", "batch") as run:
        ledger.enter(run, (new(f"q-{n}", position=n, identity=str(n)) for n in range(10_000)))
        ledger._database.connection.execute(
            "INSERT INTO images SELECT id, 0, 'saved', 'https://x/' || id, 1, '/out/' || id || '.png', 'png', "
            "1, 1, 1, '', NULL FROM requests"
        )
        ledger._database.connection.execute("UPDATE requests SET state = 'saved', owner = NULL")
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    ledger._database.connection.set_progress_handler(count, 1000)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "all": (ledger.history, 1500),
        "the last 50": (lambda: ledger.history(limit=50), 20),
        "by text": (lambda: ledger.history("q-777", limit=50), 600),
        "partial only": (lambda: ledger.history(status="partial"), 500),
        "money": (lambda: ledger.spent(since=NOON), 50),
        "find": (lambda: ledger.find("q-77"), 200),
    }
    for name, (call, most) in calls.items():
        steps = 0
        call()
        assert steps <= most, f"{name}: {steps}"


# --- what must not be there -------------------------------------------------------------------------------------------


def bytes_on_disk(path: Path) -> bytes:
    return b"".join(p.read_bytes() for p in path.parent.rglob("*") if p.is_file())


def test_no_key_is_ever_stored(path: Path, now: Now) -> None:
    """A canary in bodies, headers, prompts, addresses, errors and notes is nowhere on disk, plain or escaped."""
    stranger = "sk-unknown-to-the-tool-0123456789"
    with open_ledger(path, now=now, secrets=[CANARY]) as ledger, ledger.run("r", "generate", folder=CANARY) as run:
        body = {
            "extra": {"headers": {"Authorization": f"Bearer {stranger}", "X-Api-Key": stranger}, "token": stranger},
            "note": f"my key is {CANARY}",
            "image": ["data:image/png;base64," + stranger * 100],
            "prompt": "a monkey with a token and 3 keys",
        }
        address = f"https://me:{stranger}@ark.example/v3"
        ledger.enter(run, [new("r", body=body, prompt=CANARY, base_url=address, fields={"slug": CANARY}, file=CANARY)])
        send(ledger, "r")
        ledger.mark_queued("r", ApiError(f"bad header Bearer {stranger}", kind="refused", hint=CANARY, code=CANARY))
        ledger.note("r", "recovered", CANARY)
        ledger.mask_secret("late-secret")
        send(ledger, "r")
        failed = ImageRow(index=0, state="failed", link=CANARY, error=records.Failure("refused", CANARY))
        ledger.mark_ready("r", [failed], usage={"late": "late-secret"}, trace=CANARY)
        assert one(ledger, "r").body["prompt"] == "a monkey with a token and 3 keys"
        assert one(ledger, "r").body["extra"] == {
            "headers": {"Authorization": "***", "X-Api-Key": "***"},
            "token": "***",
        }
        for secret in (CANARY, json.dumps(CANARY)[1:-1], stranger, "late-secret"):
            assert secret.encode() not in bytes_on_disk(path)


def test_purge_keeps_what_is_owed_and_wipes_the_rest(path: Path, ledger: Ledger, now: Now) -> None:
    """Unsaved, unknown, open and doubtful requests stay unless forced, a living run's always; the rest is wiped."""
    with ledger.run("old", "generate") as run:
        save(ledger, run, "saved", ImageRow(index=0, state="saved", path=Path("wiped-path")), prompt="wiped-prompt")
        ledger.enter(run, [new(name) for name in ("failed", "lost", "open", "unsaved", "queued")])
        for name in ("failed", "lost", "open", "unsaved"):
            send(ledger, name)
        ledger.mark_failed("failed", REFUSED)
        ledger.mark_unknown("lost", LOST)
        ledger.mark_waiting("open", "task")
        ledger.mark_ready("unsaved", [ImageRow(index=0, link="l")])
    now.moment += dt.timedelta(days=2)
    with ledger.run("alive", "generate") as run:
        ledger.enter(run, [new("alive")])
        assert ledger.purge(before=NOON) == records.Purged(0, 0)
        assert ledger.purge(before=NOON + dt.timedelta(days=1)) == records.Purged(3, 3)
        assert {entry.id for entry in ledger.history()} == {"lost", "open", "unsaved", "alive"}
        assert b"wiped-" not in bytes_on_disk(path)
        assert ledger.purge(before=None, force=True) == records.Purged(3, 1)
        assert [entry.id for entry in ledger.history()] == ["alive"]
        assert [row.id for row in ledger.runs()] == ["alive"]
        assert ledger.check() == ()
