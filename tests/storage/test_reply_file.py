"""The disk room for replies: nothing paid for is lost, and no image is held in memory to read the reply around it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seedream_cli.errors import BusyError, FileError, InternalError
from seedream_cli.results import Base64Slice
from seedream_cli.storage import json_scan
from seedream_cli.storage.json_scan import load, read
from seedream_cli.storage.reply_file import adopt, forget, list_kept, load_meta, open_reply_part

LIMIT = 1 << 20
IMAGE = base64.b64encode(bytes(range(256)) * 40).decode()


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "reply.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def at(blob: Base64Slice) -> str:
    return blob.path.read_bytes()[blob.offset : blob.offset + blob.length].decode()


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_a_reply_is_kept_whole_with_its_meta_and_forgotten_when_told(tmp_path: Path) -> None:
    """`keep` leaves the exact bytes and the meta, private to the user, and nothing else; `forget` leaves nothing."""
    folder = tmp_path / "state" / "spool"
    reply = open_reply_part(folder, "a1", 1_000_000)
    reply.write(b'{"data"')
    reply.write(memoryview(b":[]}"))
    path = reply.keep({"provider": "ark", "prompt": "雪"})
    assert path.read_bytes() == b'{"data":[]}'
    assert load_meta(folder, "a1") == {"provider": "ark", "prompt": "雪"}
    assert sorted(entry.name for entry in folder.iterdir()) == ["a1.meta.json", "a1.reply"]
    assert [(kept.id, kept.path, kept.bytes) for kept in list_kept(folder)] == [("a1", path, 11)]
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {entry.stat().st_mode & 0o777 for entry in folder.iterdir()} == {0o600}
    forget(folder, "a1")
    assert list(folder.iterdir()) == []
    assert load_meta(folder, "a1") == {}


def test_a_new_attempt_starts_from_empty(tmp_path: Path) -> None:
    """After `reset` nothing of the longer first answer is left behind the shorter second one."""
    reply = open_reply_part(tmp_path, "a1", 4096)
    reply.write(b"x" * 5000)
    reply.reset()
    reply.write(b"{}")
    assert reply.size == 2
    assert reply.path.read_bytes().rstrip(b"\0") == b"{}"
    assert reply.keep({}).read_bytes() == b"{}"


def test_a_kept_refusal_makes_way_for_the_next_attempt(tmp_path: Path) -> None:
    """After `keep` and `reset` the old reply no longer passes for the answer, and is there until all is forgotten."""
    reply = open_reply_part(tmp_path, "a1", 4096)
    reply.write(b'{"error":1}')
    reply.keep({})
    reply.reset()
    assert list_kept(tmp_path) == []
    assert (tmp_path / "a1.1.cut").read_bytes() == b'{"error":1}'
    reply.write(b"{}")
    assert load(reply.keep({}), limit=LIMIT) == {}
    reply.drop()
    assert [kept.id for kept in list_kept(tmp_path)] == ["a1"]
    forget(tmp_path, "a1")
    assert list(tmp_path.iterdir()) == []


def test_a_dropped_reply_leaves_nothing(tmp_path: Path) -> None:
    """`drop` removes the part with its reserved room."""
    open_reply_part(tmp_path, "a1", 4096).drop()
    assert list(tmp_path.iterdir()) == []
    assert list_kept(tmp_path / "missing") == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs posix_fallocate and RLIMIT_FSIZE")
def test_a_full_disk_shows_before_anything_is_paid(tmp_path: Path) -> None:
    """Room that cannot be reserved is an error that says that nothing was sent, and leaves no part."""
    done = run(
        """
        import resource, signal, sys
        from pathlib import Path
        from seedream_cli.errors import FileError
        from seedream_cli.storage.reply_file import open_reply_part
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            open_reply_part(Path(sys.argv[1]), "big", 60_000)
        except FileError as error:
            print(error.exit_code, error.billed)
        reply = open_reply_part(Path(sys.argv[1]), "small", 0)
        reply.write(b"x" * 40_000)
        try:
            reply.write(b"x" * 40_000)
        except FileError as error:
            print(error.exit_code, error.billed, reply.size)
        """,
        tmp_path,
    )
    assert done.stdout.split("\n") == ["74 no", "8 yes 50000", ""], done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.part"]


def test_a_spool_that_is_in_use_is_busy_and_one_left_behind_is_put_aside(tmp_path: Path) -> None:
    """Two runs never write one reply, and what a cut attempt received is not overwritten by the next."""
    first = open_reply_part(tmp_path, "a1", 4096)
    first.write(b'{"data":[{"b64')
    with pytest.raises(BusyError):
        open_reply_part(tmp_path, "a1", 0)
    assert adopt(tmp_path, "a1", limit=LIMIT) is None
    first.close()
    for _ in range(2):
        again = open_reply_part(tmp_path, "a1", 4096)
        again.write(b"{")
        again.close()
    assert (tmp_path / "a1.1.cut").read_bytes() == b'{"data":[{"b64'
    assert (tmp_path / "a1.2.cut").read_bytes() == b"{"
    forget(tmp_path, "a1")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a1.part"]


def test_a_whole_reply_of_a_killed_run_is_adopted(tmp_path: Path) -> None:
    """A part that a kill left with its reserved room becomes a kept reply if its JSON is whole, and only then."""
    text = json.dumps({"data": [{"b64_json": IMAGE}]})
    for job_id, body in (("whole", text), ("cut", text[:-1]), ("none", "")):
        killed = run(
            """
            import os, signal, sys
            from pathlib import Path
            from seedream_cli.storage.reply_file import open_reply_part
            open_reply_part(Path(sys.argv[1]), sys.argv[2], 700_000).write(sys.argv[3].encode())
            os.kill(os.getpid(), signal.SIGKILL)
            """,
            tmp_path,
            job_id,
            body,
        )
        assert killed.returncode == -9, killed.stderr
    adopted = adopt(tmp_path, "whole", limit=LIMIT)
    assert adopted is not None
    assert adopted.read_text() == text
    assert [kept.id for kept in list_kept(tmp_path)] == ["whole"]
    assert adopt(tmp_path, "cut", limit=LIMIT) is None
    assert adopt(tmp_path, "none", limit=LIMIT) is None
    assert adopt(tmp_path, "never", limit=LIMIT) is None
    assert (tmp_path / "cut.part").exists()


def test_a_spool_never_writes_through_a_link_nor_outside_its_folder(tmp_path: Path) -> None:
    """A link in the way is refused, and an id that is no plain name is a bug, not a path."""
    victim, folder = tmp_path / "victim", tmp_path / "spool"
    folder.mkdir()
    (folder / "a1.part").symlink_to(victim)
    for content in (None, b"{}\0"):
        if content:
            victim.write_bytes(content)
        with pytest.raises(FileError, match="exists"):
            open_reply_part(folder, "a1", 0)
        assert adopt(folder, "a1", limit=LIMIT) is None
        assert (victim.read_bytes() if victim.exists() else None) == content
    for job_id in ("../a1", "a/b", "", ".a", "a\0", "-a"):
        with pytest.raises(InternalError):
            open_reply_part(folder, job_id, 0)


def test_images_stay_on_disk_and_the_rest_is_plain_json(tmp_path: Path) -> None:
    """Long base64 becomes a Blob over its exact characters; everything else reads as json.loads reads it."""
    escaped = IMAGE.replace("/", "\\/")
    text = (
        '{"a":"' + IMAGE + '","b":["data:image\\/png;base64,' + escaped + '", {"c":"' + IMAGE.replace("A", "\\n", 1)
        + '"}],"short":"QUJD","text":"' + "word " * 2000 + '","quoted":"' + 'say \\"hi\\" ' * 900
        + '","slashes":"' + "\\\\" * 3000 + '","n":[1,-2.5e3,true,null,"雪\\u96ea"]}'
    )  # fmt: skip
    path = written(tmp_path, text)
    value, plain = load(path, limit=LIMIT), json.loads(text)
    assert at(value.pop("a")) == IMAGE == plain.pop("a")
    assert at(value["b"][0]) == "data:image\\/png;base64," + escaped
    assert isinstance(value["b"][1]["c"], Base64Slice)
    del value["b"], plain["b"]
    assert value == plain


def test_one_event_of_a_stream_is_read_where_it_lies(tmp_path: Path) -> None:
    """The images of events stay on disk too: each Blob points into the whole file."""
    event = json.dumps({"b64_json": IMAGE})
    path = written(
        tmp_path, f": it's a \"comment\n\ndata: {event}\n\ndata: {event}\n\ndata: [DONE]\n\n".replace('"c', "c")
    )
    found = read(path, limit=LIMIT)
    assert [at(value["b64_json"]) for value in found.values] == [IMAGE, IMAGE]
    assert found.ended


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a":', '{"a":"b', '{"a":"' + IMAGE, "<html>", '{"a":"' + IMAGE + '"', "[" * 100_000,
     '["' + "word " * 300_000 + '"]', '{"a":[{"b":1}]', '<html><script>var a = {"b": 1}</script></html>'],
)  # fmt: skip
def test_what_is_no_json_is_a_value_error(tmp_path: Path, text: str | bytes) -> None:
    """Cut, wrong, over-deep and over-long replies all raise ValueError and nothing else."""
    with pytest.raises(ValueError):
        load(written(tmp_path, text), limit=LIMIT)


def test_a_provider_cannot_forge_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a reply that knows this call's random token could; each call draws a new one."""
    tokens: list[str] = []
    real = os.urandom

    def draw(size: int) -> bytes:
        token = real(size)
        tokens.append(token.hex())
        return token

    monkeypatch.setattr("os.urandom", draw)
    path = written(tmp_path, json.dumps({"a": IMAGE}))
    load(path, limit=LIMIT)
    assert load(written(tmp_path, json.dumps([f"{tokens[0]}:0:10"])), limit=LIMIT) == [f"{tokens[0]}:0:10"]
    assert len(set(tokens)) == 2


