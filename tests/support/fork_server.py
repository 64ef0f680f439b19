"""The command in forked processes that can be wounded: killed before any write to the disk, or given a planted bug.

One process imports the tool and then forks for every run, so that a run takes milliseconds and yet dies like any other.
As `python -m tests.support.fork_server` this file is that process: its standard input is a socket that jobs come from.
With `BUG ARGS…` behind that it is one run with a planted bug.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.command import Command
from tests.support.hurried import hurry
from tests.support.loaded import keep_commands

ROOT = Path(__file__).parents[2]


class Nursery:
    """The process that forks. A context manager."""

    def __enter__(self) -> Nursery:
        self._link, far = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            stdin=far,
        )
        far.close()
        self._is_free = threading.Lock()
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()
        self._process.wait()

    def start(self, job: dict[str, Any], files: list[int]) -> tuple[int, int]:
        """Let a child do a job with these standard files; its pid, and a file that will tell its status."""
        status, told = os.pipe()
        raw = json.dumps(job).encode()
        with self._is_free:
            socket.send_fds(self._link, [len(raw).to_bytes(_PREFIX)], [*files, told])
            self._link.sendall(raw)
            os.close(told)
            pid = int.from_bytes(self._link.recv(_PREFIX, socket.MSG_WAITALL))
        return pid, status


class ForkedProcess(subprocess.Popen[bytes]):
    """A child of the nursery, which is to its test a process like any other."""

    def __init__(self, nursery: Nursery, job: dict[str, Any], **files: Any) -> None:
        self._nursery, self._job = nursery, job
        super().__init__(["seedream", *job["args"]], **files)

    def _execute_child(self, *given: Any) -> None:
        ours = given[10:16]
        # An end of a pipe, a file of the test's, or -1 for what the test has itself.
        stdin, _, _, stdout, _, stderr = ours
        files = [max(stdin, 0), stdout if stdout >= 0 else 1, stderr if stderr >= 0 else 2]
        self._status = -1
        try:
            self.pid, self._status = self._nursery.start(self._job, files)
            self._child_created = True
        finally:
            self._close_pipe_fds(*ours)  # type: ignore[attr-defined]

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if flags and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        told = os.read(self._status, 32)
        os.close(self._status)
        # Who tells nothing has been killed together with the one that would.
        return self.pid, int(told or signal.SIGKILL)

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None:
            super()._internal_poll(_deadstate, _waitpid=lambda pid, flags: self._try_wait(flags))  # type: ignore[misc]
        return self.returncode


class Forked(Command):
    """The command as a child of the nursery: `wounds` are the names of functions of this file, with an argument.

    What a forked process cannot be given (another encoding, a terminal, limits) starts an interpreter of its own.
    """

    def __init__(self, home: Path, nursery: Nursery, *, hurried: bool = False) -> None:
        super().__init__(home, hurried=hurried)
        self.nursery = nursery

    def popen(
        self,
        *args: str,
        env: dict[str, str] | None = None,
        hurried: bool = False,
        wounds: dict[str, Any] | None = None,
        **more: Any,
    ) -> subprocess.Popen[bytes]:
        """Start it and return the process."""
        whole = {**self.env, **(env or {})}
        is_own = any(name.startswith(("PYTHON", "LC_", "COVERAGE")) for name in whole) or whole.get("LANG") != "C.UTF-8"
        files = {name: more.get(name, subprocess.PIPE) for name in ("stdout", "stderr")} | {"stdin": more.get("stdin")}
        if is_own or more.keys() - {"stdin", "stdout", "stderr", "cwd"} or any(map(_is_terminal, files.values())):
            assert not wounds
            return super().popen(*args, env=env, hurried=hurried, **more)
        job = {"args": args, "env": whole, "cwd": str(more.get("cwd", self.folder)), "wounds": wounds or {}}
        return ForkedProcess(self.nursery, {**job, "hurried": hurried or self.hurried}, **files)


def _is_terminal(file: Any) -> bool:
    number = file if isinstance(file, int) or file is None else file.fileno()
    return os.isatty(0 if number is None else number) if number is None or number >= 0 else False


# --- in the child -----------------------------------------------------------------------------------------------------


_OURS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "seedream_cli").rglob("[a-z]*.py"))
]
_IMPORTED = [
    *_OURS,
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "_strptime",
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "certifi",
    "concurrent.futures.thread",
    "encodings.utf_8_sig",
    "httpcore",
    "platformdirs.unix",
    "pydantic",
]


_PREFIX = 4
_LONGEST_S = 120


def _serve() -> None:
    """Import everything once, then fork for every job that comes."""
    for name in _IMPORTED:
        importlib.import_module(name)
    keep_commands()
    # What is there now will not be looked at again by a child's collector, and so not be copied.
    gc.collect()
    gc.freeze()
    link = socket.socket(fileno=os.dup(0))
    ended, ending = os.pipe()
    os.set_blocking(ending, False)
    signal.set_wakeup_fd(ending)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([link, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _tell_who_ended(running)
        if link in ready:
            prefix, files, _, _ = socket.recv_fds(link, _PREFIX, 4)
            if not prefix:
                return
            raw = link.recv(int.from_bytes(prefix), socket.MSG_WAITALL)
            child = os.fork()
            if not child:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number, file in enumerate(files[:3]):
                    os.dup2(file, number)
                for file in (*files, *running.values(), ended, ending, link.detach()):
                    os.close(file)
                _live(json.loads(raw))
            running[child] = files.pop()
            for file in files:
                os.close(file)
            link.sendall(child.to_bytes(_PREFIX))


def _tell_who_ended(running: dict[int, int]) -> None:
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        file = running.pop(child)
        # Whoever started it may be gone.
        with contextlib.suppress(BrokenPipeError):
            os.write(file, b"%d" % status)
        os.close(file)


def _live(job: dict[str, Any]) -> None:
    """Be one run of the command."""
    from seedream_cli.__main__ import main

    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    if job["hurried"]:
        hurry()
    for name, argument in job["wounds"].items():
        WOUNDS[name](argument)
    # Who hangs dies of it.
    signal.setitimer(signal.ITIMER_REAL, _LONGEST_S)
    time.tzset()
    sys.argv = ["seedream", *job["args"]]
    code: Any = 70
    try:
        code = 0
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        code = 70
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)


def kill(at: int | list[Any]) -> None:
    """Die at the N-th step: before a write to the disk or a commit, with a request written down, or an answer read.

    `["sent", 3]` is the third step behind the first one of that name, 0 that step itself.
    """
    first, number = (at[0], at[1] + 1) if isinstance(at, list) else ("", at)
    passed = 0

    def step(name: str) -> None:
        nonlocal passed
        passed += 1 if passed or name == first or not first else 0
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _at_each_step(step)


def trace(path: str) -> None:
    """Write down the names of all steps."""

    def step(name: str) -> None:
        with Path(path).open("a") as file:
            file.write(f"{name}\n")

    _at_each_step(step)


def _at_each_step(step: Callable[[str], None]) -> None:
    from seedream_cli.engine.recorder import Recorder
    from seedream_cli.ledger import database

    def before(name: str) -> None:
        real = getattr(os, name)

        def stepped(*args: Any, **more: Any) -> Any:
            # A folder that is there and a file that is not leave nothing to be killed before.
            if os.path.lexists(args[0]) == (name != "mkdir") if name in {"mkdir", "unlink"} else True:
                step(name)
            return real(*args, **more)

        setattr(os, name, stepped)

    for name in (
        "fsync",
        "replace",
        "rename",
        "link",
        "unlink",
        "ftruncate",
        "posix_fallocate",
        "mkdir",
        "write",
        "pwrite",
    ):
        before(name)
    connect = database.connect

    def traced(path: Path) -> Any:
        db = connect(path)
        db.set_trace_callback(lambda statement: step("commit") if statement == "COMMIT" else None)
        return db

    database.connect = traced
    sent, ready = Recorder.sent, Recorder.ready

    # Two states lie between those: nothing has left of what is written down, and an answer is read that is not.

    async def written(self: Recorder, *args: Any, **more: Any) -> Any:
        token = await sent(self, *args, **more)
        step("sent")
        return token

    async def answered(self: Recorder, *args: Any) -> None:
        step("read")
        await ready(self, *args)

    Recorder.sent, Recorder.ready = written, answered  # type: ignore[method-assign]


# --- planted bugs: the tests that kill must see each of them ----------------------------------------------------------


def sends_before_it_writes() -> None:
    """The intent is written down only when the answer is here."""
    from seedream_cli.engine.recorder import Recorder

    sent, ready = Recorder.sent, Recorder.ready

    async def late(self: Recorder, job: Any, *rest: Any) -> None:
        await sent(self, job, 1, lambda: None, again=False)
        await ready(self, job, *rest)

    async def unsaid(self: Recorder, *_: Any, **__: Any) -> None:
        pass

    Recorder.sent, Recorder.ready = unsaid, late  # type: ignore[method-assign]


def downloads_before_it_writes() -> None:
    """The links are written down only when the images are here."""
    from seedream_cli.engine.recorder import Recorder

    ready, image = Recorder.ready, Recorder.image
    held: dict[str, Any] = {}

    async def late(self: Recorder, job: Any, *rest: Any, **more: Any) -> None:
        if job.id in held:
            await ready(self, *held.pop(job.id))
        await image(self, job, *rest, **more)

    async def hold(self: Recorder, job: Any, *rest: Any) -> None:
        held[job.id] = (job, *rest)

    Recorder.ready, Recorder.image = hold, late  # type: ignore[method-assign]


def forgets_before_it_writes() -> None:
    """The reply is removed before the books know that its images are saved."""
    from seedream_cli.engine.recorder import Recorder
    from seedream_cli.storage import reply_file

    image = Recorder.image

    async def early(self: Recorder, job: Any, *rest: Any, **more: Any) -> None:
        reply_file.forget(Path(os.environ["SEEDREAM_STATE_DIR"]) / "replies", job.id)
        await image(self, job, *rest, **more)

    Recorder.image = early  # type: ignore[method-assign]


def replaces_what_is_there() -> None:
    """An image takes its name from whoever has it."""
    from seedream_cli.storage import filesystem

    filesystem.move_to_free = os.replace


def takes_orphans_for_new() -> None:
    """What was out when its process died is called never sent."""
    from seedream_cli.ledger import rows, runs

    end = runs.Runs._end_orphan

    def as_new(self: Any, db: Any, request_id: str, reply: Any) -> None:
        end(self, db, request_id, reply)
        if reply is None:
            rows.update(db, request_id, {"state": "queued", "billed": "no", "error": None})

    runs.Runs._end_orphan = as_new  # type: ignore[method-assign]


def repeats_what_is_in_doubt() -> None:
    """An answer that was lost is asked for again."""
    from seedream_cli.network import retry

    decide = retry.decide
    retry.decide = lambda error, attempt, *rest: 0.0 if attempt < 2 else decide(error, attempt, *rest)


def reads_no_remains() -> None:
    """A whole reply that had no name yet when its process died is passed over, also once it is put aside."""
    from seedream_cli.storage import reply_file

    reply_file.adopt = lambda folder, name, *, limit: None
    reply_file.list_asides = lambda folder, job_id="*": []


def reads_no_journal() -> None:
    """What the journal of a dead batch holds is passed over."""
    from seedream_cli.storage import reply_journal

    reply_journal.adopt = lambda folder, request_id, token: None


def takes_any_token() -> None:
    """A reply in the journal of a dead batch is taken for whichever request is looked for."""
    from seedream_cli.storage import reply_journal

    pack, head = reply_journal._HEAD.pack, reply_journal._HEAD

    class Careless:
        size, unpack_from = head.size, staticmethod(head.unpack_from)

        @staticmethod
        def pack(mark: bytes, length: int, checksum: int, token: bytes) -> bytes:
            return pack(mark, length, checksum, b"")

    reply_journal._HEAD = Careless  # type: ignore[assignment]
    find = reply_journal._find
    reply_journal._find = lambda descriptor, token: find(descriptor, "")


def knows_no_image_again() -> None:
    """An image that is on disk, but not in the books, is saved once more."""
    from seedream_cli.storage import image_file

    image_file.find_same = lambda place, facts: None


def flushes_no_commit() -> None:
    """The ledger leaves it to the system when its commits reach the disk."""
    from seedream_cli.ledger import database

    connect = database.connect

    def lazy(path: Path) -> Any:
        db = connect(path)
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    database.connect = lazy


def flushes_no_image() -> None:
    """An image gets its name before its bytes are on the disk."""
    from seedream_cli.storage import image_file

    image_file.ImagePart.flush = lambda self: None  # type: ignore[method-assign]


def flushes_no_folder() -> None:
    """An image is in the books before its name is on the disk."""
    from seedream_cli.storage import image_file

    image_file.flush_folder = lambda folder: None


def cannot_write_answers() -> None:
    """The disk of the ledger is full from the answer on, for that one write."""
    from seedream_cli.errors import FileError
    from seedream_cli.ledger.transitions import Transitions

    def full(*_: Any, **__: Any) -> None:
        raise FileError("no room", billed="yes")

    Transitions.mark_ready = full  # type: ignore[method-assign]


def has_no_room_for_replies() -> None:
    """No reply gets a file of its own; the places of the journal are there."""
    from seedream_cli.errors import FileError
    from seedream_cli.storage import reply_file

    def full(*_: Any) -> Any:
        raise FileError("no space left", hint="make room")

    reply_file.open_reply_part = full


def breaks_at_the_first_write() -> None:
    """The disk fails once, when a reply that has outgrown the journal is moved to a file."""
    from seedream_cli.errors import FileError
    from seedream_cli.storage import reply_file

    write, rest = reply_file.ReplyPart.write, [None]

    def fail(self: Any, chunk: Any) -> None:
        if rest:
            rest.pop()
            raise FileError("input/output error", billed="yes")
        write(self, chunk)

    reply_file.ReplyPart.write = fail  # type: ignore[method-assign]


def cannot_record_what_it_cost() -> None:
    """The user's ledger takes what a request may cost, and nothing after that."""
    from seedream_cli.errors import FileError
    from seedream_cli.ledger.budget import Budget

    record, held = Budget.record_external_charge, set[str]()

    def fail(self: Any, key: str, *args: Any, **more: Any) -> None:
        if key in held:
            raise FileError("no space left")
        held.add(key)
        record(self, key, *args, **more)

    Budget.record_external_charge = fail  # type: ignore[method-assign]


