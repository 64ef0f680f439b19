"""The real command in a home of its own: no variable, file or key of the machine reaches a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CANARY = "sk-canary-0123456789-do-not-print"
HURRIED = Path(__file__).with_name("hurried.py")


@dataclass
class Done:
    """How a run of the command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON object."""
        return json.loads(self.out)

    @property
    def paths(self) -> list[Path]:
        """Standard output as one path a line."""
        return [Path(line) for line in self.out.splitlines()]


class Command:
    """`seedream` with an empty home and a bare environment, run in a folder of its own.

    Its runs are `hurried`, all or the one that says so, if they do not wait before they try or ask again.
    """

    def __init__(self, home: Path, *, hurried: bool = False) -> None:
        self.home = home
        self.hurried = hurried
        self.folder = home / "work"
        self.folder.mkdir(parents=True)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "SEEDREAM_STATE_DIR": str(home / "state"),
        }

    def popen(
        self, *args: str, env: dict[str, str] | None = None, hurried: bool = False, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start it and return the process."""
        more.setdefault("stdout", subprocess.PIPE)
        more.setdefault("stderr", subprocess.PIPE)
        more.setdefault("cwd", self.folder)
        # Unlike -m, a file does not need to be found from the folder of the run.
        which = ["-P", str(HURRIED)] if hurried or self.hurried else ["-m", "seedream_cli"]
        return subprocess.Popen([sys.executable, *which, *args], env={**self.env, **(env or {})}, **more)

    def __call__(
        self, *args: str, env: dict[str, str] | None = None, stdin: bytes = b"", timeout: float = 60, **more: Any
    ) -> Done:
        """Run it to its end. Whatever it was given, it may not answer with a traceback or the key."""
        process = self.popen(*args, env=env, stdin=subprocess.PIPE, **more)
        out, err = process.communicate(stdin, timeout=timeout)
        return self.check(process.returncode, out or b"", err or b"", args)

    @staticmethod
    def check(code: int, out: bytes, err: bytes, args: tuple[str, ...]) -> Done:
        """What came of a run, if it is fit to be seen."""
        done = Done(code, out.decode(), err.decode())
        assert code != -signal.SIGALRM, f"it did not end in time: {args}"
        assert "Traceback" not in done.err, done.err
        assert CANARY not in done.out + done.err, "the key was printed"
        return done


class Inside(Command):
    """The command in this process, for runs that send nothing: the same environment, a tenth of the time."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(home)
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(
        self, *args: str, env: dict[str, str] | None = None, stdin: bytes = b"", timeout: float = 60, **more: Any
    ) -> Done:
        """Run it to its end. It may not be given anything to send, nor a key."""
        from seedream_cli.cli.app import main
        from tests.support.loaded import keep_commands

        keep_commands()
        assert not stdin
        assert not more
        with self.monkeypatch.context() as patch:
            patch.setattr(os, "environ", {**self.env, "COLUMNS": "80", **(env or {})})
            patch.chdir(self.folder)
            code = main(args)
        shown = self.capsys.readouterr()
        return Done(code, shown.out, shown.err)
