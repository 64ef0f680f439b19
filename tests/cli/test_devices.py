"""Names that are no files: devices, pipes and links that a user names are written to or followed, never replaced."""

from __future__ import annotations

import csv
import io
import os
import select
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Command, Done

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def write_table(seedream: Command, rows: int = 2) -> None:
    (seedream.folder / "shots.csv").write_text("id,prompt\n" + "".join(f"r{row},fox {row}\n" for row in range(rows)))


def draw(seedream: Command, *more: str, **options: Any) -> Done:
    return seedream("batch", "shots.csv", "-p", "sandbox", *more, **options)


def statuses(text: str) -> list[str]:
    return [row["status"] for row in csv.DictReader(io.StringIO(text)) if row.get("status")]


class Reader:
    """Reads a pipe to its end in a thread, as `cat` would."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # Opened at once, so that whoever writes finds a reader.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self._descriptor, True)

    def wait(self) -> None:
        """Until there is something: before anybody writes, a pipe is at its end."""
        assert select.select([self._descriptor], [], [], 60)[0]

    def read(self) -> bytes:
        with os.fdopen(self._descriptor, "rb") as file:
            return file.read()


def full_device(folder: Path) -> Path:
    """A device of the test's own that is always full, like /dev/full, which no test may touch."""
    path = folder / "full"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        pytest.skip("no device can be made here")
    return path


@pytest.mark.parametrize("merges", [False, True], ids=["batch", "merge"])
def test_results_to_a_pipe_reach_its_reader(seedream: Command, merges: bool) -> None:
    """The pipe stays one, and its reader gets every row when the run ends."""
    write_table(seedream)
    pipe = seedream.folder / "pipe"
    if merges:
        assert draw(seedream, "-o", "a").code == 0
    reader = Reader(pipe)
    if merges:
        done = seedream("batch", "--merge", "a", "-o", "all", "--results", "pipe")
    else:
        done = draw(seedream, "--results", "pipe")
    assert done.code == 0, done.err
    assert statuses(reader.read().decode()) == ["succeeded", "succeeded"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    pipe.unlink()


def test_results_to_a_pipe_that_nobody_reads_end_before_anything_is_paid(seedream: Command) -> None:
    """It does not wait for ever, and says why."""
    write_table(seedream)
    os.mkfifo(seedream.folder / "pipe")
    done = draw(seedream, "--results", "pipe", timeout=30)
    assert (done.code, done.paths) == (74, []), done.err
    assert "nobody reads it" in done.err
    (seedream.folder / "pipe").unlink()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "link"])
@pytest.mark.parametrize("goes_to", ["pipe", "file"])
def test_results_to_standard_output_come_behind_the_paths(seedream: Command, name: str, goes_to: str) -> None:
    """Whether a pipe or a file is behind it: nothing written before is lost, and no name is put over it."""
    write_table(seedream)
    if name == "link":
        (seedream.folder / "link").symlink_to("/dev/stdout")
    before = os.readlink("/dev/stdout")
    if goes_to == "pipe":
        done = draw(seedream, "--results", name)
        out = done.out
    else:
        with (seedream.folder / "out.txt").open("wb") as file:
            done = draw(seedream, "--results", name, stdout=file)
        out = (seedream.folder / "out.txt").read_text()
    assert done.code == 0, done.err
    assert os.readlink("/dev/stdout") == before
    lines = out.splitlines()
    assert sum(line.endswith((".jpg", ".png")) for line in lines[:2]) == 2
    assert lines[2].startswith("id,prompt,status,")
    assert len(lines) == 5


def test_results_to_a_full_device_are_exit_74_and_the_device_stays(seedream: Command) -> None:
    """All is paid and saved by then: the images are there, the ledger knows them, and the device is one."""
    write_table(seedream)
    device = full_device(seedream.folder)
    done = draw(seedream, "--results", str(device))
    assert (done.code, len(done.paths)) == (74, 2), done.err
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert all(path.is_file() for path in [seedream.folder / one for one in done.paths])
    device.unlink()
    again = draw(seedream)
    assert (again.code, again.paths) == (0, []), again.err


