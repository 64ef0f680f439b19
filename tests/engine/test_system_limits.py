"""Too few files or too little memory is said before anything is paid, and a full disk leaves nothing broken."""

from __future__ import annotations

import datetime as dt
import errno
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.errors import FileError
from seedream_cli.ledger import ledger
from seedream_cli.storage import system_limits
from tests.support.command import CANARY, Command, Done
from tests.support.provider_server import Upstream

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs bounds that hold")

ROWS = 12
MEGABYTE = 1 << 20


def bound(name: str, value: int) -> Callable[[], None]:
    """What a child does before it becomes the command: it may have no more than this."""

    def apply() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(getattr(resource, name), (value, value))

    return apply


def run(seedream: Command, upstream: Upstream, command: str, limit: Callable[[], None] | None = None) -> Done:
    at = ("-p", "ark", "--base-url", upstream.url)
    args = {
        "generate": ("generate", "a fox", "-n", "3", *at),
        "edit": ("edit", "a fox", "-i", "ref.png", *at),
        "batch": ("batch", "t.csv", *at),
        "recover": ("recover",),
        "history": ("history",),
        "config": ("config", "show"),
    }[command]
    (seedream.folder / "t.csv").write_text("id,prompt\n" + "".join(f"r{row},a fox {row}\n" for row in range(ROWS)))
    if command == "edit":
        from tests.support.provider_server import make_image

        (seedream.folder / "ref.png").write_bytes(make_image("PNG"))
    more: dict[str, Any] = {"preexec_fn": limit} if limit else {}
    return seedream(*args, env={"ARK_API_KEY": CANARY}, **more)


def images(seedream: Command) -> int:
    return len([path for path in seedream.folder.rglob("*.jp*g") if path.stat().st_size])


@pytest.mark.parametrize(
    ("command", "count"),
    [("generate", 16), ("edit", 16), ("batch", 16), ("batch", 32), ("recover", 9), ("history", 16), ("config", 16)],
)
def test_few_descriptors_stop_before_payment_or_go_on_with_fewer_at_once(
    seedream: Command, command: str, count: int
) -> None:
    """Each is done wholly, or refused in a line that names the bound; nothing that was not sent is in doubt."""
    with Upstream() as upstream:
        done = run(seedream, upstream, command, bound("RLIMIT_NOFILE", count))
        assert "may have" not in done.err
        if done.code:
            assert done.code == 74, done.err
            assert "ulimit -n" in done.err
            assert not upstream.posts
            assert command not in {"generate", "edit", "batch"} or "not sent: " in done.err
        if command == "batch":
            assert run(seedream, upstream, command).code == 0
            assert (len(upstream.posts), images(seedream)) == (ROWS, ROWS)


def test_a_bound_that_is_enough_for_some_requests_gets_fewer_at_once(seedream: Command) -> None:
    """And says so in one line."""
    with Upstream() as upstream:
        done = run(seedream, upstream, "batch", bound("RLIMIT_NOFILE", 48))
        assert done.code == 0, done.err
        assert (len(upstream.posts), images(seedream)) == (ROWS, ROWS)
    assert done.err.count("at once instead of") == 1
    assert "ulimit -n allows 48 open files" in done.err


@pytest.mark.parametrize("command", ["generate", "batch"])
def test_little_memory_stops_before_payment(seedream: Command, command: str) -> None:
    """Enough to start with, too little for an image."""
    with Upstream() as upstream:
        done = run(seedream, upstream, command, bound("RLIMIT_AS", 90 * MEGABYTE))
        assert done.code == 74, done.err
        assert "ulimit -v" in done.err
        assert "may have" not in done.err
        assert not upstream.posts


def test_a_disk_that_is_full_while_a_ledger_is_made_leaves_none(tmp_path: Path) -> None:
    """At every size at which it fills; with room again there is a whole one."""
    script = (
        "import datetime as dt, pathlib, resource, signal, sys\n"
        "from seedream_cli.errors import FileError\n"
        "from seedream_cli.ledger.ledger import open_ledger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "now = lambda: dt.datetime.now(dt.timezone.utc)\n"
        "for size in range(0, 200_000, 5_000):\n"
        "    path = pathlib.Path(sys.argv[1]) / str(size) / 'ledger.db'\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        open_ledger(path, now=now).close()\n"
        "    except FileError:\n"
        "        print(size, [each.name for each in path.parent.iterdir() if each.suffix != '.lock'])\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "    open_ledger(path, now=now).close()\n"
    )
    failed = subprocess.check_output([sys.executable, "-c", script, str(tmp_path)], timeout=120).decode().splitlines()
    assert len(failed) > 10
    assert not [line for line in failed if ".new" in line]


def make_half(path: Path, *, log: bytes = b"") -> None:
    """What earlier versions left of a ledger that a full disk cut short: its end is in the log of its first name."""
    ledger.open_ledger(path, now=now).close()
    whole = path.read_bytes()
    path.with_name(f"{path.name}.new-wal").write_bytes(whole)
    path.with_name(f"{path.name}-wal").write_bytes(log)
    os.truncate(path, 8192)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def test_a_half_made_ledger_of_an_earlier_version_is_made_again(tmp_path: Path) -> None:
    """It held nothing, and is put aside all the same."""
    path = tmp_path / "ledger.db"
    make_half(path)
    ledger.open_ledger(path, now=now).close()
    assert path.with_name("ledger.db.old").stat().st_size == 8192
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM requests").fetchone()[0] == 0
    db.close()


@pytest.mark.parametrize("has_log", [True, False], ids=["rows in its own log", "no log of its making"])
def test_a_cut_ledger_that_may_hold_rows_stays_as_it_is(tmp_path: Path, has_log: bool) -> None:
    """Only what surely was never used is made again."""
    path = tmp_path / "ledger.db"
    make_half(path, log=b"x" * 100 if has_log else b"")
    if not has_log:
        path.with_name("ledger.db.new-wal").unlink()
    with pytest.raises(FileError, match="damaged"):
        ledger.open_ledger(path, now=now)
    assert path.stat().st_size == 8192


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "x"), "out of memory"),
        (OSError(errno.EMFILE, "x"), "too many open files"),
        (RuntimeError("can't start new thread"), "out of memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "out of memory"),
        (ValueError("x"), ""),
        (RuntimeError("x"), ""),
        (OSError(errno.ENOENT, "x"), ""),
    ],
)
def test_what_has_run_out_is_told_from_other_errors(error: Exception, words: str) -> None:
    """Also where it is the cause behind another; a bug stays a bug."""
    outer = RuntimeError("outer")
    outer.__cause__ = error
    for each in (error, outer):
        found = system_limits.lack_of(each)
        assert found.startswith(words)
        assert bool(found) == bool(words)
