"""The fixtures."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import CANARY, Command, Inside

if TYPE_CHECKING:
    from tests.support.fork_server import Forked, Nursery

# A shell's background job starts with these ignored, and what is ignored is handed down to every process of a test.
for _number in {signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)}:
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "hurried: runs of the command do not wait before they try or ask again")


def _is_hurried(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("hurried") is not None


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """The command without a process of its own, hermetic."""
    return Inside(tmp_path / "home", monkeypatch, capsys)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """The process that forks: each of its runs is a process of its own that need not load the tool anew."""
    from tests.support.fork_server import Nursery

    with Nursery() as made:
        yield made


@pytest.fixture
def forked(request: pytest.FixtureRequest, tmp_path: Path, nursery: Nursery) -> Forked:
    """The command that can be wounded, in an empty home."""
    from tests.support.fork_server import Forked

    return Forked(tmp_path / "home", nursery, hurried=_is_hurried(request))


@pytest.fixture
def seedream(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Command]:
    """The command, hermetic. After the test nothing that it wrote may hold the key or an unfinished file."""
    if hasattr(os, "fork"):
        yield request.getfixturevalue("forked")
    else:
        yield Command(tmp_path / "home", hurried=_is_hurried(request))
    for path in (tmp_path / "home").rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), f"the key is in {path}"