long_text = st.one_of(
    st.sampled_from([IMAGE, IMAGE[:4096], IMAGE[:4097], "\\" * 5000, '"' * 3000, "/" * 5000, "é" * 3000]),
    st.text(max_size=20),
)
values = st.recursive(
    st.one_of(long_text, st.integers(-(10**17), 10**17), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values, window=st.integers(min_value=300, max_value=9000), ascii_only=st.booleans())
def test_reading_agrees_with_json_at_every_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, window: int, ascii_only: bool
) -> None:
    """Whatever falls on the border between two reads, the value is that of json.loads once Blobs are read back."""
    monkeypatch.setattr(json_scan, "_WINDOW", window)

    def filled(item: object) -> object:
        if isinstance(item, Base64Slice):
            assert item.length > 4096
            return json.loads(f'"{at(item)}"')
        if isinstance(item, dict):
            return {key: filled(inner) for key, inner in item.items()}
        return [filled(inner) for inner in item] if isinstance(item, list) else item

    value = [value]
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace")
    assert filled(load(written(tmp_path, text), limit=LIMIT)) == json.loads(text)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """A reply of 64 MB is read in less than 8 MiB of memory, and its image decoded in as little."""
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.write(b'{"data":["')
        for _ in range(64):
            file.write(b"QUJD" * 250_000)
        file.write(b'"]}')
    done = run(
        """
        import re, sys
        from pathlib import Path
        from seedream_cli.storage import json_scan
        from seedream_cli.storage import base64_image
        from seedream_cli.storage import image_file
        def peak():
            return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
        before = peak()
        blob = json_scan.load(Path(sys.argv[1]), limit=1000)["data"][0]
        with image_file.open_part(Path(sys.argv[1]).parent) as part:
            base64_image.write_blob(blob, part)
            print(part.size, peak() - before)
        """,
        path,
    )
    size, growth = map(int, done.stdout.split())
    assert size == 48_000_000
    assert growth < 8 * 1024
