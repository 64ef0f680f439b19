"""Files that are replaced as one step, and what is left of those whose process died on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from seedream_cli.errors import FileError
from seedream_cli.storage import filesystem, reply_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_file_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    """The old content stands until the end of the block, and for good where the block fails; no part is left."""
    path = tmp_path / "results.csv"
    path.write_bytes(b"old")
    with filesystem.atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        # A run that starts meanwhile takes nothing away from a living process.
        assert filesystem.sweep_parts(tmp_path) == 0
    assert path.read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError), filesystem.atomic_file(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["results.csv"]


DIES = """
import os, pathlib, signal, sys
from seedream_cli.storage import filesystem
with filesystem.atomic_file(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_atomic_file_of_a_killed_process_leaves_a_part_that_is_swept(tmp_path: Path) -> None:
    """In a folder of images by `sweep_parts`, in one of replies by what puts aside the remains of replies."""
    path = tmp_path / "a-1.meta.json"
    path.write_bytes(b"old")
    subprocess.run([sys.executable, "-c", DIES, str(path)], check=False)
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    reply_file.sweep(tmp_path)
    assert names(tmp_path) == ["a-1.meta.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs modes and links")
def test_atomic_write_keeps_the_mode_and_the_link(tmp_path: Path) -> None:
    """A new file is for its owner alone; what a link leads to is replaced, and keeps the mode that it has."""
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    filesystem.atomic_write(real, b"1")
    assert real.stat().st_mode & 0o777 == 0o600
    real.chmod(0o664)
    link.symlink_to(real)
    filesystem.atomic_write(link, b"2")
    assert (link.is_symlink(), real.read_bytes(), real.stat().st_mode & 0o777) == (True, b"2", 0o664)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(FileError, match=f"cannot write {link}: "):
        filesystem.atomic_write(link, b"3")
    assert names(tmp_path) == ["link.toml", "real.toml"]