@pytest.mark.parametrize("is_dangling", [False, True])
def test_results_behind_a_link_take_the_target_s_place_and_the_link_stays(seedream: Command, is_dangling: bool) -> None:
    """As an editor does with a file of a repository of settings."""
    write_table(seedream)
    (seedream.folder / "real").mkdir()
    target = seedream.folder / "real" / "r.csv"
    if not is_dangling:
        target.write_text("prompt,status,path,error,provider_code,billed,cost,request_id\n")
    (seedream.folder / "r.csv").symlink_to("real/r.csv")
    done = draw(seedream, "--results", "r.csv")
    assert done.code == 0, done.err
    assert (seedream.folder / "r.csv").is_symlink()
    assert statuses(target.read_text()) == ["succeeded", "succeeded"]
    assert sorted(path.name for path in (seedream.folder / "real").iterdir()) == ["r.csv"]


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_results_that_nobody_named_follow_no_link_out_of_the_folder(seedream: Command, kind: str) -> None:
    """A folder from elsewhere may hold `results.csv` as a link to a file of the user's."""
    write_table(seedream)
    (seedream.folder / "shots").mkdir()
    victim = seedream.folder / "precious"
    victim.write_text("precious")
    place = seedream.folder / "shots" / "results.csv"
    place.symlink_to(victim) if kind == "link" else os.mkfifo(place)
    done = draw(seedream, timeout=30)
    assert (done.code, done.paths, victim.read_text()) == (2, [], "precious"), done.err
    assert "--results" in done.err
    place.unlink()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_named_output_that_is_overwritten_stays_what_it_is(seedream: Command, kind: str) -> None:
    """`-o NAME --if-exists overwrite`: the image goes into the pipe, or takes the place of the link's target."""
    place = seedream.folder / "cat.jpg"
    (seedream.folder / "real").mkdir()
    reader = None
    if kind == "link":
        (seedream.folder / "real" / "cat.jpg").write_bytes(b"old")
        place.symlink_to("real/cat.jpg")
    else:
        reader = Reader(place)
    taken: list[bytes] = []
    args = ("generate", "a cat", "-p", "sandbox", "--format", "jpeg", "-o", "cat.jpg", "--if-exists", "overwrite")
    process = seedream.popen(*args)
    if reader:
        reader.wait()
        taken.append(reader.read())
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    if kind == "link":
        assert place.is_symlink()
        assert (seedream.folder / "real" / "cat.jpg").read_bytes()[:2] == b"\xff\xd8"
    else:
        assert stat.S_ISFIFO(place.lstat().st_mode)
        assert taken[0][:2] == b"\xff\xd8"
        assert taken[0][-2:] == b"\xff\xd9"
        place.unlink()
    assert not list(seedream.folder.rglob(".seedream-*"))


def test_batch_that_overwrites_follows_no_link_of_its_folder(seedream: Command) -> None:
    """Nobody typed that name: the link gives way, and what it led to stays."""
    write_table(seedream, 1)
    (seedream.folder / "shots").mkdir()
    victim = seedream.folder / "precious.txt"
    victim.write_text("precious")
    for suffix in ("jpg", "png"):
        (seedream.folder / "shots" / f"r0.{suffix}").symlink_to(victim)
    done = draw(seedream, "--if-exists", "overwrite")
    assert (done.code, victim.read_text()) == (0, "precious"), done.err


def test_settings_behind_a_link_are_written_there_and_a_device_is_not_replaced(seedream: Command) -> None:
    """`config set` with the user's file in a repository of settings, and with a device as the file."""
    folder = seedream.home / ".config" / "seedream"
    folder.mkdir(parents=True)
    (seedream.home / "dotfiles").mkdir()
    (seedream.home / "dotfiles" / "s.toml").write_text('size = "2K"\n')
    (folder / "config.toml").symlink_to("../../dotfiles/s.toml")
    assert seedream("config", "set", "size", "4K").code == 0
    assert (folder / "config.toml").is_symlink()
    assert 'size = "4K"' in (seedream.home / "dotfiles" / "s.toml").read_text()
    if IS_ROOT:
        device = seedream.folder / "null"
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        seedream("config", "--config", "null", "set", "size", "4K", timeout=30)
        assert stat.S_ISCHR(device.lstat().st_mode)
        device.unlink()
