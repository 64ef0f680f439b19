"""Downloads of paid images: what is whole is saved whatever it is called, and what cannot be had now stays in reach."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.forked import Forked, Nursery, nursery
from tests.rawserver import Script, answer
from tests.test_batch import ENV
from tests.upstream import Upstream, noise, picture

JPEG = picture()
PNG = noise((60, 60))


@pytest.fixture(scope="module", name="farm")
def _farm() -> Iterator[Nursery]:
    with nursery() as found:
        yield found


@pytest.fixture
def forked(tmp_path: Path, farm: Nursery) -> Forked:
    """The command, forked."""
    return Forked(tmp_path / "home", farm)


def ark(upstream: Upstream, *more: str) -> list[str]:
    """A generation at an upstream."""
    return ["generate", "a fox", "-p", "ark", "--base-url", upstream.url, *more]


def raw_deflate(data: bytes) -> bytes:
    """Compressed without any header."""
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


def named_gzip(data: bytes) -> bytes:
    """Compressed, with a file's name before it and no checksum behind."""
    return b"\x1f\x8b\x08\x08" + bytes(6) + b"x\0" + raw_deflate(data)


def signed_chunks(data: bytes, size: int = 100) -> bytes:
    """The framing of an upload in signed chunks, which some stores hand out again."""
    parts = [data[at : at + size] for at in range(0, len(data), size)] + [b""]
    return b"".join(b"%x;chunk-signature=%064x\r\n%s\r\n" % (len(part), at, part) for at, part in enumerate(parts))


def labelled(
    name: str, value: str, body: bytes = JPEG, *, status: int = 200, borders: Sequence[int] = (), cut: int | None = None
) -> Script:
    """An answer with one header more."""
    return answer(body, status=status, headers=[(name, value)], borders=borders, cut=cut)


def too_long_a_length(body: bytes) -> Script:
    """Its head promises 100 bytes more than there are."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) + 100}\r\nConnection: close\r\n\r\n"
    return Script([head.encode() + body])


# --- labels are opinions ----------------------------------------------------------------------------------------------

WHOLE: dict[str, tuple[Script, bytes]] = {
    **{
        f"encoding {name}": (labelled("Content-Encoding", name), JPEG)
        for name in ("aws-chunked", "utf-8", "none", "gzip", "br", "identity, gzip", "deflate", "")
    },
    "gzip": (labelled("Content-Encoding", "gzip", gzip.compress(PNG), borders=[1, 7]), PNG),
    "gzip without a word": (answer(gzip.compress(PNG)), PNG),
    "gzip with a name, twice": (
        labelled("Content-Encoding", "gzip, gzip", gzip.compress(named_gzip(PNG))),
        PNG,
    ),
    "gzip, its checksum wrong": (labelled("Content-Encoding", "gzip", gzip.compress(PNG)[:-8] + bytes(8)), PNG),
    "gzip, its checksum cut": (labelled("Content-Encoding", "gzip", gzip.compress(PNG)[:-8]), PNG),
    "deflate with its header": (labelled("Content-Encoding", "deflate", zlib.compress(PNG)), PNG),
    "deflate, bare": (labelled("Content-Encoding", "deflate", raw_deflate(PNG)), PNG),
    "signed chunks": (labelled("Content-Encoding", "aws-chunked", signed_chunks(PNG), borders=[3, 90, 195]), PNG),
    "type text/html": (labelled("Content-Type", "text/html; charset=utf-8"), JPEG),
    **{f"status {status}": (answer(JPEG, status=status), JPEG) for status in (201, 202, 203, 226)},
    "206 of all": (labelled("Content-Range", f"bytes 0-{len(JPEG) - 1}/{len(JPEG)}", status=206), JPEG),
    "206 of all, told wrongly": (labelled("Content-Range", f"bytes 0-{len(JPEG)}/{len(JPEG)}", status=206), JPEG),
    "a length that is too long": (too_long_a_length(JPEG), JPEG),
    "chunks without an end": (answer(JPEG, framing="chunked", cut=len(JPEG)), JPEG),
    "no length": (answer(JPEG, framing="close"), JPEG),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_image_that_is_whole_is_saved_whatever_it_is_called(forked: Forked, name: str) -> None:
    """Size and the image check decide, at the first attempt; header lines, status and framing do not."""
    script, body = WHOLE[name]
    with Upstream(link=lambda request, number: script) as upstream:
        done = forked(*ark(upstream), env=ENV)
        assert (done.code, len(upstream.gets)) == (0, 1), done.err
        [path] = done.paths
        assert (forked.folder / path).read_bytes() == body


PARTS: dict[str, Script] = {
    "204": Script([b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"]),
    "205": answer(JPEG, status=205),
    "206 of a part": labelled("Content-Range", f"bytes 0-{len(JPEG) - 1}/{len(JPEG) + 9}", status=206),
    "206 from the middle": labelled("Content-Range", f"bytes 5-{len(JPEG) + 4}/{len(JPEG) + 5}", status=206),
    "302 without Location": answer(JPEG, status=302),
    "404 with an image": answer(JPEG, status=404),
    "a page": labelled("Content-Encoding", "gzip", gzip.compress(b"<html>" + b"x" * 2000)),
    "cut in its middle": answer(PNG, cut=len(PNG) // 2),
    "compressed and cut": labelled("Content-Encoding", "gzip", gzip.compress(PNG)[:-2000]),
    "zeros out of nothing": answer(gzip.compress(bytes(4_000_000), 1)),
    "an image that never ends": answer(gzip.compress(PNG[:-12] + bytes(68_000_000), 1)),
}


@pytest.mark.parametrize("name", PARTS)
def test_image_that_is_not_whole_stays_in_reach(forked: Forked, name: str) -> None:
    """No file is written, the end is 8, and `recover` saves it once the store has come to its senses."""
    script = PARTS[name]
    with Upstream(link=lambda request, number: script) as upstream:
        done = forked(*ark(upstream, "--retries", "0"), env=ENV)
        assert done.code == 8, done.err
        assert not list(forked.folder.iterdir())
        upstream._link = None
        assert forked("recover", env=ENV).code == 0
        assert len(upstream.posts) == 1