def commits_no_links() -> None:
    """The disk of the ledger is full whenever links are to be written down."""
    from seedream_cli.errors import FileError
    from seedream_cli.ledger.transitions import Transitions

    def full(*_: Any, **__: Any) -> None:
        raise FileError("no space left", billed="yes")

    has_no_room_for_replies()
    Transitions.mark_ready = full  # type: ignore[method-assign]


def loses_its_table() -> None:
    """The disk that the table is on goes away once the table is checked."""
    from seedream_cli.batch import table_source
    from seedream_cli.engine import run as engine_run

    running = list[bool]()

    class Gone:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            if running and name == "readinto":
                raise OSError(5, "Input/output error")
            return getattr(self.file, name)

    made, ran = table_source.TableFile.__init__, engine_run.run

    def make(self: Any, shown: str, file: Any, **more: Any) -> None:
        made(self, shown, Gone(file), **more)

    def run_stream(*args: Any) -> Any:
        running.append(True)
        return ran(*args)

    table_source.TableFile.__init__ = make  # type: ignore[method-assign]
    engine_run.run = run_stream


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        sends_before_it_writes,
        downloads_before_it_writes,
        forgets_before_it_writes,
        replaces_what_is_there,
        takes_orphans_for_new,
        repeats_what_is_in_doubt,
        reads_no_remains,
        reads_no_journal,
        takes_any_token,
        knows_no_image_again,
        flushes_no_commit,
        flushes_no_image,
        flushes_no_folder,
        cannot_write_answers,
        has_no_room_for_replies,
        breaks_at_the_first_write,
        cannot_record_what_it_cost,
        commits_no_links,
        loses_its_table,
    )
}


def plant(bug: str) -> None:
    """Have a bug."""
    BUGS[bug]()


def shift(hours: float) -> None:
    """Have a clock that is wrong by so many hours."""
    import datetime as dt

    class Wrong(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return dt.datetime.now(tz) + dt.timedelta(hours=hours)

    shifted = types.SimpleNamespace(**{**vars(dt), "datetime": Wrong})
    for name, module in list(sys.modules.items()):
        if name.startswith("seedream_cli") and getattr(module, "dt", None) is dt:
            vars(module)["dt"] = shifted


def shrink(size: int) -> None:
    """Have a disk on which no file grows beyond so many bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


WOUNDS: dict[str, Callable[[Any], None]] = {
    "kill": kill,
    "trace": trace,
    "plant": plant,
    "shift": shift,
    "shrink": shrink,
}


if __name__ == "__main__" and len(sys.argv) > 1:
    from seedream_cli.cli.app import main as run

    plant(sys.argv[1])
    sys.exit(run(sys.argv[2:]))
elif __name__ == "__main__":
    _serve()
